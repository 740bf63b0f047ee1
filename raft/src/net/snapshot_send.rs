//! A snapshot on its way to a peer, and into this server.
//!
//! Owns: chunking, checksum, the threads that read and write the file.
//! Never: blocks the Raft runtime on a disk.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::conn::Conn;
use super::convert;
use crate::config::SNAPSHOT_CHUNK_BYTES;
use crate::machine::on_thread;
use crate::snapshot::{Incoming, Sha, SnapshotData, SnapshotStore};
use crate::types::{SnapshotMeta, Vote, corrupt};
use crate::wire::{self, frame::Kind};

/// Chunks between the disk thread and the runtime, at most.
const CHUNKS_AHEAD: usize = 4;
/// Installing restores the whole state on the far side before it answers.
const INSTALL_PATIENCE: Duration = Duration::from_secs(600);

/// Sends one snapshot and returns the vote the peer answers with.
pub(super) async fn send(
    conn: &mut Conn,
    vote: &Vote,
    meta: &SnapshotMeta,
    data: &SnapshotData,
    patience: Duration,
) -> io::Result<Vote> {
    conn.push(Kind::SnapshotBegin(convert::snapshot_begin(
        vote, meta, data,
    )));
    let mut chunks = read_ahead(data.clone())?;
    let mut sha = None;
    while let Some(piece) = chunks.recv().await {
        match piece? {
            Piece::Chunk(data) => conn.push(Kind::SnapshotChunk(wire::SnapshotChunk { data })),
            Piece::End(digest) => sha = Some(digest),
        }
        timeout(patience, conn.flush())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    let sha = sha.ok_or_else(|| io::Error::other("the thread that reads the snapshot panicked"))?;
    conn.push(Kind::SnapshotEnd(wire::SnapshotEnd {
        sha256: Bytes::copy_from_slice(&sha),
    }));
    let answer = timeout(INSTALL_PATIENCE, conn.call())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match answer {
        Kind::SnapshotReply(reply) if reply.error.is_empty() => convert::vote_of(reply.vote),
        Kind::SnapshotReply(reply) => Err(io::Error::other(reply.error)),
        _ => Err(corrupt("peer answered a snapshot with something else")),
    }
}

enum Piece {
    Chunk(Bytes),
    End(Sha),
}

fn read_ahead(data: SnapshotData) -> io::Result<mpsc::Receiver<io::Result<Piece>>> {
    let (to, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let read = move || {
        if let Err(cause) = read_all(&data, &to) {
            // The receiver is gone when sending was given up: nobody to tell.
            to.blocking_send(Err(cause)).ok();
        }
    };
    std::thread::Builder::new()
        .name("weft-snap-read".into())
        .spawn(read)?;
    Ok(chunks)
}

fn read_all(data: &SnapshotData, to: &mpsc::Sender<io::Result<Piece>>) -> io::Result<()> {
    let mut from = data.open()?;
    let mut sha = Sha256::new();
    loop {
        let mut chunk = Vec::with_capacity(SNAPSHOT_CHUNK_BYTES);
        from.by_ref()
            .take(SNAPSHOT_CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)?;
        let piece = if chunk.is_empty() {
            Piece::End(sha.clone().finalize().into())
        } else {
            sha.update(&chunk);
            Piece::Chunk(Bytes::from(chunk))
        };
        let ended = matches!(piece, Piece::End(_));
        if to.blocking_send(Ok(piece)).is_err() || ended {
            return Ok(());
        }
    }
}

/// Takes in what follows a [`wire::SnapshotBegin`], up to its end; the content is verified and synced.
pub(super) async fn receive(
    conn: &mut Conn,
    begin: &wire::SnapshotBegin,
    snapshots: &Arc<SnapshotStore>,
    patience: Duration,
) -> io::Result<(SnapshotMeta, SnapshotData)> {
    let meta = convert::snapshot_meta_of(begin)?;
    let (to, mut chunks) = mpsc::channel::<Received>(CHUNKS_AHEAD);
    let (store, kept, size_bytes) = (snapshots.clone(), meta.clone(), begin.size_bytes);
    let writing = on_thread("weft-snap-write", move || {
        let mut incoming = store.begin()?;
        write_all(&mut incoming, &mut chunks, &kept, size_bytes).inspect_err(|_| incoming.abandon())
    });
    let feeding = async {
        loop {
            let next = timeout(patience, conn.next()).await;
            let received = match next.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
                Kind::SnapshotChunk(chunk) => Received::Chunk(chunk.data),
                Kind::SnapshotEnd(end) => Received::End(end.sha256),
                _ => return Err(corrupt("something else in the middle of a snapshot")),
            };
            let ended = matches!(received, Received::End(_));
            // A writer that gave up says why through its own result.
            if to.send(received).await.is_err() || ended {
                drop(to);
                return Ok(());
            }
        }
    };
    let (written, fed) = tokio::join!(writing, feeding);
    fed?;
    Ok((meta, written?))
}

enum Received {
    Chunk(Bytes),
    End(Bytes),
}

fn write_all(
    incoming: &mut Incoming,
    chunks: &mut mpsc::Receiver<Received>,
    meta: &SnapshotMeta,
    size_bytes: u64,
) -> io::Result<SnapshotData> {
    while let Some(received) = chunks.blocking_recv() {
        match received {
            Received::Chunk(chunk) => {
                if incoming.size_bytes() + chunk.len() as u64 > size_bytes {
                    return Err(corrupt("snapshot is longer than announced"));
                }
                incoming.write_all(&chunk)?;
            }
            Received::End(sha256) => {
                if incoming.size_bytes() != size_bytes || incoming.sha256()[..] != sha256[..] {
                    return Err(corrupt("snapshot arrived damaged: size or SHA-256 differ"));
                }
                return incoming.finish(meta);
            }
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
