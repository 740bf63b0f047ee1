//! Keys and certificates: `weft init` makes a cluster that speaks TLS only, and lets nobody else in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::Path;
use std::process::Command;

use support::keys::{gossip_key, init, secured};
use support::{WEFT, said};

#[test]
fn servers_with_the_keys_of_weft_init_form_a_cluster_and_answer_https() {
    let w = secured(|config| config);
    w.at(2).kv_put("color", "red");
    let (keys, address) = (w.path("keys"), format!("https://{}:8501", w.address(3)));
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(WEFT);
        command
            .args(arguments)
            .current_dir(&keys)
            .env_clear()
            .env("CONSUL_HTTP_ADDR", &address);
        command.output().unwrap()
    };
    let with_all = [
        "kv",
        "get",
        "-ca-file=consul-agent-ca.pem",
        "-client-cert=dc1-cli-consul-0.pem",
        "-client-key=dc1-cli-consul-0-key.pem",
        "color",
    ];
    let told = ask(&with_all);
    assert_eq!(
        String::from_utf8_lossy(&told.stdout).trim(),
        "red",
        "{}",
        said(&told)
    );
    let without_certificate = ask(&["kv", "get", "-ca-file=consul-agent-ca.pem", "color"]);
    assert!(
        !without_certificate.status.success(),
        "HTTPS asks for a certificate: {}",
        said(&without_certificate)
    );
    let without_ca = ask(&[
        "kv",
        "get",
        "-client-cert=dc1-cli-consul-0.pem",
        "-client-key=dc1-cli-consul-0-key.pem",
        "color",
    ]);
    assert!(
        !without_ca.status.success(),
        "nobody trusts an unknown CA: {}",
        said(&without_ca)
    );
}

#[test]
fn who_lacks_the_keys_stays_outside_and_is_told_why() {
    let mut w = secured(|config| config);
    w.at(1).kv_put("color", "red");
    let key = gossip_key(&w.path("keys").join("weft.hcl"));
    w.add(4);
    let address = w.address(4);
    let other = w.path("other-keys");
    init(&other, &[("s4", &address)]);
    let other_key = gossip_key(&other.join("weft.hcl"));

    let of_other_ca = std::fs::read_to_string(other.join("weft.hcl"))
        .unwrap()
        .replace(&other_key, &key);
    std::fs::write(other.join("weft.hcl"), of_other_ca).unwrap();
    let clear = format!("-hcl=encrypt = \"{key}\"");
    let strange_gossip = format!("-hcl=encrypt = \"{other_key}\"");
    let other_ca = format!("-config-dir={}", other.display());
    for (what, arguments, words) in [
        ("no certificate", vec![clear], &["TLS", "tls"][..]),
        (
            "a certificate of another CA",
            vec![other_ca],
            &["certificate", "UnknownIssuer", "UnknownCA"],
        ),
        (
            "another gossip key",
            vec![strange_gossip],
            &["key", "encrypt"],
        ),
        ("no gossip key", vec![], &["key", "encrypt"]),
    ] {
        w.add(4);
        let data_dir = w.path(&format!("outside {what}"));
        w.keep_data_in(4, &data_dir);
        for argument in arguments {
            w.argument(4, argument);
        }
        let before = w.log(4).len();
        w.launch(4);
        w.until(&format!("{what}: the reason"), || {
            let log = w.log(4)[before..].to_owned();
            let reasons: Vec<_> = log
                .lines()
                .filter(|line| {
                    line.contains("no cluster yet")
                        || line.contains("nobody to join")
                        || line.contains("[WARN]")
                        || line.contains("[ERROR]")
                })
                .collect();
            let told = reasons
                .iter()
                .find(|line| words.iter().any(|word| line.contains(word)))?;
            println!("{what}: {told}");
            Some(())
        });
        let configuration = w
            .at(1)
            .get("/v1/operator/raft/configuration")
            .unwrap()
            .ok()
            .json();
        assert_eq!(
            configuration["Servers"].as_array().unwrap().len(),
            3,
            "{what}: {configuration}"
        );
        let outside = w.at(4).get("/v1/kv/color?stale");
        assert!(
            !outside.is_ok_and(|reply| reply.status == 200),
            "{what}: it has no data"
        );
        w.kill(4);
    }
    assert_eq!(w.at(2).kv_get("color", "").as_deref(), Some("red"));
}

#[test]
fn an_agent_without_the_server_role_needs_a_certificate_of_any_kind() {
    let mut w = secured(|config| config);
    w.at(1).kv_put("color", "red");
    let keys = w.path("keys");
    let other = w.path("other-keys");
    init(&other, &[("s1", "127.0.0.1")]);
    let key = gossip_key(&keys.join("weft.hcl"));
    let tls = |ca: &Path, certificate: Option<&Path>| {
        let file = |dir: &Path, name: &str| dir.join(name).display().to_string();
        let certificate = certificate.map_or_else(String::new, |dir| {
            format!(
                "cert_file = \"{}\" key_file = \"{}\"",
                file(dir, "dc1-cli-consul-0.pem"),
                file(dir, "dc1-cli-consul-0-key.pem")
            )
        });
        format!(
            "tls {{ internal_rpc {{ ca_file = \"{}\" {certificate} verify_outgoing = true }} }}",
            file(ca, "consul-agent-ca.pem")
        )
    };
    for (n, what, config, words) in [
        (11, "a certificate", tls(&keys, Some(&keys)), None),
        (12, "clear text", String::new(), Some("requires TLS")),
        (13, "no certificate", tls(&keys, None), Some("ertificate")),
        (
            14,
            "a certificate of another CA",
            tls(&keys, Some(&other)),
            Some("UnknownCA|ertificate"),
        ),
        (
            15,
            "trust in another CA",
            tls(&other, Some(&other)),
            Some("not signed by a CA"),
        ),
    ] {
        w.add_client(n);
        w.argument(n, format!("-hcl=encrypt = \"{key}\" {config}"));
        w.argument(n, "-hcl=performance { rpc_hold_timeout = \"1s\" }");
        w.launch(n);
        let answer = w.until(&format!("{what}: an answer"), || {
            let reply = w.at(n).get("/v1/kv/color").ok()?;
            (!reply.text().contains("No known Consul servers")).then_some(reply)
        });
        let text = answer.text();
        match words {
            None => assert_eq!(answer.status, 200, "{what}: {text}"),
            Some(words) => {
                assert_eq!(answer.status, 500, "{what}: {text}");
                assert_eq!(answer.headers["x-weft-reason"], "rpc.unreachable", "{what}");
                // How far a refusal gets before the connection is gone, chance decides.
                let told = |by: &str| words.split('|').any(|word| by.contains(word));
                assert!(told(&text), "{what}: {text}");
                assert!(told(&w.log(n)), "{what}: {}", w.log(n));
            }
        }
    }
    // What is for servers stays so: such an agent's certificate opens nothing else.
    let peers = w.at(1).get("/v1/operator/raft/configuration").unwrap().ok();
    assert_eq!(peers.json()["Servers"].as_array().unwrap().len(), 3);
}
