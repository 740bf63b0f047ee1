//! The agent's configuration: files, flags and environment in, one checked [`RuntimeConfig`] out.
//!
//! Owns: reading HCL1 and JSON, the table of all keys, merging, defaults, rules between settings,
//! what may be exposed to the network, and what a reload may change.
//! Never: starts anything, or loads certificates; findings are collected, all of them, and nothing
//! is applied while one is an error.
//! Source: Consul docs, "Configuration"; CONSUL D, H; TRUST C.5.

mod build;
mod exposure;
pub mod hcl;
pub mod interfaces;
mod merge;
mod problem;
mod raw;
mod reload;
pub mod runtime;
mod schema;
pub mod sockaddr;
mod sources;

#[cfg(test)]
mod tests;

pub use build::Machine;
pub use exposure::{EXIT_CONFIG, Refusal, exposure, exposure_warnings};
pub use problem::{Code, Problem, Problems};
pub use reload::{Changes, changes};
pub use runtime::RuntimeConfig;
pub use sources::{Flag, Request, load};
