//! User events: fired at one server, heard by all it is for, once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use serde_json::Value;
use support::{World, said};

/// The payloads of the events of this name that server `n` heard, as base64.
fn heard(w: &World, n: usize, name: &str) -> Vec<Value> {
    let path = format!("/v1/event/list?name={name}");
    let listed = w.at(n).get(&path).unwrap().ok().json();
    listed.as_array().unwrap().clone()
}

fn until_heard(w: &World, n: usize, name: &str, count: usize) -> Vec<Value> {
    w.until(&format!("s{n} to hear {count} {name}"), || {
        Some(heard(w, n, name)).filter(|events| events.len() == count)
    })
}

#[test]
fn an_event_fired_at_one_server_is_heard_by_all_it_is_for() {
    let w = World::servers(3).start();
    w.at(2)
        .put(
            "/v1/agent/service/register",
            r#"{"Name":"web","ID":"web-1","Tags":["blue","v2"]}"#,
        )
        .unwrap()
        .ok();

    // To everybody, by the command line; a list that waits is woken.
    let before = w.at(3).get("/v1/event/list").unwrap().ok();
    assert_eq!(before.index(), 1);
    let waiting = {
        let at = w.at(3).within(support::PATIENCE);
        std::thread::spawn(move || at.get("/v1/event/list?index=1&wait=80s").unwrap().ok())
    };
    let fired = w.cli(1, &["event", "-name=deploy", "1.4.2"]);
    assert!(fired.status.success(), "{}", said(&fired));
    let id = said(&fired);
    let id = id.trim().strip_prefix("Event ID: ").unwrap().to_owned();
    let woken = waiting.join().unwrap();
    assert_eq!(woken.json()[0]["ID"], id.as_str());
    for n in w.names() {
        let events = until_heard(&w, n, "deploy", 1);
        assert_eq!(events[0]["ID"], id.as_str());
        assert_eq!(events[0]["Payload"], "MS40LjI=");
        assert!(events[0]["LTime"].as_u64() > Some(0));
    }

    // To some: by node, by service, by tag.
    let fire = |path: &str| w.at(1).put(path, "x").unwrap().ok();
    fire("/v1/event/fire/by-node?node=^s[13]$");
    fire("/v1/event/fire/by-service?service=^web$");
    fire("/v1/event/fire/by-tag?service=web&tag=^blue$");
    fire("/v1/event/fire/by-other-tag?service=web&tag=green");
    fire("/v1/event/fire/last");
    for n in w.names() {
        until_heard(&w, n, "last", 1);
    }
    let who = |name: &str| -> Vec<usize> {
        let hears = |n: &usize| !heard(&w, *n, name).is_empty();
        w.names().into_iter().filter(hears).collect()
    };
    w.until("s3 to hear it", || (who("by-node") == [1, 3]).then_some(()));
    w.until("s2 to hear it", || (who("by-service") == [2]).then_some(()));
    w.until("s2 to hear it", || (who("by-tag") == [2]).then_some(()));
    assert!(who("by-other-tag").is_empty());

    // Heard once, although every exchange of full states tells of it again.
    assert_eq!(heard(&w, 2, "deploy").len(), 1);
    let metrics = w
        .at(2)
        .get("/v1/agent/metrics?format=prometheus")
        .unwrap()
        .ok()
        .text();
    assert!(
        metrics.contains("weft_gossip_events_heard_total 6"),
        "{metrics}"
    );
}

#[test]
fn a_server_that_joins_later_hears_only_what_comes_later() {
    let mut w = World::servers(3).start();
    w.at(1).put("/v1/event/fire/before", "").unwrap().ok();
    for n in w.names() {
        until_heard(&w, n, "before", 1);
    }
    w.add(4);
    w.restart(4);
    w.until("s4 in the pool", || {
        let members = w.at(1).get("/v1/agent/members").unwrap().ok().json();
        (members.as_array().unwrap().len() == 4).then_some(())
    });
    w.at(4).put("/v1/event/fire/after", "").unwrap().ok();
    for n in w.names() {
        until_heard(&w, n, "after", 1);
    }
    assert!(heard(&w, 4, "before").is_empty());
}

#[test]
fn an_event_that_cannot_be_carried_is_refused_with_the_reason() {
    let w = World::servers(1).start();
    let large = w
        .at(1)
        .put("/v1/event/fire/large", vec![b'x'; 600])
        .unwrap();
    assert_eq!(large.status, 413);
    assert!(
        large.text().contains("at most 512 are allowed"),
        "{}",
        large.text()
    );
    assert_eq!(large.headers["x-weft-reason"], "gossip.event_too_large");
    assert!(heard(&w, 1, "large").is_empty());
    for (arguments, word) in [
        (&["event"][..], "name must be specified"),
        (
            &["event", "-name=x", "-tag=y"][..],
            "without service filter",
        ),
        (&["event", "-name=x", "-node=["][..], "Invalid node filter"),
    ] {
        let refused = w.cli(1, arguments);
        assert!(!refused.status.success());
        assert!(said(&refused).contains(word), "{}", said(&refused));
    }
}
