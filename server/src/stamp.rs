//! Cluster time: what a leader writes into an entry before it proposes.
//!
//! Owns: the rule "last applied time plus my own monotonic elapsed", which neither a jumping wall
//! clock nor a new leader can run back or ahead.
//! Never: reads the wall clock after the first entry of a cluster.

use std::time::Duration;

use parking_lot::Mutex;
use weft_proto::ids::UnixMillis;

/// The leader's view of cluster time.
#[derive(Debug, Default)]
pub(crate) struct ClusterTime {
    anchor: Mutex<Option<Anchor>>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    cluster: UnixMillis,
    monotonic: Duration,
}

impl ClusterTime {
    /// Notes that an entry stamped `cluster` was applied at `monotonic`.
    pub(crate) fn applied(&self, cluster: UnixMillis, monotonic: Duration) {
        let mut anchor = self.anchor.lock();
        // Only forward: re-applying old entries after a restart must not lower the anchor.
        if anchor.is_none_or(|old| old.now(monotonic) < cluster) {
            *anchor = Some(Anchor { cluster, monotonic });
        }
    }

    /// Cluster time at `monotonic`. `first` is used when no entry was ever applied.
    pub(crate) fn now(&self, monotonic: Duration, first: UnixMillis) -> UnixMillis {
        let mut anchor = self.anchor.lock();
        anchor
            .get_or_insert(Anchor {
                cluster: first,
                monotonic,
            })
            .now(monotonic)
    }
}

impl Anchor {
    fn now(&self, monotonic: Duration) -> UnixMillis {
        let elapsed = monotonic.saturating_sub(self.monotonic).as_millis();
        UnixMillis(
            self.cluster
                .get()
                .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn advances_by_monotonic_time_from_what_was_applied() {
        let time = ClusterTime::default();
        time.applied(UnixMillis(5_000), s(10));
        assert_eq!(time.now(s(12), UnixMillis(99_000)), UnixMillis(7_000));
    }

    #[test]
    fn an_older_entry_never_runs_time_back() {
        let time = ClusterTime::default();
        time.applied(UnixMillis(5_000), s(10));
        time.applied(UnixMillis(1_000), s(11));
        assert_eq!(time.now(s(11), UnixMillis(0)), UnixMillis(6_000));
    }

    #[test]
    fn the_wall_clock_is_asked_once() {
        let time = ClusterTime::default();
        assert_eq!(time.now(s(1), UnixMillis(40_000)), UnixMillis(40_000));
        assert_eq!(time.now(s(2), UnixMillis(1)), UnixMillis(41_000));
    }
}
