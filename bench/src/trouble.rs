//! The rows in which servers start, die and come back.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, System};
use crate::figures::{Figures, percentile};
use crate::http::Connection;
use crate::peer::Mode;
use crate::procfs;
use crate::rows::{Found, fill, value};
use crate::stopwatch::Stopwatch;

const POLL: Duration = Duration::from_millis(3);
const START_LIMIT: Duration = Duration::from_secs(60);
/// 50 writes a second around the death of a leader.
const WRITE_EVERY: Duration = Duration::from_millis(20);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Writes go on this long after the kill, and at least until they are accepted again.
const AFTER_KILL: Duration = Duration::from_secs(6);
const AFTER_KILL_LIMIT: Duration = Duration::from_secs(40);

/// From exec to the first accepted write: one server, and three.
pub(crate) async fn start(
    system: &System,
    hosts: &[IpAddr],
    data: &Path,
    found: Found<'_>,
) -> Result<()> {
    for servers in [1, 3] {
        let clock = Stopwatch::start();
        let cluster = Cluster::spawn(system, &hosts[..servers], data)?;
        let mut request = Vec::new();
        cluster.kind.put(&mut request, "bench/first", &value(1));
        until(clock, cluster.client(0), &request, |status, _| {
            status == 200
        })
        .await
        .context("the first write")?;
        found(
            format!("start.{servers}"),
            Figures::from([("first_write_ms", millis(clock.elapsed()))]),
        );
    }
    Ok(())
}

/// From exec to the first stale read after kill -9 with that many keys on disk.
pub(crate) async fn restart(
    system: &System,
    hosts: &[IpAddr],
    data: &Path,
    keys: u64,
    found: Found<'_>,
) -> Result<()> {
    let mut cluster = Cluster::ready(system, &hosts[..1], data).await?;
    fill(&cluster, 0, keys, 256).await?;
    // A server of 100k keys left alone for a moment may have finished a snapshot, as in real life.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(0);
    let clock = Stopwatch::start();
    cluster.start(0)?;
    let (kind, last) = (cluster.kind, keys - 1);
    let mut request = Vec::new();
    kind.get(&mut request, &format!("bench/{last:05}"), Mode::Stale);
    until(clock, cluster.client(0), &request, |status, body| {
        kind.carries(status, body, &value(last))
    })
    .await
    .context("the first read")?;
    let took = clock.elapsed();
    let pid = *cluster.pids().first().context("the server runs")?;
    let (memory, cpu) = (procfs::memory(pid)?, procfs::cpu(pid)?);
    kind.put(&mut request, "bench/again", &value(2));
    until(clock, cluster.client(0), &request, |status, _| {
        status == 200
    })
    .await
    .context("the first write after the restart")?;
    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    let rss = memory.rss_kib as f64 / 1024.0;
    let figures = Figures::from([
        ("first_stale_read_ms", millis(took)),
        ("first_write_ms", millis(clock.elapsed())),
        ("cpu_ms", millis(cpu)),
        ("rss_mib", rss),
    ]);
    found(format!("restart.{keys}"), figures);
    Ok(())
}

async fn until(
    clock: Stopwatch,
    target: SocketAddr,
    request: &[u8],
    holds: impl Fn(u16, &[u8]) -> bool,
) -> Result<()> {
    while clock.elapsed() < START_LIMIT {
        if let Ok(mut connection) = Connection::open(target).await
            && let Ok(Ok(status)) =
                tokio::time::timeout(WRITE_LIMIT, connection.exchange(request)).await
            && holds(status, connection.body())
        {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("did not happen within 60 s")
}

/// What a writer learned: when each accepted write was acknowledged, and its key.
#[derive(Debug, Default)]
struct Written {
    accepted: Vec<(Duration, u64)>,
    failed: u64,
}

/// Kills the leader that many times under 50 writes a second; each time the longest gap between acknowledgements,
/// and at the end whether every acknowledged write is there.
pub(crate) async fn failover(
    system: &System,
    hosts: &[IpAddr],
    data: &Path,
    kills: usize,
    found: Found<'_>,
) -> Result<()> {
    let mut cluster = Cluster::ready(system, hosts, data).await?;
    let (mut gaps, mut accepted, mut failed) = (Vec::new(), Vec::new(), 0);
    for kill in 0..kills {
        let leader = cluster
            .leader()
            .await
            .context("no leader before the kill")?;
        let written = around_a_kill(&mut cluster, leader, u64::try_from(kill)? * 1_000_000).await?;
        let mut last = Duration::ZERO;
        let mut gap = Duration::ZERO;
        for (at, _) in &written.accepted {
            gap = gap.max(at.saturating_sub(last));
            last = *at;
        }
        eprintln!(
            "    kill {}: longest gap {} ms, {} failed",
            kill + 1,
            gap.as_millis(),
            written.failed
        );
        gaps.push(u32::try_from(gap.as_millis())?);
        failed += written.failed;
        accepted.extend(written.accepted.iter().map(|(_, key)| *key));
        cluster.start(leader)?;
        cluster.wait_ready().await?;
    }
    let lost = lost(&cluster, &accepted).await?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let figures = Figures::from([
        ("gap_p50_ms", percentile(&mut gaps, 0.5)),
        ("gap_max_ms", percentile(&mut gaps, 1.0)),
        ("kills", kills as f64),
        ("accepted", accepted.len() as f64),
        ("failed", failed as f64),
        ("lost", lost as f64),
    ]);
    found("failover".to_owned(), figures);
    Ok(())
}

/// One second of writes at the two other servers, the kill, and writes until they are long accepted again.
async fn around_a_kill(cluster: &mut Cluster, leader: usize, first_key: u64) -> Result<Written> {
    let written = Arc::new(Mutex::new(Written::default()));
    let clock = Stopwatch::start();
    let (mut tasks, mut killed_at, mut number) = (tokio::task::JoinSet::new(), None, 0u64);
    loop {
        let target = cluster.client((leader + 1 + usize::try_from(number % 2)?) % 3);
        let (kind, key, book) = (cluster.kind, first_key + number, Arc::clone(&written));
        tasks.spawn(async move {
            let mut request = Vec::new();
            kind.put(&mut request, &format!("kill/{key}"), &value(key));
            let ok = tokio::time::timeout(WRITE_LIMIT, async {
                Connection::open(target).await?.exchange(&request).await
            })
            .await;
            let mut book = book.lock().expect("no writer panics");
            match ok {
                Ok(Ok(200)) => book.accepted.push((clock.elapsed(), key)),
                _ => book.failed += 1,
            }
        });
        number += 1;
        if killed_at.is_none() && clock.elapsed() > Duration::from_secs(1) {
            cluster.kill(leader);
            killed_at = Some(clock.elapsed());
        }
        if let Some(at) = killed_at {
            let since = clock.elapsed() - at;
            let recent = written
                .lock()
                .expect("no writer panics")
                .accepted
                .last()
                .is_some_and(|(t, _)| clock.elapsed() - *t < 5 * WRITE_EVERY);
            if since > AFTER_KILL_LIMIT || (since > AFTER_KILL && recent) {
                break;
            }
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
    while tasks.join_next().await.is_some() {}
    let mut written = std::mem::take(&mut *written.lock().expect("no writer panics"));
    written.accepted.sort_unstable();
    Ok(written)
}

/// How many acknowledged writes a consistent read does not find.
async fn lost(cluster: &Cluster, accepted: &[u64]) -> Result<usize> {
    let leader = cluster
        .leader()
        .await
        .context("no leader after the kills")?;
    let mut connection = Connection::open(cluster.client(leader)).await?;
    let (mut request, mut lost) = (Vec::new(), 0);
    for key in accepted {
        cluster
            .kind
            .get(&mut request, &format!("kill/{key}"), Mode::Consistent);
        let status = connection.exchange(&request).await?;
        if !cluster
            .kind
            .carries(status, connection.body(), &value(*key))
        {
            lost += 1;
        }
    }
    Ok(lost)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_repeated_until_it_holds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            for status in ["500 No", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
            }
        });
        let mut request = Vec::new();
        crate::http::request(&mut request, "GET", "/", b"");
        until(Stopwatch::start(), target, &request, |status, _| {
            status == 200
        })
        .await
        .unwrap();
    }
}
