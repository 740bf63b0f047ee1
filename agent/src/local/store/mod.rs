//! What must survive a restart: services, checks, and what checks have come to.
//!
//! Owns: `registrations/` below `data_dir` and the one thread that writes there. Everything that waits
//! while a sync runs goes into the next one; newer content of the same id replaces what has not been
//! written yet. Mode 0600.
//! Never: knows what a definition means; it keeps JSON objects with a checksum.
//! Source: DESIGN F1; CONSUL.md B.7; docs/adr/0014-one-registration-log.md.

mod earlier;
mod log;
pub(super) mod mark;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use self::log::Log;
use super::OpenError;

/// How long nothing is written before the end is marked.
const IDLE: Duration = Duration::from_millis(500);
const DIR: &str = "registrations";

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Check,
    /// The last report to a TTL check. Not synced: losing it costs one critical interval.
    State,
}

/// An object's name: its kind and its id as it is written.
pub(super) type Key = (Kind, String);

/// Tells an object's id, or why it has none. For objects of earlier builds.
pub(super) type IdOf = fn(Kind, &Value) -> Result<String, String>;

/// Resolves when the write it stands for is on disk.
pub(super) type Saved = oneshot::Receiver<Result<(), String>>;

/// The writer's handle. Dropping it writes what is pending and ends the thread.
pub(super) struct Store {
    dir: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    changes: AtomicU64,
    syncs: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// At most one per object, so bounded by what is registered or just deregistered.
    pending: BTreeMap<Key, Change>,
    closed: bool,
}

#[derive(Default)]
struct Change {
    /// `None`: the object goes.
    content: Option<String>,
    waiters: Vec<oneshot::Sender<Result<(), String>>>,
}

/// What was found at start.
#[derive(Default)]
pub(super) struct Found {
    pub(super) objects: BTreeMap<Key, Value>,
    /// Places and files that could not be read back and were set aside.
    pub(super) corrupt: usize,
    /// There was nothing, or part of it was gone: whatever was in it is lost.
    pub(super) made: bool,
}

impl Store {
    /// Reads everything back, takes over what an earlier build kept, and starts the writer.
    pub(super) fn open(root: &Path, id_of: IdOf) -> Result<(Self, Found), OpenError> {
        let dir = root.join(DIR);
        let failed = |cause| OpenError::Io {
            path: dir.clone(),
            cause,
        };
        // Registrations may hold tokens.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&dir).map_err(failed)?;
        let (log, found) = open_log(root, &dir, id_of).map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            log,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("weft-local".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        let store = Self {
            dir,
            shared,
            thread: Some(thread),
        };
        Ok((store, found))
    }

    /// Queues `object` to be written. The order of calls for one id is the order of effects.
    pub(super) fn save(&self, kind: Kind, id: &str, object: &Value) -> Saved {
        let text = object.to_string();
        let size = text.len().max(id.len());
        if size > record::BODY_MAX_BYTES {
            let (waiter, saved) = oneshot::channel();
            let most = record::BODY_MAX_BYTES;
            let why = format!("it has {size} bytes, more than the limit of {most}");
            // The other end is held below.
            let _ = waiter.send(Err(why));
            return saved;
        }
        self.enqueue(kind, id, Some(text))
    }

    /// Queues the removal of `id`; nothing happens when there is none.
    pub(super) fn remove(&self, kind: Kind, id: &str) -> Saved {
        self.enqueue(kind, id, None)
    }

    /// Moves an object that cannot be used into a file of its own, so that neither it nor the reason
    /// is lost.
    pub(super) fn set_aside(&self, kind: Kind, id: &str, object: &Value, reason: &str) {
        let name = hex::encode(&Sha256::digest(id)[..8]);
        let path = self.dir.join(name).with_extension("corrupt");
        let outcome = write_durably(&path, &object.to_string());
        tracing::error!(
            object.id = id,
            file.kept_as = %path.display(),
            reason,
            kept = outcome.is_ok(),
            "a saved registration cannot be used and was set aside; register it again"
        );
        if outcome.is_ok() {
            // Nobody waits: until it is gone each start sets it aside again.
            drop(self.remove(kind, id));
        }
    }

    /// Changes written so far, and the syncs they took.
    pub(super) fn written(&self) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.shared.changes), of(&self.shared.syncs))
    }

    fn enqueue(&self, kind: Kind, id: &str, content: Option<String>) -> Saved {
        let (waiter, saved) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        let change = queue.pending.entry((kind, id.to_owned())).or_default();
        change.content = content;
        change.waiters.push(waiter);
        self.shared.wake.notify_one();
        saved
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in the writer has already failed its waiters.
            drop(thread.join());
        }
    }
}

/// Reads the log and what an earlier build left, and makes one log of both.
fn open_log(root: &Path, dir: &Path, id_of: IdOf) -> io::Result<(Log, Found)> {
    let mut read = log::read(dir)?;
    let mut found = Found {
        corrupt: read.damaged,
        made: !read.present,
        ..Found::default()
    };
    let earlier = earlier::read(root, id_of)?;
    if let Some(earlier) = &earlier {
        let newer = |(key, body): (&Key, &String)| read.objects.get(key) != Some(body);
        found.corrupt += earlier.corrupt;
        // Beside a log these are the leftovers of taking them over, or an earlier build ran here since:
        // then what it removed is not known.
        found.made = if read.present {
            earlier.objects.iter().any(newer)
        } else {
            earlier.incomplete
        };
        read.objects.extend(earlier.objects.clone());
        read.clean = None;
    }
    if found.corrupt > 0 || found.made {
        // First, as the new log no longer shows that anything was lost.
        mark::remove(root)?;
    }
    let log = Log::begin(dir, read.clean, &read.objects)?;
    if earlier.is_some() {
        earlier::move_away(root, dir)?;
    }
    for (key, body) in read.objects {
        // Checked by its sum, so it is what was written.
        let object = serde_json::from_str(&body).map_err(io::Error::other)?;
        found.objects.insert(key, object);
    }
    Ok((log, found))
}

struct Writer {
    log: Log,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self) {
        while let Some(round) = self.next_round() {
            self.write(round);
        }
        if self.log.wants_mark() {
            self.log.mark();
        }
    }

    /// Waits for work; `None` when closed and drained.
    fn next_round(&mut self) -> Option<BTreeMap<Key, Change>> {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock();
        while queue.pending.is_empty() {
            if queue.closed {
                return None;
            }
            if !self.log.wants_mark() {
                shared.wake.wait(&mut queue);
            } else if shared.wake.wait_for(&mut queue, IDLE).timed_out() {
                self.log.mark();
            }
        }
        // All of it, so that nothing waits behind another for ever.
        Some(std::mem::take(&mut queue.pending))
    }

    fn write(&mut self, round: BTreeMap<Key, Change>) {
        let changes: Vec<log::Change<'_>> = round
            .iter()
            .map(|(key, change)| (key, change.content.as_deref()))
            .collect();
        let durable = round.keys().any(|(kind, _)| *kind != Kind::State);
        let verdict = self.log.append(&changes, durable).map_err(|error| {
            tracing::error!(%error, changes = changes.len(), "cannot save registrations");
            error.to_string()
        });
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        self.shared.changes.fetch_add(count, Ordering::Relaxed);
        self.shared
            .syncs
            .fetch_add(u64::from(durable), Ordering::Relaxed);
        for waiter in round.into_values().flat_map(|change| change.waiters) {
            // A caller that went away does not need the answer.
            let _ = waiter.send(verdict.clone());
        }
    }
}

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(super) fn write_durably(path: &Path, content: &str) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
