//! One topic, whoever reads it: its present content, its last changes encoded, and who must hear.
//!
//! Owns: looking again when something it depends on was touched, and not too often.
//! Never: knows a stream; a reader is a mailbox.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_catalog::view::{Change, Slice, ViewTopic};
use weft_catalog::{Probe, Topics, Watch};

use super::Shared;

/// Changes kept for readers that are behind.
const RING_MAX: usize = 128;
/// Bytes of them.
const RING_BYTES_MAX: usize = 256 << 10;
/// A topic that nobody reads is kept for this long: agents come and go.
const IDLE: Duration = Duration::from_secs(30);
/// After a look, this many times as long passes as it took, so that big topics cannot fill a core.
const PAUSE_FACTOR: u32 = 9;
/// But at most so long.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Which of its topics a stream must look at.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    dirty: Mutex<BTreeSet<u64>>,
    pub(super) ready: Notify,
}

impl Mailbox {
    pub(super) fn put(&self, id: u64) {
        self.dirty.lock().insert(id);
        self.ready.notify_one();
    }

    pub(super) fn take(&self) -> Option<u64> {
        self.dirty.lock().pop_first()
    }

    pub(super) fn forget(&self, id: u64) {
        self.dirty.lock().remove(&id);
    }
}

/// What a reader has of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    /// What it said: a fingerprint (0: nothing) and the restore epoch it is of.
    Told { fingerprint: u64, epoch: u64 },
    /// What it was sent.
    Version(u64),
}

/// What a reader is to be sent.
#[derive(Debug)]
pub(super) enum Next {
    /// It was not looked at yet, or there is nothing new.
    Nothing,
    /// It has the newest already; as of this index.
    Unchanged { version: u64, index: u64 },
    /// These changes, one after the other.
    Changes { version: u64, frames: Vec<Bytes> },
    /// All of it.
    Whole { version: u64, parts: Arc<[Bytes]> },
    /// It depends on too much.
    TooWide,
}

/// A topic that is read.
pub(super) struct Material {
    pub(super) topic: ViewTopic,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    slice: Option<Arc<Slice>>,
    too_wide: bool,
    /// +1 with every change; 0: not looked yet.
    version: u64,
    ring: VecDeque<(u64, Change)>,
    ring_bytes: usize,
    whole: Option<Arc<[Bytes]>>,
    /// Whether something was touched since the last look.
    probe: Option<Probe>,
    readers: Vec<(u64, Weak<Mailbox>)>,
    /// Streams about to read it.
    interest: usize,
}

impl Material {
    pub(super) fn new(topic: ViewTopic) -> Self {
        Self {
            topic,
            now: Mutex::default(),
        }
    }

    /// Somebody is about to read it: it must not be forgotten.
    pub(super) fn interest(&self) {
        self.now.lock().interest += 1;
    }

    /// From now on `mailbox` hears of changes; the first time at once, if it was looked at.
    pub(super) fn join(&self, id: u64, mailbox: &Arc<Mailbox>) {
        let mut now = self.now.lock();
        now.interest -= 1;
        now.readers.push((id, Arc::downgrade(mailbox)));
        if now.version > 0 || now.too_wide {
            mailbox.put(id);
        }
    }

    pub(super) fn leave(&self, id: u64, mailbox: &Arc<Mailbox>) {
        let mut now = self.now.lock();
        now.readers
            .retain(|(own, to)| *own != id || !std::ptr::eq(to.as_ptr(), Arc::as_ptr(mailbox)));
    }

    pub(super) fn is_read(&self) -> bool {
        let mut now = self.now.lock();
        now.readers
            .retain(|(_, mailbox)| mailbox.strong_count() > 0);
        now.interest > 0 || !now.readers.is_empty()
    }

    /// What a reader that has `has` is to be sent.
    pub(super) fn next(&self, has: Has) -> Next {
        let mut now = self.now.lock();
        if now.too_wide {
            return Next::TooWide;
        }
        let version = now.version;
        let Some(slice) = &now.slice else {
            return Next::Nothing;
        };
        let (index, epoch) = (slice.index(), slice.restore_epoch());
        let from = match has {
            Has::Version(had) if had == version => return Next::Nothing,
            Has::Version(had) => now.ring.iter().position(|(to, _)| *to == had + 1),
            Has::Told { epoch: of, .. } if of != epoch => None,
            Has::Told { fingerprint, .. } if fingerprint == slice.fingerprint() => {
                return Next::Unchanged { version, index };
            }
            Has::Told { fingerprint, .. } => {
                let mut ring = now.ring.iter();
                ring.position(|(_, change)| change.base == fingerprint)
            }
        };
        if let Some(from) = from {
            let frames = now
                .ring
                .range(from..)
                .map(|(_, change)| change.frame.clone());
            let frames = frames.collect();
            return Next::Changes { version, frames };
        }
        let slice = slice.clone();
        // Encoded once for all who need it at this version.
        let whole = now.whole.get_or_insert_with(|| slice.whole().into());
        let parts = whole.clone();
        Next::Whole { version, parts }
    }

    /// Through which index a reader that has `version` has everything; `None` when it does not have the
    /// newest. `announced`: of what was published up to here, everybody concerned has been woken.
    pub(super) fn complete(&self, version: u64, announced: u64) -> Option<u64> {
        let now = self.now.lock();
        let slice = now.slice.as_ref().filter(|_| now.version == version)?;
        let woken = now.probe.as_ref().is_none_or(Probe::is_woken);
        (!woken).then(|| slice.index().max(announced))
    }

    /// Takes what a look found, and tells the readers if it is new.
    fn publish(&self, slice: Slice, watch: &Watch) {
        let slice = Arc::new(slice);
        let mut now = self.now.lock();
        now.probe = Some(watch.probe());
        let change = match &now.slice {
            None => None,
            Some(before) => match slice.since(before) {
                None => {
                    // The same content: only the index and the references are newer.
                    now.slice = Some(slice);
                    return;
                }
                Some(_) if before.restore_epoch() != slice.restore_epoch() => None,
                Some(change) => Some(change),
            },
        };
        now.version += 1;
        now.whole = None;
        now.slice = Some(slice);
        let version = now.version;
        match change {
            Some(change) => now.remember(version, change),
            // Nothing leads here from what was before.
            None => {
                now.ring.clear();
                now.ring_bytes = 0;
            }
        }
        now.tell();
    }

    fn too_wide(&self) {
        let mut now = self.now.lock();
        now.too_wide = true;
        now.tell();
    }
}

impl Now {
    fn remember(&mut self, version: u64, change: Change) {
        self.ring_bytes += change.frame.len();
        self.ring.push_back((version, change));
        while self.ring.len() > RING_MAX || self.ring_bytes > RING_BYTES_MAX {
            let Some((_, oldest)) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= oldest.frame.len();
        }
    }

    fn tell(&mut self) {
        self.readers.retain(|(id, mailbox)| {
            let mailbox = mailbox.upgrade();
            mailbox.map(|mailbox| mailbox.put(*id)).is_some()
        });
    }
}

/// Looks whenever something the topic depends on was touched, until nobody reads it.
pub(super) async fn run(material: Arc<Material>, shared: Arc<Shared>) {
    let mut topics = Topics::default();
    let mut stop = shared.stop.clone();
    loop {
        let begun = shared.clock.monotonic();
        let Some(watch) = look(&material, &shared, &mut topics) else {
            return forget_later(&material, &shared).await;
        };
        let took = shared.clock.monotonic().saturating_sub(begun);
        tokio::time::sleep((took * PAUSE_FACTOR).min(PAUSE_MAX)).await;
        tokio::pin!(watch);
        loop {
            tokio::select! {
                biased;
                () = &mut watch => break,
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(IDLE) => if shared.retire(&material) {
                    return;
                },
            }
        }
    }
}

async fn forget_later(material: &Arc<Material>, shared: &Arc<Shared>) {
    let mut stop = shared.stop.clone();
    material.too_wide();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(IDLE) => if shared.retire(material) {
                return;
            },
        }
    }
}

/// One look; `None` when the topic is too wide. Registered before it looks, for what it reads.
fn look(material: &Material, shared: &Shared, topics: &mut Topics) -> Option<Watch> {
    let published = &shared.published;
    loop {
        let watch = published.hub().watch(topics);
        let state = published.load();
        let before = material.now.lock().slice.clone();
        let (slice, depends) = Slice::of(
            &state,
            &material.topic,
            before.as_deref(),
            &shared.expressions,
        )?;
        shared.metrics.looks.inc();
        if depends == *topics {
            material.publish(slice, &watch);
            return Some(watch);
        }
        *topics = depends;
    }
}
