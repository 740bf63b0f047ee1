//! The mesh and prepared queries: which instances, and in which order.

use super::*;

#[test]
fn the_mesh_is_reached_by_proxies_and_native_instances_with_the_services_ttl() {
    let service = |id: &str, change: &dyn Fn(&mut v1::Service)| {
        let mut service = v1::Service {
            id: id.to_owned(),
            name: id.to_owned(),
            port: 80,
            ..Default::default()
        };
        change(&mut service);
        service
    };
    let proxy_for = |name| format!(r#"{{"DestinationServiceName":"{name}"}}"#);
    let services = [
        service("web", &|_| {}),
        service("web-proxy", &|service| {
            service.kind = "connect-proxy".to_owned();
            service.port = 21_000;
            service.proxy_json = proxy_for("web");
        }),
        service("native", &|service| {
            service.connect_json = r#"{"Native":true}"#.into();
        }),
        service("plain", &|_| {}),
        service("sick-proxy", &|service| {
            service.kind = "connect-proxy".to_owned();
            service.proxy_json = proxy_for("sick");
        }),
    ];
    let registrations = services.into_iter().map(|service| {
        let critical = (service.id == "sick-proxy").then(|| v1::Check {
            id: "c".to_owned(),
            status: "critical".to_owned(),
            service_id: service.id.clone(),
            ..Default::default()
        });
        Command::Register(v1::Register {
            node: Some(v1::Node {
                name: "n1".to_owned(),
                address: "10.0.0.1".to_owned(),
                ..Default::default()
            }),
            service: Some(service),
            checks: critical.into_iter().collect(),
            ..Default::default()
        })
    });
    let ttls =
        [("web", 9), ("*", 5)].map(|(name, ttl)| (name.to_owned(), Duration::from_secs(ttl)));
    let options = DnsOptions {
        service_ttl: TtlRules::new(ttls.into()),
        ..DnsOptions::for_tests()
    };
    let resolver = resolver_of(options, after(registrations));
    let get = |name: &str, kind| ask(&resolver, &question(name, kind, None));
    assert_eq!(
        lines(&get("web.connect.consul.", RecordType::SRV).answers),
        ["web.connect.consul. 9 SRV 1 1 21000 n1.node.dc1.consul."]
    );
    assert_eq!(
        lines(&get("native.connect.dc1.consul.", RecordType::A).answers),
        ["native.connect.dc1.consul. 5 A 10.0.0.1"]
    );
    for (name, reason) in [
        ("plain.connect.consul.", "dns.not_in_mesh"),
        ("plain.ingress.consul.", "dns.not_in_mesh"),
        ("none.connect.consul.", "dns.unknown_service"),
        ("sick.connect.consul.", "dns.nothing_healthy"),
        ("web.connect.dc9.consul.", "dns.unknown_datacenter"),
        ("v1.web.connect.consul.", "dns.not_a_name"),
    ] {
        let metric = format!("weft_dns_empty_answers_total{{reason=\"{reason}\"}}");
        let before = counted(&resolver, &metric);
        let reply = get(name, RecordType::A);
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
        assert_eq!(counted(&resolver, &metric), before + 1, "{name} {reason}");
    }
}

#[test]
fn the_nearest_of_a_prepared_query_come_first_over_dns_too() {
    let node = |n: u8| {
        Command::Register(v1::Register {
            node: Some(v1::Node {
                name: format!("node-{n}"),
                address: format!("10.0.0.{n}"),
                ..Default::default()
            }),
            service: Some(v1::Service {
                id: "web".to_owned(),
                name: "web".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let query = |near: &str| {
        Command::PreparedQuery(v1::PreparedQueryCommand {
            verb: v1::PreparedQueryVerb::Create.into(),
            query: Some(v1::PreparedQuery {
                id: format!("id{near}"),
                name: format!("near{}", near.replace('_', "-")),
                service: "web".to_owned(),
                near: near.to_owned(),
                ..Default::default()
            }),
            judged_name: None,
        })
    };
    let commands = (0..9)
        .map(node)
        .chain(["", "_agent", "_ip", "node-4"].map(query));
    let resolver = resolver_of(DnsOptions::for_tests(), after(commands));
    let subnet = |prefix| ClientSubnet::new([10, 0, 0, 7].into(), prefix, 0);
    let asked = |name: &str, prefix| {
        let mut asked = question(name, RecordType::A, Some(1_232));
        let edns = asked.edns.as_mut().unwrap();
        edns.options_mut()
            .insert(EdnsOption::Subnet(subnet(prefix)));
        asked
    };
    let from = |asked: &Message, client: [u8; 4], seed| {
        let (packet, client) = (asked.to_vec().unwrap(), IpAddr::from(client));
        match resolver.answer(&packet, NEAR, client, &mut SmallRng::seed_from_u64(seed)) {
            Step::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
            _ => panic!("an answer at once"),
        }
    };
    // Whoever always comes first, and who comes second: those equally far have no order.
    let check = |asked: &Message, client, first: Option<&str>| {
        let orders: Vec<Vec<String>> = (0..20)
            .map(|seed| from(asked, client, seed).answers)
            .map(|answers| {
                answers
                    .iter()
                    .map(|answer| answer.data.to_string())
                    .collect()
            })
            .collect();
        let differ = |at: usize| orders.iter().any(|order| order[at] != orders[0][at]);
        let name = asked.queries[0].name();
        assert!(
            orders.iter().all(|order| order.len() == 9) && differ(1),
            "{name}"
        );
        match first {
            Some(first) => assert!(
                orders.iter().all(|order| order[0] == first),
                "{name} {first}"
            ),
            None => assert!(differ(0), "{name}"),
        }
    };
    let plain = |name| question(name, RecordType::A, Some(1_232));
    let (stranger, known) = ([10, 9, 9, 9], [10, 0, 0, 3]);
    check(&plain("near.query.consul."), known, None);
    check(&plain("near-agent.query.consul."), known, Some("10.0.0.0"));
    check(&plain("nearnode-4.query.consul."), known, Some("10.0.0.4"));
    check(&plain("near-ip.query.consul."), known, Some("10.0.0.3"));
    check(&plain("near-ip.query.consul."), stranger, None);
    check(&asked("near-ip.query.consul.", 32), known, Some("10.0.0.7"));
    check(&asked("near-ip.query.consul.", 0), known, Some("10.0.0.3"));
    for (name, scope) in [
        ("near-ip.query.consul.", 32),
        ("near-agent.query.consul.", 0),
    ] {
        let reply = from(&asked(name, 32), known, 1);
        let expected = ClientSubnet::new([10, 0, 0, 7].into(), 32, scope);
        assert_eq!(
            reply.edns.unwrap().option(EdnsCode::Subnet),
            Some(&EdnsOption::Subnet(expected)),
            "{name}"
        );
    }
}
