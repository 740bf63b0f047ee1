//! Which endpoint a connection goes to, and which are left alone for a while.
//!
//! Owns: the load and the failures of each endpoint, the pick, passive ejection.
//! Never: reads a clock or rolls dice of its own (`now` and the rng are given), or knows sockets.
//! Source: Mitzenmacher, "The Power of Two Choices"; Envoy docs, "Outlier detection" (counts, growing pauses, the most
//! that may be left out), which Consul's `passive_health_check` sets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Time after which a measured latency has lost most of its weight.
const LATENCY_DECAY: Duration = Duration::from_secs(10);
/// An endpoint nothing is known of is tried as if it answered in this time.
const LATENCY_UNKNOWN_MICROS: f64 = 1_000.0;
/// Connection failures count as an answer this slow.
const LATENCY_FAILED: Duration = Duration::from_secs(1);

/// How an endpoint is chosen. Consul's `LoadBalancer.Policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Of two chosen at random the one with less load × latency; ours by default.
    #[default]
    LeastLoad,
    /// `round_robin`, by weight.
    RoundRobin,
    /// `least_request`: of two chosen at random the one with fewer connections.
    LeastConnections,
    /// `random`, by weight.
    Random,
}

/// Passive health. Consul's `PassiveHealthCheck`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Failures in a row after which an endpoint is left out; 0: never.
    pub max_failures: u32,
    /// The first pause; each further one is longer by it.
    pub base_ejection: Duration,
    /// Pauses grow to this, or to `base_ejection`, if that is longer.
    pub max_ejection: Duration,
    /// Of all endpoints, at most so many are left out; one always may be.
    pub max_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            max_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_percent: 10,
        }
    }
}

/// Where a service answers.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Of its proxy, or its own.
    pub address: SocketAddr,
    /// 1 as a rule; 0 is never chosen.
    pub weight: u32,
    /// The proxy registration on this very node that it is, if it is one.
    pub here: Option<Arc<str>>,
    /// What is known of it, kept while configurations come and go.
    pub state: Arc<EndpointState>,
}

/// What all shards know of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    active: AtomicU32,
    /// Bits of an `f64` of microseconds; 0: nothing measured.
    latency: AtomicU64,
    measured_millis: AtomicU64,
    failures: AtomicU32,
    /// Left out until then, in milliseconds of the caller's clock.
    out_until_millis: AtomicU64,
    /// Times it was left out, less the quiet times since.
    ejections: AtomicU32,
}

impl EndpointState {
    /// A connection to it began; it ends when the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Relaxed);
        Active(self.clone())
    }

    /// Connections to it.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Whether it is left out.
    #[must_use]
    pub fn is_out(&self, now: Duration) -> bool {
        self.out_until_millis.load(Relaxed) > millis(now)
    }

    /// Its application answers: failures before that were not in a row.
    pub fn answered(&self) {
        self.failures.store(0, Relaxed);
    }

    /// It was reached, in this time.
    pub fn succeeded(&self, took: Duration, now: Duration) {
        self.failures.store(0, Relaxed);
        self.measure(took, now);
    }

    fn measure(&self, took: Duration, now: Duration) {
        let took = took.as_secs_f64() * 1e6;
        let old = f64::from_bits(self.latency.load(Relaxed));
        let age = millis(now).saturating_sub(self.measured_millis.swap(millis(now), Relaxed));
        let keep = (-(age as f64) / LATENCY_DECAY.as_millis() as f64).exp();
        // A slower answer is believed at once, a faster one by and by.
        let new = if old == 0.0 || took > old {
            took
        } else {
            old * keep + took * (1.0 - keep)
        };
        self.latency.store(new.to_bits(), Relaxed);
    }

    fn cost(&self, weight: u32) -> f64 {
        let latency = match f64::from_bits(self.latency.load(Relaxed)) {
            0.0 => LATENCY_UNKNOWN_MICROS,
            known => known,
        };
        latency * f64::from(self.active() + 1) / f64::from(weight)
    }
}

/// A connection that counts as an endpoint's load.
#[derive(Debug)]
pub struct Active(Arc<EndpointState>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// The endpoints of one target, in a shard.
#[derive(Clone, Debug)]
pub struct Balancer {
    endpoints: Vec<Endpoint>,
    /// Weights added up.
    weights: Vec<u64>,
    policy: Policy,
    outlier: Outlier,
}

/// A place in a round; each shard has its own.
#[derive(Debug, Default)]
pub struct Cursor(u64);

impl Balancer {
    /// Of these endpoints; those of weight 0 are left away.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, policy: Policy, outlier: Outlier) -> Self {
        let endpoints: Vec<Endpoint> = endpoints.into_iter().filter(|e| e.weight > 0).collect();
        let mut sum = 0;
        let weights = endpoints.iter().map(|endpoint| {
            sum += u64::from(endpoint.weight);
            sum
        });
        Self {
            weights: weights.collect(),
            endpoints,
            policy,
            outlier,
        }
    }

    /// All of them.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether any may be tried.
    #[must_use]
    pub fn has_any(&self, now: Duration) -> bool {
        self.endpoints.iter().any(|e| !e.state.is_out(now))
    }

    /// One that is not left out and not among those `tried`; `None`: there is none.
    pub fn pick(
        &self,
        cursor: &mut Cursor,
        tried: &[SocketAddr],
        now: Duration,
        rng: &mut impl Rng,
    ) -> Option<&Endpoint> {
        let fits = |e: &Endpoint| !e.state.is_out(now) && !tried.contains(&e.address);
        let first = match self.policy {
            Policy::RoundRobin => self.next(cursor),
            _ => self.weighted(rng),
        }?;
        let one = self.from(first, fits)?;
        if matches!(self.policy, Policy::RoundRobin | Policy::Random) {
            return self.endpoints.get(one);
        }
        let other = self.from(self.weighted(rng)?, |e| {
            fits(e) && e.address != self.endpoints[one].address
        });
        let (one, other) = (&self.endpoints[one], other.map(|at| &self.endpoints[at]));
        let load = |e: &Endpoint| match self.policy {
            Policy::LeastLoad => e.state.cost(e.weight),
            _ => f64::from(e.state.active() + 1) / f64::from(e.weight),
        };
        match other {
            Some(other) if load(other) < load(one) => Some(other),
            _ => Some(one),
        }
    }

    /// It could not be reached. Whether it is left out from now on.
    pub fn failed(&self, endpoint: &Endpoint, now: Duration) -> bool {
        let state = &endpoint.state;
        state.measure(LATENCY_FAILED, now);
        let failures = state.failures.fetch_add(1, Relaxed) + 1;
        let limit = self.outlier.max_failures;
        if limit == 0 || failures < limit || state.is_out(now) {
            return false;
        }
        let out = self.endpoints.iter().filter(|e| e.state.is_out(now));
        let (out, all) = (out.count() as u64, self.endpoints.len() as u64);
        let most = (all * u64::from(self.outlier.max_percent) / 100).max(1);
        if out >= most {
            return false;
        }
        // It was well for as long as it had been out: that is forgiven.
        let ended = state.out_until_millis.load(Relaxed);
        let well = millis(now).saturating_sub(ended);
        let base = self.outlier.base_ejection.max(Duration::from_millis(1));
        let forgiven = u32::try_from(well / millis(base).max(1)).unwrap_or(u32::MAX);
        let times = state.ejections.load(Relaxed).saturating_sub(forgiven) + 1;
        state.ejections.store(times, Relaxed);
        let longest = self.outlier.max_ejection.max(base);
        let pause = base.saturating_mul(times).min(longest);
        state.out_until_millis.store(millis(now + pause), Relaxed);
        state.failures.store(0, Relaxed);
        true
    }

    /// The first that fits, from `at` on and around.
    fn from(&self, at: usize, fits: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        let count = self.endpoints.len();
        (0..count)
            .map(|step| (at + step) % count)
            .find(|at| fits(&self.endpoints[*at]))
    }

    fn weighted(&self, rng: &mut impl Rng) -> Option<usize> {
        let sum = *self.weights.last()?;
        Some(self.at(rng.random_range(0..sum)))
    }

    /// Steps by the golden section of all weights, so that turns of a heavy one are spread.
    fn next(&self, cursor: &mut Cursor) -> Option<usize> {
        let sum = *self.weights.last()?;
        let turn = cursor.0;
        cursor.0 = (turn + stride(sum)) % sum;
        Some(self.at(turn % sum))
    }

    fn at(&self, place: u64) -> usize {
        self.weights.partition_point(|sum| *sum <= place)
    }
}

/// Near `sum` × 0.618, and without a common divisor with it: every place has its turn once a round.
fn stride(sum: u64) -> u64 {
    let near = (sum as f64 * 0.618_033_988_75) as u64;
    (near.max(1)..=sum)
        .find(|step| gcd(*step, sum) == 1)
        .unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn balancer(weights: &[u32], policy: Policy) -> Balancer {
        let endpoints = weights.iter().enumerate().map(|(n, weight)| Endpoint {
            address: SocketAddr::from(([10, 0, 0, n as u8], 21_000)),
            weight: *weight,
            here: None,
            state: Arc::default(),
        });
        Balancer::new(endpoints.collect(), policy, Outlier::default())
    }

    /// How often each was chosen, by the last octet.
    fn picks(balancer: &Balancer, times: u32, hold: bool) -> BTreeMap<u8, u32> {
        let (mut rng, mut cursor) = (SmallRng::seed_from_u64(1), Cursor::default());
        let (mut counts, mut held) = (BTreeMap::new(), Vec::new());
        for _ in 0..times {
            let endpoint = balancer
                .pick(&mut cursor, &[], SECOND, &mut rng)
                .expect("one is well");
            if hold {
                held.push(endpoint.state.begin());
            }
            let SocketAddr::V4(address) = endpoint.address else {
                panic!("v4")
            };
            *counts.entry(address.ip().octets()[3]).or_default() += 1;
        }
        counts
    }

    #[test]
    fn a_round_gives_each_its_weight() {
        for weights in [&[1, 1, 1][..], &[3, 1], &[5, 0, 2, 1], &[100, 1, 1], &[7]] {
            let sum: u32 = weights.iter().sum();
            let counts = picks(&balancer(weights, Policy::RoundRobin), sum * 3, false);
            for (n, weight) in weights.iter().enumerate() {
                let seen = counts.get(&(n as u8)).copied().unwrap_or_default();
                assert_eq!(seen, weight * 3, "{weights:?}");
            }
        }
    }

    #[test]
    fn a_heavy_one_has_no_long_run_of_turns() {
        let balancer = balancer(&[5, 5], Policy::RoundRobin);
        let (mut rng, mut cursor) = (SmallRng::seed_from_u64(1), Cursor::default());
        let mut turns = Vec::new();
        for _ in 0..20 {
            let picked = balancer.pick(&mut cursor, &[], SECOND, &mut rng).unwrap();
            turns.push(picked.address);
        }
        assert!(
            turns.windows(4).all(|run| run.iter().any(|a| *a != run[0])),
            "{turns:?}"
        );
    }

    #[test]
    fn chance_follows_weight_and_load_is_evened_out() {
        let counts = picks(&balancer(&[3, 1], Policy::Random), 4_000, false);
        assert!((2_850..3_150).contains(&counts[&0]), "{counts:?}");
        for policy in [Policy::LeastConnections, Policy::LeastLoad] {
            let counts = picks(&balancer(&[1; 10], policy), 1_000, true);
            let (least, most) = (
                counts.values().min().unwrap(),
                counts.values().max().unwrap(),
            );
            assert!(most - least <= 6, "{policy:?}: {counts:?}");
        }
    }

    #[test]
    fn a_slow_one_gets_less() {
        let balancer = balancer(&[1, 1, 1], Policy::LeastLoad);
        for endpoint in balancer.endpoints() {
            endpoint.state.succeeded(Duration::from_millis(1), SECOND);
        }
        balancer.endpoints()[1]
            .state
            .succeeded(Duration::from_millis(50), SECOND);
        let counts = picks(&balancer, 3_000, false);
        assert!(
            counts.get(&1).copied().unwrap_or_default() < 10,
            "{counts:?}"
        );
        // It comes back when it has answered fast for a while.
        for second in 2..60 {
            let state = &balancer.endpoints()[1].state;
            state.succeeded(Duration::from_millis(1), SECOND * second);
        }
        let counts = picks(&balancer, 300, true);
        assert!(counts[&1] > 80, "{counts:?}");
    }

    #[test]
    fn one_that_fails_is_left_out_for_longer_each_time_and_comes_back() {
        let balancer = balancer(&[1; 20], Policy::RoundRobin);
        let endpoint = &balancer.endpoints()[3];
        let fail = |now: Duration| {
            (1..=5)
                .map(|_| balancer.failed(endpoint, now))
                .collect::<Vec<_>>()
        };
        let mut now = SECOND;
        assert_eq!(fail(now), [false, false, false, false, true]);
        assert!(endpoint.state.is_out(now + SECOND * 29));
        assert!(!endpoint.state.is_out(now + SECOND * 30));
        assert_eq!(picks(&balancer, 20, false).get(&3), None);
        now += SECOND * 31;
        assert!(fail(now)[4]);
        assert!(endpoint.state.is_out(now + SECOND * 59), "longer");
        // Long well: the first pause again.
        now += SECOND * 3_600;
        assert!(fail(now)[4]);
        assert!(!endpoint.state.is_out(now + SECOND * 30));
        // A success in between begins the count anew.
        now += SECOND * 3_600;
        let spare = &balancer.endpoints()[4];
        (0..4).for_each(|_| assert!(!balancer.failed(spare, now)));
        spare.state.succeeded(Duration::from_millis(1), now);
        assert!(!balancer.failed(spare, now));
    }

    #[test]
    fn no_more_are_left_out_than_may_be() {
        let balancer = balancer(&[1; 20], Policy::LeastLoad);
        let mut out = 0;
        for endpoint in balancer.endpoints() {
            for _ in 0..10 {
                out += u32::from(balancer.failed(endpoint, SECOND));
            }
        }
        assert_eq!(out, 2, "a tenth");
        // The only one may be left out: then there is none, and that is said at once.
        let lone = self::balancer(&[1], Policy::LeastLoad);
        (0..5).for_each(|_| {
            lone.failed(&lone.endpoints()[0], SECOND);
        });
        assert!(!lone.has_any(SECOND));
        let mut rng = SmallRng::seed_from_u64(1);
        assert!(
            lone.pick(&mut Cursor::default(), &[], SECOND, &mut rng)
                .is_none()
        );
    }

    #[test]
    fn who_was_tried_is_not_tried_again() {
        for policy in [
            Policy::LeastLoad,
            Policy::RoundRobin,
            Policy::LeastConnections,
            Policy::Random,
        ] {
            let balancer = balancer(&[1, 1, 1], policy);
            let (mut rng, mut cursor, mut tried) =
                (SmallRng::seed_from_u64(1), Cursor::default(), Vec::new());
            while let Some(endpoint) = balancer.pick(&mut cursor, &tried, SECOND, &mut rng) {
                assert!(!tried.contains(&endpoint.address));
                tried.push(endpoint.address);
            }
            assert_eq!(tried.len(), 3, "{policy:?}");
        }
    }
}
