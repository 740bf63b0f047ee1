//! A proxy's registration with what config entries say beside it: what `merge-central-config` answers, and what the
//! proxy works by.
//!
//! Owns: the order of merging (CONSUL.md E.1): proxy-defaults, service-defaults of the service the
//! proxy stands for, its registration; for an upstream: the protocol of all proxies, of the upstream,
//! then what the service says of its upstreams, then the registration.
//! Never: changes what is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_catalog::config_entry::{Entry, Kind};
use weft_proto::v1;

/// The kind of instance that is merged.
const SIDECAR: &str = "connect-proxy";

/// Reads an entry, with the index of the answer.
pub(crate) type Fetch<'f> = dyn FnMut(Kind, &str) -> (u64, Option<Arc<Entry>>) + 'f;

/// The entries that some instances' proxies depend on.
#[derive(Debug, Default)]
pub(crate) struct Central {
    /// The highest index among them; those missing count too, for they may come.
    pub(crate) index: u64,
    proxies: Value,
    services: BTreeMap<String, Value>,
}

impl Central {
    /// What these instances need: `fetch` reads an entry as it is stored, with the index of the answer.
    pub(crate) fn read<'a>(
        instances: impl Iterator<Item = &'a v1::Service>,
        fetch: &mut Fetch<'_>,
    ) -> Self {
        let mut central = Self::default();
        let mut any = false;
        for service in instances.filter(|service| service.kind == SIDECAR) {
            any = true;
            let proxy = proxy_of(service);
            central.need(fetch, &text(&proxy, "DestinationServiceName"));
            for upstream in list(&proxy, "Upstreams") {
                central.need(fetch, &text(upstream, "DestinationName"));
            }
        }
        if any {
            central.proxies = central.fetch(fetch, Kind::ProxyDefaults, "global");
        }
        central
    }

    fn need(&mut self, fetch: &mut Fetch<'_>, service: &str) {
        let service = service.to_ascii_lowercase();
        if service.is_empty() || self.services.contains_key(&service) {
            return;
        }
        let value = self.fetch(fetch, Kind::ServiceDefaults, &service);
        self.services.insert(service, value);
    }

    fn fetch(&mut self, fetch: &mut Fetch<'_>, kind: Kind, name: &str) -> Value {
        let (index, entry) = fetch(kind, name);
        self.index = self.index.max(index);
        let value = entry.map(|entry| serde_json::from_str(entry.json()));
        value.and_then(Result::ok).unwrap_or_default()
    }

    /// The instance as it is to be shown; `None`: as it is registered.
    pub(crate) fn merged(&self, service: &v1::Service) -> Option<v1::Service> {
        if service.kind != SIDECAR {
            return None;
        }
        let mut proxy = proxy_of(service);
        let own = self.defaults(&text(&proxy, "DestinationServiceName"));
        self.merge_proxy(&mut proxy, own);
        for upstream in proxy
            .get_mut("Upstreams")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            self.merge_upstream(upstream, own);
        }
        Some(v1::Service {
            proxy_json: weft_proto::json::Json::text_of(&proxy),
            ..service.clone()
        })
    }

    fn defaults(&self, service: &str) -> &Value {
        self.services
            .get(&service.to_ascii_lowercase())
            .unwrap_or(&Value::Null)
    }

    fn merge_proxy(&self, proxy: &mut Value, own: &Value) {
        let mut config = Map::new();
        overlay(&mut config, &self.proxies["Config"]);
        overlay(&mut config, &service_settings(own));
        overlay(&mut config, &proxy["Config"]);
        put(proxy, "Config", Value::Object(config));
        for name in ["Mode", "MutualTLSMode"] {
            let chosen = first([&proxy[name], &own[name], &self.proxies[name]]);
            put(proxy, name, chosen);
        }
        for name in ["MeshGateway", "TransparentProxy", "Expose"] {
            let mut merged = Map::new();
            for layer in [&self.proxies[name], &own[name], &proxy[name]] {
                overlay_set(&mut merged, layer);
            }
            put(proxy, name, Value::Object(merged));
        }
        let logs = first([&proxy["AccessLogs"], &self.proxies["AccessLogs"]]);
        put(proxy, "AccessLogs", logs);
        if is_empty(&proxy["EnvoyExtensions"]) {
            let mut extensions: Vec<Value> =
                list(&self.proxies, "EnvoyExtensions").cloned().collect();
            extensions.extend(list(own, "EnvoyExtensions").cloned());
            put(proxy, "EnvoyExtensions", Value::Array(extensions));
        }
    }

    fn merge_upstream(&self, upstream: &mut Value, own: &Value) {
        let name = text(upstream, "DestinationName");
        let peer = text(upstream, "DestinationPeer");
        let kind = text(upstream, "DestinationType");
        if !(kind.is_empty() || kind == "service") {
            return;
        }
        let theirs = self.defaults(&name);
        let upstreams = &own["UpstreamConfig"];
        let defaults = &upstreams["Defaults"];
        let meant = |entry: &&Value| {
            text(entry, "Name").eq_ignore_ascii_case(&name)
                && text(entry, "Peer").eq_ignore_ascii_case(&peer)
        };
        let special = list(upstreams, "Overrides")
            .find(meant)
            .unwrap_or(&Value::Null);
        let mut config = Map::new();
        for protocol in [&self.proxies["Config"]["protocol"], &theirs["Protocol"]] {
            if !is_empty(protocol) {
                config.insert("protocol".to_owned(), protocol.clone());
            }
        }
        overlay(&mut config, &upstream_settings(defaults));
        overlay(&mut config, &upstream_settings(special));
        overlay(&mut config, &upstream["Config"]);
        put(upstream, "Config", Value::Object(config));
        let mode = |layer: &Value| layer["MeshGateway"]["Mode"].clone();
        let chosen = first([
            &mode(upstream),
            &mode(special),
            &mode(defaults),
            &mode(own),
            &mode(&self.proxies),
        ]);
        if !is_empty(&chosen) {
            put(upstream, "MeshGateway", json!({ "Mode": chosen }));
        }
    }
}

fn proxy_of(service: &v1::Service) -> Value {
    match serde_json::from_str(&service.proxy_json) {
        Ok(Value::Object(map)) => Value::Object(map),
        _ => Value::Object(Map::new()),
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

/// Nothing is set: absent, zero, or empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The first that is set.
fn first<const N: usize>(layers: [&Value; N]) -> Value {
    let found = layers.into_iter().find(|value| !is_empty(value));
    found.cloned().unwrap_or_default()
}

/// Sets a member, or leaves it as it is when there is nothing to set.
fn put(object: &mut Value, name: &str, value: Value) {
    if !is_empty(&value) {
        object[name] = value;
    }
}

fn overlay(below: &mut Map<String, Value>, above: &Value) {
    for (name, value) in above.as_object().into_iter().flatten() {
        below.insert(name.clone(), value.clone());
    }
}

/// As [`overlay`], of members that are set.
fn overlay_set(below: &mut Map<String, Value>, above: &Value) {
    for (name, value) in above.as_object().into_iter().flatten() {
        if !is_empty(value) {
            below.insert(name.clone(), value.clone());
        }
    }
}

/// What service-defaults put into a proxy's opaque settings.
fn service_settings(defaults: &Value) -> Value {
    settings(
        defaults,
        &[
            ("Protocol", "protocol"),
            ("BalanceInboundConnections", "balance_inbound_connections"),
            ("MaxInboundConnections", "max_inbound_connections"),
            ("LocalConnectTimeoutMs", "local_connect_timeout_ms"),
            ("LocalRequestTimeoutMs", "local_request_timeout_ms"),
            ("MaxRequestHeadersKB", "max_request_headers_kb"),
        ],
    )
}

/// What a service says of an upstream, as that upstream's opaque settings.
fn upstream_settings(entry: &Value) -> Value {
    settings(
        entry,
        &[
            ("EnvoyListenerJSON", "envoy_listener_json"),
            ("EnvoyClusterJSON", "envoy_cluster_json"),
            ("Protocol", "protocol"),
            ("ConnectTimeoutMs", "connect_timeout_ms"),
            ("Limits", "limits"),
            ("PassiveHealthCheck", "passive_health_check"),
            ("BalanceOutboundConnections", "balance_outbound_connections"),
        ],
    )
}

fn settings(entry: &Value, names: &[(&str, &str)]) -> Value {
    let mut out = Map::new();
    for (from, to) in names {
        if !is_empty(&entry[*from]) {
            out.insert((*to).to_owned(), entry[*from].clone());
        }
    }
    Value::Object(out)
}
