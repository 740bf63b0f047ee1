//! Snapshots on disk (or in memory for `-dev`): written aside, checksummed, renamed.
//!
//! Owns: the snapshot directory: `<term>-<index>-<id>/{state.bin,manifest.json}`,
//! `tmp-*` while one is being written or received.
//! Never: knows what the state is; runs on the Raft runtime (all of it blocks).

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_proto::clock::Clock;

use crate::peer::{Peer, RaftId};
use crate::types::{LogId, Membership, SnapshotMeta, StoredMembership, corrupt, log_id, term_of};

const STATE_FILE: &str = "state.bin";
const MANIFEST_FILE: &str = "manifest.json";
const TEMPORARY: &str = "tmp-";
const FORMAT: u32 = 1;
/// Snapshots kept on disk: the current one and one to fall back to.
const KEPT: usize = 2;
const BUFFER_BYTES: usize = 256 * 1024;

pub(crate) type Sha = [u8; 32];

/// A finished snapshot's content: a handle, not the bytes, when it is on disk.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotData {
    Memory(Bytes),
    File {
        dir: PathBuf,
        size_bytes: u64,
        sha256: Sha,
    },
}

impl SnapshotData {
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Memory(bytes) => Ok(Box::new(bytes.clone().reader())),
            Self::File { dir, .. } => Ok(Box::new(BufReader::with_capacity(
                BUFFER_BYTES,
                File::open(dir.join(STATE_FILE))?,
            ))),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size_bytes, .. } => *size_bytes,
        }
    }

    /// Drops a received snapshot that was not installed.
    pub(crate) fn discard(&self) {
        if let Self::File { dir, .. } = self
            && is_temporary(dir)
        {
            // It may have been published (renamed) meanwhile: then there is nothing to remove.
            fs::remove_dir_all(dir).ok();
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: SnapshotData,
}

/// What `manifest.json` says.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    size_bytes: u64,
    sha256: String,
    last: Option<Mark>,
    membership_at: Option<Mark>,
    voters: Vec<Vec<RaftId>>,
    peers: Vec<Peer>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Mark {
    term: u64,
    index: u64,
}

pub(crate) struct SnapshotStore {
    dir: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    serial: AtomicU64,
    current: Mutex<Option<Stored>>,
}

impl SnapshotStore {
    /// Opens the directory (`None`: keep the latest snapshot in memory) and sweeps what a crash left.
    pub(crate) fn open(dir: Option<PathBuf>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        if let Some(dir) = &dir {
            fs::create_dir_all(dir)?;
            for path in subdirectories(dir)? {
                if is_temporary(&path) {
                    fs::remove_dir_all(&path)?;
                }
            }
        }
        Ok(Self {
            dir,
            clock,
            serial: AtomicU64::new(0),
            current: Mutex::new(None),
        })
    }

    pub(crate) fn current(&self) -> Option<Stored> {
        self.current.lock().clone()
    }

    pub(crate) fn set_current(&self, stored: Stored) {
        *self.current.lock() = Some(stored);
    }

    /// As [`Self::set_current`], unless a newer one was installed while this one was being built: handing
    /// out the older would send a follower in circles.
    fn set_newer(&self, stored: Stored) {
        let mut current = self.current.lock();
        let is_newer = |old: &Stored| old.meta.last_log_id <= stored.meta.last_log_id;
        if current.as_ref().is_none_or(is_newer) {
            *current = Some(stored);
        }
    }

    /// Directories of the snapshots kept, newest first.
    pub(crate) fn candidates(&self) -> io::Result<Vec<PathBuf>> {
        let Some(dir) = &self.dir else {
            return Ok(Vec::new());
        };
        let mut found: Vec<(u64, u64, PathBuf)> = subdirectories(dir)?
            .into_iter()
            .filter_map(|path| name_parts(&path).map(|(term, index)| (term, index, path)))
            .collect();
        found.sort();
        Ok(found.into_iter().rev().map(|(_, _, path)| path).collect())
    }

    /// Reads and verifies one snapshot.
    ///
    /// Errors: `InvalidData` when size or SHA-256 differ from the manifest.
    pub(crate) fn load(&self, dir: &Path) -> io::Result<Stored> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST_FILE))?)?;
        if manifest.format != FORMAT {
            return Err(corrupt(&format!(
                "snapshot format {} is not known to this version",
                manifest.format
            )));
        }
        let (size_bytes, sha256) = digest(File::open(dir.join(STATE_FILE))?)?;
        if size_bytes != manifest.size_bytes || hex::encode(sha256) != manifest.sha256 {
            return Err(corrupt(
                "size or SHA-256 of state.bin differ from manifest.json",
            ));
        }
        let meta = manifest.into_meta()?;
        Ok(Stored {
            meta,
            data: SnapshotData::File {
                dir: dir.to_owned(),
                size_bytes,
                sha256,
            },
        })
    }

    /// Writes a new snapshot and makes it current.
    pub(crate) fn write(
        &self,
        meta: SnapshotMeta,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Stored> {
        let mut incoming = self.begin()?;
        let filled = fill(&mut incoming).and_then(|()| incoming.finish(&meta));
        let data = filled.inspect_err(|_| incoming.abandon())?;
        self.publish(meta, data)
    }

    /// Starts one that is written or received piece by piece.
    pub(crate) fn begin(&self) -> io::Result<Incoming> {
        let sink = match &self.dir {
            None => Sink::Memory(Vec::new()),
            Some(dir) => {
                let path = dir.join(format!("{TEMPORARY}{}", self.next_serial()));
                fs::create_dir_all(&path)?;
                let file = File::create(path.join(STATE_FILE))?;
                Sink::File {
                    dir: path,
                    file: BufWriter::with_capacity(BUFFER_BYTES, file),
                }
            }
        };
        Ok(Incoming {
            sink,
            sha: Sha256::new(),
            size_bytes: 0,
        })
    }

    /// Gives a finished snapshot its name, makes it current and drops those beyond the kept two.
    pub(crate) fn publish(&self, meta: SnapshotMeta, data: SnapshotData) -> io::Result<Stored> {
        let data = match (data, &self.dir) {
            (
                SnapshotData::File {
                    dir,
                    size_bytes,
                    sha256,
                },
                Some(root),
            ) if is_temporary(&dir) => {
                let (term, index) = meta
                    .last_log_id
                    .as_ref()
                    .map_or((0, 0), |id| (term_of(id), id.index));
                let named = root.join(format!("{term}-{index}-{}", self.next_serial()));
                fs::rename(&dir, &named)?;
                sync_directory(root)?;
                SnapshotData::File {
                    dir: named,
                    size_bytes,
                    sha256,
                }
            }
            (data, _) => data,
        };
        let stored = Stored { meta, data };
        self.set_newer(stored.clone());
        self.prune();
        Ok(stored)
    }

    fn prune(&self) {
        let Ok(candidates) = self.candidates() else {
            return;
        };
        for old in candidates.into_iter().skip(KEPT) {
            if let Err(cause) = fs::remove_dir_all(&old) {
                tracing::warn!(file.path = %old.display(), error = %cause, "cannot remove an old snapshot");
            }
        }
    }

    fn next_serial(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{:013}{:04}", self.clock.wall().get(), serial % 10_000)
    }
}

enum Sink {
    Memory(Vec<u8>),
    File { dir: PathBuf, file: BufWriter<File> },
}

/// A snapshot being written or received.
pub(crate) struct Incoming {
    sink: Sink,
    sha: Sha256,
    size_bytes: u64,
}

impl Incoming {
    pub(crate) fn sha256(&self) -> Sha {
        self.sha.clone().finalize().into()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Syncs content and manifest. The snapshot still has its temporary name.
    pub(crate) fn finish(&mut self, meta: &SnapshotMeta) -> io::Result<SnapshotData> {
        let (size_bytes, sha256) = (self.size_bytes, self.sha256());
        match &mut self.sink {
            Sink::Memory(bytes) => Ok(SnapshotData::Memory(Bytes::from(std::mem::take(bytes)))),
            Sink::File { dir, file } => {
                file.flush()?;
                file.get_ref().sync_all()?;
                let manifest =
                    serde_json::to_vec_pretty(&Manifest::new(meta, size_bytes, &sha256))?;
                let mut out = File::create(dir.join(MANIFEST_FILE))?;
                out.write_all(&manifest)?;
                out.sync_all()?;
                sync_directory(dir)?;
                Ok(SnapshotData::File {
                    dir: dir.clone(),
                    size_bytes,
                    sha256,
                })
            }
        }
    }

    pub(crate) fn abandon(&self) {
        if let Sink::File { dir, .. } = &self.sink {
            fs::remove_dir_all(dir).ok();
        }
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.sink {
            Sink::Memory(buffer) => buffer.write(bytes)?,
            Sink::File { file, .. } => file.write(bytes)?,
        };
        self.sha.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Memory(_) => Ok(()),
            Sink::File { file, .. } => file.flush(),
        }
    }
}

impl Manifest {
    fn new(meta: &SnapshotMeta, size_bytes: u64, sha256: &Sha) -> Self {
        let membership = meta.last_membership.membership();
        Self {
            format: FORMAT,
            size_bytes,
            sha256: hex::encode(sha256),
            last: meta.last_log_id.as_ref().map(Mark::new),
            membership_at: meta.last_membership.log_id().as_ref().map(Mark::new),
            voters: membership
                .get_joint_config()
                .iter()
                .map(|set| set.iter().copied().collect())
                .collect(),
            peers: membership
                .nodes()
                .map(|(id, node)| Peer::new(*id, node.clone()))
                .collect(),
        }
    }

    fn into_meta(self) -> io::Result<SnapshotMeta> {
        let voters = self
            .voters
            .into_iter()
            .map(|set| set.into_iter().collect())
            .collect();
        let peers: std::collections::BTreeMap<_, _> = self
            .peers
            .into_iter()
            .map(|peer| (peer.id, peer.into_node()))
            .collect();
        let membership = Membership::new(voters, peers).map_err(|cause| {
            corrupt(&format!(
                "membership in manifest.json is inconsistent: {cause}"
            ))
        })?;
        Ok(SnapshotMeta {
            last_log_id: self.last.map(Mark::log_id),
            last_membership: StoredMembership::new(
                self.membership_at.map(Mark::log_id),
                membership,
            ),
        })
    }
}

impl Mark {
    fn new(id: &LogId) -> Self {
        Self {
            term: term_of(id),
            index: id.index,
        }
    }

    fn log_id(self) -> LogId {
        log_id(self.term, self.index)
    }
}

fn digest(mut file: File) -> io::Result<(u64, Sha)> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size_bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size_bytes, sha.finalize().into()));
        }
        sha.update(&buffer[..read]);
        size_bytes += read as u64;
    }
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
}

fn name_parts(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?;
    let mut parts = name.splitn(3, '-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::clock::SystemClock;

    fn store(dir: Option<&Path>) -> SnapshotStore {
        SnapshotStore::open(dir.map(Path::to_owned), Arc::new(SystemClock::new())).unwrap()
    }

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(log_id(2, index)),
            last_membership: StoredMembership::default(),
        }
    }

    fn content(data: &SnapshotData) -> Vec<u8> {
        let mut bytes = Vec::new();
        data.open().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_two_newest_are_kept_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = store(Some(dir.path()));
        for index in [9, 10, 100] {
            snapshots
                .write(meta(index), |to| {
                    to.write_all(format!("state {index}").as_bytes())
                })
                .unwrap();
        }
        fs::create_dir(dir.path().join("tmp-left-by-a-crash")).unwrap();

        let again = store(Some(dir.path()));
        let found: Vec<_> = again
            .candidates()
            .unwrap()
            .iter()
            .map(|dir| again.load(dir).unwrap())
            .collect();
        let indexes: Vec<_> = found
            .iter()
            .map(|stored| stored.meta.last_log_id.as_ref().unwrap().index)
            .collect();
        assert_eq!(indexes, [100, 10]);
        assert_eq!(content(&found[0].data), b"state 100");
        assert!(!dir.path().join("tmp-left-by-a-crash").exists());
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = store(Some(dir.path()));
        snapshots
            .write(meta(5), |to| to.write_all(b"precious"))
            .unwrap();
        let path = snapshots.candidates().unwrap().remove(0);
        fs::write(path.join(STATE_FILE), b"preciouz").unwrap();
        assert_eq!(
            snapshots.load(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = store(Some(dir.path()));
        snapshots
            .write(meta(5), |_| Err(io::Error::other("full")))
            .unwrap_err();
        assert!(subdirectories(dir.path()).unwrap().is_empty());
        assert!(snapshots.current().is_none());
    }

    #[test]
    fn memory_keeps_the_latest() {
        let snapshots = store(None);
        snapshots
            .write(meta(5), |to| to.write_all(b"five"))
            .unwrap();
        assert_eq!(content(&snapshots.current().unwrap().data), b"five");
    }
}
