//! The rows of watchers: how fast all of them hear of a change, what each costs, and what waiting costs others.
//!
//! Owns: connections that wait on a blocking query, and counting their answers.
//! Never: keeps a body; it is read and thrown away, so that the generator is not what is measured.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::cluster::Cluster;
use crate::figures::{Figures, percentile};
use crate::http;
use crate::load::{self, Load};
use crate::procfs;
use crate::rows::{self, Found};
use crate::stopwatch::Stopwatch;

const SCRATCH_BYTES: usize = 256 << 10;
/// Connections opened at once.
const OPENING: usize = 64;
/// All watchers must have been answered by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Watchers are given this long to be all registered before something changes.
const SETTLE: Duration = Duration::from_secs(2);
/// Changes of each watch row.
const CHANGES: u32 = 5;
/// The row of many small watches.
const MANY_WATCHES: usize = 10_000;
const MANY_SERVICES: usize = 2_000;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// What the watchers of a row learned.
#[derive(Default)]
struct Board {
    /// Answers since the last change.
    answered: Cell<usize>,
    /// When, after the change, each came.
    micros: RefCell<Vec<u32>>,
    changed: Cell<Option<Stopwatch>>,
    index: Cell<u64>,
    failed: Cell<u64>,
}

/// 1,000 and 5,000 watchers of a service of 10 and of 100 instances at the leader.
pub(crate) async fn watchers(cluster: &Cluster, found: Found<'_>) -> Result<()> {
    for instances in [10, 100] {
        for count in [1_000, 5_000] {
            let figures = one(cluster, count, instances).await?;
            found(format!("watch.{count}.{instances}"), figures);
        }
    }
    Ok(())
}

async fn one(cluster: &Cluster, count: usize, instances: usize) -> Result<Figures> {
    let leader = rows::leader(cluster).await?;
    let term = cluster.term(leader).await?;
    rows::register(cluster, leader, instances).await?;
    let target = cluster.client(leader);
    let path = format!("/v1/health/service/svc{instances}");
    let board = Rc::new(Board::default());
    board.index.set(index_of(target, &path).await?);
    let before = largest_rss(cluster)?;
    let local = LocalSet::new();
    let paths = vec![path; count];
    let mut spread = Vec::new();
    local
        .run_until(async {
            start_watchers(target, paths, &board).await?;
            tokio::time::sleep(SETTLE).await;
            let waiting = largest_rss(cluster)?;
            let mut last = Vec::new();
            let cpu = procfs::cpu_sum(&cluster.pids())?;
            for change in 1..=CHANGES {
                board.answered.set(0);
                board.changed.set(Some(Stopwatch::start()));
                rows::touch(cluster, leader, instances, change).await?;
                let took = all_answered(&board, count).await?;
                last.push(u32::try_from(took.as_micros())?);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let cpu = procfs::cpu_sum(&cluster.pids())? - cpu;
            spread.push((waiting, last, cpu));
            anyhow::Ok(())
        })
        .await?;
    let (waiting, mut last, cpu) = spread.pop().context("the row ran")?;
    let mut micros = board.micros.take();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let figures = Figures::from([
        ("p50_us", percentile(&mut micros, 0.5)),
        ("p99_us", percentile(&mut micros, 0.99)),
        ("all_answered_ms", percentile(&mut last, 0.5) / 1e3),
        (
            "cpu_us_per_op",
            cpu.as_secs_f64() * 1e6 / (count as f64 * f64::from(CHANGES)),
        ),
        (
            "kib_per_watcher",
            waiting.saturating_sub(before) as f64 / count as f64,
        ),
        ("rss_mib", largest_rss(cluster)? as f64 / 1024.0),
        ("failed", board.failed.get() as f64),
        (
            "terms_passed",
            cluster.term(rows::leader(cluster).await?).await? as f64 - term as f64,
        ),
    ]);
    drop(local);
    Ok(figures)
}

/// 10,000 blocking queries over 2,000 services, and one hot key: what they cost idle, and what the writes feel.
pub(crate) async fn many(cluster: &Cluster, time: Duration, found: Found<'_>) -> Result<()> {
    let leader = rows::leader(cluster).await?;
    let target = cluster.client(leader);
    for service in 0..MANY_SERVICES {
        rows::register_one(cluster, leader, service).await?;
    }
    let write = || hot_key(cluster, leader, time);
    let alone = write().await?;
    let board = Rc::new(Board::default());
    let newest = index_of(target, "/v1/catalog/services").await?;
    board.index.set(newest);
    let paths = (0..MANY_WATCHES)
        .map(|n| format!("/v1/health/service/one{}", n % MANY_SERVICES))
        .collect();
    let local = LocalSet::new();
    let figures = local
        .run_until(async {
            start_watchers(target, paths, &board).await?;
            tokio::time::sleep(SETTLE).await;
            let answered = board.answered.get();
            let (cpu, clock) = (procfs::cpu_sum(&cluster.pids())?, Stopwatch::start());
            tokio::time::sleep(Duration::from_secs(5)).await;
            let idle = (procfs::cpu_sum(&cluster.pids())? - cpu).as_secs_f64()
                / clock.elapsed().as_secs_f64();
            let watched = write().await?;
            let spurious = board.answered.get() - answered;
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let figures = Figures::from([
                (
                    "cpu_percent_per_server",
                    idle * 100.0 / cluster.pids().len() as f64,
                ),
                ("p99_us", watched["p99_us"]),
                ("p99_alone_us", alone["p99_us"]),
                ("rate_per_s", watched["rate_per_s"]),
                ("spurious_wakes", spurious as f64),
                ("rss_mib", largest_rss(cluster)? as f64 / 1024.0),
                ("failed", board.failed.get() as f64),
            ]);
            anyhow::Ok(figures)
        })
        .await?;
    drop(local);
    found(format!("watch.many.{MANY_WATCHES}"), figures);
    Ok(())
}

/// One client writing one key, again and again.
async fn hot_key(cluster: &Cluster, leader: usize, time: Duration) -> Result<Figures> {
    let kind = cluster.kind;
    let load = Load {
        target: cluster.client(leader),
        connections: 4,
        time,
        pids: cluster.pids(),
    };
    load::run(&load, move |n, out| {
        kind.put(out, "bench/hot", &rows::value(n))
    })
    .await
}

/// Opens a connection for each path and lets it wait, again and again.
async fn start_watchers(target: SocketAddr, paths: Vec<String>, board: &Rc<Board>) -> Result<()> {
    let count = paths.len();
    let mut opened = 0;
    let mut paths = paths.into_iter();
    while opened < count {
        let batch: Vec<String> = paths.by_ref().take(OPENING).collect();
        for path in &batch {
            let mut stream = TcpStream::connect(target).await.context("a watcher")?;
            stream.set_nodelay(true)?;
            ask(&mut stream, path, board.index.get()).await?;
            let (board, path) = (Rc::clone(board), path.clone());
            tokio::task::spawn_local(async move {
                if watch(stream, &path, &board).await.is_err() {
                    board.failed.set(board.failed.get() + 1);
                }
            });
        }
        opened += batch.len();
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn watch(mut stream: TcpStream, path: &str, board: &Board) -> io::Result<()> {
    loop {
        let index = answer(&mut stream).await?;
        if let Some(changed) = board.changed.get() {
            let took = u32::try_from(changed.elapsed().as_micros()).unwrap_or(u32::MAX);
            board.micros.borrow_mut().push(took);
        }
        board.answered.set(board.answered.get() + 1);
        ask(&mut stream, path, index).await?;
    }
}

async fn ask(stream: &mut TcpStream, path: &str, index: u64) -> io::Result<()> {
    let request = format!("GET {path}?index={index}&wait=600s HTTP/1.1\r\nHost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).await
}

/// Reads one answer to its end and tells its index.
async fn answer(stream: &mut TcpStream) -> io::Result<u64> {
    let mut state: Option<(u64, End)> = None;
    loop {
        stream.readable().await?;
        let step = SCRATCH.with_borrow_mut(|scratch| {
            let read = stream.try_read(scratch)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&scratch[..read], &mut state)
        });
        match step {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {}
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause),
        }
    }
}

/// How an answer's end is told.
enum End {
    After(usize),
    LastChunk,
}

/// Takes what was read; the index once the answer is whole. The head comes in one piece: it is small.
fn take(read: &[u8], state: &mut Option<(u64, End)>) -> io::Result<Option<u64>> {
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut body = read;
    if state.is_none() {
        let end = http::head_end(read).ok_or_else(|| bad("a head in pieces"))?;
        let head = &read[..end];
        if head.get(9..12) != Some(b"200") {
            return Err(bad("not 200"));
        }
        let index = number(head, b"x-consul-index:").ok_or_else(|| bad("no index"))?;
        let length = number(head, b"content-length:").and_then(|n| usize::try_from(n).ok());
        *state = Some((index, length.map_or(End::LastChunk, End::After)));
        body = &read[end..];
    }
    let Some((index, end)) = state else {
        return Ok(None);
    };
    let over = match end {
        End::After(left) => {
            *left = left.saturating_sub(body.len());
            *left == 0
        }
        // No JSON holds this; a piece that begins within it does not occur on loopback.
        End::LastChunk => body.ends_with(b"0\r\n\r\n"),
    };
    Ok(over.then_some(*index))
}

fn number(head: &[u8], name: &[u8]) -> Option<u64> {
    std::str::from_utf8(http::header(head, name)?)
        .ok()?
        .trim()
        .parse()
        .ok()
}

async fn index_of(target: SocketAddr, path: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(answer(&mut stream).await?)
}

async fn all_answered(board: &Board, count: usize) -> Result<Duration> {
    let clock = board.changed.get().context("a change")?;
    while board.answered.get() < count {
        if clock.elapsed() > ANSWER_LIMIT {
            bail!(
                "{} of {count} watchers were answered within 60 s, {} failed",
                board.answered.get(),
                board.failed.get()
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(clock.elapsed())
}

fn largest_rss(cluster: &Cluster) -> Result<u64> {
    let mut largest = 0;
    for pid in cluster.pids() {
        largest = largest.max(procfs::memory(pid)?.rss_kib);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let mut state = None;
        let first = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 4\r\n\r\nab";
        assert_eq!(take(first, &mut state).unwrap(), None);
        assert_eq!(take(b"cd", &mut state).unwrap(), Some(7));
        let mut state = None;
        let chunked = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 8\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n";
        assert_eq!(take(chunked, &mut state).unwrap(), None);
        assert_eq!(take(b"0\r\n\r\n", &mut state).unwrap(), Some(8));
    }

    #[test]
    fn an_error_is_one() {
        assert!(take(b"HTTP/1.1 429 Too Many\r\n\r\n", &mut None).is_err());
        assert!(take(b"HTTP/1.1 200 OK\r\n\r\n", &mut None).is_err());
    }
}
