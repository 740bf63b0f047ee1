//! Starting the server role: open the log, mint or recall the Raft id, wire the parts, spawn the tasks.
//!
//! Owns: the order of start-up.
//! Never: decides about membership; `formation` does.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_catalog::Catalog;
use weft_proto::clock::Clock;
use weft_proto::v1;
use weft_proto::v1::server_server::ServerServer;
use weft_raft::log::{LogStore, SledLog, SledOptions, Wal, WalOptions};
use weft_raft::{RaftConfig, RaftId, RaftNode, Role};

use crate::agents;
use crate::config::{LogBackend, ServerConfig};
use crate::coordinates::{self, Waiting};
use crate::disk_reserve::DiskReserve;
use crate::enrolment;
use crate::formation::{self, Reservation};
use crate::forward::Forwarder;
use crate::fsm::Fsm;
use crate::handle::{Inner, ReadFailure, Server, ServerError};
use crate::hashes::Hashes;
use crate::leader;
use crate::metrics::Metrics;
use crate::published::Published;
use crate::reads::{Rounds, RunRound};
use crate::recover;
use crate::rpc::Service;
use crate::stamp::ClusterTime;
use crate::subscribe::{self, Subscriptions};
use crate::transport::{MaxConns, RpcTls, Transport, is_at};

const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
const RPC_MESSAGE_MAX_BYTES: usize = 16 << 20;
/// Accepted connections that wait for the RPC service to take them.
const RPC_BACKLOG: usize = 64;

impl Server {
    /// Starts the role. It serves stale reads at once; everything else needs a leader.
    ///
    /// `public_key`: the server's own key, bound to its Raft id in the membership.
    /// Errors name the file or port and the remedy; nothing is left running.
    pub async fn start(
        config: ServerConfig,
        tls: Option<Arc<dyn RpcTls>>,
        public_key: Bytes,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ServerError> {
        let listener = listen(config.rpc_bind).map_err(|cause| ServerError::Io {
            what: format!("cannot listen on the server port {}; is another server running there? change ports.server or bind_addr", config.rpc_bind),
            cause,
        })?;
        let store = open_log(&config)?;
        let id = raft_id(&config, store.as_ref())?;
        if let Some(dir) = raft_dir(&config) {
            recover::refuse_unfinished(&dir)?;
            recover::peers_file::take_up(&dir, id, &store, &clock)?;
        }
        let metrics = Arc::new(Metrics::default());
        let time = Arc::new(ClusterTime::default());
        let mut catalog = Catalog::new();
        let published = Arc::new(Published::new(catalog.publish().0));
        let hashes = Arc::new(Hashes::default());
        let fsm = Fsm::new(
            catalog,
            published.clone(),
            time.clone(),
            clock.clone(),
            metrics.clone(),
            hashes.clone(),
        );
        let transport = Transport::new(tls, Duration::from_secs(2));
        let raft = RaftNode::start(
            raft_config(&config, id),
            store,
            snapshot_dir(&config),
            fsm,
            Arc::new(transport.clone()),
            clock.clone(),
        )
        .map_err(|cause| ServerError::Store(cause.to_string()))?;
        let forwarder = Forwarder::new(transport.clone(), FORWARD_TIMEOUT);
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<Inner>| Inner {
            follower_rounds: Rounds::new(ask_leader(weak.clone())),
            disk: Arc::new(DiskReserve::new(config.data_dir.clone())),
            raft,
            published,
            time,
            started: clock.monotonic(),
            max_conns: MaxConns::new(config.rpc_max_conns_per_client, clock.clone()),
            clock,
            transport,
            forwarder,
            metrics,
            hashes,
            gossip: ArcSwapOption::empty(),
            reservation: Reservation::default(),
            coordinates: Waiting::default(),
            leaving: false.into(),
            health: parking_lot::Mutex::default(),
            leading_since: None.into(),
            admitting: tokio::sync::Mutex::default(),
            public_key,
            api: OnceLock::new(),
            enrolment: OnceLock::new(),
            ca: crate::ca::Office::default(),
            failed: watch::channel(None).0,
            stop: watch::channel(false).0,
            config,
        });
        let server = Self { inner };
        server.spawn(listener);
        Ok(server)
    }

    fn spawn(&self, listener: TcpListener) {
        let inner = &self.inner;
        let (transport, raft) = (inner.transport.clone(), inner.raft.clone());
        let acceptor = inner.transport.acceptor(
            listener,
            inner.config.rpc_handshake_timeout,
            inner.max_conns.clone(),
            v1::AgentWelcome {
                datacenter: inner.config.datacenter.clone(),
                node_name: inner.config.node_name.clone(),
                ..v1::AgentWelcome::default()
            },
            // After a start the membership is known before gossip is.
            Box::new(move |ip| {
                let status = raft.status();
                transport.knows(ip)
                    || status
                        .members
                        .iter()
                        .any(|one| is_at(&one.peer.address, ip))
            }),
        );
        let (rpc_tx, rpc_rx) = mpsc::channel(RPC_BACKLOG);
        let raft = inner.raft.clone();
        // What agents ask is load of the API's kind: it is served where that is.
        let (general, agents) = (tokio::runtime::Handle::current(), inner.clone());
        let views = self.subscriptions();
        let agents = move |stream, greeting| {
            let served = agents::serve(agents.clone(), views.clone(), stream, greeting);
            general.spawn(served);
        };
        let (general, office) = (tokio::runtime::Handle::current(), inner.clone());
        let enrol = move |stream| {
            general.spawn(enrolment::serve(office.clone(), stream));
        };
        let mut stopped = inner.stop.subscribe();
        // Accepting and the connections of servers live on Raft's runtime: load on the API's cannot delay a
        // heartbeat, nor can the handshakes of agents.
        let accepting = async move {
            let stop = async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            acceptor
                .run(
                    move |stream| raft.serve(stream),
                    rpc_tx,
                    agents,
                    enrol,
                    stop,
                )
                .await;
        };
        inner.raft.spawn(self.watched("server port", accepting));
        let service = ServerServer::new(Service {
            inner: inner.clone(),
        })
        .max_decoding_message_size(RPC_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(RPC_MESSAGE_MAX_BYTES);
        let rpc = tonic::transport::Server::builder()
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(rpc_rx));
        let rpc = async move {
            if let Err(cause) = rpc.await {
                tracing::error!(error = %cause, "the RPC service of the server port ended");
            }
        };
        tokio::spawn(self.watched("server RPC", rpc));
        tokio::spawn(self.watched("formation", formation::run(self.clone())));
        tokio::spawn(self.watched("leader's duties", leader::run(self.clone())));
        tokio::spawn(self.watched("housekeeping", housekeeping(self.clone())));
        tokio::spawn(self.watched("coordinates", coordinates::run(self.clone())));
    }

    fn subscriptions(&self) -> Subscriptions {
        let inner = &self.inner;
        let identity = subscribe::Identity {
            node_name: inner.config.node_name.clone(),
            datacenter: inner.config.datacenter.clone(),
        };
        Subscriptions::new(
            identity,
            inner.published.clone(),
            Arc::new(self.clone()),
            inner.clock.clone(),
            inner.config.views,
            inner.metrics.subscribe.clone(),
            inner.stop.subscribe(),
        )
    }

    /// Runs a task that must go on for as long as the role does. Should it end or panic before, the role
    /// has failed: a server without one of its tasks would look alive and do nothing.
    fn watched(
        &self,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let inner = self.inner.clone();
        async move {
            let how = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(()) => "ended",
                Err(_) => "panicked",
            };
            // Consensus that has failed ends tasks too, and says why itself.
            if *inner.stop.borrow() || inner.raft.status().role == Role::Stopped {
                return;
            }
            tracing::error!(reason = "server.task_ended", task, "{how}");
            let why =
                format!("server.task_ended: the task {task:?} {how}; this is a defect of weft");
            inner.failed.send_replace(Some(why));
        }
    }

    /// This server's Raft id, as its gossip tag says it.
    #[must_use]
    pub fn raft_id(&self) -> RaftId {
        self.inner.raft.status().id
    }
}

/// Once a second: free space and table sizes.
async fn housekeeping(server: Server) {
    let mut stop = server.inner.stop.subscribe();
    loop {
        let inner = &server.inner;
        inner.disk.refresh();
        inner
            .metrics
            .disk_available_bytes
            .set(i64::try_from(inner.disk.available_bytes()).unwrap_or(i64::MAX));
        inner.metrics.rows(&inner.published.load().counts());
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// The follower's round: one ReadIndex call to the leader for all the reads that wait.
fn ask_leader(inner: std::sync::Weak<Inner>) -> RunRound {
    Arc::new(move || {
        let inner = inner.upgrade();
        Box::pin(async move {
            let inner =
                inner.ok_or_else(|| ReadFailure::Stopped("the server is shutting down".into()))?;
            let status = inner.raft.status();
            let leader = status.leader.as_ref().ok_or(ReadFailure::NoLeader)?;
            let address = inner.transport.address_of(leader);
            // Every read here waits for this round: it must not hang on a leader that was replaced.
            let answer = tokio::select! {
                biased;
                answer = inner.forwarder.read_index(&address) => answer,
                () = inner.deposed(&address) => return Err(ReadFailure::NoLeader),
            };
            match answer {
                Ok(reply) if reply.leader => Ok(reply.log_index),
                Ok(reply) => {
                    tracing::debug!(leader.addr = %address, error = %reply.error, "no read index");
                    Err(ReadFailure::NoLeader)
                }
                Err(cause) => {
                    tracing::debug!(leader.addr = %address, error = ?cause, "no read index");
                    Err(ReadFailure::NoLeader)
                }
            }
        })
    })
}

/// A listening socket that no runtime owns yet.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn raft_dir(config: &ServerConfig) -> Option<PathBuf> {
    config.data_dir.as_ref().map(|dir| dir.join("raft"))
}

fn snapshot_dir(config: &ServerConfig) -> Option<PathBuf> {
    raft_dir(config).map(|dir| dir.join("snapshots"))
}

pub(crate) fn open_log(config: &ServerConfig) -> Result<Arc<dyn LogStore>, ServerError> {
    let Some(dir) = raft_dir(config) else {
        return Ok(Arc::new(weft_raft::log::MemoryLog::new()));
    };
    make_dir(&dir)?;
    refuse_other_backend(&dir, config.backend)?;
    let store = |cause: weft_raft::log::LogError| ServerError::Store(cause.to_string());
    Ok(match config.backend {
        LogBackend::Memory => Arc::new(weft_raft::log::MemoryLog::new()),
        LogBackend::Wal => Arc::new(
            Wal::open_dir(
                &dir.join("wal"),
                WalOptions {
                    salt: config.seed,
                    segment_bytes: config.wal_segment_bytes,
                    ..WalOptions::default()
                },
            )
            .map_err(store)?,
        ),
        LogBackend::Sled => {
            Arc::new(SledLog::open_dir(&dir.join("sled"), SledOptions::default()).map_err(store)?)
        }
    })
}

/// A log of the other backend holds this server's memory: beginning an empty one beside it would hide it.
fn refuse_other_backend(dir: &Path, backend: LogBackend) -> Result<(), ServerError> {
    let (ours, other) = match backend {
        LogBackend::Memory => return Ok(()),
        LogBackend::Wal => ("wal", "sled"),
        LogBackend::Sled => ("sled", "wal"),
    };
    if dir.join(ours).exists() || !dir.join(other).exists() {
        return Ok(());
    }
    Err(ServerError::Store(format!(
        "{} holds a log of backend {other:?}, but raft_logstore.backend is {ours:?}; set it to {other:?}, \
         or move {} away to let this server rejoin as a new learner",
        dir.display(),
        dir.display(),
    )))
}

fn make_dir(dir: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|cause| ServerError::Io {
        what: format!(
            "cannot create {}; check data_dir and its owner",
            dir.display()
        ),
        cause,
    })
}

/// The id minted with the log. A log that is gone takes its id with it: the server that comes back
/// must not vote with a memory it no longer has (DESIGN §4, Membership).
pub(crate) fn raft_id(config: &ServerConfig, store: &dyn LogStore) -> Result<RaftId, ServerError> {
    let Some(dir) = raft_dir(config) else {
        return Ok(mint());
    };
    let path = dir.join("raft-id");
    let log = store.state();
    // A log that was ever used holds a vote. Snapshots without one are what a lost log left behind: under
    // the old id this server would vote with a memory it no longer has.
    let has_log = log.vote.is_some() || log.last.is_some() || log.purged.is_some();
    let snapshots = dir.join("snapshots");
    if !has_log && has_snapshots(&snapshots) {
        return Err(damaged(
            &snapshots,
            "holds snapshots, but the log beside it is gone",
        ));
    }
    match (std::fs::read_to_string(&path), has_log) {
        (Ok(text), true) => text
            .trim()
            .parse()
            .map_err(|_| damaged(&path, "does not hold a UUID")),
        (Err(cause), true) if cause.kind() == io::ErrorKind::NotFound => {
            Err(damaged(&path, "is missing although there is a log"))
        }
        (Err(cause), true) => Err(ServerError::Io {
            what: format!("cannot read {}", path.display()),
            cause,
        }),
        (_, false) => {
            let id = mint();
            write_durably(&path, id.to_string().as_bytes()).map_err(|cause| ServerError::Io {
                what: format!(
                    "cannot write {}; check data_dir and its owner",
                    path.display()
                ),
                cause,
            })?;
            tracing::info!(raft.id = %id, "new Raft id minted with a new log");
            Ok(id)
        }
    }
}

fn has_snapshots(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| !entry.file_name().to_string_lossy().starts_with("tmp-"))
    })
}

fn damaged(path: &Path, what: &str) -> ServerError {
    ServerError::Store(format!(
        "{} {what}; move the raft folder beside it away and start again: this server then rejoins as a new learner and copies the data from the others",
        path.display()
    ))
}

pub(crate) fn mint() -> RaftId {
    weft_proto::ids::mint()
        .parse()
        .expect("mint answers a UUID")
}

/// Written aside, synced, renamed, directory synced: there or not there, never half.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let aside = path.with_extension("tmp");
    let mut file = std::fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    if let Some(dir) = path.parent() {
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn raft_config(config: &ServerConfig, id: RaftId) -> RaftConfig {
    RaftConfig {
        multiplier: config.raft_multiplier,
        snapshot_entries: config.snapshot_threshold,
        trailing_entries: config.trailing_logs,
        ..RaftConfig::new(id, &config.datacenter)
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::clock::SystemClock;

    use super::*;

    async fn started() -> Server {
        let config = crate::config::for_tests();
        let clock = Arc::new(SystemClock::new());
        let server = Server::start(config, None, Bytes::new(), clock).await;
        server.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_ends_ends_the_role() {
        let broken: [(fn(), &str); 2] = [(|| {}, "ended"), (|| panic!("a defect"), "panicked")];
        for (end, how) in broken {
            let server = started().await;
            tokio::spawn(server.watched("test", async move { end() }));
            let why = server.failed().await;
            assert!(
                why.contains("server.task_ended") && why.contains(how),
                "{why}"
            );
            server.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tasks_that_end_with_the_role_are_no_failure() {
        let server = started().await;
        server.shutdown().await;
        server.watched("test", async {}).await;
        assert_eq!(*server.inner.failed.borrow(), None);
    }
}
