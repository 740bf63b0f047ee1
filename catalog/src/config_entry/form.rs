//! One description for each structure of a config entry: its fields, how they are read and how
//! they are written.
//!
//! Owns: the `form!` macro, `Field` and the ways in which a value may be written (any case,
//! `snake_case`, numbers as text, as Consul takes them).
//! Never: judges a value beyond its type; the kinds do.
//! Source: Consul docs, "Configuration entries"; CONSUL.md E.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};
use weft_proto::json::Json;

use super::EntryError;

/// Unknown fields named in one refusal.
const UNKNOWN_NAMED_MAX: usize = 16;
/// Levels of lists and maps in a field that is kept as it is.
const OPAQUE_DEPTH_MAX: usize = 32;

/// Where a value stands, for errors: `Routes[0].Match.HTTP`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Path<'_> {
    pub(crate) fn member<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path::Member(self, name)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Path::Root, name) => f.write_str(name),
            Self::Member(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// One entry being read.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Fields that this version does not know are refused; otherwise they are passed over.
    strict: bool,
    unknown: Vec<String>,
}

impl Reading {
    pub(crate) fn new(strict: bool) -> Self {
        Self {
            strict,
            unknown: Vec::new(),
        }
    }

    /// Notes a member that the structure does not have.
    pub(crate) fn unknown(&mut self, written: &str, value: &Value, path: &Path<'_>, keys: &[&str]) {
        if !self.strict || is_default_scope(written, value) {
            return;
        }
        if self.unknown.len() >= UNKNOWN_NAMED_MAX {
            return;
        }
        let field = path.member(written);
        let enterprise = ENTERPRISE.iter().find(|(name, _)| same_name(written, name));
        let text = match (enterprise, nearest(written, keys)) {
            (Some((_, why)), _) => format!("invalid config key \"{field}\", {why}"),
            (None, Some(near)) => {
                format!("invalid config key \"{field}\" (did you mean \"{near}\"?)")
            }
            (None, None) => format!("invalid config key \"{field}\""),
        };
        self.unknown.push(text);
    }

    /// The refusal of every unknown field, in Consul's form of a list.
    pub(crate) fn finish(self) -> Result<(), EntryError> {
        if self.unknown.is_empty() {
            return Ok(());
        }
        let count = self.unknown.len();
        let noun = if count == 1 { "error" } else { "errors" };
        let mut text = format!("{count} {noun} occurred:\n");
        for line in &self.unknown {
            text.push_str("\t* ");
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
        Err(EntryError::UnknownField(text))
    }
}

/// Fields that only Consul Enterprise has.
const ENTERPRISE: [(&str, &str); 3] = [
    ("Namespace", "namespaces are a consul enterprise feature"),
    ("Partition", "partitions are a consul enterprise feature"),
    (
        "SamenessGroup",
        "sameness groups are a consul enterprise feature",
    ),
];

/// The default namespace and partition are the only ones, and may be named.
fn is_default_scope(written: &str, value: &Value) -> bool {
    let empty = match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let default = value
        .as_str()
        .is_some_and(|text| text.eq_ignore_ascii_case("default"));
    let scope = same_name(written, "Namespace") || same_name(written, "Partition");
    (scope && (empty || default)) || (empty && same_name(written, "SamenessGroup"))
}

/// Names are the same when they differ only in case and underscores.
pub(crate) fn same_name(written: &str, wanted: &str) -> bool {
    let folded = |text: &str| {
        text.bytes()
            .filter(|byte| *byte != b'_')
            .map(|byte| byte.to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    written.eq_ignore_ascii_case(wanted)
        || (written.contains('_') && folded(written) == folded(wanted))
}

/// The known name that is meant, if one is near enough.
pub(crate) fn nearest<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    let plain: String = written
        .chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .map(|c| c.to_ascii_lowercase())
        .take(64)
        .collect();
    let scored = names
        .iter()
        .map(|name| (distance(&plain, &name.to_ascii_lowercase()), *name));
    let (edits, name) = scored.min()?;
    (edits <= 1 + name.len() / 4).then_some(name)
}

/// Edits between two words: insertions, deletions, replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// A value of a config entry.
pub(crate) trait Field: Sized + Default {
    fn read(value: &Value, path: &Path<'_>, reading: &mut Reading) -> Result<Self, EntryError>;
    fn write(&self, json: &mut Json);
    fn is_empty(&self) -> bool;
}

/// Defines a structure with its reader and its writer. A field is `name: Type = "Key"`, left out
/// when empty; `always` after the key shows it even then.
macro_rules! form {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty = $key:literal $($show:ident)?),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = concat!("`", $key, "`.")] $(#[$fmeta])* pub $field: $type,)*
        }

        impl $name {
            /// Writes the members without the braces around them.
            #[allow(clippy::allow_attributes, unused_variables, reason = "a structure may have no member")]
            pub(crate) fn members(&self, json: &mut weft_proto::json::Json) {
                $(if form!(@shown self.$field $(, $show)?) {
                    $crate::config_entry::form::Field::write(&self.$field, json.key($key));
                })*
            }
        }

        impl $crate::config_entry::form::Field for $name {
            fn read(
                value: &serde_json::Value,
                path: &$crate::config_entry::form::Path<'_>,
                reading: &mut $crate::config_entry::form::Reading,
            ) -> Result<Self, $crate::config_entry::EntryError> {
                const KEYS: &[&str] = &[$($key),*];
                let mut out = Self::default();
                for (written, value) in $crate::config_entry::form::object(value, path)? {
                    $(if $crate::config_entry::form::same_name(written, $key) {
                        if !value.is_null() {
                            out.$field = $crate::config_entry::form::Field::read(value, &path.member($key), reading)?;
                        }
                        continue;
                    })*
                    reading.unknown(written, value, path, KEYS);
                }
                Ok(out)
            }

            fn write(&self, json: &mut weft_proto::json::Json) {
                json.object(|json| self.members(json));
            }

            fn is_empty(&self) -> bool {
                *self == Self::default()
            }
        }
    };
    (@shown $self:ident.$field:ident) => { !$crate::config_entry::form::Field::is_empty(&$self.$field) };
    (@shown $self:ident.$field:ident, always) => { true };
}
pub(crate) use form;

/// The members of an object. A list of one object counts as the object: HCL writes blocks so.
pub(crate) fn object<'a>(
    value: &'a Value,
    path: &Path<'_>,
) -> Result<&'a Map<String, Value>, EntryError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Array(items) if items.len() == 1 => object(&items[0], path),
        other => Err(wrong_type(path, other, "a map")),
    }
}

pub(crate) fn wrong_type(path: &Path<'_>, found: &Value, wanted: &str) -> EntryError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    EntryError::Decode(format!("'{path}' expected {wanted}, got {found}"))
}

pub(super) fn bad_value(path: &Path<'_>, why: impl fmt::Display) -> EntryError {
    EntryError::Decode(format!("error decoding '{path}': {why}"))
}

impl Field for String {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(flag) => Ok(if *flag { "1" } else { "0" }.to_owned()),
            other => Err(wrong_type(path, other, "text")),
        }
    }

    fn write(&self, json: &mut Json) {
        json.string(self);
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl Field for bool {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        match value {
            Value::Bool(flag) => Ok(*flag),
            Value::Number(number) => Ok(number.as_i64() != Some(0)),
            Value::String(text) => match text.as_str() {
                "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                _ => Err(bad_value(
                    path,
                    format_args!("{text:?} is neither true nor false"),
                )),
            },
            other => Err(wrong_type(path, other, "true or false")),
        }
    }

    fn write(&self, json: &mut Json) {
        json.boolean(*self);
    }

    fn is_empty(&self) -> bool {
        !*self
    }
}

pub(super) fn integer(value: &Value, path: &Path<'_>) -> Result<i64, EntryError> {
    match value {
        Value::Number(number) => number.as_i64().ok_or_else(|| {
            bad_value(
                path,
                format_args!("{number} is not a whole number in range"),
            )
        }),
        Value::String(text) if text.is_empty() => Ok(0),
        Value::String(text) => text
            .parse()
            .map_err(|_| bad_value(path, format_args!("{text:?} is not a whole number"))),
        Value::Bool(flag) => Ok(i64::from(*flag)),
        other => Err(wrong_type(path, other, "a number")),
    }
}

impl Field for i64 {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        integer(value, path)
    }

    fn write(&self, json: &mut Json) {
        json.raw(&self.to_string());
    }

    fn is_empty(&self) -> bool {
        *self == 0
    }
}

impl Field for u32 {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        let number = integer(value, path)?;
        Self::try_from(number).map_err(|_| {
            bad_value(
                path,
                format_args!("{number} is not between 0 and {}", Self::MAX),
            )
        })
    }

    fn write(&self, json: &mut Json) {
        json.number(u64::from(*self));
    }

    fn is_empty(&self) -> bool {
        *self == 0
    }
}

impl<T: Field> Field for Option<T> {
    fn read(value: &Value, path: &Path<'_>, reading: &mut Reading) -> Result<Self, EntryError> {
        T::read(value, path, reading).map(Some)
    }

    fn write(&self, json: &mut Json) {
        match self {
            Some(value) => value.write(json),
            None => json.null(),
        }
    }

    fn is_empty(&self) -> bool {
        self.is_none()
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(value: &Value, path: &Path<'_>, reading: &mut Reading) -> Result<Self, EntryError> {
        match value {
            Value::Array(items) => items
                .iter()
                .enumerate()
                .map(|(at, item)| match item {
                    Value::Null => Ok(T::default()),
                    item => T::read(item, &Path::Item(path, at), reading),
                })
                .collect(),
            // One block, or one word, for a list of one.
            one => Ok(vec![T::read(one, &Path::Item(path, 0), reading)?]),
        }
    }

    fn write(&self, json: &mut Json) {
        if self.is_empty() {
            json.null();
        } else {
            json.list(self, |json, item| item.write(json));
        }
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn read(value: &Value, path: &Path<'_>, reading: &mut Reading) -> Result<Self, EntryError> {
        let members = object(value, path)?.iter();
        members
            .map(|(key, value)| {
                let read = match value {
                    Value::Null => T::default(),
                    value => T::read(value, &path.member(key), reading)?,
                };
                Ok((key.clone(), read))
            })
            .collect()
    }

    fn write(&self, json: &mut Json) {
        json.object(|json| {
            for (key, value) in self {
                value.write(json.dynamic_key(key));
            }
        });
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// A map kept as it was written: its keys belong to whoever reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opaque {
    /// The members, by name.
    pub map: Map<String, Value>,
}

impl Field for Opaque {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        let mut map = object(value, path)?.clone();
        for value in map.values_mut() {
            plain(value, OPAQUE_DEPTH_MAX).map_err(|()| {
                bad_value(
                    path,
                    format_args!("nested deeper than {OPAQUE_DEPTH_MAX} levels"),
                )
            })?;
        }
        Ok(Self { map })
    }

    fn write(&self, json: &mut Json) {
        if self.map.is_empty() {
            json.null();
            return;
        }
        json.object(|json| {
            for (key, value) in &self.map {
                json.dynamic_key(key).value(value);
            }
        });
    }

    fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// Writes `3.0` as `3`, as Go prints it.
fn plain(value: &mut Value, depth: usize) -> Result<(), ()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(());
    };
    match value {
        Value::Number(number) if number.is_f64() => {
            let text = number.to_string();
            if let Some(whole) = text
                .strip_suffix(".0")
                .and_then(|text| text.parse::<i64>().ok())
            {
                *value = whole.into();
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| plain(item, depth)),
        Value::Object(map) => map.values_mut().try_for_each(|item| plain(item, depth)),
        _ => Ok(()),
    }
}

/// Something the server computes: taken in a request, never kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Computed;

impl Field for Computed {
    fn read(_: &Value, _: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        Ok(Self)
    }

    fn write(&self, json: &mut Json) {
        json.null();
    }

    fn is_empty(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_is_recognised() {
        let keys = ["Protocol", "MeshGateway", "ExternalSNI"];
        assert_eq!(nearest("Protcol", &keys), Some("Protocol"));
        assert_eq!(nearest("mesh-gateway", &keys), Some("MeshGateway"));
        assert_eq!(nearest("external_sni_name", &keys), None);
        assert_eq!(nearest("colour", &keys), None);
    }
}
