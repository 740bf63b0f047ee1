//! A snapshot's records: one for each row, table by table, and how a state is rebuilt from them.
//!
//! Owns: the protobuf form of everything in a snapshot, and its order.
//! Never: holds what can be derived from the rows.

use std::sync::Arc;

use bytes::Bytes;
use weft_proto::v1;

use crate::apply::restore::Staging;
use crate::config_entry::Entry;
use crate::digest::Table;
use crate::keys::{self, Name, Pair};
use crate::rows::Change;
use crate::state::{Scalars, State, TableIndexes};
use crate::topics::Touched;

/// The form of the digests in [`End`]: raised when a row's digest changes.
pub const HASH_FORM: u32 = 6;

/// One record of a snapshot. Additive only (DESIGN F7).
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Record {
    /// Always first.
    #[prost(message, tag = "1")]
    Meta(Meta),
    /// A machine.
    #[prost(message, tag = "2")]
    Node(v1::Node),
    /// A health check.
    #[prost(message, tag = "3")]
    Check(v1::Check),
    /// An instance and its node.
    #[prost(message, tag = "4")]
    Service(v1::NodeService),
    /// A session.
    #[prost(message, tag = "5")]
    Session(v1::Session),
    /// A key.
    #[prost(message, tag = "6")]
    Kv(v1::KvEntry),
    /// A server's key.
    #[prost(message, tag = "7")]
    ServerKey(v1::ServerKey),
    /// Autopilot's settings.
    #[prost(message, tag = "8")]
    Autopilot(v1::AutopilotConfig),
    /// An index by key: a scope, a tombstone, a lock-delay.
    #[prost(message, tag = "9")]
    Index(IndexRow),
    /// An answer kept for a retry.
    #[prost(message, tag = "10")]
    Answer(AnswerRow),
    /// A restore under way.
    #[prost(message, tag = "11")]
    RestoreBegin(v1::RestoreBegin),
    /// Its bytes.
    #[prost(message, tag = "12")]
    RestoreChunk(v1::RestoreChunk),
    /// Always last.
    #[prost(message, tag = "13")]
    End(End),
    /// A config entry.
    #[prost(message, tag = "14")]
    ConfigEntry(v1::ConfigEntry),
    /// A prepared query.
    #[prost(message, tag = "15")]
    PreparedQuery(v1::PreparedQuery),
    /// Where a node lies.
    #[prost(message, tag = "20")]
    Coordinate(v1::Coordinate),
    /// A join token.
    #[prost(message, tag = "21")]
    JoinToken(v1::JoinToken),
    /// The CA of the mesh.
    #[prost(message, tag = "22")]
    MeshCa(v1::MeshCa),
}

/// A record as a message of its own.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    /// Absent: a record of a newer version.
    #[prost(
        oneof = "Record",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22"
    )]
    pub record: Option<Record>,
}

/// Numbers of the state as a whole.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Meta {
    /// Catalog index of the last applied command.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// What is added to a log index.
    #[prost(uint64, tag = "2")]
    pub base: u64,
    /// +1 with every user's restore.
    #[prost(uint64, tag = "3")]
    pub restore_epoch: u64,
    /// Milliseconds since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub cluster_time: u64,
    /// What all members can follow.
    #[prost(uint32, tag = "5")]
    pub cluster_version: u32,
    /// Term of the last leader that announced itself.
    #[prost(uint64, tag = "6")]
    pub leader_term: u64,
    /// The lowest index of any answer.
    #[prost(uint64, tag = "7")]
    pub floor: u64,
    /// Tombstones up to here are forgotten.
    #[prost(uint64, tag = "8")]
    pub reaped: u64,
    /// Last change of nodes, services, checks, kv, sessions, operator, coordinates (not in older snapshots).
    #[prost(uint64, repeated, tag = "9")]
    pub tables: Vec<u64>,
    /// The cluster's own id; empty before the first leader.
    #[prost(string, tag = "10")]
    pub cluster_id: String,
    /// How often the state went on without its quorum.
    #[prost(uint64, tag = "11")]
    pub recoveries: u64,
}

/// Which table an [`IndexRow`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum IndexTable {
    /// Not set: the record is damaged or newer.
    Unspecified = 0,
    /// A key's tombstone.
    KeyTombstone = 1,
    /// A deleted tree's tombstone.
    TreeTombstone = 2,
    /// When a node went.
    ExtinctNode = 3,
    /// When a service's last instance went.
    ExtinctService = 4,
    /// Until when (cluster time) a key cannot be locked.
    LockDelay = 5,
    /// A node scope's last change.
    NodeScope = 6,
    /// A service scope's last change.
    ServiceScope = 7,
    /// An agent's highest retry sequence.
    SourceHighest = 8,
    /// Catalog index of an agent's last command.
    SourceUsed = 9,
    /// The last change of a kind of config entry.
    ConfigKind = 10,
    /// The last change of what stands for a service in the mesh: what and whom, a NUL between.
    MeshScope = 11,
}

/// An index by key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct IndexRow {
    /// The table.
    #[prost(enumeration = "IndexTable", tag = "1")]
    pub table: i32,
    /// Folded name or bytes of a key.
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// The index, sequence or time.
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

/// An answer kept for a retry.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AnswerRow {
    /// The agent.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Its sequence.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// The encoded outcome.
    #[prost(bytes = "bytes", tag = "3")]
    pub outcome: Bytes,
}

/// The last record: says that nothing is missing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct End {
    /// Records before this one.
    #[prost(uint64, tag = "1")]
    pub records: u64,
    /// [`State::hash`] of what was written.
    #[prost(fixed64, tag = "2")]
    pub hash: u64,
    /// [`HASH_FORM`] of the writer; the hash is compared only if it is the reader's.
    #[prost(uint32, tag = "3")]
    pub hash_form: u32,
}

/// Why records could not be made into a state. No state was made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The first record is not the one that every snapshot begins with.
    #[error("the snapshot does not begin with its numbers")]
    NoMeta,
    /// The last record is not there: the snapshot was cut off.
    #[error("the snapshot ends after record {record} without its last record: it was cut off")]
    NoEnd {
        /// How many records there were.
        record: u64,
    },
    /// The number of records is not what the last one says.
    #[error("the snapshot has {found} records, its last one says {expected}")]
    Count {
        /// What was read.
        found: u64,
        /// What was written.
        expected: u64,
    },
    /// A record that makes no sense where it stands.
    #[error("record {record} is not valid: {what}")]
    Record {
        /// How many records came before.
        record: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The rebuilt state is not the one that was written.
    #[error("the restored state's hash is {found:#018x}, written was {expected:#018x}")]
    Hash {
        /// Of what was rebuilt.
        found: u64,
        /// As written.
        expected: u64,
    },
}

impl State {
    /// Every record of this snapshot, table by table, in a fixed order: equal states give equal records.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let mut count = 0_u64;
        let body = std::iter::once(Record::Meta(self.meta()))
            .chain(
                self.nodes
                    .values()
                    .map(|row| Record::Node(v1::Node::clone(row))),
            )
            .chain(
                self.checks
                    .values()
                    .map(|row| Record::Check(v1::Check::clone(row))),
            )
            .chain(self.services.iter().map(|(key, row)| {
                Record::Service(v1::NodeService {
                    node: key.0.to_string(),
                    service: Some(v1::Service::clone(row)),
                })
            }))
            .chain(
                self.sessions
                    .values()
                    .map(|row| Record::Session(v1::Session::clone(row))),
            )
            .chain(
                self.kv
                    .values()
                    .map(|row| Record::Kv(v1::KvEntry::clone(row))),
            )
            .chain(
                self.server_keys
                    .values()
                    .map(|row| Record::ServerKey(v1::ServerKey::clone(row))),
            )
            .chain(
                self.autopilot
                    .iter()
                    .map(|row| Record::Autopilot(v1::AutopilotConfig::clone(row))),
            )
            .chain(
                self.config
                    .values()
                    .map(|entry| Record::ConfigEntry(entry.row())),
            )
            .chain(
                self.queries
                    .values()
                    .map(|row| Record::PreparedQuery(v1::PreparedQuery::clone(row))),
            )
            .chain(
                self.coordinates
                    .values()
                    .map(|row| Record::Coordinate(v1::Coordinate::clone(row))),
            )
            .chain(
                self.join_tokens
                    .values()
                    .map(|row| Record::JoinToken(v1::JoinToken::clone(row))),
            )
            .chain(
                self.mesh_ca
                    .values()
                    .map(|row| Record::MeshCa(v1::MeshCa::clone(row))),
            )
            .chain(self.index_records())
            .chain(
                self.sources
                    .answers
                    .iter()
                    .map(|((source, sequence), outcome)| {
                        Record::Answer(AnswerRow {
                            source: source.to_string(),
                            sequence: *sequence,
                            outcome: outcome.0.clone(),
                        })
                    }),
            )
            .chain(self.staging_records())
            .map(Some)
            .chain(std::iter::once(None));
        body.map(move |record| match record {
            Some(record) => {
                count += 1;
                record
            }
            None => Record::End(End {
                records: count,
                hash: self.hash(),
                hash_form: HASH_FORM,
            }),
        })
    }

    fn meta(&self) -> Meta {
        let s = &self.scalars;
        let t = &s.tables;
        Meta {
            index: s.index,
            base: s.base,
            restore_epoch: s.restore_epoch,
            recoveries: s.recoveries,
            cluster_time: s.cluster_time,
            cluster_version: s.cluster_version,
            leader_term: s.leader_term,
            floor: s.floor,
            reaped: s.reaped,
            tables: vec![
                t.nodes,
                t.services,
                t.checks,
                t.kv,
                t.sessions,
                t.operator,
                t.coordinates,
            ],
            cluster_id: self.cluster_id().to_owned(),
        }
    }

    fn index_records(&self) -> impl Iterator<Item = Record> + '_ {
        by_key(IndexTable::KeyTombstone, &self.key_tombstones)
            .chain(by_key(IndexTable::TreeTombstone, &self.tree_tombstones))
            .chain(by_name(IndexTable::ExtinctNode, &self.extinct_nodes))
            .chain(by_name(IndexTable::ExtinctService, &self.extinct_services))
            .chain(by_key(IndexTable::LockDelay, &self.lock_delays))
            .chain(by_name(IndexTable::NodeScope, &self.node_scopes))
            .chain(by_name(IndexTable::ServiceScope, &self.service_scopes))
            .chain(by_name(IndexTable::ConfigKind, &self.config_kinds))
            .chain(self.mesh_scopes.iter().map(|(key, index)| {
                let key = format!("{}\0{}", key.0, key.1);
                index_row(IndexTable::MeshScope, key.into(), *index)
            }))
            .chain(by_name(IndexTable::SourceHighest, &self.sources.highest))
            .chain(by_name(IndexTable::SourceUsed, &self.sources.last_used))
    }

    fn staging_records(&self) -> impl Iterator<Item = Record> + '_ {
        self.staging.iter().flat_map(|staging| {
            let begin = v1::RestoreBegin {
                restore_id: staging.id.clone(),
                size_bytes: staging.size_bytes,
                sha256: staging.sha256.clone(),
            };
            let chunks = staging.chunks.iter().scan(0_u64, |offset, data| {
                let chunk = v1::RestoreChunk {
                    restore_id: staging.id.clone(),
                    offset: *offset,
                    data: data.clone(),
                };
                *offset += data.len() as u64;
                Some(Record::RestoreChunk(chunk))
            });
            std::iter::once(Record::RestoreBegin(begin)).chain(chunks)
        })
    }
}

fn index_row(table: IndexTable, key: Bytes, index: u64) -> Record {
    Record::Index(IndexRow {
        table: table.into(),
        key,
        index,
    })
}

fn by_key(table: IndexTable, rows: &Table<Bytes, u64>) -> impl Iterator<Item = Record> + '_ {
    rows.iter()
        .map(move |(key, index)| index_row(table, key.clone(), *index))
}

fn by_name(table: IndexTable, rows: &Table<Name, u64>) -> impl Iterator<Item = Record> + '_ {
    rows.iter()
        .map(move |(key, index)| index_row(table, Bytes::copy_from_slice(key.as_bytes()), *index))
}

/// Rebuilds a state, its derived indexes included.
pub(crate) fn rebuild<E: From<RestoreError>>(
    records: impl Iterator<Item = Result<Record, E>>,
) -> Result<State, E> {
    let mut rebuild = Rebuild::default();
    for record in records {
        if let Some(end) = rebuild.take(record?)? {
            return Ok(rebuild.finish(&end)?);
        }
        rebuild.count += 1;
    }
    Err(RestoreError::NoEnd {
        record: rebuild.count,
    }
    .into())
}

#[derive(Default)]
struct Rebuild {
    state: State,
    meta: Option<Scalars>,
    count: u64,
    touched: Touched,
    scopes: Vec<(IndexTable, Name, u64)>,
}

impl Rebuild {
    fn take(&mut self, record: Record) -> Result<Option<End>, RestoreError> {
        if let Record::Meta(meta) = record {
            return self.meta(&meta).map(|()| None);
        }
        let meta = self.meta.ok_or(RestoreError::NoMeta)?;
        let record_number = self.count;
        let wrong = |what| RestoreError::Record {
            record: record_number,
            what,
        };
        let mut change = Change {
            state: &mut self.state,
            touched: &mut self.touched,
            index: meta.index,
        };
        match record {
            Record::Meta(_) => {}
            Record::Node(node) => change.put_node(node),
            Record::Check(check) => change.put_check(&keys::name(&check.node.clone()), check),
            Record::Service(row) => {
                let service = row
                    .service
                    .ok_or_else(|| wrong("an instance without its service"))?;
                change.put_service(&keys::name(&row.node), service);
            }
            Record::Session(session) => change.put_session(session, true),
            Record::Kv(entry) => change.put_kv(entry),
            Record::ServerKey(key) => {
                self.state
                    .server_keys
                    .insert(keys::name(&key.raft_id), Arc::new(key));
            }
            Record::Autopilot(autopilot) => self.state.autopilot = Some(Arc::new(autopilot)),
            Record::ConfigEntry(row) => {
                let entry = Entry::stored(&row)
                    .map_err(|_| wrong("a config entry that this version cannot read"))?;
                change.put_config(entry);
            }
            Record::PreparedQuery(query) => change.put_query(query),
            Record::Coordinate(row) => change.put_coordinate(&keys::name(&row.node.clone()), row),
            Record::JoinToken(row) => {
                self.state
                    .join_tokens
                    .insert(keys::name(&row.id), Arc::new(row));
            }
            Record::MeshCa(row) => change.put_mesh_ca(row),
            Record::Index(row) => self.index(&row)?,
            Record::Answer(row) => {
                self.state.sources.restore_answer(
                    Name::from(row.source),
                    row.sequence,
                    row.outcome,
                );
            }
            Record::RestoreBegin(begin) => {
                self.state.staging = Some(Staging::new(
                    &begin.restore_id,
                    begin.size_bytes,
                    &begin.sha256,
                ));
            }
            Record::RestoreChunk(chunk) => {
                let staging = self.state.staging.as_mut();
                staging
                    .ok_or_else(|| wrong("bytes of a restore that is not under way"))?
                    .push(&chunk.data);
            }
            Record::End(end) => return Ok(Some(end)),
        }
        Ok(None)
    }

    fn wrong(&self, what: &'static str) -> RestoreError {
        RestoreError::Record {
            record: self.count,
            what,
        }
    }

    fn meta(&mut self, meta: &Meta) -> Result<(), RestoreError> {
        let [
            nodes,
            services,
            checks,
            kv,
            sessions,
            operator,
            ref later @ ..,
        ] = meta.tables[..]
        else {
            return Err(self.wrong("not one index for each table"));
        };
        let coordinates = match later {
            [] => 0,
            [coordinates] => *coordinates,
            _ => return Err(self.wrong("not one index for each table")),
        };
        // Rows are put back as if they were changed now; what that notes is thrown away.
        self.touched.everything();
        self.state.cluster_id =
            (!meta.cluster_id.is_empty()).then(|| meta.cluster_id.as_str().into());
        self.meta = Some(Scalars {
            index: meta.index,
            base: meta.base,
            restore_epoch: meta.restore_epoch,
            recoveries: meta.recoveries,
            cluster_time: meta.cluster_time,
            cluster_version: meta.cluster_version,
            leader_term: meta.leader_term,
            floor: meta.floor,
            reaped: meta.reaped,
            tables: TableIndexes {
                nodes,
                services,
                checks,
                kv,
                sessions,
                operator,
                config_entries: 0,
                coordinates,
            },
        });
        Ok(())
    }

    fn index(&mut self, row: &IndexRow) -> Result<(), RestoreError> {
        let key = row.key.clone();
        let name = || std::str::from_utf8(&row.key).map(Name::from);
        let not_text = RestoreError::Record {
            record: self.count,
            what: "a name that is not text",
        };
        match row.table() {
            IndexTable::Unspecified => return Err(self.wrong("an index of an unknown table")),
            IndexTable::KeyTombstone => drop(self.state.key_tombstones.insert(key, row.index)),
            IndexTable::TreeTombstone => drop(self.state.tree_tombstones.insert(key, row.index)),
            IndexTable::LockDelay => drop(self.state.lock_delays.insert(key, row.index)),
            IndexTable::SourceHighest => {
                self.state
                    .sources
                    .restore_highest(name().map_err(|_| not_text)?, row.index);
            }
            IndexTable::SourceUsed => self
                .state
                .sources
                .restore_use(name().map_err(|_| not_text)?, row.index),
            table @ (IndexTable::ExtinctNode
            | IndexTable::ExtinctService
            | IndexTable::NodeScope
            | IndexTable::ServiceScope
            | IndexTable::ConfigKind
            | IndexTable::MeshScope) => {
                self.scopes
                    .push((table, name().map_err(|_| not_text)?, row.index));
            }
        }
        Ok(())
    }

    fn finish(mut self, end: &End) -> Result<State, RestoreError> {
        if end.records != self.count {
            return Err(RestoreError::Count {
                found: self.count,
                expected: end.records,
            });
        }
        let state = &mut self.state;
        state.scalars = self.meta.ok_or(RestoreError::NoMeta)?;
        for table in [
            &mut state.node_scopes,
            &mut state.service_scopes,
            &mut state.extinct_nodes,
            &mut state.extinct_services,
            &mut state.config_kinds,
        ] {
            table.clear();
        }
        for (table, name, index) in self.scopes {
            match table {
                IndexTable::NodeScope => drop(state.node_scopes.insert(name, index)),
                IndexTable::ServiceScope => drop(state.service_scopes.insert(name, index)),
                IndexTable::ExtinctNode => drop(state.extinct_nodes.insert(name, index)),
                IndexTable::ConfigKind => {
                    let table = &mut state.scalars.tables.config_entries;
                    *table = index.max(*table);
                    state.config_kinds.insert(name, index);
                }
                // Over what the rows left there: an older snapshot has none.
                IndexTable::MeshScope => {
                    if let Some((what, service)) = name.split_once('\0') {
                        let key = Pair(what.into(), service.into());
                        state.mesh_scopes.insert(key, index);
                    }
                }
                _ => drop(state.extinct_services.insert(name, index)),
            }
        }
        let found = state.hash();
        if end.hash_form == HASH_FORM && found != end.hash {
            return Err(RestoreError::Hash {
                found,
                expected: end.hash,
            });
        }
        Ok(self.state)
    }
}
