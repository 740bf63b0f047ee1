//! A folder in memory that forgets, tears and refuses.
//!
//! Owns: the model of what a power cut may leave behind: per file the synced
//! bytes plus any subset of the unsynced sectors, per folder the synced names
//! plus any subset of the unsynced changes.
//! Never: used in production.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, DiskLock, DiskSpace};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// When and how the disk starts to fail, counted from [`FaultDisk::plan`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultPlan {
    /// The n-th change (write, sync, creation, rename, removal; from 0) fails, and all later ones: the power is gone.
    pub dies_at_change: Option<u64>,
    /// The n-th file write fails with EIO (from 0).
    pub write_error_at: Option<u64>,
    /// The n-th file sync fails with EIO (from 0).
    pub sync_error_at: Option<u64>,
    /// Bytes all files together may take; beyond them ENOSPC.
    pub capacity_bytes: Option<u64>,
}

/// The in-memory side of [`Disk`]. Clones share the folder.
#[derive(Clone, Default)]
pub struct FaultDisk {
    model: Arc<Mutex<Model>>,
}

#[derive(Default)]
struct Model {
    files: Vec<FileModel>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    plan: FaultPlan,
    changes: u64,
    writes: u64,
    syncs: u64,
    dead: bool,
}

#[derive(Clone, Default)]
struct FileModel {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl FaultDisk {
    /// An empty folder without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what goes wrong from now on; counters start at zero. A dead disk works again and has
    /// forgotten nothing, as after a process was killed: its unsynced writes are still only in memory.
    pub fn plan(&self, plan: FaultPlan) {
        let mut model = self.model.lock();
        model.dead = false;
        (model.changes, model.writes, model.syncs) = (0, 0, 0);
        model.plan = plan;
    }

    /// Changes made since [`FaultDisk::plan`].
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.model.lock().changes
    }

    /// What the folder may look like after a power cut now; `seed` picks one of the possibilities.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let model = self.model.lock();
        let mut dice = Dice(seed);
        let mut names = model.durable_names.clone();
        for change in &model.pending_names {
            if dice.keeps() {
                apply(&mut names, change);
            }
        }
        let files: Vec<FileModel> = model
            .files
            .iter()
            .map(|file| settle(file, &mut dice))
            .collect();
        let durable_names = names.clone();
        Self {
            model: Arc::new(Mutex::new(Model {
                files,
                names,
                durable_names,
                ..Model::default()
            })),
        }
    }

    /// The same folder as plain bytes, for tests that damage it: names and contents.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let model = self.model.lock();
        model
            .names
            .iter()
            .map(|(name, id)| (name.clone(), model.files[*id].bytes.clone()))
            .collect()
    }

    /// A folder with these files, all of them durable.
    #[must_use]
    pub fn of(contents: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut model = Model::default();
        for (name, bytes) in contents {
            model.names.insert(name.clone(), model.files.len());
            model.files.push(FileModel {
                bytes: bytes.clone(),
                durable: bytes.clone(),
                pending: Vec::new(),
            });
        }
        model.durable_names = model.names.clone();
        Self {
            model: Arc::new(Mutex::new(model)),
        }
    }
}

impl Model {
    /// Counts a change and fails it when the plan says so.
    fn change(&mut self) -> io::Result<()> {
        let number = self.changes;
        self.changes += 1;
        if self.plan.dies_at_change.is_some_and(|n| number >= n) {
            self.dead = true;
        }
        if self.dead {
            Err(io::Error::other("power is gone"))
        } else {
            Ok(())
        }
    }

    fn id(&self, name: &str) -> io::Result<usize> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename_change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.pending_names.push(change);
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files[*id].bytes.len() as u64)
            .sum()
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.model.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.model.lock().id(name)?;
        Ok(Arc::new(FaultFile {
            model: Arc::clone(&self.model),
            id,
        }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut model = self.model.lock();
        model.change()?;
        if model
            .plan
            .capacity_bytes
            .is_some_and(|max| model.used_bytes() + len > max)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = model.files.len();
        let bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        model.files.push(FileModel {
            bytes,
            ..FileModel::default()
        });
        model.rename_change(NameChange::Create(name.to_owned(), id));
        Ok(Arc::new(FaultFile {
            model: Arc::clone(&self.model),
            id,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut model = self.model.lock();
        model.change()?;
        model.id(from)?;
        model.rename_change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut model = self.model.lock();
        model.change()?;
        model.id(name)?;
        model.rename_change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut model = self.model.lock();
        model.change()?;
        model.pending_names.clear();
        model.durable_names = model.names.clone();
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn DiskLock>> {
        Ok(Box::new(NoLock))
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let model = self.model.lock();
        let total_bytes = model.plan.capacity_bytes.unwrap_or(u64::MAX);
        Ok(DiskSpace {
            total_bytes,
            available_bytes: total_bytes.saturating_sub(model.used_bytes()),
        })
    }

    fn path(&self, name: &str) -> String {
        name.to_owned()
    }
}

struct NoLock;

impl DiskLock for NoLock {}

struct FaultFile {
    model: Arc<Mutex<Model>>,
    id: usize,
}

impl DiskFile for FaultFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.model.lock().files[self.id].bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let model = self.model.lock();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start
            .checked_add(buf.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = model.files[self.id]
            .bytes
            .get(start..end)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut model = self.model.lock();
        let data: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        // What was under way when the power went may still reach the platter.
        let died = model.change();
        let number = model.writes;
        model.writes += 1;
        if model.plan.write_error_at == Some(number) {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        let file = &mut model.files[self.id];
        overwrite(&mut file.bytes, offset, &data);
        file.pending.push((offset, data));
        died
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut model = self.model.lock();
        model.change()?;
        let number = model.syncs;
        model.syncs += 1;
        if model.plan.sync_error_at == Some(number) {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        let file = &mut model.files[self.id];
        file.pending.clear();
        file.durable.clone_from(&file.bytes);
        Ok(())
    }
}

fn overwrite(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).expect("test files fit in memory");
    if bytes.len() < start + data.len() {
        bytes.resize(start + data.len(), 0);
    }
    bytes[start..start + data.len()].copy_from_slice(data);
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Create(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

/// A file after the cut: the synced bytes and some sectors of what came after.
fn settle(file: &FileModel, dice: &mut Dice) -> FileModel {
    let mut bytes = file.durable.clone();
    if !file.pending.is_empty() && bytes.len() < file.bytes.len() {
        bytes.resize(file.bytes.len(), 0);
    }
    let mood = dice.next() % 4;
    for (offset, data) in &file.pending {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let to_boundary = SECTOR_BYTES - position % SECTOR_BYTES;
            let end = data
                .len()
                .min(at + usize::try_from(to_boundary).expect("below 512"));
            // Nothing, everything, or any mixture: a cache writes back in its own order.
            let keep = match mood {
                0 => false,
                1 => true,
                _ => dice.keeps(),
            };
            if keep {
                overwrite(&mut bytes, position, &data[at..end]);
            }
            at = end;
        }
    }
    FileModel {
        durable: bytes.clone(),
        bytes,
        pending: Vec::new(),
    }
}

/// A small seeded generator (SplitMix64), so that a failure replays.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn keeps(&mut self) -> bool {
        self.next() & 1 == 0
    }
}
