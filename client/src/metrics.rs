//! Counters of the client role.
//!
//! Owns: handles, registered once. Never: a label that a user can choose.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles of the client role's metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Family<KindLabel, Counter>,
    failures: Family<ReasonLabel, Counter>,
    dial_failures: Family<ReasonLabel, Counter>,
    pub(crate) retries: Counter,
    pub(crate) rebalances: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) servers: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_rpc_client_calls",
            "Calls to the servers, by kind: forwarded HTTP, or typed",
            self.calls.clone(),
        );
        registry.register(
            "weft_rpc_client_failures",
            "Calls that brought no answer, by reason",
            self.failures.clone(),
        );
        registry.register(
            "weft_rpc_client_dial_failures",
            "Connections to servers that were not made, by reason",
            self.dial_failures.clone(),
        );
        registry.register(
            "weft_rpc_client_retries",
            "Times a call was sent to another server, or again",
            self.retries.clone(),
        );
        registry.register(
            "weft_rpc_client_rebalances",
            "Times another order of the servers was chosen",
            self.rebalances.clone(),
        );
        registry.register(
            "weft_rpc_client_in_flight",
            "Calls on their way",
            self.in_flight.clone(),
        );
        registry.register(
            "weft_rpc_client_connections",
            "Connections to servers that take calls",
            self.connections.clone(),
        );
        registry.register(
            "weft_rpc_client_servers",
            "Servers known",
            self.servers.clone(),
        );
    }

    pub(crate) fn call(&self, kind: &'static str) {
        self.calls.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn dial_failed(&self, reason: &'static str) {
        self.dial_failures
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }
}
