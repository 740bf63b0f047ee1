//! Live copies of the log for those who watch it (`/v1/agent/monitor`).
//!
//! Owns: who watches at which level, and how many lines a slow one missed.
//! Never: waits for a watcher; what does not fit is counted and said.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use weft_agent::http::LogLines;
use weft_proto::clock::Clock;

use super::logging::{Fields, json_line, module, text_line};

/// Watchers at once; each is given every line it wants.
const WATCHERS_MAX: usize = 16;
/// Lines that wait for a slow watcher.
const LINES_WAITING_MAX: usize = 512;

/// Everybody who watches the log.
#[derive(Default)]
pub(super) struct Monitors {
    watchers: Mutex<Vec<Watcher>>,
}

struct Watcher {
    level: Level,
    json: bool,
    lines: mpsc::Sender<std::io::Result<Bytes>>,
    missed: u64,
}

impl Monitors {
    /// Adds a watcher, or says why not.
    pub(super) fn add(
        &self,
        level: Level,
        json: bool,
    ) -> Result<(mpsc::Sender<std::io::Result<Bytes>>, LogLines), String> {
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| !watcher.lines.is_closed());
        if watchers.len() >= WATCHERS_MAX {
            return Err(format!(
                "{WATCHERS_MAX} clients watch the log of this agent already; end one of them"
            ));
        }
        let (lines, receiver) = mpsc::channel(LINES_WAITING_MAX);
        watchers.push(Watcher {
            level,
            json,
            lines: lines.clone(),
            missed: 0,
        });
        Ok((lines, receiver))
    }

    /// The most that anybody wants to see; `None` when nobody watches.
    pub(super) fn level(&self) -> Option<Level> {
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| !watcher.lines.is_closed());
        watchers.iter().map(|watcher| watcher.level).max()
    }

    /// Gives a line to those who want it: made at most once in each form, and while nobody waits for it.
    fn say(&self, level: Level, line: impl Fn(bool) -> String) {
        let wanted = self.forms_wanted(level);
        let [text, json] =
            [false, true].map(|json| wanted[usize::from(json)].then(|| Bytes::from(line(json))));
        for watcher in &mut *self.watchers.lock() {
            // Whoever came in between begins with the next line.
            let made = if watcher.json { &json } else { &text };
            if level <= watcher.level
                && let Some(line) = made
            {
                watcher.say(line);
            }
        }
    }

    /// Whether somebody sees this level as text, and as JSON.
    fn forms_wanted(&self, level: Level) -> [bool; 2] {
        let mut wanted = [false; 2];
        for watcher in &*self.watchers.lock() {
            wanted[usize::from(watcher.json)] |= level <= watcher.level;
        }
        wanted
    }
}

impl Watcher {
    fn say(&mut self, line: &Bytes) {
        if self.missed > 0 {
            let note = format!("... {} lines left out: read faster\n", self.missed);
            if self.lines.try_send(Ok(note.into())).is_ok() {
                self.missed = 0;
            }
        }
        // A closed channel belongs to a watcher that is about to be removed.
        if self.missed > 0 || self.lines.try_send(Ok(line.clone())).is_err() {
            self.missed += 1;
        }
    }
}

/// The layer that feeds them.
pub(super) struct MonitorLayer {
    pub(super) monitors: Arc<Monitors>,
    pub(super) clock: Arc<dyn Clock>,
}

impl<S: Subscriber> Layer<S> for MonitorLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = weft_proto::clock::rfc3339(self.clock.wall());
        let level = *event.metadata().level();
        let module = module(event.metadata().target());
        self.monitors.say(level, |json| {
            if json {
                json_line(&time, level, module, &fields)
            } else {
                text_line(&time, level, module, &fields)
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(piece: Option<std::io::Result<Bytes>>) -> String {
        String::from_utf8(piece.unwrap().unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_watcher_sees_its_level_and_above() {
        let monitors = Monitors::default();
        assert_eq!(monitors.level(), None);
        let (_, mut lines) = monitors.add(Level::INFO, false).unwrap();
        assert_eq!(monitors.level(), Some(Level::INFO));
        monitors.say(Level::DEBUG, |_| "debug\n".into());
        monitors.say(Level::ERROR, |_| "error\n".into());
        assert_eq!(text(lines.recv().await), "error\n");
        drop(lines);
        assert_eq!(monitors.level(), None, "who is gone does not count");
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_missed() {
        let monitors = Monitors::default();
        let (_, mut lines) = monitors.add(Level::INFO, true).unwrap();
        for _ in 0..LINES_WAITING_MAX + 7 {
            monitors.say(Level::INFO, |_| "line\n".into());
        }
        for _ in 0..LINES_WAITING_MAX {
            assert_eq!(text(lines.recv().await), "line\n");
        }
        monitors.say(Level::INFO, |_| "later\n".into());
        assert_eq!(
            text(lines.recv().await),
            "... 7 lines left out: read faster\n"
        );
        assert_eq!(text(lines.recv().await), "later\n");
    }

    #[test]
    fn a_line_is_made_once_in_each_form_and_without_holding_anybody_up() {
        let monitors = Monitors::default();
        let _kept: Vec<_> = [
            (Level::INFO, true),
            (Level::INFO, true),
            (Level::ERROR, false),
        ]
        .map(|(level, json)| monitors.add(level, json).unwrap())
        .into();
        let made = std::cell::RefCell::new(Vec::new());
        let line = |json| {
            // Somebody may come or go, or a line be logged, in the meantime.
            assert!(!monitors.watchers.is_locked());
            made.borrow_mut().push(json);
            String::from("line\n")
        };
        monitors.say(Level::INFO, line);
        assert_eq!(*made.borrow(), [true], "nobody wants it as text");
        monitors.say(Level::ERROR, line);
        assert_eq!(*made.borrow(), [true, false, true]);
    }

    #[test]
    fn watchers_are_bounded() {
        let monitors = Monitors::default();
        let all: Vec<_> = (0..WATCHERS_MAX)
            .map(|_| monitors.add(Level::INFO, false).unwrap())
            .collect();
        assert!(monitors.add(Level::INFO, false).is_err());
        drop(all);
        assert!(monitors.add(Level::INFO, false).is_ok());
    }
}
