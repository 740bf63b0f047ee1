//! The parameters that most endpoints share.
//!
//! Owns: [`Options`]: consistency, blocking, enterprise parameters, `dc`.
//! Never: waits or reads.
//! Source: Consul HTTP API, "Consistency modes", "Blocking queries"; CONSUL.md 0.3, A.0, B.1, B.2.

use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderMap};
use weft_proto::duration;

use super::error::Failure;
use super::query::Query;
use crate::backend::Consistency;

/// Shared parameters, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// `consistent`, `stale` or neither.
    pub(super) consistency: Consistency,
    /// `max_stale`: ask the leader when this server is behind by more.
    pub(super) max_stale: Option<Duration>,
    /// `cached`, with the freshness that `Cache-Control` asks for.
    pub(super) cached: Option<CacheControl>,
    /// `index`; 0: answer at once.
    pub(super) index: u64,
    /// `wait`; zero: the default.
    pub(super) wait: Duration,
}

/// What `Cache-Control` asks of a cached answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    /// Older answers are not wanted.
    pub(super) max_age: Option<Duration>,
    /// `must-revalidate` or `no-cache`: not older than now.
    pub(super) must_revalidate: bool,
    /// While the servers cannot be asked, an answer of up to this age will do.
    pub(super) stale_if_error: Option<Duration>,
}

impl Options {
    /// Parses; the refusals are Consul's.
    pub(super) fn parse(query: &Query, headers: &HeaderMap) -> Result<Self, Failure> {
        let consistent = query.has("consistent");
        let cached = query.has("cached");
        let max_stale = match query.get("max_stale") {
            None | Some("") => None,
            Some(text) => Some(duration::parse(text).map_err(|_| {
                Failure::bad_request(
                    "http.max_stale",
                    format!("Invalid max_stale value {text:?}"),
                )
            })?),
        };
        let stale = query.has("stale") || max_stale.is_some();
        if stale && consistent {
            let text = "Cannot specify ?stale with ?consistent, conflicting semantics.";
            return Err(Failure::bad_request("http.consistency", text));
        }
        if cached && consistent {
            let text = "Cannot specify ?cached with ?consistent, conflicting semantics.";
            return Err(Failure::bad_request("http.consistency", text));
        }
        let consistency = match (stale, consistent) {
            (true, _) => Consistency::Stale,
            (_, true) => Consistency::Consistent,
            _ => Consistency::Default,
        };
        Ok(Self {
            consistency,
            max_stale,
            cached: cached.then(|| cache_control(headers)),
            index: index(query)?,
            wait: wait(query)?,
        })
    }
}

fn index(query: &Query) -> Result<u64, Failure> {
    match query.get("index") {
        None | Some("") => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| Failure::bad_request("http.index", "Invalid index")),
    }
}

/// The `wait` parameter; zero when absent.
pub(super) fn wait(query: &Query) -> Result<Duration, Failure> {
    match query.get("wait") {
        None | Some("") => Ok(Duration::ZERO),
        Some(text) => duration::parse(text)
            .map_err(|_| Failure::bad_request("http.wait", "Invalid wait time")),
    }
}

fn cache_control(headers: &HeaderMap) -> CacheControl {
    let mut control = CacheControl::default();
    let text = headers
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    for part in text.split(',').map(str::trim) {
        match part.split_once('=') {
            None if part == "must-revalidate" || part == "no-cache" => {
                control.must_revalidate = true
            }
            Some(("max-age", seconds)) => {
                control.max_age = seconds.parse().ok().map(Duration::from_secs)
            }
            Some(("stale-if-error", seconds)) => {
                control.stale_if_error = seconds.parse().ok().map(Duration::from_secs)
            }
            _ => {}
        }
    }
    control
}

/// Refuses other datacenters, namespaces and partitions than ours.
pub(super) fn check_scope(
    query: &Query,
    headers: &HeaderMap,
    datacenter: &str,
) -> Result<(), Failure> {
    if let Some(dc) = query
        .get("dc")
        .filter(|dc| !dc.is_empty() && !dc.eq_ignore_ascii_case(datacenter))
    {
        tracing::debug!(http.dc = dc, "no path to datacenter");
        return Err(Failure::internal("dc.unknown", "No path to datacenter"));
    }
    let wide = [
        ("ns", "X-Consul-Namespace", "Namespaces are"),
        ("partition", "X-Consul-Partition", "Partitions are"),
    ];
    for (name, header, what) in wide {
        let sent = headers.get(header).and_then(|value| value.to_str().ok());
        for (value, place, name) in [
            (query.get(name), "query parameter", name),
            (sent, "header", header),
        ] {
            let value = value.unwrap_or_default();
            if !value.is_empty() && !value.eq_ignore_ascii_case("default") {
                let text =
                    format!("Invalid {place}: {name:?} - {what} a Consul Enterprise feature");
                return Err(Failure::bad_request("scope.enterprise", text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failure> {
        Options::parse(&Query::parse(text).unwrap(), &HeaderMap::new())
    }

    #[test]
    fn modes_conflict_in_consuls_words() {
        for (text, refusal) in [
            (
                "stale&consistent",
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ),
            (
                "max_stale=1s&consistent",
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ),
            (
                "cached&consistent",
                "Cannot specify ?cached with ?consistent, conflicting semantics.",
            ),
            ("index=x", "Invalid index"),
            ("index=-1", "Invalid index"),
            ("wait=10", "Invalid wait time"),
            ("wait=-1s", "Invalid wait time"),
            ("max_stale=x", "Invalid max_stale value \"x\""),
        ] {
            assert_eq!(parse(text).unwrap_err().text, refusal, "{text}");
        }
        assert_eq!(
            parse("leader&index=7&wait=1m").unwrap().consistency,
            Consistency::Default
        );
        assert_eq!(
            parse("max_stale=2s").unwrap().max_stale,
            Some(Duration::from_secs(2))
        );
        assert_eq!(
            parse("index=7&wait=1m").unwrap().wait,
            Duration::from_secs(60)
        );
    }

    #[test]
    fn only_the_default_scope_exists() {
        let check =
            |text: &str| check_scope(&Query::parse(text).unwrap(), &HeaderMap::new(), "dc1");
        assert_eq!(check("dc=dc1&ns=default&partition="), Ok(()));
        assert_eq!(check("dc=dc9").unwrap_err().text, "No path to datacenter");
        assert_eq!(
            check("ns=team").unwrap_err().text,
            "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature"
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-consul-partition", "team".parse().unwrap());
        assert_eq!(
            check_scope(&Query::default(), &headers, "dc1")
                .unwrap_err()
                .text,
            "Invalid header: \"X-Consul-Partition\" - Partitions are a Consul Enterprise feature"
        );
    }
}
