//! Registration bodies as users write them.

use std::time::Duration;

use serde_json::{Value, json};
use weft_proto::v1;

use crate::local::check_form;
use crate::local::check_parse::parse_check;
use crate::local::{
    AliasCheck, CheckDefinition, CheckKind, DefinitionError, DockerCheck, GrpcCheck, H2PingCheck,
    HttpCheck, OsServiceCheck, Pace, ScriptCheck, ServiceDefinition, Status, TargetTls, TcpCheck,
    UdpCheck, UnknownKeys, service_definition,
};

fn service(value: Value) -> Result<ServiceDefinition, DefinitionError> {
    ServiceDefinition::parse(&value, UnknownKeys::Ignore)
}

fn refused(value: Value) -> String {
    service(value).unwrap_err().to_string()
}

#[test]
fn a_full_registration_is_read_in_either_casing() {
    let camel = json!({
        "ID": "web-1", "Name": "web", "Tags": ["v2", "http"], "Address": "10.0.0.7", "Port": 8080,
        "Meta": {"version": "2.3"}, "EnableTagOverride": true, "Weights": {"Passing": 10, "Warning": 0},
        "TaggedAddresses": {"lan": {"Address": "10.0.0.7", "Port": 8080}},
        "Locality": {"Region": "eu", "Zone": "a"}, "Token": "t",
        "Check": {"HTTP": "http://127.0.0.1:8080/health", "Interval": "5s"},
        "Checks": [{"TTL": "15s", "DeregisterCriticalServiceAfter": "10m", "Status": "passing"}]
    });
    // As an HCL file arrives: snake_case, blocks as lists.
    let snake = json!({
        "id": "web-1", "name": "web", "tags": ["v2", "http"], "address": "10.0.0.7", "port": 8080,
        "meta": [{"version": "2.3"}], "enable_tag_override": true, "weights": [{"passing": 10, "warning": 0}],
        "tagged_addresses": [{"lan": [{"address": "10.0.0.7", "port": 8080}]}],
        "locality": [{"region": "eu", "zone": "a"}], "token": "t",
        "check": [{"http": "http://127.0.0.1:8080/health", "interval": "5s"}],
        "checks": [{"ttl": "15s", "deregister_critical_service_after": "10m", "status": "passing"}]
    });
    let parsed = service(camel).unwrap();
    assert_eq!(
        ServiceDefinition::parse(&snake, UnknownKeys::Refuse).unwrap(),
        parsed
    );
    assert_eq!(parsed.token, "t");
    assert_eq!(
        parsed.service.weights,
        Some(v1::Weights {
            passing: 10,
            warning: 0
        })
    );
    assert_eq!(parsed.service.tags, ["v2", "http"]);
    assert!(parsed.service.enable_tag_override);
    let [ttl, http] = &parsed.checks[..] else {
        panic!("{:?}", parsed.checks)
    };
    assert_eq!(
        (ttl.id.as_str(), ttl.name.as_str()),
        ("service:web-1:1", "Service 'web' check")
    );
    assert_eq!(
        ttl.kind,
        CheckKind::Ttl {
            ttl: Duration::from_secs(15)
        }
    );
    assert_eq!(
        ttl.deregister_critical_service_after,
        Some(Duration::from_secs(600))
    );
    assert_eq!(ttl.status, Some(Status::Passing));
    assert_eq!(
        (http.id.as_str(), http.service_id.as_str()),
        ("service:web-1:2", "web-1")
    );
    assert_eq!(http.kind.interval(), Duration::from_secs(5));
}

#[test]
fn defaults_are_filled_in() {
    let parsed =
        service(json!({"Name": "web", "Check": {"TCP": "127.0.0.1:1", "Interval": 1_000_000}}))
            .unwrap();
    assert_eq!(parsed.service.id, "web");
    assert_eq!(
        parsed.service.weights,
        Some(v1::Weights {
            passing: 1,
            warning: 1
        })
    );
    assert_eq!(parsed.checks[0].id, "service:web");
    assert_eq!(
        parsed.checks[0].kind.interval(),
        Duration::from_secs(1),
        "the floor is one second"
    );
    assert!(
        service(json!({"Name": "web", "Check": {}, "Checks": null}))
            .unwrap()
            .checks
            .is_empty()
    );
    let short = service(
        json!({"Name": "w", "Check": {"TTL": "1s", "DeregisterCriticalServiceAfter": "1s"}}),
    )
    .unwrap();
    assert_eq!(
        short.checks[0].deregister_critical_service_after,
        Some(Duration::from_secs(60))
    );
}

#[test]
fn services_are_refused_in_consuls_words() {
    let meta: Value = (0..65)
        .map(|n| (format!("k{n}"), json!("v")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let cases = [
        (json!({}), "Missing service name"),
        (json!({"Name": ""}), "Missing service name"),
        (
            json!({"Name": "w", "Address": "0.0.0.0"}),
            "Invalid service address",
        ),
        (
            json!({"Name": "w", "Address": "::"}),
            "Invalid service address",
        ),
        (
            json!({"Name": "w", "Meta": meta}),
            "cannot contain more than 64 key/value pairs",
        ),
        (
            json!({"Name": "w", "Meta": {"a b": "c"}}),
            "Key contains invalid characters",
        ),
        (
            json!({"Name": "w", "Meta": {"": "c"}}),
            "Key cannot be blank",
        ),
        (
            json!({"Name": "w", "Meta": {"k".repeat(129): "c"}}),
            "Key is too long (limit: 128 characters)",
        ),
        (
            json!({"Name": "w", "Meta": {"k": "v".repeat(513)}}),
            "Value is too long (limit: 512 characters)",
        ),
        (
            json!({"Name": "w", "Weights": {"Passing": -1}}),
            "Invalid Weights: Passing must be",
        ),
        (
            json!({"Name": "w", "Weights": {"Passing": 65536}}),
            "Invalid Weights: DNS Weight must be between 0 and 65535",
        ),
        (
            json!({"Name": "w", "Port": "80"}),
            "Port must be a whole number, not a string",
        ),
        (json!({"Name": "w", "Port": 65536}), "invalid port 65536"),
        (
            json!({"Name": 7}),
            "Request decode failed: Name must be a string, not a number",
        ),
        (
            json!({"Name": "w", "Port": 1, "Ports": [{"Name": "a", "Port": 2}]}),
            "Port and Ports are mutually exclusive",
        ),
        (
            json!({"Name": "w", "Ports": [{"Name": "a", "Port": 1, "Default": true}, {"Name": "b", "Port": 2, "Default": true}]}),
            "at most one of Ports may be the default",
        ),
        (
            json!({"Name": "w", "Kind": "nonsense"}),
            "invalid service kind",
        ),
        (
            json!({"Name": "w", "Kind": "connect-proxy", "Port": 1}),
            "Proxy.DestinationServiceName must be non-empty",
        ),
        (
            json!({"Name": "w", "Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "x"}}),
            "Port or SocketPath must be set for a Connect proxy",
        ),
        (
            json!({"Name": "w", "Kind": "connect-proxy", "Port": 1, "Proxy": {"DestinationServiceName": "x", "Upstreams": [
                {"DestinationName": "a", "LocalBindPort": 9}, {"DestinationName": "b", "LocalBindPort": 9}]}}),
            "duplicates of local bind address 127.0.0.1:9",
        ),
        (
            json!({"Name": "w", "Check": {"HTTP": "http://x"}}),
            "Invalid check: Interval must be > 0",
        ),
        (
            json!({"Name": "w", "Checks": [{"ID": "a", "TTL": "1s"}, {"ID": "a", "TTL": "1s"}]}),
            "used more than once",
        ),
        (json!([1]), "must be an object, not a list"),
    ];
    for (body, expected) in cases {
        let error = refused(body.clone());
        assert!(
            error.contains(expected),
            "{body}: {error:?} lacks {expected:?}"
        );
    }
}

#[test]
fn checks_are_refused_in_consuls_words() {
    let cases = [
        (json!({"TTL": "1s"}), "Missing check name"),
        (
            json!({"Name": "c"}),
            "Invalid check: TTL must be > 0 for TTL checks",
        ),
        (
            json!({"Name": "c", "TTL": "1s", "Interval": "1s"}),
            "Interval and TTL cannot both be specified",
        ),
        (
            json!({"Name": "c", "TTL": "1s", "HTTP": "http://x"}),
            "Interval must be > 0",
        ),
        (
            json!({"Name": "c", "HTTP": "http://x", "TCP": "x:1", "Interval": "1s"}),
            "only one of args, docker_container_id, http, tcp",
        ),
        (
            json!({"Name": "c", "HTTP": "ftp://x", "Interval": "1s"}),
            "must begin with http:// or https://",
        ),
        (
            json!({"Name": "c", "HTTP": "nowhere", "Interval": "1s"}),
            "must begin with http:// or https://",
        ),
        (
            json!({"Name": "c", "HTTP": "http://x", "Interval": "1s", "Method": "a b"}),
            "invalid HTTP check method",
        ),
        (
            json!({"Name": "c", "HTTP": "http://x", "Interval": "1s", "Header": {"a b": ["c"]}}),
            "invalid HTTP check header",
        ),
        (
            json!({"Name": "c", "TTL": "1s", "Status": "great"}),
            "Status for checks must",
        ),
        (
            json!({"Name": "c", "TTL": "soon"}),
            "TTL must be a duration",
        ),
        (json!({"Name": "c", "TTL": -5}), "TTL must be a duration"),
        (
            json!({"Name": "c", "TTL": "1s", "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 2}),
            "FailuresBeforeWarning can't be higher",
        ),
        (
            json!({"Name": "c", "TTL": "1s", "OutputMaxSize": -1}),
            "must be positive",
        ),
        (
            json!({"Name": "c", "Script": "true", "Interval": "1s"}),
            "script is no longer run, because a shell read it; give the program and its arguments as a list",
        ),
        (
            json!({"Name": "c", "Args": ["true"]}),
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ),
        (
            json!({"Name": "c", "Args": [""], "Interval": "1s"}),
            "args must begin with a program",
        ),
        (
            json!({"Name": "c", "Args": ["a", "b\0"], "Interval": "1s"}),
            "args must not contain NUL",
        ),
        (
            json!({"Name": "c", "Args": ["a", "b".repeat(131_072)], "Interval": "1s"}),
            "args are 131075 bytes, more than the limit of 131072",
        ),
        (
            json!({"Name": "c", "DockerContainerID": "x", "Interval": "1s"}),
            "TTL must be > 0 for TTL checks",
        ),
        (
            json!({"Name": "c", "DockerContainerID": "../x", "Args": ["a"], "Interval": "1s"}),
            "invalid docker_container_id \"../x\"",
        ),
        (
            json!({"Name": "c", "os_service": "--root=/", "Interval": "1s"}),
            "invalid os_service \"--root=/\"",
        ),
        (
            json!({"Name": "c", "GRPC": "nowhere", "Interval": "1s"}),
            "invalid GRPC check target \"nowhere\"",
        ),
        (
            json!({"Name": "c", "GRPC": "x:1", "UDP": "x:1", "Interval": "1s"}),
            "this one has udp and grpc",
        ),
        (
            json!({"Name": "c", "alias_service": "x", "TTL": "1s"}),
            "TTL must be not be set for Alias checks",
        ),
        (
            json!({"Name": "c", "alias_service": "x", "TCP": "x:1", "Interval": "1s"}),
            "Interval cannot be set for Alias checks",
        ),
    ];
    for (body, expected) in cases {
        let error = CheckDefinition::parse(&body, UnknownKeys::Ignore)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected),
            "{body}: {error:?} lacks {expected:?}"
        );
    }
}

#[test]
fn files_refuse_unknown_keys_and_name_the_nearest() {
    let strict = |value: Value| {
        ServiceDefinition::parse(&value, UnknownKeys::Refuse)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        strict(json!({"name": "w", "prot": 1})),
        "invalid config key prot (did you mean port?)"
    );
    assert_eq!(
        strict(json!({"name": "w", "check": {"ttl": "1s", "enable_tag_overide": true}})),
        "invalid config key Check.enable_tag_overide"
    );
    assert!(service(json!({"Name": "w", "Whatever": 1})).is_ok());
}

#[test]
fn mesh_objects_become_canonical_json() {
    let parsed = service(json!({
        "name": "w-proxy", "kind": "connect-proxy", "port": 1,
        "proxy": [{"destination_service_name": "w", "destination_service_id": "w1",
            "config": {"local_connect_timeout_ms": 5},
            "upstreams": [{"destination_name": "db", "local_bind_port": 9001}]}],
        "connect": {}
    }))
    .unwrap();
    assert_eq!(
        parsed.service.proxy_json,
        r#"{"Config":{"local_connect_timeout_ms":5},"DestinationServiceID":"w1","DestinationServiceName":"w","Upstreams":[{"DestinationName":"db","LocalBindPort":9001}]}"#
    );
    assert_eq!(parsed.service.connect_json, "");
    for sidecar in [json!({}), json!({"Port": 21000})] {
        let refused = service(json!({"Name": "w", "Connect": {"SidecarService": sidecar}}));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "Connect.SidecarService: sidecar services come with the mesh, a later version"
        );
    }
    let native = service(json!({"Name": "w", "connect": {"native": true}})).unwrap();
    assert_eq!(native.service.connect_json, r#"{"Native":true}"#);
}

#[test]
fn what_is_saved_reads_back_the_same() {
    let parsed = service(json!({
        "ID": "a", "Name": "b", "Tags": ["x"], "Address": "h", "Meta": {"k": "v"}, "EnableTagOverride": true,
        "Ports": [{"Name": "http", "Port": 1, "Default": true}], "SocketPath": "/s",
        "TaggedAddresses": {"wan": {"Address": "1.2.3.4", "Port": 9}}, "Weights": {"Passing": 0, "Warning": 7},
        "Locality": {"Region": "eu", "Zone": "a"}, "Connect": {"Native": true}
    }))
    .unwrap();
    let again = service(service_definition::to_value(&parsed.service, &parsed.token)).unwrap();
    assert_eq!(again, parsed);

    for kind in every_kind() {
        let template = json!({"ID": "i", "Name": "n", "Notes": "o", "ServiceID": "s", "Token": "t", "TTL": "1s",
            "Status": "warning", "SuccessBeforePassing": 2, "FailuresBeforeWarning": 1, "FailuresBeforeCritical": 3,
            "OutputMaxSize": 9, "DeregisterCriticalServiceAfter": "90s"});
        let check = CheckDefinition {
            kind,
            ..CheckDefinition::parse(&template, UnknownKeys::Ignore).unwrap()
        };
        let value = check_form::to_value(&check);
        assert_eq!(parse_check("", &value, UnknownKeys::Refuse).unwrap(), check);
    }
}

/// One of each kind, with no field at its default.
fn every_kind() -> Vec<CheckKind> {
    let pace = Pace {
        interval: Duration::from_secs(3),
        timeout: Duration::from_millis(2_500),
    };
    let tls = TargetTls {
        server_name: "n".to_owned(),
        skip_verify: true,
    };
    let address = "x:1".to_owned();
    let args = vec!["a".to_owned(), "b c".to_owned()];
    vec![
        CheckKind::Ttl {
            ttl: Duration::from_millis(1_500),
        },
        CheckKind::Http(HttpCheck {
            url: "https://x/".to_owned(),
            method: "PUT".to_owned(),
            header: [("A".to_owned(), vec!["1".to_owned(), "2".to_owned()])].into(),
            body: "b".to_owned(),
            pace,
            tls: tls.clone(),
            disable_redirects: true,
        }),
        CheckKind::Tcp(TcpCheck {
            address: address.clone(),
            pace,
            use_tls: true,
            tls: tls.clone(),
        }),
        CheckKind::Udp(UdpCheck {
            address: address.clone(),
            pace,
        }),
        CheckKind::Grpc(GrpcCheck {
            target: "x:1/web".to_owned(),
            pace,
            use_tls: true,
            tls: tls.clone(),
        }),
        CheckKind::H2Ping(H2PingCheck {
            address,
            pace,
            use_tls: false,
            tls,
        }),
        CheckKind::Script(ScriptCheck {
            args: args.clone(),
            pace,
        }),
        CheckKind::Docker(DockerCheck {
            container: "c1".to_owned(),
            args,
            shell: "/bin/bash".to_owned(),
            pace,
        }),
        CheckKind::OsService(OsServiceCheck {
            unit: "cron".to_owned(),
            pace,
        }),
        CheckKind::Alias(AliasCheck {
            node: "n2".to_owned(),
            service_id: "web-1".to_owned(),
        }),
    ]
}

/// `body` in both spellings is of type `name` and becomes `kind`.
fn check_kind(camel: Value, snake: Value, name: &str, limit: u64) {
    let camel = parse_check("", &camel, UnknownKeys::Refuse).unwrap().kind;
    assert_eq!(
        parse_check("", &snake, UnknownKeys::Refuse).unwrap().kind,
        camel
    );
    assert_eq!(camel.type_name(), name);
    assert_eq!(camel.time_limit(), Duration::from_secs(limit), "{name}");
}

#[test]
fn every_type_is_read_in_consuls_spellings() {
    check_kind(
        json!({"ScriptArgs": ["a"], "Interval": "5s"}),
        json!({"args": ["a"], "interval": "5s"}),
        "script",
        30,
    );
    check_kind(
        json!({"DockerContainerID": "c", "Args": ["a"], "Shell": "/bin/bash", "Interval": "5s"}),
        json!({"docker_container_id": "c", "script_args": ["a"], "shell": "/bin/bash", "interval": "5s"}),
        "docker",
        30,
    );
    check_kind(
        json!({"GRPC": "a:1/b", "GRPCUseTLS": true, "TLSServerName": "x", "TLSSkipVerify": true, "Interval": "5s"}),
        json!({"grpc": "a:1/b", "grpc_use_tls": true, "tls_server_name": "x", "tls_skip_verify": true, "interval": "5s"}),
        "grpc",
        10,
    );
    check_kind(
        json!({"H2PING": "a:1", "H2PingUseTLS": false, "Interval": "5s", "Timeout": "7s"}),
        json!({"h2ping": "a:1", "h2ping_use_tls": false, "interval": "5s", "timeout": "7s"}),
        "h2ping",
        7,
    );
    check_kind(
        json!({"UDP": "a:1", "Interval": "5s"}),
        json!({"udp": "a:1", "interval": "5s"}),
        "udp",
        10,
    );
    check_kind(
        json!({"OSService": "cron", "Interval": "5s"}),
        json!({"os_service": "cron", "interval": "5s"}),
        "os_service",
        10,
    );
    check_kind(
        json!({"AliasNode": "n", "AliasService": "s"}),
        json!({"alias_node": "n", "alias_service": "s"}),
        "alias",
        10,
    );
    let with_tls = parse_check(
        "",
        &json!({"H2PING": "a:1", "Interval": "5s"}),
        UnknownKeys::Refuse,
    );
    let CheckKind::H2Ping(with_tls) = with_tls.unwrap().kind else {
        panic!("not an h2ping check")
    };
    assert!(with_tls.use_tls, "TLS unless the user says no");
}
