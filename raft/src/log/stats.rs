//! Counters of a log store, ready to be exported.
//!
//! Owns: what was written, how often it was synced and how long that took.
//! Never: names a metric or a label; the metrics part maps these.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram of fsync times, in microseconds; one more bucket takes the rest.
pub const FSYNC_BOUNDS_MICROS: [u64; 14] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600,
    1_638_400,
];

/// Upper bounds of the histogram of batch sizes, in queued calls; one more bucket takes the rest.
pub const BATCH_BOUNDS_CALLS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Live counters. Shared between the store and whoever exports them.
#[derive(Debug, Default)]
pub struct LogStats {
    fsyncs: AtomicU64,
    written_bytes: AtomicU64,
    body_bytes: AtomicU64,
    entries: AtomicU64,
    batches: AtomicU64,
    calls: AtomicU64,
    fsync_micros: AtomicU64,
    fsync_buckets: [AtomicU64; 15],
    batch_buckets: [AtomicU64; 10],
    disk_bytes: AtomicU64,
}

/// One reading of [`LogStats`]. Counters count from the opening of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsReading {
    /// fsync and fdatasync calls.
    pub fsyncs: u64,
    /// Bytes handed to the disk, padding included.
    pub written_bytes: u64,
    /// Bytes of entry bodies made durable; `written_bytes / body_bytes` is the write amplification.
    pub body_bytes: u64,
    /// Entries made durable.
    pub entries: u64,
    /// Batches, each made durable together.
    pub batches: u64,
    /// Queued calls those batches held.
    pub calls: u64,
    /// Time spent in fsync, in microseconds.
    pub fsync_micros: u64,
    /// fsync calls by duration, per [`FSYNC_BOUNDS_MICROS`], not cumulated.
    pub fsync_buckets: [u64; 15],
    /// Batches by number of calls, per [`BATCH_BOUNDS_CALLS`], not cumulated.
    pub batch_buckets: [u64; 10],
    /// Bytes the store's files take now.
    pub disk_bytes: u64,
}

impl LogStats {
    /// The values now. Counters are read one by one, so they may be a batch apart.
    #[must_use]
    pub fn reading(&self) -> StatsReading {
        StatsReading {
            fsyncs: self.fsyncs.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            body_bytes: self.body_bytes.load(Relaxed),
            entries: self.entries.load(Relaxed),
            batches: self.batches.load(Relaxed),
            calls: self.calls.load(Relaxed),
            fsync_micros: self.fsync_micros.load(Relaxed),
            fsync_buckets: std::array::from_fn(|i| self.fsync_buckets[i].load(Relaxed)),
            batch_buckets: std::array::from_fn(|i| self.batch_buckets[i].load(Relaxed)),
            disk_bytes: self.disk_bytes.load(Relaxed),
        }
    }

    pub(super) fn synced(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.fsyncs.fetch_add(1, Relaxed);
        self.fsync_micros.fetch_add(micros, Relaxed);
        self.fsync_buckets[bucket(&FSYNC_BOUNDS_MICROS, micros)].fetch_add(1, Relaxed);
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn committed_batch(&self, calls: u64, entries: u64, body_bytes: u64) {
        self.batches.fetch_add(1, Relaxed);
        self.calls.fetch_add(calls, Relaxed);
        self.entries.fetch_add(entries, Relaxed);
        self.body_bytes.fetch_add(body_bytes, Relaxed);
        self.batch_buckets[bucket(&BATCH_BOUNDS_CALLS, calls)].fetch_add(1, Relaxed);
    }

    pub(super) fn set_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.store(bytes, Relaxed);
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Relaxed)
    }
}

fn bucket(bounds: &[u64], value: u64) -> usize {
    bounds
        .iter()
        .position(|bound| value <= *bound)
        .unwrap_or(bounds.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        for (value, expected) in [(0, 0), (50, 0), (51, 1), (1_638_400, 13), (1_638_401, 14)] {
            assert_eq!(bucket(&FSYNC_BOUNDS_MICROS, value), expected, "{value} us");
        }
    }
}
