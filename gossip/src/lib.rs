//! LAN membership: who is in the pool, where, with which tags, and whether it is alive.
//!
//! Owns: the SWIM core ([`core`], sans-IO, over foca), the table of members, the gossip keys
//! ([`keyring`]) the tokio driver ([`driver`]) and the file of known addresses ([`known`]).
//! Never: knows what a service, a log or a certificate is. Members carry opaque tags.
//! Source: Das et al., "SWIM" (2002); Consul docs, "Gossip protocol".
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
pub mod driver;
pub mod error;
pub mod events;
pub mod keyring;
pub mod known;
pub mod member;
pub mod metrics;
mod quiet;
mod ring_file;
mod table;
mod vivaldi;
mod wire;

pub use config::{CoreConfig, GossipConfig, LanTiming};
pub use core::Insight;
pub use driver::{EventStream, Gossip, JoinOutcome, KeyAction, KeyReport, UserEventStream, fence};
pub use error::GossipError;
pub use events::UserEvent;
pub use keyring::{GossipKey, Keyring};
pub use member::{Member, MemberEvent, MemberStatus, Tags};
pub use metrics::Metrics;
