//! Bytes of the registration log.
//!
//! Owns: the layout, its version, and the checksum of every record.
//! Never: reads or writes a file, or knows what an object means.
//!
//! ```text
//! header (64 B)       magic(8) version(4) crc(4) salt(16), zeros
//! record (8-aligned)  tag(4) crc(4) synced(8) id_len(4) body_len(4) kind(1) verb(1) zeros(6)
//!                     id, body, zeros to 8
//! ```
//! All numbers are little-endian. The checksum (CRC32C) covers the salt and the record's own offset as
//! well, so nothing a user registers can pass for a record. `synced` is the offset below which
//! everything was already durable when the record was written: a bad record below some good record's
//! `synced` is damage, any other is a write the power cut short.

use super::Kind;

/// Format number in the header.
pub(super) const VERSION: u32 = 1;
/// Records begin here.
pub(super) const HEADER: u64 = 64;
/// Largest object, as text.
pub(super) const BODY_MAX_BYTES: usize = 4 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"weft-reg";
const TAG: [u8; 4] = 0x57F7_4E65_u32.to_le_bytes();
const FIXED: usize = 32;
const ALIGN: usize = 8;

/// What a record says of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Put,
    Remove,
    /// Nothing; it is there for its `synced`.
    Mark,
}

/// One record, its text borrowed from the file's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) verb: Verb,
    pub(super) synced: u64,
    pub(super) id: &'a str,
    pub(super) body: &'a str,
}

/// Why a file is not a registration log of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Version(u32),
}

/// Part of every checksum of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(pub(super) [u8; 16]);

impl Salt {
    /// The first bytes of a file.
    pub(super) fn header(self) -> [u8; HEADER as usize] {
        let mut out = [0; HEADER as usize];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.0);
        let crc = header_crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`Salt::header`] wrote.
    pub(super) fn read(file: &[u8]) -> Result<Self, HeaderError> {
        let header = file.get(..HEADER as usize).ok_or(HeaderError::Damaged)?;
        if &header[..8] != MAGIC || header_crc(header) != u32_at(header, 12) {
            return Err(HeaderError::Damaged);
        }
        match u32_at(header, 8) {
            VERSION => {
                let mut salt = [0; 16];
                salt.copy_from_slice(&header[16..32]);
                Ok(Self(salt))
            }
            other => Err(HeaderError::Version(other)),
        }
    }

    /// Appends `record` as it stands at `offset`.
    pub(super) fn encode(self, offset: u64, record: &Record<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&TAG);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&record.synced.to_le_bytes());
        for text in [record.id, record.body] {
            let len = u32::try_from(text.len()).expect("callers bound ids and bodies");
            out.extend_from_slice(&len.to_le_bytes());
        }
        out.extend_from_slice(&[
            kind_byte(record.kind),
            verb_byte(record.verb),
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        out.extend_from_slice(record.id.as_bytes());
        out.extend_from_slice(record.body.as_bytes());
        out.resize(start + size(record.id.len(), record.body.len()), 0);
        let crc = self.crc(offset, &out[start..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record at `offset` of the whole `file`, with its size. `None`: no good record begins there.
    pub(super) fn decode(self, file: &[u8], offset: usize) -> Option<(Record<'_>, usize)> {
        self.decode_at(file, offset, offset as u64)
    }

    /// As [`Salt::decode`], of a record that was cut out of the file: `offset` is where it was.
    pub(super) fn decode_one(self, bytes: &[u8], offset: u64) -> Option<Record<'_>> {
        let (record, len) = self.decode_at(bytes, 0, offset)?;
        (len == bytes.len()).then_some(record)
    }

    fn decode_at(self, bytes: &[u8], at: usize, offset: u64) -> Option<(Record<'_>, usize)> {
        let bytes = bytes.get(at..)?;
        if bytes.get(..4)? != TAG || bytes.len() < FIXED {
            return None;
        }
        let (id_len, body_len) = (len_at(bytes, 16)?, len_at(bytes, 20)?);
        let size = size(id_len, body_len);
        let bytes = bytes.get(..size)?;
        if self.crc(offset, bytes) != u32_at(bytes, 4) {
            return None;
        }
        let text = |from: usize, len: usize| std::str::from_utf8(&bytes[from..from + len]).ok();
        let record = Record {
            kind: kind(bytes[24])?,
            verb: verb(bytes[25])?,
            synced: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            id: text(FIXED, id_len)?,
            body: text(FIXED + id_len, body_len)?,
        };
        Some((record, size))
    }

    fn crc(self, offset: u64, record: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&self.0);
        let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
        crc32c::crc32c_append(crc, &record[8..])
    }
}

/// Bytes a record takes.
pub(super) fn size(id_len: usize, body_len: usize) -> usize {
    (FIXED + id_len + body_len).next_multiple_of(ALIGN)
}

/// The next place where a record may begin.
pub(super) fn next_place(offset: usize) -> usize {
    (offset + 1).next_multiple_of(ALIGN)
}

fn header_crc(header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..12]);
    crc32c::crc32c_append(crc, &header[16..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// A length no larger than a record may have.
fn len_at(bytes: &[u8], at: usize) -> Option<usize> {
    let len = usize::try_from(u32_at(bytes, at)).ok()?;
    (len <= BODY_MAX_BYTES).then_some(len)
}

fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Service => 1,
        Kind::Check => 2,
        Kind::State => 3,
    }
}

fn kind(byte: u8) -> Option<Kind> {
    [Kind::Service, Kind::Check, Kind::State]
        .into_iter()
        .find(|kind| kind_byte(*kind) == byte)
}

fn verb_byte(verb: Verb) -> u8 {
    match verb {
        Verb::Put => 1,
        Verb::Remove => 2,
        Verb::Mark => 3,
    }
}

fn verb(byte: u8) -> Option<Verb> {
    [Verb::Put, Verb::Remove, Verb::Mark]
        .into_iter()
        .find(|verb| verb_byte(*verb) == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt([7; 16]);

    #[test]
    fn a_header_survives_the_round_trip_and_no_flipped_bit_does() {
        let header = SALT.header();
        assert_eq!(Salt::read(&header), Ok(SALT));
        for bit in 0..header.len() * 8 {
            let mut damaged = header;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Salt::read(&damaged), Err(HeaderError::Damaged), "bit {bit}");
        }
        assert_eq!(Salt::read(&header[..63]), Err(HeaderError::Damaged));
    }

    #[test]
    fn a_record_belongs_to_one_file_and_one_offset() {
        let record = Record {
            kind: Kind::Check,
            verb: Verb::Put,
            synced: 96,
            id: "web",
            body: "{}",
        };
        let mut bytes = vec![0; 64];
        SALT.encode(64, &record, &mut bytes);
        assert_eq!(bytes.len(), 64 + size(3, 2));
        assert_eq!(SALT.decode(&bytes, 64), Some((record, size(3, 2))));
        assert_eq!(SALT.decode(&bytes, 0), None);
        assert_eq!(SALT.decode(&bytes[8..], 56), None, "moved");
        assert_eq!(Salt([8; 16]).decode(&bytes, 64), None, "another file's");
        for cut in 64..bytes.len() {
            assert_eq!(SALT.decode(&bytes[..cut], 64), None, "cut at {cut}");
        }
        for bit in 64 * 8..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SALT.decode(&damaged, 64), None, "bit {bit}");
        }
    }
}
