//! One agent's stream: its topics in, changes of them out.
//!
//! Owns: what this agent has of each topic, and what is sent next.
//! Never: queues changes: a topic that is behind is sent what it lacks when there is room.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::Streaming;
use weft_catalog::acl::{Access, Resource};
use weft_catalog::view::ViewTopic;
use weft_proto::v1::subscribe_reply::Reply;
use weft_proto::v1::subscribe_request::Request;
use weft_proto::v1::{self, SubscribeReply};

use super::material::{Has, Mailbox, Material, Next};
use super::{Place, Refused};
use crate::published::Published;

/// How often an agent hears through which index its views are complete.
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);
/// How long a new stream may take to say who it is.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long an agent that is further than this server waits for it here.
const BEHIND_LIMIT: Duration = Duration::from_secs(2);
/// Calls for "as of now" that may be under way on a stream.
const SYNCS_MAX: usize = 256;
/// Until a reader that is nearly complete is looked at again.
const NEARLY: Duration = Duration::from_millis(2);

pub(super) struct Stream {
    place: Place,
    inbox: Streaming<v1::SubscribeRequest>,
    out: mpsc::Sender<SubscribeReply>,
    mailbox: Arc<Mailbox>,
    topics: BTreeMap<u64, Seat>,
    /// Made and not yet taken by the transport.
    pending: VecDeque<SubscribeReply>,
    bookmark_due: bool,
    /// Number and index: to be answered when all is complete through it.
    syncs: Vec<(u64, u64)>,
    barriers: FuturesUnordered<BoxFuture<'static, (u64, Result<(), String>)>>,
}

/// One of the agent's topics.
struct Seat {
    material: Arc<Material>,
    has: Has,
}

impl Drop for Stream {
    fn drop(&mut self) {
        for (id, seat) in &self.topics {
            seat.material.leave(*id, &self.mailbox);
        }
    }
}

impl Stream {
    pub(super) fn new(
        place: Place,
        inbox: Streaming<v1::SubscribeRequest>,
        out: mpsc::Sender<SubscribeReply>,
    ) -> Self {
        Self {
            place,
            inbox,
            out,
            mailbox: Arc::default(),
            topics: BTreeMap::new(),
            pending: VecDeque::new(),
            bookmark_due: false,
            syncs: Vec::new(),
            barriers: FuturesUnordered::new(),
        }
    }

    /// Runs until the agent or the server goes.
    pub(super) async fn run(mut self) {
        match self.open().await {
            Ok(()) => {}
            Err(None) => return,
            Err(Some(refused)) => {
                self.refuse(refused);
                if let Some(reply) = self.pending.pop_front() {
                    let _ = self.out.send(reply).await;
                }
                return;
            }
        }
        let out = self.out.clone();
        let mut stop = self.place.shared.stop.clone();
        let mut tick = tokio::time::interval(BOOKMARK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let nearly = self.fill();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                request = self.inbox.message() => match request {
                    Ok(Some(request)) => self.take(request),
                    _ => return,
                },
                room = out.reserve(), if !self.pending.is_empty() => {
                    let (Ok(room), Some(reply)) = (room, self.pending.pop_front()) else { return };
                    room.send(reply);
                }
                Some((sync, fresh)) = self.barriers.next() => self.reached(sync, fresh),
                () = self.mailbox.ready.notified(), if self.pending.is_empty() => {}
                _ = tick.tick() => self.bookmark_due = true,
                () = tokio::time::sleep(NEARLY), if nearly => {}
            }
        }
    }

    /// The first words: who it is, and how far its views are.
    async fn open(&mut self) -> Result<(), Option<Refused>> {
        let refused = |reason, message: String, retry_after| Refused {
            id: 0,
            reason,
            message,
            retry_after,
        };
        let first = tokio::time::timeout(OPEN_LIMIT, self.inbox.message()).await;
        let open = match first {
            Ok(Ok(Some(v1::SubscribeRequest {
                request: Some(Request::Open(open)),
            }))) => open,
            Ok(Ok(Some(_))) => {
                let message = "the first request must say who asks".to_owned();
                return Err(Some(refused("subscribe.not_open", message, OPEN_LIMIT)));
            }
            _ => return Err(None),
        };
        let shared = &self.place.shared;
        let ours = &shared.identity.datacenter;
        if open.datacenter != *ours {
            let message = format!(
                "this server is of datacenter {ours:?}, the agent of {:?}",
                open.datacenter
            );
            let later = Duration::from_secs(60);
            return Err(Some(refused("subscribe.datacenter", message, later)));
        }
        if shared.is_stopping() {
            let message = "this server is shutting down".to_owned();
            return Err(Some(refused("subscribe.stopping", message, BEHIND_LIMIT)));
        }
        if !caught_up(&shared.published, &open).await {
            let message = format!(
                "the agent has seen index {}, this server is at {}",
                open.index,
                self.place.shared.published.announced()
            );
            return Err(Some(refused("subscribe.behind", message, BEHIND_LIMIT)));
        }
        tracing::debug!(node.name = open.node_name, "an agent's views are served");
        let state = self.place.shared.published.load();
        self.pending
            .push_back(reply(Reply::Opened(v1::SubscribeOpened {
                cluster_id: state.cluster_id().to_owned(),
                restore_epoch: state.restore_epoch(),
                index: state.index().get(),
                node_name: self.place.shared.identity.node_name.clone(),
            })));
        // Through nothing yet, but it says whether there is a leader.
        let bookmark = self.bookmark(0);
        self.pending.push_back(reply(Reply::Bookmark(bookmark)));
        Ok(())
    }

    fn refuse(&mut self, refused: Refused) {
        self.place.shared.metrics.refused(refused.reason);
        tracing::debug!(
            reason = refused.reason,
            message = refused.message,
            "refused to serve a view"
        );
        self.pending.push_back(refused.reply());
    }

    fn take(&mut self, request: v1::SubscribeRequest) {
        match request.request {
            Some(Request::Topic(topic)) => {
                let id = topic.id;
                if let Err((reason, message)) = self.join(topic) {
                    self.refuse(Refused {
                        id,
                        reason,
                        message,
                        retry_after: Duration::from_secs(30),
                    });
                }
            }
            Some(Request::Leave(id)) => {
                if let Some(seat) = self.topics.remove(&id) {
                    seat.material.leave(id, &self.mailbox);
                    self.mailbox.forget(id);
                }
            }
            Some(Request::Sync(sync)) if self.barriers.len() < SYNCS_MAX => {
                let barrier = self.place.shared.standing.barrier();
                self.barriers
                    .push(Box::pin(async move { (sync, barrier.await) }));
            }
            Some(Request::Sync(sync)) => {
                let error = format!("{SYNCS_MAX} such calls are under way already");
                self.reached(sync, Err(error));
            }
            // A second opening, or a request of a newer version: nothing that is known waits for it.
            Some(Request::Open(_)) | None => {}
        }
    }

    fn join(&mut self, asked: v1::SubscribeTopic) -> Result<(), (&'static str, String)> {
        let shared = &self.place.shared;
        let topic = asked.topic.as_ref().and_then(ViewTopic::of_wire);
        let Some(topic) = topic.filter(|_| asked.id != 0 && !self.topics.contains_key(&asked.id))
        else {
            let message = "this server serves no such view; is it older than the agent?";
            return Err(("subscribe.topic_unknown", message.to_owned()));
        };
        let max = shared.limits.topics_per_stream;
        if self.topics.len() >= max {
            let message =
                format!("an agent may keep {max} views of a server (views.server_per_agent)");
            return Err(("subscribe.too_many_topics", message));
        }
        let (resource, name) = authorizes(&topic);
        let decision = shared
            .authorizer
            .allows(resource, name.as_bytes(), Access::Read);
        if !decision.allowed {
            let message = format!("{}: {}", decision.reason, topic.kind());
            return Err(("subscribe.denied", message));
        }
        let material = shared.material(&topic).map_err(|reason| {
            let max = shared.limits.topics;
            (
                reason,
                format!("this server serves {max} views already (views.server_max)"),
            )
        })?;
        let has = Has::Told {
            fingerprint: asked.fingerprint,
            epoch: asked.restore_epoch,
        };
        material.join(asked.id, &self.mailbox);
        self.topics.insert(asked.id, Seat { material, has });
        Ok(())
    }

    fn reached(&mut self, sync: u64, fresh: Result<(), String>) {
        match fresh {
            Ok(()) => {
                let index = self.place.shared.published.load().index().get();
                self.syncs.push((sync, index));
            }
            Err(sync_error) => {
                let mut bookmark = self.bookmark(0);
                bookmark.sync = sync;
                bookmark.sync_error = sync_error;
                self.pending.push_back(reply(Reply::Bookmark(bookmark)));
            }
        }
    }

    /// Makes what is to be sent next, when all before is sent. True: nearly, look again in a moment.
    fn fill(&mut self) -> bool {
        while self.pending.is_empty() {
            let Some(id) = self.mailbox.take() else {
                return self.mark();
            };
            self.fill_with(id);
        }
        false
    }

    fn fill_with(&mut self, id: u64) {
        let Some(seat) = self.topics.get_mut(&id) else {
            return;
        };
        let metrics = &self.place.shared.metrics;
        match seat.material.next(seat.has) {
            Next::Nothing => {}
            Next::Unchanged { version, index } => {
                seat.has = Has::Version(version);
                metrics.sent("unchanged");
                let unchanged = v1::ViewUnchanged { id, index };
                self.pending.push_back(reply(Reply::Unchanged(unchanged)));
            }
            Next::Changes { version, frames } => {
                seat.has = Has::Version(version);
                metrics.sent("change");
                self.send(id, &frames);
            }
            Next::Whole { version, parts } => {
                seat.has = Has::Version(version);
                metrics.sent("whole");
                self.send(id, &parts);
            }
            Next::TooWide => {
                self.topics.remove(&id);
                self.refuse(Refused {
                    id,
                    reason: "subscribe.topic_too_wide",
                    message: "this view depends on too many others".to_owned(),
                    retry_after: Duration::from_secs(60),
                });
            }
        }
    }

    fn send(&mut self, id: u64, frames: &[Bytes]) {
        for frame in frames {
            self.place.shared.metrics.bytes.inc_by(frame.len() as u64);
            let frame = frame.clone();
            let part = v1::ViewPart { id, frame };
            self.pending.push_back(reply(Reply::Part(part)));
        }
    }

    /// Says through which index all topics are complete, if that is due. True: nearly.
    fn mark(&mut self) -> bool {
        if !self.bookmark_due && self.syncs.is_empty() {
            return false;
        }
        let shared = &self.place.shared;
        let announced = shared.published.announced();
        let mut index = announced;
        for seat in self.topics.values() {
            let complete = match seat.has {
                Has::Version(version) => seat.material.complete(version, announced),
                Has::Told { .. } => None,
            };
            match complete {
                Some(complete) => index = index.min(complete),
                None => return true,
            }
        }
        let bookmark = self.bookmark(index);
        let mut syncs = std::mem::take(&mut self.syncs);
        syncs.retain(|(sync, wanted)| {
            let done = *wanted <= index;
            if done {
                let sync = *sync;
                let bookmark = v1::Bookmark {
                    sync,
                    ..bookmark.clone()
                };
                self.pending.push_back(reply(Reply::Bookmark(bookmark)));
            }
            !done
        });
        self.syncs = syncs;
        if std::mem::take(&mut self.bookmark_due) && self.pending.is_empty() {
            self.pending.push_back(reply(Reply::Bookmark(bookmark)));
        }
        !self.syncs.is_empty()
    }

    fn bookmark(&self, index: u64) -> v1::Bookmark {
        let meta = self.place.shared.standing.meta();
        v1::Bookmark {
            index,
            known_leader: meta.known_leader,
            last_contact_millis: u64::try_from(meta.last_contact.as_millis()).unwrap_or(u64::MAX),
            ..v1::Bookmark::default()
        }
    }
}

/// Whether this server is as far as the agent's views are, or soon is.
async fn caught_up(published: &Published, open: &v1::SubscribeOpen) -> bool {
    let is_behind = || {
        let state = published.load();
        state.cluster_id() == open.cluster_id
            && state.restore_epoch() == open.restore_epoch
            && state.index().get() < open.index
    };
    let waiting = async {
        while is_behind() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BEHIND_LIMIT, waiting).await.is_ok()
}

const fn reply(reply: Reply) -> SubscribeReply {
    SubscribeReply { reply: Some(reply) }
}

/// What keeping a view of the topic needs the right to read.
fn authorizes(topic: &ViewTopic) -> (Resource, &str) {
    match topic {
        ViewTopic::Service(name) | ViewTopic::Connect(name) | ViewTopic::Ingress(name) => {
            (Resource::Service, name)
        }
        ViewTopic::Node(name) => (Resource::Node, name),
        ViewTopic::Services => (Resource::Service, ""),
        ViewTopic::Nodes | ViewTopic::Address(_) | ViewTopic::Coordinates => (Resource::Node, ""),
        ViewTopic::Query(name) => (Resource::Query, name),
        ViewTopic::ConfigEntry(_, name) => (Resource::Service, name),
        ViewTopic::ConfigKind(_) | ViewTopic::MeshCa => (Resource::Mesh, ""),
    }
}
