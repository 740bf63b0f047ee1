//! Streams over a real gRPC connection in memory.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_catalog::view::{ViewFrame, ViewTopic};
use weft_catalog::{Catalog, State, Trace};
use weft_proto::clock::SystemClock;
use weft_proto::ids::LogIndex;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;
use weft_proto::v1::subscribe_reply::Reply;
use weft_proto::v1::subscribe_request::Request;
use weft_proto::v1::views_client::ViewsClient;
use weft_proto::v1::views_server::ViewsServer;

use super::*;

struct Standing {
    leader: std::sync::atomic::AtomicBool,
}

impl super::Standing for Standing {
    fn meta(&self) -> ReadMeta {
        ReadMeta {
            known_leader: self.leader.load(Ordering::SeqCst),
            last_contact: Duration::from_millis(7),
        }
    }

    fn barrier(&self) -> BoxFuture<'static, Result<(), String>> {
        let leader = self.leader.load(Ordering::SeqCst);
        Box::pin(async move {
            leader
                .then_some(())
                .ok_or_else(|| "No cluster leader".into())
        })
    }
}

struct World {
    catalog: Catalog,
    index: u64,
    published: Arc<Published>,
    standing: Arc<Standing>,
    subscriptions: Subscriptions,
    metrics: SubscribeMetrics,
    _stop: watch::Sender<bool>,
}

impl World {
    fn new(limits: SubscribeLimits) -> Self {
        let mut catalog = Catalog::new();
        let published = Arc::new(Published::new(catalog.publish().0));
        let standing = Arc::new(Standing {
            leader: true.into(),
        });
        let (stop, stopping) = watch::channel(false);
        let metrics = SubscribeMetrics::default();
        let identity = Identity {
            node_name: "s1".into(),
            datacenter: "dc1".into(),
        };
        let subscriptions = Subscriptions::new(
            identity,
            published.clone(),
            standing.clone(),
            Arc::new(SystemClock::new()),
            limits,
            metrics.clone(),
            stopping,
        );
        Self {
            catalog,
            index: 0,
            published,
            standing,
            subscriptions,
            metrics,
            _stop: stop,
        }
    }

    /// Registers an instance of `service` on `node` with a tag.
    fn register(&mut self, node: &str, service: &str, tag: &str) {
        self.index += 1;
        let command = Command::Register(v1::Register {
            node: Some(v1::Node {
                name: node.into(),
                address: "10.0.0.1".into(),
                ..v1::Node::default()
            }),
            service: Some(v1::Service {
                id: service.into(),
                name: service.into(),
                tags: vec![tag.into()],
                ..v1::Service::default()
            }),
            ..v1::Register::default()
        });
        let stamped = v1::Stamped {
            command: Some(command),
            ..v1::Stamped::default()
        };
        self.catalog.apply(LogIndex(self.index), &stamped).unwrap();
        let (state, touched) = self.catalog.publish();
        self.published.store(state, &touched);
    }

    async fn connect(&self) -> Agent {
        self.connect_as("dc1", 0).await
    }

    async fn connect_as(&self, datacenter: &str, index: u64) -> Agent {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let service = ViewsServer::new(self.subscriptions.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))),
        );
        let mut ours = Some(ours);
        let connector = tower::service_fn(move |_: http::Uri| {
            let ours = ours.take().map(TokioIo::new);
            async move { ours.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://views.invalid")
            .connect_with_connector(connector)
            .await
            .unwrap();
        let (requests, sent) = mpsc::channel(64);
        let open = v1::SubscribeOpen {
            node_name: "a1".into(),
            datacenter: datacenter.into(),
            index,
            ..v1::SubscribeOpen::default()
        };
        let open = Request::Open(open);
        requests.send(request(open)).await.unwrap();
        let replies = ViewsClient::new(channel)
            .subscribe(ReceiverStream::new(sent))
            .await
            .unwrap()
            .into_inner();
        Agent {
            requests,
            replies,
            view: State::default(),
        }
    }
}

fn request(request: Request) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        request: Some(request),
    }
}

struct Agent {
    requests: mpsc::Sender<v1::SubscribeRequest>,
    replies: Streaming<v1::SubscribeReply>,
    view: State,
}

impl Agent {
    async fn reply(&mut self) -> Reply {
        let reply = tokio::time::timeout(Duration::from_secs(10), self.replies.message());
        reply.await.unwrap().unwrap().unwrap().reply.unwrap()
    }

    /// The next reply that is no bookmark.
    async fn news(&mut self) -> Reply {
        loop {
            match self.reply().await {
                Reply::Bookmark(_) => {}
                reply => return reply,
            }
        }
    }

    async fn send(&self, asked: Request) {
        self.requests.send(request(asked)).await.unwrap();
    }

    async fn topic(&self, id: u64, topic: &ViewTopic, fingerprint: u64) {
        self.send(Request::Topic(v1::SubscribeTopic {
            id,
            topic: Some(topic.wire()),
            fingerprint,
            restore_epoch: 0,
        }))
        .await;
    }

    /// Takes parts until a view is whole or a change is in; answers what it was.
    async fn update(&mut self) -> (u64, bool) {
        loop {
            let Reply::Part(part) = self.news().await else {
                panic!("not a part");
            };
            let frame = ViewFrame::decode(part.frame).unwrap();
            let (whole, more) = (frame.whole, frame.more);
            self.view = self.view.amended(frame).unwrap().0;
            if !more {
                return (part.id, whole);
            }
        }
    }

    fn tags(&self, service: &str) -> Vec<String> {
        let trace = Trace::off();
        let rows = self.view.read(&trace).service_instances(service).rows;
        rows.iter()
            .flat_map(|row| row.service.tags.clone())
            .collect()
    }

    /// Waits for a bookmark that covers `index`.
    async fn complete(&mut self, index: u64) -> v1::Bookmark {
        loop {
            if let Reply::Bookmark(bookmark) = self.reply().await
                && bookmark.index >= index
            {
                return bookmark;
            }
        }
    }
}

fn refused(reply: Reply) -> v1::SubscribeRefused {
    match reply {
        Reply::Refused(refused) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_topic_comes_whole_then_in_changes_and_bookmarks_say_how_far() {
    let mut world = World::new(SubscribeLimits::default());
    world.register("n1", "web", "t1");
    let mut agent = world.connect().await;
    assert!(matches!(agent.news().await, Reply::Opened(_)));
    agent.topic(1, &ViewTopic::service("web"), 0).await;
    assert_eq!(agent.update().await, (1, true));
    assert_eq!(agent.tags("web"), ["t1"]);
    world.register("n2", "web", "t2");
    assert_eq!(agent.update().await, (1, false));
    assert_eq!(agent.tags("web"), ["t1", "t2"]);
    // What does not concern the topic moves its index all the same, and nothing is sent for it.
    world.register("n3", "other", "t3");
    let at = world.published.load().index().get();
    let bookmark = agent.complete(at).await;
    assert!(bookmark.known_leader && bookmark.last_contact_millis == 7);
    assert_eq!(world.metrics.topics.get(), 1);
}

#[tokio::test]
async fn who_has_it_already_is_sent_nothing_and_who_is_behind_only_what_it_lacks() {
    let mut world = World::new(SubscribeLimits::default());
    world.register("n1", "web", "t1");
    let topic = ViewTopic::service("web");
    let mut first = world.connect().await;
    first.news().await;
    first.topic(1, &topic, 0).await;
    first.update().await;
    let known = first.view.view_fingerprint();
    let mut second = world.connect().await;
    second.news().await;
    second.topic(9, &topic, known).await;
    let Reply::Unchanged(unchanged) = second.news().await else {
        panic!("something was sent");
    };
    assert_eq!(unchanged.id, 9);
    world.register("n2", "web", "t2");
    first.update().await;
    let mut third = world.connect().await;
    third.news().await;
    third.view = State::default();
    third.topic(3, &topic, known).await;
    let Reply::Part(part) = third.news().await else {
        panic!("not a part");
    };
    let frame = ViewFrame::decode(part.frame).unwrap();
    assert!(!frame.whole && frame.base == known);
    // What it has is unknown here: all of it.
    third.topic(4, &topic, 12345).await;
    assert_eq!(third.update().await, (4, true));
}

#[tokio::test]
async fn a_slow_reader_skips_to_the_newest() {
    let mut world = World::new(SubscribeLimits::default());
    world.register("n1", "web", "t0");
    let mut agent = world.connect().await;
    agent.news().await;
    agent.topic(1, &ViewTopic::service("web"), 0).await;
    agent.update().await;
    // Nothing is read meanwhile; far more changes than what is kept for readers that are behind.
    let big = "x".repeat(8 << 10);
    for round in 0..400 {
        world.register("n1", "web", &format!("{big}{round}"));
        if round % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let last = format!("{big}399");
    let mut updates = 0;
    while agent.tags("web") != [last.clone()] {
        agent.update().await;
        updates += 1;
    }
    assert!(updates < 300, "all {updates} of them were sent");
    let index = world.published.load().index().get();
    agent.complete(index).await;
}

#[tokio::test]
async fn a_sync_is_answered_as_of_now_or_with_the_reason() {
    let mut world = World::new(SubscribeLimits::default());
    let mut agent = world.connect().await;
    agent.news().await;
    agent.topic(1, &ViewTopic::service("web"), 0).await;
    agent.update().await;
    world.register("n1", "web", "t1");
    agent.send(Request::Sync(5)).await;
    // The change comes before the answer.
    let mut changed = false;
    let bookmark = loop {
        match agent.reply().await {
            Reply::Part(_) => changed = true,
            Reply::Bookmark(bookmark) if bookmark.sync == 5 => break bookmark,
            _ => {}
        }
    };
    assert!(changed && bookmark.index >= world.published.load().index().get());
    world.standing.leader.store(false, Ordering::SeqCst);
    agent.send(Request::Sync(6)).await;
    let failed = loop {
        match agent.reply().await {
            Reply::Bookmark(bookmark) if bookmark.sync == 6 => break bookmark,
            _ => {}
        }
    };
    assert_eq!(failed.sync_error, "No cluster leader");
    assert!(!failed.known_leader);
}

#[tokio::test]
async fn what_is_too_much_is_refused_with_a_reason_and_counted() {
    let limits = SubscribeLimits {
        streams: 2,
        topics_per_stream: 2,
        topics: 3,
        opens_per_second: 1,
        opens_burst: 3,
    };
    let world = World::new(limits);
    let mut one = world.connect().await;
    one.news().await;
    for id in 1..=3 {
        one.topic(id, &ViewTopic::service(&format!("s{id}")), 0)
            .await;
    }
    let told = loop {
        if let Reply::Refused(refused) = one.news().await {
            break refused;
        }
    };
    assert_eq!((told.id, &*told.reason), (3, "subscribe.too_many_topics"));
    assert!(told.message.contains("views.server_per_agent"));
    let mut two = world.connect().await;
    two.news().await;
    two.topic(7, &ViewTopic::Nodes, 0).await;
    two.update().await;
    two.topic(8, &ViewTopic::Services, 0).await;
    let told = refused(two.news().await);
    assert_eq!(
        (told.id, &*told.reason),
        (8, "subscribe.too_many_topics_here")
    );
    two.send(Request::Leave(7)).await;
    two.send(Request::Topic(v1::SubscribeTopic {
        id: 9,
        topic: None,
        ..v1::SubscribeTopic::default()
    }))
    .await;
    assert_eq!(refused(two.news().await).reason, "subscribe.topic_unknown");
    let told = refused(world.connect().await.news().await);
    assert_eq!((told.id, &*told.reason), (0, "subscribe.too_many_streams"));
    assert!(told.message.contains("views.server_agents"));
    drop(two);
    while world.metrics.streams.get() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The third that begins is let in, the fourth within the same second is not.
    let other = world.connect_as("dc2", 0).await.news().await;
    assert_eq!(refused(other).reason, "subscribe.datacenter");
    while world.metrics.streams.get() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = refused(world.connect().await.news().await);
    assert_eq!(told.reason, "subscribe.rate");
    assert!(told.retry_after_millis >= 100);
}

#[tokio::test]
async fn a_server_behind_the_agent_says_so() {
    let mut world = World::new(SubscribeLimits::default());
    world.register("n1", "web", "t1");
    let index = world.published.load().index().get();
    let mut ahead = world.connect_as("dc1", index + 1).await;
    let told = refused(ahead.news().await);
    assert_eq!(told.reason, "subscribe.behind");
    let mut ahead = world.connect_as("dc1", index + 1).await;
    world.register("n2", "web", "t2");
    assert!(matches!(ahead.news().await, Reply::Opened(_)));
}
