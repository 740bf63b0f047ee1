//! The mesh's CA, for who signs, verifies or shows it.

use std::sync::Arc;

use weft_proto::v1::MeshCa;

use crate::apply::mesh_ca::{KEY, public};
use crate::read::{Answer, Reader};
use crate::topics::TableTopic;

impl<'a> Reader<'a> {
    /// The CA, its sealed keys included; the index is that of its roots. Scope: the CA.
    #[must_use]
    pub fn mesh_ca(&self) -> Answer<Option<&'a Arc<MeshCa>>> {
        self.trace.note_table(TableTopic::MeshCa);
        let row = self.state.mesh_ca.get(KEY);
        self.answer(row.map_or(0, |row| row.roots_modify_index), row)
    }
}

/// The CA as everybody may see it: without its keys.
#[must_use]
pub fn without_keys(row: &MeshCa) -> MeshCa {
    let mut seen = row.clone();
    for root in &mut seen.roots {
        let (created, modified) = (root.create_index, root.modify_index);
        *root = public(root);
        (root.create_index, root.modify_index) = (created, modified);
    }
    // It moves with keys too, which nobody here has.
    seen.modify_index = seen.roots_modify_index.max(seen.config_modify_index);
    seen
}
