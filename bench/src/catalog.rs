//! The rows of registrations and of many instances.
//!
//! Owns: registering by the agent's API and by the catalog's, reads at leader and follower, and what
//! 10,000 and 100,000 instances take. Never: runs on servers that another row needs empty.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::figures::Figures;
use crate::http::{self, Connection};
use crate::load::{self, Load, Tally};
use crate::procfs;
use crate::rows::{self, Found};
use crate::stopwatch::Stopwatch;

/// Instances that the registration rows change in turn: more than are under way at once.
const INSTANCES: u64 = 2_000;
const VISIBLE_LIMIT: Duration = Duration::from_secs(15);
/// Instances of each service in the rows of many.
const PER_SERVICE: u64 = 50;
const MANY_CONNECTIONS: u64 = 32;

/// Registrations at the leader: by the catalog over 64 connections, by the agent until the catalog shows it.
pub(crate) async fn register(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let target = cluster.client(rows::leader(cluster).await?);
    let load = Load {
        target,
        connections: 64,
        time,
        pids: cluster.pids(),
    };
    let figures = load::run(&load, |n, out| {
        http::request(
            out,
            "PUT",
            "/v1/catalog/register",
            instance(n % INSTANCES, n).as_bytes(),
        )
    })
    .await?;
    found("register.catalog.64".to_owned(), figures);

    let (tally, connections) = (Rc::new(Tally::default()), 8);
    let local = tokio::task::LocalSet::new();
    let failed = Rc::new(Cell::new(None));
    for _ in 0..connections {
        let (tally, failed) = (Rc::clone(&tally), Rc::clone(&failed));
        local.spawn_local(async move {
            if let Err(error) = register_until_visible(target, &tally).await {
                failed.set(Some(error));
            }
        });
    }
    let load = Load {
        connections,
        ..load
    };
    let figures = load::measure(local, &tally, &load).await?;
    if let Some(error) = failed.take() {
        return Err(error);
    }
    found(format!("register.agent.{connections}"), figures);
    Ok(())
}

/// Registers with the agent, then asks the catalog until it shows the new port: that is one operation.
async fn register_until_visible(target: SocketAddr, tally: &Tally) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    let mut request = Vec::new();
    while !tally.over.get() {
        let n = tally.number();
        let (id, port) = (n % INSTANCES, 1_024 + n % 60_000);
        let body = format!(r#"{{"ID":"ag-{id}","Name":"ag-{id}","Tags":["v1"],"Port":{port}}}"#);
        let clock = Stopwatch::start();
        http::request(
            &mut request,
            "PUT",
            "/v1/agent/service/register",
            body.as_bytes(),
        );
        let status = connection.exchange(&request).await?;
        if status != 200 {
            bail!("agent/service/register: status {status}");
        }
        http::request(
            &mut request,
            "GET",
            &format!("/v1/catalog/service/ag-{id}?stale"),
            b"",
        );
        let wanted = format!("\"ServicePort\":{port},");
        loop {
            let status = connection.exchange(&request).await?;
            let body = String::from_utf8_lossy(connection.body());
            // Consul may be told to answer in lines; ours and its default put no space there.
            if status == 200 && body.contains(&wanted) {
                break;
            }
            if clock.elapsed() > VISIBLE_LIMIT {
                bail!("ag-{id} was not in the catalog after 15 s");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tally.book(clock.elapsed(), true);
    }
    Ok(())
}

/// `/v1/health/service` of 100 instances at a follower, over 8 connections.
pub(crate) async fn health_at_follower(
    cluster: &Cluster,
    time: Duration,
    found: Found<'_>,
) -> Result<()> {
    let leader = rows::leader(cluster).await?;
    rows::register(cluster, leader, 100).await?;
    let load = Load {
        target: cluster.client((leader + 1) % 3),
        connections: 8,
        time,
        pids: cluster.pids(),
    };
    let figures = load::run(&load, |_, out| {
        http::request(out, "GET", "/v1/health/service/svc100", b"")
    })
    .await?;
    found("health.100.follower".to_owned(), figures);
    Ok(())
}

/// Loads that many instances, 50 a service, and says how long it took and what a server then holds.
pub(crate) async fn load_many(cluster: &Cluster, instances: u64, found: Found<'_>) -> Result<()> {
    let target = cluster.client(rows::leader(cluster).await?);
    let before = rss(cluster)?;
    let clock = Stopwatch::start();
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..MANY_CONNECTIONS {
        tasks.spawn(async move {
            let mut connection = Connection::open(target).await?;
            let mut request = Vec::new();
            for n in (first..instances).step_by(usize::try_from(MANY_CONNECTIONS)?) {
                http::request(
                    &mut request,
                    "PUT",
                    "/v1/catalog/register",
                    instance(n, 0).as_bytes(),
                );
                let status = connection.exchange(&request).await?;
                if status != 200 {
                    bail!("instance {n}: status {status}");
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let took = clock.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (status, body) = http::once(
        target,
        "GET",
        &format!("/v1/health/service/many-{}", (instances - 1) / PER_SERVICE),
        b"",
    )
    .await?;
    let seen = String::from_utf8_lossy(&body)
        .matches("\"ServiceName\"")
        .count();
    if status != 200 || seen != usize::try_from(PER_SERVICE)? {
        bail!("the last service has {seen} checks of {PER_SERVICE}, status {status}");
    }
    let now = rss(cluster)?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let figures = Figures::from([
        ("load_s", took.as_secs_f64()),
        ("rate_per_s", instances as f64 / took.as_secs_f64()),
        ("rss_mib", now),
        ("rss_grown_mib", now - before),
    ]);
    found(format!("load.{instances}"), figures);
    Ok(())
}

fn rss(cluster: &Cluster) -> Result<f64> {
    let mut all = Vec::new();
    for pid in cluster.pids() {
        #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
        all.push(procfs::memory(pid)?.rss_kib as f64 / 1024.0);
    }
    all.into_iter().reduce(f64::max).context("running servers")
}

/// Instance `n` on a node of its own, with one check. Another `salt` is another port: a change.
fn instance(n: u64, salt: u64) -> String {
    let service = n / PER_SERVICE;
    let address = format!("10.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, n % 250 + 1);
    let port = 1_024 + salt % 60_000;
    format!(
        r#"{{"Node":"many-{n}","Address":"{address}","NodeMeta":{{"rack":"r{}"}},
        "Service":{{"ID":"many-{service}-{n}","Service":"many-{service}","Tags":["v1","http"],"Address":"{address}","Port":{port},"Meta":{{"version":"1"}}}},
        "Check":{{"CheckID":"service:many-{service}-{n}","Name":"alive","Status":"passing","ServiceID":"many-{service}-{n}","Output":"HTTP GET: 200 OK"}}}}"#,
        n % 4
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_json_and_differ() {
        for (n, salt) in [(0, 0), (99_999, 70_000)] {
            let value: serde_json::Value = serde_json::from_str(&instance(n, salt)).unwrap();
            assert_eq!(value["Node"], format!("many-{n}"));
        }
        assert_ne!(instance(1, 0), instance(1, 1));
        assert_ne!(instance(1, 0), instance(2, 0));
    }
}
