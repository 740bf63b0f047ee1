//! Reading an operator's files into rustls configurations, with errors that name file and remedy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_proto::ids::UnixMillis;

use super::verify::PeerVerifier;
use super::{Loaded, MinVersion, TlsError, TlsMaterial};
use crate::certificate::PeerFacts;
use crate::files::{self, FileError};
use crate::secret::Secret;

/// CA files read from `ca_path` at most.
const CA_FILES_MAX: usize = 1_024;
/// A certificate with less life than this is warned of.
const EXPIRY_WARNING_SECONDS: i64 = 30 * 86_400;

pub(super) fn load(material: TlsMaterial, now: UnixMillis) -> Result<Loaded, TlsError> {
    let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (roots, root_certificates) = match roots(&material, now)? {
        Some((store, certificates)) => (Some(Arc::new(store)), certificates),
        None => (None, Vec::new()),
    };
    let certified = certified(&material, &provider, now)?;
    let own = certified
        .as_ref()
        .and_then(|c| PeerFacts::read(c.cert.first()?));
    demands(&material, roots.is_some())?;
    let server = match &certified {
        Some(key) => Some(Arc::new(server_side(
            &material,
            &provider,
            roots.clone(),
            key,
        )?)),
        None => None,
    };
    let guests = match &certified {
        Some(key) => {
            let material = TlsMaterial {
                verify_incoming: false,
                ..material.clone()
            };
            Some(Arc::new(server_side(
                &material,
                &provider,
                roots.clone(),
                key,
            )?))
        }
        None => None,
    };
    let client = Arc::new(client_side(&material, &provider, roots, certified)?);
    Ok(Loaded {
        material,
        server,
        guests,
        client,
        own,
        roots: root_certificates,
    })
}

fn demands(material: &TlsMaterial, has_roots: bool) -> Result<(), TlsError> {
    let needs = "ca_file or ca_path, to verify against";
    if material.verify_incoming && !has_roots {
        return Err(TlsError::Missing {
            key: "verify_incoming",
            needs,
        });
    }
    if (material.verify_outgoing || material.verify_dialled_name) && !has_roots {
        return Err(TlsError::Missing {
            key: "verify_outgoing",
            needs,
        });
    }
    if material.verify_server_hostname && !material.verify_outgoing {
        return Err(TlsError::Missing {
            key: "verify_server_hostname",
            needs: "verify_outgoing = true",
        });
    }
    if material.verify_incoming && material.cert_file.is_none() {
        return Err(TlsError::Missing {
            key: "verify_incoming",
            needs: "cert_file and key_file",
        });
    }
    Ok(())
}

static FROM_TLS12: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS13, &rustls::version::TLS12];
static FROM_TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

fn versions(min: MinVersion) -> &'static [&'static SupportedProtocolVersion] {
    match min {
        MinVersion::Tls12 => &FROM_TLS12,
        MinVersion::Tls13 => &FROM_TLS13,
    }
}

fn server_side(
    material: &TlsMaterial,
    provider: &Arc<CryptoProvider>,
    roots: Option<Arc<RootCertStore>>,
    key: &Arc<CertifiedKey>,
) -> Result<ServerConfig, TlsError> {
    let verifier = match roots {
        None => Arc::new(NoClientAuth),
        Some(roots) => {
            let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            // Without the demand a certificate is still welcome, and verified when shown.
            let builder = if material.verify_incoming {
                builder
            } else {
                builder.allow_unauthenticated()
            };
            builder
                .build()
                .map_err(|error| TlsError::Library(rustls::Error::General(error.to_string())))?
        }
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions(material.min_version))
        .map_err(TlsError::Library)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(
            key,
        ))));
    config.alpn_protocols = alpn(material);
    Ok(config)
}

fn client_side(
    material: &TlsMaterial,
    provider: &Arc<CryptoProvider>,
    roots: Option<Arc<RootCertStore>>,
    key: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(PeerVerifier::new(material, Arc::clone(provider), roots));
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions(material.min_version))
        .map_err(TlsError::Library)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        Some(key) => {
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn(material);
    Ok(config)
}

fn alpn(material: &TlsMaterial) -> Vec<Vec<u8>> {
    material
        .alpn
        .iter()
        .map(|p| p.as_bytes().to_vec())
        .collect()
}

/// The CA certificates, ready for use and as they came.
type Roots = (RootCertStore, Vec<CertificateDer<'static>>);

/// The CA certificates, or `None` when none are configured.
fn roots(material: &TlsMaterial, now: i64) -> Result<Option<Roots>, TlsError> {
    let mut files: Vec<(&'static str, PathBuf)> = material
        .ca_file
        .iter()
        .map(|f| ("ca_file", f.clone()))
        .collect();
    if let Some(directory) = &material.ca_path {
        files.extend(
            ca_directory(directory)?
                .into_iter()
                .map(|file| ("ca_path", file)),
        );
    }
    if files.is_empty() {
        return Ok(None);
    }
    let mut store = RootCertStore::empty();
    let mut taken = Vec::new();
    let mut expired = None;
    for (key, file) in files {
        for certificate in certificates(key, &file)? {
            match check_life(key, &file, &certificate, now) {
                Ok(()) => {}
                Err(error) => {
                    // An old CA may stay in the bundle while its successor is there.
                    expired = Some(error);
                    continue;
                }
            }
            store
                .add(certificate.clone())
                .map_err(|_| TlsError::Content {
                    key,
                    path: file.display().to_string(),
                    problem: "holds a certificate that is not a CA's".to_owned(),
                    remedy: "give the file that `weft tls ca create` made",
                })?;
            taken.push(certificate);
        }
    }
    match (store.is_empty(), expired) {
        (true, Some(error)) => Err(error),
        _ => Ok(Some((store, taken))),
    }
}

fn ca_directory(directory: &Path) -> Result<Vec<PathBuf>, TlsError> {
    let failed = |cause| {
        let path = directory.display().to_string();
        let remedy = ": check the path and its permissions".to_owned();
        TlsError::File {
            key: "ca_path",
            cause: FileError {
                action: "read",
                path,
                remedy,
                cause,
            },
        }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "pem" || e == "crt") {
            files.push(path);
        }
    }
    files.sort();
    let content = |problem: &str| TlsError::Content {
        key: "ca_path",
        path: directory.display().to_string(),
        problem: problem.to_owned(),
        remedy: "put the CA certificates there as .pem or .crt files",
    };
    match files.len() {
        0 => Err(content("holds no .pem or .crt file")),
        n if n > CA_FILES_MAX => Err(content("holds more than 1024 files")),
        _ => Ok(files),
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = files::read(path).map_err(|cause| TlsError::File { key, cause })?;
    let content = |problem: &str, remedy| TlsError::Content {
        key,
        path: path.display().to_string(),
        problem: problem.to_owned(),
        remedy,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let remedy = "give a PEM file with -----BEGIN CERTIFICATE-----";
    match found {
        Ok(found) if !found.is_empty() => {
            if found.iter().any(|der| PeerFacts::read(der).is_none()) {
                return Err(content("holds a damaged certificate", remedy));
            }
            Ok(found)
        }
        // DER starts with a SEQUENCE of more than 255 bytes.
        _ if bytes.starts_with(&[0x30, 0x82]) => Err(content(
            "is DER, not PEM",
            "convert it: openssl x509 -inform der -in FILE -out FILE.pem",
        )),
        _ if PrivateKeyDer::from_pem_slice(&bytes).is_ok() => {
            Err(content("holds a key, not a certificate", remedy))
        }
        _ => Err(content("is not a PEM certificate", remedy)),
    }
}

fn certified(
    material: &TlsMaterial,
    provider: &Arc<CryptoProvider>,
    now: i64,
) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let (cert_file, key_file) = match (&material.cert_file, &material.key_file) {
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err(TlsError::Missing {
                key: "cert_file",
                needs: "key_file",
            });
        }
        (None, Some(_)) => {
            return Err(TlsError::Missing {
                key: "key_file",
                needs: "cert_file",
            });
        }
        (Some(cert), Some(key)) => (cert, key),
    };
    let chain = certificates("cert_file", cert_file)?;
    if let Some(own) = chain.first() {
        check_life("cert_file", cert_file, own, now)?;
    }
    let content = |problem: &str, remedy| TlsError::Content {
        key: "key_file",
        path: key_file.display().to_string(),
        problem: problem.to_owned(),
        remedy,
    };
    let bytes = Secret::new(files::read(key_file).map_err(|cause| TlsError::File {
        key: "key_file",
        cause,
    })?);
    let encrypted = bytes.reveal().windows(9).any(|w| w == b"ENCRYPTED");
    let key = PrivateKeyDer::from_pem_slice(bytes.reveal()).map_err(|_| {
        if encrypted {
            content(
                "is encrypted with a passphrase",
                "decrypt it: openssl pkey -in FILE -out FILE.pem, mode 0600",
            )
        } else {
            content(
                "is not a PEM private key",
                "give a PEM file with -----BEGIN (EC|RSA) PRIVATE KEY-----",
            )
        }
    })?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => Ok(Some(Arc::new(certified))),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch {
            certificate: cert_file.display().to_string(),
            key: key_file.display().to_string(),
        }),
        Err(_) => Err(content(
            "holds a key of a kind that is not supported",
            "use ECDSA P-256, P-384, Ed25519 or RSA",
        )),
    }
}

fn check_life(
    key: &'static str,
    path: &Path,
    der: &CertificateDer<'_>,
    now: i64,
) -> Result<(), TlsError> {
    let Some(facts) = PeerFacts::read(der) else {
        return Ok(());
    };
    let content = |problem, remedy| TlsError::Content {
        key,
        path: path.display().to_string(),
        problem,
        remedy,
    };
    if now > facts.not_after {
        let days = (now - facts.not_after) / 86_400;
        return Err(content(
            format!("expired {days} days ago"),
            "make a new one with `weft tls cert create` (or `ca create`), then reload",
        ));
    }
    if now < facts.not_before {
        let seconds = facts.not_before - now;
        return Err(content(
            format!("is not valid for another {seconds} s"),
            "set this machine's clock, or make the certificate again",
        ));
    }
    if facts.not_after - now < EXPIRY_WARNING_SECONDS {
        let days = (facts.not_after - now) / 86_400;
        tracing::warn!(file = %path.display(), days, "certificate expires soon");
    }
    Ok(())
}
