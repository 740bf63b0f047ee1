//! Saving and restoring the whole state, and the other things an operator asks for.
//!
//! Owns: staging a restore through the log in bounded entries; one commit entry swaps the state on
//! every replica, or nothing happens.
//! Never: changes state outside the log.

use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;
use weft_proto::v1;
use weft_proto::v1::operate_request::Op;
use weft_proto::v1::stamped::Command;
use weft_raft::Role;

use crate::archive::{self, ArchiveConfiguration, ArchiveMeta, ArchiveServer};
use crate::handle::{Server, ServerError};

/// Bytes of state per log entry of a restore.
const CHUNK_BYTES: usize = 512 << 10;
/// Bytes per piece of a snapshot on its way to a client, and pieces that may wait for it.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 16;

/// Pieces of an archive on their way.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;

impl Server {
    /// Takes a snapshot of the newest state here; the archive streams as the reader takes it.
    ///
    /// Answers the log index it contains. The caller asks for a [`Server::barrier`] first when the
    /// snapshot must not be stale.
    pub fn snapshot_save(&self) -> Result<(u64, Pieces), ServerError> {
        let (state, status) = (self.state(), self.status());
        let servers = status.members.iter().map(|m| ArchiveServer {
            suffrage: u8::from(!m.voter),
            id: m.peer.id.to_string(),
            address: self.inner.transport.address_of(&m.peer),
        });
        let index = state.index().get();
        let meta = ArchiveMeta {
            id: format!("{}-{index}-{}", status.term, self.inner.clock.wall()),
            index,
            term: status.term,
            configuration: ArchiveConfiguration {
                servers: servers.collect(),
            },
            configuration_index: status.membership_index,
            ..ArchiveMeta::default()
        };
        let scratch = self.scratch();
        let (to, pieces) = mpsc::channel(PIECES);
        spawn_named("snapshot-save", move || {
            let mut out = io::BufWriter::with_capacity(PIECE_BYTES, ToChannel(to.clone()));
            let done = archive::unnamed(&scratch).and_then(|mut file| {
                let mut buffered = io::BufWriter::new(&mut file);
                weft_catalog::snapshot::write(&state, &mut buffered).map_err(io::Error::other)?;
                buffered.flush()?;
                drop(buffered);
                archive::write(meta, &mut file, &mut out)
            });
            if let Err(cause) = done {
                tracing::warn!(error = %cause, "snapshot could not be sent");
                let _ = to.blocking_send(Err(cause));
            }
        })?;
        Ok((index, pieces))
    }

    /// Verifies an archive as it arrives, stages it through the log and commits it.
    ///
    /// A caller that goes away does not stop it: what arrived whole is restored, the rest is refused.
    pub async fn snapshot_restore(&self, source: Pieces) -> Result<(), ServerError> {
        let server = self.clone();
        let restoring = tokio::spawn(async move { server.restore(source).await });
        restoring.await.unwrap_or_else(|cause| {
            Err(ServerError::Failed(format!(
                "the restore broke off: {cause}"
            )))
        })
    }

    async fn restore(&self, source: Pieces) -> Result<(), ServerError> {
        let scratch = self.scratch();
        let verified = tokio::task::spawn_blocking(move || {
            let (_, mut verified) = archive::read(
                FromChannel {
                    source,
                    piece: Bytes::new(),
                },
                &scratch,
            )
            .map_err(|cause| ServerError::Invalid(cause.to_string()))?;
            // What cannot be read must be refused before the first entry is written.
            let read = weft_catalog::snapshot::read(&mut io::BufReader::new(&mut verified.state));
            let catalog = read.map_err(|cause| {
                ServerError::Invalid(format!("state.bin cannot be restored: {cause}"))
            })?;
            believable(catalog.state().index().get())?;
            verified.state.rewind().map_err(|cause| ServerError::Io {
                what: "cannot reread the staged snapshot".into(),
                cause,
            })?;
            Ok::<_, ServerError>(verified)
        })
        .await
        .map_err(|cause| ServerError::Failed(format!("verifying the archive failed: {cause}")))??;

        let restore_id = weft_proto::ids::mint();
        let staged = self.stage(&restore_id, verified).await;
        if let Err(cause) = &staged {
            tracing::warn!(restore.id = %restore_id, error = %cause, "restore abandoned");
            let _ = self
                .write(Command::RestoreAbort(v1::RestoreAbort { restore_id }))
                .await;
        }
        staged
    }

    async fn stage(
        &self,
        restore_id: &str,
        mut verified: archive::Verified,
    ) -> Result<(), ServerError> {
        let id = || restore_id.to_owned();
        self.must(Command::RestoreBegin(v1::RestoreBegin {
            restore_id: id(),
            size_bytes: verified.state_bytes,
            sha256: verified.state_sha256,
        }))
        .await?;
        let mut offset = 0;
        loop {
            let (file, data) = tokio::task::spawn_blocking(move || {
                read_chunk(&mut verified.state).map(|data| (verified.state, data))
            })
            .await
            .map_err(|cause| ServerError::Failed(cause.to_string()))?
            .map_err(|cause| ServerError::Io {
                what: "cannot reread the staged snapshot".into(),
                cause,
            })?;
            verified.state = file;
            if data.is_empty() {
                break;
            }
            let sent = data.len() as u64;
            self.must(Command::RestoreChunk(v1::RestoreChunk {
                restore_id: id(),
                offset,
                data,
            }))
            .await?;
            offset += sent;
        }
        self.must(Command::RestoreCommit(v1::RestoreCommit {
            restore_id: id(),
        }))
        .await?;
        tracing::info!(restore.id = %restore_id, restore.bytes = offset, "snapshot restored");
        Ok(())
    }

    /// Writes a command that has no business being refused.
    async fn must(&self, command: Command) -> Result<(), ServerError> {
        let outcome = self
            .write(command)
            .await
            .map_err(|cause| ServerError::Failed(cause.to_string()))?;
        match outcome.result {
            Some(v1::outcome::Result::Refusal(refusal)) => {
                Err(ServerError::Failed(refusal.message))
            }
            _ => Ok(()),
        }
    }

    fn scratch(&self) -> PathBuf {
        self.inner
            .config
            .data_dir
            .clone()
            .unwrap_or_else(std::env::temp_dir)
    }

    /// Runs an operator's request here or at the leader.
    pub async fn operate(&self, op: Op) -> Result<Option<v1::RaftPeers>, ServerError> {
        if self.status().role == Role::Leader {
            return self.operate_here(op).await;
        }
        let address = self.leader_address().ok_or(ServerError::NoLeader)?;
        let request = v1::OperateRequest { op: Some(op) };
        let reply = self
            .inner
            .forwarder
            .call(
                &address,
                std::time::Duration::from_secs(15),
                async move |mut client| client.operate(request).await,
            )
            .await
            .map_err(|cause| {
                ServerError::Failed(format!("the leader did not answer: {cause:?}"))
            })?;
        match reply {
            v1::OperateReply {
                not_leader: true, ..
            } => Err(ServerError::NoLeader),
            v1::OperateReply { error, peers, .. } if error.is_empty() => Ok(peers),
            v1::OperateReply { error, .. } => Err(ServerError::Failed(error)),
        }
    }

    /// The leader's side of [`Server::operate`].
    pub(crate) async fn operate_here(&self, op: Op) -> Result<Option<v1::RaftPeers>, ServerError> {
        let raft = &self.inner.raft;
        let failed = |cause: weft_raft::ChangeError| ServerError::Failed(cause.to_string());
        match op {
            Op::RemovePeer(which) => {
                let id = self.find_peer(&which)?;
                raft.remove(id).await.map_err(failed)?;
                Ok(None)
            }
            Op::TransferLeader(to) => {
                let to = if to.raft_id.is_empty() {
                    None
                } else {
                    Some(parse_id(&to.raft_id)?)
                };
                raft.transfer_leader(to).await.map_err(failed)?;
                Ok(None)
            }
            Op::Leave(who) => {
                let id = parse_id(&who.raft_id)?;
                if id == raft.status().id {
                    raft.transfer_leader(None).await.map_err(failed)?;
                    return Err(ServerError::NoLeader);
                }
                raft.remove(id).await.map_err(failed)?;
                Ok(None)
            }
            Op::Status(v1::RaftStatus {}) => Ok(Some(self.raft_peers())),
        }
    }

    fn find_peer(&self, which: &v1::RemovePeer) -> Result<weft_raft::RaftId, ServerError> {
        let status = self.status();
        let matches = |m: &&weft_raft::Member| {
            m.peer.id.to_string() == which.raft_id
                || (which.raft_id.is_empty()
                    && (m.peer.address == which.address
                        || self.inner.transport.address_of(&m.peer) == which.address))
        };
        let found = status.members.iter().find(matches).ok_or_else(|| {
            let (what, value) = if which.raft_id.is_empty() {
                ("address", &which.address)
            } else {
                ("id", &which.raft_id)
            };
            ServerError::Invalid(format!(
                "{what} {value:?} was not found in the Raft configuration"
            ))
        })?;
        Ok(found.peer.id)
    }

    /// The membership as this server knows it.
    #[must_use]
    pub fn raft_peers(&self) -> v1::RaftPeers {
        let status = self.status();
        let leader = status.leader.as_ref().map(|peer| peer.id);
        let health = self.inner.health.lock();
        let peers = status.members.iter().map(|m| v1::RaftPeer {
            healthy: health.is_healthy(m.peer.id),
            stable_since_millis: health.stable_since(m.peer.id).get(),
            last_term: m.matched_term.unwrap_or(0),
            ever_heard: m.peer.id == status.id || m.last_contact.is_some(),
            raft_id: m.peer.id.to_string(),
            node_name: m.peer.name.clone(),
            address: self.inner.transport.address_of(&m.peer),
            leader: leader == Some(m.peer.id),
            voter: m.voter && !m.incoming,
            last_index: m.matched.unwrap_or(0),
            last_contact_millis: m
                .last_contact
                .map_or(0, |c| u64::try_from(c.as_millis()).unwrap_or(u64::MAX)),
        });
        v1::RaftPeers {
            index: status.membership_index,
            peers: peers.collect(),
        }
    }

    /// This server leaves for good: it gives up leadership and asks to be removed.
    pub async fn leave(&self) -> Result<(), ServerError> {
        self.inner.leaving.store(true, Ordering::Relaxed);
        let me = self.inner.raft.status().id.to_string();
        let others = self
            .status()
            .members
            .iter()
            .filter(|m| m.voter && m.peer.id != self.inner.raft.status().id)
            .count();
        if others == 0 {
            return Ok(());
        }
        for _ in 0..20 {
            match self
                .operate(Op::Leave(v1::Leave {
                    raft_id: me.clone(),
                }))
                .await
            {
                Ok(_) => return Ok(()),
                Err(ServerError::NoLeader) => {
                    tokio::time::sleep(std::time::Duration::from_millis(250)).await
                }
                Err(cause) => return Err(cause),
            }
        }
        Err(ServerError::NoLeader)
    }
}

/// Refuses what `apply` would refuse in the end, before anything is staged.
fn believable(index: u64) -> Result<(), ServerError> {
    if index > weft_catalog::RESTORED_INDEX_MAX {
        return Err(ServerError::Invalid(format!(
            "restore.index: the snapshot's index {index} is beyond {}; it is damaged or made up",
            weft_catalog::RESTORED_INDEX_MAX
        )));
    }
    Ok(())
}

fn parse_id(text: &str) -> Result<weft_raft::RaftId, ServerError> {
    text.parse().map_err(|_| {
        ServerError::Invalid(format!(
            "{text:?} is not a Raft id (a UUID as `weft operator raft list-peers` shows it)"
        ))
    })
}

fn read_chunk(file: &mut std::fs::File) -> io::Result<Bytes> {
    let mut data = Vec::with_capacity(CHUNK_BYTES);
    file.take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
    Ok(data.into())
}

fn spawn_named(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ServerError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|cause| ServerError::Io {
            what: format!("cannot start the {name} thread"),
            cause,
        })
}

/// The writing end of an archive; blocks while the reader is slow, fails when it is gone.
struct ToChannel(mpsc::Sender<io::Result<Bytes>>);

impl Write for ToChannel {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(buf)))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away"))?;
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct FromChannel {
    source: Pieces,
    piece: Bytes,
}

impl Read for FromChannel {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.source.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.piece.len());
        buf[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use weft_proto::clock::SystemClock;

    use super::*;

    async fn server() -> Server {
        let clock = Arc::new(SystemClock::new());
        let server = Server::start(crate::config::for_tests(), None, Bytes::new(), clock).await;
        let server = server.unwrap();
        server.barrier().await.unwrap();
        server
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restore_goes_on_without_its_caller() {
        let server = server().await;
        let (_, mut pieces) = server.snapshot_save().unwrap();
        let (to, source) = mpsc::channel(64);
        while let Some(piece) = pieces.recv().await {
            to.send(piece).await.unwrap();
        }
        drop(to);
        let caller = tokio::time::timeout(Duration::ZERO, server.snapshot_restore(source));
        assert!(caller.await.is_err(), "it went away");
        for _ in 0..1_000 {
            if server.state().restore_epoch() == 1 {
                return server.shutdown().await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never restored");
    }

    #[test]
    fn an_index_nobody_reaches_is_not_believed() {
        assert!(believable(weft_catalog::RESTORED_INDEX_MAX).is_ok());
        let refused = believable(weft_catalog::RESTORED_INDEX_MAX + 1).unwrap_err();
        assert!(refused.to_string().contains("restore.index"));
    }
}
