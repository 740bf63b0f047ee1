//! Follows the leaves of the services that have a proxy here.
//!
//! Owns: one waiting task for each service, and the newest leaf of each. Never: makes leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::leaves::{HeldLeaf, LeafError, Leaves};

/// A leaf is asked for at least this often, so that it counts as used.
const WAIT: Duration = Duration::from_mins(10);
/// Between tries for a leaf that cannot be had; doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What is known of a service's leaf.
pub(super) type Known = Result<Arc<HeldLeaf>, LeafError>;

/// The leaves of this node's proxies.
pub(super) struct Following {
    leaves: Leaves,
    changed: Arc<Notify>,
    known: Arc<Mutex<BTreeMap<String, Known>>>,
    tasks: BTreeMap<String, AbortHandle>,
}

impl Following {
    /// Tells `changed` of every leaf that comes.
    pub(super) fn new(leaves: Leaves, changed: Arc<Notify>) -> Self {
        Self {
            leaves,
            changed,
            known: Arc::default(),
            tasks: BTreeMap::new(),
        }
    }

    /// Follows these services and no other.
    pub(super) fn follow(&mut self, services: &BTreeSet<String>) {
        let known = &self.known;
        self.tasks.retain(|service, task| {
            let stays = services.contains(service);
            if !stays {
                task.abort();
                known.lock().remove(service);
            }
            stays
        });
        for service in services {
            if self.tasks.contains_key(service) {
                continue;
            }
            let one = follow(
                self.leaves.clone(),
                service.clone(),
                self.known.clone(),
                self.changed.clone(),
            );
            let task = tokio::spawn(one).abort_handle();
            self.tasks.insert(service.clone(), task);
        }
    }

    /// The newest of a service; `None`: it is on its way.
    pub(super) fn of(&self, service: &str) -> Option<Known> {
        self.known.lock().get(service).cloned()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

async fn follow(
    leaves: Leaves,
    service: String,
    known: Arc<Mutex<BTreeMap<String, Known>>>,
    changed: Arc<Notify>,
) {
    let (mut after, mut pause) = (0, PAUSE.0);
    loop {
        let got = leaves
            .get(&service, after, WAIT)
            .await
            .map(|(leaf, _)| leaf);
        let rest = match &got {
            Ok(leaf) => {
                after = leaf.index;
                pause = PAUSE.0;
                Duration::ZERO
            }
            Err(_) => {
                let now = pause;
                pause = (pause * 2).min(PAUSE.1);
                now
            }
        };
        {
            let mut known = known.lock();
            // One that is here stays in use for as long as there is no other.
            let keeps = got.is_err() && matches!(known.get(&service), Some(Ok(_)));
            if !keeps {
                known.insert(service.clone(), got);
            }
        }
        changed.notify_one();
        tokio::time::sleep(rest).await;
    }
}
