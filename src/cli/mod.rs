//! The command line: one file per verb.
//!
//! Owns: the tree of commands, how arguments are read, exit codes and forms of output.
//! Never: does an agent's work; `agent` hands its configuration to the run loop.
//! Source: CONSUL F (verbs and their flags), TRUST C.4 (manners).

pub(crate) mod agent;
mod argv;
mod ca;
mod catalog;
mod child;
mod client;
mod completion;
mod config;
mod debug;
mod event;
mod failure;
mod force_leave;
mod info;
mod init;
mod intention;
mod join;
mod join_token;
mod keygen;
mod keyring;
mod kv;
mod kv_file;
mod leave;
mod lock;
mod maint;
mod members;
mod monitor;
mod operator;
mod output;
mod progress;
mod proxy;
mod recover;
mod reload;
mod rtt;
mod services;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;
mod validate;
mod version;
mod views;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use client::{Client, ClientArgs};
use failure::{Done, Exit, Failure};
use output::Format;

/// What argv asks for.
pub(crate) enum Asked {
    /// Run an agent with this configuration; the second part reads it anew for a reload.
    Agent(Box<agent::Start>),
    /// Nothing more: the command has run, or has said what is wrong with it.
    Done(ExitCode),
}

/// A service mesh for VMs and containers in one binary: discovery, KV, DNS, locks
#[derive(Parser)]
#[command(name = "weft", bin_name = "weft", version = version::SHORT, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Agent(agent::AgentArgs),
    Ca(ca::CaArgs),
    Catalog(catalog::CatalogArgs),
    Completion(completion::CompletionArgs),
    Config(config::ConfigArgs),
    Connect(ca::ConnectArgs),
    Debug(debug::DebugArgs),
    Event(event::EventArgs),
    ForceLeave(force_leave::ForceLeaveArgs),
    Info(info::InfoArgs),
    Init(init::InitArgs),
    Intention(intention::IntentionArgs),
    Join(join::JoinArgs),
    JoinToken(join_token::JoinTokenArgs),
    Keygen(keygen::KeygenArgs),
    Keyring(keyring::KeyringArgs),
    Kv(kv::KvArgs),
    Leave(leave::LeaveArgs),
    Lock(lock::LockArgs),
    Maint(maint::MaintArgs),
    Members(members::MembersArgs),
    Monitor(monitor::MonitorArgs),
    Operator(operator::OperatorArgs),
    Proxy(proxy::ProxyArgs),
    Recover(recover::RecoverArgs),
    Reload(reload::ReloadArgs),
    Rtt(rtt::RttArgs),
    Services(services::ServicesArgs),
    Session(session::SessionArgs),
    Snapshot(snapshot::SnapshotArgs),
    Tls(tls::TlsArgs),
    Validate(validate::ValidateArgs),
    Version(version::VersionArgs),
    Views(views::ViewsArgs),
    Watch(watch::WatchArgs),
}

fn command() -> clap::Command {
    // The path of the bundle is -output in Consul, so the form of what is printed has its other names.
    let own_format = |debug: clap::Command| {
        debug.mut_arg("output", |form| form.visible_alias(None).long("format"))
    };
    argv::go_booleans(Cli::command().mut_subcommand("debug", own_format))
}

/// Reads argv and does what it asks for, but for running an agent.
pub(crate) fn main(argv: impl Iterator<Item = std::ffi::OsString>) -> Asked {
    let argv: Vec<String> = argv
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let command = built();
    let argv = argv::normalise(&command, argv);
    let format = if wants_json(&argv) {
        Format::Json
    } else {
        Format::Table
    };
    if let Some(autocomplete) = completion::Autocomplete::asked(&argv) {
        return Asked::Done(finish(autocomplete.perform(), format));
    }
    match understood(command, argv) {
        Ok(Verb::Agent(args)) => match agent::start(args) {
            Ok(start) => Asked::Agent(Box::new(start)),
            Err(failure) => Asked::Done(failure.report(format)),
        },
        Ok(verb) => Asked::Done(finish(perform(verb), format)),
        Err(error) if !error.use_stderr() => {
            // Help and version are data.
            Asked::Done(finish(output::bytes(error.to_string().as_bytes()), format))
        }
        Err(error) if format == Format::Json => {
            Asked::Done(Failure::usage(error.to_string()).report(format))
        }
        Err(error) => {
            crate::stderr::note!("{}", error.to_string().trim_end());
            Asked::Done(ExitCode::from(Exit::Usage as u8))
        }
    }
}

fn built() -> clap::Command {
    let mut command = command();
    command.build();
    command
}

/// Errors are said in the form asked for, those about the line itself too. What stands behind `--` is not
/// ours: a child's words, or data.
fn wants_json(argv: &[String]) -> bool {
    let ours = argv.split(|word| word == "--").next().unwrap_or_default();
    let joined = ["-o=json", "-ojson", "--format=json", "--output=json"];
    ours.iter().any(|word| joined.contains(&word.as_str()))
        || ours.windows(2).any(|pair| pair == ["-o", "json"])
}

fn understood(mut command: clap::Command, argv: Vec<String>) -> Result<Verb, clap::Error> {
    let matches = command.try_get_matches_from_mut(argv)?;
    Cli::from_arg_matches(&matches).map(|cli| cli.verb)
}

#[cfg(test)]
fn parse(argv: Vec<String>) -> Result<Verb, clap::Error> {
    let command = built();
    let argv = argv::normalise(&command, argv);
    understood(command, argv)
}

fn finish(done: Done, format: Format) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

fn perform(verb: Verb) -> Done {
    match verb {
        Verb::Agent(_) => Ok(()),
        Verb::Ca(args) => ca::run(args),
        Verb::Catalog(args) => catalog::run(args),
        Verb::Completion(args) => completion::run(args),
        Verb::Config(args) => config::run(args),
        Verb::Connect(args) => ca::run_connect(args),
        Verb::Debug(args) => debug::run(args),
        Verb::Event(args) => event::run(args),
        Verb::ForceLeave(args) => force_leave::run(args),
        Verb::Info(args) => info::run(args),
        Verb::Init(args) => init::run(args),
        Verb::Intention(args) => intention::run(args),
        Verb::Join(args) => join::run(args),
        Verb::JoinToken(args) => join_token::run(args),
        Verb::Keygen(args) => keygen::run(args),
        Verb::Keyring(args) => keyring::run(args),
        Verb::Kv(args) => kv::run(args),
        Verb::Leave(args) => leave::run(args),
        Verb::Lock(args) => lock::run(args),
        Verb::Maint(args) => maint::run(args),
        Verb::Members(args) => members::run(args),
        Verb::Monitor(args) => monitor::run(args),
        Verb::Operator(args) => operator::run(args),
        Verb::Proxy(args) => proxy::run(args),
        Verb::Recover(args) => recover::run(args),
        Verb::Reload(args) => reload::run(args),
        Verb::Rtt(args) => rtt::run(args),
        Verb::Services(args) => services::run(args),
        Verb::Session(args) => session::run(args),
        Verb::Snapshot(args) => snapshot::run(args),
        Verb::Tls(args) => tls::run(args),
        Verb::Validate(args) => validate::run(args),
        Verb::Version(args) => version::run(args),
        Verb::Views(args) => views::run(args),
        Verb::Watch(args) => watch::run(args),
    }
}

/// Runs a command that talks to an agent, on a runtime of one thread.
fn with_client<F>(args: &ClientArgs, work: impl FnOnce(Client) -> F) -> Done
where
    F: Future<Output = Done>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start: {error}")))?;
    let client = Client::new(args)?;
    runtime.block_on(work(client))
}

/// One line of an HTTP API path: the segments behind a prefix, each escaped by the client.
fn segment(text: &str) -> Result<&str, Failure> {
    if text.is_empty() {
        Err(Failure::usage("a name must not be empty"))
    } else {
        Ok(text)
    }
}
