//! Metrics under the names that Consul's dashboards and alerts ask for.
//!
//! Owns: the one table from weft's names to Consul's, and the few figures that have no weft metric.
//! Never: measures; what weft does not measure has no name here.
//! Source: Consul docs, "Telemetry"; CONSUL.md D.9.

use std::borrow::Cow;

use weft_catalog::State;
use weft_proto::json::Json;

use super::api::Api;
use super::telemetry::Sample;
use crate::backend::MemberStatus;

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Figure {
    /// What holds now.
    Gauge(f64),
    /// A total since the start.
    Counter(f64),
    /// How many there were, and all their milliseconds.
    Timer {
        /// How many.
        count: f64,
        /// Milliseconds in all.
        sum: f64,
    },
}

/// One figure under Consul's dotted name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    name: Cow<'static, str>,
    labels: Vec<(&'static str, String)>,
    figure: Figure,
}

/// How a weft metric becomes Consul's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Gauge,
    Counter,
    /// A histogram of seconds.
    Timer,
}

/// Which of a weft metric's series count: those with this label, or without it.
#[derive(Clone, Copy, Debug)]
enum Series {
    All,
    With(&'static str, &'static str),
    Without(&'static str, &'static str),
}

use Series::{All, With, Without};
use Shape::{Counter, Gauge, Timer};

/// weft's name, which of its series, their sum under Consul's name.
#[rustfmt::skip]
const TABLE: &[(&str, Series, Shape, &str)] = &[
    ("weft_raft_is_leader", All, Gauge, "consul.server.isLeader"),
    ("weft_raft_commit_duration_seconds", All, Timer, "consul.raft.commitTime"),
    ("weft_raft_apply_duration_seconds", All, Timer, "consul.raft.fsm.apply"),
    ("weft_raft_proposals", All, Counter, "consul.raft.apply"),
    ("weft_raft_elections", All, Counter, "consul.raft.state.candidate"),
    ("weft_raft_read_rounds", All, Counter, "consul.raft.verify_leader"),
    ("weft_raft_connections_accepted", All, Counter, "consul.rpc.accept_conn"),
    ("weft_catalog_rows", With("table", "nodes"), Gauge, "consul.state.nodes"),
    ("weft_catalog_rows", With("table", "services"), Gauge, "consul.state.services"),
    ("weft_catalog_rows", With("table", "service_instances"), Gauge, "consul.state.service_instances"),
    ("weft_catalog_rows", With("table", "kv_entries"), Gauge, "consul.state.kv_entries"),
    ("weft_catalog_rows", With("table", "config_entries"), Gauge, "consul.state.config_entries"),
    ("weft_http_blocking_queries", All, Gauge, "consul.rpc.queries_blocking"),
    ("weft_dns_query_duration_seconds", Without("type", "PTR"), Timer, "consul.dns.domain_query"),
    ("weft_dns_query_duration_seconds", With("type", "PTR"), Timer, "consul.dns.ptr_query"),
];

impl Series {
    fn has(self, sample: &Sample<'_>) -> bool {
        let is = |label: &str, value: &str| {
            let labels = &sample.labels;
            labels
                .iter()
                .any(|(name, own)| *name == label && own == value)
        };
        match self {
            All => true,
            With(label, value) => is(label, value),
            Without(label, value) => !is(label, value),
        }
    }
}

/// The sum of the samples of that name; `None` when there is none.
fn sum(samples: &[Sample<'_>], name: &str, suffix: &str, series: Series) -> Option<f64> {
    let is = |sample: &&Sample<'_>| sample.name.strip_suffix(suffix) == Some(name);
    let values: Vec<f64> = samples
        .iter()
        .filter(is)
        .filter(|sample| series.has(sample))
        .filter_map(|sample| sample.value.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

fn from_table(samples: &[Sample<'_>]) -> Vec<Point> {
    let point = |(ours, series, shape, name): &(&str, Series, Shape, &'static str)| {
        let sum = |suffix| sum(samples, ours, suffix, *series);
        let figure = match shape {
            Gauge => Figure::Gauge(sum("")?),
            Counter => Figure::Counter(sum("_total")?),
            Timer => Figure::Timer {
                count: sum("_count")?,
                sum: sum("_sum")? * 1_000.0,
            },
        };
        Some(Point::plain(name, figure))
    };
    TABLE.iter().filter_map(point).collect()
}

/// `consul.api.http` by method and path, whatever the status was.
fn requests(samples: &[Sample<'_>]) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for sample in samples {
        let counts = match sample.name {
            "weft_http_requests_total" => true,
            "weft_http_request_duration_seconds_total" => false,
            _ => continue,
        };
        let label = |wanted: &str| {
            let found = sample.labels.iter().find(|(name, _)| *name == wanted);
            found.map_or("", |(_, value)| value)
        };
        let labels = vec![
            ("method", label("method").to_owned()),
            ("path", dotted(label("route"))),
        ];
        let value: f64 = sample.value.parse().unwrap_or_default();
        let at = points.iter().position(|point| point.labels == labels);
        let at = at.unwrap_or_else(|| {
            let none = Figure::Timer {
                count: 0.0,
                sum: 0.0,
            };
            points.push(Point {
                name: "consul.api.http".into(),
                labels,
                figure: none,
            });
            points.len() - 1
        });
        if let Figure::Timer { count, sum } = &mut points[at].figure {
            if counts {
                *count += value;
            } else {
                *sum += value * 1_000.0;
            }
        }
    }
    points
}

/// `/v1/kv/` → `v1.kv._`, as Consul writes a path with a name at its end.
fn dotted(route: &str) -> String {
    let path = route.trim_start_matches('/');
    match path.strip_suffix('/') {
        Some(path) => format!("{}._", path.replace('/', ".")),
        None => path.replace('/', "."),
    }
}

/// What the agent knows without a metric.
fn known(api: &Api, resident_bytes: Option<u64>) -> Vec<Point> {
    let deps = &api.deps;
    let mut points = Vec::new();
    let mut gauge = |name, value: u64| points.push(Point::plain(name, Figure::Gauge(value as f64)));
    if let Some(bytes) = resident_bytes {
        gauge("consul.runtime.alloc_bytes", bytes);
        gauge("consul.runtime.sys_bytes", bytes);
    }
    // What goroutines are to Consul.
    let tasks = tokio::runtime::Handle::current().metrics();
    gauge(
        "consul.runtime.num_goroutines",
        tasks.num_alive_tasks() as u64,
    );
    let members = deps.membership.members();
    let alive = |servers: bool| {
        let counts = members
            .iter()
            .filter(|member| member.status == MemberStatus::Alive);
        let is_server = |role: Option<&String>| role.is_some_and(|role| role == "consul");
        counts
            .filter(|member| is_server(member.tags.get("role")) == servers)
            .count() as u64
    };
    gauge("consul.members.servers", alive(true));
    gauge("consul.members.clients", alive(false));
    let stats = deps.operator.stats();
    let raft = |key: &str| -> Option<u64> { stats.get("raft")?.get(key)?.parse().ok() };
    for (name, key) in [
        ("consul.raft.applied_index", "applied_index"),
        ("consul.raft.last_index", "last_log_index"),
    ] {
        if let Some(value) = raft(key) {
            gauge(name, value);
        }
    }
    if deps.info.server {
        let state: &State = &deps.backend.state();
        gauge(
            "consul.session_ttl.active",
            state.session_deadlines().count() as u64,
        );
    }
    points.push(Point {
        name: "consul.version".into(),
        labels: vec![("version", deps.info.version.clone())],
        figure: Figure::Gauge(1.0),
    });
    points
}

/// Every figure there is.
pub(super) fn gather(api: &Api, samples: &[Sample<'_>], resident_bytes: Option<u64>) -> Vec<Point> {
    let mut points = known(api, resident_bytes);
    points.extend(from_table(samples));
    points.extend(requests(samples));
    let naming = api.naming();
    for point in &mut points {
        if let Some(name) = naming.renamed(&point.name) {
            point.name = name.into();
        }
    }
    points.retain(|point| naming.shows(&point.name));
    points
}

/// Under which names figures go out, and which of them do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// `telemetry.metrics_prefix`, in place of `consul`.
    pub prefix: String,
    /// `telemetry.prefix_filter`: beginnings of names, and whether they are shown. The longest that fits decides.
    pub filter: Vec<(String, bool)>,
    /// `telemetry.filter_default`: whether the others are.
    pub others: bool,
}

impl Default for Naming {
    fn default() -> Self {
        Self {
            prefix: "consul".into(),
            filter: Vec::new(),
            others: true,
        }
    }
}

impl Naming {
    fn renamed(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix("consul")?;
        (self.prefix != "consul").then(|| format!("{}{rest}", self.prefix))
    }

    fn shows(&self, name: &str) -> bool {
        let fits = self
            .filter
            .iter()
            .filter(|(start, _)| name.starts_with(start));
        let longest = fits.max_by_key(|(start, _)| start.len());
        longest.map_or(self.others, |(_, shown)| *shown)
    }
}

impl Point {
    fn plain(name: &'static str, figure: Figure) -> Self {
        Self {
            name: name.into(),
            labels: Vec::new(),
            figure,
        }
    }

    /// Appends the point in Prometheus' text form, after a type line unless `before` is of the same name.
    pub(super) fn print(&self, out: &mut String, before: Option<&Self>) {
        use std::fmt::Write as _;
        let name: String = self.name.replace(['.', '-'], "_");
        let kind = match self.figure {
            Figure::Gauge(_) => "gauge",
            Figure::Counter(_) => "counter",
            Figure::Timer { .. } => "summary",
        };
        if before.is_none_or(|before| before.name != self.name) {
            let _ = writeln!(out, "# TYPE {name} {kind}");
        }
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let _ = match self.figure {
            Figure::Gauge(value) | Figure::Counter(value) => {
                writeln!(out, "{name}{labels} {value}")
            }
            Figure::Timer { count, sum } => {
                writeln!(
                    out,
                    "{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
                )
            }
        };
    }

    /// What it is, for the part of the JSON form it belongs to.
    pub(super) fn figure(&self) -> Figure {
        self.figure
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn labels(&self) -> &[(&'static str, String)] {
        &self.labels
    }

    pub(super) fn set_figure(&mut self, figure: Figure) {
        self.figure = figure;
    }

    #[cfg(test)]
    pub(super) fn new(
        name: &'static str,
        labels: Vec<(&'static str, String)>,
        figure: Figure,
    ) -> Self {
        let name = name.into();
        Self {
            name,
            labels,
            figure,
        }
    }

    pub(super) fn write_labels(&self, json: &mut Json) {
        json.object(|json| {
            for (name, value) in &self.labels {
                json.dynamic_key(name).string(value);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
weft_raft_is_leader 1
weft_raft_proposals_total{outcome=\"done\"} 3
weft_raft_proposals_total{outcome=\"refused\"} 2
weft_raft_commit_duration_seconds_sum 0.5
weft_raft_commit_duration_seconds_count 4
weft_raft_commit_duration_seconds_bucket{le=\"1\"} 4
weft_catalog_rows{table=\"nodes\"} 7
weft_catalog_rows{table=\"services\"} 9
weft_dns_query_duration_seconds_sum{type=\"A\"} 0.25
weft_dns_query_duration_seconds_count{type=\"A\"} 2
weft_dns_query_duration_seconds_sum{type=\"PTR\"} 1
weft_dns_query_duration_seconds_count{type=\"PTR\"} 1
weft_http_requests_total{method=\"GET\",route=\"/v1/kv/\",class=\"2xx\"} 3
weft_http_requests_total{method=\"GET\",route=\"/v1/kv/\",class=\"4xx\"} 1
weft_http_request_duration_seconds_total{method=\"GET\",route=\"/v1/kv/\"} 0.008
";

    #[test]
    fn figures_have_consuls_names_and_units() {
        let samples: Vec<_> = TEXT.lines().filter_map(Sample::parse).collect();
        let mut points = from_table(&samples);
        points.extend(requests(&samples));
        let mut out = String::new();
        let mut before = None;
        for point in &points {
            point.print(&mut out, before);
            before = Some(point);
        }
        let expected = "\
# TYPE consul_server_isLeader gauge
consul_server_isLeader 1
# TYPE consul_raft_commitTime summary
consul_raft_commitTime_sum 500
consul_raft_commitTime_count 4
# TYPE consul_raft_apply counter
consul_raft_apply 5
# TYPE consul_state_nodes gauge
consul_state_nodes 7
# TYPE consul_state_services gauge
consul_state_services 9
# TYPE consul_dns_domain_query summary
consul_dns_domain_query_sum 250
consul_dns_domain_query_count 2
# TYPE consul_dns_ptr_query summary
consul_dns_ptr_query_sum 1000
consul_dns_ptr_query_count 1
# TYPE consul_api_http summary
consul_api_http_sum{method=\"GET\",path=\"v1.kv._\"} 8
consul_api_http_count{method=\"GET\",path=\"v1.kv._\"} 4
";
        assert_eq!(out, expected);
    }

    #[test]
    fn the_longest_beginning_decides() {
        let naming = Naming {
            prefix: "acme".into(),
            filter: vec![("acme.raft".into(), false), ("acme.raft.fsm".into(), true)],
            others: true,
        };
        assert_eq!(
            naming.renamed("consul.raft.apply").unwrap(),
            "acme.raft.apply"
        );
        assert_eq!(Naming::default().renamed("consul.raft.apply"), None);
        let shown = ["acme.raft.apply", "acme.raft.fsm.apply", "acme.dns"].map(|n| naming.shows(n));
        assert_eq!(shown, [false, true, true]);
    }

    #[test]
    fn a_metric_of_another_name_is_not_taken_in() {
        let samples: Vec<_> = ["weft_raft_is_leader_more 1"]
            .into_iter()
            .filter_map(Sample::parse)
            .collect();
        assert_eq!(from_table(&samples), []);
    }
}
