//! The only ways to change a row: each keeps the row, its secondary indexes, the indexes of its
//! scopes and the set of touched topics together.
//!
//! Owns: [`Change`], one command's view of the working state.
//! Never: decides whether a change may happen; the modules of [`crate::apply`] do.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use weft_proto::v1;

use crate::config_entry::{Entry, Kind, chain};
use crate::keys::{self, Name, Pair, PairRef, Triple, TripleRef};
use crate::mesh::{self, OFFERS};
use crate::prepared_query;
use crate::state::{Group, InstanceRow, State};
use crate::topics::{TableTopic, Topic, Touched};

/// One command being applied: the working state, what it touched, and the index it is given.
pub(crate) struct Change<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) touched: &'a mut Touched,
    pub(crate) index: u64,
}

impl Change<'_> {
    // ---- scopes -------------------------------------------------------------------------

    pub(crate) fn bump_table(&mut self, table: TableTopic) {
        let tables = &mut self.state.scalars.tables;
        *match table {
            TableTopic::Nodes => &mut tables.nodes,
            TableTopic::Services => &mut tables.services,
            TableTopic::Checks => &mut tables.checks,
            TableTopic::Kv => &mut tables.kv,
            TableTopic::Sessions => &mut tables.sessions,
            TableTopic::Operator => &mut tables.operator,
            TableTopic::ConfigEntries => &mut tables.config_entries,
            TableTopic::Coordinates => &mut tables.coordinates,
            // Answers about queries carry the index of the whole state.
            TableTopic::PreparedQueries => return self.touched.table(table),
            // The row has its own.
            TableTopic::MeshCa => return self.touched.table(table),
        } = self.index;
        self.touched.table(table);
    }

    fn bump_node(&mut self, node: &Name) {
        if self.state.nodes.contains_key(node) {
            self.state.node_scopes.insert(node.clone(), self.index);
            self.state.extinct_nodes.remove(node);
        } else {
            self.state.node_scopes.remove(node);
            self.state.extinct_nodes.insert(node.clone(), self.index);
        }
        self.touched.row(Topic::Node(node.clone()));
    }

    fn bump_service(&mut self, service: &Name) {
        if self.state.groups.contains_key(service) {
            self.state
                .service_scopes
                .insert(service.clone(), self.index);
            self.state.extinct_services.remove(service);
        } else {
            self.state.service_scopes.remove(service);
            self.state
                .extinct_services
                .insert(service.clone(), self.index);
        }
        self.touched.row(Topic::Service(service.clone()));
    }

    fn bump_mesh(&mut self, what: &str, service: Name) {
        let key = Pair(what.into(), service);
        self.touched.row(Topic::Mesh(key.0.clone(), key.1.clone()));
        self.state.mesh_scopes.insert(key, self.index);
    }

    // ---- nodes --------------------------------------------------------------------------

    /// Inserts or replaces a node; every service on it moves with it.
    pub(crate) fn put_node(&mut self, node: v1::Node) {
        let key = keys::name(&node.name);
        let node = Arc::new(node);
        let before = self.state.nodes.insert(key.clone(), node.clone());
        if let Some(before) = &before {
            self.unindex_node(&key, before);
        }
        if !node.id.is_empty() {
            let id = keys::name(&node.id);
            self.state.node_ids.insert(id.clone(), key.clone());
            self.touched.row(Topic::NodeId(id));
        }
        if let Ok(address) = node.address.parse::<IpAddr>() {
            self.state.node_addresses.insert((address, key.clone()));
        }
        self.bump_table(TableTopic::Nodes);
        self.bump_node(&key);
        if before.is_some() {
            self.refresh_node(&key);
        }
    }

    /// Removes a node's row. Its services, checks and sessions must be gone already.
    pub(crate) fn drop_node(&mut self, key: &Name) {
        let Some(before) = self.state.nodes.remove(key) else {
            return;
        };
        self.unindex_node(key, &before);
        self.bump_table(TableTopic::Nodes);
        self.bump_node(key);
        if self.state.coordinates.remove(key).is_some() {
            self.bump_table(TableTopic::Coordinates);
        }
    }

    /// Where a node lies; nothing else of the node changes by it.
    pub(crate) fn put_coordinate(&mut self, node: &Name, coordinate: v1::Coordinate) {
        let known = self.state.coordinates.get(node);
        if known.is_some_and(|known| **known == coordinate) {
            return;
        }
        let coordinate = Arc::new(coordinate);
        self.state.coordinates.insert(node.clone(), coordinate);
        self.bump_table(TableTopic::Coordinates);
    }

    /// The CA, in the place of the one before.
    pub(crate) fn put_mesh_ca(&mut self, row: v1::MeshCa) {
        self.state
            .mesh_ca
            .insert(crate::apply::mesh_ca::KEY.into(), Arc::new(row));
        self.bump_table(TableTopic::MeshCa);
    }

    fn unindex_node(&mut self, key: &Name, before: &v1::Node) {
        if !before.id.is_empty() {
            let id = keys::name(&before.id);
            if self.state.node_ids.get(&id) == Some(key) {
                self.state.node_ids.remove(&id);
            }
            self.touched.row(Topic::NodeId(id));
        }
        if let Ok(address) = before.address.parse::<IpAddr>() {
            self.state.node_addresses.remove(&(address, key.clone()));
        }
    }

    // ---- services -----------------------------------------------------------------------

    pub(crate) fn put_service(&mut self, node: &Name, service: v1::Service) {
        let id = keys::name(&service.id);
        let service = Arc::new(service);
        let before = self
            .state
            .services
            .insert(Pair(node.clone(), id.clone()), service.clone());
        if let Some(before) = &before {
            self.unindex_service(node, &id, before);
        }
        if let Ok(address) = service.address.parse::<IpAddr>() {
            self.state
                .service_addresses
                .insert((address, node.clone(), id.clone()));
        }
        self.refresh_instance(node, &id);
        let now_named = keys::name(&service.name);
        if let Some(was_named) = before
            .map(|before| keys::name(&before.name))
            .filter(|was| *was != now_named)
        {
            self.bump_service(&was_named);
        }
        self.bump_service(&now_named);
        self.bump_table(TableTopic::Services);
        self.bump_node(node);
    }

    /// Removes a service's row. Its checks must be gone already.
    pub(crate) fn drop_service(&mut self, node: &Name, id: &Name) {
        let Some(before) = self.state.services.remove(&PairRef(node, id)) else {
            return;
        };
        self.unindex_service(node, id, &before);
        self.bump_service(&keys::name(&before.name));
        self.bump_table(TableTopic::Services);
        self.bump_node(node);
    }

    fn unindex_service(&mut self, node: &Name, id: &Name, before: &v1::Service) {
        if let Ok(address) = before.address.parse::<IpAddr>() {
            self.state
                .service_addresses
                .remove(&(address, node.clone(), id.clone()));
        }
        let name = keys::fold(&before.name);
        let key = PairRef(node, id);
        let row = leave(&mut self.state.groups, &name, key);
        if let Some(offered) = row.and_then(|row| row.offers.clone()) {
            leave(&mut self.state.offers, &offered, key);
            self.bump_mesh(OFFERS, offered);
        }
    }

    // ---- checks -------------------------------------------------------------------------

    pub(crate) fn put_check(&mut self, node: &Name, check: v1::Check) {
        let id = keys::name(&check.id);
        let check = Arc::new(check);
        let before = self
            .state
            .checks
            .insert(Pair(node.clone(), id.clone()), check.clone());
        if let Some(before) = &before {
            self.unindex_check(node, &id, before);
        }
        let service = keys::name(&check.service_id);
        self.state
            .checks_by_instance
            .insert(Triple(node.clone(), service, id.clone()));
        self.state.checks_by_status.insert(Triple(
            Arc::from(check.status.as_str()),
            node.clone(),
            id,
        ));
        if let Some(before) = before.filter(|before| before.service_id != check.service_id) {
            self.check_scope_changed(node, &before);
        }
        self.check_scope_changed(node, &check);
        self.bump_table(TableTopic::Checks);
        self.bump_node(node);
    }

    pub(crate) fn drop_check(&mut self, node: &Name, id: &Name) {
        let Some(before) = self.state.checks.remove(&PairRef(node, id)) else {
            return;
        };
        self.unindex_check(node, id, &before);
        self.check_scope_changed(node, &before);
        self.bump_table(TableTopic::Checks);
        self.bump_node(node);
    }

    fn unindex_check(&mut self, node: &Name, id: &Name, before: &v1::Check) {
        let service = keys::name(&before.service_id);
        self.state
            .checks_by_instance
            .remove(&Triple(node.clone(), service, id.clone()));
        self.state.checks_by_status.remove(&Triple(
            Arc::from(before.status.as_str()),
            node.clone(),
            id.clone(),
        ));
    }

    fn check_scope_changed(&mut self, node: &Name, check: &v1::Check) {
        if check.service_id.is_empty() {
            self.refresh_node(node);
            return;
        }
        let id = keys::name(&check.service_id);
        self.refresh_instance(node, &id);
        if let Some(service) = self.state.services.get(&PairRef(node, &id)) {
            let name = keys::name(&service.name);
            self.bump_service(&name);
        }
    }

    // ---- the instances' ready-made rows -----------------------------------------------------

    /// Rebuilds and bumps every service on a node.
    fn refresh_node(&mut self, node: &Name) {
        for id in self.service_ids(node) {
            self.refresh_instance(node, &id);
            if let Some(service) = self.state.services.get(&PairRef(node, &id)) {
                let name = keys::name(&service.name);
                self.bump_service(&name);
            }
        }
    }

    pub(crate) fn refresh_instance(&mut self, node: &Name, id: &Name) {
        let state = &mut *self.state;
        let Some(service) = state.services.get(&PairRef(node, id)).cloned() else {
            return;
        };
        let Some(machine) = state.nodes.get(node).cloned() else {
            return;
        };
        let checks = state
            .instance_checks(node, "")
            .chain(state.instance_checks(node, id))
            .cloned()
            .collect();
        let name = keys::name(&service.name);
        let key = Pair(node.clone(), id.clone());
        // Read again only when the registration is another one.
        let known = state.groups.get(&name).and_then(|group| group.get(&key));
        let offers = match known.filter(|row| Arc::ptr_eq(&row.service, &service)) {
            Some(row) => row.offers.clone(),
            None => mesh::offered(&service),
        };
        let row = Arc::new(InstanceRow {
            node: machine,
            service,
            checks,
            offers: offers.clone(),
        });
        if let Some(offered) = offers {
            let group = state.offers.entry(offered.clone()).or_default();
            group.insert(key.clone(), row.clone());
            self.bump_mesh(OFFERS, offered);
        }
        let group = self.state.groups.entry(name).or_default();
        group.insert(key, row);
    }

    /// Folded ids of the services on a node.
    pub(crate) fn service_ids(&self, node: &Name) -> Vec<Name> {
        let from = PairRef(node, "");
        self.state
            .services
            .range(from..)
            .take_while(|(key, _)| key.0 == *node)
            .map(|(key, _)| key.1.clone())
            .collect()
    }

    /// Folded ids of the checks on a node.
    pub(crate) fn check_ids(&self, node: &Name) -> Vec<Name> {
        let from = PairRef(node, "");
        self.state
            .checks
            .range(from..)
            .take_while(|(key, _)| key.0 == *node)
            .map(|(key, _)| key.1.clone())
            .collect()
    }

    /// Folded ids of the checks of one instance.
    pub(crate) fn instance_check_ids(&self, node: &Name, service: &Name) -> Vec<Name> {
        self.state
            .checks_by_instance
            .range(TripleRef(node, service, "")..)
            .take_while(|key| key.0 == *node && key.1 == *service)
            .map(|key| key.2.clone())
            .collect()
    }

    // ---- keys ---------------------------------------------------------------------------

    pub(crate) fn put_kv(&mut self, entry: v1::KvEntry) {
        let key = entry.key.clone();
        let entry = Arc::new(entry);
        let before = self.state.kv.insert(key.clone(), entry.clone());
        let was_held = before.as_ref().map_or("", |before| before.session.as_str());
        if was_held != entry.session {
            self.moved_lock(&key, was_held, &entry.session);
        }
        self.bump_table(TableTopic::Kv);
        self.touched.row(Topic::Key(key));
    }

    /// Removes a key. The caller leaves the tombstone: of the key, or of its tree.
    pub(crate) fn drop_kv(&mut self, key: &Bytes) -> bool {
        let Some(before) = self.state.kv.remove(&key[..]) else {
            return false;
        };
        self.moved_lock(key, &before.session, "");
        self.bump_table(TableTopic::Kv);
        self.touched.row(Topic::Key(key.clone()));
        true
    }

    fn moved_lock(&mut self, key: &Bytes, from: &str, to: &str) {
        if !from.is_empty() {
            self.state.held.remove(&(keys::name(from), key.clone()));
        }
        if !to.is_empty() {
            self.state.held.insert((keys::name(to), key.clone()));
        }
    }

    // ---- sessions -----------------------------------------------------------------------

    /// Inserts or replaces a session. `visible`: the change shows in answers (a renewal does not).
    pub(crate) fn put_session(&mut self, session: v1::Session, visible: bool) {
        let key = keys::name(&session.id);
        let session = Arc::new(session);
        let before = self.state.sessions.insert(key.clone(), session.clone());
        if let Some(before) = before {
            self.unindex_session(&key, &before);
        }
        let node = keys::name(&session.node);
        self.state
            .sessions_by_node
            .insert(Pair(node.clone(), key.clone()));
        for check in session.node_checks.iter().chain(&session.service_checks) {
            self.state.sessions_by_check.insert(Triple(
                node.clone(),
                keys::name(check),
                key.clone(),
            ));
        }
        if let Some(deadline) = deadline(&session) {
            self.state.deadlines.insert((deadline, key.clone()));
        }
        if visible {
            self.bump_table(TableTopic::Sessions);
            self.touched.row(Topic::Session(key));
        }
    }

    pub(crate) fn drop_session(&mut self, key: &Name) {
        let Some(before) = self.state.sessions.remove(key) else {
            return;
        };
        self.unindex_session(key, &before);
        self.bump_table(TableTopic::Sessions);
        self.touched.row(Topic::Session(key.clone()));
    }

    // ---- prepared queries -----------------------------------------------------------------

    pub(crate) fn put_query(&mut self, query: v1::PreparedQuery) {
        let id = keys::name(&query.id);
        self.drop_query(&id);
        if let Some(name) = prepared_query::name_key(&query) {
            self.state.query_names.insert(name, id.clone());
        }
        if !query.session.is_empty() {
            let bound = Pair(keys::name(&query.session), id.clone());
            self.state.queries_by_session.insert(bound);
        }
        self.state.queries.insert(id, Arc::new(query));
        self.bump_table(TableTopic::PreparedQueries);
    }

    /// Removes a query; answers whether there was one.
    pub(crate) fn drop_query(&mut self, id: &Name) -> bool {
        let Some(before) = self.state.queries.remove(id) else {
            return false;
        };
        if let Some(name) = prepared_query::name_key(&before) {
            self.state.query_names.remove(&name);
        }
        let bound = Pair(keys::name(&before.session), id.clone());
        self.state.queries_by_session.remove(&bound);
        self.bump_table(TableTopic::PreparedQueries);
        true
    }

    // ---- config entries -------------------------------------------------------------------

    pub(crate) fn put_config(&mut self, entry: Entry) {
        let (kind, name) = (Name::from(entry.kind.as_str()), keys::name(&entry.name));
        let entry = Arc::new(entry);
        for service in chain::references(&entry) {
            let reference = Triple(service, kind.clone(), name.clone());
            self.state.config_references.insert(reference);
        }
        for service in mesh::linked(&entry) {
            let link = Triple(kind.clone(), service, name.clone());
            self.state.gateway_links.insert(link);
        }
        let key = Pair(kind.clone(), name.clone());
        self.state.config_bytes += entry.json().len() as u64;
        let before = self.state.config.insert(key, entry.clone());
        if let Some(before) = &before {
            self.state.config_bytes -= before.json().len() as u64;
            self.unrefer(before, Some(&entry));
        }
        self.relink(before.as_deref(), Some(&entry));
        self.bump_config(kind, name);
    }

    /// Removes an entry; answers whether there was one.
    pub(crate) fn drop_config(&mut self, kind: Kind, name: &Name) -> bool {
        let Some(before) = self.state.config.remove(&PairRef(kind.as_str(), name)) else {
            return false;
        };
        self.state.config_bytes -= before.json().len() as u64;
        self.unrefer(&before, None);
        self.relink(Some(&before), None);
        self.bump_config(Name::from(kind.as_str()), name.clone());
        true
    }

    fn unrefer(&mut self, before: &Entry, now: Option<&Entry>) {
        let kept = now.map(chain::references).unwrap_or_default();
        let (kind, name) = (Name::from(before.kind.as_str()), keys::name(&before.name));
        for service in chain::references(before).difference(&kept) {
            let reference = Triple(service.clone(), kind.clone(), name.clone());
            self.state.config_references.remove(&reference);
        }
    }

    /// Removes the links of the entry before that are no more, and bumps those that changed.
    fn relink(&mut self, before: Option<&Entry>, now: Option<&Entry>) {
        let linked = |entry: Option<&Entry>| entry.map(mesh::linked).unwrap_or_default();
        let (were, are) = (linked(before), linked(now));
        let Some(entry) = before.or(now) else { return };
        for service in were.difference(&are) {
            let kind = Name::from(entry.kind.as_str());
            let link = Triple(kind, service.clone(), keys::name(&entry.name));
            self.state.gateway_links.remove(&link);
        }
        for service in were.symmetric_difference(&are) {
            self.bump_mesh(entry.kind.as_str(), service.clone());
        }
    }

    fn bump_config(&mut self, kind: Name, name: Name) {
        self.state.config_kinds.insert(kind.clone(), self.index);
        self.bump_table(TableTopic::ConfigEntries);
        self.touched.row(Topic::ConfigKind(kind.clone()));
        self.touched.row(Topic::ConfigEntry(kind, name));
    }

    fn unindex_session(&mut self, key: &Name, before: &v1::Session) {
        let node = keys::name(&before.node);
        self.state
            .sessions_by_node
            .remove(&Pair(node.clone(), key.clone()));
        for check in before.node_checks.iter().chain(&before.service_checks) {
            self.state.sessions_by_check.remove(&Triple(
                node.clone(),
                keys::name(check),
                key.clone(),
            ));
        }
        if let Some(deadline) = deadline(before) {
            self.state.deadlines.remove(&(deadline, key.clone()));
        }
    }
}

/// Takes an instance out of a group, and an empty group out of the groups.
fn leave(
    groups: &mut OrdMap<Name, Group>,
    name: &str,
    key: PairRef<'_>,
) -> Option<Arc<InstanceRow>> {
    let group = groups.get_mut(name)?;
    let row = group.remove(&key);
    if group.is_empty() {
        groups.remove(name);
    }
    row
}

/// When a session runs out: twice its TTL after the last renewal, as Consul's leader does it.
pub(crate) fn deadline(session: &v1::Session) -> Option<u64> {
    (session.ttl_millis > 0).then(|| {
        session
            .renewed_at_millis
            .saturating_add(session.ttl_millis.saturating_mul(2))
    })
}
