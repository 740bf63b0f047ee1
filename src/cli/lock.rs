//! `weft lock`: runs a child while holding a lock, or one of n places.
//!
//! Owns: the session's life, the contest for the key, and the child's.
//! Never: promises more than an advisory lock can: a child that ignores signals outlives the lock.
//! Source: Consul docs, "lock" and "Semaphore"; the key names and flags are theirs, so that both
//! programs keep each other out.

mod contest;

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use weft_proto::duration;

use super::child::{Child, Input, Job, Signals};
use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, field};
use contest::Contest;

/// Consul's code for a failed child with `-child-exit-code`.
const CHILD_FAILED: u8 = 2;
/// Life of the session; renewed at half of it.
const SESSION_TTL: Duration = Duration::from_secs(15);
/// How long one renewal may take; the next one goes over a new connection.
const RENEWAL_LIMIT: Duration = Duration::from_secs(4);
/// Pause after a renewal that failed.
const RENEWAL_RETRY: Duration = Duration::from_secs(1);
/// How long the session's end may take; without it the session ends by itself.
const DESTROY_LIMIT: Duration = Duration::from_secs(10);

/// Run a command while holding a lock
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft lock backups/nightly ./backup.sh\n  weft lock -n=3 -try=10s workers/import ./import --all"
)]
pub(crate) struct LockArgs {
    /// End with exit code 2 when the child fails; otherwise its failure is only reported
    #[arg(long)]
    child_exit_code: bool,
    /// How often a failing watch of the lock is tried again before it counts as lost
    #[arg(long, default_value_t = 3, value_name = "NUMBER")]
    monitor_retry: u32,
    /// How many may hold it at once
    #[arg(long = "n", default_value_t = 1, value_name = "NUMBER")]
    limit: u32,
    /// Name of the session, for people
    #[arg(long)]
    name: Option<String>,
    /// Give the child standard input
    #[arg(long)]
    pass_stdin: bool,
    /// Run the child by a shell
    #[arg(long, default_value = "true")]
    shell: bool,
    /// Give up after this time; 0s tries for ever
    #[arg(long, value_name = "DURATION")]
    r#try: Option<String>,
    /// An older name of -try
    #[arg(long, value_name = "DURATION", hide = true)]
    timeout: Option<String>,
    /// Say what is being done
    #[arg(long)]
    verbose: bool,
    /// Prefix of the lock's keys, then the command
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["PREFIX", "COMMAND"])]
    words: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: LockArgs) -> Done {
    super::with_client(&args.client, |client| lock(client, &args))
}

impl LockArgs {
    /// What stands behind the prefix, and behind `--` if that is there.
    fn command(&self) -> &[String] {
        let words = &self.words[1..];
        if words.first().is_some_and(|word| word == "--") {
            &words[1..]
        } else {
            words
        }
    }
}

async fn lock(client: Client, args: &LockArgs) -> Done {
    if args.limit == 0 {
        return Err(Failure::new(
            Exit::Negative,
            "Lock holder limit must be positive",
        ));
    }
    if args.command().is_empty() {
        return Err(Failure::usage("no command to run while holding the lock"));
    }
    let patience = args
        .r#try
        .as_deref()
        .or(args.timeout.as_deref())
        .map(duration::parse)
        .transpose();
    let patience = patience
        .map_err(|error| Failure::usage(format!("-try: {error}")))?
        .filter(|d| !d.is_zero());
    let prefix = args.words[0].trim_matches('/');
    if prefix.is_empty() {
        return Err(Failure::usage("the prefix must not be empty"));
    }
    let session = create_session(&client, args, prefix).await?;
    let result = hold(&client, args, prefix, &session, patience).await;
    // The session's end is the lock's end, whatever happened before.
    result.and(destroy_session(&client, &session).await)
}

async fn destroy_session(client: &Client, session: &str) -> Done {
    let path = format!("/v1/session/destroy/{session}");
    let destroying = client.put(&path, &[], "");
    match tokio::time::timeout(DESTROY_LIMIT, destroying).await {
        Ok(destroyed) => destroyed.map(|_| ()),
        Err(_) => {
            let limit = duration::format(DESTROY_LIMIT);
            let message = format!("the session was not destroyed within {limit}");
            Err(Failure::new(Exit::Timeout, message).hint(format!("{session} ends by itself")))
        }
    }
}

async fn create_session(client: &Client, args: &LockArgs, prefix: &str) -> Result<String, Failure> {
    let words = args.command().join(" ");
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("Lock for '{words}' at '{prefix}'"));
    // A contender's key of a semaphore means nothing without its session.
    let behavior = if args.limit > 1 { "delete" } else { "release" };
    let body = json!({"Name": name, "TTL": duration::format(SESSION_TTL), "Behavior": behavior});
    let answer = client
        .put("/v1/session/create", &[], body.to_string())
        .await?
        .json()?;
    Ok(field(&answer, "ID"))
}

/// Renews the session until it is gone; answers why it is.
async fn keep_alive(client: &Client, session: &str) -> Failure {
    let path = format!("/v1/session/renew/{session}");
    let mut deadline = Instant::now() + SESSION_TTL;
    let mut pause = SESSION_TTL / 2;
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        let limit = deadline.min(asked + RENEWAL_LIMIT);
        let failure = match tokio::time::timeout_at(limit, client.put(&path, &[], "")).await {
            Ok(Ok(_)) => {
                // It may have been granted as early as it was asked for.
                deadline = asked + SESSION_TTL;
                pause = SESSION_TTL / 2;
                continue;
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(Exit::Timeout, "the session was not renewed in time"),
        };
        // Servers may be electing a leader; the session lives on meanwhile.
        pause = RENEWAL_RETRY;
        if Instant::now() + pause >= deadline {
            return failure;
        }
    }
}

async fn hold(
    client: &Client,
    args: &LockArgs,
    prefix: &str,
    session: &str,
    patience: Option<Duration>,
) -> Done {
    let contest = Contest {
        client,
        prefix,
        session,
        limit: args.limit,
        retries: args.monitor_retry,
    };
    say(
        args,
        &match args.limit {
            1 => format!("Setting up lock at path: {prefix}/.lock"),
            limit => format!("Setting up semaphore (limit {limit}) at prefix: {prefix}"),
        },
    )?;
    say(args, "Attempting lock acquisition")?;
    let mut signals = Signals::new();
    let keep_alive = keep_alive(client, session);
    tokio::pin!(keep_alive);
    tokio::select! {
        won = contest.win(patience) => won?,
        failure = &mut keep_alive => return Err(failure.hint("the session was lost before the lock was won")),
        name = signals.asked_to_stop() => {
            contest.give_back().await;
            return Err(Failure::new(Exit::Negative, format!("Shutdown triggered by {name} before the lock was won")));
        }
    }
    say(args, "Starting handler")?;
    let job = Job {
        words: args.command(),
        shell: args.shell,
        input: if args.pass_stdin {
            Input::Ours
        } else {
            Input::Nothing
        },
        env: &[("CONSUL_LOCK_HELD", "true"), ("WEFT_LOCK_HELD", "true")],
    };
    let mut child = match Child::start(job) {
        Ok(child) => child,
        Err(failure) => {
            contest.give_back().await;
            return Err(failure);
        }
    };
    let done = tokio::select! {
        done = child.run(&mut signals) => done.map(|(code, _)| code),
        () = contest.lost() => lost(&mut child).await,
        _ = &mut keep_alive => lost(&mut child).await,
    };
    say(args, "Child terminated, releasing lock")?;
    contest.give_back().await;
    let cleaned = contest.clean_up().await;
    say(
        args,
        if cleaned {
            "Cleanup succeeded"
        } else {
            "Cleanup aborted, lock in use"
        },
    )?;
    finish(done?, args.child_exit_code)
}

async fn lost(child: &mut Child) -> Result<u8, Failure> {
    crate::stderr::note!("Lock lost, killing child");
    child.stop().await;
    Err(Failure::new(Exit::Negative, "Lock lost"))
}

fn finish(code: u8, told: bool) -> Done {
    if code != 0 {
        crate::stderr::note!("Error running handler: exit status {code}");
    }
    if code != 0 && told {
        Err(Failure::silent(CHILD_FAILED))
    } else {
        Ok(())
    }
}

fn say(args: &LockArgs, text: &str) -> Done {
    if args.verbose {
        output::line(text)
    } else {
        Ok(())
    }
}
