//! The service manager (systemd), as far as it wants to hear of this process.
//!
//! Owns: what is told when: ready, status, reloading, stopping, alive.
//! Never: says that the agent lives unless its API has just answered; a manager that is slow holds up nothing.
//! Source: systemd, sd_notify(3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::parts::Parts;

/// An agent that has found nobody to join by then counts as started: what it can do alone, it does.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// How often the status line is looked at; it is sent when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// For the manager to take a message.
const TELL_LIMIT: Duration = Duration::from_secs(2);

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    Ready(String),
    Reloading,
    Status(String),
    Stopping,
    Alive,
}

/// The service manager of this process, if it has one.
#[derive(Debug)]
pub(crate) struct Manager {
    /// It listens (`NOTIFY_SOCKET`).
    listens: bool,
    /// It ends a process that shows no sign of life for so long (`WATCHDOG_USEC`).
    patience: Option<Duration>,
    /// It has heard that the agent is ready.
    ready: AtomicBool,
    signs: Counter,
    missed: Counter,
}

impl Manager {
    /// As the environment tells.
    pub(crate) fn from_env() -> Arc<Self> {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        Arc::new(Self {
            listens,
            patience: sd_notify::watchdog_enabled().filter(|_| listens),
            ready: AtomicBool::new(false),
            signs: Counter::default(),
            missed: Counter::default(),
        })
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "weft_process_signs_of_life",
            "Signs of life given to the service manager's watchdog",
            self.signs.clone(),
        );
        registry.register(
            "weft_process_signs_of_life_missed",
            "Signs of life not given because the API did not answer in time",
            self.missed.clone(),
        );
    }

    /// Tells it about `parts` until `stop`.
    pub(crate) fn attend(self: &Arc<Self>, parts: &Arc<Parts>, stop: &CancellationToken) {
        if !self.listens {
            return;
        }
        let (manager, shown) = (self.clone(), parts.clone());
        spawn_until(stop, async move { manager.follow(&shown).await });
        if let Some(patience) = self.patience {
            let (manager, probed) = (self.clone(), parts.clone());
            spawn_until(stop, async move {
                manager.watchdog(patience, || probed.answers()).await;
            });
        }
    }

    /// The agent is about to take a new configuration.
    pub(crate) async fn reloading(&self) {
        if self.ready.load(Ordering::SeqCst) {
            self.tell(News::Reloading).await;
        }
    }

    /// The new configuration is in force, or was refused.
    pub(crate) async fn reloaded(&self, status: String) {
        if self.ready.load(Ordering::SeqCst) {
            self.tell(News::Ready(status)).await;
        }
    }

    /// The agent is on its way out.
    pub(crate) async fn stopping(&self) {
        self.tell(News::Stopping).await;
    }

    /// Ready once the agent has joined, as Consul's is; then the status whenever it has changed.
    async fn follow(&self, parts: &Parts) {
        self.tell(News::Status(format!("joining; {}", parts.summary())))
            .await;
        if tokio::time::timeout(READY_WITHIN, parts.joined())
            .await
            .is_err()
        {
            tracing::warn!(
                reason = "process.ready_alone",
                "nobody to join within {READY_WITHIN:?}; the agent counts as started and goes on trying"
            );
        }
        let mut told = parts.summary();
        self.tell(News::Ready(told.clone())).await;
        self.ready.store(true, Ordering::SeqCst);
        tracing::info!(status = %told, "the service manager knows that the agent is ready");
        loop {
            tokio::time::sleep(STATUS_EVERY).await;
            let now = parts.summary();
            if now != told {
                self.tell(News::Status(now.clone())).await;
                told = now;
            }
        }
    }

    /// A sign of life twice within the manager's patience, each time only after `probe` has succeeded.
    async fn watchdog<F>(&self, patience: Duration, probe: impl Fn() -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        let every = patience / 2;
        loop {
            match tokio::time::timeout(every, probe()).await {
                Ok(Ok(())) => {
                    self.tell(News::Alive).await;
                    self.signs.inc();
                    tokio::time::sleep(every).await;
                    continue;
                }
                Ok(Err(why)) => {
                    tracing::warn!(reason = "process.not_alive", error = %why, "no sign of life to the service manager");
                    // Again soon: there is still time to show one.
                    tokio::time::sleep(every / 4).await;
                }
                Err(_) => {
                    tracing::warn!(reason = "process.not_alive", waited = ?every, "the API does not answer; no sign of life to the service manager");
                }
            }
            self.missed.inc();
        }
    }

    /// A message goes to a socket whose reader may be stuck: it is sent aside, and waited for only so long.
    async fn tell(&self, news: News) {
        if !self.listens {
            return;
        }
        let sent = tokio::task::spawn_blocking(move || send(&news));
        match tokio::time::timeout(TELL_LIMIT, sent).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(cause))) => {
                tracing::warn!(reason = "process.manager_deaf", error = %cause, "the service manager was not told");
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(
                    reason = "process.manager_deaf",
                    "the service manager takes no messages"
                );
            }
        }
    }
}

fn spawn_until(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(work).await });
}

fn send(news: &News) -> std::io::Result<()> {
    match news {
        News::Ready(status) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
        }
        News::Reloading => sd_notify::notify(&[
            NotifyState::Reloading,
            NotifyState::monotonic_usec_now()?,
            NotifyState::Status("reloading the configuration"),
        ]),
        News::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        News::Stopping => {
            sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")])
        }
        News::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager() -> Manager {
        Manager {
            listens: false,
            patience: None,
            ready: AtomicBool::new(false),
            signs: Counter::default(),
            missed: Counter::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_shows_no_sign_of_life() {
        let manager = manager();
        let patience = Duration::from_secs(30);
        let attend = manager.watchdog(patience, std::future::pending);
        assert!(tokio::time::timeout(patience * 4, attend).await.is_err());
        assert_eq!(manager.signs.get(), 0);
        assert!(manager.missed.get() >= 7, "{}", manager.missed.get());
        let failing = manager.watchdog(patience, async || Err("broken".into()));
        assert!(tokio::time::timeout(patience * 4, failing).await.is_err());
        assert_eq!(manager.signs.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_shows_two_within_the_managers_patience() {
        let manager = manager();
        let patience = Duration::from_secs(30);
        let attend = manager.watchdog(patience, async || Ok(()));
        assert!(tokio::time::timeout(patience * 4, attend).await.is_err());
        assert!(manager.signs.get() >= 8, "{}", manager.signs.get());
        assert_eq!(manager.missed.get(), 0);
    }
}
