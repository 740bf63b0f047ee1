//! Names of other domains, asked of the recursors.
//!
//! Owns: order, time-outs, ids and ports of questions to recursors, TCP after a cut answer, the bound on
//! how many are under way, loops.
//! Never: reads the catalog; what a recursor says is passed on or refused, never believed about our zone.
//! Source: CONSUL.md C.2 "Recursors"; RFC 1035 §4.2, RFC 5452 §9 (ids, ports, what an answer must match).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::metrics::{Cause, DnsMetrics, Outcome};
use super::seats::{Full, Seat, Seats};

/// Questions to recursors under way at once; further ones are SERVFAIL. Each holds a socket and at most
/// a buffer of 4 KiB, for as long as `dns_config.recursor_timeout` a recursor.
const UNDER_WAY_MAX: usize = 1_024;
/// Those of one client address, so that one client cannot take all places.
const UNDER_WAY_PER_CLIENT_MAX: usize = 256;
/// The same question under way from a recursor's own address: more is our question coming round.
const SAME_FROM_RECURSOR_MAX: usize = 32;
/// Aliases in one answer of a recursor; a longer chain is a mistake or a loop.
const ALIASES_MAX: usize = 16;
/// The payload our own questions offer (what passes every network unfragmented).
const OWN_PAYLOAD_BYTES: u16 = 1_232;
const DATAGRAM_MAX_BYTES: usize = 4_096;

/// Order of asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// As configured.
    #[default]
    Sequential,
    /// In a random order for each question.
    Random,
}

/// Whom to ask (`recursors`, `dns_config.recursor_strategy`, `dns_config.recursor_timeout`).
#[derive(Clone, Debug, Default)]
pub struct RecursorOptions {
    /// Their addresses; none: other names are refused.
    pub addresses: Vec<SocketAddr>,
    /// In which order.
    pub strategy: Strategy,
    /// Wait for one of them.
    pub timeout: Duration,
}

/// Asks recursors.
pub(crate) struct Recursion {
    seats: Arc<Seats>,
    metrics: DnsMetrics,
    dice: Mutex<StdRng>,
    same: Arc<Mutex<HashMap<Same, usize>>>,
}

type Same = (IpAddr, Vec<u8>);

/// The right to ask; given back when dropped.
pub(crate) struct Leave {
    _seat: Seat,
    _counted: Option<Counted>,
}

struct Counted {
    same: Arc<Mutex<HashMap<Same, usize>>>,
    key: Same,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut same = self.same.lock();
        if let Some(count) = same.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                same.remove(&self.key);
            }
        }
    }
}

impl Recursion {
    /// `dice`: of ids and orders; must not be guessable, for whoever guesses an id may answer.
    pub(crate) fn new(metrics: DnsMetrics, dice: StdRng) -> Self {
        Self {
            seats: Seats::new(UNDER_WAY_MAX, UNDER_WAY_PER_CLIENT_MAX),
            metrics,
            dice: Mutex::new(dice),
            same: Arc::default(),
        }
    }

    /// With dice of the operating system's entropy.
    ///
    /// Errors: the operating system has none.
    pub(crate) fn with_entropy(metrics: DnsMetrics) -> io::Result<Self> {
        let dice = StdRng::try_from_rng(&mut rand::rngs::SysRng).map_err(io::Error::other)?;
        Ok(Self::new(metrics, dice))
    }

    /// May a question of `client` be passed on? `Err`: not now, and why.
    pub(crate) fn admit(
        &self,
        options: &RecursorOptions,
        client: IpAddr,
        question: &Message,
    ) -> Result<Leave, Cause> {
        let from_recursor = options
            .addresses
            .iter()
            .any(|address| address.ip().to_canonical() == client.to_canonical());
        let counted = match from_recursor {
            true => Some(self.count(client, question)?),
            false => None,
        };
        Ok(Leave {
            _seat: self.seat(client)?,
            _counted: counted,
        })
    }

    fn seat(&self, client: IpAddr) -> Result<Seat, Cause> {
        self.seats.take(client).map_err(|full| match full {
            Full::All => Cause::RecursionsMax,
            Full::OfClient => Cause::RecursionsOfClient,
        })
    }

    fn count(&self, client: IpAddr, question: &Message) -> Result<Counted, Cause> {
        let key = (client.to_canonical(), fingerprint(question));
        let mut same = self.same.lock();
        let count = same.entry(key.clone()).or_default();
        if *count >= SAME_FROM_RECURSOR_MAX {
            return Err(Cause::RecursionLoop);
        }
        *count += 1;
        drop(same);
        Ok(Counted {
            same: Arc::clone(&self.same),
            key,
        })
    }

    /// The first useful answer (NOERROR or NXDOMAIN) of any recursor to `packet`, a question whose id is
    /// chosen here. `tcp`: ask by TCP at once, as the client did.
    pub(crate) async fn ask(
        &self,
        options: &RecursorOptions,
        packet: &[u8],
        tcp: bool,
    ) -> Result<Vec<u8>, Cause> {
        let mut order = options.addresses.clone();
        if options.strategy == Strategy::Random {
            order.shuffle(&mut *self.dice.lock());
        }
        for address in order {
            let id: u16 = self.dice.lock().random();
            let mut packet = packet.to_vec();
            let Some(head) = packet.get_mut(..2) else {
                break;
            };
            head.copy_from_slice(&id.to_be_bytes());
            let asking = self.one(address, &packet, tcp);
            let outcome = match tokio::time::timeout(options.timeout, asking).await {
                Ok(Ok((answer, message))) if useful(&message) => {
                    self.metrics.recursor(Outcome::Answered);
                    return Ok(answer);
                }
                Ok(Ok(_)) => Outcome::Refused,
                Ok(Err(_)) => Outcome::Unreachable,
                Err(_) => Outcome::TimedOut,
            };
            self.metrics.recursor(outcome);
            tracing::debug!(peer.addr = %address, outcome = outcome.label(), "recursor gave no answer");
        }
        Err(Cause::RecursorsFailed)
    }

    /// One recursor's answer. The caller bounds the time.
    async fn one(
        &self,
        address: SocketAddr,
        packet: &[u8],
        tcp: bool,
    ) -> io::Result<(Vec<u8>, Message)> {
        if tcp {
            return by_tcp(address, packet).await;
        }
        let (bytes, message) = self.by_udp(address, packet).await?;
        if !message.metadata.truncation {
            return Ok((bytes, message));
        }
        self.metrics.recursor(Outcome::Cut);
        // A cut answer is better than none: the client sees TC and may ask again.
        Ok(by_tcp(address, packet).await.unwrap_or((bytes, message)))
    }

    async fn by_udp(&self, address: SocketAddr, packet: &[u8]) -> io::Result<(Vec<u8>, Message)> {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // A socket of its own, so a port of its own: the kernel picks it at random.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        socket.send(packet).await?;
        let mut bytes = vec![0; DATAGRAM_MAX_BYTES];
        loop {
            let length = socket.recv(&mut bytes).await?;
            if let Some(message) = answers(packet, &bytes[..length]) {
                bytes.truncate(length);
                return Ok((bytes, message));
            }
            self.metrics.recursor(Outcome::Stray);
        }
    }

    /// Addresses of a name that one of our answers to `client` points to, and the aliases that lead to
    /// them; empty when nobody knows or no seat is free.
    pub(crate) async fn addresses(
        &self,
        options: &RecursorOptions,
        client: IpAddr,
        name: &Name,
        kind: RecordType,
    ) -> Vec<Record> {
        let asked = async {
            let _seat = self.seat(client)?;
            let Ok(packet) = question(name, kind).to_vec() else {
                return Ok(Vec::new());
            };
            let answer = self.ask(options, &packet, false).await?;
            Ok(Message::from_vec(&answer)
                .map_or_else(|_| Vec::new(), |answer| reached(answer.answers, name, kind)))
        };
        asked.await.unwrap_or_else(|cause| {
            self.metrics.empty(cause);
            Vec::new()
        })
    }
}

/// A question of our own.
fn question(name: &Name, kind: RecordType) -> Message {
    let mut question = Message::new(0, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.queries.push(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(OWN_PAYLOAD_BYTES);
    question.edns = Some(edns);
    question
}

/// Of an answer's records those that are about `name`: its own, and those of the names that its aliases
/// lead to (RFC 1034 §3.6.2). What else a recursor says about anybody is not ours to pass on.
fn reached(mut records: Vec<Record>, name: &Name, kind: RecordType) -> Vec<Record> {
    let mut owners = vec![name.clone()];
    while let Some(next) = owners.last().and_then(|owner| alias_of(&records, owner)) {
        if owners.len() > ALIASES_MAX || owners.contains(&next) {
            break;
        }
        owners.push(next);
    }
    records.retain(|record| {
        [kind, RecordType::CNAME].contains(&record.record_type()) && owners.contains(&record.name)
    });
    records
}

fn alias_of(records: &[Record], owner: &Name) -> Option<Name> {
    records.iter().find_map(|record| match &record.data {
        RData::CNAME(alias) if record.name == *owner => Some(alias.0.clone()),
        _ => None,
    })
}

async fn by_tcp(address: SocketAddr, packet: &[u8]) -> io::Result<(Vec<u8>, Message)> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], packet].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    let message =
        answers(packet, &bytes).ok_or_else(|| io::Error::other("an answer to another question"))?;
    Ok((bytes, message))
}

/// The message in `bytes` if it answers the question in `packet`: a response with its id and question.
fn answers(packet: &[u8], bytes: &[u8]) -> Option<Message> {
    let (asked, said) = (
        Message::from_vec(packet).ok()?,
        Message::from_vec(bytes).ok()?,
    );
    let same = said.metadata.id == asked.metadata.id
        && said.metadata.message_type == MessageType::Response
        && (said.queries.is_empty() && said.metadata.response_code != ResponseCode::NoError
            || fingerprint(&said) == fingerprint(&asked));
    same.then_some(said)
}

fn useful(answer: &Message) -> bool {
    matches!(
        answer.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    )
}

/// Name (whatever its letter case), type and class of a message's first question.
fn fingerprint(message: &Message) -> Vec<u8> {
    message.queries.first().map_or_else(Vec::new, |query| {
        let name = query.name().to_lowercase().to_ascii();
        let kind: [u8; 2] = u16::from(query.query_type()).to_be_bytes();
        let class: [u8; 2] = u16::from(query.query_class()).to_be_bytes();
        [name.as_bytes(), &kind, &class].concat()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn of_an_answer_only_what_is_about_the_name_is_taken() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let record = |line: &str| {
            let (owner, data) = line.split_once(' ').unwrap();
            let data = match data.parse::<Ipv4Addr>() {
                Ok(ip) => RData::A(A(ip)),
                Err(_) => RData::CNAME(CNAME(name(data))),
            };
            Record::from_rdata(name(owner), 60, data)
        };
        let check = |lines: &[&str], kept: &[usize]| {
            let records: Vec<Record> = lines.iter().map(|line| record(line)).collect();
            let expected: Vec<Record> = kept.iter().map(|at| records[*at].clone()).collect();
            let found = reached(records, &name("a.example."), RecordType::A);
            assert_eq!(found, expected, "{lines:?}");
        };
        check(&["A.example. 192.0.2.1", "b.example. 192.0.2.2"], &[0]);
        check(&["web.service.consul. 192.0.2.6"], &[]);
        check(
            &[
                "c.example. 192.0.2.1",
                "b.example. c.example.",
                "a.example. b.example.",
                "x.example. c.example.",
                "x.example. 192.0.2.6",
            ],
            &[0, 1, 2],
        );
        check(&["a.example. b.example.", "b.example. a.example."], &[0, 1]);
    }

    fn question(name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.queries.push(Query::query(name, RecordType::A));
        message
    }

    fn answer(to: &Message, code: ResponseCode, ip: [u8; 4]) -> Message {
        let mut reply = Message::new(to.metadata.id, MessageType::Response, OpCode::Query);
        reply.queries.clone_from(&to.queries);
        reply.metadata.response_code = code;
        let owner = to.queries[0].name().clone();
        reply
            .answers
            .push(Record::from_rdata(owner, 60, RData::A(A(ip.into()))));
        reply
    }

    fn recursion() -> Recursion {
        Recursion::new(DnsMetrics::default(), StdRng::seed_from_u64(1))
    }

    /// A recursor that answers every question as `reply` says; nothing for `None`.
    async fn recursor(
        reply: impl Fn(&Message, SocketAddr) -> Vec<Message> + Send + 'static,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut bytes = vec![0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                let asked = Message::from_vec(&bytes[..length]).unwrap();
                for one in reply(&asked, from) {
                    socket.send_to(&one.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        (address, task)
    }

    fn options(addresses: &[SocketAddr]) -> RecursorOptions {
        RecursorOptions {
            addresses: addresses.to_vec(),
            strategy: Strategy::Sequential,
            timeout: Duration::from_millis(500),
        }
    }

    #[tokio::test]
    async fn only_an_answer_to_our_own_question_counts() {
        let (address, _task) = recursor(|asked, _| {
            let mut other_id = answer(asked, ResponseCode::NoError, [6, 6, 6, 6]);
            other_id.metadata.id = asked.metadata.id.wrapping_add(1);
            let mut other_name = question("evil.example.");
            other_name.metadata.id = asked.metadata.id;
            let other_name = answer(&other_name, ResponseCode::NoError, [6, 6, 6, 6]);
            let mut no_response = answer(asked, ResponseCode::NoError, [6, 6, 6, 6]);
            no_response.metadata.message_type = MessageType::Query;
            let right = answer(asked, ResponseCode::NoError, [1, 2, 3, 4]);
            vec![other_id, other_name, no_response, right]
        })
        .await;
        let name = Name::from_ascii("Host.Example.").unwrap();
        let found = recursion()
            .addresses(&options(&[address]), CLIENT, &name, RecordType::A)
            .await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].data, RData::A(A([1, 2, 3, 4].into())));
    }

    #[tokio::test]
    async fn the_next_recursor_is_asked_when_one_fails_and_none_is_servfail() {
        let (failing, _a) =
            recursor(|asked, _| vec![answer(asked, ResponseCode::ServFail, [6, 6, 6, 6])]).await;
        let (silent, _b) = recursor(|_, _| Vec::new()).await;
        let (good, _c) =
            recursor(|asked, _| vec![answer(asked, ResponseCode::NXDomain, [1, 1, 1, 1])]).await;
        let packet = question("host.example.").to_vec().unwrap();
        let ask = async |addresses: &[SocketAddr]| {
            let answer = recursion().ask(&options(addresses), &packet, false).await?;
            Ok::<_, Cause>(Message::from_vec(&answer).unwrap().metadata.response_code)
        };
        assert_eq!(
            ask(&[failing, silent, good]).await,
            Ok(ResponseCode::NXDomain)
        );
        assert_eq!(ask(&[failing, silent]).await, Err(Cause::RecursorsFailed));
    }

    #[tokio::test]
    async fn ids_and_ports_differ_from_question_to_question() {
        let seen = Arc::new(Mutex::new((HashSet::new(), HashSet::new())));
        let noted = seen.clone();
        let (address, _task) = recursor(move |asked, from| {
            let mut noted = noted.lock();
            noted.0.insert(asked.metadata.id);
            noted.1.insert(from.port());
            vec![answer(asked, ResponseCode::NoError, [1, 2, 3, 4])]
        })
        .await;
        let packet = question("host.example.").to_vec().unwrap();
        let recursion = recursion();
        for _ in 0..50 {
            recursion
                .ask(&options(&[address]), &packet, false)
                .await
                .unwrap();
        }
        let seen = seen.lock();
        let (ids, ports) = (seen.0.len(), seen.1.len());
        assert!(ids > 45 && ports > 25, "{ids} ids, {ports} ports");
    }

    #[test]
    fn a_question_that_comes_round_is_refused_and_others_are_not() {
        let recursion = recursion();
        let options = options(&["10.0.0.1:53".parse().unwrap()]);
        let (round, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let asked = question("host.example.");
        let admit = |client| recursion.admit(&options, client, &asked);
        let held: Vec<_> = (0..SAME_FROM_RECURSOR_MAX)
            .map(|_| admit(round).ok().unwrap())
            .collect();
        assert_eq!(admit(round).err(), Some(Cause::RecursionLoop));
        assert!(
            recursion
                .admit(&options, round, &question("b.example."))
                .is_ok()
        );
        assert!(admit(other).is_ok());
        drop(held);
        assert!(admit(round).is_ok());
        let client = |n: usize| IpAddr::from([10, 1, 0, u8::try_from(n).unwrap()]);
        let all: Vec<_> = (0..UNDER_WAY_MAX)
            .map(|n| admit(client(n / UNDER_WAY_PER_CLIENT_MAX)).ok().unwrap())
            .collect();
        assert_eq!(admit(client(0)).err(), Some(Cause::RecursionsOfClient));
        assert_eq!(admit(other).err(), Some(Cause::RecursionsMax));
        drop(all);
        assert!(recursion.same.lock().is_empty());
    }
}
