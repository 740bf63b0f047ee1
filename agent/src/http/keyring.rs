//! `/v1/operator/keyring`.
//!
//! Owns: Consul's form of the gossip keys of all members, and of what went wrong at some.
//! Never: holds a key longer than a request.
//! Source: Consul HTTP API, "Keyring"; forms and texts as Consul 1.8.7 answers. There is no pool across datacenters.

use serde_json::Value;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::backend::{KeyringAction, KeyringReport};

const RELAY_FACTOR_MAX: i64 = 5;

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let report = act(&call, KeyringAction::List, "").await?;
    let datacenter = call.api.deps.info.datacenter.clone();
    Ok(Reply::written(move |json| {
        json.list([report], |json, report| {
            json.object(|json| {
                json.key("WAN").boolean(false);
                json.key("Datacenter").string(&datacenter);
                json.key("Segment").string("");
                for (name, counts) in [("Keys", &report.keys), ("PrimaryKeys", &report.primary)] {
                    json.key(name).object(|json| {
                        for (key, count) in counts {
                            json.dynamic_key(key).number(*count as u64);
                        }
                    });
                }
                json.key("NumNodes").number(report.nodes as u64);
            });
        });
    }))
}

pub(super) async fn install(call: Call) -> Result<Reply, Failure> {
    change(call, KeyringAction::Install).await
}

pub(super) async fn make_primary(call: Call) -> Result<Reply, Failure> {
    change(call, KeyringAction::Use).await
}

pub(super) async fn remove(call: Call) -> Result<Reply, Failure> {
    change(call, KeyringAction::Remove).await
}

async fn change(mut call: Call, action: KeyringAction) -> Result<Reply, Failure> {
    if flag(&call, "local-only")? {
        let text =
            "Bad request: Invalid use of local-only: local-only can only be set for list requests";
        return Err(Failure::bad_request("keyring.local_only", text));
    }
    let body = call.optional_json().await?;
    if body.is_null() {
        let text = "Bad request: Request decode failed: EOF";
        return Err(Failure::bad_request("keyring.body", text));
    }
    let key = body.get("Key").and_then(Value::as_str).unwrap_or_default();
    act(&call, action, key).await?;
    Ok(Reply::empty())
}

async fn act(call: &Call, action: KeyringAction, key: &str) -> Result<KeyringReport, Failure> {
    // Members answer whoever asks directly, so there is nobody to relay.
    if let Some(text) = call.query.get("relay-factor").filter(|t| !t.is_empty()) {
        let factor: Result<i64, _> = text.parse();
        let factor = factor.map_err(|_| {
            let text = format!("Bad request: Error parsing relay factor: {text:?} is not a number");
            Failure::bad_request("keyring.relay_factor", text)
        })?;
        if !(0..=RELAY_FACTOR_MAX).contains(&factor) {
            let text = "Bad request: Invalid relay-factor: Relay factor must be in range: [0, 5]";
            return Err(Failure::bad_request("keyring.relay_factor", text));
        }
    }
    flag(call, "local-only")?;
    let report = call.api.deps.membership.keyring(action, key).await;
    let datacenter = &call.api.deps.info.datacenter;
    let report = report.map_err(|text| failed(&[format!("{datacenter} (LAN) error: {text}")]))?;
    if report.errors.is_empty() {
        return Ok(report);
    }
    let (failures, nodes) = (report.errors.len(), report.nodes);
    let mut lines = vec![format!(
        "{datacenter} (LAN) error: {failures}/{nodes} nodes reported failure"
    )];
    lines.extend(
        report
            .errors
            .iter()
            .map(|(node, text)| format!("{node}: {text}")),
    );
    Err(failed(&lines))
}

fn flag(call: &Call, name: &'static str) -> Result<bool, Failure> {
    match call.query.get(name) {
        None => Ok(false),
        Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(text) => {
            let text =
                format!("Bad request: Error parsing {name}: {text:?} is neither true nor false");
            Err(Failure::bad_request("keyring.local_only", text))
        }
    }
}

/// As Consul's Go library of several errors writes them.
fn failed(lines: &[String]) -> Failure {
    let count = lines.len();
    let head = if count == 1 { "1 error" } else { "errors" };
    let head = if count == 1 {
        head.to_owned()
    } else {
        format!("{count} {head}")
    };
    let items: String = lines.iter().map(|line| format!("\t* {line}\n")).collect();
    Failure::internal("keyring.failed", format!("{head} occurred:\n{items}\n"))
}
