//! Three servers, one cluster: forming it, and asking any of its servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use support::World;

#[test]
fn three_servers_form_a_cluster_and_each_answers() {
    let w = World::servers(3).start();
    let leader = w.leader();
    for n in w.names() {
        let told = w.at(n).get("/v1/status/leader").unwrap().ok().json();
        assert_eq!(
            told,
            format!("{}:8300", w.address(leader)),
            "s{n} names the leader"
        );
        assert_eq!(
            w.at(n)
                .get("/v1/status/peers")
                .unwrap()
                .ok()
                .json()
                .as_array()
                .unwrap()
                .len(),
            3
        );
    }
    let configuration = w
        .at(leader)
        .get("/v1/operator/raft/configuration")
        .unwrap()
        .ok()
        .json();
    let servers = configuration["Servers"].as_array().unwrap();
    assert_eq!(
        servers
            .iter()
            .filter(|server| server["Voter"] == true)
            .count(),
        3,
        "{configuration}"
    );
    assert_eq!(
        servers
            .iter()
            .filter(|server| server["Leader"] == true)
            .count(),
        1,
        "{configuration}"
    );
}

#[test]
fn every_server_takes_writes_and_sees_them_at_once() {
    let w = World::servers(3).start();
    for round in 0..20 {
        for n in w.names() {
            let (key, value) = (format!("from/s{n}"), format!("round {round}"));
            w.at(n).kv_put(&key, &value);
            for reader in w.names() {
                for mode in ["", "consistent"] {
                    assert_eq!(
                        w.at(reader).kv_get(&key, mode).as_deref(),
                        Some(value.as_str()),
                        "s{reader} reads {mode:?} what s{n} acknowledged"
                    );
                }
            }
            // Whoever acknowledged a write has applied it, so even its stale reads know.
            assert_eq!(
                w.at(n).kv_get(&key, "stale").as_deref(),
                Some(value.as_str()),
                "s{n} sees its own write"
            );
        }
    }
}

#[test]
fn stale_reads_say_how_old_they_are() {
    let w = World::servers(3).start();
    w.at(w.leader()).kv_put("color", "red");
    let follower = w.follower();
    w.until("the follower to have it", || {
        (w.at(follower).kv_get("color", "stale").as_deref() == Some("red")).then_some(())
    });
    let reply = w.at(follower).get("/v1/kv/color?stale").unwrap().ok();
    assert_eq!(reply.headers["x-consul-knownleader"], "true");
    assert!(reply.headers["x-consul-lastcontact"].parse::<u64>().is_ok());
    let reply = w.at(w.leader()).get("/v1/kv/color").unwrap().ok();
    assert_eq!(
        (
            reply.headers["x-consul-knownleader"].as_str(),
            reply.headers["x-consul-lastcontact"].as_str()
        ),
        ("true", "0")
    );
}

#[test]
fn one_server_short_of_a_quorum_answers_only_stale_reads() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    for n in w.names() {
        w.until("everybody to have it", || {
            (w.at(n).kv_get("color", "stale").as_deref() == Some("red")).then_some(())
        });
    }
    w.kill(2);
    w.kill(3);
    assert_eq!(w.at(1).kv_get("color", "stale").as_deref(), Some("red"));
    let refused = w.at(1).get("/v1/kv/color").unwrap();
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (500, "No cluster leader")
    );
    let refused = w.at(1).put("/v1/kv/color", "blue").unwrap();
    assert_eq!(refused.status, 500, "{}", refused.text());
    w.launch(2);
    w.settle();
    // The write was refused or its outcome is not known; it is one of the two and both servers agree.
    let value = w.at(1).kv_get("color", "").unwrap();
    assert!(value == "red" || value == "blue", "{value}");
    assert_eq!(w.at(2).kv_get("color", ""), Some(value));
}

#[test]
fn an_emptied_server_with_bootstrap_joins_the_cluster_it_had() {
    let mut w = World::servers(1).start();
    w.at(1).kv_put("color", "red");
    // Two more join; none of them may form a cluster of its own, although all are told to.
    w.add(2);
    w.restart(2);
    w.add(3);
    w.restart(3);
    assert_eq!(w.at(3).kv_get("color", "").as_deref(), Some("red"));
    w.until("three voters", || {
        let reply = w.at(2).get("/v1/operator/raft/configuration").ok()?;
        let servers = reply.json()["Servers"].as_array()?.clone();
        let voters = servers.iter().filter(|server| server["Voter"] == true);
        (voters.count() == 3).then_some(())
    });
    w.kill(1);
    let empty = w.path("empty");
    w.keep_data_in(1, &empty);
    w.restart(1);
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn a_server_with_bootstrap_does_not_take_silence_for_an_answer() {
    let mut w = World::servers(1);
    w.add(2);
    w.launch(1);
    w.until("the reason", || {
        w.log(1).contains("formation.unsure").then_some(())
    });
    assert!(
        w.at(1)
            .get("/v1/kv/color")
            .is_ok_and(|reply| reply.status == 500)
    );
    w.launch(2);
    w.settle();
    w.at(1).kv_put("color", "red");
    assert_eq!(w.at(2).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn discovery_may_be_stale_and_keys_unchecked_when_that_is_said() {
    let w = World::servers(1)
        .with("-hcl=discovery_max_stale = \"10s\"")
        .with("-hcl=disable_kv_key_validation = true")
        .start();
    let mode = |path: &str| {
        let reply = w.at(1).get(path).unwrap();
        reply.headers["x-consul-effective-consistency"].clone()
    };
    assert_eq!(mode("/v1/health/service/web"), "stale");
    assert_eq!(mode("/v1/health/service/web?consistent"), "consistent");
    assert_eq!(mode("/v1/kv/?keys"), "leader");
    w.at(1).kv_put("a/../b", "x");
    assert_eq!(w.at(1).kv_get("a/../b", "").as_deref(), Some("x"));
}
