//! The harness against itself: two small stand-in servers, one of which lies.
//! If a lie of any kind went unseen, the comparison with weft would prove nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

use serde_json::Value;

use crate::cli::judge;
use crate::differences::{self, Difference};
use crate::normal::Names;
use crate::play::{Place, play};
use crate::report::{Counts, Report};
use crate::script;

const TRUTH: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nVary: Accept-Encoding\r\nX-Consul-Index: 12\r\n\
    X-Consul-Knownleader: true\r\nX-Consul-Lastcontact: 0\r\nContent-Length: LEN\r\n\r\n\
    [{\"Node\":\"s1\",\"ID\":\"0f0c1111-2222-3333-4444-555566667777\",\"Tags\":[\"a\",\"b\"],\"CreateIndex\":9,\"ModifyIndex\":12}]";

/// Answers every connection with these bytes until the test ends. `LEN` becomes the body's length.
fn stand_in(answer: &str) -> SocketAddr {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let answer = format!(
        "{}\r\n\r\n{body}",
        head.replace("LEN", &body.len().to_string())
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, &answer);
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: &str) {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&piece[..length]),
        }
    }
    let _ = stream.write_all(answer.as_bytes());
}

fn outcomes(address: SocketAddr, story: &str) -> Vec<Value> {
    let family = script::parse("t", story).unwrap();
    let place = Place {
        http: address,
        dns: address,
        binary: PathBuf::from("false"),
        folder: std::env::temp_dir(),
        names: Names::default(),
    };
    play(place, None, &family.stories[0])
}

/// The mismatching places when the second server answers `lie`.
fn flagged(lie: &str, known: &mut [Difference]) -> Vec<String> {
    const STORY: &str = "== s\nGET /v1/x";
    let sides = [
        outcomes(stand_in(TRUTH), STORY),
        outcomes(stand_in(lie), STORY),
    ];
    let family = script::parse("t", STORY).unwrap();
    let mut report = Report::default();
    judge(
        &family,
        &family.stories[0],
        &sides,
        known,
        &mut Counts::default(),
        &mut report,
    );
    report
        .mismatches
        .iter()
        .flat_map(|m| m.deltas.iter().map(|d| d.path.clone()))
        .collect()
}

#[test]
fn what_may_differ_is_not_flagged() {
    for (truth, other) in [
        (
            "0f0c1111-2222-3333-4444-555566667777",
            "aaaa1111-2222-3333-4444-555566667777",
        ),
        ("X-Consul-Index: 12", "X-Consul-Index: 13"),
        ("X-Consul-Lastcontact: 0", "X-Consul-Lastcontact: 4"),
        (
            "\"CreateIndex\":9,\"ModifyIndex\":12",
            "\"CreateIndex\":3,\"ModifyIndex\":7",
        ),
        ("\"Node\":\"s1\",", ""),
    ] {
        let lie = TRUTH.replace(truth, other);
        assert_ne!(lie, TRUTH, "{truth}");
        let found = flagged(&lie, &mut []);
        // The last row is a lie: the loop must be able to fail.
        assert_eq!(found.is_empty(), !other.is_empty(), "{other}: {found:?}");
    }
}

#[test]
fn every_lie_is_flagged() {
    for (truth, lie, place) in [
        ("200 OK", "404 Not Found", "status"),
        (
            "application/json",
            "application/json; charset=utf-8",
            "headers.Content-Type",
        ),
        (
            "X-Consul-Knownleader: true",
            "X-Consul-Knownleader: false",
            "headers.X-Consul-Knownleader",
        ),
        (
            "X-Consul-Knownleader",
            "X-Consul-KnownLeader",
            "headers.X-Consul-Knownleader",
        ),
        (
            "X-Consul-Lastcontact: 0\r\n",
            "",
            "headers.X-Consul-Lastcontact",
        ),
        ("X-Consul-Index: 12\r\n", "", "headers.X-Consul-Index"),
        ("X-Consul-Index: 12", "X-Consul-Index: 11", "index"),
        (
            "\"CreateIndex\":9",
            "\"CreateIndex\":12",
            "body.0.ModifyIndex",
        ),
        ("\"Node\":\"s1\"", "\"Node\":\"s2\"", "body.0.Node"),
        ("\"Node\":\"s1\"", "\"node\":\"s1\"", "body.0.Node"),
        ("[\"a\",\"b\"]", "[\"b\",\"a\"]", "body.0.Tags.0"),
        ("[\"a\",\"b\"]", "null", "body.0.Tags"),
        ("[\"a\",\"b\"]", "[]", "body.0.Tags.0"),
        ("\"Tags\":", "\"Tags\": ", "form"),
        (
            "\"ModifyIndex\":12",
            "\"ModifyIndex\":\"12\"",
            "body.0.ModifyIndex",
        ),
        ("\"Node\"", "\"Extra\":0,\"Node\"", "body.0.Extra"),
        ("0f0c1111-2222-3333-4444-555566667777", "", "body.0.ID"),
    ] {
        let answer = TRUTH.replace(truth, lie);
        assert_ne!(answer, TRUTH, "{truth}");
        let found = flagged(&answer, &mut []);
        assert!(
            found.iter().any(|path| path == place),
            "{truth} → {lie}: {found:?}"
        );
    }
}

#[test]
fn a_known_difference_covers_its_place_and_no_other() {
    let list = "[other-node]\nstep: GET /v1/x\nat: body.*.Node\nweft: \"s2\"\nreason: a test\n";
    let mut known = differences::parse(list).unwrap();
    assert!(flagged(&TRUTH.replace("\"s1\"", "\"s2\""), &mut known).is_empty());
    assert_eq!(known[0].used, 1);
    assert_eq!(
        flagged(&TRUTH.replace("\"s1\"", "\"s3\""), &mut known),
        ["body.0.Node"]
    );
}

#[test]
fn an_id_saved_is_followed() {
    let story = "== s\nGET /v1/x\n  save id .0.ID\nGET /v1/{id}";
    let outcome = outcomes(stand_in(TRUTH), story);
    assert_eq!(outcome[1]["body"][0]["ID"], "{id}");
}

#[test]
fn a_server_that_does_not_answer_is_no_match() {
    let story = "== s\nGET /v1/x";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let sides = [outcomes(nobody, story), outcomes(nobody, story)];
    let family = script::parse("t", story).unwrap();
    let mut report = Report::default();
    judge(
        &family,
        &family.stories[0],
        &sides,
        &mut [],
        &mut Counts::default(),
        &mut report,
    );
    assert_eq!(
        report.mismatches.len(),
        1,
        "two failures alike prove nothing"
    );
}

#[test]
fn a_run_that_lost_its_cases_is_not_clean() {
    let mut report = Report::default();
    assert!(report.is_clean());
    report.too_few = report.shortfall();
    assert!(!report.is_clean());
    assert!(report.to_text().contains("✗ too few: 0 distinct requests"));
}
