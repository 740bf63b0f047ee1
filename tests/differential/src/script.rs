//! The case files: one family a file, one request a line.
//!
//! ```text
//! config {"enable_script_checks":true}      (before the first story: extra configuration of both servers)
//! == a lock is exclusive                     (a story: its steps run in order, variables live as long as it)
//! PUT /v1/session/create {"Name":"x"}
//!   save sid .ID                             (indented lines qualify the step above)
//! PUT /v1/kv/lock?acquire={sid} mine
//! DIG web.service.consul SRV edns=4096
//! CLI kv get lock
//! ```
//! Owns: the grammar. Never: runs anything. `README.md` beside the cases is the reference of the grammar.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The stories about one part of the API, run against a fresh pair of servers.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) name: String,
    /// Extra configuration objects (JSON) given to both servers.
    pub(crate) config: Vec<String>,
    pub(crate) stories: Vec<Story>,
}

#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) struct Step {
    /// Line number in the case file, from 1.
    pub(crate) line: usize,
    /// The line as written: names the step in reports and in the list of differences.
    pub(crate) text: String,
    pub(crate) verb: Verb,
    pub(crate) with: Qualifiers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    /// One HTTP request; the answer is compared.
    Http(Request),
    /// A request left waiting in the background until [`Verb::Join`].
    Watch(Request),
    /// The answer of the oldest waiting request, and whether it came before its `wait` ended.
    Join,
    Dig {
        name: String,
        kind: String,
        tcp: bool,
        edns: Option<u16>,
    },
    /// Bytes sent to the DNS port over UDP, be they a message or not.
    Packet(Vec<u8>),
    /// The server's own binary, run as a command.
    Cli(Vec<String>),
    /// Writes a file into the story's directory (`{dir}`).
    File {
        name: String,
        content: String,
    },
    Pause(Duration),
    /// SIGKILL, start again on the same data directory, wait until ready.
    Restart,
    /// SIGHUP to the server.
    Reload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Text(String),
    /// `@repeat x 600000`: one character many times.
    Repeat(char, usize),
    /// `@hex 00ff80`: bytes that are no text.
    Hex(Vec<u8>),
    /// `@file NAME`: a file of the story's directory.
    File(String),
    /// `@txn 129 {op}`: a JSON array of the operation many times, `#` in it counting from 0.
    Many(usize, String),
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Qualifiers {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) saves: Vec<(String, Source)>,
    /// Compare the answer's index with the saved one: `same`, `higher` or `lower`.
    pub(crate) relate: Option<String>,
    pub(crate) until: Option<Until>,
    /// Compare arrays as sets.
    pub(crate) unordered: bool,
    /// Compare only these parts of the body.
    pub(crate) only: Vec<String>,
    /// Leave these parts of the body out.
    pub(crate) drop: Vec<String>,
    /// Compare everything but the body.
    pub(crate) no_body: bool,
    /// DNS: compare how many records there are, not which (several are right).
    pub(crate) count: bool,
    /// Write the body to a file of the story's directory.
    pub(crate) keep: Option<String>,
}

/// Where a saved variable comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Path(String),
    Header(String),
}

/// Repeat the step until this holds (at most [`crate::play::UNTIL_LIMIT`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Until {
    Status(u16),
    Contains(String),
    Lacks(String),
}

/// Reads one case file. Errors name the line.
pub(crate) fn parse(name: &str, text: &str) -> Result<Family> {
    let mut family = Family {
        name: name.to_owned(),
        ..Family::default()
    };
    for (number, line) in text.lines().enumerate().map(|(n, l)| (n + 1, l.trim_end())) {
        parse_line(&mut family, number, line)
            .with_context(|| format!("{name}.case:{number}: `{line}`"))?;
    }
    Ok(family)
}

fn parse_line(family: &mut Family, number: usize, line: &str) -> Result<()> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    if let Some(title) = line.strip_prefix("== ") {
        family.stories.push(Story {
            name: title.to_owned(),
            steps: Vec::new(),
        });
        return Ok(());
    }
    let Some(story) = family.stories.last_mut() else {
        let config = line
            .strip_prefix("config ")
            .context("only `config JSON` may stand before the first story")?;
        family.config.push(config.to_owned());
        return Ok(());
    };
    if line.starts_with(' ') {
        let step = story
            .steps
            .last_mut()
            .context("a qualifier needs a step above it")?;
        return qualify(&mut step.with, line.trim_start());
    }
    let verb = parse_verb(line)?;
    story.steps.push(Step {
        line: number,
        text: shown(line),
        verb,
        with: Qualifiers::default(),
    });
    Ok(())
}

/// How reports and the list of differences call a step: the line, a `FILTER` as the request it is.
fn shown(line: &str) -> String {
    match line.strip_prefix("FILTER ").and_then(|l| l.split_once(' ')) {
        Some((target, expression)) => {
            format!("GET {target}{}filter={expression}", joint(target))
        }
        None => line.to_owned(),
    }
}

/// What stands before one more parameter.
fn joint(target: &str) -> char {
    if target.contains('?') { '&' } else { '?' }
}

fn parse_verb(line: &str) -> Result<Verb> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Ok(match word {
        "JOIN" => Verb::Join,
        "RESTART" => Verb::Restart,
        "RELOAD" => Verb::Reload,
        "PAUSE" => Verb::Pause(Duration::from_millis(
            rest.strip_suffix("ms")
                .context("PAUSE takes `NNNms`")?
                .parse()?,
        )),
        "WATCH" => Verb::Watch(parse_request(rest)?),
        "FILTER" => {
            let (target, expression) = rest.split_once(' ').context("FILTER /path EXPRESSION")?;
            let target = format!("{target}{}filter={}", joint(target), encoded(expression));
            Verb::Http(parse_request(&format!("GET {target}"))?)
        }
        "DIG" => parse_dig(rest)?,
        "PACKET" => Verb::Packet(unhex(rest).context("PACKET takes pairs of hex digits")?),
        "CLI" => Verb::Cli(words(rest)?),
        "FILE" => {
            let (name, content) = rest.split_once(' ').context("FILE NAME CONTENT")?;
            Verb::File {
                name: name.to_owned(),
                content: content.replace("\\n", "\n"),
            }
        }
        _ => Verb::Http(parse_request(line)?),
    })
}

fn parse_request(line: &str) -> Result<Request> {
    let (method, rest) = line.split_once(' ').context("METHOD /path [body]")?;
    let (target, body) = rest.split_once(' ').unwrap_or((rest, ""));
    if !target.starts_with('/') || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        bail!("neither a verb of this harness nor `METHOD /path`");
    }
    Ok(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        body: parse_body(body)?,
    })
}

/// Percent-encoded, but for the variables in it.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for (at, c) in text.char_indices() {
        let variable = match c {
            '{' => text[at + 1..].split_once('}').map(|(name, _)| name),
            '}' => text[..at].rsplit_once('{').map(|(_, name)| name),
            _ => None,
        };
        let is_variable = variable
            .is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()));
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || is_variable {
            out.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

fn parse_body(text: &str) -> Result<Body> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    Ok(match word {
        "" => Body::None,
        "@repeat" => {
            let (unit, times) = rest.split_once(' ').context("@repeat CHAR TIMES")?;
            Body::Repeat(
                unit.chars().next().context("@repeat CHAR TIMES")?,
                times.parse()?,
            )
        }
        "@hex" => Body::Hex(unhex(rest).context("@hex takes pairs of hex digits")?),
        "@file" => Body::File(rest.to_owned()),
        "@txn" => {
            let (times, op) = rest.split_once(' ').context("@txn TIMES OPERATION")?;
            Body::Many(times.parse()?, op.to_owned())
        }
        _ => Body::Text(text.to_owned()),
    })
}

fn parse_dig(rest: &str) -> Result<Verb> {
    let mut parts = rest.split(' ');
    let name = parts.next().context("DIG NAME TYPE")?.to_owned();
    let kind = parts.next().context("DIG NAME TYPE")?.to_owned();
    let (mut tcp, mut edns) = (false, None);
    for option in parts {
        match option.split_once('=') {
            None if option == "tcp" => tcp = true,
            Some(("edns", size)) => edns = Some(size.parse()?),
            _ => bail!("unknown option {option}: `tcp` or `edns=BYTES`"),
        }
    }
    Ok(Verb::Dig {
        name,
        kind,
        tcp,
        edns,
    })
}

fn qualify(with: &mut Qualifiers, line: &str) -> Result<()> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        ">" => {
            let (name, value) = rest.split_once(": ").context("> Header: value")?;
            with.headers.push((name.to_owned(), value.to_owned()));
        }
        "save" => {
            let (name, source) = rest
                .split_once(' ')
                .context("save NAME .path | save NAME header H")?;
            let source = match source.strip_prefix("header ") {
                Some(header) => Source::Header(header.to_owned()),
                None if source == "index" => Source::Header("X-Consul-Index".to_owned()),
                None => Source::Path(source.to_owned()),
            };
            with.saves.push((name.to_owned(), source));
        }
        "relate" => with.relate = Some(rest.to_owned()),
        "until" => with.until = Some(parse_until(rest)?),
        "unordered" => with.unordered = true,
        "only" => with.only.extend(rest.split(' ').map(str::to_owned)),
        "drop" => with.drop.extend(rest.split(' ').map(str::to_owned)),
        "no-body" => with.no_body = true,
        "count" => with.count = true,
        "keep" => with.keep = Some(rest.to_owned()),
        _ => bail!("unknown qualifier `{word}`"),
    }
    Ok(())
}

fn parse_until(rest: &str) -> Result<Until> {
    Ok(match rest.split_once(' ') {
        Some(("status", code)) => Until::Status(code.parse()?),
        Some(("contains", text)) => Until::Contains(text.to_owned()),
        Some(("lacks", text)) => Until::Lacks(text.to_owned()),
        _ => bail!("until status N | until contains TEXT | until lacks TEXT"),
    })
}

/// Splits a command line at spaces; single quotes keep them.
fn words(line: &str) -> Result<Vec<String>> {
    let (mut out, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    out.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quoted {
        bail!("a quote is not closed");
    }
    if begun {
        out.push(word);
    }
    Ok(out)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| {
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_step(text: &str) -> Step {
        parse("t", &format!("== s\n{text}"))
            .unwrap()
            .stories
            .remove(0)
            .steps
            .remove(0)
    }

    #[test]
    fn a_line_is_a_request() {
        let step = only_step(
            "PUT /v1/kv/a?cas=0 two words\n  save i index\n  until status 200\n  > X-A: b: c",
        );
        let body = Body::Text("two words".into());
        assert_eq!(
            step.verb,
            Verb::Http(Request {
                method: "PUT".into(),
                target: "/v1/kv/a?cas=0".into(),
                body
            })
        );
        assert_eq!(
            step.with.saves,
            [("i".to_owned(), Source::Header("X-Consul-Index".into()))]
        );
        assert_eq!(step.with.until, Some(Until::Status(200)));
        assert_eq!(step.with.headers, [("X-A".to_owned(), "b: c".to_owned())]);
    }

    #[test]
    fn other_verbs() {
        let verb = |line: &str| only_step(line).verb;
        assert_eq!(
            verb("CLI kv put 'a b' ''"),
            Verb::Cli(vec!["kv".into(), "put".into(), "a b".into(), String::new()])
        );
        assert_eq!(
            verb("DIG x.consul SRV tcp edns=4096"),
            Verb::Dig {
                name: "x.consul".into(),
                kind: "SRV".into(),
                tcp: true,
                edns: Some(4096)
            }
        );
        assert_eq!(verb("PAUSE 20ms"), Verb::Pause(Duration::from_millis(20)));
        let Verb::Http(request) = verb("FILTER /v1/x?stale Meta.a{1} == \"{node}\"") else {
            panic!("a request")
        };
        assert_eq!(
            request.target,
            "/v1/x?stale&filter=Meta.a%7B1%7D%20%3D%3D%20%22{node}%22"
        );
        let Verb::Http(request) = verb("PUT /v1/kv/b @hex 00fF") else {
            panic!("a request")
        };
        assert_eq!(request.body, Body::Hex(vec![0, 0xff]));
    }

    #[test]
    fn mistakes_name_the_line() {
        for text in [
            "stray",
            "== s\nfrobnicate",
            "== s\n  save x .y",
            "== s\nGET /a\n  untill x",
            "== s\nCLI 'a",
        ] {
            let error = format!("{:#}", parse("f", text).unwrap_err());
            assert!(error.starts_with("f.case:"), "{error}");
        }
    }
}
