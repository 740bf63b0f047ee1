//! How far a long operation has come.
//!
//! Owns: a bar on a terminal; one line every five seconds elsewhere. Both on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use weft_proto::clock::{Clock, SystemClock};

/// Pause between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts bytes and tells about them.
pub(crate) struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    bar: Option<ProgressBar>,
    clock: SystemClock,
    next_line: Duration,
}

impl Progress {
    /// `total` in bytes, when it is known.
    pub(crate) fn new(what: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(what, total));
        Self {
            what,
            total,
            done: 0,
            bar,
            clock: SystemClock::new(),
            next_line: LINE_EVERY,
        }
    }

    /// `bytes` more are done.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            return;
        }
        let now = self.clock.monotonic();
        if now >= self.next_line {
            self.next_line = now + LINE_EVERY;
            let rate = self.done as f64 / now.as_secs_f64().max(0.001);
            let of = self
                .total
                .map(|total| format!(" of {}", HumanBytes(total)))
                .unwrap_or_default();
            crate::stderr::note!(
                "{}: {}{of}, {:.1} MiB/s",
                self.what,
                HumanBytes(self.done),
                rate / 1_048_576.0
            );
        }
    }

    /// Nothing more comes; the bar goes away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.progress_chars("=> "))
        .with_message(what)
}

/// How much of a time span is over.
pub(crate) struct Countdown {
    what: &'static str,
    total: Duration,
    bar: Option<ProgressBar>,
    next_line: Duration,
}

impl Countdown {
    pub(crate) fn new(what: &'static str, total: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{msg} [{bar:30}] {pos}/{len} s, {prefix}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total.as_secs())
                .with_style(style.progress_chars("=> "))
                .with_message(what)
        });
        Self {
            what,
            total,
            bar,
            next_line: LINE_EVERY,
        }
    }

    /// So much is over; `done` says what there is to show for it.
    pub(crate) fn at(&mut self, elapsed: Duration, done: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(done());
            bar.set_position(elapsed.as_secs());
            return;
        }
        if elapsed >= self.next_line {
            self.next_line = elapsed + LINE_EVERY;
            let (elapsed, total) = (elapsed.as_secs(), self.total.as_secs());
            crate::stderr::note!("{}: {elapsed} of {total} s, {}", self.what, done());
        }
    }

    /// It is over; the bar goes away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
