//! One view, and when servers were last heard.
//!
//! Owns: content, age and last use. Never: decides who ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_catalog::State;
use weft_catalog::view::ViewTopic;

use super::Unknown;

/// Never: longer ago than any clock counts.
const NEVER: i64 = i64::MIN;
/// What a view costs beside its rows.
const VIEW_BYTES: usize = 4 << 10;

/// A view and what is known of it.
pub(super) struct View {
    pub(super) id: u64,
    pub(super) topic: ViewTopic,
    /// `None`: unknown.
    state: ArcSwapOption<State>,
    /// The session keeps it up to date.
    live: AtomicBool,
    /// When it was last known to be what the servers have; while it is live, the contact says so.
    as_of: AtomicI64,
    last_used: AtomicI64,
    bytes: AtomicUsize,
    refused: Mutex<Option<Unknown>>,
    news: Notify,
}

impl View {
    pub(super) fn unknown(id: u64, topic: ViewTopic, now: i64) -> Self {
        Self {
            id,
            topic,
            state: ArcSwapOption::empty(),
            live: AtomicBool::new(false),
            as_of: AtomicI64::new(NEVER),
            last_used: AtomicI64::new(now),
            bytes: AtomicUsize::new(VIEW_BYTES),
            refused: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// One that comes from disk.
    pub(super) fn kept(
        id: u64,
        topic: ViewTopic,
        state: State,
        as_of: i64,
        bytes: usize,
        now: i64,
    ) -> Self {
        let view = Self::unknown(id, topic, now);
        view.as_of.store(as_of, Ordering::Relaxed);
        view.bytes.store(VIEW_BYTES + bytes, Ordering::Relaxed);
        view.state.store(Some(Arc::new(state)));
        view
    }

    pub(super) fn state(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    /// Takes new content; `bytes`: of the frame that made it whole, if it did.
    pub(super) fn take(&self, state: Arc<State>, bytes: Option<usize>) {
        if let Some(bytes) = bytes {
            // Decoded, with the indexes derived from it, it takes some four times what it did on its way.
            self.bytes.store(VIEW_BYTES + bytes * 4, Ordering::Relaxed);
        }
        self.state.store(Some(state));
    }

    /// From now on the session keeps it up to date.
    pub(super) fn lives(&self) {
        *self.refused.lock() = None;
        self.live.store(true, Ordering::SeqCst);
        self.news.notify_waiters();
    }

    /// The session has ended; what it said last, was as of `contact`.
    pub(super) fn lost(&self, contact: i64) {
        if self.live.swap(false, Ordering::SeqCst) {
            self.as_of.store(contact, Ordering::SeqCst);
        }
    }

    pub(super) fn refuse(&self, refused: Unknown, contact: i64) {
        self.lost(contact);
        *self.refused.lock() = Some(refused);
        self.news.notify_waiters();
    }

    pub(super) fn refusal(&self) -> Option<Unknown> {
        self.refused.lock().clone()
    }

    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    /// Milliseconds since it was known to be what the servers have.
    pub(super) fn age(&self, now: i64, contact: &Contact) -> i64 {
        let as_of = self.as_of(contact);
        now.saturating_sub(as_of).max(0)
    }

    pub(super) fn as_of(&self, contact: &Contact) -> i64 {
        if self.is_live() {
            contact.heard()
        } else {
            self.as_of.load(Ordering::SeqCst)
        }
    }

    /// Resolves when something was said of it: with a refusal, or with nothing.
    pub(super) async fn said(&self) -> Option<Unknown> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Registered before looking, so that nothing is missed.
            news.as_mut().enable();
            if self.state.load().is_some() {
                return None;
            }
            let refused = self.refused.lock().clone();
            if refused.is_some() {
                return refused;
            }
            news.await;
        }
    }

    pub(super) fn used(&self, now: i64) {
        self.last_used.store(now, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> i64 {
        self.last_used.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn has_rows(&self) -> bool {
        let state = self.state.load();
        state.as_ref().is_some_and(|state| !state.is_without_rows())
    }
}

/// What is known of the servers as a whole.
pub(super) struct Contact {
    open: AtomicBool,
    leader: AtomicBool,
    /// When a server that serves the views last knew itself in touch with its leader.
    heard: AtomicI64,
    /// Since when no server serves the views; [`NEVER`] while one does.
    alone_since: AtomicI64,
    /// Cluster, restore epoch and index that the views are as of.
    frontier: Mutex<(String, u64, u64)>,
}

impl Default for Contact {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(false),
            leader: AtomicBool::new(false),
            heard: AtomicI64::new(NEVER),
            alone_since: AtomicI64::new(NEVER),
            frontier: Mutex::default(),
        }
    }
}

impl Contact {
    pub(super) fn was(&self, cluster_id: String) {
        self.frontier.lock().0 = cluster_id;
    }

    pub(super) fn frontier(&self) -> (String, u64, u64) {
        self.frontier.lock().clone()
    }

    /// A server serves the views. True: of another cluster or after a restore.
    pub(super) fn opened(&self, cluster_id: &str, restore_epoch: u64, now: i64) -> bool {
        let mut frontier = self.frontier.lock();
        let other = frontier.0 != cluster_id || frontier.1 != restore_epoch;
        if other {
            *frontier = (cluster_id.to_owned(), restore_epoch, 0);
        }
        if self.heard() == NEVER {
            self.heard.store(now, Ordering::SeqCst);
        }
        self.open.store(true, Ordering::SeqCst);
        self.alone_since.store(NEVER, Ordering::SeqCst);
        other
    }

    pub(super) fn closed(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.leader.store(false, Ordering::SeqCst);
    }

    /// Nobody could be reached; true the first time.
    pub(super) fn alone(&self, since: i64) -> bool {
        let known =
            self.alone_since
                .compare_exchange(NEVER, since, Ordering::SeqCst, Ordering::SeqCst);
        known.is_ok()
    }

    pub(super) fn alone_since(&self) -> Option<i64> {
        Some(self.alone_since.load(Ordering::SeqCst)).filter(|since| *since != NEVER)
    }

    /// All views are complete through `index`, as of `heard`.
    pub(super) fn complete(&self, index: u64, heard: i64, leader: bool) {
        let mut frontier = self.frontier.lock();
        frontier.2 = frontier.2.max(index);
        self.heard.fetch_max(heard, Ordering::SeqCst);
        self.leader.store(leader, Ordering::SeqCst);
    }

    pub(super) fn heard(&self) -> i64 {
        self.heard.load(Ordering::SeqCst)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn has_leader(&self) -> bool {
        self.leader.load(Ordering::SeqCst)
    }
}
