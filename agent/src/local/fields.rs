//! Reading a user's JSON or HCL object the way Consul does.
//!
//! Owns: key matching (CamelCase, snake_case, any case), the lenient forms HCL produces (a block is
//! a list of one object), durations as text or nanoseconds, and which keys were not understood.
//! Never: knows what the fields mean.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::definition::DefinitionError;

/// Largest number of entries one list or map of a definition may have.
const ENTRIES_MAX: usize = 8_192;

/// What to do with a key that no field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// Ignore it: HTTP request bodies (CONSUL.md 0.1).
    Ignore,
    /// Refuse with the nearest known key: configuration files.
    Refuse,
}

/// One object being read; every field asked for is remembered as known.
pub(crate) struct Fields<'a> {
    path: String,
    values: BTreeMap<String, (&'a str, &'a Value)>,
    known: Vec<&'static str>,
    unknown: UnknownKeys,
}

impl<'a> Fields<'a> {
    /// Opens `value` as an object; `null` reads as an empty one. In configuration files, where HCL
    /// makes lists of blocks, a list of objects reads as their union.
    pub(crate) fn open(
        path: &str,
        value: &'a Value,
        unknown: UnknownKeys,
    ) -> Result<Self, DefinitionError> {
        let mut values = BTreeMap::new();
        if unknown == UnknownKeys::Ignore && value.is_array() {
            return Err(DefinitionError::WrongType {
                path: path.to_owned(),
                expected: "an object",
                got: kind_of(value),
            });
        }
        for map in objects(path, value)? {
            for (key, value) in map {
                values.insert(plain(key), (key.as_str(), value));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            values,
            known: Vec::new(),
            unknown,
        })
    }

    /// Takes the value of the first of `names` that is there and not `null`.
    pub(crate) fn take(&mut self, names: &[&'static str]) -> Option<&'a Value> {
        self.known.extend_from_slice(names);
        let mut found = None;
        for name in names {
            let taken = self.values.remove(&plain(name));
            found = found.or(taken
                .map(|(_, value)| value)
                .filter(|value| !value.is_null()));
        }
        found
    }

    /// `Port` of `service.check` is `service.check.Port`.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    pub(crate) fn text(&mut self, names: &[&'static str]) -> Result<String, DefinitionError> {
        match self.take(names) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(names[0], "a string", other)),
        }
    }

    pub(crate) fn flag(&mut self, names: &[&'static str]) -> Result<bool, DefinitionError> {
        Ok(self.flag_or_absent(names)?.unwrap_or(false))
    }

    pub(crate) fn flag_or_absent(
        &mut self,
        names: &[&'static str],
    ) -> Result<Option<bool>, DefinitionError> {
        match self.take(names) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(names[0], "a boolean", other)),
        }
    }

    pub(crate) fn integer(
        &mut self,
        names: &[&'static str],
    ) -> Result<Option<i64>, DefinitionError> {
        match self.take(names) {
            None => Ok(None),
            Some(value) => match whole_number(value) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(names[0], "a whole number", value)),
            },
        }
    }

    /// A duration as Go text (`"1m30s"`) or whole nanoseconds; zero when absent.
    pub(crate) fn duration(&mut self, names: &[&'static str]) -> Result<Duration, DefinitionError> {
        let Some(value) = self.take(names) else {
            return Ok(Duration::ZERO);
        };
        let parsed = match value {
            Value::String(text) if text.is_empty() => Some(Duration::ZERO),
            Value::String(text) => weft_proto::duration::parse(text).ok(),
            other => whole_number(other)
                .and_then(|n| u64::try_from(n).ok())
                .map(Duration::from_nanos),
        };
        parsed.ok_or_else(|| {
            self.wrong(
                names[0],
                "a duration such as \"10s\", or nanoseconds",
                value,
            )
        })
    }

    pub(crate) fn texts(&mut self, names: &[&'static str]) -> Result<Vec<String>, DefinitionError> {
        match self.take(names) {
            None => Ok(Vec::new()),
            // Only configuration files may leave out the brackets, as in Consul.
            Some(value @ Value::String(_)) if self.unknown == UnknownKeys::Ignore => {
                Err(self.wrong(names[0], "a list of strings", value))
            }
            Some(value) => {
                texts_of(value).ok_or_else(|| self.wrong(names[0], "a list of strings", value))
            }
        }
    }

    pub(crate) fn text_map(
        &mut self,
        names: &[&'static str],
    ) -> Result<BTreeMap<String, String>, DefinitionError> {
        let Some(value) = self.take(names) else {
            return Ok(BTreeMap::new());
        };
        let mut out = BTreeMap::new();
        for map in objects(&self.path_of(names[0]), value)? {
            for (key, value) in map {
                let Value::String(text) = value else {
                    return Err(self.wrong(names[0], "a map of strings", value));
                };
                out.insert(key.clone(), text.clone());
            }
        }
        Ok(out)
    }

    /// `{"K":["a","b"]}`; a single string counts as a list of one.
    pub(crate) fn header_map(
        &mut self,
        names: &[&'static str],
    ) -> Result<BTreeMap<String, Vec<String>>, DefinitionError> {
        let Some(value) = self.take(names) else {
            return Ok(BTreeMap::new());
        };
        let mut out = BTreeMap::new();
        for map in objects(&self.path_of(names[0]), value)? {
            for (key, value) in map {
                let texts = texts_of(value)
                    .ok_or_else(|| self.wrong(names[0], "a map of lists of strings", value))?;
                out.insert(key.clone(), texts);
            }
        }
        Ok(out)
    }

    /// A list of objects; a single object counts as a list of one.
    pub(crate) fn list(
        &mut self,
        names: &[&'static str],
    ) -> Result<Vec<&'a Value>, DefinitionError> {
        match self.take(names) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() <= ENTRIES_MAX => {
                Ok(items.iter().filter(|item| !item.is_null()).collect())
            }
            Some(Value::Array(items)) => Err(DefinitionError::TooMany {
                path: self.path_of(names[0]),
                count: items.len(),
                max: ENTRIES_MAX,
            }),
            Some(single @ Value::Object(_)) => Ok(vec![single]),
            Some(other) => Err(self.wrong(names[0], "a list of objects", other)),
        }
    }

    /// After every field was taken: what is left is unknown.
    pub(crate) fn finish(self) -> Result<(), DefinitionError> {
        if self.unknown == UnknownKeys::Ignore {
            return Ok(());
        }
        let Some((written, _)) = self.values.values().next() else {
            return Ok(());
        };
        let nearest = self
            .known
            .iter()
            .map(|name| {
                (
                    strsim::damerau_levenshtein(&plain(written), &plain(name)),
                    *name,
                )
            })
            .min()
            .filter(|(distance, _)| *distance <= 3)
            .map(|(_, name)| snake(name));
        Err(DefinitionError::UnknownKey {
            path: self.path_of(written),
            nearest,
        })
    }

    pub(crate) fn wrong(&self, name: &str, expected: &'static str, got: &Value) -> DefinitionError {
        DefinitionError::WrongType {
            path: self.path_of(name),
            expected,
            got: kind_of(got),
        }
    }
}

/// `EnableTagOverride`, `enable_tag_override` and `enabletagoverride` are one key.
pub(super) fn plain(key: &str) -> String {
    key.chars()
        .filter(|c| *c != '_')
        .flat_map(char::to_lowercase)
        .collect()
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    let mut before_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && before_lower {
            out.push('_');
        }
        before_lower = c.is_lowercase() || c.is_ascii_digit();
        out.extend(c.to_lowercase());
    }
    out
}

/// The objects in `value`: one, none for `null`, or a list of them as HCL blocks arrive.
fn objects<'a>(
    path: &str,
    value: &'a Value,
) -> Result<Vec<&'a Map<String, Value>>, DefinitionError> {
    let wrong = |got: &Value| DefinitionError::WrongType {
        path: path.to_owned(),
        expected: "an object",
        got: kind_of(got),
    };
    let maps: Vec<&Map<String, Value>> = match value {
        Value::Null => Vec::new(),
        Value::Object(map) => vec![map],
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_object().ok_or_else(|| wrong(item)))
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(other)),
    };
    let count = maps.iter().map(|map| map.len()).sum();
    if count > ENTRIES_MAX {
        return Err(DefinitionError::TooMany {
            path: path.to_owned(),
            count,
            max: ENTRIES_MAX,
        });
    }
    Ok(maps)
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) if items.len() <= ENTRIES_MAX => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// HCL and some clients write whole numbers as floats.
fn whole_number(value: &Value) -> Option<i64> {
    let Value::Number(number) = value else {
        return None;
    };
    number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
