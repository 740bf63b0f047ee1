//! The world: hosts, a network between them, and one queue of what happens next.
//!
//! Owns: virtual time, the dice, latency, loss, sides of a split, pauses, clocks that jump, bytes counted.
//! Never: knows what hosts say to each other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Bytes of seal, frame header, UDP and IP around a datagram's body.
const DATAGRAM_OVERHEAD: u64 = 39 + 28;
/// Bytes of seal and length around a stream's frame, and of TCP/IP per segment.
const FRAME_OVERHEAD: u64 = 43;
const SEGMENT_BYTES: u64 = 1_400;
const SEGMENT_OVERHEAD: u64 = 40;
/// Segments of a connection's begin and end.
const HANDSHAKE_BYTES: u64 = 7 * 40;
/// Datagrams a socket holds for a host that does not read.
const SOCKET_DATAGRAMS_MAX: usize = 256;
/// How long TCP waits before it sends a lost segment again.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// A host's protocol: inputs with the host's own time, effects into the [`Outbox`].
pub trait Node {
    /// A datagram came in.
    fn on_datagram(&mut self, now: Duration, from: SocketAddr, data: &[u8], out: &mut Outbox);
    /// A frame came in over a stream; what is returned goes back over it, `None` ends it.
    fn on_frame(
        &mut self,
        now: Duration,
        from: SocketAddr,
        data: &[u8],
        out: &mut Outbox,
    ) -> Option<Vec<u8>>;
    /// [`Self::next_timer`] has come.
    fn on_timer(&mut self, now: Duration, out: &mut Outbox);
    /// When this host wants to be called, in its own time.
    fn next_timer(&self) -> Option<Duration>;
}

/// What a host wants sent.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Datagrams, with where to.
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Streams to open, with their first frame.
    pub streams: Vec<(SocketAddr, Vec<u8>)>,
}

/// What the network does to all hosts alike.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The share of datagrams that are lost.
    pub loss: f64,
    /// The shortest way of a packet.
    pub latency: Duration,
    /// At most this much is added to it, evenly.
    pub jitter: Duration,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss: 0.0,
            latency: Duration::from_micros(200),
            jitter: Duration::from_micros(2_800),
        }
    }
}

/// A host and what happens to it.
#[derive(Debug)]
pub struct Host<N> {
    /// What runs on it; `None` when it has crashed or stopped.
    pub node: Option<N>,
    /// Where it is.
    pub address: SocketAddr,
    /// Only hosts of one side reach each other.
    pub side: u8,
    /// The share of its datagrams that are lost, each way, beside the network's.
    pub loss: f64,
    /// Bytes sent, with all headers.
    pub sent: u64,
    /// Bytes received, with all headers.
    pub received: u64,
    /// It does nothing until then.
    paused_until: Duration,
    /// How far its clock is ahead of the world's.
    ahead: Duration,
    /// When it is woken next, at the latest.
    wakes_at: Option<Duration>,
    /// Datagrams in its socket while it is paused.
    waiting: usize,
}

#[derive(Debug)]
enum Happening {
    Wake(usize),
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        data: Vec<u8>,
        /// It lies in the socket of a paused host.
        held: bool,
    },
    Frame {
        from: SocketAddr,
        to: SocketAddr,
        data: Vec<u8>,
    },
}

struct Event(Duration, u64, Happening);

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// See the module.
pub struct World<N> {
    /// The dice; scenarios may throw them too.
    pub rng: StdRng,
    /// The network.
    pub network: Network,
    /// All hosts that ever were, by number.
    pub hosts: Vec<Host<N>>,
    now: Duration,
    queue: BinaryHeap<Reverse<Event>>,
    sequence: u64,
    places: BTreeMap<SocketAddr, usize>,
    /// The largest datagram's body so far.
    pub largest_datagram: usize,
    /// Datagrams carried so far.
    pub datagrams: u64,
}

impl<N: Node> World<N> {
    /// An empty world. The same seed and the same calls give the same run.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            network: Network::default(),
            hosts: Vec::new(),
            now: Duration::from_secs(1_000),
            queue: BinaryHeap::new(),
            sequence: 0,
            places: BTreeMap::new(),
            largest_datagram: 0,
            datagrams: 0,
        }
    }

    /// The world's time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What host `n` takes for the time.
    #[must_use]
    pub fn time_at(&self, n: usize) -> Duration {
        self.now + self.hosts[n].ahead
    }

    /// Puts a host into the world; answers its number.
    pub fn add(&mut self, address: SocketAddr, node: N) -> usize {
        let n = self.hosts.len();
        self.hosts.push(Host {
            node: Some(node),
            address,
            side: 0,
            loss: 0.0,
            sent: 0,
            received: 0,
            paused_until: Duration::ZERO,
            ahead: Duration::ZERO,
            wakes_at: None,
            waiting: 0,
        });
        self.places.insert(address, n);
        self.arm(n);
        n
    }

    /// Starts host `n` again with a new process.
    pub fn restart(&mut self, n: usize, node: N) {
        let host = &mut self.hosts[n];
        host.node = Some(node);
        host.wakes_at = None;
        host.waiting = 0;
        host.paused_until = Duration::ZERO;
        self.arm(n);
    }

    /// Stops host `n` without a word.
    pub fn crash(&mut self, n: usize) {
        self.hosts[n].node = None;
    }

    /// Host `n` does nothing for `time`; what is sent to it waits in its socket.
    pub fn pause(&mut self, n: usize, time: Duration) {
        let until = self.now + time;
        let host = &mut self.hosts[n];
        host.paused_until = host.paused_until.max(until);
    }

    /// The clock of host `n` leaps ahead.
    pub fn leap(&mut self, n: usize, time: Duration) {
        self.hosts[n].ahead += time;
        self.arm(n);
    }

    /// Lets host `n` act from outside: an operator's call.
    pub fn act<T>(&mut self, n: usize, act: impl FnOnce(&mut N, Duration, &mut Outbox) -> T) -> T {
        let mut out = Outbox::default();
        let now = self.time_at(n);
        let node = self.hosts[n].node.as_mut().expect("the host runs");
        let answer = act(node, now, &mut out);
        self.carry(n, out);
        self.arm(n);
        answer
    }

    /// Hosts that run, by number.
    pub fn running(&self) -> impl Iterator<Item = (usize, &N)> {
        self.hosts
            .iter()
            .enumerate()
            .filter_map(|(n, host)| Some((n, host.node.as_ref()?)))
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse(Event(at, ..))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse(Event(at, _, happening))) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(at);
            self.happen(happening);
        }
        self.now = end;
    }

    /// Lets time pass in steps of `step` until `done`, for at most `limit`; answers how long it took.
    pub fn run_until(
        &mut self,
        limit: Duration,
        step: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if self.now >= start + limit {
                return None;
            }
            self.run(step);
        }
        Some(self.now - start)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(n) => self.wake(n),
            Happening::Datagram {
                from,
                to,
                data,
                held,
            } => self.deliver(from, to, data, held),
            Happening::Frame { from, to, data } => self.pass(from, to, data),
        }
    }

    fn wake(&mut self, n: usize) {
        let (now, local) = (self.now, self.time_at(n));
        let host = &mut self.hosts[n];
        if host.wakes_at.is_some_and(|at| at <= now) {
            host.wakes_at = None;
        }
        if host.paused_until > now {
            self.arm(n);
            return;
        }
        let mut out = Outbox::default();
        if let Some(node) = &mut host.node
            && node.next_timer().is_some_and(|at| at <= local)
        {
            node.on_timer(local, &mut out);
        }
        self.carry(n, out);
        self.arm(n);
    }

    /// As a driver does: timers that are due come before what lies in the socket.
    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, data: Vec<u8>, held: bool) {
        let Some(n) = self.places.get(&to).copied() else {
            return;
        };
        let (now, local) = (self.now, self.time_at(n));
        let side = self.places.get(&from).map(|n| self.hosts[*n].side);
        let host = &mut self.hosts[n];
        if held {
            host.waiting = host.waiting.saturating_sub(1);
        }
        if host.node.is_none() || side.is_some_and(|side| side != host.side) {
            return;
        }
        if host.paused_until > now {
            if host.waiting < SOCKET_DATAGRAMS_MAX {
                host.waiting += 1;
                let (at, held) = (host.paused_until, true);
                self.push(
                    at,
                    Happening::Datagram {
                        from,
                        to,
                        data,
                        held,
                    },
                );
            }
            return;
        }
        host.received += data.len() as u64 + DATAGRAM_OVERHEAD;
        let mut out = Outbox::default();
        if let Some(node) = &mut host.node {
            if node.next_timer().is_some_and(|at| at <= local) {
                node.on_timer(local, &mut out);
            }
            node.on_datagram(local, from, &data, &mut out);
        }
        self.carry(n, out);
        self.arm(n);
    }

    fn pass(&mut self, from: SocketAddr, to: SocketAddr, data: Vec<u8>) {
        let (Some(n), Some(back)) = (self.places.get(&to).copied(), self.places.get(&from)) else {
            return;
        };
        let reached =
            self.hosts[*back].side == self.hosts[n].side && self.hosts[*back].node.is_some();
        let (now, local) = (self.now, self.time_at(n));
        let host = &mut self.hosts[n];
        if host.node.is_none() || !reached {
            return;
        }
        if host.paused_until > now {
            let at = host.paused_until;
            self.push(at, Happening::Frame { from, to, data });
            return;
        }
        host.received += weight(&data);
        let mut out = Outbox::default();
        let answer = host
            .node
            .as_mut()
            .and_then(|node| node.on_frame(local, from, &data, &mut out));
        if let Some(answer) = answer {
            self.frame(n, from, answer);
        }
        self.carry(n, out);
        self.arm(n);
    }

    fn carry(&mut self, n: usize, out: Outbox) {
        for (to, data) in out.datagrams {
            self.datagram(n, to, data);
        }
        for (to, data) in out.streams {
            self.hosts[n].sent += HANDSHAKE_BYTES;
            self.frame(n, to, data);
        }
    }

    fn datagram(&mut self, n: usize, to: SocketAddr, data: Vec<u8>) {
        self.datagrams += 1;
        self.largest_datagram = self.largest_datagram.max(data.len());
        let host = &mut self.hosts[n];
        host.sent += data.len() as u64 + DATAGRAM_OVERHEAD;
        let (from, loss) = (host.address, host.loss);
        let there = self.places.get(&to).map_or(0.0, |n| self.hosts[*n].loss);
        for loss in [self.network.loss, loss, there] {
            if loss > 0.0 && self.rng.random_bool(loss) {
                return;
            }
        }
        let at = self.now + self.way();
        let held = false;
        self.push(
            at,
            Happening::Datagram {
                from,
                to,
                data,
                held,
            },
        );
    }

    fn frame(&mut self, n: usize, to: SocketAddr, data: Vec<u8>) {
        let host = &mut self.hosts[n];
        host.sent += weight(&data);
        let (from, loss) = (host.address, host.loss.max(self.network.loss).min(0.9));
        // A handshake or an acknowledgement, then the frame.
        let mut at = self.now + self.way() + self.way() + self.way();
        while loss > 0.0 && self.rng.random_bool(loss) {
            at += RETRANSMIT;
        }
        self.push(at, Happening::Frame { from, to, data });
    }

    fn way(&mut self) -> Duration {
        let jitter = self.network.jitter.as_micros() as u64;
        self.network.latency + Duration::from_micros(self.rng.random_range(0..=jitter))
    }

    fn arm(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let Some(timer) = host.node.as_ref().and_then(Node::next_timer) else {
            return;
        };
        let at = timer
            .saturating_sub(host.ahead)
            .max(host.paused_until)
            .max(self.now);
        if host.wakes_at.is_none_or(|planned| at < planned) {
            host.wakes_at = Some(at);
            self.push(at, Happening::Wake(n));
        }
    }

    fn push(&mut self, at: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue
            .push(Reverse(Event(at, self.sequence, happening)));
    }
}

impl<N> std::fmt::Debug for World<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now)
            .field("hosts", &self.hosts.len())
            .finish_non_exhaustive()
    }
}

/// Bytes of a frame on the wire, acknowledgements not counted.
fn weight(data: &[u8]) -> u64 {
    let bytes = data.len() as u64 + FRAME_OVERHEAD;
    bytes + bytes.div_ceil(SEGMENT_BYTES) * SEGMENT_OVERHEAD
}
