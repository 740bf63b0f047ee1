//! What must survive a restart, one file per service, check and TTL state.
//!
//! Owns: `services/`, `checks/` and `checks/state/` below `data_dir`, and the one thread that writes
//! there. A file is written aside, synced and renamed, mode 0600; waiting writers share one
//! directory sync. Newer content for the same file replaces what has not been written yet.
//! Never: knows what a definition means; it keeps JSON objects with a checksum.
//! Source: DESIGN F1; CONSUL.md B.7.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::OpenError;

/// Syncs at once: a journaling file system commits concurrent ones together.
const SYNCS_AT_ONCE: usize = 16;
/// Largest file read back.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Which directory a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Check,
    /// The last report to a TTL check. Not synced: losing it costs one critical interval.
    State,
}

impl Kind {
    fn dir(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Check => "checks",
            Self::State => "checks/state",
        }
    }
}

/// Resolves when the write it stands for is on disk.
pub(super) type Saved = oneshot::Receiver<Result<(), String>>;

/// The writer's handle. Dropping it writes what is pending and ends the thread.
pub(super) struct Store {
    root: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    /// At most one per file, so bounded by what is registered or just deregistered.
    pending: BTreeMap<(Kind, PathBuf), Change>,
    closed: bool,
}

#[derive(Default)]
struct Change {
    /// `None`: remove the file.
    content: Option<String>,
    waiters: Vec<oneshot::Sender<Result<(), String>>>,
}

/// What was found at start.
#[derive(Default)]
pub(super) struct Found {
    pub(super) objects: BTreeMap<(Kind, PathBuf), Value>,
    /// Files that could not be read back and were set aside.
    pub(super) corrupt: usize,
    /// A directory of registrations was not there: whatever was in it is lost.
    pub(super) made: bool,
}

impl Store {
    /// Makes the directories, reads every file back and starts the writer.
    pub(super) fn open(root: &Path) -> Result<(Self, Found), OpenError> {
        let mut found = Found::default();
        for kind in [Kind::Service, Kind::Check, Kind::State] {
            let dir = root.join(kind.dir());
            found.made |= kind != Kind::State && !dir.is_dir();
            // Registrations may hold tokens.
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&dir).map_err(|cause| OpenError::Io {
                path: dir.clone(),
                cause,
            })?;
            load_dir(kind, &dir, &mut found).map_err(|cause| OpenError::Io { path: dir, cause })?;
        }
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            root: root.to_owned(),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("weft-local".to_owned())
            .spawn(move || writer.run())
            .map_err(|cause| OpenError::Io {
                path: root.to_owned(),
                cause,
            })?;
        Ok((
            Self {
                root: root.to_owned(),
                shared,
                thread: Some(thread),
            },
            found,
        ))
    }

    /// The file of `id`: the SHA-256 of it in hex, as Consul names them.
    pub(super) fn path(&self, kind: Kind, id: &str) -> PathBuf {
        self.root
            .join(kind.dir())
            .join(hex::encode(Sha256::digest(id)))
    }

    /// Queues `object` to be written. The order of calls for one id is the order of effects.
    pub(super) fn save(&self, kind: Kind, id: &str, object: Value) -> Saved {
        self.enqueue(kind, id, Some(seal(object)))
    }

    /// Queues the removal of `id`'s file; nothing happens when there is none.
    pub(super) fn remove(&self, kind: Kind, id: &str) -> Saved {
        self.enqueue(kind, id, None)
    }

    fn enqueue(&self, kind: Kind, id: &str, content: Option<String>) -> Saved {
        let (waiter, saved) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        let change = queue
            .pending
            .entry((kind, self.path(kind, id)))
            .or_default();
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

struct Writer {
    root: PathBuf,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(self) {
        while let Some(round) = self.next_round() {
            self.write(round);
        }
    }

    /// Waits for work; `None` when closed and drained.
    fn next_round(&self) -> Option<Vec<((Kind, PathBuf), Change)>> {
        let mut queue = self.shared.queue.lock();
        while queue.pending.is_empty() {
            if queue.closed {
                return None;
            }
            self.shared.wake.wait(&mut queue);
        }
        // All of it, so that no kind of file waits behind another for ever.
        Some(std::mem::take(&mut queue.pending).into_iter().collect())
    }

    fn write(&self, round: Vec<((Kind, PathBuf), Change)>) {
        let mut results = sync_all(&round);
        let mut dirs = std::collections::BTreeSet::new();
        for (((kind, path), change), result) in round.iter().zip(&mut results) {
            if result.is_ok() {
                *result = place(path, change.content.is_some());
            }
            if *kind != Kind::State {
                dirs.insert(kind.dir());
            }
        }
        let synced = dirs
            .iter()
            .try_for_each(|dir| File::open(self.root.join(dir))?.sync_all());
        for (((_, path), change), result) in round.into_iter().zip(results) {
            let verdict = match (result, &synced) {
                (Err(error), _) => Err(format!("{}: {error}", path.display())),
                (Ok(()), Err(error)) => Err(format!("{}: {error}", self.root.display())),
                (Ok(()), Ok(())) => Ok(()),
            };
            if let Err(error) = &verdict {
                tracing::error!(file.path = %path.display(), error, "cannot save a registration");
            }
            for waiter in change.waiters {
                // A caller that went away does not need the answer.
                let _ = waiter.send(verdict.clone());
            }
        }
    }
}

/// Writes and syncs every file aside, several at once.
fn sync_all(round: &[((Kind, PathBuf), Change)]) -> Vec<io::Result<()>> {
    let one = |((kind, path), change): &((Kind, PathBuf), Change)| match &change.content {
        Some(content) => write_aside(path, content, *kind != Kind::State),
        None => Ok(()),
    };
    if round.len() == 1 {
        return round.iter().map(one).collect();
    }
    let share = round.len().div_ceil(SYNCS_AT_ONCE);
    std::thread::scope(|scope| {
        let workers: Vec<_> = round
            .chunks(share)
            .map(|chunk| {
                (
                    chunk.len(),
                    scope.spawn(move || chunk.iter().map(one).collect::<Vec<_>>()),
                )
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|(count, worker)| {
                let failed = || {
                    (0..count)
                        .map(|_| Err(io::Error::other("the writing thread failed")))
                        .collect()
                };
                worker.join().unwrap_or_else(|_| failed())
            })
            .collect()
    })
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

fn write_aside(path: &Path, content: &str, durable: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(aside(path))?;
    file.write_all(content.as_bytes())?;
    if durable { file.sync_all() } else { Ok(()) }
}

fn place(path: &Path, present: bool) -> io::Result<()> {
    if present {
        return fs::rename(aside(path), path);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Adds a checksum over the object without it. Keys are sorted, so its text is canonical.
fn seal(mut object: Value) -> String {
    let sum = checksum(&object);
    if let Value::Object(map) = &mut object {
        map.insert("Sum".to_owned(), Value::String(sum));
    }
    object.to_string()
}

fn checksum(object: &Value) -> String {
    hex::encode(&Sha256::digest(object.to_string())[..16])
}

/// Reads a file's object and checks its sum; files of another make have none.
fn unseal(bytes: &[u8]) -> Result<Value, String> {
    let mut object: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Value::Object(map) = &mut object else {
        return Err("it is not a JSON object".to_owned());
    };
    match map.remove("Sum") {
        Some(Value::String(sum)) if sum == checksum(&object) => Ok(object),
        Some(_) => Err("its checksum does not match".to_owned()),
        None => Ok(object),
    }
}

fn load_dir(kind: Kind, dir: &Path, found: &mut Found) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        match path.extension().and_then(|end| end.to_str()) {
            None => {}
            Some("tmp") => {
                fs::remove_file(&path)?;
                continue;
            }
            Some(_) => continue,
        }
        match read_file(&path) {
            Ok(object) => {
                found.objects.insert((kind, path), object);
            }
            Err(reason) => {
                set_aside(&path, &reason);
                found.corrupt += usize::from(kind != Kind::State);
            }
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Value, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_MAX_BYTES {
        return Err(format!(
            "it has {size} bytes, more than the limit of {FILE_MAX_BYTES}"
        ));
    }
    unseal(&fs::read(path).map_err(|error| error.to_string())?)
}

/// Renames a file that cannot be used, so that neither it nor the reason is lost.
pub(super) fn set_aside(path: &Path, reason: &str) {
    let corrupt = path.with_extension("corrupt");
    let outcome = fs::rename(path, &corrupt);
    tracing::error!(
        file.path = %path.display(),
        file.kept_as = %corrupt.display(),
        reason,
        renamed = outcome.is_ok(),
        "a saved registration cannot be read and was set aside; register it again"
    );
}

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(super) fn write_durably(path: &Path, content: &str) -> io::Result<()> {
    write_aside(path, content, true)?;
    fs::rename(aside(path), path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn saved(receiver: Saved) {
        receiver.blocking_recv().unwrap().unwrap();
    }

    #[test]
    fn what_was_saved_is_found_again_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        saved(store.save(Kind::Service, "web", json!({"A": 1})));
        saved(store.save(Kind::Service, "db", json!({"A": 2})));
        saved(store.save(Kind::Service, "web", json!({"A": 3})));
        saved(store.remove(Kind::Service, "db"));
        saved(store.remove(Kind::Check, "never there"));
        let path = store.path(Kind::Service, "web");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(store);
        let (_, found) = Store::open(dir.path()).unwrap();
        assert_eq!(
            found.objects.into_iter().collect::<Vec<_>>(),
            [((Kind::Service, path), json!({"A": 3}))]
        );
        assert_eq!(found.corrupt, 0);
    }

    #[test]
    fn damaged_files_are_set_aside_and_leftovers_removed() {
        for damage in [
            &b"{\"A\":1,\"Sum\":\"00\"}"[..],
            b"",
            b"[]",
            b"{\"A\":",
            b"\xff\xfe",
        ] {
            let dir = tempfile::tempdir().unwrap();
            drop(Store::open(dir.path()).unwrap());
            let file = dir.path().join("services/ab");
            fs::write(&file, damage).unwrap();
            fs::write(dir.path().join("checks/cd.tmp"), b"half").unwrap();
            let (_store, found) = Store::open(dir.path()).unwrap();
            assert!(found.objects.is_empty());
            assert_eq!(found.corrupt, 1);
            assert_eq!(fs::read(file.with_extension("corrupt")).unwrap(), damage);
            assert!(!file.exists() && !dir.path().join("checks/cd.tmp").exists());
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let sealed = seal(json!({"Service": {"Port": 80}}));
        assert!(unseal(sealed.as_bytes()).is_ok());
        assert_eq!(
            unseal(sealed.replace("80", "81").as_bytes()),
            Err("its checksum does not match".to_owned())
        );
    }

    #[test]
    fn a_failed_write_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("services")).unwrap();
        let verdict = store
            .save(Kind::Service, "web", json!({}))
            .blocking_recv()
            .unwrap();
        assert!(verdict.is_err());
    }
}
