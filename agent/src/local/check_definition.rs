//! One check as a user describes it.
//!
//! Owns: the fields of every check type of CONSUL.md B.6, and what they are when left out.
//! Never: runs a check, or reads what a user wrote; that is [`super::check_parse`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::status::Status;
use super::threshold::Thresholds;

/// No check runs more often than this (CONSUL.md B.6).
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Time a check over the network may take when none is given.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Time a script may take when none is given, on this host or in a container.
pub const SCRIPT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
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
    /// A command on this host: exit 0 passes, 1 warns, anything else is critical.
    Script(ScriptCheck),
    /// An HTTP request: 2xx passes, 429 warns, anything else is critical.
    Http(HttpCheck),
    /// A TCP connection to any of the resolved addresses.
    Tcp(TcpCheck),
    /// A datagram: an answer or silence passes, a refusal is critical.
    Udp(UdpCheck),
    /// The gRPC health protocol: SERVING passes.
    Grpc(GrpcCheck),
    /// An HTTP/2 connection whose ping is answered.
    H2Ping(H2PingCheck),
    /// A command inside a container, judged as a script.
    Docker(DockerCheck),
    /// A unit that the host's service manager says is active.
    OsService(OsServiceCheck),
    /// Mirrors the worst of another service's or node's checks.
    Alias(AliasCheck),
    /// Nobody runs it: an operator took the node or the service out.
    Maintenance,
}

impl CheckKind {
    /// Consul's `Type` word; `maintenance` for what an operator set.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Ttl { .. } => "ttl",
            Self::Script(_) => "script",
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Grpc(_) => "grpc",
            Self::H2Ping(_) => "h2ping",
            Self::Docker(_) => "docker",
            Self::OsService(_) => "os_service",
            Self::Alias(_) => "alias",
            Self::Maintenance => "maintenance",
        }
    }

    /// When it runs; `None` for what is not polled.
    #[must_use]
    pub fn pace(&self) -> Option<Pace> {
        match self {
            Self::Script(check) => Some(check.pace),
            Self::Http(check) => Some(check.pace),
            Self::Tcp(check) => Some(check.pace),
            Self::Udp(check) => Some(check.pace),
            Self::Grpc(check) => Some(check.pace),
            Self::H2Ping(check) => Some(check.pace),
            Self::Docker(check) => Some(check.pace),
            Self::OsService(check) => Some(check.pace),
            Self::Ttl { .. } | Self::Alias(_) | Self::Maintenance => None,
        }
    }

    /// Time between runs; zero for what is not polled.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.pace().unwrap_or_default().interval
    }

    /// The time-out as the user wrote it; zero when none was written.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.pace().unwrap_or_default().timeout
    }

    /// How long one run may take.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        let written = self.timeout();
        match self {
            _ if !written.is_zero() => written,
            Self::Script(_) | Self::Docker(_) => SCRIPT_TIMEOUT_DEFAULT,
            _ => TIMEOUT_DEFAULT,
        }
    }

    /// Whether it makes a host or a container execute a command of the user's choice, which is
    /// off unless `enable_script_checks` or `enable_local_script_checks` allows it.
    #[must_use]
    pub fn runs_commands(&self) -> bool {
        matches!(self, Self::Script(_) | Self::Docker(_))
    }

    /// Whether one run starts a process on this host.
    pub(super) fn starts_process(&self) -> bool {
        matches!(self, Self::Script(_) | Self::OsService(_))
    }
}

/// When a check runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Time between runs, at least [`INTERVAL_MIN`].
    pub interval: Duration,
    /// As written; zero: the type's default.
    pub timeout: Duration,
}

/// How a check's target proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetTls {
    /// Name to send and verify instead of the address's host; empty: that host.
    pub server_name: String,
    /// Accept any certificate.
    pub skip_verify: bool,
}

impl TargetTls {
    /// The name to verify when the target's address is `host`.
    pub(super) fn name<'a>(&'a self, host: &'a str) -> &'a str {
        if self.server_name.is_empty() {
            host
        } else {
            &self.server_name
        }
    }
}

/// Parameters of a script check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptCheck {
    /// Program and arguments; never empty. No shell reads them.
    pub args: Vec<String>,
    /// When it runs; the time-out defaults to [`SCRIPT_TIMEOUT_DEFAULT`].
    pub pace: Pace,
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
    /// When it runs; the time-out defaults to [`TIMEOUT_DEFAULT`].
    pub pace: Pace,
    /// For `https://`.
    pub tls: TargetTls,
    /// Take a redirect as the answer instead of following it.
    pub disable_redirects: bool,
}

/// Parameters of a tcp check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpCheck {
    /// `host:port`.
    pub address: String,
    /// When it runs; the time-out defaults to [`TIMEOUT_DEFAULT`].
    pub pace: Pace,
    /// Complete a TLS handshake after connecting.
    pub use_tls: bool,
    /// For `use_tls`.
    pub tls: TargetTls,
}

/// Parameters of a udp check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpCheck {
    /// `host:port`.
    pub address: String,
    /// When it runs; silence for the time-out, by default [`TIMEOUT_DEFAULT`], passes.
    pub pace: Pace,
}

/// Parameters of a grpc check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcCheck {
    /// `host:port` or `host:port/service`, as written.
    pub target: String,
    /// When it runs; the time-out defaults to [`TIMEOUT_DEFAULT`].
    pub pace: Pace,
    /// Speak TLS.
    pub use_tls: bool,
    /// For `use_tls`.
    pub tls: TargetTls,
}

/// Parameters of an h2ping check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct H2PingCheck {
    /// `host:port`.
    pub address: String,
    /// When it runs; the time-out defaults to [`TIMEOUT_DEFAULT`].
    pub pace: Pace,
    /// Speak TLS; true unless the user said no.
    pub use_tls: bool,
    /// For `use_tls`.
    pub tls: TargetTls,
}

/// Parameters of a docker check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerCheck {
    /// Name or id of the container.
    pub container: String,
    /// Program and arguments; never empty. No shell reads them.
    pub args: Vec<String>,
    /// Kept as written. Consul used it for one-string scripts only, which nobody runs any more.
    pub shell: String,
    /// When it runs; the time-out defaults to [`SCRIPT_TIMEOUT_DEFAULT`].
    pub pace: Pace,
}

/// Parameters of an os_service check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsServiceCheck {
    /// Name of the unit; `.service` may be left out.
    pub unit: String,
    /// When it runs; the time-out defaults to [`TIMEOUT_DEFAULT`].
    pub pace: Pace,
}

/// Whose health an alias check mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasCheck {
    /// The node; empty: this one, of whose checks the agent's own list decides.
    pub node: String,
    /// The id of a service there; empty: the node's own checks alone.
    pub service_id: String,
}
