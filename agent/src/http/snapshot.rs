//! `/v1/snapshot`.
//!
//! Owns: streaming an archive out and in.
//! Never: reads one; the server role verifies it before state changes.
//! Source: Consul HTTP API, "Snapshots"; CONSUL.md A.10.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use tokio::sync::mpsc;

use super::blocking::{KNOWN_LEADER, LAST_CONTACT, millis};
use super::call::Call;
use super::error::Failure;
use super::pace::Paced;
use super::reply::Reply;
use crate::backend::{Consistency, SnapshotSource, SnapshotStream};

/// Pieces of an upload that may wait for the server role.
const PIECES_WAITING_MAX: usize = 8;

pub(super) async fn save(call: Call) -> Result<Reply, Failure> {
    let stale = call.query.has("stale");
    let deps = &call.api.deps;
    let (index, stream) = deps.operator.snapshot_save(stale).await?;
    // The archive is the leader's, or with `stale` this server's own.
    let meta = deps.backend.barrier(Consistency::Stale).await?;
    let last_contact = if stale {
        meta.last_contact
    } else {
        Duration::ZERO
    };
    let stall = call.api.limits().stall_timeout;
    let reply = Reply::stream("application/x-gzip", relay(stream, stall));
    let known = HeaderValue::from_static(if meta.known_leader { "true" } else { "false" });
    Ok(reply
        .with(
            HeaderName::from_static("x-consul-index"),
            HeaderValue::from(index.max(1)),
        )
        .with(KNOWN_LEADER, known)
        .with(LAST_CONTACT, HeaderValue::from(millis(last_contact))))
}

/// The same pieces, for as long as they are taken: what is behind a snapshot (a whole state) is not
/// kept for a client that stopped reading. (A connection of HTTP/2 answers pings with a stream's window shut.)
fn relay(mut source: SnapshotStream, stall: Duration) -> SnapshotStream {
    let (sender, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(piece) = source.recv().await {
            // Without its closing chunk the client knows that the archive is not whole.
            let sent = tokio::time::timeout(stall, sender.send(piece)).await;
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    let text = "the archive was not taken in time (http_config.stall_timeout)";
                    drop(source);
                    tracing::warn!(reason = "http.answer.stalled", "{text}");
                    // Seen when the client reads on, and only then.
                    let _ = sender.send(Err(std::io::Error::other(text))).await;
                    return;
                }
            }
        }
    });
    stream
}

pub(super) async fn restore(mut call: Call) -> Result<Reply, Failure> {
    let Some(body) = call.take_body() else {
        return Err(Failure::bad_request(
            "snapshot.missing",
            "The request has no body",
        ));
    };
    let (sender, source): (_, SnapshotSource) = mpsc::channel(PIECES_WAITING_MAX);
    let stalled = Arc::new(OnceLock::new());
    let feeding = tokio::spawn(feed(body, sender, Arc::clone(&stalled)));
    let restored = call.api.deps.operator.snapshot_restore(source).await;
    feeding.abort();
    match (restored, stalled.get()) {
        (Ok(()), _) => Ok(Reply::empty()),
        // What the server role says of an archive that stops half-way is not the cause.
        (Err(_), Some(failure)) => Err(failure.clone()),
        (Err(error), None) => Err(error.into()),
    }
}

/// Passes the body on at the pace it is taken; ends when the taker is gone. `stalled` is set when it
/// was the client who did not send.
async fn feed(
    mut body: Paced,
    sender: mpsc::Sender<Result<bytes::Bytes, std::io::Error>>,
    stalled: Arc<OnceLock<Failure>>,
) {
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|failure| {
            let error = std::io::Error::other(failure.text.clone());
            if failure.status == StatusCode::REQUEST_TIMEOUT {
                // Set once: the first failure is the last piece.
                let _ = stalled.set(failure);
            }
            error
        });
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_behind_a_snapshot_is_let_go_when_nobody_takes_it() {
        let stall = Duration::from_secs(30);
        let (sender, source) = mpsc::channel(2);
        let mut stream = relay(source, stall);
        let making = tokio::spawn(async move {
            while sender.send(Ok(Bytes::from_static(b"piece"))).await.is_ok() {}
        });
        for _ in 0..5 {
            tokio::time::sleep(stall * 2 / 3).await;
            assert_eq!(
                stream.recv().await.unwrap().unwrap(),
                "piece",
                "slow, but it is taken"
            );
        }
        tokio::time::timeout(stall * 2, making)
            .await
            .expect("the archive is still being made")
            .unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.recv().await {
            pieces.push(piece);
        }
        assert!(
            pieces.last().unwrap().is_err(),
            "it would be taken for a whole archive"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_archive_ends_without_an_error() {
        let (sender, source) = mpsc::channel(2);
        let mut stream = relay(source, Duration::from_secs(30));
        sender.send(Ok(Bytes::from_static(b"all"))).await.unwrap();
        drop(sender);
        assert_eq!(stream.recv().await.unwrap().unwrap(), "all");
        assert!(stream.recv().await.is_none());
    }
}
