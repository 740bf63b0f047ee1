//! What a control plane tells a proxy: plain data, compared with what was told before.
//!
//! Owns: the shape of it. The [`plane`](crate::plane) makes the [`config`](crate::config) of it.
//! Never: holds anything that lives: no sockets, no TLS, no counts. It can be sent to another process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_identity::Secret;
use weft_identity::ca::{SpiffeId, TrustDomain};
use weft_proto::ids::UnixMillis;

use crate::balance::{Outlier, Policy};
use crate::config::{Address, Intentions};

/// All that the proxies of a node work by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The highest catalog index among its parts.
    pub index: u64,
    /// Whom they trust; `None`: not known yet, and nobody is served.
    pub trust: Option<Arc<Trust>>,
    /// One for each proxy registered on this node.
    pub services: Vec<Arc<ServicePlan>>,
}

/// Whom a mesh trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Ours.
    pub domain: TrustDomain,
    /// PEM.
    pub roots: Vec<String>,
    /// Certificates of these ids made before that time are refused.
    pub cut_offs: Vec<(SpiffeId, UnixMillis)>,
}

/// A service of this node, as its proxy carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePlan {
    /// Of the proxy's registration.
    pub id: String,
    /// The service's name.
    pub name: Arc<str>,
    /// Who it is; `None`: not known yet, and it is not served.
    pub leaf: Option<LeafPlan>,
    /// Where it is called; `None`: it only calls.
    pub inbound: Option<InboundPlan>,
    /// Whom it calls.
    pub upstreams: Vec<UpstreamPlan>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPlan {
    /// The name in it.
    pub spiffe: SpiffeId,
    /// `aa:bb:…`.
    pub serial: String,
    /// PEM: the leaf, then those that lead to a root.
    pub chain: String,
    /// PEM.
    pub key: Secret<String>,
}

/// Where a service is called.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundPlan {
    /// The public port.
    pub bind: SocketAddr,
    /// Where the application listens.
    pub application: Address,
    /// To reach the application.
    pub connect_timeout: Duration,
    /// For a caller to prove itself.
    pub handshake_timeout: Duration,
    /// After which silent connections are closed; zero: never.
    pub idle_timeout: Duration,
    /// Connections at once.
    pub max_connections: u32,
    /// Who may call.
    pub intentions: Intentions,
}

/// A service that is called.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamPlan {
    /// As registered; one of a kind within its service.
    pub name: Arc<str>,
    /// Where the application finds it.
    pub bind: Address,
    /// To be asked in this order.
    pub targets: Vec<TargetPlan>,
    /// For one endpoint, TLS included.
    pub connect_timeout: Duration,
    /// After which silent connections are closed; zero: never.
    pub idle_timeout: Duration,
    /// Connections at once.
    pub max_connections: u32,
}

/// A set of endpoints of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetPlan {
    /// The service's name.
    pub service: Arc<str>,
    /// Said in the handshake: `[subset.]service.namespace.dc.internal.trust-domain`.
    pub server_name: String,
    /// Whom an endpoint must prove to be: one of these.
    pub expected: Vec<SpiffeId>,
    /// Where.
    pub endpoints: Vec<EndpointPlan>,
    /// How one is chosen.
    pub policy: Policy,
    /// When one is left out.
    pub outlier: Outlier,
}

/// Where a service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPlan {
    /// Of its proxy, or its own.
    pub address: SocketAddr,
    /// 1 as a rule; 0 is never chosen.
    pub weight: u32,
    /// The proxy registration on this very node that it is, if it is one.
    pub here: Option<Arc<str>>,
}
