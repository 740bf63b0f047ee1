//! Views: the part of the state that some reads need, sent to agents and kept there.
//!
//! A view is itself a [`State`](crate::State), small: it holds the rows that the reads of its
//! [`ViewTopic`] depend on and the indexes they answer, so that the same reads give the same answers
//! from it. What it must hold is not listed by hand: the reads are made against the full state with a
//! trace, and the rows behind the traced topics are the view.
//!
//! Owns: topics, [`Slice`] (the sending side: what changed since the last one, encoded), and
//! [`ViewFrame`] (what travels, and how the receiving side takes it).
//! Never: sends, waits, or keeps more than one slice.

mod frame;
mod partial;
mod slice;
mod topic;

pub use frame::{Gone, VIEW_PART_BYTES, ViewFrame};
pub use partial::ViewError;
pub use slice::{Change, Slice, VIEW_TOPICS_MAX};
pub use topic::{TOPIC_NAME_BYTES_MAX, ViewTopic};

use crate::digest::Fold;
use crate::record::IndexRow;

/// Kinds of rows in a view, in the order in which they are put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum RowKind {
    /// Not set: of a newer version.
    Unspecified = 0,
    /// A machine.
    Node = 1,
    /// A health check.
    Check = 2,
    /// An instance.
    Service = 3,
    /// A config entry.
    ConfigEntry = 4,
    /// A prepared query.
    PreparedQuery = 5,
    /// Where a node lies.
    Coordinate = 6,
    /// The CA of the mesh, without its keys.
    MeshCa = 7,
}

const KINDS: usize = 8;

/// The sums of the digests of a view's rows, by kind.
type Sums = [u64; KINDS];

/// Numbers of the full state that a view's answers carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    floor: u64,
    nodes: u64,
    services: u64,
    coordinates: u64,
}

/// Names the content of a view: equal content has equal fingerprints wherever it was made. It tells
/// apart what came about in different ways, not what somebody forged.
fn fingerprint(sums: &Sums, numbers: &Numbers, indexes: &[IndexRow]) -> u64 {
    let mut fold = Fold::new();
    for word in sums {
        fold.word(*word);
    }
    for word in [
        numbers.floor,
        numbers.nodes,
        numbers.services,
        numbers.coordinates,
    ] {
        fold.word(word);
    }
    for row in indexes {
        fold.word(u64::from(row.table.unsigned_abs()));
        fold.bytes(&row.key);
        fold.word(row.index);
    }
    // 0 says that there is no content.
    fold.finish().max(1)
}
