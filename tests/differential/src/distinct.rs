//! How much was asked: every step as what it asks for, without the names and numbers that make no other question of it.
//!
//! Owns: what counts as the same request. Two requests are one when method, path, parameters, sent headers and the shape
//! of the body agree; names of things in paths, variables and numbers of indexes and waits do not count.
//! Never: counts what was not played.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::script::{Body, Request, Step, Verb};

/// What a full run must have asked at least, so that cases cannot get lost unseen.
pub(crate) const LEAST_REQUESTS: usize = 600;
pub(crate) const LEAST_STORIES: usize = 40;

/// Paths behind which a name stands.
const NAMED: [&str; 34] = [
    "/v1/agent/check/deregister/",
    "/v1/agent/check/fail/",
    "/v1/agent/check/pass/",
    "/v1/agent/check/update/",
    "/v1/agent/check/warn/",
    "/v1/agent/force-leave/",
    "/v1/agent/health/service/id/",
    "/v1/agent/health/service/name/",
    "/v1/agent/join/",
    "/v1/agent/service/deregister/",
    "/v1/agent/service/maintenance/",
    "/v1/agent/service/",
    "/v1/catalog/connect/",
    "/v1/catalog/node-services/",
    "/v1/catalog/node/",
    "/v1/catalog/service/",
    "/v1/coordinate/node/",
    "/v1/event/fire/",
    "/v1/health/checks/",
    "/v1/health/connect/",
    "/v1/health/ingress/",
    "/v1/health/node/",
    "/v1/health/service/",
    "/v1/internal/ui/node/",
    "/v1/kv/",
    "/v1/session/destroy/",
    "/v1/session/info/",
    "/v1/session/node/",
    "/v1/session/renew/",
    "/v1/query/",
    "/v1/config/service-defaults/",
    "/v1/config/service-resolver/",
    "/v1/config/service-router/",
    "/v1/config/service-splitter/",
];

/// Fields whose value chooses what is done, as a path does.
const CHOOSING: [&str; 4] = ["verb", "kind", "protocol", "provider"];

/// Distinct questions of every kind.
#[derive(Debug, Default)]
pub(crate) struct Distinct {
    requests: BTreeSet<String>,
    questions: BTreeSet<String>,
    commands: BTreeSet<String>,
}

impl Distinct {
    pub(crate) fn count(&mut self, step: &Step) {
        match &step.verb {
            Verb::Http(request) | Verb::Watch(request) => {
                self.requests.insert(key(request, &step.with.headers));
            }
            Verb::Dig { .. } => {
                self.questions.insert(step.text.clone());
            }
            Verb::Packet(_) => {
                self.questions.insert(step.text.clone());
            }
            Verb::Cli(words) => {
                self.commands.insert(without_variables(&words.join(" ")));
            }
            Verb::Join | Verb::File { .. } | Verb::Pause(_) | Verb::Restart | Verb::Reload => {}
        }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn questions(&self) -> usize {
        self.questions.len()
    }

    pub(crate) fn commands(&self) -> usize {
        self.commands.len()
    }
}

fn key(request: &Request, headers: &[(String, String)]) -> String {
    let (path, query) = request
        .target
        .split_once('?')
        .unwrap_or((&request.target, ""));
    let mut parameters: Vec<String> = query.split('&').map(parameter).collect();
    parameters.sort();
    let mut headers: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", without_variables(value)))
        .collect();
    headers.sort();
    format!(
        "{} {}?{} {} {}",
        request.method,
        place(&without_variables(path)),
        parameters.join("&"),
        headers.join(","),
        body(&request.body)
    )
}

/// `wait` and `index` count as given, whatever their number.
fn parameter(text: &str) -> String {
    let text = without_variables(text);
    match text.split_once('=') {
        Some((name @ ("wait" | "index"), value)) => {
            let mut shape: Vec<char> = value
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            shape.dedup();
            format!("{name}={}", String::from_iter(shape))
        }
        _ => text,
    }
}

/// A plain name at the end of a path is any name; one with signs that have a meaning is its own question.
fn place(path: &str) -> String {
    let Some(prefix) = NAMED.iter().find(|prefix| path.starts_with(*prefix)) else {
        return path.to_owned();
    };
    let name = &path[prefix.len()..];
    let (name, action) = match name.rsplit_once('/') {
        Some((name, action @ ("execute" | "explain"))) => (name, action),
        _ => (name, ""),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:*".contains(c);
    if name.is_empty()
        || !name.chars().all(plain)
        || name.contains("//")
        || name.contains("..")
        || (*prefix == "/v1/agent/service/" && name == "register")
    {
        return path.to_owned();
    }
    let folder = if name.ends_with('/') { "/" } else { "" };
    format!("{prefix}*{folder}{action}")
}

fn body(body: &Body) -> String {
    match body {
        Body::None => String::new(),
        Body::Repeat(unit, _) => format!("many {unit}"),
        Body::Hex(_) => "bytes".to_owned(),
        Body::File(_) => "file".to_owned(),
        Body::Many(times, op) => format!("{times} of {}", shape_of(op)),
        Body::Text(text) => shape_of(text),
    }
}

/// The fields and kinds of values of a JSON text; other texts are all one.
fn shape_of(text: &str) -> String {
    match serde_json::from_str(&without_variables(text).replace('*', "0")) {
        Ok(value) => shape("", &value),
        Err(_) if text.starts_with(['{', '[']) => "broken".to_owned(),
        Err(_) => "text".to_owned(),
    }
}

fn shape(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(text) if CHOOSING.contains(&name.to_ascii_lowercase().as_str()) => {
            text.clone()
        }
        Value::String(text) => if text.is_empty() { "empty" } else { "text" }.to_owned(),
        Value::Array(items) => {
            let mut shapes: Vec<String> = items.iter().map(|item| shape("", item)).collect();
            shapes.dedup();
            format!("[{}]", shapes.join(","))
        }
        Value::Object(map) => {
            let fields: Vec<String> = map
                .iter()
                .map(|(name, value)| format!("{name}:{}", shape(name, value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
    }
}

/// `{name}` → `*`, where a variable stands.
fn without_variables(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let length = from[1..]
            .find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
            .unwrap_or(from.len() - 1);
        if length > 0 && from[1 + length..].starts_with('}') {
            out.push('*');
            rest = &from[length + 2..];
        } else {
            out.push('{');
            rest = &from[1..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;

    fn count(lines: &[&str]) -> (usize, usize, usize) {
        let family = script::parse("t", &format!("== s\n{}", lines.join("\n"))).unwrap();
        let mut distinct = Distinct::default();
        for step in &family.stories[0].steps {
            distinct.count(step);
        }
        (
            distinct.requests(),
            distinct.questions(),
            distinct.commands(),
        )
    }

    #[test]
    fn names_and_numbers_make_no_other_request() {
        for same in [
            ["GET /v1/kv/a", "GET /v1/kv/b/c"],
            ["GET /v1/kv/a?recurse&raw", "GET /v1/kv/a?raw&recurse"],
            [
                "GET /v1/kv/a?index={i}&wait=8s",
                "WATCH GET /v1/kv/b?index={j}&wait=10s",
            ],
            [
                "PUT /v1/session/create {\"TTL\":\"10s\"}",
                "PUT /v1/session/create {\"TTL\":\"abc\"}",
            ],
            ["PUT /v1/kv/a one", "PUT /v1/kv/a two"],
            [
                "PUT /v1/session/destroy/{s}",
                "PUT /v1/session/destroy/nobody",
            ],
            ["GET /v1/query/{q}/execute", "GET /v1/query/name/execute"],
            [
                "PUT /v1/txn [{\"KV\":{\"Verb\":\"get\",\"Index\":{m}}}]",
                "PUT /v1/txn [{\"KV\":{\"Verb\":\"get\",\"Index\":1}}]",
            ],
            ["DIG a.consul A", "DIG a.consul A"],
            ["CLI kv get {k}", "CLI kv get {l}"],
        ] {
            let (requests, questions, commands) = count(&same);
            assert_eq!(requests + questions + commands, 1, "{same:?}");
        }
    }

    #[test]
    fn other_questions_count() {
        for other in [
            ["GET /v1/kv/a", "GET /v1/kv/"],
            ["GET /v1/kv/a", "GET /v1/kv/a/"],
            ["GET /v1/kv/a", "GET /v1/kv/%2e%2e/a"],
            ["GET /v1/kv/a", "DELETE /v1/kv/a"],
            ["GET /v1/kv/a?raw", "GET /v1/kv/a"],
            ["GET /v1/kv/a", "GET /v1/kv/a\n  > Accept-Encoding: gzip"],
            ["PUT /v1/kv/a", "PUT /v1/kv/a x"],
            [
                "PUT /v1/session/create {\"TTL\":\"10s\"}",
                "PUT /v1/session/create {\"TTL\":10}",
            ],
            [
                "PUT /v1/txn [{\"KV\":{\"Verb\":\"get\"}}]",
                "PUT /v1/txn [{\"KV\":{\"Verb\":\"set\"}}]",
            ],
            ["GET /v1/agent/service/a", "GET /v1/agent/service/register"],
            ["GET /v1/query/a/execute", "GET /v1/query/a/explain"],
            ["DIG a.consul A", "DIG a.consul A tcp"],
            ["CLI kv get a", "CLI kv get b"],
        ] {
            let (requests, questions, commands) = count(&other);
            assert_eq!(requests + questions + commands, 2, "{other:?}");
        }
    }

    #[test]
    fn what_is_no_question_is_not_counted() {
        assert_eq!(
            count(&["PAUSE 1ms", "JOIN", "RESTART", "FILE a b"]),
            (0, 0, 0)
        );
    }
}
