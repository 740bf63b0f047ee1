//! DNS from outside: a client for one question, and a recursor that answers as a test wants it.
//!
//! Owns: a reading of RFC 1035 §4 of its own, so that a mistake of the server's is not made twice.
//! Never: retries, or asks by TCP by itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const PTR: u16 = 12;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
pub(crate) const ANY: u16 = 255;

/// An answer, as far as tests look at it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) rcode: u8,
    pub(crate) tc: bool,
    pub(crate) ra: bool,
    pub(crate) bytes: usize,
    /// The question's name as echoed.
    pub(crate) question: String,
    /// `name ttl type data`, sorted: servers shuffle.
    pub(crate) answers: Vec<String>,
    pub(crate) additionals: Vec<String>,
}

/// Asks by UDP; `size`: of the EDNS record, none for `None`.
pub(crate) fn udp(server: &str, name: &str, kind: u16, size: Option<u16>) -> Answer {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(format!("{server}:8600")).unwrap();
    socket.send(&question(7, name, kind, size)).unwrap();
    let mut bytes = vec![0; 65_535];
    let length = socket.recv(&mut bytes).expect("an answer by UDP");
    read(&bytes[..length])
}

/// Asks by TCP.
pub(crate) fn tcp(server: &str, name: &str, kind: u16) -> Answer {
    let mut stream = TcpStream::connect(format!("{server}:8600")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(&framed(&question(7, name, kind, None)))
        .unwrap();
    read(&take(&mut stream).expect("an answer by TCP"))
}

/// What comes back for any bytes by UDP, within `wait`.
pub(crate) fn packet_by_udp(server: &str, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    socket.connect(format!("{server}:8600")).unwrap();
    socket.send(packet).unwrap();
    let mut bytes = vec![0; 65_535];
    let length = socket.recv(&mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// What comes back for any bytes by TCP; none when the connection is closed instead.
pub(crate) fn packet_by_tcp(server: &str, packet: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(format!("{server}:8600")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&framed(packet)).unwrap();
    take(&mut stream)
}

/// A question; id and flags as a stub resolver sets them.
pub(crate) fn question(id: u16, name: &str, kind: u16, size: Option<u16>) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(size.is_some())]);
    for label in name.trim_end_matches('.').split('.') {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    if let Some(size) = size {
        out.extend([0, 0, 41]);
        out.extend(size.to_be_bytes());
        out.extend([0; 6]);
    }
    out
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], message].concat()
}

fn take(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// The name at `at`, and where it ends.
fn name(bytes: &[u8], mut at: usize) -> (String, usize) {
    let (mut text, mut end) = (String::new(), None);
    loop {
        match bytes[at] {
            0 => return (text, end.unwrap_or(at + 1)),
            pointer if pointer >= 0xc0 => {
                end = end.or(Some(at + 2));
                at = number(bytes, at) & 0x3fff;
            }
            length => {
                let label = &bytes[at + 1..=at + usize::from(length)];
                text.push_str(&String::from_utf8_lossy(label));
                text.push('.');
                at += 1 + usize::from(length);
            }
        }
    }
}

fn read(bytes: &[u8]) -> Answer {
    assert!(bytes[2] & 0x80 != 0, "a response");
    let (question, mut at) = match number(bytes, 4) {
        0 => (String::new(), 12),
        _ => {
            let (text, end) = name(bytes, 12);
            (text, end + 4)
        }
    };
    let mut section = |count: usize| {
        let mut lines = Vec::new();
        for _ in 0..count {
            let (owner, end) = name(bytes, at);
            let kind = number(bytes, end);
            let ttl = number(bytes, end + 4) << 16 | number(bytes, end + 6);
            let (from, to) = (end + 10, end + 10 + number(bytes, end + 8));
            at = to;
            // The OPT record is no record.
            if kind != 41 {
                lines.push(format!("{owner} {ttl} {}", data(bytes, kind, from, to)));
            }
        }
        assert!(at <= bytes.len(), "records end where the message does");
        lines.sort();
        lines
    };
    let answers = section(number(bytes, 6));
    section(number(bytes, 8));
    let additionals = section(number(bytes, 10));
    Answer {
        rcode: bytes[3] & 0x0f,
        tc: bytes[2] & 2 != 0,
        ra: bytes[3] & 0x80 != 0,
        bytes: bytes.len(),
        question,
        answers,
        additionals,
    }
}

fn data(bytes: &[u8], kind: usize, from: usize, to: usize) -> String {
    let raw = &bytes[from..to];
    match (kind, raw.len()) {
        (1, 4) => format!("A {}.{}.{}.{}", raw[0], raw[1], raw[2], raw[3]),
        (28, 16) => {
            let octets: [u8; 16] = raw.try_into().unwrap();
            format!("AAAA {}", std::net::Ipv6Addr::from(octets))
        }
        (5, _) => format!("CNAME {}", name(bytes, from).0),
        (12, _) => format!("PTR {}", name(bytes, from).0),
        (16, _) => format!("TXT {}", String::from_utf8_lossy(&raw[1..])),
        (33, _) => format!(
            "SRV {} {} {} {}",
            number(bytes, from),
            number(bytes, from + 2),
            number(bytes, from + 4),
            name(bytes, from + 6).0
        ),
        _ => format!("TYPE{kind}"),
    }
}

/// What a recursor does with a question.
#[derive(Clone)]
pub(crate) enum Does {
    /// Answers these addresses (TTL 60); over UDP cut if they exceed 512 bytes.
    Addresses(Vec<[u8; 4]>),
    /// Answers this code.
    Code(u8),
    /// Says nothing.
    Silence,
}

/// A question that reached a recursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) id: u16,
    pub(crate) port: u16,
    pub(crate) tcp: bool,
}

/// A recursor on loopback, UDP and TCP on one port, as long as the test runs.
pub(crate) struct Recursor {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    does: Arc<Mutex<Does>>,
}

impl Recursor {
    pub(crate) fn start(does: Does) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let recursor = Self {
            address: udp.local_addr().unwrap().to_string(),
            seen: Arc::default(),
            does: Arc::new(Mutex::new(does)),
        };
        let (seen, does) = (recursor.seen.clone(), recursor.does.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut bytes) {
                let doing = does.lock().unwrap().clone();
                note(&seen, &bytes[..length], from.port(), false);
                if let Some(answer) = answer(&bytes[..length], &doing, true) {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let (seen, does) = (recursor.seen.clone(), recursor.does.clone());
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let Some(asked) = take(&mut stream) else {
                    continue;
                };
                let doing = does.lock().unwrap().clone();
                note(&seen, &asked, 0, true);
                if let Some(answer) = answer(&asked, &doing, false) {
                    let _ = stream.write_all(&framed(&answer));
                }
            }
        });
        recursor
    }

    pub(crate) fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// The questions since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn note(seen: &Mutex<Vec<Seen>>, asked: &[u8], port: u16, tcp: bool) {
    seen.lock().unwrap().push(Seen {
        name: name(asked, 12).0,
        id: u16::from_be_bytes([asked[0], asked[1]]),
        port,
        tcp,
    });
}

fn answer(asked: &[u8], does: &Does, udp: bool) -> Option<Vec<u8>> {
    let end = name(asked, 12).1 + 4;
    let kind = number(asked, end - 4);
    let (code, addresses): (u8, &[[u8; 4]]) = match does {
        Does::Addresses(all) if kind == usize::from(A) => (0, all),
        Does::Addresses(_) => (0, &[]),
        Does::Code(code) => (*code, &[]),
        Does::Silence => return None,
    };
    let cut = udp && end + addresses.len() * 16 > 512;
    let addresses = if cut { &[] } else { addresses };
    let count = u16::try_from(addresses.len()).unwrap();
    let mut out = asked[..2].to_vec();
    out.extend([0x81 | if cut { 2 } else { 0 }, 0x80 | code, 0, 1]);
    out.extend(count.to_be_bytes());
    out.extend([0; 4]);
    out.extend(&asked[12..end]);
    for address in addresses {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address);
    }
    Some(out)
}
