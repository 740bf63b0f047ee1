//! What this host runs: registrations, checks, maintenance, and keeping the catalog in agreement.
//!
//! Owns: the local table, its files under `data_dir`, the tasks that run checks, anti-entropy.
//! Never: speaks HTTP to users, authorizes anybody, or knows how the cluster replicates; it reaches
//! the catalog through [`crate::backend::Backend`].
//! Source: Consul docs, "Anti-Entropy"; CONSUL.md A.1, B.6, B.7.

mod address_guard;
mod alias_check;
mod check_definition;
mod check_form;
mod check_parse;
mod definition;
mod dirty;
mod docker_check;
mod driver;
mod error;
mod fields;
mod grpc_check;
mod h2ping_check;
mod handle;
mod http_check;
mod ids;
mod inner;
mod maintenance;
mod metrics;
mod os_service_check;
mod output;
mod plan;
mod process;
mod reach;
mod run_result;
mod runner;
mod saved;
mod script_check;
mod scripts;
mod service_definition;
mod shown;
mod status;
mod store;
mod sync;
mod table;
mod tail;
mod tcp_check;
#[cfg(test)]
mod tests;
mod threshold;
mod tls;
mod udp_check;

use std::sync::Arc;
use std::time::Duration;

use weft_proto::v1;

pub use check_definition::{
    AliasCheck, CheckDefinition, CheckKind, DEREGISTER_AFTER_MIN, DockerCheck, GrpcCheck,
    H2PingCheck, HttpCheck, INTERVAL_MIN, OUTPUT_MAX_DEFAULT, OUTPUT_MAX_LIMIT, OsServiceCheck,
    Pace, SCRIPT_TIMEOUT_DEFAULT, ScriptCheck, TIMEOUT_DEFAULT, TargetTls, TcpCheck, UdpCheck,
};
pub use definition::{DefinitionError, ServiceDefinition};
pub use driver::Running;
pub use error::{LocalError, LocalErrorKind};
pub(crate) use fields::Fields;
pub use fields::UnknownKeys;
pub use handle::Local;
pub(crate) use http_check::run as http_exchange;
pub use metrics::{LocalMetrics, SyncKind};
pub(crate) use process::{Ended, Job, run_job};
pub use reach::{ClientTlsSource, Reach};
pub use saved::node_id;
pub use scripts::ScriptChecks;
pub(crate) use service_definition::check_meta;
pub use status::{Aggregate, Status};
pub use table::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
pub use threshold::{Streak, Thresholds};

/// Who registered something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The HTTP API: saved under `data_dir`.
    Api,
    /// A configuration file: not saved, and it replaces a saved one of the same id.
    File,
}

/// How a service is to be registered.
#[derive(Clone, Copy, Debug)]
pub struct RegisterOptions {
    /// Checks of this service that the definition does not name are removed.
    pub replace_existing_checks: bool,
    /// Who registers it.
    pub source: Source,
}

/// A registered service.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalService {
    /// The record as the catalog keeps it; indexes are 0.
    pub service: v1::Service,
    /// The token it was registered with; empty: the agent's own.
    pub token: String,
    /// Who registered it.
    pub source: Source,
}

/// A registered check with its present status.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalCheck {
    /// The record as the catalog keeps it; indexes are 0.
    pub record: v1::Check,
    /// What it runs.
    pub definition: Arc<CheckDefinition>,
    /// Who registered it.
    pub source: Source,
}

/// A service's health as seen from this host (`/v1/agent/health/service/…`).
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceHealth {
    /// Worst of its own and the node's checks, maintenance above all.
    pub status: Aggregate,
    /// The service.
    pub service: Arc<LocalService>,
    /// Its own and the node's checks, by id.
    pub checks: Vec<v1::Check>,
}

/// Totals for `/v1/agent/self` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalCounts {
    /// Registered services.
    pub services: usize,
    /// Registered checks.
    pub checks: usize,
    /// Of these, passing.
    pub passing: usize,
    /// Of these, warning.
    pub warning: usize,
    /// Of these, critical.
    pub critical: usize,
    /// Entries the catalog does not have as this host does, removals included.
    pub out_of_sync: usize,
    /// Catalog entries kept because this host lost its registrations.
    pub held: usize,
}

/// What the local table needs to know when it is opened.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// This node as the catalog shall show it: id, name, address, datacenter, tagged addresses, meta.
    pub node: v1::Node,
    /// Where registrations are kept; `None`: nowhere (`-dev`).
    pub data_dir: Option<std::path::PathBuf>,
    /// How long an output-only change waits before it is written (`check_update_interval`, 5 min); zero: not at all.
    pub check_update_interval: Duration,
    /// Check output never reaches the catalog (`discard_check_output`).
    pub discard_check_output: bool,
    /// Bytes of output kept per check at most (`check_output_max_size`, 4096).
    pub check_output_max_size: usize,
    /// Whose checks may run commands (`enable_script_checks`, `enable_local_script_checks`): nobody's.
    pub script_checks: ScriptChecks,
    /// What checks may reach, and as whom: no link-local address, as nobody.
    pub reach: Reach,
    /// The value of `DOCKER_HOST`, for docker checks; empty: the engine's usual socket.
    pub docker_host: String,
    /// Time between full comparisons with the catalog in a small cluster: 1 min.
    pub sync_interval: Duration,
    /// Seeds the spread of check times and syncs.
    pub seed: u64,
}

impl LocalConfig {
    /// Consul's defaults for `node`, kept in memory only.
    #[must_use]
    pub fn in_memory(node: v1::Node) -> Self {
        Self {
            node,
            data_dir: None,
            check_update_interval: Duration::from_mins(5),
            discard_check_output: false,
            check_output_max_size: OUTPUT_MAX_DEFAULT,
            script_checks: ScriptChecks::Nobody,
            reach: Reach::default(),
            docker_host: String::new(),
            sync_interval: Duration::from_mins(1),
            seed: 0,
        }
    }
}

/// Why the local table could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory or file below `data_dir` cannot be used.
    #[error("cannot use {path} to keep registrations; check data_dir and its owner")]
    Io {
        /// The file or directory.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
}
