//! Errors by operation: who can act, and whether anything changed.
//!
//! Owns: every public error of this crate outside the log, and its stable reason id.
//! Never: carries an openraft type.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::machine::FatalError;
use crate::peer::Peer;

/// Why a node did not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory, file or thread could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// A snapshot is damaged and the log no longer holds what it covers.
    #[error(
        "snapshot {} cannot be used and the log before entry {log_starts_at} is gone; \
         remove this server's data and let it join again as a new server, or restore a backup",
        file.display()
    )]
    Snapshot {
        /// Directory of the newest snapshot.
        file: PathBuf,
        /// First entry the log still has.
        log_starts_at: u64,
        /// What is wrong with it.
        #[source]
        cause: io::Error,
    },
    /// The log begins after what the newest snapshot covers.
    #[error(
        "entries {missing_from} to {missing_to} are in neither snapshot nor log; \
         remove this server's data and let it join again as a new server, or restore a backup"
    )]
    Gap {
        /// First entry missing.
        missing_from: u64,
        /// Last entry missing.
        missing_to: u64,
    },
    /// The log lost entries it had reported as durable: voting with it could undo commits.
    #[error(
        "the log ends at entry {last} but entry {committed} was committed: the disk lost durable writes; \
         remove this server's data and let it join again as a new server"
    )]
    LogBehindCommitted {
        /// Last entry present.
        last: u64,
        /// Entry known to be committed.
        committed: u64,
    },
    /// The state machine refused its own snapshot or log.
    #[error("state machine: {0}")]
    StateMachine(#[from] FatalError),
    /// openraft refused to start.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why a proposal has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server is not the leader, or a leader that lost its quorum. Nothing was proposed.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<Peer>,
    },
    /// The entry may or may not be applied, now or later. Only an idempotent proposal may be repeated.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// `proposals_max` proposals are in flight. Nothing was proposed; try again later.
    #[error("{limit} proposals are in flight (raft proposals_max)")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// The body is larger than `proposal_max_bytes`. Nothing was proposed.
    #[error("proposal of {size_bytes} bytes, {limit_bytes} are allowed (raft proposal_max_bytes)")]
    TooLarge {
        /// Size of the body.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Raft has ended on this server. Nothing was proposed.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Stable id of the reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "raft_not_leader",
            Self::Unknown(_) => "raft_outcome_unknown",
            Self::Overloaded { .. } => "raft_overloaded",
            Self::TooLarge { .. } => "raft_proposal_too_large",
            Self::Stopped(_) => "raft_stopped",
        }
    }
}

/// Why no read index was confirmed. Nothing changes on a read; all are safe to retry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// Only the leader can confirm.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<Peer>,
    },
    /// No quorum confirmed this leader in time.
    #[error("leadership was not confirmed in time")]
    Timeout,
    /// Too many reads wait for a round.
    #[error("{limit} reads are waiting for a confirmation of leadership")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// Raft has ended on this server.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

impl ReadIndexError {
    /// Stable id of the reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "raft_not_leader",
            Self::Timeout => "raft_read_unconfirmed",
            Self::Overloaded { .. } => "raft_reads_overloaded",
            Self::Stopped(_) => "raft_stopped",
        }
    }
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Time is up.
    #[error("not there after {after:?}: applied {applied}, waiting for {wanted}")]
    Timeout {
        /// How long it was waited.
        after: Duration,
        /// Last applied index.
        applied: u64,
        /// Index waited for.
        wanted: u64,
    },
    /// Raft has ended on this server.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// Why a cluster was not formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// This server already has a log or has voted: it belongs to a cluster.
    #[error("already part of a cluster")]
    AlreadyInitialized,
    /// The first members do not include this server.
    #[error("this server is not among the first members")]
    NotAMember,
    /// Raft has ended on this server.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// Why the membership or the leader did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader can change it. Nothing changed.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<Peer>,
    },
    /// The change cannot be made as asked. Nothing changed.
    #[error("refused: {0}")]
    Refused(String),
    /// The change may or may not come into force.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Raft has ended on this server.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

impl ChangeError {
    /// Stable id of the reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "raft_not_leader",
            Self::Refused(_) => "raft_change_refused",
            Self::Unknown(_) => "raft_outcome_unknown",
            Self::Stopped(_) => "raft_stopped",
        }
    }
}
