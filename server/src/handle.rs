//! The server role as one value: start it, write, read, operate, stop.
//!
//! Owns: finding the leader within the hold time, and saying what is known about a write.
//! Never: retries anything that may have been proposed.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::sync::watch;
use weft_catalog::{Hub, State};
use weft_gossip::Gossip;
use weft_proto::clock::Clock;
use weft_proto::v1;
use weft_raft::{ProposeError, RaftNode, ReadIndexError, Role, Status};

use crate::agents::AgentApi;
use crate::config::ServerConfig;
use crate::coordinates::Waiting;
use crate::disk_reserve::DiskReserve;
use crate::enrolment::Enrolment;
use crate::formation::Reservation;
use crate::forward::{CallError, Forwarder};
use crate::hashes::Hashes;
use crate::leader::health::ServerHealth;
use crate::metrics::Metrics;
use crate::published::Published;
use crate::reads::{ReadMeta, Rounds};
use crate::stamp::ClusterTime;
use crate::transport::{MaxConns, Transport};

/// How long a replaced leader is still listened to about a write it was given.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a read is given at least for its last step, however late it is.
const READ_MIN: Duration = Duration::from_millis(100);

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// Nothing was proposed; safe to retry.
    #[error("No cluster leader")]
    NoLeader,
    /// It may or may not take effect.
    #[error("{0}")]
    Unknown(String),
    /// Below the disk reserve; nothing was proposed.
    #[error("{0}")]
    DiskFull(String),
    /// Too many proposals in flight; nothing was proposed.
    #[error("{0}")]
    Overloaded(String),
    /// One log entry cannot hold it; nothing was proposed.
    #[error("{0}")]
    TooLarge(String),
    /// The server role is over; nothing was proposed.
    #[error("{0}")]
    Stopped(String),
}

/// Why a linearizable read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// No leader within the hold time.
    #[error("No cluster leader")]
    NoLeader,
    /// The leader could not confirm itself, or this server not catch up, in time.
    #[error("{0}")]
    Timeout(String),
    /// The server role is over.
    #[error("{0}")]
    Stopped(String),
}

/// Why the server role could not start, or an operator's request could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or socket was refused.
    #[error("{what}")]
    Io {
        /// What was tried, on what, and the remedy.
        what: String,
        /// The operating system's reason.
        #[source]
        cause: std::io::Error,
    },
    /// The log, a snapshot or the data directory is not usable; the text names file and remedy.
    #[error("{0}")]
    Store(String),
    /// No leader within the hold time.
    #[error("No cluster leader")]
    NoLeader,
    /// The request names something that is not there, or contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// Refused or failed, in words for the user.
    #[error("{0}")]
    Failed(String),
}

/// The running server role. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ServerConfig,
    pub(crate) raft: RaftNode,
    pub(crate) published: Arc<Published>,
    pub(crate) time: Arc<ClusterTime>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: Duration,
    pub(crate) transport: Transport,
    pub(crate) max_conns: Arc<MaxConns>,
    pub(crate) forwarder: Forwarder,
    pub(crate) follower_rounds: Rounds,
    pub(crate) disk: Arc<DiskReserve>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) hashes: Arc<Hashes>,
    pub(crate) gossip: ArcSwapOption<Gossip>,
    pub(crate) reservation: Reservation,
    /// Coordinates that wait to be written.
    pub(crate) coordinates: Waiting,
    /// This server said goodbye: it must not ask to be let in again on its way out.
    pub(crate) leaving: AtomicBool,
    /// How the leader finds the servers; empty elsewhere.
    pub(crate) health: Mutex<ServerHealth>,
    /// Since when this server leads, on the monotonic clock.
    pub(crate) leading_since: Mutex<Option<Duration>>,
    /// Held while a server is let in.
    pub(crate) admitting: tokio::sync::Mutex<()>,
    pub(crate) public_key: Bytes,
    /// By which calls that agents forward are answered.
    pub(crate) api: OnceLock<Arc<dyn AgentApi>>,
    pub(crate) enrolment: OnceLock<Arc<dyn Enrolment>>,
    /// The mesh's CA, when this server leads.
    pub(crate) ca: crate::ca::Office,
    /// Why a task of the role ended that must not.
    pub(crate) failed: watch::Sender<Option<String>>,
    pub(crate) stop: watch::Sender<bool>,
}

impl Server {
    /// The newest published state.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.inner.published.load()
    }

    /// Where readers wait for changes.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        self.inner.published.hub()
    }

    /// Consensus as this server sees it.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.inner.raft.status()
    }

    /// Changes of [`Server::status`]; `fatal` in it means that the process must exit non-zero.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.raft.watch_status()
    }

    /// Resolves when a task of the role has ended that must not, with the reason; the process must exit
    /// non-zero. Consensus has its own way to say so: `fatal` in [`Server::watch_status`].
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.subscribe();
        let why = failed.wait_for(Option::is_some).await;
        why.map_or_else(|_| String::new(), |why| why.clone().unwrap_or_default())
    }

    /// Adds the metrics of the role and of consensus to `registry`; once.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.max_conns.register(registry);
        self.inner.metrics.register(registry);
        self.inner.ca.metrics.register(registry);
        self.inner.raft.metrics().register(registry);
    }

    /// `host:port` of the leader's server port, if one is known.
    #[must_use]
    pub fn leader_address(&self) -> Option<String> {
        let status = self.status();
        status
            .leader
            .as_ref()
            .map(|peer| self.inner.transport.address_of(peer))
    }

    /// Puts another bound on the connections of one address in force, for those that come from now on
    /// (`limits.rpc_max_conns_per_client`).
    pub fn set_max_conns_per_client(&self, max: usize) {
        self.inner.max_conns.set(max);
    }

    /// Stamps, proposes (here or at the leader) and waits until this server has applied it.
    ///
    /// Errors: everything but [`WriteFailure::Unknown`] means that nothing was proposed.
    pub async fn write(&self, command: v1::stamped::Command) -> Result<v1::Outcome, WriteFailure> {
        let deadline = self.inner.clock.monotonic() + self.inner.config.hold_timeout;
        loop {
            let attempt = if self.inner.raft.status().role == Role::Leader {
                self.propose(command.clone()).await
            } else {
                self.forward(&command).await
            };
            match attempt {
                Err(WriteFailure::NoLeader) if self.inner.clock.monotonic() < deadline => {
                    self.leader_may_have_changed(deadline).await
                }
                other => return other,
            }
        }
    }

    /// Proposes on this server, which must be the leader.
    pub(crate) async fn propose(
        &self,
        command: v1::stamped::Command,
    ) -> Result<v1::Outcome, WriteFailure> {
        let inner = &self.inner;
        if !frees_space(&command) {
            inner.disk.check().map_err(WriteFailure::DiskFull)?;
        }
        let stamped = v1::Stamped {
            at_millis: inner
                .time
                .now(inner.clock.monotonic(), inner.clock.wall())
                .get(),
            term: inner.raft.status().term,
            command: Some(command),
            ..v1::Stamped::default()
        };
        match inner
            .raft
            .propose(Bytes::from(stamped.encode_to_vec()))
            .await
        {
            Ok(applied) => v1::Outcome::decode(applied.reply).map_err(|cause| {
                WriteFailure::Unknown(format!("the reply cannot be read: {cause}"))
            }),
            Err(ProposeError::NotLeader { .. }) => Err(WriteFailure::NoLeader),
            Err(ProposeError::Unknown(why)) => Err(WriteFailure::Unknown(why)),
            Err(cause @ ProposeError::Overloaded { .. }) => {
                Err(WriteFailure::Overloaded(cause.to_string()))
            }
            Err(cause @ ProposeError::TooLarge { .. }) => {
                Err(WriteFailure::TooLarge(cause.to_string()))
            }
            Err(cause) => Err(WriteFailure::Stopped(cause.to_string())),
        }
    }

    async fn forward(&self, command: &v1::stamped::Command) -> Result<v1::Outcome, WriteFailure> {
        let address = self.leader_address().ok_or(WriteFailure::NoLeader)?;
        let stamped = v1::Stamped {
            command: Some(command.clone()),
            ..v1::Stamped::default()
        };
        let encoded = Bytes::from(stamped.encode_to_vec());
        let sent = self.inner.forwarder.write(&address, encoded);
        // A leader that was replaced may be frozen: its answer may never come, but one that handed
        // over in good order still answers what it had taken.
        let deposed = async {
            self.inner.deposed(&address).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let answer = tokio::select! {
            biased;
            answer = sent => answer,
            () = deposed => Err(CallError::Unknown(format!("{address} was replaced before it answered"))),
        };
        let reply = match answer {
            Ok(reply) => reply,
            Err(CallError::NotSent(why)) => {
                tracing::debug!(leader.addr = %address, error = %why, "leader not reached");
                return Err(WriteFailure::NoLeader);
            }
            Err(CallError::Unknown(why)) => {
                return Err(WriteFailure::Unknown(format!(
                    "forwarded to the leader, but {why}"
                )));
            }
        };
        match reply.result {
            Some(v1::write_reply::Result::Outcome(bytes)) => {
                let outcome = v1::Outcome::decode(bytes).map_err(|cause| {
                    WriteFailure::Unknown(format!("the leader's reply cannot be read: {cause}"))
                })?;
                self.see_own_write(&outcome).await;
                Ok(outcome)
            }
            Some(v1::write_reply::Result::Failure(failure)) => Err(failed(failure)),
            None => Err(WriteFailure::Unknown("the leader's reply was empty".into())),
        }
    }

    /// After a forwarded write, waits (briefly) until it is applied here, so that a stale read at
    /// this server sees it. The write is done either way.
    async fn see_own_write(&self, outcome: &v1::Outcome) {
        let state = self.state();
        if state.index().get() >= outcome.index {
            return;
        }
        let log_index = outcome.index.saturating_sub(state.base());
        drop(state);
        let _ = self
            .inner
            .raft
            .wait_applied(log_index, Duration::from_secs(2))
            .await;
    }

    /// Waits until this server's state is linearizable with respect to the call's beginning.
    pub async fn barrier(&self) -> Result<ReadMeta, ReadFailure> {
        let inner = &self.inner;
        let deadline = inner.clock.monotonic() + inner.config.hold_timeout;
        loop {
            let attempt = if inner.raft.status().role == Role::Leader {
                inner.raft.read_index().await.map_err(read_failed)
            } else {
                let left = deadline.saturating_sub(inner.clock.monotonic());
                inner.follower_rounds.index(left.max(READ_MIN)).await
            };
            match attempt {
                Ok(index) => {
                    let left = deadline
                        .saturating_sub(inner.clock.monotonic())
                        .max(READ_MIN);
                    inner
                        .raft
                        .wait_applied(index, left)
                        .await
                        .map_err(|cause| ReadFailure::Timeout(cause.to_string()))?;
                    return Ok(self.meta());
                }
                Err(ReadFailure::Stopped(why)) => return Err(ReadFailure::Stopped(why)),
                Err(failure) if inner.clock.monotonic() >= deadline => return Err(failure),
                Err(_) => self.leader_may_have_changed(deadline).await,
            }
        }
    }

    /// What a stale answer given now may say about its age.
    #[must_use]
    pub fn meta(&self) -> ReadMeta {
        let status = self.inner.raft.status();
        let uptime = || {
            self.inner
                .clock
                .monotonic()
                .saturating_sub(self.inner.started)
        };
        ReadMeta {
            known_leader: status.leader.is_some(),
            last_contact: self.inner.raft.last_contact().unwrap_or_else(uptime),
        }
    }

    /// Sleeps until the role or leader changes, a moment passes, or `deadline` comes.
    async fn leader_may_have_changed(&self, deadline: Duration) {
        let left = deadline.saturating_sub(self.inner.clock.monotonic());
        let mut status = self.inner.raft.watch_status();
        let seen = leader_of(&status.borrow_and_update());
        let changed = async {
            while status.changed().await.is_ok() && leader_of(&status.borrow_and_update()) == seen {
            }
        };
        let _ = tokio::time::timeout(left.min(Duration::from_millis(50)), changed).await;
    }

    /// Gives the role its gossip pool; formation and reconciliation begin.
    pub fn attach_gossip(&self, gossip: Arc<Gossip>) {
        self.inner.gossip.store(Some(gossip));
    }

    /// Ends the role: hands leadership over when there is somebody to take it, then stops.
    pub async fn shutdown(&self) {
        let status = self.status();
        if status.role == Role::Leader
            && status.members.iter().filter(|member| member.voter).count() > 1
        {
            let _ = tokio::time::timeout(
                Duration::from_secs(2),
                self.inner.raft.transfer_leader(None),
            )
            .await;
        }
        let _ = self.inner.stop.send(true);
        self.inner.raft.shutdown().await;
    }
}

impl Inner {
    /// Resolves when the server at `address` is no longer the leader as far as is known here.
    pub(crate) async fn deposed(&self, address: &str) {
        let leads = |status: &Arc<Status>| {
            let leader = status.leader.as_ref();
            leader.is_some_and(|peer| self.transport.address_of(peer) == address)
        };
        let mut status = self.raft.watch_status();
        if status.wait_for(|status| !leads(status)).await.is_err() {
            // Consensus has stopped here; whoever waits has a time-out of its own.
            std::future::pending::<()>().await;
        }
    }
}

fn leader_of(status: &Arc<Status>) -> (u64, Option<weft_raft::RaftId>) {
    (status.term, status.leader.as_ref().map(|peer| peer.id))
}

/// Deletions pass while the disk is low: they are how an operator gets out of it.
fn frees_space(command: &v1::stamped::Command) -> bool {
    use v1::KvVerb;
    use v1::stamped::Command;
    match command {
        Command::Deregister(_)
        | Command::SessionDestroy(_)
        | Command::SessionExpire(_)
        | Command::SessionRenew(_)
        | Command::RestoreAbort(_)
        | Command::TombstoneReap(_)
        | Command::LeaderStart(_) => true,
        Command::Kv(kv) => matches!(
            kv.verb(),
            KvVerb::Delete | KvVerb::DeleteCas | KvVerb::DeleteTree
        ),
        Command::ConfigEntry(entry) => matches!(
            entry.verb(),
            v1::ConfigEntryVerb::Delete | v1::ConfigEntryVerb::DeleteCas
        ),
        Command::PreparedQuery(query) => query.verb() == v1::PreparedQueryVerb::Delete,
        _ => false,
    }
}

pub(crate) fn failed(failure: v1::WriteFailure) -> WriteFailure {
    use v1::WriteFailureKind as Kind;
    match failure.kind() {
        Kind::NoLeader => WriteFailure::NoLeader,
        Kind::DiskFull => WriteFailure::DiskFull(failure.message),
        Kind::Overloaded => WriteFailure::Overloaded(failure.message),
        Kind::TooLarge => WriteFailure::TooLarge(failure.message),
        Kind::Unspecified | Kind::Unknown | Kind::Denied => WriteFailure::Unknown(failure.message),
    }
}

pub(crate) fn read_failed(cause: ReadIndexError) -> ReadFailure {
    match cause {
        // A leader that no quorum confirms is none: clients retry on these words.
        ReadIndexError::NotLeader { .. } | ReadIndexError::Timeout => ReadFailure::NoLeader,
        ReadIndexError::Stopped(why) => ReadFailure::Stopped(why),
        other => ReadFailure::Timeout(other.to_string()),
    }
}
