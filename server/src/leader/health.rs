//! How well each server is, as the leader sees it, and since when.
//!
//! Owns: the rule (alive in the pool, heard of late, not far behind) and the time of the last change.
//! Never: acts on it; autopilot does.
//! Source: Consul docs, "Autopilot", "Server health checking".

use std::collections::BTreeMap;

use weft_proto::ids::UnixMillis;
use weft_raft::{Member, RaftId, Status};

use super::autopilot::silence;
use crate::config::ServerConfig;
use crate::formation::PoolServer;

/// Each server of the membership: whether it is well, and since when that is so.
#[derive(Debug, Default)]
pub(crate) struct ServerHealth {
    found: BTreeMap<RaftId, Found>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    healthy: bool,
    since: UnixMillis,
}

impl ServerHealth {
    /// Takes note of what the leader sees at `now`.
    pub(super) fn note(
        &mut self,
        status: &Status,
        pool: &[PoolServer],
        config: &ServerConfig,
        now: UnixMillis,
    ) {
        let is_member = |id: &RaftId| status.members.iter().any(|m| m.peer.id == *id);
        self.found.retain(|id, _| is_member(id));
        for member in &status.members {
            let healthy = is_well(member, status, pool, config);
            let found = self.found.entry(member.peer.id).or_insert(Found {
                healthy,
                since: now,
            });
            if found.healthy != healthy {
                *found = Found {
                    healthy,
                    since: now,
                };
            }
        }
    }

    /// Whether the server is well; one not looked at yet is not.
    pub(crate) fn is_healthy(&self, id: RaftId) -> bool {
        self.found.get(&id).is_some_and(|found| found.healthy)
    }

    /// Since when it is as it is; 0 for one not looked at yet.
    pub(crate) fn stable_since(&self, id: RaftId) -> UnixMillis {
        self.found
            .get(&id)
            .map_or(UnixMillis(0), |found| found.since)
    }
}

fn is_well(member: &Member, status: &Status, pool: &[PoolServer], config: &ServerConfig) -> bool {
    if member.peer.id == status.id {
        return true;
    }
    let alive = pool
        .iter()
        .any(|server| server.raft_id == member.peer.id && server.alive && !server.left);
    let heard = member
        .last_contact
        .is_some_and(|since| since < silence(config));
    let near = member
        .matched
        .is_some_and(|matched| matched.saturating_add(config.max_trailing_logs) >= status.last_log);
    alive && heard && near
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_raft::{Peer, Role};

    use super::*;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn seen(silent_millis: u64, matched: u64, alive: bool) -> (Status, Vec<PoolServer>) {
        let member = |n, silent| Member {
            peer: Peer {
                id: id(n),
                ..Peer::default()
            },
            voter: true,
            incoming: false,
            matched: Some(matched),
            matched_term: None,
            last_contact: Some(Duration::from_millis(silent)),
        };
        let status = Status {
            id: id(1),
            role: Role::Leader,
            last_log: 1_000,
            members: vec![member(1, 0), member(2, silent_millis)],
            ..Status::default()
        };
        let server = PoolServer {
            raft_id: id(2),
            name: "s2".into(),
            address: "127.0.0.2:8300".into(),
            expect: None,
            alive,
            left: false,
        };
        (status, vec![server])
    }

    #[test]
    fn a_server_is_well_while_alive_heard_and_near() {
        let config = crate::config::for_tests();
        for (silent, matched, alive, well) in [
            (1, 1_000, true, true),
            (1, 1_000, false, false),
            (60_000, 1_000, true, false),
            (1, 1, true, false),
        ] {
            let mut health = ServerHealth::default();
            let (status, pool) = seen(silent, matched, alive);
            health.note(&status, &pool, &config, UnixMillis(5));
            assert_eq!(health.is_healthy(id(2)), well, "{silent} {matched} {alive}");
            assert!(health.is_healthy(id(1)), "the leader itself");
        }
    }

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let config = crate::config::for_tests();
        let mut health = ServerHealth::default();
        for (at, alive, since) in [(5, true, 5), (6, true, 5), (7, false, 7), (9, false, 7)] {
            let (status, pool) = seen(1, 1_000, alive);
            health.note(&status, &pool, &config, UnixMillis(at));
            assert_eq!(health.stable_since(id(2)), UnixMillis(since), "at {at}");
        }
        let gone = Status {
            id: id(1),
            ..Status::default()
        };
        health.note(&gone, &[], &config, UnixMillis(10));
        assert_eq!(
            health.stable_since(id(2)),
            UnixMillis(0),
            "no member any more"
        );
    }
}
