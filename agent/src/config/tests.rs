use std::path::PathBuf;

use super::runtime::{Bootstrap, ListenAddr, LogBackend, LogLevel};
use super::sockaddr::Interface;
use super::*;
use crate::local::ScriptChecks;

fn machine() -> Machine {
    let one = |name: &str, address: &str, prefix, has_default_route| Interface {
        name: name.into(),
        address: address.parse().unwrap(),
        prefix,
        up: true,
        has_default_route,
    };
    Machine {
        host_name: "vm-7".into(),
        interfaces: vec![
            one("lo", "127.0.0.1", 8, false),
            one("eth0", "10.0.0.7", 24, true),
        ],
    }
}

/// Loads `files` (name, text) from a directory of their own, with flags as `key=value`.
fn load_files(
    files: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> (Result<RuntimeConfig, Problems>, String) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let flags = flags.iter().map(|(key, value)| Flag {
        name: format!("-{key}"),
        key,
        value: (*value).into(),
    });
    let request = Request {
        paths: vec![directory.path().into()],
        flags: flags.collect(),
        ..Request::default()
    };
    (
        load(&request, &machine()),
        format!("{}/", directory.path().display()),
    )
}

#[track_caller]
fn ok(text: &str) -> RuntimeConfig {
    let (result, _) = load_files(&[("a.hcl", text)], &[("data_dir", "/d")]);
    result.unwrap_or_else(|problems| panic!("{problems}"))
}

/// The whole text of what is reported, without the directory.
#[track_caller]
fn errors(text: &str) -> String {
    let (result, directory) = load_files(&[("a.hcl", text)], &[("data_dir", "/d")]);
    result.expect_err(text).to_string().replace(&directory, "")
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    let all = errors(text);
    assert!(
        all.contains(expected),
        "{text}\nwanted: {expected}\ngot: {all}"
    );
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = ok("");
    assert_eq!(
        (config.datacenter.as_str(), config.domain.as_str()),
        ("dc1", "consul")
    );
    assert_eq!(
        (config.node.name.as_str(), config.alt_domain.as_deref()),
        ("vm-7", Some("weft"))
    );
    assert_eq!(
        (config.server, config.bootstrap, config.raft.multiplier),
        (false, Bootstrap::Join, 1)
    );
    assert_eq!(
        config.network.http,
        [ListenAddr::Ip("127.0.0.1:8500".parse().unwrap())]
    );
    assert_eq!(config.network.dns, ["127.0.0.1:8600".parse().unwrap()]);
    assert_eq!(
        (config.network.https.len(), config.network.grpc.len()),
        (0, 0)
    );
    assert_eq!(config.network.serf_lan, "127.0.0.1:8301".parse().unwrap());
    assert_eq!(
        (config.leave.on_terminate, config.leave.skip_on_interrupt),
        (true, false)
    );
    assert_eq!(config.data_dir, Some(PathBuf::from("/d")));
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let server = ok("server = true");
    assert_eq!(
        (server.leave.on_terminate, server.leave.skip_on_interrupt),
        (false, true)
    );
}

#[test]
fn an_unknown_key_is_shown_with_line_caret_and_nearest_match() {
    let expected = "error[WFT2004]: a.hcl:2:3 unknown key \"retry_jion\"\n\
                    \x20 2 |   retry_jion = [\"10.0.0.11\"]\n\
                    \x20   |   ^^^^^^^^^^ did you mean \"retry_join\"?";
    assert!(errors("server = false\n  retry_jion = [\"10.0.0.11\"]\n").starts_with(expected));
}

#[test]
fn every_error_is_reported_at_once() {
    let all = errors(
        "servr = true\nports { htpp = 1 }\nbind_addr = true\nretry_interval = \"30\"\nservice { nam = \"a\" }\n",
    );
    for expected in [
        "1:1 unknown key \"servr\"",
        "2:9 unknown key \"ports.htpp\"",
        "did you mean \"http\"?",
        "3:13 key \"bind_addr\" wants a string, not a boolean",
        "4:18 key \"retry_interval\": time: missing unit in duration \"30\"",
        "5:11 unknown key \"service.nam\"",
    ] {
        assert!(all.contains(expected), "{expected}\n{all}");
    }
}

#[test]
fn json_files_have_positions_too() {
    let (result, directory) = load_files(
        &[(
            "a.json",
            "{\n  \"data_dir\": \"/d\",\n  \"serverr\": true\n}",
        )],
        &[],
    );
    let text = result.unwrap_err().to_string().replace(&directory, "");
    assert!(
        text.contains("a.json:3:3 unknown key \"serverr\""),
        "{text}"
    );
}

#[test]
fn secrets_are_not_shown() {
    let all = errors("encrypt = \"c2VjcmV0\"\nports { http = \"x\" }");
    assert!(
        all.contains("encrypt is not a gossip key") && !all.contains("c2VjcmV0"),
        "{all}"
    );
    assert!(
        !format!(
            "{:?}",
            ok("encrypt = \"pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=\"")
        )
        .contains("pUqJ")
    );
}

#[test]
fn later_sources_win_lists_append_maps_merge() {
    let files = [
        (
            "1.hcl",
            "datacenter = \"one\" retry_join = [\"a\"] ports { http = 1500 dns = 1600 } node_meta { a = 1 }\nlog_level = \"warn\"",
        ),
        (
            "2.json",
            r#"{"datacenter": "two", "retry_join": ["b"], "ports": {"http": 2500}, "node_meta": {"b": "2"}}"#,
        ),
        ("ignored.txt", "not configuration"),
    ];
    let (result, _) = load_files(
        &files,
        &[
            ("data_dir", "/d"),
            ("retry_join", "c"),
            ("log_level", "trace"),
            ("node_meta", "c:3:4"),
        ],
    );
    let config = result.unwrap();
    assert_eq!(config.datacenter, "two");
    assert_eq!(config.join.retry_join, ["a", "b", "c"]);
    assert_eq!(
        (
            config.network.http[0].to_string(),
            config.network.dns[0].port()
        ),
        ("127.0.0.1:2500".into(), 1600)
    );
    assert_eq!(config.log.level, LogLevel::Trace);
    let meta: Vec<_> = config
        .node
        .meta
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(meta, ["a=1", "b=2", "c=3:4"]);
}

#[test]
fn hcl_flags_and_environment_have_their_rank() {
    let env = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let request = Request {
        hcl: vec![
            "datacenter = \"hcl\" domain = \"hcl\" node_name = \"hcl\" data_dir = \"/hcl\"".into(),
        ],
        env: vec![
            env(
                "CONSUL_LOCAL_CONFIG",
                r#"{"domain": "env", "node_name": "env"}"#,
            ),
            env("CONSUL_DATA_DIR", "/env"),
            env("WEFT_PORTS_HTTP", "9500"),
            env("WEFT_RETRY_JOIN", "a, b"),
            env("CONSUL_CLIENT_INTERFACE", "lo"),
            env("WEFT_HTTP_ADDR", "ignored"),
        ],
        flags: vec![Flag {
            name: "-node".into(),
            key: "node_name",
            value: "flag".into(),
        }],
        ..Request::default()
    };
    let config = load(&request, &machine()).unwrap();
    assert_eq!(
        (
            config.datacenter.as_str(),
            config.domain.as_str(),
            config.node.name.as_str()
        ),
        ("hcl", "env", "flag")
    );
    assert_eq!(
        (config.data_dir, config.network.http[0].to_string()),
        (Some("/env".into()), "127.0.0.1:9500".into())
    );
    assert_eq!(config.join.retry_join, ["a", "b"]);
}

#[test]
fn a_wrong_flag_is_named_as_the_user_wrote_it() {
    let (result, _) = load_files(&[], &[("data_dir", "/d"), ("ports.http", "eighty")]);
    let text = result.unwrap_err().to_string();
    assert!(
        text.starts_with(
            "error[WFT2003]: flag -ports.http key \"ports.http\" wants a whole number, not a string"
        ),
        "{text}"
    );
}

#[test]
fn values_are_checked() {
    for (text, expected) in [
        (
            "bootstrap_expect = 3",
            "bootstrap_expect requires server = true",
        ),
        (
            "server = true bootstrap = true bootstrap_expect = 3",
            "mutually exclusive",
        ),
        (
            "ports { http = 70000 }",
            "ports.http is 70000; it must be between -1 and 65535",
        ),
        (
            "ports { serf_lan = -1 }",
            "ports.serf_lan cannot be switched off",
        ),
        (
            "ports { http = 8600 }",
            "ports.http and ports.dns both want 127.0.0.1:8600",
        ),
        (
            "datacenter = \"a b\"",
            "datacenter \"a b\" may only have letters",
        ),
        (
            "bind_addr = \"10.0.0.1 10.0.0.2\"",
            "bind_addr must be exactly one address",
        ),
        (
            "bind_addr = \"{{ GetIt }}\"",
            "bind_addr: GetIt is not a function",
        ),
        (
            "advertise_addr = \"0.0.0.0\"",
            "must not be the unspecified address",
        ),
        (
            "client_addr = \"here\"",
            "client_addr \"here\" is neither an IP address nor unix:///path",
        ),
        (
            "addresses { dns = \"unix:///x\" }",
            "DNS cannot listen on a Unix socket",
        ),
        ("encrypt = \"aGk=\"", "weft keygen"),
        (
            "log_level = \"loud\"",
            "log_level \"loud\" is none of: TRACE, DEBUG, INFO, WARN, ERR, ERROR",
        ),
        ("node_id = \"x\"", "node_id is not a UUID"),
        (
            "node_meta { consul-x = \"y\" }",
            "the prefix \"consul-\" is reserved",
        ),
        (
            "performance { raft_multiplier = 11 }",
            "performance.raft_multiplier is 11; it must be between 1 and 10",
        ),
        (
            "raft_logstore { backend = \"files\" }",
            "raft_logstore.backend \"files\" is none of: wal, sled, default",
        ),
        (
            "reconnect_timeout = \"1h\"",
            "reconnect_timeout is 1h0m0s; it must be at least 8h",
        ),
        (
            "retry_join = [\"provider=aws tag_key=a\"]",
            "looking servers up at a provider is not in this version",
        ),
        (
            "tls { defaults { verify_incoming = true } }",
            "verify_incoming is set, but there is no ca_file",
        ),
        (
            "tls { https { cert_file = \"a\" } }",
            "tls.https has only one of cert_file and key_file",
        ),
        (
            "service { name = \"a\" check { script = \"x\" interval = \"5s\" } }",
            "script is no longer run, because a shell read it",
        ),
        (
            "check { name = \"a\" alias_service = \"b\" ttl = \"5s\" }",
            "TTL must be not be set for Alias checks",
        ),
        (
            "service { name = \"a\" connect { sidecar_service {} } }",
            "sidecar services come with the mesh, a later version",
        ),
        (
            "unix_sockets { mode = \"rw\" }",
            "unix_sockets.mode \"rw\" is not an octal mode",
        ),
        (
            "acl { enabled = true }",
            "acl.enabled = true cannot be kept",
        ),
        ("service { port = 80 }", "service: "),
        ("check { ttl = \"5s\" }", "check: Missing check name"),
        (
            "default_query_time = \"20m\"",
            "default_query_time 20m0s is above max_query_time 10m0s",
        ),
        ("a = [", "expected a value, found the end of the text"),
    ] {
        check_error(text, expected);
    }
    let (result, _) = load_files(&[], &[]);
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("data_dir is not set\n  fix: add -data-dir")
    );
    // What a file that cannot be read may set is not called missing.
    let (result, _) = load_files(&[("a.hcl", "data_dir = "), ("b.hcl", "sarver = true")], &[]);
    let all = result.unwrap_err().to_string();
    assert!(
        all.contains("WFT2002") && all.contains("did you mean"),
        "{all}"
    );
    assert!(
        !all.contains("data_dir is not set") && !all.contains("bind_addr"),
        "{all}"
    );
}

#[test]
fn known_keys_without_effect_warn_once_each() {
    let config = ok(
        "bind_addr = \"127.0.0.1\" audit = {} translate_wan_addrs = true\nacl { default_policy = \"deny\" }\n\
                     auto_encrypt { tls = true }\nsegments = null\ndisable_update_check = true\nca_file = \"/ca\"\n\
                     raft_logstore { backend = \"boltdb\" }",
    );
    let text: Vec<_> = config.warnings.iter().map(|w| w.message.clone()).collect();
    assert_eq!(
        text,
        [
            "key \"audit\" has no effect in this version",
            "key \"translate_wan_addrs\" has no effect in this version",
            "key \"acl.default_policy\" has no effect in this version",
            "key \"ca_file\" is an old name",
            "auto_encrypt.tls: servers give no certificate without a join token; this agent uses the one it has been given, if any",
            "raft_logstore.backend \"boltdb\" is not in weft; its own write-ahead log is used",
        ]
    );
    assert_eq!(config.tls.https.ca_file, Some("/ca".into()));
    assert_eq!(config.raft.backend, LogBackend::Wal);
}

#[test]
fn legacy_tls_keys_reach_every_part() {
    let config = ok(
        "ca_file = \"ca\" cert_file = \"c\" key_file = \"k\" verify_incoming_rpc = true verify_outgoing = true\n\
                     tls { https { cert_file = \"web\" } }",
    );
    assert!(config.tls.internal_rpc.verify_incoming && !config.tls.https.verify_incoming);
    assert_eq!(
        (config.tls.https.cert_file, config.tls.https.key_file),
        (Some("web".into()), Some("k".into()))
    );
    assert!(config.tls.grpc.verify_outgoing);
}

#[test]
fn services_are_read_in_every_form() {
    let config = ok(
        "service { name = \"a\" port = 1 check { ttl = \"5s\" } }\nservice \"b\" { port = 2 }\nservice \"c\" { port = 3 }\n\
                     services = [{ Name = \"d\", EnableTagOverride = true, Meta = { x = \"y\" } }]\n\
                     services { name = \"e\" tags = [\"t\"] checks = [{ CheckID = \"k\", tcp = \"127.0.0.1:1\", interval = \"1s\" }] }\n\
                     check { id = \"m\" name = \"mem\" ttl = \"30s\" }",
    );
    let names: Vec<_> = config
        .services
        .iter()
        .map(|s| s.service.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(
        config
            .services
            .iter()
            .map(|s| s.checks.len())
            .collect::<Vec<_>>(),
        [1, 0, 0, 0, 1]
    );
    assert_eq!(config.node_checks[0].name, "mem");
}

#[test]
fn dev_is_a_server_that_may_be_changed() {
    let load_dev = |hcl: &str| {
        load(
            &Request {
                dev: true,
                hcl: vec![hcl.into()],
                ..Request::default()
            },
            &machine(),
        )
    };
    let config = load_dev("ports { http = 9500 }").unwrap();
    assert!(config.server && config.data_dir.is_none());
    assert_eq!(
        (config.bootstrap, config.log.level),
        (Bootstrap::Alone, LogLevel::Debug)
    );
    assert_eq!(config.network.http[0].to_string(), "127.0.0.1:9500");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(
        load_dev("bootstrap_expect = 3")
            .unwrap_err()
            .to_string()
            .contains("not allowed with -dev")
    );
    assert!(
        load_dev("server = false")
            .unwrap_err()
            .to_string()
            .contains("-dev is always a server")
    );
    let open = load_dev("client_addr = \"0.0.0.0\"").unwrap();
    assert_eq!(exposure(&open), []);
    assert_eq!(exposure_warnings(&open).len(), 1);
}

#[test]
fn addresses_are_resolved_and_advertised() {
    let config = ok(
        "bind_addr = \"0.0.0.0\" client_addr = \"127.0.0.1 {{ GetInterfaceIP \\\"eth0\\\" }}\"\n\
                     addresses { http = \"unix:///run/w.sock 127.0.0.1\" }",
    );
    assert_eq!(
        (
            config.network.advertise.to_string(),
            config.network.dns.len()
        ),
        ("10.0.0.7".into(), 2)
    );
    assert_eq!(
        config.network.http[0],
        ListenAddr::Unix("/run/w.sock".into())
    );
    assert_eq!(config.network.tagged_addresses["lan_ipv4"], "10.0.0.7");
    let mut two = machine();
    two.interfaces.push(Interface {
        address: "192.168.1.9".parse().unwrap(),
        name: "eth1".into(),
        ..two.interfaces[1].clone()
    });
    let request = Request {
        hcl: vec!["bind_addr = \"0.0.0.0\" data_dir = \"/d\"".into()],
        ..Request::default()
    };
    let text = load(&request, &two).unwrap_err().to_string();
    assert!(
        text.contains("several addresses could be advertised: 10.0.0.7, 192.168.1.9"),
        "{text}"
    );
}

#[track_caller]
fn check_exposure(text: &str, expected: &[&str]) {
    let reasons: Vec<_> = exposure(&ok(text))
        .iter()
        .map(|refusal| refusal.reason)
        .collect();
    assert_eq!(reasons, expected, "{text}");
}

#[test]
fn loopback_is_open_the_network_is_not() {
    const KEY: &str = "encrypt = \"pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=\"\n";
    const TLS: &str = "tls { defaults { ca_file = \"a\" cert_file = \"b\" key_file = \"c\" verify_incoming = true verify_outgoing = true } }\n";
    check_exposure("server = true", &[]);
    check_exposure("server = true bind_addr = \"127.0.0.3\"", &[]);
    check_exposure("bind_addr = \"::1\"", &[]);
    check_exposure(
        "bind_addr = \"10.0.0.7\"",
        &["exposure.gossip", "exposure.rpc"],
    );
    check_exposure(
        &format!(
            "bind_addr = \"10.0.0.7\"\n{KEY}tls {{ defaults {{ ca_file = \"a\" verify_outgoing = true }} }}"
        ),
        &[],
    );
    check_exposure(
        "server = true bind_addr = \"10.0.0.7\"",
        &["exposure.gossip", "exposure.rpc"],
    );
    check_exposure(
        "server = true bind_addr = \"10.0.0.7\" allow_unencrypted = true",
        &[],
    );
    check_exposure(
        &format!("server = true bind_addr = \"10.0.0.7\"\n{KEY}"),
        &["exposure.rpc"],
    );
    check_exposure(
        &format!("server = true bind_addr = \"10.0.0.7\"\n{KEY}{TLS}"),
        &[],
    );
    check_exposure(
        &format!(
            "server = true bind_addr = \"10.0.0.7\" encrypt_verify_incoming = false\n{KEY}{TLS}"
        ),
        &["exposure.gossip"],
    );
    check_exposure("client_addr = \"0.0.0.0\"", &["exposure.http"]);
    check_exposure("client_addr = \"0.0.0.0\" allow_open_http = true", &[]);
    check_exposure("addresses { http = \"unix:///s\" dns = \"0.0.0.0\" }", &[]);
    check_exposure(
        "client_addr = \"10.0.0.7\" ports { http = -1 https = 8501 }\ntls { https { ca_file = \"a\" cert_file = \"b\" key_file = \"c\" } }",
        &[],
    );
    assert_eq!(
        ok(&format!("server = true\n{KEY}{TLS}"))
            .network
            .bind
            .to_string(),
        "0.0.0.0"
    );
}

#[test]
fn a_command_that_would_not_be_run_is_found_before_the_start() {
    let of_service =
        r#"service { name = "web" check { name = "disk" args = ["df"] interval = "5s" } }"#;
    let of_node = r#"check { name = "disk" args = ["df"] interval = "5s" }"#;
    for text in [of_service, of_node] {
        check_error(text, "check \"disk\": Scripts are disabled on this agent");
        let allowed = ok(&format!("enable_local_script_checks = true\n{text}"));
        assert_eq!(allowed.checks.scripts, ScriptChecks::Files);
    }
}

#[test]
fn checks_reach_what_the_keys_say() {
    let checks = ok("").checks;
    assert!(!checks.link_local && !checks.agent_tls);
    let checks = ok("enable_link_local_checks = true enable_agent_tls_for_checks = true").checks;
    assert!(checks.link_local && checks.agent_tls);
}

#[test]
fn commands_are_run_for_whom_a_key_names() {
    for (text, scripts) in [
        ("", ScriptChecks::Nobody),
        ("enable_script_checks = false", ScriptChecks::Nobody),
        ("enable_local_script_checks = true", ScriptChecks::Files),
        ("enable_script_checks = true", ScriptChecks::Everybody),
        (
            "enable_script_checks = true enable_local_script_checks = true",
            ScriptChecks::Everybody,
        ),
    ] {
        assert_eq!(ok(text).checks.scripts, scripts, "{text}");
    }
}

#[test]
fn a_reload_knows_what_it_may_change() {
    let old = ok(
        "log_level = \"info\" datacenter = \"a\" limits { rpc_max_calls = 1 } discard_check_output = true tls { https { ca_file = \"x\" } }",
    );
    let new = ok(
        "log_level = \"warn\" datacenter = \"b\" limits { rpc_max_calls = 2 } tls { https { ca_file = \"y\" } } service { name = \"s\" }",
    );
    let found = changes(&old, &new);
    assert_eq!(
        found.reloadable,
        ["log_level", "service", "tls.https.ca_file"]
    );
    assert_eq!(
        found.needs_restart,
        ["datacenter", "discard_check_output", "limits.rpc_max_calls"]
    );
    assert!(changes(&old, &old.clone()).is_empty());
}

#[test]
fn every_honoured_key_is_in_the_mirror() {
    use super::schema::{Effect, Kind, walk};
    for (path, key) in walk() {
        let parents_honoured = path.match_indices('.').all(|(at, _)| {
            super::schema::lookup(&path[..at])
                .is_some_and(|parent| parent.effect == Effect::Honoured)
        });
        if key.effect != Effect::Honoured || !parents_honoured {
            continue;
        }
        let sample = match key.kind {
            Kind::Bool => "true",
            Kind::Int | Kind::Float => "3",
            Kind::Duration => "\"9h\"",
            Kind::Texts => "[\"a\"]",
            Kind::Text => "\"a\"",
            Kind::TextMap if path == "dns_config.service_ttl" => "{ k = \"1s\" }",
            Kind::TextMap => "{ k = \"v\" }",
            _ => continue,
        };
        let text = path.rsplit('.').fold(String::new(), |inner, part| {
            if inner.is_empty() {
                format!("{part} = {sample}")
            } else {
                format!("{part} {{ {inner} }}")
            }
        });
        let (result, _) = load_files(&[("a.hcl", &text)], &[]);
        let all = result.err().map(|p| p.to_string()).unwrap_or_default();
        assert!(
            !all.contains("unknown field")
                && !all.contains("WFT2004")
                && !all.contains("invalid type"),
            "{text}\n{all}"
        );
    }
}

#[test]
fn unreadable_and_oddly_named_files_are_reported() {
    let request = |path: &str| Request {
        paths: vec![path.into()],
        ..Request::default()
    };
    let text = load(&request("/nonexistent/a.hcl"), &machine())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("WFT2001") && text.contains("/nonexistent/a.hcl: No such file"),
        "{text}"
    );
    let text = load(&request("/etc/hostname"), &machine())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("the suffix tells neither HCL nor JSON"),
        "{text}"
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_loading_panic(text in "(server|ports|http|bind_addr|service|check|name|tls|encrypt|[={}\\[\\]\", \n0-9a-c]){0,40}") {
        let _ = load_files(&[("a.hcl", &text)], &[]);
    }
}

#[test]
fn recursors_are_taken_with_their_order_and_never_ourselves() {
    let dns = ok("recursors = [\"192.0.2.1\", \"[2001:db8::1]:5353\"]
        dns_config { recursor_strategy = \"random\" recursor_timeout = \"3s\" }")
    .dns;
    let shown: Vec<String> = dns.recursors.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["192.0.2.1:53", "[2001:db8::1]:5353"]);
    assert_eq!(dns.recursor_timeout, std::time::Duration::from_secs(3));
    for own in ["127.0.0.1:8600", "127.1.2.3:8600", "10.0.0.7:8600"] {
        let refused = errors(&format!(
            "client_addr = \"0.0.0.0\"\nrecursors = [\"{own}\"]"
        ));
        assert!(refused.contains("own DNS port"), "{refused}");
    }
    let elsewhere = ok("client_addr = \"127.0.0.1\"\nrecursors = [\"127.0.0.2:8600\"]");
    assert_eq!(elsewhere.dns.recursors.len(), 1);
}

#[test]
fn watches_append_and_commands_need_permission() {
    let one = "bind_addr = \"127.0.0.1\"\nenable_local_script_checks = true\n\
               watches = [{ type = \"key\" key = \"a\" args = [\"/bin/x\"] }]";
    let two = r#"{"watches": [{"type": "service", "service": "web", "tag": "v1", "passingonly": "true",
        "handler_type": "http", "http_handler_config": {"path": "http://h/"}}]}"#;
    let (result, _) = load_files(&[("a.hcl", one), ("b.json", two)], &[("data_dir", "/d")]);
    let kinds: Vec<_> = result
        .unwrap()
        .watches
        .iter()
        .map(|w| w.plan.kind())
        .collect();
    assert_eq!(kinds, ["key", "service"]);

    let watch = |rest: &str| format!("bind_addr = \"127.0.0.1\"\nwatches = [{{ {rest} }}]");
    check_error(
        &watch("type = \"nodes\" args = [\"a\"]"),
        "enable_local_script_checks",
    );
    check_error(
        &watch("type = \"nodes\" agrs = [\"a\"]"),
        "did you mean \"args\"",
    );
    check_error(&watch("type = \"key\" handler = \"a\""), "needs key");
    check_error(
        &watch("type = \"nodes\" key = \"a\" args = [\"a\"]"),
        "does not belong",
    );
    check_error(
        &watch("type = \"connect_leaf\" args = [\"a\"]"),
        "belong to the mesh",
    );
}

#[test]
fn discovery_may_be_stale_and_keys_unchecked_when_that_is_said() {
    let (plain, _) = load_files(&[("a.hcl", "data_dir = \"/tmp/x\"")], &[]);
    let plain = plain.unwrap();
    assert!(plain.validate_kv_keys && plain.discovery_max_stale.is_zero());
    let text =
        "data_dir = \"/tmp/x\"\ndisable_kv_key_validation = true\ndiscovery_max_stale = \"5s\"";
    let (said, _) = load_files(&[("a.hcl", text)], &[]);
    let said = said.unwrap();
    assert!(!said.validate_kv_keys);
    assert_eq!(said.discovery_max_stale, std::time::Duration::from_secs(5));
    assert!(
        said.warnings.iter().all(|warning| {
            let text = &warning.message;
            !text.contains("discovery_max_stale") && !text.contains("disable_kv_key_validation")
        }),
        "both are honoured"
    );
}

#[test]
fn auto_config_is_joining_by_token() {
    let config = ok(
        "data_dir = \"d\" retry_join = [\"a\"] auto_config { enabled = true intro_token = \"abc\" server_addresses = [\"10.0.0.1:8300\", \"s.example\"] }",
    );
    assert_eq!(config.enrolment.token.as_deref(), Some("abc"));
    assert_eq!(config.join.retry_join, ["a", "10.0.0.1", "s.example"]);
    let config = ok("data_dir = \"d\" auto_config { enabled = true intro_token_file = \"/t\" }");
    assert_eq!(
        config.enrolment.token_file.as_deref(),
        Some(std::path::Path::new("/t"))
    );
    let off = ok("bind_addr = \"127.0.0.1\" auto_config { enabled = false intro_token = \"abc\" }");
    assert_eq!(off.enrolment.token, None);
    assert_eq!(off.warnings, []);
}

#[test]
fn what_auto_keys_promise_and_weft_does_not_is_said() {
    for (text, refusal) in [
        (
            "auto_config { enabled = true intro_token = \"eyJhbGciOi.x.y\" }",
            "intro_token is a JWT",
        ),
        ("auto_config { enabled = true }", "needs intro_token"),
        (
            "join_token = \"a\" auto_config { enabled = true intro_token = \"b\" }",
            "auto_config has a token",
        ),
        (
            "server = true bootstrap = true auto_config { enabled = true intro_token = \"b\" }",
            "auto_config.enabled is for agents",
        ),
        (
            "server = true bootstrap = true auto_encrypt { tls = true }",
            "auto_encrypt.tls is for agents",
        ),
        (
            "auto_encrypt { allow_tls = true }",
            "allow_tls is for servers",
        ),
        ("auto_encrypt { tls = true alow_tls = true }", "unknown key"),
        ("auto_config { intro_tokn = \"x\" }", "unknown key"),
        (
            "telemetry { prefix_filter = [\"consul.raft\"] }",
            "must begin with",
        ),
        (
            "telemetry { statsd_address = \"localhost\" }",
            "is not an address",
        ),
    ] {
        let found = errors(&format!("data_dir = \"d\" {text}"));
        assert!(found.contains(refusal), "{text}: {found}");
    }
    for (text, advice) in [
        ("auto_encrypt { tls = true }", "without a join token"),
        (
            "server = true bootstrap = true auto_encrypt { allow_tls = true }",
            "can give no certificates",
        ),
    ] {
        let config = ok(&format!("data_dir = \"d\" {text}"));
        let said = config
            .warnings
            .iter()
            .any(|one| one.message.contains(advice));
        assert!(said, "{text}: {:?}", config.warnings);
    }
    let joined = ok("bind_addr = \"127.0.0.1\" join_token = \"a\" auto_encrypt { tls = true }");
    assert_eq!(joined.warnings, []);
}
