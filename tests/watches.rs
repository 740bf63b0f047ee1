//! Watches: `weft watch` with and without a command, and those the agent runs by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{WEFT, World, said};

/// `weft watch …` at server 1, in the world's directory.
fn watch(w: &World, arguments: &[&str]) -> Child {
    let mut command = Command::new(WEFT);
    command
        .arg("watch")
        .args(arguments)
        .env("CONSUL_HTTP_ADDR", format!("{}:8500", w.address(1)))
        .env_remove("SHELL")
        .current_dir(w.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn text(w: &World, name: &str) -> String {
    std::fs::read_to_string(w.path(name)).unwrap_or_default()
}

/// The data of every run of a handler that appends to `name`.
fn runs(w: &World, name: &str) -> Vec<Value> {
    let text = text(w, name);
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[test]
fn without_a_command_the_first_answer_is_shown() {
    let w = World::servers(1).start();
    w.at(1).kv_put("app/a", "1");
    let shown = |arguments: &[&str]| {
        let output = w.cli(1, &[&["watch"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let key = shown(&["-type=key", "-key=app/a"]);
    assert_eq!(
        (&key["Value"], &key["Session"]),
        (&json!("MQ=="), &json!(""))
    );
    assert_eq!(shown(&["-type=key", "-key=nope"]), Value::Null);
    assert_eq!(
        shown(&["-type=keyprefix", "-prefix=app/"])[0]["Key"],
        "app/a"
    );
    assert_eq!(shown(&["-type=services"]), json!({"consul": []}));
    assert_eq!(shown(&["-type", "nodes"])[0]["Node"], "s1");
    assert_eq!(shown(&["-type=nodes", "-filter=Node == other"]), json!([]));
    let service = ["-type=service", "-service=consul", "-passingonly=true"];
    assert_eq!(shown(&service)[0]["Node"]["Node"], "s1");
    assert_eq!(shown(&["-type=checks", "-state=critical"]), json!([]));
    assert_eq!(shown(&["-type=checks"])[0]["CheckID"], "serfHealth");
    assert_eq!(shown(&["-type=checks", "-service=nope"]), json!([]));
}

#[test]
fn a_command_is_told_of_each_change_until_it_fails() {
    let mut w = World::servers(1).start();
    let at = w.at(1);
    at.kv_put("app/a", "1");
    let handler = "cat >>told; echo $CONSUL_INDEX >>indexes; ! grep -q QQ== told";
    let mut child = watch(&w, &["-type=key", "-key=app/a", handler]);
    let values = |w: &World| -> Vec<String> {
        let all = runs(w, "told");
        all.iter()
            .map(|run| run["Value"].as_str().unwrap_or("-").to_owned())
            .collect()
    };
    w.until("the first run", || (values(&w) == ["MQ=="]).then_some(()));
    // What touches other keys, and what writes the same again, is no change.
    at.kv_put("other", "x");
    at.kv_put("app/a", "1");
    at.kv_put("app/a", "2");
    w.until("the second run", || {
        (values(&w) == ["MQ==", "Mg=="]).then_some(())
    });
    at.delete("/v1/kv/app/a").unwrap().ok();
    w.until("the run for what is gone", || {
        (runs(&w, "told").len() == 3).then_some(())
    });
    assert_eq!(runs(&w, "told")[2], Value::Null);

    // A server that comes back is asked again, and what is known is not told again.
    w.kill(1);
    w.restart(1);
    w.at(1).kv_put("app/a", "A");
    // That makes the handler fail.
    let status = w.until("the end of the watch", || child.try_wait().unwrap());
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("Error executing handler: exit status 1"),
        "{stderr}"
    );
    assert!(stderr.contains("Asking again in"), "{stderr}");
    assert_eq!(values(&w), ["MQ==", "Mg==", "-", "QQ=="]);
    let indexes: Vec<u64> = text(&w, "indexes")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(indexes.len() == 4 && indexes.is_sorted(), "{indexes:?}");
}

#[test]
fn each_event_is_told_once() {
    let w = World::servers(1).start();
    let fire = |name: &str, payload: &str| {
        let fired = w.cli(1, &["event", "-name", name, payload]);
        assert!(fired.status.success(), "{}", said(&fired));
    };
    fire("deploy", "one");
    let mut child = watch(&w, &["-type=event", "-name=deploy", "cat >>told"]);
    let payloads = |w: &World| -> Vec<String> {
        let runs = runs(w, "told");
        let events = runs.iter().flat_map(|run| run.as_array().unwrap());
        events
            .map(|event| event["Payload"].as_str().unwrap().to_owned())
            .collect()
    };
    w.until("what was there", || {
        (payloads(&w) == ["b25l"]).then_some(())
    });
    fire("other", "x");
    fire("deploy", "two");
    w.until("the second", || {
        (payloads(&w) == ["b25l", "dHdv"]).then_some(())
    });
    fire("deploy", "three");
    w.until("the third", || {
        (payloads(&w) == ["b25l", "dHdv", "dGhyZWU="]).then_some(())
    });
    send(&child, Signal::TERM);
    assert_eq!(
        w.until("the end", || child.try_wait().unwrap()).code(),
        Some(0)
    );
}

#[test]
fn signals_reach_the_command_and_end_the_watch() {
    let w = World::servers(1).start();
    // While the command runs.
    let handler = "trap 'echo usr1 >>seen' USR1; trap 'echo int >>seen; exit 9' INT; echo up >>seen; \
                   while :; do sleep 0.05; done";
    let mut child = watch(&w, &["-type=nodes", handler]);
    w.until("the command", || {
        text(&w, "seen").contains("up").then_some(())
    });
    send(&child, Signal::USR1);
    w.until("the first signal", || {
        text(&w, "seen").contains("usr1").then_some(())
    });
    assert!(child.try_wait().unwrap().is_none(), "SIGUSR1 ends nothing");
    send(&child, Signal::INT);
    let status = w.until("the end", || child.try_wait().unwrap());
    assert_eq!(text(&w, "seen"), "up\nusr1\nint\n");
    assert_eq!(status.code(), Some(0), "whoever asked for the end gets it");

    // Between two runs.
    let mut child = watch(&w, &["-type=nodes", "-shell=false", "touch", "idle"]);
    w.until("the run", || w.path("idle").exists().then_some(()));
    std::thread::sleep(Duration::from_millis(100));
    send(&child, Signal::TERM);
    let status = w.until("the end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));

    // Nobody there: at once, as the address may be wrong.
    let nobody = w.cli(
        1,
        &["watch", "-type=nodes", "-http-addr=127.0.0.1:1", "true"],
    );
    assert_eq!(nobody.status.code(), Some(5), "{}", said(&nobody));
    let bad = w.cli(1, &["watch", "-type=nodes", "-filter=x ==", "true"]);
    assert_eq!(bad.status.code(), Some(1), "{}", said(&bad));
}

#[test]
fn an_agent_runs_the_watches_of_its_configuration_and_takes_new_ones() {
    let mut w = World::servers(1);
    let config = w.path("watches.json");
    let script = |prefix: &str, file: &str| {
        let line = format!("cat >>{}", w.path(file).display());
        json!({"type": "keyprefix", "prefix": prefix, "args": ["/bin/sh", "-c", line]})
    };
    let (app, cache) = (script("app/", "app"), script("cache/", "cache"));
    let line = "printf %0100000d 0; echo the end; exit 4";
    let loud = json!({"type": "key", "key": "loud", "args": ["/bin/sh", "-c", line]});
    let write = |watches: &[&Value]| {
        let config_text = json!({"enable_local_script_checks": true, "watches": watches});
        std::fs::write(&config, config_text.to_string()).unwrap();
    };
    write(&[&app, &loud]);
    w.argument(1, format!("-config-file={}", config.display()));
    let w = w.start();
    let at = w.at(1);
    w.until("the first run", || {
        (runs(&w, "app") == [Value::Null]).then_some(())
    });
    at.kv_put("app/a", "1");
    w.until("the change", || (runs(&w, "app").len() == 2).then_some(()));
    assert_eq!(runs(&w, "app")[1][0]["Key"], "app/a");
    // What fails is in the log, with the end of what it said.
    w.until("the failure", || {
        w.log(1).contains("watch handler failed").then_some(())
    });
    let line = w.log(1);
    let line = line
        .lines()
        .find(|line| line.contains("watch handler failed"))
        .unwrap()
        .to_owned();
    assert!(
        line.contains("exit code 4") && line.contains("the end") && line.len() < 10_000,
        "{line}"
    );

    // One goes, one comes, one stays and is not told again what it knows.
    write(&[&app, &cache]);
    w.signal(1, Signal::HUP);
    w.until("the new watch", || {
        (runs(&w, "cache") == [Value::Null]).then_some(())
    });
    at.kv_put("cache/a", "1");
    w.until("its change", || {
        (runs(&w, "cache").len() == 2).then_some(())
    });
    assert_eq!(runs(&w, "app").len(), 2, "told again");
    at.kv_put("app/b", "1");
    w.until("the change", || (runs(&w, "app").len() == 3).then_some(()));

    let metrics = || {
        at.get("/v1/agent/metrics?format=prometheus")
            .unwrap()
            .ok()
            .text()
    };
    assert!(metrics().contains("weft_watch_running 2"), "{}", metrics());
    assert!(
        metrics().contains(r#"weft_watch_handler_runs_total{handler="script",outcome="failed"} 1"#)
    );

    // A file that makes no sense changes nothing.
    let bad = json!({"watches": [{"type": "nodes", "args": ["true"]}]});
    std::fs::write(&config, bad.to_string()).unwrap();
    let refused = w.cli(1, &["reload"]);
    assert!(
        said(&refused).contains("enable_local_script_checks"),
        "{}",
        said(&refused)
    );
    at.kv_put("app/c", "1");
    w.until("the change after it", || {
        (runs(&w, "app").len() == 4).then_some(())
    });
}

#[test]
fn a_watch_that_runs_commands_needs_permission() {
    let mut w = World::servers(1);
    w.argument(1, "-hcl=watches = [{ type = \"nodes\" args = [\"true\"] }]");
    let (status, log) = w.run_to_end(1);
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("enable_local_script_checks"), "{log}");
}
