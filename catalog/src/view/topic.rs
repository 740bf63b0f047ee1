//! What a view can be of.
//!
//! Owns: [`ViewTopic`], its form on the wire, and the reads that it stands for.
//! Never: looks at rows.

use std::net::IpAddr;

use weft_proto::v1;
use weft_proto::v1::ViewTopicKind as Wire;

use crate::config_entry::Kind;
use crate::keys::{self, Name};
use crate::prepared_query::{Expressions, render};
use crate::state::State;
use crate::topics::{TableTopic, Topic, Topics, Trace};

/// Bytes of a name in a topic; names that are longer are in no catalog.
pub const TOPIC_NAME_BYTES_MAX: usize = 1_024;

/// What a view is of. Names are folded; make one with its functions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViewTopic {
    /// A service's instances, their nodes and checks.
    Service(Name),
    /// The instances through which the mesh reaches a service, and the service's own.
    Connect(Name),
    /// The instances of the ingress gateways of a service, and the service's own.
    Ingress(Name),
    /// A node, its services and its checks.
    Node(Name),
    /// Every instance and its node, without checks.
    Services,
    /// Every node.
    Nodes,
    /// The nodes and instances with an address.
    Address(IpAddr),
    /// The prepared query that a name means, and the instances it selects from.
    Query(Name),
    /// A config entry by kind and name.
    ConfigEntry(Name, Name),
    /// The config entries of a kind.
    ConfigKind(Name),
    /// Where every node lies.
    Coordinates,
    /// Roots and settings of the mesh's CA, without its keys.
    MeshCa,
}

impl ViewTopic {
    /// A service's instances with their health.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self::Service(keys::name(name))
    }

    /// What stands for a service in the mesh.
    #[must_use]
    pub fn connect(service: &str) -> Self {
        Self::Connect(keys::name(service))
    }

    /// The ingress gateways of a service.
    #[must_use]
    pub fn ingress(service: &str) -> Self {
        Self::Ingress(keys::name(service))
    }

    /// One node with all that is on it.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self::Node(keys::name(name))
    }

    /// What a prepared query called `name` needs.
    #[must_use]
    pub fn query(name: &str) -> Self {
        Self::Query(keys::name(name))
    }

    /// One config entry.
    #[must_use]
    pub fn config_entry(kind: Kind, name: &str) -> Self {
        Self::ConfigEntry(kind.as_str().into(), keys::name(name))
    }

    /// The config entries of a kind.
    #[must_use]
    pub fn config_kind(kind: Kind) -> Self {
        Self::ConfigKind(kind.as_str().into())
    }

    /// A small word for what it is of.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Connect(_) => "connect",
            Self::Ingress(_) => "ingress",
            Self::Node(_) => "node",
            Self::Services => "services",
            Self::Nodes => "nodes",
            Self::Address(_) => "address",
            Self::Query(_) => "query",
            Self::ConfigEntry(..) => "config_entry",
            Self::ConfigKind(_) => "config_kind",
            Self::Coordinates => "coordinates",
            Self::MeshCa => "mesh_ca",
        }
    }

    /// As it travels.
    #[must_use]
    pub fn wire(&self) -> v1::ViewTopic {
        let (kind, name, of) = match self {
            Self::Service(name) => (Wire::Service, name.to_string(), ""),
            Self::Connect(name) => (Wire::Connect, name.to_string(), ""),
            Self::Ingress(name) => (Wire::Ingress, name.to_string(), ""),
            Self::Node(name) => (Wire::Node, name.to_string(), ""),
            Self::Services => (Wire::Services, String::new(), ""),
            Self::Nodes => (Wire::Nodes, String::new(), ""),
            Self::Address(ip) => (Wire::Address, ip.to_string(), ""),
            Self::Query(name) => (Wire::Query, name.to_string(), ""),
            Self::ConfigEntry(kind, name) => (Wire::ConfigEntry, name.to_string(), &**kind),
            Self::ConfigKind(kind) => (Wire::ConfigKind, String::new(), &**kind),
            Self::Coordinates => (Wire::Coordinates, String::new(), ""),
            Self::MeshCa => (Wire::MeshCa, String::new(), ""),
        };
        v1::ViewTopic {
            kind: kind.into(),
            name,
            of: of.to_owned(),
        }
    }

    /// What `wire` says; `None` when it is of a newer version, or no topic at all.
    #[must_use]
    pub fn of_wire(wire: &v1::ViewTopic) -> Option<Self> {
        if wire.name.len() > TOPIC_NAME_BYTES_MAX {
            return None;
        }
        let name = || keys::name(&wire.name);
        let kind = || Kind::parse(&wire.of).ok();
        Some(match wire.kind() {
            Wire::Unspecified => return None,
            Wire::Service => Self::Service(name()),
            Wire::Connect => Self::Connect(name()),
            Wire::Ingress => Self::Ingress(name()),
            Wire::Node => Self::Node(name()),
            Wire::Services => Self::Services,
            Wire::Nodes => Self::Nodes,
            Wire::Address => Self::Address(wire.name.parse().ok()?),
            Wire::Query => Self::Query(name()),
            Wire::ConfigEntry => Self::config_entry(kind()?, &wire.name),
            Wire::ConfigKind => Self::config_kind(kind()?),
            Wire::Coordinates => Self::Coordinates,
            Wire::MeshCa => Self::MeshCa,
        })
    }

    /// Makes the reads that the view is for, and returns what they depend on.
    pub(super) fn topics(&self, state: &State, expressions: &Expressions) -> Topics {
        let trace = Trace::on();
        let read = state.read(&trace);
        match self {
            Self::Service(name) => _ = read.service_index(name),
            Self::Connect(name) => {
                drop(read.connect_instances(name));
                _ = read.service_index(name);
            }
            Self::Ingress(name) => {
                drop(read.ingress_instances(name));
                _ = read.service_index(name);
            }
            Self::Node(name) => drop(read.node(name)),
            // Their numbers are among what is answered.
            Self::Services => {
                trace.note_table(TableTopic::Services);
                trace.note_table(TableTopic::Nodes);
            }
            Self::Nodes => trace.note_table(TableTopic::Nodes),
            Self::Address(ip) => {
                drop(read.nodes_by_address(*ip));
                drop(read.services_by_address(*ip));
            }
            Self::Query(name) => {
                trace.note_table(TableTopic::PreparedQueries);
                let query = read.prepared_query_called(name);
                // What cannot be rendered here cannot be there either.
                let query = query.and_then(|query| render(query, name, expressions).ok());
                match query {
                    Some(query) if query.connect => drop(read.connect_instances(&query.service)),
                    Some(query) => _ = read.service_index(&query.service),
                    None => {}
                }
            }
            Self::ConfigEntry(kind, name) => {
                if let Ok(kind) = Kind::parse(kind) {
                    drop(read.config_entry(kind, name));
                }
            }
            Self::ConfigKind(kind) => trace.note(|| Topic::ConfigKind(kind.clone())),
            Self::Coordinates => trace.note_table(TableTopic::Coordinates),
            Self::MeshCa => drop(read.mesh_ca()),
        }
        trace.into_topics()
    }
}
