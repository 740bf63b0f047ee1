//! Connections to servers, made when needed and shared.
//!
//! Owns: at most one connection a server that takes new calls, and what is said about those that cannot be made.
//! Never: sends anything itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::config::{Dial, ServerAt};
use crate::connection::Connection;
use crate::metrics::Metrics;
use crate::servers::Servers;

/// A connection that is there, or being made.
type Slot = Shared<BoxFuture<'static, Result<Connection, Arc<str>>>>;

pub(crate) struct Pool {
    pub(crate) servers: Mutex<Servers>,
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Why a server could not be reached, as it was last said in the log.
    said: Mutex<BTreeMap<String, Arc<str>>>,
    dial: Arc<dyn Dial>,
    metrics: Arc<Metrics>,
}

impl Pool {
    pub(crate) fn new(dial: Arc<dyn Dial>, metrics: Arc<Metrics>, seed: u64) -> Self {
        Self {
            servers: Mutex::new(Servers::new(seed)),
            slots: Mutex::default(),
            said: Mutex::default(),
            dial,
            metrics,
        }
    }

    /// Takes what gossip shows. Calls to a server that is gone and that may be made elsewhere are.
    pub(crate) fn set_servers(&self, now: &[ServerAt]) {
        let gone = self.servers.lock().set(now);
        self.metrics
            .servers
            .set(i64::try_from(now.len()).unwrap_or(i64::MAX));
        self.said
            .lock()
            .retain(|address, _| now.iter().any(|one| one.address == *address));
        for server in gone {
            tracing::info!(server.addr = %server.address, node.name = %server.name, "a server is gone");
            self.lose(&server.address);
        }
    }

    /// The server is gone: whoever can ask another does so now.
    fn lose(&self, address: &str) {
        let slot = self.slots.lock().remove(address);
        if let Some(Ok(connection)) = slot.and_then(|slot| slot.peek().cloned()) {
            connection.lost.cancel();
        }
        self.count();
    }

    /// Takes no more calls over the connection to `address`; those on their way go on.
    pub(crate) fn release(&self, address: &str) {
        self.slots.lock().remove(address);
        self.count();
    }

    /// Servers with a connection, or one being made.
    pub(crate) fn connected(&self) -> Vec<String> {
        self.slots.lock().keys().cloned().collect()
    }

    /// The connection to `address`, made if need be. All who wait for it wait for the same.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        address: &str,
    ) -> Result<Connection, Arc<str>> {
        let slot = {
            let mut slots = self.slots.lock();
            match slots.get(address) {
                Some(slot) if is_good(slot) => slot.clone(),
                _ => {
                    let slot = self.begin(address.to_owned());
                    slots.insert(address.to_owned(), slot.clone());
                    slot
                }
            }
        };
        slot.await
    }

    fn begin(self: &Arc<Self>, address: String) -> Slot {
        let pool = Arc::clone(self);
        // A task of its own: who asked first may give up, the others still wait.
        let made = tokio::spawn(async move {
            let stream = pool.dial.dial(&address).await;
            let made = match stream {
                Ok(stream) => Connection::begin(stream).await,
                Err(cause) => Err(cause),
            };
            let made = made.map_err(|cause| pool.not_made(&address, &cause));
            if made.is_ok() {
                pool.said.lock().remove(&address);
                tracing::info!(server.addr = %address, "connected to a server");
            }
            pool.count();
            made
        });
        let ended = |_| Arc::from("the agent is stopping");
        made.map(move |made| made.map_err(ended).flatten())
            .boxed()
            .shared()
    }

    fn not_made(&self, address: &str, cause: &io::Error) -> Arc<str> {
        let reason = reason(cause);
        self.metrics.dial_failed(reason);
        let text: Arc<str> = format!("{address}: {cause}").into();
        let known = self.said.lock().insert(address.to_owned(), text.clone());
        if known.as_ref() == Some(&text) {
            tracing::debug!(server.addr = %address, reason, error = %cause, "still no connection to a server");
        } else {
            tracing::warn!(server.addr = %address, reason, error = %cause, "no connection to a server");
        }
        text
    }

    /// The server took a call and did not answer it, or not in time: said once, until there is a new connection to it.
    pub(crate) fn not_answered(&self, address: &str, why: &str) {
        let known = self.said.lock().insert(address.to_owned(), why.into());
        if known.as_deref() != Some(why) {
            tracing::warn!(server.addr = %address, reason = "rpc.no_answer", error = %why, "a server does not answer; the others are asked before it");
        }
    }

    fn count(&self) {
        let slots = self.slots.lock();
        let open = slots.values().filter(|slot| is_open(slot)).count();
        self.metrics
            .connections
            .set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

/// Being made, or made and not lost.
fn is_good(slot: &Slot) -> bool {
    slot.peek().is_none_or(is_usable)
}

fn is_open(slot: &Slot) -> bool {
    slot.peek().is_some_and(is_usable)
}

fn is_usable(made: &Result<Connection, Arc<str>>) -> bool {
    made.as_ref().is_ok_and(|connection| !connection.is_lost())
}

/// The label of the metric.
fn reason(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::PermissionDenied => "declined",
        io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => "hung_up",
        io::ErrorKind::Other | io::ErrorKind::InvalidData => "tls",
        _ => "io",
    }
}
