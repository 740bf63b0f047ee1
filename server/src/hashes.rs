//! This replica's newest state hashes, for the leader that compares them.
//!
//! Owns: a bounded window of them, beside the apply thread.
//! Never: judges; `leader::agreement` does.

use std::collections::VecDeque;

use parking_lot::Mutex;
use weft_catalog::{Catalog, HASHES_KEPT_MAX};

/// Catalog index and state hash of the newest commands, in order.
#[derive(Default)]
pub(crate) struct Hashes {
    newest: Mutex<VecDeque<(u64, u64)>>,
    /// The next value written is another one here: how a test corrupts a replica.
    #[cfg(test)]
    pub(crate) tamper: std::sync::atomic::AtomicBool,
}

impl Hashes {
    /// Takes over what `catalog` has applied since the last time.
    pub(crate) fn note(&self, catalog: &Catalog) {
        let mut newest = self.newest.lock();
        let last = newest.back().map_or(0, |(index, _)| *index);
        newest.extend(catalog.hashes_after(last));
        let excess = newest.len().saturating_sub(HASHES_KEPT_MAX);
        newest.drain(..excess);
    }

    /// Another state is in force: what was computed before says nothing about it.
    pub(crate) fn forget(&self) {
        self.newest.lock().clear();
    }

    /// The hash as of `index`, if a command was applied at it and it is still known.
    pub(crate) fn at(&self, index: u64) -> Option<u64> {
        let newest = self.newest.lock();
        let at = newest.binary_search_by_key(&index, |(at, _)| *at).ok()?;
        newest.get(at).map(|(_, hash)| *hash)
    }
}
