//! The tasks that run checks.
//!
//! Owns: one task per check that somebody must run, their timing, their time-outs, and how many run
//! at one moment.
//! Never: decides what a result means; it reports to the table.
//! Source: CONSUL.md B.6.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::check_definition::{CheckDefinition, CheckKind};
use super::ids::ById;
use super::inner::Inner;
use super::reach::Reach;
use super::run_result::RunResult;
use super::status::Status;
use super::{
    alias_check, docker_check, grpc_check, h2ping_check, http_check, os_service_check,
    script_check, tcp_check, udp_check,
};
use crate::backend::Backend;

/// Checks over the network that may be running at one moment; the others wait their turn.
const RUNS_AT_ONCE: usize = 1_024;
/// Processes that checks may have running at one moment, apart from the others, so that scripts
/// which hang hold up nothing but scripts.
const PROCESSES_AT_ONCE: usize = 64;

/// The running tasks by check id.
pub(super) struct Runners {
    /// `None` until started: definitions wait in the table.
    runtime: Option<Handle>,
    /// For what mirrors the catalog; `None` when checks run alone.
    backend: Option<Arc<dyn Backend>>,
    turns: Arc<Semaphore>,
    process_turns: Arc<Semaphore>,
    tasks: ById<(Arc<CheckDefinition>, AbortHandle)>,
}

impl Runners {
    pub(super) fn new() -> Self {
        Self {
            runtime: None,
            backend: None,
            turns: Arc::new(Semaphore::new(RUNS_AT_ONCE)),
            process_turns: Arc::new(Semaphore::new(PROCESSES_AT_ONCE)),
            tasks: ById::default(),
        }
    }

    /// From now on checks run, on this runtime.
    pub(super) fn enable(&mut self, runtime: Handle, backend: Option<Arc<dyn Backend>>) {
        self.runtime = Some(runtime);
        self.backend = backend;
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
            backend: self.backend.clone(),
            turns: Arc::clone(if check.kind.starts_process() {
                &self.process_turns
            } else {
                &self.turns
            }),
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
        self.backend = None;
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
    backend: Option<Arc<dyn Backend>>,
    turns: Arc<Semaphore>,
}

impl Task {
    async fn run(self, offset: Duration) {
        match &self.check.kind {
            CheckKind::Ttl { .. } => self.watch_ttl().await,
            CheckKind::Alias(alias) => {
                let alias = alias.clone();
                alias_check::follow(self.local, self.check, alias, self.backend).await;
            }
            CheckKind::Maintenance => {}
            _ => self.poll(offset).await,
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
            let Some(waits) = self
                .local
                .upgrade()
                .map(|local| local.metrics.check_waits())
            else {
                return;
            };
            // Never closed: the semaphore lives as long as its tasks.
            let Ok(turn) = self.turns.clone().acquire_owned().await else {
                return;
            };
            drop(waits);
            let Some(terms) = self.local.upgrade().map(|local| Terms {
                output_max: local.output_max(&self.check),
                docker_host: local.config.docker_host.clone(),
                reach: local.config.reach.clone(),
                began: local.clock.monotonic(),
            }) else {
                return;
            };
            let result = self.once(&terms, turn).await;
            let Some(local) = self.local.upgrade() else {
                return;
            };
            let took = local.clock.monotonic().saturating_sub(terms.began);
            local.report(&self.check, &result, took);
            drop(local);
            tokio::time::sleep(self.check.kind.interval()).await;
        }
    }

    /// `turn` is given back when the run is over, and with a process not before it is gone.
    async fn once(&self, terms: &Terms, turn: OwnedSemaphorePermit) -> RunResult {
        let limit = self.check.kind.time_limit();
        let output_max = terms.output_max;
        // These know better than the clock what the end of their time means.
        match &self.check.kind {
            CheckKind::Script(check) => {
                return script_check::run(check, limit, output_max, turn).await;
            }
            CheckKind::Udp(check) => {
                return udp_check::run(check, limit, &terms.reach).await.into();
            }
            CheckKind::OsService(check) => {
                let program = os_service_check::SYSTEMCTL;
                return os_service_check::run(check, program, limit, output_max, turn).await;
            }
            _ => {}
        }
        match tokio::time::timeout(limit, self.ask(terms)).await {
            Ok((status, output)) => RunResult::of(status, output),
            Err(_) => RunResult::timed_out(self.timed_out(limit)),
        }
    }

    async fn ask(&self, terms: &Terms) -> (Status, String) {
        match &self.check.kind {
            CheckKind::Http(check) => http_check::run(check, terms.output_max, &terms.reach).await,
            CheckKind::Tcp(check) => tcp_check::run(check, &terms.reach).await,
            CheckKind::Grpc(check) => grpc_check::run(check, &terms.reach).await,
            CheckKind::H2Ping(check) => h2ping_check::run(check, &terms.reach).await,
            CheckKind::Docker(check) => {
                docker_check::run(check, &terms.docker_host, terms.output_max).await
            }
            CheckKind::Script(_)
            | CheckKind::Udp(_)
            | CheckKind::OsService(_)
            | CheckKind::Ttl { .. }
            | CheckKind::Alias(_)
            | CheckKind::Maintenance => unreachable!("not asked over a connection"),
        }
    }

    fn timed_out(&self, limit: Duration) -> String {
        let limit = weft_proto::duration::format(limit);
        let late = format!("no answer within the timeout of {limit}");
        match &self.check.kind {
            CheckKind::Http(check) => format!("Get {:?}: {late}", check.url),
            CheckKind::Tcp(check) => {
                format!("dial tcp {}: i/o timeout after {limit}", check.address)
            }
            CheckKind::Grpc(check) => format!("gRPC check {}: {late}", check.target),
            CheckKind::H2Ping(check) => format!("HTTP2 ping of {}: {late}", check.address),
            CheckKind::Docker(check) => format!("docker exec in {}: {late}", check.container),
            _ => late,
        }
    }
}

/// What a run is given by the agent.
struct Terms {
    output_max: usize,
    docker_host: String,
    reach: Reach,
    began: Duration,
}
