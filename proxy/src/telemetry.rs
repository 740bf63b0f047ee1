//! What a shard counts: plain numbers of its own, copied out when somebody asks.
//!
//! Owns: the rows by direction, source and destination, and their bound.
//! Never: formats, locks, or is asked on the path of a byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::tunnel::Outcome;

/// Pairs counted one by one; all others together, under an empty name.
const PAIRS_MAX: usize = 4_096;
/// Upper bounds of the durations' buckets, in milliseconds; one more is open.
pub const DURATION_BOUNDS_MILLIS: [u64; 7] = [10, 100, 1_000, 10_000, 60_000, 600_000, 3_600_000];

/// Seen from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Others call a service of this node.
    Inbound,
    /// A service of this node calls.
    Outbound,
}

/// Who calls whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// On which side we are.
    pub direction: Direction,
    /// The caller's name.
    pub source: Arc<str>,
    /// The name called.
    pub destination: Arc<str>,
}

/// What is counted of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections begun.
    pub opened: u64,
    /// Connections over.
    pub closed: u64,
    /// Bytes from the caller.
    pub request_bytes: u64,
    /// Bytes to the caller.
    pub response_bytes: u64,
    /// Of the connections over, by bucket.
    pub durations: [u64; DURATION_BOUNDS_MILLIS.len() + 1],
    /// In milliseconds.
    pub duration_sum: u64,
    /// Connections that did not begin, or ended early, by the id of the reason.
    pub reasons: BTreeMap<&'static str, u64>,
}

/// A shard's.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    pairs: BTreeMap<Pair, Counts>,
    /// Callers that were turned away before they had a name, by the service called and the id of the reason.
    pub handshakes: BTreeMap<(Arc<str>, &'static str), u64>,
}

impl Telemetry {
    /// A connection begins.
    pub fn opened(&mut self, pair: &Pair) {
        self.of(pair).opened += 1;
    }

    /// It is over; `outcome.sent` went from us to the mesh if we are the caller's side.
    pub fn closed(&mut self, pair: &Pair, outcome: &Outcome, took: Duration) {
        let counts = self.of(pair);
        counts.closed += 1;
        let (out, back) = match pair.direction {
            Direction::Outbound => (outcome.sent, outcome.received),
            Direction::Inbound => (outcome.received, outcome.sent),
        };
        counts.request_bytes += out;
        counts.response_bytes += back;
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_MILLIS.partition_point(|bound| *bound < millis);
        counts.durations[bucket] += 1;
        counts.duration_sum = counts.duration_sum.saturating_add(millis);
        if let Some(reason) = outcome.reset {
            *counts.reasons.entry(reason.id()).or_default() += 1;
        }
    }

    /// A connection did not begin.
    pub fn refused(&mut self, pair: &Pair, reason: &'static str) {
        *self.of(pair).reasons.entry(reason).or_default() += 1;
    }

    /// Somebody could not prove who they are to `service`.
    pub fn turned_away(&mut self, service: &Arc<str>, reason: &'static str) {
        *self
            .handshakes
            .entry((service.clone(), reason))
            .or_default() += 1;
    }

    /// All rows.
    #[must_use]
    pub fn pairs(&self) -> &BTreeMap<Pair, Counts> {
        &self.pairs
    }

    /// Adds another shard's.
    pub fn add(&mut self, other: &Self) {
        for (pair, theirs) in &other.pairs {
            let ours = self.of(pair);
            ours.opened += theirs.opened;
            ours.closed += theirs.closed;
            ours.request_bytes += theirs.request_bytes;
            ours.response_bytes += theirs.response_bytes;
            ours.duration_sum = ours.duration_sum.saturating_add(theirs.duration_sum);
            for (ours, theirs) in ours.durations.iter_mut().zip(theirs.durations) {
                *ours += theirs;
            }
            for (reason, count) in &theirs.reasons {
                *ours.reasons.entry(reason).or_default() += count;
            }
        }
        for (key, count) in &other.handshakes {
            *self.handshakes.entry(key.clone()).or_default() += count;
        }
    }

    fn of(&mut self, pair: &Pair) -> &mut Counts {
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(pair) {
            let rest = Pair {
                direction: pair.direction,
                source: Arc::default(),
                destination: Arc::default(),
            };
            return self.pairs.entry(rest).or_default();
        }
        self.pairs.entry(pair.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reason;

    fn pair(direction: Direction, source: &str) -> Pair {
        Pair {
            direction,
            source: source.into(),
            destination: "db".into(),
        }
    }

    #[test]
    fn requests_are_the_callers_bytes_on_both_sides() {
        let mut telemetry = Telemetry::default();
        let outcome = Outcome {
            sent: 3,
            received: 5,
            reset: Some(Reason::Idle),
        };
        for direction in [Direction::Inbound, Direction::Outbound] {
            telemetry.opened(&pair(direction, "web"));
            telemetry.closed(
                &pair(direction, "web"),
                &outcome,
                Duration::from_millis(150),
            );
        }
        let bytes: Vec<_> = telemetry
            .pairs()
            .values()
            .map(|counts| (counts.request_bytes, counts.response_bytes))
            .collect();
        assert_eq!(bytes, [(5, 3), (3, 5)]);
        let counts = &telemetry.pairs()[&pair(Direction::Outbound, "web")];
        assert_eq!(counts.durations, [0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(counts.reasons["proxy.idle"], 1);
        let mut sum = telemetry.clone();
        sum.add(&telemetry);
        assert_eq!(sum.pairs()[&pair(Direction::Inbound, "web")].opened, 2);
    }

    #[test]
    fn callers_without_end_share_a_row() {
        let mut telemetry = Telemetry::default();
        for n in 0..PAIRS_MAX + 100 {
            telemetry.opened(&pair(Direction::Inbound, &format!("web-{n}")));
        }
        assert_eq!(telemetry.pairs().len(), PAIRS_MAX + 1);
        assert_eq!(
            telemetry.pairs().values().map(|c| c.opened).sum::<u64>(),
            (PAIRS_MAX + 100) as u64
        );
    }
}
