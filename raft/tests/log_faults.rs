//! What the write-ahead log makes of power cuts, damage and a disk that refuses.
//!
//! Replay one case: `WEFT_SEED=123 cargo test -p weft-raft --test log_faults power_cuts`.
//! Long form: `WEFT_LOG_ROUNDS=50000 cargo test --release -p weft-raft --test log_faults`.

#![allow(
    clippy::unwrap_used,
    reason = "a test file: helpers outside #[test] functions unwrap too"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use weft_raft::log::disk::fault::{FaultDisk, FaultPlan};
use weft_raft::log::{
    EntryKind, LogEntry, LogError, LogState, LogStore, MemoryLog, Position, Wal, WalOptions,
};

/// A small seeded generator, so that a failure replays.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % bound
    }

    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
}

/// How often a randomised test runs.
fn rounds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match number("WEFT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WEFT_LOG_ROUNDS").unwrap_or(default),
    }
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 8 << 10,
        cache_bytes: 500,
        idle_after: Duration::from_secs(3_600),
        ..WalOptions::default()
    }
}

fn open(disk: &FaultDisk) -> Result<Wal, LogError> {
    Wal::open(Arc::new(disk.clone()), options())
}

/// A log that marks its end whenever nothing is queued, so that marks get torn too.
fn open_restless(disk: &FaultDisk) -> Result<Wal, LogError> {
    Wal::open(
        Arc::new(disk.clone()),
        WalOptions {
            idle_after: Duration::ZERO,
            ..options()
        },
    )
}

fn at(term: u64, index: u64) -> Position {
    Position {
        term,
        leader: u128::from(term),
        index,
    }
}

#[derive(Clone, Debug)]
enum Call {
    Append(Vec<LogEntry>),
    Truncate(Option<Position>),
    Purge(Position),
    Vote(Bytes),
    Committed(Position),
}

impl Call {
    fn on(&self, log: &dyn LogStore, flushed: weft_raft::log::Flushed) -> io::Result<()> {
        match self {
            Self::Append(entries) => log.append(entries.clone(), flushed),
            Self::Truncate(last) => log.truncate_after(*last, flushed),
            Self::Purge(up_to) => log.purge(*up_to, flushed),
            Self::Vote(vote) => log.save_vote(vote.clone(), flushed),
            Self::Committed(position) => log.save_committed(Some(*position)),
        }
    }
}

/// The next call a Raft node might make on a log in `state`.
fn random_call(dice: &mut Dice, log: &MemoryLog, term: &mut u64) -> Call {
    let state = log.state();
    let next = state.last.map_or(0, |p| p.index + 1);
    let committed = state
        .committed
        .map_or(0, |p| p.index + 1)
        .max(state.purged.map_or(0, |p| p.index + 1));
    match dice.below(20) {
        0 | 1 if next > committed => {
            // A follower drops what a new leader does not have, never what is committed.
            *term += 1;
            let keep = committed + dice.below(next - committed);
            Call::Truncate(keep.checked_sub(1).map(|index| match state.purged {
                Some(purged) if purged.index == index => purged,
                _ => log.read(index, index + 1, 0).unwrap()[0].position,
            }))
        }
        2 if committed > 0 => Call::Purge(at(*term, committed - 1)),
        3 if dice.below(6) == 0 => Call::Purge(at(*term, next + dice.below(20))),
        4 | 5 => Call::Vote(Bytes::from(vec![
            dice.below(256) as u8;
            dice.below(40) as usize
        ])),
        6..=8 if next > committed => {
            Call::Committed(at(*term, committed + dice.below(next - committed)))
        }
        _ => {
            let count = 1 + dice.below(4);
            let entries = (next..next + count)
                .map(|index| random_entry(dice, *term, index))
                .collect();
            Call::Append(entries)
        }
    }
}

fn random_entry(dice: &mut Dice, term: u64, index: u64) -> LogEntry {
    let len = [
        0,
        8,
        8 + dice.below(300),
        dice.below(2_000),
        dice.below(12_000),
    ][dice.below(5) as usize];
    let body: Vec<u8> = (0..len).map(|_| dice.below(256) as u8).collect();
    LogEntry {
        position: at(term, index),
        kind: EntryKind::Normal,
        body: body.into(),
    }
}

/// What a log looks like to its user.
fn picture(log: &dyn LogStore) -> (LogState, Vec<LogEntry>) {
    let state = log.state();
    let (next, kept) = (state.last.map_or(0, |p| p.index + 1), log.usage().entries);
    let entries = log.read(next - kept, next, usize::MAX).unwrap();
    (state, entries)
}

/// The calls made on a disk before it died and how many of them, in order, were acknowledged.
struct Life {
    calls: Vec<Call>,
    acked: usize,
}

/// Makes random calls until the disk dies or `count` are made; some are waited for, some pile up.
fn live(
    dice: &mut Dice,
    disk: &FaultDisk,
    base: &MemoryLog,
    count: u64,
    term: &mut u64,
) -> Option<Life> {
    let log = if dice.below(2) == 0 {
        open(disk)
    } else {
        open_restless(disk)
    }
    .ok()?;
    let acked = Arc::new(Mutex::new(0));
    let (done, acks) = mpsc::channel();
    let mut life = Life {
        calls: Vec::new(),
        acked: 0,
    };
    let mut under_way = 0;
    for _ in 0..count {
        let call = random_call(dice, base, term);
        let number = life.calls.len() + 1;
        let (acked, done) = (Arc::clone(&acked), done.clone());
        let flushed = Box::new(move |outcome: io::Result<()>| {
            if outcome.is_ok() {
                *acked.lock() = number;
            }
            let _ = done.send(outcome.is_ok());
        });
        if call.on(&log, flushed).is_err() {
            break;
        }
        call.on(base, Box::new(|_| ())).unwrap();
        under_way += u64::from(!matches!(call, Call::Committed(_)));
        life.calls.push(call);
        // Sometimes everything so far is waited for, sometimes calls pile up.
        let patience = if dice.below(3) == 0 { under_way } else { 0 };
        for _ in 0..patience {
            under_way -= 1;
            let _ = acks.recv();
        }
    }
    drop(log);
    life.acked = *acked.lock();
    Some(life)
}

/// The state after `calls` on top of `base`.
fn replay(base: &(LogState, Vec<LogEntry>), calls: &[Call]) -> MemoryLog {
    let log = MemoryLog::new();
    let (state, entries) = base;
    if let Some(purged) = state.purged {
        log.purge(purged, Box::new(|_| ())).unwrap();
    }
    log.append(entries.clone(), Box::new(|_| ())).unwrap();
    log.save_vote(state.vote.clone().unwrap_or_default(), Box::new(|_| ()))
        .unwrap();
    log.save_committed(state.committed).unwrap();
    for call in calls {
        call.on(&log, Box::new(|_| ())).unwrap();
    }
    log
}

/// Without the vote's absence and the committed position, which may lag.
fn comparable(log: &dyn LogStore) -> (LogState, Vec<LogEntry>) {
    let (mut state, entries) = picture(log);
    state.vote.get_or_insert_default();
    state.committed = None;
    (state, entries)
}

/// After a cut the log must equal the model after some number of calls, not fewer than were acknowledged.
///
/// One append may be kept in part: its entries are separate records.
fn check_survivor(log: &Wal, base: &(LogState, Vec<LogEntry>), life: &Life, seed: u64) {
    let found = comparable(log);
    let last_found = found.0.last;
    for kept in life.acked..=life.calls.len() {
        if comparable(&replay(base, &life.calls[..kept])) == found {
            return;
        }
        let Some(Call::Append(entries)) = life.calls.get(kept) else {
            continue;
        };
        for part in 1..entries.len() {
            let mut calls = life.calls[..kept].to_vec();
            calls.push(Call::Append(entries[..part].to_vec()));
            if comparable(&replay(base, &calls)) == found {
                return;
            }
        }
    }
    panic!(
        "seed {seed}: no number of calls from {} to {} explains last {last_found:?}; calls {:#?}",
        life.acked,
        life.calls.len(),
        life.calls
            .iter()
            .map(|c| format!("{c:?}").chars().take(120).collect::<String>())
            .collect::<Vec<_>>()
    );
}

#[test]
fn power_cuts_lose_nothing_acknowledged_and_never_prevent_opening() {
    for seed in rounds(400) {
        let mut dice = Dice::new(seed + 1);
        let mut disk = FaultDisk::new();
        let mut base = (LogState::default(), Vec::new());
        let mut term = 1;
        for cut in 0..6 {
            disk.plan(FaultPlan {
                dies_at_change: Some(dice.below(60)),
                ..FaultPlan::default()
            });
            let model = replay(&base, &[]);
            let life = live(&mut dice, &disk, &model, 60, &mut term).unwrap_or(Life {
                calls: Vec::new(),
                acked: 0,
            });
            if dice.below(3) == 0 {
                // Only the process died: what it wrote is still there, not yet durable.
                disk.plan(FaultPlan::default());
            } else {
                disk = disk.after_power_cut(seed * 31 + cut);
            }
            let log = open(&disk).unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: {e}"));
            check_survivor(&log, &base, &life, seed);
            base = picture(&log);
            let committed = base.0.committed;
            assert!(
                committed.is_none_or(|c| base.0.last.is_some_and(|l| l.index >= c.index)),
                "seed {seed}"
            );
            drop(log);
        }
    }
}

#[test]
fn every_change_is_survived_by_a_cut_right_there() {
    // One fixed story that rotates, truncates, purges and recycles; the power goes at each change in turn.
    let story = |dice: &mut Dice, disk: &FaultDisk| {
        let mut term = 1;
        live(dice, disk, &MemoryLog::new(), 50, &mut term)
    };
    let whole = FaultDisk::new();
    whole.plan(FaultPlan::default());
    let _ = story(&mut Dice::new(77), &whole);
    let changes = whole.changes();
    assert!(changes > 100, "the story made {changes} changes only");
    let base = (LogState::default(), Vec::new());
    for change in 0..changes {
        for seed in 0..3 {
            let disk = FaultDisk::new();
            disk.plan(FaultPlan {
                dies_at_change: Some(change),
                ..FaultPlan::default()
            });
            let life = story(&mut Dice::new(77), &disk).unwrap_or(Life {
                calls: Vec::new(),
                acked: 0,
            });
            let log = open(&disk.after_power_cut(seed))
                .unwrap_or_else(|e| panic!("change {change}, seed {seed}: {e}"));
            check_survivor(&log, &base, &life, seed);
        }
    }
}

/// A log with several segments, closed in good order: its files and what it holds.
fn sample() -> (BTreeMap<String, Vec<u8>>, (LogState, Vec<LogEntry>)) {
    let disk = FaultDisk::new();
    let log = open(&disk).unwrap();
    let mut dice = Dice::new(5);
    let (done, waits) = mpsc::channel();
    let tell = || -> weft_raft::log::Flushed {
        let done = done.clone();
        Box::new(move |outcome| done.send(outcome).unwrap())
    };
    log.save_vote(Bytes::from_static(b"a vote"), tell())
        .unwrap();
    for index in 0..120 {
        let body = vec![index as u8; 40 + dice.below(300) as usize];
        let kind = EntryKind::Normal;
        log.append(
            vec![LogEntry {
                position: at(1, index),
                kind,
                body: body.into(),
            }],
            tell(),
        )
        .unwrap();
        waits.recv().unwrap().unwrap();
    }
    log.truncate_after(Some(at(1, 109)), tell()).unwrap();
    log.save_committed(Some(at(1, 100))).unwrap();
    log.purge(at(1, 30), tell()).unwrap();
    waits.iter().take(3).for_each(|outcome| outcome.unwrap());
    let kept = picture(&log);
    drop(log);
    (disk.contents(), kept)
}

/// Opens damaged files and reads everything back.
fn reopen(files: &BTreeMap<String, Vec<u8>>) -> Result<(LogState, Vec<LogEntry>), LogError> {
    open(&FaultDisk::of(files)).map(|log| picture(&log))
}

fn names_file_and_offset(error: &LogError, file: &str) -> bool {
    let message = error.to_string();
    message.contains(file) && message.contains("offset") && message.contains("rejoin")
}

#[test]
fn flipped_bits_are_detected_or_harmless() {
    let (files, kept) = sample();
    let names: Vec<&String> = files.keys().collect();
    assert!(names.len() >= 4, "{names:?}");
    let (mut detected, mut harmless) = (0, 0);
    for seed in rounds(2_000) {
        let mut dice = Dice::new(seed + 1);
        let name = names[dice.below(names.len() as u64) as usize];
        let mut damaged = files.clone();
        let bytes = damaged.get_mut(name).unwrap();
        let bit = dice.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        match reopen(&damaged) {
            Ok(found) => {
                assert_eq!(
                    found, kept,
                    "seed {seed}: bit {bit} of {name} changed the log silently"
                );
                harmless += 1;
            }
            Err(e) => {
                assert!(
                    names_file_and_offset(&e, name) && e.must_rejoin(),
                    "seed {seed}: {e}"
                );
                detected += 1;
            }
        }
    }
    println!("{detected} detected, {harmless} harmless");
}

#[test]
fn each_live_byte_is_guarded() {
    let (files, kept) = sample();
    let mut guarded = 0;
    for (name, whole) in &files {
        for at in (0..whole.len()).step_by(5) {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[at] ^= 0x10;
            match reopen(&damaged) {
                Ok(found) => assert_eq!(found, kept, "byte {at} of {name}"),
                Err(_) => guarded += 1,
            }
        }
    }
    assert!(
        guarded * 5 > 20_000,
        "only {guarded} bytes of the sample are guarded"
    );
}

#[test]
fn shortened_files_are_detected() {
    let (files, kept) = sample();
    let names: Vec<&String> = files.keys().collect();
    for seed in rounds(400) {
        let mut dice = Dice::new(seed + 1);
        let name = names[dice.below(names.len() as u64) as usize];
        let mut damaged = files.clone();
        let bytes = damaged.get_mut(name).unwrap();
        bytes.truncate(dice.below(bytes.len() as u64) as usize);
        match reopen(&damaged) {
            Ok(found) => assert_eq!(found, kept, "seed {seed}: {name} shortened"),
            Err(e) => assert!(names_file_and_offset(&e, name), "seed {seed}: {e}"),
        }
    }
}

#[test]
fn a_missing_file_is_detected() {
    let (files, _) = sample();
    for name in files.keys().filter(|name| name.starts_with("segment-")) {
        let mut damaged = files.clone();
        damaged.remove(name);
        let error = reopen(&damaged)
            .err()
            .unwrap_or_else(|| panic!("{name} is missing and nobody noticed"));
        assert!(matches!(error, LogError::Missing { .. }), "{error}");
        assert!(names_file_and_offset(&error, name), "{name}: {error}");
    }
}

/// A log that was not closed, its disk as a killed process leaves it.
fn killed(entries: u64, each_synced: bool) -> BTreeMap<String, Vec<u8>> {
    let disk = FaultDisk::new();
    let log = open(&disk).unwrap();
    let (done, waits) = mpsc::channel();
    for index in 0..entries {
        let (body, kind, done) = (
            Bytes::from_static(&[9; 100]),
            EntryKind::Normal,
            done.clone(),
        );
        let entry = LogEntry {
            position: at(1, index),
            kind,
            body,
        };
        log.append(vec![entry], Box::new(move |o| done.send(o).unwrap()))
            .unwrap();
        if each_synced {
            waits.recv().unwrap().unwrap();
        }
    }
    if !each_synced {
        waits.iter().take(entries as usize).for_each(|o| o.unwrap());
    }
    let files = disk.contents();
    drop(log);
    files
}

/// Size in the file of a record with the 100-byte body of [`killed`].
const RECORD: usize = 160;
const FIRST: usize = 4_096;

#[test]
fn a_torn_tail_is_dropped() {
    let mut files = killed(3, true);
    let segment = files.get_mut("segment-0000000000000001.wal").unwrap();
    segment[FIRST + 2 * RECORD + 90] ^= 1;
    let disk = FaultDisk::of(&files);
    let log = open(&disk).unwrap();
    assert_eq!(log.state().last, Some(at(1, 1)));
    drop(log);
    let log = open(&disk).unwrap();
    assert_eq!(log.state().last, Some(at(1, 1)), "and stays dropped");
}

#[test]
fn what_a_torn_write_left_behind_is_never_taken_for_new() {
    // Records of exactly one page, so that what follows the first lies beyond its padding.
    let page = |index: u64| LogEntry {
        position: at(1, index),
        kind: EntryKind::Normal,
        body: vec![3; 4_040].into(),
    };
    let append = |log: &Wal, entries: Vec<LogEntry>| {
        let (done, waits) = mpsc::channel();
        log.append(entries, Box::new(move |o| done.send(o).unwrap()))
            .unwrap();
        waits.recv().unwrap().unwrap();
    };
    let options = || WalOptions {
        segment_bytes: 64 << 10,
        ..options()
    };
    let disk = FaultDisk::new();
    let log = Wal::open(Arc::new(disk.clone()), options()).unwrap();
    append(&log, (0..4).map(page).collect());
    let mut files = disk.contents();
    files.get_mut("segment-0000000000000001.wal").unwrap()[FIRST + 90] ^= 1;
    let disk = FaultDisk::of(&files);
    let log = Wal::open(Arc::new(disk.clone()), options()).unwrap();
    assert_eq!(log.state().last, None);
    append(&log, vec![page(0)]);
    let reopened = Wal::open(Arc::new(FaultDisk::of(&disk.contents())), options()).unwrap();
    assert_eq!(reopened.state().last, Some(at(1, 0)));
}

#[test]
fn a_bad_record_before_a_later_batch_is_a_hole() {
    let mut files = killed(3, true);
    let name = "segment-0000000000000001.wal";
    files.get_mut(name).unwrap()[FIRST + RECORD + 90] ^= 1;
    let error = reopen(&files).unwrap_err();
    assert!(
        matches!(&error, LogError::Corrupt { offset, .. } if *offset == (FIRST + RECORD) as u64),
        "{error}"
    );
    files.get_mut(name).unwrap()[FIRST + RECORD..FIRST + 2 * RECORD].fill(0);
    let error = reopen(&files).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "zeroed: {error}");
}

#[test]
fn a_committed_position_ahead_of_the_log_waits_for_its_entry() {
    // A snapshot's position may be told before the purge that moves the log there.
    let disk = FaultDisk::new();
    let log = open(&disk).unwrap();
    log.save_committed(Some(at(1, 9))).unwrap();
    let vote = || {
        let (done, waits) = mpsc::channel();
        log.save_vote(
            Bytes::from_static(b"v"),
            Box::new(move |o| done.send(o).unwrap()),
        )
        .unwrap();
        waits.recv().unwrap().unwrap();
    };
    vote();
    assert_eq!(
        open(&disk.after_power_cut(1)).unwrap().state().committed,
        None
    );
    log.purge(at(1, 9), Box::new(|_| ())).unwrap();
    vote();
    assert_eq!(
        open(&disk.after_power_cut(1)).unwrap().state().committed,
        Some(at(1, 9))
    );
}

#[test]
fn two_logs_do_not_mix() {
    let (mut files, _) = sample();
    let disk = FaultDisk::new();
    let log = Wal::open(
        Arc::new(disk.clone()),
        WalOptions {
            salt: 99,
            ..options()
        },
    )
    .unwrap();
    drop(log);
    let foreign = disk
        .contents()
        .remove("segment-0000000000000001.wal")
        .unwrap();
    let newest = files
        .keys()
        .rfind(|name| name.starts_with("segment-"))
        .unwrap()
        .clone();
    files.insert(newest.clone(), foreign);
    let error = reopen(&files).unwrap_err();
    assert!(names_file_and_offset(&error, &newest), "{error}");
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let (mut files, _) = sample();
    let name = files.keys().next().unwrap().clone();
    let bytes = files.get_mut(&name).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..96]);
    bytes[96..100].copy_from_slice(&crc.to_le_bytes());
    let error = reopen(&files).unwrap_err();
    assert!(
        matches!(error, LogError::Version { found: 9, .. }),
        "{error}"
    );
}

/// Appends until something fails; returns how many were acknowledged and the error.
fn append_until_error(log: &Wal, max: u64) -> (u64, Option<String>) {
    for index in 0..max {
        let (done, waits) = mpsc::channel();
        let (kind, body) = (EntryKind::Normal, Bytes::from_static(&[1; 300]));
        let flushed = Box::new(move |outcome: io::Result<()>| done.send(outcome).unwrap());
        let outcome = log.append(
            vec![LogEntry {
                position: at(1, index),
                kind,
                body,
            }],
            flushed,
        );
        let outcome = outcome.and_then(|()| waits.recv().unwrap());
        if let Err(e) = outcome {
            return (index, Some(e.to_string()));
        }
    }
    (max, None)
}

#[test]
fn a_failed_write_or_sync_ends_the_log() {
    let mut ended = 0;
    for number in 0..60 {
        for plan in [
            FaultPlan {
                write_error_at: Some(number),
                ..FaultPlan::default()
            },
            FaultPlan {
                sync_error_at: Some(number),
                ..FaultPlan::default()
            },
        ] {
            let disk = FaultDisk::new();
            let log = open(&disk).unwrap();
            disk.plan(plan);
            let (acked, error) = append_until_error(&log, 200);
            let Some(error) = error else {
                // It hit the helper, whose half-made spare file is simply not used.
                assert_eq!(picture(&log).0.last, Some(at(1, acked - 1)));
                continue;
            };
            ended += 1;
            assert!(error.contains("os error 5"), "{plan:?}: {error}");
            let poisoned = [
                log.append(Vec::new(), Box::new(|_| ())).unwrap_err(),
                log.save_vote(Bytes::new(), Box::new(|_| ())).unwrap_err(),
                log.purge(at(1, 0), Box::new(|_| ())).unwrap_err(),
                log.truncate_after(None, Box::new(|_| ())).unwrap_err(),
                log.save_committed(None).unwrap_err(),
                log.read(0, 1, 1).unwrap_err(),
            ];
            for refused in poisoned {
                assert!(
                    matches!(LogError::of(&refused), Some(LogError::Poisoned { .. })),
                    "{plan:?}: {refused}"
                );
            }
            drop(log);
            let survivor = open(&disk.after_power_cut(number)).unwrap();
            let kept = survivor.state().last.map_or(0, |p| p.index + 1);
            assert!(kept >= acked, "{plan:?}: {acked} acknowledged, {kept} kept");
        }
    }
    assert!(ended > 60, "only {ended} of 120 faults hit the writer");
}

#[test]
fn a_full_disk_ends_the_log_and_loses_nothing() {
    let disk = FaultDisk::new();
    disk.plan(FaultPlan {
        capacity_bytes: Some(40 << 10),
        ..FaultPlan::default()
    });
    let log = open(&disk).unwrap();
    let before = log.space().unwrap();
    assert!(!before.below_percent(5), "{before:?}");
    let (acked, error) = append_until_error(&log, 1_000);
    assert!(acked > 20 && error.is_some(), "{acked} {error:?}");
    drop(log);
    disk.plan(FaultPlan::default());
    let log = open(&disk).unwrap();
    assert_eq!(log.state().last, Some(at(1, acked - 1)));
}

#[test]
fn stats_count_what_was_done() {
    let log = open(&FaultDisk::new()).unwrap();
    let (acked, _) = append_until_error(&log, 50);
    let stats = log.stats();
    assert_eq!(
        (stats.entries, stats.calls, stats.body_bytes),
        (acked, acked, acked * 300)
    );
    assert!(
        stats.fsyncs >= 50 && stats.written_bytes > stats.body_bytes,
        "{stats:?}"
    );
    assert_eq!(stats.fsync_buckets.iter().sum::<u64>(), stats.fsyncs);
    assert_eq!(stats.batch_buckets.iter().sum::<u64>(), stats.batches);
}
