//! `/v1/agent/check*`.
//!
//! Owns: this host's checks over HTTP, and the reports to TTL checks.
//! Never: runs a check.
//! Source: Consul HTTP API, "Check - Agent"; CONSUL.md A.1, B.6.

use weft_catalog::acl::{Access, Resource};
use weft_proto::json::{Object, records};
use weft_proto::v1;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;
use crate::local::{CheckDefinition, Source, Status, UnknownKeys};

/// The right on a check is the right on its service, or on this node.
fn require(call: &Call, service_id: &str) -> Result<(), Failure> {
    if service_id.is_empty() {
        return call.guard.require(
            Resource::Node,
            call.api.deps.info.node_name.as_bytes(),
            Access::Write,
        );
    }
    let known = call.api.deps.local.service(service_id);
    let name = known
        .map(|(local, _)| local.service.name.clone())
        .unwrap_or_default();
    call.guard
        .require(Resource::Service, name.as_bytes(), Access::Write)
}

fn require_on(call: &Call, id: &str) -> Result<(), Failure> {
    let service_id = call
        .api
        .deps
        .local
        .check(id)
        .map(|check| check.record.service_id)
        .unwrap_or_default();
    require(call, &service_id)
}

pub(super) async fn register(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let check = CheckDefinition::parse(&body, UnknownKeys::Ignore)?;
    require(&call, &check.service_id)?;
    call.api
        .deps
        .local
        .register_check(check, Source::Api)
        .await?;
    Ok(Reply::empty())
}

pub(super) async fn deregister(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing check ID")?;
    require_on(&call, &id)?;
    call.api.deps.local.deregister_check(&id).await?;
    Ok(Reply::empty())
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<v1::Check>(&call)?;
    let checks = call.api.deps.local.checks();
    let shown = checks.iter().filter(|(_, check)| {
        let record = &check.record;
        if !selection.keeps(record) {
            false
        } else if record.service_name.is_empty() {
            call.guard.shows(Resource::Node, record.node.as_bytes())
        } else {
            call.guard
                .shows(Resource::Service, record.service_name.as_bytes())
        }
    });
    Ok(Reply::written(|json| {
        json.object(|json| {
            for (id, check) in shown {
                records::check(json.dynamic_key(id), &check.record);
            }
        });
    }))
}

pub(super) async fn pass(call: Call) -> Result<Reply, Failure> {
    report(call, Status::Passing).await
}

pub(super) async fn warn(call: Call) -> Result<Reply, Failure> {
    report(call, Status::Warning).await
}

pub(super) async fn fail(call: Call) -> Result<Reply, Failure> {
    report(call, Status::Critical).await
}

async fn report(call: Call, status: Status) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing check ID")?;
    require_on(&call, &id)?;
    let note = call.query.get("note").unwrap_or_default();
    call.api.deps.local.update_ttl(&id, status, note).await?;
    Ok(Reply::empty())
}

pub(super) async fn update(mut call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing check ID")?;
    let body = call.json().await?;
    let object = Object::root(&body)?;
    let (word, output) = (object.text("Status")?, object.text("Output")?);
    let status = Status::parse(&word).ok_or_else(|| {
        Failure::bad_request(
            "local.check.status",
            format!("Invalid check status: '{word}'"),
        )
    })?;
    require_on(&call, &id)?;
    call.api.deps.local.update_ttl(&id, status, &output).await?;
    Ok(Reply::empty())
}
