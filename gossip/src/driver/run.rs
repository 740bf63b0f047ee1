//! The loop: one task owns the core, gathers inputs, performs actions, publishes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use weft_proto::clock::Clock;

use super::clocks::{self, Clocks};
use super::{Command, Published, exchange, fence, resolve};
use crate::config::{DATAGRAM_MAX_BYTES, GossipConfig};
use crate::core::{Action, Core};
use crate::error::GossipError;
use crate::events::UserEvent;
use crate::keyring::FrameError;
use crate::known::Known;
use crate::member::MemberStatus;
use crate::quiet::Quiet;

/// Exchanges others may have open with us at once; more are hung up on.
const ANSWERS_MAX: usize = 64;
/// Exchanges of our own at once.
const CALLS_MAX: usize = 16;
/// Datagrams handled before other inputs get a turn.
const DATAGRAMS_PER_TURN: usize = 64;
/// Names of seeds remembered, to be resolved again.
const SEED_NAMES_MAX: usize = 64;
/// Addresses tried per seed name.
const SEED_ADDRESSES_MAX: usize = 3;
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const RESEED: Duration = Duration::from_secs(30);

pub(super) struct Parts {
    pub(super) core: Core,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) known: Known,
}

pub(super) fn spawn(
    parts: Parts,
    published: Arc<Published>,
    commands: mpsc::WeakSender<Command>,
    config: &GossipConfig,
) {
    let run = Run {
        core: parts.core,
        clock: parts.clock,
        udp: parts.udp,
        published,
        commands,
        known: parts.known,
        known_path: config.known_path.clone(),
        rejoin_after_leave: config.rejoin_after_leave,
        port: config.core.advertise.port(),
        answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
        calls: Arc::new(Semaphore::new(CALLS_MAX)),
        seed_names: Vec::new(),
        reseed_at: Duration::ZERO,
        leaving: None,
        quiet: Quiet::new(),
        clocks: Clocks::default(),
    };
    tokio::spawn(run.run(parts.tcp, parts.inbox));
}

struct Run {
    core: Core,
    clock: Arc<dyn Clock>,
    udp: UdpSocket,
    published: Arc<Published>,
    /// Weak, so that the loop ends when the last handle is dropped.
    commands: mpsc::WeakSender<Command>,
    known: Known,
    known_path: Option<PathBuf>,
    rejoin_after_leave: bool,
    port: u16,
    answers: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    seed_names: Vec<String>,
    reseed_at: Duration,
    leaving: Option<oneshot::Sender<()>>,
    quiet: Quiet<(IpAddr, &'static str)>,
    clocks: Clocks,
}

enum Turn {
    Go,
    Stop(Option<oneshot::Sender<()>>),
}

impl Run {
    async fn run(mut self, tcp: TcpListener, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = [0u8; 2048];
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let stopped = loop {
            if let Turn::Stop(reply) = self.perform().await {
                break reply;
            }
            let wait = self
                .core
                .next_timer()
                .map_or(HOUSEKEEPING, |at| at.saturating_sub(self.clock.monotonic()));
            let turn = tokio::select! {
                biased;
                command = inbox.recv() => command.map_or(Turn::Stop(None), |c| self.command(c)),
                () = tokio::time::sleep(wait) => Turn::Go,
                received = self.udp.recv_from(&mut buffer) => self.datagrams(received, &mut buffer),
                accepted = tcp.accept() => self.accepted(accepted),
                _ = housekeeping.tick() => self.housekeeping().await,
            };
            self.core.handle_timers(self.clock.monotonic());
            if let Turn::Stop(reply) = turn {
                break reply;
            }
        };
        self.save_known().await;
        self.published
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.published
            .user_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop((tcp, inbox, self));
        if let Some(reply) = stopped {
            // Nobody may be waiting any more.
            let _ = reply.send(());
        }
    }

    fn command(&mut self, command: Command) -> Turn {
        let now = self.clock.monotonic();
        // A caller that gave up does not want its answer.
        match command {
            Command::Open { full, reply } => drop(reply.send(self.core.exchange_open(now, full))),
            Command::Frame { from, frame, reply } => {
                drop(reply.send(self.core.exchange(now, from, &frame)))
            }
            Command::Why(reply) => {
                let mut insights = self.core.insights(now);
                for one in &mut insights {
                    let skew = self.clocks.of(&one.id);
                    one.clock_ahead_millis = skew.map(|skew| skew.ahead_millis);
                }
                drop(reply.send(insights));
            }
            Command::Clock { member, skew } => self.clock_read(&member, skew),
            Command::AddSeeds { names, addresses } => {
                self.core.add_seeds(addresses);
                for name in names {
                    if !self.seed_names.contains(&name) && self.seed_names.len() < SEED_NAMES_MAX {
                        self.seed_names.push(name);
                    }
                }
            }
            Command::SetTags { tags, reply } => drop(reply.send(self.core.set_tags(now, tags))),
            Command::ForceLeave { name, prune, reply } => {
                drop(reply.send(self.core.force_leave(now, &name, prune)));
            }
            Command::Fire { id, body, reply } => {
                let fired = self.core.fire(now, id, body);
                let metrics = &self.published.metrics;
                match &fired {
                    Ok(_) => metrics.events_fired.add(1),
                    Err(_) => metrics.events_refused.add(1),
                }
                drop(reply.send(fired));
            }
            Command::Rival(rival) => return self.rival(&rival),
            Command::Leave(reply) => {
                self.leaving = Some(reply);
                self.core.leave(now);
            }
            Command::Shutdown(reply) => return Turn::Stop(Some(reply)),
        }
        Turn::Go
    }

    fn datagrams(
        &mut self,
        first: std::io::Result<(usize, SocketAddr)>,
        buffer: &mut [u8],
    ) -> Turn {
        let mut received = first;
        for _ in 0..DATAGRAMS_PER_TURN {
            // Errors here are old ICMP answers to what we sent; the probe finds out by itself.
            if let Ok((length, from)) = received {
                self.datagram(from, &buffer[..length]);
            }
            received = self.udp.try_recv_from(buffer);
            if received.is_err() {
                break;
            }
        }
        Turn::Go
    }

    fn datagram(&mut self, from: SocketAddr, frame: &[u8]) {
        let metrics = &self.published.metrics;
        metrics.packets_received.add(1);
        metrics.bytes_received.add(frame.len() as u64);
        match self.published.framer.load().open(frame) {
            Ok(body) => {
                if !self.core.handle_packet(self.clock.monotonic(), from, &body) {
                    metrics.malformed.add(1);
                }
            }
            Err(error) => self.frame_refused(from, error),
        }
    }

    fn frame_refused(&mut self, from: SocketAddr, error: FrameError) {
        self.published.metrics.refused(error);
        if !self
            .quiet
            .may_speak(self.clock.monotonic(), (from.ip(), error.reason()))
        {
            return;
        }
        if error.is_key() {
            tracing::warn!(peer.addr = %from, reason = error.reason(), "wrong or missing gossip key from {from}");
        } else if error == FrameError::Foreign {
            tracing::warn!(peer.addr = %from, reason = "foreign", "gossip packet of another datacenter dropped");
        } else {
            tracing::debug!(peer.addr = %from, reason = error.reason(), "gossip packet dropped");
        }
    }

    fn accepted(&mut self, accepted: std::io::Result<(TcpStream, SocketAddr)>) -> Turn {
        let Ok((stream, peer)) = accepted else {
            return Turn::Go;
        };
        let Ok(permit) = Arc::clone(&self.answers).try_acquire_owned() else {
            self.published.metrics.sync_refused.add(1);
            return Turn::Go;
        };
        let Some(commands) = self.commands.upgrade() else {
            return Turn::Stop(None);
        };
        let may_warn = self
            .quiet
            .may_speak(self.clock.monotonic(), (peer.ip(), "exchange"));
        let published = Arc::clone(&self.published);
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = exchange::answer(stream, peer, commands, &published).await {
                report(&error, peer, may_warn);
            }
        });
        Turn::Go
    }

    async fn housekeeping(&mut self) -> Turn {
        let known = Known {
            incarnation: self.core.local().incarnation,
            address: self.known.address,
            addresses: self.core.known_addresses(),
        };
        // An empty pool does not overwrite the addresses that may still lead back to it.
        if known != self.known
            && !(known.addresses.is_empty() && known.incarnation == self.known.incarnation)
        {
            let addresses = if known.addresses.is_empty() {
                self.known.addresses.clone()
            } else {
                known.addresses
            };
            self.known = Known { addresses, ..known };
            self.save_known().await;
        }
        self.read_a_clock();
        let now = self.clock.monotonic();
        if self.core.peers_active() == 0 && now >= self.reseed_at && self.leaving.is_none() {
            self.reseed_at = now + RESEED;
            for name in self.seed_names.clone() {
                self.call(name);
            }
        }
        Turn::Go
    }

    async fn save_known(&self) {
        let Some(path) = self.known_path.clone() else {
            return;
        };
        let known = self.known.clone();
        let saved = tokio::task::spawn_blocking(move || known.save(&path)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "known gossip addresses not saved; the old file stays");
        }
    }

    fn sync(&mut self, peer: SocketAddr) {
        self.call(peer.to_string());
    }

    /// Exchanges states with an address or name in a task of its own. At most [`CALLS_MAX`] run at
    /// once; more are skipped, since whoever asked has a timer and asks again.
    fn call(&mut self, name: String) {
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            return;
        };
        let Some(commands) = self.commands.upgrade() else {
            return;
        };
        let (published, port) = (Arc::clone(&self.published), self.port);
        tokio::spawn(async move {
            let _permit = permit;
            let peers = match resolve(&name, port).await {
                Ok(peers) => peers,
                Err(error) => return tracing::debug!(%error, "gossip seed"),
            };
            let own = published.local.load().socket_address();
            for peer in peers
                .into_iter()
                .filter(|p| *p != own)
                .take(SEED_ADDRESSES_MAX)
            {
                if let Err(error) = exchange::with(peer, false, &commands, &published).await {
                    report(&error, peer, false);
                }
            }
        });
    }

    /// Reads the clock of one other member, in a task of its own.
    fn read_a_clock(&mut self) {
        let own = self.core.local().id;
        let Some(member) = self.clocks.next(&self.core.members(), &own) else {
            return;
        };
        let Some(commands) = self.commands.upgrade() else {
            return;
        };
        let (framer, clock) = (self.published.framer.load_full(), Arc::clone(&self.clock));
        tokio::spawn(async move {
            let peer = member.socket_address();
            if let Some(skew) = clocks::measure(peer, &framer, clock.as_ref()).await {
                // A loop that has ended needs no news.
                let _ = commands.send(Command::Clock { member, skew }).await;
            }
        });
    }

    fn clock_read(&mut self, member: &crate::member::Member, skew: clocks::Skew) {
        self.clocks.note(member.id.clone(), skew);
        let metrics = &self.published.metrics;
        metrics.clock_skew_millis.set(self.clocks.worst_millis());
        let now = self.clock.monotonic();
        if skew.is_over() && self.quiet.may_speak(now, (member.address, "clock")) {
            let seconds = skew.ahead_millis as f64 / 1_000.0;
            tracing::warn!(reason = "clock.skew", node.name = %member.name, peer.addr = %member.socket_address(), ahead_seconds = seconds, bound = ?clocks::BOUND, "the clock of a member differs from ours: certificates and time limits are judged differently there; set the clock of one (NTP)");
        }
    }

    /// Asks whoever is said to have our id whether it does; an earlier life of ours cannot answer.
    fn ask_rival(&self, elsewhere: SocketAddr) {
        let Ok(id) = uuid::Uuid::parse_str(&self.core.local().id) else {
            return;
        };
        let Some(commands) = self.commands.upgrade() else {
            return;
        };
        let framer = self.published.framer.load_full();
        tokio::spawn(async move {
            if let Some(life) = fence::life_at(elsewhere, &framer, &id).await {
                // A loop that has ended needs no news.
                let _ = commands.send(Command::Rival(life)).await;
            }
        });
    }

    /// Two live processes of one id: by the same facts on both sides exactly one ends.
    fn rival(&self, rival: &fence::Life) -> Turn {
        let life = &self.published.life;
        if rival.address == life.address || !life.yields_to(rival) {
            return Turn::Go;
        }
        let local = self.core.local();
        tracing::error!(reason = "gossip.id_taken", node.id = %local.id, peer.addr = %rival.address, "this node runs on a copy of the data_dir of a live one");
        let fate = GossipError::IdTaken {
            id: local.id,
            elsewhere: rival.address,
            own: life.address,
        };
        *self
            .published
            .fate
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(fate);
        Turn::Stop(None)
    }

    async fn perform(&mut self) -> Turn {
        let mut turn = Turn::Go;
        let mut events = Vec::new();
        while let Some(action) = self.core.poll() {
            match action {
                Action::Send { to, body } => self.send(to, &body).await,
                Action::Sync { peer } => self.sync(peer),
                Action::Event(event) => events.push(event),
                Action::UserEvent(event) => self.heard(event),
                Action::LeaveDone => {
                    if !self.rejoin_after_leave {
                        self.known.addresses.clear();
                    }
                    turn = Turn::Stop(self.leaving.take());
                }
                Action::NameConflict {
                    name,
                    holder,
                    rival,
                } => {
                    self.published.metrics.name_conflicts.add(1);
                    if self
                        .quiet
                        .may_speak(self.clock.monotonic(), (rival.ip(), "name"))
                    {
                        tracing::error!(node.name = %name, %holder, %rival, "two nodes use one name; the one that is alive keeps it: change node_name of the other");
                    }
                }
                Action::NameTaken { name, holder } => {
                    tracing::error!(node.name = %name, %holder, "the name of this node is that of a live member, which came first");
                    let own = self.core.local().socket_address();
                    let fate = GossipError::NameTaken { name, holder, own };
                    *self
                        .published
                        .fate
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(fate);
                    turn = Turn::Stop(None);
                }
                Action::IdConflict { elsewhere } => {
                    if self
                        .quiet
                        .may_speak(self.clock.monotonic(), (elsewhere.ip(), "id"))
                    {
                        tracing::error!(peer.addr = %elsewhere, "another process uses this node's id: one of them runs on a copy of the other's data_dir");
                    }
                    self.ask_rival(elsewhere);
                }
            }
        }
        self.publish();
        // After the snapshot, so that whoever hears of an event finds it there. No receiver is no error.
        if !events.is_empty()
            && let Some(sender) = self
                .published
                .events
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_ref()
        {
            for event in events {
                let _ = sender.send(event);
            }
        }
        turn
    }

    fn heard(&self, event: UserEvent) {
        self.published.metrics.events_heard.add(1);
        if let Some(sender) = self
            .published
            .user_events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            // No receiver is no error.
            let _ = sender.send(event);
        }
    }

    async fn send(&mut self, to: SocketAddr, body: &[u8]) {
        let metrics = &self.published.metrics;
        let frame = match self.published.framer.load().seal(body) {
            Ok(frame) => frame,
            Err(error) => {
                metrics.send_failures.add(1);
                tracing::error!(%error, "gossip packet not sealed");
                return;
            }
        };
        debug_assert!(
            frame.len() <= DATAGRAM_MAX_BYTES,
            "datagram of {} bytes",
            frame.len()
        );
        match self.udp.send_to(&frame, to).await {
            Ok(_) => {
                metrics.packets_sent.add(1);
                metrics.bytes_sent.add(frame.len() as u64);
            }
            Err(_) => metrics.send_failures.add(1),
        }
    }

    fn publish(&mut self) {
        let refused = self.core.members_refused();
        let metrics = &self.published.metrics;
        metrics.members_refused.set(refused);
        metrics.events_late.set(self.core.events_late());
        metrics
            .notices_waiting
            .set(self.core.notices_waiting() as u64);
        let counts = self.core.coordinate_counts();
        if counts.learned + counts.resets
            != metrics.coordinate_updates.get() + metrics.coordinate_resets.get()
        {
            let coordinate = self.core.coordinate().map(Arc::new);
            self.published.coordinate.store(coordinate);
        }
        metrics.coordinate_updates.set(counts.learned);
        metrics.coordinate_refused.set(counts.refused);
        metrics.coordinate_resets.set(counts.resets);
        metrics.health_score.set(self.core.health_score().into());
        metrics.late_turns.set(self.core.late_turns());
        metrics.suspects.set(self.core.suspects() as u64);
        if !self.core.take_changed() {
            return;
        }
        let members = self.core.members();
        let count = |status| members.iter().filter(|m| m.status == status).count() as u64;
        let metrics = &self.published.metrics;
        metrics.members_alive.set(count(MemberStatus::Alive));
        metrics.members_leaving.set(count(MemberStatus::Leaving));
        metrics.members_left.set(count(MemberStatus::Left));
        metrics.members_failed.set(count(MemberStatus::Failed));
        self.published.local.store(Arc::new(self.core.local()));
        self.published.members.store(Arc::new(members));
    }
}

fn report(error: &GossipError, peer: SocketAddr, may_warn: bool) {
    let reason = error.reason();
    match error {
        GossipError::Frame { .. } | GossipError::Datacenter { .. } if may_warn => {
            tracing::warn!(peer.addr = %peer, reason, %error, "gossip state exchange refused");
        }
        _ => tracing::debug!(peer.addr = %peer, reason, %error, "gossip state exchange failed"),
    }
}
