//! Two connections made into one: the way of peers that know no tunnel, and of services on one node.
//!
//! Owns: the bytes that one side has not taken yet, which side has ended, when both have.
//! Never: dials, or decides who may talk: whoever decides may stop it at any time ([`Life`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::local::Local;
use crate::scratch;
use crate::tunnel::{Outcome, Tick};
use crate::wire::Reason;

/// Reads of one side before others have their turn.
const READS_A_TURN: usize = 4;

/// One end of a relay.
pub trait End: AsyncRead + AsyncWrite + Unpin {
    /// Closing it shall say that something broke.
    fn abort(&self);
}

impl End for Local {
    fn abort(&self) {
        self.abort_on_close();
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> End for tokio_rustls::TlsStream<Io> {
    // No close_notify: the other side knows that something is missing.
    fn abort(&self) {}
}

/// A relay as others see it: when it last moved, and the way to stop it.
#[derive(Debug)]
pub struct Life {
    tick: Tick,
    touched: Cell<u32>,
    stopped: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

impl Life {
    /// Begins now.
    #[must_use]
    pub fn new(tick: Tick) -> Rc<Self> {
        let touched = Cell::new(tick.get());
        Rc::new(Self {
            tick,
            touched,
            stopped: Cell::new(None),
            waker: RefCell::new(None),
        })
    }

    /// Seconds since anything moved.
    #[must_use]
    pub fn idle_seconds(&self) -> u32 {
        self.tick.get().saturating_sub(self.touched.get())
    }

    /// Ends it.
    pub fn stop(&self, reason: Reason) {
        self.stopped.set(Some(reason));
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// Moves bytes both ways until both have ended.
pub struct Relay<A, B> {
    a: A,
    b: B,
    out: Way,
    back: Way,
    life: Rc<Life>,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    waiting: BytesMut,
    has_ended: bool,
    end_was_told: bool,
    unflushed: bool,
    bytes: u64,
}

impl<A: End, B: End> Relay<A, B> {
    /// Between `a`, whose bytes count as sent, and `b`.
    pub fn new(a: A, b: B, life: Rc<Life>) -> Self {
        Self {
            a,
            b,
            out: Way::default(),
            back: Way::default(),
            life,
        }
    }

    fn outcome(&self, reset: Option<Reason>) -> Outcome {
        if reset.is_some() {
            self.a.abort();
            self.b.abort();
        }
        Outcome {
            sent: self.out.bytes,
            received: self.back.bytes,
            reset,
        }
    }
}

impl<A: End, B: End> Future for Relay<A, B> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        if let Some(reason) = this.life.stopped.get() {
            return Poll::Ready(this.outcome(Some(reason)));
        }
        match &mut *this.life.waker.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        let moved = (this.out.bytes, this.back.bytes);
        let out = this.out.carry(&mut this.a, &mut this.b, cx);
        let back = this.back.carry(&mut this.b, &mut this.a, cx);
        if (this.out.bytes, this.back.bytes) != moved {
            this.life.touched.set(this.life.tick.get());
        }
        match (out, back) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                Poll::Ready(this.outcome(Some(Reason::Reset)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(this.outcome(None)),
            _ => Poll::Pending,
        }
    }
}

impl Way {
    /// Ready when this way has ended, and the other side knows.
    fn carry(
        &mut self,
        from: &mut impl End,
        to: &mut impl End,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end_was_told {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_A_TURN {
            while !self.waiting.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
                self.unflushed = true;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.waiting.advance(count);
            }
            self.waiting = BytesMut::new();
            if self.has_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.end_was_told = true;
                return Poll::Ready(Ok(()));
            }
            if self.read(from, to, cx)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once, and writes what the other side takes at once; only the rest waits.
    fn read(
        &mut self,
        from: &mut impl End,
        to: &mut impl End,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        scratch::with(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let Poll::Ready(read) = Pin::new(from).poll_read(cx, &mut buffer) else {
                return Ok(Poll::Pending);
            };
            read?;
            let mut bytes = buffer.filled();
            self.has_ended = bytes.is_empty();
            self.bytes += bytes.len() as u64;
            while !bytes.is_empty() {
                let Poll::Ready(count) = Pin::new(&mut *to).poll_write(cx, bytes)? else {
                    self.waiting.extend_from_slice(bytes);
                    break;
                };
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.unflushed = true;
                bytes = &bytes[count..];
            }
            Ok(Poll::Ready(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::{JoinHandle, spawn_local};

    use super::*;
    use crate::testing::{pair, run};

    /// Two applications with a relay between them.
    async fn relayed() -> (TcpStream, TcpStream, Rc<Life>, JoinHandle<Outcome>) {
        let ((one, a), (b, other)) = (pair().await, pair().await);
        let life = Life::new(Rc::new(Cell::new(0)));
        let relay = Relay::new(Local::from(a), Local::from(b), life.clone());
        (one, other, life, spawn_local(relay))
    }

    #[test]
    fn both_ways_end_by_themselves_and_nothing_is_lost() {
        run(async {
            let (mut one, mut other, _, outcome) = relayed().await;
            let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7) as u8).collect();
            let expected = sent.clone();
            let writing = spawn_local(async move {
                one.write_all(&sent).await.unwrap();
                one.shutdown().await.unwrap();
                let mut answer = Vec::new();
                one.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"thanks");
            });
            let mut received = Vec::new();
            other.read_to_end(&mut received).await.unwrap();
            assert!(received == expected);
            other.write_all(b"thanks").await.unwrap();
            drop(other);
            writing.await.unwrap();
            let outcome = outcome.await.unwrap();
            assert_eq!((outcome.sent, outcome.received), (3_000_000, 6));
            assert_eq!(outcome.reset, None);
        });
    }

    #[test]
    fn a_stop_and_a_reset_are_seen_by_both_sides() {
        run(async {
            let (mut one, mut other, life, outcome) = relayed().await;
            life.stop(Reason::Denied);
            assert_eq!(outcome.await.unwrap().reset, Some(Reason::Denied));
            for end in [&mut one, &mut other] {
                let error = end.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            let (mut one, other, _, outcome) = relayed().await;
            socket2::SockRef::from(&other)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(other);
            assert_eq!(outcome.await.unwrap().reset, Some(Reason::Reset));
            let error = one.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn who_does_not_read_holds_up_the_writer() {
        run(async {
            let (mut one, _other, _, _outcome) = relayed().await;
            let flood = vec![0_u8; 64 << 20];
            let writing = one.write_all(&flood);
            let written = tokio::time::timeout(Duration::from_millis(300), writing).await;
            assert!(written.is_err(), "64 MiB were swallowed");
        });
    }
}
