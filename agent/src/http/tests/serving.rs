//! Connections: keep-alive, unix sockets, bounds.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::world::{World, exchange};
use crate::http::Listen;

#[tokio::test]
async fn a_connection_carries_many_requests() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        stream
            .write_all(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 4_096];
        let size = stream.read(&mut answer).await.unwrap();
        assert!(answer[..size].ends_with(b"\r\n\r\n\"127.0.0.1:8300\""));
    }
    world.stop().await;
}

#[tokio::test]
async fn a_unix_socket_is_served_and_a_left_over_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    for _ in 0..2 {
        let listen = Listen::Unix {
            path: path.clone(),
            mode: Some(0o600),
        };
        let world = World::with(|config| config.addresses = vec![listen]).await;
        let stream = UnixStream::connect(&path).await.unwrap();
        let answer = exchange(stream, "GET /v1/catalog/datacenters", b"", "").await;
        assert_eq!(answer.text(), "[\"dc1\"]");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        world.stop().await;
        assert!(path.exists(), "the second round must find a left-over file");
    }
}

#[tokio::test]
async fn only_the_named_networks_may_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let world = World::with(|config| {
        config.allow_write_from = vec![([10, 0, 0, 0].into(), 8)];
        config.addresses.push(Listen::Unix {
            path: path.clone(),
            mode: None,
        });
    })
    .await;
    for write in [
        "PUT /v1/kv/a",
        "DELETE /v1/kv/a",
        "PUT /v1/agent/service/register",
    ] {
        let answer = world.ask(write, "x").await;
        assert_eq!(
            (
                answer.status,
                answer.text().as_str(),
                answer.header("X-Weft-Reason")
            ),
            (403, "Access is restricted", "http.write_restricted"),
            "{write}"
        );
    }
    assert_eq!(
        world.get("/v1/kv/a").await.status,
        404,
        "nothing was written"
    );
    let local = UnixStream::connect(&path).await.unwrap();
    let answer = exchange(local, "PUT /v1/kv/a", b"x", "").await;
    assert_eq!(answer.text(), "true");
    assert_eq!(world.get("/v1/kv/a").await.status, 200);
    world.stop().await;
    let open = World::with(|config| {
        config.allow_write_from = vec![([127, 0, 0, 0].into(), 8)];
    })
    .await;
    assert_eq!(open.ask("PUT /v1/kv/a", "x").await.text(), "true");
    open.stop().await;
}

#[tokio::test]
async fn one_client_has_a_bounded_number_of_connections() {
    let world = World::with(|config| config.limits.max_conns_per_client = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream
            .write_all(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
        held.push(stream);
    }
    let mut refused = String::new();
    TcpStream::connect(world.address)
        .await
        .unwrap()
        .read_to_string(&mut refused)
        .await
        .unwrap();
    assert!(
        refused.starts_with("HTTP/1.1 429 Too Many Requests\r\n"),
        "{refused}"
    );
    assert!(refused.contains("Your IP is issuing too many concurrent connections"));
    assert!(refused.contains("limits.http_max_conns_per_client"));
    drop(held);
    for _ in 0..2_000 {
        if let Ok(answer) = try_get(&world).await {
            assert_eq!(answer, 200);
            world.stop().await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("the places did not come back");
}

async fn try_get(world: &World) -> Result<u16, ()> {
    let answer = world.get("/v1/status/leader").await;
    if answer.status == 429 {
        Err(())
    } else {
        Ok(answer.status)
    }
}

#[tokio::test]
async fn a_head_in_pieces_has_little_time_and_an_idle_connection_all_it_wants() {
    let timeout = std::time::Duration::from_millis(60);
    let world = World::with(|config| config.limits.header_timeout = timeout).await;
    let request = b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut idle = TcpStream::connect(world.address).await.unwrap();
    let mut slow = TcpStream::connect(world.address).await.unwrap();
    idle.write_all(request).await.unwrap();
    assert!(idle.read(&mut [0; 4_096]).await.unwrap() > 0);
    slow.write_all(&request[..20]).await.unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(
        !String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"),
        "an unfinished head was answered"
    );
    tokio::time::sleep(timeout * 2).await;
    idle.write_all(request).await.unwrap();
    assert!(
        idle.read(&mut [0; 4_096]).await.unwrap() > 0,
        "the idle connection was closed"
    );
    let waited = world.get("/v1/kv/a?index=9&wait=150ms").await;
    assert_eq!(waited.status, 404);
    world.stop().await;
}

const STALL: std::time::Duration = std::time::Duration::from_millis(150);

async fn impatient() -> World {
    World::with(|config| config.limits.stall_timeout = STALL).await
}

/// Announces 4,000 bytes and sends 400 of them `pieces` times, a third of the patience apart.
async fn upload(world: &World, request: &str, pieces: usize) -> (u16, String) {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..pieces {
        stream.write_all(&[b'x'; 400]).await.unwrap();
        tokio::time::sleep(STALL / 3).await;
    }
    let mut answer = vec![0; 4_096];
    let size = stream.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..size]).into_owned();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up_and_a_slow_one_is_taken() {
    let world = impatient().await;
    for request in [
        "PUT /v1/kv/slow",
        "PUT /v1/txn",
        "PUT /v1/agent/service/register",
        "PUT /v1/snapshot",
    ] {
        let (status, text) = upload(&world, request, 1).await;
        assert_eq!(status, 408, "{request}: {text}");
        assert!(
            text.contains("X-Weft-Reason: http.body.stalled\r\n"),
            "{text}"
        );
        assert!(
            text.contains("The request body stalled: 400 bytes came in")
                && text.contains("http_config.stall_timeout (150ms)"),
            "{text}"
        );
    }
    assert_eq!(world.get("/v1/kv/slow").await.status, 404);
    assert_eq!(*world.cluster.asked.lock(), Vec::<String>::new());
    for request in ["PUT /v1/kv/slow", "PUT /v1/snapshot"] {
        let (status, text) = upload(&world, request, 10).await;
        assert_eq!(
            status, 200,
            "{request}: three times the patience, but never silent: {text}"
        );
    }
    assert_eq!(world.get("/v1/kv/slow").await.status, 200);
    assert_eq!(*world.cluster.asked.lock(), ["restore 4000 bytes"]);
    world.stop().await;
}

#[tokio::test]
async fn a_connection_that_never_says_a_word_gives_its_place_back() {
    let world = impatient().await;
    let mut silent = TcpStream::connect(world.address).await.unwrap();
    let mut nothing = Vec::new();
    let ended = tokio::time::timeout(STALL * 20, silent.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok(), "it is still open");
    assert_eq!(nothing, b"");
    world.stop().await;
}

#[tokio::test]
async fn a_huge_head_is_refused_and_the_server_lives_on() {
    let world = World::start().await;
    let answer = world
        .send(
            "GET /v1/status/leader",
            b"",
            &format!("X-Big: {}\r\n", "x".repeat(70_000)),
        )
        .await;
    assert_eq!(
        (answer.status, answer.header("X-Weft-Reason")),
        (431, "http.head.too_large")
    );
    assert!(answer.text().contains("http_config.max_header_bytes"));
    let fits = world
        .send(
            "GET /v1/status/leader",
            b"",
            &format!("X-Big: {}\r\n", "x".repeat(30_000)),
        )
        .await;
    assert_eq!(fits.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let world = World::start().await;
    let address = world.address;
    let config = crate::http::HttpConfig {
        addresses: vec![Listen::Tcp(address)],
        ..Default::default()
    };
    let error = World::try_with(config).await.err().unwrap().to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("-http-port"),
        "{error}"
    );
    world.stop().await;
}
