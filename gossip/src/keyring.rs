//! Gossip keys and the frames they seal.
//!
//! Owns: the ring (one primary, several accepted), AES-GCM, the frame header.
//! Never: keeps keys on disk (`ring_file` does), or prints one.
//! Frame: magic, version, flags, datacenter digest (8 bytes), then either the clear body or a
//! 12-byte nonce and the sealed body; the header is authenticated.
//! Source: Consul docs, "Gossip encryption" (key sizes, install → use → remove).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::GossipError;
use crate::wire::fnv1a;

/// Accepted keys at most; refuse to install more.
pub const KEYS_MAX: usize = 16;
const MAGIC: u8 = 0x57;
const VERSION: u8 = 1;
const FLAG_SEALED: u8 = 1;
pub(crate) const HEADER_BYTES: usize = 11;
const NONCE_BYTES: usize = 12;

/// One key: 16, 24 or 32 bytes.
#[derive(Clone)]
pub struct GossipKey {
    text: Arc<Zeroizing<String>>,
    sealer: Arc<LessSafeKey>,
}

impl GossipKey {
    /// Reads base64 of 16, 24 or 32 bytes.
    ///
    /// Errors: [`GossipError::Key`]; the text is not repeated in it.
    pub fn parse(text: &str) -> Result<Self, GossipError> {
        let bad = |reason: String| GossipError::Key { reason };
        let bytes = STANDARD
            .decode(text.trim())
            .map_err(|_| bad("the key is not base64".to_owned()))?;
        Self::from_bytes(&Zeroizing::new(bytes))
    }

    /// A key from its 16, 24 or 32 bytes.
    ///
    /// Errors: [`GossipError::Key`] for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GossipError> {
        let bad = |reason: String| GossipError::Key { reason };
        let algorithm = match bytes.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            n => {
                return Err(bad(format!(
                    "the key has {n} bytes, it must have 16, 24 or 32"
                )));
            }
        };
        let key = UnboundKey::new(algorithm, bytes)
            .map_err(|_| bad("the key is not usable".to_owned()))?;
        let text = Arc::new(Zeroizing::new(STANDARD.encode(bytes)));
        Ok(Self {
            text,
            sealer: Arc::new(LessSafeKey::new(key)),
        })
    }

    /// A fresh 32-byte key.
    ///
    /// Errors: [`GossipError::Key`] when the system gives no randomness.
    pub fn generate() -> Result<Self, GossipError> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| GossipError::Key {
            reason: "the system gives no randomness".to_owned(),
        })?;
        Self::from_bytes(&*bytes)
    }

    /// The key in base64, for the operator who asked to see it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl PartialEq for GossipKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GossipKey(…)")
    }
}

/// The keys of a pool; the first is the primary one.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyring {
    keys: Vec<GossipKey>,
}

impl Keyring {
    /// A ring of one.
    #[must_use]
    pub fn new(primary: GossipKey) -> Self {
        Self {
            keys: vec![primary],
        }
    }

    /// The key that seals.
    #[must_use]
    pub fn primary(&self) -> &GossipKey {
        &self.keys[0]
    }

    /// All keys, the primary one first.
    #[must_use]
    pub fn list(&self) -> &[GossipKey] {
        &self.keys
    }

    /// Accepts one more key; installing a key twice changes nothing.
    ///
    /// Errors: [`GossipError::Keyring`] when the ring is full.
    pub fn install(&mut self, key: GossipKey) -> Result<(), GossipError> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(GossipError::Keyring {
                reason: "ring holds 16 keys already; remove old ones first",
            });
        }
        self.keys.push(key);
        Ok(())
    }

    /// Makes an installed key the primary one.
    ///
    /// Errors: [`GossipError::Keyring`] when it is not installed.
    pub fn use_key(&mut self, key: &GossipKey) -> Result<(), GossipError> {
        let at = self.position(key)?;
        self.keys[..=at].rotate_right(1);
        Ok(())
    }

    /// Forgets a key.
    ///
    /// Errors: [`GossipError::Keyring`] when it is not installed, or the primary one.
    pub fn remove(&mut self, key: &GossipKey) -> Result<(), GossipError> {
        match self.position(key)? {
            0 => Err(GossipError::Keyring {
                reason: "is the primary one; use another key first",
            }),
            at => {
                self.keys.remove(at);
                Ok(())
            }
        }
    }

    fn position(&self, key: &GossipKey) -> Result<usize, GossipError> {
        let at = self.keys.iter().position(|k| k == key);
        at.ok_or(GossipError::Keyring {
            reason: "is not installed; install it first",
        })
    }
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Not one of ours.
    Malformed,
    /// Of another datacenter.
    Foreign,
    /// Clear text where a key is required.
    Clear,
    /// Sealed, and we hold no key.
    Sealed,
    /// Sealed with a key we do not hold, or damaged.
    Decrypt,
}

impl FrameError {
    /// A stable reason id.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Clear => "clear",
            Self::Sealed => "sealed",
            Self::Decrypt => "decrypt",
        }
    }

    /// Whether it is about keys.
    #[must_use]
    pub const fn is_key(self) -> bool {
        matches!(self, Self::Clear | Self::Sealed | Self::Decrypt)
    }
}

/// Seals and opens frames of one datacenter.
#[derive(Clone, Debug)]
pub struct Framer {
    digest: [u8; 8],
    ring: Option<Keyring>,
    verify_incoming: bool,
    verify_outgoing: bool,
}

impl Framer {
    /// `verify_*` as in `encrypt_verify_incoming` and `encrypt_verify_outgoing`; without a ring they do nothing.
    #[must_use]
    pub fn new(
        datacenter: &str,
        ring: Option<Keyring>,
        verify_incoming: bool,
        verify_outgoing: bool,
    ) -> Self {
        Self {
            digest: fnv1a(datacenter.as_bytes()).to_be_bytes(),
            ring,
            verify_incoming,
            verify_outgoing,
        }
    }

    /// The ring, if gossip is sealed.
    #[must_use]
    pub fn ring(&self) -> Option<&Keyring> {
        self.ring.as_ref()
    }

    /// Exchanges the ring.
    pub fn set_ring(&mut self, ring: Option<Keyring>) {
        self.ring = ring;
    }

    /// Whether a frame says that it is sealed; [`Self::open_any`] says whether that is true.
    pub(crate) fn is_sealed(frame: &[u8]) -> bool {
        frame.get(2).is_some_and(|flags| flags & FLAG_SEALED != 0)
    }

    /// A frame around `body`. Errors: the system gives no randomness for the nonce.
    pub fn seal(&self, body: &[u8]) -> Result<Vec<u8>, GossipError> {
        let ring = self.ring.as_ref().filter(|_| self.verify_outgoing);
        let mut frame = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + body.len() + 16);
        frame.extend_from_slice(&[MAGIC, VERSION, if ring.is_some() { FLAG_SEALED } else { 0 }]);
        frame.extend_from_slice(&self.digest);
        let Some(ring) = ring else {
            frame.extend_from_slice(body);
            return Ok(frame);
        };
        let failed = |_| GossipError::Key {
            reason: "sealing failed".to_owned(),
        };
        let mut nonce = [0u8; NONCE_BYTES];
        aws_lc_rs::rand::fill(&mut nonce).map_err(failed)?;
        let mut sealed = body.to_vec();
        let header = Aad::from(
            <[u8; HEADER_BYTES]>::try_from(&frame[..]).expect("the header was just written"),
        );
        let sealer = &ring.primary().sealer;
        sealer
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), header, &mut sealed)
            .map_err(failed)?;
        frame.extend_from_slice(&nonce);
        frame.extend_from_slice(&sealed);
        Ok(frame)
    }

    /// The body of a frame of this datacenter.
    pub fn open(&self, frame: &[u8]) -> Result<Vec<u8>, FrameError> {
        match frame.get(3..HEADER_BYTES) {
            Some(digest) if frame[0] == MAGIC && digest != self.digest => Err(FrameError::Foreign),
            _ => self.open_any(frame),
        }
    }

    /// The body of a frame of any datacenter, so that a stranger can be told what is wrong.
    pub fn open_any(&self, frame: &[u8]) -> Result<Vec<u8>, FrameError> {
        let (header, rest) = frame
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(FrameError::Malformed)?;
        if header[0] != MAGIC || header[1] != VERSION || header[2] & !FLAG_SEALED != 0 {
            return Err(FrameError::Malformed);
        }
        match (&self.ring, header[2] & FLAG_SEALED != 0) {
            (None, false) => Ok(rest.to_vec()),
            (None, true) => Err(FrameError::Sealed),
            (Some(_), false) if self.verify_incoming => Err(FrameError::Clear),
            (Some(_), false) => Ok(rest.to_vec()),
            (Some(ring), true) => open_with(ring, header, rest),
        }
    }
}

fn open_with(
    ring: &Keyring,
    header: &[u8; HEADER_BYTES],
    rest: &[u8],
) -> Result<Vec<u8>, FrameError> {
    let (nonce, sealed) = rest
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(FrameError::Malformed)?;
    for key in &ring.keys {
        let mut body = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        if let Ok(plain) = key
            .sealer
            .open_in_place(nonce, Aad::from(*header), &mut body)
        {
            let length = plain.len();
            body.truncate(length);
            return Ok(body);
        }
    }
    Err(FrameError::Decrypt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8, length: usize) -> GossipKey {
        GossipKey::parse(&STANDARD.encode(vec![byte; length])).unwrap()
    }

    fn framer(ring: Option<Keyring>) -> Framer {
        Framer::new("dc1", ring, true, true)
    }

    #[test]
    fn key_sizes_are_consuls() {
        for length in [16, 24, 32] {
            let framer = framer(Some(Keyring::new(key(1, length))));
            let frame = framer.seal(b"hello").unwrap();
            assert_eq!(frame.len(), HEADER_BYTES + NONCE_BYTES + 5 + 16);
            assert_eq!(framer.open(&frame).unwrap(), b"hello");
        }
        let error = GossipKey::parse(&STANDARD.encode([0; 20]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("20 bytes") && error.contains("weft keygen"),
            "{error}"
        );
        assert!(GossipKey::parse("not base64!").is_err());
        assert_eq!(format!("{:?}", key(1, 16)), "GossipKey(…)");
    }

    #[test]
    fn every_mismatch_has_its_reason() {
        let (one, two) = (Keyring::new(key(1, 32)), Keyring::new(key(2, 32)));
        let sealed = framer(Some(one.clone())).seal(b"x").unwrap();
        assert_eq!(framer(Some(two)).open(&sealed), Err(FrameError::Decrypt));
        assert_eq!(framer(None).open(&sealed), Err(FrameError::Sealed));
        let clear = framer(None).seal(b"x").unwrap();
        assert_eq!(
            framer(Some(one.clone())).open(&clear),
            Err(FrameError::Clear)
        );
        assert_eq!(
            Framer::new("dc1", Some(one.clone()), false, true)
                .open(&clear)
                .unwrap(),
            b"x"
        );
        assert_eq!(
            Framer::new("dc2", None, true, true).open(&clear),
            Err(FrameError::Foreign)
        );
        assert_eq!(
            framer(None).open(b"GET / HTTP/1.1"),
            Err(FrameError::Malformed)
        );
        assert_eq!(framer(None).open(b""), Err(FrameError::Malformed));
        for at in 0..sealed.len() {
            let mut torn = sealed.clone();
            torn[at] ^= 0x10;
            assert!(
                framer(Some(one.clone())).open(&torn).is_err(),
                "byte {at} is not protected"
            );
        }
    }

    #[test]
    fn rotation_is_install_use_remove() {
        let (old, new) = (key(1, 32), key(2, 32));
        let mut ring = Keyring::new(old.clone());
        assert!(ring.use_key(&new).is_err());
        ring.install(new.clone()).unwrap();
        ring.install(new.clone()).unwrap();
        let before = framer(Some(ring.clone())).seal(b"x").unwrap();
        ring.use_key(&new).unwrap();
        assert_eq!(ring.primary(), &new);
        assert!(framer(Some(ring.clone())).open(&before).is_ok());
        assert!(ring.remove(&new).is_err());
        ring.remove(&old).unwrap();
        assert_eq!(ring.list().len(), 1);
        assert_eq!(framer(Some(ring)).open(&before), Err(FrameError::Decrypt));
    }
}
