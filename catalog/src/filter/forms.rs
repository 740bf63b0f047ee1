//! Which selectors each form of record has (CONSUL.md B.3, "Selector roots").
//!
//! Owns: the forms of nodes, services, instances (flat), instances with health, and checks.
//! Never: evaluates an operator.

use std::collections::BTreeMap;

use weft_proto::v1::{Check, Node, Service, ServiceAddress};

use super::{Kind, Selectable, Value};
use crate::read::{Instance, InstanceHealth};

type Test<'t> = &'t mut dyn FnMut(Value<'_>) -> bool;

fn in_map(map: &BTreeMap<String, String>, rest: &[&str], test: Test<'_>) -> bool {
    match rest {
        [] => test(Value::Map(map)),
        [key] => test(
            map.get(*key)
                .map_or(Value::Missing, |value| Value::Text(value)),
        ),
        _ => false,
    }
}

const fn map_kind(rest: &[&str]) -> Option<Kind> {
    match rest {
        [] => Some(Kind::Map),
        [_] => Some(Kind::Text),
        _ => None,
    }
}

fn in_addresses(map: &BTreeMap<String, ServiceAddress>, rest: &[&str], test: Test<'_>) -> bool {
    match rest {
        [] => test(Value::Names(
            &map.keys().map(String::as_str).collect::<Vec<_>>(),
        )),
        [name, field] => test(match (map.get(*name), *field) {
            (Some(address), "Address") => Value::Text(&address.address),
            (Some(address), _) => Value::Number(i64::from(address.port)),
            (None, _) => Value::Missing,
        }),
        _ => false,
    }
}

fn addresses_kind(rest: &[&str]) -> Option<Kind> {
    match rest {
        [] => Some(Kind::Map),
        [_, "Address"] => Some(Kind::Text),
        [_, "Port"] => Some(Kind::Number),
        _ => None,
    }
}

/// A field kept as JSON: read only when a selector asks for it. What is not there has the `kind`'s zero value, as
/// fields of records do.
fn in_json(json: &str, rest: &[&str], kind: Option<Kind>, test: Test<'_>) -> bool {
    let zero = match kind {
        Some(Kind::Text) => Value::Text(""),
        Some(Kind::Number) => Value::Number(0),
        Some(Kind::Bool) => Value::Bool(false),
        Some(Kind::List | Kind::Records | Kind::Map) => Value::Names(&[]),
        None => Value::Missing,
    };
    let root = serde_json::from_str(json).unwrap_or_default();
    walk_json(&root, rest, zero, test)
}

fn walk_json(value: &serde_json::Value, rest: &[&str], zero: Value<'_>, test: Test<'_>) -> bool {
    use serde_json::Value as Json;
    match (value, rest) {
        (Json::Array(items), []) => test(Value::Names(
            &items
                .iter()
                .map(|item| item.as_str().unwrap_or_default())
                .collect::<Vec<_>>(),
        )),
        (Json::Array(items), rest) => items.iter().any(|item| walk_json(item, rest, zero, test)),
        (Json::Object(map), [key, further @ ..]) => match map.get(*key) {
            Some(inner) if !inner.is_null() => walk_json(inner, further, zero, test),
            _ => walk_json(&Json::Null, rest, zero, test),
        },
        (Json::Object(map), []) => test(Value::Names(
            &map.keys().map(String::as_str).collect::<Vec<_>>(),
        )),
        (Json::String(text), []) => test(Value::Text(text)),
        (Json::Bool(boolean), []) => test(Value::Bool(*boolean)),
        (Json::Number(number), []) => test(number.as_i64().map_or(zero, Value::Number)),
        // Nothing is one of no upstreams.
        (_, ["Upstreams", _, ..]) => false,
        _ => test(zero),
    }
}

fn proxy_kind(rest: &[&str]) -> Option<Kind> {
    Some(match rest {
        ["Upstreams"] => Kind::Records,
        ["LocalServicePort"]
        | ["TransparentProxy", "OutboundListenerPort"]
        | ["Upstreams", "LocalBindPort"] => Kind::Number,
        ["TransparentProxy", "DialedDirectly"] | ["Expose", "Checks"] => Kind::Bool,
        [
            "Mode"
            | "DestinationServiceName"
            | "DestinationServiceID"
            | "LocalServiceAddress"
            | "LocalServiceSocketPath",
        ]
        | ["MeshGateway", "Mode"]
        | ["Upstreams", "MeshGateway", "Mode"]
        | [
            "Upstreams",
            "DestinationType"
            | "DestinationName"
            | "DestinationPeer"
            | "Datacenter"
            | "LocalBindAddress"
            | "LocalBindSocketPath",
        ] => Kind::Text,
        _ => return None,
    })
}

impl Selectable for Node {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["ID" | "Node" | "Address" | "Datacenter"] => Some(Kind::Text),
            ["Meta" | "TaggedAddresses", rest @ ..] => map_kind(rest),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: Test<'_>) -> bool {
        match selector {
            ["ID"] => test(Value::Text(&self.id)),
            ["Node"] => test(Value::Text(&self.name)),
            ["Address"] => test(Value::Text(&self.address)),
            ["Datacenter"] => test(Value::Text(&self.datacenter)),
            ["Meta", rest @ ..] => in_map(&self.meta, rest, test),
            ["TaggedAddresses", rest @ ..] => in_map(&self.tagged_addresses, rest, test),
            _ => false,
        }
    }
}

impl Selectable for Service {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["ID" | "Service" | "Address" | "Kind" | "SocketPath"] => Some(Kind::Text),
            ["Port"] | ["Weights", "Passing" | "Warning"] => Some(Kind::Number),
            ["EnableTagOverride"] | ["Connect", "Native"] => Some(Kind::Bool),
            ["Tags"] => Some(Kind::List),
            ["Meta", rest @ ..] => map_kind(rest),
            ["TaggedAddresses", rest @ ..] => addresses_kind(rest),
            ["Proxy", rest @ ..] => proxy_kind(rest),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: Test<'_>) -> bool {
        let weights = || {
            self.weights.unwrap_or(weft_proto::v1::Weights {
                passing: 1,
                warning: 1,
            })
        };
        match selector {
            ["ID"] => test(Value::Text(&self.id)),
            ["Service"] => test(Value::Text(&self.name)),
            ["Address"] => test(Value::Text(&self.address)),
            ["Kind"] => test(Value::Text(&self.kind)),
            ["SocketPath"] => test(Value::Text(&self.socket_path)),
            ["Port"] => test(Value::Number(i64::from(self.port))),
            ["Weights", "Passing"] => test(Value::Number(i64::from(weights().passing))),
            ["Weights", "Warning"] => test(Value::Number(i64::from(weights().warning))),
            ["EnableTagOverride"] => test(Value::Bool(self.enable_tag_override)),
            ["Connect", rest @ ..] => in_json(&self.connect_json, rest, Self::kind(selector), test),
            ["Tags"] => test(Value::Texts(&self.tags)),
            ["Meta", rest @ ..] => in_map(&self.meta, rest, test),
            ["TaggedAddresses", rest @ ..] => in_addresses(&self.tagged_addresses, rest, test),
            ["Proxy", rest @ ..] => in_json(&self.proxy_json, rest, Self::kind(selector), test),
            _ => false,
        }
    }
}

/// The service form's name of a flat `Service…` selector.
fn unflat(first: &str) -> Option<&str> {
    match first {
        "ServiceName" => Some("Service"),
        "ServiceID" => Some("ID"),
        other => other
            .strip_prefix("Service")
            .filter(|rest| !matches!(*rest, "" | "Service")),
    }
}

impl Selectable for Instance<'_> {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["NodeMeta", rest @ ..] => map_kind(rest),
            ["Meta", ..] | [] => None,
            [first, rest @ ..] => match unflat(first) {
                Some(name) => Service::kind(&[&[name], rest].concat()),
                None => Node::kind(selector),
            },
        }
    }

    fn any(&self, selector: &[&str], test: Test<'_>) -> bool {
        match selector {
            ["NodeMeta", rest @ ..] => in_map(&self.node.meta, rest, test),
            [] => false,
            [first, rest @ ..] => match unflat(first) {
                Some(name) => self.service.any(&[&[name], rest].concat(), test),
                None => self.node.any(selector, test),
            },
        }
    }
}

impl Selectable for InstanceHealth<'_> {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["Node", rest @ ..] => Node::kind(rest),
            ["Service", rest @ ..] => Service::kind(rest),
            ["Checks"] => Some(Kind::Records),
            ["Checks", rest @ ..] => Check::kind(rest),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: Test<'_>) -> bool {
        match selector {
            ["Node", rest @ ..] => self.node.any(rest, test),
            ["Service", rest @ ..] => self.service.any(rest, test),
            ["Checks"] => test(Value::Names(
                &self
                    .checks
                    .iter()
                    .map(|check| check.id.as_str())
                    .collect::<Vec<_>>(),
            )),
            ["Checks", rest @ ..] => self.checks.iter().any(|check| check.any(rest, test)),
            _ => false,
        }
    }
}

impl Selectable for Check {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            [
                "Node" | "CheckID" | "Name" | "Status" | "Notes" | "Output" | "ServiceID"
                | "ServiceName" | "Type" | "Interval" | "Timeout",
            ] => Some(Kind::Text),
            ["ExposedPort"] => Some(Kind::Number),
            ["ServiceTags"] => Some(Kind::List),
            ["Definition", "TLSSkipVerify" | "GRPCUseTLS"] => Some(Kind::Bool),
            [
                "Definition",
                "HTTP" | "Method" | "Body" | "TCP" | "UDP" | "GRPC" | "TLSServerName",
            ] => Some(Kind::Text),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: Test<'_>) -> bool {
        match selector {
            ["Node"] => test(Value::Text(&self.node)),
            ["CheckID"] => test(Value::Text(&self.id)),
            ["Name"] => test(Value::Text(&self.name)),
            ["Status"] => test(Value::Text(&self.status)),
            ["Notes"] => test(Value::Text(&self.notes)),
            ["Output"] => test(Value::Text(&self.output)),
            ["ServiceID"] => test(Value::Text(&self.service_id)),
            ["ServiceName"] => test(Value::Text(&self.service_name)),
            ["Type"] => test(Value::Text(&self.r#type)),
            ["Interval"] => test(Value::Text(&self.interval)),
            ["Timeout"] => test(Value::Text(&self.timeout)),
            ["ExposedPort"] => test(Value::Number(i64::from(self.exposed_port))),
            ["ServiceTags"] => test(Value::Texts(&self.service_tags)),
            ["Definition", rest @ ..] => {
                in_json(&self.definition_json, rest, Self::kind(selector), test)
            }
            _ => false,
        }
    }
}
