//! What a run found: counts per family, and each mismatch with both answers.
//!
//! Owns: the words of the report, as a table or as JSON. Never: changes a verdict.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::compare::Delta;
use crate::distinct::{Distinct, LEAST_REQUESTS, LEAST_STORIES};

/// Places shown of one mismatch; the JSON form has all.
const DELTAS_SHOWN: usize = 12;

/// A step whose answers differ in a way nothing explains.
#[derive(Debug)]
pub(crate) struct Mismatch {
    pub(crate) family: String,
    pub(crate) story: String,
    pub(crate) line: usize,
    pub(crate) step: String,
    pub(crate) deltas: Vec<Delta>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) family: String,
    pub(crate) stories: usize,
    pub(crate) steps: usize,
    /// Places that differ as the list of known differences says.
    pub(crate) known: usize,
    pub(crate) mismatches: usize,
    pub(crate) seconds: f64,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) counts: Vec<Counts>,
    pub(crate) mismatches: Vec<Mismatch>,
    /// Families that broke off, and why: what they did not play is not proven.
    pub(crate) broken: Vec<(String, String)>,
    /// Known differences nothing needed: each is an error of a full run.
    pub(crate) unused: Vec<String>,
    /// What was asked.
    pub(crate) distinct: Distinct,
    /// What a full run should have asked and did not.
    pub(crate) too_few: Option<String>,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.mismatches.is_empty()
            && self.broken.is_empty()
            && self.unused.is_empty()
            && self.too_few.is_none()
    }

    fn stories(&self) -> usize {
        self.counts.iter().map(|counts| counts.stories).sum()
    }

    /// Why this is no full run, if it is none.
    pub(crate) fn shortfall(&self) -> Option<String> {
        let (requests, stories) = (self.distinct.requests(), self.stories());
        (requests < LEAST_REQUESTS || stories < LEAST_STORIES).then(|| {
            format!(
                "{requests} distinct requests and {stories} stories; a full run has at least \
                 {LEAST_REQUESTS} and {LEAST_STORIES}"
            )
        })
    }

    /// Brings everything into the order of the files, whoever was done first.
    pub(crate) fn sort(&mut self) {
        self.counts.sort_by(|a, b| a.family.cmp(&b.family));
        self.mismatches
            .sort_by(|a, b| (&a.family, a.line).cmp(&(&b.family, b.line)));
        self.broken.sort();
    }

    pub(crate) fn to_text(&self) -> String {
        let mut out = String::new();
        for mismatch in &self.mismatches {
            out.push_str(&mismatch.to_text());
        }
        for (family, why) in &self.broken {
            let _ = writeln!(out, "\n✗ {family} broke off: {why}");
        }
        for id in &self.unused {
            let _ = writeln!(out, "known difference [{id}] explained nothing: remove it");
        }
        let _ = writeln!(
            out,
            "\n{:<14} {:>8} {:>7} {:>7} {:>11} {:>9}",
            "family", "stories", "steps", "known", "mismatches", "seconds"
        );
        let mut total = Counts {
            family: "all".to_owned(),
            ..Counts::default()
        };
        for counts in &self.counts {
            out.push_str(&counts.to_text());
            total.stories += counts.stories;
            total.steps += counts.steps;
            total.known += counts.known;
            total.mismatches += counts.mismatches;
            total.seconds += counts.seconds;
        }
        out.push_str(&total.to_text());
        let _ = writeln!(
            out,
            "distinct: {} requests, {} DNS questions, {} commands, in {} stories",
            self.distinct.requests(),
            self.distinct.questions(),
            self.distinct.commands(),
            self.stories()
        );
        if let Some(why) = &self.too_few {
            let _ = writeln!(out, "✗ too few: {why}");
        }
        out
    }

    pub(crate) fn to_json(&self) -> Value {
        let delta = |d: &Delta| json!({"at": d.path, "consul": d.consul, "weft": d.weft});
        let mismatch = |m: &Mismatch| {
            let deltas: Vec<Value> = m.deltas.iter().map(delta).collect();
            json!({"family": m.family, "story": m.story, "line": m.line, "step": m.step, "deltas": deltas})
        };
        let counts = |c: &Counts| {
            json!({"family": c.family, "stories": c.stories, "steps": c.steps, "known": c.known,
                   "mismatches": c.mismatches, "seconds": c.seconds})
        };
        json!({
            "families": self.counts.iter().map(counts).collect::<Vec<_>>(),
            "mismatches": self.mismatches.iter().map(mismatch).collect::<Vec<_>>(),
            "broken": self.broken.iter().map(|(family, why)| json!({"family": family, "why": why})).collect::<Vec<_>>(),
            "unused_differences": self.unused,
            "distinct": {"requests": self.distinct.requests(), "dns": self.distinct.questions(),
                         "commands": self.distinct.commands()},
            "too_few": self.too_few,
        })
    }
}

impl Counts {
    fn to_text(&self) -> String {
        let Self {
            family,
            stories,
            steps,
            known,
            mismatches,
            seconds,
        } = self;
        format!("{family:<14} {stories:>8} {steps:>7} {known:>7} {mismatches:>11} {seconds:>9.1}\n")
    }
}

impl Mismatch {
    fn to_text(&self) -> String {
        let mut out = format!(
            "\n✗ {} / {} (line {})\n  {}\n",
            self.family,
            self.story,
            self.line,
            cut(&self.step, 160)
        );
        for delta in self.deltas.iter().take(DELTAS_SHOWN) {
            let _ = writeln!(
                out,
                "    {}\n      consul {}\n      weft   {}",
                delta.path,
                cut(&delta.consul, 400),
                cut(&delta.weft, 400)
            );
        }
        if self.deltas.len() > DELTAS_SHOWN {
            let _ = writeln!(
                out,
                "    … and {} more places (-o json has all)",
                self.deltas.len() - DELTAS_SHOWN
            );
        }
        out
    }
}

fn cut(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
