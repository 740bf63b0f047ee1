//! grpc, h2ping, udp, docker and os_service checks against peers made for them on loopback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixListener};

use super::world::check;
use crate::local::Reach;
use crate::local::{
    CheckKind, Status, docker_check, grpc_check, h2ping_check, os_service_check, udp_check,
};

const NEVER: Duration = Duration::from_secs(30);

fn kind(value: Value) -> CheckKind {
    let mut body = json!({"Name": "c", "Interval": "1s"});
    body.as_object_mut()
        .unwrap()
        .extend(value.as_object().unwrap().clone());
    check(body).kind
}

type Body =
    StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, hyper::Error>>>>;

/// An answer as gRPC servers give it: a message, then trailers.
fn message(bytes: &'static [u8], status: &'static str) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = vec![
        Ok(Frame::data(Bytes::from_static(bytes))),
        Ok(Frame::trailers(trailers)),
    ];
    Response::new(StreamBody::new(futures::stream::iter(frames)))
}

/// An answer without a message.
fn refusal(status: &'static str, words: &'static str) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(futures::stream::iter(Vec::new())));
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from_static(status));
    headers.insert("grpc-message", HeaderValue::from_static(words));
    response
}

fn health_answer(request: &Request<Incoming>, body: &[u8]) -> Response<Body> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    match body {
        [0, 0, 0, 0, 0] => message(b"\0\0\0\0\x02\x08\x01", "0"),
        b"\0\0\0\0\x05\x0a\x03web" => message(b"\0\0\0\0\x02\x08\x02", "0"),
        b"\0\0\0\0\x06\x0a\x04late" => message(b"\0\0\0\0\0", "14"),
        b"\0\0\0\0\x06\x0a\x04junk" => message(b"hello", "0"),
        _ => refusal("5", "unknown service"),
    }
}

/// A gRPC server of the health protocol, without TLS.
async fn health_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|mut request: Request<Incoming>| async move {
                let body = request.body_mut().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(health_answer(&request, &body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn run_grpc(target: &str) -> (Status, String) {
    let CheckKind::Grpc(check) = kind(json!({"GRPC": target})) else {
        panic!("not a grpc check")
    };
    tokio::time::timeout(NEVER, grpc_check::run(&check, &Reach::default()))
        .await
        .unwrap()
}

#[tokio::test]
async fn grpc_checks_speak_the_health_protocol() {
    let at = health_server().await;
    let told = |service: &str, what: &str| format!("gRPC check {at}{service}: {what}");
    let cases = [
        ("", Status::Passing, "success"),
        (
            "/web",
            Status::Critical,
            "the application reports NOT_SERVING",
        ),
        (
            "/x",
            Status::Critical,
            "rpc error: code = NotFound desc = unknown service",
        ),
        (
            "/late",
            Status::Critical,
            "rpc error: code = Unavailable desc = ",
        ),
        (
            "/junk",
            Status::Critical,
            "the answer is not a gRPC message",
        ),
    ];
    for (service, status, what) in cases {
        let seen = run_grpc(&format!("{at}{service}")).await;
        assert_eq!(seen, (status, told(service, what)));
    }
}

/// A listener that says `words` to everybody and closes.
async fn rude(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(words).await.ok();
        }
    });
    address
}

#[tokio::test]
async fn peers_that_speak_something_else_are_critical() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    for at in [rude(b"SSH-2.0-other\r\n").await, rude(b"").await, closed] {
        let (status, output) = run_grpc(&at).await;
        assert_eq!(status, Status::Critical, "{output}");
        let CheckKind::H2Ping(ping) = kind(json!({"H2PING": at, "H2PingUseTLS": false})) else {
            panic!("not an h2ping check")
        };
        let (status, output) =
            tokio::time::timeout(NEVER, h2ping_check::run(&ping, &Reach::default()))
                .await
                .unwrap();
        assert_eq!(status, Status::Critical, "{output}");
        // With TLS, which is what h2ping does unless told otherwise.
        let CheckKind::H2Ping(ping) = kind(json!({"H2PING": at, "TLSSkipVerify": true})) else {
            panic!("not an h2ping check")
        };
        let (status, output) =
            tokio::time::timeout(NEVER, h2ping_check::run(&ping, &Reach::default()))
                .await
                .unwrap();
        assert_eq!(status, Status::Critical);
        assert!(
            output.starts_with(&format!("Failed to dial to {at}: ")),
            "{output}"
        );
    }
}

#[tokio::test]
async fn h2ping_waits_for_the_answer_to_its_ping() {
    let at = health_server().await;
    let CheckKind::H2Ping(ping) = kind(json!({"H2PING": at, "H2PingUseTLS": false})) else {
        panic!("not an h2ping check")
    };
    assert_eq!(
        h2ping_check::run(&ping, &Reach::default()).await,
        (Status::Passing, "HTTP2 ping was successful".to_owned())
    );
    // A peer that completes the settings but never answers a ping.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .ok();
    });
    let CheckKind::H2Ping(ping) = kind(json!({"H2PING": at, "H2PingUseTLS": false})) else {
        panic!("not an h2ping check")
    };
    let reach = Reach::default();
    let run = h2ping_check::run(&ping, &reach);
    let waited = tokio::time::timeout(Duration::from_millis(300), run).await;
    assert!(waited.is_err(), "{waited:?}");
}

async fn run_udp(address: &str, limit: Duration) -> (Status, String) {
    let CheckKind::Udp(check) = kind(json!({"UDP": address})) else {
        panic!("not a udp check")
    };
    udp_check::run(&check, limit, &Reach::default()).await
}

#[tokio::test]
async fn udp_checks_pass_on_an_answer_and_on_silence() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap().to_string();
    let success = (Status::Passing, format!("UDP connect {at}: Success"));
    assert_eq!(
        run_udp(&at, Duration::from_millis(50)).await,
        success,
        "silence"
    );
    let answering = tokio::spawn(async move {
        // The first datagram is of the run before.
        for _ in 0..2 {
            let (_, from) = socket.recv_from(&mut [0; 8]).await.unwrap();
            socket.send_to(b"pong", from).await.ok();
        }
        socket
    });
    assert_eq!(run_udp(&at, NEVER).await, success, "an answer");
    drop(answering.await.unwrap());
    let refused = (Status::Critical, format!("udp {at}: connection refused"));
    assert_eq!(run_udp(&at, NEVER).await, refused);
    let (status, output) = run_udp("nowhere.invalid:1", NEVER).await;
    assert_eq!(status, Status::Critical, "{output}");
}

type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// A container engine that runs one command, which writes `output` and exits with `code`.
fn engine(socket: &std::path::Path, output: Vec<u8>, code: i64) -> Requests {
    let listener = UnixListener::bind(socket).unwrap();
    let seen: Requests = Arc::default();
    let requests = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (requests, output) = (requests.clone(), output.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (requests, output) = (requests.clone(), output.clone());
                async move {
                    let line = format!("{} {}", request.method(), request.uri());
                    let body = request.body_mut().collect().await?.to_bytes();
                    let body = String::from_utf8_lossy(&body).into_owned();
                    requests.lock().push((line.clone(), body));
                    let (status, body) = match line.as_str() {
                        "POST /containers/web-1/exec" => (201, br#"{"Id":"e1"}"#.to_vec()),
                        "POST /exec/e1/start" => (200, output),
                        "GET /exec/e1/json" => (200, json!({"ExitCode": code}).to_string().into()),
                        _ => (404, br#"{"message":"No such container: x"}"#.to_vec()),
                    };
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status.try_into().unwrap();
                    Ok::<_, hyper::Error>(response)
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    seen
}

async fn run_docker(container: &str, socket: &std::path::Path) -> (Status, String) {
    let body = json!({"DockerContainerID": container, "Args": ["probe", "a b"]});
    let CheckKind::Docker(check) = kind(body) else {
        panic!("not a docker check")
    };
    let host = format!("unix://{}", socket.display());
    tokio::time::timeout(NEVER, docker_check::run(&check, &host, 16))
        .await
        .unwrap()
}

#[tokio::test]
async fn docker_checks_run_a_command_in_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let said = b"\x01\0\0\0\0\0\0\x05fine \x02\0\0\0\0\0\0\x04here".to_vec();
    let cases = [
        (0, Status::Passing),
        (1, Status::Warning),
        (2, Status::Critical),
        (126, Status::Critical),
    ];
    for (code, status) in cases {
        let socket = dir.path().join(format!("{code}.sock"));
        let seen = engine(&socket, said.clone(), code);
        assert_eq!(
            run_docker("web-1", &socket).await,
            (status, "fine here".to_owned())
        );
        let created: Value = serde_json::from_str(&seen.lock()[0].1).unwrap();
        assert_eq!(created["Cmd"], json!(["probe", "a b"]));
        assert_eq!(
            (&created["Tty"], &created["AttachStderr"]),
            (&json!(false), &json!(true))
        );
    }
    let socket = dir.path().join("0.sock");
    let gone = "docker exec in x: the engine answered 404 Not Found: No such container: x";
    assert_eq!(
        run_docker("x", &socket).await,
        (Status::Critical, gone.to_owned())
    );
    let (status, output) = run_docker("x", &dir.path().join("none.sock")).await;
    assert!(
        status == Status::Critical && output.contains("cannot reach the engine at"),
        "{output}"
    );
}

#[tokio::test]
async fn a_container_that_floods_output_is_critical_and_leaves_its_tail() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut flood = vec![1, 0, 0, 0];
    flood.extend_from_slice(&u32::MAX.to_be_bytes());
    flood.resize(65 * 1024 * 1024, b'y');
    engine(&socket, flood, 0);
    let (status, output) = run_docker("web-1", &socket).await;
    assert_eq!(status, Status::Critical);
    assert!(
        output.starts_with("Killed: wrote more than 64 MiB of output\n\nCaptured 16 of "),
        "{output}"
    );
    assert!(output.len() < 200, "{} bytes", output.len());
}

#[tokio::test]
async fn os_service_checks_ask_systemctl() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("systemctl");
    let script = "#!/bin/sh\n[ \"$1 $2\" = 'is-active --' ] || exit 9\ncase $3 in cron) echo active;; *) echo inactive; exit 3;; esac\n";
    std::fs::write(&fake, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&fake, mode).unwrap();
    let run = async |unit: &str, program: &str| {
        let CheckKind::OsService(check) = kind(json!({"OSService": unit})) else {
            panic!("not an os_service check")
        };
        let result = os_service_check::run(&check, program, NEVER, 4_096, ()).await;
        (result.status, result.output)
    };
    let fake = fake.to_str().unwrap();
    assert_eq!(
        run("cron", fake).await,
        (Status::Passing, "Service \"cron\" is healthy".to_owned())
    );
    assert_eq!(
        run("nginx", fake).await,
        (
            Status::Critical,
            "Service \"nginx\" is not running: inactive".to_owned()
        )
    );
    let (status, output) = run("cron", "/nonexistent/systemctl").await;
    assert!(
        status == Status::Critical && output.contains("os_service checks need systemd"),
        "{output}"
    );
}

#[tokio::test]
async fn the_body_of_an_answer_is_not_kept_beyond_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // It never ends: the check has seen enough after a while.
        while stream.write_all(&[b'z'; 65_536]).await.is_ok() {}
    });
    let CheckKind::Http(check) = kind(json!({"HTTP": format!("http://{at}/")})) else {
        panic!("not an http check")
    };
    let reach = Reach::default();
    let run = crate::local::http_check::run(&check, 4, &reach);
    let (status, output) = tokio::time::timeout(NEVER, run).await.unwrap();
    assert_eq!(status, Status::Passing);
    assert!(
        output.contains("Output: zzzz ... (captured 4 of 1"),
        "{output}"
    );
}

/// A peer that says all it has to say at once and closes: the answer comes with the connection's end.
async fn hasty(says: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Everything the check asks has come once it is silent.
        let mut asked = vec![0; 4_096];
        loop {
            let read = stream.read(&mut asked);
            match tokio::time::timeout(Duration::from_millis(100), read).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) => {}
                Err(_) => break,
            }
        }
        stream.write_all(&says).await.unwrap();
        stream.shutdown().await.unwrap();
        // Not closed before the check has read it: a reset would throw it away.
        let _ = stream.read(&mut asked).await;
    });
    at
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

#[tokio::test]
async fn an_answer_that_comes_with_the_end_of_the_connection_counts() {
    let settings = [frame(4, 0, 0, b""), frame(4, 1, 0, b"")].concat();
    let answer = [
        settings.clone(),
        // `:status 200`, a message, and `grpc-status: 0` as a literal.
        frame(1, 4, 1, b"\x88"),
        frame(0, 0, 1, b"\0\0\0\0\x02\x08\x01"),
        frame(1, 5, 1, b"\0\x0bgrpc-status\x010"),
    ];
    let at = hasty(answer.concat()).await;
    let seen = run_grpc(&at).await;
    assert_eq!(seen, (Status::Passing, format!("gRPC check {at}: success")));

    // Only half of it is no answer.
    let at = hasty(answer[..2].concat()).await;
    assert_eq!(run_grpc(&at).await.0, Status::Critical);

    // h2's own pings say this.
    let pong = frame(6, 1, 0, &[0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4]);
    let at = hasty([settings, pong].concat()).await;
    let CheckKind::H2Ping(ping) = kind(json!({"H2PING": at, "H2PingUseTLS": false})) else {
        panic!("not an h2ping check")
    };
    let reach = Reach::default();
    let run = h2ping_check::run(&ping, &reach);
    let seen = tokio::time::timeout(NEVER, run).await.unwrap();
    assert_eq!(seen.0, Status::Passing, "{}", seen.1);
}

#[tokio::test]
async fn checks_do_not_begin_at_link_local_addresses_unless_allowed() {
    let kinds = ["HTTP", "TCP", "UDP", "GRPC", "H2PING"];
    for name in kinds {
        let at = match name {
            "HTTP" => "http://169.254.7.7:9/",
            _ => "169.254.7.7:9",
        };
        let reach = Reach::default();
        let (status, output) = match kind(json!({name: at})) {
            CheckKind::Http(check) => crate::local::http_check::run(&check, 64, &reach).await,
            CheckKind::Tcp(check) => crate::local::tcp_check::run(&check, &reach).await,
            CheckKind::Udp(check) => udp_check::run(&check, NEVER, &reach).await,
            CheckKind::Grpc(check) => grpc_check::run(&check, &reach).await,
            CheckKind::H2Ping(check) => h2ping_check::run(&check, &reach).await,
            other => panic!("{other:?}"),
        };
        assert_eq!(status, Status::Critical, "{name}");
        assert!(output.contains("enable_link_local_checks"), "{output}");
    }
    let allowed = Reach {
        link_local: true,
        ..Reach::default()
    };
    let CheckKind::Udp(check) = kind(json!({"UDP": "169.254.7.7:9"})) else {
        panic!("not a udp check")
    };
    let (_, output) = udp_check::run(&check, Duration::from_millis(20), &allowed).await;
    assert!(!output.contains("enable_link_local_checks"), "{output}");
}
