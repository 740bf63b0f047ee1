//! Leaves of this agent's services: made when first asked for, renewed in time, shared by all who ask.
//!
//! Owns: the keys (made here; they leave only through [`Leaves::get`]), when a leaf is renewed, and the sealed files from
//! which both come back after a restart, servers or not.
//! Never: decides who may have one, signs, or opens a socket.
//! Source: DESIGN §4, Identity: renewal at 33–50 % of life with jitter; Consul docs, "Connect certificate management".

mod disk;
mod signer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_catalog::view::ViewTopic;
use weft_catalog::{State, Trace};
use weft_identity::Secret;
use weft_proto::clock::Clock;

use crate::backend::{Backend, Operator, Relay};
use crate::views::Views;
use disk::Disk;
use signer::Signer;

/// Services whose leaves one agent keeps.
pub const LEAVES_MAX: usize = 1_024;
/// How often is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A leaf that nobody asked for so long is renewed no more.
const IDLE: Duration = Duration::from_secs(3 * 24 * 3_600);
/// Longest pause after a failed renewal.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// New roots make all leaves due; that is spread over a tenth of their life, and this at most.
const SPREAD_MAX: Duration = Duration::from_secs(300);
/// Certificates begin so long before they are made.
const BACKDATED_SECONDS: i64 = 300;

/// Why there is no leaf.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// The CA said no.
    #[error("{text}")]
    Refused {
        /// As an HTTP status.
        status: u16,
        /// The CA's reason id.
        reason: String,
        /// In its words.
        text: String,
    },
    /// No server answered, and there is none from before.
    #[error("no leaf is here, and none can be had: {0}")]
    Unreachable(String),
    /// No key could be made.
    #[error("no key could be made: the system gives no randomness")]
    Key,
    /// [`LEAVES_MAX`] are kept.
    #[error("this agent keeps leaves of {LEAVES_MAX} services already, the most there may be")]
    TooMany,
}

impl LeafError {
    /// The stable id of the reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused { reason, .. } => reason,
            Self::Unreachable(_) => "leaf.unreachable",
            Self::Key => "leaf.key",
            Self::TooMany => "leaf.too_many",
        }
    }
}

/// A leaf and its key.
#[derive(Clone, Debug)]
pub struct HeldLeaf {
    /// `EC PRIVATE KEY`, PEM.
    pub key_sec1: Secret<String>,
    /// PEM: the leaf, then bridges.
    pub chain: String,
    /// `aa:bb:…`.
    pub serial: String,
    /// The SPIFFE id.
    pub uri: String,
    /// First second it is valid, Unix time.
    pub not_before: i64,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
    /// Rises with every leaf of the service.
    pub index: u64,
    /// The root it leads to.
    pub root_id: String,
}

impl HeldLeaf {
    fn life_seconds(&self) -> i64 {
        self.not_after.saturating_sub(self.issued()).max(1)
    }

    fn issued(&self) -> i64 {
        self.not_before.saturating_add(BACKDATED_SECONDS)
    }
}

/// One service's.
struct Entry {
    leaf: watch::Sender<Option<Arc<HeldLeaf>>>,
    /// Held while one is being made: whoever comes meanwhile gets the same.
    making: tokio::sync::Mutex<()>,
    plan: Mutex<Plan>,
}

/// When the next one is to be made.
#[derive(Debug)]
struct Plan {
    /// Unix seconds, with a fraction; `None`: not planned yet.
    due: Option<f64>,
    failures: u32,
    /// Monotonic.
    asked: Duration,
    under_way: bool,
}

/// All of an agent's. Cheap to clone.
#[derive(Clone)]
pub struct Leaves {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    signer: Signer,
    backend: Arc<dyn Backend>,
    views: Option<Views>,
    disk: Option<Disk>,
    clock: Arc<dyn Clock>,
    rng: Mutex<SmallRng>,
    metrics: Metrics,
}

#[derive(Default)]
struct Metrics {
    held: Gauge,
    made: Family<ResultLabel, Counter>,
    expires_seconds: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What leaves stand on.
pub struct LeafDeps {
    /// Signs, on a server.
    pub operator: Arc<dyn Operator>,
    /// Reaches who signs, elsewhere.
    pub relay: Option<Arc<dyn Relay>>,
    /// Knows the roots, on a server.
    pub backend: Arc<dyn Backend>,
    /// Know the roots, elsewhere.
    pub views: Option<Views>,
    /// The node's name, for the CA's log.
    pub node_name: String,
    /// Where leaves survive a restart; `None`: they do not.
    pub dir: Option<PathBuf>,
    /// Of the jitter.
    pub seed: u64,
}

impl Leaves {
    /// Opens what an earlier run left.
    #[must_use]
    pub fn open(deps: LeafDeps, clock: Arc<dyn Clock>) -> Self {
        let disk = deps.dir.and_then(|dir| match Disk::open(&dir) {
            Ok(disk) => Some(disk),
            Err(why) => {
                tracing::warn!(error = %why, "leaves will not survive a restart");
                None
            }
        });
        let now = seconds_now(&*clock);
        let found = disk.as_ref().map(Disk::load).unwrap_or_default();
        let (asked, mut entries) = (clock.monotonic(), BTreeMap::new());
        for (service, leaf) in found {
            if leaf.not_after > now as i64 {
                entries.insert(service, Arc::new(Entry::new(Some(Arc::new(leaf)), asked)));
            }
        }
        if !entries.is_empty() {
            tracing::info!(
                leaves = entries.len(),
                "leaves and keys of an earlier run are here"
            );
        }
        let inner = Inner {
            entries: Mutex::new(entries),
            signer: Signer {
                operator: deps.operator,
                relay: deps.relay,
                node_name: deps.node_name,
            },
            backend: deps.backend,
            views: deps.views,
            disk,
            clock,
            rng: Mutex::new(SmallRng::seed_from_u64(deps.seed)),
            metrics: Metrics::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Adds the metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let metrics = &self.inner.metrics;
        registry.register(
            "weft_agent_leaves",
            "Leaves of services that this agent keeps",
            metrics.held.clone(),
        );
        registry.register(
            "weft_agent_leaves_made",
            "Leaves asked of the CA, by what came of it",
            metrics.made.clone(),
        );
        registry.register(
            "weft_agent_leaf_expires_seconds",
            "Time until the first of this agent's leaves expires; 0: none is kept",
            metrics.expires_seconds.clone(),
        );
    }

    /// The leaf of `service` with a higher index than `after`, and whether it was here before. Waits up to `wait` for
    /// one; then the leaf is that of now. One that is still good is answered whatever the servers do.
    ///
    /// Errors: [`LeafError`] when there is none.
    pub async fn get(
        &self,
        service: &str,
        after: u64,
        wait: Duration,
    ) -> Result<(Arc<HeldLeaf>, bool), LeafError> {
        let entry = self.entry(service)?;
        entry.plan.lock().asked = self.inner.clock.monotonic();
        let mut seen = entry.leaf.subscribe();
        let known = self.valid(&entry);
        let Some(leaf) = known else {
            let made = self.inner.first(service, &entry).await;
            if made.is_err() && entry.leaf.borrow().is_none() {
                // Nobody else waits for what cannot be had.
                self.inner.entries.lock().remove(service);
            }
            return made.map(|leaf| (leaf, false));
        };
        if after == 0 || leaf.index > after {
            return Ok((leaf, true));
        }
        let newer = seen.wait_for(|leaf| leaf.as_ref().is_some_and(|leaf| leaf.index > after));
        // At the end of the wait, what there is.
        let _ = tokio::time::timeout(wait, newer).await;
        let now = entry.leaf.borrow().clone();
        now.map(|leaf| (leaf, true)).ok_or(LeafError::Key)
    }

    fn valid(&self, entry: &Entry) -> Option<Arc<HeldLeaf>> {
        let now = seconds_now(&*self.inner.clock) as i64;
        entry
            .leaf
            .borrow()
            .clone()
            .filter(|leaf| leaf.not_after > now)
    }

    fn entry(&self, service: &str) -> Result<Arc<Entry>, LeafError> {
        let mut entries = self.inner.entries.lock();
        if let Some(entry) = entries.get(service) {
            return Ok(entry.clone());
        }
        if entries.len() >= LEAVES_MAX {
            return Err(LeafError::TooMany);
        }
        let entry = Arc::new(Entry::new(None, self.inner.clock.monotonic()));
        entries.insert(service.to_owned(), entry.clone());
        Ok(entry)
    }

    /// Renews what is due, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let entries: Vec<_> = {
                let entries = self.inner.entries.lock();
                entries
                    .iter()
                    .map(|(name, entry)| (name.clone(), entry.clone()))
                    .collect()
            };
            if entries.is_empty() {
                self.inner.metrics.held.set(0);
                continue;
            }
            let ca = self.inner.ca().await;
            for (service, entry) in &entries {
                self.look(service, entry, ca.as_deref());
            }
            self.measure(&entries);
        }
    }

    fn measure(&self, entries: &[(String, Arc<Entry>)]) {
        let now = seconds_now(&*self.inner.clock) as i64;
        let left = entries
            .iter()
            .filter_map(|(_, entry)| Some(entry.leaf.borrow().as_ref()?.not_after - now));
        self.inner
            .metrics
            .expires_seconds
            .set(left.min().unwrap_or_default());
        self.inner
            .metrics
            .held
            .set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
    }

    /// Begins a renewal if one is due.
    fn look(&self, service: &str, entry: &Arc<Entry>, ca: Option<&weft_proto::v1::MeshCa>) {
        let inner = &self.inner;
        let Some(leaf) = entry.leaf.borrow().clone() else {
            return;
        };
        let now = seconds_now(&*inner.clock);
        let mut plan = entry.plan.lock();
        if inner.clock.monotonic().saturating_sub(plan.asked) > IDLE {
            if leaf.not_after <= now as i64 {
                inner.forget(service);
            }
            return;
        }
        let planned = *plan
            .due
            .get_or_insert_with(|| renewal_at(&leaf, inner.rng.lock().random()));
        if let Some(sooner) = ca.and_then(|ca| sooner(&leaf, ca, now, inner.rng.lock().random())) {
            // Planned once: each look would draw another moment.
            if plan.failures == 0
                && sooner < planned
                && planned > now + leaf.life_seconds() as f64 / 10.0
            {
                plan.due = Some(sooner);
            }
        }
        if plan.under_way || plan.due.is_none_or(|due| due > now) {
            return;
        }
        plan.under_way = true;
        let (inner, service, entry) = (inner.clone(), service.to_owned(), entry.clone());
        tokio::spawn(async move {
            let made = inner.renew(&service, &entry).await;
            let mut plan = entry.plan.lock();
            plan.under_way = false;
            if let Err(why) = made {
                plan.failures = plan.failures.saturating_add(1);
                let pause = backoff(
                    plan.failures,
                    leaf.life_seconds(),
                    inner.rng.lock().random(),
                );
                plan.due = Some(seconds_now(&*inner.clock) + pause);
                tracing::warn!(service.name = %service, reason = why.reason(), error = %why, retry_in_seconds = pause, left_seconds = leaf.not_after - now as i64, "leaf not renewed");
            }
        });
    }
}

impl Entry {
    fn new(leaf: Option<Arc<HeldLeaf>>, asked: Duration) -> Self {
        Self {
            leaf: watch::Sender::new(leaf),
            making: tokio::sync::Mutex::default(),
            plan: Mutex::new(Plan {
                due: None,
                failures: 0,
                asked,
                under_way: false,
            }),
        }
    }
}

impl Inner {
    /// The first leaf, or one in the place of one that has run out; one for all who wait.
    async fn first(&self, service: &str, entry: &Entry) -> Result<Arc<HeldLeaf>, LeafError> {
        let _making = entry.making.lock().await;
        let now = seconds_now(&*self.clock) as i64;
        if let Some(leaf) = entry
            .leaf
            .borrow()
            .clone()
            .filter(|leaf| leaf.not_after > now)
        {
            return Ok(leaf);
        }
        self.make(service, entry).await
    }

    async fn renew(&self, service: &str, entry: &Entry) -> Result<Arc<HeldLeaf>, LeafError> {
        let _making = entry.making.lock().await;
        self.make(service, entry).await
    }

    async fn make(&self, service: &str, entry: &Entry) -> Result<Arc<HeldLeaf>, LeafError> {
        // A new key for every leaf; the CA looks at nothing but the key.
        let asked = weft_identity::ca::create_request("spiffe://weft");
        let made = match asked {
            Ok(asked) => self
                .signer
                .sign(service, asked.request)
                .await
                .map(|leaf| (asked.key_sec1, leaf)),
            Err(_) => Err(LeafError::Key),
        };
        let result = if made.is_ok() { "made" } else { "failed" };
        self.metrics
            .made
            .get_or_create(&ResultLabel { result })
            .inc();
        let (key_sec1, signed) = made?;
        let before = entry.leaf.borrow().as_ref().map_or(0, |leaf| leaf.index);
        let leaf = Arc::new(HeldLeaf {
            key_sec1,
            chain: signed.chain,
            serial: signed.serial,
            uri: signed.uri,
            not_before: signed.not_before,
            not_after: signed.not_after,
            index: signed.index.max(before + 1),
            root_id: signed.root_id,
        });
        if let Some(why) = self
            .disk
            .as_ref()
            .and_then(|disk| disk.save(service, &leaf).err())
        {
            tracing::warn!(service.name = %service, error = %why, "leaf not written: it will not survive a restart");
        }
        {
            let mut plan = entry.plan.lock();
            plan.due = Some(renewal_at(&leaf, self.rng.lock().random()));
            plan.failures = 0;
        }
        tracing::info!(service.name = %service, ca.serial = %leaf.serial, ca.root = %leaf.root_id, "leaf made");
        entry.leaf.send_replace(Some(leaf.clone()));
        Ok(leaf)
    }

    fn forget(&self, service: &str) {
        self.entries.lock().remove(service);
        if let Some(disk) = &self.disk {
            disk.remove(service);
        }
    }

    /// The CA as this agent knows it.
    async fn ca(&self) -> Option<Arc<weft_proto::v1::MeshCa>> {
        let of = |state: &State| state.read(&Trace::off()).mesh_ca().rows.cloned();
        let Some(views) = &self.views else {
            return of(&self.backend.state());
        };
        match views.look(&ViewTopic::MeshCa) {
            Some(seen) => of(&seen.state),
            // Asked for now; it is here by one of the next looks.
            None => views
                .wait(&ViewTopic::MeshCa, LOOK_EVERY)
                .await
                .ok()
                .and_then(|seen| of(&seen.state)),
        }
    }
}

/// Between a third and a half of the leaf's life; `share`: 0 to 1.
fn renewal_at(leaf: &HeldLeaf, share: f64) -> f64 {
    leaf.issued() as f64 + leaf.life_seconds() as f64 * (1.0 / 3.0 + share / 6.0)
}

/// When a leaf is to be renewed before its time: its root is not the active one any more, or it was cut off.
fn sooner(leaf: &HeldLeaf, ca: &weft_proto::v1::MeshCa, now: f64, share: f64) -> Option<f64> {
    let issued_millis = u64::try_from(leaf.issued())
        .unwrap_or_default()
        .saturating_mul(1_000);
    let cut_off = ca
        .cut_offs
        .iter()
        .any(|cut| cut.spiffe_id == leaf.uri && cut.not_issued_before_millis >= issued_millis);
    if cut_off {
        return Some(now);
    }
    let active = ca
        .roots
        .iter()
        .any(|root| root.active && root.id == leaf.root_id);
    let spread = (leaf.life_seconds() as f64 / 10.0).min(SPREAD_MAX.as_secs_f64());
    (!active).then_some(now + spread * share)
}

/// Seconds until the next try: twice as long each time, a twentieth of the life at most, half of it by chance.
fn backoff(failures: u32, life_seconds: i64, share: f64) -> f64 {
    let most = (life_seconds as f64 / 20.0).clamp(0.5, BACKOFF_MAX.as_secs_f64());
    let pause = (0.5 * f64::from(2_u32.saturating_pow(failures.min(10)))).min(most);
    pause * (0.5 + share / 2.0)
}

fn seconds_now(clock: &dyn Clock) -> f64 {
    clock.wall().get() as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
