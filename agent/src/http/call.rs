//! One request on its way through a handler.
//!
//! Owns: [`Call`]: the parsed request, the guard that every handler asks, reading the body with its
//! limit on the bytes really read.
//! Never: knows a single endpoint.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::request::Parts;
use hyper::body::Incoming;
use serde_json::Value;
use weft_catalog::acl::{Access, Authorizer, Resource};
use weft_proto::json::decode;
use weft_proto::v1;

use super::api::Api;
use super::error::Failure;
use super::options::Options;
use super::pace::Paced;
use super::query::{Query, percent_decode};
use super::route::{Need, Route};
use super::viewed::Pinned;

/// A request with all it needs to be answered.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) route: &'static Route,
    pub(super) head: Parts,
    pub(super) query: Query,
    pub(super) guard: Guard,
    /// What a client agent answers it from; `None`: the backend's state.
    pub(super) view: Option<Box<Pinned>>,
    client: Option<IpAddr>,
    /// The node of the agent that forwards the call, if one does.
    node: Option<String>,
    tail_from: usize,
    body: Option<Incoming>,
}

impl Call {
    /// The client's address and the node of the agent that forwards the call; `tail_from`: where the name begins in the raw path.
    pub(super) fn new(
        api: Arc<Api>,
        route: &'static Route,
        request: (Parts, Incoming),
        query: Query,
        (client, node): (Option<IpAddr>, Option<String>),
        tail_from: usize,
    ) -> Self {
        let guard = Guard {
            authorizer: Arc::clone(&api.deps.authorizer),
            need: route.need,
        };
        Self {
            api,
            route,
            head: request.0,
            query,
            guard,
            view: None,
            client,
            node,
            tail_from,
            body: Some(request.1),
        }
    }

    /// Whom the answer is for, as far as it is known: the first address that a proxy forwards for, else
    /// the other end. Anybody may claim to forward: no right depends on it.
    pub(super) fn source(&self) -> Option<IpAddr> {
        let forwarded = self.head.headers.get("x-forwarded-for");
        let first = forwarded.and_then(|list| list.to_str().ok()?.split(',').next());
        let first = first.and_then(|address| address.trim().parse().ok());
        first.or(self.client)
    }

    /// The node of the agent that forwards the call, if one does.
    pub(super) fn agent(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The node whose agent the client asked.
    pub(super) fn here(&self) -> &str {
        self.node.as_ref().unwrap_or(&self.api.deps.info.node_name)
    }

    /// The name in the path as bytes, decoded once.
    pub(super) fn tail_bytes(&self) -> Result<std::borrow::Cow<'_, [u8]>, Failure> {
        let raw = &self.head.uri.path()[self.tail_from..];
        percent_decode(raw.as_bytes())
            .ok_or_else(|| Failure::bad_request("http.path", "Invalid URL escape in path"))
    }

    /// The name in the path as text.
    pub(super) fn tail(&self) -> Result<String, Failure> {
        let bytes = self.tail_bytes()?.into_owned();
        String::from_utf8(bytes)
            .map_err(|_| Failure::bad_request("http.path", "The name in the path is not UTF-8"))
    }

    /// The name in the path, or 400 with `missing`.
    pub(super) fn required_tail(&self, missing: &'static str) -> Result<String, Failure> {
        let tail = self.tail()?;
        if tail.is_empty() {
            Err(Failure::bad_request("http.name.missing", missing))
        } else {
            Ok(tail)
        }
    }

    /// Consistency and blocking parameters.
    pub(super) fn options(&self) -> Result<Options, Failure> {
        Options::parse(&self.query, &self.head.headers)
    }

    /// The raw body stream; the caller bounds it.
    pub(super) fn take_body(&mut self) -> Option<Paced> {
        let stall = self.api.limits().stall_timeout;
        let clock = &self.api.deps.clock;
        let body = self.body.take()?;
        Some(Paced::new(body, Arc::clone(clock), stall))
    }

    /// The whole body, at most `max` bytes: what is announced counts first, what arrives counts too.
    pub(super) async fn body(&mut self, max: u64, knob: &str) -> Result<Bytes, Failure> {
        let announced = content_length(&self.head.headers);
        if let Some(size) = announced.filter(|size| *size > max) {
            return Err(Failure::too_large(size, max, knob));
        }
        let Some(mut body) = self.take_body() else {
            return Ok(Bytes::new());
        };
        let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
        while let Some(data) = body.next().await {
            let data = data?;
            let size = (first.len() + rest.len() + data.len()) as u64;
            if size > max {
                return Err(Failure::too_large(size, max, knob));
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&std::mem::take(&mut first));
                rest.extend_from_slice(&data);
            }
        }
        Ok(if rest.is_empty() {
            first
        } else {
            rest.freeze()
        })
    }

    /// The body as JSON, within the limit for ordinary bodies.
    pub(super) async fn json(&mut self) -> Result<Value, Failure> {
        let max = self.api.limits().max_body_bytes;
        let body = self.body(max, "limits.http_max_request_body_size").await?;
        Ok(decode::parse(&body)?)
    }

    /// The body as JSON, `null` when there is none.
    pub(super) async fn optional_json(&mut self) -> Result<Value, Failure> {
        let max = self.api.limits().max_body_bytes;
        let body = self.body(max, "limits.http_max_request_body_size").await?;
        if body.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(decode::parse(&body)?)
        }
    }

    /// Writes through the log; a refusal becomes a failure.
    pub(super) async fn write(
        &self,
        command: v1::stamped::Command,
    ) -> Result<v1::Outcome, Failure> {
        let outcome = self.api.deps.backend.write(command).await?;
        match outcome.result {
            Some(v1::outcome::Result::Refusal(refusal)) => Err(refusal.into()),
            _ => Ok(outcome),
        }
    }

    /// `enable=true|false`, which maintenance needs.
    pub(super) fn enable(&self) -> Result<bool, Failure> {
        match self.query.get("enable") {
            None => Err(Failure::bad_request(
                "http.enable.missing",
                "Missing value for enable",
            )),
            Some(text) => parse_bool(text).ok_or_else(|| {
                Failure::bad_request(
                    "http.enable.invalid",
                    format!("Invalid value for enable: {text:?}"),
                )
            }),
        }
    }
}

/// The texts Go takes for a boolean.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What `Content-Length` announces.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a handler asks before it shows or changes anything. It knows what the route declared.
#[derive(Clone)]
pub(super) struct Guard {
    authorizer: Arc<dyn Authorizer>,
    need: Need,
}

impl Guard {
    /// What must be asked before the handler runs.
    pub(super) fn enter(&self, tail: &[u8]) -> Result<(), Failure> {
        match self.need {
            Need::Fixed(resource, access) => self.ask(resource, b"", access),
            Need::Tail(resource, access) => self.ask(resource, tail, access),
            Need::Public(_) | Need::Named(_) | Need::Rows(_) => Ok(()),
        }
    }

    /// Asks for a right the route has declared; 403 when it is not given.
    pub(super) fn require(
        &self,
        resource: Resource,
        name: &[u8],
        access: Access,
    ) -> Result<(), Failure> {
        self.assert_declared(resource, access);
        self.ask(resource, name, access)
    }

    /// Whether a row may be shown.
    pub(super) fn shows(&self, resource: Resource, name: &[u8]) -> bool {
        self.assert_declared(resource, Access::Read);
        self.authorizer.allows(resource, name, Access::Read).allowed
    }

    /// Distinguishes bodies filtered for different rights.
    pub(super) fn fingerprint(&self) -> u64 {
        self.authorizer.fingerprint()
    }

    fn ask(&self, resource: Resource, name: &[u8], access: Access) -> Result<(), Failure> {
        let decision = self.authorizer.allows(resource, name, access);
        if decision.allowed {
            return Ok(());
        }
        Err(Failure::denied(decision.reason, resource, name, access))
    }

    fn assert_declared(&self, resource: Resource, access: Access) {
        let (Need::Named(declared) | Need::Rows(declared)) = self.need else {
            panic!(
                "a handler asked for {resource:?} {access:?} beside what its route declares: {:?}",
                self.need
            );
        };
        assert!(
            declared.contains(&(resource, access)),
            "a handler asked for {resource:?} {access:?}, which its route does not declare"
        );
    }
}
