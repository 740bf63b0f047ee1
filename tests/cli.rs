//! The command line as its help tells it: every example that can be run is, and every verb speaks JSON.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::fake::FakeAgent;
use support::{WEFT, World, said};

/// Examples that are not run here, by how they begin, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("weft agent", "starts an agent"),
    ("weft debug", "takes two minutes; has a test of its own"),
    (
        "weft force-leave",
        "wants a failed member; tests/membership.rs",
    ),
    (
        "weft join-token",
        "wants a signer; tests/joining.rs and the guide",
    ),
    ("weft join ", "wants a second cluster; tests/membership.rs"),
    ("weft leave", "ends the agent"),
    ("weft monitor", "does not end by itself"),
    (
        "weft operator raft remove-peer",
        "wants a dead server; tests/cluster.rs",
    ),
    (
        "weft operator raft transfer-leader",
        "wants a second server; tests/cluster.rs",
    ),
    (
        "weft recover",
        "wants a stopped server that survived; tests/recover.rs and the guide",
    ),
    ("weft reload -http-addr=unix", "wants a socket"),
    (
        "weft rtt",
        "wants nodes that have measured each other; tests/coordinates.rs",
    ),
    (
        "weft watch -type=key -key=app/limits ./",
        "does not end by itself; tests/watches.rs",
    ),
];

/// Gossip keys of the examples: what the server begins with, and what takes its place.
const OLD_KEY: &str = "b2xkIGtleSBvZiB0aGUgZXhhbXBsZXMgaGVyZSAzMkI=";
const KEY: &str = "bmV3IGtleSBvZiB0aGUgZXhhbXBsZXMgaGVyZSAzMkI=";

/// Examples that end otherwise than well here, by how they begin.
const ENDS_WITH: &[(&str, i32)] = &[("weft members -status='^(failed|left)$'", 2)];

#[test]
fn the_examples_of_every_help_run() {
    let stage = Stage::new();
    let (mut ran, mut wrong) = (0, Vec::new());
    for (verb, example) in examples() {
        let begins = |begin: &str| example.starts_with(begin);
        if NOT_RUN.iter().any(|(begin, _)| begins(begin)) {
            continue;
        }
        let expected = ENDS_WITH.iter().find(|(begin, _)| begins(begin));
        let output = stage.play(&example);
        if output.status.code() != Some(expected.map_or(0, |(_, code)| *code)) {
            let (status, said) = (output.status, said(&output));
            wrong.push(format!("weft {verb} -h: {example}\n{status}: {said}"));
        }
        ran += 1;
    }
    assert!(
        wrong.is_empty(),
        "examples that do not work. One that cannot run against one server belongs into NOT_RUN, with the \
         reason.\n{}",
        wrong.join("\n")
    );
    assert!(ran > 80, "only {ran} examples were found");
}

/// Every verb's examples, as `weft <verb> -h` shows them.
fn examples() -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut verbs = vec![String::new()];
    while let Some(verb) = verbs.pop() {
        let help = Command::new(WEFT)
            .args(verb.split_whitespace())
            .arg("-h")
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let lines = |heading: &str| -> Vec<String> {
            let section = help
                .split_once(&format!("\n{heading}:\n"))
                .map_or("", |(_, rest)| rest);
            let lines = section.lines().take_while(|line| line.starts_with("  "));
            lines.map(str::to_owned).collect()
        };
        for line in lines("Commands")
            .iter()
            .filter(|line| !line.starts_with("   "))
        {
            let name = line.split_whitespace().next().unwrap();
            verbs.push(format!("{verb} {name}").trim().to_owned());
        }
        out.extend(
            lines("Examples")
                .into_iter()
                .map(|line| (verb.clone(), line.trim().to_owned())),
        );
    }
    out
}

/// One server, and all that the examples speak of.
struct Stage {
    world: World,
    bin: PathBuf,
    /// Where each example finds its files.
    files: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let world = World::servers(1)
            .with(format!("-encrypt={OLD_KEY}"))
            .start();
        let (bin, files) = (world.path("bin"), world.path("files"));
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir_all(files.join("weft.d")).unwrap();
        std::os::unix::fs::symlink(WEFT, bin.join("weft")).unwrap();
        for (name, text) in [
            ("value.txt", "blue"),
            ("web.hcl", "service {\n  name = \"web\"\n  port = 80\n}\n"),
            ("db.json", r#"{"service": {"name": "db", "port": 5432}}"#),
            (
                "services.json",
                r#"{"service": {"name": "db", "port": 5432}}"#,
            ),
            (
                "server.hcl",
                "server = true\nbind_addr = \"127.0.0.1\"\ndata_dir = \"d\"\n",
            ),
            (
                "weft.d/server.hcl",
                "server = true\nbind_addr = \"127.0.0.1\"\ndata_dir = \"d\"\n",
            ),
            (
                "web-defaults.hcl",
                "Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\n",
            ),
            (
                "web-router.hcl",
                "Kind = \"service-router\"\nName = \"web\"\n",
            ),
            (
                "ca.json",
                r#"{"Provider": "consul", "Config": {"LeafCertTTL": "48h"}}"#,
            ),
            (
                "app.json",
                r#"[{"key": "app/a", "flags": 0, "value": "MQ=="}]"#,
            ),
        ] {
            std::fs::write(files.join(name), text).unwrap();
        }
        for name in ["backup.sh", "import"] {
            std::fs::write(files.join(name), "#!/bin/sh\necho \"$0 $*\"\n").unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(files.join(name), mode).unwrap();
        }
        let stage = Self { world, bin, files };
        stage.prepare();
        let saved = stage.shell(
            &stage.files,
            "weft snapshot save backup.snap && weft tls ca create",
        );
        assert!(saved.status.success(), "{}", said(&saved));
        stage
    }

    /// Puts everything there that an example may read, change or delete.
    fn prepare(&self) {
        let at = self.world.at(1);
        at.kv_put("color", "red");
        at.kv_put("app/limits", "100");
        for body in [
            json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}),
            json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"}),
            json!({"Kind": "service-router", "Name": "web"}),
            json!({"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 100}]}),
        ] {
            at.put("/v1/config", body.to_string()).unwrap().ok();
        }
        let pair = "/v1/connect/intentions/exact?source=web&destination=db";
        at.put(pair, r#"{"Action": "allow"}"#).unwrap().ok();
        for id in ["web", "web-1", "db"] {
            let name = id.trim_end_matches("-1");
            let body = json!({"ID": id, "Name": name, "Port": 80});
            at.put("/v1/agent/service/register", body.to_string())
                .unwrap()
                .ok();
        }
    }

    /// Runs an example in a directory of its own, with real ids in place of its own.
    fn play(&self, example: &str) -> Output {
        self.prepare();
        let at = self.world.at(1);
        if example.starts_with("weft intention create") {
            for source in ["web", "*"] {
                let pair = format!("/v1/connect/intentions/exact?source={source}&destination=db");
                at.delete(&pair).unwrap().ok();
            }
        }
        let index = |path: &str| {
            let found = at.get(path).unwrap().ok().json();
            let found = found.get(0).unwrap_or(&found).clone();
            format!("-modify-index={}", found["ModifyIndex"])
        };
        let mut line = example.to_owned();
        if line.contains("7a1c…") {
            let session = at
                .put("/v1/session/create", r#"{"TTL": "30s"}"#)
                .unwrap()
                .ok()
                .json();
            line = line.replace("7a1c…", session["ID"].as_str().unwrap());
        }
        let kind = if line.contains("router") {
            "service-router"
        } else {
            "service-defaults"
        };
        line = line
            .replace("-modify-index=42", &index("/v1/kv/color"))
            .replace(
                "-modify-index=27",
                &index(&format!("/v1/config/{kind}/web")),
            )
            .replace("vm-7", "s1")
            .replace("/etc/weft.d", "weft.d");
        for address in ["10.0.0.1:8500", "10.0.0.7:8500"] {
            line = line.replace(address, &format!("{}:8500", self.world.address(1)));
        }
        let place = self.world.path("place");
        let _ = std::fs::remove_dir_all(&place);
        let copied = Command::new("cp")
            .arg("-r")
            .args([&self.files, &place])
            .status()
            .unwrap();
        assert!(copied.success());
        if line.starts_with("weft tls ca") {
            std::fs::remove_file(place.join("consul-agent-ca.pem")).unwrap();
            std::fs::remove_file(place.join("consul-agent-ca-key.pem")).unwrap();
        }
        self.shell(&place, &line)
    }

    fn shell(&self, place: &Path, line: &str) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.bin.display());
        Command::new("sh")
            .args(["-c", line])
            .current_dir(place)
            .env_clear()
            .env("PATH", path)
            .env("HOME", place)
            .env("KEY", KEY)
            .env("OLD_KEY", OLD_KEY)
            .env("WEFT_HTTP_ADDR", format!("{}:8500", self.world.address(1)))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

#[test]
fn every_verb_answers_in_json_when_asked_to() {
    let stage = Stage::new();
    let place = stage.files.clone();
    let run = |line: &str| stage.shell(&place, line);
    for (line, expected) in [
        ("kv put j 1", json!({"key": "j", "done": "written"})),
        (
            "kv delete j",
            json!({"key": "j", "recurse": false, "done": "deleted"}),
        ),
        (
            "kv import @app.json",
            json!({"keys": ["app/a"], "done": "imported"}),
        ),
        (
            "services register web.hcl",
            json!({"services": ["web"], "done": "registered"}),
        ),
        (
            "services deregister -id=web",
            json!({"services": ["web"], "done": "deregistered"}),
        ),
        (
            "maint -enable -reason=x",
            json!({"service": null, "reason": "x", "maintenance": true}),
        ),
        (
            "maint -disable",
            json!({"service": null, "reason": "", "maintenance": false}),
        ),
        ("reload", json!({"done": "reloaded"})),
        (
            "snapshot restore backup.snap",
            json!({"file": "backup.snap", "done": "restored"}),
        ),
    ] {
        let output = run(&format!("weft {line} -o json"));
        assert!(output.status.success(), "{line}: {}", said(&output));
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{line}: {}", said(&output)));
        assert_eq!(said, expected, "{line}");
    }
    for line in [
        "keygen",
        "init -directory=out",
        "version",
        "validate server.hcl",
        "members",
        "info",
        "snapshot save j.snap",
        "operator autopilot set-config -min-quorum=1",
        "tls cert create -cli",
        "catalog services",
        "config list -kind service-defaults",
    ] {
        let output = run(&format!("weft {line} -o json"));
        assert!(output.status.success(), "{line}: {}", said(&output));
        assert!(
            serde_json::from_slice::<Value>(&output.stdout).is_ok(),
            "{line}: {}",
            said(&output)
        );
    }
    for (line, code, word) in [
        ("kv get nope", 1, "negative"),
        ("kv put -cas color x", 1, "negative"),
        ("kv put", 2, "usage"),
        ("watch -type=nodes -key=a", 2, "usage"),
        ("services deregister -id=nope", 3, "not_found"),
        ("members -http-addr=127.0.0.1:1", 5, "unreachable"),
        ("members -status=[", 1, "negative"),
        ("debug -capture=nope", 2, "usage"),
        ("snapshot inspect value.txt", 1, "negative"),
    ] {
        let output = run(&format!("weft {line} -o json"));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            said(&output)
        );
        let error: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|_| panic!("{line}: {}", said(&output)));
        assert_eq!(error["error"]["code"], word, "{line}");
        assert!(output.stdout.is_empty(), "{line}: {}", said(&output));
    }
}

#[test]
fn a_bundle_holds_what_was_asked_for_and_no_secret() {
    let token = "11111111-2222-3333-4444-555555555555";
    let (gossip_key, hook_token) = ("c2l4dGVlbiBieXRlcyEhIQ==", "the-hooks-own");
    // Nobody listens at port 1: the agent's log then says what it tried to reach.
    let watch = format!(
        "watches = [{{ type = \"key\", key = \"poke\", handler_type = \"http\", http_handler_config {{ \
         path = \"http://127.0.0.1:1/hook?token={hook_token}&from={token}\" }} }}]"
    );
    let w = World::servers(1)
        .with(format!("-encrypt={gossip_key}"))
        .with(format!("-node-meta=owner:{token}"))
        .with(format!("-hcl={watch}"))
        .start();
    let out = w.path("incident");
    let flag = format!("-output={}/", out.display());
    let address = format!("-http-addr={}:8500", w.address(1));
    let mut recording = Command::new(WEFT)
        .args([
            "debug",
            "-duration=1h",
            "-interval=1s",
            &flag,
            &address,
            "-token",
            token,
        ])
        .args(["-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let size = |name: &str| std::fs::metadata(out.join(name)).map_or(0, |meta| meta.len());
    w.until("a sample of metrics", || {
        (size("metrics.ndjson") > 0).then_some(())
    });
    // Something to be logged, with secrets in it.
    let mut pokes = 0;
    w.until("a line of the log about the hook", || {
        pokes += 1;
        w.at(1).kv_put("poke", pokes.to_string());
        let log = std::fs::read_to_string(out.join("agent.log")).unwrap_or_default();
        log.contains("/hook?").then_some(())
    });
    for secret in [token, hook_token] {
        assert!(
            w.log(1).contains(secret),
            "{secret} is not what the agent logs"
        );
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&recording), Signal::INT)
        .unwrap();
    assert_eq!(
        recording.wait().unwrap().code(),
        Some(0),
        "an early end is no failure"
    );
    assert!(!out.exists(), "the directory became the archive");

    let archive = out.with_extension("tar.gz");
    assert_eq!(
        std::fs::metadata(&archive).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let unpacked = Command::new("tar")
        .arg("xzf")
        .arg(&archive)
        .arg("-C")
        .arg(w.path(""))
        .status();
    assert!(unpacked.unwrap().success());
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let index: Value = serde_json::from_str(&read("index.json")).unwrap();
    assert_eq!(
        (&index["Node"], &index["Interrupted"]),
        (&json!("s1"), &json!(true))
    );
    let named = |list: &str, key: &str, name: &str| {
        index[list]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one[key] == name)
    };
    for (target, file) in [
        ("agent", "agent.json"),
        ("host", "host.json"),
        ("config", "config.json"),
        ("members", "members.json"),
        ("raft", "raft.json"),
        ("raft", "autopilot.json"),
        ("metrics", "metrics.ndjson"),
        ("logs", "agent.log"),
    ] {
        let (there, missing) = (out.join(file).exists(), named("Missing", "Target", target));
        assert!(
            there || missing,
            "{file} is neither there nor said to be missing"
        );
        assert_eq!(there, named("Files", "Name", file), "{file}");
    }
    assert!(read("members.json").contains("\"s1\""));
    for file in std::fs::read_dir(&out).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for secret in [token, hook_token, gossip_key] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let log = read("agent.log");
    assert!(
        log.contains("/hook?token=<redacted>&from=<redacted>"),
        "{log}"
    );
    let about: Value = serde_json::from_str(&read("config.json")).unwrap();
    assert_eq!(about["NodeMeta"]["owner"], "<redacted>");
    assert!(index["Masked"].as_u64().unwrap() >= 3, "{index}");
}

/// `weft debug …` of a made-up agent, whose bundle stays a directory.
fn record(agent: &FakeAgent, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(WEFT);
    command
        .args(["debug", "-archive=false"])
        .arg(format!("-http-addr={}", agent.address()))
        .arg(format!("-output={}", out.display()))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end, which a test waits for as for anything else.
fn finish(w: &World, mut command: Command) -> Output {
    let mut running = command.spawn().unwrap();
    w.until("its end", || running.try_wait().unwrap());
    running.wait_with_output().unwrap()
}

fn index_of(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("index.json")).unwrap()).unwrap()
}

#[test]
fn a_recording_of_an_agent_that_hangs_ends_when_asked_to() {
    let w = World::servers(0);
    let hanging = FakeAgent::start(|_| None);
    let half = FakeAgent::start(|asked| {
        let about = json!({"Config": {"NodeName": "half"}}).to_string();
        asked
            .starts_with("GET /v1/agent/self")
            .then_some((200, about))
    });
    // Where it hangs, what is captured, the exit code, and what is missing then.
    for (nth, (agent, hangs_at, capture, code, missing)) in [
        (&hanging, "self", "agent", 1, None),
        (
            &half,
            "host",
            "agent,host,members,metrics",
            0,
            Some(json!(["host", "members", "metrics"])),
        ),
        (&half, "monitor", "agent,logs", 0, Some(json!([]))),
        (
            &half,
            "metrics",
            "agent,metrics",
            0,
            Some(json!(["metrics"])),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (out, path) = (
            w.path(&nth.to_string()),
            format!("GET /v1/agent/{hangs_at}"),
        );
        let before = agent.asked(&path);
        let capture = format!("-capture={capture}");
        let mut recording = record(agent, &out, &[&capture, "-duration=1h"])
            .spawn()
            .unwrap();
        w.until(&path, || (agent.asked(&path) > before).then_some(()));
        let asked_at = w.now();
        let process = rustix::process::Pid::from_child(&recording);
        rustix::process::kill_process(process, Signal::INT).unwrap();
        let status = w.until("its end", || recording.try_wait().unwrap());
        assert_eq!(status.code(), Some(code), "{hangs_at}");
        // The limit of a request is longer.
        assert!((w.now() - asked_at).as_secs() < 8, "{hangs_at}");
        assert_eq!(out.exists(), missing.is_some(), "{hangs_at}");
        let Some(missing) = missing else { continue };
        let index = index_of(&out);
        let names: Vec<_> = index["Missing"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["Target"])
            .collect();
        assert_eq!(
            (json!(names), &index["Interrupted"]),
            (missing, &json!(true))
        );
        assert!(out.join("agent.json").exists());
    }
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_without_end() {
    let w = World::servers(0);
    let agent = FakeAgent::start(|_| None);
    let output = finish(&w, record(&agent, &w.path("out"), &[]));
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    let told = said(&output);
    assert!(
        told.contains("/v1/agent/self: no answer within 10s"),
        "{told}"
    );
    assert!(!w.path("out").exists());

    let agent = FakeAgent::start(|asked| {
        let about = json!({"Config": {"NodeName": "half"}}).to_string();
        asked
            .starts_with("GET /v1/agent/self")
            .then_some((200, about))
    });
    let out = w.path("out");
    let arguments = ["-capture=logs,metrics", "-duration=1s", "-interval=1s"];
    let output = finish(&w, record(&agent, &out, &arguments));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let index = index_of(&out);
    let reasons = index["Missing"].to_string();
    for path in ["/v1/agent/monitor", "/v1/agent/metrics"] {
        assert!(
            reasons.contains(&format!("{path}: no answer within 10s")),
            "{reasons}"
        );
    }
}

#[test]
fn metrics_are_missing_only_if_no_sample_was_answered() {
    let w = World::servers(0);
    for (failing, missing) in [(1, false), (usize::MAX, true)] {
        let asked_for = AtomicUsize::new(0);
        let agent = FakeAgent::start(move |asked| {
            let failed = asked.starts_with("GET /v1/agent/metrics")
                && asked_for.fetch_add(1, Ordering::Relaxed) < failing;
            Some(if failed {
                (500, "not now".to_owned())
            } else {
                (200, "{}".to_owned())
            })
        });
        let out = w.path(if missing { "none" } else { "some" });
        let arguments = ["-capture=metrics", "-duration=4s", "-interval=1s"];
        let output = record(&agent, &out, &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let index = index_of(&out);
        let failed = index["MetricsFailed"].as_u64().unwrap();
        assert!(if missing { failed >= 1 } else { failed == 1 }, "{index}");
        assert!(
            index["MetricsFailedReason"]
                .as_str()
                .unwrap()
                .contains("not now"),
            "{index}"
        );
        assert_eq!(index["Missing"] != json!([]), missing, "{index}");
        assert_eq!(!out.join("metrics.ndjson").exists(), missing);
    }
}
