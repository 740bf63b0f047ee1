//! The pool as generated clients of typed calls see it.
//!
//! Owns: making a call of each request. Never: knows which.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tonic::body::Body;

use crate::call::{Call, Limit, Payload};
use crate::error::CallError;
use crate::role::Client;

/// Sends each request to whichever server answers; for `AgentsClient::new`.
#[derive(Clone)]
pub struct Channel {
    client: Client,
    limit: Limit,
    once: bool,
}

impl Client {
    /// For calls with one message to send, which may be executed twice.
    #[must_use]
    pub fn channel(&self, limit: Limit) -> Channel {
        Channel {
            client: self.clone(),
            limit,
            once: false,
        }
    }

    /// For streams of messages: sent to one server, and over when it is gone.
    #[must_use]
    pub fn stream(&self) -> Channel {
        Channel {
            client: self.clone(),
            limit: Limit::Open,
            once: true,
        }
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = CallError;
    type Future = BoxFuture<'static, Result<Self::Response, CallError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self {
            client,
            limit,
            once,
        } = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let payload = if once {
                Payload::Streamed(body)
            } else {
                let whole = body.collect().await.map_err(|_| CallError::Body)?;
                Payload::Whole(whole.to_bytes())
            };
            let call = Call {
                head,
                payload,
                safe: true,
                limit,
            };
            let answer = client.own_call(call).await;
            answer.map(|answer| answer.response)
        })
    }
}
