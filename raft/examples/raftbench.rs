//! Three servers over TCP on the loopback, each with its own write-ahead log, and N proposers.
//!
//! `cargo run --release -p weft-raft --example raftbench -- --clients 64 --seconds 5 [--bytes 128]
//! [--dir DIR] [--memory] [--reads]`
//!
//! Prints the rate, the latency seen by a proposer, and CPU time per operation over all three servers,
//! by thread name. Proposers call the leader in this process: no client protocol is measured.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use weft_proto::clock::{Clock, SystemClock};
use weft_raft::log::{LogStore, MemoryLog, Wal, WalOptions};
use weft_raft::{
    Committed, Dialer, FatalError, FrozenState, Peer, RaftConfig, RaftId, RaftNode, RaftStream,
    StateMachine,
};

struct Options {
    clients: usize,
    seconds: u64,
    bytes: usize,
    dir: Option<PathBuf>,
    memory: bool,
    reads: bool,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self {
            clients: 64,
            seconds: 5,
            bytes: 128,
            dir: None,
            memory: false,
            reads: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|cause| cause.to_string());
            match word.as_str() {
                "--clients" => options.clients = usize::try_from(number(value()?)?).unwrap_or(1),
                "--seconds" => options.seconds = number(value()?)?,
                "--bytes" => options.bytes = usize::try_from(number(value()?)?).unwrap_or(1),
                "--dir" => options.dir = Some(value()?.into()),
                "--memory" => options.memory = true,
                "--reads" => options.reads = true,
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(options)
    }
}

/// A state machine that costs nothing.
struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, FatalError> {
        Ok(vec![Bytes::new(); batch.len()])
    }

    fn freeze(&mut self) -> Box<dyn FrozenState> {
        Box::new(Nothing)
    }

    fn restore(&mut self, _: &mut dyn io::Read) -> Result<(), FatalError> {
        Ok(())
    }
}

impl FrozenState for Nothing {
    fn write(self: Box<Self>, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

struct Tcp;

impl Dialer for Tcp {
    fn dial(&self, peer: &Peer) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
        let address = peer.address.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn RaftStream>)
        }
        .boxed()
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse()?;
    let (nodes, listeners) = cluster(&options).await?;
    let leader = loop {
        if let Some(leader) = nodes.iter().find(|node| node.status().is_leader()) {
            break leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for warm in [true, false] {
        let seconds = if warm { 1 } else { options.seconds };
        let before = cpu_by_thread()?;
        let (mut took, elapsed) = load(&leader, &options, seconds).await;
        if warm {
            continue;
        }
        report(&mut took, elapsed, &before, &cpu_by_thread()?);
    }
    println!(
        "  elections since the first: {}",
        leader.status().term.saturating_sub(1)
    );
    drop(leader);
    for listener in listeners {
        // They hold handles; a log is let go of with the last one.
        listener.abort();
        listener.await.ok();
    }
    for node in nodes {
        node.shutdown().await;
    }
    if !options.memory {
        time_restart(&options)?;
    }
    Ok(())
}

/// How long the first server takes from its files to a state machine that can be read.
fn time_restart(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let dir = scratch(options).join("1");
    let start = clock.monotonic();
    let store = Arc::new(Wal::open_dir(&dir.join("wal"), WalOptions::default())?);
    let opened = clock.monotonic() - start;
    let config = RaftConfig::new(RaftId(uuid::Uuid::from_u128(1)), "bench");
    let snapshots = Some(dir.join("snapshots"));
    let node = RaftNode::start(
        config,
        store,
        snapshots,
        Nothing,
        Arc::new(Tcp),
        clock.clone(),
    )?;
    let took = clock.monotonic() - start;
    let entries = node.log_usage().entries;
    println!(
        "restart {took:?} (log opened in {opened:?}), {entries} entries kept, applied {}",
        node.applied()
    );
    Ok(())
}

fn scratch(options: &Options) -> PathBuf {
    options
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join("weft-raftbench"))
}

async fn cluster(
    options: &Options,
) -> Result<(Vec<RaftNode>, Vec<JoinHandle<()>>), Box<dyn std::error::Error>> {
    let scratch = scratch(options);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (mut nodes, mut peers, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=3_u8 {
        let id = RaftId(uuid::Uuid::from_u128(u128::from(n)));
        let dir = scratch.join(n.to_string());
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let store: Arc<dyn LogStore> = if options.memory {
            Arc::new(MemoryLog::new())
        } else {
            std::fs::create_dir_all(dir.join("wal"))?;
            Arc::new(Wal::open_dir(&dir.join("wal"), WalOptions::default())?)
        };
        let config = RaftConfig::new(id, "bench");
        let snapshots = (!options.memory).then(|| dir.join("snapshots"));
        let node = RaftNode::start(
            config,
            store,
            snapshots,
            Nothing,
            Arc::new(Tcp),
            clock.clone(),
        )?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        peers.push(Peer {
            id,
            name: n.to_string(),
            address,
            public_key: Bytes::new(),
        });
        nodes.push(node.clone());
        listeners.push(tokio::spawn(accept(listener, node)));
    }
    nodes[0].bootstrap(peers).await?;
    Ok((nodes, listeners))
}

async fn accept(listener: TcpListener, node: RaftNode) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(socket) = stream.into_std() else {
            continue;
        };
        let serving = node.clone();
        // Made into a tokio socket there, it belongs to the Raft runtime.
        node.spawn(async move {
            if let Ok(stream) = TcpStream::from_std(socket) {
                let _ = stream.set_nodelay(true);
                serving.serve(Box::new(stream));
            }
        });
    }
}

async fn load(leader: &RaftNode, options: &Options, seconds: u64) -> (Vec<Duration>, Duration) {
    let clock = Arc::new(SystemClock::new());
    let ended = Arc::new(AtomicBool::new(false));
    let body = Bytes::from(vec![7; options.bytes]);
    let start = clock.monotonic();
    let mut clients = Vec::new();
    for _ in 0..options.clients {
        let (leader, clock, ended) = (leader.clone(), clock.clone(), ended.clone());
        let (body, reads) = (body.clone(), options.reads);
        clients.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let before = clock.monotonic();
                let ok = if reads {
                    leader.read_index().await.is_ok()
                } else {
                    leader.propose(body.clone()).await.is_ok()
                };
                if ok {
                    took.push(clock.monotonic() - before);
                }
            }
            took
        }));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    ended.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for client in clients {
        all.extend(client.await.unwrap_or_default());
    }
    (all, clock.monotonic() - start)
}

fn report(took: &mut [Duration], elapsed: Duration, before: &Cpu, after: &Cpu) {
    took.sort_unstable();
    let operations = took.len().max(1);
    let at = |percent: usize| {
        took.get(operations * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    let per = |micros: u64| micros as f64 / operations as f64;
    println!(
        "rate {:.0}/s  p50 {:?}  p99 {:?}",
        operations as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99)
    );
    let mut total = 0;
    for (name, micros) in after {
        let used = micros - before.get(name).copied().unwrap_or(0);
        total += used;
        println!("  {name:<18} {:>7.2} CPU µs/op", per(used));
    }
    println!("  {:<18} {:>7.2} CPU µs/op", "total", per(total));
}

type Cpu = BTreeMap<String, u64>;

/// Microseconds on CPU by thread name (`/proc/self/task/*/schedstat`).
fn cpu_by_thread() -> io::Result<Cpu> {
    let mut cpu = Cpu::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        let name = std::fs::read_to_string(path.join("comm"))?
            .trim()
            .to_owned();
        let stat = std::fs::read_to_string(path.join("schedstat"))?;
        let nanos: u64 = stat
            .split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        *cpu.entry(name).or_default() += nanos / 1_000;
    }
    Ok(cpu)
}
