//! The views that agents keep: what changes of a topic, sent to all who keep it.
//!
//! Owns: one material a topic, whoever reads it; one stream an agent, all its
//! topics on it; who is let in, and what is refused.
//! Never: makes a write wait, runs on Raft's threads, or keeps for a slow reader more than which of its
//! topics it is behind on (ADR 16).

mod bucket;
mod material;
mod metrics;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_catalog::acl::Authorizer;
use weft_catalog::prepared_query::Expressions;
use weft_catalog::view::ViewTopic;
use weft_proto::clock::Clock;
use weft_proto::v1;

use self::bucket::Bucket;
use self::material::Material;
pub use self::metrics::SubscribeMetrics;
use self::stream::Stream;
use crate::handle::Server;
use crate::published::Published;
use crate::reads::ReadMeta;

/// Replies that may wait for a reader before the next one is made.
const REPLIES_WAITING_MAX: usize = 4;

/// How many there may be of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeLimits {
    /// Streams of this server, one an agent (`views.server_agents`).
    pub streams: usize,
    /// Topics of a stream (`views.server_per_agent`).
    pub topics_per_stream: usize,
    /// Topics of all streams together, each counted once (`views.server_max`).
    pub topics: usize,
    /// Streams that may begin in a second, on average (`views.server_begins_per_second`).
    pub opens_per_second: u32,
    /// Streams that may begin at once (`views.server_begins_burst`).
    pub opens_burst: u32,
}

impl Default for SubscribeLimits {
    fn default() -> Self {
        Self {
            streams: 8_192,
            topics_per_stream: 8_192,
            topics: 65_536,
            opens_per_second: 200,
            opens_burst: 400,
        }
    }
}

/// What the streams must know of the server beside its state.
pub trait Standing: Send + Sync + 'static {
    /// How long ago this server heard its leader.
    fn meta(&self) -> ReadMeta;
    /// Waits until the published state is as fresh as the call's beginning; else says why not.
    fn barrier(&self) -> BoxFuture<'static, Result<(), String>>;
}

impl Standing for Server {
    fn meta(&self) -> ReadMeta {
        Self::meta(self)
    }

    fn barrier(&self) -> BoxFuture<'static, Result<(), String>> {
        let server = self.clone();
        Box::pin(async move {
            let fresh = Server::barrier(&server).await;
            fresh.map(drop).map_err(|cause| cause.to_string())
        })
    }
}

/// What one server's streams share. Cheap to clone.
#[derive(Clone)]
pub struct Subscriptions {
    shared: Arc<Shared>,
}

/// Who the server is, for whom it lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its node.
    pub node_name: String,
    /// Its datacenter: agents of others are refused.
    pub datacenter: String,
}

struct Shared {
    identity: Identity,
    published: Arc<Published>,
    standing: Arc<dyn Standing>,
    authorizer: Arc<dyn Authorizer>,
    clock: Arc<dyn Clock>,
    limits: SubscribeLimits,
    metrics: SubscribeMetrics,
    expressions: Expressions,
    topics: Mutex<HashMap<ViewTopic, Arc<Material>>>,
    streams: AtomicUsize,
    bucket: Mutex<Bucket>,
    stop: watch::Receiver<bool>,
}

impl Subscriptions {
    /// Nobody subscribed. Ends its streams when `stop` says so.
    #[must_use]
    pub fn new(
        identity: Identity,
        published: Arc<Published>,
        standing: Arc<dyn Standing>,
        clock: Arc<dyn Clock>,
        limits: SubscribeLimits,
        metrics: SubscribeMetrics,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let bucket = Bucket::new(limits.opens_per_second, limits.opens_burst);
        Self {
            shared: Arc::new(Shared {
                identity,
                published,
                standing,
                authorizer: Arc::new(weft_catalog::acl::AllowAll),
                clock,
                limits,
                metrics,
                expressions: Expressions::default(),
                topics: Mutex::default(),
                streams: AtomicUsize::new(0),
                bucket: Mutex::new(bucket),
                stop,
            }),
        }
    }
}

/// Why a stream or a topic is not served.
#[derive(Debug)]
struct Refused {
    /// 0: the stream.
    id: u64,
    reason: &'static str,
    message: String,
    retry_after: Duration,
}

impl Refused {
    fn reply(self) -> v1::SubscribeReply {
        let refused = v1::SubscribeRefused {
            id: self.id,
            reason: self.reason.to_owned(),
            message: self.message,
            retry_after_millis: u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX),
        };
        v1::SubscribeReply {
            reply: Some(v1::subscribe_reply::Reply::Refused(refused)),
        }
    }
}

#[tonic::async_trait]
impl v1::views_server::Views for Subscriptions {
    type SubscribeStream = BoxStream<'static, Result<v1::SubscribeReply, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (replies, out) = mpsc::channel(REPLIES_WAITING_MAX);
        let out: Self::SubscribeStream = match self.shared.enter() {
            Ok(place) => {
                let inbox = request.into_inner();
                tokio::spawn(async move { Stream::new(place, inbox, replies).run().await });
                Box::pin(ReceiverStream::new(out).map(Ok))
            }
            Err(refused) => {
                self.shared.metrics.refused(refused.reason);
                tracing::debug!(
                    reason = refused.reason,
                    retry_after = ?refused.retry_after,
                    "an agent's views are not served now"
                );
                Box::pin(tokio_stream::once(Ok(refused.reply())))
            }
        };
        Ok(Response::new(out))
    }
}

/// A stream's place among the server's.
struct Place {
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.streams.fetch_sub(1, Ordering::SeqCst);
        self.shared.metrics.streams.dec();
    }
}

impl Shared {
    /// Lets a stream in: so many at a time, and so many a second, that agents which all come back at
    /// once find a server that still answers.
    fn enter(self: &Arc<Self>) -> Result<Place, Refused> {
        let refused = |reason, message, retry_after| Refused {
            id: 0,
            reason,
            message,
            retry_after,
        };
        let max = self.limits.streams;
        let before = self.streams.fetch_add(1, Ordering::SeqCst);
        self.metrics.streams.inc();
        let place = Place {
            shared: self.clone(),
        };
        if before >= max {
            let message = format!(
                "this server serves the views of {max} agents already (views.server_agents)"
            );
            let later = Duration::from_secs(10);
            return Err(refused("subscribe.too_many_streams", message, later));
        }
        let taken = self.bucket.lock().take(self.clock.monotonic());
        taken.map_err(|wait| {
            let message =
                "too many agents begin at once (views.server_begins_per_second)".to_owned();
            refused("subscribe.rate", message, wait)
        })?;
        Ok(place)
    }

    /// The material of a topic, made for the first who asks.
    fn material(self: &Arc<Self>, topic: &ViewTopic) -> Result<Arc<Material>, &'static str> {
        let mut topics = self.topics.lock();
        if let Some(material) = topics.get(topic) {
            material.interest();
            return Ok(material.clone());
        }
        if topics.len() >= self.limits.topics {
            return Err("subscribe.too_many_topics_here");
        }
        let material = Arc::new(Material::new(topic.clone()));
        material.interest();
        topics.insert(topic.clone(), material.clone());
        self.metrics.topics.inc();
        tokio::spawn(material::run(material.clone(), self.clone()));
        Ok(material)
    }

    /// Forgets a material that nobody reads; false when somebody does.
    fn retire(&self, material: &Material) -> bool {
        let mut topics = self.topics.lock();
        if material.is_read() {
            return false;
        }
        topics.remove(&material.topic);
        self.metrics.topics.dec();
        true
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}
