//! The agent's process: configuration in, parts wired, signals out.
//!
//! Owns: the order of start and stop, the data directory's lock, exit codes.
//! Never: decides what a part should; each part says why it cannot start.

mod about;
mod activation;
mod client;
mod control;
pub(crate) mod enrolment;
mod footprint;
mod glue;
mod join;
mod log_file;
mod logging;
mod manager;
mod monitor;
mod node;
mod offline;
mod parts;
mod places;
mod pool_metrics;
mod role;
mod servers;
mod tls;

pub(crate) use offline::{lock_data_dir, rpc_tls, server_settings};

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use weft_agent::config::{self, RuntimeConfig};
use weft_agent::http::Control;
use weft_proto::clock::{Clock, SystemClock};

use activation::Sockets;
use control::{Asked, Process};
use manager::Manager;
use parts::Parts;

/// Bad configuration or a refused start (sysexits `EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;
/// The server role ended by itself: a failed disk, a diverged state.
const EXIT_FATAL: u8 = 70;

/// Reads the configuration anew, as at the start, for a reload.
pub(crate) type Load = Arc<dyn Fn() -> Result<RuntimeConfig, String> + Send + Sync>;

/// Runs the agent until it is told to stop. Blocks.
pub(crate) fn agent(config: RuntimeConfig, load: Load) -> ExitCode {
    let mut config = config;
    let sockets = match Sockets::from_env() {
        Ok(sockets) => sockets,
        Err(errors) => {
            for error in errors {
                crate::stderr::note!("error: {error}");
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    sockets.show_in(&mut config);
    let refusals = config::exposure(&config);
    if !refusals.is_empty() {
        for refusal in &refusals {
            crate::stderr::note!("{refusal}");
        }
        return ExitCode::from(EXIT_CONFIG);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("weft")
        .build()
    {
        Ok(runtime) => runtime,
        Err(cause) => {
            crate::stderr::note!("error: cannot start threads: {cause}");
            return ExitCode::from(EXIT_FATAL);
        }
    };
    let code = runtime.block_on(run(config, load, sockets));
    // Blocking work that outlives its purpose (a snapshot nobody reads) must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

async fn run(config: RuntimeConfig, load: Load, sockets: Sockets) -> ExitCode {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    if let Err(cause) = logging::start(&config.log, clock.clone()) {
        crate::stderr::note!("error: {cause:#}");
        return ExitCode::from(EXIT_CONFIG);
    }
    say_what_is_odd(&config);
    let pid_file = config.pid_file.clone();
    sockets.say();
    let manager = Manager::from_env();
    let (process, mut asked) = Process::new(load, manager.clone());
    let parts = match Parts::start(config, clock, process.clone(), sockets).await {
        Ok(parts) => Arc::new(parts),
        Err(cause) => {
            tracing::error!(error = %format!("{cause:#}"), "the agent could not start");
            crate::stderr::note!("error: {cause:#}");
            return ExitCode::from(start_failed(&cause));
        }
    };
    process.attach(parts.clone());
    if let Some(path) = &pid_file
        && let Err(cause) = std::fs::write(path, format!("{}\n", std::process::id()))
    {
        tracing::error!(file = %path.display(), error = %cause, "cannot write pid_file");
        return ExitCode::from(1);
    }
    tracing::info!("the agent is up");
    let attended = tokio_util::sync::CancellationToken::new();
    manager.attend(&parts, &attended);
    tokio::spawn(footprint::settle());
    let stopping = async {
        attended.cancel();
        manager.stopping().await;
    };
    let code = serve(&parts, &process, &mut asked, stopping).await;
    if let Some(path) = &pid_file {
        let _ = std::fs::remove_file(path);
    }
    code
}

/// A start that no repetition mends is told apart from one that may work the next time.
fn start_failed(cause: &anyhow::Error) -> u8 {
    use weft_gossip::GossipError;
    let copied = matches!(cause.downcast_ref(), Some(GossipError::IdTaken { .. }));
    match copied || cause.is::<weft_identity::tls::TlsError>() {
        true => EXIT_CONFIG,
        false => 1,
    }
}

fn say_what_is_odd(config: &RuntimeConfig) {
    for problem in config
        .warnings
        .iter()
        .chain(&config::exposure_warnings(config))
    {
        tracing::warn!(code = problem.code.id(), "{}", problem.message);
    }
}

/// Waits for the end, whoever brings it, and answers the exit code.
async fn serve(
    parts: &Arc<Parts>,
    process: &Arc<Process>,
    asked: &mut tokio::sync::mpsc::Receiver<Asked>,
    goodbye: impl Future<Output = ()>,
) -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::error!("cannot listen for signals");
        return ExitCode::from(EXIT_FATAL);
    };
    let leave = parts.config().leave;
    let graceful = loop {
        tokio::select! {
            _ = interrupt.recv() => break !leave.skip_on_interrupt,
            _ = terminate.recv() => break leave.on_terminate,
            _ = hangup.recv() => match process.reload().await {
                Ok(()) => tracing::info!("configuration reloaded"),
                Err(why) => tracing::error!(reason = %why, "reload refused, the old configuration stays in force"),
            },
            Some(Asked::Stop { left }) = asked.recv() => {
                tracing::info!(left, "stopping as asked by the API");
                goodbye.await;
                return match parts.stop().await {
                    false => ExitCode::from(EXIT_FATAL),
                    true if left => ExitCode::SUCCESS,
                    true => ExitCode::from(1),
                };
            }
            fatal = parts.fatal() => {
                tracing::error!(reason = %fatal, "the server role ended; exiting so that the supervisor restarts it");
                crate::stderr::note!("error: {fatal}");
                goodbye.await;
                parts.stop().await;
                return ExitCode::from(EXIT_FATAL);
            }
        }
    };
    let stopping = async {
        goodbye.await;
        if graceful {
            tracing::info!("leaving the cluster");
            if let Err(why) = parts.leave().await {
                tracing::warn!(reason = %why, "left without ceremony");
            }
        }
        parts.stop().await
    };
    tokio::select! {
        in_time = stopping => if in_time { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FATAL) },
        _ = interrupt.recv() => ExitCode::from(1),
        _ = terminate.recv() => ExitCode::from(1),
    }
}
