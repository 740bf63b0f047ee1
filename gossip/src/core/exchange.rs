//! The exchange of states over a stream: a full one at a join, afterwards only what differs.
//!
//! Owns: the frames of an exchange and what answers what. Digests are 64 sums over the rows, so two members
//! that agree part after a kilobyte, and one row of a thousand costs its bucket instead of the thousand.
//! Never: opens a stream, waits, or merges; [`super::states`] merges.
//!
//! ```text
//! join    Full(all I know)  → Rest(all I know)
//! later   Ask(digest)       → Same, or Differ(buckets, my rows of them) → Rest(my rows of them)
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Core;
use crate::error::GossipError;
use crate::wire::{NodeId, StateRow, SyncState, fnv1a, lock};

const FULL: u8 = 1;
const ASK: u8 = 2;
const DIFFER: u8 = 3;
const REST: u8 = 4;
const SAME: u8 = 5;
const BUCKETS: usize = 64;

/// All of a member's knowledge in 64 numbers and one.
#[derive(Debug, Serialize, Deserialize)]
struct Digest {
    datacenter: String,
    own: StateRow,
    buckets: Vec<u64>,
    events: u64,
}

/// Rows of the buckets in which two members differ.
#[derive(Debug, Serialize, Deserialize)]
struct Differ {
    buckets: u64,
    events: bool,
}

/// What a frame led to.
#[derive(Debug)]
pub struct Answered {
    /// To be sent back on the same stream; the exchange is over when there is none.
    pub frame: Option<Vec<u8>>,
    /// Whether the frame could be taken in.
    pub outcome: Result<(), GossipError>,
}

impl Core {
    /// The first frame of an exchange: all we know at a join (`full`), a digest of it afterwards.
    #[must_use]
    pub fn exchange_open(&self, now: Duration, full: bool) -> Vec<u8> {
        if full || self.swim.num_members() == 0 {
            return framed(FULL, &self.sync_state(now).encode());
        }
        let digest = Digest {
            datacenter: self.config.datacenter.clone(),
            own: self.own_row(),
            buckets: self.digest(),
            events: lock(&self.shared).events.digest(),
        };
        framed(ASK, &plain(&digest))
    }

    /// A frame of an exchange came in, ours to answer or the answer to ours.
    pub fn exchange(&mut self, now: Duration, from: SocketAddr, frame: &[u8]) -> Answered {
        let malformed = || Answered {
            frame: None,
            outcome: Err(GossipError::Frame {
                peer: from,
                reason: "malformed",
            }),
        };
        let Some((kind, body)) = frame.split_first() else {
            return malformed();
        };
        match *kind {
            FULL => SyncState::decode(body).map(|s| self.on_full(now, from, s)),
            REST => SyncState::decode(body).map(|state| Answered {
                frame: None,
                outcome: self.merge(now, from, state),
            }),
            ASK => postcard::from_bytes(body)
                .ok()
                .map(|d| self.on_digest(now, from, d)),
            DIFFER => postcard::take_from_bytes::<Differ>(body)
                .ok()
                .and_then(|(asked, rest)| {
                    Some(self.on_differ(now, from, &asked, SyncState::decode(rest)?))
                }),
            SAME => Some(Answered {
                frame: None,
                outcome: Ok(()),
            }),
            _ => None,
        }
        .unwrap_or_else(malformed)
    }

    fn on_full(&mut self, now: Duration, from: SocketAddr, theirs: SyncState) -> Answered {
        // What we knew before they told us: they need not hear their own words.
        let ours = if theirs.datacenter == self.config.datacenter {
            self.sync_state(now)
        } else {
            self.introduction()
        };
        Answered {
            frame: Some(framed(REST, &ours.encode())),
            outcome: self.merge(now, from, theirs),
        }
    }

    fn on_digest(&mut self, now: Duration, from: SocketAddr, theirs: Digest) -> Answered {
        if theirs.datacenter != self.config.datacenter || theirs.buckets.len() != BUCKETS {
            let introduction = self.introduction();
            let stranger = SyncState {
                datacenter: theirs.datacenter,
                rows: vec![theirs.own],
                events: Default::default(),
            };
            return Answered {
                frame: Some(framed(REST, &introduction.encode())),
                outcome: self.merge(now, from, stranger),
            };
        }
        let differing = self
            .digest()
            .iter()
            .zip(&theirs.buckets)
            .enumerate()
            .filter(|(_, (here, there))| here != there)
            .fold(0u64, |mask, (at, _)| mask | 1 << at);
        let events = lock(&self.shared).events.digest() != theirs.events;
        let frame = if differing == 0 && !events {
            vec![SAME]
        } else {
            let mut ours = self.sync_state(now);
            ours.keep(differing, events);
            let asked = Differ {
                buckets: differing,
                events,
            };
            let mut body = plain(&asked);
            body.extend_from_slice(&ours.encode());
            framed(DIFFER, &body)
        };
        let introduction = SyncState {
            datacenter: theirs.datacenter,
            rows: vec![theirs.own],
            events: Default::default(),
        };
        Answered {
            frame: Some(frame),
            outcome: self.merge(now, from, introduction),
        }
    }

    /// A sum over what is known of the members of each bucket.
    fn digest(&self) -> Vec<u64> {
        let mut sums = vec![0u64; BUCKETS];
        let own = self.swim.identity().id;
        for record in self.table.records() {
            let version = if record.peer.id == own {
                self.tags_version
            } else {
                record.tags_version()
            };
            let mut bytes = Vec::with_capacity(40);
            bytes.extend_from_slice(&record.peer.id);
            bytes.extend_from_slice(&record.peer.incarnation.to_be_bytes());
            bytes.extend_from_slice(&version.to_be_bytes());
            // SWIM's own incarnation is left out: a member does not tell its own.
            bytes.push(record.member.status.code());
            let sum = &mut sums[bucket(&record.peer.id)];
            *sum = sum.wrapping_add(fnv1a(&bytes));
        }
        sums
    }

    fn on_differ(
        &mut self,
        now: Duration,
        from: SocketAddr,
        asked: &Differ,
        theirs: SyncState,
    ) -> Answered {
        let mut ours = self.sync_state(now);
        ours.keep(asked.buckets, asked.events);
        let outcome = self.merge(now, from, theirs);
        Answered {
            frame: outcome.is_ok().then(|| framed(REST, &ours.encode())),
            outcome,
        }
    }
}

impl SyncState {
    /// Only the rows of these buckets, and the sender's own; the events only when they differ.
    fn keep(&mut self, buckets: u64, events: bool) {
        let own = self.rows[0].peer.id;
        self.rows
            .retain(|row| row.peer.id == own || buckets & (1 << bucket(&row.peer.id)) != 0);
        if !events {
            self.events = Default::default();
        }
    }
}

fn bucket(id: &NodeId) -> usize {
    (fnv1a(id) % BUCKETS as u64) as usize
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(body.len() + 1);
    frame.push(kind);
    frame.extend_from_slice(body);
    frame
}

fn plain(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes")
}
