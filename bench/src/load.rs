//! The closed-loop load generator: N connections, each with one request under way, for a bounded time.
//!
//! Owns: counting, latencies and the CPU time of the servers meanwhile. Never: more than one thread.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::figures::{Figures, percentile};
use crate::http::Connection;
use crate::procfs;
use crate::stopwatch::Stopwatch;

/// Latencies kept of one row: 4 MiB; a row is over long before.
const LATENCIES_MAX: usize = 1 << 20;
const WARM_UP: Duration = Duration::from_millis(700);
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// What a row asks of the generator.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) target: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// The processes whose CPU time is charged to the operations.
    pub(crate) pids: Vec<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) measuring: Cell<bool>,
    pub(crate) over: Cell<bool>,
    done: Cell<u64>,
    failed: Cell<u64>,
    next: Cell<u64>,
    /// Status of the last refused request, 0 while there was none.
    refused: Cell<u16>,
    micros: RefCell<Vec<u32>>,
}

impl Tally {
    /// A number of its own for each request.
    pub(crate) fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Books one finished operation.
    pub(crate) fn book(&self, took: Duration, ok: bool) {
        if !self.measuring.get() {
            return;
        }
        if !ok {
            return self.failed.set(self.failed.get() + 1);
        }
        self.done.set(self.done.get() + 1);
        let mut micros = self.micros.borrow_mut();
        if micros.len() < LATENCIES_MAX {
            micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }
}

/// Runs HTTP requests made by `make` (given the request's number). A status of 300 or more is a failure.
pub(crate) async fn run(
    load: &Load,
    make: impl Fn(u64, &mut Vec<u8>) + 'static,
) -> Result<Figures> {
    let (tally, make) = (Rc::new(Tally::default()), Rc::new(make));
    let local = tokio::task::LocalSet::new();
    for _ in 0..load.connections {
        let (tally, make, target) = (Rc::clone(&tally), Rc::clone(&make), load.target);
        local.spawn_local(async move { drive(target, &tally, &*make).await });
    }
    measure(local, &tally, load).await
}

/// Lets the tasks of `local` work: warm-up, then the measured time; then turns the tally into figures.
pub(crate) async fn measure(
    local: tokio::task::LocalSet,
    tally: &Tally,
    load: &Load,
) -> Result<Figures> {
    let figures = local
        .run_until(async {
            tokio::time::sleep(WARM_UP).await;
            let (cpu, own) = (
                procfs::cpu_sum(&load.pids)?,
                procfs::cpu(std::process::id())?,
            );
            let clock = Stopwatch::start();
            tally.measuring.set(true);
            tokio::time::sleep(load.time).await;
            tally.measuring.set(false);
            let took = clock.elapsed();
            let (cpu, own) = (
                procfs::cpu_sum(&load.pids)? - cpu,
                procfs::cpu(std::process::id())? - own,
            );
            tally.over.set(true);
            figures(tally, took, cpu, own, &load.pids)
        })
        .await;
    drop(local);
    figures
}

fn figures(
    tally: &Tally,
    took: Duration,
    cpu: Duration,
    own: Duration,
    pids: &[u32],
) -> Result<Figures> {
    let (done, failed) = (tally.done.get(), tally.failed.get());
    if done == 0 {
        let status = tally.refused.get();
        bail!("no operation succeeded, {failed} failed, the last with status {status}");
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (done, failed) = (done as f64, failed as f64);
    let mut micros = tally.micros.borrow_mut();
    let mut rss: Vec<f64> = Vec::new();
    for pid in pids {
        #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
        rss.push(procfs::memory(*pid)?.rss_kib as f64 / 1024.0);
    }
    Ok(Figures::from([
        ("rate_per_s", done / took.as_secs_f64()),
        ("p50_us", percentile(&mut micros, 0.5)),
        ("p99_us", percentile(&mut micros, 0.99)),
        ("cpu_us_per_op", cpu.as_secs_f64() * 1e6 / done),
        ("generator_cpu_us_per_op", own.as_secs_f64() * 1e6 / done),
        ("rss_mib", rss.into_iter().fold(0.0, f64::max)),
        ("failed", failed),
    ]))
}

async fn drive(target: SocketAddr, tally: &Tally, make: &dyn Fn(u64, &mut Vec<u8>)) {
    let mut request = Vec::new();
    while !tally.over.get() {
        let Ok(mut connection) = Connection::open(target).await else {
            tally.book(Duration::ZERO, false);
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !tally.over.get() {
            make(tally.number(), &mut request);
            let clock = Stopwatch::start();
            let answer = tokio::time::timeout(ANSWER_LIMIT, connection.exchange(&request)).await;
            let ok = matches!(answer, Ok(Ok(status)) if status < 300);
            tally.book(clock.elapsed(), ok);
            if let Ok(Ok(status)) = answer
                && !ok
            {
                tally.refused.set(status);
            }
            if !matches!(answer, Ok(Ok(_))) {
                break;
            }
        }
    }
}
