//! The records as answers show them.
//!
//! Owns: one writer per shape that the API answers with, in the field order of Consul.
//! Never: filters, sorts or reads state.
//! Source: Consul HTTP API, "Catalog", "Health", "KV Store", "Session"; CONSUL.md A.2–A.5.

use super::write::Json;
use crate::v1;

/// A node of `/catalog/nodes`, and the `Node` of a health row.
pub fn node(json: &mut Json, node: &v1::Node) {
    json.object(|json| {
        json.key("ID").string(&node.id);
        json.key("Node").string(&node.name);
        json.key("Address").string(&node.address);
        json.key("Datacenter").string(&node.datacenter);
        json.key("TaggedAddresses")
            .string_map(&node.tagged_addresses);
        json.key("Meta").string_map(&node.meta);
        indexes(json, node.create_index, node.modify_index);
    });
}

fn indexes(json: &mut Json, create_index: u64, modify_index: u64) {
    json.key("CreateIndex").number(create_index);
    json.key("ModifyIndex").number(modify_index);
}

/// The `Service` of a health row and of `/catalog/node`.
pub fn service(json: &mut Json, service: &v1::Service) {
    json.object(|json| {
        if !service.kind.is_empty() {
            json.key("Kind").string(&service.kind);
        }
        json.key("ID").string(&service.id);
        json.key("Service").string(&service.name);
        json.key("Tags").strings(&service.tags);
        json.key("Address").string(&service.address);
        json.key("TaggedAddresses");
        tagged_addresses(json, service);
        json.key("Meta").string_map(&service.meta);
        json.key("Port").number(service.port.into());
        if !service.ports.is_empty() {
            json.key("Ports");
            ports(json, service);
        }
        if !service.socket_path.is_empty() {
            json.key("SocketPath").string(&service.socket_path);
        }
        json.key("Weights");
        weights(json, service);
        json.key("EnableTagOverride")
            .boolean(service.enable_tag_override);
        json.key("Proxy")
            .raw(or_else(&service.proxy_json, EMPTY_PROXY));
        json.key("Connect")
            .raw(or_else(&service.connect_json, "{}"));
        locality(json, "Locality", service);
        json.key("PeerName").string("");
        indexes(json, service.create_index, service.modify_index);
    });
}

/// What a service without a proxy section shows.
const EMPTY_PROXY: &str = r#"{"Mode":"","MeshGateway":{},"Expose":{}}"#;

fn or_else<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// The service of `/agent/services` and `/agent/service/:id`, without the closing members of the
/// latter, which `more` writes.
pub fn agent_service(
    json: &mut Json,
    service: &v1::Service,
    datacenter: &str,
    more: impl FnOnce(&mut Json),
) {
    json.object(|json| {
        if !service.kind.is_empty() {
            json.key("Kind").string(&service.kind);
        }
        json.key("ID").string(&service.id);
        json.key("Service").string(&service.name);
        json.key("Tags").strings(&service.tags);
        json.key("Meta").string_map(&service.meta);
        json.key("Port").number(service.port.into());
        if !service.ports.is_empty() {
            json.key("Ports");
            ports(json, service);
        }
        json.key("Address").string(&service.address);
        if !service.socket_path.is_empty() {
            json.key("SocketPath").string(&service.socket_path);
        }
        json.key("TaggedAddresses");
        tagged_addresses(json, service);
        json.key("Weights");
        weights(json, service);
        json.key("EnableTagOverride")
            .boolean(service.enable_tag_override);
        if !service.proxy_json.is_empty() {
            json.key("Proxy").raw(&service.proxy_json);
        }
        if !service.connect_json.is_empty() {
            json.key("Connect").raw(&service.connect_json);
        }
        locality(json, "Locality", service);
        json.key("Datacenter").string(datacenter);
        more(json);
    });
}

/// The flat row of `/catalog/service/:name`.
pub fn service_node(json: &mut Json, node: &v1::Node, service: &v1::Service) {
    json.object(|json| {
        json.key("ID").string(&node.id);
        json.key("Node").string(&node.name);
        json.key("Address").string(&node.address);
        json.key("Datacenter").string(&node.datacenter);
        json.key("TaggedAddresses")
            .string_map(&node.tagged_addresses);
        json.key("NodeMeta").string_map(&node.meta);
        json.key("ServiceKind").string(&service.kind);
        json.key("ServiceID").string(&service.id);
        json.key("ServiceName").string(&service.name);
        json.key("ServiceTags").strings(&service.tags);
        json.key("ServiceAddress").string(&service.address);
        json.key("ServiceTaggedAddresses");
        tagged_addresses(json, service);
        json.key("ServiceWeights");
        weights(json, service);
        json.key("ServiceMeta").string_map(&service.meta);
        json.key("ServicePort").number(service.port.into());
        if !service.ports.is_empty() {
            json.key("ServicePorts");
            ports(json, service);
        }
        json.key("ServiceSocketPath").string(&service.socket_path);
        json.key("ServiceEnableTagOverride")
            .boolean(service.enable_tag_override);
        json.key("ServiceProxy")
            .raw(or_else(&service.proxy_json, EMPTY_PROXY));
        json.key("ServiceConnect")
            .raw(or_else(&service.connect_json, "{}"));
        locality(json, "ServiceLocality", service);
        indexes(json, service.create_index, service.modify_index);
    });
}

fn tagged_addresses(json: &mut Json, service: &v1::Service) {
    json.object(|json| {
        for (name, tagged) in &service.tagged_addresses {
            json.dynamic_key(name).object(|json| {
                json.key("Address").string(&tagged.address);
                json.key("Port").number(tagged.port.into());
            });
        }
    });
}

fn ports(json: &mut Json, service: &v1::Service) {
    json.list(&service.ports, |json, port| {
        json.object(|json| {
            json.key("Name").string(&port.name);
            json.key("Port").number(port.port.into());
            json.key("Default").boolean(port.default);
        });
    });
}

fn weights(json: &mut Json, service: &v1::Service) {
    let (passing, warning) = service
        .weights
        .as_ref()
        .map_or((1, 1), |w| (w.passing, w.warning));
    json.object(|json| {
        json.key("Passing").number(passing.into());
        json.key("Warning").number(warning.into());
    });
}

fn locality(json: &mut Json, name: &'static str, service: &v1::Service) {
    if let Some(locality) = &service.locality {
        json.key(name).object(|json| {
            json.key("Region").string(&locality.region);
            json.key("Zone").string(&locality.zone);
        });
    }
}

/// A check of `/health/*` and `/agent/checks`.
pub fn check(json: &mut Json, check: &v1::Check) {
    json.object(|json| {
        json.key("Node").string(&check.node);
        json.key("CheckID").string(&check.id);
        json.key("Name").string(&check.name);
        json.key("Status").string(&check.status);
        json.key("Notes").string(&check.notes);
        json.key("Output").string(&check.output);
        json.key("ServiceID").string(&check.service_id);
        json.key("ServiceName").string(&check.service_name);
        json.key("ServiceTags").strings(&check.service_tags);
        json.key("Type").string(&check.r#type);
        json.key("Interval").string(&check.interval);
        json.key("Timeout").string(&check.timeout);
        json.key("ExposedPort").number(check.exposed_port.into());
        json.key("Definition")
            .raw(or_else(&check.definition_json, "{}"));
        indexes(json, check.create_index, check.modify_index);
    });
}

/// A key. `with_value` false shows `"Value":null`, as transactions do for writes.
pub fn kv(json: &mut Json, entry: &v1::KvEntry, with_value: bool) {
    json.object(|json| {
        json.key("LockIndex").number(entry.lock_index);
        json.key("Key").lossy(&entry.key);
        json.key("Flags").number(entry.flags);
        if with_value && !entry.value.is_empty() {
            json.key("Value").base64(&entry.value);
        } else {
            json.key("Value").null();
        }
        if !entry.session.is_empty() {
            json.key("Session").string(&entry.session);
        }
        indexes(json, entry.create_index, entry.modify_index);
    });
}

/// A session. `LockDelay` is in nanoseconds.
pub fn session(json: &mut Json, session: &v1::Session) {
    json.object(|json| {
        json.key("ID").string(&session.id);
        json.key("Name").string(&session.name);
        json.key("Node").string(&session.node);
        json.key("LockDelay")
            .number(session.lock_delay_millis.saturating_mul(1_000_000));
        json.key("Behavior").string(&session.behavior);
        json.key("TTL").string(&session.ttl);
        json.key("NodeChecks").strings(&session.node_checks);
        json.key("ServiceChecks");
        if session.service_checks.is_empty() {
            json.null();
        } else {
            json.list(&session.service_checks, |json, id| {
                json.object(|json| json.key("ID").string(id))
            });
        }
        indexes(json, session.create_index, session.modify_index);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Json)) -> String {
        let mut json = Json::default();
        write(&mut json);
        String::from_utf8(json.into_bytes()).unwrap()
    }

    #[test]
    fn a_key_shows_null_for_an_empty_value_and_no_session_when_unlocked() {
        let mut entry = v1::KvEntry {
            key: "a/b".into(),
            value: "hi".into(),
            create_index: 9,
            modify_index: 10,
            ..Default::default()
        };
        assert_eq!(
            text(|json| kv(json, &entry, true)),
            r#"{"LockIndex":0,"Key":"a/b","Flags":0,"Value":"aGk=","CreateIndex":9,"ModifyIndex":10}"#
        );
        entry.value.clear();
        entry.session = "s".to_owned();
        assert_eq!(
            text(|json| kv(json, &entry, true)),
            r#"{"LockIndex":0,"Key":"a/b","Flags":0,"Value":null,"Session":"s","CreateIndex":9,"ModifyIndex":10}"#
        );
    }

    #[test]
    fn a_session_shows_its_lock_delay_in_nanoseconds() {
        let record = v1::Session {
            id: "i".to_owned(),
            lock_delay_millis: 15_000,
            behavior: "release".to_owned(),
            node_checks: vec!["serfHealth".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            text(|json| session(json, &record)),
            r#"{"ID":"i","Name":"","Node":"","LockDelay":15000000000,"Behavior":"release","TTL":"","NodeChecks":["serfHealth"],"ServiceChecks":null,"CreateIndex":0,"ModifyIndex":0}"#
        );
    }

    #[test]
    fn absent_parts_of_a_service_have_consuls_defaults() {
        let record = v1::Service {
            id: "w1".to_owned(),
            name: "web".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            text(|json| service(json, &record)),
            r#"{"ID":"w1","Service":"web","Tags":[],"Address":"","TaggedAddresses":{},"Meta":{},"Port":0,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":0,"ModifyIndex":0}"#
        );
    }
}
