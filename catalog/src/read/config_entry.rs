//! Queries of config entries.
//!
//! Owns: the index of an entry, of a kind, and of what is missing.
//! Never: filters or authorizes.

use std::sync::Arc;

use crate::config_entry::{Entry, Kind};
use crate::keys::{self, Name, PairRef};
use crate::read::{Answer, Reader};
use crate::topics::Topic;

impl<'a> Reader<'a> {
    /// One entry, its name in any case. Scope: the entry; while there is none, the last change of its
    /// kind, which no write to another entry wakes a watcher for.
    #[must_use]
    pub fn config_entry(&self, kind: Kind, name: &str) -> Answer<Option<&'a Arc<Entry>>> {
        self.trace
            .note(|| Topic::ConfigEntry(Name::from(kind.as_str()), keys::name(name)));
        let row = self
            .state
            .config
            .get(&PairRef(kind.as_str(), &keys::fold(name)));
        let index = row.map_or_else(|| self.kind_index(kind), |row| row.modify_index);
        self.answer(index, row)
    }

    /// Every entry of a kind, by name. Scope: the kind.
    #[must_use]
    pub fn config_entries(&self, kind: Kind) -> Answer<Vec<&'a Arc<Entry>>> {
        self.trace
            .note(|| Topic::ConfigKind(Name::from(kind.as_str())));
        let rows = self.state.config.range(PairRef(kind.as_str(), "")..);
        let rows = rows
            .take_while(|(key, _)| *key.0 == *kind.as_str())
            .map(|(_, row)| row);
        self.answer(self.kind_index(kind), rows.collect())
    }

    fn kind_index(&self, kind: Kind) -> u64 {
        self.state
            .config_kinds
            .get(kind.as_str())
            .copied()
            .unwrap_or_default()
    }
}
