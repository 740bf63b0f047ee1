//! What this agent knows of the catalog for itself: small states, kept up to date by the servers, and
//! answered from whether servers are there or not.
//!
//! A view begins when somebody asks for it, goes on for as long as somebody does now and then, and is
//! kept on disk. It is unknown until the first whole content has come: unknown is answered with an
//! error, never with "there is none" (DESIGN F3, ADR 16).
//!
//! Owns: which views there are, how old they are, and who goes when there are too many.
//! Never: judges what is in them; the same reads as on a server do.

mod disk;
mod dns;
mod entry;
mod listing;
mod metrics;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use weft_catalog::view::ViewTopic;
use weft_catalog::{Hub, State};
use weft_proto::clock::Clock;
use weft_proto::v1;

use self::disk::Disk;
use self::entry::{Contact, View};
pub use self::listing::{Listed, Standing};
use self::metrics::ViewMetrics;

/// Settings of the views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewsConfig {
    /// This agent's node.
    pub node_name: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Where views are kept; `None`: they are gone after a restart.
    pub dir: Option<PathBuf>,
    /// Views at most (`views.max`).
    pub max: usize,
    /// Bytes of them at most, about (`views.max_bytes`).
    pub max_bytes: usize,
    /// A view that nobody has asked for in this time ends (`views.idle_ttl`).
    pub idle_ttl: Duration,
    /// The same for a view of what does not exist (`views.missing_idle_ttl`).
    pub missing_idle_ttl: Duration,
    /// How long a first question waits for the servers (`views.first_wait`).
    pub first_wait: Duration,
    /// Of the jitter.
    pub seed: u64,
}

impl Default for ViewsConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            datacenter: String::new(),
            dir: None,
            max: 4_096,
            max_bytes: 64 << 20,
            idle_ttl: Duration::from_hours(72),
            missing_idle_ttl: Duration::from_mins(10),
            first_wait: Duration::from_secs(3),
            seed: 0,
        }
    }
}

/// Replies of a server, until the stream ends.
pub type Replies = BoxStream<'static, Result<v1::SubscribeReply, String>>;

/// The way to the servers' streams.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Begins a stream at a server. Errors: nobody could be reached, and why.
    async fn subscribe(
        &self,
        requests: mpsc::Receiver<v1::SubscribeRequest>,
    ) -> Result<Replies, String>;

    /// The server at the other end has lost its leader or gone quiet: another one is wanted.
    fn elsewhere(&self);
}

/// What a view says at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its content.
    pub state: Arc<State>,
    /// How long ago it was known to be what the servers have.
    pub age: Duration,
    /// Whether a server with a leader keeps it up to date at present.
    pub connected: bool,
}

/// Why a view says nothing: neither that something is there nor that it is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No server has answered yet, or in time.
    #[error("no server has said yet what is there (views.unknown)")]
    NotYet,
    /// A server refused to serve the view.
    #[error("{message} ({reason})")]
    Refused {
        /// Stable id.
        reason: String,
        /// For the user.
        message: String,
    },
}

/// The views of this agent. Cheap to clone.
#[derive(Clone)]
pub struct Views {
    inner: Arc<Inner>,
}

struct Inner {
    config: ViewsConfig,
    clock: Arc<dyn Clock>,
    table: RwLock<HashMap<ViewTopic, Arc<View>>>,
    hub: Hub,
    contact: Contact,
    metrics: ViewMetrics,
    disk: Option<Disk>,
    ids: AtomicU64,
    /// What the session has yet to do.
    work: Mutex<Work>,
    changed: Notify,
}

#[derive(Default)]
struct Work {
    join: Vec<Arc<View>>,
    leave: Vec<u64>,
    syncs: Vec<oneshot::Sender<Result<(), String>>>,
}

impl Views {
    /// The views that were kept, if any; nothing is asked of servers before [`Views::run`].
    #[must_use]
    pub fn open(config: ViewsConfig, clock: Arc<dyn Clock>) -> Self {
        let disk = config.dir.clone().map(Disk::new);
        let inner = Arc::new(Inner {
            contact: Contact::default(),
            clock,
            table: RwLock::default(),
            hub: Hub::new(),
            metrics: ViewMetrics::default(),
            disk,
            ids: AtomicU64::new(0),
            work: Mutex::default(),
            changed: Notify::new(),
            config,
        });
        let views = Self { inner };
        views.load();
        views
    }

    /// Adds the views' metrics to `registry`; once.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        metrics::collect(registry, self.clone());
    }

    /// Keeps the views up to date until `stop` is cancelled; what they are then, is on disk when it returns.
    pub async fn run(self, streams: Arc<dyn Streams>, stop: CancellationToken) {
        let keeping = disk::keep(self.inner.clone(), stop.clone());
        tokio::join!(session::run(self.inner.clone(), streams, stop), keeping);
    }

    /// What a view says now. One that nobody asked for before begins. Never blocks.
    #[must_use]
    pub fn look(&self, topic: &ViewTopic) -> Option<Seen> {
        let now = self.inner.now();
        let known = self.inner.table.read().get(topic).cloned();
        let view = known.unwrap_or_else(|| self.inner.begin(topic, now));
        view.used(now);
        self.inner.seen(&view, now)
    }

    /// As [`Views::look`], and waits for a server to say it the first time: `limit` at most.
    pub async fn wait(&self, topic: &ViewTopic, limit: Duration) -> Result<Seen, Unknown> {
        if let Some(seen) = self.look(topic) {
            return Ok(seen);
        }
        let view = self.inner.begin(topic, self.inner.now());
        let said = tokio::time::timeout(limit, view.said()).await;
        if let Some(seen) = self.inner.seen(&view, self.inner.now()) {
            return Ok(seen);
        }
        match said {
            Ok(Some(refused)) => Err(refused),
            _ => Err(Unknown::NotYet),
        }
    }

    /// Waits until all views are as fresh as this call's beginning. Errors: why they are not known to be.
    pub async fn sync(&self, limit: Duration) -> Result<(), String> {
        let (done, synced) = oneshot::channel();
        {
            let mut work = self.inner.work.lock();
            if !self.inner.contact.is_open() {
                return Err("no server serves this agent's views at present".to_owned());
            }
            work.syncs.push(done);
        }
        self.inner.changed.notify_one();
        match tokio::time::timeout(limit, synced).await {
            Ok(Ok(synced)) => synced,
            Ok(Err(_)) => Err("the server that served this agent's views is gone".to_owned()),
            Err(_) => Err(format!("no server answered within {limit:?}")),
        }
    }

    /// Wakes who waits for changes of any view.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// How long a first question waits for the servers.
    #[must_use]
    pub fn first_wait(&self) -> Duration {
        self.inner.config.first_wait
    }

    /// How many views there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.table.read().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn load(&self) {
        let Some(disk) = &self.inner.disk else { return };
        let now = self.inner.now();
        let kept = disk.load(self.inner.config.max, self.inner.clock.wall(), now);
        self.inner.contact.was(kept.cluster_id);
        let mut table = self.inner.table.write();
        for (topic, state, as_of, bytes) in kept.views {
            let view = View::kept(self.inner.id(), topic.clone(), state, as_of, bytes, now);
            table.insert(topic, Arc::new(view));
        }
        if !table.is_empty() {
            tracing::info!(
                views = table.len(),
                "views of the catalog are back from disk"
            );
        }
    }
}

impl Inner {
    /// Milliseconds on the monotonic clock.
    fn now(&self) -> i64 {
        i64::try_from(self.clock.monotonic().as_millis()).unwrap_or(i64::MAX)
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn seen(&self, view: &View, now: i64) -> Option<Seen> {
        let state = view.state()?;
        let age = view.age(now, &self.contact);
        self.metrics.looks.inc();
        Some(Seen {
            state,
            age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
            connected: view.is_live() && self.contact.has_leader(),
        })
    }

    /// The view of a topic, begun unless it is there.
    fn begin(&self, topic: &ViewTopic, now: i64) -> Arc<View> {
        let mut table = self.table.write();
        if let Some(view) = table.get(topic) {
            return view.clone();
        }
        let view = Arc::new(View::unknown(self.id(), topic.clone(), now));
        let mut work = self.work.lock();
        while table.len() >= self.config.max {
            self.evict(&mut table, &mut work, "full");
        }
        table.insert(topic.clone(), view.clone());
        work.join.push(view.clone());
        drop((table, work));
        self.changed.notify_one();
        view
    }

    /// Ends the view that is missed least: one of nothing before one of something, then the one that was
    /// used longest ago.
    fn evict(
        &self,
        table: &mut HashMap<ViewTopic, Arc<View>>,
        work: &mut Work,
        reason: &'static str,
    ) {
        let least = table
            .values()
            .min_by_key(|view| (view.has_rows(), view.last_used()))
            .cloned();
        if let Some(view) = least {
            table.remove(&view.topic);
            self.ended(&view, work, reason);
        }
    }

    fn ended(&self, view: &View, work: &mut Work, reason: &'static str) {
        work.leave.push(view.id);
        self.metrics.ended(reason);
        if let Some(disk) = &self.disk {
            disk.forget(&view.topic);
        }
    }

    /// Ends views that nobody asks for any more, and those over the bound of bytes.
    fn tidy(&self, now: i64) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let (some, none) = (
            millis(self.config.idle_ttl),
            millis(self.config.missing_idle_ttl),
        );
        let mut table = self.table.write();
        let mut work = self.work.lock();
        table.retain(|_, view| {
            let ttl = if view.has_rows() { some } else { none };
            let keep = now.saturating_sub(view.last_used()) < ttl;
            if !keep {
                self.ended(view, &mut work, "idle");
            }
            keep
        });
        let mut bytes: usize = table.values().map(|view| view.bytes()).sum();
        while bytes > self.config.max_bytes && !table.is_empty() {
            self.evict(&mut table, &mut work, "bytes");
            bytes = table.values().map(|view| view.bytes()).sum();
        }
        if !work.leave.is_empty() {
            self.changed.notify_one();
        }
    }

    fn all(&self) -> Vec<Arc<View>> {
        self.table.read().values().cloned().collect()
    }
}
