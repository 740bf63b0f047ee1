//! Refusals: kind, stable reason id, and the text users see.
//!
//! Owns: the one way to build a refusal or a verdict.
//! Never: changes the state; a refusal means that nothing was changed.

use weft_proto::v1::{self, RefusalKind, outcome};

/// What a command answered, without its index.
pub(crate) type Verdict = Result<outcome::Result, v1::Refusal>;

pub(crate) fn refusal(
    kind: RefusalKind,
    reason: &'static str,
    message: impl Into<String>,
) -> v1::Refusal {
    v1::Refusal {
        kind: kind.into(),
        reason: reason.to_owned(),
        message: message.into(),
    }
}

pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> v1::Refusal {
    refusal(RefusalKind::Invalid, reason, message)
}

pub(crate) fn not_found(reason: &'static str, message: impl Into<String>) -> v1::Refusal {
    refusal(RefusalKind::NotFound, reason, message)
}

pub(crate) fn conflict(reason: &'static str, message: impl Into<String>) -> v1::Refusal {
    refusal(RefusalKind::Conflict, reason, message)
}

/// What Consul answers with 500 and this text.
pub(crate) fn internal(reason: &'static str, message: impl Into<String>) -> v1::Refusal {
    refusal(RefusalKind::Internal, reason, message)
}

pub(crate) const fn unit() -> outcome::Result {
    outcome::Result::Unit(v1::Unit {})
}

pub(crate) const fn applied(verdict: bool) -> outcome::Result {
    outcome::Result::Applied(verdict)
}
