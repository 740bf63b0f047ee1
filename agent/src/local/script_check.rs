//! One run of a script check.
//!
//! Owns: what an exit code means, for commands on this host and in containers.
//! Never: asks whether scripts are allowed; that is decided at registration.

use std::time::Duration;

use super::ScriptCheck;
use super::process::{self, Ended};
use super::run_result::RunResult;
use super::status::Status;
use super::tail::{FLOOD_BYTES, Tail};

/// Runs the command for at most `limit`, keeping the last `output_max` bytes of its output. `seat` is
/// kept as long as the process is there.
pub(super) async fn run(
    check: &ScriptCheck,
    limit: Duration,
    output_max: usize,
    seat: impl Send + 'static,
) -> RunResult {
    match process::run(&check.args, limit, output_max, seat).await {
        Ended::Exited(code, output) => RunResult::of(judge(code), output.text()),
        Ended::TimedOut(output) => RunResult::timed_out(out_of_time(limit, &output)),
        Ended::Flooded(output) => RunResult::of(Status::Critical, flooded(&output)),
        Ended::NotStarted(error) => RunResult::of(
            Status::Critical,
            format!("cannot run {:?}: {error}", check.args[0]),
        ),
    }
}

/// 0 passes, 1 warns, anything else, a signal included, is critical.
pub(super) fn judge(code: Option<i32>) -> Status {
    match code {
        Some(0) => Status::Passing,
        Some(1) => Status::Warning,
        _ => Status::Critical,
    }
}

pub(super) fn flooded(output: &Tail) -> String {
    format!(
        "Killed: wrote more than {} MiB of output\n\n{}",
        FLOOD_BYTES >> 20,
        output.text()
    )
}

fn out_of_time(limit: Duration, output: &Tail) -> String {
    let limit = weft_proto::duration::format(limit);
    let (text, head) = (output.text(), format!("Timed out ({limit}) running check"));
    if text.is_empty() {
        head
    } else {
        format!("{head}\n\n{text}")
    }
}
