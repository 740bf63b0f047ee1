//! The data plane: connections between services, with an identity on each side.
//!
//! Owns: shards with their listeners and connections ([`shard`]), the tunnel between two proxies ([`tunnel`]) and its
//! bytes ([`wire`]), the relay of two connections ([`relay`]), which endpoint is called ([`balance`]), the TLS of it
//! ([`tls`]), what is counted ([`telemetry`]), the applications' sockets ([`local`]).
//! ([`snapshot`] comes in, [`plane`] makes the running whole of it).
//! Never: asks a server anything, or reads the catalog: it is given what it works with ([`config`]).
#![forbid(unsafe_code)]

pub mod balance;
pub mod config;
pub mod local;
pub mod plane;
pub mod relay;
mod scratch;
pub mod shard;
pub mod snapshot;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod tunnel;
pub mod wire;
