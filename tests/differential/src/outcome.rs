//! What a step yielded on one side, as one JSON document ready to be compared.
//!
//! Owns: which headers matter and how a body is read. Never: compares.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

use crate::http::Answer;
use crate::normal::{Names, rank_indexes, sort_arrays, sort_members};
use crate::script::Qualifiers;

/// Headers compared word for word.
const COMPARED: [&str; 12] = [
    "Content-Type",
    "Allow",
    "Location",
    "Vary",
    "Content-Encoding",
    "X-Content-Type-Options",
    "Content-Security-Policy",
    "X-Consul-Knownleader",
    "X-Consul-Effective-Consistency",
    "X-Consul-Translate-Addresses",
    "X-Consul-Default-Acl-Policy",
    "X-Cache",
];

/// Headers of which only the presence is compared: their values are measurements or indexes.
const PRESENT: [&str; 5] = [
    "X-Consul-Index",
    "X-Consul-Lastcontact",
    "X-Consul-Contenthash",
    "X-Consul-Reason",
    "Age",
];

/// First words of output lines whose number differs between two right servers.
const COUNTED: [&str; 6] = ["CreateIndex", "ModifyIndex", "Index", "Term", "Size", "ID"];

/// The document of an HTTP answer: status, headers, form and body.
pub(crate) fn of_answer(answer: &Answer, names: &Names, with: &Qualifiers) -> Value {
    let mut headers = Map::new();
    for name in COMPARED {
        if let Some((spelled, value)) = answer
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
        {
            // Scripts grep for Consul's own headers: their spelling counts.
            let shown = if name.starts_with("X-Consul") {
                spelled
            } else {
                name
            };
            headers.insert(shown.to_owned(), Value::String(names.text(value)));
        }
    }
    for name in PRESENT {
        if let Some((spelled, _)) = answer
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
        {
            headers.insert(spelled.clone(), Value::String("present".to_owned()));
        }
    }
    let mut out = json!({"status": answer.status, "headers": headers});
    let body = plain_body(answer);
    if with.no_body {
        out["body"] = Value::String(
            if body.is_empty() {
                "empty"
            } else {
                "something"
            }
            .to_owned(),
        );
        return out;
    }
    let Some(mut parsed) = json_body(answer, &body) else {
        out["body"] = Value::String(names.text(&printable(&body)));
        return out;
    };
    out["form"] = Value::String(form(&body).to_owned());
    sort_members(&mut parsed);
    let newest = rank_indexes(&mut parsed, names.start_index);
    if let (Some(newest), Some(index)) = (newest, index_of(answer)) {
        let place = if index >= newest {
            "not below the body's"
        } else {
            "below the body's"
        };
        out["index"] = Value::String(place.to_owned());
    }
    out["body"] = names.value(&select(parsed, with));
    if with.unordered {
        sort_arrays(&mut out["body"]);
    }
    out
}

/// The answer's `X-Consul-Index`.
pub(crate) fn index_of(answer: &Answer) -> Option<u64> {
    answer.header("X-Consul-Index").and_then(|v| v.parse().ok())
}

/// The body without its content coding.
pub(crate) fn plain_body(answer: &Answer) -> Vec<u8> {
    if answer.header("Content-Encoding") != Some("gzip") {
        return answer.body.clone();
    }
    let mut plain = Vec::new();
    match GzDecoder::new(answer.body.as_slice()).read_to_end(&mut plain) {
        Ok(_) => plain,
        Err(error) => format!("<broken gzip: {error}>").into_bytes(),
    }
}

/// The lines of a command's output, normalised; columns are aligned to the longest word, so spaces are counted as one.
/// Numbers that follow one of [`COUNTED`] are indexes, terms or sizes of the server's own.
pub(crate) fn of_output(text: &[u8], names: &Names, with: &Qualifiers) -> Value {
    if with.no_body {
        return Value::String(
            if text.is_empty() {
                "empty"
            } else {
                "something"
            }
            .to_owned(),
        );
    }
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(|line| {
        let line = names.text(line);
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, number]
                if COUNTED.contains(&name) && number.bytes().any(|b| b.is_ascii_digit()) =>
            {
                format!("{name} <n>")
            }
            ref words => words.join(" "),
        }
    });
    let mut lines: Vec<String> = lines.collect();
    if with.unordered {
        lines.sort();
    }
    Value::Array(lines.into_iter().map(Value::String).collect())
}

fn json_body(answer: &Answer, body: &[u8]) -> Option<Value> {
    let is_json = answer
        .header("Content-Type")
        .is_some_and(|t| t.starts_with("application/json"));
    is_json.then(|| serde_json::from_slice(body).ok()).flatten()
}

/// `compact` when no space stands between tokens, `pretty` when lines are broken; a last newline is told apart.
fn form(body: &[u8]) -> &'static str {
    let (mut quoted, mut escaped, mut spaces, mut lines) = (false, false, false, 0);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'\n' if !quoted => lines += 1,
            b' ' if !quoted => spaces = true,
            _ => {}
        }
    }
    match (spaces, lines, body.ends_with(b"\n")) {
        (false, 0, _) => "compact",
        (false, 1, true) => "compact with a last newline",
        (_, _, true) => "pretty with a last newline",
        _ => "pretty",
    }
}

fn printable(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex: String = body.iter().take(64).map(|b| format!("{b:02x}")).collect();
            format!("<{} bytes: {hex}>", body.len())
        }
    }
}

fn select(mut value: Value, with: &Qualifiers) -> Value {
    for path in &with.drop {
        if let Some((parent, last)) = path
            .trim_start_matches('.')
            .rsplit_once('.')
            .or(Some(("", path.trim_start_matches('.'))))
        {
            for_each(&mut value, parent, &mut |v| {
                if let Value::Object(map) = v {
                    map.remove(last);
                }
            });
        }
    }
    if with.only.is_empty() {
        return value;
    }
    let parts = with.only.iter().map(|path| {
        (
            path.clone(),
            find(&value, path)
                .cloned()
                .unwrap_or(Value::String("<absent>".into())),
        )
    });
    Value::Object(parts.collect())
}

/// Calls `visit` on every value at `path`; `*` stands for any element.
fn for_each(value: &mut Value, path: &str, visit: &mut impl FnMut(&mut Value)) {
    if path.is_empty() {
        return visit(value);
    }
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        Value::Array(items) if first == "*" => {
            items.iter_mut().for_each(|v| for_each(v, rest, visit))
        }
        Value::Object(map) if first == "*" => {
            map.values_mut().for_each(|v| for_each(v, rest, visit))
        }
        Value::Object(map) => {
            if let Some(v) = map.get_mut(first) {
                for_each(v, rest, visit);
            }
        }
        Value::Array(items) => {
            if let Some(v) = first.parse::<usize>().ok().and_then(|n| items.get_mut(n)) {
                for_each(v, rest, visit);
            }
        }
        _ => {}
    }
}

/// The value at `.a.0.b`.
pub(crate) fn find<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .filter(|part| !part.is_empty())
        .try_fold(value, |v, part| match v {
            Value::Object(map) => map.get(part),
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(content_type: &str, body: &str) -> Answer {
        let headers = vec![
            ("Content-Type".to_owned(), content_type.to_owned()),
            ("X-Consul-Index".to_owned(), "7".to_owned()),
        ];
        Answer {
            status: 200,
            headers,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn forms_are_told_apart() {
        for (body, want) in [
            (r#"{"a b":"\" \n"}"#, "compact"),
            ("true\n", "compact with a last newline"),
            ("{\n    \"a\": 1\n}\n", "pretty with a last newline"),
            ("{ }", "pretty"),
        ] {
            assert_eq!(form(body.as_bytes()), want, "{body:?}");
        }
    }

    #[test]
    fn a_document_keeps_what_matters() {
        let with = Qualifiers {
            drop: vec![".*.Gone".into()],
            ..Qualifiers::default()
        };
        let out = of_answer(
            &answer("application/json", r#"[{"ModifyIndex":7,"Gone":1}]"#),
            &Names::default(),
            &with,
        );
        assert_eq!(out["body"], json!([{"ModifyIndex": "#1"}]));
        assert_eq!(out["index"], "not below the body's");
        let only = Qualifiers {
            only: vec![".a".into(), ".b".into()],
            ..Qualifiers::default()
        };
        let out = of_answer(
            &answer("application/json", r#"{"a":1,"c":2}"#),
            &Names::default(),
            &only,
        );
        assert_eq!(out["body"], json!({".a": 1, ".b": "<absent>"}));
        let text = of_answer(
            &answer("text/plain", "[1]"),
            &Names::default(),
            &Qualifiers::default(),
        );
        assert_eq!(text["body"], "[1]");
    }
}
