//! Keys of the whole pool: listed, installed, used and removed at every member, with each one's answer.
//!
//! Owns: the words of such an exchange over TCP, how many run at once, and changing our own ring and its file.
//! Never: does so for a caller that does not hold a key itself: every frame must be sealed, and names a number
//! that this very connection was given, so that what was recorded once is of no use later.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Gossip, Published, exchange};
use crate::error::GossipError;
use crate::keyring::{Framer, GossipKey, Keyring};
use crate::member::Member;
use crate::ring_file;

pub(super) const HELLO: u8 = 16;
const GREETING: u8 = 17;
const ASK: u8 = 18;
const ANSWER: u8 = 19;
const NONCE_BYTES: usize = 16;
/// Members asked at once.
const ASKED_AT_ONCE: usize = 32;
/// Time a member has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAction {
    /// Say which there are.
    List,
    /// Accept one more.
    Install,
    /// Seal with it from now on.
    Use,
    /// Accept it no longer.
    Remove,
}

#[derive(Serialize, Deserialize)]
struct Ask {
    nonce: [u8; NONCE_BYTES],
    action: KeyAction,
    /// Base64; empty to list.
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    /// Empty when it is done.
    error: String,
    /// The primary one first.
    keys: Vec<String>,
}

/// What the members answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// Members that were asked.
    pub nodes: usize,
    /// How many hold each key.
    pub keys: BTreeMap<String, usize>,
    /// How many seal with each key.
    pub primary: BTreeMap<String, usize>,
    /// What went wrong, by member; empty when all is well.
    pub errors: BTreeMap<String, String>,
}

impl Gossip {
    /// Does `action` with `key` (base64; empty to list) at every active member, this one included.
    /// `Use` changes nothing anywhere unless every member that answers has the key.
    ///
    /// Errors: [`GossipError::Key`] for a text that is no key, [`GossipError::Keyring`] without encryption.
    /// What single members refused is in the report.
    pub async fn keys(&self, action: KeyAction, key: &str) -> Result<KeyReport, GossipError> {
        if self.keyring().is_none() {
            return Err(no_ring());
        }
        if action != KeyAction::List {
            GossipKey::parse(key)?;
        }
        if action == KeyAction::Use {
            let mut held = self.ask_all(KeyAction::List, "", Some(key)).await;
            if !held.errors.is_empty() {
                held.keys.clear();
                held.primary.clear();
                return Ok(held);
            }
        }
        Ok(self.ask_all(action, key, None).await)
    }

    /// `needed`: who lacks this key is an error.
    async fn ask_all(&self, action: KeyAction, key: &str, needed: Option<&str>) -> KeyReport {
        let members = self.members();
        let active: Vec<Arc<Member>> = members
            .iter()
            .filter(|m| m.status.is_active())
            .cloned()
            .collect();
        let mut report = KeyReport {
            nodes: active.len(),
            ..KeyReport::default()
        };
        let (places, own) = (Arc::new(Semaphore::new(ASKED_AT_ONCE)), self.local());
        let mut asked = JoinSet::new();
        for member in active {
            let (places, published) = (Arc::clone(&places), Arc::clone(&self.published));
            let (key, here) = (key.to_owned(), member.id == own.id);
            asked.spawn(async move {
                let _place = places.acquire_owned().await;
                let answer = if here {
                    act(&published, action, key).await
                } else {
                    ask(member.socket_address(), action, key, &published).await
                };
                (member.name.clone(), answer)
            });
        }
        while let Some(done) = asked.join_next().await {
            let Ok((name, answer)) = done else { continue };
            let answer = answer.unwrap_or_else(|error| Answer {
                error: with_cause(&error),
                keys: Vec::new(),
            });
            for held in &answer.keys {
                *report.keys.entry(held.clone()).or_default() += 1;
            }
            if let Some(primary) = answer.keys.first() {
                *report.primary.entry(primary.clone()).or_default() += 1;
            }
            if !answer.error.is_empty() {
                report.errors.insert(name, answer.error);
            } else if needed.is_some_and(|key| answer.keys.iter().all(|held| held != key)) {
                let lacks = "gossip key is not installed; install it first (nothing was changed)";
                report.errors.insert(name, lacks.to_owned());
            }
        }
        report
    }
}

fn with_cause(error: &GossipError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn no_ring() -> GossipError {
    GossipError::Keyring {
        reason: "ring is empty: gossip is not encrypted (set encrypt)",
    }
}

fn malformed(peer: SocketAddr) -> GossipError {
    GossipError::Frame {
        peer,
        reason: "malformed",
    }
}

/// Asks one member.
async fn ask(
    peer: SocketAddr,
    action: KeyAction,
    key: String,
    published: &Published,
) -> Result<Answer, GossipError> {
    let call = async {
        let failed = |cause| GossipError::Exchange { peer, cause };
        let mut stream = TcpStream::connect(peer).await.map_err(failed)?;
        exchange::write(&mut stream, peer, &[HELLO], published).await?;
        let greeting = exchange::read(&mut stream, peer, published).await?;
        let nonce = greeting.strip_prefix(&[GREETING]);
        let nonce = nonce.and_then(|nonce| nonce.try_into().ok());
        let ask = Ask {
            nonce: nonce.ok_or_else(|| malformed(peer))?,
            action,
            key,
        };
        exchange::write(&mut stream, peer, &framed(ASK, &ask), published).await?;
        let answer = exchange::read(&mut stream, peer, published).await?;
        let answer = answer.strip_prefix(&[ANSWER]);
        let answer = answer.and_then(|body| postcard::from_bytes(body).ok());
        answer.ok_or_else(|| malformed(peer))
    };
    let timeout = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 5 s");
    tokio::time::timeout(ANSWER_TIMEOUT, call)
        .await
        .unwrap_or(Err(GossipError::Exchange {
            peer,
            cause: timeout,
        }))
}

/// A caller said [`HELLO`].
pub(super) async fn serve(
    stream: &mut TcpStream,
    peer: SocketAddr,
    published: &Arc<Published>,
) -> Result<(), GossipError> {
    let mut nonce = [0u8; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| GossipError::Key {
        reason: "the system gives no randomness".to_owned(),
    })?;
    let mut greeting = vec![GREETING];
    greeting.extend_from_slice(&nonce);
    exchange::write(stream, peer, &greeting, published).await?;
    let asked = exchange::read_sealed(stream, peer, published).await?;
    let asked = asked.strip_prefix(&[ASK]);
    let asked: Ask = asked
        .and_then(|body| postcard::from_bytes(body).ok())
        .filter(|ask: &Ask| ask.nonce == nonce)
        .ok_or_else(|| malformed(peer))?;
    if asked.action != KeyAction::List {
        tracing::info!(peer.addr = %peer, action = ?asked.action, "gossip keys changed from elsewhere");
    }
    let answer = act(published, asked.action, asked.key).await?;
    exchange::write(stream, peer, &framed(ANSWER, &answer), published).await
}

fn framed(kind: u8, value: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_stdvec(value).expect("plain data always encodes");
    [&[kind], &body[..]].concat()
}

/// Does it here. What is refused is in the answer; the ring is then as it was.
async fn act(
    published: &Arc<Published>,
    action: KeyAction,
    key: String,
) -> Result<Answer, GossipError> {
    let published = Arc::clone(published);
    let done = tokio::task::spawn_blocking(move || {
        let outcome = published.change_ring(|ring| match action {
            KeyAction::List => Ok(()),
            KeyAction::Install => ring.install(GossipKey::parse(&key)?),
            KeyAction::Use => ring.use_key(&GossipKey::parse(&key)?),
            KeyAction::Remove => ring.remove(&GossipKey::parse(&key)?),
        });
        let framer = published.framer.load();
        let keys = framer.ring().map_or(&[][..], Keyring::list);
        Answer {
            error: outcome.err().map(|e| with_cause(&e)).unwrap_or_default(),
            keys: keys.iter().map(|key| key.reveal().to_owned()).collect(),
        }
    });
    done.await.map_err(|_| GossipError::Stopped)
}

impl Published {
    /// Changes the ring as one step, on disk first.
    pub(super) fn change_ring(
        &self,
        change: impl FnOnce(&mut Keyring) -> Result<(), GossipError>,
    ) -> Result<(), GossipError> {
        let _guard = self
            .ring_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut framer = Framer::clone(&self.framer.load());
        let before = framer.ring().ok_or_else(no_ring)?;
        let mut ring = before.clone();
        change(&mut ring)?;
        if ring == *before {
            return Ok(());
        }
        if let Some(path) = &self.ring_path {
            ring_file::save(path, &ring)?;
        }
        framer.set_ring(Some(ring));
        self.framer.store(Arc::new(framer));
        Ok(())
    }
}
