//! The receiving side: a state made of frames.
//!
//! Owns: taking a frame so that the state's own indexes stay together, and noticing that a view is not
//! what the sender has.
//! Never: keeps a state that it noticed to be wrong.

use super::{KINDS, RowKind, Sums, ViewFrame, fingerprint};
use crate::config_entry::{Entry, Kind};
use crate::keys::{self, Name, Pair};
use crate::record::{IndexRow, IndexTable, Record};
use crate::rows::Change;
use crate::state::State;
use crate::topics::{TableTopic, Topic, Touched};

/// Why a frame was not taken. The view is as before, and must be asked for anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// It is added to another content than the view has.
    #[error("the change is to another content than this view has")]
    Base,
    /// With it, the view is not what the sender has.
    #[error("the view came out different from the sender's")]
    Fingerprint,
    /// A row that this version does not know, or that makes no sense.
    #[error("a row of the view cannot be read: {0}")]
    Row(&'static str),
}

impl State {
    /// This view with what `frame` changes, and whose watchers that wakes. A part of a whole view to
    /// which another follows is to be kept aside, and given to the next call as `self`.
    ///
    /// Errors: [`ViewError`], and nothing changed.
    pub fn amended(&self, frame: ViewFrame) -> Result<(Self, Touched), ViewError> {
        let mut touched = Touched::default();
        let mut state = if frame.whole {
            // Whoever reads it may have seen anything before.
            touched.everything();
            Self::default()
        } else {
            self.clone()
        };
        if frame.base != 0 && frame.base != self.view_fingerprint() {
            return Err(ViewError::Base);
        }
        let (numbers, more, expected) = (frame.numbers(), frame.more, frame.fingerprint);
        let mut change = Change {
            state: &mut state,
            touched: &mut touched,
            index: frame.index,
        };
        remove(&mut change, &frame)?;
        for row in frame.rows {
            let record = row.record.ok_or(ViewError::Row("of a newer version"))?;
            put(&mut change, record)?;
        }
        // Rows that came and went between two frames still moved their tables' indexes.
        let was = self.scalars.tables;
        for (table, was, is) in [
            (TableTopic::Nodes, was.nodes, numbers.nodes),
            (TableTopic::Services, was.services, numbers.services),
            (
                TableTopic::Coordinates,
                was.coordinates,
                numbers.coordinates,
            ),
        ] {
            if was != is {
                touched.table(table);
            }
        }
        let scalars = &mut state.scalars;
        scalars.index = frame.index;
        scalars.restore_epoch = frame.restore_epoch;
        scalars.floor = numbers.floor;
        scalars.reaped = frame.reaped;
        scalars.tables.nodes = numbers.nodes;
        scalars.tables.services = numbers.services;
        scalars.tables.coordinates = numbers.coordinates;
        state.take_indexes(&frame.indexes, &mut touched)?;
        state.view_indexes = frame.indexes.into();
        if !more && state.view_fingerprint() != expected {
            return Err(ViewError::Fingerprint);
        }
        Ok((state, touched))
    }

    /// Names the content of a view; see [`Slice::fingerprint`](super::Slice::fingerprint).
    #[must_use]
    pub fn view_fingerprint(&self) -> u64 {
        let mut sums: Sums = [0; KINDS];
        for (kind, sum) in [
            (RowKind::Node, self.nodes.sum()),
            (RowKind::Check, self.checks.sum()),
            (RowKind::Service, self.services.sum()),
            (RowKind::ConfigEntry, self.config.sum()),
            (RowKind::PreparedQuery, self.queries.sum()),
            (RowKind::Coordinate, self.coordinates.sum()),
            (RowKind::MeshCa, self.mesh_ca.sum()),
        ] {
            sums[kind as usize] = sum;
        }
        let tables = &self.scalars.tables;
        let numbers = super::Numbers {
            floor: self.scalars.floor,
            nodes: tables.nodes,
            services: tables.services,
            coordinates: tables.coordinates,
        };
        fingerprint(&sums, &numbers, &self.view_indexes)
    }

    /// Whether a view has no row at all: what it is of does not exist.
    #[must_use]
    pub fn is_without_rows(&self) -> bool {
        self.nodes.is_empty()
            && self.services.is_empty()
            && self.config.is_empty()
            && self.queries.is_empty()
            && self.coordinates.is_empty()
            && self.mesh_ca.is_empty()
    }

    /// This view beside where nodes lie, for an order by distance.
    #[must_use]
    pub fn with_coordinates_of(&self, places: &Self) -> Self {
        let mut state = self.clone();
        state.coordinates = places.coordinates.clone();
        state.scalars.tables.coordinates = places.scalars.tables.coordinates;
        state
    }

    /// The view as one frame, to be kept and given to [`State::amended`] again.
    #[must_use]
    pub fn view_frame(&self) -> ViewFrame {
        let scalars = &self.scalars;
        let is_row = |record: &Record| {
            matches!(
                record,
                Record::Node(_)
                    | Record::Check(_)
                    | Record::Service(_)
                    | Record::ConfigEntry(_)
                    | Record::PreparedQuery(_)
                    | Record::Coordinate(_)
                    | Record::MeshCa(_)
            )
        };
        let rows = self.records().filter(is_row);
        ViewFrame {
            whole: true,
            index: scalars.index,
            restore_epoch: scalars.restore_epoch,
            fingerprint: self.view_fingerprint(),
            floor: scalars.floor,
            reaped: scalars.reaped,
            nodes: scalars.tables.nodes,
            services: scalars.tables.services,
            coordinates: scalars.tables.coordinates,
            indexes: self.view_indexes.to_vec(),
            rows: rows
                .map(|record| crate::record::Frame {
                    record: Some(record),
                })
                .collect(),
            ..ViewFrame::default()
        }
    }

    /// Puts the indexes of the view's scopes in the place of those that changing rows left.
    fn take_indexes(
        &mut self,
        indexes: &[IndexRow],
        touched: &mut Touched,
    ) -> Result<(), ViewError> {
        self.node_scopes.clear();
        self.service_scopes.clear();
        self.extinct_nodes.clear();
        self.extinct_services.clear();
        self.config_kinds.clear();
        self.mesh_scopes.clear();
        self.scalars.tables.config_entries = 0;
        for row in indexes {
            let name = std::str::from_utf8(&row.key).map(Name::from);
            let name = name.map_err(|_| ViewError::Row("a name that is not text"))?;
            let known = self.view_indexes.contains(row);
            let topic = self.take_index(row, name)?;
            if !known {
                touched.row(topic);
            }
        }
        Ok(())
    }

    fn take_index(&mut self, row: &IndexRow, name: Name) -> Result<Topic, ViewError> {
        let index = row.index;
        Ok(match row.table() {
            IndexTable::NodeScope => {
                self.node_scopes.insert(name.clone(), index);
                Topic::Node(name)
            }
            IndexTable::ExtinctNode => {
                self.extinct_nodes.insert(name.clone(), index);
                Topic::Node(name)
            }
            IndexTable::ServiceScope => {
                self.service_scopes.insert(name.clone(), index);
                Topic::Service(name)
            }
            IndexTable::ExtinctService => {
                self.extinct_services.insert(name.clone(), index);
                Topic::Service(name)
            }
            IndexTable::ConfigKind => {
                let table = &mut self.scalars.tables.config_entries;
                *table = index.max(*table);
                self.config_kinds.insert(name.clone(), index);
                Topic::ConfigKind(name)
            }
            IndexTable::MeshScope => {
                let key = name.split_once('\0');
                let (what, service) = key.ok_or(ViewError::Row("a scope of nothing"))?;
                let key = Pair(what.into(), service.into());
                self.mesh_scopes.insert(key.clone(), index);
                Topic::Mesh(key.0, key.1)
            }
            _ => return Err(ViewError::Row("an index of no view")),
        })
    }
}

/// Takes out what is gone: what hangs on a node goes before the node.
fn remove(change: &mut Change<'_>, frame: &ViewFrame) -> Result<(), ViewError> {
    let mut gone: Vec<_> = frame.gone.iter().collect();
    gone.sort_by_key(|gone| match gone.kind() {
        RowKind::Check => 0,
        RowKind::Service => 1,
        _ => 2,
    });
    for gone in gone {
        let (first, second) = (Name::from(&*gone.first), Name::from(&*gone.second));
        match gone.kind() {
            RowKind::Unspecified => return Err(ViewError::Row("of a newer version")),
            RowKind::Node => change.drop_node(&first),
            RowKind::Check => change.drop_check(&first, &second),
            RowKind::Service => change.drop_service(&first, &second),
            RowKind::ConfigEntry => {
                let kind = Kind::parse(&first).map_err(|_| ViewError::Row("an unknown kind"))?;
                change.drop_config(kind, &second);
            }
            RowKind::PreparedQuery => {
                change.drop_query(&first);
            }
            RowKind::Coordinate => {
                change.state.coordinates.remove(&*first);
                change.bump_table(TableTopic::Coordinates);
            }
            RowKind::MeshCa => {
                change.state.mesh_ca.remove(&*first);
                change.touched.table(TableTopic::MeshCa);
            }
        }
    }
    Ok(())
}

fn put(change: &mut Change<'_>, record: Record) -> Result<(), ViewError> {
    match record {
        Record::Node(node) => change.put_node(node),
        Record::Check(check) => change.put_check(&keys::name(&check.node.clone()), check),
        Record::Service(row) => {
            let service = row.service.ok_or(ViewError::Row("an empty instance"))?;
            change.put_service(&keys::name(&row.node), service);
        }
        Record::ConfigEntry(row) => {
            let entry = Entry::stored(&row);
            change.put_config(entry.map_err(|_| ViewError::Row("a config entry"))?);
        }
        Record::PreparedQuery(query) => change.put_query(query),
        Record::MeshCa(row) => change.put_mesh_ca(row),
        Record::Coordinate(row) => change.put_coordinate(&keys::name(&row.node.clone()), row),
        _ => return Err(ViewError::Row("of no view")),
    }
    Ok(())
}
