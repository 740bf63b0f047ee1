//! What can be wrong with a configuration, in the form a user can act on.
//!
//! Owns: the stable codes and how a finding is shown with its line and a caret.
//! Never: decides whether something is wrong.
//! Source: TRUST C.5 (the shape of an error).

use std::fmt;

use super::hcl::tree::Span;

/// Stable identifiers of findings (`weft help WFT2004`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A file or directory could not be read.
    Unreadable,
    /// The text does not follow its grammar.
    Syntax,
    /// A value of another type was expected.
    WrongType,
    /// No such key.
    UnknownKey,
    /// The type is right, the value is not.
    BadValue,
    /// Two settings contradict each other, or one lacks another.
    Conflict,
    /// A key of Consul's whose promise weft cannot keep yet; starting without it would be unsafe.
    NotYet,
    /// Clear text would leave this host (DESIGN §1).
    Exposed,
    /// A known key without effect in this version. A warning.
    NoEffect,
    /// An old name of a key. A warning.
    Deprecated,
    /// Allowed, but worth a look. A warning.
    Advice,
}

impl Code {
    /// The number users look up.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Unreadable => "WFT2001",
            Self::Syntax => "WFT2002",
            Self::WrongType => "WFT2003",
            Self::UnknownKey => "WFT2004",
            Self::BadValue => "WFT2005",
            Self::Conflict => "WFT2006",
            Self::NotYet => "WFT2007",
            Self::Exposed => "WFT2008",
            Self::NoEffect => "WFT2101",
            Self::Deprecated => "WFT2102",
            Self::Advice => "WFT2103",
        }
    }

    /// Whether a start goes on in spite of it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        matches!(self, Self::NoEffect | Self::Deprecated | Self::Advice)
    }
}

/// One finding: an error or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind.
    pub code: Code,
    /// Where, if it has a place.
    pub span: Option<Span>,
    /// What is wrong, without place or advice.
    pub message: String,
    /// What to do, short enough to stand behind the caret.
    pub hint: Option<String>,
}

impl Problem {
    /// A finding without a place.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            span: None,
            message: message.into(),
            hint: None,
        }
    }

    /// The same finding at `span`.
    #[must_use]
    pub fn at(mut self, span: &Span) -> Self {
        self.span = Some(span.clone());
        self
    }

    /// The same finding with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.code.is_warning() {
            "warning"
        } else {
            "error"
        };
        write!(f, "{level}[{}]: ", self.code.id())?;
        match &self.span {
            Some(span) if span.source.has_lines => self.with_line(f, span),
            Some(span) => {
                write!(f, "{} {}", span.source.name, self.message)?;
                self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
            }
            None => {
                f.write_str(&self.message)?;
                self.hint
                    .iter()
                    .try_for_each(|hint| write!(f, "\n  fix: {hint}"))
            }
        }
    }
}

impl Problem {
    fn with_line(&self, f: &mut fmt::Formatter<'_>, span: &Span) -> fmt::Result {
        let (line, column) = span.line_column();
        let text = span.line_text();
        let shown = mask(text).replace('\t', " ");
        let margin = line.to_string().len();
        let skip = column - 1;
        // A masked line is shorter than the real one; the caret never points past what is shown.
        let room = shown.chars().count().saturating_sub(skip).max(1);
        let carets = "^".repeat(span.width().min(room));
        writeln!(f, "{}:{line}:{column} {}", span.source.name, self.message)?;
        writeln!(f, "  {line} | {shown}")?;
        write!(f, "  {:margin$} | {:skip$}{carets}", "", "")?;
        self.hint.iter().try_for_each(|hint| write!(f, " {hint}"))
    }
}

/// Words in a key whose value is a secret and never shown.
const SECRET_WORDS: [&str; 7] = [
    "encrypt",
    "token",
    "secret",
    "password",
    "master",
    "initial_management",
    "private_key",
];

/// The line with the value of a secret key covered.
fn mask(line: &str) -> String {
    let Some(at) = line.find(['=', ':']) else {
        return line.to_owned();
    };
    let (key, value) = line.split_at(at);
    let secret = SECRET_WORDS
        .iter()
        .any(|word| key.to_lowercase().contains(word));
    let telling = secret && value.contains('"');
    if telling {
        format!("{key}{} …", &value[..1])
    } else {
        line.to_owned()
    }
}

/// All findings of one load, errors first. Shown one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.0.iter().enumerate() {
            if nth > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
