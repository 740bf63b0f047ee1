//! `/v1/snapshot`.
//!
//! Owns: streaming an archive out and in.
//! Never: reads one; the server role verifies it before state changes.
//! Source: Consul HTTP API, "Snapshots"; CONSUL.md A.10.

use http::header::{HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::call::Call;
use super::error::Failure;
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
    let feeding = tokio::spawn(feed(body, sender));
    let restored = call.api.deps.operator.snapshot_restore(source).await;
    feeding.abort();
    restored?;
    Ok(Reply::empty())
}

/// Passes the body on at the pace it is taken; ends when the taker is gone.
async fn feed(mut body: Incoming, sender: mpsc::Sender<Result<bytes::Bytes, std::io::Error>>) {
    while let Some(frame) = body.frame().await {
        let piece = match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => Ok(data),
            Ok(Err(_trailers)) => continue,
            Err(error) => Err(std::io::Error::other(error)),
        };
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}
