//! The rows of agents that are no servers: what each costs idle, what it answers from its views, what it forwards, and
//! how soon a change at a server is in the views of fifty.
//!
//! Owns: the agents, which join a running cluster and are killed by their handles when dropped.
//! Never: starts a server.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::task::LocalSet;

use crate::cluster::Cluster;
use crate::dnsload;
use crate::figures::{Figures, percentile};
use crate::http::{self, Connection};
use crate::load::{self, Load};
use crate::peer::{Kind, Mode};
use crate::procfs;
use crate::rows::{self, Found};
use crate::stopwatch::Stopwatch;

const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long an agent is left alone before the idle row, and how long it is watched.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE_WATCH: Duration = Duration::from_secs(20);
/// DNS types.
const A: u16 = 1;
const SRV: u16 = 33;
/// Agents of the row of changes, and how many changes they see.
const MANY: u8 = 50;
const CHANGES: u32 = 40;
const CHANGE_PAUSE: Duration = Duration::from_millis(150);
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// Agents of one system, joined to a cluster of it.
struct Agents {
    addresses: Vec<IpAddr>,
    children: Vec<Child>,
    dir: TempDir,
}

impl Agents {
    /// Starts that many on addresses of their own, and waits until each knows a service and is known.
    async fn ready(cluster: &Cluster, count: u8, data: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("agents").tempdir_in(data)?;
        let config = dir.path().join("agents.json");
        std::fs::write(
            &config,
            r#"{"limits":{"http_max_conns_per_client":15000},"disable_update_check":true}"#,
        )?;
        let mut agents = Self {
            addresses: Vec::new(),
            children: Vec::new(),
            dir,
        };
        for number in 1..=count {
            agents.start(cluster, number, &config)?;
        }
        for number in 0..usize::from(count) {
            agents.wait_ready(number).await?;
        }
        Ok(agents)
    }

    fn start(&mut self, cluster: &Cluster, number: u8, config: &Path) -> Result<()> {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 40, number));
        let name = format!("agent{number}");
        let log = File::create(self.dir.path().join(format!("{name}.log")))?;
        let mut command = Command::new(cluster.binary());
        command
            .args(["agent", &format!("-node={name}"), "-log-level=warn"])
            .args([&format!("-bind={address}"), &format!("-client={address}")])
            .arg(format!("-config-file={}", config.display()))
            .arg(format!(
                "-data-dir={}",
                self.dir.path().join(&name).display()
            ));
        for server in cluster.addresses() {
            command.arg(format!("-retry-join={server}"));
        }
        let child = command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start an agent")?;
        self.children.push(child);
        self.addresses.push(address);
        Ok(())
    }

    async fn wait_ready(&mut self, number: usize) -> Result<()> {
        let waited = Stopwatch::start();
        let target = format!("/v1/health/node/agent{}", number + 1);
        while waited.elapsed() < READY_LIMIT {
            if let Some(status) = self.children[number].try_wait()? {
                bail!("agent{} ended ({status})", number + 1);
            }
            let answer = http::once(self.http(number), "GET", &target, b"").await;
            if answer.is_ok_and(|(_, body)| String::from_utf8_lossy(&body).contains("serfHealth")) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("agent{} was not ready within 60 s", number + 1)
    }

    fn http(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.addresses[number], 8500)
    }

    fn dns(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.addresses[number], 8600)
    }

    fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only when the process is gone, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The rows of one agent.
pub(crate) async fn one(
    cluster: &Cluster,
    time: Duration,
    data: &Path,
    found: Found<'_>,
) -> Result<()> {
    let agents = Agents::ready(cluster, 1, data).await?;
    idle(&agents, found).await?;
    let leader = rows::leader(cluster).await?;
    rows::register(cluster, leader, 10).await?;
    rows::register(cluster, leader, 100).await?;
    health(&agents, time, found).await?;
    names(&agents, time, found).await?;
    keys(cluster, &agents, time, found).await
}

async fn idle(agents: &Agents, found: Found<'_>) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let pid = agents.pids()[0];
    let (cpu, clock) = (procfs::cpu_of_threads(pid)?, Stopwatch::start());
    tokio::time::sleep(IDLE_WATCH).await;
    let share = (procfs::cpu_of_threads(pid)? - cpu).as_secs_f64() / clock.elapsed().as_secs_f64();
    let memory = procfs::memory(pid)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    let figures = Figures::from([
        ("rss_mib", memory.rss_kib as f64 / 1024.0),
        ("pss_mib", memory.pss_kib as f64 / 1024.0),
        ("cpu_percent_per_server", share * 100.0),
    ]);
    found("agent.idle".to_owned(), figures);
    Ok(())
}

/// `?cached`, answered from the view; asked plainly and as a blocking query that has an answer.
async fn health(agents: &Agents, time: Duration, found: Found<'_>) -> Result<()> {
    let load = Load {
        target: agents.http(0),
        connections: 8,
        time,
        pids: agents.pids(),
    };
    let target = "/v1/health/service/svc100?cached";
    let waited = Stopwatch::start();
    loop {
        let (status, body) = http::once(load.target, "GET", target, b"").await?;
        let text = String::from_utf8_lossy(&body);
        let seen = text.matches("\"CheckID\"").count();
        if status == 200 && seen == 100 {
            break;
        }
        if waited.elapsed() > READY_LIMIT {
            bail!("{target}: status {status}, {seen} checks of 100");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (row, more) in [
        ("agent.health.100", ""),
        ("agent.health.100.index", "&index=1&wait=10s"),
    ] {
        let target = format!("{target}{more}");
        let figures =
            load::run(&load, move |_, out| http::request(out, "GET", &target, b"")).await?;
        found(row.to_owned(), figures);
    }
    Ok(())
}

async fn names(agents: &Agents, time: Duration, found: Found<'_>) -> Result<()> {
    for (row, kind) in [("agent.dns.a", A), ("agent.dns.srv", SRV)] {
        let load = Load {
            target: agents.dns(0),
            connections: 32,
            time,
            pids: agents.pids(),
        };
        let question = dnsload::question("svc10.service.consul", kind);
        found(row.to_owned(), dnsload::run(&load, question).await?);
    }
    Ok(())
}

/// Reads and writes of keys, which servers answer: the CPU time of all is charged.
async fn keys(cluster: &Cluster, agents: &Agents, time: Duration, found: Found<'_>) -> Result<()> {
    let kind = cluster.kind;
    rows::fill(cluster, rows::leader(cluster).await?, rows::KEYS, 64).await?;
    let mut pids = agents.pids();
    pids.extend(cluster.pids());
    let load = |connections| Load {
        target: agents.http(0),
        connections,
        time,
        pids: pids.clone(),
    };
    for (mode, connections) in [(Mode::Default, 64), (Mode::Stale, 64), (Mode::Default, 1)] {
        let load = load(connections);
        let get = move |n: u64, out: &mut Vec<u8>| {
            kind.get(out, &rows::key(n.wrapping_mul(7_919)), mode);
        };
        let row = format!("agent.kv.get.{}.{connections}", mode.name());
        found(row, load::run(&load, get).await?);
    }
    let load = load(64);
    let put = move |n, out: &mut Vec<u8>| kind.put(out, &rows::key(n), &rows::value(n));
    found("agent.kv.put.64".to_owned(), load::run(&load, put).await?);
    Ok(())
}

/// What those who wait at the agents learn.
#[derive(Default)]
struct Board {
    changed: Cell<Option<Stopwatch>>,
    seen: Cell<usize>,
    micros: RefCell<Vec<u32>>,
    failed: RefCell<Option<anyhow::Error>>,
}

/// A change at the leader until each of fifty agents answers it from its view to somebody who waits there.
pub(crate) async fn changes(cluster: &Cluster, data: &Path, found: Found<'_>) -> Result<()> {
    let agents = Agents::ready(cluster, MANY, data).await?;
    let leader = rows::leader(cluster).await?;
    rows::register(cluster, leader, 10).await?;
    let board = Rc::new(Board::default());
    let local = LocalSet::new();
    for number in 0..agents.addresses.len() {
        let (target, board) = (agents.http(number), Rc::clone(&board));
        local.spawn_local(async move {
            if let Err(error) = wait_at(target, &board).await {
                board.failed.replace(Some(error));
            }
        });
    }
    let cpu = local
        .run_until(async {
            everybody(&board, agents.addresses.len()).await?;
            let pids = agents.pids();
            let cpu = procfs::cpu_sum(&pids)?;
            for change in 1..=CHANGES {
                tokio::time::sleep(CHANGE_PAUSE).await;
                board.seen.set(0);
                board.changed.set(Some(Stopwatch::start()));
                rows::touch(cluster, leader, 10, change).await?;
                everybody(&board, agents.addresses.len()).await?;
            }
            anyhow::Ok(procfs::cpu_sum(&pids)? - cpu)
        })
        .await?;
    let mut micros = board.micros.take();
    let changes = f64::from(CHANGES) * f64::from(MANY);
    let figures = Figures::from([
        ("p50_us", percentile(&mut micros, 0.5)),
        ("p99_us", percentile(&mut micros, 0.99)),
        ("cpu_us_per_op", cpu.as_secs_f64() * 1e6 / changes),
    ]);
    found(format!("agent.change.{MANY}"), figures);
    Ok(())
}

async fn everybody(board: &Board, count: usize) -> Result<()> {
    let clock = Stopwatch::start();
    while board.seen.get() < count {
        if let Some(error) = board.failed.take() {
            return Err(error);
        }
        if clock.elapsed() > CHANGE_LIMIT {
            bail!("{} of {count} agents know it after 20 s", board.seen.get());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Follows the service's view at one agent.
async fn wait_at(target: SocketAddr, board: &Board) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    let mut request = Vec::new();
    let mut index = 0;
    loop {
        let path = format!("/v1/health/service/svc10?cached&index={index}&wait=60s");
        http::request(&mut request, "GET", &path, b"");
        let status = connection.exchange(&request).await?;
        if status != 200 {
            bail!("{path}: status {status}");
        }
        index = connection.index().context("an answer without an index")?;
        if let Some(changed) = board.changed.get() {
            let took = u32::try_from(changed.elapsed().as_micros()).unwrap_or(u32::MAX);
            board.micros.borrow_mut().push(took);
        }
        board.seen.set(board.seen.get() + 1);
    }
}

/// Whether the rows of changes are run: Consul's agents follow services in another way with every version.
pub(crate) fn has_views(kind: Kind) -> bool {
    kind == Kind::Weft
}
