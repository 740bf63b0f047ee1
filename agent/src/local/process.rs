//! One process on behalf of a check or a watch, from its start to the end of everything it started.
//!
//! Owns: its process group, its pipe, the time and output it may take, and its seat until it is really gone.
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
/// The result of a killed process waits this long for it to be gone.
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
/// `output_max`: bytes of output kept. `seat`: dropped once the process is gone, however this ends; one
/// that the system cannot kill (it hangs in the kernel) keeps it.
pub(super) async fn run<S: Send + 'static>(
    args: &[String],
    limit: Duration,
    output_max: usize,
    seat: S,
) -> Ended {
    let job = Job {
        args,
        stdin: None,
        env: &[],
        limit,
        output_max,
    };
    run_job(job, seat).await
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
pub(crate) async fn run_job<S: Send + 'static>(job: Job<'_>, seat: S) -> Ended {
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
    // Declared before the group, so dropped after it: killed first, then waited for.
    let mut seated = Seated(Some((child, seat)));
    let group = group;
    let followed = follow(seated.child(), &mut output, &mut tail);
    let end = tokio::time::timeout(job.limit, followed).await;
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
            end_all(group, seated).await;
            Ended::Flooded(tail)
        }
        Ok(Err(error)) => {
            end_all(group, seated).await;
            Ended::NotStarted(error)
        }
        Err(_) => {
            end_all(group, seated).await;
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

async fn end_all<S: Send + 'static>(group: Group, mut seated: Seated<S>) {
    drop(group);
    // Ended or not, it is reaped: see `Seated`.
    let _ = tokio::time::timeout(REAP_WAIT, seated.child().wait()).await;
}

/// A process and its seat, which is free when the process is gone and not before.
struct Seated<S: Send + 'static>(Option<(Child, S)>);

impl<S: Send + 'static> Seated<S> {
    fn child(&mut self) -> &mut Child {
        let (child, _) = self.0.as_mut().expect("taken only when dropped");
        child
    }
}

impl<S: Send + 'static> Drop for Seated<S> {
    fn drop(&mut self) {
        let Some((mut child, seat)) = self.0.take() else {
            return;
        };
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        // Without a runtime the agent itself is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(keep_until(
                seat,
                async move { child.wait().await.map(drop) },
            ));
        }
    }
}

/// Holds the seat until `gone`.
async fn keep_until<S>(seat: S, gone: impl Future<Output = io::Result<()>>) {
    if let Err(error) = gone.await {
        tracing::debug!(%error, "a check's process cannot be waited for");
    }
    drop(seat);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_cannot_be_killed_keeps_its_seat() {
        let seats = Arc::new(Semaphore::new(1));
        let seat = seats.clone().try_acquire_owned().unwrap();
        let (ended, gone) = tokio::sync::oneshot::channel::<()>();
        let keeping = tokio::spawn(keep_until(seat, async move {
            gone.await.map_err(io::Error::other)
        }));
        tokio::time::sleep(REAP_WAIT * 60).await;
        assert_eq!(seats.available_permits(), 0);
        ended.send(()).unwrap();
        keeping.await.unwrap();
        assert_eq!(seats.available_permits(), 1);
    }

    #[tokio::test]
    async fn the_seat_is_free_once_a_killed_process_is_gone() {
        let args = ["/bin/sh", "-c", "sleep 600"].map(str::to_owned);
        for abandon in [false, true] {
            let seats = Arc::new(Semaphore::new(1));
            let seat = seats.clone().try_acquire_owned().unwrap();
            let limit = Duration::from_millis(if abandon { 600_000 } else { 50 });
            let running = tokio::spawn({
                let args = args.clone();
                async move { run(&args, limit, 8, seat).await }
            });
            if abandon {
                tokio::time::sleep(Duration::from_millis(50)).await;
                running.abort();
                assert!(running.await.is_err());
            } else {
                assert!(matches!(running.await.unwrap(), Ended::TimedOut(_)));
            }
            let wait = Duration::from_secs(10);
            let free = tokio::time::timeout(wait, seats.acquire()).await;
            assert!(free.is_ok_and(|seat| seat.is_ok()), "abandoned: {abandon}");
        }
    }
}
