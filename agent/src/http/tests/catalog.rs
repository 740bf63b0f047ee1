//! Catalog, health and operator.

use super::world::World;

const NODE: &str = r#"{"ID":"","Node":"ext-1","Address":"10.9.0.1","Datacenter":"dc1","TaggedAddresses":{},"Meta":{"rack":"r2"},"CreateIndex":1,"ModifyIndex":1}"#;
const SERVICE: &str = r#"{"ID":"pg1","Service":"pg","Tags":["v2"],"Address":"","TaggedAddresses":{},"Meta":{},"Port":5432,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":1,"ModifyIndex":1}"#;
const CHECK: &str = r#"{"Node":"ext-1","CheckID":"alive","Name":"alive","Status":"warning","Notes":"","Output":"\u003cslow\u003e","ServiceID":"pg1","ServiceName":"pg","ServiceTags":["v2"],"Type":"","Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":1,"ModifyIndex":1}"#;

async fn with_pg() -> World {
    let world = World::start().await;
    let body = r#"{"node":"ext-1","ADDRESS":"10.9.0.1","NodeMeta":{"rack":"r2"},"Unknown":[1],
        "Service":{"ID":"pg1","Service":"pg","Tags":["v2"],"Port":5432},
        "Check":{"Name":"alive","Status":"warning","ServiceID":"pg1","Output":"<slow>"}}"#;
    world
        .check(&[("PUT /v1/catalog/register", body, 200, "true")])
        .await;
    world
}

#[tokio::test]
async fn what_is_registered_is_found() {
    let world = with_pg().await;
    let row = format!(r#"[{{"Node":{NODE},"Service":{SERVICE},"Checks":[{CHECK}]}}]"#);
    let flat = r#"[{"ID":"","Node":"ext-1","Address":"10.9.0.1","Datacenter":"dc1","TaggedAddresses":{},"NodeMeta":{"rack":"r2"},"ServiceKind":"","ServiceID":"pg1","ServiceName":"pg","ServiceTags":["v2"],"ServiceAddress":"","ServiceTaggedAddresses":{},"ServiceWeights":{"Passing":1,"Warning":1},"ServiceMeta":{},"ServicePort":5432,"ServiceSocketPath":"","ServiceEnableTagOverride":false,"ServiceProxy":{"Mode":"","MeshGateway":{},"Expose":{}},"ServiceConnect":{},"CreateIndex":1,"ModifyIndex":1}]"#;
    let (nodes, checks) = (format!("[{NODE}]"), format!("[{CHECK}]"));
    let node = format!(r#"{{"Node":{NODE},"Services":{{"pg1":{SERVICE}}}}}"#);
    let bare = format!(r#"{{"Node":{NODE},"Services":[]}}"#);
    let node_services = format!(r#"{{"Node":{NODE},"Services":[{SERVICE}]}}"#);
    world
        .check(&[
            ("GET /v1/catalog/nodes", "", 200, &nodes),
            ("GET /v1/catalog/nodes?node-meta=rack:r2", "", 200, &nodes),
            ("GET /v1/catalog/nodes?node-meta=rack:r3", "", 200, "[]"),
            ("GET /v1/catalog/services", "", 200, r#"{"pg":["v2"]}"#),
            ("GET /v1/catalog/services?node-meta=rack:r3", "", 200, "{}"),
            ("GET /v1/catalog/service/pg", "", 200, flat),
            ("GET /v1/catalog/service/pg?tag=V2", "", 200, flat),
            ("GET /v1/catalog/service/pg?tag=v2&tag=v3", "", 200, "[]"),
            ("GET /v1/catalog/service/none", "", 200, "[]"),
            ("GET /v1/catalog/service/", "", 400, "Missing service name"),
            ("GET /v1/catalog/node/ext-1", "", 200, &node),
            ("GET /v1/catalog/node/none", "", 200, "null"),
            ("GET /v1/catalog/node-services/ext-1", "", 200, &node_services),
            ("GET /v1/catalog/node-services/none", "", 200, r#"{"Node":null,"Services":[]}"#),
            ("GET /v1/health/service/pg", "", 200, &row),
            ("GET /v1/health/service/pg", "", 200, &row),
            ("GET /v1/health/service/pg?passing", "", 200, "[]"),
            ("GET /v1/health/service/pg?passing=false", "", 200, &row),
            ("GET /v1/health/service/pg?passing=maybe", "", 400, "Invalid value for ?passing"),
            ("GET /v1/health/service/pg?filter=Checks.Status==warning", "", 200, &row),
            ("GET /v1/health/service/pg?filter=Checks.Status==passing", "", 200, "[]"),
            ("GET /v1/catalog/service/pg?filter=ServicePort==5432", "", 200, flat),
            ("GET /v1/catalog/service/pg?filter=ServicePort==1", "", 200, "[]"),
            ("GET /v1/catalog/services?filter=ServiceName==pg", "", 200, r#"{"pg":["v2"]}"#),
            ("GET /v1/catalog/services?filter=ServiceName!=pg", "", 200, "{}"),
            ("GET /v1/catalog/nodes?filter=Meta.rack==r3", "", 200, "[]"),
            ("GET /v1/catalog/node-services/ext-1?filter=%22v3%22+in+Tags", "", 200, &bare),
            ("GET /v1/health/state/any?filter=Node==ext-1", "", 200, &checks),
            ("GET /v1/health/service/pg?filter=Nonsense==1", "", 400, "Failed to create filter expression: failed to create boolean expression evaluator: Selector \"Nonsense\" is not valid"),
            ("GET /v1/health/service/pg?peer=other", "", 200, "[]"),
            ("GET /v1/health/node/ext-1", "", 200, &checks),
            ("GET /v1/health/checks/pg", "", 200, &checks),
            ("GET /v1/health/state/warning", "", 200, &checks),
            ("GET /v1/health/state/any", "", 200, &checks),
            ("GET /v1/health/state/any?node-meta=rack:r3", "", 200, "[]"),
            ("GET /v1/health/state/passing", "", 200, "[]"),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn deregistering_removes_and_is_repeatable() {
    let world = with_pg().await;
    world
        .check(&[
            (
                "PUT /v1/catalog/deregister",
                r#"{"Node":"ext-1","ServiceID":"pg1"}"#,
                200,
                "true",
            ),
            ("GET /v1/catalog/service/pg", "", 200, "[]"),
            (
                "PUT /v1/catalog/deregister",
                r#"{"Node":"ext-1"}"#,
                200,
                "true",
            ),
            (
                "PUT /v1/catalog/deregister",
                r#"{"Node":"ext-1"}"#,
                200,
                "true",
            ),
            ("GET /v1/catalog/nodes", "", 200, "[]"),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn bad_registrations_change_nothing() {
    let world = World::start().await;
    world
        .check(&[
            ("PUT /v1/catalog/register", "", 400, "Request decode failed: EOF"),
            ("PUT /v1/catalog/register", "[]", 400, "Request decode failed: cannot decode array into field (body) of type object"),
            ("PUT /v1/catalog/register", r#"{"Node":"n"}"#, 400, "Must provide node and address"),
            ("PUT /v1/catalog/register", r#"{"Node":"n","Address":"a","Datacenter":"mars"}"#, 500, "No path to datacenter"),
            ("PUT /v1/catalog/register", r#"{"Node":"n","Address":"a","Service":{"Port":"80"}}"#, 400, "Request decode failed: cannot decode string into field Service.Port of type unsigned integer"),
            ("PUT /v1/catalog/register", r#"{"Node":"n","Address":"a","Service":{"ID":"x"}}"#, 400, "Must provide service name with ID"),
            ("PUT /v1/catalog/deregister", "{}", 400, "Must provide node"),
            ("GET /v1/catalog/nodes", "", 200, "[]"),
        ])
        .await;
    let huge = format!(r#"{{"Node":"{}"}}"#, "n".repeat(1024 * 1024));
    assert_eq!(
        world.ask("PUT /v1/catalog/register", &huge).await.status,
        413
    );
    world.stop().await;
}

#[tokio::test]
async fn operators_see_and_change_raft_and_autopilot() {
    let world = World::start().await;
    world
        .check(&[
            ("GET /v1/operator/raft/configuration", "", 200, r#"{"Servers":[{"ID":"r1","Node":"n1","Address":"127.0.0.1:8300","Leader":true,"ProtocolVersion":"3","LastIndex":9,"Voter":true}],"Index":1}"#),
            ("DELETE /v1/operator/raft/peer", "", 400, "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove"),
            ("DELETE /v1/operator/raft/peer?id=a&address=b", "", 400, "Must specify only one of ?id or ?address"),
            ("DELETE /v1/operator/raft/peer?id=r9", "", 200, ""),
            ("POST /v1/operator/raft/transfer-leader?id=r2", "", 200, r#"{"Success":true}"#),
            ("GET /v1/status/peers", "", 200, r#"["127.0.0.1:8300"]"#),
            ("PUT /v1/operator/autopilot/configuration", r#"{"MaxTrailingLogs":500,"LastContactThreshold":"1s"}"#, 200, "true"),
            ("PUT /v1/operator/autopilot/configuration?cas=99", "{}", 200, "false"),
            ("PUT /v1/operator/autopilot/configuration?cas=x", "{}", 400, "Error parsing cas value: \"x\" is not an unsigned number"),
            ("GET /v1/operator/autopilot/configuration", "", 200, r#"{"CleanupDeadServers":true,"LastContactThreshold":"1s","MaxTrailingLogs":500,"MinQuorum":0,"ServerStabilizationTime":"10s","RedundancyZoneTag":"","DisableUpgradeMigration":false,"UpgradeVersionTag":"","CreateIndex":1,"ModifyIndex":1}"#),
        ])
        .await;
    assert_eq!(
        *world.cluster.asked.lock(),
        ["remove Some(\"r9\") None", "transfer Some(\"r2\")"]
    );
    world.stop().await;
}

#[tokio::test]
async fn snapshots_stream_out_and_in() {
    let world = World::start().await;
    let saved = world.get("/v1/snapshot").await;
    assert_eq!(
        (saved.text().as_str(), saved.header("Content-Type")),
        ("archive", "application/x-gzip")
    );
    assert_eq!(saved.header("X-Consul-Index"), "7");
    assert_eq!(
        world
            .ask("PUT /v1/snapshot", &"y".repeat(300_000))
            .await
            .status,
        200
    );
    world
        .check(&[("PUT /v1/snapshot", "bad", 500, "checksum mismatch")])
        .await;
    assert_eq!(*world.cluster.asked.lock(), ["restore 300000 bytes"]);
    world.stop().await;
}

#[tokio::test]
async fn dashboards_see_the_catalog_summed_up() {
    let world = with_pg().await;
    let proxy = r#"{"Node":"ext-2","Address":"10.9.0.2","Service":{"ID":"pg-proxy","Service":"pg-proxy","Kind":"connect-proxy","Port":81,
        "Meta":{"external-source":"nomad"},"Proxy":{"DestinationServiceName":"pg"}}}"#;
    let node = format!(
        r#"{{"ID":"","Node":"ext-1","Address":"10.9.0.1","TaggedAddresses":{{}},"Meta":{{"rack":"r2"}},"Services":[{SERVICE}],"Checks":[{CHECK}]}}"#
    );
    let services = r#"[{"Name":"pg","Datacenter":"dc1","Tags":["v2"],"Nodes":["ext-1"],"ExternalSources":[],"InstanceCount":1,"ChecksPassing":0,"ChecksWarning":1,"ChecksCritical":0,"GatewayConfig":{},"TransparentProxy":false,"ConnectNative":false,"ConnectedWithProxy":true,"ConnectedWithGateway":false},{"Kind":"connect-proxy","Name":"pg-proxy","Datacenter":"dc1","Tags":[],"Nodes":["ext-2"],"ExternalSources":["nomad"],"InstanceCount":1,"ChecksPassing":0,"ChecksWarning":0,"ChecksCritical":0,"GatewayConfig":{},"TransparentProxy":false,"ConnectNative":false,"ConnectedWithProxy":false,"ConnectedWithGateway":false}]"#;
    let overview = r#"{"Nodes":[{"Total":2,"Passing":2,"Warning":0,"Critical":0}],"Services":[{"Name":"pg","Total":1,"Passing":0,"Warning":1,"Critical":0},{"Name":"pg-proxy","Total":1,"Passing":1,"Warning":0,"Critical":0}],"Checks":[{"Name":"alive","Total":1,"Passing":0,"Warning":1,"Critical":0}]}"#;
    world
        .check(&[
            ("GET /v1/internal/ui/nodes", "", 200, &format!("[{node}]")),
            ("PUT /v1/catalog/register", proxy, 200, "true"),
            ("GET /v1/internal/ui/node/ext-1", "", 200, &node),
            ("GET /v1/internal/ui/node/none", "", 404, ""),
            ("GET /v1/internal/ui/node/", "", 400, "Missing node name"),
            ("GET /v1/internal/ui/services", "", 200, services),
            ("GET /v1/internal/ui/nodes?filter=Node==other", "", 200, "[]"),
            ("GET /v1/internal/ui/services?filter=Node.Node==other", "", 200, "[]"),
            ("GET /v1/internal/ui/catalog-overview", "", 200, overview),
            (
                "GET /v1/operator/usage",
                "",
                200,
                r#"{"Usage":{"dc1":{"Services":2,"ServiceInstances":2,"ConnectServiceInstances":{"connect-proxy":1,"connect-native":0,"mesh-gateway":0,"ingress-gateway":0,"terminating-gateway":0,"api-gateway":0},"BillableServiceInstances":1,"Nodes":2}},"Index":2,"NotModified":false,"Backend":0,"ResultsFilteredByACLs":false,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"leader"}"#,
            ),
            (
                "GET /v1/operator/autopilot/health",
                "",
                429,
                r#"{"Healthy":false,"FailureTolerance":0,"Servers":[{"ID":"r1","Name":"n1","Address":"127.0.0.1:8300","SerfStatus":"none","Version":"","Leader":true,"LastContact":"never","LastTerm":0,"LastIndex":9,"Healthy":false,"Voter":true,"StableSince":"1970-01-01T00:00:00.000Z"}]}"#,
            ),
        ])
        .await;
}

#[tokio::test]
async fn what_the_catalog_cannot_hold_is_refused() {
    let world = World::start().await;
    let meta =
        r#"{"Node":"a","Address":"10.0.0.1","Service":{"Service":"s","Meta":{"bad key":"v"}}}"#;
    let meta_text = "Invalid Service Meta: Couldn't load metadata pair ('bad key', 'v'): Key contains invalid characters";
    let txn = r#"[{"Service":{"Verb":"set","Node":"a","Service":{"ID":"s","Service":"s","Meta":{"bad key":"v"}}}}]"#;
    let check = r#"{"Node":"a","Address":"10.0.0.1","Check":{"Name":"c","Node":"b"}}"#;
    let check_text = r#"check node "b" does not match node "a""#;
    world
        .check(&[
            ("PUT /v1/catalog/register", meta, 400, meta_text),
            ("PUT /v1/txn", txn, 400, meta_text),
            ("PUT /v1/catalog/register", check, 400, check_text),
            ("GET /v1/catalog/nodes", "", 200, "[]"),
        ])
        .await;
}

#[tokio::test]
async fn usage_says_how_fresh_it_is() {
    let world = with_pg().await;
    world
        .backend
        .last_contact_millis
        .store(70, std::sync::atomic::Ordering::Relaxed);
    world
        .backend
        .leaderless
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let usage = world.get("/v1/operator/usage?stale").await.json();
    assert_eq!(usage["LastContact"], 70_000_000, "nanoseconds");
    assert_eq!(usage["KnownLeader"], false);
    assert_eq!(usage["ConsistencyLevel"], "stale");
    world.stop().await;
}
