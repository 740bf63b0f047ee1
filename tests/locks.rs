//! `weft lock`: one at a time or n of them, whose child hears signals and ends when the lock is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::fake::FakeAgent;
use support::{WEFT, World, said};

/// `weft lock …` at server 1, in the world's directory.
fn lock(w: &World, arguments: &[&str]) -> Child {
    let mut command = Command::new(WEFT);
    command
        .arg("lock")
        .args(arguments)
        .env("CONSUL_HTTP_ADDR", format!("{}:8500", w.address(1)))
        .env_remove("SHELL")
        .current_dir(w.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until the file `name` has this text.
fn wait_for(w: &World, name: &str, text: &str) {
    w.until(&format!("{text:?} in {name}"), || {
        let read = std::fs::read_to_string(w.path(name)).unwrap_or_default();
        read.contains(text).then_some(())
    });
}

fn end(w: &World, child: &mut Child) -> (i32, String) {
    let status = w.until("the end of weft lock", || child.try_wait().unwrap());
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    (status.code().unwrap(), stderr)
}

/// The keys under a prefix.
fn keys(w: &World, prefix: &str) -> Vec<Value> {
    let reply = w.at(1).get(&format!("/v1/kv/{prefix}?keys")).unwrap();
    if reply.status == 404 {
        Vec::new()
    } else {
        reply.ok().json().as_array().unwrap().clone()
    }
}

#[test]
fn one_at_a_time_and_nothing_is_left_behind() {
    let w = World::servers(1).start();
    let first = "echo in >>order; while [ ! -e go ]; do sleep 0.05; done; echo out >>order";
    let mut holder = lock(&w, &["job", first]);
    wait_for(&w, "order", "in");
    let refused = w.cli(1, &["lock", "-try=1s", "job", "echo never >>order"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("Lock acquisition failed"),
        "{}",
        said(&refused)
    );
    let mut second = lock(&w, &["job", "echo second $CONSUL_LOCK_HELD >>order"]);
    std::fs::write(w.path("go"), "").unwrap();
    assert_eq!(end(&w, &mut holder), (0, String::new()));
    assert_eq!(end(&w, &mut second), (0, String::new()));
    let order = std::fs::read_to_string(w.path("order")).unwrap();
    assert_eq!(order, "in\nout\nsecond true\n");
    assert_eq!(keys(&w, "job"), Vec::<Value>::new());
    assert_eq!(
        w.at(1).get("/v1/session/list").unwrap().ok().text().trim(),
        "[]"
    );

    // Somebody else's key is not taken for a lock.
    w.at(1).kv_put("taken/.lock", "mine");
    let taken = w.cli(1, &["lock", "taken", "true"]);
    assert_eq!(taken.status.code(), Some(6), "{}", said(&taken));
}

#[test]
fn a_semaphore_has_as_many_places_as_it_was_made_with() {
    let w = World::servers(1).start();
    let hold = |name: &str| {
        let line = format!("echo {name} >>in; while [ ! -e go ]; do sleep 0.05; done");
        lock(&w, &["-n=2", "pool", &line])
    };
    let (mut a, mut b) = (hold("a"), hold("b"));
    wait_for(&w, "in", "a");
    wait_for(&w, "in", "b");
    let third = w.cli(1, &["lock", "-n=2", "-try=1s", "pool", "true"]);
    assert_eq!(third.status.code(), Some(1), "{}", said(&third));
    assert_eq!(
        keys(&w, "pool").len(),
        3,
        "the document and two contenders: the third left nothing"
    );
    let other = w.cli(1, &["lock", "-n=3", "-try=1s", "pool", "true"]);
    assert_eq!(other.status.code(), Some(6), "{}", said(&other));
    std::fs::write(w.path("go"), "").unwrap();
    assert_eq!(end(&w, &mut a), (0, String::new()));
    assert_eq!(end(&w, &mut b), (0, String::new()));
    assert_eq!(keys(&w, "pool"), Vec::<Value>::new());
}

#[test]
fn a_child_hears_signals_and_ends_when_the_lock_is_lost() {
    let w = World::servers(1).start();
    let child = "trap 'echo hup >>seen' HUP; trap 'echo term >>seen; exit 7' TERM; echo up >>seen; \
                 while :; do sleep 0.05; done";
    let mut holder = lock(&w, &["-child-exit-code", "job", child]);
    wait_for(&w, "seen", "up");
    let send = |child: &Child, signal| kill_process(Pid::from_child(child), signal).unwrap();
    send(&holder, Signal::HUP);
    wait_for(&w, "seen", "hup");
    send(&holder, Signal::TERM);
    let (code, stderr) = end(&w, &mut holder);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("exit status 7"), "{stderr}");
    assert_eq!(
        std::fs::read_to_string(w.path("seen")).unwrap(),
        "up\nhup\nterm\n"
    );
    assert_eq!(
        keys(&w, "job"),
        Vec::<Value>::new(),
        "it was given back at once"
    );

    // Its session is destroyed by somebody else.
    let mut holder = lock(&w, &["other", "echo on >>lost; exec sleep 1000"]);
    wait_for(&w, "lost", "on");
    let sessions = w.at(1).get("/v1/session/list").unwrap().ok().json();
    let id = sessions[0]["ID"].as_str().unwrap().to_owned();
    w.at(1)
        .put(&format!("/v1/session/destroy/{id}"), "")
        .unwrap()
        .ok();
    let (code, stderr) = end(&w, &mut holder);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("Lock lost"), "{stderr}");

    // Before it is won there is no child to wait for.
    let mut holder = lock(&w, &["job", "echo held >>seen; exec sleep 1000"]);
    wait_for(&w, "seen", "held");
    let mut waiting = lock(&w, &["job", "true"]);
    w.until("a second session", || {
        let sessions = w.at(1).get("/v1/session/list").unwrap().ok().json();
        (sessions.as_array()?.len() == 2).then_some(())
    });
    send(&waiting, Signal::INT);
    let (code, stderr) = end(&w, &mut waiting);
    assert!(code == 1 && stderr.contains("SIGINT"), "{code} {stderr}");
    send(&holder, Signal::TERM);
    end(&w, &mut holder);
}

#[test]
fn a_child_gets_our_input_and_its_words_as_they_are() {
    let w = World::servers(1).start();
    let mut child = Command::new(WEFT)
        .args([
            "lock",
            "-pass-stdin",
            "-shell=false",
            "job",
            "sh",
            "-c",
            "cat >got; echo \"$0 $1\" >>got",
            "a b",
            "-n",
        ])
        .env("CONSUL_HTTP_ADDR", format!("{}:8500", w.address(1)))
        .current_dir(w.path(""))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(
        std::fs::read_to_string(w.path("got")).unwrap(),
        "input\na b -n\n"
    );
    let missing = w.cli(1, &["lock", "-shell=false", "job", "/does/not/exist"]);
    assert_eq!(missing.status.code(), Some(1), "{}", said(&missing));
    let failed = w.cli(1, &["lock", "job", "exit 3"]);
    assert_eq!(
        failed.status.code(),
        Some(0),
        "only with -child-exit-code it counts"
    );
}

#[test]
fn a_lock_is_lost_when_its_session_cannot_be_renewed() {
    let w = World::servers(1).start();
    // Watches that fail are not what counts here.
    let line = "echo on >>held; exec sleep 1000";
    let mut holder = lock(&w, &["-monitor-retry=1000000", "job", line]);
    wait_for(&w, "held", "on");
    w.pause(1);
    let (code, stderr) = end(&w, &mut holder);
    w.resume(1);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("Lock lost"), "{stderr}");
}

/// An agent with whom a lock is won. It renews its session, and answers nothing that comes later.
fn silent_once_held() -> FakeAgent {
    let held = AtomicBool::new(false);
    FakeAgent::start(move |asked| {
        let said = |value: Value| Some((200, value.to_string()));
        let pair =
            json!([{"Session": "me", "Flags": 3_304_740_253_564_472_344_u64, "ModifyIndex": 5}]);
        match asked.split_once("/v1/").unwrap().1 {
            "session/create" => said(json!({"ID": "me"})),
            "session/renew/me" => said(json!([])),
            acquire if acquire.starts_with("kv/job/.lock?acquire=") => {
                held.store(true, Ordering::Relaxed);
                said(json!(true))
            }
            "kv/job/.lock?consistent" if held.load(Ordering::Relaxed) => said(pair),
            "kv/job/.lock?consistent" => Some((404, String::new())),
            _ => None,
        }
    })
}

#[test]
fn a_lock_is_lost_when_its_watch_is_not_answered() {
    let w = World::servers(0);
    let agent = silent_once_held();
    let address = format!("-http-addr={}", agent.address());
    let mut holder = Command::new(WEFT)
        .args([
            "lock",
            &address,
            "-monitor-retry=0",
            "job",
            "exec sleep 1000",
        ])
        .env("SHELL", "/bin/sh")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (code, stderr) = end(&w, &mut holder);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("Lock lost"), "{stderr}");
    assert!(agent.asked("PUT /v1/session/renew/") > 0);
    for farewell in ["kv/job/.lock?release=", "session/destroy/"] {
        assert_eq!(agent.asked(&format!("PUT /v1/{farewell}")), 1, "{farewell}");
    }
}

#[test]
fn an_agent_that_hangs_does_not_hold_up_the_end() {
    let w = World::servers(0);
    let agent = silent_once_held();
    let address = format!("-http-addr={}", agent.address());
    let mut holder = Command::new(WEFT)
        .args(["lock", &address, "job", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (code, stderr) = end(&w, &mut holder);
    assert_eq!(code, 7, "{stderr}");
    assert!(stderr.contains("was not destroyed within 10s"), "{stderr}");
}

#[test]
fn a_child_at_our_terminal_hears_each_ctrl_c_once() {
    let w = World::servers(1).start();
    let child = "trap \"echo int >>seen\" INT; echo up >>seen; while [ ! -e go ]; do :; done";
    let address = format!("{}:8500", w.address(1));
    let line = format!(
        "exec {WEFT} lock -pass-stdin -shell=false -http-addr={address} job sh -c '{child}'"
    );
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .current_dir(w.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&w, "seen", "up");
    let heard = || {
        let seen = std::fs::read_to_string(w.path("seen")).unwrap();
        seen.matches("int").count()
    };
    let keys = terminal.stdin.as_mut().unwrap();
    for nth in 1..=5 {
        keys.write_all(b"\x03").unwrap();
        w.until("the signal", || (heard() >= nth).then_some(()));
        // Time for another one, which must not come.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(heard(), nth);
    }
    std::fs::write(w.path("go"), "").unwrap();
    let status = w.until("the end", || terminal.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
