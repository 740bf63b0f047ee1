//! The state everybody reads: one `Arc<State>` swapped per applied batch, and the hub it wakes.
//!
//! Owns: the order "store, then wake".
//! Never: changes a state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use weft_catalog::{Hub, State, Touched};

/// The newest applied state and those who wait for the next.
pub struct Published {
    state: ArcSwap<State>,
    hub: Hub,
    announced: AtomicU64,
}

impl Published {
    /// Starts with `state` and nobody waiting.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        Self {
            announced: AtomicU64::new(state.index().get()),
            state: ArcSwap::new(state),
            hub: Hub::new(),
        }
    }

    /// The newest state. O(1), never blocks.
    #[must_use]
    pub fn load(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Where readers wait for changes.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Of everything up to this index, whoever waited for it has been woken.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.announced.load(Ordering::SeqCst)
    }

    /// Makes `state` the one that is read, then wakes watchers of what changed. Waking after the
    /// store is what lets a reader register, look, and sleep without missing a change.
    pub fn store(&self, state: Arc<State>, touched: &Touched) {
        let index = state.index().get();
        let old = self.state.swap(state);
        self.hub.publish(touched);
        self.announced.fetch_max(index, Ordering::SeqCst);
        drop_aside(old);
    }
}

/// Drops a state that nobody else holds away from the apply path when it is a big one.
fn drop_aside(old: Arc<State>) {
    // Successive states share nearly all of their nodes, so the drop is usually a handful of them;
    // only a whole replaced state (restore) is big, and `Fsm::restore` hands that to a thread.
    drop(old);
}
