//! openraft's type parameters as this crate fills them, and their bytes.
//!
//! Owns: the mapping between openraft's ids, votes, memberships and ours.
//! Never: leaves the crate; nothing here is public.
//!
//! One leader per term (`leader_id_std`): session expiry and the leader's
//! duties are guarded by a bare term, so a term must name one leader. What it
//! costs, a split vote now and then, pre-vote and random timeouts make rare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::log::{EntryKind, LogEntry, Position};
use crate::peer::{Node, RaftId};
use crate::wire;

openraft::declare_raft_types!(
    /// openraft's parameters.
    pub(crate) Types:
        D = Body,
        R = Body,
        NodeId = RaftId,
        Node = Node,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, RaftId>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<RaftId, Node>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;

/// A payload or a reply: bytes, never looked into.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Bytes);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// openraft's `serde` feature demands these of every payload; nothing calls them.
impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self(Bytes::from(bytes)))
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(
        leader_id_std::LeaderId::new(term, RaftId::default()).to_committed(),
        index,
    )
}

pub(crate) fn term_of(id: &LogId) -> u64 {
    *id.leader_id
}

/// Position as the log store keeps it; one leader per term makes `leader` redundant, so it is 0.
pub(crate) fn position(id: &LogId) -> Position {
    Position {
        term: term_of(id),
        leader: 0,
        index: id.index,
    }
}

pub(crate) fn from_position(position: Position) -> LogId {
    log_id(position.term, position.index)
}

const VOTE_FORMAT: u8 = 1;
const VOTE_BYTES: usize = 1 + 8 + 16 + 1;

/// Vote as the log store keeps it: format, term (big-endian), id, committed.
pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut bytes = BytesMut::with_capacity(VOTE_BYTES);
    bytes.put_u8(VOTE_FORMAT);
    bytes.put_u64(vote.leader_id.term);
    bytes.put_slice(vote.leader_id.voted_for.0.as_bytes());
    bytes.put_u8(u8::from(vote.committed));
    bytes.freeze()
}

pub(crate) fn decode_vote(bytes: &Bytes) -> io::Result<Vote> {
    let mut rest = bytes.clone();
    if rest.len() != VOTE_BYTES || rest.get_u8() != VOTE_FORMAT {
        return Err(corrupt("vote record has an unknown form"));
    }
    let term = rest.get_u64();
    let id =
        RaftId::from_slice(&rest.split_to(16)).ok_or_else(|| corrupt("vote record holds no id"))?;
    Ok(new_vote(term, id, rest.get_u8() != 0))
}

pub(crate) fn new_vote(term: u64, id: RaftId, committed: bool) -> Vote {
    if committed {
        Vote::new_committed(term, id)
    } else {
        Vote::new(term, id)
    }
}

pub(crate) fn membership_record(membership: &Membership) -> wire::Membership {
    wire::Membership {
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| wire::membership::Voters {
                ids: set.iter().map(|id| id.to_bytes()).collect(),
            })
            .collect(),
        peers: membership
            .nodes()
            .map(|(id, node)| peer_record(id, node))
            .collect(),
    }
}

pub(crate) fn membership_of(record: wire::Membership) -> io::Result<Membership> {
    let mut voters = Vec::with_capacity(record.voters.len());
    for set in record.voters {
        let ids: Option<BTreeSet<RaftId>> =
            set.ids.iter().map(|id| RaftId::from_slice(id)).collect();
        voters.push(ids.ok_or_else(|| corrupt("membership holds a malformed id"))?);
    }
    let mut peers = BTreeMap::new();
    for peer in record.peers {
        let (id, node) = peer_of(peer)?;
        peers.insert(id, node);
    }
    Membership::new(voters, peers)
        .map_err(|cause| corrupt(&format!("membership is inconsistent: {cause}")))
}

fn peer_record(id: &RaftId, node: &Node) -> wire::Peer {
    wire::Peer {
        id: id.to_bytes(),
        name: node.name.clone(),
        address: node.address.clone(),
        public_key: node.public_key.clone(),
    }
}

fn peer_of(record: wire::Peer) -> io::Result<(RaftId, Node)> {
    let id =
        RaftId::from_slice(&record.id).ok_or_else(|| corrupt("membership holds a malformed id"))?;
    let wire::Peer {
        name,
        address,
        public_key,
        ..
    } = record;
    Ok((
        id,
        Node {
            name,
            address,
            public_key,
        },
    ))
}

/// The payload as kind and bytes; a proposal's own buffer is shared, not copied.
pub(crate) fn encode_payload(entry: &Entry) -> (EntryKind, Bytes) {
    match &entry.payload {
        openraft::EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        openraft::EntryPayload::Normal(body) => (EntryKind::Normal, body.0.clone()),
        openraft::EntryPayload::Membership(membership) => (
            EntryKind::Membership,
            Bytes::from(membership_record(membership).encode_to_vec()),
        ),
    }
}

pub(crate) fn decode_entry(id: LogId, kind: EntryKind, body: Bytes) -> io::Result<Entry> {
    let payload = match kind {
        EntryKind::Blank => openraft::EntryPayload::Blank,
        EntryKind::Normal => openraft::EntryPayload::Normal(Body(body)),
        EntryKind::Membership => {
            let record = wire::Membership::decode(body).map_err(|cause| {
                corrupt(&format!("membership entry {id} cannot be read: {cause}"))
            })?;
            openraft::EntryPayload::Membership(membership_of(record)?)
        }
    };
    Ok(Entry {
        log_id: id,
        payload,
    })
}

pub(crate) fn to_log_entry(entry: &Entry) -> LogEntry {
    let (kind, body) = encode_payload(entry);
    LogEntry {
        position: position(&entry.log_id),
        kind,
        body,
    }
}

pub(crate) fn from_log_entry(entry: LogEntry) -> io::Result<Entry> {
    decode_entry(from_position(entry.position), entry.kind, entry.body)
}

pub(crate) fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn node(n: u128) -> Node {
        Node {
            name: format!("s{n}"),
            address: format!("127.0.0.{n}:8300"),
            public_key: Bytes::from_static(b"key"),
        }
    }

    #[test]
    fn votes_survive_their_bytes() {
        for vote in [new_vote(7, id(3), false), new_vote(u64::MAX, id(1), true)] {
            assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }
        for bad in [&b""[..], &[2; VOTE_BYTES][..], &[1; VOTE_BYTES + 1][..]] {
            assert!(decode_vote(&Bytes::copy_from_slice(bad)).is_err());
        }
    }

    #[test]
    fn entries_survive_the_log() {
        let peers: BTreeMap<_, _> = (1..=4).map(|n| (id(n), node(n))).collect();
        let voters = |ids: &[u128]| ids.iter().map(|n| id(*n)).collect::<BTreeSet<_>>();
        let membership =
            Membership::new(vec![voters(&[1, 2, 3]), voters(&[1, 2, 4])], peers).unwrap();
        for payload in [
            openraft::EntryPayload::Blank,
            openraft::EntryPayload::Normal(Body(Bytes::from_static(b"put"))),
            openraft::EntryPayload::Membership(membership),
        ] {
            let entry = Entry {
                log_id: log_id(3, 9),
                payload,
            };
            assert_eq!(from_log_entry(to_log_entry(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn a_membership_with_an_unknown_voter_is_refused() {
        let record = wire::Membership {
            voters: vec![wire::membership::Voters {
                ids: vec![id(1).to_bytes()],
            }],
            peers: vec![],
        };
        let body = Bytes::from(record.encode_to_vec());
        assert!(decode_entry(log_id(1, 1), EntryKind::Membership, body).is_err());
    }
}
