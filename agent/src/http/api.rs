//! From a request to its answer.
//!
//! Owns: [`Api`], what all requests share, and the steps each request goes through: find the route,
//! parse, authorize, answer, describe, count.
//! Never: accepts a connection, or knows a single endpoint.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ACCEPT_ENCODING, ALLOW, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio_util::sync::CancellationToken;
use weft_catalog::prepared_query::Expressions;

use super::cache::BodyCache;
use super::call::Call;
use super::complaints::Complaints;
use super::config::{Deps, HttpConfig, HttpLimits};
use super::consul_metrics::Naming;
use super::error::Failure;
use super::metrics::Metrics;
use super::options::check_scope;
use super::query::{PARAMETERS_MAX, Query, Refused, percent_decode};
use super::rates::{Beyond, RateLimits, Rates};
use super::relay::{is_local, origin};
use super::reply::{Body, Reply};
use super::route::{Lookup, Routes};
use super::table::TABLE;
use super::viewed::Plan;
use super::waiting::Waiting;
use crate::config::sockaddr::contains;

const UNKNOWN_V1: &str = "Invalid URL path: not a recognized HTTP API endpoint\n";
const UNKNOWN: &str =
    "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n";

/// What all requests share.
pub(super) struct Api {
    pub(super) deps: Deps,
    pub(super) config: HttpConfig,
    pub(super) cache: BodyCache,
    pub(super) waiting: Waiting,
    complaints: Complaints,
    limits: ArcSwap<HttpLimits>,
    rates: Rates,
    naming: ArcSwap<Naming>,
    pub(super) metrics: Metrics,
    pub(super) rng: Mutex<SmallRng>,
    /// Of the templates of prepared queries.
    pub(super) expressions: Expressions,
    /// Monotonic time when the API was started.
    pub(super) started_at: Duration,
    /// Set when the server stops: whoever waits answers now.
    pub(super) stopping: CancellationToken,
    routes: Routes,
}

impl Api {
    pub(super) fn new(config: HttpConfig, deps: Deps, stopping: CancellationToken) -> Arc<Self> {
        let routes = Routes::new(TABLE);
        let rates = Rates::default();
        rates.set(config.rates);
        let metrics = Metrics::register(&mut deps.registry.lock(), routes.table());
        Arc::new(Self {
            cache: BodyCache::new(config.limits.body_cache_bytes),
            waiting: Waiting::new(metrics.waiting()),
            complaints: Complaints::default(),
            limits: ArcSwap::from_pointee(config.limits),
            rates,
            naming: ArcSwap::from_pointee(config.naming.clone()),
            rng: Mutex::new(SmallRng::seed_from_u64(config.seed)),
            expressions: Expressions::default(),
            metrics,
            started_at: deps.clock.monotonic(),
            stopping,
            routes,
            deps,
            config,
        })
    }

    /// The bounds in force.
    pub(super) fn limits(&self) -> HttpLimits {
        **self.limits.load()
    }

    /// Puts other bounds and rates in force, for what comes from now on.
    pub(super) fn set_limits(&self, limits: HttpLimits, rates: RateLimits) {
        self.limits.store(Arc::new(limits));
        self.rates.set(rates);
    }

    /// Names of the metrics that go out.
    pub(super) fn naming(&self) -> Arc<Naming> {
        self.naming.load_full()
    }

    /// Lets other names of metrics go out.
    pub(super) fn set_naming(&self, naming: Naming) {
        self.naming.store(Arc::new(naming));
    }

    /// Says in the log that a bound was met; of one bound at most once a second.
    pub(super) fn say_limited(&self, knob: &'static str, client: Option<IpAddr>, enforced: bool) {
        let now = self.deps.clock.monotonic();
        if let Some(repeated) = self.complaints.admit(knob, now) {
            let client = client.map_or_else(|| "-".to_owned(), |client| client.to_string());
            tracing::warn!(limit = knob, peer.addr = %client, enforced, repeated, "a limit was met");
        }
    }

    /// Counts what goes beyond a rate; a failure when that is refused.
    fn judge_rate(&self, beyond: Option<Beyond>, client: Option<IpAddr>) -> Result<(), Failure> {
        let Some(beyond) = beyond else {
            return Ok(());
        };
        self.metrics.limit(beyond.knob, beyond.enforced);
        self.say_limited(beyond.knob, client, beyond.enforced);
        if !beyond.enforced {
            return Ok(());
        }
        let consul = self.deps.operator.stats().remove("consul");
        let leads =
            consul.is_some_and(|consul| consul.get("leader").is_some_and(|is| is == "true"));
        Err(beyond.failure(leads))
    }

    /// `limits.source_limits` for this agent's own clients, `limits.request_limits` for all a server answers.
    fn judge_rates(&self, head: &Parts, look: &Look) -> Result<(), Failure> {
        let request = (&head.method, head.uri.path());
        let now = self.deps.clock.monotonic();
        if look.forwarded.is_none() {
            let beyond = self.rates.of_source(look.client, request, now);
            self.judge_rate(beyond, look.client)?;
        }
        if self.deps.info.server && !is_local(request.1) {
            self.judge_rate(self.rates.at_server(request, now), look.client)?;
        }
        Ok(())
    }

    /// `limits.rpc_rate`.
    pub(super) fn may_relay(&self, client: Option<IpAddr>) -> Result<(), Failure> {
        let now = self.deps.clock.monotonic();
        self.judge_rate(self.rates.to_servers(now), client)
    }

    /// Answers one request of `client`; `None`: it came over a unix socket.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Option<IpAddr>,
    ) -> Response<Body> {
        let look = Look {
            pretty: self.config.always_pretty,
            route: None,
            client,
            forwarded: None,
        };
        let mut response = Arc::clone(&self).answer_as(request, look).await;
        for (name, value) in &self.config.response_headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }

    /// Answers one request that an agent forwards for a client of its own. What that agent's configuration
    /// says of its clients, it has seen to.
    pub(super) async fn answer_forwarded(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let (client, node) = origin(&mut head);
        let look = Look {
            pretty: false,
            route: None,
            client,
            forwarded: Some(node.unwrap_or_else(|| self.deps.info.node_name.clone())),
        };
        self.answer_as(Request::from_parts(head, body), look).await
    }

    async fn answer_as(self: Arc<Self>, request: Request<Incoming>, look: Look) -> Response<Body> {
        let _flight = self.metrics.enter();
        let began = self.deps.clock.monotonic();
        let (head, body) = request.into_parts();
        let accepts_gzip = accepts_gzip(&head.headers);
        let (look, result) = Arc::clone(&self).dispatch(head, body, look).await;
        let reply = result.unwrap_or_else(|failure| {
            self.log_failure(&failure, look.route.map(|at| self.routes.table()[at].path));
            failure.into_reply()
        });
        let took = self.deps.clock.monotonic().saturating_sub(began);
        self.metrics.count(look.route, reply.status, took);
        reply.finish(look.pretty, accepts_gzip)
    }

    /// The route stands for the path and the query string stays out: it may carry a token.
    fn log_failure(&self, failure: &Failure, route: Option<&str>) {
        let (status, route) = (failure.status.as_u16(), route.unwrap_or("-"));
        if !failure.status.is_server_error() {
            tracing::debug!(http.status = status, http.route = route, reason = %failure.reason, error = %failure.text, "request refused");
            return;
        }
        let now = self.deps.clock.monotonic();
        if let Some(repeated) = self.complaints.admit(&failure.reason, now) {
            tracing::warn!(http.status = status, http.route = route, reason = %failure.reason, error = %failure.text, repeated, "request failed");
        }
    }

    async fn dispatch(
        self: Arc<Self>,
        head: Parts,
        body: Incoming,
        mut look: Look,
    ) -> (Look, Result<Reply, Failure>) {
        let api = Arc::clone(&self);
        let path = head.uri.path();
        if let Err(failure) = self.judge_head(&head) {
            return (look, Err(failure));
        }
        let (at, route, tail) = match api.routes.find(&head.method, path) {
            Lookup::Found(at, route, tail) => (at, route, tail),
            Lookup::Method(_) if head.method == Method::OPTIONS => {
                return (look, Ok(self.options(path)));
            }
            Lookup::Method(allow) => return (look, Err(Failure::method(&head.method, allow))),
            Lookup::Unknown => return (look, self.unknown(path, head.uri.query())),
        };
        look.route = Some(at);
        let allowed = if look.forwarded.is_some() {
            Ok(())
        } else {
            self.may_write(&head, look.client)
                .and_then(|()| self.is_open(path))
        };
        let allowed = allowed.and_then(|()| self.judge_rates(&head, &look));
        let prepared = allowed.and_then(|()| self.prepare(&head, path));
        let query = match prepared {
            Ok(query) => query,
            Err(failure) => return (look, Err(failure)),
        };
        look.pretty |= query.has("pretty");
        let mut view = None;
        if let Some(relay) = api.deps.relay.as_deref().filter(|_| !is_local(path)) {
            match self.plan(route.path, tail, &head, &query).await {
                Ok(Plan::Here) => {}
                Ok(Plan::View(pinned)) => view = Some(pinned),
                Ok(Plan::Servers) => {
                    let answer = self.relayed(relay, (head, body), &query, look.client).await;
                    return (look, answer);
                }
                Err(failure) => return (look, Err(failure)),
            }
        }
        let tail_from = path.len() - tail.len();
        let origin = (look.client, look.forwarded.clone());
        let mut call = Call::new(self, route, (head, body), query, origin, tail_from);
        call.view = view;
        let entered = match call.tail_bytes() {
            Ok(tail) => call.guard.enter(&tail),
            Err(failure) => Err(failure),
        };
        match entered {
            Ok(()) => (look, (route.handler)(call).await),
            Err(failure) => (look, Err(failure)),
        }
    }

    /// The bound on a head. hyper's own is twice as large, so that this refusal can have a reason.
    fn judge_head(&self, head: &Parts) -> Result<(), Failure> {
        let max = self.limits().max_header_bytes;
        let target = head
            .uri
            .path_and_query()
            .map_or(0, |target| target.as_str().len());
        let line =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
        let size = target + head.headers.iter().map(line).sum::<usize>();
        if size <= max {
            return Ok(());
        }
        let text = format!(
            "Request head ({size} bytes) too large, max size: {max} bytes. See http_config.max_header_bytes in the agent's configuration."
        );
        Err(Failure::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "http.head.too_large",
            text,
        ))
    }

    /// `http_config.allow_write_http_from`. Who reaches a unix socket was let through by its mode.
    fn may_write(&self, head: &Parts, client: Option<IpAddr>) -> Result<(), Failure> {
        let networks = &self.config.allow_write_from;
        let writes = matches!(head.method, Method::PUT | Method::POST | Method::DELETE);
        let Some(client) = client.filter(|_| writes && !networks.is_empty()) else {
            return Ok(());
        };
        // A v4 client of a v6 listener shows as `::ffff:a.b.c.d`.
        let client = client.to_canonical();
        if networks.iter().any(|network| contains(*network, client)) {
            return Ok(());
        }
        let text = "Access is restricted";
        Err(Failure::new(
            StatusCode::FORBIDDEN,
            "http.write_restricted",
            text,
        ))
    }

    /// `http_config.block_endpoints`.
    fn is_open(&self, path: &str) -> Result<(), Failure> {
        // As the handler will see it: `%73` is an `s`. What does not decode is refused there.
        let decoded = percent_decode(path.as_bytes()).unwrap_or_default();
        if self
            .config
            .block_endpoints
            .iter()
            .any(|blocked| decoded.starts_with(blocked.as_bytes()))
        {
            let text = "Endpoint is blocked by agent configuration";
            return Err(Failure::new(StatusCode::FORBIDDEN, "http.blocked", text));
        }
        Ok(())
    }

    /// What is checked alike for every route.
    fn prepare(&self, head: &Parts, path: &str) -> Result<Query, Failure> {
        let Some(text) = head.uri.query() else {
            if !head.headers.contains_key("x-consul-namespace")
                && !head.headers.contains_key("x-consul-partition")
            {
                return Ok(Query::default());
            }
            return check_scope(&Query::default(), &head.headers, "").map(|()| Query::default());
        };
        let query = Query::parse(text).map_err(|refused| match refused {
            Refused::TooMany => {
                let text = format!("too many query parameters, max {PARAMETERS_MAX}");
                Failure::bad_request("http.query.too_many", text)
            }
            Refused::Broken(pair) => {
                let text = format!("Invalid query string: {:?} cannot be read", named(&pair));
                Failure::bad_request("http.query.broken", text)
            }
        })?;
        // Local endpoints are about this agent whatever `dc` says (CONSUL.md 0.4).
        let datacenter = if path.starts_with("/v1/agent/") {
            query.get("dc").unwrap_or("")
        } else {
            &self.deps.info.datacenter
        };
        check_scope(&query, &head.headers, datacenter)?;
        Ok(query)
    }

    fn options(&self, path: &str) -> Reply {
        let allow = self.routes.allowed(path).unwrap_or_default();
        let value = HeaderValue::from_str(allow).unwrap_or(HeaderValue::from_static("OPTIONS"));
        Reply::empty().with(ALLOW, value)
    }

    fn unknown(&self, path: &str, query: Option<&str>) -> Result<Reply, Failure> {
        if path == "/" {
            return Ok(Reply::text("Weft Agent"));
        }
        if self.routes.lacks_slash(path) {
            let query = query.map(|text| format!("?{text}")).unwrap_or_default();
            let reply = Reply::empty().status(StatusCode::MOVED_PERMANENTLY);
            return Ok(match HeaderValue::from_str(&format!("{path}/{query}")) {
                Ok(target) => reply.with(LOCATION, target),
                Err(_) => reply.status(StatusCode::NOT_FOUND),
            });
        }
        let text = if path.starts_with("/v1/") {
            UNKNOWN_V1
        } else {
            UNKNOWN
        };
        Err(Failure::not_found("http.path.unknown", text))
    }
}

/// What is known about a request besides its answer.
struct Look {
    pretty: bool,
    route: Option<usize>,
    client: Option<IpAddr>,
    /// The node of the agent that forwards it, if one does.
    forwarded: Option<String>,
}

/// What is shown of a parameter that cannot be read: a token may stand behind its name, and what is
/// answered is logged too.
fn named(pair: &str) -> &str {
    pair.split(['=', ';']).next().unwrap_or_default()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let Some(value) = headers
        .get(ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    value.split(',').any(|one| {
        let (coding, parameters) = one.split_once(';').unwrap_or((one, ""));
        let weight = parameters
            .trim()
            .strip_prefix("q=")
            .map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        coding.trim().eq_ignore_ascii_case("gzip") && weight > 0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_when_asked_for() {
        let accepts = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(text));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip"));
        assert!(accepts("deflate, GZIP;q=0.5"));
        assert!(!accepts("gzip;q=0"));
        assert!(!accepts("br"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn of_a_parameter_that_cannot_be_read_only_the_name_is_shown() {
        for (pair, shown) in [
            ("token=0a1b;x", "token"),
            ("passing;token=0a1b", "passing"),
            ("tag=%zz", "tag"),
            ("%zz=1", "%zz"),
            ("%", "%"),
        ] {
            assert_eq!(named(pair), shown);
        }
    }
}
