//! Config entries on three servers: written by the command line, seen everywhere, watched, refused
//! when they break others, kept over a restart and brought back by a snapshot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{Api, World, said};

const SPLIT: &str = r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":90,"ServiceSubset":"v1"},{"Weight":10,"ServiceSubset":"v2"}]}"#;
const SUBSETS: &str = r#"
Kind = "service-resolver"
name = "web"
DefaultSubset = "v1"
Subsets = {
  v1 = { Filter = "Service.Meta.version == v1" }
  v2 = { filter = "Service.Meta.version == v2" }
}
"#;

fn entry(at: &Api, path: &str) -> Option<Value> {
    let answer = at.get(&format!("/v1/config/{path}")).unwrap();
    (answer.status == 200).then(|| answer.json())
}

#[test]
fn entries_reach_every_server_and_outlive_them() {
    let mut w = World::servers(3).start();
    let (defaults, subsets, split) = (w.path("d.json"), w.path("r.hcl"), w.path("s.json"));
    let web = r#"{"kind":"service-defaults","name":"web","protocol":"http","mesh_gateway":{"mode":"local"}}"#;
    std::fs::write(&defaults, web).unwrap();
    std::fs::write(&subsets, SUBSETS).unwrap();
    std::fs::write(&split, SPLIT).unwrap();
    let [defaults, subsets, split] =
        [&defaults, &subsets, &split].map(|path| path.to_str().unwrap().to_owned());

    let early = w.cli(1, &["config", "write", &split]);
    assert_eq!(early.status.code(), Some(1));
    assert!(
        said(&early).contains("does not permit advanced routing or splitting behavior"),
        "{}",
        said(&early)
    );
    for (file, what) in [
        (&defaults, "service-defaults/web"),
        (&subsets, "service-resolver/web"),
        (&split, "service-splitter/web"),
    ] {
        let written = w.cli(w.follower(), &["config", "write", file]);
        assert_eq!(said(&written), format!("Config entry written: {what}\n"));
    }

    let seen: Vec<Value> = w
        .names()
        .into_iter()
        .map(|n| entry(&w.at(n), "service-resolver/web").unwrap())
        .collect();
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    assert_eq!(
        seen[0]["Subsets"]["v2"]["Filter"],
        "Service.Meta.version == v2"
    );

    let deleted = w.cli(
        1,
        &[
            "config",
            "delete",
            "-kind",
            "service-resolver",
            "-name",
            "web",
        ],
    );
    assert_eq!(deleted.status.code(), Some(1));
    assert!(
        said(&deleted).contains(r#"service "web" does not have a subset named "v1""#),
        "{}",
        said(&deleted)
    );

    w.kill(w.leader());
    let back = w
        .names()
        .into_iter()
        .find(|n| !w.running().contains(n))
        .unwrap();
    w.settle();
    w.restart(back);
    w.settle();
    for n in w.names() {
        let at = w.at(n);
        assert_eq!(
            entry(&at, "service-resolver/web").as_ref(),
            Some(&seen[0]),
            "s{n}"
        );
        assert_eq!(
            entry(&at, "service-splitter/web").unwrap()["Splits"][0]["Weight"],
            90,
            "s{n}"
        );
    }
    assert_eq!(
        said(&w.cli(1, &["config", "list", "-kind", "service-splitter"])),
        "web\n"
    );
}

#[test]
fn a_snapshot_brings_entries_back_and_wakes_their_watchers() {
    let w = World::servers(1).start();
    let at = w.at(1);
    let put = |text: &str| at.put("/v1/config", text).unwrap().ok();
    put(r#"{"Kind":"service-defaults","Name":"web","Protocol":"http"}"#);
    let file = w.path("backup.snap");
    let file = file.to_str().unwrap();
    let saved = w.cli(1, &["snapshot", "save", file]);
    assert!(saved.status.success(), "{}", said(&saved));
    put(r#"{"Kind":"service-defaults","Name":"web","Protocol":"grpc"}"#);
    put(r#"{"Kind":"service-router","Name":"web"}"#);
    let before = at.get("/v1/config/service-defaults/web").unwrap().index();
    let watcher = std::thread::spawn({
        let at = w.at(1).within(Duration::from_secs(60));
        move || {
            at.get(&format!(
                "/v1/config/service-defaults/web?index={before}&wait=50s"
            ))
        }
    });
    let restored = w.cli(1, &["snapshot", "restore", file]);
    assert!(restored.status.success(), "{}", said(&restored));
    let woken = watcher.join().unwrap().unwrap();
    assert_eq!(woken.json()["Protocol"], "http");
    assert!(woken.index() > before, "the index never runs back");
    assert_eq!(entry(&at, "service-router/web"), None);
}

#[test]
fn the_command_line_reads_compares_and_refuses() {
    let w = World::servers(1).start();
    let run = |arguments: &[&str]| {
        let output = w.cli(1, &[&["config"], arguments].concat());
        (output.status.code(), said(&output))
    };
    let file = w.path("entry.hcl");
    let path = file.to_str().unwrap();
    let write = |text: &str| std::fs::write(&file, text).unwrap();

    write("Kind = \"service-defaults\"\nName = \"web\"\nProtcol = \"http\"\n");
    let (code, text) = run(&["write", path]);
    assert_eq!(code, Some(1));
    assert!(text.contains("did you mean \"Protocol\"?"), "{text}");
    write("Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \n");
    let (code, text) = run(&["write", path]);
    assert!(code == Some(1) && text.contains("entry.hcl:"), "{text}");

    write("Kind = \"service-defaults\"\nName = \"web\"\nMeshGateway { Mode = \"remote\" }\n");
    assert_eq!(run(&["write", "-cas", path]).0, Some(0));
    let (code, text) = run(&["write", "-cas", path]);
    assert!(
        code == Some(1) && text.contains("Config entry not updated"),
        "{text}"
    );
    let shown: Value =
        serde_json::from_str(&run(&["read", "-kind", "service-defaults", "-name", "web"]).1)
            .unwrap();
    assert_eq!(shown["MeshGateway"]["Mode"], "remote");
    let index = format!("-modify-index={}", shown["ModifyIndex"]);
    assert_eq!(
        run(&[
            "delete",
            "-kind",
            "service-defaults",
            "-name",
            "web",
            &index
        ])
        .0,
        Some(2)
    );
    let (code, text) = run(&[
        "delete",
        "-kind",
        "service-defaults",
        "-name",
        "web",
        "-cas",
        "-modify-index=1",
    ]);
    assert!(code == Some(1) && text.contains("not deleted"), "{text}");
    assert_eq!(
        run(&[
            "delete",
            "-kind",
            "service-defaults",
            "-name",
            "web",
            "-cas",
            &index
        ])
        .0,
        Some(0)
    );
    let (code, text) = run(&["read", "-kind", "service-defaults", "-name", "web"]);
    assert!(
        code == Some(3) && text.contains("Config entry not found"),
        "{code:?} {text}"
    );
    let (_, text) = run(&["list", "-kind", "service-defaults", "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        serde_json::json!([])
    );
}
