//! The child of `weft lock`: started, handed our signals, stopped when the lock is lost.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::failure::{Exit, Failure};

/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// A running child in a process group of its own.
pub(super) struct Child {
    process: tokio::process::Child,
    group: Option<Pid>,
}

impl Child {
    /// Starts `words`, by `/bin/sh -c` when `shell`.
    pub(super) fn start(words: &[String], shell: bool, pass_stdin: bool) -> Result<Self, Failure> {
        let mut command = if shell {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(words.join(" "));
            command
        } else {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        };
        command
            .env("CONSUL_LOCK_HELD", "true")
            .env("WEFT_LOCK_HELD", "true");
        // A group of its own: signals then reach what a shell has started too. A child that reads
        // the terminal must stay in the terminal's group.
        if !pass_stdin {
            command.stdin(Stdio::null()).process_group(0);
        }
        let process = command.kill_on_drop(true).spawn().map_err(|error| {
            Failure::new(
                Exit::Negative,
                format!(
                    "Error executing handler: cannot start {}: {error}",
                    words[0]
                ),
            )
        })?;
        let id = process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        Ok(Self {
            process,
            group: id.filter(|_| !pass_stdin),
        })
    }

    /// Waits for its end, handing our signals on. Answers the exit code, 128 + n for signal n.
    pub(super) async fn run(&mut self) -> Result<u8, Failure> {
        loop {
            tokio::select! {
                status = self.process.wait() => {
                    let status = status.map_err(|error| Failure::new(Exit::Internal, format!("waiting failed: {error}")))?;
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                    return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
                }
                name = asked_to_stop() => self.signal(if name == "SIGINT" { Signal::INT } else { Signal::TERM }),
            }
        }
    }

    /// SIGTERM, and SIGKILL if that is not heard.
    pub(super) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.process.wait())
            .await
            .is_err()
        {
            eprintln!("Child did not end after {} s, killing it", GRACE.as_secs());
            self.signal(Signal::KILL);
            let _ = self.process.kill().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // One that has just ended cannot be signalled; that is as good.
        let _ = match self.group {
            Some(group) => kill_process_group(group, signal),
            None => self
                .process
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw)
                .map_or(Ok(()), |id| rustix::process::kill_process(id, signal)),
        };
    }
}

/// Waits for SIGINT or SIGTERM.
pub(super) async fn asked_to_stop() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Without handlers the signals end us, which ends the session by its TTL.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
