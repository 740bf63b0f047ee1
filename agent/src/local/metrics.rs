//! What can be seen of the local table and of anti-entropy.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::handle::Local;
use super::store::Store;

/// Which comparison a sync was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncKind {
    /// Of everything.
    Full,
    /// Of what changed.
    Partial,
}

impl EncodeLabelValue for SyncKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Full => "full",
            Self::Partial => "partial",
        };
        word.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: SyncKind,
}

/// `type` and `outcome` of a run.
type RunLabels = [(&'static str, &'static str); 2];
/// `type` of a run.
type TypeLabels = [(&'static str, &'static str); 1];

/// Counts one waiting check for as long as it is held.
pub(super) struct Waiting(Gauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counters of the local table; clones share them.
#[derive(Clone, Debug)]
pub struct LocalMetrics {
    sync_duration: Family<KindLabel, Histogram, fn() -> Histogram>,
    sync_failures: Family<KindLabel, Counter<u64, AtomicU64>>,
    writes: Counter,
    refusals: Counter,
    check_runs: Family<RunLabels, Counter>,
    check_duration: Family<TypeLabels, Histogram, fn() -> Histogram>,
    checks_waiting: Gauge,
    ttl_expired: Counter,
    reaped: Counter,
}

impl LocalMetrics {
    pub(super) fn new() -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 4.0, 9));
        Self {
            sync_duration: Family::new_with_constructor(buckets),
            sync_failures: Family::default(),
            writes: Counter::default(),
            refusals: Counter::default(),
            check_runs: Family::default(),
            check_duration: Family::new_with_constructor(buckets),
            checks_waiting: Gauge::default(),
            ttl_expired: Counter::default(),
            reaped: Counter::default(),
        }
    }

    /// Registers everything under `weft_agent_…`, with gauges read from `local` at each scrape.
    pub fn register(&self, registry: &mut Registry, local: &Local) {
        registry.register(
            "weft_agent_sync_duration_seconds",
            "Time one anti-entropy round took",
            self.sync_duration.clone(),
        );
        registry.register(
            "weft_agent_sync_failures",
            "Anti-entropy rounds that did not bring everything into agreement",
            self.sync_failures.clone(),
        );
        registry.register(
            "weft_agent_check_runs",
            "Runs of polled checks, by type and outcome",
            self.check_runs.clone(),
        );
        registry.register(
            "weft_agent_check_duration_seconds",
            "Time one run of a polled check took",
            self.check_duration.clone(),
        );
        registry.register(
            "weft_agent_checks_waiting",
            "Checks that are due but wait until fewer are running",
            self.checks_waiting.clone(),
        );
        let counters = [
            (
                "weft_agent_sync_writes",
                "Catalog writes made by anti-entropy",
                &self.writes,
            ),
            (
                "weft_agent_sync_refusals",
                "Catalog writes of anti-entropy that were refused",
                &self.refusals,
            ),
            (
                "weft_agent_check_ttl_expired",
                "TTL checks that were not refreshed in time",
                &self.ttl_expired,
            ),
            (
                "weft_agent_services_reaped",
                "Services deregistered after being critical for too long",
                &self.reaped,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register_collector(Box::new(Gauges(local.clone())));
    }

    pub(super) fn synced(&self, kind: SyncKind, took: Duration, ok: bool) {
        self.sync_duration
            .get_or_create(&KindLabel { kind })
            .observe(took.as_secs_f64());
        if !ok {
            self.sync_failures.get_or_create(&KindLabel { kind }).inc();
        }
    }

    pub(super) fn wrote(&self) {
        self.writes.inc();
    }

    pub(super) fn refused(&self) {
        self.refusals.inc();
    }

    pub(super) fn ran_check(&self, type_name: &'static str, outcome: &'static str, took: Duration) {
        let labels = [("type", type_name), ("outcome", outcome)];
        self.check_runs.get_or_create(&labels).inc();
        self.check_duration
            .get_or_create(&[("type", type_name)])
            .observe(took.as_secs_f64());
    }

    /// A check is due; it waits until the answer is dropped.
    pub(super) fn check_waits(&self) -> Waiting {
        self.checks_waiting.inc();
        Waiting(self.checks_waiting.clone())
    }

    pub(super) fn expired(&self) {
        self.ttl_expired.inc();
    }

    pub(super) fn reaped(&self) {
        self.reaped.inc();
    }
}

struct Gauges(Local);

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self.0.counts();
        let gauge = |n: usize| ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
        let totals = [
            (
                "weft_agent_services",
                "Services registered on this host",
                counts.services,
            ),
            (
                "weft_agent_out_of_sync",
                "Entries the catalog does not have as this host does",
                counts.out_of_sync,
            ),
            (
                "weft_agent_held_entries",
                "Catalog entries kept because this host lost its registrations",
                counts.held,
            ),
        ];
        for (name, help, total) in totals {
            let metric = gauge(total);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let (changes, syncs) = self.0.inner.store.as_ref().map_or((0, 0), Store::written);
        let written = [
            (
                "weft_agent_store_changes",
                "Registrations and check states written to this host's log",
                changes,
            ),
            (
                "weft_agent_store_syncs",
                "Syncs of that log; changes that wait together share one",
                syncs,
            ),
        ];
        for (name, help, total) in written {
            let metric = ConstCounter::new(total);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let by_status = [
            ("passing", counts.passing),
            ("warning", counts.warning),
            ("critical", counts.critical),
        ];
        let mut family = encoder.encode_descriptor(
            "weft_agent_checks",
            "Checks registered on this host",
            None,
            MetricType::Gauge,
        )?;
        for (status, count) in by_status {
            gauge(count).encode(family.encode_family(&[("status", status)])?)?;
        }
        Ok(())
    }
}
