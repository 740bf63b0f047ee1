//! `/v1/kv/:key`.
//!
//! Owns: the forms of a key's read (one, raw, recurse, keys) and the verbs of its writes.
//! Never: interprets a key beyond Consul's few refusals.
//! Source: Consul HTTP API, "KV Store"; CONSUL.md A.4, B.4.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use weft_catalog::acl::{Access, Resource};
use weft_proto::json::{Json, records};
use weft_proto::v1::{self, KvVerb};

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// Bytes of JSON around a key and its value.
const ENTRY_OVERHEAD_BYTES: usize = 160;

pub(super) async fn get(call: Call) -> Result<Reply, Failure> {
    let key = key(&call)?;
    if call.query.has("keys") {
        return keys(&call, &key).await;
    }
    if call.query.has("recurse") {
        return list(&call, &key).await;
    }
    require_name(&key)?;
    call.guard.require(Resource::Key, &key, Access::Read)?;
    let raw = call.query.has("raw");
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.kv_get(&key);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        Found::now(
            index,
            match answer.rows {
                None => missing(),
                Some(entry) if raw => raw_value(entry.value.clone()),
                Some(entry) => one(entry),
            },
        )
    })
    .await
}

fn missing() -> Reply {
    Reply::empty().status(StatusCode::NOT_FOUND)
}

fn one(entry: &v1::KvEntry) -> Reply {
    let size = entry.key.len() + entry.value.len() * 4 / 3 + ENTRY_OVERHEAD_BYTES;
    let mut json = Json::with_capacity(size);
    json.array(|json| records::kv(json, entry, true));
    Reply::json(json.into_bytes())
}

/// A browser must take the value for nothing but text: it is whatever a user wrote.
fn raw_value(value: Bytes) -> Reply {
    Reply::bytes("text/plain", value)
        .with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
        .with(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"))
}

async fn list(call: &Call, prefix: &[u8]) -> Result<Reply, Failure> {
    read(call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.kv_list(prefix);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let shown = || {
            answer
                .rows
                .iter()
                .filter(|entry| call.guard.shows(Resource::Key, &entry.key))
        };
        if shown().next().is_none() {
            return Found::now(index, missing());
        }
        let size = shown()
            .map(|entry| entry.key.len() + entry.value.len() * 4 / 3 + ENTRY_OVERHEAD_BYTES)
            .sum();
        let mut json = Json::with_capacity(size);
        json.list(shown(), |json, entry| records::kv(json, entry, true));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

async fn keys(call: &Call, prefix: &[u8]) -> Result<Reply, Failure> {
    // The misspelling is Consul's own from its early days, and still in use.
    let separator = call
        .query
        .get("separator")
        .or_else(|| call.query.get("seperator"))
        .unwrap_or_default();
    read(call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.kv_keys(prefix, separator.as_bytes());
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let shown = || {
            answer
                .rows
                .iter()
                .filter(|key| call.guard.shows(Resource::Key, key))
        };
        if shown().next().is_none() && !prefix.is_empty() {
            return Found::now(index, missing());
        }
        let mut json = Json::with_capacity(shown().map(|key| key.len() + 4).sum::<usize>() + 2);
        json.list(shown(), |json, key| json.lossy(key));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

pub(super) async fn put(mut call: Call) -> Result<Reply, Failure> {
    let key = key(&call)?;
    require_name(&key)?;
    if call.api.config.validate_kv_keys {
        refuse_traps(&key)?;
    }
    refuse_conflict(&call, &["cas", "acquire", "release"])?;
    let mut entry = v1::KvEntry {
        key: key.into(),
        flags: number(&call, "flags")?,
        ..Default::default()
    };
    let verb = if call.query.has("cas") {
        entry.modify_index = number(&call, "cas")?;
        KvVerb::Cas
    } else if let Some(session) = call.query.get("acquire") {
        session.clone_into(&mut entry.session);
        KvVerb::Lock
    } else if let Some(session) = call.query.get("release") {
        session.clone_into(&mut entry.session);
        KvVerb::Unlock
    } else {
        KvVerb::Set
    };
    let max = call.api.limits().kv_max_value_bytes;
    entry.value = call.body(max, "limits.kv_max_value_size").await?;
    run(&call, verb, entry).await
}

pub(super) async fn delete(call: Call) -> Result<Reply, Failure> {
    let key = key(&call)?;
    refuse_conflict(&call, &["recurse", "cas"])?;
    let mut entry = v1::KvEntry {
        key: key.clone().into(),
        ..Default::default()
    };
    let verb = if call.query.has("recurse") {
        call.guard
            .require(Resource::KeyPrefix, &key, Access::Write)?;
        KvVerb::DeleteTree
    } else {
        require_name(&key)?;
        call.guard.require(Resource::Key, &key, Access::Write)?;
        if call.query.has("cas") {
            entry.modify_index = number(&call, "cas")?;
            KvVerb::DeleteCas
        } else {
            KvVerb::Delete
        }
    };
    run(&call, verb, entry).await
}

async fn run(call: &Call, verb: KvVerb, entry: v1::KvEntry) -> Result<Reply, Failure> {
    let command = v1::KvCommand {
        verb: verb.into(),
        entry: Some(entry),
    };
    let outcome = call.write(v1::stamped::Command::Kv(command)).await?;
    Ok(Reply::verdict(matches!(
        outcome.result,
        Some(v1::outcome::Result::Applied(true))
    )))
}

/// The key as the URL carries it: decoded once, nothing else.
fn key(call: &Call) -> Result<Vec<u8>, Failure> {
    let key = call.tail_bytes()?.into_owned();
    if key.iter().any(|byte| *byte < 0x20 || *byte == 0x7f) {
        return Err(Failure::bad_request(
            "kv.key.unprintable",
            "Invalid key: it has an unprintable character",
        ));
    }
    Ok(key)
}

fn require_name(key: &[u8]) -> Result<(), Failure> {
    if key.is_empty() {
        Err(Failure::bad_request("kv.key.missing", "Missing key name"))
    } else {
        Ok(())
    }
}

/// Keys that clients and proxies would rewrite, so that they could never be read back.
fn refuse_traps(key: &[u8]) -> Result<(), Failure> {
    if key
        .split(|byte| *byte == b'/')
        .any(|segment| segment == b"..")
    {
        return Err(Failure::bad_request(
            "kv.key.traversal",
            "Invalid key: it has a \"..\" segment",
        ));
    }
    if key.first() == Some(&b' ') || key.last() == Some(&b' ') {
        return Err(Failure::bad_request(
            "kv.key.spaces",
            "Invalid key: it begins or ends with a space",
        ));
    }
    Ok(())
}

fn refuse_conflict(call: &Call, flags: &[&str]) -> Result<(), Failure> {
    if flags.iter().filter(|flag| call.query.has(flag)).count() > 1 {
        return Err(Failure::bad_request(
            "kv.flags.conflict",
            format!("Conflicting flags: {}", call.query.encode()),
        ));
    }
    Ok(())
}

fn number(call: &Call, name: &str) -> Result<u64, Failure> {
    match call.query.get(name) {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| {
            Failure::bad_request(
                "kv.number",
                format!("Invalid value for ?{name}: {text:?} is not an unsigned number"),
            )
        }),
    }
}
