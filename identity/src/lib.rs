//! Identity: operator TLS, the server's own key, and what `weft init` writes.
//!
//! Owns: the mesh's CA and what its certificates prove ([`ca`]), CA and certificate making ([`pki`]), TLS configurations that reload ([`tls`]), the key a
//! Raft id is bound to ([`server_key`]), first key material ([`cluster`]), files that are whole or
//! absent ([`files`]), values that are never printed ([`secret`]).
//! Never: opens a socket or knows what is said over a connection; reads a clock by itself, but for
//! what rustls does during a handshake.
#![forbid(unsafe_code)]

pub mod ca;
pub mod certificate;
pub mod cluster;
pub mod enrolment;
pub mod files;

pub mod pki;
pub mod secret;
pub mod server_key;
pub mod tls;

pub use certificate::PeerFacts;
pub use secret::Secret;
pub use server_key::ServerKey;
pub use tls::{TlsContext, TlsMaterial};
