//! What `/v1/agent/self` tells about the configuration in force.
//!
//! Owns: [`debug_config`], under the names that Consul's tools look for.
//! Never: shows a secret: only what is named here is shown.

use std::path::Path;

use serde_json::{Value, json};
use weft_agent::config::RuntimeConfig;
use weft_agent::config::runtime::{Bootstrap, ListenAddr};
use weft_agent::local::ScriptChecks;
use weft_proto::duration;

/// `DebugConfig`: the settings as they came out of files, flags and defaults.
pub(super) fn debug_config(config: &RuntimeConfig, id: &str) -> Value {
    let network = &config.network;
    let expected = match config.bootstrap {
        Bootstrap::Expect(servers) => servers,
        Bootstrap::Join | Bootstrap::Alone => 0,
    };
    let scripts = config.checks.scripts;
    let dns = network
        .dns
        .iter()
        .flat_map(|at| [format!("tcp://{at}"), format!("udp://{at}")]);
    let dns: Vec<_> = dns.collect();
    let pairs = [
        ("ACLsEnabled", json!(false)),
        ("AdvertiseAddrLAN", json!(network.advertise.to_string())),
        ("AdvertiseAddrWAN", json!(network.advertise_wan.to_string())),
        ("BindAddr", json!(network.bind.to_string())),
        (
            "Bootstrap",
            json!(config.bootstrap == Bootstrap::Alone && !config.dev),
        ),
        ("BootstrapExpect", json!(expected)),
        ("CheckOutputMaxSize", json!(config.checks.output_max_bytes)),
        (
            "CheckUpdateInterval",
            json!(duration::format(config.checks.update_interval)),
        ),
        ("DNSAddrs", json!(dns)),
        (
            "DNSDomain",
            json!(format!("{}.", config.domain.trim_matches('.'))),
        ),
        (
            "DNSPort",
            json!(network.dns.first().map_or(-1, |at| i32::from(at.port()))),
        ),
        ("DataDir", json!(path(config.data_dir.as_deref()))),
        ("Datacenter", json!(config.datacenter)),
        (
            "DefaultQueryTime",
            json!(duration::format(config.default_query_time)),
        ),
        ("DevMode", json!(config.dev)),
        ("DiscardCheckOutput", json!(config.checks.discard_output)),
        (
            "EnableLocalScriptChecks",
            json!(scripts != ScriptChecks::Nobody),
        ),
        (
            "EnableRemoteScriptChecks",
            json!(scripts == ScriptChecks::Everybody),
        ),
        // Nothing listens there in this version.
        ("GRPCPort", json!(-1)),
        ("GRPCTLSPort", json!(-1)),
        ("HTTPAddrs", json!(addresses(&network.http))),
        ("HTTPBlockEndpoints", json!(config.http.block_endpoints)),
        ("HTTPPort", json!(port(&network.http))),
        ("HTTPSAddrs", json!(addresses(&network.https))),
        ("HTTPSPort", json!(port(&network.https))),
        ("LeaveOnTerm", json!(config.leave.on_terminate)),
        (
            "Logging",
            json!({"LogFilePath": path(config.log.file.as_deref()), "LogJSON": config.log.json, "LogLevel": config.log.level.as_str().to_uppercase()}),
        ),
        (
            "MaxQueryTime",
            json!(duration::format(config.max_query_time)),
        ),
        ("NodeID", json!(id)),
        ("NodeMeta", json!(config.node.meta)),
        ("NodeName", json!(config.node.name)),
        ("PrimaryDatacenter", json!(config.primary_datacenter)),
        ("SerfPortLAN", json!(network.serf_lan.port())),
        (
            "SerfPortWAN",
            json!(network.serf_wan_port.map_or(-1, i32::from)),
        ),
        ("ServerMode", json!(config.server)),
        ("ServerPort", json!(network.rpc.port())),
        (
            "SessionTTLMin",
            json!(duration::format(config.session_ttl_min)),
        ),
        ("SkipLeaveOnInt", json!(config.leave.skip_on_interrupt)),
    ];
    Value::Object(
        pairs
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect(),
    )
}

fn path(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| path.display().to_string())
}

fn addresses(listeners: &[ListenAddr]) -> Vec<String> {
    let text = |at: &ListenAddr| match at {
        ListenAddr::Ip(at) => format!("tcp://{at}"),
        ListenAddr::Unix(path) => format!("unix://{}", path.display()),
    };
    listeners.iter().map(text).collect()
}

/// The first port; -1 when nothing listens.
fn port(listeners: &[ListenAddr]) -> i32 {
    let port = |at: &ListenAddr| match at {
        ListenAddr::Ip(at) => Some(i32::from(at.port())),
        ListenAddr::Unix(_) => None,
    };
    listeners.iter().find_map(port).unwrap_or(-1)
}
