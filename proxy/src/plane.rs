//! The proxies of a node: shards, and how they get from one snapshot to the next.
//!
//! Owns: the shards' lives, TLS made of leaves and roots, and what must outlive a change: loads of endpoints, counts of
//! open connections, tunnels of an identity that is still the same.
//! Never: decides what a snapshot says. Nothing is started before there is something to serve.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use weft_identity::ca::{SpiffeId, TrustBundle};
use weft_proto::clock::Clock;

use crate::balance::{Balancer, Endpoint, EndpointState};
use crate::config::{Config, Gate, Identity, Inbound, Outbound, Service, Target};
use crate::shard::Running;
use crate::snapshot::{
    InboundPlan, LeafPlan, ServicePlan, Snapshot, TargetPlan, Trust, UpstreamPlan,
};
use crate::telemetry::Telemetry;
use crate::tls::{Leaf, Tls};

/// Shards of a proxy, when the machine has as many cores.
const SHARDS_MAX: usize = 4;

/// Something of a snapshot that could not be done; the rest was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The proxy's registration; empty: all of them.
    pub service: String,
    /// Stable id.
    pub reason: &'static str,
    /// For the user.
    pub detail: String,
}

/// The running proxies of a node.
pub struct Plane {
    clock: Arc<dyn Clock>,
    seed: u64,
    shards: Vec<Running>,
    trusted: Option<Trusted>,
    kept: HashMap<String, Kept>,
    endpoints: HashMap<(Arc<str>, SocketAddr), Arc<EndpointState>>,
    generation: u64,
}

struct Trusted {
    plan: Arc<Trust>,
    tls: Tls,
    /// Rises when other roots are trusted.
    round: u64,
}

/// A service as it runs, with what it was made of.
struct Kept {
    plan: Arc<ServicePlan>,
    proof: Proof,
    service: Arc<Service>,
    inbound_open: Gate,
    gates: HashMap<Arc<str>, Gate>,
}

/// A leaf, ready for use under certain roots.
#[derive(Clone)]
struct Proof {
    round: u64,
    leaf: Leaf,
    identity: Arc<Identity>,
    /// By whom the peer must be: tunnels live as long as these.
    clients: BTreeMap<Vec<SpiffeId>, Arc<ClientConfig>>,
}

impl Plane {
    /// Proxies without a service; costs nothing until there is one.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, seed: u64) -> Self {
        Self {
            clock,
            seed,
            shards: Vec::new(),
            trusted: None,
            kept: HashMap::new(),
            endpoints: HashMap::new(),
            generation: 0,
        }
    }

    /// Works by `snapshot` from now on. What cannot be done keeps what was before, if there was something, and is
    /// answered.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(trust) = &snapshot.trust
            && let Err(fault) = self.trust(trust)
        {
            faults.push(fault);
        }
        let before = std::mem::take(&mut self.kept);
        let mut services = Vec::new();
        for plan in &snapshot.services {
            match self.serve(plan, before.get(&plan.id)) {
                Ok(kept) => {
                    services.push(kept.service.clone());
                    self.kept.insert(plan.id.clone(), kept);
                }
                Err(fault) => {
                    faults.push(fault);
                    // The last good one goes on.
                    if let Some(kept) = before.get(&plan.id) {
                        services.push(kept.service.clone());
                        self.kept.insert(plan.id.clone(), kept.again());
                    }
                }
            }
        }
        drop(before);
        let config = Arc::new(Config {
            index: snapshot.index,
            services,
        });
        if let Err(error) = self.start(&config) {
            faults.push(Fault::of("", "proxy.start", &error));
        }
        let mut refused = BTreeSet::new();
        for shard in &self.shards {
            refused.extend(shard.apply(config.clone()).await);
        }
        faults.extend(
            refused
                .iter()
                .map(|what| Fault::of("", "proxy.listen", what)),
        );
        // What no configuration names is forgotten.
        self.endpoints
            .retain(|_, state| Arc::strong_count(state) > 1);
        faults
    }

    /// What all shards have counted.
    pub async fn counted(&self) -> Telemetry {
        let mut sum = Telemetry::default();
        for shard in &self.shards {
            sum.add(&shard.counted().await);
        }
        sum
    }

    /// Takes no new connections; open ones may end within `within`. Waits for it.
    pub async fn drain(self, within: Duration) {
        for shard in &self.shards {
            shard.drain(within).await;
        }
        let joining = tokio::task::spawn_blocking(move || {
            for shard in self.shards {
                shard.join();
            }
        });
        // A panic of a shard was said already.
        let _ = joining.await;
    }

    fn start(&mut self, config: &Config) -> std::io::Result<()> {
        let Some(trusted) = &self.trusted else {
            return Ok(());
        };
        if !self.shards.is_empty() || config.services.is_empty() {
            return Ok(());
        }
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for number in 0..cores.min(SHARDS_MAX) {
            let shard = Running::start(number, &trusted.tls, self.clock.clone(), self.seed)?;
            self.shards.push(shard);
        }
        Ok(())
    }

    fn trust(&mut self, plan: &Arc<Trust>) -> Result<(), Fault> {
        if self.trusted.as_ref().is_some_and(|t| t.plan == *plan) {
            return Ok(());
        }
        let roots = plan.roots.iter().map(String::as_str);
        let bundle = TrustBundle::new(plan.domain.clone(), roots)
            .map_err(|why| Fault::of("", "proxy.roots", &why))?;
        let cut_offs = plan.cut_offs.iter().cloned();
        let bundle = cut_offs.fold(bundle, |bundle, (id, at)| bundle.cut_off(id, at));
        match &mut self.trusted {
            Some(trusted) => {
                trusted.tls.replace(bundle);
                trusted.plan = plan.clone();
                trusted.round += 1;
            }
            None => {
                self.trusted = Some(Trusted {
                    plan: plan.clone(),
                    tls: Tls::new(bundle),
                    round: 1,
                });
            }
        }
        Ok(())
    }

    fn serve(&mut self, plan: &Arc<ServicePlan>, before: Option<&Kept>) -> Result<Kept, Fault> {
        let mut proof = self.prove(plan, before)?;
        let same_proof =
            before.is_some_and(|kept| Arc::ptr_eq(&kept.proof.identity, &proof.identity));
        if let Some(kept) = before.filter(|kept| same_proof && kept.plan == *plan) {
            return Ok(kept.again());
        }
        let inbound_open = before.map_or_else(|| Gate::new(0), |kept| kept.inbound_open.clone());
        let inbound = plan.inbound.as_ref().map(|wanted| {
            let same = before.filter(|kept| kept.plan.inbound.as_ref() == Some(wanted));
            same.and_then(|kept| kept.service.inbound.clone())
                .unwrap_or_else(|| Arc::new(inbound_of(wanted, &inbound_open)))
        });
        let mut gates = HashMap::new();
        let mut outbounds = Vec::new();
        for wanted in &plan.upstreams {
            let gate = before
                .and_then(|kept| kept.gates.get(&wanted.name))
                .cloned();
            let gate = Gate {
                max: wanted.max_connections,
                ..gate.unwrap_or_else(|| Gate::new(0))
            };
            gates.insert(wanted.name.clone(), gate.clone());
            let unchanged =
                before.filter(|kept| same_proof && kept.plan.upstreams.contains(wanted));
            let was = unchanged.and_then(|kept| {
                kept.service
                    .outbounds
                    .iter()
                    .find(|outbound| outbound.name == wanted.name)
            });
            outbounds.push(match was {
                Some(outbound) => outbound.clone(),
                None => Arc::new(self.outbound(plan, wanted, &mut proof, gate)?),
            });
        }
        let service = Service {
            id: plan.id.clone(),
            name: plan.name.clone(),
            identity: proof.identity.clone(),
            inbound,
            outbounds,
        };
        Ok(Kept {
            plan: plan.clone(),
            proof,
            service: Arc::new(service),
            inbound_open,
            gates,
        })
    }

    /// The leaf under the present roots; the same as before, if nothing of it changed.
    fn prove(&mut self, plan: &ServicePlan, before: Option<&Kept>) -> Result<Proof, Fault> {
        let waits = |reason, what: &str| Fault::of(&plan.id, reason, &what);
        let trusted = self.trusted.as_ref();
        let trusted =
            trusted.ok_or_else(|| waits("proxy.roots_unknown", "no roots are known yet"))?;
        let leaf = plan.leaf.as_ref();
        let leaf = leaf.ok_or_else(|| waits("proxy.leaf_unknown", "it has no certificate yet"))?;
        let same = before.filter(|kept| {
            kept.proof.round == trusted.round && kept.plan.leaf.as_ref() == Some(leaf)
        });
        if let Some(kept) = same {
            return Ok(kept.proof.clone());
        }
        let bad = |error: rustls::Error| Fault::of(&plan.id, "proxy.leaf", &error);
        let ready = ready(&trusted.tls, leaf).map_err(bad)?;
        self.generation += 1;
        let identity = trusted.tls.identity(&ready, self.generation).map_err(bad)?;
        Ok(Proof {
            round: trusted.round,
            leaf: ready,
            identity: Arc::new(identity),
            clients: BTreeMap::new(),
        })
    }

    fn outbound(
        &mut self,
        service: &ServicePlan,
        plan: &UpstreamPlan,
        proof: &mut Proof,
        gate: Gate,
    ) -> Result<Outbound, Fault> {
        let targets = plan.targets.iter();
        let targets = targets.map(|target| self.target(service, target, proof));
        Ok(Outbound {
            name: plan.name.clone(),
            bind: plan.bind.clone(),
            targets: targets.collect::<Result<_, _>>()?,
            connect_timeout: plan.connect_timeout,
            idle_timeout: plan.idle_timeout,
            gate,
        })
    }

    fn target(
        &mut self,
        service: &ServicePlan,
        plan: &TargetPlan,
        proof: &mut Proof,
    ) -> Result<Target, Fault> {
        let server_name = ServerName::try_from(plan.server_name.clone());
        let server_name =
            server_name.map_err(|why| Fault::of(&service.id, "proxy.server_name", &why))?;
        let client = match proof.clients.get(&plan.expected) {
            Some(client) => client.clone(),
            None => {
                let tls = self.trusted.as_ref().map(|trusted| &trusted.tls);
                let tls = tls.ok_or_else(|| {
                    Fault::of(
                        &service.id,
                        "proxy.roots_unknown",
                        &"no roots are known yet",
                    )
                })?;
                let client = tls.client(&proof.leaf, plan.expected.clone());
                let client = client.map_err(|why| Fault::of(&service.id, "proxy.leaf", &why))?;
                proof.clients.insert(plan.expected.clone(), client.clone());
                client
            }
        };
        let endpoints = plan.endpoints.iter().map(|endpoint| {
            let state = self
                .endpoints
                .entry((plan.service.clone(), endpoint.address));
            Endpoint {
                address: endpoint.address,
                weight: endpoint.weight,
                here: endpoint.here.clone(),
                state: state.or_default().clone(),
            }
        });
        Ok(Target {
            service: plan.service.clone(),
            server_name,
            client,
            balancer: Balancer::new(endpoints.collect(), plan.policy, plan.outlier),
        })
    }
}

impl Kept {
    fn again(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            proof: self.proof.clone(),
            service: self.service.clone(),
            inbound_open: self.inbound_open.clone(),
            gates: self.gates.clone(),
        }
    }
}

impl Fault {
    fn of(service: &str, reason: &'static str, detail: &impl ToString) -> Self {
        Self {
            service: service.to_owned(),
            reason,
            detail: detail.to_string(),
        }
    }
}

fn ready(tls: &Tls, leaf: &LeafPlan) -> Result<Leaf, rustls::Error> {
    tls.leaf(leaf.spiffe.clone(), &leaf.chain, leaf.key.reveal())
}

fn inbound_of(plan: &InboundPlan, open: &Gate) -> Inbound {
    Inbound {
        bind: plan.bind,
        application: plan.application.clone(),
        connect_timeout: plan.connect_timeout,
        handshake_timeout: plan.handshake_timeout,
        idle_timeout: plan.idle_timeout,
        gate: Gate {
            max: plan.max_connections,
            open: open.open.clone(),
        },
        intentions: plan.intentions.clone(),
    }
}

#[cfg(test)]
mod tests;
