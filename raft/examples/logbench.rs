//! What a durable append costs: `logbench DIR [SECONDS]` runs the stores and a plain-fdatasync
//! control one after another, several rounds, and prints medians.
//!
//! A row is one way of appending: `batch` entries of 256 bytes per append with one append under
//! way, or `xN` single-entry appends under way at once, as N clients would have them.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use weft_proto::clock::{Clock, SystemClock};
use weft_raft::log::{
    EntryKind, LogEntry, LogStore, Position, SledLog, SledOptions, Wal, WalOptions,
};

const BODY_BYTES: usize = 256;
const ROUNDS: usize = 3;
const STORES: [&str; 3] = ["control", "wal", "sled"];
/// Entries per append, appends under way.
const SHAPES: [(u64, usize); 5] = [(1, 1), (16, 1), (256, 1), (1, 16), (1, 64)];
const KEEP: u64 = 100_000;

/// One cell's figures.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    entries_per_second: f64,
    p50_micros: f64,
    p99_micros: f64,
    cpu_micros_per_commit: f64,
    syncs_per_second: f64,
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = args
        .first()
        .ok_or_else(|| io::Error::other("usage: logbench DIR [SECONDS]"))?;
    let seconds = args
        .get(1)
        .map_or(Ok(1.0), |s| s.parse::<f64>())
        .map_err(io::Error::other)?;
    let time = Duration::from_secs_f64(seconds);
    println!(
        "{:<8} {:>10} {:>12} {:>9} {:>9} {:>14} {:>9}",
        "store", "shape", "entries/s", "p50 us", "p99 us", "CPU us/append", "syncs/s"
    );
    for (batch, flight) in SHAPES {
        let mut cells = [const { Vec::new() }; STORES.len()];
        for round in 0..ROUNDS {
            for (store, cell) in STORES.iter().zip(&mut cells) {
                let dir = Path::new(dir).join(format!("{store}-{batch}-{flight}-{round}"));
                cell.push(measure(&dir, store, batch, flight, time)?);
                std::fs::remove_dir_all(&dir)?;
            }
        }
        for (store, cell) in STORES.iter().zip(&cells) {
            let f = medians(cell);
            let shape = if flight == 1 {
                format!("b={batch}")
            } else {
                format!("x{flight}")
            };
            println!(
                "{store:<8} {shape:>10} {:>12.0} {:>9.0} {:>9.0} {:>14.1} {:>9.0}",
                f.entries_per_second,
                f.p50_micros,
                f.p99_micros,
                f.cpu_micros_per_commit,
                f.syncs_per_second
            );
        }
    }
    reopen(&Path::new(dir).join("reopen"))
}

/// How long a log of 100,000 entries takes to open, its files in the page cache.
fn reopen(dir: &Path) -> io::Result<()> {
    let clock = SystemClock::new();
    let body = Bytes::from(vec![7; BODY_BYTES]);
    let log = Wal::open_dir(dir, WalOptions::default())?;
    for first in (0..KEEP).step_by(1_000) {
        let position = |index| Position {
            term: 1,
            leader: 1,
            index,
        };
        let entries = (first..first + 1_000)
            .map(|index| LogEntry {
                position: position(index),
                kind: EntryKind::Normal,
                body: body.clone(),
            })
            .collect();
        log.append(entries, Box::new(|_| ()))?;
    }
    drop(log);
    for _ in 0..ROUNDS {
        let (began, cpu_before) = (clock.monotonic(), cpu());
        let log = Wal::open_dir(dir, WalOptions::default())?;
        let (took, cpu_took) = (clock.monotonic() - began, cpu() - cpu_before);
        let (entries, ms, cpu_ms) = (
            log.usage().entries,
            took.as_secs_f64() * 1e3,
            cpu_took.as_secs_f64() * 1e3,
        );
        println!("reopen wal with {entries} entries: {ms:.1} ms, {cpu_ms:.1} ms CPU");
    }
    std::fs::remove_dir_all(dir)
}

fn medians(cell: &[Figures]) -> Figures {
    let median = |pick: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = cell.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        entries_per_second: median(|f| f.entries_per_second),
        p50_micros: median(|f| f.p50_micros),
        p99_micros: median(|f| f.p99_micros),
        cpu_micros_per_commit: median(|f| f.cpu_micros_per_commit),
        syncs_per_second: median(|f| f.syncs_per_second),
    }
}

fn measure(
    dir: &Path,
    store: &str,
    batch: u64,
    flight: usize,
    time: Duration,
) -> io::Result<Figures> {
    std::fs::create_dir_all(dir)?;
    match store {
        "wal" => {
            let log = Wal::open_dir(dir, WalOptions::default())?;
            run(&log, batch, flight, time, || log.stats().fsyncs)
        }
        "sled" => {
            let log = SledLog::open_dir(dir, SledOptions::default())?;
            run(&log, batch, flight, time, || log.stats().fsyncs)
        }
        _ => control(dir, batch, flight, time),
    }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        spent.tv_sec.unsigned_abs(),
        u32::try_from(spent.tv_nsec).unwrap_or(0),
    )
}

fn figures(
    latencies: &mut [Duration],
    entries: u64,
    took: Duration,
    cpu: Duration,
    syncs: u64,
) -> Figures {
    latencies.sort_unstable();
    let at = |part: f64| {
        let slot = (latencies.len() as f64 * part) as usize;
        latencies.get(slot).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    Figures {
        entries_per_second: entries as f64 / took.as_secs_f64(),
        p50_micros: at(0.5),
        p99_micros: at(0.99),
        cpu_micros_per_commit: cpu.as_secs_f64() * 1e6 / latencies.len().max(1) as f64,
        syncs_per_second: syncs as f64 / took.as_secs_f64(),
    }
}

fn run(
    log: &dyn LogStore,
    batch: u64,
    flight: usize,
    time: Duration,
    syncs: impl Fn() -> u64,
) -> io::Result<Figures> {
    let clock = SystemClock::new();
    let body = Bytes::from(vec![7; BODY_BYTES]);
    let (done, acks) = mpsc::channel();
    let (mut next, mut purged) = (0, 0);
    let mut latencies = Vec::new();
    let mut under_way = 0;
    let (cpu_before, syncs_before) = (cpu(), syncs());
    while clock.monotonic() < time || under_way > 0 {
        while under_way < flight && clock.monotonic() < time {
            let entries = (next..next + batch)
                .map(|index| LogEntry {
                    position: Position {
                        term: 1,
                        leader: 1,
                        index,
                    },
                    kind: EntryKind::Normal,
                    body: body.clone(),
                })
                .collect();
            let (done, began) = (done.clone(), clock.monotonic());
            log.append(
                entries,
                Box::new(move |outcome| done.send((outcome, began)).unwrap_or(())),
            )?;
            next += batch;
            under_way += 1;
        }
        if next > purged + 2 * KEEP {
            purged = next - KEEP;
            log.purge(
                Position {
                    term: 1,
                    leader: 1,
                    index: purged,
                },
                Box::new(|_| ()),
            )?;
        }
        if under_way > 0 {
            let (outcome, began) = acks.recv().map_err(io::Error::other)?;
            outcome?;
            latencies.push(clock.monotonic() - began);
            under_way -= 1;
        }
    }
    let took = clock.monotonic();
    Ok(figures(
        &mut latencies,
        next,
        took,
        cpu() - cpu_before,
        syncs() - syncs_before,
    ))
}

/// Writes to a file of zeros and syncs it, on the caller's thread: what the disk itself can do.
fn control(dir: &Path, batch: u64, flight: usize, time: Duration) -> io::Result<Figures> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.join("control"))?;
    let size = 64_u64 << 20;
    let chunk = vec![0; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        file.write_all_at(&chunk, at)?;
    }
    file.sync_all()?;
    let clock = SystemClock::new();
    let per_write = batch * flight as u64;
    let data = vec![7; BODY_BYTES * usize::try_from(per_write).map_err(io::Error::other)?];
    let (mut at, mut entries) = (0, 0);
    let mut latencies = Vec::new();
    let cpu_before = cpu();
    while clock.monotonic() < time {
        let began = clock.monotonic();
        at = if at + data.len() as u64 > size { 0 } else { at };
        file.write_all_at(&data, at)?;
        rustix::fs::fdatasync(&file)?;
        at += data.len() as u64;
        entries += per_write;
        latencies.extend(std::iter::repeat_n(clock.monotonic() - began, flight));
    }
    let took = clock.monotonic();
    let syncs = (latencies.len() / flight) as u64;
    Ok(figures(
        &mut latencies,
        entries,
        took,
        cpu() - cpu_before,
        syncs,
    ))
}
