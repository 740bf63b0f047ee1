//! The HTTP API, version 1.
//!
//! Owns: the listeners, the table of routes with what each authorizes, and the answers: Consul's
//! paths, parameters, headers, statuses, texts and JSON.
//! Never: keeps state of its own beyond finished bodies; it reads published snapshots through
//! [`crate::backend::Backend`] and this host's registrations through [`crate::local::Local`].
//! Source: Consul HTTP API; CONSUL.md A and B.
//!
//! hyper's HTTP/1 connection is used directly under a router of our own: keys need the raw path,
//! header names Go's spelling on the wire, and the hot path as few steps as can be.

mod agent;
mod agent_check;
mod agent_service;
mod api;
mod autopilot;
mod blocking;
mod cache;
mod call;
mod catalog;
mod central;
mod complaints;
mod config;
mod config_entry;
mod connect_ca;
mod consul_metrics;
mod coordinate;
mod error;
mod event;
mod head_timeout;
mod health;
mod host;
mod intention;
mod internal_ui;
mod join_token;
mod keyring;
mod kv;
mod metrics;
mod monitor;
mod openapi;
mod operator;
mod options;
mod pace;
mod prepared_query;
mod proxies;
mod push;
mod query;
mod rates;
mod relay;
mod reply;
mod route;
mod rows;
mod serve;
mod session;
mod snapshot;
mod status;
mod table;
mod telemetry;
#[cfg(test)]
mod tests;
mod txn;
mod viewed;
mod views;
mod waiting;

pub use config::{
    AgentInfo, Control, Deps, HttpConfig, HttpLimits, Listen, LogLevel, LogLines, TlsSource,
};
pub use consul_metrics::Naming;
pub use push::PushConfig;
pub use query::percent_encode;
pub use rates::{RateLimit, RateLimits};
pub use reply::RelayedAnswer;
pub use route::{Need, Route};
pub use serve::{HttpServer, InProcess, StartError};

/// Every route, for the reference documentation.
#[must_use]
pub fn routes() -> &'static [Route] {
    table::TABLE
}
