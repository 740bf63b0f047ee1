//! The same rules during a handshake.
//!
//! Owns: that rustls asks [`TrustBundle::verify`], on both ends, with the bundle of this moment.
//! Never: decides more than who the peer is; its refusal travels inside the TLS error ([`MeshVerifier::refusal`]).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_proto::ids::UnixMillis;

use super::spiffe::SpiffeId;
use super::verify::{PeerRefusal, RefusalReason, Side, TrustBundle, VerifiedPeer};

/// Verifies peers of the mesh. As a server it wants a certificate of every caller; as a client it wants whoever answers
/// to be one of those it was made for. The name dialled plays no part: the id does.
#[derive(Debug)]
pub struct MeshVerifier {
    bundle: Arc<ArcSwap<TrustBundle>>,
    provider: Arc<CryptoProvider>,
    expected: Option<Vec<SpiffeId>>,
}

impl MeshVerifier {
    /// For whoever is called: any identity of our trust domain may call; who may go on is decided after the handshake.
    #[must_use]
    pub const fn for_callers(
        bundle: Arc<ArcSwap<TrustBundle>>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self {
            bundle,
            provider,
            expected: None,
        }
    }

    /// For a caller: the other end must be one of `expected`.
    #[must_use]
    pub const fn for_called(
        bundle: Arc<ArcSwap<TrustBundle>>,
        provider: Arc<CryptoProvider>,
        expected: Vec<SpiffeId>,
    ) -> Self {
        Self {
            bundle,
            provider,
            expected: Some(expected),
        }
    }

    /// Who showed this chain; for after the handshake, with the bundle of that moment.
    ///
    /// Errors: as [`TrustBundle::verify`].
    pub fn peer(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        now: UnixMillis,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        self.bundle.load().verify(chain, side, now, algorithms)
    }

    /// The refusal inside a TLS error, when it was one of ours.
    #[must_use]
    pub fn refusal(error: &Error) -> Option<&PeerRefusal> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
            _ => None,
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(above.len() + 1);
        chain.push(leaf.clone());
        chain.extend(above.iter().cloned());
        let now = UnixMillis(now.as_secs().saturating_mul(1_000));
        let peer = self.peer(&chain, side, now).map_err(wrapped)?;
        match &self.expected {
            Some(expected) if side == Side::Server && !expected.contains(&peer.id) => {
                Err(wrapped(PeerRefusal {
                    reason: RefusalReason::NotTheTarget,
                    detail: peer.id.to_string(),
                }))
            }
            _ => Ok(()),
        }
    }
}

fn wrapped(refusal: PeerRefusal) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(
                message,
                cert,
                signed,
                &self.provider.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(
                message,
                cert,
                signed,
                &self.provider.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, Side::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Which roots there are changes while a verifier lives; peers of a mesh have one certificate anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, Side::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}
