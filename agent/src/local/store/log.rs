//! The registration log: one file to which every change is appended.
//!
//! Owns: `registrations/log` and what of it is live; appending, syncing, compacting, reading it back.
//! Never: decides who waits, or knows what an object means.
//!
//! The room behind the last record is written with zeros ahead, so that a sync moves data only and no
//! journal is committed. When the room is used up the live objects are written to a new file aside,
//! which is synced and renamed over the old one: a start finds one or the other, whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::record::{self, HEADER, HeaderError, Record, Salt, Verb};
use super::{Key, Kind};

/// Least room for changes behind the live objects; otherwise twice their size.
pub(super) const ROOM_MIN_BYTES: u64 = 1024 * 1024;
/// Bytes written at once while a new file is made.
const CHUNK_BYTES: usize = 1024 * 1024;

const LOG: &str = "log";
const ASIDE: &str = "log.new";
/// Where a damaged log is kept.
const DAMAGED: &str = "log.corrupt";

/// One change of one object. `None`: it is removed.
pub(super) type Change<'a> = (&'a Key, Option<&'a str>);

/// The open log.
pub(super) struct Log {
    dir: PathBuf,
    file: File,
    salt: Salt,
    /// Where the next record goes.
    end: u64,
    /// Below this everything is durable.
    synced: u64,
    capacity: u64,
    live: BTreeMap<Key, Place>,
    live_bytes: u64,
    /// A write or sync failed: what the file holds is unknown, so it is written anew before anything else.
    broken: bool,
    /// The last record is not yet known to be durable by a later one.
    unmarked: bool,
}

#[derive(Clone, Copy)]
struct Place {
    at: u64,
    len: usize,
}

/// What reading the log back gave.
#[derive(Default)]
pub(super) struct ReadBack {
    pub(super) objects: BTreeMap<Key, String>,
    /// Places where something that had been acknowledged cannot be read.
    pub(super) damaged: usize,
    /// The file is as it should be, so that it can be written on.
    pub(super) clean: Option<Clean>,
    pub(super) present: bool,
}

/// A file that needs no repair, and what is live in it.
pub(super) struct Clean {
    salt: Salt,
    end: u64,
    len: u64,
    live: BTreeMap<Key, Place>,
}

/// Reads the log of `dir`. A damaged one is kept as `log.corrupt`, and what is good in it is answered.
///
/// Errors: the file cannot be read, or is of a later build.
pub(super) fn read(dir: &Path) -> io::Result<ReadBack> {
    let path = dir.join(LOG);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ReadBack::default()),
        Err(error) => return Err(error),
    };
    let read = match Salt::read(&bytes) {
        Ok(salt) => scan(salt, &bytes, &path),
        Err(HeaderError::Damaged) => ReadBack {
            damaged: 1,
            present: true,
            ..ReadBack::default()
        },
        Err(HeaderError::Version(version)) => {
            let why = format!(
                "it has format {version}, this build reads up to {}: start the build that wrote it",
                record::VERSION
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    };
    if read.damaged > 0 {
        keep_damaged(dir, read.damaged, read.objects.len());
    }
    Ok(read)
}

fn scan(salt: Salt, bytes: &[u8], path: &Path) -> ReadBack {
    let (records, bad) = records(salt, bytes);
    let durable = records.iter().map(|(_, record)| record.synced).max();
    let damaged = bad.iter().filter(|at| Some(**at as u64) < durable).count();
    let mut read_to = u64::MAX;
    if damaged == 0
        && let Some(from) = bad.first()
    {
        tracing::warn!(
            file.path = %path.display(),
            file.offset = from,
            "the last write of registrations was cut short; it had not been acknowledged and is dropped"
        );
        // What follows the cut is of the same unfinished write.
        read_to = *from as u64;
    }
    let mut live: BTreeMap<Key, (Place, &str)> = BTreeMap::new();
    let mut end = HEADER;
    for (place, record) in records.iter().filter(|(place, _)| place.at < read_to) {
        let key = (record.kind, record.id.to_owned());
        match record.verb {
            Verb::Put => drop(live.insert(key, (*place, record.body))),
            Verb::Remove => drop(live.remove(&key)),
            Verb::Mark => {}
        }
        end = place.at + place.len as u64;
    }
    let clean = bad.is_empty().then(|| Clean {
        salt,
        end,
        len: bytes.len() as u64,
        live: live
            .iter()
            .map(|(key, (place, _))| (key.clone(), *place))
            .collect(),
    });
    ReadBack {
        objects: live
            .into_iter()
            .map(|(key, (_, body))| (key, body.to_owned()))
            .collect(),
        damaged,
        clean,
        present: true,
    }
}

/// Every good record, and where bytes begin that are none.
fn records(salt: Salt, bytes: &[u8]) -> (Vec<(Place, Record<'_>)>, Vec<usize>) {
    let (mut records, mut bad) = (Vec::new(), Vec::new());
    let (mut at, mut end) = (HEADER as usize, HEADER as usize);
    while at < bytes.len() {
        if let Some((record, len)) = salt.decode(bytes, at) {
            records.push((Place { at: at as u64, len }, record));
            at += len;
            end = at;
            continue;
        }
        // The common end: nothing but the zeros written ahead.
        if at == end && bytes[at..].iter().all(|byte| *byte == 0) {
            break;
        }
        if bad.last() != Some(&end) {
            bad.push(end);
        }
        at = record::next_place(at);
    }
    (records, bad)
}

/// Neither the file nor the reason is lost. The log itself stays until the new one takes its place.
fn keep_damaged(dir: &Path, places: usize, good: usize) {
    let (log, kept) = (dir.join(LOG), dir.join(DAMAGED));
    let _ = fs::remove_file(&kept);
    let outcome = fs::hard_link(&log, &kept);
    tracing::error!(
        file.path = %log.display(),
        file.kept_as = %kept.display(),
        kept = outcome.is_ok(),
        places,
        good,
        "saved registrations are damaged and some cannot be read; register them again"
    );
}

impl Log {
    /// Goes on in the file that was read when it is as it should be and `objects` are what it holds;
    /// `None` stands for a new one with these `objects`.
    pub(super) fn begin(
        dir: &Path,
        clean: Option<Clean>,
        objects: &BTreeMap<Key, String>,
    ) -> io::Result<Self> {
        if let Some(clean) = clean {
            return Self::resume(dir, clean);
        }
        let bodies = objects.iter().map(|(key, body)| Ok((key, body.clone())));
        let log = Self::write_anew(dir, bodies, 0)?;
        log.sync_dir()?;
        Ok(log)
    }

    fn resume(dir: &Path, clean: Clean) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(LOG))?;
        // After a crash of the process alone the tail may so far be in memory only.
        file.sync_data()?;
        Ok(Self {
            dir: dir.to_owned(),
            file,
            salt: clean.salt,
            end: clean.end,
            synced: clean.end,
            capacity: clean.len,
            live_bytes: clean.live.values().map(|place| place.len as u64).sum(),
            live: clean.live,
            broken: false,
            unmarked: true,
        })
    }

    /// Makes these changes, in their order; `durable`: once it returns they survive a power cut.
    ///
    /// Errors: none of them may have been made, or all; the next call decides.
    pub(super) fn append(&mut self, changes: &[Change<'_>], durable: bool) -> io::Result<()> {
        let most: usize = changes
            .iter()
            .map(|((_, id), body)| record::size(id.len(), body.map_or(0, str::len)))
            .sum();
        if self.broken || self.end + most as u64 > self.capacity {
            self.compact(most as u64)?;
        }
        let mut bytes = Vec::with_capacity(most);
        let mut places = Vec::with_capacity(changes.len());
        for (key, body) in changes {
            if body.is_none() && !self.live.contains_key(key) {
                continue;
            }
            let at = self.end + bytes.len() as u64;
            let before = bytes.len();
            self.encode(at, key, *body, &mut bytes);
            let len = bytes.len() - before;
            places.push((*key, body.map(|_| Place { at, len })));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all_at(&bytes, self.end);
        let written = written.and_then(|()| {
            if durable {
                self.file.sync_data()
            } else {
                Ok(())
            }
        });
        // A failed sync is not tried again: the kernel may have dropped the pages.
        self.broken = written.is_err();
        written?;
        self.end += bytes.len() as u64;
        if durable {
            self.synced = self.end;
        }
        self.unmarked = true;
        for (key, place) in places {
            self.place(key, place);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }

    fn encode(&self, at: u64, key: &Key, body: Option<&str>, out: &mut Vec<u8>) {
        let record = Record {
            kind: key.0,
            verb: if body.is_some() {
                Verb::Put
            } else {
                Verb::Remove
            },
            synced: self.synced,
            id: &key.1,
            body: body.unwrap_or_default(),
        };
        self.salt.encode(at, &record, out);
    }

    fn place(&mut self, key: &Key, place: Option<Place>) {
        let old = match place {
            Some(place) => {
                self.live_bytes += place.len as u64;
                self.live.insert(key.clone(), place)
            }
            None => self.live.remove(key),
        };
        self.live_bytes -= old.map_or(0, |old| old.len as u64);
    }

    /// Whether [`Log::mark`] has something to say.
    pub(super) fn wants_mark(&self) -> bool {
        self.unmarked && !self.broken
    }

    /// Says that all before it is durable, so that damage to the last record is told from a write
    /// that was cut short. Not synced itself; a failure shows at the next change.
    pub(super) fn mark(&mut self) {
        self.unmarked = false;
        let record = Record {
            kind: Kind::Service,
            verb: Verb::Mark,
            synced: self.synced,
            id: "",
            body: "",
        };
        let mut bytes = Vec::new();
        self.salt.encode(self.end, &record, &mut bytes);
        if self.end + bytes.len() as u64 <= self.capacity {
            self.broken = self.file.write_all_at(&bytes, self.end).is_err();
            self.end += bytes.len() as u64;
        }
    }

    /// Writes what is live into a new file with room for at least `more`, and goes on there.
    fn compact(&mut self, more: u64) -> io::Result<()> {
        let bodies = self
            .live
            .iter()
            .map(|(key, place)| Ok((key, self.body(*place)?)));
        let anew = Self::write_anew(&self.dir, bodies, more)?;
        tracing::debug!(
            file.path = %self.dir.join(LOG).display(),
            live_bytes = anew.live_bytes,
            from_bytes = self.end,
            "compacted the saved registrations"
        );
        *self = anew;
        // From the rename on the new file is the log, whatever becomes of this.
        let synced = self.sync_dir();
        self.broken = synced.is_err();
        synced
    }

    fn body(&self, place: Place) -> io::Result<String> {
        let mut bytes = vec![0; place.len];
        self.file.read_exact_at(&mut bytes, place.at)?;
        let record = self.salt.decode_one(&bytes, place.at).ok_or_else(|| {
            let why = format!("{}: damaged at {}", self.dir.join(LOG).display(), place.at);
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(record.body.to_owned())
    }

    fn write_anew<'a>(
        dir: &Path,
        bodies: impl Iterator<Item = io::Result<(&'a Key, String)>>,
        more: u64,
    ) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            // Registrations may hold tokens.
            .mode(0o600)
            .open(dir.join(ASIDE))?;
        // A fresh id is 16 bytes nobody can guess.
        let mut salt = [0; 16];
        let digits = weft_proto::ids::mint().replace('-', "");
        hex::decode_to_slice(digits, &mut salt).map_err(io::Error::other)?;
        let mut log = Self {
            dir: dir.to_owned(),
            file,
            salt: Salt(salt),
            end: 0,
            synced: 0,
            capacity: 0,
            live: BTreeMap::new(),
            live_bytes: 0,
            broken: false,
            unmarked: true,
        };
        let mut chunk = log.salt.header().to_vec();
        for body in bodies {
            let (key, body) = body?;
            let (at, before) = (log.end + chunk.len() as u64, chunk.len());
            log.encode(at, key, Some(&body), &mut chunk);
            let len = chunk.len() - before;
            log.place(key, Some(Place { at, len }));
            if chunk.len() >= CHUNK_BYTES {
                log.write_chunk(&mut chunk)?;
            }
        }
        log.write_chunk(&mut chunk)?;
        log.zero(more + ROOM_MIN_BYTES.max(2 * log.live_bytes))?;
        log.file.sync_all()?;
        log.synced = log.end;
        fs::rename(dir.join(ASIDE), dir.join(LOG))?;
        Ok(log)
    }

    fn write_chunk(&mut self, chunk: &mut Vec<u8>) -> io::Result<()> {
        self.file.write_all_at(chunk, self.end)?;
        self.end += chunk.len() as u64;
        chunk.clear();
        Ok(())
    }

    fn zero(&mut self, room: u64) -> io::Result<()> {
        let zeros = vec![0; CHUNK_BYTES];
        let (mut at, end) = (self.end, self.end + room);
        while at < end {
            let len = (end - at).min(CHUNK_BYTES as u64);
            let part = &zeros[..usize::try_from(len).unwrap_or(CHUNK_BYTES)];
            self.file.write_all_at(part, at)?;
            at += len;
        }
        self.capacity = end;
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}
