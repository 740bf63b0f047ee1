//! Config entries, and proxies merged with them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use weft_catalog::acl::{Access, Authorizer, Decision, Resource};

use super::world::{Answer, World};

fn parsed(answer: &Answer) -> Value {
    serde_json::from_str(&answer.text()).unwrap()
}

#[tokio::test]
async fn entries_are_written_read_and_deleted() {
    let world = World::start().await;
    world
        .check(&[
            ("GET /v1/config/service-defaults", "", 200, "[]"),
            (
                "GET /v1/config/service-defaults/web",
                "",
                404,
                "Config entry not found for \"service-defaults\" / \"web\"",
            ),
            (
                "PUT /v1/config",
                r#"{"kind":"service-defaults","name":"web","protocol":"http"}"#,
                200,
                "true",
            ),
            (
                "PUT /v1/config?cas=0",
                r#"{"Kind":"service-defaults","Name":"web"}"#,
                200,
                "false",
            ),
            (
                "PUT /v1/config?cas=1",
                r#"{"Kind":"service-defaults","Name":"web","Protocol":"grpc","Meta":{"team":"a"}}"#,
                200,
                "true",
            ),
            (
                "DELETE /v1/config/service-defaults/web?cas=1",
                "",
                200,
                "false",
            ),
            (
                "DELETE /v1/config/service-defaults/web?cas=3",
                "",
                200,
                "true",
            ),
            (
                "DELETE /v1/config/service-defaults/web?cas=3",
                "",
                200,
                "false",
            ),
            ("DELETE /v1/config/service-defaults/web", "", 200, "{}"),
            (
                "PUT /v1/config",
                r#"{"Kind":"service-resolver","Name":"a/b c","ConnectTimeout":"5s"}"#,
                200,
                "true",
            ),
            (
                "DELETE /v1/config/service-resolver/a%2Fb%20c",
                "",
                200,
                "{}",
            ),
            ("GET /v1/config/", "", 200, "[]"),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn an_entry_is_shown_as_consul_shows_it() {
    let world = World::start().await;
    let body = r#"{"Kind":"service-defaults","Name":"web","Protocol":"http","Meta":{"team":"a"}}"#;
    world.ask("PUT /v1/config", body).await;
    world
        .ask(
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"api"}"#,
        )
        .await;
    world
        .ask(
            "PUT /v1/config",
            r#"{"Kind":"service-router","Name":"web"}"#,
        )
        .await;
    let answer = world.get("/v1/config/service-defaults/WEB").await;
    let shown = parsed(&answer);
    assert_eq!(
        answer.text(),
        format!(
            r#"{{"Kind":"service-defaults","Name":"web","Protocol":"http","MeshGateway":{{}},"Expose":{{}},"Meta":{{"team":"a"}},"Hash":{},"CreateIndex":1,"ModifyIndex":1}}"#,
            shown["Hash"]
        )
    );
    assert!(shown["Hash"].as_u64().is_some_and(|hash| hash > 0));
    // What is shown can be written, and changes nothing.
    world.ask("PUT /v1/config", &answer.text()).await;
    assert_eq!(
        parsed(&world.get("/v1/config/service-defaults/web").await),
        shown
    );

    let names = |answer: &Answer| -> Vec<String> {
        let list = parsed(answer);
        list.as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["Name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&world.get("/v1/config/service-defaults").await),
        ["api", "web"]
    );
    assert_eq!(
        names(&world.get("/v1/config/").await),
        ["api", "web", "web"]
    );
    let filtered = world
        .get("/v1/config/service-defaults?filter=Meta.team%20==%20a")
        .await;
    assert_eq!(names(&filtered), ["web"]);
    let wrong = world
        .get("/v1/config/service-defaults?filter=Colour==a")
        .await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    world.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let world = World::start().await;
    for (request, body, status, reason, words) in [
        (
            "PUT /v1/config",
            "",
            400,
            "config.decode",
            "Bad request: Request decoding failed: EOF",
        ),
        (
            "PUT /v1/config",
            "[]",
            400,
            "config.decode",
            "'' expected a map, got 'slice'",
        ),
        (
            "PUT /v1/config",
            r#"{"Kind":"bogus"}"#,
            400,
            "config.kind.unknown",
            "Bad request: Request decoding failed: invalid config entry kind: bogus",
        ),
        (
            "PUT /v1/config",
            r#"{"Kind":"rate-limit","Name":"x"}"#,
            400,
            "config.kind.enterprise",
            "Enterprise",
        ),
        (
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"x","Protcol":"http"}"#,
            400,
            "config.field.unknown",
            "invalid config key \"Protcol\" (did you mean \"Protocol\"?)",
        ),
        (
            "PUT /v1/config",
            r#"{"Kind":"service-defaults"}"#,
            500,
            "config.invalid",
            "serviceName is required",
        ),
        (
            "PUT /v1/config",
            r#"{"Kind":"service-router","Name":"web"}"#,
            500,
            "config.chain.protocol",
            "does not permit advanced routing",
        ),
        (
            "PUT /v1/config?cas=x",
            r#"{"Kind":"service-defaults","Name":"x"}"#,
            500,
            "config.cas",
            "strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        (
            "GET /v1/config/bogus",
            "",
            500,
            "config.kind.unknown",
            "invalid config entry kind: bogus",
        ),
        (
            "DELETE /v1/config/bogus/x",
            "",
            400,
            "config.kind.unknown",
            "invalid config entry kind: bogus",
        ),
        (
            "DELETE /v1/config/service-defaults",
            "",
            404,
            "config.name.missing",
            "Must provide both a kind and name to delete",
        ),
        (
            "GET /v1/config",
            "",
            405,
            "http.method",
            "method GET not allowed",
        ),
    ] {
        let answer = world.ask(request, body).await;
        assert_eq!(
            (answer.status, answer.header("X-Weft-Reason")),
            (status, reason),
            "{request} {body}"
        );
        assert!(
            answer.text().contains(words),
            "{request} {body}\n{}",
            answer.text()
        );
    }
    let large = format!(
        r#"{{"Kind":"proxy-defaults","Config":{{"a":"{}"}}}}"#,
        "x".repeat(600_000)
    );
    assert_eq!(world.ask("PUT /v1/config", &large).await.status, 413);
    world.stop().await;
}

/// What is missing sleeps while others of its kind are written, and wakes when it comes.
#[tokio::test]
async fn a_watch_of_one_entry_sleeps_over_the_others() {
    let world = Arc::new(World::start().await);
    world
        .ask(
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"api"}"#,
        )
        .await;
    let missing = world.get("/v1/config/service-defaults/web").await;
    let index: u64 = missing.header("X-Consul-Index").parse().unwrap();
    let watch = {
        let world = Arc::clone(&world);
        let path = format!("/v1/config/service-defaults/web?index={index}&wait=30s");
        tokio::spawn(async move { world.get(&path).await })
    };
    while world.backend.watches() == 0 {
        tokio::task::yield_now().await;
    }
    let looked = world.backend.barriers.load(Ordering::Relaxed);
    world
        .ask(
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"db"}"#,
        )
        .await;
    world.ask("PUT /v1/config", r#"{"Kind":"mesh"}"#).await;
    assert!(!watch.is_finished(), "another entry's write wakes nobody");
    assert_eq!(world.backend.barriers.load(Ordering::Relaxed), looked);
    world
        .ask(
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"Web"}"#,
        )
        .await;
    let answer = watch.await.unwrap();
    assert_eq!(
        (answer.status, parsed(&answer)["Name"].as_str()),
        (200, Some("Web"))
    );
}

/// May read services that begin with `web`, and nothing else.
struct Webs;

impl Authorizer for Webs {
    fn allows(&self, resource: Resource, name: &[u8], access: Access) -> Decision {
        let allowed =
            resource == Resource::Service && name.starts_with(b"web") && access == Access::Read;
        Decision {
            allowed,
            reason: "test.rights",
        }
    }

    fn fingerprint(&self) -> u64 {
        7
    }
}

#[tokio::test]
async fn rights_are_asked_by_kind() {
    let world = World::with_rights(Arc::new(Webs)).await;
    let entry = |text: &str| {
        let entry =
            weft_catalog::config_entry::Entry::parse(&serde_json::from_str(text).unwrap()).unwrap();
        let command = weft_proto::v1::ConfigEntryCommand {
            verb: weft_proto::v1::ConfigEntryVerb::Set.into(),
            entry: Some(entry.row()),
        };
        world
            .backend
            .apply(weft_proto::v1::stamped::Command::ConfigEntry(command));
    };
    for text in [
        r#"{"Kind":"service-defaults","Name":"web"}"#,
        r#"{"Kind":"service-defaults","Name":"db"}"#,
        r#"{"Kind":"proxy-defaults"}"#,
        r#"{"Kind":"exported-services","Name":"default"}"#,
    ] {
        entry(text);
    }
    for (request, body, status) in [
        ("GET /v1/config/service-defaults/web", "", 200),
        ("GET /v1/config/service-defaults/db", "", 403),
        ("GET /v1/config/proxy-defaults/global", "", 200),
        ("GET /v1/config/exported-services/default", "", 403),
        ("GET /v1/config/service-intentions/web", "", 403),
        (
            "PUT /v1/config",
            r#"{"Kind":"service-defaults","Name":"web"}"#,
            403,
        ),
        ("PUT /v1/config", r#"{"Kind":"mesh"}"#, 403),
        ("DELETE /v1/config/service-defaults/web", "", 403),
    ] {
        assert_eq!(
            world.ask(request, body).await.status,
            status,
            "{request} {body}"
        );
    }
    let list = parsed(&world.get("/v1/config/").await);
    let kinds: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["Kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["service-defaults", "proxy-defaults"]);
    world.stop().await;
}

const SIDECAR: &str = r#"{"Node":"n1","Address":"10.0.0.1","Service":{"Kind":"connect-proxy","Service":"web-sidecar-proxy","ID":"p1","Port":21000,"Proxy":{"DestinationServiceName":"web","Config":{"local_connect_timeout_ms":77},"Upstreams":[{"DestinationName":"db","LocalBindPort":9191},{"DestinationName":"api","LocalBindPort":9192,"Config":{"protocol":"grpc"}}]}}}"#;

#[tokio::test]
async fn a_proxy_is_merged_with_its_entries() {
    let world = World::start().await;
    assert_eq!(
        world.ask("PUT /v1/catalog/register", SIDECAR).await.status,
        200
    );
    let web = r#"{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"web-sidecar-proxy","ID":"plain","Port":1}}"#;
    assert_eq!(world.ask("PUT /v1/catalog/register", web).await.status, 200);
    let plain = world
        .get("/v1/health/service/web-sidecar-proxy")
        .await
        .text();
    let merged_path = "/v1/health/service/web-sidecar-proxy?merge-central-config";
    let before = world.get(merged_path).await;
    let index: u64 = before.header("X-Consul-Index").parse().unwrap();
    for body in [
        r#"{"Kind":"proxy-defaults","Config":{"protocol":"http","trace":true},"MeshGateway":{"Mode":"remote"}}"#,
        r#"{"Kind":"service-defaults","Name":"web","Protocol":"http2","LocalConnectTimeoutMs":11,"MaxInboundConnections":9,"Expose":{"Checks":true},"UpstreamConfig":{"Defaults":{"ConnectTimeoutMs":100,"MeshGateway":{"Mode":"local"}},"Overrides":[{"Name":"db","ConnectTimeoutMs":200,"Limits":{"MaxConnections":3}}]}}"#,
        r#"{"Kind":"service-defaults","Name":"db","Protocol":"tcp"}"#,
    ] {
        assert_eq!(
            world.ask("PUT /v1/config", body).await.text(),
            "true",
            "{body}"
        );
    }
    let woken = world
        .get(&format!("{merged_path}&index={index}&wait=1s"))
        .await;
    assert!(woken.header("X-Consul-Index").parse::<u64>().unwrap() > index);
    let expected = json!({
        "DestinationServiceName": "web",
        "Config": {"protocol": "http2", "trace": true, "local_connect_timeout_ms": 77, "max_inbound_connections": 9},
        "MeshGateway": {"Mode": "remote"},
        "Expose": {"Checks": true},
        "Upstreams": [
            {"DestinationName": "db", "LocalBindPort": 9191, "MeshGateway": {"Mode": "local"},
             "Config": {"protocol": "tcp", "connect_timeout_ms": 200, "limits": {"MaxConnections": 3}}},
            {"DestinationName": "api", "LocalBindPort": 9192, "MeshGateway": {"Mode": "local"},
             "Config": {"protocol": "grpc", "connect_timeout_ms": 100}},
        ],
    });
    let pick = |list: &Value| {
        let rows = list.as_array().unwrap().iter();
        let services = rows.map(|row| {
            if row["Service"].is_object() {
                &row["Service"]
            } else {
                row
            }
        });
        services
            .clone()
            .find(|row| row["ID"] == "p1")
            .map(|row| row["Proxy"].clone())
    };
    assert_eq!(
        pick(&parsed(&world.get(merged_path).await)),
        Some(expected.clone())
    );
    let services = parsed(
        &world
            .get("/v1/catalog/service/web-sidecar-proxy?merge-central-config=true")
            .await,
    );
    let row = services
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["ServiceID"] == "p1")
        .unwrap();
    assert_eq!(row["ServiceProxy"], expected);
    let node = parsed(
        &world
            .get("/v1/catalog/node-services/n1?merge-central-config")
            .await,
    );
    assert_eq!(pick(&node["Services"]), Some(expected));
    assert_eq!(
        world
            .get("/v1/health/service/web-sidecar-proxy")
            .await
            .text(),
        plain,
        "unasked, nothing is merged"
    );
    assert_eq!(
        world
            .get("/v1/health/service/web-sidecar-proxy?merge-central-config=false")
            .await
            .text(),
        plain
    );
    let bad = world
        .get("/v1/health/service/web-sidecar-proxy?merge-central-config=maybe")
        .await;
    assert_eq!(bad.status, 400);
    world.stop().await;
}
