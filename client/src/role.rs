//! The client role as one value: told where servers are, it asks them.
//!
//! Owns: the agent's own typed questions, and when the servers are put in another order.
//! Never: decides what is registered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};
use weft_catalog::{Hub, State};
use weft_proto::clock::Clock;
use weft_proto::v1;
use weft_proto::v1::agents_client::AgentsClient;
use weft_proto::v1::stamped::Command;

use crate::call::Limit;
use crate::channel::Channel;
use crate::config::{ClientConfig, Dial, ServerAt};
use crate::error::CallError;
use crate::metrics::Metrics;
use crate::mirror::{Mirror, RowsError};
use crate::pool::Pool;

/// Another order of the servers is chosen after this time and up to half of it more, so that servers that came
/// back get their share of agents (Consul docs: two minutes at least).
const REBALANCE_EVERY: Duration = Duration::from_secs(120);
const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// How long a server may wait for a change of a node's rows.
const FOLLOW_WAIT: Duration = Duration::from_mins(5);
/// Pause after the rows of a node could not be had.
const FOLLOW_RETRY: Duration = Duration::from_secs(3);

/// Why a registration is not known to be in the catalog.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SyncError {
    /// No server answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A server answered that it could not be written.
    #[error("{}", .0.message)]
    Write(v1::WriteFailure),
}

/// The running client role. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) pool: Arc<Pool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) places: Arc<Semaphore>,
    mirror: Arc<Mirror>,
}

impl Client {
    /// Knows no server yet.
    #[must_use]
    pub fn new(config: ClientConfig, dial: Arc<dyn Dial>, clock: Arc<dyn Clock>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let pool = Arc::new(Pool::new(dial, metrics.clone(), config.seed));
        let places = config.max_calls.min(Semaphore::MAX_PERMITS);
        Self {
            inner: Arc::new(Inner {
                pool,
                clock,
                metrics,
                places: Arc::new(Semaphore::new(places)),
                mirror: Arc::default(),
                config,
            }),
        }
    }

    /// Adds the metrics of the role to `registry`; once.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Takes the servers that gossip shows alive.
    pub fn set_servers(&self, mut servers: Vec<ServerAt>) {
        servers.sort();
        servers.dedup();
        self.inner.pool.set_servers(&servers);
    }

    /// How many servers are known.
    #[must_use]
    pub fn known_servers(&self) -> usize {
        self.inner.pool.servers.lock().order().len()
    }

    /// Whom calls go to at present.
    #[must_use]
    pub fn current_server(&self) -> Option<ServerAt> {
        self.inner.pool.servers.lock().order().first().cloned()
    }

    /// Chooses another order of the servers from time to time, until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let more = self.inner.pool.servers.lock().jitter(REBALANCE_EVERY / 2);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REBALANCE_EVERY + more) => self.rebalance().await,
            }
        }
    }

    /// Chooses another order of the servers, of which the first answers.
    pub async fn rebalance(&self) {
        let pool = &self.inner.pool;
        let order = {
            let mut servers = pool.servers.lock();
            if servers.order().len() < 2 {
                return;
            }
            servers.shuffle();
            servers.order().to_vec()
        };
        self.inner.metrics.rebalances.inc();
        for server in &order {
            match pool.connection(&server.address).await {
                Ok(_) => {
                    pool.servers.lock().prefer(&server.address);
                    break;
                }
                Err(_) => pool.servers.lock().failed(&server.address),
            }
        }
        let first = self.current_server();
        for address in pool.connected() {
            if first.as_ref().is_none_or(|first| first.address != address) {
                pool.release(&address);
            }
        }
    }

    /// The part of the catalog that is known here: the rows of the nodes that were asked for.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.inner.mirror.state()
    }

    /// Wakes who waits for changes of [`Client::state`].
    #[must_use]
    pub fn hub(&self) -> &Hub {
        self.inner.mirror.hub()
    }

    /// How many nodes the whole catalog has, as last heard.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.inner.mirror.nodes()
    }

    fn agents(&self, limit: Limit) -> AgentsClient<Channel> {
        AgentsClient::new(self.channel(limit))
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES)
    }

    /// Brings the rows of this agent's own `node` in [`Client::state`] up to date, linearizably.
    pub async fn refresh(&self, node: &str) -> Result<(), RowsError> {
        self.inner.mirror.keep(node);
        self.rows(node, 0).await.map(drop)
    }

    async fn rows(&self, node: &str, after_index: u64) -> Result<u64, RowsError> {
        let (wait, limit) = match after_index {
            0 => (Duration::ZERO, Limit::Usual),
            _ => (FOLLOW_WAIT, Limit::Wait(FOLLOW_WAIT)),
        };
        let request = v1::NodeRowsRequest {
            node: node.to_owned(),
            after_index,
            wait_millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = self.agents(limit).node_rows(request).await;
        let reply = reply.map_err(|status| match call_error(&status) {
            Some(error) => RowsError::Call(error),
            None => RowsError::Refused(status.message().to_owned()),
        })?;
        let reply = reply.into_inner();
        let index = reply.index;
        self.inner.mirror.take(node, reply);
        Ok(index)
    }

    /// Brings the rows of any node up to date, and keeps them so until the answer is dropped.
    pub async fn follow(&self, node: &str) -> Result<DropGuard, RowsError> {
        let mut index = self.rows(node, 0).await?;
        self.inner.mirror.want(node);
        let (client, node, stop) = (self.clone(), node.to_owned(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = stopped.cancelled() => break,
                    next = client.rows(&node, index) => next,
                };
                match next {
                    Ok(next) => index = next,
                    Err(error) => {
                        tracing::debug!(node.name = %node, %error, "the rows of a node cannot be followed; will retry");
                        tokio::select! {
                            () = stopped.cancelled() => break,
                            () = tokio::time::sleep(FOLLOW_RETRY) => {}
                        }
                    }
                }
            }
            client.inner.mirror.release(&node);
        });
        Ok(stop.drop_guard())
    }

    /// Registers or deregisters in the catalog. Sent again while no server has answered: executing it twice is
    /// executing it once.
    pub async fn sync(&self, command: Command) -> Result<v1::Outcome, SyncError> {
        let stamped = v1::Stamped {
            command: Some(command),
            ..v1::Stamped::default()
        };
        let request = v1::SyncRequest {
            command: Bytes::from(stamped.encode_to_vec()),
        };
        let unknown = |text: String| {
            SyncError::Write(v1::WriteFailure {
                kind: v1::WriteFailureKind::Unknown.into(),
                message: text,
            })
        };
        let reply = self.agents(Limit::Usual).sync(request).await;
        let reply = reply.map_err(|status| match call_error(&status) {
            Some(error) => SyncError::Call(error),
            None => unknown(status.message().to_owned()),
        })?;
        match reply.into_inner().result {
            Some(v1::write_reply::Result::Outcome(bytes)) => v1::Outcome::decode(bytes)
                .map_err(|cause| unknown(format!("the reply cannot be read: {cause}"))),
            Some(v1::write_reply::Result::Failure(failure)) => Err(SyncError::Write(failure)),
            None => Err(unknown("the reply was empty".into())),
        }
    }

    /// Reports a network coordinate; one that gets lost is reported again when it has moved.
    pub async fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), SyncError> {
        let request = v1::ReportCoordinateRequest {
            coordinate: Some(coordinate.clone()),
        };
        let reply = self.agents(Limit::Usual).report_coordinate(request).await;
        let reply = reply.map_err(|status| {
            SyncError::Call(
                call_error(&status)
                    .unwrap_or_else(|| CallError::Unanswered(status.message().to_owned())),
            )
        })?;
        match reply.into_inner().failure {
            Some(failure) => Err(SyncError::Write(failure)),
            None => {
                self.inner.mirror.reported(coordinate);
                Ok(())
            }
        }
    }
}

/// What the pool said, if the status is not a server's.
fn call_error(status: &Status) -> Option<CallError> {
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<CallError>() {
            return Some(error.clone());
        }
        source = cause.source();
    }
    (status.code() == Code::Unimplemented)
        .then(|| CallError::Unanswered("the server is older than this agent; upgrade it".into()))
}
