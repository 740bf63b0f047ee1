//! The stream to a server, over and over: topics out, content in.
//!
//! Owns: coming back with jitter, and what of a view is new. Never: gives up, or takes half a view.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use weft_catalog::view::ViewFrame;
use weft_catalog::{State, Touched};
use weft_proto::v1;
use weft_proto::v1::subscribe_reply::Reply;
use weft_proto::v1::subscribe_request::Request;

use super::entry::View;
use super::{Inner, Replies, Streams, Unknown};

/// Requests on their way to the server.
const REQUESTS_MAX: usize = 64;
/// A server that has said nothing for this long is gone: it marks its place every second.
const SILENCE: Duration = Duration::from_secs(6);
/// How long a stream may take to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// The first pause after a stream that ended, and the longest; each up to half of it more.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A stream begins anew after this time and up to half of it more, so that servers which came back get
/// their share of agents.
const STREAM_AGE: Duration = Duration::from_mins(20);
/// A server that has not heard its leader for this long is left for another.
const LEADERLESS: Duration = Duration::from_secs(10);
/// But not more often than this.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(30);
/// Idle views are looked for this often, and refused ones asked for again when their time has come.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub(super) async fn run(inner: Arc<Inner>, streams: Arc<dyn Streams>, stop: CancellationToken) {
    let mut dice = SmallRng::seed_from_u64(inner.config.seed);
    let mut pause = PAUSE;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = wanted(&inner) => {}
        }
        let mut session = Session::new(&inner, streams.as_ref(), &mut dice);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => End::Stop,
            ended = session.run() => ended,
        };
        let was_open = session.opened;
        session.lost();
        let wait = match ended {
            End::Stop => return,
            End::Idle | End::Old => continue,
            End::Lost(why) => {
                tracing::debug!(%why, "the stream of this agent's views has ended");
                if was_open {
                    pause = PAUSE;
                } else {
                    alone(&inner, &why);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                pause
            }
            End::Refused(refused) => {
                inner.metrics.refused.inc();
                let later = Duration::from_millis(refused.retry_after_millis).min(PAUSE_MAX * 12);
                tracing::debug!(reason = refused.reason, message = refused.message, retry_after = ?later, "a server does not serve this agent's views");
                streams.elsewhere();
                later.max(pause)
            }
        };
        let more = u64::try_from(wait.as_millis() / 2).unwrap_or(0).max(1);
        let wait = wait + Duration::from_millis(dice.random_range(0..=more));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => inner.tidy(inner.now()),
        }
    }
}

/// Resolves when there is a view to keep.
async fn wanted(inner: &Inner) {
    while inner.table.read().is_empty() {
        inner.changed.notified().await;
    }
}

/// Says once that the views are served without servers.
fn alone(inner: &Inner, why: &str) {
    if inner.contact.alone(inner.now()) {
        inner.metrics.losses.inc();
        let views = inner.table.read().len();
        tracing::warn!(reason = "views.no_server", %why, views, "no server serves this agent's views; DNS and cached reads are answered from what is known");
    }
}

enum End {
    Stop,
    /// No view is wanted any more.
    Idle,
    /// It is time for another server.
    Old,
    Lost(String),
    Refused(v1::SubscribeRefused),
}

struct Session<'a> {
    inner: &'a Arc<Inner>,
    streams: &'a dyn Streams,
    dice: &'a mut SmallRng,
    opened: bool,
    views: HashMap<u64, Seat>,
    outgoing: VecDeque<Request>,
    /// Those who wait for the sync of this number.
    sync: (u64, Vec<oneshot::Sender<Result<(), String>>>),
    synced_at: i64,
    left: Duration,
    /// Refused views and when to ask again.
    refused: Vec<(Duration, Arc<View>)>,
}

struct Seat {
    view: Arc<View>,
    /// Parts that came of a whole content, and their bytes.
    parts: Option<(State, usize)>,
    /// Changes count only after the content they are changes of.
    begun: bool,
}

impl<'a> Session<'a> {
    fn new(inner: &'a Arc<Inner>, streams: &'a dyn Streams, dice: &'a mut SmallRng) -> Self {
        Self {
            inner,
            streams,
            dice,
            opened: false,
            views: HashMap::new(),
            outgoing: VecDeque::new(),
            sync: (0, Vec::new()),
            synced_at: 0,
            left: Duration::ZERO,
            refused: Vec::new(),
        }
    }

    async fn run(&mut self) -> End {
        let (requests, sent) = mpsc::channel(REQUESTS_MAX);
        let (cluster_id, restore_epoch, index) = self.inner.contact.frontier();
        let open = v1::SubscribeOpen {
            node_name: self.inner.config.node_name.clone(),
            datacenter: self.inner.config.datacenter.clone(),
            token: String::new(),
            cluster_id,
            restore_epoch,
            index,
        };
        // There is room for the first one.
        let _ = requests.try_send(request(Request::Open(open)));
        let begun = tokio::time::timeout(BEGIN, self.streams.subscribe(sent)).await;
        let mut replies = match begun {
            Ok(Ok(replies)) => replies,
            Ok(Err(why)) => return End::Lost(why),
            Err(_) => return End::Lost(format!("no stream began within {BEGIN:?}")),
        };
        match tokio::time::timeout(BEGIN, replies.next()).await {
            Ok(Some(Ok(v1::SubscribeReply {
                reply: Some(Reply::Opened(opened)),
            }))) => self.open(&opened),
            Ok(Some(Ok(v1::SubscribeReply {
                reply: Some(Reply::Refused(refused)),
            }))) => return End::Refused(refused),
            Ok(Some(Err(why))) => return End::Lost(why),
            _ => return End::Lost("the server did not open the stream".to_owned()),
        }
        self.serve(requests, replies).await
    }

    async fn serve(
        &mut self,
        requests: mpsc::Sender<v1::SubscribeRequest>,
        mut replies: Replies,
    ) -> End {
        let half = u64::try_from(STREAM_AGE.as_millis() / 2).unwrap_or(0);
        let age = STREAM_AGE + Duration::from_millis(self.dice.random_range(0..=half));
        let mut old = std::pin::pin!(tokio::time::sleep(age));
        let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE));
        let mut tick = tokio::time::interval(TIDY_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.gather();
            tokio::select! {
                biased;
                reply = replies.next() => {
                    let reply = match reply {
                        Some(Ok(reply)) => reply,
                        Some(Err(why)) => return End::Lost(why),
                        None => return End::Lost("the server ended the stream".to_owned()),
                    };
                    silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                    if let Some(end) = self.take(reply) {
                        return end;
                    }
                }
                room = requests.reserve(), if !self.outgoing.is_empty() => {
                    let (Ok(room), Some(next)) = (room, self.outgoing.pop_front()) else {
                        return End::Lost("the server takes no requests".to_owned());
                    };
                    room.send(request(next));
                }
                () = self.inner.changed.notified() => {}
                _ = tick.tick() => {
                    self.inner.tidy(self.inner.now());
                    self.again();
                    if self.inner.table.read().is_empty() {
                        return End::Idle;
                    }
                }
                () = &mut silence => return End::Lost(format!("the server said nothing for {SILENCE:?}")),
                () = &mut old => return End::Old,
            }
        }
    }

    /// A server takes this agent in: every view is asked for, with what is known of it.
    fn open(&mut self, opened: &v1::SubscribeOpened) {
        let inner = self.inner;
        let now = inner.now();
        let since = inner.contact.alone_since();
        let (before, ..) = inner.contact.frontier();
        if inner
            .contact
            .opened(&opened.cluster_id, opened.restore_epoch, now)
            && !before.is_empty()
        {
            tracing::warn!(cluster.id = %opened.cluster_id, restore.epoch = opened.restore_epoch, "the servers' state was replaced; all views begin anew");
        }
        if let Some(since) = since {
            let away = Duration::from_millis(u64::try_from(now - since).unwrap_or(0));
            let views = inner.table.read().len();
            tracing::info!(server.name = %opened.node_name, views, ?away, "a server serves this agent's views again");
        }
        self.opened = true;
        self.inner.work.lock().join.clear();
        for view in self.inner.all() {
            self.join(view);
        }
    }

    fn join(&mut self, view: Arc<View>) {
        let state = view.state();
        self.outgoing.push_back(Request::Topic(v1::SubscribeTopic {
            id: view.id,
            topic: Some(view.topic.wire()),
            fingerprint: state.as_ref().map_or(0, |state| state.view_fingerprint()),
            restore_epoch: state.map_or(0, |state| state.restore_epoch()),
        }));
        let seat = Seat {
            view,
            parts: None,
            begun: false,
        };
        self.views.insert(seat.view.id, seat);
    }

    /// Takes up what others want of the session.
    fn gather(&mut self) {
        let (join, leave) = {
            let mut work = self.inner.work.lock();
            if self.sync.1.is_empty() && !work.syncs.is_empty() {
                self.sync = (self.sync.0 + 1, std::mem::take(&mut work.syncs));
                self.synced_at = self.inner.now();
                self.outgoing.push_back(Request::Sync(self.sync.0));
            }
            (
                std::mem::take(&mut work.join),
                std::mem::take(&mut work.leave),
            )
        };
        for view in join {
            if !self.views.contains_key(&view.id) {
                self.join(view);
            }
        }
        for id in leave {
            if self.views.remove(&id).is_some() {
                self.outgoing.push_back(Request::Leave(id));
            }
        }
    }

    fn take(&mut self, reply: v1::SubscribeReply) -> Option<End> {
        match reply.reply {
            Some(Reply::Part(part)) => self.part(part.id, part.frame),
            Some(Reply::Unchanged(unchanged)) => {
                if let Some(seat) = self.views.get_mut(&unchanged.id) {
                    seat.begun = true;
                    seat.view.lives();
                }
            }
            Some(Reply::Bookmark(bookmark)) => return self.bookmark(&bookmark),
            Some(Reply::Refused(refused)) if refused.id == 0 => return Some(End::Refused(refused)),
            Some(Reply::Refused(refused)) => self.refuse(refused),
            Some(Reply::Opened(_)) | None => {}
        }
        None
    }

    fn part(&mut self, id: u64, bytes: Bytes) {
        let Some(seat) = self.views.get_mut(&id) else {
            return;
        };
        let size = bytes.len();
        self.inner.metrics.bytes.inc_by(size as u64);
        let Ok(frame) = ViewFrame::decode(bytes) else {
            return self.anew(id, "a frame that cannot be read");
        };
        let (whole, more) = (frame.whole, frame.more);
        if let Some((taken, so_far)) = seat.parts.take().filter(|_| !whole) {
            return match taken.amended(frame) {
                Ok((taken, _)) if more => seat.parts = Some((taken, so_far + size)),
                Ok((taken, _)) => {
                    self.swap(id, taken, Touched::of_everything(), Some(so_far + size))
                }
                Err(error) => self.anew(id, &error.to_string()),
            };
        }
        // A change of something older, sent before the view was asked for anew.
        let known = seat.view.state();
        let fits = frame.base == known.as_ref().map_or(0, |known| known.view_fingerprint());
        if !whole && !seat.begun && !fits {
            return;
        }
        match known.unwrap_or_default().amended(frame) {
            Ok((taken, _)) if more => seat.parts = Some((taken, size)),
            Ok((taken, touched)) => self.swap(id, taken, touched, whole.then_some(size)),
            Err(error) => self.anew(id, &error.to_string()),
        }
    }

    /// The content of a view is another one.
    fn swap(&mut self, id: u64, state: State, touched: Touched, whole: Option<usize>) {
        let Some(seat) = self.views.get_mut(&id) else {
            return;
        };
        let inner = self.inner;
        let is_reset = whole.is_some() && seat.view.state().is_some();
        seat.begun = true;
        seat.view.take(Arc::new(state), whole);
        seat.view.lives();
        inner.hub.publish(&touched);
        inner.metrics.changes.inc();
        if is_reset {
            inner.metrics.resets.inc();
        }
        if let Some(disk) = &inner.disk {
            disk.changed(&seat.view);
        }
    }

    /// What came does not fit what is here: the view is asked for anew. What it says meanwhile, is as old
    /// as it is.
    fn anew(&mut self, id: u64, why: &str) {
        let Some(seat) = self.views.remove(&id) else {
            return;
        };
        tracing::warn!(reason = "views.mismatch", topic = ?seat.view.topic, why, "a view is asked for anew");
        self.inner.metrics.mismatches.inc();
        seat.view.lost(self.inner.contact.heard());
        self.outgoing.push_back(Request::Leave(id));
        self.outgoing.push_back(Request::Topic(v1::SubscribeTopic {
            id,
            topic: Some(seat.view.topic.wire()),
            ..v1::SubscribeTopic::default()
        }));
        let seat = Seat {
            view: seat.view,
            parts: None,
            begun: false,
        };
        self.views.insert(id, seat);
    }

    fn bookmark(&mut self, bookmark: &v1::Bookmark) -> Option<End> {
        let now = self.inner.now();
        let last_contact = i64::try_from(bookmark.last_contact_millis).unwrap_or(i64::MAX);
        let mut heard = now.saturating_sub(last_contact);
        if bookmark.sync != 0 && bookmark.sync == self.sync.0 {
            let synced = match bookmark.sync_error.is_empty() {
                true => Ok(()),
                false => Err(bookmark.sync_error.clone()),
            };
            if synced.is_ok() {
                heard = heard.max(self.synced_at);
            }
            for waiting in self.sync.1.drain(..) {
                let _ = waiting.send(synced.clone());
            }
        }
        if !bookmark.sync_error.is_empty() {
            return None;
        }
        self.inner
            .contact
            .complete(bookmark.index, heard, bookmark.known_leader);
        let clock = self.inner.clock.monotonic();
        let lonely = Duration::from_millis(bookmark.last_contact_millis) > LEADERLESS;
        if lonely && clock.saturating_sub(self.left) > ELSEWHERE_EVERY {
            self.left = clock;
            self.streams.elsewhere();
            return Some(End::Lost("the server has lost its leader".to_owned()));
        }
        None
    }

    fn refuse(&mut self, refused: v1::SubscribeRefused) {
        let Some(seat) = self.views.remove(&refused.id) else {
            return;
        };
        self.inner.metrics.refused.inc();
        tracing::debug!(
            reason = refused.reason,
            topic = ?seat.view.topic,
            "a server does not serve a view"
        );
        let unknown = Unknown::Refused {
            reason: refused.reason,
            message: refused.message,
        };
        seat.view.refuse(unknown, self.inner.contact.heard());
        let later = Duration::from_millis(refused.retry_after_millis);
        let at = self.inner.clock.monotonic() + later;
        self.refused.push((at, seat.view));
    }

    /// Asks again for what was refused.
    fn again(&mut self) {
        let now = self.inner.clock.monotonic();
        let due: Vec<_> = self
            .refused
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, view)| view)
            .collect();
        for view in due {
            if self.inner.table.read().contains_key(&view.topic) {
                self.join(view);
            }
        }
    }

    /// The stream is over: what it said last is how old its views are.
    fn lost(self) {
        let contact = &self.inner.contact;
        contact.closed();
        for seat in self.views.values() {
            seat.view.lost(contact.heard());
        }
        self.inner.work.lock().syncs.clear();
    }
}

const fn request(request: Request) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        request: Some(request),
    }
}
