//! Who stands for a service in the mesh: proxies, instances that speak it themselves, and gateways.
//!
//! Owns: reading that from an instance or a gateway's config entry.
//! Never: keeps it; `rows` does.
//! Source: Consul docs, "Connect", "Ingress gateway", "Terminating gateway".

pub mod registration;

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;
use weft_proto::v1;

use crate::config_entry::{Body, Entry, Kind};
use crate::keys::{self, Name};

/// The kind of instance that stands for another service.
pub const CONNECT_PROXY: &str = "connect-proxy";
/// In a gateway's list: every service.
pub(crate) const EVERY_SERVICE: &str = "*";
/// The scope of the instances that offer a service, among those of gateways' links.
pub(crate) const OFFERS: &str = "connect";

fn member<'v>(json: &'v Value, name: &str) -> Option<&'v Value> {
    json.as_object()?.get(name)
}

fn parsed(json: &str) -> Value {
    if json.is_empty() {
        return Value::Null;
    }
    // What is stored was written by us; what cannot be read says nothing.
    serde_json::from_str(json).unwrap_or_default()
}

/// The service that a proxy stands for.
#[must_use]
pub fn destination(service: &v1::Service) -> Option<String> {
    if service.kind != CONNECT_PROXY {
        return None;
    }
    let proxy = parsed(&service.proxy_json);
    let name = member(&proxy, "DestinationServiceName")?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether a proxy takes its service's traffic without the service knowing.
#[must_use]
pub fn is_transparent(service: &v1::Service) -> bool {
    service.kind == CONNECT_PROXY
        && member(&parsed(&service.proxy_json), "Mode")
            .is_some_and(|mode| mode.as_str() == Some("transparent"))
}

/// Whether the instance speaks the mesh's TLS itself.
#[must_use]
pub fn is_native(service: &v1::Service) -> bool {
    member(&parsed(&service.connect_json), "Native") == Some(&Value::Bool(true))
}

/// The service, folded, that an instance offers to the mesh.
pub(crate) fn offered(service: &v1::Service) -> Option<Name> {
    if service.kind == CONNECT_PROXY {
        return destination(service).map(|name| keys::name(&name));
    }
    is_native(service).then(|| keys::name(&service.name))
}

/// The services, folded, that a gateway's entry names; [`EVERY_SERVICE`] among them. Empty for other kinds.
pub(crate) fn linked(entry: &Entry) -> BTreeSet<Name> {
    let names: Vec<&str> = match &entry.body {
        Body::TerminatingGateway(gateway) => gateway
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect(),
        Body::IngressGateway(gateway) => gateway
            .listeners
            .iter()
            .flat_map(|listener| &listener.services)
            .map(|service| service.name.as_str())
            .collect(),
        _ => Vec::new(),
    };
    names.into_iter().map(keys::name).collect()
}

/// What links a gateway to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayService<'a> {
    /// The gateway, as its entry writes it.
    pub gateway: &'a str,
    /// The service.
    pub service: Cow<'a, str>,
    /// [`Kind::IngressGateway`] or [`Kind::TerminatingGateway`].
    pub kind: Kind,
    /// The listener's; 0 for a terminating gateway.
    pub port: u32,
    /// The listener's; empty for a terminating gateway.
    pub protocol: &'a str,
    /// Names under which an ingress gateway takes requests for the service.
    pub hosts: &'a [String],
    /// CA, certificate and key file, and the name asked for, of a terminating gateway.
    pub tls: [&'a str; 4],
    /// The entry says "every service", not this one.
    pub from_wildcard: bool,
    /// Of the entry.
    pub create_index: u64,
    /// Of the entry.
    pub modify_index: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_offers_its_destination_or_itself() {
        let service = |kind: &str, proxy: &str, connect: &str| v1::Service {
            name: "Web-Proxy".to_owned(),
            kind: kind.to_owned(),
            proxy_json: proxy.to_owned(),
            connect_json: connect.to_owned(),
            ..v1::Service::default()
        };
        let to_web = r#"{"DestinationServiceName":"Web","Mode":"transparent"}"#;
        for (service, offers) in [
            (service(CONNECT_PROXY, to_web, ""), Some("web")),
            (service("", to_web, ""), None),
            (service("", "", r#"{"Native":true}"#), Some("web-proxy")),
            (service("", "", r#"{"Native":false}"#), None),
            (service(CONNECT_PROXY, "", r#"{"Native":true}"#), None),
            (service(CONNECT_PROXY, "no JSON", ""), None),
            (service("mesh-gateway", "", ""), None),
        ] {
            assert_eq!(offered(&service).as_deref(), offers, "{service:?}");
        }
        assert!(is_transparent(&service(CONNECT_PROXY, to_web, "")));
        assert!(!is_transparent(&service(CONNECT_PROXY, "{}", "")));
    }
}
