//! The mesh on this node: proxies of the services registered here, kept at what the catalog says.
//!
//! Owns: which proxies run, what they work by, and what is told of them. A change of a leaf, a root, an intention, an
//! endpoint or a registration makes one new snapshot; while servers are away, the last one stays in force.
//! Never: carries a byte ([`weft_proxy`] does), signs, or decides who may call whom.
//! Source: DESIGN F5; PROXY.md 2, 6.

mod compile;
mod leaf;
mod metrics;
mod sight;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use weft_catalog::config_entry::Kind;
use weft_catalog::intention::{ANY_SERVICE, DefaultPolicy};
use weft_catalog::mesh::CONNECT_PROXY;
use weft_catalog::mesh::registration::ProxyRegistration;
use weft_catalog::view::ViewTopic;
use weft_identity::ca::{SpiffeId, TrustDomain};
use weft_proto::clock::Clock;
use weft_proto::ids::UnixMillis;
use weft_proto::v1;
use weft_proxy::config::Intentions;
use weft_proxy::plane::{Fault, Plane};
use weft_proxy::snapshot::{LeafPlan, ServicePlan, Snapshot, Trust};
use weft_proxy::telemetry::Telemetry;

use self::compile::{Endpoints, Known, Place, Problem};
use self::leaf::Following;
use self::sight::Sight;
pub use self::status::{ProxyStatus, UpstreamStatus};
use crate::backend::Backend;
use crate::central::Central;
use crate::leaves::Leaves;
use crate::local::Local;
use crate::views::Views;

/// Changes that come together are taken together.
const GATHER: Duration = Duration::from_millis(5);
/// What nobody wakes us for is looked at so often: views stay in use, and what an earlier try could not do is tried.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Connections that are open when the agent stops may end within this time.
const DRAIN: Duration = Duration::from_secs(5);
/// Questions that wait for the proxies.
const QUESTIONS_MAX: usize = 64;

/// What the mesh stands on.
pub struct MeshDeps {
    /// What is registered here.
    pub local: Local,
    /// Who they are.
    pub leaves: Leaves,
    /// Knows the catalog, on a server.
    pub backend: Arc<dyn Backend>,
    /// Know the catalog, elsewhere.
    pub views: Option<Views>,
    /// Of this agent.
    pub clock: Arc<dyn Clock>,
}

/// Settings of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// This agent's node.
    pub node_name: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Where proxies listen that say nothing of it (`bind_addr`).
    pub bind: IpAddr,
    /// What holds where no intention speaks (`default_intention_policy`).
    pub default_policy: DefaultPolicy,
    /// Of the dice.
    pub seed: u64,
}

/// The mesh of a node. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    status: ArcSwap<Vec<ProxyStatus>>,
    telemetry: Mutex<Telemetry>,
    questions: mpsc::Sender<oneshot::Sender<()>>,
    asked: Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>,
    applied: metrics::Applied,
}

impl Mesh {
    /// A mesh that has not begun.
    #[must_use]
    pub fn new() -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        Self {
            inner: Arc::new(Inner {
                status: ArcSwap::default(),
                telemetry: Mutex::default(),
                questions,
                asked: Mutex::new(Some(asked)),
                applied: metrics::Applied::default(),
            }),
        }
    }

    /// Adds the metrics; once.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.applied.register(registry);
        metrics::collect(registry, self.clone());
    }

    /// How each proxy of this node stands, by id.
    #[must_use]
    pub fn status(&self) -> Arc<Vec<ProxyStatus>> {
        self.inner.status.load_full()
    }

    /// Brings what the proxies have counted up to date; at once if none runs.
    pub async fn count(&self) {
        if self.inner.status.load().is_empty() {
            return;
        }
        let (answer, answered) = oneshot::channel();
        // When so many ask, somebody's answer is about to come.
        if self.inner.questions.try_send(answer).is_ok() {
            let _ = answered.await;
        }
    }

    /// Keeps the proxies at what the catalog says, until `stop`; then lets open connections end for a while.
    pub async fn run(self, config: MeshConfig, deps: MeshDeps, stop: CancellationToken) {
        let Some(mut asked) = self.inner.asked.lock().take() else {
            return;
        };
        let woken = Arc::new(Notify::new());
        let mut control = Control::new(config, deps, woken.clone());
        let mut registrations = control.local.services_changed();
        loop {
            let watch = control.sight.hub().watch(&control.topics);
            registrations.borrow_and_update();
            self.round(&mut control).await;
            if control.needs_another_look() {
                continue;
            }
            let waiting = async {
                tokio::select! {
                    () = watch => {}
                    () = woken.notified() => {}
                    // The agent holds the sender for as long as it runs.
                    _ = registrations.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            };
            tokio::pin!(waiting);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {
                        control.plane.drain(DRAIN).await;
                        return;
                    }
                    () = &mut waiting => break,
                    Some(answer) = asked.recv() => {
                        *self.inner.telemetry.lock() = control.plane.counted().await;
                        // Whoever asked may have gone.
                        let _ = answer.send(());
                    }
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn round(&self, control: &mut Control) {
        let Some(made) = control.look() else {
            return;
        };
        let began = control.clock.monotonic();
        let faults = control.plane.apply(&made.snapshot).await;
        let took = control.clock.monotonic().saturating_sub(began);
        self.inner.applied.applied(took, &faults);
        control.tell(&faults, &made.problems);
        let status = status::of(&made, &faults, &control.leaves_now(&made.snapshot));
        self.inner.status.store(Arc::new(status));
        control.applied = Some((made, faults));
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

/// One snapshot, and what is amiss with parts of it, by proxy.
#[derive(Clone, Debug, PartialEq)]
struct Made {
    snapshot: Snapshot,
    problems: BTreeMap<String, Vec<Problem>>,
}

/// What the loop works with.
struct Control {
    config: MeshConfig,
    local: Local,
    sight: Sight,
    following: Following,
    plane: Plane,
    clock: Arc<dyn Clock>,
    topics: weft_catalog::Topics,
    topics_moved: bool,
    applied: Option<(Made, Vec<Fault>)>,
}

/// What is read of the catalog for one round.
struct Seen {
    place: Place,
    trust: Option<Arc<Trust>>,
    index: u64,
    endpoints: Endpoints,
}

impl Control {
    fn new(config: MeshConfig, deps: MeshDeps, woken: Arc<Notify>) -> Self {
        Self {
            plane: Plane::new(deps.clock.clone(), config.seed),
            following: Following::new(deps.leaves, woken),
            sight: Sight::new(deps.backend, deps.views),
            local: deps.local,
            clock: deps.clock,
            config,
            topics: weft_catalog::Topics::default(),
            topics_moved: false,
            applied: None,
        }
    }

    /// The watch was made for other reads than the last ones.
    fn needs_another_look(&mut self) -> bool {
        std::mem::take(&mut self.topics_moved)
    }

    /// What the proxies should work by now; `None`: by what they do, and nothing is amiss.
    fn look(&mut self) -> Option<Made> {
        let registered = self.local.services();
        let proxies: BTreeMap<&str, &v1::Service> = registered
            .iter()
            .filter(|(_, local)| local.service.kind == CONNECT_PROXY)
            .map(|(id, local)| (id.as_str(), &local.service))
            .collect();
        let made = if proxies.is_empty() {
            self.following.follow(&BTreeSet::new());
            Made {
                snapshot: Snapshot::default(),
                problems: BTreeMap::new(),
            }
        } else {
            self.compile(&proxies)
        };
        let topics = self.sight.take_topics();
        self.topics_moved = topics != self.topics;
        self.topics = topics;
        let before = self.applied.as_ref();
        let same = match before {
            None => proxies.is_empty(),
            // What could not be done may be possible now.
            Some((was, faults)) => faults.is_empty() && *was == made,
        };
        (!same).then_some(made)
    }

    fn compile(&mut self, proxies: &BTreeMap<&str, &v1::Service>) -> Made {
        let mut made = Made {
            snapshot: Snapshot::default(),
            problems: BTreeMap::new(),
        };
        let mut read = Vec::new();
        for (id, service) in proxies {
            let merged = self.with_central(service);
            match ProxyRegistration::of(&merged) {
                Ok(registration) => read.push((merged, registration)),
                Err(why) => {
                    let problem = Problem::new("proxy.registration", why.to_string());
                    made.problems.insert((*id).to_owned(), vec![problem]);
                }
            }
        }
        let names = read
            .iter()
            .map(|(_, registration)| registration.destination_name.clone());
        self.following.follow(&names.collect());
        let seen = self.see(&read, proxies);
        made.snapshot.index = seen.index;
        made.snapshot.trust = seen.trust.clone();
        for (service, registration) in &read {
            let (plan, problems) =
                self.plan(service, registration, &seen, &mut made.snapshot.index);
            if !problems.is_empty() {
                made.problems.insert(service.id.clone(), problems);
            }
            made.snapshot.services.push(plan);
        }
        // What cannot be read now goes on as it was read before.
        for id in proxies.keys() {
            let is_there = made.snapshot.services.iter().any(|plan| plan.id == *id);
            let before = self.applied.as_ref();
            let before =
                before.and_then(|(was, _)| was.snapshot.services.iter().find(|p| p.id == *id));
            if let (false, Some(plan)) = (is_there, before) {
                made.snapshot.services.push(plan.clone());
            }
        }
        made
    }

    fn plan(
        &self,
        service: &v1::Service,
        registration: &ProxyRegistration,
        seen: &Seen,
        index: &mut u64,
    ) -> (Arc<ServicePlan>, Vec<Problem>) {
        let name = registration.destination_name.as_str();
        let intentions = self.intentions(name);
        *index = (*index).max(intentions.index.unwrap_or_default());
        let (leaf, late) = match self.following.of(name) {
            Some(Ok(held)) => match SpiffeId::parse(&held.uri) {
                Ok(spiffe) => {
                    let plan = LeafPlan {
                        spiffe,
                        serial: held.serial.clone(),
                        chain: held.chain.clone(),
                        key: held.key_sec1.clone(),
                    };
                    (Some(plan), None)
                }
                Err(why) => (None, Some(Problem::new("proxy.leaf", why.to_string()))),
            },
            Some(Err(why)) => (
                None,
                Some(Problem::new("proxy.leaf_unknown", why.to_string())),
            ),
            None => (None, None),
        };
        let known = Known {
            service,
            registration,
            leaf,
            intentions,
            endpoints: &seen.endpoints,
        };
        let (plan, mut problems) = compile::service(known, &seen.place);
        problems.extend(late);
        // One that did not change stays the very same.
        let before = self.applied.as_ref().and_then(|(was, _)| {
            was.snapshot
                .services
                .iter()
                .find(|before| ***before == plan)
        });
        (before.cloned().unwrap_or_else(|| Arc::new(plan)), problems)
    }

    /// The registration with what config entries say beside it.
    fn with_central(&self, service: &v1::Service) -> v1::Service {
        let mut fetch = |kind: Kind, name: &str| {
            let topic = ViewTopic::config_entry(kind, name);
            let found = self.sight.look(&topic, |reader| {
                let answer = reader.config_entry(kind, name);
                (answer.index.get(), answer.rows.cloned())
            });
            found.unwrap_or_default()
        };
        let central = Central::read(std::iter::once(service), &mut fetch);
        central.merged(service).unwrap_or_else(|| service.clone())
    }

    fn see(
        &self,
        read: &[(v1::Service, ProxyRegistration)],
        proxies: &BTreeMap<&str, &v1::Service>,
    ) -> Seen {
        let mut index = 0;
        let ca = self.sight.look(&ViewTopic::MeshCa, |reader| {
            let answer = reader.mesh_ca();
            (answer.index.get(), answer.rows.cloned())
        });
        let trust = ca.and_then(|(at, row)| {
            index = index.max(at);
            trust_of(&*row?)
        });
        let mut endpoints = Endpoints::new();
        let upstreams = read
            .iter()
            .flat_map(|(_, registration)| &registration.upstreams);
        for upstream in upstreams {
            let name = upstream.name.to_ascii_lowercase();
            if endpoints.contains_key(&name) {
                continue;
            }
            let is_ours = |id: &str| proxies.contains_key(id);
            let found = self.sight.look(&ViewTopic::connect(&name), |reader| {
                let answer = reader.connect_instances(&name);
                let here = (
                    self.config.node_name.as_str(),
                    &is_ours as &dyn Fn(&str) -> bool,
                );
                (answer.index.get(), compile::endpoints(&answer.rows, here))
            });
            endpoints.insert(
                name,
                found.map(|(at, endpoints)| {
                    index = index.max(at);
                    endpoints
                }),
            );
        }
        Seen {
            place: Place {
                bind: self.config.bind,
                datacenter: self.config.datacenter.clone(),
                domain: trust.as_ref().map(|trust| trust.domain.clone()),
            },
            trust,
            index,
            endpoints,
        }
    }

    fn intentions(&self, destination: &str) -> Intentions {
        let entry = |name: &str| {
            let topic = ViewTopic::config_entry(Kind::ServiceIntentions, name);
            self.sight.look(&topic, |reader| {
                let answer = reader.config_entry(Kind::ServiceIntentions, name);
                (answer.index.get(), answer.rows.cloned())
            })
        };
        let (exact, any) = (entry(destination), entry(ANY_SERVICE));
        let index = match (&exact, &any) {
            (Some((exact, _)), Some((any, _))) => Some((*exact).max(*any)),
            _ => None,
        };
        Intentions {
            exact: exact.and_then(|(_, entry)| entry),
            any: any.and_then(|(_, entry)| entry),
            default: self.config.default_policy,
            index,
        }
    }

    fn leaves_now(&self, snapshot: &Snapshot) -> BTreeMap<String, i64> {
        let held = snapshot.services.iter().filter_map(|plan| {
            let leaf = self.following.of(&plan.name)?.ok()?;
            Some((plan.id.clone(), leaf.not_after))
        });
        held.collect()
    }

    /// Says what came and what went of what is amiss.
    fn tell(&self, faults: &[Fault], problems: &BTreeMap<String, Vec<Problem>>) {
        let before = self.applied.as_ref();
        for fault in faults {
            let is_known = before.is_some_and(|(_, faults)| faults.contains(fault));
            // A certificate that is on its way is not worth a line.
            let is_early = matches!(fault.reason, "proxy.leaf_unknown" | "proxy.roots_unknown");
            if !is_known && !is_early {
                tracing::warn!(proxy.id = %fault.service, reason = fault.reason, detail = %fault.detail, "a proxy cannot be as it should");
            }
        }
        for (id, found) in problems {
            for problem in found {
                let is_known = before.is_some_and(|(was, _)| {
                    was.problems
                        .get(id)
                        .is_some_and(|known| known.contains(problem))
                });
                if !is_known {
                    tracing::warn!(proxy.id = %id, reason = problem.reason, detail = %problem.detail, "a proxy does not do all it should");
                }
            }
        }
    }
}

/// Whom a CA says is to be trusted; `None`: it says nothing that could be read.
fn trust_of(row: &v1::MeshCa) -> Option<Arc<Trust>> {
    let domain = TrustDomain::parse(&row.trust_domain).ok()?;
    let cut_offs = row.cut_offs.iter().filter_map(|cut| {
        let id = SpiffeId::parse(&cut.spiffe_id).ok()?;
        Some((id, UnixMillis(cut.not_issued_before_millis)))
    });
    Some(Arc::new(Trust {
        domain,
        roots: row
            .roots
            .iter()
            .map(|root| root.certificate.clone())
            .collect(),
        cut_offs: cut_offs.collect(),
    }))
}
