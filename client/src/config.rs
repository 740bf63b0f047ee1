//! What the client role must be told.
//!
//! Owns: plain values and the seam for dialing.
//! Never: parses or defaults anything a user writes.

use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection ready for HTTP/2.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What dialing ends in.
pub type Dialed = io::Result<Box<dyn Stream>>;

/// Opens connections to servers: address, TLS and greeting are the binary's to know.
pub trait Dial: Send + Sync + 'static {
    /// Dials `address` (`host:port`), within a time of its own.
    ///
    /// Errors: of kind `PermissionDenied` when the server or its certificate was refused, with the reason.
    fn dial(&self, address: &str) -> BoxFuture<'static, Dialed>;
}

/// A server, as gossip shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerAt {
    /// `host:port` of the server port.
    pub address: String,
    /// Its node name.
    pub name: String,
}

/// Settings of the client role.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How long a call that was not executed is tried again (`performance.rpc_hold_timeout`).
    pub hold_timeout: Duration,
    /// What a server may take for an answer beside the time it waits for a leader (`limits.rpc_client_timeout`).
    pub answer_limit: Duration,
    /// Calls of users on their way at once (`limits.rpc_max_calls`).
    pub max_calls: usize,
    /// Seed of the dice that choose servers and pauses.
    pub seed: u64,
}
