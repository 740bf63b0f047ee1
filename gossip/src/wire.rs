//! What goes over the network: the SWIM identity, notices, the full state, and the codec's gate.
//!
//! Owns: wire forms and the checks on what arrives (names, tags, the bound on members).
//! Never: decides who is alive. foca calls [`WireCodec`] and [`NoticeHandler`]; both report into
//! [`Shared`], which the core reads after each call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{BroadcastHandler, Codec, Header, Identity, Invalidates, Message, PostcardCodec};
use serde::{Deserialize, Serialize};

use crate::config::{NAME_MAX_BYTES, TAGS_MAX_BYTES};
use crate::core::ACCUSERS_MAX;
use crate::error::GossipError;
use crate::events::{Events, EventsTold, UserEvent};
use crate::member::Tags;

/// A node id's 16 bytes.
pub(crate) type NodeId = [u8; 16];

/// The SWIM identity. The node id is what foca calls the address: whoever comes with the same id
/// and a higher incarnation replaces the earlier life, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
}

impl Identity for Peer {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            incarnation: self.incarnation.checked_add(1)?,
            ..self.clone()
        })
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // The address breaks the tie of two processes with a copied node id, so that all agree.
        (self.incarnation, self.address) > (adversary.incarnation, adversary.address)
    }
}

impl Peer {
    pub(crate) fn is_sound(&self) -> bool {
        !self.name.is_empty() && self.name.len() <= NAME_MAX_BYTES && self.address.port() != 0
    }
}

/// News beside SWIM's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Notice {
    /// The tags of a node's life; higher (incarnation, version) wins.
    Tags {
        id: NodeId,
        incarnation: u64,
        version: u64,
        tags: Tags,
    },
    /// That life of the node is leaving, or (`forced`) an operator says it has gone.
    Leave {
        id: NodeId,
        incarnation: u64,
        forced: bool,
        prune: bool,
    },
    /// The sender lacks the tags of this node. Direct only.
    TagsWanted { id: NodeId },
    /// Somebody fired an event.
    Event(UserEvent),
    /// Somebody does not reach a member.
    Accuse(Accusation),
    /// The receiver's id has lived with this incarnation, which is above what it says. Direct only.
    Newer { incarnation: u64 },
    /// A live member has the receiver's name. Direct only.
    NameTaken { holder: SocketAddr },
}

/// `by` did not reach that life of the node, nor did those it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accusation {
    pub(crate) id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) swim_incarnation: u16,
    pub(crate) by: NodeId,
}

/// Kinds of notice in [`Shared::newest`].
pub(crate) const KIND_TAGS: u8 = 0;
pub(crate) const KIND_LEAVE: u8 = 1;
/// Its id is the event's, not a node's.
const KIND_EVENT: u8 = 2;
const KIND_ACCUSE: u8 = 3;
/// How long an accusation is remembered, so that its echo is no news.
const ACCUSATION_KEPT: Duration = Duration::from_secs(60);
/// Accusations remembered at most; further ones are not passed on.
const ACCUSATIONS_MAX: usize = 8_192;

impl Notice {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// Errors: [`GossipError::TagsTooLarge`].
pub(crate) fn check_tags(tags: &Tags) -> Result<(), GossipError> {
    let size = postcard::to_stdvec(tags)
        .expect("plain data always encodes")
        .len();
    if size <= TAGS_MAX_BYTES {
        return Ok(());
    }
    let largest = tags
        .iter()
        .max_by_key(|(k, v)| k.len() + v.len())
        .map(|(k, _)| k.clone())
        .unwrap_or_default();
    Err(GossipError::TagsTooLarge {
        size,
        max: TAGS_MAX_BYTES,
        largest,
    })
}

/// FNV-1a, 64 bits: tells datacenters and states apart, no secret in it.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A member's status on the wire; the numbers are Consul's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WireStatus {
    Alive,
    Leaving,
    Left,
    Failed,
}

/// One row of a full state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRow {
    pub(crate) peer: Peer,
    pub(crate) swim_incarnation: u16,
    pub(crate) status: WireStatus,
    /// Seconds since it left or failed; 0 while active.
    pub(crate) down_seconds: u64,
    pub(crate) tags_version: u64,
    pub(crate) tags: Tags,
}

/// Everything a node knows, exchanged over TCP. The first row is the sender's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    pub(crate) datacenter: String,
    pub(crate) rows: Vec<StateRow>,
    /// Follows the rest on the wire: who does not know it stops reading before.
    #[serde(skip)]
    pub(crate) events: EventsTold,
}

impl SyncState {
    /// Encoded for the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let state = postcard::to_stdvec(self).expect("plain data always encodes");
        postcard::to_extend(&self.events, state).expect("plain data always encodes")
    }

    /// The datacenter the sender is of.
    #[must_use]
    pub fn datacenter(&self) -> &str {
        &self.datacenter
    }

    /// The inverse of [`Self::encode`]; `None` when the bytes are not a state.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut state, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        if !rest.is_empty() {
            state.events = postcard::from_bytes(rest).ok()?;
        }
        Some(state)
    }
}

/// What the codec and the notice handler share with the core.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) own: Peer,
    pub(crate) members_max: usize,
    /// Ids foca holds.
    pub(crate) known: BTreeSet<NodeId>,
    /// The highest incarnation anybody ascribed to our own id, and where.
    pub(crate) own_elsewhere: Option<(u64, SocketAddr)>,
    /// The newest (incarnation, version) per node of each kind of notice.
    pub(crate) newest: BTreeMap<(u8, NodeId), (u64, u64)>,
    /// Fresh notices for the core.
    pub(crate) inbox: Vec<Notice>,
    /// News refused at the bound.
    pub(crate) refused: u64,
    /// User events heard.
    pub(crate) events: Events,
    /// Whether there is anybody to pass events on to, and room for more of them.
    pub(crate) relays: bool,
    /// Accusations heard: suspect and accuser, the suspect's life, and when.
    pub(crate) accused: BTreeMap<(NodeId, NodeId), ((u64, u16), Duration)>,
    /// The core's time.
    pub(crate) now: Duration,
    /// What passed through the codec since the core looked.
    pub(crate) passed: Passed,
}

/// Probes that passed through the codec; foca tells of none.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Who sent the packet.
    pub(crate) sender: Option<Peer>,
    /// We asked this member, with this number.
    pub(crate) pinged: Option<(Peer, u8)>,
    /// This member answered that number.
    pub(crate) acked: Option<(NodeId, u8)>,
    /// Members we answered.
    pub(crate) answered: Vec<SocketAddr>,
    /// Probes of ours, by number, that a helper had answered.
    pub(crate) relayed: Vec<u8>,
    /// Helpers we asked to probe for us.
    pub(crate) sought: usize,
    /// Members we probe for others: who, for whom, their number.
    pub(crate) asked: Vec<(Peer, SocketAddr, u8)>,
    /// Members that answered such a probe.
    pub(crate) vouched: Vec<NodeId>,
}

pub(crate) type SharedHandle = Arc<Mutex<Shared>>;

pub(crate) fn lock(shared: &SharedHandle) -> MutexGuard<'_, Shared> {
    // Every critical section leaves the fields consistent, so a poisoned lock is still good.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Whether news about `peer` may enter; learns the id when it does.
    pub(crate) fn admit(&mut self, peer: &Peer) -> bool {
        if peer.id == self.own.id {
            self.note_own(peer);
            return true;
        }
        if !peer.is_sound() {
            return false;
        }
        if self.known.contains(&peer.id) {
            return true;
        }
        if self.known.len() >= self.members_max {
            self.refused += 1;
            return false;
        }
        self.known.insert(peer.id);
        true
    }

    fn note_own(&mut self, peer: &Peer) {
        let other = *peer != self.own && peer.incarnation >= self.own.incarnation;
        if other && self.own_elsewhere.is_none_or(|(n, _)| peer.incarnation > n) {
            self.own_elsewhere = Some((peer.incarnation, peer.address));
        }
    }

    /// Puts a notice before the core without passing it on to others.
    pub(crate) fn take_in(&mut self, notice: Notice) {
        if self.is_news(&notice).is_some() {
            self.inbox.push(notice);
        }
    }

    /// Sorts a notice that came in: news go before the core, and on to others when that is of use.
    fn receive(&mut self, notice: Notice) -> Option<NoticeKey> {
        let key = self.is_news(&notice)?;
        let passed_on = match &notice {
            Notice::Event(_) => self.relays,
            Notice::Accuse(told) => told.id != self.own.id,
            _ => true,
        };
        self.inbox.push(notice);
        passed_on.then_some(key)
    }

    /// Whether an accusation is news: the first few accusers of each life of a suspect are.
    fn is_fresh(&mut self, told: &Accusation) -> bool {
        let life = (told.incarnation, told.swim_incarnation);
        if told.id == self.own.id {
            // For us alone; whoever sends it tells us again until we have refuted.
            return told.incarnation == self.own.incarnation;
        }
        let mut against = self
            .accused
            .range((told.id, [0; 16])..=(told.id, [0xff; 16]));
        let accusers = against.clone().filter(|(_, (known, _))| *known == life);
        if accusers.count() >= ACCUSERS_MAX
            || against
                .any(|((_, by), (known, _))| *known > life || (*by == told.by && *known == life))
            || self.accused.len() >= ACCUSATIONS_MAX
            || !self.known.contains(&told.id)
        {
            return false;
        }
        self.accused.insert((told.id, told.by), (life, self.now));
        true
    }

    /// Old accusations make room.
    pub(crate) fn forget_accusations(&mut self) {
        let now = self.now;
        self.accused
            .retain(|_, (_, at)| now < *at + ACCUSATION_KEPT);
    }

    /// Whether `notice` is news; remembers it when it is.
    fn is_news(&mut self, notice: &Notice) -> Option<NoticeKey> {
        let (kind, id, rank) = match notice {
            Notice::Tags {
                id,
                incarnation,
                version,
                tags,
            } => {
                check_tags(tags).ok()?;
                (KIND_TAGS, *id, (*incarnation, *version))
            }
            Notice::Leave {
                id,
                incarnation,
                forced,
                prune,
            } => (
                KIND_LEAVE,
                *id,
                (*incarnation, u64::from(*forced) + 2 * u64::from(*prune)),
            ),
            Notice::TagsWanted { .. } | Notice::Newer { .. } | Notice::NameTaken { .. } => {
                return None;
            }
            Notice::Accuse(told) => {
                // One suspect's accusers are spread side by side.
                let mut id = told.id;
                id.iter_mut().zip(told.by).for_each(|(a, b)| *a ^= b);
                return self.is_fresh(told).then_some(NoticeKey {
                    kind: KIND_ACCUSE,
                    id,
                });
            }
            Notice::Event(event) => {
                return self.events.hear(event).then_some(NoticeKey {
                    kind: KIND_EVENT,
                    id: event.id,
                });
            }
        };
        let key = (kind, id);
        match self.newest.get(&key) {
            Some(known) if *known >= rank => return None,
            Some(_) => {}
            None if self.newest.len() >= 2 * self.members_max + 2 => {
                self.refused += 1;
                return None;
            }
            None => {}
        }
        self.newest.insert(key, rank);
        Some(NoticeKey { kind, id })
    }
}

/// postcard behind the gate: identities that may not enter are replaced by a row about ourselves
/// being alive, which foca ignores, so that one bad row does not cost the whole packet.
pub(crate) struct WireCodec {
    shared: SharedHandle,
}

impl WireCodec {
    pub(crate) fn new(shared: SharedHandle) -> Self {
        Self { shared }
    }
}

impl Codec<Peer> for WireCodec {
    type Error = postcard::Error;

    fn encode_header(
        &mut self,
        header: &Header<Peer>,
        buf: impl BufMut,
    ) -> Result<(), Self::Error> {
        match header.message {
            Message::Ping(number) => {
                lock(&self.shared).passed.pinged = Some((header.dst.clone(), number));
            }
            Message::Ack(_) => lock(&self.shared).passed.answered.push(header.dst.address),
            Message::PingReq { .. } => lock(&self.shared).passed.sought += 1,
            Message::IndirectPing {
                ref origin,
                probe_number,
            } => {
                let errand = (header.dst.clone(), origin.address, probe_number);
                lock(&self.shared).passed.asked.push(errand);
            }
            _ => {}
        }
        PostcardCodec.encode_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Peer>, Self::Error> {
        let header: Header<Peer> = PostcardCodec.decode_header(buf)?;
        let mut shared = lock(&self.shared);
        if !shared.admit(&header.src) {
            return Err(postcard::Error::SerdeDeCustom);
        }
        shared.passed.sender = Some(header.src.clone());
        match header.message {
            Message::Ack(number) => shared.passed.acked = Some((header.src.id, number)),
            Message::ForwardedAck { probe_number, .. } => shared.passed.relayed.push(probe_number),
            Message::IndirectAck { .. } => shared.passed.vouched.push(header.src.id),
            _ => {}
        }
        Ok(header)
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Peer>,
        buf: impl BufMut,
    ) -> Result<(), Self::Error> {
        PostcardCodec.encode_member(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Peer>, Self::Error> {
        let member: foca::Member<Peer> = PostcardCodec.decode_member(buf)?;
        let mut shared = lock(&self.shared);
        if shared.admit(member.id()) {
            Ok(member)
        } else {
            Ok(foca::Member::alive(shared.own.clone()))
        }
    }
}

/// Sorts notices for foca's dissemination.
pub(crate) struct NoticeHandler {
    shared: SharedHandle,
}

impl NoticeHandler {
    pub(crate) fn new(shared: SharedHandle) -> Self {
        Self { shared }
    }
}

/// A newer notice of one kind about one node replaces the one still being sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoticeKey {
    kind: u8,
    id: NodeId,
}

impl Invalidates for NoticeKey {
    fn invalidates(&self, other: &Self) -> bool {
        self == other
    }
}

impl BroadcastHandler<Peer> for NoticeHandler {
    type Key = NoticeKey;
    type Error = postcard::Error;

    fn receive_item(
        &mut self,
        data: &[u8],
        _sender: Option<&Peer>,
    ) -> Result<Option<NoticeKey>, postcard::Error> {
        let notice = Notice::decode(data)?;
        Ok(lock(&self.shared).receive(notice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8, incarnation: u64) -> Peer {
        Peer {
            id: [n; 16],
            incarnation,
            address: ([127, 0, 0, n], 8301).into(),
            name: format!("n{n}"),
        }
    }

    fn shared(members_max: usize) -> Shared {
        Shared {
            own: peer(1, 5),
            members_max,
            known: BTreeSet::new(),
            own_elsewhere: None,
            newest: BTreeMap::new(),
            inbox: Vec::new(),
            refused: 0,
            events: Events::new(std::time::Duration::ZERO),
            relays: true,
            accused: BTreeMap::new(),
            now: Duration::ZERO,
            passed: Passed::default(),
        }
    }

    #[test]
    fn a_state_without_the_later_part_is_a_state() {
        let mut full = shared(8);
        let event = full.events.stamp([7; 16], b"deploy".to_vec()).unwrap();
        full.events.hear(&event);
        let state = SyncState {
            datacenter: "dc1".into(),
            rows: Vec::new(),
            events: full.events.tell(),
        };
        let bytes = state.encode();
        assert_eq!(SyncState::decode(&bytes), Some(state.clone()));
        let earlier = postcard::to_stdvec(&state).unwrap();
        assert_eq!(
            SyncState::decode(&earlier).map(|state| state.events),
            Some(EventsTold::default()),
            "as an earlier version sends it"
        );
        assert_eq!(SyncState::decode(&bytes[..bytes.len() - 1]), None, "cut");
        let (_, rest) = postcard::take_from_bytes::<SyncState>(&bytes).unwrap();
        assert!(!rest.is_empty(), "an earlier version stops before it");
    }

    #[test]
    fn events_stay_here_while_nobody_could_be_told() {
        let mut shared = shared(8);
        let mut fire = |relays, n| {
            shared.relays = relays;
            let event = shared.events.stamp([n; 16], Vec::new()).unwrap();
            let key = shared.receive(Notice::Event(event));
            (key.is_some(), shared.inbox.len())
        };
        assert_eq!(fire(true, 1), (true, 1));
        assert_eq!(fire(false, 2), (false, 2));
    }

    #[test]
    fn the_gate_holds_the_bound_and_notices_earlier_lives() {
        let mut shared = shared(2);
        assert!(shared.admit(&peer(2, 1)) && shared.admit(&peer(3, 1)));
        assert!(!shared.admit(&peer(4, 1)));
        assert!(
            shared.admit(&peer(2, 2)),
            "a known member passes at the bound"
        );
        assert_eq!(shared.refused, 1);
        assert!(
            shared.admit(&peer(1, 4)) && shared.own_elsewhere.is_none(),
            "an older life of ours is no matter"
        );
        assert!(shared.admit(&peer(1, 9)));
        assert_eq!(shared.own_elsewhere.map(|(n, _)| n), Some(9));
        assert!(!shared.admit(&Peer {
            name: "x".repeat(NAME_MAX_BYTES + 1),
            ..peer(2, 3)
        }));
    }

    #[test]
    fn notices_are_news_once() {
        let mut shared = shared(8);
        let tags = |incarnation, version| Notice::Tags {
            id: [2; 16],
            incarnation,
            version,
            tags: Tags::new(),
        };
        assert!(shared.is_news(&tags(1, 1)).is_some());
        assert!(shared.is_news(&tags(1, 1)).is_none());
        assert!(shared.is_news(&tags(1, 2)).is_some());
        assert!(shared.is_news(&tags(1, 1)).is_none());
        assert!(shared.is_news(&tags(2, 0)).is_some());
        let huge = Tags::from([("k".to_owned(), "v".repeat(600))]);
        assert!(
            shared
                .is_news(&Notice::Tags {
                    id: [2; 16],
                    incarnation: 9,
                    version: 9,
                    tags: huge
                })
                .is_none()
        );
    }

    #[test]
    fn oversized_tags_are_named() {
        let tags = Tags::from([
            ("small".into(), "x".into()),
            ("big".into(), "v".repeat(600)),
        ]);
        let error = check_tags(&tags).unwrap_err().to_string();
        assert!(
            error.contains("\"big\"") && error.contains("512"),
            "{error}"
        );
    }
}
