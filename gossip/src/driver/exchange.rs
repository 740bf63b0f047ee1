//! Full states over TCP: a length, a frame, and the same back.
//!
//! Owns: framing, limits and time-outs of one exchange. Never: merges; the loop does.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::{Command, Published};
use crate::core::SyncState;
use crate::error::GossipError;
use crate::keyring::FrameError;

/// Time one exchange may take in all.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a frame at most: 20,000 members with full tags.
const FRAME_MAX_BYTES: u32 = 32 << 20;

/// Calls `peer`, sends what we know, merges what it knows.
pub(super) async fn with(
    peer: SocketAddr,
    commands: &mpsc::Sender<Command>,
    published: &Published,
) -> Result<(), GossipError> {
    let call = async {
        let failed = |cause| GossipError::Exchange { peer, cause };
        let mut stream = TcpStream::connect(peer).await.map_err(failed)?;
        let state = own_state(commands).await?;
        write(&mut stream, peer, &state, published).await?;
        let answer = read(&mut stream, peer, published).await?;
        merge(peer, answer, commands).await
    };
    let done = limited(peer, call).await;
    match &done {
        Ok(()) => published.metrics.syncs.add(1),
        Err(_) => published.metrics.sync_failures.add(1),
    }
    done
}

/// Answers a caller. A stranger of another datacenter learns our name and no more.
pub(super) async fn answer(
    mut stream: TcpStream,
    peer: SocketAddr,
    commands: mpsc::Sender<Command>,
    published: &Published,
) -> Result<(), GossipError> {
    let call = async {
        let theirs = read(&mut stream, peer, published).await?;
        let mut ours = own_state(&commands).await?;
        if theirs.datacenter() != ours.datacenter() {
            published.metrics.foreign_datacenter.add(1);
            ours = ours.introduction();
        }
        write(&mut stream, peer, &ours, published).await?;
        merge(peer, theirs, &commands).await
    };
    limited(peer, call).await
}

async fn limited(
    peer: SocketAddr,
    call: impl Future<Output = Result<(), GossipError>>,
) -> Result<(), GossipError> {
    match tokio::time::timeout(EXCHANGE_TIMEOUT, call).await {
        Ok(done) => done,
        Err(_) => Err(GossipError::Exchange {
            peer,
            cause: Error::new(ErrorKind::TimedOut, "no answer within 10 s"),
        }),
    }
}

async fn own_state(commands: &mpsc::Sender<Command>) -> Result<SyncState, GossipError> {
    let (reply, state) = oneshot::channel();
    commands
        .send(Command::State(reply))
        .await
        .map_err(|_| GossipError::Stopped)?;
    state.await.map_err(|_| GossipError::Stopped)
}

async fn merge(
    from: SocketAddr,
    state: SyncState,
    commands: &mpsc::Sender<Command>,
) -> Result<(), GossipError> {
    let (reply, merged) = oneshot::channel();
    commands
        .send(Command::Merge { from, state, reply })
        .await
        .map_err(|_| GossipError::Stopped)?;
    merged.await.map_err(|_| GossipError::Stopped)?
}

async fn write(
    stream: &mut TcpStream,
    peer: SocketAddr,
    state: &SyncState,
    published: &Published,
) -> Result<(), GossipError> {
    let frame = published.framer.load().seal(&state.encode())?;
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
    stream.flush().await.map_err(failed)
}

async fn read(
    stream: &mut TcpStream,
    peer: SocketAddr,
    published: &Published,
) -> Result<SyncState, GossipError> {
    let failed = |cause: Error| match cause.kind() {
        // A peer that does not like our frame hangs up without a word.
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => GossipError::Frame {
            peer,
            reason: "closed",
        },
        _ => GossipError::Exchange { peer, cause },
    };
    let length = stream.read_u32().await.map_err(failed)?;
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
    if taken < length as usize {
        return Err(GossipError::Frame {
            peer,
            reason: "closed",
        });
    }
    let refused = |error: FrameError| {
        let metrics = &published.metrics;
        if error.is_key() {
            metrics.decrypt_failures.add(1)
        } else {
            metrics.malformed.add(1)
        }
        GossipError::Frame {
            peer,
            reason: error.reason(),
        }
    };
    let body = published.framer.load().open_any(&frame).map_err(refused)?;
    SyncState::decode(&body).ok_or_else(|| refused(FrameError::Malformed))
}
