//! Whole packets against a catalog: what a client sees, for any catalog and any question.

mod selected;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::{SmallRng, StdRng};
use weft_catalog::{Catalog, State};
use weft_proto::clock::SystemClock;
use weft_proto::ids::LogIndex;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use super::message::Via;
use super::recurse::{Recursion, RecursorOptions, Strategy as Order};
use super::resolve::{Resolver, Step};
use super::{DnsMetrics, DnsOptions, DnsView, TtlRules, Viewed};

struct Fixed(Arc<State>);

#[async_trait::async_trait]
impl DnsView for Fixed {
    fn look(&self, _topic: &weft_catalog::view::ViewTopic) -> Viewed {
        Viewed::Ready {
            state: self.0.clone(),
            age: Duration::ZERO,
        }
    }

    async fn wait(&self, _topic: &weft_catalog::view::ViewTopic) {}
}

/// An instance: its node's address, its own address, one metadata value.
#[derive(Clone, Debug)]
struct One {
    node_address: String,
    address: String,
    meta: String,
}

fn one(node_address: &str, address: &str) -> One {
    One {
        node_address: node_address.to_owned(),
        address: address.to_owned(),
        meta: String::new(),
    }
}

fn state(instances: &[One]) -> Arc<State> {
    let registrations = instances.iter().enumerate().map(|(n, one)| {
        let meta = (!one.meta.is_empty()).then(|| ("about".to_owned(), one.meta.clone()));
        let node = v1::Node {
            name: format!("node-{n}"),
            address: one.node_address.clone(),
            meta: meta.into_iter().collect(),
            ..Default::default()
        };
        let service = v1::Service {
            id: "web".to_owned(),
            name: "web".to_owned(),
            port: 80,
            address: one.address.clone(),
            ..Default::default()
        };
        Command::Register(v1::Register {
            node: Some(node),
            service: Some(service),
            ..Default::default()
        })
    });
    after(registrations)
}

/// The state after some commands.
fn after(commands: impl IntoIterator<Item = Command>) -> Arc<State> {
    let mut catalog = Catalog::default();
    for (n, command) in commands.into_iter().enumerate() {
        let stamped = v1::Stamped {
            command: Some(command),
            ..Default::default()
        };
        let index = LogIndex(u64::try_from(n).unwrap() + 1);
        catalog.apply(index, &stamped).unwrap();
    }
    Arc::new(catalog.state().clone())
}

fn resolver(options: DnsOptions, instances: &[One]) -> Resolver {
    resolver_of(options, state(instances))
}

fn resolver_of(options: DnsOptions, state: Arc<State>) -> Resolver {
    Resolver::new(
        options,
        Arc::new(Fixed(state)),
        DnsMetrics::default(),
        Recursion::new(DnsMetrics::default(), StdRng::seed_from_u64(1)),
        Arc::new(SystemClock::new()),
    )
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(0x5eed, MessageType::Query, OpCode::Query);
    message
        .queries
        .push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message
}

const NEAR: Via = Via::Udp { near: true };
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn bytes(resolver: &Resolver, packet: &[u8], via: Via) -> Option<Vec<u8>> {
    match resolver.answer(packet, via, CLIENT, &mut SmallRng::seed_from_u64(3)) {
        Step::Reply(bytes) => Some(bytes),
        Step::Nothing => None,
        Step::Later(_) => panic!("nobody is to be asked"),
    }
}

fn ask(resolver: &Resolver, question: &Message) -> Message {
    Message::from_vec(&bytes(resolver, &question.to_vec().unwrap(), NEAR).unwrap()).unwrap()
}

fn lines(records: &[Record]) -> Vec<String> {
    let line = |r: &Record| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data);
    records.iter().map(line).collect()
}

fn any_instances() -> impl Strategy<Value = Vec<One>> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits | 1).to_string()),
        any::<u128>().prop_map(|bits| std::net::Ipv6Addr::from(bits | 1).to_string()),
        "[a-z]{1,20}\\.[a-z]{1,30}\\.example",
        Just("web.service.consul".to_owned()),
        Just("node-0.node.consul".to_owned()),
    ];
    let own = prop_oneof![Just(String::new()), ip.clone()];
    let instance = (ip, own, "[a-zä ]{0,400}").prop_map(|(node_address, address, meta)| One {
        node_address,
        address,
        meta,
    });
    proptest::collection::vec(instance, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_answer_fits_can_be_read_and_says_when_it_was_cut(
        instances in any_instances(),
        kind in prop_oneof![
            Just(RecordType::A), Just(RecordType::AAAA), Just(RecordType::SRV), Just(RecordType::ANY),
            Just(RecordType::TXT), Just(RecordType::CNAME), Just(RecordType::MX), Just(RecordType::NS),
            Just(RecordType::SOA), Just(RecordType::PTR),
        ],
        name in prop_oneof![
            Just("wEb.service.consul."), Just("node-0.node.consul."), Just("weft."), Just("no.service.consul."),
            Just("7f000001.addr.consul."), Just("1.0.0.127.in-addr.arpa."),
        ],
        edns in proptest::option::of(0u16..5_000),
        tcp: bool,
        truncate: bool,
        flat: bool,
    ) {
        let resolver = resolver(DnsOptions { enable_truncate: truncate, disable_compression: flat, ..DnsOptions::for_tests() }, &instances);
        let packet = question(name, kind, edns).to_vec().unwrap();
        let whole = Message::from_vec(&bytes(&resolver, &packet, Via::Tcp).unwrap()).unwrap();
        let via = if tcp { Via::Tcp } else { NEAR };
        let raw = bytes(&resolver, &packet, via).unwrap();
        let limit = if tcp { 65_535 } else { usize::from(edns.unwrap_or(0)).max(512) };
        prop_assert!(raw.len() <= limit, "{} bytes of {limit}", raw.len());
        let reply = Message::from_vec(&raw).unwrap();
        prop_assert_eq!(reply.metadata.response_code, whole.metadata.response_code);
        prop_assert_eq!(reply.edns.is_some(), edns.is_some());
        prop_assert_eq!(reply.queries[0].name().to_ascii(), name, "echoed as asked");
        let cut = reply.answers.len() < whole.answers.len();
        prop_assert_eq!(reply.metadata.truncation, cut && !tcp && (truncate || reply.answers.is_empty()));
        if kind == RecordType::SRV {
            let targets: Vec<&Name> = reply.answers.iter().filter_map(|answer| match &answer.data {
                RData::SRV(srv) => Some(&srv.target),
                _ => None,
            }).collect();
            for extra in &reply.additionals {
                let about_target = targets.contains(&&extra.name);
                let addresses = matches!(extra.record_type(), RecordType::A | RecordType::AAAA);
                prop_assert!(!cut || !addresses || about_target || leads(&reply, &targets, &extra.name),
                    "{} is nobody's", extra);
            }
        }
    }

    #[test]
    fn a_damaged_question_is_answered_or_not_but_always_counted_by_its_cause(
        name in prop_oneof![Just("web.service.consul."), Just("x.query.consul."), Just("example.org.")],
        edns in proptest::option::of(0u16..5_000),
        damage in proptest::collection::vec((0usize..60, any::<u8>()), 0..4),
        cut in 0usize..80,
        tcp: bool,
    ) {
        let resolver = resolver(DnsOptions::for_tests(), &[one("10.0.0.1", "")]);
        let mut packet = question(name, RecordType::A, edns).to_vec().unwrap();
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        if cut < 40 {
            packet.truncate(packet.len().saturating_sub(cut));
        }
        let reply = bytes(&resolver, &packet, if tcp { Via::Tcp } else { NEAR });
        let counted = |metric: &str| counted(&resolver, metric);
        prop_assert_eq!(counted("weft_dns_queries_total"), u64::from(reply.is_some()));
        let causes = counted("weft_dns_malformed_total") + counted("weft_dns_empty_answers_total");
        let Some(reply) = reply else {
            prop_assert_eq!(causes, 1, "silence has a cause");
            return Ok(());
        };
        let reply = Message::from_vec(&reply).unwrap();
        let without = reply.answers.is_empty();
        prop_assert_eq!(causes, u64::from(without), "{:?}", reply.metadata.response_code);
        prop_assert!(without || reply.metadata.response_code == ResponseCode::NoError);
    }

    #[test]
    fn no_packet_goes_without_a_defined_end(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
        let resolver = resolver(DnsOptions::for_tests(), &[]);
        if let Some(reply) = bytes(&resolver, &packet, NEAR) {
            prop_assert!(Message::from_vec(&reply).is_ok());
            prop_assert_eq!(&reply[..2], &packet[..2]);
        }
    }
}

/// Is `name` where an alias of one of the targets leads?
fn leads(reply: &Message, targets: &[&Name], name: &Name) -> bool {
    reply.additionals.iter().any(|extra| match &extra.data {
        RData::CNAME(alias) => {
            alias.0 == *name
                && (targets.contains(&&extra.name) || leads(reply, targets, &extra.name))
        }
        _ => false,
    })
}

#[test]
fn host_names_are_srv_targets_and_addresses_win_over_aliases() {
    let resolver = resolver(
        DnsOptions::for_tests(),
        &[
            one("10.0.0.1", "db.example.org"),
            one("www.example.org", ""),
            one("10.0.0.3", "node-0.node.consul"),
            one("10.0.0.4", "2001:db8::4"),
        ],
    );
    let get = |name: &str, kind| ask(&resolver, &question(name, kind, Some(4_096)));
    let srv = get("web.service.consul.", RecordType::SRV);
    let mut answers = lines(&srv.answers);
    answers.sort();
    assert_eq!(
        answers,
        [
            "web.service.consul. 5 SRV 1 1 80 20010db8000000000000000000000004.addr.dc1.consul.",
            "web.service.consul. 5 SRV 1 1 80 db.example.org.",
            "web.service.consul. 5 SRV 1 1 80 node-0.node.consul.",
            "web.service.consul. 5 SRV 1 1 80 www.example.org.",
        ]
    );
    let mut extras = lines(&srv.additionals);
    extras.sort();
    assert_eq!(
        extras,
        [
            "20010db8000000000000000000000004.addr.dc1.consul. 5 AAAA 2001:db8::4",
            "node-0.node.consul. 7 A 10.0.0.1",
        ]
    );
    assert_eq!(
        lines(&get("web.service.consul.", RecordType::AAAA).answers),
        ["web.service.consul. 5 AAAA 2001:db8::4"],
        "an alias beside addresses would be no zone"
    );
    let aliased = lines(&get("web.service.consul.", RecordType::A).answers);
    assert!(
        aliased[0].starts_with("web.service.consul. 5 CNAME ")
            && aliased.iter().filter(|line| line.contains("CNAME")).count() == 1,
        "{aliased:?}"
    );
    assert_eq!(
        lines(&get("node-1.node.consul.", RecordType::A).answers),
        ["node-1.node.consul. 7 CNAME www.example.org."]
    );
    assert_eq!(
        lines(&get("0a000001.addr.dc1.consul.", RecordType::A).answers),
        ["0a000001.addr.dc1.consul. 7 A 10.0.0.1"]
    );
}

#[test]
fn a_service_behind_a_name_of_ours_comes_with_its_addresses() {
    let resolver = resolver(
        DnsOptions::for_tests(),
        &[one("10.0.0.1", "node-0.node.consul")],
    );
    let reply = ask(
        &resolver,
        &question("web.service.consul.", RecordType::A, None),
    );
    assert_eq!(
        lines(&reply.answers),
        [
            "web.service.consul. 5 CNAME node-0.node.consul.",
            "node-0.node.consul. 7 A 10.0.0.1",
        ]
    );
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
}

#[test]
fn the_clients_subnet_is_echoed_for_everywhere() {
    let resolver = resolver(DnsOptions::for_tests(), &[]);
    let mut asked = question("web.service.consul.", RecordType::A, Some(1_232));
    let subnet = ClientSubnet::new([192, 0, 2, 0].into(), 24, 9);
    asked
        .edns
        .as_mut()
        .unwrap()
        .options_mut()
        .insert(EdnsOption::Subnet(subnet));
    let reply = ask(&resolver, &asked);
    assert_eq!(
        reply.edns.unwrap().option(EdnsCode::Subnet),
        Some(&EdnsOption::Subnet(ClientSubnet::new(
            [192, 0, 2, 0].into(),
            24,
            0
        )))
    );
}

#[test]
fn what_is_no_question_of_ours_is_refused_by_its_kind() {
    let resolver = resolver(DnsOptions::for_tests(), &[]);
    let good = || question("web.service.consul.", RecordType::A, Some(1_232));
    let check = |change: &dyn Fn(&mut Message), code: ResponseCode| {
        let mut asked = good();
        change(&mut asked);
        let reply = ask(&resolver, &asked);
        // 16 has two names (RFC 6891, RFC 8945).
        assert_eq!(u16::from(reply.metadata.response_code), u16::from(code));
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert_eq!(reply.metadata.message_type, MessageType::Response);
    };
    check(&|_| {}, ResponseCode::NXDomain);
    check(
        &|m| m.metadata.op_code = OpCode::Notify,
        ResponseCode::NotImp,
    );
    check(&|m| m.queries.clear(), ResponseCode::Refused);
    check(
        &|m| {
            m.queries[0].set_query_class(DNSClass::CH);
        },
        ResponseCode::Refused,
    );
    check(
        &|m| {
            m.queries[0].set_query_type(RecordType::AXFR);
        },
        ResponseCode::NotImp,
    );
    check(
        &|m| {
            m.edns.as_mut().unwrap().set_version(1);
        },
        ResponseCode::BADVERS,
    );
    check(
        &|m| {
            let other = question("example.org.", RecordType::A, None);
            m.queries = other.queries;
        },
        ResponseCode::Refused,
    );
    for reason in ["dns.opcode", "dns.no_question", "dns.class", "dns.transfer"] {
        assert!(text(&resolver).contains(&format!(
            "weft_dns_malformed_total{{reason=\"{reason}\"}} 1"
        )));
    }
    let mut response = good();
    response.metadata.message_type = MessageType::Response;
    assert!(bytes(&resolver, &response.to_vec().unwrap(), NEAR).is_none());
    assert!(bytes(&resolver, b"short", NEAR).is_none());
    for reason in ["dns.not_a_question", "dns.short_packet"] {
        assert!(text(&resolver).contains(reason), "{reason}");
    }
}

/// The sum of a metric over its labels.
fn counted(resolver: &Resolver, metric: &str) -> u64 {
    let text = text(resolver);
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

fn text(resolver: &Resolver) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    resolver.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn other_names_wait_for_recursors_where_there_are_any() {
    let options = DnsOptions {
        recursors: RecursorOptions {
            addresses: vec!["192.0.2.1:53".parse().unwrap()],
            strategy: Order::Random,
            timeout: Duration::from_secs(2),
        },
        ..DnsOptions::for_tests()
    };
    let resolver = resolver(options, &[one("10.0.0.1", "db.example.org")]);
    let waits = |name: &str, kind| {
        let packet = question(name, kind, None).to_vec().unwrap();
        let step = resolver.answer(&packet, NEAR, CLIENT, &mut SmallRng::seed_from_u64(3));
        matches!(step, Step::Later(_))
    };
    assert!(waits("example.org.", RecordType::A));
    assert!(waits("9.9.9.9.in-addr.arpa.", RecordType::PTR));
    assert!(waits("web.service.consul.", RecordType::A), "an alias");
    for ours in [
        "no.service.consul.",
        "no.service.weft.",
        "consul.",
        "x.y.consul.",
    ] {
        assert!(!waits(ours, RecordType::A), "{ours} is nobody else's");
    }
    assert!(!waits("1.0.0.10.in-addr.arpa.", RecordType::PTR));
    let reply = ask(
        &resolver,
        &question("no.service.consul.", RecordType::A, None),
    );
    assert!(reply.metadata.recursion_available && reply.metadata.authoritative);
}

#[test]
fn names_are_written_in_full_without_compression() {
    let instances: Vec<One> = (1..5u8).map(|n| one(&format!("10.0.0.{n}"), "")).collect();
    let size = |flat| {
        let options = DnsOptions {
            disable_compression: flat,
            ..DnsOptions::for_tests()
        };
        let packet = question("web.service.consul.", RecordType::SRV, Some(4_096));
        bytes(
            &resolver(options, &instances),
            &packet.to_vec().unwrap(),
            NEAR,
        )
        .unwrap()
        .len()
    };
    assert!(
        size(true) > size(false) + 100,
        "{} {}",
        size(true),
        size(false)
    );
}
