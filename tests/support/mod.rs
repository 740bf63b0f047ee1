//! The words our end-to-end tests are told in: a [`World`] of real `weft` processes on loopback.
//!
//! Owns: addresses nobody else uses, data directories, child processes, and the logs shown when a test fails.
//! Never: decides by the clock; a wait has a generous deadline and names what it waited for.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this vocabulary"
)]

pub(crate) mod dns;
pub(crate) mod fake;
mod http;
pub(crate) mod keys;
pub(crate) mod load;
pub(crate) mod netns;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use weft_proto::clock::{Clock, SystemClock};

pub(crate) use http::Api;

/// The binary under test.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// Long enough for a slow machine under load; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Lines of each server's log shown when a test fails.
const LAST_LINES: usize = 60;

/// Whether the long form was asked for (`WEFT_LONG=1`).
pub(crate) fn long_form() -> bool {
    std::env::var_os("WEFT_LONG").is_some_and(|value| value != "0")
}

/// `short`, or `long` in the long form.
pub(crate) fn times(short: u32, long: u32) -> u32 {
    if long_form() { long } else { short }
}

/// Servers that belong together, on addresses of their own.
pub(crate) struct World {
    net: Net,
    dir: tempfile::TempDir,
    expect: usize,
    servers: BTreeMap<usize, Server>,
    /// Further arguments of every server.
    extra: Vec<String>,
    clock: SystemClock,
}

struct Server {
    child: Option<Child>,
    /// Last octet of its address.
    host: usize,
    /// An agent that is no server; its node is named `c` and its number.
    client: bool,
    data_dir: PathBuf,
    /// Arguments of this server alone.
    extra: Vec<String>,
}

impl World {
    /// `count` servers named `s1`, `s2`, …, not started yet.
    pub(crate) fn servers(count: usize) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("weft-world-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a directory for the world");
        let mut world = Self {
            net: Net::reserve(),
            dir,
            expect: count,
            servers: BTreeMap::new(),
            extra: Vec::new(),
            clock: SystemClock::new(),
        };
        for n in 1..=count {
            world.add(n);
        }
        world
    }

    /// Adds an argument to every server's command line.
    pub(crate) fn with(mut self, argument: impl Into<String>) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// Starts every server and waits until each answers reads and is a node that passes, as sessions want it.
    pub(crate) fn start(mut self) -> Self {
        for n in self.names() {
            self.launch(n);
        }
        self.settle();
        for n in self.names() {
            self.wait_passing(n);
        }
        self
    }

    /// Adds agents that are no servers, numbered from 11 and named `c11`, `c12`, …
    pub(crate) fn clients(mut self, count: usize) -> Self {
        for n in 11..11 + count {
            self.add_client(n);
        }
        self
    }

    /// A further agent that is no server, not started.
    pub(crate) fn add_client(&mut self, n: usize) {
        self.add(n);
        self.server(n).client = true;
    }

    /// The name of a node.
    pub(crate) fn node(&self, n: usize) -> String {
        let role = if self.servers[&n].client { "c" } else { "s" };
        format!("{role}{n}")
    }

    /// A further server, not started.
    pub(crate) fn add(&mut self, n: usize) {
        let data_dir = self.dir.path().join(format!("s{n}"));
        self.servers.insert(
            n,
            Server {
                child: None,
                host: n,
                client: false,
                data_dir,
                extra: Vec::new(),
            },
        );
    }

    /// Adds an argument to one server's command line, from its next start.
    pub(crate) fn argument(&mut self, n: usize, argument: impl Into<String>) {
        self.server(n).extra.push(argument.into());
    }

    /// Moves a server to another address, from its next start.
    pub(crate) fn move_to(&mut self, n: usize, host: usize) {
        self.server(n).host = host;
    }

    /// Keeps a server's state elsewhere, from its next start.
    pub(crate) fn keep_data_in(&mut self, n: usize, dir: &Path) {
        dir.clone_into(&mut self.server(n).data_dir);
    }

    pub(crate) fn names(&self) -> Vec<usize> {
        self.servers.keys().copied().collect()
    }

    /// Servers with a process.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.servers
            .iter()
            .filter(|(_, server)| server.child.is_some())
            .map(|(n, _)| *n)
            .collect()
    }

    pub(crate) fn address(&self, n: usize) -> String {
        self.net.host(self.servers[&n].host)
    }

    pub(crate) fn data_dir(&self, n: usize) -> PathBuf {
        self.servers[&n].data_dir.clone()
    }

    /// A path in the world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the server said so far, over all its lives.
    pub(crate) fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.log_path(n)).unwrap_or_default()
    }

    /// The HTTP API of server `n`.
    pub(crate) fn at(&self, n: usize) -> Api {
        Api::new(&format!("{}:8500", self.address(n)))
    }

    /// The command line of server `n`.
    pub(crate) fn command(&self, n: usize) -> Command {
        let server = &self.servers[&n];
        let address = self.address(n);
        let mut command = Command::new(WEFT);
        command.arg("agent").arg(format!("-node={}", self.node(n)));
        if !server.client {
            command.arg("-server");
        }
        command.arg(format!("-data-dir={}", server.data_dir.display()));
        command
            .arg(format!("-bind={address}"))
            .arg(format!("-client={address}"));
        if self.expect > 0 && !server.client {
            command.arg(format!("-bootstrap-expect={}", self.expect));
        }
        command.args(
            self.servers
                .iter()
                .filter(|(other, server)| **other != n && !server.client)
                .map(|(other, _)| format!("-retry-join={}", self.address(*other))),
        );
        command.arg("-hcl=retry_interval = \"1s\"");
        // The whole suite against another log: `WEFT_LOGSTORE=sled cargo test`.
        if let Ok(backend) = std::env::var("WEFT_LOGSTORE") {
            command.arg(format!("-hcl=raft_logstore {{ backend = \"{backend}\" }}"));
        }
        command.args(&self.extra).args(&server.extra);
        command
    }

    /// Starts server `n` without waiting for anything.
    pub(crate) fn launch(&mut self, n: usize) {
        let command = self.command(n);
        self.launch_as(n, command);
    }

    /// Starts server `n` with a command line that was made of [`World::command`].
    pub(crate) fn launch_as(&mut self, n: usize, mut command: Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(n))
            .expect("the server's log");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        let child = command.spawn().expect("weft starts");
        let before = self.server(n).child.replace(child);
        assert!(before.is_none(), "s{n} is running already");
    }

    /// Starts server `n` and waits until it answers a linearizable read.
    pub(crate) fn restart(&mut self, n: usize) {
        self.launch(n);
        self.wait_ready(n);
    }

    /// Runs server `n` to its end, which it must reach by itself, and answers what it said.
    pub(crate) fn run_to_end(&mut self, n: usize) -> (ExitStatus, String) {
        let before = self.log(n).len();
        self.launch(n);
        let status = self.wait_exit(n);
        (status, self.log(n)[before..].to_owned())
    }

    /// Waits until the process of server `n` ends.
    pub(crate) fn wait_exit(&mut self, n: usize) -> ExitStatus {
        let mut child = self.server(n).child.take().expect("a running server");
        let status = self.until(&format!("s{n} to exit"), || {
            child.try_wait().expect("the state of our child")
        });
        let _ = child.wait();
        status
    }

    /// How the process of server `n` ended, once it has; it is none of the running ones then.
    pub(crate) fn ended(&mut self, n: usize) -> Option<ExitStatus> {
        let child = self.server(n).child.as_mut()?;
        let status = child.try_wait().expect("the state of our child")?;
        self.server(n).child = None;
        Some(status)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut child = self.server(n).child.take().expect("a running server");
        child.kill().expect("our child can be killed");
        child.wait().expect("our child can be reaped");
    }

    /// Sends a signal to server `n`.
    pub(crate) fn signal(&self, n: usize, signal: Signal) {
        let child = self.servers[&n].child.as_ref().expect("a running server");
        kill_process(Pid::from_child(child), signal).expect("our child takes signals");
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self, n: usize) {
        self.signal(n, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, n: usize) {
        self.signal(n, Signal::CONT);
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self, n: usize) -> ExitStatus {
        self.signal(n, Signal::TERM);
        self.wait_exit(n)
    }

    /// Waits until every running server answers a linearizable read.
    pub(crate) fn settle(&self) {
        for n in self.running() {
            self.wait_ready(n);
        }
    }

    fn wait_ready(&self, n: usize) {
        let api = self.at(n);
        self.until(&format!("s{n} to answer a linearizable read"), || {
            let reply = api.get("/v1/kv/weft-is-there?consistent").ok()?;
            (reply.status == 404 || reply.status == 200).then_some(())
        });
    }

    pub(crate) fn wait_passing(&self, n: usize) {
        let node = self.node(n);
        let path = format!("/v1/health/node/{node}");
        self.until(&format!("the node {node} to pass"), || {
            let checks = self
                .at(n)
                .get(&path)
                .ok()
                .filter(|reply| reply.status == 200)?
                .json();
            let serf = checks
                .as_array()?
                .iter()
                .find(|check| check["CheckID"] == "serfHealth")?
                .clone();
            (serf["Status"] == "passing").then_some(())
        });
    }

    /// The leader, once a running server that leads says so of itself.
    pub(crate) fn leader(&self) -> usize {
        self.until("a leader", || self.leader_now())
    }

    fn leader_now(&self) -> Option<usize> {
        self.running().into_iter().find(|n| {
            let api = self.at(*n).within(Duration::from_secs(2));
            let said = api
                .get("/v1/status/leader")
                .ok()
                .filter(|reply| reply.status == 200)
                .and_then(|reply| reply.json().as_str().map(str::to_owned));
            said == Some(format!("{}:8300", self.address(*n)))
        })
    }

    /// Some running server that does not lead.
    pub(crate) fn follower(&self) -> usize {
        let leader = self.leader();
        self.running()
            .into_iter()
            .find(|n| *n != leader && !self.servers[n].client)
            .expect("more than one server")
    }

    /// Asks `look` until it answers something, at most [`PATIENCE`] long.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
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

    /// Time since the world began.
    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// A command of the command line, talking to server `n`.
    pub(crate) fn cli(&self, n: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(WEFT);
        command
            .args(arguments)
            .env("CONSUL_HTTP_ADDR", format!("{}:8500", self.address(n)))
            .current_dir(self.dir.path());
        command.output().expect("weft runs")
    }

    fn server(&mut self, n: usize) -> &mut Server {
        self.servers.get_mut(&n).expect("a server of this world")
    }

    fn log_path(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("s{n}.log"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in self.servers.values_mut() {
            if let Some(mut child) = server.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for n in self.names() {
                let log = self.log(n);
                let lines: Vec<_> = log.lines().collect();
                eprintln!("---- s{n}, its last lines");
                for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}

/// What a command printed, both streams.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A /24 of loopback that is ours as long as this lives: tests, and checkouts, run beside each other.
struct Net {
    prefix: String,
    _reserved: TcpListener,
}

impl Net {
    /// Whoever holds port 8299 of the net's last host holds the net.
    fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = std::process::id().wrapping_mul(7);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            assert!(n < 5_000, "no free loopback net");
            let at = first.wrapping_add(n) % (100 * 250);
            let prefix = format!("127.{}.{}", 20 + at / 250, at % 250);
            if let Ok(reserved) = TcpListener::bind(format!("{prefix}.254:8299")) {
                return Self {
                    prefix,
                    _reserved: reserved,
                };
            }
        }
    }

    fn host(&self, host: usize) -> String {
        format!("{}.{host}", self.prefix)
    }
}
