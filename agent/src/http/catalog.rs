//! `/v1/catalog/*`.
//!
//! Owns: the catalog's reads and the registration of what no agent looks after.
//! Never: touches this host's own registrations.
//! Source: Consul HTTP API, "Catalog"; CONSUL.md A.2.

use std::collections::{BTreeMap, BTreeSet};

use http::header::{AGE, HeaderValue};
use weft_catalog::acl::{Access, Resource};
use weft_catalog::mesh::GatewayService;
use weft_catalog::{Answer, Instance};
use weft_proto::json::{Json, Object, input, records};
use weft_proto::v1::{self, stamped::Command};

use super::blocking::{Found, Pass, ReadForm, X_CACHE, read};
use super::call::Call;
use super::central;
use super::error::Failure;
use super::health::{Whose, version};
use super::reply::Reply;
use super::rows::Selection;
use crate::local::check_meta;

pub(super) async fn register(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let object = Object::root(&body)?;
    check_datacenter(&call, &object)?;
    let mut register = input::register(&object)?;
    let node = register.node.get_or_insert_default();
    if node.name.is_empty() || (node.address.is_empty() && !register.skip_node_update) {
        return Err(Failure::bad_request(
            "catalog.node.missing",
            "Must provide node and address",
        ));
    }
    let is_uuid = node.id.len() == 36 && uuid::Uuid::try_parse(&node.id).is_ok();
    if !node.id.is_empty() && !is_uuid {
        let text = format!("Bad node ID: {:?} is not a UUID", node.id);
        return Err(Failure::bad_request("catalog.node.id", text));
    }
    node.datacenter.clone_from(&call.api.deps.info.datacenter);
    call.guard
        .require(Resource::Node, node.name.as_bytes(), Access::Write)?;
    if let Some(service) = &register.service {
        if service.name.is_empty() {
            return Err(Failure::bad_request(
                "catalog.service.missing",
                "Must provide service name with ID",
            ));
        }
        check_meta(&service.meta)?;
        call.guard
            .require(Resource::Service, service.name.as_bytes(), Access::Write)?;
    }
    let name = &register.node.get_or_insert_default().name;
    if let Some(check) = register
        .checks
        .iter()
        .find(|check| !check.node.eq_ignore_ascii_case(name))
    {
        let text = format!("check node {:?} does not match node {name:?}", check.node);
        return Err(Failure::bad_request("catalog.check.node", text));
    }
    call.write(Command::Register(register)).await?;
    Ok(Reply::verdict(true))
}

pub(super) async fn deregister(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let object = Object::root(&body)?;
    check_datacenter(&call, &object)?;
    let deregister = input::deregister(&object)?;
    if deregister.node.is_empty() {
        return Err(Failure::bad_request(
            "catalog.node.missing",
            "Must provide node",
        ));
    }
    call.guard
        .require(Resource::Node, deregister.node.as_bytes(), Access::Write)?;
    call.write(Command::Deregister(deregister)).await?;
    Ok(Reply::verdict(true))
}

fn check_datacenter(call: &Call, object: &Object<'_>) -> Result<(), Failure> {
    let datacenter = object.text("Datacenter")?;
    if datacenter.is_empty() || datacenter.eq_ignore_ascii_case(&call.api.deps.info.datacenter) {
        return Ok(());
    }
    Err(Failure::internal("dc.unknown", "No path to datacenter"))
}

pub(super) async fn datacenters(call: Call) -> Result<Reply, Failure> {
    let datacenter = &call.api.deps.info.datacenter;
    let reply = Reply::written(|json| json.strings([datacenter]));
    // Never older than now: this agent knows it by itself.
    let cached = call.options()?.cached.filter(|_| call.api.config.use_cache);
    Ok(match cached {
        Some(_) => reply
            .with(X_CACHE, HeaderValue::from_static("HIT"))
            .with(AGE, HeaderValue::from(0)),
        None => reply,
    })
}

pub(super) async fn nodes(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<v1::Node>(&call)?;
    let content = call.content_name("");
    read(&call, ReadForm::DISCOVERY, |pass| {
        let answer = pass.reader.nodes();
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let body = call
            .api
            .cache
            .get(&content, version(&call, pass, index), || {
                let mut json = Json::with_capacity(answer.rows.len() * 384 + 2);
                let shown = answer.rows.iter().filter(|node| {
                    selection.node(node)
                        && selection.keeps(&****node)
                        && call.guard.shows(Resource::Node, node.name.as_bytes())
                });
                let shown = call.nearest_first(pass.state, shown, |node| &node.name);
                json.list(shown, |json, node| records::node(json, node));
                json.into_bytes()
            });
        Found::now(index, Reply::shared(body))
    })
    .await
}

pub(super) async fn services(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<Instance<'_>>(&call)?;
    read(&call, ReadForm::CACHED, |pass| {
        let answer = if selection.has_filter() {
            named_by_filter(pass, &selection)
        } else if selection.by_node() {
            pass.reader.services_on(|node| selection.node(node))
        } else {
            pass.reader.services()
        };
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut json = Json::with_capacity(answer.rows.len() * 48 + 2);
        json.object(|json| {
            for (name, tags) in &answer.rows {
                if call.guard.shows(Resource::Service, name.as_bytes()) {
                    json.dynamic_key(name).strings(tags);
                }
            }
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

type Names<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Names and tags of the instances that the filter keeps.
fn named_by_filter<'a>(pass: &Pass<'a>, selection: &Selection) -> Answer<Names<'a>> {
    let answer = pass.reader.all_instances();
    let mut names = Names::new();
    for row in answer
        .rows
        .iter()
        .filter(|row| selection.node(row.node) && selection.keeps(*row))
    {
        names
            .entry(&row.service.name)
            .or_default()
            .extend(row.service.tags.iter().map(String::as_str));
    }
    Answer {
        index: answer.index,
        rows: names,
    }
}

pub(super) async fn service(call: Call) -> Result<Reply, Failure> {
    instances(call, Whose::Own).await
}

pub(super) async fn connect(call: Call) -> Result<Reply, Failure> {
    instances(call, Whose::Mesh).await
}

async fn instances(call: Call, whose: Whose) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing service name")?;
    let selection = Selection::parse::<Instance<'_>>(&call)?;
    let merging = central::wanted(&call)?;
    let content = call.content_name(&name);
    read(&call, ReadForm::CACHED, |pass| {
        let mut index = whose.index(&pass.reader, &name);
        let central = merging.then(|| {
            let rows = whose.bare(&pass.reader, &name);
            central::read(pass, rows.iter().map(|row| &**row.service))
        });
        if let Some(central) = &central {
            index = index.max(central.index);
        }
        if !pass.wants(index) {
            return Found::later(index);
        }
        let body = call
            .api
            .cache
            .get(&content, version(&call, pass, index), || {
                let rows = whose.bare(&pass.reader, &name);
                let shown = rows.iter().filter(|row| {
                    selection.instance(row.node, row.service)
                        && selection.keeps(*row)
                        && call
                            .guard
                            .shows(Resource::Service, row.service.name.as_bytes())
                        && call.guard.shows(Resource::Node, row.node.name.as_bytes())
                });
                let shown = call.nearest_first(pass.state, shown, |row| &row.node.name);
                let mut json = Json::with_capacity(rows.len() * 768 + 2);
                json.list(shown, |json, row| {
                    let merged = central
                        .as_ref()
                        .and_then(|central| central.merged(row.service));
                    records::service_node(json, row.node, merged.as_ref().unwrap_or(row.service));
                });
                json.into_bytes()
            });
        Found::now(index, Reply::shared(body))
    })
    .await
}

pub(super) async fn gateway_services(call: Call) -> Result<Reply, Failure> {
    let gateway = call.required_tail("Missing gateway name")?;
    read(&call, ReadForm::DISCOVERY, |pass| {
        let answer = pass.reader.gateway_services(&gateway);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let shown = answer.rows.iter().filter(|link| {
            let guard = &call.guard;
            guard.shows(Resource::Service, link.gateway.as_bytes())
                && guard.shows(Resource::Service, link.service.as_bytes())
        });
        let mut json = Json::with_capacity(answer.rows.len() * 192 + 2);
        json.list(shown, write_link);
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

/// Members that say nothing are left out, as Consul does here.
fn write_link(json: &mut Json, link: &GatewayService<'_>) {
    json.object(|json| {
        json.key("Gateway")
            .object(|json| json.key("Name").string(link.gateway));
        json.key("Service")
            .object(|json| json.key("Name").string(&link.service));
        json.key("GatewayKind").string(link.kind.as_str());
        if link.port != 0 {
            json.key("Port").number(link.port.into());
        }
        if !link.protocol.is_empty() {
            json.key("Protocol").string(link.protocol);
        }
        if !link.hosts.is_empty() {
            json.key("Hosts").strings(link.hosts);
        }
        for (name, value) in ["CAFile", "CertFile", "KeyFile", "SNI"]
            .into_iter()
            .zip(link.tls)
            .filter(|(_, value)| !value.is_empty())
        {
            json.key(name).string(value);
        }
        if link.from_wildcard {
            json.key("FromWildcard").boolean(true);
        }
        json.key("CreateIndex").number(link.create_index);
        json.key("ModifyIndex").number(link.modify_index);
    });
}

/// How `/catalog/node` and `/catalog/node-services` differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Map,
    List,
}

pub(super) async fn node(call: Call) -> Result<Reply, Failure> {
    one_node(call, Shape::Map).await
}

pub(super) async fn node_services(call: Call) -> Result<Reply, Failure> {
    one_node(call, Shape::List).await
}

async fn one_node(call: Call, shape: Shape) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing node name")?;
    let selection = Selection::parse::<v1::Service>(&call)?.of_one_node();
    let merging = shape == Shape::List && central::wanted(&call)?;
    read(&call, ReadForm::DISCOVERY, |pass| {
        let answer = pass.reader.node(&name);
        let mut index = answer.index.get();
        let central = merging.then(|| {
            let rows = pass.reader.node_services(&name).rows;
            central::read(pass, rows.iter().map(|service| &***service))
        });
        if let Some(central) = &central {
            index = index.max(central.index);
        }
        if !pass.wants(index) {
            return Found::later(index);
        }
        let node = answer.rows.filter(|node| {
            selection.node(node) && call.guard.shows(Resource::Node, node.name.as_bytes())
        });
        let Some(node) = node else {
            let nothing: &[u8] = if shape == Shape::Map {
                b"null"
            } else {
                br#"{"Node":null,"Services":[]}"#
            };
            return Found::now(index, Reply::json(nothing));
        };
        let services = pass.reader.node_services(&name).rows;
        let shown = services.iter().filter(|service| {
            selection.keeps(&****service)
                && call.guard.shows(Resource::Service, service.name.as_bytes())
        });
        let mut json = Json::with_capacity(512 + services.len() * 768);
        json.object(|json| {
            records::node(json.key("Node"), node);
            match shape {
                Shape::List => json.key("Services").list(shown, |json, service| {
                    let merged = central.as_ref().and_then(|central| central.merged(service));
                    records::service(json, merged.as_ref().unwrap_or(service));
                }),
                Shape::Map => json.key("Services").object(|json| {
                    for service in shown {
                        records::service(json.dynamic_key(&service.id), service);
                    }
                }),
            }
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}
