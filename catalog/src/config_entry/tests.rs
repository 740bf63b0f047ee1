//! What each kind takes, how it is stored, and why it is refused.

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_proto::json::Json;

use super::*;

fn parse(text: &str) -> Result<Entry, EntryError> {
    Entry::parse(&serde_json::from_str(text).unwrap())
}

#[track_caller]
fn stored(text: &str) -> String {
    match parse(text) {
        Ok(entry) => entry.json().to_owned(),
        Err(error) => panic!("{text}\n{error}"),
    }
}

/// (entry, part of the refusal)
#[track_caller]
fn refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        match parse(text) {
            Ok(entry) => panic!("{text}\nwas taken as {}", entry.json()),
            Err(error) => assert!(error.to_string().contains(expected), "{text}\n{error}"),
        }
    }
}

#[test]
fn spellings_become_one() {
    for (text, expected) in [
        (
            r#"{"kind":"service-defaults","name":"api","protocol":"HTTP","mesh_gateway":{"mode":"local"},"expose":{"paths":[{"path":"/x","local_path_port":"80"}]},"meta":{"n":1}}"#,
            r#"{"Kind":"service-defaults","Name":"api","Protocol":"http","MeshGateway":{"Mode":"local"},"Expose":{"Paths":[{"Path":"/x","LocalPathPort":80,"ParsedFromCheck":false}]},"Meta":{"n":"1"}}"#,
        ),
        (
            r#"{"Kind":"service-defaults","Name":"web","Namespace":"default","Partition":"","CreateIndex":4,"ModifyIndex":9,"Hash":3}"#,
            r#"{"Kind":"service-defaults","Name":"web","Protocol":"","MeshGateway":{},"Expose":{}}"#,
        ),
        (
            r#"{"Kind":"proxy-defaults","Config":{"protocol":"http","b":1.5,"c":3.0,"A":[1,{"x":null}]}}"#,
            r#"{"Kind":"proxy-defaults","Name":"global","Config":{"A":[1,{"x":null}],"b":1.5,"c":3,"protocol":"http"},"MeshGateway":{},"Expose":{}}"#,
        ),
        (
            r#"{"Kind":"proxy-defaults","Name":"global"}"#,
            r#"{"Kind":"proxy-defaults","Name":"global","Config":null,"MeshGateway":{},"Expose":{}}"#,
        ),
        (
            r#"{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"/beta","Methods":["get"]}},"Destination":{"Service":"web","ServiceSubset":"v2","NumRetries":2,"RequestTimeout":"90s"}}]}"#,
            r#"{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"/beta","Methods":["GET"]}},"Destination":{"Service":"web","ServiceSubset":"v2","RequestTimeout":"1m30s","NumRetries":2}}]}"#,
        ),
        (
            r#"{"Kind":"service-router","Name":"web"}"#,
            r#"{"Kind":"service-router","Name":"web","Routes":null}"#,
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":33.33,"ServiceSubset":"v1"},{"Weight":"66.67"}]}"#,
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":33.33,"ServiceSubset":"v1"},{"Weight":66.67}]}"#,
        ),
        (
            r#"{"Kind":"service-resolver","Name":"web","DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"OnlyPassing":true}},"Failover":{"*":{"Datacenters":["dc2"]}},"ConnectTimeout":5000000000}"#,
            r#"{"Kind":"service-resolver","Name":"web","DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"OnlyPassing":true}},"Failover":{"*":{"Datacenters":["dc2"]}},"ConnectTimeout":"5s"}"#,
        ),
        (
            r#"{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"*","Action":"deny"},{"Name":"web","Action":"allow","Precedence":1}]}"#,
            r#"{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"web","Action":"allow","Precedence":9,"Type":"consul"},{"Name":"*","Action":"deny","Precedence":8,"Type":"consul"}]}"#,
        ),
        (
            r#"{"Kind":"mesh","TLS":{"Incoming":{"TLSMinVersion":"TLSv1_2"}}}"#,
            r#"{"Kind":"mesh","Name":"mesh","TransparentProxy":{"MeshDestinationsOnly":false},"TLS":{"Incoming":{"TLSMinVersion":"TLSv1_2"}}}"#,
        ),
        (
            r#"{"Kind":"jwt-provider","Name":"okta","JSONWebKeySet":{"Local":{"Filename":"/k"}}}"#,
            r#"{"Kind":"jwt-provider","Name":"okta","JSONWebKeySet":{"Local":{"Filename":"/k"}},"ClockSkewSeconds":30}"#,
        ),
        (
            r#"{"Kind":"exported-services","Name":"default","Services":[{"Name":"web","Consumers":[{"Peer":"east"}]}]}"#,
            r#"{"Kind":"exported-services","Name":"default","Services":[{"Name":"web","Consumers":[{"Peer":"east"}]}]}"#,
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"in","Listeners":[{"Port":80,"Services":[{"Name":"a"}]}]}"#,
            r#"{"Kind":"ingress-gateway","Name":"in","TLS":{"Enabled":false},"Listeners":[{"Port":80,"Protocol":"tcp","Services":[{"Name":"a","Hosts":null}]}]}"#,
        ),
        (
            r#"{"Kind":"terminating-gateway","Name":"out","Services":[{"Name":"web","CAFile":"/ca","SNI":"x"},{"Name":"*"}]}"#,
            r#"{"Kind":"terminating-gateway","Name":"out","Services":[{"Name":"web","CAFile":"/ca","SNI":"x"},{"Name":"*"}]}"#,
        ),
        (
            r#"{"Kind":"api-gateway","Name":"g","Listeners":[{"Name":"l","Port":443,"Protocol":"HTTP","TLS":{"Certificates":[{"Name":"c"}]}}],"Status":{"Conditions":[]}}"#,
            r#"{"Kind":"api-gateway","Name":"g","Listeners":[{"Name":"l","Hostname":"*","Port":443,"Protocol":"http","TLS":{"Certificates":[{"Kind":"inline-certificate","Name":"c"}]}}]}"#,
        ),
        (
            r#"{"Kind":"tcp-route","Name":"r","Parents":[{"Name":"g"}],"Services":[{"Name":"db"}]}"#,
            r#"{"Kind":"tcp-route","Name":"r","Parents":[{"Kind":"api-gateway","Name":"g"}],"Services":[{"Name":"db"}]}"#,
        ),
        (
            r#"{"Kind":"http-route","Name":"r","Parents":[{"Name":"g"}],"Rules":[{"Matches":[{"Path":{}}],"Services":[{"Name":"web"}]}]}"#,
            r#"{"Kind":"http-route","Name":"r","Parents":[{"Kind":"api-gateway","Name":"g"}],"Rules":[{"Filters":{"Headers":null,"URLRewrite":null,"RetryFilter":null,"TimeoutFilter":null},"ResponseFilters":{"Headers":null},"Matches":[{"Headers":null,"Method":"","Path":{"Match":"prefix","Value":"/"},"Query":null}],"Services":[{"Name":"web","Weight":1,"Filters":{"Headers":null,"URLRewrite":null,"RetryFilter":null,"TimeoutFilter":null},"ResponseFilters":{"Headers":null}}]}],"Hostnames":null}"#,
        ),
        (
            r#"{"Kind":"file-system-certificate","Name":"c","Certificate":"/c","PrivateKey":"/k"}"#,
            r#"{"Kind":"file-system-certificate","Name":"c","Certificate":"/c","PrivateKey":"/k"}"#,
        ),
    ] {
        let json = stored(text);
        assert_eq!(json, expected, "{text}");
        assert_eq!(
            stored(&json),
            json,
            "what is stored is taken again as it is"
        );
        let row = parse(text).unwrap().row();
        assert_eq!(Entry::stored(&row).unwrap(), parse(text).unwrap());
    }
}

#[test]
fn unknown_fields_are_named_with_the_known_one_that_is_near() {
    let error =
        parse(r#"{"Kind":"service-defaults","Name":"web","Protcol":"http","X":1}"#).unwrap_err();
    assert_eq!(error.reason(), "config.field.unknown");
    assert_eq!(
        error.to_string(),
        "2 errors occurred:\n\t* invalid config key \"Protcol\" (did you mean \"Protocol\"?)\n\t* invalid config key \"X\"\n\n"
    );
    refused(&[
        (
            r#"{"Kind":"service-defaults","Name":"x","Expose":{"Paths":[{"Pth":"/a"}]}}"#,
            "invalid config key \"Expose.Paths[0].Pth\" (did you mean \"Path\"?)",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","mesh-gateway":{}}"#,
            "invalid config key \"mesh-gateway\" (did you mean \"MeshGateway\"?)",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Namespace":"team"}"#,
            "invalid config key \"Namespace\", namespaces are a consul enterprise feature",
        ),
        (
            r#"{"Kind":"service-resolver","Name":"x","Redirect":{"Service":"y","SamenessGroup":"g"}}"#,
            "sameness groups are a consul enterprise feature",
        ),
    ]);
}

#[test]
fn what_is_no_entry_says_why() {
    refused(&[
        (
            r#"{"Name":"x"}"#,
            "Payload does not contain a kind/Kind key at the top level",
        ),
        (
            r#"{"Kind":"bogus","Name":"x"}"#,
            "invalid config entry kind: bogus",
        ),
        (
            r#"{"Kind":"sameness-group","Name":"x"}"#,
            "Consul Enterprise",
        ),
        (
            r#"{"Kind":"control-plane-request-limit","Name":"x"}"#,
            "Consul Enterprise",
        ),
        (r#"{"Kind":"rate-limit","Name":"x"}"#, "Consul Enterprise"),
        (
            r#"{"Kind":"bound-api-gateway","Name":"x"}"#,
            "the servers make it",
        ),
        ("[]", "'' expected a map, got 'slice'"),
        (r#"{"Kind":"service-defaults"}"#, "serviceName is required"),
        (
            r#"{"Kind":"service-splitter","Splits":[{"Weight":100}]}"#,
            "Name is required",
        ),
        (
            r#"{"Kind":"proxy-defaults","Name":"foo"}"#,
            "only \"global\" is supported",
        ),
        (
            r#"{"Kind":"mesh","Name":"foo"}"#,
            "only \"mesh\" is supported",
        ),
        (
            r#"{"Kind":"exported-services","Name":"foo"}"#,
            "only \"default\" is supported",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"a\nb"}"#,
            "control character",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","MaxInboundConnections":-1}"#,
            "MaxInboundConnections",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Expose":3}"#,
            "'Expose' expected a map, got a number",
        ),
        (
            r#"{"Kind":"service-resolver","Name":"x","ConnectTimeout":"abc"}"#,
            "error decoding 'ConnectTimeout': time: invalid duration \"abc\"",
        ),
    ]);
    assert_eq!(
        parse(r#"{"Kind":"bound-api-gateway","Name":"x"}"#)
            .unwrap_err()
            .reason(),
        "config.kind.server_made"
    );
}

#[test]
fn defaults_are_judged() {
    refused(&[
        (
            r#"{"Kind":"service-defaults","Name":"*"}"#,
            "use proxy-defaults",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Mode":"sideways"}"#,
            "Mode: \"sideways\" is not one of \"direct\", \"transparent\"",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","MeshGateway":{"Mode":"bogus"}}"#,
            "MeshGateway.Mode",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","MutualTLSMode":"lax"}"#,
            "MutualTLSMode",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Expose":{"Paths":[{"Protocol":"tcp"}]}}"#,
            "Expose.Paths[0].Protocol",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Expose":{"Paths":[{"ListenerPort":70000}]}}"#,
            "at most 65535",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Destination":{"Port":80}}"#,
            "Destination.Addresses",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Destination":{"Addresses":["*.a.com"],"Port":80}}"#,
            "wildcard",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Destination":{"Addresses":["a.com"]}}"#,
            "Invalid Port number 0",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","UpstreamConfig":{"Defaults":{"Name":"y"}}}"#,
            "must not have a Name",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","UpstreamConfig":{"Overrides":[{}]}}"#,
            "Overrides[0]: Name is required",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","UpstreamConfig":{"Overrides":[{"Name":"y"},{"Name":"Y"}]}}"#,
            "is there twice",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","UpstreamConfig":{"Defaults":{"PassiveHealthCheck":{"MaxEjectionPercent":101}}}}"#,
            "percentage",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","UpstreamConfig":{"Defaults":{"PassiveHealthCheck":{"Interval":"-1s"}}}}"#,
            "must be >= 0",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","BalanceInboundConnections":"fair"}"#,
            "exact_balance",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","RateLimits":{"InstanceLevel":{"RequestsMaxBurst":5}}}"#,
            "RequestsPerSecond",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","RateLimits":{"InstanceLevel":{"Routes":[{"RequestsPerSecond":5}]}}}"#,
            "exactly one of",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","RateLimits":{"InstanceLevel":{"Routes":[{"PathExact":"/a"}]}}}"#,
            "RequestsPerSecond must be greater",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","EnvoyExtensions":[{}]}"#,
            "EnvoyExtensions[0]: Name is required",
        ),
        (
            r#"{"Kind":"proxy-defaults","AccessLogs":{"Type":"file"}}"#,
            "AccessLogs.Path",
        ),
        (
            r#"{"Kind":"proxy-defaults","AccessLogs":{"Type":"pipe"}}"#,
            "AccessLogs.Type",
        ),
        (
            r#"{"Kind":"proxy-defaults","AccessLogs":{"JSONFormat":"a","TextFormat":"b"}}"#,
            "not both",
        ),
        (
            r#"{"Kind":"service-defaults","Name":"x","Meta":{"":"b"}}"#,
            "Meta: a key is empty",
        ),
    ]);
}

#[test]
fn routes_and_splits_are_judged() {
    let route = |inside: &str| {
        format!(r#"{{"Kind":"service-router","Name":"web","Routes":[{{{inside}}}]}}"#)
    };
    for (inside, expected) in [
        (
            r#""Match":{"HTTP":{"PathPrefix":"beta"}}"#,
            "Route[0] PathPrefix doesn't start with '/': \"beta\"",
        ),
        (
            r#""Match":{"HTTP":{"PathExact":"beta"}}"#,
            "Route[0] PathExact doesn't start with '/'",
        ),
        (
            r#""Match":{"HTTP":{"PathExact":"/b","PathPrefix":"/c"}}"#,
            "Route[0] should only contain at most one of PathExact",
        ),
        (
            r#""Match":{"HTTP":{"PathRegex":"["}}"#,
            "not a valid RE2 expression",
        ),
        (
            r#""Match":{"HTTP":{"Header":[{"Present":true}]}}"#,
            "Route[0] Header[0] missing required Name field",
        ),
        (
            r#""Match":{"HTTP":{"Header":[{"Name":"x"}]}}"#,
            "should only contain one of Present, Exact, Prefix, Suffix, or Regex",
        ),
        (
            r#""Match":{"HTTP":{"Header":[{"Name":"x","Present":true,"Exact":"y"}]}}"#,
            "should only contain one of",
        ),
        (
            r#""Match":{"HTTP":{"Header":[{"Name":"x","Contains":"y"}]}}"#,
            "should only contain one of",
        ),
        (
            r#""Match":{"HTTP":{"QueryParam":[{"Present":true}]}}"#,
            "Route[0] QueryParam[0] missing required Name field",
        ),
        (
            r#""Match":{"HTTP":{"QueryParam":[{"Name":"x"}]}}"#,
            "should only contain one of Present, Exact, or Regex",
        ),
        (
            r#""Match":{"HTTP":{"Methods":["GET","get"]}}"#,
            "Methods contains \"GET\" more than once",
        ),
        (
            r#""Destination":{"PrefixRewrite":"/x"}"#,
            "cannot make use of PrefixRewrite without configuring either PathExact or PathPrefix",
        ),
        (
            r#""Match":{"HTTP":{"PathRegex":"/x"}},"Destination":{"PrefixRewrite":"/x"}"#,
            "cannot make use of PrefixRewrite",
        ),
        (r#""Destination":{"RequestTimeout":"-1s"}"#, "must be >= 0"),
        (
            r#""Destination":{"RetryOnStatusCodes":[5000]}"#,
            "is no HTTP status",
        ),
    ] {
        refused(&[(&route(inside), expected)]);
    }
    assert_eq!(
        stored(r#"{"Kind":"service-splitter","Name":"w","Splits":[{"Weight":99.996}]}"#),
        r#"{"Kind":"service-splitter","Name":"w","Splits":[{"Weight":100}]}"#
    );
    refused(&[
        (
            r#"{"Kind":"service-splitter","Name":"web"}"#,
            "no splits configured",
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50},{"Weight":50,"Service":"WEB"}]}"#,
            "split destination occurs more than once",
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":33,"Service":"a"}]}"#,
            "the sum of all split weights must be 100, not 33.000000",
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":99.99}]}"#,
            "must be 100, not 99.990000",
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":-50},{"Weight":150,"Service":"a"}]}"#,
            "between 0 and 100, not -50",
        ),
        (
            r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":"half"}]}"#,
            "is not a share",
        ),
    ]);
}

#[test]
fn resolvers_are_judged() {
    let with = |inside: &str| format!(r#"{{"Kind":"service-resolver","Name":"web",{inside}}}"#);
    for (inside, expected) in [
        (r#""Redirect":{}"#, "Redirect is empty"),
        (
            r#""Redirect":{"ServiceSubset":"v1"}"#,
            "Redirect.ServiceSubset defined without Redirect.Service",
        ),
        (
            r#""Redirect":{"Service":"x"},"Subsets":{"v1":{}}"#,
            "Redirect and Subsets cannot both be set",
        ),
        (
            r#""Redirect":{"Service":"x"},"Failover":{"*":{"Service":"y"}}"#,
            "Redirect and Failover cannot both be set",
        ),
        (
            r#""Redirect":{"Service":"x","Peer":"p","Datacenter":"d"}"#,
            "Redirect.Peer cannot be set with Redirect.Datacenter",
        ),
        (
            r#""DefaultSubset":"v1""#,
            "DefaultSubset \"v1\" is not a valid subset",
        ),
        (r#""Subsets":{"":{}}"#, "Subset defined with empty name"),
        (
            r#""Subsets":{"Bad_Name":{}}"#,
            "Subset \"Bad_Name\" is invalid: must be 63 characters or fewer",
        ),
        (r#""Subsets":{"-a":{}}"#, "is invalid"),
        (
            r#""Subsets":{"v1":{"Filter":"bogus =="}}"#,
            "Filter for subset \"v1\" is not a valid expression",
        ),
        (
            r#""Subsets":{"v1":{"Filter":"bogus == 1"}}"#,
            "Selector \"bogus\" is not valid",
        ),
        (
            r#""Failover":{"*":{}}"#,
            "Bad Failover[\"*\"] one of Service, ServiceSubset",
        ),
        (
            r#""Failover":{"v9":{"Service":"x"}}"#,
            "Bad Failover[\"v9\"]: not a valid subset",
        ),
        (
            r#""Failover":{"*":{"ServiceSubset":"zz"}}"#,
            "Bad Failover[\"*\"].ServiceSubset \"zz\" is not a valid subset of \"\"",
        ),
        (
            r#""Failover":{"*":{"Datacenters":[""]}}"#,
            "Bad Failover[\"*\"].Datacenters: found empty datacenter",
        ),
        (
            r#""Failover":{"*":{"Service":"x","Targets":[{"Service":"y"}]}}"#,
            "Targets cannot be set with",
        ),
        (r#""Failover":{"*":{"Targets":[{}]}}"#, "Targets[0]: one of"),
        (
            r#""Failover":{"*":{"Targets":[{"Peer":"p","ServiceSubset":"v1"}]}}"#,
            "Peer cannot be set with",
        ),
        (
            r#""Failover":{"*":{"Targets":[{"ServiceSubset":"zz"}]}}"#,
            "is not a valid subset of",
        ),
        (
            r#""Failover":{"*":{"Service":"x","Policy":{"Mode":"order-by-locality"}}}"#,
            "Policy.Mode",
        ),
        (
            r#""ConnectTimeout":"-5s""#,
            "Bad ConnectTimeout '-5s', must be >= 0",
        ),
        (r#""LoadBalancer":{"Policy":"best"}"#, "LoadBalancer.Policy"),
        (
            r#""LoadBalancer":{"Policy":"random","RingHashConfig":{}}"#,
            "RingHashConfig only makes sense",
        ),
        (
            r#""LoadBalancer":{"Policy":"random","HashPolicies":[{"SourceIP":true}]}"#,
            "HashPolicies only makes sense",
        ),
        (
            r#""LoadBalancer":{"Policy":"maglev","HashPolicies":[{}]}"#,
            "one of Field or SourceIP is required",
        ),
        (
            r#""LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"header"}]}"#,
            "FieldValue is required",
        ),
        (
            r#""LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"header","FieldValue":"x","CookieConfig":{}}]}"#,
            "needs Field to be \"cookie\"",
        ),
        (
            r#""LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"cookie","FieldValue":"x","CookieConfig":{"Session":true,"TTL":"1s"}}]}"#,
            "cannot have a TTL",
        ),
    ] {
        refused(&[(&with(inside), expected)]);
    }
}

#[test]
fn intentions_are_judged() {
    let with = |inside: &str| {
        format!(r#"{{"Kind":"service-intentions","Name":"db","Sources":[{inside}]}}"#)
    };
    for (inside, expected) in [
        ("", "At least one source is required"),
        (r#"{"Action":"allow"}"#, "Sources[0].Name is required"),
        (
            r#"{"Name":"we*","Action":"allow"}"#,
            "wildcard character '*' cannot be used with partial values",
        ),
        (
            r#"{"Name":"web"}"#,
            "Sources[0].Action must be set to 'allow' or 'deny'",
        ),
        (
            r#"{"Name":"web","Action":"allow","Type":"other"}"#,
            "Type must be set to 'consul'",
        ),
        (
            r#"{"Name":"web","Action":"allow"},{"Name":"web","Action":"deny"}"#,
            "more than once",
        ),
        (
            r#"{"Name":"web","Action":"allow","Permissions":[{"Action":"allow","HTTP":{"PathExact":"/"}}]}"#,
            "Action must be omitted if Permissions are specified",
        ),
        (
            r#"{"Name":"web","Permissions":[{"HTTP":{"PathExact":"/"}}]}"#,
            "Permissions[0].Action must be set to either 'allow' or 'deny'",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow"}]}"#,
            "HTTP or JWT is required",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow","HTTP":{}}]}"#,
            "HTTP should not be empty",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"x"}}]}"#,
            "doesn't start with '/'",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"Methods":["BREW"]}}]}"#,
            "invalid method \"BREW\"",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"Header":[{"Name":"x","Regex":"a","IgnoreCase":true}]}}]}"#,
            "IgnoreCase",
        ),
        (
            r#"{"Name":"web","Permissions":[{"Action":"allow","JWT":{"Providers":[{"VerifyClaims":[]}]}}]}"#,
            "provider name is required",
        ),
        (
            r#"{"Name":"web","Action":"allow","Peer":"*"}"#,
            "Peer must name one peer",
        ),
    ] {
        refused(&[(&with(inside), expected)]);
    }
    for (source, destination, expected) in [
        ("web", "db", 9),
        ("*", "db", 8),
        ("web", "*", 6),
        ("*", "*", 5),
    ] {
        assert_eq!(intentions::precedence(source, destination), expected);
    }
}

#[test]
fn gateways_routes_and_the_mesh_are_judged() {
    refused(&[
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Protocol":"http"}]}"#,
            "No service declared for listener with port 80",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Services":[{"Name":"a"},{"Name":"b"}]}]}"#,
            "Multiple services per listener are only supported for protocol = 'http' (listener on port 80)",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Services":[{"Name":"*"}]}]}"#,
            "Wildcard service name is only valid for protocol = 'http'",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Services":[{"Name":""}]}]}"#,
            "Service name cannot be blank",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Protocol":"x","Services":[{"Name":"a"}]}]}"#,
            "'x' is an unsupported protocol",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Services":[{"Name":"a","Hosts":["x"]}]}]}"#,
            "Associating hosts to a service is not supported for the tcp protocol",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Services":[{"Name":"a"}]},{"Port":80,"Services":[{"Name":"b"}]}]}"#,
            "port 80 declared on two listeners",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Protocol":"http","Services":[{"Name":"*","Hosts":["a"]}]}]}"#,
            "Associating hosts to a wildcard service is not supported",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","Listeners":[{"Port":80,"Protocol":"http","Services":[{"Name":"a","Hosts":["x.*.com"]}]}]}"#,
            "is not valid",
        ),
        (
            r#"{"Kind":"ingress-gateway","Name":"g","TLS":{"TLSMinVersion":"SSL3"}}"#,
            "TLSMinVersion",
        ),
        (
            r#"{"Kind":"terminating-gateway","Name":"g","Services":[{"Name":""}]}"#,
            "Service name cannot be blank.",
        ),
        (
            r#"{"Kind":"terminating-gateway","Name":"g","Services":[{"Name":"a"},{"Name":"a"}]}"#,
            "more than once within a namespace",
        ),
        (
            r#"{"Kind":"terminating-gateway","Name":"g","Services":[{"Name":"a","CertFile":"x"}]}"#,
            "must have a CertFile, CAFile, and KeyFile",
        ),
        (
            r#"{"Kind":"api-gateway","Name":"g","Listeners":[{"Name":"a","Port":80,"Protocol":"udp"}]}"#,
            "Protocol: \"udp\"",
        ),
        (
            r#"{"Kind":"api-gateway","Name":"g","Listeners":[{"Name":"a","Port":80,"Protocol":"http"},{"Name":"a","Port":81,"Protocol":"http"}]}"#,
            "multiple listeners with the same name",
        ),
        (
            r#"{"Kind":"api-gateway","Name":"g","Listeners":[{"Name":"a","Port":80,"Protocol":"http"},{"Name":"b","Port":80,"Protocol":"http"}]}"#,
            "are those of listener \"a\"",
        ),
        (
            r#"{"Kind":"http-route","Name":"r","Parents":[{"Kind":"mesh","Name":"g"}]}"#,
            "Parents[0].Kind",
        ),
        (
            r#"{"Kind":"http-route","Name":"r","Rules":[{"Matches":[{"Path":{"Match":"exact","Value":"x"}}]}]}"#,
            "doesn't start with '/'",
        ),
        (
            r#"{"Kind":"http-route","Name":"r","Rules":[{"Services":[{}]}]}"#,
            "rule[0] service[0]: Name is required",
        ),
        (
            r#"{"Kind":"tcp-route","Name":"r","Services":[{"Name":"a"},{"Name":"b"}]}"#,
            "only supports one service",
        ),
        (
            r#"{"Kind":"inline-certificate","Name":"c","Certificate":"x","PrivateKey":"y"}"#,
            "failed to parse Certificate PEM",
        ),
        (
            r#"{"Kind":"file-system-certificate","Name":"c","Certificate":"/x"}"#,
            "PrivateKey is required",
        ),
        (
            r#"{"Kind":"mesh","TLS":{"Incoming":{"TLSMinVersion":"TLSv1_3","TLSMaxVersion":"TLSv1_2"}}}"#,
            "less than the configured min version",
        ),
        (
            r#"{"Kind":"mesh","HTTP":{"Incoming":{"RequestNormalization":{"PathWithEscapedSlashesAction":"x"}}}}"#,
            "PathWithEscapedSlashesAction",
        ),
        (
            r#"{"Kind":"jwt-provider","Name":"j"}"#,
            "JSONWebKeySet is required",
        ),
        (
            r#"{"Kind":"jwt-provider","Name":"j","JSONWebKeySet":{}}"#,
            "exactly one of Local or Remote",
        ),
        (
            r#"{"Kind":"jwt-provider","Name":"j","JSONWebKeySet":{"Remote":{"URI":"ftp://x"}}}"#,
            "begins with http://",
        ),
        (
            r#"{"Kind":"jwt-provider","Name":"j","JSONWebKeySet":{"Local":{"JWKS":"x"}},"Locations":[{}]}"#,
            "Locations[0]",
        ),
        (
            r#"{"Kind":"exported-services","Name":"default","Services":[{"Name":"a"}]}"#,
            "must have at least one consumer",
        ),
        (
            r#"{"Kind":"exported-services","Name":"default","Services":[{"Name":"a","Consumers":[{}]}]}"#,
            "must define the name of one Peer",
        ),
    ]);
}

#[test]
fn a_private_key_is_kept_and_not_shown() {
    let pem = |label: &str| format!("-----BEGIN {label}-----\\nAAAA\\n-----END {label}-----\\n");
    let text = format!(
        r#"{{"Kind":"inline-certificate","Name":"c","Certificate":"{}","PrivateKey":"{}"}}"#,
        pem("CERTIFICATE"),
        pem("EC PRIVATE KEY")
    );
    let entry = parse(&text).unwrap();
    let mut json = Json::default();
    entry.write(&mut json);
    let shown: Value = serde_json::from_slice(&json.into_bytes()).unwrap();
    assert!(
        entry.json().contains("EC PRIVATE KEY") && !shown.to_string().contains("EC PRIVATE KEY")
    );
    assert_eq!(shown["PrivateKey"], api_gateway::HIDDEN);
    let error = Entry::parse(&shown).unwrap_err();
    assert!(error.to_string().contains("put the key itself"), "{error}");
}

#[test]
fn an_entry_has_a_bound() {
    let text = format!(
        r#"{{"Kind":"service-defaults","Name":"x","Meta":{{"a":"{}"}}}}"#,
        "x".repeat(CONFIG_ENTRY_BYTES_MAX)
    );
    refused(&[(&text, "at most 524288 are allowed")]);
    let deep = format!(
        r#"{{"Kind":"proxy-defaults","Config":{{"a":{}1{}}}}}"#,
        "[".repeat(60),
        "]".repeat(60)
    );
    refused(&[(&deep, "nested deeper than 32 levels")]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "Name",
        "Kind",
        "Routes",
        "Splits",
        "Match",
        "HTTP",
        "Sources",
        "Permissions",
        "Services",
        "Listeners",
        "Config",
        "Meta",
        "Weight",
        "Subsets",
        "Failover",
        "Redirect",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z/*:.-]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|members| members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_panics_and_what_is_taken_is_taken_again(kind in prop::sample::select(Kind::ALL), body in any_json()) {
        let mut body = match body {
            Value::Object(map) => Value::Object(map),
            other => json!({"Routes": other}),
        };
        body["Kind"] = kind.as_str().into();
        if let Ok(entry) = Entry::parse(&body) {
            let again = Entry::parse(&serde_json::from_str(entry.json()).unwrap()).unwrap();
            prop_assert_eq!(&again, &entry);
            prop_assert_eq!(Entry::stored(&entry.row()).unwrap(), entry);
        }
    }
}
