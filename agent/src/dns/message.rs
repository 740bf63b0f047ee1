//! Packets in, packets out: decoding, flags, EDNS, and one truncation routine for every type.
//!
//! Owns: what fits into which transport.
//! Never: looks anything up.
//! Source: RFC 1035 §4, RFC 6891; CONSUL.md C.2 "UDP limits".

use std::collections::HashMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};

use super::answer::{ANSWERS_MAX, Sections};

/// Largest UDP answer without EDNS (RFC 1035 §2.3.4).
const UDP_PLAIN_MAX: usize = 512;
/// Largest message over TCP.
const MESSAGE_MAX: usize = 65_535;
/// Largest payload of a UDP packet over IPv4: 65,535 less 20 bytes of IP and 8 of UDP header. What is
/// larger cannot be sent, whatever a client asks for.
const UDP_NEAR_MAX: usize = 65_507;
/// Largest UDP answer to another host, whatever it asks for. An answer beyond it goes in a dozen or
/// more fragments, of which any one lost loses all; and a question of 60 bytes with a forged source
/// would be a cannon of 64 KiB. 4,096 is what resolvers ask for at most (RFC 6891 §6.2.5) and where
/// they cut by default; TCP has the rest. Neither reason holds on loopback.
const UDP_FAR_MAX: usize = 4_096;

/// TC in the third byte of a message (RFC 1035 §4.1.1).
const TC_BIT: u8 = 0x02;

/// How the question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// `near`: from this host.
    Udp {
        near: bool,
    },
    Tcp,
}

impl Via {
    pub(crate) fn is_udp(self) -> bool {
        self != Self::Tcp
    }

    /// The largest answer, given what the question's EDNS asks for.
    fn max_bytes(self, edns: Option<u16>) -> usize {
        match (self, edns) {
            (Self::Tcp, _) => MESSAGE_MAX,
            (Self::Udp { .. }, None) => UDP_PLAIN_MAX,
            (Self::Udp { near }, Some(asked)) => {
                let most = if near { UDP_NEAR_MAX } else { UDP_FAR_MAX };
                usize::from(asked).clamp(UDP_PLAIN_MAX, most)
            }
        }
    }
}

/// What a packet was.
pub(crate) enum Received {
    /// A question to answer.
    Question(Box<Message>),
    /// Answer this right away: it is no question of ours.
    Refused {
        bytes: Vec<u8>,
        rcode: &'static str,
        reason: &'static str,
    },
    /// Not answerable, and why: an answer could start a conversation between two servers.
    Garbage(&'static str),
}

/// Reads a packet; never panics whatever it holds.
pub(crate) fn receive(packet: &[u8]) -> Received {
    const HEADER_BYTES: usize = 12;
    if packet.len() < HEADER_BYTES {
        return Received::Garbage("dns.short_packet");
    }
    if packet[2] & 0x80 != 0 {
        return Received::Garbage("dns.not_a_question");
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let Ok(message) = Message::from_vec(packet) else {
        let opcode = OpCode::from_u8((packet[2] >> 3) & 0x0f);
        let reply = Message::error_msg(id, opcode, ResponseCode::FormErr);
        return refused(&reply, "formerr", "dns.unreadable");
    };
    let Some((code, rcode, reason)) = objection(&message) else {
        return Received::Question(Box::new(message));
    };
    let mut reply = reply_to(&message, code, false, false);
    reply.metadata.op_code = message.metadata.op_code;
    refused(&reply, rcode, reason)
}

/// Why a message that could be read is not answered from the catalog.
fn objection(message: &Message) -> Option<(ResponseCode, &'static str, &'static str)> {
    if message.metadata.op_code != OpCode::Query {
        return Some((ResponseCode::NotImp, "notimp", "dns.opcode"));
    }
    let Some(query) = message.queries.first() else {
        return Some((ResponseCode::Refused, "refused", "dns.no_question"));
    };
    // RFC 6891 §6.1.3: what a later version means, nobody knows yet.
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some((ResponseCode::BADVERS, "badvers", "dns.edns_version"));
    }
    if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return Some((ResponseCode::NotImp, "notimp", "dns.transfer"));
    }
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Some((ResponseCode::Refused, "refused", "dns.class"));
    }
    None
}

fn refused(reply: &Message, rcode: &'static str, reason: &'static str) -> Received {
    match reply.to_vec() {
        Ok(bytes) => Received::Refused {
            bytes,
            rcode,
            reason,
        },
        Err(_) => Received::Garbage(reason),
    }
}

/// An answer without sections: SERVFAIL and the like, with the EDNS of the question kept.
pub(crate) fn bare(question: &Message, code: ResponseCode, style: Style) -> Option<Vec<u8>> {
    written(
        &reply_to(question, code, false, style.recursion),
        style.compress,
    )
}

/// The question as a recursor is asked it: one question in the letter case it came in, its flags, and of
/// EDNS the size and the client's subnet. Cookies and the like are between the client and us.
pub(crate) fn forwarded(question: &Message) -> Option<Vec<u8>> {
    let mut out = Message::new(0, MessageType::Query, OpCode::Query);
    out.metadata.recursion_desired = question.metadata.recursion_desired;
    out.metadata.checking_disabled = question.metadata.checking_disabled;
    out.metadata.authentic_data = question.metadata.authentic_data;
    out.queries = question.queries.iter().take(1).map(echo).collect();
    out.edns = question.edns.as_ref().map(|asked| {
        let most = u16::try_from(UDP_FAR_MAX).unwrap_or(u16::MAX);
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().clamp(512, most));
        edns.set_version(0);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        if let Some(subnet) = asked.option(EdnsCode::Subnet) {
            edns.options_mut().insert(subnet.clone());
        }
        edns
    });
    out.to_vec().ok()
}

/// A recursor's answer as the client gets it: the same bytes under the client's id, or the question with
/// TC when they are too many for UDP. The flag tells whether it was cut.
pub(crate) fn passed_on(
    question: &Message,
    mut answer: Vec<u8>,
    via: Via,
) -> Option<(Vec<u8>, bool)> {
    let max_bytes = via.max_bytes(question.edns.as_ref().map(Edns::max_payload));
    if answer.len() <= max_bytes {
        answer
            .get_mut(..2)?
            .copy_from_slice(&question.metadata.id.to_be_bytes());
        return Some((answer, false));
    }
    let mut reply = reply_to(question, ResponseCode::NoError, false, true);
    reply.metadata.truncation = true;
    reply.to_vec().ok().map(|bytes| (bytes, true))
}

fn reply_to(
    question: &Message,
    code: ResponseCode,
    authoritative: bool,
    recursion: bool,
) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = recursion;
    reply.metadata.authoritative = authoritative;
    reply.metadata.response_code = code;
    // Only the first question is answered, and it is echoed as it was asked, letter case included.
    reply.queries = question.queries.iter().take(1).map(echo).collect();
    reply.edns = question.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().max(512));
        edns.set_version(0);
        // Most answers do not depend on where the client is: scope 0 (RFC 7871 §7.2.1).
        set_scope(&mut edns, asked, false);
        edns
    });
    reply
}

/// Echoes the client's subnet: the answer is for all clients, or for those of the subnet.
fn set_scope(edns: &mut Edns, asked: &Edns, for_client: bool) {
    if let Some(EdnsOption::Subnet(subnet)) = asked.option(EdnsCode::Subnet) {
        let prefix = subnet.source_prefix();
        let scope = if for_client { prefix } else { 0 };
        let echo = ClientSubnet::new(subnet.addr(), prefix, scope);
        edns.options_mut().remove(EdnsCode::Subnet);
        edns.options_mut().insert(EdnsOption::Subnet(echo));
    }
}

/// Whom an answer is for: the subnet that a question names (a resolver asks for its client), else where
/// it came from.
pub(crate) fn client_of(question: &Message, from: IpAddr) -> IpAddr {
    let edns = question.edns.as_ref();
    match edns.and_then(|edns| edns.option(EdnsCode::Subnet)) {
        Some(EdnsOption::Subnet(subnet)) if subnet.source_prefix() > 0 => subnet.addr(),
        _ => from,
    }
}

/// The bytes of a message, names written once or every time.
fn written(message: &Message, compress: bool) -> Option<Vec<u8>> {
    if compress {
        return message.to_vec().ok();
    }
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

fn echo(query: &Query) -> Query {
    query.clone()
}

/// What the configuration says of the form of answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Most answers over UDP in 512 bytes.
    pub(crate) answer_limit: usize,
    /// Set TC on a cut answer.
    pub(crate) set_tc: bool,
    /// Write names that occur again as pointers.
    pub(crate) compress: bool,
    /// Other names are asked elsewhere: RA.
    pub(crate) recursion: bool,
}

impl Style {
    /// The most answers that count alone allows; none where only the size does.
    fn limit(self, via: Via, max_bytes: usize) -> Option<usize> {
        (via.is_udp() && max_bytes == UDP_PLAIN_MAX).then(|| self.answer_limit.max(1))
    }
}

/// Answers worth making for a question: one more than can be sent.
pub(crate) fn most_answers(question: &Message, via: Via, style: Style) -> usize {
    let max_bytes = via.max_bytes(question.edns.as_ref().map(Edns::max_payload));
    let most = match style.limit(via, max_bytes) {
        Some(limit) => limit,
        None => max_bytes / RECORD_MIN_BYTES,
    };
    most.saturating_add(1).min(ANSWERS_MAX)
}

/// A record of one byte under a name that is a pointer (RFC 1035 §4.1.3, §4.1.4).
const RECORD_MIN_BYTES: usize = 13;

/// Encodes the sections, trimmed from the end until they fit. The flag tells whether answers were
/// left out. Extras go first, TXT before addresses: they may be asked for by their own names.
pub(crate) fn encode(
    question: &Message,
    sections: Sections,
    via: Via,
    style: Style,
) -> Option<(Vec<u8>, bool)> {
    let code = if sections.exists {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    let mut reply = reply_to(question, code, true, style.recursion);
    if let (true, Some(edns), Some(asked)) = (sections.for_client, &mut reply.edns, &question.edns)
    {
        set_scope(edns, asked, true);
    }
    let max_bytes = via.max_bytes(question.edns.as_ref().map(Edns::max_payload));
    let (whole, more) = (sections.answers.len(), sections.more);
    let limit = style
        .limit(via, max_bytes)
        .map_or(whole, |limit| limit.min(whole));
    reply.authorities = sections.authorities;
    let mut all = Fitting::new(
        sections.answers,
        sections.additionals,
        limit,
        style.compress,
    );
    let (bytes, kept) = all.best(&mut reply, max_bytes)?;
    if kept == whole && !more {
        return Some((bytes, false));
    }
    // An empty answer would deny what is there: then TC is no matter of taste.
    if via.is_udp() && (style.set_tc || kept == 0) {
        return Some((with_tc(bytes), true));
    }
    Some((bytes, true))
}

/// The message with TC set: it was cut.
fn with_tc(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(flags) = bytes.get_mut(2) {
        *flags |= TC_BIT;
    }
    bytes
}

struct Fitting {
    answers: Vec<Record>,
    /// Each with the first answer it belongs to: it stays as long as that one does. An extra that
    /// belongs to none goes with the first that is left out.
    additionals: Vec<(usize, Record)>,
    compress: bool,
}

impl Fitting {
    /// Answers beyond `limit` are not sent whatever their size.
    fn new(
        mut answers: Vec<Record>,
        additionals: Vec<Record>,
        limit: usize,
        compress: bool,
    ) -> Self {
        let mut first = HashMap::new();
        if !additionals.is_empty() {
            for (at, answer) in answers.iter().enumerate() {
                first.entry(named(answer)).or_insert(at);
            }
        }
        let last = answers.len().saturating_sub(1);
        let place = |extra: Record| {
            let at = first.get(&extra.name).copied().unwrap_or(last);
            // What an alias leads to belongs where the alias does.
            if let RData::CNAME(alias) = &extra.data {
                first.entry(alias.0.clone()).or_insert(at);
            }
            (at, extra)
        };
        let mut additionals: Vec<_> = additionals.into_iter().map(place).collect();
        if limit < answers.len() {
            answers.truncate(limit);
            additionals.retain(|(at, _)| *at < limit);
        }
        Self {
            answers,
            additionals,
            compress,
        }
    }

    /// The most answers that fit into `max_bytes`, with as many extras as can be. What was left out
    /// stays out.
    fn best(&mut self, reply: &mut Message, max_bytes: usize) -> Option<(Vec<u8>, usize)> {
        let all = self.answers.len();
        if let Some(bytes) = self.whole(reply, max_bytes) {
            return Some((bytes, all));
        }
        self.additionals
            .retain(|(_, extra)| extra.record_type() != RecordType::TXT);
        let with_addresses = self.largest(reply, max_bytes);
        if self.additionals.is_empty() || with_addresses.as_ref().is_some_and(|(_, kept)| *kept > 0)
        {
            return with_addresses;
        }
        self.additionals.clear();
        self.largest(reply, max_bytes)
    }

    /// All of it, if it fits: most answers do, so nothing is copied for it.
    fn whole(&mut self, reply: &mut Message, max_bytes: usize) -> Option<Vec<u8>> {
        reply.answers = std::mem::take(&mut self.answers);
        let (places, extras): (Vec<usize>, Vec<Record>) = self.additionals.drain(..).unzip();
        reply.additionals = extras;
        let bytes = self.written(reply).filter(|bytes| bytes.len() <= max_bytes);
        if bytes.is_none() {
            self.answers = std::mem::take(&mut reply.answers);
            let extras = std::mem::take(&mut reply.additionals);
            self.additionals = places.into_iter().zip(extras).collect();
        }
        bytes
    }

    /// The most answers that fit, by bisection.
    fn largest(&self, reply: &mut Message, max_bytes: usize) -> Option<(Vec<u8>, usize)> {
        let (mut best, mut low, mut high) = (None, 0, self.answers.len() + 1);
        while low < high {
            let keep = usize::midpoint(low, high);
            match self.fits(reply, keep, max_bytes) {
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
    fn fits(&self, reply: &mut Message, keep: usize, max_bytes: usize) -> Option<Vec<u8>> {
        reply.answers.clear();
        reply.answers.extend_from_slice(&self.answers[..keep]);
        let all = keep == self.answers.len();
        let kept = self
            .additionals
            .iter()
            .filter(|(first, _)| all || *first < keep)
            .map(|(_, extra)| extra.clone());
        reply.additionals = kept.collect();
        self.written(reply).filter(|bytes| bytes.len() <= max_bytes)
    }

    fn written(&self, reply: &Message) -> Option<Vec<u8>> {
        let bytes = written(reply, self.compress)?;
        // The codec cuts what exceeds 64 KiB by itself and sets TC: that is no answer that fits.
        (bytes[2] & TC_BIT == 0).then_some(bytes)
    }
}

/// The name whose extras belong to an answer.
fn named(answer: &Record) -> Name {
    match &answer.data {
        RData::SRV(srv) => srv.target.clone(),
        RData::NS(ns) => ns.0.clone(),
        _ => answer.name.clone(),
    }
}

#[cfg(test)]
mod tests;
