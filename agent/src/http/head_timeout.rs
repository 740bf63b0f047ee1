//! The time a client has to go on with what it has begun.
//!
//! Owns: [`Watched`], a stream that fails a read when a new connection says nothing or a head stays
//! unfinished for too long, and a write when an answer is not taken.
//! Never: ends an idle connection: clients keep those in pools, and the number of connections is
//! bounded anyway. (hyper's own header timeout counts idle time too, and makes a timer per request;
//! here one exists only while somebody is being waited for.) Bodies are [`super::pace`]'s.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What an HTTP/2 client sends before anything else (RFC 9113 §3.4). Later silence is found by pings.
const PREFACE_BYTES: usize = 24;

/// Which requests were begun, and whether one is being answered: then nothing that arrives is a head.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<Requests>);

#[derive(Debug, Default)]
struct Requests {
    busy: AtomicBool,
    begun: AtomicU64,
}

impl Answering {
    /// The head is complete; until the guard is dropped a request is being answered.
    pub(super) fn begin(&self) -> AnsweringGuard {
        self.0.busy.store(true, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        AnsweringGuard(self.clone())
    }
}

/// See [`Answering::begin`].
#[derive(Debug)]
pub(super) struct AnsweringGuard(Answering);

impl Drop for AnsweringGuard {
    fn drop(&mut self) {
        self.0.0.busy.store(false, Ordering::Relaxed);
    }
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the first byte of a head to its end.
    pub(super) head: Duration,
    /// For the first byte of a connection, and between two pieces of an answer.
    pub(super) stall: Duration,
}

/// What a stream is watched for.
#[derive(Debug)]
enum Wait {
    /// Each head, of requests that follow one another.
    Heads(Answering),
    /// So many more bytes.
    Preface(usize),
}

/// A connection's stream under watch.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    wait: Wait,
    patience: Patience,
    /// Nothing has arrived yet.
    silent: bool,
    /// Something of a head has arrived.
    begun: bool,
    /// How many requests were begun when that was noted.
    requests: u64,
    read_deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// For a connection whose requests follow one another.
    pub(super) fn new(stream: S, answering: Answering, patience: Patience) -> Self {
        Self::waiting(stream, Wait::Heads(answering), patience)
    }

    /// For a connection of HTTP/2.
    pub(super) fn preface(stream: S, patience: Patience) -> Self {
        Self::waiting(stream, Wait::Preface(PREFACE_BYTES), patience)
    }

    fn waiting(stream: S, wait: Wait, patience: Patience) -> Self {
        Self {
            stream,
            wait,
            patience,
            silent: true,
            begun: false,
            requests: 0,
            read_deadline: None,
            write_deadline: None,
        }
    }

    /// A head was finished since the last look, or is not what is being read now.
    fn forget_finished_heads(&mut self) {
        let Wait::Heads(answering) = &self.wait else {
            return;
        };
        let requests = answering.0.begun.load(Ordering::Relaxed);
        if requests != self.requests || answering.0.busy.load(Ordering::Relaxed) {
            self.requests = requests;
            (self.begun, self.read_deadline) = (false, None);
        }
    }

    /// `bytes` have arrived (0: the end).
    fn arrived(&mut self, bytes: usize) {
        if self.silent {
            (self.silent, self.read_deadline) = (false, None);
        }
        self.begun = match &mut self.wait {
            Wait::Heads(answering) => !answering.0.busy.load(Ordering::Relaxed),
            Wait::Preface(left) => {
                *left = left.saturating_sub(bytes);
                *left > 0
            }
        };
        if !self.begun {
            self.read_deadline = None;
        }
    }

    fn check_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Error> {
        let (timeout, text) = if self.silent {
            let text = "the new connection was silent for too long (http_config.stall_timeout)";
            (self.patience.stall, text)
        } else if self.begun {
            let text =
                "the request's head was not finished in time (http_config.read_header_timeout)";
            (self.patience.head, text)
        } else {
            return Poll::Pending;
        };
        expired(&mut self.read_deadline, timeout, text, cx)
    }

    /// Bounds the time in which nothing of an answer is taken.
    fn watch_write<T>(
        &mut self,
        result: Poll<std::io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<T>> {
        if result.is_ready() {
            self.write_deadline = None;
            return result;
        }
        let text = "the answer was not taken in time (http_config.stall_timeout)";
        expired(&mut self.write_deadline, self.patience.stall, text, cx).map(Err)
    }
}

/// Ready when `timeout` has passed since the first look; the timer is made then.
fn expired(
    deadline: &mut Option<Pin<Box<Sleep>>>,
    timeout: Duration,
    text: &'static str,
    cx: &mut Context<'_>,
) -> Poll<std::io::Error> {
    let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
    deadline
        .as_mut()
        .poll(cx)
        .map(|()| std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        this.forget_finished_heads();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => this.check_read(cx).map(Err),
            ready => {
                this.arrived(buffer.filled().len() - before);
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_write(result, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch_write(result, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch_write(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch_write(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        stall: Duration::from_secs(30),
    };

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_takes_is_given_up_and_a_slow_taker_gets_all() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, Answering::default(), PATIENCE);
        let error = watched.write_all(&[0; 64]).await.unwrap_err();
        assert!(
            error.to_string().contains("http_config.stall_timeout"),
            "{error}"
        );

        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, Answering::default(), PATIENCE);
        let taker = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(PATIENCE.stall * 2 / 3).await;
                theirs.read_exact(&mut [0; 16]).await.unwrap();
            }
        });
        watched.write_all(&[0; 64]).await.unwrap();
        taker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_answered_without_a_read_in_between_is_finished() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let answering = Answering::default();
        let mut watched = Watched::new(ours, answering.clone(), PATIENCE);
        theirs.write_all(b"head").await.unwrap();
        watched.read_exact(&mut [0; 4]).await.unwrap();
        drop(answering.begin());
        let idle = tokio::time::timeout(PATIENCE.head * 3, watched.read_u8()).await;
        assert!(idle.is_err(), "an idle connection was ended: {idle:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_preface_is_not_waited_for() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut watched = Watched::preface(ours, PATIENCE);
        theirs.write_all(&[0; 20]).await.unwrap();
        let error = watched
            .read_exact(&mut [0; PREFACE_BYTES])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);

        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut watched = Watched::preface(ours, PATIENCE);
        theirs.write_all(&[0; PREFACE_BYTES]).await.unwrap();
        watched.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let later = tokio::time::timeout(PATIENCE.stall * 3, watched.read_u8()).await;
        assert!(later.is_err(), "pings judge from here on: {later:?}");
    }
}
