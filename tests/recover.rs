//! Servers lost for ever: the last one goes on with everything it has, and the cluster grows again around it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::{WEFT, World, said};

/// `weft recover` on the files of server `n`.
fn recover(w: &World, n: usize, arguments: &[&str]) -> Output {
    Command::new(WEFT)
        .arg("recover")
        .arg(format!("-data-dir={}", w.data_dir(n).display()))
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

#[track_caller]
fn refused(output: &Output, reason: &str) -> String {
    assert!(!output.status.success(), "{}", said(output));
    let told = said(output);
    assert!(told.contains(reason), "{told}");
    told
}

/// Name and vote of each member of Raft, as server `n` sees it.
fn peers(w: &World, n: usize) -> Vec<(String, bool)> {
    let configuration = w.at(n).get("/v1/operator/raft/configuration?stale");
    let Ok(reply) = configuration else {
        return Vec::new();
    };
    if reply.status != 200 {
        return Vec::new();
    }
    let configuration = reply.json();
    let servers = configuration["Servers"].as_array().unwrap().iter();
    let mut peers: Vec<_> = servers
        .map(|s| (s["Node"].as_str().unwrap().to_owned(), s["Voter"] == true))
        .collect();
    peers.sort();
    peers
}

fn all_vote(w: &World, n: usize, names: &[&str]) {
    w.until(&format!("{names:?} to vote"), || {
        let found = peers(w, n);
        let voters: Vec<_> = found
            .iter()
            .filter(|(_, votes)| *votes)
            .map(|(name, _)| name.as_str())
            .collect();
        (voters == names && found.len() == names.len()).then_some(())
    });
}

fn index_of(w: &World, n: usize, key: &str) -> u64 {
    let path = format!("/v1/kv/{key}?consistent");
    w.until("a consistent read", || {
        w.at(n).get(&path).ok().filter(|reply| reply.status == 200)
    })
    .index()
}

#[test]
fn two_of_three_are_lost_and_nothing_acknowledged_is() {
    let mut w = World::servers(3)
        .with("-hcl=autopilot { server_stabilization_time = \"1s\" }")
        .start();
    for n in 0..50 {
        w.at(1 + n % 3).kv_put(&format!("k{n}"), n.to_string());
    }
    let before = index_of(&w, 1, "k49");
    let told = refused(&recover(&w, 1, &[]), "recover.running");
    assert!(told.contains("in use by another weft process"), "{told}");

    // One server down is no reason: the two others are a quorum.
    w.kill(1);
    refused(&recover(&w, 1, &["-yes"]), "recover.quorum_alive");
    w.restart(1);
    w.until("all of it on s1", || {
        w.at(1).kv_get("k49", "stale").filter(|value| value == "49")
    });

    for n in w.names() {
        w.kill(n);
    }
    for n in [2, 3] {
        std::fs::rename(w.data_dir(n), w.path(&format!("lost-s{n}"))).unwrap();
    }
    let dry = recover(&w, 1, &["-o", "json"]);
    assert!(dry.status.success(), "{}", said(&dry));
    let dry = report(&dry);
    assert_eq!(
        (&dry["node"], &dry["recovered"], &dry["holds"]["keys"]),
        (&"s1".into(), &false.into(), &50.into())
    );
    let states: Vec<_> = dry["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states.iter().filter(|state| **state == "silent").count(),
        2,
        "{dry}"
    );
    let again = report(&recover(&w, 1, &["-o", "json", "-dry-run"]));
    assert_eq!(again, dry, "a dry run changes nothing");
    let shown = said(&recover(&w, 1, &[]));
    for words in ["50 keys", "Nothing was changed", "s2", "s3", "this server"] {
        assert!(shown.contains(words), "{words:?} is missing: {shown}");
    }

    let done = recover(&w, 1, &["-yes"]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("Recovered: s1"), "{}", said(&done));
    refused(&recover(&w, 1, &["-yes"]), "recover.alone");
    w.restart(1);
    for n in 0..50 {
        assert_eq!(w.at(1).kv_get(&format!("k{n}"), ""), Some(n.to_string()));
    }
    let after = index_of(&w, 1, "k49");
    assert!(
        after > before,
        "the index ran back from {before} to {after}"
    );
    w.at(1).kv_put("after", "the loss");
    assert_eq!(peers(&w, 1), [("s1".to_owned(), true)]);

    // Two new servers, under the names of the lost.
    for n in [2, 3] {
        w.launch(n);
    }
    all_vote(&w, 1, &["s1", "s2", "s3"]);
    w.settle();
    assert_eq!(w.at(3).kv_get("k7", "").as_deref(), Some("7"));
    // They count: without s1 the cluster goes on.
    w.kill(1);
    w.at(w.leader()).kv_put("more", "of it");
    w.restart(1);
    assert_eq!(w.at(1).kv_get("more", "").as_deref(), Some("of it"));
}

#[test]
fn a_lost_server_that_comes_back_with_its_old_data_is_kept_out() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    for n in w.names() {
        w.kill(n);
    }
    assert!(recover(&w, 1, &["-yes"]).status.success());
    w.restart(1);
    w.at(1).kv_put("color", "blue");
    // One of the lost: alone it is no quorum, and the recovered cluster does not take it in.
    let (status, told) = w.run_to_end(2);
    assert_eq!(status.code(), Some(70), "{told}");
    assert!(told.contains("recover.superseded"), "{told}");
    // Both, which would be a quorum of the old membership.
    w.launch(2);
    w.launch(3);
    for n in [2, 3] {
        assert_eq!(w.wait_exit(n).code(), Some(70));
        assert!(w.log(n).contains("recover.superseded"), "{}", w.log(n));
    }
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("blue"));
    assert_eq!(peers(&w, 1).len(), 1);
    // As told: without its raft folder it is a new server.
    std::fs::remove_dir_all(w.data_dir(2).join("raft")).unwrap();
    w.restart(2);
    assert_eq!(w.at(2).kv_get("color", "").as_deref(), Some("blue"));
}

#[test]
fn a_mistaken_recovery_does_not_end_a_quorum_that_works() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    for n in w.names() {
        w.kill(n);
    }
    assert!(recover(&w, 1, &["-yes"]).status.success());
    // Nothing was lost for ever: the others go on, and s1 comes back with its own history.
    w.launch(2);
    w.launch(3);
    w.settle();
    w.at(2).kv_put("color", "blue");
    // Long enough to be a cluster that works, not one that has just come back.
    std::thread::sleep(std::time::Duration::from_secs(15));
    w.launch(1);
    for n in [2, 3] {
        w.until("the recovery to be heard of", || {
            let log = w.log(n);
            let told = log.contains("recover.superseded") && log.contains("quorum that works");
            told.then_some(())
        });
    }
    w.at(2).kv_put("color", "green");
    assert_eq!(w.at(3).kv_get("color", "").as_deref(), Some("green"));
    w.until("s1 to go on by itself", || {
        w.at(1).kv_get("color", "").filter(|value| value == "red")
    });
}

#[test]
fn of_several_survivors_the_one_with_the_newest_log_goes_on() {
    let mut w = World::servers(5).start();
    w.at(1).kv_put("color", "red");
    w.until("it on all servers", || {
        let all = w
            .names()
            .into_iter()
            .all(|n| w.at(n).kv_get("color", "stale").is_some());
        all.then_some(())
    });
    let leader = w.leader();
    let behind = w.names().into_iter().find(|n| *n != leader).unwrap();
    w.kill(behind);
    w.at(leader).kv_put("color", "blue");
    for n in w.running() {
        w.kill(n);
    }
    let file = |n: usize| w.path(&format!("s{n}.json"));
    for n in [leader, behind] {
        std::fs::write(file(n), recover(&w, n, &["-o", "json"]).stdout).unwrap();
    }
    let compare = |n: usize| format!("-compare={}", file(n).display());
    let told = refused(
        &recover(&w, behind, &[&compare(leader), "-yes"]),
        "recover.not_newest",
    );
    assert!(told.contains(&format!("s{leader}")), "{told}");
    let done = recover(&w, leader, &[&compare(behind), "-yes"]);
    assert!(done.status.success(), "{}", said(&done));
    w.restart(leader);
    assert_eq!(w.at(leader).kv_get("color", "").as_deref(), Some("blue"));
}

#[test]
fn consuls_peers_file_is_taken_up() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let configuration = w
        .at(1)
        .get("/v1/operator/raft/configuration")
        .unwrap()
        .ok()
        .json();
    let entry = |n: usize| {
        let servers = configuration["Servers"].as_array().unwrap();
        let server = servers
            .iter()
            .find(|s| s["Node"] == format!("s{n}"))
            .unwrap();
        serde_json::json!({"id": server["ID"], "address": server["Address"], "non_voter": false})
    };
    let list = serde_json::json!([entry(1), entry(2)]).to_string();
    let before = index_of(&w, 1, "color");
    for n in w.names() {
        w.kill(n);
    }
    let folders: Vec<_> = (1..=2).map(|n| w.data_dir(n).join("raft")).collect();
    let file = |n: usize| folders[n - 1].join("peers.json");
    std::fs::write(file(1), "[\"10.9.9.9:8300\"]").unwrap();
    let (status, told) = w.run_to_end(1);
    assert!(
        !status.success() && told.contains("recover.peers_file"),
        "{told}"
    );
    assert!(file(1).exists(), "a file that is refused stays");

    for n in [1, 2] {
        std::fs::write(file(n), &list).unwrap();
        w.launch(n);
    }
    all_vote(&w, 1, &["s1", "s2"]);
    w.settle();
    assert_eq!(w.at(2).kv_get("color", "").as_deref(), Some("red"));
    assert!(index_of(&w, 1, "color") > before);
    assert!(
        !file(1).exists() && !file(2).exists(),
        "it is taken up once"
    );
    w.at(2).kv_put("color", "blue");
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("blue"));
}
