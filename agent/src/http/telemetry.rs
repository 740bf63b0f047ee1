//! `/v1/agent/metrics`, in Prometheus' text form and in Consul's JSON form.
//!
//! Owns: turning the registry's text into both, and Consul's names beside weft's.
//! Never: measures, beyond this process' memory.
//! Source: Consul HTTP API, "View Metrics"; Prometheus docs, "Exposition formats".

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT;
use weft_proto::json::Json;

use super::api::Api;
use super::call::Call;
use super::consul_metrics::{self, Figure, Point};
use super::error::Failure;
use super::reply::Reply;

/// Prometheus' own text form, which every scraper reads.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn metrics(call: Call) -> Result<Reply, Failure> {
    call.api.deps.mesh.count().await;
    let mut text = String::with_capacity(16 * 1024);
    prometheus_client::encoding::text::encode(&mut text, &call.api.deps.registry.lock()).map_err(
        |error| {
            Failure::internal(
                "metrics.encode",
                format!("cannot print the metrics: {error}"),
            )
        },
    )?;
    let accept = call
        .head
        .headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let open_metrics = accept.contains("openmetrics");
    let prometheus = call.query.get("format") == Some("prometheus")
        || open_metrics
        || accept.contains("text/plain");
    if prometheus && !call.api.config.prometheus {
        let text = "Prometheus is not enabled: telemetry.prometheus_retention_time is 0s";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Failure::new(status, "metrics.prometheus_off", text));
    }
    // OpenMetrics is spoken by no dashboard of Consul's: weft's own names, in their own form.
    if open_metrics {
        return Ok(Reply::bytes(OPEN_METRICS, text.into()));
    }
    let samples: Vec<_> = text.lines().filter_map(Sample::parse).collect();
    let points = consul_metrics::gather(&call.api, &samples, resident_bytes());
    if prometheus {
        let mut body = classic(&text);
        let mut before = None;
        for point in &points {
            point.print(&mut body, before);
            before = Some(point);
        }
        return Ok(Reply::bytes(PROMETHEUS, body.into()));
    }
    let clock = &call.api.deps.clock;
    let uptime = clock.monotonic().saturating_sub(call.api.started_at);
    Ok(Reply::written(|json| {
        write_json(json, (&samples, &points), clock.wall().get(), uptime)
    }))
}

/// Every figure under Consul's names, as it is now.
pub(super) fn points(api: &Api) -> Vec<Point> {
    let mut text = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &api.deps.registry.lock());
    let samples: Vec<_> = text.lines().filter_map(Sample::parse).collect();
    consul_metrics::gather(api, &samples, resident_bytes())
}

/// The older form names a counter's family as its samples are named, and has no end mark.
fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), ..) => {}
            (Some("#"), Some("HELP"), Some(name), text) => {
                help = Some((name, text.unwrap_or_default()))
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    let _ = writeln!(out, "# HELP {name}{suffix} {text}");
                }
                let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// A sample line: name, labels, value.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    pub(super) labels: Vec<(&'a str, String)>,
    pub(super) value: &'a str,
}

impl<'a> Sample<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (head, value) = line.rsplit_once(' ')?;
        // What is not a number in JSON (NaN, +Inf) is left out.
        value
            .parse::<f64>()
            .ok()
            .filter(|value| value.is_finite())?;
        let (name, labels) = match head.split_once('{') {
            None => (head, Vec::new()),
            Some((name, rest)) => (name, labels(rest.strip_suffix('}')?)),
        };
        Some(Self {
            name,
            labels,
            value,
        })
    }
}

fn labels(mut text: &str) -> Vec<(&str, String)> {
    let mut out = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let (mut value, mut escaped, mut end) = (String::new(), false, rest.len());
        for (at, c) in rest.char_indices() {
            match c {
                '\\' if !escaped => escaped = true,
                '"' if !escaped => {
                    end = at;
                    break;
                }
                c => {
                    value.push(if escaped && c == 'n' { '\n' } else { c });
                    escaped = false;
                }
            }
        }
        out.push((name.trim_start_matches(','), value));
        text = rest.get(end + 1..).unwrap_or_default();
    }
    out
}

/// Counters are totals since the start, and so is their rate; every count was of one. A total of seconds
/// counts nothing, and Consul's clients read whole numbers there: it is a gauge.
fn write_json(
    json: &mut Json,
    (samples, points): (&[Sample<'_>], &[Point]),
    now_millis: u64,
    uptime: Duration,
) {
    let is_counter = |sample: &&Sample<'_>| {
        sample.name.ends_with("_total") && sample.value.parse::<u64>().is_ok()
    };
    let is_part = |sample: &&Sample<'_>| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .any(|part| sample.name.ends_with(part))
    };
    json.object(|json| {
        json.key("Timestamp").string(&timestamp(now_millis / 1_000));
        json.key("Gauges").array(|json| {
            for point in points {
                if let Figure::Gauge(value) = point.figure() {
                    json.object(|json| {
                        json.key("Name").string(point.name());
                        json.key("Value").raw(&value.to_string());
                        point.write_labels(json.key("Labels"));
                    });
                }
            }
            for sample in samples
                .iter()
                .filter(|sample| !is_counter(sample) && !is_part(sample))
            {
                write_gauge(json, sample.name, sample.value, &sample.labels);
            }
        });
        json.key("Points").array(|_| {});
        json.key("Counters").array(|json| {
            for point in points {
                if let Figure::Counter(total) = point.figure() {
                    json.object(|json| {
                        write_total(json, point.name(), total, uptime);
                        point.write_labels(json.key("Labels"));
                    });
                }
            }
            for sample in samples.iter().filter(is_counter) {
                let total: f64 = sample.value.parse().unwrap_or_default();
                json.object(|json| {
                    write_total(json, sample.name, total, uptime);
                    write_labels(json.key("Labels"), &sample.labels);
                });
            }
        });
        json.key("Samples").array(|json| {
            for point in points {
                if let Figure::Timer { count, sum } = point.figure() {
                    json.object(|json| {
                        write_times(json, point.name(), (count, sum), uptime);
                        point.write_labels(json.key("Labels"));
                    });
                }
            }
            let sums = samples
                .iter()
                .filter_map(|sample| Some((sample, sample.name.strip_suffix("_sum")?)));
            for (sample, name) in sums {
                let is_count = |other: &&Sample<'_>| {
                    other.name.strip_suffix("_count") == Some(name) && other.labels == sample.labels
                };
                let number = |sample: &Sample<'_>| sample.value.parse::<f64>().unwrap_or_default();
                let count = samples.iter().find(is_count).map_or(0.0, number);
                json.object(|json| {
                    write_times(json, name, (count, number(sample)), uptime);
                    write_labels(json.key("Labels"), &sample.labels);
                });
            }
        });
    });
}

fn rate(total: f64, uptime: Duration) -> String {
    format!("{:.4}", total / uptime.as_secs_f64().max(1.0))
}

/// Count, sum and mean since the start. The smallest, the largest and the spread are not kept.
fn write_times(json: &mut Json, name: &str, (count, sum): (f64, f64), uptime: Duration) {
    let mean = if count > 0.0 { sum / count } else { 0.0 };
    json.key("Name").string(name);
    json.key("Count").raw(&count.to_string());
    json.key("Rate").raw(&rate(sum, uptime));
    json.key("Sum").raw(&sum.to_string());
    json.key("Mean").raw(&mean.to_string());
}

fn write_gauge(json: &mut Json, name: &str, value: &str, labels: &[(&str, String)]) {
    json.object(|json| {
        json.key("Name").string(name);
        json.key("Value").raw(value);
        write_labels(json.key("Labels"), labels);
    });
}

fn write_total(json: &mut Json, name: &str, total: f64, uptime: Duration) {
    let each = if total > 0.0 { 1 } else { 0 };
    json.key("Name").string(name);
    json.key("Count").raw(&total.to_string());
    json.key("Rate").raw(&rate(total, uptime));
    json.key("Sum").raw(&total.to_string());
    json.key("Min").number(each);
    json.key("Max").number(each);
    json.key("Mean").number(each);
    json.key("Stddev").number(0);
}

fn write_labels(json: &mut Json, labels: &[(&str, String)]) {
    json.object(|json| {
        for (name, value) in labels {
            json.dynamic_key(name).string(value);
        }
    });
}

/// Memory this process holds, in bytes.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

/// Seconds since 1970 as Go prints a time: `2026-11-23 06:30:10 +0000 UTC`.
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms" (civil from days).
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_requests Requests.\n# TYPE a_requests counter\na_requests_total{route=\"/v1/\\\"x\",code=\"2xx\"} 4\n# HELP b Open.\n# TYPE b gauge\nb 7\nc NaN\n# EOF\n";

    #[test]
    fn counters_are_renamed_for_the_older_form() {
        assert_eq!(
            classic(TEXT),
            "# HELP a_requests_total Requests.\n# TYPE a_requests_total counter\na_requests_total{route=\"/v1/\\\"x\",code=\"2xx\"} 4\n# HELP b Open.\n# TYPE b gauge\nb 7\nc NaN\n"
        );
    }

    #[test]
    fn json_shows_gauges_and_totals() {
        let mut json = Json::default();
        let samples: Vec<_> = TEXT.lines().filter_map(Sample::parse).collect();
        write_json(&mut json, (&samples, &[]), 0, Duration::from_secs(2));
        let value: serde_json::Value = serde_json::from_slice(&json.into_bytes()).unwrap();
        assert_eq!(value["Timestamp"], "1970-01-01 00:00:00 +0000 UTC");
        let gauges = value["Gauges"].as_array().unwrap();
        assert_eq!(
            gauges.last().unwrap(),
            &serde_json::json!({"Name": "b", "Value": 7, "Labels": {}})
        );
        let counter = &value["Counters"][0];
        assert_eq!(
            (&counter["Count"], &counter["Rate"]),
            (&serde_json::json!(4), &serde_json::json!(2.0))
        );
        assert_eq!(counter["Labels"]["route"], "/v1/\"x");
    }

    #[test]
    fn seconds_are_not_counted() {
        let mut json = Json::default();
        let samples = [Sample::parse("waited_seconds_total 0.008").unwrap()];
        write_json(&mut json, (&samples, &[]), 0, Duration::from_secs(2));
        let value: serde_json::Value = serde_json::from_slice(&json.into_bytes()).unwrap();
        assert_eq!(value["Counters"], serde_json::json!([]));
        assert_eq!(value["Gauges"][0]["Value"], 0.008);
    }

    #[test]
    fn times_are_printed_as_go_prints_them() {
        assert_eq!(timestamp(1_795_415_410), "2026-11-23 06:30:10 +0000 UTC");
        assert_eq!(timestamp(951_782_400), "2000-02-29 00:00:00 +0000 UTC");
    }
}
