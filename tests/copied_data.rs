//! A data directory that was copied to another machine: the copy refuses to start, and says why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::Path;
use std::process::Command;

use support::World;
use support::load::Load;

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

/// A copy of node `of`'s data, as `n` at another address, ends by itself.
#[track_caller]
fn refused(w: &mut World, of: usize, n: usize) {
    let to = w.path(&format!("copy-{n}"));
    copy(&w.data_dir(of), &to);
    w.keep_data_in(n, &to);
    let (status, told) = w.run_to_end(n);
    assert_eq!(status.code(), Some(78), "{told}");
    for words in [
        &w.address(of),
        &w.address(n),
        "is a copy",
        "remove this data_dir",
        "node_name",
    ] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
}

fn voters(w: &World, at: usize) -> usize {
    let reply = w.at(at).get("/v1/operator/raft/configuration").unwrap();
    reply.ok().json()["Servers"].as_array().unwrap().len()
}

#[test]
fn a_copy_of_a_server_refuses_to_start_and_the_cluster_does_not_notice() {
    let mut w = World::servers(3).start();
    let load = Load::start(&w, 2);
    let writes = load.acknowledged();
    w.until("writes to flow", || {
        (load.acknowledged() > writes + 20).then_some(())
    });
    for of in [w.follower(), w.leader()] {
        let n = 3 + of;
        w.add(n);
        refused(&mut w, of, n);
        let writes = load.acknowledged();
        w.until("writes to go on", || {
            (load.acknowledged() > writes + 20).then_some(())
        });
        assert_eq!(voters(&w, of), 3, "the copy counts for nothing");
    }
    load.finish(&w).hold();
}

#[test]
fn a_server_whose_original_is_dead_moves_and_keeps_what_comes_back_out() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let of = w.follower();
    w.kill(of);
    w.add(7);
    let to = w.path("moved");
    copy(&w.data_dir(of), &to);
    w.keep_data_in(7, &to);
    w.restart(7);
    assert_eq!(w.at(7).kv_get("color", "").as_deref(), Some("red"));
    w.until("its new address in the membership", || {
        let reply = w.at(7).get("/v1/operator/raft/configuration").ok()?;
        let there = format!("{}:8300", w.address(7));
        let servers = reply.json()["Servers"].clone();
        let servers = servers.as_array()?;
        let is_there = servers.iter().any(|one| one["Address"] == there.as_str());
        (is_there && servers.len() == 3).then_some(())
    });
    // Now the former one is the copy.
    let (status, told) = w.run_to_end(of);
    assert_eq!(status.code(), Some(78), "{told}");
    assert!(told.contains(&w.address(7)), "{told}");
    assert_eq!(w.at(7).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn a_copy_of_an_agent_refuses_to_start() {
    let mut w = World::servers(1).clients(1).start();
    let service = r#"{"Name": "web", "Port": 80}"#;
    w.at(11)
        .put("/v1/agent/service/register", service)
        .unwrap()
        .ok();
    w.add_client(12);
    refused(&mut w, 11, 12);
    w.wait_passing(11);
    let services = w.at(11).get("/v1/catalog/service/web").unwrap().ok().json();
    assert_eq!(services.as_array().unwrap().len(), 1, "{services}");
    assert_eq!(services[0]["Address"], w.address(11).as_str());
}

#[test]
fn of_two_that_start_at_one_moment_one_ends() {
    let mut w = World::servers(3).start();
    w.at(1).kv_put("color", "red");
    let of = w.follower();
    w.kill(of);
    w.add(7);
    let to = w.path("twin");
    copy(&w.data_dir(of), &to);
    w.keep_data_in(7, &to);
    w.launch(of);
    w.launch(7);
    let begun = w.now();
    let (ended, code) = loop {
        let ended = [of, 7].into_iter().find_map(|n| Some((n, w.ended(n)?)));
        if let Some((n, status)) = ended {
            break (n, status.code());
        }
        assert!(w.now() - begun < support::PATIENCE, "both stay");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    // Before it said a word, or as soon as the two met.
    assert!([Some(78), Some(70)].contains(&code), "{code:?}");
    assert!(w.log(ended).contains("is a copy"), "{}", w.log(ended));
    let stays = if ended == of { 7 } else { of };
    w.settle();
    assert_eq!(w.at(stays).kv_get("color", "").as_deref(), Some("red"));
    w.until("three voters", || (voters(&w, stays) == 3).then_some(()));
}
