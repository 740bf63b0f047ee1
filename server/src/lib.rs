//! The server role: consensus and catalog joined, RPC between servers, the leader's duties.
//!
//! Owns: the order write → log → apply → publish → wake, read consistency, cluster formation,
//! sessions' timers, reconciliation of membership into the catalog, snapshot archives.
//! Never: parses a user's input, answers HTTP or DNS, or judges a service's health.

#![forbid(unsafe_code)]

mod admission;
mod agents;
mod alone;
mod archive;
mod ca;
mod census;
mod config;
mod coordinates;
mod disk_reserve;
mod enrolment;
mod formation;
mod forward;
mod fsm;
mod handle;
mod hashes;
mod leader;
mod light;
mod metrics;
mod published;
mod reads;
pub mod recover;
mod restore;
mod rpc;
mod stamp;
mod start;
pub mod subscribe;
mod transport;

pub use agents::AgentApi;
pub use archive::{ArchiveError, ArchiveMeta, inspect as inspect_archive};
pub use census::{Census, GROUPS_MAX, Grouping, OTHERS, Share, census};
pub use config::{Bootstrap, LogBackend, ServerConfig};
pub use enrolment::Enrolment;
pub use handle::{ReadFailure, Server, ServerError, WriteFailure};
pub use published::Published;
pub use reads::ReadMeta;
pub use transport::{Accepted, Conn, RpcTls, Transport};
