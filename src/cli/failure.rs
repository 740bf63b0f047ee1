//! How a command ends other than well.
//!
//! Owns: exit codes and the two forms of an error, for people and for programs.
//! Never: prints data; that is standard output's.
//! Source: TRUST C.4; Consul's own numbers where scripts rely on them.

use std::process::ExitCode;

use serde_json::json;

use super::output::Format;

/// Exit codes of `weft-errors(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// A check failed, an answer was negative; Consul's code for most failures.
    Negative = 1,
    /// The command was called wrongly.
    Usage = 2,
    /// What was asked for is not there.
    NotFound = 3,
    /// The token lacks a right.
    Denied = 4,
    /// The agent does not answer, or no leader is known.
    Unreachable = 5,
    /// A newer write came first.
    Conflict = 6,
    /// It took too long.
    Timeout = 7,
    /// A bug of weft's.
    Internal = 70,
    /// A bad configuration, or a refused start.
    Config = 78,
}

impl Exit {
    const fn word(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Conflict => "conflict",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
            Self::Config => "config",
        }
    }
}

/// What went wrong, and what may help.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    word: &'static str,
    message: String,
    hint: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a command answers.
pub(crate) type Done = Result<(), Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit: exit as u8,
            word: exit.word(),
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Ends with a child's own code and says nothing.
    pub(crate) fn silent(code: u8) -> Self {
        Self {
            exit: code,
            word: "child",
            message: String::new(),
            hint: None,
        }
    }

    /// The same failure, said in a sentence about what was tried.
    pub(crate) fn context(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says it on standard error in the form asked for.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        match format {
            _ if self.message.is_empty() => {}
            Format::Json => {
                let error = json!({"error": {"code": self.word, "message": self.message, "hint": self.hint}});
                crate::stderr::note!("{error}");
            }
            Format::Table => {
                crate::stderr::note!("{}", self.message);
                if let Some(hint) = &self.hint {
                    crate::stderr::note!("  hint: {hint}");
                }
            }
        }
        ExitCode::from(self.exit)
    }
}
