//! Random commands, the same for the same seed.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by tests, outside #[test] functions"
)]

use weft_catalog::config_entry::Entry;
use weft_proto::v1::{self, stamped::Command, txn_op::Op};

/// A small seeded generator: the same seed gives the same commands everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }
}

pub const KEYS: [&str; 7] = ["a", "a/b", "a/b/c", "ab", "b", "b/x", ""];
pub const NODES: [&str; 4] = ["n1", "N2", "n2", "n3"];
pub const SERVICES: [&str; 3] = ["web", "Web", "db"];
pub const IDS: [&str; 3] = ["s1", "s2", "s3"];
pub const CHECKS: [&str; 3] = ["serfHealth", "c1", "c2"];
pub const STATES: [&str; 3] = ["passing", "warning", "critical"];

pub fn key(dice: &mut Dice) -> v1::KvEntry {
    let value = dice.pick(&["", "x", "y"]).as_bytes();
    v1::KvEntry {
        key: dice.pick(&KEYS).as_bytes().to_vec().into(),
        value: value.to_vec().into(),
        flags: dice.roll(2),
        session: format!("id{}", dice.roll(4)),
        modify_index: dice.roll(60),
        ..v1::KvEntry::default()
    }
}

pub fn kv(dice: &mut Dice) -> v1::KvCommand {
    let verb = 1 + i32::try_from(dice.roll(7)).unwrap();
    v1::KvCommand {
        verb,
        entry: Some(key(dice)),
    }
}

pub fn node(dice: &mut Dice) -> v1::Node {
    v1::Node {
        id: dice.pick(&["", "", "id-1", "id-2"]).into(),
        name: dice.pick(&NODES).into(),
        address: dice.pick(&["10.0.0.1", "10.0.0.2"]).into(),
        ..v1::Node::default()
    }
}

pub fn service(dice: &mut Dice) -> v1::Service {
    v1::Service {
        id: dice.pick(&IDS).into(),
        name: dice.pick(&SERVICES).into(),
        tags: vec![dice.pick(&["t1", "t2"]).into()],
        address: dice.pick(&["", "10.0.0.9"]).into(),
        modify_index: dice.roll(60),
        kind: dice
            .pick(&["", "", "connect-proxy", "terminating-gateway"])
            .into(),
        proxy_json: dice
            .pick(&[
                r#"{"DestinationServiceName":"web"}"#,
                r#"{"DestinationServiceName":"DB"}"#,
                "",
            ])
            .into(),
        connect_json: dice.pick(&["", r#"{"Native":true}"#]).into(),
        ..v1::Service::default()
    }
}

pub fn check(dice: &mut Dice) -> v1::Check {
    v1::Check {
        node: dice.pick(&NODES).into(),
        id: dice.pick(&CHECKS).into(),
        status: dice.pick(&STATES).into(),
        service_id: dice.pick(&["", "s1", "s2"]).into(),
        modify_index: dice.roll(60),
        ..v1::Check::default()
    }
}

pub fn register(dice: &mut Dice) -> v1::Register {
    let node = node(dice);
    let service = (dice.roll(2) == 0).then(|| service(dice));
    let checks = (0..dice.roll(3)).map(|_| check(dice)).collect();
    v1::Register {
        node: Some(node),
        service,
        checks,
        skip_node_update: dice.roll(4) == 0,
    }
}

pub fn deregister(dice: &mut Dice) -> v1::Deregister {
    v1::Deregister {
        node: dice.pick(&NODES).into(),
        service_id: dice.pick(&["", "s1", "s2", "s3"]).into(),
        check_id: dice.pick(&["", "c1", "c2"]).into(),
        expect_modify_index: dice.roll(4) / 3 * dice.roll(60),
        ..v1::Deregister::default()
    }
}

pub fn session(dice: &mut Dice) -> v1::Session {
    v1::Session {
        id: format!("id{}", dice.roll(4)),
        node: dice.pick(&NODES).into(),
        behavior: dice.pick(&["", "release", "delete"]).into(),
        lock_delay_millis: dice.roll(2) * 5,
        ttl_millis: dice.roll(2) * 10,
        node_checks: (dice.roll(2) == 0)
            .then(|| "c1".to_owned())
            .into_iter()
            .collect(),
        ..v1::Session::default()
    }
}

pub fn txn(dice: &mut Dice) -> v1::Txn {
    let ops = (0..1 + dice.roll(3)).map(|_| {
        let verb = 1 + i32::try_from(dice.roll(5)).unwrap();
        let op = match dice.roll(5) {
            0 => Op::Node(v1::NodeOp {
                verb,
                node: Some(node(dice)),
            }),
            1 => Op::Service(v1::ServiceOp {
                verb,
                node: dice.pick(&NODES).into(),
                service: Some(service(dice)),
            }),
            2 => Op::Check(v1::CheckOp {
                verb,
                check: Some(check(dice)),
            }),
            _ => Op::Kv(v1::KvCommand {
                verb: 1 + i32::try_from(dice.roll(13)).unwrap(),
                entry: Some(key(dice)),
            }),
        };
        v1::TxnOp { op: Some(op) }
    });
    v1::Txn { ops: ops.collect() }
}

pub fn config_entry(dice: &mut Dice, index: u64) -> v1::ConfigEntryCommand {
    let name = dice.pick(&["web", "db"]);
    let text = match dice.roll(3) {
        0 => format!(
            r#"{{"Kind":"terminating-gateway","Name":"{name}","Services":[{{"Name":"{}"}}]}}"#,
            dice.pick(&["web", "db", "*"])
        ),
        1 => format!(
            r#"{{"Kind":"ingress-gateway","Name":"{name}","Listeners":[{{"Port":80,"Services":[{{"Name":"{}"}}]}}]}}"#,
            dice.pick(&["web", "db", "nothing"])
        ),
        _ => format!(
            r#"{{"Kind":"service-defaults","Name":"{name}","Protocol":"{}"}}"#,
            dice.pick(&["http", "tcp"])
        ),
    };
    let entry = Entry::parse(&serde_json::from_str(&text).unwrap()).unwrap();
    v1::ConfigEntryCommand {
        verb: 1 + i32::try_from(dice.roll(4)).unwrap(),
        entry: Some(v1::ConfigEntry {
            modify_index: dice.roll(index),
            ..entry.row()
        }),
    }
}

pub fn prepared_query(dice: &mut Dice) -> v1::PreparedQueryCommand {
    let template = (dice.roll(2) == 0).then(|| v1::QueryTemplate {
        r#type: "name_prefix_match".into(),
        ..v1::QueryTemplate::default()
    });
    v1::PreparedQueryCommand {
        verb: 1 + i32::try_from(dice.roll(3)).unwrap(),
        query: Some(v1::PreparedQuery {
            id: format!("q{}", dice.roll(4)),
            name: dice.pick(&["", "a", "A", "ab", "q1"]).into(),
            session: dice.pick(&["", "id0", "id1"]).into(),
            service: "web".into(),
            template,
            ..v1::PreparedQuery::default()
        }),
        judged_name: (dice.roll(3) == 0).then(|| dice.pick(&["", "a", "A"]).into()),
    }
}

pub fn coordinates(dice: &mut Dice) -> v1::CoordinateBatch {
    let rows = (0..dice.roll(3)).map(|_| v1::Coordinate {
        node: dice.pick(&["n1", "N1", "n2", "nobody"]).into(),
        number_bits: vec![dice.roll(3)],
    });
    v1::CoordinateBatch {
        coordinates: rows.collect(),
    }
}

pub fn command(dice: &mut Dice, index: u64) -> Command {
    let id = format!("id{}", dice.roll(4));
    match dice.roll(20) {
        0..=4 => Command::Kv(kv(dice)),
        5..=9 => Command::Register(register(dice)),
        10..=11 => Command::Deregister(deregister(dice)),
        12..=13 => Command::SessionCreate(v1::SessionCreate {
            session: Some(session(dice)),
        }),
        14 => Command::SessionDestroy(v1::SessionDestroy { id }),
        15 => Command::SessionRenew(v1::SessionRenew { id }),
        16 => Command::SessionExpire(v1::SessionExpire {
            id,
            renewal_epoch: 1 + dice.roll(2),
            term: dice.roll(3),
        }),
        17 => Command::Txn(txn(dice)),
        18 => Command::TombstoneReap(v1::TombstoneReap {
            up_to_index: dice.roll(index),
        }),
        _ if dice.roll(3) == 0 => Command::LeaderStart(v1::LeaderStart::default()),
        _ if dice.roll(2) == 0 => Command::ConfigEntry(config_entry(dice, index)),
        _ if dice.roll(2) == 0 => Command::PreparedQuery(prepared_query(dice)),
        _ if dice.roll(2) == 0 => Command::Coordinates(coordinates(dice)),
        _ => Command::Autopilot(v1::AutopilotConfig {
            min_quorum: 3,
            ..v1::AutopilotConfig::default()
        }),
    }
}

pub fn stamped(dice: &mut Dice, index: u64) -> v1::Stamped {
    let command = Some(command(dice, index));
    let source_id = dice.pick(&["", "", "agent"]).to_owned();
    v1::Stamped {
        at_millis: index * 3 + dice.roll(9),
        term: index / 50,
        source_id,
        source_sequence: index,
        command,
        ..v1::Stamped::default()
    }
}

/// Registers a node with 2 KiB of metadata.
pub fn big_node(index: u64) -> v1::Stamped {
    let node = v1::Node {
        name: format!("big-{index}"),
        address: "10.0.0.3".into(),
        meta: [("filler".to_owned(), "x".repeat(2_048))].into(),
        ..v1::Node::default()
    };
    v1::Stamped {
        command: Some(Command::Register(v1::Register {
            node: Some(node),
            ..v1::Register::default()
        })),
        ..v1::Stamped::default()
    }
}
