//! The agent role: registrations, checks, anti-entropy, HTTP API, DNS, configuration.
//!
//! Owns: everything a user's program or operator talks to on this host.
//! Never: knows Raft or gossip; it reaches the cluster through [`backend`].
pub mod backend;
mod central;
pub mod config;
pub mod dns;
pub mod events;
pub mod http;
pub mod leaves;
pub mod local;
pub mod mesh;
pub mod near;
pub mod views;
pub mod watch;
