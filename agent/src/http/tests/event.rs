//! User events over HTTP.

use std::time::Duration;

use serde_json::json;

use super::world::World;

#[tokio::test]
async fn an_event_is_fired_and_listed() {
    let world = World::start().await;
    world.check(&[("GET /v1/event/list", "", 200, "[]")]).await;
    assert_eq!(world.get("/v1/event/list").await.index(), 1);
    let fired = world
        .ask("PUT /v1/event/fire/a%2Fb?node=n&service=&tag=", "hello")
        .await;
    assert_eq!(fired.status, 200, "{}", fired.text());
    let mut event = fired.json();
    assert_eq!(event["LTime"], 0);
    event["LTime"] = 2.into();
    let listed = world.get("/v1/event/list").await;
    assert_eq!(listed.json(), json!([event]));
    assert_eq!(event["Name"], "a/b");
    assert_eq!(event["Payload"], "aGVsbG8=");
    let id = event["ID"].as_str().unwrap().replace('-', "");
    let half = |range: std::ops::Range<usize>| u64::from_str_radix(&id[range], 16).unwrap();
    assert_eq!(listed.index(), half(0..16) ^ half(16..32));
    assert_eq!(listed.header("X-Consul-Knownleader"), "");
    let bare = world.ask("PUT /v1/event/fire/bare", "").await.json();
    assert!(bare["Payload"].is_null());
    world.stop().await;
}

#[tokio::test]
async fn lists_are_narrowed_by_name_and_by_whom_the_event_was_fired_at() {
    let world = World::start().await;
    for path in ["one?node=n1", "two?node=n.", "two", "elsewhere?node=n2"] {
        let fired = world.ask(&format!("PUT /v1/event/fire/{path}"), "").await;
        assert_eq!(fired.status, 200, "{}", fired.text());
    }
    for (query, expected) in [
        ("", vec!["one", "two", "two"]),
        ("?name=two", vec!["two", "two"]),
        ("?name=tw", vec![]),
        ("?node=^n1$", vec!["one"]),
        ("?node=n", vec!["one", "two"]),
        ("?service=web", vec![]),
    ] {
        let listed = world.get(&format!("/v1/event/list{query}")).await.json();
        let names: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["Name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expected, "{query}");
    }
    world.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_event_is_said() {
    let world = World::start().await;
    let large = "x".repeat(600);
    world
        .check(&[
            ("PUT /v1/event/fire/", "", 400, "Missing name"),
            (
                "PUT /v1/event/fire/x?tag=a",
                "",
                400,
                "Cannot provide tag filter without service filter",
            ),
            ("PUT /v1/event/fire/x", &large, 413, "too large"),
            (
                "PUT /v1/event/fire/x?dc=dc9",
                "",
                500,
                "No path to datacenter",
            ),
            ("GET /v1/event/list?index=x", "", 400, "Invalid index"),
            ("GET /v1/event/list?wait=x", "", 400, "Invalid wait time"),
        ])
        .await;
    for request in [
        "PUT /v1/event/fire/x?node=[x",
        "GET /v1/event/list?service=(",
    ] {
        let refused = world.ask(request, "").await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains("filter: "), "{}", refused.text());
        assert_eq!(refused.header("X-Weft-Reason"), "event.filter");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_waiting_list_is_woken_by_an_event_of_its_name_only() {
    let world = World::start().await;
    let waited = {
        let wait = world.get("/v1/event/list?name=go&index=1&wait=60s");
        let fire = async {
            // Fired while the list waits; a pause makes that likely, and the test holds either way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.ask("PUT /v1/event/fire/other", "").await;
            world.ask("PUT /v1/event/fire/go", "x").await
        };
        let (waited, fired) = tokio::join!(wait, fire);
        assert_eq!(waited.json()[0]["ID"], fired.json()["ID"]);
        waited
    };
    let path = format!("/v1/event/list?name=go&index={}&wait=20ms", waited.index());
    let again = world.get(&path).await;
    assert_eq!(again.text(), waited.text(), "the time ran out");
    let elsewhere = world.get("/v1/event/list?index=7&wait=60s").await;
    assert_eq!(
        elsewhere.json().as_array().unwrap().len(),
        2,
        "another index"
    );
    world.stop().await;
}
