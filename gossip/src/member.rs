//! A member as users of the pool see it.
//!
//! Owns: [`Member`], its status and the events about it.
//! Never: appears on the wire; the wire forms live in `wire`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What a member says about itself: `role`, `dc`, `port`, `build`, … (at most 512 bytes encoded).
pub type Tags = BTreeMap<String, String>;

/// One node of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Node name; unique among the members shown.
    pub name: String,
    /// Node id, a UUID in lower-case text. Stays with the node when its address changes.
    pub id: String,
    /// Address it is reached at.
    pub address: IpAddr,
    /// Gossip port, UDP and TCP.
    pub port: u16,
    /// Its tags; empty until they have arrived, which raises [`MemberEvent::Updated`].
    pub tags: Tags,
    /// What this node believes about it.
    pub status: MemberStatus,
    /// Rises with every start and rejoin of the node; compare before acting on a stale event.
    pub incarnation: u64,
}

impl Member {
    /// Where to send to it.
    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// A tag's value, or `""`.
    #[must_use]
    pub fn tag(&self, key: &str) -> &str {
        self.tags.get(key).map_or("", String::as_str)
    }
}

/// A member's status; the numbers are those of Consul's `/v1/agent/members`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberStatus {
    /// Answers probes.
    Alive = 1,
    /// Has announced that it leaves, and still answers.
    Leaving = 2,
    /// Left on purpose, or was forced out after it had failed.
    Left = 3,
    /// Stopped answering.
    Failed = 4,
}

impl MemberStatus {
    /// Consul's number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether it takes part in the pool: alive or leaving.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Alive | Self::Leaving)
    }
}

impl fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Failed => "failed",
        })
    }
}

/// A change of the pool as this node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// New, or back after it had failed or left.
    Joined(Arc<Member>),
    /// Its tags, address, incarnation or leave intent changed.
    Updated(Arc<Member>),
    /// It stopped answering.
    Failed(Arc<Member>),
    /// It left on purpose or was forced out.
    Left(Arc<Member>),
    /// It was forgotten: its time ran out, it was pruned, or a live node took its name.
    Reaped(Arc<Member>),
    /// Events were skipped because the consumer was slow: here is everything as it stands.
    Resync(Arc<Vec<Arc<Member>>>),
}
