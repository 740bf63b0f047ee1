//! What one run of a polled check found.

use super::status::Status;

/// Status and output of one run, before thresholds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunResult {
    pub(super) status: Status,
    pub(super) output: String,
    /// No answer within the time-out. Critical, except for udp, where silence passes.
    pub(super) timed_out: bool,
}

impl RunResult {
    pub(super) fn of(status: Status, output: String) -> Self {
        Self {
            status,
            output,
            timed_out: false,
        }
    }

    /// Critical for want of an answer in time.
    pub(super) fn timed_out(output: String) -> Self {
        Self {
            status: Status::Critical,
            output,
            timed_out: true,
        }
    }

    /// For metrics: `passing`, `warning`, `critical` or `timeout`.
    pub(super) fn outcome(&self) -> &'static str {
        if self.timed_out {
            "timeout"
        } else {
            self.status.as_str()
        }
    }
}

impl From<(Status, String)> for RunResult {
    fn from((status, output): (Status, String)) -> Self {
        Self::of(status, output)
    }
}
