//! What is no question, or no name, over UDP and TCP: its code, its counter, and nothing else disturbed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::Duration;

use support::World;
use support::dns::{self, A, PTR};

/// The labels of a name, whatever they hold.
fn labels(labels: &[&[u8]]) -> Vec<u8> {
    let mut name = Vec::new();
    for label in labels {
        name.push(u8::try_from(label.len()).unwrap());
        name.extend_from_slice(label);
    }
    name.push(0);
    name
}

/// Header counts, the bytes of a name, type and class, and what follows.
fn packet(counts: [u8; 4], name: &[u8], kind: u16, class: u16, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x5e, 0xed, 1, 0];
    packet.extend(counts.iter().flat_map(|count| [0, *count]));
    packet.extend_from_slice(name);
    packet.extend(kind.to_be_bytes());
    packet.extend(class.to_be_bytes());
    packet.extend_from_slice(rest);
    packet
}

/// An OPT record of a version, with options.
fn opt(version: u8, options: &[u8]) -> Vec<u8> {
    let length = u8::try_from(options.len()).unwrap();
    let head = [0, 0, 41, 4, 208, 0, version, 0, 0, 0, length];
    [&head[..], options].concat()
}

const NOERROR: Option<u8> = Some(0);
const FORMERR: Option<u8> = Some(1);
const NXDOMAIN: Option<u8> = Some(3);
const NOTIMP: Option<u8> = Some(4);
const REFUSED: Option<u8> = Some(5);
const SILENCE: Option<u8> = None;

#[test]
fn whatever_is_malformed_gets_its_code_and_is_counted_by_its_cause() {
    let w = World::servers(1).start();
    let (at, server) = (w.at(1), w.address(1));
    let web = r#"{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"web","Port":80}}"#;
    at.put("/v1/catalog/register", web).unwrap().ok();
    let below = |first: &[&[u8]]| labels(&[first, &[b"consul"]].concat());
    let ask = |name: Vec<u8>| packet([1, 0, 0, 0], &name, A, 1, b"");
    let web = below(&[b"web", b"service"]);
    let typed = |kind, class| packet([1, 0, 0, 0], &web, kind, class, b"");
    let with_opt = |opt: &[u8]| packet([1, 0, 0, 1], &web, A, 1, opt);
    let coded = |flags: u8| {
        let mut packet = ask(web.clone());
        packet[2] = flags;
        packet
    };
    let long = below(&[&[b'a'; 60][..]; 4]);
    let reverse = |labels_before: &[&[u8]]| {
        let name = labels(&[labels_before, &[b"in-addr", b"arpa"]].concat());
        packet([1, 0, 0, 0], &name, PTR, 1, b"")
    };
    let cases: Vec<(&str, Vec<u8>, Option<u8>, &str)> = vec![
        // Names.
        (
            "a label of 64",
            ask([&[64][..], &[b'a'; 64], &web].concat()),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a label of a reserved kind",
            ask([&[0x80, b'a'][..], &web].concat()),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a pointer to itself",
            ask(vec![0xc0, 12]),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a pointer ahead",
            ask(vec![0xc0, 40]),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a name that goes round",
            ask(vec![1, b'a', 0xc0, 12]),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a name without an end",
            ask(vec![9, b'a']),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a name of 256",
            ask([&[60][..], &[b'a'; 60], &long].concat()),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a long name",
            ask(labels(&[&[b'a'; 60], &[b'b'; 63], b"service", b"consul"])),
            NXDOMAIN,
            "dns.unknown_service",
        ),
        (
            "bytes that are no text",
            ask(below(&[b"\xff\x00\xfe", b"service"])),
            NXDOMAIN,
            "dns.unknown_service",
        ),
        (
            "a dot inside a label",
            ask(below(&[b"a.b", b"node"])),
            NXDOMAIN,
            "dns.unknown_node",
        ),
        (
            "a star",
            ask(below(&[b"*", b"service"])),
            NXDOMAIN,
            "dns.unknown_service",
        ),
        (
            "no service",
            ask(below(&[b"service"])),
            NXDOMAIN,
            "dns.not_a_name",
        ),
        ("no kind", ask(below(&[b"web"])), NXDOMAIN, "dns.not_a_name"),
        (
            "nothing but underscores",
            ask(below(&[b"_", b"_"])),
            NXDOMAIN,
            "dns.not_a_name",
        ),
        (
            "labels too many",
            ask(below(&[b"web", b"service", b"a", b"b", b"c"])),
            NXDOMAIN,
            "dns.not_a_name",
        ),
        (
            "a tag nobody has",
            ask(below(&[b"v9", b"web", b"service"])),
            NXDOMAIN,
            "dns.no_such_tag",
        ),
        (
            "a port nobody has",
            ask(below(&[b"x", b"port", b"web", b"service"])),
            NXDOMAIN,
            "dns.no_such_port",
        ),
        (
            "another datacenter",
            ask(below(&[b"web", b"service", b"dc9"])),
            NXDOMAIN,
            "dns.unknown_datacenter",
        ),
        (
            "half an address",
            ask(below(&[b"0a00", b"addr"])),
            NXDOMAIN,
            "dns.not_a_name",
        ),
        (
            "an address of other letters",
            ask(below(&[b"0a00000g", b"addr"])),
            NXDOMAIN,
            "dns.not_a_name",
        ),
        (
            "a query nobody wrote",
            ask(below(&[b"none", b"query"])),
            NXDOMAIN,
            "dns.unknown_query",
        ),
        (
            "not in the mesh",
            ask(below(&[b"web", b"connect"])),
            NXDOMAIN,
            "dns.not_in_mesh",
        ),
        ("the root", ask(vec![0]), REFUSED, "dns.foreign_name"),
        (
            "an octet of 256",
            reverse(&[b"256", b"0", b"0", b"10"]),
            REFUSED,
            "dns.foreign_name",
        ),
        (
            "three octets",
            reverse(&[b"0", b"0", b"10"]),
            REFUSED,
            "dns.foreign_name",
        ),
        (
            "an address of nobody",
            reverse(&[b"9", b"9", b"9", b"9"]),
            NXDOMAIN,
            "dns.unknown_address",
        ),
        // Types, classes, opcodes.
        (
            "a type without records",
            typed(15, 1),
            NOERROR,
            "dns.no_such_type",
        ),
        ("type 0", typed(0, 1), NOERROR, "dns.no_such_type"),
        (
            "a type unheard of",
            typed(65_280, 1),
            NOERROR,
            "dns.no_such_type",
        ),
        ("AXFR", typed(252, 1), NOTIMP, "dns.transfer"),
        ("IXFR", typed(251, 1), NOTIMP, "dns.transfer"),
        ("CHAOS", typed(A, 3), REFUSED, "dns.class"),
        ("class 0", typed(A, 0), REFUSED, "dns.class"),
        ("NOTIFY", coded(0x21), NOTIMP, "dns.opcode"),
        ("UPDATE", coded(0x29), NOTIMP, "dns.opcode"),
        ("an opcode unheard of", coded(0x79), NOTIMP, "dns.opcode"),
        ("an answer", coded(0x81), SILENCE, "dns.not_a_question"),
        // Messages.
        ("nothing", Vec::new(), SILENCE, "dns.short_packet"),
        (
            "half a header",
            ask(Vec::new())[..7].to_vec(),
            SILENCE,
            "dns.short_packet",
        ),
        (
            "no question",
            ask(Vec::new())[..12]
                .iter()
                .map(|b| if *b == 1 { 0 } else { *b })
                .collect(),
            REFUSED,
            "dns.no_question",
        ),
        (
            "a question that is not there",
            ask(Vec::new())[..12].to_vec(),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "a question cut off",
            ask(web.clone())[..24].to_vec(),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "records that are not there",
            packet([1, 9, 0, 0], &web, A, 1, b""),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "EDNS of version 1",
            with_opt(&opt(1, b"")),
            NOERROR,
            "dns.edns_version",
        ),
        (
            "an option cut off",
            with_opt(&opt(0, &[0, 8, 0, 99])),
            FORMERR,
            "dns.unreadable",
        ),
        (
            "EDNS twice",
            packet(
                [1, 0, 0, 2],
                &web,
                A,
                1,
                &[opt(0, b""), opt(0, b"")].concat(),
            ),
            FORMERR,
            "dns.unreadable",
        ),
    ];
    let counted = |reason: &str| {
        let metrics = at.get("/v1/agent/metrics?format=prometheus").unwrap().ok();
        let label = format!("{{reason=\"{reason}\"}} ");
        let text = metrics.text();
        let lines = text.lines().filter(|line| line.starts_with("weft_dns_"));
        let found = lines.filter_map(|line| line.split_once(label.as_str()));
        found
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum::<u64>()
    };
    for (what, packet, code, reason) in &cases {
        let before = counted(reason);
        // Silence is told from slowness by the counter.
        let wait = Duration::from_secs(if code.is_none() { 1 } else { 20 });
        let by_udp = dns::packet_by_udp(&server, packet, wait);
        let by_tcp = dns::packet_by_tcp(&server, packet);
        for answer in [&by_udp, &by_tcp] {
            let found = answer.as_ref().map(|answer| answer[3] & 0x0f);
            assert_eq!(found, *code, "{what}: {answer:?}");
        }
        assert_eq!(counted(reason), before + 2, "{what}: {reason}");
    }
    assert_eq!(
        dns::udp(&server, "web.service.consul", A, None).answers,
        ["web.service.consul. 0 A 10.0.0.1"],
        "nothing else is disturbed"
    );
}
