//! Who may make this host run commands.
//!
//! Owns: what `enable_script_checks` and `enable_local_script_checks` allow.
//! Never: reads a configuration.
//! Source: Consul docs, "Health checks"; TRUST C5.

use super::{CheckDefinition, LocalError, Source};

/// Whose checks may run commands, on this host or in its containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScriptChecks {
    /// Nobody's.
    #[default]
    Nobody,
    /// Those of configuration files (`enable_local_script_checks`).
    Files,
    /// Those of the HTTP API as well (`enable_script_checks`): whoever may register runs commands.
    Everybody,
}

impl ScriptChecks {
    /// Errors: [`LocalError::ScriptsDisabled`], [`LocalError::RemoteScriptsDisabled`].
    pub(crate) fn admit(self, check: &CheckDefinition, source: Source) -> Result<(), LocalError> {
        match (self, source) {
            _ if !check.kind.runs_commands() => Ok(()),
            (Self::Everybody, _) | (Self::Files, Source::File) => Ok(()),
            (Self::Nobody, Source::File) => Err(LocalError::ScriptsDisabled),
            (Self::Nobody | Self::Files, Source::Api) => Err(LocalError::RemoteScriptsDisabled),
        }
    }
}
