//! What a configuration text says, with the place of every key.
//!
//! Owns: sources, spans, and the tree of entries both readers build.
//! Never: knows which keys exist or what they mean.

use std::fmt;
use std::sync::Arc;

/// Where a piece of configuration came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// A path, or how the text was given: `-hcl`, `flag -http-port`, `CONSUL_LOCAL_CONFIG`.
    pub name: String,
    /// The whole text, kept for the line an error shows.
    pub text: String,
    /// True for texts with lines worth numbering; false for a single flag.
    pub has_lines: bool,
}

impl Source {
    /// A file or another text with lines.
    #[must_use]
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: text.into(),
            has_lines: true,
        })
    }

    /// One value from the command line or the environment.
    #[must_use]
    pub fn flag(name: impl Into<String>, value: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: value.into(),
            has_lines: false,
        })
    }
}

/// A range of bytes in a source.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    /// The text it points into.
    pub source: Arc<Source>,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.name)
    }
}

impl Span {
    /// A span over all of `source`.
    #[must_use]
    pub fn whole(source: &Arc<Source>) -> Self {
        Self {
            source: Arc::clone(source),
            start: 0,
            end: source.text.len(),
        }
    }

    /// Line and column, both counted from 1; columns count characters.
    #[must_use]
    pub fn line_column(&self) -> (usize, usize) {
        let before = self.before();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        (line, column)
    }

    /// The line the span begins on, without its end.
    #[must_use]
    pub fn line_text(&self) -> &str {
        let from = self.before().rfind('\n').map_or(0, |at| at + 1);
        let rest = self.source.text.get(from..).unwrap_or_default();
        rest.split('\n')
            .next()
            .unwrap_or_default()
            .trim_end_matches('\r')
    }

    /// How many characters to underline: the span, cut at the end of its first line, at least one.
    #[must_use]
    pub fn width(&self) -> usize {
        let text = self
            .source
            .text
            .get(self.start..self.end)
            .unwrap_or_default();
        text.split('\n')
            .next()
            .map_or(0, |l| l.chars().count())
            .max(1)
    }

    fn before(&self) -> &str {
        self.source
            .text
            .get(..self.start)
            .unwrap_or(&self.source.text)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub span: Span,
    /// What.
    pub value: Value,
}

/// The values HCL1 and JSON share.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// JSON `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with fraction or exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// `[a, b]`, or a block given more than once.
    List(Vec<Node>),
    /// `{ k = v }`, or a block.
    Object(Object),
}

/// How an entry was written; decides what a second one of the same key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `key = value`: a later one replaces it.
    Attribute,
    /// `key { … }`: a later one is added to a list.
    Block,
    /// `key "label" { … }`: merged label by label.
    Labelled,
}

/// One `key = value` or block.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as written.
    pub key: String,
    /// Where the key stands.
    pub span: Span,
    /// How it was written.
    pub form: Form,
    /// Its value.
    pub node: Node,
}

/// Entries in the order they were written, one per key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Object {
    /// The entry of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }

    /// Adds an entry as the file's grammar says: blocks gather, labels merge, attributes replace.
    pub fn push(&mut self, entry: Entry) {
        let Some(old) = self.entries.iter_mut().find(|e| e.key == entry.key) else {
            self.entries.push(entry);
            return;
        };
        let is_scalar = |node: &Node| !matches!(node.value, Value::List(_) | Value::Object(_));
        if old.form == Form::Attribute && entry.form == Form::Attribute
            || is_scalar(&old.node)
            || is_scalar(&entry.node)
        {
            *old = entry;
            return;
        }
        if let (Form::Labelled, Form::Labelled, Value::Object(into), Value::Object(from)) =
            (old.form, entry.form, &mut old.node.value, &entry.node.value)
        {
            for labelled in &from.entries {
                into.push(labelled.clone());
            }
            return;
        }
        // A list written as `key = […]` and blocks of the same key gather too: nothing is lost.
        let span = old.node.span.clone();
        let first = std::mem::replace(
            &mut old.node,
            Node {
                span,
                value: Value::Null,
            },
        );
        let mut items = first.into_items();
        items.extend(entry.node.into_items());
        old.node.value = Value::List(items);
    }
}

impl Node {
    /// The same value without positions.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => (*f).into(),
            Value::Text(t) => t.clone().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Object(object) => serde_json::Value::Object(
                object
                    .entries
                    .iter()
                    .map(|e| (e.key.clone(), e.node.to_json()))
                    .collect(),
            ),
        }
    }

    /// A list's items, or the value itself as the only one.
    fn into_items(self) -> Vec<Self> {
        match self.value {
            Value::List(items) => items,
            _ => vec![self],
        }
    }

    /// The word for this value in an error: `text`, `number`, `list`, …
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Object(_) => "an object",
        }
    }
}
