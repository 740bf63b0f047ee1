//! The replicated state as a pure function of the log.
//!
//! Owns: tables, commands, queries and their indexes, watches, sessions, authorization decisions.
//! Never: does IO, reads a clock, configuration, a float or hash order; knows tokio.
//!
//! [`Catalog`] applies commands and publishes a [`State`] with what it [`Touched`]; a [`Reader`]
//! answers queries from a `State` and traces what they depended on; a [`Hub`] wakes whoever waits
//! for one of those [`Topics`]; [`snapshot`] turns a `State` into bytes and back.
#![forbid(unsafe_code)]

pub mod acl;
mod apply;
pub mod config_entry;
mod digest;
pub mod filter;
mod hub;
pub mod intention;
mod keys;
pub mod mesh;
pub mod prepared_query;
mod read;
pub mod record;
mod refusal;
mod rows;
pub mod snapshot;
mod state;
mod topics;
pub mod view;

pub use apply::join_token::{JOIN_TOKEN_TTL_MILLIS_MAX, JOIN_TOKENS_MAX};
pub use apply::kv::{KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX};
pub use apply::mesh_ca::{MESH_CA_BYTES_MAX, MESH_CUT_OFFS_MAX, MESH_ROOTS_MAX};
pub use apply::recover::RECOVERY_INDEX_STEP;
pub use apply::restore::{RESTORE_BYTES_MAX, RESTORE_CHUNK_BYTES_MAX, RESTORED_INDEX_MAX};
pub use apply::retry::{KEPT_OUTCOME_BYTES_MAX, SEQUENCES_MAX, SOURCES_MAX};
pub use apply::session::LOCK_DELAY_MILLIS_MAX;
pub use apply::txn::TXN_OPS_MAX;
pub use apply::{ApplyError, CLUSTER_VERSION_MAX, Catalog, HASHES_KEPT_MAX};
pub use hub::{Hub, HubStats, Probe, Watch};
pub use read::mesh_ca::without_keys as mesh_ca_without_keys;
pub use read::txn::is_read;
pub use read::{Answer, HealthRow, Instance, InstanceHealth, Reader};
pub use record::{HASH_FORM, Record, RestoreError};
pub use state::{Counts, SessionDeadline, State};
pub use topics::{TOUCHED_ROWS_MAX, TableTopic, Topic, Topics, Touched, Trace, WATCHED_ROWS_MAX};
