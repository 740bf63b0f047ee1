//! A user's restore: chunks staged through the log, then one commit that swaps the whole state.
//!
//! Owns: the staged bytes, and how a restored state is fitted into this cluster's indexes and times.
//! Never: applies a part of a snapshot: a restore happens wholly at its commit, or not at all.
//! Source: DESIGN §4 "Snapshot", F8.

use bytes::Bytes;
use imbl::Vector;
use sha2::{Digest as _, Sha256};
use weft_proto::ids::{LogIndex, UnixMillis};
use weft_proto::v1;

use crate::apply::session;
use crate::digest::Fold;
use crate::refusal::{Verdict, applied, conflict, invalid, unit};
use crate::rows::Change;
use crate::snapshot;
use crate::state::{Scalars, State, TableIndexes};

/// Bytes of a snapshot that can be staged: 2 GiB, for they are held in memory.
pub const RESTORE_BYTES_MAX: u64 = 2 << 30;

/// Bytes of one chunk: 4 MiB.
pub const RESTORE_CHUNK_BYTES_MAX: usize = 4 << 20;

/// Indexes of a snapshot that can be restored end here: indexes go on upwards from it, and clients keep
/// them in floating-point numbers. No cluster gets this far by itself.
pub const RESTORED_INDEX_MAX: u64 = 1 << 53;

/// A restore under way. Replicated: a new leader or replica can go on with it.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
    pub(crate) received: u64,
    pub(crate) chunks: Vector<Bytes>,
    sum: u64,
}

impl Staging {
    pub(crate) fn new(id: &str, size_bytes: u64, sha256: &str) -> Self {
        let (id, sha256) = (id.to_owned(), sha256.to_owned());
        Self {
            id,
            size_bytes,
            sha256,
            received: 0,
            chunks: Vector::new(),
            sum: 0,
        }
    }

    pub(crate) fn push(&mut self, data: &Bytes) {
        let mut fold = Fold::new();
        fold.word(self.sum);
        fold.bytes(data);
        self.sum = fold.finish();
        self.received += data.len() as u64;
        self.chunks.push_back(Bytes::copy_from_slice(data));
    }

    pub(crate) fn digest(&self, fold: &mut Fold) {
        fold.bytes(self.id.as_bytes());
        fold.bytes(self.sha256.as_bytes());
        fold.word(self.size_bytes);
        fold.word(self.sum);
    }

    fn reader(&self) -> ChunkReader<'_> {
        ChunkReader {
            chunks: self.chunks.iter(),
            rest: &[],
        }
    }
}

struct ChunkReader<'a> {
    chunks: imbl::vector::Iter<'a, Bytes, imbl::shared_ptr::DefaultSharedPtr>,
    rest: &'a [u8],
}

impl std::io::Read for ChunkReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.next() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        let (now, later) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.rest = later;
        Ok(count)
    }
}

/// Starts a restore. One at a time: an older one that was not committed is given up.
pub(crate) fn begin(change: &mut Change<'_>, command: &v1::RestoreBegin) -> Verdict {
    if command.restore_id.is_empty() {
        return Err(invalid("restore.id.missing", "a restore needs an id"));
    }
    if command.size_bytes > RESTORE_BYTES_MAX {
        return Err(invalid(
            "restore.too_large",
            format!(
                "snapshot of {} bytes is above the bound of {RESTORE_BYTES_MAX} bytes",
                command.size_bytes
            ),
        ));
    }
    change.state.staging = Some(Staging::new(
        &command.restore_id,
        command.size_bytes,
        &command.sha256,
    ));
    Ok(unit())
}

fn staged<'a>(change: &'a mut Change<'_>, id: &str) -> Result<&'a mut Staging, v1::Refusal> {
    change
        .state
        .staging
        .as_mut()
        .filter(|staging| staging.id == id)
        .ok_or_else(|| {
            conflict(
                "restore.unknown",
                format!(
                    "restore {id:?} is not under way: it was replaced, given up or never begun"
                ),
            )
        })
}

/// Adds the next bytes; bytes that are there already are accepted again.
pub(crate) fn chunk(change: &mut Change<'_>, command: &v1::RestoreChunk) -> Verdict {
    let staging = staged(change, &command.restore_id)?;
    let length = command.data.len() as u64;
    let end = command.offset.saturating_add(length);
    if command.data.len() > RESTORE_CHUNK_BYTES_MAX || end > staging.size_bytes {
        return Err(invalid(
            "restore.chunk.too_large",
            format!(
                "chunk of {length} bytes at {} exceeds {RESTORE_CHUNK_BYTES_MAX} bytes or the announced {} bytes",
                command.offset, staging.size_bytes
            ),
        ));
    }
    if end <= staging.received {
        return Ok(unit());
    }
    if command.offset != staging.received {
        return Err(conflict(
            "restore.chunk.offset",
            format!(
                "chunk at {} does not follow the {} bytes received",
                command.offset, staging.received
            ),
        ));
    }
    staging.push(&command.data);
    Ok(unit())
}

/// Gives a restore up.
pub(crate) fn abort(change: &mut Change<'_>, command: &v1::RestoreAbort) -> Verdict {
    staged(change, &command.restore_id)?;
    change.state.staging = None;
    Ok(unit())
}

/// Verifies what was staged and puts it in the place of the whole state.
pub(crate) fn commit(
    change: &mut Change<'_>,
    log_index: LogIndex,
    command: &v1::RestoreCommit,
) -> Verdict {
    let staging = staged(change, &command.restore_id)?.clone();
    change.state.staging = None;
    verify(&staging)?;
    let restored = snapshot::read(&mut staging.reader()).map_err(|cause| {
        invalid(
            "restore.damaged",
            format!("snapshot cannot be restored, state unchanged: {cause}"),
        )
    })?;
    let index = restored.state().index().get();
    if index > RESTORED_INDEX_MAX {
        return Err(invalid(
            "restore.index",
            format!(
                "the snapshot's index {index} is beyond {RESTORED_INDEX_MAX}, state unchanged: it is damaged or made up"
            ),
        ));
    }
    install(change, log_index, restored.state().clone());
    Ok(applied(true))
}

fn verify(staging: &Staging) -> Result<(), v1::Refusal> {
    if staging.received != staging.size_bytes {
        return Err(invalid(
            "restore.incomplete",
            format!(
                "{} of {} bytes were staged, state unchanged",
                staging.received, staging.size_bytes
            ),
        ));
    }
    let mut hasher = Sha256::new();
    for chunk in &staging.chunks {
        hasher.update(chunk);
    }
    let found = hex::encode(hasher.finalize());
    if found.eq_ignore_ascii_case(&staging.sha256) {
        return Ok(());
    }
    Err(invalid(
        "restore.checksum",
        format!(
            "SHA-256 of the staged bytes is {found}, announced was {}, state unchanged",
            staging.sha256
        ),
    ))
}

/// Fits a restored state into this cluster: indexes go on upwards from both sides, sessions get
/// their full TTL, and what belongs to this log (retry identities, server keys, versions) stays.
fn install(change: &mut Change<'_>, log_index: LogIndex, mut restored: State) {
    let ours = &*change.state;
    let index = ours
        .scalars
        .index
        .max(restored.scalars.index.saturating_add(1));
    let all = TableIndexes {
        nodes: index,
        services: index,
        checks: index,
        kv: index,
        sessions: index,
        operator: index,
        config_entries: index,
        coordinates: index,
    };
    restored.scalars = Scalars {
        index,
        base: index.saturating_sub(log_index.get()),
        restore_epoch: ours.scalars.restore_epoch + 1,
        floor: index,
        reaped: index,
        tables: all,
        ..ours.scalars
    };
    restored.server_keys = ours.server_keys.clone();
    // The archive's may have been used since it was made.
    restored.join_tokens = ours.join_tokens.clone();
    // Who the workloads are belongs to the cluster: an older archive must not undo a rotation.
    if !ours.mesh_ca.is_empty() {
        restored.mesh_ca = ours.mesh_ca.clone();
    }
    restored.sources = ours.sources.clone();
    restored.cluster_id = ours.cluster_id.clone();
    restored.staging = None;
    restored.key_tombstones.clear();
    restored.tree_tombstones.clear();
    restored.extinct_nodes.clear();
    restored.extinct_services.clear();
    restored.mesh_scopes.clear();
    restored.lock_delays.clear();
    let (now, term) = (
        UnixMillis(restored.scalars.cluster_time),
        restored.scalars.leader_term,
    );
    *change.state = restored;
    change.index = index;
    change.touched.everything();
    let rearmed = session::rearm(change, now, term);
    debug_assert!(rearmed.is_ok(), "re-arming refuses nothing");
}
