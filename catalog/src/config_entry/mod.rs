//! Config entries: what the mesh is told about services, proxies and gateways.
//!
//! Owns: the typed form of every kind, how one is read, made canonical and judged by itself, and
//! what entries must agree on among each other (`chain`).
//! Never: stores anything; `apply` does.
//! Source: Consul docs, "Configuration entries"; CONSUL.md E.

pub mod api_gateway;
pub(crate) mod chain;
mod filtered;
pub mod form;
pub mod gateway;
pub mod intentions;
mod kind;
pub mod mesh;
pub mod quantity;
pub mod resolver;
pub mod routing;
pub mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;
use weft_proto::json::Json;
use weft_proto::v1;

use crate::digest::Fold;
use form::{Field, Path, Reading, same_name};
pub use kind::{Kind, KindError};
use quantity::Span;

/// Entries of all kinds together.
pub const CONFIG_ENTRIES_MAX: usize = 16_384;
/// Bytes of canonical JSON of all config entries together, at most.
pub const CONFIG_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one entry in its canonical form: 512 KiB.
pub const CONFIG_ENTRY_BYTES_MAX: usize = 512 << 10;
/// Bytes of an entry's name.
const NAME_BYTES_MAX: usize = 255;
/// Bytes one compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Why an entry was refused by itself. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A value has the wrong type, or is not there.
    #[error("{0}")]
    Decode(String),
    /// Fields that the kind does not have.
    #[error("{0}")]
    UnknownField(String),
    /// Not a kind that can be written.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// The values are of the right types and make no sense.
    #[error("{0}")]
    Invalid(String),
}

impl EntryError {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// The stable id of the refusal.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Decode(_) => "config.decode",
            Self::UnknownField(_) => "config.field.unknown",
            Self::Kind(error) => error.reason(),
            Self::Invalid(_) => "config.invalid",
        }
    }
}

/// The typed content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// How a service behaves.
    ServiceDefaults(Box<service::ServiceDefaults>),
    /// How all proxies behave.
    ProxyDefaults(Box<service::ProxyDefaults>),
    /// Where requests go, by what they ask for.
    Router(routing::Router),
    /// Where requests go, by share.
    Splitter(routing::Splitter),
    /// Which instances stand for a service.
    Resolver(Box<resolver::Resolver>),
    /// Who may call a service.
    Intentions(intentions::Intentions),
    /// What holds for the whole mesh.
    Mesh(Box<mesh::Mesh>),
    /// Who issues tokens.
    JwtProvider(Box<mesh::JwtProvider>),
    /// What other clusters may see.
    ExportedServices(mesh::ExportedServices),
    /// Traffic into the mesh.
    IngressGateway(Box<gateway::IngressGateway>),
    /// Traffic out of the mesh.
    TerminatingGateway(gateway::TerminatingGateway),
    /// Traffic into the mesh, with routes of its own.
    ApiGateway(api_gateway::ApiGateway),
    /// Requests of an API gateway.
    HttpRoute(api_gateway::HttpRoute),
    /// Connections of an API gateway.
    TcpRoute(api_gateway::TcpRoute),
    /// A certificate, given as text.
    InlineCertificate(api_gateway::Certificate),
    /// A certificate, given as files.
    FileSystemCertificate(api_gateway::Certificate),
}

/// Runs one expression for whichever structure the body holds.
macro_rules! each {
    ($body:expr, $inner:ident => $run:expr) => {
        match $body {
            Body::ServiceDefaults($inner) => $run,
            Body::ProxyDefaults($inner) => $run,
            Body::Router($inner) => $run,
            Body::Splitter($inner) => $run,
            Body::Resolver($inner) => $run,
            Body::Intentions($inner) => $run,
            Body::Mesh($inner) => $run,
            Body::JwtProvider($inner) => $run,
            Body::ExportedServices($inner) => $run,
            Body::IngressGateway($inner) => $run,
            Body::TerminatingGateway($inner) => $run,
            Body::ApiGateway($inner) => $run,
            Body::HttpRoute($inner) => $run,
            Body::TcpRoute($inner) => $run,
            Body::InlineCertificate($inner) => $run,
            Body::FileSystemCertificate($inner) => $run,
        }
    };
}

impl Body {
    fn read(kind: Kind, value: &Value, reading: &mut Reading) -> Result<Self, EntryError> {
        let path = &Path::Root;
        Ok(match kind {
            Kind::ServiceDefaults => {
                Self::ServiceDefaults(Box::new(Field::read(value, path, reading)?))
            }
            Kind::ProxyDefaults => {
                Self::ProxyDefaults(Box::new(Field::read(value, path, reading)?))
            }
            Kind::ServiceRouter => Self::Router(Field::read(value, path, reading)?),
            Kind::ServiceSplitter => Self::Splitter(Field::read(value, path, reading)?),
            Kind::ServiceResolver => Self::Resolver(Box::new(Field::read(value, path, reading)?)),
            Kind::ServiceIntentions => Self::Intentions(Field::read(value, path, reading)?),
            Kind::Mesh => Self::Mesh(Box::new(Field::read(value, path, reading)?)),
            Kind::JwtProvider => Self::JwtProvider(Box::new(Field::read(value, path, reading)?)),
            Kind::ExportedServices => Self::ExportedServices(Field::read(value, path, reading)?),
            Kind::IngressGateway => {
                Self::IngressGateway(Box::new(Field::read(value, path, reading)?))
            }
            Kind::TerminatingGateway => {
                Self::TerminatingGateway(Field::read(value, path, reading)?)
            }
            Kind::ApiGateway => Self::ApiGateway(Field::read(value, path, reading)?),
            Kind::HttpRoute => Self::HttpRoute(Field::read(value, path, reading)?),
            Kind::TcpRoute => Self::TcpRoute(Field::read(value, path, reading)?),
            Kind::InlineCertificate => Self::InlineCertificate(Field::read(value, path, reading)?),
            Kind::FileSystemCertificate => {
                Self::FileSystemCertificate(Field::read(value, path, reading)?)
            }
        })
    }

    /// Fills in what Consul fills in, and writes what has several spellings in one.
    fn normalise(&mut self, name: &str) {
        match self {
            Self::ServiceDefaults(body) => body.normalise(),
            Self::Router(body) => body.normalise(),
            Self::Intentions(body) => body.normalise(name),
            Self::JwtProvider(body) => body.normalise(),
            Self::IngressGateway(body) => body.normalise(),
            Self::ApiGateway(body) => body.normalise(),
            Self::HttpRoute(body) => body.normalise(),
            Self::TcpRoute(body) => body.normalise(),
            Self::ProxyDefaults(_)
            | Self::Splitter(_)
            | Self::Resolver(_)
            | Self::Mesh(_)
            | Self::ExportedServices(_)
            | Self::TerminatingGateway(_)
            | Self::InlineCertificate(_)
            | Self::FileSystemCertificate(_) => {}
        }
    }

    fn validate(&self, name: &str) -> Result<(), EntryError> {
        match self {
            Self::ServiceDefaults(body) => body.validate(name),
            Self::ProxyDefaults(body) => body.validate(),
            Self::Router(body) => body.validate(),
            Self::Splitter(body) => body.validate(name),
            Self::Resolver(body) => body.validate(name),
            Self::Intentions(body) => body.validate(name),
            Self::Mesh(body) => body.validate(),
            Self::JwtProvider(body) => body.validate(),
            Self::ExportedServices(body) => body.validate(),
            Self::IngressGateway(body) => body.validate(),
            Self::TerminatingGateway(body) => body.validate(),
            Self::ApiGateway(body) => body.validate(),
            Self::HttpRoute(body) => body.validate(),
            Self::TcpRoute(body) => body.validate(),
            Self::InlineCertificate(body) => body.validate_inline(),
            Self::FileSystemCertificate(body) => body.validate_files(),
        }
    }

    /// The user's own words about the entry.
    #[must_use]
    pub fn meta(&self) -> &std::collections::BTreeMap<String, String> {
        each!(self, body => &body.meta)
    }
}

/// One config entry, as it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub kind: Kind,
    /// Whom it is about, as written.
    pub name: String,
    /// Its content.
    pub body: Body,
    /// Catalog index of its first write; 0 before.
    pub create_index: u64,
    /// Catalog index of its last change; 0 before.
    pub modify_index: u64,
    /// The whole content as canonical JSON, without indexes.
    json: Arc<str>,
    /// The same as it is shown, without the closing brace.
    shown: Arc<str>,
    /// Of `json`.
    hash: u64,
}

impl Entry {
    /// Reads a user's entry: any case of names, defaults filled in, all rules checked that need no
    /// other entry.
    ///
    /// Errors: [`EntryError`].
    pub fn parse(value: &Value) -> Result<Self, EntryError> {
        let members = match value {
            Value::Object(map) => map,
            other => {
                return Err(EntryError::Decode(format!(
                    "'' expected a map, got '{}'",
                    go_type(other)
                )));
            }
        };
        let mut rest = members.clone();
        let kind = take_text(&mut rest, "Kind")?
            .filter(|kind| !kind.is_empty())
            .ok_or_else(|| {
                EntryError::Decode(
                    "Payload does not contain a kind/Kind key at the top level".into(),
                )
            })?;
        let kind = Kind::parse(&kind)?;
        let name = take_text(&mut rest, "Name")?.unwrap_or_default();
        // What the server adds to an answer may come back with it.
        for computed in ["CreateIndex", "ModifyIndex", "Hash"] {
            rest.retain(|key, _| !same_name(key, computed));
        }
        let mut reading = Reading::new(true);
        let body = Body::read(kind, &Value::Object(rest), &mut reading)?;
        reading.finish()?;
        Self::checked(kind, name, body)
    }

    fn checked(kind: Kind, name: String, mut body: Body) -> Result<Self, EntryError> {
        let name = kind.check_name(name)?;
        body.normalise(&name);
        body.validate(&name)?;
        for (key, value) in body.meta() {
            if key.is_empty() {
                return Err(EntryError::invalid(format!(
                    "Meta: a key is empty, its value is {value:?}"
                )));
            }
        }
        let json = canonical(kind, &name, &body);
        if json.len() > CONFIG_ENTRY_BYTES_MAX {
            return Err(EntryError::invalid(format!(
                "the entry has {} bytes, at most {CONFIG_ENTRY_BYTES_MAX} are allowed: divide it",
                json.len()
            )));
        }
        Ok(Self::of(kind, name, body, json.into()))
    }

    /// The entry of a stored row. Fields of a newer version are kept and not looked at, so that
    /// every replica stores the same bytes.
    ///
    /// Errors: [`EntryError`] when the row is no entry.
    pub(crate) fn stored(row: &v1::ConfigEntry) -> Result<Self, EntryError> {
        let kind = Kind::parse(&row.kind)?;
        let value: Value = serde_json::from_str(&row.json)
            .map_err(|error| EntryError::Decode(format!("not JSON: {error}")))?;
        let body = Body::read(kind, &value, &mut Reading::new(false))?;
        let mut entry = Self::of(kind, row.name.clone(), body, row.json.as_str().into());
        (entry.create_index, entry.modify_index) = (row.create_index, row.modify_index);
        Ok(entry)
    }

    fn of(kind: Kind, name: String, body: Body, json: Arc<str>) -> Self {
        let shown = match &body {
            Body::InlineCertificate(certificate) => canonical(
                kind,
                &name,
                &Body::InlineCertificate(certificate.without_key()),
            ),
            _ => json.to_string(),
        };
        let shown = shown.strip_suffix('}').unwrap_or(&shown).into();
        let mut fold = Fold::new();
        fold.bytes(json.as_bytes());
        Self {
            kind,
            name,
            body,
            create_index: 0,
            modify_index: 0,
            shown,
            // 0 stands for "no hash" in Consul's clients.
            hash: fold.finish().max(1),
            json,
        }
    }

    /// The row that is replicated and kept in snapshots.
    #[must_use]
    pub fn row(&self) -> v1::ConfigEntry {
        v1::ConfigEntry {
            kind: self.kind.as_str().to_owned(),
            name: self.name.clone(),
            json: self.json.to_string(),
            create_index: self.create_index,
            modify_index: self.modify_index,
        }
    }

    /// The entry at other indexes.
    pub(crate) fn at(mut self, create_index: u64, modify_index: u64) -> Self {
        (self.create_index, self.modify_index) = (create_index, modify_index);
        self
    }

    /// The content as canonical JSON, without indexes.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Changes with the content alone.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Writes the entry as Consul shows it. Private keys are not shown.
    pub fn write(&self, json: &mut Json) {
        json.raw(&format!(
            "{},\"Hash\":{},\"CreateIndex\":{},\"ModifyIndex\":{}}}",
            self.shown, self.hash, self.create_index, self.modify_index
        ));
    }
}

impl crate::digest::Digest for Arc<Entry> {
    fn digest(&self, fold: &mut Fold) {
        fold.bytes(self.json.as_bytes());
        fold.word(self.create_index);
        fold.word(self.modify_index);
    }
}

fn canonical(kind: Kind, name: &str, body: &Body) -> String {
    let mut json = Json::with_capacity(512);
    json.object(|json| {
        json.key("Kind").string(kind.as_str());
        json.key("Name").string(name);
        each!(body, body => body.members(json));
    });
    String::from_utf8(json.into_bytes()).expect("only whole strings were written")
}

/// Takes a top-level text out of the members.
fn take_text(
    members: &mut serde_json::Map<String, Value>,
    name: &str,
) -> Result<Option<String>, EntryError> {
    let Some(key) = members.keys().find(|key| same_name(key, name)).cloned() else {
        return Ok(None);
    };
    match members.remove(&key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(form::wrong_type(&Path::Root.member(name), &other, "text")),
    }
}

const fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// One of a few words.
fn one_of(place: &str, found: &str, known: &[&str]) -> Result<(), EntryError> {
    if known.contains(&found) {
        return Ok(());
    }
    let words: Vec<String> = known
        .iter()
        .filter(|word| !word.is_empty())
        .map(|word| format!("{word:?}"))
        .collect();
    Err(EntryError::invalid(format!(
        "{place}: {found:?} is not one of {}",
        words.join(", ")
    )))
}

fn not_negative(place: &str, span: Span) -> Result<(), EntryError> {
    if span.nanos >= 0 {
        return Ok(());
    }
    Err(EntryError::invalid(format!(
        "Bad {place} '{}', must be >= 0",
        weft_proto::duration::format_nanos(span.nanos)
    )))
}

/// A pattern that compiles within its bound, or none.
fn regex(place: &str, pattern: &str) -> Result<(), EntryError> {
    let built = regex::RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES_MAX)
        .build();
    match built {
        Ok(_) => Ok(()),
        Err(_) => Err(EntryError::invalid(format!(
            "{place}: {pattern:?} is not a valid RE2 expression"
        ))),
    }
}
