//! A shard: one thread with its own listeners, tunnels, counters and dice.
//!
//! Owns: listening sockets and how they follow the configuration, open connections and what ends them early.
//! Never: shares anything with another shard but the configuration and the loads of endpoints in it; decides what the
//! configuration says. One task a connection; a panic in it ends that connection.

mod inbound;
mod listen;
mod outbound;
mod pool;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use weft_identity::ca::{MeshVerifier, RefusalReason, Side as PeerSide, SpiffeId};
use weft_proto::clock::Clock;
use weft_proto::ids::UnixMillis;

use self::listen::Listeners;
use self::pool::{Key, Pool, SharedPool};
use crate::balance::{Cursor, Endpoint};
use crate::config::{Config, Service};
use crate::relay::Life;
use crate::telemetry::{Pair, Telemetry};
use crate::tls::Tls;
use crate::tunnel::{Tick, Tunnel};
use crate::wire::Reason;

/// How often silent connections and tunnels that are over are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Refusals logged in a second; the rest is counted only.
const TELLS_A_SECOND: u32 = 20;
/// Callers of a shard that are proving who they are.
const HANDSHAKES_MAX: u32 = 1_024;
/// Tunnels that one caller may have open to one service of a shard.
const TUNNELS_OF_A_CALLER_MAX: usize = 256;
/// Orders that wait for a shard.
const ORDERS_MAX: usize = 64;

/// Why a connection did not begin.
#[derive(Debug)]
struct Cause {
    reason: &'static str,
    detail: String,
}

impl Cause {
    const fn new(reason: &'static str) -> Self {
        Self {
            reason,
            detail: String::new(),
        }
    }

    fn with(reason: &'static str, detail: &impl Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }

    /// What the other proxy is told.
    fn told(&self) -> Reason {
        match self.reason {
            "proxy.limit" => Reason::Limit,
            "proxy.no_application" => Reason::NoApplication,
            "proxy.identity" => Reason::Identity,
            _ => Reason::Denied,
        }
    }
}

/// What a shard is asked to do.
enum Order {
    /// Works by this from now on; answers with what could not be listened at.
    Apply(Arc<Config>, oneshot::Sender<Vec<String>>),
    /// Says what it has counted.
    Count(oneshot::Sender<Telemetry>),
    /// Takes no new connections; ends when those open are over, at the latest after this time.
    Drain(Duration),
}

/// The handle of a running shard.
pub struct Running {
    orders: mpsc::Sender<Order>,
    thread: std::thread::JoinHandle<()>,
}

/// An open connection that a change may end.
enum Watched {
    Tunnel(Tunnel),
    Relay(Weak<Life>),
}

struct Entry {
    service: String,
    caller: Rc<Caller>,
    what: Watched,
}

/// Who calls, and what it was proven by.
struct Caller {
    id: SpiffeId,
    /// Empty for a service of this node: the proxy holds its key itself.
    chain: Vec<CertificateDer<'static>>,
    proven: UnixMillis,
    /// Last second its certificate is valid, Unix time.
    not_after: i64,
}

impl Caller {
    const fn here(id: SpiffeId) -> Self {
        Self {
            id,
            chain: Vec::new(),
            proven: UnixMillis(0),
            not_after: i64::MAX,
        }
    }
}

/// All that the tasks of a thread share.
struct Shard {
    clock: Arc<dyn Clock>,
    verifier: MeshVerifier,
    config: RefCell<Arc<Config>>,
    pool: SharedPool,
    tick: Tick,
    rng: RefCell<SmallRng>,
    cursors: RefCell<HashMap<Arc<str>, Cursor>>,
    telemetry: RefCell<Telemetry>,
    /// What tunnels may be kept for.
    current: RefCell<HashSet<Key>>,
    handshakes: Cell<u32>,
    watched: RefCell<Vec<Entry>>,
    /// Relays of this side's calls, with the silence they may keep.
    calls: RefCell<Vec<(Weak<Life>, Duration)>>,
    tells: Cell<(u32, u32)>,
}

impl Running {
    /// Starts shard `number` of a proxy. Only the first listens at unix sockets.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue.
    pub fn start(
        number: usize,
        tls: &Tls,
        clock: Arc<dyn Clock>,
        seed: u64,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let verifier = tls.callers();
        let thread = std::thread::Builder::new().name(format!("proxy-{number}"));
        let thread = thread.spawn(move || {
            let shard = Rc::new(Shard {
                clock,
                verifier,
                config: RefCell::default(),
                pool: Rc::new(RefCell::new(Pool::default())),
                tick: Rc::new(Cell::new(0)),
                rng: RefCell::new(SmallRng::seed_from_u64(seed ^ number as u64)),
                cursors: RefCell::default(),
                telemetry: RefCell::default(),
                current: RefCell::default(),
                handshakes: Cell::default(),
                watched: RefCell::default(),
                calls: RefCell::default(),
                tells: Cell::default(),
            });
            LocalSet::new().block_on(&runtime, shard.run(number == 0, inbox));
        })?;
        Ok(Self { orders, thread })
    }

    /// Works by `config` from now on. What cannot be listened at is answered, and the rest goes on.
    pub async fn apply(&self, config: Arc<Config>) -> Vec<String> {
        let (answer, answered) = oneshot::channel();
        let gone = || vec!["the shard has ended".to_owned()];
        if self
            .orders
            .send(Order::Apply(config, answer))
            .await
            .is_err()
        {
            return gone();
        }
        answered.await.unwrap_or_else(|_| gone())
    }

    /// What it has counted.
    pub async fn counted(&self) -> Telemetry {
        let (answer, answered) = oneshot::channel();
        // A shard that is far behind is asked another time.
        let _ = self.orders.try_send(Order::Count(answer));
        answered.await.unwrap_or_default()
    }

    /// Takes no new connections, and ends with the last, or after `within`.
    pub async fn drain(&self, within: Duration) {
        // One that has ended is drained.
        let _ = self.orders.send(Order::Drain(within)).await;
    }

    /// Waits for its end after [`Running::drain`]; without one it ends at once.
    pub fn join(self) {
        drop(self.orders);
        // A panic of the thread was said already.
        let _ = self.thread.join();
    }
}

impl Shard {
    async fn run(self: Rc<Self>, listens_at_paths: bool, mut inbox: mpsc::Receiver<Order>) {
        let began = self.clock.monotonic();
        let mut listeners = Listeners::new(self.clone(), listens_at_paths);
        let mut looking = tokio::time::interval(LOOK_EVERY);
        looking.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut until: Option<Duration> = None;
        loop {
            tokio::select! {
                biased;
                order = inbox.recv(), if !inbox.is_closed() || !inbox.is_empty() || until.is_none() => match order {
                    Some(Order::Apply(_, answer)) if until.is_some() => {
                        let _ = answer.send(vec!["the shard is ending".to_owned()]);
                    }
                    Some(Order::Apply(config, answer)) => {
                        let failures = listeners.follow(&config);
                        self.adopt(config);
                        let _ = answer.send(failures);
                    }
                    Some(Order::Count(answer)) => {
                        let _ = answer.send(self.telemetry.borrow().clone());
                    }
                    Some(Order::Drain(within)) => {
                        listeners.close();
                        self.drain();
                        until = Some(self.clock.monotonic() + within);
                    }
                    // Nobody will ask for more; what is open may end in its time.
                    None if until.is_some() => {}
                    None => return,
                },
                _ = looking.tick() => {
                    let now = self.clock.monotonic();
                    let seconds = now.saturating_sub(began).as_secs();
                    self.tick.set(u32::try_from(seconds).unwrap_or(u32::MAX));
                    listeners.retry(&self.config.borrow());
                    self.look();
                    let is_over = until.is_some_and(|until| now >= until || self.is_quiet());
                    if is_over {
                        return;
                    }
                }
            }
        }
    }

    /// Open connections that the new configuration does not allow end now.
    fn adopt(&self, config: Arc<Config>) {
        *self.current.borrow_mut() = current(&config);
        *self.config.borrow_mut() = config;
        self.sweep();
        for entry in self.watched.borrow().iter() {
            self.enforce(entry);
        }
    }

    /// Ends what is not allowed now.
    fn enforce(&self, entry: &Entry) {
        let config = self.config.borrow();
        let Some(service) = config.service(&entry.service) else {
            // What is open of a service that is gone may end by itself.
            if let Watched::Tunnel(tunnel) = &entry.what {
                tunnel.drain(Reason::Drained);
            }
            return;
        };
        match (self.objection(service, &entry.caller), &entry.what) {
            (None, _) => {}
            (Some(Reason::Identity), Watched::Tunnel(tunnel)) => tunnel.end(Reason::Identity),
            (Some(reason), Watched::Tunnel(tunnel)) => tunnel.reset_streams(reason),
            (Some(reason), Watched::Relay(life)) => {
                if let Some(life) = life.upgrade() {
                    life.stop(reason);
                }
            }
        }
    }

    fn objection(&self, service: &Service, caller: &Caller) -> Option<Reason> {
        if self.is_cut_off(caller) {
            return Some(Reason::Identity);
        }
        let inbound = service.inbound.as_ref()?;
        (!inbound.intentions.decide(&caller.id).allowed).then_some(Reason::Denied)
    }

    /// Whether its certificate was revoked since. A root that retires in its time, or a certificate that runs out, cuts
    /// no open connection off: only those that begin are held to it.
    fn is_cut_off(&self, caller: &Caller) -> bool {
        if caller.chain.is_empty() {
            return false;
        }
        let proof = self
            .verifier
            .peer(&caller.chain, PeerSide::Client, caller.proven);
        proof.is_err_and(|refusal| refusal.reason == RefusalReason::Revoked)
    }

    fn sweep(&self) -> Vec<Tunnel> {
        let current = self.current.borrow();
        self.pool.borrow_mut().sweep(|key| current.contains(key))
    }

    /// Looks after what is open: silence, tunnels that are over.
    fn look(&self) {
        let config = self.config.borrow().clone();
        for tunnel in self.sweep() {
            tunnel.look(0);
        }
        self.watched.borrow_mut().retain(|entry| {
            let inbound = config
                .service(&entry.service)
                .and_then(|s| s.inbound.as_ref());
            let patience = inbound.map_or(Duration::ZERO, |inbound| inbound.idle_timeout);
            match &entry.what {
                Watched::Tunnel(tunnel) => {
                    tunnel.look(seconds(patience));
                    tunnel.ended().is_none()
                }
                Watched::Relay(life) => life.upgrade().is_some_and(|life| {
                    end_if_idle(&life, patience);
                    true
                }),
            }
        });
        self.calls.borrow_mut().retain(|(life, patience)| {
            life.upgrade().is_some_and(|life| {
                end_if_idle(&life, *patience);
                true
            })
        });
    }

    fn drain(&self) {
        for tunnel in self.pool.borrow().tunnels() {
            tunnel.drain(Reason::Drained);
        }
        for entry in self.watched.borrow().iter() {
            if let Watched::Tunnel(tunnel) = &entry.what {
                tunnel.drain(Reason::Drained);
            }
        }
    }

    fn is_quiet(&self) -> bool {
        let no_tunnel = self.pool.borrow().tunnels().all(|t| t.ended().is_some());
        no_tunnel && self.watched.borrow().is_empty() && self.calls.borrow().is_empty()
    }

    /// From now on changes end it; one that came while it was set up does so at once.
    fn watch(&self, service: &Service, caller: &Rc<Caller>, what: Watched) {
        let entry = Entry {
            service: service.id.clone(),
            caller: caller.clone(),
            what,
        };
        self.enforce(&entry);
        self.watched.borrow_mut().push(entry);
    }

    /// Tunnels that the caller has open to the service.
    fn tunnels_of(&self, service: &Service, caller: &Caller) -> usize {
        let watched = self.watched.borrow();
        let of = |entry: &&Entry| {
            matches!(entry.what, Watched::Tunnel(_))
                && entry.service == service.id
                && entry.caller.id == caller.id
        };
        watched.iter().filter(of).count()
    }

    fn watch_relay(&self, life: &Rc<Life>, patience: Duration) {
        self.calls
            .borrow_mut()
            .push((Rc::downgrade(life), patience));
    }

    /// The service of this proxy that an endpoint is.
    fn service_here(&self, endpoint: &Endpoint) -> Option<Arc<Service>> {
        let id = endpoint.here.as_deref()?;
        self.config.borrow().service(id).cloned()
    }

    fn tell_refusal(&self, pair: &Pair, cause: &Cause) {
        if self.may_tell() {
            tracing::warn!(service.source = %pair.source, service.destination = %pair.destination, reason = cause.reason, detail = %cause.detail, "connection refused");
        }
    }

    fn tell_turned_away(&self, service: &str, cause: &Cause) {
        if self.may_tell() {
            tracing::warn!(service.destination = %service, reason = cause.reason, detail = %cause.detail, "caller turned away");
        }
    }

    fn may_tell(&self) -> bool {
        let now = self.tick.get();
        let (second, told) = self.tells.get();
        let told = if second == now { told } else { 0 };
        self.tells.set((now, told + 1));
        told < TELLS_A_SECOND
    }
}

/// What the configuration's tunnels are known by.
#[expect(clippy::mutable_key_type, reason = "a key is compared by address")]
fn current(config: &Config) -> HashSet<Key> {
    let outbounds = config.services.iter().flat_map(|s| &s.outbounds);
    let targets = outbounds.flat_map(|outbound| &outbound.targets);
    let keys = targets.flat_map(|target| {
        target.balancer.endpoints().iter().map(|endpoint| Key {
            client: target.client.clone(),
            endpoint: endpoint.address,
        })
    });
    keys.collect()
}

fn end_if_idle(life: &Life, patience: Duration) {
    if !patience.is_zero() && life.idle_seconds() >= seconds(patience) {
        life.stop(Reason::Idle);
    }
}

/// Rounded up: 0 stands for never.
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX)
}
