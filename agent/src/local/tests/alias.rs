//! Alias checks of what runs here and elsewhere.

use std::sync::Arc;

use serde_json::json;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use super::world::{API, Cluster, NODE, check, open, service, until};
use crate::local::{Local, Source, Status};

fn shown(local: &Local, id: &str) -> (String, String) {
    let record = local.check(id).unwrap().record;
    (record.status, record.output)
}

async fn becomes(local: &Local, status: &str, output: &str) {
    let expected = (status.to_owned(), output.to_owned());
    until(&format!("{expected:?}"), || {
        shown(local, "mirror") == expected
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_alias_follows_a_service_of_this_host() {
    let local = open(None);
    local.start_checks(None);
    let proxy =
        service(json!({"Name": "proxy", "Check": {"CheckID": "mirror", "AliasService": "web"}}));
    local.register_service(proxy, API).await.unwrap();
    becomes(
        &local,
        "critical",
        &format!("Service web could not be found on node {NODE}"),
    )
    .await;
    let web = service(json!({"Name": "web"}));
    local.register_service(web, API).await.unwrap();
    becomes(&local, "passing", "No checks found.").await;
    let ttl = check(json!({"Name": "alive", "ServiceID": "web", "TTL": "1h"}));
    local.register_check(ttl, Source::Api).await.unwrap();
    becomes(&local, "critical", "Aliased check \"alive\" failing: ").await;
    local
        .update_ttl("alive", Status::Passing, "up")
        .await
        .unwrap();
    becomes(&local, "passing", "All checks passing.").await;
    // The node's checks count as well.
    let disk = check(json!({"Name": "disk", "TTL": "1h"}));
    local.register_check(disk, Source::Api).await.unwrap();
    local
        .update_ttl("disk", Status::Warning, "90 %")
        .await
        .unwrap();
    becomes(&local, "warning", "Aliased check \"disk\" failing: 90 %").await;
    local.deregister_check("disk").await.unwrap();
    local.deregister_service("web").await.unwrap();
    becomes(
        &local,
        "critical",
        &format!("Service web could not be found on node {NODE}"),
    )
    .await;
    assert_eq!(local.check("mirror").unwrap().record.r#type, "alias");
}

#[tokio::test(start_paused = true)]
async fn an_alias_of_the_node_is_not_held_by_itself() {
    let local = open(None);
    local.start_checks(None);
    let mirror = check(json!({"Name": "mirror", "AliasService": "web"}));
    local.register_check(mirror, Source::Api).await.unwrap();
    local
        .register_service(service(json!({"Name": "web"})), API)
        .await
        .unwrap();
    becomes(&local, "passing", "No checks found.").await;
}

fn elsewhere(status: &str) -> Command {
    Command::Register(v1::Register {
        node: Some(v1::Node {
            id: "0f0c0000-0000-4000-8000-000000000008".to_owned(),
            name: "vm-8".to_owned(),
            address: "10.0.0.8".to_owned(),
            datacenter: "dc1".to_owned(),
            ..v1::Node::default()
        }),
        service: Some(v1::Service {
            id: "db".to_owned(),
            name: "db".to_owned(),
            ..v1::Service::default()
        }),
        checks: vec![v1::Check {
            node: "vm-8".to_owned(),
            id: "db-alive".to_owned(),
            name: "db alive".to_owned(),
            status: status.to_owned(),
            output: "said db".to_owned(),
            service_id: "db".to_owned(),
            ..v1::Check::default()
        }],
        skip_node_update: false,
    })
}

async fn follows(cluster: &Arc<Cluster>, body: serde_json::Value) {
    let local = open(None);
    local
        .register_check(check(body), Source::Api)
        .await
        .unwrap();
    let running = local.start(cluster.clone());
    becomes(&local, "passing", "All checks passing.").await;
    for (status, shown) in [
        ("warning", "Aliased check \"db alive\" failing: said db"),
        ("critical", "Aliased check \"db alive\" failing: said db"),
        ("passing", "All checks passing."),
    ] {
        cluster.apply(elsewhere(status));
        becomes(&local, status, shown).await;
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_alias_follows_a_service_of_another_node() {
    let cluster = Cluster::new();
    cluster.apply(elsewhere("passing"));
    let named = json!({"Name": "mirror", "AliasNode": "vm-8", "AliasService": "db"});
    follows(&cluster, named).await;
    let local = open(None);
    let missing = json!({"Name": "mirror", "AliasNode": "vm-8", "AliasService": "cache"});
    local
        .register_check(check(missing), Source::Api)
        .await
        .unwrap();
    let _running = local.start(cluster.clone());
    becomes(
        &local,
        "critical",
        "Service cache could not be found on node vm-8",
    )
    .await;
    let missing = json!({"Name": "mirror", "AliasNode": "vm-9"});
    local
        .register_check(check(missing), Source::Api)
        .await
        .unwrap();
    becomes(&local, "critical", "Node vm-9 could not be found").await;
}
