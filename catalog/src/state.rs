//! The replicated state: tables, their secondary indexes, and the indexes of every scope.
//!
//! Owns: the tables and the accessors that need no query. Cloning is O(1): a clone is a snapshot.
//! Never: changes by itself; [`crate::apply`] does, through [`crate::rows`].

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use weft_proto::ids::{CatalogIndex, Term, UnixMillis};
use weft_proto::v1;

use crate::apply::restore::Staging;
use crate::apply::retry::Sources;
use crate::config_entry::Entry;
use crate::digest::{Fold, Table};
use crate::keys::{Name, Pair, Triple};
use crate::read::Reader;
use crate::topics::Trace;

/// One instance with all that its health answer needs, kept ready.
#[derive(Clone, Debug)]
pub(crate) struct InstanceRow {
    pub(crate) node: Arc<v1::Node>,
    pub(crate) service: Arc<v1::Service>,
    /// Node-level checks, then the instance's own, each by id.
    pub(crate) checks: Vec<Arc<v1::Check>>,
    /// Folded: what it offers to the mesh.
    pub(crate) offers: Option<Name>,
}

/// The instances of one service name by (node, service id).
pub(crate) type Group = OrdMap<Pair, Arc<InstanceRow>>;

/// The last change of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableIndexes {
    pub(crate) nodes: u64,
    pub(crate) services: u64,
    pub(crate) checks: u64,
    pub(crate) kv: u64,
    pub(crate) sessions: u64,
    pub(crate) operator: u64,
    /// Not in a snapshot: the highest of [`State::config_kinds`].
    pub(crate) config_entries: u64,
    pub(crate) coordinates: u64,
}

/// Numbers of the state as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scalars {
    /// Catalog index of the last applied command.
    pub(crate) index: u64,
    /// What is added to the log index (DESIGN F8).
    pub(crate) base: u64,
    pub(crate) restore_epoch: u64,
    /// How often a server was made to go on without its quorum.
    pub(crate) recoveries: u64,
    pub(crate) cluster_time: u64,
    pub(crate) cluster_version: u32,
    /// Term of the last leader that announced itself.
    pub(crate) leader_term: u64,
    /// No answer's index is lower: raised by a restore.
    pub(crate) floor: u64,
    /// Tombstones up to here were forgotten; what is missing answers at least this.
    pub(crate) reaped: u64,
    pub(crate) tables: TableIndexes,
}

/// An immutable snapshot of everything replicated. Cloning is O(1).
#[derive(Clone, Default)]
pub struct State {
    pub(crate) scalars: Scalars,
    /// Named by the first leader's first entry; no cluster changes it.
    pub(crate) cluster_id: Option<Arc<str>>,
    // Rows.
    pub(crate) nodes: Table<Name, Arc<v1::Node>>,
    pub(crate) services: Table<Pair, Arc<v1::Service>>,
    pub(crate) checks: Table<Pair, Arc<v1::Check>>,
    pub(crate) kv: Table<Bytes, Arc<v1::KvEntry>>,
    pub(crate) sessions: Table<Name, Arc<v1::Session>>,
    pub(crate) server_keys: Table<Name, Arc<v1::ServerKey>>,
    pub(crate) autopilot: Option<Arc<v1::AutopilotConfig>>,
    /// By kind and folded name.
    pub(crate) config: Table<Pair, Arc<Entry>>,
    /// By folded id.
    pub(crate) queries: Table<Name, Arc<v1::PreparedQuery>>,
    /// By folded node name.
    pub(crate) coordinates: Table<Name, Arc<v1::Coordinate>>,
    /// By id. A user's restore brings none: they may have been used since.
    pub(crate) join_tokens: Table<Name, Arc<v1::JoinToken>>,
    /// One row at most, under [`crate::apply::mesh_ca::KEY`]. A user's restore brings one only where there is none.
    pub(crate) mesh_ca: Table<Name, Arc<v1::MeshCa>>,
    // What is remembered of rows that are gone, and of times.
    pub(crate) key_tombstones: Table<Bytes, u64>,
    pub(crate) tree_tombstones: Table<Bytes, u64>,
    pub(crate) extinct_nodes: Table<Name, u64>,
    pub(crate) extinct_services: Table<Name, u64>,
    pub(crate) lock_delays: Table<Bytes, u64>,
    pub(crate) node_scopes: Table<Name, u64>,
    pub(crate) service_scopes: Table<Name, u64>,
    /// The last change of each kind of config entry, deletions included.
    pub(crate) config_kinds: Table<Name, u64>,
    pub(crate) sources: Sources,
    pub(crate) staging: Option<Staging>,
    // Derived from the rows: never in a snapshot, never in the hash.
    pub(crate) node_ids: OrdMap<Name, Name>,
    pub(crate) node_addresses: OrdSet<(IpAddr, Name)>,
    pub(crate) service_addresses: OrdSet<(IpAddr, Name, Name)>,
    pub(crate) groups: OrdMap<Name, Group>,
    /// The instances that offer a service to the mesh, whatever their own name.
    pub(crate) offers: OrdMap<Name, Group>,
    /// (gateway's kind, service or `*`, gateway): the gateway's entry names the service.
    pub(crate) gateway_links: OrdSet<Triple>,
    /// The last change of what stands for a service: (`connect` or a gateway's kind, service). In a snapshot,
    /// but not in the hash: a snapshot from before it existed leaves replicas with different numbers, each
    /// high enough.
    pub(crate) mesh_scopes: OrdMap<Pair, u64>,
    pub(crate) checks_by_instance: OrdSet<Triple>,
    pub(crate) checks_by_status: OrdSet<Triple>,
    pub(crate) sessions_by_node: OrdSet<Pair>,
    pub(crate) sessions_by_check: OrdSet<Triple>,
    pub(crate) held: OrdSet<(Name, Bytes)>,
    pub(crate) deadlines: OrdSet<(u64, Name)>,
    /// Bytes of canonical JSON of all config entries.
    pub(crate) config_bytes: u64,
    /// (service, kind, folded name): the config entry speaks of the service.
    pub(crate) config_references: OrdSet<Triple>,
    /// Folded name of every named or template query to its id; the catch-all's name is empty.
    pub(crate) query_names: OrdMap<Name, Name>,
    /// (session, query).
    pub(crate) queries_by_session: OrdSet<Pair>,
    /// Of a view: the indexes it came with. Empty in a full state.
    pub(crate) view_indexes: Arc<[crate::record::IndexRow]>,
}

/// How many rows there are, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Machines.
    pub nodes: usize,
    /// Distinct service names.
    pub services: usize,
    /// Service instances.
    pub instances: usize,
    /// Health checks.
    pub checks: usize,
    /// Keys.
    pub kv_entries: usize,
    /// Sessions.
    pub sessions: usize,
    /// Config entries of all kinds.
    pub config_entries: usize,
    /// Prepared queries.
    pub prepared_queries: usize,
    /// Network coordinates.
    pub coordinates: usize,
    /// Tombstones of keys and trees, and extinction indexes, not yet reaped.
    pub tombstones: usize,
}

/// When a session with a TTL runs out unless it is renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDeadline {
    /// Cluster time: the last renewal plus twice the TTL.
    pub deadline: UnixMillis,
    /// The session.
    pub id: String,
    /// What a `SessionExpire` must name.
    pub renewal_epoch: u64,
}

impl State {
    /// The catalog index of the last applied command. Never 0 once anything is applied.
    #[must_use]
    pub const fn index(&self) -> CatalogIndex {
        CatalogIndex(self.scalars.index)
    }

    /// What is added to a log index to make a catalog index.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.scalars.base
    }

    /// The user's restore under way, and how many bytes of it are staged.
    #[must_use]
    pub fn staged_restore(&self) -> Option<(&str, u64)> {
        let staging = self.staging.as_ref()?;
        Some((&staging.id, staging.received))
    }

    /// Raised by every restore and recovery: a resume token of another epoch means a full reset.
    #[must_use]
    pub const fn restore_epoch(&self) -> u64 {
        self.scalars.restore_epoch
    }

    /// How often this state went on without the quorum it came from: a log of fewer recoveries is of a
    /// history that was given up.
    #[must_use]
    pub const fn recoveries(&self) -> u64 {
        self.scalars.recoveries
    }

    /// The time of the last applied command, as leaders stamped it. Never runs back.
    #[must_use]
    pub const fn cluster_time(&self) -> UnixMillis {
        UnixMillis(self.scalars.cluster_time)
    }

    /// The version all members have agreed to follow.
    #[must_use]
    pub const fn cluster_version(&self) -> u32 {
        self.scalars.cluster_version
    }

    /// The cluster's own id, UUID text; empty before the first leader.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        self.cluster_id.as_deref().unwrap_or_default()
    }

    /// The term of the last leader whose start was applied.
    #[must_use]
    pub const fn leader_term(&self) -> Term {
        Term(self.scalars.leader_term)
    }

    /// A hash of everything replicated. Equal states have equal hashes however they came to be.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut fold = Fold::new();
        let s = &self.scalars;
        let t = &s.tables;
        for word in [
            s.index,
            s.base,
            s.restore_epoch,
            s.cluster_time,
            u64::from(s.cluster_version),
        ] {
            fold.word(word);
        }
        for word in [
            s.leader_term,
            s.floor,
            s.reaped,
            t.nodes,
            t.services,
            t.checks,
            t.kv,
            t.sessions,
            t.operator,
            t.coordinates,
        ] {
            fold.word(word);
        }
        // Only then, so that states from before it existed keep their hash.
        if s.recoveries > 0 {
            fold.word(s.recoveries);
        }
        for sum in self.sums() {
            fold.word(sum);
        }
        fold.bytes(self.cluster_id().as_bytes());
        if let Some(autopilot) = &self.autopilot {
            fold.bytes(&prost::Message::encode_to_vec(&**autopilot));
        }
        // Nothing where there is none: the hash of a cluster without a CA is that of older versions.
        if !self.mesh_ca.is_empty() {
            fold.word(self.mesh_ca.sum());
        }
        if let Some(staging) = &self.staging {
            staging.digest(&mut fold);
        }
        fold.finish()
    }

    fn sums(&self) -> [u64; 19] {
        [
            self.nodes.sum(),
            self.services.sum(),
            self.checks.sum(),
            self.kv.sum(),
            self.sessions.sum(),
            self.server_keys.sum(),
            self.key_tombstones.sum(),
            self.tree_tombstones.sum(),
            self.extinct_nodes.sum(),
            self.extinct_services.sum(),
            self.lock_delays.sum(),
            self.node_scopes.sum(),
            self.service_scopes.sum(),
            self.sources.sum(),
            self.config.sum(),
            self.config_kinds.sum(),
            self.queries.sum(),
            self.coordinates.sum(),
            self.join_tokens.sum(),
        ]
    }

    /// Queries against this snapshot; `trace` collects what they depend on.
    #[must_use]
    pub const fn read<'a>(&'a self, trace: &'a Trace) -> Reader<'a> {
        Reader::new(self, trace)
    }

    /// Every session with a TTL, soonest deadline first.
    pub fn session_deadlines(&self) -> impl Iterator<Item = SessionDeadline> + '_ {
        self.deadlines.iter().filter_map(|(deadline, id)| {
            let session = self.sessions.get(&**id)?;
            Some(SessionDeadline {
                deadline: UnixMillis(*deadline),
                id: session.id.clone(),
                renewal_epoch: session.renewal_epoch,
            })
        })
    }

    /// The session that runs out next. The leader proposes its expiry at `deadline`.
    #[must_use]
    pub fn next_session_deadline(&self) -> Option<SessionDeadline> {
        self.session_deadlines().next()
    }

    /// Row counts, in O(1).
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            nodes: self.nodes.len(),
            services: self.groups.len(),
            instances: self.services.len(),
            checks: self.checks.len(),
            kv_entries: self.kv.len(),
            sessions: self.sessions.len(),
            config_entries: self.config.len(),
            prepared_queries: self.queries.len(),
            coordinates: self.coordinates.len(),
            tombstones: self.key_tombstones.len()
                + self.tree_tombstones.len()
                + self.extinct_nodes.len()
                + self.extinct_services.len(),
        }
    }

    /// Whether a `TombstoneReap` up to `index` would forget something.
    #[must_use]
    pub fn has_tombstones(&self) -> bool {
        self.counts().tombstones > 0 || !self.lock_delays.is_empty()
    }

    /// The index an answer about something missing carries when nothing more is known of it.
    pub(crate) fn missing_floor(&self) -> u64 {
        self.scalars.reaped
    }

    /// Checks of one instance (`service` folded; empty: node-level), by check id.
    pub(crate) fn instance_checks<'a>(
        &'a self,
        node: &'a str,
        service: &'a str,
    ) -> impl Iterator<Item = &'a Arc<v1::Check>> + 'a {
        self.checks_by_instance
            .range(crate::keys::TripleRef(node, service, "")..)
            .take_while(move |key| *key.0 == *node && *key.1 == *service)
            .filter_map(|key| self.checks.get(&crate::keys::PairRef(&key.0, &key.2)))
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("index", &self.scalars.index)
            .field("base", &self.scalars.base)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
