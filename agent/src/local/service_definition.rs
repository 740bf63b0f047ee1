//! Parsing and judging a service's registration.
//!
//! Owns: the rules of CONSUL.md A.1 "Validation" and B.8.
//! Never: knows which services exist.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use weft_proto::v1;

use super::check_definition::CheckDefinition;
use super::check_parse::parse_check;
use super::definition::{DefinitionError, ServiceDefinition};
use super::fields::{Fields, UnknownKeys, plain};

const META_PAIRS_MAX: usize = 64;
const META_KEY_MAX: usize = 128;
const META_VALUE_MAX: usize = 512;
const WEIGHT_MAX: i64 = 65_535;
/// Checks one service may have: each is a timer and a row of its own.
const CHECKS_MAX: usize = 256;
/// Bytes of one `Proxy` or `Connect` object in canonical JSON.
const MESH_JSON_MAX: usize = 262_144;

const KINDS: [&str; 6] = [
    "",
    "connect-proxy",
    "mesh-gateway",
    "terminating-gateway",
    "ingress-gateway",
    "api-gateway",
];

pub(super) fn parse(
    value: &Value,
    unknown: UnknownKeys,
) -> Result<ServiceDefinition, DefinitionError> {
    let mut fields = Fields::open("", value, unknown)?;
    fields.take(&["EnterpriseMeta", "Namespace", "Partition"]);
    let mut definition = ServiceDefinition {
        service: service(&mut fields, unknown)?,
        checks: Vec::new(),
        token: fields.text(&["Token"])?,
    };
    definition.checks = checks(&mut fields, &definition.service, unknown)?;
    fields.finish()?;
    Ok(definition)
}

fn service(fields: &mut Fields<'_>, unknown: UnknownKeys) -> Result<v1::Service, DefinitionError> {
    let name = fields.text(&["Name"])?;
    if name.is_empty() {
        return Err(DefinitionError::invalid(
            "service.name.missing",
            "Missing service name",
        ));
    }
    let id = fields.text(&["ID"])?;
    let service = v1::Service {
        id: if id.is_empty() { name.clone() } else { id },
        name,
        tags: fields.texts(&["Tags"])?,
        address: address(fields.text(&["Address"])?)?,
        port: port(fields, "Port")?,
        meta: checked_meta(fields.text_map(&["Meta"])?)?,
        tagged_addresses: tagged_addresses(fields, unknown)?.into_iter().collect(),
        weights: Some(weights(fields, unknown)?),
        enable_tag_override: fields.flag(&["EnableTagOverride"])?,
        kind: fields.text(&["Kind"])?,
        socket_path: fields.text(&["SocketPath"])?,
        ports: named_ports(fields, unknown)?,
        locality: locality(fields, unknown)?,
        proxy_json: mesh_json(fields, "Proxy")?,
        connect_json: mesh_json(fields, "Connect")?,
        ..v1::Service::default()
    };
    judge_connect(&service)?;
    judge_ports(&service)?;
    judge_kind(&service)?;
    Ok(with_tagged_address(service))
}

/// A service with an address of its own carries it as `lan_*` and `wan_*` too, unless it says otherwise.
fn with_tagged_address(mut service: v1::Service) -> v1::Service {
    let tags = match service.address.parse() {
        Ok(IpAddr::V4(_)) => ["lan_ipv4", "wan_ipv4"],
        Ok(IpAddr::V6(_)) => ["lan_ipv6", "wan_ipv6"],
        Err(_) => return service,
    };
    for tag in tags {
        let own = v1::ServiceAddress {
            address: service.address.clone(),
            port: service.port,
        };
        service
            .tagged_addresses
            .entry(tag.to_owned())
            .or_insert(own);
    }
    service
}

fn address(address: String) -> Result<String, DefinitionError> {
    if matches!(address.as_str(), "0.0.0.0" | "::" | "[::]") {
        return Err(DefinitionError::invalid(
            "service.address",
            "Invalid service address",
        ));
    }
    Ok(address)
}

fn port(fields: &mut Fields<'_>, name: &'static str) -> Result<u32, DefinitionError> {
    let number = fields.integer(&[name])?.unwrap_or(0);
    match u16::try_from(number) {
        Ok(port) => Ok(u32::from(port)),
        Err(_) => Err(DefinitionError::invalid(
            "service.port",
            format!("invalid port {number}: must be 0 to 65535"),
        )),
    }
}

fn checked_meta(
    meta: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, DefinitionError> {
    check_meta(&meta)?;
    Ok(meta)
}

/// Whether a service may have this metadata, here or in the catalog.
pub(crate) fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), DefinitionError> {
    let refuse = |why: String| {
        Err(DefinitionError::invalid(
            "service.meta",
            format!("Invalid Service Meta: {why}"),
        ))
    };
    if meta.len() > META_PAIRS_MAX {
        return refuse(format!(
            "Node metadata cannot contain more than {META_PAIRS_MAX} key/value pairs"
        ));
    }
    for (key, value) in meta {
        let why = if key.is_empty() {
            "Key cannot be blank".to_owned()
        } else if !key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        {
            "Key contains invalid characters".to_owned()
        } else if key.len() > META_KEY_MAX {
            format!("Key is too long (limit: {META_KEY_MAX} characters)")
        } else if value.len() > META_VALUE_MAX {
            format!("Value is too long (limit: {META_VALUE_MAX} characters)")
        } else {
            continue;
        };
        return refuse(format!(
            "Couldn't load metadata pair ('{key}', '{value}'): {why}"
        ));
    }
    Ok(())
}

fn tagged_addresses(
    fields: &mut Fields<'_>,
    unknown: UnknownKeys,
) -> Result<BTreeMap<String, v1::ServiceAddress>, DefinitionError> {
    let path = fields.path_of("TaggedAddresses");
    let mut out = BTreeMap::new();
    for map in fields.list(&["TaggedAddresses"])? {
        let Value::Object(map) = map else {
            return Err(fields.wrong("TaggedAddresses", "an object", map));
        };
        for (tag, value) in map {
            let mut entry = Fields::open(&format!("{path}.{tag}"), value, unknown)?;
            let address = v1::ServiceAddress {
                address: entry.text(&["Address"])?,
                port: port(&mut entry, "Port")?,
            };
            entry.finish()?;
            out.insert(tag.clone(), address);
        }
    }
    Ok(out)
}

fn weights(fields: &mut Fields<'_>, unknown: UnknownKeys) -> Result<v1::Weights, DefinitionError> {
    let path = fields.path_of("Weights");
    let Some(value) = fields.take(&["Weights"]) else {
        return Ok(v1::Weights {
            passing: 1,
            warning: 1,
        });
    };
    let mut entry = Fields::open(&path, value, unknown)?;
    let weights = v1::Weights {
        passing: weight(&mut entry, "Passing")?,
        warning: weight(&mut entry, "Warning")?,
    };
    entry.finish()?;
    Ok(weights)
}

/// An absent half of a given `Weights` is 1 like an absent whole.
fn weight(fields: &mut Fields<'_>, name: &'static str) -> Result<u32, DefinitionError> {
    let refuse = |why: &str| {
        Err(DefinitionError::invalid(
            "service.weights",
            format!("Invalid Weights: {why}"),
        ))
    };
    match fields.integer(&[name])? {
        None => Ok(1),
        Some(number) if number < 0 => refuse(&format!("{name} must be greater or equal than 0")),
        Some(number) if number > WEIGHT_MAX => refuse("DNS Weight must be between 0 and 65535"),
        Some(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
    }
}

fn named_ports(
    fields: &mut Fields<'_>,
    unknown: UnknownKeys,
) -> Result<Vec<v1::NamedPort>, DefinitionError> {
    let path = fields.path_of("Ports");
    let mut out = Vec::new();
    for (n, value) in fields.list(&["Ports"])?.into_iter().enumerate() {
        let mut entry = Fields::open(&format!("{path}[{n}]"), value, unknown)?;
        out.push(v1::NamedPort {
            name: entry.text(&["Name"])?,
            port: port(&mut entry, "Port")?,
            default: entry.flag(&["Default"])?,
        });
        entry.finish()?;
    }
    Ok(out)
}

fn locality(
    fields: &mut Fields<'_>,
    unknown: UnknownKeys,
) -> Result<Option<v1::Locality>, DefinitionError> {
    let path = fields.path_of("Locality");
    let Some(value) = fields.take(&["Locality"]) else {
        return Ok(None);
    };
    let mut entry = Fields::open(&path, value, unknown)?;
    let locality = v1::Locality {
        region: entry.text(&["Region"])?,
        zone: entry.text(&["Zone"])?,
    };
    entry.finish()?;
    if locality.region.is_empty() && !locality.zone.is_empty() {
        return Err(DefinitionError::invalid(
            "service.locality",
            "zone cannot be set without region",
        ));
    }
    Ok((!locality.region.is_empty()).then_some(locality))
}

fn judge_ports(service: &v1::Service) -> Result<(), DefinitionError> {
    let refuse = |message: String| Err(DefinitionError::invalid("service.ports", message));
    if service.port != 0 && !service.ports.is_empty() {
        return refuse("Port and Ports are mutually exclusive".to_owned());
    }
    if service.ports.iter().filter(|port| port.default).count() > 1 {
        return refuse("at most one of Ports may be the default".to_owned());
    }
    let mut names = BTreeSet::new();
    for port in &service.ports {
        if port.name.is_empty() || port.port == 0 {
            return refuse("each of Ports needs a Name and a Port".to_owned());
        }
        if !names.insert(port.name.as_str()) {
            return refuse(format!("port name {:?} is used more than once", port.name));
        }
    }
    Ok(())
}

/// A sidecar would be a registration of its own; leaving it out silently would leave the service
/// without the proxy its owner counts on.
fn judge_connect(service: &v1::Service) -> Result<(), DefinitionError> {
    let connect: Value = serde_json::from_str(&service.connect_json).unwrap_or(Value::Null);
    if connect["SidecarService"].is_null() {
        return Ok(());
    }
    Err(DefinitionError::invalid(
        "service.sidecar.unsupported",
        "Connect.SidecarService: sidecar services come with the mesh, a later version",
    ))
}

fn judge_kind(service: &v1::Service) -> Result<(), DefinitionError> {
    let refuse = |message: String| Err(DefinitionError::invalid("service.kind", message));
    if !KINDS.contains(&service.kind.as_str()) {
        return refuse(format!("invalid service kind {:?}", service.kind));
    }
    if service.kind != "connect-proxy" {
        return Ok(());
    }
    let proxy: Value = serde_json::from_str(&service.proxy_json).unwrap_or(Value::Null);
    match proxy["DestinationServiceName"].as_str().unwrap_or_default() {
        "" => {
            return refuse(
                "Proxy.DestinationServiceName must be non-empty for Connect proxy services"
                    .to_owned(),
            );
        }
        "*" => {
            return refuse(
                "Proxy.DestinationServiceName must not be a wildcard for Connect proxy services"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if service.port == 0 && service.socket_path.is_empty() && service.ports.is_empty() {
        return refuse("Port or SocketPath must be set for a Connect proxy".to_owned());
    }
    judge_upstreams(&proxy["Upstreams"])
}

/// Two upstreams cannot listen on the same address, port or socket.
fn judge_upstreams(upstreams: &Value) -> Result<(), DefinitionError> {
    let mut bound = BTreeSet::new();
    for upstream in upstreams.as_array().into_iter().flatten() {
        let text = |key: &str| upstream[key].as_str().unwrap_or_default().to_owned();
        if text("DestinationName").is_empty() {
            return Err(DefinitionError::invalid(
                "service.upstream",
                "upstream destination name cannot be empty",
            ));
        }
        let port = upstream["LocalBindPort"].as_u64().unwrap_or(0);
        let (mut address, socket) = (text("LocalBindAddress"), text("LocalBindSocketPath"));
        if port == 0 && socket.is_empty() {
            continue;
        }
        if address.is_empty() && socket.is_empty() {
            "127.0.0.1".clone_into(&mut address);
        }
        let listener = if socket.is_empty() {
            format!("{address}:{port}")
        } else {
            socket
        };
        if !bound.insert(listener.clone()) {
            let message =
                format!("upstreams cannot contain duplicates of local bind address {listener}");
            return Err(DefinitionError::invalid("service.upstream", message));
        }
    }
    Ok(())
}

/// `Proxy` or `Connect` in canonical JSON: Consul's key casing, sorted keys, empty when absent or empty.
fn mesh_json(fields: &mut Fields<'_>, name: &'static str) -> Result<String, DefinitionError> {
    let Some(value) = fields.take(&[name]) else {
        return Ok(String::new());
    };
    let merged = match value {
        Value::Array(items) if items.iter().all(Value::is_object) => Value::Object(
            items
                .iter()
                .filter_map(Value::as_object)
                .flat_map(|map| map.clone())
                .collect(),
        ),
        Value::Object(_) => value.clone(),
        other => return Err(fields.wrong(name, "an object", other)),
    };
    let canonical = canonical(&merged);
    if canonical.as_object().is_some_and(Map::is_empty) {
        return Ok(String::new());
    }
    let text = canonical.to_string();
    if text.len() > MESH_JSON_MAX {
        let message = format!(
            "{name} is {} bytes, more than the limit of {MESH_JSON_MAX}",
            text.len()
        );
        return Err(DefinitionError::invalid("service.mesh.too_large", message));
    }
    Ok(text)
}

/// Keys whose values belong to the user: copied as they are.
const OPAQUE: [&str; 3] = ["config", "meta", "arguments"];
/// Words Consul writes in capitals.
const CAPITALS: [&str; 5] = ["id", "tls", "ttl", "http", "tcp"];

fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| {
                    let inner = if OPAQUE.contains(&plain(key).as_str()) {
                        value.clone()
                    } else {
                        canonical(value)
                    };
                    (camel(key), inner)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// `destination_service_id` → `DestinationServiceID`; what has a capital already stays.
fn camel(key: &str) -> String {
    if key.chars().any(char::is_uppercase) {
        return key.to_owned();
    }
    key.split('_')
        .map(|word| {
            if CAPITALS.contains(&word) {
                return word.to_uppercase();
            }
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().chain(letters).collect::<String>())
                .unwrap_or_default()
        })
        .collect()
}

/// `Check` and `Checks` together; each gets its service, an id and a name.
fn checks(
    fields: &mut Fields<'_>,
    service: &v1::Service,
    unknown: UnknownKeys,
) -> Result<Vec<CheckDefinition>, DefinitionError> {
    let mut values: Vec<(String, &Value)> = Vec::new();
    for (n, value) in fields.list(&["Checks"])?.into_iter().enumerate() {
        values.push((format!("Checks[{n}]"), value));
    }
    for value in fields.list(&["Check"])? {
        // Clients send `"Check":{}` for none.
        if value.as_object().is_some_and(|map| !map.is_empty()) {
            values.push(("Check".to_owned(), value));
        }
    }
    if values.len() > CHECKS_MAX {
        return Err(DefinitionError::TooMany {
            path: "Checks".to_owned(),
            count: values.len(),
            max: CHECKS_MAX,
        });
    }
    let several = values.len() > 1;
    let mut ids = BTreeSet::new();
    let mut out = Vec::with_capacity(values.len());
    for (n, (path, value)) in values.into_iter().enumerate() {
        let mut check = parse_check(&path, value, unknown).map_err(in_check)?;
        check.service_id.clone_from(&service.id);
        if check.id.is_empty() {
            check.id = if several {
                format!("service:{}:{}", service.id, n + 1)
            } else {
                format!("service:{}", service.id)
            };
        }
        if check.name.is_empty() {
            check.name = format!("Service '{}' check", service.name);
        }
        if !ids.insert(check.id.clone()) {
            let message = format!("check ID {:?} is used more than once", check.id);
            return Err(DefinitionError::invalid("service.check.duplicate", message));
        }
        out.push(check);
    }
    Ok(out)
}

pub(super) fn in_check(error: DefinitionError) -> DefinitionError {
    match error {
        DefinitionError::Invalid { reason, message } if reason != "check.status" => {
            DefinitionError::Invalid {
                reason,
                message: format!("Invalid check: {message}"),
            }
        }
        other => other,
    }
}

/// The registration form of `service`, which [`parse`] reads back to the same record. Keys are sorted.
pub(super) fn to_value(service: &v1::Service, token: &str) -> Value {
    let addresses: BTreeMap<_, _> = service
        .tagged_addresses
        .iter()
        .map(|(tag, at)| (tag, json!({"Address": at.address, "Port": at.port})))
        .collect();
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| json!({"Name": port.name, "Port": port.port, "Default": port.default}))
        .collect();
    let mesh = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    json!({
        "ID": service.id,
        "Name": service.name,
        "Tags": service.tags,
        "Address": service.address,
        "Port": service.port,
        "Meta": service.meta.iter().collect::<BTreeMap<_, _>>(),
        "TaggedAddresses": addresses,
        "Weights": service.weights.as_ref().map(|w| json!({"Passing": w.passing, "Warning": w.warning})),
        "EnableTagOverride": service.enable_tag_override,
        "Kind": service.kind,
        "SocketPath": service.socket_path,
        "Ports": ports,
        "Locality": service.locality.as_ref().map(|l| json!({"Region": l.region, "Zone": l.zone})),
        "Proxy": mesh(&service.proxy_json),
        "Connect": mesh(&service.connect_json),
        "Token": token,
    })
}
