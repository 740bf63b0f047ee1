//! The client role: the way of an agent that is no server to the servers.
//!
//! Owns: pooled connections, which server is asked, what is asked again and for how long, and the agent's own
//! typed questions (what the catalog has of a node, registrations, coordinates).
//! Never: knows Raft or gossip (it is told where servers are, and how to dial), parses a user's input, or sends
//! twice what may have been done once, unless doing it twice is doing it once.

#![forbid(unsafe_code)]

mod call;
mod channel;
mod config;
mod connection;
mod error;
mod metrics;
mod mirror;
mod pool;
mod role;
mod servers;
#[cfg(test)]
mod tests;

pub use call::{Answer, Limit, Payload};
pub use channel::Channel;
pub use config::{ClientConfig, Dial, Dialed, ServerAt, Stream};
pub use error::CallError;
pub use mirror::RowsError;
pub use role::{Client, SyncError};
