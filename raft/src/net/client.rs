//! The asking side: one [`Link`] per purpose and peer, dialed when first needed.
//!
//! Owns: connections to peers, the pool of idle ones, reconnecting, timeouts.
//! Never: retries a request on its own account, except a vote on a connection that had gone stale.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::append::AppendSession;
use super::conn::{Conn, Opening};
use super::convert;
use super::{Dialer, snapshot_send};
use crate::config::RaftConfig;
use crate::peer::{Node, Peer, RaftId};
use crate::snapshot::SnapshotData;
use crate::types::{SnapshotMeta, Types, Vote, corrupt};
use crate::wire::frame::Kind;
use crate::wire::{self, transfer_reply};

pub(super) type RpcResult<T> = Result<T, RPCError<Types>>;
type TransferResponse = openraft::raft::TransferLeaderResponse<Types>;

/// How long after [`Transport::hurry`] commits are told at once.
const HURRY: Duration = Duration::from_millis(20);
/// Idle connections kept per peer (vote, heartbeat, append, snapshot take and return them).
const IDLE_MAX: usize = 4;

/// What all links share.
pub(crate) struct Transport {
    me: RaftId,
    cluster: String,
    frame_max_bytes: usize,
    /// No answer for this long means the connection is dead.
    patience: Duration,
    dialer: Arc<dyn Dialer>,
    idle: Mutex<BTreeMap<RaftId, Vec<Conn>>>,
    /// Newest membership, for addresses that changed since a link was made.
    peers: Mutex<BTreeMap<RaftId, Peer>>,
    started: Instant,
    /// Milliseconds from `started` until which followers wait to hear of commits.
    hurry_until: AtomicU64,
}

impl Transport {
    pub(crate) fn new(config: &RaftConfig, dialer: Arc<dyn Dialer>) -> Arc<Self> {
        Arc::new(Self {
            me: config.id,
            cluster: config.cluster.clone(),
            frame_max_bytes: config.frame_max_bytes(),
            patience: (config.election_max_scaled() * 4).max(Duration::from_secs(1)),
            dialer,
            idle: Mutex::default(),
            peers: Mutex::default(),
            started: Instant::now(),
            hurry_until: AtomicU64::new(0),
        })
    }

    /// Somebody at a follower waits until it has applied what is being written now.
    pub(crate) fn hurry(&self) {
        let until = self.started.elapsed() + HURRY;
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.hurry_until.fetch_max(until, Ordering::Relaxed);
    }

    pub(super) fn in_hurry(&self) -> bool {
        let until = self.hurry_until.load(Ordering::Relaxed);
        until != 0 && self.started.elapsed() < Duration::from_millis(until)
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Takes note of the newest membership.
    pub(crate) fn set_peers(&self, peers: BTreeMap<RaftId, Peer>) {
        self.idle.lock().retain(|id, _| peers.contains_key(id));
        *self.peers.lock() = peers;
    }

    fn take_idle(&self, peer: RaftId) -> Option<Conn> {
        self.idle.lock().get_mut(&peer)?.pop()
    }

    fn give_back(&self, peer: RaftId, conn: Conn) {
        let mut idle = self.idle.lock();
        let kept = idle.entry(peer).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(conn);
        }
    }

    async fn connect(self: Arc<Self>, peer: Peer) -> io::Result<Conn> {
        let peer = self.peers.lock().get(&peer.id).cloned().unwrap_or(peer);
        let opening = Opening {
            me: self.me,
            them: peer.id,
            cluster: self.cluster.clone(),
            frame_max_bytes: self.frame_max_bytes,
        };
        let dial = async {
            let stream = self.dialer.dial(&peer).await?;
            Conn::dialed(stream, &opening).await
        };
        timeout(self.patience, dial)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// Makes links for openraft.
pub(crate) struct Factory(pub(crate) Arc<Transport>);

impl RaftNetworkFactory<Types> for Factory {
    type Network = Link;

    async fn new_client(&mut self, target: RaftId, node: &Node) -> Link {
        Link::new(self.0.clone(), Peer::new(target, node.clone()))
    }
}

/// One purpose's way to one peer.
pub(crate) struct Link {
    transport: Arc<Transport>,
    peer: Peer,
    session: u64,
    // Behind locks only because openraft wants links to be `Sync`; reached through `get_mut`.
    conn: Mutex<Option<Conn>>,
    dialing: Mutex<Option<JoinHandle<io::Result<Conn>>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(dialing) = self.dialing.get_mut().take() {
            dialing.abort();
        }
    }
}

impl Link {
    fn new(transport: Arc<Transport>, peer: Peer) -> Self {
        Self {
            transport,
            peer,
            session: 0,
            conn: Mutex::new(None),
            dialing: Mutex::new(None),
        }
    }

    /// Makes sure there is a connection. Dialing goes on when the caller gives up: openraft waits
    /// one heartbeat only, less than a TLS handshake over a slow path may take.
    async fn connected(&mut self) -> io::Result<&mut Conn> {
        if self.conn.get_mut().is_none() {
            let dialing = self.dialing.get_mut().get_or_insert_with(|| {
                tokio::spawn(self.transport.clone().connect(self.peer.clone()))
            });
            let dialed = dialing.await;
            *self.dialing.get_mut() = None;
            let conn = dialed.map_err(|_| io::Error::other("dialing was cut short"))??;
            *self.conn.get_mut() = Some(conn);
        }
        Ok(self.conn.get_mut().as_mut().expect("set above"))
    }

    /// One request, one answer, on a connection of its own.
    async fn call(&mut self, request: Kind) -> io::Result<Kind> {
        if let Some(conn) = self.transport.take_idle(self.peer.id) {
            match self.call_on(conn, request.clone()).await {
                // It may have died while it was idle; a fresh one gets one try.
                Err(cause) if cause.kind() != io::ErrorKind::TimedOut => {}
                answer => return answer,
            }
        }
        self.connected().await?;
        let conn = self.conn.get_mut().take().expect("connected above");
        self.call_on(conn, request).await
    }

    async fn call_on(&self, mut conn: Conn, request: Kind) -> io::Result<Kind> {
        conn.push(request);
        let answer = timeout(self.transport.patience, conn.call())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        self.transport.give_back(self.peer.id, conn);
        Ok(answer)
    }

    async fn ask_vote(
        &mut self,
        request: VoteRequest<Types>,
        pre_vote: bool,
    ) -> RpcResult<VoteResponse<Types>> {
        let answer = self
            .call(Kind::Vote(convert::vote_request_record(&request, pre_vote)))
            .await;
        let reply = match answer.map_err(unreachable)? {
            Kind::VoteReply(reply) => reply,
            _ => {
                return Err(unreachable(corrupt(
                    "peer answered a vote with something else",
                )));
            }
        };
        if !reply.stopped.is_empty() {
            return Err(unreachable(io::Error::other(reply.stopped)));
        }
        let vote = convert::vote_of(reply.vote).map_err(unreachable)?;
        let last = reply.last.map(convert::log_id_of).transpose();
        Ok(VoteResponse::new(
            vote,
            last.map_err(unreachable)?,
            reply.granted,
        ))
    }

    fn next_session(&mut self) -> u64 {
        self.session += 1;
        self.session
    }
}

impl NetBackoff<Types> for Link {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetVote<Types> for Link {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> RpcResult<VoteResponse<Types>> {
        self.ask_vote(request, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _: RPCOption,
    ) -> RpcResult<VoteResponse<Types>> {
        self.ask_vote(request, true).await
    }
}

impl NetTransferLeader<Types> for Link {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _: RPCOption,
    ) -> RpcResult<TransferResponse> {
        let answer = self
            .call(Kind::Transfer(convert::transfer_record(&request)))
            .await;
        match answer.map_err(unreachable)? {
            Kind::TransferReply(reply) => transfer_response(reply).map_err(unreachable),
            _ => Err(unreachable(corrupt(
                "peer answered a transfer with something else",
            ))),
        }
    }
}

fn transfer_response(reply: wire::TransferReply) -> io::Result<TransferResponse> {
    use openraft::raft::TransferLeaderError;
    Ok(match reply.outcome() {
        transfer_reply::Outcome::Accepted => Ok(()),
        transfer_reply::Outcome::VoteChanged => Err(TransferLeaderError::VoteChanged {
            expected: convert::vote_of(reply.expected_vote)?,
            actual: convert::vote_of(reply.actual_vote)?,
        }),
        transfer_reply::Outcome::LogNotFlushed => Err(TransferLeaderError::LogNotFlushed {
            expected: reply.expected_log.map(convert::log_id_of).transpose()?,
            actual: reply.actual_log.map(convert::log_id_of).transpose()?,
        }),
        transfer_reply::Outcome::Stopped => return Err(io::Error::other(reply.reason)),
    })
}

impl NetSnapshot<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (meta, data): (SnapshotMeta, SnapshotData) = (snapshot.meta, snapshot.snapshot);
        let patience = self.transport.patience;
        let sending = async {
            let conn = self.connected().await?;
            snapshot_send::send(conn, &vote, &meta, &data, patience).await
        };
        let sent = tokio::select! {
            biased;
            closed = cancel => {
                *self.conn.get_mut() = None;
                return Err(StreamingError::Closed(closed));
            }
            sent = sending => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(cause) => {
                *self.conn.get_mut() = None;
                Err(StreamingError::Unreachable(Unreachable::new(&cause)))
            }
        }
    }
}

impl NetStreamAppend<Types> for Link {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<Types>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        async move {
            self.connected().await.map_err(unreachable)?;
            let id = self.next_session();
            let session = AppendSession::new(self.conn.get_mut(), &self.transport, id, input);
            Ok(session.boxed())
        }
        .boxed()
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as `map_err(unreachable)`"
)]
pub(super) fn unreachable(cause: io::Error) -> RPCError<Types> {
    if cause.kind() == io::ErrorKind::TimedOut {
        return RPCError::Network(NetworkError::new(&cause));
    }
    RPCError::Unreachable(Unreachable::new(&cause))
}
