//! Metrics sent to a statsd, a statsite and a dogstatsd, and the names they go out under.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use support::{World, said};

/// Waits for a line that begins and ends so.
fn hear(w: &World, socket: &UdpSocket, begins: &str, ends: &str) -> Vec<String> {
    let mut lines = Vec::new();
    w.until(&format!("a line {begins}…{ends}"), || {
        // Counters are sent when they have counted.
        w.at(1).kv_put("color", "red");
        let mut packet = [0; 2_048];
        let length = socket.recv(&mut packet).ok()?;
        assert!(length <= 1_400, "a packet of {length} bytes");
        let text = String::from_utf8(packet[..length].to_vec()).unwrap();
        lines.extend(text.lines().map(str::to_owned));
        let fits = |line: &String| line.starts_with(begins) && line.ends_with(ends);
        lines.iter().any(fits).then_some(())
    });
    lines
}

fn receiver(w: &World) -> (UdpSocket, String) {
    let socket = UdpSocket::bind(format!("{}:0", w.address(1))).unwrap();
    let wait = Some(Duration::from_millis(200));
    socket.set_read_timeout(wait).unwrap();
    let at = socket.local_addr().unwrap().to_string();
    (socket, at)
}

#[test]
fn figures_are_sent_in_each_form_under_consuls_names() {
    let mut w = World::servers(1);
    let (statsd, statsd_at) = receiver(&w);
    let (dog, dog_at) = receiver(&w);
    let statsite = TcpListener::bind(format!("{}:0", w.address(1))).unwrap();
    let statsite_at = statsite.local_addr().unwrap();
    let file = w.path("telemetry.hcl");
    let write = |filter: &str| {
        let text = format!(
            r#"telemetry {{
                statsd_address = "{statsd_at}"
                statsite_address = "{statsite_at}"
                dogstatsd_addr = "{dog_at}"
                dogstatsd_tags = ["team:blue"]
                metrics_prefix = "acme"
                disable_hostname = true
                prefix_filter = [{filter}]
            }}"#
        );
        std::fs::write(&file, text).unwrap();
    };
    write(r#""-acme.runtime""#);
    w.argument(1, format!("-config-file={}", file.display()));
    let w = w.start();
    let lines = hear(&w, &statsd, "acme.server.isLeader:", "1|g");
    hear(&w, &statsd, "acme.api.http.PUT.v1.kv._:", "");
    assert!(
        !lines.iter().any(|line| line.starts_with("acme.runtime")),
        "filtered: {lines:?}"
    );
    hear(
        &w,
        &dog,
        "acme.api.http:",
        "method:PUT,path:v1.kv._,team:blue",
    );
    let (stream, _) = statsite.accept().unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut told = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(told.any(|line| line == "acme.server.isLeader:1|g"));

    // The names are the same for those who come and ask, and a reload changes what is shown.
    let shown = || {
        let text = w.at(1).get("/v1/agent/metrics?format=prometheus").unwrap();
        text.ok().text()
    };
    assert!(shown().contains("acme_server_isLeader") && !shown().contains("acme_runtime"));
    assert!(shown().contains(r#"weft_telemetry_pushes_total{form="statsd",outcome="sent"}"#));
    write(r#""-acme.server""#);
    let reloaded = w.cli(1, &["reload"]);
    assert!(reloaded.status.success(), "{}", said(&reloaded));
    assert!(!shown().contains("acme_server_isLeader") && shown().contains("acme_runtime"));
    hear(&w, &statsd, "acme.runtime.num_goroutines:", "|g");
}

#[test]
fn a_receiver_that_is_gone_costs_a_line_in_the_log_and_nothing_else() {
    let mut w = World::servers(1);
    let closed = format!("{}:1", w.address(1));
    w.argument(
        1,
        format!("-hcl=telemetry {{ statsite_address = \"{closed}\" }}"),
    );
    let w = w.start();
    w.until("the complaint", || {
        let log = w.log(1);
        (log.contains("metrics not sent") && log.contains(&closed)).then_some(())
    });
    w.at(1).kv_put("color", "red");
    assert_eq!(w.at(1).kv_get("color", "").as_deref(), Some("red"));
}
