//! Every configuration key weft knows: its type, whether it has an effect yet, whether a reload takes it.
//!
//! Owns: the table. Checking, merging, reload and the environment names all walk it.
//! Never: holds a default or a value.
//! Source: Consul docs, "Configuration"; CONSUL D.1, D.2, D.7, D.9, D.11, H.

/// What a value must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// `true`, `false`, or the same as text.
    Bool,
    /// A whole number, or the same as text.
    Int,
    /// Any number.
    Float,
    /// Text; numbers are taken as text, as Consul does.
    Text,
    /// Go duration text: `30s`, `1h30m`.
    Duration,
    /// A list of texts; one text stands for a list of one.
    Texts,
    /// A map of text to text.
    TextMap,
    /// A block of these keys; given more than once, they merge.
    Section(&'static [Key]),
    /// As `Section`, with key spellings folded (`CheckID`, `check_id`), as in API bodies.
    Definition(&'static [Key]),
    /// A list of `Definition`.
    Definitions(&'static [Key]),
    /// Lists and objects weft does not look into here.
    Free,
}

/// What a key does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Has its effect.
    Honoured,
    /// Known and accepted; one warning says that nothing comes of it.
    Inert,
    /// Known, means nothing in weft and never will; accepted silently because everybody has it.
    Silent,
    /// An old name; has its effect, and one warning names the new one.
    Renamed(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its name in a file.
    pub(super) name: &'static str,
    /// Its type.
    pub(super) kind: Kind,
    /// Its effect.
    pub(super) effect: Effect,
    /// Whether a reload takes a new value; otherwise a restart is needed.
    pub(super) reloadable: bool,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        effect: Effect::Honoured,
        reloadable: false,
    }
}

const fn inert(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        effect: Effect::Inert,
        reloadable: false,
    }
}

const fn silent(name: &'static str, kind: Kind) -> Key {
    Key {
        name,
        kind,
        effect: Effect::Silent,
        reloadable: false,
    }
}

const fn old(name: &'static str, kind: Kind, new: &'static str) -> Key {
    Key {
        name,
        kind,
        effect: Effect::Renamed(new),
        reloadable: false,
    }
}

impl Key {
    const fn live(mut self) -> Self {
        self.reloadable = true;
        self
    }
}

use Kind::{
    Bool, Definition, Definitions, Duration, Float, Free, Int, Section, Text, TextMap, Texts,
};

/// The keys at the top of a file.
pub(super) const TOP: &[Key] = &[
    key("addresses", Section(ADDRESSES)),
    key("acl", Section(ACL)),
    key("advertise_addr", Text),
    key("advertise_addr_ipv4", Text),
    key("advertise_addr_ipv6", Text),
    key("advertise_addr_wan", Text),
    key("advertise_addr_wan_ipv4", Text),
    key("advertise_addr_wan_ipv6", Text),
    inert("advertise_reconnect_timeout", Duration),
    key("allow_open_http", Bool),
    key("allow_unencrypted", Bool),
    key("alt_domain", Text),
    inert("audit", Free),
    key("auto_config", Section(AUTO_CONFIG)),
    key("auto_encrypt", Section(AUTO_ENCRYPT)),
    inert("auto_reload_config", Bool),
    key("autopilot", Section(AUTOPILOT)),
    key("bind_addr", Text),
    key("bootstrap", Bool),
    key("bootstrap_expect", Int),
    inert(
        "cache",
        Section(&[
            inert("entry_fetch_rate", Float),
            inert("entry_fetch_max_burst", Int),
        ]),
    ),
    key("check", Definitions(CHECK)).live(),
    key("check_output_max_size", Int),
    key("check_update_interval", Duration),
    key("checks", Definitions(CHECK)).live(),
    key("client_addr", Text),
    inert("cloud", Free),
    inert("config_entries", Section(&[inert("bootstrap", Free)])),
    key("connect", Section(CONNECT)),
    key("data_dir", Text),
    key("datacenter", Text),
    key("default_intention_policy", Text),
    key("default_query_time", Duration),
    silent("disable_anonymous_signature", Bool),
    key("disable_coordinates", Bool),
    silent("disable_host_node_id", Bool),
    inert("disable_http_unprintable_char_filter", Bool),
    key("disable_keyring_file", Bool),
    key("disable_kv_key_validation", Bool),
    silent("disable_remote_exec", Bool),
    silent("disable_update_check", Bool),
    key("discard_check_output", Bool),
    key("discovery_max_stale", Duration),
    key("dns_config", Section(DNS)).live(),
    key("domain", Text),
    key("enable_agent_tls_for_checks", Bool),
    inert("enable_central_service_config", Bool),
    inert("enable_debug", Bool),
    key("enable_link_local_checks", Bool),
    key("enable_local_script_checks", Bool),
    key("enable_script_checks", Bool),
    inert("enable_syslog", Bool),
    silent("enable_xds_load_balancing", Bool),
    key("encrypt", Text),
    key("encrypt_verify_incoming", Bool),
    key("encrypt_verify_outgoing", Bool),
    inert("experiments", Texts),
    key("gossip_lan", Section(GOSSIP)),
    inert("gossip_wan", Section(GOSSIP)),
    key("http_config", Section(HTTP)),
    key("join_token", Text),
    key("join_token_file", Text),
    key("join_tokens", Section(JOIN_TOKENS)),
    key("leave_on_terminate", Bool),
    silent("license_path", Text),
    key("limits", Section(LIMITS)),
    inert(
        "locality",
        Section(&[inert("region", Text), inert("zone", Text)]),
    ),
    key("log_file", Text),
    key("log_json", Bool),
    key("log_level", Text).live(),
    key("log_rotate_bytes", Int),
    key("log_rotate_duration", Duration),
    key("log_rotate_max_files", Int),
    key("max_query_time", Duration),
    key("node_id", Text),
    key("node_meta", TextMap).live(),
    key("node_name", Text),
    inert("non_voting_server", Bool),
    inert("partition", Text),
    inert("peering", Section(&[inert("enabled", Bool)])),
    key("performance", Section(PERFORMANCE)),
    key("pid_file", Text),
    key("ports", Section(PORTS)),
    key("primary_datacenter", Text),
    inert("primary_gateways", Texts),
    inert("primary_gateways_interval", Duration),
    silent("protocol", Int),
    inert("raft_boltdb", Free),
    key("raft_logstore", Section(LOGSTORE)),
    silent("raft_protocol", Int),
    inert("raft_snapshot_interval", Duration),
    key("raft_snapshot_threshold", Int),
    key("raft_trailing_logs", Int),
    inert("read_replica", Bool),
    inert("reap", Bool),
    key("reconnect_timeout", Duration),
    inert("reconnect_timeout_wan", Duration),
    key("recursors", Texts).live(),
    key("rejoin_after_leave", Bool),
    inert("reporting", Free),
    inert("request_limits", Free),
    key("retry_interval", Duration),
    inert("retry_interval_wan", Duration),
    key("retry_join", Texts),
    inert("retry_join_wan", Texts),
    key("retry_max", Int),
    inert("retry_max_wan", Int),
    inert("rpc", Section(&[inert("enable_streaming", Bool)])),
    inert("segment", Text),
    inert("segments", Free),
    key("serf_lan", Text),
    inert("serf_lan_allowed_cidrs", Texts),
    inert("serf_wan", Text),
    inert("serf_wan_allowed_cidrs", Texts),
    key("server", Bool),
    inert("server_rejoin_age_max", Duration),
    key("service", Definitions(SERVICE)).live(),
    key("services", Definitions(SERVICE)).live(),
    key("session_ttl_min", Duration),
    key("skip_leave_on_interrupt", Bool),
    key("start_join", Texts),
    inert("start_join_wan", Texts),
    inert("syslog_facility", Text),
    key("telemetry", Section(TELEMETRY)),
    key("tls", Section(TLS)),
    inert("translate_wan_addrs", Bool),
    inert("ui", Bool),
    inert("ui_config", Section(UI)),
    old("ui_content_path", Text, "ui_config.content_path"),
    old("ui_dir", Text, "ui_config.dir"),
    key(
        "unix_sockets",
        Section(&[inert("user", Text), inert("group", Text), key("mode", Text)]),
    ),
    inert("use_streaming_backend", Bool),
    key(
        "views",
        Section(&[
            key("first_wait", Duration),
            key("idle_ttl", Duration),
            key("max", Int),
            key("max_bytes", Int),
            key("missing_idle_ttl", Duration),
            key("server_agents", Int),
            key("server_begins_burst", Int),
            key("server_begins_per_second", Int),
            key("server_max", Int),
            key("server_per_agent", Int),
        ]),
    ),
    key("watches", Definitions(WATCH)).live(),
    // Names Consul has retired; still common.
    inert("acl_agent_master_token", Text),
    inert("acl_agent_token", Text),
    inert("acl_datacenter", Text),
    inert("acl_default_policy", Text),
    inert("acl_down_policy", Text),
    inert("acl_enable_key_list_policy", Bool),
    inert("acl_enforce_version_8", Bool),
    inert("acl_master_token", Text),
    inert("acl_policy_ttl", Duration),
    inert("acl_replication_token", Text),
    inert("acl_role_ttl", Duration),
    inert("acl_token", Text),
    inert("acl_ttl", Duration),
    inert("enable_acl_replication", Bool),
    old("ca_file", Text, "tls.defaults.ca_file").live(),
    old("ca_path", Text, "tls.defaults.ca_path").live(),
    old("cert_file", Text, "tls.defaults.cert_file").live(),
    old("key_file", Text, "tls.defaults.key_file").live(),
    old("tls_cipher_suites", Text, "tls.defaults.tls_cipher_suites"),
    old("tls_min_version", Text, "tls.defaults.tls_min_version"),
    silent("tls_prefer_server_cipher_suites", Bool),
    old("verify_incoming", Bool, "tls.defaults.verify_incoming"),
    old("verify_incoming_https", Bool, "tls.https.verify_incoming"),
    old(
        "verify_incoming_rpc",
        Bool,
        "tls.internal_rpc.verify_incoming",
    ),
    old("verify_outgoing", Bool, "tls.defaults.verify_outgoing"),
    old(
        "verify_server_hostname",
        Bool,
        "tls.internal_rpc.verify_server_hostname",
    ),
];

const ADDRESSES: &[Key] = &[
    key("dns", Text),
    inert("grpc", Text),
    inert("grpc_tls", Text),
    key("http", Text),
    key("https", Text),
];

const ACL: &[Key] = &[
    key("enabled", Bool),
    inert("default_policy", Text),
    inert("down_policy", Text),
    inert("token_ttl", Duration),
    inert("policy_ttl", Duration),
    inert("role_ttl", Duration),
    inert("enable_key_list_policy", Bool),
    inert("enable_token_replication", Bool),
    inert("enable_token_persistence", Bool),
    inert("msp_disable_bootstrap", Bool),
    inert(
        "tokens",
        Section(&[
            inert("agent", Text),
            inert("agent_master", Text),
            inert("agent_recovery", Text),
            inert("config_file_service_registration", Text),
            inert("default", Text),
            inert("dns", Text),
            inert("initial_management", Text),
            inert("managed_service_provider", Free),
            inert("master", Text),
            inert("replication", Text),
        ]),
    ),
];

const AUTO_CONFIG: &[Key] = &[
    key(
        "authorization",
        Section(&[key("enabled", Bool), silent("static", Free)]),
    ),
    silent("dns_sans", Texts),
    key("enabled", Bool),
    key("intro_token", Text),
    key("intro_token_file", Text),
    silent("ip_sans", Texts),
    key("server_addresses", Texts),
];

const AUTO_ENCRYPT: &[Key] = &[
    key("allow_tls", Bool),
    silent("dns_san", Texts),
    silent("ip_san", Texts),
    key("tls", Bool),
];

const AUTOPILOT: &[Key] = &[
    key("cleanup_dead_servers", Bool),
    silent("disable_upgrade_migration", Bool),
    key("last_contact_threshold", Duration),
    key("max_trailing_logs", Int),
    key("min_quorum", Int),
    silent("redundancy_zone_tag", Text),
    key("server_stabilization_time", Duration),
    silent("upgrade_version_tag", Text),
];

const JOIN_TOKENS: &[Key] = &[
    key("cert_file", Text),
    key("certificate_ttl", Duration),
    key("key_file", Text),
];

const CONNECT: &[Key] = &[
    silent("enabled", Bool),
    inert("ca_config", Free),
    inert("ca_provider", Text),
    inert("enable_mesh_gateway_wan_federation", Bool),
    inert("enable_serverless_plugin", Bool),
    inert("test_ca_leaf_root_change_spread", Duration),
];

const DNS: &[Key] = &[
    key("a_record_limit", Int),
    key("allow_stale", Bool),
    silent("cache_max_age", Duration),
    key("disable_compression", Bool),
    key("enable_additional_node_meta_txt", Bool),
    key("enable_truncate", Bool),
    key("max_stale", Duration),
    key("node_ttl", Duration),
    key("only_passing", Bool),
    silent("prefer_namespace", Bool),
    key("recursor_strategy", Text),
    key("recursor_timeout", Duration),
    key("service_ttl", TextMap),
    key(
        "soa",
        Section(&[
            key("expire", Int),
            key("min_ttl", Int),
            key("refresh", Int),
            key("retry", Int),
        ]),
    ),
    key("udp_answer_limit", Int),
    silent("use_cache", Bool),
];

const GOSSIP: &[Key] = &[
    key("gossip_interval", Duration),
    key("gossip_nodes", Int),
    key("probe_interval", Duration),
    key("probe_timeout", Duration),
    key("retransmit_mult", Int),
    key("suspicion_mult", Int),
];

const HTTP: &[Key] = &[
    key("allow_write_http_from", Texts),
    key("block_endpoints", Texts),
    inert("idle_timeout", Duration),
    key("max_header_bytes", Int),
    key("read_header_timeout", Duration),
    inert("read_timeout", Duration),
    key("response_headers", TextMap),
    key("stall_timeout", Duration),
    key("use_cache", Bool),
    inert("write_timeout", Duration),
];

const LIMITS: &[Key] = &[
    key("http_max_blocking_queries", Int).live(),
    key("http_max_conns", Int).live(),
    key("http_max_conns_per_client", Int).live(),
    key("http_max_request_body_size", Int).live(),
    key("https_handshake_timeout", Duration).live(),
    key("kv_max_value_size", Int).live(),
    key("request_limits", Section(RATES)).live(),
    key("rpc_client_timeout", Duration),
    key("rpc_handshake_timeout", Duration),
    key("rpc_max_blocking_queries_per_agent", Int).live(),
    key("rpc_max_burst", Int).live(),
    key("rpc_max_calls", Int),
    key("rpc_max_conns_per_client", Int).live(),
    key("rpc_rate", Float).live(),
    key("source_limits", Section(RATES)).live(),
    key("txn_max_req_len", Int).live(),
];

/// Requests a second.
const RATES: &[Key] = &[
    key("mode", Text),
    key("read_rate", Float),
    key("write_rate", Float),
];

const PERFORMANCE: &[Key] = &[
    inert("grpc_keepalive_interval", Duration),
    inert("grpc_keepalive_timeout", Duration),
    inert("leave_drain_time", Duration),
    key("raft_multiplier", Int),
    key("rpc_hold_timeout", Duration),
];

const PORTS: &[Key] = &[
    key("dns", Int),
    silent("expose_max_port", Int),
    silent("expose_min_port", Int),
    inert("grpc", Int),
    inert("grpc_tls", Int),
    key("http", Int),
    key("https", Int),
    key("serf_lan", Int),
    key("serf_wan", Int),
    key("server", Int),
    silent("sidecar_max_port", Int),
    silent("sidecar_min_port", Int),
];

const LOGSTORE: &[Key] = &[
    key("backend", Text),
    inert("boltdb", Free),
    inert("disable_log_cache", Bool),
    inert("verification", Free),
    key("wal", Section(&[key("segment_size_mb", Int)])),
];

const TELEMETRY: &[Key] = &[
    inert("circonus_api_app", Text),
    inert("circonus_api_token", Text),
    inert("circonus_api_url", Text),
    inert("circonus_broker_id", Text),
    inert("circonus_broker_select_tag", Text),
    inert("circonus_check_display_name", Text),
    inert("circonus_check_force_metric_activation", Text),
    inert("circonus_check_id", Text),
    inert("circonus_check_instance_id", Text),
    inert("circonus_check_search_tag", Text),
    inert("circonus_check_tags", Text),
    inert("circonus_submission_interval", Text),
    inert("circonus_submission_url", Text),
    silent("disable_compat_1.9", Bool),
    key("disable_hostname", Bool),
    inert("disable_per_tenancy_usage_metrics", Bool),
    key("dogstatsd_addr", Text),
    key("dogstatsd_tags", Texts),
    inert("enable_host_metrics", Bool),
    key("filter_default", Bool).live(),
    key("metrics_prefix", Text),
    key("prefix_filter", Texts).live(),
    key("prometheus_retention_time", Duration),
    inert("retry_failed_connection", Bool),
    key("statsd_address", Text),
    key("statsite_address", Text),
    inert("statsite_prefix", Text),
];

const TLS: &[Key] = &[
    key("defaults", Section(TLS_OPTIONS)),
    inert("grpc", Section(TLS_OPTIONS)),
    key("https", Section(TLS_OPTIONS)),
    key("internal_rpc", Section(TLS_OPTIONS)),
];

const TLS_OPTIONS: &[Key] = &[
    key("ca_file", Text).live(),
    key("ca_path", Text).live(),
    key("cert_file", Text).live(),
    key("key_file", Text).live(),
    inert("tls_cipher_suites", Text),
    key("tls_min_version", Text),
    inert("use_auto_cert", Bool),
    key("verify_incoming", Bool),
    key("verify_outgoing", Bool),
    key("verify_server_hostname", Bool),
];

const UI: &[Key] = &[
    inert("content_path", Text),
    inert("dashboard_url_templates", TextMap),
    inert("dir", Text),
    inert("enabled", Bool),
    inert("metrics_provider", Text),
    inert("metrics_provider_files", Texts),
    inert("metrics_provider_options_json", Text),
    inert(
        "metrics_proxy",
        Section(&[
            inert("add_headers", Free),
            inert("base_url", Text),
            inert("path_allowlist", Texts),
        ]),
    ),
    inert("default_namespace", Text),
];

/// A service definition in a file (CONSUL D.7).
pub(super) const SERVICE: &[Key] = &[
    key("id", Text),
    key("name", Text),
    key("address", Text),
    key("check", Definition(CHECK)),
    key("checks", Definitions(CHECK)),
    key("connect", Free),
    key("enable_tag_override", Bool),
    key("kind", Text),
    key("locality", Free),
    key("meta", TextMap),
    silent("namespace", Text),
    silent("partition", Text),
    key("port", Int),
    key("ports", Free),
    key("proxy", Free),
    key("socket_path", Text),
    key("tagged_addresses", Free),
    key("tags", Texts),
    key("token", Text),
    key(
        "weights",
        Definition(&[key("passing", Int), key("warning", Int)]),
    ),
];

/// A check definition in a file (CONSUL B.6).
pub(super) const CHECK: &[Key] = &[
    key("id", Text),
    key("check_id", Text),
    key("name", Text),
    key("alias_node", Text),
    key("alias_service", Text),
    key("args", Texts),
    key("script_args", Texts),
    key("body", Text),
    key("deregister_critical_service_after", Duration),
    key("disable_redirects", Bool),
    key("docker_container_id", Text),
    key("failures_before_critical", Int),
    key("failures_before_warning", Int),
    key("grpc", Text),
    key("grpc_use_tls", Bool),
    key("h2ping", Text),
    key("h2ping_use_tls", Bool),
    key("header", Free),
    key("http", Text),
    key("interval", Duration),
    key("method", Text),
    silent("namespace", Text),
    key("notes", Text),
    key("os_service", Text),
    key("output_max_size", Int),
    silent("partition", Text),
    // Refused with the reason, rather than as a key nobody knows.
    key("script", Text),
    key("service_id", Text),
    key("shell", Text),
    key("status", Text),
    key("success_before_passing", Int),
    key("tcp", Text),
    key("tcp_use_tls", Bool),
    key("timeout", Duration),
    key("tls_server_name", Text),
    key("tls_skip_verify", Bool),
    key("token", Text),
    key("ttl", Duration),
    key("udp", Text),
];

/// A watch in a file (CONSUL D.8).
const WATCH: &[Key] = &[
    key("type", Text),
    key("key", Text),
    key("prefix", Text),
    key("service", Text),
    key("tag", Texts),
    key("passingonly", Bool),
    key("state", Text),
    key("name", Text),
    key("filter", Text),
    key("token", Text),
    key("datacenter", Text),
    key("stale", Bool),
    key("handler_type", Text),
    key("handler", Text),
    key("args", Texts),
    key(
        "http_handler_config",
        Definition(&[
            key("path", Text),
            key("method", Text),
            key("timeout", Duration),
            key("header", Free),
            key("tls_skip_verify", Bool),
        ]),
    ),
];

/// The key of `name` in `table`; `folded` ignores underscores, dashes and case.
#[must_use]
pub(super) fn find(table: &'static [Key], name: &str, folded: bool) -> Option<&'static Key> {
    if folded {
        return table.iter().find(|key| fold(key.name) == fold(name));
    }
    table
        .iter()
        .find(|key| key.name == name)
        .or_else(|| table.iter().find(|key| key.name.eq_ignore_ascii_case(name)))
}

/// The known name that looks most like `name`, if one is near enough to be meant.
#[must_use]
pub(super) fn nearest(table: &'static [Key], name: &str) -> Option<&'static str> {
    let wanted = name.to_ascii_lowercase();
    let score = |key: &&Key| strsim::damerau_levenshtein(&wanted, key.name);
    let best = table.iter().min_by_key(score)?;
    let allowed = (name.chars().count() / 3).max(1);
    (score(&best) <= allowed).then_some(best.name)
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// The key at a dotted path from the top.
#[must_use]
pub(super) fn lookup(path: &str) -> Option<&'static Key> {
    let mut table = TOP;
    let mut found = None;
    for part in path.split('.') {
        let key = find(table, part, false)?;
        table = match key.kind {
            Kind::Section(inner) | Kind::Definition(inner) | Kind::Definitions(inner) => inner,
            _ => &[],
        };
        found = Some(key);
    }
    found
}

/// Every key outside of definitions with its dotted path, sections before what is in them.
#[must_use]
pub(super) fn walk() -> Vec<(String, &'static Key)> {
    fn inner(table: &'static [Key], path: &str, out: &mut Vec<(String, &'static Key)>) {
        for key in table {
            let path = if path.is_empty() {
                key.name.to_owned()
            } else {
                format!("{path}.{}", key.name)
            };
            out.push((path.clone(), key));
            if let Kind::Section(table) = key.kind {
                inner(table, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    inner(TOP, "", &mut out);
    out
}
