//! What the streams count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles of the streams' metrics. A clone counts into the same.
#[derive(Clone, Default)]
pub struct SubscribeMetrics {
    pub(super) streams: Gauge,
    pub(super) topics: Gauge,
    pub(super) looks: Counter,
    pub(super) bytes: Counter,
    sent: Family<Sent, Counter>,
    refused: Family<Reason, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Sent {
    what: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl SubscribeMetrics {
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// `what`: `whole`, `change` or `unchanged`.
    pub(super) fn sent(&self, what: &'static str) {
        self.sent.get_or_create(&Sent { what }).inc();
    }

    /// Adds them to `registry`; once.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_subscribe_streams",
            "Agents whose views this server serves",
            self.streams.clone(),
        );
        registry.register(
            "weft_subscribe_topics",
            "Topics of these views, each counted once",
            self.topics.clone(),
        );
        registry.register(
            "weft_subscribe_looks",
            "Times that a topic was read again because something it depends on changed",
            self.looks.clone(),
        );
        registry.register(
            "weft_subscribe_sent",
            "Answers to agents about a topic, by what they were: whole, change, unchanged",
            self.sent.clone(),
        );
        registry.register(
            "weft_subscribe_sent_bytes",
            "Bytes of views sent to agents",
            self.bytes.clone(),
        );
        registry.register(
            "weft_subscribe_refused",
            "Streams and topics refused, by reason",
            self.refused.clone(),
        );
    }
}
