//! A state that goes on without the quorum it came from: `weft recover`.
//!
//! Owns: how far indexes and epochs are raised, so that nothing runs back behind what the lost servers may
//! have answered.
//! Never: is a command of the log. It happens on a server that is stopped, and reaches others as a snapshot.
//! Source: DESIGN F8.

use crate::apply::Catalog;
use crate::state::TableIndexes;

/// Added to every index by a recovery: more than a server can have missed, an hour of ten of the fastest writers.
/// Clients keep indexes in floating-point numbers, which hold eight million recoveries.
pub const RECOVERY_INDEX_STEP: u64 = 1 << 30;

/// Added to the restore epoch: the lost servers may have applied restores that this one never saw.
const RECOVERY_EPOCH_STEP: u64 = 1 << 16;

impl Catalog {
    /// Makes this the first state of a new history: indexes go on above all that were ever answered, whoever
    /// keeps a resume token begins anew, and logs of the old history can be told from this one's.
    pub fn recover(&mut self) {
        let state = &mut self.state;
        let scalars = &mut state.scalars;
        let index = scalars.index.saturating_add(RECOVERY_INDEX_STEP);
        scalars.index = index;
        scalars.base = scalars.base.saturating_add(RECOVERY_INDEX_STEP);
        scalars.restore_epoch = scalars.restore_epoch.saturating_add(RECOVERY_EPOCH_STEP);
        scalars.recoveries += 1;
        scalars.floor = index;
        scalars.reaped = index;
        scalars.tables = TableIndexes {
            nodes: index,
            services: index,
            checks: index,
            kv: index,
            sessions: index,
            operator: index,
            config_entries: index,
            coordinates: index,
        };
        state.staging = None;
        state.key_tombstones.clear();
        state.tree_tombstones.clear();
        state.extinct_nodes.clear();
        state.extinct_services.clear();
        self.hashes.clear();
        self.touched.everything();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_proto::ids::LogIndex;
    use weft_proto::v1::{self, stamped::Command};

    use super::*;
    use crate::snapshot;

    fn put(catalog: &mut Catalog, log_index: u64, key: &str) {
        let entry = v1::KvEntry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from_static(b"v"),
            ..v1::KvEntry::default()
        };
        let command = v1::KvCommand {
            entry: Some(entry),
            verb: v1::KvVerb::Set.into(),
        };
        let stamped = v1::Stamped {
            command: Some(Command::Kv(command)),
            ..v1::Stamped::default()
        };
        catalog.apply(LogIndex(log_index), &stamped).unwrap();
    }

    #[test]
    fn indexes_go_on_above_and_rows_stay() {
        let mut catalog = Catalog::new();
        put(&mut catalog, 5, "a");
        let before = catalog.state().clone();
        catalog.recover();
        let after = catalog.state().clone();
        assert_eq!(after.counts(), before.counts());
        assert!(after.index().get() >= before.index().get() + RECOVERY_INDEX_STEP);
        assert!(after.restore_epoch() > before.restore_epoch() + 1);
        assert_eq!((before.recoveries(), after.recoveries()), (0, 1));
        put(&mut catalog, 6, "b");
        assert_eq!(catalog.state().index().get(), after.index().get() + 1);
    }

    #[test]
    fn a_recovered_state_survives_its_snapshot() {
        let mut catalog = Catalog::new();
        put(&mut catalog, 5, "a");
        catalog.recover();
        let mut bytes = Vec::new();
        snapshot::write(catalog.state(), &mut bytes).unwrap();
        let again = snapshot::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(again.state().recoveries(), 1);
        assert_eq!(again.state().hash(), catalog.state().hash());
        assert_eq!(again.state().index(), catalog.state().index());
    }
}
