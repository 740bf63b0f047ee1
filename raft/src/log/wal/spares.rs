//! Files made ready before they are needed.
//!
//! Owns: one spare file and the thread that fills it with zeros.
//! Never: touches a file that has a segment's name.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::super::disk::{Disk, DiskFile};
use super::recover::spare_name;

/// Zeros written at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Zeros made durable at once: small, so that a commit in between waits little.
const SYNC_EVERY_BYTES: u64 = 2 << 20;
/// Ready files kept; more recycled ones are removed.
const READY_MAX: usize = 1;

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// A file ready to become a segment.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) capacity: u64,
}

/// The spare files of one log.
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    next_number: u64,
    helper: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Vec<Spare>,
    wanted: Option<(u64, u64)>,
    busy: bool,
    closing: bool,
}

impl Spares {
    /// `next_number` must be above that of every spare file there ever was in the folder and still may be.
    pub(super) fn new(disk: Arc<dyn Disk>, next_number: u64) -> Self {
        Self {
            disk,
            shared: Arc::default(),
            next_number,
            helper: None,
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn wants_more(&self) -> bool {
        let state = self.shared.state.lock();
        state.ready.len() < READY_MAX && !state.busy && state.wanted.is_none()
    }

    pub(super) fn give(&self, spare: Spare) {
        self.shared.state.lock().ready.push(spare);
    }

    /// Has a file made ready by the helper, unless there is one.
    pub(super) fn prepare(&mut self, capacity: u64) {
        if !self.wants_more() {
            return;
        }
        let number = self.next_number();
        self.shared.state.lock().wanted = Some((number, capacity));
        if self.helper.is_none() {
            let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
            let helper = std::thread::Builder::new()
                .name("raft-log-zero".to_owned())
                .stack_size(128 << 10);
            // Without the helper files are made when needed: slower, not wrong.
            self.helper = helper.spawn(move || help(&*disk, &shared)).ok();
            if self.helper.is_none() {
                self.shared.state.lock().wanted = None;
            }
        }
        self.shared.changed.notify_all();
    }

    /// A file of `capacity` bytes: a ready one, or else one made now.
    pub(super) fn take(&mut self, capacity: u64) -> io::Result<Spare> {
        {
            let mut state = self.shared.state.lock();
            // Half made is sooner done than made anew.
            while state.busy || state.wanted.is_some() {
                self.shared.changed.wait(&mut state);
            }
            if let Some(found) = state.ready.iter().position(|s| s.capacity == capacity) {
                return Ok(state.ready.swap_remove(found));
            }
        }
        let name = spare_name(self.next_number());
        let file = self.disk.create(&name, capacity)?;
        Ok(Spare {
            name,
            file,
            capacity,
        })
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(helper) = self.helper.take() {
            let _ = helper.join();
        }
    }
}

fn help(disk: &dyn Disk, shared: &Shared) {
    loop {
        let (number, capacity) = {
            let mut state = shared.state.lock();
            loop {
                if state.closing {
                    return;
                }
                if let Some(wanted) = state.wanted.take() {
                    state.busy = true;
                    break wanted;
                }
                shared.changed.wait(&mut state);
            }
        };
        let made = make(disk, number, capacity, shared);
        let mut state = shared.state.lock();
        state.busy = false;
        match made {
            Ok(spare) => state.ready.extend(spare),
            Err(e) => {
                tracing::warn!(error = %e, "could not prepare the next raft log segment; it is made when needed")
            }
        }
        shared.changed.notify_all();
    }
}

fn make(disk: &dyn Disk, number: u64, capacity: u64, shared: &Shared) -> io::Result<Option<Spare>> {
    let name = spare_name(number);
    let file = disk.create(&name, capacity)?;
    let (mut at, mut synced) = (0, 0);
    while at < capacity {
        if shared.state.lock().closing {
            return Ok(None);
        }
        let len = (capacity - at).min(CHUNK_BYTES as u64);
        file.write_at(
            at,
            &mut [IoSlice::new(
                &ZEROS[..usize::try_from(len).map_err(io::Error::other)?],
            )],
        )?;
        at += len;
        if at - synced >= SYNC_EVERY_BYTES || at == capacity {
            file.sync_data()?;
            synced = at;
        }
    }
    Ok(Some(Spare {
        name,
        file,
        capacity,
    }))
}
