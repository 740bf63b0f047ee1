//! The `filter=` grammar (CONSUL.md B.3): expressions over the fields of a record.
//!
//! Owns: lexing, precedence, and what each operator means for each kind of field.
//! Never: makes JSON of a record to look at it; a [`Selectable`] shows the one field asked for.
//! Source: Consul HTTP API, "Filtering".

mod forms;
mod lexer;
mod parser;

use std::collections::BTreeMap;

use regex::Regex;

/// Bytes of an expression: 4 KiB.
pub const FILTER_BYTES_MAX: usize = 4 << 10;
/// Nested parentheses and negations.
pub const FILTER_DEPTH_MAX: usize = 32;
/// Bytes one compiled `matches` pattern may take.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Why an expression was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The expression is longer than [`FILTER_BYTES_MAX`].
    #[error("filter of {found} bytes is longer than {FILTER_BYTES_MAX} bytes")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The expression nests deeper than [`FILTER_DEPTH_MAX`].
    #[error("1:{column} ({offset}): filter nests deeper than {FILTER_DEPTH_MAX} levels")]
    TooDeep {
        /// Byte, from 1.
        column: usize,
        /// Byte, from 0.
        offset: usize,
    },
    /// The grammar was not followed.
    #[error("1:{column} ({offset}): expected {expected}, found {found}")]
    Syntax {
        /// Byte, from 1.
        column: usize,
        /// Byte, from 0.
        offset: usize,
        /// What could have followed.
        expected: &'static str,
        /// What followed.
        found: String,
    },
    /// A field that these records do not have.
    #[error("Selector \"{selector}\" is not valid")]
    Selector {
        /// As written, with dots.
        selector: String,
    },
    /// An operator that this field does not know.
    #[error("Invalid match operator \"{operator}\" for selector \"{selector}\"")]
    Operator {
        /// As written, with dots.
        selector: String,
        /// As written.
        operator: &'static str,
    },
    /// A value that this field cannot be compared with.
    #[error("Failed to convert value \"{value}\" for selector \"{selector}\" to {wanted}")]
    Value {
        /// As written, with dots.
        selector: String,
        /// As written.
        value: String,
        /// `a number` or `a boolean`.
        wanted: &'static str,
    },
    /// `matches` with something that is no RE2 expression.
    #[error("Failed to compile regular expression \"{pattern}\"")]
    Pattern {
        /// As written.
        pattern: String,
    },
}

/// What kind of value a selector leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number.
    Number,
    /// True or false.
    Bool,
    /// A list of texts.
    List,
    /// A list of records: only whether there are any can be asked.
    Records,
    /// Something by name.
    Map,
}

/// The value a selector leads to in one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A whole number.
    Number(i64),
    /// True or false.
    Bool(bool),
    /// A list of texts.
    Texts(&'a [String]),
    /// Texts by name.
    Map(&'a BTreeMap<String, String>),
    /// A list or map of which only its size can be asked, and its names.
    Names(&'a [&'a str]),
    /// A map has no such key.
    Missing,
}

/// A record whose fields can be selected.
pub trait Selectable {
    /// The kind of value a selector leads to; `None`: there is no such selector.
    fn kind(selector: &[&str]) -> Option<Kind>
    where
        Self: Sized;

    /// Shows `test` each value the selector leads to (several for a list of records) until it
    /// answers true; answers whether it did.
    fn any(&self, selector: &[&str], test: &mut dyn FnMut(Value<'_>) -> bool) -> bool;
}

/// An expression that can be evaluated.
#[derive(Clone, Debug)]
pub struct Filter(Expression);

#[derive(Clone, Debug)]
enum Expression {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Match(Match),
}

#[derive(Clone, Debug)]
struct Match {
    selector: Vec<String>,
    operator: Operator,
    negated: bool,
}

#[derive(Clone, Debug)]
enum Operator {
    Equal(Literal),
    In(String),
    Matches(Regex),
    Empty,
}

/// A value as written, and what else it can be read as.
#[derive(Clone, Debug)]
struct Literal {
    text: String,
    number: Option<i64>,
    boolean: Option<bool>,
}

/// Parses an expression.
///
/// Errors: [`FilterError`], with the position for what breaks the grammar.
pub fn parse(expression: &str) -> Result<Filter, FilterError> {
    if expression.len() > FILTER_BYTES_MAX {
        return Err(FilterError::TooLong {
            found: expression.len(),
        });
    }
    parser::parse(lexer::tokens(expression)?).map(Filter)
}

fn pattern(text: &str) -> Result<Regex, FilterError> {
    let built = regex::RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES_MAX)
        .build();
    built.map_err(|_| FilterError::Pattern {
        pattern: text.to_owned(),
    })
}

impl Filter {
    /// Checks that every selector exists in `T` and can be compared as asked. Call it once before
    /// the first record, so that an empty list refuses a wrong filter too.
    ///
    /// Errors: [`FilterError::Selector`], [`FilterError::Operator`], [`FilterError::Value`].
    pub fn check<T: Selectable>(&self) -> Result<(), FilterError> {
        self.0.check(&T::kind)
    }

    /// Whether a record is as the expression says. Only the fields asked for are looked at.
    #[must_use]
    pub fn matches(&self, record: &impl Selectable) -> bool {
        self.0.matches(record)
    }
}

impl Expression {
    fn check(&self, kind: &dyn Fn(&[&str]) -> Option<Kind>) -> Result<(), FilterError> {
        match self {
            Self::Or(parts) | Self::And(parts) => {
                parts.iter().try_for_each(|part| part.check(kind))
            }
            Self::Not(part) => part.check(kind),
            Self::Match(part) => part.check(kind),
        }
    }

    fn matches(&self, record: &impl Selectable) -> bool {
        match self {
            Self::Or(parts) => parts.iter().any(|part| part.matches(record)),
            Self::And(parts) => parts.iter().all(|part| part.matches(record)),
            Self::Not(part) => !part.matches(record),
            Self::Match(part) => part.matches(record),
        }
    }
}

impl Match {
    fn check(&self, kind: &dyn Fn(&[&str]) -> Option<Kind>) -> Result<(), FilterError> {
        let parts: Vec<&str> = self.selector.iter().map(String::as_str).collect();
        let selector = || self.selector.join(".");
        let kind = kind(&parts).ok_or_else(|| FilterError::Selector {
            selector: selector(),
        })?;
        let allowed = match &self.operator {
            Operator::Equal(_) => matches!(kind, Kind::Text | Kind::Number | Kind::Bool),
            Operator::In(_) => matches!(kind, Kind::Text | Kind::List | Kind::Map),
            Operator::Empty => !matches!(kind, Kind::Number | Kind::Bool),
            Operator::Matches(_) => kind == Kind::Text,
        };
        if !allowed {
            return Err(FilterError::Operator {
                selector: selector(),
                operator: self.operator_text(),
            });
        }
        let Operator::Equal(literal) = &self.operator else {
            return Ok(());
        };
        let wanted = match kind {
            Kind::Number if literal.number.is_none() => "a number",
            Kind::Bool if literal.boolean.is_none() => "a boolean",
            _ => return Ok(()),
        };
        Err(FilterError::Value {
            selector: selector(),
            value: literal.text.clone(),
            wanted,
        })
    }

    const fn operator_text(&self) -> &'static str {
        match (&self.operator, self.negated) {
            (Operator::Equal(_), false) => "==",
            (Operator::Equal(_), true) => "!=",
            (Operator::In(_), false) => "in",
            (Operator::In(_), true) => "not in",
            (Operator::Matches(_), false) => "matches",
            (Operator::Matches(_), true) => "not matches",
            (Operator::Empty, false) => "is empty",
            (Operator::Empty, true) => "is not empty",
        }
    }

    fn matches(&self, record: &impl Selectable) -> bool {
        // A selector is short; its parts are borrowed on the stack.
        let mut parts = [""; 8];
        let count = self.selector.len().min(parts.len());
        for (part, text) in parts.iter_mut().zip(&self.selector) {
            *part = text;
        }
        record.any(&parts[..count], &mut |value| {
            self.operator.holds(value) != self.negated
        })
    }
}

impl Operator {
    /// What is missing is empty, and equal to nothing.
    fn holds(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Empty, Value::Missing) => true,
            (Self::Empty, Value::Text(text)) => text.is_empty(),
            (Self::Empty, Value::Texts(texts)) => texts.is_empty(),
            (Self::Empty, Value::Map(map)) => map.is_empty(),
            (Self::Empty, Value::Names(names)) => names.is_empty(),
            (Self::Equal(literal), Value::Text(text)) => literal.text == text,
            (Self::Equal(literal), Value::Number(number)) => literal.number == Some(number),
            (Self::Equal(literal), Value::Bool(boolean)) => literal.boolean == Some(boolean),
            (Self::In(wanted), Value::Text(text)) => text.contains(wanted.as_str()),
            (Self::In(wanted), Value::Texts(texts)) => texts.contains(wanted),
            (Self::In(wanted), Value::Map(map)) => map.contains_key(wanted),
            (Self::In(wanted), Value::Names(names)) => names.contains(&wanted.as_str()),
            (Self::Matches(pattern), Value::Text(text)) => pattern.is_match(text),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
