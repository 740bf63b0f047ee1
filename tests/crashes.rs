//! What was acknowledged survives kill -9, frozen leaders and the whole cluster going down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::Duration;

use support::load::Load;
use support::{World, times};

#[test]
fn acknowledged_writes_survive_losing_the_leader() {
    let mut w = World::servers(3).start();
    let load = Load::start(&w, 4);
    for kill in 1..=times(3, 50) {
        let (writes, reads) = (load.acknowledged(), load.reads());
        w.until("writes and reads to flow", || {
            (load.acknowledged() > writes + 50 && load.reads() > reads + 50).then_some(())
        });
        let leader = w.leader();
        println!("kill {kill}: s{leader}");
        w.kill(leader);
        let next = w.leader();
        assert_ne!(next, leader);
        let acknowledged = load.acknowledged();
        w.until("writes without the old leader", || {
            (load.acknowledged() > acknowledged + 10).then_some(())
        });
        w.restart(leader);
    }
    load.finish(&w).hold();
}

#[test]
fn a_leader_that_was_frozen_never_answers_with_old_data() {
    let w = World::servers(3).start();
    let load = Load::start(&w, 4);
    for _ in 0..times(1, 5) {
        let (writes, reads) = (load.acknowledged(), load.reads());
        w.until("writes and reads to flow", || {
            (load.acknowledged() > writes + 50 && load.reads() > reads + 50).then_some(())
        });
        let leader = w.leader();
        w.pause(leader);
        std::thread::sleep(Duration::from_secs(u64::from(times(2, 5))));
        // The others go on by themselves, however long it stays frozen.
        let (writes, reads) = (load.acknowledged(), load.reads());
        w.until("writes and reads without the frozen leader", || {
            (load.acknowledged() > writes + 50 && load.reads() > reads + 50).then_some(())
        });
        w.resume(leader);
        w.settle();
    }
    load.finish(&w).hold();
}

#[test]
fn the_whole_cluster_may_die_at_once() {
    let mut w = World::servers(3).start();
    let load = Load::start(&w, 3);
    for _ in 0..times(2, 10) {
        let writes = load.acknowledged();
        w.until("writes to flow", || {
            (load.acknowledged() > writes + 50).then_some(())
        });
        for n in w.names() {
            w.kill(n);
        }
        for n in w.names() {
            w.launch(n);
        }
        w.settle();
    }
    load.finish(&w).hold();
}

#[test]
fn servers_with_new_addresses_form_the_same_cluster() {
    let mut w = World::servers(3).start();
    w.at(w.follower()).kv_put("color", "red");
    let ids = raft_ids(&w);
    for n in w.names() {
        w.stop(n);
    }
    for n in w.names() {
        w.move_to(n, n + 10);
    }
    for n in w.names() {
        w.launch(n);
    }
    w.settle();
    for n in w.names() {
        assert_eq!(w.at(n).kv_get("color", "").as_deref(), Some("red"));
    }
    assert_eq!(raft_ids(&w), ids, "a server's Raft id is not its address");
    w.until("the configuration to name the new addresses", || {
        let configuration = w.at(1).get("/v1/operator/raft/configuration").ok()?.json();
        let addresses: Vec<_> = configuration["Servers"]
            .as_array()?
            .iter()
            .filter_map(|server| server["Address"].as_str())
            .map(str::to_owned)
            .collect();
        w.names()
            .iter()
            .all(|n| addresses.contains(&format!("{}:8300", w.address(*n))))
            .then_some(())
    });
    w.at(1).kv_put("color", "blue");
}

#[test]
fn a_server_that_lost_its_disk_comes_back_as_a_learner_and_becomes_a_voter() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let before = raft_ids(&w);
    let lost = w.follower();
    w.kill(lost);
    std::fs::remove_dir_all(w.data_dir(lost)).unwrap();
    w.at(w.leader()).kv_put("size", "large");
    w.restart(lost);
    assert_eq!(w.at(lost).kv_get("color", "").as_deref(), Some("red"));
    w.until("it to be a voter under a new id", || {
        let now = raft_ids(&w);
        (now.len() == 3
            && now[&format!("s{lost}")].1
            && now[&format!("s{lost}")].0 != before[&format!("s{lost}")].0)
            .then_some(())
    });
    // A write behind the change says that the change is on a quorum's disks.
    w.at(w.leader()).kv_put("voters", "three");
    // It counts again: the cluster goes on without another server.
    let other = w.names().into_iter().find(|n| *n != lost).unwrap();
    w.kill(other);
    w.settle();
    assert_eq!(w.at(lost).kv_get("size", "").as_deref(), Some("large"));
    w.at(lost).kv_put("size", "small");
}

/// Each server's Raft id, and whether it votes.
fn raft_ids(w: &World) -> std::collections::BTreeMap<String, (String, bool)> {
    let configuration = w
        .at(w.leader())
        .get("/v1/operator/raft/configuration")
        .unwrap()
        .ok()
        .json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    configuration["Servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (text(&s["Node"]), (text(&s["ID"]), s["Voter"] == true)))
        .collect()
}
