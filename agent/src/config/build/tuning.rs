//! Raft, DNS, HTTP, limits and the log.

use std::collections::BTreeMap;

use super::network::recursor;
use super::values::Values;
use crate::config::problem::Code;
use crate::config::raw::{
    RawAutopilot, RawDns, RawHttp, RawLimits, RawLogStore, RawPerformance, RawRequestLimits,
    RawSoa, RawViews,
};
use crate::config::runtime::{
    AutopilotConfig, ChecksConfig, DnsConfig, HttpConfig, LimitMode, LimitsConfig, LogBackend,
    LogConfig, LogLevel, RaftConfig, RateLimits, RecursorStrategy, ServedViews, SoaConfig,
    ViewsLimits,
};
use crate::config::sockaddr;
use crate::local::ScriptChecks;

impl Values<'_> {
    pub(super) fn raft(
        &mut self,
        performance: &RawPerformance,
        store: &RawLogStore,
        (threshold, interval, trailing): (Option<i64>, Option<&str>, Option<i64>),
    ) -> RaftConfig {
        let segment = store.wal.as_ref().and_then(|wal| wal.segment_size_mb);
        RaftConfig {
            multiplier: self.small(
                "performance.raft_multiplier",
                performance.raft_multiplier,
                1,
                1..=10,
            ),
            snapshot_threshold: self.size("raft_snapshot_threshold", threshold, 16_384, 1),
            snapshot_interval: self.duration_from(
                "raft_snapshot_interval",
                interval,
                "30s",
                "100ms",
            ),
            trailing_logs: self.size("raft_trailing_logs", trailing, 10_240, 0),
            backend: self.log_backend(store.backend.as_deref()),
            segment_size_bytes: u64::from(self.small(
                "raft_logstore.wal.segment_size_mb",
                segment,
                64,
                1..=1_024,
            )) << 20,
            rpc_hold_timeout: self.duration(
                "performance.rpc_hold_timeout",
                performance.rpc_hold_timeout.as_deref(),
                "7s",
            ),
        }
    }

    fn log_backend(&mut self, given: Option<&str>) -> LogBackend {
        let key = "raft_logstore.backend";
        if given.is_some_and(|backend| backend.eq_ignore_ascii_case("boltdb")) {
            let message =
                "raft_logstore.backend \"boltdb\" is not in weft; its own write-ahead log is used";
            self.problem(
                Code::Advice,
                key,
                message,
                Some("write \"wal\" or \"sled\""),
            );
            return LogBackend::Wal;
        }
        let words = [
            ("wal", LogBackend::Wal),
            ("sled", LogBackend::Sled),
            ("default", LogBackend::Wal),
        ];
        self.choice(key, given, &words, LogBackend::Wal)
    }

    pub(super) fn autopilot(&mut self, raw: &RawAutopilot) -> AutopilotConfig {
        AutopilotConfig {
            cleanup_dead_servers: raw.cleanup_dead_servers.unwrap_or(true),
            last_contact_threshold: self.duration_from(
                "autopilot.last_contact_threshold",
                raw.last_contact_threshold.as_deref(),
                "1s",
                "1ms",
            ),
            max_trailing_logs: self.size(
                "autopilot.max_trailing_logs",
                raw.max_trailing_logs,
                250,
                0,
            ),
            min_quorum: self.small("autopilot.min_quorum", raw.min_quorum, 0, 0..=99),
            server_stabilization_time: self.duration(
                "autopilot.server_stabilization_time",
                raw.server_stabilization_time.as_deref(),
                "10s",
            ),
        }
    }

    pub(super) fn dns(
        &mut self,
        raw: &RawDns,
        recursors: &[String],
        own: &[std::net::SocketAddr],
    ) -> DnsConfig {
        let strategy = [
            ("sequential", RecursorStrategy::Sequential),
            ("random", RecursorStrategy::Random),
        ];
        DnsConfig {
            recursors: self.recursors(recursors, own),
            recursor_strategy: self.choice(
                "dns_config.recursor_strategy",
                raw.recursor_strategy.as_deref(),
                &strategy,
                RecursorStrategy::Sequential,
            ),
            recursor_timeout: self.duration(
                "dns_config.recursor_timeout",
                raw.recursor_timeout.as_deref(),
                "2s",
            ),
            node_ttl: self.duration("dns_config.node_ttl", raw.node_ttl.as_deref(), "0s"),
            service_ttl: self.service_ttl(raw.service_ttl.as_ref()),
            only_passing: raw.only_passing.unwrap_or(false),
            allow_stale: raw.allow_stale.unwrap_or(true),
            max_stale: self.duration("dns_config.max_stale", raw.max_stale.as_deref(), "87600h"),
            use_cache: raw.use_cache.unwrap_or(false),
            cache_max_age: self.duration(
                "dns_config.cache_max_age",
                raw.cache_max_age.as_deref(),
                "0s",
            ),
            a_record_limit: self.length("dns_config.a_record_limit", raw.a_record_limit, 0, 0),
            udp_answer_limit: self.length(
                "dns_config.udp_answer_limit",
                raw.udp_answer_limit,
                3,
                0,
            ),
            enable_truncate: raw.enable_truncate.unwrap_or(false),
            disable_compression: raw.disable_compression.unwrap_or(false),
            node_meta_txt: raw.enable_additional_node_meta_txt.unwrap_or(true),
            soa: self.soa(raw.soa.clone().unwrap_or_default()),
        }
    }

    fn soa(&mut self, raw: RawSoa) -> SoaConfig {
        let mut seconds = |leaf: &str, given, default| {
            self.small(
                &format!("dns_config.soa.{leaf}"),
                given,
                default,
                0..=i64::from(i32::MAX),
            )
        };
        SoaConfig {
            expire_seconds: seconds("expire", raw.expire, 86_400),
            min_ttl_seconds: seconds("min_ttl", raw.min_ttl, 0),
            refresh_seconds: seconds("refresh", raw.refresh, 3_600),
            retry_seconds: seconds("retry", raw.retry, 600),
        }
    }

    fn service_ttl(
        &mut self,
        given: Option<&BTreeMap<String, String>>,
    ) -> BTreeMap<String, std::time::Duration> {
        let mut out = BTreeMap::new();
        for (name, text) in given.into_iter().flatten() {
            let ttl = self.duration(&format!("dns_config.service_ttl.{name}"), Some(text), "0s");
            out.insert(name.clone(), ttl);
        }
        out
    }

    /// `own`: where this agent answers DNS itself; asked there, a question would come back to us.
    fn recursors(
        &mut self,
        given: &[String],
        own: &[std::net::SocketAddr],
    ) -> Vec<std::net::SocketAddr> {
        let mut out = Vec::new();
        for text in given {
            let expanded = sockaddr::expand(text, &self.machine.interfaces);
            match expanded.as_deref().map(recursor) {
                Ok(Some(address)) if self.is_own(address, own) => self.problem(
                    Code::BadValue,
                    "recursors",
                    format!("recursors: {text:?} is this agent's own DNS port; name another resolver, or change ports.dns"),
                    None,
                ),
                Ok(Some(address)) => out.push(address),
                Ok(None) => {
                    let message = format!(
                        "recursors: {text:?} is not an address such as 9.9.9.9 or 9.9.9.9:53"
                    );
                    self.problem(Code::BadValue, "recursors", message, None);
                }
                Err(error) => self.problem(
                    Code::BadValue,
                    "recursors",
                    format!("recursors: {error}"),
                    None,
                ),
            }
        }
        out
    }

    fn is_own(&self, address: std::net::SocketAddr, own: &[std::net::SocketAddr]) -> bool {
        let ip = address.ip().to_canonical();
        let of_this_host = ip.is_loopback()
            || ip.is_unspecified()
            || self.machine.interfaces.iter().any(|one| one.address == ip);
        own.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == ip || own.ip().is_unspecified() && of_this_host)
        })
    }

    pub(super) fn http(&mut self, raw: RawHttp) -> HttpConfig {
        let headers = raw.response_headers.unwrap_or_default();
        for (name, value) in &headers {
            let bad = http::HeaderName::try_from(name).is_err()
                || http::HeaderValue::try_from(value).is_err();
            if bad {
                let key = format!("http_config.response_headers.{name}");
                self.problem(
                    Code::BadValue,
                    &key,
                    format!("{name:?} is not a header with a valid value"),
                    None,
                );
            }
        }
        let mut networks = Vec::new();
        for text in raw.allow_write_http_from.unwrap_or_default() {
            match sockaddr::parse_network(&text) {
                Some(network) => networks.push(network),
                None => {
                    let message = format!("{text:?} is not a network such as 10.0.0.0/8");
                    self.problem(
                        Code::BadValue,
                        "http_config.allow_write_http_from",
                        message,
                        None,
                    );
                }
            }
        }
        HttpConfig {
            block_endpoints: raw.block_endpoints.unwrap_or_default(),
            response_headers: headers,
            allow_write_from: networks,
            use_cache: raw.use_cache.unwrap_or(true),
            max_header_bytes: self.length(
                "http_config.max_header_bytes",
                raw.max_header_bytes,
                65_536,
                4_096,
            ),
            read_header_timeout: self.duration(
                "http_config.read_header_timeout",
                raw.read_header_timeout.as_deref(),
                "10s",
            ),
            stall_timeout: self.duration_from(
                "http_config.stall_timeout",
                raw.stall_timeout.as_deref(),
                "30s",
                "1s",
            ),
            read_timeout: self.timeout("http_config.read_timeout", raw.read_timeout.as_deref()),
            write_timeout: self.timeout("http_config.write_timeout", raw.write_timeout.as_deref()),
            idle_timeout: self.duration(
                "http_config.idle_timeout",
                raw.idle_timeout.as_deref(),
                "120s",
            ),
        }
    }

    pub(super) fn views(&mut self, raw: &RawViews) -> ViewsLimits {
        let mut time = |leaf: &str, given: &Option<String>, default| {
            self.duration_from(&format!("views.{leaf}"), given.as_deref(), default, "1ms")
        };
        let idle_ttl = time("idle_ttl", &raw.idle_ttl, "72h");
        let missing_idle_ttl = time("missing_idle_ttl", &raw.missing_idle_ttl, "10m");
        let first_wait = time("first_wait", &raw.first_wait, "3s");
        ViewsLimits {
            max: self.length("views.max", raw.max, 4_096, 1),
            max_bytes: self.length("views.max_bytes", raw.max_bytes, 64 << 20, 1 << 20),
            idle_ttl,
            missing_idle_ttl,
            first_wait,
            server: self.served_views(raw),
        }
    }

    fn served_views(&mut self, raw: &RawViews) -> ServedViews {
        let rate = 1..=i64::from(u32::MAX);
        ServedViews {
            agents: self.length("views.server_agents", raw.server_agents, 8_192, 1),
            per_agent: self.length("views.server_per_agent", raw.server_per_agent, 8_192, 1),
            views: self.length("views.server_max", raw.server_max, 65_536, 1),
            begins_per_second: self.small(
                "views.server_begins_per_second",
                raw.server_begins_per_second,
                200,
                rate.clone(),
            ),
            begins_burst: self.small(
                "views.server_begins_burst",
                raw.server_begins_burst,
                400,
                rate,
            ),
        }
    }

    fn rates(&mut self, key: &str, raw: Option<&RawRequestLimits>) -> RateLimits {
        let raw = raw.cloned().unwrap_or_default();
        let modes = [
            ("disabled", LimitMode::Disabled),
            ("permissive", LimitMode::Permissive),
            ("enforcing", LimitMode::Enforcing),
        ];
        let place = format!("{key}.mode");
        RateLimits {
            mode: self.choice(&place, raw.mode.as_deref(), &modes, LimitMode::Disabled),
            read: Self::rate(raw.read_rate),
            write: Self::rate(raw.write_rate),
        }
    }

    pub(super) fn limits(&mut self, raw: &RawLimits) -> LimitsConfig {
        let mut time = |leaf: &str, given: &Option<String>, default| {
            self.duration_from(&format!("limits.{leaf}"), given.as_deref(), default, "1ms")
        };
        let https_handshake_timeout = time(
            "https_handshake_timeout",
            &raw.https_handshake_timeout,
            "5s",
        );
        let rpc_handshake_timeout = time("rpc_handshake_timeout", &raw.rpc_handshake_timeout, "5s");
        let rpc_client_timeout = time("rpc_client_timeout", &raw.rpc_client_timeout, "15s");
        let mut length = |leaf: &str, given, default, least| {
            self.length(&format!("limits.{leaf}"), given, default, least)
        };
        LimitsConfig {
            http_max_blocking_queries: length(
                "http_max_blocking_queries",
                raw.http_max_blocking_queries,
                16_384,
                1,
            ),
            http_max_conns: length("http_max_conns", raw.http_max_conns, 8_192, 1),
            http_max_conns_per_client: length(
                "http_max_conns_per_client",
                raw.http_max_conns_per_client,
                200,
                0,
            ),
            http_max_request_body_bytes: length(
                "http_max_request_body_size",
                raw.http_max_request_body_size,
                1 << 20,
                1,
            ),
            kv_max_value_bytes: length("kv_max_value_size", raw.kv_max_value_size, 524_288, 1),
            txn_max_request_bytes: length("txn_max_req_len", raw.txn_max_req_len, 524_288, 1),
            rpc_max_conns_per_client: length(
                "rpc_max_conns_per_client",
                raw.rpc_max_conns_per_client,
                100,
                0,
            ),
            rpc_max_blocking_queries_per_agent: length(
                "rpc_max_blocking_queries_per_agent",
                raw.rpc_max_blocking_queries_per_agent,
                4_096,
                1,
            ),
            rpc_max_calls: length("rpc_max_calls", raw.rpc_max_calls, 16_384, 1),
            https_handshake_timeout,
            rpc_handshake_timeout,
            rpc_client_timeout,
            rpc_rate: Self::rate(raw.rpc_rate),
            rpc_max_burst: self.small(
                "limits.rpc_max_burst",
                raw.rpc_max_burst,
                1_000,
                0..=i64::from(u32::MAX),
            ),
            request: self.rates("limits.request_limits", raw.request_limits.as_ref()),
            source: self.rates("limits.source_limits", raw.source_limits.as_ref()),
        }
    }

    pub(super) fn log(
        &mut self,
        (level, json, file): (Option<&str>, Option<bool>, Option<String>),
        (bytes, duration, files): (Option<i64>, Option<&str>, Option<i64>),
    ) -> LogConfig {
        let levels = [
            ("TRACE", LogLevel::Trace),
            ("DEBUG", LogLevel::Debug),
            ("INFO", LogLevel::Info),
            ("WARN", LogLevel::Warn),
            ("ERR", LogLevel::Error),
            ("ERROR", LogLevel::Error),
        ];
        let rotate_bytes = self.size("log_rotate_bytes", bytes, 0, 0);
        let kept = self.count("log_rotate_max_files", files, 0, -1..=1_000_000);
        LogConfig {
            level: self.choice("log_level", level, &levels, LogLevel::Info),
            json: json.unwrap_or(false),
            file: Self::path(file),
            rotate_bytes: (rotate_bytes > 0).then_some(rotate_bytes),
            rotate_duration: self.duration("log_rotate_duration", duration, "24h"),
            // Consul's numbers: 0 keeps all, −1 keeps none.
            rotate_max_files: (kept != 0).then(|| u32::try_from(kept).unwrap_or(0)),
        }
    }

    pub(super) fn checks(
        &mut self,
        interval: Option<&str>,
        discard: Option<bool>,
        max: Option<i64>,
        scripts: ScriptChecks,
        [link_local, agent_tls]: [Option<bool>; 2],
    ) -> ChecksConfig {
        ChecksConfig {
            update_interval: self.duration("check_update_interval", interval, "5m"),
            discard_output: discard.unwrap_or(false),
            output_max_bytes: self.length("check_output_max_size", max, 4_096, 1),
            scripts,
            link_local: link_local.unwrap_or(false),
            agent_tls: agent_tls.unwrap_or(false),
        }
    }
}
