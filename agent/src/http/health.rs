//! `/v1/health/*`.
//!
//! Owns: the health reads.
//! Never: judges health; statuses come from the catalog.
//! Source: Consul HTTP API, "Health"; CONSUL.md A.3.

use std::sync::Arc;

use weft_catalog::acl::Resource;
use weft_catalog::{Answer, Instance, InstanceHealth, Reader};
use weft_proto::json::{Json, records};
use weft_proto::v1;

use super::blocking::{Found, Pass, ReadForm, read};
use super::cache::Version;
use super::call::{Call, parse_bool};
use super::central;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;

/// About what an instance with two checks takes.
const ROW_BYTES: usize = 1_536;

/// Whose instances are asked for, given a service's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The service's own.
    Own,
    /// Those through which the mesh reaches it.
    Mesh,
    /// Of the ingress gateways that let requests in for it.
    Ingress,
}

impl Whose {
    pub(super) fn rows<'a>(
        self,
        reader: &Reader<'a>,
        name: &str,
    ) -> Answer<Vec<InstanceHealth<'a>>> {
        match self {
            Self::Own => reader.health_service(name),
            Self::Mesh => reader.connect_instances(name),
            Self::Ingress => reader.ingress_instances(name),
        }
    }

    /// As [`Whose::rows`], without checks.
    pub(super) fn bare<'a>(self, reader: &Reader<'a>, name: &str) -> Vec<Instance<'a>> {
        match self {
            Self::Own => reader.service_instances(name).rows,
            other => {
                let rows = other.rows(reader, name).rows;
                rows.iter().map(InstanceHealth::instance).collect()
            }
        }
    }

    /// As that of [`Whose::rows`].
    pub(super) fn index(self, reader: &Reader<'_>, name: &str) -> u64 {
        match self {
            // Known without the rows.
            Self::Own => reader.service_index(name).get(),
            other => other.rows(reader, name).index.get(),
        }
    }
}

pub(super) async fn service(call: Call) -> Result<Reply, Failure> {
    instances(call, Whose::Own).await
}

pub(super) async fn connect(call: Call) -> Result<Reply, Failure> {
    instances(call, Whose::Mesh).await
}

pub(super) async fn ingress(call: Call) -> Result<Reply, Failure> {
    instances(call, Whose::Ingress).await
}

async fn instances(call: Call, whose: Whose) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing service name")?;
    let only_passing = match call.query.get("passing") {
        None => false,
        Some("") => true,
        Some(text) => parse_bool(text)
            .ok_or_else(|| Failure::bad_request("health.passing", "Invalid value for ?passing"))?,
    };
    let selection = Selection::parse::<InstanceHealth<'_>>(&call)?;
    let merging = central::wanted(&call)?;
    let content = call.content_name(&name);
    read(&call, ReadForm::CACHED, |pass| {
        let mut index = whose.index(&pass.reader, &name);
        let central = merging.then(|| {
            let rows = whose.rows(&pass.reader, &name).rows;
            central::read(pass, rows.iter().map(|row| &**row.service))
        });
        if let Some(central) = &central {
            index = index.max(central.index);
        }
        if !pass.wants(index) {
            return Found::later(index);
        }
        let version = version(&call, pass, index);
        let body = call.api.cache.get(&content, version, || {
            let rows = whose.rows(&pass.reader, &name).rows;
            let shown = rows.iter().filter(|row| {
                selection.instance(row.node, row.service)
                    && (!only_passing || is_passing(row))
                    && selection.keeps(*row)
                    && may_see(&call, row)
            });
            let shown = call.nearest_first(pass.state, shown, |row| &row.node.name);
            let mut json = Json::with_capacity(rows.len() * ROW_BYTES + 2);
            json.list(shown, |json, row| {
                let merged = central
                    .as_ref()
                    .and_then(|central| central.merged(row.service));
                write_row(json, row, merged.as_ref().unwrap_or(row.service));
            });
            json.into_bytes()
        });
        Found::now(index, Reply::shared(body))
    })
    .await
}

/// What a body at `index` is valid for.
pub(super) fn version(call: &Call, pass: &Pass<'_>, index: u64) -> Version {
    Version {
        index,
        restore_epoch: pass.state.restore_epoch(),
        coordinates: call.near().map_or(0, |_| pass.state.coordinates_index()),
    }
}

fn is_passing(row: &InstanceHealth<'_>) -> bool {
    row.checks.iter().all(|check| check.status == "passing")
}

fn may_see(call: &Call, row: &InstanceHealth<'_>) -> bool {
    call.guard
        .shows(Resource::Service, row.service.name.as_bytes())
        && call.guard.shows(Resource::Node, row.node.name.as_bytes())
}

fn write_row(json: &mut Json, row: &InstanceHealth<'_>, service: &v1::Service) {
    json.object(|json| {
        records::node(json.key("Node"), row.node);
        records::service(json.key("Service"), service);
        json.key("Checks")
            .list(&row.checks, |json, check| records::check(json, check));
    });
}

pub(super) async fn node(call: Call) -> Result<Reply, Failure> {
    let node = call.required_tail("Missing node name")?;
    let selection = Selection::parse::<v1::Check>(&call)?.of_one_node();
    checks(&call, ReadForm::DISCOVERY, selection, |pass| {
        pass.reader.checks_of_node(&node)
    })
    .await
}

pub(super) async fn checks_of_service(call: Call) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing service name")?;
    let selection = Selection::parse::<v1::Check>(&call)?;
    checks(&call, ReadForm::CACHED, selection, |pass| {
        pass.reader.checks_of_service(&name)
    })
    .await
}

pub(super) async fn state(call: Call) -> Result<Reply, Failure> {
    let status = call.required_tail("Missing check state")?;
    // The other scopes hold their nodes; the checks table does not.
    let selection = Selection::parse::<v1::Check>(&call)?;
    let by_node = selection.by_node();
    checks(&call, ReadForm::DISCOVERY, selection, |pass| {
        let mut answer = pass.reader.checks_in_state(&status);
        if by_node {
            answer.index = answer.index.max(pass.reader.nodes().index);
        }
        answer
    })
    .await
}

type Checks<'a> = Answer<Vec<&'a Arc<v1::Check>>>;

async fn checks(
    call: &Call,
    form: ReadForm,
    selection: Selection,
    rows: impl for<'a> Fn(&Pass<'a>) -> Checks<'a> + Send + Sync,
) -> Result<Reply, Failure> {
    read(call, form, |pass| {
        let answer = rows(pass);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut json = Json::with_capacity(answer.rows.len() * 384 + 2);
        let on_node = |check: &v1::Check| {
            !selection.by_node()
                || pass
                    .reader
                    .node(&check.node)
                    .rows
                    .is_some_and(|node| selection.node(node))
        };
        let shown = answer.rows.iter().filter(|check| {
            on_node(check) && selection.keeps(&****check) && may_see_check(call, check)
        });
        let shown = call.nearest_first(pass.state, shown, |check| &check.node);
        json.list(shown, |json, check| records::check(json, check));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

fn may_see_check(call: &Call, check: &v1::Check) -> bool {
    call.guard.shows(Resource::Node, check.node.as_bytes())
        && (check.service_name.is_empty()
            || call
                .guard
                .shows(Resource::Service, check.service_name.as_bytes()))
}
