//! Gathering the sources of a configuration in the order later ones win.
//!
//! Owns: which files are read, the environment's names, and what `-dev` means.
//! Never: knows how flags are spelled; the command line hands over pairs.
//! Source: CONSUL D.1 (files, `CONSUL_LOCAL_CONFIG` and its kin).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build::{Machine, build};
use super::hcl::tree::{Entry, Form, Node, Object, Source, Span, Value};
use super::hcl::{self, Format, SOURCE_SIZE_MAX_BYTES};
use super::merge::{Merged, given};
use super::problem::{Code, Problem, Problems};
use super::runtime::RuntimeConfig;
use super::schema::{self, Effect, Kind};

/// Most files one directory may contribute.
const FILES_PER_DIRECTORY_MAX: usize = 10_000;

/// What `-dev` presets; every source may change it (Consul docs, "-dev").
const DEV_DEFAULTS: &str = r#"
server = true
bootstrap = true
bind_addr = "127.0.0.1"
log_level = "DEBUG"
gossip_lan { gossip_interval = "100ms" probe_interval = "100ms" probe_timeout = "50ms" suspicion_mult = 3 }
"#;

/// A setting from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// How the user wrote it: `-http-port`.
    pub name: String,
    /// The key it sets, dotted: `ports.http`. For maps, the map's key.
    pub key: &'static str,
    /// The value as text; for maps `key:value`.
    pub value: String,
}

/// Everything a configuration is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `-dev`.
    pub dev: bool,
    /// Files and directories in the order given. A directory contributes its `*.hcl` and `*.json`
    /// in lexical order, without descending.
    pub paths: Vec<PathBuf>,
    /// Format of files with another suffix.
    pub format: Option<Format>,
    /// Texts of `-hcl`.
    pub hcl: Vec<String>,
    /// The environment; only `CONSUL_*` and `WEFT_*` are looked at.
    pub env: Vec<(String, String)>,
    /// Flags in the order given.
    pub flags: Vec<Flag>,
}

/// Reads and merges every source, then checks the whole.
///
/// Order, later wins: defaults, `-dev`, files, `-hcl`, environment, flags.
///
/// # Errors
/// [`Problems`]: every error found, then the warnings; of sources that cannot be read, only that.
/// Nothing else happened.
pub fn load(request: &Request, machine: &Machine) -> Result<RuntimeConfig, Problems> {
    let mut merged = Merged::default();
    if request.dev {
        absorb_text(
            &mut merged,
            &Source::text("-dev", DEV_DEFAULTS),
            Format::Hcl,
        );
    }
    for path in &request.paths {
        absorb_path(&mut merged, path, request.format);
    }
    for text in &request.hcl {
        absorb_text(&mut merged, &Source::text("-hcl", text), Format::Hcl);
    }
    absorb_env(&mut merged, &request.env);
    for flag in &request.flags {
        absorb_flag(&mut merged, flag);
    }
    let unread = |problem: &Problem| matches!(problem.code, Code::Unreadable | Code::Syntax);
    if merged.problems.iter().any(unread) {
        // What the rest lacks may well stand in what could not be read: nothing is said about that.
        let mut problems = std::mem::take(&mut merged.problems);
        problems.sort_by_key(|problem| problem.code.is_warning());
        return Err(Problems(problems));
    }
    build(&mut merged, machine, request.dev).map_err(Problems)
}

fn absorb_text(merged: &mut Merged, source: &Arc<Source>, format: Format) {
    match hcl::read(source, format) {
        Ok(node) => merged.absorb(&node),
        Err(error) => merged
            .problems
            .push(Problem::new(Code::Syntax, error.message).at(&error.span)),
    }
}

fn absorb_path(merged: &mut Merged, path: &Path, format: Option<Format>) {
    if !path.is_dir() {
        absorb_file(merged, path, format, true);
        return;
    }
    match directory(path) {
        Ok(files) => files
            .iter()
            .for_each(|file| absorb_file(merged, file, format, false)),
        Err(error) => merged.problems.push(unreadable(path, &error)),
    }
}

/// The files of a directory that end in `.hcl` or `.json`, or all of them with a format given.
fn directory(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if file.is_file() {
            files.push(file);
        }
        if files.len() > FILES_PER_DIRECTORY_MAX {
            let text = format!("the directory has more than {FILES_PER_DIRECTORY_MAX} files");
            return Err(std::io::Error::other(text));
        }
    }
    files.sort();
    Ok(files)
}

fn absorb_file(merged: &mut Merged, path: &Path, format: Option<Format>, named: bool) {
    let suffix = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    // A directory may hold other things; a file named by the user must be understood.
    let text = if named || matches!(suffix, "hcl" | "json") || format.is_some() {
        read_bounded(path)
    } else {
        return;
    };
    let format = match (suffix, format) {
        ("hcl", _) => Format::Hcl,
        ("json", _) => Format::Json,
        (_, Some(format)) => format,
        (_, None) if text.is_err() => Format::Hcl,
        (_, None) => {
            let message = format!("{}: the suffix tells neither HCL nor JSON", path.display());
            merged.problems.push(
                Problem::new(Code::Unreadable, message)
                    .hint("add -config-format=hcl or -config-format=json"),
            );
            return;
        }
    };
    match text {
        Ok(text) => absorb_text(
            merged,
            &Source::text(path.display().to_string(), text),
            format,
        ),
        Err(error) => merged.problems.push(unreadable(path, &error)),
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    // One byte more than allowed: the reader of texts then says what the limit is.
    std::fs::File::open(path)?
        .take(SOURCE_SIZE_MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Code::Unreadable, format!("{}: {error}", path.display()))
}

fn absorb_env(merged: &mut Merged, env: &[(String, String)]) {
    let find = |name: &str| {
        env.iter()
            .find(|(key, value)| key == name && !value.is_empty())
    };
    for name in ["CONSUL_LOCAL_CONFIG", "WEFT_LOCAL_CONFIG"] {
        if let Some((_, text)) = find(name) {
            absorb_text(merged, &Source::text(name, text), Format::Hcl);
        }
    }
    for (name, key) in [
        ("CONSUL_BIND_INTERFACE", "bind_addr"),
        ("CONSUL_CLIENT_INTERFACE", "client_addr"),
    ] {
        if let Some((_, interface)) = find(name) {
            let template = format!("{{{{ GetInterfaceIP \"^{interface}$\" }}}}");
            merged.set(key, given(name, &template));
        }
    }
    if let Some((name, path)) = find("CONSUL_DATA_DIR") {
        merged.set("data_dir", given(name, path));
    }
    for (path, key) in schema::walk() {
        if key.effect != Effect::Honoured || !settable(key.kind) {
            continue;
        }
        let name = format!("WEFT_{}", path.replace('.', "_").to_uppercase());
        if let Some((_, value)) = find(&name) {
            absorb_listed(merged, &path, key.kind, &name, value);
        }
    }
}

/// Whether one text can stand for the value.
fn settable(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Bool | Kind::Int | Kind::Float | Kind::Text | Kind::Duration | Kind::Texts
    )
}

/// Lists in the environment are separated by commas.
fn absorb_listed(merged: &mut Merged, path: &str, kind: Kind, name: &str, value: &str) {
    if matches!(kind, Kind::Texts) {
        value
            .split(',')
            .map(str::trim)
            .for_each(|item| merged.set(path, given(name, item)));
    } else {
        merged.set(path, given(name, value));
    }
}

fn absorb_flag(merged: &mut Merged, flag: &Flag) {
    let shown = format!("flag {}", flag.name);
    let is_map = schema::lookup(flag.key).is_some_and(|key| matches!(key.kind, Kind::TextMap));
    if !is_map {
        merged.set(flag.key, given(shown, &flag.value));
        return;
    }
    // Consul splits at the first colon; without one the value is empty.
    let (key, value) = flag.value.split_once(':').unwrap_or((&flag.value, ""));
    let source = Source::flag(shown.clone(), flag.value.clone());
    let span = Span::whole(&source);
    let entry = Entry {
        key: key.to_owned(),
        span: span.clone(),
        form: Form::Attribute,
        node: given(shown, value),
    };
    let map = Node {
        span,
        value: Value::Object(Object {
            entries: vec![entry],
        }),
    };
    merged.set(flag.key, map);
}
