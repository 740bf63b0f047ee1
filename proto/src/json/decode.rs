//! Request bodies, read as Consul reads them.
//!
//! Owns: [`Object`], a cursor over parsed JSON whose member names match without regard to case and
//! underscores (`ServiceID`, `service_id`), which ignores what it does not know and names the field
//! whose type is wrong.
//! Never: knows a record.
//! Source: Consul HTTP API ("Request decode failed"); Go documentation, `json.Unmarshal`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::duration;

/// Why a body could not be understood. The message follows `Request decode failed: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON at all.
    #[error("{0}")]
    Syntax(String),
    /// A member has another type than the one needed.
    #[error("cannot decode {found} into field {field} of type {wanted}")]
    Type {
        /// Path of the member, `Service.Port`.
        field: String,
        /// Type found.
        found: &'static str,
        /// Type needed.
        wanted: &'static str,
    },
    /// The type is right and the value is not.
    #[error("field {field}: {why}")]
    Value {
        /// Path of the member.
        field: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Parses a body. An empty one is an error, as in Go (`EOF`).
pub fn parse(body: &[u8]) -> Result<Value, DecodeError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(DecodeError::Syntax("EOF".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| DecodeError::Syntax(error.to_string()))
}

/// A JSON object and where it stands in the body.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

/// An empty object for `null` and absent ones.
static NOTHING: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

impl<'a> Object<'a> {
    /// The body as an object. `null` reads as an empty one.
    pub fn root(value: &'a Value) -> Result<Self, DecodeError> {
        Self::at(value, String::new())
    }

    /// A value somewhere inside a body. `path` names it in errors.
    pub fn at(value: &'a Value, path: String) -> Result<Self, DecodeError> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            Value::Null => Ok(Self {
                path,
                map: &NOTHING,
            }),
            other => Err(mismatch(path, other, "object")),
        }
    }

    /// The members, as written.
    #[must_use]
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The member's value; `null` counts as absent. An exact name wins over one that differs in case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let found = self.map.get(name).or_else(|| {
            self.map
                .iter()
                .find(|(key, _)| same_name(key, name))
                .map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }

    /// The path of a member, for errors.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// An error about a member's value.
    #[must_use]
    pub fn bad_value(&self, name: &str, why: impl std::fmt::Display) -> DecodeError {
        DecodeError::Value {
            field: self.path_of(name),
            why: why.to_string(),
        }
    }

    fn wrong(&self, name: &str, found: &Value, wanted: &'static str) -> DecodeError {
        mismatch(self.path_of(name), found, wanted)
    }

    /// A string, empty when absent.
    pub fn text(&self, name: &str) -> Result<String, DecodeError> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(name, other, "string")),
        }
    }

    /// A boolean, false when absent.
    pub fn flag(&self, name: &str) -> Result<bool, DecodeError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, other, "bool")),
        }
    }

    /// An unsigned number, 0 when absent.
    pub fn unsigned(&self, name: &str) -> Result<u64, DecodeError> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value
                .as_u64()
                .ok_or_else(|| self.wrong(name, value, "unsigned integer")),
        }
    }

    /// An unsigned number of 32 bits, 0 when absent.
    pub fn unsigned32(&self, name: &str) -> Result<u32, DecodeError> {
        let value = self.unsigned(name)?;
        u32::try_from(value).map_err(|_| self.bad_value(name, format_args!("{value} is too large")))
    }

    /// A signed number, 0 when absent.
    pub fn signed(&self, name: &str) -> Result<i64, DecodeError> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value
                .as_i64()
                .ok_or_else(|| self.wrong(name, value, "integer")),
        }
    }

    /// A length of time: Go text, or an integer of nanoseconds. `None` when absent or empty text.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, DecodeError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => duration::parse(text)
                .map(Some)
                .map_err(|error| self.bad_value(name, error)),
            Some(value) => match value.as_u64() {
                Some(nanos) => Ok(Some(Duration::from_nanos(nanos))),
                None => Err(self.wrong(name, value, "duration")),
            },
        }
    }

    /// A length of time as the text it was written as; integers become text.
    pub fn duration_text(&self, name: &str) -> Result<String, DecodeError> {
        match self.get(name) {
            Some(Value::String(text)) => {
                self.duration(name)?;
                Ok(text.clone())
            }
            _ => Ok(self
                .duration(name)?
                .map(duration::format)
                .unwrap_or_default()),
        }
    }

    /// A list of strings, empty when absent.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, DecodeError> {
        self.items(name)?
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Null => Ok(String::new()),
                other => Err(self.wrong(name, other, "string")),
            })
            .collect()
    }

    /// A map of strings, empty when absent.
    pub fn text_map(&self, name: &str) -> Result<BTreeMap<String, String>, DecodeError> {
        let Some(object) = self.object(name)? else {
            return Ok(BTreeMap::new());
        };
        object
            .map
            .keys()
            .map(|key| Ok((key.clone(), object.text(key)?)))
            .collect()
    }

    /// A nested object.
    pub fn object(&self, name: &str) -> Result<Option<Object<'a>>, DecodeError> {
        self.get(name)
            .map(|value| Object::at(value, self.path_of(name)))
            .transpose()
    }

    /// A list of objects, empty when absent.
    pub fn objects(&self, name: &str) -> Result<Vec<Object<'a>>, DecodeError> {
        let items = self.items(name)?.iter().enumerate();
        items
            .map(|(at, item)| Object::at(item, format!("{}[{at}]", self.path_of(name))))
            .collect()
    }

    /// A list, empty when absent.
    pub fn items(&self, name: &str) -> Result<&'a [Value], DecodeError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.wrong(name, other, "list")),
        }
    }
}

/// The rows of a body that is a list. `null` reads as an empty one.
pub fn rows(value: &Value) -> Result<Vec<Object<'_>>, DecodeError> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, item)| Object::at(item, format!("[{at}]")))
            .collect(),
        other => Err(mismatch("(body)".to_owned(), other, "list")),
    }
}

fn mismatch(field: String, found: &Value, wanted: &'static str) -> DecodeError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let field = if field.is_empty() {
        "(body)".to_owned()
    } else {
        field
    };
    DecodeError::Type {
        field,
        found,
        wanted,
    }
}

/// Names are the same when they differ only in case and underscores: `ServiceID` and `service_id`.
fn same_name(written: &str, wanted: &str) -> bool {
    let fold = |text: &'_ str| {
        text.bytes()
            .filter(|byte| *byte != b'_')
            .map(|byte| byte.to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    written.len() >= wanted.len() && fold(written) == fold(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_match_without_case_and_underscores() {
        let body = json!({"serviceid": "a", "service_name": "b", "PORT": 3, "Extra": {"x": 1}});
        let object = Object::root(&body).unwrap();
        assert_eq!(object.text("ServiceID").unwrap(), "a");
        assert_eq!(object.text("ServiceName").unwrap(), "b");
        assert_eq!(object.unsigned("Port").unwrap(), 3);
        assert_eq!(object.text("Absent").unwrap(), "");
    }

    #[test]
    fn durations_are_text_or_nanoseconds() {
        let body = json!({"A": "90s", "B": 1_000_000_000_u64, "C": "", "D": null, "E": "10.0s"});
        let object = Object::root(&body).unwrap();
        assert_eq!(object.duration("A").unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(object.duration("B").unwrap(), Some(Duration::from_secs(1)));
        assert_eq!(object.duration("C").unwrap(), None);
        assert_eq!(object.duration("D").unwrap(), None);
        assert_eq!(object.duration_text("B").unwrap(), "1s");
        assert_eq!(object.duration_text("E").unwrap(), "10.0s");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_field() {
        let body = json!({"Service": {"Port": "x", "Tags": [1], "Weights": 4}, "T": "10x"});
        let root = Object::root(&body).unwrap();
        let service = root.object("Service").unwrap().unwrap();
        let check = |error: DecodeError, text: &str| assert_eq!(error.to_string(), text);
        check(
            service.unsigned("Port").unwrap_err(),
            "cannot decode string into field Service.Port of type unsigned integer",
        );
        check(
            service.texts("Tags").unwrap_err(),
            "cannot decode number into field Service.Tags of type string",
        );
        check(
            service.object("Weights").unwrap_err(),
            "cannot decode number into field Service.Weights of type object",
        );
        check(
            root.duration("T").unwrap_err(),
            "field T: time: unknown unit \"x\" in duration \"10x\"",
        );
        check(parse(b"").unwrap_err(), "EOF");
        check(
            rows(&json!({})).unwrap_err(),
            "cannot decode object into field (body) of type list",
        );
    }
}
