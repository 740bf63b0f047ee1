//! The task that keeps the catalog in agreement, and the reaper.
//!
//! Owns: when a comparison runs, how writes are sent, and what a failure delays. A change is sent at once,
//! beside those under way; only a full comparison waits until none is.
//! Never: decides what to write; that is [`super::sync`] and [`super::plan`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_catalog::Trace;
use weft_proto::v1;
use weft_proto::v1::outcome::Result as Verdict;

use super::handle::Local;
use super::inner::Inner;
use super::metrics::SyncKind;
use super::plan::{self, Busy, Sent, WRITES_AT_ONCE, Write};
use super::sync::{self, Memory, Remote};
use crate::backend::{Backend, Consistency, WriteError};

/// Longest wait after a failed round (CONSUL.md B.7).
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Shortest wait after a failed round: servers that come back are noticed within 3 s.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// How often services that are critical for too long are looked for.
const REAP_EVERY: Duration = Duration::from_secs(30);
/// Nodes up to which the full comparison runs every `sync_interval`.
const SCALE_NODES: usize = 128;

/// Checks and anti-entropy of a started [`Local`]; ends them when told or dropped.
pub struct Running {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    local: Local,
}

impl Running {
    /// Ends checks and anti-entropy and waits for the writes in flight.
    pub async fn stop(mut self) {
        self.local.inner.runners.lock().stop_all();
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the local table failed");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.local.inner.runners.lock().stop_all();
        self.stop.send_replace(true);
    }
}

impl Local {
    /// Starts running checks and keeping the catalog in agreement, on the current tokio runtime.
    #[must_use]
    pub fn start(&self, backend: Arc<dyn Backend>) -> Running {
        self.start_checks(Some(backend.clone()));
        let (stop, stopped) = watch::channel(false);
        let driver = Driver::new(Arc::clone(&self.inner), backend);
        let reaper = reap(Arc::clone(&self.inner), stopped.clone());
        let tasks = vec![tokio::spawn(driver.run(stopped)), tokio::spawn(reaper)];
        Running {
            stop,
            tasks,
            local: self.clone(),
        }
    }

    /// Runs checks. Without a backend nothing mirrors the catalog.
    pub(super) fn start_checks(&self, backend: Option<Arc<dyn Backend>>) {
        let table = self.inner.table.lock();
        self.inner
            .runners
            .lock()
            .enable(tokio::runtime::Handle::current(), backend);
        for id in table.checks.keys() {
            self.inner.run_check(&table, id);
        }
    }
}

async fn reap(local: Arc<Inner>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(REAP_EVERY) => {}
        }
        let overdue = local.table.lock().overdue_services(local.clock.monotonic());
        for (service, check) in overdue {
            if local.remove_service(&service).is_ok() {
                local.metrics.reaped();
                tracing::info!(service.id = %service, check.id = %check, "deregistered a service that was critical for too long");
            }
        }
    }
}

struct Driver {
    local: Arc<Inner>,
    backend: Arc<dyn Backend>,
    retry: Duration,
    batch_checks: bool,
    next_full: Duration,
    /// Writes under way, and what they carry.
    flight: FuturesUnordered<BoxFuture<'static, Landed>>,
    busy: Busy,
    /// What was planned together and is not all over, by number.
    rounds: BTreeMap<u64, Round>,
    round: u64,
    /// A write failed: nothing more is sent before something changes or the next full comparison.
    failing: bool,
}

/// What one plan sent.
struct Round {
    kind: SyncKind,
    started: Duration,
    left: usize,
    ok: bool,
}

/// A write and what came of it.
struct Landed {
    round: u64,
    sent: Sent,
    result: Result<v1::Outcome, WriteError>,
}

impl Driver {
    fn new(local: Arc<Inner>, backend: Arc<dyn Backend>) -> Self {
        Self {
            next_full: local.clock.monotonic(),
            local,
            backend,
            retry: RETRY_MIN,
            batch_checks: true,
            flight: FuturesUnordered::new(),
            busy: Busy::default(),
            rounds: BTreeMap::new(),
            round: 0,
            failing: false,
        }
    }

    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let due = self.send().await;
            let now = self.local.clock.monotonic();
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                Some(landed) = self.flight.next() => {
                    self.land(landed);
                    // Those that are over as well, so that they are followed by one plan.
                    while let Some(Some(landed)) = self.flight.next().now_or_never() {
                        self.land(landed);
                    }
                }
                () = self.local.dirty.notified() => self.failing = false,
                () = tokio::time::sleep(due.saturating_sub(now)) => {}
            }
        }
        // A stop does not cut a write off: it waits for those under way, which are bounded in time.
        while let Some(landed) = self.flight.next().await {
            self.land(landed);
        }
    }

    /// Compares when that is due, and sends what is to be sent; answers when to look again.
    async fn send(&mut self) -> Duration {
        let now = self.local.clock.monotonic();
        let output_due = self.local.table.lock().release_outputs(now);
        let mut kind = SyncKind::Partial;
        if now >= self.next_full {
            // A comparison wants to see what was sent: it waits until that is over.
            if self.busy.writes() > 0 {
                return now + RETRY_MAX;
            }
            kind = SyncKind::Full;
            self.failing = false;
            self.plan_next_full(now);
            if !self.compare().await {
                let took = self.local.clock.monotonic().saturating_sub(now);
                self.local.metrics.synced(kind, took, false);
                self.failed();
                return self.next_full;
            }
        }
        let due = output_due.map_or(self.next_full, |due| due.min(self.next_full));
        // Many at once, not one for each that is over.
        if self.failing || self.busy.writes() > WRITES_AT_ONCE / 2 {
            return due;
        }
        let writes = self.plan();
        if writes.is_empty() {
            self.batch_checks |= self.busy.writes() == 0;
            if kind == SyncKind::Full {
                self.finish(&Round::new(kind, now, 0));
            }
            return due;
        }
        self.round += 1;
        let round = Round::new(kind, now, writes.len());
        self.rounds.insert(self.round, round);
        for write in writes {
            self.start(write);
        }
        due
    }

    fn plan(&mut self) -> Vec<Write> {
        let mut table = self.local.table.lock();
        if sync::wants_tags(&table) {
            let remote = remote(&*self.backend, &table.node.name);
            sync::adopt_tags(&mut table, &remote, true);
        }
        let most = WRITES_AT_ONCE - self.busy.writes();
        plan::plan(&mut table, &mut self.busy, self.batch_checks, most)
    }

    fn start(&mut self, write: Write) {
        let (backend, round) = (Arc::clone(&self.backend), self.round);
        let local = Arc::clone(&self.local);
        let Write { command, sent } = write;
        let landing = async move {
            let started = local.clock.monotonic();
            let result = backend.write(command).await;
            let took = local.clock.monotonic().saturating_sub(started);
            local.pace.wrote(result.is_ok().then_some(took));
            Landed {
                round,
                sent,
                result,
            }
        };
        self.flight.push(Box::pin(landing));
    }

    /// What came of a write.
    fn land(&mut self, landed: Landed) {
        let Landed {
            round: number,
            sent,
            result,
        } = landed;
        self.local.metrics.wrote();
        self.busy.release(&sent);
        let ok = self.judge(&sent, result.map(|outcome| outcome.result));
        if !ok {
            self.failed();
        }
        let Some(round) = self.rounds.get_mut(&number) else {
            return;
        };
        round.ok &= ok;
        round.left -= 1;
        if round.left == 0
            && let Some(round) = self.rounds.remove(&number)
        {
            self.finish(&round);
        }
    }

    /// Marks what the write carried; answers whether all is well.
    fn judge(&mut self, sent: &Sent, result: Result<Option<Verdict>, WriteError>) -> bool {
        let mut table = self.local.table.lock();
        match result {
            Ok(Some(Verdict::Refusal(refusal))) if sent.carries.len() > 1 && self.batch_checks => {
                tracing::debug!(reason = %refusal.reason, error = %refusal.message, "a batch was refused; sending it one by one");
                self.batch_checks = false;
                plan::again(&mut table, sent);
                true
            }
            Ok(Some(Verdict::Refusal(refusal))) => {
                self.local.metrics.refused();
                tracing::warn!(reason = %refusal.reason, error = %refusal.message, entries = ?sent.carries, "the catalog refused a registration of this host");
                table.node_in_sync = false;
                plan::block(&mut table, sent);
                false
            }
            Ok(_) => {
                plan::confirm(&mut table, sent);
                true
            }
            Err(WriteError::Denied(error)) => {
                self.local.metrics.refused();
                tracing::warn!(%error, entries = ?sent.carries, reason = "acl.denied", "a registration of this host was denied");
                plan::block(&mut table, sent);
                false
            }
            Err(error) => {
                tracing::warn!(%error, "cannot bring this host's registrations into the catalog; will retry");
                plan::let_go(&mut table, sent);
                plan::again(&mut table, sent);
                self.failing = true;
                false
            }
        }
    }

    fn finish(&mut self, round: &Round) {
        let took = self.local.clock.monotonic().saturating_sub(round.started);
        self.local.metrics.synced(round.kind, took, round.ok);
        if round.ok {
            self.retry = RETRY_MIN;
        }
    }

    /// The next full comparison comes sooner, and the one after it later.
    fn failed(&mut self) {
        let now = self.local.clock.monotonic();
        // One for all that fail together.
        if self.next_full > now + self.retry * 2 {
            self.next_full = now + self.retry + self.local.jitter(self.retry);
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
    }

    fn plan_next_full(&mut self, now: Duration) {
        let interval = self.local.config.sync_interval * scale(self.backend.nodes());
        self.next_full = now + interval + self.local.jitter(interval);
    }

    async fn compare(&mut self) -> bool {
        if let Err(error) = self.backend.barrier(Consistency::Default).await {
            tracing::warn!(%error, "cannot compare this host's registrations with the catalog; will retry");
            return false;
        }
        let mut table = self.local.table.lock();
        let remote = remote(&*self.backend, &table.node.name);
        let mut memory = self.local.memory.lock();
        let was_lost = *memory == Memory::Lost;
        if sync::is_foreign(&table, &remote) {
            tracing::error!(
                node.name = %table.node.name,
                node.id = %table.node.id,
                reason = "local.name_taken",
                "the catalog has this node's name under another machine's id; give this node a node_name of its own, or wait until the other one is gone"
            );
        }
        sync::compare(&mut table, &remote, &mut memory);
        let (held, whole) = (memory.held(), *memory == Memory::Whole);
        if held == 0 && !whole && !sync::is_foreign(&table, &remote) {
            *memory = Memory::Whole;
            self.local.mark_store();
        } else if was_lost && held > 0 {
            tracing::warn!(
                held,
                reason = "local.amnesia",
                "this host lost its saved registrations; catalog entries it does not know are kept until they are registered again, deregistered by id, or confirmed"
            );
        }
        true
    }
}

impl Round {
    fn new(kind: SyncKind, started: Duration, left: usize) -> Self {
        Self {
            kind,
            started,
            left,
            ok: true,
        }
    }
}

/// What the newest published state has for `node`.
fn remote(backend: &dyn Backend, node: &str) -> Remote {
    let state = backend.state();
    let trace = Trace::off();
    let reader = state.read(&trace);
    Remote {
        node: reader.node(node).rows.cloned(),
        services: reader
            .node_services(node)
            .rows
            .into_iter()
            .map(|row| (row.id.clone(), Arc::clone(row)))
            .collect(),
        checks: reader
            .checks_of_node(node)
            .rows
            .into_iter()
            .map(|row| (row.id.clone(), Arc::clone(row)))
            .collect(),
    }
}

/// 1 up to 128 nodes, then one more for each doubling.
fn scale(nodes: usize) -> u32 {
    let times = nodes.div_ceil(SCALE_NODES).max(1);
    1 + times.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn the_full_sync_slows_with_each_doubling() {
        for (nodes, expected) in [
            (0, 1),
            (1, 1),
            (128, 1),
            (129, 2),
            (256, 2),
            (257, 3),
            (512, 3),
            (8_192, 7),
        ] {
            assert_eq!(scale(nodes), expected, "{nodes} nodes");
        }
    }
}
