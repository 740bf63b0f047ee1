//! The incremental state hash: each table keeps the sum of its rows' digests.
//!
//! Owns: the digest of a row, and [`Table`], whose sum cannot miss a change.
//! Never: is a defence against an adversary; it detects replicas that computed different states.

use std::sync::Arc;

use bytes::Bytes;
use equivalent::Comparable;
use imbl::OrdMap;
use prost::Message;
use weft_proto::v1;

use crate::keys::{Pair, Triple};

/// Folds words into a 64-bit digest by full-width multiplication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fold(u64);

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

impl Fold {
    pub(crate) const fn new() -> Self {
        Self(SEED)
    }

    pub(crate) fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        let [low, high] = [product as u64, (product >> 64) as u64];
        self.0 = low ^ high ^ self.0.rotate_left(23);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0_u8; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0_u8; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(crate) const fn finish(self) -> u64 {
        self.0
    }
}

/// Something whose content counts in the state hash.
pub(crate) trait Digest {
    fn digest(&self, fold: &mut Fold);
}

impl Digest for u64 {
    fn digest(&self, fold: &mut Fold) {
        fold.word(*self);
    }
}

impl Digest for Arc<str> {
    fn digest(&self, fold: &mut Fold) {
        fold.bytes(self.as_bytes());
    }
}

impl Digest for Bytes {
    fn digest(&self, fold: &mut Fold) {
        fold.bytes(self);
    }
}

impl Digest for Pair {
    fn digest(&self, fold: &mut Fold) {
        self.0.digest(fold);
        self.1.digest(fold);
    }
}

impl Digest for Triple {
    fn digest(&self, fold: &mut Fold) {
        self.0.digest(fold);
        self.1.digest(fold);
        self.2.digest(fold);
    }
}

impl Digest for (Arc<str>, u64) {
    fn digest(&self, fold: &mut Fold) {
        self.0.digest(fold);
        self.1.digest(fold);
    }
}

// Field by field: this is the hot row, and its value need not be copied to be digested.
impl Digest for Arc<v1::KvEntry> {
    fn digest(&self, fold: &mut Fold) {
        fold.bytes(&self.value);
        fold.bytes(self.session.as_bytes());
        for word in [
            self.flags,
            self.lock_index,
            self.create_index,
            self.modify_index,
        ] {
            fold.word(word);
        }
    }
}

macro_rules! digest_encoded {
    ($($record:ty),*) => {$(
        impl Digest for Arc<$record> {
            fn digest(&self, fold: &mut Fold) {
                fold.bytes(&self.encode_to_vec());
            }
        }
    )*};
}
digest_encoded!(
    v1::Node,
    v1::Service,
    v1::Check,
    v1::Session,
    v1::ServerKey,
    v1::PreparedQuery,
    v1::Coordinate,
    v1::JoinToken,
    v1::MeshCa
);

/// What a row adds to its table's sum.
pub(crate) fn row<K: Digest, V: Digest>(key: &K, value: &V) -> u64 {
    let mut fold = Fold::new();
    key.digest(&mut fold);
    value.digest(&mut fold);
    fold.finish()
}

/// An ordered map that keeps the sum of its rows' digests, so the state hash costs O(1) a change
/// and does not depend on the order of changes.
#[derive(Clone)]
pub(crate) struct Table<K, V> {
    rows: OrdMap<K, V>,
    sum: u64,
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.rows.len())
            .field("sum", &self.sum)
            .finish()
    }
}

impl<K: Ord + Clone, V: Clone> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: OrdMap::new(),
            sum: 0,
        }
    }
}

impl<K: Ord + Clone + Digest, V: Clone + Digest> Table<K, V> {
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.sum = self.sum.wrapping_add(row(&key, &value));
        let before = self.rows.insert(key.clone(), value);
        if let Some(before) = &before {
            self.sum = self.sum.wrapping_sub(row(&key, before));
        }
        before
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        Q: Comparable<K> + ?Sized,
    {
        let (key, value) = self.rows.remove_with_key(key)?;
        self.sum = self.sum.wrapping_sub(row(&key, &value));
        Some(value)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<K, V> Table<K, V> {
    /// The sum of the rows' digests.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }
}

impl<K, V> std::ops::Deref for Table<K, V> {
    type Target = OrdMap<K, V>;

    fn deref(&self) -> &OrdMap<K, V> {
        &self.rows
    }
}
