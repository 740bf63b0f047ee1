//! A stopped server whose quorum is lost for ever: what it holds, and how it goes on without the others.
//!
//! Owns: reading a data directory whole, giving the server a new Raft id and a membership of itself alone, and the
//! file `raft/recover.json` by which an interrupted recovery is finished.
//! Never: runs while the server does (the caller holds the data directory's lock), or asks an operator; `weft recover`
//! does.
//! Source: DESIGN F8; Consul docs, "Outage recovery".

mod others;
pub(crate) mod peers_file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_catalog::{Catalog, Counts};
use weft_proto::clock::Clock;
use weft_raft::log::LogStore;
use weft_raft::{Offline, Peer, RaftId, StartError, Survey, SurveyedMember};

pub use others::{Found, ask};

use crate::config::ServerConfig;
use crate::fsm::Fsm;
use crate::handle::ServerError;
use crate::hashes::Hashes;
use crate::metrics::Metrics;
use crate::published::Published;
use crate::stamp::ClusterTime;
use crate::start;

/// There while a recovery is under way; a server does not start beside it.
const INTENT_FILE: &str = "recover.json";

/// A stopped server, read whole.
pub struct Survivor {
    offline: Offline<Fsm>,
    raft_dir: PathBuf,
    raft_id: RaftId,
    survey: Survey,
    intent: Option<Intent>,
}

/// What is about to be done, or was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    /// The id this server will have.
    raft_id: RaftId,
}

/// What a recovery made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The id this server has now.
    pub raft_id: RaftId,
    /// Where its log goes on.
    pub last_index: u64,
}

impl Survivor {
    /// Reads log, snapshots and state of the server that `config` describes. `None`: it was never part of a cluster.
    ///
    /// Errors: files that cannot be read, each named with the remedy. Nothing was changed.
    pub fn open(config: &ServerConfig, clock: Arc<dyn Clock>) -> Result<Option<Self>, ServerError> {
        let dir = config.data_dir.as_deref().map(|dir| dir.join("raft"));
        let Some(raft_dir) = dir.filter(|dir| dir.join("raft-id").exists()) else {
            return Ok(None);
        };
        let store = start::open_log(config)?;
        let raft_id = start::raft_id(config, store.as_ref())?;
        let snapshots = raft_dir.join("snapshots");
        let Some(offline) = read(store, Some(snapshots), clock)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            survey: offline.survey().map_err(failed)?,
            intent: intent(&raft_dir)?,
            offline,
            raft_dir,
            raft_id,
        }))
    }

    /// Its Raft id so far.
    #[must_use]
    pub const fn raft_id(&self) -> RaftId {
        self.raft_id
    }

    /// Its log and the membership it remembers.
    #[must_use]
    pub const fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The id of its cluster; empty if it never heard it.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        self.offline.machine().state().cluster_id()
    }

    /// The catalog index that the whole log makes.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.offline.machine().state().index().get()
    }

    /// How often it was recovered before.
    #[must_use]
    pub fn recoveries(&self) -> u64 {
        self.offline.machine().state().recoveries()
    }

    /// What it holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.offline.machine().state().counts()
    }

    /// Its own entry in the membership it remembers, under its present id or the one an interrupted recovery gave it.
    #[must_use]
    pub fn me(&self) -> Option<&SurveyedMember> {
        let planned = self.intent.as_ref().map(|intent| intent.raft_id);
        let mine = |member: &&SurveyedMember| {
            member.peer.id == self.raft_id || Some(member.peer.id) == planned
        };
        self.survey.members.iter().find(mine)
    }

    /// Whether a recovery of this server was begun and not finished.
    #[must_use]
    pub const fn interrupted(&self) -> bool {
        self.intent.is_some()
    }

    /// Makes this server the only member of its cluster, under a new Raft id: what the others remember, should they
    /// come back after all, neither elects this server nor is elected by it.
    ///
    /// May be repeated after any interruption. Errors name the file; the server does not start until it is repeated.
    pub fn go_on_alone(mut self) -> Result<Recovered, ServerError> {
        let Some(me) = self.me().cloned() else {
            return Err(ServerError::Invalid(format!(
                "recover.not_a_member: the membership in this server's log does not hold its Raft id {}: it was removed, and others have gone on without it; recover one of them, or restore a backup",
                self.raft_id
            )));
        };
        let intent = self.intent.take().unwrap_or_else(|| Intent {
            raft_id: start::mint(),
        });
        let file = self.raft_dir.join(INTENT_FILE);
        let text =
            serde_json::to_vec(&intent).map_err(|cause| ServerError::Failed(cause.to_string()))?;
        write(&file, &text)?;
        let last_index = self.survey.last_index;
        if me.peer.id != intent.raft_id {
            let alone = SurveyedMember {
                peer: Peer {
                    id: intent.raft_id,
                    ..me.peer
                },
                voter: true,
            };
            self.offline.machine_mut().recover();
            self.offline.rewrite(vec![alone]).map_err(failed)?;
        }
        write(
            &self.raft_dir.join("raft-id"),
            intent.raft_id.to_string().as_bytes(),
        )?;
        std::fs::remove_file(&file).map_err(|cause| io("cannot remove", &file, cause))?;
        Ok(Recovered {
            raft_id: intent.raft_id,
            last_index,
        })
    }
}

/// Refuses to start beside a recovery that was not finished: id and membership may not fit together.
pub(crate) fn refuse_unfinished(raft_dir: &Path) -> Result<(), ServerError> {
    if intent(raft_dir)?.is_none() {
        return Ok(());
    }
    Err(ServerError::Store(format!(
        "recover.unfinished: {} is there, so a recovery of this server was interrupted; run `weft recover -yes` again with the same arguments",
        raft_dir.join(INTENT_FILE).display()
    )))
}

fn intent(raft_dir: &Path) -> Result<Option<Intent>, ServerError> {
    let file = raft_dir.join(INTENT_FILE);
    match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|cause| {
            ServerError::Store(format!(
                "{} cannot be read: {cause}; remove it and recover again",
                file.display()
            ))
        }),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(io("cannot read", &file, cause)),
    }
}

/// Everything in log and snapshots, applied to a catalog nobody sees.
fn read(
    store: Arc<dyn LogStore>,
    snapshots: Option<PathBuf>,
    clock: Arc<dyn Clock>,
) -> Result<Option<Offline<Fsm>>, ServerError> {
    let mut catalog = Catalog::new();
    let published = Arc::new(Published::new(catalog.publish().0));
    let fsm = Fsm::new(
        catalog,
        published,
        Arc::new(ClusterTime::default()),
        clock.clone(),
        Arc::new(Metrics::default()),
        Arc::new(Hashes::default()),
    );
    Offline::open(store, snapshots, fsm, clock).map_err(failed)
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), ServerError> {
    start::write_durably(file, bytes).map_err(|cause| io("cannot write", file, cause))
}

fn io(what: &str, file: &Path, cause: std::io::Error) -> ServerError {
    ServerError::Io {
        what: format!("{what} {}; check data_dir and its owner", file.display()),
        cause,
    }
}

fn failed(cause: StartError) -> ServerError {
    ServerError::Store(cause.to_string())
}
