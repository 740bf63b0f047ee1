//! The answering side: one task per accepted connection.
//!
//! Owns: accepted connections and their number; when the leader was last heard.
//! Never: decides; every request goes to openraft.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesOrdered;
use openraft::raft::TransferLeaderError;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use weft_proto::clock::Clock;

use super::conn::Conn;
use super::gate::Gate;
use super::{RaftStream, convert, snapshot_send};
use crate::config::RaftConfig;
use crate::machine::Machine;
use crate::metrics::{RaftMetrics, Rpc};
use crate::peer::RaftId;
use crate::snapshot::SnapshotStore;
use crate::types::Types;
use crate::wire::{self, frame::Kind, transfer_reply};

pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// Requests of one connection that wait for openraft's answer, at most.
const IN_FLIGHT_MAX: usize = 64;
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of answers the caller has not taken, at which no more of its requests are read.
const OUTPUT_MAX_BYTES: usize = 1024 * 1024;
/// A connection without a request for this long is closed; its owner dials again when it needs one.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Serves accepted streams.
pub(crate) struct Acceptor {
    pub(crate) gate: Gate,
    cluster: String,
    frame_max_bytes: usize,
    connections_max: usize,
    patience: Duration,
    raft: Raft,
    snapshots: Arc<SnapshotStore>,
    metrics: Arc<RaftMetrics>,
    clock: Arc<dyn Clock>,
    connections: AtomicUsize,
    /// Monotonic microseconds, plus one; 0: never.
    leader_heard_micros: AtomicU64,
}

impl Acceptor {
    pub(crate) fn new(
        config: &RaftConfig,
        raft: Raft,
        snapshots: Arc<SnapshotStore>,
        metrics: Arc<RaftMetrics>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            gate: Gate::new(config.id),
            cluster: config.cluster.clone(),
            frame_max_bytes: config.frame_max_bytes(),
            connections_max: config.connections_max,
            patience: (config.election_max_scaled() * 4).max(Duration::from_secs(5)),
            raft,
            snapshots,
            metrics,
            clock,
            connections: AtomicUsize::new(0),
            leader_heard_micros: AtomicU64::new(0),
        }
    }

    /// Time since a leader's append was accepted; `None` before the first.
    pub(crate) fn since_leader_heard(&self) -> Option<Duration> {
        let heard = self
            .leader_heard_micros
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        Some(
            self.clock
                .monotonic()
                .saturating_sub(Duration::from_micros(heard)),
        )
    }

    fn leader_heard(&self) {
        let now = u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX - 1);
        self.leader_heard_micros.store(now + 1, Ordering::Relaxed);
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Self>, stream: Box<dyn RaftStream>) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            self.metrics.connection(false);
            tracing::warn!(
                limit = self.connections_max,
                "raft connection refused: raft_connections_max"
            );
            return;
        }
        match self.clone().run(stream).await {
            Err(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
                tracing::debug!(error = %cause, "raft connection ended");
            }
            _ => {}
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    async fn run(self: Arc<Self>, stream: Box<dyn RaftStream>) -> io::Result<()> {
        let hello = Conn::accepted(stream, &self.gate, &self.cluster, self.frame_max_bytes);
        let opened = timeout(HELLO_PATIENCE, hello)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        self.metrics.connection(opened.is_ok());
        let (mut conn, from) = opened
            .inspect_err(|cause| tracing::warn!(error = %cause, "raft connection refused"))?;
        tracing::debug!(raft.peer = %from, "raft connection accepted");
        let mut answers = FuturesOrdered::new();
        let mut watch = Watch::new(self.patience, IDLE_MAX);
        loop {
            let request =
                poll_fn(|cx| poll_request(&mut conn, &mut answers, &mut watch, cx)).await?;
            may_ask(&self.gate, &request, from)?;
            match request {
                Kind::SnapshotBegin(begin) => {
                    let reply = self.install(&mut conn, begin).await?;
                    answers.push_back(std::future::ready(Kind::SnapshotReply(reply)).boxed());
                }
                request => answers.push_back(self.clone().answer(request)?),
            }
        }
    }

    fn answer(self: Arc<Self>, request: Kind) -> io::Result<BoxFuture<'static, Kind>> {
        Ok(match request {
            Kind::Append(append) => self.append(append)?,
            Kind::Vote(request) => {
                let pre_vote = request.pre_vote;
                let request = convert::vote_request_of(request)?;
                async move { Kind::VoteReply(self.vote(request, pre_vote).await) }.boxed()
            }
            Kind::Transfer(request) => {
                let request = convert::transfer_of(request)?;
                async move { Kind::TransferReply(self.transfer(request).await) }.boxed()
            }
            _ => return Err(crate::types::corrupt("a request was expected")),
        })
    }

    fn append(self: Arc<Self>, append: wire::Append) -> io::Result<BoxFuture<'static, Kind>> {
        let session = append.session;
        let request = convert::append_of(append)?;
        self.metrics.appended(request.entries.len());
        let previous = request.prev_log_id;
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(previous);
        Ok(async move {
            let result = match self.raft.append_entries(request).await {
                Ok(response) => {
                    let result = response.into_stream_result(previous, last);
                    if !matches!(
                        result,
                        Err(openraft::raft::StreamAppendError::HigherVote(_))
                    ) {
                        self.leader_heard();
                    }
                    Ok(result)
                }
                Err(stopped) => Err(stopped.to_string()),
            };
            Kind::AppendReply(convert::append_reply_record(session, result))
        }
        .boxed())
    }

    async fn vote(
        &self,
        request: openraft::raft::VoteRequest<Types>,
        pre_vote: bool,
    ) -> wire::VoteReply {
        self.metrics
            .rpc(if pre_vote { Rpc::PreVote } else { Rpc::Vote });
        let answer = if pre_vote {
            self.raft.pre_vote(request).await
        } else {
            self.raft.vote(request).await
        };
        match answer {
            Ok(response) => wire::VoteReply {
                vote: Some(convert::vote_record(&response.vote)),
                granted: response.vote_granted,
                last: response.last_log_id.as_ref().map(convert::log_id_record),
                stopped: String::new(),
            },
            Err(stopped) => wire::VoteReply {
                stopped: stopped.to_string(),
                ..wire::VoteReply::default()
            },
        }
    }

    async fn transfer(
        &self,
        request: openraft::raft::TransferLeaderRequest<Types>,
    ) -> wire::TransferReply {
        self.metrics.rpc(Rpc::TransferLeader);
        let mut reply = wire::TransferReply::default();
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            Ok(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
                reply.set_outcome(transfer_reply::Outcome::VoteChanged);
                reply.expected_vote = Some(convert::vote_record(&expected));
                reply.actual_vote = Some(convert::vote_record(&actual));
            }
            Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
                reply.set_outcome(transfer_reply::Outcome::LogNotFlushed);
                reply.expected_log = expected.as_ref().map(convert::log_id_record);
                reply.actual_log = actual.as_ref().map(convert::log_id_record);
            }
            Err(stopped) => {
                reply.set_outcome(transfer_reply::Outcome::Stopped);
                reply.reason = stopped.to_string();
            }
        }
        reply
    }

    async fn install(
        &self,
        conn: &mut Conn,
        begin: wire::SnapshotBegin,
    ) -> io::Result<wire::SnapshotReply> {
        self.metrics.rpc(Rpc::Snapshot);
        let vote = convert::vote_of(begin.vote.clone())?;
        let (meta, data) =
            snapshot_send::receive(conn, &begin, &self.snapshots, self.patience).await?;
        let received = data.clone();
        let snapshot = openraft::Snapshot {
            meta,
            snapshot: data,
        };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        // Installed, it has its own name by now; refused, nobody else would remove it.
        received.discard();
        Ok(match installed {
            Ok(response) => wire::SnapshotReply {
                vote: Some(convert::vote_record(&response.vote)),
                error: String::new(),
            },
            Err(stopped) => wire::SnapshotReply {
                vote: None,
                error: stopped.to_string(),
            },
        })
    }
}

/// Whoever asks for a vote, or leads, does so in its own name, and may have been removed since it was let in.
fn may_ask(gate: &Gate, request: &Kind, from: RaftId) -> io::Result<()> {
    if !gate.knows(from) {
        let why = format!(
            "raft_unknown_server: {from} is no longer a member of this cluster, nor in its gossip pool"
        );
        return Err(crate::types::corrupt(&why));
    }
    let vote = match request {
        Kind::Append(append) => &append.vote,
        Kind::Vote(request) => &request.vote,
        Kind::Transfer(request) => &request.from_leader,
        Kind::SnapshotBegin(begin) => &begin.vote,
        _ => return Ok(()),
    };
    match vote {
        Some(vote) if vote.leader[..] != from.0.as_bytes()[..] => Err(crate::types::corrupt(
            &format!("raft_borrowed_id: {from} speaks in the name of another server"),
        )),
        _ => Ok(()),
    }
}

/// Notices a caller that takes no answers, or asks nothing, without a timer per request.
struct Watch {
    tick: Interval,
    idle_ticks_max: u128,
    requests: u64,
    seen: Seen,
}

/// What the last tick saw.
#[derive(Default)]
struct Seen {
    requests: u64,
    idle_ticks: u128,
    untaken: bool,
    taken_bytes: u64,
}

impl Watch {
    /// `patience`: how long answers may wait to be taken; `idle`: how long nothing may be asked.
    fn new(patience: Duration, idle: Duration) -> Self {
        let mut tick = interval(patience);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            tick,
            idle_ticks_max: idle.as_nanos().div_ceil(patience.as_nanos()),
            requests: 0,
            seen: Seen::default(),
        }
    }

    fn poll(&mut self, conn: &Conn, answers: usize, cx: &mut Context<'_>) -> io::Result<()> {
        while self.tick.poll_tick(cx).is_ready() {
            let (untaken, taken_bytes) = (conn.pending_output() > 0, conn.taken_bytes());
            if untaken && self.seen.untaken && taken_bytes == self.seen.taken_bytes {
                return Err(ended("the caller takes no answers"));
            }
            let idle = answers == 0 && self.requests == self.seen.requests;
            let idle_ticks = if idle { self.seen.idle_ticks + 1 } else { 0 };
            if idle_ticks > self.idle_ticks_max {
                return Err(ended("no request within ten minutes"));
            }
            self.seen = Seen {
                requests: self.requests,
                idle_ticks,
                untaken,
                taken_bytes,
            };
        }
        Ok(())
    }
}

fn ended(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Sends the answers that are ready, in the order of their requests, until the next request is in.
fn poll_request(
    conn: &mut Conn,
    answers: &mut FuturesOrdered<BoxFuture<'static, Kind>>,
    watch: &mut Watch,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Kind>> {
    while let Poll::Ready(Some(answer)) = answers.poll_next_unpin(cx) {
        conn.push(answer);
    }
    if let Poll::Ready(Err(cause)) = conn.poll_flush(cx) {
        return Poll::Ready(Err(cause));
    }
    watch.poll(conn, answers.len(), cx)?;
    if answers.len() >= IN_FLIGHT_MAX || conn.pending_output() >= OUTPUT_MAX_BYTES {
        return Poll::Pending;
    }
    let request = std::task::ready!(conn.poll_next(cx));
    watch.requests = watch.requests.wrapping_add(1);
    Poll::Ready(request)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn vote_of(n: u128) -> Option<wire::Vote> {
        Some(wire::Vote {
            term: 1,
            leader: id(n).to_bytes(),
            committed: false,
        })
    }

    #[test]
    fn nobody_votes_or_leads_in_the_name_of_another_or_after_it_was_removed() {
        let requests = |n| {
            [
                Kind::Append(wire::Append {
                    vote: vote_of(n),
                    ..wire::Append::default()
                }),
                Kind::Vote(wire::VoteRequest {
                    vote: vote_of(n),
                    ..wire::VoteRequest::default()
                }),
                Kind::Transfer(wire::TransferRequest {
                    from_leader: vote_of(n),
                    ..wire::TransferRequest::default()
                }),
                Kind::SnapshotBegin(wire::SnapshotBegin {
                    vote: vote_of(n),
                    ..wire::SnapshotBegin::default()
                }),
            ]
        };
        let gate = Gate::new(id(2));
        for request in requests(1) {
            assert!(may_ask(&gate, &request, id(1)).is_ok());
        }
        for request in requests(3) {
            let refused = may_ask(&gate, &request, id(1)).unwrap_err();
            assert!(refused.to_string().contains("raft_borrowed_id"));
        }
        gate.set_members([id(2), id(3)].into());
        for request in requests(1) {
            let removed = may_ask(&gate, &request, id(1)).unwrap_err();
            assert!(removed.to_string().contains("raft_unknown_server"));
        }
    }

    /// An accepted connection, and the caller's raw end of it; the pipe holds 1,000 bytes.
    async fn accepted() -> (Conn, DuplexStream) {
        let (mut near, far) = duplex(1_000);
        let hello = Kind::Hello(wire::Hello {
            version: 1,
            cluster: "dc1".into(),
            from: id(1).to_bytes(),
            to: id(2).to_bytes(),
        });
        near.write_all(&frame(hello)).await.unwrap();
        let gate = Gate::new(id(2));
        let (conn, _) = Conn::accepted(Box::new(far), &gate, "dc1", 100_000)
            .await
            .unwrap();
        (conn, near)
    }

    fn frame(kind: Kind) -> Vec<u8> {
        let frame = wire::Frame { kind: Some(kind) };
        let length = u32::try_from(frame.encoded_len()).unwrap();
        let mut bytes = length.to_be_bytes().to_vec();
        frame.encode(&mut bytes).unwrap();
        bytes
    }

    fn request() -> Vec<u8> {
        frame(Kind::Vote(wire::VoteRequest {
            vote: vote_of(1),
            ..wire::VoteRequest::default()
        }))
    }

    async fn next(conn: &mut Conn, patience: Duration, idle: Duration) -> io::Result<Kind> {
        let mut answers = FuturesOrdered::new();
        let mut watch = Watch::new(patience, idle);
        poll_fn(|cx| poll_request(conn, &mut answers, &mut watch, cx)).await
    }

    const LONG: Duration = Duration::from_secs(3_600);
    const SHORT: Duration = Duration::from_millis(2);

    #[tokio::test]
    async fn a_caller_that_asks_nothing_for_long_is_let_go() {
        let (mut conn, mut near) = accepted().await;
        near.write_all(&request()).await.unwrap();
        assert!(next(&mut conn, SHORT, LONG).await.is_ok());
        let ended = next(&mut conn, SHORT, SHORT * 5).await.unwrap_err();
        assert!(ended.to_string().contains("no request"), "{ended}");
    }

    #[tokio::test]
    async fn a_caller_that_takes_no_answers_is_not_heard_and_then_let_go() {
        let (mut conn, mut near) = accepted().await;
        near.write_all(&request()).await.unwrap();
        let data = bytes::Bytes::from(vec![0; OUTPUT_MAX_BYTES + 2_000]);
        conn.push(Kind::SnapshotChunk(wire::SnapshotChunk { data }));
        let ended = next(&mut conn, SHORT, LONG).await.unwrap_err();
        assert!(ended.to_string().contains("takes no answers"), "{ended}");
    }
}
