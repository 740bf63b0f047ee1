//! Read consistency: linearizable by ReadIndex from any server.
//!
//! Owns: rounds shared by the reads that wait, the hold time without a leader.
//! Never: trusts a lease: a paused guest's clock may stop (etcd #20418).
//! Source: Raft dissertation §6.4.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::handle::ReadFailure;

/// What a read's answer says about its freshness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMeta {
    /// A leader is known.
    pub known_leader: bool,
    /// Since the leader was heard; zero on the leader itself, this server's uptime when it never was.
    pub last_contact: Duration,
}

/// Runs one ReadIndex exchange; answers the log index to wait for.
pub(crate) type RunRound =
    Arc<dyn Fn() -> BoxFuture<'static, Result<u64, ReadFailure>> + Send + Sync>;

/// Merges reads that arrive while a round is in flight into the next one.
///
/// A round serves only the reads that were waiting before it began: serving a later one could
/// hand it an index from before a write that it must see.
pub(crate) struct Rounds {
    inner: Arc<Mutex<Waiting>>,
    run: RunRound,
}

#[derive(Default)]
struct Waiting {
    next: Vec<oneshot::Sender<Result<u64, ReadFailure>>>,
    in_flight: bool,
}

/// Reads that may wait for one round; beyond it they are refused.
const WAITING_MAX: usize = 16_384;

impl Rounds {
    pub(crate) fn new(run: RunRound) -> Self {
        Self {
            inner: Arc::default(),
            run,
        }
    }

    /// Waits for a round that begins after this call, for at most `limit`.
    ///
    /// Errors: [`ReadFailure::NoLeader`] when the leader has not answered by then.
    pub(crate) async fn index(&self, limit: Duration) -> Result<u64, ReadFailure> {
        let (tx, rx) = oneshot::channel();
        let start = {
            let mut waiting = self.inner.lock();
            if waiting.next.len() >= WAITING_MAX {
                return Err(ReadFailure::Timeout(format!(
                    "{WAITING_MAX} reads already wait for the leader"
                )));
            }
            waiting.next.push(tx);
            !std::mem::replace(&mut waiting.in_flight, true)
        };
        if start {
            tokio::spawn(drive(self.inner.clone(), self.run.clone()));
        }
        match tokio::time::timeout(limit, rx).await {
            Ok(answer) => answer.unwrap_or_else(|_| {
                Err(ReadFailure::Stopped("the server is shutting down".into()))
            }),
            Err(_) => Err(ReadFailure::NoLeader),
        }
    }
}

async fn drive(inner: Arc<Mutex<Waiting>>, run: RunRound) {
    loop {
        let served = {
            let mut waiting = inner.lock();
            if waiting.next.is_empty() {
                waiting.in_flight = false;
                return;
            }
            std::mem::take(&mut waiting.next)
        };
        let answer = run().await;
        for reader in served {
            // A reader that went away is no concern of the others.
            let _ = reader.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_read_does_not_wait_longer_than_it_may() {
        let rounds = Rounds::new(Arc::new(|| Box::pin(std::future::pending())));
        let answer = rounds.index(Duration::from_millis(5)).await;
        assert_eq!(answer, Err(ReadFailure::NoLeader));
    }

    #[tokio::test]
    async fn a_round_serves_only_those_who_came_before_it() {
        let begun = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let run: RunRound = {
            let (begun, gate) = (begun.clone(), gate.clone());
            Arc::new(move || {
                let round = begun.fetch_add(1, Ordering::SeqCst) + 1;
                let gate = gate.clone();
                Box::pin(async move {
                    gate.acquire().await.expect("never closed").forget();
                    Ok(round)
                })
            })
        };
        let rounds = Arc::new(Rounds::new(run));
        let ask = || {
            let rounds = rounds.clone();
            tokio::spawn(async move { rounds.index(Duration::from_secs(60)).await })
        };
        let first = ask();
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..10).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), Ok(1));
        for reader in late {
            assert_eq!(
                reader.await.unwrap(),
                Ok(2),
                "a read that arrived during round 1 must not be served by it"
            );
        }
    }
}
