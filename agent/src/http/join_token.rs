//! `/v1/operator/join-token*`: ours; Consul has nothing like it.
//!
//! Owns: the shapes, and that a token's text is shown once.
//! Never: keeps a secret; the state gets its hash.

use std::time::Duration;

use weft_catalog::JOIN_TOKEN_TTL_MILLIS_MAX;
use weft_proto::clock::rfc3339;
use weft_proto::duration;
use weft_proto::ids::{self, UnixMillis};
use weft_proto::json::{Json, Object};
use weft_proto::v1::join_token_command::Op;
use weft_proto::v1::{self, stamped::Command};

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// Life of a token that names none.
const TTL_DEFAULT: Duration = Duration::from_hours(1);

pub(super) async fn create(mut call: Call) -> Result<Reply, Failure> {
    let body = call.optional_json().await?;
    let body = Object::root(&body)?;
    let node = body.text("Node")?;
    if node.is_empty() {
        return Err(Failure::bad_request(
            "join_token.node",
            "Missing Node: a join token is good for one node, name it",
        ));
    }
    let ttl = body.duration("TTL")?.unwrap_or(TTL_DEFAULT);
    let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if !(1_000..=JOIN_TOKEN_TTL_MILLIS_MAX).contains(&ttl_millis) {
        return Err(Failure::bad_request(
            "join_token.ttl",
            format!("TTL {} is not between 1s and 168h", duration::format(ttl)),
        ));
    }
    let deps = &call.api.deps;
    let expires = deps.clock.wall().get().saturating_add(ttl_millis);
    let ticket = deps.operator.join_ticket(&node, expires)?;
    let id = ids::mint();
    let create = v1::JoinTokenCreate {
        id: id.clone(),
        secret_hash: ticket.secret_hash,
        node: node.clone(),
        ttl_millis,
    };
    call.write(Command::JoinToken(v1::JoinTokenCommand {
        op: Some(Op::Create(create)),
    }))
    .await?;
    Ok(Reply::written(|json| {
        json.object(|json| {
            json.key("ID").string(&id);
            json.key("Node").string(&node);
            json.key("Token").string(&ticket.text);
            json.key("ExpiresAt").string(&rfc3339(UnixMillis(expires)));
        });
    }))
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let now = call.api.deps.clock.wall().get();
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.join_tokens();
        let rows = answer.rows;
        let reply = Reply::written(|json| {
            json.list(&rows, |json, token| row(json, token, now));
        });
        Found::coarse(answer.index.get(), reply)
    })
    .await
}

fn row(json: &mut Json, token: &v1::JoinToken, now: u64) {
    let status = match (token.used_millis, token.expires_millis) {
        (0, expires) if expires <= now => "expired",
        (0, _) => "open",
        _ => "used",
    };
    json.object(|json| {
        json.key("ID").string(&token.id);
        json.key("Node").string(&token.node);
        json.key("Status").string(status);
        json.key("CreatedAt")
            .string(&rfc3339(UnixMillis(token.created_millis)));
        json.key("ExpiresAt")
            .string(&rfc3339(UnixMillis(token.expires_millis)));
        if token.used_millis != 0 {
            json.key("UsedAt")
                .string(&rfc3339(UnixMillis(token.used_millis)));
        }
        json.key("CreateIndex").number(token.create_index);
        json.key("ModifyIndex").number(token.modify_index);
    });
}

pub(super) async fn revoke(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing join token ID")?;
    call.write(Command::JoinToken(v1::JoinTokenCommand {
        op: Some(Op::Revoke(id)),
    }))
    .await?;
    Ok(Reply::verdict(true))
}
