//! From a registration and what is known of the catalog to the plan of its proxy. Pure.
//!
//! Owns: defaults of time-outs, limits and addresses; whose endpoints are called. Never: reads, waits, or keeps anything.
//! Source: Consul docs, "Proxy configuration reference", "Envoy proxy configuration"; PROXY.md 3.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use weft_catalog::InstanceHealth;
use weft_catalog::mesh::registration::{LocalSocket, ProxyRegistration, Upstream};
use weft_identity::ca::{SpiffeId, TrustDomain};
use weft_proto::v1;
use weft_proxy::balance::{Outlier, Policy};
use weft_proxy::config::{Address, Intentions};
use weft_proxy::snapshot::{
    EndpointPlan, InboundPlan, LeafPlan, ServicePlan, TargetPlan, UpstreamPlan,
};

/// To reach the application, and an endpoint (`local_connect_timeout_ms`, `connect_timeout_ms`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a caller to prove itself.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After which silent connections are closed (`tcp_idle_timeout_ms`): Envoy's default for TCP.
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);
/// Connections at once to a service (`max_inbound_connections`) and to an upstream (`limits.max_connections`).
const CONNECTIONS_MAX: u32 = 16_384;
/// The longest time that a setting may name.
const TIME_MAX_MILLIS: u64 = 7 * 24 * 3_600 * 1_000;

/// Something that keeps a proxy from its whole work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Stable id.
    pub(super) reason: &'static str,
    /// For the user.
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// What is known of the services that are called; `None`: not known yet.
pub(super) type Endpoints = BTreeMap<String, Option<Vec<EndpointPlan>>>;

/// What a plan is made of.
pub(super) struct Known<'a> {
    /// The proxy, with what config entries say beside its registration.
    pub(super) service: &'a v1::Service,
    /// What it says.
    pub(super) registration: &'a ProxyRegistration,
    /// Of the service it stands for.
    pub(super) leaf: Option<LeafPlan>,
    /// Of the service it stands for.
    pub(super) intentions: Intentions,
    /// By name of the service called, folded.
    pub(super) endpoints: &'a Endpoints,
}

/// What holds for all proxies of a node.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Where proxies listen that say nothing of it.
    pub(super) bind: IpAddr,
    /// Ours.
    pub(super) datacenter: String,
    /// The mesh's; `None`: not known yet.
    pub(super) domain: Option<TrustDomain>,
}

/// The plan of one proxy, and what is amiss with it; a part that is amiss is left away.
pub(super) fn service(known: Known<'_>, place: &Place) -> (ServicePlan, Vec<Problem>) {
    let mut problems = Vec::new();
    let registration = known.registration;
    let settings = Settings(&registration.config);
    let inbound = inbound(&known, settings, place, &mut problems);
    let mut upstreams: Vec<UpstreamPlan> = Vec::new();
    for wanted in &registration.upstreams {
        match upstream(wanted, known.endpoints, place, &mut problems) {
            Ok(mut plan) => {
                let twins = registration.upstreams.iter();
                let twins = twins.take_while(|other| !std::ptr::eq(*other, wanted));
                let before = twins.filter(|other| other.name == wanted.name).count();
                if before > 0 {
                    plan.name = format!("{}#{}", wanted.name, before + 1).into();
                }
                upstreams.push(plan);
            }
            Err(problem) => problems.push(problem),
        }
    }
    let plan = ServicePlan {
        id: known.service.id.clone(),
        name: registration.destination_name.as_str().into(),
        leaf: known.leaf,
        inbound,
        upstreams,
    };
    (plan, problems)
}

fn inbound(
    known: &Known<'_>,
    settings: Settings<'_>,
    place: &Place,
    problems: &mut Vec<Problem>,
) -> Option<InboundPlan> {
    let service = known.service;
    let port = settings
        .port("bind_port")
        .or_else(|| u16::try_from(service.port).ok());
    let port = port.filter(|port| *port != 0)?;
    let own = settings.text("bind_address").unwrap_or_default();
    let bind = match own {
        "" => service.address.parse().unwrap_or(place.bind),
        text => match text.parse() {
            Ok(ip) => ip,
            Err(_) => {
                let what = format!("bind_address {text:?} is not an IP address");
                problems.push(Problem::new("proxy.bind_address", what));
                return None;
            }
        },
    };
    let application = match &known.registration.local {
        LocalSocket::Tcp { address, port } => match address.parse::<IpAddr>() {
            Ok(ip) => Address::Tcp(SocketAddr::new(ip, *port)),
            Err(_) => {
                let what = format!("local_service_address {address:?} is not an IP address");
                problems.push(Problem::new("proxy.local_service_address", what));
                return None;
            }
        },
        LocalSocket::Unix { path, .. } => Address::Unix(path.into(), None),
    };
    if matches!(&application, Address::Tcp(address) if address.port() == 0) {
        let what = "no port is known at which the application listens: set local_service_port";
        problems.push(Problem::new("proxy.local_service_port", what));
        return None;
    }
    let max = settings
        .number("max_inbound_connections")
        .filter(|max| *max > 0);
    Some(InboundPlan {
        bind: SocketAddr::new(bind, port),
        application,
        connect_timeout: settings
            .time("local_connect_timeout_ms")
            .unwrap_or(CONNECT_TIMEOUT),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        idle_timeout: settings
            .time("local_idle_timeout_ms")
            .unwrap_or(IDLE_TIMEOUT),
        max_connections: max.map_or(CONNECTIONS_MAX, clamped),
        intentions: known.intentions.clone(),
    })
}

fn upstream(
    wanted: &Upstream,
    endpoints: &Endpoints,
    place: &Place,
    problems: &mut Vec<Problem>,
) -> Result<UpstreamPlan, Problem> {
    let unusable =
        |reason, why: String| Problem::new(reason, format!("upstream {}: {why}", wanted.name));
    if !wanted.datacenter.is_empty() && !wanted.datacenter.eq_ignore_ascii_case(&place.datacenter) {
        let why = format!(
            "it is in datacenter {:?}, and only this one can be reached",
            wanted.datacenter
        );
        return Err(unusable("proxy.upstream_datacenter", why));
    }
    if !matches!(wanted.destination_type.as_str(), "" | "service") {
        let why = format!(
            "it is a {}, and only services can be called",
            wanted.destination_type
        );
        return Err(unusable("proxy.upstream_type", why));
    }
    let bind = match &wanted.local_bind {
        LocalSocket::Tcp { address, port } => match address.parse::<IpAddr>() {
            Ok(ip) => Address::Tcp(SocketAddr::new(ip, *port)),
            Err(_) => {
                let why = format!("local_bind_address {address:?} is not an IP address");
                return Err(unusable("proxy.upstream_bind", why));
            }
        },
        LocalSocket::Unix { path, mode } => Address::Unix(path.into(), *mode),
    };
    let Some(domain) = &place.domain else {
        return Err(unusable(
            "proxy.roots_unknown",
            "no roots are known yet".to_owned(),
        ));
    };
    let expected = SpiffeId::service(domain, &place.datacenter, &wanted.name);
    let expected = expected.map_err(|why| unusable("proxy.upstream_name", why.to_string()))?;
    let known = endpoints
        .get(&wanted.name.to_ascii_lowercase())
        .cloned()
        .flatten();
    if known.is_none() {
        problems.push(unusable(
            "proxy.endpoints_unknown",
            "no server has said yet where it is".to_owned(),
        ));
    }
    let settings = Settings(&wanted.config);
    let limits = settings.member("limits").map(Settings);
    let max = ["max_connections", "MaxConnections"];
    let max = max.into_iter().find_map(|name| limits?.number(name));
    Ok(UpstreamPlan {
        name: wanted.name.as_str().into(),
        bind,
        targets: vec![TargetPlan {
            service: wanted.name.as_str().into(),
            server_name: format!(
                "{}.default.{}.internal.{domain}",
                wanted.name, place.datacenter
            ),
            expected: vec![expected],
            endpoints: known.unwrap_or_default(),
            policy: policy(settings),
            outlier: outlier(settings),
        }],
        connect_timeout: settings
            .time("connect_timeout_ms")
            .unwrap_or(CONNECT_TIMEOUT),
        idle_timeout: settings.time("idle_timeout_ms").unwrap_or(IDLE_TIMEOUT),
        max_connections: max.filter(|max| *max > 0).map_or(CONNECTIONS_MAX, clamped),
    })
}

fn policy(settings: Settings<'_>) -> Policy {
    match settings.text("load_balancer") {
        Some("round_robin") => Policy::RoundRobin,
        Some("least_request") => Policy::LeastConnections,
        Some("random") => Policy::Random,
        _ => Policy::LeastLoad,
    }
}

/// `passive_health_check`, in Consul's words.
fn outlier(settings: Settings<'_>) -> Outlier {
    let default = Outlier::default();
    let Some(map) = settings.member("passive_health_check") else {
        return default;
    };
    let check = Settings(map);
    let number = |names: [&str; 2]| names.into_iter().find_map(|name| check.number(name));
    let base = ["base_ejection_time", "BaseEjectionTime"];
    let base = base
        .into_iter()
        .find_map(|name| check.time_or_duration(name));
    Outlier {
        max_failures: number(["max_failures", "MaxFailures"]).map_or(default.max_failures, clamped),
        base_ejection: base.unwrap_or(default.base_ejection),
        max_percent: number(["max_ejection_percent", "MaxEjectionPercent"])
            .map_or(default.max_percent, |n| clamped(n).min(100)),
        ..default
    }
}

/// The endpoints among instances that stand for a service: those whose checks are not critical. `here`: this node.
pub(super) fn endpoints(
    rows: &[InstanceHealth<'_>],
    here: (&str, &dyn Fn(&str) -> bool),
) -> Vec<EndpointPlan> {
    let (node, is_ours) = here;
    let mut found: Vec<EndpointPlan> = rows
        .iter()
        .filter_map(|row| endpoint(row, node, is_ours))
        .collect();
    found.sort_by_key(|endpoint| endpoint.address);
    found.dedup_by_key(|endpoint| endpoint.address);
    found
}

fn endpoint(
    row: &InstanceHealth<'_>,
    node: &str,
    is_ours: &dyn Fn(&str) -> bool,
) -> Option<EndpointPlan> {
    let is = |status: &str| row.checks.iter().any(|check| check.status == status);
    if is("critical") {
        return None;
    }
    let service = row.service;
    let address = match service.address.as_str() {
        "" => row.node.address.as_str(),
        own => own,
    };
    let port = u16::try_from(service.port).ok().filter(|port| *port != 0)?;
    // A name instead of an address has no place among endpoints: nobody resolves it here.
    let ip = address.parse().ok()?;
    let weights = service.weights.as_ref();
    let weight = match is("warning") {
        true => weights.map_or(1, |weights| weights.warning),
        false => weights.map_or(1, |weights| weights.passing),
    };
    let is_here = row.node.name.eq_ignore_ascii_case(node) && is_ours(&service.id);
    Some(EndpointPlan {
        address: SocketAddr::new(ip, port),
        weight,
        here: is_here.then(|| Arc::from(service.id.as_str())),
    })
}

/// Opaque settings of a registration. What cannot be read is as good as not there.
#[derive(Clone, Copy)]
struct Settings<'a>(&'a Map<String, Value>);

impl<'a> Settings<'a> {
    fn member(self, name: &str) -> Option<&'a Map<String, Value>> {
        self.0.get(name)?.as_object()
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.0.get(name)?.as_str()
    }

    /// Also of a number in quotes, as HCL writes it now and then.
    fn number(self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number
                .as_u64()
                .or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64)),
            _ => None,
        }
    }

    fn port(self, name: &str) -> Option<u16> {
        self.number(name)
            .and_then(|number| u16::try_from(number).ok())
    }

    fn time(self, name: &str) -> Option<Duration> {
        let millis = self.number(name)?;
        Some(Duration::from_millis(millis.min(TIME_MAX_MILLIS)))
    }

    /// Nanoseconds, or in Go's words.
    fn time_or_duration(self, name: &str) -> Option<Duration> {
        match self.text(name) {
            Some(text) => weft_proto::duration::parse(text).ok(),
            None => self.number(name).map(Duration::from_nanos),
        }
    }
}

fn clamped(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
