//! TLS configurations from an operator's files, which can be loaded again while in use.
//!
//! Owns: reading and checking the files, rustls configurations, handshakes with a peer's facts.
//! Never: replaces a configuration that works by one that does not; decides what a peer may do.
//! Keys and flags as in Consul's `tls {}` stanza. Crypto is aws-lc-rs, named explicitly.

mod load;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use weft_proto::ids::UnixMillis;

use crate::certificate::{PeerFacts, server_name};
use crate::files::FileError;

/// `tls_min_version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2, Consul's default.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl MinVersion {
    /// Reads `TLSv1_2` or `TLSv1_3` (`tls12`, `tls13` as older files write it).
    ///
    /// Errors: [`TlsError::Version`].
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        match text {
            "" | "TLSv1_2" | "tls12" => Ok(Self::Tls12),
            "TLSv1_3" | "tls13" => Ok(Self::Tls13),
            other => Err(TlsError::Version {
                given: other.to_owned(),
            }),
        }
    }
}

/// One effective `tls {}` block: defaults and overrides already merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsMaterial {
    /// PEM file with CA certificates.
    pub ca_file: Option<PathBuf>,
    /// Directory of such files (`*.pem`, `*.crt`).
    pub ca_path: Option<PathBuf>,
    /// PEM file with this node's certificate, intermediates after it.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// `tls_min_version`.
    pub min_version: MinVersion,
    /// Callers must show a certificate of the CA.
    pub verify_incoming: bool,
    /// Those we call must show a certificate of the CA.
    pub verify_outgoing: bool,
    /// Those we call must also be servers of this datacenter: `server.<dc>.<domain>`.
    pub verify_server_hostname: bool,
    /// Those we call must also bear the name we dialled (a command line calling HTTPS).
    pub verify_dialled_name: bool,
    /// This datacenter.
    pub datacenter: String,
    /// The DNS domain, `consul` by default.
    pub domain: String,
    /// ALPN protocols offered and accepted, best first; none leaves ALPN out.
    pub alpn: Vec<String>,
}

/// Why TLS is not available. A configuration in use stays in use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("tls.{key}: {cause}")]
    File {
        /// The configuration key.
        key: &'static str,
        /// What happened, with its own source.
        cause: FileError,
    },
    /// A file does not hold what it should.
    #[error("tls.{key}: {path} {problem}; {remedy}")]
    Content {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The key is not the certificate's.
    #[error(
        "tls.key_file: {key} is not the key of the certificate in {certificate}; give the two files that were made together"
    )]
    KeyMismatch {
        /// Certificate file.
        certificate: String,
        /// Key file.
        key: String,
    },
    /// A setting needs another one.
    #[error("tls.{key} needs {needs}")]
    Missing {
        /// The key that is set.
        key: &'static str,
        /// What must be set too.
        needs: &'static str,
    },
    /// `tls_min_version` is not supported.
    #[error(
        "tls_min_version {given:?} is not supported: use TLSv1_2 or TLSv1_3 (older versions are broken)"
    )]
    Version {
        /// As given.
        given: String,
    },
    /// The TLS library refused the settings.
    #[error("these TLS settings do not go together")]
    Library(#[source] rustls::Error),
    /// A handshake failed.
    #[error("TLS handshake with {peer} failed: {reason}")]
    Handshake {
        /// Who it was.
        peer: String,
        /// Why, and what to do.
        reason: String,
        /// The library's words.
        #[source]
        cause: io::Error,
    },
    /// A handshake took too long.
    #[error(
        "TLS handshake with {peer} did not end within {limit:?} (limits.rpc_handshake_timeout, limits.https_handshake_timeout)"
    )]
    Timeout {
        /// Who it was.
        peer: String,
        /// The limit.
        limit: Duration,
    },
}

/// One loaded state: what reload exchanges.
#[derive(Debug)]
struct Loaded {
    material: TlsMaterial,
    server: Option<Arc<ServerConfig>>,
    /// As `server`, but a caller need not show a certificate.
    guests: Option<Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
    own: Option<PeerFacts>,
    roots: Vec<rustls_pki_types::CertificateDer<'static>>,
}

/// TLS for one interface (RPC, HTTPS, gRPC), reloadable while connections live.
#[derive(Debug)]
pub struct TlsContext {
    loaded: ArcSwap<Loaded>,
    /// Reloads come one by one.
    reloading: Mutex<()>,
}

impl TlsContext {
    /// Reads and checks the files. `now` is the wall clock, for expiry.
    ///
    /// Errors: [`TlsError`] names the key, the file, what is wrong and what to do.
    pub fn load(material: TlsMaterial, now: UnixMillis) -> Result<Self, TlsError> {
        Ok(Self {
            loaded: ArcSwap::from_pointee(load::load(material, now)?),
            reloading: Mutex::new(()),
        })
    }

    /// Reads the same files again.
    ///
    /// Errors: as [`Self::load`]; the old configuration stays in use then.
    pub fn reload(&self, now: UnixMillis) -> Result<(), TlsError> {
        let _guard = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let material = self.loaded.load().material.clone();
        self.loaded.store(Arc::new(load::load(material, now)?));
        Ok(())
    }

    /// Takes other settings.
    ///
    /// Errors: as [`Self::load`]; the old configuration stays in use then.
    pub fn replace(&self, material: TlsMaterial, now: UnixMillis) -> Result<(), TlsError> {
        let _guard = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.loaded.store(Arc::new(load::load(material, now)?));
        Ok(())
    }

    /// The settings in use.
    #[must_use]
    pub fn material(&self) -> TlsMaterial {
        self.loaded.load().material.clone()
    }

    /// This node's certificate, when one is set.
    #[must_use]
    pub fn own(&self) -> Option<PeerFacts> {
        self.loaded.load().own.clone()
    }

    /// The certificates of the CAs in use, DER.
    #[must_use]
    pub fn roots(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.loaded.load().roots.clone()
    }

    /// For accepting connections; `None` without `cert_file` and `key_file`.
    #[must_use]
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.loaded.load().server.clone()
    }

    /// For making connections.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.loaded.load().client)
    }

    /// Shakes hands with a caller. The facts are there when it showed a certificate, which is then verified.
    ///
    /// `peer` is for error texts. Errors: [`TlsError::Handshake`], [`TlsError::Timeout`], [`TlsError::Missing`].
    pub async fn accept<S>(
        &self,
        stream: S,
        peer: &str,
        limit: Duration,
    ) -> Result<(server::TlsStream<S>, Option<PeerFacts>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_with(self.server_config(), stream, peer, limit)
            .await
    }

    /// As [`Self::accept`], also of a caller that has no certificate yet. One that it shows is verified.
    ///
    /// Errors: as [`Self::accept`].
    pub async fn accept_guest<S>(
        &self,
        stream: S,
        peer: &str,
        limit: Duration,
    ) -> Result<(server::TlsStream<S>, Option<PeerFacts>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.loaded.load().guests.clone();
        self.accept_with(config, stream, peer, limit).await
    }

    async fn accept_with<S>(
        &self,
        config: Option<Arc<ServerConfig>>,
        stream: S,
        peer: &str,
        limit: Duration,
    ) -> Result<(server::TlsStream<S>, Option<PeerFacts>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let needs = "cert_file and key_file to accept connections";
        let config = config.ok_or(TlsError::Missing {
            key: "defaults",
            needs,
        })?;
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = self.in_time(peer, limit, handshake).await?;
        let facts = first_facts(stream.get_ref().1.peer_certificates());
        Ok((stream, facts))
    }

    /// Shakes hands with whom we called as `host` (a name or an address).
    ///
    /// With `verify_server_hostname` the peer is asked for as `server.<dc>.<domain>` whatever `host` is.
    /// Errors: [`TlsError::Handshake`], [`TlsError::Timeout`].
    pub async fn connect<S>(
        &self,
        stream: S,
        host: &str,
        limit: Duration,
    ) -> Result<(client::TlsStream<S>, Option<PeerFacts>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let loaded = self.loaded.load_full();
        let role = server_name(&loaded.material.datacenter, &loaded.material.domain);
        let asked = if loaded.material.verify_server_hostname {
            role
        } else {
            host.to_owned()
        };
        let name = ServerName::try_from(asked).map_err(|error| TlsError::Handshake {
            peer: host.to_owned(),
            reason: "this is not a host name or address".to_owned(),
            cause: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        let handshake = TlsConnector::from(Arc::clone(&loaded.client)).connect(name, stream);
        let stream = self.in_time(host, limit, handshake).await?;
        let facts = first_facts(stream.get_ref().1.peer_certificates());
        Ok((stream, facts))
    }

    async fn in_time<T>(
        &self,
        peer: &str,
        limit: Duration,
        handshake: impl Future<Output = io::Result<T>>,
    ) -> Result<T, TlsError> {
        match tokio::time::timeout(limit, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(cause)) => {
                let reason = verify::explain(&cause, &self.loaded.load().material);
                Err(TlsError::Handshake {
                    peer: peer.to_owned(),
                    reason,
                    cause,
                })
            }
            Err(_) => Err(TlsError::Timeout {
                peer: peer.to_owned(),
                limit,
            }),
        }
    }
}

fn first_facts(chain: Option<&[rustls_pki_types::CertificateDer<'static>]>) -> Option<PeerFacts> {
    PeerFacts::read(chain?.first()?)
}

#[cfg(test)]
mod tests;
