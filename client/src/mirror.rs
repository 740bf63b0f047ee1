//! What the catalog has of the nodes this agent cares for: its own, and those that its alias checks follow.
//!
//! Owns: a partial [`State`] with their rows, on which the same code reads as on a server's.
//! Never: says anything of other nodes: for them this state is no evidence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use weft_catalog::{Catalog, Hub, State};
use weft_proto::ids::LogIndex;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::error::CallError;

/// Why the rows of a node could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// No server answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// One answered that it cannot tell now.
    #[error("{0}")]
    Refused(String),
}

pub(crate) struct Mirror {
    rows: Mutex<BTreeMap<String, v1::NodeRowsReply>>,
    /// How many want a node's rows kept.
    wanted: Mutex<BTreeMap<String, usize>>,
    state: ArcSwap<State>,
    hub: Hub,
    nodes: AtomicUsize,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            rows: Mutex::default(),
            wanted: Mutex::default(),
            state: ArcSwap::new(Catalog::new().publish().0),
            hub: Hub::new(),
            nodes: AtomicUsize::new(0),
        }
    }
}

impl Mirror {
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// How many nodes the whole catalog knew when it was last asked.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.load(Ordering::Relaxed)
    }

    /// Takes what a server has said of `node`.
    pub(crate) fn take(&self, node: &str, reply: v1::NodeRowsReply) {
        self.nodes.store(
            usize::try_from(reply.nodes).unwrap_or(usize::MAX),
            Ordering::Relaxed,
        );
        let mut rows = self.rows.lock();
        let known = rows.get(&node.to_ascii_lowercase());
        if known.is_some_and(|known| same(known, &reply)) {
            return;
        }
        rows.insert(node.to_ascii_lowercase(), reply);
        self.publish(&rows);
    }

    /// Takes the coordinate that this agent has reported.
    pub(crate) fn reported(&self, coordinate: v1::Coordinate) {
        let mut rows = self.rows.lock();
        if let Some(row) = rows.get_mut(&coordinate.node.to_ascii_lowercase()) {
            row.coordinate = Some(coordinate);
            self.publish(&rows);
        }
    }

    /// One more wants the rows of `node`.
    pub(crate) fn want(&self, node: &str) {
        *self
            .wanted
            .lock()
            .entry(node.to_ascii_lowercase())
            .or_default() += 1;
    }

    /// The rows of this agent's own node are wanted for ever.
    pub(crate) fn keep(&self, node: &str) {
        const FOR_EVER: usize = usize::MAX / 2;
        let mut wanted = self.wanted.lock();
        let count = wanted.entry(node.to_ascii_lowercase()).or_default();
        if *count < FOR_EVER {
            *count += FOR_EVER;
        }
    }

    /// One less wants them; after the last they are forgotten.
    pub(crate) fn release(&self, node: &str) {
        let mut wanted = self.wanted.lock();
        let key = node.to_ascii_lowercase();
        let Some(count) = wanted.get_mut(&key) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            wanted.remove(&key);
            drop(wanted);
            self.forget(node);
        }
    }

    fn forget(&self, node: &str) {
        let mut rows = self.rows.lock();
        if rows.remove(&node.to_ascii_lowercase()).is_some() {
            self.publish(&rows);
        }
    }

    fn publish(&self, rows: &BTreeMap<String, v1::NodeRowsReply>) {
        let mut catalog = Catalog::new();
        let commands = rows.values().flat_map(commands);
        for (at, command) in commands.enumerate() {
            let stamped = v1::Stamped {
                command: Some(command),
                ..v1::Stamped::default()
            };
            // A server has applied all of it before.
            if let Err(error) = catalog.apply(LogIndex(at as u64 + 1), &stamped) {
                tracing::error!(%error, "what a server says of a node is not understood; is it newer?");
            }
        }
        let (state, touched) = catalog.publish_everything();
        self.state.store(state);
        self.hub.publish(&touched);
    }
}

/// The number of all nodes is no news of this one.
fn same(known: &v1::NodeRowsReply, reply: &v1::NodeRowsReply) -> bool {
    known.index == reply.index
        && known.coordinate == reply.coordinate
        && known.services.len() == reply.services.len()
        && known.checks.len() == reply.checks.len()
}

/// The rows as the commands that make them.
fn commands(reply: &v1::NodeRowsReply) -> impl Iterator<Item = Command> {
    let register = |service: Option<&v1::Service>, checks: Vec<v1::Check>| {
        reply.node.clone().map(|node| {
            Command::Register(v1::Register {
                node: Some(node),
                service: service.cloned(),
                checks,
                skip_node_update: false,
            })
        })
    };
    let services = reply.services.iter();
    let services = services.map(move |service| register(Some(service), Vec::new()));
    let coordinate = reply.coordinate.clone().map(|coordinate| {
        Command::Coordinates(v1::CoordinateBatch {
            coordinates: vec![coordinate],
        })
    });
    services
        .chain([register(None, reply.checks.clone()), coordinate])
        .flatten()
}

#[cfg(test)]
mod tests {
    use weft_catalog::Trace;

    use super::*;

    fn reply(index: u64, services: &[&str]) -> v1::NodeRowsReply {
        let service = |id: &&str| v1::Service {
            id: (*id).into(),
            name: (*id).into(),
            ..v1::Service::default()
        };
        let check = |id: &&str| v1::Check {
            node: "c1".into(),
            id: format!("service:{id}"),
            status: "passing".into(),
            service_id: (*id).into(),
            ..v1::Check::default()
        };
        v1::NodeRowsReply {
            node: Some(v1::Node {
                name: "c1".into(),
                address: "127.0.0.1".into(),
                ..v1::Node::default()
            }),
            services: services.iter().map(service).collect(),
            checks: services.iter().map(check).collect(),
            coordinate: None,
            index,
            nodes: 7,
        }
    }

    #[test]
    fn what_a_server_says_of_a_node_is_read_like_the_catalog() {
        let mirror = Mirror::default();
        mirror.take("C1", reply(10, &["web", "db"]));
        let state = mirror.state();
        let trace = Trace::off();
        let reader = state.read(&trace);
        assert_eq!(reader.node("c1").rows.unwrap().address, "127.0.0.1");
        assert_eq!(reader.node_services("c1").rows.len(), 2);
        assert_eq!(reader.checks_of_node("c1").rows.len(), 2);
        assert_eq!(mirror.nodes(), 7);
        mirror.take("c1", reply(11, &["web"]));
        assert_eq!(
            mirror.state().read(&trace).node_services("c1").rows.len(),
            1
        );
        let known = || mirror.state().read(&Trace::off()).node("c1").rows.is_some();
        for _ in 0..2 {
            mirror.want("c1");
        }
        mirror.release("C1");
        assert!(known(), "another still wants it");
        mirror.release("c1");
        assert!(!known());
        mirror.keep("c1");
        mirror.want("c1");
        mirror.take("c1", reply(12, &["web"]));
        mirror.release("c1");
        assert!(known(), "the agent's own node stays");
    }

    #[test]
    fn news_wakes_who_waits_for_the_node() {
        let mirror = Mirror::default();
        mirror.take("c1", reply(10, &["web"]));
        let trace = Trace::on();
        let _ = mirror.state().read(&trace).checks_of_node("c1");
        let mut woken = Box::pin(mirror.hub().watch(&trace.into_topics()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        mirror.take("c1", reply(10, &["web"]));
        assert!(woken.as_mut().poll(&mut context).is_pending());
        mirror.take("c1", reply(12, &["web", "db"]));
        assert!(woken.as_mut().poll(&mut context).is_ready());
    }
}
