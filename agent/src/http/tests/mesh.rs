//! Who stands for a service in the mesh, over HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use super::world::World;

async fn register(world: &World, node: &str, service: Value) {
    let body = json!({"Node": node, "Address": "10.0.0.1", "NodeMeta": {"rack": node}, "Service": service});
    let answer = world
        .ask("PUT /v1/catalog/register", &body.to_string())
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn proxy(id: &str, destination: &str) -> Value {
    json!({"ID": id, "Service": id, "Kind": "connect-proxy", "Tags": ["mesh"], "Port": 21000,
        "Proxy": {"DestinationServiceName": destination, "Mode": "transparent"}})
}

/// A service, its proxy, an instance of it that needs none, and gateways on either side.
async fn mesh() -> World {
    let world = World::start().await;
    register(&world, "n1", json!({"Service": "web", "Port": 80})).await;
    register(&world, "n1", proxy("web-proxy", "web")).await;
    let native = json!({"ID": "own", "Service": "web", "Connect": {"Native": true}});
    register(&world, "n2", native).await;
    register(&world, "n1", json!({"Service": "billing"})).await;
    let gateways = [("tgw", "terminating-gateway"), ("igw", "ingress-gateway")];
    for (name, kind) in gateways {
        register(&world, "n3", json!({"Service": name, "Kind": kind})).await;
    }
    let check = json!({"Node": "n2", "Address": "10.0.0.1", "NodeMeta": {"rack": "n2"},
        "Check": {"Name": "c", "Status": "critical", "ServiceID": "own"}});
    world
        .ask("PUT /v1/catalog/register", &check.to_string())
        .await;
    for entry in [
        json!({"Kind": "terminating-gateway", "Name": "tgw", "Services": [{"Name": "billing", "SNI": "b.example"}]}),
        json!({"Kind": "ingress-gateway", "Name": "igw", "Listeners": [
            {"Port": 8080, "Protocol": "tcp", "Services": [{"Name": "web"}]}]}),
    ] {
        let answer = world.ask("PUT /v1/config", &entry.to_string()).await;
        assert_eq!(answer.text(), "true");
    }
    world
}

async fn ids(world: &World, path: &str) -> Vec<String> {
    let rows = world.get(path).await.json();
    let id = |row: &Value| {
        let flat = row["ServiceID"].as_str();
        flat.or(row["Service"]["ID"].as_str()).unwrap().to_owned()
    };
    rows.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn instances_that_stand_for_a_service_are_listed_and_chosen() {
    let world = mesh().await;
    for (path, expected) in [
        ("/v1/health/connect/web", &["web-proxy", "own"][..]),
        ("/v1/health/connect/WEB", &["web-proxy", "own"]),
        ("/v1/health/connect/web?passing", &["web-proxy"]),
        ("/v1/health/connect/web?tag=mesh", &["web-proxy"]),
        ("/v1/health/connect/web?node-meta=rack:n2", &["own"]),
        (
            "/v1/health/connect/web?filter=Service.Port==21000",
            &["web-proxy"],
        ),
        ("/v1/health/connect/web?peer=other", &[]),
        ("/v1/health/connect/billing", &["tgw"]),
        ("/v1/health/connect/web-proxy", &[]),
        ("/v1/health/ingress/web", &["igw"]),
        ("/v1/health/ingress/billing", &[]),
        ("/v1/catalog/connect/web", &["web-proxy", "own"]),
        ("/v1/catalog/connect/web?tag=mesh", &["web-proxy"]),
        (
            "/v1/catalog/connect/web?filter=ServiceKind==connect-proxy",
            &["web-proxy"],
        ),
        ("/v1/catalog/connect/none", &[]),
    ] {
        assert_eq!(ids(&world, path).await, expected, "{path}");
    }
    let cached = world.get("/v1/health/connect/web?cached").await;
    assert_eq!(cached.header("X-Cache"), "HIT");
    let merged = world
        .get("/v1/health/connect/web?merge-central-config")
        .await
        .json();
    assert_eq!(merged[0]["Service"]["Proxy"]["Mode"], "transparent");
    world
        .check(&[
            ("GET /v1/health/connect/", "", 400, "Missing service name"),
            ("GET /v1/health/ingress/", "", 400, "Missing service name"),
            ("GET /v1/catalog/connect/", "", 400, "Missing service name"),
            ("GET /v1/catalog/gateway-services/", "", 400, "Missing gateway name"),
            ("GET /v1/catalog/gateway-services/none", "", 200, "[]"),
            ("GET /v1/catalog/gateway-services/tgw", "", 200, r#"[{"Gateway":{"Name":"tgw"},"Service":{"Name":"billing"},"GatewayKind":"terminating-gateway","SNI":"b.example","CreateIndex":8,"ModifyIndex":8}]"#),
            ("GET /v1/catalog/gateway-services/igw", "", 200, r#"[{"Gateway":{"Name":"igw"},"Service":{"Name":"web"},"GatewayKind":"ingress-gateway","Port":8080,"Protocol":"tcp","CreateIndex":9,"ModifyIndex":9}]"#),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_wait_for_the_mesh_ends_with_a_change_of_it_alone() {
    let world = mesh().await;
    let index = world.get("/v1/health/connect/web").await.index();
    let path = format!("/v1/health/connect/web?index={index}&wait=60s");
    let (answer, ()) = tokio::join!(world.get(&path), async {
        while world.backend.watches() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The service itself, another's proxy, another gateway's entry.
        register(&world, "n1", json!({"Service": "web", "Port": 81})).await;
        register(&world, "n1", proxy("db-proxy", "db")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.backend.watches(), 1, "something else woke it");
        register(&world, "n1", proxy("web-proxy", "db")).await;
    });
    assert!(answer.index() > index);
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn dashboards_see_proxies_and_gateways_as_they_are() {
    let world = mesh().await;
    let services = world.get("/v1/internal/ui/services").await.json();
    let shown = |name: &str| {
        let all = services.as_array().unwrap();
        let found = all.iter().find(|one| one["Name"] == name).unwrap();
        [
            "TransparentProxy",
            "ConnectNative",
            "ConnectedWithProxy",
            "ConnectedWithGateway",
        ]
        .map(|key| found[key].as_bool().unwrap())
    };
    assert_eq!(shown("web"), [true, true, true, true]);
    assert_eq!(shown("billing"), [false, false, false, true]);
    assert_eq!(shown("web-proxy"), [false; 4]);
    let gateway = |name: &str| {
        let all = services.as_array().unwrap();
        let found = all.iter().find(|one| one["Name"] == name).unwrap();
        found["GatewayConfig"].clone()
    };
    assert_eq!(gateway("tgw"), json!({"AssociatedServiceCount": 1}));
    assert_eq!(
        gateway("web"),
        json!({"Addresses": ["web.ingress.dc1.consul.:8080"]})
    );
    assert_eq!(gateway("billing"), json!({}));

    let behind = world
        .get("/v1/internal/ui/gateway-services-nodes/igw")
        .await
        .json();
    let names = |rows: &Value| -> Vec<String> {
        let name = |row: &Value| row["Name"].as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(names(&behind), ["web"]);
    assert_eq!(behind[0]["InstanceCount"], 2);
    let none = world.get("/v1/internal/ui/gateway-services-nodes/none");
    assert_eq!(none.await.text(), "[]");

    // One proxy that is not transparent makes the service one that needs care.
    let plain = json!({"ID": "second", "Service": "web-proxy", "Kind": "connect-proxy",
        "Proxy": {"DestinationServiceName": "web"}});
    register(&world, "n2", plain).await;
    let services = world.get("/v1/internal/ui/services").await.json();
    let web = services.as_array().unwrap().iter();
    let web = web.clone().find(|one| one["Name"] == "web").unwrap();
    assert_eq!(web["TransparentProxy"], false);
    world.stop().await;
}
