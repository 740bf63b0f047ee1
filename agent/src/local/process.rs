//! One process on behalf of a check or a watch, from its start to the end of everything it started.
//!
//! Owns: its process group, its pipe, and the time and output it may take.
//! Never: decides whether it may be started, or what its exit means.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use super::tail::Tail;

/// Bytes taken from the pipe at once: what a pipe holds.
const READ_BYTES: usize = 65_536;
/// A killed process that is not gone by then is reaped later.
const REAP_WAIT: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself; `None`: by a signal.
    Exited(Option<i32>, Tail),
    /// Killed with all it started: its time was over.
    TimedOut(Tail),
    /// Killed with all it started: it wrote without end.
    Flooded(Tail),
    /// It never ran.
    NotStarted(io::Error),
}

/// Runs `args` with this process's environment, nothing on stdin, and stdout and stderr in one pipe.
/// It has ended when it has exited and nobody holds the pipe any more. Dropping the future kills it.
///
/// `output_max`: bytes of output kept.
pub(super) async fn run(args: &[String], limit: Duration, output_max: usize) -> Ended {
    run_job(Job {
        args,
        stdin: None,
        env: &[],
        limit,
        output_max,
    })
    .await
}

/// A process to be run.
pub(crate) struct Job<'a> {
    /// The program and its arguments.
    pub(crate) args: &'a [String],
    /// What it reads; nothing unless given. It need not read it.
    pub(crate) stdin: Option<Bytes>,
    /// Added to this process's environment.
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// Time it may take.
    pub(crate) limit: Duration,
    /// Bytes of output kept.
    pub(crate) output_max: usize,
}

/// As [`run`], with something to read and more of an environment.
pub(crate) async fn run_job(job: Job<'_>) -> Ended {
    let mut tail = Tail::new(job.output_max);
    let (mut child, mut output, group) = match start(&job) {
        Ok(started) => started,
        Err(error) => return Ended::NotStarted(error),
    };
    let feeding = child.stdin.take().map(|mut stdin| {
        let data = job.stdin.unwrap_or_default();
        // A process that does not read to the end closes the pipe: that is its right.
        AbortOnDropHandle::new(tokio::spawn(
            async move { drop(stdin.write_all(&data).await) },
        ))
    });
    let end = tokio::time::timeout(job.limit, follow(&mut child, &mut output, &mut tail)).await;
    drop(feeding);
    match end {
        Ok(Ok(Some(status))) => {
            group.keep();
            let code = status.code();
            if let (None, Some(signal)) = (code, status.signal()) {
                tail.push(format!("killed by signal {signal}").as_bytes());
            }
            Ended::Exited(code, tail)
        }
        Ok(Ok(None)) => {
            end_all(group, child).await;
            Ended::Flooded(tail)
        }
        Ok(Err(error)) => {
            end_all(group, child).await;
            Ended::NotStarted(error)
        }
        Err(_) => {
            end_all(group, child).await;
            Ended::TimedOut(tail)
        }
    }
}

fn start(job: &Job<'_>) -> io::Result<(Child, pipe::Receiver, Group)> {
    let (program, rest) = job
        .args
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
    let (reader, writer) = io::pipe()?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    let child = Command::new(program)
        .args(rest)
        .envs(job.env.iter().copied())
        .stdin(if job.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(writer.try_clone()?)
        .stderr(writer)
        // A group of its own: what it starts can be ended with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let group = Group(pid.and_then(Pid::from_raw));
    Ok((child, reader, group))
}

/// Reads to the end of the pipe, then waits for the exit; `None` when the output has no end.
async fn follow(
    child: &mut Child,
    output: &mut pipe::Receiver,
    tail: &mut Tail,
) -> io::Result<Option<ExitStatus>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match output.read(&mut buffer).await? {
            0 => return child.wait().await.map(Some),
            read => tail.push(&buffer[..read]),
        }
        if tail.is_flood() {
            return Ok(None);
        }
    }
}

async fn end_all(group: Group, mut child: Child) {
    drop(group);
    // Ended or not, it is reaped: tokio takes over what is dropped.
    let _ = tokio::time::timeout(REAP_WAIT, child.wait()).await;
}

/// Kills the whole group when dropped.
struct Group(Option<Pid>);

impl Group {
    /// It ended by itself; what it left behind on purpose stays.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take()
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(%error, process.group = pid.as_raw_nonzero().get(), "a check's process group was gone already");
        }
    }
}
