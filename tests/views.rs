//! What an agent without the server role answers by itself: from views, with and without servers.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use support::World;
use support::dns::{self, A, PTR, SRV};

fn register(world: &World, n: usize, node: &str, id: &str, tags: &[&str]) {
    let body = json!({
        "Node": node, "Address": "10.1.0.7", "SkipNodeUpdate": false,
        "Service": {"ID": id, "Service": "web", "Tags": tags, "Port": 8080, "Address": "10.2.0.1"},
        "Checks": [{"CheckID": format!("c-{id}"), "Name": "c", "Status": "passing", "ServiceID": id}],
    });
    world
        .at(n)
        .put("/v1/catalog/register", body.to_string())
        .unwrap()
        .ok();
}

fn metric(world: &World, n: usize, name: &str) -> Option<f64> {
    let text = world.at(n).get("/v1/agent/metrics?format=prometheus");
    let text = text.ok()?.text();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn stop_servers(world: &mut World, servers: &[usize]) {
    for n in servers {
        world.stop(*n);
    }
}

const CACHED: [&str; 8] = [
    "/v1/health/service/web?cached",
    "/v1/health/service/web?cached&passing&tag=v1",
    "/v1/health/service/web?cached&near=_agent&filter=Service.Port==8080",
    "/v1/catalog/service/web?cached",
    "/v1/catalog/services?cached",
    "/v1/health/checks/web?cached",
    "/v1/health/connect/web?cached",
    "/v1/health/service/no-such-service?cached",
];

fn bodies(world: &World, n: usize) -> Vec<String> {
    let answers = CACHED.iter().map(|path| {
        let reply = world.at(n).get(path).unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.text()
    });
    answers.collect()
}

#[test]
fn a_view_answers_like_a_server_and_follows_it() {
    let world = World::servers(1).clients(1).start();
    register(&world, 1, "n1", "w1", &["v1"]);
    let agent = world.at(11);
    let path = "/v1/health/service/web?cached";
    let first = agent.get(path).unwrap().ok();
    assert_eq!(
        first.header("X-Cache"),
        Some("MISS"),
        "asked for the first time"
    );
    for path in CACHED {
        // The first answer may be a miss; from then on the view has it.
        agent.get(path).unwrap().ok();
        let here = agent.get(path).unwrap().ok();
        let there = world.at(1).get(path).unwrap().ok();
        assert_eq!(here.text(), there.text(), "{path}");
        assert_eq!(here.header("X-Cache"), Some("HIT"), "{path}");
        if !path.contains("no-such") {
            assert_eq!(here.index(), there.index(), "{path}");
        }
        assert_eq!(here.header("X-Consul-Knownleader"), Some("true"));
    }
    // What is kept can be seen, and looking begins nothing.
    let listed = world.cli(11, &["views", "-output=json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let web =
        json!({"Kind": "service", "Of": "", "Name": "web", "State": "current", "Refused": ""});
    let views = listed.as_array().unwrap();
    let is_web = |view: &&serde_json::Value| {
        web.as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| view[key] == *value)
    };
    let shown = views.iter().find(is_web).expect("the view of web");
    assert_eq!(shown["Index"], agent.get(path).unwrap().index(), "{shown}");
    assert!(shown["Bytes"].as_u64().unwrap() > 0, "{shown}");
    assert!(!shown["Age"].as_str().unwrap().is_empty(), "{shown}");
    assert_eq!(
        world
            .at(11)
            .get("/v1/agent/views")
            .unwrap()
            .json()
            .as_array()
            .unwrap()
            .len(),
        views.len()
    );
    let lines = String::from_utf8(world.cli(11, &["views"]).stdout).unwrap();
    assert!(
        lines
            .lines()
            .any(|line| line.starts_with("service ") && line.contains(" web ")),
        "{lines}"
    );
    assert_eq!(world.at(1).get("/v1/agent/views").unwrap().text(), "[]");
    // A blocking query on the view hears of a change.
    let index = agent.get(path).unwrap().index();
    let waiting = std::thread::spawn({
        let agent = world.at(11);
        move || {
            let path = format!("/v1/health/service/web?cached&index={index}&wait=60s");
            agent.get(&path).unwrap().ok()
        }
    });
    register(&world, 1, "n2", "w2", &["v2"]);
    let woken = waiting.join().unwrap();
    assert!(woken.index() > index && woken.text().contains("\"w2\""));
    // What was written is in an answer that must be as of now.
    for round in 0..20 {
        register(&world, 1, "n3", "w3", &[&format!("r{round}")]);
        let path = "/v1/catalog/service/web?cached&tag=";
        let path = format!("{path}r{round}");
        let fresh = agent
            .get_with(&path, "Cache-Control: must-revalidate")
            .unwrap()
            .ok();
        assert!(fresh.text().contains("\"w3\""), "round {round}");
        assert_eq!(fresh.header("X-Cache"), Some("MISS"));
    }
    for name in [
        "web.service.consul.",
        "v1.web.service.consul.",
        "n1.node.consul.",
    ] {
        let answer = dns::udp(&world.address(11), name, A, None);
        assert_eq!(
            (answer.rcode, answer.answers.is_empty()),
            (0, false),
            "{name}"
        );
    }
    assert_eq!(
        dns::udp(&world.address(11), "nope.service.consul.", A, None).rcode,
        3
    );
    let names = dns::udp(&world.address(11), "7.0.1.10.in-addr.arpa.", PTR, None);
    assert!(
        names
            .answers
            .iter()
            .any(|name| name.contains("n1.node.dc1.consul.")),
        "{names:?}"
    );
    let there = dns::udp(&world.address(1), "web.service.consul.", SRV, Some(4096));
    let here = dns::udp(&world.address(11), "web.service.consul.", SRV, Some(4096));
    assert_eq!(
        (here.answers, here.additionals),
        (there.answers, there.additionals)
    );
}

#[test]
fn nothing_is_denied_that_is_not_known() {
    let mut world = World::servers(1).clients(1).start();
    register(&world, 1, "n1", "w1", &["v1"]);
    world
        .at(11)
        .get("/v1/health/service/web?cached")
        .unwrap()
        .ok();
    stop_servers(&mut world, &[1]);
    // Never asked for before: unknown is an error, not an empty answer.
    let unknown = world.at(11).get("/v1/health/service/other?cached").unwrap();
    assert_eq!(unknown.status, 503, "{}", unknown.text());
    assert!(
        unknown.text().contains("views.unknown"),
        "{}",
        unknown.text()
    );
    let answer = dns::udp(&world.address(11), "other.service.consul.", A, None);
    assert_eq!(answer.rcode, 2, "SERVFAIL");
    // What is known goes on; who wants it fresh is told that it is not.
    world
        .at(11)
        .get("/v1/health/service/web?cached")
        .unwrap()
        .ok();
    std::thread::sleep(Duration::from_secs(2));
    let ask = |control: &str| {
        let path = "/v1/health/service/web?cached";
        let api = world.at(11);
        api.get_with(path, &format!("Cache-Control: {control}"))
            .unwrap()
    };
    assert_eq!(ask("max-age=0").status, 500);
    assert_eq!(
        ask("max-age=0, stale-if-error=600").ok().header("X-Cache"),
        Some("HIT")
    );
    assert_eq!(
        ask("max-age=600").ok().header("X-Consul-Knownleader"),
        Some("false")
    );
}

#[test]
fn without_servers_answers_go_on_across_a_restart_and_catch_up() {
    let mut world = World::servers(3).clients(2).start();
    register(&world, 1, "n1", "w1", &["v1"]);
    register(&world, 1, "n2", "w2", &["v2"]);
    for agent in [11, 12] {
        bodies(&world, agent);
        world.until("the names to be known", || {
            let address = world.address(agent);
            let found = |name: &str| !dns::udp(&address, name, A, None).answers.is_empty();
            (found("web.service.consul.") && found("n1.node.consul.")).then_some(())
        });
    }
    world.until("both agents to say the same", || {
        (bodies(&world, 11)[0] == bodies(&world, 12)[0]).then_some(())
    });
    let before = bodies(&world, 11);
    // A little later all is on disk: also for an agent that is killed.
    std::thread::sleep(Duration::from_secs(3));

    // Questions all the while, over the loss, the time without servers, and their return.
    let (over, asked, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (api, address) = (world.at(12), world.address(12));
            while !over.load(Ordering::SeqCst) {
                let answer = dns::udp(&address, "web.service.consul.", A, None);
                let read = api.get("/v1/health/service/web?cached");
                let good = answer.rcode == 0
                    && answer.answers.len() == 1
                    && read.is_ok_and(|read| read.status == 200);
                asked.fetch_add(2, Ordering::SeqCst);
                failed.fetch_add(u64::from(!good), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        for n in [1, 2, 3] {
            world.signal(n, rustix::process::Signal::KILL);
        }
        world.until("the loss to be noticed", || {
            metric(&world, 11, "weft_autonomy_seconds").filter(|seconds| *seconds > 1.0)
        });
        std::thread::sleep(Duration::from_secs(u64::from(support::times(3, 60))));
        over.store(true, Ordering::SeqCst);
    });
    for n in [1, 2, 3] {
        world.wait_exit(n);
    }
    assert_eq!(bodies(&world, 11), before);
    let reply = world.at(11).get(CACHED[0]).unwrap().ok();
    assert_eq!(reply.header("X-Consul-Knownleader"), Some("false"));
    assert!(reply.header("Age").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(reply.header("X-Cache"), Some("HIT"));
    assert!(metric(&world, 11, "weft_view_age_seconds").unwrap() > 1.0);
    assert_eq!(
        world.log(11).matches("views.no_server").count(),
        1,
        "said once"
    );

    // One is stopped in good order, the other killed: both answer all as before, still alone.
    world.stop(11);
    world.kill(12);
    for agent in [11, 12] {
        world.launch(agent);
        world.until("the agent to be back", || {
            world
                .at(agent)
                .get("/v1/agent/self")
                .ok()
                .filter(|reply| reply.status == 200)
        });
        assert_eq!(
            bodies(&world, agent),
            before,
            "agent {agent} after a restart"
        );
        for name in ["web.service.consul.", "n1.node.consul."] {
            let answer = dns::udp(&world.address(agent), name, A, None);
            assert_eq!((answer.rcode, answer.answers.len()), (0, 1), "{name}");
        }
        let missing = dns::udp(
            &world.address(agent),
            "no-such-service.service.consul.",
            A,
            None,
        );
        assert_eq!(missing.rcode, 3, "known not to exist");
        let age = metric(&world, agent, "weft_view_age_seconds").unwrap();
        assert!(
            age > 3.0,
            "agent {agent}: an age of {age} s forgets the time before"
        );
    }
    assert_eq!(failed.load(Ordering::SeqCst), 0, "of {asked:?}");
    assert!(asked.load(Ordering::SeqCst) > 100);

    for n in [1, 2, 3] {
        world.launch(n);
    }
    world.settle();
    register(&world, 1, "n3", "w3", &["v3"]);
    for agent in [11, 12] {
        world.until("the view to catch up", || {
            bodies(&world, agent)[0].contains("\"w3\"").then_some(())
        });
        assert_eq!(metric(&world, agent, "weft_autonomy_seconds"), Some(0.0));
        assert!(
            world
                .log(agent)
                .contains("a server serves this agent's views again")
        );
    }
}
