//! Network coordinates: where each node lies, as its agent reported it.
//!
//! Owns: that only nodes of the catalog have one, and that only coordinates' own index moves.
//! Never: computes with one: they are bits here.

use weft_proto::v1;

use crate::keys;
use crate::refusal::{Verdict, unit};
use crate::rows::Change;

/// Takes a batch; coordinates of nodes that are not there are left out, as they are about to be gone.
pub(crate) fn batch(change: &mut Change<'_>, command: &v1::CoordinateBatch) -> Verdict {
    for coordinate in &command.coordinates {
        let key = keys::name(&coordinate.node);
        if let Some(node) = change.state.nodes.get(&key) {
            let coordinate = v1::Coordinate {
                node: node.name.clone(),
                number_bits: coordinate.number_bits.clone(),
            };
            change.put_coordinate(&key, coordinate);
        }
    }
    Ok(unit())
}
