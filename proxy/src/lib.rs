//! The data plane: connections between services, with an identity on each side.
//!
//! Owns: the tunnel between two proxies ([`tunnel`]) and its bytes ([`wire`]), the relay of two connections
//! ([`relay`]), the application's sockets ([`local`]).
//! Never: asks a server anything, or reads the catalog: it is given what it works with.
#![forbid(unsafe_code)]

pub mod balance;
pub mod local;
pub mod relay;
mod scratch;
#[cfg(test)]
mod testing;
pub mod tunnel;
pub mod wire;
