//! Settings of the pool, checked once.
//!
//! Owns: defaults and their limits. Never: reads a file; `src/` fills these in.

use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::GossipError;
use crate::keyring::Keyring;
use crate::member::Tags;

/// Bytes of a node name at most; longer ones are refused.
pub const NAME_MAX_BYTES: usize = 128;
/// Bytes of the encoded tags at most, so that a datagram holds them beside a header.
pub const TAGS_MAX_BYTES: usize = 512;
/// Bytes of a sealed datagram at most (below Ethernet's MTU with IPv6 and UDP headers).
pub const DATAGRAM_MAX_BYTES: usize = 1_400;
/// Bytes the SWIM core may fill: a datagram less frame header, nonce, seal and kind.
pub(crate) const PACKET_MAX_BYTES: usize = DATAGRAM_MAX_BYTES - 48;

/// Others who must agree before a suspect has only the shortest time to refute.
pub const CONFIRMATIONS: usize = 3;

/// `gossip_lan {}`: how eagerly the pool probes and spreads news. Defaults are our own (ADR 17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanTiming {
    /// Members one gossip round goes to.
    pub gossip_nodes: u8,
    /// Time between gossip rounds.
    pub gossip_interval: Duration,
    /// Time between probes; each probes one member.
    pub probe_interval: Duration,
    /// Time to wait for a direct answer before others are asked to try. Below `probe_interval`.
    pub probe_timeout: Duration,
    /// Suspicion lasts `suspicion_mult × max(0.8, log10(members + 1)) × probe_interval`, less when others
    /// agree.
    pub suspicion_mult: u8,
    /// An update is sent `retransmit_mult × (2 + log10(members + 1))` times by each member: of `n` members that
    /// pick at random some `n / e^times` would be passed over.
    pub retransmit_mult: u8,
    /// Time between full state exchanges over TCP with a random member (longer in pools over 32).
    pub sync_interval: Duration,
    /// Time between attempts to reach members that failed.
    pub reconnect_interval: Duration,
}

impl Default for LanTiming {
    fn default() -> Self {
        Self {
            gossip_nodes: 3,
            gossip_interval: Duration::from_millis(150),
            probe_interval: Duration::from_millis(700),
            probe_timeout: Duration::from_millis(300),
            suspicion_mult: 4,
            retransmit_mult: 4,
            sync_interval: Duration::from_secs(30),
            reconnect_interval: Duration::from_secs(10),
        }
    }
}

impl LanTiming {
    /// Errors: [`GossipError::Timing`] names the first key that cannot work.
    pub fn check(&self) -> Result<(), GossipError> {
        let bad = |key, reason| Err(GossipError::Timing { key, reason });
        if self.gossip_nodes == 0 {
            return bad("gossip_nodes", "it must be at least 1");
        }
        if self.suspicion_mult == 0 {
            return bad("suspicion_mult", "it must be at least 1");
        }
        if self.retransmit_mult == 0 {
            return bad("retransmit_mult", "it must be at least 1");
        }
        if self.gossip_interval < Duration::from_millis(10) {
            return bad("gossip_interval", "it must be at least 10ms");
        }
        if self.probe_timeout.is_zero() {
            return bad("probe_timeout", "it must be above zero");
        }
        if self.probe_timeout >= self.probe_interval {
            return bad("probe_timeout", "it must be below probe_interval");
        }
        if self.sync_interval < Duration::from_millis(100)
            || self.reconnect_interval < Duration::from_millis(100)
        {
            return bad("sync_interval", "it must be at least 100ms");
        }
        Ok(())
    }

    /// How long a suspect that nobody else accuses may refute in a pool of `members`.
    #[must_use]
    pub fn suspicion(&self, members: usize) -> Duration {
        let scale = log10(members + 1).max(0.8);
        self.probe_interval
            .mul_f64(scale * f64::from(self.suspicion_mult))
    }

    /// How long it may when `agreeing` others do not reach it either: from [`Self::suspicion`] down to half
    /// of `suspicion_mult` probe intervals when [`CONFIRMATIONS`] agree, by the logarithm of their number.
    #[must_use]
    pub fn suspicion_after(&self, members: usize, agreeing: usize) -> Duration {
        let longest = self.suspicion(members);
        let floor = self
            .probe_interval
            .mul_f64(f64::from(self.suspicion_mult) / 2.0);
        let share = ((agreeing + 1) as f64).ln() / ((CONFIRMATIONS + 1) as f64).ln();
        let shorter = longest.saturating_sub(floor).mul_f64(share.min(1.0));
        longest.saturating_sub(shorter)
    }

    /// Timers that fire later than this say that the node was asleep or starved.
    pub(crate) fn late(&self) -> Duration {
        (self.probe_timeout / 2).max(Duration::from_millis(50))
    }

    /// Time between full state exchanges in a pool of `members`.
    #[must_use]
    pub fn sync_every(&self, members: usize) -> Duration {
        if members <= 32 {
            self.sync_interval
        } else {
            self.sync_interval
                .mul_f64((members as f64 / 32.0).log2() + 1.0)
        }
    }

    pub(crate) fn swim(&self, members: usize) -> foca::Config {
        let positive = |n: usize| NonZeroUsize::new(n.max(1)).expect("at least 1");
        let transmissions =
            (f64::from(self.retransmit_mult) * (2.0 + log10(members + 1))).clamp(1.0, 255.0);
        let many = members > 256;
        foca::Config {
            probe_period: self.probe_interval,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: positive(3),
            max_transmissions: NonZeroU8::new(transmissions.ceil() as u8).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: self.suspicion(members),
            // The core reaps by itself: failed and left members have different times.
            remove_down_after: None,
            max_packet_size: positive(PACKET_MAX_BYTES),
            notify_down_members: true,
            periodic_announce: Some(foca::PeriodicParams {
                frequency: self.sync_interval,
                num_members: positive(1),
            }),
            periodic_announce_to_down_members: Some(foca::PeriodicParams {
                frequency: if many {
                    self.reconnect_interval * 6
                } else {
                    self.reconnect_interval
                },
                num_members: positive(if many { 1 } else { 3 }),
            }),
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: self.gossip_interval,
                num_members: positive(self.gossip_nodes.into()),
            }),
        }
    }
}

fn log10(members: usize) -> f64 {
    (members.max(1) as f64).log10()
}

/// Settings of the sans-IO core.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Node name, 1 to [`NAME_MAX_BYTES`] bytes.
    pub name: String,
    /// Node id, a UUID in text.
    pub id: String,
    /// Datacenter; members of another one are refused.
    pub datacenter: String,
    /// Where others reach this node.
    pub advertise: SocketAddr,
    /// Must exceed that of every earlier life of this node id; the driver takes wall-clock
    /// milliseconds and what the file of known addresses says.
    pub incarnation: u64,
    /// First tags, at most [`TAGS_MAX_BYTES`] encoded.
    pub tags: Tags,
    /// Probe and gossip figures.
    pub timing: LanTiming,
    /// `reconnect_timeout`: how long a failed member is kept and tried again.
    pub reconnect_timeout: Duration,
    /// How long a member that left stays in the list.
    pub tombstone_timeout: Duration,
    /// Members the table holds at most; news about further ones is dropped and counted.
    pub members_max: usize,
    /// Learn where this node lies in the network; false with `disable_coordinates`.
    pub coordinates: bool,
}

impl CoreConfig {
    /// Settings with Consul's defaults for everything but who and where this node is.
    #[must_use]
    pub fn new(name: &str, id: &str, datacenter: &str, advertise: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            id: id.to_owned(),
            datacenter: datacenter.to_owned(),
            advertise,
            incarnation: 1,
            tags: Tags::new(),
            timing: LanTiming::default(),
            reconnect_timeout: Duration::from_secs(72 * 3600),
            tombstone_timeout: Duration::from_secs(24 * 3600),
            members_max: 20_000,
            coordinates: true,
        }
    }
}

/// Settings of the driver.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The core's settings. `advertise` with port 0 takes the bound port, with an unspecified
    /// address the bound address; `incarnation` is a floor.
    pub core: CoreConfig,
    /// UDP and TCP address to open; port 0 picks one.
    pub bind: SocketAddr,
    /// Keys; `None` sends and accepts clear text only.
    pub keyring: Option<Keyring>,
    /// File of the keys (`serf/local.keyring`), which goes before `keyring` once it exists; `None` keeps none.
    pub keyring_path: Option<PathBuf>,
    /// `encrypt_verify_incoming`: refuse clear text although a key is set.
    pub verify_incoming: bool,
    /// `encrypt_verify_outgoing`: seal what is sent when a key is set.
    pub verify_outgoing: bool,
    /// File of known addresses (`serf/local.snapshot` in the data directory); `None` keeps none.
    pub known_path: Option<PathBuf>,
    /// Keep the known addresses after a graceful leave, to rejoin by them at the next start.
    pub rejoin_after_leave: bool,
}

impl GossipConfig {
    /// Clear text, no file; callers set the rest.
    #[must_use]
    pub fn new(core: CoreConfig, bind: SocketAddr) -> Self {
        Self {
            core,
            bind,
            keyring: None,
            keyring_path: None,
            verify_incoming: true,
            verify_outgoing: true,
            known_path: None,
            rejoin_after_leave: false,
        }
    }
}
