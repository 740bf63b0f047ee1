//! The grammar: one recursive descent over both HCL1 and JSON.
//!
//! Owns: where one value ends and the next begins.
//! Never: decodes the inside of a string (see `text`).

use std::sync::Arc;

use winnow::Parser;
use winnow::stream::{LocatingSlice, Location, Stream};
use winnow::token::take_while;

use super::tree::{Entry, Form, Node, Object, Source, Span, Value};
use super::{DEPTH_MAX, SyntaxError, text};

/// The text still to be read; knows its offset.
pub(super) type Input<'s> = LocatingSlice<&'s str>;

/// A failure before it is given its source.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) message: String,
}

pub(super) type Read<T> = Result<T, Failure>;

pub(super) struct Reader<'s> {
    source: &'s Arc<Source>,
    input: Input<'s>,
    json: bool,
    depth: usize,
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s Arc<Source>, json: bool) -> Self {
        Self {
            source,
            input: LocatingSlice::new(source.text.as_str()),
            json,
            depth: 0,
        }
    }

    /// Everything up to the end of the text.
    pub(super) fn document(mut self) -> Result<Node, SyntaxError> {
        let read = if self.json {
            self.json_document()
        } else {
            self.entries(None)
        };
        read.map(|object| Node {
            span: Span::whole(self.source),
            value: Value::Object(object),
        })
        .map_err(|f| SyntaxError {
            span: Span {
                source: Arc::clone(self.source),
                start: f.start,
                end: f.end,
            },
            message: f.message,
        })
    }

    fn json_document(&mut self) -> Read<Object> {
        self.blank()?;
        let start = self.at();
        let node = self.value()?;
        self.blank()?;
        if self.peek().is_some() {
            return Err(self.unexpected("the end of the text"));
        }
        match node.value {
            Value::Object(object) => Ok(object),
            _ => Err(self.failure(start, format!("expected an object, found {}", node.kind()))),
        }
    }

    /// Entries up to `close`, or to the end of the text.
    fn entries(&mut self, close: Option<char>) -> Read<Object> {
        let mut object = Object::default();
        loop {
            self.blank()?;
            match (self.peek(), close) {
                (None, None) => return Ok(object),
                (None, Some(_)) => return Err(self.unexpected("\"}\"")),
                (Some(c), Some(end)) if c == end => {
                    self.skip();
                    return Ok(object);
                }
                _ => {}
            }
            let entry = self.entry()?;
            object.push(entry);
            self.separator(close)?;
        }
    }

    /// What may stand between two entries: nothing or a comma in HCL, exactly a comma in JSON.
    fn separator(&mut self, close: Option<char>) -> Read<()> {
        self.blank()?;
        let comma = self.peek() == Some(',');
        if comma {
            let at = self.at();
            self.skip();
            self.blank()?;
            if close.is_none() {
                return Err(self.failure(
                    at,
                    "a comma may not stand between entries outside of braces".into(),
                ));
            }
            if self.json && self.peek() == close {
                return Err(self.unexpected("another key (JSON allows no trailing comma)"));
            }
        } else if self.json && self.peek() != close {
            return Err(self.unexpected("\",\" or \"}\""));
        }
        Ok(())
    }

    fn entry(&mut self) -> Read<Entry> {
        let (key, span) = self.key()?;
        self.blank()?;
        match self.peek() {
            Some('=') if !self.json => {
                self.skip();
                Ok(Entry {
                    key,
                    span,
                    form: Form::Attribute,
                    node: self.value()?,
                })
            }
            Some(':') if self.json || self.depth > 0 => {
                self.skip();
                Ok(Entry {
                    key,
                    span,
                    form: Form::Attribute,
                    node: self.value()?,
                })
            }
            Some('{') if !self.json => Ok(Entry {
                key,
                span,
                form: Form::Block,
                node: self.value()?,
            }),
            Some(c) if !self.json && starts_key(c) => {
                let node = self.nested(|reader| reader.labelled())?;
                Ok(Entry {
                    key,
                    span,
                    form: Form::Labelled,
                    node,
                })
            }
            _ if self.json => Err(self.unexpected(&format!("\":\" after key \"{key}\""))),
            _ => Err(self.unexpected(&format!("\"=\" or \"{{\" after key \"{key}\""))),
        }
    }

    /// `"label" { … }` and `"label" "label" { … }`: an object with one entry.
    fn labelled(&mut self) -> Read<Node> {
        let start = self.at();
        let (key, span) = self.key()?;
        self.blank()?;
        let (form, node) = match self.peek() {
            Some('{') => (Form::Block, self.value()?),
            Some(c) if starts_key(c) => (Form::Labelled, self.nested(|reader| reader.labelled())?),
            _ => return Err(self.unexpected(&format!("\"{{\" after label \"{key}\""))),
        };
        let object = Object {
            entries: vec![Entry {
                key,
                span,
                form,
                node,
            }],
        };
        Ok(Node {
            span: self.span(start),
            value: Value::Object(object),
        })
    }

    fn key(&mut self) -> Read<(String, Span)> {
        let start = self.at();
        match self.peek() {
            Some('"') => {
                let key = text::quoted(&mut self.input, self.json)?;
                Ok((key, self.span(start)))
            }
            Some(c) if !self.json && starts_key(c) => {
                let word = self.take(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
                Ok((word.to_owned(), self.span(start)))
            }
            _ => Err(self.unexpected(if self.json {
                "a key in double quotes"
            } else {
                "a key"
            })),
        }
    }

    fn value(&mut self) -> Read<Node> {
        self.blank()?;
        let start = self.at();
        let value = match self.peek() {
            Some('"') => Value::Text(text::quoted(&mut self.input, self.json)?),
            Some('<') if !self.json => Value::Text(text::heredoc(&mut self.input)?),
            Some('{') => self.nested(|reader| {
                reader.skip();
                reader.entries(Some('}')).map(Value::Object)
            })?,
            Some('[') => self.nested(Self::list)?,
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number()?,
            Some(c) if c.is_alphabetic() => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node {
            span: self.span(start),
            value,
        })
    }

    fn list(&mut self) -> Read<Value> {
        self.skip();
        let mut items = Vec::new();
        loop {
            self.blank()?;
            if self.peek() == Some(']') && (items.is_empty() || !self.json) {
                self.skip();
                return Ok(Value::List(items));
            }
            items.push(self.value()?);
            self.blank()?;
            match self.peek() {
                Some(',') => self.skip(),
                Some(']') => {
                    self.skip();
                    return Ok(Value::List(items));
                }
                _ => return Err(self.unexpected("\",\" or \"]\"")),
            }
        }
    }

    fn word(&mut self) -> Read<Value> {
        let start = self.at();
        match self.take(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.')) {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            other => {
                let message = format!(
                    "expected a value, found the bare word {other}; put text in double quotes"
                );
                Err(self.failure(start, message))
            }
        }
    }

    fn number(&mut self) -> Read<Value> {
        let start = self.at();
        let word = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
        let bad = || Failure {
            start,
            end: start + word.len(),
            message: format!("\"{word}\" is not a number"),
        };
        if self.json && !json_number(word) {
            return Err(bad());
        }
        let (sign, digits) = word.strip_prefix('-').map_or((1, word), |rest| (-1, rest));
        if let Some(hexadecimal) = digits
            .strip_prefix("0x")
            .or_else(|| digits.strip_prefix("0X"))
        {
            return i64::from_str_radix(hexadecimal, 16)
                .map(|n| Value::Int(sign * n))
                .map_err(|_| bad());
        }
        if let Ok(whole) = word.parse::<i64>() {
            return Ok(Value::Int(whole));
        }
        let decimal = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        match word.parse::<f64>() {
            Ok(float) if decimal && float.is_finite() => Ok(Value::Float(float)),
            _ => Err(bad()),
        }
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth >= DEPTH_MAX {
            return Err(self.failure(self.at(), format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// White space and, in HCL, comments.
    fn blank(&mut self) -> Read<()> {
        loop {
            self.take(|c| matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{feff}'));
            let rest: &str = &self.input;
            if self.json {
                return Ok(());
            } else if rest.starts_with('#') || rest.starts_with("//") {
                self.take(|c| c != '\n');
            } else if rest.starts_with("/*") {
                let Some(length) = rest.find("*/") else {
                    let at = self.at();
                    return Err(Failure {
                        start: at,
                        end: at + 2,
                        message: "this comment is not closed with \"*/\"".into(),
                    });
                };
                self.input.next_slice(length + 2);
            } else {
                return Ok(());
            }
        }
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'s str {
        let taken: Result<&'s str, winnow::error::EmptyError> =
            take_while(0.., wanted).parse_next(&mut self.input);
        taken.unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.input.chars().next()
    }

    fn skip(&mut self) {
        self.input.next_token();
    }

    fn at(&self) -> usize {
        self.input.current_token_start()
    }

    fn span(&self, start: usize) -> Span {
        Span {
            source: Arc::clone(self.source),
            start,
            end: self.at(),
        }
    }

    fn failure(&self, start: usize, message: String) -> Failure {
        Failure {
            start,
            end: self.at().max(start),
            message,
        }
    }

    fn unexpected(&self, wanted: &str) -> Failure {
        let at = self.at();
        let (end, found) = match self.peek() {
            None => (at, "the end of the text".to_owned()),
            Some(c) => (at + c.len_utf8(), format!("\"{}\"", c.escape_debug())),
        };
        Failure {
            start: at,
            end,
            message: format!("expected {wanted}, found {found}"),
        }
    }
}

fn starts_key(c: char) -> bool {
    c == '"' || c == '_' || c.is_alphabetic()
}

/// RFC 8259 §6: no leading zeros, no `+`, digits on both sides of the point.
fn json_number(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let whole = digits.split(['.', 'e', 'E']).next().unwrap_or_default();
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    let all_digits = !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit());
    let bare_point = digits.ends_with('.') || digits.contains(".e") || digits.contains(".E");
    all_digits && !leading_zero && !bare_point
}
