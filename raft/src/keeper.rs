//! Decides when to snapshot and what to purge.
//!
//! Owns: both triggers; openraft's own policies are off.
//! Never: purges an entry that is not applied with room to spare: openraft's
//! core panics when a purge passes an apply it has queued (issue 2116).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{MissedTickBehavior, interval};

use crate::applier::Progress;
use crate::config::RaftConfig;
use crate::log::{LogStore, LogUsage};
use crate::net::Raft;
use crate::status::Metrics;
use crate::types::{LogId, Types};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Applied entries never purged, whatever the byte cap says.
const MARGIN_ENTRIES: u64 = 256;
/// A purge is a write of its own; fewer entries are not worth it.
const PURGE_ENTRIES_MIN: u64 = 512;
/// A snapshot asked for and not there after this many looks (5 minutes) is asked for again.
const LOOKS_MAX: u32 = 1_500;

/// The figures a decision rests on. Indexes are "one past", so that 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct View {
    committed_next: u64,
    applied_next: u64,
    snapshot_next: u64,
    purged_next: u64,
    bytes_since_snapshot: u64,
    usage: LogUsage,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    snapshot_entries: u64,
    snapshot_bytes: u64,
    trailing_entries: u64,
    trailing_bytes: u64,
}

impl Limits {
    /// A snapshot is due, and the state machine is near enough to the log's end to take it.
    fn wants_snapshot(&self, view: &View) -> bool {
        let since = view.applied_next.saturating_sub(view.snapshot_next);
        let lag = view.committed_next.saturating_sub(view.applied_next);
        let due = since >= self.snapshot_entries
            || (since > 0 && view.bytes_since_snapshot >= self.snapshot_bytes);
        due && lag <= self.trailing_entries / 2
    }

    /// Last index to purge, if it is worth a purge.
    fn purge_up_to(&self, view: &View) -> Option<u64> {
        let body_average = view
            .usage
            .body_bytes
            .checked_div(view.usage.entries)
            .unwrap_or(0)
            .max(1);
        let by_bytes = self.trailing_bytes / body_average;
        let kept = self.trailing_entries.min(by_bytes).max(MARGIN_ENTRIES);
        let end = view
            .applied_next
            .saturating_sub(kept)
            .min(view.snapshot_next);
        (end >= view.purged_next + PURGE_ENTRIES_MIN.min(kept)).then(|| end - 1)
    }
}

/// Looks after the log until Raft ends.
pub(crate) async fn keep(
    raft: Raft,
    config: RaftConfig,
    store: Arc<dyn LogStore>,
    progress: Arc<Progress>,
) {
    let limits = Limits {
        snapshot_entries: config.snapshot_entries,
        snapshot_bytes: config.snapshot_bytes,
        trailing_entries: config.trailing_entries,
        trailing_bytes: config.trailing_bytes,
    };
    let metrics = raft.metrics();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Looks left to wait for the snapshot of (at least) this index.
    let mut building: Option<(u64, u32)> = None;
    loop {
        tick.tick().await;
        let view = look(&metrics, store.as_ref(), &progress);
        building = building
            .filter(|(from, looks)| view.snapshot_next < *from && *looks > 0)
            .map(|(from, looks)| (from, looks - 1));
        if building.is_none() && limits.wants_snapshot(&view) {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            building = Some((view.applied_next, LOOKS_MAX));
        }
        if let Some(up_to) = limits.purge_up_to(&view)
            && raft.trigger().purge_log(up_to).await.is_err()
        {
            return;
        }
    }
}

fn look(
    metrics: &openraft::alias::WatchReceiverOf<Types, Metrics>,
    store: &dyn LogStore,
    progress: &Progress,
) -> View {
    let metrics = metrics.borrow_watched();
    let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
    View {
        committed_next: next(metrics.cluster_committed.max(metrics.local_committed)),
        applied_next: next(metrics.last_applied),
        snapshot_next: next(metrics.snapshot),
        purged_next: next(metrics.purged),
        bytes_since_snapshot: progress.bytes_since_snapshot.load(Ordering::Relaxed),
        usage: store.usage(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        snapshot_entries: 1_000,
        snapshot_bytes: 1 << 20,
        trailing_entries: 600,
        trailing_bytes: 600_000,
    };

    fn view(applied_next: u64, snapshot_next: u64) -> View {
        View {
            committed_next: applied_next,
            applied_next,
            snapshot_next,
            ..View::default()
        }
    }

    #[test]
    fn snapshots_are_due_by_entries_or_bytes_but_not_while_applying_lags() {
        assert!(!LIMITS.wants_snapshot(&view(1_999, 1_000)));
        assert!(LIMITS.wants_snapshot(&view(2_000, 1_000)));
        assert!(LIMITS.wants_snapshot(&View {
            bytes_since_snapshot: 1 << 20,
            ..view(1_001, 1_000)
        }));
        assert!(!LIMITS.wants_snapshot(&View {
            bytes_since_snapshot: 1 << 20,
            ..view(1_000, 1_000)
        }));
        assert!(!LIMITS.wants_snapshot(&View {
            committed_next: 2_301,
            ..view(2_000, 1_000)
        }));
    }

    #[test]
    fn a_purge_stays_behind_snapshot_and_tail() {
        assert_eq!(LIMITS.purge_up_to(&view(5_000, 0)), None);
        assert_eq!(LIMITS.purge_up_to(&view(5_000, 5_000)), Some(4_399));
        assert_eq!(LIMITS.purge_up_to(&view(5_000, 3_000)), Some(2_999));
        let purged = View {
            purged_next: 4_399,
            ..view(5_000, 5_000)
        };
        assert_eq!(
            LIMITS.purge_up_to(&purged),
            None,
            "one entry is not worth a purge"
        );
    }

    #[test]
    fn bytes_shorten_the_tail_down_to_the_margin() {
        let usage = |average: u64| LogUsage {
            disk_bytes: 0,
            body_bytes: average * 100,
            entries: 100,
        };
        let with = |average| {
            LIMITS.purge_up_to(&View {
                usage: usage(average),
                ..view(5_000, 5_000)
            })
        };
        assert_eq!(with(2_000), Some(5_000 - 300 - 1));
        assert_eq!(with(1_000_000), Some(5_000 - MARGIN_ENTRIES - 1));
    }
}
