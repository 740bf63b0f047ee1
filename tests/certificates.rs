//! The mesh's certificates: one root on all servers, leaves at every agent, rotation with nobody noticing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use support::{Api, World, said, times};
use weft_identity::ca::{TrustDomain, prove};
use weft_proto::clock::{Clock as _, SystemClock};

fn roots(at: &Api) -> Value {
    at.get("/v1/agent/connect/ca/roots").unwrap().ok().json()
}

fn leaf(at: &Api, service: &str) -> Value {
    let path = format!("/v1/agent/connect/ca/leaf/{service}");
    at.get(&path).unwrap().ok().json()
}

/// Who a leaf proves its holder to be, for one who knows these roots.
fn proven(leaf: &Value, roots: &Value) -> Result<String, String> {
    let domain = TrustDomain::parse(roots["TrustDomain"].as_str().unwrap()).unwrap();
    let pems: Vec<&str> = roots["Roots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|root| root["RootCert"].as_str().unwrap())
        .collect();
    let chain = leaf["CertPEM"].as_str().unwrap();
    let peer = prove(&domain, &pems, chain, SystemClock::new().wall());
    peer.map(|peer| format!("{} {}", peer.id, peer.serial))
        .map_err(|why| why.to_string())
}

/// Waits until the CA has a root everywhere.
fn ready(w: &World, at: &Api) -> Value {
    w.until("a root of the mesh", || {
        let answer = at.get("/v1/agent/connect/ca/roots").ok()?;
        let roots = (answer.status == 200).then(|| answer.json())?;
        (!roots["Roots"].as_array()?.is_empty()).then_some(roots)
    })
}

#[test]
fn a_leaf_is_proven_by_the_roots_of_any_agent_and_outlives_servers_and_restarts() {
    let mut w = World::servers(3).clients(1).start();
    let agent = w.at(11);
    let known = ready(&w, &agent);
    let first = leaf(&agent, "web");
    let who = proven(&first, &known).unwrap();
    let uri = first["ServiceURI"].as_str().unwrap();
    assert_eq!(
        who,
        format!("{uri} {}", first["SerialNumber"].as_str().unwrap())
    );
    assert!(uri.ends_with("/ns/default/dc/dc1/svc/web"), "{uri}");
    // All who ask share one; other services and other agents have their own.
    assert_eq!(leaf(&agent, "web")["SerialNumber"], first["SerialNumber"]);
    assert_ne!(leaf(&agent, "db")["SerialNumber"], first["SerialNumber"]);
    assert_ne!(leaf(&w.at(1), "web")["SerialNumber"], first["SerialNumber"]);
    for n in [1, 2, 3] {
        let there = roots(&w.at(n));
        assert_eq!(there["ActiveRootID"], known["ActiveRootID"], "s{n}");
    }
    let refused = agent.get("/v1/agent/connect/ca/leaf/a%20b").unwrap();
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.header("x-weft-reason"),
        Some("identity.spiffe.segment")
    );

    // No key lies in clear text in what the servers keep or save.
    let saved = w.path("state.snap");
    let output = w.cli(1, &["snapshot", "save", saved.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    for n in [1, 2, 3] {
        w.kill(n);
    }
    assert_eq!(leaf(&agent, "web"), first);
    w.stop(11);
    w.launch(11);
    let again = w.until("the leaf after the restart", || {
        let answer = agent.get("/v1/agent/connect/ca/leaf/web").ok()?;
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(again["SerialNumber"], first["SerialNumber"]);
    assert_eq!(again["PrivateKeyPEM"], first["PrivateKeyPEM"]);
    let there = w.until("the roots after the restart", || {
        let answer = agent.get("/v1/agent/connect/ca/roots").ok()?;
        (answer.status == 200).then(|| answer.json())
    });
    proven(&again, &there).unwrap();
}

#[test]
fn roots_rotate_while_leaves_are_asked_for() {
    let w = World::servers(3).clients(1).start();
    let agent = w.at(11);
    let before = ready(&w, &agent);
    let config =
        json!({"Provider": "consul", "Config": {"LeafCertTTL": "1h", "CSRMaxPerSecond": 0}});
    let put = agent.put("/v1/connect/ca/configuration", config.to_string());
    put.unwrap().ok();
    let rotations = times(2, 6);
    let done = AtomicBool::new(false);
    let serials = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut serials, mut asked) = (BTreeSet::new(), 0);
            while !done.load(Ordering::Relaxed) || asked < 20 {
                let leaf = leaf(&agent, &format!("svc-{asked}"));
                // Whoever knows only the very first root accepts the newest leaf.
                proven(&leaf, &before).unwrap();
                assert!(serials.insert(leaf["SerialNumber"].as_str().unwrap().to_owned()));
                asked += 1;
            }
            serials
        });
        for n in 0..rotations {
            let drill = w.cli(1, &["ca", "drill"]);
            assert!(said(&drill).contains("proven: "), "{}", said(&drill));
            let rotated = w.cli(w.leader(), &["ca", "rotate"]);
            assert!(rotated.status.success(), "{}", said(&rotated));
            w.until("the new root at the agent", || {
                let count = roots(&agent)["Roots"].as_array()?.len();
                (count == n as usize + 2).then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert!(serials.len() >= 20);
    let after = roots(&agent);
    assert_ne!(after["ActiveRootID"], before["ActiveRootID"]);
    // The leaf that was there is made anew under the newest root, soon and by itself.
    let index = after["Roots"].as_array().unwrap();
    let active = index.iter().filter(|root| root["Active"] == true).count();
    assert_eq!(active, 1);
    let status = w.cli(1, &["ca", "status"]);
    assert!(
        said(&status).contains("Trust domain: "),
        "{}",
        said(&status)
    );
    // Without a bridge, who knows only older roots refuses.
    let forced = w.cli(1, &["ca", "rotate", "-force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    let leaf = leaf(&w.at(2), "after-force");
    assert!(
        proven(&leaf, &before)
            .unwrap_err()
            .contains("not signed by a root")
    );
}

#[test]
fn leaves_are_renewed_by_themselves_and_limits_have_names() {
    let w = World::servers(1).start();
    let at = w.at(1);
    ready(&w, &at);
    let short = json!({"Config": {"LeafCertTTL": "6s", "IntermediateCertTTL": "1h", "RootCertTTL": "87600h", "UnsafeShortTTL": true}});
    at.put("/v1/connect/ca/configuration", short.to_string())
        .unwrap()
        .ok();
    let mut seen = leaf(&at, "web");
    let known = roots(&at);
    for _ in 0..times(3, 100) {
        let index = seen["ModifyIndex"].as_u64().unwrap();
        let next = w.until("the next leaf", || {
            let path = format!("/v1/agent/connect/ca/leaf/web?index={index}&wait=30s");
            let next = at.get(&path).ok()?.ok().json();
            (next["ModifyIndex"].as_u64()? > index).then_some(next)
        });
        assert_ne!(next["SerialNumber"], seen["SerialNumber"]);
        proven(&next, &known).unwrap();
        seen = next;
    }
    let slow = json!({"Config": {"CSRMaxPerSecond": 0.001}});
    at.put("/v1/connect/ca/configuration", slow.to_string())
        .unwrap()
        .ok();
    let refused = w.until("a refusal", || {
        let answer = at
            .get(&format!(
                "/v1/agent/connect/ca/leaf/n{}",
                w.now().as_nanos()
            ))
            .ok()?;
        (answer.status == 429).then_some(answer)
    });
    assert_eq!(refused.header("x-weft-reason"), Some("ca.csr.rate"));
    assert!(
        refused.text().contains("CSRMaxPerSecond"),
        "{}",
        refused.text()
    );
}
