//! The process's log: lines as Consul's, or JSON with its `@level` and `@message`.
//!
//! Owns: formats, level and its change at run time, the log file with rotation.
//! Never: decides what is logged.

use std::fmt::{self, Write as _};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};
use weft_agent::config::runtime::LogConfig;
use weft_agent::http::LogLines;
use weft_proto::clock::Clock;

use super::log_file::LogFile;
use super::monitor::{MonitorLayer, Monitors};

type Registry = tracing_subscriber::Registry;
type LevelHandle = reload::Handle<EnvFilter, Registry>;

/// What can be changed while the process runs.
struct Running {
    level: LevelHandle,
    monitors: Arc<Monitors>,
    /// Held while the level is worked out and put in force, so that the last to change it has seen everybody.
    monitored: Mutex<LevelHandle>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Starts logging to standard output, and to `log_file` when one is configured.
///
/// Errors: the file cannot be opened.
pub(crate) fn start(config: &LogConfig, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let (filter, level) = reload::Layer::new(filter(config.level.as_str()));
    let (monitor_filter, monitored) = reload::Layer::new(filter_nothing());
    let monitors = Arc::new(Monitors::default());
    let format = Lines {
        json: config.json,
        clock: clock.clone(),
    };
    let screen = tracing_subscriber::fmt::layer()
        .event_format(format.clone())
        .with_ansi(false)
        .with_writer(std::io::stdout);
    let file = LogFile::open(config, clock.clone())?.map(|file| {
        tracing_subscriber::fmt::layer()
            .event_format(format)
            .with_ansi(false)
            .with_writer(file)
    });
    let monitor = MonitorLayer {
        monitors: monitors.clone(),
        clock,
    };
    let layers: [Box<dyn Layer<Registry> + Send + Sync>; 2] = [
        screen.and_then(file).with_filter(filter).boxed(),
        monitor.with_filter(monitor_filter).boxed(),
    ];
    tracing_subscriber::registry()
        .with(Vec::from(layers))
        .init();
    let running = Running {
        level,
        monitors,
        monitored: Mutex::new(monitored),
    };
    // Set once per process: a second start would have panicked in `init` above.
    let _ = RUNNING.set(running);
    Ok(())
}

/// Watches the log at `level` until the answer is dropped. Needs a tokio context.
///
/// Errors: too many watch already, or logging has not begun.
pub(crate) fn monitor(level: Level, json: bool) -> Result<LogLines, String> {
    let running = RUNNING.get().ok_or("logging has not begun")?;
    let (lines, receiver) = running.monitors.add(level, json)?;
    running.follow_monitors();
    tokio::spawn(async move {
        lines.closed().await;
        if let Some(running) = RUNNING.get() {
            running.follow_monitors();
        }
    });
    Ok(receiver)
}

impl Running {
    /// Lets as much through to those who watch as one of them wants, and nothing when nobody does.
    fn follow_monitors(&self) {
        let monitored = self.monitored.lock();
        let filter = match self.monitors.level() {
            Some(level) => filter(name(level)),
            None => filter_nothing(),
        };
        let reloaded = monitored.reload(filter);
        drop(monitored);
        if let Err(cause) = reloaded {
            tracing::warn!(error = %cause, "the level of the watched log not changed");
        }
    }
}

/// Changes the level of the running process.
pub(crate) fn set_level(config: &LogConfig) {
    if let Some(running) = RUNNING.get()
        && let Err(cause) = running.level.reload(filter(config.level.as_str()))
    {
        tracing::warn!(error = %cause, "log level not changed");
    }
}

/// Our own crates at the level asked for; libraries only when they warn.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!(
        "warn,weft={level},weft_agent={level},weft_catalog={level},weft_gossip={level},weft_identity={level},weft_raft={level},weft_server={level},openraft=error,foca=error"
    ))
}

fn filter_nothing() -> EnvFilter {
    EnvFilter::new("off")
}

#[derive(Clone)]
struct Lines {
    json: bool,
    clock: Arc<dyn Clock>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = weft_proto::clock::rfc3339(self.clock.wall());
        let level = *event.metadata().level();
        let module = module(event.metadata().target());
        let line = if self.json {
            json_line(&time, level, module, &fields)
        } else {
            text_line(&time, level, module, &fields)
        };
        writer.write_str(&line)
    }
}

pub(super) fn text_line(time: &str, level: Level, module: &str, fields: &Fields) -> String {
    let mut line = format!(
        "{time} {:<7} {module}: {}",
        bracketed(level),
        fields.message
    );
    for (index, (name, value)) in fields.rest.iter().enumerate() {
        let colon = if index == 0 { ":" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(line, "{colon} {name}={}", quoted(value));
    }
    line.push('\n');
    line
}

pub(super) fn json_line(time: &str, level: Level, module: &str, fields: &Fields) -> String {
    let mut object = serde_json::Map::new();
    object.insert("@level".into(), name(level).into());
    object.insert("@message".into(), fields.message.as_str().into());
    object.insert("@module".into(), module.into());
    object.insert("@timestamp".into(), time.into());
    for (name, value) in &fields.rest {
        object.insert((*name).into(), value.as_str().into());
    }
    format!("{}\n", serde_json::Value::Object(object))
}

pub(super) fn module(target: &str) -> &str {
    let krate = target.split("::").next().unwrap_or(target);
    krate.strip_prefix("weft_").unwrap_or(krate)
}

fn bracketed(level: Level) -> &'static str {
    match level {
        Level::ERROR => "[ERROR]",
        Level::WARN => "[WARN]",
        Level::INFO => "[INFO]",
        Level::DEBUG => "[DEBUG]",
        Level::TRACE => "[TRACE]",
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Quotes values with spaces, and never lets a value begin a new line.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty()
        && !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=');
    if plain {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

/// An event's message and the rest of its fields, in order.
#[derive(Default)]
pub(super) struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.rest.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.rest.push((field.name(), value.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn json_lines_carry_consuls_keys() {
        let fields = Fields {
            message: "became leader".into(),
            rest: vec![("raft.term", "3".into())],
        };
        let line = json_line("2026-01-01T00:00:00Z", Level::INFO, "server", &fields);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["@level"], "info");
        assert_eq!(value["@message"], "became leader");
        assert_eq!(value["@module"], "server");
        assert_eq!(value["raft.term"], "3");
    }

    #[test]
    fn modules_are_named_without_prefix() {
        assert_eq!(module("weft_server::leader::sessions"), "server");
        assert_eq!(module("weft::run"), "weft");
    }
}
