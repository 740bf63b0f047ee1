//! The durable Raft log: one trait, three stores.
//!
//! Owns: entries, vote, committed pointer and purge position, and the moment
//! at which each of them is on the disk.
//! Never: knows openraft, tokio or what a payload says.
//!
//! [`Wal`] is the default, [`SledLog`] the second store, [`MemoryLog`] serves `-dev`.
//! The first two share `batching` (state, newest entries, one writer thread) and
//! differ in the engine that thread drives.

mod batching;
pub mod disk;
pub mod error;
pub mod memory;
pub mod sled_store;
pub mod stats;
pub mod wal;

use std::io;

use bytes::Bytes;

pub use disk::{Disk, DiskFile, DiskSpace, FileDisk};
pub use error::LogError;
pub use memory::MemoryLog;
pub use sled_store::{SledLog, SledOptions};
pub use stats::{LogStats, StatsReading};
pub use wal::{Wal, WalOptions};

/// Identifies an entry the way Raft compares logs: by leader, then index.
///
/// `leader` is the proposing leader's Raft id in bytes (16 of a UUID): openraft
/// with one leader per term only needs the term, and several per term need both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Raft id (UUID) of that leader.
    pub leader: u128,
    /// Log index.
    pub index: u64,
}

/// What an entry's body is, so that a reader can tell without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// No payload: a leader's first entry.
    Blank = 1,
    /// An application command.
    Normal = 2,
    /// A membership configuration.
    Membership = 3,
}

/// One log entry. The body is shared, never copied, on its way to disk and peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub position: Position,
    /// What the body is.
    pub kind: EntryKind,
    /// Encoded payload.
    pub body: Bytes,
}

/// Called once an append is on the disk, or has failed. May run on another thread.
pub type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What a store holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Everything up to here is gone from the log and covered by a snapshot.
    pub purged: Option<Position>,
    /// Last entry present, or `purged` when there is none.
    pub last: Option<Position>,
    /// Encoded vote.
    pub vote: Option<Bytes>,
    /// Last position known to be committed, as far as it was saved.
    pub committed: Option<Position>,
}

/// A durable log. All writes take effect in the order of the calls; callers serialise them.
///
/// A store that met a failed write or fsync is *poisoned*: every later write
/// fails, nothing is retried (a retried fsync may claim success for lost
/// pages), and the server role ends.
pub trait LogStore: Send + Sync + 'static {
    /// The state as of the last call.
    fn state(&self) -> LogState;

    /// Makes `entries` readable at once and durable soon; then calls `flushed`.
    /// Entries follow the last one without a gap.
    fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) -> io::Result<()>;

    /// Drops every entry after `last` (all when `None`). `flushed` as in `append`.
    fn truncate_after(&self, last: Option<Position>, flushed: Flushed) -> io::Result<()>;

    /// Forgets every entry up to and including `up_to`, which may lie beyond the
    /// last entry (after a snapshot was installed). `flushed` as in `append`.
    fn purge(&self, up_to: Position, flushed: Flushed) -> io::Result<()>;

    /// Records the vote. It counts only once `flushed` has been called with `Ok`.
    fn save_vote(&self, vote: Bytes, flushed: Flushed) -> io::Result<()>;

    /// Notes how far the log is committed; becomes durable with the next synced write.
    fn save_committed(&self, committed: Option<Position>) -> io::Result<()>;

    /// Entries with `start <= index < end`, in order, stopping before the bodies
    /// exceed `max_bytes` (but always at least one when one is there).
    /// A range that begins before the first kept entry is an error.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>>;

    /// Bytes the log takes on disk, and how many entries it keeps.
    fn usage(&self) -> LogUsage;
}

/// Size of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Bytes of live segments.
    pub disk_bytes: u64,
    /// Bytes of kept entries' bodies.
    pub body_bytes: u64,
    /// Kept entries.
    pub entries: u64,
}
