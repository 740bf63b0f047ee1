//! What all endpoints share: headers, methods, unknown paths, indentation, gzip, consistency.

use std::sync::atomic::Ordering;

use super::world::World;

#[tokio::test]
async fn headers_are_spelled_as_go_spells_them() {
    let world = World::start().await;
    let answer = world.get("/v1/kv/absent").await;
    for name in [
        "X-Consul-Index",
        "X-Consul-Knownleader",
        "X-Consul-Lastcontact",
        "X-Consul-Effective-Consistency",
    ] {
        assert!(
            answer.names().contains(name),
            "{name} is not among {:?}",
            answer.names()
        );
    }
    assert_eq!(answer.header("X-Consul-Index"), "1");
    assert_eq!(answer.header("X-Consul-Knownleader"), "true");
    assert_eq!(answer.header("X-Consul-Effective-Consistency"), "leader");
    let health = world.get("/v1/health/service/absent?stale").await;
    assert_eq!(
        (health.text().as_str(), health.header("Content-Type")),
        ("[]", "application/json")
    );
    assert_eq!(health.header("X-Consul-Effective-Consistency"), "stale");
    assert_eq!(health.header("X-Consul-Query-Backend"), "blocking-query");
    let raw = world.ask("PUT /v1/kv/a", "<b>").await;
    assert_eq!(raw.text(), "true");
    let raw = world.get("/v1/kv/a?raw").await;
    assert_eq!(raw.header("Content-Type"), "text/plain");
    assert_eq!(raw.header("X-Content-Type-Options"), "nosniff");
    assert_eq!(raw.header("Content-Security-Policy"), "sandbox");
    world.stop().await;
}

#[tokio::test]
async fn paths_and_methods_are_refused_in_consuls_words() {
    let world = World::start().await;
    world
        .check(&[
            ("GET /", "", 200, "Weft Agent"),
            ("GET /v1/acl/create", "", 404, "Invalid URL path: not a recognized HTTP API endpoint\n"),
            ("GET /nothing", "", 404, "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n"),
            ("POST /v1/kv/a", "", 405, "method POST not allowed"),
            ("DELETE /v1/agent/services", "", 405, "method DELETE not allowed"),
            ("OPTIONS /v1/kv/a", "", 200, ""),
            ("OPTIONS /v1/nothing", "", 404, "Invalid URL path: not a recognized HTTP API endpoint\n"),
            ("GET /v1/catalog/nodes?dc=mars", "", 500, "No path to datacenter"),
            ("GET /v1/agent/services?dc=mars", "", 200, "{}"),
            ("GET /v1/catalog/nodes?ns=team", "", 400, "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature"),
            ("GET /v1/catalog/nodes?partition=a", "", 400, "Invalid query parameter: \"partition\" - Partitions are a Consul Enterprise feature"),
            ("GET /v1/catalog/nodes?ns=default&partition=", "", 200, "[]"),
            ("GET /v1/catalog/nodes?stale&consistent", "", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."),
            ("GET /v1/catalog/nodes?index=x", "", 400, "Invalid index"),
            ("GET /v1/catalog/nodes?wait=x", "", 400, "Invalid wait time"),
            ("GET /v1/catalog/nodes?max_stale=x", "", 400, "Invalid max_stale value \"x\""),
        ])
        .await;
    assert_eq!(
        world.ask("POST /v1/kv/a", "").await.header("Allow"),
        "OPTIONS,GET,PUT,DELETE"
    );
    assert_eq!(
        world.ask("OPTIONS /v1/kv/a", "").await.header("Allow"),
        "OPTIONS,GET,PUT,DELETE"
    );
    assert_eq!(
        world.get("/v1/nothing").await.header("X-Weft-Reason"),
        "http.path.unknown"
    );
    let header = world
        .send("GET /v1/catalog/nodes", b"", "X-Consul-Namespace: team\r\n")
        .await;
    assert_eq!(header.status, 400);
    world.stop().await;
}

#[tokio::test]
async fn answers_are_indented_and_compressed_on_demand() {
    let world = World::start().await;
    world
        .check(&[(
            "GET /v1/catalog/datacenters?pretty",
            "",
            200,
            "[\n    \"dc1\"\n]\n",
        )])
        .await;
    world.ask("PUT /v1/kv/big", &"x".repeat(4_000)).await;
    let packed = world
        .send("GET /v1/kv/big", b"", "Accept-Encoding: gzip\r\n")
        .await;
    assert_eq!(
        (packed.header("Content-Encoding"), packed.header("Vary")),
        ("gzip", "Accept-Encoding")
    );
    let mut plain = String::new();
    std::io::Read::read_to_string(
        &mut flate2::read::GzDecoder::new(&packed.body[..]),
        &mut plain,
    )
    .unwrap();
    assert_eq!(plain, world.get("/v1/kv/big").await.text());
    let small = world
        .send("GET /v1/status/leader", b"", "Accept-Encoding: gzip\r\n")
        .await;
    assert_eq!(small.text(), "\"127.0.0.1:8300\"");
    world.stop().await;
    let dev = World::with(|config| {
        config.always_pretty = true;
        config
            .response_headers
            .push(("x-site".parse().unwrap(), "here".parse().unwrap()));
        config.block_endpoints.push("/v1/agent/leave".to_owned());
    })
    .await;
    let answer = dev.get("/v1/catalog/services").await;
    assert_eq!(
        (answer.text().as_str(), answer.header("X-Site")),
        ("{}\n", "here")
    );
    dev.check(&[(
        "PUT /v1/agent/leave",
        "",
        403,
        "Endpoint is blocked by agent configuration",
    )])
    .await;
    assert!(dev.cluster.asked.lock().is_empty());
    dev.stop().await;
}

#[tokio::test]
async fn discovery_reads_are_as_stale_as_the_configuration_lets_them() {
    let world = World::with(|config| {
        config.discovery_max_stale = std::time::Duration::from_secs(5);
    })
    .await;
    let mode = async |path: &str| {
        let answer = world.get(path).await;
        (
            answer.status,
            answer.header("X-Consul-Effective-Consistency").to_owned(),
        )
    };
    let stale = (200, "stale".to_owned());
    let leader = (200, "leader".to_owned());
    for path in [
        "/v1/health/service/web",
        "/v1/catalog/services",
        "/v1/catalog/node/n",
    ] {
        assert_eq!(mode(path).await, stale, "{path}");
    }
    assert_eq!(
        mode("/v1/health/service/web?consistent").await.1,
        "consistent"
    );
    assert_eq!(mode("/v1/kv/?keys").await.1, "leader", "no discovery");
    let contact = |millis| {
        world
            .backend
            .last_contact_millis
            .store(millis, Ordering::Relaxed)
    };
    contact(6_000);
    assert_eq!(mode("/v1/health/service/web").await, leader, "too old");
    world.backend.leaderless.store(true, Ordering::Relaxed);
    world
        .check(&[("GET /v1/health/service/web", "", 500, "No cluster leader")])
        .await;
    contact(4_000);
    assert_eq!(mode("/v1/health/service/web").await, stale);
    world.stop().await;
}

#[tokio::test]
async fn without_a_leader_only_stale_reads_are_answered() {
    let world = World::start().await;
    world.ask("PUT /v1/kv/a", "x").await;
    world.backend.leaderless.store(true, Ordering::Relaxed);
    world
        .backend
        .last_contact_millis
        .store(2_500, Ordering::Relaxed);
    world
        .check(&[
            ("GET /v1/kv/a", "", 500, "No cluster leader"),
            ("GET /v1/kv/a?consistent", "", 500, "No cluster leader"),
            (
                "GET /v1/kv/a?raw&max_stale=1s",
                "",
                500,
                "No cluster leader",
            ),
            ("GET /v1/kv/a?raw&max_stale=5s", "", 200, "x"),
            ("GET /v1/kv/a?raw&stale", "", 200, "x"),
            ("PUT /v1/kv/a", "y", 500, "No cluster leader"),
            ("GET /v1/status/leader", "", 200, "\"127.0.0.1:8300\""),
            ("GET /v1/catalog/datacenters", "", 200, "[\"dc1\"]"),
        ])
        .await;
    let stale = world.get("/v1/kv/a?stale").await;
    assert_eq!(
        (
            stale.header("X-Consul-Knownleader"),
            stale.header("X-Consul-Lastcontact")
        ),
        ("false", "2500")
    );
    assert_eq!(
        world.get("/v1/kv/a").await.header("X-Weft-Reason"),
        "raft.no_leader"
    );
    let cached = world.get("/v1/health/service/web?cached").await;
    assert_eq!(
        (
            cached.status,
            cached.header("X-Cache"),
            cached.header("Age")
        ),
        (200, "HIT", "2")
    );
    let fresh = world
        .send(
            "GET /v1/health/service/web?cached",
            b"",
            "Cache-Control: max-age=1\r\n",
        )
        .await;
    assert_eq!(fresh.status, 500);
    world.stop().await;
}
