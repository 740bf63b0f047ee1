//! Plays one story against one side and writes down what came back.
//!
//! Owns: the story's variables and its waiting requests. Never: looks at the other side.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::dns::{self, Question};
use crate::http::{self, Answer};
use crate::normal::Names;
use crate::outcome;
use crate::script::{Body, Qualifiers, Request, Source, Step, Story, Until, Verb};
use crate::side::{NODE, Side, hex_of};
use crate::stopwatch::Stopwatch;

/// How long `until` keeps asking; anti-entropy and check timers are far below.
pub(crate) const UNTIL_LIMIT: Duration = Duration::from_secs(15);
const UNTIL_PAUSE: Duration = Duration::from_millis(40);
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// Length of `{long}`, in bytes: above the limits of check outputs (4,096) and of metadata (512).
const LONG: usize = 5_000;

/// A request left waiting: when it was sent, how long it may wait, and where its answer arrives.
struct Waiting {
    receiver: mpsc::Receiver<(Result<Answer>, Duration)>,
    wait: Option<Duration>,
}

/// Where a story's requests go: real servers in the harness, small stand-ins in its tests.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) http: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) binary: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) names: Names,
}

impl Place {
    pub(crate) fn of(side: &Side) -> Self {
        Self {
            http: side.http(),
            dns: side.dns(),
            binary: side.recipe.binary.clone(),
            folder: side.folder().to_owned(),
            names: side.names.clone(),
        }
    }
}

struct Player<'s> {
    place: Place,
    side: Option<&'s mut Side>,
    variables: BTreeMap<String, String>,
    waiting: VecDeque<Waiting>,
}

/// The outcome of every step, in order. A step that could not be played is an outcome too (`failed`), so it is compared.
pub(crate) fn play(place: Place, side: Option<&mut Side>, story: &Story) -> Vec<Value> {
    let address = place.http.ip();
    let variables = [
        ("addr", address.to_string()),
        ("hexaddr", hex_of(address)),
        (
            "revaddr",
            address
                .to_string()
                .split('.')
                .rev()
                .collect::<Vec<_>>()
                .join("."),
        ),
        ("node", NODE.to_owned()),
        ("dir", place.folder.display().to_string()),
        ("long", "x".repeat(LONG)),
    ];
    let variables = variables
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    let mut player = Player {
        place,
        side,
        variables,
        waiting: VecDeque::new(),
    };
    player
        .place
        .names
        .add(&player.variables["dir"].clone(), "dir");
    story
        .steps
        .iter()
        .map(|step| {
            player
                .step(step)
                .unwrap_or_else(|error| json!({"failed": format!("{error:#}")}))
        })
        .collect()
}

impl Player<'_> {
    fn step(&mut self, step: &Step) -> Result<Value> {
        let waited = Stopwatch::start();
        loop {
            let (outcome, raw) = self.once(step)?;
            let Some(until) = &step.with.until else {
                return Ok(outcome);
            };
            if holds(until, &outcome, &raw) {
                return Ok(outcome);
            }
            if waited.elapsed() > UNTIL_LIMIT {
                return Ok(json!({"until": "never held", "last": outcome}));
            }
            std::thread::sleep(UNTIL_PAUSE);
        }
    }

    /// One try: the document to compare, and the text `until` looks at.
    fn once(&mut self, step: &Step) -> Result<(Value, String)> {
        match &step.verb {
            Verb::Http(request) => {
                let answer = self.send(request, &step.with)?;
                self.take(&answer, &step.with)
            }
            Verb::Watch(request) => self.watch(request, &step.with),
            Verb::Join => self.join(&step.with),
            Verb::Dig {
                name,
                kind,
                tcp,
                edns,
            } => {
                self.views_of_now();
                let name = self.fill(name);
                let question = Question {
                    name: &name,
                    kind,
                    tcp: *tcp,
                    edns: *edns,
                };
                let outcome = dns::ask(
                    self.place.dns,
                    &question,
                    &self.place.names,
                    step.with.count,
                )?;
                Ok((outcome.clone(), outcome.to_string()))
            }
            Verb::Packet(bytes) => Ok((dns::packet(self.place.dns, bytes)?, String::new())),
            Verb::Cli(words) => self.cli(words, &step.with),
            Verb::File { name, content } => {
                std::fs::write(self.place.folder.join(name), self.fill(content))?;
                Ok((json!("written"), String::new()))
            }
            Verb::Pause(time) => {
                std::thread::sleep(*time);
                Ok((json!("paused"), String::new()))
            }
            Verb::Restart => {
                self.side
                    .as_deref_mut()
                    .context("nothing to restart")?
                    .restart()?;
                Ok((json!("ready again"), String::new()))
            }
            Verb::Reload => {
                self.side
                    .as_deref()
                    .context("nothing to reload")?
                    .reload()?;
                Ok((json!("reloaded"), String::new()))
            }
        }
    }

    /// An agent that is no server answers from views, which a change reaches some milliseconds after its writer
    /// has been answered. Stories are not about that: they go on when the views are as of now.
    fn views_of_now(&self) {
        if !self.place.names.through_client {
            return;
        }
        let headers = [("Cache-Control".to_owned(), "must-revalidate".to_owned())];
        // An agent that cannot is told by what it answers next.
        let _ = http::send(
            self.place.http,
            "GET",
            "/v1/catalog/services?cached",
            &headers,
            None,
            ANSWER_LIMIT,
        );
    }

    fn send(&self, request: &Request, with: &Qualifiers) -> Result<Answer> {
        let (target, body) = (self.fill(&request.target), self.body(&request.body)?);
        if target.contains("cached") {
            self.views_of_now();
        }
        // A PUT or POST without a body still says so, as real clients do.
        let body =
            body.or_else(|| matches!(request.method.as_str(), "PUT" | "POST").then(Vec::new));
        http::send(
            self.place.http,
            &request.method,
            &target,
            &self.headers(with),
            body.as_deref(),
            ANSWER_LIMIT,
        )
    }

    fn headers(&self, with: &Qualifiers) -> Vec<(String, String)> {
        with.headers
            .iter()
            .map(|(name, value)| (name.clone(), self.fill(value)))
            .collect()
    }

    fn take(&mut self, answer: &Answer, with: &Qualifiers) -> Result<(Value, String)> {
        for (name, source) in &with.saves {
            let value = self
                .value_at(answer, source)
                .with_context(|| format!("nothing to save as {name}: status {}", answer.status))?;
            self.place.names.add(&value, name);
            self.variables.insert(name.clone(), value);
        }
        let plain = outcome::plain_body(answer);
        if let Some(file) = &with.keep {
            std::fs::write(self.place.folder.join(file), &plain)?;
        }
        let mut document = outcome::of_answer(answer, &self.place.names, with);
        if let Some(saved) = &with.relate {
            document["relation"] = json!(self.relation(answer, saved)?);
        }
        Ok((document, String::from_utf8_lossy(&plain).into_owned()))
    }

    fn relation(&self, answer: &Answer, saved: &str) -> Result<String> {
        let before: u64 = self
            .variables
            .get(saved)
            .with_context(|| format!("no variable {saved}"))?
            .parse()?;
        Ok(
            match outcome::index_of(answer).map(|now| now.cmp(&before)) {
                None => "no index".to_owned(),
                Some(order) => format!("index {order:?} than {saved}"),
            },
        )
    }

    fn value_at(&self, answer: &Answer, source: &Source) -> Option<String> {
        match source {
            Source::Header(name) => answer.header(name).map(str::to_owned),
            Source::Path(path) => {
                let body: Value = serde_json::from_slice(&outcome::plain_body(answer)).ok()?;
                outcome::find(&body, path)
                    .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            }
        }
    }

    fn watch(&mut self, request: &Request, with: &Qualifiers) -> Result<(Value, String)> {
        let target = self.fill(&request.target);
        let wait = target
            .split(['?', '&'])
            .find_map(|part| part.strip_prefix("wait="))
            .and_then(|text| match text.strip_suffix("ms") {
                Some(ms) => ms.parse().ok().map(Duration::from_millis),
                None => text
                    .strip_suffix('s')
                    .and_then(|s| s.parse().ok())
                    .map(Duration::from_secs),
            });
        let (address, method, headers, body) = (
            self.place.http,
            request.method.clone(),
            self.headers(with),
            self.body(&request.body)?,
        );
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let clock = Stopwatch::start();
            let answer = http::send(
                address,
                &method,
                &target,
                &headers,
                body.as_deref(),
                ANSWER_LIMIT,
            );
            // The story may have ended without asking; then nobody needs the answer.
            let _ = sender.send((answer, clock.elapsed()));
        });
        self.waiting.push_back(Waiting { receiver, wait });
        // The request should be waiting at the server before the next step changes something.
        std::thread::sleep(Duration::from_millis(150));
        Ok((json!("sent"), String::new()))
    }

    fn join(&mut self, with: &Qualifiers) -> Result<(Value, String)> {
        let waiting = self.waiting.pop_front().context("JOIN without WATCH")?;
        let (answer, took) = waiting
            .receiver
            .recv_timeout(ANSWER_LIMIT)
            .context("the waiting request never ended")?;
        let (mut document, raw) = self.take(&answer?, with)?;
        let woken = waiting.wait.is_none_or(|wait| took < wait.mul_f64(0.9));
        document["woken"] = json!(if woken {
            "before its wait ended"
        } else {
            "when its wait ended"
        });
        Ok((document, raw))
    }

    fn cli(&self, words: &[String], with: &Qualifiers) -> Result<(Value, String)> {
        let words: Vec<String> = words.iter().map(|word| self.fill(word)).collect();
        let output = Command::new(&self.place.binary)
            .args(&words)
            .env_clear()
            .env("CONSUL_HTTP_ADDR", self.place.http.to_string())
            .current_dir(&self.place.folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", self.place.binary.display()))?;
        let document = json!({
            "exit": output.status.code(),
            "stdout": outcome::of_output(&output.stdout, &self.place.names, with),
            "stderr": outcome::of_output(&output.stderr, &self.place.names, with),
        });
        Ok((
            document,
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    fn body(&self, body: &Body) -> Result<Option<Vec<u8>>> {
        Ok(match body {
            Body::None => None,
            Body::Text(text) => Some(self.fill(text).into_bytes()),
            Body::Repeat(unit, times) => Some(unit.to_string().repeat(*times).into_bytes()),
            Body::Hex(bytes) => Some(bytes.clone()),
            Body::File(name) => Some(read(&self.place.folder, name)?),
            Body::Many(times, op) => {
                let ops: Vec<String> = (0..*times)
                    .map(|n| op.replace('#', &n.to_string()))
                    .collect();
                Some(format!("[{}]", self.fill(&ops.join(","))).into_bytes())
            }
        })
    }

    fn fill(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (name, value) in &self.variables {
            out = out.replace(&format!("{{{name}}}"), value);
        }
        out
    }
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    if name.contains("..") {
        bail!("{name}: only files of the story's folder");
    }
    std::fs::read(folder.join(name)).with_context(|| format!("read {name}"))
}

fn holds(until: &Until, outcome: &Value, raw: &str) -> bool {
    match until {
        Until::Status(status) => outcome["status"] == *status,
        Until::Contains(text) => raw.contains(text.as_str()),
        Until::Lacks(text) => !raw.contains(text.as_str()),
    }
}
