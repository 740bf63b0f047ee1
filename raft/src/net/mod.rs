//! Raft between servers: length-prefixed protobuf frames on streams somebody else secured.
//!
//! Owns: the protocol (hello, append, vote, transfer, snapshot), its limits and timeouts.
//! Never: resolves a name, does TLS, or opens a socket; a [`Dialer`] does.
//!
//! Plain frames rather than HTTP/2: appends of one peer are one ordered stream
//! each way, so HTTP/2's framing, header compression and flow control would
//! only cost CPU per append. Heartbeats and votes never queue behind appends,
//! nor appends behind snapshots, because each kind has its own connection.

mod append;
mod client;
mod conn;
mod convert;
mod gate;
mod server;
mod snapshot_send;

use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::peer::Peer;

pub(crate) use client::{Factory, Transport};
pub(crate) use server::{Acceptor, Raft};

/// A byte stream between two servers, already authenticated and encrypted as the cluster asks.
pub trait RaftStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> RaftStream for T {}

/// Opens streams to peers.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `peer`, whose `address` is the last one known; the dialer may know a newer one.
    ///
    /// The far side must prove `peer.public_key` (where keys are used) and end in
    /// [`crate::RaftNode::serve`]. The future is polled on the Raft runtime and dropped when it
    /// takes too long.
    ///
    /// Errors: whatever kept it from connecting; it is asked again after a pause.
    fn dial(&self, peer: &Peer) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>>;
}
