//! The asking side: one [`Link`] per purpose and peer, dialed when first needed.
//!
//! Owns: connections to peers, the pool of idle ones, reconnecting, timeouts.
//! Never: retries a request on its own account, except a vote on a connection that had gone stale.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
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
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::conn::{Conn, Opening};
use super::convert;
use super::{Dialer, snapshot_send};
use crate::config::RaftConfig;
use crate::peer::{Node, Peer, RaftId};
use crate::snapshot::SnapshotData;
use crate::types::{SnapshotMeta, Types, Vote, corrupt};
use crate::wire::frame::Kind;
use crate::wire::{self, transfer_reply};

type RpcResult<T> = Result<T, RPCError<Types>>;
type TransferResponse = openraft::raft::TransferLeaderResponse<Types>;

/// Append requests on their way to one peer, at most.
const IN_FLIGHT_MAX: usize = 64;
/// Bytes of encoded requests not yet taken by the socket, at which we stop encoding more.
const OUTPUT_MAX_BYTES: usize = 4 * 1024 * 1024;
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
        })
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
            let session = AppendSession::new(self, input);
            Ok(session.boxed())
        }
        .boxed()
    }
}

/// Requests go out as they come, answers come back in order, all in the task that polls.
struct AppendSession<'s, S> {
    conn: &'s mut Option<Conn>,
    id: u64,
    input: Option<S>,
    in_flight: usize,
    /// Index of the last entry the peer was told of; it cannot have a later one from here.
    sent_upto: u64,
    patience: Duration,
    /// Fires when requests are in flight and none was answered for `patience`.
    deadline: Pin<Box<Sleep>>,
    last_answer: Instant,
    /// What waits to be written carries entries.
    urgent: bool,
    /// What waits to be written has let the other tasks go first once.
    deferred: bool,
    ended: bool,
}

impl<'s, S> AppendSession<'s, S> {
    fn new(link: &'s mut Link, input: S) -> Self {
        let id = link.next_session();
        let (patience, now) = (link.transport.patience, Instant::now());
        Self {
            conn: link.conn.get_mut(),
            id,
            input: Some(input),
            in_flight: 0,
            sent_upto: 0,
            patience,
            deadline: Box::pin(sleep_until(now + patience)),
            last_answer: now,
            urgent: false,
            deferred: false,
            ended: false,
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.deadline.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.in_flight > 0 && now >= self.last_answer + self.patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let from = if self.in_flight > 0 {
                self.last_answer
            } else {
                now
            };
            self.deadline.as_mut().reset(from + self.patience);
        }
        Ok(())
    }
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> AppendSession<'_, S> {
    /// Writes what waits. News without entries (how far is committed, a heartbeat) go after what the
    /// other tasks are about to do: somebody waits for the apply that the same commit sets off.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(conn) = self.conn.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        if conn.pending_output() > 0 && !self.urgent && !self.deferred {
            self.deferred = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        std::task::ready!(conn.poll_flush(cx))?;
        (self.urgent, self.deferred) = (false, false);
        Poll::Ready(Ok(()))
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) {
        let Some(conn) = self.conn.as_mut() else {
            return;
        };
        while self.in_flight < IN_FLIGHT_MAX && conn.pending_output() < OUTPUT_MAX_BYTES {
            let Some(input) = self.input.as_mut() else {
                return;
            };
            match input.poll_next_unpin(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some(request)) => {
                    if self.in_flight == 0 {
                        self.last_answer = Instant::now();
                    }
                    self.in_flight += 1;
                    self.sent_upto = self.sent_upto.max(last_of(&request));
                    self.urgent |= !request.entries.is_empty();
                    conn.push(Kind::Append(convert::append_record(self.id, request)));
                }
            }
        }
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<StreamAppendResult<Types>>>> {
        self.poll_deadline(cx)?;
        loop {
            self.poll_input(cx);
            if self.input.is_none() && self.in_flight == 0 {
                return Poll::Ready(Ok(None));
            }
            if let Poll::Ready(Err(cause)) = self.poll_output(cx) {
                return Poll::Ready(Err(cause));
            }
            let Some(conn) = self.conn.as_mut() else {
                return Poll::Ready(Ok(None));
            };
            match std::task::ready!(conn.poll_next(cx))? {
                // Left over from a session that was given up.
                Kind::AppendReply(reply) if reply.session != self.id => {}
                Kind::AppendReply(reply) => {
                    let beyond = |at: wire::LogId| at.index > self.sent_upto;
                    if self.in_flight == 0 || reply.log_id.is_some_and(beyond) {
                        return Poll::Ready(Err(corrupt("peer answered what it was not asked")));
                    }
                    self.in_flight -= 1;
                    self.last_answer = Instant::now();
                    return Poll::Ready(convert::append_reply_of(reply).map(Some));
                }
                _ => {
                    return Poll::Ready(Err(corrupt(
                        "peer answered an append with something else",
                    )));
                }
            }
        }
    }
}

fn last_of(request: &AppendEntriesRequest<Types>) -> u64 {
    let last = request.entries.last().map(|entry| entry.log_id);
    last.or(request.prev_log_id).map_or(0, |id| id.index)
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Stream for AppendSession<'_, S> {
    type Item = RpcResult<StreamAppendResult<Types>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let item = match std::task::ready!(this.poll_answer(cx)) {
            Ok(Some(answer)) => {
                this.ended = answer.is_err();
                Some(Ok(answer))
            }
            Ok(None) => {
                this.ended = true;
                None
            }
            Err(cause) => {
                this.ended = true;
                *this.conn = None;
                tracing::debug!(error = %cause, "append stream to a peer broke");
                Some(Err(unreachable(cause)))
            }
        };
        Poll::Ready(item)
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "used as `map_err(unreachable)`"
)]
fn unreachable(cause: io::Error) -> RPCError<Types> {
    if cause.kind() == io::ErrorKind::TimedOut {
        return RPCError::Network(NetworkError::new(&cause));
    }
    RPCError::Unreachable(Unreachable::new(&cause))
}
