//! The tasks that run checks.
//!
//! Owns: one task per ttl, http or tcp check, their timing and their time-outs.
//! Never: decides what a result means; it reports to the table.
//! Source: CONSUL.md B.6.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::check_definition::{CheckDefinition, CheckKind, TIMEOUT_DEFAULT};
use super::ids::ById;
use super::inner::Inner;
use super::status::Status;
use super::{http_check, tcp_check};

/// Checks that may be running at one moment; the others wait their turn.
const RUNS_AT_ONCE: usize = 256;

/// The running tasks by check id.
pub(super) struct Runners {
    /// `None` until started: definitions wait in the table.
    runtime: Option<Handle>,
    turns: Arc<Semaphore>,
    tasks: ById<(Arc<CheckDefinition>, AbortHandle)>,
}

impl Runners {
    pub(super) fn new() -> Self {
        Self {
            runtime: None,
            turns: Arc::new(Semaphore::new(RUNS_AT_ONCE)),
            tasks: ById::default(),
        }
    }

    /// From now on checks run, on this runtime.
    pub(super) fn enable(&mut self, runtime: Handle) {
        self.runtime = Some(runtime);
    }

    /// Starts `check`, or leaves it running when it is the same as before. `offset`: wait before
    /// the first run.
    pub(super) fn start(
        &mut self,
        local: &Arc<Inner>,
        check: &Arc<CheckDefinition>,
        offset: Duration,
    ) {
        let Some(runtime) = self.runtime.clone() else {
            return;
        };
        if self
            .tasks
            .get(&check.id)
            .is_some_and(|(running, _)| running == check)
        {
            return;
        }
        self.stop(&check.id);
        if check.kind == CheckKind::Maintenance {
            return;
        }
        let task = Task {
            local: Arc::downgrade(local),
            check: Arc::clone(check),
            turns: Arc::clone(&self.turns),
        };
        let handle = runtime.spawn(task.run(offset)).abort_handle();
        self.tasks.insert(&check.id, (Arc::clone(check), handle));
    }

    pub(super) fn stop(&mut self, id: &str) {
        if let Some((_, task)) = self.tasks.remove(id) {
            task.abort();
        }
    }

    pub(super) fn stop_all(&mut self) {
        for (_, task) in std::mem::take(&mut self.tasks).values() {
            task.abort();
        }
        self.runtime = None;
    }
}

impl Drop for Runners {
    fn drop(&mut self) {
        self.stop_all();
    }
}

struct Task {
    local: Weak<Inner>,
    check: Arc<CheckDefinition>,
    turns: Arc<Semaphore>,
}

impl Task {
    async fn run(self, offset: Duration) {
        match &self.check.kind {
            CheckKind::Ttl { .. } => self.watch_ttl().await,
            CheckKind::Http(_) | CheckKind::Tcp(_) => self.poll(offset).await,
            CheckKind::Maintenance => {}
        }
    }

    /// Sleeps until the deadline the table holds, which reports push back.
    async fn watch_ttl(&self) {
        loop {
            let Some(local) = self.local.upgrade() else {
                return;
            };
            let Some(wait) = local.expire_ttl(&self.check.id) else {
                return;
            };
            drop(local);
            tokio::time::sleep(wait).await;
        }
    }

    async fn poll(&self, offset: Duration) {
        tokio::time::sleep(offset).await;
        loop {
            // Never closed: the semaphore lives as long as its tasks.
            let Ok(turn) = self.turns.acquire().await else {
                return;
            };
            let Some(output_max) = self
                .local
                .upgrade()
                .map(|local| local.output_max(&self.check))
            else {
                return;
            };
            let (status, output) = self.once(output_max).await;
            drop(turn);
            let Some(local) = self.local.upgrade() else {
                return;
            };
            local.report(&self.check, status, &output);
            drop(local);
            tokio::time::sleep(self.check.kind.interval()).await;
        }
    }

    async fn once(&self, output_max: usize) -> (Status, String) {
        let written = self.check.kind.timeout();
        let limit = if written.is_zero() {
            TIMEOUT_DEFAULT
        } else {
            written
        };
        let run = async {
            match &self.check.kind {
                CheckKind::Http(check) => http_check::run(check, output_max).await,
                CheckKind::Tcp(check) => tcp_check::run(check).await,
                CheckKind::Ttl { .. } | CheckKind::Maintenance => (Status::Critical, String::new()),
            }
        };
        match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => (Status::Critical, self.timed_out(limit)),
        }
    }

    fn timed_out(&self, limit: Duration) -> String {
        let limit = weft_proto::duration::format(limit);
        match &self.check.kind {
            CheckKind::Http(check) => format!(
                "Get {:?}: no answer within the timeout of {limit}",
                check.url
            ),
            CheckKind::Tcp(check) => {
                format!("dial tcp {}: i/o timeout after {limit}", check.address)
            }
            CheckKind::Ttl { .. } | CheckKind::Maintenance => String::new(),
        }
    }
}
