//! What only the leader does, for as long as it leads.
//!
//! Owns: starting and ending the duties with leadership.
//! Never: does a duty itself; each has its file.

pub(crate) mod agreement;
mod autopilot;
pub(crate) mod health;
mod reconcile;
mod restores;
mod sessions;
mod tombstones;

use std::time::Duration;

use weft_proto::v1;
use weft_proto::v1::stamped::Command;
use weft_raft::Role;

use crate::handle::Server;

/// Pause between tries to propose the first entry, and tries before anybody is told.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(20);
const ANNOUNCE_QUIETLY: u32 = 50;

/// Waits for leadership, does the duties, and over again until the role stops.
pub(crate) async fn run(server: Server) {
    let mut status = server.inner.raft.watch_status();
    let mut stop = server.inner.stop.subscribe();
    loop {
        let leading = status.wait_for(|s| s.role == Role::Leader);
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return,
            won = leading => if won.is_err() { return },
        }
        let term = status.borrow().term;
        tracing::info!(raft.term = term, node.name = %server.inner.config.node_name, "became leader");
        *server.inner.leading_since.lock() = Some(server.inner.clock.monotonic());
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return,
            changed = status.wait_for(|s| s.role != Role::Leader || s.term != term) => {
                if changed.is_err() { return }
            }
            () = duties(&server) => {}
        }
        *server.inner.leading_since.lock() = None;
        *server.inner.health.lock() = health::ServerHealth::default();
        tracing::info!(raft.term = term, node.name = %server.inner.config.node_name, "no longer leader");
    }
}

async fn duties(server: &Server) {
    announce(server).await;
    tokio::join!(
        reconcile::run(server),
        sessions::run(server),
        tombstones::run(server),
        restores::run(server),
        agreement::run(server),
        autopilot::run(server),
        crate::ca::run(server)
    );
}

/// Proposes this leader's first entry: it re-arms session timers, and names the cluster the first time.
async fn announce(server: &Server) {
    let start = v1::LeaderStart {
        raft_id: server.inner.raft.status().id.to_string(),
        node_name: server.inner.config.node_name.clone(),
        cluster_id: weft_proto::ids::mint(),
    };
    let mut tries = 0;
    while let Err(cause) = server.propose(Command::LeaderStart(start.clone())).await {
        tries += 1;
        // Leadership shows a moment before proposals are taken; only staying so is worth a warning.
        if tries == ANNOUNCE_QUIETLY {
            tracing::warn!(error = %cause, "the leader's first entry was not applied yet");
        }
        tokio::time::sleep(ANNOUNCE_EVERY).await;
    }
}

/// Proposes a duty's command; a failure is logged and left to the duty's next round.
async fn propose(server: &Server, duty: &'static str, command: Command) -> Option<v1::Outcome> {
    match server.propose(command).await {
        Ok(outcome) => {
            if let Some(v1::outcome::Result::Refusal(refusal)) = &outcome.result {
                tracing::debug!(duty, reason = %refusal.reason, message = %refusal.message, "refused");
            }
            Some(outcome)
        }
        Err(cause) => {
            tracing::warn!(duty, error = %cause, "could not propose");
            None
        }
    }
}
