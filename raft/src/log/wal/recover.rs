//! Opening a log: which files belong to it, what they say, what is wrong with them.
//!
//! Owns: telling a write that the power cut short (dropped, logged) from damage
//! to what was durable (refused, named).
//! Never: repairs damage.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::super::LogState;
use super::super::batching::{Place, Recovered, Tail};
use super::super::disk::{Disk, DiskFile};
use super::super::error::LogError;
use super::format::{
    ALIGN, Bad, HEADER_BLOCK, HeaderError, PAGE, RECORD_HEADER, RecordHeader, RecordType, Seed,
    SegmentHeader, VERSION, entry_kind, record_size, u32_at,
};

/// Bytes read at once while scanning.
const WINDOW: usize = 1 << 20;

/// One segment in use.
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    /// Highest index of any entry ever written to it.
    pub(super) max_index: Option<u64>,
    /// Where its records end.
    pub(super) end: u64,
}

/// A log as found.
pub(super) struct Found {
    pub(super) segments: Vec<Segment>,
    pub(super) recovered: Recovered,
    /// Files to remove: segments before a gap that a purge covers, spare files.
    pub(super) leftovers: Vec<String>,
    /// Stale bytes of a torn write at the end of the last segment, to be zeroed.
    pub(super) torn: Option<(u64, u64)>,
}

/// Name of the segment with this epoch.
pub(super) fn segment_name(epoch: u64) -> String {
    format!("segment-{epoch:016x}.wal")
}

/// Name of the n-th file prepared for later use.
pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}.wal")
}

fn number_in(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?.strip_suffix(".wal")?, 16).ok()
}

/// Reads the whole folder. Changes nothing.
pub(super) fn find(disk: &dyn Disk) -> Result<Found, LogError> {
    let names = disk.list().map_err(|e| io_error(disk, "", "list", e))?;
    let mut epochs: Vec<u64> = names
        .iter()
        .filter_map(|n| number_in(n, "segment-"))
        .collect();
    epochs.sort_unstable();
    let mut leftovers: Vec<String> = names
        .iter()
        .filter(|n| number_in(n, "spare-").is_some())
        .cloned()
        .collect();
    let first_of_run = unbroken_run(&epochs);
    let run = epochs.split_off(first_of_run);
    let mut segments = Vec::with_capacity(run.len());
    for epoch in run {
        segments.push(open_segment(disk, epoch)?);
    }
    let mut replay = Replay::new(segments.first().map(|s| &s.header));
    let torn = scan_all(disk, &mut segments, &mut replay)?;
    replay.check_complete(disk, &segments)?;
    // Older segments behind a gap are what an interrupted clean-up left; the purge covers them.
    leftovers.extend(epochs.into_iter().map(segment_name));
    Ok(Found {
        segments,
        recovered: replay.finish(),
        leftovers,
        torn,
    })
}

/// Where the last run of consecutive numbers begins.
fn unbroken_run(epochs: &[u64]) -> usize {
    let broken = (1..epochs.len())
        .rev()
        .find(|i| epochs[*i] != epochs[*i - 1] + 1);
    broken.unwrap_or(0)
}

fn open_segment(disk: &dyn Disk, epoch: u64) -> Result<Segment, LogError> {
    let name = segment_name(epoch);
    let file = disk
        .open(&name)
        .map_err(|e| io_error(disk, &name, "open", e))?;
    let len = file
        .len()
        .map_err(|e| io_error(disk, &name, "read the length of", e))?;
    let corrupt = |offset, what: String| LogError::Corrupt {
        file: disk.path(&name),
        offset,
        what,
    };
    if len < HEADER_BLOCK {
        return Err(corrupt(len, "the file ends inside its header".to_owned()));
    }
    let mut block = vec![0; HEADER_BLOCK as usize];
    file.read_at(0, &mut block)
        .map_err(|e| io_error(disk, &name, "read", e))?;
    let header = SegmentHeader::decode(&block).map_err(|e| match e {
        HeaderError::Bad(what) => corrupt(0, what.to_owned()),
        HeaderError::Version(found) => LogError::Version {
            file: disk.path(&name),
            found,
            supported: VERSION,
        },
    })?;
    if header.epoch != epoch {
        return Err(corrupt(
            16,
            format!("the header says epoch {}, the name {epoch}", header.epoch),
        ));
    }
    if len != header.capacity {
        return Err(corrupt(
            len.min(header.capacity),
            format!("the file has {len} bytes instead of {}", header.capacity),
        ));
    }
    Ok(Segment {
        header,
        name,
        file,
        max_index: None,
        end: HEADER_BLOCK,
    })
}

/// Scans every segment in order; returns the stale range behind the last record, if any.
fn scan_all(
    disk: &dyn Disk,
    segments: &mut [Segment],
    replay: &mut Replay,
) -> Result<Option<(u64, u64)>, LogError> {
    let mut window = Window::default();
    let count = segments.len();
    for i in 0..count {
        let sealed_at = segments.get(i + 1).map(|next| next.header.prev_end);
        if i > 0 {
            check_link(disk, &segments[i - 1], &segments[i], replay)?;
        }
        let segment = &mut segments[i];
        let mut scan = Scan {
            disk,
            segment,
            window: &mut window,
            replay,
        };
        match sealed_at {
            Some(end) => scan.sealed(end)?,
            None => return scan.tail(),
        }
    }
    Ok(None)
}

fn check_link(
    disk: &dyn Disk,
    before: &Segment,
    segment: &Segment,
    replay: &Replay,
) -> Result<(), LogError> {
    let header = &segment.header;
    let wrong = if header.prev_epoch != before.header.epoch {
        format!(
            "it continues epoch {}, found {}",
            header.prev_epoch, before.header.epoch
        )
    } else if header.salt != before.header.salt {
        "it belongs to another log".to_owned()
    } else if header.last != replay.tail.state.last {
        format!(
            "it continues after {:?}, the segment before ends with {:?}",
            header.last, replay.tail.state.last
        )
    } else {
        return Ok(());
    };
    Err(LogError::Corrupt {
        file: disk.path(&segment.name),
        offset: 0,
        what: wrong,
    })
}

struct Scan<'a> {
    disk: &'a dyn Disk,
    segment: &'a mut Segment,
    window: &'a mut Window,
    replay: &'a mut Replay,
}

impl Scan<'_> {
    /// A segment with a successor: everything up to `end` must be there.
    fn sealed(&mut self, end: u64) -> Result<(), LogError> {
        if end > self.segment.header.capacity {
            return Err(self.corrupt(
                self.segment.header.capacity,
                "the next segment says this one is longer",
            ));
        }
        while self.segment.end < end {
            let at = self.segment.end;
            match self.record(at, end)? {
                Ok(header) => self.take(at, &header)?,
                Err(bad) => return Err(self.corrupt(at, bad.text())),
            }
        }
        Ok(())
    }

    /// The last segment: ends where the first thing that is no record begins.
    fn tail(&mut self) -> Result<Option<(u64, u64)>, LogError> {
        let capacity = self.segment.header.capacity;
        let bad = loop {
            let at = self.segment.end;
            match self.record(at, capacity)? {
                Ok(header) if header.kind == RecordType::Seal => {
                    let next = segment_name(self.segment.header.epoch + 1);
                    let what = format!(
                        "{} says at offset {at} that it was begun",
                        self.disk.path(&self.segment.name)
                    );
                    return Err(LogError::Missing {
                        file: self.disk.path(&next),
                        what,
                    });
                }
                Ok(header) => self.take(at, &header)?,
                Err(bad) => break bad,
            }
        };
        self.behind_the_end(bad)
    }

    /// Looks behind the end for records that prove it was not always the end.
    fn behind_the_end(&mut self, bad: Bad) -> Result<Option<(u64, u64)>, LogError> {
        let (end, capacity) = (self.segment.end, self.segment.header.capacity);
        let mut stale_end = end;
        let mut at = end + ALIGN;
        while let Some(candidate) = self.find_tag(at, capacity)? {
            at = candidate + ALIGN;
            let Ok(header) = self.record(candidate, capacity)? else {
                continue;
            };
            if u64::from(header.synced) > end {
                let what = format!(
                    "{}, but the record at offset {candidate} proves that it was durable",
                    bad.text()
                );
                return Err(self.corrupt(end, &what));
            }
            stale_end = candidate + record_size(header.len);
            at = stale_end;
        }
        if stale_end == end && self.blank(end, capacity)? {
            return Ok(None);
        }
        tracing::warn!(
            file = %self.disk.path(&self.segment.name),
            offset = end,
            last.index = self.replay.tail.state.last.map(|p| p.index),
            "raft log ends with a write that was cut short and never acknowledged; dropped it"
        );
        let page_end = (end + 1).next_multiple_of(PAGE);
        Ok(Some((end, stale_end.max(page_end).min(capacity))))
    }

    /// True when nothing was begun at `end`.
    fn blank(&mut self, end: u64, capacity: u64) -> Result<bool, LogError> {
        let seed = self.seed();
        let to = (end + RECORD_HEADER as u64)
            .min(capacity)
            .min((end + 1).next_multiple_of(PAGE));
        let bytes = self.window.bytes(self.disk, self.segment, end, to - end)?;
        // In a recycled file a fresh page still holds an older epoch's bytes.
        let other_epoch =
            end.is_multiple_of(PAGE) && bytes.len() >= 4 && u32_at(bytes, 0) != seed.tag();
        Ok(other_epoch || bytes.iter().all(|b| *b == 0))
    }

    /// Offset of the next word at or after `from` that could begin a record of this epoch.
    fn find_tag(&mut self, from: u64, capacity: u64) -> Result<Option<u64>, LogError> {
        let tag = self.seed().tag();
        let mut at = from;
        while at + RECORD_HEADER as u64 <= capacity {
            let len = (capacity - at).min(WINDOW as u64);
            let bytes = self.window.bytes(self.disk, self.segment, at, len)?;
            let word = tag.to_le_bytes();
            let hit = bytes
                .chunks_exact(ALIGN as usize)
                .position(|bytes| bytes[..4] == word);
            if let Some(word) = hit {
                return Ok(Some(at + word as u64 * ALIGN));
            }
            at += len;
        }
        Ok(None)
    }

    /// Reads and checks the record at `at`, which must end by `limit`.
    fn record(&mut self, at: u64, limit: u64) -> Result<Result<RecordHeader, Bad>, LogError> {
        if at + RECORD_HEADER as u64 > limit {
            return Ok(Err(Bad::Tag));
        }
        let seed = self.seed();
        let bytes = self
            .window
            .bytes(self.disk, self.segment, at, RECORD_HEADER as u64)?;
        let header = match seed.decode(bytes, limit - at) {
            Ok(header) => header,
            Err(bad) => return Ok(Err(bad)),
        };
        let len = RECORD_HEADER as u64 + u64::from(header.len);
        let bytes = self.window.bytes(self.disk, self.segment, at, len)?;
        Ok(seed.check(at, bytes).map(|()| header))
    }

    /// Applies a good record.
    fn take(&mut self, at: u64, header: &RecordHeader) -> Result<(), LogError> {
        let body = match header.kind {
            RecordType::Vote => {
                let whole = RECORD_HEADER as u64 + u64::from(header.len);
                let bytes = self.window.bytes(self.disk, self.segment, at, whole)?;
                Bytes::copy_from_slice(&bytes[RECORD_HEADER..])
            }
            _ => Bytes::new(),
        };
        if header.kind == RecordType::Entry {
            let index = header.position.index;
            self.segment.max_index = Some(self.segment.max_index.map_or(index, |m| m.max(index)));
        }
        let unit = u32::try_from(self.segment.header.epoch).unwrap_or(u32::MAX);
        let offset = u32::try_from(at).unwrap_or(u32::MAX);
        let place = Place {
            unit,
            offset,
            len: header.len,
        };
        self.replay
            .apply(header, body, place)
            .map_err(|what| self.corrupt(at, &what))?;
        self.segment.end = at + record_size(header.len);
        Ok(())
    }

    fn seed(&self) -> Seed {
        Seed {
            salt: self.segment.header.salt,
            epoch: self.segment.header.epoch,
        }
    }

    fn corrupt(&self, offset: u64, what: &str) -> LogError {
        LogError::Corrupt {
            file: self.disk.path(&self.segment.name),
            offset,
            what: what.to_owned(),
        }
    }
}

/// The part of a file that is in memory while scanning.
#[derive(Default)]
struct Window {
    epoch: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `len` bytes at `at`, which lie inside the file.
    fn bytes(
        &mut self,
        disk: &dyn Disk,
        segment: &Segment,
        at: u64,
        len: u64,
    ) -> Result<&[u8], LogError> {
        let held = self.start..self.start + self.bytes.len() as u64;
        if self.epoch != segment.header.epoch || at < held.start || at + len > held.end {
            let size = len.max(WINDOW as u64).min(segment.header.capacity - at);
            self.bytes
                .resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
            (self.epoch, self.start) = (segment.header.epoch, at);
            let read = segment.file.read_at(at, &mut self.bytes);
            read.map_err(|e| io_error(disk, &segment.name, "read", e))?;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        Ok(&self.bytes[from..from + usize::try_from(len).unwrap_or(usize::MAX)])
    }
}

/// The log as the records tell it.
struct Replay {
    tail: Tail,
    /// Places of the newest entries; shorter than the tail while older segments seem to be missing.
    places: VecDeque<Place>,
}

impl Replay {
    fn new(oldest: Option<&SegmentHeader>) -> Self {
        let state = LogState {
            last: oldest.and_then(|h| h.last),
            ..LogState::default()
        };
        Self {
            tail: Tail { state, first: 0 },
            places: VecDeque::new(),
        }
    }

    fn apply(&mut self, header: &RecordHeader, body: Bytes, place: Place) -> Result<(), String> {
        let position = (header.detail != 0).then_some(header.position);
        match header.kind {
            RecordType::Entry => return self.entry(header, place),
            RecordType::Vote => self.tail.state.vote = Some(body),
            RecordType::Committed => self.tail.state.committed = position,
            RecordType::Truncate => {
                let next = self.tail.next();
                self.tail.truncate(position);
                let dropped =
                    usize::try_from(next.saturating_sub(self.tail.next())).unwrap_or(usize::MAX);
                self.places
                    .truncate(self.places.len().saturating_sub(dropped));
                self.trim();
            }
            RecordType::Purge => {
                self.tail.purge(header.position);
                self.trim();
            }
            RecordType::Mark | RecordType::Seal => {}
        }
        Ok(())
    }

    fn entry(&mut self, header: &RecordHeader, place: Place) -> Result<(), String> {
        let index = header.position.index;
        if entry_kind(header.detail).is_none() {
            return Err(format!(
                "entry {index} has the unknown kind {}",
                header.detail
            ));
        }
        if let Some(last) = self.tail.state.last
            && index != last.index + 1
        {
            return Err(format!("entry {index} follows entry {}", last.index));
        }
        self.tail.append(index, header.position);
        self.places.push_back(place);
        Ok(())
    }

    fn trim(&mut self) {
        while self.places.len() as u64 > self.tail.len() {
            self.places.pop_front();
        }
    }

    /// Nothing may be missing between the purge and the first entry, nor before the committed position.
    fn check_complete(&self, disk: &dyn Disk, segments: &[Segment]) -> Result<(), LogError> {
        let (Some(oldest), Some(newest)) = (segments.first(), segments.last()) else {
            return Ok(());
        };
        let missing = self.tail.len() - self.places.len() as u64;
        if missing > 0 {
            let (from, to) = (self.tail.first, self.tail.first + missing - 1);
            return Err(LogError::Missing {
                file: disk.path(&segment_name(oldest.header.prev_epoch)),
                what: format!(
                    "entries {from} to {to} are neither in the log nor covered by a purge"
                ),
            });
        }
        match self.tail.state.committed {
            Some(committed) if committed.index >= self.tail.next() => Err(LogError::TailLost {
                file: disk.path(&newest.name),
                offset: newest.end,
                last: self.tail.state.last,
                committed,
            }),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Recovered {
        Recovered {
            tail: self.tail,
            places: self.places,
        }
    }
}

fn io_error(disk: &dyn Disk, name: &str, operation: &'static str, source: io::Error) -> LogError {
    LogError::Io {
        file: disk.path(name),
        operation,
        source,
    }
}

/// The number of a spare file.
pub(super) fn spare_number(name: &str) -> Option<u64> {
    number_in(name, "spare-")
}

#[cfg(test)]
mod tests {
    use super::super::super::Position;
    use super::super::super::disk::fault::FaultDisk;
    use super::*;

    const SEED: Seed = Seed { salt: 0, epoch: 1 };

    fn at(index: u64) -> Position {
        Position {
            term: 1,
            leader: 1,
            index,
        }
    }

    /// The records of one segment: (type, index, offset it calls synced).
    fn folder(records: &[(RecordType, u64, u32)]) -> FaultDisk {
        let capacity = 16_384;
        let header = SegmentHeader {
            epoch: 1,
            salt: 0,
            capacity,
            prev_epoch: 0,
            prev_end: 0,
            last: None,
        };
        let mut bytes = header.encode();
        for (kind, index, synced) in records {
            let header = RecordHeader {
                kind: *kind,
                detail: 1,
                len: 0,
                synced: *synced,
                position: at(*index),
            };
            bytes.extend(SEED.encode(bytes.len() as u64, &header, &[]));
        }
        bytes.resize(16_384, 0);
        FaultDisk::of(&[(segment_name(1), bytes)].into())
    }

    fn check(records: &[(RecordType, u64, u32)], expected: &str) {
        let found = match find(&folder(records)) {
            Ok(found) => format!(
                "last {:?}",
                found.recovered.tail.state.last.map(|p| p.index)
            ),
            Err(e) => e.to_string(),
        };
        assert!(found.contains(expected), "{records:?}: {found}");
    }

    #[test]
    fn a_tail_before_the_committed_position_is_told_from_damage() {
        use RecordType::{Committed, Entry, Purge, Truncate};
        let two = [(Entry, 0, 4_096), (Entry, 1, 4_096)];
        check(&two, "last Some(1)");
        check(&[two[0], two[1], (Committed, 1, 4_096)], "last Some(1)");
        check(
            &[two[0], two[1], (Committed, 5, 4_096)],
            "before entry 5 which was recorded as committed",
        );
        check(
            &[two[0], two[1], (Committed, 5, 4_096), (Purge, 7, 4_096)],
            "last Some(7)",
        );
        check(
            &[two[0], two[1], (Committed, 1, 4_096), (Truncate, 0, 4_096)],
            "last Some(0)",
        );
    }

    #[test]
    fn entries_must_follow_each_other() {
        check(
            &[(RecordType::Entry, 3, 4_096), (RecordType::Entry, 5, 4_096)],
            "entry 5 follows entry 3",
        );
        check(
            &[(RecordType::Entry, 3, 4_096), (RecordType::Entry, 4, 4_096)],
            "last Some(4)",
        );
    }

    #[test]
    fn a_segment_that_names_a_successor_needs_it() {
        check(
            &[(RecordType::Entry, 0, 4_096), (RecordType::Seal, 0, 4_152)],
            "segment-0000000000000002.wal is missing",
        );
    }

    #[test]
    fn the_last_unbroken_run_counts() {
        for (epochs, expected) in [
            (&[][..], 0),
            (&[4], 0),
            (&[1, 2, 3], 0),
            (&[1, 3, 4], 1),
            (&[1, 3, 5], 2),
        ] {
            assert_eq!(unbroken_run(epochs), expected, "{epochs:?}");
        }
    }
}
