//! Views on disk, one file each, so that a restart without servers answers as before.
//!
//! Owns: the form of the files, and when they are written: some time after a change, several together.
//! Never: syncs a file to the disk: what a power cut tears is noticed by its digest, removed, and asked
//! for again (ADR 16).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weft_catalog::State;
use weft_catalog::view::{ViewFrame, ViewTopic};
use weft_proto::ids::UnixMillis;
use weft_proto::v1;

use super::Inner;
use super::entry::{Contact, View};

const MAGIC: &[u8; 8] = b"weftvw1\n";
const DIGEST_BYTES: usize = 32;
/// The file that says when servers were last heard.
const CONTACT: &str = "contact";
/// A change is written after this time, with what else has changed by then.
const WRITE_AFTER: Duration = Duration::from_secs(2);
/// How often the time of the last contact is written while servers are there.
const CONTACT_EVERY: Duration = Duration::from_secs(60);

/// A view as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
struct Kept {
    #[prost(message, optional, tag = "1")]
    topic: Option<v1::ViewTopic>,
    #[prost(message, optional, tag = "2")]
    frame: Option<ViewFrame>,
    /// Wall clock: when it was known to be what the servers had.
    #[prost(uint64, tag = "3")]
    as_of_millis: u64,
}

/// When servers were last heard, and of which cluster they were.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Heard {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(uint64, tag = "2")]
    at_millis: u64,
    /// Files of views that were not kept up to date then.
    #[prost(string, repeated, tag = "3")]
    behind: Vec<String>,
}

/// What a restart finds.
#[derive(Default)]
pub(super) struct Found {
    pub(super) cluster_id: String,
    /// Topic, content, when it was current (monotonic milliseconds, negative before the start), bytes.
    pub(super) views: Vec<(ViewTopic, State, i64, usize)>,
}

/// The folder of the views, and what of it is to be written.
pub(super) struct Disk {
    dir: PathBuf,
    work: Mutex<Work>,
    changed: Notify,
    damaged: Mutex<u64>,
}

#[derive(Default)]
struct Work {
    /// By the name of the file.
    write: BTreeMap<String, Weak<View>>,
    remove: BTreeSet<String>,
}

impl Disk {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            work: Mutex::default(),
            changed: Notify::new(),
            damaged: Mutex::default(),
        }
    }

    /// Everything that can be read; what cannot is removed.
    pub(super) fn load(&self, max: usize, wall: UnixMillis, now: i64) -> Found {
        let heard = read(&self.dir.join(CONTACT)).and_then(|body| Heard::decode(&body[..]).ok());
        let heard = heard.unwrap_or_default();
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Found::default();
        };
        let age = |at: u64| i64::try_from(wall.get().saturating_sub(at)).unwrap_or(i64::MAX);
        let mut found = Found {
            cluster_id: heard.cluster_id.clone(),
            views: Vec::new(),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let file = entry.file_name().to_string_lossy().into_owned();
            if path.extension().is_none_or(|extension| extension != "view") {
                continue;
            }
            match restored(&path) {
                Some((topic, state, as_of, bytes)) if found.views.len() < max => {
                    let was_current = !heard.behind.contains(&file);
                    let at = if was_current {
                        as_of.max(heard.at_millis)
                    } else {
                        as_of
                    };
                    let as_of = now.saturating_sub(age(at));
                    found.views.push((topic, state, as_of, bytes));
                }
                other => {
                    if other.is_none() {
                        tracing::warn!(file.path = %path.display(), "a kept view cannot be read; servers are asked for it again");
                        *self.damaged.lock() += 1;
                    }
                    let _ = fs::remove_file(&path);
                }
            }
        }
        found
    }

    pub(super) fn changed(&self, view: &Arc<View>) {
        let mut work = self.work.lock();
        let file = file_of(&view.topic);
        work.remove.remove(&file);
        work.write.insert(file, Arc::downgrade(view));
        drop(work);
        self.changed.notify_one();
    }

    pub(super) fn forget(&self, topic: &ViewTopic) {
        let mut work = self.work.lock();
        let file = file_of(topic);
        work.write.remove(&file);
        work.remove.insert(file);
        drop(work);
        self.changed.notify_one();
    }

    /// Writes what has changed. Errors: the first one; the rest is tried all the same.
    fn write(&self, inner: &Inner) -> io::Result<()> {
        let work = std::mem::take(&mut *self.work.lock());
        let mut result = fs::create_dir_all(&self.dir);
        for file in work.remove {
            // It may never have been written.
            let _ = fs::remove_file(self.dir.join(file));
        }
        for (file, view) in work.write {
            let Some((view, state)) = view.upgrade().and_then(|view| {
                let state = view.state()?;
                Some((view, state))
            }) else {
                continue;
            };
            let kept = Kept {
                topic: Some(view.topic.wire()),
                frame: Some(state.view_frame()),
                as_of_millis: wall_of(inner, view.as_of(&inner.contact)),
            };
            result = result.and(write(&self.dir.join(file), &kept.encode_to_vec()));
        }
        result
    }

    fn write_contact(&self, inner: &Inner, contact: &Contact) -> io::Result<()> {
        let behind = inner.all().into_iter().filter(|view| !view.is_live());
        let heard = Heard {
            cluster_id: contact.frontier().0,
            at_millis: wall_of(inner, contact.heard()),
            behind: behind.map(|view| file_of(&view.topic)).collect(),
        };
        fs::create_dir_all(&self.dir)?;
        write(&self.dir.join(CONTACT), &heard.encode_to_vec())
    }
}

/// Writes until `stop`, and once more then.
pub(super) async fn keep(inner: Arc<Inner>, stop: CancellationToken) {
    let Some(disk) = &inner.disk else { return };
    inner.metrics.damaged.inc_by(*disk.damaged.lock());
    let mut contact = tokio::time::interval(CONTACT_EVERY);
    loop {
        let stopped = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = async {
                disk.changed.notified().await;
                tokio::time::sleep(WRITE_AFTER).await;
            } => false,
            _ = contact.tick() => false,
        };
        let writing = inner.clone();
        let written = tokio::task::spawn_blocking(move || {
            let Some(disk) = &writing.disk else {
                return Ok(());
            };
            let is_open = writing.contact.is_open();
            let files = disk.write(&writing);
            match is_open {
                true => files.and(disk.write_contact(&writing, &writing.contact)),
                false => files,
            }
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, dir = %disk.dir.display(), "views cannot be kept on disk; after a restart without servers they will be missing");
        }
        if stopped {
            return;
        }
    }
}

fn wall_of(inner: &Inner, monotonic: i64) -> u64 {
    let age = inner.now().saturating_sub(monotonic).max(0);
    let wall = inner.clock.wall().get();
    wall.saturating_sub(u64::try_from(age).unwrap_or(0))
}

fn file_of(topic: &ViewTopic) -> String {
    let digest = Sha256::digest(topic.wire().encode_to_vec());
    format!("{}.view", hex::encode(&digest[..12]))
}

fn restored(path: &Path) -> Option<(ViewTopic, State, u64, usize)> {
    let body = read(path)?;
    let kept = Kept::decode(&body[..]).ok()?;
    let topic = ViewTopic::of_wire(&kept.topic?)?;
    let (state, _) = State::default().amended(kept.frame?).ok()?;
    Some((topic, state, kept.as_of_millis, body.len() * 4))
}

/// The body of a file, if it is as it was written.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (digest, body) = rest.split_at_checked(DIGEST_BYTES)?;
    (Sha256::digest(body).as_slice() == digest).then(|| body.to_vec())
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&Sha256::digest(body));
    bytes.extend_from_slice(body);
    let aside = path.with_extension("new");
    fs::write(&aside, bytes)?;
    fs::rename(aside, path)
}
