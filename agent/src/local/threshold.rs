//! How many results in a row it takes to change a check's status: a pure function.
//!
//! Owns: the counters of CONSUL.md B.6, "State machine".
//! Never: runs anything.

use super::status::Status;

/// Results in a row that change a status. All zero: every result counts at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes before the status improves; zero counts as one.
    pub success_before_passing: u32,
    /// Failures before `warning`; `None`: the same as for `critical`, so never.
    pub failures_before_warning: Option<u32>,
    /// Failures before `critical`; zero counts as one.
    pub failures_before_critical: u32,
}

/// What is remembered between results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    ok: u32,
    bad: u32,
}

impl Streak {
    /// For a check nothing is known of: its first result counts at once, whatever it is, as in Consul.
    /// The default is for one whose status is known, which a single result does not change.
    #[must_use]
    pub fn unknown(thresholds: &Thresholds) -> Self {
        Self {
            ok: thresholds.success_before_passing,
            bad: thresholds.failures_before_critical,
        }
    }

    /// Counts `result` in; answers the status to show when it is to be set anew, `None` to keep
    /// what is shown.
    #[must_use]
    pub fn step(&mut self, result: Status, thresholds: &Thresholds) -> Option<Status> {
        if result == Status::Critical {
            self.fail(thresholds)
        } else {
            self.succeed(result, thresholds)
        }
    }

    fn succeed(&mut self, result: Status, thresholds: &Thresholds) -> Option<Status> {
        self.ok = self.ok.saturating_add(1);
        self.bad = 0;
        (self.ok >= thresholds.success_before_passing.max(1)).then_some(result)
    }

    fn fail(&mut self, thresholds: &Thresholds) -> Option<Status> {
        self.bad = self.bad.saturating_add(1);
        self.ok = 0;
        let critical = thresholds.failures_before_critical.max(1);
        if self.bad >= critical {
            return Some(Status::Critical);
        }
        let warning = thresholds.failures_before_warning.unwrap_or(critical);
        (self.bad >= warning.max(1)).then_some(Status::Warning)
    }
}
