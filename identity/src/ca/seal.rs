//! A CA's key at rest: sealed once for every server, so that neither log nor snapshot nor archive holds it in clear.
//!
//! Owns: the form of the box (ADR 21): an ephemeral P-256 point, a nonce, and AES-256-GCM under the key that ECDH with
//! the server's own key gives (HKDF-SHA-256, both points in the info). What the box is about is authenticated with it.
//! Never: knows what it seals, or who should be able to open it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use crate::secret::Secret;

/// Bytes of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;
const TAG_BYTES: usize = 16;
/// What the derived keys are for.
const PURPOSE: &[u8] = b"weft sealed key 1";

/// Why a box was not made or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The recipient's public key is not a P-256 point.
    #[error("the public key to seal for is not a P-256 point")]
    PublicKey,
    /// The private key is not a P-256 key.
    #[error("the private key to open with is not a P-256 key")]
    PrivateKey,
    /// The box is for another key, about something else, or was changed.
    #[error("the sealed key cannot be opened with this server's key")]
    Unopenable,
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    Randomness,
}

/// Seals `plain` so that only the holder of `public_key` (an uncompressed point) opens it, and only as being `about` that.
///
/// Errors: [`SealError::PublicKey`], [`SealError::Randomness`].
pub fn seal(public_key: &[u8], about: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let ephemeral = PrivateKey::generate(&ECDH_P256).map_err(|_| SealError::Randomness)?;
    let point = ephemeral
        .compute_public_key()
        .map_err(|_| SealError::Randomness)?;
    let mut nonce = [0_u8; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Randomness)?;
    let key =
        shared(&ephemeral, public_key, [point.as_ref(), public_key]).ok_or(SealError::PublicKey)?;
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(about),
        &mut body,
    )
    .map_err(|_| SealError::Randomness)?;
    Ok([point.as_ref(), &nonce, &body].concat())
}

/// Opens a box with a private key (PKCS#8, DER).
///
/// Errors: [`SealError::PrivateKey`], [`SealError::Unopenable`].
pub fn open(private_key: &[u8], about: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>, SealError> {
    let own = PrivateKey::from_private_key_der(&ECDH_P256, private_key)
        .map_err(|_| SealError::PrivateKey)?;
    let public = own
        .compute_public_key()
        .map_err(|_| SealError::PrivateKey)?;
    if sealed.len() < POINT_BYTES + NONCE_LEN + TAG_BYTES {
        return Err(SealError::Unopenable);
    }
    let (point, rest) = sealed.split_at(POINT_BYTES);
    let (nonce, body) = rest.split_at(NONCE_LEN);
    let key = shared(&own, point, [point, public.as_ref()]).ok_or(SealError::Unopenable)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Unopenable)?;
    let mut body = Secret::new(body.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(about), body.reveal_mut())
        .map_err(|_| SealError::Unopenable)?
        .len();
    body.reveal_mut().truncate(length);
    Ok(body)
}

/// The key that both sides come to, bound to both points: (ephemeral, recipient's).
fn shared(own: &PrivateKey, theirs: &[u8], points: [&[u8]; 2]) -> Option<LessSafeKey> {
    let theirs = UnparsedPublicKey::new(&ECDH_P256, theirs);
    let key = agreement::agree(own, theirs, (), |secret| {
        let info = [PURPOSE, points[0], points[1]];
        let bytes = Salt::new(HKDF_SHA256, &[]).extract(secret);
        let bytes = bytes.expand(&info, &AES_256_GCM).map_err(|_| ())?;
        Ok(UnboundKey::from(bytes))
    });
    key.ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

    #[test]
    fn only_the_recipient_opens_it_and_only_as_what_it_is() {
        let [ours, other] = [0, 1].map(|_| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        let sealed = seal(ours.public_key_raw(), b"root 1", b"the key").unwrap();
        let again = seal(ours.public_key_raw(), b"root 1", b"the key").unwrap();
        assert!(sealed != again && !sealed.windows(7).any(|window| window == b"the key"));
        let opened = open(&ours.serialize_der(), b"root 1", &sealed).unwrap();
        assert_eq!(opened.reveal(), b"the key");
        let refused = |key: &KeyPair, about: &[u8], sealed: &[u8]| {
            open(&key.serialize_der(), about, sealed).unwrap_err()
        };
        assert_eq!(refused(&other, b"root 1", &sealed), SealError::Unopenable);
        assert_eq!(refused(&ours, b"root 2", &sealed), SealError::Unopenable);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(
                refused(&ours, b"root 1", &changed),
                SealError::Unopenable,
                "{at}"
            );
            assert_eq!(
                refused(&ours, b"root 1", &sealed[..at]),
                SealError::Unopenable,
                "{at}"
            );
        }
        assert_eq!(
            seal(b"no point", b"", b"").unwrap_err(),
            SealError::PublicKey
        );
        assert_eq!(
            open(b"no key", b"", &sealed).unwrap_err(),
            SealError::PrivateKey
        );
    }
}
