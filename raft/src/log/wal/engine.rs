//! The writing side of the WAL: records into segments, one sync per batch.
//!
//! Owns: the active segment, what is synced, rotation, recycling.
//! Never: retries a failed write; the caller poisons the store.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use weft_proto::clock::Clock;

use super::super::batching::{BATCH_BYTES_MAX, Batch, Engine, Op, Place, Tail};
use super::super::disk::{Disk, DiskFile, DiskLock};
use super::super::stats::LogStats;
use super::super::{LogEntry, Position};
use super::format::{
    HEADER_BLOCK, PAGE, RECORD_HEADER, RecordHeader, RecordType, Seed, SegmentHeader, record_size,
};
use super::reader::Files;
use super::recover::{Segment, segment_name, spare_name};
use super::spares::{Spare, Spares};

/// Bodies from this size on are written from where they are; smaller ones are copied once.
const COPY_BYTES_MAX: usize = 8 << 10;
/// A buffer that grew beyond this for one batch is given back.
const BUFFER_KEEP_BYTES: usize = 256 << 10;
/// Every segment keeps room for its last record.
const SEAL_BYTES: u64 = RECORD_HEADER as u64;

static ZEROS: [u8; 8] = [0; 8];

/// The writer's half of the WAL.
pub(super) struct WalEngine {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stats: Arc<LogStats>,
    pub(super) files: Arc<Files>,
    pub(super) spares: Spares,
    pub(super) segment_bytes: u64,
    pub(super) salt: u64,
    /// Oldest first; the last one is written to.
    pub(super) segments: VecDeque<Segment>,
    /// What is durable, as recovery would find it.
    pub(super) tail: Tail,
    /// Offset below which the active segment is durable.
    pub(super) synced: u64,
    pub(super) pending: Pending,
    /// Something was written since the last mark.
    pub(super) unmarked: bool,
    /// A purge may have made segments useless.
    pub(super) untidy: bool,
    pub(super) _lock: Box<dyn DiskLock>,
}

/// Records gathered for one write.
#[derive(Default)]
pub(super) struct Pending {
    bytes: u64,
    buffer: Vec<u8>,
    /// Big bodies, with the length the buffer had when each was due.
    bodies: Vec<(usize, Bytes)>,
}

impl WalEngine {
    /// Begins the log's first segment, or continues the last one.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if self.segments.is_empty() {
            self.open_segment(0)?;
        }
        self.count_disk_bytes();
        Ok(())
    }

    fn active(&self) -> &Segment {
        self.segments
            .back()
            .expect("begin() opened one and the active segment is never dropped")
    }

    fn put_entry(&mut self, entry: &LogEntry, places: &mut Vec<Place>) -> io::Result<()> {
        let len = u32::try_from(entry.body.len()).map_err(io::Error::other)?;
        let at = self.put(
            RecordType::Entry,
            entry.kind as u8,
            entry.position,
            &entry.body,
        )?;
        let segment = self.segments.back_mut().expect("put() wrote to it");
        let index = entry.position.index;
        segment.max_index = Some(segment.max_index.map_or(index, |m| m.max(index)));
        let unit = u32::try_from(segment.header.epoch).map_err(io::Error::other)?;
        places.push(Place {
            unit,
            offset: u32::try_from(at).map_err(io::Error::other)?,
            len,
        });
        self.tail.append(index, entry.position);
        Ok(())
    }

    fn put_position(&mut self, kind: RecordType, position: Option<Position>) -> io::Result<()> {
        let zero = Position {
            term: 0,
            leader: 0,
            index: 0,
        };
        self.put(
            kind,
            u8::from(position.is_some()),
            position.unwrap_or(zero),
            &Bytes::new(),
        )?;
        Ok(())
    }

    fn put_vote(&mut self, vote: &Bytes) -> io::Result<()> {
        let zero = Position {
            term: 0,
            leader: 0,
            index: 0,
        };
        self.put(RecordType::Vote, 0, zero, vote)?;
        self.tail.state.vote = Some(vote.clone());
        Ok(())
    }

    /// Adds a record to the next write; makes room first where needed. Returns its offset.
    fn put(
        &mut self,
        kind: RecordType,
        detail: u8,
        position: Position,
        body: &Bytes,
    ) -> io::Result<u64> {
        let len = u32::try_from(body.len()).map_err(io::Error::other)?;
        let size = record_size(len);
        if self.pending.bytes > 0 && self.pending.bytes + size > BATCH_BYTES_MAX as u64 * 2 {
            self.flush()?;
        }
        if self.active().end + self.pending.bytes + size + SEAL_BYTES
            > self.active().header.capacity
        {
            self.flush()?;
            self.rotate(size)?;
        }
        let at = self.active().end + self.pending.bytes;
        let synced = u32::try_from(self.synced).map_err(io::Error::other)?;
        let header = RecordHeader {
            kind,
            detail,
            len,
            synced,
            position,
        };
        self.pending
            .push(self.seed().encode(at, &header, body), body, size);
        Ok(at)
    }

    fn seed(&self) -> Seed {
        Seed {
            salt: self.salt,
            epoch: self.active().header.epoch,
        }
    }

    /// Writes what is pending, without making it durable.
    fn write(&mut self) -> io::Result<()> {
        if self.pending.bytes == 0 {
            return Ok(());
        }
        let bytes = self.pending.bytes;
        let segment = self.segments.back_mut().expect("begin() opened one");
        let end = segment.end + bytes;
        let padded = end.next_multiple_of(PAGE).min(segment.header.capacity);
        let wrote = self
            .pending
            .write(&*segment.file, segment.end, padded - end)?;
        segment.end = end;
        self.stats.wrote(wrote);
        Ok(())
    }

    /// Writes what is pending and makes it durable.
    fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        let end = self.active().end;
        if self.synced < end {
            self.sync(Arc::clone(&self.active().file).as_ref())?;
            self.synced = end;
        }
        Ok(())
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        let began = self.clock.monotonic();
        let outcome = file.sync_data();
        self.stats
            .synced(self.clock.monotonic().saturating_sub(began));
        outcome
    }

    fn sync_dir(&self) -> io::Result<()> {
        let began = self.clock.monotonic();
        let outcome = self.disk.sync_dir();
        self.stats
            .synced(self.clock.monotonic().saturating_sub(began));
        outcome
    }

    /// Continues in a new segment; everything in the old one is durable before.
    fn rotate(&mut self, size: u64) -> io::Result<()> {
        self.open_segment(size)?;
        // Only now does the old one say that it has a successor: that successor is sure to be there.
        let old = &self.segments[self.segments.len() - 2];
        let (file, at) = (Arc::clone(&old.file), old.end);
        let zero = Position {
            term: 0,
            leader: 0,
            index: 0,
        };
        let synced = u32::try_from(at).map_err(io::Error::other)?;
        let header = RecordHeader {
            kind: RecordType::Seal,
            detail: 0,
            len: 0,
            synced,
            position: zero,
        };
        let seal = Seed {
            salt: self.salt,
            epoch: old.header.epoch,
        }
        .encode(at, &header, &[]);
        file.write_at(at, &mut [IoSlice::new(&seal)])?;
        self.sync(file.as_ref())?;
        self.count_disk_bytes();
        Ok(())
    }

    /// Prepares a segment aside, restating what must not be forgotten, and only then gives it its name.
    fn open_segment(&mut self, size: u64) -> io::Result<()> {
        let vote = self.tail.state.vote.clone();
        let vote_len = vote.as_ref().map_or(0, Bytes::len) as u64;
        let needed = HEADER_BLOCK
            + 4 * RECORD_HEADER as u64
            + vote_len.next_multiple_of(8)
            + size
            + SEAL_BYTES;
        let Spare {
            name: aside,
            file,
            capacity,
        } = self.spares.take(self.segment_bytes.max(needed))?;
        let (prev_epoch, prev_end) = self
            .segments
            .back()
            .map_or((0, 0), |s| (s.header.epoch, s.end));
        let epoch = prev_epoch + 1;
        let header = SegmentHeader {
            epoch,
            salt: self.salt,
            capacity,
            prev_epoch,
            prev_end,
            last: self.tail.state.last,
        };
        file.write_at(0, &mut [IoSlice::new(&header.encode())])?;
        let name = segment_name(epoch);
        let file_again = Arc::clone(&file);
        self.segments.push_back(Segment {
            header,
            name: name.clone(),
            file,
            max_index: None,
            end: HEADER_BLOCK,
        });
        self.synced = HEADER_BLOCK;
        self.restate(vote)?;
        self.write()?;
        self.sync(file_again.as_ref())?;
        self.synced = self.active().end;
        self.disk.rename(&aside, &name)?;
        self.sync_dir()?;
        self.files.insert(epoch, file_again);
        Ok(())
    }

    fn restate(&mut self, vote: Option<Bytes>) -> io::Result<()> {
        if let Some(purged) = self.tail.state.purged {
            self.put_position(RecordType::Purge, Some(purged))?;
        }
        if let Some(vote) = vote {
            self.put_vote(&vote)?;
        }
        if let Some(committed) = self.tail.state.committed {
            self.put_position(RecordType::Committed, Some(committed))?;
        }
        Ok(())
    }

    /// Gives up the oldest segment if every entry it ever held is purged.
    fn drop_oldest(&mut self) -> io::Result<bool> {
        let purged_next = super::super::batching::next_index(self.tail.state.purged);
        let useless = self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|s| s.max_index.is_none_or(|max| max < purged_next));
        if !useless {
            return Ok(false);
        }
        let Some(segment) = self.segments.pop_front() else {
            return Ok(false);
        };
        self.files.remove(segment.header.epoch);
        let recycled = segment.header.capacity == self.segment_bytes && self.spares.wants_more();
        if recycled {
            let name = spare_name(self.spares.next_number());
            self.disk.rename(&segment.name, &name)?;
            self.sync_dir()?;
            self.spares.give(Spare {
                name,
                file: segment.file,
                capacity: segment.header.capacity,
            });
        } else {
            self.disk.remove(&segment.name)?;
        }
        Ok(true)
    }

    fn count_disk_bytes(&self) {
        self.stats
            .set_disk_bytes(self.segments.iter().map(|s| s.header.capacity).sum());
    }
}

impl Engine for WalEngine {
    fn commit(&mut self, batch: Batch<'_>) -> io::Result<()> {
        for queued in batch.queued {
            match &queued.op {
                Op::Append(entries) => {
                    for entry in entries {
                        self.put_entry(entry, batch.places)?;
                    }
                }
                Op::Truncate(last) => {
                    self.put_position(RecordType::Truncate, *last)?;
                    self.tail.truncate(*last);
                }
                Op::Purge(up_to) => {
                    self.put_position(RecordType::Purge, Some(*up_to))?;
                    self.tail.purge(*up_to);
                    self.untidy = true;
                }
                Op::Vote(vote) => self.put_vote(vote)?,
            }
        }
        if let Some(committed) = batch.committed {
            self.put_position(RecordType::Committed, committed)?;
            self.tail.state.committed = committed;
        }
        self.flush()?;
        self.unmarked = true;
        if self.active().end > self.active().header.capacity / 2 {
            self.spares.prepare(self.segment_bytes);
        }
        Ok(())
    }

    fn tidy(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.untidy) {
            return Ok(());
        }
        let mut dropped = false;
        while self.drop_oldest()? {
            dropped = true;
        }
        if dropped {
            self.sync_dir()?;
            self.count_disk_bytes();
        }
        Ok(())
    }

    /// Leaves a mark behind the last batch, so that damage to it can be told from a torn write.
    /// Not synced: the kernel writes it back in its own time, and its loss loses nothing.
    fn idle(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.unmarked)
            || self.active().end + 2 * SEAL_BYTES > self.active().header.capacity
        {
            return Ok(());
        }
        self.put_position(RecordType::Mark, None)?;
        self.write()
    }

    fn close(&mut self) -> io::Result<()> {
        self.idle()?;
        self.flush()
    }
}

impl Pending {
    fn push(&mut self, header: [u8; RECORD_HEADER], body: &Bytes, size: u64) {
        self.buffer.extend_from_slice(&header);
        if body.len() < COPY_BYTES_MAX {
            self.buffer.extend_from_slice(body);
        } else {
            self.bodies.push((self.buffer.len(), body.clone()));
        }
        let padding = size - (RECORD_HEADER + body.len()) as u64;
        self.buffer
            .extend_from_slice(&ZEROS[..usize::try_from(padding).unwrap_or(0)]);
        self.bytes += size;
    }

    /// Writes everything at `offset`, followed by `padding` zeros, and is empty again. Returns the bytes written.
    fn write(&mut self, file: &dyn DiskFile, offset: u64, padding: u64) -> io::Result<u64> {
        let padding_len = usize::try_from(padding).map_err(io::Error::other)?;
        self.buffer.resize(self.buffer.len() + padding_len, 0);
        if self.bodies.is_empty() {
            file.write_at(offset, &mut [IoSlice::new(&self.buffer)])?;
        } else {
            let mut slices = Vec::with_capacity(self.bodies.len() * 2 + 1);
            let mut from = 0;
            for (to, body) in &self.bodies {
                slices.push(IoSlice::new(&self.buffer[from..*to]));
                slices.push(IoSlice::new(body));
                from = *to;
            }
            slices.push(IoSlice::new(&self.buffer[from..]));
            file.write_at(offset, &mut slices)?;
        }
        let wrote = self.bytes + padding;
        self.bytes = 0;
        self.bodies.clear();
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_KEEP_BYTES {
            self.buffer = Vec::new();
        }
        Ok(wrote)
    }
}
