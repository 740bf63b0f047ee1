//! `Register`: nodes, services and checks come or change.
//!
//! Owns: Consul's rules for identities, defaults and what counts as a change.
//! Never: bumps an index for identical content.
//! Source: Consul HTTP API, "Register Entity"; CONSUL.md B.7 "Node identity".

use std::sync::Arc;

use weft_proto::ids::UnixMillis;
use weft_proto::v1;

use crate::apply::{deregister, session};
use crate::keys::{self, Name, PairRef};
use crate::refusal::{Verdict, internal, invalid, unit};
use crate::rows::Change;

/// Gossip's own check: while it is not critical, its node holds its name.
pub(crate) const SERF_HEALTH: &str = "serfhealth";

pub(crate) fn register(change: &mut Change<'_>, command: &v1::Register) -> Verdict {
    let now = UnixMillis(change.state.scalars.cluster_time);
    let Some(wanted) = &command.node else {
        return Err(invalid(
            "catalog.node.missing",
            "Must provide node and address",
        ));
    };
    // All refusals come before the first change, so that a refused command changes nothing.
    let known = change
        .state
        .nodes
        .get(keys::fold(&wanted.name).as_ref())
        .cloned();
    check_command(change, command, wanted, known.as_deref())?;
    if known.is_none() || !command.skip_node_update {
        put_node(change, now, wanted)?;
    }
    let node = keys::name(&wanted.name);
    if let Some(service) = &command.service {
        put_service(change, &node, service)?;
    }
    for check in &command.checks {
        put_check(change, now, &node, check)?;
    }
    Ok(unit())
}

fn check_command(
    change: &Change<'_>,
    command: &v1::Register,
    wanted: &v1::Node,
    known: Option<&v1::Node>,
) -> Result<(), v1::Refusal> {
    let needs_address = known.is_none() || !command.skip_node_update;
    if wanted.name.is_empty() || (needs_address && wanted.address.is_empty()) {
        return Err(invalid(
            "catalog.node.missing",
            "Must provide node and address",
        ));
    }
    if needs_address {
        name_is_free(change, wanted)?;
    }
    let node = keys::fold(&wanted.name);
    let service = command.service.as_ref();
    if service.is_some_and(|service| service.name.is_empty()) {
        return Err(invalid(
            "catalog.service.unnamed",
            "Must provide service name with ID",
        ));
    }
    for check in &command.checks {
        check_is_complete(check)?;
        if check.service_id.is_empty() {
            continue;
        }
        let id = keys::fold(&check.service_id);
        let comes = service.is_some_and(|service| keys::fold(service_id(service)) == id);
        if !comes && !change.state.services.contains_key(&PairRef(&node, &id)) {
            return Err(missing_service());
        }
    }
    Ok(())
}

fn check_is_complete(check: &v1::Check) -> Result<(), v1::Refusal> {
    if check_id(check).is_empty() {
        return Err(invalid(
            "catalog.check.unnamed",
            "Must provide check ID or name",
        ));
    }
    match check.status.as_str() {
        "" | "passing" | "warning" | "critical" => Ok(()),
        other => Err(invalid(
            "catalog.check.status",
            format!("Invalid check status: {other:?}, must be one of passing, warning, critical"),
        )),
    }
}

pub(crate) fn missing_node() -> v1::Refusal {
    internal("catalog.node.unknown", "Missing node registration")
}

fn missing_service() -> v1::Refusal {
    internal("catalog.service.unknown", "Missing service registration")
}

/// A name is taken over only from a node that is not alive (DESIGN §4, "Membership"). A holder
/// without `serfHealth` is not gossip's to protect: it was registered from outside.
fn name_is_free(change: &Change<'_>, wanted: &v1::Node) -> Result<(), v1::Refusal> {
    if wanted.id.is_empty() {
        return Ok(());
    }
    let name = keys::name(&wanted.name);
    let Some(holder) = change.state.nodes.get(&name) else {
        return Ok(());
    };
    if holder.id.eq_ignore_ascii_case(&wanted.id) {
        return Ok(());
    }
    let renames = change
        .state
        .node_ids
        .contains_key(keys::fold(&wanted.id).as_ref());
    if holder.id.is_empty() && !renames {
        return Ok(());
    }
    let health = change.state.checks.get(&PairRef(&name, SERF_HEALTH));
    if health.is_some_and(|check| check.status != "critical") {
        return Err(internal(
            "catalog.node.reserved",
            format!(
                "Node name {} is reserved by node {} with name {} ({}); the registration came from {} with ID {}",
                wanted.name, holder.id, holder.name, holder.address, wanted.address, wanted.id
            ),
        ));
    }
    Ok(())
}

/// Adds or updates a node. An id that is known under another name renames it: what was
/// registered under the old name goes, as in Consul.
pub(crate) fn put_node(
    change: &mut Change<'_>,
    now: UnixMillis,
    wanted: &v1::Node,
) -> Result<(), v1::Refusal> {
    if wanted.name.is_empty() || wanted.address.is_empty() {
        return Err(invalid(
            "catalog.node.missing",
            "Must provide node and address",
        ));
    }
    name_is_free(change, wanted)?;
    let key = keys::name(&wanted.name);
    let mut node = wanted.clone();
    let mut created = change.index;
    if let Some(old) = old_name(change, wanted).filter(|old| *old != key) {
        created = change
            .state
            .nodes
            .get(&old)
            .map_or(created, |before| before.create_index);
        deregister::remove_node(change, now, &old);
    }
    if let Some(before) = change.state.nodes.get(&key) {
        created = before.create_index;
        if node.id.is_empty() {
            node.id.clone_from(&before.id);
        }
        (node.create_index, node.modify_index) = (before.create_index, before.modify_index);
        if node == **before {
            return Ok(());
        }
    }
    (node.create_index, node.modify_index) = (created, change.index);
    change.put_node(node);
    Ok(())
}

fn old_name(change: &Change<'_>, wanted: &v1::Node) -> Option<Name> {
    if wanted.id.is_empty() {
        return None;
    }
    change
        .state
        .node_ids
        .get(keys::fold(&wanted.id).as_ref())
        .cloned()
}

fn service_id(service: &v1::Service) -> &str {
    if service.id.is_empty() {
        &service.name
    } else {
        &service.id
    }
}

fn check_id(check: &v1::Check) -> &str {
    if check.id.is_empty() {
        &check.name
    } else {
        &check.id
    }
}

/// Adds or updates an instance, and what its checks repeat of it.
pub(crate) fn put_service(
    change: &mut Change<'_>,
    node: &Name,
    wanted: &v1::Service,
) -> Result<(), v1::Refusal> {
    if !change.state.nodes.contains_key(node) {
        return Err(missing_node());
    }
    if wanted.name.is_empty() {
        return Err(invalid(
            "catalog.service.unnamed",
            "Must provide service name with ID",
        ));
    }
    let mut service = wanted.clone();
    service.id = service_id(wanted).to_owned();
    service.weights.get_or_insert(v1::Weights {
        passing: 1,
        warning: 1,
    });
    let id = keys::name(&service.id);
    service.create_index = change.index;
    if let Some(before) = change.state.services.get(&PairRef(node, &id)) {
        (service.create_index, service.modify_index) = (before.create_index, before.modify_index);
        if service == **before {
            return Ok(());
        }
    }
    service.modify_index = change.index;
    let (name, tags) = (service.name.clone(), service.tags.clone());
    change.put_service(node, service);
    for check in change.instance_check_ids(node, &id) {
        let Some(before) = change.state.checks.get(&PairRef(node, &check)) else {
            continue;
        };
        if before.service_name != name || before.service_tags != tags {
            let mut check = v1::Check::clone(before);
            (check.service_name, check.service_tags) = (name.clone(), tags.clone());
            check.modify_index = change.index;
            change.put_check(node, check);
        }
    }
    Ok(())
}

/// Adds or updates a check; sessions bound to it end when it is critical.
pub(crate) fn put_check(
    change: &mut Change<'_>,
    now: UnixMillis,
    node: &Name,
    wanted: &v1::Check,
) -> Result<(), v1::Refusal> {
    check_is_complete(wanted)?;
    let machine = change
        .state
        .nodes
        .get(node)
        .cloned()
        .ok_or_else(missing_node)?;
    let mut check = complete(change, &machine, node, wanted)?;
    let id = keys::name(&check.id);
    check.create_index = change.index;
    if let Some(before) = change.state.checks.get(&PairRef(node, &id)) {
        (check.create_index, check.modify_index) = (before.create_index, before.modify_index);
        if check == **before {
            return Ok(());
        }
    }
    check.modify_index = change.index;
    let critical = check.status == "critical";
    change.put_check(node, check);
    if critical {
        session::invalidate_by_check(change, now, node, &id);
    }
    Ok(())
}

fn complete(
    change: &Change<'_>,
    machine: &Arc<v1::Node>,
    node: &Name,
    wanted: &v1::Check,
) -> Result<v1::Check, v1::Refusal> {
    let mut check = wanted.clone();
    check.node.clone_from(&machine.name);
    check.id = check_id(wanted).to_owned();
    if check.status.is_empty() {
        "critical".clone_into(&mut check.status);
    }
    (check.service_name, check.service_tags) = (String::new(), Vec::new());
    if !check.service_id.is_empty() {
        let id = keys::fold(&check.service_id);
        let service = change
            .state
            .services
            .get(&PairRef(node, &id))
            .ok_or_else(missing_service)?;
        (check.service_name, check.service_tags) = (service.name.clone(), service.tags.clone());
    }
    Ok(check)
}
