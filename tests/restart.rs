//! One server: what it is told is there again after a restart, and `-dev` to try it out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use support::{Api, WEFT, World};

#[test]
fn everything_is_there_again_after_a_restart() {
    for backend in ["wal", "sled"] {
        let mut w = World::servers(1)
            .with(format!("-hcl=raft_logstore {{ backend = \"{backend}\" }}"))
            .start();
        let at = w.at(1);
        at.put("/v1/kv/color?flags=7", "red").unwrap().ok();
        let id = at
            .put("/v1/session/create", r#"{"Name":"holder"}"#)
            .unwrap()
            .ok()
            .json()["ID"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            at.put(&format!("/v1/kv/lock?acquire={id}"), "held")
                .unwrap()
                .ok()
                .text(),
            "true"
        );
        let service = r#"{"Name":"web","ID":"web1","Port":80,"Tags":["v1"],"Meta":{"a":"b"},"Check":{"CheckID":"alive","TTL":"10m"}}"#;
        at.put("/v1/agent/service/register", service).unwrap().ok();
        at.put("/v1/agent/check/pass/alive?note=fine", "")
            .unwrap()
            .ok();
        let external =
            r#"{"Node":"db1","Address":"10.0.0.7","Service":{"Service":"db","Port":5432}}"#;
        at.put("/v1/catalog/register", external).unwrap().ok();
        w.until("the service to pass", || {
            passing(&w.at(1), "web").then_some(())
        });
        let before = (
            rows(&at, "/v1/kv/?recurse"),
            rows(&at, "/v1/session/list"),
            rows(&at, "/v1/catalog/service/db"),
        );
        let index = at.get("/v1/kv/?recurse").unwrap().index();

        for kill in [true, false] {
            if kill {
                w.kill(1);
            } else {
                w.stop(1);
            }
            w.restart(1);
            let at = w.at(1);
            let after = (
                rows(&at, "/v1/kv/?recurse"),
                rows(&at, "/v1/session/list"),
                rows(&at, "/v1/catalog/service/db"),
            );
            assert_eq!(before, after, "{backend}, killed: {kill}");
            assert!(
                at.get("/v1/kv/?recurse").unwrap().index() >= index,
                "the index never runs back"
            );
            let local = at.get("/v1/agent/services").unwrap().ok().json();
            assert_eq!(
                (
                    &local["web1"]["Port"],
                    &local["web1"]["Tags"][0],
                    &local["web1"]["Meta"]["a"]
                ),
                (&80.into(), &"v1".into(), &"b".into())
            );
            let check = at.get("/v1/agent/checks").unwrap().ok().json()["alive"].clone();
            assert_eq!(
                (&check["Status"], &check["Output"]),
                (&"passing".into(), &"fine".into()),
                "a TTL's state is kept: {check}"
            );
            w.until("the service to pass in the catalog", || {
                passing(&w.at(1), "web").then_some(())
            });
            let rival = at.put("/v1/session/create", "").unwrap();
            if rival.status == 200 {
                let rival = rival.json()["ID"].as_str().unwrap().to_owned();
                assert_eq!(
                    at.put(&format!("/v1/kv/lock?acquire={rival}"), "mine")
                        .unwrap()
                        .ok()
                        .text(),
                    "false",
                    "the lock is still held"
                );
                at.put(&format!("/v1/session/destroy/{rival}"), "")
                    .unwrap()
                    .ok();
            }
        }
    }
}

#[test]
fn dev_serves_at_once_and_keeps_nothing() {
    let w = World::servers(1);
    let api = w.at(1);
    for _ in 0..2 {
        let mut dev = Dev::start(&w);
        w.until("-dev to serve", || {
            api.get("/v1/kv/color?consistent")
                .ok()
                .filter(|reply| reply.status == 404)
        });
        api.kv_put("color", "red");
        assert_eq!(api.kv_get("color", "").as_deref(), Some("red"));
        assert!(
            TcpStream::connect(format!("{}:8600", w.address(1))).is_ok(),
            "DNS is on"
        );
        dev.0.kill().unwrap();
        dev.0.wait().unwrap();
    }
}

/// A `weft agent -dev`, gone when the test is.
struct Dev(Child);

impl Dev {
    fn start(w: &World) -> Self {
        let mut command = Command::new(WEFT);
        command
            .args(["agent", "-dev"])
            .arg(format!("-bind={}", w.address(1)))
            .arg(format!("-client={}", w.address(1)));
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rows(at: &Api, path: &str) -> serde_json::Value {
    at.get(path).unwrap().ok().json()
}

fn passing(at: &Api, service: &str) -> bool {
    let rows = at
        .get(&format!("/v1/health/service/{service}?passing"))
        .unwrap()
        .ok()
        .json();
    rows.as_array().is_some_and(|rows| rows.len() == 1)
}
