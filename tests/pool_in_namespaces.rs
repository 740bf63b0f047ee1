//! Three servers and five agents, each on a machine of its own: joining by token, losses, partitions, a time without
//! servers, new keys, a new server.
//!
//! `WEFT_LONG=1` keeps the servers away for a whole minute.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use support::dns::{self, A};
use support::netns::{Network, at, enter, inside_namespaces};
use support::{Api, WEFT, keys, said, times};
use weft_proto::clock::{Clock, SystemClock};

const SERVERS: [&str; 3] = ["s1", "s2", "s3"];
const AGENTS: [&str; 5] = ["c11", "c12", "c13", "c14", "c15"];
/// A machine under load does all of this more slowly; who waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const CACHED: &str = "/v1/health/service/web?cached";

#[test]
fn a_pool_of_machines_lives_through_it_all() {
    if !inside_namespaces("a_pool_of_machines_lives_through_it_all") {
        return;
    }
    let mut pool = Pool::new();
    pool.servers_form_a_cluster();
    pool.agents_join_by_token();
    pool.services_are_found_everywhere();
    let writer = Writer::start("c11");
    pool.a_node_is_lost_and_comes_back();
    pool.a_minority_is_cut_off(&writer);
    pool.the_leader_is_cut_off(&writer);
    pool.keys_are_changed_under_traffic(&writer);
    writer.finish(&pool);
    pool.all_servers_are_gone_for_a_while();
    pool.a_server_lost_for_ever_is_replaced();
}

/// A machine with an agent on it, of either role.
struct Machine {
    address: String,
    arguments: Vec<String>,
    data_dir: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

struct Pool {
    network: Network,
    dir: tempfile::TempDir,
    machines: BTreeMap<&'static str, Machine>,
    clock: SystemClock,
}

/// Steps of the story.
impl Pool {
    fn servers_form_a_cluster(&mut self) {
        for server in SERVERS {
            self.launch(server);
        }
        for server in SERVERS {
            self.ready(server);
        }
        say("three servers are a cluster");
    }

    fn agents_join_by_token(&mut self) {
        for agent in AGENTS {
            let body = json!({"Node": agent, "TTL": "1h"}).to_string();
            let made = at("s1", || {
                api().put("/v1/operator/join-token", &body).unwrap().ok()
            });
            let token = made.json()["Token"].as_str().unwrap().to_owned();
            let file = self.dir.path().join(format!("{agent}.token"));
            std::fs::write(&file, token).unwrap();
            let machine = self.machines.get_mut(agent).unwrap();
            machine
                .arguments
                .push(format!("-join-token-file={}", file.display()));
            self.launch(agent);
        }
        for agent in AGENTS {
            self.ready(agent);
            // From now on it is who it is, without the token.
            let machine = self.machines.get_mut(agent).unwrap();
            machine.arguments.pop();
        }
        self.everybody_is_alive();
        say("five agents have joined, one token each");
    }

    fn services_are_found_everywhere(&self) {
        for agent in ["c11", "c12"] {
            at(agent, || {
                let service = r#"{"Name":"web","Port":80}"#;
                let registered = api().put("/v1/agent/service/register", service);
                registered.unwrap().ok();
            });
        }
        for agent in AGENTS {
            self.until(&format!("{agent} to find both instances"), || {
                at(agent, || (found() == (2, 2)).then_some(()))
            });
        }
    }

    fn a_node_is_lost_and_comes_back(&mut self) {
        self.kill("c15");
        self.all_say("c15", 4);
        self.until("its check to be critical", || {
            (serf_health("c15")? == "critical").then_some(())
        });
        self.launch("c15");
        self.network.link_down("c14");
        self.all_say("c14", 4);
        assert_eq!(at("c14", found), (2, 2), "it answers from what it knows");
        self.network.link_up("c14");
        self.everybody_is_alive();
        self.until("both checks to pass", || {
            let passing = |node| serf_health(node).as_deref() == Some("passing");
            (passing("c14") && passing("c15")).then_some(())
        });
        say("a machine was lost, and a cable; both are back");
    }

    fn a_minority_is_cut_off(&self, writer: &Writer) {
        let leader = self.leader(&SERVERS);
        let alone = SERVERS.into_iter().find(|s| *s != leader).unwrap();
        self.network.cut_off(alone);
        writer.goes_on(self, 20);
        let refused = self.refuses(alone);
        assert_eq!(
            stale(alone, "before"),
            Some("there".into()),
            "reads that may be old go on"
        );
        self.network.heal(alone);
        self.ready(alone);
        self.everybody_is_alive();
        self.is_nowhere(&refused);
        say("a server was cut off and is back");
    }

    fn the_leader_is_cut_off(&self, writer: &Writer) {
        let old = self.leader(&SERVERS);
        self.network.cut_off(old);
        let others: Vec<_> = SERVERS.into_iter().filter(|s| *s != old).collect();
        self.leader(&others);
        writer.goes_on(self, 20);
        let refused = self.refuses(old);
        self.network.heal(old);
        self.ready(old);
        self.everybody_is_alive();
        self.is_nowhere(&refused);
        say("the leader was cut off and is back");
    }

    fn keys_are_changed_under_traffic(&mut self, writer: &Writer) {
        let old = keys::gossip_key(&self.dir.path().join("keys/weft.hcl"));
        let new = said(&self.cli("s1", &["keygen"])).trim().to_owned();
        for step in [
            format!("-install={new}"),
            format!("-use={new}"),
            format!("-remove={old}"),
        ] {
            self.until(&format!("keyring {step}"), || {
                let done = self.cli("s2", &["keyring", &step]);
                done.status.success().then_some(())
            });
            writer.goes_on(self, 5);
            self.everybody_is_alive();
        }
        let listed = said(&self.cli("c13", &["keyring", "-list"]));
        assert!(listed.contains(&format!("{new} [8/8]")), "{listed}");
        assert!(!listed.contains(&old), "{listed}");
        // Who comes later is told the new one.
        let machine = self.machines.get_mut("s4").unwrap();
        machine.arguments.push(format!("-encrypt={new}"));
        say("the pool has another key");
    }

    fn all_servers_are_gone_for_a_while(&mut self) {
        let mut rises = Vec::new();
        // Two that stand for election at once may split their votes: chance, and rare.
        for _ in 0..3 {
            // Whoever was started since asks for the first time: what nobody asked for is not kept.
            self.views_are_served();
            let before = self.term();
            self.without_servers();
            let elected = self.term();
            self.everybody_is_alive();
            self.views_are_served();
            let after = self.term();
            rises.push((elected - before, after - elected));
            if after <= before + 1 {
                break;
            }
        }
        let (_, last) = (rises.len(), *rises.last().unwrap());
        assert!(last.0 + last.1 <= 1, "elections beyond one: {rises:?}");
        say(&format!(
            "without servers, and back: terms rose by {rises:?}"
        ));
    }

    fn without_servers(&mut self) {
        let readers = ["c11", "c12"].map(Reader::start);
        for server in SERVERS {
            self.kill(server);
        }
        for agent in AGENTS {
            self.until(&format!("{agent} to notice"), || {
                at(agent, || {
                    metric("weft_autonomy_seconds").filter(|s| *s > 1.0)
                })
            });
        }
        for (agent, gently) in [("c13", false), ("c14", true)] {
            if gently {
                self.terminate(agent);
            } else {
                self.kill(agent);
            }
            self.launch(agent);
            self.until(&format!("{agent} to be back"), || {
                let about = at(agent, || api().get("/v1/agent/self"));
                about.ok().filter(|reply| reply.status == 200)
            });
            for _ in 0..50 {
                assert_eq!(
                    at(agent, found),
                    (2, 2),
                    "{agent} without servers, after a restart"
                );
            }
        }
        std::thread::sleep(Duration::from_secs(u64::from(times(1, 60))));
        for reader in readers {
            reader.finish();
        }
        let stale = at("c14", || api().get(CACHED).unwrap().ok());
        assert_eq!(stale.header("X-Consul-Knownleader"), Some("false"));
        for server in SERVERS {
            self.launch(server);
        }
        for server in SERVERS {
            self.ready(server);
        }
    }

    fn views_are_served(&self) {
        for agent in AGENTS {
            self.until(&format!("{agent} to be served again"), || {
                at(agent, || {
                    let alone = metric("weft_autonomy_seconds")?;
                    (alone == 0.0 && found() == (2, 2)).then_some(())
                })
            });
        }
    }

    fn a_server_lost_for_ever_is_replaced(&mut self) {
        let leader = self.leader(&SERVERS);
        let lost = SERVERS.into_iter().find(|s| *s != leader).unwrap();
        self.kill(lost);
        std::fs::remove_dir_all(&self.machines[lost].data_dir).unwrap();
        self.launch("s4");
        let mut members: BTreeSet<&str> = SERVERS.into_iter().filter(|s| *s != lost).collect();
        members.insert("s4");
        let mut seen = Vec::new();
        self.until("the new server in the place of the lost one", || {
            let voters = voters(leader)?;
            if seen.last() != Some(&voters) {
                seen.push(voters.clone());
            }
            (voters.iter().map(String::as_str).collect::<BTreeSet<_>>() == members).then_some(())
        });
        // First one more, then one less: a third failure was never nearer than before.
        for voters in &seen {
            assert!(voters.len() >= 3, "{seen:?}");
        }
        self.until("the servers to bear another failure", || {
            let health = at(leader, || api().get("/v1/operator/autopilot/health").ok())?;
            (health.status == 200 && health.json()["FailureTolerance"] == 1).then_some(())
        });
        self.ready("s4");
        let next = members
            .iter()
            .find(|s| **s != leader && **s != "s4")
            .unwrap();
        self.kill(next);
        self.until("a write with the new server's vote", || {
            at("c11", || {
                let put = api().put("/v1/kv/last", "word").ok()?;
                (put.status == 200).then_some(())
            })
        });
        assert_eq!(stale("s4", "before"), Some("there".into()));
        say("a server was replaced");
    }
}

/// What the steps are made of.
impl Pool {
    fn new() -> Self {
        let network = Network::new();
        let dir = tempfile::Builder::new()
            .prefix("weft-pool-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let mut pool = Self {
            network,
            dir,
            machines: BTreeMap::new(),
            clock: SystemClock::new(),
        };
        let names = SERVERS.into_iter().chain(["s4"]).chain(AGENTS);
        for name in names {
            let host: usize = name[1..].parse().unwrap();
            let address = pool.network.machine(name, host);
            let machine = Machine {
                arguments: vec![format!("-bind={address}")],
                data_dir: pool.dir.path().join(format!("{name}.data")),
                log: pool.dir.path().join(format!("{name}.log")),
                child: None,
                address,
            };
            pool.machines.insert(name, machine);
        }
        pool.init();
        pool
    }

    /// `weft init`, and what it made for each server installed there.
    fn init(&mut self) {
        let keys = self.dir.path().join("keys");
        let all: Vec<_> = SERVERS.into_iter().chain(["s4"]).collect();
        let seats: Vec<_> = all
            .iter()
            .map(|name| (*name, self.machines[name].address.as_str()))
            .collect();
        keys::init(&keys, &seats);
        for (n, name) in (1..).zip(all) {
            let dir = match n {
                1 => keys.clone(),
                _ => keys::installed(&keys, n, &self.dir.path().join(format!("{name}.etc"))),
            };
            let machine = self.machines.get_mut(name).unwrap();
            machine.arguments.extend([
                format!("-config-file={}", dir.join("weft.hcl").display()),
                "-bootstrap-expect=3".into(),
                "-hcl=autopilot { server_stabilization_time = \"2s\" }".into(),
            ]);
        }
    }

    fn launch(&mut self, name: &'static str) {
        let machine = self.machines.get_mut(name).unwrap();
        let log = File::options().create(true).append(true).open(&machine.log);
        let log = log.unwrap();
        let mut command = Command::new(WEFT);
        command
            .arg("agent")
            .arg(format!("-data-dir={}", machine.data_dir.display()))
            .args(&machine.arguments)
            .arg("-hcl=retry_interval = \"1s\"")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if name.starts_with('s') {
            command.arg(format!("-node={name}"));
        }
        let child = at(name, || command.spawn().unwrap());
        assert!(machine.child.replace(child).is_none(), "{name} runs");
    }

    fn kill(&mut self, name: &str) {
        let mut child = self.machines.get_mut(name).unwrap().child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn terminate(&mut self, name: &str) {
        let mut child = self.machines.get_mut(name).unwrap().child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    fn ready(&self, name: &str) {
        self.until(&format!("{name} to answer a linearizable read"), || {
            let reply = at(name, || api().get("/v1/kv/weft-is-there?consistent")).ok()?;
            (reply.status == 404 || reply.status == 200).then_some(())
        });
    }

    fn running(&self) -> Vec<&'static str> {
        let running = self.machines.iter().filter(|(_, m)| m.child.is_some());
        running.map(|(name, _)| *name).collect()
    }

    /// Every machine says of every machine that it lives.
    fn everybody_is_alive(&self) {
        for of in self.running() {
            self.all_say(of, 1);
        }
    }

    /// Every other machine says so of this one; 1: alive, 4: failed.
    fn all_say(&self, of: &str, status: u64) {
        for name in self.running() {
            if name == of && status != 1 {
                continue;
            }
            self.until(&format!("{name} to say {status} of {of}"), || {
                (at(name, || status_of(of)) == Some(status)).then_some(())
            });
        }
    }

    /// The one of `among` that leads, as it says itself and can confirm.
    fn leader(&self, among: &[&'static str]) -> &'static str {
        self.until("a leader", || {
            among.iter().copied().find(|name| {
                let address = format!("{}:8300", self.machines[name].address);
                let api = api().within(Duration::from_secs(3));
                at(name, || {
                    let said = api.get("/v1/status/leader").ok()?;
                    let leads = said.status == 200 && said.json() == address.as_str();
                    let sure = leads && api.get("/v1/kv/x?consistent").ok()?.status < 500;
                    sure.then_some(())
                })
                .is_some()
            })
        })
    }

    fn term(&self) -> u64 {
        let leader = self.leader(&SERVERS);
        at(leader, || {
            let about = api().get("/v1/agent/self").unwrap().ok().json();
            about["Stats"]["raft"]["term"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
    }

    /// A server without a quorum refuses a write, and says why; the key that it refused. What it had passed on to a
    /// leader before it noticed has an unknown outcome, and says so.
    fn refuses(&self, name: &str) -> String {
        let mut tries = 0;
        self.until(&format!("{name} to refuse"), || {
            tries += 1;
            let key = format!("refused/{name}/{tries}");
            let path = format!("/v1/kv/{key}");
            let refused = at(name, || api().put(&path, "lost").ok())?;
            assert_eq!(refused.status, 500, "{}", refused.text());
            let reason = refused.header("X-Weft-Reason").unwrap_or_default();
            assert!(
                ["raft.no_leader", "raft.outcome_unknown"].contains(&reason),
                "{reason}: {}",
                refused.text()
            );
            (reason == "raft.no_leader").then_some(key)
        })
    }

    /// What was refused was not done.
    fn is_nowhere(&self, key: &str) {
        let path = format!("/v1/kv/{key}?consistent");
        let status = self.until("an answer about a key", || {
            let reply = at(self.leader(&SERVERS), || api().get(&path)).ok()?;
            (reply.status < 500).then_some(reply.status)
        });
        assert_eq!(status, 404, "{key} was refused");
    }

    fn cli(&self, name: &str, arguments: &[&str]) -> Output {
        let dir = self.dir.path();
        at(name, || {
            let mut command = Command::new(WEFT);
            command.args(arguments).env_clear().current_dir(dir);
            command.output().unwrap()
        })
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = self.clock.monotonic();
        loop {
            if let Some(found) = look() {
                return found;
            }
            let waited = self.clock.monotonic().saturating_sub(begun);
            assert!(waited < PATIENCE, "waited {waited:?} for {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for machine in self.machines.values_mut() {
            if let Some(mut child) = machine.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for (name, machine) in &self.machines {
                let log = std::fs::read_to_string(&machine.log).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                eprintln!("---- {name}, its last lines");
                for line in &lines[lines.len().saturating_sub(40)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}

fn say(what: &str) {
    println!("-- {what}");
}

/// The agent of the machine that asks.
fn api() -> Api {
    Api::new("127.0.0.1:8500")
}

/// Instances of `web` by DNS and by a cached read, here.
fn found() -> (usize, usize) {
    let names = dns::udp("127.0.0.1", "web.service.consul.", A, None);
    let rows = api().get(CACHED).ok().filter(|reply| reply.status == 200);
    let rows = rows.map_or(0, |reply| reply.json().as_array().unwrap().len());
    (
        if names.rcode == 0 {
            names.answers.len()
        } else {
            0
        },
        rows,
    )
}

fn status_of(name: &str) -> Option<u64> {
    let members = api().get("/v1/agent/members").ok()?.json();
    let members = members.as_array()?;
    let member = members.iter().find(|m| m["Name"] == name)?;
    member["Status"].as_u64()
}

fn serf_health(node: &str) -> Option<String> {
    let checks: Value = at("c11", || api().get(&format!("/v1/health/node/{node}")))
        .ok()
        .filter(|reply| reply.status == 200)?
        .json();
    let checks = checks.as_array()?;
    let serf = checks
        .iter()
        .find(|check| check["CheckID"] == "serfHealth")?;
    Some(serf["Status"].as_str()?.to_owned())
}

fn stale(server: &str, key: &str) -> Option<String> {
    at(server, || api().kv_get(key, "stale"))
}

fn voters(through: &str) -> Option<Vec<String>> {
    let reply = at(through, || api().get("/v1/operator/raft/configuration"));
    let configuration = reply.ok().filter(|reply| reply.status == 200)?.json();
    let servers = configuration["Servers"].as_array()?.iter();
    let voters = servers.filter(|server| server["Voter"] == true);
    let mut names: Vec<_> = voters
        .filter_map(|server| server["Node"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Some(names)
}

fn metric(name: &str) -> Option<f64> {
    let text = api()
        .get("/v1/agent/metrics?format=prometheus")
        .ok()?
        .text();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Writes keys at an agent all the time, and remembers which were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Vec<u64>>,
}

impl Writer {
    fn start(name: &'static str) -> Self {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<AtomicU64>::default(),
        );
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            enter(name);
            api().kv_put("before", "there");
            let mut done = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let reply = api().put(&format!("/v1/kv/w/{n}"), n.to_string());
                if reply.is_ok_and(|reply| reply.status == 200 && reply.text() == "true") {
                    done.push(n);
                    count.fetch_add(1, Ordering::SeqCst);
                }
                // Traffic, not load.
                std::thread::sleep(Duration::from_millis(10));
            }
            done
        });
        Self {
            stop,
            acknowledged,
            thread,
        }
    }

    /// Waits until `more` writes are acknowledged from now on.
    fn goes_on(&self, pool: &Pool, more: u64) {
        let now = self.acknowledged.load(Ordering::SeqCst);
        pool.until("writes to go on", || {
            (self.acknowledged.load(Ordering::SeqCst) >= now + more).then_some(())
        });
    }

    /// Everything acknowledged is there.
    fn finish(self, pool: &Pool) {
        self.stop.store(true, Ordering::SeqCst);
        let acknowledged = self.thread.join().unwrap();
        let keys = pool.until("the keys", || {
            let reply = at("s1", || api().get("/v1/kv/w/?keys&consistent")).ok()?;
            (reply.status == 200).then(|| reply.json())
        });
        let keys: BTreeSet<_> = keys
            .as_array()
            .unwrap()
            .iter()
            .map(|k| k.as_str().unwrap())
            .collect();
        for n in &acknowledged {
            assert!(
                keys.contains(format!("w/{n}").as_str()),
                "{n} was acknowledged and is gone"
            );
        }
        say(&format!(
            "{} writes acknowledged, none lost",
            acknowledged.len()
        ));
    }
}

/// Asks an agent all the time by DNS and HTTP; every answer must be whole.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

impl Reader {
    fn start(name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            enter(name);
            let (mut asked, mut wrong) = (0, Vec::new());
            while !stopped.load(Ordering::SeqCst) {
                let answer = found();
                asked += 1;
                if answer != (2, 2) {
                    wrong.push(format!("{name}: {answer:?} in round {asked}"));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (asked, wrong)
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        let (asked, wrong) = self.thread.join().unwrap();
        assert!(
            wrong.is_empty() && asked > 0,
            "of {asked} rounds: {wrong:?}"
        );
        say(&format!(
            "{asked} rounds of DNS and cached reads without servers, all answered"
        ));
    }
}
