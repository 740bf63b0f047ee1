//! DNS answered from the views.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use weft_catalog::State;
use weft_catalog::view::ViewTopic;

use super::{Seen, Views};
use crate::dns::{DnsView, Viewed};

/// A resolver asks again, or elsewhere, after some seconds: an answer must be there before.
const WAIT_MAX: Duration = Duration::from_secs(2);

#[async_trait]
impl DnsView for Views {
    fn look(&self, topic: &ViewTopic) -> Viewed {
        Self::look(self, topic).map_or(Viewed::Unknown, |seen| self.viewed(topic, seen))
    }

    async fn wait(&self, topic: &ViewTopic) {
        let limit = self.first_wait().min(WAIT_MAX);
        // Whether it came to something, is seen by looking.
        let _ = Self::wait(self, topic, limit).await;
    }
}

impl Views {
    fn viewed(&self, topic: &ViewTopic, seen: Seen) -> Viewed {
        let Seen { state, age, .. } = seen;
        // The order by distance counts for some prepared queries; without places there is none.
        let state = match topic {
            ViewTopic::Query(_) => self.beside_places(state),
            _ => state,
        };
        Viewed::Ready { state, age }
    }

    /// The state beside where nodes lie, if it holds a query that asks for an order.
    fn beside_places(&self, state: Arc<State>) -> Arc<State> {
        let trace = weft_catalog::Trace::off();
        let queries = state.read(&trace).prepared_queries().rows;
        if queries.iter().all(|query| query.near.is_empty()) {
            return state;
        }
        match self.look(&ViewTopic::Coordinates) {
            Some(places) => Arc::new(state.with_coordinates_of(&places.state)),
            None => state,
        }
    }
}
