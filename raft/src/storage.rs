//! Lets openraft read and write a [`LogStore`].
//!
//! Owns: the order in which openraft's log and vote writes reach the store.
//! Never: decides durability; it passes on what the store reports.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use crate::log::LogStore;
use crate::types::{
    Entry, LogId, Types, Vote, decode_vote, encode_vote, from_log_entry, from_position, position,
    to_log_entry,
};

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

    fn read_all(&self, mut start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        while start < end {
            let part = self.store.read(start, end, usize::MAX)?;
            let Some(last) = part.last() else { break };
            start = last.position.index + 1;
            for entry in part {
                entries.push(from_log_entry(entry)?);
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<Types> for LogAdapter {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => self
                .store
                .state()
                .purged
                .map_or(0, |purged| purged.index + 1),
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let past_last = self.store.state().last.map_or(0, |last| last.index + 1);
        self.read_all(start, end.min(past_last))
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
