//! The membership core: SWIM by foca, notices, full states. Inputs go in, [`Action`]s come out.
//!
//! Owns: foca, the table of members, all timers, a seeded rng, this node's own life.
//! Never: opens a socket, reads a clock, seals a packet, awaits. It is told `now`, a monotonic time.
//! Invariants: one identity per node id; a newer incarnation replaces an older one wherever it is;
//! `Left` and `Failed` are told apart by the leave notice, since SWIM itself knows only "down".

mod exchange;
mod fired;
mod insight;
mod news;
mod places;
mod rounds;
mod states;
mod suspicion;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foca::{Foca, Notification, OwnedNotification, Runtime, Timer, TimerToken};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::{CoreConfig, NAME_MAX_BYTES};
use crate::error::GossipError;
use crate::events::{Events, UserEvent};
use crate::member::{Member, MemberEvent, MemberStatus, Tags};
use crate::table::{Table, member_of};
use crate::vivaldi::Vivaldi;
use crate::wire::{
    KIND_LEAVE, NodeId, Notice, NoticeHandler, Passed, Peer, Shared, SharedHandle, WireCodec,
    check_tags, lock,
};

pub use crate::wire::SyncState;
pub use exchange::Answered;
pub use insight::Insight;
pub use places::CoordinateCounts;
pub(crate) use suspicion::ACCUSERS_MAX;
pub use suspicion::Load;

/// First byte of a datagram's body.
const KIND_SWIM: u8 = 0;
const KIND_NOTICE: u8 = 1;
const KIND_PLACE: u8 = 2;
const KIND_NACK: u8 = 3;

const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// How long tags may follow the news of a member before they are asked for.
const TAGS_WAIT: Duration = Duration::from_millis(600);
const LEAVE_STEP: Duration = Duration::from_millis(150);
const LEAVE_STEPS: u8 = 4;
/// Members told directly of a leave; the rest hear of it by gossip.
const LEAVE_DIRECT_MAX: usize = 32;
/// Members asked per sweep for tags that have not arrived.
const TAG_REQUESTS_MAX: usize = 16;
/// Seconds between two jumps over an alien incarnation of our own id (two processes, one node id).
const OVERTAKE_INTERVAL: Duration = Duration::from_secs(1);
/// Addresses [`Core::known_addresses`] returns at most.
const KNOWN_MAX: usize = 1_024;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this datagram's body.
    Send {
        /// To.
        to: SocketAddr,
        /// At most 1,353 bytes before sealing.
        body: Vec<u8>,
    },
    /// Exchange full states with this address over TCP and [`Core::merge`] the answer.
    Sync {
        /// With.
        peer: SocketAddr,
    },
    /// Tell users.
    Event(MemberEvent),
    /// A user event was heard for the first time, our own included.
    UserEvent(UserEvent),
    /// The farewell is out: stop.
    LeaveDone,
    /// A live node claims the name another live node holds; the holder keeps it.
    NameConflict {
        /// The name.
        name: String,
        /// Who keeps it.
        holder: SocketAddr,
        /// Who is left out while the holder lives.
        rival: SocketAddr,
    },
    /// This node came lately, and its name is that of a live member: it must not stay.
    NameTaken {
        /// The name.
        name: String,
        /// Who had it first.
        holder: SocketAddr,
    },
    /// Another process uses this node's id.
    IdConflict {
        /// Where it was seen.
        elsewhere: SocketAddr,
    },
}

/// The core of one node. See the module.
pub struct Core {
    config: CoreConfig,
    swim: Foca<Peer, WireCodec, StdRng, NoticeHandler>,
    shared: SharedHandle,
    effects: Effects,
    table: Table,
    rng: StdRng,
    tags: Tags,
    tags_version: u64,
    phase: Phase,
    seeds: BTreeSet<SocketAddr>,
    scaled_for: usize,
    overtaken_at: Option<Duration>,
    hurried_at: Option<Duration>,
    vivaldi: Vivaldi,
    probe: Option<places::Probe>,
    coordinate_counts: CoordinateCounts,
    doubt: suspicion::Doubt,
    /// Members whose tags have not come with the news of them.
    untagged: BTreeSet<NodeId>,
    started: Duration,
    /// Since when the pool says that our name is another's.
    taken_since: Option<Duration>,
    gave_way: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Leaving { steps: u8 },
    Gone,
}

#[derive(Debug)]
enum Due {
    Swim(Timer<Peer>),
    Sync,
    Reconnect,
    Sweep,
    LeaveStep,
    /// Ask for tags that have not come.
    Tags,
    /// A member we asked on somebody's behalf should have answered by now.
    Witness((NodeId, SocketAddr, u8)),
}

/// foca's runtime: its effects as data.
#[derive(Default)]
struct Effects {
    now: Duration,
    actions: VecDeque<Action>,
    timers: BTreeMap<(Duration, u64), Due>,
    sequence: u64,
    notes: Vec<OwnedNotification<Peer>>,
    /// foca's clocks on members whose probe failed; the core decides when they fire.
    suspected: Vec<Timer<Peer>>,
    /// Probes take this many times as long as configured.
    stretch: u32,
    /// foca's token of the probes under way, and when the first of them is due, as a share of the interval.
    probing: Option<TimerToken>,
    first_probe: f64,
}

impl Effects {
    fn after(&mut self, delay: Duration, due: Due) {
        self.at(self.now + delay, due);
    }

    fn at(&mut self, at: Duration, due: Due) -> (Duration, u64) {
        self.sequence += 1;
        self.timers.insert((at, self.sequence), due);
        (at, self.sequence)
    }

    fn send(&mut self, to: SocketAddr, kind: u8, data: &[u8]) {
        let mut body = Vec::with_capacity(data.len() + 1);
        body.push(kind);
        body.extend_from_slice(data);
        self.actions.push_back(Action::Send { to, body });
    }
}

impl Runtime<Peer> for Effects {
    fn notify(&mut self, notification: Notification<'_, Peer>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: Peer, data: &[u8]) {
        self.send(to.address, KIND_SWIM, data);
    }

    fn submit_after(&mut self, event: Timer<Peer>, after: Duration) {
        match event {
            Timer::ChangeSuspectToDown { .. } => self.suspected.push(event),
            // A pool that starts at one instant does not probe at one instant ever after.
            Timer::ProbeRandomMember(token) if self.probing.replace(token) != Some(token) => {
                self.drop_stale(token);
                self.after(after.mul_f64(self.first_probe), Due::Swim(event));
            }
            Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } => {
                self.after(after * self.stretch, Due::Swim(event));
            }
            _ => self.after(after, Due::Swim(event)),
        }
    }
}

impl Core {
    /// A node that knows nobody yet. `seed` makes every later choice reproducible.
    ///
    /// Errors: name, id, tags or timings that are not usable.
    pub fn new(config: CoreConfig, now: Duration, seed: u64) -> Result<Self, GossipError> {
        if config.name.is_empty() || config.name.len() > NAME_MAX_BYTES {
            return Err(GossipError::Name {
                name: config.name,
                max: NAME_MAX_BYTES,
            });
        }
        config.timing.check()?;
        check_tags(&config.tags)?;
        let id = uuid::Uuid::parse_str(&config.id).map_err(|_| GossipError::NodeId {
            id: config.id.clone(),
        })?;
        let own = Peer {
            id: id.into_bytes(),
            incarnation: config.incarnation,
            address: config.advertise,
            name: config.name.clone(),
        };
        let shared = Arc::new(Mutex::new(Shared {
            own: own.clone(),
            members_max: config.members_max,
            known: BTreeSet::new(),
            own_elsewhere: None,
            newest: BTreeMap::new(),
            inbox: Vec::new(),
            refused: 0,
            events: Events::new(now),
            relays: false,
            accused: BTreeMap::new(),
            now,
            passed: Passed::default(),
        }));
        let mut rng = StdRng::seed_from_u64(seed);
        let swim = Foca::with_custom_broadcast(
            own,
            config.timing.swim(1),
            StdRng::seed_from_u64(rng.random()),
            WireCodec::new(Arc::clone(&shared)),
            NoticeHandler::new(Arc::clone(&shared)),
        );
        let mut core = Self {
            tags: config.tags.clone(),
            config,
            swim,
            shared,
            effects: Effects {
                now,
                stretch: 1,
                first_probe: rng.random_range(0.1..1.0),
                ..Effects::default()
            },
            table: Table::default(),
            rng,
            tags_version: 1,
            phase: Phase::Running,
            seeds: BTreeSet::new(),
            scaled_for: 1,
            overtaken_at: None,
            hurried_at: None,
            vivaldi: Vivaldi::default(),
            probe: None,
            coordinate_counts: CoordinateCounts::default(),
            doubt: suspicion::Doubt::default(),
            untagged: BTreeSet::new(),
            started: now,
            taken_since: None,
            gave_way: false,
        };
        core.start();
        Ok(core)
    }

    fn start(&mut self) {
        let own = self.swim.identity().clone();
        self.table.up(self.effects.now, &own);
        self.publish_tags();
        // The first exchange comes early: a burst of joins outruns the retransmissions of gossip.
        self.after_about(self.config.timing.sync_interval / 8, Due::Sync);
        self.after_about(self.config.timing.reconnect_interval, Due::Reconnect);
        self.effects.after(SWEEP_INTERVAL, Due::Sweep);
        self.settle();
        // Nobody listens yet, and the first snapshot holds this node.
        self.effects.actions.clear();
    }

    /// This node as others see it.
    #[must_use]
    pub fn local(&self) -> Member {
        let status = match self.phase {
            Phase::Running => MemberStatus::Alive,
            Phase::Leaving { .. } => MemberStatus::Leaving,
            Phase::Gone => MemberStatus::Left,
        };
        member_of(self.swim.identity(), self.tags.clone(), status)
    }

    /// Every member shown, this node included, by name.
    #[must_use]
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.table.snapshot()
    }

    /// The member shown under a name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<Arc<Member>> {
        self.table.by_name(name).map(|r| Arc::clone(&r.member))
    }

    /// Whether [`Self::members`] changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.table.changed)
    }

    /// News refused so far because `members_max` was reached.
    #[must_use]
    pub fn members_refused(&self) -> u64 {
        lock(&self.shared).refused
    }

    /// Active members other than this node.
    #[must_use]
    pub fn peers_active(&self) -> usize {
        self.swim.num_members()
    }

    /// When [`Self::handle_timers`] wants to be called next.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.effects.timers.keys().next().map(|(at, _)| *at)
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Action> {
        self.effects.actions.pop_front()
    }

    /// An unsealed datagram body came in. `false` when it was not understood.
    pub fn handle_packet(&mut self, now: Duration, from: SocketAddr, body: &[u8]) -> bool {
        self.pass(now);
        if self.phase == Phase::Gone {
            return true;
        }
        let sound = match body.split_first() {
            Some((&KIND_SWIM, data)) => match self.swim.handle_data(data, &mut self.effects) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(peer.addr = %from, %error, "gossip packet refused");
                    false
                }
            },
            Some((&KIND_NOTICE, data)) => self.handle_notice(from, data),
            Some((&KIND_PLACE, data)) => self.handle_place(from, data),
            Some((&KIND_NACK, data)) => self.handle_nack(from, data),
            _ => false,
        };
        self.settle();
        sound
    }

    /// Fires every timer that is due.
    pub fn handle_timers(&mut self, now: Duration) {
        self.pass(now);
        let due = self.next_timer().unwrap_or(now);
        let late = now.saturating_sub(due);
        if late > self.config.timing.late() {
            self.woke_late(late);
        }
        while let Some(entry) = self.effects.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Due::Swim(timer) => {
                    if let Err(error) = self.swim.handle_timer(timer, &mut self.effects) {
                        tracing::debug!(%error, "gossip timer");
                    }
                }
                Due::Sync => self.on_sync_timer(),
                Due::Reconnect => self.on_reconnect_timer(),
                Due::Sweep => self.on_sweep_timer(),
                Due::LeaveStep => self.on_leave_step(),
                Due::Tags => self.on_tags_timer(),
                Due::Witness(errand) => self.on_witness(errand),
            }
            self.settle();
        }
    }

    /// Addresses to fall back to when nobody else is reachable (answered joins, the known file).
    pub fn add_seeds(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let own = self.config.advertise;
        self.seeds
            .extend(addresses.into_iter().filter(|a| *a != own));
        while self.seeds.len() > KNOWN_MAX {
            self.seeds.pop_last();
        }
    }

    /// Addresses worth trying after a restart: active and failed members, servers first; at most 1,024.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<(String, SocketAddr)> {
        let own = self.swim.identity().id;
        let mut known: Vec<&Arc<Member>> = self
            .table
            .records()
            .filter(|r| r.peer.id != own && r.member.status != MemberStatus::Left)
            .map(|r| &r.member)
            .collect();
        known.sort_by_key(|m| {
            (
                m.tag("role") != "consul",
                !m.status.is_active(),
                m.name.clone(),
            )
        });
        known.truncate(KNOWN_MAX);
        known
            .into_iter()
            .map(|m| (m.name.clone(), m.socket_address()))
            .collect()
    }

    /// Replaces this node's tags and spreads them.
    ///
    /// Errors: [`GossipError::TagsTooLarge`]; the old ones stay.
    pub fn set_tags(&mut self, now: Duration, tags: Tags) -> Result<(), GossipError> {
        check_tags(&tags)?;
        self.pass(now);
        if tags != self.tags {
            self.tags = tags;
            self.tags_version += 1;
            self.publish_tags();
            self.settle();
        }
        Ok(())
    }

    /// Begins a graceful leave: the intent goes out, then the farewell, then [`Action::LeaveDone`].
    pub fn leave(&mut self, now: Duration) {
        self.pass(now);
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Leaving { steps: LEAVE_STEPS };
        let own = self.swim.identity().clone();
        self.table.leave(now, &own.id, own.incarnation, false);
        self.spread(&Notice::Leave {
            id: own.id,
            incarnation: own.incarnation,
            forced: false,
            prune: false,
        });
        self.effects.after(LEAVE_STEP, Due::LeaveStep);
        self.settle();
    }

    /// Declares a failed member as left, everywhere; `prune` also takes it from the list.
    ///
    /// Errors: [`GossipError::UnknownMember`], [`GossipError::MemberAlive`].
    pub fn force_leave(
        &mut self,
        now: Duration,
        name: &str,
        prune: bool,
    ) -> Result<(), GossipError> {
        self.pass(now);
        let record = self
            .table
            .by_name(name)
            .ok_or_else(|| GossipError::UnknownMember {
                name: name.to_owned(),
            })?;
        if record.member.status.is_active() {
            return Err(GossipError::MemberAlive {
                name: name.to_owned(),
                address: record.peer.address,
                status: record.member.status,
            });
        }
        let notice = Notice::Leave {
            id: record.peer.id,
            incarnation: record.peer.incarnation,
            forced: true,
            prune,
        };
        self.spread(&notice);
        self.settle();
        Ok(())
    }

    /// Carries foca's conclusions and fresh notices into the table, then the table's events out.
    fn settle(&mut self) {
        self.accuse();
        self.look();
        self.digest_notes();
        let relays = self.may_relay();
        let inbox = {
            let mut shared = lock(&self.shared);
            shared.relays = relays;
            std::mem::take(&mut shared.inbox)
        };
        for notice in inbox {
            self.digest_notice(notice);
        }
        self.overtake_own();
        self.accuse();
        self.look();
        self.digest_notes();
        self.effects
            .actions
            .extend(self.table.events.drain(..).map(Action::Event));
        let conflicts = self.table.conflicts.drain(..);
        self.effects
            .actions
            .extend(conflicts.map(|(name, holder, rival)| Action::NameConflict {
                name,
                holder,
                rival,
            }));
        self.rescale();
    }

    fn digest_notes(&mut self) {
        for note in std::mem::take(&mut self.effects.notes) {
            let now = self.effects.now;
            match note {
                OwnedNotification::MemberUp(peer) => self.digest_up(&peer),
                OwnedNotification::MemberDown(peer) => self.table.down(now, &peer),
                OwnedNotification::Rename(_, peer) => {
                    let active = self.swim.iter_members().any(|m| *m.id() == peer);
                    if active {
                        self.digest_up(&peer);
                    }
                }
                OwnedNotification::Rejoin(peer) => self.renewed(peer),
                OwnedNotification::Active => self.begin_anew(),
                OwnedNotification::Idle | OwnedNotification::Defunct => {}
            }
        }
    }

    fn digest_up(&mut self, peer: &Peer) {
        self.table.up(self.effects.now, peer);
        // They mostly come in the same packet; a whole pool asking a newcomer would drown it.
        if self.untagged.is_empty() {
            self.effects.after(TAGS_WAIT, Due::Tags);
        }
        self.untagged.insert(peer.id);
        // Its leave intent may have overtaken the news that it exists.
        let intent = lock(&self.shared)
            .newest
            .get(&(KIND_LEAVE, peer.id))
            .copied();
        if intent == Some((peer.incarnation, 0)) {
            self.table
                .leave(self.effects.now, &peer.id, peer.incarnation, false);
        }
    }

    /// Our own life got a new incarnation: the tags go with it.
    fn renewed(&mut self, own: Peer) {
        lock(&self.shared).own = own.clone();
        self.table.up(self.effects.now, &own);
        self.publish_tags();
        if self.phase != Phase::Running {
            self.table
                .leave(self.effects.now, &own.id, own.incarnation, false);
            self.hear(
                &Notice::Leave {
                    id: own.id,
                    incarnation: own.incarnation,
                    forced: false,
                    prune: false,
                }
                .encode(),
            );
        }
    }

    /// Dissemination and suspicion follow the pool's size, in steps of a quarter.
    fn rescale(&mut self) {
        let size = self.swim.num_members() + 1;
        if size.abs_diff(self.scaled_for) * 4 >= self.scaled_for
            && self.swim.set_config(self.config.timing.swim(size)).is_ok()
        {
            self.scaled_for = size;
        }
    }

    /// After `base`, give or take a fifth, so that nodes started together do not act together.
    fn after_about(&mut self, base: Duration, due: Due) {
        self.effects
            .after(base.mul_f64(self.rng.random_range(0.8..1.2)), due);
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("own", self.swim.identity())
            .field("members", &self.table.len())
            .finish()
    }
}
