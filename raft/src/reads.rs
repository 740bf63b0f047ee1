//! Shared rounds of leadership confirmation (Raft dissertation §6.4, "ReadIndex").
//!
//! Owns: who waits for which round.
//! Never: serves a read from a round that began before the read arrived.

use std::time::Duration;

use openraft::errors::{ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::ReadIndexError;
use crate::metrics::RaftMetrics;
use crate::net::Raft;
use crate::peer::Peer;
use crate::types::Types;

/// Reads waiting for a round, at most.
pub(crate) const WAITING_MAX: usize = 65_536;

type Answer = Result<u64, ReadIndexError>;

/// The asking end.
#[derive(Clone)]
pub(crate) struct Reads(mpsc::Sender<oneshot::Sender<Answer>>);

impl Reads {
    /// A queue, and the end that [`serve`] works off.
    pub(crate) fn new() -> (Self, mpsc::Receiver<oneshot::Sender<Answer>>) {
        let (to, from) = mpsc::channel(WAITING_MAX);
        (Self(to), from)
    }

    /// Waits for a round that begins after this call, for at most `limit`.
    pub(crate) async fn index(&self, limit: Duration) -> Answer {
        let (to, answer) = oneshot::channel();
        self.0.try_send(to).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReadIndexError::Overloaded { limit: WAITING_MAX },
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        match timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(ReadIndexError::Timeout),
        }
    }
}

/// Runs one round after the other; whoever arrives during a round waits for the next.
pub(crate) async fn serve(
    mut waiting: mpsc::Receiver<oneshot::Sender<Answer>>,
    raft: Raft,
    metrics: std::sync::Arc<RaftMetrics>,
    patience: Duration,
) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, WAITING_MAX).await > 0 {
        metrics.read_round(round.len());
        let answer = confirm(&raft, patience).await;
        for reader in round.drain(..) {
            // A reader that went away needs no answer.
            reader.send(answer.clone()).ok();
        }
    }
}

async fn confirm(raft: &Raft, patience: Duration) -> Answer {
    let policy = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(patience);
    match timeout(patience, raft.get_read_log_id(policy)).await {
        Err(_) => Err(ReadIndexError::Timeout),
        Ok(Ok((read, _))) => Ok(read.index()),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
            Err(ReadIndexError::NotLeader {
                leader: leader_of(forward),
            })
        }
        Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
            Err(ReadIndexError::Timeout)
        }
        Ok(Err(RaftError::Fatal(fatal))) => Err(ReadIndexError::Stopped(fatal.to_string())),
    }
}

/// Where a request is to go, as far as openraft knows.
pub(crate) fn leader_of(forward: ForwardToLeader<Types>) -> Option<Peer> {
    Some(Peer::new(forward.leader_id?, forward.leader_node?))
}

fn stopped() -> ReadIndexError {
    ReadIndexError::Stopped("shut down".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_does_not_wait_for_a_runtime_that_stands_still() {
        let (reads, waiting) = Reads::new();
        let answer = reads.index(Duration::from_millis(5)).await;
        assert_eq!(answer, Err(ReadIndexError::Timeout));
        drop(waiting);
        let answer = reads.index(Duration::from_secs(60)).await;
        assert_eq!(answer, Err(stopped()));
    }
}
