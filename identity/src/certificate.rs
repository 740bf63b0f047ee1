//! What a certificate says, in words the rest of weft uses.

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The facts of a peer's (already verified) certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// Common name of the subject, or `""`.
    pub common_name: String,
    /// DNS names, lower case.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// URIs, `spiffe://…` among them.
    pub uris: Vec<String>,
    /// SHA-256 of the DER form, 64 hex digits.
    pub fingerprint: String,
    /// First second it is valid, Unix time.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

impl PeerFacts {
    /// Reads a certificate; `None` when it is not X.509.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common_name = certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|n| n.as_str().ok());
        let mut facts = Self {
            common_name: common_name.unwrap_or_default().to_owned(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            uris: Vec::new(),
            fingerprint: hex::encode(digest(&SHA256, der)),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        };
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names
            .map(|extension| &extension.value.general_names)
            .into_iter()
            .flatten()
        {
            match name {
                GeneralName::DNSName(name) => facts.dns_names.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => facts.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Some(facts)
    }

    /// Reads the first certificate of a PEM file; `None` when there is none.
    #[must_use]
    pub fn read_pem(pem: &[u8]) -> Option<Self> {
        use rustls_pki_types::pem::PemObject as _;
        Self::read(&CertificateDer::from_pem_slice(pem).ok()?)
    }

    /// Whether it names its holder a server of that datacenter: a DNS name `server.<dc>.<domain>`.
    #[must_use]
    pub fn is_server(&self, datacenter: &str, domain: &str) -> bool {
        let role = server_name(datacenter, domain);
        self.dns_names.contains(&role)
    }
}

/// `server.<dc>.<domain>`, lower case, no dot at the end.
#[must_use]
pub fn server_name(datacenter: &str, domain: &str) -> String {
    format!("server.{datacenter}.{}", domain.trim_matches('.')).to_ascii_lowercase()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
