//! One side of the comparison: a server of our own on its own loopback address, in its own temporary folder.
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
        })
    }
}

impl Recipe {
    /// The same on an address so many further.
    pub(crate) fn moved(&self, by: u8) -> Self {
        let address = match self.address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
                v4.to_bits().wrapping_add(u32::from(by)),
            )),
            IpAddr::V6(v6) => IpAddr::V6(v6),
        };
        Self {
            address,
            ..self.clone()
        }
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
}

impl Side {
    /// Starts a server with an empty data directory and waits until it is ready.
    pub(crate) fn start(recipe: &Recipe, config: &[String]) -> Result<Self> {
        for port in PORTS {
            let address = SocketAddr::new(recipe.address, port);
            TcpListener::bind(address).with_context(|| {
                format!(
                    "{address} is in use: choose another with --{}-addr",
                    recipe.label
                )
            })?;
        }
        let dir = tempfile::Builder::new()
            .prefix("weft-differential-")
            .tempdir()?;
        let base = r#"{"performance":{"raft_multiplier":1},"limits":{"http_max_conns_per_client":10000},"disable_update_check":true}"#;
        std::fs::create_dir(dir.path().join("config"))?;
        for (number, text) in std::iter::once(base)
            .chain(config.iter().map(String::as_str))
            .enumerate()
        {
            std::fs::write(
                dir.path().join("config").join(format!("{number}.json")),
                text,
            )?;
        }
        let mut names = Names::default();
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
        };
        side.launch()?;
        Ok(side)
    }

    fn launch(&mut self) -> Result<()> {
        let address = self.recipe.address.to_string();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = Command::new(&self.recipe.binary)
            .args(["agent", "-server", "-bootstrap-expect=1"])
            .arg(format!(
                "-data-dir={}",
                self.dir.path().join("data").display()
            ))
            .arg(format!(
                "-config-dir={}",
                self.dir.path().join("config").display()
            ))
            .args([
                &format!("-node={NODE}"),
                &format!("-bind={address}"),
                &format!("-client={address}"),
            ])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.recipe.binary.display()))?;
        self.child = Some(child);
        self.wait_ready()
    }

    /// Ready: a leader is known, the node is healthy, the servers' own service is in the catalog and the agent has
    /// brought its node there (only an agent knows the tagged addresses). Then the node's id has a name.
    fn wait_ready(&mut self) -> Result<()> {
        let waited = Stopwatch::start();
        while waited.elapsed() < READY_LIMIT {
            let synced = format!("/v1/catalog/node/{NODE}");
            if self.says("/v1/health/service/consul", "serfHealth") && self.says(&synced, "\"lan\"")
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
            for target in [
                "/v1/catalog/nodes",
                "/v1/catalog/services",
                "/v1/health/state/any",
            ] {
                let answer = http::send(
                    self.http(),
                    "GET",
                    target,
                    &[],
                    None,
                    Duration::from_secs(2),
                )?;
                let index = answer
                    .header("X-Consul-Index")
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(0);
                self.names.start_index = self.names.start_index.max(index);
            }
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

    fn says(&self, target: &str, word: &str) -> bool {
        http::send(
            self.http(),
            "GET",
            target,
            &[],
            None,
            Duration::from_secs(2),
        )
        .is_ok_and(|answer| {
            answer.status == 200 && String::from_utf8_lossy(&answer.body).contains(word)
        })
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
        if let Some(mut child) = self.child.take() {
            // Both fail only when the process is gone, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
    }
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
