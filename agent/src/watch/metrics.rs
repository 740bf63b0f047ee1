//! What can be seen of the watches of the configuration.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// `handler` and `outcome` of a run.
type RunLabels = [(&'static str, &'static str); 2];

/// Counters of the watches; clones share them.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    pub(super) running: Gauge,
    pub(super) runs: Family<RunLabels, Counter>,
    pub(super) failures: Counter,
}

impl WatchMetrics {
    /// Registers everything under `weft_watch_…`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_watch_running",
            "Watches of the configuration",
            self.running.clone(),
        );
        registry.register(
            "weft_watch_handler_runs",
            "Runs of watch handlers, by handler and outcome",
            self.runs.clone(),
        );
        registry.register(
            "weft_watch_failures",
            "Answers a watch could not use; it asks again",
            self.failures.clone(),
        );
    }
}
