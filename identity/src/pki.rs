//! A CA for operators, and certificates signed by it: what `weft tls ca create` and
//! `weft tls cert create` do.
//!
//! Owns: the contents and names of the PEM files. Never: reads a clock; `now` is given.
//! Keys are ECDSA P-256. File names, SANs and key usages are those of `consul tls`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use weft_proto::ids::UnixMillis;

use crate::files::{self, FileError, PRIVATE_FILE, PUBLIC_FILE};
use crate::secret::Secret;

/// Certificates of one kind in a directory at most.
const NUMBERS_MAX: u32 = 10_000;
/// Longest life in days: X.509 dates beyond the year 9999 do not exist, and nobody means 200 years.
const DAYS_MAX: u32 = 36_500;
const DAY: Duration = Duration::from_secs(86_400);
/// Clocks of a cluster differ a little; a new certificate must be valid on all of them: it begins so much before it
/// was made.
pub const BACKDATED: Duration = Duration::from_secs(300);

/// Why a CA or certificate was not made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// `days` is out of range.
    #[error("-days={days} is not usable: 1 to {DAYS_MAX} are allowed")]
    Days {
        /// As given.
        days: u32,
    },
    /// A name cannot stand in a certificate.
    #[error("{name:?} is not a DNS name")]
    Name {
        /// As given.
        name: String,
    },
    /// The CA's certificate cannot be read.
    #[error(
        "the CA certificate {path} is not a PEM certificate that may sign; make one with `weft tls ca create`"
    )]
    Ca {
        /// Its file.
        path: String,
    },
    /// The CA's key cannot be read.
    #[error("the CA key {path} is not a PEM private key (EC, RSA or PKCS#8)")]
    CaKey {
        /// Its file.
        path: String,
    },
    /// The CA's key belongs to another CA.
    #[error(
        "the CA key {key} does not belong to the CA certificate {certificate}; give the pair that was made together"
    )]
    CaPair {
        /// Certificate file.
        certificate: String,
        /// Key file.
        key: String,
    },
    /// A file exists already.
    #[error("{path} exists already; move it away, or use another -domain")]
    Exists {
        /// The file.
        path: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The crypto library failed.
    #[error("making a key or certificate failed")]
    Crypto(#[source] rcgen::Error),
}

/// A certificate and its key, both in PEM.
#[derive(Clone, Debug)]
pub struct Pems {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: Secret<String>,
}

/// What `tls ca create` is asked for.
#[derive(Clone, Debug)]
pub struct CaRequest {
    /// `-domain`, `consul` by default.
    pub domain: String,
    /// `-days`, 1825 by default.
    pub days: u32,
    /// `-common-name`; absent makes `Weft Agent CA <serial>`.
    pub common_name: Option<String>,
    /// `-name-constraint`: the CA may only sign names under the domain and `localhost`.
    pub name_constraint: bool,
    /// `-additional-name-constraint`: further DNS names it may sign; needs `name_constraint`.
    pub additional_name_constraints: Vec<String>,
}

impl CaRequest {
    /// With Consul's defaults.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            days: 1825,
            common_name: None,
            name_constraint: false,
            additional_name_constraints: Vec::new(),
        }
    }
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertKind {
    /// A server agent: `server.<dc>.<domain>`.
    Server,
    /// A client agent: `client.<dc>.<domain>`.
    Client,
    /// A command line: `cli.<dc>.<domain>`, for outgoing connections only.
    Cli,
}

impl CertKind {
    /// The word in names and file names.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Cli => "cli",
        }
    }
}

/// What `tls cert create` is asked for.
#[derive(Clone, Debug)]
pub struct CertRequest {
    /// Whom it is for.
    pub kind: CertKind,
    /// `-dc`, `dc1` by default.
    pub datacenter: String,
    /// `-domain`, `consul` by default.
    pub domain: String,
    /// `-node`: adds `<node>.server.<dc>.<domain>`; servers only.
    pub node: Option<String>,
    /// `-additional-dnsname`.
    pub dns_names: Vec<String>,
    /// `-additional-ipaddress`.
    pub addresses: Vec<IpAddr>,
    /// `-days`, 365 by default.
    pub days: u32,
}

impl CertRequest {
    /// With Consul's defaults.
    #[must_use]
    pub fn new(kind: CertKind, datacenter: &str, domain: &str) -> Self {
        Self {
            kind,
            datacenter: datacenter.to_owned(),
            domain: domain.to_owned(),
            node: None,
            dns_names: Vec::new(),
            addresses: Vec::new(),
            days: 365,
        }
    }

    fn names(&self) -> Vec<String> {
        let domain = self.domain.trim_matches('.');
        let own = format!("{}.{}.{domain}", self.kind.word(), self.datacenter);
        let node = self.node.as_ref().filter(|_| self.kind == CertKind::Server);
        let mut names: Vec<String> = node
            .map(|node| format!("{node}.{own}"))
            .into_iter()
            .collect();
        names.push(own);
        for name in self
            .dns_names
            .iter()
            .map(String::as_str)
            .chain(["localhost"])
        {
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}

/// Makes a CA. `now` is the wall clock.
///
/// Errors: [`PkiError::Days`], [`PkiError::Name`], [`PkiError::Crypto`].
pub fn create_ca(request: &CaRequest, now: UnixMillis) -> Result<Pems, PkiError> {
    let key = new_key()?;
    let serial = serial()?;
    let name = request
        .common_name
        .clone()
        .unwrap_or_else(|| format!("Weft Agent CA {}", hex::encode(&serial)));
    let mut params = params(&name, serial, request.days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.name_constraints = constraints(request)?;
    let certificate = params.self_signed(&key).map_err(PkiError::Crypto)?;
    Ok(Pems {
        certificate: certificate.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

fn constraints(request: &CaRequest) -> Result<Option<NameConstraints>, PkiError> {
    if !request.name_constraint {
        return Ok(None);
    }
    let own = [request.domain.trim_matches('.'), "localhost"].map(str::to_owned);
    let names: Vec<String> = request
        .additional_name_constraints
        .iter()
        .cloned()
        .chain(own)
        .collect();
    for name in &names {
        check_name(name)?;
    }
    let permitted_subtrees = names.into_iter().map(GeneralSubtree::DnsName).collect();
    Ok(Some(NameConstraints {
        permitted_subtrees,
        excluded_subtrees: Vec::new(),
    }))
}

/// Makes a certificate signed by `ca`. `named` are the files of the CA pair, for error texts.
///
/// Errors: any but [`PkiError::Exists`] and [`PkiError::File`].
pub fn create_cert(
    request: &CertRequest,
    ca: &Pems,
    named: (&Path, &Path),
    now: UnixMillis,
) -> Result<Pems, PkiError> {
    let issuer = issuer(ca, named)?;
    let key = new_key()?;
    let names = request.names();
    let common_name = names.first().cloned().unwrap_or_default();
    let mut params = params(&common_name, serial()?, request.days, now)?;
    for name in &names {
        check_name(name)?;
        let text = name
            .as_str()
            .try_into()
            .map_err(|_| PkiError::Name { name: name.clone() })?;
        params.subject_alt_names.push(SanType::DnsName(text));
    }
    let loopback = Some(IpAddr::from([127, 0, 0, 1])).filter(|_| request.kind != CertKind::Cli);
    let mut addresses = request.addresses.clone();
    addresses.extend(loopback.filter(|a| !request.addresses.contains(a)));
    params
        .subject_alt_names
        .extend(addresses.into_iter().map(SanType::IpAddress));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if request.kind != CertKind::Cli {
        // Servers and agents both call and are called.
        params
            .extended_key_usages
            .insert(0, ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(PkiError::Crypto)?;
    Ok(Pems {
        certificate: certificate.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

pub(crate) fn issuer<'a>(
    ca: &Pems,
    named: (&Path, &Path),
) -> Result<Issuer<'a, KeyPair>, PkiError> {
    let (certificate, key) = (named.0.display().to_string(), named.1.display().to_string());
    let der = PrivateKeyDer::from_pem_slice(ca.key.reveal().as_bytes())
        .map_err(|_| PkiError::CaKey { path: key.clone() })?;
    let pair = KeyPair::try_from(&der).map_err(|_| PkiError::CaKey { path: key.clone() })?;
    let signs = rustls_pki_types::CertificateDer::from_pem_slice(ca.certificate.as_bytes())
        .map_err(|_| PkiError::Ca {
            path: certificate.clone(),
        })?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&signs).map_err(|_| PkiError::Ca {
        path: certificate.clone(),
    })?;
    if !parsed.is_ca() {
        return Err(PkiError::Ca { path: certificate });
    }
    if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
        return Err(PkiError::CaPair { certificate, key });
    }
    Issuer::from_ca_cert_der(&signs, pair).map_err(|_| PkiError::Ca { path: certificate })
}

/// `<domain>-agent-ca.pem` and `<domain>-agent-ca-key.pem` in `directory`.
#[must_use]
pub fn ca_files(directory: &Path, domain: &str) -> (PathBuf, PathBuf) {
    let domain = domain.trim_matches('.');
    (
        directory.join(format!("{domain}-agent-ca.pem")),
        directory.join(format!("{domain}-agent-ca-key.pem")),
    )
}

/// `<dc>-<kind>-<domain>-<n>.pem` and `…-<n>-key.pem` in `directory`, with the first number that is free.
///
/// Errors: [`PkiError::Exists`] when ten thousand are taken.
pub fn cert_files(directory: &Path, request: &CertRequest) -> Result<(PathBuf, PathBuf), PkiError> {
    let stem = format!(
        "{}-{}-{}",
        request.datacenter,
        request.kind.word(),
        request.domain.trim_matches('.')
    );
    for number in 0..NUMBERS_MAX {
        let pair = (
            directory.join(format!("{stem}-{number}.pem")),
            directory.join(format!("{stem}-{number}-key.pem")),
        );
        if !pair.0.exists() && !pair.1.exists() {
            return Ok(pair);
        }
    }
    Err(PkiError::Exists {
        path: directory
            .join(format!("{stem}-*.pem"))
            .display()
            .to_string(),
    })
}

/// Makes a CA and writes its two files; returns them.
///
/// Errors: any; an existing file is never replaced.
pub fn write_ca(
    directory: &Path,
    request: &CaRequest,
    now: UnixMillis,
) -> Result<(PathBuf, PathBuf), PkiError> {
    let pair = ca_files(directory, &request.domain);
    for path in [&pair.0, &pair.1] {
        if path.exists() {
            return Err(PkiError::Exists {
                path: path.display().to_string(),
            });
        }
    }
    write_pair(&pair, &create_ca(request, now)?)?;
    Ok(pair)
}

/// Makes a certificate signed by the CA in the two files and writes it beside; returns its files.
///
/// Errors: any.
pub fn write_cert(
    directory: &Path,
    request: &CertRequest,
    ca: (&Path, &Path),
    now: UnixMillis,
) -> Result<(PathBuf, PathBuf), PkiError> {
    let pems = read_pair(ca)?;
    let made = create_cert(request, &pems, ca, now)?;
    let pair = cert_files(directory, request)?;
    write_pair(&pair, &made)?;
    Ok(pair)
}

/// Reads a certificate and key file as text.
///
/// Errors: [`PkiError::File`], [`PkiError::Ca`] or [`PkiError::CaKey`] when they are not text.
pub fn read_pair((certificate, key): (&Path, &Path)) -> Result<Pems, PkiError> {
    let text = String::from_utf8(files::read(certificate)?).map_err(|_| PkiError::Ca {
        path: certificate.display().to_string(),
    })?;
    let secret = String::from_utf8(files::read(key)?).map_err(|_| PkiError::CaKey {
        path: key.display().to_string(),
    })?;
    Ok(Pems {
        certificate: text,
        key: Secret::new(secret),
    })
}

/// Writes the key (0600) first, then the certificate (0644).
///
/// Errors: [`FileError`].
pub fn write_pair(files: &(PathBuf, PathBuf), pems: &Pems) -> Result<(), FileError> {
    files::write(&files.1, pems.key.reveal().as_bytes(), PRIVATE_FILE)?;
    files::write(&files.0, pems.certificate.as_bytes(), PUBLIC_FILE)
}

/// The PEM form of certificates, one after the other (RFC 7468).
#[must_use]
pub fn certificates_pem<D: AsRef<[u8]>>(certificates: &[D]) -> String {
    let blocks = certificates.iter();
    blocks
        .map(|der| pem_block("CERTIFICATE", der.as_ref()))
        .collect()
}

/// One block (RFC 7468), with a line end at its end.
pub(crate) fn pem_block(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    const LINE: usize = 64;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: any split is one between characters.
        let (line, more) = rest.split_at(LINE.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// A new ECDSA P-256 key: PKCS#8 in PEM, and the DER of its `SubjectPublicKeyInfo`.
///
/// Errors: [`PkiError::Crypto`].
pub fn create_key() -> Result<(Secret<String>, Vec<u8>), PkiError> {
    let key = new_key()?;
    Ok((
        Secret::new(key.serialize_pem()),
        key.subject_public_key_info(),
    ))
}

/// The DER of the `SubjectPublicKeyInfo` of a key in PEM; `None` when it is not a key.
#[must_use]
pub fn public_key(pem: &str) -> Option<Vec<u8>> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(KeyPair::try_from(&der).ok()?.subject_public_key_info())
}

pub(crate) fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Crypto)
}

/// 16 random bytes, positive as DER wants it.
pub(crate) fn serial() -> Result<Vec<u8>, PkiError> {
    let mut serial = vec![0u8; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| PkiError::Crypto(rcgen::Error::RingUnspecified))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

pub(crate) fn params(
    name: &str,
    serial: Vec<u8>,
    days: u32,
    now: UnixMillis,
) -> Result<CertificateParams, PkiError> {
    if days == 0 || days > DAYS_MAX {
        return Err(PkiError::Days { days });
    }
    Ok(params_for(name, serial, DAY * days, now))
}

/// As [`params`], for a life that is known to be possible.
pub(crate) fn params_for(
    name: &str,
    serial: Vec<u8>,
    life: Duration,
    now: UnixMillis,
) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now.get() / 1_000);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + (now + life);
    params.serial_number = Some(SerialNumber::from(serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub(crate) fn check_name(name: &str) -> Result<(), PkiError> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let plain = name.strip_prefix("*.").unwrap_or(name);
    if plain.len() <= 253 && plain.split('.').all(label) {
        Ok(())
    } else {
        Err(PkiError::Name {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::PeerFacts;
    use rustls_pki_types::CertificateDer;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn facts(pem: &str) -> PeerFacts {
        PeerFacts::read(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn files_are_named_and_numbered_as_consul_does() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let ca = write_ca(root.path(), &CaRequest::new("consul"), NOW).unwrap();
        assert!(ca.0.ends_with("consul-agent-ca.pem") && ca.1.ends_with("consul-agent-ca-key.pem"));
        let again = write_ca(root.path(), &CaRequest::new("consul"), NOW).unwrap_err();
        assert!(
            again
                .to_string()
                .contains("consul-agent-ca.pem exists already"),
            "{again}"
        );
        for number in 0..2 {
            let request = CertRequest::new(CertKind::Server, "dc1", "consul");
            let pair = write_cert(root.path(), &request, (&ca.0, &ca.1), NOW).unwrap();
            assert!(pair.0.ends_with(format!("dc1-server-consul-{number}.pem")));
            assert!(
                pair.1
                    .ends_with(format!("dc1-server-consul-{number}-key.pem"))
            );
            let mode = std::fs::metadata(&pair.1).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let cli = CertRequest::new(CertKind::Cli, "dc1", "consul");
        let pair = write_cert(root.path(), &cli, (&ca.0, &ca.1), NOW).unwrap();
        assert!(pair.0.ends_with("dc1-cli-consul-0.pem"));
    }

    #[test]
    fn names_and_life_are_as_asked() {
        let ca = create_ca(&CaRequest::new("consul"), NOW).unwrap();
        let paths = (Path::new("ca.pem"), Path::new("ca-key.pem"));
        let mut request = CertRequest::new(CertKind::Server, "dc2", "consul.");
        request.node = Some("s1".into());
        request.dns_names = vec!["s1.example.org".into()];
        request.addresses = vec!["10.0.0.7".parse().unwrap()];
        let server = facts(&create_cert(&request, &ca, paths, NOW).unwrap().certificate);
        let names = [
            "s1.server.dc2.consul",
            "server.dc2.consul",
            "s1.example.org",
            "localhost",
        ];
        assert_eq!(server.dns_names, names);
        assert_eq!(
            server.addresses,
            ["10.0.0.7", "127.0.0.1"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        assert!(server.is_server("dc2", "consul") && !server.is_server("dc1", "consul"));
        assert_eq!(server.not_after - server.not_before, 365 * 86_400 + 300);
        let client = facts(
            &create_cert(
                &CertRequest::new(CertKind::Client, "dc2", "consul"),
                &ca,
                paths,
                NOW,
            )
            .unwrap()
            .certificate,
        );
        assert_eq!(client.dns_names, ["client.dc2.consul", "localhost"]);
        assert!(!client.is_server("dc2", "consul"));
        let ca = facts(&ca.certificate);
        assert!(
            ca.common_name.starts_with("Weft Agent CA "),
            "{}",
            ca.common_name
        );
    }

    #[test]
    fn bad_requests_say_what_is_wrong() {
        let ca = create_ca(&CaRequest::new("consul"), NOW).unwrap();
        let other = create_ca(&CaRequest::new("consul"), NOW).unwrap();
        let paths = (Path::new("ca.pem"), Path::new("ca-key.pem"));
        let request = CertRequest::new(CertKind::Server, "dc1", "consul");
        let check = |request: &CertRequest, ca: &Pems, word: &str| {
            let error = create_cert(request, ca, paths, NOW)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        };
        let mixed = Pems {
            certificate: ca.certificate.clone(),
            key: other.key.clone(),
        };
        check(
            &request,
            &mixed,
            "ca-key.pem does not belong to the CA certificate ca.pem",
        );
        let leaf = create_cert(&request, &ca, paths, NOW).unwrap();
        check(
            &request,
            &leaf,
            "ca.pem is not a PEM certificate that may sign",
        );
        check(
            &request,
            &Pems {
                certificate: "x".into(),
                key: ca.key.clone(),
            },
            "ca.pem is not",
        );
        check(
            &request,
            &Pems {
                certificate: ca.certificate.clone(),
                key: Secret::new("x".into()),
            },
            "ca-key.pem is not",
        );
        check(
            &CertRequest {
                days: 0,
                ..request.clone()
            },
            &ca,
            "-days=0",
        );
        check(
            &CertRequest {
                datacenter: "d c".into(),
                ..request
            },
            &ca,
            "is not a DNS name",
        );
    }
}
