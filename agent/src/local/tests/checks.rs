//! Checks against real targets on loopback, and time.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::world::{API, check, open, service, until};
use crate::local::Reach;
use crate::local::{
    Aggregate, CheckDefinition, CheckKind, RegisterOptions, Source, Status, http_check, tcp_check,
};

/// Answers each connection with the next of `answers` (the last one for ever); hands out the requests.
async fn target(answers: Vec<String>) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for n in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answers[n.min(answers.len() - 1)].clone();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 65_536];
                let mut read = 0;
                while !complete(&request[..read]) {
                    match stream.read(&mut request[read..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(count) => read += count,
                    }
                }
                seen.send(String::from_utf8_lossy(&request[..read]).into_owned())
                    .ok();
                stream.write_all(answer.as_bytes()).await.ok();
            });
        }
    });
    (address, requests)
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn answer(status: &str, extra: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n{body}",
        body.len()
    )
}

async fn run_http(value: Value, output_max: usize) -> (Status, String) {
    let mut body = json!({"Name": "c", "Interval": "1s"});
    body.as_object_mut()
        .unwrap()
        .extend(value.as_object().unwrap().clone());
    let CheckKind::Http(check) = check(body).kind else {
        panic!("not an http check")
    };
    http_check::run(&check, output_max, &Reach::default()).await
}

#[tokio::test]
async fn http_statuses_are_judged_and_told() {
    let cases = [
        ("200 OK", Status::Passing),
        ("204 No Content", Status::Passing),
        ("299 Custom Words", Status::Passing),
        ("429 Too Many Requests", Status::Warning),
        ("404 Not Found", Status::Critical),
        ("500 Internal Server Error", Status::Critical),
        ("304 Not Modified", Status::Critical),
    ];
    for (line, expected) in cases {
        let body = if line.starts_with("204") || line.starts_with("304") {
            ""
        } else {
            "text"
        };
        let (address, _requests) = target(vec![answer(line, "", body)]).await;
        let url = format!("http://{address}/health");
        let (status, output) = run_http(json!({"HTTP": url}), 4_096).await;
        assert_eq!(
            (status, output),
            (expected, format!("HTTP GET {url}: {line} Output: {body}"))
        );
    }
}

#[tokio::test]
async fn http_requests_carry_what_was_asked_and_the_defaults() {
    let (address, mut requests) = target(vec![answer("200 OK", "", "")]).await;
    run_http(json!({"HTTP": format!("http://{address}")}), 10).await;
    let plain = requests.recv().await.unwrap().to_lowercase();
    assert!(plain.starts_with("get / http/1.1\r\n"), "{plain}");
    for line in [
        &format!("host: {address}"),
        "user-agent: consul health check",
        "accept: text/plain, text/*, */*",
    ] {
        assert!(
            plain.contains(&format!("{line}\r\n")),
            "{plain:?} lacks {line:?}"
        );
    }
    let full = json!({"HTTP": format!("http://{address}/a?b=c"), "Method": "PUT", "Body": "{}",
        "Header": {"User-Agent": ["own"], "Host": ["other.example"], "X-Two": ["1", "2"]}});
    run_http(full, 10).await;
    let full = requests.recv().await.unwrap();
    assert!(
        full.starts_with("PUT /a?b=c HTTP/1.1\r\n") && full.ends_with("\r\n\r\n{}"),
        "{full}"
    );
    let full = full.to_lowercase();
    for line in [
        "host: other.example",
        "user-agent: own",
        "x-two: 1",
        "x-two: 2",
        "content-type: application/json",
    ] {
        assert!(
            full.contains(&format!("{line}\r\n")),
            "{full:?} lacks {line:?}"
        );
    }
}

#[tokio::test]
async fn http_redirects_are_followed_unless_disabled() {
    let hop = |to: &str| answer("302 Found", &format!("Location: {to}\r\n"), "");
    let answers = vec![hop("/b"), hop("c?d=e"), answer("200 OK", "", "here")];
    let (address, mut requests) = target(answers).await;
    let url = format!("http://{address}/a/x");
    let (status, output) = run_http(json!({"HTTP": url, "Method": "POST", "Body": "x"}), 10).await;
    assert_eq!(
        (status, output),
        (
            Status::Passing,
            format!("HTTP POST {url}: 200 OK Output: here")
        )
    );
    let mut lines = Vec::new();
    for _ in 0..3 {
        lines.push(
            requests
                .recv()
                .await
                .unwrap()
                .lines()
                .next()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(
        lines,
        [
            "POST /a/x HTTP/1.1",
            "GET /b HTTP/1.1",
            "GET /c?d=e HTTP/1.1"
        ]
    );

    let (address, _requests) = target(vec![hop("/")]).await;
    let url = format!("http://{address}/");
    let (status, output) = run_http(json!({"HTTP": url, "DisableRedirects": true}), 10).await;
    assert_eq!(
        (status, output),
        (
            Status::Critical,
            format!("HTTP GET {url}: 302 Found Output: ")
        )
    );
    let (status, output) = run_http(json!({"HTTP": url}), 10).await;
    assert_eq!(
        (status, output),
        (
            Status::Critical,
            format!("Get \"{url}\": stopped after 10 redirects")
        )
    );
}

#[tokio::test]
async fn http_output_is_cut_and_failures_are_told() {
    let (address, _requests) = target(vec![answer("200 OK", "", &"x".repeat(100))]).await;
    let (_, output) = run_http(json!({"HTTP": format!("http://{address}/")}), 7).await;
    assert!(
        output.ends_with("Output: xxxxxxx ... (captured 7 of 100 bytes)"),
        "{output}"
    );

    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let (status, output) = run_http(json!({"HTTP": format!("http://{closed}/")}), 7).await;
    let expected =
        format!("Get \"http://{closed}/\": dial tcp {closed}: connect: connection refused");
    assert_eq!((status, output), (Status::Critical, expected));
    let (address, _requests) = target(vec!["nonsense\r\n\r\n".to_owned()]).await;
    assert_eq!(
        run_http(json!({"HTTP": format!("http://{address}/")}), 7)
            .await
            .0,
        Status::Critical
    );
    // A server that speaks no TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-other\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let (status, output) = run_http(
        json!({"HTTP": format!("https://{address}/"), "TLSSkipVerify": true}),
        7,
    )
    .await;
    assert!(
        status == Status::Critical && output.contains("tls: "),
        "{output}"
    );
}

#[tokio::test]
async fn redirects_do_not_lead_to_what_hands_out_credentials() {
    let cases = [
        (
            "http://169.254.169.254/latest/meta-data/",
            "169.254.169.254:80: it is a link-local address",
        ),
        (
            "http://[fe80::1]:8500/",
            "[fe80::1]:8500: it is a link-local address",
        ),
        (
            "http://100.100.100.200/",
            "100.100.100.200:80: it is a metadata service",
        ),
    ];
    for (to, why) in cases {
        let hop = answer("302 Found", &format!("Location: {to}\r\n"), "");
        let (address, _requests) = target(vec![hop]).await;
        let url = format!("http://{address}/");
        let (status, output) = run_http(json!({"HTTP": url}), 10).await;
        let expected = format!("Get \"{url}\": refused to follow a redirect to {why}");
        assert_eq!((status, output), (Status::Critical, expected));
    }
}

#[tokio::test]
async fn another_host_is_not_told_the_secrets_of_the_first() {
    let (other, mut seen) = target(vec![answer("200 OK", "", "")]).await;
    let port = other.rsplit_once(':').unwrap().1;
    let hop = |to: String| answer("307 Temporary Redirect", &format!("Location: {to}\r\n"), "");
    let answers = vec![
        hop("/again".to_owned()),
        hop(format!("http://localhost:{port}/")),
    ];
    let (first, mut own) = target(answers).await;
    let header = json!({"Authorization": ["secret"], "X-Kept": ["yes"], "Host": ["first.example"]});
    let url = format!("http://{first}/");
    let (status, _) = run_http(json!({"HTTP": url, "Header": header}), 10).await;
    assert_eq!(status, Status::Passing);
    for _ in 0..2 {
        let own = own.recv().await.unwrap().to_lowercase();
        assert!(own.contains("authorization: secret\r\n") && own.contains("host: first.example"));
    }
    let other = seen.recv().await.unwrap().to_lowercase();
    assert!(other.contains("x-kept: yes\r\n"), "{other}");
    assert!(
        other.contains(&format!("host: localhost:{port}\r\n")),
        "{other}"
    );
    assert!(!other.contains("secret"), "{other}");
}

async fn run_tcp(address: &str) -> (Status, String) {
    let CheckKind::Tcp(check) = check(json!({"Name": "c", "TCP": address, "Interval": "1s"})).kind
    else {
        panic!("not a tcp check")
    };
    tcp_check::run(&check, &Reach::default()).await
}

#[tokio::test]
async fn tcp_checks_try_every_address() {
    // `localhost` may resolve to ::1 first, where nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    assert_eq!(
        run_tcp(&address).await,
        (Status::Passing, format!("TCP connect {address}: Success"))
    );
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let refused = format!("dial tcp {address}: connect: connection refused");
    assert_eq!(run_tcp(&address).await, (Status::Critical, refused));
    assert_eq!(run_tcp("no port here").await.0, Status::Critical);
}

#[tokio::test]
async fn polled_checks_run_and_end_with_their_registration() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (http, mut requests) = target(vec![answer("200 OK", "", "fine")]).await;
    let local = open(None);
    local.start_checks(None);
    let web = json!({"Name": "web", "Checks": [
        {"TCP": address, "Interval": "1s"}, {"HTTP": format!("http://{http}/"), "Interval": "1s"}]});
    local.register_service(service(web), API).await.unwrap();
    assert_eq!(
        local.health_by_id("web").unwrap().status,
        Aggregate::Critical
    );
    until("both pass", || local.counts().passing == 2).await;
    assert_eq!(local.health_by_name("web")[0].status, Aggregate::Passing);
    drop(listener);
    until("tcp fails", || {
        local.check("service:web:1").unwrap().record.status == "critical"
    })
    .await;
    assert_eq!(
        local.check("service:web:2").unwrap().record.status,
        "passing"
    );
    local.deregister_service("web").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    while requests.try_recv().is_ok() {}
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        requests.try_recv().is_err(),
        "a deregistered check still runs"
    );
}

#[tokio::test]
async fn a_target_that_does_not_answer_is_critical_after_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let local = open(None);
    local.start_checks(None);
    let slow = json!({"ID": "slow", "Name": "slow", "HTTP": url, "Interval": "1s", "Timeout": "50ms", "Status": "passing"});
    local
        .register_check(check(slow), Source::Api)
        .await
        .unwrap();
    until("timed out", || {
        local.check("slow").unwrap().record.status == "critical"
    })
    .await;
    assert_eq!(
        local.check("slow").unwrap().record.output,
        format!("Get \"{url}\": no answer within the timeout of 50ms")
    );
}

#[tokio::test(start_paused = true)]
async fn ttl_checks_expire_unless_reported_to() {
    let local = open(None);
    local.start_checks(None);
    local
        .register_check(
            check(json!({"Name": "c", "TTL": "10s", "OutputMaxSize": 5})),
            Source::Api,
        )
        .await
        .unwrap();
    let shown = || {
        let record = local.check("c").unwrap().record;
        (record.status, record.output)
    };
    assert_eq!(shown(), ("critical".to_owned(), String::new()));
    for _ in 0..5 {
        local
            .update_ttl("c", Status::Passing, "alive and well")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(
            shown(),
            (
                "passing".to_owned(),
                "alive ... (captured 5 of 14 bytes)".to_owned()
            )
        );
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let expired =
        "TTL expired (last output before timeout follows): alive ... (captured 5 of 14 bytes)";
    assert_eq!(shown(), ("critical".to_owned(), expired.to_owned()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shown().1, expired, "it expires once");
    local.update_ttl("c", Status::Warning, "").await.unwrap();
    assert_eq!(shown(), ("warning".to_owned(), String::new()));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(shown(), ("critical".to_owned(), "TTL expired".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn registering_again_keeps_status_and_output() {
    let local = open(None);
    let web = |port: u16| {
        service(
            json!({"Name": "web", "Port": port, "Checks": [{"TTL": "1h"}, {"ID": "b", "TTL": "1h"}]}),
        )
    };
    local.register_service(web(1), API).await.unwrap();
    local
        .update_ttl("service:web:1", Status::Passing, "up")
        .await
        .unwrap();
    let (first, mut changed) = (local.service("web").unwrap().1, local.services_changed());
    changed.mark_unchanged();
    local.register_service(web(2), API).await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert_ne!(local.service("web").unwrap().1, first);
    let seen = local.check("service:web:1").unwrap().record;
    assert_eq!(
        (seen.status.as_str(), seen.output.as_str()),
        ("passing", "up")
    );

    let fewer = service(json!({"Name": "web", "Check": {"CheckID": "b", "TTL": "1h"}}));
    local.register_service(fewer.clone(), API).await.unwrap();
    assert_eq!(local.counts().checks, 2, "checks it does not name stay");
    local
        .register_service(
            fewer,
            RegisterOptions {
                replace_existing_checks: true,
                ..API
            },
        )
        .await
        .unwrap();
    assert_eq!(local.checks().keys().collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn maintenance_outranks_everything() {
    let local = open(None);
    for name in ["web", "db"] {
        local
            .register_service(service(json!({"Name": name})), API)
            .await
            .unwrap();
    }
    local
        .register_check(
            check(json!({"Name": "disk", "TTL": "1h", "Status": "warning"})),
            Source::Api,
        )
        .await
        .unwrap();
    let of = |id: &str| local.health_by_id(id).unwrap().status;
    assert_eq!(
        (of("web"), of("db")),
        (Aggregate::Warning, Aggregate::Warning)
    );
    local
        .enable_service_maintenance("web", "why")
        .await
        .unwrap();
    assert_eq!(
        (of("web"), of("db")),
        (Aggregate::Maintenance, Aggregate::Warning)
    );
    local.enable_node_maintenance("").await.unwrap();
    assert_eq!(of("db"), Aggregate::Maintenance);
    local.disable_node_maintenance().await.unwrap();
    local.disable_service_maintenance("web").await.unwrap();
    assert_eq!(
        (of("web"), of("db")),
        (Aggregate::Warning, Aggregate::Warning)
    );
    assert!(local.health_by_id("x").is_none() && local.health_by_name("x").is_empty());
}

#[tokio::test(start_paused = true)]
async fn services_critical_for_too_long_are_deregistered() {
    let (cluster, local) = (super::world::Cluster::new(), open(None));
    let dying = |name: &str| {
        service(
            json!({"Name": name, "Check": {"TTL": "10s", "DeregisterCriticalServiceAfter": "90s"}}),
        )
    };
    local.register_service(dying("dies"), API).await.unwrap();
    local.register_service(dying("lives"), API).await.unwrap();
    let _running = local.start(cluster.clone());
    for _ in 0..11 {
        local
            .update_ttl("service:lives", Status::Warning, "")
            .await
            .unwrap();
        assert!(local.services().contains_key("dies"), "not before 90 s");
        tokio::time::sleep(Duration::from_secs(8)).await;
    }
    for _ in 0..6 {
        local
            .update_ttl("service:lives", Status::Warning, "")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
    }
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["lives"]);
    assert_eq!(cluster.service_ids(), ["lives"]);
}

#[test]
fn stand_alone_checks_take_their_name_as_id() {
    let parse =
        |value: Value| CheckDefinition::parse(&value, crate::local::UnknownKeys::Refuse).unwrap();
    assert_eq!(parse(json!({"Name": "mem", "TTL": "1s"})).id, "mem");
    assert_eq!(
        parse(json!({"Name": "mem", "CheckID": "m", "TTL": "1s"})).id,
        "m"
    );
    assert_eq!(
        parse(json!({"name": "mem", "id": "m", "ttl": "1s"})).id,
        "m"
    );
}
