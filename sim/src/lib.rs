//! A seeded world: virtual time, a network that loses, delays and splits, hosts that pause and crash.
//!
//! Owns: the [`World`] of discrete events, [`Agent`] (the real membership core as a host), and the
//! [`scenario`]s that tests and the figures share. A run is a function of its seed.
//! Never: reads a clock, opens a socket, or rebuilds protocol logic: what runs here is what ships.
#![forbid(unsafe_code)]

pub mod agent;
pub mod faults;
pub mod scenario;
pub mod world;

pub use agent::Agent;
pub use world::{Node, Outbox, World};
