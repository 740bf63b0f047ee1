//! Refusals and failures: the one place where HTTP statuses are chosen.
//!
//! Owns: [`Failure`], its text, status and reason id, and how every error of the seams becomes one.
//! Never: logs or counts; the dispatcher does.
//! Source: CONSUL.md A.0, "Error texts that tools match".

use std::borrow::Cow;

use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use weft_catalog::acl::{Access, Resource};
use weft_proto::json::DecodeError;
use weft_proto::v1;

use super::reply::Reply;
use crate::backend::{FireError, OperatorError, ReadError, RelayError, WriteError};
use crate::events::FilterError;
use crate::local::{DefinitionError, LocalError, LocalErrorKind};

/// Why a request is not answered as asked: what the user reads, and a stable id beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) text: Cow<'static, str>,
    pub(super) reason: Cow<'static, str>,
    /// Boxed: few failures have one, and every handler carries the type.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

/// Carries the reason id of a refusal (DESIGN F6).
pub(super) const WEFT_REASON: HeaderName = HeaderName::from_static("x-weft-reason");

impl Failure {
    /// Any status.
    pub(super) fn new(
        status: StatusCode,
        reason: impl Into<Cow<'static, str>>,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            text: text.into(),
            reason: reason.into(),
            header: None,
        }
    }

    /// 400.
    pub(super) fn bad_request(reason: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, text)
    }

    /// 404.
    pub(super) fn not_found(reason: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, text)
    }

    /// 500.
    pub(super) fn internal(reason: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason, text)
    }

    /// 429 with the seconds to wait, for a bound that the named knob sets.
    pub(super) fn too_many(reason: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        let mut failure = Self::new(StatusCode::TOO_MANY_REQUESTS, reason, text);
        failure.header = Some(Box::new((RETRY_AFTER, HeaderValue::from_static("1"))));
        failure
    }

    /// The same for another reason.
    pub(super) fn because(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = reason.into();
        self
    }

    /// 405 with what is allowed.
    pub(super) fn method(method: &Method, allowed: &str) -> Self {
        let text = format!("method {method} not allowed");
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "http.method", text);
        failure.header = HeaderValue::from_str(allowed)
            .ok()
            .map(|value| Box::new((ALLOW, value)));
        failure
    }

    /// 413: the body has more bytes than it may.
    pub(super) fn too_large(size: u64, max: u64, knob: &str) -> Self {
        let text = format!(
            "Request body({size} bytes) too large, max size: {max} bytes. See {knob} in the agent's configuration."
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "http.body.too_large", text)
    }

    /// 403: the authorizer said no.
    pub(super) fn denied(
        reason: &'static str,
        resource: Resource,
        name: &[u8],
        access: Access,
    ) -> Self {
        let (resource, access) = (resource.as_str(), access.as_str());
        let name = String::from_utf8_lossy(name);
        let text = format!(
            "Permission denied: anonymous token lacks permission '{resource}:{access}' on \"{name}\""
        );
        Self::new(StatusCode::FORBIDDEN, reason, text)
    }

    /// The answer: the text without a newline, as Consul sends it.
    pub(super) fn into_reply(self) -> Reply {
        let reason =
            HeaderValue::from_str(&self.reason).unwrap_or(HeaderValue::from_static("http.failed"));
        let body = match self.text {
            Cow::Borrowed(text) => bytes::Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        let mut reply = Reply::text(body)
            .status(self.status)
            .with(WEFT_REASON, reason);
        if let Some((name, value)) = self.header.map(|header| *header) {
            reply.headers.insert(name, value);
        }
        reply
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let (status, reason) = match &error {
            WriteError::NoLeader => (StatusCode::INTERNAL_SERVER_ERROR, "raft.no_leader"),
            WriteError::Unknown(_) => (StatusCode::INTERNAL_SERVER_ERROR, "raft.outcome_unknown"),
            WriteError::DiskFull(_) => (StatusCode::INTERNAL_SERVER_ERROR, "raft.disk_full"),
            WriteError::Overloaded(_) => (StatusCode::TOO_MANY_REQUESTS, "raft.overloaded"),
            WriteError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "raft.proposal_too_large"),
            WriteError::Denied(_) => (StatusCode::FORBIDDEN, "acl.denied"),
            WriteError::Stopped(_) => (StatusCode::INTERNAL_SERVER_ERROR, "raft.stopped"),
            WriteError::Unreachable(_) => (StatusCode::INTERNAL_SERVER_ERROR, "rpc.unreachable"),
        };
        Self::new(status, reason, error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let reason = match &error {
            ReadError::NoLeader => "raft.no_leader",
            ReadError::Timeout(_) => "raft.read_timeout",
            ReadError::Stopped(_) => "raft.stopped",
            ReadError::Unreachable(_) => "rpc.unreachable",
        };
        Self::internal(reason, error.to_string())
    }
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        let text = error.to_string();
        match error {
            RelayError::NoServers => Self::internal("rpc.no_servers", text),
            RelayError::NotSent(_) => Self::internal("rpc.unreachable", text),
            RelayError::Unknown(_) => Self::internal("rpc.outcome_unknown", text),
            RelayError::Unanswered(_) => Self::internal("rpc.unanswered", text),
            RelayError::TooMany(_) => Self::too_many("rpc.too_many_calls", text),
            RelayError::Body => Self::bad_request("http.body", text),
        }
    }
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        let (status, reason) = match &error {
            OperatorError::NoLeader => (StatusCode::INTERNAL_SERVER_ERROR, "raft.no_leader"),
            OperatorError::Invalid(_) => (StatusCode::BAD_REQUEST, "operator.invalid"),
            OperatorError::BadSnapshot(_) => (StatusCode::INTERNAL_SERVER_ERROR, "snapshot.bad"),
            OperatorError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "operator.failed"),
        };
        Self::new(status, reason, error.to_string())
    }
}

impl From<FireError> for Failure {
    fn from(error: FireError) -> Self {
        let text = error.to_string();
        match error {
            FireError::TooLarge(_) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "gossip.event_too_large",
                text,
            ),
            FireError::Waiting(_) => Self::too_many("gossip.events_waiting", text),
            FireError::Stopped(_) => Self::internal("gossip.stopped", text),
        }
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        let reason = match error {
            FilterError::TagAlone => "event.tag_alone",
            FilterError::Pattern { .. } => "event.filter",
        };
        Self::bad_request(reason, error.to_string())
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(
            "http.body.decode",
            format!("Request decode failed: {error}"),
        )
    }
}

impl From<DefinitionError> for Failure {
    fn from(error: DefinitionError) -> Self {
        Self::bad_request(error.reason(), error.to_string())
    }
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        let status = match error.kind() {
            LocalErrorKind::Invalid => StatusCode::BAD_REQUEST,
            LocalErrorKind::NotFound => StatusCode::NOT_FOUND,
            LocalErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.reason(), error.to_string())
    }
}

impl From<v1::Refusal> for Failure {
    fn from(refusal: v1::Refusal) -> Self {
        let status = match refusal.kind() {
            v1::RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            v1::RefusalKind::NotFound => StatusCode::NOT_FOUND,
            v1::RefusalKind::Conflict => StatusCode::CONFLICT,
            v1::RefusalKind::Unspecified | v1::RefusalKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, refusal.reason, refusal.message)
    }
}
