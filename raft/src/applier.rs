//! The applier: what hands committed entries to the state machine, on a thread of its own or, for a few light
//! entries, where they arrive.
//!
//! Owns: the `apply` thread's work, batches, how far applying is.
//! Never: speaks to openraft's storage traits; `machine` does.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use weft_proto::clock::Clock;

use crate::machine::{Committed, FrozenState, StateMachine};
use crate::metrics::RaftMetrics;
use crate::snapshot::SnapshotData;
use crate::types::{Body, LogId, StoredMembership, Types, term_of};

/// Entries handed to the state machine at once, at most.
pub(crate) const BATCH_ENTRIES_MAX: usize = 4_096;
/// Bytes after which a batch is closed.
pub(crate) const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Light entries the Raft thread applies itself, at most.
pub(crate) const INLINE_ENTRIES_MAX: usize = 8;
/// Bytes of their bodies, at most.
pub(crate) const INLINE_BYTES_MAX: usize = 32 * 1024;

/// How far the state machine is, for those who wait.
pub(crate) struct Progress {
    /// One past the last applied index; 0 before the first.
    applied_next: watch::Sender<u64>,
    /// Bodies applied since the last snapshot was frozen.
    pub(crate) bytes_since_snapshot: AtomicU64,
}

impl Progress {
    pub(crate) fn new(applied_next: u64, bytes_since_snapshot: u64) -> Self {
        Self {
            applied_next: watch::Sender::new(applied_next),
            bytes_since_snapshot: AtomicU64::new(bytes_since_snapshot),
        }
    }

    pub(crate) fn applied_next(&self) -> u64 {
        *self.applied_next.borrow()
    }

    pub(crate) fn watch_applied_next(&self) -> watch::Receiver<u64> {
        self.applied_next.subscribe()
    }

    pub(crate) fn advance(&self, next: u64) {
        self.applied_next.send_if_modified(|current| {
            let forward = next > *current;
            if forward {
                *current = next;
            }
            forward
        });
    }
}

pub(crate) type Responder = Option<ApplyResponder<Types>>;

pub(crate) enum Work {
    Apply {
        entries: Vec<Committed>,
        responders: Vec<Responder>,
        next: u64,
        done: oneshot::Sender<io::Result<()>>,
    },
    Freeze {
        done: oneshot::Sender<Box<dyn FrozenState>>,
    },
    Restore {
        data: SnapshotData,
        next: u64,
        done: oneshot::Sender<io::Result<()>>,
    },
}

/// What applies: the dedicated thread, or the Raft thread when the work is light and that one has none.
pub(crate) struct Applier<S> {
    pub(crate) machine: S,
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<RaftMetrics>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The dedicated thread. It lets go of the applier before it says that work is done, so that the Raft
/// thread, woken by that, finds it free.
pub(crate) fn serve<S: StateMachine>(applier: &Mutex<Applier<S>>, work: &mpsc::Receiver<Work>) {
    // A `done` whose receiver is gone belongs to an openraft task that was cut short by shutdown.
    while let Ok(work) = work.recv() {
        match work {
            Work::Apply {
                entries,
                responders,
                next,
                done,
            } => {
                let applied = applier.lock().apply(&entries, responders, next);
                drop(done.send(applied));
            }
            Work::Freeze { done } => {
                let frozen = applier.lock().freeze();
                drop(done.send(frozen));
            }
            Work::Restore { data, next, done } => {
                let restored = applier.lock().restore(&data, next);
                drop(done.send(restored));
            }
        }
    }
}

/// The applier as the Raft thread sees it.
pub(crate) trait Inline: Send + Sync {
    /// Applies `batch` now if that is a matter of microseconds; `None` if not, and the batch is as it was.
    fn try_apply(&self, batch: &mut Batch, next: u64) -> Option<io::Result<()>>;
}

impl<S: StateMachine> Inline for Mutex<Applier<S>> {
    fn try_apply(&self, batch: &mut Batch, next: u64) -> Option<io::Result<()>> {
        if batch.entries.len() > INLINE_ENTRIES_MAX || batch.bytes > INLINE_BYTES_MAX {
            return None;
        }
        let mut applier = self.try_lock()?;
        let machine = &applier.machine;
        if !batch
            .entries
            .iter()
            .all(|entry| machine.is_light(&entry.body))
        {
            return None;
        }
        let responders = std::mem::take(&mut batch.responders);
        let applied = catch_unwind(AssertUnwindSafe(|| {
            applier.apply(&batch.entries, responders, next)
        }));
        Some(applied.unwrap_or_else(|_| Err(io::Error::other("the state machine panicked"))))
    }
}

impl<S: StateMachine> Applier<S> {
    fn freeze(&mut self) -> Box<dyn FrozenState> {
        self.progress
            .bytes_since_snapshot
            .store(0, Ordering::Relaxed);
        self.machine.freeze()
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        responders: Vec<Responder>,
        next: u64,
    ) -> io::Result<()> {
        let start = self.clock.monotonic();
        let replies = self.machine.apply(entries).map_err(io::Error::other)?;
        if replies.len() != entries.len() {
            let what = format!(
                "state machine gave {} replies to {} entries",
                replies.len(),
                entries.len()
            );
            return Err(io::Error::other(what));
        }
        let bytes: usize = entries.iter().map(|entry| entry.body.len()).sum();
        self.progress
            .bytes_since_snapshot
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.progress.advance(next);
        for (responder, reply) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(Body(reply));
            }
        }
        let took = self.clock.monotonic().saturating_sub(start);
        self.metrics.applied(entries.len(), took);
        Ok(())
    }

    fn restore(&mut self, data: &SnapshotData, next: u64) -> io::Result<()> {
        self.machine
            .restore(&mut data.open()?)
            .map_err(io::Error::other)?;
        self.progress
            .bytes_since_snapshot
            .store(0, Ordering::Relaxed);
        self.progress.advance(next);
        Ok(())
    }
}

/// Entries drained from openraft's stream that are handed over together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Committed>,
    pub(crate) responders: Vec<Responder>,
    /// Waiters of entries the state machine never sees.
    pub(crate) others: Vec<ApplyResponder<Types>>,
    pub(crate) bytes: usize,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Option<StoredMembership>,
}

impl Batch {
    pub(crate) fn push(&mut self, (entry, responder): EntryResponder<Types>) {
        let id = entry.log_id;
        match entry.payload {
            EntryPayload::Normal(body) => {
                self.bytes += body.0.len();
                self.entries.push(Committed {
                    index: id.index,
                    term: term_of(&id),
                    body: body.0,
                });
                self.responders.push(responder);
            }
            EntryPayload::Blank => self.others.extend(responder),
            EntryPayload::Membership(membership) => {
                self.others.extend(responder);
                self.membership = Some(StoredMembership::new(Some(id), membership));
            }
        }
        self.last = Some(id);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_ENTRIES_MAX || self.bytes >= BATCH_BYTES
    }
}
