//! One side of the comparison: a server of our own on its own loopback address, in its own temporary folder; or an
//! agent of it that is no server, and is asked in its place.
//!
//! Owns: the process (killed by its handle when the side is dropped) and how it is started.
//! Never: touches a process it did not start, or a port that is in use.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::http;
use crate::normal::Names;
use crate::stopwatch::Stopwatch;

const READY_LIMIT: Duration = Duration::from_secs(30);
/// The name of the only node of each side.
pub(crate) const NODE: &str = "s1";
/// The server behind it, when that is an agent.
const SERVER_NODE: &str = "s0";
/// HTTP, DNS, RPC and gossip as every Consul user knows them.
const PORTS: [u16; 5] = [8500, 8600, 8300, 8301, 8302];

/// What to start, and where.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// `consul` or `weft`, for reports.
    pub(crate) label: &'static str,
    pub(crate) binary: PathBuf,
    pub(crate) address: IpAddr,
    /// The version the binary prints, without `v`.
    pub(crate) version: String,
    /// Ask an agent that is no server, with a server behind it.
    pub(crate) through_client: bool,
}

impl Recipe {
    /// Reads the version out of `BINARY version`.
    pub(crate) fn new(label: &'static str, binary: &Path, address: IpAddr) -> Result<Self> {
        let binary = binary
            .canonicalize()
            .with_context(|| format!("{label}: {} is not there", binary.display()))?;
        let output = Command::new(&binary)
            .arg("version")
            .output()
            .with_context(|| format!("{label}: run {} version", binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split_whitespace()
            .find_map(version_in)
            .with_context(|| format!("{label}: no version in `{text}`"))?;
        Ok(Self {
            label,
            binary,
            address,
            version,
            through_client: false,
        })
    }
}

impl Recipe {
    /// The same on an address so many further.
    pub(crate) fn moved(&self, by: u8) -> Self {
        Self {
            address: further(self.address, u32::from(by)),
            ..self.clone()
        }
    }

    /// Where the server behind an agent listens: in the next network of 256.
    fn server_address(&self) -> IpAddr {
        further(self.address, 256)
    }
}

fn further(address: IpAddr, by: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().wrapping_add(by))),
        IpAddr::V6(v6) => IpAddr::V6(v6),
    }
}

/// `v1.8.7` or `0.1.0,` → the bare number.
fn version_in(word: &str) -> Option<String> {
    let bare = word
        .trim_start_matches(['v', '('])
        .trim_end_matches([',', ')']);
    let numbers = bare
        .split(['-', '+'])
        .next()?
        .split('.')
        .map(|n| n.parse::<u32>().ok())
        .collect::<Option<Vec<_>>>()?;
    (numbers.len() == 3).then(|| bare.to_owned())
}

/// A running server and the names its answers use.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) recipe: Recipe,
    pub(crate) names: Names,
    dir: TempDir,
    child: Option<Child>,
    /// The server behind an agent that is none. It is never restarted.
    server: Option<Child>,
}

impl Side {
    /// Starts a server with an empty data directory and waits until it is ready.
    pub(crate) fn start(recipe: &Recipe, config: &[String]) -> Result<Self> {
        must_be_free(recipe, recipe.address)?;
        if recipe.through_client {
            must_be_free(recipe, recipe.server_address())?;
        }
        let dir = tempfile::Builder::new()
            .prefix("weft-differential-")
            .tempdir()?;
        let base = r#"{"performance":{"raft_multiplier":1},"limits":{"http_max_conns_per_client":10000},"disable_update_check":true}"#;
        let texts: Vec<String> = std::iter::once(base.to_owned())
            .chain(config.iter().cloned())
            .collect();
        write_config(&dir.path().join("config"), &texts)?;
        if recipe.through_client {
            let texts: Result<Vec<String>> = texts.iter().map(|text| of_server(text)).collect();
            write_config(&dir.path().join("server-config"), &texts?)?;
        }
        let mut names = Names::default();
        names.through_client = recipe.through_client;
        let address = recipe.address.to_string();
        names.add(&address, "addr");
        names.add(&hex_of(recipe.address), "hexaddr");
        names.add(
            &address.split('.').rev().collect::<Vec<_>>().join("."),
            "revaddr",
        );
        names.add(&recipe.version, "version");
        let mut side = Self {
            recipe: recipe.clone(),
            names,
            dir,
            child: None,
            server: None,
        };
        if recipe.through_client {
            side.launch_server()?;
        }
        side.launch()?;
        Ok(side)
    }

    fn launch(&mut self) -> Result<()> {
        let role = match self.recipe.through_client {
            true => vec![format!("-retry-join={}", self.recipe.server_address())],
            false => server_role(),
        };
        self.child = Some(self.spawn(NODE, self.recipe.address, "", &role)?);
        self.wait_ready()
    }

    /// Starts the server behind the agent, and waits until it leads.
    fn launch_server(&mut self) -> Result<()> {
        let address = self.recipe.server_address();
        self.names.add(&address.to_string(), "serveraddr");
        self.server = Some(self.spawn(SERVER_NODE, address, "server-", &server_role())?);
        let waited = Stopwatch::start();
        let leads = |body: &str| body.contains("serfHealth");
        while waited.elapsed() < READY_LIMIT {
            let answer = self.ask(SocketAddr::new(address, 8500), "/v1/health/service/consul");
            if answer.is_some_and(|body| leads(&body)) {
                return self.name_server(SocketAddr::new(address, 8500));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("{}: no server within 30 s", self.recipe.label)
    }

    fn name_server(&mut self, at: SocketAddr) -> Result<()> {
        let about = self
            .ask(at, "/v1/agent/self")
            .context("no /v1/agent/self")?;
        let about: serde_json::Value = serde_json::from_str(&about)?;
        let id = about["Config"]["NodeID"].as_str().unwrap_or_default();
        // Consul takes it for the Raft id too, weft does not.
        self.names.hide(id);
        self.names.add(id.get(..8).unwrap_or_default(), "serverid8");
        Ok(())
    }

    /// `prefix`: of its folders.
    fn spawn(&self, node: &str, address: IpAddr, prefix: &str, role: &[String]) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let dir = |name: &str| self.dir.path().join(format!("{prefix}{name}"));
        Command::new(&self.recipe.binary)
            .arg("agent")
            .args(role)
            .args([
                format!("-data-dir={}", dir("data").display()),
                format!("-config-dir={}", dir("config").display()),
                format!("-node={node}"),
                format!("-bind={address}"),
                format!("-client={address}"),
            ])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.recipe.binary.display()))
    }

    /// Ready: a leader is known, the node is healthy, the servers' own service is in the catalog and the agent has
    /// brought its node there (only an agent knows the tagged addresses). Then the node's id has a name.
    fn wait_ready(&mut self) -> Result<()> {
        let waited = Stopwatch::start();
        while waited.elapsed() < READY_LIMIT {
            let synced = format!("/v1/catalog/node/{NODE}");
            let alive = format!("/v1/health/node/{NODE}");
            if self.says("/v1/health/service/consul", "serfHealth")
                && self.says(&synced, "\"lan\"")
                && self.says(&alive, "serfHealth")
            {
                return self.name_node();
            }
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten())
            {
                bail!(
                    "{} ended at start ({status}):\n{}",
                    self.recipe.label,
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!(
            "{} was not ready within 30 s:\n{}",
            self.recipe.label,
            self.log_tail()
        )
    }

    fn name_node(&mut self) -> Result<()> {
        // After a restart the stories' own indexes lie below: they keep their order.
        if self.names.start_index == 0 {
            self.names.start_index = self.settled_index()?;
        }
        let answer = http::send(
            self.http(),
            "GET",
            "/v1/agent/self",
            &[],
            None,
            Duration::from_secs(2),
        )?;
        let body: serde_json::Value = serde_json::from_slice(&answer.body)?;
        let id = body["Config"]["NodeID"]
            .as_str()
            .context("/v1/agent/self has no Config.NodeID")?;
        self.names.add(id, "nodeid");
        // Commands print the first eight digits.
        self.names
            .add(id.get(..8).context("a node id is a UUID")?, "nodeid8");
        Ok(())
    }

    /// The newest index of what the start wrote, once it stays the same: the leader and the agent both write of a
    /// node that joins, in any order.
    fn settled_index(&self) -> Result<u64> {
        let mut before = 0;
        for _ in 0..20 {
            let now = self.newest_index()?;
            if now == before {
                break;
            }
            before = now;
            std::thread::sleep(Duration::from_millis(150));
        }
        Ok(before)
    }

    fn newest_index(&self) -> Result<u64> {
        let mut newest = 0;
        for target in [
            "/v1/catalog/nodes",
            "/v1/catalog/services",
            "/v1/health/state/any",
        ] {
            let limit = Duration::from_secs(2);
            let answer = http::send(self.http(), "GET", target, &[], None, limit)?;
            let index = answer.header("X-Consul-Index").and_then(|v| v.parse().ok());
            newest = newest.max(index.unwrap_or(0));
        }
        Ok(newest)
    }

    fn says(&self, target: &str, word: &str) -> bool {
        let body = self.ask(self.http(), target);
        body.is_some_and(|body| body.contains(word))
    }

    fn ask(&self, at: SocketAddr, target: &str) -> Option<String> {
        let answer = http::send(at, "GET", target, &[], None, Duration::from_secs(2)).ok()?;
        (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// SIGKILL, then the same command again on the same data.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.kill();
        self.launch()
    }

    /// SIGHUP, by the system's own `kill`.
    pub(crate) fn reload(&self) -> Result<()> {
        let id = self.child.as_ref().context("no process")?.id().to_string();
        let status = Command::new("kill").args(["-HUP", &id]).status()?;
        if !status.success() {
            bail!("kill -HUP {id}: {status}");
        }
        Ok(())
    }

    pub(crate) fn http(&self) -> SocketAddr {
        SocketAddr::new(self.recipe.address, 8500)
    }

    pub(crate) fn dns(&self) -> SocketAddr {
        SocketAddr::new(self.recipe.address, 8600)
    }

    /// The folder for the files of stories.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// The last lines the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Whether the process is still there.
    pub(crate) fn alive(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn kill(&mut self) {
        end(&mut self.child);
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
        end(&mut self.server);
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // Both fail only when the process is gone, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn server_role() -> Vec<String> {
    ["-server", "-bootstrap-expect=1"].map(str::to_owned).into()
}

fn must_be_free(recipe: &Recipe, address: IpAddr) -> Result<()> {
    for port in PORTS {
        let address = SocketAddr::new(address, port);
        TcpListener::bind(address).with_context(|| {
            format!(
                "{address} is in use: choose another with --{}-addr",
                recipe.label
            )
        })?;
    }
    Ok(())
}

fn write_config(dir: &Path, texts: &[String]) -> Result<()> {
    std::fs::create_dir(dir)?;
    for (number, text) in texts.iter().enumerate() {
        std::fs::write(dir.join(format!("{number}.json")), text)?;
    }
    Ok(())
}

/// The server's part of a configuration: what is registered and watched is the agent's.
fn of_server(text: &str) -> Result<String> {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
    for key in [
        "service",
        "services",
        "check",
        "checks",
        "watches",
        "node_meta",
    ] {
        config.remove(key);
    }
    Ok(serde_json::Value::from(config).to_string())
}

/// The address as DNS spells it in `.addr` names.
pub(crate) fn hex_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.octets().iter().map(|b| format!("{b:02x}")).collect(),
        IpAddr::V6(v6) => v6.octets().iter().map(|b| format!("{b:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        assert_eq!(version_in("v1.8.7").as_deref(), Some("1.8.7"));
        assert_eq!(version_in("(0.1.0-dev)").as_deref(), Some("0.1.0-dev"));
        assert_eq!(version_in("Protocol"), None);
        assert_eq!(version_in("2"), None);
    }
}
