//! `/v1/agent/service*` and `/v1/agent/health/service/*`.
//!
//! Owns: this host's services over HTTP, blocking by content hash.
//! Never: keeps a registration; [`crate::local::Local`] does.
//! Source: Consul HTTP API, "Service - Agent"; CONSUL.md A.1.

use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use weft_catalog::acl::{Access, Resource};
use weft_proto::json::{Json, records};
use weft_proto::v1;

use super::call::{Call, parse_bool};
use super::error::Failure;
use super::options;
use super::reply::Reply;
use super::rows::Selection;
use crate::local::{
    Aggregate, RegisterOptions, ServiceDefinition, ServiceHealth, Source, UnknownKeys,
};

const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
const REASON: HeaderName = HeaderName::from_static("x-consul-reason");
/// Without a charset, as Consul sends it here.
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");

pub(super) async fn register(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let definition = ServiceDefinition::parse(&body, UnknownKeys::Ignore)?;
    call.guard.require(
        Resource::Service,
        definition.service.name.as_bytes(),
        Access::Write,
    )?;
    let replace = call.query.get("replace-existing-checks");
    let options = RegisterOptions {
        replace_existing_checks: replace
            .is_some_and(|text| text.is_empty() || parse_bool(text) == Some(true)),
        source: Source::Api,
    };
    call.api
        .deps
        .local
        .register_service(definition, options)
        .await?;
    Ok(Reply::empty())
}

/// The right on a service is the right on its name; an unknown one has none.
fn require_write(call: &Call, id: &str) -> Result<(), Failure> {
    let known = call.api.deps.local.service(id);
    let name = known
        .map(|(local, _)| local.service.name.clone())
        .unwrap_or_default();
    call.guard
        .require(Resource::Service, name.as_bytes(), Access::Write)
}

pub(super) async fn deregister(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing service ID")?;
    require_write(&call, &id)?;
    call.api.deps.local.deregister_service(&id).await?;
    Ok(Reply::empty())
}

pub(super) async fn maintenance(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing service ID")?;
    let enable = call.enable()?;
    require_write(&call, &id)?;
    let local = &call.api.deps.local;
    if enable {
        local
            .enable_service_maintenance(&id, call.query.get("reason").unwrap_or_default())
            .await?;
    } else {
        local.disable_service_maintenance(&id).await?;
    }
    Ok(Reply::empty())
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<v1::Service>(&call)?;
    let services = call.api.deps.local.services();
    let datacenter = &call.api.deps.info.datacenter;
    let shown = services.iter().filter(|(_, local)| {
        selection.keeps(&local.service)
            && call
                .guard
                .shows(Resource::Service, local.service.name.as_bytes())
    });
    Ok(Reply::written(|json| {
        json.object(|json| {
            for (id, local) in shown {
                records::agent_service(json.dynamic_key(id), &local.service, datacenter, |_| {});
            }
        });
    }))
}

pub(super) async fn get(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing service ID")?;
    let known = call.query.get("hash").unwrap_or_default();
    let wait = options::wait(&call.query)?;
    let changes = call.api.deps.local.services_changed();
    if !known.is_empty() {
        let _slot = call.api.waiting.enter(&call.api.limits(), None)?;
        let same = || {
            call.api
                .deps
                .local
                .service(&id)
                .is_some_and(|(_, hash)| hash == known)
        };
        let changed = wait_while(changes, same);
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(call.api.wait_time(wait)) => {}
            () = call.api.stopping.cancelled() => {}
        }
    }
    let Some((local, hash)) = call.api.deps.local.service(&id) else {
        return Err(Failure::not_found(
            "local.service.unknown",
            format!("unknown service ID: {id}"),
        ));
    };
    call.guard.require(
        Resource::Service,
        local.service.name.as_bytes(),
        Access::Read,
    )?;
    let datacenter = &call.api.deps.info.datacenter;
    let reply = Reply::written(|json| {
        records::agent_service(json, &local.service, datacenter, |json| {
            json.key("ContentHash").string(&hash);
        });
    });
    Ok(reply.with(CONTENT_HASH, header(&hash)))
}

/// Looks again after each change, until it is another one than the client knows.
async fn wait_while(mut changes: tokio::sync::watch::Receiver<u64>, same: impl Fn() -> bool) {
    while same() {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

pub(super) async fn health_by_id(call: Call) -> Result<Reply, Failure> {
    let id = call.required_tail("Missing service ID")?;
    let Some(health) = call.api.deps.local.health_by_id(&id) else {
        let nobody = r#"{"AggregatedStatus":"critical","Service":null,"Checks":null}"#;
        return Ok(absent(&call, format!("ServiceId {id} not found"), nobody));
    };
    call.guard.require(
        Resource::Service,
        health.service.service.name.as_bytes(),
        Access::Read,
    )?;
    let mut json = Json::with_capacity(1_024);
    write_health(&mut json, &call, &health);
    Ok(present(&call, health.status, json))
}

pub(super) async fn health_by_name(call: Call) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing service Name")?;
    call.guard
        .require(Resource::Service, name.as_bytes(), Access::Read)?;
    let instances = call.api.deps.local.health_by_name(&name);
    let Some(worst) = instances.iter().map(|health| health.status).max() else {
        return Ok(absent(&call, format!("ServiceName {name} Not Found"), "[]"));
    };
    let mut json = Json::with_capacity(instances.len() * 1_024);
    json.list(&instances, |json, health| write_health(json, &call, health));
    Ok(present(&call, worst, json))
}

fn write_health(json: &mut Json, call: &Call, health: &ServiceHealth) {
    json.object(|json| {
        json.key("AggregatedStatus").string(health.status.as_str());
        let datacenter = &call.api.deps.info.datacenter;
        records::agent_service(
            json.key("Service"),
            &health.service.service,
            datacenter,
            |_| {},
        );
        json.key("Checks").list(&health.checks, records::check);
    });
}

fn wants_text(call: &Call) -> bool {
    let accept = call
        .head
        .headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok());
    call.query.get("format") == Some("text")
        || accept.is_some_and(|text| text.starts_with("text/plain"))
}

/// The status code is the health: load balancers look at nothing else.
fn present(call: &Call, status: Aggregate, json: Json) -> Reply {
    let code = match status {
        Aggregate::Passing => StatusCode::OK,
        Aggregate::Warning => StatusCode::TOO_MANY_REQUESTS,
        Aggregate::Critical | Aggregate::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
    };
    let word = status.as_str();
    let reply = if wants_text(call) {
        Reply::text(word).with(CONTENT_TYPE, PLAIN)
    } else {
        Reply::json(json.into_bytes())
    };
    reply
        .status(code)
        .with(REASON, HeaderValue::from_static(word))
}

fn absent(call: &Call, reason: String, json: &'static str) -> Reply {
    let value = header(&reason);
    let reply = if wants_text(call) {
        Reply::text(reason).with(CONTENT_TYPE, PLAIN)
    } else {
        Reply::json(json)
    };
    reply.status(StatusCode::NOT_FOUND).with(REASON, value)
}
