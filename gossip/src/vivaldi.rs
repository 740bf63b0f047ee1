//! Network coordinates: where this member lies among the others, so that the time a packet takes
//! between any two members can be told without asking either.
//!
//! Owns: the spring model: eight dimensions, a height, an adjustment, the filter of outliers.
//! Never: measures a time or sends a coordinate; the core does.
//! Source: Dabek et al., "Vivaldi" (2004); Ledlie et al., "Network coordinates in the wild" (2007);
//! Serf docs, "Network coordinates", whose constants these are.

use std::collections::BTreeMap;

use rand::{Rng, RngExt};
use weft_proto::coordinate::{Coordinate, DIMENSIONS, ERROR_MAX, HEIGHT_MIN};

use crate::wire::NodeId;

/// How much one measurement moves the error.
const ERROR_SHARE: f64 = 0.25;
/// How much one measurement moves the coordinate.
const FORCE_SHARE: f64 = 0.25;
/// Measurements whose mean residual is the adjustment.
const ADJUSTMENT_WINDOW: usize = 20;
/// Measurements of one peer whose median counts.
const FILTER_SAMPLES: usize = 3;
/// Seconds from the origin at which gravity begins to be felt.
const GRAVITY_RHO: f64 = 150.0;
/// Seconds; below it a time or a distance is none.
const ZERO: f64 = 1.0e-6;
/// Seconds; a measurement above it is none.
const RTT_MAX: f64 = 10.0;
/// Peers whose measurements are remembered; beyond it the memory begins anew.
const PEERS_MAX: usize = 4_096;

/// `place` after `force` pushed it away from `other` (pulled it there, when negative).
fn pushed(mut place: Coordinate, force: f64, other: &Coordinate, rng: &mut impl Rng) -> Coordinate {
    let (direction, apart) = direction(&place, other, rng);
    for (x, part) in place.vector.iter_mut().zip(direction) {
        *x += part * force;
    }
    if apart > ZERO {
        let height = (place.height + other.height) * force / apart + place.height;
        place.height = height.max(HEIGHT_MIN);
    }
    place
}

/// The unit vector from `b` to `a`, and how far apart they are. For two in one place it is any one:
/// whoever starts at the origin must leave it in some direction.
fn direction(a: &Coordinate, b: &Coordinate, rng: &mut impl Rng) -> ([f64; DIMENSIONS], f64) {
    let between: [f64; DIMENSIONS] = std::array::from_fn(|n| a.vector[n] - b.vector[n]);
    let any: [f64; DIMENSIONS] = std::array::from_fn(|_| rng.random_range(-0.5..0.5));
    for (vector, apart) in [(between, a.apart(b)), (any, 0.0)] {
        let size = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size > ZERO {
            return (vector.map(|x| x / size), apart);
        }
    }
    let mut first = [0.0; DIMENSIONS];
    first[0] = 1.0;
    (first, 0.0)
}

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    /// The coordinate moved.
    Moved,
    /// It was none: an impossible time, or a coordinate with numbers that are none.
    Refused,
    /// It led nowhere, and the coordinate begins anew.
    Reset,
}

/// This member's coordinate and what it was learned from.
#[derive(Debug, Default)]
pub(crate) struct Vivaldi {
    own: Coordinate,
    residuals: [f64; ADJUSTMENT_WINDOW],
    next_residual: usize,
    /// The last measurements of each peer, oldest first.
    samples: BTreeMap<NodeId, Vec<f64>>,
}

impl Vivaldi {
    pub(crate) fn own(&self) -> Coordinate {
        self.own
    }

    /// Takes in that a packet to `peer`, which says it lies at `theirs`, and back took `rtt` seconds.
    pub(crate) fn learn(
        &mut self,
        peer: NodeId,
        theirs: &Coordinate,
        rtt: f64,
        rng: &mut impl Rng,
    ) -> Learned {
        if !theirs.is_sound() || !(0.0..=RTT_MAX).contains(&rtt) {
            return Learned::Refused;
        }
        let rtt = self.filtered(peer, rtt);
        self.pull(theirs, rtt, rng);
        self.adjust(theirs, rtt);
        self.gravitate(rng);
        if self.own.is_sound() {
            return Learned::Moved;
        }
        *self = Self::default();
        Learned::Reset
    }

    /// The median of the last measurements of this peer: one late packet must not move us.
    fn filtered(&mut self, peer: NodeId, rtt: f64) -> f64 {
        if self.samples.len() >= PEERS_MAX && !self.samples.contains_key(&peer) {
            self.samples.clear();
        }
        let samples = self.samples.entry(peer).or_default();
        samples.push(rtt);
        if samples.len() > FILTER_SAMPLES {
            samples.remove(0);
        }
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// Vivaldi's spring: the less sure of the two moves further.
    fn pull(&mut self, theirs: &Coordinate, rtt: f64, rng: &mut impl Rng) {
        let distance = self.own.distance(theirs);
        let rtt = rtt.max(ZERO);
        let wrong = (distance - rtt).abs() / rtt;
        let weight = self.own.error / (self.own.error + theirs.error).max(ZERO);
        let share = ERROR_SHARE * weight;
        self.own.error = (share * wrong + self.own.error * (1.0 - share)).min(ERROR_MAX);
        let force = FORCE_SHARE * weight * (rtt - distance);
        self.own = pushed(self.own, force, theirs, rng);
    }

    /// Half the mean residual: the other half is the peer's own.
    fn adjust(&mut self, theirs: &Coordinate, rtt: f64) {
        self.residuals[self.next_residual] = rtt - self.own.raw_distance(theirs);
        self.next_residual = (self.next_residual + 1) % ADJUSTMENT_WINDOW;
        let sum: f64 = self.residuals.iter().sum();
        self.own.adjustment = sum / (2.0 * ADJUSTMENT_WINDOW as f64);
    }

    /// Keeps the whole pool from drifting away from the origin.
    fn gravitate(&mut self, rng: &mut impl Rng) {
        let origin = Coordinate::default();
        let pull = (origin.distance(&self.own) / GRAVITY_RHO).powi(2);
        self.own = pushed(self.own, -pull, &origin, rng);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use weft_proto::coordinate::SECONDS_MAX;

    use super::*;

    /// Nodes that measure each other in turn; answers the largest relative error of a distance.
    fn converge(rtt: impl Fn(usize, usize) -> f64, count: usize, rounds: usize) -> f64 {
        let mut rng = StdRng::seed_from_u64(5);
        let mut nodes: Vec<Vivaldi> = (0..count).map(|_| Vivaldi::default()).collect();
        for _ in 0..rounds {
            for n in 0..count {
                let peer = rng.random_range(0..count);
                if peer != n {
                    let theirs = nodes[peer].own();
                    let id = [peer as u8; 16];
                    let learned = nodes[n].learn(id, &theirs, rtt(n, peer), &mut rng);
                    assert_eq!(learned, Learned::Moved);
                }
            }
        }
        let pairs = (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        pairs
            .map(|(a, b)| (nodes[a].own().distance(&nodes[b].own()) / rtt(a, b) - 1.0).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn distances_become_what_was_measured() {
        // A line, a grid of two sites, and one rack.
        let line = |a: usize, b: usize| 0.010 * a.abs_diff(b) as f64;
        assert!(converge(line, 10, 2_000) < 0.15);
        let sites = |a: usize, b: usize| if a % 2 == b % 2 { 0.001 } else { 0.040 };
        assert!(converge(sites, 12, 2_000) < 0.4);
        assert!(converge(|_, _| 0.0005, 5, 2_000) < 0.2);
    }

    #[test]
    fn one_late_packet_does_not_move_anybody() {
        let mut rng = StdRng::seed_from_u64(6);
        let (mut node, peer) = (Vivaldi::default(), Coordinate::default());
        for _ in 0..100 {
            node.learn([1; 16], &peer, 0.010, &mut rng);
        }
        let before = node.own();
        node.learn([1; 16], &peer, 5.0, &mut rng);
        assert!((node.own().distance(&peer) - before.distance(&peer)).abs() < 0.001);
    }

    #[test]
    fn nonsense_is_refused_and_leaves_the_coordinate_alone() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut node = Vivaldi::default();
        let good = Coordinate::default();
        let bad = Coordinate {
            error: f64::NAN,
            ..good
        };
        for (theirs, rtt) in [
            (bad, 0.1),
            (good, -1.0),
            (good, f64::INFINITY),
            (good, f64::NAN),
            (good, 11.0),
        ] {
            let learned = node.learn([1; 16], &theirs, rtt, &mut rng);
            assert_eq!(learned, Learned::Refused, "{theirs:?} {rtt}");
        }
        assert_eq!(node.own(), good);
    }

    #[test]
    fn a_coordinate_that_ran_away_begins_anew() {
        let mut rng = StdRng::seed_from_u64(8);
        let far = Coordinate {
            vector: [SECONDS_MAX; DIMENSIONS],
            ..Coordinate::default()
        };
        let mut node = Vivaldi {
            own: far,
            ..Vivaldi::default()
        };
        assert_eq!(node.learn([1; 16], &far, 1.0, &mut rng), Learned::Reset);
        assert_eq!(node.own(), Coordinate::default());
    }

    #[test]
    fn a_time_of_nothing_is_taken_for_a_short_one() {
        let mut rng = StdRng::seed_from_u64(9);
        let mut node = Vivaldi::default();
        for _ in 0..50 {
            let learned = node.learn([1; 16], &Coordinate::default(), 0.0, &mut rng);
            assert_eq!(learned, Learned::Moved);
        }
        assert!(node.own().is_sound());
    }

    #[test]
    fn the_memory_of_peers_is_bounded() {
        let mut rng = StdRng::seed_from_u64(10);
        let mut node = Vivaldi::default();
        for n in 0..=PEERS_MAX as u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            node.learn(id, &Coordinate::default(), 0.001, &mut rng);
        }
        assert!(node.samples.len() <= PEERS_MAX);
    }
}
