//! Agents that are no servers: they answer everything a server does, by asking one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Api, World, said};

/// Three servers and one agent, `c11`.
fn three_and_one() -> World {
    World::servers(3).clients(1).start()
}

fn metric(at: &Api, name: &str) -> f64 {
    let text = at
        .get("/v1/agent/metrics?format=prometheus")
        .unwrap()
        .ok()
        .text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter(|line| line.split([' ', '{']).next() == Some(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn what_is_registered_at_an_agent_is_found_everywhere() {
    let w = three_and_one();
    let (agent, server) = (w.at(11), w.at(1));
    let service = r#"{"Name":"web","ID":"web1","Port":80,"Check":{"CheckID":"alive","TTL":"10m"}}"#;
    agent
        .put("/v1/agent/service/register", service)
        .unwrap()
        .ok();
    agent.put("/v1/agent/check/pass/alive", "").unwrap().ok();
    for at in [&server, &agent] {
        let row = w.until("the instance to pass", || {
            let rows = at.get("/v1/health/service/web?passing").ok()?.json();
            rows.as_array()?.first().cloned()
        });
        assert_eq!(row["Node"]["Node"], "c11");
        assert_eq!(row["Node"]["Address"], w.address(11));
    }
    // A service that follows another node's: the agent asks for those rows, and hears when they change.
    let alias = format!(
        r#"{{"Name":"front","Check":{{"CheckID":"front","AliasNode":"{}","AliasService":"back"}}}}"#,
        w.node(1)
    );
    agent.put("/v1/agent/service/register", alias).unwrap().ok();
    let back = r#"{"Name":"back","Check":{"CheckID":"back","TTL":"10m"}}"#;
    server.put("/v1/agent/service/register", back).unwrap().ok();
    for (verb, expected) in [
        ("pass", "passing"),
        ("fail", "critical"),
        ("pass", "passing"),
    ] {
        server
            .put(&format!("/v1/agent/check/{verb}/back"), "")
            .unwrap()
            .ok();
        w.until(&format!("the alias to be {expected}"), || {
            let checks = server.get("/v1/health/checks/front").ok()?.json();
            (checks[0]["Status"] == expected).then_some(())
        });
    }
    agent
        .put("/v1/agent/service/deregister/web1", "")
        .unwrap()
        .ok();
    w.until("the instance to go", || {
        let rows = server.get("/v1/health/service/web").ok()?.json();
        rows.as_array()?.is_empty().then_some(())
    });
}

#[test]
fn an_agent_says_what_it_is_and_serves_every_command() {
    let w = three_and_one();
    let about = w.at(11).get("/v1/agent/self").unwrap().ok().json();
    assert_eq!(about["Config"]["Server"], false);
    assert_eq!(about["Stats"]["consul"]["server"], "false");
    assert_eq!(about["Stats"]["consul"]["known_servers"], "3");
    assert!(about["Stats"]["raft"].is_null(), "{}", about["Stats"]);
    assert_eq!(about["Member"]["Tags"]["role"], "node");
    let say = |arguments: &[&str]| {
        let output = w.cli(11, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        said(&output)
    };
    let members = say(&["members"]);
    let own = members
        .lines()
        .find(|line| line.starts_with("c11 "))
        .unwrap();
    assert!(own.contains("alive") && own.contains("client"), "{members}");
    assert_eq!(members.matches("server").count(), 3, "{members}");
    assert!(say(&["info"]).contains("known_servers = 3"));
    assert_eq!(
        say(&["operator", "raft", "list-peers"])
            .matches("s1")
            .count(),
        1
    );
    say(&["kv", "put", "color", "red"]);
    assert_eq!(say(&["kv", "get", "color"]).trim(), "red");
    let archive = w.path("backup.snap");
    let archive = archive.to_str().unwrap();
    say(&["snapshot", "save", archive]);
    say(&["kv", "put", "color", "blue"]);
    say(&["snapshot", "restore", archive]);
    assert_eq!(say(&["kv", "get", "color"]).trim(), "red");
    assert!(metric(&w.at(11), "weft_rpc_client_calls_total") > 0.0);
    let text = w.at(11).get("/v1/agent/metrics?format=prometheus");
    let text = text.unwrap().ok().text();
    let failures = text
        .lines()
        .filter(|line| line.starts_with("weft_rpc_client_failures_total"));
    // It looks for servers before there are any.
    let failures: Vec<_> = failures
        .filter(|line| !line.contains("no_servers"))
        .collect();
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn locks_are_held_through_an_agent() {
    let w = three_and_one();
    let at = w.at(11);
    let session = at
        .put("/v1/session/create", r#"{"Name":"holder"}"#)
        .unwrap()
        .ok();
    let id = session.json()["ID"].as_str().unwrap().to_owned();
    let info = w
        .at(2)
        .get(&format!("/v1/session/info/{id}?consistent"))
        .unwrap()
        .ok();
    assert_eq!(
        info.json()[0]["Node"],
        "c11",
        "a session is of the node it is asked of"
    );
    let acquire = |at: &Api, id: &str| {
        at.put(&format!("/v1/kv/lock?acquire={id}"), "mine")
            .unwrap()
            .ok()
            .text()
    };
    assert_eq!(acquire(&at, &id), "true");
    let other = w.at(1).put("/v1/session/create", "").unwrap().ok().json();
    let other = other["ID"].as_str().unwrap().to_owned();
    assert_eq!(acquire(&at, &other), "false");
    at.put(&format!("/v1/session/destroy/{id}"), "")
        .unwrap()
        .ok();
    w.until("the lock-delay to pass", || {
        (acquire(&w.at(3), &other) == "true").then_some(())
    });
}

#[test]
fn a_query_that_waits_wakes_through_an_agent_and_ends_with_its_client() {
    let w = three_and_one();
    w.at(1).kv_put("color", "red");
    let first = w.at(11).get("/v1/kv/color").unwrap().ok();
    let (at, index) = (w.at(11), first.index());
    let waiting = std::thread::spawn(move || {
        at.get(&format!("/v1/kv/color?index={index}&wait=60s"))
            .unwrap()
            .ok()
    });
    let waits = |expected: f64| {
        w.until(&format!("{expected} to wait on the servers"), || {
            let now: f64 = (1..=3)
                .map(|n| metric(&w.at(n), "weft_http_blocking_queries"))
                .sum();
            (now == expected).then_some(())
        });
    };
    waits(1.0);
    w.at(2).kv_put("color", "blue");
    let woken = waiting.join().unwrap();
    assert!(woken.index() > index);
    assert_eq!(woken.headers["x-consul-knownleader"], "true");
    waits(0.0);
    // Nobody is there any more: the server stops waiting, too.
    let index = woken.index();
    let gone = w.at(11).within(Duration::from_secs(1));
    assert!(
        gone.get(&format!("/v1/kv/color?index={index}&wait=60s"))
            .is_err()
    );
    waits(0.0);
}

#[test]
fn no_acknowledged_write_is_lost_when_the_leader_dies() {
    let mut w = three_and_one();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (at, stop) = (w.at(11), stop.clone());
        std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for n in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let reply = at.put(&format!("/v1/kv/w/{n}"), n.to_string());
                if reply.is_ok_and(|reply| reply.status == 200) {
                    acknowledged.push(n);
                }
            }
            acknowledged
        })
    };
    let written = |w: &World| {
        let keys = w
            .at(11)
            .get("/v1/kv/w/?keys")
            .ok()
            .filter(|reply| reply.status == 200);
        keys.map_or(0, |keys| keys.json().as_array().unwrap().len())
    };
    w.until("the writes to begin", || (written(&w) > 20).then_some(()));
    let leader = w.leader();
    w.kill(leader);
    let before = written(&w);
    w.until("the writes to go on", || {
        (written(&w) > before + 20).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    let at = w.at(11);
    let keys = at.get("/v1/kv/w/?keys&consistent").unwrap().ok().json();
    for n in acknowledged {
        let key = serde_json::Value::from(format!("w/{n}"));
        assert!(
            keys.as_array().unwrap().contains(&key),
            "{n} was acknowledged and is gone"
        );
    }
}

#[test]
fn reads_never_fail_when_the_server_an_agent_asks_is_gone() {
    let mut w = three_and_one();
    w.at(11).kv_put("color", "red");
    for _ in 0..2 {
        let about = w.at(11).get("/v1/agent/self").unwrap().ok().json();
        let asked = about["Stats"]["consul"]["current_server"]
            .as_str()
            .unwrap()
            .to_owned();
        let victim = (1..=3)
            .find(|n| asked == format!("{}:8300", w.address(*n)))
            .unwrap();
        w.kill(victim);
        for _ in 0..20 {
            assert_eq!(
                w.at(11).get("/v1/kv/color").unwrap().ok().json()[0]["Key"],
                "color"
            );
        }
        let now = w.at(11).get("/v1/agent/self").unwrap().ok().json();
        assert_ne!(now["Stats"]["consul"]["current_server"], asked.as_str());
        w.restart(victim);
    }
    assert!(metric(&w.at(11), "weft_rpc_client_retries_total") >= 1.0);
}

#[test]
fn a_restart_keeps_registrations_and_their_health() {
    let mut w = World::servers(3).clients(1);
    w.argument(11, "-hcl=leave_on_terminate = false");
    let mut w = w.start();
    let service = r#"{"Name":"web","Port":80,"Check":{"CheckID":"alive","TTL":"10m"}}"#;
    w.at(11)
        .put("/v1/agent/service/register", service)
        .unwrap()
        .ok();
    w.at(11).put("/v1/agent/check/pass/alive", "").unwrap().ok();
    let check = |w: &World| {
        let checks = w.at(1).get("/v1/health/checks/web").ok()?.json();
        Some(checks.as_array()?.first()?.clone())
    };
    let before = w.until("the check to pass", || {
        check(&w).filter(|check| check["Status"] == "passing")
    });
    for kill in [true, false] {
        if kill {
            w.kill(11);
        } else {
            w.stop(11);
        }
        w.restart(11);
        w.wait_passing(11);
        // A full comparison has been made once this is there.
        let marker = format!(r#"{{"Name":"marker-{kill}"}}"#);
        w.at(11)
            .put("/v1/agent/service/register", marker)
            .unwrap()
            .ok();
        w.until("the marker", || {
            let rows = w
                .at(1)
                .get(&format!("/v1/catalog/service/marker-{kill}"))
                .ok()?
                .json();
            (!rows.as_array()?.is_empty()).then_some(())
        });
        let after = check(&w).unwrap();
        assert_eq!(after["Status"], "passing");
        assert_eq!(
            after["ModifyIndex"], before["ModifyIndex"],
            "it was never written again"
        );
    }
}

#[test]
fn an_agent_that_leaves_is_gone_from_the_catalog() {
    let mut w = three_and_one();
    w.at(11)
        .put("/v1/agent/service/register", r#"{"Name":"web"}"#)
        .unwrap()
        .ok();
    w.until("the service", || {
        let rows = w.at(1).get("/v1/catalog/service/web").ok()?.json();
        (!rows.as_array()?.is_empty()).then_some(())
    });
    let left = w.cli(11, &["leave"]);
    assert!(left.status.success(), "{}", said(&left));
    assert!(w.wait_exit(11).success());
    w.until("the node to go", || {
        let nodes = w.at(1).get("/v1/catalog/nodes").ok()?.text();
        (!nodes.contains("c11")).then_some(())
    });
    let members = said(&w.cli(1, &["members"]));
    let line = members
        .lines()
        .find(|line| line.starts_with("c11 "))
        .unwrap();
    assert!(line.contains("left"), "{members}");
}

#[test]
fn without_a_server_an_agent_says_so_and_answers_what_it_can() {
    let mut w = World::servers(0);
    w.add_client(11);
    w.launch(11);
    let at = w.at(11);
    w.until("the agent", || at.get("/v1/agent/self").ok().map(drop));
    for path in ["/v1/kv/a", "/v1/catalog/nodes", "/v1/status/leader"] {
        let reply = at.get(path).unwrap();
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (500, "No known Consul servers")
        );
        assert_eq!(reply.headers["x-weft-reason"], "rpc.no_servers");
    }
    at.put("/v1/agent/service/register", r#"{"Name":"web"}"#)
        .unwrap()
        .ok();
    assert!(
        at.get("/v1/agent/services")
            .unwrap()
            .ok()
            .text()
            .contains("web")
    );
    // What cannot be a call is refused as a server would.
    assert_eq!(at.get("/v1/nothing").unwrap().status, 404);
    assert_eq!(at.put("/v1/status/leader", "").unwrap().status, 405);
    assert!(metric(&at, "weft_rpc_client_failures_total") >= 3.0);
}

#[test]
fn calls_at_once_are_bounded_and_the_refusal_names_the_knob() {
    let mut w = World::servers(1).clients(1);
    w.argument(11, "-hcl=limits { rpc_max_calls = 1 }");
    let w = w.start();
    w.at(1).kv_put("color", "red");
    let index = w.at(1).get("/v1/kv/color").unwrap().ok().index();
    let at = w.at(11);
    let waiting =
        std::thread::spawn(move || at.get(&format!("/v1/kv/color?index={index}&wait=60s")));
    w.until("the query to wait", || {
        (metric(&w.at(1), "weft_http_blocking_queries") == 1.0).then_some(())
    });
    let refused = w.at(11).get("/v1/kv/color").unwrap();
    assert_eq!(refused.status, 429);
    assert!(
        refused.text().contains("limits.rpc_max_calls"),
        "{}",
        refused.text()
    );
    assert_eq!(refused.headers["x-weft-reason"], "rpc.too_many_calls");
    w.at(1).kv_put("color", "blue");
    waiting.join().unwrap().unwrap().ok();
    w.at(11).get("/v1/kv/color").unwrap().ok();
}
