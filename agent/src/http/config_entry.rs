//! `/v1/config`.
//!
//! Owns: reading, writing and deleting config entries over HTTP, and whose rights that needs.
//! Never: judges an entry; the catalog does.
//! Source: Consul HTTP API, "Config"; CONSUL.md A.8, E.

use http::StatusCode;
use weft_catalog::acl::Access;
use weft_catalog::config_entry::{CONFIG_ENTRY_BYTES_MAX, Entry, EntryError, Kind, KindError};
use weft_proto::json::{Json, decode};
use weft_proto::v1::{self, ConfigEntryVerb, stamped::Command};

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;

/// About what an entry takes.
const ROW_BYTES: usize = 512;

pub(super) async fn put(mut call: Call) -> Result<Reply, Failure> {
    let max = call
        .api
        .config
        .limits
        .max_body_bytes
        .min(CONFIG_ENTRY_BYTES_MAX as u64);
    let body = call
        .body(
            max,
            "limits.http_max_request_body_size (at most 512KiB here)",
        )
        .await?;
    let value =
        decode::parse(&body).map_err(|error| undecoded("config.decode", &error.to_string()))?;
    let entry = Entry::parse(&value).map_err(refused)?;
    call.guard
        .require(entry.kind.resource(), entry.name.as_bytes(), Access::Write)?;
    let (verb, modify_index) = match cas(&call)? {
        Some(index) => (ConfigEntryVerb::Cas, index),
        None => (ConfigEntryVerb::Set, 0),
    };
    let row = v1::ConfigEntry {
        modify_index,
        ..entry.row()
    };
    let written = run(&call, verb, row).await?;
    if written {
        tracing::info!(config.kind = %entry.kind, config.name = %entry.name, "config entry written");
    }
    Ok(Reply::verdict(written))
}

/// What breaks the form is the client's fault (400), what breaks a rule answers 500, as in Consul.
fn refused(error: EntryError) -> Failure {
    match &error {
        EntryError::Invalid(text) => Failure::internal(error.reason(), text.clone()),
        other => undecoded(other.reason(), &other.to_string()),
    }
}

fn undecoded(reason: &'static str, text: &str) -> Failure {
    Failure::bad_request(
        reason,
        format!("Bad request: Request decoding failed: {text}"),
    )
}

fn cas(call: &Call) -> Result<Option<u64>, Failure> {
    let Some(text) = call.query.get("cas").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let text = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        Failure::internal("config.cas", text)
    })
}

async fn run(call: &Call, verb: ConfigEntryVerb, entry: v1::ConfigEntry) -> Result<bool, Failure> {
    let command = v1::ConfigEntryCommand {
        verb: verb.into(),
        entry: Some(entry),
    };
    let outcome = call.write(Command::ConfigEntry(command)).await?;
    Ok(matches!(
        outcome.result,
        Some(v1::outcome::Result::Applied(true))
    ))
}

pub(super) async fn get(call: Call) -> Result<Reply, Failure> {
    let tail = call.tail()?;
    let (kind, name) = match tail.split_once('/') {
        Some((kind, name)) => (kind, Some(name)),
        None => (tail.as_str(), None),
    };
    // Consul answers 500 for a kind it does not know.
    let parsed = |kind: &str| {
        Kind::parse(kind).map_err(|error| {
            Failure::internal(EntryError::from(error.clone()).reason(), error.to_string())
        })
    };
    match name {
        Some(name) => one(&call, parsed(kind)?, name).await,
        None if kind.is_empty() => list(&call, Kind::ALL).await,
        None => list(&call, &[parsed(kind)?]).await,
    }
}

async fn one(call: &Call, kind: Kind, name: &str) -> Result<Reply, Failure> {
    if let Some(resource) = kind.read_resource() {
        call.guard
            .require(resource, name.as_bytes(), Access::Read)?;
    }
    read(call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.config_entry(kind, name);
        let index = answer.index.get();
        let Some(entry) = answer.rows else {
            // The index is that of the kind, and moves with what does not show here.
            let text = format!("Config entry not found for {:?} / {name:?}", kind.as_str());
            return Found::coarse(index, Reply::text(text).status(StatusCode::NOT_FOUND));
        };
        if !pass.wants(index) {
            return Found::later(index);
        }
        Found::now(index, Reply::written(|json| entry.write(json)))
    })
    .await
}

async fn list(call: &Call, kinds: &[Kind]) -> Result<Reply, Failure> {
    let selection = Selection::parse::<Entry>(call)?;
    read(call, ReadForm::PLAIN, |pass| {
        let answers: Vec<_> = kinds
            .iter()
            .map(|kind| pass.reader.config_entries(*kind))
            .collect();
        let index = answers.iter().map(|answer| answer.index.get()).max();
        let index = index.unwrap_or_default();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let rows = answers.iter().flat_map(|answer| &answer.rows);
        let shown: Vec<_> = rows
            .filter(|entry| selection.keeps(&****entry) && may_see(call, entry))
            .collect();
        let mut json = Json::with_capacity(shown.len() * ROW_BYTES + 2);
        json.list(shown, |json, entry| entry.write(json));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

fn may_see(call: &Call, entry: &Entry) -> bool {
    let resource = entry.kind.read_resource();
    resource.is_none_or(|resource| call.guard.shows(resource, entry.name.as_bytes()))
}

pub(super) async fn delete(call: Call) -> Result<Reply, Failure> {
    let tail = call.tail()?;
    let missing = || {
        let text = "Must provide both a kind and name to delete";
        Failure::not_found("config.name.missing", text)
    };
    let (kind, name) = tail.split_once('/').ok_or_else(missing)?;
    if name.is_empty() {
        return Err(missing());
    }
    let kind = Kind::parse(kind).map_err(|error: KindError| {
        let error = EntryError::from(error);
        Failure::bad_request(error.reason(), error.to_string())
    })?;
    call.guard
        .require(kind.resource(), name.as_bytes(), Access::Write)?;
    let expected = cas(&call)?;
    let verb = if expected.is_some() {
        ConfigEntryVerb::DeleteCas
    } else {
        ConfigEntryVerb::Delete
    };
    let row = v1::ConfigEntry {
        kind: kind.as_str().to_owned(),
        name: name.to_owned(),
        modify_index: expected.unwrap_or_default(),
        ..v1::ConfigEntry::default()
    };
    let deleted = run(&call, verb, row).await?;
    if deleted {
        tracing::info!(config.kind = %kind, config.name = name, "config entry deleted");
    }
    Ok(match expected {
        Some(_) => Reply::verdict(deleted),
        None => Reply::json(&b"{}"[..]),
    })
}
