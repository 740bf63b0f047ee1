//! Checks texts against the schema and folds them, in order, into one tree.
//!
//! Owns: Consul's merging (scalars replace, lists append, maps merge), the weak typing of its
//! files, and every finding about keys and types.
//! Never: judges values beyond their type.
//! Source: Consul docs, "Configuration files, merging"; CONSUL D.1.

use std::collections::BTreeSet;

use super::hcl::tree::{Entry, Form, Node, Object, Source, Span, Value};
use super::problem::{Code, Problem};
use super::schema::{self, Effect, Key, Kind};

/// The tree of all sources so far, under canonical key names, and what was found on the way.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// Keys that have an effect, with the place each value came from.
    pub(super) root: Object,
    /// Errors and warnings in the order they were met.
    pub(super) problems: Vec<Problem>,
    warned: BTreeSet<String>,
}

/// Where in the schema the merge is.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'static [Key],
    path: &'a str,
    folded: bool,
    /// Inside a block without effect: keys are checked, nothing is kept or warned about again.
    discard: bool,
}

impl Merged {
    /// Folds a whole text in; later texts win.
    pub(super) fn absorb(&mut self, node: &Node) {
        if let Value::Object(object) = &node.value {
            let mut root = std::mem::take(&mut self.root);
            self.entries(
                &mut root,
                object,
                Place {
                    table: schema::TOP,
                    path: "",
                    folded: false,
                    discard: false,
                },
            );
            self.root = root;
        }
    }

    /// Folds one value in under a dotted path, as flags and the environment give it.
    pub(super) fn set(&mut self, path: &str, value: Node) {
        self.absorb(&nest(path, value));
    }

    /// The place of the value at a dotted path, or of the longest part of it that is there.
    #[must_use]
    pub(super) fn span(&self, path: &str) -> Option<&Span> {
        let mut object = &self.root;
        let mut found = None;
        for part in path.split('.') {
            let Some(entry) = object.get(part) else { break };
            found = Some(&entry.span);
            let Value::Object(inner) = &entry.node.value else {
                break;
            };
            object = inner;
        }
        found
    }

    /// The place of the `nth` item of the list at a top-level key.
    #[must_use]
    pub(super) fn item_span(&self, key: &str, nth: usize) -> Option<&Span> {
        match &self.root.get(key)?.node.value {
            Value::List(items) => items.get(nth).map(|item| &item.span),
            _ => None,
        }
    }

    fn entries(&mut self, into: &mut Object, from: &Object, place: Place<'_>) {
        for entry in &from.entries {
            match schema::find(place.table, &entry.key, place.folded) {
                Some(key) if !matches!(entry.node.value, Value::Null) => {
                    self.entry(into, entry, key, place)
                }
                Some(_) => {}
                None if is_comment(&entry.key) => {}
                None => self.unknown(entry, place),
            }
        }
    }

    fn unknown(&mut self, entry: &Entry, place: Place<'_>) {
        let path = join(place.path, &entry.key);
        let problem =
            Problem::new(Code::UnknownKey, format!("unknown key \"{path}\"")).at(&entry.span);
        let hint = match schema::nearest(place.table, &entry.key) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if place.path.is_empty() => "no such key".to_owned(),
            None => format!("\"{}\" has no such key", place.path),
        };
        self.problems.push(problem.hint(hint));
    }

    fn entry(&mut self, into: &mut Object, entry: &Entry, key: &'static Key, place: Place<'_>) {
        let path = join(place.path, key.name);
        let inert = matches!(key.effect, Effect::Inert | Effect::Silent);
        match key.effect {
            Effect::Inert if !place.discard => self.warn_once(&path, entry, Code::NoEffect),
            Effect::Renamed(_) if !place.discard => self.warn_once(&path, entry, Code::Deprecated),
            _ => {}
        }
        let place = Place {
            path: &path,
            discard: place.discard || inert,
            ..place
        };
        if let (Effect::Renamed(new), false) = (key.effect, place.discard) {
            if let Some(node) = self.scalar(&entry.node, key.kind, &path) {
                let mut moved = nest(new, node);
                set_spans(&mut moved, &entry.span);
                self.absorb_into(into, &moved);
            }
            return;
        }
        self.value(into, entry, key, place);
    }

    fn absorb_into(&mut self, into: &mut Object, node: &Node) {
        if let Value::Object(object) = &node.value {
            self.entries(
                into,
                object,
                Place {
                    table: schema::TOP,
                    path: "",
                    folded: false,
                    discard: false,
                },
            );
        }
    }

    fn warn_once(&mut self, path: &str, entry: &Entry, code: Code) {
        if !self.warned.insert(path.to_owned()) {
            return;
        }
        let renamed = schema::lookup(path).and_then(|key| match key.effect {
            Effect::Renamed(new) => Some(new),
            _ => None,
        });
        let problem = match renamed {
            Some(new) => Problem::new(code, format!("key \"{path}\" is an old name"))
                .hint(format!("now \"{new}\"")),
            None => Problem::new(
                code,
                format!("key \"{path}\" has no effect in this version"),
            ),
        };
        self.problems.push(problem.at(&entry.span));
    }

    fn value(&mut self, into: &mut Object, entry: &Entry, key: &'static Key, place: Place<'_>) {
        match key.kind {
            Kind::Section(table) | Kind::Definition(table) => {
                let folded = place.folded || matches!(key.kind, Kind::Definition(_));
                let mut section = take_object(into, key.name);
                for object in self.objects(&entry.node, place.path) {
                    self.entries(
                        &mut section,
                        object,
                        Place {
                            table,
                            folded,
                            ..place
                        },
                    );
                }
                self.store(into, entry, key, Value::Object(section), place);
            }
            Kind::Definitions(table) => {
                let mut list = take_list(into, key.name);
                for (item, object) in self.definitions(&entry.node, place.path) {
                    let mut definition = Object::default();
                    self.entries(
                        &mut definition,
                        &object,
                        Place {
                            table,
                            folded: true,
                            ..place
                        },
                    );
                    list.push(Node {
                        span: item,
                        value: Value::Object(definition),
                    });
                }
                self.store(into, entry, key, Value::List(list), place);
            }
            Kind::Texts => {
                let mut list = take_list(into, key.name);
                list.extend(self.texts(&entry.node, place.path));
                self.store(into, entry, key, Value::List(list), place);
            }
            Kind::TextMap => {
                let mut map = take_object(into, key.name);
                for object in self.objects(&entry.node, place.path) {
                    for inner in &object.entries {
                        if let Some(node) =
                            self.scalar(&inner.node, Kind::Text, &join(place.path, &inner.key))
                        {
                            map.push(Entry {
                                form: Form::Attribute,
                                node,
                                ..inner.clone()
                            });
                        }
                    }
                }
                self.store(into, entry, key, Value::Object(map), place);
            }
            kind => {
                if let Some(node) = self.scalar(&entry.node, kind, place.path) {
                    self.store(into, entry, key, node.value, place);
                }
            }
        }
    }

    fn store(&self, into: &mut Object, entry: &Entry, key: &Key, value: Value, place: Place<'_>) {
        if !place.discard {
            let node = Node {
                span: entry.node.span.clone(),
                value,
            };
            into.push(Entry {
                key: key.name.to_owned(),
                span: entry.span.clone(),
                form: Form::Attribute,
                node,
            });
        }
    }

    fn objects<'n>(&mut self, node: &'n Node, path: &str) -> Vec<&'n Object> {
        match &node.value {
            Value::Object(object) => vec![object],
            Value::List(items) => items
                .iter()
                .filter_map(|item| self.objects(item, path).pop())
                .collect(),
            _ => {
                self.wrong(node, path, "a block");
                Vec::new()
            }
        }
    }

    /// The definitions of a `service`/`services` value. A labelled block's label is its name.
    fn definitions(&mut self, node: &Node, path: &str) -> Vec<(Span, Object)> {
        match &node.value {
            Value::List(items) => items
                .iter()
                .flat_map(|item| self.definitions(item, path))
                .collect(),
            Value::Object(object)
                if !object.entries.is_empty() && object.entries.iter().all(is_label) =>
            {
                object.entries.iter().flat_map(named).collect()
            }
            Value::Object(object) => vec![(node.span.clone(), object.clone())],
            _ => {
                self.wrong(node, path, "a block, or a list of blocks");
                Vec::new()
            }
        }
    }

    fn texts(&mut self, node: &Node, path: &str) -> Vec<Node> {
        match &node.value {
            Value::List(items) => items
                .iter()
                .filter_map(|item| self.scalar(item, Kind::Text, path))
                .collect(),
            Value::Text(_) => vec![node.clone()],
            _ => {
                self.wrong(node, path, "a list of strings");
                Vec::new()
            }
        }
    }

    /// The value as `kind` wants it, with the conversions Consul's own decoder makes.
    fn scalar(&mut self, node: &Node, kind: Kind, path: &str) -> Option<Node> {
        let value = match (kind, &node.value) {
            (Kind::Free, value) => Some(value.clone()),
            (Kind::Bool, Value::Bool(b)) => Some(Value::Bool(*b)),
            (Kind::Bool, Value::Text(text)) => go_bool(text).map(Value::Bool),
            (Kind::Int, Value::Int(n)) => Some(Value::Int(*n)),
            (Kind::Int, Value::Text(text)) => text.trim().parse().ok().map(Value::Int),
            (Kind::Float, Value::Int(_) | Value::Float(_)) => Some(node.value.clone()),
            (Kind::Float, Value::Text(text)) => text
                .trim()
                .parse()
                .ok()
                .filter(|f: &f64| f.is_finite())
                .map(Value::Float),
            (Kind::Text, Value::Text(text)) => Some(Value::Text(text.clone())),
            (Kind::Text, Value::Int(n)) => Some(Value::Text(n.to_string())),
            (Kind::Text, Value::Float(f)) => Some(Value::Text(f.to_string())),
            (Kind::Duration, Value::Text(text)) => return self.duration(node, text, path),
            _ => None,
        };
        if value.is_none() {
            self.wrong(node, path, wanted(kind));
        }
        value.map(|value| Node {
            span: node.span.clone(),
            value,
        })
    }

    fn duration(&mut self, node: &Node, text: &str, path: &str) -> Option<Node> {
        match weft_proto::duration::parse(text) {
            Ok(_) => Some(node.clone()),
            Err(error) => {
                let message = format!("key \"{path}\": {error}");
                self.problems.push(
                    Problem::new(Code::BadValue, message)
                        .at(&node.span)
                        .hint("write \"30s\" or \"1h30m\""),
                );
                None
            }
        }
    }

    fn wrong(&mut self, node: &Node, path: &str, expected: &str) {
        let message = format!("key \"{path}\" wants {expected}, not {}", node.kind());
        self.problems.push(
            Problem::new(Code::WrongType, message)
                .at(&node.span)
                .hint(format!("expected {expected}")),
        );
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Int => "a whole number",
        Kind::Float => "a number",
        Kind::Duration => "a duration such as \"30s\"",
        Kind::Texts => "a list of strings",
        Kind::TextMap | Kind::Section(_) | Kind::Definition(_) => "a block",
        Kind::Definitions(_) => "a block, or a list of blocks",
        Kind::Text | Kind::Free => "a string",
    }
}

/// The texts Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Consul tolerates `_comment` and `//` keys, the only comments JSON files can have.
fn is_comment(key: &str) -> bool {
    matches!(key, "//" | "_comment" | "comment" | "#")
}

fn is_label(entry: &Entry) -> bool {
    entry.form == Form::Block
        && schema::find(schema::SERVICE, &entry.key, true).is_none()
        && schema::find(schema::CHECK, &entry.key, true).is_none()
}

/// `service "web" { … }` reads as `service { name = "web" … }`.
fn named(label: &Entry) -> Vec<(Span, Object)> {
    let bodies: Vec<&Node> = match &label.node.value {
        Value::List(items) => items.iter().collect(),
        _ => vec![&label.node],
    };
    let name = Node {
        span: label.span.clone(),
        value: Value::Text(label.key.clone()),
    };
    let with_name = |body: &&Node| {
        let Value::Object(object) = &body.value else {
            return None;
        };
        let mut object = object.clone();
        if !object
            .entries
            .iter()
            .any(|e| e.key.eq_ignore_ascii_case("name"))
        {
            let entry = Entry {
                key: "name".into(),
                span: label.span.clone(),
                form: Form::Attribute,
                node: name.clone(),
            };
            object.entries.insert(0, entry);
        }
        Some((body.span.clone(), object))
    };
    bodies.iter().filter_map(with_name).collect()
}

fn take_object(into: &mut Object, key: &str) -> Object {
    match into
        .entries
        .iter_mut()
        .find(|e| e.key == key)
        .map(|e| &mut e.node.value)
    {
        Some(Value::Object(object)) => std::mem::take(object),
        _ => Object::default(),
    }
}

fn take_list(into: &mut Object, key: &str) -> Vec<Node> {
    match into
        .entries
        .iter_mut()
        .find(|e| e.key == key)
        .map(|e| &mut e.node.value)
    {
        Some(Value::List(list)) => std::mem::take(list),
        _ => Vec::new(),
    }
}

/// `a.b = v` as `{ a { b = v } }`.
fn nest(path: &str, value: Node) -> Node {
    path.rsplit('.').fold(value, |node, key| {
        let span = node.span.clone();
        let entry = Entry {
            key: key.to_owned(),
            span: span.clone(),
            form: Form::Attribute,
            node,
        };
        Node {
            span,
            value: Value::Object(Object {
                entries: vec![entry],
            }),
        }
    })
}

fn set_spans(node: &mut Node, span: &Span) {
    if let Value::Object(object) = &mut node.value {
        for entry in &mut object.entries {
            entry.span = span.clone();
            set_spans(&mut entry.node, span);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A value from the command line or the environment as a node; the schema converts it.
#[must_use]
pub(super) fn given(name: impl Into<String>, value: &str) -> Node {
    let source = Source::flag(name, value);
    Node {
        span: Span::whole(&source),
        value: Value::Text(value.to_owned()),
    }
}
