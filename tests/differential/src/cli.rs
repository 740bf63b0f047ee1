//! The command line: which binaries, which families, which form of report.
//!
//! Exit codes: 0 all equal or explained; 1 a mismatch, a family that broke off or an unused known difference; 2 the run
//! could not begin.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, ValueEnum};

use crate::compare::compare;
use crate::differences::{self, Difference, explain};
use crate::play::{Place, play};
use crate::report::{Counts, Mismatch, Report};
use crate::script::{self, Family, Story};
use crate::side::{Recipe, Side};
use crate::stopwatch::Stopwatch;

/// Sends the same requests to Consul 1.8.7 and to weft and compares the answers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The weft binary.
    #[arg(long, required_unless_present = "self_test")]
    weft: Option<PathBuf>,
    /// The Consul 1.8.7 binary [default: where tools/setup-peers.sh unpacks it].
    #[arg(long)]
    consul: Option<PathBuf>,
    /// Consul on both sides and no known differences: proves the normaliser. Must be 0 mismatches.
    #[arg(long = "self", conflicts_with = "weft")]
    self_test: bool,
    /// Families played at the same time, each on addresses of its own (two more for each).
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    jobs: u8,
    /// Ask agents that are no servers, on both sides, with a server behind each (on the address 256 further).
    #[arg(long)]
    through_client: bool,
    /// Also print what Consul answered to every step, for authors of cases and of weft.
    #[arg(long)]
    show: bool,
    /// Only the stories whose `family/story` contains this text (unused known differences are then no error).
    #[arg(long)]
    filter: Option<String>,
    /// Form of the report on stdout; progress goes to stderr.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Form,
    /// Loopback address of the Consul side, on the standard ports.
    #[arg(long, default_value = "127.0.0.11")]
    consul_addr: IpAddr,
    /// Loopback address of the weft side, on the standard ports.
    #[arg(long, default_value = "127.0.0.12")]
    weft_addr: IpAddr,
    /// Folder of the case files.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases"))]
    cases: PathBuf,
    /// The list of known differences.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/differences.conf"))]
    differences: PathBuf,
    /// What is known beside them with `--through-client`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/differences-client.conf"))]
    client_differences: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Text,
    Json,
}

pub(crate) fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(report) => {
            match arguments.output {
                Form::Text => print!("{}", report.to_text()),
                Form::Json => println!("{:#}", report.to_json()),
            }
            Ok(if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            })
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

fn run(arguments: &Arguments) -> Result<Report> {
    if !arguments.consul_addr.is_loopback()
        || !arguments.weft_addr.is_loopback()
        || arguments.consul_addr == arguments.weft_addr
    {
        bail!("--consul-addr and --weft-addr must be two loopback addresses");
    }
    let consul_binary = arguments.consul.clone().map_or_else(default_consul, Ok)?;
    let mut consul = Recipe::new("consul", &consul_binary, arguments.consul_addr)?;
    let mut weft = Recipe::new(
        "weft",
        arguments.weft.as_ref().unwrap_or(&consul_binary),
        arguments.weft_addr,
    )?;
    consul.through_client = arguments.through_client;
    weft.through_client = arguments.through_client;
    if consul.version != "1.8.7" {
        bail!(
            "{} is Consul {}; the cases are written against 1.8.7 (tools/setup-peers.sh)",
            consul.binary.display(),
            consul.version
        );
    }
    let known = match arguments.self_test {
        true => Vec::new(),
        false => {
            let mut known = known_in(&arguments.differences)?;
            if arguments.through_client {
                known.extend(known_in(&arguments.client_differences)?);
            }
            known
        }
    };
    let families = load(arguments)?;
    let (next, book) = (AtomicUsize::new(0), Mutex::new((known, Report::default())));
    std::thread::scope(|scope| {
        for worker in 0..arguments
            .jobs
            .min(u8::try_from(families.len()).unwrap_or(u8::MAX))
        {
            let (next, book, families) = (&next, &book, &families);
            let recipes = [consul.moved(2 * worker), weft.moved(2 * worker)];
            scope.spawn(move || {
                while let Some(family) = families.get(next.fetch_add(1, Ordering::Relaxed)) {
                    eprintln!("playing {} ({} stories)", family.name, family.stories.len());
                    if let Err(error) = run_family(family, &recipes, book, arguments.show) {
                        let mut book = book.lock().expect("no worker panics");
                        book.1
                            .broken
                            .push((family.name.clone(), format!("{error:#}")));
                    }
                }
            });
        }
    });
    let (known, mut report) = book.into_inner().expect("no worker panics");
    report.sort();
    // What is said of the only node does not explain what is said of two.
    let counts = |d: &&Difference| {
        let always = d.id.starts_with("client-") && !d.id.starts_with("client-maybe-");
        !arguments.through_client || always
    };
    if arguments.filter.is_none() {
        report.too_few = report.shortfall();
        report.unused = known
            .iter()
            .filter(|d| d.used == 0)
            .filter(counts)
            .map(|d| d.id.clone())
            .collect();
    }
    Ok(report)
}

fn known_in(path: &Path) -> Result<Vec<Difference>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    differences::parse(&text).with_context(|| path.display().to_string())
}

fn default_consul() -> Result<PathBuf> {
    let peers = match (std::env::var_os("PEERS"), std::env::var_os("HOME")) {
        (Some(peers), _) => PathBuf::from(peers),
        (None, Some(home)) => PathBuf::from(home).join(".cache/weft-peers"),
        (None, None) => bail!("neither PEERS nor HOME is set: say --consul PATH"),
    };
    Ok(peers.join("consul/usr/bin/consul"))
}

/// All families, in the order of their files, with the stories the filter asks for.
fn load(arguments: &Arguments) -> Result<Vec<Family>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&arguments.cases)
        .with_context(|| arguments.cases.display().to_string())?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "case"))
        .collect();
    paths.sort();
    let mut families = Vec::new();
    for path in paths {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut family = script::parse(&name, &std::fs::read_to_string(&path)?)?;
        if let Some(filter) = &arguments.filter {
            family
                .stories
                .retain(|story| format!("{name}/{}", story.name).contains(filter.as_str()));
        }
        if !family.stories.is_empty() {
            families.push(family);
        }
    }
    if families.is_empty() {
        bail!("no story to run below {}", arguments.cases.display());
    }
    Ok(families)
}

/// The list of known differences and the report, shared by the workers.
type Book = Mutex<(Vec<Difference>, Report)>;

fn run_family(family: &Family, recipes: &[Recipe; 2], book: &Book, show: bool) -> Result<()> {
    let clock = Stopwatch::start();
    let started = std::thread::scope(|scope| {
        let handles = recipes
            .each_ref()
            .map(|recipe| scope.spawn(move || Side::start(recipe, &family.config)));
        handles.map(|handle| handle.join().expect("starting a side does not panic"))
    });
    let [consul, weft] = started;
    let mut sides = [consul?, weft?];
    let mut counts = Counts {
        family: family.name.clone(),
        stories: family.stories.len(),
        ..Counts::default()
    };
    let mut ended = Ok(());
    for story in &family.stories {
        let outcomes = std::thread::scope(|scope| {
            let handles = sides
                .each_mut()
                .map(|side| scope.spawn(move || play(Place::of(side), Some(side), story)));
            handles.map(|handle| handle.join().expect("playing a story does not panic"))
        });
        let mut book = book.lock().expect("no worker panics");
        let (known, report) = &mut *book;
        judge(family, story, &outcomes, known, &mut counts, report);
        if show {
            print_outcomes(family, story, &outcomes[0]);
        }
        if let Some(side) = sides
            .iter_mut()
            .find_map(|side| (!side.alive()).then_some(side))
        {
            ended = Err(anyhow!(
                "{} ended during `{}`:\n{}",
                side.recipe.label,
                story.name,
                side.log_tail()
            ));
            break;
        }
    }
    counts.seconds = clock.elapsed().as_secs_f64();
    book.lock().expect("no worker panics").1.counts.push(counts);
    ended
}

fn print_outcomes(family: &Family, story: &Story, outcomes: &[serde_json::Value]) {
    println!("== {} / {}", family.name, story.name);
    for (step, outcome) in story.steps.iter().zip(outcomes) {
        println!("{}\n    {outcome}", step.text);
    }
}

/// Compares the outcomes of one story and books every difference as known or as a mismatch.
pub(crate) fn judge(
    family: &Family,
    story: &Story,
    [consul, weft]: &[Vec<serde_json::Value>; 2],
    known: &mut [Difference],
    counts: &mut Counts,
    report: &mut Report,
) {
    for (step, (ours, theirs)) in story.steps.iter().zip(consul.iter().zip(weft)) {
        counts.steps += 1;
        report.distinct.count(step);
        let mut deltas = compare(ours, theirs);
        // A step neither side could play proves nothing.
        if deltas.is_empty() && (ours.get("failed").is_some() || ours.get("until").is_some()) {
            deltas.push(crate::compare::Delta {
                path: "both failed".to_owned(),
                consul: ours.to_string(),
                weft: theirs.to_string(),
            });
        }
        let found = deltas.len();
        deltas.retain(|delta| explain(known, &step.text, delta).is_none());
        counts.known += found - deltas.len();
        if !deltas.is_empty() {
            counts.mismatches += 1;
            let (family, story) = (family.name.clone(), story.name.clone());
            report.mismatches.push(Mismatch {
                family,
                story,
                line: step.line,
                step: step.text.clone(),
                deltas,
            });
        }
    }
}
