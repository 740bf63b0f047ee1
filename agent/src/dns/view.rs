//! What DNS reads: a local view of the catalog, with its age.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use weft_catalog::State;
use weft_catalog::view::ViewTopic;

/// A look at the local view.
pub enum Viewed {
    /// Nothing was ever received: answer SERVFAIL.
    Unknown,
    /// The newest state here, and how long ago its source was known to be in touch with a leader.
    Ready {
        /// The state to answer from: at least what the topic is of.
        state: Arc<State>,
        /// Its age.
        age: Duration,
    },
}

/// Where DNS finds the catalog. On a server it is the server's own applied state; on a client agent
/// it is the views that the agent keeps.
#[async_trait]
pub trait DnsView: Send + Sync + 'static {
    /// O(1), never blocks.
    fn look(&self, topic: &ViewTopic) -> Viewed;

    /// Returns when a look at an unknown view may find it, or when it is no use to wait longer.
    async fn wait(&self, topic: &ViewTopic);
}
