//! What the catalog promises its callers, one story each.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use sha2::{Digest, Sha256};
use weft_catalog::snapshot::SnapshotError;
use weft_catalog::{ApplyError, Catalog, Hub, SEQUENCES_MAX, Topic, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, KvVerb, outcome, stamped::Command, txn_op::Op};

struct Log {
    catalog: Catalog,
    index: u64,
    now: u64,
}

impl Log {
    fn new() -> Self {
        Self {
            catalog: Catalog::new(),
            index: 0,
            now: 1_000,
        }
    }

    fn stamped(&mut self, stamped: &v1::Stamped) -> v1::Outcome {
        self.index += 1;
        self.catalog.apply(LogIndex(self.index), stamped).unwrap()
    }

    fn run(&mut self, command: Command) -> outcome::Result {
        let stamped = v1::Stamped {
            at_millis: self.now,
            command: Some(command),
            ..v1::Stamped::default()
        };
        self.stamped(&stamped).result.unwrap()
    }

    fn kv(&mut self, verb: KvVerb, key: &str, value: &str, session: &str) -> outcome::Result {
        self.run(Command::Kv(kv(verb, key, value, session, 0)))
    }

    fn txn(&mut self, ops: Vec<Op>) -> v1::TxnOutcome {
        let ops = ops
            .into_iter()
            .map(|op| v1::TxnOp { op: Some(op) })
            .collect();
        match self.run(Command::Txn(v1::Txn { ops })) {
            outcome::Result::Txn(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn register(&mut self, node: &str, status: &str) -> outcome::Result {
        self.run(Command::Register(v1::Register {
            node: Some(v1::Node {
                name: node.into(),
                address: "10.0.0.1".into(),
                ..v1::Node::default()
            }),
            service: Some(v1::Service {
                name: "web".into(),
                tags: vec!["v1".into()],
                ..v1::Service::default()
            }),
            checks: vec![v1::Check {
                id: "c".into(),
                status: status.into(),
                service_id: "web".into(),
                ..v1::Check::default()
            }],
            skip_node_update: false,
        }))
    }

    fn session(&mut self, id: &str, behavior: &str, ttl_millis: u64) -> outcome::Result {
        let session = v1::Session {
            id: id.into(),
            node: "n1".into(),
            behavior: behavior.into(),
            lock_delay_millis: 15_000,
            ttl_millis,
            node_checks: vec!["c".into()],
            ..v1::Session::default()
        };
        self.run(Command::SessionCreate(v1::SessionCreate {
            session: Some(session),
        }))
    }

    fn holder(&self, key: &str) -> Option<String> {
        let trace = Trace::off();
        self.catalog
            .state()
            .read(&trace)
            .kv_get(key.as_bytes())
            .rows
            .map(|row| row.session.clone())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        snapshot::write(self.catalog.state(), &mut bytes).unwrap();
        bytes
    }
}

fn kv(verb: KvVerb, key: &str, value: &str, session: &str, modify_index: u64) -> v1::KvCommand {
    let (key, value) = (
        key.as_bytes().to_vec().into(),
        value.as_bytes().to_vec().into(),
    );
    let entry = v1::KvEntry {
        key,
        value,
        session: session.into(),
        modify_index,
        ..v1::KvEntry::default()
    };
    v1::KvCommand {
        verb: verb.into(),
        entry: Some(entry),
    }
}

fn refused(result: outcome::Result) -> (String, String) {
    match result {
        outcome::Result::Refusal(refusal) => (refusal.reason, refusal.message),
        other => panic!("not refused: {other:?}"),
    }
}

const YES: outcome::Result = outcome::Result::Applied(true);
const NO: outcome::Result = outcome::Result::Applied(false);

#[test]
fn what_changes_nothing_wakes_nobody() {
    let mut log = Log::new();
    log.register("n1", "passing");
    log.kv(KvVerb::Set, "a", "x", "");
    log.catalog.publish();
    let indexes = |log: &Log| {
        let trace = Trace::off();
        let reader = log.catalog.state().read(&trace);
        [
            reader.service_index("web"),
            reader.nodes().index,
            reader.checks_in_state("any").index,
            reader.kv_get(b"a").index,
        ]
    };
    let before = indexes(&log);
    log.register("n1", "passing");
    log.register("N1", "passing");
    log.kv(KvVerb::Set, "a", "x", "");
    log.kv(KvVerb::Delete, "nothing", "", "");
    log.run(Command::SessionDestroy(v1::SessionDestroy {
        id: "none".into(),
    }));
    let (_, touched) = log.catalog.publish();
    // `N1` is written another way: that one is a change of the node.
    assert!(touched.touches(&Topic::Node("n1".into())));
    assert_eq!(indexes(&log)[3], before[3]);
    log.register("N1", "passing");
    assert!(log.catalog.publish().1.is_empty());
}

#[test]
fn a_check_that_turns_critical_ends_the_session_and_delays_the_lock() {
    for (behavior, left) in [("release", Some(String::new())), ("delete", None)] {
        let mut log = Log::new();
        log.register("n1", "passing");
        assert!(matches!(
            log.session("s1", behavior, 0),
            outcome::Result::Session(_)
        ));
        assert_eq!(log.kv(KvVerb::Lock, "a/b", "x", "s1"), YES);
        assert_eq!(log.holder("a/b"), Some("s1".into()));
        log.register("n1", "critical");
        assert_eq!(log.holder("a/b"), left);
        assert_eq!(
            refused(log.session("s2", "", 0)).1,
            "Check 'c' is in critical state"
        );
        log.register("n1", "passing");
        log.session("s2", "", 0);
        assert_eq!(log.kv(KvVerb::Lock, "a/b", "x", "s2"), NO);
        log.now += 15_000;
        assert_eq!(log.kv(KvVerb::Lock, "a/b", "x", "s2"), YES);
        assert_eq!(log.kv(KvVerb::Unlock, "a/b", "x", "s2"), YES);
        log.session("s3", "", 0);
        assert_eq!(
            log.kv(KvVerb::Lock, "a/b", "x", "s3"),
            YES,
            "a voluntary release delays nobody"
        );
    }
}

#[test]
fn an_expiry_holds_only_for_its_epoch_and_its_term() {
    let mut log = Log::new();
    log.register("n1", "passing");
    log.session("s1", "", 10_000);
    let expire = |renewal_epoch, term| {
        Command::SessionExpire(v1::SessionExpire {
            id: "s1".into(),
            renewal_epoch,
            term,
        })
    };
    assert_eq!(
        log.catalog
            .state()
            .next_session_deadline()
            .unwrap()
            .deadline
            .get(),
        21_000
    );
    assert_eq!(log.run(expire(1, 0)), NO, "before its TTL");
    log.now = 20_000;
    log.run(Command::SessionRenew(v1::SessionRenew { id: "s1".into() }));
    log.now = 60_000;
    assert_eq!(log.run(expire(1, 0)), NO, "an older epoch");
    let start = Command::LeaderStart(v1::LeaderStart::default());
    log.stamped(&v1::Stamped {
        at_millis: 60_000,
        term: 7,
        command: Some(start),
        ..v1::Stamped::default()
    });
    assert_eq!(
        log.catalog
            .state()
            .next_session_deadline()
            .unwrap()
            .deadline
            .get(),
        80_000,
        "re-armed in full"
    );
    log.now = 80_000;
    assert_eq!(log.run(expire(3, 6)), NO, "an older leader");
    assert_eq!(log.run(expire(3, 7)), YES);
    let renew = Command::SessionRenew(v1::SessionRenew { id: "s1".into() });
    assert_eq!(
        refused(log.run(renew)),
        (
            "session.unknown".into(),
            "Session id \"s1\" not found".into()
        )
    );
}

#[test]
fn time_never_runs_back() {
    let mut log = Log::new();
    log.kv(KvVerb::Set, "a", "", "");
    log.now = 5;
    log.kv(KvVerb::Set, "b", "", "");
    assert_eq!(log.catalog.state().cluster_time().get(), 1_000);
}

#[test]
fn refusals_say_what_consul_says() {
    let mut log = Log::new();
    let check = v1::Check {
        id: "c".into(),
        service_id: "none".into(),
        ..v1::Check::default()
    };
    let node = v1::Node {
        name: "n1".into(),
        address: "10.0.0.1".into(),
        ..v1::Node::default()
    };
    let register = v1::Register {
        node: Some(node),
        checks: vec![check],
        ..v1::Register::default()
    };
    assert_eq!(
        refused(log.run(Command::Register(register))).1,
        "Missing service registration"
    );
    assert_eq!(
        log.catalog.state().counts().nodes,
        0,
        "a refused command changes nothing"
    );
    assert_eq!(
        refused(log.session("s1", "", 0)).1,
        "Missing node registration"
    );
    assert_eq!(
        refused(log.kv(KvVerb::Lock, "a", "", "dead")).1,
        "invalid session \"dead\""
    );
    assert_eq!(
        refused(log.kv(KvVerb::Lock, "a", "", "")).1,
        "missing session"
    );
    assert_eq!(
        refused(log.kv(KvVerb::Get, "a", "", "")).0,
        "kv.verb.unknown"
    );
    let huge = "x".repeat((8 << 20) + 1);
    assert_eq!(
        refused(log.kv(KvVerb::Set, "a", &huge, "")).0,
        "kv.value.too_large"
    );
}

#[test]
fn a_name_is_taken_over_only_from_a_node_that_is_not_alive() {
    let mut log = Log::new();
    let register = |id: &str, address: &str, status: &str| {
        let node = v1::Node {
            id: id.into(),
            name: "vm".into(),
            address: address.into(),
            ..v1::Node::default()
        };
        let check = v1::Check {
            id: "serfHealth".into(),
            status: status.into(),
            ..v1::Check::default()
        };
        Command::Register(v1::Register {
            node: Some(node),
            checks: vec![check],
            ..v1::Register::default()
        })
    };
    log.run(register("id-1", "10.0.0.1", "passing"));
    let (reason, text) = refused(log.run(register("id-2", "10.0.0.2", "passing")));
    assert_eq!(reason, "catalog.node.reserved");
    assert!(
        text.starts_with("Node name vm is reserved by node id-1 with name vm (10.0.0.1)"),
        "{text}"
    );
    assert!(text.contains("10.0.0.2"), "{text}");
    log.run(register("id-1", "10.0.0.1", "critical"));
    assert!(matches!(
        log.run(register("id-2", "10.0.0.2", "passing")),
        outcome::Result::Unit(_)
    ));
}

#[test]
fn a_transaction_happens_wholly_or_not_at_all() {
    let mut log = Log::new();
    log.kv(KvVerb::Set, "held", "", "");
    log.catalog.publish();
    let outcome = log.txn(vec![
        Op::Kv(kv(KvVerb::Set, "a", "1", "", 0)),
        Op::Kv(kv(KvVerb::Get, "a", "", "", 0)),
        Op::Kv(kv(KvVerb::CheckNotExists, "b", "", "", 0)),
    ]);
    assert_eq!(outcome.errors, []);
    assert_eq!(outcome.results.len(), 2);
    assert_eq!(
        (outcome.results[0].with_value, outcome.results[1].with_value),
        (false, true)
    );
    let cases = [
        (
            kv(KvVerb::Cas, "a", "2", "", 1),
            "failed to set key \"a\", index is stale",
        ),
        (
            kv(KvVerb::DeleteCas, "a", "", "", 1),
            "failed to delete key \"a\", index is stale",
        ),
        (
            kv(KvVerb::Unlock, "a", "", "s", 0),
            "failed to unlock key \"a\", lock isn't held, or is held by another session",
        ),
        (
            kv(KvVerb::Get, "none", "", "", 0),
            "key \"none\" doesn't exist",
        ),
        (
            kv(KvVerb::CheckNotExists, "a", "", "", 0),
            "key \"a\" exists",
        ),
        (
            kv(KvVerb::CheckIndex, "a", "", "", 1),
            "failed index check for key \"a\", current modify index 3 != 1",
        ),
        (
            kv(KvVerb::CheckSession, "a", "", "s", 0),
            "failed session check for key \"a\", current session \"\" != \"s\"",
        ),
        (kv(KvVerb::Lock, "a", "", "s", 0), "invalid session \"s\""),
    ];
    let before = log
        .catalog
        .state()
        .read(&Trace::off())
        .kv_list(b"")
        .rows
        .len();
    log.catalog.publish();
    for (op, text) in cases {
        let outcome = log.txn(vec![Op::Kv(kv(KvVerb::Set, "new", "1", "", 0)), Op::Kv(op)]);
        assert_eq!(
            outcome.errors,
            [v1::TxnError {
                op_index: 1,
                what: text.into()
            }]
        );
        assert_eq!(outcome.results, []);
    }
    assert!(log.catalog.publish().1.is_empty());
    assert_eq!(
        log.catalog
            .state()
            .read(&Trace::off())
            .kv_list(b"")
            .rows
            .len(),
        before
    );
}

#[test]
fn a_retry_is_answered_and_not_executed_again() {
    let mut log = Log::new();
    let send = |sequence, value: &str| v1::Stamped {
        source_id: "agent".into(),
        source_sequence: sequence,
        command: Some(Command::Kv(kv(KvVerb::Set, "a", value, "", 0))),
        ..v1::Stamped::default()
    };
    let first = log.stamped(&send(1, "x"));
    log.kv(KvVerb::Set, "a", "other", "");
    assert_eq!(log.stamped(&send(1, "x")), first);
    assert_eq!(
        &log.catalog
            .state()
            .read(&Trace::off())
            .kv_get(b"a")
            .rows
            .unwrap()
            .value[..],
        b"other"
    );
    log.stamped(&send(1 + SEQUENCES_MAX, "y"));
    let outcome = log.stamped(&send(1, "x")).result.unwrap();
    assert_eq!(refused(outcome).0, "retry.sequence.stale");
}

#[test]
fn a_replica_that_computed_something_else_stops() {
    let mut log = Log::new();
    log.kv(KvVerb::Set, "a", "x", "");
    let (at_index, hash) = (
        log.catalog.state().index().get(),
        log.catalog.state().hash(),
    );
    log.kv(KvVerb::Set, "b", "x", "");
    let state_hash = |hash| v1::Stamped {
        command: Some(Command::StateHash(v1::StateHash {
            at_index,
            hash,
            hash_form: weft_catalog::HASH_FORM,
        })),
        ..v1::Stamped::default()
    };
    log.stamped(&state_hash(hash));
    let wrong = log.catalog.apply(LogIndex(9), &state_hash(hash ^ 1));
    assert!(
        matches!(wrong, Err(ApplyError::Diverged { .. })),
        "{wrong:?}"
    );
    let unknown = log.catalog.apply(LogIndex(9), &v1::Stamped::default());
    assert_eq!(
        unknown,
        Err(ApplyError::UnknownCommand { index: LogIndex(9) })
    );
}

#[test]
fn a_restore_swaps_everything_and_no_index_runs_back() {
    let mut old = Log::new();
    old.register("n1", "passing");
    old.session("s1", "", 10_000);
    for number in 0..500 {
        old.kv(KvVerb::Set, &format!("k{number}"), "value", "");
    }
    let bytes = old.bytes();
    let sha256 = hex::encode(Sha256::digest(&bytes));

    let mut log = Log::new();
    log.kv(KvVerb::Set, "mine", "", "");
    let restore_id = "r".to_owned();
    let begin = v1::RestoreBegin {
        restore_id: restore_id.clone(),
        size_bytes: bytes.len() as u64,
        sha256,
    };
    log.run(Command::RestoreBegin(begin));
    for (number, data) in bytes.chunks(1_000).enumerate() {
        let chunk = v1::RestoreChunk {
            restore_id: restore_id.clone(),
            offset: number as u64 * 1_000,
            data: data.to_vec().into(),
        };
        assert!(matches!(
            log.run(Command::RestoreChunk(chunk)),
            outcome::Result::Unit(_)
        ));
    }
    // A replica that joins in the middle goes on from a snapshot.
    log.catalog = snapshot::read(&mut &log.bytes()[..]).unwrap();
    log.catalog.publish();
    let outcome = log.run(Command::RestoreCommit(v1::RestoreCommit { restore_id }));
    assert_eq!(outcome, YES);
    let (state, touched) = log.catalog.publish();
    assert!(touched.is_everything());
    assert_eq!(state.restore_epoch(), 1);
    assert!(state.index() > old.catalog.state().index());
    let trace = Trace::off();
    assert_eq!(state.read(&trace).kv_list(b"k").rows.len(), 500);
    assert_eq!(
        state.read(&trace).kv_get(b"mine"),
        weft_catalog::Answer {
            index: state.index(),
            rows: None
        }
    );
    assert_eq!(
        state.next_session_deadline().unwrap().deadline.get(),
        21_000
    );
    log.kv(KvVerb::Set, "next", "", "");
    assert!(log.catalog.state().index() > state.index());
}

#[test]
fn a_restore_does_not_take_the_index_to_the_end_of_all_numbers() {
    let mut made_up = Log::new();
    made_up.kv(KvVerb::Set, "color", "red", "");
    let absurd = LogIndex(weft_catalog::RESTORED_INDEX_MAX + 1);
    let stamped = v1::Stamped {
        command: Some(Command::Kv(kv(KvVerb::Set, "a", "b", "", 0))),
        ..v1::Stamped::default()
    };
    made_up.catalog.apply(absurd, &stamped).unwrap();
    let bytes = made_up.bytes();

    let mut log = Log::new();
    log.kv(KvVerb::Set, "mine", "", "");
    let restore_id = "r".to_owned();
    log.run(Command::RestoreBegin(v1::RestoreBegin {
        restore_id: restore_id.clone(),
        size_bytes: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(&bytes)),
    }));
    let received = bytes.len() as u64;
    log.run(Command::RestoreChunk(v1::RestoreChunk {
        restore_id: restore_id.clone(),
        offset: 0,
        data: bytes.into(),
    }));
    assert_eq!(log.catalog.state().staged_restore(), Some(("r", received)));
    let outcome = log.run(Command::RestoreCommit(v1::RestoreCommit { restore_id }));
    assert_eq!(refused(outcome).0, "restore.index");
    assert_eq!(log.catalog.state().staged_restore(), None);
    assert_eq!(log.holder("mine"), Some(String::new()));
}

#[test]
fn a_damaged_restore_changes_nothing() {
    let mut log = Log::new();
    log.kv(KvVerb::Set, "mine", "", "");
    let begin = v1::RestoreBegin {
        restore_id: "r".into(),
        size_bytes: 3,
        sha256: "00".into(),
    };
    log.run(Command::RestoreBegin(begin));
    let chunk = v1::RestoreChunk {
        restore_id: "r".into(),
        offset: 0,
        data: b"abc".to_vec().into(),
    };
    log.run(Command::RestoreChunk(chunk));
    let commit = Command::RestoreCommit(v1::RestoreCommit {
        restore_id: "r".into(),
    });
    assert_eq!(refused(log.run(commit.clone())).0, "restore.checksum");
    assert_eq!(refused(log.run(commit)).0, "restore.unknown");
    assert_eq!(log.holder("mine"), Some(String::new()));
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_snapshot_is_found() {
    let mut log = Log::new();
    log.register("n1", "passing");
    log.kv(KvVerb::Set, "key", "value", "");
    let bytes = log.bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(
                snapshot::read(&mut &damaged[..]).is_err(),
                "bit {bit} of byte {at}"
            );
        }
        assert!(snapshot::read(&mut &bytes[..at]).is_err(), "cut at {at}");
    }
    let mut damaged = bytes;
    *damaged.last_mut().unwrap() ^= 1;
    match snapshot::read(&mut &damaged[..]) {
        Err(SnapshotError::Damaged {
            frame: 0,
            offset: 12,
            record: 0,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
        std::thread::park();
    }
}

#[test]
fn no_wake_up_is_lost_between_reading_and_waiting() {
    const ROUNDS: u64 = 3_000;
    let hub = Hub::new();
    let published = Mutex::new(Catalog::new().publish().0);
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let newest = || published.lock().unwrap().clone();
                loop {
                    let read = |trace: &Trace| newest().read(trace).kv_list(b"a/").index;
                    let trace = Trace::on();
                    let index = read(&trace);
                    if index.get() > ROUNDS {
                        break;
                    }
                    let watch = hub.watch(&trace.into_topics());
                    if read(&Trace::off()) == index {
                        // Were a wake-up lost, this would wait for ever.
                        block_on(watch);
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut log = Log::new();
        for round in 0..ROUNDS {
            log.kv(KvVerb::Set, "a/b", &round.to_string(), "");
            let (state, touched) = log.catalog.publish();
            *published.lock().unwrap() = state;
            hub.publish(&touched);
        }
    });
    assert!(seen.load(Ordering::Relaxed) > 0);
    let stats = hub.stats();
    assert_eq!(
        (stats.watches, stats.topics),
        (0, 0),
        "topics exist only while they are watched"
    );
}

#[test]
fn a_write_wakes_its_own_prefixes_only() {
    let hub = Hub::new();
    let mut log = Log::new();
    let watch = |prefix: &[u8]| {
        let trace = Trace::on();
        let _ = Catalog::new().state().read(&trace).kv_list(prefix);
        hub.watch(&trace.into_topics())
    };
    let cases: [(&[u8], bool); 6] = [
        (b"", true),
        (b"a", true),
        (b"a/b", true),
        (b"a/b/c", true),
        (b"a/b/c/d", false),
        (b"b", false),
    ];
    let watches: Vec<_> = cases.iter().map(|(prefix, _)| watch(prefix)).collect();
    log.kv(KvVerb::Set, "a/b/c", "", "");
    hub.publish(&log.catalog.publish().1);
    for (mut watch, (prefix, woken)) in watches.into_iter().zip(cases) {
        let ready = pin!(&mut watch)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready();
        assert_eq!(ready, woken, "{:?}", String::from_utf8_lossy(prefix));
    }
    assert_eq!(hub.stats().topics, 0);
}
