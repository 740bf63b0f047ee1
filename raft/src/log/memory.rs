//! The log of `-dev`: everything in memory, nothing survives the process.
//!
//! Owns: entries, vote, committed and purged positions of one process life.
//! Never: touches a disk; `flushed` is called before each call returns.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::LogError;
use super::{Flushed, LogEntry, LogState, LogStore, LogUsage, Position};

/// A [`LogStore`] in memory. Its size is bounded by the caller's purges.
#[derive(Debug, Default)]
pub struct MemoryLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: LogState,
    entries: VecDeque<LogEntry>,
    body_bytes: u64,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Inner {
    fn first(&self) -> u64 {
        self.entries.front().map_or_else(
            || super::batching::next_index(self.state.purged),
            |e| e.position.index,
        )
    }

    fn drop_back(&mut self) {
        if let Some(entry) = self.entries.pop_back() {
            self.body_bytes -= entry.body.len() as u64;
        }
    }
}

impl LogStore for MemoryLog {
    fn state(&self) -> LogState {
        self.inner.lock().state.clone()
    }

    fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) -> io::Result<()> {
        {
            let mut inner = self.inner.lock();
            super::batching::check_follows(inner.state.last, &entries)?;
            for entry in entries {
                inner.state.last = Some(entry.position);
                inner.body_bytes += entry.body.len() as u64;
                inner.entries.push_back(entry);
            }
        }
        flushed(Ok(()));
        Ok(())
    }

    fn truncate_after(&self, last: Option<Position>, flushed: Flushed) -> io::Result<()> {
        {
            let mut inner = self.inner.lock();
            let keep_before = super::batching::next_index(last);
            while inner
                .entries
                .back()
                .is_some_and(|e| e.position.index >= keep_before)
            {
                inner.drop_back();
            }
            inner.state.last = inner
                .entries
                .back()
                .map(|e| e.position)
                .or(inner.state.purged);
            super::batching::lower_committed(&mut inner.state);
        }
        flushed(Ok(()));
        Ok(())
    }

    fn purge(&self, up_to: Position, flushed: Flushed) -> io::Result<()> {
        {
            let mut inner = self.inner.lock();
            if inner.state.purged.is_none_or(|p| p.index < up_to.index) {
                while inner
                    .entries
                    .front()
                    .is_some_and(|e| e.position.index <= up_to.index)
                {
                    let gone = inner.entries.pop_front();
                    inner.body_bytes -= gone.map_or(0, |e| e.body.len() as u64);
                }
                inner.state.purged = Some(up_to);
                if inner
                    .state
                    .last
                    .is_none_or(|last| last.index <= up_to.index)
                {
                    inner.state.last = Some(up_to);
                }
            }
        }
        flushed(Ok(()));
        Ok(())
    }

    fn save_vote(&self, vote: Bytes, flushed: Flushed) -> io::Result<()> {
        self.inner.lock().state.vote = Some(vote);
        flushed(Ok(()));
        Ok(())
    }

    fn save_committed(&self, committed: Option<Position>) -> io::Result<()> {
        self.inner.lock().state.committed = committed;
        Ok(())
    }

    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let inner = self.inner.lock();
        let first = inner.first();
        if start >= end {
            return Ok(Vec::new());
        }
        if start < first {
            return Err(LogError::Purged {
                index: start,
                first,
            }
            .into());
        }
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        let mut bytes = 0_usize;
        let mut taken = Vec::new();
        for entry in inner
            .entries
            .iter()
            .skip(skip)
            .take_while(|e| e.position.index < end)
        {
            bytes = bytes.saturating_add(entry.body.len());
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn usage(&self) -> LogUsage {
        let inner = self.inner.lock();
        LogUsage {
            disk_bytes: 0,
            body_bytes: inner.body_bytes,
            entries: inner.entries.len() as u64,
        }
    }
}
