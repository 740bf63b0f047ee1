//! Agents that ask for a certificate.
//!
//! Owns: that such a connection reaches who can give one.
//! Never: speaks TLS or signs; the binary gives it the office ([`Enrolment`]).

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::handle::{Inner, Server};
use crate::transport::{Conn, Seated};

/// Gives certificates out.
pub trait Enrolment: Send + Sync + 'static {
    /// Serves one connection to its end; `stream` is in clear text so far.
    fn serve(&self, stream: Conn, from: SocketAddr) -> BoxFuture<'static, ()>;
}

impl Server {
    /// Gives the role its office for certificates; until then, and without one, such connections are closed.
    pub fn attach_enrolment(&self, office: Arc<dyn Enrolment>) {
        // Called once, right after the start.
        let _ = self.inner.enrolment.set(office);
    }
}

pub(crate) async fn serve(inner: Arc<Inner>, stream: Seated) {
    let from = stream.from();
    match inner.enrolment.get() {
        Some(office) => office.serve(Box::new(stream), from).await,
        None => {
            tracing::warn!(peer.addr = %from, reason = "join.no_signer", "an agent asks for a certificate, but this server gives none: set join_tokens.cert_file and key_file (`weft init` writes them)");
        }
    }
}
