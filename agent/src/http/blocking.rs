//! Reads, with consistency modes and blocking queries.
//!
//! Owns: the wait of a blocking query: read, compare, register, read again, sleep, until the answer
//! is newer, the time is over, the server stops or the client is gone (its future is dropped, and
//! the watch with it).
//! Never: knows what is read.
//! Source: Consul HTTP API, "Blocking queries"; CONSUL.md B.1, B.2.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, HeaderName, HeaderValue};
use rand::RngExt as _;
use tokio::time::Sleep;
use weft_catalog::{Hub, Reader, State, Topics, Trace, Watch};

use super::api::Api;
use super::call::Call;
use super::error::Failure;
use super::options::Options;
use super::reply::{Content, Reply, SharedBody};
use super::viewed::Pinned;
use crate::backend::{Consistency, ReadMeta};

pub(super) const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
pub(super) const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
pub(super) const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
pub(super) const CONSISTENCY: HeaderName =
    HeaderName::from_static("x-consul-effective-consistency");
const QUERY_BACKEND: HeaderName = HeaderName::from_static("x-consul-query-backend");
pub(super) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What an endpoint's reads can do beside the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadForm {
    /// Takes part in `?cached`.
    pub(super) cached: bool,
    /// A catalog or health read: names its query backend and obeys `discovery_max_stale`.
    pub(super) discovery: bool,
}

impl ReadForm {
    /// KV, sessions and the like.
    pub(super) const PLAIN: Self = Self {
        cached: false,
        discovery: false,
    };
    /// Catalog and health reads.
    pub(super) const DISCOVERY: Self = Self {
        cached: false,
        discovery: true,
    };
    /// Those of them that take `?cached`.
    pub(super) const CACHED: Self = Self {
        cached: true,
        discovery: true,
    };
}

/// One look at the state.
pub(super) struct Pass<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) state: &'a State,
    since: Option<u64>,
}

impl Pass<'_> {
    /// Whether an answer at `index` will be shown; if not, its body need not be made.
    pub(super) fn wants(&self, index: u64) -> bool {
        self.since.is_none_or(|since| index > since)
    }
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Found {
    index: u64,
    reply: Option<Reply>,
    /// The index covers more than this answer: if the body is the same as before, keep waiting.
    coarse: bool,
}

impl Found {
    /// Nothing newer than what the client has.
    pub(super) fn later(index: u64) -> Self {
        Self {
            index,
            reply: None,
            coarse: false,
        }
    }

    /// An answer.
    pub(super) fn now(index: u64, reply: Reply) -> Self {
        Self {
            index,
            reply: Some(reply),
            coarse: false,
        }
    }

    /// An answer whose index also moves with things that do not show in it. To be made on every
    /// look, whether wanted or not, so that it can be compared.
    pub(super) fn coarse(index: u64, reply: Reply) -> Self {
        Self {
            index,
            reply: Some(reply),
            coarse: true,
        }
    }

    fn bytes(&self) -> Option<Bytes> {
        match &self.reply.as_ref()?.content {
            Content::Whole(_, bytes) => Some(bytes.clone()),
            Content::Shared(shared) => Some(SharedBody::plain(shared).clone()),
            Content::Empty => Some(Bytes::new()),
            Content::Stream(_) | Content::Relayed(_) => None,
        }
    }
}

/// Runs a read: `look` is called with the state as fresh as asked, again and again while it blocks.
pub(super) async fn read(
    call: &Call,
    form: ReadForm,
    look: impl Fn(&Pass<'_>) -> Found + Send + Sync,
) -> Result<Reply, Failure> {
    let options = call.options()?;
    let api = &call.api;
    let freshness = match &call.view {
        Some(view) => Freshness::of_view(view),
        None => Freshness::reach(api, &options, form).await?,
    };
    let eyes = call.view.as_deref().map_or(Eyes::Backend(api), Eyes::View);
    let (found, waited) = if options.index == 0 {
        (glance(&eyes.state(), None, &Trace::off(), &look), false)
    } else {
        let _slot = api.waiting.enter(&api.limits(), call.agent())?;
        (Wait::new(api, eyes, &options).run(&look).await, true)
    };
    let freshness = match (waited, &call.view) {
        (false, _) => freshness,
        (true, Some(view)) => Freshness::of_view(view),
        (true, None) => freshness.again(api).await,
    };
    Ok(freshness.describe(found, form))
}

fn glance(
    state: &State,
    since: Option<u64>,
    trace: &Trace,
    look: &impl Fn(&Pass<'_>) -> Found,
) -> Found {
    look(&Pass {
        reader: state.read(trace),
        state,
        since,
    })
}

/// Where is looked.
#[derive(Clone, Copy)]
enum Eyes<'a> {
    Backend(&'a Api),
    View(&'a Pinned),
}

impl Eyes<'_> {
    fn state(&self) -> Arc<State> {
        match self {
            Self::Backend(api) => api.deps.backend.state(),
            Self::View(view) => view.state(),
        }
    }

    fn hub(&self) -> &Hub {
        match self {
            Self::Backend(api) => api.deps.backend.hub(),
            Self::View(view) => view.hub(),
        }
    }
}

/// How fresh the answer is.
struct Freshness {
    mode: Consistency,
    meta: ReadMeta,
    from_cache: Option<bool>,
}

impl Freshness {
    fn of_view(view: &Pinned) -> Self {
        Self {
            mode: Consistency::Stale,
            meta: view.meta(),
            from_cache: Some(view.was_known),
        }
    }

    async fn reach(api: &Api, options: &Options, form: ReadForm) -> Result<Self, Failure> {
        let backend = &api.deps.backend;
        if let Some(control) = options
            .cached
            .filter(|_| form.cached && api.config.use_cache)
        {
            let meta = backend.barrier(Consistency::Stale).await?;
            let too_old = control.must_revalidate
                || control.max_age.is_some_and(|age| meta.last_contact > age);
            if !too_old {
                return Ok(Self {
                    mode: Consistency::Stale,
                    meta,
                    from_cache: Some(true),
                });
            }
            let meta = backend.barrier(Consistency::Default).await?;
            return Ok(Self {
                mode: Consistency::Default,
                meta,
                from_cache: Some(false),
            });
        }
        let discovery =
            Some(api.config.discovery_max_stale).filter(|bound| form.discovery && !bound.is_zero());
        let (mode, bound) = match options.consistency {
            Consistency::Stale => (Consistency::Stale, options.max_stale),
            Consistency::Default if discovery.is_some() => (Consistency::Stale, discovery),
            mode => (mode, None),
        };
        let meta = backend.barrier(mode).await?;
        if bound.is_some_and(|bound| meta.last_contact > bound) {
            let meta = backend.barrier(Consistency::Default).await?;
            return Ok(Self {
                mode: Consistency::Default,
                meta,
                from_cache: None,
            });
        }
        Ok(Self {
            mode,
            meta,
            from_cache: None,
        })
    }

    /// After a wait the leader may be another one, or none.
    async fn again(self, api: &Api) -> Self {
        match api.deps.backend.barrier(Consistency::Stale).await {
            Ok(meta) => Self { meta, ..self },
            Err(_) => self,
        }
    }

    fn describe(&self, found: Found, form: ReadForm) -> Reply {
        let mut reply = found.reply.unwrap_or_else(Reply::empty);
        let headers = &mut reply.headers;
        headers.reserve(8);
        // Never 0: clients take that for "no index" and spin.
        headers.insert(INDEX, HeaderValue::from(found.index.max(1)));
        let known = if self.meta.known_leader {
            "true"
        } else {
            "false"
        };
        headers.insert(KNOWN_LEADER, HeaderValue::from_static(known));
        headers.insert(
            LAST_CONTACT,
            HeaderValue::from(millis(self.meta.last_contact)),
        );
        let mode = match self.mode {
            Consistency::Default => "leader",
            Consistency::Consistent => "consistent",
            Consistency::Stale => "stale",
        };
        headers.insert(CONSISTENCY, HeaderValue::from_static(mode));
        if form.discovery {
            headers.insert(QUERY_BACKEND, HeaderValue::from_static("blocking-query"));
        }
        if let Some(hit) = self.from_cache {
            headers.insert(
                X_CACHE,
                HeaderValue::from_static(if hit { "HIT" } else { "MISS" }),
            );
            headers.insert(AGE, HeaderValue::from(self.meta.last_contact.as_secs()));
        }
        reply
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A blocking query that has begun to wait.
struct Wait<'a> {
    api: &'a Api,
    eyes: Eyes<'a>,
    index: u64,
    deadline: Pin<Box<Sleep>>,
    epoch: Option<u64>,
    /// What a coarse answer was when the wait began.
    before: Option<Bytes>,
}

/// Why a wait went on.
enum Step {
    Changed,
    Over,
}

impl<'a> Wait<'a> {
    fn new(api: &'a Api, eyes: Eyes<'a>, options: &Options) -> Self {
        let deadline = Box::pin(tokio::time::sleep(api.wait_time(options.wait)));
        Self {
            api,
            eyes,
            index: options.index,
            deadline,
            epoch: None,
            before: None,
        }
    }

    async fn run(mut self, look: &(impl Fn(&Pass<'_>) -> Found + Send + Sync)) -> Found {
        let mut registered: Option<(Topics, Watch)> = None;
        loop {
            let (topics, found) = self.look(look);
            if let Some(found) = found {
                return found;
            }
            match registered.take() {
                // Registered before this look, for what it read: no change can be missed.
                Some((known, watch)) if known == topics => match self.sleep(watch).await {
                    Step::Changed => {}
                    Step::Over => return self.last(look),
                },
                _ => {
                    let watch = self.eyes.hub().watch(&topics);
                    registered = Some((topics, watch));
                }
            }
        }
    }

    /// The topics of one look, and the answer if it is one to give now.
    fn look(&mut self, look: &impl Fn(&Pass<'_>) -> Found) -> (Topics, Option<Found>) {
        let state = self.eyes.state();
        // A restore may take indexes apart from what the client knows: everybody starts anew.
        if *self.epoch.get_or_insert(state.restore_epoch()) != state.restore_epoch() {
            return (
                Topics::default(),
                Some(glance(&state, None, &Trace::off(), look)),
            );
        }
        let trace = Trace::on();
        let found = glance(&state, Some(self.index), &trace, look);
        (trace.into_topics(), self.is_news(&found).then_some(found))
    }

    fn is_news(&mut self, found: &Found) -> bool {
        if !found.coarse {
            return found.index > self.index;
        }
        match &self.before {
            Some(before) => found.index > self.index && found.bytes().as_ref() != Some(before),
            None if found.index > self.index => true,
            None => {
                self.before = found.bytes();
                false
            }
        }
    }

    async fn sleep(&mut self, watch: Watch) -> Step {
        let stopping = self.api.stopping.cancelled();
        tokio::select! {
            biased;
            () = watch => Step::Changed,
            () = &mut self.deadline => Step::Over,
            () = stopping => Step::Over,
        }
    }

    /// The answer when the time is over: the whole body, changed or not.
    fn last(&self, look: &impl Fn(&Pass<'_>) -> Found) -> Found {
        glance(&self.eyes.state(), None, &Trace::off(), look)
    }
}

impl Api {
    /// How long to wait: the default if not said, at most the maximum, plus up to a sixteenth so
    /// that queries begun together do not end together.
    pub(super) fn wait_time(&self, asked: Duration) -> Duration {
        let (default, max) = (self.config.default_query_time, self.config.max_query_time);
        let wait = if asked.is_zero() { default } else { asked }.min(max);
        let jitter = self.rng.lock().random_range(0..=millis(wait) / 16);
        (wait + Duration::from_millis(jitter)).min(max)
    }
}
