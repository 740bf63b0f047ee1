//! The status words of checks and what they add up to.

use std::fmt;

/// Status of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// All is well.
    Passing,
    /// Works, with reservations.
    Warning,
    /// Does not work, or is not known to.
    Critical,
}

impl Status {
    /// `passing`, `warning`, `critical`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads the exact lower-case word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The worst of a set of checks, maintenance above all (CONSUL.md B.6, "Aggregates").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aggregate {
    /// Every check passes, or there is none. HTTP 200.
    Passing,
    /// HTTP 429.
    Warning,
    /// HTTP 503.
    Critical,
    /// Taken out by an operator. HTTP 503.
    Maintenance,
}

impl Aggregate {
    /// `passing`, `warning`, `critical`, `maintenance`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

impl From<Status> for Aggregate {
    fn from(status: Status) -> Self {
        match status {
            Status::Passing => Self::Passing,
            Status::Warning => Self::Warning,
            Status::Critical => Self::Critical,
        }
    }
}
