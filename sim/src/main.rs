//! Prints what a simulated pool reaches, with its seed; `--results` appends it to a file of figures.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use weft_sim::scenario;

/// Figures of a pool in the simulated world.
#[derive(Parser)]
#[command(name = "weft-sim")]
struct Args {
    /// Agents in the pool.
    #[arg(long, default_value_t = 1_000)]
    agents: u64,
    /// What the run is a function of.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Joins and failures measured.
    #[arg(long, default_value_t = 50)]
    samples: usize,
    /// Minutes of the world under 2 % loss, and as many with ill members.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Only the figure about ill members.
    #[arg(long)]
    only_ill: bool,
    /// A file to append the figures to, in Markdown.
    #[arg(long)]
    results: Option<PathBuf>,
    /// The title of the section appended.
    #[arg(long, default_value = "Simulated pools")]
    title: String,
}

const COLUMNS: &str = "| row | figures | goal |\n|---|---|---|\n";

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut rows = String::new();
    if !args.only_ill {
        joins_and_failures(&args, &mut rows)?;
        loss(&args, &mut rows);
    }
    gray(&args, &mut rows);
    if let Some(path) = &args.results {
        let section = format!(
            "\n## {}\n\n`weft-sim --agents {} --seed {} --samples {} --minutes {}`\n\n{COLUMNS}{rows}",
            args.title, args.agents, args.seed, args.samples, args.minutes
        );
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .context("the file of figures")?;
        file.write_all(section.as_bytes())
            .context("the file of figures")?;
    }
    Ok(())
}

fn row(rows: &mut String, name: &str, figures: &str, goal: &str) {
    if rows.is_empty() {
        print!("{COLUMNS}");
    }
    let line = format!("| {name} | {figures} | {goal} |");
    println!("{line}");
    let _ = writeln!(rows, "{line}");
}

fn spread(mut of: Vec<Duration>) -> String {
    of.sort();
    let at = |share| scenario::percentile(&of, share).as_secs_f64();
    format!("p50 {:.2} s, p99 {:.2} s", at(0.5), at(0.99))
}

fn joins_and_failures(args: &Args, rows: &mut String) -> anyhow::Result<()> {
    let mut world = scenario::pool(args.seed, args.agents, |_| {});
    let idle = scenario::weigh(&mut world, Duration::from_secs(120));
    row(
        rows,
        "idle traffic of an agent",
        &format!(
            "sent {:.0} B/s, received {:.0} B/s, both {:.2} KB/s",
            idle.sent,
            idle.received,
            (idle.sent + idle.received) / 1_000.0
        ),
        "≤ 3 KB/s",
    );
    let (mut joins, mut known, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.samples {
        joins.push(scenario::join(&mut world, |_| {}).context("a join that ended")?);
        let victim = scenario::anybody(&mut world);
        let times = scenario::fail(&mut world, victim).context("a failure that was noticed")?;
        last.extend(times.last());
        known.extend(times);
        world.run(Duration::from_secs(5));
        scenario::forget_seen(&mut world);
    }
    row(
        rows,
        "join until all see it and it sees all",
        &spread(joins),
        "p99 ≤ 3 s",
    );
    row(
        rows,
        "crash until the last agent says failed",
        &spread(last),
        "p50 ≤ 4 s, p99 ≤ 10 s",
    );
    row(rows, "crash until an agent says failed", &spread(known), "");
    Ok(())
}

fn loss(args: &Args, rows: &mut String) {
    let mut world = scenario::pool(args.seed, args.agents, |_| {});
    world.network.loss = 0.02;
    let traffic = scenario::weigh(&mut world, Duration::from_secs(60 * args.minutes));
    let failed = scenario::called_failed(&world, &BTreeSet::new()).len();
    let hours = args.agents as f64 * args.minutes as f64 / 60.0;
    row(
        rows,
        "false failures, 2 % loss",
        &format!("{failed} in {hours:.0} node-hours"),
        "≤ 1 in 1,000",
    );
    row(
        rows,
        "traffic of an agent, 2 % loss",
        &format!(
            "both {:.2} KB/s",
            (traffic.sent + traffic.received) / 1_000.0
        ),
        "≤ 3 KB/s",
    );
}

fn gray(args: &Args, rows: &mut String) {
    let mut world = scenario::pool(args.seed, args.agents, |_| {});
    world.network.loss = 0.02;
    let gray = scenario::gray(&mut world, Duration::from_secs(60 * args.minutes));
    row(
        rows,
        "false failures of healthy agents, one in 20 ill (starved, or 30 % loss), 2 % loss",
        &format!(
            "{} in {:.0} node-hours (of ill ones {})",
            gray.healthy_failed, gray.node_hours, gray.ill_failed
        ),
        "≤ 1 in 1,000",
    );
}
