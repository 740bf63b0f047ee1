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
