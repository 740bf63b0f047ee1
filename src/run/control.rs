//! What only the whole process can do: reload and leave.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc};
use weft_agent::http::{Control, LogLevel, LogLines};

use super::Load;
use super::manager::Manager;
use super::parts::Parts;

/// A request of the API to the process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    /// Stop; the cluster was left already.
    Stop {
        /// Whether leaving went as it should.
        left: bool,
    },
}

/// The process as the API sees it.
pub(crate) struct Process {
    load: Load,
    manager: Arc<Manager>,
    parts: OnceLock<Arc<Parts>>,
    asked: mpsc::Sender<Asked>,
    /// One reload at a time: two would interleave what they replace.
    reloading: Mutex<()>,
}

impl Process {
    pub(crate) fn new(load: Load, manager: Arc<Manager>) -> (Arc<Self>, mpsc::Receiver<Asked>) {
        let (asked, receiver) = mpsc::channel(1);
        (
            Arc::new(Self {
                load,
                manager,
                parts: OnceLock::new(),
                asked,
                reloading: Mutex::new(()),
            }),
            receiver,
        )
    }

    /// Gives it the running parts; once.
    pub(crate) fn attach(&self, parts: Arc<Parts>) {
        // Called once, right after the parts were made.
        let _ = self.parts.set(parts);
    }

    /// The service manager of this process.
    pub(crate) fn manager(&self) -> &Manager {
        &self.manager
    }

    fn parts(&self) -> Result<&Arc<Parts>, String> {
        self.parts
            .get()
            .ok_or_else(|| "the agent is still starting".to_owned())
    }
}

#[async_trait]
impl Control for Process {
    async fn reload(&self) -> Result<(), String> {
        let _one = self.reloading.lock().await;
        let parts = self.parts()?;
        self.manager.reloading().await;
        let load = self.load.clone();
        let reloaded = async {
            let config = tokio::task::spawn_blocking(move || load())
                .await
                .map_err(|cause| cause.to_string())??;
            parts.reload(config).await
        };
        let reloaded = reloaded.await;
        self.manager.reloaded(parts.summary()).await;
        reloaded
    }

    async fn leave(&self) -> Result<(), String> {
        let left = self.parts()?.leave().await;
        // A second request finds the channel full: the first is on its way.
        let _ = self.asked.try_send(Asked::Stop { left: left.is_ok() });
        left
    }

    fn monitor(&self, level: LogLevel, json: bool) -> Result<LogLines, String> {
        let level = match level {
            LogLevel::Trace => tracing::Level::TRACE,
            LogLevel::Debug => tracing::Level::DEBUG,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Error => tracing::Level::ERROR,
        };
        super::logging::monitor(level, json)
    }
}
