//! The key a server's Raft id is bound to (DESIGN §4, Membership).
//!
//! Owns: `raft/server-key.pem` in the data directory: made once, never replaced.
//! Never: decides what a signature permits.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::files::{self, FileError, PRIVATE_DIRECTORY, PRIVATE_FILE};
use crate::secret::Secret;

/// Why there is no key. Nothing was replaced.
#[derive(Debug, thiserror::Error)]
pub enum ServerKeyError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not such a key.
    #[error(
        "{path} is not a P-256 private key; restore it from a backup, or remove it: this server then joins as a new one"
    )]
    Damaged {
        /// The file.
        path: String,
    },
    /// The crypto library failed.
    #[error("making or using the server key failed")]
    Crypto(#[source] rcgen::Error),
}

/// An ECDSA P-256 key pair.
pub struct ServerKey {
    pair: KeyPair,
    path: PathBuf,
    fresh: bool,
}

impl ServerKey {
    /// Reads `raft/server-key.pem` under `data_dir`, or makes it (0600, synced before it is used).
    ///
    /// Errors: [`ServerKeyError`]; a damaged file is never replaced.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, ServerKeyError> {
        let directory = data_dir.join("raft");
        files::create_directory(&directory, PRIVATE_DIRECTORY)?;
        Self::at(&directory.join("server-key.pem"))
    }

    /// Reads a key at `path`, or makes it (0600, synced before it is used). The directory must be there.
    ///
    /// Errors: [`ServerKeyError`]; a damaged file is never replaced.
    pub fn at(path: &Path) -> Result<Self, ServerKeyError> {
        let path = path.to_owned();
        if path.exists() {
            let bytes = Secret::new(files::read(&path)?);
            let damaged = || ServerKeyError::Damaged {
                path: path.display().to_string(),
            };
            let der = PrivateKeyDer::from_pem_slice(bytes.reveal()).map_err(|_| damaged())?;
            let pair = KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
                .map_err(|_| damaged())?;
            return Ok(Self {
                pair,
                path,
                fresh: false,
            });
        }
        let pair =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ServerKeyError::Crypto)?;
        let pem = Secret::new(pair.serialize_pem());
        files::write(&path, pem.reveal().as_bytes(), PRIVATE_FILE)?;
        Ok(Self {
            pair,
            path,
            fresh: true,
        })
    }

    /// One that lives as long as the process, for a server without a data directory.
    ///
    /// Errors: [`ServerKeyError::Crypto`].
    pub fn ephemeral() -> Result<Self, ServerKeyError> {
        Ok(Self {
            pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(ServerKeyError::Crypto)?,
            path: PathBuf::new(),
            fresh: true,
        })
    }

    /// Opens what was sealed for this key, as being `about` that.
    ///
    /// Errors: as [`crate::ca::open`].
    pub fn open(
        &self,
        about: &[u8],
        sealed: &[u8],
    ) -> Result<Secret<Vec<u8>>, crate::ca::SealError> {
        let key = Secret::new(self.pair.serialize_der());
        crate::ca::open(key.reveal(), about, sealed)
    }

    /// Whether this start made it.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The public key: an uncompressed point, 65 bytes (SEC 1, §2.3.3).
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key_raw()
    }

    /// An ECDSA signature over SHA-256 of `message`, in DER.
    ///
    /// Errors: [`ServerKeyError::Crypto`] when the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ServerKeyError> {
        self.pair.sign(message).map_err(ServerKeyError::Crypto)
    }
}

impl std::fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerKey")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Whether `signature` over `message` was made by the holder of `public_key`. Nonsense is `false`.
#[must_use]
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
        .verify(message, signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_made_once_and_signs() {
        let root = tempfile::tempdir().unwrap();
        let first = ServerKey::load_or_create(root.path()).unwrap();
        let again = ServerKey::load_or_create(root.path()).unwrap();
        assert!(first.is_fresh() && !again.is_fresh());
        assert_eq!(
            (first.public_key(), first.public_key().len()),
            (again.public_key(), 65)
        );
        let mode = std::fs::metadata(root.path().join("raft/server-key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let signature = first.sign(b"join").unwrap();
        assert!(verify(again.public_key(), b"join", &signature));
        assert!(!verify(again.public_key(), b"leave", &signature));
        assert!(
            !verify(b"rubbish", b"join", &signature) && !verify(again.public_key(), b"join", b"")
        );
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("raft/server-key.pem");
        files::create_directory(path.parent().unwrap(), PRIVATE_DIRECTORY).unwrap();
        std::fs::write(&path, "half a k").unwrap();
        let error = ServerKey::load_or_create(root.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("server-key.pem") && error.contains("backup"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "half a k");
    }
}
