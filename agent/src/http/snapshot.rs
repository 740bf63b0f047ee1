//! `/v1/snapshot`.
//!
//! Owns: streaming an archive out and in.
//! Never: reads one; the server role verifies it before state changes.
//! Source: Consul HTTP API, "Snapshots"; CONSUL.md A.10.

use std::sync::{Arc, OnceLock};

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use tokio::sync::mpsc;

use super::call::Call;
use super::error::Failure;
use super::pace::Paced;
use super::reply::Reply;
use crate::backend::SnapshotSource;

/// Pieces of an upload that may wait for the server role.
const PIECES_WAITING_MAX: usize = 8;

pub(super) async fn save(call: Call) -> Result<Reply, Failure> {
    let (index, stream) = call
        .api
        .deps
        .operator
        .snapshot_save(call.query.has("stale"))
        .await?;
    let reply = Reply::stream("application/x-gzip", stream);
    Ok(reply.with(
        HeaderName::from_static("x-consul-index"),
        HeaderValue::from(index.max(1)),
    ))
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
