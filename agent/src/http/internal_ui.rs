//! `/v1/internal/ui/*`: what dashboards draw.
//!
//! Owns: summaries of the catalog by node, by service and as a whole.
//! Never: judges health; it counts statuses.
//! Source: CONSUL.md A.11; Consul 1.8.7's answers to the same requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_catalog::InstanceHealth;
use weft_catalog::acl::Resource;
use weft_proto::json::{Json, records};
use weft_proto::v1;

use super::blocking::{Found, Pass, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;

/// The service metadata by which other systems mark what they registered.
const EXTERNAL_SOURCE: &str = "external-source";
const CONNECT_PROXY: &str = "connect-proxy";

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
    tags: BTreeSet<&'a str>,
    nodes: BTreeSet<&'a str>,
    sources: BTreeSet<&'a str>,
    instances: u64,
    checks: Tally,
    native: bool,
}

pub(super) async fn services(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<InstanceHealth<'_>>(&call)?;
    read(&call, ReadForm::PLAIN, |pass| {
        let (index, _) = whole(pass);
        if !pass.wants(index) {
            return Found::later(index);
        }
        let names = pass.reader.services().rows;
        let mut proxied = BTreeSet::new();
        let mut summaries: BTreeMap<(&str, &str), Summary<'_>> = BTreeMap::new();
        for name in names.keys() {
            for row in shown(&call, pass, name) {
                let service = row.service;
                if service.kind == CONNECT_PROXY {
                    proxied.extend(destination(service));
                }
                if !selection.keeps(&row) {
                    continue;
                }
                let summary = summaries.entry((&service.name, &service.kind)).or_default();
                summary.add(row.node, service, &row.checks);
            }
        }
        let datacenter = &call.api.deps.info.datacenter;
        let mut json = Json::with_capacity(summaries.len() * 384 + 2);
        json.list(&summaries, |json, ((name, kind), summary)| {
            summary.write(json, (name, kind), datacenter, proxied.contains(*name));
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
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

/// The service that a proxy stands for.
fn destination(proxy: &v1::Service) -> Option<String> {
    let proxy: serde_json::Value = serde_json::from_str(&proxy.proxy_json).ok()?;
    Some(proxy["DestinationServiceName"].as_str()?.to_owned())
}

impl<'a> Summary<'a> {
    fn add(&mut self, node: &'a v1::Node, service: &'a v1::Service, checks: &[&Arc<v1::Check>]) {
        self.tags.extend(service.tags.iter().map(String::as_str));
        self.nodes.insert(&node.name);
        self.sources
            .extend(service.meta.get(EXTERNAL_SOURCE).map(String::as_str));
        self.instances += 1;
        self.native |= is_native(service);
        for check in checks {
            self.checks.count(&check.status);
        }
    }

    fn write(
        &self,
        json: &mut Json,
        (name, kind): (&str, &str),
        datacenter: &str,
        with_proxy: bool,
    ) {
        json.object(|json| {
            if !kind.is_empty() {
                json.key("Kind").string(kind);
            }
            json.key("Name").string(name);
            json.key("Datacenter").string(datacenter);
            json.key("Tags").strings(&self.tags);
            json.key("Nodes").strings(&self.nodes);
            json.key("ExternalSources").strings(&self.sources);
            json.key("InstanceCount").number(self.instances);
            json.key("ChecksPassing").number(self.checks.passing);
            json.key("ChecksWarning").number(self.checks.warning);
            json.key("ChecksCritical").number(self.checks.critical);
            json.key("GatewayConfig").object(|_| {});
            json.key("TransparentProxy").boolean(false);
            json.key("ConnectNative").boolean(self.native);
            json.key("ConnectedWithProxy").boolean(with_proxy);
            json.key("ConnectedWithGateway").boolean(false);
        });
    }
}

pub(super) fn is_native(service: &v1::Service) -> bool {
    serde_json::from_str::<serde_json::Value>(&service.connect_json)
        .is_ok_and(|connect| connect["Native"] == true)
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

    #[test]
    fn a_proxy_names_its_destination() {
        let proxy = |json: &str| v1::Service {
            proxy_json: json.to_owned(),
            ..v1::Service::default()
        };
        let found = destination(&proxy(r#"{"DestinationServiceName":"web"}"#));
        assert_eq!(found.as_deref(), Some("web"));
        assert_eq!(destination(&proxy("")), None);
    }
}
