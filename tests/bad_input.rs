//! What should not be, and is: each is named, nothing hangs, nothing is taken away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use support::keys::init;
use support::{Api, World};
use weft_identity::pki;
use weft_proto::ids::UnixMillis;

/// The sum of a metric's rows; none yet is nothing.
fn metric(at: &Api, name: &str) -> Option<f64> {
    let reply = at.get("/v1/agent/metrics?format=prometheus").ok()?;
    let text = reply.text();
    let rows = text
        .lines()
        .filter(|line| line.split([' ', '{']).next() == Some(name));
    let values = rows.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Some(values.sum())
}

fn names(at: &Api, node: &str) -> Option<Vec<String>> {
    let reply = at.get(&format!("/v1/catalog/node/{node}")).ok()?;
    let services = reply.json()["Services"].as_object()?.clone();
    Some(services.keys().cloned().collect())
}

#[test]
fn an_agent_that_lost_its_store_adds_and_removes_nothing() {
    let mut w = World::servers(1).clients(1);
    w.argument(11, "-hcl=leave_on_terminate = false");
    let mut w = w.start();
    let register = |w: &World, name: &str| {
        let service = format!(r#"{{"Name": "{name}", "Port": 80}}"#);
        let reply = w.at(11).put("/v1/agent/service/register", service);
        reply.unwrap().ok();
    };
    let has = |w: &World, expected: &[&str]| {
        w.until(&format!("the catalog to have {expected:?}"), || {
            (names(&w.at(1), "c11")? == expected).then_some(())
        });
    };
    register(&w, "web");
    register(&w, "db");
    has(&w, &["db", "web"]);
    // Once the agent and the catalog agree, the store counts as one that may be lost.
    w.until("the agent to be in sync", || {
        let mark = w.data_dir(11).join("local-store").exists();
        (mark && metric(&w.at(11), "weft_agent_out_of_sync")? == 0.0).then_some(())
    });
    w.stop(11);
    std::fs::remove_dir_all(w.data_dir(11).join("registrations")).unwrap();
    // The loss is remembered: over any number of restarts.
    for (n, added) in [(1, "api"), (2, "cache")] {
        w.launch(11);
        w.wait_passing(11);
        register(&w, added);
        w.until("what was added to be in the catalog", || {
            let names = names(&w.at(1), "c11")?;
            names.contains(&added.to_owned()).then_some(())
        });
        w.until("what it does not know to be held", || {
            (metric(&w.at(11), "weft_agent_held_entries")? >= 2.0).then_some(())
        });
        let kept = names(&w.at(1), "c11").unwrap();
        for name in ["db", "web", "api"] {
            assert!(kept.iter().any(|one| one == name), "{n}: {name}: {kept:?}");
        }
        w.stop(11);
    }
}

#[test]
fn an_agent_of_another_datacenter_is_told_so_on_both_sides() {
    let mut w = World::servers(1).start();
    w.add_client(11);
    w.argument(11, "-datacenter=dc2");
    w.launch(11);
    w.until("the agent to say why it is alone", || {
        let log = w.log(11);
        let told = log
            .lines()
            .find(|line| line.contains("belongs to datacenter"))?;
        (told.contains("dc1") && told.contains("dc2")).then_some(())
    });
    w.until("the server to count it", || {
        (metric(&w.at(1), "weft_gossip_foreign_total")? > 0.0).then_some(())
    });
    // It answers that there is nobody, at once, and the pool has not taken it in.
    let alone = w.at(11).get("/v1/kv/color").unwrap();
    assert_eq!(alone.status, 500, "{}", alone.text());
    assert!(
        alone.text().contains("No known Consul servers"),
        "{}",
        alone.text()
    );
    let members = w.at(1).get("/v1/agent/members").unwrap().ok().json();
    assert_eq!(members.as_array().unwrap().len(), 1, "{members}");
}

#[test]
fn a_server_that_does_not_answer_is_named_and_another_asked() {
    let w = World::servers(3).clients(1).start();
    w.at(11).kv_put("color", "red");
    let about = w.at(11).get("/v1/agent/self").unwrap().ok().json();
    let asked = about["Stats"]["consul"]["current_server"].as_str().unwrap();
    let silent = (1..=3)
        .find(|n| asked == format!("{}:8300", w.address(*n)))
        .unwrap();
    w.pause(silent);
    w.until("the agent to answer", || {
        let reply = w.at(11).get("/v1/kv/color?stale").ok()?;
        (reply.status == 200).then_some(())
    });
    w.until("the server to be named", || {
        let log = w.log(11);
        let mut lines = log.lines();
        lines
            .any(|line| line.contains("rpc.no_answer") && line.contains(asked))
            .then_some(())
    });
    assert!(metric(&w.at(11), "weft_rpc_client_retries_total").unwrap() >= 1.0);
    w.resume(silent);
    w.settle();
    assert_eq!(w.at(11).kv_get("color", "").as_deref(), Some("red"));
}

/// A certificate of the year 2001, and its key.
fn run_out(at: &Path) -> String {
    let then = UnixMillis(1_000_000_000_000);
    let ca = pki::create_ca(&pki::CaRequest::new("consul"), then).unwrap();
    let request = pki::CertRequest::new(pki::CertKind::Cli, "dc1", "consul");
    let made = pki::create_cert(&request, &ca, (at, at), then).unwrap();
    let (certificate, key) = (at.with_extension("pem"), at.with_extension("key"));
    std::fs::write(&certificate, made.certificate).unwrap();
    std::fs::write(&key, made.key.reveal()).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    format!(
        "cert_file = \"{}\" key_file = \"{}\"",
        certificate.display(),
        key.display()
    )
}

#[test]
fn tls_that_cannot_work_ends_the_start_with_the_reason() {
    let mut w = World::servers(0);
    let (keys, other) = (w.path("keys"), w.path("other"));
    init(&keys, &[("s1", "127.0.0.1")]);
    init(&other, &[("s1", "127.0.0.1")]);
    let file = |dir: &Path, name: &str| format!("\"{}\"", dir.join(name).display());
    let ca = file(&keys, "consul-agent-ca.pem");
    let certificate = file(&keys, "dc1-cli-consul-0.pem");
    let key = file(&keys, "dc1-cli-consul-0-key.pem");
    let garbage = w.path("garbage.pem");
    std::fs::write(&garbage, "not a certificate").unwrap();
    let garbage = format!("\"{}\"", garbage.display());
    for (n, said_of_tls, words) in [
        (
            11,
            format!("cert_file = \"/nowhere/c.pem\" key_file = {key}"),
            vec!["cert_file", "/nowhere/c.pem"],
        ),
        (
            12,
            format!(
                "cert_file = {certificate} key_file = {}",
                file(&other, "dc1-cli-consul-0-key.pem")
            ),
            vec!["dc1-cli-consul-0.pem", "dc1-cli-consul-0-key.pem", "key"],
        ),
        (
            13,
            format!("ca_file = {garbage}"),
            vec!["ca_file", "garbage.pem"],
        ),
        (
            14,
            "verify_outgoing = true".into(),
            vec!["verify_outgoing", "ca_file"],
        ),
        (
            15,
            format!("ca_file = {ca} cert_file = {certificate}"),
            vec!["cert_file", "key_file"],
        ),
        (
            16,
            "ca_path = \"/nowhere\"".into(),
            vec!["ca_path", "/nowhere"],
        ),
        (
            17,
            run_out(&w.path("old")),
            vec!["cert_file", "old.pem", "expired"],
        ),
    ] {
        w.add_client(n);
        w.argument(
            n,
            format!("-hcl=tls {{ internal_rpc {{ {said_of_tls} }} }}"),
        );
        let (status, told) = w.run_to_end(n);
        assert_eq!(status.code(), Some(78), "{said_of_tls}: {told}");
        for word in words {
            assert!(
                told.contains(word),
                "{said_of_tls}: {word:?} is missing: {told}"
            );
        }
    }
}
