//! Consul's JSON forms of the domain records.
//!
//! Owns: the writers of every record in the field order and escaping of Consul ([`mod@write`],
//! [`records`]), the case-insensitive decoder of request bodies ([`decode`]) and the request forms
//! that become records or commands ([`input`], [`txn`]).
//! Never: knows HTTP, or judges whether a record may be stored.
//! Source: Consul docs, "HTTP API"; Go documentation, `encoding/json`.

pub mod decode;
pub mod input;
pub mod records;
pub mod txn;
pub mod write;

pub use decode::{DecodeError, Object};
pub use write::Json;
