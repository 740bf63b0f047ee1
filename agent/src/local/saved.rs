//! What the objects of [`super::store`] say, and what a restart makes of them.
//!
//! Owns: the JSON forms of saved services, checks and TTL states; the node id.
//! Never: writes except through the store, or decides what is registered.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weft_proto::ids::UnixMillis;

use super::check_form;
use super::check_parse::parse_check;
use super::maintenance;
use super::status::Status;
use super::store::{Found, Kind, Store, mark, write_durably};
use super::{
    CheckDefinition, CheckKind, OpenError, ServiceDefinition, UnknownKeys, service_definition,
};

const NODE_ID: &str = "node-id";

/// Everything that was saved and could be read.
#[derive(Default)]
pub(super) struct Saved {
    pub(super) services: Vec<ServiceDefinition>,
    pub(super) checks: Vec<CheckDefinition>,
    pub(super) states: BTreeMap<String, SavedState>,
    /// Something was lost: the log was damaged or gone, or there never was a store here.
    pub(super) lost: bool,
}

/// What a check was when the agent stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SavedState {
    pub(super) status: Status,
    pub(super) output: String,
    pub(super) worth: Worth,
}

/// What a saved state is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// For a TTL check: the time it still lasts.
    Time(Duration),
    /// For a check that runs: until its first result, and only for one of this fingerprint.
    Kind(String),
}

pub(super) fn service_object(definition: &ServiceDefinition) -> Value {
    let service = service_definition::to_value(&definition.service, "");
    json!({"Token": definition.token, "Service": service})
}

pub(super) fn check_object(check: &CheckDefinition) -> Value {
    json!({"Maintenance": check.kind == CheckKind::Maintenance, "Check": check_form::to_value(check)})
}

/// What a check that runs has come to.
pub(super) fn result_object(check: &CheckDefinition, status: Status, output: &str) -> Value {
    json!({"CheckID": check.id, "Status": status.as_str(), "Output": output, "Kind": check_form::fingerprint(check)})
}

/// What was reported to a TTL check.
pub(super) fn state_object(id: &str, status: Status, output: &str, expires: UnixMillis) -> Value {
    json!({"CheckID": id, "Status": status.as_str(), "Output": output, "Expires": expires.get()})
}

/// The id under which an object is kept, or why it cannot be used.
pub(super) fn id_of(kind: Kind, object: &Value) -> Result<String, String> {
    match kind {
        Kind::Service => read_service(object).map(|service| service.service.id),
        Kind::Check => read_check(object).map(|check| check.id),
        Kind::State => {
            let id = object["CheckID"].as_str().ok_or("it has no CheckID")?;
            Ok(id.to_owned())
        }
    }
}

/// Reads what was found; what makes no sense is set aside. `now`: wall clock.
pub(super) fn read(root: &Path, store: &Store, found: Found, now: UnixMillis) -> Saved {
    let mut saved = Saved {
        lost: found.corrupt > 0 || found.made || !mark::is_set(root),
        ..Saved::default()
    };
    for ((kind, id), object) in found.objects {
        let outcome = match kind {
            Kind::Service => read_service(&object).map(|service| saved.services.push(service)),
            Kind::Check => read_check(&object).map(|check| saved.checks.push(check)),
            Kind::State => read_state(&object, now).map(|state| match state {
                Some((id, state)) => drop(saved.states.insert(id, state)),
                // It has expired; left over it does no harm.
                None => drop(store.remove(kind, &id)),
            }),
        };
        if let Err(reason) = outcome {
            store.set_aside(kind, &id, &object, &reason);
            saved.lost |= kind != Kind::State;
        }
    }
    saved
}

fn read_service(object: &Value) -> Result<ServiceDefinition, String> {
    let mut service = object["Service"].clone();
    // Consul saves the catalog's form, in which the name is called `Service`.
    if let Value::Object(map) = &mut service
        && let Some(name) = map.remove("Service")
    {
        map.insert("Name".to_owned(), name);
    }
    let mut definition = ServiceDefinition::parse(&service, UnknownKeys::Ignore)
        .map_err(|error| error.to_string())?;
    definition.token = object["Token"].as_str().unwrap_or_default().to_owned();
    Ok(definition)
}

fn read_check(object: &Value) -> Result<CheckDefinition, String> {
    let value = &object["Check"];
    if object["Maintenance"] == Value::Bool(true) {
        let text = |key: &str| value[key].as_str().unwrap_or_default();
        return Ok(maintenance::check(text("ServiceID"), text("Notes")));
    }
    let check = parse_check("", value, UnknownKeys::Ignore).map_err(|error| error.to_string())?;
    if check.id.is_empty() {
        Err("it has no CheckID".to_owned())
    } else {
        Ok(check)
    }
}

/// `None` when it has expired.
fn read_state(object: &Value, now: UnixMillis) -> Result<Option<(String, SavedState)>, String> {
    let text = |key: &str| {
        object[key]
            .as_str()
            .ok_or_else(|| format!("it has no {key}"))
    };
    let status = Status::parse(text("Status")?).ok_or("its status is unknown")?;
    let worth = match object["Kind"].as_str() {
        Some(kind) => Worth::Kind(kind.to_owned()),
        None => {
            let expires = object["Expires"].as_u64().ok_or("it has no Expires")?;
            Worth::Time(Duration::from_millis(expires.saturating_sub(now.get())))
        }
    };
    if worth == Worth::Time(Duration::ZERO) {
        return Ok(None);
    }
    let state = SavedState {
        status,
        output: text("Output")?.to_owned(),
        worth,
    };
    Ok(Some((text("CheckID")?.to_owned(), state)))
}

/// This node's id: `configured`, else what `data_dir/node-id` holds, else a fresh one kept there.
/// Without `data_dir` a fresh one each time. Lower-case UUID text.
///
/// Errors: [`OpenError`] when the file cannot be read or written, or holds no UUID.
/// Source: CONSUL.md B.7, "Node identity".
pub fn node_id(data_dir: Option<&Path>, configured: Option<&str>) -> Result<String, OpenError> {
    let Some(dir) = data_dir else {
        return Ok(configured.map_or_else(weft_proto::ids::mint, str::to_lowercase));
    };
    let path = dir.join(NODE_ID);
    let failed = |cause| OpenError::Io {
        path: path.clone(),
        cause,
    };
    let kept = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_lowercase()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let id = match (configured.map(str::to_lowercase), &kept) {
        (Some(configured), _) => configured,
        (None, Some(kept)) => kept.clone(),
        (None, None) => weft_proto::ids::mint(),
    };
    if uuid::Uuid::try_parse(&id).is_err() {
        let why =
            format!("{id:?} is not a UUID; remove the file to get a new node id, or set node_id");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    if kept.as_ref() != Some(&id) {
        std::fs::create_dir_all(dir).map_err(failed)?;
        write_durably(&path, &id).map_err(failed)?;
    }
    Ok(id)
}
