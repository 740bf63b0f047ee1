//! Why a call brought no answer.

/// Says whether the call may have been executed, and who can act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Gossip shows no server of this datacenter. Nothing was sent.
    #[error("No known Consul servers")]
    NoServers,
    /// No server took the call within `performance.rpc_hold_timeout`. Nothing was executed; safe to retry.
    #[error("rpc error getting client: {0}")]
    NotSent(String),
    /// It was sent, and no answer came. It may have been executed.
    #[error(
        "the outcome of this call is not known ({0}): it may or may not have been executed; read before retrying"
    )]
    Unknown(String),
    /// It was sent, perhaps more than once, and no answer came. It changes nothing; safe to retry.
    #[error("rpc error making call: {0}")]
    Unanswered(String),
    /// Too many calls are on their way. Nothing was sent; retry later.
    #[error(
        "too many calls to the servers at once, limit {0}: raise limits.rpc_max_calls or ask less"
    )]
    TooMany(usize),
    /// The one who asks did not send the body it announced. Nothing is known of what was executed.
    #[error("the request body ended early")]
    Body,
}

impl CallError {
    /// The label of the metric.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NoServers => "no_servers",
            Self::NotSent(_) => "not_sent",
            Self::Unknown(_) => "unknown",
            Self::Unanswered(_) => "unanswered",
            Self::TooMany(_) => "too_many",
            Self::Body => "body",
        }
    }
}
