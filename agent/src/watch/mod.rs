//! Watches: ask again and again, and tell a handler whenever the answer is another.
//!
//! Owns: what each type of watch asks for, when an answer counts as news, and the watches of the
//! configuration with their handlers.
//! Never: holds state of the cluster; it is a client of this agent's own HTTP API, inside the process.
//! Source: Consul docs, "Watches"; CONSUL.md D.8.

mod backoff;
mod definition;
mod driver;
mod follower;
mod handler;
mod metrics;
mod plan;

pub use backoff::Backoff;
pub use definition::{Handler, WatchDefinition};
pub use driver::Watches;
pub use follower::{ANSWER_MAX_BYTES, ASK_LIMIT, AnswerError, Follower, News};
pub use metrics::WatchMetrics;
pub use plan::{Asked, Plan, PlanError, Question};
