//! `service-defaults` and `proxy-defaults`: how a service and its proxies behave.
//!
//! Owns: the fields and rules of both kinds, and the parts that other kinds use too.
//! Never: merges them into a proxy's settings; the HTTP API does.
//! Source: Consul docs, "Service defaults", "Proxy defaults"; CONSUL.md E, E.1.

use std::collections::BTreeMap;

use super::form::{Computed, Opaque, form};
use super::quantity::Span;
use super::{EntryError, not_negative, one_of};

/// Protocols that can be routed by request.
pub(crate) const L7: [&str; 3] = ["http", "http2", "grpc"];
const PROXY_MODES: [&str; 3] = ["", "direct", "transparent"];
const MESH_GATEWAY_MODES: [&str; 4] = ["", "none", "local", "remote"];
const MUTUAL_TLS_MODES: [&str; 4] = ["", "default", "strict", "permissive"];
const ACCESS_LOG_SINKS: [&str; 4] = ["", "file", "stderr", "stdout"];

form! {
    /// Through which gateway traffic to other clusters goes.
    MeshGateway { mode: String = "Mode" }
}

form! {
    /// Redirected traffic.
    TransparentProxy {
        outbound_listener_port: u32 = "OutboundListenerPort",
        dialed_directly: bool = "DialedDirectly",
    }
}

form! {
    /// Paths that are reachable without the mesh.
    Expose {
        checks: bool = "Checks",
        paths: Vec<ExposePath> = "Paths",
    }
}

form! {
    /// One such path.
    ExposePath {
        listener_port: u32 = "ListenerPort",
        path: String = "Path",
        local_path_port: u32 = "LocalPathPort",
        protocol: String = "Protocol",
        parsed_from_check: bool = "ParsedFromCheck" always,
    }
}

form! {
    /// Bounds on what a proxy sends to an upstream.
    UpstreamLimits {
        max_connections: Option<u32> = "MaxConnections",
        max_pending_requests: Option<u32> = "MaxPendingRequests",
        max_concurrent_requests: Option<u32> = "MaxConcurrentRequests",
    }
}

form! {
    /// When an upstream's instance is left out for a while.
    PassiveHealthCheck {
        interval: Span = "Interval",
        max_failures: u32 = "MaxFailures",
        enforcing_consecutive_5xx: Option<u32> = "EnforcingConsecutive5xx",
        max_ejection_percent: Option<u32> = "MaxEjectionPercent",
        base_ejection_time: Option<Span> = "BaseEjectionTime",
        consecutive_5xx: Option<u32> = "Consecutive5xx",
        consecutive_gateway_failure: Option<u32> = "ConsecutiveGatewayFailure",
        enforcing_consecutive_gateway_failure: Option<u32> = "EnforcingConsecutiveGatewayFailure",
    }
}

form! {
    /// How a service's proxies treat one upstream, or all of them.
    UpstreamConfig {
        name: String = "Name",
        peer: String = "Peer",
        envoy_listener_json: String = "EnvoyListenerJSON",
        envoy_cluster_json: String = "EnvoyClusterJSON",
        protocol: String = "Protocol",
        connect_timeout_ms: u32 = "ConnectTimeoutMs",
        limits: Option<UpstreamLimits> = "Limits",
        passive_health_check: Option<PassiveHealthCheck> = "PassiveHealthCheck",
        mesh_gateway: MeshGateway = "MeshGateway" always,
        balance_outbound_connections: String = "BalanceOutboundConnections",
    }
}

form! {
    /// Upstreams of a service.
    UpstreamConfiguration {
        overrides: Vec<UpstreamConfig> = "Overrides",
        defaults: Option<UpstreamConfig> = "Defaults",
    }
}

form! {
    /// A destination outside the mesh.
    Destination {
        addresses: Vec<String> = "Addresses",
        port: u32 = "Port",
    }
}

form! {
    /// Requests a proxy lets in.
    RateLimits { instance_level: InstanceRateLimits = "InstanceLevel" always }
}

form! {
    /// Requests one instance lets in.
    InstanceRateLimits {
        requests_per_second: u32 = "RequestsPerSecond",
        requests_max_burst: u32 = "RequestsMaxBurst",
        routes: Vec<RouteRateLimit> = "Routes",
    }
}

form! {
    /// Requests one instance lets in on some paths.
    RouteRateLimit {
        path_exact: String = "PathExact",
        path_prefix: String = "PathPrefix",
        path_regex: String = "PathRegex",
        requests_per_second: u32 = "RequestsPerSecond",
        requests_max_burst: u32 = "RequestsMaxBurst",
    }
}

form! {
    /// An extension of an Envoy proxy; kept for them.
    EnvoyExtension {
        name: String = "Name" always,
        required: bool = "Required" always,
        arguments: Opaque = "Arguments" always,
        consul_version: String = "ConsulVersion" always,
        envoy_version: String = "EnvoyVersion" always,
    }
}

form! {
    /// `service-defaults`.
    ServiceDefaults {
        protocol: String = "Protocol" always,
        mode: String = "Mode",
        transparent_proxy: TransparentProxy = "TransparentProxy",
        mutual_tls_mode: String = "MutualTLSMode",
        mesh_gateway: MeshGateway = "MeshGateway" always,
        expose: Expose = "Expose" always,
        external_sni: String = "ExternalSNI",
        upstream_config: Option<UpstreamConfiguration> = "UpstreamConfig",
        destination: Option<Destination> = "Destination",
        max_inbound_connections: u32 = "MaxInboundConnections",
        local_connect_timeout_ms: u32 = "LocalConnectTimeoutMs",
        local_request_timeout_ms: u32 = "LocalRequestTimeoutMs",
        balance_inbound_connections: String = "BalanceInboundConnections",
        max_request_headers_kb: Option<u32> = "MaxRequestHeadersKB",
        rate_limits: Option<RateLimits> = "RateLimits",
        envoy_extensions: Vec<EnvoyExtension> = "EnvoyExtensions",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// What proxies write about each connection.
    AccessLogs {
        enabled: bool = "Enabled",
        disable_listener_logs: bool = "DisableListenerLogs",
        kind: String = "Type",
        path: String = "Path",
        json_format: String = "JSONFormat",
        text_format: String = "TextFormat",
    }
}

form! {
    /// In which order failover targets are tried.
    FailoverPolicy {
        mode: String = "Mode",
        regions: Vec<String> = "Regions",
    }
}

form! {
    /// Whether near instances come first.
    PrioritizeByLocality { mode: String = "Mode" }
}

form! {
    /// `proxy-defaults`.
    ProxyDefaults {
        config: Opaque = "Config" always,
        mode: String = "Mode",
        transparent_proxy: TransparentProxy = "TransparentProxy",
        mutual_tls_mode: String = "MutualTLSMode",
        mesh_gateway: MeshGateway = "MeshGateway" always,
        expose: Expose = "Expose" always,
        access_logs: AccessLogs = "AccessLogs",
        envoy_extensions: Vec<EnvoyExtension> = "EnvoyExtensions",
        failover_policy: Option<FailoverPolicy> = "FailoverPolicy",
        prioritize_by_locality: Option<PrioritizeByLocality> = "PrioritizeByLocality",
        status: Computed = "Status",
        meta: BTreeMap<String, String> = "Meta",
    }
}

impl ProxyDefaults {
    /// `Config.protocol`, empty when not set.
    #[must_use]
    pub fn protocol(&self) -> String {
        let text = self
            .config
            .map
            .get("protocol")
            .and_then(|value| value.as_str());
        text.unwrap_or_default().to_ascii_lowercase()
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        common(
            &self.mode,
            &self.mutual_tls_mode,
            &self.mesh_gateway,
            &self.expose,
            &self.envoy_extensions,
        )?;
        one_of("AccessLogs.Type", &self.access_logs.kind, &ACCESS_LOG_SINKS)?;
        if self.access_logs.kind == "file" && self.access_logs.path.is_empty() {
            return Err(EntryError::invalid(
                "AccessLogs.Path must name a file when AccessLogs.Type is \"file\"",
            ));
        }
        if !self.access_logs.json_format.is_empty() && !self.access_logs.text_format.is_empty() {
            return Err(EntryError::invalid(
                "AccessLogs can have JSONFormat or TextFormat, not both",
            ));
        }
        Ok(())
    }
}

impl ServiceDefaults {
    pub(crate) fn normalise(&mut self) {
        self.protocol.make_ascii_lowercase();
        let upstreams = self.upstream_config.iter_mut();
        for upstream in
            upstreams.flat_map(|config| config.overrides.iter_mut().chain(&mut config.defaults))
        {
            upstream.protocol.make_ascii_lowercase();
        }
    }

    pub(crate) fn validate(&self, name: &str) -> Result<(), EntryError> {
        if name == "*" {
            return Err(EntryError::invalid(
                "a service-defaults entry needs the name of one service, not \"*\": use proxy-defaults for all",
            ));
        }
        common(
            &self.mode,
            &self.mutual_tls_mode,
            &self.mesh_gateway,
            &self.expose,
            &self.envoy_extensions,
        )?;
        one_of(
            "BalanceInboundConnections",
            &self.balance_inbound_connections,
            &["", "exact_balance"],
        )?;
        self.check_destination()?;
        self.check_upstreams()?;
        self.check_rate_limits()
    }

    fn check_destination(&self) -> Result<(), EntryError> {
        let Some(destination) = &self.destination else {
            return Ok(());
        };
        if destination.addresses.is_empty() || destination.addresses.iter().any(String::is_empty) {
            return Err(EntryError::invalid(
                "Destination.Addresses must hold at least one address, and no empty one",
            ));
        }
        if let Some(address) = destination
            .addresses
            .iter()
            .find(|address| address.contains('*'))
        {
            return Err(EntryError::invalid(format!(
                "Destination.Addresses: {address:?} has a wildcard; name each host"
            )));
        }
        if !(1..=65_535).contains(&destination.port) {
            return Err(EntryError::invalid(format!(
                "Invalid Port number {}: Destination.Port must be between 1 and 65535",
                destination.port
            )));
        }
        Ok(())
    }

    fn check_upstreams(&self) -> Result<(), EntryError> {
        let Some(config) = &self.upstream_config else {
            return Ok(());
        };
        if let Some(defaults) = &config.defaults {
            if !defaults.name.is_empty() {
                return Err(EntryError::invalid(
                    "UpstreamConfig.Defaults must not have a Name: put it under Overrides",
                ));
            }
            check_upstream("UpstreamConfig.Defaults", defaults)?;
        }
        for (at, over) in config.overrides.iter().enumerate() {
            let place = format!("UpstreamConfig.Overrides[{at}]");
            if over.name.is_empty() || over.name == "*" {
                return Err(EntryError::invalid(format!(
                    "{place}: Name is required and must not be \"*\": use Defaults for all upstreams"
                )));
            }
            let twice = |other: &&UpstreamConfig| {
                other.name.eq_ignore_ascii_case(&over.name)
                    && other.peer.eq_ignore_ascii_case(&over.peer)
            };
            if config.overrides[..at].iter().any(|other| twice(&other)) {
                return Err(EntryError::invalid(format!(
                    "{place}: {:?} is there twice",
                    over.name
                )));
            }
            check_upstream(&place, over)?;
        }
        Ok(())
    }

    fn check_rate_limits(&self) -> Result<(), EntryError> {
        let Some(limits) = &self.rate_limits else {
            return Ok(());
        };
        let level = &limits.instance_level;
        let place = "RateLimits.InstanceLevel";
        if level.requests_per_second == 0 && level.requests_max_burst > 0 {
            return Err(EntryError::invalid(format!(
                "{place}.RequestsPerSecond must be greater than 0 when RequestsMaxBurst is set"
            )));
        }
        for (at, route) in level.routes.iter().enumerate() {
            let paths = [&route.path_exact, &route.path_prefix, &route.path_regex];
            if paths.iter().filter(|path| !path.is_empty()).count() != 1 {
                return Err(EntryError::invalid(format!(
                    "{place}.Routes[{at}] must have exactly one of PathExact, PathPrefix, or PathRegex"
                )));
            }
            if route.requests_per_second == 0 {
                return Err(EntryError::invalid(format!(
                    "{place}.Routes[{at}].RequestsPerSecond must be greater than 0"
                )));
            }
        }
        Ok(())
    }
}

fn common(
    mode: &str,
    mutual_tls_mode: &str,
    mesh_gateway: &MeshGateway,
    expose: &Expose,
    extensions: &[EnvoyExtension],
) -> Result<(), EntryError> {
    one_of("Mode", mode, &PROXY_MODES)?;
    one_of("MutualTLSMode", mutual_tls_mode, &MUTUAL_TLS_MODES)?;
    one_of("MeshGateway.Mode", &mesh_gateway.mode, &MESH_GATEWAY_MODES)?;
    for (at, path) in expose.paths.iter().enumerate() {
        let place = format!("Expose.Paths[{at}]");
        one_of(
            &format!("{place}.Protocol"),
            &path.protocol,
            &["", "http", "http2"],
        )?;
        if path.listener_port > 65_535 || path.local_path_port > 65_535 {
            return Err(EntryError::invalid(format!(
                "{place}: a port is at most 65535"
            )));
        }
    }
    match extensions
        .iter()
        .position(|extension| extension.name.is_empty())
    {
        Some(at) => Err(EntryError::invalid(format!(
            "invalid EnvoyExtensions[{at}]: Name is required"
        ))),
        None => Ok(()),
    }
}

fn check_upstream(place: &str, upstream: &UpstreamConfig) -> Result<(), EntryError> {
    one_of(
        &format!("{place}.MeshGateway.Mode"),
        &upstream.mesh_gateway.mode,
        &MESH_GATEWAY_MODES,
    )?;
    one_of(
        &format!("{place}.BalanceOutboundConnections"),
        &upstream.balance_outbound_connections,
        &["", "exact_balance"],
    )?;
    match &upstream.passive_health_check {
        Some(check) => check.validate(&format!("{place}.PassiveHealthCheck")),
        None => Ok(()),
    }
}

impl PassiveHealthCheck {
    pub(crate) fn validate(&self, place: &str) -> Result<(), EntryError> {
        not_negative(&format!("{place}.Interval"), self.interval)?;
        if let Some(time) = self.base_ejection_time {
            not_negative(&format!("{place}.BaseEjectionTime"), time)?;
        }
        for (name, percent) in [
            ("EnforcingConsecutive5xx", self.enforcing_consecutive_5xx),
            ("MaxEjectionPercent", self.max_ejection_percent),
        ] {
            if let Some(percent) = percent.filter(|percent| *percent > 100) {
                return Err(EntryError::invalid(format!(
                    "{place}.{name} is a percentage between 0 and 100, not {percent}"
                )));
            }
        }
        Ok(())
    }
}
