//! What the two durable stores share: the log's state in memory, the newest
//! entries, the queue, and the one thread that writes.
//!
//! Owns: the order of calls, when a callback runs, what is cached, poisoning.
//! Never: knows a file format; an [`Engine`] turns a batch into durable bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::error::LogError;
use super::stats::LogStats;
use super::{Flushed, LogEntry, LogState, LogUsage, Position};

/// Bytes of bodies one batch gathers before it is made durable.
pub(super) const BATCH_BYTES_MAX: usize = 4 << 20;
/// Entries an idle cache gives its memory back at.
const CACHE_SHRINK_SLOTS: usize = 1_024;

/// Where a durable entry lies. `unit` 0 means: not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Segment number (a store without segments uses 1).
    pub(super) unit: u32,
    /// Offset of the record in it.
    pub(super) offset: u32,
    /// Length of the body.
    pub(super) len: u32,
}

/// One change, in the order of the calls.
pub(super) enum Op {
    Append(Vec<LogEntry>),
    Truncate(Option<Position>),
    Purge(Position),
    Vote(Bytes),
}

/// A change waiting for the writer.
pub(super) struct Queued {
    pub(super) op: Op,
    flushed: Flushed,
}

/// What an engine is given to make durable at once.
pub(super) struct Batch<'a> {
    pub(super) queued: &'a [Queued],
    /// The committed position to note at the end, if it changed and its entry is in the log by then.
    pub(super) committed: Option<Option<Position>>,
    /// To be filled: one place per appended entry, in order.
    pub(super) places: &'a mut Vec<Place>,
}

/// Turns batches into durable bytes. Lives on the writer thread.
pub(super) trait Engine: Send + 'static {
    /// Writes everything in `batch` and makes it durable. After an error the store is poisoned.
    fn commit(&mut self, batch: Batch<'_>) -> io::Result<()>;
    /// Frees what durable purges have made useless. Runs after the callbacks.
    fn tidy(&mut self) -> io::Result<()>;
    /// Nothing came for a while after a batch.
    fn idle(&mut self) -> io::Result<()>;
    /// The store is being closed in good order.
    fn close(&mut self) -> io::Result<()>;
}

/// Reads durable entries back. Runs on the caller's thread.
pub(super) trait Fetch: Send + Sync + 'static {
    /// Appends to `out` the entries from `first` on that lie at `places`.
    fn fetch(&self, first: u64, places: &[Place], out: &mut Vec<LogEntry>) -> io::Result<()>;
}

/// What a store found on disk.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) tail: Tail,
    /// One place per entry.
    pub(super) places: VecDeque<Place>,
}

/// The log without its entries: which there are, and what was said about them.
///
/// The same steps run on the caller's side, in the engine and in recovery, so all three agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) state: LogState,
    /// Index of the first entry, or of the next one when there is none.
    pub(super) first: u64,
}

impl Tail {
    /// Index of the next entry.
    pub(super) fn next(&self) -> u64 {
        next_index(self.state.last).max(self.first)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> u64 {
        self.next() - self.first
    }

    /// Entries from index `first` to `last` were added.
    pub(super) fn append(&mut self, first: u64, last: Position) {
        if self.len() == 0 {
            self.first = first;
        }
        self.state.last = Some(last);
    }

    /// Drops the entries after `last`.
    pub(super) fn truncate(&mut self, last: Option<Position>) {
        let keep_before = next_index(last);
        if keep_before >= self.next() {
            return;
        }
        if keep_before > self.first {
            self.state.last = last;
        } else {
            self.state.last = self.state.purged;
            self.first = next_index(self.state.purged);
        }
        lower_committed(&mut self.state);
    }

    /// Forgets the entries up to `up_to`.
    pub(super) fn purge(&mut self, up_to: Position) {
        if self.state.purged.is_some_and(|p| p.index >= up_to.index) {
            return;
        }
        self.state.purged = Some(up_to);
        self.first = self.first.max(up_to.index + 1);
        if self.state.last.is_none_or(|last| last.index <= up_to.index) {
            self.state.last = Some(up_to);
            self.first = up_to.index + 1;
        }
    }
}

/// Limits of the shared half.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) cache_bytes: usize,
    pub(super) idle_after: Duration,
}

/// The shared half of a durable store.
pub(super) struct Front {
    shared: Arc<Shared>,
    fetch: Box<dyn Fetch>,
    stats: Arc<LogStats>,
    writer: Option<JoinHandle<()>>,
    writer_id: ThreadId,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    limits: Limits,
}

#[derive(Default)]
struct Inner {
    tail: Tail,
    places: VecDeque<Place>,
    body_bytes: u64,
    cache: VecDeque<LogEntry>,
    cache_bytes: usize,
    queue: VecDeque<Queued>,
    committed_changed: bool,
    /// Appends not yet placed: (first index, count still wanted) in order of the queue.
    unplaced: VecDeque<Unplaced>,
    waiting: bool,
    closing: bool,
    poisoned: Option<String>,
}

/// The entries of one queued append that later truncations left alive.
struct Unplaced {
    first: u64,
    count: u64,
    alive: u64,
}

/// Index that follows `last`; 0 for an empty log.
pub(super) fn next_index(last: Option<Position>) -> u64 {
    last.map_or(0, |p| p.index + 1)
}

/// An append must continue the log; the very first one may begin anywhere.
pub(super) fn check_follows(last: Option<Position>, entries: &[LogEntry]) -> Result<(), LogError> {
    let Some(head) = entries.first() else {
        return Ok(());
    };
    let start = last.map_or(head.position.index, |p| p.index + 1);
    for (expected, entry) in (start..).zip(entries) {
        if entry.position.index != expected {
            return Err(LogError::Gap {
                index: entry.position.index,
                expected,
            });
        }
        if entry.body.len() > super::wal::MAX_BODY_BYTES {
            return Err(LogError::TooLarge {
                len: entry.body.len(),
                max: super::wal::MAX_BODY_BYTES,
            });
        }
    }
    Ok(())
}

/// A truncation below the committed position takes that position along.
///
/// Raft never does this; the log stays consistent with itself if a caller does.
pub(super) fn lower_committed(state: &mut LogState) {
    if let Some(committed) = state.committed
        && committed.index >= next_index(state.last)
    {
        state.committed = state.last;
    }
}

impl Front {
    /// Starts the writer thread named `name` over what was recovered.
    pub(super) fn start(
        name: &str,
        engine: Box<dyn Engine>,
        fetch: Box<dyn Fetch>,
        recovered: Recovered,
        limits: Limits,
        stats: Arc<LogStats>,
    ) -> io::Result<Self> {
        let body_bytes = recovered.places.iter().map(|p| u64::from(p.len)).sum();
        let inner = Inner {
            tail: recovered.tail,
            places: recovered.places,
            body_bytes,
            ..Inner::default()
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            limits,
        });
        let (for_writer, for_stats) = (Arc::clone(&shared), Arc::clone(&stats));
        let writer = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                Writer {
                    shared: for_writer,
                    engine,
                    stats: for_stats,
                    places: Vec::new(),
                }
                .run()
            })?;
        let writer_id = writer.thread().id();
        Ok(Self {
            shared,
            fetch,
            stats,
            writer: Some(writer),
            writer_id,
        })
    }

    pub(super) fn state(&self) -> LogState {
        self.shared.inner.lock().tail.state.clone()
    }

    pub(super) fn append(&self, entries: Vec<LogEntry>, flushed: Flushed) -> io::Result<()> {
        let mut inner = self.healthy()?;
        check_follows(inner.tail.state.last, &entries)?;
        if let (Some(head), Some(tail)) = (entries.first(), entries.last()) {
            let (first, count) = (head.position.index, entries.len() as u64);
            inner.tail.append(first, tail.position);
            inner.unplaced.push_back(Unplaced {
                first,
                count,
                alive: count,
            });
            for entry in &entries {
                inner.remember(entry);
            }
        }
        self.enqueue(inner, Op::Append(entries), flushed);
        Ok(())
    }

    pub(super) fn truncate_after(
        &self,
        last: Option<Position>,
        flushed: Flushed,
    ) -> io::Result<()> {
        let mut inner = self.healthy()?;
        inner.truncate(last);
        self.enqueue(inner, Op::Truncate(last), flushed);
        Ok(())
    }

    pub(super) fn purge(&self, up_to: Position, flushed: Flushed) -> io::Result<()> {
        let mut inner = self.healthy()?;
        inner.purge(up_to);
        self.enqueue(inner, Op::Purge(up_to), flushed);
        Ok(())
    }

    pub(super) fn save_vote(&self, vote: Bytes, flushed: Flushed) -> io::Result<()> {
        if vote.len() > super::wal::MAX_BODY_BYTES {
            return Err(LogError::TooLarge {
                len: vote.len(),
                max: super::wal::MAX_BODY_BYTES,
            }
            .into());
        }
        let mut inner = self.healthy()?;
        inner.tail.state.vote = Some(vote.clone());
        self.enqueue(inner, Op::Vote(vote), flushed);
        Ok(())
    }

    pub(super) fn save_committed(&self, committed: Option<Position>) -> io::Result<()> {
        let mut inner = self.healthy()?;
        inner.committed_changed |= inner.tail.state.committed != committed;
        inner.tail.state.committed = committed;
        Ok(())
    }

    pub(super) fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let (mut taken, stored, cached) = {
            let inner = self.healthy()?;
            if start >= end {
                return Ok(Vec::new());
            }
            inner.select(start, end, max_bytes)?
        };
        if !stored.is_empty()
            && let Err(e) = self.fetch.fetch(start, &stored, &mut taken)
        {
            // A purge that ran meanwhile may have recycled the file under the reader.
            let first = self.shared.inner.lock().tail.first;
            return Err(if start < first {
                LogError::Purged {
                    index: start,
                    first,
                }
                .into()
            } else {
                e
            });
        }
        taken.extend(cached);
        Ok(taken)
    }

    pub(super) fn usage(&self) -> LogUsage {
        let inner = self.shared.inner.lock();
        LogUsage {
            disk_bytes: self.stats.disk_bytes(),
            body_bytes: inner.body_bytes,
            entries: inner.places.len() as u64,
        }
    }

    fn healthy(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.shared.inner.lock();
        match &inner.poisoned {
            Some(cause) => Err(LogError::Poisoned {
                cause: cause.clone(),
            }
            .into()),
            None => Ok(inner),
        }
    }

    fn enqueue(&self, mut inner: MutexGuard<'_, Inner>, op: Op, flushed: Flushed) {
        inner.queue.push_back(Queued { op, flushed });
        let asleep = std::mem::take(&mut inner.waiting);
        drop(inner);
        if asleep {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.inner.lock().closing = true;
        self.shared.wake.notify_one();
        // The last handle may be dropped inside a callback, that is on the writer itself.
        if std::thread::current().id() != self.writer_id
            && let Some(writer) = self.writer.take()
        {
            let _ = writer.join();
        }
    }
}

impl Inner {
    fn remember(&mut self, entry: &LogEntry) {
        let len = u32::try_from(entry.body.len()).expect("checked against MAX_BODY_BYTES");
        self.places.push_back(Place {
            len,
            ..Place::default()
        });
        self.body_bytes += u64::from(len);
        self.cache_bytes += entry.body.len();
        self.cache.push_back(entry.clone());
    }

    fn truncate(&mut self, last: Option<Position>) {
        self.tail.truncate(last);
        while self.places.len() as u64 > self.tail.len() {
            let place = self.places.pop_back().unwrap_or_default();
            self.body_bytes -= u64::from(place.len);
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.body.len();
            }
        }
        let keep_before = next_index(last);
        for append in &mut self.unplaced {
            append.alive = append.alive.min(keep_before.saturating_sub(append.first));
        }
    }

    fn purge(&mut self, up_to: Position) {
        self.tail.purge(up_to);
        while self.places.len() as u64 > self.tail.len() {
            let place = self.places.pop_front().unwrap_or_default();
            self.body_bytes -= u64::from(place.len);
            if self.cache.len() > self.places.len()
                && let Some(entry) = self.cache.pop_front()
            {
                self.cache_bytes -= entry.body.len();
            }
        }
    }

    /// Splits a range into what must be fetched and what is cached, within `max_bytes`.
    #[expect(
        clippy::type_complexity,
        reason = "used once, named where it is taken apart"
    )]
    fn select(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<(Vec<LogEntry>, Vec<Place>, Vec<LogEntry>), LogError> {
        if start < self.tail.first {
            return Err(LogError::Purged {
                index: start,
                first: self.tail.first,
            });
        }
        let from = usize::try_from(start - self.tail.first)
            .unwrap_or(usize::MAX)
            .min(self.places.len());
        let to = usize::try_from(end.min(self.tail.next()).max(start) - self.tail.first)
            .unwrap_or(usize::MAX)
            .max(from);
        let to = to.min(self.places.len());
        let mut bytes = 0_usize;
        let fits = self.places.range(from..to).take_while(|place| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(place.len as usize);
            let keep = first || bytes <= max_bytes;
            bytes = bytes.max(1);
            keep
        });
        let to = from + fits.count();
        let cached_from = self.places.len() - self.cache.len();
        let middle = cached_from.clamp(from, to);
        let stored = self.places.range(from..middle).copied().collect();
        let cached = if middle < to {
            self.cache
                .range(middle - cached_from..to - cached_from)
                .cloned()
                .collect()
        } else {
            Vec::new()
        };
        Ok((Vec::with_capacity(to - from), stored, cached))
    }

    /// Records where durable entries lie, skipping those truncated or purged since.
    fn place(&mut self, queued: &[Queued], places: &[Place]) {
        let mut places = places.iter();
        for one in queued {
            let Op::Append(entries) = &one.op else {
                continue;
            };
            if entries.is_empty() {
                continue;
            }
            let Some(append) = self.unplaced.pop_front() else {
                return;
            };
            debug_assert_eq!(append.count, entries.len() as u64);
            for (number, place) in (0..append.count).zip(places.by_ref()) {
                let index = append.first + number;
                if number < append.alive && index >= self.tail.first {
                    let slot = usize::try_from(index - self.tail.first).unwrap_or(usize::MAX);
                    if let Some(slot) = self.places.get_mut(slot) {
                        *slot = *place;
                    }
                }
            }
        }
    }

    fn evict(&mut self, limit_bytes: usize) {
        while self.cache_bytes > limit_bytes
            && let oldest = self.places.len() - self.cache.len()
            && self.places.get(oldest).is_some_and(|p| p.unit != 0)
            && let Some(entry) = self.cache.pop_front()
        {
            self.cache_bytes -= entry.body.len();
        }
        if self.cache.capacity() > CACHE_SHRINK_SLOTS
            && self.cache.len() * 4 < self.cache.capacity()
        {
            self.cache.shrink_to(self.cache.len() * 2);
        }
    }
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    stats: Arc<LogStats>,
    places: Vec<Place>,
}

enum Next {
    Batch(Vec<Queued>, Option<Option<Position>>),
    Idle,
    Close(Option<Option<Position>>),
}

impl Writer {
    fn run(mut self) {
        let mut restless = false;
        loop {
            let outcome = match self.wait(restless) {
                Next::Batch(queued, committed) => {
                    restless = true;
                    self.commit(queued, committed)
                }
                Next::Idle => {
                    restless = false;
                    self.settle().and_then(|()| self.engine.idle())
                }
                Next::Close(committed) => {
                    if let Err(e) = self
                        .write(&[], committed)
                        .and_then(|()| self.engine.close())
                    {
                        tracing::error!(error = %e, "raft log could not be closed in order");
                    }
                    return;
                }
            };
            if let Err(e) = outcome {
                self.poison(&e);
                return;
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self, restless: bool) -> Next {
        let mut inner = self.shared.inner.lock();
        loop {
            if !inner.queue.is_empty() {
                return inner.take_batch();
            }
            if inner.closing {
                return Next::Close(inner.take_committed());
            }
            inner.waiting = true;
            if !restless {
                self.shared.wake.wait(&mut inner);
            } else if self
                .shared
                .wake
                .wait_for(&mut inner, self.shared.limits.idle_after)
                .timed_out()
                && inner.queue.is_empty()
                && !inner.closing
            {
                return Next::Idle;
            }
        }
    }

    fn commit(
        &mut self,
        queued: Vec<Queued>,
        committed: Option<Option<Position>>,
    ) -> io::Result<()> {
        let outcome = self.write(&queued, committed);
        if let Err(e) = outcome {
            // Poison first: nobody who hears of the failure may find the store still taking calls.
            self.poison(&e);
            for one in queued {
                (one.flushed)(Err(same_error(&e)));
            }
            return Err(e);
        }
        let (mut calls, mut entries, mut bytes) = (0, 0, 0);
        for one in &queued {
            calls += 1;
            if let Op::Append(appended) = &one.op {
                entries += appended.len() as u64;
                bytes += appended.iter().map(|e| e.body.len() as u64).sum::<u64>();
            }
        }
        self.stats.committed_batch(calls, entries, bytes);
        for one in queued {
            (one.flushed)(Ok(()));
        }
        self.engine.tidy()
    }

    fn write(&mut self, queued: &[Queued], committed: Option<Option<Position>>) -> io::Result<()> {
        if queued.is_empty() && committed.is_none() {
            return Ok(());
        }
        self.places.clear();
        self.engine.commit(Batch {
            queued,
            committed,
            places: &mut self.places,
        })?;
        let mut inner = self.shared.inner.lock();
        inner.place(queued, &self.places);
        inner.evict(self.shared.limits.cache_bytes);
        drop(inner);
        if self.places.capacity() > CACHE_SHRINK_SLOTS {
            self.places = Vec::new();
        }
        Ok(())
    }

    /// Writes a committed position nobody's append has carried.
    fn settle(&mut self) -> io::Result<()> {
        let committed = self.shared.inner.lock().take_committed();
        self.write(&[], committed)
    }

    /// Refuses everything from now on and fails what is queued.
    fn poison(&self, error: &io::Error) {
        let queued = {
            let mut inner = self.shared.inner.lock();
            if inner.poisoned.is_none() {
                tracing::error!(error = %error, "raft log write failed, the log takes no more calls");
                inner.poisoned = Some(error.to_string());
            }
            std::mem::take(&mut inner.queue)
        };
        for one in queued {
            (one.flushed)(Err(same_error(error)));
        }
    }
}

impl Inner {
    fn take_batch(&mut self) -> Next {
        let mut bytes = 0_usize;
        let mut count = 0;
        for one in &self.queue {
            bytes += match &one.op {
                Op::Append(entries) => entries.iter().map(|e| e.body.len()).sum(),
                Op::Vote(vote) => vote.len(),
                Op::Truncate(_) | Op::Purge(_) => 0,
            };
            if count > 0 && bytes > BATCH_BYTES_MAX {
                break;
            }
            count += 1;
        }
        if count == self.queue.len() {
            let committed = self.take_committed();
            return Next::Batch(std::mem::take(&mut self.queue).into(), committed);
        }
        Next::Batch(self.queue.drain(..count).collect(), None)
    }

    /// The committed position, if it is news and covered by what is in the log: a log that
    /// ends before its own committed position must mean loss, never a call in between.
    fn take_committed(&mut self) -> Option<Option<Position>> {
        let covered = self
            .tail
            .state
            .committed
            .is_none_or(|c| c.index < next_index(self.tail.state.last));
        (self.committed_changed && covered).then(|| {
            self.committed_changed = false;
            self.tail.state.committed
        })
    }
}

/// `io::Error` cannot be cloned; every caller gets the same words and kind.
fn same_error(error: &io::Error) -> io::Error {
    LogError::of(error).map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        |log| io::Error::new(error.kind(), log.to_string()),
    )
}

#[cfg(test)]
mod tests;
