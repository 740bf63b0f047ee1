//! Random commands against the catalog: a simple model, and the promises about indexes, topics,
//! determinism and snapshots. A failure prints its seed.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

mod commands;

use std::collections::BTreeMap;
use std::fmt::Debug;

use weft_catalog::config_entry::Kind;
use weft_catalog::{Catalog, State, Topics, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, outcome, stamped::Command};

use commands::{Dice, deregister, kv, register, session, stamped};

type Answers = Vec<(String, u64, String, Topics)>;

/// Every query there is, with its index, its rows as text and its topics.
fn every_answer(state: &State) -> Answers {
    let mut answers = Vec::new();
    macro_rules! ask {
        ($name:expr, $query:expr) => {{
            let trace = Trace::on();
            let (index, rows) = {
                let reader = state.read(&trace);
                let answer = $query(&reader);
                (answer.index.get(), shown(&answer.rows))
            };
            answers.push(($name.to_string(), index, rows, trace.into_topics()));
        }};
    }
    type R<'a, 'b> = &'a weft_catalog::Reader<'b>;
    ask!("nodes", |r: R<'_, '_>| r.nodes().map_rows());
    ask!("services", |r: R<'_, '_>| r.services().map_rows());
    ask!("services_on", |r: R<'_, '_>| r
        .services_on(|node| node.address == "10.0.0.1")
        .map_rows());
    ask!("all_instances", |r: R<'_, '_>| r.all_instances().map_rows());
    ask!("sessions", |r: R<'_, '_>| r.sessions().map_rows());
    for kind in [Kind::ServiceDefaults, Kind::Mesh] {
        ask!(format!("config {kind}"), |r: R<'_, '_>| r
            .config_entries(kind)
            .map_rows());
    }
    for name in ["web", "db", "nothing"] {
        ask!(format!("config {name}"), |r: R<'_, '_>| r
            .config_entry(Kind::ServiceDefaults, name)
            .map_rows());
    }
    ask!("autopilot", |r: R<'_, '_>| r.autopilot().map_rows());
    ask!("address/node", |r: R<'_, '_>| r
        .nodes_by_address([10, 0, 0, 1].into())
        .map_rows());
    ask!("address/service", |r: R<'_, '_>| r
        .services_by_address([10, 0, 0, 9].into())
        .map_rows());
    for id in ["id-1", "id-2", "id-3"] {
        ask!(format!("node_by_id {id}"), |r: R<'_, '_>| r
            .node_by_id(id)
            .map_rows());
    }
    for node in ["n1", "n2", "n3", "n4"] {
        ask!(format!("node {node}"), |r: R<'_, '_>| r
            .node(node)
            .map_rows());
        ask!(format!("node_services {node}"), |r: R<'_, '_>| r
            .node_services(node)
            .map_rows());
        ask!(format!("checks_of_node {node}"), |r: R<'_, '_>| r
            .checks_of_node(node)
            .map_rows());
        ask!(format!("sessions_of_node {node}"), |r: R<'_, '_>| r
            .sessions_of_node(node)
            .map_rows());
    }
    for name in ["web", "db", "nothing"] {
        ask!(format!("instances {name}"), |r: R<'_, '_>| r
            .service_instances(name)
            .map_rows());
        ask!(format!("health {name}"), |r: R<'_, '_>| r
            .health_service(name)
            .map_rows());
        ask!(format!("checks {name}"), |r: R<'_, '_>| r
            .checks_of_service(name)
            .map_rows());
        ask!(format!("connect {name}"), |r: R<'_, '_>| r
            .connect_instances(name)
            .map_rows());
        ask!(format!("ingress {name}"), |r: R<'_, '_>| r
            .ingress_instances(name)
            .map_rows());
        ask!(format!("gateway {name}"), |r: R<'_, '_>| r
            .gateway_services(name)
            .map_rows());
    }
    for status in ["any", "passing", "warning", "critical"] {
        ask!(format!("state {status}"), |r: R<'_, '_>| r
            .checks_in_state(status)
            .map_rows());
    }
    for id in ["id0", "id1", "id2", "id3"] {
        ask!(format!("session {id}"), |r: R<'_, '_>| r
            .session(id)
            .map_rows());
    }
    for key in ["a", "a/b", "a/b/c", "ab", "b", "b/x", "", "zz"] {
        let key = key.as_bytes();
        ask!(format!("kv_get {key:?}"), |r: R<'_, '_>| r
            .kv_get(key)
            .map_rows());
        ask!(format!("kv_list {key:?}"), |r: R<'_, '_>| r
            .kv_list(key)
            .map_rows());
        ask!(format!("kv_keys {key:?}"), |r: R<'_, '_>| r
            .kv_keys(key, b"/")
            .map_rows());
    }
    answers
}

trait MapRows {
    fn map_rows(self) -> weft_catalog::Answer<String>;
}

impl<T: Debug> MapRows for weft_catalog::Answer<T> {
    fn map_rows(self) -> weft_catalog::Answer<String> {
        weft_catalog::Answer {
            index: self.index,
            rows: format!("{:?}", self.rows),
        }
    }
}

/// Rows as users see them: a renewal shows in no answer.
fn shown(rows: &str) -> String {
    let mut text = String::new();
    for part in rows.split(", ") {
        if !part.starts_with("renewed_at_millis") && !part.starts_with("renewal_epoch") {
            text.push_str(part);
        } else if part.contains(']') || part.contains('}') {
            text.push('}');
        }
    }
    text
}

#[test]
fn a_changed_answer_has_a_higher_index_and_a_touched_topic() {
    let mut changes = 0;
    for seed in 1..=40_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut catalog = Catalog::new();
        let mut before = every_answer(catalog.state());
        for index in 1..=120 {
            let command = stamped(&mut dice, index);
            catalog.apply(LogIndex(index), &command).unwrap();
            let (state, touched) = catalog.publish();
            let after = every_answer(&state);
            for (was, is) in before.iter().zip(&after) {
                assert!(
                    is.1 >= was.1,
                    "seed {seed} at {index}: {} ran back {} to {}\n{command:?}",
                    is.0,
                    was.1,
                    is.1
                );
                if was.2 != is.2 {
                    changes += 1;
                    assert!(
                        is.1 > was.1,
                        "seed {seed} at {index}: {} changed under index {}\n{command:?}",
                        is.0,
                        is.1
                    );
                    let woken = was.3.iter().any(|topic| touched.touches(topic));
                    assert!(
                        woken,
                        "seed {seed} at {index}: {} changed, nobody woke\n{command:?}\n{touched:?}",
                        is.0
                    );
                }
            }
            before = after;
        }
    }
    assert!(
        changes > 1_000,
        "the commands must change something: {changes}"
    );
}

fn bytes_of(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::write(state, &mut bytes).unwrap();
    bytes
}

#[test]
fn the_same_log_gives_the_same_state_and_a_snapshot_gives_it_back() {
    for seed in 1..=40_u64 {
        let (mut one, mut two) = (Catalog::new(), Catalog::new());
        let mut dice = Dice(seed.wrapping_mul(0x0005_deec_e66d));
        for index in 1..=150 {
            let command = stamped(&mut dice, index);
            let outcome = one.apply(LogIndex(index), &command).unwrap();
            assert_eq!(two.apply(LogIndex(index), &command).unwrap(), outcome);
            if index % 50 == 0 {
                // One replica goes on from a snapshot of the other.
                let bytes = bytes_of(one.state());
                assert_eq!(bytes, bytes_of(two.state()), "seed {seed}");
                two = snapshot::read(&mut &bytes[..]).unwrap();
                assert_eq!(two.state().hash(), one.state().hash());
                assert_eq!(
                    every_answer(two.state()),
                    every_answer(one.state()),
                    "seed {seed}"
                );
                let deadlines =
                    |catalog: &Catalog| catalog.state().session_deadlines().collect::<Vec<_>>();
                assert_eq!(deadlines(&one), deadlines(&two));
            }
        }
    }
}

/// Keys and sessions as a map would have them.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, v1::KvEntry>,
    sessions: BTreeMap<String, v1::Session>,
    delays: BTreeMap<Vec<u8>, u64>,
}

impl Model {
    fn kv(&mut self, index: u64, now: u64, command: &v1::KvCommand) -> Option<bool> {
        let wanted = command.entry.clone().unwrap();
        let name = wanted.key.to_vec();
        let now_there = self.keys.get(&name).cloned();
        let modified = now_there.as_ref().map_or(0, |entry| entry.modify_index);
        let holder = now_there
            .as_ref()
            .map_or(String::new(), |entry| entry.session.clone());
        let (put, holder) = match command.verb {
            1 => (true, holder),
            2 => (modified == wanted.modify_index, holder),
            3 => {
                self.sessions.get(&wanted.session)?;
                let delayed = self.delays.get(&name).is_some_and(|until| now < *until);
                let free = holder.is_empty() && !delayed;
                (free || holder == wanted.session, wanted.session.clone())
            }
            4 => (
                now_there.is_some() && holder == wanted.session,
                String::new(),
            ),
            5 => {
                self.keys.remove(&name);
                return Some(true);
            }
            6 => {
                let gone = now_there.is_none() || modified == wanted.modify_index;
                if gone {
                    self.keys.remove(&name);
                }
                return Some(gone);
            }
            _ => {
                self.keys.retain(|key, _| !key.starts_with(&name));
                return Some(true);
            }
        };
        if !put {
            return Some(false);
        }
        if command.verb == 3 {
            self.delays.remove(&name);
        }
        let before = now_there.unwrap_or_default();
        let fresh = command.verb == 3 && before.session.is_empty();
        let lock_index = before.lock_index + u64::from(fresh);
        let create_index = if before.create_index == 0 {
            index
        } else {
            before.create_index
        };
        let mut entry = v1::KvEntry {
            session: holder,
            lock_index,
            create_index,
            ..wanted
        };
        entry.modify_index = before.modify_index;
        if entry != before {
            entry.modify_index = index;
        }
        self.keys.insert(name, entry);
        Some(true)
    }

    fn end(&mut self, index: u64, now: u64, id: &str) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        let held: Vec<_> = self
            .keys
            .iter()
            .filter(|(_, entry)| entry.session == id)
            .map(|(key, _)| key.clone())
            .collect();
        for key in held {
            if session.behavior == "delete" {
                self.keys.remove(&key);
            } else if let Some(entry) = self.keys.get_mut(&key) {
                entry.session.clear();
                entry.modify_index = index;
            }
            if session.lock_delay_millis > 0 {
                self.delays.insert(key, now + session.lock_delay_millis);
            }
        }
    }
}

#[test]
fn keys_and_sessions_do_what_a_map_would_do() {
    let (mut acquired, mut delayed) = (0, 0);
    for seed in 1..=60_u64 {
        let mut dice = Dice(seed.wrapping_mul(0xd1b5_4a32_d192_ed03));
        let (mut catalog, mut model) = (Catalog::new(), Model::default());
        let node = v1::Node {
            name: "n1".into(),
            address: "10.0.0.1".into(),
            ..v1::Node::default()
        };
        let first = v1::Register {
            node: Some(node),
            ..v1::Register::default()
        };
        apply(&mut catalog, 1, 0, Command::Register(first));
        for index in 2..=200_u64 {
            let now = index * 2;
            match dice.roll(8) {
                0 | 1 => {
                    let session = v1::Session {
                        node: "n1".into(),
                        node_checks: vec![],
                        ..session(&mut dice)
                    };
                    let made = apply(
                        &mut catalog,
                        index,
                        now,
                        Command::SessionCreate(v1::SessionCreate {
                            session: Some(session.clone()),
                        }),
                    );
                    let taken = model.sessions.contains_key(&session.id);
                    assert_eq!(
                        matches!(made, outcome::Result::Session(_)),
                        !taken,
                        "seed {seed} at {index}"
                    );
                    model.sessions.entry(session.id.clone()).or_insert(session);
                }
                2 => {
                    let id = format!("id{}", dice.roll(4));
                    apply(
                        &mut catalog,
                        index,
                        now,
                        Command::SessionDestroy(v1::SessionDestroy { id: id.clone() }),
                    );
                    model.end(index + 1, now, &id);
                }
                _ => {
                    let command = kv(&mut dice);
                    let expected = model.kv(index + 1, now, &command);
                    let answer = apply(&mut catalog, index, now, Command::Kv(command.clone()));
                    let verdict = match answer {
                        outcome::Result::Applied(verdict) => Some(verdict),
                        _ => None,
                    };
                    assert_eq!(verdict, expected, "seed {seed} at {index}: {command:?}");
                    acquired += u64::from(command.verb == 3 && verdict == Some(true));
                    delayed += u64::from(command.verb == 3 && verdict == Some(false));
                }
            }
            let rows: Vec<v1::KvEntry> = catalog
                .state()
                .read(&Trace::off())
                .kv_list(b"")
                .rows
                .into_iter()
                .map(|row| (**row).clone())
                .collect();
            assert_eq!(
                rows,
                model.keys.values().cloned().collect::<Vec<_>>(),
                "seed {seed} at {index}"
            );
        }
    }
    assert!(
        acquired > 100 && delayed > 20,
        "locks must be taken and refused: {acquired} {delayed}"
    );
}

fn apply(catalog: &mut Catalog, index: u64, at_millis: u64, command: Command) -> outcome::Result {
    let stamped = v1::Stamped {
        at_millis,
        command: Some(command),
        ..v1::Stamped::default()
    };
    catalog
        .apply(LogIndex(index), &stamped)
        .unwrap()
        .result
        .unwrap()
}

#[test]
fn nodes_services_and_checks_do_what_a_map_would_do() {
    for seed in 1..=60_u64 {
        let mut dice = Dice(seed.wrapping_mul(0xa076_1d64_78bd_642f));
        let mut catalog = Catalog::new();
        let mut services: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut checks: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
        let mut nodes: BTreeMap<String, String> = BTreeMap::new();
        for index in 1..=150 {
            if dice.roll(3) == 0 {
                let command = v1::Deregister {
                    expect_modify_index: 0,
                    ..deregister(&mut dice)
                };
                let name = command.node.to_ascii_lowercase();
                let at = |id: &str| (name.clone(), id.to_owned());
                if !command.service_id.is_empty() {
                    services.remove(&at(&command.service_id));
                    checks.retain(|key, check| key.0 != name || check.0 != command.service_id);
                } else if !command.check_id.is_empty() {
                    checks.remove(&at(&command.check_id));
                } else {
                    nodes.remove(&name);
                    services.retain(|key, _| key.0 != name);
                    checks.retain(|key, _| key.0 != name);
                }
                apply(&mut catalog, index, 0, Command::Deregister(command));
            } else {
                let mut command = register(&mut dice);
                let node = command.node.as_mut().unwrap();
                node.id.clear();
                let name = node.name.to_ascii_lowercase();
                let at = |id: &str| (name.clone(), id.to_owned());
                let comes = |id: &str| {
                    command
                        .service
                        .as_ref()
                        .is_some_and(|service| service.id == id)
                };
                let whole = command.checks.iter().all(|check| {
                    let id = &check.service_id;
                    id.is_empty() || comes(id) || services.contains_key(&at(id))
                });
                let answer = apply(&mut catalog, index, 0, Command::Register(command.clone()));
                assert_eq!(
                    matches!(answer, outcome::Result::Unit(_)),
                    whole,
                    "seed {seed} at {index}: {answer:?}"
                );
                if whole {
                    if !(command.skip_node_update && nodes.contains_key(&name)) {
                        nodes.insert(name.clone(), command.node.clone().unwrap().address);
                    }
                    if let Some(service) = &command.service {
                        services.insert(at(&service.id), service.name.clone());
                    }
                    for check in &command.checks {
                        checks.insert(
                            at(&check.id.to_ascii_lowercase()),
                            (check.service_id.clone(), check.status.clone()),
                        );
                    }
                }
            }
            same(catalog.state(), &nodes, &services, &checks);
        }
    }
}

fn same(
    state: &State,
    nodes: &BTreeMap<String, String>,
    services: &BTreeMap<(String, String), String>,
    checks: &BTreeMap<(String, String), (String, String)>,
) {
    let trace = Trace::off();
    let reader = state.read(&trace);
    let fold = str::to_ascii_lowercase;
    let found: BTreeMap<_, _> = reader
        .nodes()
        .rows
        .iter()
        .map(|row| (fold(&row.name), row.address.clone()))
        .collect();
    assert_eq!(found, *nodes);
    let found: BTreeMap<_, _> = reader
        .all_instances()
        .rows
        .iter()
        .map(|row| {
            (
                (fold(&row.node.name), row.service.id.clone()),
                row.service.name.clone(),
            )
        })
        .collect();
    assert_eq!(found, *services);
    let found: BTreeMap<_, _> = reader
        .checks_in_state("any")
        .rows
        .iter()
        .map(|row| {
            (
                (fold(&row.node), fold(&row.id)),
                (row.service_id.clone(), row.status.clone()),
            )
        })
        .collect();
    assert_eq!(found, *checks);
    for name in ["web", "db"] {
        for row in reader.health_service(name).rows {
            let node = fold(&row.node.name);
            let expected = checks
                .iter()
                .filter(|(key, check)| {
                    key.0 == node && (check.0.is_empty() || check.0 == row.service.id)
                })
                .count();
            assert_eq!(row.checks.len(), expected);
            assert_eq!(nodes[&node], row.node.address);
        }
    }
}
