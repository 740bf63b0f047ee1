//! What a check may reach from this agent, and as whom.
//!
//! Owns: [`Reach`]: `enable_link_local_checks` and `enable_agent_tls_for_checks` in a run.
//! Never: judges a redirect; [`super::address_guard`] does.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tcp_check::dial_if;
use super::{TargetTls, address_guard, tls};

/// The agent's own TLS for what it calls, asked for at each handshake so that certificates rotate.
pub type ClientTlsSource = Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync>;

/// What checks may reach, and as whom.
#[derive(Clone, Default)]
pub struct Reach {
    /// `enable_link_local_checks`: link-local addresses and metadata services are no worse than others.
    pub link_local: bool,
    /// `enable_agent_tls_for_checks`: checks over TLS show the agent's certificate and trust its roots.
    pub agent_tls: Option<ClientTlsSource>,
}

impl Reach {
    /// Why a check may not begin at this address.
    pub(super) fn refusal(&self, to: SocketAddr) -> Option<String> {
        if self.link_local {
            return None;
        }
        let what = address_guard::target_refusal(to.ip())?;
        Some(format!("refused to send to {to}: it is {what}"))
    }

    /// Connects to any address of `host:port` that may be reached.
    pub(super) async fn dial(&self, address: &str) -> Result<TcpStream, String> {
        dial_if(address, |to| self.refusal(to)).await
    }

    /// Completes a handshake with the target, whose address names it `host`.
    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        target: &TargetTls,
        host: &str,
        protocols: &[&str],
    ) -> Result<TlsStream<TcpStream>, String> {
        let own = self.agent_tls.as_ref().map(|source| source());
        let name = target.name(host);
        tls::connect(stream, name, (target.skip_verify, own), protocols).await
    }
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach")
            .field("link_local", &self.link_local)
            .field("agent_tls", &self.agent_tls.is_some())
            .finish()
    }
}
