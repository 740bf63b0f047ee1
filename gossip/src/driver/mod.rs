//! The tokio driver: sockets, time and tasks around the core.
//!
//! Owns: the UDP socket, the TCP listener, one task that owns the core, the published snapshot.
//! Never: decides about membership. Slow readers of events are told to look at the snapshot; the
//! loop never waits for them.

mod clocks;
mod exchange;
mod fence;
mod keys;
mod run;

pub use fence::fence;
pub use keys::{KeyAction, KeyReport};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{broadcast, mpsc, oneshot};
use weft_proto::clock::Clock;
use weft_proto::coordinate::Coordinate;

use crate::config::GossipConfig;
use crate::core::{Answered, Core, Insight};
use crate::error::GossipError;
use crate::events::{EventId, UserEvent};
use crate::keyring::{Framer, Keyring};
use crate::known::Known;
use crate::member::{Member, MemberEvent, Tags};
use crate::metrics::Metrics;
use crate::ring_file;

/// Requests waiting for the loop at most; callers wait beyond that.
const COMMANDS_MAX: usize = 256;
/// Events a consumer may lag behind before it is resynced.
const EVENTS_MAX: usize = 1_024;
/// Addresses tried per name given to join.
const ADDRESSES_PER_NAME_MAX: usize = 8;

/// What users ask of the loop.
enum Command {
    Open {
        full: bool,
        reply: oneshot::Sender<Vec<u8>>,
    },
    Frame {
        from: SocketAddr,
        frame: Vec<u8>,
        reply: oneshot::Sender<Answered>,
    },
    Why(oneshot::Sender<Vec<Insight>>),
    AddSeeds {
        names: Vec<String>,
        addresses: Vec<SocketAddr>,
    },
    SetTags {
        tags: Tags,
        reply: oneshot::Sender<Result<(), GossipError>>,
    },
    ForceLeave {
        name: String,
        prune: bool,
        reply: oneshot::Sender<Result<(), GossipError>>,
    },
    Fire {
        id: EventId,
        body: Vec<u8>,
        reply: oneshot::Sender<Result<u64, GossipError>>,
    },
    /// A process elsewhere has our id, and answered for itself.
    Rival(fence::Life),
    /// The clock of a member was read.
    Clock {
        member: Arc<Member>,
        skew: clocks::Skew,
    },
    Leave(oneshot::Sender<()>),
    Shutdown(oneshot::Sender<()>),
}

/// What the loop shows to everybody.
struct Published {
    members: ArcSwap<Vec<Arc<Member>>>,
    local: ArcSwap<Member>,
    /// Gone once the loop has ended, which ends every stream.
    events: Mutex<Option<broadcast::Sender<MemberEvent>>>,
    /// Likewise.
    user_events: Mutex<Option<broadcast::Sender<UserEvent>>>,
    coordinate: ArcSwapOption<Coordinate>,
    framer: ArcSwap<Framer>,
    life: fence::Life,
    clock: Arc<dyn Clock>,
    /// Why the pool's task ended by itself.
    fate: Mutex<Option<GossipError>>,
    /// Held while the ring changes.
    ring_lock: Mutex<()>,
    ring_path: Option<PathBuf>,
    metrics: Metrics,
}

/// What [`Gossip::join`] achieved.
#[derive(Debug)]
pub struct JoinOutcome {
    /// Members that answered.
    pub contacted: usize,
    /// Addresses that did not, as given, with the reason.
    pub errors: Vec<(String, GossipError)>,
}

/// A running member of the pool. Dropping it without [`Self::leave`] looks like a crash to others.
pub struct Gossip {
    commands: mpsc::Sender<Command>,
    published: Arc<Published>,
    bound: SocketAddr,
}

impl Gossip {
    /// Opens the sockets, reads the file of known addresses and starts the loop. Needs a tokio runtime.
    ///
    /// Errors: settings that cannot work, a port in use, an unreadable file. Nothing is left running.
    pub async fn start(
        mut config: GossipConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, GossipError> {
        let (udp, tcp, bound) = bind(config.bind).await?;
        let advertise = &mut config.core.advertise;
        if advertise.port() == 0 {
            advertise.set_port(bound.port());
        }
        if advertise.ip().is_unspecified() {
            advertise.set_ip(bound.ip());
        }
        if advertise.ip().is_unspecified() {
            return Err(GossipError::Advertise {
                address: *advertise,
            });
        }
        let known = match &config.known_path {
            Some(path) => Known::load(path)?,
            None => Known::default(),
        };
        let floor = config.core.incarnation.max(known.incarnation + 1);
        config.core.incarnation = floor.max(clock.wall().get());
        let started = clock.wall().get();
        let address = config.core.advertise;
        let life = fence::Life {
            moved: known.address.is_some_and(|last| last != address),
            started,
            address,
        };
        let known = Known {
            address: Some(address),
            ..known
        };
        if let Some(path) = &config.known_path {
            let incarnation = config.core.incarnation;
            Known {
                incarnation,
                ..known.clone()
            }
            .save(path)?;
        }
        let ring = first_ring(&mut config)?;
        let mut core = Core::new(config.core.clone(), clock.monotonic(), seed()?)?;
        core.add_seeds(known.addresses.iter().map(|(_, address)| *address));
        let published = Arc::new(Published {
            members: ArcSwap::from_pointee(core.members()),
            local: ArcSwap::from_pointee(core.local()),
            coordinate: ArcSwapOption::from_pointee(core.coordinate()),
            events: Mutex::new(Some(broadcast::Sender::new(EVENTS_MAX))),
            user_events: Mutex::new(Some(broadcast::Sender::new(EVENTS_MAX))),
            life,
            clock: Arc::clone(&clock),
            fate: Mutex::new(None),
            ring_lock: Mutex::new(()),
            ring_path: config.keyring_path.clone(),
            framer: ArcSwap::from_pointee(Framer::new(
                &config.core.datacenter,
                ring,
                config.verify_incoming,
                config.verify_outgoing,
            )),
            metrics: Metrics::default(),
        });
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let parts = run::Parts {
            core,
            clock,
            udp,
            tcp,
            inbox,
            known,
        };
        run::spawn(parts, Arc::clone(&published), commands.downgrade(), &config);
        Ok(Self {
            commands,
            published,
            bound,
        })
    }

    /// The address UDP and TCP are open on.
    #[must_use]
    pub fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Exchanges states with each address (`host`, `host:port`, `[v6]:port`; the port defaults to our own).
    /// They are also remembered as seeds.
    pub async fn join(&self, addresses: &[String]) -> JoinOutcome {
        let mut outcome = JoinOutcome {
            contacted: 0,
            errors: Vec::new(),
        };
        let mut seeds = Vec::new();
        for text in addresses {
            match self.join_one(text, &mut seeds).await {
                Ok(()) => outcome.contacted += 1,
                Err(error) => outcome.errors.push((text.clone(), error)),
            }
        }
        let seeds = Command::AddSeeds {
            names: addresses.to_vec(),
            addresses: seeds,
        };
        // A loop that has ended needs no seeds.
        let _ = self.commands.send(seeds).await;
        outcome
    }

    async fn join_one(&self, text: &str, seeds: &mut Vec<SocketAddr>) -> Result<(), GossipError> {
        let resolved = resolve(text, self.bound.port()).await?;
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no address");
        let mut last = GossipError::Resolve {
            host: text.to_owned(),
            cause: missing,
        };
        for peer in resolved.into_iter().take(ADDRESSES_PER_NAME_MAX) {
            if peer == self.local().socket_address() {
                last = GossipError::Ourselves { peer };
                continue;
            }
            seeds.push(peer);
            match exchange::with(peer, true, &self.commands, &self.published).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The pool as this node sees it, itself included, by name. Never blocks.
    #[must_use]
    pub fn members(&self) -> Arc<Vec<Arc<Member>>> {
        self.published.members.load_full()
    }

    /// This node. Never blocks.
    #[must_use]
    pub fn local(&self) -> Arc<Member> {
        self.published.local.load_full()
    }

    /// Events from now on; the first one is a [`MemberEvent::Resync`] with the pool as it stands.
    #[must_use]
    pub fn events(&self) -> EventStream {
        let events = self
            .published
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Of a pool that has stopped: the snapshot, then the end.
        let receiver = events
            .as_ref()
            .map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe);
        EventStream {
            receiver,
            published: Arc::clone(&self.published),
            resync: true,
        }
    }

    /// Where this node lies in the network; `None` when it does not learn that. Never blocks.
    #[must_use]
    pub fn coordinate(&self) -> Option<Coordinate> {
        self.published.coordinate.load().as_deref().copied()
    }

    /// Fires a user event; every member that is in the pool now hears it once, this one included.
    /// Answers its Lamport time once it is on its way.
    ///
    /// Errors: [`GossipError::EventTooLarge`], [`GossipError::EventsWaiting`], [`GossipError::Stopped`].
    pub async fn fire(&self, id: EventId, body: Vec<u8>) -> Result<u64, GossipError> {
        self.ask(|reply| Command::Fire { id, body, reply }).await?
    }

    /// User events from now on.
    #[must_use]
    pub fn user_events(&self) -> UserEventStream {
        let events = self
            .published
            .user_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let receiver = events
            .as_ref()
            .map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe);
        UserEventStream {
            receiver,
            published: Arc::clone(&self.published),
        }
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.published.metrics
    }

    /// Replaces this node's tags and spreads them.
    ///
    /// Errors: [`GossipError::TagsTooLarge`], [`GossipError::Stopped`].
    pub async fn set_tags(&self, tags: Tags) -> Result<(), GossipError> {
        self.ask(|reply| Command::SetTags { tags, reply }).await?
    }

    /// Declares a failed member as left, everywhere; `prune` also takes it from the list.
    ///
    /// Errors: [`GossipError::UnknownMember`], [`GossipError::MemberAlive`], [`GossipError::Stopped`].
    pub async fn force_leave(&self, name: &str, prune: bool) -> Result<(), GossipError> {
        let name = name.to_owned();
        self.ask(|reply| Command::ForceLeave { name, prune, reply })
            .await?
    }

    /// Says farewell (about 0.8 s) and stops. `false` when that did not end within `timeout`; it stops anyway.
    pub async fn leave(&self, timeout: Duration) -> bool {
        let left = tokio::time::timeout(timeout, self.ask(Command::Leave)).await;
        self.shutdown().await;
        matches!(left, Ok(Ok(())))
    }

    /// Stops without a farewell: others will call it a failure. Returns once the sockets are closed.
    pub async fn shutdown(&self) {
        // Already stopped is as good.
        let _ = self.ask(Command::Shutdown).await;
    }

    /// Resolves when the pool's task has ended: after [`Self::shutdown`], or by a defect.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Why it ended, when it did so by itself and not by a defect.
    #[must_use]
    pub fn fate(&self) -> Option<GossipError> {
        let mut fate = self.published.fate.lock();
        fate.as_deref_mut().ok().and_then(Option::take)
    }

    /// An account of every member: who suspects it, how it was probed, since when it is what it is.
    ///
    /// Errors: [`GossipError::Stopped`].
    pub async fn why(&self) -> Result<Vec<Insight>, GossipError> {
        self.ask(Command::Why).await
    }

    /// The keys, or `None` when gossip is in clear text.
    #[must_use]
    pub fn keyring(&self) -> Option<Keyring> {
        self.published.framer.load().ring().cloned()
    }

    /// Changes the ring as one step: install, use or remove on the copy `change` is given.
    ///
    /// Errors: what `change` says, or gossip is not encrypted. The old ring stays then.
    pub fn update_keyring(
        &self,
        change: impl FnOnce(&mut Keyring) -> Result<(), GossipError>,
    ) -> Result<(), GossipError> {
        self.published.change_ring(change)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, GossipError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| GossipError::Stopped)?;
        answer.await.map_err(|_| GossipError::Stopped)
    }
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

/// Events of the pool for one consumer.
pub struct EventStream {
    receiver: broadcast::Receiver<MemberEvent>,
    published: Arc<Published>,
    resync: bool,
}

impl EventStream {
    /// The next event; `None` when the pool has stopped. Cancel-safe.
    ///
    /// A consumer that fell more than 1,024 events behind gets [`MemberEvent::Resync`] instead of them.
    pub async fn next(&mut self) -> Option<MemberEvent> {
        loop {
            if std::mem::take(&mut self.resync) {
                self.receiver = self.receiver.resubscribe();
                return Some(MemberEvent::Resync(self.published.members.load_full()));
            }
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => self.resync = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream")
            .field("resync", &self.resync)
            .finish_non_exhaustive()
    }
}

/// User events of the pool for one consumer.
pub struct UserEventStream {
    receiver: broadcast::Receiver<UserEvent>,
    published: Arc<Published>,
}

impl UserEventStream {
    /// The next event; `None` when the pool has stopped. Cancel-safe.
    ///
    /// A consumer that falls more than 1,024 events behind misses the oldest; that is counted.
    pub async fn next(&mut self) -> Option<UserEvent> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.published.metrics.events_missed.add(missed);
                    tracing::warn!(
                        missed,
                        "user events were missed: they come faster than they are taken"
                    );
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl std::fmt::Debug for UserEventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserEventStream").finish_non_exhaustive()
    }
}

/// The ring of the file goes before the key of the configuration: it may have been rotated since.
fn first_ring(config: &mut GossipConfig) -> Result<Option<Keyring>, GossipError> {
    let given = config.keyring.take();
    let Some(path) = &config.keyring_path else {
        return Ok(given);
    };
    match (ring_file::load(path)?, given) {
        (Some(ring), given) => {
            if given.is_some_and(|given| !ring.list().contains(given.primary())) {
                tracing::warn!(path = %path.display(), "the key of encrypt is not in the keyring, which goes before it");
            }
            Ok(Some(ring))
        }
        (None, Some(ring)) => {
            ring_file::save(path, &ring)?;
            Ok(Some(ring))
        }
        (None, None) => Ok(None),
    }
}

/// UDP and TCP on one address; with port 0 a port is found that is free for both.
async fn bind(address: SocketAddr) -> Result<(UdpSocket, TcpListener, SocketAddr), GossipError> {
    let failed = |protocol, address| {
        move |cause| GossipError::Bind {
            protocol,
            address,
            cause,
        }
    };
    let mut tries = 16;
    loop {
        let tcp = TcpListener::bind(address)
            .await
            .map_err(failed("tcp", address))?;
        let bound = tcp.local_addr().map_err(failed("tcp", address))?;
        match UdpSocket::bind(bound).await {
            Ok(udp) => return Ok((udp, tcp, bound)),
            Err(_) if address.port() == 0 && tries > 0 => tries -= 1,
            Err(cause) => return Err(failed("udp", bound)(cause)),
        }
    }
}

async fn resolve(text: &str, port: u16) -> Result<Vec<SocketAddr>, GossipError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let named = if text.contains(':') {
        text.to_owned()
    } else {
        format!("{text}:{port}")
    };
    let failed = |cause| GossipError::Resolve {
        host: text.to_owned(),
        cause,
    };
    Ok(tokio::net::lookup_host(named)
        .await
        .map_err(failed)?
        .collect())
}

fn seed() -> Result<u64, GossipError> {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GossipError::Key {
        reason: "the system gives no randomness".to_owned(),
    })?;
    Ok(u64::from_le_bytes(bytes))
}
