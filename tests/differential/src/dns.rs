//! A DNS client for one question: UDP or TCP, with or without EDNS; the answer becomes a document to compare.
//!
//! Owns: which parts of an answer matter. Never: retries, and never follows a truncated answer to TCP by itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};

use crate::normal::Names;

const TIMEOUT: Duration = Duration::from_secs(3);
const QUESTION_ID: u16 = 0x5eed;

/// One question and how it travels.
#[derive(Debug)]
pub(crate) struct Question<'q> {
    pub(crate) name: &'q str,
    pub(crate) kind: &'q str,
    pub(crate) tcp: bool,
    /// The client's payload size in bytes, which also adds the OPT record.
    pub(crate) edns: Option<u16>,
}

/// Asks, and turns the answer into a document. `count` keeps only how many records there are.
pub(crate) fn ask(
    server: SocketAddr,
    question: &Question<'_>,
    names: &Names,
    count: bool,
) -> Result<Value> {
    let mut query = Message::new(QUESTION_ID, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let kind = RecordType::from_str(question.kind)
        .with_context(|| format!("record type {}", question.kind))?;
    query.add_query(Query::query(Name::from_ascii(question.name)?, kind));
    if let Some(size) = question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        query.set_edns(edns);
    }
    let packet = query.to_vec()?;
    let raw = if question.tcp {
        over_tcp(server, &packet)?
    } else {
        over_udp(server, &packet)?.context("no answer within 3 s")?
    };
    Ok(document(
        &Message::from_vec(&raw).context("an answer that is no DNS message")?,
        names,
        count,
    ))
}

/// Sends bytes that need not be a message; the document tells the answer's code, or that none came.
pub(crate) fn packet(server: SocketAddr, bytes: &[u8]) -> Result<Value> {
    Ok(match over_udp(server, bytes)? {
        None => json!("no answer"),
        Some(raw) => match Message::from_vec(&raw) {
            Ok(message) => json!({"rcode": format!("{:?}", message.metadata.response_code)}),
            Err(_) => json!(format!("{} bytes that are no message", raw.len())),
        },
    })
}

fn over_udp(server: SocketAddr, packet: &[u8]) -> Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(packet)?;
    let mut raw = vec![0; 65_535];
    match socket.recv(&mut raw) {
        Ok(length) => {
            raw.truncate(length);
            Ok(Some(raw))
        }
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("receive over UDP"),
    }
}

fn over_tcp(server: SocketAddr, packet: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut framed = u16::try_from(packet.len())?.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream
        .read_exact(&mut length)
        .context("read the answer's length")?;
    let mut raw = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut raw)?;
    Ok(raw)
}

fn document(message: &Message, names: &Names, count: bool) -> Value {
    let head = &message.metadata;
    let section = |records: &[Record]| match count {
        true => json!(records.len()),
        false => {
            // Servers shuffle: order is no part of the answer.
            let mut lines: Vec<String> = records.iter().map(|r| names.text(&line(r))).collect();
            lines.sort();
            json!(lines)
        }
    };
    json!({
        "rcode": format!("{:?}", head.response_code),
        "flags": {"aa": head.authoritative, "tc": head.truncation, "rd": head.recursion_desired, "ra": head.recursion_available},
        "question": message.queries.iter().map(|q| format!("{} {}", names.text(&q.name().to_ascii()), q.query_type())).collect::<Vec<_>>(),
        "answers": section(&message.answers),
        "authorities": section(&message.authorities),
        "additionals": section(&message.additionals),
        "edns": message.edns.as_ref().map(|e| e.max_payload()),
    })
}

fn line(record: &Record) -> String {
    let data = match &record.data {
        // The serial is the server's clock.
        RData::SOA(soa) => format!(
            "{} {} <serial> {} {} {} {}",
            soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum
        ),
        other => other.to_string(),
    };
    format!(
        "{} {} {} {data}",
        record.name.to_ascii(),
        record.ttl,
        record.record_type()
    )
}
