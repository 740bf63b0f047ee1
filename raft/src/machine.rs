//! The state machine's side of openraft: batches go to the applier, snapshots to threads of their own.
//!
//! Owns: the traits a state machine implements, what is applied so far, when a snapshot is frozen.
//! Never: runs anything on the Raft runtime that takes longer than microseconds, or touches a file there.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use weft_proto::clock::Clock;

use crate::applier::{Applier, Batch, Inline, Progress, Work, serve};
use crate::metrics::RaftMetrics;
use crate::snapshot::{SnapshotData, SnapshotStore, Stored};
use crate::types::{Body, LogId, SnapshotMeta, StoredMembership, Types};

/// A committed application entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Log index. Gaps are entries of Raft itself (a new leader's first, memberships).
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// What was proposed, byte for byte.
    pub body: Bytes,
}

/// The state machine cannot go on; the server role ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FatalError(pub String);

/// What the log drives. It lives on a thread of its own, never on the Raft runtime.
pub trait StateMachine: Send + 'static {
    /// Applies `batch` in order and returns one reply for each; publishes once, at the end.
    ///
    /// Errors: [`FatalError`] ends the server role. A refusal is a reply, not an error.
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, FatalError>;

    /// Whether applying `body` now takes microseconds, waking who waits for it included. Few such entries at a time are
    /// applied on the Raft thread itself, which saves two thread switches; it can do nothing else meanwhile.
    fn is_light(&self, _body: &[u8]) -> bool {
        false
    }

    /// The state as of now, to be written elsewhere while applying goes on. Must be O(1).
    fn freeze(&mut self) -> Box<dyn FrozenState>;

    /// Replaces the state by what [`FrozenState::write`] wrote.
    ///
    /// Errors: [`FatalError`] when the content cannot be read.
    fn restore(&mut self, from: &mut dyn io::Read) -> Result<(), FatalError>;
}

/// An immutable view of the state.
pub trait FrozenState: Send {
    /// Writes everything [`StateMachine::restore`] needs.
    ///
    /// Errors: those of `to`.
    fn write(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()>;
}

/// openraft's state machine: keeps the bookkeeping, passes the work on.
pub(crate) struct Machine {
    work: mpsc::Sender<Work>,
    inline: Arc<dyn Inline>,
    snapshots: Arc<SnapshotStore>,
    progress: Arc<Progress>,
    metrics: Arc<RaftMetrics>,
    clock: Arc<dyn Clock>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// Starts the `apply` thread. `applied` and `membership` say what `machine` already holds.
    pub(crate) fn start<S: StateMachine>(
        machine: S,
        applied: Option<LogId>,
        membership: StoredMembership,
        shared: Shared,
    ) -> io::Result<Self> {
        let Shared {
            snapshots,
            progress,
            metrics,
            clock,
        } = shared;
        let (work, queue) = mpsc::channel();
        let applier = Arc::new(Mutex::new(Applier {
            machine,
            progress: progress.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
        }));
        let inline = applier.clone();
        std::thread::Builder::new()
            .name("weft-apply".into())
            .spawn(move || serve(&applier, &queue))?;
        Ok(Self {
            work,
            inline,
            snapshots,
            progress,
            metrics,
            clock,
            applied,
            membership,
        })
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Work) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        self.work
            .send(make(done))
            .map_err(|_| apply_thread_gone())?;
        answer.await.map_err(|_| apply_thread_gone())
    }

    async fn apply_batch(&mut self, mut batch: Batch) -> io::Result<()> {
        let Some(last) = batch.last else {
            return Ok(());
        };
        let (others, membership) = (std::mem::take(&mut batch.others), batch.membership.take());
        self.apply_entries(batch, last.index + 1).await?;
        for responder in others {
            responder.send(Body::default());
        }
        self.applied = Some(last);
        if let Some(membership) = membership {
            self.membership = membership;
        }
        Ok(())
    }

    async fn apply_entries(&self, mut batch: Batch, next: u64) -> io::Result<()> {
        if batch.entries.is_empty() {
            self.progress.advance(next);
            return Ok(());
        }
        if let Some(applied) = self.inline.try_apply(&mut batch, next) {
            return applied;
        }
        self.ask(|done| Work::Apply {
            entries: batch.entries,
            responders: batch.responders,
            next,
            done,
        })
        .await?
    }
}

/// What the machine shares with the rest of the node.
pub(crate) struct Shared {
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<RaftMetrics>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        while let Some(first) = entries.next().await {
            let mut batch = Batch::default();
            batch.push(first?);
            while !batch.is_full() {
                match entries.next().now_or_never() {
                    Some(Some(entry)) => batch.push(entry?),
                    Some(None) | None => break,
                }
            }
            self.apply_batch(batch).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        let frozen = self.ask(|done| Work::Freeze { done }).await;
        Some(Builder {
            frozen: Mutex::new(Some(frozen)),
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshots: self.snapshots.clone(),
            metrics: self.metrics.clone(),
            clock: self.clock.clone(),
        })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.try_create_snapshot_builder(true)
            .await
            .expect("this machine never defers a snapshot")
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let (snapshots, kept) = (self.snapshots.clone(), meta.clone());
        let stored = on_thread("weft-snapshot", move || snapshots.publish(kept, snapshot)).await?;
        let next = meta.last_log_id.as_ref().map_or(0, |id| id.index + 1);
        self.ask(|done| Work::Restore {
            data: stored.data,
            next,
            done,
        })
        .await??;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.metrics.snapshot_installed();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::alias::SnapshotOf<Types, SnapshotData>>> {
        Ok(self.snapshots.current().map(into_openraft))
    }
}

/// Writes one frozen state on a thread of its own.
pub(crate) struct Builder {
    /// Behind a lock only because openraft wants builders to be `Sync`.
    frozen: Mutex<Option<io::Result<Box<dyn FrozenState>>>>,
    meta: SnapshotMeta,
    snapshots: Arc<SnapshotStore>,
    metrics: Arc<RaftMetrics>,
    clock: Arc<dyn Clock>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<openraft::alias::SnapshotOf<Types, SnapshotData>> {
        let frozen = self.frozen.get_mut().take();
        let frozen = frozen.ok_or_else(|| io::Error::other("a snapshot builder builds once"))??;
        let (snapshots, meta) = (self.snapshots.clone(), self.meta.clone());
        let start = self.clock.monotonic();
        let built = on_thread("weft-snapshot", move || {
            snapshots.write(meta, |to| frozen.write(to))
        })
        .await;
        let stored = match (built, self.snapshots.current()) {
            (Ok(stored), _) => stored,
            // openraft ends on an error here, at each start again while the disk is full: reads would end
            // with it. The log still has what the snapshot would have covered.
            (Err(cause), Some(last)) => {
                tracing::error!(error = %cause, "snapshot not written, the last one stays");
                return Ok(into_openraft(last));
            }
            (Err(cause), None) => return Err(cause),
        };
        let took = self.clock.monotonic().saturating_sub(start);
        self.metrics.snapshot_built(stored.data.size_bytes(), took);
        Ok(into_openraft(stored))
    }
}

fn into_openraft(stored: Stored) -> openraft::alias::SnapshotOf<Types, SnapshotData> {
    openraft::Snapshot {
        meta: stored.meta,
        snapshot: stored.data,
    }
}

fn apply_thread_gone() -> io::Error {
    io::Error::other("the apply thread has ended (the state machine panicked)")
}

/// Runs blocking work on a thread of its own, so that neither the Raft runtime nor its pool waits.
pub(crate) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, answer) = oneshot::channel();
    // The receiver may be gone when openraft cancelled the task; the work is complete all the same.
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || drop(done.send(work())))?;
    answer
        .await
        .map_err(|_| io::Error::other("a snapshot thread panicked"))?
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use weft_proto::clock::SystemClock;

    use super::*;
    use crate::applier::{INLINE_BYTES_MAX, INLINE_ENTRIES_MAX};

    /// Notes what was applied, and on which thread. Bodies that begin with `l` are light.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<(u64, ThreadId)>>>);

    impl StateMachine for Notes {
        fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, FatalError> {
            assert!(
                batch.iter().all(|entry| entry.body != "l panic"),
                "as asked"
            );
            let thread = std::thread::current().id();
            self.0
                .lock()
                .extend(batch.iter().map(|entry| (entry.index, thread)));
            Ok(batch.iter().map(|entry| entry.body.clone()).collect())
        }

        fn is_light(&self, body: &[u8]) -> bool {
            body.first() == Some(&b'l')
        }

        fn freeze(&mut self) -> Box<dyn FrozenState> {
            unreachable!("no snapshot here")
        }

        fn restore(&mut self, _: &mut dyn io::Read) -> Result<(), FatalError> {
            unreachable!("no snapshot here")
        }
    }

    fn machine(notes: &Notes) -> Machine {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let shared = Shared {
            snapshots: Arc::new(SnapshotStore::open(None, clock.clone()).unwrap()),
            progress: Arc::new(Progress::new(0, 0)),
            metrics: Arc::new(RaftMetrics::new()),
            clock,
        };
        Machine::start(notes.clone(), None, StoredMembership::default(), shared).unwrap()
    }

    fn batch(first: u64, bodies: &[&'static str]) -> (Batch, u64) {
        let mut batch = Batch::default();
        for (index, body) in (first..).zip(bodies) {
            batch.bytes += body.len();
            batch.entries.push(Committed {
                index,
                term: 1,
                body: Bytes::from_static(body.as_bytes()),
            });
            batch.responders.push(None);
        }
        (batch, first + bodies.len() as u64)
    }

    #[tokio::test]
    async fn few_light_entries_are_applied_here_and_everything_else_on_the_thread() {
        let (notes, here) = (Notes::default(), std::thread::current().id());
        let machine = machine(&notes);
        let mut first = 0;
        for (bodies, expected_here) in [
            (&["l"][..], true),
            (&["heavy"], false),
            (&["l", "heavy", "l"], false),
            (&["l"; INLINE_ENTRIES_MAX], true),
            (&["l"; INLINE_ENTRIES_MAX + 1], false),
            (&["l"], true),
        ] {
            let (batch, next) = batch(first, bodies);
            machine.apply_entries(batch, next).await.unwrap();
            assert_eq!(machine.progress.applied_next(), next);
            let applied = notes.0.lock().clone();
            assert_eq!(applied.len() as u64, next, "each once");
            for (index, thread) in &applied[usize::try_from(first).unwrap()..] {
                assert_eq!(
                    *thread == here,
                    expected_here,
                    "entry {index} of {bodies:?}"
                );
            }
            first = next;
        }
        let applied = notes.0.lock().clone();
        assert!(
            applied.iter().map(|(index, _)| *index).eq(0..first),
            "in order"
        );
    }

    #[tokio::test]
    async fn many_bytes_are_not_light() {
        let (notes, here) = (Notes::default(), std::thread::current().id());
        let machine = machine(&notes);
        let (mut batch, next) = batch(0, &["l"]);
        batch.bytes = INLINE_BYTES_MAX + 1;
        machine.apply_entries(batch, next).await.unwrap();
        assert_ne!(notes.0.lock()[0].1, here);
    }

    #[tokio::test]
    async fn a_panic_ends_the_machine_not_the_raft_thread() {
        let machine = machine(&Notes::default());
        let (batch, next) = batch(0, &["l panic"]);
        let error = machine.apply_entries(batch, next).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(machine.progress.applied_next(), 0);
    }
}
