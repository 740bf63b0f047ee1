//! The writes that bring what changed into agreement, several under way at once.
//!
//! Owns: what is written next, what may not be written beside what is under way, and what an answer
//! says of the entries a write carried.
//! Never: awaits, reads a clock, or sends. It hands back commands.
//! Source: Consul docs, "Anti-Entropy"; CONSUL.md B.7.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use super::ids::fold;
use super::table::Table;

/// Writes under way at once: they share Raft batches.
pub(super) const WRITES_AT_ONCE: usize = 128;
/// Checks one command carries: bounds the size of a log entry.
pub(super) const CHECKS_PER_COMMAND: usize = 64;

/// One write.
pub(super) struct Write {
    pub(super) command: Command,
    pub(super) sent: Sent,
}

/// What a write puts into agreement when it is applied.
pub(super) struct Sent {
    pub(super) carries: Vec<Carried>,
    /// The node's record, when it is carried.
    node: Option<Box<v1::Node>>,
    /// Services of the checks it carries; folded.
    under: BTreeSet<String>,
}

impl Sent {
    /// Every service it touches, once; folded.
    fn services(&self) -> BTreeSet<String> {
        let own = self.carries.iter().filter_map(|carried| match carried {
            Carried::Service(id, _) | Carried::GoneService(id, _) => Some(fold(id).into_owned()),
            Carried::Node | Carried::Check(..) | Carried::GoneCheck(..) => None,
        });
        own.chain(self.under.iter().cloned()).collect()
    }

    /// Every check it names; folded.
    fn checks(&self) -> impl Iterator<Item = String> {
        self.carries.iter().filter_map(|carried| match carried {
            Carried::Check(id, _) | Carried::GoneCheck(id, _) => Some(fold(id).into_owned()),
            Carried::Node | Carried::Service(..) | Carried::GoneService(..) => None,
        })
    }
}

/// An entry at the revision that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Node,
    Service(String, u64),
    Check(String, u64),
    GoneService(String, u64),
    GoneCheck(String, u64),
}

/// What writes under way carry. Two of the same service, or of the same check, might be applied in
/// any order, so the later one waits.
#[derive(Default)]
pub(super) struct Busy {
    /// Services and how many writes touch them or their checks; folded.
    services: BTreeMap<String, usize>,
    checks: BTreeSet<String>,
    writes: usize,
}

impl Busy {
    /// How many writes are under way.
    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    /// A write is over, whatever came of it.
    pub(super) fn release(&mut self, write: &Sent) {
        self.writes -= 1;
        for service in write.services() {
            if let Some(count) = self.services.get_mut(&service) {
                *count -= 1;
                if *count == 0 {
                    self.services.remove(&service);
                }
            }
        }
        for check in write.checks() {
            self.checks.remove(&check);
        }
    }

    fn claim(&mut self, write: &Sent) {
        self.writes += 1;
        for service in write.services() {
            *self.services.entry(service).or_default() += 1;
        }
        self.checks.extend(write.checks());
    }

    fn has_service(&self, id: &str) -> bool {
        self.services.contains_key(fold(id).as_ref())
    }

    fn has_check(&self, id: &str) -> bool {
        self.checks.contains(fold(id).as_ref())
    }
}

/// The next writes, at most `most`: a service goes with its checks in one command. They count as under
/// way until [`Busy::release`]. `batch_checks`: put checks of several services into one command too.
///
/// While the node itself is out of agreement every write carries it, and no others follow until these
/// are over: of two different records of it the older could be the last to be applied.
pub(super) fn plan(
    table: &mut Table,
    busy: &mut Busy,
    batch_checks: bool,
    most: usize,
) -> Vec<Write> {
    if !table.node_in_sync && busy.writes > 0 {
        return Vec::new();
    }
    let mut next = Next {
        table,
        busy,
        most,
        writes: Vec::new(),
    };
    next.removals();
    next.services();
    next.checks(if batch_checks { CHECKS_PER_COMMAND } else { 1 });
    if !next.table.node_in_sync && next.writes.is_empty() {
        next.register(None, &[]);
    }
    next.writes
}

struct Next<'a> {
    table: &'a mut Table,
    busy: &'a mut Busy,
    most: usize,
    writes: Vec<Write>,
}

impl Next<'_> {
    fn room(&self) -> usize {
        self.most.saturating_sub(self.writes.len())
    }

    fn push(&mut self, write: Write) {
        self.busy.claim(&write.sent);
        self.writes.push(write);
    }

    fn removals(&mut self) {
        let services = self.table.gone_services.iter();
        let services = services
            .filter(|(id, gone)| !gone.blocked && !self.busy.has_service(id))
            .map(|(id, gone)| Carried::GoneService(id.clone(), gone.revision));
        let checks = self.table.gone_checks.iter();
        let checks = checks
            .filter(|(id, gone)| !gone.blocked && !self.busy.has_check(id))
            .map(|(id, gone)| Carried::GoneCheck(id.clone(), gone.revision));
        let gone: Vec<Carried> = services.chain(checks).take(self.room()).collect();
        for carried in gone {
            let write = removal(&self.table.node, carried);
            self.push(write);
        }
    }

    fn services(&mut self) {
        let ids = self.table.dirty.services().iter();
        let ids = ids.filter(|id| !self.busy.has_service(id)).cloned();
        for id in ids.collect::<Vec<_>>() {
            if self.room() == 0 {
                return;
            }
            self.table.dirty.forget_service(&id);
            let wanted = self.table.services.get(&id);
            if !wanted.is_some_and(|entry| !entry.in_sync && !entry.blocked) {
                continue;
            }
            let mut checks = self.table.dirty.checks_of(&id);
            checks.retain(|key| self.wants_check(key));
            // The rest waits until this is over: commands may be applied in any order.
            checks.truncate(CHECKS_PER_COMMAND);
            self.register(Some(&id), &checks);
        }
    }

    /// Checks whose services are there.
    fn checks(&mut self, per_command: usize) {
        let mut ready = Vec::new();
        let mut stale = Vec::new();
        for key in self.table.dirty.checks() {
            if ready.len() >= per_command * self.room() {
                break;
            }
            let service = self.table.services.get(&key.0);
            if self.busy.has_check(&key.1) || service.is_some_and(|entry| !entry.in_sync) {
                continue;
            }
            if self.wants_check(key) {
                ready.push(key.clone());
            } else {
                stale.push(key.clone());
            }
        }
        for key in stale {
            self.table.dirty.forget_check(&key);
        }
        for chunk in ready.chunks(per_command) {
            self.register(None, chunk);
        }
    }

    /// Whether the entry is there, of this service, and to be written.
    fn wants_check(&self, (service, id): &(String, String)) -> bool {
        let entry = self.table.checks.get(id);
        entry.is_some_and(|entry| {
            !entry.in_sync
                && !entry.blocked
                && !self.busy.has_check(id)
                && fold(&entry.definition.service_id) == service.as_str()
        })
    }

    fn register(&mut self, service: Option<&str>, checks: &[(String, String)]) {
        for key in checks {
            self.table.dirty.forget_check(key);
        }
        let write = register(self.table, service, checks);
        self.push(write);
    }
}

fn removal(node: &v1::Node, carried: Carried) -> Write {
    let mut command = v1::Deregister {
        node: node.name.clone(),
        expect_node_id: node.id.clone(),
        ..Default::default()
    };
    match &carried {
        Carried::GoneService(id, _) => command.service_id.clone_from(id),
        Carried::GoneCheck(id, _) => command.check_id.clone_from(id),
        other => unreachable!("no removal: {other:?}"),
    }
    Write {
        command: Command::Deregister(command),
        sent: Sent {
            carries: vec![carried],
            node: None,
            under: BTreeSet::new(),
        },
    }
}

fn register(table: &Table, service: Option<&str>, checks: &[(String, String)]) -> Write {
    let mut carries = Vec::with_capacity(checks.len() + 2);
    let node = (!table.node_in_sync).then(|| Box::new(table.node.clone()));
    if node.is_some() {
        carries.push(Carried::Node);
    }
    let entry = service.and_then(|id| table.services.get(id));
    if let (Some(id), Some(entry)) = (service, entry) {
        carries.push(Carried::Service(id.to_owned(), entry.revision));
    }
    let entries = checks.iter().filter_map(|(_, id)| table.checks.get(id));
    let records = entries
        .map(|entry| {
            carries.push(Carried::Check(entry.definition.id.clone(), entry.revision));
            table.check_record(entry)
        })
        .collect();
    let command = Command::Register(v1::Register {
        node: Some(table.node.clone()),
        service: entry.map(|entry| entry.local.service.clone()),
        checks: records,
        skip_node_update: table.node_in_sync,
    });
    let owners = checks.iter().map(|(service, _)| service.clone());
    let under = owners.filter(|id| !id.is_empty()).collect();
    Write {
        command,
        sent: Sent {
            carries,
            node,
            under,
        },
    }
}

/// A write was applied: what it carried is in agreement, unless it changed since.
pub(super) fn confirm(table: &mut Table, sent: &Sent) {
    for carried in &sent.carries {
        match carried {
            Carried::Node => {
                table.node_in_sync = sent.node.as_deref() == Some(&table.node);
            }
            Carried::Service(id, revision) => {
                let entry = table.services.get_mut(id);
                if let Some(entry) = entry.filter(|entry| entry.revision == *revision) {
                    entry.in_sync = true;
                    entry.waiters.let_go();
                }
            }
            Carried::Check(id, revision) => {
                let entry = table.checks.get_mut(id);
                if let Some(entry) = entry.filter(|entry| entry.revision == *revision) {
                    entry.in_sync = true;
                    entry.output_due = None;
                }
            }
            Carried::GoneService(id, revision) => {
                let gone = table.gone_services.get(id);
                if gone.is_some_and(|gone| gone.revision == *revision) {
                    table.gone_services.remove(id);
                }
            }
            Carried::GoneCheck(id, revision) => {
                let gone = table.gone_checks.get(id);
                if gone.is_some_and(|gone| gone.revision == *revision) {
                    table.gone_checks.remove(id);
                }
            }
        }
    }
    again(table, sent);
}

/// What a write carried and is not in agreement is to be written again.
pub(super) fn again(table: &mut Table, sent: &Sent) {
    for carried in &sent.carries {
        match carried {
            Carried::Service(id, _) => {
                if table.services.get(id).is_some_and(|entry| !entry.in_sync) {
                    table.dirty.service(id);
                }
            }
            Carried::Check(id, _) => {
                if let Some(entry) = table.checks.get(id).filter(|entry| !entry.in_sync) {
                    table.dirty.check(&entry.definition.service_id, id);
                }
            }
            // These have lists of their own.
            Carried::Node | Carried::GoneService(..) | Carried::GoneCheck(..) => {}
        }
    }
}

/// It will not be soon that what a write carried is in agreement: nobody waits for it.
pub(super) fn let_go(table: &mut Table, sent: &Sent) {
    for carried in &sent.carries {
        match carried {
            Carried::Service(id, _) => {
                if let Some(entry) = table.services.get_mut(id) {
                    entry.waiters.let_go();
                }
            }
            Carried::GoneService(id, _) => {
                if let Some(gone) = table.gone_services.get_mut(id) {
                    gone.waiters.let_go();
                }
            }
            Carried::Node | Carried::Check(..) | Carried::GoneCheck(..) => {}
        }
    }
}

/// A write was refused: what it carried is left alone until the next full comparison.
pub(super) fn block(table: &mut Table, sent: &Sent) {
    let_go(table, sent);
    for carried in &sent.carries {
        match carried {
            // The node may have been removed under us, so the next write brings it again.
            Carried::Node => {}
            Carried::Service(id, _) => {
                if let Some(entry) = table.services.get_mut(id) {
                    entry.blocked = true;
                }
            }
            Carried::Check(id, _) => {
                if let Some(entry) = table.checks.get_mut(id) {
                    entry.blocked = true;
                }
            }
            Carried::GoneService(id, _) => {
                if let Some(gone) = table.gone_services.get_mut(id) {
                    gone.blocked = true;
                }
            }
            Carried::GoneCheck(id, _) => {
                if let Some(gone) = table.gone_checks.get_mut(id) {
                    gone.blocked = true;
                }
            }
        }
    }
}
