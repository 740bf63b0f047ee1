//! Sessions: creation, renewal, and every way they end.
//!
//! Owns: what an ended session does to the keys it held, and the deadlines as replicated state.
//! Never: runs a timer; the leader proposes expiries, this module decides whether they still hold.
//! Source: Consul docs, "Sessions and distributed locks"; CONSUL.md B.5; DESIGN F2.

use bytes::Bytes;
use weft_proto::ids::UnixMillis;
use weft_proto::v1::{self, outcome};

use crate::apply::register::missing_node;
use crate::apply::{kv, prepared_query};
use crate::keys::{self, Name, Pair, PairRef, Triple};
use crate::refusal::{Verdict, applied, conflict, internal, invalid, not_found, unit};
use crate::rows::Change;

/// The longest lock-delay: 60 s.
pub const LOCK_DELAY_MILLIS_MAX: u64 = 60_000;

pub(crate) fn create(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::SessionCreate,
) -> Verdict {
    let Some(wanted) = &command.session else {
        return Err(invalid("session.missing", "Missing session"));
    };
    check_new(change, wanted)?;
    let node = keys::name(&wanted.node);
    let machine = change
        .state
        .nodes
        .get(&node)
        .cloned()
        .ok_or_else(missing_node)?;
    for check in wanted.node_checks.iter().chain(&wanted.service_checks) {
        check_is_alive(change, &node, check)?;
    }
    let mut session = wanted.clone();
    session.node.clone_from(&machine.name);
    if session.behavior.is_empty() {
        "release".clone_into(&mut session.behavior);
    }
    session.lock_delay_millis = session.lock_delay_millis.min(LOCK_DELAY_MILLIS_MAX);
    (session.create_index, session.modify_index) = (change.index, change.index);
    session.renewed_at_millis = now.get();
    session.renewal_epoch = 1;
    change.put_session(session.clone(), true);
    Ok(outcome::Result::Session(session))
}

fn check_new(change: &Change<'_>, wanted: &v1::Session) -> Result<(), v1::Refusal> {
    if wanted.id.is_empty() {
        return Err(invalid("session.id.missing", "Must provide session ID"));
    }
    if !matches!(wanted.behavior.as_str(), "" | "release" | "delete") {
        return Err(invalid(
            "session.behavior",
            format!("Invalid Behavior setting '{}'", wanted.behavior),
        ));
    }
    if change
        .state
        .sessions
        .contains_key(keys::fold(&wanted.id).as_ref())
    {
        return Err(conflict(
            "session.id.exists",
            format!("Session id \"{}\" exists already", wanted.id),
        ));
    }
    Ok(())
}

fn check_is_alive(change: &Change<'_>, node: &Name, check: &str) -> Result<(), v1::Refusal> {
    match change.state.checks.get(&PairRef(node, &keys::fold(check))) {
        None => Err(internal(
            "session.check.missing",
            format!("Missing check '{check}' registration"),
        )),
        Some(row) if row.status == "critical" => Err(internal(
            "session.check.critical",
            format!("Check '{check}' is in critical state"),
        )),
        Some(_) => Ok(()),
    }
}

/// Ends a session; one that is gone already is fine.
pub(crate) fn destroy(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::SessionDestroy,
) -> Verdict {
    invalidate(change, now, &keys::name(&command.id));
    Ok(unit())
}

/// Starts the TTL anew. Not a visible change: indexes stay, nobody wakes.
pub(crate) fn renew(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::SessionRenew,
) -> Verdict {
    let Some(before) = change.state.sessions.get(keys::fold(&command.id).as_ref()) else {
        return Err(not_found(
            "session.unknown",
            format!("Session id \"{}\" not found", command.id),
        ));
    };
    let session = renewed(before, now);
    change.put_session(session.clone(), false);
    Ok(outcome::Result::Session(session))
}

fn renewed(before: &v1::Session, now: UnixMillis) -> v1::Session {
    let mut session = before.clone();
    session.renewed_at_millis = now.get();
    session.renewal_epoch += 1;
    session
}

/// A leader's timer ran out. It holds only if nothing happened since it was set: same renewal
/// epoch, no newer leader, and never before the TTL itself has passed.
pub(crate) fn expire(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::SessionExpire,
) -> Verdict {
    let key = keys::name(&command.id);
    let due = change.state.sessions.get(&key).is_some_and(|session| {
        session.ttl_millis > 0
            && session.renewal_epoch == command.renewal_epoch
            && now.get() >= session.renewed_at_millis.saturating_add(session.ttl_millis)
    });
    if !due || command.term < change.state.scalars.leader_term {
        return Ok(applied(false));
    }
    invalidate(change, now, &key);
    Ok(applied(true))
}

/// A new leader gives every session its full TTL again: no client is punished for an election.
pub(crate) fn rearm(change: &mut Change<'_>, now: UnixMillis, term: u64) -> Verdict {
    change.state.scalars.leader_term = change.state.scalars.leader_term.max(term);
    let armed: Vec<Name> = change
        .state
        .deadlines
        .iter()
        .map(|(_, id)| id.clone())
        .collect();
    for id in armed {
        if let Some(before) = change.state.sessions.get(&id) {
            let session = renewed(before, now);
            change.put_session(session, false);
        }
    }
    Ok(unit())
}

/// Ends a session by force: its keys are released or deleted, and guarded by the lock-delay.
pub(crate) fn invalidate(change: &mut Change<'_>, now: UnixMillis, id: &Name) {
    let Some(session) = change.state.sessions.get(id).cloned() else {
        return;
    };
    change.drop_session(id);
    prepared_query::drop_bound(change, id);
    let held: Vec<Bytes> = change
        .state
        .held
        .range((id.clone(), Bytes::new())..)
        .take_while(|(holder, _)| holder == id)
        .map(|(_, key)| key.clone())
        .collect();
    for key in held {
        if session.behavior == "delete" {
            kv::delete(change, &key);
        } else {
            kv::release(change, &key);
        }
        if session.lock_delay_millis > 0 {
            let until = now.get().saturating_add(session.lock_delay_millis);
            change.state.lock_delays.insert(key, until);
        }
    }
}

/// Ends every session of a node that is going.
pub(crate) fn invalidate_by_node(change: &mut Change<'_>, now: UnixMillis, node: &Name) {
    let ids: Vec<Name> = change
        .state
        .sessions_by_node
        .range(Pair(node.clone(), "".into())..)
        .take_while(|key| key.0 == *node)
        .map(|key| key.1.clone())
        .collect();
    for id in ids {
        invalidate(change, now, &id);
    }
}

/// Ends every session bound to a check that is critical or gone.
pub(crate) fn invalidate_by_check(
    change: &mut Change<'_>,
    now: UnixMillis,
    node: &Name,
    check: &Name,
) {
    let ids: Vec<Name> = change
        .state
        .sessions_by_check
        .range(Triple(node.clone(), check.clone(), "".into())..)
        .take_while(|key| key.0 == *node && key.1 == *check)
        .map(|key| key.2.clone())
        .collect();
    for id in ids {
        invalidate(change, now, &id);
    }
}
