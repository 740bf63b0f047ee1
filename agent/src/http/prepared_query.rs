//! `/v1/query`.
//!
//! Owns: prepared queries over HTTP: their JSON, execution, and whose rights each takes.
//! Never: judges a query or selects instances; the catalog does.
//! Source: Consul HTTP API, "Prepared queries"; CONSUL.md A.7.

use http::HeaderValue;
use rand::seq::SliceRandom;
use weft_catalog::acl::{Access, Resource};
use weft_catalog::prepared_query::{self, REDACTED, RENAMED, render, select};
use weft_catalog::{InstanceHealth, Reader, State, Trace};
use weft_proto::json::{Json, Object, records};
use weft_proto::v1::{self, PreparedQuery, PreparedQueryVerb as Verb, stamped::Command};
use weft_proto::{duration, ids};

use super::blocking::{Found, ReadForm, read};
use super::call::{Call, parse_bool};
use super::error::{Failure, WEFT_REASON};
use super::reply::Reply;
use crate::backend::Consistency;
use crate::near::nearest_first;

/// Length of an id, a UUID as text.
const ID_BYTES: usize = 36;
/// How often a change is judged anew because others rename the query; then it fails.
const RENAMES_MAX: usize = 4;

pub(super) async fn create(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let mut query = parse(&Object::root(&body)?)?;
    if !query.id.is_empty() {
        let text = "ID must be empty when creating a new prepared query";
        return Err(Failure::internal("query.id.given", text));
    }
    query.id = ids::mint();
    let id = query.id.clone();
    may_write(&call, &query.name)?;
    valid(&query)?;
    write(&call, Verb::Create, query, None).await?;
    Ok(Reply::written(|json| {
        json.object(|json| json.key("ID").string(&id))
    }))
}

pub(super) async fn update(mut call: Call) -> Result<Reply, Failure> {
    let id = id(&call)?;
    let body = call.json().await?;
    let query = PreparedQuery {
        id,
        ..parse(&Object::root(&body)?)?
    };
    may_write(&call, &query.name)?;
    valid(&query)?;
    change(&call, Verb::Update, query).await
}

pub(super) async fn delete(call: Call) -> Result<Reply, Failure> {
    let query = PreparedQuery {
        id: id(&call)?,
        ..PreparedQuery::default()
    };
    change(&call, Verb::Delete, query).await
}

fn may_write(call: &Call, name: &str) -> Result<(), Failure> {
    call.guard
        .require(Resource::Query, name.as_bytes(), Access::Write)
}

/// Changes a query if the one that is there may be changed. What it is called is read behind a barrier,
/// and goes along: should it be renamed meanwhile, the rights are judged anew.
async fn change(call: &Call, verb: Verb, query: PreparedQuery) -> Result<Reply, Failure> {
    let mut tries = RENAMES_MAX;
    loop {
        call.api.deps.backend.barrier(Consistency::Default).await?;
        let judged = present_name(call, &query.id);
        may_write(call, &judged)?;
        let written = write(call, verb, query.clone(), Some(judged)).await;
        match written {
            Err(failure) if failure.reason == RENAMED && tries > 0 => tries -= 1,
            written => return written.map(|()| Reply::empty()),
        }
    }
}

/// What a query is called now; nothing when there is none: then only who may write all queries goes on.
fn present_name(call: &Call, id: &str) -> String {
    let state = call.api.deps.backend.state();
    let trace = Trace::off();
    let row = state.read(&trace).prepared_query(id).rows;
    row.map(|query| query.name.clone()).unwrap_or_default()
}

fn valid(query: &PreparedQuery) -> Result<(), Failure> {
    prepared_query::check(query).map_err(|error| Failure::internal(error.reason, error.text))?;
    if !query.session.is_empty() && query.session.len() != ID_BYTES {
        let text = "invalid session: index error: UUID must be 36 characters";
        return Err(Failure::internal("query.session", text));
    }
    Ok(())
}

async fn write(
    call: &Call,
    verb: Verb,
    query: PreparedQuery,
    judged_name: Option<String>,
) -> Result<(), Failure> {
    let command = Command::PreparedQuery(v1::PreparedQueryCommand {
        verb: verb.into(),
        query: Some(query),
        judged_name,
    });
    call.write(command).await.map(drop)
}

fn id(call: &Call) -> Result<String, Failure> {
    let id = call.tail()?;
    if id.len() == ID_BYTES {
        return Ok(id);
    }
    let text = "failed prepared query lookup: index error: UUID must be 36 characters";
    Err(Failure::internal("query.id", text))
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let secrets = may_see_tokens(&call);
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.prepared_queries();
        let shown = answer.rows.into_iter().filter(|query| shows(&call, query));
        let mut json = Json::default();
        json.list(shown, |json, query| write_query(json, query, secrets));
        Found::now(answer.index.get(), Reply::json(json.into_bytes()))
    })
    .await
}

/// `/v1/query/<id>`, `/v1/query/<id or name>/execute` and `/explain`.
pub(super) async fn get(call: Call) -> Result<Reply, Failure> {
    let tail = call.tail()?;
    match tail.rsplit_once('/') {
        Some((name, "execute")) => execute(&call, name).await,
        Some((name, "explain")) => explain(&call, name).await,
        _ => one(&call).await,
    }
}

async fn one(call: &Call) -> Result<Reply, Failure> {
    let id = id(call)?;
    let secrets = may_see_tokens(call);
    found(call, |reader, _| {
        let query = reader.prepared_query(&id).rows;
        let query = query.filter(|query| shows(call, query))?;
        let mut json = Json::default();
        json.array(|json| write_query(json, query, secrets));
        Some(Ok(Reply::json(json.into_bytes())))
    })
    .await
}

async fn explain(call: &Call, name: &str) -> Result<Reply, Failure> {
    let secrets = may_see_tokens(call);
    found(call, |reader, _| {
        let query = reader.prepared_query_called(name);
        let query = query.filter(|query| shows(call, query))?;
        Some(rendered(call, query, name).map(|query| {
            Reply::written(|json| {
                json.object(|json| write_query(json.key("Query"), &query, secrets))
            })
        }))
    })
    .await
}

async fn execute(call: &Call, name: &str) -> Result<Reply, Failure> {
    let limit = limit(call)?;
    let mesh = mesh_only(call)?;
    found(call, |reader, state| {
        let query = reader.prepared_query_called(name)?;
        Some(rendered(call, query, name).map(|mut query| {
            query.connect |= mesh;
            let mut rows = select(reader, &query);
            rows.retain(|row| may_see(call, row));
            order(call, &query, state, &mut rows);
            rows.truncate(limit);
            executed(call, &query, &rows)
        }))
    })
    .await
}

/// One look that answers a reply, a failure, or that there is no such query.
async fn found(
    call: &Call,
    look: impl for<'a> Fn(&Reader<'a>, &State) -> Option<Result<Reply, Failure>> + Send + Sync,
) -> Result<Reply, Failure> {
    // The look cannot fail inside a read: what went wrong is carried out beside it.
    let failure = parking_lot::Mutex::new(None);
    let reply = read(call, ReadForm::PLAIN, |pass| {
        let unknown = || Err(Failure::not_found("query.unknown", "Query not found"));
        let reply = look(&pass.reader, pass.state).unwrap_or_else(unknown);
        let reply = reply.unwrap_or_else(|error| {
            *failure.lock() = Some(error);
            Reply::empty()
        });
        Found::now(pass.state.index().get(), reply)
    })
    .await?;
    failure.into_inner().map_or(Ok(reply), Err)
}

fn rendered(call: &Call, query: &PreparedQuery, name: &str) -> Result<PreparedQuery, Failure> {
    render(query, name, &call.api.expressions)
        .map_err(|error| Failure::internal(error.reason, error.text))
}

/// Whether `connect` asks for instances of the mesh only; the name alone does too.
fn mesh_only(call: &Call) -> Result<bool, Failure> {
    match call.query.get("connect") {
        None => Ok(false),
        Some("") => Ok(true),
        Some(text) => parse_bool(text).ok_or_else(|| {
            let text = format!(
                "Error parsing 'connect' value: strconv.ParseBool: parsing {text:?}: invalid syntax"
            );
            Failure::internal("query.connect", text)
        }),
    }
}

fn limit(call: &Call) -> Result<usize, Failure> {
    let Some(text) = call.query.get("limit").filter(|text| !text.is_empty()) else {
        return Ok(usize::MAX);
    };
    match text.parse::<i64>() {
        // As in Consul, nothing and less mean no limit.
        Ok(limit) => Ok(usize::try_from(limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX)),
        Err(_) => {
            let text = format!("Bad limit: strconv.Atoi: parsing {text:?}: invalid syntax");
            Err(Failure::internal("query.limit", text))
        }
    }
}

/// Any order, unless the nearest are to come first.
fn order(call: &Call, query: &PreparedQuery, state: &State, rows: &mut [InstanceHealth<'_>]) {
    let asked = call.query.get("near").filter(|near| !near.is_empty());
    let near = asked.unwrap_or(&query.near);
    let here = call.here();
    let dice = &mut *call.api.rng.lock();
    if !nearest_first(rows, near, here, call.source(), state, dice) {
        rows.shuffle(dice);
    }
}

fn executed(call: &Call, query: &PreparedQuery, rows: &[InstanceHealth<'_>]) -> Reply {
    let reply = Reply::written(|json| {
        json.object(|json| {
            json.key("Service").string(&query.service);
            json.key("Nodes").list(rows, |json, row| {
                json.object(|json| {
                    records::node(json.key("Node"), row.node);
                    records::service(json.key("Service"), row.service);
                    json.key("Checks")
                        .list(&row.checks, |json, check| records::check(json, check));
                });
            });
            json.key("DNS")
                .object(|json| json.key("TTL").string(&query.dns_ttl));
            json.key("Datacenter")
                .string(&call.api.deps.info.datacenter);
            json.key("Failovers").number(0);
            json.key("PeerName").string("");
        });
    });
    match empty_because(query).filter(|_| rows.is_empty()) {
        Some(reason) => reply.with(WEFT_REASON, HeaderValue::from_static(reason)),
        None => reply,
    }
}

/// What a user may have hoped for and this version does not have.
fn empty_because(query: &PreparedQuery) -> Option<&'static str> {
    let failover = query.failover.as_ref()?;
    let elsewhere =
        failover.nearest_n > 0 || !failover.datacenters.is_empty() || !failover.targets.is_empty();
    elsewhere.then_some("query.one_datacenter")
}

fn shows(call: &Call, query: &PreparedQuery) -> bool {
    call.guard.shows(Resource::Query, query.name.as_bytes())
}

fn may_see(call: &Call, row: &InstanceHealth<'_>) -> bool {
    call.guard
        .shows(Resource::Service, row.service.name.as_bytes())
        && call.guard.shows(Resource::Node, row.node.name.as_bytes())
}

fn may_see_tokens(call: &Call) -> bool {
    call.guard
        .require(Resource::Acl, b"", Access::Write)
        .is_ok()
}

fn write_query(json: &mut Json, query: &PreparedQuery, secrets: bool) {
    let template = query.template.clone().unwrap_or_default();
    json.object(|json| {
        json.key("ID").string(&query.id);
        json.key("Name").string(&query.name);
        json.key("Session").string(&query.session);
        let hidden = !secrets && !query.token.is_empty();
        json.key("Token")
            .string(if hidden { REDACTED } else { &query.token });
        json.key("Template").object(|json| {
            json.key("Type").string(&template.r#type);
            json.key("Regexp").string(&template.regexp);
            json.key("RemoveEmptyTags")
                .boolean(template.remove_empty_tags);
        });
        json.key("Service")
            .object(|json| write_service(json, query));
        json.key("DNS")
            .object(|json| json.key("TTL").string(&query.dns_ttl));
        json.key("CreateIndex").number(query.create_index);
        json.key("ModifyIndex").number(query.modify_index);
    });
}

fn write_service(json: &mut Json, query: &PreparedQuery) {
    let failover = query.failover.clone().unwrap_or_default();
    json.key("Service").string(&query.service);
    json.key("Failover").object(|json| {
        json.key("NearestN").number(failover.nearest_n);
        texts(json.key("Datacenters"), &failover.datacenters);
        if !failover.targets.is_empty() {
            json.key("Targets").list(&failover.targets, |json, target| {
                json.object(|json| {
                    json.key("Peer").string(&target.peer);
                    json.key("Datacenter").string(&target.datacenter);
                });
            });
        }
    });
    json.key("OnlyPassing").boolean(query.only_passing);
    texts(json.key("IgnoreCheckIDs"), &query.ignore_check_ids);
    json.key("Near").string(&query.near);
    texts(json.key("Tags"), &query.tags);
    for (key, map) in [
        ("NodeMeta", &query.node_meta),
        ("ServiceMeta", &query.service_meta),
    ] {
        match map.is_empty() {
            true => json.key(key).null(),
            false => json.key(key).string_map(map),
        }
    }
    json.key("Connect").boolean(query.connect);
}

/// As Go writes a list that was never made.
fn texts(json: &mut Json, texts: &[String]) {
    match texts.is_empty() {
        true => json.null(),
        false => json.strings(texts),
    }
}

fn parse(body: &Object<'_>) -> Result<PreparedQuery, Failure> {
    known(
        body,
        &[
            "ID",
            "Name",
            "Session",
            "Token",
            "Template",
            "Service",
            "DNS",
            "CreateIndex",
            "ModifyIndex",
        ],
    )?;
    let nothing = serde_json::Value::Null;
    let inside = |name: &str| match body.object(name)? {
        Some(object) => Ok(object),
        None => Object::at(&nothing, name.to_owned()),
    };
    let (service, template, dns) = (inside("Service")?, inside("Template")?, inside("DNS")?);
    known(&template, &["Type", "Regexp", "RemoveEmptyTags"])?;
    known(&dns, &["TTL"])?;
    known(
        &service,
        &[
            "Service",
            "SamenessGroup",
            "Failover",
            "OnlyPassing",
            "IgnoreCheckIDs",
            "Near",
            "Tags",
            "NodeMeta",
            "ServiceMeta",
            "Connect",
            "Peer",
            "Namespace",
            "Partition",
        ],
    )?;
    let template = v1::QueryTemplate {
        r#type: template.text("Type")?,
        regexp: template.text("Regexp")?,
        remove_empty_tags: template.flag("RemoveEmptyTags")?,
    };
    Ok(PreparedQuery {
        id: body.text("ID")?,
        name: body.text("Name")?,
        session: body.text("Session")?,
        token: body.text("Token")?,
        template: (template != v1::QueryTemplate::default()).then_some(template),
        service: service.text("Service")?,
        failover: service
            .object("Failover")?
            .map(|at| failover(&at))
            .transpose()?,
        only_passing: service.flag("OnlyPassing")?,
        ignore_check_ids: service.texts("IgnoreCheckIDs")?,
        near: service.text("Near")?,
        tags: service.texts("Tags")?,
        node_meta: service.text_map("NodeMeta")?,
        service_meta: service.text_map("ServiceMeta")?,
        connect: service.flag("Connect")?,
        dns_ttl: ttl(&dns.text("TTL")?)?,
        create_index: 0,
        modify_index: 0,
    })
}

fn failover(object: &Object<'_>) -> Result<v1::QueryFailover, Failure> {
    known(object, &["NearestN", "Datacenters", "Targets"])?;
    let nearest = object.signed("NearestN")?;
    let nearest_n = u64::try_from(nearest).map_err(|_| {
        let text = format!("Invalid prepared query: Bad NearestN '{nearest}', must be >= 0");
        Failure::internal("query.failover", text)
    })?;
    let target = |target: &Object<'_>| {
        Ok::<_, Failure>(v1::QueryTarget {
            peer: target.text("Peer")?,
            datacenter: target.text("Datacenter")?,
        })
    };
    Ok(v1::QueryFailover {
        nearest_n,
        datacenters: object.texts("Datacenters")?,
        targets: object
            .objects("Targets")?
            .iter()
            .map(target)
            .collect::<Result<_, _>>()?,
    })
}

fn ttl(text: &str) -> Result<String, Failure> {
    let refuse = |why: String| {
        let text = format!("Invalid prepared query: {why}");
        Err(Failure::internal("query.dns_ttl", text))
    };
    match duration::parse_nanos(text) {
        _ if text.is_empty() => Ok(String::new()),
        Ok(0..) => Ok(text.to_owned()),
        Ok(negative) => refuse(format!("DNS TTL '{negative}', must be >=0")),
        Err(_) => refuse(format!(
            "Bad DNS TTL '{text}': time: invalid duration {text:?}"
        )),
    }
}

/// Refuses members that nobody reads: a typing error must not pass for a rule.
fn known(object: &Object<'_>, names: &[&str]) -> Result<(), Failure> {
    let unknown = object
        .map()
        .keys()
        .find(|key| !names.iter().any(|name| name.eq_ignore_ascii_case(key)));
    match unknown {
        None => Ok(()),
        Some(key) => {
            let text = format!("Request decode failed: json: unknown field {key:?}");
            Err(Failure::bad_request("http.body.decode", text))
        }
    }
}
