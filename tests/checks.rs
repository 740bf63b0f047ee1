//! Health checks of a running server: every type against a peer of its own, who may run commands,
//! what hangs or floods, where redirects may lead, and what a restart remembers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use support::{Api, World, said};

/// Answers every HTTP/1 request with `answer` and closes.
fn http_peer(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            reply(&mut stream.unwrap(), &answer);
        }
    });
    address
}

/// Reads one small request and writes `answer`.
fn reply(stream: &mut (impl Read + Write), answer: &str) -> String {
    let mut request = vec![0; 16_384];
    let mut read = 0;
    loop {
        let text = String::from_utf8_lossy(&request[..read]).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.parse().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                let _ = stream.write_all(answer.as_bytes());
                return text;
            }
        }
        match stream.read(&mut request[read..]) {
            Ok(0) | Err(_) => return String::new(),
            Ok(count) => read += count,
        }
    }
}

fn answer(status: &str, extra: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n{body}"
    )
}

/// A gRPC server whose every service is SERVING.
fn grpc_peer() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(serving)));
            }
        });
    });
    address
}

async fn serving(
    mut request: hyper::Request<Incoming>,
) -> Result<
    hyper::Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>>>>,
    Infallible,
> {
    request.body_mut().collect().await.unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let message = Bytes::from_static(b"\0\0\0\0\x02\x08\x01");
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    Ok(hyper::Response::new(StreamBody::new(
        futures::stream::iter(frames),
    )))
}

/// A container engine in whose only container every command says `fine` and exits with 0.
fn engine(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        // The connections come one after the other: a check makes three, and waits for each answer.
        for (n, stream) in listener.incoming().enumerate() {
            let answers = [
                answer("201 Created", "", r#"{"Id":"e1"}"#),
                answer("200 OK", "", "\x01\0\0\0\0\0\0\x04fine"),
                answer("200 OK", "", r#"{"ExitCode":0}"#),
            ];
            reply(&mut stream.unwrap(), &answers[n % 3]);
        }
    });
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn check(at: &Api, id: &str) -> Value {
    at.get("/v1/agent/checks").unwrap().ok().json()[id].clone()
}

fn becomes(w: &World, id: &str, status: &str) -> Value {
    let at = w.at(1);
    w.until(&format!("{id} to be {status}"), || {
        Some(check(&at, id)).filter(|check| check["Status"] == status)
    })
}

/// A server that this test started itself, to give it an environment.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_type_of_check_runs_from_a_file() {
    let (http, grpc) = (http_peer(answer("200 OK", "", "fine")), grpc_peer());
    // It never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = silent.local_addr().unwrap();
    let mut w = World::servers(1);
    let file = w.path("checks.hcl");
    w = w.with(format!("-config-file={}", file.display()));
    std::fs::write(
        &file,
        format!(
            r#"
enable_local_script_checks = true
check {{ id = "ttl" name = "ttl" ttl = "1h" status = "passing" }}
checks = [
  {{ id = "alias" name = "alias" alias_node = "s1" alias_service = "web" }},
]
service {{
  name = "web"
  checks = [
    {{ id = "script" args = ["/bin/sh", "-c", "echo fine"] interval = "1s" }},
    {{ id = "http" http = "http://{http}/" method = "PUT" header = {{ X-A = ["1", "2"] }} interval = "1s" timeout = "9s" }},
    {{ id = "tcp" tcp = "{http}" interval = "1s" }},
    {{ id = "udp" udp = "{udp}" interval = "1s" timeout = "100ms" }},
    {{ id = "grpc" grpc = "{grpc}/web" interval = "1s" }},
    {{ id = "h2ping" h2ping = "{grpc}" h2ping_use_tls = false interval = "1s" }},
    {{ id = "docker" docker_container_id = "web-1" args = ["probe"] interval = "1s" }},
    {{ id = "os_service" os_service = "cron" interval = "1s" }},
  ]
}}
"#
        ),
    )
    .unwrap();
    let socket = w.path("engine.sock");
    engine(&socket);
    executable(
        &w.path("systemctl"),
        "#!/bin/sh\n[ \"$3\" = cron ] && echo active\n",
    );
    let path = format!(
        "{}:{}",
        w.path("").display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = w.command(1);
    command
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _server = Started(command.spawn().unwrap());
    w.until("the server to answer", || {
        w.at(1).get("/v1/agent/checks").ok()
    });

    let outputs = [
        ("script", "fine\n".to_owned()),
        (
            "http",
            format!("HTTP PUT http://{http}/: 200 OK Output: fine"),
        ),
        ("tcp", format!("TCP connect {http}: Success")),
        ("udp", format!("UDP connect {udp}: Success")),
        ("grpc", format!("gRPC check {grpc}/web: success")),
        ("h2ping", "HTTP2 ping was successful".to_owned()),
        ("docker", "fine".to_owned()),
        ("os_service", "Service \"cron\" is healthy".to_owned()),
        ("alias", "All checks passing.".to_owned()),
        ("ttl", String::new()),
    ];
    for (id, output) in &outputs {
        let seen = becomes(&w, id, "passing");
        assert_eq!(
            (&seen["Type"], &seen["Output"]),
            (&json!(id), &json!(output))
        );
    }
    let seen = check(&w.at(1), "http");
    assert_eq!(
        (&seen["Interval"], &seen["Timeout"]),
        (&json!("1s"), &json!("9s"))
    );
    // The catalog hears of it.
    w.until("the catalog to know", || {
        let rows = w.at(1).get("/v1/health/service/web?passing").ok()?.json();
        let checks = rows[0]["Checks"].as_array()?.len();
        (checks >= 9).then_some(())
    });
    let metrics = w
        .at(1)
        .get("/v1/agent/metrics?format=prometheus")
        .unwrap()
        .ok()
        .text();
    for (id, _) in &outputs[..8] {
        let line = format!("weft_agent_check_runs_total{{type=\"{id}\",outcome=\"passing\"}}");
        assert!(metrics.contains(&line), "{metrics} lacks {line}");
    }
}

#[test]
fn commands_are_refused_until_a_key_allows_them() {
    let by_api = r#"{"Name":"by-api","Args":["true"],"Interval":"1s"}"#;
    let by_file = r#"-hcl=check { name = "by-file" args = ["true"] interval = "1s" }"#;
    let mut w = World::servers(1).with(by_file);
    let (status, log) = w.run_to_end(1);
    assert!(!status.success());
    assert!(
        log.contains(
            "Scripts are disabled on this agent; to enable, configure 'enable_script_checks'"
        ),
        "{log}"
    );

    let w = World::servers(1)
        .with(by_file)
        .with("-enable-local-script-checks")
        .start();
    becomes(&w, "by-file", "passing");
    let at = w.at(1);
    for (path, body) in [
        ("/v1/agent/check/register", by_api.to_owned()),
        (
            "/v1/agent/service/register",
            format!(r#"{{"Name":"w","Check":{by_api}}}"#),
        ),
    ] {
        let refused = at.put(path, body).unwrap();
        assert_eq!(refused.status, 500);
        assert_eq!(
            refused.headers["x-weft-reason"],
            "check.scripts.disabled_remote"
        );
        assert!(
            refused
                .text()
                .contains("to enable, configure 'enable_script_checks' to true")
        );
    }
    let legacy = at.put(
        "/v1/agent/check/register",
        r#"{"Name":"c","Script":"true","Interval":"1s"}"#,
    );
    let legacy = legacy.unwrap();
    assert_eq!(
        (legacy.status, legacy.headers["x-weft-reason"].as_str()),
        (400, "check.script.legacy")
    );
    assert_eq!(at.get("/v1/agent/services").unwrap().ok().json(), json!({}));

    let w = World::servers(1).with("-enable-script-checks").start();
    w.at(1)
        .put("/v1/agent/check/register", by_api)
        .unwrap()
        .ok();
    becomes(&w, "by-api", "passing");
}

#[test]
fn what_hangs_floods_or_leads_astray_disturbs_nothing_else() {
    let w = World::servers(1).with("-enable-script-checks").start();
    let at = w.at(1);
    let word = format!("7300{}", std::process::id());
    let astray = http_peer(answer(
        "302 Found",
        "Location: http://169.254.169.254/latest/\r\n",
        "",
    ));
    let good = http_peer(answer("200 OK", "", "fine"));
    for body in [
        json!({"Name": "hangs", "Args": ["/bin/sh", "-c", format!("echo begun; sleep {word} & sleep {word}")], "Interval": "1s", "Timeout": "500ms"}),
        json!({"Name": "floods", "Args": ["yes"], "Interval": "1s"}),
        json!({"Name": "astray", "HTTP": format!("http://{astray}/"), "Interval": "1s"}),
        json!({"Name": "good", "HTTP": format!("http://{good}/"), "Interval": "1s"}),
    ] {
        at.put("/v1/agent/check/register", body.to_string())
            .unwrap()
            .ok();
    }
    let told = |id: &str, words: &str| {
        w.until(&format!("{id} to say {words}"), || {
            let check = check(&at, id);
            let output = check["Output"].as_str()?.to_owned();
            (check["Status"] == "critical" && output.contains(words)).then_some(output)
        })
    };
    told("hangs", "Timed out (500ms) running check\n\nbegun\n");
    let flood = told("floods", "Killed: wrote more than 64 MiB of output");
    assert!(flood.len() < 4_096 + 200, "{} bytes", flood.len());
    told(
        "astray",
        "refused to follow a redirect to 169.254.169.254:80: it is a link-local address",
    );
    becomes(&w, "good", "passing");

    // Gone with its check, and with all it started.
    at.put("/v1/agent/check/deregister/hangs", "").unwrap().ok();
    w.until("nothing of it to be left", || (!runs(&word)).then_some(()));
}

/// Whether any process has `word` in its command line.
fn runs(word: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .split('\0')
            .any(|arg| arg == word)
    })
}

#[test]
fn health_is_the_same_after_a_restart() {
    let peer = http_peer(answer("200 OK", "", "fine"));
    let mut w = World::servers(1).start();
    let service = json!({"Name": "web", "Checks": [
        {"CheckID": "http", "HTTP": format!("http://{peer}/"), "Interval": "1s"},
        {"CheckID": "tcp", "TCP": "127.0.0.1:1", "Interval": "1s", "Status": "passing"},
        {"CheckID": "alias", "AliasService": "db"},
        {"CheckID": "ttl", "TTL": "1h"}]});
    let at = w.at(1);
    at.put("/v1/agent/service/register", r#"{"Name":"db"}"#)
        .unwrap()
        .ok();
    at.put("/v1/agent/service/register", service.to_string())
        .unwrap()
        .ok();
    at.put("/v1/agent/check/warn/ttl?note=so-so", "")
        .unwrap()
        .ok();
    let expected = [
        ("http", "passing"),
        ("tcp", "critical"),
        ("alias", "passing"),
        ("ttl", "warning"),
    ];
    for (id, status) in expected {
        becomes(&w, id, status);
    }
    let peer_answers = TcpStream::connect(&peer).is_ok();
    assert!(peer_answers);
    let before = w.log(1).len();
    w.kill(1);
    w.restart(1);
    for (id, status) in expected {
        assert_eq!(check(&w.at(1), id)["Status"], status, "{id}");
    }
    // The first results after the restart are in, and changed nothing.
    w.until("the checks to have run again", || {
        let text = w
            .at(1)
            .get("/v1/agent/metrics?format=prometheus")
            .ok()?
            .text();
        let ran = |line: &str| text.contains(&format!("weft_agent_check_runs_total{{{line}}}"));
        (ran("type=\"http\",outcome=\"passing\"") && ran("type=\"tcp\",outcome=\"critical\""))
            .then_some(())
    });
    let log = w.log(1)[before..].to_owned();
    assert!(!log.contains("check changed status"), "{log}");
    let listed = w.cli(1, &["catalog", "services"]);
    assert!(said(&listed).contains("web"), "{}", said(&listed));
}

#[test]
fn link_local_targets_wait_for_a_key() {
    let file =
        r#"-hcl=check { name = "meta" tcp = "169.254.7.7:9" interval = "1s" timeout = "100ms" }"#;
    let said = |w: &World| {
        w.until("the check to have run", || {
            let check = check(&w.at(1), "meta");
            let output = check["Output"].as_str().unwrap_or_default().to_owned();
            Some(output).filter(|output| !output.is_empty())
        })
    };
    let w = World::servers(1).with(file).start();
    assert_eq!(
        said(&w),
        "refused to send to 169.254.7.7:9: it is link-local, where clouds hand out credentials; enable_link_local_checks allows it"
    );
    let w = World::servers(1)
        .with(file)
        .with("-hcl=enable_link_local_checks = true")
        .start();
    let said = said(&w);
    assert!(!said.contains("refused to send"), "{said}");
}
