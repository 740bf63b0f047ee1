//! TLS of the mesh: both ends show a certificate, and the name in it is what counts.
//!
//! Owns: the rustls configurations, and which of them a caller gets.
//! Never: decides who may call whom.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_identity::ca::{MeshVerifier, SpiffeId, TrustBundle};

use crate::config::Identity;
use crate::wire::ALPN;

/// What all handshakes of a proxy share.
#[derive(Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    bundle: Arc<ArcSwap<TrustBundle>>,
}

/// A leaf with its key, ready to sign.
#[derive(Clone)]
pub struct Leaf {
    key: Arc<CertifiedKey>,
    spiffe: SpiffeId,
}

impl Tls {
    /// Trusts `bundle`, until it is replaced.
    #[must_use]
    pub fn new(bundle: TrustBundle) -> Self {
        Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            bundle: Arc::new(ArcSwap::from_pointee(bundle)),
        }
    }

    /// New handshakes trust these roots. Those of sessions to be resumed were checked against older ones: whoever
    /// replaces a bundle makes new configurations as well.
    pub fn replace(&self, bundle: TrustBundle) {
        self.bundle.store(Arc::new(bundle));
    }

    /// The bundle of this moment.
    #[must_use]
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    /// Verifies callers, also outside a handshake.
    #[must_use]
    pub fn callers(&self) -> MeshVerifier {
        MeshVerifier::for_callers(self.bundle.clone(), self.provider.clone())
    }

    /// A certificate chain and its key, PEM.
    ///
    /// # Errors
    /// One of them cannot be read, or they do not belong together.
    pub fn leaf(&self, spiffe: SpiffeId, chain: &str, key: &str) -> Result<Leaf, Error> {
        let general = |what: &str| Error::General(format!("the leaf's {what} cannot be read"));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let chain = chain.map_err(|_| general("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| general("key"))?;
        let key = CertifiedKey::from_der(chain, key, &self.provider)?;
        Ok(Leaf {
            key: Arc::new(key),
            spiffe,
        })
    }

    /// What a service proves itself by when it is called.
    ///
    /// # Errors
    /// The crypto provider lacks a protocol version.
    pub fn identity(&self, leaf: &Leaf, generation: u64) -> Result<Identity, Error> {
        let server = |protocols: Vec<Vec<u8>>| {
            let verifier = Arc::new(self.callers());
            let mut config = ServerConfig::builder_with_provider(self.provider.clone())
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
            // A resumed session would not be verified again: roots may have gone meanwhile.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config.alpn_protocols = protocols;
            Ok::<_, Error>(Arc::new(config))
        };
        Ok(Identity {
            spiffe: leaf.spiffe.clone(),
            generation,
            tunnel_server: server(vec![ALPN.to_vec()])?,
            // No list: whatever a caller offers is let be, as there is nothing to choose at this level.
            plain_server: server(Vec::new())?,
        })
    }

    /// For calls to one of `expected`.
    ///
    /// # Errors
    /// The crypto provider lacks a protocol version.
    pub fn client(&self, leaf: &Leaf, expected: Vec<SpiffeId>) -> Result<Arc<ClientConfig>, Error> {
        let verifier =
            MeshVerifier::for_called(self.bundle.clone(), self.provider.clone(), expected);
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
        config.resumption = Resumption::in_memory_sessions(16);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}
