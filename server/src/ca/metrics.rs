//! Counters of the CA.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles; counted where the leader is.
#[derive(Default)]
pub(crate) struct CaMetrics {
    pub(crate) signed: Counter,
    refused: Family<ReasonLabel, Counter>,
    pub(crate) rotations: Counter,
    pub(crate) root_expires_seconds: Gauge,
    pub(crate) roots: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl CaMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_ca_leaves_signed",
            "Leaves that this server's CA signed",
            self.signed.clone(),
        );
        registry.register(
            "weft_ca_refused",
            "Requests that this server's CA refused, by reason",
            self.refused.clone(),
        );
        registry.register(
            "weft_ca_rotations",
            "Roots that this server put in the place of another",
            self.rotations.clone(),
        );
        registry.register(
            "weft_ca_root_expires_seconds",
            "Time until the active root expires, on the leader; 0 elsewhere",
            self.root_expires_seconds.clone(),
        );
        registry.register(
            "weft_ca_roots",
            "Roots that are trusted, on the leader; 0 elsewhere",
            self.roots.clone(),
        );
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}
