//! What this host runs: registrations, checks, maintenance, and keeping the catalog in agreement.
//!
//! Owns: the local table, its files under `data_dir`, the tasks that run checks, anti-entropy.
//! Never: speaks HTTP to users, authorizes anybody, or knows how the cluster replicates; it reaches
//! the catalog through [`crate::backend::Backend`].
//! Source: Consul docs, "Anti-Entropy"; CONSUL.md A.1, B.6, B.7.

mod check_definition;
mod definition;
mod error;
mod fields;
mod service_definition;
mod status;
mod table;
mod threshold;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use weft_proto::clock::Clock;
use weft_proto::v1;

pub use check_definition::{
    CheckDefinition, CheckKind, DEREGISTER_AFTER_MIN, HttpCheck, INTERVAL_MIN, OUTPUT_MAX_DEFAULT, OUTPUT_MAX_LIMIT,
    TIMEOUT_DEFAULT, TcpCheck,
};
pub use definition::{DefinitionError, ServiceDefinition};
pub use error::{LocalError, LocalErrorKind};
pub use fields::UnknownKeys;
pub use status::{Aggregate, Status};
pub use table::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
pub use threshold::{Streak, Thresholds};

use table::Table;

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
            sync_interval: Duration::from_mins(1),
            seed: 0,
        }
    }
}

/// A handle on what this host runs. Cheap to clone; all clones share one table.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    config: LocalConfig,
    clock: Arc<dyn Clock>,
    table: Mutex<Table>,
    /// Bumped when a service is registered, changed or deregistered.
    services_changed: watch::Sender<u64>,
    /// Something is out of sync.
    dirty: Notify,
}

impl Local {
    /// The table of this host, empty but for what `data_dir` holds.
    ///
    /// Errors: [`OpenError`] when `data_dir` cannot be read or written; a damaged file is set aside
    /// as `*.corrupt` and logged instead.
    pub fn open(config: LocalConfig, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let table = Mutex::new(Table::new(config.node.clone()));
        let (services_changed, _) = watch::channel(0);
        let inner = Inner { config, clock, table, services_changed, dirty: Notify::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This node as the catalog shall show it.
    #[must_use]
    pub fn node(&self) -> v1::Node {
        self.inner.table.lock().node.clone()
    }

    /// Replaces the node's facts (addresses, meta); its name and id stay.
    pub fn set_node(&self, node: v1::Node) {
        let mut table = self.inner.table.lock();
        table.node = v1::Node { id: table.node.id.clone(), name: table.node.name.clone(), ..node };
        table.node_in_sync = false;
        self.inner.dirty.notify_one();
    }

    /// Registers or replaces a service with its checks; what is already known keeps its status and
    /// output. Returns once it is saved; the catalog follows at once, in the background.
    ///
    /// Errors: [`LocalError::Full`]; [`LocalError::NotSaved`], after which it is registered all the same.
    pub async fn register_service(
        &self,
        definition: ServiceDefinition,
        options: RegisterOptions,
    ) -> Result<(), LocalError> {
        let now = self.inner.clock.monotonic();
        {
            let mut table = self.inner.table.lock();
            table.put_service(&definition, options.source, options.replace_existing_checks, now)?;
        }
        self.touch_services();
        Ok(())
    }

    /// Deregisters a service and its checks, here and then in the catalog.
    ///
    /// Errors: [`LocalError::UnknownService`]; [`LocalError::NotSaved`].
    pub async fn deregister_service(&self, id: &str) -> Result<(), LocalError> {
        self.inner.table.lock().remove_service(id)?;
        self.touch_services();
        Ok(())
    }

    /// Registers or replaces one check of the node or of a registered service.
    ///
    /// Errors: [`LocalError::ServiceMissing`], [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn register_check(&self, check: CheckDefinition, source: Source) -> Result<(), LocalError> {
        let now = self.inner.clock.monotonic();
        self.inner.table.lock().put_check(&check, source, now)?;
        self.inner.dirty.notify_one();
        Ok(())
    }

    /// Deregisters one check.
    ///
    /// Errors: [`LocalError::UnknownCheck`]; [`LocalError::NotSaved`].
    pub async fn deregister_check(&self, id: &str) -> Result<(), LocalError> {
        self.inner.table.lock().remove_check(id)?;
        self.inner.dirty.notify_one();
        Ok(())
    }

    /// The application's report to a TTL check; starts its time anew. Output beyond the check's
    /// limit is cut.
    ///
    /// Errors: [`LocalError::UnknownCheck`], [`LocalError::NotTtl`].
    pub async fn update_ttl(&self, id: &str, status: Status, output: &str) -> Result<(), LocalError> {
        let now = self.inner.clock.monotonic();
        let mut table = self.inner.table.lock();
        let entry = table.checks.get(id).ok_or_else(|| LocalError::UnknownCheck(id.to_owned()))?;
        if !matches!(entry.definition.kind, CheckKind::Ttl { .. }) {
            return Err(LocalError::NotTtl(id.to_owned()));
        }
        table.set_status(id, status, output.to_owned(), now, now);
        self.inner.dirty.notify_one();
        Ok(())
    }

    /// Replaces everything that came from configuration files (start and reload): what is no longer
    /// there is deregistered, what stays keeps its status.
    ///
    /// Errors: one for each definition that was refused; the others took effect.
    pub async fn replace_files(
        &self,
        services: Vec<ServiceDefinition>,
        checks: Vec<CheckDefinition>,
    ) -> Result<(), Vec<LocalError>> {
        let (gone_services, gone_checks) = self.left_out(&services, &checks);
        let mut errors = Vec::new();
        for id in gone_services {
            errors.extend(self.deregister_service(&id).await.err());
        }
        for service in services {
            let options = RegisterOptions { replace_existing_checks: true, source: Source::File };
            errors.extend(self.register_service(service, options).await.err());
        }
        for id in gone_checks {
            // A check may already have gone with its service.
            match self.deregister_check(&id).await {
                Ok(()) | Err(LocalError::UnknownCheck(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        for check in checks {
            errors.extend(self.register_check(check, Source::File).await.err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Ids of file-defined services and stand-alone checks that the new files no longer have.
    fn left_out(&self, services: &[ServiceDefinition], checks: &[CheckDefinition]) -> (Vec<String>, Vec<String>) {
        let table = self.inner.table.lock();
        let from_file = |source| source == Source::File;
        let gone_services = table.services.iter().filter(|(_, entry)| from_file(entry.local.source));
        let gone_services = gone_services.filter(|(id, _)| !services.iter().any(|kept| kept.service.id == **id));
        let gone_checks = table.checks.iter().filter(|(_, entry)| from_file(entry.source));
        let gone_checks = gone_checks.filter(|(id, _)| {
            !checks.iter().any(|kept| kept.id == **id)
                && !services.iter().flat_map(|service| &service.checks).any(|kept| kept.id == **id)
        });
        (gone_services.map(|(id, _)| id.clone()).collect(), gone_checks.map(|(id, _)| id.clone()).collect())
    }

    /// Every registered service by id.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, Arc<LocalService>> {
        let table = self.inner.table.lock();
        table.services.iter().map(|(id, entry)| (id.clone(), Arc::clone(&entry.local))).collect()
    }

    /// One service and its content hash (16 hex digits, the same over restarts). To block on it:
    /// take [`Local::services_changed`] first, compare, then await a change and compare again.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<(Arc<LocalService>, String)> {
        let local = Arc::clone(&self.inner.table.lock().services.get(id)?.local);
        let hash = content_hash(&local.service);
        Some((local, hash))
    }

    /// Changes whenever a service is registered, changed or deregistered.
    #[must_use]
    pub fn services_changed(&self) -> watch::Receiver<u64> {
        self.inner.services_changed.subscribe()
    }

    /// Every registered check by id.
    #[must_use]
    pub fn checks(&self) -> BTreeMap<String, LocalCheck> {
        let table = self.inner.table.lock();
        table.checks.iter().map(|(id, entry)| (id.clone(), table.local_check(entry))).collect()
    }

    /// One check.
    #[must_use]
    pub fn check(&self, id: &str) -> Option<LocalCheck> {
        let table = self.inner.table.lock();
        table.checks.get(id).map(|entry| table.local_check(entry))
    }

    /// Health of the service with this id.
    #[must_use]
    pub fn health_by_id(&self, id: &str) -> Option<ServiceHealth> {
        self.inner.table.lock().health(id)
    }

    /// Health of every instance of this name here, by id; empty when there is none. The status of
    /// the whole is the worst of them.
    #[must_use]
    pub fn health_by_name(&self, name: &str) -> Vec<ServiceHealth> {
        let table = self.inner.table.lock();
        let ids = table.services.iter().filter(|(_, entry)| entry.local.service.name == name).map(|(id, _)| id);
        ids.filter_map(|id| table.health(id)).collect()
    }

    /// Puts the node into maintenance; an empty reason becomes Consul's default sentence. Saved.
    ///
    /// Errors: [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn enable_node_maintenance(&self, reason: &str) -> Result<(), LocalError> {
        self.register_check(maintenance_check("", reason), Source::Api).await
    }

    /// Ends the node's maintenance; nothing happens when there is none.
    ///
    /// Errors: [`LocalError::NotSaved`].
    pub async fn disable_node_maintenance(&self) -> Result<(), LocalError> {
        ignore_unknown(self.deregister_check(NODE_MAINTENANCE).await)
    }

    /// Puts a service into maintenance.
    ///
    /// Errors: [`LocalError::UnknownService`], [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn enable_service_maintenance(&self, id: &str, reason: &str) -> Result<(), LocalError> {
        match self.register_check(maintenance_check(id, reason), Source::Api).await {
            Err(LocalError::ServiceMissing(id)) => Err(LocalError::UnknownService(id)),
            other => other,
        }
    }

    /// Ends a service's maintenance; nothing happens when there is none.
    ///
    /// Errors: [`LocalError::UnknownService`], [`LocalError::NotSaved`].
    pub async fn disable_service_maintenance(&self, id: &str) -> Result<(), LocalError> {
        if !self.inner.table.lock().services.contains_key(id) {
            return Err(LocalError::UnknownService(id.to_owned()));
        }
        ignore_unknown(self.deregister_check(&format!("{SERVICE_MAINTENANCE}{id}")).await)
    }

    /// Totals.
    #[must_use]
    pub fn counts(&self) -> LocalCounts {
        let table = self.inner.table.lock();
        let of = |status| table.checks.values().filter(|entry| entry.status == status).count();
        LocalCounts {
            services: table.services.len(),
            checks: table.checks.len(),
            passing: of(Status::Passing),
            warning: of(Status::Warning),
            critical: of(Status::Critical),
        }
    }

    fn touch_services(&self) {
        self.inner.services_changed.send_modify(|revision| *revision += 1);
        self.inner.dirty.notify_one();
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

fn ignore_unknown(result: Result<(), LocalError>) -> Result<(), LocalError> {
    match result {
        Err(LocalError::UnknownCheck(_)) => Ok(()),
        other => other,
    }
}

/// The check that stands for maintenance; of the node when `service_id` is empty (CONSUL.md B.7).
fn maintenance_check(service_id: &str, reason: &str) -> CheckDefinition {
    let (id, name, what) = if service_id.is_empty() {
        (NODE_MAINTENANCE.to_owned(), "Node Maintenance Mode", "node")
    } else {
        (format!("{SERVICE_MAINTENANCE}{service_id}"), "Service Maintenance Mode", "service")
    };
    let notes = if reason.is_empty() {
        format!("Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message.")
    } else {
        reason.to_owned()
    };
    CheckDefinition {
        id,
        name: name.to_owned(),
        notes,
        service_id: service_id.to_owned(),
        token: String::new(),
        status: Some(Status::Critical),
        kind: CheckKind::Maintenance,
        thresholds: Thresholds::default(),
        output_max_size: OUTPUT_MAX_DEFAULT,
        deregister_critical_service_after: None,
    }
}

/// Maps have no order of their own, so the sorted JSON of the definition is hashed.
fn content_hash(service: &v1::Service) -> String {
    let digest = Sha256::digest(service_definition::to_value(service, "").to_string());
    hex::encode(&digest[..8])
}
