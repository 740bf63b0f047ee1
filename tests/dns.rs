//! DNS of a running server: names of ours, names of others through recursors, and what does not fit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::BTreeSet;

use rustix::process::Signal;
use support::dns::{self, A, AAAA, ANY, Does, PTR, Recursor, SRV, TXT};
use support::{Api, World};

fn register(at: &Api, node: &str, address: &str, service: &str) {
    let body = format!(
        r#"{{"Node":"{node}","Address":"{address}","NodeMeta":{{"rack":"{node}"}},"Service":{service}}}"#
    );
    at.put("/v1/catalog/register", body).unwrap().ok();
}

#[test]
fn names_of_others_go_to_the_recursors_in_order() {
    let first = Recursor::start(Does::Addresses(vec![[192, 0, 2, 1]]));
    let second = Recursor::start(Does::Addresses(vec![[192, 0, 2, 2]]));
    let w = World::servers(1)
        .with(format!(
            "-hcl=recursors = [\"{}\", \"{}\"]",
            first.address, second.address
        ))
        .with("-hcl=dns_config { recursor_timeout = \"500ms\" }")
        .start();
    let server = w.address(1);
    let ask = |name: &str| dns::udp(&server, name, A, Some(1_232));

    let answer = ask("Www.Example.ORG");
    assert_eq!(answer.question, "Www.Example.ORG.", "echoed as asked");
    assert_eq!(answer.answers, ["Www.Example.ORG. 60 A 192.0.2.1"]);
    assert!(answer.ra && answer.rcode == 0);
    assert!(second.seen().is_empty(), "the first one knew");

    for mute in [Does::Silence, Does::Code(2), Does::Code(5)] {
        first.now(mute);
        assert_eq!(ask("a.example").answers, ["a.example. 60 A 192.0.2.2"]);
    }
    second.now(Does::Silence);
    let none = ask("b.example");
    assert_eq!((none.rcode, none.ra), (2, true), "SERVFAIL");
    first.now(Does::Code(3));
    assert_eq!(ask("c.example").rcode, 3, "NXDOMAIN is an answer");

    // Ours are never asked elsewhere, whatever becomes of them.
    first.seen();
    for name in ["no.service.consul", "nothing.weft", "x.query.consul"] {
        assert_eq!(ask(name).rcode, 3, "{name}");
    }
    assert_eq!(dns::udp(&server, "s1.node.consul", PTR, None).rcode, 0);
    assert_eq!(first.seen(), []);

    let metrics = w
        .at(1)
        .get("/v1/agent/metrics?format=prometheus")
        .unwrap()
        .ok()
        .text();
    for line in [
        "weft_dns_recursor_questions_total{outcome=\"answered\"}",
        "weft_dns_recursor_questions_total{outcome=\"timed_out\"}",
        "weft_dns_recursor_questions_total{outcome=\"refused\"}",
        "weft_dns_empty_answers_total{reason=\"dns.recursors_failed\"} 1",
        "weft_dns_query_duration_seconds_count{type=\"a\"}",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[test]
fn what_a_recursor_cuts_is_fetched_by_tcp_and_cut_for_the_client_only() {
    let many = (0..100).map(|n| [198, 51, 100, n]).collect();
    let recursor = Recursor::start(Does::Addresses(many));
    let w = World::servers(1)
        .with(format!("-hcl=recursors = [\"{}\"]", recursor.address))
        .start();
    let server = w.address(1);
    let large = dns::udp(&server, "many.example", A, Some(4_000));
    assert_eq!((large.answers.len(), large.tc), (100, false));
    let tcp: Vec<bool> = recursor.seen().iter().map(|seen| seen.tcp).collect();
    assert_eq!(tcp, [false, true]);
    let small = dns::udp(&server, "many.example", A, None);
    assert!(small.tc && small.bytes <= 512, "{small:?}");
    assert_eq!(small.question, "many.example.");
    recursor.seen();
    assert_eq!(dns::tcp(&server, "many.example", A).answers.len(), 100);
    assert!(recursor.seen().iter().all(|seen| seen.tcp), "as the client");

    // Ids and ports are not to be guessed.
    recursor.now(Does::Addresses(vec![[192, 0, 2, 1]]));
    for n in 0..40 {
        dns::udp(&server, &format!("h{n}.example"), A, None);
    }
    let seen = recursor.seen();
    let ids: BTreeSet<u16> = seen.iter().map(|seen| seen.id).collect();
    let ports: BTreeSet<u16> = seen.iter().map(|seen| seen.port).collect();
    assert!(ids.len() > 35 && ports.len() > 20, "{ids:?} {ports:?}");
    let steps: BTreeSet<u16> = seen
        .windows(2)
        .map(|pair| pair[1].id.wrapping_sub(pair[0].id))
        .collect();
    assert!(steps.len() > 30, "ids that count upwards: {ids:?}");
}

#[test]
fn a_host_name_comes_with_its_addresses() {
    let recursor = Recursor::start(Does::Addresses(vec![[192, 0, 2, 7]]));
    let w = World::servers(1)
        .with(format!("-hcl=recursors = [\"{}\"]", recursor.address))
        .with("-hcl=dns_config { node_ttl = \"30s\" service_ttl = { \"*\" = \"5s\", \"web-*\" = \"10s\", \"web-a-*\" = \"15s\" } }")
        .start();
    let (at, server) = (w.at(1), w.address(1));
    register(
        &at,
        "n1",
        "10.0.0.1",
        r#"{"Service":"ext","Port":443,"Address":"db.example.org"}"#,
    );
    register(
        &at,
        "n2",
        "www.example.org",
        r#"{"Service":"web-a-1","Port":80}"#,
    );
    register(
        &at,
        "n3",
        "10.0.0.3",
        r#"{"Service":"near","Port":80,"Address":"n1.node.consul"}"#,
    );
    let ask = |name: &str, kind| dns::udp(&server, name, kind, Some(1_232));
    assert_eq!(
        ask("ext.service.consul", A).answers,
        [
            "db.example.org. 5 A 192.0.2.7",
            "ext.service.consul. 5 CNAME db.example.org."
        ]
    );
    let srv = ask("ext.service.consul", SRV);
    assert_eq!(
        srv.answers,
        ["ext.service.consul. 5 SRV 1 1 443 db.example.org."]
    );
    assert!(
        srv.additionals
            .contains(&"db.example.org. 5 A 192.0.2.7".to_owned()),
        "{srv:?}"
    );
    assert_eq!(
        ask("n2.node.consul", A).answers,
        [
            "n2.node.consul. 30 CNAME www.example.org.",
            "www.example.org. 60 A 192.0.2.7"
        ]
    );
    assert_eq!(
        ask("web-a-1.service.consul", SRV).answers,
        ["web-a-1.service.consul. 15 SRV 1 1 80 www.example.org."]
    );
    recursor.seen();
    assert_eq!(
        ask("near.service.consul", A).answers,
        [
            "n1.node.consul. 30 A 10.0.0.1",
            "near.service.consul. 5 CNAME n1.node.consul."
        ]
    );
    assert_eq!(recursor.seen(), [], "its address is known here");
    recursor.now(Does::Silence);
    assert_eq!(
        ask("ext.service.consul", AAAA).answers,
        ["ext.service.consul. 5 CNAME db.example.org."],
        "the alias is an answer"
    );
}

#[test]
fn limits_and_metadata_follow_the_configuration_also_after_a_reload() {
    let mut w = World::servers(1);
    let dir = w.path("conf.d");
    std::fs::create_dir(&dir).unwrap();
    let write = |text: &str| std::fs::write(dir.join("dns.hcl"), text).unwrap();
    write("dns_config { udp_answer_limit = 2 enable_truncate = true }\n");
    w.argument(1, format!("-config-dir={}", dir.display()));
    let w = w.start();
    let (at, server) = (w.at(1), w.address(1));
    for n in 1..=8 {
        let address = format!("10.0.0.{n}");
        register(
            &at,
            &format!("n{n}"),
            &address,
            r#"{"Service":"web","Port":80}"#,
        );
    }
    register(&at, "v6", "2001:db8::6", r#"{"Service":"six","Port":80}"#);
    let ask = |kind, edns| dns::udp(&server, "web.service.consul", kind, edns);
    for kind in [A, SRV, ANY] {
        let small = ask(kind, None);
        assert!(small.answers.len() == 2 && small.tc, "{small:?}");
        assert!(small.bytes <= 512);
        let large = ask(kind, Some(4_096));
        assert!(large.answers.len() == 8 && !large.tc, "{large:?}");
        assert_eq!(
            dns::tcp(&server, "web.service.consul", kind).answers.len(),
            8
        );
    }
    let srv = ask(SRV, None);
    for line in &srv.answers {
        let target = line.rsplit(' ').next().unwrap();
        assert!(
            srv.additionals
                .iter()
                .any(|extra| extra.starts_with(target)),
            "{srv:?}"
        );
    }
    let one = |name: &str, kind| dns::udp(&server, name, kind, None).answers;
    assert_eq!(
        one(
            "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            PTR
        ),
        [
            "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 PTR v6.node.dc1.consul."
        ]
    );
    assert_eq!(
        one("six.service.dc1.dc.weft", AAAA),
        ["six.service.dc1.dc.weft. 0 AAAA 2001:db8::6"]
    );
    assert_eq!(
        one("n1.node.default.ns.dc1.dc.consul", TXT),
        ["n1.node.default.ns.dc1.dc.consul. 0 TXT rack=n1"]
    );

    write(
        "dns_config { a_record_limit = 3 disable_compression = true enable_additional_node_meta_txt = false }\n",
    );
    w.signal(1, Signal::HUP);
    w.until("the new limit", || {
        (ask(A, Some(4_096)).answers.len() == 3).then_some(())
    });
    let small = ask(A, None);
    assert!(!small.tc && small.answers.len() == 3, "{small:?}");
    assert!(
        ask(SRV, Some(4_096))
            .additionals
            .iter()
            .all(|extra| !extra.contains("TXT"))
    );
}

#[test]
fn the_mesh_has_names_of_its_own() {
    let w = World::servers(1).start();
    let (at, server) = (w.at(1), w.address(1));
    register(&at, "n1", "10.0.0.1", r#"{"Service":"web","Port":80}"#);
    let proxy = r#"{"Service":"web-proxy","Kind":"connect-proxy","Port":21000,"Proxy":{"DestinationServiceName":"web"}}"#;
    register(&at, "n2", "10.0.0.2", proxy);
    let gateway = r#"{"Service":"door","Kind":"ingress-gateway","Port":8888}"#;
    register(&at, "n3", "10.0.0.3", gateway);
    let entry = r#"{"Kind":"ingress-gateway","Name":"door","Listeners":[{"Port":8888,"Protocol":"tcp","Services":[{"Name":"web"}]}]}"#;
    at.put("/v1/config", entry).unwrap().ok();
    let query = r#"{"Name":"through","Service":{"Service":"web","Connect":true}}"#;
    at.request("POST", "/v1/query", query.as_bytes())
        .unwrap()
        .ok();
    let ask = |name: &str, kind| dns::udp(&server, name, kind, Some(1_232)).answers;
    assert_eq!(
        ask("web.service.consul", A),
        ["web.service.consul. 0 A 10.0.0.1"]
    );
    for name in ["web.connect.consul", "through.query.consul"] {
        assert_eq!(
            ask(name, SRV),
            [format!("{name}. 0 SRV 1 1 21000 n2.node.dc1.consul.")]
        );
    }
    assert_eq!(
        ask("web.ingress.consul", A),
        ["web.ingress.consul. 0 A 10.0.0.3"]
    );
    let executed = at.get("/v1/query/through/execute").unwrap().ok().json();
    assert_eq!(executed["Nodes"][0]["Service"]["Service"], "web-proxy");

    let sick = r#"{"Node":"n2","Address":"10.0.0.2","Check":{"Name":"c","Status":"critical","ServiceID":"web-proxy"}}"#;
    at.put("/v1/catalog/register", sick).unwrap().ok();
    for name in ["web.connect.consul", "through.query.consul"] {
        assert_eq!(dns::udp(&server, name, A, None).rcode, 3, "{name}");
    }
}
