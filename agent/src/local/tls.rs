//! TLS for checks: the system's roots, the agent's own with `enable_agent_tls_for_checks`, or none at
//! all when a check says so.
//!
//! Owns: the two client configurations checks share.
//! Never: reads the agent's own files; they are given.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where distributions keep their bundle of roots.
const ROOT_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Completes a handshake as `server_name` over `stream`, with the agent's own configuration when there
/// is one. `skip_verify` accepts any certificate; `protocols` are offered by ALPN, none of them demanded.
pub(super) async fn connect(
    stream: TcpStream,
    server_name: &str,
    (skip_verify, own): (bool, Option<Arc<ClientConfig>>),
    protocols: &[&str],
) -> Result<TlsStream<TcpStream>, String> {
    let bare = server_name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(bare)
        .map_err(|_| format!("invalid TLS server name {server_name:?}"))?;
    let mut config = match (own, skip_verify) {
        (None, false) => verified()?,
        (None, true) => unverified()?,
        (Some(own), false) => own,
        (Some(mut own), true) => {
            let any = AcceptAny(provider().signature_verification_algorithms);
            let config = Arc::make_mut(&mut own);
            config.dangerous().set_certificate_verifier(Arc::new(any));
            own
        }
    };
    if !protocols.is_empty() {
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        Arc::make_mut(&mut config).alpn_protocols = protocols.collect();
    }
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| format!("tls: {error}"))
}

fn verified() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let bundle = ROOT_BUNDLES.iter().find(|path| Path::new(path).exists());
            let bundle = bundle.ok_or(
                "no bundle of root certificates found on this host; install ca-certificates",
            )?;
            let certificates = CertificateDer::pem_file_iter(bundle)
                .map_err(|error| format!("{bundle}: {error}"))?;
            roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            let builder = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| error.to_string())?;
            Ok(Arc::new(
                builder.with_root_certificates(roots).with_no_client_auth(),
            ))
        })
        .clone()
}

fn unverified() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = provider();
            let verifier = AcceptAny(provider.signature_verification_algorithms);
            let builder =
                ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| error.to_string())?;
            let builder = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier));
            Ok(Arc::new(builder.with_no_client_auth()))
        })
        .clone()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// For `tls_skip_verify`: any certificate will do, but its holder must still sign with its key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
