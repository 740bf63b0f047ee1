//! Autopilot: learners become voters when they have kept up; servers that left are removed.
//!
//! Owns: the rules, as a pure function over what the leader sees.
//! Never: removes a server when that would cost the quorum.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_raft::{Member, RaftId, Role, Status};

use crate::config::ServerConfig;
use crate::formation::{PoolServer, pool_servers};
use crate::handle::Server;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One membership change to make now.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Promote(RaftId),
    Remove(RaftId),
}

pub(super) async fn run(server: &Server) {
    let inner = &server.inner;
    let mut stable_since: BTreeMap<RaftId, Duration> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(gossip) = inner.gossip.load_full() else {
            continue;
        };
        let status = inner.raft.status();
        if status.role != Role::Leader {
            continue;
        }
        let now = inner.clock.monotonic();
        let pool = pool_servers(&gossip.members(), &inner.config.datacenter);
        note_stability(&mut stable_since, &status, &inner.config, now);
        let ready: Vec<RaftId> = stable_since
            .iter()
            .filter(|(_, since)| now.saturating_sub(**since) >= inner.config.stabilization)
            .map(|(id, _)| *id)
            .collect();
        let Some(change) = decide(
            &status.members,
            &pool,
            inner.raft.status().id,
            &ready,
            &inner.config,
        ) else {
            continue;
        };
        let done = match change {
            Change::Promote(id) => inner.raft.promote(id).await,
            Change::Remove(id) => inner.raft.remove(id).await,
        };
        match done {
            Ok(()) => tracing::info!(change = ?change, "membership changed by autopilot"),
            Err(cause) => {
                tracing::warn!(change = ?change, error = %cause, "autopilot's change failed")
            }
        }
    }
}

/// Keeps, per learner, since when it has kept up.
fn note_stability(
    since: &mut BTreeMap<RaftId, Duration>,
    status: &Status,
    config: &ServerConfig,
    now: Duration,
) {
    let members = &status.members;
    let keeps_up = |m: &&Member| {
        !m.voter
            && m.matched.is_some_and(|matched| {
                matched.saturating_add(config.max_trailing_logs) >= status.last_log
            })
            && m.last_contact
                .is_some_and(|c| c < config.last_contact_threshold * config.raft_multiplier)
    };
    let ids: Vec<RaftId> = members.iter().filter(keeps_up).map(|m| m.peer.id).collect();
    since.retain(|id, _| ids.contains(id));
    for id in ids {
        since.entry(id).or_insert(now);
    }
}

/// At most one change at a time: learners first, then those who said goodbye, then the dead.
fn decide(
    members: &[Member],
    pool: &[PoolServer],
    me: RaftId,
    ready: &[RaftId],
    config: &ServerConfig,
) -> Option<Change> {
    if let Some(learner) = members
        .iter()
        .find(|m| !m.voter && ready.contains(&m.peer.id))
    {
        return Some(Change::Promote(learner.peer.id));
    }
    let in_pool = |m: &Member| pool.iter().find(|s| s.raft_id == m.peer.id);
    let others = || members.iter().filter(|m| m.peer.id != me);
    if let Some(gone) = others().find(|m| in_pool(m).is_some_and(|s| s.left)) {
        return Some(Change::Remove(gone.peer.id));
    }
    if !config.cleanup_dead_servers {
        return None;
    }
    let voters = members.iter().filter(|m| m.voter).count();
    let dead: Vec<_> = others()
        .filter(|m| in_pool(m).is_some_and(|s| !s.alive && !s.left))
        .collect();
    let dead_voters = dead.iter().filter(|m| m.voter).count();
    // Consul's rule: never take away a minority so large that the next failure would end the quorum.
    let removable = dead
        .into_iter()
        .find(|m| !m.voter || (dead_voters < voters / 2 && voters > config.min_quorum as usize));
    removable.map(|m| Change::Remove(m.peer.id))
}
