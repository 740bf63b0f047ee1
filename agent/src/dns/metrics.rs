//! Counters of the DNS port: by answer code, and every empty answer by its cause.

use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Why a name has no answer. The text is the stable reason id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    UnknownNode,
    UnknownService,
    UnknownQuery,
    UnknownAddress,
    UnknownDatacenter,
    NoSuchTag,
    NoSuchPort,
    NotInMesh,
    NothingHealthy,
    NotAName,
    NoSuchType,
    Foreign,
    NoView,
    NotSendable,
    RecursorsFailed,
    RecursionsMax,
    RecursionsOfClient,
    RecursionLoop,
}

impl Cause {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::UnknownNode => "dns.unknown_node",
            Self::UnknownService => "dns.unknown_service",
            Self::UnknownQuery => "dns.unknown_query",
            Self::UnknownAddress => "dns.unknown_address",
            Self::UnknownDatacenter => "dns.unknown_datacenter",
            Self::NoSuchTag => "dns.no_such_tag",
            Self::NoSuchPort => "dns.no_such_port",
            Self::NotInMesh => "dns.not_in_mesh",
            Self::NothingHealthy => "dns.nothing_healthy",
            Self::NotAName => "dns.not_a_name",
            Self::NoSuchType => "dns.no_such_type",
            Self::Foreign => "dns.foreign_name",
            Self::NoView => "dns.no_view",
            Self::NotSendable => "dns.not_sendable",
            Self::RecursorsFailed => "dns.recursors_failed",
            Self::RecursionsMax => "dns.recursions_max",
            Self::RecursionsOfClient => "dns.recursions_of_client",
            Self::RecursionLoop => "dns.recursion_loop",
        }
    }
}

/// What came of asking one recursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// An answer code other than NOERROR and NXDOMAIN.
    Refused,
    Unreachable,
    TimedOut,
    /// A UDP answer with TC: asked again by TCP.
    Cut,
    /// A packet that answers another question.
    Stray,
}

impl Outcome {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Cut => "cut",
            Self::Stray => "stray",
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

/// Handles of the DNS metrics.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    queries: Family<RcodeLabel, Counter>,
    empty: Family<CauseLabel, Counter>,
    refused: Family<CauseLabel, Counter>,
    malformed: Family<CauseLabel, Counter>,
    recursors: Family<OutcomeLabel, Counter>,
    durations: Family<TypeLabel, Histogram, fn() -> Histogram>,
    pub(crate) truncated: Counter,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            queries: Family::default(),
            empty: Family::default(),
            refused: Family::default(),
            malformed: Family::default(),
            recursors: Family::default(),
            durations: Family::new_with_constructor(durations),
            truncated: Counter::default(),
        }
    }
}

/// 20 µs to 5 s: from an answer out of memory to a recursor that has to ask around.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.00002, 4.0, 10))
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
            "weft_dns_query_duration_seconds",
            "Time from a question to its answer, by record type",
            self.durations.clone(),
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
            "Packets that are no question to answer, by reason",
            self.malformed.clone(),
        );
        registry.register(
            "weft_dns_recursor_questions",
            "Questions to recursors, by outcome",
            self.recursors.clone(),
        );
    }

    pub(crate) fn answered(&self, rcode: &'static str) {
        self.queries.get_or_create(&RcodeLabel { rcode }).inc();
    }

    pub(crate) fn took(&self, kind: RecordType, time: Duration) {
        let label = TypeLabel {
            r#type: type_label(kind),
        };
        self.durations
            .get_or_create(&label)
            .observe(time.as_secs_f64());
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&CauseLabel { reason }).inc();
    }

    pub(crate) fn malformed(&self, reason: &'static str) {
        self.malformed.get_or_create(&CauseLabel { reason }).inc();
    }

    pub(crate) fn recursor(&self, outcome: Outcome) {
        let outcome = outcome.label();
        self.recursors
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    pub(crate) fn empty(&self, cause: Cause) {
        self.empty
            .get_or_create(&CauseLabel {
                reason: cause.reason(),
            })
            .inc();
    }
}

/// A small set: whoever asks for unheard-of types makes no new series.
fn type_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "a",
        RecordType::AAAA => "aaaa",
        RecordType::ANY => "any",
        RecordType::CNAME => "cname",
        RecordType::NS => "ns",
        RecordType::PTR => "ptr",
        RecordType::SOA => "soa",
        RecordType::SRV => "srv",
        RecordType::TXT => "txt",
        _ => "other",
    }
}
