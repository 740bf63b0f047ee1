//! Log-scale histograms with the interface that openraft uses for its own statistics.
//!
//! Owns: counts per power of two with four steps each, percentiles from them.
//! Never: builds tables: the crate it stands in for keeps 26 MB of them in every process
//! (`docs/adr/0008-small-histograms.md`).

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// Steps per power of two: a value is known to within a quarter of itself.
const STEPS_PER_DOUBLING: usize = 4;
/// Values 0 to 3 have a bucket each, every doubling from 4 to 2^63 has four.
const BUCKETS: usize = STEPS_PER_DOUBLING + 62 * STEPS_PER_DOUBLING;

/// How often values of each size were seen. `T` is unused here; openraft leaves it at `()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Grows to the highest bucket that was ever used.
    counts: Vec<u64>,
    total: u64,
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// One without values.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: Vec::new(),
            total: 0,
            data: PhantomData,
        }
    }

    /// Counts `value` once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = bucket_of(value);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
        self.total = self.total.saturating_add(count);
    }

    /// Values counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The smallest value of the bucket below which `fraction` (0 to 1) of the values lie; 0 without values.
    #[must_use]
    pub fn percentile(&self, fraction: f64) -> u64 {
        let rank = ((self.total as f64) * fraction.clamp(0.0, 1.0))
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return lowest_of(bucket);
            }
        }
        0
    }

    /// The usual percentiles at once.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.10),
            p50: self.percentile(0.50),
            p90: self.percentile(0.90),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

fn bucket_of(value: u64) -> usize {
    let Some(exponent) = value.checked_ilog2().filter(|exponent| *exponent >= 2) else {
        return usize::try_from(value).unwrap_or(0);
    };
    let step = (value >> (exponent - 2)) & 0b11;
    let bucket = STEPS_PER_DOUBLING * (exponent as usize - 1) + usize::try_from(step).unwrap_or(0);
    bucket.min(BUCKETS - 1)
}

fn lowest_of(bucket: usize) -> u64 {
    if bucket < STEPS_PER_DOUBLING {
        return bucket as u64;
    }
    let exponent = bucket / STEPS_PER_DOUBLING + 1;
    let step = (bucket % STEPS_PER_DOUBLING) as u64;
    (STEPS_PER_DOUBLING as u64 + step) << (exponent - 2)
}

/// Percentiles of a [`Histogram`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "p<percent>: that percentile; samples: values counted"
)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "n={} p1={} p50={} p90={} p99={} p99.9={}",
            self.samples, self.p1, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Several histograms as lines of text, one each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    rows: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// One without rows.
    #[must_use]
    pub const fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((name.into(), histogram));
        self
    }

    /// The text; there is one level of detail.
    #[must_use]
    pub fn detailed(&self) -> String {
        let line = |(name, histogram): &(String, Histogram)| {
            format!("{name}: {}\n", histogram.percentile_stats())
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_at_its_lowest_value_and_values_fall_within_a_quarter() {
        for value in (0..10_000).chain([1 << 40, u64::MAX / 3, u64::MAX]) {
            let lowest = lowest_of(bucket_of(value));
            assert!(lowest <= value, "{value} in a bucket from {lowest}");
            assert!(
                value - lowest <= lowest / 4,
                "{value} too far from {lowest}"
            );
            assert_eq!(bucket_of(lowest), bucket_of(value));
        }
    }

    #[test]
    fn percentiles_follow_the_counts() {
        let mut histogram: Histogram = Histogram::new();
        assert_eq!(histogram.percentile(0.5), 0);
        histogram.record_n(1, 90);
        histogram.record_n(1_000, 10);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p90), (100, 1, 1));
        assert_eq!(stats.p99, 896);
    }

    #[test]
    fn it_stays_small() {
        let mut histogram: Histogram = Histogram::new();
        histogram.record(u64::MAX);
        assert!(histogram.counts.len() <= BUCKETS);
    }
}
