//! What the local table refuses, and in which words.

use super::definition::DefinitionError;

/// Who is at fault, from which the HTTP status follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalErrorKind {
    /// The request can never work as it is: 400.
    Invalid,
    /// It names something that is not registered here: 404.
    NotFound,
    /// Consul answers 500 with this text.
    Failed,
}

/// Why a local operation was refused or only half done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// The definition itself. Nothing changed.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// No such service here. Nothing changed.
    #[error(
        "Unknown service ID {0:?}. Ensure that the service ID is passed, not the service name."
    )]
    UnknownService(String),
    /// No such check here. Nothing changed.
    #[error("Unknown check ID {0:?}. Ensure that the check ID is passed, not the check name.")]
    UnknownCheck(String),
    /// A check names a service that is not registered here. Nothing changed.
    #[error("ServiceID {0:?} does not exist")]
    ServiceMissing(String),
    /// A status was reported to a check that is not a TTL check. Nothing changed.
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    /// The table is full. Nothing changed.
    #[error("this agent already has {count} {what}, its limit: spread them over more hosts")]
    Full {
        /// `services` or `checks`.
        what: &'static str,
        /// The bound.
        count: usize,
    },
    /// The check runs a command, and nothing on this agent allows that. Nothing changed.
    #[error(
        "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true"
    )]
    ScriptsDisabled,
    /// The check runs a command and came by the API, from where this agent takes none. Nothing changed.
    #[error(
        "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
    )]
    RemoteScriptsDisabled,
    /// It took effect, but would be forgotten at the next restart: the disk refused it.
    #[error("registered, but not saved to data_dir, so a restart would forget it: {0}")]
    NotSaved(String),
}

impl LocalError {
    /// Who is at fault.
    #[must_use]
    pub fn kind(&self) -> LocalErrorKind {
        match self {
            Self::Definition(_) | Self::ServiceMissing(_) => LocalErrorKind::Invalid,
            Self::UnknownService(_) | Self::UnknownCheck(_) => LocalErrorKind::NotFound,
            Self::NotTtl(_)
            | Self::Full { .. }
            | Self::ScriptsDisabled
            | Self::RemoteScriptsDisabled
            | Self::NotSaved(_) => LocalErrorKind::Failed,
        }
    }

    /// Stable reason id.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Definition(error) => error.reason(),
            Self::UnknownService(_) => "local.service.unknown",
            Self::UnknownCheck(_) => "local.check.unknown",
            Self::ServiceMissing(_) => "local.check.service_missing",
            Self::NotTtl(_) => "local.check.not_ttl",
            Self::Full { .. } => "local.full",
            Self::ScriptsDisabled => "check.scripts.disabled",
            Self::RemoteScriptsDisabled => "check.scripts.disabled_remote",
            Self::NotSaved(_) => "local.not_saved",
        }
    }
}
