//! What DNS reads: a local view of the catalog, with its age.

use std::sync::Arc;
use std::time::Duration;

use weft_catalog::State;

/// A look at the local view.
pub enum Viewed {
    /// Nothing was ever received: answer SERVFAIL.
    Unknown,
    /// The newest state here, and how long ago its source was known to be in touch with a leader.
    Ready {
        /// The state to answer from.
        state: Arc<State>,
        /// Its age.
        age: Duration,
    },
}

/// Where DNS finds the catalog. On a server it is the server's own applied state; on a client agent
/// it is the view that the agent keeps.
pub trait DnsView: Send + Sync + 'static {
    /// O(1), never blocks.
    fn look(&self) -> Viewed;
}
