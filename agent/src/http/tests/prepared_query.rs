//! `/v1/query`: whose rights a change takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use weft_proto::v1::{self, PreparedQuery, PreparedQueryVerb as Verb, stamped::Command};

use super::kv::OnlyMine;
use super::world::World;

const ID: &str = "0f0c0000-0000-4000-8000-00000000000a";

fn called(verb: Verb, name: &str) -> Command {
    Command::PreparedQuery(v1::PreparedQueryCommand {
        verb: verb.into(),
        query: Some(PreparedQuery {
            id: ID.to_owned(),
            name: name.to_owned(),
            service: "db".to_owned(),
            ..PreparedQuery::default()
        }),
        judged_name: None,
    })
}

async fn name(world: &World) -> String {
    let answer = world.get(&format!("/v1/query/{ID}")).await;
    let rows: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    rows[0]["Name"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn rights_are_judged_by_the_name_the_query_has_when_it_is_changed() {
    let path = format!("/v1/query/{ID}");
    for (request, body) in [
        (format!("DELETE {path}"), ""),
        (
            format!("PUT {path}"),
            r#"{"Name":"mine-too","Service":{"Service":"db"}}"#,
        ),
    ] {
        let world = World::with_rights(Arc::new(OnlyMine)).await;
        world.backend.apply(called(Verb::Create, "mine"));
        // Renamed after the rights were judged and before the change: it is somebody else's now.
        *world.backend.overtaking.lock() = Some(called(Verb::Update, "theirs"));
        let before = world.backend.barriers.load(Ordering::Relaxed);
        assert_eq!(world.ask(&request, body).await.status, 403, "{request}");
        assert_eq!(name(&world).await, "theirs", "{request}");
        let barriers = world.backend.barriers.load(Ordering::Relaxed) - before;
        assert!(barriers >= 2, "each judgement reads what is current");

        world.backend.apply(called(Verb::Update, "mine"));
        *world.backend.overtaking.lock() = Some(called(Verb::Update, "mine-still"));
        assert_eq!(world.ask(&request, body).await.status, 200, "{request}");
        assert!(["", "mine-too"].contains(&name(&world).await.as_str()));
        world.stop().await;
    }
}

#[tokio::test]
async fn near_ip_is_the_client_or_whom_a_proxy_forwards_for() {
    let world = World::start().await;
    for n in 0..6 {
        let body =
            format!(r#"{{"Node":"n{n}","Address":"10.0.0.{n}","Service":{{"Service":"db"}}}}"#);
        let answer = world.ask("PUT /v1/catalog/register", &body).await;
        assert_eq!(answer.status, 200);
    }
    let query = r#"{"Name":"near","Service":{"Service":"db","Near":"_ip"}}"#;
    assert_eq!(world.ask("POST /v1/query", query).await.status, 200);
    let orders = async |headers: &str| {
        let mut orders = Vec::new();
        for _ in 0..20 {
            let answer = world.send("GET /v1/query/near/execute", b"", headers).await;
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let nodes = body["Nodes"].as_array().unwrap().iter();
            let name = |row: &serde_json::Value| row["Node"]["Node"].as_str().unwrap().to_owned();
            orders.push(nodes.map(name).collect::<Vec<_>>());
        }
        orders
    };
    let stranger = orders("").await;
    assert!(stranger.iter().any(|order| order[0] != stranger[0][0]));
    let known = orders("X-Forwarded-For: 10.0.0.4, 192.0.2.1\r\n").await;
    assert!(known.iter().all(|order| order[0] == "n4"), "{known:?}");
    assert!(
        known.iter().any(|order| order[1] != known[0][1]),
        "those equally far have no order"
    );
    world.stop().await;
}
