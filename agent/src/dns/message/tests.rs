//! Answers that fit, and packets that are no question.

use hickory_proto::rr::rdata::{A, SRV, TXT};
use proptest::prelude::*;

use super::*;

const UDP: Via = Via::Udp { near: true };
const PLAIN: Style = Style {
    answer_limit: 3,
    set_tc: false,
    compress: true,
    recursion: false,
};

fn question(edns: Option<u16>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(
        Name::from_ascii("wEb.service.consul.").unwrap(),
        RecordType::ANY,
    ));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message
}

fn name(n: usize) -> Name {
    Name::from_utf8(format!("node-number-{n}.node.dc1.consul.")).unwrap()
}

fn sections(kind: u8, count: usize) -> Sections {
    let owner = Name::from_utf8("web.service.consul.").unwrap();
    let data = |n: usize| match kind {
        0 => RData::A(A(std::net::Ipv4Addr::from(u32::try_from(n).unwrap()))),
        1 => RData::SRV(SRV::new(1, 1, 80, name(n))),
        _ => RData::TXT(TXT::new(vec![format!("text number {n}")])),
    };
    let answers = (0..count)
        .map(|n| Record::from_rdata(owner.clone(), 0, data(n)))
        .collect();
    let additionals = if kind == 1 {
        (0..count)
            .map(|n| Record::from_rdata(name(n), 0, RData::A(A([127, 0, 0, 1].into()))))
            .collect()
    } else {
        Vec::new()
    };
    Sections {
        answers,
        additionals,
        exists: true,
        ..Sections::default()
    }
}

proptest! {
    #[test]
    fn answers_fit_keep_one_and_say_so(kind in 0u8..3, count in 1usize..600, edns in proptest::option::of(512u16..4096), tcp: bool, tc: bool) {
        let via = if tcp { Via::Tcp } else { UDP };
        let (bytes, trimmed) = encode(&question(edns), sections(kind, count), via, Style { set_tc: tc, ..PLAIN }).unwrap();
        let max = if tcp { MESSAGE_MAX } else { usize::from(edns.unwrap_or(512)).max(512) };
        prop_assert!(bytes.len() <= max);
        let reply = Message::from_vec(&bytes).unwrap();
        prop_assert!(!reply.answers.is_empty(), "never trimmed to nothing");
        prop_assert_eq!(trimmed, reply.answers.len() < count);
        prop_assert_eq!(reply.metadata.truncation, trimmed && tc && !tcp);
        if kind == 1 {
            prop_assert_eq!(reply.additionals.len(), reply.answers.len(), "extras follow their answers");
        }
        if !tcp && edns.unwrap_or(512) == 512 {
            prop_assert!(reply.answers.len() <= 3);
        }
    }

    #[test]
    fn no_packet_makes_us_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = receive(&packet);
    }

    #[test]
    fn a_cut_question_is_refused_not_dropped_silently(cut in 12usize..30) {
        let whole = question(Some(1232)).to_vec().unwrap();
        if cut < whole.len() {
            let refused = matches!(receive(&whole[..cut]), Received::Refused { reason: "dns.unreadable", .. });
            prop_assert!(refused);
        }
    }
}

fn text(owner: &Name, bytes: usize) -> Record {
    let value = vec![b'x'; bytes];
    let data = TXT::from_bytes(value.chunks(255).collect());
    Record::from_rdata(owner.clone(), 0, RData::TXT(data))
}

fn ask(sections: Sections, edns: Option<u16>) -> (Message, bool) {
    let (bytes, cut) = encode(&question(edns), sections, UDP, PLAIN).unwrap();
    (Message::from_vec(&bytes).unwrap(), cut)
}

#[test]
fn extras_never_crowd_out_an_answer() {
    let mut node = sections(0, 1);
    node.additionals.push(text(&node.answers[0].name, 600));
    let (reply, cut) = ask(node, None);
    assert_eq!((reply.answers.len(), reply.additionals.len()), (1, 0));
    assert!(
        !cut && !reply.metadata.truncation,
        "nothing asked for is missing"
    );

    let mut empty = sections(0, 0);
    empty.additionals.push(text(&name(1), 600));
    let (reply, _) = ask(empty, None);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);

    // The metadata goes before the addresses of the targets.
    let mut srv = sections(1, 3);
    srv.additionals.extend((0..3).map(|n| text(&name(n), 150)));
    let (reply, cut) = ask(srv, None);
    let kinds: Vec<_> = reply.additionals.iter().map(Record::record_type).collect();
    assert_eq!((reply.answers.len(), kinds), (3, vec![RecordType::A; 3]));
    assert!(!cut);
}

#[test]
fn answers_that_were_never_made_are_missing_too() {
    let mut some = sections(0, 2);
    some.more = true;
    let (reply, cut) = ask(some, Some(4_096));
    assert!(cut && reply.answers.len() == 2);
}

#[test]
fn one_answer_more_is_made_than_is_sent() {
    let most = |edns, via| most_answers(&question(edns), via, PLAIN);
    assert_eq!(most(None, UDP), 4);
    assert_eq!(most(Some(300), UDP), 4);
    assert_eq!(most(None, Via::Tcp), ANSWERS_MAX);
    for size in [600, 1_232, 4_096] {
        // The smallest records there are: of an address, below a name that is a pointer.
        let made = most(Some(size), UDP);
        let (reply, cut) = ask(sections(0, made), Some(size));
        assert!(cut && reply.answers.len() < made, "{size}: {made}");
        let (whole, _) = ask(sections(0, 600), Some(size));
        assert_eq!(reply.answers.len(), whole.answers.len(), "{size}");
    }
}

#[test]
fn an_answer_that_is_too_large_alone_is_asked_for_by_tcp() {
    let mut big = sections(2, 0);
    big.answers.push(text(&name(1), 600));
    let (reply, cut) = ask(big, None);
    assert!(cut && reply.metadata.truncation && reply.answers.is_empty());
}

#[test]
fn no_client_makes_us_send_what_cannot_be_sent() {
    for (via, most) in [(UDP, UDP_NEAR_MAX), (Via::Udp { near: false }, UDP_FAR_MAX)] {
        let (bytes, cut) = encode(&question(Some(65_535)), sections(2, 2_500), via, PLAIN).unwrap();
        assert!(cut && bytes.len() <= most, "{} bytes", bytes.len());
        assert!(bytes.len() > most - 100, "{} bytes", bytes.len());
    }
}

#[test]
fn the_question_is_echoed_as_asked() {
    let (bytes, _) = encode(&question(None), sections(0, 1), UDP, PLAIN).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("wEb"), "letter case of the question is kept");
}
