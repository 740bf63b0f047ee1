//! Reading durable entries back from segments.
//!
//! Owns: the open files by epoch, and reads that cover neighbouring records at once.
//! Never: hands out bytes whose checksum it has not seen to hold.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::super::LogEntry;
use super::super::batching::{Fetch, Place};
use super::super::disk::{Disk, DiskFile};
use super::super::error::LogError;
use super::format::{RECORD_HEADER, RecordType, Seed, entry_kind, record_size};

/// Bytes of neighbouring records read by one call.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// Open segments by epoch.
#[derive(Default)]
pub(super) struct Files {
    open: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
}

impl Files {
    pub(super) fn insert(&self, epoch: u64, file: Arc<dyn DiskFile>) {
        self.open.write().insert(epoch, file);
    }

    pub(super) fn remove(&self, epoch: u64) {
        self.open.write().remove(&epoch);
    }
}

/// The reading side of the WAL.
pub(super) struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) files: Arc<Files>,
    pub(super) salt: u64,
}

impl Fetch for Reader {
    fn fetch(&self, first: u64, places: &[Place], out: &mut Vec<LogEntry>) -> io::Result<()> {
        let (mut rest, mut index) = (places, first);
        while let Some(head) = rest.first() {
            let count = run_length(rest);
            let (run, later) = rest.split_at(count);
            let last = run.last().unwrap_or(head);
            let len = u64::from(last.offset) + record_size(last.len) - u64::from(head.offset);
            let bytes = self.read(head, len)?;
            for place in run {
                out.push(self.entry(index, head, place, &bytes)?);
                index += 1;
            }
            rest = later;
        }
        Ok(())
    }
}

/// How many places lie close enough together to be read at once.
fn run_length(places: &[Place]) -> usize {
    let head = places[0];
    let near = |place: &&Place| {
        let end = u64::from(place.offset) + record_size(place.len);
        place.unit == head.unit
            && place.offset >= head.offset
            && end - u64::from(head.offset) <= RUN_BYTES_MAX
    };
    places.iter().take_while(near).count().max(1)
}

impl Reader {
    fn read(&self, head: &Place, len: u64) -> io::Result<Bytes> {
        let file = self.files.open.read().get(&u64::from(head.unit)).cloned();
        let file = file.ok_or_else(|| self.corrupt(head, "its segment is gone"))?;
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_at(u64::from(head.offset), &mut bytes)?;
        Ok(bytes.into())
    }

    fn entry(&self, index: u64, head: &Place, place: &Place, run: &Bytes) -> io::Result<LogEntry> {
        let from = (place.offset - head.offset) as usize;
        let to = from + RECORD_HEADER + place.len as usize;
        let seed = Seed {
            salt: self.salt,
            epoch: u64::from(place.unit),
        };
        let record = run
            .get(from..to)
            .ok_or_else(|| self.corrupt(place, "the record is cut off"))?;
        let header = seed
            .decode(record, record_size(place.len))
            .and_then(|header| seed.check(u64::from(place.offset), record).map(|()| header))
            .map_err(|bad| self.corrupt(place, bad.text()))?;
        match entry_kind(header.detail) {
            Some(kind) if header.kind == RecordType::Entry && header.position.index == index => {
                Ok(LogEntry {
                    position: header.position,
                    kind,
                    body: run.slice(from + RECORD_HEADER..to),
                })
            }
            _ => Err(self
                .corrupt(
                    place,
                    &format!("another record stands where entry {index} was written"),
                )
                .into()),
        }
    }

    fn corrupt(&self, place: &Place, what: &str) -> LogError {
        let file = self
            .disk
            .path(&super::recover::segment_name(u64::from(place.unit)));
        LogError::Corrupt {
            file,
            offset: u64::from(place.offset),
            what: what.to_owned(),
        }
    }
}
