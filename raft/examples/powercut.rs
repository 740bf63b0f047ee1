//! The two halves of a power-cut test: `powercut write DIR --store wal|sled|control --seconds N`
//! prints each sequence number once it is durable, `powercut verify DIR --store …` prints how far
//! the recovered store reaches. `tests/powercut.sh` cuts the power in between.
//!
//! Entries have index = sequence number, so a hole shows as an error. The writer appends in
//! bursts, purges now and then and votes now and then, so that segments rotate and are recycled.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use weft_proto::clock::{Clock, SystemClock};
use weft_raft::log::{
    EntryKind, LogEntry, LogStore, Position, SledLog, SledOptions, Wal, WalOptions,
};

/// Small segments, so that a run of seconds rotates many times.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Appends under way at once.
const IN_FLIGHT_MAX: u64 = 8;
/// Entries kept behind the newest.
const KEEP: u64 = 4_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["write", dir, "--store", store, "--seconds", seconds] => seconds
            .parse()
            .map_err(io::Error::other)
            .and_then(|s| write(Path::new(dir), store, Duration::from_secs(s))),
        ["verify", dir, "--store", store] => verify(Path::new(dir), store),
        _ => Err(io::Error::other(
            "usage: powercut write|verify DIR --store wal|sled|control [--seconds N]",
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("powercut: {e}");
            ExitCode::FAILURE
        }
    }
}

fn open(dir: &Path, store: &str) -> io::Result<Box<dyn LogStore>> {
    Ok(match store {
        "wal" => {
            let options = WalOptions {
                segment_bytes: SEGMENT_BYTES,
                cache_bytes: 64 << 10,
                ..WalOptions::default()
            };
            Box::new(Wal::open_dir(dir, options)?)
        }
        "sled" => Box::new(SledLog::open_dir(
            dir,
            SledOptions {
                cache_bytes: 64 << 10,
                ..SledOptions::default()
            },
        )?),
        other => return Err(io::Error::other(format!("unknown store {other}"))),
    })
}

fn position(index: u64) -> Position {
    Position {
        term: 1,
        leader: 1,
        index,
    }
}

/// Bodies from 0 to about 1,500 bytes, told apart by their sequence number.
fn body(sequence: u64) -> Bytes {
    let len = usize::try_from(sequence * 7_919 % 1_500).expect("below 1500");
    let mut body = vec![(sequence % 251) as u8; len];
    let number = sequence.to_le_bytes();
    let head = len.min(8);
    body[..head].copy_from_slice(&number[..head]);
    body.into()
}

fn write(dir: &Path, store: &str, time: Duration) -> io::Result<()> {
    let clock = SystemClock::new();
    if store == "control" {
        return write_control(dir, || clock.monotonic() < time);
    }
    let log = open(dir, store)?;
    let (done, acks) = mpsc::channel::<io::Result<u64>>();
    let mut stdout = io::stdout().lock();
    // A second writer goes on where the first one was cut.
    let mut next = log.state().last.map_or(0, |p| p.index + 1);
    let mut acked = next;
    while clock.monotonic() < time {
        while next - acked < IN_FLIGHT_MAX {
            let burst = 1 + next % 3;
            let last = next + burst - 1;
            let entries = (next..=last)
                .map(|s| LogEntry {
                    position: position(s),
                    kind: EntryKind::Normal,
                    body: body(s),
                })
                .collect();
            let done = done.clone();
            log.append(
                entries,
                Box::new(move |o| done.send(o.map(|()| last)).unwrap_or(())),
            )?;
            if next % 1_000 < burst && next > KEEP {
                log.purge(position(next - KEEP), Box::new(|_| ()))?;
                log.save_vote(
                    Bytes::copy_from_slice(&next.to_le_bytes()),
                    Box::new(|_| ()),
                )?;
            }
            next += burst;
        }
        let durable = acks.recv().map_err(io::Error::other)??;
        log.save_committed(Some(position(durable)))?;
        acked = durable + 1;
        writeln!(stdout, "{durable}")?;
        stdout.flush()?;
    }
    Ok(())
}

/// Appends eight bytes at a time, each followed by fdatasync: the instrument's own error.
fn write_control(dir: &Path, go_on: impl Fn() -> bool) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("control"))?;
    File::open(dir)?.sync_all()?;
    let mut stdout = io::stdout().lock();
    for sequence in 0_u64.. {
        if !go_on() {
            break;
        }
        file.write_all(&sequence.to_le_bytes())?;
        file.sync_data()?;
        writeln!(stdout, "{sequence}")?;
        stdout.flush()?;
    }
    Ok(())
}

fn verify(dir: &Path, store: &str) -> io::Result<()> {
    if store == "control" {
        let mut bytes = Vec::new();
        File::open(dir.join("control"))?.read_to_end(&mut bytes)?;
        let numbers = bytes
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes")));
        let good = numbers
            .zip(0..)
            .take_while(|(found, expected)| found == expected)
            .count();
        println!("{}", i64::try_from(good).map_err(io::Error::other)? - 1);
        return Ok(());
    }
    let log = open(dir, store)?;
    let state = log.state();
    let first = state.purged.map_or(0, |p| p.index + 1);
    let end = state.last.map_or(0, |p| p.index + 1);
    let mut at = first;
    while at < end {
        let entries = log.read(at, end, 1 << 20)?;
        for entry in entries {
            if entry.position != position(at) || entry.body != body(at) {
                return Err(io::Error::other(format!(
                    "entry {at} is not what was written: {:?}",
                    entry.position
                )));
            }
            at += 1;
        }
    }
    println!("{}", i64::try_from(end).map_err(io::Error::other)? - 1);
    Ok(())
}
