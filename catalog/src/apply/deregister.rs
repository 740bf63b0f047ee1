//! `Deregister`: a node, a service or a check goes, with what depends on it.
//!
//! Owns: the order of removal and the compare-and-apply guards of the leader's reconciliation.
//! Never: fails for something already gone.

use weft_proto::ids::UnixMillis;
use weft_proto::v1;

use crate::apply::session;
use crate::keys::{self, Name, PairRef};
use crate::refusal::{Verdict, applied, invalid, unit};
use crate::rows::Change;

pub(crate) fn deregister(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::Deregister,
) -> Verdict {
    if command.node.is_empty() {
        return Err(invalid("catalog.node.missing", "Must provide node"));
    }
    let node = keys::name(&command.node);
    let guarded = !command.expect_node_id.is_empty() || command.expect_modify_index != 0;
    if guarded && !is_as_expected(change, &node, command) {
        return Ok(applied(false));
    }
    if !command.service_id.is_empty() {
        remove_service(change, now, &node, &keys::name(&command.service_id));
    } else if !command.check_id.is_empty() {
        remove_check(change, now, &node, &keys::name(&command.check_id));
    } else {
        remove_node(change, now, &node);
    }
    Ok(if guarded { applied(true) } else { unit() })
}

fn is_as_expected(change: &Change<'_>, node: &Name, command: &v1::Deregister) -> bool {
    change.state.nodes.get(node).is_some_and(|node| {
        (command.expect_node_id.is_empty() || command.expect_node_id.eq_ignore_ascii_case(&node.id))
            && (command.expect_modify_index == 0
                || command.expect_modify_index == node.modify_index)
    })
}

/// Removes a node with its services, checks and sessions.
pub(crate) fn remove_node(change: &mut Change<'_>, now: UnixMillis, node: &Name) {
    for service in change.service_ids(node) {
        remove_service(change, now, node, &service);
    }
    for check in change.check_ids(node) {
        remove_check(change, now, node, &check);
    }
    session::invalidate_by_node(change, now, node);
    change.drop_node(node);
}

/// Removes a service with its checks.
pub(crate) fn remove_service(change: &mut Change<'_>, now: UnixMillis, node: &Name, id: &Name) {
    for check in change.instance_check_ids(node, id) {
        remove_check(change, now, node, &check);
    }
    change.drop_service(node, id);
}

/// Removes a check and ends the sessions bound to it.
pub(crate) fn remove_check(change: &mut Change<'_>, now: UnixMillis, node: &Name, id: &Name) {
    if change.state.checks.contains_key(&PairRef(node, id)) {
        change.drop_check(node, id);
        session::invalidate_by_check(change, now, node, id);
    }
}
