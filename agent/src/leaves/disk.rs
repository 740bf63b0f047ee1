//! Leaves and keys on disk: one sealed file each (0600), opened with a key of this agent's own (0600).
//!
//! Owns: the form of the files. A file that cannot be opened is not used; the leaf is asked for anew.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest as _, Sha256};
use weft_identity::files::{self, FileError, PRIVATE_DIRECTORY, PRIVATE_FILE};
use weft_identity::server_key::{ServerKey, ServerKeyError};
use weft_identity::{Secret, ca};

use super::{HeldLeaf, LEAVES_MAX};

#[derive(Clone, PartialEq, Message)]
struct Kept {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    key_sec1: String,
    #[prost(string, tag = "3")]
    chain: String,
    #[prost(string, tag = "4")]
    serial: String,
    #[prost(string, tag = "5")]
    uri: String,
    #[prost(int64, tag = "6")]
    not_before: i64,
    #[prost(int64, tag = "7")]
    not_after: i64,
    #[prost(uint64, tag = "8")]
    index: u64,
    #[prost(string, tag = "9")]
    root_id: String,
}

/// What the box is about: a leaf's file in another place is no leaf.
const ABOUT: &[u8] = b"weft leaf 1";

pub(super) struct Disk {
    dir: PathBuf,
    key: ServerKey,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Seal(#[from] ca::SealError),
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Self, ServerKeyError> {
        files::create_directory(dir, PRIVATE_DIRECTORY)?;
        Ok(Self {
            key: ServerKey::at(&dir.join("sealing-key.pem"))?,
            dir: dir.to_owned(),
        })
    }

    pub(super) fn load(&self) -> Vec<(String, HeldLeaf)> {
        let Ok(files) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        let leaves = paths.filter(|path| path.extension().is_some_and(|kind| kind == "leaf"));
        leaves
            .take(LEAVES_MAX)
            .filter_map(|path| self.read(&path))
            .collect()
    }

    fn read(&self, path: &Path) -> Option<(String, HeldLeaf)> {
        let opened = files::read(path)
            .ok()
            .and_then(|sealed| self.key.open(ABOUT, &sealed).ok());
        let kept = opened.and_then(|plain| Kept::decode(plain.reveal().as_slice()).ok());
        let Some(kept) = kept else {
            tracing::warn!(file = %path.display(), "a leaf's file cannot be opened: it will be asked for anew");
            return None;
        };
        let leaf = HeldLeaf {
            key_sec1: Secret::new(kept.key_sec1),
            chain: kept.chain,
            serial: kept.serial,
            uri: kept.uri,
            not_before: kept.not_before,
            not_after: kept.not_after,
            index: kept.index,
            root_id: kept.root_id,
        };
        Some((kept.service, leaf))
    }

    pub(super) fn save(&self, service: &str, leaf: &HeldLeaf) -> Result<(), SaveError> {
        let mut kept = Kept {
            service: service.to_owned(),
            key_sec1: leaf.key_sec1.reveal().clone(),
            chain: leaf.chain.clone(),
            serial: leaf.serial.clone(),
            uri: leaf.uri.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            index: leaf.index,
            root_id: leaf.root_id.clone(),
        };
        let plain = Secret::new(kept.encode_to_vec());
        drop(Secret::new(std::mem::take(&mut kept.key_sec1)));
        let sealed = ca::seal(self.key.public_key(), ABOUT, plain.reveal())?;
        Ok(files::write(&self.path(service), &sealed, PRIVATE_FILE)?)
    }

    pub(super) fn remove(&self, service: &str) {
        if let Err(why) = fs::remove_file(self.path(service)) {
            tracing::debug!(error = %why, "leaf not removed");
        }
    }

    fn path(&self, service: &str) -> PathBuf {
        let name = hex::encode(Sha256::digest(service.as_bytes()));
        self.dir.join(format!("{}.leaf", &name[..32]))
    }
}
