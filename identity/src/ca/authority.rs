//! A root that signs: making one, bridging from an older one, leaves.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_proto::ids::UnixMillis;
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::spiffe::{SpiffeId, TrustDomain};
use crate::pki::{self, PkiError};
use crate::secret::Secret;

/// The longest life of a root: 100 years.
pub const ROOT_LIFE_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Life of a leaf that only proves something.
const PROOF_LIFE: Duration = Duration::from_secs(60);
/// Characters of a service's name in a certificate's common name, which has 64 at most.
const SHORT_NAME_MAX: usize = 32;

/// Why a root cannot be used, or nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Not a certificate of a CA.
    #[error("RootCert is not a certificate in PEM that may sign others")]
    Certificate,
    /// Not a key of the kind that is supported.
    #[error("PrivateKey is not an ECDSA P-256 key in PEM")]
    Key,
    /// The two do not belong together.
    #[error("PrivateKey does not belong to RootCert")]
    Pair,
    /// The certificate names another trust domain.
    #[error("RootCert is for another trust domain than this cluster's {expected}")]
    TrustDomain {
        /// Ours.
        expected: TrustDomain,
    },
    /// It has run out, or has not begun.
    #[error("the root certificate is not valid at this time")]
    Expired,
    /// What is to be certified is not a public key.
    #[error("the public key to certify cannot be read")]
    PublicKey,
    /// The crypto library failed.
    #[error("making a key or certificate failed")]
    Crypto(#[from] PkiError),
}

impl AuthorityError {
    /// The stable id of the reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Certificate => "ca.root.certificate",
            Self::Key => "ca.root.key",
            Self::Pair => "ca.root.pair",
            Self::TrustDomain { .. } => "ca.root.trust_domain",
            Self::Expired => "ca.root.expired",
            Self::PublicKey => "ca.csr.key",
            Self::Crypto(_) => "ca.crypto",
        }
    }
}

impl From<rcgen::Error> for AuthorityError {
    fn from(cause: rcgen::Error) -> Self {
        Self::Crypto(PkiError::Crypto(cause))
    }
}

/// A root, as it is stored.
#[derive(Clone, Debug)]
pub struct RootPems {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PKCS#8, DER.
    pub key: Secret<Vec<u8>>,
}

/// What a root's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// SHA-1 of the certificate, as `aa:bb:…`: Consul's id of a root.
    pub id: String,
    /// Its subject.
    pub common_name: String,
    /// Its number, when it is one of 64 bits; else its low 64.
    pub serial: u64,
    /// Its key's id (SHA-256 of the `SubjectPublicKeyInfo`), as `aa:bb:…`.
    pub key_id: String,
    /// First second it is valid, Unix time.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

/// Reads a root's certificate (PEM); `None` when it is none.
#[must_use]
pub fn root_facts(pem: &str) -> Option<RootFacts> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    let serial = certificate.raw_serial();
    let low = serial
        .iter()
        .rev()
        .take(8)
        .rev()
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let sha1 = digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
    Some(RootFacts {
        id: colons(sha1.as_ref()),
        common_name: name.unwrap_or_default().to_owned(),
        serial: low,
        key_id: colons(digest(&SHA256, certificate.public_key().raw).as_ref()),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Bytes as Consul shows ids and serials: `aa:bb:…`.
fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// A leaf as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate, PEM, alone.
    pub certificate: String,
    /// Its number, as `aa:bb:…`.
    pub serial: String,
    /// First second it is valid, Unix time: five minutes before it was made.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

/// A root with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    facts: RootFacts,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority")
            .field("root", &self.facts.id)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a root for `trust_domain`, valid for `life` (at most [`ROOT_LIFE_MAX`]).
    ///
    /// Errors: [`AuthorityError::Crypto`].
    pub fn create(
        trust_domain: &TrustDomain,
        life: Duration,
        now: UnixMillis,
    ) -> Result<RootPems, AuthorityError> {
        let key = pki::new_key()?;
        let mut serial = pki::serial()?;
        // Consul's clients read a root's number into 64 bits.
        serial.truncate(8);
        let word = hex::encode(serial.get(4..8).unwrap_or_default());
        let name = format!("pri-{word}.consul.ca.{}.consul", trust_domain.short());
        let mut params = pki::params_for(&name, serial, life.min(ROOT_LIFE_MAX), now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = root_usages();
        params.subject_alt_names = vec![uri(&SpiffeId::Authority {
            trust_domain: trust_domain.clone(),
        })?];
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = key_id(&key.subject_public_key_info());
        let certificate = params.self_signed(&key)?;
        Ok(RootPems {
            certificate: certificate.pem(),
            key: Secret::new(key.serialize_der()),
        })
    }

    /// Reads a root whose key is PKCS#8 or SEC 1 in PEM: what an operator gives.
    ///
    /// Errors: [`AuthorityError`].
    pub fn read(
        certificate: &str,
        key: &str,
        trust_domain: &TrustDomain,
        now: UnixMillis,
    ) -> Result<(Self, RootPems), AuthorityError> {
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| AuthorityError::Key)?;
        let pair = KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| AuthorityError::Key)?;
        let pems = RootPems {
            certificate: certificate.to_owned(),
            key: Secret::new(pair.serialize_der()),
        };
        Ok((Self::load(&pems, trust_domain, now)?, pems))
    }

    /// Reads a root. One with a URI must be of `trust_domain`.
    ///
    /// Errors: [`AuthorityError`].
    pub fn load(
        pems: &RootPems,
        trust_domain: &TrustDomain,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        let der = PrivateKeyDer::try_from(pems.key.reveal().as_slice())
            .map_err(|_| AuthorityError::Key)?;
        let pair = KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| AuthorityError::Key)?;
        let certificate = CertificateDer::from_pem_slice(pems.certificate.as_bytes())
            .map_err(|_| AuthorityError::Certificate)?;
        let facts = root_facts(&pems.certificate).ok_or(AuthorityError::Certificate)?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|_| AuthorityError::Certificate)?;
        check_root(&parsed, trust_domain)?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(AuthorityError::Pair);
        }
        let at = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
        if at > facts.not_after || at < facts.not_before {
            return Err(AuthorityError::Expired);
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, pair)
                .map_err(|_| AuthorityError::Certificate)?,
            certificate: pems.certificate.clone(),
            facts,
        })
    }

    /// What its certificate says.
    #[must_use]
    pub const fn facts(&self) -> &RootFacts {
        &self.facts
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A bridge: another root's name and key, signed by this one, so that who knows only this one trusts the leaves of
    /// the other. It ends with whichever of the two ends first.
    ///
    /// Errors: [`AuthorityError::Certificate`], [`AuthorityError::Crypto`].
    pub fn cross_sign(&self, root: &str, now: UnixMillis) -> Result<String, AuthorityError> {
        let der = CertificateDer::from_pem_slice(root.as_bytes())
            .map_err(|_| AuthorityError::Certificate)?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| AuthorityError::Certificate)?;
        if !parsed.is_ca() {
            return Err(AuthorityError::Certificate);
        }
        let key = Other::read(parsed.public_key().raw)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = same_name(&parsed).ok_or(AuthorityError::Certificate)?;
        let life = self
            .left(now)?
            .min(seconds_until(parsed.validity().not_after.timestamp(), now));
        let dated = pki::params_for("", pki::serial()?, life, now);
        (params.not_before, params.not_after) = (dated.not_before, dated.not_after);
        params.serial_number = dated.serial_number;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = root_usages();
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = key_id(parsed.public_key().raw);
        let bridge = params.signed_by(&key, &self.issuer)?;
        // A chain is followed by names: one that is not the same in every byte leads nowhere.
        let (_, made) =
            X509Certificate::from_der(bridge.der()).map_err(|_| AuthorityError::Certificate)?;
        if made.subject().as_raw() != parsed.subject().as_raw() {
            return Err(AuthorityError::Certificate);
        }
        Ok(bridge.pem())
    }

    /// Signs a leaf: `id` is whom the caller was found to be, `public_key` the DER of a `SubjectPublicKeyInfo`; nothing
    /// else of the caller's is in it. It lives for `life`, or as long as the root.
    ///
    /// Errors: [`AuthorityError::PublicKey`], [`AuthorityError::Expired`], [`AuthorityError::Crypto`].
    pub fn sign_leaf(
        &self,
        id: &SpiffeId,
        public_key: &[u8],
        life: Duration,
        now: UnixMillis,
    ) -> Result<Leaf, AuthorityError> {
        let key = Other::read(public_key)?;
        let life = life.min(self.left(now)?);
        let serial = pki::serial()?;
        let mut params = pki::params_for(&common_name(id), serial.clone(), life, now);
        params.serial_number = Some(SerialNumber::from(serial.clone()));
        params.subject_alt_names = vec![uri(id)?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = key_id(public_key);
        let (not_before, not_after) = (params.not_before, params.not_after);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: certificate.pem(),
            serial: colons(&serial),
            not_before: not_before.unix_timestamp(),
            not_after: not_after.unix_timestamp(),
        })
    }

    /// A leaf for `id` with a key that nobody keeps, PEM: to see whether it would be accepted.
    ///
    /// Errors: as [`Authority::sign_leaf`].
    pub fn prove(&self, id: &SpiffeId, now: UnixMillis) -> Result<String, AuthorityError> {
        let (_, public) = pki::create_key()?;
        let leaf = self.sign_leaf(id, &public, PROOF_LIFE, now)?;
        Ok(leaf.certificate)
    }

    /// Life that is left.
    fn left(&self, now: UnixMillis) -> Result<Duration, AuthorityError> {
        let left = seconds_until(self.facts.not_after, now);
        if left.is_zero() {
            return Err(AuthorityError::Expired);
        }
        Ok(left)
    }
}

fn seconds_until(at: i64, now: UnixMillis) -> Duration {
    let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
    Duration::from_secs(u64::try_from(at.saturating_sub(now)).unwrap_or_default())
}

fn check_root(
    root: &X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), AuthorityError> {
    let usage = root.key_usage().map_err(|_| AuthorityError::Certificate)?;
    let signs = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if !root.is_ca() || !signs {
        return Err(AuthorityError::Certificate);
    }
    let names = root
        .subject_alternative_name()
        .map_err(|_| AuthorityError::Certificate)?;
    let uris = names
        .map(|names| &names.value.general_names)
        .into_iter()
        .flatten();
    for name in uris {
        let GeneralName::URI(uri) = name else {
            continue;
        };
        let ours = SpiffeId::parse(uri).is_ok_and(|id| id.trust_domain() == trust_domain);
        if !ours {
            return Err(AuthorityError::TrustDomain {
                expected: trust_domain.clone(),
            });
        }
    }
    Ok(())
}

/// The subject of a certificate, for another one of the same name; `None` when it is of a form that nobody uses.
fn same_name(certificate: &X509Certificate<'_>) -> Option<DistinguishedName> {
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter()?.collect();
        let text = attribute.as_str().ok()?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            _ => return None,
        };
        name.push(DnType::from_oid(&oid), value);
    }
    Some(name)
}

fn root_usages() -> Vec<KeyUsagePurpose> {
    vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ]
}

fn key_id(public_key: &[u8]) -> KeyIdMethod {
    KeyIdMethod::PreSpecified(digest(&SHA256, public_key).as_ref().to_vec())
}

fn uri(id: &SpiffeId) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(id.to_string().as_str().try_into()?))
}

/// `web.svc.default.11111111.consul`: for who reads it. Nobody decides by it.
fn common_name(id: &SpiffeId) -> String {
    let short = |name: &str| -> String {
        let plain = name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-');
        plain
            .take(SHORT_NAME_MAX)
            .collect::<String>()
            .to_ascii_lowercase()
    };
    let domain = id.trust_domain().short();
    match id {
        SpiffeId::Service { service, .. } => {
            format!("{}.svc.default.{domain}.consul", short(service))
        }
        SpiffeId::Agent { node, .. } => format!("{}.agnt.{domain}.consul", short(node)),
        SpiffeId::Server { datacenter, .. } => format!("{}.srv.{domain}.consul", short(datacenter)),
        SpiffeId::MeshGateway { datacenter, .. } => {
            format!("{}.mgw.{domain}.consul", short(datacenter))
        }
        SpiffeId::Authority { .. } => format!("{domain}.consul"),
    }
}

/// Somebody else's public key.
struct Other(SubjectPublicKeyInfo);

impl Other {
    fn read(der: &[u8]) -> Result<Self, AuthorityError> {
        SubjectPublicKeyInfo::from_der(der)
            .map(Self)
            .map_err(|_| AuthorityError::PublicKey)
    }
}

impl PublicKeyData for Other {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}
