//! Servers of our own: one or three on loopback, data on a real disk, killed by their handles when dropped.
//!
//! Owns: how weft, Consul and etcd are started and when they are ready. Never: measures.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::peer::Kind;
use crate::stopwatch::Stopwatch;

const READY_LIMIT: Duration = Duration::from_secs(60);
/// Both speakers of Consul's API get the fastest Raft timing they offer and enough connections for the load.
const CONFIG: &str = r#"{"performance":{"raft_multiplier":1},"limits":{"http_max_conns_per_client":15000},"disable_update_check":true}"#;
/// weft bounds connections in all, too, and the row of many watchers has more than that.
const WEFT_CONFIG: &str = r#"{"performance":{"raft_multiplier":1},"limits":{"http_max_conns_per_client":15000,"http_max_conns":15000}}"#;

/// A system that can be started.
#[derive(Debug, Clone)]
pub(crate) struct System {
    pub(crate) kind: Kind,
    pub(crate) binary: PathBuf,
}

#[derive(Debug)]
struct Server {
    address: IpAddr,
    child: Option<Child>,
}

/// One or more servers of one system.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kind: Kind,
    system: System,
    servers: Vec<Server>,
    dir: TempDir,
}

impl Cluster {
    /// Starts a server on each address without waiting for any.
    pub(crate) fn spawn(system: &System, hosts: &[IpAddr], data: &Path) -> Result<Self> {
        for port in ports(system.kind) {
            for host in hosts {
                let address = SocketAddr::new(*host, *port);
                TcpListener::bind(address)
                    .with_context(|| format!("{address} is in use: choose others with --hosts"))?;
            }
        }
        let dir = tempfile::Builder::new()
            .prefix(system.kind.name())
            .tempdir_in(data)?;
        let servers = hosts
            .iter()
            .map(|address| Server {
                address: *address,
                child: None,
            })
            .collect();
        let mut cluster = Self {
            kind: system.kind,
            system: system.clone(),
            servers,
            dir,
        };
        for number in 0..hosts.len() {
            cluster.start(number)?;
        }
        Ok(cluster)
    }

    /// Starts the servers and waits until all of them know the same leader and take part.
    pub(crate) async fn ready(system: &System, hosts: &[IpAddr], data: &Path) -> Result<Self> {
        let mut cluster = Self::spawn(system, hosts, data)?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts (again) the server of that number on its own data.
    pub(crate) fn start(&mut self, number: usize) -> Result<()> {
        let mut command = match self.kind {
            Kind::Etcd => self.etcd(number),
            Kind::Weft | Kind::Consul => self.consul(number)?,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(number))?;
        let child = command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.servers[number].child =
            Some(child.with_context(|| format!("start {}", self.system.binary.display()))?);
        Ok(())
    }

    fn consul(&self, number: usize) -> Result<Command> {
        // One file each: another server may be reading its own at this moment.
        let config = self.dir.path().join(format!("n{}.json", number + 1));
        let text = if self.kind == Kind::Weft {
            WEFT_CONFIG
        } else {
            CONFIG
        };
        std::fs::write(&config, text)?;
        let address = self.servers[number].address;
        let mut command = Command::new(&self.system.binary);
        command
            .args([
                "agent",
                "-server",
                &format!("-bootstrap-expect={}", self.servers.len()),
                &format!("-node=n{}", number + 1),
            ])
            .args([&format!("-bind={address}"), &format!("-client={address}")])
            .arg(format!("-data-dir={}", self.data(number).display()))
            .arg(format!("-config-file={}", config.display()));
        for other in self.servers.iter().filter(|other| other.address != address) {
            command.arg(format!("-retry-join={}", other.address));
        }
        command.arg("-log-level=warn");
        Ok(command)
    }

    fn etcd(&self, number: usize) -> Command {
        let url = |address: IpAddr, port: u16| format!("http://{address}:{port}");
        let members = self
            .servers
            .iter()
            .enumerate()
            .map(|(n, s)| format!("n{}={}", n + 1, url(s.address, 2380)));
        let (client, peer) = (
            url(self.servers[number].address, 2379),
            url(self.servers[number].address, 2380),
        );
        let mut command = Command::new(&self.system.binary);
        command
            .args(["--name", &format!("n{}", number + 1), "--data-dir"])
            .arg(self.data(number))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args([
                "--initial-cluster",
                &members.collect::<Vec<_>>().join(","),
                "--log-level",
                "warn",
                "--logger",
                "zap",
            ]);
        command
    }

    /// Waits until every running server names the same leader and, with the catalog, all are alive there.
    pub(crate) async fn wait_ready(&mut self) -> Result<()> {
        let waited = Stopwatch::start();
        while waited.elapsed() < READY_LIMIT {
            self.check_alive()?;
            if self.leader().await.is_some() && self.all_take_part().await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "{} was not ready within 60 s:\n{}",
            self.kind.name(),
            self.log_tail(0)
        )
    }

    async fn all_take_part(&self) -> bool {
        if !self.kind.has_catalog() {
            return true;
        }
        for server in &self.servers {
            let target = "/v1/health/service/consul?passing&consistent";
            let Ok((200, body)) =
                http::once(SocketAddr::new(server.address, 8500), "GET", target, b"").await
            else {
                return false;
            };
            let text = String::from_utf8_lossy(&body);
            if text.matches("\"serfHealth\"").count() < self.servers.len() {
                return false;
            }
        }
        true
    }

    /// The number of the leader, when all running servers agree on it.
    pub(crate) async fn leader(&self) -> Option<usize> {
        let mut found = None;
        for number in self.running() {
            let leader = self.leader_by(number).await?;
            if found.is_some_and(|f| f != leader) {
                return None;
            }
            found = Some(leader);
        }
        found.filter(|leader| self.servers[*leader].child.is_some())
    }

    /// Who that server says leads.
    async fn leader_by(&self, number: usize) -> Option<usize> {
        if self.kind == Kind::Etcd {
            let id = self.etcd_status(number).await?["leader"]
                .as_str()
                .filter(|id| *id != "0")?
                .to_owned();
            for other in self.running() {
                if self.etcd_status(other).await?["header"]["member_id"].as_str() == Some(&id) {
                    return Some(other);
                }
            }
            return None;
        }
        let (status, body) = http::once(self.client(number), "GET", "/v1/status/leader", b"")
            .await
            .ok()?;
        let text: String = serde_json::from_slice(&body)
            .ok()
            .filter(|_| status == 200)?;
        let address: SocketAddr = text.parse().ok()?;
        self.servers
            .iter()
            .position(|server| server.address == address.ip())
    }

    /// The Raft term as that server knows it; 0 where the system does not tell.
    pub(crate) async fn term(&self, number: usize) -> Result<u64> {
        if !self.kind.has_catalog() {
            return Ok(0);
        }
        let (_, body) = http::once(self.client(number), "GET", "/v1/agent/self", b"").await?;
        let about: Value = serde_json::from_slice(&body)?;
        let term = &about["Stats"]["raft"]["term"];
        Ok(term
            .as_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0))
    }

    async fn etcd_status(&self, number: usize) -> Option<Value> {
        let (_, body) = http::once(self.client(number), "POST", "/v3/maintenance/status", b"{}")
            .await
            .ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// Errors: a server ended by itself; the end of its log.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        for number in 0..self.servers.len() {
            let Some(child) = self.servers[number].child.as_mut() else {
                continue;
            };
            if let Some(status) = child.try_wait()? {
                bail!(
                    "{} n{} ended ({status}):\n{}",
                    self.kind.name(),
                    number + 1,
                    self.log_tail(number)
                );
            }
        }
        Ok(())
    }

    /// SIGKILL to that server. Its data stay.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.servers[number].child.take() {
            // Both fail only when the process is gone, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.servers.len()).filter(|n| self.servers[*n].child.is_some())
    }

    /// Where clients speak to that server.
    pub(crate) fn client(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.servers[number].address, self.kind.client_port())
    }

    /// The DNS port of that server.
    pub(crate) fn dns(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.servers[number].address, 8600)
    }

    /// What the servers run.
    pub(crate) fn binary(&self) -> &Path {
        &self.system.binary
    }

    /// Where the servers listen.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().map(|server| server.address)
    }

    /// Process ids of the running servers.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers
            .iter()
            .filter_map(|s| s.child.as_ref().map(Child::id))
            .collect()
    }

    fn data(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("n{}", number + 1))
    }

    fn log(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("n{}.log", number + 1))
    }

    fn log_tail(&self, number: usize) -> String {
        let text = std::fs::read_to_string(self.log(number)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 0..self.servers.len() {
            self.kill(number);
        }
    }
}

fn ports(kind: Kind) -> &'static [u16] {
    match kind {
        Kind::Etcd => &[2379, 2380],
        Kind::Weft | Kind::Consul => &[8500, 8600, 8300, 8301, 8302],
    }
}
