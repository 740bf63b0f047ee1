//! What this host runs, and which of it the catalog does not know yet.
//!
//! Owns: the registered services and checks with their status, and their sync marks.
//! Never: awaits, opens a file or a socket, or reads a clock. It is told `now` (monotonic).

use std::sync::Arc;
use std::time::Duration;

use weft_proto::v1;

use super::alias_check::Row;
use super::check_definition::{CheckDefinition, CheckKind};
use super::check_form::fingerprint;
use super::definition::ServiceDefinition;
use super::dirty::Dirty;
use super::error::LocalError;
use super::ids::{ById, same_id};
use super::saved::{SavedState, Worth};
use super::shown::Waiters;
use super::status::{Aggregate, Status};
use super::threshold::Streak;
use super::{LocalCheck, LocalService, ServiceHealth, Source};

/// Services one agent may run.
pub(super) const SERVICES_MAX: usize = 65_536;
/// Checks one agent may run.
pub(super) const CHECKS_MAX: usize = 131_072;
/// Check of a node in maintenance.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// Prefix of the check of a service in maintenance.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// A service and its sync mark.
pub(super) struct ServiceEntry {
    pub(super) local: Arc<LocalService>,
    pub(super) in_sync: bool,
    /// Its last write was refused: not written again before the next full comparison.
    pub(super) blocked: bool,
    /// Table revision of its last change: a write confirms only what it carried.
    pub(super) revision: u64,
    pub(super) waiters: Waiters,
}

/// A check, its status and its sync mark.
pub(super) struct CheckEntry {
    pub(super) definition: Arc<CheckDefinition>,
    pub(super) source: Source,
    pub(super) status: Status,
    pub(super) output: String,
    streak: Streak,
    critical_since: Option<Duration>,
    /// When a TTL check turns critical unless reported to; `None` after it has.
    ttl_deadline: Option<Duration>,
    pub(super) in_sync: bool,
    /// As in [`ServiceEntry`].
    pub(super) blocked: bool,
    /// An output-only change waits until then before it is written.
    pub(super) output_due: Option<Duration>,
    pub(super) revision: u64,
    /// Its state is of the last run of this process, and wants confirming soon.
    pub(super) restored: bool,
    /// The status that is saved with its present definition.
    pub(super) saved_status: Option<Status>,
}

impl CheckEntry {
    /// A check that was not registered, with what is known of it from the last run.
    fn new(
        definition: Arc<CheckDefinition>,
        source: Source,
        saved: Option<SavedState>,
        revision: u64,
        now: Duration,
    ) -> Self {
        let is_ttl = matches!(definition.kind, CheckKind::Ttl { .. });
        let saved = saved.filter(|saved| match &saved.worth {
            Worth::Time(_) => is_ttl,
            Worth::Kind(kind) => !is_ttl && *kind == fingerprint(&definition),
        });
        let ttl_deadline = saved.as_ref().and_then(|saved| match saved.worth {
            Worth::Time(deadline) => Some(deadline),
            Worth::Kind(_) => None,
        });
        let restored = saved.is_some();
        let streak = if restored {
            Streak::default()
        } else {
            Streak::unknown(&definition.thresholds)
        };
        let fresh = definition.status.unwrap_or(Status::Critical);
        let (status, output) = saved.map_or_else(
            || (fresh, String::new()),
            |saved| (saved.status, saved.output),
        );
        Self {
            definition,
            source,
            status,
            output,
            streak,
            critical_since: (status == Status::Critical).then_some(now),
            ttl_deadline,
            in_sync: false,
            blocked: false,
            output_due: None,
            revision,
            restored,
            saved_status: restored.then_some(status),
        }
    }
}

/// Deregistered here, still to be removed from the catalog.
pub(super) struct Gone {
    pub(super) revision: u64,
    /// As in [`ServiceEntry`].
    pub(super) blocked: bool,
    pub(super) waiters: Waiters,
}

impl Gone {
    pub(super) fn new(revision: u64) -> Self {
        Self {
            revision,
            blocked: false,
            waiters: Waiters::default(),
        }
    }
}

/// The table.
pub(super) struct Table {
    pub(super) node: v1::Node,
    pub(super) node_in_sync: bool,
    pub(super) services: ById<ServiceEntry>,
    pub(super) checks: ById<CheckEntry>,
    pub(super) gone_services: ById<Gone>,
    pub(super) gone_checks: ById<Gone>,
    /// What is not in agreement and not on its way.
    pub(super) dirty: Dirty,
    /// States of the last run, for checks not registered again yet; times are deadlines.
    pub(super) saved_states: ById<SavedState>,
    /// Saved checks whose service is not registered (yet): its file may still come.
    pub(super) orphans: Vec<CheckDefinition>,
    revision: u64,
}

impl Table {
    pub(super) fn new(node: v1::Node) -> Self {
        Self {
            node,
            node_in_sync: false,
            services: ById::default(),
            checks: ById::default(),
            gone_services: ById::default(),
            gone_checks: ById::default(),
            dirty: Dirty::default(),
            saved_states: ById::default(),
            orphans: Vec::new(),
            revision: 0,
        }
    }

    pub(super) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Adds or replaces a service and its checks; answers the ids of checks that went.
    pub(super) fn put_service(
        &mut self,
        definition: &ServiceDefinition,
        source: Source,
        replace_existing_checks: bool,
        now: Duration,
    ) -> Result<Vec<String>, LocalError> {
        let id = &definition.service.id;
        if !self.services.contains_key(id) && self.services.len() >= SERVICES_MAX {
            return Err(LocalError::Full {
                what: "services",
                count: SERVICES_MAX,
            });
        }
        let fresh = definition
            .checks
            .iter()
            .filter(|check| !self.checks.contains_key(&check.id))
            .count();
        if self.checks.len() + fresh > CHECKS_MAX {
            return Err(LocalError::Full {
                what: "checks",
                count: CHECKS_MAX,
            });
        }
        let revision = self.next_revision();
        let local = LocalService {
            service: definition.service.clone(),
            token: definition.token.clone(),
            source,
        };
        self.insert_service(Arc::new(local), revision);
        let mut removed = Vec::new();
        if replace_existing_checks {
            removed = self
                .checks
                .values()
                .filter(|entry| {
                    same_id(&entry.definition.service_id, id)
                        && entry.definition.kind != CheckKind::Maintenance
                })
                .map(|entry| entry.definition.id.clone())
                .filter(|check| {
                    !definition
                        .checks
                        .iter()
                        .any(|kept| same_id(&kept.id, check))
                })
                .collect();
            for check in &removed {
                self.drop_check(check);
            }
        }
        for check in &definition.checks {
            self.insert_check(Arc::new(check.clone()), source, now);
        }
        Ok(removed)
    }

    fn insert_service(&mut self, local: Arc<LocalService>, revision: u64) {
        let id = local.service.id.clone();
        self.gone_services.remove(&id);
        let renamed = self.services.get(&id).is_some_and(|old| {
            old.local.service.name != local.service.name
                || old.local.service.tags != local.service.tags
        });
        self.dirty.service(&id);
        self.services.insert(
            &id,
            ServiceEntry {
                local,
                in_sync: false,
                blocked: false,
                revision,
                waiters: Waiters::default(),
            },
        );
        if renamed {
            // Checks carry their service's name and tags.
            for entry in self
                .checks
                .values_mut()
                .filter(|entry| same_id(&entry.definition.service_id, &id))
            {
                entry.in_sync = false;
                entry.revision = revision;
                self.dirty.check(&id, &entry.definition.id);
            }
        }
    }

    /// Adds or replaces one check; its status and output survive (CONSUL.md B.6).
    pub(super) fn put_check(
        &mut self,
        check: &CheckDefinition,
        source: Source,
        now: Duration,
    ) -> Result<(), LocalError> {
        if !check.service_id.is_empty() && !self.services.contains_key(&check.service_id) {
            return Err(LocalError::ServiceMissing(check.service_id.clone()));
        }
        if !self.checks.contains_key(&check.id) && self.checks.len() >= CHECKS_MAX {
            return Err(LocalError::Full {
                what: "checks",
                count: CHECKS_MAX,
            });
        }
        self.insert_check(Arc::new(check.clone()), source, now);
        Ok(())
    }

    fn insert_check(&mut self, definition: Arc<CheckDefinition>, source: Source, now: Duration) {
        let revision = self.next_revision();
        self.gone_checks.remove(&definition.id);
        let id = definition.id.clone();
        let mut entry = match self.checks.remove(&id) {
            Some(old) => CheckEntry {
                saved_status: old
                    .saved_status
                    .filter(|_| old.definition.kind == definition.kind),
                ttl_deadline: None,
                source,
                in_sync: false,
                blocked: false,
                output_due: None,
                revision,
                definition,
                ..old
            },
            None => {
                let saved = self.saved_states.remove(&id);
                CheckEntry::new(definition, source, saved, revision, now)
            }
        };
        if let CheckKind::Ttl { ttl } = entry.definition.kind {
            entry.ttl_deadline.get_or_insert(now + ttl);
        }
        self.dirty.check(&entry.definition.service_id, &id);
        self.checks.insert(&id, entry);
    }

    /// Removes a service with its checks; answers their ids.
    pub(super) fn remove_service(&mut self, id: &str) -> Result<Vec<String>, LocalError> {
        if self.services.remove(id).is_none() {
            return Err(LocalError::UnknownService(id.to_owned()));
        }
        let revision = self.next_revision();
        self.gone_services.insert(id, Gone::new(revision));
        let checks: Vec<String> = self
            .checks
            .values()
            .filter(|check| same_id(&check.definition.service_id, id))
            .map(|check| check.definition.id.clone())
            .collect();
        for check in &checks {
            // The catalog removes a service's checks with it.
            self.checks.remove(check);
        }
        Ok(checks)
    }

    pub(super) fn remove_check(&mut self, id: &str) -> Result<(), LocalError> {
        if self.drop_check(id) {
            Ok(())
        } else {
            Err(LocalError::UnknownCheck(id.to_owned()))
        }
    }

    fn drop_check(&mut self, id: &str) -> bool {
        if self.checks.remove(id).is_none() {
            return false;
        }
        let revision = self.next_revision();
        self.gone_checks.insert(id, Gone::new(revision));
        true
    }

    /// Counts one result of a polled check in, through its thresholds.
    pub(super) fn record_result(
        &mut self,
        id: &str,
        result: Status,
        output: String,
        now: Duration,
        due: Duration,
    ) {
        let Some(entry) = self.checks.get_mut(id) else {
            return;
        };
        entry.restored = false;
        // Until the threshold is reached nothing shows, the output neither: it would contradict the status.
        if let Some(status) = entry.streak.step(result, &entry.definition.thresholds) {
            self.set_status(id, status, output, now, due);
        }
    }

    /// Shows `status` at once. `due`: when an output-only change may be written.
    pub(super) fn set_status(
        &mut self,
        id: &str,
        status: Status,
        output: String,
        now: Duration,
        due: Duration,
    ) {
        let revision = self.revision + 1;
        let Some(entry) = self.checks.get_mut(id) else {
            return;
        };
        let same_status = entry.status == status;
        if same_status && entry.output == output {
            return;
        }
        self.revision = revision;
        entry.status = status;
        entry.output = output;
        entry.revision = revision;
        match (status, entry.critical_since) {
            (Status::Critical, None) => entry.critical_since = Some(now),
            (Status::Critical, Some(_)) => {}
            _ => entry.critical_since = None,
        }
        if !same_status || due <= now {
            entry.in_sync = false;
            entry.output_due = None;
            self.dirty.check(&entry.definition.service_id, id);
        } else if entry.in_sync && entry.output_due.is_none() {
            entry.output_due = Some(due);
            self.dirty.output(due, id);
        }
    }

    /// The application's report: shows it at once and starts the time anew. Answers the TTL.
    pub(super) fn report_ttl(
        &mut self,
        id: &str,
        status: Status,
        output: String,
        now: Duration,
        due: Duration,
    ) -> Result<Duration, LocalError> {
        let entry = self
            .checks
            .get_mut(id)
            .ok_or_else(|| LocalError::UnknownCheck(id.to_owned()))?;
        let CheckKind::Ttl { ttl } = entry.definition.kind else {
            return Err(LocalError::NotTtl(id.to_owned()));
        };
        entry.ttl_deadline = Some(now + ttl);
        self.set_status(id, status, output, now, due);
        Ok(ttl)
    }

    /// Turns a TTL check critical when its time is up. Answers whether it did and how long to wait
    /// before asking again; `None` when there is no such TTL check.
    pub(super) fn expire_ttl(&mut self, id: &str, now: Duration) -> Option<(bool, Duration)> {
        let entry = self.checks.get_mut(id)?;
        let CheckKind::Ttl { ttl } = entry.definition.kind else {
            return None;
        };
        match entry.ttl_deadline {
            None => Some((false, ttl)),
            Some(deadline) if deadline > now => Some((false, deadline - now)),
            Some(_) => {
                entry.ttl_deadline = None;
                let output = if entry.output.is_empty() {
                    "TTL expired".to_owned()
                } else {
                    format!(
                        "TTL expired (last output before timeout follows): {}",
                        entry.output
                    )
                };
                self.set_status(id, Status::Critical, output, now, now);
                Some((true, ttl))
            }
        }
    }

    /// Entries the catalog does not have as this host does.
    pub(super) fn out_of_sync(&self) -> usize {
        usize::from(!self.node_in_sync)
            + self
                .services
                .values()
                .filter(|entry| !entry.in_sync)
                .count()
            + self.checks.values().filter(|entry| !entry.in_sync).count()
            + self.gone_services.len()
            + self.gone_checks.len()
    }

    /// Output changes whose wait is over become due; answers when the next one does.
    pub(super) fn release_outputs(&mut self, now: Duration) -> Option<Duration> {
        while let Some(output) = self.dirty.next_output() {
            let (due, id) = &output;
            // A write since then, or another definition, may have made an end of it.
            let entry = self.checks.get_mut(id);
            let waiting = entry.filter(|entry| entry.output_due == Some(*due));
            if waiting.is_some() && *due > now {
                return Some(*due);
            }
            if let Some(entry) = waiting {
                entry.output_due = None;
                entry.in_sync = false;
                self.dirty.check(&entry.definition.service_id, id);
            }
            self.dirty.forget_output(&output);
        }
        None
    }

    /// Finds anew what is not in agreement.
    pub(super) fn find_dirty(&mut self) {
        self.dirty.clear();
        for (id, _) in self.services.iter().filter(|(_, entry)| !entry.in_sync) {
            self.dirty.service(id);
        }
        for (id, entry) in self.checks.iter().filter(|(_, entry)| !entry.in_sync) {
            self.dirty.check(&entry.definition.service_id, id);
        }
    }

    /// Services that were critical for longer than a check of theirs allows.
    pub(super) fn overdue_services(&self, now: Duration) -> Vec<(String, String)> {
        self.checks
            .values()
            .filter(|entry| {
                let limit = entry.definition.deregister_critical_service_after;
                let critical = entry.critical_since.map(|since| now.saturating_sub(since));
                matches!((limit, critical), (Some(limit), Some(critical)) if critical >= limit)
            })
            .filter(|entry| self.services.contains_key(&entry.definition.service_id))
            .map(|entry| {
                (
                    entry.definition.service_id.clone(),
                    entry.definition.id.clone(),
                )
            })
            .collect()
    }

    /// What a check mirrors of this host: the node's checks and those of `service_id`, without itself.
    pub(super) fn rows_of<'a>(
        &'a self,
        service_id: &'a str,
        own_id: &'a str,
    ) -> impl Iterator<Item = Row<'a>> {
        self.checks
            .values()
            .filter(move |entry| {
                let owner = &entry.definition.service_id;
                (owner.is_empty() || same_id(owner, service_id))
                    && !same_id(&entry.definition.id, own_id)
            })
            .map(|entry| Row {
                name: &entry.definition.name,
                status: entry.status,
                output: &entry.output,
            })
    }

    /// Revision of the last change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The check as the catalog keeps it; indexes are 0.
    pub(super) fn check_record(&self, entry: &CheckEntry) -> v1::Check {
        let definition = &entry.definition;
        let service = self
            .services
            .get(&definition.service_id)
            .map(|service| &service.local.service);
        v1::Check {
            node: self.node.name.clone(),
            id: definition.id.clone(),
            name: definition.name.clone(),
            status: entry.status.as_str().to_owned(),
            notes: definition.notes.clone(),
            output: entry.output.clone(),
            service_id: definition.service_id.clone(),
            service_name: service
                .map(|service| service.name.clone())
                .unwrap_or_default(),
            service_tags: service
                .map(|service| service.tags.clone())
                .unwrap_or_default(),
            r#type: definition.kind.type_name().to_owned(),
            interval: weft_proto::duration::format(definition.kind.interval()),
            timeout: weft_proto::duration::format(definition.kind.timeout()),
            ..v1::Check::default()
        }
    }

    pub(super) fn local_check(&self, entry: &CheckEntry) -> LocalCheck {
        LocalCheck {
            record: self.check_record(entry),
            definition: Arc::clone(&entry.definition),
            source: entry.source,
        }
    }

    /// A service with its own and the node's checks, and what they add up to.
    pub(super) fn health(&self, id: &str) -> Option<ServiceHealth> {
        let service = Arc::clone(&self.services.get(id)?.local);
        let mut status = Aggregate::Passing;
        let mut checks = Vec::new();
        for entry in self.checks.values() {
            let owner = &entry.definition.service_id;
            if owner.is_empty() || same_id(owner, id) {
                status = status.max(aggregate(entry));
                checks.push(self.check_record(entry));
            }
        }
        Some(ServiceHealth {
            status,
            service,
            checks,
        })
    }
}

fn aggregate(entry: &CheckEntry) -> Aggregate {
    match (&entry.definition.kind, entry.status) {
        (CheckKind::Maintenance, Status::Critical) => Aggregate::Maintenance,
        (_, status) => status.into(),
    }
}
