//! The application's side of a connection: TCP or a unix socket, read and written without waiting.
//!
//! Owns: one connected socket. Never: buffers.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;

/// A connected socket.
#[derive(Debug)]
pub enum Local {
    /// Loopback, as a rule.
    Tcp(TcpStream),
    /// `local_bind_socket_path`, `socket_path`.
    Unix(UnixStream),
}

impl From<TcpStream> for Local {
    fn from(stream: TcpStream) -> Self {
        // Nothing is gained by waiting: what is written is all there was to read.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Local {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl Local {
    /// Appends what has arrived, up to what `into` takes; 0 is the end.
    pub(crate) fn poll_append(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        // These, unlike the `try_` forms, know that a short read needs no second one to find nothing.
        match self {
            Self::Tcp(stream) => poll_read_buf(Pin::new(stream), cx, into),
            Self::Unix(stream) => poll_read_buf(Pin::new(stream), cx, into),
        }
    }

    /// Writes what the socket takes now.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// No more bytes to the application.
    pub(crate) fn finish(&self) {
        // Who hung up already is told nothing.
        let _ = match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Unix(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        };
    }

    /// Closing it shall say that something broke, not that all was sent.
    pub(crate) fn abort_on_close(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Local {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Local {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}
