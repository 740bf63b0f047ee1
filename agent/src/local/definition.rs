//! What a user writes to describe a service or a check, parsed once into what cannot be wrong.
//!
//! Owns: Consul's registration form (CONSUL.md A.1, B.6, D.7), its defaults and its refusals.
//! Never: touches the local table, the network or a file.

use serde_json::Value;
use weft_proto::v1;

use super::check_definition::CheckDefinition;
use super::check_parse::parse_check;
use super::fields::UnknownKeys;
use super::service_definition::{self, in_check};

/// Why a definition was refused. Nothing changed; the user must correct the definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A key no field has, where keys are strict.
    #[error("invalid config key {path}{}", nearest.as_ref().map(|n| format!(" (did you mean {n}?)")).unwrap_or_default())]
    UnknownKey {
        /// Dotted path of the key as written.
        path: String,
        /// The known key closest to it, when one is close.
        nearest: Option<String>,
    },
    /// A value of the wrong JSON type.
    #[error("Request decode failed: {path} must be {expected}, not {got}")]
    WrongType {
        /// Dotted path of the field.
        path: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        got: &'static str,
    },
    /// A list or map beyond its bound.
    #[error("{path} has {count} entries, more than the limit of {max}")]
    TooMany {
        /// Dotted path of the field.
        path: String,
        /// How many were given.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// The definition contradicts Consul's rules. The text is Consul's where Consul has one.
    #[error("{message}")]
    Invalid {
        /// Stable reason id, e.g. `service.name.missing`.
        reason: &'static str,
        /// What users see.
        message: String,
    },
}

impl DefinitionError {
    pub(super) fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid {
            reason,
            message: message.into(),
        }
    }

    /// Stable reason id of this refusal.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownKey { .. } => "definition.key.unknown",
            Self::WrongType { .. } => "definition.type",
            Self::TooMany { .. } => "definition.too_many",
            Self::Invalid { reason, .. } => reason,
        }
    }
}

/// A service as registered, with its checks. Ids, names and weights are filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceDefinition {
    /// The record as the catalog will keep it; `id` is never empty, tags keep their order.
    pub service: v1::Service,
    /// Its checks; `service_id` set, ids `service:<id>` or `service:<id>:<n>` unless given.
    pub checks: Vec<CheckDefinition>,
    /// The token to register it with; empty: the agent's own.
    pub token: String,
}

impl ServiceDefinition {
    /// Parses a registration body (`PUT /v1/agent/service/register`) or one `service` block of a
    /// configuration file. Keys match in CamelCase or snake_case, in any case.
    ///
    /// Errors: [`DefinitionError`], whose text is the body of Consul's 400 answer.
    /// Source: Consul HTTP API, "Register Service"; CONSUL.md A.1, D.7.
    pub fn parse(value: &Value, unknown: UnknownKeys) -> Result<Self, DefinitionError> {
        service_definition::parse(value, unknown)
    }
}

impl CheckDefinition {
    /// Parses a stand-alone check (`PUT /v1/agent/check/register`, or a `check` block). The name is
    /// required; the id defaults to it.
    ///
    /// Errors: [`DefinitionError`], whose text is the body of Consul's 400 answer.
    pub fn parse(value: &Value, unknown: UnknownKeys) -> Result<Self, DefinitionError> {
        let mut check = parse_check("", value, unknown).map_err(in_check)?;
        if check.name.is_empty() {
            return Err(DefinitionError::invalid(
                "check.name.missing",
                "Missing check name",
            ));
        }
        if check.id.is_empty() {
            check.id.clone_from(&check.name);
        }
        Ok(check)
    }
}
