//! What every log store must do, run over all of them: append, read, truncate,
//! purge, vote, committed; and the same again after the store was reopened.

#![allow(
    clippy::unwrap_used,
    reason = "a test file: helpers outside #[test] functions unwrap too"
)]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use weft_raft::log::disk::fault::FaultDisk;
use weft_raft::log::{
    EntryKind, LogEntry, LogError, LogState, LogStore, MemoryLog, Position, SledLog, SledOptions,
    Wal, WalOptions,
};

/// A kind of store and how to open it again.
enum Store {
    Memory(Option<Arc<MemoryLog>>),
    Wal(tempfile::TempDir),
    WalOnFaultDisk(FaultDisk),
    Sled(tempfile::TempDir),
}

impl Store {
    fn all() -> Vec<Self> {
        let dir = || tempfile::tempdir().unwrap();
        vec![
            Self::Memory(None),
            Self::Wal(dir()),
            Self::WalOnFaultDisk(FaultDisk::new()),
            Self::Sled(dir()),
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Wal(_) => "wal",
            Self::WalOnFaultDisk(_) => "wal on the fault disk",
            Self::Sled(_) => "sled",
        }
    }

    /// The store as a new process would find it; a memory store is simply kept.
    fn open(&mut self) -> Arc<dyn LogStore> {
        match self {
            Self::Memory(kept) => Arc::clone(kept.get_or_insert_default()) as Arc<dyn LogStore>,
            Self::Wal(dir) => Arc::new(Wal::open_dir(dir.path(), small()).unwrap()),
            Self::WalOnFaultDisk(disk) => {
                Arc::new(Wal::open(Arc::new(disk.clone()), small()).unwrap())
            }
            Self::Sled(dir) => {
                let options = SledOptions {
                    cache_bytes: 200,
                    ..SledOptions::default()
                };
                Arc::new(SledLog::open_dir(dir.path(), options).unwrap())
            }
        }
    }
}

/// Segments and cache so small that every test crosses their borders.
fn small() -> WalOptions {
    WalOptions {
        segment_bytes: 16 << 10,
        cache_bytes: 200,
        ..WalOptions::default()
    }
}

fn at(term: u64, index: u64) -> Position {
    Position {
        term,
        leader: u128::from(term) << 64 | 7,
        index,
    }
}

fn entry(term: u64, index: u64, len: usize) -> LogEntry {
    let kind = [EntryKind::Blank, EntryKind::Normal, EntryKind::Membership][(index % 3) as usize];
    let body: Vec<u8> = (0..len)
        .map(|i| (index as usize * 31 + i * 7) as u8)
        .collect();
    LogEntry {
        position: at(term, index),
        kind,
        body: Bytes::from(body),
    }
}

/// Runs one call and waits until it is durable.
fn durable(call: impl FnOnce(weft_raft::log::Flushed) -> io::Result<()>) {
    let (done, waits) = mpsc::channel();
    call(Box::new(move |outcome| done.send(outcome).unwrap())).unwrap();
    waits.recv().unwrap().unwrap();
}

fn append(log: &dyn LogStore, entries: Vec<LogEntry>) {
    durable(|flushed| log.append(entries, flushed));
}

/// Runs `story` over every store, then checks that reopening changes neither state nor entries.
fn check(story: impl Fn(&dyn LogStore)) {
    for mut store in Store::all() {
        let log = store.open();
        story(&*log);
        let (state, entries, usage) = picture(&*log);
        drop(log);
        let log = store.open();
        let again = picture(&*log);
        assert_eq!(again.0, state, "{}: state after reopening", store.name());
        assert_eq!(
            again.1,
            entries,
            "{}: entries after reopening",
            store.name()
        );
        assert_eq!(again.2, usage, "{}: usage after reopening", store.name());
    }
}

fn picture(log: &dyn LogStore) -> (LogState, Vec<LogEntry>, (u64, u64)) {
    let state = log.state();
    let next = state.last.map_or(0, |p| p.index + 1);
    let usage = log.usage();
    let entries = log.read(next - usage.entries, next, usize::MAX).unwrap();
    (state, entries, (usage.entries, usage.body_bytes))
}

#[test]
fn an_empty_log_knows_nothing() {
    check(|log| {
        assert_eq!(log.state(), LogState::default());
        assert_eq!(log.read(0, 10, 100).unwrap(), []);
        assert_eq!(log.usage().entries, 0);
    });
}

#[test]
fn entries_read_back_as_they_were_written() {
    check(|log| {
        let entries: Vec<LogEntry> = (0..300)
            .map(|i| entry(1, i, (i as usize * 13) % 700))
            .collect();
        for part in entries.chunks(7) {
            append(log, part.to_vec());
        }
        assert_eq!(log.read(0, 300, usize::MAX).unwrap(), entries);
        assert_eq!(log.read(17, 19, usize::MAX).unwrap(), entries[17..19]);
        assert_eq!(log.read(295, 900, usize::MAX).unwrap(), entries[295..]);
        assert_eq!(log.read(300, 900, usize::MAX).unwrap(), []);
        assert_eq!(log.read(5, 5, usize::MAX).unwrap(), []);
        assert_eq!(log.state().last, Some(at(1, 299)));
    });
}

#[test]
fn an_append_is_readable_before_it_is_durable() {
    check(|log| {
        let (done, waits) = mpsc::channel();
        log.append(
            vec![entry(1, 0, 9)],
            Box::new(move |outcome| done.send(outcome).unwrap()),
        )
        .unwrap();
        assert_eq!(log.read(0, 1, usize::MAX).unwrap(), [entry(1, 0, 9)]);
        waits.recv().unwrap().unwrap();
    });
}

#[test]
fn a_read_stops_before_its_bytes_but_yields_one_entry() {
    check(|log| {
        append(log, (0..10).map(|i| entry(1, i, 100)).collect());
        for (max_bytes, expected) in [
            (0, 1),
            (99, 1),
            (100, 1),
            (199, 1),
            (200, 2),
            (950, 9),
            (1_000, 10),
        ] {
            assert_eq!(
                log.read(0, 10, max_bytes).unwrap().len(),
                expected,
                "{max_bytes} bytes"
            );
        }
    });
}

#[test]
fn a_gap_is_refused_and_changes_nothing() {
    check(|log| {
        append(log, vec![entry(1, 0, 1), entry(1, 1, 1)]);
        for wrong in [
            vec![entry(1, 3, 1)],
            vec![entry(1, 1, 1)],
            vec![entry(1, 2, 1), entry(1, 4, 1)],
        ] {
            let refused = log.append(wrong, Box::new(|_| ())).unwrap_err();
            assert!(
                matches!(LogError::of(&refused), Some(LogError::Gap { .. })),
                "{refused}"
            );
        }
        assert_eq!(log.state().last, Some(at(1, 1)));
    });
}

#[test]
fn a_truncated_tail_can_be_written_anew() {
    check(|log| {
        append(log, (0..50).map(|i| entry(1, i, 40)).collect());
        durable(|flushed| log.truncate_after(Some(at(1, 19)), flushed));
        assert_eq!(log.state().last, Some(at(1, 19)));
        assert_eq!(log.read(19, 50, usize::MAX).unwrap(), [entry(1, 19, 40)]);
        append(log, (20..30).map(|i| entry(2, i, 11)).collect());
        assert_eq!(
            log.read(20, 50, usize::MAX).unwrap(),
            (20..30).map(|i| entry(2, i, 11)).collect::<Vec<_>>()
        );
        durable(|flushed| log.truncate_after(Some(at(9, 70)), flushed));
        assert_eq!(
            log.state().last,
            Some(at(2, 29)),
            "truncating after the end changes nothing"
        );
    });
}

#[test]
fn truncating_everything_leaves_the_purged_position() {
    check(|log| {
        append(log, (0..5).map(|i| entry(1, i, 4)).collect());
        durable(|flushed| log.truncate_after(None, flushed));
        assert_eq!(log.state().last, None);
        append(log, (0..5).map(|i| entry(2, i, 4)).collect());
        durable(|flushed| log.purge(at(2, 2), flushed));
        durable(|flushed| log.truncate_after(None, flushed));
        assert_eq!(log.state().last, Some(at(2, 2)));
        append(log, vec![entry(3, 3, 4)]);
    });
}

#[test]
fn calls_queued_together_take_effect_in_order() {
    check(|log| {
        let (done, waits) = mpsc::channel();
        for round in 0..40_u64 {
            let tell = |number: u64| {
                let done = done.clone();
                Box::new(move |outcome: io::Result<()>| {
                    done.send((number, outcome.is_ok())).unwrap()
                })
            };
            let first = round * 3;
            log.append(
                (first..first + 6)
                    .map(|i| entry(round + 1, i, 30))
                    .collect(),
                tell(round * 2),
            )
            .unwrap();
            log.truncate_after(Some(at(round + 1, first + 2)), tell(round * 2 + 1))
                .unwrap();
        }
        let order: Vec<(u64, bool)> = waits.iter().take(80).collect();
        assert_eq!(order, (0..80).map(|n| (n, true)).collect::<Vec<_>>());
        assert_eq!(log.state().last, Some(at(40, 119)));
        let expected: Vec<LogEntry> = (0..120).map(|i| entry(i / 3 + 1, i, 30)).collect();
        assert_eq!(log.read(0, 120, usize::MAX).unwrap(), expected);
    });
}

#[test]
fn a_purge_forgets_the_beginning() {
    check(|log| {
        append(log, (0..400).map(|i| entry(1, i, 100)).collect());
        durable(|flushed| log.purge(at(1, 349), flushed));
        assert_eq!(log.state().purged, Some(at(1, 349)));
        assert_eq!(log.state().last, Some(at(1, 399)));
        let refused = log.read(349, 360, usize::MAX).unwrap_err();
        assert!(
            matches!(
                LogError::of(&refused),
                Some(LogError::Purged { first: 350, .. })
            ),
            "{refused}"
        );
        assert_eq!(log.read(350, 400, usize::MAX).unwrap().len(), 50);
        durable(|flushed| log.purge(at(1, 10), flushed));
        assert_eq!(
            log.state().purged,
            Some(at(1, 349)),
            "a purge never runs back"
        );
        let after = log.usage();
        assert_eq!((after.entries, after.body_bytes), (50, 5_000));
    });
}

#[test]
fn a_purge_gives_disk_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = Wal::open_dir(dir.path(), small()).unwrap();
    append(&log, (0..2_000).map(|i| entry(1, i, 100)).collect());
    let before = log.usage().disk_bytes;
    durable(|flushed| log.purge(at(1, 1_990), flushed));
    drop(log);
    let log = Wal::open_dir(dir.path(), small()).unwrap();
    let files: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().metadata().unwrap().len())
        .sum();
    assert!(
        before > 200_000 && log.usage().disk_bytes <= 32 << 10,
        "{before} {:?}",
        log.usage()
    );
    assert!(files <= 33 << 10, "{files} bytes in the folder");
}

#[test]
fn a_purge_beyond_the_end_moves_the_log_there() {
    check(|log| {
        append(log, (0..10).map(|i| entry(1, i, 100)).collect());
        durable(|flushed| log.purge(at(4, 1_000), flushed));
        assert_eq!(log.state().last, Some(at(4, 1_000)));
        assert_eq!(log.usage().entries, 0);
        append(log, vec![entry(5, 1_001, 3)]);
        assert_eq!(log.read(1_001, 1_002, 0).unwrap(), [entry(5, 1_001, 3)]);
    });
}

#[test]
fn vote_and_committed_are_kept() {
    check(|log| {
        durable(|flushed| log.save_vote(Bytes::from_static(b"term 1 for me"), flushed));
        append(log, (0..4).map(|i| entry(1, i, 10)).collect());
        log.save_committed(Some(at(1, 3))).unwrap();
        durable(|flushed| log.save_vote(Bytes::from_static(b"term 2 for her"), flushed));
        assert_eq!(log.state().vote.as_deref(), Some(&b"term 2 for her"[..]));
        assert_eq!(log.state().committed, Some(at(1, 3)));
    });
}

#[test]
fn committed_alone_is_kept_by_an_orderly_close() {
    check(|log| {
        append(log, (0..4).map(|i| entry(1, i, 10)).collect());
        log.save_committed(Some(at(1, 2))).unwrap();
    });
}

#[test]
fn vote_and_committed_outlive_the_segments_they_were_written_to() {
    check(|log| {
        durable(|flushed| log.save_vote(Bytes::from_static(b"vote"), flushed));
        for i in 0..600 {
            append(log, vec![entry(1, i, 100)]);
            if i == 5 {
                log.save_committed(Some(at(1, 5))).unwrap();
            }
        }
        durable(|flushed| log.purge(at(1, 590), flushed));
        assert_eq!(log.state().vote.as_deref(), Some(&b"vote"[..]));
    });
}

#[test]
fn bodies_larger_than_a_segment_fit() {
    check(|log| {
        let entries: Vec<LogEntry> = [3, 70_000, 0, 200_000, 9_000, 8_192]
            .iter()
            .zip(0..)
            .map(|(l, i)| entry(1, i, *l))
            .collect();
        append(log, entries.clone());
        assert_eq!(log.read(0, 6, usize::MAX).unwrap(), entries);
        durable(|flushed| log.purge(at(1, 1), flushed));
        assert_eq!(log.read(2, 6, usize::MAX).unwrap(), entries[2..]);
    });
}

#[test]
fn an_empty_append_is_acknowledged() {
    check(|log| append(log, Vec::new()));
}

#[test]
fn two_holders_of_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pid = std::process::id().to_string();
    let held = Wal::open_dir(dir.path(), small()).unwrap();
    let refused = Wal::open_dir(dir.path(), small()).err().unwrap();
    assert!(refused.to_string().contains(&pid), "{refused}");
    assert_eq!(refused.reason(), "raft-log-locked");
    drop(held);
    Wal::open_dir(dir.path(), small()).unwrap();
    let dir: PathBuf = tempfile::tempdir().unwrap().keep();
    let held = SledLog::open_dir(&dir, SledOptions::default()).unwrap();
    let refused = SledLog::open_dir(&dir, SledOptions::default())
        .err()
        .unwrap();
    assert!(refused.to_string().contains(&pid), "{refused}");
    drop(held);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_last_handle_may_be_dropped_inside_a_callback() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Wal::open_dir(dir.path(), small()).unwrap());
    let (done, waits) = mpsc::channel();
    let (hand_over, handle) = mpsc::channel::<Arc<Wal>>();
    let flushed = Box::new(move |outcome: io::Result<()>| {
        drop(handle.recv());
        done.send(outcome).unwrap();
    });
    log.append(vec![entry(1, 0, 5)], flushed).unwrap();
    hand_over.send(log).unwrap();
    waits.recv().unwrap().unwrap();
}
