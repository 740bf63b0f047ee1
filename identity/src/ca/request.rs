//! A request for a leaf: made beside the key, and read by the CA, which believes nothing but that its sender has the key.

use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256,
};
use x509_parser::prelude::FromDer as _;

use crate::pki::pem_block;
use crate::secret::Secret;

/// Bytes of a request, PEM or DER: a P-256 key with all the extensions that anybody adds has a tenth of that.
pub const CSR_BYTES_MAX: usize = 16 << 10;
/// Bytes of an uncompressed P-256 point (SEC 1, §2.3.3).
const POINT_BYTES: usize = 65;

/// Why a request cannot be answered. The sender must make another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More than [`CSR_BYTES_MAX`].
    #[error("the certificate request has more than {CSR_BYTES_MAX} bytes")]
    TooLarge,
    /// Not PKCS#10, or with something behind it.
    #[error("the certificate request is not a PKCS#10 request in PEM or DER")]
    Malformed,
    /// Another key than ECDSA P-256.
    #[error("the certificate request is for another kind of key than ECDSA P-256")]
    Key,
    /// Signed otherwise than with SHA-256.
    #[error("the certificate request is signed with another algorithm than ECDSA with SHA-256")]
    Algorithm,
    /// Not signed by the key it is for: its sender may not have it.
    #[error("the certificate request is not signed by the key that it is for")]
    Signature,
}

impl CsrError {
    /// The stable id of the reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "ca.csr.too_large",
            Self::Malformed => "ca.csr.malformed",
            Self::Key => "ca.csr.key",
            Self::Algorithm => "ca.csr.algorithm",
            Self::Signature => "ca.csr.signature",
        }
    }
}

/// The public key of a request (DER of its `SubjectPublicKeyInfo`), once it is proven that the sender has the private
/// one. Names, extensions and attributes of the request are not looked at.
///
/// Errors: [`CsrError`].
pub fn csr_public_key(csr: &[u8]) -> Result<Vec<u8>, CsrError> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLarge);
    }
    let der = if csr.starts_with(b"-----BEGIN") {
        CertificateSigningRequestDer::from_pem_slice(csr).map_err(|_| CsrError::Malformed)?
    } else {
        CertificateSigningRequestDer::from(csr)
    };
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let info = &request.certification_request_info;
    let key = &info.subject_pki;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|curve| curve.as_oid().ok());
    let point = key.subject_public_key.data.as_ref();
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(OID_EC_P256)
        || point.len() != POINT_BYTES
    {
        return Err(CsrError::Key);
    }
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CsrError::Algorithm);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| CsrError::Signature)?;
    Ok(key.raw.to_vec())
}

/// A new key, and the request for a certificate of it.
#[derive(Clone, Debug)]
pub struct KeyAndRequest {
    /// PKCS#8, PEM.
    pub key: Secret<String>,
    /// The same as `EC PRIVATE KEY` (SEC 1), the form that Consul's API answers.
    pub key_sec1: Secret<String>,
    /// PKCS#10, DER.
    pub request: Vec<u8>,
}

/// Makes a key (ECDSA P-256), and a request that says which `uri` is wanted: what an external CA would look at.
///
/// Errors: the crypto library's: the system gives no randomness.
pub fn create_request(uri: &str) -> Result<KeyAndRequest, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let request = params.serialize_request(&key)?;
    let pkcs8 = Secret::new(key.serialize_der());
    Ok(KeyAndRequest {
        key_sec1: sec1_of_pkcs8(pkcs8.reveal()).ok_or(rcgen::Error::CouldNotParseKeyPair)?,
        key: Secret::new(key.serialize_pem()),
        request: request.der().to_vec(),
    })
}

/// The SEC 1 form (RFC 5915) of a P-256 key in PKCS#8, PEM.
fn sec1_of_pkcs8(pkcs8: &[u8]) -> Option<Secret<String>> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).ok()?;
    let der = AsDer::<EcPrivateKeyRfc5915Der<'_>>::as_der(&pair.private_key()).ok()?;
    Some(Secret::new(pem_block("EC PRIVATE KEY", der.as_ref())))
}
