//! `service-router` and `service-splitter`: where a service's requests go.
//!
//! Owns: the fields and rules of both kinds.
//! Never: looks at another entry; `chain` does.
//! Source: Consul docs, "Service router", "Service splitter"; CONSUL.md E, E.2.

use std::collections::{BTreeMap, BTreeSet};

use super::form::form;
use super::quantity::{Span, Weight};
use super::{EntryError, not_negative, regex};

form! {
    /// Changes to headers.
    Headers {
        add: BTreeMap<String, String> = "Add",
        set: BTreeMap<String, String> = "Set",
        remove: Vec<String> = "Remove",
    }
}

form! {
    /// `service-router`.
    Router {
        routes: Vec<Route> = "Routes" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Requests, and where they go.
    Route {
        matching: Option<RouteMatch> = "Match",
        destination: Option<RouteDestination> = "Destination",
    }
}

form! {
    /// What requests a route takes.
    RouteMatch { http: Option<HttpMatch> = "HTTP" }
}

form! {
    /// Conditions on a request; all must hold.
    HttpMatch {
        path_exact: String = "PathExact",
        path_prefix: String = "PathPrefix",
        path_regex: String = "PathRegex",
        case_insensitive: bool = "CaseInsensitive",
        header: Vec<HeaderMatch> = "Header",
        query_param: Vec<QueryMatch> = "QueryParam",
        methods: Vec<String> = "Methods",
    }
}

form! {
    /// A condition on a header.
    HeaderMatch {
        name: String = "Name" always,
        present: bool = "Present",
        exact: String = "Exact",
        prefix: String = "Prefix",
        suffix: String = "Suffix",
        contains: String = "Contains",
        regex: String = "Regex",
        invert: bool = "Invert",
        ignore_case: bool = "IgnoreCase",
    }
}

form! {
    /// A condition on a query parameter.
    QueryMatch {
        name: String = "Name" always,
        present: bool = "Present",
        exact: String = "Exact",
        regex: String = "Regex",
    }
}

form! {
    /// Where a route's requests go, and how often they are tried.
    RouteDestination {
        service: String = "Service",
        service_subset: String = "ServiceSubset",
        prefix_rewrite: String = "PrefixRewrite",
        request_timeout: Span = "RequestTimeout",
        idle_timeout: Span = "IdleTimeout",
        num_retries: u32 = "NumRetries",
        retry_on_connect_failure: bool = "RetryOnConnectFailure",
        retry_on: Vec<String> = "RetryOn",
        retry_on_status_codes: Vec<u32> = "RetryOnStatusCodes",
        request_headers: Option<Headers> = "RequestHeaders",
        response_headers: Option<Headers> = "ResponseHeaders",
    }
}

form! {
    /// `service-splitter`.
    Splitter {
        splits: Vec<Split> = "Splits" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// A share of the requests.
    Split {
        weight: Weight = "Weight" always,
        service: String = "Service",
        service_subset: String = "ServiceSubset",
        request_headers: Option<Headers> = "RequestHeaders",
        response_headers: Option<Headers> = "ResponseHeaders",
    }
}

impl Router {
    pub(crate) fn normalise(&mut self) {
        let matches = self
            .routes
            .iter_mut()
            .filter_map(|route| route.matching.as_mut()?.http.as_mut());
        for http in matches {
            http.methods
                .iter_mut()
                .for_each(|method| method.make_ascii_uppercase());
        }
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        self.routes
            .iter()
            .enumerate()
            .try_for_each(|(at, route)| check_route(&format!("Route[{at}]"), route))
    }
}

fn check_route(place: &str, route: &Route) -> Result<(), EntryError> {
    let http = route
        .matching
        .as_ref()
        .and_then(|matching| matching.http.as_ref());
    let mut rewritable = false;
    if let Some(http) = http {
        check_paths(place, &http.path_exact, &http.path_prefix, &http.path_regex)?;
        rewritable = !http.path_exact.is_empty() || !http.path_prefix.is_empty();
        for (at, header) in http.header.iter().enumerate() {
            let place = format!("{place} Header[{at}]");
            check_header(
                &place,
                header,
                &["Present", "Exact", "Prefix", "Suffix", "Regex"],
            )?;
        }
        for (at, query) in http.query_param.iter().enumerate() {
            check_query(&format!("{place} QueryParam[{at}]"), query)?;
        }
        check_methods(place, &http.methods)?;
    }
    let Some(destination) = &route.destination else {
        return Ok(());
    };
    if !destination.prefix_rewrite.is_empty() && !rewritable {
        return Err(EntryError::invalid(format!(
            "{place} cannot make use of PrefixRewrite without configuring either PathExact or PathPrefix"
        )));
    }
    not_negative(
        &format!("{place} RequestTimeout"),
        destination.request_timeout,
    )?;
    not_negative(&format!("{place} IdleTimeout"), destination.idle_timeout)?;
    match destination
        .retry_on_status_codes
        .iter()
        .find(|code| !(100..=599).contains(*code))
    {
        Some(code) => Err(EntryError::invalid(format!(
            "{place} RetryOnStatusCodes: {code} is no HTTP status, those are 100 to 599"
        ))),
        None => Ok(()),
    }
}

/// At most one form of path, and paths begin at the root.
pub(crate) fn check_paths(
    place: &str,
    exact: &str,
    prefix: &str,
    pattern: &str,
) -> Result<(), EntryError> {
    if [exact, prefix, pattern]
        .iter()
        .filter(|path| !path.is_empty())
        .count()
        > 1
    {
        return Err(EntryError::invalid(format!(
            "{place} should only contain at most one of PathExact, PathPrefix, or PathRegex"
        )));
    }
    for (name, path) in [("PathExact", exact), ("PathPrefix", prefix)] {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(EntryError::invalid(format!(
                "{place} {name} doesn't start with '/': {path:?}"
            )));
        }
    }
    regex(&format!("{place} PathRegex"), pattern)
}

/// Exactly one of the conditions that this place knows.
pub(crate) fn check_header(
    place: &str,
    header: &HeaderMatch,
    known: &[&str],
) -> Result<(), EntryError> {
    if header.name.is_empty() {
        return Err(EntryError::invalid(format!(
            "{place} missing required Name field"
        )));
    }
    let conditions = [
        ("Present", header.present),
        ("Exact", !header.exact.is_empty()),
        ("Prefix", !header.prefix.is_empty()),
        ("Suffix", !header.suffix.is_empty()),
        ("Contains", !header.contains.is_empty()),
        ("Regex", !header.regex.is_empty()),
    ];
    let set: Vec<&str> = conditions
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();
    if set.len() != 1 || !known.contains(&set[0]) {
        return Err(EntryError::invalid(format!(
            "{place} should only contain one of {}",
            listed(known)
        )));
    }
    if header.ignore_case && (header.present || !header.regex.is_empty()) {
        return Err(EntryError::invalid(format!(
            "{place} IgnoreCase cannot be used with Present or Regex"
        )));
    }
    regex(&format!("{place} Regex"), &header.regex)
}

fn check_query(place: &str, query: &QueryMatch) -> Result<(), EntryError> {
    if query.name.is_empty() {
        return Err(EntryError::invalid(format!(
            "{place} missing required Name field"
        )));
    }
    let set = [
        query.present,
        !query.exact.is_empty(),
        !query.regex.is_empty(),
    ];
    if set.iter().filter(|set| **set).count() != 1 {
        return Err(EntryError::invalid(format!(
            "{place} should only contain one of Present, Exact, or Regex"
        )));
    }
    regex(&format!("{place} Regex"), &query.regex)
}

pub(crate) fn check_methods(place: &str, methods: &[String]) -> Result<(), EntryError> {
    let mut seen = BTreeSet::new();
    match methods
        .iter()
        .find(|method| !seen.insert(method.to_ascii_uppercase()))
    {
        Some(method) => Err(EntryError::invalid(format!(
            "{place} Methods contains {method:?} more than once"
        ))),
        None => Ok(()),
    }
}

fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{}, or {last}", most.join(", ")),
    }
}

impl Splitter {
    pub(crate) fn validate(&self, name: &str) -> Result<(), EntryError> {
        if self.splits.is_empty() {
            return Err(EntryError::invalid("no splits configured"));
        }
        let mut seen = BTreeSet::new();
        for split in &self.splits {
            let service = if split.service.is_empty() {
                name
            } else {
                &split.service
            };
            if !seen.insert((service.to_ascii_lowercase(), &split.service_subset)) {
                return Err(EntryError::invalid(format!(
                    "split destination occurs more than once: service={service:?}, subset={:?}",
                    split.service_subset
                )));
            }
            if !(0..=10_000).contains(&split.weight.hundredths) {
                return Err(EntryError::invalid(format!(
                    "a split's Weight is between 0 and 100, not {}",
                    split.weight.text()
                )));
            }
        }
        let hundredths: i64 = self
            .splits
            .iter()
            .map(|split| split.weight.hundredths)
            .sum();
        if hundredths == 10_000 {
            return Ok(());
        }
        Err(EntryError::invalid(format!(
            "the sum of all split weights must be 100, not {}.{:02}0000",
            hundredths / 100,
            hundredths % 100
        )))
    }
}
