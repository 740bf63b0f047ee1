//! `weft debug`: what an operator sends along with a question.
//!
//! Owns: what is captured, for how long, and how it is told.
//! Never: writes a secret down; everything passes [`redact`].
//! Source: Consul docs, "Commands: Debug".

mod bundle;
mod redact;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{Fuse, FusedFuture};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use weft_proto::clock::{Clock, SystemClock, rfc3339};
use weft_proto::duration;

use super::child::Signals;
use super::client::{self, Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field};
use super::progress::Countdown;
use bundle::Bundle;
use redact::Redactor;

/// Least duration and interval.
const LEAST: Duration = Duration::from_secs(1);
/// Longest duration: a bundle is a moment, not a monitoring system.
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// A line of the log longer than this is cut in two.
const LINE_MAX_BYTES: usize = 1 << 20;
/// Who the agent is, and its configuration.
const ABOUT: &str = "/v1/agent/self";
const LOG: &str = "agent.log";
const METRICS: &str = "metrics.ndjson";
const SAMPLED: &str = "/v1/agent/metrics";
const MONITOR: &str = "/v1/agent/monitor";

/// Record a bundle about an agent, for whoever is to help
#[derive(clap::Args)]
#[command(
    after_help = "Tokens, keys and other secrets are masked. Ctrl-C ends the recording; what was captured is kept.\n\n\
                  Examples:\n  weft debug\n  weft debug -duration=30s -interval=10s -capture=logs -capture=metrics -output=incident"
)]
pub(crate) struct DebugArgs {
    /// Pack the files into one; with =false the directory stays
    #[arg(long, default_value = "true")]
    archive: bool,
    /// What to capture: agent, host, config, members, raft, metrics or logs; may be repeated. All unless set
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    capture: Vec<String>,
    /// How long to record metrics and logs
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    duration: String,
    /// Pause between two samples of metrics
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    interval: String,
    /// Least level of the log that is recorded
    #[arg(long, value_name = "LEVEL", default_value = "debug")]
    log_level: String,
    /// The directory, and the archive without .tar.gz; weft-debug-TIME unless set
    #[arg(long = "output", value_name = "PATH")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Something to capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Agent,
    Host,
    Config,
    Members,
    Raft,
    Metrics,
    Logs,
    /// Consul's profiles; named in the index as something weft has not.
    Profiles,
}

impl Target {
    const ALL: [Self; 7] = [
        Self::Agent,
        Self::Host,
        Self::Config,
        Self::Members,
        Self::Raft,
        Self::Metrics,
        Self::Logs,
    ];

    fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text.trim() {
            "agent" => Self::Agent,
            "host" => Self::Host,
            "config" => Self::Config,
            // Consul's older name.
            "members" | "cluster" => Self::Members,
            "raft" => Self::Raft,
            "metrics" => Self::Metrics,
            "logs" => Self::Logs,
            "pprof" => Self::Profiles,
            other => {
                let message = format!("-capture {other:?} is none of what can be captured");
                return Err(Failure::usage(message)
                    .hint("agent, host, config, members, raft, metrics or logs"));
            }
        })
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Host => "host",
            Self::Config => "config",
            Self::Members => "members",
            Self::Raft => "raft",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Profiles => "pprof",
        }
    }
}

/// Flags, decided.
struct Recording {
    targets: Vec<Target>,
    duration: Duration,
    interval: Duration,
    log_level: String,
    directory: PathBuf,
}

impl Recording {
    fn of(args: &DebugArgs, clock: &SystemClock) -> Result<Self, Failure> {
        let mut targets = Vec::new();
        for text in &args.capture {
            let target = Target::parse(text)?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if targets.is_empty() {
            targets.extend(Target::ALL);
        }
        let recording = Self {
            targets,
            duration: time("-duration", &args.duration)?,
            interval: time("-interval", &args.interval)?,
            log_level: args.log_level.clone(),
            directory: args
                .bundle
                .clone()
                .unwrap_or_else(|| format!("weft-debug-{}", clock.wall().get() / 1_000).into()),
        };
        if recording.interval > recording.duration {
            return Err(Failure::usage(
                "-interval must not be longer than -duration",
            ));
        }
        Ok(recording)
    }

    fn wants(&self, target: Target) -> bool {
        self.targets.contains(&target)
    }

    fn words(&self) -> Vec<&'static str> {
        self.targets.iter().map(|target| target.word()).collect()
    }
}

fn time(name: &str, text: &str) -> Result<Duration, Failure> {
    let time = duration::parse(text).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    if (LEAST..=MOST).contains(&time) {
        return Ok(time);
    }
    let (least, most) = (duration::format(LEAST), duration::format(MOST));
    Err(Failure::usage(format!(
        "{name} must be between {least} and {most}"
    )))
}

pub(crate) fn run(args: DebugArgs) -> Done {
    super::with_client(&args.client, |client| debug(client, &args))
}

async fn debug(client: Client, args: &DebugArgs) -> Done {
    let clock = SystemClock::new();
    let recording = Recording::of(args, &clock)?;
    let mut signals = Signals::new();
    // Who cannot answer this cannot be recorded; nothing has been written yet.
    let about = tokio::select! {
        about = in_time(ABOUT, client.get(ABOUT, &[])) => about?,
        name = signals.asked_to_stop() => {
            let message = format!("Shutdown triggered by {name} before anything was recorded");
            return Err(Failure::new(Exit::Negative, message));
        }
    };
    let mut capture = Capture {
        bundle: Bundle::create(&recording.directory)?,
        redactor: Redactor::new(client.token().map(str::to_owned)),
        client: &client,
        recording,
        missing: Vec::new(),
        failed: FailedSamples::default(),
    };
    capture.announce(&about)?;
    let started = rfc3339(clock.wall());
    let interrupted = capture.documents(&about, &mut signals).await?
        || capture.over_time(&clock, &mut signals).await?;
    capture.finish(&about, &started, interrupted, args.archive)
}

/// A recording under way.
struct Capture<'a> {
    client: &'a Client,
    recording: Recording,
    bundle: Bundle,
    redactor: Redactor,
    missing: Vec<Value>,
    failed: FailedSamples,
}

/// Samples of metrics that could not be had.
#[derive(Default)]
struct FailedSamples {
    number: u64,
    last_reason: Option<String>,
}

impl Capture<'_> {
    fn announce(&self, about: &Value) -> Done {
        if self.client.format() == Format::Json {
            return Ok(());
        }
        let recording = &self.recording;
        output::line("==> Capturing what there is now, then metrics and logs")?;
        for (name, value) in [
            ("Agent", field(&about["Config"], "NodeName")),
            ("Version", field(&about["Config"], "Version")),
            ("Duration", duration::format(recording.duration)),
            ("Interval", duration::format(recording.interval)),
            ("Output", recording.directory.display().to_string()),
            ("Capture", recording.words().join(", ")),
        ] {
            output::line(format!("{name:>12}: {value}"))?;
        }
        Ok(())
    }

    /// What does not change while it is recorded; answers whether somebody asked to end.
    async fn documents(&mut self, about: &Value, signals: &mut Signals) -> Result<bool, Failure> {
        let targets = self.recording.targets.clone();
        for (nth, target) in targets.iter().enumerate() {
            tokio::select! {
                done = self.now(*target, about) => done?,
                _ = signals.asked_to_stop() => {
                    for target in &targets[nth..] {
                        self.lacks(*target, "the recording was ended before");
                    }
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// What a target has to show at once.
    async fn now(&mut self, target: Target, about: &Value) -> Done {
        match target {
            Target::Agent => {
                let mut shown = about.clone();
                if let Value::Object(members) = &mut shown {
                    members.remove("DebugConfig");
                }
                self.document("agent.json", shown)
            }
            Target::Config => self.document("config.json", about["DebugConfig"].clone()),
            Target::Host => self.fetch(target, "/v1/agent/host", "host.json").await,
            Target::Members => {
                self.fetch(target, "/v1/agent/members", "members.json")
                    .await
            }
            Target::Raft => {
                let (servers, state) = (
                    "/v1/operator/raft/configuration",
                    "/v1/operator/autopilot/state",
                );
                self.fetch(target, servers, "raft.json").await?;
                self.fetch(target, state, "autopilot.json").await
            }
            Target::Profiles => {
                self.lacks(target, "weft has no profiles of Go's");
                Ok(())
            }
            Target::Metrics | Target::Logs => Ok(()),
        }
    }

    fn document(&mut self, name: &'static str, mut value: Value) -> Done {
        self.redactor.json(&mut value);
        self.bundle.document(name, &value)
    }

    fn lacks(&mut self, target: Target, reason: impl Into<String>) {
        let reason: String = reason.into();
        if self
            .missing
            .iter()
            .any(|one| one["Target"] == target.word())
        {
            return;
        }
        crate::stderr::note!("{} is left out: {reason}", target.word());
        self.missing
            .push(json!({"Target": target.word(), "Reason": reason}));
    }

    async fn fetch(&mut self, target: Target, path: &str, name: &'static str) -> Done {
        match in_time(path, self.client.get(path, &[])).await {
            Ok(value) => self.document(name, value),
            Err(why) => {
                self.lacks(target, why.to_string());
                Ok(())
            }
        }
    }

    /// Metrics and logs, until the time is over or somebody asks to end; answers whether one did.
    async fn over_time(
        &mut self,
        clock: &SystemClock,
        signals: &mut Signals,
    ) -> Result<bool, Failure> {
        let (metrics, logs) = (
            self.recording.wants(Target::Metrics),
            self.recording.wants(Target::Logs),
        );
        if !metrics && !logs {
            return Ok(false);
        }
        let mut log = None;
        if logs {
            // There even if nothing is logged meanwhile.
            self.bundle.append(LOG, b"")?;
            log = tokio::select! {
                log = self.open_log() => log,
                _ = signals.asked_to_stop() => return Ok(true),
            };
        }
        let client = self.client;
        let sample = Fuse::terminated();
        tokio::pin!(sample);
        let begun = Instant::now();
        let end = tokio::time::sleep_until(begun + self.recording.duration);
        tokio::pin!(end);
        let mut samples = tokio::time::interval(self.recording.interval);
        samples.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut progress = Countdown::new("debug", self.recording.duration);
        let mut moments = tokio::time::interval(LEAST);
        let interrupted = loop {
            tokio::select! {
                biased;
                // A sample that is on its way is waited for.
                () = &mut end, if sample.is_terminated() => break false,
                _ = signals.asked_to_stop() => break true,
                _ = samples.tick(), if metrics && sample.is_terminated() => {
                    sample.set(in_time(SAMPLED, client.get(SAMPLED, &[])).fuse());
                }
                answer = &mut sample => self.sampled(answer, clock)?,
                _ = moments.tick() => progress.at(begun.elapsed(), || self.so_far()),
                frame = next(&mut log), if log.is_some() => self.log(frame, &mut log)?,
            }
        };
        progress.finish();
        if let Some(log) = &mut log {
            let rest = std::mem::take(&mut log.rest);
            self.log_lines(&rest)?;
        }
        Ok(interrupted)
    }

    fn so_far(&self) -> String {
        let size = |name| indicatif::HumanBytes(self.bundle.size(name));
        format!("{} of metrics, {} of log", size(METRICS), size(LOG))
    }

    fn sampled(&mut self, answer: Result<Value, Failure>, clock: &SystemClock) -> Done {
        match answer {
            Ok(mut value) => {
                self.redactor.json(&mut value);
                let value = stamped(value, rfc3339(clock.wall()));
                self.bundle.append(METRICS, format!("{value}\n").as_bytes())
            }
            Err(why) => {
                if self.failed.number == 0 {
                    crate::stderr::note!("a sample of metrics is left out: {why}");
                }
                self.failed.number += 1;
                self.failed.last_reason = Some(why.to_string());
                Ok(())
            }
        }
    }

    async fn open_log(&mut self) -> Option<Log> {
        let level = self.recording.log_level.clone();
        let query = [("loglevel", level.as_str())];
        let nothing = client::whole(Bytes::new());
        let opened = self.client.open(Method::GET, MONITOR, &query, nothing);
        match in_time(MONITOR, opened).await {
            Ok(body) => Some(Log {
                body,
                rest: Vec::new(),
            }),
            Err(failure) => {
                self.lacks(Target::Logs, failure.to_string());
                None
            }
        }
    }

    fn log(&mut self, frame: Result<Option<Bytes>, String>, log: &mut Option<Log>) -> Done {
        let Some(open) = log else { return Ok(()) };
        match frame {
            Ok(Some(data)) => {
                open.rest.extend_from_slice(&data);
                let whole = open.rest.iter().rposition(|byte| *byte == b'\n');
                let cut = whole.map(|at| at + 1);
                let cut = cut.or((open.rest.len() > LINE_MAX_BYTES).then_some(open.rest.len()));
                let lines: Vec<u8> = open.rest.drain(..cut.unwrap_or(0)).collect();
                self.log_lines(&lines)
            }
            ended => {
                let why = ended
                    .err()
                    .unwrap_or_else(|| "the agent has stopped".to_owned());
                *log = None;
                self.lacks(Target::Logs, format!("it ended early: {why}"));
                Ok(())
            }
        }
    }

    fn log_lines(&mut self, lines: &[u8]) -> Done {
        for line in String::from_utf8_lossy(lines).lines() {
            let line = self.redactor.line(line);
            self.bundle.append(LOG, format!("{line}\n").as_bytes())?;
        }
        Ok(())
    }

    fn finish(mut self, about: &Value, started: &str, interrupted: bool, archive: bool) -> Done {
        if self.recording.wants(Target::Metrics) && self.bundle.size(METRICS) == 0 {
            let reason = self.failed.last_reason.clone();
            let reason = reason.unwrap_or_else(|| "the recording was ended before".to_owned());
            self.lacks(Target::Metrics, reason);
        }
        let recording = &self.recording;
        self.bundle.index(json!({
            "WeftVersion": super::version::SHORT,
            "AgentVersion": about["Config"]["Version"],
            "Node": about["Config"]["NodeName"],
            "Started": started,
            "Duration": duration::format(recording.duration),
            "Interval": duration::format(recording.interval),
            "Targets": recording.words(),
            "Missing": self.missing,
            "MetricsFailed": self.failed.number,
            "MetricsFailedReason": self.failed.last_reason,
            "Interrupted": interrupted,
            "Masked": self.redactor.masked,
        }))?;
        let json = self.client.format() == Format::Json;
        let (path, size) = if archive {
            let (path, size) = self.bundle.archive()?;
            (path, Some(size))
        } else {
            (self.bundle.directory().to_owned(), None)
        };
        let shown = path.display().to_string();
        if json {
            return output::json(&json!({
                "output": shown, "size_bytes": size, "missing": self.missing, "interrupted": interrupted,
            }));
        }
        output::line(match size {
            Some(size) => format!("Saved {shown} ({})", indicatif::HumanBytes(size)),
            None => format!("Saved {shown}"),
        })
    }
}

/// An answer, or the failure that none came in time; both name what was asked for.
async fn in_time<T>(
    path: &str,
    asking: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(REQUEST_LIMIT, asking).await {
        Ok(answer) => answer.map_err(|failure| failure.context(path)),
        Err(_) => {
            let limit = duration::format(REQUEST_LIMIT);
            let message = format!("{path}: no answer within {limit}");
            Err(Failure::new(Exit::Timeout, message).hint("does the agent hang?"))
        }
    }
}

/// The log as it comes; what is no whole line yet waits.
struct Log {
    body: Incoming,
    rest: Vec<u8>,
}

/// The next bytes; none when the stream has ended.
async fn next(log: &mut Option<Log>) -> Result<Option<Bytes>, String> {
    let Some(log) = log else { return Ok(None) };
    match log.body.frame().await {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(error)) => Err(error.to_string()),
    }
}

/// A sample with the time it was taken. Whatever answers in an agent's place may answer anything.
fn stamped(mut sample: Value, at: String) -> Value {
    match sample.as_object_mut() {
        Some(fields) => {
            fields.insert("CapturedAt".to_owned(), at.into());
            sample
        }
        None => json!({"CapturedAt": at, "Answer": sample}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_of_any_form_has_its_time() {
        let at = || "now".to_owned();
        assert_eq!(
            stamped(json!({"Gauges": []}), at()),
            json!({"Gauges": [], "CapturedAt": "now"})
        );
        assert_eq!(
            stamped(json!(["?"]), at()),
            json!({"CapturedAt": "now", "Answer": ["?"]})
        );
    }
}
