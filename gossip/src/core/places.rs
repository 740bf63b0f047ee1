//! Coordinates: measuring probes, exchanging places, learning from both.
//!
//! Owns: which probe is being measured. foca tells of none, so [`crate::wire::WireCodec`] notes the
//! pings and acks that pass through it, and an ack is followed by a small datagram with the place of
//! its sender, which an earlier version drops as one it does not understand.
//! Never: decides who is alive.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_proto::coordinate::{Coordinate, DIMENSIONS};

use super::{Core, KIND_PLACE};
use crate::vivaldi::Learned;
use crate::wire::{NodeId, Passed, Peer, lock};

/// A member's place, as it says itself. Direct only.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    id: NodeId,
    numbers: [f64; DIMENSIONS + 3],
}

/// A probe of which the answer or the place is still missing.
#[derive(Debug)]
pub(super) struct Probe {
    peer: Peer,
    number: u8,
    sent: Duration,
    took: Option<Duration>,
    place: Option<Coordinate>,
}

/// What was learned so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoordinateCounts {
    /// Measurements that moved this member's coordinate.
    pub learned: u64,
    /// Measurements or places that could not be true.
    pub refused: u64,
    /// Times the coordinate began anew.
    pub resets: u64,
}

impl Core {
    /// Where this member lies; `None` when `disable_coordinates` is set.
    #[must_use]
    pub fn coordinate(&self) -> Option<Coordinate> {
        self.config.coordinates.then(|| self.vivaldi.own())
    }

    /// How often it moved.
    #[must_use]
    pub fn coordinate_counts(&self) -> CoordinateCounts {
        self.coordinate_counts
    }

    /// Looks at what foca sent and got since the last look.
    pub(super) fn look(&mut self) {
        let passed = std::mem::take(&mut lock(&self.shared).passed);
        self.observe(&passed);
        if self.config.coordinates {
            self.measure(passed);
        }
    }

    fn measure(&mut self, passed: Passed) {
        if let Some((peer, number)) = passed.pinged {
            self.probe = Some(Probe {
                peer,
                number,
                sent: self.effects.now,
                took: None,
                place: None,
            });
        }
        if let Some((id, number)) = passed.acked
            && let Some(probe) = &mut self.probe
            && probe.peer.id == id
            && probe.number == number
            && probe.took.is_none()
        {
            probe.took = Some(self.effects.now.saturating_sub(probe.sent));
        }
        for to in passed.answered {
            let place = Place {
                id: self.swim.identity().id,
                numbers: self.vivaldi.own().numbers(),
            };
            let data = postcard::to_stdvec(&place).expect("plain data always encodes");
            self.effects.send(to, KIND_PLACE, &data);
        }
        self.learn();
    }

    /// A place came in. Only that of the member being probed is of use.
    pub(super) fn handle_place(&mut self, from: SocketAddr, data: &[u8]) -> bool {
        let Ok(place) = postcard::from_bytes::<Place>(data) else {
            return false;
        };
        if let Some(probe) = &mut self.probe
            && probe.peer.id == place.id
            && probe.peer.address == from
        {
            probe.place = Some(Coordinate::of_numbers(place.numbers));
        }
        self.learn();
        true
    }

    fn learn(&mut self) {
        let Some(Probe {
            peer,
            took: Some(took),
            place: Some(place),
            ..
        }) = &self.probe
        else {
            return;
        };
        let (id, took, place) = (peer.id, took.as_secs_f64(), *place);
        self.probe = None;
        let counts = &mut self.coordinate_counts;
        match self.vivaldi.learn(id, &place, took, &mut self.rng) {
            Learned::Moved => counts.learned += 1,
            Learned::Refused => counts.refused += 1,
            Learned::Reset => counts.resets += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CoreConfig;

    #[test]
    fn what_passes_is_not_gathered_when_nobody_looks() {
        let address: SocketAddr = "127.0.0.1:8301".parse().unwrap();
        let id = "00000000-0000-0000-0000-000000000001";
        let config = CoreConfig {
            coordinates: false,
            ..CoreConfig::new("n1", id, "dc1", address)
        };
        let mut core = Core::new(config, Duration::ZERO, 7).unwrap();
        lock(&core.shared).passed.answered.push(address);
        core.look();
        assert!(lock(&core.shared).passed.answered.is_empty());
    }
}
