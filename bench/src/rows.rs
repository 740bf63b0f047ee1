//! The rows measured on a running cluster: keys, reads, health, DNS, idle; and the disk's own control.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::dnsload;
use crate::figures::{Figures, percentile};
use crate::http;
use crate::load::{self, Load};
use crate::peer::Mode;
use crate::procfs;
use crate::stopwatch::Stopwatch;

/// Keys written and read by the rows.
pub(crate) const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 128;
/// How long servers are left alone before the idle row, and how long they are watched.
const SETTLE: Duration = Duration::from_secs(3);
const IDLE_WATCH: Duration = Duration::from_secs(5);
/// DNS types.
const A: u16 = 1;
const SRV: u16 = 33;

/// A row's name and figures, handed on as soon as they are known.
pub(crate) type Found<'f> = &'f mut dyn FnMut(String, Figures);

/// A value of 128 bytes that no other number has: a write of the same bytes again would be no change.
pub(crate) fn value(number: u64) -> String {
    format!("{number:0>VALUE_BYTES$}")
}

pub(crate) fn key(number: u64) -> String {
    format!("bench/{:05}", number % KEYS)
}

/// Resident memory and CPU share of servers nobody speaks to.
pub(crate) async fn idle(cluster: &Cluster, found: Found<'_>) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let pids = cluster.pids();
    let (cpu, clock) = (procfs::cpu_sum(&pids)?, Stopwatch::start());
    tokio::time::sleep(IDLE_WATCH).await;
    let share = (procfs::cpu_sum(&pids)? - cpu).as_secs_f64() / clock.elapsed().as_secs_f64();
    let memory = pids
        .iter()
        .map(|pid| procfs::memory(*pid))
        .collect::<Result<Vec<_>>>()?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "sizes and counts far below 2^52"
    )]
    let mean = |of: fn(&procfs::Memory) -> u64| {
        memory.iter().map(of).sum::<u64>() as f64 / memory.len() as f64 / 1024.0
    };
    #[expect(clippy::cast_precision_loss, reason = "three servers")]
    let per_server = share * 100.0 / pids.len() as f64;
    let figures = Figures::from([
        ("rss_mib", mean(|m| m.rss_kib)),
        ("pss_mib", mean(|m| m.pss_kib)),
        ("cpu_percent_per_server", per_server),
    ]);
    found("idle".to_owned(), figures);
    Ok(())
}

/// Writes at the leader over 1, 64 and 256 connections.
pub(crate) async fn kv(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let (kind, leader) = (cluster.kind, leader(cluster).await?);
    for connections in [1, 64, 256] {
        let load = Load {
            target: cluster.client(leader),
            connections,
            time,
            pids: cluster.pids(),
        };
        // Each connection count writes other values, so that none is a repetition.
        let salt = u64::try_from(connections)? * 1_000_000_000;
        let figures = load::run(&load, move |n, out| {
            kind.put(out, &key(n), &value(salt + n))
        })
        .await?;
        found(format!("kv.put.{connections}"), figures);
    }
    Ok(())
}

/// Reads over 64 connections in every mode, at the leader and at a follower; and over one connection.
pub(crate) async fn get(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let (kind, leader) = (cluster.kind, leader(cluster).await?);
    let follower = (leader + 1) % 3;
    fill(cluster, leader, KEYS, 64).await?;
    for (place, server) in [("leader", leader), ("follower", follower)] {
        for mode in Mode::ALL {
            if mode == Mode::Default && !kind.has_catalog() {
                // etcd's default is its consistent mode.
                continue;
            }
            let load = Load {
                target: cluster.client(server),
                connections: 64,
                time,
                pids: cluster.pids(),
            };
            let figures = load::run(&load, move |n, out| {
                kind.get(out, &key(n.wrapping_mul(7_919)), mode)
            })
            .await?;
            found(format!("kv.get.{}.64.{place}", mode.name()), figures);
        }
    }
    let load = Load {
        target: cluster.client(leader),
        connections: 1,
        time,
        pids: cluster.pids(),
    };
    let figures = load::run(&load, move |n, out| {
        kind.get(out, &key(n.wrapping_mul(7_919)), Mode::Default)
    })
    .await?;
    found("kv.get.default.1.leader".to_owned(), figures);
    Ok(())
}

/// Writes keys `bench/00000` … below `count` once each, over that many connections, as fast as the system takes them.
pub(crate) async fn fill(
    cluster: &Cluster,
    server: usize,
    count: u64,
    connections: u64,
) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..connections {
        let (kind, target) = (cluster.kind, cluster.client(server));
        tasks.spawn(async move {
            let mut connection = http::Connection::open(target).await?;
            let mut request = Vec::new();
            for n in (first..count).step_by(usize::try_from(connections)?) {
                kind.put(&mut request, &format!("bench/{n:05}"), &value(n));
                let status = connection.exchange(&request).await?;
                if status != 200 {
                    bail!("write of key {n}: status {status}");
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// `/v1/health/service` of 10 and 100 instances at the leader, over 8 connections.
pub(crate) async fn health(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let leader = leader(cluster).await?;
    for instances in [10, 100] {
        let target = format!("/v1/health/service/svc{instances}");
        register(cluster, leader, instances).await?;
        let (status, body) = http::once(cluster.client(leader), "GET", &target, b"").await?;
        let seen = String::from_utf8_lossy(&body)
            .matches("\"CheckID\"")
            .count();
        if status != 200 || seen != instances {
            bail!("{target}: status {status}, {seen} checks of {instances}");
        }
        let load = Load {
            target: cluster.client(leader),
            connections: 8,
            time,
            pids: cluster.pids(),
        };
        let mut figures =
            load::run(&load, move |_, out| http::request(out, "GET", &target, b"")).await?;
        #[expect(clippy::cast_precision_loss, reason = "some 70 kB")]
        figures.insert("body_bytes", body.len() as f64);
        found(format!("health.{instances}"), figures);
    }
    Ok(())
}

/// A and SRV questions for a service of 10 instances at the leader, 32 under way.
pub(crate) async fn dns(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let leader = leader(cluster).await?;
    register(cluster, leader, 10).await?;
    for (name, kind) in [("dns.a", A), ("dns.srv", SRV)] {
        let load = Load {
            target: cluster.dns(leader),
            connections: 32,
            time,
            pids: cluster.pids(),
        };
        let figures = dnsload::run(&load, dnsload::question("svc10.service.consul", kind)).await?;
        found(name.to_owned(), figures);
    }
    Ok(())
}

/// Registers a service `svcN` of N instances, each on a node of its own with one passing check.
pub(crate) async fn register(cluster: &Cluster, server: usize, instances: usize) -> Result<()> {
    for n in 0..instances {
        put_instance(cluster, server, instances, n, 0).await?;
    }
    Ok(())
}

/// Changes one instance of the service `svcN`: its check says something else.
pub(crate) async fn touch(
    cluster: &Cluster,
    server: usize,
    instances: usize,
    change: u32,
) -> Result<()> {
    put_instance(cluster, server, instances, 0, change).await
}

async fn put_instance(
    cluster: &Cluster,
    server: usize,
    instances: usize,
    n: usize,
    change: u32,
) -> Result<()> {
    let address = format!("10.{}.{}.{}", instances % 250, n / 250, n % 250 + 1);
    let body = format!(
        r#"{{"Node":"bench-{instances}-{n}","Address":"{address}","TaggedAddresses":{{"lan":"{address}","wan":"{address}"}},
        "NodeMeta":{{"rack":"r{}"}},
        "Service":{{"ID":"svc{instances}-{n}","Service":"svc{instances}","Tags":["v1","http"],"Address":"{address}","Port":8080,"Meta":{{"version":"1"}}}},
        "Check":{{"CheckID":"service:svc{instances}-{n}","Name":"alive","Status":"passing","ServiceID":"svc{instances}-{n}","Output":"HTTP GET: 200 OK, {change}"}}}}"#,
        n % 4
    );
    register_with(cluster, server, &body).await
}

/// Registers the service `oneN` with one instance on a node of its own.
pub(crate) async fn register_one(cluster: &Cluster, server: usize, n: usize) -> Result<()> {
    let body = format!(
        r#"{{"Node":"one-{n}","Address":"10.9.{}.{}","Service":{{"ID":"one{n}","Service":"one{n}","Port":80}}}}"#,
        n / 250,
        n % 250 + 1
    );
    register_with(cluster, server, &body).await
}

async fn register_with(cluster: &Cluster, server: usize, body: &str) -> Result<()> {
    let (status, answer) = http::once(
        cluster.client(server),
        "PUT",
        "/v1/catalog/register",
        body.as_bytes(),
    )
    .await?;
    if status != 200 {
        bail!(
            "catalog/register: status {status}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    Ok(())
}

pub(crate) async fn leader(cluster: &Cluster) -> Result<usize> {
    cluster
        .leader()
        .await
        .context("no leader all servers agree on")
}

/// The control of every write row: three writers, each 4 KiB + fdatasync into a file written before, at once.
pub(crate) fn fsync(data: &Path, time: Duration) -> Result<Figures> {
    let writers: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn({
                let data = data.to_owned();
                move || sync_loop(&data, time)
            })
        })
        .collect();
    let mut micros = Vec::new();
    for writer in writers {
        micros.extend(writer.join().expect("a writer returns its error")?);
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let rate = micros.len() as f64 / time.as_secs_f64();
    Ok(Figures::from([
        ("rate_per_s", rate),
        ("p50_us", percentile(&mut micros, 0.5)),
        ("p99_us", percentile(&mut micros, 0.99)),
    ]))
}

fn sync_loop(data: &Path, time: Duration) -> Result<Vec<u32>> {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 1024;
    let mut file: File = tempfile::tempfile_in(data)?;
    file.write_all(&vec![0; BLOCK * BLOCKS])?;
    file.sync_all()?;
    let (mut micros, clock) = (Vec::new(), Stopwatch::start());
    while clock.elapsed() < time {
        if micros.len() % BLOCKS == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        let one = Stopwatch::start();
        file.write_all(&[1; BLOCK])?;
        rustix::fs::fdatasync(&file)?;
        micros.push(u32::try_from(one.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok(micros)
}
