//! Counters of the DNS port: by answer code, and every empty answer by its cause.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why a name has no answer. The text is the stable reason id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    UnknownNode,
    UnknownService,
    UnknownAddress,
    UnknownDatacenter,
    NoSuchTag,
    NothingHealthy,
    NotAName,
    NoSuchType,
    Foreign,
    NoView,
    NotSendable,
}

impl Cause {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::UnknownNode => "dns.unknown_node",
            Self::UnknownService => "dns.unknown_service",
            Self::UnknownAddress => "dns.unknown_address",
            Self::UnknownDatacenter => "dns.unknown_datacenter",
            Self::NoSuchTag => "dns.no_such_tag",
            Self::NothingHealthy => "dns.nothing_healthy",
            Self::NotAName => "dns.not_a_name",
            Self::NoSuchType => "dns.no_such_type",
            Self::Foreign => "dns.foreign_name",
            Self::NoView => "dns.no_view",
            Self::NotSendable => "dns.not_sendable",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RcodeLabel {
    rcode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    reason: &'static str,
}

/// Handles of the DNS metrics.
#[derive(Clone, Debug, Default)]
pub struct DnsMetrics {
    queries: Family<RcodeLabel, Counter>,
    empty: Family<CauseLabel, Counter>,
    refused: Family<CauseLabel, Counter>,
    pub(crate) truncated: Counter,
    pub(crate) malformed: Counter,
}

impl DnsMetrics {
    /// Adds every metric of the DNS port to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_dns_queries",
            "Questions answered, by response code",
            self.queries.clone(),
        );
        registry.register(
            "weft_dns_empty_answers",
            "Answers without the records asked for, by cause",
            self.empty.clone(),
        );
        registry.register(
            "weft_dns_refused_connections",
            "TCP connections closed at a bound, by reason",
            self.refused.clone(),
        );
        registry.register(
            "weft_dns_truncated",
            "Answers cut to fit the transport",
            self.truncated.clone(),
        );
        registry.register(
            "weft_dns_malformed",
            "Packets that are no DNS message",
            self.malformed.clone(),
        );
    }

    pub(crate) fn answered(&self, rcode: &'static str) {
        self.queries.get_or_create(&RcodeLabel { rcode }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&CauseLabel { reason }).inc();
    }

    pub(crate) fn empty(&self, cause: Cause) {
        self.empty
            .get_or_create(&CauseLabel {
                reason: cause.reason(),
            })
            .inc();
    }
}
