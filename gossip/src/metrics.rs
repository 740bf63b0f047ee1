//! Counters of the pool; `agent` registers them under `weft_gossip_*`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::keyring::FrameError;

/// A counter or gauge that many tasks may touch.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All figures of one pool. Counters unless said otherwise.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Datagrams sent.
    pub packets_sent: Cell,
    /// Bytes in them.
    pub bytes_sent: Cell,
    /// Datagrams received.
    pub packets_received: Cell,
    /// Bytes in them.
    pub bytes_received: Cell,
    /// Datagrams the system refused to send.
    pub send_failures: Cell,
    /// Frames (datagram or TCP) dropped because no key here opens them.
    pub decrypt_failures: Cell,
    /// Frames dropped because they were clear text and a key is required.
    pub clear_refused: Cell,
    /// Frames dropped because they were sealed and no key is set here.
    pub sealed_refused: Cell,
    /// Bytes sent over TCP.
    pub stream_bytes_sent: Cell,
    /// Bytes received over TCP.
    pub stream_bytes_received: Cell,
    /// TCP connections closed because nothing came over them.
    pub half_open: Cell,
    /// Gauge: what this node thinks of itself, 0 is well, 8 the worst.
    pub health_score: Cell,
    /// Times this node found that it had been asleep or starved.
    pub late_turns: Cell,
    /// Gauge: suspects this node knows of.
    pub suspects: Cell,
    /// Frames of another datacenter dropped.
    pub foreign_datacenter: Cell,
    /// Frames that were not understood.
    pub malformed: Cell,
    /// News refused because `members_max` was reached.
    pub members_refused: Cell,
    /// Full state exchanges that ended well.
    pub syncs: Cell,
    /// Full state exchanges that failed.
    pub sync_failures: Cell,
    /// TCP connections refused because too many were open.
    pub sync_refused: Cell,
    /// Two live nodes claimed one name.
    pub name_conflicts: Cell,
    /// User events fired here.
    pub events_fired: Cell,
    /// User events refused here: too large, or too many at a time.
    pub events_refused: Cell,
    /// User events heard, our own included.
    pub events_heard: Cell,
    /// User events dropped because they came too late to tell whether they had been heard.
    pub events_late: Cell,
    /// User events that a slow consumer on this node missed.
    pub events_missed: Cell,
    /// Probes that moved this member's coordinate.
    pub coordinate_updates: Cell,
    /// Probes or coordinates of others that could not be true.
    pub coordinate_refused: Cell,
    /// Times this member's coordinate began anew.
    pub coordinate_resets: Cell,
    /// Gauge: notices that wait to be sent, events among them.
    pub notices_waiting: Cell,
    /// Gauge: milliseconds that the clock of some member certainly differs from ours, the most of all.
    pub clock_skew_millis: Cell,
    /// Gauge: members alive.
    pub members_alive: Cell,
    /// Gauge: members leaving.
    pub members_leaving: Cell,
    /// Gauge: members left.
    pub members_left: Cell,
    /// Gauge: members failed.
    pub members_failed: Cell,
}

impl Metrics {
    /// Counts a frame that was dropped, by its cause.
    pub(crate) fn refused(&self, error: FrameError) {
        match error {
            FrameError::Foreign => self.foreign_datacenter.add(1),
            FrameError::Malformed => self.malformed.add(1),
            FrameError::Clear => self.clear_refused.add(1),
            FrameError::Sealed => self.sealed_refused.add(1),
            FrameError::Decrypt => self.decrypt_failures.add(1),
        }
    }
}
