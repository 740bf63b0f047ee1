//! What a proxy works with: immutable, whole, replaced at once.
//!
//! Owns: the shape of a configuration, with its TLS ready for use. Parts that did not change are shared with the
//! configuration before: whoever makes one keeps their `Arc`s.
//! Never: reads a catalog, a certificate file or a clock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use weft_catalog::config_entry::Entry;
use weft_catalog::intention::{self, Caller, Decision, DefaultPolicy};
use weft_identity::ca::SpiffeId;

use crate::balance::Balancer;

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The catalog's index that all parts are of, at least.
    pub index: u64,
    /// One for each proxy registered on this node.
    pub services: Vec<Arc<Service>>,
}

impl Config {
    /// The service of that registration.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.id == id)
    }
}

/// A local service as it takes part in the mesh.
#[derive(Clone, Debug)]
pub struct Service {
    /// Of the proxy's registration.
    pub id: String,
    /// The service's name.
    pub name: Arc<str>,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Where it is called; `None`: it only calls.
    pub inbound: Option<Arc<Inbound>>,
    /// Whom it calls.
    pub outbounds: Vec<Arc<Outbound>>,
}

/// What a service proves itself by.
#[derive(Debug)]
pub struct Identity {
    /// Its name in certificates.
    pub spiffe: SpiffeId,
    /// Number of the leaf, and of the roots: another makes new connections.
    pub generation: u64,
    /// For peers that know the tunnel.
    pub tunnel_server: Arc<ServerConfig>,
    /// For all others.
    pub plain_server: Arc<ServerConfig>,
}

/// Where a service is called.
#[derive(Debug)]
pub struct Inbound {
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
    pub gate: Gate,
    /// Who may call.
    pub intentions: Intentions,
}

/// A place to connect to or to listen at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; the mode is for who listens.
    Unix(PathBuf, Option<u32>),
}

/// The intentions that speak of a destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Intentions {
    /// The entry of its name.
    pub exact: Option<Arc<Entry>>,
    /// The entry of all names.
    pub any: Option<Arc<Entry>>,
    /// What holds where none speaks.
    pub default: DefaultPolicy,
    /// Index that they are of; `None`: not known yet, and nobody may call.
    pub index: Option<u64>,
}

impl Intentions {
    /// Whether `caller` may connect.
    #[must_use]
    pub fn decide(&self, caller: &SpiffeId) -> Decision {
        let Some(floor) = self.index else {
            return Decision {
                allowed: false,
                reason: "intention.unknown",
                matched: None,
                index: 0,
            };
        };
        // Agents and gateways have no name, and an empty one is denied.
        let caller = Caller::local(caller.service_name().unwrap_or_default());
        let entries = (self.exact.as_deref(), self.any.as_deref());
        intention::decide(entries, caller, self.default, floor)
    }
}

/// A limit of things at once, shared by all shards and kept while configurations come and go.
#[derive(Clone, Debug)]
pub struct Gate {
    /// At most.
    pub max: u32,
    /// Now.
    pub open: Arc<AtomicU32>,
}

impl Gate {
    /// A gate nobody is in.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self {
            max,
            open: Arc::default(),
        }
    }

    /// A place, given back when it is dropped; `None`: all are taken.
    #[must_use]
    pub fn enter(&self) -> Option<Seat> {
        let seat = Seat(self.open.clone());
        let before = self.open.fetch_add(1, Relaxed);
        (before < self.max).then_some(seat)
    }
}

/// A place within a [`Gate`].
#[derive(Debug)]
pub struct Seat(Arc<AtomicU32>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A service that is called.
#[derive(Debug)]
pub struct Outbound {
    /// As registered.
    pub name: Arc<str>,
    /// Where the application finds it.
    pub bind: Address,
    /// To be asked in this order: the next one if none of the one before can be.
    pub targets: Vec<Target>,
    /// For one endpoint, TLS included.
    pub connect_timeout: Duration,
    /// After which silent connections are closed; zero: never.
    pub idle_timeout: Duration,
    /// Connections at once.
    pub gate: Gate,
}

/// A set of endpoints of one service.
#[derive(Debug)]
pub struct Target {
    /// The service's name.
    pub service: Arc<str>,
    /// Said in the handshake: `[subset.]service.namespace.dc.internal.trust-domain`.
    pub server_name: rustls_pki_types::ServerName<'static>,
    /// With our leaf, and whom it must be.
    pub client: Arc<ClientConfig>,
    /// Where.
    pub balancer: Balancer,
}
