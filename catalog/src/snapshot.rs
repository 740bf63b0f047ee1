//! A snapshot as bytes: a header, then frames of records, each with its length and CRC32C.
//!
//! Owns: the form `state.bin` has on disk, on the network and in a user's archive.
//! Never: opens a file; it is given a reader or a writer.

use std::io::{self, Read, Write};

use bytes::Bytes;
use prost::Message;

use crate::apply::Catalog;
use crate::record::{Frame, Record, RestoreError};
use crate::state::State;

/// The first bytes of every snapshot.
pub const MAGIC: [u8; 8] = *b"WEFTSNAP";
/// The form of header and frames.
pub const VERSION: u32 = 1;
/// A frame is closed when its records reach this many bytes.
const FRAME_BYTES: usize = 64 << 10;
/// A frame larger than this is damaged: the largest record is a value of 8 MiB.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Why a snapshot could not be written or read. Nothing was made of it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The reader or the writer failed.
    #[error("snapshot IO failed at offset {offset}")]
    Io {
        /// Bytes before.
        offset: u64,
        /// What failed.
        #[source]
        cause: io::Error,
    },
    /// These bytes are no snapshot.
    #[error("not a weft snapshot: it does not begin with WEFTSNAP")]
    Magic,
    /// A newer weft wrote it.
    #[error(
        "snapshot has form {found}, this build reads form {VERSION}: restore it with a newer weft"
    )]
    Version {
        /// What the header says.
        found: u32,
    },
    /// A frame's bytes are not what was written.
    #[error(
        "frame {frame} at offset {offset} (from record {record} on) is damaged: {what}; take another snapshot"
    )]
    Damaged {
        /// Frames before this one.
        frame: u64,
        /// Where the frame begins.
        offset: u64,
        /// Records before this frame.
        record: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The frames are as written, but make no state.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Writes a snapshot and answers how many bytes it has.
///
/// Errors: [`SnapshotError::Io`] of the writer.
pub fn write(state: &State, to: &mut impl Write) -> Result<u64, SnapshotError> {
    let mut writer = Frames {
        to,
        offset: 0,
        buffer: Vec::with_capacity(FRAME_BYTES * 2),
    };
    writer.raw(&MAGIC)?;
    writer.raw(&VERSION.to_le_bytes())?;
    for record in state.records() {
        writer.record(record)?;
    }
    writer.flush()?;
    Ok(writer.offset)
}

struct Frames<'a, W> {
    to: &'a mut W,
    offset: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Frames<'_, W> {
    fn raw(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.to
            .write_all(bytes)
            .map_err(|cause| SnapshotError::Io {
                offset: self.offset,
                cause,
            })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), SnapshotError> {
        let frame = Frame {
            record: Some(record),
        };
        if !self.buffer.is_empty() && self.buffer.len() + frame.encoded_len() > FRAME_BYTES {
            self.flush()?;
        }
        frame
            .encode_length_delimited(&mut self.buffer)
            .expect("a vector has room for every record");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let body = std::mem::take(&mut self.buffer);
        let length =
            u32::try_from(body.len()).expect("a frame holds at most one record above 64 KiB");
        self.raw(&length.to_le_bytes())?;
        self.raw(&crc32c::crc32c(&body).to_le_bytes())?;
        self.raw(&body)?;
        self.buffer = body;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads a snapshot into a new catalog.
///
/// Errors: [`SnapshotError`], naming frame, offset and record; no catalog is made.
pub fn read(from: &mut impl Read) -> Result<Catalog, SnapshotError> {
    Catalog::restore(records(from)?)
}

/// The records of a snapshot, one frame in memory at a time. Stops at the first error.
///
/// Errors: [`SnapshotError`] when the header is not ours.
pub fn records(
    from: &mut impl Read,
) -> Result<impl Iterator<Item = Result<Record, SnapshotError>>, SnapshotError> {
    let mut header = [0_u8; 12];
    from.read_exact(&mut header)
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Magic,
            _ => SnapshotError::Io { offset: 0, cause },
        })?;
    let [magic @ .., v0, v1, v2, v3] = header;
    if magic != MAGIC {
        return Err(SnapshotError::Magic);
    }
    let found = u32::from_le_bytes([v0, v1, v2, v3]);
    if found != VERSION {
        return Err(SnapshotError::Version { found });
    }
    let mut reader = Reading {
        from,
        offset: 12,
        next: 12,
        frame: 0,
        record: 0,
        body: Bytes::new(),
        done: false,
    };
    Ok(std::iter::from_fn(move || reader.next()))
}

struct Reading<'a, R> {
    from: &'a mut R,
    /// Where the current frame begins, and where the next one does.
    offset: u64,
    next: u64,
    frame: u64,
    record: u64,
    body: Bytes,
    done: bool,
}

impl<R: Read> Reading<'_, R> {
    fn next(&mut self) -> Option<Result<Record, SnapshotError>> {
        if self.done {
            return None;
        }
        let record = self.try_next().transpose();
        self.done = !matches!(record, Some(Ok(_)));
        record
    }

    fn try_next(&mut self) -> Result<Option<Record>, SnapshotError> {
        if self.body.is_empty() && !self.next_frame()? {
            return Ok(None);
        }
        let frame = Frame::decode_length_delimited(&mut self.body)
            .map_err(|cause| self.damaged(cause.to_string()))?;
        let record = frame
            .record
            .ok_or_else(|| self.damaged("a record this version does not know".to_owned()))?;
        self.record += 1;
        Ok(Some(record))
    }

    fn next_frame(&mut self) -> Result<bool, SnapshotError> {
        self.offset = self.next;
        let mut head = [0_u8; 8];
        match fill(self.from, &mut head).map_err(|cause| SnapshotError::Io {
            offset: self.offset,
            cause,
        })? {
            0 => return Ok(false),
            8 => {}
            _ => return Err(self.damaged("it is cut off".to_owned())),
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(self.damaged(format!("its length cannot be {length} bytes")));
        }
        let mut body = vec![0_u8; length];
        let found = fill(self.from, &mut body).map_err(|cause| SnapshotError::Io {
            offset: self.offset + 8,
            cause,
        })?;
        if found != length {
            return Err(self.damaged(format!("it is cut off after {found} of {length} bytes")));
        }
        if crc32c::crc32c(&body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(self.damaged("its checksum does not match".to_owned()));
        }
        self.frame += 1;
        self.next = self.offset + 8 + length as u64;
        self.body = body.into();
        Ok(true)
    }

    fn damaged(&self, what: String) -> SnapshotError {
        SnapshotError::Damaged {
            frame: self.frame,
            offset: self.offset,
            record: self.record,
            what,
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(filled)
}
