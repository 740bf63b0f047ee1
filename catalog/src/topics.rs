//! What a read depends on, and what a change touches, in the same words.
//!
//! Owns: [`Topic`], the bounded set [`Topics`] a traced read yields, the set [`Touched`] a publish yields.
//! Never: wakes anybody; [`crate::hub`] does.

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;

use crate::keys::Name;

/// Rows one blocking query may watch singly; beyond this it watches whole tables.
pub const WATCHED_ROWS_MAX: usize = 8_192;

/// Rows one publish may name singly; beyond this it wakes every watcher.
pub const TOUCHED_ROWS_MAX: usize = 65_536;

/// A table that can be watched as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableTopic {
    /// Machines.
    Nodes,
    /// Service instances.
    Services,
    /// Health checks.
    Checks,
    /// Keys.
    Kv,
    /// Sessions.
    Sessions,
    /// Autopilot's settings and the servers' keys.
    Operator,
    /// Config entries of all kinds.
    ConfigEntries,
    /// Network coordinates of nodes.
    Coordinates,
    /// Prepared queries.
    PreparedQueries,
    /// The CA of the mesh.
    MeshCa,
}

impl TableTopic {
    pub(crate) const ALL: [Self; 10] = [
        Self::Nodes,
        Self::Services,
        Self::Checks,
        Self::Kv,
        Self::Sessions,
        Self::Operator,
        Self::ConfigEntries,
        Self::Coordinates,
        Self::PreparedQueries,
        Self::MeshCa,
    ];

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// One thing a read can depend on. Names are folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Every row of a table.
    Table(TableTopic),
    /// A node, its services and its checks, present or not.
    Node(Name),
    /// Whether and where a node id exists.
    NodeId(Name),
    /// A service name's instances, their nodes and their checks, present or not.
    Service(Name),
    /// What stands for a service in the mesh, present or not: `connect`, or a gateway's kind, and the
    /// service; `*`: links to every service.
    Mesh(Name, Name),
    /// One session, present or not.
    Session(Name),
    /// Every config entry of a kind.
    ConfigKind(Name),
    /// One config entry by kind and name, present or not.
    ConfigEntry(Name, Name),
    /// One key, present or not.
    Key(Bytes),
    /// Every key that starts with these bytes.
    Prefix(Bytes),
}

impl Topic {
    const fn table(&self) -> [Option<TableTopic>; 4] {
        match self {
            Self::Table(table) => [Some(*table), None, None, None],
            Self::Node(_) | Self::Service(_) => [
                Some(TableTopic::Nodes),
                Some(TableTopic::Services),
                Some(TableTopic::Checks),
                None,
            ],
            Self::Mesh(..) => [
                Some(TableTopic::Nodes),
                Some(TableTopic::Services),
                Some(TableTopic::Checks),
                Some(TableTopic::ConfigEntries),
            ],
            Self::NodeId(_) => [Some(TableTopic::Nodes), None, None, None],
            Self::Session(_) => [Some(TableTopic::Sessions), None, None, None],
            Self::ConfigKind(_) | Self::ConfigEntry(..) => {
                [Some(TableTopic::ConfigEntries), None, None, None]
            }
            Self::Key(_) | Self::Prefix(_) => [Some(TableTopic::Kv), None, None, None],
        }
    }
}

/// The topics a read depends on. Bounded by [`WATCHED_ROWS_MAX`]: beyond it, single rows
/// are replaced by their tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    topics: BTreeSet<Topic>,
    collapsed: bool,
}

impl Topics {
    /// Adds a topic, coarsening at the bound.
    pub fn add(&mut self, topic: Topic) {
        if self.collapsed {
            self.topics
                .extend(topic.table().into_iter().flatten().map(Topic::Table));
            return;
        }
        self.topics.insert(topic);
        if self.topics.len() > WATCHED_ROWS_MAX {
            self.collapsed = true;
            for topic in std::mem::take(&mut self.topics) {
                self.add(topic);
            }
        }
    }

    /// Adds every topic of another set.
    pub fn merge(&mut self, other: &Self) {
        for topic in &other.topics {
            self.add(topic.clone());
        }
    }

    /// The topics in order.
    pub fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Whether there is none: the read depended on nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }
}

/// What was changed since the last publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    tables: u16,
    rows: BTreeSet<Topic>,
    all: bool,
}

impl Touched {
    /// Wakes every watcher.
    #[must_use]
    pub fn of_everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    pub(crate) fn table(&mut self, table: TableTopic) {
        self.tables |= table.bit();
    }

    pub(crate) fn row(&mut self, topic: Topic) {
        if self.all {
            return;
        }
        self.rows.insert(topic);
        if self.rows.len() > TOUCHED_ROWS_MAX {
            self.everything();
        }
    }

    pub(crate) fn everything(&mut self) {
        self.all = true;
        self.rows.clear();
    }

    pub(crate) fn absorb(&mut self, other: Self) {
        self.tables |= other.tables;
        if other.all {
            self.everything();
        }
        for topic in other.rows {
            self.row(topic);
        }
    }

    /// Whether every watcher must wake: a restore, or more rows than can be named.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.all
    }

    /// Whether nothing visible changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.tables == 0 && self.rows.is_empty()
    }

    /// The tables in which something changed.
    pub fn tables(&self) -> impl Iterator<Item = TableTopic> + '_ {
        TableTopic::ALL
            .into_iter()
            .filter(|table| self.tables & table.bit() != 0)
    }

    /// The single rows that changed, in order. A key stands for the prefixes it lies under.
    pub fn rows(&self) -> impl Iterator<Item = &Topic> {
        self.rows.iter()
    }

    /// Whether a watcher of `topic` must wake.
    #[must_use]
    pub fn touches(&self, topic: &Topic) -> bool {
        self.all
            || match topic {
                Topic::Table(table) => self.tables & table.bit() != 0,
                Topic::Prefix(prefix) => self
                    .rows
                    .range(Topic::Key(prefix.clone())..)
                    .next()
                    .is_some_and(|row| matches!(row, Topic::Key(key) if key.starts_with(prefix))),
                row => self.rows.contains(row),
            }
    }
}

/// Whether a read notes what it depends on.
#[derive(Debug, Default)]
pub struct Trace(Option<Mutex<Topics>>);

impl Trace {
    /// A read that will not be waited on: costs nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Collects the topics of every read made through it.
    #[must_use]
    pub fn on() -> Self {
        Self(Some(Mutex::default()))
    }

    /// What the reads depended on; empty when tracing was off.
    #[must_use]
    pub fn into_topics(self) -> Topics {
        self.0.map_or_else(Topics::default, |topics| {
            topics
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        })
    }

    pub(crate) fn note(&self, topic: impl FnOnce() -> Topic) {
        if let Some(topics) = &self.0 {
            topics
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .add(topic());
        }
    }

    pub(crate) fn note_table(&self, table: TableTopic) {
        self.note(|| Topic::Table(table));
    }
}
