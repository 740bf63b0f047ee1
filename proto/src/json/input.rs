//! Request bodies that become records.
//!
//! Owns: the forms of `/catalog/register`, `/catalog/deregister`, `/session/create` and autopilot's
//! configuration; defaults that depend on nothing but the body.
//! Never: checks a rule that needs the state.
//! Source: Consul HTTP API, "Catalog", "Session", "Operator"; CONSUL.md A.2, A.5, A.10.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::decode::{DecodeError, Object};
use super::write::Json;
use crate::{duration, v1};

/// `LockDelay` numbers below this are seconds: early clients sent `15` and meant that.
const LOCK_DELAY_SECONDS_BELOW: u64 = 1_000;

/// A node as `/v1/txn` names its members.
pub fn node(object: &Object<'_>) -> Result<v1::Node, DecodeError> {
    Ok(v1::Node {
        id: object.text("ID")?.to_ascii_lowercase(),
        name: object.text("Node")?,
        address: object.text("Address")?,
        datacenter: object.text("Datacenter")?,
        tagged_addresses: object.text_map("TaggedAddresses")?,
        meta: object.text_map("Meta")?,
        create_index: object.unsigned("CreateIndex")?,
        modify_index: object.unsigned("ModifyIndex")?,
    })
}

/// The body of `/catalog/register`. The node's meta is called `NodeMeta` there.
pub fn register(object: &Object<'_>) -> Result<v1::Register, DecodeError> {
    let mut node = node(object)?;
    node.meta = object.text_map("NodeMeta")?;
    (node.create_index, node.modify_index) = (0, 0);
    let service = object
        .object("Service")?
        .map(|inner| service(&inner))
        .transpose()?;
    let mut checks = Vec::new();
    if let Some(one) = object.object("Check")? {
        checks.push(check(&one)?);
    }
    for one in object.objects("Checks")? {
        checks.push(check(&one)?);
    }
    for check in &mut checks {
        if check.node.is_empty() {
            check.node.clone_from(&node.name);
        }
    }
    Ok(v1::Register {
        node: Some(node),
        service,
        checks,
        skip_node_update: object.flag("SkipNodeUpdate")?,
    })
}

/// A service in the catalog's own form. `ID` defaults to the name.
pub fn service(object: &Object<'_>) -> Result<v1::Service, DecodeError> {
    let name = object.text("Service")?;
    let id = object.text("ID")?;
    Ok(v1::Service {
        id: if id.is_empty() { name.clone() } else { id },
        name,
        tags: object.texts("Tags")?,
        address: object.text("Address")?,
        port: object.unsigned32("Port")?,
        meta: object.text_map("Meta")?,
        tagged_addresses: service_addresses(object)?,
        weights: object
            .object("Weights")?
            .map(|weights| weights_of(&weights))
            .transpose()?,
        enable_tag_override: object.flag("EnableTagOverride")?,
        kind: object.text("Kind")?,
        socket_path: object.text("SocketPath")?,
        ports: object
            .objects("Ports")?
            .iter()
            .map(named_port)
            .collect::<Result<_, _>>()?,
        locality: object
            .object("Locality")?
            .map(|inner| locality(&inner))
            .transpose()?,
        proxy_json: section(object, "Proxy"),
        connect_json: section(object, "Connect"),
        create_index: object.unsigned("CreateIndex")?,
        modify_index: object.unsigned("ModifyIndex")?,
    })
}

fn service_addresses(
    object: &Object<'_>,
) -> Result<BTreeMap<String, v1::ServiceAddress>, DecodeError> {
    let Some(tagged) = object.object("TaggedAddresses")? else {
        return Ok(BTreeMap::new());
    };
    let mut addresses = BTreeMap::new();
    for name in tagged.map().keys() {
        if let Some(one) = tagged.object(name)? {
            let address = v1::ServiceAddress {
                address: one.text("Address")?,
                port: one.unsigned32("Port")?,
            };
            addresses.insert(name.clone(), address);
        }
    }
    Ok(addresses)
}

fn weights_of(object: &Object<'_>) -> Result<v1::Weights, DecodeError> {
    Ok(v1::Weights {
        passing: object.unsigned32("Passing")?,
        warning: object.unsigned32("Warning")?,
    })
}

fn named_port(object: &Object<'_>) -> Result<v1::NamedPort, DecodeError> {
    Ok(v1::NamedPort {
        name: object.text("Name")?,
        port: object.unsigned32("Port")?,
        default: object.flag("Default")?,
    })
}

fn locality(object: &Object<'_>) -> Result<v1::Locality, DecodeError> {
    Ok(v1::Locality {
        region: object.text("Region")?,
        zone: object.text("Zone")?,
    })
}

/// A section kept as canonical JSON; empty when absent or without members.
fn section(object: &Object<'_>, name: &str) -> String {
    match object.get(name) {
        Some(Value::Object(map)) if !map.is_empty() => Json::text_of(&Value::Object(map.clone())),
        _ => String::new(),
    }
}

/// A check in the catalog's own form. `CheckID` defaults to the name, the status to critical.
pub fn check(object: &Object<'_>) -> Result<v1::Check, DecodeError> {
    let name = object.text("Name")?;
    let id = object.text("CheckID")?;
    let status = object.text("Status")?;
    Ok(v1::Check {
        node: object.text("Node")?,
        id: if id.is_empty() { name.clone() } else { id },
        name,
        status: if status.is_empty() {
            "critical".to_owned()
        } else {
            status
        },
        notes: object.text("Notes")?,
        output: object.text("Output")?,
        service_id: object.text("ServiceID")?,
        service_name: object.text("ServiceName")?,
        service_tags: object.texts("ServiceTags")?,
        r#type: object.text("Type")?,
        interval: object.duration_text("Interval")?,
        timeout: object.duration_text("Timeout")?,
        exposed_port: object.unsigned32("ExposedPort")?,
        definition_json: definition(object)?,
        create_index: object.unsigned("CreateIndex")?,
        modify_index: object.unsigned("ModifyIndex")?,
    })
}

/// `Definition` with Consul's spelling, durations as Go text, and nothing that is zero.
fn definition(object: &Object<'_>) -> Result<String, DecodeError> {
    const TEXTS: [&str; 9] = [
        "HTTP",
        "Method",
        "Body",
        "TLSServerName",
        "TCP",
        "UDP",
        "GRPC",
        "H2PING",
        "OSService",
    ];
    const FLAGS: [&str; 5] = [
        "TLSSkipVerify",
        "TCPUseTLS",
        "GRPCUseTLS",
        "H2PingUseTLS",
        "DisableRedirects",
    ];
    const DURATIONS: [&str; 4] = [
        "Interval",
        "Timeout",
        "DeregisterCriticalServiceAfter",
        "TTL",
    ];
    let Some(inner) = object.object("Definition")? else {
        return Ok(String::new());
    };
    let mut out = Map::new();
    for name in TEXTS {
        let text = inner.text(name)?;
        if !text.is_empty() {
            out.insert(name.to_owned(), text.into());
        }
    }
    for name in FLAGS {
        if inner.flag(name)? {
            out.insert(name.to_owned(), true.into());
        }
    }
    for name in DURATIONS {
        // Older clients send the parsed form beside or instead of the text (`IntervalDuration`).
        let parsed = match inner.duration(name)? {
            Some(length) => Some(length),
            None => inner.duration(&format!("{name}Duration"))?,
        };
        if let Some(length) = parsed.filter(|length| !length.is_zero()) {
            out.insert(name.to_owned(), duration::format(length).into());
        }
    }
    if let Some(header) = inner
        .get("Header")
        .filter(|header| header.as_object().is_some_and(|map| !map.is_empty()))
    {
        out.insert("Header".to_owned(), header.clone());
    }
    Ok(if out.is_empty() {
        String::new()
    } else {
        Json::text_of(&Value::Object(out))
    })
}

/// The body of `/catalog/deregister`.
pub fn deregister(object: &Object<'_>) -> Result<v1::Deregister, DecodeError> {
    Ok(v1::Deregister {
        node: object.text("Node")?,
        service_id: object.text("ServiceID")?,
        check_id: object.text("CheckID")?,
        ..Default::default()
    })
}

/// The body of `/session/create`. `id` was minted by the caller, `node` is used when none is named.
///
/// Checks default to `serfHealth`; an empty list means none. `Checks` is the old name of `NodeChecks`
/// and wins; given alone it adds to the default, so that such a session still ends with its node, as in Consul.
pub fn session(object: &Object<'_>, id: String, node: &str) -> Result<v1::Session, DecodeError> {
    const DEFAULT_CHECK: &str = "serfHealth";
    let named = object.text("Node")?;
    let behavior = object.text("Behavior")?;
    let ttl = object.duration_text("TTL")?;
    let ttl_millis = object.duration("TTL")?.unwrap_or_default().as_millis();
    let node_checks = match (object.get("Checks"), object.get("NodeChecks")) {
        (Some(_), Some(_)) => object.texts("Checks")?,
        (Some(_), None) => {
            let mut checks = object.texts("Checks")?;
            if !checks.is_empty() && !checks.iter().any(|check| check == DEFAULT_CHECK) {
                checks.push(DEFAULT_CHECK.to_owned());
            }
            checks
        }
        (None, Some(_)) => object.texts("NodeChecks")?,
        (None, None) => vec![DEFAULT_CHECK.to_owned()],
    };
    Ok(v1::Session {
        id,
        name: object.text("Name")?,
        node: if named.is_empty() {
            node.to_owned()
        } else {
            named
        },
        lock_delay_millis: lock_delay_millis(object)?,
        behavior: if behavior.is_empty() {
            "release".to_owned()
        } else {
            behavior
        },
        ttl,
        ttl_millis: u64::try_from(ttl_millis).unwrap_or(u64::MAX),
        node_checks,
        service_checks: object
            .objects("ServiceChecks")?
            .iter()
            .map(|check| check.text("ID"))
            .collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

fn lock_delay_millis(object: &Object<'_>) -> Result<u64, DecodeError> {
    /// Consul's default.
    const LOCK_DELAY_MILLIS: u64 = 15_000;
    let Some(delay) = object.duration("LockDelay")? else {
        return Ok(LOCK_DELAY_MILLIS);
    };
    let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    if nanos < LOCK_DELAY_SECONDS_BELOW {
        Ok(nanos * 1_000)
    } else {
        Ok(nanos / 1_000_000)
    }
}

/// The body of `PUT /operator/autopilot/configuration`; absent members keep what `current` says.
pub fn autopilot(
    object: &Object<'_>,
    current: &v1::AutopilotConfig,
) -> Result<v1::AutopilotConfig, DecodeError> {
    let millis = |name: &str, otherwise: u64| -> Result<u64, DecodeError> {
        Ok(match object.duration(name)? {
            Some(length) => u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            None => otherwise,
        })
    };
    let has = |name: &str| object.get(name).is_some();
    Ok(v1::AutopilotConfig {
        cleanup_dead_servers: if has("CleanupDeadServers") {
            object.flag("CleanupDeadServers")?
        } else {
            current.cleanup_dead_servers
        },
        last_contact_threshold_millis: millis(
            "LastContactThreshold",
            current.last_contact_threshold_millis,
        )?,
        max_trailing_logs: if has("MaxTrailingLogs") {
            object.unsigned("MaxTrailingLogs")?
        } else {
            current.max_trailing_logs
        },
        min_quorum: if has("MinQuorum") {
            object.unsigned32("MinQuorum")?
        } else {
            current.min_quorum
        },
        server_stabilization_millis: millis(
            "ServerStabilizationTime",
            current.server_stabilization_millis,
        )?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session_of(body: &Value) -> v1::Session {
        session(&Object::root(body).unwrap(), "id".to_owned(), "n1").unwrap()
    }

    #[test]
    fn lock_delay_below_a_thousand_means_seconds() {
        for (body, millis) in [
            (json!({}), 15_000),
            (json!({"LockDelay": 5}), 5_000),
            (json!({"LockDelay": "5s"}), 5_000),
            (json!({"LockDelay": 2_000_000_000_u64}), 2_000),
            (json!({"LockDelay": 0}), 0),
            (json!({"lock_delay": "0s"}), 0),
        ] {
            assert_eq!(session_of(&body).lock_delay_millis, millis, "{body}");
        }
    }

    #[test]
    fn session_checks_have_two_names_and_a_default() {
        assert_eq!(session_of(&json!({})).node_checks, ["serfHealth"]);
        assert!(
            session_of(&json!({"NodeChecks": []}))
                .node_checks
                .is_empty()
        );
        assert_eq!(
            session_of(&json!({"Checks": ["a"], "NodeChecks": ["b"]})).node_checks,
            ["a"]
        );
        assert_eq!(
            session_of(&json!({"Checks": ["a"]})).node_checks,
            ["a", "serfHealth"]
        );
        assert!(session_of(&json!({"Checks": []})).node_checks.is_empty());
        assert_eq!(
            session_of(&json!({"ServiceChecks": [{"ID": "s"}]})).service_checks,
            ["s"]
        );
        assert_eq!(session_of(&json!({"TTL": "10.0s"})).ttl_millis, 10_000);
    }

    #[test]
    fn a_registration_fills_ids_from_names() {
        let body = json!({"Node": "n", "Address": "a", "NodeMeta": {"k": "v"}, "Service": {"Service": "pg"},
            "Check": {"Name": "c", "Definition": {"http": "http://x/<", "IntervalDuration": 10_000_000_000_u64}}});
        let register = register(&Object::root(&body).unwrap()).unwrap();
        let (node, service, check) = (
            register.node.unwrap(),
            register.service.unwrap(),
            &register.checks[0],
        );
        assert_eq!((node.meta["k"].as_str(), service.id.as_str()), ("v", "pg"));
        assert_eq!(
            (
                check.id.as_str(),
                check.node.as_str(),
                check.status.as_str()
            ),
            ("c", "n", "critical")
        );
        assert_eq!(
            check.definition_json,
            r#"{"HTTP":"http://x/\u003c","Interval":"10s"}"#
        );
    }
}
