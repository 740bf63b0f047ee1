//! From what was said to what is meant: defaults, ranges, and settings that exclude each other.
//!
//! Owns: every default and every rule about values.
//! Never: reads files, the environment or the machine; all of it is given.
//! Source: Consul docs, "Configuration"; CONSUL D.1–D.11, H; DESIGN §1.

mod auto;
mod identity;
mod network;
mod tuning;
mod values;

use std::path::PathBuf;

use super::merge::Merged;
use super::problem::{Code, Problem};
use super::raw::RawConfig;
use super::runtime::{Bootstrap, LeaveConfig, RuntimeConfig, UiConfig, UnixSocketsConfig};
use super::sockaddr::Interface;
use crate::local::{CheckDefinition, ScriptChecks, ServiceDefinition, Source, UnknownKeys};
use crate::watch::WatchDefinition;
use values::Values;
use weft_catalog::intention::DefaultPolicy;

/// What the configuration asks of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The host's name; the node's name unless one is set.
    pub host_name: String,
    /// Addresses of its interfaces.
    pub interfaces: Vec<Interface>,
}

/// Builds the configuration, or answers every finding.
pub(super) fn build(
    merged: &mut Merged,
    machine: &Machine,
    dev: bool,
) -> Result<RuntimeConfig, Vec<Problem>> {
    let node = super::hcl::tree::Value::Object(merged.root.clone());
    let span = super::hcl::tree::Span::whole(&super::hcl::tree::Source::flag("merged", ""));
    let given = super::hcl::tree::Node { span, value: node }.to_json();
    let raw: RawConfig = match serde_json::from_value(given.clone()) {
        Ok(raw) => raw,
        Err(error) => {
            let mut problems = std::mem::take(&mut merged.problems);
            problems.push(Problem::new(Code::WrongType, error.to_string()));
            return Err(problems);
        }
    };
    let problems = std::mem::take(&mut merged.problems);
    let mut values = Values {
        merged,
        machine,
        problems,
        dev,
    };
    let mut config = assemble(&mut values, raw);
    config.given = super::runtime::Given(given);
    let (warnings, errors): (Vec<_>, Vec<_>) = values
        .problems
        .into_iter()
        .partition(|p| p.code.is_warning());
    if errors.is_empty() {
        config.warnings = warnings;
        return Ok(config);
    }
    Err(errors.into_iter().chain(warnings).collect())
}

/// A start would refuse it too, but only once everything else is up.
fn admit(scripts: ScriptChecks, check: &CheckDefinition) -> Result<(), String> {
    scripts
        .admit(check, Source::File)
        .map_err(|error| format!("check {:?}: {error}", check.name))
}

fn assemble(values: &mut Values<'_>, raw: RawConfig) -> RuntimeConfig {
    let server = raw.server.unwrap_or(false);
    let tls = values.tls(raw.tls.unwrap_or_default());
    let gossip = values.gossip(
        raw.gossip_lan.unwrap_or_default(),
        raw.encrypt.as_deref(),
        [raw.encrypt_verify_incoming, raw.encrypt_verify_outgoing],
        raw.reconnect_timeout.as_deref(),
        [
            !raw.disable_coordinates.unwrap_or(false),
            !raw.disable_keyring_file.unwrap_or(false),
        ],
    );
    let allow_unencrypted = raw.allow_unencrypted.unwrap_or(false);
    let keyed = gossip.key.is_some() && tls.internal_rpc.has_certificate();
    let asked = network::Asked {
        server,
        open_bind: keyed || allow_unencrypted,
        bind_addr: raw.bind_addr.as_deref(),
        serf_lan: raw.serf_lan.as_deref(),
        client_addr: raw.client_addr.as_deref(),
        advertise: [
            &raw.advertise_addr,
            &raw.advertise_addr_ipv4,
            &raw.advertise_addr_ipv6,
        ]
        .map(Option::as_deref),
        advertise_wan: [
            &raw.advertise_addr_wan,
            &raw.advertise_addr_wan_ipv4,
            &raw.advertise_addr_wan_ipv6,
        ]
        .map(Option::as_deref),
        addresses: raw.addresses.unwrap_or_default(),
        ports: raw.ports.unwrap_or_default(),
    };
    let network = values.network(asked);
    let own_dns = network.dns.clone();
    let datacenter = values
        .datacenter("datacenter", raw.datacenter.as_deref())
        .unwrap_or_else(|| "dc1".into());
    let primary = values.datacenter("primary_datacenter", raw.primary_datacenter.as_deref());
    let (domain, alt_domain) = values.domains(raw.domain.as_deref(), raw.alt_domain.as_deref());
    let recursors = raw.recursors.unwrap_or_default();
    let mut retry_join = raw.retry_join.unwrap_or_default();
    let mut join_token = (raw.join_token, raw.join_token_file);
    let join_tokens = raw.join_tokens.unwrap_or_default();
    values.auto_config(
        raw.auto_config.unwrap_or_default(),
        server,
        &mut join_token,
        &mut retry_join,
    );
    values.auto_encrypt(
        raw.auto_encrypt.unwrap_or_default(),
        server,
        join_tokens.cert_file.is_some(),
        tls.internal_rpc.has_certificate() || join_token.0.is_some() || join_token.1.is_some(),
    );
    let join_lists = (raw.start_join.unwrap_or_default(), retry_join);
    let snapshots = (
        raw.raft_snapshot_threshold,
        raw.raft_snapshot_interval.as_deref(),
        raw.raft_trailing_logs,
    );
    let performance = raw.performance.unwrap_or_default();
    let telemetry = raw.telemetry.unwrap_or_default();
    let drain_time = values.duration(
        "performance.leave_drain_time",
        performance.leave_drain_time.as_deref(),
        "5s",
    );
    let default_query_time = values.duration(
        "default_query_time",
        raw.default_query_time.as_deref(),
        "5m",
    );
    let max_query_time = values.duration("max_query_time", raw.max_query_time.as_deref(), "10m");
    // The wider permission includes the narrower, as in Consul.
    let scripts = match (raw.enable_script_checks, raw.enable_local_script_checks) {
        (Some(true), _) => ScriptChecks::Everybody,
        (_, Some(true)) => ScriptChecks::Files,
        _ => ScriptChecks::Nobody,
    };
    let config = RuntimeConfig {
        dev: values.dev,
        server,
        bootstrap: values.bootstrap(raw.bootstrap.unwrap_or(false), raw.bootstrap_expect, server),
        primary_datacenter: primary.unwrap_or_else(|| datacenter.clone()),
        datacenter,
        domain,
        alt_domain,
        node: values.node(
            raw.node_name,
            raw.node_id,
            raw.node_meta.unwrap_or_default(),
        ),
        data_dir: values.data_dir(raw.data_dir),
        network,
        join: values.join(
            join_lists,
            raw.retry_interval.as_deref(),
            raw.retry_max,
            raw.rejoin_after_leave,
        ),
        enrolment: values.enrolment(join_token, join_tokens),
        gossip,
        tls,
        raft: values.raft(
            &performance,
            &raw.raft_logstore.unwrap_or_default(),
            snapshots,
        ),
        autopilot: values.autopilot(&raw.autopilot.unwrap_or_default()),
        dns: values.dns(&raw.dns_config.unwrap_or_default(), &recursors, &own_dns),
        http: values.http(raw.http_config.unwrap_or_default()),
        limits: values.limits(&raw.limits.unwrap_or_default()),
        views: values.views(&raw.views.unwrap_or_default()),
        log: values.log(
            (raw.log_level.as_deref(), raw.log_json, raw.log_file),
            (
                raw.log_rotate_bytes,
                raw.log_rotate_duration.as_deref(),
                raw.log_rotate_max_files,
            ),
        ),
        checks: values.checks(
            raw.check_update_interval.as_deref(),
            raw.discard_check_output,
            raw.check_output_max_size,
            scripts,
            [
                raw.enable_link_local_checks,
                raw.enable_agent_tls_for_checks,
            ],
        ),
        services: values.services(
            &[("service", raw.service), ("services", raw.services)],
            scripts,
        ),
        node_checks: values.node_checks(&[("check", raw.check), ("checks", raw.checks)], scripts),
        watches: values.watches(raw.watches, scripts),
        leave: LeaveConfig {
            on_terminate: raw.leave_on_terminate.unwrap_or(!server),
            skip_on_interrupt: raw.skip_leave_on_interrupt.unwrap_or(server),
            drain_time,
        },
        default_intention_policy: values.choice(
            "default_intention_policy",
            raw.default_intention_policy.as_deref(),
            &[
                ("allow", DefaultPolicy::Allow),
                ("deny", DefaultPolicy::Deny),
            ],
            DefaultPolicy::Allow,
        ),
        session_ttl_min: values.duration("session_ttl_min", raw.session_ttl_min.as_deref(), "10s"),
        default_query_time,
        max_query_time,
        discovery_max_stale: values.duration(
            "discovery_max_stale",
            raw.discovery_max_stale.as_deref(),
            "0s",
        ),
        validate_kv_keys: !raw.disable_kv_key_validation.unwrap_or(false),
        ui: values.ui(raw.ui, raw.ui_config.unwrap_or_default()),
        prometheus_retention: values.duration(
            "telemetry.prometheus_retention_time",
            telemetry.prometheus_retention_time.as_deref(),
            "60s",
        ),
        telemetry: values.telemetry(telemetry),
        unix_sockets: values.unix_sockets(raw.unix_sockets.unwrap_or_default()),
        pid_file: raw
            .pid_file
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        allow_unencrypted,
        allow_open_http: raw.allow_open_http.unwrap_or(false),
        warnings: Vec::new(),
        given: super::runtime::Given::default(),
    };
    if raw.acl.is_some_and(|acl| acl.enabled == Some(true)) {
        values.refuse_acl();
    }
    values.query_times(&config);
    config
}

impl Values<'_> {
    fn refuse_acl(&mut self) {
        self.problem(
            Code::NotYet,
            "acl.enabled",
            "acl.enabled = true cannot be kept: this version does not enforce ACLs yet, and would leave open what this file closes",
            Some("set it to false and keep the HTTP API on loopback, or wait for the version that enforces"),
        );
    }

    fn query_times(&mut self, config: &RuntimeConfig) {
        if config.default_query_time > config.max_query_time {
            let message = format!(
                "default_query_time {} is above max_query_time {}",
                weft_proto::duration::format(config.default_query_time),
                weft_proto::duration::format(config.max_query_time)
            );
            self.problem(Code::Conflict, "default_query_time", message, None);
        }
    }

    fn bootstrap(&mut self, alone: bool, expect: Option<i64>, server: bool) -> Bootstrap {
        if self.dev && !server {
            self.problem(
                Code::Conflict,
                "server",
                "-dev is always a server; server = false contradicts it",
                None,
            );
        }
        let expect = self.count("bootstrap_expect", expect, 0, 0..=99);
        if expect > 0 && alone {
            let message = if self.dev {
                "bootstrap_expect > 0 is not allowed with -dev, which forms a cluster of one at once"
            } else {
                "bootstrap_expect > 0 and bootstrap = true are mutually exclusive"
            };
            self.problem(Code::Conflict, "bootstrap_expect", message, None);
        }
        if (expect > 0 || alone) && !server {
            let key = if expect > 0 {
                "bootstrap_expect"
            } else {
                "bootstrap"
            };
            self.problem(
                Code::Conflict,
                key,
                format!("{key} requires server = true"),
                Some("add server = true"),
            );
        }
        match u32::try_from(expect) {
            Ok(0) | Err(_) => {
                if alone {
                    Bootstrap::Alone
                } else {
                    Bootstrap::Join
                }
            }
            Ok(1) => Bootstrap::Alone,
            Ok(expect) => {
                if expect.is_multiple_of(2) {
                    let message = format!(
                        "{expect} servers tolerate no more failures than {} would",
                        expect - 1
                    );
                    self.problem(
                        Code::Advice,
                        "bootstrap_expect",
                        message,
                        Some("use 3 or 5"),
                    );
                }
                Bootstrap::Expect(expect)
            }
        }
    }

    fn data_dir(&mut self, path: Option<String>) -> Option<PathBuf> {
        let path = path.filter(|path| !path.is_empty());
        if path.is_none() && !self.dev {
            self.problem(
                Code::Conflict,
                "data_dir",
                "data_dir is not set",
                Some("add -data-dir=/var/lib/weft, or use -dev"),
            );
        }
        path.map(PathBuf::from)
    }

    fn services(
        &mut self,
        lists: &[(&str, Option<Vec<serde_json::Value>>)],
        scripts: ScriptChecks,
    ) -> Vec<ServiceDefinition> {
        self.definitions(lists, |value| {
            let definition =
                ServiceDefinition::parse(value, UnknownKeys::Ignore).map_err(|e| e.to_string())?;
            for check in &definition.checks {
                admit(scripts, check)?;
            }
            Ok(definition)
        })
    }

    fn node_checks(
        &mut self,
        lists: &[(&str, Option<Vec<serde_json::Value>>)],
        scripts: ScriptChecks,
    ) -> Vec<CheckDefinition> {
        self.definitions(lists, |value| {
            let check =
                CheckDefinition::parse(value, UnknownKeys::Ignore).map_err(|e| e.to_string())?;
            admit(scripts, &check)?;
            Ok(check)
        })
    }

    fn watches(
        &mut self,
        list: Option<Vec<serde_json::Value>>,
        scripts: ScriptChecks,
    ) -> Vec<WatchDefinition> {
        let watches = self.definitions(&[("watches", list)], |value| {
            WatchDefinition::parse(value).map_err(|e| e.to_string())
        });
        let runs_commands = watches.iter().any(WatchDefinition::runs_commands);
        if runs_commands && scripts == ScriptChecks::Nobody {
            self.problem(
                Code::Conflict,
                "watches",
                "a watch runs a command, and commands are disabled on this agent",
                Some("set enable_local_script_checks = true, or use handler_type = \"http\""),
            );
        }
        watches
    }

    fn definitions<T>(
        &mut self,
        lists: &[(&str, Option<Vec<serde_json::Value>>)],
        parse: impl Fn(&serde_json::Value) -> Result<T, String>,
    ) -> Vec<T> {
        let mut out = Vec::new();
        for (key, list) in lists {
            for (nth, value) in list.iter().flatten().enumerate() {
                match parse(value) {
                    Ok(definition) => out.push(definition),
                    Err(error) => {
                        let mut problem = Problem::new(Code::BadValue, format!("{key}: {error}"));
                        problem.span = self.merged.item_span(key, nth).cloned();
                        self.problems.push(problem);
                    }
                }
            }
        }
        out
    }

    fn ui(&mut self, old: Option<bool>, raw: super::raw::RawUi) -> UiConfig {
        let path = raw.content_path.unwrap_or_else(|| "/ui/".into());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_');
        if !path.chars().all(allowed) {
            let message = format!(
                "ui_config.content_path {path:?} may only have letters, digits, \"-\", \"_\" and \"/\""
            );
            self.problem(Code::BadValue, "ui_config.content_path", message, None);
        }
        let inner = path.trim_matches('/');
        let content_path = if inner.is_empty() {
            "/".to_owned()
        } else {
            format!("/{inner}/")
        };
        let enabled = raw.enabled.or(old).unwrap_or(false);
        UiConfig {
            enabled,
            dir: raw.dir.filter(|d| !d.is_empty()).map(PathBuf::from),
            content_path,
        }
    }

    fn unix_sockets(&mut self, raw: super::raw::RawUnixSockets) -> UnixSocketsConfig {
        let mode = raw.mode.filter(|mode| !mode.is_empty()).and_then(|text| {
            let mode = u32::from_str_radix(&text, 8)
                .ok()
                .filter(|mode| *mode <= 0o777);
            if mode.is_none() {
                let message = format!("unix_sockets.mode {text:?} is not an octal mode");
                self.problem(
                    Code::BadValue,
                    "unix_sockets.mode",
                    message,
                    Some("write \"0660\""),
                );
            }
            mode
        });
        UnixSocketsConfig {
            user: raw.user,
            group: raw.group,
            mode,
        }
    }
}
