//! From disk to a running state machine: newest good snapshot, then the committed log.
//!
//! Owns: the choice of snapshot and the replay, before openraft starts.
//! Never: writes to the log.

use std::io;
use std::path::PathBuf;

use crate::error::StartError;
use crate::log::{EntryKind, LogState, LogStore, Position};
use crate::machine::{Committed, StateMachine};
use crate::snapshot::{SnapshotStore, Stored};
use crate::types::{LogId, StoredMembership, from_log_entry, from_position};

const REPLAY_BYTES: usize = 4 * 1024 * 1024;

/// What the state machine holds after recovery.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) bytes_since_snapshot: u64,
}

pub(crate) fn recover(
    store: &dyn LogStore,
    snapshots: &SnapshotStore,
    machine: &mut impl StateMachine,
) -> Result<Recovered, StartError> {
    let committed = store.state().committed;
    recover_through(store, snapshots, machine, committed)
}

/// As [`recover`], but everything through `end` is applied, be it known to be committed or not.
pub(crate) fn recover_through(
    store: &dyn LogStore,
    snapshots: &SnapshotStore,
    machine: &mut impl StateMachine,
    end: Option<Position>,
) -> Result<Recovered, StartError> {
    let state = store.state();
    let mut recovered = Recovered::default();
    if let Some(stored) = newest_usable(snapshots, &state)? {
        let mut from = stored
            .data
            .open()
            .map_err(|cause| io_error("open the snapshot", cause))?;
        machine.restore(&mut from)?;
        recovered.applied = stored.meta.last_log_id;
        recovered.membership = stored.meta.last_membership.clone();
        snapshots.set_current(stored);
    }
    check_coverage(&state, recovered.applied.as_ref())?;
    replay(store, end, machine, &mut recovered)?;
    Ok(recovered)
}

/// The newest snapshot that verifies. An older one will do if the log still reaches back to it.
fn newest_usable(
    snapshots: &SnapshotStore,
    state: &LogState,
) -> Result<Option<Stored>, StartError> {
    let candidates = snapshots
        .candidates()
        .map_err(|cause| io_error("list snapshots", cause))?;
    let mut damaged: Option<(PathBuf, io::Error)> = None;
    for dir in candidates {
        match snapshots.load(&dir) {
            Ok(stored) if damaged.is_none() || reaches_log(&stored, state) => {
                return Ok(Some(stored));
            }
            Ok(_) => break,
            Err(cause) => {
                tracing::error!(file.path = %dir.display(), error = %cause, "snapshot cannot be used");
                damaged.get_or_insert((dir, cause));
            }
        }
    }
    match damaged {
        Some((file, cause)) if state.purged.is_some() => Err(StartError::Snapshot {
            file,
            log_starts_at: state.purged.map_or(0, |purged| purged.index + 1),
            cause,
        }),
        _ => Ok(None),
    }
}

fn reaches_log(stored: &Stored, state: &LogState) -> bool {
    let covered = stored.meta.last_log_id.as_ref().map(|id| id.index);
    state
        .purged
        .is_none_or(|purged| covered.is_some_and(|covered| covered >= purged.index))
}

fn check_coverage(state: &LogState, applied: Option<&LogId>) -> Result<(), StartError> {
    let applied_next = applied.map_or(0, |id| id.index + 1);
    if let Some(purged) = state.purged
        && purged.index >= applied_next
    {
        return Err(StartError::Gap {
            missing_from: applied_next,
            missing_to: purged.index,
        });
    }
    let last = state.last.or(state.purged).map(|last| last.index);
    if let Some(committed) = state.committed
        && committed.index >= applied_next
        && last.is_none_or(|last| last < committed.index)
    {
        return Err(StartError::LogBehindCommitted {
            last: last.unwrap_or(0),
            committed: committed.index,
        });
    }
    Ok(())
}

/// Applies what stands after the snapshot, through `end`. openraft would do it too, 64 entries at a time.
fn replay(
    store: &dyn LogStore,
    end: Option<Position>,
    machine: &mut impl StateMachine,
    recovered: &mut Recovered,
) -> Result<(), StartError> {
    let Some(end) = end else {
        return Ok(());
    };
    let mut next = recovered.applied.as_ref().map_or(0, |id| id.index + 1);
    while next <= end.index {
        let entries = store
            .read(next, end.index + 1, REPLAY_BYTES)
            .map_err(|cause| io_error("read the log", cause))?;
        let Some(last) = entries.last().map(|entry| entry.position) else {
            return Err(StartError::Gap {
                missing_from: next,
                missing_to: end.index,
            });
        };
        let mut batch = Vec::with_capacity(entries.len());
        for entry in entries {
            recovered.bytes_since_snapshot += entry.body.len() as u64;
            match entry.kind {
                EntryKind::Normal => {
                    let position = entry.position;
                    batch.push(Committed {
                        index: position.index,
                        term: position.term,
                        body: entry.body,
                    });
                }
                EntryKind::Blank => {}
                EntryKind::Membership => {
                    let entry = from_log_entry(entry)
                        .map_err(|cause| io_error("read a membership", cause))?;
                    if let openraft::EntryPayload::Membership(membership) = entry.payload {
                        recovered.membership =
                            StoredMembership::new(Some(entry.log_id), membership);
                    }
                }
            }
        }
        if !batch.is_empty() {
            machine.apply(&batch)?;
        }
        recovered.applied = Some(from_position(last));
        next = last.index + 1;
    }
    Ok(())
}

fn io_error(what: &str, cause: io::Error) -> StartError {
    StartError::Io {
        what: what.to_owned(),
        cause,
    }
}
