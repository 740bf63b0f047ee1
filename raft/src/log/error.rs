//! What can be wrong with a log on disk, said so that an operator can act.
//!
//! Owns: the wording, the remedy and the stable reason id of every log refusal.
//! Never: decides; it only reports what a store found.

use std::io;

use super::Position;

/// What to do about a log that cannot be trusted any more.
const REMEDY: &str = "this server must not vote with it: stop it, move the raft folder away and start \
                      again so that it rejoins as a new learner; the other servers keep the data";

/// Why a log was not opened, read or written.
///
/// Travels inside an [`io::Error`] through [`super::LogStore`]; get it back
/// with [`LogError::of`].
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process holds the folder. Nothing changed.
    #[error(
        "the log folder is in use by {}: {file} is locked; stop that process or choose another data_dir",
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The lock file.
        file: String,
        /// Process id found in it.
        holder: Option<u32>,
    },
    /// The operating system refused an operation while the log was opened. Nothing is lost by that.
    #[error("cannot {operation} {file}")]
    Io {
        /// File or folder concerned.
        file: String,
        /// Verb: `open`, `read`, `create`, …
        operation: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Bytes that were once durable do not check out. Nothing was changed on disk.
    #[error("{file} is corrupt at offset {offset}: {what}; {REMEDY}")]
    Corrupt {
        /// The file.
        file: String,
        /// Byte offset of the first thing that is wrong.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file that must be there is not. Nothing was changed on disk.
    #[error("{file} is missing (offset 0): {what}; {REMEDY}")]
    Missing {
        /// The file expected.
        file: String,
        /// How its absence shows.
        what: String,
    },
    /// The log ends before what it once recorded as committed. Nothing was changed on disk.
    #[error(
        "{file} ends at offset {offset} with entry {}, before entry {} which was recorded as committed: \
         this server refuses to vote; {REMEDY}",
        last.map_or_else(|| "none".to_owned(), |p| p.index.to_string()),
        committed.index
    )]
    TailLost {
        /// Last file of the log.
        file: String,
        /// Where its valid records end.
        offset: u64,
        /// Last entry found.
        last: Option<Position>,
        /// What was recorded as committed.
        committed: Position,
    },
    /// Written by a newer version of this program. Nothing was changed on disk.
    #[error(
        "{file} has log format {found} (offset 8), this binary reads up to {supported}; start the newer binary"
    )]
    Version {
        /// The file.
        file: String,
        /// Its format number.
        found: u32,
        /// The highest one known here.
        supported: u32,
    },
    /// An earlier write or fsync failed; the store takes no more calls.
    #[error(
        "the log stopped after a failed write, nothing is retried: {cause}; check the disk, then restart this server"
    )]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// The range asked for begins before the first kept entry. Nothing changed.
    #[error("log entry {index} is purged, the first one kept is {first}; a snapshot covers it")]
    Purged {
        /// First index asked for.
        index: u64,
        /// First index kept.
        first: u64,
    },
    /// The caller broke the contract of an append. Nothing changed.
    #[error("log entry {index} does not follow the last one, expected {expected}")]
    Gap {
        /// Index offered.
        index: u64,
        /// Index that must come next.
        expected: u64,
    },
    /// A body above the limit of one record. Nothing changed.
    #[error(
        "a log entry of {len} bytes exceeds the limit of {max} bytes (log::wal::MAX_BODY_BYTES)"
    )]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
}

impl LogError {
    /// Stable id of this refusal, for logs, metrics and `explain`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "raft-log-locked",
            Self::Io { .. } => "raft-log-io",
            Self::Corrupt { .. } => "raft-log-corrupt",
            Self::Missing { .. } => "raft-log-missing-file",
            Self::TailLost { .. } => "raft-log-tail-lost",
            Self::Version { .. } => "raft-log-version",
            Self::Poisoned { .. } => "raft-log-poisoned",
            Self::Purged { .. } => "raft-log-purged",
            Self::Gap { .. } => "raft-log-gap",
            Self::TooLarge { .. } => "raft-log-entry-too-large",
        }
    }

    /// True when this server must rejoin as a new learner: its log lost something it had promised.
    #[must_use]
    pub fn must_rejoin(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. } | Self::Missing { .. } | Self::TailLost { .. }
        )
    }

    /// The `LogError` inside an `io::Error`, if there is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Locked { .. } => io::ErrorKind::ResourceBusy,
            LogError::Io { source, .. } => source.kind(),
            LogError::Corrupt { .. } | LogError::Missing { .. } | LogError::TailLost { .. } => {
                io::ErrorKind::InvalidData
            }
            LogError::Version { .. } => io::ErrorKind::Unsupported,
            LogError::Poisoned { .. } => io::ErrorKind::Other,
            LogError::Purged { .. } => io::ErrorKind::NotFound,
            LogError::Gap { .. } | LogError::TooLarge { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
