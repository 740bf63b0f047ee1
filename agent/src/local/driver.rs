//! The task that keeps the catalog in agreement, and the reaper.
//!
//! Owns: when a comparison runs, how its writes are sent, and what a failure delays.
//! Never: decides what to write; that is [`super::sync`].

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_catalog::Trace;
use weft_proto::v1;
use weft_proto::v1::outcome::Result as Verdict;

use super::handle::Local;
use super::inner::Inner;
use super::metrics::SyncKind;
use super::sync::{self, Memory, Remote, Write};
use crate::backend::{Backend, Consistency, WriteError};

/// Writes in flight at once: they share Raft batches.
const WRITES_AT_ONCE: usize = 128;
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
        let driver = Driver {
            local: Arc::clone(&self.inner),
            backend,
            retry: RETRY_MIN,
            batch_checks: true,
            next_full: self.inner.clock.monotonic(),
        };
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
}

impl Driver {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let now = self.local.clock.monotonic();
            let output_due = self.local.table.lock().release_outputs(now);
            let due = output_due.map_or(self.next_full, |due| due.min(self.next_full));
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return,
                () = self.local.dirty.notified() => {}
                () = tokio::time::sleep(due.saturating_sub(now)) => {}
            }
            let now = self.local.clock.monotonic();
            self.local.table.lock().release_outputs(now);
            let kind = if now >= self.next_full {
                SyncKind::Full
            } else {
                SyncKind::Partial
            };
            // A stop does not cut a write off: it waits for the round, whose writes are bounded in time.
            let ok = self.round(kind).await;
            let after = self.local.clock.monotonic();
            self.local
                .metrics
                .synced(kind, after.saturating_sub(now), ok);
            self.schedule(kind, ok, after);
        }
    }

    fn schedule(&mut self, kind: SyncKind, ok: bool, now: Duration) {
        if !ok {
            self.next_full = now + self.retry + self.local.jitter(self.retry);
            self.retry = (self.retry * 2).min(RETRY_MAX);
            return;
        }
        self.retry = RETRY_MIN;
        if kind == SyncKind::Full {
            let interval = self.local.config.sync_interval * scale(self.backend.nodes());
            self.next_full = now + interval + self.local.jitter(interval);
        }
    }

    /// One comparison, or none, and one plan's writes; answers whether they were all applied. What is
    /// left, or came meanwhile, follows in the next round: between two, a stop is noticed and a full
    /// comparison comes when it is due, however fast changes come.
    async fn round(&mut self, kind: SyncKind) -> bool {
        if kind == SyncKind::Full && !self.compare().await {
            return false;
        }
        let (writes, node) = {
            let mut table = self.local.table.lock();
            if table
                .services
                .values()
                .any(|entry| !entry.in_sync && entry.local.service.enable_tag_override)
            {
                let remote = remote(&*self.backend, &table.node.name);
                sync::adopt_tags(&mut table, &remote, true);
            }
            (sync::plan(&table, self.batch_checks), table.node.clone())
        };
        if writes.is_empty() {
            self.batch_checks = true;
            return true;
        }
        let ok = self.send(writes, &node).await;
        if ok {
            self.local.dirty.notify_one();
        }
        ok
    }

    async fn compare(&self) -> bool {
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

    /// Sends writes together; answers whether all were applied.
    async fn send(&mut self, writes: Vec<Write>, node: &v1::Node) -> bool {
        let backend = &self.backend;
        let mut results = futures::stream::iter(writes)
            .map(|write| async move { (backend.write(write.command).await, write.carries) })
            .buffer_unordered(WRITES_AT_ONCE);
        let mut all = true;
        let mut refused = false;
        while let Some((result, carries)) = results.next().await {
            self.local.metrics.wrote();
            let mut table = self.local.table.lock();
            match result.map(|outcome| outcome.result) {
                Ok(Some(Verdict::Refusal(refusal))) if carries.len() > 1 && self.batch_checks => {
                    tracing::debug!(reason = %refusal.reason, error = %refusal.message, "a batch was refused; sending it one by one");
                    refused = true;
                }
                Ok(Some(Verdict::Refusal(refusal))) => {
                    self.local.metrics.refused();
                    tracing::warn!(reason = %refusal.reason, error = %refusal.message, entries = ?carries, "the catalog refused a registration of this host");
                    table.node_in_sync = false;
                    sync::block(&mut table, &carries);
                    all = false;
                }
                Ok(_) => sync::confirm(&mut table, &carries, node),
                Err(WriteError::Denied(error)) => {
                    self.local.metrics.refused();
                    tracing::warn!(%error, entries = ?carries, reason = "acl.denied", "a registration of this host was denied");
                    sync::block(&mut table, &carries);
                    all = false;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot bring this host's registrations into the catalog; will retry");
                    all = false;
                }
            }
        }
        drop(results);
        if refused {
            self.batch_checks = false;
        }
        all
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
