//! Coordinates over HTTP, and reads sorted by them.

use std::time::Duration;

use serde_json::{Value, json};

use super::world::World;

/// Nodes on a line: `n1` at 0, `near` at 1 ms, `far` at 9 ms; nobody knows where `lost` lies.
async fn world() -> World {
    let world = World::start().await;
    for (node, name) in [
        ("far", "web"),
        ("lost", "web"),
        ("n1", "web"),
        ("near", "web"),
    ] {
        let body = format!(
            r#"{{"Node":"{node}","Address":"10.0.0.1","Service":{{"Service":"{name}"}},"Check":{{"Name":"c","Status":"passing","ServiceID":"{name}"}}}}"#
        );
        world
            .check(&[("PUT /v1/catalog/register", &body, 200, "true")])
            .await;
    }
    for (node, place) in [("n1", "0"), ("near", "0.001"), ("far", "0.009")] {
        report(&world, node, place).await;
    }
    world
}

async fn report(world: &World, node: &str, place: &str) {
    let body = format!(
        r#"{{"node":"{node}","Coord":{{"Vec":[{place},0,0,0,0,0,0,0],"Error":0.5,"Height":0.00001}}}}"#
    );
    world
        .check(&[("PUT /v1/coordinate/update", &body, 200, "")])
        .await;
}

async fn order(world: &World, path: &str) -> Vec<String> {
    let rows = world.get(path).await.json();
    let name = |row: &Value| {
        let node = if row["Node"].is_object() {
            &row["Node"]["Node"]
        } else {
            &row["Node"]
        };
        node.as_str().unwrap().to_owned()
    };
    let rows = if rows.is_array() {
        &rows
    } else {
        &rows["Nodes"]
    };
    rows.as_array().unwrap().iter().map(name).collect()
}

#[tokio::test]
async fn coordinates_are_reported_and_read() {
    let world = world().await;
    let all = world.get("/v1/coordinate/nodes").await;
    assert_eq!(all.json().as_array().unwrap().len(), 3);
    assert_eq!(
        world.get("/v1/coordinate/node/NEAR").await.text(),
        r#"[{"Node":"near","Segment":"","Coord":{"Vec":[0.001,0,0,0,0,0,0,0],"Error":0.5,"Adjustment":0,"Height":0.00001}}]"#
    );
    world
        .check(&[
            ("GET /v1/coordinate/node/lost", "", 404, ""),
            ("GET /v1/coordinate/node/", "", 404, ""),
        ])
        .await;
    let areas = world.get("/v1/coordinate/datacenters").await.json();
    assert_eq!(areas[0]["Datacenter"], "dc1");
    assert_eq!(areas[0]["AreaID"], "wan");
    assert_eq!(areas[0]["Coordinates"][0]["Node"], "n1");
    assert_eq!(areas[0]["Coordinates"][0]["Coord"]["Error"], 0.5);
    let about = world.get("/v1/agent/self").await.json();
    assert_eq!(about["Coord"]["Error"], 0.25);
    world.stop().await;
}

#[tokio::test]
async fn a_report_that_is_none_is_refused_with_the_reason() {
    let world = World::start().await;
    let refused = |body: &'static str| world.ask("PUT /v1/coordinate/update", body);
    for body in [
        r#"{"Node":"n1"}"#,
        r#"{"Node":"n1","Coord":{}}"#,
        r#"{"Node":"n1","Coord":{"Vec":[1,2,3]}}"#,
        r#"{"Node":"n1","Coord":{"Vec":[1,2,3,4,5,6,7,"8"]}}"#,
        r#"{"Node":"n1","Coord":{"Vec":[1,2,3,4,5,6,7,8],"Error":"x"}}"#,
    ] {
        let answer = refused(body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(
            answer.header("X-Weft-Reason"),
            "coordinate.incompatible",
            "{body}"
        );
    }
    let whole = r#""Coord":{"Vec":[0,0,0,0,0,0,0,0]}"#;
    for (head, status, reason) in [
        (r#"{"Node":"","#, 400, "coordinate.node"),
        (r#"{"Node":"n1","Segment":"x","#, 400, "scope.enterprise"),
        (r#"{"Node":"n1","Datacenter":"dc9","#, 500, "dc.unknown"),
    ] {
        let body = format!("{head}{whole}}}");
        let answer = world.ask("PUT /v1/coordinate/update", &body).await;
        assert_eq!(answer.status, status, "{body}");
        assert_eq!(answer.header("X-Weft-Reason"), reason, "{body}");
    }
    world
        .backend
        .leaderless
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let answer = world
        .ask(
            "PUT /v1/coordinate/update",
            &format!(r#"{{"Node":"n1",{whole}}}"#),
        )
        .await;
    assert_eq!(answer.status, 429);
    world.stop().await;
}

#[tokio::test]
async fn near_sorts_by_distance_and_the_lost_come_last() {
    let world = world().await;
    let query = json!({"Name": "q", "Service": {"Service": "web"}}).to_string();
    assert_eq!(world.ask("POST /v1/query", &query).await.status, 200);
    for path in [
        "/v1/catalog/nodes",
        "/v1/catalog/service/web",
        "/v1/health/service/web",
        "/v1/health/service/web?passing",
        "/v1/health/checks/web",
        "/v1/health/state/passing",
        "/v1/query/q/execute",
    ] {
        let glue = if path.contains('?') { '&' } else { '?' };
        let near = |node: &str| format!("{path}{glue}near={node}");
        assert_eq!(
            order(&world, &near("_agent")).await,
            ["n1", "near", "far", "lost"],
            "{path}"
        );
        assert_eq!(
            order(&world, &near("FAR")).await,
            ["far", "near", "n1", "lost"],
            "{path}"
        );
        if !path.starts_with("/v1/query") {
            let as_it_was = ["far", "lost", "n1", "near"];
            for node in ["", "nobody", "lost"] {
                assert_eq!(order(&world, &near(node)).await, as_it_was, "{path} {node}");
            }
        }
    }
    // The order follows the coordinates although nothing else has changed.
    let before = world.get("/v1/catalog/service/web?near=n1").await.index();
    report(&world, "near", "1").await;
    let path = "/v1/catalog/service/web?near=n1";
    assert_eq!(order(&world, path).await, ["n1", "far", "near", "lost"]);
    assert_eq!(world.get(path).await.index(), before);
    world.stop().await;
}

#[tokio::test]
async fn coordinates_wake_who_waits_for_them_and_nobody_else() {
    let world = world().await;
    let nodes = world.get("/v1/coordinate/nodes").await.index();
    let web = world.get("/v1/health/service/web").await.index();
    let path = format!("/v1/coordinate/node/n1?index={nodes}&wait=60s");
    let sorted = format!("/v1/health/service/web?near=n1&index={web}&wait=300ms");
    let (waited, slept, ()) = tokio::join!(world.get(&path), world.get(&sorted), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        report(&world, "n1", "0.5").await;
    });
    assert!(waited.index() > nodes);
    assert_eq!(waited.json()[0]["Coord"]["Vec"][0], 0.5);
    assert_eq!(slept.index(), web);
    world.stop().await;
}
