//! One run of an os_service check.
//!
//! Owns: the question to systemd, and what its answer means.
//! Never: speaks D-Bus. `systemctl is-active` is there wherever systemd is, finds the right bus by
//! itself (also as root in a container's namespace) and needs neither a connection that outlives
//! the run nor a parser for a second protocol.

use std::time::Duration;

use super::OsServiceCheck;
use super::process::{self, Ended};
use super::run_result::RunResult;
use super::status::Status;

/// Found by `PATH`, as an administrator's shell would.
pub(super) const SYSTEMCTL: &str = "systemctl";

/// Asks `systemctl` (a program's name or path) whether the unit is active. `seat` is kept as long as
/// that process is there.
pub(super) async fn run(
    check: &OsServiceCheck,
    systemctl: &str,
    limit: Duration,
    output_max: usize,
    seat: impl Send + 'static,
) -> RunResult {
    let unit = &check.unit;
    let args = [systemctl, "is-active", "--", unit].map(str::to_owned);
    match process::run(&args, limit, output_max, seat).await {
        Ended::Exited(Some(0), _) => {
            RunResult::of(Status::Passing, format!("Service {unit:?} is healthy"))
        }
        Ended::Exited(_, said) => {
            let said = said.text();
            let text = format!("Service {unit:?} is not running: {}", said.trim());
            RunResult::of(Status::Critical, text)
        }
        Ended::TimedOut(_) => RunResult::timed_out(format!(
            "Service {unit:?}: no answer from {systemctl} within the timeout of {}",
            weft_proto::duration::format(limit)
        )),
        Ended::Flooded(_) => RunResult::of(
            Status::Critical,
            format!("Service {unit:?}: {systemctl} writes without end"),
        ),
        Ended::NotStarted(error) => RunResult::of(
            Status::Critical,
            format!(
                "Service {unit:?}: cannot run {systemctl}: {error}; os_service checks need systemd"
            ),
        ),
    }
}
