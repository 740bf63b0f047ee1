//! A command run for somebody: by `weft lock` while it holds, by `weft watch` for each change.
//!
//! Owns: how it is started, the signals it is handed, and its end.
//! Never: decides what its exit code means.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Exit, Failure};

/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// The shell, unless `SHELL` names one.
const SHELL: &str = "/bin/sh";
/// Signals a child is handed.
const HANDED_ON: [Signal; 6] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];

/// What is to be run.
pub(crate) struct Job<'a> {
    pub(crate) words: &'a [String],
    /// By the shell, as one line.
    pub(crate) shell: bool,
    pub(crate) input: Input,
    pub(crate) env: &'a [(&'a str, &'a str)],
}

/// What the child reads.
pub(crate) enum Input {
    Nothing,
    /// Our own standard input.
    Ours,
    Data(Vec<u8>),
}

/// A running child, in a process group of its own unless it has our standard input.
pub(crate) struct Child {
    process: tokio::process::Child,
    group: Option<Pid>,
    /// In our group, with a terminal that sends signals to the whole of it.
    hears_terminal: bool,
}

impl Child {
    pub(crate) fn start(job: Job<'_>) -> Result<Self, Failure> {
        let mut command = command(job.words, job.shell);
        command.envs(job.env.iter().copied());
        // A group of its own: signals then reach what a shell has started too. A child that reads
        // the terminal must stay in the terminal's group.
        let apart = !matches!(job.input, Input::Ours);
        if apart {
            command.process_group(0);
        }
        command.stdin(match job.input {
            Input::Nothing => Stdio::null(),
            Input::Ours => Stdio::inherit(),
            Input::Data(_) => Stdio::piped(),
        });
        let mut process = command
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot_start(&job.words[0], &error))?;
        if let (Input::Data(data), Some(mut stdin)) = (job.input, process.stdin.take()) {
            // A child that does not read to the end closes the pipe: that is its right.
            tokio::spawn(async move { drop(stdin.write_all(&data).await) });
        }
        let group = pid(&process).filter(|_| apart);
        Ok(Self {
            process,
            group,
            hears_terminal: !apart && std::io::stdin().is_terminal(),
        })
    }

    /// Waits for its end, handing our signals on. Answers the exit code, 128 + n for signal n, and
    /// whether we were asked to stop meanwhile.
    pub(crate) async fn run(&mut self, signals: &mut Signals) -> Result<(u8, bool), Failure> {
        let mut asked_to_stop = false;
        loop {
            tokio::select! {
                status = self.process.wait() => {
                    let status = status.map_err(|error| Failure::new(Exit::Internal, format!("waiting failed: {error}")))?;
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                    return Ok((code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1), asked_to_stop));
                }
                signal = signals.next() => {
                    asked_to_stop |= name(signal).is_some();
                    if !(self.hears_terminal && of_terminal(signal)) {
                        self.signal(signal);
                    }
                }
            }
        }
    }

    /// SIGTERM, and SIGKILL if that is not heard.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.process.wait())
            .await
            .is_err()
        {
            crate::stderr::note!("Child did not end after {} s, killing it", GRACE.as_secs());
            self.signal(Signal::KILL);
            let _ = self.process.kill().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // One that has just ended cannot be signalled; that is as good.
        let _ = match self.group {
            Some(group) => kill_process_group(group, signal),
            None => {
                pid(&self.process).map_or(Ok(()), |id| rustix::process::kill_process(id, signal))
            }
        };
    }
}

fn command(words: &[String], shell: bool) -> Command {
    let mut command;
    if shell {
        let named = std::env::var("SHELL")
            .ok()
            .filter(|shell| !shell.is_empty());
        command = Command::new(named.as_deref().unwrap_or(SHELL));
        command.arg("-c").arg(words.join(" "));
    } else {
        command = Command::new(&words[0]);
        command.args(&words[1..]);
    }
    command
}

fn cannot_start(program: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Negative,
        format!("Error executing handler: cannot start {program}: {error}"),
    )
}

fn pid(process: &tokio::process::Child) -> Option<Pid> {
    let id = process.id().and_then(|id| i32::try_from(id).ok());
    id.and_then(Pid::from_raw)
}

/// Our signals. From when they are listened to they no longer end the process by themselves.
pub(crate) struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    pub(crate) fn new() -> Self {
        let listening = HANDED_ON.iter().filter_map(|one| {
            // Without a listener the signal does what it does by itself.
            let stream = signal(SignalKind::from_raw(one.as_raw())).ok()?;
            Some((*one, stream))
        });
        Self(listening.collect())
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits, while there is no child, for a signal that asks us to end; answers its name.
    pub(crate) async fn asked_to_stop(&mut self) -> &'static str {
        loop {
            if let Some(name) = name(self.next().await) {
                return name;
            }
        }
    }
}

/// Ctrl-C and Ctrl-\: a terminal sends them to every process of the group in front.
fn of_terminal(signal: Signal) -> bool {
    matches!(signal, Signal::INT | Signal::QUIT)
}

/// The name of a signal that asks us to end.
fn name(signal: Signal) -> Option<&'static str> {
    match signal {
        Signal::INT => Some("SIGINT"),
        Signal::TERM => Some("SIGTERM"),
        Signal::HUP => Some("SIGHUP"),
        Signal::QUIT => Some("SIGQUIT"),
        _ => None,
    }
}
