//! Join tokens: made, used up once, revoked.
//!
//! Owns: that a token is good for one node, one public key and a bounded time.
//! Never: sees a secret: hashes of secrets are compared. Hashes are of 32 random bytes, so there is nothing to guess
//! and nothing that a comparison in varying time could tell.

use std::sync::Arc;

use weft_proto::ids::UnixMillis;
use weft_proto::v1::{self, join_token_command::Op};

use crate::keys;
use crate::refusal::{Verdict, conflict, invalid, not_found, unit};
use crate::rows::Change;
use crate::topics::TableTopic;

/// Tokens kept at once.
pub const JOIN_TOKENS_MAX: usize = 4096;
/// The longest life of a token: a week.
pub const JOIN_TOKEN_TTL_MILLIS_MAX: u64 = 7 * 24 * 3_600_000;
/// How long a token is shown after its end.
const KEPT_MILLIS: u64 = 24 * 3_600_000;
/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

pub(crate) fn command(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::JoinTokenCommand,
) -> Verdict {
    match &command.op {
        Some(Op::Create(create)) => made(change, now, create),
        Some(Op::Redeem(redeem)) => redeemed(change, now, redeem),
        Some(Op::Revoke(id)) => revoked(change, id),
        None => Err(invalid(
            "join_token.verb",
            "Nothing to do with a join token",
        )),
    }
}

fn made(change: &mut Change<'_>, now: UnixMillis, create: &v1::JoinTokenCreate) -> Verdict {
    if create.id.is_empty() || create.node.is_empty() || create.secret_hash.len() != HASH_BYTES {
        return Err(invalid(
            "join_token.incomplete",
            "A join token needs an id, a node name and the hash of its secret",
        ));
    }
    if !(1..=JOIN_TOKEN_TTL_MILLIS_MAX).contains(&create.ttl_millis) {
        return Err(invalid(
            "join_token.ttl",
            "A join token lives between 1 ms and 7 days",
        ));
    }
    forget_old(change, now);
    if change.state.join_tokens.len() >= JOIN_TOKENS_MAX {
        return Err(conflict(
            "join_token.too_many",
            format!(
                "{JOIN_TOKENS_MAX} join tokens exist; revoke some, or wait until they have expired"
            ),
        ));
    }
    let key = keys::name(&create.id);
    if change.state.join_tokens.contains_key(&key) {
        return Err(conflict(
            "join_token.exists",
            format!("join token {:?} exists already", create.id),
        ));
    }
    let token = v1::JoinToken {
        id: create.id.clone(),
        secret_hash: create.secret_hash.clone(),
        node: create.node.clone(),
        created_millis: now.get(),
        expires_millis: now.get().saturating_add(create.ttl_millis),
        create_index: change.index,
        modify_index: change.index,
        ..v1::JoinToken::default()
    };
    change.state.join_tokens.insert(key, Arc::new(token));
    change.bump_table(TableTopic::Operator);
    Ok(unit())
}

fn redeemed(change: &mut Change<'_>, now: UnixMillis, redeem: &v1::JoinTokenRedeem) -> Verdict {
    let tokens = change.state.join_tokens.iter();
    let known = tokens
        .filter(|(_, token)| token.secret_hash == redeem.secret_hash)
        .map(|(key, token)| (key.clone(), token.clone()))
        .next();
    let Some((key, token)) = known else {
        return Err(not_found(
            "join_token.unknown",
            "this join token is not known here: it was revoked, ran out more than a day ago, or is another cluster's; make a new one with `weft join-token create`",
        ));
    };
    if !token.node.eq_ignore_ascii_case(&redeem.node) {
        return Err(conflict(
            "join_token.node",
            format!(
                "this join token is for node {:?}, not for {:?}",
                token.node, redeem.node
            ),
        ));
    }
    if now.get() >= token.expires_millis {
        return Err(conflict(
            "join_token.expired",
            "this join token has expired; make a new one with `weft join-token create`",
        ));
    }
    if token.used_millis != 0 {
        return if token.used_by == redeem.used_by {
            Ok(unit())
        } else {
            Err(conflict(
                "join_token.used",
                "this join token was used already, with another key: make a new one with `weft join-token create`, and find out who used this one",
            ))
        };
    }
    let used = v1::JoinToken {
        used_millis: now.get().max(1),
        used_by: redeem.used_by.clone(),
        modify_index: change.index,
        ..v1::JoinToken::clone(&token)
    };
    change.state.join_tokens.insert(key, Arc::new(used));
    change.bump_table(TableTopic::Operator);
    Ok(unit())
}

fn revoked(change: &mut Change<'_>, id: &str) -> Verdict {
    if change
        .state
        .join_tokens
        .remove(keys::fold(id).as_ref())
        .is_none()
    {
        return Err(not_found(
            "join_token.unknown",
            format!("there is no join token {id:?}"),
        ));
    }
    change.bump_table(TableTopic::Operator);
    Ok(unit())
}

/// Tokens that have been of no use for a day.
fn forget_old(change: &mut Change<'_>, now: UnixMillis) {
    let tokens = change.state.join_tokens.iter();
    let old: Vec<_> = tokens
        .filter(|(_, token)| token.expires_millis.saturating_add(KEPT_MILLIS) <= now.get())
        .map(|(key, _)| key.clone())
        .collect();
    for key in old {
        change.state.join_tokens.remove(&*key);
    }
}
