//! Saving the state to a file, and restoring it into the same cluster, an older and a younger one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use support::{Api, World, said};

#[test]
fn restoring_brings_back_what_was_saved() {
    let mut w = World::servers(3).start();
    let at = w.at(1);
    at.kv_put("color", "red");
    at.put("/v1/kv/flagged?flags=42", "x").unwrap().ok();
    let body = r#"{"Node":"web1","Address":"10.0.0.9","Service":{"Service":"web","Port":80},"Check":{"Name":"alive","Status":"passing"}}"#;
    at.put("/v1/catalog/register", body).unwrap().ok();
    let session = at
        .put(
            "/v1/session/create",
            r#"{"Name":"holder","LockDelay":"0s"}"#,
        )
        .unwrap()
        .ok()
        .json()["ID"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        at.put(&format!("/v1/kv/lock?acquire={session}"), "mine")
            .unwrap()
            .ok()
            .text(),
        "true"
    );

    let file = w.path("backup.snap");
    save(&w, w.follower(), &file);
    at.kv_put("color", "blue");
    at.kv_put("later", "yes");
    at.delete("/v1/kv/flagged").unwrap().ok();
    at.put("/v1/catalog/deregister", r#"{"Node":"web1"}"#)
        .unwrap()
        .ok();
    at.put(&format!("/v1/session/destroy/{session}"), "")
        .unwrap()
        .ok();
    let before = at.get("/v1/kv/color").unwrap().index();

    let watchers: Vec<_> = w
        .names()
        .into_iter()
        .map(|n| Watcher::start(w.at(n), "/v1/kv/color"))
        .collect();
    restore(&w, w.follower(), &file);
    for n in w.names() {
        let at = w.at(n);
        assert_eq!(at.kv_get("color", "").as_deref(), Some("red"), "s{n}");
        assert_eq!(at.kv_get("later", ""), None, "s{n}");
        assert_eq!(
            at.get("/v1/kv/flagged").unwrap().ok().json()[0]["Flags"],
            42
        );
        assert_eq!(
            at.get("/v1/kv/lock").unwrap().ok().json()[0]["Session"],
            session.as_str()
        );
        let web = at
            .get("/v1/health/service/web?passing")
            .unwrap()
            .ok()
            .json();
        assert_eq!(web[0]["Node"]["Node"], "web1", "{web}");
        assert!(
            at.get("/v1/kv/color").unwrap().index() > before,
            "the index never runs back"
        );
    }
    for watcher in watchers {
        watcher.wait_for(&w, "red");
    }
    // The restored state is as durable as any other.
    for n in w.names() {
        w.kill(n);
    }
    for n in w.names() {
        w.launch(n);
    }
    w.settle();
    assert_eq!(w.at(2).kv_get("color", "").as_deref(), Some("red"));
    assert_eq!(w.at(2).kv_get("later", ""), None);
    w.at(3).kv_put("later", "now");
}

#[test]
fn indexes_never_run_back_between_an_old_and_a_young_cluster() {
    let old = World::servers(1).start();
    let young = World::servers(3).start();
    for n in 0..300 {
        old.at(1).kv_put(&format!("filler/{n}"), "x");
    }
    old.at(1).kv_put("color", "old");
    young.at(1).kv_put("color", "young");
    let (of_old, of_young) = (old.path("old.snap"), young.path("young.snap"));
    save(&old, 1, &of_old);
    save(&young, 1, &of_young);

    for (world, file, expected) in [(&young, &of_old, "old"), (&old, &of_young, "young")] {
        let before = world.at(1).get("/v1/kv/color").unwrap().index();
        let watcher = Watcher::start(world.at(1), "/v1/kv/color");
        restore(world, 1, file);
        assert_eq!(world.at(1).kv_get("color", "").as_deref(), Some(expected));
        assert!(world.at(1).get("/v1/kv/color").unwrap().index() > before);
        watcher.wait_for(world, expected);
        world.at(1).kv_put("color", "afterwards");
        for n in world.names() {
            assert_eq!(
                world.at(n).kv_get("color", "").as_deref(),
                Some("afterwards")
            );
        }
    }
    // The servers of the young cluster are still those: a snapshot brings state, not members.
    let configuration = young
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
fn a_damaged_archive_is_refused_and_nothing_changes() {
    let w = World::servers(1).start();
    for n in 0..50 {
        w.at(1)
            .kv_put(&format!("filler/{n}"), "some value of some length");
    }
    w.at(1).kv_put("color", "saved");
    let file = w.path("backup.snap");
    save(&w, 1, &file);
    w.at(1).kv_put("color", "current");
    let index = w.at(1).get("/v1/kv/?recurse").unwrap().index();
    let good = std::fs::read(&file).unwrap();
    let mut damaged: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), Vec::new()),
        ("no archive".into(), b"this is no archive".to_vec()),
        ("half of it".into(), good[..good.len() / 2].to_vec()),
        (
            "the last byte is missing".into(),
            good[..good.len() - 1].to_vec(),
        ),
    ];
    for eighth in 1..8 {
        let mut bytes = good.clone();
        let at = bytes.len() * eighth / 8;
        // One bit may be lost on gzip: among the zeros of tar's padding another distance means the same bytes.
        for byte in &mut bytes[at..at + 4] {
            *byte ^= 0xff;
        }
        damaged.push((
            format!("four bytes at {at} of {} are turned over", bytes.len()),
            bytes,
        ));
    }
    for (what, bytes) in damaged {
        let answer = w.at(1).put("/v1/snapshot", &bytes).unwrap();
        assert!(
            answer.status >= 400,
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(!answer.text().is_empty(), "{what}: a reason");
        assert_eq!(
            w.at(1).kv_get("color", "").as_deref(),
            Some("current"),
            "{what}"
        );
        assert_eq!(
            w.at(1).get("/v1/kv/?recurse").unwrap().index(),
            index,
            "{what}: state is untouched"
        );
        let bad = w.path("bad.snap");
        std::fs::write(&bad, &bytes).unwrap();
        let refused = w.cli(1, &["snapshot", "restore", bad.to_str().unwrap()]);
        assert!(!refused.status.success(), "{what}: {}", said(&refused));
    }
    restore(&w, 1, &file);
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("saved"));
}

#[test]
fn an_archive_is_counted_by_kind_and_by_key() {
    let w = World::servers(1).start();
    for n in 0..20 {
        w.at(1).kv_put(&format!("app/web/{n}"), "x".repeat(1000));
        w.at(1).kv_put(&format!("app/db/{n}"), "y");
    }
    w.at(1).kv_put("top", "z");
    let file = w.path("counted.snap");
    save(&w, 1, &file);
    let path = file.to_str().unwrap();
    let inspect = |more: &[&str]| {
        let arguments = [&["snapshot", "inspect", "-o", "json"], more, &[path]].concat();
        let output = w.cli(1, &arguments);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let counts = |report: &serde_json::Value, list: &str| -> Vec<(String, u64)> {
        let all = report[list].as_array().unwrap().iter();
        all.map(|one| {
            (
                one["Name"].as_str().unwrap().to_owned(),
                one["Count"].as_u64().unwrap(),
            )
        })
        .collect()
    };
    let plain = inspect(&[]);
    assert!(
        counts(&plain, "Stats").contains(&("KVS".to_owned(), 41)),
        "{plain}"
    );
    assert!(
        counts(&plain, "Stats").contains(&("Node".to_owned(), 1)),
        "{plain}"
    );
    assert!(plain["StatsKV"].is_null());
    let named = |all: &[(&str, u64)]| -> Vec<(String, u64)> {
        all.iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    };
    // The largest first.
    let keys = |more: &[&str]| counts(&inspect(&[&["-kvdetails"], more].concat()), "StatsKV");
    assert_eq!(
        keys(&[]),
        named(&[("app/web", 20), ("app/db", 20), ("top", 1)])
    );
    assert_eq!(keys(&["-kvdepth=1"]), named(&[("app", 40), ("top", 1)]));
    assert_eq!(keys(&["-kvfilter=app/d"]), named(&[("app/db", 20)]));
    let alone = w.cli(1, &["snapshot", "inspect", "-kvdepth=1", path]);
    assert_eq!(alone.status.code(), Some(2), "{}", said(&alone));
}

fn save(w: &World, n: usize, file: &Path) {
    let saved = w.cli(n, &["snapshot", "save", file.to_str().unwrap()]);
    assert!(saved.status.success(), "{}", said(&saved));
    let inspected = w.cli(n, &["snapshot", "inspect", file.to_str().unwrap()]);
    assert!(inspected.status.success(), "{}", said(&inspected));
}

fn restore(w: &World, n: usize, file: &Path) {
    let restored = w.cli(n, &["snapshot", "restore", file.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", said(&restored));
}

/// Somebody who follows a key with blocking queries, as a Consul client does.
struct Watcher {
    stop: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Vec<(u64, String)>>>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Returns once it has its first answer, and so waits for the next.
    fn start(api: Api, path: &'static str) -> Self {
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(std::sync::Mutex::new(Vec::new())),
        );
        let first = api.get(&format!("{path}?raw")).unwrap().ok();
        let mut index = first.index();
        let thread = std::thread::spawn({
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let Ok(reply) = api.get(&format!("{path}?raw&index={index}&wait=5s")) else {
                        continue;
                    };
                    if reply.status == 200 {
                        assert!(
                            reply.index() >= index,
                            "the index ran back from {index} to {}",
                            reply.index()
                        );
                        index = reply.index();
                        seen.lock().unwrap().push((index, reply.text()));
                    }
                }
            }
        });
        Self { stop, seen, thread }
    }

    /// Waits until the watcher was shown `value`.
    fn wait_for(self, w: &World, value: &str) {
        w.until(&format!("the watcher to see {value:?}"), || {
            self.seen
                .lock()
                .unwrap()
                .iter()
                .any(|(_, text)| text == value)
                .then_some(())
        });
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no index ran back");
    }
}
