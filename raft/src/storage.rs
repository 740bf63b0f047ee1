//! Lets openraft read and write a [`LogStore`].
//!
//! Owns: the order in which openraft's log and vote writes reach the store.
//! Never: decides durability; it passes on what the store reports.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::stream::{self, Stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use crate::log::{LogEntry, LogError, LogStore};
use crate::types::{
    Entry, LogId, Types, Vote, decode_vote, encode_vote, from_log_entry, from_position, position,
    to_log_entry,
};

/// Bytes of bodies read from the log at once.
const PIECE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone)]
pub(crate) struct LogAdapter {
    store: Arc<dyn LogStore>,
    /// Bodies handed to one append request; openraft itself only counts entries.
    read_max_bytes: usize,
}

impl LogAdapter {
    pub(crate) fn new(store: Arc<dyn LogStore>, read_max_bytes: usize) -> Self {
        Self {
            store,
            read_max_bytes,
        }
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Entries {
        let next = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let past_last = self.store.state().last.map_or(0, |last| last.index + 1);
        Entries {
            store: self.store.clone(),
            next,
            end: end.min(past_last),
            read: Vec::new().into_iter(),
        }
    }

    /// First entry kept, or anything not greater than `from` when `from` is kept.
    fn first_kept(&self, from: u64) -> io::Result<u64> {
        let Err(cause) = self.store.read(from, from.saturating_add(1), 1) else {
            return Ok(from);
        };
        match cause.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(LogError::Purged { first, .. }) => Ok(*first),
            _ => Err(cause),
        }
    }
}

/// Reads a range piece by piece, so that a long one is never in memory as a whole.
struct Entries {
    store: Arc<dyn LogStore>,
    next: u64,
    end: u64,
    read: std::vec::IntoIter<LogEntry>,
}

impl Iterator for Entries {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.as_slice().is_empty() {
            if self.next >= self.end {
                return None;
            }
            match self.store.read(self.next, self.end, PIECE_BYTES) {
                Ok(entries) => self.read = entries.into_iter(),
                Err(cause) => {
                    self.next = self.end;
                    return Some(Err(cause));
                }
            }
        }
        let entry = self.read.next()?;
        self.next = entry.position.index + 1;
        Some(from_log_entry(entry))
    }
}

impl RaftLogReader<Types> for LogAdapter {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        // Asked for more than it keeps, a reader gets what is there (openraft's contract).
        let mut entries = self.entries(range);
        entries.next = entries.next.max(self.first_kept(entries.next)?);
        entries.collect()
    }

    // What the state machine is fed from: a range that begins before the first kept entry is an
    // error here, so that no entry can be skipped.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        stream::iter(self.entries(range))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.store
            .state()
            .vote
            .as_ref()
            .map(decode_vote)
            .transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.store
            .read(start, end, self.read_max_bytes)?
            .into_iter()
            .map(from_log_entry)
            .collect()
    }
}

impl RaftLogStorage<Types> for LogAdapter {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.store.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(from_position),
            last_log_id: state.last.or(state.purged).map(from_position),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, flushed) = oneshot::channel();
        // A receiver that is gone means openraft is shutting down: nobody waits for the answer.
        self.store.save_vote(
            encode_vote(vote),
            Box::new(move |result| drop(done.send(result))),
        )?;
        flushed
            .await
            .map_err(|_| io::Error::other("the log store dropped a vote without an answer"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed.as_ref().map(position))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.state().committed.map(from_position))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries
            .into_iter()
            .map(|entry| to_log_entry(&entry))
            .collect();
        self.store.append(
            entries,
            Box::new(move |result| callback.io_completed(result)),
        )
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.store
            .truncate_after(last.as_ref().map(position), report("truncate"))
    }

    async fn purge(&mut self, up_to: LogId) -> io::Result<()> {
        self.store.purge(position(&up_to), report("purge"))
    }
}

/// Truncate and purge need no waiting: the store keeps the order of calls and
/// refuses every later write once one has failed.
fn report(what: &'static str) -> crate::log::Flushed {
    Box::new(move |result| {
        if let Err(cause) = result {
            tracing::error!(raft.log.operation = what, error = %cause, "the log store failed");
        }
    })
}
