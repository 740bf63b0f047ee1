//! What a peer's certificates prove: who it is, or why not.
//!
//! Owns: every rule a peer's chain must pass, and the reason id of each refusal.
//! Never: decides whether that peer may call us; reads a clock.
//! The chain itself is judged by rustls-webpki; what it does not look at (key usages, URIs, our names) is judged here.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use weft_proto::ids::UnixMillis;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use super::spiffe::{SpiffeError, SpiffeId, TrustDomain};
use crate::pki::BACKDATED;

/// Certificates of a chain that are looked at: leaf, bridges and intermediates.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;
/// Bytes of a chain that are looked at.
pub const CHAIN_BYTES_MAX: usize = 64 << 10;
/// Octets of a serial number (RFC 5280, §4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;
/// A clock that differs by more is named as the likely reason.
const SKEW: Duration = Duration::from_secs(120);

/// Which end of the connection the certificate was shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who called us.
    Client,
    /// Whom we called.
    Server,
}

macro_rules! reasons {
    ($($name:ident = $id:literal, $text:literal;)+) => {
        /// Why a peer's certificates were refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum RefusalReason {
            $(#[doc = $text] $name,)+
            /// The URI is no id of a mesh like ours.
            Spiffe(SpiffeRefusal),
        }

        impl RefusalReason {
            /// The stable id: for logs, metrics and `explain`.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)+ Self::Spiffe(why) => why.0.reason() }
            }

            /// The same in words.
            fn text(self) -> String {
                match self { $(Self::$name => $text.to_owned(),)+ Self::Spiffe(why) => why.0.to_string() }
            }

            /// Every reason but those of the id's form.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

/// [`SpiffeError`], ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiffeRefusal(pub SpiffeError);

impl std::hash::Hash for SpiffeRefusal {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.reason().hash(state);
    }
}
impl PartialOrd for SpiffeRefusal {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SpiffeRefusal {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.reason().cmp(other.0.reason())
    }
}

reasons! {
    ChainEmpty = "identity.chain.empty", "the peer showed no certificate";
    ChainLong = "identity.chain.long", "the peer showed more than 8 certificates";
    ChainLarge = "identity.chain.large", "the peer's certificates have more than 64 KiB";
    Malformed = "identity.certificate.malformed", "the peer's certificate is not X.509 in DER";
    Trailing = "identity.certificate.trailing", "there is something behind the peer's certificate";
    Version = "identity.certificate.version", "the peer's certificate is not X.509 version 3";
    Serial = "identity.certificate.serial", "the peer's certificate has no number between 1 and 20 octets";
    Validity = "identity.certificate.validity", "the peer's certificate ends before it begins";
    Extension = "identity.certificate.extension", "an extension of the peer's certificate is malformed, twice there, or critical and not known";
    LeafIsCa = "identity.leaf.ca", "the peer's certificate is one of a CA";
    LeafKeyUsage = "identity.leaf.key_usage", "the peer's certificate is not for signatures, or is for signing certificates";
    LeafPurposeMissing = "identity.leaf.purpose_missing", "the peer's certificate does not say that it is for TLS";
    LeafPurpose = "identity.leaf.purpose", "the peer's certificate is not for this end of a TLS connection";
    LeafKey = "identity.leaf.key", "the peer's key is of a kind that is not allowed: ECDSA on P-256, P-384 or P-521, Ed25519, or RSA of 2048 bits and more are";
    NoNames = "identity.san.none", "the peer's certificate has no subject alternative names: its common name says nothing";
    NoUri = "identity.san.no_uri", "the peer's certificate has no URI, so it says of nobody who that is";
    ManyUris = "identity.san.many_uris", "the peer's certificate has more than one URI: it could be anybody of them";
    ForeignDomain = "identity.trust_domain.foreign", "the peer is of another trust domain";
    AuthorityAsPeer = "identity.leaf.authority", "the peer's certificate has the id of a CA";
    Expired = "identity.expired", "the peer's certificate has expired";
    NotYetValid = "identity.not_yet_valid", "the peer's certificate is not valid yet";
    IssuerUnknown = "identity.issuer.unknown", "the peer's certificate is not signed by a root that is trusted here";
    IssuerNotCa = "identity.issuer.not_ca", "a certificate that signed the peer's is not one of a CA";
    IssuerKeyUsage = "identity.issuer.key_usage", "a certificate that signed the peer's may not sign certificates";
    IssuerPurpose = "identity.issuer.purpose", "a certificate that signed the peer's is not for signing those of TLS";
    Signature = "identity.signature", "a signature in the peer's chain is wrong";
    Algorithm = "identity.algorithm", "a signature in the peer's chain is made with an algorithm that is not allowed";
    NameConstraint = "identity.name_constraint", "a CA in the peer's chain may not sign for such a name";
    PathLength = "identity.path_length", "there are more CAs in the peer's chain than one of them allows";
    PathTooLong = "identity.path_too_long", "the peer's chain is too long to be followed";
    NotTheTarget = "identity.not_the_target", "the peer is somebody else than was called";
    Revoked = "identity.not_issued_before", "the peer's certificate is older than is accepted of this identity: it was cut off";
}

/// A refusal: its reason and, where there is one, the particular.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRefusal {
    /// Why.
    pub reason: RefusalReason,
    /// The particular, fit for a log: nothing of a stranger's that is not plain.
    pub detail: String,
}

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason.text())?;
        if self.detail.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.detail)
    }
}

impl std::error::Error for PeerRefusal {}

impl From<RefusalReason> for PeerRefusal {
    fn from(reason: RefusalReason) -> Self {
        Self {
            reason,
            detail: String::new(),
        }
    }
}

impl RefusalReason {
    fn with(self, detail: impl Into<String>) -> PeerRefusal {
        PeerRefusal {
            reason: self,
            detail: detail.into(),
        }
    }
}

/// Who a peer proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Its id: of our trust domain, and no authority's.
    pub id: SpiffeId,
    /// Its certificate's number, as `aa:bb:…`.
    pub serial: String,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
    /// First second it is valid, Unix time.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

/// Whom we trust: the roots of our trust domain, and what was cut off.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    anchors: Vec<TrustAnchor<'static>>,
    not_issued_before: BTreeMap<SpiffeId, UnixMillis>,
}

impl TrustBundle {
    /// Of roots in PEM, each text with one certificate or several.
    ///
    /// Errors: [`RefusalReason::Malformed`] when a text holds no certificate, or one that can be no root.
    pub fn new<'a>(
        trust_domain: TrustDomain,
        roots: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PeerRefusal> {
        let mut anchors = Vec::new();
        for pem in roots {
            let before = anchors.len();
            for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let der = der.map_err(|_| RefusalReason::Malformed.with("of a root"))?;
                let anchor = webpki::anchor_from_trusted_cert(&der)
                    .map_err(|_| RefusalReason::Malformed.with("of a root"))?;
                anchors.push(anchor.to_owned());
            }
            if anchors.len() == before {
                return Err(RefusalReason::Malformed.with("of a root"));
            }
        }
        Ok(Self {
            trust_domain,
            anchors,
            not_issued_before: BTreeMap::new(),
        })
    }

    /// Refuses certificates of `id` made before `at`: a leaf whose key was stolen is of no use any more.
    #[must_use]
    pub fn cut_off(mut self, id: SpiffeId, at: UnixMillis) -> Self {
        self.not_issued_before.insert(id, at);
        self
    }

    /// Ours.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// How many roots are trusted.
    #[must_use]
    pub const fn roots(&self) -> usize {
        self.anchors.len()
    }

    /// Who the peer is that showed `chain` (its own certificate first) at that end of a connection.
    ///
    /// `algorithms` are those of the crypto provider in use. Costs one signature check for each certificate of the
    /// chain: remember the answer by [`VerifiedPeer::fingerprint`] if you ask often.
    ///
    /// Errors: [`PeerRefusal`]; what is wrong with the peer's own certificate comes before what is wrong with its chain.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        now: UnixMillis,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<VerifiedPeer, PeerRefusal> {
        let leaf = bounded(chain)?;
        let (rest, parsed) =
            X509Certificate::from_der(leaf).map_err(|_| RefusalReason::Malformed)?;
        if !rest.is_empty() {
            return Err(RefusalReason::Trailing.into());
        }
        check_form(&parsed)?;
        check_purpose(&parsed, side)?;
        let id = self.identity(&parsed)?;
        self.check_chain(chain, side, now, algorithms)
            .map_err(|refusal| explain_time(refusal, &parsed, now))?;
        self.check_cut_off(&id, &parsed)?;
        let mut fingerprint = [0_u8; 32];
        fingerprint.copy_from_slice(digest(&SHA256, leaf).as_ref());
        let serial: Vec<String> = parsed
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(VerifiedPeer {
            id,
            serial: serial.join(":"),
            fingerprint,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }

    /// The one URI, which must be an id of our trust domain.
    fn identity(&self, leaf: &X509Certificate<'_>) -> Result<SpiffeId, PeerRefusal> {
        let names = leaf
            .subject_alternative_name()
            .map_err(|_| RefusalReason::Extension)?;
        let names = names.ok_or(RefusalReason::NoNames)?;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        // A name that cannot be read could be a URI that others do read.
        if names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::Invalid(..)))
        {
            return Err(RefusalReason::Extension.with("a name cannot be read"));
        }
        let uri = uris.next().ok_or(RefusalReason::NoUri)?;
        if uris.next().is_some() {
            return Err(RefusalReason::ManyUris.into());
        }
        let id = SpiffeId::parse(uri).map_err(|why| RefusalReason::Spiffe(SpiffeRefusal(why)))?;
        if *id.trust_domain() != self.trust_domain {
            return Err(RefusalReason::ForeignDomain.with(format!(
                "{}, ours is {}",
                id.trust_domain(),
                self.trust_domain
            )));
        }
        if matches!(id, SpiffeId::Authority { .. }) {
            return Err(RefusalReason::AuthorityAsPeer.into());
        }
        Ok(id)
    }

    fn check_chain(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        now: UnixMillis,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), PeerRefusal> {
        let Some((leaf, above)) = chain.split_first() else {
            return Err(RefusalReason::ChainEmpty.into());
        };
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| of_webpki(&error))?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let time = UnixTime::since_unix_epoch(Duration::from_millis(now.get()));
        let path = leaf
            .verify_for_usage(algorithms, &self.anchors, above, time, usage, None, None)
            .map_err(|error| of_webpki(&error))?;
        // webpki does not look at key usages: whoever stands between leaf and root must be allowed to sign.
        for issuer in path.intermediate_certificates() {
            let der = issuer.der();
            let (_, parsed) =
                X509Certificate::from_der(&der).map_err(|_| RefusalReason::Malformed)?;
            let usage = parsed.key_usage().map_err(|_| RefusalReason::Extension)?;
            if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
                return Err(RefusalReason::IssuerKeyUsage.into());
            }
        }
        Ok(())
    }

    fn check_cut_off(&self, id: &SpiffeId, leaf: &X509Certificate<'_>) -> Result<(), PeerRefusal> {
        let Some(at) = self.not_issued_before.get(id) else {
            return Ok(());
        };
        let issued = leaf
            .validity()
            .not_before
            .timestamp()
            .saturating_add_unsigned(BACKDATED.as_secs());
        // Certificates know seconds: one of the very second is as good as one before.
        if i128::from(issued) * 1_000 <= i128::from(at.get()) {
            return Err(RefusalReason::Revoked.into());
        }
        Ok(())
    }
}

/// Who a chain (PEM, the leaf first) proves its holder to be, as a client, for whoever trusts these roots.
///
/// Errors: as [`TrustBundle::verify`].
pub fn prove(
    trust_domain: &TrustDomain,
    roots: &[&str],
    chain: &str,
    now: UnixMillis,
) -> Result<VerifiedPeer, PeerRefusal> {
    let bundle = TrustBundle::new(trust_domain.clone(), roots.iter().copied())?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|_| RefusalReason::Malformed)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let algorithms = provider.signature_verification_algorithms.all;
    bundle.verify(&chain, Side::Client, now, algorithms)
}

fn bounded<'a, 'c>(chain: &'a [CertificateDer<'c>]) -> Result<&'a CertificateDer<'c>, PeerRefusal> {
    let leaf = chain.first().ok_or(RefusalReason::ChainEmpty)?;
    if chain.len() > CHAIN_CERTIFICATES_MAX {
        return Err(RefusalReason::ChainLong.with(format!("it was {}", chain.len())));
    }
    let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > CHAIN_BYTES_MAX {
        return Err(RefusalReason::ChainLarge.with(format!("it was {bytes} bytes")));
    }
    Ok(leaf)
}

/// What any leaf must be, whatever it is for.
fn check_form(leaf: &X509Certificate<'_>) -> Result<(), PeerRefusal> {
    if leaf.version() != X509Version::V3 {
        return Err(RefusalReason::Version.into());
    }
    let serial = leaf.raw_serial();
    // A leading 0 only keeps a number positive.
    let negative = serial.first().is_some_and(|byte| byte & 0x80 != 0);
    if negative || serial.iter().all(|byte| *byte == 0) || serial.len() > SERIAL_BYTES_MAX {
        return Err(RefusalReason::Serial.into());
    }
    if leaf.validity().not_after < leaf.validity().not_before {
        return Err(RefusalReason::Validity.into());
    }
    let mut seen = Vec::new();
    for extension in leaf.extensions() {
        let broken = matches!(
            extension.parsed_extension(),
            ParsedExtension::ParseError { .. }
        );
        if broken || seen.contains(&&extension.oid) {
            return Err(RefusalReason::Extension.with(extension.oid.to_id_string()));
        }
        seen.push(&extension.oid);
    }
    Ok(())
}

fn check_purpose(leaf: &X509Certificate<'_>, side: Side) -> Result<(), PeerRefusal> {
    if leaf.is_ca() {
        return Err(RefusalReason::LeafIsCa.into());
    }
    let usage = leaf.key_usage().map_err(|_| RefusalReason::Extension)?;
    let fits = usage.is_none_or(|usage| {
        usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign()
    });
    if !fits {
        return Err(RefusalReason::LeafKeyUsage.into());
    }
    let purposes = leaf
        .extended_key_usage()
        .map_err(|_| RefusalReason::Extension)?;
    let purposes = purposes.ok_or(RefusalReason::LeafPurposeMissing)?.value;
    let fits = match side {
        Side::Client => purposes.client_auth,
        Side::Server => purposes.server_auth,
    };
    if !fits {
        return Err(RefusalReason::LeafPurpose.into());
    }
    check_key(leaf)
}

fn check_key(leaf: &X509Certificate<'_>) -> Result<(), PeerRefusal> {
    use x509_parser::oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
        OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    };
    const RSA_BITS_MIN: usize = 2_048;
    let key = leaf.public_key();
    let algorithm = &key.algorithm.algorithm;
    let fits = if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|curve| curve.as_oid().ok());
        curve
            .is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].contains(&curve))
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        key.parsed().is_ok_and(|key| key.key_size() >= RSA_BITS_MIN)
    } else {
        *algorithm == OID_SIG_ED25519
    };
    if fits {
        Ok(())
    } else {
        Err(RefusalReason::LeafKey.into())
    }
}

fn of_webpki(error: &webpki::Error) -> PeerRefusal {
    use webpki::Error as E;
    let reason = match error {
        E::CaUsedAsEndEntity => RefusalReason::LeafIsCa,
        E::CertExpired { .. } => RefusalReason::Expired,
        E::CertNotValidYet { .. } => RefusalReason::NotYetValid,
        E::InvalidCertValidity => RefusalReason::Validity,
        E::EndEntityUsedAsCa => RefusalReason::IssuerNotCa,
        E::InvalidSerialNumber => RefusalReason::Serial,
        E::UnsupportedCertVersion => RefusalReason::Version,
        E::TrailingData(_) => RefusalReason::Trailing,
        E::EmptyEkuExtension | E::RequiredEkuNotFoundContext(_) => RefusalReason::IssuerPurpose,
        E::InvalidSignatureForPublicKey => RefusalReason::Signature,
        E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint
        | E::MaximumNameConstraintComparisonsExceeded => RefusalReason::NameConstraint,
        E::PathLenConstraintViolated => RefusalReason::PathLength,
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => RefusalReason::PathTooLong,
        E::UnknownIssuer => RefusalReason::IssuerUnknown,
        E::ExtensionValueInvalid | E::MalformedExtensions | E::UnsupportedCriticalExtension => {
            RefusalReason::Extension
        }
        E::SignatureAlgorithmMismatch
        | E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => RefusalReason::Algorithm,
        _ => RefusalReason::Malformed,
    };
    reason.with(format!("{error:?}").chars().take(200).collect::<String>())
}

/// Says by how much the time is off: most often a clock is wrong, not a certificate.
fn explain_time(refusal: PeerRefusal, leaf: &X509Certificate<'_>, now: UnixMillis) -> PeerRefusal {
    let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
    let off = match refusal.reason {
        RefusalReason::Expired => now.saturating_sub(leaf.validity().not_after.timestamp()),
        RefusalReason::NotYetValid => leaf.validity().not_before.timestamp().saturating_sub(now),
        _ => return refusal,
    };
    let skewed = off > 0 && refusal.reason == RefusalReason::NotYetValid
        || off > i64::try_from(SKEW.as_secs()).unwrap_or(i64::MAX);
    let hint = if skewed {
        "; compare the clocks of both machines"
    } else {
        ""
    };
    refusal
        .reason
        .with(format!("by {} s by our clock{hint}", off.max(0)))
}
