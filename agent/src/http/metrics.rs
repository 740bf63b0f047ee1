//! What the HTTP API counts.
//!
//! Owns: the `weft_http_*` metrics; a series of requests is shown from its first request on.
//! Never: shows them; [`super::telemetry`] does.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::push::Pushes;
use super::route::Route;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    route: &'static str,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Bound {
    bound: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    limit: &'static str,
    mode: &'static str,
}

/// Handles to the metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    requests: Family<Labels, Counter>,
    seconds: Family<Asked, Counter<f64, AtomicU64>>,
    table: &'static [Route],
    /// Handles of series that have been counted, so that the family's lock is taken once for each.
    by_route: Vec<[OnceLock<Counter>; CLASSES.len()]>,
    unknown: [OnceLock<Counter>; CLASSES.len()],
    seconds_by_route: Vec<OnceLock<Counter<f64, AtomicU64>>>,
    in_flight: Gauge,
    waiting: Gauge,
    pub(super) connections: Gauge,
    refused: Family<Bound, Counter>,
    limited: Family<Limited, Counter>,
    pub(super) pushes: Pushes,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry, table: &'static [Route]) -> Self {
        let requests = Family::<Labels, Counter>::default();
        let metrics = Self {
            requests: requests.clone(),
            seconds: Family::default(),
            seconds_by_route: table.iter().map(|_| OnceLock::new()).collect(),
            table,
            by_route: table
                .iter()
                .map(|_| CLASSES.map(|_| OnceLock::new()))
                .collect(),
            unknown: CLASSES.map(|_| OnceLock::new()),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            connections: Gauge::default(),
            refused: Family::default(),
            limited: Family::default(),
            pushes: Pushes::default(),
        };
        registry.register(
            "weft_http_requests",
            "Requests answered, by route and class of status",
            requests,
        );
        registry.register(
            "weft_http_request_duration_seconds",
            "Time from a request's head to its answer, waits included, by route",
            metrics.seconds.clone(),
        );
        registry.register(
            "weft_http_requests_in_flight",
            "Requests being answered",
            metrics.in_flight.clone(),
        );
        registry.register(
            "weft_http_blocking_queries",
            "Requests waiting for a change",
            metrics.waiting.clone(),
        );
        registry.register(
            "weft_http_connections",
            "Open connections",
            metrics.connections.clone(),
        );
        registry.register(
            "weft_http_connections_refused",
            "Connections refused at a bound",
            metrics.refused.clone(),
        );
        registry.register(
            "weft_telemetry_pushes",
            "Rounds of metrics sent to statsd, statsite or dogstatsd",
            metrics.pushes.clone(),
        );
        registry.register(
            "weft_http_rate_limited",
            "Requests beyond a rate, by limit; mode permissive lets them pass",
            metrics.limited.clone(),
        );
        metrics
    }

    /// Counts a request as in flight until the answer is dropped.
    pub(super) fn enter(&self) -> Flight {
        Flight::of(&self.in_flight)
    }

    /// Counts an answer, and how long it took.
    pub(super) fn count(&self, route: Option<usize>, status: StatusCode, took: Duration) {
        if let Some(at) = route {
            let make = || {
                let (method, route) = (self.table[at].method.as_str(), self.table[at].path);
                self.seconds.get_or_create(&Asked { method, route }).clone()
            };
            let seconds = self.seconds_by_route[at].get_or_init(make);
            seconds.inc_by(took.as_secs_f64());
        }
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let series = &route.map_or(&self.unknown, |at| &self.by_route[at])[class];
        let make = || {
            let (method, route) = route.map_or(("other", "other"), |at| {
                (self.table[at].method.as_str(), self.table[at].path)
            });
            let class = CLASSES[class];
            let labels = Labels {
                method,
                route,
                class,
            };
            self.requests.get_or_create(&labels).clone()
        };
        series.get_or_init(make).inc();
    }

    /// The gauge of requests that wait for a change.
    pub(super) fn waiting(&self) -> Gauge {
        self.waiting.clone()
    }

    /// Counts a request beyond a rate.
    pub(super) fn limit(&self, limit: &'static str, enforced: bool) {
        let mode = if enforced { "enforcing" } else { "permissive" };
        self.limited.get_or_create(&Limited { limit, mode }).inc();
    }

    pub(super) fn refuse(&self, bound: &'static str) {
        self.refused.get_or_create(&Bound { bound }).inc();
    }
}

/// Something that is counted as long as it lives.
#[derive(Debug)]
pub(super) struct Flight {
    gauge: Gauge,
}

impl Flight {
    pub(super) fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self {
            gauge: gauge.clone(),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
