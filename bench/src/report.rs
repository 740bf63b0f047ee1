//! The table, the JSON file and the section of `RESULTS.md`.
//!
//! Owns: which figures a row shows and the ratio to the first peer. Never: measures or leaves a failed row out.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::figures::{Sample, median, over_rounds};

/// What was run: told once for the table and the files.
#[derive(Debug)]
pub(crate) struct Run {
    /// UTC, as `date` prints it: `2026-11-23T09:06:20Z`.
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    pub(crate) samples: Vec<Sample>,
    /// Rows that could not be measured: (row, system, why).
    pub(crate) failures: Vec<(String, &'static str, String)>,
}

/// Columns: heading, figure, digits after the point.
const COLUMNS: [(&str, &str, usize); 28] = [
    ("rate/s", "rate_per_s", 0),
    ("p50 µs", "p50_us", 0),
    ("p99 µs", "p99_us", 0),
    ("CPU µs/op", "cpu_us_per_op", 1),
    ("RSS MiB", "rss_mib", 1),
    ("PSS MiB", "pss_mib", 1),
    ("idle CPU %", "cpu_percent_per_server", 2),
    ("first write ms", "first_write_ms", 0),
    ("first read ms", "first_stale_read_ms", 0),
    ("start CPU ms", "cpu_ms", 0),
    ("gap p50 ms", "gap_p50_ms", 0),
    ("gap max ms", "gap_max_ms", 0),
    ("acked", "accepted", 0),
    ("failed", "failed", 0),
    ("lost", "lost", 0),
    ("bytes", "body_bytes", 0),
    ("all ms", "all_answered_ms", 0),
    ("KiB/watcher", "kib_per_watcher", 1),
    ("elections", "terms_passed", 0),
    ("p99 alone µs", "p99_alone_us", 0),
    ("spurious", "spurious_wakes", 0),
    ("load s", "load_s", 1),
    ("RSS grown MiB", "rss_grown_mib", 1),
    ("minutes", "minutes", 0),
    ("acked", "acknowledged", 0),
    ("unknown", "unknown", 0),
    ("snapshots", "snapshots_fewest", 0),
    ("RSS after MiB", "rss_after_mib", 1),
];

/// The figure by which a row is compared, and whether less of it is better.
const RATIOS: [(&str, &str, bool); 8] = [
    ("CPU", "cpu_us_per_op", true),
    ("rate", "rate_per_s", false),
    ("gap", "gap_p50_ms", true),
    ("read", "first_stale_read_ms", true),
    ("write", "first_write_ms", true),
    ("RSS", "rss_mib", true),
    ("all", "all_answered_ms", true),
    ("load", "load_s", true),
];

impl Run {
    /// A Markdown section: one line for each row and system, medians over the rounds, the least CPU beside it.
    pub(crate) fn to_markdown(&self) -> String {
        let mut out = format!(
            "## {}, commit {}\n\n`{}`\n\n{}; {} round(s), medians over the rounds.\n\n",
            self.date, self.commit, self.command, self.machine, self.rounds
        );
        out.push_str("| row | system | figures | ratio to Consul |\n|---|---|---|---|\n");
        for row in self.rows() {
            for system in self.systems(&row) {
                let _ = writeln!(
                    out,
                    "| {row} | {system} | {} | {} |",
                    self.figures(&row, system),
                    self.ratios(&row, system)
                );
            }
        }
        for (row, system, why) in &self.failures {
            let _ = writeln!(
                out,
                "| {row} | {system} | not measured: {} | |",
                why.lines().next().unwrap_or_default()
            );
        }
        out.push('\n');
        out
    }

    fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for sample in &self.samples {
            if !rows.contains(&sample.row) {
                rows.push(sample.row.clone());
            }
        }
        rows
    }

    fn systems(&self, row: &str) -> Vec<&'static str> {
        let mut systems = Vec::new();
        for sample in self.samples.iter().filter(|s| s.row == row) {
            if !systems.contains(&sample.system) {
                systems.push(sample.system);
            }
        }
        systems.sort_by_key(|s| {
            ["weft", "consul", "etcd", "disk"]
                .iter()
                .position(|known| known == s)
        });
        systems
    }

    fn figures(&self, row: &str, system: &str) -> String {
        let mut parts = Vec::new();
        for (heading, figure, digits) in COLUMNS {
            let values = over_rounds(&self.samples, row, system, figure);
            if values.is_empty() || (figure == "failed" && values.iter().all(|v| *v == 0.0)) {
                continue;
            }
            let mut part = format!("{heading} {}", number(median(&values), digits));
            if values.len() > 1 && figure == "cpu_us_per_op" {
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let _ = write!(part, " (min {})", number(least, digits));
            }
            parts.push(part);
        }
        parts.join(", ")
    }

    fn ratios(&self, row: &str, system: &str) -> String {
        if system == "consul" {
            return String::new();
        }
        let mut parts = Vec::new();
        for (name, figure, less) in RATIOS {
            let (ours, theirs) = (
                over_rounds(&self.samples, row, system, figure),
                over_rounds(&self.samples, row, "consul", figure),
            );
            if ours.is_empty()
                || theirs.is_empty()
                || median(&theirs) == 0.0
                || median(&ours) == 0.0
            {
                continue;
            }
            let better = if less {
                median(&theirs) / median(&ours)
            } else {
                median(&ours) / median(&theirs)
            };
            parts.push(format!("{name} {better:.2}×"));
        }
        parts.join(", ")
    }

    pub(crate) fn to_json(&self) -> Value {
        let samples = self.samples.iter().map(
            |s| json!({"row": s.row, "system": s.system, "round": s.round, "figures": s.figures}),
        );
        let failures = self
            .failures
            .iter()
            .map(|(row, system, why)| json!({"row": row, "system": system, "why": why}));
        json!({
            "date": self.date, "commit": self.commit, "command": self.command, "machine": self.machine, "rounds": self.rounds,
            "samples": samples.collect::<Vec<_>>(), "failures": failures.collect::<Vec<_>>(),
        })
    }

    /// Writes `results/DATE-COMMIT.json` and appends the section to `RESULTS.md`, both in `folder`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let results = folder.join("results");
        fs::create_dir_all(&results)?;
        let name = format!("{}-{}.json", self.date.replace(':', ""), self.commit);
        fs::write(results.join(&name), format!("{:#}\n", self.to_json()))
            .with_context(|| name.clone())?;
        let path = folder.join("RESULTS.md");
        let fresh = !path.exists();
        let mut file = File::options().create(true).append(true).open(&path)?;
        if fresh {
            file.write_all(HEAD.as_bytes())?;
        }
        file.write_all(self.to_markdown().as_bytes())?;
        Ok(())
    }
}

const HEAD: &str = "# Figures of weft beside its peers

Each section is one run of `cargo run -p weft-bench --release`, appended by the harness; `results/` has every sample.
Systems run alternately within a round. CPU µs/op counts all server processes and is the figure to compare by: rates and
latencies swing with whatever else the machine does. Ratios are \"times better than Consul\": above 1 is better.

";

fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text.as_str(), String::new()), |(w, f)| {
            (w, format!(".{f}"))
        });
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (whole.len() - position) % 3 == 0 && grouped != "-" {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figures;

    fn sample(system: &'static str, round: usize, cpu: f64) -> Sample {
        Sample {
            row: "kv.put.64".into(),
            system,
            round,
            figures: Figures::from([("cpu_us_per_op", cpu), ("rate_per_s", 6000.0)]),
        }
    }

    #[test]
    fn a_section_has_medians_and_ratios() {
        let samples = vec![
            sample("consul", 1, 260.0),
            sample("weft", 1, 100.0),
            sample("weft", 2, 80.0),
            sample("weft", 3, 90.0),
        ];
        let run = Run {
            date: "2026-11-23T00:00:00Z".into(),
            commit: "abc".into(),
            command: "weft-bench kv".into(),
            machine: "2 CPUs".into(),
            rounds: 3,
            samples,
            failures: vec![("idle".into(), "weft", "it ended\nlog".into())],
        };
        let text = run.to_markdown();
        assert!(text.contains("| kv.put.64 | weft | rate/s 6,000, CPU µs/op 90.0 (min 80.0) | CPU 2.89×, rate 1.00× |"), "{text}");
        assert!(
            text.contains("| idle | weft | not measured: it ended | |"),
            "{text}"
        );
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, digits, want) in [
            (1234567.0, 0, "1,234,567"),
            (999.94, 1, "999.9"),
            (12.0, 0, "12"),
            (1000.5, 1, "1,000.5"),
        ] {
            assert_eq!(number(value, digits), want);
        }
    }
}
