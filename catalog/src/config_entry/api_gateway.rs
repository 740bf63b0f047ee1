//! `api-gateway`, its routes and its certificates.
//!
//! Owns: the fields and rules of `api-gateway`, `http-route`, `tcp-route`, `inline-certificate` and
//! `file-system-certificate`.
//! Never: binds a route to a gateway.
//! Source: Consul docs, "API gateway" and its routes; CONSUL.md E.

use std::collections::{BTreeMap, BTreeSet};

use super::form::{Computed, form};
use super::gateway::Sds;
use super::mesh::check_tls;
use super::quantity::Span;
use super::routing::Headers;
use super::{EntryError, not_negative, one_of, regex};

/// What stands for a private key in answers.
pub(crate) const HIDDEN: &str = "hidden: weft keeps private keys to itself";

form! {
    /// `api-gateway`.
    ApiGateway {
        defaults: Option<GatewayLimits> = "Defaults",
        listeners: Vec<ApiListener> = "Listeners" always,
        status: Computed = "Status",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Bounds on what a gateway sends to a service.
    GatewayLimits {
        max_connections: Option<u32> = "MaxConnections",
        max_pending_requests: Option<u32> = "MaxPendingRequests",
        max_concurrent_requests: Option<u32> = "MaxConcurrentRequests",
    }
}

form! {
    /// A port of the gateway.
    ApiListener {
        name: String = "Name" always,
        hostname: String = "Hostname" always,
        port: u32 = "Port" always,
        protocol: String = "Protocol" always,
        max_request_headers_kb: Option<u32> = "MaxRequestHeadersKB",
        tls: ApiTls = "TLS" always,
    }
}

form! {
    /// TLS of one listener.
    ApiTls {
        certificates: Vec<Reference> = "Certificates",
        min_version: String = "MinVersion",
        max_version: String = "MaxVersion",
        cipher_suites: Vec<String> = "CipherSuites",
        sds: Option<Sds> = "SDS",
    }
}

form! {
    /// Another entry.
    Reference {
        kind: String = "Kind" always,
        name: String = "Name" always,
        section_name: String = "SectionName",
    }
}

impl ApiGateway {
    pub(crate) fn normalise(&mut self) {
        for listener in &mut self.listeners {
            listener.protocol.make_ascii_lowercase();
            if listener.hostname.is_empty() {
                "*".clone_into(&mut listener.hostname);
            }
            fill_kind(&mut listener.tls.certificates, "inline-certificate");
        }
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        let (mut names, mut places) = (BTreeSet::new(), BTreeMap::new());
        for listener in &self.listeners {
            let refuse = |why: String| {
                Err(EntryError::invalid(format!(
                    "listener {:?}: {why}",
                    listener.name
                )))
            };
            if !names.insert(listener.name.as_str()) {
                return Err(EntryError::invalid(format!(
                    "found multiple listeners with the same name: {:?}",
                    listener.name
                )));
            }
            if !(1..=65_535).contains(&listener.port) {
                return refuse(format!(
                    "Port is between 1 and 65535, not {}",
                    listener.port
                ));
            }
            one_of(
                &format!("listener {:?}: Protocol", listener.name),
                &listener.protocol,
                &["http", "tcp"],
            )?;
            let there = places.insert(
                (listener.port, listener.hostname.as_str()),
                listener.name.as_str(),
            );
            if let Some(other) = there {
                return refuse(format!(
                    "port {} and hostname {:?} are those of listener {other:?}",
                    listener.port, listener.hostname
                ));
            }
            if listener.protocol == "tcp" && listener.hostname != "*" {
                return refuse(
                    "a tcp listener cannot tell hosts apart: leave Hostname out".to_owned(),
                );
            }
            let tls = &listener.tls;
            for certificate in &tls.certificates {
                one_of(
                    "certificate reference Kind",
                    &certificate.kind,
                    &["inline-certificate", "file-system-certificate"],
                )?;
                if certificate.name.is_empty() {
                    return refuse("certificate reference must have a name".to_owned());
                }
            }
            check_tls(
                &format!("listener {:?}: TLS", listener.name),
                &tls.min_version,
                &tls.max_version,
                &tls.cipher_suites,
            )?;
        }
        Ok(())
    }
}

fn fill_kind(references: &mut [Reference], kind: &str) {
    for reference in references
        .iter_mut()
        .filter(|reference| reference.kind.is_empty())
    {
        kind.clone_into(&mut reference.kind);
    }
}

form! {
    /// `http-route`.
    HttpRoute {
        parents: Vec<Reference> = "Parents" always,
        rules: Vec<HttpRule> = "Rules" always,
        hostnames: Vec<String> = "Hostnames" always,
        status: Computed = "Status",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Requests, and where they go.
    HttpRule {
        filters: HttpFilters = "Filters" always,
        response_filters: ResponseFilters = "ResponseFilters" always,
        matches: Vec<HttpRuleMatch> = "Matches" always,
        services: Vec<HttpService> = "Services" always,
    }
}

form! {
    /// What is done to requests.
    HttpFilters {
        headers: Vec<Headers> = "Headers" always,
        url_rewrite: Option<UrlRewrite> = "URLRewrite" always,
        retry: Option<RetryFilter> = "RetryFilter" always,
        timeout: Option<TimeoutFilter> = "TimeoutFilter" always,
    }
}

form! {
    /// What is done to answers.
    ResponseFilters { headers: Vec<Headers> = "Headers" always }
}

form! {
    /// Another path.
    UrlRewrite { path: String = "Path" always }
}

form! {
    /// How often a request is tried.
    RetryFilter {
        num_retries: u32 = "NumRetries",
        retry_on: Vec<String> = "RetryOn",
        retry_on_status_codes: Vec<u32> = "RetryOnStatusCodes",
        retry_on_connect_failure: bool = "RetryOnConnectFailure",
    }
}

form! {
    /// How long a request may take.
    TimeoutFilter {
        request: Span = "RequestTimeout",
        idle: Span = "IdleTimeout",
    }
}

form! {
    /// Conditions on a request; all must hold.
    HttpRuleMatch {
        headers: Vec<TextMatch> = "Headers" always,
        method: String = "Method" always,
        path: PathMatch = "Path" always,
        query: Vec<TextMatch> = "Query" always,
    }
}

form! {
    /// A condition on a header or a parameter.
    TextMatch {
        matching: String = "Match" always,
        name: String = "Name" always,
        value: String = "Value" always,
    }
}

form! {
    /// A condition on the path.
    PathMatch {
        matching: String = "Match" always,
        value: String = "Value" always,
    }
}

form! {
    /// A service behind a rule.
    HttpService {
        name: String = "Name" always,
        weight: u32 = "Weight" always,
        filters: HttpFilters = "Filters" always,
        response_filters: ResponseFilters = "ResponseFilters" always,
        limits: Option<GatewayLimits> = "Limits",
        tls: Option<ServiceTls> = "TLS",
    }
}

form! {
    /// TLS towards a service.
    ServiceTls { sds: Option<Sds> = "SDS" }
}

impl HttpRoute {
    pub(crate) fn normalise(&mut self) {
        fill_kind(&mut self.parents, "api-gateway");
        for rule in &mut self.rules {
            for matching in &mut rule.matches {
                matching.method.make_ascii_uppercase();
                if matching.path.matching.is_empty() {
                    "prefix".clone_into(&mut matching.path.matching);
                    if matching.path.value.is_empty() {
                        "/".clone_into(&mut matching.path.value);
                    }
                }
            }
            for service in rule
                .services
                .iter_mut()
                .filter(|service| service.weight == 0)
            {
                service.weight = 1;
            }
        }
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        check_parents(&self.parents)?;
        for hostname in &self.hostnames {
            if hostname.is_empty()
                || (hostname != "*" && hostname.trim_start_matches("*.").contains('*'))
            {
                return Err(EntryError::invalid(format!(
                    "host {hostname:?} must not be empty, and a wildcard stands alone or first, as *.example.com"
                )));
            }
        }
        self.rules
            .iter()
            .enumerate()
            .try_for_each(|(at, rule)| rule.validate(&format!("rule[{at}]")))
    }
}

impl HttpRule {
    fn validate(&self, place: &str) -> Result<(), EntryError> {
        check_filters(place, &self.filters)?;
        for (at, matching) in self.matches.iter().enumerate() {
            let place = format!("{place} match[{at}]");
            one_of(
                &format!("{place} path"),
                &matching.path.matching,
                &["exact", "prefix", "regex"],
            )?;
            if matching.path.matching == "regex" {
                regex(&format!("{place} path"), &matching.path.value)?;
            } else if !matching.path.value.starts_with('/') {
                return Err(EntryError::invalid(format!(
                    "{place} path doesn't start with '/': {:?}",
                    matching.path.value
                )));
            }
            let headers: &[&str] = &["exact", "prefix", "present", "regex", "suffix"];
            for (what, list, known) in [
                ("header", &matching.headers, headers),
                ("query", &matching.query, &["exact", "present", "regex"]),
            ] {
                for condition in list {
                    let place = format!("{place} {what} {:?}", condition.name);
                    if condition.name.is_empty() {
                        return Err(EntryError::invalid(format!("{place}: Name is required")));
                    }
                    one_of(&place, &condition.matching, known)?;
                    if condition.matching == "regex" {
                        regex(&place, &condition.value)?;
                    }
                }
            }
        }
        for (at, service) in self.services.iter().enumerate() {
            let place = format!("{place} service[{at}]");
            if service.name.is_empty() {
                return Err(EntryError::invalid(format!("{place}: Name is required")));
            }
            check_filters(&place, &service.filters)?;
        }
        Ok(())
    }
}

fn check_filters(place: &str, filters: &HttpFilters) -> Result<(), EntryError> {
    if let Some(timeout) = &filters.timeout {
        not_negative(&format!("{place} RequestTimeout"), timeout.request)?;
        not_negative(&format!("{place} IdleTimeout"), timeout.idle)?;
    }
    match &filters.url_rewrite {
        Some(rewrite) if !rewrite.path.starts_with('/') => Err(EntryError::invalid(format!(
            "{place} URLRewrite: path doesn't start with '/': {:?}",
            rewrite.path
        ))),
        _ => Ok(()),
    }
}

fn check_parents(parents: &[Reference]) -> Result<(), EntryError> {
    let mut seen = BTreeSet::new();
    for (at, parent) in parents.iter().enumerate() {
        one_of(
            &format!("Parents[{at}].Kind"),
            &parent.kind,
            &["api-gateway"],
        )?;
        if parent.name.is_empty() {
            return Err(EntryError::invalid(format!(
                "Parents[{at}].Name is required: the gateway's"
            )));
        }
        if !seen.insert((&parent.name, &parent.section_name)) {
            return Err(EntryError::invalid(format!(
                "route parents must be unique: {:?} {:?} is there twice",
                parent.name, parent.section_name
            )));
        }
    }
    Ok(())
}

form! {
    /// `tcp-route`.
    TcpRoute {
        parents: Vec<Reference> = "Parents" always,
        services: Vec<TcpService> = "Services" always,
        status: Computed = "Status",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// The service behind a route.
    TcpService {
        name: String = "Name" always,
        limits: Option<GatewayLimits> = "Limits",
    }
}

impl TcpRoute {
    pub(crate) fn normalise(&mut self) {
        fill_kind(&mut self.parents, "api-gateway");
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        check_parents(&self.parents)?;
        if self.services.len() > 1 {
            return Err(EntryError::invalid(
                "tcp-route currently only supports one service",
            ));
        }
        if self.services.iter().any(|service| service.name.is_empty()) {
            return Err(EntryError::invalid("Services[0].Name is required"));
        }
        Ok(())
    }
}

form! {
    /// `inline-certificate` and `file-system-certificate`.
    Certificate {
        certificate: String = "Certificate" always,
        private_key: String = "PrivateKey" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

impl Certificate {
    /// As it is shown: without the key.
    pub(crate) fn without_key(&self) -> Self {
        Self {
            private_key: HIDDEN.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn validate_inline(&self) -> Result<(), EntryError> {
        if self.private_key == HIDDEN {
            return Err(EntryError::invalid(
                "PrivateKey is what weft shows in place of a key: put the key itself there",
            ));
        }
        for (name, text, label) in [
            ("Certificate", &self.certificate, "CERTIFICATE-----"),
            ("PrivateKey", &self.private_key, "PRIVATE KEY-----"),
        ] {
            let header = text
                .lines()
                .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label));
            if !header {
                return Err(EntryError::invalid(format!(
                    "failed to parse {name} PEM: no line \"-----BEGIN … {label}\""
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn validate_files(&self) -> Result<(), EntryError> {
        for (name, path) in [
            ("Certificate", &self.certificate),
            ("PrivateKey", &self.private_key),
        ] {
            if path.is_empty() {
                return Err(EntryError::invalid(format!(
                    "{name} is required: a path on the gateway's host"
                )));
            }
            if path.contains("-----BEGIN") {
                return Err(EntryError::invalid(format!(
                    "{name} is the path of a file: use inline-certificate for PEM text"
                )));
            }
        }
        Ok(())
    }
}
