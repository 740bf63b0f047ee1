//! One run of a grpc check.
//!
//! Owns: one call of `grpc.health.v1.Health/Check` on a connection of its own.
//! Never: keeps the connection, or follows a redirect.
//! Source: gRPC "Health Checking Protocol"; "gRPC over HTTP2".

use bytes::Bytes;
use futures::FutureExt as _;
use h2::RecvStream;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::GrpcCheck;
use super::reach::Reach;
use super::status::Status;
use super::tcp_check::host_of;

const METHOD_PATH: &str = "/grpc.health.v1.Health/Check";
/// A health answer has a handful of bytes.
const ANSWER_MAX_BYTES: usize = 65_536;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Asks for the health of the target's service. Cancelled by its caller's time-out.
pub(super) async fn run(check: &GrpcCheck, reach: &Reach) -> (Status, String) {
    match attempt(check, reach).await {
        Ok(SERVING) => (
            Status::Passing,
            format!("gRPC check {}: success", check.target),
        ),
        Ok(other) => {
            let word = match other {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            let text = format!(
                "gRPC check {}: the application reports {word}",
                check.target
            );
            (Status::Critical, text)
        }
        Err(error) => (
            Status::Critical,
            format!("gRPC check {}: {error}", check.target),
        ),
    }
}

async fn attempt(check: &GrpcCheck, reach: &Reach) -> Result<i32, String> {
    let (address, service) = check.target.split_once('/').unwrap_or((&check.target, ""));
    let stream = reach.dial(address).await?;
    if check.use_tls {
        let host = host_of(address);
        let stream = reach.secure(stream, &check.tls, host, &["h2"]).await?;
        call(stream, "https", address, service).await
    } else {
        call(stream, "http", address, service).await
    }
}

async fn call<S>(stream: S, scheme: &str, address: &str, service: &str) -> Result<i32, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: h2::Error| error.to_string();
    let (sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    // Driven here rather than in a task: it ends with this call, however that ends.
    let answer = async {
        let mut sender = sender.ready().await.map_err(failed)?;
        let (response, mut body) = sender
            .send_request(request(scheme, address)?, false)
            .map_err(failed)?;
        body.send_data(message(service)?, true).map_err(failed)?;
        read(response.await.map_err(failed)?).await
    };
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        answer = &mut answer => return answer,
        ended = &mut connection => ended,
    };
    // What came with the end was taken in while it was noticed: it may be the whole answer.
    match answer.now_or_never() {
        Some(Ok(status)) => Ok(status),
        _ => Err(match ended {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.to_string(),
        }),
    }
}

fn request(scheme: &str, address: &str) -> Result<Request<()>, String> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("{scheme}://{address}{METHOD_PATH}")
        .parse()
        .map_err(|_| format!("invalid address {address:?}"))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static("Consul Health Check"));
    Ok(request)
}

/// One message: not compressed, its length, itself.
fn message(service: &str) -> Result<Bytes, String> {
    let message = HealthCheckRequest {
        service: service.to_owned(),
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).map_err(|_| "the service name is too long")?;
    let mut body = vec![0];
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&message);
    Ok(Bytes::from(body))
}

async fn read(response: Response<RecvStream>) -> Result<i32, String> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("unexpected HTTP status {}", head.status));
    }
    // An answer without a message carries its verdict in the head.
    verdict(&head.headers)?;
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.to_string())?;
        if bytes.len() + data.len() > ANSWER_MAX_BYTES {
            return Err(format!("the answer has more than {ANSWER_MAX_BYTES} bytes"));
        }
        bytes.extend_from_slice(&data);
        let flow = body.flow_control().release_capacity(data.len());
        flow.map_err(|error| error.to_string())?;
    }
    let trailers = body.trailers().await.map_err(|error| error.to_string())?;
    verdict(&trailers.unwrap_or_default())?;
    decode(&bytes)
}

fn decode(body: &[u8]) -> Result<i32, String> {
    let message = match body.split_at_checked(5) {
        Some((&[0, a, b, c, d], rest)) => {
            let length = u32::from_be_bytes([a, b, c, d]);
            rest.get(..usize::try_from(length).unwrap_or(usize::MAX))
        }
        _ => None,
    };
    let message = message.ok_or("the answer is not a gRPC message")?;
    let answer = HealthCheckResponse::decode(message)
        .map_err(|error| format!("the answer is not a health answer: {error}"))?;
    Ok(answer.status)
}

/// `grpc-status` of a head or of trailers, when there is one.
fn verdict(headers: &HeaderMap) -> Result<(), String> {
    let Some(code) = headers.get("grpc-status") else {
        return Ok(());
    };
    if code.as_bytes() == b"0" {
        return Ok(());
    }
    let text = |value: Option<&HeaderValue>| {
        String::from_utf8_lossy(value.map_or(b"", HeaderValue::as_bytes)).into_owned()
    };
    let code = text(Some(code));
    let name = match code.as_str() {
        "2" => "Unknown",
        "4" => "DeadlineExceeded",
        "5" => "NotFound",
        "7" => "PermissionDenied",
        "12" => "Unimplemented",
        "13" => "Internal",
        "14" => "Unavailable",
        "16" => "Unauthenticated",
        other => other,
    };
    let message: String = text(headers.get("grpc-message"))
        .chars()
        .take(512)
        .collect();
    Err(format!("rpc error: code = {name} desc = {message}"))
}
