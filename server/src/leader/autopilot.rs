//! Autopilot: learners become voters when they have kept up; servers that left are removed; a change of
//! voters that a dead leader left half done is ended.
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
    /// End a change of voters that is half done: until then both sets must agree to everything.
    Settle,
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
        inner
            .health
            .lock()
            .note(&status, &pool, &inner.config, inner.clock.wall());
        note_stability(&mut stable_since, &status, &inner.config, now);
        let ready: Vec<RaftId> = stable_since
            .iter()
            .filter(|(_, since)| now.saturating_sub(**since) >= inner.config.stabilization)
            .map(|(id, _)| *id)
            .collect();
        let Some(change) = decide(&status, &pool, &ready, &inner.config) else {
            continue;
        };
        let done = match change {
            Change::Settle => inner.raft.settle_membership().await,
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
            && m.last_contact.is_some_and(|since| since < silence(config))
    };
    let ids: Vec<RaftId> = members.iter().filter(keeps_up).map(|m| m.peer.id).collect();
    since.retain(|id, _| ids.contains(id));
    for id in ids {
        since.entry(id).or_insert(now);
    }
}

/// At most one change at a time: half a change first, then learners, then those who said goodbye, then the dead.
fn decide(
    status: &Status,
    pool: &[PoolServer],
    ready: &[RaftId],
    config: &ServerConfig,
) -> Option<Change> {
    if status.joint {
        return Some(Change::Settle);
    }
    let members = &status.members;
    if let Some(learner) = members
        .iter()
        .find(|m| !m.voter && ready.contains(&m.peer.id))
    {
        return Some(Change::Promote(learner.peer.id));
    }
    let in_pool = |m: &Member| pool.iter().find(|s| s.raft_id == m.peer.id);
    let others = || members.iter().filter(|m| m.peer.id != status.id);
    if let Some(gone) = others().find(|m| in_pool(m).is_some_and(|s| s.left)) {
        return Some(Change::Remove(gone.peer.id));
    }
    if !config.cleanup_dead_servers {
        return None;
    }
    let dead = others().filter(|m| in_pool(m).is_some_and(|s| !s.alive && !s.left));
    let (voters, learners): (Vec<_>, Vec<_>) = dead.partition(|m| m.voter);
    let may_go = voters
        .first()
        .filter(|_| voter_may_go(status, voters.len(), config));
    learners
        .first()
        .or(may_go)
        .map(|m| Change::Remove(m.peer.id))
}

/// Consul's rule: the dead are fewer than half, and `min_quorum` voters stay. Beyond it, those who answer
/// this leader now must be a majority of those who stay: the pool may not have noticed yet who else is gone.
fn voter_may_go(status: &Status, dead: usize, config: &ServerConfig) -> bool {
    let voters = || status.members.iter().filter(|m| m.voter);
    let answers = |m: &&Member| {
        m.peer.id == status.id || m.last_contact.is_some_and(|since| since < silence(config))
    };
    let (all, answering) = (voters().count(), voters().filter(answers).count());
    dead < all / 2 && all > config.min_quorum as usize && answering > (all - 1) / 2
}

/// How long a server that keeps up may be silent.
pub(super) fn silence(config: &ServerConfig) -> Duration {
    config.last_contact_threshold * config.raft_multiplier
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    /// Voters 1 to `count`; 1 leads, all answered a moment ago but `silent`.
    fn voters(count: u128, silent: &[u128]) -> Status {
        let member = |n| Member {
            peer: weft_raft::Peer {
                id: id(n),
                ..Default::default()
            },
            voter: true,
            incoming: false,
            matched: Some(1),
            matched_term: None,
            last_contact: (!silent.contains(&n)).then_some(Duration::from_millis(10)),
        };
        Status {
            id: id(1),
            role: Role::Leader,
            members: (1..=count).map(member).collect(),
            ..Status::default()
        }
    }

    fn pool(count: u128, dead: &[u128]) -> Vec<PoolServer> {
        let server = |n| PoolServer {
            raft_id: id(n),
            name: format!("s{n}"),
            address: format!("127.0.0.{n}:8300"),
            expect: None,
            alive: !dead.contains(&n),
            left: false,
        };
        (1..=count).map(server).collect()
    }

    fn decided(status: &Status, dead: &[u128], min_quorum: u32) -> Option<Change> {
        let config = ServerConfig {
            min_quorum,
            ..crate::config::for_tests()
        };
        let pool = pool(status.members.len() as u128, dead);
        decide(status, &pool, &[], &config)
    }

    #[test]
    fn a_change_left_half_done_comes_before_all_others() {
        let mut status = voters(5, &[]);
        assert_eq!(decided(&status, &[], 0), None);
        status.joint = true;
        assert_eq!(decided(&status, &[5], 0), Some(Change::Settle));
    }

    #[test]
    fn the_dead_go_only_while_a_quorum_of_the_rest_is_sure() {
        let gone = |n| Some(Change::Remove(id(n)));
        for (count, dead, silent, min_quorum, expected, why) in [
            (5, &[5][..], &[5][..], 0, gone(5), "one of five"),
            (5, &[4, 5], &[4, 5], 0, None, "two of five: half"),
            (7, &[6, 7], &[6, 7], 0, gone(6), "two of seven"),
            (
                3,
                &[3],
                &[3],
                0,
                None,
                "a third failure would end the quorum",
            ),
            (5, &[5], &[5], 5, None, "min_quorum"),
            (5, &[5], &[3, 4, 5], 0, None, "others are silent already"),
        ] {
            let status = voters(count, silent);
            assert_eq!(decided(&status, dead, min_quorum), expected, "{why}");
        }
    }
}
