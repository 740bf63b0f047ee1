//! Consensus: openraft glue, the durable log, snapshots and transport.
//!
//! Owns: the order of committed payloads and their durability.
//! Never: knows what a payload means (bytes in, bytes out), resolves a name,
//! or holds TLS material. openraft's own types stay inside this crate.

pub mod log;
