//! The HTTP client of every command that talks to an agent.
//!
//! Owns: where the agent is (flags, then `WEFT_*`, then `CONSUL_*`), one connection per request,
//! and what an answer's status means for the exit code.
//! Never: retries; nothing is known about what a request does.
//! Source: Consul docs, "CLI: environment variables"; CONSUL D.3.

mod settings;
mod tls;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_agent::http::percent_encode;

pub(crate) use settings::ClientArgs;
use settings::{Settings, Target};

use super::failure::{Exit, Failure};
use super::output::Format;

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Largest answer kept in memory; snapshots are streamed.
const ANSWER_MAX_BYTES: usize = 1 << 30;
/// Largest text of a refusal that is read.
const REFUSAL_MAX_BYTES: usize = 1 << 20;
/// How long an agent may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A way to one agent.
pub(crate) struct Client {
    settings: Settings,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

/// Query parameters, in order. An empty value is sent as a bare name.
pub(crate) type Query<'a> = &'a [(&'a str, &'a str)];

impl Client {
    pub(crate) fn new(args: &ClientArgs) -> Result<Self, Failure> {
        Ok(Self {
            settings: Settings::resolve(args, &|name| std::env::var(name).ok())?,
        })
    }

    pub(crate) fn format(&self) -> Format {
        self.settings.format
    }

    /// The token requests are made with.
    pub(crate) fn token(&self) -> Option<&str> {
        self.settings.token.as_deref()
    }

    /// GET as JSON; anything but success is a failure.
    pub(crate) async fn get(&self, path: &str, query: Query<'_>) -> Result<Value, Failure> {
        self.call(Method::GET, path, query, Bytes::new())
            .await?
            .json()
    }

    /// PUT with a body; anything but success is a failure.
    pub(crate) async fn put(
        &self,
        path: &str,
        query: Query<'_>,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Failure> {
        self.call(Method::PUT, path, query, body.into()).await
    }

    /// Any method; anything but success is a failure.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let answer = self.send(method, path, query, body).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(answer.failure())
        }
    }

    /// Any method; every status is an answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let response = self.stream(method, path, query, whole(body)).await?;
        let (parts, body) = response.into_parts();
        let collected = http_body_util::Limited::new(body, ANSWER_MAX_BYTES)
            .collect()
            .await;
        let body = collected
            .map_err(|error| self.lost(&chain(&*error)))?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// Any method, bodies as they come; anything but success is a failure.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Body,
    ) -> Result<Incoming, Failure> {
        let response = self.stream(method, path, query, body).await?;
        let (parts, body) = response.into_parts();
        if parts.status.is_success() {
            return Ok(body);
        }
        let text = http_body_util::Limited::new(body, REFUSAL_MAX_BYTES);
        // A refusal that breaks off is still one.
        let text = text.collect().await.map(|all| all.to_bytes());
        let text = String::from_utf8_lossy(&text.unwrap_or_default())
            .trim()
            .to_owned();
        Err(failure(parts.status, &text))
    }

    /// Any method, bodies as they come.
    async fn stream(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let request = self.request(method, path, query, body)?;
        let connecting = async {
            match &self.settings.target {
                Target::Tcp {
                    host,
                    port,
                    tls: None,
                } => self.over(tcp(host, *port).await?, request).await,
                Target::Tcp {
                    host,
                    port,
                    tls: Some(tls),
                } => {
                    self.over(tls.connect(tcp(host, *port).await?).await?, request)
                        .await
                }
                Target::Unix(path) => {
                    self.over(tokio::net::UnixStream::connect(path).await?, request)
                        .await
                }
            }
        };
        connecting
            .await
            .map_err(|error: std::io::Error| self.lost(&chain(&error)))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let common = self.settings.query();
        let mut uri = percent_encode(path, true);
        let all = query
            .iter()
            .copied()
            .chain(common.iter().map(|(name, value)| (*name, value.as_str())));
        for (nth, (name, value)) in all.enumerate() {
            uri.push(if nth == 0 { '?' } else { '&' });
            uri.push_str(&percent_encode(name, false));
            if !value.is_empty() {
                uri.push('=');
                uri.push_str(&percent_encode(value, false));
            }
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, self.settings.target.host());
        if let Some(token) = &self.settings.token {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(basic) = &self.settings.basic_auth {
            request = request.header(header::AUTHORIZATION, basic);
        }
        request
            .body(body)
            .map_err(|error| Failure::usage(format!("this cannot be asked for: {error}")))
    }

    async fn over<S>(
        &self,
        stream: S,
        request: Request<Body>,
    ) -> std::io::Result<Response<Incoming>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        // Ends with the connection, which ends with the request.
        tokio::spawn(connection);
        sender
            .send_request(request)
            .await
            .map_err(std::io::Error::other)
    }

    fn lost(&self, why: &str) -> Failure {
        let message = format!("cannot reach the agent at {}: {why}", self.settings.target);
        let hint = match self.settings.target {
            Target::Tcp { tls: None, .. } => {
                "is it running? -http-addr or WEFT_HTTP_ADDR says where, https:// speaks TLS"
            }
            Target::Tcp { tls: Some(_), .. } => {
                "is it HTTPS there? -ca-file or WEFT_CACERT names the CA it is checked with"
            }
            Target::Unix(_) => "is it running, and may you open the socket?",
        };
        Failure::new(Exit::Unreachable, message).hint(hint)
    }
}

/// A body that is there already.
pub(crate) fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// An error with its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

async fn tcp(host: &str, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let connecting = tokio::net::TcpStream::connect((host, port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Answer {
    /// The body as JSON; `null` when empty.
    pub(crate) fn json(&self) -> Result<Value, Failure> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(
                Exit::Internal,
                format!("the agent's answer is not JSON: {error}"),
            )
        })
    }

    /// The body as text, trimmed.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// This answer as a failure.
    pub(crate) fn failure(&self) -> Failure {
        failure(self.status, &self.text())
    }
}

/// What a status other than success means.
fn failure(status: StatusCode, text: &str) -> Failure {
    let leaderless = text.contains("No cluster leader");
    let exit = match status {
        _ if leaderless => Exit::Unreachable,
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Exit::Denied,
        StatusCode::CONFLICT => Exit::Conflict,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Exit::Timeout,
        _ => Exit::Negative,
    };
    let text = if text.is_empty() {
        status.canonical_reason().unwrap_or("no reason given")
    } else {
        text
    };
    let failure = Failure::new(
        exit,
        format!("the agent answered {}: {text}", status.as_u16()),
    );
    if leaderless {
        failure.hint(
            "-stale reads without a leader; weft operator raft list-peers -stale shows the servers",
        )
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_choose_the_exit_code() {
        for (status, text, expected) in [
            (500, "No cluster leader", "unreachable"),
            (403, "", "denied"),
            (404, "x", "not_found"),
            (500, "boom", "negative"),
        ] {
            let failure = failure(StatusCode::from_u16(status).unwrap(), text);
            assert!(
                format!("{failure:?}").contains(&format!("word: {expected:?}")),
                "{failure:?}"
            );
        }
    }
}
