//! Calls that a server answers, on an agent that is none.
//!
//! Owns: what is passed on of a request and an answer, and which routes are this agent's own.
//! Never: chooses a server or asks again ([`Relay`] does); changes an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use hyper::body::{Body as _, Incoming};

use super::api::Api;
use super::call::content_length;
use super::error::Failure;
use super::options::Options;
use super::pace::Paced;
use super::query::Query;
use super::reply::Reply;
use crate::backend::{Relay, RelayBody, RelayCall, RelayLimit};

/// Whom the agent forwards for; a server heeds it on agents' own connections only.
pub(super) const CLIENT: HeaderName = HeaderName::from_static("x-weft-client");

/// The node of the agent that forwards; heeded where the client's address is.
pub(super) const NODE: HeaderName = HeaderName::from_static("x-weft-node");

/// Bodies up to this size are gathered before they are sent, so that they can be sent again.
const GATHERED_MAX_BYTES: u64 = 64 * 1024;

/// What concerns one connection and not the one behind it (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether every agent answers a path itself, from what it alone knows.
pub(super) fn is_local(path: &str) -> bool {
    path.starts_with("/v1/agent/") || path.starts_with("/v1/event/") || path == "/v1/openapi.json"
}

impl Api {
    /// Has a server answer the request.
    pub(super) async fn relayed(
        self: &Arc<Self>,
        relay: &dyn Relay,
        (head, body): (Parts, Incoming),
        query: &Query,
        client: Option<IpAddr>,
    ) -> Result<Reply, Failure> {
        self.may_relay(client)?;
        // A server refuses what does not parse, in its own words.
        let options = Options::parse(query, &head.headers).ok();
        let waits = options.filter(|options| options.index > 0);
        let _slot = match &waits {
            Some(_) => Some(self.waiting.enter(&self.limits(), None)?),
            None => None,
        };
        let limit = match &waits {
            Some(options) => RelayLimit::Wait(self.longest_wait(options.wait)),
            // As long as it takes to read or to write all there is.
            None if head.uri.path() == "/v1/snapshot" => RelayLimit::Open,
            None => RelayLimit::Usual,
        };
        let body = self.gathered(&head.headers, body).await?;
        let call = RelayCall {
            head: passed_on(head, client, &self.deps.info.node_name),
            body,
            limit,
        };
        let answer = tokio::select! {
            biased;
            answer = relay.relay(call) => answer?,
            () = self.stopping.cancelled(), if waits.is_some() => {
                return Err(Failure::internal("http.stopping", "this agent is stopping"));
            }
        };
        Ok(Reply::relayed(answer))
    }

    /// How long a server may wait before it answers, whatever its own defaults are.
    fn longest_wait(&self, asked: Duration) -> Duration {
        let most = self
            .config
            .max_query_time
            .max(self.config.default_query_time);
        let wait = asked.max(most);
        wait + wait / 16
    }

    async fn gathered(&self, headers: &HeaderMap, body: Incoming) -> Result<RelayBody, Failure> {
        if body.is_end_stream() {
            return Ok(RelayBody::Whole(bytes::Bytes::new()));
        }
        let small = content_length(headers).is_some_and(|size| size <= GATHERED_MAX_BYTES);
        if !small {
            return Ok(RelayBody::Streamed(body));
        }
        let stall = self.limits().stall_timeout;
        let mut body = Paced::new(body, Arc::clone(&self.deps.clock), stall);
        let mut whole = BytesMut::new();
        while let Some(piece) = body.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(RelayBody::Whole(whole.freeze()))
    }
}

fn passed_on(mut head: Parts, client: Option<IpAddr>, node: &str) -> Parts {
    let headers = &mut head.headers;
    // What `Connection` names concerns this connection only, too.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if headers.contains_key(CONTENT_LENGTH) && content_length(headers).is_none() {
        headers.remove(CONTENT_LENGTH);
    }
    headers.remove(CLIENT);
    let address = client.and_then(|client| HeaderValue::from_str(&client.to_string()).ok());
    if let Some(address) = address {
        headers.insert(CLIENT, address);
    }
    headers.remove(NODE);
    if let Ok(node) = HeaderValue::from_bytes(node.as_bytes()) {
        headers.insert(NODE, node);
    }
    head.extensions.clear();
    head
}

/// The client that an agent forwards for and the agent's node, as it says; the headers go.
pub(super) fn origin(head: &mut Parts) -> (Option<IpAddr>, Option<String>) {
    let address = head.headers.remove(CLIENT);
    let client = address.and_then(|address| address.to_str().ok()?.parse().ok());
    let node = head.headers.remove(NODE);
    let node = node.and_then(|node| String::from_utf8(node.as_bytes().to_vec()).ok());
    (client, node)
}

#[cfg(test)]
mod tests {
    use super::super::table::TABLE;
    use super::*;

    #[test]
    fn what_a_server_knows_is_asked_of_a_server() {
        let families = |local: bool| {
            let routes = TABLE.iter().filter(|route| is_local(route.path) == local);
            let mut families: Vec<_> = routes
                .filter_map(|route| route.path.split('/').nth(2))
                .collect();
            families.dedup();
            families.sort_unstable();
            families.dedup();
            families
        };
        assert_eq!(families(true), ["agent", "event", "openapi.json"]);
        assert_eq!(
            families(false),
            [
                "catalog",
                "config",
                "connect",
                "coordinate",
                "health",
                "internal",
                "kv",
                "operator",
                "query",
                "session",
                "snapshot",
                "status",
                "txn"
            ]
        );
    }

    #[test]
    fn only_what_concerns_the_server_is_passed_on() {
        let request = http::Request::builder()
            .uri("/v1/kv/a?index=7")
            .header("connection", "close, X-Mine")
            .header("x-mine", "1")
            .header("host", "localhost:8500")
            .header("x-consul-token", "t")
            .header("x-weft-client", "10.0.0.1")
            .header("accept-encoding", "gzip");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let mut head = passed_on(head, Some([127, 0, 0, 9].into()), "c1");
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept-encoding",
                "x-consul-token",
                "x-weft-client",
                "x-weft-node"
            ]
        );
        let node = Some("c1".to_owned());
        let expected = (Some([127, 0, 0, 9].into()), node.clone());
        assert_eq!(origin(&mut head), expected);
        assert_eq!(origin(&mut passed_on(head, None, "c1")), (None, node));
    }
}
