//! TLS of the server port and of HTTPS, from the configuration's files.
//!
//! Owns: one reloadable context per interface, and who may speak on the server port.
//! Never: keeps key material itself; `identity` does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use weft_agent::config::RuntimeConfig;
use weft_agent::config::runtime::{TlsOptions, TlsVersion};
use weft_agent::http::TlsSource;
use weft_agent::local::ClientTlsSource;
use weft_identity::PeerFacts;
use weft_identity::tls::{MinVersion, TlsContext, TlsMaterial};
use weft_proto::clock::Clock;
use weft_raft::RaftStream;
use weft_server::{Accepted, RpcTls};

/// The contexts that are configured.
pub(crate) struct Tls {
    rpc: Option<Arc<Rpc>>,
    https: Option<Arc<TlsContext>>,
    checks: Option<Arc<TlsContext>>,
    clock: Arc<dyn Clock>,
}

impl Tls {
    /// Reads certificates and keys where they are named.
    ///
    /// Errors: as `identity` words them, with key, file and remedy.
    pub(crate) fn load(config: &RuntimeConfig, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let load = |options: &TlsOptions,
                    alpn: &[&str],
                    what: &str|
         -> anyhow::Result<Option<Arc<TlsContext>>> {
            if !is_named(options) {
                return Ok(None);
            }
            // Also what is not put to use is read: a setup that cannot work ends the start, not each call later.
            let context = TlsContext::load(material(config, options, alpn), clock.wall())
                .with_context(|| format!("tls.{what}"))?;
            if !(options.has_certificate() || options.verify_outgoing && options.has_roots()) {
                return Ok(None);
            }
            Ok(Some(Arc::new(context)))
        };
        let rpc = load(&config.tls.internal_rpc, &[], "internal_rpc")?.map(|context| {
            Arc::new(Rpc {
                context,
                limit: config.limits.rpc_handshake_timeout,
                datacenter: config.datacenter.clone(),
                domain: domain(config),
            })
        });
        let https = if config.network.https.is_empty() {
            None
        } else {
            load(&config.tls.https, &["h2", "http/1.1"], "https")?
        };
        let checks = if config.checks.agent_tls {
            let material = TlsMaterial {
                verify_incoming: false,
                verify_server_hostname: false,
                verify_dialled_name: true,
                ..material(config, &config.tls.internal_rpc, &[])
            };
            let context = TlsContext::load(material, clock.wall())
                .context("enable_agent_tls_for_checks: tls.internal_rpc")?;
            Some(Arc::new(context))
        } else {
            None
        };
        Ok(Self {
            rpc,
            https,
            checks,
            clock,
        })
    }

    /// TLS of the server port, if any.
    pub(crate) fn rpc(&self) -> Option<Arc<dyn RpcTls>> {
        self.rpc.clone().map(|rpc| rpc as Arc<dyn RpcTls>)
    }

    /// The context of the server port, if any.
    pub(crate) fn rpc_context(&self) -> Option<Arc<TlsContext>> {
        self.rpc.as_ref().map(|rpc| rpc.context.clone())
    }

    /// Where checks over TLS get what they show and trust, with `enable_agent_tls_for_checks`.
    pub(crate) fn checks(&self) -> Option<ClientTlsSource> {
        let context = self.checks.clone()?;
        Some(Arc::new(move || context.client_config()))
    }

    /// Where the HTTPS listener gets its configuration at each handshake.
    pub(crate) fn https(&self) -> anyhow::Result<TlsSource> {
        let missing = "ports.https is on, but tls.https (or tls.defaults) names no cert_file and key_file; `weft tls cert create` makes them";
        let context = self.https.clone().context(missing)?;
        let first = context.server_config().context(missing)?;
        // A reload that loses the certificate keeps the last one that worked.
        Ok(Arc::new(move || {
            context.server_config().unwrap_or_else(|| first.clone())
        }))
    }

    /// Reads the files again; the old ones stay in use when that fails.
    pub(crate) fn reload(&self) -> anyhow::Result<()> {
        if let Some(rpc) = &self.rpc {
            rpc.context
                .reload(self.clock.wall())
                .context("tls.internal_rpc")?;
        }
        if let Some(https) = &self.https {
            https.reload(self.clock.wall()).context("tls.https")?;
        }
        if let Some(checks) = &self.checks {
            let key = "enable_agent_tls_for_checks: tls.internal_rpc";
            checks.reload(self.clock.wall()).context(key)?;
        }
        Ok(())
    }
}

/// Whether anything is said of TLS.
fn is_named(options: &TlsOptions) -> bool {
    options.cert_file.is_some()
        || options.key_file.is_some()
        || options.has_roots()
        || options.verify_incoming
        || options.verify_outgoing
}

fn domain(config: &RuntimeConfig) -> String {
    config.domain.trim_matches('.').to_ascii_lowercase()
}

fn material(config: &RuntimeConfig, options: &TlsOptions, alpn: &[&str]) -> TlsMaterial {
    TlsMaterial {
        ca_file: options.ca_file.clone(),
        ca_path: options.ca_path.clone(),
        cert_file: options.cert_file.clone(),
        key_file: options.key_file.clone(),
        min_version: match options.min_version {
            TlsVersion::V12 => MinVersion::Tls12,
            TlsVersion::V13 => MinVersion::Tls13,
        },
        verify_incoming: options.verify_incoming,
        verify_outgoing: options.verify_outgoing,
        verify_server_hostname: options.verify_server_hostname,
        verify_dialled_name: false,
        datacenter: config.datacenter.clone(),
        domain: domain(config),
        alpn: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
    }
}

struct Rpc {
    context: Arc<TlsContext>,
    limit: Duration,
    datacenter: String,
    domain: String,
}

impl RpcTls for Rpc {
    fn accept(&self, tcp: TcpStream) -> BoxFuture<'static, io::Result<Accepted>> {
        let (context, limit) = (self.context.clone(), self.limit);
        let (datacenter, domain) = (self.datacenter.clone(), self.domain.clone());
        Box::pin(async move {
            let peer = tcp
                .peer_addr()
                .map_or_else(|_| "?".to_owned(), |address| address.to_string());
            let (stream, facts) = context
                .accept(tcp, &peer, limit)
                .await
                .map_err(io::Error::other)?;
            let must_show = context.material().verify_incoming;
            let shown = must_be_server("caller", facts.as_ref(), &datacenter, &domain);
            Ok(Accepted {
                stream: Box::new(stream),
                no_server: shown.err().filter(|_| must_show),
            })
        })
    }

    fn connect(&self, tcp: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
        let (context, limit) = (self.context.clone(), self.limit);
        let (datacenter, domain) = (self.datacenter.clone(), self.domain.clone());
        Box::pin(async move {
            let host = tcp.peer_addr()?.ip().to_string();
            let (stream, facts) = context
                .connect(tcp, &host, limit)
                .await
                .map_err(io::Error::other)?;
            must_be_server("called server", facts.as_ref(), &datacenter, &domain)?;
            Ok(Box::new(stream) as Box<dyn RaftStream>)
        })
    }

    fn required(&self) -> bool {
        self.context.material().verify_incoming
    }

    fn outgoing(&self) -> bool {
        self.context.material().verify_outgoing
    }
}

/// Who speaks Raft on this port, or as a server, may propose and vote, and is told everything: only a server's
/// certificate opens that, whatever `verify_server_hostname` says. Any certificate of the CA is good for an agent.
fn must_be_server(
    whose: &str,
    facts: Option<&PeerFacts>,
    datacenter: &str,
    domain: &str,
) -> io::Result<()> {
    if facts.is_some_and(|facts| facts.is_server(datacenter, domain)) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "the {whose}'s certificate lacks the name server.{datacenter}.{domain}; make one with `weft tls cert create -server`"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::net::TcpListener;
    use weft_identity::pki::{self, CaRequest, CertKind, CertRequest};
    use weft_proto::clock::SystemClock;

    use super::*;

    fn house() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let now = SystemClock::new().wall();
        pki::write_ca(root.path(), &CaRequest::new("consul"), now).unwrap();
        root
    }

    /// The server port of who holds a certificate of that kind; nobody asks for host names.
    fn rpc(house: &Path, kind: CertKind) -> Rpc {
        let (ca, ca_key) = pki::ca_files(house, "consul");
        let now = SystemClock::new().wall();
        let request = CertRequest::new(kind, "dc1", "consul");
        let (cert, key) = pki::write_cert(house, &request, (&ca, &ca_key), now).unwrap();
        let material = TlsMaterial {
            ca_file: Some(ca),
            cert_file: Some(cert),
            key_file: Some(key),
            verify_incoming: true,
            verify_outgoing: true,
            datacenter: "dc1".into(),
            domain: "consul".into(),
            ..TlsMaterial::default()
        };
        Rpc {
            context: Arc::new(TlsContext::load(material, now).unwrap()),
            limit: Duration::from_secs(20),
            datacenter: "dc1".into(),
            domain: "consul".into(),
        }
    }

    /// Whether the caller and the called find each other a server.
    async fn meet(caller: CertKind, called: CertKind) -> (bool, bool) {
        let house = house();
        let (caller, called) = (rpc(house.path(), caller), rpc(house.path(), called));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (far, _) = listener.accept().await.unwrap();
        let (near, far) = tokio::join!(caller.connect(near.unwrap()), called.accept(far));
        let judged = |refused: Option<io::Error>| {
            if let Some(cause) = &refused {
                assert_eq!(cause.kind(), io::ErrorKind::PermissionDenied, "{cause}");
                assert!(cause.to_string().contains("server.dc1.consul"), "{cause}");
            }
            refused.is_none()
        };
        (judged(near.err()), judged(far.unwrap().no_server))
    }

    #[tokio::test]
    async fn only_servers_speak_on_the_server_port_even_without_verify_server_hostname() {
        use CertKind::{Client, Server};
        assert_eq!(meet(Server, Server).await, (true, true));
        assert_eq!(meet(Client, Server).await, (true, false));
        assert_eq!(meet(Server, Client).await, (false, true));
    }
}
