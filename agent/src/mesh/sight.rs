//! What this agent knows of the catalog: a server its whole state, others their views.
//!
//! Owns: one way to read from both, and what to wait for to read again.
//! Never: blocks, or takes "not known yet" for "there is none".

use std::sync::Arc;

use parking_lot::Mutex;
use weft_catalog::view::ViewTopic;
use weft_catalog::{Hub, Reader, State, Topics, Trace};

use crate::backend::Backend;
use crate::views::Views;

/// Where is looked.
pub(super) struct Sight {
    backend: Arc<dyn Backend>,
    views: Option<Views>,
    topics: Mutex<Topics>,
}

impl Sight {
    pub(super) fn new(backend: Arc<dyn Backend>, views: Option<Views>) -> Self {
        Self {
            backend,
            views,
            topics: Mutex::default(),
        }
    }

    /// Wakes when what was read may have changed.
    pub(super) fn hub(&self) -> &Hub {
        match &self.views {
            Some(views) => views.hub(),
            None => self.backend.hub(),
        }
    }

    /// What `read` finds; `None`: not known yet. Its reads are among [`Sight::take_topics`] either way.
    pub(super) fn look<T>(
        &self,
        topic: &ViewTopic,
        read: impl FnOnce(Reader<'_>) -> T,
    ) -> Option<T> {
        let trace = Trace::on();
        let (state, known) = match &self.views {
            None => (self.backend.state(), true),
            Some(views) => match views.look(topic) {
                Some(seen) => (seen.state, true),
                // The same reads of nothing: what they depend on is what will come.
                None => (Arc::new(State::default()), false),
            },
        };
        let found = read(state.read(&trace));
        self.topics.lock().merge(&trace.into_topics());
        known.then_some(found)
    }

    /// What all looks since the last call depended on.
    pub(super) fn take_topics(&self) -> Topics {
        std::mem::take(&mut self.topics.lock())
    }
}
