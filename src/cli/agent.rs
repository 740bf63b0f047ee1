//! `weft agent`: its flags as configuration.
//!
//! Owns: which flag sets which key.
//! Never: runs the agent (see `run`), or checks a value (see `weft_agent::config`).
//! Source: CONSUL D.3, H.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use weft_agent::config::hcl::Format;
use weft_agent::config::{self, Flag, Machine, Problems, Request, RuntimeConfig};

use super::failure::{Exit, Failure};

/// `-config-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    /// HCL.
    Hcl,
    /// JSON.
    Json,
}

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Hcl => Self::Hcl,
            FileFormat::Json => Self::Json,
        }
    }
}

/// A flag with a value, the key it sets, and its help.
type Setting = (&'static str, &'static str, &'static str);

/// Flags with a value; every one may be repeated, which matters for lists and maps.
const VALUES: &[Setting] = &[
    ("advertise", "advertise_addr", "Address others are told"),
    (
        "advertise-wan",
        "advertise_addr_wan",
        "Address other datacenters are told",
    ),
    (
        "allow-write-http-from",
        "http_config.allow_write_http_from",
        "Network that may write over HTTP; may be repeated",
    ),
    ("alt-domain", "alt_domain", "Second DNS domain"),
    ("bind", "bind_addr", "Address of RPC and gossip"),
    (
        "bootstrap-expect",
        "bootstrap_expect",
        "Form a cluster when this many servers see each other",
    ),
    (
        "check_output_max_size",
        "check_output_max_size",
        "Bytes of check output kept",
    ),
    ("client", "client_addr", "Addresses of HTTP, DNS and gRPC"),
    ("data-dir", "data_dir", "Directory of the agent's state"),
    ("datacenter", "datacenter", "Name of the datacenter"),
    (
        "default-query-time",
        "default_query_time",
        "Wait of a blocking query that names none",
    ),
    ("dns-port", "ports.dns", "Port of DNS; -1 switches it off"),
    ("domain", "domain", "DNS domain"),
    ("encrypt", "encrypt", "Gossip key in base64"),
    (
        "grpc-port",
        "ports.grpc",
        "Port of gRPC; -1 switches it off",
    ),
    (
        "grpc-tls-port",
        "ports.grpc_tls",
        "Port of gRPC over TLS; -1 switches it off",
    ),
    (
        "http-port",
        "ports.http",
        "Port of HTTP; -1 switches it off",
    ),
    (
        "https-port",
        "ports.https",
        "Port of HTTPS; -1 switches it off",
    ),
    (
        "join",
        "start_join",
        "Address to join at start; may be repeated",
    ),
    (
        "join-wan",
        "start_join_wan",
        "Address to join in the pool of all datacenters",
    ),
    (
        "join-token",
        "join_token",
        "Token of `weft join-token create`, traded for a certificate at the first start",
    ),
    (
        "join-token-file",
        "join_token_file",
        "File that holds the join token",
    ),
    ("log-file", "log_file", "File to log to"),
    (
        "log-level",
        "log_level",
        "trace, debug, info, warn or error",
    ),
    (
        "log-rotate-bytes",
        "log_rotate_bytes",
        "Size at which the log file is rotated",
    ),
    (
        "log-rotate-duration",
        "log_rotate_duration",
        "Time after which the log file is rotated",
    ),
    (
        "log-rotate-max-files",
        "log_rotate_max_files",
        "Old log files kept",
    ),
    (
        "max-query-time",
        "max_query_time",
        "Longest wait of a blocking query",
    ),
    ("node", "node_name", "Name of this node"),
    ("node-id", "node_id", "UUID of this node"),
    (
        "node-meta",
        "node_meta",
        "Metadata key:value; may be repeated",
    ),
    ("pid-file", "pid_file", "File the process id is written to"),
    (
        "primary-gateway",
        "primary_gateways",
        "Accepted, no effect yet",
    ),
    ("protocol", "protocol", "Accepted, no effect"),
    ("raft-protocol", "raft_protocol", "Accepted, no effect"),
    (
        "recursor",
        "recursors",
        "DNS server for other names; may be repeated",
    ),
    (
        "retry-interval",
        "retry_interval",
        "Pause between tries to join",
    ),
    (
        "retry-interval-wan",
        "retry_interval_wan",
        "Accepted, no effect yet",
    ),
    (
        "retry-join",
        "retry_join",
        "Address to join until it works; may be repeated",
    ),
    (
        "retry-join-wan",
        "retry_join_wan",
        "Accepted, no effect yet",
    ),
    (
        "retry-max",
        "retry_max",
        "Tries to join before giving up; 0 is for ever",
    ),
    ("retry-max-wan", "retry_max_wan", "Accepted, no effect yet"),
    ("segment", "segment", "Accepted, no effect"),
    (
        "serf-lan-allowed-cidrs",
        "serf_lan_allowed_cidrs",
        "Accepted, no effect yet",
    ),
    ("serf-lan-bind", "serf_lan", "Address of gossip"),
    ("serf-lan-port", "ports.serf_lan", "Port of gossip"),
    (
        "serf-wan-allowed-cidrs",
        "serf_wan_allowed_cidrs",
        "Accepted, no effect yet",
    ),
    ("serf-wan-bind", "serf_wan", "Accepted, no effect yet"),
    (
        "serf-wan-port",
        "ports.serf_wan",
        "Port of gossip between datacenters; -1 switches it off",
    ),
    ("server-port", "ports.server", "Port of server RPC"),
    (
        "ui-content-path",
        "ui_config.content_path",
        "Path the UI is served under",
    ),
    ("ui-dir", "ui_config.dir", "Directory served as UI"),
];

/// Flags that are on when named.
const SWITCHES: &[Setting] = &[
    (
        "auto-reload-config",
        "auto_reload_config",
        "Accepted, no effect yet",
    ),
    ("bootstrap", "bootstrap", "Form a cluster of one at once"),
    (
        "disable-host-node-id",
        "disable_host_node_id",
        "Accepted, no effect",
    ),
    (
        "disable-keyring-file",
        "disable_keyring_file",
        "Accepted, no effect yet",
    ),
    (
        "enable-local-script-checks",
        "enable_local_script_checks",
        "Checks of configuration files may run commands",
    ),
    (
        "enable-script-checks",
        "enable_script_checks",
        "Checks of files and of the API may run commands",
    ),
    ("log-json", "log_json", "Log JSON lines"),
    (
        "non-voting-server",
        "non_voting_server",
        "Accepted, no effect",
    ),
    ("read-replica", "read_replica", "Accepted, no effect"),
    (
        "rejoin",
        "rejoin_after_leave",
        "Join again after having left",
    ),
    ("server", "server", "Run the server role"),
    ("syslog", "enable_syslog", "Accepted, no effect yet"),
    ("ui", "ui_config.enabled", "Serve the web UI"),
];

/// Run an agent
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentArgs {
    request: Request,
}

impl clap::Args for AgentArgs {
    fn augment_args(command: Command) -> Command {
        let value = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Append);
        let mut command = command
            .about("Run an agent")
            .after_help(
                "Examples:\n  weft agent -dev\n  weft agent -server -bootstrap-expect=3 -data-dir=/var/lib/weft -retry-join=10.0.0.11",
            )
            .arg(Arg::new("dev").long("dev").action(ArgAction::SetTrue).help("One server in memory with everything on, to try weft out"))
            .arg(value("config-file").value_name("FILE").help("Configuration file; may be repeated"))
            .arg(value("config-dir").value_name("DIR").help("Directory of configuration files; may be repeated"))
            .arg(value("hcl").value_name("TEXT").help("Configuration as text; may be repeated"))
            .arg(Arg::new("config-format").long("config-format").help("Format of files whose suffix tells none: hcl or json")
                .value_parser(clap::value_parser!(FileFormat)));
        for (name, _, help) in VALUES {
            command = command.arg(
                value(name)
                    .value_name("VALUE")
                    .help(*help)
                    .allow_hyphen_values(true),
            );
        }
        for (name, _, help) in SWITCHES {
            command = command.arg(
                Arg::new(*name)
                    .long(*name)
                    .action(ArgAction::SetTrue)
                    .help(*help),
            );
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for AgentArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let texts = |name: &str| {
            matches
                .get_many::<String>(name)
                .into_iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
        };
        let named =
            |id: &str| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
        let mut flags = Vec::new();
        for (name, key, _) in VALUES {
            flags.extend(texts(name).into_iter().map(|value| Flag {
                name: format!("-{name}"),
                key,
                value,
            }));
        }
        for (name, key, _) in SWITCHES.iter().filter(|(name, _, _)| named(name)) {
            flags.push(Flag {
                name: format!("-{name}"),
                key,
                value: matches.get_flag(name).to_string(),
            });
        }
        let request = Request {
            dev: matches.get_flag("dev"),
            paths: paths(matches),
            format: matches
                .get_one::<FileFormat>("config-format")
                .copied()
                .map(Into::into),
            hcl: texts("hcl"),
            env: Vec::new(),
            flags,
        };
        Ok(Self { request })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Files and directories in the order they were written: later ones win.
fn paths(matches: &ArgMatches) -> Vec<PathBuf> {
    let mut all: Vec<(usize, PathBuf)> = Vec::new();
    for id in ["config-file", "config-dir"] {
        let values = matches.get_many::<String>(id).into_iter().flatten();
        all.extend(
            matches
                .indices_of(id)
                .into_iter()
                .flatten()
                .zip(values.map(PathBuf::from)),
        );
    }
    all.sort();
    all.into_iter().map(|(_, path)| path).collect()
}

/// A configuration to run with, and the way to read it again.
pub(crate) struct Start {
    /// The configuration.
    pub(crate) config: RuntimeConfig,
    /// Reads every source anew, for a reload.
    pub(crate) load: Arc<dyn Fn() -> Result<RuntimeConfig, String> + Send + Sync>,
}

/// Reads the configuration an agent was asked to run with.
///
/// Errors: every finding, with exit code 78.
pub(crate) fn start(args: AgentArgs) -> Result<Start, Failure> {
    // Names and values that are not text cannot be ours.
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let request = Request {
        env: std::env::vars_os().filter_map(text).collect(),
        ..args.request
    };
    let read = |request: &Request| {
        agent_args(request).map_err(|problems| Failure::new(Exit::Config, problems.to_string()))
    };
    let mut request = request;
    let mut config = read(&request)?;
    let enrolled = crate::run::enrolment::enrolled(&request, &machine(), &config)
        .map_err(|cause| Failure::new(Exit::Negative, format!("joining by token: {cause:#}")))?;
    if let Some(settings) = enrolled {
        // The weakest source: the operator's own files may say otherwise.
        request.paths.insert(0, settings);
        config = read(&request)?;
    }
    let load = Arc::new(move || agent_args(&request).map_err(|problems| problems.to_string()));
    Ok(Start { config, load })
}

/// The configuration that flags, files and environment make on this machine.
pub(crate) fn agent_args(request: &Request) -> Result<RuntimeConfig, Problems> {
    config::load(request, &machine())
}

/// This machine, as far as a configuration asks for it.
pub(crate) fn machine() -> Machine {
    let host_name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    // Without a list, templates find nothing and say so.
    Machine {
        host_name,
        interfaces: config::interfaces::list().unwrap_or_default(),
    }
}
