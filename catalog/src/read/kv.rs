//! Queries of keys.
//!
//! Owns: the index of a key, a prefix, and of what is missing.
//! Never: scans more than the prefix asked for.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use weft_proto::v1::KvEntry;

use crate::digest::Table;
use crate::read::{Answer, Reader};
use crate::topics::Topic;

impl<'a> Reader<'a> {
    /// One key. Scope: the key; while there is none, the last deletion that may have been its own.
    ///
    /// Writes to other keys never raise the index of a missing one (CONSUL.md B.1, "Missing objects").
    #[must_use]
    pub fn kv_get(&self, key: &[u8]) -> Answer<Option<&'a Arc<KvEntry>>> {
        self.trace.note(|| Topic::Key(Bytes::copy_from_slice(key)));
        let row = self.state.kv.get(key);
        let index = row.map_or_else(|| self.deleted_key(key), |row| row.modify_index);
        self.answer(index, row)
    }

    /// Keys with these first bytes, in byte order. Scope: the prefix, with its deletions.
    #[must_use]
    pub fn kv_list(&self, prefix: &[u8]) -> Answer<Vec<&'a Arc<KvEntry>>> {
        let rows: Vec<&Arc<KvEntry>> = self.note_prefix(prefix).map(|(_, row)| row).collect();
        let highest = rows.iter().map(|row| row.modify_index).max().unwrap_or(0);
        self.answer(highest.max(self.deleted_under(prefix)), rows)
    }

    /// Keys with these first bytes, cut after the first separator behind the prefix; with an empty
    /// separator, whole keys. Each once, in byte order. Scope: the prefix, with its deletions.
    #[must_use]
    pub fn kv_keys(&self, prefix: &[u8], separator: &[u8]) -> Answer<Vec<Bytes>> {
        let mut highest = self.deleted_under(prefix);
        let mut keys: Vec<Bytes> = Vec::new();
        for (key, row) in self.note_prefix(prefix) {
            highest = highest.max(row.modify_index);
            let cut = cut_at(key, prefix.len(), separator);
            if keys.last().is_none_or(|last| *last != cut) {
                keys.push(cut);
            }
        }
        self.answer(highest, keys)
    }

    fn note_prefix(&self, prefix: &[u8]) -> impl Iterator<Item = (&'a Bytes, &'a Arc<KvEntry>)> {
        self.trace
            .note(|| Topic::Prefix(Bytes::copy_from_slice(prefix)));
        under(&self.state.kv, prefix)
    }

    /// The last deletion that may have been of `key`.
    fn deleted_key(&self, key: &[u8]) -> u64 {
        let own = self.state.key_tombstones.get(key).copied().unwrap_or(0);
        own.max(self.tree_above(key))
            .max(self.state.missing_floor())
    }

    /// The last deletion under `prefix`, or of a tree around it.
    fn deleted_under(&self, prefix: &[u8]) -> u64 {
        let keys = under(&self.state.key_tombstones, prefix)
            .map(|(_, index)| *index)
            .max();
        let trees = under(&self.state.tree_tombstones, prefix)
            .map(|(_, index)| *index)
            .max();
        let below = keys.max(trees).unwrap_or(0);
        below
            .max(self.tree_above(prefix))
            .max(self.state.missing_floor())
    }

    fn tree_above(&self, key: &[u8]) -> u64 {
        let trees = &self.state.tree_tombstones;
        if trees.is_empty() {
            return 0;
        }
        (0..=key.len())
            .filter_map(|length| trees.get(&key[..length]).copied())
            .max()
            .unwrap_or(0)
    }
}

fn under<'a, V>(
    table: &'a Table<Bytes, V>,
    prefix: &[u8],
) -> impl Iterator<Item = (&'a Bytes, &'a V)> {
    let rows = table.range::<_, [u8]>((Bound::Included(prefix), Bound::Unbounded));
    rows.take_while(move |(key, _)| key.starts_with(prefix))
}

fn cut_at(key: &Bytes, from: usize, separator: &[u8]) -> Bytes {
    if separator.is_empty() {
        return key.clone();
    }
    let found = key[from..]
        .windows(separator.len())
        .position(|window| window == separator);
    found.map_or_else(
        || key.clone(),
        |at| key.slice(..from + at + separator.len()),
    )
}
