//! Connections of agents that are not servers: forwarded HTTP calls and what agents ask for themselves.
//!
//! Owns: serving HTTP/2 on such a connection, and which of the two a request is.
//! Never: answers a forwarded call; the binary gives it the API ([`AgentApi`]). Nor forwards one: the API of a
//! server answers from its own state, so that a call cannot go in circles.

pub(crate) mod greeting;
mod rows;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;
use weft_proto::v1;
use weft_proto::v1::agents_server::AgentsServer;
use weft_proto::v1::stamped::Command;
use weft_proto::v1::views_server::ViewsServer;

use crate::handle::{Inner, Server};
use crate::rpc::describe;
use crate::subscribe::Subscriptions;
use crate::transport::Seated;

/// Calls of one agent at a time; what an agent sends at once is bounded there
/// (`limits.rpc_max_calls`) and waits are bounded here (`limits.http_max_blocking_queries`).
const STREAMS_MAX: u32 = 65_536;
/// What a call may have on its way, unread.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// All calls of one connection together. Larger than any number of stalled readers fills in practice, so that
/// they do not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// Calls that are given up in one go (an agent's clients go away together) are no attack.
const RESETS_AT_ONCE_MAX: usize = 4_096;
/// An agent with a call open is asked for a sign of life after this time, and ended without one.
const PING_AFTER: Duration = Duration::from_secs(20);
/// How long calls may finish what they do when the role stops.
const DRAIN: Duration = Duration::from_secs(3);
const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// Bytes of one request's headers; the API refuses smaller ones with a reason.
const HEAD_MAX_BYTES: u32 = 1 << 20;

/// The HTTP API as forwarded calls are answered by it.
pub trait AgentApi: Send + Sync + 'static {
    /// Answers a call that `agent` forwards for one of its clients, as if that client had asked here.
    fn answer(
        &self,
        request: Request<Incoming>,
        agent: SocketAddr,
    ) -> BoxFuture<'static, Response<Body>>;
}

impl Server {
    /// Gives the role the API that forwarded calls are answered by; once. Until then they are refused.
    pub fn attach_api(&self, api: Arc<dyn AgentApi>) {
        // Called once, when the API has been started.
        let _ = self.inner.api.set(api);
    }
}

/// Serves one agent until it hangs up or the role stops.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    views: Subscriptions,
    stream: Seated,
    greeting: v1::AgentGreeting,
) {
    let from = stream.from();
    tracing::debug!(peer.addr = %from, node.name = %greeting.node_name, "an agent has connected");
    let _open = inner.metrics.agent_connected();
    let mut stopped = inner.stop.subscribe();
    let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
    let grpc = AgentsServer::new(Service {
        inner: inner.clone(),
    })
    .max_decoding_message_size(MESSAGE_MAX_BYTES)
    .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let views = ViewsServer::new(views);
    let service = service_fn(move |request: Request<Incoming>| {
        let (grpc, views, inner) = (grpc.clone(), views.clone(), inner.clone());
        async move {
            if request.uri().path().starts_with("/weft.v1.Views/") {
                inner.metrics.agent_call("views");
                return views.oneshot(request).await;
            }
            if request.uri().path().starts_with("/weft.") {
                inner.metrics.agent_call("typed");
                return grpc.oneshot(request).await;
            }
            inner.metrics.agent_call("http");
            Ok::<_, Infallible>(match inner.api.get() {
                Some(api) => api.answer(request, from).await,
                None => starting(),
            })
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_AFTER)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_AT_ONCE_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(cause) = ended {
        tracing::debug!(peer.addr = %from, error = %cause, "an agent's connection ended early");
    }
}

/// The API is not there yet. The agent asks another server.
fn starting() -> Response<Body> {
    let text = "the server is still starting";
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(
        HeaderName::from_static("x-weft-reason"),
        HeaderValue::from_static("server.starting"),
    );
    response
}

/// What agents ask for themselves.
struct Service {
    inner: Arc<Inner>,
}

impl Service {
    fn server(&self) -> Server {
        Server {
            inner: self.inner.clone(),
        }
    }
}

#[tonic::async_trait]
impl v1::agents_server::Agents for Service {
    async fn node_rows(
        &self,
        request: tonic::Request<v1::NodeRowsRequest>,
    ) -> Result<tonic::Response<v1::NodeRowsReply>, Status> {
        let rows = rows::of_node(&self.server(), request.into_inner()).await;
        rows.map(tonic::Response::new)
    }

    async fn sync(
        &self,
        request: tonic::Request<v1::SyncRequest>,
    ) -> Result<tonic::Response<v1::WriteReply>, Status> {
        let stamped = v1::Stamped::decode(request.into_inner().command)
            .map_err(|cause| Status::invalid_argument(cause.to_string()))?;
        // Anything else comes as a call of a user, who is asked for his rights.
        let Some(command @ (Command::Register(_) | Command::Deregister(_))) = stamped.command
        else {
            return Err(Status::permission_denied(
                "agents register and deregister; everything else is for the HTTP API",
            ));
        };
        let result = match self.server().write(command).await {
            Ok(outcome) => v1::write_reply::Result::Outcome(outcome.encode_to_vec().into()),
            Err(failure) => v1::write_reply::Result::Failure(describe(&failure)),
        };
        Ok(tonic::Response::new(v1::WriteReply {
            result: Some(result),
        }))
    }

    async fn report_coordinate(
        &self,
        request: tonic::Request<v1::ReportCoordinateRequest>,
    ) -> Result<tonic::Response<v1::ReportCoordinateReply>, Status> {
        let Some(coordinate) = request.into_inner().coordinate else {
            return Err(Status::invalid_argument("no coordinate"));
        };
        let taken = self.server().report_coordinate(coordinate);
        Ok(tonic::Response::new(v1::ReportCoordinateReply {
            failure: taken.err().map(|failure| describe(&failure)),
        }))
    }
}
