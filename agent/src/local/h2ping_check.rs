//! One run of an h2ping check.
//!
//! Owns: an HTTP/2 connection of its own, and one PING on it (RFC 9113 §6.7).
//! Never: sends a request.

use futures::FutureExt as _;
use h2::Ping;
use tokio::io::{AsyncRead, AsyncWrite};

use super::H2PingCheck;
use super::reach::Reach;
use super::status::Status;
use super::tcp_check::host_of;

/// Connects, pings and waits for the answer. Cancelled by its caller's time-out.
pub(super) async fn run(check: &H2PingCheck, reach: &Reach) -> (Status, String) {
    match attempt(check, reach).await {
        Ok(()) => (Status::Passing, "HTTP2 ping was successful".to_owned()),
        Err(error) => (Status::Critical, error),
    }
}

async fn attempt(check: &H2PingCheck, reach: &Reach) -> Result<(), String> {
    let failed = |error: String| format!("Failed to dial to {}: {error}", check.address);
    let stream = reach.dial(&check.address).await.map_err(failed)?;
    if check.use_tls {
        let host = host_of(&check.address);
        let stream = reach.secure(stream, &check.tls, host, &["h2"]).await;
        ping(stream.map_err(failed)?).await
    } else {
        ping(stream).await
    }
}

async fn ping<S>(stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: h2::Error| format!("HTTP2 ping failed: {error}");
    // The sender keeps the connection from ending for want of requests.
    let (_requests, mut connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let Some(mut pings) = connection.ping_pong() else {
        return Err("HTTP2 ping failed: the connection takes no ping".to_owned());
    };
    let mut pong = std::pin::pin!(pings.ping(Ping::opaque()));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        pong = &mut pong => return pong.map(drop).map_err(failed),
        ended = &mut connection => ended,
    };
    // The answer may have come with the end.
    match (pong.now_or_never(), ended) {
        (Some(Ok(_)), _) => Ok(()),
        (_, Ok(())) => Err("HTTP2 ping failed: the connection was closed".to_owned()),
        (_, Err(error)) => Err(failed(error)),
    }
}
