//! Anti-entropy: bring the catalog into agreement with what this agent runs.
//!
//! Owns: the comparison of the local table with the catalog's rows of this node; what follows from it is
//! [`super::plan`]'s. Ids are compared as the catalog does ([`super::ids`]).
//! Never: awaits, reads a clock, or writes. It is handed rows and sets marks.
//! Source: Consul docs, "Anti-Entropy"; CONSUL.md B.7; DESIGN F1 (amnesia).

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::v1;

use super::LocalService;
use super::ids::{ById, fold, same_id};
use super::table::{Gone, ServiceEntry, Table};

/// The service every server registers for itself; not the agent's to remove.
const SERVER_SERVICE: &str = "consul";
/// The check the leader keeps from gossip; not the agent's to remove.
const GOSSIP_CHECK: &str = "serfHealth";

/// What the catalog has for this node.
#[derive(Default)]
pub(super) struct Remote {
    pub(super) node: Option<Arc<v1::Node>>,
    pub(super) services: ById<Arc<v1::Service>>,
    pub(super) checks: ById<Arc<v1::Check>>,
}

/// Whether this agent may remove what it does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    /// Its files were all there: what it does not know is not its own.
    #[default]
    Whole,
    /// Files were lost, and the catalog was not looked at since.
    Lost,
    /// These were in the catalog when it first looked: they may be its own, so they stay until an
    /// operator says otherwise.
    Holding {
        /// Service ids, folded.
        services: BTreeSet<String>,
        /// Check ids, folded.
        checks: BTreeSet<String>,
    },
}

impl Memory {
    fn holds_service(&self, id: &str) -> bool {
        matches!(self, Self::Holding { services, .. } if services.contains(fold(id).as_ref()))
    }

    fn holds_check(&self, check: &v1::Check) -> bool {
        let Self::Holding { services, checks } = self else {
            return false;
        };
        checks.contains(fold(&check.id).as_ref())
            || services.contains(fold(&check.service_id).as_ref())
    }

    /// The user named this service, so it may go. Answers whether it was held.
    pub(super) fn release_service(&mut self, id: &str) -> bool {
        if let Self::Holding { services, .. } = self {
            services.remove(fold(id).as_ref())
        } else {
            false
        }
    }

    /// The user named this check, so it may go. Answers whether it was held.
    pub(super) fn release_check(&mut self, id: &str) -> bool {
        if let Self::Holding { checks, .. } = self {
            checks.remove(fold(id).as_ref())
        } else {
            false
        }
    }

    /// How many entries are held.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Holding { services, checks } => services.len() + checks.len(),
            Self::Whole | Self::Lost => 0,
        }
    }
}

/// Full comparison: sets every sync mark anew, and marks for removal what the agent does not know.
///
/// A node of our name with another id is another machine's, alive or not yet given up: nothing under
/// it is ours to judge, let alone to remove.
pub(super) fn compare(table: &mut Table, remote: &Remote, memory: &mut Memory) {
    if is_foreign(table, remote) {
        table.node_in_sync = false;
        return;
    }
    table.node_in_sync = remote
        .node
        .as_ref()
        .is_some_and(|node| same_node(&table.node, node));
    adopt_tags(table, remote, false);
    for (id, entry) in table.services.iter_mut() {
        entry.blocked = false;
        entry.in_sync = remote
            .services
            .get(id)
            .is_some_and(|theirs| same_service(&entry.local.service, theirs));
    }
    let marks: Vec<(String, bool)> = table
        .checks
        .iter()
        .map(|(id, entry)| {
            let ours = table.check_record(entry);
            let waits = entry.output_due.is_some();
            (
                id.clone(),
                remote
                    .checks
                    .get(id)
                    .is_some_and(|theirs| same_check(&ours, theirs, waits)),
            )
        })
        .collect();
    for (id, in_sync) in marks {
        if let Some(entry) = table.checks.get_mut(&id) {
            entry.blocked = false;
            entry.in_sync = in_sync;
        }
    }
    table.find_dirty();
    mark_unknown(table, remote, memory);
}

/// Whether the catalog has our name under another machine's id.
pub(super) fn is_foreign(table: &Table, remote: &Remote) -> bool {
    remote
        .node
        .as_ref()
        .is_some_and(|node| !node.id.is_empty() && !node.id.eq_ignore_ascii_case(&table.node.id))
}

fn mark_unknown(table: &mut Table, remote: &Remote, memory: &mut Memory) {
    table.gone_services.retain(|id, gone| {
        gone.blocked = false;
        remote.services.contains_key(id)
    });
    table.gone_checks.retain(|id, gone| {
        gone.blocked = false;
        remote.checks.contains_key(id)
    });
    let services = unknown_services(table, remote);
    let checks = unknown_checks(table, remote);
    if *memory == Memory::Lost {
        let own = |check: &&Arc<v1::Check>| !services.contains(fold(&check.service_id).as_ref());
        let stand_alone = checks
            .iter()
            .filter(own)
            .map(|check| fold(&check.id).into_owned())
            .collect();
        *memory = Memory::Holding {
            services: services.clone(),
            checks: stand_alone,
        };
    }
    if let Memory::Holding {
        services: held,
        checks: held_checks,
    } = memory
    {
        held.retain(|id| services.contains(id));
        held_checks.retain(|id| remote.checks.contains_key(id) && !table.checks.contains_key(id));
    }
    let removable: Vec<String> = services
        .iter()
        .filter(|id| !memory.holds_service(id))
        .cloned()
        .collect();
    for id in removable {
        let revision = table.next_revision();
        table.gone_services.insert(&id, Gone::new(revision));
    }
    let removable: Vec<String> = checks
        .iter()
        .filter(|check| !memory.holds_check(check))
        .map(|check| check.id.clone())
        .collect();
    for id in removable {
        let revision = table.next_revision();
        table.gone_checks.insert(&id, Gone::new(revision));
    }
}

fn unknown_services(table: &Table, remote: &Remote) -> BTreeSet<String> {
    let unknown = |id: &&String| {
        id.as_str() != SERVER_SERVICE
            && !table.services.contains_key(id)
            && !table.gone_services.contains_key(id)
    };
    remote.services.keys().filter(unknown).cloned().collect()
}

/// Checks of the server's own service are not the agent's either.
fn unknown_checks(table: &Table, remote: &Remote) -> Vec<Arc<v1::Check>> {
    let unknown = |check: &&Arc<v1::Check>| {
        let of_server = same_id(&check.service_id, SERVER_SERVICE)
            && !table.services.contains_key(SERVER_SERVICE);
        !same_id(&check.id, GOSSIP_CHECK)
            && !of_server
            && !table.checks.contains_key(&check.id)
            && !table.gone_checks.contains_key(&check.id)
    };
    remote.checks.values().filter(unknown).cloned().collect()
}

/// Services with `enable_tag_override` take their tags from the catalog. `dirty_only`: before a
/// partial sync, so that it does not overwrite them.
pub(super) fn adopt_tags(table: &mut Table, remote: &Remote, dirty_only: bool) {
    let mut changed = Vec::new();
    let all = table.services.iter();
    for (id, entry) in all.filter(|(_, entry)| takes_tags(entry)) {
        if dirty_only && entry.in_sync {
            continue;
        }
        if let Some(theirs) = remote
            .services
            .get(id)
            .filter(|theirs| theirs.tags != entry.local.service.tags)
        {
            changed.push((id.clone(), theirs.tags.clone()));
        }
    }
    for (id, tags) in changed {
        let revision = table.next_revision();
        if let Some(entry) = table.services.get_mut(&id) {
            let service = v1::Service {
                tags,
                ..entry.local.service.clone()
            };
            entry.local = Arc::new(LocalService {
                service,
                ..LocalService::clone(&entry.local)
            });
            entry.revision = revision;
            // Also when it was under way with its own tags.
            if !entry.in_sync {
                table.dirty.service(&id);
            }
        }
    }
}

/// Whether [`adopt_tags`] is worth looking at the catalog for.
pub(super) fn wants_tags(table: &Table) -> bool {
    let mut dirty = table.dirty.services().iter();
    dirty.any(|id| table.services.get(id).is_some_and(takes_tags))
}

fn takes_tags(entry: &ServiceEntry) -> bool {
    entry.local.service.enable_tag_override
}

fn same_node(ours: &v1::Node, theirs: &v1::Node) -> bool {
    ours.id == theirs.id
        && ours.name.eq_ignore_ascii_case(&theirs.name)
        && ours.address == theirs.address
        && ours.tagged_addresses == theirs.tagged_addresses
        && ours.meta == theirs.meta
}

fn same_service(ours: &v1::Service, theirs: &v1::Service) -> bool {
    let bare = |service: &v1::Service| v1::Service {
        create_index: 0,
        modify_index: 0,
        weights: Some(service.weights.unwrap_or(v1::Weights {
            passing: 1,
            warning: 1,
        })),
        ..service.clone()
    };
    bare(ours) == bare(theirs)
}

/// `output_waits`: an output-only change is not due yet, so it does not count.
fn same_check(ours: &v1::Check, theirs: &v1::Check, output_waits: bool) -> bool {
    let bare = |check: &v1::Check| v1::Check {
        create_index: 0,
        modify_index: 0,
        // Kept as each side writes it.
        node: String::new(),
        output: if output_waits {
            String::new()
        } else {
            check.output.clone()
        },
        ..check.clone()
    };
    bare(ours) == bare(theirs)
}
