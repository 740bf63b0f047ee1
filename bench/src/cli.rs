//! The command line and the order of a run: rounds, within each round every system in turn.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::cluster::{Cluster, System};
use crate::figures::{Figures, Sample};
use crate::peer::Kind;
use crate::report::Run;
use crate::{agents, catalog, rows, soak, trouble, watch};

/// Runs weft, Consul and etcd alternately and prints what an operation costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    what: Vec<What>,
    /// How often each system is started and measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
    /// Seconds each load row is measured.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=120))]
    seconds: u8,
    /// The systems to run beside weft, separated by commas; empty for none.
    #[arg(long, default_value = "consul,etcd")]
    peers: String,
    /// The weft binary; without it only the peers run.
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Leader kills of the failover row, per round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=500))]
    kills: u16,
    /// Keys on disk in the restart row.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keys: u64,
    /// Minutes of the soak row.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1_440))]
    minutes: u16,
    /// Three loopback addresses.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1,127.0.0.2,127.0.0.3"
    )]
    hosts: Vec<IpAddr>,
    /// Folder on a real disk for the servers' data [default: target/bench-data of this workspace].
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print the table only: no file in results/, nothing added to RESULTS.md.
    #[arg(long)]
    no_save: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    All,
    Fsync,
    Idle,
    Kv,
    Get,
    Health,
    Dns,
    /// Registrations by the agent and by the catalog.
    Register,
    /// 1,000 and 5,000 watchers; 10,000 over many services.
    Watch,
    /// 10,000 instances.
    Many,
    /// 100,000 instances; not part of `all`, weft only.
    Scale,
    /// An agent that is no server: idle, from its views, forwarding.
    Agent,
    /// A change until it is in the views of 50 agents, weft only.
    Views,
    Start,
    Failover,
    Restart,
    /// Full put rate for `--minutes`, read back in the end; not part of `all`, weft only.
    Soak,
}

pub(crate) fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = runtime.block_on(bench(&arguments))?;
    print!("{}", run.to_markdown());
    if !arguments.no_save {
        run.save(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    }
    Ok(if run.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Bench<'a> {
    arguments: &'a Arguments,
    data: PathBuf,
    run: Run,
}

async fn bench(arguments: &Arguments) -> Result<Run> {
    if arguments.hosts.len() != 3 || arguments.hosts.iter().any(|host| !host.is_loopback()) {
        bail!("--hosts takes three loopback addresses");
    }
    let systems = systems(arguments)?;
    let data = data_folder(arguments)?;
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let run = Run {
        date: said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?,
        commit: said(
            "git",
            &[
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "rev-parse",
                "--short",
                "HEAD",
            ],
        )
        .unwrap_or_else(|_| "none".to_owned()),
        // Paths of this machine say nothing to a reader elsewhere.
        command: format!("weft-bench {}", hide_paths(&command)),
        machine: format!(
            "{} CPUs, {}",
            std::thread::available_parallelism()?,
            said("uname", &["-sm"])?
        ),
        rounds: usize::from(arguments.rounds),
        samples: Vec::new(),
        failures: Vec::new(),
    };
    let mut bench = Bench {
        arguments,
        data,
        run,
    };
    for round in 1..=usize::from(arguments.rounds) {
        bench.round(round, &systems).await?;
    }
    Ok(bench.run)
}

impl Bench<'_> {
    fn wants(&self, what: What) -> bool {
        self.arguments.what.contains(&What::All) || self.arguments.what.contains(&what)
    }

    async fn round(&mut self, round: usize, systems: &[System]) -> Result<()> {
        eprintln!("round {round} of {}", self.arguments.rounds);
        if self.wants(What::Fsync) || self.wants(What::Kv) {
            let figures = rows::fsync(&self.data, Duration::from_secs(2))?;
            self.note(round, "disk", "fsync.3".to_owned(), figures);
        }
        // Another one begins each round, so that none always runs on the warmest or noisiest machine.
        for offset in 0..systems.len() {
            let system = &systems[(round - 1 + offset) % systems.len()];
            self.loads(round, system).await;
            self.catalogs(round, system).await;
            self.troubles(round, system).await;
        }
        Ok(())
    }

    /// The rows on one running cluster of three.
    async fn loads(&mut self, round: usize, system: &System) {
        let wanted = [What::Idle, What::Kv, What::Get, What::Health, What::Dns]
            .map(|what| (what, self.wants(what)));
        if wanted.iter().all(|(_, wants)| !wants) {
            return;
        }
        let cluster = match Cluster::ready(system, &self.arguments.hosts, &self.data).await {
            Ok(cluster) => cluster,
            Err(error) => return self.fail(system.kind, "three servers", &error),
        };
        for (what, _) in wanted.into_iter().filter(|(_, wants)| *wants) {
            if matches!(what, What::Health | What::Dns) && !system.kind.has_catalog() {
                continue;
            }
            let time = Duration::from_secs(u64::from(self.arguments.seconds));
            let mut found =
                |row: String, figures: Figures| self.note(round, system.kind.name(), row, figures);
            let ended = match what {
                What::Idle => rows::idle(&cluster, &mut found).await,
                What::Kv => rows::kv(&cluster, time, &mut found).await,
                What::Get => rows::get(&cluster, time, &mut found).await,
                What::Health => match rows::health(&cluster, time, &mut found).await {
                    Ok(()) => catalog::health_at_follower(&cluster, time, &mut found).await,
                    failed => failed,
                },
                _ => rows::dns(&cluster, time, &mut found).await,
            };
            if let Err(error) = ended {
                self.fail(system.kind, &format!("{what:?}").to_lowercase(), &error);
            }
        }
    }

    /// The rows that fill the catalog, each on a cluster of its own.
    async fn catalogs(&mut self, round: usize, system: &System) {
        let rows = [
            What::Register,
            What::Watch,
            What::Many,
            What::Scale,
            What::Agent,
            What::Views,
        ];
        for what in rows {
            let asked = match what {
                What::Scale => system.kind == Kind::Weft && self.arguments.what.contains(&what),
                What::Views => agents::has_views(system.kind) && self.wants(what),
                _ => system.kind.has_catalog() && self.wants(what),
            };
            if !asked {
                continue;
            }
            let ready = Cluster::ready(system, &self.arguments.hosts, &self.data).await;
            let cluster = match ready {
                Ok(cluster) => cluster,
                Err(error) => return self.fail(system.kind, "three servers", &error),
            };
            let time = Duration::from_secs(u64::from(self.arguments.seconds));
            let data = self.data.clone();
            let mut found =
                |row: String, figures: Figures| self.note(round, system.kind.name(), row, figures);
            let ended = match what {
                What::Agent => agents::one(&cluster, time, &data, &mut found).await,
                What::Views => agents::changes(&cluster, &data, &mut found).await,
                What::Register => catalog::register(&cluster, time, &mut found).await,
                What::Watch => match watch::watchers(&cluster, &mut found).await {
                    Ok(()) => watch::many(&cluster, time, &mut found).await,
                    failed => failed,
                },
                What::Many => catalog::load_many(&cluster, 10_000, &mut found).await,
                _ => catalog::load_many(&cluster, 100_000, &mut found).await,
            };
            if let Err(error) = ended {
                self.fail(system.kind, &format!("{what:?}").to_lowercase(), &error);
            }
        }
    }

    /// The rows that start, kill and restart servers of their own.
    async fn troubles(&mut self, round: usize, system: &System) {
        let (hosts, data, keys, kills) = (
            &self.arguments.hosts,
            self.data.clone(),
            self.arguments.keys,
            usize::from(self.arguments.kills),
        );
        let minutes = u64::from(self.arguments.minutes);
        for what in [What::Start, What::Restart, What::Failover, What::Soak] {
            let asked = if what == What::Soak {
                system.kind == Kind::Weft && self.arguments.what.contains(&what)
            } else {
                self.wants(what)
            };
            if !asked {
                continue;
            }
            let mut found =
                |row: String, figures: Figures| self.note(round, system.kind.name(), row, figures);
            let ended = match what {
                What::Start => trouble::start(system, hosts, &data, &mut found).await,
                What::Restart => trouble::restart(system, hosts, &data, keys, &mut found).await,
                What::Soak => {
                    let time = Duration::from_secs(60 * minutes);
                    soak::soak(system, hosts, &data, time, &mut found).await
                }
                _ => trouble::failover(system, hosts, &data, kills, &mut found).await,
            };
            if let Err(error) = ended {
                self.fail(system.kind, &format!("{what:?}").to_lowercase(), &error);
            }
        }
    }

    fn note(&mut self, round: usize, system: &'static str, row: String, figures: Figures) {
        let shown: Vec<String> = figures
            .iter()
            .map(|(name, value)| format!("{name} {value:.1}"))
            .collect();
        eprintln!("  {system:<7} {row:<28} {}", shown.join("  "));
        self.run.samples.push(Sample {
            row,
            system,
            round,
            figures,
        });
    }

    fn fail(&mut self, kind: Kind, row: &str, error: &anyhow::Error) {
        eprintln!("  {:<7} {row:<28} NOT MEASURED: {error:#}", kind.name());
        self.run
            .failures
            .push((row.to_owned(), kind.name(), format!("{error:#}")));
    }
}

/// The systems asked for; missing peers are installed by the project's own script.
fn systems(arguments: &Arguments) -> Result<Vec<System>> {
    let mut systems = Vec::new();
    if let Some(binary) = &arguments.weft {
        systems.push(System {
            kind: Kind::Weft,
            binary: binary
                .canonicalize()
                .with_context(|| binary.display().to_string())?,
        });
    }
    for name in arguments.peers.split(',').filter(|name| !name.is_empty()) {
        let kind = match name {
            "consul" => Kind::Consul,
            "etcd" => Kind::Etcd,
            _ => bail!("unknown peer `{name}`: consul, etcd"),
        };
        systems.push(System {
            kind,
            binary: peer_binary(kind)?,
        });
    }
    if systems.is_empty() {
        bail!("nothing to run: --weft PATH or --peers consul,etcd");
    }
    Ok(systems)
}

fn peer_binary(kind: Kind) -> Result<PathBuf> {
    if let Some(path) = find_peer(kind) {
        return Ok(path);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/setup-peers.sh");
    let status = Command::new(&script)
        .arg("bench")
        .status()
        .with_context(|| script.display().to_string())?;
    if !status.success() {
        bail!("tools/setup-peers.sh bench: {status}");
    }
    find_peer(kind).with_context(|| format!("tools/setup-peers.sh did not bring {}", kind.name()))
}

fn find_peer(kind: Kind) -> Option<PathBuf> {
    if kind == Kind::Etcd {
        let path = std::env::var_os("PATH")?;
        return std::env::split_paths(&path)
            .map(|dir| dir.join("etcd"))
            .find(|path| path.is_file());
    }
    let peers = std::env::var_os("PEERS").map(PathBuf::from);
    let peers = peers
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/weft-peers")))?;
    Some(peers.join("consul/usr/bin/consul")).filter(|path| path.is_file())
}

/// Where the servers keep their data: never a file system in memory, which would make every fsync free.
fn data_folder(arguments: &Arguments) -> Result<PathBuf> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-data");
    let folder = arguments.data.clone().unwrap_or(default);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    if rustix::fs::statfs(&folder)?.f_type as i64 == TMPFS_MAGIC {
        bail!(
            "{} is in memory: say --data with a folder on a real disk",
            folder.display()
        );
    }
    Ok(folder.canonicalize()?)
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn hide_paths(command: &str) -> String {
    command
        .split(' ')
        .map(|word| {
            if word.starts_with('/') {
                word.rsplit('/').next().unwrap_or(word)
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}
