//! The `weft/1` tunnel on the wire: many connections of one pair of services inside one TLS connection.
//!
//! Owns: the frames' bytes, both ways. Sans IO; whoever reads feeds bytes in, whoever writes gets bytes out.
//! Never: knows a socket, keeps a stream's state, or holds a payload: DATA is handed on in the pieces it came in.
//!
//! A frame is `kind u8 · length u24 · stream u32`, big-endian, then `length` bytes. Kinds from 0x80 on may be
//! skipped by who does not know them; any other unknown kind ends the tunnel.

use bytes::{BufMut as _, BytesMut};

/// ALPN name of the tunnel.
pub const ALPN: &[u8] = b"weft/1";
/// Bytes before each payload.
pub const HEADER_BYTES: usize = 8;
/// With its header, a full DATA frame is one TLS record.
pub const DATA_BYTES_MAX: usize = 16_384 - HEADER_BYTES;
/// Of a frame that is not DATA.
const CONTROL_BYTES_MAX: usize = 256;
const SKIPPABLE: u8 = 0x80;

/// Why a stream or a tunnel ended before its time. One byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The application's connection was reset.
    Reset = 0,
    /// An intention denies it.
    Denied = 1,
    /// The local application could not be reached.
    NoApplication = 2,
    /// A limit is reached: streams of the tunnel, connections or bytes of the service.
    Limit = 3,
    /// Nothing was said for too long.
    Idle = 4,
    /// The proxy, or the service in it, stops.
    Drained = 5,
    /// Certificates do not hold any more.
    Identity = 6,
    /// The other side broke the tunnel's rules.
    Protocol = 7,
    /// The tunnel itself was lost. Never sent.
    Lost = 8,
    /// Of a newer version.
    Unknown = 255,
}

impl Reason {
    fn of(byte: u8) -> Self {
        use Reason::{
            Denied, Drained, Identity, Idle, Limit, Lost, NoApplication, Protocol, Reset,
        };
        let known = [
            Reset,
            Denied,
            NoApplication,
            Limit,
            Idle,
            Drained,
            Identity,
            Protocol,
            Lost,
        ];
        known
            .into_iter()
            .find(|reason| *reason as u8 == byte)
            .unwrap_or(Self::Unknown)
    }

    /// Stable id, for logs and metrics.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Reset => "proxy.reset",
            Self::Denied => "intention.denied",
            Self::NoApplication => "proxy.no_application",
            Self::Limit => "proxy.limit",
            Self::Idle => "proxy.idle",
            Self::Drained => "proxy.drained",
            Self::Identity => "proxy.identity",
            Self::Protocol => "proxy.protocol",
            Self::Lost => "proxy.tunnel_lost",
            Self::Unknown => "proxy.unknown",
        }
    }
}

/// What arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A new stream; the opener takes `window` bytes before it grants more.
    Open {
        /// Chosen by the opener, never used twice in a tunnel.
        stream: u32,
        /// Bytes.
        window: u32,
    },
    /// A piece of a stream's bytes, never empty.
    Data {
        /// Of an open stream.
        stream: u32,
        /// In order.
        bytes: &'a [u8],
    },
    /// No more bytes this way.
    Fin {
        /// Of an open stream.
        stream: u32,
    },
    /// Neither way any more.
    Reset {
        /// Of an open stream.
        stream: u32,
        /// Why.
        reason: Reason,
    },
    /// So many more bytes may be sent.
    Credit {
        /// Of an open stream.
        stream: u32,
        /// Bytes.
        bytes: u32,
    },
    /// To be answered with the same value.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// No new streams; those open go on.
    GoAway(Reason),
}

/// What cannot be a frame. The tunnel ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not of this version, and not to be skipped.
    #[error("frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// Longer or shorter than its kind allows.
    #[error("frame of kind {kind:#04x} with {length} bytes")]
    Length {
        /// As sent.
        kind: u8,
        /// Bytes.
        length: usize,
    },
}

const OPEN: u8 = 0;
const DATA: u8 = 1;
const FIN: u8 = 2;
const RESET: u8 = 3;
const CREDIT: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const GOAWAY: u8 = 7;

/// Appends a frame. DATA goes through [`begin_data`] and [`end_data`] instead, read where it will be sent from.
pub fn encode(frame: Frame<'_>, out: &mut BytesMut) {
    match frame {
        Frame::Open { stream, window } => {
            header(out, OPEN, 4, stream);
            out.put_u32(window);
        }
        Frame::Data { stream, bytes } => {
            for piece in bytes.chunks(DATA_BYTES_MAX) {
                header(out, DATA, piece.len(), stream);
                out.put_slice(piece);
            }
        }
        Frame::Fin { stream } => header(out, FIN, 0, stream),
        Frame::Reset { stream, reason } => {
            header(out, RESET, 1, stream);
            out.put_u8(reason as u8);
        }
        Frame::Credit { stream, bytes } => {
            header(out, CREDIT, 4, stream);
            out.put_u32(bytes);
        }
        Frame::Ping(value) => {
            header(out, PING, 8, 0);
            out.put_u64(value);
        }
        Frame::Pong(value) => {
            header(out, PONG, 8, 0);
            out.put_u64(value);
        }
        Frame::GoAway(reason) => {
            header(out, GOAWAY, 1, 0);
            out.put_u8(reason as u8);
        }
    }
}

fn header(out: &mut BytesMut, kind: u8, length: usize, stream: u32) {
    debug_assert!(length < 1 << 24, "a frame of {length} bytes");
    out.put_u32(u32::from(kind) << 24 | length as u32);
    out.put_u32(stream);
}

/// Leaves room for the header of a DATA frame whose bytes follow; says where it begins.
pub fn begin_data(out: &mut BytesMut) -> usize {
    let at = out.len();
    out.put_u64(0);
    at
}

/// Fills in the header begun at `at`, or takes the empty frame back. Says how many bytes it carries.
pub fn end_data(out: &mut BytesMut, at: usize, stream: u32) -> usize {
    let length = out.len() - at - HEADER_BYTES;
    if length == 0 {
        out.truncate(at);
        return 0;
    }
    let word = u32::from(DATA) << 24 | length as u32;
    out[at..at + 4].copy_from_slice(&word.to_be_bytes());
    out[at + 4..at + HEADER_BYTES].copy_from_slice(&stream.to_be_bytes());
    length
}

/// Reads frames out of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Header and payload of a control frame, or header of a DATA frame, so far.
    held: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Header,
    Control {
        kind: u8,
        stream: u32,
        length: usize,
    },
    Data {
        stream: u32,
        left: usize,
    },
    Skip {
        left: usize,
    },
}

impl Decoder {
    /// The next frame within `input`, which is moved on past what was read. `None`: all was read.
    ///
    /// # Errors
    /// What was sent is not a frame; nothing more can be read.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, WireError> {
        loop {
            match self.state {
                State::Header => {
                    if !self.gather(input, HEADER_BYTES) {
                        return Ok(None);
                    }
                    self.state = begin(&self.held)?;
                    self.held.clear();
                }
                State::Data { left: 0, .. } | State::Skip { left: 0 } => {
                    self.state = State::Header;
                }
                State::Data { stream, left } => {
                    let Some(bytes) = take(input, left) else {
                        return Ok(None);
                    };
                    let left = left - bytes.len();
                    self.state = State::Data { stream, left };
                    return Ok(Some(Frame::Data { stream, bytes }));
                }
                State::Skip { left } => {
                    let Some(bytes) = take(input, left) else {
                        return Ok(None);
                    };
                    let left = left - bytes.len();
                    self.state = State::Skip { left };
                }
                State::Control {
                    kind,
                    stream,
                    length,
                } => {
                    if !self.gather(input, length) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    let frame = control(kind, stream, &self.held);
                    self.held.clear();
                    return frame.map(Some);
                }
            }
        }
    }

    /// Whether `length` bytes are together.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> bool {
        if let Some(bytes) = take(input, length - self.held.len()) {
            self.held.extend_from_slice(bytes);
        }
        self.held.len() == length
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    (!taken.is_empty()).then_some(taken)
}

fn begin(header: &[u8]) -> Result<State, WireError> {
    let (kind, length) = match *header {
        [kind, a, b, c, ..] => (
            kind,
            usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
        ),
        _ => return Err(WireError::Kind(0)),
    };
    let stream = word(header.get(4..).unwrap_or_default());
    match kind {
        DATA if length <= DATA_BYTES_MAX => Ok(State::Data {
            stream,
            left: length,
        }),
        OPEN | FIN | RESET | CREDIT | PING | PONG | GOAWAY if length <= CONTROL_BYTES_MAX => {
            Ok(State::Control {
                kind,
                stream,
                length,
            })
        }
        SKIPPABLE.. if length <= DATA_BYTES_MAX => Ok(State::Skip { left: length }),
        DATA | OPEN | FIN | RESET | CREDIT | PING | PONG | GOAWAY | SKIPPABLE.. => {
            Err(WireError::Length { kind, length })
        }
        _ => Err(WireError::Kind(kind)),
    }
}

/// Bytes behind those known are a newer version's, and let be.
fn control<'a>(kind: u8, stream: u32, payload: &[u8]) -> Result<Frame<'a>, WireError> {
    let needed = match kind {
        FIN => 0,
        RESET | GOAWAY => 1,
        OPEN | CREDIT => 4,
        _ => 8,
    };
    if payload.len() < needed {
        let length = payload.len();
        return Err(WireError::Length { kind, length });
    }
    let first = payload.first().copied().unwrap_or_default();
    Ok(match kind {
        OPEN => Frame::Open {
            stream,
            window: word(payload),
        },
        FIN => Frame::Fin { stream },
        RESET => Frame::Reset {
            stream,
            reason: Reason::of(first),
        },
        CREDIT => Frame::Credit {
            stream,
            bytes: word(payload),
        },
        PING => Frame::Ping(long(payload)),
        PONG => Frame::Pong(long(payload)),
        _ => Frame::GoAway(Reason::of(first)),
    })
}

fn word(bytes: &[u8]) -> u32 {
    let first = bytes.first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(first)
}

fn long(bytes: &[u8]) -> u64 {
    let first = bytes.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Frames read from `bytes` fed in pieces of `piece`, with DATA put together again.
    fn read(bytes: &[u8], piece: usize) -> Result<Vec<String>, WireError> {
        let mut decoder = Decoder::default();
        let (mut seen, mut data): (Vec<String>, Vec<u8>) = (Vec::new(), Vec::new());
        for mut input in bytes.chunks(piece) {
            while let Some(frame) = decoder.next(&mut input)? {
                match frame {
                    Frame::Data { bytes, .. } => data.extend_from_slice(bytes),
                    other => seen.push(format!("{other:?}")),
                }
            }
        }
        seen.push(format!(
            "{} bytes {:?}",
            data.len(),
            data.iter().map(|b| u64::from(*b)).sum::<u64>()
        ));
        Ok(seen)
    }

    #[test]
    fn frames_arrive_as_sent_however_they_are_cut() {
        let payload: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
        let frames = [
            Frame::Open {
                stream: 1,
                window: 65_536,
            },
            Frame::Data {
                stream: 1,
                bytes: &payload,
            },
            Frame::Credit {
                stream: 1,
                bytes: 32_768,
            },
            Frame::Fin { stream: 1 },
            Frame::Reset {
                stream: 3,
                reason: Reason::Denied,
            },
            Frame::Ping(7),
            Frame::Pong(u64::MAX),
            Frame::GoAway(Reason::Drained),
        ];
        let mut out = BytesMut::new();
        for frame in frames {
            encode(frame, &mut out);
        }
        let whole = read(&out, out.len()).unwrap();
        assert_eq!(whole.len(), 8);
        assert!(whole[7].starts_with("40000 bytes"), "{whole:?}");
        for piece in [1, 2, 7, 8, 9, 1_000, 16_384] {
            assert_eq!(read(&out, piece).unwrap(), whole, "pieces of {piece}");
        }
    }

    #[test]
    fn data_is_framed_where_it_was_read() {
        let mut out = BytesMut::from(&b"before"[..]);
        let at = begin_data(&mut out);
        assert_eq!(end_data(&mut out, at, 5), 0);
        assert_eq!(&out[..], b"before", "an empty frame is taken back");
        let at = begin_data(&mut out);
        out.put_slice(b"hello");
        assert_eq!(end_data(&mut out, at, 5), 5);
        let mut input = &out[6..];
        let frame = Decoder::default().next(&mut input).unwrap().unwrap();
        assert_eq!(
            frame,
            Frame::Data {
                stream: 5,
                bytes: b"hello"
            }
        );
    }

    #[test]
    fn what_is_not_a_frame_is_refused_and_what_may_be_skipped_is() {
        let cases: &[(&[u8], Result<usize, WireError>)] = &[
            (&[0x09, 0, 0, 0, 0, 0, 0, 0], Err(WireError::Kind(9))),
            (
                &[OPEN, 0, 0, 3, 0, 0, 0, 1, 1, 2, 3],
                Err(WireError::Length {
                    kind: OPEN,
                    length: 3,
                }),
            ),
            (
                &[RESET, 0, 0, 0, 0, 0, 0, 1],
                Err(WireError::Length {
                    kind: RESET,
                    length: 0,
                }),
            ),
            (
                &[DATA, 0, 0x40, 0, 0, 0, 0, 1],
                Err(WireError::Length {
                    kind: DATA,
                    length: 16_384,
                }),
            ),
            (
                &[PING, 1, 0, 0, 0, 0, 0, 1],
                Err(WireError::Length {
                    kind: PING,
                    length: 65_536,
                }),
            ),
            (
                &[0x90, 0, 0, 2, 0, 0, 0, 1, 9, 9, FIN, 0, 0, 0, 0, 0, 0, 1],
                Ok(2),
            ),
            // A newer version's longer OPEN.
            (&[OPEN, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0, 5, 5], Ok(2)),
        ];
        for (bytes, expected) in cases {
            let read = read(bytes, 3).map(|frames| frames.len());
            assert_eq!(&read, expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1..40_usize) {
            let _ = read(&bytes, piece);
        }
    }
}
