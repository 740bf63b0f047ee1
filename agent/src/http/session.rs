//! `/v1/session/*`.
//!
//! Owns: the session endpoints and the refusals that need configuration (TTL bounds).
//! Never: keeps a timer; the leader does.
//! Source: Consul HTTP API, "Sessions"; CONSUL.md A.5, B.5.

use std::time::Duration;

use weft_catalog::acl::{Access, Resource};
use weft_proto::json::{Json, Object, input, records};
use weft_proto::v1::{self, stamped::Command};
use weft_proto::{duration, ids};

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// Longest TTL.
const TTL_MAX: Duration = Duration::from_secs(86_400);

pub(super) async fn create(mut call: Call) -> Result<Reply, Failure> {
    let body = call.optional_json().await?;
    let session = input::session(&Object::root(&body)?, ids::mint(), call.here())?;
    call.guard
        .require(Resource::Session, session.node.as_bytes(), Access::Write)?;
    check_ttl(&session, call.api.config.session_ttl_min)?;
    if !matches!(session.behavior.as_str(), "release" | "delete") {
        let text = format!("Invalid Behavior setting '{}'", session.behavior);
        return Err(Failure::internal("session.behavior", text));
    }
    let id = session.id.clone();
    let outcome = call
        .write(Command::SessionCreate(v1::SessionCreate {
            session: Some(session),
        }))
        .await?;
    let id = match outcome.result {
        Some(v1::outcome::Result::Session(made)) => made.id,
        _ => id,
    };
    Ok(Reply::written(|json| {
        json.object(|json| json.key("ID").string(&id))
    }))
}

/// Consul answers 500 here; its clients look at the text.
fn check_ttl(session: &v1::Session, min: Duration) -> Result<(), Failure> {
    // The text, not the milliseconds: a TTL of nanoseconds must not round down to none at all.
    let ttl = duration::parse(&session.ttl).unwrap_or_default();
    if ttl.is_zero() || (min..=TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    let text = format!(
        "Invalid Session TTL '{}', must be between [{}={}]",
        ttl.as_nanos(),
        duration::format(min),
        duration::format(TTL_MAX)
    );
    Err(Failure::internal("session.ttl", text))
}

fn id(call: &Call) -> Result<String, Failure> {
    call.required_tail("Missing session")
}

/// Rights on a session are rights on its node; an unknown session has none.
fn require_on_node(call: &Call, id: &str) -> Result<(), Failure> {
    let state = call.api.deps.backend.state();
    let trace = weft_catalog::Trace::off();
    let node = state
        .read(&trace)
        .session(id)
        .rows
        .map(|session| session.node.clone())
        .unwrap_or_default();
    call.guard
        .require(Resource::Session, node.as_bytes(), Access::Write)
}

pub(super) async fn destroy(call: Call) -> Result<Reply, Failure> {
    let id = id(&call)?;
    require_on_node(&call, &id)?;
    call.write(Command::SessionDestroy(v1::SessionDestroy { id }))
        .await?;
    Ok(Reply::verdict(true))
}

pub(super) async fn renew(call: Call) -> Result<Reply, Failure> {
    let id = id(&call)?;
    require_on_node(&call, &id)?;
    let outcome = call
        .write(Command::SessionRenew(v1::SessionRenew { id: id.clone() }))
        .await?;
    match outcome.result {
        Some(v1::outcome::Result::Session(session)) => Ok(Reply::written(|json| {
            json.array(|json| records::session(json, &session))
        })),
        _ => Err(Failure::not_found(
            "session.unknown",
            format!("Session id {id:?} not found"),
        )),
    }
}

pub(super) async fn info(call: Call) -> Result<Reply, Failure> {
    let id = id(&call)?;
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.session(&id);
        let index = answer.index.get();
        let present = answer.rows.is_some();
        let reply = sessions(&call, answer.rows);
        if present {
            Found::now(index, reply)
        } else {
            Found::coarse(index, reply)
        }
    })
    .await
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.sessions();
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        Found::now(index, sessions(&call, answer.rows))
    })
    .await
}

pub(super) async fn of_node(call: Call) -> Result<Reply, Failure> {
    let node = call.required_tail("Missing node name")?;
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.sessions_of_node(&node);
        Found::coarse(answer.index.get(), sessions(&call, answer.rows))
    })
    .await
}

fn sessions<'a>(
    call: &Call,
    rows: impl IntoIterator<Item = &'a std::sync::Arc<v1::Session>>,
) -> Reply {
    let shown = rows
        .into_iter()
        .filter(|session| call.guard.shows(Resource::Session, session.node.as_bytes()));
    let mut json = Json::default();
    json.list(shown, |json, session| records::session(json, session));
    Reply::json(json.into_bytes())
}
