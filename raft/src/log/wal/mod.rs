//! The default log: segments of checksummed records, written by one thread.
//!
//! Owns: how the parts below come together, and the options.
//! Never: knows a record's bytes (`format`), judges a file (`recover`), writes one (`engine`).
//!
//! Entries, vote, committed, truncate and purge records share one sequence of
//! segments, so what the caller did in order is found in order. Everything queued
//! while a sync runs goes into the next one: the busier, the cheaper.

mod engine;
mod format;
mod reader;
mod recover;
mod spares;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_proto::clock::{Clock, SystemClock};

use self::engine::{Pending, WalEngine};
pub(super) use self::format::entry_kind;
use self::reader::{Files, Reader};
use self::spares::Spares;
use super::batching::{Front, Limits};
use super::disk::{Disk, DiskSpace, FileDisk};
use super::error::LogError;
use super::stats::{LogStats, StatsReading};
use super::{Flushed, LogEntry, LogState, LogStore, LogUsage, Position};

/// Largest body of one entry, in bytes.
pub const MAX_BODY_BYTES: usize = 256 << 20;
/// Smallest segment, in bytes; only tests want it.
pub const SEGMENT_BYTES_MIN: u64 = 8_192;
/// Largest segment, in bytes: offsets within one have 32 bits, and one may outgrow this by one record.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How a [`Wal`] works.
#[derive(Clone)]
pub struct WalOptions {
    /// Length of a segment file. Default 64 MiB, between [`SEGMENT_BYTES_MIN`] and [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u64,
    /// Bytes of the newest bodies kept in memory. Default 16 MiB; nothing is allocated ahead.
    pub cache_bytes: usize,
    /// How long the log is idle before it marks its end. Default 500 ms.
    pub idle_after: Duration,
    /// A random number for a new log; an existing one keeps its own. Default 0.
    /// With it, no body can be made to look like a record of this log.
    pub salt: u64,
    /// Times the syncs.
    pub clock: Arc<dyn Clock>,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            cache_bytes: 16 << 20,
            idle_after: Duration::from_millis(500),
            salt: 0,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// The write-ahead log. Closes in good order when dropped.
pub struct Wal {
    front: Front,
    disk: Arc<dyn Disk>,
    stats: Arc<LogStats>,
}

impl Wal {
    /// Opens the log in `dir`, or begins one there.
    ///
    /// A write that a power cut left unfinished is dropped and logged. Errors: [`LogError`];
    /// when [`LogError::must_rejoin`], this server's log must not be used to vote.
    pub fn open_dir(dir: &Path, options: WalOptions) -> Result<Self, LogError> {
        let disk = FileDisk::new(dir).map_err(|source| LogError::Io {
            file: dir.display().to_string(),
            operation: "create",
            source,
        })?;
        Self::open(Arc::new(disk), options)
    }

    /// Opens the log on `disk`; see [`Wal::open_dir`].
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Self, LogError> {
        let lock = disk.lock().map_err(|e| opening(&*disk, "lock", e))?;
        let found = recover::find(&*disk)?;
        let (disk_bytes_end, torn) = (found.segments.last().map(|s| s.end), found.torn);
        let next_number = clear(&*disk, &found).map_err(|e| opening(&*disk, "clean up", e))?;
        let salt = found
            .segments
            .first()
            .map_or(options.salt, |s| s.header.salt);
        let files = Arc::new(Files::default());
        for segment in &found.segments {
            files.insert(segment.header.epoch, Arc::clone(&segment.file));
        }
        let stats = Arc::new(LogStats::default());
        let mut engine = WalEngine {
            disk: Arc::clone(&disk),
            clock: options.clock,
            stats: Arc::clone(&stats),
            files: Arc::clone(&files),
            spares: Spares::new(Arc::clone(&disk), next_number),
            segment_bytes: options
                .segment_bytes
                .clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            salt,
            segments: found.segments.into(),
            tail: found.recovered.tail.clone(),
            synced: disk_bytes_end.unwrap_or(0),
            pending: Pending::default(),
            unmarked: torn.is_some(),
            untidy: true,
            _lock: lock,
        };
        engine.begin().map_err(|e| opening(&*disk, "begin", e))?;
        let reader = Reader {
            disk: Arc::clone(&disk),
            files,
            salt,
        };
        let limits = Limits {
            cache_bytes: options.cache_bytes,
            idle_after: options.idle_after,
        };
        let (engine, reader) = (Box::new(engine), Box::new(reader));
        let front = Front::start(
            "raft-log",
            engine,
            reader,
            found.recovered,
            limits,
            Arc::clone(&stats),
        )
        .map_err(|e| opening(&*disk, "start the writer of", e))?;
        Ok(Self { front, disk, stats })
    }

    /// The counters now.
    #[must_use]
    pub fn stats(&self) -> StatsReading {
        self.stats.reading()
    }

    /// Room on the file system below the log.
    pub fn space(&self) -> io::Result<DiskSpace> {
        self.disk.space()
    }
}

/// Makes what recovery found the durable truth: stale bytes zeroed, leftovers gone, the tail synced.
///
/// The tail may so far be in the page cache only (the process died, the machine did not); it is
/// about to be reported as durable. Returns a number above that of every spare file.
fn clear(disk: &dyn Disk, found: &recover::Found) -> io::Result<u64> {
    if let Some(segment) = found.segments.last() {
        if let Some((from, to)) = found.torn {
            let zeros = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
            segment.file.write_at(from, &mut [IoSlice::new(&zeros)])?;
        }
        segment.file.sync_data()?;
    }
    for name in &found.leftovers {
        disk.remove(name)?;
    }
    if !found.segments.is_empty() || !found.leftovers.is_empty() {
        disk.sync_dir()?;
    }
    let spares = found
        .leftovers
        .iter()
        .filter_map(|name| recover::spare_number(name));
    Ok(spares.max().unwrap_or(0))
}

fn opening(disk: &dyn Disk, operation: &'static str, source: io::Error) -> LogError {
    match source.downcast::<LogError>() {
        Ok(log) => log,
        Err(source) => LogError::Io {
            file: disk.path("."),
            operation,
            source,
        },
    }
}

impl LogStore for Wal {
    fn state(&self) -> LogState {
        self.front.state()
    }

    fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) -> io::Result<()> {
        self.front.append(entries, flushed)
    }

    fn truncate_after(&self, last: Option<Position>, flushed: Flushed) -> io::Result<()> {
        self.front.truncate_after(last, flushed)
    }

    fn purge(&self, up_to: Position, flushed: Flushed) -> io::Result<()> {
        self.front.purge(up_to, flushed)
    }

    fn save_vote(&self, vote: Bytes, flushed: Flushed) -> io::Result<()> {
        self.front.save_vote(vote, flushed)
    }

    fn save_committed(&self, committed: Option<Position>) -> io::Result<()> {
        self.front.save_committed(committed)
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        self.front.read(start, end, max_bytes)
    }

    fn usage(&self) -> LogUsage {
        self.front.usage()
    }
}
