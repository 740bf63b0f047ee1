//! Packets in, packets out: decoding, flags, EDNS, and one truncation routine for every type.
//!
//! Owns: what fits into which transport.
//! Never: looks anything up.
//! Source: RFC 1035 §4, RFC 6891; CONSUL.md C.2 "UDP limits".

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};

use super::answer::Sections;

/// Largest UDP answer without EDNS (RFC 1035 §2.3.4).
const UDP_PLAIN_MAX: usize = 512;
/// Largest message over TCP, and largest UDP payload a client may ask for.
const MESSAGE_MAX: usize = 65_535;

/// TC in the third byte of a message (RFC 1035 §4.1.1).
const TC_BIT: u8 = 0x02;

/// How the question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Udp,
    Tcp,
}

/// What a packet was.
pub(crate) enum Received {
    /// A question to answer.
    Question(Box<Message>),
    /// Answer this right away: it is no question of ours.
    Refused(Vec<u8>, &'static str),
    /// Not answerable: shorter than a header, or itself a response.
    Garbage,
}

/// Reads a packet; never panics whatever it holds.
pub(crate) fn receive(packet: &[u8]) -> Received {
    const HEADER_BYTES: usize = 12;
    if packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0 {
        return Received::Garbage;
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let Ok(message) = Message::from_vec(packet) else {
        let opcode = OpCode::from_u8((packet[2] >> 3) & 0x0f);
        return refused(
            &Message::error_msg(id, opcode, ResponseCode::FormErr),
            "formerr",
        );
    };
    let mut reply = Message::error_msg(id, message.metadata.op_code, ResponseCode::NotImp);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    if message.metadata.op_code != OpCode::Query {
        reply.queries.clone_from(&message.queries);
        return refused(&reply, "notimp");
    }
    if message.queries.is_empty() {
        reply.metadata.response_code = ResponseCode::Refused;
        return refused(&reply, "refused");
    }
    Received::Question(Box::new(message))
}

fn refused(reply: &Message, rcode: &'static str) -> Received {
    reply
        .to_vec()
        .map_or(Received::Garbage, |bytes| Received::Refused(bytes, rcode))
}

/// An answer without sections: SERVFAIL and the like, with the EDNS of the question kept.
pub(crate) fn bare(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    reply_to(question, code, false).to_vec().ok()
}

fn reply_to(question: &Message, code: ResponseCode, authoritative: bool) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.authoritative = authoritative;
    reply.metadata.response_code = code;
    // Only the first question is answered, and it is echoed as it was asked, letter case included.
    reply.queries = question.queries.iter().take(1).map(echo).collect();
    reply.edns = question.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().max(512));
        edns.set_version(0);
        edns
    });
    reply
}

fn echo(query: &Query) -> Query {
    query.clone()
}

/// Limits that the configuration sets on UDP answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UdpRules {
    pub(crate) answer_limit: usize,
    pub(crate) set_tc: bool,
}

/// Encodes the sections, trimmed from the end until they fit. The flag tells whether they were.
pub(crate) fn encode(
    question: &Message,
    sections: Sections,
    via: Via,
    udp: UdpRules,
) -> Option<(Vec<u8>, bool)> {
    let code = if sections.exists {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    let mut reply = reply_to(question, code, true);
    let max_bytes = match (via, &question.edns) {
        (Via::Tcp, _) => MESSAGE_MAX,
        (Via::Udp, None) => UDP_PLAIN_MAX,
        (Via::Udp, Some(edns)) => usize::from(edns.max_payload()).max(UDP_PLAIN_MAX),
    };
    let whole = sections.answers.len();
    let limit = if via == Via::Udp && max_bytes == UDP_PLAIN_MAX {
        udp.answer_limit.max(1).min(whole)
    } else {
        whole
    };
    reply.authorities = sections.authorities;
    let all = Fitting {
        answers: sections.answers,
        additionals: sections.additionals,
    };
    let (bytes, kept) = all.largest(&mut reply, limit, max_bytes)?;
    if kept == whole {
        return Some((bytes, false));
    }
    if via == Via::Udp && udp.set_tc {
        reply.metadata.truncation = true;
        return all.encode(&mut reply, kept).map(|bytes| (bytes, true));
    }
    Some((bytes, true))
}

struct Fitting {
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

impl Fitting {
    /// The most answers, at most `limit`, that fit into `max_bytes`, by bisection.
    fn largest(
        &self,
        reply: &mut Message,
        limit: usize,
        max_bytes: usize,
    ) -> Option<(Vec<u8>, usize)> {
        let mut fits = |keep: usize| {
            self.encode(reply, keep)
                .filter(|bytes| bytes.len() <= max_bytes)
        };
        if let Some(bytes) = fits(limit) {
            return Some((bytes, limit));
        }
        let (mut best, mut low, mut high) = (None, 0, limit);
        while low < high {
            let keep = usize::midpoint(low, high);
            match fits(keep) {
                Some(bytes) => {
                    best = Some((bytes, keep));
                    low = keep + 1;
                }
                None => high = keep,
            }
        }
        best
    }

    /// With the first `keep` answers and those extras that still belong to them.
    fn encode(&self, reply: &mut Message, keep: usize) -> Option<Vec<u8>> {
        reply.answers.clear();
        reply.answers.extend_from_slice(&self.answers[..keep]);
        reply.additionals.clear();
        if keep == self.answers.len() {
            reply.additionals.extend_from_slice(&self.additionals);
        } else {
            let wanted = |extra: &&Record| {
                reply
                    .answers
                    .iter()
                    .any(|answer| belongs(answer, &extra.name))
            };
            reply.additionals = self.additionals.iter().filter(wanted).cloned().collect();
        }
        let bytes = reply.to_vec().ok()?;
        // The codec cuts what exceeds 64 KiB by itself and sets TC: that is no answer that fits.
        let cut = bytes[2] & TC_BIT != 0 && !reply.metadata.truncation;
        (!cut).then_some(bytes)
    }
}

fn belongs(answer: &Record, extra: &Name) -> bool {
    match &answer.data {
        RData::SRV(srv) => srv.target == *extra,
        RData::NS(ns) => ns.0 == *extra,
        _ => answer.name == *extra,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RecordType;
    use hickory_proto::rr::rdata::{A, SRV, TXT};
    use proptest::prelude::*;

    use super::*;

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
            let via = if tcp { Via::Tcp } else { Via::Udp };
            let (bytes, trimmed) = encode(&question(edns), sections(kind, count), via, UdpRules { answer_limit: 3, set_tc: tc }).unwrap();
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
                prop_assert!(matches!(receive(&whole[..cut]), Received::Refused(_, "formerr")));
            }
        }
    }

    #[test]
    fn the_question_is_echoed_as_asked() {
        let (bytes, _) = encode(
            &question(None),
            sections(0, 1),
            Via::Udp,
            UdpRules {
                answer_limit: 3,
                set_tc: false,
            },
        )
        .unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.contains("wEb"), "letter case of the question is kept");
    }
}
