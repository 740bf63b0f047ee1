//! One replication stream to one peer, as a stream of its answers.
//!
//! Owns: what is in flight, when what waits is written, noticing a peer that has stopped answering.
//! Never: dials, or asks again.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::time::{Instant, Sleep, sleep_until};

use super::client::{RpcResult, Transport, unreachable};
use super::conn::Conn;
use super::convert;
use crate::types::{Types, corrupt};
use crate::wire::{self, frame::Kind};

/// Append requests on their way to one peer, at most.
const IN_FLIGHT_MAX: usize = 64;
/// Bytes of encoded requests not yet taken by the socket, at which we stop encoding more.
const OUTPUT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long news of a commit waits for entries to travel with. Nobody waits for them, or [`Transport::hurry`]
/// was called: two frames and four thread switches a write are saved when writes come one after the other.
const NEWS_PATIENCE: Duration = Duration::from_millis(1);

/// Whether what waits to be written was held back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    No,
    /// Until the other tasks had their turn.
    OneTurn,
    /// Until the timer fires or entries come.
    ForCompany,
}

/// Requests go out as they come, answers come back in order, all in the task that polls.
pub(super) struct AppendSession<'s, S> {
    conn: &'s mut Option<Conn>,
    transport: &'s Transport,
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
    /// Until when what waits to be written, and is not urgent, waits for company.
    hold: Pin<Box<Sleep>>,
    held: Held,
    ended: bool,
}

impl<'s, S> AppendSession<'s, S> {
    /// `id` tells its answers from those of sessions before it on the same connection.
    pub(super) fn new(
        conn: &'s mut Option<Conn>,
        transport: &'s Transport,
        id: u64,
        input: S,
    ) -> Self {
        let (patience, now) = (transport.patience(), Instant::now());
        Self {
            conn,
            transport,
            id,
            input: Some(input),
            in_flight: 0,
            sent_upto: 0,
            patience,
            deadline: Box::pin(sleep_until(now + patience)),
            last_answer: now,
            urgent: false,
            hold: Box::pin(sleep_until(now)),
            held: Held::No,
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
    /// Writes what waits. News without entries (how far is committed) wait for entries to go with, and a
    /// heartbeat goes after what the other tasks are about to do: somebody waits for the apply that the same
    /// commit sets off.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(conn) = self.conn.as_mut() else {
            return Poll::Ready(Ok(()));
        };
        if conn.pending_output() > 0 && !self.urgent {
            match self.held {
                Held::No if self.input.is_none() || self.transport.in_hurry() => {
                    self.held = Held::OneTurn;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Held::No => {
                    self.held = Held::ForCompany;
                    self.hold.as_mut().reset(Instant::now() + NEWS_PATIENCE);
                    std::task::ready!(self.hold.as_mut().poll(cx));
                }
                Held::ForCompany => std::task::ready!(self.hold.as_mut().poll(cx)),
                Held::OneTurn => {}
            }
        }
        std::task::ready!(conn.poll_flush(cx))?;
        (self.urgent, self.held) = (false, Held::No);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::channel::mpsc;
    use futures::future::BoxFuture;
    use openraft::entry::RaftEntry as _;
    use tokio::io::duplex;

    use super::*;
    use crate::config::RaftConfig;
    use crate::net::conn::Opening;
    use crate::net::gate::Gate;
    use crate::net::{Dialer, RaftStream};
    use crate::peer::{Peer, RaftId};
    use crate::types::{Body, Entry, log_id, new_vote};

    struct NoDialer;

    impl Dialer for NoDialer {
        fn dial(&self, _: &Peer) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
            Box::pin(std::future::ready(Err(io::ErrorKind::NotConnected.into())))
        }
    }

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    /// What a leader says after entry `previous`: that `committed` is, and entry `carried` if there is one.
    fn request(previous: u64, committed: u64, carried: Option<u64>) -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: new_vote(1, id(1), true),
            prev_log_id: Some(log_id(1, previous)),
            leader_commit: Some(log_id(1, committed)),
            entries: carried
                .map(|index| {
                    Entry::new(
                        log_id(1, index),
                        openraft::EntryPayload::Normal(Body::default()),
                    )
                })
                .into_iter()
                .collect(),
        }
    }

    /// A session, where its requests come from, and the far end, which never answers.
    struct Scene {
        transport: Arc<Transport>,
        near: Option<Conn>,
        far: Conn,
    }

    impl Scene {
        async fn new() -> Self {
            let (near, far) = duplex(100_000);
            let opening = Opening {
                me: id(1),
                them: id(2),
                cluster: "dc1".into(),
                frame_max_bytes: 100_000,
            };
            let gate = Gate::new(id(2));
            let (near, far) = tokio::join!(
                Conn::dialed(Box::new(near), &opening),
                Conn::accepted(Box::new(far), &gate, "dc1", 100_000)
            );
            let config = RaftConfig::new(id(1), "dc1");
            Self {
                transport: Transport::new(&config, Arc::new(NoDialer)),
                near: Some(near.unwrap()),
                far: far.unwrap().0,
            }
        }

        /// Sends what `requests` yields; answers how long the first `frames` took to arrive.
        async fn arrivals(
            &mut self,
            requests: mpsc::UnboundedReceiver<AppendEntriesRequest<Types>>,
            frames: usize,
        ) -> Duration {
            let start = Instant::now();
            let mut session = AppendSession::new(&mut self.near, &self.transport, 1, requests);
            let arrived = async {
                for _ in 0..frames {
                    self.far.next().await.unwrap();
                }
            };
            tokio::select! {
                answer = session.next() => panic!("nobody answered: {answer:?}"),
                () = arrived => {}
            }
            start.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_commit_wait_for_entries_to_go_with() {
        let mut scene = Scene::new().await;
        let (send, requests) = mpsc::unbounded();
        send.unbounded_send(request(7, 7, None)).unwrap();
        assert!(scene.arrivals(requests, 1).await >= NEWS_PATIENCE);

        let (send, requests) = mpsc::unbounded();
        send.unbounded_send(request(7, 7, None)).unwrap();
        send.unbounded_send(request(7, 7, Some(8))).unwrap();
        assert_eq!(scene.arrivals(requests, 2).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn news_somebody_waits_for_and_heartbeats_do_not_wait() {
        let mut scene = Scene::new().await;
        scene.transport.hurry();
        let (send, requests) = mpsc::unbounded();
        send.unbounded_send(request(7, 7, None)).unwrap();
        assert_eq!(scene.arrivals(requests, 1).await, Duration::ZERO);

        tokio::time::sleep(Duration::from_secs(1)).await;
        let (send, requests) = mpsc::unbounded();
        send.unbounded_send(request(7, 8, None)).unwrap();
        drop(send);
        assert_eq!(
            scene.arrivals(requests, 1).await,
            Duration::ZERO,
            "the only request of its stream is a heartbeat"
        );
    }
}
