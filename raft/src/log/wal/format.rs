//! Bytes of a segment: one header block, then records.
//!
//! Owns: the layout, its version, and the checksum of every record.
//! Never: reads or writes a file.
//!
//! ```text
//! header block (4096 B)  magic(8) version(4) zero(4) epoch(8) salt(8) capacity(8)
//!                        prev_epoch(8) prev_end(8) has_last(1) zero(7) last(32) crc(4), zeros
//! record (8-aligned)     tag(4) crc(4) len(4) synced(4) type(1) kind(1) zero(6)
//!                        index(8) term(8) leader(16), body(len), zeros to 8
//! ```
//! All numbers are little-endian. The checksum (CRC32C) covers salt, epoch and the
//! record's own offset as well, so bytes left over from an earlier use of the file,
//! or written to the wrong place, never pass. `synced` is the offset below which
//! everything was already durable when the record was written: a bad record below
//! some good record's `synced` is damage, any other is a write the power cut short.

use super::super::{EntryKind, Position};

/// Format number in the segment header.
pub(super) const VERSION: u32 = 1;
/// Size of the header block; records begin here.
pub(super) const HEADER_BLOCK: u64 = 4_096;
/// Size of a record's fixed part.
pub(super) const RECORD_HEADER: usize = 56;
/// Records begin at multiples of this.
pub(super) const ALIGN: u64 = 8;
/// Writes are padded to this, so that the kernel never reads a page to change part of it.
pub(super) const PAGE: u64 = 4_096;

const MAGIC: &[u8; 8] = b"weft-wal";
const HEADER_LEN: usize = 100;
const TAG: u32 = 0x57F7_A106;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordType {
    Entry = 1,
    Vote = 2,
    Committed = 3,
    Truncate = 4,
    Purge = 5,
    /// Everything below this record's `synced` is durable. Says nothing else.
    Mark = 6,
    /// The next segment exists.
    Seal = 7,
}

impl RecordType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Mark,
            7 => Self::Seal,
            _ => return None,
        })
    }
}

/// First block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Number of this use of the file; also its name.
    pub(super) epoch: u64,
    /// Random number of this log, part of every checksum.
    pub(super) salt: u64,
    /// Length of the file.
    pub(super) capacity: u64,
    /// Epoch of the segment before, 0 for the first.
    pub(super) prev_epoch: u64,
    /// Where that one's records end.
    pub(super) prev_end: u64,
    /// Last position of the log when this segment was opened.
    pub(super) last: Option<Position>,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: RecordType,
    /// An entry's kind; for positions 0 means none and 1 some.
    pub(super) detail: u8,
    pub(super) len: u32,
    pub(super) synced: u32,
    pub(super) position: Position,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// No record of this epoch begins here.
    Tag,
    /// It would not fit into the file.
    Length,
    /// The checksum differs.
    Checksum,
    /// The checksum holds, but the type is not known.
    Type,
}

impl Bad {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Tag => "no record begins here",
            Self::Length => "the record's length does not fit into the file",
            Self::Checksum => "the record's checksum does not match",
            Self::Type => "the record's type is unknown",
        }
    }
}

/// What makes a segment's records its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed {
    pub(super) salt: u64,
    pub(super) epoch: u64,
}

impl Seed {
    /// First word of every record of this epoch; never zero in the lifetime of a log.
    pub(super) fn tag(self) -> u32 {
        let bytes = self.epoch.to_le_bytes();
        TAG ^ u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).rotate_left(7)
    }

    fn start(self, offset: u64) -> u32 {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.salt.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..].copy_from_slice(&offset.to_le_bytes());
        crc32c::crc32c(&bytes)
    }

    /// The fixed part of a record at `offset`, checksum included.
    pub(super) fn encode(
        self,
        offset: u64,
        record: &RecordHeader,
        body: &[u8],
    ) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        out[..4].copy_from_slice(&self.tag().to_le_bytes());
        out[8..12].copy_from_slice(&record.len.to_le_bytes());
        out[12..16].copy_from_slice(&record.synced.to_le_bytes());
        out[16] = record.kind as u8;
        out[17] = record.detail;
        put_position(&mut out[24..56], record.position);
        let crc = crc32c::crc32c_append(self.start(offset), &out[8..]);
        let crc = crc32c::crc32c_append(crc, body);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the fixed part; the body is checked by [`Seed::check`] once its length is known.
    pub(super) fn decode(self, bytes: &[u8], room: u64) -> Result<RecordHeader, Bad> {
        if u32_at(bytes, 0) != self.tag() {
            return Err(Bad::Tag);
        }
        let len = u32_at(bytes, 8);
        if record_size(len) > room {
            return Err(Bad::Length);
        }
        // An unknown type is told apart only after the checksum has been seen to hold.
        let kind = RecordType::from_byte(bytes[16]).unwrap_or(RecordType::Mark);
        Ok(RecordHeader {
            kind,
            detail: bytes[17],
            len,
            synced: u32_at(bytes, 12),
            position: get_position(&bytes[24..56]),
        })
    }

    /// Checks a whole record: fixed part and body.
    pub(super) fn check(self, offset: u64, record: &[u8]) -> Result<(), Bad> {
        let crc = crc32c::crc32c_append(self.start(offset), &record[8..]);
        if crc != u32_at(record, 4) {
            return Err(Bad::Checksum);
        }
        if RecordType::from_byte(record[16]).is_none() || record[18..24] != [0; 6] {
            return Err(Bad::Type);
        }
        Ok(())
    }
}

/// Bytes a record with a body of `len` takes in the file.
pub(super) fn record_size(len: u32) -> u64 {
    (RECORD_HEADER as u64 + u64::from(len)).next_multiple_of(ALIGN)
}

/// The entry kind behind a record's detail byte.
pub(in crate::log) fn entry_kind(detail: u8) -> Option<EntryKind> {
    Some(match detail {
        1 => EntryKind::Blank,
        2 => EntryKind::Normal,
        3 => EntryKind::Membership,
        _ => return None,
    })
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BLOCK as usize];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        for (at, value) in [
            (16, self.epoch),
            (24, self.salt),
            (32, self.capacity),
            (40, self.prev_epoch),
            (48, self.prev_end),
        ] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(last) = self.last {
            out[56] = 1;
            put_position(&mut out[64..96], last);
        }
        let crc = crc32c::crc32c(&out[..HEADER_LEN - 4]);
        out[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Errors: what is wrong, and the version found when it is merely unknown.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < HEADER_LEN {
            return Err(HeaderError::Bad(
                "the file is too short for a segment header",
            ));
        }
        if &bytes[..8] != MAGIC {
            return Err(HeaderError::Bad("no segment header"));
        }
        if crc32c::crc32c(&bytes[..HEADER_LEN - 4]) != u32_at(bytes, HEADER_LEN - 4) {
            return Err(HeaderError::Bad(
                "the segment header's checksum does not match",
            ));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        Ok(Self {
            epoch: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            capacity: u64_at(bytes, 32),
            prev_epoch: u64_at(bytes, 40),
            prev_end: u64_at(bytes, 48),
            last: (bytes[56] == 1).then(|| get_position(&bytes[64..96])),
        })
    }
}

/// Why a header block is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Bad(&'static str),
    Version(u32),
}

fn put_position(out: &mut [u8], position: Position) {
    out[..8].copy_from_slice(&position.index.to_le_bytes());
    out[8..16].copy_from_slice(&position.term.to_le_bytes());
    out[16..32].copy_from_slice(&position.leader.to_le_bytes());
}

fn get_position(bytes: &[u8]) -> Position {
    let mut leader = [0; 16];
    leader.copy_from_slice(&bytes[16..32]);
    Position {
        index: u64_at(bytes, 0),
        term: u64_at(bytes, 8),
        leader: u128::from_le_bytes(leader),
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            index: 7,
            term: 3,
            leader: u128::MAX - 5,
        }
    }

    #[test]
    fn a_header_survives_the_round_trip_and_no_flipped_bit_does() {
        for last in [None, Some(position())] {
            let header = SegmentHeader {
                epoch: 9,
                salt: 4,
                capacity: 1 << 20,
                prev_epoch: 8,
                prev_end: 5_000,
                last,
            };
            let bytes = header.encode();
            assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
            for bit in 0..HEADER_LEN * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_belongs_to_one_epoch_and_one_offset() {
        let seed = Seed { salt: 1, epoch: 2 };
        let body = b"hello";
        let header = RecordHeader {
            kind: RecordType::Entry,
            detail: 2,
            len: 5,
            synced: 4_096,
            position: position(),
        };
        let mut bytes = seed.encode(8_192, &header, body).to_vec();
        bytes.extend_from_slice(body);
        assert_eq!(seed.decode(&bytes, 64), Ok(header));
        assert_eq!(seed.decode(&bytes, 60), Err(Bad::Length));
        assert_eq!(seed.check(8_192, &bytes), Ok(()));
        assert_eq!(seed.check(8_200, &bytes), Err(Bad::Checksum));
        let other = Seed { epoch: 3, ..seed };
        assert_eq!(other.decode(&bytes, 64), Err(Bad::Tag));
        assert_eq!(
            Seed { salt: 2, ..seed }.check(8_192, &bytes),
            Err(Bad::Checksum)
        );
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let caught = seed.decode(&damaged, 64).is_err() || seed.check(8_192, &damaged).is_err();
            assert!(caught, "bit {bit}");
        }
    }
}
