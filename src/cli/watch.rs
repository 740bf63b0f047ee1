//! `weft watch`: what is there now, or a command for each change.
//!
//! Owns: the flags, and the life of the handler.
//! Never: decides what is news; `weft_agent::watch` does, for the agent's own watches too.
//! Source: Consul docs, "Commands: Watch".

use http::Method;
use serde_json::Value;
use weft_agent::watch::{ASK_LIMIT, Asked, Backoff, Follower, News, Plan};

use super::child::{Child, Input, Job, Signals};
use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output;

/// Show what a view of the cluster holds, or run a command whenever it changes
#[derive(clap::Args)]
#[command(
    after_help = "The command gets the data as JSON on standard input, and CONSUL_INDEX. Without a command the\n\
                  data is printed once.\n\n\
                  Examples:\n  weft watch -type=service -service=web -passingonly=true\n  weft watch -type=key -key=app/limits ./reload-limits.sh"
)]
pub(crate) struct WatchArgs {
    /// key, keyprefix, services, nodes, service, checks or event
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "",
        hide_default_value = true
    )]
    kind: String,
    /// Key, for type key
    #[arg(long)]
    key: Option<String>,
    /// Prefix of keys, for type keyprefix
    #[arg(long)]
    prefix: Option<String>,
    /// Service, for type service; for type checks only its checks
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only instances with this tag, for type service; may be repeated
    #[arg(long)]
    tag: Vec<String>,
    /// Only instances whose checks all pass, for type service
    #[arg(long, value_name = "BOOL", value_parser = super::argv::go_bool)]
    passingonly: Option<bool>,
    /// Only checks in this state, for type checks
    #[arg(long)]
    state: Option<String>,
    /// Only events of this name, for type event
    #[arg(long)]
    name: Option<String>,
    /// Filter expression evaluated by the agent
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Run the command by a shell, $SHELL or /bin/sh
    #[arg(long, default_value = "true")]
    shell: bool,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: WatchArgs) -> Done {
    let plan = Plan::new(args.asked()).map_err(|error| Failure::usage(error.to_string()))?;
    super::with_client(&args.client, |client| watch(client, &args, plan))
}

impl WatchArgs {
    fn asked(&self) -> Asked {
        Asked {
            kind: self.kind.clone(),
            key: self.key.clone(),
            prefix: self.prefix.clone(),
            service: self.service.clone(),
            tags: self.tag.clone(),
            passing_only: self.passingonly,
            state: self.state.clone(),
            name: self.name.clone(),
            filter: self.filter.clone(),
        }
    }

    /// What runs, without the `--` that may stand before it.
    fn handler(&self) -> &[String] {
        match self.command.split_first() {
            Some((first, rest)) if first == "--" => rest,
            _ => &self.command,
        }
    }
}

async fn watch(client: Client, args: &WatchArgs, plan: Plan) -> Done {
    let mut signals = Signals::new();
    let mut follower = Follower::new(plan);
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    let mut answered = false;
    loop {
        let asked = tokio::select! {
            asked = ask(&client, &mut follower) => asked,
            _ = signals.asked_to_stop() => return Ok(()),
        };
        match asked {
            Ok(news) => {
                answered = true;
                backoff.reset();
                if let Some(news) = news
                    && tell(args, &news, &mut signals).await? == Then::Stop
                {
                    return Ok(());
                }
            }
            // Nobody there, or a refusal of what was asked: trying again would hide the mistake.
            Err((failure, passing)) if !answered && !passing => return Err(failure),
            Err((failure, _)) => {
                follower.failed();
                let pause = backoff.pause();
                failure.report(client.format());
                crate::stderr::note!("Asking again in {:.1} s", pause.as_secs_f64());
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = signals.asked_to_stop() => return Ok(()),
                }
            }
        }
    }
}

/// The failure says whether it may pass by itself.
async fn ask(client: &Client, follower: &mut Follower) -> Result<Option<News>, (Failure, bool)> {
    let question = follower.ask();
    let query = question
        .query
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    let query: Vec<(&str, &str)> = query.collect();
    let asking = client.send(Method::GET, &question.path, &query, bytes::Bytes::new());
    let answer = match tokio::time::timeout(ASK_LIMIT, asking).await {
        Ok(answer) => answer.map_err(|failure| (failure, false))?,
        Err(_) => return Err((Failure::new(Exit::Timeout, "no answer in time"), true)),
    };
    let index = answer.headers.get("X-Consul-Index");
    let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
    follower
        .answered(answer.status, index, &answer.body)
        .map_err(|error| {
            let failure = match answer.status.is_success() {
                true => Failure::new(Exit::Internal, error.to_string()),
                false => answer.failure(),
            };
            (failure, error.may_pass())
        })
}

#[derive(PartialEq, Eq)]
enum Then {
    GoOn,
    Stop,
}

async fn tell(args: &WatchArgs, news: &News, signals: &mut Signals) -> Result<Then, Failure> {
    if args.handler().is_empty() {
        output::bytes(&indented(&news.json)?)?;
        return Ok(Then::Stop);
    }
    let index = news.index.to_string();
    let mut child = Child::start(Job {
        words: args.handler(),
        shell: args.shell,
        input: Input::Data(format!("{}\n", news.json).into()),
        env: &[("CONSUL_INDEX", &index), ("WEFT_INDEX", &index)],
    })?;
    match child.run(signals).await? {
        (_, true) => Ok(Then::Stop),
        (0, false) => Ok(Then::GoOn),
        (code, false) => Err(Failure::new(
            Exit::Negative,
            format!("Error executing handler: exit status {code}"),
        )),
    }
}

/// Four blanks a level, as Consul prints it.
fn indented(json: &str) -> Result<Vec<u8>, Failure> {
    let bug = |error: serde_json::Error| Failure::new(Exit::Internal, error.to_string());
    let value: Value = serde_json::from_str(json).map_err(bug)?;
    let mut out = Vec::new();
    let form = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut out, form);
    serde::Serialize::serialize(&value, &mut writer).map_err(bug)?;
    out.push(b'\n');
    Ok(out)
}
