//! `/v1/openapi.json`: the API described for machines, from the table of routes.
//!
//! Owns: the document's form. Never: describes what the table does not have.
//! Source: OpenAPI Specification 3.1.

use std::collections::BTreeMap;

use http::Method;
use weft_proto::json::Json;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use super::route::{Need, Route};
use super::table::TABLE;

/// Parameters that every route takes.
const COMMON: [&str; 5] = ["dc", "token", "pretty", "ns", "partition"];

pub(super) async fn document(_: Call) -> Result<Reply, Failure> {
    Ok(Reply::written(|json| write(json, TABLE)))
}

fn write(json: &mut Json, table: &[Route]) {
    let mut paths: BTreeMap<String, Vec<&Route>> = BTreeMap::new();
    for route in table {
        paths.entry(template(route.path)).or_default().push(route);
    }
    json.object(|json| {
        json.key("openapi").string("3.1.0");
        json.key("info").object(|json| {
            json.key("title").string("weft");
            json.key("version").string(env!("CARGO_PKG_VERSION"));
            json.key("description")
                .string("Consul's HTTP API v1, as this version of weft answers it.");
        });
        json.key("paths").object(|json| {
            for (path, routes) in &paths {
                json.dynamic_key(path).object(|json| {
                    for route in routes {
                        json.dynamic_key(&route.method.as_str().to_ascii_lowercase())
                            .object(|json| write_route(json, route));
                    }
                });
            }
        });
        json.key("components").object(|json| {
            json.key("securitySchemes").object(|json| {
                json.key("token").object(|json| {
                    json.key("type").string("apiKey");
                    json.key("in").string("header");
                    json.key("name").string("X-Consul-Token");
                });
            });
        });
    });
}

/// A path that takes a name says so: `/v1/kv/` is `/v1/kv/{name}`.
fn template(path: &str) -> String {
    if path.ends_with('/') {
        format!("{path}{{name}}")
    } else {
        path.to_owned()
    }
}

fn write_route(json: &mut Json, route: &Route) {
    json.key("operationId").string(&operation_id(route));
    json.key("summary").string(route.summary);
    json.key("tags").strings([family(route.path)]);
    json.key("parameters").array(|json| {
        if route.path.ends_with('/') {
            parameter(json, "name", "path", true);
        }
        for name in route.parameters.iter().copied().chain(COMMON) {
            parameter(json, name, "query", false);
        }
    });
    if *route.method == Method::PUT || *route.method == Method::POST {
        json.key("requestBody").object(|json| {
            json.key("required").boolean(false);
            json.key("content").object(|json| {
                json.dynamic_key("*/*").object(|json| {
                    json.key("schema").object(|_| {});
                });
            });
        });
    }
    json.key("responses").object(|json| {
        described(json, "200", "The answer.");
        described(
            json,
            "400",
            "The request cannot be understood; the text says where.",
        );
        if !matches!(route.need, Need::Public(_)) {
            described(json, "403", "The token lacks a right.");
        }
        described(
            json,
            "500",
            "No leader, or the outcome is not known; the text says which.",
        );
    });
    if !matches!(route.need, Need::Public(_)) {
        json.key("security").array(|json| {
            json.object(|json| json.key("token").array(|_| {}));
            json.object(|_| {});
        });
    }
}

fn parameter(json: &mut Json, name: &str, place: &str, required: bool) {
    json.object(|json| {
        json.key("name").string(name);
        json.key("in").string(place);
        if required {
            json.key("required").boolean(true);
        }
        json.key("schema")
            .object(|json| json.key("type").string("string"));
    });
}

fn described(json: &mut Json, status: &str, text: &str) {
    json.dynamic_key(status)
        .object(|json| json.key("description").string(text));
}

/// `kv`, `agent`, `catalog`, …
fn family(path: &str) -> &str {
    path.split('/').nth(2).unwrap_or_default()
}

/// `get_kv_name`: unique, because method and path are.
fn operation_id(route: &Route) -> String {
    let words = template(route.path.trim_start_matches("/v1/"));
    let plain: String = words
        .chars()
        .filter(|c| !matches!(c, '{' | '}'))
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("{}_{plain}", route.method.as_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> serde_json::Value {
        let mut json = Json::with_capacity(1 << 16);
        write(&mut json, TABLE);
        serde_json::from_slice(&json.into_bytes()).unwrap()
    }

    #[test]
    fn every_route_is_there_once() {
        let made = made();
        let paths = made["paths"].as_object().unwrap();
        let operations: Vec<_> = paths
            .values()
            .flat_map(|path| path.as_object().unwrap().values())
            .collect();
        assert_eq!(operations.len(), TABLE.len());
        let ids: std::collections::BTreeSet<_> = operations
            .iter()
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), TABLE.len(), "operation ids are unique");
    }

    #[test]
    fn a_route_says_what_it_takes() {
        let made = made();
        let read = &made["paths"]["/v1/kv/{name}"]["get"];
        let parameters = read["parameters"].as_array().unwrap();
        let has = |name: &str, place: &str| {
            parameters
                .iter()
                .any(|p| p["name"] == name && p["in"] == place)
        };
        assert!(has("name", "path") && has("recurse", "query") && has("dc", "query"));
        assert!(read["security"].is_array());
        let leader = &made["paths"]["/v1/status/leader"]["get"];
        assert!(leader["security"].is_null(), "it needs no token");
    }
}
