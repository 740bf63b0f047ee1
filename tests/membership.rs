//! Servers that leave, die, come back, are removed, or hand leadership on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::BTreeMap;

use support::{World, said};

#[test]
fn a_follower_that_leaves_is_no_longer_counted() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let gone = w.follower();
    let left = w.cli(gone, &["leave"]);
    assert!(left.status.success(), "{}", said(&left));
    assert!(w.wait_exit(gone).success());
    w.until("two voters", || (voters(&w).len() == 2).then_some(()));
    assert!(!voters(&w).contains_key(&format!("s{gone}")));
    let members = w
        .at(w.leader())
        .get("/v1/agent/members")
        .unwrap()
        .ok()
        .json();
    let status = members
        .as_array()
        .unwrap()
        .iter()
        .find(|member| member["Name"] == format!("s{gone}"))
        .map(|member| member["Status"].clone());
    assert_eq!(status, Some(3.into()), "left: {members}");
    w.until("its node to be deregistered", || {
        let nodes = w
            .at(w.leader())
            .get("/v1/catalog/nodes")
            .unwrap()
            .ok()
            .json();
        nodes
            .as_array()
            .unwrap()
            .iter()
            .all(|node| node["Node"] != format!("s{gone}"))
            .then_some(())
    });
    w.at(w.leader()).kv_put("color", "blue");
    // It may come back, with its old data or its old name.
    w.restart(gone);
    assert_eq!(w.at(gone).kv_get("color", "").as_deref(), Some("blue"));
    w.until("three voters", || (voters(&w).len() == 3).then_some(()));
}

#[test]
fn the_leader_may_leave_too() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let gone = w.leader();
    let left = w.cli(gone, &["leave"]);
    assert!(left.status.success(), "{}", said(&left));
    assert!(w.wait_exit(gone).success());
    w.settle();
    w.until("two voters", || (voters(&w).len() == 2).then_some(()));
    let at = w.at(w.leader());
    assert_eq!(at.kv_get("color", "").as_deref(), Some("red"));
    at.kv_put("color", "blue");
}

#[test]
fn leadership_goes_where_the_operator_wants_it() {
    let w = World::servers(3).start();
    for _ in 0..3 {
        let to = w.follower();
        let id = voters(&w)[&format!("s{to}")].clone();
        let moved = w.cli(
            1,
            &["operator", "raft", "transfer-leader", &format!("-id={id}")],
        );
        assert!(moved.status.success(), "{}", said(&moved));
        w.until("the chosen one to lead", || {
            (w.leader() == to).then_some(())
        });
        w.settle();
        w.at(1).kv_put("leader", to.to_string());
    }
}

#[test]
fn a_dead_server_can_be_removed_and_replaced() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let dead = w.follower();
    let id = voters(&w)[&format!("s{dead}")].clone();
    w.kill(dead);
    let through = w.running()[0];
    let removed = w.cli(
        through,
        &["operator", "raft", "remove-peer", &format!("-id={id}")],
    );
    assert!(removed.status.success(), "{}", said(&removed));
    assert_eq!(voters(&w).len(), 2);
    let again = w
        .at(through)
        .delete(&format!("/v1/operator/raft/peer?id={id}"))
        .unwrap();
    assert!(
        again.status >= 400,
        "it is gone already: {} {}",
        again.status,
        again.text()
    );
    w.add(4);
    w.restart(4);
    w.until("the new server to vote", || {
        voters(&w).contains_key("s4").then_some(())
    });
    assert_eq!(w.at(4).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn a_dead_server_turns_critical_and_its_return_passing() {
    let mut w = World::servers(3).start();
    let victim = w.follower();
    let watching = w.names().into_iter().find(|n| *n != victim).unwrap();
    let serf_health = |w: &World| {
        let checks = w
            .at(watching)
            .get(&format!("/v1/health/node/s{victim}?stale"))
            .ok()?
            .json();
        let of_node = checks
            .as_array()?
            .iter()
            .find(|check| check["CheckID"] == "serfHealth")
            .cloned()?;
        of_node["Status"].as_str().map(str::to_owned)
    };
    w.until("serfHealth to pass", || {
        (serf_health(&w)? == "passing").then_some(())
    });
    w.kill(victim);
    w.until("serfHealth to turn critical", || {
        (serf_health(&w)? == "critical").then_some(())
    });
    let passing = w
        .at(watching)
        .get("/v1/health/service/consul?passing&stale")
        .unwrap()
        .ok()
        .json();
    assert_eq!(passing.as_array().unwrap().len(), 2, "{passing}");
    w.restart(victim);
    w.until("serfHealth to pass again", || {
        (serf_health(&w)? == "passing").then_some(())
    });
    assert_eq!(
        w.at(victim)
            .get("/v1/agent/members")
            .unwrap()
            .ok()
            .json()
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

/// Name and Raft id of each voter.
fn voters(w: &World) -> BTreeMap<String, String> {
    let configuration = w
        .at(w.leader())
        .get("/v1/operator/raft/configuration")
        .unwrap()
        .ok()
        .json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let servers = configuration["Servers"].as_array().unwrap().clone();
    servers
        .iter()
        .filter(|server| server["Voter"] == true)
        .map(|server| (text(&server["Node"]), text(&server["ID"])))
        .collect()
}

#[test]
fn a_second_server_of_the_same_name_evicts_nobody() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let before = voters(&w);
    let leader = w.leader();
    w.add(4);
    w.argument(4, format!("-node=s{leader}"));
    w.launch(4);
    w.until("the reason", || {
        w.log(4).contains("join.name_taken").then_some(())
    });
    assert_eq!(voters(&w), before);
    w.kill(4);
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn autopilot_says_how_well_the_servers_are() {
    let mut w = World::servers(3).start();
    let health = |w: &World| {
        let reply = w.at(w.leader()).get("/v1/operator/autopilot/health").ok()?;
        Some((reply.status, reply.json()))
    };
    let (_, all_well) = w.until("all servers to be well", || {
        health(&w).filter(|(status, _)| *status == 200)
    });
    assert_eq!(all_well["FailureTolerance"], 1);
    let servers = all_well["Servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3);
    for server in servers {
        assert_eq!(server["SerfStatus"], "alive", "{server}");
        assert_ne!(server["Version"], "", "{server}");
        assert_ne!(server["StableSince"], "1970-01-01T00:00:00.000Z");
    }
    let lost = w.follower();
    w.kill(lost);
    let (_, one_lost) = w.until("the loss to be seen", || {
        health(&w).filter(|(status, _)| *status == 429)
    });
    assert_eq!(one_lost["Healthy"], false);
    assert_eq!(one_lost["FailureTolerance"], 0);
    let state = w
        .at(w.leader())
        .get("/v1/operator/autopilot/state")
        .unwrap()
        .ok()
        .json();
    assert_eq!(state["Servers"].as_object().unwrap().len(), 3);
    assert_eq!(state["Voters"].as_array().unwrap().len(), 3);
    w.restart(lost);
    w.until("it to be well again", || {
        health(&w).filter(|(status, _)| *status == 200)
    });
}
