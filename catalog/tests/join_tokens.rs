//! Join tokens in the replicated state: good for one node, one key, some time.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use bytes::Bytes;
use weft_catalog::{Catalog, JOIN_TOKENS_MAX, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::join_token_command::Op;
use weft_proto::v1::outcome::Result::Refusal;
use weft_proto::v1::{self, stamped::Command};

const HOUR: u64 = 3_600_000;

#[derive(Default)]
struct World {
    catalog: Catalog,
    log: u64,
    now: u64,
}

impl World {
    /// The reason of the refusal, or `ok`.
    fn apply(&mut self, op: Op) -> String {
        let command = v1::JoinTokenCommand { op: Some(op) };
        let stamped = v1::Stamped {
            at_millis: self.now,
            command: Some(Command::JoinToken(command)),
            ..Default::default()
        };
        let outcome = self.catalog.apply(LogIndex(self.log), &stamped).unwrap();
        self.log += 1;
        self.catalog.publish();
        match outcome.result {
            Some(Refusal(refusal)) => refusal.reason,
            _ => "ok".into(),
        }
    }

    fn make(&mut self, id: &str, secret: u8, node: &str) -> String {
        self.apply(Op::Create(v1::JoinTokenCreate {
            id: id.into(),
            secret_hash: Bytes::from(vec![secret; 32]),
            node: node.into(),
            ttl_millis: HOUR,
        }))
    }

    fn redeem(&mut self, secret: u8, node: &str, key: u8) -> String {
        self.apply(Op::Redeem(v1::JoinTokenRedeem {
            secret_hash: Bytes::from(vec![secret; 32]),
            node: node.into(),
            used_by: Bytes::from(vec![key; 32]),
        }))
    }

    fn ids(&self) -> Vec<(String, bool)> {
        let trace = Trace::off();
        let tokens = self.catalog.state().read(&trace).join_tokens();
        let row = |token: &v1::JoinToken| (token.id.clone(), token.used_millis != 0);
        tokens.rows.iter().map(|token| row(token)).collect()
    }
}

#[test]
fn a_token_is_used_once_by_its_node_in_time() {
    let mut world = World {
        now: HOUR,
        ..World::default()
    };
    assert_eq!(world.make("t1", 1, "web-1"), "ok");
    assert_eq!(world.make("t1", 9, "web-1"), "join_token.exists");
    assert_eq!(world.redeem(2, "web-1", 7), "join_token.unknown");
    assert_eq!(world.redeem(1, "web-2", 7), "join_token.node");
    assert_eq!(world.redeem(1, "WEB-1", 7), "ok");
    assert_eq!(world.ids(), [("t1".to_owned(), true)]);
    // The same key again: its first answer was lost. Another key: somebody has the token.
    assert_eq!(world.redeem(1, "web-1", 7), "ok");
    assert_eq!(world.redeem(1, "web-1", 8), "join_token.used");
    assert_eq!(world.make("t2", 2, "web-2"), "ok");
    world.now += HOUR;
    assert_eq!(world.redeem(2, "web-2", 7), "join_token.expired");
    assert_eq!(world.redeem(1, "web-1", 7), "join_token.expired");
}

#[test]
fn tokens_are_revoked_forgotten_and_bounded() {
    let mut world = World::default();
    assert_eq!(world.make("t1", 1, "a"), "ok");
    assert_eq!(world.apply(Op::Revoke("T1".into())), "ok");
    assert_eq!(world.apply(Op::Revoke("t1".into())), "join_token.unknown");
    assert_eq!(world.redeem(1, "a", 7), "join_token.unknown");
    for number in 0..JOIN_TOKENS_MAX {
        assert_eq!(world.make(&format!("n{number}"), 3, "a"), "ok");
    }
    assert_eq!(world.make("more", 4, "a"), "join_token.too_many");
    world.now += 26 * HOUR;
    assert_eq!(world.make("more", 4, "a"), "ok");
    assert_eq!(world.ids(), [("more".to_owned(), false)]);
}

#[test]
fn incomplete_commands_change_nothing() {
    let mut world = World::default();
    let whole = v1::JoinTokenCreate {
        id: "t".into(),
        secret_hash: Bytes::from(vec![1; 32]),
        node: "a".into(),
        ttl_millis: HOUR,
    };
    let broken: [fn(&mut v1::JoinTokenCreate); 5] = [
        |create| create.id.clear(),
        |create| create.node.clear(),
        |create| create.secret_hash = Bytes::from_static(b"short"),
        |create| create.ttl_millis = 0,
        |create| create.ttl_millis = u64::MAX,
    ];
    for breaking in broken {
        let mut create = whole.clone();
        breaking(&mut create);
        assert_ne!(world.apply(Op::Create(create)), "ok");
        assert_eq!(world.ids(), []);
    }
}

#[test]
fn snapshots_carry_tokens() {
    let mut world = World::default();
    world.make("t1", 1, "web-1");
    world.redeem(1, "web-1", 7);
    world.make("t2", 2, "web-2");
    let mut bytes = Vec::new();
    snapshot::write(world.catalog.state(), &mut bytes).unwrap();
    let restored = snapshot::read(&mut &bytes[..]).unwrap();
    assert_eq!(restored.state().hash(), world.catalog.state().hash());
    let mut again = World {
        catalog: restored,
        log: world.log,
        now: world.now,
    };
    assert_eq!(again.redeem(1, "web-1", 8), "join_token.used");
    assert_eq!(again.redeem(2, "web-2", 8), "ok");
}
