//! The fence against copied data: whether a live process elsewhere has the node id of this one.
//!
//! Owns: the question "who has this id?", its answer, and which of two that live must end.
//! Never: believes hearsay: only an answer of the other process itself, at its own address, counts.
//!
//! At a start nobody is disturbed: the address of the last life, known members and those to join are asked before this
//! node says a word of itself. Two that start at one moment see each other later; the same rule, with the same facts on
//! both sides, ends one of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{first_ring, resolve};
use crate::config::GossipConfig;
use crate::error::GossipError;
use crate::keyring::Framer;
use crate::known::Known;
use crate::member::{Member, MemberStatus};

/// First byte of the question; the id follows.
pub(super) const WHO_HAS: u8 = 17;
/// First byte of the question for the clock.
pub(super) const WHAT_TIME: u8 = 18;
/// Bytes of an answer at most.
const ANSWER_MAX_BYTES: u32 = 64 << 10;
/// Addresses asked at a start at most, of each kind.
const ASKED_MAX: usize = 5;
/// Addresses one answer names at most.
const NAMED_MAX: usize = 4;
/// How long connecting may take: a machine that is gone must not delay the start of its successor for longer.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long somebody who holds the port has for the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// One life of a node: the facts by which two of one id decide who ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Life {
    /// It found its data used from another address.
    pub(super) moved: bool,
    /// When it started, in milliseconds of its wall clock.
    pub(super) started: u64,
    /// Where it is.
    pub(super) address: SocketAddr,
}

impl Life {
    /// Whether this one ends when `other` lives with the same id. Exactly one of two answers yes.
    pub(super) fn yields_to(&self, other: &Self) -> bool {
        self > other
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    /// The one who answers has the id.
    mine: Option<Life>,
    /// Where members with it are, as far as the one who answers knows.
    at: Vec<SocketAddr>,
}

/// Refuses a start on data that a live process elsewhere uses; `join`: addresses to ask as well.
///
/// Errors: [`GossipError::IdTaken`]; files that cannot be read.
pub async fn fence(config: &GossipConfig, join: &[String]) -> Result<(), GossipError> {
    let own = config.core.advertise;
    let Some(path) = &config.known_path else {
        return Ok(());
    };
    let known = Known::load(path)?;
    // A first life cannot be a copy; and an address that is not settled cannot be told from another.
    if known.incarnation == 0 || own.port() == 0 || own.ip().is_unspecified() {
        return Ok(());
    }
    let Ok(id) = uuid::Uuid::parse_str(&config.core.id) else {
        return Ok(());
    };
    let framer = framer_of(&mut config.clone())?;
    let mut first: BTreeSet<SocketAddr> = known.address.into_iter().collect();
    first.extend(known.addresses.iter().take(ASKED_MAX).map(|(_, at)| at));
    let resolved = join_all(join.iter().take(ASKED_MAX).map(|name| async {
        let addresses = tokio::time::timeout(CONNECT_WITHIN, resolve(name, own.port())).await;
        addresses.ok().and_then(Result::ok).unwrap_or_default()
    }));
    first.extend(resolved.await.into_iter().flatten().take(ASKED_MAX * 2));
    first.remove(&own);
    let answers = join_all(first.iter().map(|peer| ask(*peer, &framer, &id))).await;
    let mut named = BTreeSet::new();
    for answer in answers.into_iter().flatten() {
        if let Some(life) = answer.mine {
            return Err(taken(&id, life.address, own));
        }
        named.extend(answer.at.into_iter().take(NAMED_MAX));
    }
    // Hearsay: a member that died a moment ago is still said to live. It is asked itself.
    let elsewhere = named
        .iter()
        .filter(|at| **at != own && !first.contains(at))
        .map(|at| ask(*at, &framer, &id));
    let answers = join_all(elsewhere).await;
    match answers.into_iter().flatten().find_map(|said| said.mine) {
        Some(life) => Err(taken(&id, life.address, own)),
        None => Ok(()),
    }
}

fn framer_of(config: &mut GossipConfig) -> Result<Framer, GossipError> {
    let ring = first_ring(config)?;
    Ok(Framer::new(
        &config.core.datacenter,
        ring,
        config.verify_incoming,
        config.verify_outgoing,
    ))
}

fn taken(id: &uuid::Uuid, elsewhere: SocketAddr, own: SocketAddr) -> GossipError {
    GossipError::IdTaken {
        id: id.to_string(),
        elsewhere,
        own,
    }
}

/// The life that is at `peer` with this id, if it answers itself.
pub(super) async fn life_at(peer: SocketAddr, framer: &Framer, id: &uuid::Uuid) -> Option<Life> {
    ask(peer, framer, id).await?.mine
}

/// What `peer` says; nothing when it does not answer, or not in our words.
async fn ask(peer: SocketAddr, framer: &Framer, id: &uuid::Uuid) -> Option<Answer> {
    let mut question = vec![WHO_HAS];
    question.extend_from_slice(id.as_bytes());
    let answer = put(peer, framer, &question).await?;
    postcard::from_bytes(&answer).ok()
}

/// The wall clock of whoever is at `peer`, in milliseconds.
pub(super) async fn clock_at(peer: SocketAddr, framer: &Framer) -> Option<u64> {
    let answer = put(peer, framer, &[WHAT_TIME]).await?;
    Some(u64::from_be_bytes(answer.try_into().ok()?))
}

async fn put(peer: SocketAddr, framer: &Framer, question: &[u8]) -> Option<Vec<u8>> {
    let connecting = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(peer));
    let mut stream = connecting.await.ok()?.ok()?;
    let asking = async {
        let frame = framer.seal(question).ok()?;
        let length = u32::try_from(frame.len()).ok()?;
        stream.write_all(&length.to_be_bytes()).await.ok()?;
        stream.write_all(&frame).await.ok()?;
        let length = stream.read_u32().await.ok()?;
        if length > ANSWER_MAX_BYTES {
            return None;
        }
        let mut frame = Vec::new();
        let mut limited = stream.take(length.into());
        limited.read_to_end(&mut frame).await.ok()?;
        framer.open_any(&frame).ok()
    };
    tokio::time::timeout(ANSWER_WITHIN, asking).await.ok()?
}

/// The answer to a question, or nothing when it is none.
pub(super) fn answer(
    question: &[u8],
    life: &Life,
    own: &Member,
    members: &[std::sync::Arc<Member>],
) -> Option<Vec<u8>> {
    let (kind, id) = question.split_first()?;
    let id = uuid::Uuid::from_slice(id).ok()?;
    if *kind != WHO_HAS {
        return None;
    }
    let has = |member: &Member| uuid::Uuid::parse_str(&member.id).is_ok_and(|its| its == id);
    let answer = Answer {
        mine: has(own).then(|| life.clone()),
        at: members
            .iter()
            .filter(|member| has(member) && member.status != MemberStatus::Left)
            .map(|member| member.socket_address())
            .take(NAMED_MAX)
            .collect(),
    };
    Some(postcard::to_allocvec(&answer).expect("an answer is plain data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(moved: bool, started: u64, host: u8) -> Life {
        Life {
            moved,
            started,
            address: ([10, 0, 0, host], 8301).into(),
        }
    }

    #[test]
    fn of_two_lives_the_moved_one_ends_or_else_the_later_and_never_both() {
        let original = life(false, 20, 1);
        for copy in [life(true, 10, 2), life(true, 30, 2), life(false, 30, 2)] {
            assert!(copy.yields_to(&original), "{copy:?}");
            assert!(!original.yields_to(&copy), "{copy:?}");
        }
        let (one, other) = (life(true, 10, 1), life(true, 10, 2));
        assert_ne!(one.yields_to(&other), other.yields_to(&one));
    }

    #[test]
    fn only_its_own_id_is_mine_and_garbage_is_no_question() {
        let id = uuid::Uuid::from_u128(7);
        let own = Member {
            id: id.to_string(),
            ..crate::table::member_of(
                &crate::wire::Peer {
                    id: id.into_bytes(),
                    incarnation: 1,
                    address: ([10, 0, 0, 1], 8301).into(),
                    name: "a".into(),
                },
                Default::default(),
                MemberStatus::Alive,
            )
        };
        let mut question = vec![WHO_HAS];
        question.extend_from_slice(id.as_bytes());
        let told = |question: &[u8]| {
            let bytes = answer(question, &life(false, 1, 1), &own, &[])?;
            postcard::from_bytes::<Answer>(&bytes).ok()
        };
        assert!(told(&question).unwrap().mine.is_some());
        *question.last_mut().unwrap() ^= 1;
        assert!(told(&question).unwrap().mine.is_none());
        question.pop();
        assert!(told(&question).is_none());
        assert!(told(&[]).is_none());
    }
}
