//! Exchanges over TCP: frames to and fro, each a length and what is sealed, until one side has no answer.
//!
//! Owns: framing, limits and time-outs. Never: looks inside a frame; the loop does.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::{Command, Published, fence, keys};
use crate::core::Answered;
use crate::error::GossipError;
use crate::keyring::{FrameError, Framer};

/// Time one exchange may take in all.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time a caller has to send its first frame: half-open connections hold a place no longer.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a frame at most: 20,000 members with full tags.
const FRAME_MAX_BYTES: u32 = 32 << 20;
/// Frames one side sends in an exchange at most.
const FRAMES_MAX: usize = 4;

/// Calls `peer` and exchanges states with it: `full` at a join, what differs afterwards.
pub(super) async fn with(
    peer: SocketAddr,
    full: bool,
    commands: &mpsc::Sender<Command>,
    published: &Published,
) -> Result<(), GossipError> {
    let call = async {
        let failed = |cause| GossipError::Exchange { peer, cause };
        let mut stream = TcpStream::connect(peer).await.map_err(failed)?;
        let open = opening(full, commands).await?;
        write(&mut stream, peer, &open, published).await?;
        let frame = read(&mut stream, peer, published).await?;
        go_on(&mut stream, peer, frame, commands, published).await
    };
    let done = limited(peer, call).await;
    match &done {
        Ok(()) => published.metrics.syncs.add(1),
        Err(_) => published.metrics.sync_failures.add(1),
    }
    done
}

/// Answers a caller.
pub(super) async fn answer(
    mut stream: TcpStream,
    peer: SocketAddr,
    commands: mpsc::Sender<Command>,
    published: &Arc<Published>,
) -> Result<(), GossipError> {
    let call = async {
        let first = read(&mut stream, peer, published);
        let Ok(first) = tokio::time::timeout(FIRST_FRAME_TIMEOUT, first).await else {
            published.metrics.half_open.add(1);
            return Err(late(peer, "no frame within 3 s of connecting"));
        };
        let first = first?;
        if first == [keys::HELLO] {
            return keys::serve(&mut stream, peer, published).await;
        }
        if first == [fence::WHAT_TIME] {
            let now = published.clock.wall().get().to_be_bytes();
            return write(&mut stream, peer, &now, published).await;
        }
        if first.first() == Some(&fence::WHO_HAS) {
            let (own, members) = (published.local.load(), published.members.load());
            let answer = fence::answer(&first, &published.life, &own, &members);
            let answer = answer.ok_or(GossipError::Frame {
                peer,
                reason: "malformed",
            })?;
            return write(&mut stream, peer, &answer, published).await;
        }
        go_on(&mut stream, peer, first, &commands, published).await
    };
    limited(peer, call).await
}

/// Takes frames in and answers them until there is no answer.
async fn go_on(
    stream: &mut TcpStream,
    peer: SocketAddr,
    first: Vec<u8>,
    commands: &mpsc::Sender<Command>,
    published: &Published,
) -> Result<(), GossipError> {
    let mut frame = first;
    for _ in 0..FRAMES_MAX {
        let answered = take(peer, frame, commands).await?;
        if let Err(GossipError::Datacenter { .. }) = &answered.outcome {
            published.metrics.foreign_datacenter.add(1);
        }
        let Some(answer) = answered.frame else {
            return answered.outcome;
        };
        write(stream, peer, &answer, published).await?;
        answered.outcome?;
        frame = match read_or_end(stream, peer, published).await? {
            Some((frame, _)) => frame,
            None => return Ok(()),
        };
    }
    Err(GossipError::Frame {
        peer,
        reason: "malformed",
    })
}

fn late(peer: SocketAddr, what: &'static str) -> GossipError {
    GossipError::Exchange {
        peer,
        cause: Error::new(ErrorKind::TimedOut, what),
    }
}

async fn limited(
    peer: SocketAddr,
    call: impl Future<Output = Result<(), GossipError>>,
) -> Result<(), GossipError> {
    match tokio::time::timeout(EXCHANGE_TIMEOUT, call).await {
        Ok(done) => done,
        Err(_) => Err(late(peer, "no answer within 10 s")),
    }
}

async fn opening(full: bool, commands: &mpsc::Sender<Command>) -> Result<Vec<u8>, GossipError> {
    let (reply, opening) = oneshot::channel();
    commands
        .send(Command::Open { full, reply })
        .await
        .map_err(|_| GossipError::Stopped)?;
    opening.await.map_err(|_| GossipError::Stopped)
}

async fn take(
    from: SocketAddr,
    frame: Vec<u8>,
    commands: &mpsc::Sender<Command>,
) -> Result<Answered, GossipError> {
    let (reply, answered) = oneshot::channel();
    commands
        .send(Command::Frame { from, frame, reply })
        .await
        .map_err(|_| GossipError::Stopped)?;
    answered.await.map_err(|_| GossipError::Stopped)
}

pub(super) async fn write(
    stream: &mut TcpStream,
    peer: SocketAddr,
    body: &[u8],
    published: &Published,
) -> Result<(), GossipError> {
    let frame = published.framer.load().seal(body)?;
    let length = u32::try_from(frame.len())
        .ok()
        .filter(|n| *n <= FRAME_MAX_BYTES);
    let length = length.ok_or(GossipError::Frame {
        peer,
        reason: "too_large",
    })?;
    let failed = |cause| GossipError::Exchange { peer, cause };
    stream
        .write_all(&length.to_be_bytes())
        .await
        .map_err(failed)?;
    stream.write_all(&frame).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    published
        .metrics
        .stream_bytes_sent
        .add(frame.len() as u64 + 4);
    Ok(())
}

/// A frame; an end before one says that the peer did not like ours.
pub(super) async fn read(
    stream: &mut TcpStream,
    peer: SocketAddr,
    published: &Published,
) -> Result<Vec<u8>, GossipError> {
    let frame = read_or_end(stream, peer, published).await?;
    frame.map(|(body, _)| body).ok_or(GossipError::Frame {
        peer,
        reason: "closed",
    })
}

/// A frame of somebody who holds a key, whatever `encrypt_verify_incoming` says.
pub(super) async fn read_sealed(
    stream: &mut TcpStream,
    peer: SocketAddr,
    published: &Published,
) -> Result<Vec<u8>, GossipError> {
    let reason = match read_or_end(stream, peer, published).await? {
        Some((body, true)) => return Ok(body),
        Some((_, false)) => {
            published.metrics.refused(FrameError::Clear);
            FrameError::Clear.reason()
        }
        None => "closed",
    };
    Err(GossipError::Frame { peer, reason })
}

async fn read_or_end(
    stream: &mut TcpStream,
    peer: SocketAddr,
    published: &Published,
) -> Result<Option<(Vec<u8>, bool)>, GossipError> {
    let failed = |cause: Error| match cause.kind() {
        ErrorKind::ConnectionReset => GossipError::Frame {
            peer,
            reason: "closed",
        },
        _ => GossipError::Exchange { peer, cause },
    };
    let length = match stream.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if length > FRAME_MAX_BYTES {
        published.metrics.malformed.add(1);
        return Err(GossipError::Frame {
            peer,
            reason: "too_large",
        });
    }
    // Memory follows what has really arrived, not what the length claims.
    let mut frame = Vec::new();
    let taken = stream
        .take(u64::from(length))
        .read_to_end(&mut frame)
        .await
        .map_err(failed)?;
    published
        .metrics
        .stream_bytes_received
        .add(taken as u64 + 4);
    if taken < length as usize {
        return Err(GossipError::Frame {
            peer,
            reason: "closed",
        });
    }
    let refused = |error: FrameError| {
        published.metrics.refused(error);
        GossipError::Frame {
            peer,
            reason: error.reason(),
        }
    };
    let body = published.framer.load().open_any(&frame).map_err(refused)?;
    Ok(Some((body, Framer::is_sealed(&frame))))
}
