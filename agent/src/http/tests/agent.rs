//! The local agent.

use super::world::World;

#[tokio::test]
async fn the_agent_tells_about_itself() {
    let world = World::start().await;
    let about = world.get("/v1/agent/self").await.json();
    assert_eq!(about["Config"]["Datacenter"], "dc1");
    assert_eq!(about["Config"]["Server"], true);
    assert_eq!(about["Member"]["Status"], 1);
    assert_eq!(about["Stats"]["agent"]["services"], "0");
    let members = world.get("/v1/agent/members").await.json();
    assert_eq!(
        (&members[0]["Name"], &members[0]["Port"]),
        (&"n1".into(), &8301.into())
    );
    world
        .check(&[
            ("GET /v1/agent/members?wan=1", "", 200, "[]"),
            ("GET /v1/agent/members?segment=_all&wan=1", "", 200, "[]"),
            (
                "GET /v1/agent/members?segment=blue",
                "",
                400,
                "Network segments are not supported in this version of Consul",
            ),
            (
                "GET /v1/agent/members?segment=alpha",
                "",
                400,
                "Network segments are not supported in this version of Consul",
            ),
            (
                "GET /v1/agent/members?filter=Tags.role==node",
                "",
                200,
                "[]",
            ),
            (
                "GET /v1/agent/version",
                "",
                200,
                r#"{"SHA":"","BuildDate":"","HumanVersion":"1.22.0","FIPS":""}"#,
            ),
            ("PUT /v1/agent/join/10.0.0.9", "", 200, ""),
            (
                "PUT /v1/agent/join/nowhere",
                "",
                500,
                "nobody answers at nowhere",
            ),
            ("PUT /v1/agent/force-leave/n3?prune", "", 200, ""),
            ("PUT /v1/agent/leave", "", 200, ""),
            ("PUT /v1/agent/reload", "", 500, "agent.hcl:3: unknown key"),
            (
                "PUT /v1/agent/maintenance",
                "",
                400,
                "Missing value for enable",
            ),
            (
                "PUT /v1/agent/maintenance?enable=maybe",
                "",
                400,
                "Invalid value for enable: \"maybe\"",
            ),
        ])
        .await;
    assert_eq!(
        *world.cluster.asked.lock(),
        ["join [\"10.0.0.9\"]", "force-leave n3 true", "leave"]
    );
    world.stop().await;
}

#[tokio::test]
async fn services_are_registered_shown_and_removed() {
    let world = World::start().await;
    let body = r#"{"name":"web","id":"web-1","Tags":["v2"],"port":8080,"check":{"ttl":"15s","status":"passing"}}"#;
    world
        .check(&[
            ("PUT /v1/agent/service/register", body, 200, ""),
            (
                "GET /v1/agent/service/none",
                "",
                404,
                "unknown service ID: none",
            ),
            (
                "PUT /v1/agent/service/register",
                "{}",
                400,
                "Missing service name",
            ),
        ])
        .await;
    let services = world.get("/v1/agent/services").await.json();
    assert_eq!(services["web-1"]["Service"], "web");
    assert_eq!(services["web-1"]["Datacenter"], "dc1");
    let checks = world.get("/v1/agent/checks").await.json();
    assert_eq!(checks["service:web-1"]["Status"], "passing");
    assert_eq!(checks["service:web-1"]["ServiceName"], "web");
    world
        .check(&[
            (
                "PUT /v1/agent/check/warn/service:web-1?note=slow",
                "",
                200,
                "",
            ),
            (
                "GET /v1/agent/health/service/name/web?format=text",
                "",
                429,
                "warning",
            ),
            ("PUT /v1/agent/check/fail/service:web-1", "", 200, ""),
            (
                "GET /v1/agent/health/service/id/web-1?format=text",
                "",
                503,
                "critical",
            ),
            (
                "PUT /v1/agent/check/update/service:web-1",
                r#"{"Status":"passing","Output":"ok"}"#,
                200,
                "",
            ),
            (
                "PUT /v1/agent/check/update/service:web-1",
                r#"{"Status":"fine"}"#,
                400,
                "Invalid check status: 'fine'",
            ),
            (
                "GET /v1/agent/health/service/id/web-1?format=text",
                "",
                200,
                "passing",
            ),
            (
                "PUT /v1/agent/service/maintenance/web-1?enable=true&reason=later",
                "",
                200,
                "",
            ),
            (
                "GET /v1/agent/health/service/id/web-1?format=text",
                "",
                503,
                "maintenance",
            ),
            (
                "PUT /v1/agent/service/maintenance/web-1?enable=false",
                "",
                200,
                "",
            ),
            ("GET /v1/agent/health/service/name/none", "", 404, "[]"),
            (
                "GET /v1/agent/health/service/id/none",
                "",
                404,
                r#"{"AggregatedStatus":"critical","Service":null,"Checks":null}"#,
            ),
            (
                "GET /v1/agent/health/service/id/none?format=text",
                "",
                404,
                "ServiceId none not found",
            ),
        ])
        .await;
    let health = world.get("/v1/agent/health/service/id/web-1").await;
    assert_eq!(
        (health.status, health.header("X-Consul-Reason")),
        (200, "passing")
    );
    assert_eq!(health.json()["AggregatedStatus"], "passing");
    assert_eq!(
        world.ask("PUT /v1/agent/check/pass/none", "").await.status,
        404
    );
    assert_eq!(
        world
            .ask("PUT /v1/agent/service/deregister/web-1", "")
            .await
            .status,
        200
    );
    assert_eq!(
        world
            .ask("PUT /v1/agent/service/deregister/web-1", "")
            .await
            .status,
        404
    );
    world
        .check(&[
            ("GET /v1/agent/services", "", 200, "{}"),
            ("GET /v1/agent/checks", "", 200, "{}"),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_service_is_waited_for_by_its_hash() {
    let world = World::start().await;
    let register = |port: u16| format!(r#"{{"Name":"web","Port":{port}}}"#);
    world
        .ask("PUT /v1/agent/service/register", &register(1))
        .await;
    let first = world.get("/v1/agent/service/web").await;
    let hash = first.header("X-Consul-Contenthash").to_owned();
    assert_eq!(first.json()["ContentHash"], *hash);
    let same = world
        .get(&format!("/v1/agent/service/web?hash={hash}&wait=20ms"))
        .await;
    assert_eq!(same.header("X-Consul-Contenthash"), hash);
    let path = format!("/v1/agent/service/web?hash={hash}&wait=60s");
    let (changed, ()) = tokio::join!(world.get(&path), async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        world
            .ask("PUT /v1/agent/service/register", &register(2))
            .await;
    });
    assert_eq!(changed.json()["Port"], 2);
    assert_ne!(changed.header("X-Consul-Contenthash"), hash);
    world.stop().await;
}

#[tokio::test]
async fn checks_are_registered_and_removed() {
    let world = World::start().await;
    world
        .check(&[
            (
                "PUT /v1/agent/check/register",
                r#"{"Name":"mem","TTL":"30s"}"#,
                200,
                "",
            ),
            (
                "PUT /v1/agent/check/register",
                r#"{"TTL":"30s"}"#,
                400,
                "Missing check name",
            ),
            ("PUT /v1/agent/check/pass/mem", "", 200, ""),
        ])
        .await;
    assert_eq!(
        world.get("/v1/agent/checks").await.json()["mem"]["Status"],
        "passing"
    );
    assert_eq!(
        world
            .ask("PUT /v1/agent/check/deregister/mem", "")
            .await
            .status,
        200
    );
    assert_eq!(
        world
            .ask("PUT /v1/agent/check/deregister/mem", "")
            .await
            .status,
        404
    );
    world.stop().await;
}

#[tokio::test]
async fn metrics_come_in_both_forms() {
    let world = World::start().await;
    world.get("/v1/kv/a").await;
    let text = world.get("/v1/agent/metrics?format=prometheus").await;
    assert_eq!(
        text.header("Content-Type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let line = r#"weft_http_requests_total{method="GET",route="/v1/kv/",class="4xx"} 1"#;
    assert!(
        text.text().lines().any(|found| found == line),
        "{}",
        text.text()
    );
    let json = world.get("/v1/agent/metrics").await.json();
    let names: Vec<_> = json["Gauges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gauge| gauge["Name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"consul.runtime.alloc_bytes"));
    assert!(names.contains(&"weft_http_requests_in_flight"));
    world.stop().await;
}

#[tokio::test]
async fn the_machine_is_shown_in_consuls_shape() {
    let world = World::start().await;
    let host = world.get("/v1/agent/host").await.json();
    let keys: Vec<_> = host.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        ["CPU", "CollectionTime", "Disk", "Errors", "Host", "Memory"]
    );
    assert!(host["Memory"]["total"].as_u64().unwrap() > 0);
    assert!(!host["CPU"].as_array().unwrap().is_empty());
    assert_eq!(host["Disk"]["path"], "/");
    assert_eq!(host["Host"]["os"], "linux");
    assert!(host["CollectionTime"].as_u64().unwrap() > 1_700_000_000_000_000_000);
    world.stop().await;
}

#[tokio::test]
async fn metrics_have_consuls_names_beside_our_own() {
    let world = World::start().await;
    world.get("/v1/kv/a").await;
    let text = world
        .get("/v1/agent/metrics?format=prometheus")
        .await
        .text();
    for line in [
        "# TYPE weft_http_requests_total counter",
        "# TYPE consul_api_http summary",
        "consul_api_http_count{method=\"GET\",path=\"v1.kv._\"} 1",
        "consul_members_servers 1",
        "consul_rpc_queries_blocking 0",
        "consul_version{version=\"1.22.0\"} 1",
    ] {
        assert!(
            text.lines().any(|own| own == line),
            "{line} is missing:\n{text}"
        );
    }
    let json = world.get("/v1/agent/metrics").await.json();
    let has = |part: &str, name: &str| {
        let all = json[part].as_array().unwrap();
        all.iter().any(|one| one["Name"] == name)
    };
    assert!(has("Gauges", "consul.runtime.alloc_bytes"));
    assert!(has("Samples", "consul.api.http"));
    assert!(has("Counters", "weft_http_requests_total"));
    world.stop().await;

    let off = World::with(|config| config.prometheus = false).await;
    let refused = off.get("/v1/agent/metrics?format=prometheus").await;
    assert_eq!(
        (refused.status, refused.header("X-Weft-Reason")),
        (415, "metrics.prometheus_off")
    );
    assert_eq!(off.get("/v1/agent/metrics").await.status, 200);
    off.stop().await;
}

#[tokio::test]
async fn gossip_keys_have_consuls_form_and_texts() {
    let world = World::start().await;
    let listed = world.get("/v1/operator/keyring").await.json();
    assert_eq!(
        listed,
        serde_json::json!([{
            "WAN": false, "Datacenter": "dc1", "Segment": "",
            "Keys": {"a2V5": 2}, "PrimaryKeys": {"a2V5": 2}, "NumNodes": 2
        }])
    );
    let key = r#"{"Key":"k"}"#;
    world
        .check(&[
            ("POST /v1/operator/keyring", key, 200, ""),
            ("PUT /v1/operator/keyring?relay-factor=5", key, 200, ""),
            ("DELETE /v1/operator/keyring", key, 500, "2 errors occurred:\n\t* dc1 (LAN) error: 1/2 nodes reported failure\n\t* n2: gossip key is the primary one; use another key first\n\n"),
            ("POST /v1/operator/keyring", r#"{"Key":"bad"}"#, 500, "1 error occurred:\n\t* dc1 (LAN) error: gossip key ring is empty\n\n"),
            ("GET /v1/operator/keyring?relay-factor=6", "", 400, "Bad request: Invalid relay-factor: Relay factor must be in range: [0, 5]"),
            ("DELETE /v1/operator/keyring?local-only=true", key, 400, "Bad request: Invalid use of local-only: local-only can only be set for list requests"),
        ])
        .await;
    let why = world.get("/v1/agent/members?why").await.json();
    assert_eq!(why[0]["Why"]["AccusedBy"][0]["Node"], "n2");
    assert_eq!(why[0]["Why"]["AccusedBy"][0]["Ago"], "1.5s");
    let plain = world.get("/v1/agent/members").await.json();
    assert!(plain[0].get("Why").is_none());
    world.stop().await;
}
