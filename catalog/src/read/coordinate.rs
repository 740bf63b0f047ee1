//! Network coordinates of the nodes.
//!
//! Owns: their index, the table's alone. Never: sorts by them; callers do.

use std::sync::Arc;

use weft_proto::v1::Coordinate;

use crate::keys;
use crate::read::{Answer, Reader};
use crate::state::State;
use crate::topics::TableTopic;

impl<'a> Reader<'a> {
    /// Every node's coordinate, by node. Scope: the coordinates table.
    #[must_use]
    pub fn coordinates(&self) -> Answer<Vec<&'a Arc<Coordinate>>> {
        self.trace.note_table(TableTopic::Coordinates);
        self.answer(
            self.state.scalars.tables.coordinates,
            self.state.coordinates.values().collect(),
        )
    }

    /// One node's coordinate. Scope: the coordinates table.
    #[must_use]
    pub fn coordinate(&self, node: &str) -> Answer<Option<&'a Arc<Coordinate>>> {
        self.trace.note_table(TableTopic::Coordinates);
        self.answer(
            self.state.scalars.tables.coordinates,
            self.state.coordinate(node),
        )
    }
}

impl State {
    /// A node's coordinate, for sorting: whoever sorts by it does not wait for it to change.
    #[must_use]
    pub fn coordinate(&self, node: &str) -> Option<&Arc<Coordinate>> {
        self.coordinates.get(keys::fold(node).as_ref())
    }

    /// The last change of any coordinate: what an order by distance is valid for.
    #[must_use]
    pub const fn coordinates_index(&self) -> u64 {
        self.scalars.tables.coordinates
    }
}
