//! The second log: the same promises kept on top of sled.
//!
//! Owns: the keys, the chunking, and the sync sled itself does not do.
//! Never: trusts `flush` alone. On Linux sled 0.34 ends it in `sync_file_range`, which neither
//! flushes the device's cache nor writes metadata, so a flushed write may be lost with the
//! power; every commit is followed by an `fdatasync` of the `db` file on a descriptor of ours.
//!
//! ```text
//! 'e' index(8, big-endian) chunk(4, big-endian) → chunk of an entry; the first one begins with
//!       crc(4) len(4) kind(1) term(8) leader(16), little-endian, crc over the rest and the body
//! 'm' name → vote, purged, committed
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sled::Batch as SledBatch;
use weft_proto::clock::{Clock, SystemClock};

use super::batching::{Batch, Engine, Fetch, Front, Limits, Op, Place, Recovered, Tail};
use super::disk::{Disk, DiskLock, DiskSpace, FileDisk, lock_dir};
use super::error::LogError;
use super::stats::{LogStats, StatsReading};
use super::{EntryKind, Flushed, LogEntry, LogState, LogStore, LogUsage, Position};

/// Bytes of body in one value. sled keeps up to 17 values in a page and moves pages above 128 KiB
/// to files of their own, which a sync of `db` does not reach.
const CHUNK_BYTES: usize = 4 << 10;
const HEAD_BYTES: usize = 33;
/// Removals applied at once.
const REMOVALS_MAX: usize = 4_096;
/// How often, and how long apart, sled's lock is tried.
const OPEN_ATTEMPTS: u32 = 200;
const OPEN_PAUSE: Duration = Duration::from_millis(25);
const VOTE: &[u8] = b"mvote";
const PURGED: &[u8] = b"mpurged";
const COMMITTED: &[u8] = b"mcommitted";

/// How a [`SledLog`] works.
#[derive(Clone)]
pub struct SledOptions {
    /// Bytes of the newest bodies kept in memory. Default 16 MiB; nothing is allocated ahead.
    pub cache_bytes: usize,
    /// sled's own page cache in bytes. Default 1 MiB.
    pub page_cache_bytes: u64,
    /// How long the log is idle before an unsaved committed position is written. Default 500 ms.
    pub idle_after: Duration,
    /// Times the syncs.
    pub clock: Arc<dyn Clock>,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            page_cache_bytes: 1 << 20,
            idle_after: Duration::from_millis(500),
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// A log in a sled database. Closes in good order when dropped.
pub struct SledLog {
    front: Front,
    disk: FileDisk,
    stats: Arc<LogStats>,
}

impl SledLog {
    /// Opens the log in `dir`, or begins one there.
    ///
    /// Errors: [`LogError`]; when [`LogError::must_rejoin`], this server's log must not be used to vote.
    pub fn open_dir(dir: &Path, options: SledOptions) -> Result<Self, LogError> {
        let failed = |operation: &'static str| {
            let file = dir.display().to_string();
            move |source: io::Error| match source.downcast::<LogError>() {
                Ok(log) => log,
                Err(source) => LogError::Io {
                    file,
                    operation,
                    source,
                },
            }
        };
        let disk = FileDisk::new(dir).map_err(failed("create"))?;
        let lock = lock_dir(dir).map_err(failed("lock"))?;
        let db = open_db(dir, options.page_cache_bytes)?;
        let store = Store {
            db,
            path: dir.join("db"),
        };
        let recovered = store.recover()?;
        let stats = Arc::new(LogStats::default());
        let file = File::open(&store.path).map_err(failed("open"))?;
        let mut engine = SledEngine {
            store: store.clone(),
            file,
            dir: dir.to_owned(),
            clock: options.clock,
            stats: Arc::clone(&stats),
            tail: recovered.tail.clone(),
            removed_below: 0,
            blobs_synced: BTreeSet::new(),
            _lock: lock,
        };
        engine.sync_everything().map_err(failed("sync"))?;
        let limits = Limits {
            cache_bytes: options.cache_bytes,
            idle_after: options.idle_after,
        };
        let front = Front::start(
            "raft-log-sled",
            Box::new(engine),
            Box::new(store),
            recovered,
            limits,
            Arc::clone(&stats),
        )
        .map_err(failed("start the writer of"))?;
        Ok(Self { front, disk, stats })
    }

    /// The counters now. sled does not tell what it writes: `written_bytes` counts keys and values.
    #[must_use]
    pub fn stats(&self) -> StatsReading {
        self.stats.reading()
    }

    /// Room on the file system below the log.
    pub fn space(&self) -> io::Result<DiskSpace> {
        self.disk.space()
    }
}

/// Opens the database. A handle dropped in this very process may linger in one of sled's threads
/// and hold sled's lock; ours, which keeps other processes out, is already held.
fn open_db(dir: &Path, page_cache_bytes: u64) -> Result<sled::Db, LogError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(page_cache_bytes)
        .flush_every_ms(None);
    let mut attempt = 0;
    loop {
        match config.open() {
            Err(sled::Error::Io(e))
                if attempt < OPEN_ATTEMPTS && e.to_string().contains("could not acquire lock") =>
            {
                attempt += 1;
                std::thread::sleep(OPEN_PAUSE);
            }
            other => return other.map_err(|e| open_error(dir, e)),
        }
    }
}

fn open_error(dir: &Path, error: sled::Error) -> LogError {
    let file = dir.join("db").display().to_string();
    match error {
        sled::Error::Corruption { at, .. } => {
            let offset = at.map_or(0, |pointer| pointer.lid());
            LogError::Corrupt {
                file,
                offset,
                what: "sled found damage while opening".to_owned(),
            }
        }
        other => LogError::Io {
            file,
            operation: "open",
            source: other.into(),
        },
    }
}

/// The database and how entries lie in it.
#[derive(Clone)]
struct Store {
    db: sled::Db,
    path: PathBuf,
}

impl Store {
    fn recover(&self) -> Result<Recovered, LogError> {
        let read = |source: sled::Error| self.failed("read", source);
        let position = |name: &[u8]| -> Result<Option<Position>, LogError> {
            Ok(self
                .db
                .get(name)
                .map_err(read)?
                .and_then(|value| decode_position(&value)))
        };
        let purged = position(PURGED)?;
        let first = super::batching::next_index(purged);
        let mut tail = Tail {
            state: LogState {
                purged,
                last: purged,
                ..LogState::default()
            },
            first,
        };
        tail.state.vote = self
            .db
            .get(VOTE)
            .map_err(read)?
            .map(|vote| Bytes::copy_from_slice(&vote));
        tail.state.committed = position(COMMITTED)?;
        let places = self.recover_entries(&mut tail)?;
        match tail.state.committed {
            Some(committed) if committed.index >= tail.next() => Err(LogError::TailLost {
                file: self.name(),
                offset: 0,
                last: tail.state.last,
                committed,
            }),
            _ => Ok(Recovered { tail, places }),
        }
    }

    fn recover_entries(&self, tail: &mut Tail) -> Result<VecDeque<Place>, LogError> {
        let mut places = VecDeque::new();
        for item in self.db.range(key(tail.first, 0)..key(u64::MAX, u32::MAX)) {
            let (name, value) = item.map_err(|e| self.failed("read", e))?;
            let (index, chunk) =
                parse_key(&name).ok_or_else(|| self.corrupt(0, "a key has the wrong form"))?;
            if chunk != 0 {
                continue;
            }
            let head = Head::decode(&value)
                .ok_or_else(|| self.corrupt(index, "the entry's head is damaged"))?;
            if tail.state.last.is_some_and(|last| last.index + 1 != index) {
                return Err(self.corrupt(index, "the entries before it are missing"));
            }
            tail.append(
                index,
                Position {
                    term: head.term,
                    leader: head.leader,
                    index,
                },
            );
            places.push_back(Place {
                unit: 1,
                offset: 0,
                len: head.len,
            });
        }
        Ok(places)
    }

    fn insert(&self, batch: &mut SledBatch, entry: &LogEntry) -> u64 {
        let index = entry.position.index;
        let (first, rest) = entry.body.split_at(entry.body.len().min(CHUNK_BYTES));
        let mut value = Vec::with_capacity(HEAD_BYTES + first.len());
        value.extend_from_slice(&Head::of(entry).encode(&entry.body));
        value.extend_from_slice(first);
        let mut bytes = value.len() as u64;
        batch.insert(&key(index, 0), value);
        for (number, chunk) in (1..).zip(rest.chunks(CHUNK_BYTES)) {
            batch.insert(&key(index, number), chunk);
            bytes += chunk.len() as u64;
        }
        bytes
    }

    /// Removes the entries in `range`, a bounded number at a time.
    fn remove(&self, range: std::ops::Range<[u8; 13]>) -> io::Result<()> {
        loop {
            let mut batch = SledBatch::default();
            let mut count = 0;
            for name in self.db.range(range.clone()).keys().take(REMOVALS_MAX) {
                batch.remove(name?);
                count += 1;
            }
            self.db.apply_batch(batch)?;
            if count < REMOVALS_MAX {
                return Ok(());
            }
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn failed(&self, operation: &'static str, error: sled::Error) -> LogError {
        LogError::Io {
            file: self.name(),
            operation,
            source: error.into(),
        }
    }

    fn corrupt(&self, index: u64, what: &str) -> LogError {
        LogError::Corrupt {
            file: self.name(),
            offset: 0,
            what: format!("{what} (entry {index})"),
        }
    }
}

impl Fetch for Store {
    fn fetch(&self, first: u64, places: &[Place], out: &mut Vec<LogEntry>) -> io::Result<()> {
        let end = first + places.len() as u64;
        let mut items = self.db.range(key(first, 0)..key(end, 0));
        for (index, place) in (first..).zip(places) {
            let missing = || self.corrupt(index, "the entry is missing");
            let (name, value) = items.next().ok_or_else(missing)??;
            let head = Head::decode(&value)
                .filter(|head| parse_key(&name) == Some((index, 0)) && head.len == place.len);
            let head = head.ok_or_else(missing)?;
            let mut body = BytesMut::with_capacity(place.len as usize);
            body.extend_from_slice(&value[HEAD_BYTES..]);
            while body.len() < place.len as usize {
                let (_, chunk) = items.next().ok_or_else(missing)??;
                body.extend_from_slice(&chunk);
            }
            if head.encode(&body)[..] != value[..HEAD_BYTES] {
                return Err(self
                    .corrupt(index, "the entry's checksum does not match")
                    .into());
            }
            let position = Position {
                term: head.term,
                leader: head.leader,
                index,
            };
            out.push(LogEntry {
                position,
                kind: head.kind,
                body: body.freeze(),
            });
        }
        Ok(())
    }
}

/// The writer's half.
struct SledEngine {
    store: Store,
    file: File,
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    stats: Arc<LogStats>,
    tail: Tail,
    /// Entries below this index are already removed.
    removed_below: u64,
    blobs_synced: BTreeSet<std::ffi::OsString>,
    _lock: Box<dyn DiskLock>,
}

impl SledEngine {
    /// sled's flush, then the sync it leaves out.
    fn make_durable(&mut self) -> io::Result<()> {
        self.store.db.flush()?;
        let began = self.clock.monotonic();
        rustix::fs::fdatasync(&self.file)?;
        self.sync_blobs()?;
        self.stats
            .synced(self.clock.monotonic().saturating_sub(began));
        self.stats.set_disk_bytes(self.file.metadata()?.len());
        Ok(())
    }

    /// Pages too big for the main file lie in files of their own. Chunking should keep
    /// them from arising; should one arise all the same, it is synced like the rest.
    fn sync_blobs(&mut self) -> io::Result<()> {
        let dir = self.dir.join("blobs");
        let mut fresh = false;
        let mut present = BTreeSet::new();
        for blob in std::fs::read_dir(&dir)? {
            let blob = blob?;
            if !self.blobs_synced.contains(&blob.file_name()) {
                match File::open(blob.path()) {
                    Ok(file) => file.sync_all()?,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                }
                fresh = true;
            }
            present.insert(blob.file_name());
        }
        self.blobs_synced = present;
        if fresh {
            File::open(dir)?.sync_all()
        } else {
            Ok(())
        }
    }

    /// After opening: every file and folder sled has made.
    fn sync_everything(&mut self) -> io::Result<()> {
        for item in std::fs::read_dir(&self.dir)? {
            let path = item?.path();
            if path.is_file() || path.is_dir() {
                File::open(path)?.sync_all()?;
            }
        }
        self.make_durable()?;
        File::open(&self.dir)?.sync_all()
    }

    fn truncate(&mut self, last: Option<Position>, batch: &mut SledBatch) -> io::Result<()> {
        self.store.db.apply_batch(std::mem::take(batch))?;
        self.tail.truncate(last);
        let keep_before = super::batching::next_index(last).max(self.tail.first);
        batch.insert(COMMITTED, encode_position(self.tail.state.committed));
        self.store
            .remove(key(keep_before, 0)..key(u64::MAX, u32::MAX))
    }
}

impl Engine for SledEngine {
    fn commit(&mut self, work: Batch<'_>) -> io::Result<()> {
        let mut batch = SledBatch::default();
        let mut bytes = 0;
        for queued in work.queued {
            match &queued.op {
                Op::Append(entries) => {
                    for entry in entries {
                        bytes += self.store.insert(&mut batch, entry);
                        self.tail.append(entry.position.index, entry.position);
                        let len = u32::try_from(entry.body.len()).map_err(io::Error::other)?;
                        work.places.push(Place {
                            unit: 1,
                            offset: 0,
                            len,
                        });
                    }
                }
                Op::Truncate(last) => self.truncate(*last, &mut batch)?,
                Op::Purge(up_to) => {
                    self.tail.purge(*up_to);
                    batch.insert(PURGED, encode_position(self.tail.state.purged));
                }
                Op::Vote(vote) => batch.insert(VOTE, &vote[..]),
            }
        }
        if let Some(committed) = work.committed {
            self.tail.state.committed = committed;
            batch.insert(COMMITTED, encode_position(committed));
        }
        self.store.db.apply_batch(batch)?;
        self.stats.wrote(bytes);
        self.make_durable()
    }

    fn tidy(&mut self) -> io::Result<()> {
        let below = super::batching::next_index(self.tail.state.purged);
        if below > self.removed_below {
            self.store.remove(key(0, 0)..key(below, 0))?;
            self.removed_below = below;
        }
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        self.make_durable()
    }
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    len: u32,
    kind: EntryKind,
    term: u64,
    leader: u128,
}

impl Head {
    fn of(entry: &LogEntry) -> Self {
        let len = u32::try_from(entry.body.len()).expect("checked against MAX_BODY_BYTES");
        Self {
            len,
            kind: entry.kind,
            term: entry.position.term,
            leader: entry.position.leader,
        }
    }

    fn encode(&self, body: &[u8]) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8] = self.kind as u8;
        out[9..17].copy_from_slice(&self.term.to_le_bytes());
        out[17..33].copy_from_slice(&self.leader.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[4..]), body);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let head = value.get(..HEAD_BYTES)?;
        Some(Self {
            len: u32::from_le_bytes(head[4..8].try_into().ok()?),
            kind: super::wal::entry_kind(head[8])?,
            term: u64::from_le_bytes(head[9..17].try_into().ok()?),
            leader: u128::from_le_bytes(head[17..33].try_into().ok()?),
        })
    }
}

fn key(index: u64, chunk: u32) -> [u8; 13] {
    let mut out = [b'e'; 13];
    out[1..9].copy_from_slice(&index.to_be_bytes());
    out[9..].copy_from_slice(&chunk.to_be_bytes());
    out
}

fn parse_key(name: &[u8]) -> Option<(u64, u32)> {
    let rest = name.strip_prefix(b"e")?;
    let (index, chunk) = rest.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(index.try_into().ok()?),
        u32::from_be_bytes(chunk.try_into().ok()?),
    ))
}

/// Empty for none.
fn encode_position(position: Option<Position>) -> Vec<u8> {
    position.map_or_else(Vec::new, |p| {
        let mut out = Vec::with_capacity(32);
        out.extend_from_slice(&p.index.to_le_bytes());
        out.extend_from_slice(&p.term.to_le_bytes());
        out.extend_from_slice(&p.leader.to_le_bytes());
        out
    })
}

fn decode_position(value: &[u8]) -> Option<Position> {
    if value.len() != 32 {
        return None;
    }
    Some(Position {
        index: u64::from_le_bytes(value[..8].try_into().ok()?),
        term: u64::from_le_bytes(value[8..16].try_into().ok()?),
        leader: u128::from_le_bytes(value[16..].try_into().ok()?),
    })
}

impl LogStore for SledLog {
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
