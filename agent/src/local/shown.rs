//! Waiting, for a moment, until the catalog shows what was changed here.
//!
//! Owns: who waits for an entry, and whether waiting is worth it.
//! Never: makes a change depend on the servers: when they are far or away nobody waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::inner::Inner;

/// Longest wait. Writes that take longer are not waited for at all.
const WITHIN: Duration = Duration::from_millis(10);

/// Those who wait for one entry; they are told when it is dropped or let go.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<oneshot::Sender<()>>);

impl Waiters {
    /// The entry is in agreement, or will not be soon.
    pub(super) fn let_go(&mut self) {
        self.0 = Vec::new();
    }

    fn add(&mut self) -> Shown {
        let (waiter, shown) = oneshot::channel();
        self.0.push(waiter);
        Shown(Some(shown))
    }
}

/// Resolves when the catalog has it.
pub(super) struct Shown(Option<oneshot::Receiver<()>>);

impl Shown {
    /// Waits for a moment; whether it came true is not told, as it will in any case.
    pub(super) async fn soon(self) {
        if let Some(shown) = self.0 {
            drop(tokio::time::timeout(WITHIN, shown).await);
        }
    }
}

/// Whether the last write was quick.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicBool);

impl Pace {
    /// A write is over; `took` is `None` when it failed.
    pub(super) fn wrote(&self, took: Option<Duration>) {
        let quick = took.is_some_and(|took| took <= WITHIN);
        self.0.store(quick, Ordering::Relaxed);
    }

    fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// When the catalog shows this service as it is registered, or no longer shows it.
    pub(super) fn shown_soon(&self, service: &str) -> Shown {
        if !self.pace.is_quick() {
            return Shown(None);
        }
        let mut table = self.table.lock();
        if let Some(gone) = table.gone_services.get_mut(service) {
            return gone.waiters.add();
        }
        match table.services.get_mut(service) {
            Some(entry) if !entry.in_sync => entry.waiters.add(),
            _ => Shown(None),
        }
    }
}
