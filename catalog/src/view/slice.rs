//! The sending side: a view's rows in the full state, and how they differ from those before.
//!
//! Owns: which rows and indexes stand behind a traced topic.
//! Never: copies a row that did not change.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weft_proto::v1;

use super::frame::{Gone, VIEW_PART_BYTES, ViewFrame};
use super::{Numbers, RowKind, Sums, ViewTopic, fingerprint};
use crate::config_entry::Entry;
use crate::digest;
use crate::keys::{Name, Pair, PairRef, TripleRef};
use crate::mesh::OFFERS;
use crate::prepared_query::Expressions;
use crate::record::{Frame, IndexRow, IndexTable, Record};
use crate::state::{Group, State};
use crate::topics::{TableTopic, Topic, Topics};

/// Topics that the reads of one view may depend on; a view of more is refused.
pub const VIEW_TOPICS_MAX: usize = 1_024;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(RowKind, Name, Name);

#[derive(Clone, Debug)]
enum Row {
    Node(Arc<v1::Node>),
    Check(Arc<v1::Check>),
    Service(Arc<v1::Service>),
    ConfigEntry(Arc<Entry>),
    PreparedQuery(Arc<v1::PreparedQuery>),
    Coordinate(Arc<v1::Coordinate>),
    /// Without keys.
    MeshCa(Arc<v1::MeshCa>),
}

impl Row {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Node(a), Self::Node(b)) => Arc::ptr_eq(a, b),
            (Self::Check(a), Self::Check(b)) => Arc::ptr_eq(a, b),
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b),
            (Self::ConfigEntry(a), Self::ConfigEntry(b)) => Arc::ptr_eq(a, b),
            (Self::PreparedQuery(a), Self::PreparedQuery(b)) => Arc::ptr_eq(a, b),
            (Self::Coordinate(a), Self::Coordinate(b)) => Arc::ptr_eq(a, b),
            (Self::MeshCa(a), Self::MeshCa(b)) => a == b,
            _ => false,
        }
    }

    fn digest(&self, key: &Key) -> u64 {
        let pair = || Pair(key.1.clone(), key.2.clone());
        match self {
            Self::Node(row) => digest::row(&key.1, row),
            Self::Check(row) => digest::row(&pair(), row),
            Self::Service(row) => digest::row(&pair(), row),
            Self::ConfigEntry(row) => digest::row(&pair(), row),
            Self::PreparedQuery(row) => digest::row(&key.1, row),
            Self::Coordinate(row) => digest::row(&key.1, row),
            Self::MeshCa(row) => digest::row(&key.1, row),
        }
    }

    fn record(&self, key: &Key) -> Frame {
        let record = match self {
            Self::Node(row) => Record::Node(v1::Node::clone(row)),
            Self::Check(row) => Record::Check(v1::Check::clone(row)),
            Self::Service(row) => Record::Service(v1::NodeService {
                node: key.1.to_string(),
                service: Some(v1::Service::clone(row)),
            }),
            Self::ConfigEntry(row) => Record::ConfigEntry(row.row()),
            Self::PreparedQuery(row) => Record::PreparedQuery(v1::PreparedQuery::clone(row)),
            Self::Coordinate(row) => Record::Coordinate(v1::Coordinate::clone(row)),
            Self::MeshCa(row) => Record::MeshCa(v1::MeshCa::clone(row)),
        };
        Frame {
            record: Some(record),
        }
    }
}

/// A view's content at one moment, as references into the state.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    rows: BTreeMap<Key, (Row, u64)>,
    sums: Sums,
    numbers: Numbers,
    reaped: u64,
    indexes: Vec<IndexRow>,
    index: u64,
    restore_epoch: u64,
    fingerprint: u64,
}

/// What makes a slice out of the one before.
#[derive(Clone, Debug)]
pub struct Change {
    /// The frame, encoded.
    pub frame: Bytes,
    /// [`Slice::fingerprint`] before.
    pub base: u64,
    /// [`Slice::fingerprint`] after.
    pub fingerprint: u64,
}

impl Slice {
    /// The view of `topic` in `state`, and what to watch to learn when it is another one. `before`
    /// spares the rows that are still the same from being read again.
    ///
    /// `None`: it depends on more than [`VIEW_TOPICS_MAX`] topics.
    #[must_use]
    pub fn of(
        state: &State,
        topic: &ViewTopic,
        before: Option<&Self>,
        expressions: &Expressions,
    ) -> Option<(Self, Topics)> {
        let topics = topic.topics(state, expressions);
        if topics.len() > VIEW_TOPICS_MAX {
            return None;
        }
        let mut collect = Collect {
            state,
            before: before.map(|before| &before.rows),
            slice: Self::default(),
            none: Name::from(""),
        };
        match topic {
            // Both tables are watched, but few of their rows are wanted.
            ViewTopic::Address(ip) => collect.address(*ip),
            ViewTopic::Query(name) => {
                collect.query(name);
                collect.topics(&topics);
            }
            _ => collect.topics(&topics),
        }
        Some((collect.finish(), topics))
    }

    /// Names the content.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The state's index that it is as of.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Of the state it was taken from.
    #[must_use]
    pub const fn restore_epoch(&self) -> u64 {
        self.restore_epoch
    }

    /// What makes this slice out of `before`; `None` when the content is the same.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Change> {
        if self.fingerprint == before.fingerprint && self.restore_epoch == before.restore_epoch {
            return None;
        }
        let mut frame = self.frame(false);
        frame.base = before.fingerprint;
        for (key, (row, digest)) in &self.rows {
            if before.rows.get(key).is_none_or(|(_, was)| was != digest) {
                frame.rows.push(row.record(key));
            }
        }
        let gone = before
            .rows
            .keys()
            .filter(|key| !self.rows.contains_key(key));
        frame.gone = gone
            .map(|key| Gone {
                kind: key.0.into(),
                first: key.1.to_string(),
                second: key.2.to_string(),
            })
            .collect();
        Some(Change {
            frame: frame.encode_to_vec().into(),
            base: before.fingerprint,
            fingerprint: self.fingerprint,
        })
    }

    /// The whole of it in parts of about [`VIEW_PART_BYTES`].
    #[must_use]
    pub fn whole(&self) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut frame = self.frame(true);
        let mut size = 0;
        for (key, (row, _)) in &self.rows {
            let record = row.record(key);
            let bytes = record.encoded_len();
            if size + bytes > VIEW_PART_BYTES && size > 0 {
                frame.more = true;
                frame.indexes.clear();
                parts.push(frame.encode_to_vec().into());
                frame = self.frame(parts.is_empty());
                size = 0;
            }
            size += bytes;
            frame.rows.push(record);
        }
        parts.push(frame.encode_to_vec().into());
        parts
    }

    fn frame(&self, whole: bool) -> ViewFrame {
        ViewFrame {
            whole,
            index: self.index,
            restore_epoch: self.restore_epoch,
            fingerprint: self.fingerprint,
            floor: self.numbers.floor,
            reaped: self.reaped,
            nodes: self.numbers.nodes,
            services: self.numbers.services,
            coordinates: self.numbers.coordinates,
            indexes: self.indexes.clone(),
            ..ViewFrame::default()
        }
    }
}

struct Collect<'a> {
    state: &'a State,
    before: Option<&'a BTreeMap<Key, (Row, u64)>>,
    slice: Slice,
    /// The second part of a key that has one part.
    none: Name,
}

impl Collect<'_> {
    fn topics(&mut self, topics: &Topics) {
        for topic in topics.iter() {
            self.topic(topic);
        }
    }

    fn topic(&mut self, topic: &Topic) {
        let state = self.state;
        match topic {
            Topic::Service(name) => {
                if let Some(group) = state.groups.get(name) {
                    self.group(group);
                }
                self.scope(
                    IndexTable::ServiceScope,
                    state.service_scopes.get(name),
                    name,
                );
                let gone = state.extinct_services.get(name);
                self.scope(IndexTable::ExtinctService, gone, name);
            }
            Topic::Node(name) => self.node_with_all(name),
            Topic::Mesh(what, service) => self.mesh(what, service),
            Topic::ConfigEntry(kind, name) => {
                match state.config.get(&PairRef(kind, name)) {
                    Some(entry) => self.config(kind, name, entry),
                    None => self.kind_index(kind),
                };
            }
            Topic::ConfigKind(kind) => {
                for (key, entry) in state.config.range(PairRef(kind, "")..) {
                    if key.0 != *kind {
                        break;
                    }
                    self.config(&key.0, &key.1, entry);
                }
                self.kind_index(kind);
            }
            Topic::Table(TableTopic::Nodes) => {
                self.slice.numbers.nodes = state.scalars.tables.nodes;
                for (name, node) in state.nodes.iter() {
                    self.put_one(RowKind::Node, name, Row::Node(node.clone()));
                }
            }
            Topic::Table(TableTopic::Services) => {
                self.slice.numbers.services = state.scalars.tables.services;
                for (key, service) in state.services.iter() {
                    self.put(
                        RowKind::Service,
                        &key.0,
                        &key.1,
                        Row::Service(service.clone()),
                    );
                    self.node(&key.0);
                }
            }
            Topic::Table(TableTopic::Coordinates) => {
                self.slice.numbers.coordinates = state.scalars.tables.coordinates;
                for (node, row) in state.coordinates.iter() {
                    self.put_one(RowKind::Coordinate, node, Row::Coordinate(row.clone()));
                }
            }
            Topic::Table(TableTopic::MeshCa) => {
                for (key, row) in state.mesh_ca.iter() {
                    let seen = crate::read::mesh_ca::without_keys(row);
                    self.put_one(RowKind::MeshCa, key, Row::MeshCa(Arc::new(seen)));
                }
            }
            // No view is of these yet; a query's row is put in by name.
            Topic::Table(_)
            | Topic::NodeId(_)
            | Topic::Session(_)
            | Topic::Key(_)
            | Topic::Prefix(_) => {}
        }
    }

    fn group(&mut self, group: &Group) {
        for (key, row) in group {
            self.put_one(RowKind::Node, &key.0, Row::Node(row.node.clone()));
            self.put(
                RowKind::Service,
                &key.0,
                &key.1,
                Row::Service(row.service.clone()),
            );
            self.checks(&key.0, "");
            self.checks(&key.0, &key.1);
        }
    }

    /// Checks of an instance; of the node alone when `service` is empty.
    fn checks(&mut self, node: &Name, service: &str) {
        let state = self.state;
        for key in state
            .checks_by_instance
            .range(TripleRef(node, service, "")..)
        {
            if key.0 != *node || *key.1 != *service {
                break;
            }
            if let Some(check) = state.checks.get(&PairRef(node, &key.2)) {
                self.put(RowKind::Check, node, &key.2, Row::Check(check.clone()));
            }
        }
    }

    fn node(&mut self, name: &Name) {
        if let Some(node) = self.state.nodes.get(name) {
            self.put_one(RowKind::Node, name, Row::Node(node.clone()));
        }
    }

    fn node_with_all(&mut self, name: &Name) {
        let state = self.state;
        self.node(name);
        for (key, service) in state.services.range(PairRef(name, "")..) {
            if key.0 != *name {
                break;
            }
            self.put(
                RowKind::Service,
                name,
                &key.1,
                Row::Service(service.clone()),
            );
        }
        for (key, check) in state.checks.range(PairRef(name, "")..) {
            if key.0 != *name {
                break;
            }
            self.put(RowKind::Check, name, &key.1, Row::Check(check.clone()));
        }
        self.scope(IndexTable::NodeScope, state.node_scopes.get(name), name);
        self.scope(IndexTable::ExtinctNode, state.extinct_nodes.get(name), name);
    }

    fn mesh(&mut self, what: &Name, service: &Name) {
        let state = self.state;
        if **what == *OFFERS {
            if let Some(group) = state.offers.get(service) {
                self.group(group);
            }
        } else {
            for link in state.gateway_links.range(TripleRef(what, service, "")..) {
                if link.0 != *what || link.1 != *service {
                    break;
                }
                if let Some(entry) = state.config.get(&PairRef(what, &link.2)) {
                    self.config(what, &link.2, entry);
                }
            }
        }
        let index = state.mesh_scopes.get(&PairRef(what, service));
        self.scope(IndexTable::MeshScope, index, &format!("{what}\0{service}"));
    }

    fn config(&mut self, kind: &Name, name: &Name, entry: &Arc<Entry>) {
        self.put(
            RowKind::ConfigEntry,
            kind,
            name,
            Row::ConfigEntry(entry.clone()),
        );
    }

    fn kind_index(&mut self, kind: &Name) {
        let index = self.state.config_kinds.get(kind);
        self.scope(IndexTable::ConfigKind, index, kind);
    }

    fn address(&mut self, ip: std::net::IpAddr) {
        let state = self.state;
        for (address, name) in state.node_addresses.range((ip, Name::from(""))..) {
            if *address != ip {
                break;
            }
            self.node(name);
        }
        let none = || Name::from("");
        for (address, node, id) in state.service_addresses.range((ip, none(), none())..) {
            if *address != ip {
                break;
            }
            if let Some(service) = state.services.get(&PairRef(node, id)) {
                self.put(RowKind::Service, node, id, Row::Service(service.clone()));
                self.node(node);
            }
        }
    }

    fn query(&mut self, name: &str) {
        let trace = crate::topics::Trace::off();
        if let Some(query) = self.state.read(&trace).prepared_query_called(name) {
            let id = crate::keys::name(&query.id);
            self.put_one(
                RowKind::PreparedQuery,
                &id,
                Row::PreparedQuery(query.clone()),
            );
        }
    }

    fn scope(&mut self, table: IndexTable, index: Option<&u64>, key: &str) {
        let Some(index) = index else { return };
        self.slice.indexes.push(IndexRow {
            table: table.into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            index: *index,
        });
    }

    fn put_one(&mut self, kind: RowKind, name: &Name, row: Row) {
        let none = self.none.clone();
        self.put(kind, name, &none, row);
    }

    fn put(&mut self, kind: RowKind, first: &Name, second: &Name, row: Row) {
        let key = Key(kind, first.clone(), second.clone());
        if self.slice.rows.contains_key(&key) {
            return;
        }
        let known = self.before.and_then(|before| before.get(&key));
        let digest = match known.filter(|(known, _)| known.is(&row)) {
            Some((_, digest)) => *digest,
            None => row.digest(&key),
        };
        let sum = &mut self.slice.sums[kind as usize];
        *sum = sum.wrapping_add(digest);
        self.slice.rows.insert(key, (row, digest));
    }

    fn finish(self) -> Slice {
        let scalars = &self.state.scalars;
        let mut slice = self.slice;
        slice.numbers.floor = scalars.floor;
        slice.reaped = scalars.reaped;
        slice.index = scalars.index;
        slice.restore_epoch = scalars.restore_epoch;
        slice.fingerprint = fingerprint(&slice.sums, &slice.numbers, &slice.indexes);
        slice
    }
}
