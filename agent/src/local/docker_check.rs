//! One run of a docker check.
//!
//! Owns: the three requests to the container engine's unix socket that execute a command inside a
//! container, and the stream its output comes in.
//! Never: reaches an engine over the network, or starts, stops or changes a container.
//! Source: Docker Engine API, "Exec".

use std::path::{Path, PathBuf};

use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::DockerCheck;
use super::script_check::{flooded, judge};
use super::status::Status;
use super::tail::Tail;

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const SOCKET_DEFAULT: &str = "/var/run/docker.sock";
/// Largest JSON answer of the engine that is read.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// Executes the command in the container. `docker_host`: the value of `DOCKER_HOST`, empty when
/// unset. Cancelled by its caller's time-out; the engine has no way to end a command, so one that
/// hangs stays in its container.
pub(super) async fn run(
    check: &DockerCheck,
    docker_host: &str,
    output_max: usize,
) -> (Status, String) {
    match execute(check, docker_host, output_max).await {
        Ok(result) => result,
        Err(error) => (
            Status::Critical,
            format!("docker exec in {}: {error}", check.container),
        ),
    }
}

async fn execute(
    check: &DockerCheck,
    docker_host: &str,
    output_max: usize,
) -> Result<(Status, String), String> {
    let socket = socket(docker_host)?;
    let command = json!({
        "AttachStdin": false, "AttachStdout": true, "AttachStderr": true, "Tty": false,
        "Cmd": check.args,
    });
    let path = format!("/containers/{}/exec", check.container);
    let created = answer(send(&socket, Method::POST, &path, &command).await?).await?;
    let id = created["Id"].as_str().unwrap_or_default();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err("the engine gave no exec id".to_owned());
    }
    let start = json!({"Detach": false, "Tty": false});
    let path = format!("/exec/{id}/start");
    let mut output = Tail::new(output_max);
    let response = send(&socket, Method::POST, &path, &start).await?;
    if !follow(response, &mut output).await? {
        return Ok((Status::Critical, flooded(&output)));
    }
    let path = format!("/exec/{id}/json");
    let ended = answer(send(&socket, Method::GET, &path, &Value::Null).await?).await?;
    let code = ended["ExitCode"].as_i64();
    Ok((
        judge(code.and_then(|code| i32::try_from(code).ok())),
        output.text(),
    ))
}

fn socket(docker_host: &str) -> Result<PathBuf, String> {
    match docker_host.split_once("://") {
        None if docker_host.is_empty() => Ok(SOCKET_DEFAULT.into()),
        Some(("unix", path)) if path.starts_with('/') => Ok(path.into()),
        _ => Err(format!(
            "DOCKER_HOST {docker_host:?} is not supported; it must be unix:///path/to/the.sock"
        )),
    }
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Response<Incoming>, String> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| format!("cannot reach the engine at {}: {error}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the response body, which is dropped with this check's run.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "connection to the container engine ended");
        }
    });
    let body = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(body.to_string())
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| format!("invalid path {path:?}"))?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("docker"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

/// The JSON of a 2xx answer; the engine's own words for any other.
async fn answer(response: Response<Incoming>) -> Result<Value, String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let message: String = value["message"]
        .as_str()
        .unwrap_or_default()
        .chars()
        .take(512)
        .collect();
    Err(format!("the engine answered {status}: {message}"))
}

/// Takes the output to its end; `false` when it has none.
async fn follow(response: Response<Incoming>, output: &mut Tail) -> Result<bool, String> {
    if !response.status().is_success() {
        return Err(answer(response).await.err().unwrap_or_default());
    }
    let mut body = response.into_body();
    let mut frames = Frames::default();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else {
            break;
        };
        let frame = frame.map_err(|error| format!("the output broke off: {error}"))?;
        frames.feed(frame.data_ref().map_or(&[][..], |data| data), output);
        if output.is_flood() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// stdout and stderr come in frames: one byte which, three of nothing, four of length.
#[derive(Default)]
struct Frames {
    head: [u8; 8],
    head_read: usize,
    body_left: usize,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], output: &mut Tail) {
        while !bytes.is_empty() {
            if self.body_left == 0 {
                let take = bytes.len().min(8 - self.head_read);
                self.head[self.head_read..self.head_read + take].copy_from_slice(&bytes[..take]);
                self.head_read += take;
                bytes = &bytes[take..];
                if self.head_read == 8 {
                    let [_, _, _, _, a, b, c, d] = self.head;
                    let length = u32::from_be_bytes([a, b, c, d]);
                    self.body_left = usize::try_from(length).unwrap_or(usize::MAX);
                    self.head_read = 0;
                }
            } else {
                let (payload, rest) = bytes.split_at(bytes.len().min(self.body_left));
                output.push(payload);
                self.body_left -= payload.len();
                bytes = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Frames, Tail, socket};

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let stream = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x03two";
        for chunk in 1..=stream.len() {
            let (mut frames, mut output) = (Frames::default(), Tail::new(64));
            for bytes in stream.chunks(chunk) {
                frames.feed(bytes, &mut output);
            }
            assert_eq!(output.text(), "onetwo", "in chunks of {chunk}");
        }
    }

    #[test]
    fn only_unix_sockets_are_reached() {
        assert_eq!(socket("").unwrap().to_str(), Some("/var/run/docker.sock"));
        assert_eq!(
            socket("unix:///run/x.sock").unwrap().to_str(),
            Some("/run/x.sock")
        );
        for refused in ["tcp://10.0.0.1:2375", "unix://x", "/run/x.sock"] {
            assert!(
                socket(refused).unwrap_err().contains("DOCKER_HOST"),
                "{refused}"
            );
        }
    }
}
