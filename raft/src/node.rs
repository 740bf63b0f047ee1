//! One Raft node: its thread, its runtime, and the handle everybody else uses.
//!
//! Owns: start and stop, proposals, waits.
//! Never: runs Raft work on the caller's runtime beyond queueing and waiting.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use weft_proto::clock::Clock;

use crate::applier::Progress;
use crate::config::RaftConfig;
use crate::error::{BootstrapError, ProposeError, ReadIndexError, StartError, WaitError};
use crate::keeper;
use crate::log::{LogStore, LogUsage};
use crate::machine::{Machine, Shared, StateMachine};
use crate::metrics::{Outcome, RaftMetrics};
use crate::net::{Acceptor, Dialer, Factory, Raft, RaftStream, Transport};
use crate::peer::Peer;
use crate::reads::{self, Reads};
use crate::recovery;
use crate::snapshot::SnapshotStore;
use crate::status::{Publisher, Status};
use crate::storage::LogAdapter;
use crate::types::{Body, Types};

/// A proposal that was committed and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its log index.
    pub index: u64,
    /// What the state machine replied.
    pub reply: Bytes,
}

/// A running node. Clones are handles to the same one; it runs until [`RaftNode::shutdown`].
#[derive(Clone)]
pub struct RaftNode {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) raft: Raft,
    pub(crate) runtime: tokio::runtime::Handle,
    config: RaftConfig,
    store: Arc<dyn LogStore>,
    progress: Arc<Progress>,
    acceptor: Arc<Acceptor>,
    metrics: Arc<RaftMetrics>,
    clock: Arc<dyn Clock>,
    reads: Reads,
    transport: Arc<Transport>,
    status: watch::Receiver<Arc<Status>>,
    in_flight: AtomicUsize,
    /// Membership changes this server is making.
    pub(crate) changing: AtomicUsize,
    stopping: AtomicBool,
    stop: Mutex<Option<Stop>>,
}

struct Stop {
    ask: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
}

impl RaftNode {
    /// Restores the newest snapshot, replays the committed log, and starts the node.
    ///
    /// Blocks while it does: 100,000 small keys take well under half a second. `snapshot_dir` is
    /// `None` for a node that lives in memory (`-dev`). The node has a thread and a runtime of its
    /// own; the caller's futures need a tokio context with timers.
    ///
    /// Errors: [`StartError`]; nothing on disk was changed.
    pub fn start(
        config: RaftConfig,
        store: Arc<dyn LogStore>,
        snapshot_dir: Option<PathBuf>,
        mut machine: impl StateMachine,
        dialer: Arc<dyn Dialer>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let openraft_config = config.to_openraft()?;
        let snapshots = SnapshotStore::open(snapshot_dir, clock.clone())
            .map_err(cannot("open the snapshots"))?;
        let snapshots = Arc::new(snapshots);
        let recovered = recovery::recover(store.as_ref(), &snapshots, &mut machine)?;
        let applied_next = recovered.applied.as_ref().map_or(0, |id| id.index + 1);
        let progress = Arc::new(Progress::new(applied_next, recovered.bytes_since_snapshot));
        let metrics = Arc::new(RaftMetrics::new());
        let shared = Shared {
            snapshots: snapshots.clone(),
            progress: progress.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
        };
        let machine = Machine::start(machine, recovered.applied, recovered.membership, shared)
            .map_err(cannot("start the apply thread"))?;
        let transport = Transport::new(&config, dialer);
        Boot {
            config,
            openraft_config,
            store,
            snapshots,
            machine,
            progress,
            metrics,
            clock,
            transport,
        }
        .run()
    }

    /// Forms a new cluster of `peers`, all voters, this server among them.
    ///
    /// Errors: [`BootstrapError::AlreadyInitialized`] on a server that has a log or has voted.
    pub async fn bootstrap(&self, peers: Vec<Peer>) -> Result<(), BootstrapError> {
        let members: std::collections::BTreeMap<_, _> = peers
            .into_iter()
            .map(|peer| (peer.id, peer.into_node()))
            .collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                Err(BootstrapError::AlreadyInitialized)
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(BootstrapError::NotAMember)
            }
            Err(RaftError::Fatal(fatal)) => Err(BootstrapError::Stopped(fatal.to_string())),
        }
    }

    /// Whether this server belongs to a cluster: it has a log, or has voted.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        let state = self.inner.store.state();
        state.last.is_some() || state.purged.is_some() || state.vote.is_some()
    }

    /// Proposes `body` and waits until it is applied on this server.
    ///
    /// Errors: [`ProposeError`]; after [`ProposeError::Unknown`] it may still take effect.
    pub async fn propose(&self, body: Bytes) -> Result<Applied, ProposeError> {
        let inner = &self.inner;
        let start = inner.clock.monotonic();
        let result = inner.propose(body).await;
        let took = inner.clock.monotonic().saturating_sub(start);
        inner.metrics.proposal(outcome(&result), took);
        result
    }

    /// Says that somebody at another server waits until that one has applied what this server, the leader,
    /// is writing now: for the next 20 ms followers hear of commits at once instead of with the next write.
    pub fn hurry(&self) {
        self.inner.transport.hurry();
    }

    /// Confirms with a quorum that this server leads, and returns the index a linearizable read must see.
    ///
    /// Reads that wait at the same time share a round; a round serves only those that came before
    /// it began. Wait for the index with [`Self::wait_applied`] on any server.
    ///
    /// Errors: [`ReadIndexError`]; all are safe to retry.
    pub async fn read_index(&self) -> Result<u64, ReadIndexError> {
        // The round under way when the read came, and its own.
        let limit = self.inner.config.read_timeout * 2;
        self.inner.reads.index(limit).await
    }

    /// Waits until entry `index` is applied here.
    ///
    /// Errors: [`WaitError::Timeout`] after `patience`.
    pub async fn wait_applied(&self, index: u64, patience: Duration) -> Result<(), WaitError> {
        let progress = &self.inner.progress;
        if progress.applied_next() > index {
            return Ok(());
        }
        let mut applied = progress.watch_applied_next();
        match timeout(patience, applied.wait_for(|next| *next > index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Stopped("shut down".into())),
            Err(_) => Err(WaitError::Timeout {
                after: patience,
                applied: progress.applied_next().saturating_sub(1),
                wanted: index,
            }),
        }
    }

    /// Waits until everything this server's log held when it started is known to be committed and
    /// applied, so that no read can be older than one before the restart.
    ///
    /// Errors: [`WaitError::Timeout`]; without a leader it cannot be known.
    pub async fn wait_recovered(&self, patience: Duration) -> Result<(), WaitError> {
        let raft = self.inner.raft.clone();
        let waiting = self
            .inner
            .runtime
            .spawn(async move { raft.wait_for_recovery(Some(patience)).await });
        match waiting.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(openraft::metrics::WaitError::Timeout(..))) => {
                let status = self.status();
                Err(WaitError::Timeout {
                    after: patience,
                    applied: status.applied,
                    wanted: status.last_log,
                })
            }
            Ok(Err(other)) => Err(WaitError::Stopped(other.to_string())),
            Err(_) => Err(WaitError::Stopped("shut down".into())),
        }
    }

    /// The latest status, at most a heartbeat old. Cheap.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.inner.status.borrow().clone()
    }

    /// The status as it changes. A change of role, term, leader or membership is published at once.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.status.clone()
    }

    /// Last applied index at this moment; 0 before the first.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.inner.progress.applied_next().saturating_sub(1)
    }

    /// Time since the leader was heard, at this moment: 0 on the leader, `None` if never.
    #[must_use]
    pub fn last_contact(&self) -> Option<Duration> {
        if self.status().is_leader() {
            Some(Duration::ZERO)
        } else {
            self.inner.acceptor.since_leader_heard()
        }
    }

    /// Builds a snapshot now and returns the index it covers.
    ///
    /// Errors: [`WaitError`] when it is not there within ten minutes or Raft has stopped.
    pub async fn snapshot(&self) -> Result<u64, WaitError> {
        const PATIENCE: Duration = Duration::from_secs(600);
        let wanted = self.applied();
        let raft = self.inner.raft.clone();
        let building = self.inner.runtime.spawn(async move {
            raft.trigger()
                .snapshot()
                .await
                .map_err(|fatal| WaitError::Stopped(fatal.to_string()))?;
            let covers = |metrics: &crate::status::Metrics| {
                metrics.snapshot.is_some_and(|id| id.index >= wanted)
            };
            let metrics = raft
                .wait(Some(PATIENCE))
                .metrics(covers, "snapshot")
                .await
                .map_err(|_| WaitError::Timeout {
                    after: PATIENCE,
                    applied: wanted,
                    wanted,
                })?;
            Ok(metrics.snapshot.map_or(0, |id| id.index))
        });
        building
            .await
            .unwrap_or_else(|_| Err(WaitError::Stopped("shut down".into())))
    }

    /// Runs `work` on the Raft runtime, which no load on the caller's own can delay.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.runtime.spawn(work);
    }

    /// Serves an accepted connection that speaks Raft (after TLS and the type byte), on the Raft runtime.
    pub fn serve(&self, stream: Box<dyn RaftStream>) {
        let acceptor = self.inner.acceptor.clone();
        self.inner.runtime.spawn(acceptor.serve(stream));
    }

    /// Takes note of the servers of this cluster's gossip pool: they may speak to this one although it has
    /// not heard yet that they are members.
    pub fn set_pool(&self, servers: std::collections::BTreeSet<crate::peer::RaftId>) {
        self.inner.acceptor.gate.set_pool(servers);
    }

    /// Size of the log.
    #[must_use]
    pub fn log_usage(&self) -> LogUsage {
        self.inner.store.usage()
    }

    /// This node's metrics, to be registered once.
    #[must_use]
    pub fn metrics(&self) -> Arc<RaftMetrics> {
        self.inner.metrics.clone()
    }

    /// Ends the node. Proposals in flight end as unknown. A second call waits for nothing.
    ///
    /// The log store is let go of (and with it the lock on its directory) with the last handle.
    pub async fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let Some(stop) = self.inner.stop.lock().take() else {
            return;
        };
        // An error means the thread is gone already.
        stop.ask.send(()).ok();
        stop.done.await.ok();
    }
}

impl Inner {
    async fn propose(&self, body: Bytes) -> Result<Applied, ProposeError> {
        let limit_bytes = self.config.proposal_max_bytes;
        if body.len() > limit_bytes {
            return Err(ProposeError::TooLarge {
                size_bytes: body.len(),
                limit_bytes,
            });
        }
        if let Some(why) = self.stopped() {
            return Err(ProposeError::Stopped(why));
        }
        let _slot = Slot::take(&self.in_flight, self.config.proposals_max)?;
        let write = self.raft.client_write(Body(body));
        match timeout(self.config.proposal_timeout, write).await {
            Ok(Ok(written)) => Ok(Applied {
                index: written.log_id.index,
                reply: written.data.0,
            }),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader {
                    leader: self.other_leader(forward),
                })
            }
            Ok(Err(RaftError::APIError(error))) => Err(ProposeError::Unknown(error.to_string())),
            Ok(Err(RaftError::Fatal(fatal))) => Err(ProposeError::Unknown(format!(
                "raft stopped meanwhile: {fatal}"
            ))),
            Err(_) => {
                let after = self.config.proposal_timeout;
                Err(ProposeError::Unknown(format!(
                    "not applied within {after:?} (raft proposal_timeout)"
                )))
            }
        }
    }

    /// A leader that lost its quorum must not send its clients to itself.
    pub(crate) fn other_leader(&self, forward: ForwardToLeader<Types>) -> Option<Peer> {
        reads::leader_of(forward).filter(|peer| peer.id != self.config.id)
    }

    fn stopped(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("shut down".into());
        }
        self.status.borrow().fatal.clone()
    }
}

/// One of the bounded proposals in flight; given back when dropped.
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn take(in_flight: &'a AtomicUsize, limit: usize) -> Result<Self, ProposeError> {
        let slot = Self(in_flight);
        if in_flight.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(ProposeError::Overloaded { limit });
        }
        Ok(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn outcome(result: &Result<Applied, ProposeError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Applied,
        Err(ProposeError::NotLeader { .. }) => Outcome::NotLeader,
        Err(ProposeError::Unknown(_)) => Outcome::Unknown,
        Err(ProposeError::Overloaded { .. }) => Outcome::Overloaded,
        Err(ProposeError::TooLarge { .. }) => Outcome::TooLarge,
        Err(ProposeError::Stopped(_)) => Outcome::Stopped,
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Io {
        what: what.to_owned(),
        cause,
    }
}

/// Everything the Raft thread needs.
struct Boot {
    config: RaftConfig,
    openraft_config: openraft::Config,
    store: Arc<dyn LogStore>,
    snapshots: Arc<SnapshotStore>,
    machine: Machine,
    progress: Arc<Progress>,
    metrics: Arc<RaftMetrics>,
    clock: Arc<dyn Clock>,
    transport: Arc<Transport>,
}

impl Boot {
    fn run(self) -> Result<RaftNode, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot("build the raft runtime"))?;
        let (started, node) = std::sync::mpsc::sync_channel(1);
        let (finished, done) = oneshot::channel();
        let thread = move || {
            let (ask, asked) = oneshot::channel();
            runtime.block_on(async move {
                let stop = Stop { ask, done };
                let node = self.build(stop).await;
                let raft = node.as_ref().ok().map(|node| node.inner.raft.clone());
                // The starter waits for exactly this.
                started.send(node).ok();
                let Some(raft) = raft else { return };
                // Dropped or sent: both mean the end.
                asked.await.ok();
                raft.shutdown().await.ok();
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
            finished.send(()).ok();
        };
        std::thread::Builder::new()
            .name("weft-raft".into())
            .spawn(thread)
            .map_err(cannot("start the raft thread"))?;
        node.recv()
            .unwrap_or_else(|_| Err(StartError::Raft("the raft thread panicked".into())))
    }

    async fn build(self, stop: Stop) -> Result<RaftNode, StartError> {
        let Self {
            config,
            openraft_config,
            store,
            snapshots,
            machine,
            progress,
            metrics,
            clock,
            transport,
        } = self;
        let log = LogAdapter::new(store.clone(), config.payload_max_bytes);
        let factory = Factory(transport.clone());
        let raft = Raft::new(config.id, Arc::new(openraft_config), factory, log, machine)
            .await
            .map_err(|fatal| StartError::Raft(fatal.to_string()))?;
        let acceptor = Arc::new(Acceptor::new(
            &config,
            raft.clone(),
            snapshots,
            metrics.clone(),
            clock.clone(),
        ));
        let (publish, status) = watch::channel(Arc::new(Status {
            id: config.id,
            ..Status::default()
        }));
        let publisher = Publisher {
            to: publish,
            acceptor: acceptor.clone(),
            transport: transport.clone(),
            metrics: metrics.clone(),
            every: config.heartbeat_scaled(),
        };
        tokio::spawn(publisher.run(raft.metrics()));
        let (reads, waiting) = Reads::new();
        tokio::spawn(reads::serve(
            waiting,
            raft.clone(),
            metrics.clone(),
            config.read_timeout,
        ));
        tokio::spawn(keeper::keep(
            raft.clone(),
            config.clone(),
            store.clone(),
            progress.clone(),
        ));
        stand_alone(&raft, &config).await;
        let inner = Inner {
            raft,
            runtime: tokio::runtime::Handle::current(),
            config,
            store,
            progress,
            acceptor,
            metrics,
            clock,
            transport,
            reads,
            status,
            in_flight: AtomicUsize::new(0),
            changing: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
        };
        Ok(RaftNode {
            inner: Arc::new(inner),
        })
    }
}

/// A cluster of one has nobody to wait for: it stands for election at once after a restart.
async fn stand_alone(raft: &Raft, config: &RaftConfig) {
    let alone = raft
        .with_raft_state(|state| {
            let membership = state.membership_state.effective().membership().clone();
            membership.voter_ids().collect::<Vec<_>>()
        })
        .await
        .is_ok_and(|voters| voters == [config.id]);
    if alone {
        // An error means Raft has stopped; the status says why.
        raft.trigger().elect(false).await.ok();
    }
}
