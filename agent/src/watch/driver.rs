//! The watches of the configuration, running.
//!
//! Owns: a task for each, and replacing them at a reload: those that did not change go on.
//! Never: opens a socket; it asks this agent's API inside the process.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::definition::WatchDefinition;
use super::follower::{ANSWER_MAX_BYTES, ASK_LIMIT, Follower, News};
use super::metrics::WatchMetrics;
use super::plan::Question;
use crate::http::{InProcess, percent_encode};

/// How long handlers that run may go on when the agent stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// What runs.
pub struct Watches {
    api: InProcess,
    metrics: WatchMetrics,
    seed: u64,
    running: Mutex<Vec<Running>>,
}

struct Running {
    definition: WatchDefinition,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Watches {
    /// None run yet. `seed`: of the pauses after failures.
    #[must_use]
    pub fn new(api: InProcess, metrics: WatchMetrics, seed: u64) -> Self {
        Self {
            api,
            metrics,
            seed,
            running: Mutex::default(),
        }
    }

    /// From now on exactly these run. One that did not change goes on as it is; a handler that runs
    /// comes to its end in any case.
    pub fn replace(&self, definitions: &[WatchDefinition]) {
        let mut running = self.running.lock();
        let mut old = std::mem::take(&mut *running);
        for (nth, definition) in (0_u64..).zip(definitions) {
            let kept = old.iter().position(|one| one.definition == *definition);
            running.push(match kept {
                Some(at) => old.swap_remove(at),
                None => self.start(definition.clone(), self.seed.wrapping_add(nth)),
            });
        }
        for one in &old {
            one.stop.cancel();
        }
        self.metrics
            .running
            .set(i64::try_from(running.len()).unwrap_or(i64::MAX));
    }

    fn start(&self, definition: WatchDefinition, seed: u64) -> Running {
        let stop = CancellationToken::new();
        let watch = Watch {
            follower: Follower::new(definition.plan.clone()),
            definition: definition.clone(),
            api: self.api.clone(),
            metrics: self.metrics.clone(),
            backoff: Backoff::new(seed),
        };
        let task = tokio::spawn(watch.run(stop.clone()));
        Running {
            definition,
            stop,
            task,
        }
    }

    /// Ends them all; handlers that still run after a moment are killed.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for one in &running {
            one.stop.cancel();
        }
        let killers: Vec<_> = running.iter().map(|one| one.task.abort_handle()).collect();
        let ends = futures::future::join_all(running.into_iter().map(|one| one.task));
        if tokio::time::timeout(GOODBYE, ends).await.is_err() {
            killers.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

struct Watch {
    definition: WatchDefinition,
    follower: Follower,
    api: InProcess,
    metrics: WatchMetrics,
    backoff: Backoff,
}

impl Watch {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let question = self.follower.ask();
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = ask(&self.api, &self.definition, question) => answer,
            };
            let news = match answer {
                Ok((status, index, body)) => self
                    .follower
                    .answered(status, index, &body)
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            let pause = match news {
                Ok(news) => {
                    self.backoff.reset();
                    if let Some(news) = news {
                        self.tell(&news).await;
                    }
                    continue;
                }
                Err(error) => self.complain(&error),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn complain(&mut self, error: &str) -> Duration {
        self.follower.failed();
        self.metrics.failures.inc();
        let pause = self.backoff.pause();
        let kind = self.follower.plan().kind();
        tracing::warn!(watch.kind = kind, error, retry = ?pause, "watch failed, asking again");
        pause
    }

    async fn tell(&self, news: &News) {
        let (kind, handler) = (self.follower.plan().kind(), &self.definition.handler);
        let told = handler.tell(news).await;
        let outcome = if told.is_ok() { "ok" } else { "failed" };
        self.metrics
            .runs
            .get_or_create(&[("handler", handler.word()), ("outcome", outcome)])
            .inc();
        match told {
            Ok(output) => {
                tracing::debug!(
                    watch.kind = kind,
                    index = news.index,
                    output,
                    "watch handler was told"
                );
            }
            Err(error) => {
                tracing::warn!(
                    watch.kind = kind,
                    index = news.index,
                    error,
                    "watch handler failed"
                );
            }
        }
    }
}

type Answered = (StatusCode, Option<u64>, Bytes);

async fn ask(
    api: &InProcess,
    of: &WatchDefinition,
    question: Question,
) -> Result<Answered, String> {
    let asking = exchange(api, request(of, question)?);
    tokio::time::timeout(ASK_LIMIT, asking)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

fn request(of: &WatchDefinition, mut question: Question) -> Result<Request<Empty<Bytes>>, String> {
    if !of.datacenter.is_empty() {
        question.query.push(("dc", of.datacenter.clone()));
    }
    if of.stale {
        question.query.push(("stale", String::new()));
    }
    let mut uri = percent_encode(&question.path, true);
    for (nth, (name, value)) in question.query.iter().enumerate() {
        uri.push(if nth == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        uri.push_str(&percent_encode(value, false));
    }
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(header::HOST, "localhost");
    if !of.token.is_empty() {
        request = request.header("X-Consul-Token", &of.token);
    }
    request
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

async fn exchange(api: &InProcess, request: Request<Empty<Bytes>>) -> Result<Answered, String> {
    let stream = api.connect()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the answer: the stream is dropped with the sender.
    tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let index = response.headers().get("X-Consul-Index");
    let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
        .collect()
        .await;
    Ok((
        status,
        index,
        body.map_err(|error| error.to_string())?.to_bytes(),
    ))
}
