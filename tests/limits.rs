//! Rates and bounds of the API: who goes beyond is told the knob, is counted, and a reload changes it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::Read as _;
use std::net::TcpStream;

use support::{World, said};

/// A world whose agent `n` reads `limits.hcl` beside its flags, so that a reload can change it.
fn with_file(w: &mut World, n: usize) -> impl Fn(&str) + use<> {
    let file = w.path(&format!("limits{n}.hcl"));
    w.argument(n, format!("-config-file={}", file.display()));
    let write = move |text: &str| std::fs::write(&file, text).unwrap();
    write("");
    write
}

fn reload(w: &World, n: usize) {
    let reloaded = w.cli(n, &["reload"]);
    assert!(reloaded.status.success(), "{}", said(&reloaded));
}

/// Sum of the samples of a metric that have `label`.
fn metric(w: &World, n: usize, name: &str, label: &str) -> f64 {
    let text = w.at(n).get("/v1/agent/metrics?format=prometheus").unwrap();
    let text = text.ok().text().to_owned();
    let of = |line: &&str| line.starts_with(name) && line.contains(label);
    let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
    text.lines().filter(of).filter_map(value).sum()
}

#[test]
fn a_server_takes_so_many_requests_and_an_agent_of_one_source() {
    let mut w = World::servers(1).clients(1);
    let (server, client) = (with_file(&mut w, 1), with_file(&mut w, 11));
    let w = w.start();
    w.at(1).kv_put("color", "red");
    w.at(11).kv_get("color", "");

    // Permissive: counted, logged, and let through.
    server(r#"limits { request_limits { mode = "permissive" read_rate = 0 write_rate = 0 } }"#);
    reload(&w, 1);
    assert_eq!(w.at(1).get("/v1/kv/color?stale").unwrap().status, 200);
    let limit = "limits.request_limits.read_rate";
    assert!(metric(&w, 1, "weft_http_rate_limited_total", limit) >= 1.0);
    w.until("a line in the log", || {
        w.log(1).contains(limit).then_some(())
    });

    // Enforcing: the same through an agent, with the knob in the text.
    server(r#"limits { request_limits { mode = "enforcing" read_rate = 0 write_rate = 0 } }"#);
    reload(&w, 1);
    for n in [1, 11] {
        let read = w.at(n).get("/v1/kv/color?stale").unwrap();
        assert_eq!(read.status, 429, "{}", read.text());
        assert_eq!(
            read.text(),
            "rate limit exceeded, try again later or against a different server (limits.request_limits.read_rate = 0)"
        );
        assert_eq!(read.header("X-Weft-Reason"), Some("http.rate.server"));
        assert_eq!(read.header("Retry-After"), Some("1"));
        let write = w.at(n).put("/v1/kv/color", "blue").unwrap();
        assert_eq!(write.status, 503, "{}", write.text());
        assert!(
            write.text().contains("only be performed by the leader")
                && write.text().contains("limits.request_limits.write_rate"),
            "{}",
            write.text()
        );
    }
    // Whoever must end it still can.
    assert_eq!(w.at(1).get("/v1/status/leader").unwrap().status, 200);
    assert_eq!(
        w.at(1)
            .get("/v1/operator/raft/configuration")
            .unwrap()
            .status,
        200
    );
    server("");
    reload(&w, 1);
    assert_eq!(
        w.at(11).kv_get("color", "").as_deref(),
        Some("red"),
        "nothing was written"
    );

    // What one agent passes on, in Consul's words; a burst passes at once.
    client("limits { rpc_rate = 0.001 rpc_max_burst = 3 }");
    reload(&w, 11);
    let answers: Vec<_> = (0..5)
        .map(|_| w.at(11).get("/v1/kv/color").unwrap())
        .collect();
    let statuses: Vec<_> = answers.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert!(
        answers[4]
            .text()
            .contains("RPC rate limit exceeded (limits.rpc_rate = 0.001)"),
        "{}",
        answers[4].text()
    );
    assert_eq!(
        w.at(1).kv_get("color", "").as_deref(),
        Some("red"),
        "the server is free"
    );

    // One source: other addresses, and other agents, are not concerned.
    client(r#"limits { source_limits { mode = "enforcing" write_rate = 0 } }"#);
    reload(&w, 11);
    let refused = w.at(11).put("/v1/kv/color", "blue").unwrap();
    assert_eq!(refused.status, 429);
    assert!(
        refused.text().contains("limits.source_limits.write_rate"),
        "{}",
        refused.text()
    );
    assert_eq!(w.at(11).kv_get("color", "").as_deref(), Some("red"));
    let limit = "limit=\"limits.source_limits.write_rate\"";
    assert!(metric(&w, 11, "weft_http_rate_limited_total", limit) >= 1.0);
}

#[test]
fn bounds_of_values_and_connections_are_taken_by_a_reload() {
    let mut w = World::servers(1);
    let write = with_file(&mut w, 1);
    let w = w.start();
    let value = "x".repeat(2_000);
    w.at(1).kv_put("large", &value);
    write("limits { kv_max_value_size = 1000 txn_max_req_len = 900 }");
    reload(&w, 1);
    let refused = w.at(1).put("/v1/kv/large", &value).unwrap();
    assert_eq!(refused.status, 413);
    assert!(
        refused.text().contains("limits.kv_max_value_size"),
        "{}",
        refused.text()
    );
    let txn = format!(r#"[{{"KV":{{"Verb":"get","Key":"{value}"}}}}]"#);
    let refused = w.at(1).put("/v1/txn", &txn).unwrap();
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert!(
        refused.text().contains("limits.txn_max_req_len"),
        "{}",
        refused.text()
    );

    // The reload's own connection, and one more.
    write("limits { http_max_conns_per_client = 2 }");
    reload(&w, 1);
    let at = format!("{}:8500", w.address(1));
    let held: Vec<_> = (0..2).map(|_| TcpStream::connect(&at).unwrap()).collect();
    let refusal = w.until("a refusal", || {
        let mut text = String::new();
        let mut one = TcpStream::connect(&at).ok()?;
        let patience = Some(std::time::Duration::from_secs(1));
        one.set_read_timeout(patience).ok()?;
        one.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.1 429").then_some(text)
    });
    assert!(
        refusal.contains("limits.http_max_conns_per_client = 2"),
        "{refusal}"
    );
    drop(held);
    w.until("a place", || {
        w.at(1)
            .get("/v1/status/leader")
            .ok()
            .filter(|reply| reply.status == 200)
    });
    let bound = "bound=\"limits.http_max_conns_per_client\"";
    assert!(metric(&w, 1, "weft_http_connections_refused_total", bound) >= 1.0);
    assert!(w.log(1).contains("a limit was met"));

    // The server port has its own.
    write("limits { rpc_max_conns_per_client = 1 }");
    reload(&w, 1);
    let rpc = format!("{}:8300", w.address(1));
    let _held = TcpStream::connect(&rpc).unwrap();
    w.until("a refused connection to the server port", || {
        let _one = TcpStream::connect(&rpc).ok()?;
        (metric(&w, 1, "weft_server_connections_refused_total", "") >= 1.0).then_some(())
    });
    assert!(w.log(1).contains("limits.rpc_max_conns_per_client reached"));
}
