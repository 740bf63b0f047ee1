//! Prepared queries of running servers: written anywhere, executed over HTTP and DNS, gone with their session.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use serde_json::{Value, json};
use support::dns::{self, A, SRV};
use support::{Api, World};

fn create(at: &Api, query: &Value) -> String {
    let made = at
        .request("POST", "/v1/query", query.to_string().as_bytes())
        .unwrap()
        .ok()
        .json();
    made["ID"].as_str().unwrap().to_owned()
}

fn register(at: &Api, node: &str, address: &str, tags: &[&str], status: &str) {
    let body = json!({
        "Node": node, "Address": address,
        "Service": {"Service": "db", "Port": 5432, "Tags": tags},
        "Check": {"Name": "c", "Status": status, "ServiceID": "db"},
    });
    at.put("/v1/catalog/register", body.to_string())
        .unwrap()
        .ok();
}

/// The nodes that executing `name` answers, sorted.
fn nodes(at: &Api, name: &str) -> Vec<String> {
    let answer = at.get(&format!("/v1/query/{name}")).unwrap().ok().json();
    let rows = answer["Nodes"].as_array().unwrap();
    let mut nodes: Vec<_> = rows
        .iter()
        .map(|row| row["Node"]["Node"].as_str().unwrap().to_owned())
        .collect();
    nodes.sort();
    nodes
}

#[test]
fn a_query_written_at_one_server_is_executed_by_all_over_http_and_dns() {
    let w = World::servers(3).start();
    let (leader, follower) = (w.leader(), w.follower());
    let at = w.at(follower);
    register(&at, "n1", "10.0.0.1", &["v1"], "passing");
    register(&at, "n2", "10.0.0.2", &["v1", "old"], "passing");
    register(&at, "n3", "10.0.0.3", &["v1"], "warning");
    register(&at, "n4", "10.0.0.4", &["v1"], "critical");
    let id = create(
        &at,
        &json!({"Name": "geo-", "Template": {"Type": "name_prefix_match", "Regexp": "^geo-(.*?)-([^-]+)$"},
            "Service": {"Service": "${match(1)}", "Tags": ["${match(2)}", "!old"]}, "DNS": {"TTL": "12s"}}),
    );
    for n in w.running() {
        let at = w.at(n);
        w.until("the query everywhere", || {
            let reply = at.get("/v1/query/geo-db-v1/execute?stale").ok()?;
            (reply.status == 200).then_some(())
        });
        assert_eq!(nodes(&at, "geo-db-v1/execute"), ["n1", "n3"]);
        assert_eq!(
            nodes(&at, &format!("{id}/execute")),
            [""; 0],
            "no match: no service"
        );
    }
    let at = w.at(leader);
    assert_eq!(nodes(&at, "geo-db-v1/execute?limit=1").len(), 1);
    let explained = at.get("/v1/query/geo-db-v1/explain").unwrap().ok().json();
    assert_eq!(explained["Query"]["Service"]["Service"], "db");
    assert_eq!(explained["Query"]["Service"]["Tags"], json!(["v1", "!old"]));

    let server = w.address(leader);
    let ask = |name: &str, kind| dns::udp(&server, name, kind, Some(1_232));
    assert_eq!(
        ask("geo-db-v1.query.consul", A).answers,
        [
            "geo-db-v1.query.consul. 12 A 10.0.0.1",
            "geo-db-v1.query.consul. 12 A 10.0.0.3"
        ]
    );
    let srv = ask("_geo-db-v1._tcp.query.dc1.consul", SRV);
    assert_eq!(srv.answers.len(), 2, "{srv:?}");
    assert!(
        srv.answers[0].ends_with("12 SRV 1 1 5432 n1.node.dc1.consul."),
        "{srv:?}"
    );
    for none in [
        "nothing.query.consul",
        "geo-x-y.query.consul",
        "geo-db-v1.query.dc9.consul",
    ] {
        assert_eq!(ask(none, A).rcode, 3, "{none}");
    }

    let near = at
        .get("/v1/query/geo-db-v1/execute?near=n3")
        .unwrap()
        .ok()
        .json();
    assert_eq!(near["Nodes"][0]["Node"]["Node"], "n3");
    let update = json!({"Name": "plain", "Service": {"Service": "db", "OnlyPassing": true}});
    let path = format!("/v1/query/{id}");
    at.put(&path, update.to_string()).unwrap().ok();
    assert_eq!(nodes(&at, "plain/execute"), ["n1", "n2"]);
    assert_eq!(at.get("/v1/query/geo-db-v1/execute").unwrap().status, 404);
    at.delete(&path).unwrap().ok();
    assert_eq!(at.get(&path).unwrap().status, 404);
}

#[test]
fn what_is_wrong_with_a_query_is_said_and_nothing_is_written() {
    let w = World::servers(1).start();
    let at = w.at(1);
    let kept = create(&at, &json!({"Name": "kept", "Service": {"Service": "db"}}));
    let cases = [
        (
            json!({"Name": "kept", "Service": {"Service": "db"}}),
            500,
            "name 'kept' aliases an existing query name",
        ),
        (
            json!({"Name": "a"}),
            500,
            "Invalid prepared query: Must provide a Service name to query",
        ),
        (
            json!({"Service": {"Service": "db"}}),
            500,
            "Invalid prepared query: Must be bound to a session",
        ),
        (
            json!({"ID": kept, "Name": "a", "Service": {"Service": "db"}}),
            500,
            "ID must be empty when creating a new prepared query",
        ),
        (
            json!({"Name": "a", "Session": "no", "Service": {"Service": "db"}}),
            500,
            "invalid session: index error: UUID must be 36 characters",
        ),
        (
            json!({"Name": "a", "Session": kept, "Service": {"Service": "db"}}),
            500,
            "invalid session \"",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "db"}, "DNS": {"TTL": "x"}}),
            500,
            "Invalid prepared query: Bad DNS TTL 'x': time: invalid duration \"x\"",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "db"}, "DNS": {"TTL": "-1s"}}),
            500,
            "Invalid prepared query: DNS TTL '-1000000000', must be >=0",
        ),
        (
            json!({"Name": "a", "Token": "<hidden>", "Service": {"Service": "db"}}),
            500,
            "Invalid prepared query: Bad Token '<hidden>'",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "db", "Failover": {"NearestN": -1}}}),
            500,
            "Invalid prepared query: Bad NearestN '-1', must be >= 0",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "db"}, "Template": {"Type": "x"}}),
            500,
            "failed compiling template: Bad Template.Type 'x'",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "db", "Bogus": 1}}),
            400,
            "Request decode failed: json: unknown field \"Bogus\"",
        ),
        (
            json!({"Name": "a", "Service": {"Service": "d".repeat(70_000)}}),
            400,
            "65536 bytes",
        ),
    ];
    for (query, status, text) in &cases {
        let reply = at
            .request("POST", "/v1/query", query.to_string().as_bytes())
            .unwrap();
        assert_eq!(reply.status, *status, "{text}: {}", reply.text());
        assert!(
            reply.text().contains(text),
            "{} instead of {text}",
            reply.text()
        );
        assert!(reply.headers.contains_key("x-weft-reason"), "{text}");
    }
    for (method, path, status) in [
        ("GET", "/v1/query/nope", 500),
        ("GET", "/v1/query/11111111-1111-1111-1111-111111111111", 404),
        ("GET", "/v1/query/nope/execute", 404),
        ("GET", "/v1/query/nope/explain", 404),
        ("GET", "/v1/query/kept/execute?limit=x", 500),
        (
            "DELETE",
            "/v1/query/11111111-1111-1111-1111-111111111111",
            500,
        ),
    ] {
        assert_eq!(
            at.request(method, path, b"").unwrap().status,
            status,
            "{method} {path}"
        );
    }
    let all = at.get("/v1/query").unwrap().ok().json();
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(
        all[0]["Service"]["Failover"],
        json!({"NearestN": 0, "Datacenters": null})
    );

    let far = json!({"Name": "far", "Service": {"Service": "none", "Failover": {"Datacenters": ["dc2"]}}});
    create(&at, &far);
    let reply = at.get("/v1/query/far/execute").unwrap().ok();
    assert_eq!(reply.headers["x-weft-reason"], "query.one_datacenter");
    assert_eq!(reply.json()["Nodes"], json!([]));
}

#[test]
fn a_query_bound_to_a_session_goes_with_it_and_snapshots_hold_queries() {
    let w = World::servers(1).start();
    let at = w.at(1);
    let session = at.put("/v1/session/create", "").unwrap().ok().json();
    let session = session["ID"].as_str().unwrap();
    let bound = create(
        &at,
        &json!({"Session": session, "Service": {"Service": "consul"}}),
    );
    create(
        &at,
        &json!({"Name": "kept", "Token": "secret", "Service": {"Service": "consul"}}),
    );
    assert_eq!(nodes(&at, &format!("{bound}/execute")), ["s1"]);
    let archive = at.get("/v1/snapshot").unwrap().ok().body;
    at.put(&format!("/v1/session/destroy/{session}"), "")
        .unwrap()
        .ok();
    assert_eq!(at.get(&format!("/v1/query/{bound}")).unwrap().status, 404);
    assert_eq!(nodes(&at, "kept/execute"), ["s1"]);

    at.put("/v1/snapshot", archive).unwrap().ok();
    assert_eq!(nodes(&at, &format!("{bound}/execute")), ["s1"], "as it was");
    at.put(&format!("/v1/session/destroy/{session}"), "")
        .unwrap()
        .ok();
    assert_eq!(at.get(&format!("/v1/query/{bound}")).unwrap().status, 404);
}
