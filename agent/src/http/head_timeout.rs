//! The time a client has to finish the head of a request it has begun.
//!
//! Owns: [`Watched`], a stream that fails a read when a head stays unfinished for too long.
//! Never: ends an idle connection: clients keep those in pools, and the number of connections is
//! bounded anyway. (hyper's own header timeout counts idle time too, and makes a timer per request;
//! here one exists only while a head is coming in pieces.)

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Whether a request is being answered: then nothing that arrives is a head.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<AtomicBool>);

impl Answering {
    /// The head is complete; until the guard is dropped a request is being answered.
    pub(super) fn begin(&self) -> AnsweringGuard {
        self.0.store(true, Ordering::Relaxed);
        AnsweringGuard(self.clone())
    }
}

/// See [`Answering::begin`].
#[derive(Debug)]
pub(super) struct AnsweringGuard(Answering);

impl Drop for AnsweringGuard {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// A connection's stream under watch.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    answering: Answering,
    timeout: Duration,
    /// Something of a head has arrived.
    begun: bool,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, answering: Answering, timeout: Duration) -> Self {
        Self {
            stream,
            answering,
            timeout,
            begun: false,
            deadline: None,
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.begun {
            return Poll::Pending;
        }
        let timeout = self.timeout;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "the request's head was not finished in time (http_config.read_header_timeout)",
            ))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.answering.0.load(Ordering::Relaxed) {
            (this.begun, this.deadline) = (false, None);
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => this.check(cx),
            ready => {
                this.begun = true;
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
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
