//! Tunnels that are open, by whom and to where.
//!
//! Owns: which tunnel a new stream may share, and that many who want one wait for a single handshake.
//! Never: dials. A tunnel is shared only within one identity, one target and one endpoint: the whole key is compared.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tunnel::Tunnel;
use crate::wire::Reason;

/// What tunnels may be shared by.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// Identity and target at once: made for one leaf, one set of roots and the ids expected. Compared as an object.
    pub(super) client: Arc<ClientConfig>,
    pub(super) endpoint: SocketAddr,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client) && self.endpoint == other.endpoint
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.client).hash(state);
        self.endpoint.hash(state);
    }
}

/// What is known of one key.
struct Place {
    tunnels: Vec<Tunnel>,
    /// The last peer knew no tunnel: nobody waits for another's handshake.
    is_plain: bool,
    turn: Arc<Semaphore>,
}

/// A shard's tunnels.
#[derive(Default)]
pub(super) struct Pool {
    places: HashMap<Key, Place>,
}

impl Pool {
    /// A tunnel with room.
    pub(super) fn get(&self, key: &Key) -> Option<Tunnel> {
        let place = self.places.get(key)?;
        place.tunnels.iter().find(|t| t.has_room()).cloned()
    }

    /// The right to dial; `None`: no need to ask, each connection has its own.
    pub(super) fn turn(&mut self, key: &Key) -> Option<Arc<Semaphore>> {
        let place = self.place(key);
        (!place.is_plain).then(|| place.turn.clone())
    }

    /// A handshake is done.
    pub(super) fn learn(
        &mut self,
        key: &Key,
        tunnel: Option<Tunnel>,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        // The place may have been swept meanwhile; the next sweep drains what is of an older configuration.
        let place = self.place(key);
        place.is_plain = tunnel.is_none();
        place.tunnels.extend(tunnel);
        drop(turn);
    }

    fn place(&mut self, key: &Key) -> &mut Place {
        self.places.entry(key.clone()).or_insert_with(|| Place {
            tunnels: Vec::new(),
            is_plain: false,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Tunnels of configurations that are gone take no new streams; those that ended are forgotten.
    pub(super) fn sweep(&mut self, is_current: impl Fn(&Key) -> bool) -> Vec<Tunnel> {
        let mut live = Vec::new();
        self.places.retain(|key, place| {
            place.tunnels.retain(|tunnel| tunnel.ended().is_none());
            let current = is_current(key);
            if !current {
                place.tunnels.iter().for_each(|t| t.drain(Reason::Drained));
            }
            live.extend(place.tunnels.iter().cloned());
            current || !place.tunnels.is_empty()
        });
        live
    }

    /// All of them.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.places.values().flat_map(|place| &place.tunnels)
    }
}

/// Shared by the tasks of one thread.
pub(super) type SharedPool = Rc<std::cell::RefCell<Pool>>;
