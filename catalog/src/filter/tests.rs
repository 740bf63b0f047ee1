use std::sync::Arc;

use weft_proto::v1::{Check, Node, Service, ServiceAddress};

use super::{FILTER_DEPTH_MAX, FilterError, Selectable, parse};
use crate::read::{Instance, InstanceHealth};

fn node() -> Arc<Node> {
    let meta = [
        ("rack".to_owned(), "r2".to_owned()),
        ("consul-version".to_owned(), "1.22.0".to_owned()),
    ];
    Arc::new(Node {
        id: "id-7".into(),
        name: "vm-7".into(),
        address: "10.0.0.7".into(),
        meta: meta.into(),
        ..Node::default()
    })
}

fn service() -> Arc<Service> {
    let wan = ServiceAddress {
        address: "1.2.3.4".into(),
        port: 99,
    };
    Arc::new(Service {
        id: "web-1".into(),
        name: "web".into(),
        tags: vec!["v2".into(), "blue".into()],
        port: 8080,
        meta: [("version".to_owned(), "2".to_owned())].into(),
        tagged_addresses: [("wan".to_owned(), wan)].into(),
        proxy_json: r#"{"DestinationServiceName":"api","Upstreams":[{"DestinationName":"db"},{"DestinationName":"mq"}]}"#.into(),
        ..Service::default()
    })
}

fn check_of(id: &str, status: &str) -> Arc<Check> {
    Arc::new(Check {
        node: "vm-7".into(),
        id: id.into(),
        status: status.into(),
        ..Check::default()
    })
}

#[track_caller]
fn check<T: Selectable>(record: &T, expression: &str, expected: bool) {
    let filter = parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    filter
        .check::<T>()
        .unwrap_or_else(|error| panic!("{expression}: {error}"));
    assert_eq!(filter.matches(record), expected, "{expression}");
}

#[test]
fn services_match_as_written() {
    let cases = [
        ("Service == web", true),
        ("Service == \"web\"", true),
        ("Service == `web`", true),
        ("Service != web", false),
        ("Port == 8080", true),
        ("Port != 8080", false),
        ("\"v2\" in Tags", true),
        ("v3 in Tags", false),
        ("v3 not in Tags", true),
        ("Tags contains blue", true),
        ("Tags not contains blue", false),
        ("Tags is empty", false),
        ("Tags is not empty", true),
        ("Meta.version == \"2\"", true),
        ("Meta[\"version\"] == 2", true),
        ("\"/Meta/version\" == 2", true),
        ("Meta.nothing == 2", false),
        ("Meta.nothing != 2", true),
        ("Meta.nothing is empty", true),
        ("version in Meta", true),
        ("Meta is not empty", true),
        ("ID matches \"^web-[0-9]+$\"", true),
        ("ID matches `\\d`", true),
        ("ID not matches `^api`", true),
        ("eb in Service", true),
        ("TaggedAddresses.wan.Address == 1.2.3.4", true),
        ("TaggedAddresses.wan.Port == 99", true),
        ("TaggedAddresses.lan.Port == 99", false),
        ("wan in TaggedAddresses", true),
        ("Weights.Passing == 1", true),
        ("EnableTagOverride == false", true),
        ("Connect.Native == false", true),
        ("Proxy.DestinationServiceName == api", true),
        ("Proxy.Upstreams.DestinationName == mq", true),
        ("Proxy.Upstreams.DestinationName == xx", false),
        ("Proxy.Upstreams is empty", false),
        ("Proxy.Upstreams is not empty", true),
        ("Proxy.Upstreams.LocalBindPort == 0", true),
        ("Proxy.Mode == \"\"", true),
        ("Proxy.MeshGateway.Mode is empty", true),
        // not binds tighter than and, and than or.
        ("Service == api and Port == 1 or Port == 8080", true),
        ("Port == 8080 or Service == api and Port == 1", true),
        ("(Port == 8080 or Service == api) and Port == 1", false),
        ("not Service == api and Port == 8080", true),
        ("not (Service == web and Port == 8080)", false),
        ("not not Service == web", true),
    ];
    for (expression, expected) in cases {
        check(&*service(), expression, expected);
    }
}

/// A service without a proxy has one all of whose fields are zero, and no upstreams.
#[test]
fn what_json_does_not_say_is_zero() {
    for proxy_json in ["", "null", "{}", r#"{"Upstreams":null}"#] {
        let service = Service {
            proxy_json: proxy_json.into(),
            ..Service::default()
        };
        for (expression, expected) in [
            ("Proxy.DestinationServiceName != api", true),
            ("Proxy.DestinationServiceName == \"\"", true),
            ("Proxy.LocalServicePort == 0", true),
            ("Proxy.LocalServicePort != 0", false),
            ("Proxy.Upstreams is empty", true),
            ("Proxy.Upstreams.DestinationName == db", false),
            ("Proxy.Upstreams.DestinationName != db", false),
            ("Connect.Native != true", true),
        ] {
            check(&service, expression, expected);
        }
    }
    let unset = Check::default();
    check(&unset, "Definition.TLSSkipVerify == false", true);
    check(&unset, "Definition.HTTP == \"\"", true);
}

#[test]
fn of_a_list_of_records_only_emptiness_is_asked() {
    for expression in [
        "Checks contains alive",
        "alive in Checks",
        "Checks == alive",
    ] {
        let error = parse(expression)
            .unwrap()
            .check::<InstanceHealth<'_>>()
            .unwrap_err();
        assert!(
            matches!(error, FilterError::Operator { .. }),
            "{expression}: {error}"
        );
    }
}

#[test]
fn each_form_has_its_own_selectors() {
    let (node, service) = (node(), service());
    let checks = [check_of("a", "passing"), check_of("b", "critical")];
    check(
        &*node,
        "Node == vm-7 and Meta.rack == r2 and Meta[\"consul-version\"] == 1.22.0",
        true,
    );
    let flat = Instance {
        node: &node,
        service: &service,
    };
    check(
        &flat,
        "ServiceName == web and ServicePort == 8080 and NodeMeta.rack == r2 and Node == vm-7",
        true,
    );
    check(
        &flat,
        "ServiceTags contains v2 and ServiceMeta.version == 2 and Address == 10.0.0.7",
        true,
    );
    let health = InstanceHealth {
        node: &node,
        service: &service,
        checks: checks.iter().collect(),
    };
    check(
        &health,
        "Node.Node == vm-7 and Service.Tags contains v2 and Checks.Status == critical",
        true,
    );
    check(
        &health,
        "Checks.Status == warning or Checks is empty",
        false,
    );
    check(
        &*checks[1],
        "Status == critical and CheckID == b and ExposedPort == 0",
        true,
    );
}

#[test]
fn what_is_wrong_is_said() {
    let error = |expression: &str| {
        parse(expression)
            .and_then(|filter| filter.check::<Service>())
            .unwrap_err()
            .to_string()
    };
    let cases = [
        ("Nope == 1", "Selector \"Nope\" is not valid"),
        ("Meta.a.b == 1", "Selector \"Meta.a.b\" is not valid"),
        (
            "Port == http",
            "Failed to convert value \"http\" for selector \"Port\" to a number",
        ),
        (
            "Tags == v2",
            "Invalid match operator \"==\" for selector \"Tags\"",
        ),
        (
            "Port is empty",
            "Invalid match operator \"is empty\" for selector \"Port\"",
        ),
        (
            "Service ==",
            "1:11 (10): expected a name or a value, found the end",
        ),
        (
            "Service",
            "1:8 (7): expected one of ==, !=, in, contains, matches, is, found the end",
        ),
        (
            "Service == \"web",
            "1:12 (11): expected a closing quote, found the end",
        ),
        (
            "(Service == web",
            "1:16 (15): expected \")\", found the end",
        ),
        (
            "Service == web web",
            "1:16 (15): expected \"and\", \"or\" or the end, found \"web\"",
        ),
        (
            "Service == $",
            "1:12 (11): expected a name, a value or an operator, found '$'",
        ),
        (
            "ID matches \"(\"",
            "Failed to compile regular expression \"(\"",
        ),
        ("", "1:1 (0): expected a name or a value, found the end"),
    ];
    for (expression, expected) in cases {
        assert_eq!(error(expression), expected, "{expression}");
    }
}

#[test]
fn limits_hold() {
    let nested = |depth: usize| format!("{}Service == web{}", "(".repeat(depth), ")".repeat(depth));
    check(&*service(), &nested(FILTER_DEPTH_MAX), true);
    assert!(matches!(
        parse(&nested(FILTER_DEPTH_MAX + 1)),
        Err(FilterError::TooDeep { .. })
    ));
    assert!(matches!(
        parse(&"not ".repeat(1000)),
        Err(FilterError::TooDeep { .. })
    ));
    assert_eq!(
        parse(&"x".repeat(4097)).unwrap_err(),
        FilterError::TooLong { found: 4097 }
    );
}
