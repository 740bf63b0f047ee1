//! Membership into the catalog: nodes, the `serfHealth` check and the `consul` service.
//!
//! Owns: the comparison of the pool with the catalog, as a pure function that yields commands.
//! Never: deregisters a node because gossip has not heard of it yet, or one that came back since.
//! Source: Consul docs, "Consul Architecture", gossip and catalog; CONSUL.md B.6 "Node health".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weft_catalog::{State, Trace};
use weft_gossip::{Member, MemberStatus};
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::formation::tags;
use crate::handle::Server;

/// Everything is compared again after this time even when nothing seemed to happen.
const FULL_EVERY: Duration = Duration::from_secs(60);
/// A node that the pool has not shown for this long after the leader took over is critical.
const UNSEEN_AFTER: Duration = Duration::from_secs(30);

const SERF_CHECK_ID: &str = "serfHealth";
const SERF_CHECK_NAME: &str = "Serf Health Status";
const ALIVE_OUTPUT: &str = "Agent alive and reachable";
const FAILED_OUTPUT: &str = "Agent not live or unreachable";
const SERVER_SERVICE: &str = "consul";

pub(super) async fn run(server: &Server) {
    let inner = &server.inner;
    let began = inner.clock.monotonic();
    let gossip = loop {
        match inner.gossip.load_full() {
            Some(gossip) => break gossip,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut events = gossip.events();
    loop {
        let unseen_is_dead = inner.clock.monotonic().saturating_sub(began) >= UNSEEN_AFTER;
        let commands = commands(
            &gossip.members(),
            &server.state(),
            &inner.config.datacenter,
            unseen_is_dead,
        );
        let mut failed = false;
        for command in commands {
            failed |= super::propose(server, "reconcile", command).await.is_none();
        }
        let pause = if failed {
            Duration::from_secs(1)
        } else {
            until_next(inner.clock.monotonic(), began)
        };
        tokio::select! {
            event = events.next() => if event.is_none() { tokio::time::sleep(pause).await },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Until the next full comparison; one falls right after `UNSEEN_AFTER`.
fn until_next(now: Duration, began: Duration) -> Duration {
    let led_for = now.saturating_sub(began);
    if led_for < UNSEEN_AFTER {
        UNSEEN_AFTER - led_for + Duration::from_millis(10)
    } else {
        FULL_EVERY
    }
}

/// What must be written so that the catalog agrees with the pool.
pub(super) fn commands(
    members: &[Arc<Member>],
    state: &State,
    datacenter: &str,
    unseen_is_dead: bool,
) -> Vec<Command> {
    let mut commands = Vec::new();
    for member in members.iter().filter(|m| {
        m.tags
            .get(tags::DATACENTER)
            .is_none_or(|dc| dc == datacenter)
    }) {
        if member.status == MemberStatus::Alive {
            commands.extend(taken_over(member, state));
        }
        let command = match member.status {
            MemberStatus::Alive => alive(member, state, datacenter),
            MemberStatus::Failed => failed(&member.name, state),
            MemberStatus::Left => left(member, state),
            MemberStatus::Leaving => None,
        };
        commands.extend(command);
    }
    if unseen_is_dead {
        commands.extend(unseen(members, state));
    }
    commands
}

/// The pool shows a name under another node id than the catalog: the machine was replaced, and what the
/// old one had registered went with it.
fn taken_over(member: &Member, state: &State) -> Option<Command> {
    let trace = Trace::off();
    let node = state.read(&trace).node(&member.name).rows?;
    let replaced = !node.id.is_empty() && !node.id.eq_ignore_ascii_case(&member.id);
    replaced.then(|| {
        tracing::warn!(node.name = %node.name, node.old_id = %node.id, node.new_id = %member.id, node.old_addr = %node.address, node.new_addr = %member.address, "node was replaced by another machine of its name");
        remove(node)
    })
}

fn remove(node: &v1::Node) -> Command {
    Command::Deregister(v1::Deregister {
        node: node.name.clone(),
        expect_node_id: node.id.clone(),
        expect_modify_index: node.modify_index,
        ..v1::Deregister::default()
    })
}

fn alive(member: &Member, state: &State, datacenter: &str) -> Option<Command> {
    let trace = Trace::off();
    let read = state.read(&trace);
    let known = read
        .node(&member.name)
        .rows
        .filter(|node| node.id.is_empty() || node.id.eq_ignore_ascii_case(&member.id));
    let wanted = v1::Node {
        id: member.id.clone(),
        name: member.name.clone(),
        address: member.address.to_string(),
        datacenter: datacenter.to_owned(),
        // Tagged addresses and metadata are the agent's to say; keep what it said for this address.
        tagged_addresses: known.map_or_else(BTreeMap::new, |n| n.tagged_addresses.clone()),
        meta: known.map_or_else(BTreeMap::new, |n| n.meta.clone()),
        ..v1::Node::default()
    };
    let node_agrees = known
        .is_some_and(|n| n.id == wanted.id && n.address == wanted.address && n.name == wanted.name);
    let service = server_service(member);
    let service_agrees = service.as_ref().is_none_or(|wanted| {
        read.node_services(&member.name)
            .rows
            .iter()
            .any(|s| s.id == wanted.id && s.port == wanted.port && s.meta == wanted.meta)
    });
    if node_agrees
        && service_agrees
        && serf_status(state, &member.name).as_deref() == Some("passing")
    {
        return None;
    }
    // Its agent may register the node between this reading and the write: unless the node must change, what the
    // agent said then stays.
    let keep_node = known.is_none() || node_agrees;
    Some(register(
        wanted,
        service,
        serf_check(&member.name, "passing", ALIVE_OUTPUT),
        keep_node,
    ))
}

fn failed(name: &str, state: &State) -> Option<Command> {
    let trace = Trace::off();
    let node = state.read(&trace).node(name).rows?;
    if serf_status(state, name).as_deref() == Some("critical") {
        return None;
    }
    Some(register(
        (**node).clone(),
        None,
        serf_check(name, "critical", FAILED_OUTPUT),
        true,
    ))
}

fn left(member: &Member, state: &State) -> Option<Command> {
    let trace = Trace::off();
    let node = state.read(&trace).node(&member.name).rows?;
    // Another machine may have taken the name since: its node id differs and nothing is removed.
    (node.id == member.id).then(|| remove(node))
}

/// Nodes with a gossip check that nobody in the pool has heard of.
fn unseen(members: &[Arc<Member>], state: &State) -> Vec<Command> {
    let trace = Trace::off();
    let nodes = state.read(&trace).nodes().rows;
    let known = |name: &str| members.iter().any(|m| m.name.eq_ignore_ascii_case(name));
    nodes
        .into_iter()
        .filter(|node| {
            !known(&node.name)
                && serf_status(state, &node.name).is_some_and(|status| status != "critical")
        })
        .map(|node| {
            register(
                (**node).clone(),
                None,
                serf_check(&node.name, "critical", FAILED_OUTPUT),
                true,
            )
        })
        .collect()
}

fn serf_status(state: &State, node: &str) -> Option<String> {
    let trace = Trace::off();
    let checks = state.read(&trace).checks_of_node(node).rows;
    checks
        .iter()
        .find(|check| check.id == SERF_CHECK_ID)
        .map(|check| check.status.clone())
}

fn server_service(member: &Member) -> Option<v1::Service> {
    if member.tags.get(tags::ROLE).map(String::as_str) != Some(tags::SERVER_ROLE) {
        return None;
    }
    Some(v1::Service {
        id: SERVER_SERVICE.into(),
        name: SERVER_SERVICE.into(),
        port: member.tags.get(tags::RPC_PORT)?.parse().ok()?,
        weights: Some(v1::Weights {
            passing: 1,
            warning: 1,
        }),
        ..v1::Service::default()
    })
}

fn serf_check(node: &str, status: &str, output: &str) -> v1::Check {
    v1::Check {
        node: node.into(),
        id: SERF_CHECK_ID.into(),
        name: SERF_CHECK_NAME.into(),
        status: status.into(),
        output: output.into(),
        ..v1::Check::default()
    }
}

/// `keep_node`: a node that exists when this is applied stays as it is.
fn register(
    node: v1::Node,
    service: Option<v1::Service>,
    check: v1::Check,
    keep_node: bool,
) -> Command {
    Command::Register(v1::Register {
        node: Some(node),
        service,
        checks: vec![check],
        skip_node_update: keep_node,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use weft_catalog::Catalog;
    use weft_proto::ids::LogIndex;

    use super::*;

    fn member(name: &str, ip: &str, status: MemberStatus) -> Arc<Member> {
        let tags = [
            ("role", "consul"),
            ("dc", "dc1"),
            ("port", "8300"),
            ("id", name),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
        Arc::new(Member {
            name: name.into(),
            id: name.into(),
            address: ip.parse::<IpAddr>().unwrap(),
            port: 8301,
            tags: tags.into(),
            status,
            incarnation: 1,
        })
    }

    /// Applies what reconciliation asks for until it asks for nothing; answers how many commands that took.
    fn settle(
        catalog: &mut Catalog,
        log_index: &mut u64,
        members: &[Arc<Member>],
        unseen: bool,
    ) -> usize {
        let mut total = 0;
        for _ in 0..3 {
            let todo = commands(members, catalog.state(), "dc1", unseen);
            if todo.is_empty() {
                return total;
            }
            total += todo.len();
            for command in todo {
                *log_index += 1;
                let stamped = v1::Stamped {
                    at_millis: *log_index,
                    command: Some(command),
                    ..v1::Stamped::default()
                };
                catalog.apply(LogIndex(*log_index), &stamped).unwrap();
            }
        }
        panic!("reconciliation does not settle");
    }

    fn serf(catalog: &Catalog, node: &str) -> Option<String> {
        serf_status(catalog.state(), node)
    }

    #[test]
    fn a_member_becomes_a_node_fails_returns_and_leaves() {
        let (mut catalog, mut at) = (Catalog::new(), 0);
        let alive = [member("s1", "127.0.0.1", MemberStatus::Alive)];
        assert_eq!(settle(&mut catalog, &mut at, &alive, false), 1);
        assert_eq!(serf(&catalog, "s1").as_deref(), Some("passing"));
        assert_eq!(
            settle(&mut catalog, &mut at, &alive, false),
            0,
            "nothing to do twice"
        );

        settle(
            &mut catalog,
            &mut at,
            &[member("s1", "127.0.0.1", MemberStatus::Failed)],
            false,
        );
        assert_eq!(serf(&catalog, "s1").as_deref(), Some("critical"));

        settle(
            &mut catalog,
            &mut at,
            &[member("s1", "127.0.0.9", MemberStatus::Alive)],
            false,
        );
        assert_eq!(serf(&catalog, "s1").as_deref(), Some("passing"));
        let trace = Trace::off();
        assert_eq!(
            catalog
                .state()
                .read(&trace)
                .node("s1")
                .rows
                .unwrap()
                .address,
            "127.0.0.9"
        );

        settle(
            &mut catalog,
            &mut at,
            &[member("s1", "127.0.0.9", MemberStatus::Left)],
            false,
        );
        assert!(catalog.state().read(&trace).node("s1").rows.is_none());
    }

    #[test]
    fn what_the_agent_registered_in_between_stays() {
        let (mut catalog, members) = (
            Catalog::new(),
            [member("s1", "127.0.0.1", MemberStatus::Alive)],
        );
        let late = commands(&members, catalog.state(), "dc1", false);
        let mut node = v1::Node {
            id: members[0].tags["id"].clone(),
            name: "s1".into(),
            address: "127.0.0.1".into(),
            ..v1::Node::default()
        };
        node.meta.insert("rack".into(), "r2".into());
        let own = Command::Register(v1::Register {
            node: Some(node),
            ..v1::Register::default()
        });
        for (at, command) in (1..).zip(std::iter::once(own).chain(late)) {
            let stamped = v1::Stamped {
                at_millis: at,
                command: Some(command),
                ..v1::Stamped::default()
            };
            catalog.apply(LogIndex(at), &stamped).unwrap();
        }
        let trace = Trace::off();
        let node = catalog.state().read(&trace).node("s1").rows.cloned();
        assert_eq!(
            node.unwrap().meta.get("rack").map(String::as_str),
            Some("r2")
        );
        assert_eq!(serf(&catalog, "s1").as_deref(), Some("passing"));
    }

    #[test]
    fn a_node_the_pool_never_showed_turns_critical_but_is_not_removed() {
        let (mut catalog, mut at) = (Catalog::new(), 0);
        settle(
            &mut catalog,
            &mut at,
            &[
                member("s1", "127.0.0.1", MemberStatus::Alive),
                member("s2", "127.0.0.2", MemberStatus::Alive),
            ],
            false,
        );
        let only = [member("s1", "127.0.0.1", MemberStatus::Alive)];
        assert_eq!(settle(&mut catalog, &mut at, &only, false), 0);
        settle(&mut catalog, &mut at, &only, true);
        assert_eq!(serf(&catalog, "s2").as_deref(), Some("critical"));
    }

    #[test]
    fn a_name_taken_over_by_another_machine_is_not_removed_by_the_old_one_leaving() {
        let (mut catalog, mut at) = (Catalog::new(), 0);
        settle(
            &mut catalog,
            &mut at,
            &[member("s1", "127.0.0.1", MemberStatus::Alive)],
            false,
        );
        let mut old = (*member("s1", "127.0.0.1", MemberStatus::Left)).clone();
        old.id = "somebody-else".into();
        assert_eq!(settle(&mut catalog, &mut at, &[Arc::new(old)], false), 0);
    }

    #[test]
    fn a_machine_that_lost_its_data_takes_its_name_back_at_once() {
        let (mut catalog, mut at) = (Catalog::new(), 0);
        let old = member("s1", "127.0.0.1", MemberStatus::Alive);
        settle(&mut catalog, &mut at, std::slice::from_ref(&old), false);
        let mut new = (*old).clone();
        new.id = "a-new-id".into();
        assert_eq!(settle(&mut catalog, &mut at, &[Arc::new(new)], false), 2);
        let trace = Trace::off();
        assert_eq!(
            catalog.state().read(&trace).node("s1").rows.unwrap().id,
            "a-new-id"
        );
    }
}
