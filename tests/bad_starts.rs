//! Starts that cannot work: each ends with a reason and a remedy, and harms nobody.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::net::TcpListener;
use std::process::Command;

use support::{WEFT, World, said};

#[test]
fn two_processes_cannot_share_a_data_dir() {
    let mut w = World::servers(1).start();
    w.at(1).kv_put("color", "red");
    let pid = std::fs::read_to_string(w.data_dir(1).join("weft.lock"))
        .unwrap()
        .trim()
        .to_owned();
    w.add(2);
    let data_dir = w.data_dir(1);
    w.keep_data_in(2, &data_dir);
    let (status, told) = w.run_to_end(2);
    assert!(!status.success());
    for words in [
        data_dir.to_str().unwrap(),
        "in use by another weft process",
        &format!("(pid {pid})"),
        "stop that one",
    ] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
    assert_eq!(
        w.at(1).kv_get("color", "").as_deref(),
        Some("red"),
        "the first goes on"
    );
    w.at(1).kv_put("color", "blue");
}

#[test]
fn a_port_in_use_is_named() {
    for (port, part) in [
        (8300, "server"),
        (8301, "gossip"),
        (8500, "HTTP"),
        (8600, "DNS"),
    ] {
        let mut w = World::servers(1);
        let taken = format!("{}:{port}", w.address(1));
        let _held = TcpListener::bind(&taken).unwrap();
        let (status, told) = w.run_to_end(1);
        assert!(!status.success(), "{part}");
        assert!(
            told.contains(&taken),
            "{part}: the address is missing: {told}"
        );
        assert!(told.to_lowercase().contains("in use"), "{part}: {told}");
    }
}

#[test]
fn data_of_another_cluster_is_not_let_in() {
    let mut ours = World::servers(3).start();
    let mut theirs = World::servers(1).start();
    ours.at(1).kv_put("color", "red");
    theirs.at(1).kv_put("color", "green");
    theirs.kill(1);
    // The other cluster's only server is started with our addresses to join.
    ours.add(4);
    let data_dir = theirs.data_dir(1);
    ours.keep_data_in(4, &data_dir);
    ours.launch(4);
    ours.until("the reason in the log of either side", || {
        let both: String = ours.names().into_iter().map(|n| ours.log(n)).collect();
        both.contains("another cluster").then_some(())
    });
    assert_eq!(ours.at(1).kv_get("color", "").as_deref(), Some("red"));
    let configuration = ours
        .at(1)
        .get("/v1/operator/raft/configuration")
        .unwrap()
        .ok()
        .json();
    assert_eq!(
        configuration["Servers"].as_array().unwrap().len(),
        3,
        "{configuration}"
    );
}

#[test]
fn the_network_is_refused_without_keys() {
    for (arguments, reasons) in [
        (
            &["-bind=0.0.0.0"][..],
            &["exposure.gossip", "exposure.rpc"][..],
        ),
        (&["-bind=127.0.0.1", "-client=0.0.0.0"], &["exposure.http"]),
    ] {
        let w = World::servers(1);
        let mut command = Command::new(WEFT);
        command
            .args(["agent", "-server", "-bootstrap-expect=1", "-node=s1"])
            .arg(format!("-data-dir={}", w.data_dir(1).display()));
        let output = command.args(arguments).output().unwrap();
        let told = said(&output);
        assert_eq!(output.status.code(), Some(78), "{told}");
        for words in reasons.iter().chain(&["fix:"]) {
            assert!(told.contains(words), "{words:?} is missing: {told}");
        }
        assert!(!w.data_dir(1).exists(), "nothing was made");
    }
}

#[test]
fn configuration_errors_name_the_place_and_the_remedy() {
    let w = World::servers(1);
    let file = w.path("agent.hcl");
    for (text, words) in [
        (
            "datacenter = \"dc1\"\nserver = true\nbind_adr = \"127.0.0.1\"\n",
            &["agent.hcl:3:1", "bind_adr", "did you mean \"bind_addr\"?"][..],
        ),
        (
            "server = true\nbootstrap_expect = \"many\"\n",
            &["agent.hcl:2", "bootstrap_expect"],
        ),
        ("server = true\nports {\n  http = 8500\n", &["agent.hcl:"]),
        (
            "server = true\ncheck {\n  name = \"disk\"\n  args = [\"df\"]\n  interval = \"5s\"\n}\n",
            &["agent.hcl:2", "disk", "enable_local_script_checks"],
        ),
        (
            "bootstrap_expect = 3\n",
            &["bootstrap_expect", "server = true"],
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(WEFT);
        let output = command
            .arg("agent")
            .arg(format!("-config-file={}", file.display()))
            .arg(format!("-data-dir={}", w.data_dir(1).display()))
            .output()
            .unwrap();
        let told = said(&output);
        assert_eq!(output.status.code(), Some(78), "{text}: {told}");
        for word in words {
            assert!(told.contains(word), "{word:?} is missing: {told}");
        }
        let validated = w.cli(1, &["validate", file.to_str().unwrap()]);
        assert!(!validated.status.success(), "validate accepts {text}");
    }
}

#[test]
fn words_that_nobody_reads_break_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let wrong = Command::new(WEFT)
        .args(["kv", "no-such-verb"])
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(wrong.code(), Some(2));
}
