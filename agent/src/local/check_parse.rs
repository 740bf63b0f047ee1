//! Reading a check as a user writes it.
//!
//! Owns: the names of every field, and which combinations make sense, in Consul's words where it
//! has words for them (CONSUL.md B.6).
//! Never: asks whether this agent is willing to run it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::check_definition::{
    AliasCheck, CheckDefinition, CheckKind, DEREGISTER_AFTER_MIN, DockerCheck, GrpcCheck,
    H2PingCheck, HttpCheck, INTERVAL_MIN, OUTPUT_MAX_LIMIT, OsServiceCheck, Pace, ScriptCheck,
    TargetTls, TcpCheck, UdpCheck,
};
use super::definition::DefinitionError;
use super::fields::{Fields, UnknownKeys};
use super::status::Status;
use super::threshold::Thresholds;

/// Longest command line of a script: the system's own limit for one argument.
const ARGS_MAX_BYTES: usize = 131_072;
/// Longest name of a unit or a container.
const NAME_MAX_BYTES: usize = 255;

/// Every field a check may have, before the combination is judged.
struct RawCheck {
    check: CheckDefinition,
    ttl: Duration,
    pace: Pace,
    tls: TargetTls,
    http: String,
    tcp: String,
    udp: String,
    grpc: String,
    h2ping: String,
    os_service: String,
    args: Vec<String>,
    script: String,
    docker: String,
    shell: String,
    alias_node: String,
    alias_service: String,
    failures_before_warning: Option<u32>,
    method: String,
    header: BTreeMap<String, Vec<String>>,
    body: String,
    tcp_use_tls: bool,
    grpc_use_tls: bool,
    h2ping_use_tls: bool,
    disable_redirects: bool,
}

/// Parses one check at `path`, without requiring a name or an id.
pub(super) fn parse_check(
    path: &str,
    value: &Value,
    unknown: UnknownKeys,
) -> Result<CheckDefinition, DefinitionError> {
    let mut fields = Fields::open(path, value, unknown)?;
    // The API sends a stand-alone check's parameters beside it or inside `Definition`; only the first runs.
    fields.take(&["Definition", "EnterpriseMeta", "Namespace", "Partition"]);
    let raw = read(&mut fields)?;
    fields.finish()?;
    judge(raw)
}

fn read(fields: &mut Fields<'_>) -> Result<RawCheck, DefinitionError> {
    Ok(RawCheck {
        check: read_common(fields)?,
        ttl: fields.duration(&["TTL"])?,
        pace: Pace {
            interval: fields.duration(&["Interval"])?,
            timeout: fields.duration(&["Timeout"])?,
        },
        tls: TargetTls {
            server_name: fields.text(&["TLSServerName"])?,
            skip_verify: fields.flag(&["TLSSkipVerify"])?,
        },
        http: fields.text(&["HTTP"])?,
        tcp: fields.text(&["TCP"])?,
        udp: fields.text(&["UDP"])?,
        grpc: fields.text(&["GRPC"])?,
        h2ping: fields.text(&["H2PING"])?,
        os_service: fields.text(&["OSService"])?,
        args: fields.texts(&["Args", "ScriptArgs"])?,
        script: fields.text(&["Script"])?,
        docker: fields.text(&["DockerContainerID"])?,
        shell: fields.text(&["Shell"])?,
        alias_node: fields.text(&["AliasNode"])?,
        alias_service: fields.text(&["AliasService"])?,
        failures_before_warning: count(fields, "FailuresBeforeWarning")?,
        method: fields.text(&["Method"])?,
        header: fields.header_map(&["Header"])?,
        body: fields.text(&["Body"])?,
        tcp_use_tls: fields.flag(&["TCPUseTLS"])?,
        grpc_use_tls: fields.flag(&["GRPCUseTLS"])?,
        h2ping_use_tls: fields.flag_or_absent(&["H2PingUseTLS"])?.unwrap_or(true),
        disable_redirects: fields.flag(&["DisableRedirects"])?,
    })
}

/// What checks of every type have.
fn read_common(fields: &mut Fields<'_>) -> Result<CheckDefinition, DefinitionError> {
    let deregister = fields.duration(&["DeregisterCriticalServiceAfter"])?;
    Ok(CheckDefinition {
        id: fields.text(&["CheckID", "ID"])?,
        name: fields.text(&["Name"])?,
        notes: fields.text(&["Notes"])?,
        service_id: fields.text(&["ServiceID"])?,
        token: fields.text(&["Token"])?,
        status: status(&fields.text(&["Status"])?)?,
        kind: CheckKind::Maintenance,
        thresholds: Thresholds {
            success_before_passing: count(fields, "SuccessBeforePassing")?.unwrap_or(0),
            failures_before_warning: None,
            failures_before_critical: count(fields, "FailuresBeforeCritical")?.unwrap_or(0),
        },
        output_max_size: output_max_size(fields)?,
        deregister_critical_service_after: (!deregister.is_zero())
            .then(|| deregister.max(DEREGISTER_AFTER_MIN)),
    })
}

impl RawCheck {
    /// The polled types that were asked for.
    fn polled(&self) -> Vec<&'static str> {
        // As in Consul, a container alone asks for nothing: it is a script with a place to run.
        let script = !self.args.is_empty();
        [
            (script && self.docker.is_empty(), "args"),
            (script && !self.docker.is_empty(), "docker_container_id"),
            (!self.http.is_empty(), "http"),
            (!self.tcp.is_empty(), "tcp"),
            (!self.udp.is_empty(), "udp"),
            (!self.grpc.is_empty(), "grpc"),
            (!self.h2ping.is_empty(), "h2ping"),
            (!self.os_service.is_empty(), "os_service"),
        ]
        .into_iter()
        .filter(|(asked, _)| *asked)
        .map(|(_, name)| name)
        .collect()
    }

    fn is_alias(&self) -> bool {
        !self.alias_node.is_empty() || !self.alias_service.is_empty()
    }
}

fn judge(mut raw: RawCheck) -> Result<CheckDefinition, DefinitionError> {
    if !raw.script.is_empty() {
        return Err(DefinitionError::invalid(
            "check.script.legacy",
            "script is no longer run, because a shell read it; give the program and its arguments as a list instead: args = [\"/bin/sh\", \"-c\", \"...\"]",
        ));
    }
    let polled = raw.polled();
    judge_times(&raw, !polled.is_empty())?;
    if polled.len() > 1 {
        return Err(DefinitionError::invalid(
            "check.type.several",
            format!(
                "a check may have only one of args, docker_container_id, http, tcp, udp, grpc, h2ping, os_service; this one has {}",
                polled.join(" and ")
            ),
        ));
    }
    let thresholds = judge_thresholds(&raw)?;
    raw.pace.interval = raw.pace.interval.max(INTERVAL_MIN);
    let common = CheckDefinition {
        thresholds,
        ..raw.check.clone()
    };
    Ok(CheckDefinition {
        kind: kind(raw, polled.first().copied())?,
        ..common
    })
}

fn kind(raw: RawCheck, polled: Option<&str>) -> Result<CheckKind, DefinitionError> {
    let (pace, tls) = (raw.pace, raw.tls);
    Ok(match polled {
        Some("http") => {
            judge_url(&raw.http)?;
            judge_request(&raw.method, &raw.header)?;
            CheckKind::Http(HttpCheck {
                url: raw.http,
                method: raw.method,
                header: raw.header,
                body: raw.body,
                pace,
                tls,
                disable_redirects: raw.disable_redirects,
            })
        }
        Some("tcp") => CheckKind::Tcp(TcpCheck {
            address: raw.tcp,
            pace,
            use_tls: raw.tcp_use_tls,
            tls,
        }),
        Some("udp") => CheckKind::Udp(UdpCheck {
            address: raw.udp,
            pace,
        }),
        Some("grpc") => {
            judge_grpc(&raw.grpc)?;
            CheckKind::Grpc(GrpcCheck {
                target: raw.grpc,
                pace,
                use_tls: raw.grpc_use_tls,
                tls,
            })
        }
        Some("h2ping") => CheckKind::H2Ping(H2PingCheck {
            address: raw.h2ping,
            pace,
            use_tls: raw.h2ping_use_tls,
            tls,
        }),
        Some("os_service") => {
            judge_name("os_service", &raw.os_service, "-_.@:\\")?;
            CheckKind::OsService(OsServiceCheck {
                unit: raw.os_service,
                pace,
            })
        }
        Some("args") => {
            judge_args(&raw.args)?;
            CheckKind::Script(ScriptCheck {
                args: raw.args,
                pace,
            })
        }
        Some(_) => {
            judge_args(&raw.args)?;
            judge_name("docker_container_id", &raw.docker, "-_.")?;
            CheckKind::Docker(DockerCheck {
                container: raw.docker,
                args: raw.args,
                shell: raw.shell,
                pace,
            })
        }
        None if !raw.alias_node.is_empty() || !raw.alias_service.is_empty() => {
            CheckKind::Alias(AliasCheck {
                node: raw.alias_node,
                service_id: raw.alias_service,
            })
        }
        None => CheckKind::Ttl { ttl: raw.ttl },
    })
}

/// Consul's rules on which times go with which type, with its texts.
fn judge_times(raw: &RawCheck, polled: bool) -> Result<(), DefinitionError> {
    let refuse = |message: &str| Err(DefinitionError::invalid("check.times", message));
    let has_ttl = !raw.ttl.is_zero();
    if !raw.pace.interval.is_zero() && has_ttl {
        return refuse("Interval and TTL cannot both be specified");
    }
    if polled && raw.pace.interval.is_zero() {
        return refuse(
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        );
    }
    if polled && raw.is_alias() {
        return refuse("Interval cannot be set for Alias checks");
    }
    if raw.is_alias() && has_ttl {
        return refuse("TTL must be not be set for Alias checks");
    }
    if !polled && !raw.is_alias() && !has_ttl {
        return refuse("TTL must be > 0 for TTL checks");
    }
    Ok(())
}

/// `host:port` or `host:port/service`.
fn judge_grpc(target: &str) -> Result<(), DefinitionError> {
    let address = target.split('/').next().unwrap_or_default();
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(DefinitionError::invalid(
            "check.grpc.target",
            format!(
                "invalid GRPC check target {target:?}: it must be host:port or host:port/service"
            ),
        )),
    }
}

/// Names go into a command line or a URL path: they are letters, digits and `also`, and no option.
fn judge_name(field: &str, name: &str, also: &str) -> Result<(), DefinitionError> {
    let fine = name.len() <= NAME_MAX_BYTES
        && !name.starts_with(['-', '.'])
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || also.contains(c));
    if fine {
        return Ok(());
    }
    Err(DefinitionError::invalid(
        "check.name.invalid",
        format!(
            "invalid {field} {name:?}: it may have letters, digits and {also}, must not begin with - or a dot, and has at most {NAME_MAX_BYTES} bytes"
        ),
    ))
}

fn judge_args(args: &[String]) -> Result<(), DefinitionError> {
    let refuse = |why: String| Err(DefinitionError::invalid("check.args", why));
    if args.first().is_none_or(String::is_empty) {
        return refuse("args must begin with a program".to_owned());
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return refuse("args must not contain NUL".to_owned());
    }
    let size: usize = args.iter().map(|arg| arg.len() + 1).sum();
    if size > ARGS_MAX_BYTES {
        return refuse(format!(
            "args are {size} bytes, more than the limit of {ARGS_MAX_BYTES}"
        ));
    }
    Ok(())
}

fn judge_thresholds(raw: &RawCheck) -> Result<Thresholds, DefinitionError> {
    let critical = raw.check.thresholds.failures_before_critical;
    if raw
        .failures_before_warning
        .is_some_and(|warning| warning > critical)
    {
        return Err(DefinitionError::invalid(
            "check.thresholds",
            "FailuresBeforeWarning can't be higher than FailuresBeforeCritical",
        ));
    }
    let failures_before_warning = raw.failures_before_warning.filter(|warning| *warning > 0);
    Ok(Thresholds {
        failures_before_warning,
        ..raw.check.thresholds
    })
}

fn judge_url(url: &str) -> Result<(), DefinitionError> {
    let refuse = |why: &str| {
        Err(DefinitionError::invalid(
            "check.http.url",
            format!("invalid HTTP check URL {url:?}: {why}"),
        ))
    };
    let Ok(uri) = url.parse::<http::Uri>() else {
        return refuse("it does not parse as a URL");
    };
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(()),
        (Some("http" | "https"), _) => refuse("it names no host"),
        _ => refuse("it must begin with http:// or https://"),
    }
}

fn judge_request(
    method: &str,
    header: &BTreeMap<String, Vec<String>>,
) -> Result<(), DefinitionError> {
    if !method.is_empty() && http::Method::from_bytes(method.as_bytes()).is_err() {
        let message = format!("invalid HTTP check method {method:?}");
        return Err(DefinitionError::invalid("check.http.method", message));
    }
    for (name, values) in header {
        let fine = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && values
                .iter()
                .all(|value| http::HeaderValue::from_str(value).is_ok());
        if !fine {
            let message = format!("invalid HTTP check header {name:?}");
            return Err(DefinitionError::invalid("check.http.header", message));
        }
    }
    Ok(())
}

fn status(word: &str) -> Result<Option<Status>, DefinitionError> {
    if word.is_empty() {
        return Ok(None);
    }
    match Status::parse(word) {
        Some(status) => Ok(Some(status)),
        None => Err(DefinitionError::invalid(
            "check.status",
            "Status for checks must 'passing', 'warning', 'critical'",
        )),
    }
}

fn count(fields: &mut Fields<'_>, name: &'static str) -> Result<Option<u32>, DefinitionError> {
    let Some(number) = fields.integer(&[name])? else {
        return Ok(None);
    };
    match u32::try_from(number) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(DefinitionError::invalid(
            "check.thresholds",
            format!("{name} must be between 0 and {}", u32::MAX),
        )),
    }
}

fn output_max_size(fields: &mut Fields<'_>) -> Result<Option<usize>, DefinitionError> {
    match fields.integer(&["OutputMaxSize"])? {
        None | Some(0) => Ok(None),
        Some(size) => match usize::try_from(size) {
            Ok(size) if size <= OUTPUT_MAX_LIMIT => Ok(Some(size)),
            Ok(_) => Err(DefinitionError::invalid(
                "check.output_max_size",
                format!("OutputMaxSize must not exceed {OUTPUT_MAX_LIMIT}"),
            )),
            Err(_) => Err(DefinitionError::invalid(
                "check.output_max_size",
                "MaxOutputMaxSize must be positive",
            )),
        },
    }
}
