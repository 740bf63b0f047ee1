//! An agent's membership: the real core of `weft-gossip` as a host of the world.
//!
//! Owns: carrying the core's actions out, and a short record of what it told its users.
//! Never: decides anything.

use std::net::SocketAddr;
use std::time::Duration;

use weft_gossip::core::{Action, Core};
use weft_gossip::{CoreConfig, Member, MemberEvent, MemberStatus, Tags};

use crate::world::{Node, Outbox};

/// What an agent told its users of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It joined, or came back.
    Joined,
    /// Its tags, address or intent changed.
    Updated,
    /// It failed.
    Failed,
    /// It left.
    Left,
    /// It is no longer in the list.
    Reaped,
}

/// One entry of the record.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// By the world's clock of the agent.
    pub at: Duration,
    /// What.
    pub told: Told,
    /// Of which agent, by the number in its id.
    pub of: u64,
    /// Of which life.
    pub incarnation: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    /// The real thing.
    pub core: Core,
    /// What it told its users.
    pub seen: Vec<Seen>,
    /// It said farewell.
    pub left: bool,
    /// Conflicts of names or ids it reported.
    pub conflicts: usize,
    /// Exchanges it refused.
    pub refused: usize,
}

/// Where agent `n` is.
#[must_use]
pub fn address(n: u64) -> SocketAddr {
    let [.., a, b, c] = n.to_be_bytes();
    SocketAddr::from(([10, a, b, c], 8301))
}

/// Settings of agent `n`, with the defaults an operator gets.
#[must_use]
pub fn config(n: u64) -> CoreConfig {
    let id = format!("00000000-0000-4000-8000-{n:012x}");
    let mut config = CoreConfig::new(&format!("node-{n}"), &id, "dc1", address(n));
    config.tags = tags(n, 0);
    config
}

/// Tags of the size an agent has.
#[must_use]
pub fn tags(n: u64, version: u64) -> Tags {
    [
        ("role", "node".to_owned()),
        ("dc", "dc1".to_owned()),
        ("build", "0.1.0:00000000".to_owned()),
        ("id", format!("00000000-0000-4000-8000-{n:012x}")),
        ("v", version.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The number in a member's id.
#[must_use]
pub fn number(member: &Member) -> u64 {
    let (_, digits) = member.id.rsplit_once('-').unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or(u64::MAX)
}

impl Agent {
    /// Starts a core.
    #[must_use]
    pub fn start(config: CoreConfig, now: Duration, seed: u64) -> Self {
        Self {
            core: Core::new(config, now, seed).expect("the scenario's settings are usable"),
            seen: Vec::new(),
            left: false,
            conflicts: 0,
            refused: 0,
        }
    }

    /// Exchanges states with an address, as `weft join` does.
    pub fn join(&mut self, now: Duration, to: SocketAddr, out: &mut Outbox) {
        out.streams.push((to, self.core.exchange_open(now, true)));
        self.core.add_seeds([to]);
        self.carry_out(now, out);
    }

    /// What it holds of agent `n`.
    #[must_use]
    pub fn member(&self, n: u64) -> Option<std::sync::Arc<Member>> {
        self.core.member_named(&format!("node-{n}"))
    }

    /// Whether it shows agent `n` as alive, with tags.
    #[must_use]
    pub fn sees(&self, n: u64) -> bool {
        self.member(n)
            .is_some_and(|m| m.status == MemberStatus::Alive && !m.tags.is_empty())
    }

    /// Performs what the core wants done.
    pub fn carry_out(&mut self, now: Duration, out: &mut Outbox) {
        while let Some(action) = self.core.poll() {
            match action {
                Action::Send { to, body } => out.datagrams.push((to, body)),
                Action::Sync { peer } => out
                    .streams
                    .push((peer, self.core.exchange_open(now, false))),
                Action::Event(event) => self.note(now, &event),
                Action::UserEvent(_) => {}
                Action::LeaveDone | Action::NameTaken { .. } => self.left = true,
                Action::NameConflict { .. } | Action::IdConflict { .. } => self.conflicts += 1,
            }
        }
    }

    fn note(&mut self, at: Duration, event: &MemberEvent) {
        let (told, member) = match event {
            MemberEvent::Joined(m) => (Told::Joined, m),
            MemberEvent::Updated(m) => (Told::Updated, m),
            MemberEvent::Failed(m) => (Told::Failed, m),
            MemberEvent::Left(m) => (Told::Left, m),
            MemberEvent::Reaped(m) => (Told::Reaped, m),
            MemberEvent::Resync(_) => return,
        };
        self.seen.push(Seen {
            at,
            told,
            of: number(member),
            incarnation: member.incarnation,
        });
    }
}

impl Node for Agent {
    fn on_datagram(&mut self, now: Duration, from: SocketAddr, data: &[u8], out: &mut Outbox) {
        self.core.handle_packet(now, from, data);
        self.carry_out(now, out);
    }

    fn on_frame(
        &mut self,
        now: Duration,
        from: SocketAddr,
        data: &[u8],
        out: &mut Outbox,
    ) -> Option<Vec<u8>> {
        let answered = self.core.exchange(now, from, data);
        self.refused += usize::from(answered.outcome.is_err());
        self.carry_out(now, out);
        answered.frame
    }

    fn on_timer(&mut self, now: Duration, out: &mut Outbox) {
        self.core.handle_timers(now);
        self.carry_out(now, out);
    }

    fn next_timer(&self) -> Option<Duration> {
        self.core.next_timer()
    }
}
