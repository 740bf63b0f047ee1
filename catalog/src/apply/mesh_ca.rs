//! The mesh's CA: replaced as a whole, by a leader that knew what was there.
//!
//! Owns: which of its indexes a replacement moves, and its bounds.
//! Never: makes a key or a certificate, or sees one in clear; the leader did and sealed it.

use weft_proto::v1;

use crate::refusal::{Verdict, applied, conflict, invalid};
use crate::rows::Change;

/// The key of the only row.
pub(crate) const KEY: &str = "ca";
/// Roots that are kept at once: the active one, and those that leaves out there still lead to.
pub const MESH_ROOTS_MAX: usize = 16;
/// Identities that are cut off at once.
pub const MESH_CUT_OFFS_MAX: usize = 1_024;
/// Bytes of the whole row.
pub const MESH_CA_BYTES_MAX: usize = 1 << 20;

pub(crate) fn command(change: &mut Change<'_>, command: &v1::MeshCaCommand) -> Verdict {
    let Some(wanted) = &command.wanted else {
        return Err(invalid("ca.missing", "the command names no CA"));
    };
    check(wanted)?;
    let before = change.state.mesh_ca.get(KEY).cloned();
    let current = before.as_ref().map_or(0, |before| before.modify_index);
    if command.expect_modify_index != current {
        return Ok(applied(false));
    }
    let index = change.index;
    let before = before.as_deref();
    let mut row = wanted.clone();
    let same_config = before.is_some_and(|before| {
        before.provider == row.provider
            && before.config_json == row.config_json
            && before.force_without_cross_signing == row.force_without_cross_signing
    });
    row.config_create_index = before.map_or(index, |before| before.config_create_index);
    row.config_modify_index = before
        .filter(|_| same_config)
        .map_or(index, |before| before.config_modify_index);
    for root in &mut row.roots {
        let known = before.and_then(|before| before.roots.iter().find(|known| known.id == root.id));
        root.create_index = known.map_or(index, |known| known.create_index);
        root.modify_index = known
            .filter(|known| public(known) == public(root))
            .map_or(index, |known| known.modify_index);
    }
    let publics = |row: &v1::MeshCa| row.roots.iter().map(public).collect::<Vec<_>>();
    let same_roots = before
        .is_some_and(|before| publics(before) == publics(&row) && before.cut_offs == row.cut_offs);
    row.roots_modify_index = before
        .filter(|_| same_roots)
        .map_or(index, |before| before.roots_modify_index);
    row.modify_index = index;
    change.put_mesh_ca(row);
    Ok(applied(true))
}

/// What everybody may see of a root: all but its keys and indexes.
pub(crate) fn public(root: &v1::MeshRoot) -> v1::MeshRoot {
    v1::MeshRoot {
        keys: Vec::new(),
        create_index: 0,
        modify_index: 0,
        ..root.clone()
    }
}

fn check(wanted: &v1::MeshCa) -> Result<(), v1::Refusal> {
    let active = wanted.roots.iter().filter(|root| root.active).count();
    if wanted.trust_domain.is_empty() || active != 1 {
        return Err(invalid(
            "ca.incomplete",
            "a CA needs a trust domain and exactly one active root",
        ));
    }
    let bytes = prost::Message::encoded_len(wanted);
    if wanted.roots.len() > MESH_ROOTS_MAX
        || wanted.cut_offs.len() > MESH_CUT_OFFS_MAX
        || bytes > MESH_CA_BYTES_MAX
    {
        return Err(conflict(
            "ca.too_many",
            format!(
                "the CA keeps at most {MESH_ROOTS_MAX} roots, {MESH_CUT_OFFS_MAX} cut-off identities and {MESH_CA_BYTES_MAX} bytes: rotate again when older roots have retired"
            ),
        ));
    }
    Ok(())
}
