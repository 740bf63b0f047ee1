//! The normaliser: takes out of an answer what two right servers may say differently.
//!
//! Owns: addresses, saved ids, other UUIDs, times, versions, content hashes and indexes. Never: drops a field, a status or a word.
//! An id saved by the story becomes `{its name}`, so answers must still agree on *which* id they carry.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The texts of one side that stand for the same thing on the other: (what it says, the common name).
#[derive(Debug, Default, Clone)]
pub(crate) struct Names {
    texts: Vec<(String, String)>,
    /// Indexes up to here come from the server's start, whose steps may interleave: their order means nothing.
    pub(crate) start_index: u64,
    /// A client agent is asked: Consul's tell errors of a server from their own.
    pub(crate) through_client: bool,
}

/// What Consul's client agents put before the words of a server.
const OF_SERVER: &str = "rpc error making call: ";

impl Names {
    /// Adds a text to recognise. Short texts (indexes, flags) would match by accident and are left alone.
    pub(crate) fn add(&mut self, text: &str, name: &str) {
        if text.len() >= 5 && !self.texts.iter().any(|(t, _)| t == text) {
            self.texts.push((text.to_owned(), format!("{{{name}}}")));
            self.texts.sort_by_key(|(t, _)| std::cmp::Reverse(t.len()));
        }
    }

    /// Takes an id for any other, although a part of it has a name.
    pub(crate) fn hide(&mut self, id: &str) {
        self.texts.insert(0, (id.to_owned(), "<uuid>".to_owned()));
    }

    /// The text with names, UUIDs and times replaced.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut out = if self.through_client {
            text.replace(OF_SERVER, "")
        } else {
            text.to_owned()
        };
        for (found, name) in &self.texts {
            out = replace_whole(&out, found, name);
        }
        replace_named_index(&replace_times(&replace_uuids(&out)))
    }

    /// The document with every text normalised, keys of objects included.
    pub(crate) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(s) => Value::String(self.text(s)),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.value(v)).collect()),
            Value::Object(map) => Value::Object(
                map.iter()
                    .map(|(k, v)| match v {
                        // Opaque by contract; that it changes with the content is what stories ask.
                        Value::String(hash) if k == "ContentHash" && !hash.is_empty() => {
                            (k.clone(), Value::String("<hash>".to_owned()))
                        }
                        _ => (self.text(k), self.value(v)),
                    })
                    .collect::<Map<_, _>>(),
            ),
            other => other.clone(),
        }
    }
}

/// Fields that hold a Raft index.
const INDEX_FIELDS: [&str; 4] = ["CreateIndex", "ModifyIndex", "Index", "LastIndex"];

/// Replaces each index by its rank within the answer (`#1` the oldest), so that order and equality are still compared.
/// Those up to `start` are `#start`. Returns the highest index found.
pub(crate) fn rank_indexes(value: &mut Value, start: u64) -> Option<u64> {
    let mut ranks = BTreeMap::new();
    visit_indexes(value, &mut |index| {
        if let Some(n) = index.as_u64().filter(|n| *n > 0) {
            ranks.insert(n, 0);
        }
    });
    for (position, rank) in ranks
        .range_mut(start.saturating_add(1)..)
        .map(|(_, rank)| rank)
        .enumerate()
    {
        *rank = position + 1;
    }
    visit_indexes(value, &mut |index| {
        if let Some(rank) = index.as_u64().and_then(|n| ranks.get(&n)) {
            *index = Value::String(if *rank == 0 {
                "#start".to_owned()
            } else {
                format!("#{rank}")
            });
        }
    });
    ranks.last_key_value().map(|(n, _)| *n)
}

fn visit_indexes(value: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| visit_indexes(v, visit)),
        Value::Object(map) => {
            for (key, field) in map.iter_mut() {
                if INDEX_FIELDS.contains(&key.as_str()) && field.is_number() {
                    visit(field);
                } else {
                    visit_indexes(field, visit);
                }
            }
        }
        _ => {}
    }
}

/// Sorts every array of the document by its text, for answers whose order is free.
pub(crate) fn sort_arrays(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort_arrays);
            items.sort_by_cached_key(Value::to_string);
        }
        Value::Object(map) => map.values_mut().for_each(sort_arrays),
        _ => {}
    }
}

/// Sorts gossip members by name: each agent lists them as it came to know them.
pub(crate) fn sort_members(value: &mut Value) {
    if let Value::Array(items) = value
        && items.iter().all(|item| item.get("DelegateCur").is_some())
    {
        items.sort_by_cached_key(|item| item["Name"].to_string());
    }
}

/// Replaces a text where it stands for itself: dotted numbers also occur inside longer ones (`0.1.0` in `10.1.0.1`).
fn replace_whole(text: &str, found: &str, name: &str) -> String {
    if !found.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return text.replace(found, name);
    }
    let goes_on = |rest: &[u8]| {
        rest.first().is_some_and(u8::is_ascii_digit)
            || (rest.first() == Some(&b'.') && rest.get(1).is_some_and(u8::is_ascii_digit))
    };
    let (mut out, mut from) = (String::new(), 0);
    for (at, _) in text.match_indices(found) {
        let end = at + found.len();
        let before = text.as_bytes()[..at].last();
        let inside = before.is_some_and(|b| b.is_ascii_digit() || *b == b'.');
        if !inside && !goes_on(&text.as_bytes()[end..]) {
            out.push_str(&text[from..at]);
            out.push_str(name);
            from = end;
        }
    }
    out.push_str(&text[from..]);
    out
}

const UUID_SHAPE: &[u8] = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
const TIME_SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd";

fn replace_uuids(text: &str) -> String {
    replace_shape(text, UUID_SHAPE, "<uuid>", |_| 0)
}

fn replace_times(text: &str) -> String {
    // Fractions and zone belong to the time.
    let tail = |rest: &[u8]| {
        rest.iter()
            .take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b'Z' | b'+' | b':'))
            .count()
    };
    replace_shape(text, TIME_SHAPE, "<time>", tail)
}

/// `… modify index 12 != 1` in messages: the number is the server's own.
fn replace_named_index(text: &str) -> String {
    const BEFORE: [&str; 2] = ["current modify index ", "snapshot to index "];
    let ends = BEFORE
        .iter()
        .filter_map(|words| text.find(words).map(|at| at + words.len()));
    let Some(end) = ends.max() else {
        return text.to_owned();
    };
    let (head, rest) = text.split_at(end);
    format!(
        "{head}<n>{}",
        rest.trim_start_matches(|c: char| c.is_ascii_digit())
    )
}

fn replace_shape(text: &str, shape: &[u8], with: &str, tail: impl Fn(&[u8]) -> usize) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut from, mut at) = (String::new(), 0, 0);
    while at + shape.len() <= bytes.len() {
        let inside_word = at > 0 && bytes[at - 1].is_ascii_alphanumeric();
        if !inside_word && fits(&bytes[at..at + shape.len()], shape) {
            out.push_str(&text[from..at]);
            out.push_str(with);
            at += shape.len();
            at += tail(&bytes[at..]);
            from = at;
        } else {
            at += 1;
        }
    }
    out.push_str(&text[from..]);
    out
}

fn fits(bytes: &[u8], shape: &[u8]) -> bool {
    bytes.iter().zip(shape).all(|(byte, form)| match form {
        b'x' => byte.is_ascii_hexdigit(),
        b'd' => byte.is_ascii_digit(),
        other => byte == other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_lose_what_is_free() {
        let mut names = Names::default();
        names.add("127.0.0.11", "addr");
        names.add("0f0c1111-2222-3333-4444-555566667777", "sid");
        names.add("12", "short");
        names.add("0.1.0", "version");
        let check = |given: &str, want: &str| assert_eq!(names.text(given), want);
        check("at 127.0.0.11:8300", "at {addr}:8300");
        check("v0.1.0, 0.1.0.", "v{version}, {version}.");
        check("10.1.0.1 d.0.1.0.0.2", "10.1.0.1 d.0.1.0.0.2");
        check("0f0c1111-2222-3333-4444-555566667777", "{sid}");
        check("id 1f0c1111-2222-3333-4444-555566667777!", "id <uuid>!");
        check("2026-11-23T09:06:51.098Z up", "<time> up");
        check("é 12 apples", "é 12 apples");
        check(
            "for \"a\", current modify index 8 != 1",
            "for \"a\", current modify index <n> != 1",
        );
    }

    #[test]
    fn indexes_become_ranks() {
        let mut value = json!([{"CreateIndex": 9, "ModifyIndex": 40}, {"CreateIndex": 9, "ModifyIndex": 12, "LockIndex": 2}]);
        let mut late = value.clone();
        assert_eq!(rank_indexes(&mut late, 9), Some(40));
        assert_eq!(
            late[0],
            json!({"CreateIndex": "#start", "ModifyIndex": "#2"})
        );
        assert_eq!(rank_indexes(&mut value, 0), Some(40));
        assert_eq!(
            value,
            json!([{"CreateIndex": "#1", "ModifyIndex": "#3"}, {"CreateIndex": "#1", "ModifyIndex": "#2", "LockIndex": 2}])
        );
    }
}
