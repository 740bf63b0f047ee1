//! The soak: full put rate for minutes, through snapshots and purges, with an oracle on the client's side.
//!
//! Owns: what was acknowledged for each key, and reading all of it back from every server.
//! Never: counts a write without an answer as failed; its outcome is unknown.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::cluster::{Cluster, System};
use crate::figures::Figures;
use crate::http::{self, Connection};
use crate::procfs;
use crate::rows::{Found, value};
use crate::stopwatch::Stopwatch;

const CONNECTIONS: usize = 64;
/// Enough that two writes of one key are never under way at once.
const KEYS: u64 = 50_000;
/// Keys read back with one request.
const PAGE: u64 = 1_000;
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
const PROGRESS_EVERY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// What the writers learned. Numbers count up over all keys; key `n % KEYS` is given value `n`.
#[derive(Default)]
struct Oracle {
    next: Cell<u64>,
    over: Cell<bool>,
    /// Number of the last acknowledged write of each key; 0 before the first.
    acknowledged: RefCell<Vec<u64>>,
    done: Cell<u64>,
    unknown: Cell<u64>,
}

/// Writes for `time` on three servers and reads everything back.
///
/// Errors: a server ended, or the cluster was not there in the end.
pub(crate) async fn soak(
    system: &System,
    hosts: &[IpAddr],
    data: &Path,
    time: Duration,
    found: Found<'_>,
) -> Result<()> {
    let mut cluster = Cluster::ready(system, hosts, data).await?;
    let leader = cluster.leader().await.context("a leader")?;
    let oracle = Rc::new(Oracle {
        next: Cell::new(1),
        acknowledged: RefCell::new(vec![0; usize::try_from(KEYS)?]),
        ..Oracle::default()
    });
    let rss_before = rss_mib(&cluster)?;
    let writers = tokio::task::LocalSet::new();
    for _ in 0..CONNECTIONS {
        let (oracle, target) = (Rc::clone(&oracle), cluster.client(leader));
        writers.spawn_local(async move { write(target, &oracle).await });
    }
    let clock = Stopwatch::start();
    writers
        .run_until(watch(&mut cluster, &oracle, clock, time))
        .await?;
    oracle.over.set(true);
    writers.await;
    let took = clock.elapsed();
    cluster.wait_ready().await?;
    let lost = lost(&cluster, hosts.len(), &oracle).await?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let figures = Figures::from([
        ("minutes", took.as_secs_f64() / 60.0),
        ("acknowledged", oracle.done.get() as f64),
        ("rate_per_s", oracle.done.get() as f64 / took.as_secs_f64()),
        ("unknown", oracle.unknown.get() as f64),
        ("lost", lost as f64),
        ("snapshots_fewest", snapshots(&cluster, hosts.len()).await?),
        ("rss_before_mib", rss_before),
        ("rss_after_mib", rss_mib(&cluster)?),
    ]);
    found("soak".to_owned(), figures);
    Ok(())
}

/// Says each minute how it goes; a server that ends ends the soak.
async fn watch(
    cluster: &mut Cluster,
    oracle: &Oracle,
    clock: Stopwatch,
    time: Duration,
) -> Result<()> {
    while clock.elapsed() < time {
        tokio::time::sleep(PROGRESS_EVERY.min(time.saturating_sub(clock.elapsed()))).await;
        cluster.check_alive()?;
        eprintln!(
            "    {:>4.1} min  {} acknowledged  {} unknown  {:.0} MiB",
            clock.elapsed().as_secs_f64() / 60.0,
            oracle.done.get(),
            oracle.unknown.get(),
            rss_mib(cluster)?,
        );
    }
    Ok(())
}

async fn write(target: SocketAddr, oracle: &Oracle) {
    let mut request = Vec::new();
    while !oracle.over.get() {
        let Ok(mut connection) = Connection::open(target).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while !oracle.over.get() {
            let number = oracle.next.replace(oracle.next.get() + 1);
            http::request(
                &mut request,
                "PUT",
                &format!("/v1/kv/{}", key(number % KEYS)),
                value(number).as_bytes(),
            );
            let answer = tokio::time::timeout(ANSWER_LIMIT, connection.exchange(&request)).await;
            if matches!(answer, Ok(Ok(200))) {
                oracle.done.set(oracle.done.get() + 1);
                oracle.acknowledge(number);
            } else {
                oracle.unknown.set(oracle.unknown.get() + 1);
                tokio::time::sleep(PAUSE).await;
                break;
            }
        }
    }
}

impl Oracle {
    fn acknowledge(&self, number: u64) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        let slot = usize::try_from(number % KEYS).map(|at| &mut acknowledged[at]);
        if let Ok(slot) = slot {
            *slot = number.max(*slot);
        }
    }
}

fn key(slot: u64) -> String {
    format!("soak/{:03}/{:03}", slot / PAGE, slot % PAGE)
}

/// Keys that some server does not have, or has with an older value than was acknowledged.
async fn lost(cluster: &Cluster, servers: usize, oracle: &Oracle) -> Result<u64> {
    let acknowledged = oracle.acknowledged.take();
    let mut lost = 0;
    for server in 0..servers {
        let mut connection = Connection::open(cluster.client(server)).await?;
        for page in 0..KEYS / PAGE {
            let mut request = Vec::new();
            let target = format!("/v1/kv/soak/{page:03}/?recurse&consistent");
            http::request(&mut request, "GET", &target, b"");
            let status = connection.exchange(&request).await?;
            if status != 200 && status != 404 {
                bail!("{target}: status {status}");
            }
            let held = if status == 200 {
                numbers(&dechunked(connection.body()))?
            } else {
                Vec::new()
            };
            for slot in page * PAGE..(page + 1) * PAGE {
                let floor = acknowledged[usize::try_from(slot)?];
                let name = key(slot);
                let value = held
                    .iter()
                    .find(|(held, _)| *held == name)
                    .map_or(0, |(_, value)| *value);
                if value < floor {
                    eprintln!(
                        "    LOST {name} at server {}: {value}, {floor} was acknowledged",
                        server + 1
                    );
                    lost += 1;
                }
            }
        }
    }
    Ok(lost)
}

/// Key and number of each entry of a KV answer.
fn numbers(body: &[u8]) -> Result<Vec<(String, u64)>> {
    let entries: Vec<Value> = serde_json::from_slice(body).context("a KV answer")?;
    let number = |entry: &Value| {
        let key = entry["Key"].as_str()?.to_owned();
        let value = STANDARD.decode(entry["Value"].as_str()?).ok()?;
        Some((key, std::str::from_utf8(&value).ok()?.parse().ok()?))
    };
    entries
        .iter()
        .map(|entry| number(entry).with_context(|| format!("not what we wrote: {entry}")))
        .collect()
}

/// The body without chunk sizes. A JSON array of ours begins with `[`, a chunk size never does.
fn dechunked(body: &[u8]) -> Vec<u8> {
    if body.first() == Some(&b'[') {
        return body.to_vec();
    }
    let mut rest = body;
    let mut whole = Vec::with_capacity(body.len());
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..line])
            .ok()
            .and_then(|text| usize::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(0);
        let Some(chunk) = rest.get(line + 2..line + 2 + size).filter(|_| size > 0) else {
            break;
        };
        whole.extend_from_slice(chunk);
        rest = rest.get(line + 4 + size..).unwrap_or(&[]);
    }
    whole
}

/// Snapshots written by the server that wrote the fewest.
async fn snapshots(cluster: &Cluster, servers: usize) -> Result<f64> {
    let mut fewest = f64::INFINITY;
    for server in 0..servers {
        let target = "/v1/agent/metrics?format=prometheus";
        let (_, body) = http::once(cluster.client(server), "GET", target, b"").await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let line = text
            .lines()
            .find(|line| line.starts_with("weft_raft_snapshots_built_total"))
            .context("no metric weft_raft_snapshots_built_total")?;
        let count: f64 = line
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .context(line.to_owned())?;
        fewest = fewest.min(count);
    }
    Ok(fewest)
}

fn rss_mib(cluster: &Cluster) -> Result<f64> {
    let mut largest = 0;
    for pid in cluster.pids() {
        largest = largest.max(procfs::memory(pid)?.rss_kib);
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    Ok(largest as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_chunks_is_put_together() {
        assert_eq!(dechunked(b"3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"), b"[1,2]");
        assert_eq!(dechunked(b"[1]"), b"[1]");
    }

    #[test]
    fn the_oracle_keeps_the_newest() {
        let oracle = Oracle {
            acknowledged: RefCell::new(vec![0; usize::try_from(KEYS).unwrap()]),
            ..Oracle::default()
        };
        for number in [7, KEYS + 7, 7] {
            oracle.acknowledge(number);
        }
        assert_eq!(oracle.acknowledged.borrow()[7], KEYS + 7);
    }
}
