//! The comparison: two documents of one step yield the places where they differ.
//!
//! Owns: the walk over two documents. Never: knows which differences are expected.

use serde_json::Value;

/// How an absent value is written in a [`Delta`].
pub(crate) const ABSENT: &str = "<absent>";

/// One place where the two answers differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    /// For example `status`, `headers.Allow` or `body.0.Service.Tags`.
    pub(crate) path: String,
    pub(crate) consul: String,
    pub(crate) weft: String,
}

/// All places where the documents differ; none when they are equal.
pub(crate) fn compare(consul: &Value, weft: &Value) -> Vec<Delta> {
    let mut deltas = Vec::new();
    walk("", Some(consul), Some(weft), &mut deltas);
    deltas
}

fn walk(path: &str, consul: Option<&Value>, weft: Option<&Value>, deltas: &mut Vec<Delta>) {
    match (consul, weft) {
        (a, b) if a == b => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                walk(&join(path, key), a.get(key), b.get(key), deltas);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for position in 0..a.len().max(b.len()) {
                walk(
                    &join(path, &position.to_string()),
                    a.get(position),
                    b.get(position),
                    deltas,
                );
            }
        }
        (a, b) => deltas.push(Delta {
            path: path.to_owned(),
            consul: shown(a),
            weft: shown(b),
        }),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(consul: Value, weft: Value, want: &[(&str, &str, &str)]) {
        let got = compare(&consul, &weft);
        let got: Vec<_> = got
            .iter()
            .map(|d| (d.path.as_str(), d.consul.as_str(), d.weft.as_str()))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn every_place_is_named() {
        check(json!({"a": [1, 2]}), json!({"a": [1, 2]}), &[]);
        check(
            json!({"status": 200}),
            json!({"status": 404}),
            &[("status", "200", "404")],
        );
        check(json!({"a": []}), json!({"a": null}), &[("a", "[]", "null")]);
        check(
            json!({"a": {}}),
            json!({"a": {"b": ""}}),
            &[("a.b", ABSENT, "\"\"")],
        );
        check(json!([1]), json!([1, "1"]), &[("1", ABSENT, "\"1\"")]);
        check(
            json!([1, 2]),
            json!([2, 1]),
            &[("0", "1", "2"), ("1", "2", "1")],
        );
    }
}
