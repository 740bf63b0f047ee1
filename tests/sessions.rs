//! Sessions: their TTL, the locks they hold, the lock-delay after them, and losing the leader meanwhile.
//!
//! Clocks appear only one way: nothing may happen *earlier* than promised, counted from before the request.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::Duration;

use support::{Api, World};

#[test]
fn a_session_nobody_renews_gives_its_lock_back_after_its_ttl_and_the_delay() {
    let (ttl, delay) = (Duration::from_secs(2), Duration::from_secs(3));
    let w = World::servers(3)
        .with("-hcl=session_ttl_min = \"1s\"")
        .start();
    let at = w.at(w.follower());
    let begun = w.now();
    let first = session(&at, r#"{"TTL":"2s","LockDelay":"3s"}"#);
    assert!(acquire(&at, "lock", &first));
    let second = session(&at, r#"{"LockDelay":"0s"}"#);
    assert!(!acquire(&at, "lock", &second), "it is held");

    w.until("the lock to be free", || {
        holder(&at, "lock").is_none().then_some(())
    });
    let freed = w.now() - begun;
    assert!(freed >= ttl, "freed after {freed:?}");
    assert_eq!(
        at.get(&format!("/v1/session/info/{first}"))
            .unwrap()
            .ok()
            .json(),
        serde_json::json!([]),
        "the session is gone"
    );
    assert_eq!(
        at.kv_get("lock", "").as_deref(),
        Some("held"),
        "behavior release keeps the key"
    );

    w.until("the lock to be taken", || {
        acquire(&at, "lock", &second).then_some(())
    });
    let taken = w.now() - begun;
    assert!(taken >= ttl + delay, "taken after {taken:?}");
    assert_eq!(holder(&at, "lock"), Some(second));
}

#[test]
fn renewing_keeps_a_session_and_behavior_delete_takes_its_keys_along() {
    let w = World::servers(1)
        .with("-hcl=session_ttl_min = \"1s\"")
        .start();
    let at = w.at(1);
    let id = session(&at, r#"{"TTL":"5s","Behavior":"delete","LockDelay":"0s"}"#);
    assert!(acquire(&at, "lock", &id));
    let begun = w.now();
    // Twice the TTL and a bit: without renewals it would be over.
    while w.now() - begun < Duration::from_secs(12) {
        let renewed = at
            .put(&format!("/v1/session/renew/{id}"), "")
            .unwrap()
            .ok()
            .json();
        assert_eq!(renewed[0]["ID"], id.as_str());
        assert_eq!(holder(&at, "lock").as_deref(), Some(id.as_str()));
        std::thread::sleep(Duration::from_millis(500));
    }
    let last = w.now();
    w.until("the key to go", || {
        at.kv_get("lock", "").is_none().then_some(())
    });
    assert!(w.now() - begun >= Duration::from_secs(5) && w.now() > last);
    assert_eq!(
        at.put(&format!("/v1/session/renew/{id}"), "")
            .unwrap()
            .status,
        404
    );
}

#[test]
fn a_lock_survives_losing_the_leader() {
    let mut w = World::servers(3)
        .with("-hcl=session_ttl_min = \"1s\"")
        .start();
    let client = w.follower();
    let at = w.at(client);
    // No node checks: the session is to live by its TTL alone.
    let id = session(&at, r#"{"TTL":"10s","LockDelay":"0s","NodeChecks":[]}"#);
    assert!(acquire(&at, "lock", &id));
    for _ in 0..2 {
        let leader = w.leader();
        if leader == client {
            break;
        }
        w.kill(leader);
        w.settle();
        let renewed = at.put(&format!("/v1/session/renew/{id}"), "").unwrap();
        assert_eq!(
            renewed.status,
            200,
            "a new leader counts the whole TTL again: {}",
            renewed.text()
        );
        assert_eq!(holder(&at, "lock").as_deref(), Some(id.as_str()));
        w.restart(leader);
    }
    let rival = session(&at, r#"{"LockDelay":"0s"}"#);
    assert!(!acquire(&at, "lock", &rival));
    // And it still ends, under whoever leads now.
    w.until("the rival to get the lock", || {
        acquire(&at, "lock", &rival).then_some(())
    });
}

#[test]
fn a_dead_node_takes_its_sessions_along() {
    let mut w = World::servers(3).start();
    let victim = w.follower();
    let id = session(&w.at(victim), r#"{"LockDelay":"0s"}"#);
    assert!(acquire(&w.at(victim), "lock", &id));
    w.kill(victim);
    let other = w.at(w.leader());
    w.until("the dead node's lock to be free", || {
        holder(&other, "lock").is_none().then_some(())
    });
    assert_eq!(
        other
            .get(&format!("/v1/session/info/{id}"))
            .unwrap()
            .ok()
            .json(),
        serde_json::json!([])
    );
}

fn session(at: &Api, body: &str) -> String {
    at.put("/v1/session/create", body).unwrap().ok().json()["ID"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn acquire(at: &Api, key: &str, session: &str) -> bool {
    at.put(&format!("/v1/kv/{key}?acquire={session}"), "held")
        .unwrap()
        .ok()
        .text()
        == "true"
}

fn holder(at: &Api, key: &str) -> Option<String> {
    at.get(&format!("/v1/kv/{key}")).unwrap().ok().json()[0]["Session"]
        .as_str()
        .map(str::to_owned)
}
