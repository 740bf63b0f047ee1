//! Queries against one snapshot. Each answers rows and the index of their scope, and notes what
//! it depended on.
//!
//! Owns: which index an answer carries (CONSUL.md B.1, "Index scope per read").
//! Never: authorizes, filters or sorts by distance; callers do.

mod config_entry;
mod coordinate;
mod join_token;
pub(crate) mod kv;
mod mesh;
pub(crate) mod mesh_ca;
mod prepared_query;
pub(crate) mod txn;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::ids::CatalogIndex;
use weft_proto::v1::{AutopilotConfig, Check, Node, ServerKey, Service, Session};

use crate::apply::cluster::autopilot_defaults;
use crate::keys::{self, Pair, PairRef};
use crate::state::State;
use crate::topics::{TableTopic, Topic, Trace};

/// Rows and the index a blocking query resumes from. The index is at least 1, and never lower
/// than the last change visible in the rows, deletions included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// What goes into `X-Consul-Index`.
    pub index: CatalogIndex,
    /// What was asked for.
    pub rows: T,
}

/// One instance and the node it runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instance<'a> {
    /// Where it runs.
    pub node: &'a Arc<Node>,
    /// What runs.
    pub service: &'a Arc<Service>,
}

/// One instance with the checks that decide its health.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceHealth<'a> {
    /// Where it runs.
    pub node: &'a Arc<Node>,
    /// What runs.
    pub service: &'a Arc<Service>,
    /// The node's checks, then the instance's own, each by check id.
    pub checks: Vec<&'a Arc<Check>>,
}

impl<'a> InstanceHealth<'a> {
    /// The instance without its checks.
    #[must_use]
    pub const fn instance(&self) -> Instance<'a> {
        Instance {
            node: self.node,
            service: self.service,
        }
    }
}

/// The same as it lies in the state, for readers that answer many times a second: nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct HealthRow<'a> {
    /// Where it runs.
    pub node: &'a Arc<Node>,
    /// What runs.
    pub service: &'a Arc<Service>,
    /// The node's checks, then the instance's own, each by check id.
    pub checks: &'a [Arc<Check>],
}

/// Queries against one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    pub(crate) state: &'a State,
    pub(crate) trace: &'a Trace,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(state: &'a State, trace: &'a Trace) -> Self {
        Self { state, trace }
    }

    pub(crate) fn answer<T>(&self, index: u64, rows: T) -> Answer<T> {
        Answer {
            index: CatalogIndex(index.max(self.state.scalars.floor).max(1)),
            rows,
        }
    }

    // ---- nodes --------------------------------------------------------------------------

    /// Every node, by name. Scope: the nodes table.
    #[must_use]
    pub fn nodes(&self) -> Answer<Vec<&'a Arc<Node>>> {
        self.trace.note_table(TableTopic::Nodes);
        self.answer(
            self.state.scalars.tables.nodes,
            self.state.nodes.values().collect(),
        )
    }

    /// One node by name, in any case. Scope: the node, its services and its checks.
    #[must_use]
    pub fn node(&self, name: &str) -> Answer<Option<&'a Arc<Node>>> {
        self.answer(
            self.note_node(name),
            self.state.nodes.get(keys::fold(name).as_ref()),
        )
    }

    /// One node by its id. Scope: the node; while there is none, the nodes table.
    #[must_use]
    pub fn node_by_id(&self, id: &str) -> Answer<Option<&'a Arc<Node>>> {
        self.trace.note(|| Topic::NodeId(keys::name(id)));
        match self.state.node_ids.get(keys::fold(id).as_ref()) {
            Some(name) => self.answer(self.note_node(name), self.state.nodes.get(name)),
            None => self.answer(self.state.scalars.tables.nodes, None),
        }
    }

    /// The services of one node, by id. Scope: the node, its services and its checks.
    #[must_use]
    pub fn node_services(&self, node: &str) -> Answer<Vec<&'a Arc<Service>>> {
        let index = self.note_node(node);
        let node = keys::fold(node);
        let rows = self.state.services.range(PairRef(&node, "")..);
        self.answer(
            index,
            rows.take_while(|(key, _)| *key.0 == *node)
                .map(|(_, row)| row)
                .collect(),
        )
    }

    /// Nodes whose address is this one, by name. Scope: the nodes table.
    #[must_use]
    pub fn nodes_by_address(&self, address: IpAddr) -> Answer<Vec<&'a Arc<Node>>> {
        self.trace.note_table(TableTopic::Nodes);
        let keys = self.state.node_addresses.range((address, "".into())..);
        let rows = keys
            .take_while(|key| key.0 == address)
            .filter_map(|key| self.state.nodes.get(&key.1));
        self.answer(self.state.scalars.tables.nodes, rows.collect())
    }

    /// Notes a node's scope and returns its index.
    pub(crate) fn note_node(&self, node: &str) -> u64 {
        self.trace.note(|| Topic::Node(keys::name(node)));
        let state = self.state;
        let node = keys::fold(node);
        let scope = state.node_scopes.get(node.as_ref());
        scope
            .or_else(|| state.extinct_nodes.get(node.as_ref()))
            .map_or(state.missing_floor(), |index| *index)
    }

    // ---- services -----------------------------------------------------------------------

    /// Service names with the union of their instances' tags. Scope: the services table.
    #[must_use]
    pub fn services(&self) -> Answer<BTreeMap<&'a str, BTreeSet<&'a str>>> {
        self.trace.note_table(TableTopic::Services);
        self.answer(self.state.scalars.tables.services, self.names(|_| true))
    }

    /// As [`Reader::services`], of the nodes that `on` accepts. Scope: services and nodes tables.
    #[must_use]
    pub fn services_on(
        &self,
        on: impl Fn(&Node) -> bool,
    ) -> Answer<BTreeMap<&'a str, BTreeSet<&'a str>>> {
        self.trace.note_table(TableTopic::Services);
        self.trace.note_table(TableTopic::Nodes);
        let tables = &self.state.scalars.tables;
        self.answer(tables.services.max(tables.nodes), self.names(on))
    }

    fn names(&self, on: impl Fn(&Node) -> bool) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for row in self.state.groups.values().flat_map(|group| group.values()) {
            if on(&row.node) {
                names
                    .entry(&row.service.name)
                    .or_default()
                    .extend(row.service.tags.iter().map(String::as_str));
            }
        }
        names
    }

    /// Every instance in the catalog, by service name, node and id. Scope: services and nodes tables.
    #[must_use]
    pub fn all_instances(&self) -> Answer<Vec<Instance<'a>>> {
        self.trace.note_table(TableTopic::Services);
        self.trace.note_table(TableTopic::Nodes);
        let tables = &self.state.scalars.tables;
        let rows = self.state.groups.values().flat_map(|group| group.values());
        let rows = rows.map(|row| Instance {
            node: &row.node,
            service: &row.service,
        });
        self.answer(tables.services.max(tables.nodes), rows.collect())
    }

    /// Instances of a service, by node name and id. Scope: the service.
    #[must_use]
    pub fn service_instances(&self, name: &str) -> Answer<Vec<Instance<'a>>> {
        let index = self.note_service(name);
        let rows = self.group(name).map(|row| Instance {
            node: &row.node,
            service: &row.service,
        });
        self.answer(index, rows.collect())
    }

    /// Instances of a service with their checks, by node name and id. Scope: the service.
    #[must_use]
    pub fn health_service(&self, name: &str) -> Answer<Vec<InstanceHealth<'a>>> {
        let index = self.note_service(name);
        let rows = self.group(name).map(|row| InstanceHealth {
            node: &row.node,
            service: &row.service,
            checks: row.checks.iter().collect(),
        });
        self.answer(index, rows.collect())
    }

    /// The rows of [`Reader::health_service`], one after the other and without an index. Scope: the service.
    pub fn health_rows(&self, name: &str) -> impl Iterator<Item = HealthRow<'a>> + use<'a> {
        self.trace.note(|| Topic::Service(keys::name(name)));
        self.group(name).map(|row| HealthRow {
            node: &row.node,
            service: &row.service,
            checks: &row.checks,
        })
    }

    pub(crate) fn group(
        &self,
        name: &str,
    ) -> impl Iterator<Item = &'a crate::state::InstanceRow> + use<'a> {
        let group = self.state.groups.get(keys::fold(name).as_ref());
        group
            .into_iter()
            .flat_map(|group| group.values())
            .map(|row| &**row)
    }

    /// The index a service's answers carry, without the rows. Notes the service's scope.
    #[must_use]
    pub fn service_index(&self, name: &str) -> CatalogIndex {
        self.answer(self.note_service(name), ()).index
    }

    pub(crate) fn note_service(&self, name: &str) -> u64 {
        self.trace.note(|| Topic::Service(keys::name(name)));
        let state = self.state;
        let name = keys::fold(name);
        let scope = state.service_scopes.get(name.as_ref());
        scope
            .or_else(|| state.extinct_services.get(name.as_ref()))
            .map_or(state.missing_floor(), |index| *index)
    }

    /// Instances whose own address is this one. Scope: services and nodes tables.
    #[must_use]
    pub fn services_by_address(&self, address: IpAddr) -> Answer<Vec<Instance<'a>>> {
        self.trace.note_table(TableTopic::Services);
        self.trace.note_table(TableTopic::Nodes);
        let keys = self
            .state
            .service_addresses
            .range((address, "".into(), "".into())..);
        let rows = keys.take_while(|key| key.0 == address).filter_map(|key| {
            let service = self.state.services.get(&PairRef(&key.1, &key.2))?;
            Some(Instance {
                node: self.state.nodes.get(&key.1)?,
                service,
            })
        });
        let tables = &self.state.scalars.tables;
        self.answer(tables.services.max(tables.nodes), rows.collect())
    }

    // ---- checks -------------------------------------------------------------------------

    /// Checks of a node and of its services, by check id. Scope: the node.
    #[must_use]
    pub fn checks_of_node(&self, node: &str) -> Answer<Vec<&'a Arc<Check>>> {
        let index = self.note_node(node);
        let node = keys::fold(node);
        let rows = self.state.checks.range(PairRef(&node, "")..);
        self.answer(
            index,
            rows.take_while(|(key, _)| *key.0 == *node)
                .map(|(_, row)| row)
                .collect(),
        )
    }

    /// Checks bound to a service's instances, by node name and check id. Scope: the service.
    #[must_use]
    pub fn checks_of_service(&self, name: &str) -> Answer<Vec<&'a Arc<Check>>> {
        let index = self.note_service(name);
        let rows = self.group(name).flat_map(|row| {
            row.checks
                .iter()
                .filter(|check| !check.service_id.is_empty())
        });
        self.answer(index, rows.collect())
    }

    /// Checks with a status, or all with `any`, by node and check id. Scope: the checks table.
    #[must_use]
    pub fn checks_in_state(&self, status: &str) -> Answer<Vec<&'a Arc<Check>>> {
        self.trace.note_table(TableTopic::Checks);
        let index = self.state.scalars.tables.checks;
        if status == "any" {
            return self.answer(index, self.state.checks.values().collect());
        }
        let keys = self
            .state
            .checks_by_status
            .range(keys::TripleRef(status, "", "")..);
        let rows = keys
            .take_while(|key| *key.0 == *status)
            .filter_map(|key| self.state.checks.get(&PairRef(&key.1, &key.2)));
        self.answer(index, rows.collect())
    }

    // ---- sessions -----------------------------------------------------------------------

    /// One session. Scope: the session; while there is none, the sessions table.
    #[must_use]
    pub fn session(&self, id: &str) -> Answer<Option<&'a Arc<Session>>> {
        self.trace.note(|| Topic::Session(keys::name(id)));
        let row = self.state.sessions.get(keys::fold(id).as_ref());
        self.answer(
            row.map_or(self.state.scalars.tables.sessions, |row| row.modify_index),
            row,
        )
    }

    /// Every session, by id. Scope: the sessions table.
    #[must_use]
    pub fn sessions(&self) -> Answer<Vec<&'a Arc<Session>>> {
        self.trace.note_table(TableTopic::Sessions);
        self.answer(
            self.state.scalars.tables.sessions,
            self.state.sessions.values().collect(),
        )
    }

    /// The sessions of one node, by id. Scope: the sessions table.
    #[must_use]
    pub fn sessions_of_node(&self, node: &str) -> Answer<Vec<&'a Arc<Session>>> {
        self.trace.note_table(TableTopic::Sessions);
        let node = keys::name(node);
        let keys = self
            .state
            .sessions_by_node
            .range(Pair(node.clone(), "".into())..);
        let rows = keys
            .take_while(|key| key.0 == node)
            .filter_map(|key| self.state.sessions.get(&key.1));
        self.answer(self.state.scalars.tables.sessions, rows.collect())
    }

    // ---- the cluster itself ---------------------------------------------------------------

    /// Autopilot's settings, Consul's defaults until set. Scope: the operator table.
    #[must_use]
    pub fn autopilot(&self) -> Answer<AutopilotConfig> {
        self.trace.note_table(TableTopic::Operator);
        let rows = self
            .state
            .autopilot
            .as_deref()
            .cloned()
            .unwrap_or_else(autopilot_defaults);
        self.answer(self.state.scalars.tables.operator, rows)
    }

    /// The key bound to a Raft id. Scope: the operator table.
    #[must_use]
    pub fn server_key(&self, raft_id: &str) -> Answer<Option<&'a Arc<ServerKey>>> {
        self.trace.note_table(TableTopic::Operator);
        let row = self.state.server_keys.get(keys::fold(raft_id).as_ref());
        self.answer(self.state.scalars.tables.operator, row)
    }

    /// Every bound key, by Raft id. Scope: the operator table.
    #[must_use]
    pub fn server_keys(&self) -> Answer<Vec<&'a Arc<ServerKey>>> {
        self.trace.note_table(TableTopic::Operator);
        self.answer(
            self.state.scalars.tables.operator,
            self.state.server_keys.values().collect(),
        )
    }
}
