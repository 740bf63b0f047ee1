//! Loopback is open, the network is not: what would leave this host in clear text, and how to allow it.
//!
//! Owns: the rule of DESIGN §1 and its texts.
//! Never: opens a socket; it judges a configuration.

use std::fmt;
use std::net::IpAddr;

use super::problem::{Code, Problem};
use super::runtime::{ListenAddr, RuntimeConfig};

/// A listener that would be open to the network. The process ends with exit code 78.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable reason id: `exposure.gossip`, `exposure.rpc`, `exposure.http`, `exposure.grpc`.
    pub reason: &'static str,
    /// What would be exposed, and where.
    pub message: String,
    /// One line that solves it, or allows it by name.
    pub fix: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error[{}]: {}\n  reason: {}\n  fix: {}",
            Code::Exposed.id(),
            self.message,
            self.reason,
            self.fix
        )
    }
}

/// Exit code of a refused start (sysexits `EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

const FIX_KEYS: &str =
    "weft init   (makes keys and configuration), or allow it by name: allow_unencrypted = true";
const FIX_HTTP: &str = "listen on 127.0.0.1 or a unix:// socket, use ports.https with tls.https, or allow it by name: allow_open_http = true";

/// Every listener that would carry clear text beyond this host without having been allowed by name.
/// Empty: the agent may start.
#[must_use]
pub fn exposure(config: &RuntimeConfig) -> Vec<Refusal> {
    let mut out = Vec::new();
    if !config.allow_unencrypted {
        out.extend(gossip(config));
        out.extend(rpc(config));
    }
    // `-dev` allows any client address; it is warned about instead.
    if !config.allow_open_http && !config.dev {
        out.extend(open("exposure.http", "the HTTP API", &config.network.http));
        out.extend(open("exposure.grpc", "gRPC", &config.network.grpc));
    }
    out
}

/// What was allowed by name, or by `-dev`: shown at every start, in metrics and in the UI.
#[must_use]
pub fn exposure_warnings(config: &RuntimeConfig) -> Vec<Problem> {
    let mut out = Vec::new();
    let mut warn = |refusals: Vec<Refusal>, by: &str| {
        out.extend(
            refusals
                .into_iter()
                .map(|r| Problem::new(Code::Advice, format!("{}; allowed by {by}", r.message))),
        );
    };
    if config.allow_unencrypted {
        warn(
            gossip(config).into_iter().chain(rpc(config)).collect(),
            "allow_unencrypted = true",
        );
    }
    if config.allow_open_http || config.dev {
        let by = if config.allow_open_http {
            "allow_open_http = true"
        } else {
            "-dev"
        };
        warn(
            open("exposure.http", "the HTTP API", &config.network.http),
            by,
        );
        warn(open("exposure.grpc", "gRPC", &config.network.grpc), by);
    }
    out
}

fn gossip(config: &RuntimeConfig) -> Option<Refusal> {
    let address = config.network.serf_lan;
    let sealed = config.gossip.key.is_some()
        && config.gossip.verify_incoming
        && config.gossip.verify_outgoing;
    let message = format!(
        "gossip would be in clear text on {address}: {}",
        match &config.gossip.key {
            None => "encrypt is not set",
            Some(_) => "encrypt_verify_incoming or encrypt_verify_outgoing is false",
        }
    );
    (!sealed && !local(address.ip())).then_some(Refusal {
        reason: "exposure.gossip",
        message,
        fix: FIX_KEYS,
    })
}

fn rpc(config: &RuntimeConfig) -> Option<Refusal> {
    let tls = &config.tls.internal_rpc;
    if !config.server {
        let address = config.network.rpc.ip();
        let sealed = tls.has_roots() && tls.verify_outgoing;
        return (!sealed && !local(address)).then(|| Refusal {
            reason: "exposure.rpc",
            message: format!(
                "calls to the servers would be in clear text from {address}: tls.internal_rpc has no ca_file, or verify_outgoing is not true"
            ),
            fix: FIX_KEYS,
        });
    }
    let sealed =
        tls.has_certificate() && tls.has_roots() && tls.verify_incoming && tls.verify_outgoing;
    let address = config.network.rpc;
    let missing = if tls.has_certificate() && tls.has_roots() {
        "tls.internal_rpc.verify_incoming and verify_outgoing are not both true"
    } else {
        "tls.internal_rpc has no ca_file, cert_file and key_file"
    };
    let message = format!("server RPC would be open on {address}: {missing}");
    (!sealed && !local(address.ip())).then_some(Refusal {
        reason: "exposure.rpc",
        message,
        fix: FIX_KEYS,
    })
}

fn open(reason: &'static str, what: &str, listeners: &[ListenAddr]) -> Vec<Refusal> {
    let beyond = |listener: &&ListenAddr| matches!(listener, ListenAddr::Ip(address) if !local(address.ip()));
    let refuse = |listener: &ListenAddr| Refusal {
        reason,
        message: format!("{what} would be open to everybody on {listener}, without TLS or ACLs"),
        fix: FIX_HTTP,
    };
    listeners.iter().filter(beyond).map(refuse).collect()
}

/// 127.0.0.0/8, ::1 and the same written as IPv4-mapped IPv6.
fn local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
