//! From a [`Target`] to the rows that answer it.
//!
//! Owns: health rules and why an answer is empty.
//! Never: builds records.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_catalog::prepared_query::{Expressions, render, select};
use weft_catalog::{HealthRow, InstanceHealth, Reader, State, Trace};
use weft_proto::duration;
use weft_proto::v1::{Check, Node, Service};

use super::metrics::Cause;
use super::name::{Target, Way};
use crate::near::{CLIENT, nearest_first};

/// Rows found for a name.
pub(crate) enum Found<'a> {
    /// The zone itself: SOA and NS.
    Apex(Vec<&'a Arc<Node>>),
    /// A node.
    Node(&'a Arc<Node>),
    /// Instances that may serve.
    Instances(Vec<Serving<'a>>),
    /// Instances through which the mesh reaches a service, and that service's name: its TTL counts.
    Mesh(Vec<Serving<'a>>, String),
    /// Instances that a prepared query selects.
    Query(Selected<'a>),
    /// An address spelled in the name.
    Address(IpAddr),
    /// Names of an address.
    Names(Vec<String>),
    /// The name does not exist.
    NoName(Cause),
    /// Not ours to answer.
    Foreign,
}

/// What came of a prepared query.
pub(crate) struct Selected<'a> {
    pub(crate) serving: Vec<Serving<'a>>,
    /// The query's own TTL.
    pub(crate) ttl: Option<Duration>,
    /// The order counts: the nearest come first.
    pub(crate) ordered: bool,
    /// The answer depends on where the client is.
    pub(crate) for_client: bool,
}

/// An instance with the weight of its present state.
#[derive(Clone, Copy)]
pub(crate) struct Serving<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) service: &'a Arc<Service>,
    pub(crate) weight: u16,
    pub(crate) port: u16,
}

/// What the lookup must know besides the state.
pub(crate) struct Rules<'a> {
    pub(crate) datacenter: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) only_passing: bool,
    /// This agent's node.
    pub(crate) node: &'a str,
    /// Whom the answer is for: the subnet that the question names, else where it came from.
    pub(crate) client: IpAddr,
    /// Of the templates of prepared queries.
    pub(crate) expressions: &'a Expressions,
}

/// Servers named in NS answers.
const NAME_SERVERS_MAX: usize = 3;

pub(crate) fn find<'a>(
    target: &Target,
    state: &'a State,
    rules: &Rules<'_>,
    trace: &'a Trace,
    dice: &mut impl rand::Rng,
) -> Found<'a> {
    let read = state.read(trace);
    let elsewhere = |dc: &Option<String>| {
        dc.as_deref()
            .is_some_and(|dc| !dc.eq_ignore_ascii_case(rules.datacenter))
    };
    match target {
        Target::Apex => Found::Apex(name_servers(state, trace)),
        Target::Node { datacenter, .. }
        | Target::Service { datacenter, .. }
        | Target::Mesh { datacenter, .. }
        | Target::Query { datacenter, .. }
            if elsewhere(datacenter) =>
        {
            Found::NoName(Cause::UnknownDatacenter)
        }
        Target::Node { name, .. } => read
            .node(name)
            .rows
            .map_or(Found::NoName(Cause::UnknownNode), Found::Node),
        Target::Service {
            name, tag, port, ..
        } => instances(
            read.health_rows(name),
            tag.as_deref(),
            port.as_deref(),
            rules,
        ),
        Target::Mesh { name, way, .. } => through_mesh(&read, name, *way, rules),
        Target::Query { name, .. } => executed((state, &read), name, rules, dice),
        Target::Address(ip) => Found::Address(*ip),
        Target::Reverse(ip) => names_of(*ip, state, rules, trace),
        Target::Nothing => Found::NoName(Cause::NotAName),
        Target::Foreign => Found::Foreign,
    }
}

fn name_servers<'a>(state: &'a State, trace: &'a Trace) -> Vec<&'a Arc<Node>> {
    state
        .read(trace)
        .service_instances("consul")
        .rows
        .into_iter()
        .map(|i| i.node)
        .take(NAME_SERVERS_MAX)
        .collect()
}

fn instances<'a>(
    rows: impl Iterator<Item = HealthRow<'a>>,
    tag: Option<&str>,
    port: Option<&str>,
    rules: &Rules<'_>,
) -> Found<'a> {
    let (mut known, mut tagged, mut ported) = (false, false, false);
    let mut serving = Vec::new();
    for row in rows {
        known = true;
        let mut tags = row.service.tags.iter();
        if tag.is_some_and(|tag| !tags.any(|t| t.eq_ignore_ascii_case(tag))) {
            continue;
        }
        tagged = true;
        let Some(number) = number(row.service, port) else {
            continue;
        };
        ported = true;
        let health = Health::of(row.checks.iter());
        if health.serves(rules.only_passing) {
            serving.push(weighed(row.node, row.service, health, number));
        }
    }
    match (known, tagged, ported) {
        _ if !serving.is_empty() => Found::Instances(serving),
        (false, ..) => Found::NoName(Cause::UnknownService),
        (_, false, _) => Found::NoName(Cause::NoSuchTag),
        (.., false) => Found::NoName(Cause::NoSuchPort),
        _ => Found::NoName(Cause::NothingHealthy),
    }
}

fn through_mesh<'a>(read: &Reader<'a>, name: &str, way: Way, rules: &Rules<'_>) -> Found<'a> {
    let rows = match way {
        Way::Connect => read.connect_instances(name).rows,
        Way::Ingress => read.ingress_instances(name).rows,
    };
    if rows.is_empty() {
        let known = read.health_rows(name).next().is_some();
        return Found::NoName(match known {
            true => Cause::NotInMesh,
            false => Cause::UnknownService,
        });
    }
    let serving: Vec<_> = rows
        .iter()
        .filter(|row| Health::of(row.checks.iter().copied()).serves(rules.only_passing))
        .filter_map(selected)
        .collect();
    match serving.is_empty() {
        true => Found::NoName(Cause::NothingHealthy),
        false => Found::Mesh(serving, name.to_owned()),
    }
}

fn executed<'a>(
    (state, read): (&State, &Reader<'a>),
    name: &str,
    rules: &Rules<'_>,
    dice: &mut impl rand::Rng,
) -> Found<'a> {
    let query = read.prepared_query_called(name);
    let Some(query) = query.and_then(|query| render(query, name, rules.expressions).ok()) else {
        return Found::NoName(Cause::UnknownQuery);
    };
    let mut rows = select(read, &query);
    if rows.is_empty() {
        return Found::NoName(Cause::NothingHealthy);
    }
    let client = Some(rules.client);
    let ordered = nearest_first(&mut rows, &query.near, rules.node, client, state, dice);
    Found::Query(Selected {
        serving: rows.iter().filter_map(selected).collect(),
        ttl: duration::parse(&query.dns_ttl).ok(),
        ordered,
        for_client: query.near == CLIENT,
    })
}

/// Whoever selected it has judged the checks; they still decide the weight.
fn selected<'a>(row: &InstanceHealth<'a>) -> Option<Serving<'a>> {
    let health = Health::of(row.checks.iter().copied());
    let port = number(row.service, None)?;
    Some(weighed(row.node, row.service, health, port))
}

/// What an instance's checks come to.
#[derive(Clone, Copy, Default)]
struct Health {
    critical: bool,
    warning: bool,
}

impl Health {
    fn of<'c>(checks: impl Iterator<Item = &'c Arc<Check>>) -> Self {
        checks.fold(Self::default(), |so_far, check| Self {
            critical: so_far.critical || check.status == "critical",
            warning: so_far.warning || check.status == "warning",
        })
    }

    fn serves(self, only_passing: bool) -> bool {
        !(self.critical || only_passing && self.warning)
    }
}

/// The port to answer; `None` when the one asked for by name is not there.
fn number(service: &Service, port: Option<&str>) -> Option<u16> {
    let mut ports = service.ports.iter();
    let number = match port {
        None => ports.find(|p| p.default).map_or(service.port, |p| p.port),
        Some(name) => ports.find(|p| p.name.eq_ignore_ascii_case(name))?.port,
    };
    Some(u16::try_from(number).unwrap_or(0))
}

fn weighed<'a>(
    node: &'a Arc<Node>,
    service: &'a Arc<Service>,
    health: Health,
    port: u16,
) -> Serving<'a> {
    let weights = service.weights.as_ref();
    let weight = match health.warning {
        true => weights.map_or(1, |w| w.warning),
        false => weights.map_or(1, |w| w.passing),
    };
    Serving {
        node,
        service,
        weight: u16::try_from(weight).unwrap_or(u16::MAX),
        port,
    }
}

fn names_of<'a>(ip: IpAddr, state: &'a State, rules: &Rules<'_>, trace: &'a Trace) -> Found<'a> {
    let read = state.read(trace);
    let nodes = read.nodes_by_address(ip).rows;
    let services = read.services_by_address(ip).rows;
    let node_names = nodes
        .iter()
        .map(|node| format!("{}.node.{}.{}.", node.name, rules.datacenter, rules.domain));
    let service_names = services.iter().map(|i| {
        format!(
            "{}.service.{}.{}.",
            i.service.name, rules.datacenter, rules.domain
        )
    });
    let mut names: Vec<String> = node_names.chain(service_names).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        Found::NoName(Cause::UnknownAddress)
    } else {
        Found::Names(names)
    }
}
