//! Whom the leader lets into the membership.
//!
//! Owns: the rules, as a pure function over the request and what the leader sees.
//! Never: gives a name away while its holder lives, or takes in a log that may be another cluster's.

use std::time::Duration;

use weft_proto::v1;
use weft_raft::{Member, RaftId};

use crate::formation::PoolServer;
use crate::leader::agreement::follows;

/// Silence after which the holder of a name may be replaced, times `raft_multiplier`: five of the longest
/// elections, forty heartbeats.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(2);

/// What the leader does with a server that may come in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is a member, and where the membership says it is.
    Known,
    /// It is a member at a new address.
    Moved,
    /// A newcomer, in the place of these dead holders of its name.
    New(Vec<RaftId>),
}

/// What the leader sees when a server asks to be let in.
pub(crate) struct Seen<'a> {
    pub(crate) me: RaftId,
    pub(crate) datacenter: &'a str,
    pub(crate) cluster_id: &'a str,
    pub(crate) cluster_version: u32,
    pub(crate) recoveries: u64,
    pub(crate) members: &'a [Member],
    pub(crate) pool: &'a [PoolServer],
    /// How long this server has led: a member it never heard has been silent for as long, as far as it knows.
    pub(crate) leading_for: Duration,
    /// [`SILENT_AFTER`], scaled.
    pub(crate) silent_after: Duration,
}

/// Judges a request to join under `id`; an error is for whoever started that server.
pub(crate) fn judge(
    request: &v1::JoinRequest,
    id: RaftId,
    seen: &Seen<'_>,
) -> Result<Admission, String> {
    let name = &request.node_name;
    if request.datacenter != seen.datacenter {
        return Err(format!(
            "join.datacenter: this cluster is of datacenter {:?}, the server of {:?}",
            seen.datacenter, request.datacenter
        ));
    }
    if !request.cluster_id.is_empty() && request.cluster_id != seen.cluster_id {
        return Err(format!(
            "join.other_cluster: {name} holds data of another cluster ({}, this one is {}); start it with an empty data_dir to let it join",
            request.cluster_id, seen.cluster_id
        ));
    }
    if follows(request.cluster_version_max) < seen.cluster_version {
        return Err(format!(
            "join.version: this cluster is at version {}, {name} follows {}; install a newer weft there",
            seen.cluster_version,
            follows(request.cluster_version_max)
        ));
    }
    if let Some(known) = seen.members.iter().find(|m| m.peer.id == id) {
        return known_member(request, known);
    }
    if request.last_log_index > 0 && request.cluster_id.is_empty() {
        return Err(format!(
            "join.log_of_unknown_cluster: {name} holds a log of {} entries, but cannot say of which cluster, and Raft id {id} is no member of this one; start it with an empty data_dir to let it join",
            request.last_log_index
        ));
    }
    if request.last_log_index > 0 && request.recoveries < seen.recoveries {
        return Err(format!(
            "join.before_recovery: {name} holds data from before this cluster was recovered without it; move its raft folder away to let it join as a new server"
        ));
    }
    let holders: Vec<&Member> = seen
        .members
        .iter()
        .filter(|m| m.peer.name == *name)
        .collect();
    for holder in &holders {
        may_be_replaced(request, holder, seen)?;
    }
    Ok(Admission::New(holders.iter().map(|m| m.peer.id).collect()))
}

fn known_member(request: &v1::JoinRequest, known: &Member) -> Result<Admission, String> {
    let bound = &known.peer.public_key;
    if !bound.is_empty() && !request.public_key.is_empty() && *bound != request.public_key {
        return Err(format!(
            "join.other_key: Raft id {} is bound to the key of {} ({}), {} at {} has another; if its raft/server-key.pem was lost, move its raft folder away: it then joins as a new server",
            known.peer.id, known.peer.name, known.peer.address, request.node_name, request.address
        ));
    }
    if known.peer.address == request.address {
        Ok(Admission::Known)
    } else {
        Ok(Admission::Moved)
    }
}

/// A server that lost its data comes back under its name with a new id and nothing in its log. The old id
/// holds nothing any more, and as a voter it would only count against the quorum; but only its silence,
/// on Raft and in the pool, tells it from a second server that was given the same name.
fn may_be_replaced(
    request: &v1::JoinRequest,
    holder: &Member,
    seen: &Seen<'_>,
) -> Result<(), String> {
    let clash = |why: &str| {
        Err(format!(
            "join.name_taken: the name {:?} belongs to the server at {}, which {why}; the server at {} cannot have it: give that one another node_name, or stop the other and wait a moment",
            request.node_name, holder.peer.address, request.address
        ))
    };
    if request.last_log_index > 0 {
        return Err(format!(
            "join.replaced: {} at {} holds the log of a server whose place another one at {} has taken; start it with an empty data_dir or another node_name",
            request.node_name, request.address, holder.peer.address
        ));
    }
    if holder.peer.id == seen.me {
        return clash("leads this cluster");
    }
    let alive = |s: &&PoolServer| s.raft_id == holder.peer.id && s.alive;
    if seen.pool.iter().any(|s| alive(&s)) {
        return clash("is alive in the gossip pool");
    }
    if holder.last_contact.unwrap_or(seen.leading_for) < seen.silent_after {
        return clash("answered the leader a moment ago");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_raft::Peer;

    use super::*;

    const SILENT: Duration = Duration::from_secs(60);

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn member(n: u128, silent_for: Option<Duration>) -> Member {
        Member {
            peer: Peer {
                id: id(n),
                name: format!("s{n}"),
                address: format!("127.0.0.{n}:8300"),
                public_key: Bytes::from(format!("key {n}")),
            },
            voter: true,
            incoming: false,
            matched: None,
            matched_term: None,
            last_contact: silent_for,
        }
    }

    /// Server 1 leads; 2 answers; 3 is long silent; 4 was never heard.
    fn members() -> Vec<Member> {
        let now = Duration::from_millis(10);
        vec![
            member(1, Some(Duration::ZERO)),
            member(2, Some(now)),
            member(3, Some(SILENT)),
            member(4, None),
        ]
    }

    fn pool(alive: &[u128]) -> Vec<PoolServer> {
        let server = |n: &u128| PoolServer {
            raft_id: id(*n),
            name: format!("s{n}"),
            address: format!("127.0.0.{n}:8300"),
            expect: None,
            alive: true,
            left: false,
        };
        alive.iter().map(server).collect()
    }

    /// What asks: node `name` with Raft id `n`, at an address of its own.
    fn asks(n: u128, name: &str) -> (RaftId, v1::JoinRequest) {
        let request = v1::JoinRequest {
            node_name: name.into(),
            address: format!("127.0.0.{n}:8300"),
            datacenter: "dc1".into(),
            public_key: Bytes::from(format!("key {n}")),
            cluster_version_max: 2,
            ..v1::JoinRequest::default()
        };
        (id(n), request)
    }

    fn judged(
        (id, request): &(RaftId, v1::JoinRequest),
        alive: &[u128],
        leading_for: Duration,
    ) -> Result<Admission, String> {
        let (members, pool) = (members(), pool(alive));
        let seen = Seen {
            me: members[0].peer.id,
            datacenter: "dc1",
            cluster_id: "ours",
            cluster_version: 2,
            recoveries: 1,
            members: &members,
            pool: &pool,
            leading_for,
            silent_after: SILENT_AFTER,
        };
        judge(request, *id, &seen)
    }

    #[test]
    fn only_a_silent_holder_gives_up_its_name() {
        for (name, alive, leading_for, expected) in [
            ("s9", &[][..], SILENT, Ok(Admission::New(vec![]))),
            ("s1", &[], SILENT, Err("leads this cluster")),
            ("s2", &[], SILENT, Err("answered the leader a moment ago")),
            ("s3", &[], SILENT, Ok(Admission::New(vec![id(3)]))),
            ("s3", &[3], SILENT, Err("alive in the gossip pool")),
            ("s4", &[], SILENT, Ok(Admission::New(vec![id(4)]))),
            ("s4", &[], Duration::ZERO, Err("a moment ago")),
        ] {
            let found = judged(&asks(9, name), alive, leading_for);
            match expected {
                Ok(expected) => assert_eq!(found, Ok(expected), "{name} {alive:?}"),
                Err(words) => {
                    let told = found.unwrap_err();
                    assert!(told.contains(words), "{name} {alive:?}: {told}");
                    let old = format!("127.0.0.{}:8300", &name[1..]);
                    for part in ["join.name_taken", "127.0.0.9:8300", &old, "node_name"] {
                        assert!(told.contains(part), "{told}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_log_is_taken_in_only_when_it_is_ours() {
        let with_log = |n, name, cluster: &str| {
            let (id, mut request) = asks(n, name);
            request.last_log_index = 7;
            request.recoveries = 1;
            request.cluster_id = cluster.into();
            judged(&(id, request), &[], SILENT)
        };
        let refused = |found: Result<Admission, String>| found.unwrap_err();
        assert!(refused(with_log(9, "s9", "")).contains("join.log_of_unknown_cluster"));
        assert!(refused(with_log(9, "s9", "theirs")).contains("join.other_cluster"));
        assert!(refused(with_log(2, "s2", "theirs")).contains("join.other_cluster"));
        assert!(refused(with_log(9, "s3", "ours")).contains("join.replaced"));
        let (id, mut before) = asks(9, "s9");
        (before.last_log_index, before.cluster_id) = (7, "ours".into());
        let told = refused(judged(&(id, before.clone()), &[], SILENT));
        assert!(told.contains("join.before_recovery"), "{told}");
        before.last_log_index = 0;
        assert!(
            judged(&(id, before), &[], SILENT).is_ok(),
            "an empty log is of no history"
        );
        let returned = with_log(9, "s9", "ours");
        assert_eq!(returned, Ok(Admission::New(vec![])), "it had been removed");
        assert_eq!(
            with_log(2, "s2", ""),
            Ok(Admission::Known),
            "not applied yet"
        );
    }

    #[test]
    fn what_cannot_follow_the_cluster_stays_out() {
        let (id, mut request) = asks(9, "s9");
        for (said, let_in) in [(0, false), (1, false), (2, true), (3, true)] {
            request.cluster_version_max = said;
            let found = judged(&(id, request.clone()), &[], SILENT);
            assert_eq!(found.is_ok(), let_in, "{said}: {found:?}");
        }
    }

    #[test]
    fn a_member_may_move_but_not_change_its_key() {
        let (id, mut request) = asks(2, "s2");
        request.address = "127.0.0.77:8300".into();
        assert_eq!(
            judged(&(id, request.clone()), &[2], SILENT),
            Ok(Admission::Moved)
        );
        request.public_key = Bytes::from_static(b"another");
        let told = judged(&(id, request.clone()), &[2], SILENT).unwrap_err();
        assert!(told.contains("join.other_key"), "{told}");
        request.public_key = Bytes::new();
        assert!(
            judged(&(id, request), &[2], SILENT).is_ok(),
            "keyless: -dev"
        );
    }
}
