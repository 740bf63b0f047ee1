//! How far those we call are verified, and why a handshake failed in an operator's words.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::TlsMaterial;
use crate::certificate::server_name;

/// Verifies a called peer as `verify_outgoing`, `verify_server_hostname` and `verify_dialled_name` say.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate will do (`verify_outgoing = false`); the traffic is hidden, the peer is not known.
    roots: Option<Arc<RootCertStore>>,
    name: NameRule,
}

#[derive(Debug)]
enum NameRule {
    Any,
    Dialled,
    /// `server.<dc>.<domain>`.
    Role(ServerName<'static>),
}

impl PeerVerifier {
    pub(super) fn new(
        material: &TlsMaterial,
        provider: Arc<CryptoProvider>,
        roots: Option<Arc<RootCertStore>>,
    ) -> Self {
        let verified = material.verify_outgoing || material.verify_dialled_name;
        let role = ServerName::try_from(server_name(&material.datacenter, &material.domain));
        let name = match role {
            Ok(role) if material.verify_server_hostname => NameRule::Role(role),
            // A datacenter that is no DNS label can be in no certificate: fall to the name dialled, which then is it.
            Err(_) if material.verify_server_hostname => NameRule::Dialled,
            _ if material.verify_dialled_name => NameRule::Dialled,
            _ => NameRule::Any,
        };
        Self {
            provider,
            roots: roots.filter(|_| verified),
            name,
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            algorithms,
        )?;
        match &self.name {
            NameRule::Any => {}
            NameRule::Dialled => verify_server_name(&certificate, dialled)?,
            NameRule::Role(role) => verify_server_name(&certificate, role)?,
        }
        Ok(ServerCertVerified::assertion())
    }

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
}

/// Why a handshake failed, and what to do about it.
pub(super) fn explain(cause: &io::Error, material: &TlsMaterial) -> String {
    let ca = material.ca_file.as_ref().or(material.ca_path.as_ref());
    let ca = ca.map_or_else(
        || "tls.ca_file".to_owned(),
        |path| path.display().to_string(),
    );
    let inner = cause.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(error)) => certificate_reason(error, &ca),
        Some(Error::NoCertificatesPresented) => {
            "the peer showed no certificate, and verify_incoming asks for one; set its cert_file and key_file".to_owned()
        }
        Some(Error::AlertReceived(alert)) => {
            format!("the peer refused us ({alert:?}); compare its ca_file with our cert_file, and the TLS versions")
        }
        Some(Error::InvalidMessage(_)) => "the peer does not speak TLS here; check the port, or its tls settings".to_owned(),
        Some(Error::PeerIncompatible(_)) => "no TLS version or cipher in common; see tls_min_version".to_owned(),
        _ if cause.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer hung up; it may not speak TLS here, or did not accept our certificate".to_owned()
        }
        _ => "the connection broke".to_owned(),
    }
}

fn certificate_reason(error: &CertificateError, ca: &str) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("the peer's certificate is not signed by a CA in {ca}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the peer's certificate has expired; make it a new one, or set the clock of this machine".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the peer's certificate is not valid yet; compare the clocks of both machines".to_owned()
        }
        CertificateError::NotValidForName => "the peer's certificate is not for the name we asked for".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the peer's certificate is not for {}, but for {}",
            expected.to_str(),
            if presented.is_empty() { "nobody".to_owned() } else { presented.join(", ") }
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the peer's certificate is not for this use (a -cli certificate cannot accept connections)".to_owned()
        }
        _ => "the peer's certificate is not valid".to_owned(),
    }
}
