//! What travels from a server to the views of an agent.

use crate::record::{Frame, IndexRow};

use super::Numbers;

/// About how many bytes one part of a whole view has.
pub const VIEW_PART_BYTES: usize = 256 << 10;

/// A whole view, a part of one, or what changed of it. Additive only (DESIGN F7).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ViewFrame {
    /// It begins a view anew; what was there before is replaced when the last part is here.
    #[prost(bool, tag = "1")]
    pub whole: bool,
    /// Another part follows; numbers and indexes are those of the last one.
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// The state's index that the view is as of.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Of the state.
    #[prost(uint64, tag = "4")]
    pub restore_epoch: u64,
    /// What it is added to; 0 for a whole view.
    #[prost(fixed64, tag = "5")]
    pub base: u64,
    /// What comes of it.
    #[prost(fixed64, tag = "6")]
    pub fingerprint: u64,
    /// No answer's index is lower.
    #[prost(uint64, tag = "7")]
    pub floor: u64,
    /// The index of answers about what is missing.
    #[prost(uint64, tag = "8")]
    pub reaped: u64,
    /// The last change of the nodes table, if the view is of it.
    #[prost(uint64, tag = "9")]
    pub nodes: u64,
    /// The last change of the services table, if the view is of it.
    #[prost(uint64, tag = "10")]
    pub services: u64,
    /// The last change of the coordinates table, if the view is of it.
    #[prost(uint64, tag = "11")]
    pub coordinates: u64,
    /// All indexes of the view's scopes.
    #[prost(message, repeated, tag = "12")]
    pub indexes: Vec<IndexRow>,
    /// Rows that are there.
    #[prost(message, repeated, tag = "13")]
    pub rows: Vec<Frame>,
    /// Rows that are no longer there.
    #[prost(message, repeated, tag = "14")]
    pub gone: Vec<Gone>,
}

/// A row that is no longer in the view.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Gone {
    /// Of which kind.
    #[prost(enumeration = "super::RowKind", tag = "1")]
    pub kind: i32,
    /// The first part of its key, folded.
    #[prost(string, tag = "2")]
    pub first: String,
    /// The second part, folded; empty where there is none.
    #[prost(string, tag = "3")]
    pub second: String,
}

impl ViewFrame {
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            floor: self.floor,
            nodes: self.nodes,
            services: self.services,
            coordinates: self.coordinates,
        }
    }
}
