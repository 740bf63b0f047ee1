//! One change at a time, in its order through table, file, task and catalog.
//!
//! Owns: the table's lock; what every change of it sets off.
//! Never: awaits. A caller that must wait for the disk is handed what to wait for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use weft_proto::clock::Clock;
use weft_proto::ids::UnixMillis;

use super::ids::fold;
use super::metrics::LocalMetrics;
use super::output::cut;
use super::run_result::RunResult;
use super::runner::Runners;
use super::saved::{Worth, check_object, result_object, service_object, state_object};
use super::shown::Pace;
use super::status::Status;
use super::store::{Kind, Saved, Store, mark};
use super::sync::Memory;
use super::table::{Gone, Table};
use super::{CheckDefinition, LocalConfig, LocalError, RegisterOptions, ServiceDefinition, Source};

/// What the last run of the process knew of a check is confirmed within this time.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// Locks are taken in the order of the fields.
pub(super) struct Inner {
    pub(super) config: LocalConfig,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) table: Mutex<Table>,
    pub(super) memory: Mutex<Memory>,
    pub(super) runners: Mutex<Runners>,
    pub(super) rng: Mutex<StdRng>,
    pub(super) store: Option<Store>,
    pub(super) metrics: LocalMetrics,
    pub(super) services_changed: watch::Sender<u64>,
    /// The table's revision, for whoever mirrors what is in it.
    pub(super) changed: watch::Sender<u64>,
    pub(super) pace: Pace,
    /// Something is out of sync.
    pub(super) dirty: Notify,
}

impl Inner {
    pub(super) fn put_service(
        self: &Arc<Self>,
        definition: &ServiceDefinition,
        options: RegisterOptions,
    ) -> Result<Vec<Saved>, LocalError> {
        for check in &definition.checks {
            self.config.script_checks.admit(check, options.source)?;
        }
        let now = self.clock.monotonic();
        let id = &definition.service.id;
        let mut table = self.table.lock();
        let was_saved = table
            .services
            .get(id)
            .is_some_and(|entry| entry.local.source == Source::Api);
        let respelled = respelled(&table, definition);
        let saved_checks: Vec<&str> = definition
            .checks
            .iter()
            .filter(|check| {
                table
                    .checks
                    .get(&check.id)
                    .is_some_and(|entry| entry.source == Source::Api)
            })
            .map(|check| check.id.as_str())
            .collect();
        let removed = table.put_service(
            definition,
            options.source,
            options.replace_existing_checks,
            now,
        )?;
        let mut waits = Vec::new();
        waits.extend(
            respelled
                .service
                .and_then(|old| self.unsave(Kind::Service, &old)),
        );
        for check in &respelled.checks {
            waits.extend(self.forget_check(check));
        }
        match options.source {
            Source::Api => {
                waits.extend(self.save(Kind::Service, id, || service_object(definition)));
                for check in &definition.checks {
                    waits.extend(self.save(Kind::Check, &check.id, || check_object(check)));
                }
            }
            Source::File => {
                waits.extend(was_saved.then(|| self.unsave(Kind::Service, id)).flatten());
                waits.extend(
                    saved_checks
                        .into_iter()
                        .filter_map(|check| self.unsave(Kind::Check, check)),
                );
            }
        }
        for check in &removed {
            waits.extend(self.forget_check(check));
        }
        for check in &definition.checks {
            self.run_check(&table, &check.id);
        }
        self.touch(&table);
        drop(table);
        tracing::debug!(service.id = %id, service.name = %definition.service.name, "registered a service");
        self.touch_services();
        Ok(waits)
    }

    pub(super) fn remove_service(&self, id: &str) -> Result<Vec<Saved>, LocalError> {
        let mut table = self.table.lock();
        let written = table.services.get(id);
        let id = &written.map_or_else(|| id.to_owned(), |entry| entry.local.service.id.clone());
        let checks = match table.remove_service(id) {
            Err(LocalError::UnknownService(_)) if self.memory.lock().release_service(id) => {
                let revision = table.next_revision();
                table.gone_services.insert(id, Gone::new(revision));
                Vec::new()
            }
            other => other?,
        };
        let mut waits: Vec<Saved> = self.unsave(Kind::Service, id).into_iter().collect();
        waits.extend(checks.iter().flat_map(|check| self.forget_check(check)));
        self.touch(&table);
        drop(table);
        tracing::debug!(service.id = %id, "deregistered a service");
        self.touch_services();
        Ok(waits)
    }

    pub(super) fn put_check(
        self: &Arc<Self>,
        check: &CheckDefinition,
        source: Source,
    ) -> Result<Vec<Saved>, LocalError> {
        self.config.script_checks.admit(check, source)?;
        let now = self.clock.monotonic();
        let mut table = self.table.lock();
        let was_saved = table
            .checks
            .get(&check.id)
            .is_some_and(|entry| entry.source == Source::Api);
        let respelled = respelled_check(&table, check);
        table.put_check(check, source, now)?;
        let forgotten = respelled.map(|old| self.forget_check(&old));
        let wait = match source {
            Source::Api => self.save(Kind::Check, &check.id, || check_object(check)),
            Source::File if was_saved => self.unsave(Kind::Check, &check.id),
            Source::File => None,
        };
        self.run_check(&table, &check.id);
        self.touch(&table);
        Ok(wait
            .into_iter()
            .chain(forgotten.into_iter().flatten())
            .collect())
    }

    pub(super) fn remove_check(&self, id: &str) -> Result<Vec<Saved>, LocalError> {
        let mut table = self.table.lock();
        let written = table.checks.get(id);
        let id = &written.map_or_else(|| id.to_owned(), |entry| entry.definition.id.clone());
        match table.remove_check(id) {
            Err(LocalError::UnknownCheck(_)) if self.memory.lock().release_check(id) => {
                let revision = table.next_revision();
                table.gone_checks.insert(id, Gone::new(revision));
            }
            other => other?,
        }
        let waits = self.forget_check(id);
        self.touch(&table);
        Ok(waits)
    }

    /// Ends a check's task and what is saved of it.
    pub(super) fn forget_check(&self, id: &str) -> Vec<Saved> {
        self.runners.lock().stop(id);
        // Its state goes by itself; nobody waits for it.
        drop(self.unsave(Kind::State, id));
        self.unsave(Kind::Check, id).into_iter().collect()
    }

    pub(super) fn update_ttl(
        &self,
        id: &str,
        status: Status,
        output: &str,
    ) -> Result<Vec<Saved>, LocalError> {
        let now = self.clock.monotonic();
        let mut table = self.table.lock();
        let entry = table.checks.get(id);
        let max = entry.map_or(0, |entry| self.output_max(&entry.definition));
        let id = &entry.map_or_else(|| id.to_owned(), |entry| entry.definition.id.clone());
        let output = self.shown(&cut(output, max, output.len()));
        let due = self.output_due(now);
        let before = table.checks.get(id).map(|entry| entry.status);
        let ttl = table.report_ttl(id, status, output.clone(), now, due)?;
        tell(&table, id, before);
        let expires = UnixMillis(self.clock.wall().get().saturating_add(millis(ttl)));
        let saved = self.save(Kind::State, id, || {
            state_object(id, status, &output, expires)
        });
        self.touch(&table);
        Ok(saved.into_iter().collect())
    }

    /// A polled check's result. Ignored when the check was changed while it ran.
    pub(super) fn report(&self, check: &CheckDefinition, result: &RunResult, took: Duration) {
        self.metrics
            .ran_check(check.kind.type_name(), result.outcome(), took);
        let output = self.shown(&result.output);
        self.update(check, |table, now, due| {
            table.record_result(&check.id, result.status, output, now, due);
        });
    }

    /// What a check that is not polled has come to, at once.
    pub(super) fn show(&self, check: &CheckDefinition, status: Status, output: &str) {
        let max = self.output_max(check);
        let output = self.shown(&cut(output, max, output.len()));
        self.update(check, |table, now, due| {
            table.set_status(&check.id, status, output, now, due);
        });
    }

    /// Changes one check's state, tells of a new status and saves it. Nothing happens when the
    /// check is no longer the one that ran.
    fn update(&self, check: &CheckDefinition, change: impl FnOnce(&mut Table, Duration, Duration)) {
        let now = self.clock.monotonic();
        let due = self.output_due(now);
        let mut table = self.table.lock();
        let Some(before) = table
            .checks
            .get(&check.id)
            .filter(|entry| *entry.definition == *check)
            .map(|entry| entry.status)
        else {
            return;
        };
        change(&mut table, now, due);
        tell(&table, &check.id, Some(before));
        if let Some(entry) = table.checks.get_mut(&check.id)
            && entry.saved_status != Some(entry.status)
        {
            entry.saved_status = Some(entry.status);
            // Not waited for: losing it costs the time to the first result after a restart.
            drop(self.save(Kind::State, &check.id, || {
                result_object(check, entry.status, &entry.output)
            }));
        }
        self.touch(&table);
    }

    /// Lets go of what was known of checks that did not come back after a restart.
    pub(super) fn forget_states(&self) {
        let mut table = self.table.lock();
        let left = std::mem::take(&mut table.saved_states);
        for (id, state) in left.iter() {
            match state.worth {
                // The application may still register it again in time.
                Worth::Time(_) => drop(table.saved_states.insert(id, state.clone())),
                Worth::Kind(_) => drop(self.unsave(Kind::State, id)),
            }
        }
    }

    /// See [`Table::expire_ttl`].
    pub(super) fn expire_ttl(&self, id: &str) -> Option<Duration> {
        let now = self.clock.monotonic();
        let mut table = self.table.lock();
        let (expired, wait) = table.expire_ttl(id, now)?;
        if expired {
            tracing::warn!(check.id = %id, "TTL check was not refreshed in time");
            self.metrics.expired();
            self.touch(&table);
        }
        Some(wait)
    }

    /// Bytes of output this check may keep.
    pub(super) fn output_max(&self, check: &CheckDefinition) -> usize {
        let most = self.config.check_output_max_size;
        check.output_max_size.map_or(most, |own| own.min(most))
    }

    fn shown(&self, output: &str) -> String {
        if self.config.discard_check_output {
            String::new()
        } else {
            output.to_owned()
        }
    }

    /// When an output-only change of `now` may be written: half to one and a half intervals later.
    fn output_due(&self, now: Duration) -> Duration {
        let interval = self.config.check_update_interval;
        if interval.is_zero() {
            now
        } else {
            now + interval / 2 + self.jitter(interval)
        }
    }

    /// A random time below `most`.
    pub(super) fn jitter(&self, most: Duration) -> Duration {
        most.mul_f64(self.rng.lock().random_range(0.0..1.0))
    }

    /// Starts the check's task when checks run.
    pub(super) fn run_check(self: &Arc<Self>, table: &Table, id: &str) {
        let Some(entry) = table.checks.get(id) else {
            return;
        };
        let mut spread = entry.definition.kind.interval();
        if entry.restored {
            spread = spread.min(CONFIRM_WITHIN);
        }
        let offset = self.jitter(spread);
        self.runners.lock().start(self, &entry.definition, offset);
    }

    /// Ids of file-defined services and checks that the new files no longer have.
    pub(super) fn left_out(
        &self,
        services: &[ServiceDefinition],
        checks: &[CheckDefinition],
    ) -> (Vec<String>, Vec<String>) {
        let kept_services: BTreeSet<_> = services
            .iter()
            .map(|service| fold(&service.service.id))
            .collect();
        let kept_checks: BTreeSet<_> = services
            .iter()
            .flat_map(|service| &service.checks)
            .chain(checks)
            .map(|check| fold(&check.id))
            .collect();
        let table = self.table.lock();
        let file_services = table
            .services
            .iter()
            .filter(|(_, entry)| entry.local.source == Source::File);
        let file_checks = table
            .checks
            .iter()
            .filter(|(_, entry)| entry.source == Source::File);
        (
            file_services
                .map(|(id, _)| id.clone())
                .filter(|id| !kept_services.contains(id.as_str()))
                .collect(),
            file_checks
                .map(|(id, _)| id.clone())
                .filter(|id| !kept_checks.contains(id.as_str()))
                .collect(),
        )
    }

    fn save(
        &self,
        kind: Kind,
        id: &str,
        object: impl FnOnce() -> serde_json::Value,
    ) -> Option<Saved> {
        Some(self.store.as_ref()?.save(kind, id, &object()))
    }

    fn unsave(&self, kind: Kind, id: &str) -> Option<Saved> {
        Some(self.store.as_ref()?.remove(kind, id))
    }

    /// From the next start on, this store counts as not lost.
    pub(super) fn mark_store(&self) {
        let Some(root) = &self.config.data_dir else {
            return;
        };
        if let Err(error) = mark::set(root) {
            tracing::warn!(%error, file.path = %root.display(), "cannot mark the local store as complete");
        }
    }

    fn touch_services(&self) {
        self.services_changed.send_modify(|revision| *revision += 1);
    }

    /// Wakes whoever follows the table, and anti-entropy.
    fn touch(&self, table: &Table) {
        let revision = table.revision();
        self.changed
            .send_if_modified(|known| std::mem::replace(known, revision) != revision);
        self.dirty.notify_one();
    }
}

/// Logs a change of status; nothing else of a check is news.
fn tell(table: &Table, id: &str, before: Option<Status>) {
    let Some(entry) = table.checks.get(id) else {
        return;
    };
    let (Some(before), after) = (before, entry.status) else {
        return;
    };
    if before != after {
        let service = &entry.definition.service_id;
        tracing::info!(check.id = %id, service.id = %service, check.before = %before, check.status = %after, "check changed status");
    }
}

/// Old spellings that a registration replaces: objects are kept under ids as they are written.
struct Respelled {
    service: Option<String>,
    checks: Vec<String>,
}

fn respelled(table: &Table, definition: &ServiceDefinition) -> Respelled {
    let id = &definition.service.id;
    let service = table.services.get(id).map(|entry| &entry.local.service.id);
    Respelled {
        service: service.filter(|old| *old != id).cloned(),
        checks: definition
            .checks
            .iter()
            .filter_map(|check| respelled_check(table, check))
            .collect(),
    }
}

fn respelled_check(table: &Table, check: &CheckDefinition) -> Option<String> {
    let old = &table.checks.get(&check.id)?.definition.id;
    (*old != check.id).then(|| old.clone())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
