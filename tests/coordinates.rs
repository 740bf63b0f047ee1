//! Network coordinates: every node gets one, the time between two can be told, and the nearest comes first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use serde_json::Value;
use support::{World, said};

fn coordinates(w: &World, n: usize) -> Vec<Value> {
    let all = w.at(n).get("/v1/coordinate/nodes").unwrap().ok().json();
    all.as_array().unwrap().clone()
}

fn names(rows: &Value) -> Vec<String> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["Node"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_node_learns_where_it_lies_and_the_nearest_comes_first() {
    let mut w = World::servers(3).start();
    // Once each has measured the others, its own error has come down.
    w.until("a coordinate of each node", || {
        let rows = coordinates(&w, 1);
        let sure = |row: &Value| row["Coord"]["Error"].as_f64().unwrap() < 1.5;
        (rows.len() == 3 && rows.iter().all(sure)).then_some(())
    });
    let told = w.cli(2, &["rtt", "s1", "s3"]);
    assert!(told.status.success(), "{}", said(&told));
    let text = said(&told);
    let milliseconds: f64 = text
        .strip_prefix("Estimated s1 <-> s3 rtt: ")
        .and_then(|text| text.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!(milliseconds > 0.0 && milliseconds < 500.0, "{text}");
    let own = w.cli(2, &["rtt", "s1"]);
    assert!(
        said(&own).starts_with("Estimated s1 <-> s2 rtt: "),
        "{}",
        said(&own)
    );
    let wide = w.cli(2, &["rtt", "-wan", "s1.dc1", "s3.dc1"]);
    assert!(
        said(&wide).contains("(using WAN coordinates)"),
        "{}",
        said(&wide)
    );
    let unknown = w.cli(2, &["rtt", "s1", "nobody"]);
    assert!(!unknown.status.success());
    assert!(said(&unknown).contains("Could not find a coordinate for node \"nobody\""));

    // A node without an agent, reported as lying far away, comes last, and the one asked first.
    let index = w.at(1).get("/v1/catalog/nodes").unwrap().ok().index();
    w.at(3)
        .put(
            "/v1/catalog/register",
            r#"{"Node":"a-far","Address":"10.0.0.1"}"#,
        )
        .unwrap()
        .ok();
    let registered = w.at(1).get("/v1/catalog/nodes").unwrap().ok().index();
    assert!(registered > index);
    w.at(3)
        .put(
            "/v1/coordinate/update",
            r#"{"Node":"a-far","Coord":{"Vec":[5,0,0,0,0,0,0,0],"Error":0.1,"Height":0.001,"Adjustment":0}}"#,
        )
        .unwrap()
        .ok();
    w.until("its coordinate", || {
        (w.at(2).get("/v1/coordinate/node/a-far").unwrap().status == 200).then_some(())
    });
    let sorted = w.at(2).get("/v1/catalog/nodes?near=_agent").unwrap().ok();
    let order = names(&sorted.json());
    assert_eq!(order.first().map(String::as_str), Some("s2"), "{order:?}");
    assert_eq!(order.last().map(String::as_str), Some("a-far"), "{order:?}");
    assert_eq!(
        sorted.index(),
        registered,
        "coordinates move no index but their own"
    );

    // They outlive their server and go with their node.
    w.stop(2);
    w.restart(2);
    let place = w
        .at(2)
        .get("/v1/coordinate/node/a-far")
        .unwrap()
        .ok()
        .json();
    assert_eq!(place[0]["Coord"]["Vec"][0], 5);
    w.at(2)
        .put("/v1/catalog/deregister", r#"{"Node":"a-far"}"#)
        .unwrap()
        .ok();
    assert_eq!(
        w.at(2).get("/v1/coordinate/node/a-far").unwrap().status,
        404
    );
}

#[test]
fn who_disables_coordinates_reports_none() {
    let w = World::servers(1)
        .with("-hcl=disable_coordinates = true")
        .start();
    let reported = r#"{"Node":"s1","Coord":{"Vec":[1,0,0,0,0,0,0,0],"Error":0.1,"Height":0.001}}"#;
    w.at(1).put("/v1/coordinate/update", reported).unwrap().ok();
    // By the time this report is written, the server's own would have been, too.
    let rows = w.until("the report", || {
        Some(coordinates(&w, 1)).filter(|rows| !rows.is_empty())
    });
    assert_eq!(rows[0]["Coord"]["Vec"][0], 1);
    let about = w.at(1).get("/v1/agent/self").unwrap().ok().json();
    assert_eq!(about["Coord"]["Error"], 1.5);
}
