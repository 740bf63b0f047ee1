//! `/v1/connect/intentions*` and `/v1/agent/connect/authorize`: who may call whom.
//!
//! Owns: Consul's shapes of intentions, and how each change of one becomes a change of its destination's
//! `service-intentions` entry.
//! Never: decides ([`weft_catalog::intention`] does), or keeps intentions anywhere else than in those entries.
//! Source: Consul HTTP API, "Intentions - Connect"; CONSUL.md A.8, E.3.

use http::StatusCode;
use serde_json::{Map, Value, json};
use weft_catalog::acl::{Access, Resource};
use weft_catalog::config_entry::{Entry, Kind};
use weft_catalog::filter::{self, Selectable};
use weft_catalog::intention::{ANY_SERVICE, Caller, Decision, DefaultPolicy, intentions};
use weft_catalog::view::ViewTopic;
use weft_catalog::{Reader, Trace};
use weft_identity::ca::SpiffeId;
use weft_proto::clock::rfc3339;
use weft_proto::ids;
use weft_proto::json::Json;
use weft_proto::v1::{self, ConfigEntryVerb, stamped::Command};

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::{Failure, WEFT_REASON};
use super::reply::Reply;
use super::rows::Selection;
use crate::backend::Consistency;

/// Tries of a change that others overtake.
const TRIES_MAX: u32 = 8;
const UUID_CHARS: usize = 36;

/// One source of an entry, as an intention.
struct Row<'a> {
    entry: &'a Entry,
    at: usize,
}

impl Row<'_> {
    fn source(&self) -> &weft_catalog::config_entry::intentions::Source {
        let sources = intentions(self.entry).map(|body| body.sources.as_slice());
        &sources.unwrap_or_default()[self.at]
    }

    fn key(&self) -> (std::cmp::Reverse<u32>, String, String) {
        let source = self.source();
        (
            std::cmp::Reverse(source.precedence),
            self.entry.name.clone(),
            source.name.clone(),
        )
    }

    /// The intention as Consul shows it.
    fn value(&self) -> Value {
        let source = self.source();
        let mut shown = Map::new();
        let mut put = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
        if !source.legacy_id.is_empty() {
            put("ID", json!(source.legacy_id));
        }
        put("Description", json!(source.description));
        put("SourceNS", json!("default"));
        put("SourceName", json!(source.name));
        if !source.peer.is_empty() {
            put("SourcePeer", json!(source.peer));
        }
        put("DestinationNS", json!("default"));
        put("DestinationName", json!(self.entry.name));
        put("SourceType", json!(source.kind));
        if source.permissions.is_empty() {
            put("Action", json!(source.action));
        } else {
            let whole: Value = serde_json::from_str(self.entry.json()).unwrap_or_default();
            put(
                "Permissions",
                whole["Sources"][self.at]["Permissions"].clone(),
            );
        }
        put("Meta", json!(source.legacy_meta));
        put("Precedence", json!(source.precedence));
        for (name, text) in [
            ("CreatedAt", &source.legacy_create_time),
            ("UpdatedAt", &source.legacy_update_time),
        ] {
            if !text.is_empty() {
                put(name, json!(text));
            }
        }
        put("CreateIndex", json!(self.entry.create_index));
        put("ModifyIndex", json!(self.entry.modify_index));
        Value::Object(shown)
    }
}

impl Selectable for Row<'_> {
    fn kind(selector: &[&str]) -> Option<filter::Kind> {
        match selector {
            [
                "ID" | "Description" | "SourceNS" | "SourceName" | "SourcePeer" | "DestinationNS"
                | "DestinationName" | "SourceType" | "Action",
            ]
            | ["Meta", _] => Some(filter::Kind::Text),
            ["Meta"] => Some(filter::Kind::Map),
            ["Precedence" | "CreateIndex" | "ModifyIndex"] => Some(filter::Kind::Number),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: &mut dyn FnMut(filter::Value<'_>) -> bool) -> bool {
        use filter::Value as Is;
        let source = self.source();
        let number = |index: u64| Is::Number(i64::try_from(index).unwrap_or(i64::MAX));
        match selector {
            ["ID"] => test(Is::Text(&source.legacy_id)),
            ["Description"] => test(Is::Text(&source.description)),
            ["SourceNS" | "DestinationNS"] => test(Is::Text("default")),
            ["SourceName"] => test(Is::Text(&source.name)),
            ["SourcePeer"] => test(Is::Text(&source.peer)),
            ["DestinationName"] => test(Is::Text(&self.entry.name)),
            ["SourceType"] => test(Is::Text(&source.kind)),
            ["Action"] => test(Is::Text(&source.action)),
            ["Precedence"] => test(number(u64::from(source.precedence))),
            ["CreateIndex"] => test(number(self.entry.create_index)),
            ["ModifyIndex"] => test(number(self.entry.modify_index)),
            ["Meta"] => test(Is::Map(&source.legacy_meta)),
            ["Meta", key] => {
                let value = source.legacy_meta.get(*key);
                test(value.map_or(Is::Missing, |text| Is::Text(text)))
            }
            _ => false,
        }
    }
}

fn rows<'a>(entries: impl IntoIterator<Item = &'a std::sync::Arc<Entry>>) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = entries
        .into_iter()
        .flat_map(|entry| {
            let sources = intentions(entry).map_or(0, |body| body.sources.len());
            (0..sources).map(move |at| Row { entry, at })
        })
        .collect();
    rows.sort_by_cached_key(Row::key);
    rows
}

fn write_rows<'r>(json: &mut Json, rows: impl IntoIterator<Item = &'r Row<'r>>) {
    json.list(rows, |json, row| json.value(&row.value()));
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<Row<'_>>(&call)?;
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.config_entries(Kind::ServiceIntentions);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let rows = rows(answer.rows);
        let shown = rows
            .iter()
            .filter(|row| selection.keeps(*row) && sees(&call, row));
        Found::now(index, Reply::written(|json| write_rows(json, shown)))
    })
    .await
}

/// Whoever may see one of the two services' intentions sees it.
fn sees(call: &Call, row: &Row<'_>) -> bool {
    let names = [&row.entry.name, &row.source().name];
    names
        .iter()
        .any(|name| call.guard.shows(Resource::Intention, name.as_bytes()))
}

/// `source` or `destination`, as `name`, `ns/name` or `partition/ns/name`; only the default ones exist.
fn service_name(call: &Call, parameter: &'static str) -> Result<String, Failure> {
    let text = call.query.get(parameter).unwrap_or_default();
    if text.is_empty() {
        let text = format!("required query parameter '{parameter}' not set");
        return Err(Failure::bad_request("intention.parameter", text));
    }
    named(parameter, text)
}

fn named(parameter: &str, text: &str) -> Result<String, Failure> {
    let parts: Vec<&str> = text.split('/').collect();
    let (scope, name) = match parts[..] {
        [name] => (&[][..], name),
        [.., name] if parts.len() <= 3 => (&parts[..parts.len() - 1], name),
        _ => (&["/"][..], ""),
    };
    if name.is_empty() || scope.iter().any(|part| *part != "default") {
        let text = format!("{parameter}: {text:?} is not a service of the default namespace");
        return Err(Failure::bad_request("scope.unsupported", text));
    }
    Ok(name.to_owned())
}

pub(super) async fn get_exact(call: Call) -> Result<Reply, Failure> {
    let (source, destination) = (
        service_name(&call, "source")?,
        service_name(&call, "destination")?,
    );
    let same = |row: &Row<'_>| {
        row.source().name.eq_ignore_ascii_case(&source) && row.source().peer.is_empty()
    };
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass
            .reader
            .config_entry(Kind::ServiceIntentions, &destination);
        let found = rows(answer.rows)
            .into_iter()
            .find(|row| same(row) && sees(&call, row));
        Found::coarse(answer.index.get(), shown(found))
    })
    .await
}

pub(super) async fn get(call: Call) -> Result<Reply, Failure> {
    let id = call.tail()?;
    if id.len() != UUID_CHARS {
        let text = "Bad request: failed intention lookup: index error: UUID must be 36 characters";
        return Err(Failure::bad_request("intention.id", text));
    }
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.config_entries(Kind::ServiceIntentions);
        let found = rows(answer.rows)
            .into_iter()
            .find(|row| row.source().legacy_id == id && sees(&call, row));
        Found::coarse(answer.index.get(), shown(found))
    })
    .await
}

fn shown(found: Option<Row<'_>>) -> Reply {
    match found {
        Some(row) => Reply::written(|json| json.value(&row.value())),
        None => Reply::text("Intention not found").status(StatusCode::NOT_FOUND),
    }
}

pub(super) async fn matching(call: Call) -> Result<Reply, Failure> {
    let by = call.query.get("by").unwrap_or_default().to_owned();
    if by.is_empty() {
        return Err(Failure::internal(
            "intention.parameter",
            "required query parameter 'by' not set",
        ));
    }
    if !matches!(by.as_str(), "source" | "destination") {
        let text = "'by' parameter must be one of 'source' or 'destination'";
        return Err(Failure::internal("intention.parameter", text));
    }
    let names: Vec<String> = call.query.all("name").map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Failure::internal(
            "intention.parameter",
            "required query parameter 'name' not set",
        ));
    }
    let services: Vec<String> = names
        .iter()
        .map(|name| named("name", name))
        .collect::<Result<_, _>>()?;
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.config_entries(Kind::ServiceIntentions);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let rows = rows(answer.rows);
        let reply = Reply::written(|json| {
            json.object(|json| {
                for (name, service) in names.iter().zip(&services) {
                    let speaks = |row: &&Row<'_>| {
                        let side = if by == "source" {
                            &row.source().name
                        } else {
                            &row.entry.name
                        };
                        (side == ANY_SERVICE || side.eq_ignore_ascii_case(service))
                            && sees(&call, row)
                    };
                    write_rows(json.dynamic_key(name), rows.iter().filter(speaks));
                }
            });
        });
        Found::now(index, reply)
    })
    .await
}

/// What holds where no intention speaks.
fn default_policy(call: &Call) -> DefaultPolicy {
    call.api.config.default_intention_policy
}

pub(super) async fn check(call: Call) -> Result<Reply, Failure> {
    let (source, destination) = (required(&call, "source")?, required(&call, "destination")?);
    let kind = call.query.get("source-type").unwrap_or_default();
    if !matches!(kind, "" | "consul") {
        return Err(Failure::bad_request(
            "intention.source_type",
            format!("source-type {kind:?} is not \"consul\""),
        ));
    }
    call.guard
        .require(Resource::Intention, destination.as_bytes(), Access::Read)?;
    let default = default_policy(&call);
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass
            .reader
            .intention_decision(Caller::local(&source), &destination, default);
        let decision = answer.rows;
        let reply = Reply::written(|json| {
            json.object(|json| json.key("Allowed").boolean(decision.allowed));
        });
        Found::coarse(
            answer.index.get(),
            reply.with(WEFT_REASON, reason_header(&decision)),
        )
    })
    .await
}

/// As [`service_name`]; what is missing answers 500 here, as in Consul.
fn required(call: &Call, parameter: &'static str) -> Result<String, Failure> {
    service_name(call, parameter).map_err(|why| match why.reason.as_ref() {
        "intention.parameter" => Failure::internal("intention.parameter", why.text),
        _ => why,
    })
}

fn reason_header(decision: &Decision) -> http::HeaderValue {
    http::HeaderValue::from_static(decision.reason)
}

pub(super) async fn authorize(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let text = |name: &str| -> String {
        let members = body.as_object();
        let value = members.and_then(|members| {
            members
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
        });
        value
            .and_then(|(_, value)| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let bad = |text: &'static str| Failure::bad_request("intention.authorize", text);
    let target = text("Target");
    if target.is_empty() {
        return Err(bad("Bad request: Target service must be specified"));
    }
    let id = SpiffeId::parse(&text("ClientCertURI"));
    let id = id.map_err(|_| bad("Bad request: ClientCertURI not a valid Connect identifier"))?;
    let caller = id.service_name();
    let caller =
        caller.ok_or_else(|| bad("Bad request: ClientCertURI not a valid Service identifier"))?;
    call.guard
        .require(Resource::Service, target.as_bytes(), Access::Write)?;
    let known = seen(&mut call, ViewTopic::MeshCa, |reader| {
        reader.mesh_ca().rows.map(|row| row.trust_domain.clone())
    });
    let trust_domain = known.await?.unwrap_or_default();
    if id.trust_domain().as_str() != trust_domain {
        let why = "Identity from an external trust domain";
        return Ok(authorized(false, why, "identity.trust_domain.foreign"));
    }
    let default = default_policy(&call);
    let topic = ViewTopic::config_kind(Kind::ServiceIntentions);
    let decision = seen(&mut call, topic, |reader| {
        reader
            .intention_decision(Caller::local(caller), &target, default)
            .rows
    });
    let decision = decision.await?;
    let why = match &decision.matched {
        Some(matched) => {
            let word = match decision.reason {
                "intention.allow" => "ALLOW",
                "intention.l7" | "intention.jwt" => "PERMISSIONS",
                _ => "DENY",
            };
            format!(
                "Matched intention: {word} default/{} => default/{} (Precedence: {})",
                matched.source, matched.destination, matched.precedence
            )
        }
        None => match default {
            DefaultPolicy::Allow => "ACLs disabled, access is allowed by default".to_owned(),
            DefaultPolicy::Deny => "Default intention policy".to_owned(),
        },
    };
    Ok(authorized(decision.allowed, &why, decision.reason))
}

fn authorized(allowed: bool, why: &str, reason: &'static str) -> Reply {
    let reply = Reply::written(|json| {
        json.object(|json| {
            json.key("Authorized").boolean(allowed);
            json.key("Reason").string(why);
        });
    });
    reply.with(WEFT_REASON, http::HeaderValue::from_static(reason))
}

/// Looks at what this agent knows: its view, which a server does not need.
async fn seen<T>(
    call: &mut Call,
    topic: ViewTopic,
    look: impl FnOnce(Reader<'_>) -> T,
) -> Result<T, Failure> {
    let trace = Trace::off();
    let state = match call.api.local_view(topic).await? {
        Some(view) => view.state(),
        None => {
            call.api.deps.backend.barrier(Consistency::Stale).await?;
            call.api.deps.backend.state()
        }
    };
    Ok(look(state.read(&trace)))
}

// ---- changes ------------------------------------------------------------------------------

/// What is to become of the sources of a destination.
enum Change {
    Put(Map<String, Value>),
    Remove { source: String },
}

pub(super) async fn put_exact(mut call: Call) -> Result<Reply, Failure> {
    let (source, destination) = (
        service_name(&call, "source")?,
        service_name(&call, "destination")?,
    );
    let body = call.json().await?;
    let mut wanted = read_source(&body)?;
    for (given, name) in [("SourceName", &source), ("DestinationName", &destination)] {
        let written = field(&body, given)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !written.is_empty() && !written.eq_ignore_ascii_case(name) {
            let text = format!("{given} must be the same as in the URL, or left out");
            return Err(Failure::bad_request("intention.exact", text));
        }
    }
    wanted.insert("Name".to_owned(), json!(source));
    write(&call, &destination, Change::Put(wanted)).await?;
    Ok(Reply::verdict(true))
}

pub(super) async fn delete_exact(call: Call) -> Result<Reply, Failure> {
    let (source, destination) = (
        service_name(&call, "source")?,
        service_name(&call, "destination")?,
    );
    write(&call, &destination, Change::Remove { source }).await?;
    Ok(Reply::verdict(true))
}

pub(super) async fn create(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let (mut wanted, destination) = legacy(&body)?;
    let name = wanted["Name"].as_str().unwrap_or_default().to_owned();
    if let Some(known) = find(&call, |row| same_pair(row, &name, &destination)).await? {
        let text = format!(
            "duplicate intention found: {} default/{} => default/{} (ID: {}, Precedence: {})",
            known.action.to_uppercase(),
            known.source,
            known.destination,
            known.id,
            known.precedence
        );
        return Err(Failure::internal("intention.duplicate", text));
    }
    let (id, now) = (ids::mint(), rfc3339(call.api.deps.clock.wall()));
    wanted.insert("LegacyID".to_owned(), json!(id));
    wanted.insert("LegacyCreateTime".to_owned(), json!(now));
    wanted.insert("LegacyUpdateTime".to_owned(), json!(now));
    write(&call, &destination, Change::Put(wanted)).await?;
    Ok(Reply::written(|json| {
        json.object(|json| json.key("ID").string(&id))
    }))
}

pub(super) async fn update(mut call: Call) -> Result<Reply, Failure> {
    let id = call.tail()?;
    let body = call.json().await?;
    let known = by_id(&call, &id).await?.ok_or_else(|| {
        Failure::internal(
            "intention.unknown",
            format!("Cannot modify non-existent intention: '{id}'"),
        )
    })?;
    let mut body = body;
    if let Some(members) = body.as_object_mut() {
        for (name, value) in [
            ("SourceName", &known.source),
            ("DestinationName", &known.destination),
        ] {
            if !members.keys().any(|key| key.eq_ignore_ascii_case(name)) {
                members.insert(name.to_owned(), json!(value));
            }
        }
    }
    let (mut wanted, destination) = legacy(&body)?;
    if !destination.eq_ignore_ascii_case(&known.destination) {
        let text = "Cannot modify DestinationName for an intention once it exists.";
        return Err(Failure::bad_request("intention.moved", text));
    }
    if !wanted["Name"]
        .as_str()
        .unwrap_or_default()
        .eq_ignore_ascii_case(&known.source)
    {
        write(
            &call,
            &destination,
            Change::Remove {
                source: known.source.clone(),
            },
        )
        .await?;
    }
    wanted.insert("LegacyID".to_owned(), json!(id));
    wanted.insert("LegacyCreateTime".to_owned(), json!(known.created));
    wanted.insert(
        "LegacyUpdateTime".to_owned(),
        json!(rfc3339(call.api.deps.clock.wall())),
    );
    write(&call, &destination, Change::Put(wanted)).await?;
    Ok(Reply::written(|json| {
        json.object(|json| json.key("ID").string(&id))
    }))
}

pub(super) async fn delete(call: Call) -> Result<Reply, Failure> {
    let id = call.tail()?;
    let known = by_id(&call, &id).await?.ok_or_else(|| {
        Failure::internal(
            "intention.unknown",
            format!("Cannot delete non-existent intention: '{id}'"),
        )
    })?;
    write(
        &call,
        &known.destination,
        Change::Remove {
            source: known.source,
        },
    )
    .await?;
    Ok(Reply::verdict(true))
}

/// An intention that is there.
struct Known {
    id: String,
    source: String,
    destination: String,
    action: String,
    precedence: u32,
    created: String,
}

fn same_pair(row: &Row<'_>, source: &str, destination: &str) -> bool {
    row.source().name.eq_ignore_ascii_case(source)
        && row.source().peer.is_empty()
        && row.entry.name.eq_ignore_ascii_case(destination)
}

async fn by_id(call: &Call, id: &str) -> Result<Option<Known>, Failure> {
    if id.len() != UUID_CHARS {
        let text = "Intention lookup failed: failed intention lookup: index error: UUID must be 36 characters";
        return Err(Failure::internal("intention.id", text));
    }
    find(call, |row| row.source().legacy_id == id).await
}

async fn find(call: &Call, is: impl Fn(&Row<'_>) -> bool) -> Result<Option<Known>, Failure> {
    call.api.deps.backend.barrier(Consistency::Default).await?;
    let (state, trace) = (call.api.deps.backend.state(), Trace::off());
    let entries = state
        .read(&trace)
        .config_entries(Kind::ServiceIntentions)
        .rows;
    let found = rows(entries).into_iter().find(is);
    Ok(found.map(|row| Known {
        id: row.source().legacy_id.clone(),
        source: row.source().name.clone(),
        destination: row.entry.name.clone(),
        action: row.source().action.clone(),
        precedence: row.source().precedence,
        created: row.source().legacy_create_time.clone(),
    }))
}

fn field<'v>(body: &'v Value, name: &str) -> Option<&'v Value> {
    let same = |key: &str| key.replace('_', "").eq_ignore_ascii_case(name);
    body.as_object()?
        .iter()
        .find(|(key, _)| same(key))
        .map(|(_, value)| value)
}

/// A source of an entry, of an intention's body; the entry's own rules are checked when it is written.
fn read_source(body: &Value) -> Result<Map<String, Value>, Failure> {
    if !body.is_object() {
        return Err(Failure::bad_request(
            "json.decode",
            "Bad request: Request decode failed: expected an object",
        ));
    }
    let mut source = Map::new();
    for (theirs, ours) in [
        ("SourceType", "Type"),
        ("Action", "Action"),
        ("Permissions", "Permissions"),
        ("Description", "Description"),
        ("SourcePeer", "Peer"),
    ] {
        if let Some(value) = field(body, theirs).filter(|value| !value.is_null()) {
            source.insert(ours.to_owned(), value.clone());
        }
    }
    let scope = [
        "SourceNS",
        "DestinationNS",
        "SourcePartition",
        "DestinationPartition",
    ];
    let strange = scope.iter().find(|name| {
        field(body, name)
            .and_then(Value::as_str)
            .is_some_and(|text| !matches!(text, "" | "default"))
    });
    match strange {
        Some(name) => Err(Failure::bad_request(
            "scope.unsupported",
            format!("{name}: only the default namespace and partition exist"),
        )),
        None => Ok(source),
    }
}

/// The same with names, of the legacy form, in Consul's words where something is wrong.
fn legacy(body: &Value) -> Result<(Map<String, Value>, String), Failure> {
    let mut source = read_source(body)?;
    let text = |name: &str| {
        field(body, name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (name, destination) = (text("SourceName"), text("DestinationName"));
    let mut errors = Vec::new();
    for (field, value) in [("SourceName", &name), ("DestinationName", &destination)] {
        if value.is_empty() {
            errors.push(format!("{field} must be set"));
        } else if value != ANY_SERVICE && value.contains('*') {
            errors.push(format!(
                "{field}: wildcard character '*' cannot be used with partial values"
            ));
        }
    }
    if source.contains_key("Permissions") {
        errors.push(
            "Permissions need a service-intentions entry or PUT /v1/connect/intentions/exact"
                .to_owned(),
        );
    } else if !matches!(text("Action").as_str(), "allow" | "deny") {
        errors.push("Action must be set to 'allow' or 'deny'".to_owned());
    }
    if !errors.is_empty() {
        let noun = if errors.len() == 1 { "error" } else { "errors" };
        let lines: String = errors
            .iter()
            .map(|error| format!("\t* {error}\n"))
            .collect();
        let text = format!("{} {noun} occurred:\n{lines}\n", errors.len());
        return Err(Failure::internal("intention.invalid", text));
    }
    source.insert("Name".to_owned(), json!(name));
    if let Some(meta) = field(body, "Meta").filter(|meta| !meta.is_null()) {
        source.insert("LegacyMeta".to_owned(), meta.clone());
    }
    Ok((source, destination))
}

/// Changes one source of a destination's entry, and nothing else of it, whoever else changes it meanwhile.
async fn write(call: &Call, destination: &str, change: Change) -> Result<(), Failure> {
    call.guard
        .require(Resource::Intention, destination.as_bytes(), Access::Write)?;
    for _ in 0..TRIES_MAX {
        call.api.deps.backend.barrier(Consistency::Default).await?;
        let (state, trace) = (call.api.deps.backend.state(), Trace::off());
        let before = state
            .read(&trace)
            .config_entry(Kind::ServiceIntentions, destination)
            .rows
            .cloned();
        drop(state);
        let Some(after) = changed(before.as_deref(), destination, &change)? else {
            return Ok(());
        };
        let expected = before.as_ref().map_or(0, |entry| entry.modify_index);
        let (verb, row) = match after {
            Some(entry) => (ConfigEntryVerb::Cas, entry.row()),
            None => (
                ConfigEntryVerb::DeleteCas,
                before.as_ref().map(|entry| entry.row()).unwrap_or_default(),
            ),
        };
        let command = v1::ConfigEntryCommand {
            verb: verb.into(),
            entry: Some(v1::ConfigEntry {
                modify_index: expected,
                ..row
            }),
        };
        let outcome = call.write(Command::ConfigEntry(command)).await?;
        if matches!(outcome.result, Some(v1::outcome::Result::Applied(true))) {
            tracing::info!(service.name = destination, "intentions changed");
            return Ok(());
        }
    }
    let text = "the intentions of this service keep changing: try again";
    Err(Failure::internal("intention.contended", text))
}

/// The entry as it is to be: `None`: as it is; `Some(None)`: gone.
fn changed(
    before: Option<&Entry>,
    destination: &str,
    change: &Change,
) -> Result<Option<Option<Entry>>, Failure> {
    let mut value: Value = match before {
        Some(entry) => serde_json::from_str(entry.json()).unwrap_or_default(),
        None => {
            json!({"Kind": Kind::ServiceIntentions.as_str(), "Name": destination, "Sources": []})
        }
    };
    let name = match change {
        Change::Put(source) => source
            .get("Name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        Change::Remove { source } => source.clone(),
    };
    let peer = match change {
        Change::Put(source) => source
            .get("Peer")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        Change::Remove { .. } => String::new(),
    };
    let text = |source: &Value, field: &str| source[field].as_str().unwrap_or_default().to_owned();
    let is = |source: &Value| {
        text(source, "Name").eq_ignore_ascii_case(&name)
            && text(source, "Peer").eq_ignore_ascii_case(&peer)
    };
    let has_jwt = !value["JWT"].is_null();
    let Some(sources) = value["Sources"].as_array_mut() else {
        return Err(Failure::internal(
            "intention.entry",
            "the entry has no sources",
        ));
    };
    let at = sources.iter().position(is);
    match (change, at) {
        (Change::Put(source), Some(at)) => {
            let mut source = source.clone();
            // Replacing one by its names keeps the id by which others know it.
            for kept in ["LegacyID", "LegacyCreateTime", "LegacyUpdateTime"] {
                if !source.contains_key(kept) && !sources[at][kept].is_null() {
                    source.insert(kept.to_owned(), sources[at][kept].clone());
                }
            }
            sources[at] = Value::Object(source);
        }
        (Change::Put(source), None) => sources.push(Value::Object(source.clone())),
        (Change::Remove { .. }, Some(at)) => drop(sources.remove(at)),
        (Change::Remove { .. }, None) => return Ok(None),
    }
    if sources.is_empty() && !has_jwt {
        return Ok(Some(None));
    }
    let entry = Entry::parse(&value)
        .map_err(|error| Failure::bad_request(error.reason(), error.to_string()))?;
    Ok(Some(Some(entry)))
}
