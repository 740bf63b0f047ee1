//! One call to whichever server answers it.
//!
//! Owns: which failures are tried again, how often and for how long (`performance.rpc_hold_timeout`), and what is
//! then known of the call.
//! Never: sends again what may have been executed, unless executing it twice is executing it once.
//! Source: Consul docs, `rpc_hold_timeout`; DESIGN §4, "Idempotence".

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;

use crate::connection::{Connection, Failed};
use crate::error::CallError;
use crate::role::{Client, Inner};

/// Pauses are up to this part of the time to hold.
const PAUSES: u32 = 16;
/// Refusals of a server that is not, or no longer, at work: nothing was executed, another may do it.
const NOT_AT_WORK: [&str; 2] = ["raft.stopped", "server.starting"];
/// Refusals of a server that has lost the others: they may be better off.
const CUT_OFF: [&str; 2] = ["raft.no_leader", "raft.read_timeout"];

/// A body to send.
pub enum Payload {
    /// Can be sent again.
    Whole(Bytes),
    /// Can be sent once.
    Streamed(Body),
}

/// How long an answer may take to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As long as servers take at most.
    Usual,
    /// A wait that was asked for, and what is usual.
    Wait(Duration),
    /// As long as the server shows that it lives.
    Open,
}

/// An answer; its place among the calls is taken until it is dropped.
pub struct Answer {
    /// Head and body.
    pub response: Response<Incoming>,
    /// To be kept until the body has been read.
    pub place: Place,
}

/// A place among the calls on their way.
pub struct Place {
    gauge: Gauge,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Among those of users, whose number is bounded.
    fn take(inner: &Inner) -> Result<Self, CallError> {
        let permit = Arc::clone(&inner.places).try_acquire_owned();
        let permit = permit.map_err(|_| CallError::TooMany(inner.config.max_calls))?;
        Ok(Self::with(inner, Some(permit)))
    }

    /// For the agent's own calls: few, and no flood of users keeps them from the servers.
    fn own(inner: &Inner) -> Self {
        Self::with(inner, None)
    }

    fn with(inner: &Inner, permit: Option<OwnedSemaphorePermit>) -> Self {
        let gauge = inner.metrics.in_flight.clone();
        gauge.inc();
        Self {
            gauge,
            _permit: permit,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// What is to be sent.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) payload: Payload,
    /// Executing it twice is executing it once.
    pub(crate) safe: bool,
    pub(crate) limit: Limit,
}

/// What became of one attempt.
enum Attempt {
    Answered(Response<Incoming>),
    /// May be made again.
    Again {
        why: String,
        sent: bool,
    },
    Over(CallError),
}

impl Client {
    /// Sends a user's call to a server, and to others while none has taken it.
    ///
    /// `safe`: executing it twice is executing it once.
    pub async fn call(
        &self,
        head: Parts,
        payload: Payload,
        safe: bool,
        limit: Limit,
    ) -> Result<Answer, CallError> {
        self.inner.metrics.call("http");
        let call = Call {
            head,
            payload,
            safe,
            limit,
        };
        self.made(Place::take(&self.inner), call).await
    }

    /// A call of the agent itself.
    pub(crate) async fn own_call(&self, call: Call) -> Result<Answer, CallError> {
        self.inner.metrics.call("typed");
        self.made(Ok(Place::own(&self.inner)), call).await
    }

    async fn made(&self, place: Result<Place, CallError>, call: Call) -> Result<Answer, CallError> {
        let made = match place {
            Ok(place) => self
                .answered(call)
                .await
                .map(|response| Answer { response, place }),
            Err(full) => Err(full),
        };
        if let Err(error) = &made {
            self.inner.metrics.failed(error.reason());
        }
        made
    }

    async fn answered(&self, mut call: Call) -> Result<Response<Incoming>, CallError> {
        let inner = &self.inner;
        let deadline = inner.clock.monotonic() + inner.config.hold_timeout;
        let mut attempts = 0;
        let mut was_sent = false;
        loop {
            let (first, servers) = {
                let servers = inner.pool.servers.lock();
                let first = servers.order().first().map(|one| one.address.clone());
                (first, servers.order().len())
            };
            let Some(address) = first else {
                return Err(CallError::NoServers);
            };
            let why = match self.attempt(&address, &mut call).await {
                Attempt::Answered(response) => return Ok(response),
                Attempt::Over(error) => return Err(error),
                Attempt::Again { why, sent } => {
                    was_sent |= sent;
                    why
                }
            };
            inner.pool.servers.lock().failed(&address);
            inner.pool.not_answered(&address, &why);
            attempts += 1;
            if inner.clock.monotonic() >= deadline {
                return Err(match was_sent {
                    true => CallError::Unanswered(why),
                    false => CallError::NotSent(why),
                });
            }
            inner.metrics.retries.inc();
            tracing::debug!(server.addr = %address, error = %why, "a call is sent again");
            if attempts % servers.max(1) == 0 {
                let most = inner.config.hold_timeout / PAUSES;
                let pause = inner.pool.servers.lock().jitter(most);
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn attempt(&self, address: &str, call: &mut Call) -> Attempt {
        let connection = match self.inner.pool.connection(address).await {
            Ok(connection) => connection,
            Err(why) => {
                return Attempt::Again {
                    why: why.to_string(),
                    sent: false,
                };
            }
        };
        let (payload, once) = match &mut call.payload {
            Payload::Whole(bytes) if bytes.is_empty() => (Body::empty(), false),
            Payload::Whole(bytes) => (Body::new(Full::new(bytes.clone())), false),
            Payload::Streamed(body) => (std::mem::take(body), true),
        };
        let request = Request::from_parts(call.head.clone(), payload);
        let (safe, limit) = (call.safe, call.limit);
        let failed = match self.sent(connection, request, safe, limit).await {
            Ok(response) => return self.judge(address, response, once),
            Err(failed) => failed,
        };
        match failed {
            // What was to be sent once may be half sent.
            Failed::NotSent(why) if !once => Attempt::Again {
                why: format!("{address}: {why}"),
                sent: false,
            },
            Failed::Sent(why) if safe && !once => Attempt::Again {
                why: format!("{address}: {why}"),
                sent: true,
            },
            Failed::NotSent(why) => {
                self.inner.pool.servers.lock().failed(address);
                Attempt::Over(CallError::NotSent(format!("{address}: {why}")))
            }
            Failed::Sent(why) => {
                self.inner.pool.servers.lock().failed(address);
                Attempt::Over(CallError::Unknown(format!("{address}: {why}")))
            }
        }
    }

    async fn sent(
        &self,
        mut connection: Connection,
        request: Request<Body>,
        safe: bool,
        limit: Limit,
    ) -> Result<Response<Incoming>, Failed> {
        let usual = self.inner.config.hold_timeout + self.inner.config.answer_limit;
        let limit = match limit {
            Limit::Usual => usual,
            Limit::Wait(wait) => wait + usual,
            Limit::Open => Duration::MAX,
        };
        let lost = connection.lost.clone();
        let over = async {
            match limit {
                Duration::MAX => std::future::pending().await,
                limit => tokio::time::sleep(limit).await,
            }
        };
        tokio::select! {
            biased;
            answered = connection.send(request) => answered,
            // A server that is gone may be frozen: whoever can ask another need not wait for it.
            () = lost.cancelled(), if safe => Err(Failed::Sent("the server is gone".into())),
            () = over => Err(Failed::Sent(format!("no answer within {limit:?}"))),
        }
    }

    /// A refusal may say that the server is not the one to ask.
    fn judge(&self, address: &str, response: Response<Incoming>, once: bool) -> Attempt {
        let reason = reason_of(response.headers());
        if NOT_AT_WORK.contains(&reason) && !once {
            return Attempt::Again {
                why: format!("{address}: {reason}"),
                sent: false,
            };
        }
        if CUT_OFF.contains(&reason) {
            self.inner.pool.servers.lock().failed(address);
        }
        Attempt::Answered(response)
    }
}

fn reason_of(headers: &HeaderMap) -> &str {
    headers
        .get("x-weft-reason")
        .and_then(|reason| reason.to_str().ok())
        .unwrap_or_default()
}
