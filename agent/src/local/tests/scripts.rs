//! Script checks with real processes, and who may have them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::world::{API, TokioClock, check, node, open, service, until};
use crate::local::run_result::RunResult;
use crate::local::{
    CheckKind, Local, LocalConfig, LocalError, ScriptChecks, Source, Status, script_check,
};

const LONG: Duration = Duration::from_secs(60);

async fn run(script: &str, limit: Duration, output_max: usize) -> RunResult {
    let body = json!({"Name": "c", "Args": ["/bin/sh", "-c", script], "Interval": "1s"});
    let CheckKind::Script(check) = check(body).kind else {
        panic!("not a script check")
    };
    script_check::run(&check, limit, output_max, ()).await
}

#[tokio::test]
async fn exit_codes_are_judged_and_output_is_kept_in_order() {
    let cases = [
        ("echo a; echo b >&2; echo c", Status::Passing, "a\nb\nc\n"),
        ("echo hm; exit 1", Status::Warning, "hm\n"),
        ("exit 2", Status::Critical, ""),
        ("exit 255", Status::Critical, ""),
        (
            "kill -9 $$",
            Status::Critical,
            "Captured 8 of 18 bytes\n...\nsignal 9",
        ),
        // Nothing to read, and the agent's own environment.
        ("cat; test -n \"$PATH\"", Status::Passing, ""),
        (
            "printf 123456789",
            Status::Passing,
            "Captured 8 of 9 bytes\n...\n23456789",
        ),
    ];
    for (script, status, output) in cases {
        let expected = RunResult::of(status, output.to_owned());
        assert_eq!(run(script, LONG, 8).await, expected, "{script}");
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_is_critical() {
    let body = json!({"Name": "c", "Args": ["/nonexistent/probe"], "Interval": "1s"});
    let CheckKind::Script(check) = check(body).kind else {
        panic!("not a script check")
    };
    let result = script_check::run(&check, LONG, 8, ()).await;
    assert_eq!(result.status, Status::Critical);
    assert!(
        result
            .output
            .starts_with("cannot run \"/nonexistent/probe\": No such file")
    );
}

/// Whether any process has `word` in its command line.
fn runs(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .split('\0')
            .any(|arg| arg == word)
    })
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_all_it_started() {
    // A child in the background, and one that holds the pipe after the shell has exited.
    for (n, script) in [
        "sleep 864N & echo hello; sleep 864N",
        "echo hello; sleep 864N &",
    ]
    .iter()
    .enumerate()
    {
        let word = format!("864{n}{}", std::process::id());
        let result = run(
            &script.replace("864N", &word),
            Duration::from_millis(500),
            64,
        )
        .await;
        let told = "Timed out (500ms) running check\n\nhello\n";
        assert_eq!(result, RunResult::timed_out(told.to_owned()));
        until("nothing is left", || !runs(&word)).await;
    }
}

#[tokio::test]
async fn a_run_that_is_cut_off_leaves_nothing_behind() {
    let word = format!("8650{}", std::process::id());
    let script = format!("sleep {word} & sleep {word}");
    let task = tokio::spawn(async move { run(&script, LONG, 64).await });
    until("it runs", || runs(&word)).await;
    task.abort();
    until("nothing is left", || !runs(&word)).await;
}

#[tokio::test]
async fn a_command_that_floods_output_is_ended_and_leaves_its_tail() {
    let result = run("yes", LONG, 16).await;
    assert_eq!((result.status, result.timed_out), (Status::Critical, false));
    let head = "Killed: wrote more than 64 MiB of output\n\nCaptured 16 of 67";
    assert!(result.output.starts_with(head), "{}", result.output);
    assert!(result.output.ends_with("\ny\ny\n") && result.output.len() < 120);
}

fn open_with(script_checks: ScriptChecks, dir: Option<&std::path::Path>) -> Local {
    let config = LocalConfig {
        script_checks,
        data_dir: dir.map(Into::into),
        ..LocalConfig::in_memory(node())
    };
    Local::open(config, Arc::new(TokioClock::new())).unwrap()
}

#[tokio::test]
async fn commands_are_refused_unless_enabled_and_the_text_names_the_knob() {
    let scripts = [
        json!({"Name": "c", "Args": ["true"], "Interval": "1s"}),
        json!({"Name": "c", "DockerContainerID": "x", "Args": ["true"], "Interval": "1s"}),
    ];
    let cases = [
        (
            ScriptChecks::Nobody,
            Source::Api,
            Some(LocalError::RemoteScriptsDisabled),
        ),
        (
            ScriptChecks::Nobody,
            Source::File,
            Some(LocalError::ScriptsDisabled),
        ),
        (
            ScriptChecks::Files,
            Source::Api,
            Some(LocalError::RemoteScriptsDisabled),
        ),
        (ScriptChecks::Files, Source::File, None),
        (ScriptChecks::Everybody, Source::Api, None),
        (ScriptChecks::Everybody, Source::File, None),
    ];
    for (allowed, source, refused) in cases {
        for body in &scripts {
            let local = open_with(allowed, None);
            let result = local.register_check(check(body.clone()), source).await;
            assert_eq!(result.err(), refused, "{allowed:?} {source:?}");
            let web = service(json!({"Name": "web", "Check": body}));
            let options = crate::local::RegisterOptions { source, ..API };
            let result = local.register_service(web, options).await;
            assert_eq!(result.err(), refused, "{allowed:?} {source:?}");
            assert_eq!(local.services().is_empty(), refused.is_some());
        }
    }
    for error in [
        LocalError::ScriptsDisabled,
        LocalError::RemoteScriptsDisabled,
    ] {
        assert!(
            error.to_string().contains("'enable_script_checks'"),
            "{error}"
        );
    }
    // What runs no command needs no leave.
    let local = open(None);
    let systemd = json!({"Name": "c", "OSService": "cron", "Interval": "1s"});
    local
        .register_check(check(systemd), Source::Api)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_saved_command_is_not_run_once_commands_are_off() {
    let dir = tempfile::tempdir().unwrap();
    let saved = json!({"Name": "c", "Args": ["true"], "Interval": "1s"});
    let local = open_with(ScriptChecks::Everybody, Some(dir.path()));
    local
        .register_check(check(saved), Source::Api)
        .await
        .unwrap();
    drop(local);
    assert_eq!(
        open_with(ScriptChecks::Files, Some(dir.path()))
            .counts()
            .checks,
        0
    );
    assert_eq!(
        open_with(ScriptChecks::Everybody, Some(dir.path()))
            .counts()
            .checks,
        1
    );
}

#[tokio::test]
async fn script_checks_run_and_are_counted() {
    let local = open_with(ScriptChecks::Everybody, None);
    local.start_checks(None);
    let warns =
        json!({"Name": "c", "Args": ["/bin/sh", "-c", "echo so so; exit 1"], "Interval": "1s"});
    local
        .register_check(check(warns), Source::Api)
        .await
        .unwrap();
    until("it warns", || local.counts().warning == 1).await;
    let record = local.check("c").unwrap().record;
    assert_eq!(
        (record.r#type.as_str(), record.output.as_str()),
        ("script", "so so\n")
    );
    let mut registry = prometheus_client::registry::Registry::default();
    local.metrics().register(&mut registry, &local);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "weft_agent_check_runs_total{type=\"script\",outcome=\"warning\"} ",
        "weft_agent_check_duration_seconds_count{type=\"script\"} ",
        "weft_agent_checks_waiting 0",
    ] {
        assert!(text.contains(line), "{text} lacks {line}");
    }
}

#[tokio::test]
async fn commands_beyond_the_bound_wait_and_are_counted() {
    let local = open_with(ScriptChecks::Everybody, None);
    local.start_checks(None);
    let word = format!("8660{}", std::process::id());
    for n in 0..70 {
        let sleeps = json!({"Name": format!("c{n}"), "Args": ["sleep", word], "Interval": "1s"});
        local
            .register_check(check(sleeps), Source::Api)
            .await
            .unwrap();
    }
    let waiting = || {
        let mut registry = prometheus_client::registry::Registry::default();
        local.metrics().register(&mut registry, &local);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.contains("weft_agent_checks_waiting 6\n")
    };
    until("64 run and 6 wait", waiting).await;
    // Nothing else waits for them.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp =
        json!({"Name": "tcp", "TCP": listener.local_addr().unwrap().to_string(), "Interval": "1s"});
    local.register_check(check(tcp), Source::Api).await.unwrap();
    until("the other passes", || local.counts().passing == 1).await;
    for n in 0..70 {
        local.deregister_check(&format!("c{n}")).await.unwrap();
    }
    until("nothing is left", || !runs(&word)).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_checks_begin_spread_over_their_interval() {
    let config = LocalConfig {
        script_checks: ScriptChecks::Everybody,
        // Refused before anything is asked of the system, whose time is not the test's.
        docker_host: "tcp://nowhere".to_owned(),
        ..LocalConfig::in_memory(node())
    };
    let local = Local::open(config, Arc::new(TokioClock::new())).unwrap();
    local.start_checks(None);
    for n in 0..1_000 {
        let body = json!({"Name": format!("c{n}"), "DockerContainerID": "x", "Args": ["true"], "Interval": "100s"});
        local
            .register_check(check(body), Source::Api)
            .await
            .unwrap();
    }
    let ran = || {
        let checks = local.checks();
        checks
            .values()
            .filter(|check| !check.record.output.is_empty())
            .count()
    };
    for tenth in 1..=9 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let expected = tenth * 100;
        assert!(
            ran().abs_diff(expected) < 60,
            "{} ran in {tenth} tenths",
            ran()
        );
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ran(), 1_000);
}
