//! The handle through which everybody else uses the local table.
//!
//! Owns: the public operations, and waiting until what they changed is on disk.
//! Never: holds the table's lock across an `.await`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use weft_proto::clock::Clock;
use weft_proto::v1;

use super::inner::Inner;
use super::metrics::LocalMetrics;
use super::runner::Runners;
use super::saved::Worth;
use super::shown::Pace;
use super::status::Status;
use super::store::{Saved, Store, mark};
use super::sync::Memory;
use super::table::Table;
use super::{
    CheckDefinition, LocalCheck, LocalConfig, LocalCounts, LocalError, LocalService, OpenError,
    RegisterOptions, ScriptChecks, ServiceDefinition, ServiceHealth, Source, maintenance, saved,
    service_definition,
};

/// A handle on what this host runs. Cheap to clone; all clones share one table.
#[derive(Clone)]
pub struct Local {
    pub(super) inner: Arc<Inner>,
}

impl Local {
    /// The table of this host, with what `data_dir` holds. Checks do not run, and the catalog is
    /// not told, before [`Local::start`].
    ///
    /// Errors: [`OpenError`] when `data_dir` cannot be used; damage is set aside as
    /// `*.corrupt` and logged instead, and nothing is then removed from the catalog (DESIGN F1).
    pub fn open(config: LocalConfig, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let mut table = Table::new(config.node.clone());
        let mut memory = Memory::Whole;
        let mut store = None;
        if let Some(root) = &config.data_dir {
            let (opened, found) = Store::open(root, saved::id_of)?;
            let saved = saved::read(root, &opened, found, clock.wall());
            if saved.lost {
                let failed = |cause| OpenError::Io {
                    path: root.clone(),
                    cause,
                };
                mark::remove(root).map_err(failed)?;
                memory = Memory::Lost;
            }
            restore(&mut table, saved, config.script_checks, clock.monotonic());
            store = Some(opened);
        }
        let inner = Inner {
            rng: Mutex::new(StdRng::seed_from_u64(config.seed)),
            config,
            clock,
            table: Mutex::new(table),
            memory: Mutex::new(memory),
            runners: Mutex::new(Runners::new()),
            store,
            metrics: LocalMetrics::new(),
            services_changed: watch::channel(0).0,
            changed: watch::channel(0).0,
            pace: Pace::default(),
            dirty: Notify::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// This node as the catalog shall show it.
    #[must_use]
    pub fn node(&self) -> v1::Node {
        self.inner.table.lock().node.clone()
    }

    /// Replaces the node's facts (addresses, meta); its name and id stay.
    pub fn set_node(&self, node: v1::Node) {
        let mut table = self.inner.table.lock();
        table.node = v1::Node {
            id: table.node.id.clone(),
            name: table.node.name.clone(),
            ..node
        };
        table.node_in_sync = false;
        self.inner.dirty.notify_one();
    }

    /// Counters; register them once.
    #[must_use]
    pub fn metrics(&self) -> &LocalMetrics {
        &self.inner.metrics
    }

    /// Registers or replaces a service with its checks; what is already known keeps its status and
    /// output. Returns once it is saved; the catalog follows at once, in the background, and is waited for
    /// up to 10 ms while the servers are that quick.
    ///
    /// Errors: [`LocalError::Full`]; [`LocalError::NotSaved`], after which it is registered all the same.
    pub async fn register_service(
        &self,
        definition: ServiceDefinition,
        options: RegisterOptions,
    ) -> Result<(), LocalError> {
        let saved = self.inner.put_service(&definition, options)?;
        let shown = self.inner.shown_soon(&definition.service.id);
        tokio::join!(settle(saved), shown.soon()).0
    }

    /// Deregisters a service and its checks, here and then in the catalog.
    ///
    /// Errors: [`LocalError::UnknownService`]; [`LocalError::NotSaved`].
    pub async fn deregister_service(&self, id: &str) -> Result<(), LocalError> {
        let saved = self.inner.remove_service(id)?;
        let shown = self.inner.shown_soon(id);
        tokio::join!(settle(saved), shown.soon()).0
    }

    /// Registers or replaces one check of the node or of a registered service.
    ///
    /// Errors: [`LocalError::ServiceMissing`], [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn register_check(
        &self,
        check: CheckDefinition,
        source: Source,
    ) -> Result<(), LocalError> {
        settle(self.inner.put_check(&check, source)?).await
    }

    /// Deregisters one check.
    ///
    /// Errors: [`LocalError::UnknownCheck`]; [`LocalError::NotSaved`].
    pub async fn deregister_check(&self, id: &str) -> Result<(), LocalError> {
        settle(self.inner.remove_check(id)?).await
    }

    /// The application's report to a TTL check; starts its time anew. Output beyond the check's
    /// limit is cut and says so. The report outlives the process once this returns, but not a power
    /// cut: losing it costs one critical interval.
    ///
    /// Errors: [`LocalError::UnknownCheck`], [`LocalError::NotTtl`]; [`LocalError::NotSaved`].
    pub async fn update_ttl(
        &self,
        id: &str,
        status: Status,
        output: &str,
    ) -> Result<(), LocalError> {
        settle(self.inner.update_ttl(id, status, output)?).await
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
        let (gone_services, gone_checks) = self.inner.left_out(&services, &checks);
        let options = RegisterOptions {
            replace_existing_checks: false,
            source: Source::File,
        };
        let mut results = Vec::new();
        results.extend(gone_services.iter().map(|id| self.inner.remove_service(id)));
        results.extend(
            services
                .iter()
                .map(|service| self.inner.put_service(service, options)),
        );
        // A check may already have gone with its service.
        results.extend(
            gone_checks
                .iter()
                .map(|id| ignore_unknown(self.inner.remove_check(id))),
        );
        results.extend(
            checks
                .iter()
                .map(|check| self.inner.put_check(check, Source::File)),
        );
        let orphans = std::mem::take(&mut self.inner.table.lock().orphans);
        for orphan in orphans {
            results.push(match self.inner.put_check(&orphan, Source::Api) {
                Err(LocalError::ServiceMissing(_)) => Ok(self.inner.forget_check(&orphan.id)),
                other => other,
            });
        }
        self.inner.forget_states();
        let mut errors = Vec::new();
        for result in results {
            match result {
                Ok(saved) => errors.extend(settle(saved).await.err()),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Every registered service by id.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, Arc<LocalService>> {
        let table = self.inner.table.lock();
        table
            .services
            .values()
            .map(|entry| (entry.local.service.id.clone(), Arc::clone(&entry.local)))
            .collect()
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
        table
            .checks
            .values()
            .map(|entry| (entry.definition.id.clone(), table.local_check(entry)))
            .collect()
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
        let ids = table
            .services
            .iter()
            .filter(|(_, entry)| entry.local.service.name == name)
            .map(|(id, _)| id);
        ids.filter_map(|id| table.health(id)).collect()
    }

    /// Puts the node into maintenance; an empty reason becomes Consul's default sentence. Saved.
    ///
    /// Errors: [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn enable_node_maintenance(&self, reason: &str) -> Result<(), LocalError> {
        self.register_check(maintenance::check("", reason), Source::Api)
            .await
    }

    /// Ends the node's maintenance; nothing happens when there is none.
    ///
    /// Errors: [`LocalError::NotSaved`].
    pub async fn disable_node_maintenance(&self) -> Result<(), LocalError> {
        settle(ignore_unknown(
            self.inner.remove_check(&maintenance::id("")),
        )?)
        .await
    }

    /// Puts a service into maintenance.
    ///
    /// Errors: [`LocalError::UnknownService`], [`LocalError::Full`], [`LocalError::NotSaved`].
    pub async fn enable_service_maintenance(
        &self,
        id: &str,
        reason: &str,
    ) -> Result<(), LocalError> {
        match self
            .register_check(maintenance::check(id, reason), Source::Api)
            .await
        {
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
        settle(ignore_unknown(
            self.inner.remove_check(&maintenance::id(id)),
        )?)
        .await
    }

    /// Totals.
    #[must_use]
    pub fn counts(&self) -> LocalCounts {
        let table = self.inner.table.lock();
        let of = |status| {
            table
                .checks
                .values()
                .filter(|entry| entry.status == status)
                .count()
        };
        LocalCounts {
            services: table.services.len(),
            checks: table.checks.len(),
            passing: of(Status::Passing),
            warning: of(Status::Warning),
            critical: of(Status::Critical),
            out_of_sync: table.out_of_sync(),
            held: self.inner.memory.lock().held(),
        }
    }

    /// An operator's word that what the catalog has beyond this host's registrations may go, after
    /// this host lost its files. The next full sync removes it.
    pub fn confirm_removals(&self) {
        *self.inner.memory.lock() = Memory::Whole;
        self.inner.mark_store();
    }
}

/// Puts what was saved into the table.
fn restore(table: &mut Table, saved: saved::Saved, scripts: ScriptChecks, now: Duration) {
    for (id, mut state) in saved.states {
        if let Worth::Time(left) = &mut state.worth {
            *left += now;
        }
        table.saved_states.insert(&id, state);
    }
    for service in &saved.services {
        if let Err(error) = table.put_service(service, Source::Api, false, now) {
            tracing::warn!(service.id = %service.service.id, %error, "a saved service was not restored");
        }
    }
    for check in saved.checks {
        let put = scripts.admit(&check, Source::Api);
        match put.and_then(|()| table.put_check(&check, Source::Api, now)) {
            Ok(()) => {}
            Err(LocalError::ServiceMissing(_)) => table.orphans.push(check),
            Err(error) => {
                tracing::warn!(check.id = %check.id, %error, "a saved check was not restored")
            }
        }
    }
}

/// Waits until every write is on disk.
async fn settle(waits: Vec<Saved>) -> Result<(), LocalError> {
    for wait in waits {
        match wait.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(LocalError::NotSaved(error)),
            Err(_) => return Err(LocalError::NotSaved("the writer has ended".to_owned())),
        }
    }
    Ok(())
}

fn ignore_unknown(result: Result<Vec<Saved>, LocalError>) -> Result<Vec<Saved>, LocalError> {
    match result {
        Err(LocalError::UnknownCheck(_)) => Ok(Vec::new()),
        other => other,
    }
}

/// Maps have no order of their own, so the sorted JSON of the definition is hashed.
fn content_hash(service: &v1::Service) -> String {
    let digest = Sha256::digest(service_definition::to_value(service, "").to_string());
    hex::encode(&digest[..8])
}
