//! The merged tree as optional values: what was said, before anything is decided.
//!
//! Owns: the mirror of the schema's honoured keys.
//! Never: fills in a default.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

macro_rules! raw {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $field: Option<$kind>,)*
        }
    };
}

raw! {
    /// The top of a file.
    RawConfig {
        acl: RawAcl,
        addresses: RawAddresses,
        advertise_addr: String,
        advertise_addr_ipv4: String,
        advertise_addr_ipv6: String,
        advertise_addr_wan: String,
        advertise_addr_wan_ipv4: String,
        advertise_addr_wan_ipv6: String,
        allow_open_http: bool,
        allow_unencrypted: bool,
        alt_domain: String,
        auto_config: RawAutoConfig,
        auto_encrypt: RawAutoEncrypt,
        autopilot: RawAutopilot,
        bind_addr: String,
        bootstrap: bool,
        bootstrap_expect: i64,
        check: Vec<Value>,
        check_output_max_size: i64,
        check_update_interval: String,
        checks: Vec<Value>,
        client_addr: String,
        connect: BTreeMap<String, Value>,
        data_dir: String,
        datacenter: String,
        default_intention_policy: String,
        default_query_time: String,
        disable_coordinates: bool,
        disable_keyring_file: bool,
        disable_kv_key_validation: bool,
        discard_check_output: bool,
        discovery_max_stale: String,
        dns_config: RawDns,
        domain: String,
        enable_agent_tls_for_checks: bool,
        enable_link_local_checks: bool,
        enable_local_script_checks: bool,
        enable_script_checks: bool,
        encrypt: String,
        encrypt_verify_incoming: bool,
        encrypt_verify_outgoing: bool,
        gossip_lan: RawGossip,
        http_config: RawHttp,
        join_token: String,
        join_token_file: String,
        join_tokens: RawJoinTokens,
        leave_on_terminate: bool,
        limits: RawLimits,
        log_file: String,
        log_json: bool,
        log_level: String,
        log_rotate_bytes: i64,
        log_rotate_duration: String,
        log_rotate_max_files: i64,
        max_query_time: String,
        node_id: String,
        node_meta: BTreeMap<String, String>,
        node_name: String,
        performance: RawPerformance,
        pid_file: String,
        ports: RawPorts,
        primary_datacenter: String,
        raft_logstore: RawLogStore,
        raft_snapshot_interval: String,
        raft_snapshot_threshold: i64,
        raft_trailing_logs: i64,
        reconnect_timeout: String,
        recursors: Vec<String>,
        rejoin_after_leave: bool,
        retry_interval: String,
        retry_join: Vec<String>,
        retry_max: i64,
        serf_lan: String,
        server: bool,
        service: Vec<Value>,
        services: Vec<Value>,
        session_ttl_min: String,
        skip_leave_on_interrupt: bool,
        start_join: Vec<String>,
        telemetry: RawTelemetry,
        tls: RawTls,
        ui: bool,
        ui_config: RawUi,
        unix_sockets: RawUnixSockets,
        views: RawViews,
        watches: Vec<Value>,
    }
}

raw! {
    /// `acl`.
    RawAcl { enabled: bool }
}
raw! {
    /// `addresses`.
    RawAddresses { dns: String, grpc: String, grpc_tls: String, http: String, https: String }
}
raw! {
    /// `autopilot`.
    RawAutopilot {
        cleanup_dead_servers: bool,
        last_contact_threshold: String,
        max_trailing_logs: i64,
        min_quorum: i64,
        server_stabilization_time: String,
    }
}
raw! {
    /// `dns_config`.
    RawDns {
        a_record_limit: i64,
        allow_stale: bool,
        cache_max_age: String,
        disable_compression: bool,
        enable_additional_node_meta_txt: bool,
        enable_truncate: bool,
        max_stale: String,
        node_ttl: String,
        only_passing: bool,
        recursor_strategy: String,
        recursor_timeout: String,
        service_ttl: BTreeMap<String, String>,
        soa: RawSoa,
        udp_answer_limit: i64,
        use_cache: bool,
    }
}
raw! {
    /// `dns_config.soa`, in seconds.
    RawSoa { expire: i64, min_ttl: i64, refresh: i64, retry: i64 }
}
raw! {
    /// `gossip_lan`.
    RawGossip {
        gossip_interval: String,
        gossip_nodes: i64,
        probe_interval: String,
        probe_timeout: String,
        retransmit_mult: i64,
        suspicion_mult: i64,
    }
}
raw! {
    /// `http_config`.
    RawHttp {
        allow_write_http_from: Vec<String>,
        block_endpoints: Vec<String>,
        idle_timeout: String,
        max_header_bytes: i64,
        read_header_timeout: String,
        read_timeout: String,
        response_headers: BTreeMap<String, String>,
        stall_timeout: String,
        use_cache: bool,
        write_timeout: String,
    }
}
raw! {
    /// `limits`.
    RawLimits {
        http_max_blocking_queries: i64,
        http_max_conns: i64,
        http_max_conns_per_client: i64,
        http_max_request_body_size: i64,
        https_handshake_timeout: String,
        kv_max_value_size: i64,
        request_limits: RawRequestLimits,
        rpc_client_timeout: String,
        rpc_handshake_timeout: String,
        rpc_max_burst: i64,
        rpc_max_blocking_queries_per_agent: i64,
        rpc_max_calls: i64,
        rpc_max_conns_per_client: i64,
        rpc_rate: f64,
        source_limits: RawRequestLimits,
        txn_max_req_len: i64,
    }
}
raw! {
    /// `limits.request_limits` and `limits.source_limits`.
    RawRequestLimits { mode: String, read_rate: f64, write_rate: f64 }
}
raw! {
    /// `raft_logstore`.
    RawLogStore { backend: String, wal: RawWal }
}
raw! {
    /// `raft_logstore.wal`.
    RawWal { segment_size_mb: i64 }
}
raw! {
    /// `performance`.
    RawPerformance { leave_drain_time: String, raft_multiplier: i64, rpc_hold_timeout: String }
}
raw! {
    /// `ports`; −1 or 0 is off.
    RawPorts {
        dns: i64, grpc: i64, grpc_tls: i64, http: i64, https: i64, serf_lan: i64, serf_wan: i64, server: i64,
    }
}
raw! {
    /// `telemetry`.
    RawTelemetry {
        disable_hostname: bool,
        dogstatsd_addr: String,
        dogstatsd_tags: Vec<String>,
        filter_default: bool,
        metrics_prefix: String,
        prefix_filter: Vec<String>,
        prometheus_retention_time: String,
        statsd_address: String,
        statsite_address: String,
    }
}
raw! {
    /// `auto_config`.
    RawAutoConfig {
        authorization: RawAuthorization,
        enabled: bool,
        intro_token: String,
        intro_token_file: String,
        server_addresses: Vec<String>,
    }
}
raw! {
    /// `auto_config.authorization`.
    RawAuthorization { enabled: bool }
}
raw! {
    /// `auto_encrypt`.
    RawAutoEncrypt { allow_tls: bool, tls: bool }
}
raw! {
    /// `tls`.
    RawTls { defaults: RawTlsOptions, grpc: RawTlsOptions, https: RawTlsOptions, internal_rpc: RawTlsOptions }
}
raw! {
    /// One block of `tls`.
    RawTlsOptions {
        ca_file: String,
        ca_path: String,
        cert_file: String,
        key_file: String,
        tls_cipher_suites: String,
        tls_min_version: String,
        verify_incoming: bool,
        verify_outgoing: bool,
        verify_server_hostname: bool,
    }
}
raw! {
    /// `join_tokens`.
    RawJoinTokens { cert_file: String, certificate_ttl: String, key_file: String }
}
raw! {
    /// `ui_config`.
    RawUi { content_path: String, dir: String, enabled: bool }
}
raw! {
    /// `unix_sockets`.
    RawUnixSockets { group: String, mode: String, user: String }
}

raw! {
    /// `views`.
    RawViews {
        first_wait: String,
        idle_ttl: String,
        max: i64,
        max_bytes: i64,
        missing_idle_ttl: String,
        server_agents: i64,
        server_begins_burst: i64,
        server_begins_per_second: i64,
        server_max: i64,
        server_per_agent: i64,
    }
}
