//! One HTTP/2 connection to one server.
//!
//! Owns: its settings, and the difference between "not sent" and "sent".
//! Never: chooses a server or tries again.

use std::io;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::config::Stream;

/// What one answer may have on its way, unread.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// All answers together: readers that stall do not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// With a call open, the server is asked for a sign of life after this time.
const PING_AFTER: Duration = Duration::from_secs(5);
/// How long it may take to give one.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    /// The server is gone as far as is known, or the connection has ended.
    pub(crate) lost: CancellationToken,
}

/// Why a request brought no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It was not executed.
    NotSent(String),
    /// It may have been.
    Sent(String),
}

impl Connection {
    /// Begins HTTP/2; the connection goes on until all its clones are gone and their calls are answered.
    pub(crate) async fn begin(stream: Box<dyn Stream>) -> io::Result<Self> {
        let begun = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_LIMIT)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = begun.map_err(io::Error::other)?;
        let lost = CancellationToken::new();
        let ended = lost.clone();
        tokio::spawn(async move {
            if let Err(cause) = connection.await {
                tracing::debug!(error = %cause, "a connection to a server ended");
            }
            ended.cancel();
        });
        Ok(Self { sender, lost })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled() || self.sender.is_closed()
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Failed> {
        // Without an authority, as a forwarded HTTP/1 request is: the server knows who it is.
        *request.version_mut() = Version::HTTP_11;
        if let Err(cause) = self.sender.ready().await {
            return Err(Failed::NotSent(describe(&cause)));
        }
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut failed| {
                let unsent = failed.take_message().is_some() || was_refused(failed.error());
                let text = describe(failed.error());
                match unsent {
                    true => Failed::NotSent(text),
                    false => Failed::Sent(text),
                }
            })
    }
}

/// The server says that it has not begun with it (RFC 9113 §8.7).
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
