//! Wakes readers that wait for a change of what they read.
//!
//! Owns: which watchers wait for which topics. A topic exists only while it is watched.
//! Never: knows a runtime (it calls [`std::task::Waker`]s), keeps a state, or waits for a reader.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::digest::Fold;
use crate::topics::{Topic, Topics, Touched};

const SHARDS: usize = 32;

/// Registered watchers by topic. Shared by all readers and the one publisher.
#[derive(Debug, Default)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rows: [Mutex<Shard>; SHARDS],
    prefixes: Mutex<Prefixes>,
    slots: AtomicU64,
    watches: AtomicU64,
    wakes: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            rows: std::array::from_fn(|_| Mutex::default()),
            prefixes: Mutex::default(),
            slots: AtomicU64::new(0),
            watches: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
        }
    }
}

type Shard = BTreeMap<Topic, Slot>;

/// Watched KV prefixes. A written key asks only for the lengths that are watched.
#[derive(Debug, Default)]
struct Prefixes {
    slots: BTreeMap<Bytes, Slot>,
    lengths: BTreeMap<usize, usize>,
}

/// The watchers of one topic. `id` tells a slot from an older one of the same topic.
#[derive(Debug, Default)]
struct Slot {
    id: u64,
    watchers: Vec<Option<Arc<Signal>>>,
    free: Vec<usize>,
}

/// One watch's state: fired once, by whichever topic comes first.
#[derive(Debug, Default)]
struct Signal {
    fired: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Resolves when one of its topics is touched by a publish after it was made.
/// Dropping it deregisters it.
#[derive(Debug)]
#[must_use = "a watch that is not awaited wakes nobody"]
pub struct Watch {
    inner: Arc<Inner>,
    signal: Arc<Signal>,
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    topic: Topic,
    slot: u64,
    position: usize,
}

/// What the hub is doing, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Watches that exist.
    pub watches: u64,
    /// Topics that are watched by at least one of them.
    pub topics: usize,
    /// Watches woken since the start.
    pub wakes_total: u64,
}

impl Hub {
    /// A hub without watchers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers for every topic. To lose no change: make the watch, read the newest state again,
    /// then await the watch. A watch of no topic never resolves.
    pub fn watch(&self, topics: &Topics) -> Watch {
        let signal = Arc::new(Signal::default());
        let places = topics
            .iter()
            .map(|topic| self.inner.register(topic, &signal))
            .collect();
        self.inner.watches.fetch_add(1, Ordering::Relaxed);
        Watch {
            inner: self.inner.clone(),
            signal,
            places,
        }
    }

    /// Wakes the watchers of what was touched. Call it after the new state can be read.
    pub fn publish(&self, touched: &Touched) {
        if touched.is_empty() {
            return;
        }
        let mut woken = Vec::new();
        if touched.is_everything() {
            self.inner.take_all(&mut woken);
        } else {
            self.inner.take(touched, &mut woken);
        }
        let wakes = woken
            .iter()
            .flatten()
            .flatten()
            .filter(|signal| signal.fire())
            .count();
        self.inner.wakes.fetch_add(wakes as u64, Ordering::Relaxed);
    }

    /// How many watches there are. Cheap: no lock.
    #[must_use]
    pub fn watches(&self) -> u64 {
        self.inner.watches.load(Ordering::Relaxed)
    }

    /// How many watches and topics there are.
    #[must_use]
    pub fn stats(&self) -> HubStats {
        let rows: usize = self
            .inner
            .rows
            .iter()
            .map(|shard| locked(shard).len())
            .sum();
        HubStats {
            watches: self.watches(),
            topics: rows + locked(&self.inner.prefixes).slots.len(),
            wakes_total: self.inner.wakes.load(Ordering::Relaxed),
        }
    }
}

type Watchers = Vec<Option<Arc<Signal>>>;

impl Inner {
    fn register(&self, topic: &Topic, signal: &Arc<Signal>) -> Place {
        let new_id = || self.slots.fetch_add(1, Ordering::Relaxed);
        let (slot, position) = match topic {
            Topic::Prefix(prefix) => {
                let prefixes = &mut *locked(&self.prefixes);
                let slot = prefixes.slots.entry(prefix.clone()).or_insert_with(|| {
                    *prefixes.lengths.entry(prefix.len()).or_default() += 1;
                    Slot::new(new_id())
                });
                (slot.id, slot.add(signal))
            }
            row => {
                let mut shard = locked(self.shard(row));
                let slot = shard
                    .entry(row.clone())
                    .or_insert_with(|| Slot::new(new_id()));
                (slot.id, slot.add(signal))
            }
        };
        Place {
            topic: topic.clone(),
            slot,
            position,
        }
    }

    fn shard(&self, topic: &Topic) -> &Mutex<Shard> {
        let mut fold = Fold::new();
        match topic {
            Topic::Table(table) => fold.word(*table as u64),
            Topic::Node(name)
            | Topic::NodeId(name)
            | Topic::Service(name)
            | Topic::Session(name) => {
                fold.bytes(name.as_bytes());
            }
            Topic::Key(key) | Topic::Prefix(key) => fold.bytes(key),
            Topic::ConfigKind(kind) => fold.bytes(kind.as_bytes()),
            Topic::ConfigEntry(kind, name) | Topic::Mesh(kind, name) => {
                fold.bytes(kind.as_bytes());
                fold.bytes(name.as_bytes());
            }
        }
        &self.rows[(fold.finish() % SHARDS as u64) as usize]
    }

    fn take(&self, touched: &Touched, woken: &mut Vec<Watchers>) {
        for topic in touched.tables().map(Topic::Table) {
            woken.extend(
                locked(self.shard(&topic))
                    .remove(&topic)
                    .map(|slot| slot.watchers),
            );
        }
        for topic in touched.rows() {
            woken.extend(
                locked(self.shard(topic))
                    .remove(topic)
                    .map(|slot| slot.watchers),
            );
            if let Topic::Key(key) = topic {
                locked(&self.prefixes).take_above(key, woken);
            }
        }
    }

    fn take_all(&self, woken: &mut Vec<Watchers>) {
        for shard in &self.rows {
            woken.extend(
                std::mem::take(&mut *locked(shard))
                    .into_values()
                    .map(|slot| slot.watchers),
            );
        }
        let prefixes = std::mem::take(&mut *locked(&self.prefixes));
        woken.extend(prefixes.slots.into_values().map(|slot| slot.watchers));
    }

    fn deregister(&self, place: &Place) {
        match &place.topic {
            Topic::Prefix(prefix) => {
                let mut prefixes = locked(&self.prefixes);
                if prefixes
                    .slots
                    .get_mut(prefix)
                    .is_some_and(|slot| slot.leave(place).is_break())
                {
                    prefixes.remove(prefix);
                }
            }
            row => {
                let mut shard = locked(self.shard(row));
                if shard
                    .get_mut(row)
                    .is_some_and(|slot| slot.leave(place).is_break())
                {
                    shard.remove(row);
                }
            }
        }
    }
}

impl Prefixes {
    fn remove(&mut self, prefix: &Bytes) -> Option<Slot> {
        let slot = self.slots.remove(prefix)?;
        if let Some(count) = self.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
        Some(slot)
    }

    /// Takes the watchers of every prefix of `key`.
    fn take_above(&mut self, key: &Bytes, woken: &mut Vec<Watchers>) {
        let lengths: Vec<usize> = self
            .lengths
            .range(..=key.len())
            .map(|(length, _)| *length)
            .collect();
        for length in lengths {
            if self.slots.contains_key(&key[..length]) {
                woken.extend(self.remove(&key.slice(..length)).map(|slot| slot.watchers));
            }
        }
    }
}

impl Slot {
    fn new(id: u64) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    fn add(&mut self, signal: &Arc<Signal>) -> usize {
        if let Some(position) = self.free.pop() {
            self.watchers[position] = Some(signal.clone());
            return position;
        }
        self.watchers.push(Some(signal.clone()));
        self.watchers.len() - 1
    }

    /// Takes a watcher out; breaks when it was the last one.
    fn leave(&mut self, place: &Place) -> ControlFlow<()> {
        if self.id != place.slot {
            return ControlFlow::Continue(());
        }
        if self
            .watchers
            .get_mut(place.position)
            .and_then(Option::take)
            .is_some()
        {
            self.free.push(place.position);
        }
        if self.free.len() == self.watchers.len() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Signal {
    /// Fires once; answers whether this was the time.
    fn fire(&self) -> bool {
        if self.fired.swap(true, Ordering::AcqRel) {
            return false;
        }
        if let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
        true
    }
}

impl Watch {
    /// Whether it has been woken. What was published before the hub was told is not seen yet.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.signal.fired.load(Ordering::SeqCst)
    }

    /// Asks the same after the watch has been given away.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe(self.signal.clone())
    }
}

/// Tells whether a [`Watch`] has been woken, from elsewhere.
#[derive(Clone, Debug)]
pub struct Probe(Arc<Signal>);

impl Probe {
    /// As [`Watch::is_woken`].
    #[must_use]
    pub fn is_woken(&self) -> bool {
        self.0.fired.load(Ordering::SeqCst)
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.signal.fired.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        {
            let mut waker = locked(&self.signal.waker);
            if !waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(context.waker()))
            {
                *waker = Some(context.waker().clone());
            }
        }
        // Fired between the first look and the waker's arrival: nobody else will call it.
        if self.signal.fired.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for place in &self.places {
            self.inner.deregister(place);
        }
        self.inner.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
