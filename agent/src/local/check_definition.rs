//! One check as a user describes it.
//!
//! Owns: the fields of every check type of CONSUL.md B.6, and which combinations make sense.
//! Never: runs a check.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::definition::DefinitionError;
use super::fields::{Fields, UnknownKeys};
use super::status::Status;
use super::threshold::Thresholds;

/// No check runs more often than this (CONSUL.md B.6).
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Time an http or tcp check may take when none is given.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Bytes of output kept when no limit is given (`check_output_max_size`).
pub const OUTPUT_MAX_DEFAULT: usize = 4_096;
/// Largest `output_max_size` accepted: output travels through the replicated log.
pub const OUTPUT_MAX_LIMIT: usize = 262_144;
/// Least `deregister_critical_service_after` (CONSUL.md B.6).
pub const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);

/// A check as registered. For a service's check `service_id` is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckDefinition {
    /// `CheckID`; unique on this node.
    pub id: String,
    /// Name shown to people.
    pub name: String,
    /// Free text for people.
    pub notes: String,
    /// The local service it belongs to; empty: a check of the node.
    pub service_id: String,
    /// The token to register it with; empty: its service's, else the agent's own.
    pub token: String,
    /// Status before the first result; `None`: critical.
    pub status: Option<Status>,
    /// What is run.
    pub kind: CheckKind,
    /// How many results in a row change the status.
    pub thresholds: Thresholds,
    /// Bytes of output kept, when given; never more than the agent's `check_output_max_size`.
    pub output_max_size: Option<usize>,
    /// Critical for this long: its service is deregistered. At least one minute when set.
    pub deregister_critical_service_after: Option<Duration>,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The application reports in at least this often.
    Ttl {
        /// Longest silence before the check turns critical.
        ttl: Duration,
    },
    /// An HTTP request: 2xx passes, 429 warns, anything else is critical.
    Http(HttpCheck),
    /// A TCP connection to any of the resolved addresses.
    Tcp(TcpCheck),
    /// Nobody runs it: an operator took the node or the service out.
    Maintenance,
}

impl CheckKind {
    /// Consul's `Type` word: `ttl`, `http`, `tcp` or `maintenance`.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Ttl { .. } => "ttl",
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Maintenance => "maintenance",
        }
    }

    /// Time between runs; zero for what is not polled.
    #[must_use]
    pub fn interval(&self) -> Duration {
        match self {
            Self::Http(check) => check.interval,
            Self::Tcp(check) => check.interval,
            Self::Ttl { .. } | Self::Maintenance => Duration::ZERO,
        }
    }

    /// The time-out as the user wrote it; zero when none was written.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Http(check) => check.timeout,
            Self::Tcp(check) => check.timeout,
            Self::Ttl { .. } | Self::Maintenance => Duration::ZERO,
        }
    }
}

/// Parameters of an http check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// Absolute `http://` or `https://` URL.
    pub url: String,
    /// Method; empty: GET.
    pub method: String,
    /// Header fields to send; each may repeat.
    pub header: BTreeMap<String, Vec<String>>,
    /// Request body.
    pub body: String,
    /// At least [`INTERVAL_MIN`].
    pub interval: Duration,
    /// As written; zero: [`TIMEOUT_DEFAULT`].
    pub timeout: Duration,
    /// Name to send and verify instead of the URL's host.
    pub tls_server_name: String,
    /// Accept any certificate.
    pub tls_skip_verify: bool,
    /// Take a redirect as the answer instead of following it.
    pub disable_redirects: bool,
}

/// Parameters of a tcp check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpCheck {
    /// `host:port`.
    pub address: String,
    /// At least [`INTERVAL_MIN`].
    pub interval: Duration,
    /// As written; zero: [`TIMEOUT_DEFAULT`].
    pub timeout: Duration,
    /// Complete a TLS handshake after connecting.
    pub use_tls: bool,
    /// Name to send and verify instead of the address's host.
    pub tls_server_name: String,
    /// Accept any certificate.
    pub tls_skip_verify: bool,
}

/// Every field a check may have, before the combination is judged.
struct RawCheck {
    check: CheckDefinition,
    ttl: Duration,
    interval: Duration,
    timeout: Duration,
    http: String,
    tcp: String,
    /// The names of the other types that were given.
    unsupported: Vec<&'static str>,
    alias: bool,
    failures_before_warning: Option<u32>,
    method: String,
    header: BTreeMap<String, Vec<String>>,
    body: String,
    tls_server_name: String,
    tls_skip_verify: bool,
    tcp_use_tls: bool,
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
    let check = CheckDefinition {
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
        deregister_critical_service_after: None,
    };
    let deregister = fields.duration(&["DeregisterCriticalServiceAfter"])?;
    let check = CheckDefinition {
        deregister_critical_service_after: (!deregister.is_zero())
            .then(|| deregister.max(DEREGISTER_AFTER_MIN)),
        ..check
    };
    let (unsupported, alias) = read_unsupported(fields)?;
    Ok(RawCheck {
        check,
        ttl: fields.duration(&["TTL"])?,
        interval: fields.duration(&["Interval"])?,
        timeout: fields.duration(&["Timeout"])?,
        http: fields.text(&["HTTP"])?,
        tcp: fields.text(&["TCP"])?,
        unsupported,
        alias,
        failures_before_warning: count(fields, "FailuresBeforeWarning")?,
        method: fields.text(&["Method"])?,
        header: fields.header_map(&["Header"])?,
        body: fields.text(&["Body"])?,
        tls_server_name: fields.text(&["TLSServerName"])?,
        tls_skip_verify: fields.flag(&["TLSSkipVerify"])?,
        tcp_use_tls: fields.flag(&["TCPUseTLS"])?,
        disable_redirects: fields.flag(&["DisableRedirects"])?,
    })
}

/// The check types this version reads but does not run, and whether an alias is among them.
fn read_unsupported(fields: &mut Fields<'_>) -> Result<(Vec<&'static str>, bool), DefinitionError> {
    let script =
        !fields.texts(&["Args", "ScriptArgs"])?.is_empty() | !fields.text(&["Script"])?.is_empty();
    let docker = !fields.text(&["DockerContainerID"])?.is_empty();
    fields.text(&["Shell"])?;
    let grpc = !fields.text(&["GRPC"])?.is_empty();
    fields.flag(&["GRPCUseTLS"])?;
    let h2ping = !fields.text(&["H2PING"])?.is_empty();
    fields.flag(&["H2PingUseTLS"])?;
    let udp = !fields.text(&["UDP"])?.is_empty();
    let os_service = !fields.text(&["OSService"])?.is_empty();
    let alias =
        !fields.text(&["AliasNode"])?.is_empty() | !fields.text(&["AliasService"])?.is_empty();
    let given = [
        (docker, "docker"),
        (script && !docker, "script"),
        (grpc, "grpc"),
        (h2ping, "h2ping"),
        (udp, "udp"),
        (os_service, "os_service"),
        (alias, "alias"),
    ];
    Ok((
        given
            .into_iter()
            .filter(|(there, _)| *there)
            .map(|(_, name)| name)
            .collect(),
        alias,
    ))
}

fn judge(raw: RawCheck) -> Result<CheckDefinition, DefinitionError> {
    judge_times(&raw)?;
    let polled = usize::from(!raw.http.is_empty())
        + usize::from(!raw.tcp.is_empty())
        + raw.unsupported.len();
    if polled > 1 {
        return Err(DefinitionError::invalid(
            "check.type.several",
            "a check may have only one of http, tcp, args, docker_container_id, grpc, h2ping, udp, os_service, alias_service",
        ));
    }
    if let Some(kind) = raw.unsupported.first() {
        return Err(DefinitionError::invalid(
            "check.type.unsupported",
            format!(
                "check type {kind} is not supported by this version; supported are ttl, http and tcp"
            ),
        ));
    }
    let thresholds = judge_thresholds(&raw)?;
    let kind = if !raw.http.is_empty() {
        judge_url(&raw.http)?;
        judge_request(&raw.method, &raw.header)?;
        CheckKind::Http(HttpCheck {
            url: raw.http,
            method: raw.method,
            header: raw.header,
            body: raw.body,
            interval: raw.interval.max(INTERVAL_MIN),
            timeout: raw.timeout,
            tls_server_name: raw.tls_server_name,
            tls_skip_verify: raw.tls_skip_verify,
            disable_redirects: raw.disable_redirects,
        })
    } else if !raw.tcp.is_empty() {
        CheckKind::Tcp(TcpCheck {
            address: raw.tcp,
            interval: raw.interval.max(INTERVAL_MIN),
            timeout: raw.timeout,
            use_tls: raw.tcp_use_tls,
            tls_server_name: raw.tls_server_name,
            tls_skip_verify: raw.tls_skip_verify,
        })
    } else {
        CheckKind::Ttl { ttl: raw.ttl }
    };
    Ok(CheckDefinition {
        kind,
        thresholds,
        ..raw.check
    })
}

/// Consul's rules on which times go with which type, with its texts.
fn judge_times(raw: &RawCheck) -> Result<(), DefinitionError> {
    let polled = !raw.http.is_empty()
        || !raw.tcp.is_empty()
        || raw.unsupported.iter().any(|kind| *kind != "alias");
    let refuse = |message: &str| Err(DefinitionError::invalid("check.times", message));
    if !raw.interval.is_zero() && !raw.ttl.is_zero() {
        return refuse("Interval and TTL cannot both be specified");
    }
    if polled && raw.interval.is_zero() {
        return refuse(
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        );
    }
    if polled && raw.alias {
        return refuse("Interval cannot be set for Alias checks");
    }
    if raw.alias && !raw.ttl.is_zero() {
        return refuse("TTL must be not be set for Alias checks");
    }
    if !polled && !raw.alias && raw.ttl.is_zero() {
        return refuse("TTL must be > 0 for TTL checks");
    }
    if polled && !raw.ttl.is_zero() {
        return refuse("Interval and TTL cannot both be specified");
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

/// The registration form of `check`, which [`parse_check`] reads back to the same. Keys are sorted.
pub(super) fn to_value(check: &CheckDefinition) -> Value {
    let time = |duration: Duration| weft_proto::duration::format(duration);
    let mut value = json!({
        "CheckID": check.id,
        "Name": check.name,
        "Notes": check.notes,
        "ServiceID": check.service_id,
        "Token": check.token,
        "Status": check.status.map(Status::as_str),
        "SuccessBeforePassing": check.thresholds.success_before_passing,
        "FailuresBeforeWarning": check.thresholds.failures_before_warning,
        "FailuresBeforeCritical": check.thresholds.failures_before_critical,
        "OutputMaxSize": check.output_max_size,
        "DeregisterCriticalServiceAfter": check.deregister_critical_service_after.map(time),
    });
    let kind = match &check.kind {
        CheckKind::Ttl { ttl } => json!({"TTL": time(*ttl)}),
        CheckKind::Http(http) => json!({
            "HTTP": http.url, "Method": http.method, "Header": http.header, "Body": http.body,
            "Interval": time(http.interval), "Timeout": time(http.timeout),
            "TLSServerName": http.tls_server_name, "TLSSkipVerify": http.tls_skip_verify,
            "DisableRedirects": http.disable_redirects,
        }),
        CheckKind::Tcp(tcp) => json!({
            "TCP": tcp.address, "Interval": time(tcp.interval), "Timeout": time(tcp.timeout),
            "TCPUseTLS": tcp.use_tls, "TLSServerName": tcp.tls_server_name, "TLSSkipVerify": tcp.tls_skip_verify,
        }),
        CheckKind::Maintenance => json!({}),
    };
    if let (Value::Object(all), Value::Object(kind)) = (&mut value, kind) {
        all.extend(kind);
    }
    value
}
