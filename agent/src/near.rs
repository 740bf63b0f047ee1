//! Nearest first: rows ordered by the time a packet takes from a node.
//!
//! Owns: the order. Never: learns where nodes lie; the state says so. Never makes a reader wait for
//! coordinates: whoever sorts by them is not woken when they change.
//! Source: Consul HTTP API, parameter `near`; CONSUL.md A.3.

use std::net::IpAddr;

use rand::seq::SliceRandom as _;
use weft_catalog::{InstanceHealth, State, Trace};
use weft_proto::coordinate::Coordinate;

/// The agent that is asked, where a node is named to sort by.
pub(crate) const HERE: &str = "_agent";

/// Whoever asks, where a prepared query names a node to sort by.
pub(crate) const CLIENT: &str = "_ip";

/// Puts the instances that a prepared query selects into the order that its `Near` asks for: the nearest
/// to a node first, those equally far in any order, and the node itself before all others. False: it
/// names no node that is known, and they stay as they are.
///
/// `here`: the agent's node. `client`: whom the answer is for.
pub(crate) fn nearest_first(
    rows: &mut [InstanceHealth<'_>],
    near: &str,
    here: &str,
    client: Option<IpAddr>,
    state: &State,
    dice: &mut impl rand::Rng,
) -> bool {
    let trace = Trace::off();
    let node = match near {
        "" => None,
        HERE => Some(here),
        CLIENT => client.and_then(|ip| {
            let nodes = state.read(&trace).nodes_by_address(ip.to_canonical()).rows;
            nodes.first().map(|node| node.name.as_str())
        }),
        name => Some(name),
    };
    let Some(node) = node else { return false };
    rows.shuffle(dice);
    Near::to(node, state).sort(rows, |row| &row.node.name);
    // Also where nobody's place is known.
    rows.sort_by_key(|row| !row.node.name.eq_ignore_ascii_case(node));
    true
}

/// The order of nearness to one node.
pub struct Near<'a> {
    state: &'a State,
    node: &'a str,
    from: Option<Coordinate>,
}

impl<'a> Near<'a> {
    /// Nearness to `node`, which need not exist.
    #[must_use]
    pub fn to(node: &'a str, state: &'a State) -> Self {
        Self {
            state,
            node,
            from: place(state, node),
        }
    }

    /// Sorts rows by the node they are on: `node` itself, then the others by distance, then those whose
    /// place is not known. Equals keep their order; while the place of `node` is not known, all do.
    pub fn sort<T>(&self, rows: &mut [T], on: impl Fn(&T) -> &str) {
        let Some(from) = &self.from else { return };
        rows.sort_by_cached_key(|row| self.nanoseconds(from, on(row)));
    }

    fn nanoseconds(&self, from: &Coordinate, node: &str) -> u64 {
        if node.eq_ignore_ascii_case(self.node) {
            return 0;
        }
        place(self.state, node).map_or(u64::MAX, |place| {
            // A cast saturates at both ends; who is near itself stays first, who is nowhere last.
            let distance = (from.distance(&place) * 1e9) as u64;
            distance.saturating_add(1).min(u64::MAX - 1)
        })
    }
}

fn place(state: &State, node: &str) -> Option<Coordinate> {
    Coordinate::of_record(state.coordinate(node)?)
}
