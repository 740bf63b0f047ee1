//! Who stands for a service in the mesh: the answers, their indexes, and whom a change wakes.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

use weft_catalog::config_entry::{Entry, Kind};
use weft_catalog::{Catalog, State, Touched, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, stamped::Command};

#[derive(Default)]
struct World {
    catalog: Catalog,
    log: u64,
}

impl World {
    fn apply(&mut self, command: Command) -> Touched {
        self.log += 1;
        let stamped = v1::Stamped {
            at_millis: self.log,
            command: Some(command),
            ..v1::Stamped::default()
        };
        let outcome = self.catalog.apply(LogIndex(self.log), &stamped).unwrap();
        assert!(
            !matches!(outcome.result, Some(v1::outcome::Result::Refusal(_))),
            "{outcome:?}"
        );
        self.catalog.publish().1
    }

    /// `what`: `name kind destination` of a service, whose id is its name.
    fn register(&mut self, node: &str, what: (&str, &str, &str)) -> Touched {
        let (name, kind, destination) = what;
        let native = kind == "native";
        let service = v1::Service {
            id: name.to_owned(),
            name: name.to_owned(),
            kind: if native { "" } else { kind }.to_owned(),
            proxy_json: if destination.is_empty() {
                String::new()
            } else {
                format!(r#"{{"DestinationServiceName":"{destination}"}}"#)
            },
            connect_json: if native { r#"{"Native":true}"# } else { "" }.to_owned(),
            ..v1::Service::default()
        };
        self.apply(Command::Register(v1::Register {
            node: Some(v1::Node {
                name: node.to_owned(),
                address: "10.0.0.1".to_owned(),
                ..v1::Node::default()
            }),
            service: Some(service),
            ..v1::Register::default()
        }))
    }

    fn deregister(&mut self, node: &str, service: &str) -> Touched {
        self.apply(Command::Deregister(v1::Deregister {
            node: node.to_owned(),
            service_id: service.to_owned(),
            ..v1::Deregister::default()
        }))
    }

    fn entry(&mut self, verb: v1::ConfigEntryVerb, text: &str) -> Touched {
        let entry = Entry::parse(&serde_json::from_str(text).unwrap()).unwrap();
        self.apply(Command::ConfigEntry(v1::ConfigEntryCommand {
            verb: verb.into(),
            entry: Some(entry.row()),
        }))
    }

    fn write(&mut self, text: &str) -> Touched {
        self.entry(v1::ConfigEntryVerb::Set, text)
    }
}

/// Ids of the instances and the index.
fn connect(state: &State, service: &str) -> (String, u64) {
    let trace = Trace::off();
    let answer = state.read(&trace).connect_instances(service);
    let ids: Vec<_> = answer
        .rows
        .iter()
        .map(|row| format!("{}@{}", row.service.id, row.node.name))
        .collect();
    (ids.join(" "), answer.index.get())
}

fn wakes(state: &State, service: &str, touched: &Touched) -> bool {
    let trace = Trace::on();
    let _ = state.read(&trace).connect_instances(service);
    trace
        .into_topics()
        .iter()
        .any(|topic| touched.touches(topic))
}

#[test]
fn proxies_and_native_instances_stand_for_a_service() {
    let mut world = World::default();
    world.register("n1", ("web", "", ""));
    world.register("n1", ("web-proxy", "connect-proxy", "Web"));
    world.register("n2", ("other-name", "connect-proxy", "web"));
    world.register("n3", ("web", "native", ""));
    world.register("n1", ("db-proxy", "connect-proxy", "db"));
    let state = world.catalog.state();
    assert_eq!(
        connect(state, "WEB").0,
        "web-proxy@n1 other-name@n2 web@n3",
        "by node, whatever they are called"
    );
    assert_eq!(connect(state, "db").0, "db-proxy@n1");
    assert_eq!(connect(state, "web-proxy").0, "");
}

#[test]
fn only_what_stands_for_the_service_wakes_and_no_index_runs_back() {
    let mut world = World::default();
    world.register("n1", ("proxy", "connect-proxy", "web"));
    let before = connect(world.catalog.state(), "web");
    let touched = world.register("n1", ("web", "", ""));
    assert!(!wakes(world.catalog.state(), "web", &touched));
    assert_eq!(connect(world.catalog.state(), "web"), before);

    // It turns to another service: both change, the old one to nothing.
    let touched = world.register("n1", ("proxy", "connect-proxy", "db"));
    let state = world.catalog.state();
    assert!(wakes(state, "web", &touched) && wakes(state, "db", &touched));
    let gone = connect(state, "web");
    assert!(gone.0.is_empty() && gone.1 > before.1, "{gone:?}");
    assert_eq!(connect(state, "db"), ("proxy@n1".into(), gone.1));

    // Forgetting tombstones, and a snapshot, leave the index where it was or above.
    world.apply(Command::TombstoneReap(v1::TombstoneReap {
        up_to_index: 1_000,
    }));
    assert!(connect(world.catalog.state(), "web").1 >= gone.1);
    let mut bytes = Vec::new();
    snapshot::write(world.catalog.state(), &mut bytes).unwrap();
    let restored = snapshot::read(&mut &bytes[..]).unwrap();
    for service in ["web", "db"] {
        assert_eq!(
            connect(restored.state(), service),
            connect(world.catalog.state(), service)
        );
    }

    let touched = world.deregister("n1", "proxy");
    assert!(wakes(world.catalog.state(), "db", &touched));
    assert!(connect(world.catalog.state(), "db").1 > gone.1);
}

#[test]
fn a_linked_terminating_gateway_stands_for_a_service_outside() {
    let mut world = World::default();
    world.register("n1", ("tgw", "terminating-gateway", ""));
    world.register("n2", ("billing", "", ""));
    assert_eq!(connect(world.catalog.state(), "billing").0, "");
    let touched = world.write(
        r#"{"Kind":"terminating-gateway","Name":"tgw","Services":[{"Name":"Billing","SNI":"b"}]}"#,
    );
    let state = world.catalog.state();
    assert!(wakes(state, "billing", &touched) && !wakes(state, "web", &touched));
    assert_eq!(connect(state, "billing").0, "tgw@n1");

    // Every service is those that are there.
    world.write(r#"{"Kind":"terminating-gateway","Name":"tgw","Services":[{"Name":"*"}]}"#);
    let (rows, index) = connect(world.catalog.state(), "web");
    assert_eq!(rows, "");
    let touched = world.register("n2", ("web", "", ""));
    let state = world.catalog.state();
    assert!(wakes(state, "web", &touched));
    let (rows, later) = connect(state, "web");
    assert_eq!(rows, "tgw@n1");
    assert!(later > index);
    let trace = Trace::off();
    let links = state.read(&trace).gateway_services("TGW").rows;
    let links: Vec<_> = links
        .iter()
        .map(|link| (link.gateway, &*link.service, link.from_wildcard))
        .collect();
    assert_eq!(links, [("tgw", "billing", true), ("tgw", "web", true)]);

    let touched = world.entry(
        v1::ConfigEntryVerb::Delete,
        r#"{"Kind":"terminating-gateway","Name":"tgw","Services":[]}"#,
    );
    assert!(wakes(world.catalog.state(), "web", &touched));
    assert_eq!(connect(world.catalog.state(), "web").0, "");
}

#[test]
fn an_ingress_gateway_lets_in_for_its_services() {
    let mut world = World::default();
    world.register("n1", ("igw", "ingress-gateway", ""));
    world.register("n1", ("web", "", ""));
    world.write(r#"{"Kind":"service-defaults","Name":"web","Protocol":"http"}"#);
    world.write(
        r#"{"Kind":"ingress-gateway","Name":"igw","Listeners":[
            {"Port":8080,"Protocol":"http","Services":[{"Name":"web","Hosts":["a.example"]}]},
            {"Port":9090,"Protocol":"http","Services":[{"Name":"*"}]}]}"#,
    );
    world.register("n1", ("plain", "", ""));
    let state = world.catalog.state();
    let trace = Trace::off();
    let reader = state.read(&trace);
    let ids = |service: &str| {
        let rows = reader.ingress_instances(service).rows;
        rows.iter()
            .map(|row| row.service.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("web"), ["igw"]);
    let links = reader.gateway_services("igw").rows;
    let shown: Vec<_> = links
        .iter()
        .map(|link| (&*link.service, link.port, link.kind, link.hosts.len()))
        .collect();
    // "plain" speaks tcp: an http listener has nothing for it.
    let kind = Kind::IngressGateway;
    assert_eq!(shown, [("web", 8080, kind, 1), ("web", 9090, kind, 0)]);
}
