//! This node's network coordinate on its way into the catalog.
//!
//! Owns: when it is reported: at the start, then only when it has moved, the rarer the larger the pool.
//! Never: learns or writes it; the pool and the servers do.
//! Source: Consul docs, "Network coordinates" (64 reports a second in all, 15 s at least between two).

use std::sync::Arc;
use std::time::Duration;

use weft_agent::backend::Backend;
use weft_gossip::Gossip;
use weft_proto::coordinate::Coordinate;

/// Reports a second of the whole pool.
const REPORTS_PER_SECOND: u32 = 64;
const INTERVAL_MIN: Duration = Duration::from_secs(15);
/// Until the first report: the node has joined by then, as a rule.
const FIRST: Duration = Duration::from_secs(3);
/// Until the next look while the catalog does not know the node yet.
const UNKNOWN: Duration = Duration::from_secs(3);
/// Seconds a coordinate has to move to be worth a write: what sorts by distance does not see less.
const MOVED: f64 = 0.000_1;
/// How much its error has to change.
const SURER: f64 = 0.1;

/// Reports until the pool ends, or at once when coordinates are off.
pub(crate) async fn report(gossip: Arc<Gossip>, backend: Arc<dyn Backend>, node: String) {
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = gossip.ended() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let Some(own) = gossip.coordinate() else {
            return;
        };
        let state = backend.state();
        let known = state
            .coordinate(&node)
            .and_then(|row| Coordinate::of_record(row));
        if known.is_none_or(|known| has_moved(&known, &own))
            && let Err(cause) = backend.report_coordinate(own.record(&node))
        {
            tracing::debug!(error = %cause, "coordinate not reported");
        }
        wait = if known.is_some() {
            interval(gossip.members().len())
        } else {
            UNKNOWN
        };
    }
}

fn has_moved(known: &Coordinate, now: &Coordinate) -> bool {
    let moved = known.apart(now)
        + (known.height - now.height).abs()
        + (known.adjustment - now.adjustment).abs();
    moved >= MOVED || (known.error - now.error).abs() >= SURER
}

fn interval(members: usize) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX);
    (Duration::from_secs(1) * members / REPORTS_PER_SECOND).max(INTERVAL_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pools_report_less_often() {
        assert_eq!(interval(3), INTERVAL_MIN);
        assert_eq!(interval(6_400), Duration::from_secs(100));
    }

    #[test]
    fn a_coordinate_that_stands_still_is_not_written() {
        let known = Coordinate::default();
        let surer = Coordinate {
            error: 1.0,
            ..known
        };
        let mut nudged = known;
        nudged.vector[1] += 0.000_05;
        assert!(!has_moved(&known, &nudged));
        nudged.height += 0.000_06;
        assert!(has_moved(&known, &nudged));
        assert!(has_moved(&known, &surer));
    }
}
