//! How many requests a second are taken: of everybody (`limits.request_limits`, on a server), of one source
//! (`limits.source_limits`, on every agent), and passed on to the servers (`limits.rpc_rate`, on an agent that is none).
//!
//! Owns: the buckets, who shares one, and the words of a refusal.
//! Never: reads a clock, answers, or counts what keeps an overloaded agent in its operator's hands.
//! Source: Consul docs, "limits", `request_limits`; the generic cell rate algorithm (ITU-T I.371).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;

use super::error::Failure;
use crate::config::runtime::LimitMode;

/// Seconds of the rate that may come at once, as Consul's servers allow.
const BURST_SECONDS: f64 = 10.0;
/// Sources remembered; with more at once, those that are new share one bucket.
const SOURCES_MAX: usize = 16_384;
/// Pause between looks for idle sources among all of them: each holds up every request.
const SWEEP_SECONDS: f64 = 1.0;
/// Networks that one subscriber of IPv6 usually has are one source.
const V6_NETWORK_BITS: u32 = 64;

/// Rates of one kind of limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Whether it is counted, and refused.
    pub mode: LimitMode,
    /// Reads a second; `None`: any number.
    pub read: Option<f64>,
    /// Writes a second; `None`: any number.
    pub write: Option<f64>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            mode: LimitMode::Disabled,
            read: None,
            write: None,
        }
    }
}

/// All rates; a reload replaces them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimits {
    /// `limits.request_limits`: what a server takes in all, from its own clients and through agents.
    pub server: RateLimit,
    /// `limits.source_limits`: what this agent takes of one client address.
    pub source: RateLimit,
    /// `limits.rpc_rate` a second, `limits.rpc_max_burst` at once: what this agent passes on to the servers.
    pub rpc: Option<(f64, u32)>,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// A limit that a request goes beyond.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Beyond {
    /// The key to change.
    pub(super) knob: &'static str,
    /// Its value.
    pub(super) rate: f64,
    pub(super) enforced: bool,
    reason: &'static str,
    kind: Kind,
}

/// When the bucket will be empty again, in seconds of the monotonic clock; it lets `burst` pass at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    empty_at: f64,
}

impl Bucket {
    fn admit(&mut self, now: f64, rate: f64, burst: f64) -> bool {
        if rate <= 0.0 {
            return false;
        }
        let each = 1.0 / rate;
        let empty_at = self.empty_at.max(now) + each;
        // A rounding error must not cost the last of a burst.
        let admitted = empty_at - now <= burst.max(1.0) * each + each * 1e-6;
        if admitted {
            self.empty_at = empty_at;
        }
        admitted
    }
}

/// Buckets of reads and of writes.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    read: Bucket,
    write: Bucket,
}

impl Pair {
    fn bucket(&mut self, kind: Kind) -> &mut Bucket {
        match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
        }
    }

    fn is_empty(&self, now: f64) -> bool {
        self.read.empty_at <= now && self.write.empty_at <= now
    }
}

impl RateLimit {
    fn of(&self, kind: Kind) -> Option<f64> {
        match kind {
            _ if self.mode == LimitMode::Disabled => None,
            Kind::Read => self.read,
            Kind::Write => self.write,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    limits: RateLimits,
    server: Pair,
    rpc: Bucket,
    sources: HashMap<IpAddr, Pair>,
    /// Of the sources that are one too many.
    others: Pair,
    /// When idle sources were last looked for, in seconds of the monotonic clock.
    swept_at: f64,
}

/// The limits in force and how far they are used.
#[derive(Debug, Default)]
pub(super) struct Rates {
    state: Mutex<State>,
    /// Whether anything is limited: nothing else is looked at when not.
    on: std::sync::atomic::AtomicBool,
}

impl Rates {
    /// Puts `limits` in force. What was used of the old ones still counts.
    pub(super) fn set(&self, limits: RateLimits) {
        let on = |limit: RateLimit| limit.mode != LimitMode::Disabled;
        let any = on(limits.server) || on(limits.source) || limits.rpc.is_some();
        let mut state = self.state.lock();
        if !on(limits.source) {
            state.sources = HashMap::new();
        }
        state.limits = limits;
        self.on.store(any, std::sync::atomic::Ordering::Release);
    }

    fn is_on(&self) -> bool {
        self.on.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Counts a request that a client of this agent makes.
    pub(super) fn of_source(
        &self,
        client: Option<IpAddr>,
        (method, path): (&Method, &str),
        now: Duration,
    ) -> Option<Beyond> {
        // Who reaches a unix socket was let through by its mode.
        let client = client.filter(|_| self.is_on() && !is_exempt(path))?;
        let kind = kind(method, path);
        let mut state = self.state.lock();
        let limit = state.limits.source;
        let rate = limit.of(kind)?;
        let now = now.as_secs_f64();
        let admitted =
            state
                .source(network(client), now)
                .bucket(kind)
                .admit(now, rate, rate * BURST_SECONDS);
        let knob = match kind {
            Kind::Read => "limits.source_limits.read_rate",
            Kind::Write => "limits.source_limits.write_rate",
        };
        (!admitted).then_some(Beyond {
            knob,
            rate,
            enforced: limit.mode == LimitMode::Enforcing,
            reason: "http.rate.source",
            kind,
        })
    }

    /// Counts a request that a server answers, whoever forwards it.
    pub(super) fn at_server(
        &self,
        (method, path): (&Method, &str),
        now: Duration,
    ) -> Option<Beyond> {
        if !self.is_on() || is_exempt(path) {
            return None;
        }
        let kind = kind(method, path);
        let mut state = self.state.lock();
        let limit = state.limits.server;
        let rate = limit.of(kind)?;
        let now = now.as_secs_f64();
        let bucket = state.server.bucket(kind);
        let admitted = bucket.admit(now, rate, rate * BURST_SECONDS);
        let knob = match kind {
            Kind::Read => "limits.request_limits.read_rate",
            Kind::Write => "limits.request_limits.write_rate",
        };
        (!admitted).then_some(Beyond {
            knob,
            rate,
            enforced: limit.mode == LimitMode::Enforcing,
            reason: "http.rate.server",
            kind,
        })
    }

    /// Counts a request that is passed on to the servers.
    pub(super) fn to_servers(&self, now: Duration) -> Option<Beyond> {
        if !self.is_on() {
            return None;
        }
        let mut state = self.state.lock();
        let (rate, burst) = state.limits.rpc?;
        let admitted = state.rpc.admit(now.as_secs_f64(), rate, f64::from(burst));
        (!admitted).then_some(Beyond {
            knob: "limits.rpc_rate",
            rate,
            enforced: true,
            reason: "http.rate.rpc",
            kind: Kind::Read,
        })
    }
}

impl State {
    fn source(&mut self, client: IpAddr, now: f64) -> &mut Pair {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&client) {
            if now >= self.swept_at + SWEEP_SECONDS {
                self.swept_at = now;
                self.sources.retain(|_, pair| !pair.is_empty(now));
            }
            if self.sources.len() >= SOURCES_MAX {
                return &mut self.others;
            }
        }
        self.sources.entry(client).or_default()
    }
}

impl Beyond {
    /// The refusal, with Consul's words where it has some. `leads`: this server is the leader, and no other would do.
    pub(super) fn failure(&self, leads: bool) -> Failure {
        let (knob, rate) = (self.knob, self.rate);
        if self.reason == "http.rate.server" && leads && self.kind == Kind::Write {
            let text = format!(
                "rate limit exceeded for operation that can only be performed by the leader, try again later ({knob} = {rate})"
            );
            let mut failure = Failure::too_many(self.reason, text);
            failure.status = StatusCode::SERVICE_UNAVAILABLE;
            return failure;
        }
        let text = match self.reason {
            "http.rate.server" => {
                "rate limit exceeded, try again later or against a different server"
            }
            "http.rate.rpc" => "RPC rate limit exceeded",
            _ => "Your IP is issuing too many requests, please rate limit your calls",
        };
        Failure::too_many(self.reason, format!("{text} ({knob} = {rate})"))
    }
}

/// Posting there changes nothing.
fn kind(method: &Method, path: &str) -> Kind {
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if reads || path.starts_with("/v1/discovery-chain/") {
        Kind::Read
    } else {
        Kind::Write
    }
}

/// What an operator needs to see and end an overload; Consul exempts its status and operator calls too.
fn is_exempt(path: &str) -> bool {
    path.starts_with("/v1/status/")
        || path.starts_with("/v1/operator/")
        || matches!(
            path,
            "/v1/agent/reload" | "/v1/agent/leave" | "/v1/agent/metrics" | "/v1/agent/self"
        )
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (128 - V6_NETWORK_BITS);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: (&Method, &str) = (&Method::GET, "/v1/kv/a");
    const PUT: (&Method, &str) = (&Method::PUT, "/v1/kv/a");

    fn enforcing(read: f64, write: f64) -> RateLimit {
        RateLimit {
            mode: LimitMode::Enforcing,
            read: Some(read),
            write: Some(write),
        }
    }

    fn rates(limits: RateLimits) -> Rates {
        let rates = Rates::default();
        rates.set(limits);
        rates
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn taken(count: u32, mut admit: impl FnMut() -> Option<Beyond>) -> u32 {
        (0..count).map(|_| u32::from(admit().is_none())).sum()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rates = rates(RateLimits {
            server: enforcing(5.0, 1.0),
            ..RateLimits::default()
        });
        let at = Duration::from_secs;
        assert_eq!(taken(200, || rates.at_server(GET, at(100))), 50);
        assert_eq!(taken(200, || rates.at_server(PUT, at(100))), 10);
        assert_eq!(taken(200, || rates.at_server(GET, at(103))), 15);
        assert_eq!(taken(200, || rates.at_server(PUT, at(103))), 3);
        assert_eq!(taken(200, || rates.at_server(GET, at(1_000))), 50);
        let operator = (&Method::PUT, "/v1/operator/raft/transfer-leader");
        assert_eq!(taken(200, || rates.at_server(operator, at(1_000))), 200);
    }

    #[test]
    fn a_rate_of_zero_takes_nothing_and_none_everything() {
        let closed = rates(RateLimits {
            server: enforcing(0.0, 0.0),
            ..RateLimits::default()
        });
        assert_eq!(taken(9, || closed.at_server(GET, Duration::ZERO)), 0);
        let open = rates(RateLimits::default());
        assert_eq!(taken(9, || open.at_server(GET, Duration::ZERO)), 9);
        assert_eq!(taken(9, || open.to_servers(Duration::ZERO)), 9);
    }

    #[test]
    fn one_source_does_not_use_up_anothers_share() {
        let rates = rates(RateLimits {
            source: enforcing(2.0, 2.0),
            ..RateLimits::default()
        });
        let now = Duration::from_secs(9);
        for (client, expected) in [
            ("192.0.2.1", 20),
            ("::ffff:192.0.2.1", 0),
            ("192.0.2.2", 20),
            ("2001:db8::1", 20),
            ("2001:db8::2", 0),
            ("2001:db8:0:1::1", 20),
        ] {
            let admit = || rates.of_source(address(client), GET, now);
            assert_eq!(taken(99, admit), expected, "{client}");
        }
        assert_eq!(taken(99, || rates.of_source(None, GET, now)), 99);
    }

    #[test]
    fn sources_beyond_the_bound_share_a_bucket_until_others_are_idle() {
        let rates = rates(RateLimits {
            source: enforcing(0.1, 0.1),
            ..RateLimits::default()
        });
        let client = |n: usize| Some(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        let now = Duration::from_secs(1);
        for n in 0..SOURCES_MAX {
            assert_eq!(rates.of_source(client(n), GET, now), None);
        }
        let newcomers: u32 = (SOURCES_MAX..SOURCES_MAX + 9)
            .map(|n| u32::from(rates.of_source(client(n), GET, now).is_none()))
            .sum();
        assert_eq!(newcomers, 1);
        assert_eq!(rates.state.lock().sources.len(), SOURCES_MAX);
        let later = Duration::from_secs(60);
        assert_eq!(rates.of_source(client(SOURCES_MAX), GET, later), None);
        assert_eq!(rates.state.lock().sources.len(), 1);
    }

    #[test]
    fn idle_sources_are_looked_for_at_most_once_a_second() {
        let rates = rates(RateLimits {
            source: enforcing(100.0, 100.0),
            ..RateLimits::default()
        });
        let client = |n: usize| Some(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        let at = |millis| Duration::from_millis(millis);
        for n in 0..=SOURCES_MAX {
            assert_eq!(rates.of_source(client(n), GET, at(1_000)), None);
        }
        // All are idle again, but were looked at just now.
        rates.of_source(client(SOURCES_MAX + 1), GET, at(1_500));
        assert_eq!(rates.state.lock().sources.len(), SOURCES_MAX);
        rates.of_source(client(SOURCES_MAX + 1), GET, at(2_000));
        assert_eq!(rates.state.lock().sources.len(), 1);
    }

    #[test]
    fn refusals_have_consuls_words_and_the_knob() {
        let beyond = |reason, knob, kind| Beyond {
            knob,
            rate: 2.5,
            enforced: true,
            reason,
            kind,
        };
        let write = beyond(
            "http.rate.server",
            "limits.request_limits.write_rate",
            Kind::Write,
        );
        for (beyond, leads, status, text) in [
            (
                &write,
                false,
                429,
                "rate limit exceeded, try again later or against a different server (limits.request_limits.write_rate = 2.5)",
            ),
            (
                &write,
                true,
                503,
                "rate limit exceeded for operation that can only be performed by the leader, try again later (limits.request_limits.write_rate = 2.5)",
            ),
            (
                &beyond("http.rate.rpc", "limits.rpc_rate", Kind::Read),
                false,
                429,
                "RPC rate limit exceeded (limits.rpc_rate = 2.5)",
            ),
        ] {
            let failure = beyond.failure(leads);
            assert_eq!((failure.status.as_u16(), &*failure.text), (status, text));
        }
    }
}
