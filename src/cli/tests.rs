use super::*;

#[test]
fn the_command_tree_is_sound() {
    command().debug_assert();
}

fn parsed(line: &str) -> Result<Verb, String> {
    let argv = line.split_whitespace().map(str::to_owned).collect();
    parse(argv).map_err(|error| error.to_string())
}

#[test]
fn consuls_own_lines_are_understood() {
    for line in [
        "weft agent -dev",
        "consul agent -dev -client 0.0.0.0 -log-level=err",
        "weft agent -server -bootstrap-expect=3 -data-dir=/d -bind 127.0.0.2 -retry-join=127.0.0.1 -retry-join 127.0.0.3",
        "weft agent -config-file a.hcl -config-dir=b -http-port=-1 -https-port 8501 -server=false -ui",
        "weft agent -check_output_max_size=100 -node-meta a:b -recursor=9.9.9.9 -hcl=a=1",
        "weft kv put -cas -modify-index=3 -flags=7 k v",
        "weft kv put k -v",
        "weft kv get -recurse",
        "weft kv get -keys -separator=/ a/",
        "weft kv delete -recurse a",
        "weft members -status=alive -detailed",
        "weft members -format=json",
        "weft catalog nodes -node-meta=a=b -service web",
        "weft operator raft list-peers -stale",
        "weft operator raft remove-peer -id=x",
        "weft operator autopilot set-config -cleanup-dead-servers=false",
        "weft config write -cas -modify-index=3 -",
        "weft config read -kind service-defaults -name=web",
        "weft config list -kind=mesh",
        "weft config delete -kind service-router -name web -cas -modify-index 4",
        "weft operator autopilot state -format=json",
        "weft operator usage instances",
        "weft maint",
        "weft monitor -log-level=debug -log-json",
        "weft maint -enable -reason=kernel -service web-1",
        "weft snapshot save -token=t f.snap",
        "weft lock -n 2 -try=1s p/x echo -n hi",
        "weft lock -shell=false -child-exit-code p ls",
        "weft services register -name=web -tag=a -tag=b -tagged-address=lan=1.2.3.4:5",
        "weft tls cert create -server -additional-ipaddress=10.0.0.1",
        "weft validate -quiet a b",
        "weft session create -ttl=30s",
        "weft force-leave -prune n",
        "weft keyring -list -local-only -relay-factor=3",
        "weft keyring -install a",
        "weft keyring -use=a",
        "weft members -why",
        "weft join -wan a b",
        "weft version -format=json",
    ] {
        if let Err(error) = parsed(line) {
            panic!("{line}\n{error}");
        }
    }
    for line in [
        "weft",
        "weft nonsense",
        "weft kv",
        "weft kv put",
        "weft agent -nonsense",
        "weft lock p",
        "weft members -format=xml",
        "weft agent extra",
    ] {
        assert!(parsed(line).is_err(), "{line}");
    }
}

#[test]
fn agent_flags_become_settings_in_order() {
    let line = "weft agent -config-dir=1 -config-file 2 -config-dir 3 -retry-join=a -retry-join b -http-port -1 -server=false -dev -encrypt -x";
    let Ok(Verb::Agent(args)) = parsed(line) else {
        panic!("{line}")
    };
    let debug = format!("{args:?}");
    assert!(
        debug.contains(r#"dev: true, paths: ["1", "2", "3"]"#),
        "{debug}"
    );
    for expected in [
        r#"Flag { name: "-retry-join", key: "retry_join", value: "a" }, Flag { name: "-retry-join", key: "retry_join", value: "b" }"#,
        r#"Flag { name: "-http-port", key: "ports.http", value: "-1" }"#,
        r#"Flag { name: "-server", key: "server", value: "false" }"#,
        r#"Flag { name: "-encrypt", key: "encrypt", value: "-x" }"#,
    ] {
        assert!(debug.contains(expected), "{expected}\n{debug}");
    }
    assert!(
        !debug.contains("-bootstrap"),
        "a switch that was not named must not set anything: {debug}"
    );
}

#[test]
fn every_agent_flag_sets_a_known_key() {
    let argv = |extra: &[String]| {
        ["weft", "agent"]
            .iter()
            .map(|s| (*s).to_owned())
            .chain(extra.iter().cloned())
            .collect::<Vec<_>>()
    };
    let agent = command();
    let agent = agent.find_subcommand("agent").unwrap();
    for arg in agent
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|l| {
            !matches!(
                *l,
                "help" | "config-file" | "config-dir" | "config-format" | "hcl" | "dev"
            )
        })
    {
        let Ok(Verb::Agent(args)) = parse(argv(&[format!("-{arg}=1")])) else {
            panic!("{arg}")
        };
        let text = agent::start(args)
            .err()
            .map(|failure| format!("{failure:?}"))
            .unwrap_or_default();
        assert!(!text.contains("WFT2004"), "{arg}: {text}");
    }
}

/// Every command with its path, `weft` left out.
fn each_command(visit: &mut dyn FnMut(&clap::Command, &str)) {
    fn walk(command: &clap::Command, path: &str, visit: &mut dyn FnMut(&clap::Command, &str)) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            visit(sub, path.trim());
            walk(sub, &path, visit);
        }
    }
    walk(&command(), "", visit);
}

fn examples(command: &clap::Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let (_, examples) = help.split_once("Examples:\n").unwrap_or_default();
    examples
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

/// The commands of a line for a shell: their words, without redirections.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut rest = line.chars().peekable();
    let mut quote = None;
    while let Some(c) = rest.next() {
        match c {
            '$' if quote != Some('\'') && rest.peek() == Some(&'(') => {
                let inner: String = rest.by_ref().skip(1).take_while(|c| *c != ')').collect();
                all.extend(simple_commands(&inner));
                word.get_or_insert_default().push_str("substituted");
            }
            c if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            c if quote.is_some() => word.get_or_insert_default().push(c),
            ' ' => words.extend(word.take()),
            '|' | '&' | ';' => {
                words.extend(word.take());
                all.push(std::mem::take(&mut words));
            }
            '<' | '>' => {
                words.extend(word.take());
                while rest.next_if(|c| *c == ' ').is_some() {}
                while rest.next_if(|c| *c != ' ').is_some() {}
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "an open quote in {line}");
    words.extend(word);
    all.push(words);
    all.retain(|words| !words.is_empty());
    all
}

#[test]
fn lines_are_divided_as_a_shell_does() {
    let divided = simple_commands(r#"echo 'a "b"' | weft x "$(weft y -z)" < in > out && weft w"#);
    let expected: [&[&str]; 4] = [
        &["echo", "a \"b\""],
        &["weft", "y", "-z"],
        &["weft", "x", "substituted"],
        &["weft", "w"],
    ];
    assert_eq!(divided, expected);
}

#[test]
fn each_command_has_two_examples_and_all_are_understood() {
    each_command(&mut |command, path| {
        let examples = examples(command);
        assert!(
            examples.len() >= 2,
            "{path} has {} examples",
            examples.len()
        );
        for example in examples {
            let ours = simple_commands(&example).into_iter();
            let ours: Vec<_> = ours.filter(|words| words[0] == "weft").collect();
            assert!(!ours.is_empty(), "{path}: {example}");
            for words in ours {
                if let Err(error) = parse(words) {
                    panic!("{path}: {example}\n{error}");
                }
            }
        }
    });
}

#[test]
fn errors_are_json_when_the_line_is_ours_to_say_so() {
    let wants = |line: &str| {
        let argv = line.split_whitespace().map(str::to_owned).collect();
        wants_json(&argv::normalise(&built(), argv))
    };
    for line in [
        "weft kv get -o json a",
        "weft kv get a -o=json",
        "weft members -format json",
        "weft members --output=json",
        "weft lock -o json p ls",
    ] {
        assert!(wants(line), "{line}");
    }
    for line in [
        "weft kv get a",
        "weft lock p kubectl get pods -o json",
        "weft watch -type=nodes jq -o json",
        "weft kv put -- -o json",
    ] {
        assert!(!wants(line), "{line}");
    }
}

#[test]
fn each_command_speaks_json() {
    let mut without = Vec::new();
    each_command(&mut |command, path| {
        let form = command
            .get_arguments()
            .any(|arg| arg.get_short() == Some('o'));
        if !command.has_subcommands() && !form {
            without.push(path.to_owned());
        }
    });
    assert_eq!(without, ["agent", "completion"]);
}
