//! `/v1/internal/ui/*`: what dashboards draw.
//!
//! Owns: summaries of the catalog by node, by service and as a whole.
//! Never: judges health; it counts statuses.
//! Source: CONSUL.md A.11; Consul 1.8.7's answers to the same requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_catalog::InstanceHealth;
use weft_catalog::acl::Resource;
use weft_catalog::config_entry::Kind;
use weft_catalog::mesh::{self, GatewayService};
use weft_proto::json::{Json, records};
use weft_proto::v1;

use super::blocking::{Found, Pass, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;

/// The service metadata by which other systems mark what they registered.
const EXTERNAL_SOURCE: &str = "external-source";

pub(super) async fn nodes(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<v1::Node>(&call)?;
    read(&call, ReadForm::PLAIN, |pass| {
        let (index, nodes) = whole(pass);
        if !pass.wants(index) {
            return Found::later(index);
        }
        let shown = nodes.iter().filter(|node| {
            selection.keeps(&****node) && call.guard.shows(Resource::Node, node.name.as_bytes())
        });
        let mut json = Json::with_capacity(nodes.len() * 1_024 + 2);
        json.list(shown, |json, node| write_node(json, &call, pass, node));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

pub(super) async fn node(call: Call) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing node name")?;
    let reply = read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.node(&name);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut json = Json::with_capacity(4_096);
        match answer
            .rows
            .filter(|node| call.guard.shows(Resource::Node, node.name.as_bytes()))
        {
            Some(node) => write_node(&mut json, &call, pass, node),
            None => return Found::now(index, Reply::empty().status(http::StatusCode::NOT_FOUND)),
        }
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await?;
    Ok(reply)
}

/// Every node and the index of everything shown beside it.
fn whole<'a>(pass: &Pass<'a>) -> (u64, Vec<&'a Arc<v1::Node>>) {
    let nodes = pass.reader.nodes();
    let services = pass.reader.services().index;
    let checks = pass.reader.checks_in_state("any").index;
    let index = nodes.index.max(services).max(checks);
    (index.get(), nodes.rows)
}

fn write_node(json: &mut Json, call: &Call, pass: &Pass<'_>, node: &v1::Node) {
    let services = pass.reader.node_services(&node.name).rows;
    let checks = pass.reader.checks_of_node(&node.name).rows;
    let seen = |name: &str| name.is_empty() || call.guard.shows(Resource::Service, name.as_bytes());
    json.object(|json| {
        json.key("ID").string(&node.id);
        json.key("Node").string(&node.name);
        json.key("Address").string(&node.address);
        json.key("TaggedAddresses")
            .string_map(&node.tagged_addresses);
        json.key("Meta").string_map(&node.meta);
        let shown = services.iter().filter(|service| seen(&service.name));
        json.key("Services")
            .list(shown, |json, service| records::service(json, service));
        let shown = checks.iter().filter(|check| seen(&check.service_name));
        json.key("Checks")
            .list(shown, |json, check| records::check(json, check));
    });
}

/// How many checks say what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passing: u64,
    warning: u64,
    critical: u64,
}

impl Tally {
    fn count(&mut self, status: &str) {
        match status {
            "passing" => self.passing += 1,
            "warning" => self.warning += 1,
            _ => self.critical += 1,
        }
    }

    /// One thing with several checks is as well as the worst of them.
    fn count_worst<'s>(&mut self, statuses: impl Iterator<Item = &'s str>) {
        let mut own = Self::default();
        statuses.for_each(|status| own.count(status));
        self.count(match own {
            Self { critical: 1.., .. } => "critical",
            Self { warning: 1.., .. } => "warning",
            _ => "passing",
        });
    }
}

/// The instances of one name and kind.
#[derive(Debug, Default)]
struct Summary<'a> {
    name: &'a str,
    tags: BTreeSet<&'a str>,
    nodes: BTreeSet<&'a str>,
    sources: BTreeSet<&'a str>,
    instances: u64,
    checks: Tally,
    native: bool,
    /// Of the proxies that stand for it: all take its traffic without its knowing.
    transparent: Option<bool>,
    /// A gateway that links it has instances.
    with_gateway: bool,
    /// Of a gateway: the services it is linked to.
    linked: BTreeSet<String>,
    /// Where ingress gateways take its requests.
    addresses: BTreeSet<String>,
}

pub(super) async fn services(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<InstanceHealth<'_>>(&call)?;
    read(&call, ReadForm::PLAIN, |pass| {
        let (index, _) = whole(pass);
        let index = index.max(links_index(pass));
        if !pass.wants(index) {
            return Found::later(index);
        }
        let summaries = summarise(&call, pass, Some(&selection));
        let datacenter = &call.api.deps.info.datacenter;
        let mut json = Json::with_capacity(summaries.len() * 384 + 2);
        json.list(&summaries, |json, ((_, kind), summary)| {
            summary.write(json, kind, datacenter);
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

/// The services that a gateway is linked to, those without instances too.
pub(super) async fn gateway_services(call: Call) -> Result<Reply, Failure> {
    let gateway = call.required_tail("Missing gateway name")?;
    read(&call, ReadForm::PLAIN, |pass| {
        let (index, _) = whole(pass);
        let index = index.max(links_index(pass));
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut all = summarise(&call, pass, None);
        let links = pass.reader.gateway_services(&gateway).rows;
        let seen = |name: &str| call.guard.shows(Resource::Service, name.as_bytes());
        let shown = links
            .iter()
            .filter(|link| seen(link.gateway) && seen(&link.service));
        let mut rows: BTreeMap<String, Summary<'_>> = BTreeMap::new();
        for link in shown {
            let name = link.service.to_ascii_lowercase();
            let summary = all.remove(&(name.clone(), "")).unwrap_or_default();
            let row = rows.entry(name).or_insert(summary);
            if row.name.is_empty() {
                row.name = &link.service;
            }
        }
        let datacenter = &call.api.deps.info.datacenter;
        let mut json = Json::with_capacity(rows.len() * 384 + 2);
        json.list(rows.values(), |json, row| row.write(json, "", datacenter));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

/// What the instances that the caller may see, and the selection keeps, come to, and how gateways are
/// linked to them.
fn summarise<'a>(call: &Call, pass: &Pass<'a>, selection: Option<&Selection>) -> Summaries<'a> {
    let mut proxied: BTreeMap<String, bool> = BTreeMap::new();
    let mut summaries: Summaries<'a> = BTreeMap::new();
    for name in pass.reader.services().rows.keys() {
        for row in shown(call, pass, name) {
            let service = row.service;
            if let Some(destination) = mesh::destination(service) {
                let all = proxied.entry(destination.to_ascii_lowercase());
                *all.or_insert(true) &= mesh::is_transparent(service);
            }
            if selection.is_some_and(|selection| !selection.keeps(&row)) {
                continue;
            }
            let key = (service.name.to_ascii_lowercase(), service.kind.as_str());
            let summary = summaries.entry(key).or_default();
            summary.add(row.node, service, &row.checks);
        }
    }
    for ((name, kind), summary) in &mut summaries {
        if *kind != mesh::CONNECT_PROXY {
            summary.transparent = proxied.get(name).copied();
        }
    }
    let info = &call.api.deps.info;
    let zone = format!("{}.{}", info.datacenter, info.domain);
    link(pass, &zone, &mut summaries);
    summaries
}

/// By folded name and kind.
type Summaries<'a> = BTreeMap<(String, &'a str), Summary<'a>>;

/// What links between gateways and services depend on, beside the instances.
const LINKING: [Kind; 4] = [
    Kind::IngressGateway,
    Kind::TerminatingGateway,
    Kind::ServiceDefaults,
    Kind::ProxyDefaults,
];

fn links_index(pass: &Pass<'_>) -> u64 {
    let index = |kind| pass.reader.config_entries(kind).index.get();
    LINKING.into_iter().map(index).max().unwrap_or_default()
}

/// Adds what the gateways' entries say.
fn link(pass: &Pass<'_>, zone: &str, summaries: &mut Summaries<'_>) {
    for kind in [Kind::IngressGateway, Kind::TerminatingGateway] {
        for entry in pass.reader.config_entries(kind).rows {
            for link in pass.reader.gateway_services(&entry.name).rows {
                if link.kind == kind {
                    take_link(zone, summaries, &link);
                }
            }
        }
    }
}

/// `zone`: what the names of this datacenter end in.
fn take_link(zone: &str, summaries: &mut Summaries<'_>, link: &GatewayService<'_>) {
    let service = link.service.to_ascii_lowercase();
    let gateway = (link.gateway.to_ascii_lowercase(), link.kind.as_str());
    let runs = summaries.get_mut(&gateway).map(|gateway| {
        gateway.linked.insert(service.clone());
    });
    if let Some(summary) = summaries.get_mut(&(service, "")) {
        summary.with_gateway |= runs.is_some();
        if link.kind == Kind::IngressGateway {
            summary.addresses.extend(addresses(zone, link));
        }
    }
}

/// Where an ingress gateway takes requests for a service.
fn addresses(zone: &str, link: &GatewayService<'_>) -> Vec<String> {
    if link.hosts.is_empty() {
        return vec![format!("{}.ingress.{zone}:{}", link.service, link.port)];
    }
    let at = |host: &String| format!("{host}:{}", link.port);
    link.hosts.iter().map(at).collect()
}

/// The instances of a service that the caller may see.
fn shown<'a>(call: &Call, pass: &Pass<'a>, name: &str) -> Vec<InstanceHealth<'a>> {
    let mut rows = pass.reader.health_service(name).rows;
    rows.retain(|row| {
        let guard = &call.guard;
        guard.shows(Resource::Service, row.service.name.as_bytes())
            && guard.shows(Resource::Node, row.node.name.as_bytes())
    });
    rows
}

impl<'a> Summary<'a> {
    fn add(&mut self, node: &'a v1::Node, service: &'a v1::Service, checks: &[&Arc<v1::Check>]) {
        self.name = &service.name;
        self.tags.extend(service.tags.iter().map(String::as_str));
        self.nodes.insert(&node.name);
        self.sources
            .extend(service.meta.get(EXTERNAL_SOURCE).map(String::as_str));
        self.instances += 1;
        self.native |= mesh::is_native(service);
        for check in checks {
            self.checks.count(&check.status);
        }
    }

    fn write(&self, json: &mut Json, kind: &str, datacenter: &str) {
        json.object(|json| {
            if !kind.is_empty() {
                json.key("Kind").string(kind);
            }
            json.key("Name").string(self.name);
            json.key("Datacenter").string(datacenter);
            json.key("Tags").strings(&self.tags);
            json.key("Nodes").strings(&self.nodes);
            json.key("ExternalSources").strings(&self.sources);
            json.key("InstanceCount").number(self.instances);
            json.key("ChecksPassing").number(self.checks.passing);
            json.key("ChecksWarning").number(self.checks.warning);
            json.key("ChecksCritical").number(self.checks.critical);
            json.key("GatewayConfig").object(|json| {
                if !self.linked.is_empty() {
                    let linked = self.linked.len() as u64;
                    json.key("AssociatedServiceCount").number(linked);
                }
                if !self.addresses.is_empty() {
                    json.key("Addresses").strings(&self.addresses);
                }
            });
            json.key("TransparentProxy")
                .boolean(self.transparent == Some(true));
            json.key("ConnectNative").boolean(self.native);
            json.key("ConnectedWithProxy")
                .boolean(self.transparent.is_some());
            json.key("ConnectedWithGateway").boolean(self.with_gateway);
        });
    }
}

pub(super) async fn overview(call: Call) -> Result<Reply, Failure> {
    read(&call, ReadForm::PLAIN, |pass| {
        let (index, all) = whole(pass);
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut nodes = Tally::default();
        let mut total = 0;
        let mut checks: BTreeMap<String, Tally> = BTreeMap::new();
        let seen = all
            .iter()
            .filter(|node| call.guard.shows(Resource::Node, node.name.as_bytes()));
        for node in seen {
            total += 1;
            let of_node = pass.reader.checks_of_node(&node.name).rows;
            let statuses = of_node
                .iter()
                .filter(|check| check.service_id.is_empty())
                .map(|check| check.status.as_str());
            nodes.count_worst(statuses);
            for check in of_node {
                if check.service_name.is_empty()
                    || call
                        .guard
                        .shows(Resource::Service, check.service_name.as_bytes())
                {
                    let tally = checks.entry(check.name.clone()).or_default();
                    tally.count(&check.status);
                }
            }
        }
        let mut services: BTreeMap<String, Tally> = BTreeMap::new();
        for name in pass.reader.services().rows.keys() {
            for row in shown(&call, pass, name) {
                let tally = services.entry((*name).to_owned()).or_default();
                tally.count_worst(row.checks.iter().map(|check| check.status.as_str()));
            }
        }
        let mut json = Json::with_capacity(services.len() * 96 + 512);
        json.object(|json| {
            json.key("Nodes")
                .array(|json| write_tally(json, None, nodes, total));
            json.key("Services").list(&services, write_named);
            json.key("Checks").list(&checks, write_named);
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

fn write_named(json: &mut Json, (name, tally): (&String, &Tally)) {
    let total = tally.passing + tally.warning + tally.critical;
    write_tally(json, Some(name), *tally, total);
}

fn write_tally(json: &mut Json, name: Option<&str>, tally: Tally, total: u64) {
    json.object(|json| {
        if let Some(name) = name {
            json.key("Name").string(name);
        }
        json.key("Total").number(total);
        json.key("Passing").number(tally.passing);
        json.key("Warning").number(tally.warning);
        json.key("Critical").number(tally.critical);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_as_well_as_its_worst_check() {
        let mut tally = Tally::default();
        for statuses in [
            &[][..],
            &["passing"],
            &["passing", "warning"],
            &["warning", "critical", "passing"],
        ] {
            tally.count_worst(statuses.iter().copied());
        }
        let expected = Tally {
            passing: 2,
            warning: 1,
            critical: 1,
        };
        assert_eq!(tally, expected);
    }
}
