//! Views against a server that does as it is told.

use std::sync::atomic::AtomicI64;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use weft_catalog::prepared_query::Expressions;
use weft_catalog::view::Slice;
use weft_catalog::{Catalog, Trace};
use weft_proto::ids::{LogIndex, UnixMillis};
use weft_proto::v1::stamped::Command;
use weft_proto::v1::subscribe_reply::Reply;
use weft_proto::v1::subscribe_request::Request;

use super::*;

/// A clock that is set.
#[derive(Default)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst).unsigned_abs())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_000_000_000 + self.0.load(Ordering::SeqCst).unsigned_abs())
    }
}

type Link = (
    mpsc::Receiver<v1::SubscribeRequest>,
    mpsc::UnboundedSender<v1::SubscribeReply>,
);

/// Hands each stream to the test, or refuses while nobody is there.
struct Door {
    links: Mutex<Option<mpsc::UnboundedSender<Link>>>,
}

#[async_trait]
impl Streams for Door {
    async fn subscribe(
        &self,
        requests: mpsc::Receiver<v1::SubscribeRequest>,
    ) -> Result<Replies, String> {
        let (replies, mut out) = mpsc::unbounded_channel();
        let links = self.links.lock().clone();
        links
            .and_then(|links| links.send((requests, replies)).ok())
            .ok_or("nobody is there")?;
        Ok(futures::stream::poll_fn(move |cx| out.poll_recv(cx))
            .map(Ok)
            .boxed())
    }

    fn elsewhere(&self) {}
}

struct World {
    views: Views,
    hands: Arc<Hands>,
    door: Arc<Door>,
    links: mpsc::UnboundedReceiver<Link>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    catalog: Catalog,
    index: u64,
}

impl World {
    fn new(config: ViewsConfig) -> Self {
        Self::at(config, 100_000)
    }

    fn at(config: ViewsConfig, now: i64) -> Self {
        let hands = Arc::new(Hands(AtomicI64::new(now)));
        let (sender, links) = mpsc::unbounded_channel();
        let door = Arc::new(Door {
            links: Mutex::new(Some(sender)),
        });
        let views = Views::open(config, hands.clone());
        let stop = CancellationToken::new();
        let running = tokio::spawn(views.clone().run(door.clone(), stop.clone()));
        Self {
            views,
            hands,
            door,
            links,
            stop,
            running,
            catalog: Catalog::new(),
            index: 0,
        }
    }

    fn register(&mut self, node: &str, service: &str) {
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
                ..v1::Service::default()
            }),
            ..v1::Register::default()
        });
        let stamped = v1::Stamped {
            command: Some(command),
            ..v1::Stamped::default()
        };
        self.catalog.apply(LogIndex(self.index), &stamped).unwrap();
    }

    fn slice(&self, topic: &ViewTopic) -> Slice {
        let state = self.catalog.state();
        Slice::of(state, topic, None, &Expressions::default())
            .unwrap()
            .0
    }

    /// The next stream, opened.
    async fn serve(&mut self) -> Server {
        let (requests, replies) = self.links.recv().await.unwrap();
        let mut server = Server { requests, replies };
        assert!(matches!(server.request().await, Request::Open(_)));
        server.say(Reply::Opened(v1::SubscribeOpened {
            cluster_id: "ours".into(),
            ..v1::SubscribeOpened::default()
        }));
        server
    }

    fn pass(&self, time: Duration) {
        let millis = i64::try_from(time.as_millis()).unwrap();
        self.hands.0.fetch_add(millis, Ordering::SeqCst);
    }

    /// Nobody answers any more.
    fn shut(&self) {
        *self.door.links.lock() = None;
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn until(&self, what: impl Fn(&Views) -> bool) {
        while !what(&self.views) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Server {
    requests: mpsc::Receiver<v1::SubscribeRequest>,
    replies: mpsc::UnboundedSender<v1::SubscribeReply>,
}

impl Server {
    async fn request(&mut self) -> Request {
        self.requests.recv().await.unwrap().request.unwrap()
    }

    async fn topic(&mut self) -> v1::SubscribeTopic {
        loop {
            if let Request::Topic(topic) = self.request().await {
                return topic;
            }
        }
    }

    fn say(&self, reply: Reply) {
        let reply = v1::SubscribeReply { reply: Some(reply) };
        self.replies.send(reply).unwrap();
    }

    fn part(&self, id: u64, frame: Bytes) {
        self.say(Reply::Part(v1::ViewPart { id, frame }));
    }

    fn whole(&self, id: u64, slice: &Slice) {
        for part in slice.whole() {
            self.part(id, part);
        }
    }

    fn bookmark(&self, last_contact: Duration) {
        self.say(Reply::Bookmark(v1::Bookmark {
            index: 1,
            known_leader: true,
            last_contact_millis: u64::try_from(last_contact.as_millis()).unwrap(),
            ..v1::Bookmark::default()
        }));
    }
}

const WAIT: Duration = Duration::from_secs(60);

fn instances(seen: &Seen, service: &str) -> usize {
    let trace = Trace::off();
    seen.state
        .read(&trace)
        .service_instances(service)
        .rows
        .len()
}

#[tokio::test]
async fn unknown_until_whole_then_followed_and_missing_is_known_too() {
    let mut world = World::new(ViewsConfig::default());
    world.register("n1", "web");
    let (web, none) = (ViewTopic::service("web"), ViewTopic::service("none"));
    assert!(world.views.look(&web).is_none());
    let mut server = world.serve().await;
    let id = server.topic().await.id;
    let before = world.slice(&web);
    let short = world.views.wait(&web, Duration::from_millis(20)).await;
    assert_eq!(short.unwrap_err(), Unknown::NotYet);
    server.whole(id, &before);
    let seen = world.views.wait(&web, WAIT).await.unwrap();
    assert_eq!(instances(&seen, "web"), 1);
    // Who waits on the view is woken by a change of it.
    let trace = Trace::on();
    drop(seen.state.read(&trace).service_instances("web"));
    let woken = world.views.hub().watch(&trace.into_topics());
    world.register("n2", "web");
    let after = world.slice(&web);
    server.part(id, after.since(&before).unwrap().frame);
    woken.await;
    assert_eq!(instances(&world.views.look(&web).unwrap(), "web"), 2);
    // What does not exist has a view as well, and an answer.
    assert!(world.views.look(&none).is_none());
    let id = server.topic().await.id;
    server.whole(id, &world.slice(&none));
    let seen = world.views.wait(&none, WAIT).await.unwrap();
    assert!(seen.state.is_without_rows());
    world.end().await;
}

#[tokio::test]
async fn what_does_not_fit_is_asked_for_anew_and_half_a_view_is_none() {
    let mut world = World::new(ViewsConfig::default());
    world.register("n1", "web");
    let web = ViewTopic::service("web");
    assert!(world.views.look(&web).is_none());
    let mut server = world.serve().await;
    let id = server.topic().await.id;
    let first = world.slice(&web);
    server.whole(id, &first);
    world.views.wait(&web, WAIT).await.unwrap();
    world.register("n2", "web");
    let second = world.slice(&web);
    world.register("n3", "web");
    let third = world.slice(&web);
    // The change before it got lost.
    server.part(id, third.since(&second).unwrap().frame);
    assert_eq!(server.request().await, Request::Leave(id));
    assert_eq!(server.topic().await.fingerprint, 0);
    assert_eq!(world.views.inner.metrics.mismatches.get(), 1);
    // Still the old content, which says how old it is; another late change is no surprise.
    assert_eq!(instances(&world.views.look(&web).unwrap(), "web"), 1);
    assert!(!world.views.look(&web).unwrap().connected);
    server.part(id, third.since(&second).unwrap().frame);
    server.whole(id, &third);
    world
        .until(|views| instances(&views.look(&web).unwrap(), "web") == 3)
        .await;
    assert_eq!(world.views.inner.metrics.mismatches.get(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_view_ages_without_servers_survives_a_restart_and_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let config = ViewsConfig {
        dir: Some(dir.path().join("views")),
        ..ViewsConfig::default()
    };
    let mut world = World::new(config.clone());
    world.register("n1", "web");
    let (web, other) = (ViewTopic::service("web"), ViewTopic::service("other"));
    assert!(world.views.look(&web).is_none());
    let mut server = world.serve().await;
    let id = server.topic().await.id;
    let slice = world.slice(&web);
    server.whole(id, &slice);
    world.views.wait(&web, WAIT).await.unwrap();
    world.pass(Duration::from_secs(60));
    server.bookmark(Duration::from_secs(2));
    world
        .until(|views| views.look(&web).unwrap().connected)
        .await;
    assert_eq!(world.views.look(&web).unwrap().age, Duration::from_secs(2));
    world.shut();
    drop(server);
    world
        .until(|views| views.inner.contact.alone_since().is_some())
        .await;
    world.pass(Duration::from_secs(30));
    let seen = world.views.look(&web).unwrap();
    assert_eq!((seen.age, seen.connected), (Duration::from_secs(32), false));
    assert_eq!(
        world.views.sync(WAIT).await.unwrap_err(),
        "no server serves this agent's views at present"
    );
    // The catalog the servers have, for the next life.
    let (catalog, index) = (world.catalog.clone(), world.index);
    let now = world.hands.0.load(Ordering::SeqCst);
    world.end().await;

    // Damage is noticed, and told.
    std::fs::write(
        dir.path().join("views").join("bad.view"),
        b"weftvw1\nnothing",
    )
    .unwrap();
    let mut world = World::at(config, now + 10_000);
    (world.catalog, world.index) = (catalog, index);
    assert!(!dir.path().join("views").join("bad.view").exists());
    let seen = world.views.look(&web).unwrap();
    assert_eq!(instances(&seen, "web"), 1);
    assert_eq!(seen.age, Duration::from_secs(42));
    assert!(world.views.look(&other).is_none(), "never known");
    let mut server = world.serve().await;
    let mut asked = [server.topic().await, server.topic().await];
    asked.sort_by_key(|topic| topic.fingerprint);
    assert_eq!(asked[0].fingerprint, 0);
    assert_eq!(
        asked[1].fingerprint,
        slice.fingerprint(),
        "it says what it has"
    );
    let id = asked[1].id;
    server.say(Reply::Unchanged(v1::ViewUnchanged { id, index: 1 }));
    server.bookmark(Duration::ZERO);
    world
        .until(|views| views.look(&web).unwrap().connected)
        .await;
    assert_eq!(world.views.look(&web).unwrap().age, Duration::ZERO);
    assert_eq!(world.views.inner.contact.alone_since(), None);
    world.end().await;
}

#[tokio::test]
async fn at_the_bound_what_is_missed_least_goes() {
    let config = ViewsConfig {
        max: 3,
        ..ViewsConfig::default()
    };
    let mut world = World::new(config);
    world.register("n1", "web");
    world.register("n1", "db");
    let topics = ["web", "db"].map(ViewTopic::service);
    assert!(world.views.look(&topics[0]).is_none());
    let mut server = world.serve().await;
    for topic in &topics {
        let _ = world.views.look(topic);
        let id = server.topic().await.id;
        server.whole(id, &world.slice(topic));
        world.views.wait(topic, WAIT).await.unwrap();
    }
    // A flood of names that do not exist costs no view of what does.
    for n in 0..50 {
        let _ = world
            .views
            .look(&ViewTopic::service(&format!("nobody-{n}")));
        assert!(world.views.len() <= 3);
    }
    for topic in &topics {
        assert!(world.views.look(topic).is_some(), "{topic:?}");
    }
    // What nobody asks for ends, and what is not there sooner.
    world.pass(Duration::from_mins(11));
    for topic in &topics {
        let _ = world.views.look(topic);
    }
    world.until(|views| views.len() == 2).await;
    world.pass(Duration::from_hours(73));
    world.until(Views::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn a_sync_waits_for_the_server_and_a_refusal_is_told() {
    let mut world = World::new(ViewsConfig::default());
    let web = ViewTopic::service("web");
    assert!(world.views.look(&web).is_none());
    let mut server = world.serve().await;
    let id = server.topic().await.id;
    let waiting = tokio::spawn({
        let (views, web) = (world.views.clone(), web.clone());
        async move { views.wait(&web, WAIT).await }
    });
    server.say(Reply::Refused(v1::SubscribeRefused {
        id,
        reason: "subscribe.denied".into(),
        message: "no".into(),
        retry_after_millis: 3_600_000,
    }));
    let refused = waiting.await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "no (subscribe.denied)");
    for error in ["", "No cluster leader"] {
        let syncing = tokio::spawn({
            let views = world.views.clone();
            async move { views.sync(WAIT).await }
        });
        let sync = loop {
            if let Request::Sync(sync) = server.request().await {
                break sync;
            }
        };
        server.say(Reply::Bookmark(v1::Bookmark {
            sync,
            sync_error: error.into(),
            ..v1::Bookmark::default()
        }));
        let expected = if error.is_empty() {
            Ok(())
        } else {
            Err(error.to_owned())
        };
        assert_eq!(syncing.await.unwrap(), expected);
    }
    world.end().await;
}
