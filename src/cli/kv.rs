//! `weft kv get|put|delete`; `export` and `import` have [`super::kv_file`].

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::kv_file::{self, ExportArgs, ImportArgs};
use super::output::{self, Format, field, row};

/// Read and write the key-value store
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft kv put color red\n  weft kv get -recurse app/")]
pub(crate) struct KvArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Delete a key, or all keys under a prefix
    #[command(after_help = "Examples:\n  weft kv delete color\n  weft kv delete -recurse app/")]
    Delete(DeleteArgs),
    /// Print the keys under a prefix as JSON that `kv import` reads
    #[command(
        after_help = "Examples:\n  weft kv export app/ > app.json\n  weft kv export -http-addr=10.0.0.1:8500 > all.json"
    )]
    Export(ExportArgs),
    /// Read a key, or all keys under a prefix
    #[command(after_help = "Examples:\n  weft kv get color\n  weft kv get -keys -separator=/ app/")]
    Get(GetArgs),
    /// Write the keys of an export
    #[command(
        after_help = "Examples:\n  weft kv import @app.json\n  weft kv import -prefix=copy/ - < app.json"
    )]
    Import(ImportArgs),
    /// Write a key
    #[command(
        after_help = "Examples:\n  weft kv put color red\n  weft kv put -cas -modify-index=42 color @value.txt"
    )]
    Put(PutArgs),
}

#[derive(clap::Args)]
struct KeyOrPrefix {
    /// Key or prefix
    #[arg(
        default_value = "",
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    key: String,
}

#[derive(clap::Args)]
struct GetArgs {
    /// Print values as base64
    #[arg(long)]
    base64: bool,
    /// Print flags, indexes and session too
    #[arg(long)]
    detailed: bool,
    /// Print only the names of keys under the prefix
    #[arg(long)]
    keys: bool,
    /// Everything under the prefix
    #[arg(long)]
    recurse: bool,
    /// With -keys, list only up to this text behind the prefix
    #[arg(long, default_value = "/", hide_default_value = true)]
    separator: String,
    #[command(flatten)]
    at: KeyOrPrefix,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct PutArgs {
    /// Take the lock on the key for -session
    #[arg(long)]
    acquire: bool,
    /// The value given is base64
    #[arg(long)]
    base64: bool,
    /// Write only if -modify-index still is the key's; 0: only if there is no such key
    #[arg(long)]
    cas: bool,
    /// Number stored with the value
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    flags: u64,
    /// Index for -cas
    #[arg(long, value_name = "INDEX")]
    modify_index: Option<u64>,
    /// Give the lock on the key back
    #[arg(long)]
    release: bool,
    /// Session for -acquire and -release
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    session: String,
    /// Key
    #[arg(allow_negative_numbers = true)]
    key: String,
    /// Value; @file reads a file, - reads standard input
    #[arg(
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    value: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct DeleteArgs {
    /// Delete only if -modify-index still is the key's
    #[arg(long)]
    cas: bool,
    /// Index for -cas
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    modify_index: u64,
    /// Everything under the prefix
    #[arg(long)]
    recurse: bool,
    #[command(flatten)]
    at: KeyOrPrefix,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: KvArgs) -> Done {
    match args.what {
        What::Export(args) => {
            super::with_client(&args.client, |client| kv_file::export(client, &args))
        }
        What::Import(args) => {
            super::with_client(&args.client, |client| kv_file::import(client, &args))
        }
        What::Delete(args) => super::with_client(&args.client, |client| delete(client, &args)),
        What::Get(args) => super::with_client(&args.client, |client| get(client, &args)),
        What::Put(args) => super::with_client(&args.client, |client| put(client, &args)),
    }
}

/// A key never begins with a slash in Consul's store, though its API path does.
pub(super) fn bare(key: &str) -> &str {
    key.strip_prefix('/').unwrap_or(key)
}

fn required(key: &str) -> Result<&str, Failure> {
    let key = bare(key);
    if key.is_empty() {
        Err(Failure::new(Exit::Negative, "Error! Missing KEY argument"))
    } else {
        Ok(key)
    }
}

async fn get(client: Client, args: &GetArgs) -> Done {
    let key = bare(&args.at.key);
    if args.keys {
        return keys(client, key, &args.separator).await;
    }
    if !args.recurse {
        required(key)?;
    }
    let query: &[(&str, &str)] = if args.recurse {
        &[("recurse", "")]
    } else {
        &[]
    };
    let answer = client
        .send(Method::GET, &format!("/v1/kv/{key}"), query, Bytes::new())
        .await?;
    if answer.status == StatusCode::NOT_FOUND && args.recurse {
        return if client.format() == Format::Json {
            output::line("[]")
        } else {
            Ok(())
        };
    }
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Failure::new(
            Exit::Negative,
            format!("Error! No key exists at: {key}"),
        ));
    }
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let pairs = answer.json()?;
    if client.format() == Format::Json {
        return output::json(&pairs);
    }
    for (nth, pair) in pairs.as_array().into_iter().flatten().enumerate() {
        if args.detailed {
            if nth > 0 {
                output::line("")?;
            }
            details(pair, args.base64)?;
        } else if args.recurse {
            let mut line = field(pair, "Key").into_bytes();
            line.push(b':');
            line.extend(value(pair, args.base64)?);
            line.push(b'\n');
            output::bytes(&line)?;
        } else {
            let mut line = value(pair, args.base64)?;
            line.push(b'\n');
            output::bytes(&line)?;
        }
    }
    Ok(())
}

async fn keys(client: Client, prefix: &str, separator: &str) -> Done {
    let query = [("keys", ""), ("separator", separator)];
    let answer = client
        .send(
            Method::GET,
            &format!("/v1/kv/{prefix}"),
            &query,
            Bytes::new(),
        )
        .await?;
    let keys = match answer.status {
        StatusCode::NOT_FOUND => Value::Array(Vec::new()),
        status if status.is_success() => answer.json()?,
        _ => return Err(answer.failure()),
    };
    if client.format() == Format::Json {
        return output::json(&keys);
    }
    keys.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .try_for_each(output::line)
}

/// A pair's value: as it is, or still in base64.
fn value(pair: &Value, base64: bool) -> Result<Vec<u8>, Failure> {
    let text = field(pair, "Value");
    if base64 {
        return Ok(text.into_bytes());
    }
    STANDARD.decode(&text).map_err(|_| {
        Failure::new(
            Exit::Internal,
            "the agent's answer holds a value that is not base64",
        )
    })
}

fn details(pair: &Value, base64: bool) -> Done {
    let session = field(pair, "Session");
    let session = if session.is_empty() {
        "-"
    } else {
        session.as_str()
    };
    let text = |name: &str| field(pair, name);
    let rows = [
        row(["CreateIndex", &text("CreateIndex")]),
        row(["Flags", &text("Flags")]),
        row(["Key", &text("Key")]),
        row(["LockIndex", &text("LockIndex")]),
        row(["ModifyIndex", &text("ModifyIndex")]),
        row(["Session", session]),
        row(["Value", &String::from_utf8_lossy(&value(pair, base64)?)]),
    ];
    // Consul sets the values in a fixed column.
    rows.iter()
        .try_for_each(|row| output::line(format!("{:<16} {}", row[0], row[1]).trim_end()))
}

async fn put(client: Client, args: &PutArgs) -> Done {
    let key = required(&args.key)?;
    if args.key.starts_with('/') {
        let message = format!(
            "Error! Failed writing data: Invalid key. Key must not begin with a '/': {}",
            args.key
        );
        return Err(Failure::new(Exit::Negative, message));
    }
    if args.cas && args.modify_index.is_none() {
        return Err(Failure::new(
            Exit::Negative,
            "Must specify -modify-index with -cas!",
        ));
    }
    if (args.acquire || args.release) && args.session.is_empty() {
        return Err(Failure::new(
            Exit::Negative,
            "Error! Missing -session (required with -acquire and -release)",
        ));
    }
    let data = data(&args.value)?;
    let data = if args.base64 { decoded(&data)? } else { data };
    let index = args.modify_index.unwrap_or_default().to_string();
    let flags = args.flags.to_string();
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend((args.flags != 0).then_some(("flags", flags.as_str())));
    query.extend(args.cas.then_some(("cas", index.as_str())));
    query.extend(args.acquire.then_some(("acquire", args.session.as_str())));
    query.extend(args.release.then_some(("release", args.session.as_str())));
    let done = client
        .put(&format!("/v1/kv/{key}"), &query, data)
        .await?
        .text()
        == "true";
    let said = match (done, args.cas, args.acquire, args.release) {
        (true, _, true, _) => format!("Success! Lock acquired on: {key}"),
        (true, _, _, true) => format!("Success! Lock released on: {key}"),
        (true, ..) => format!("Success! Data written to: {key}"),
        (false, true, ..) => format!("Error! Did not write to {key}: CAS failed"),
        (false, _, true, _) => "Error! Did not acquire lock".into(),
        (false, _, _, true) => "Error! Did not release lock".into(),
        (false, ..) => format!("Error! Did not write to {key}"),
    };
    if done {
        let done = match (args.acquire, args.release) {
            (true, _) => "lock acquired",
            (_, true) => "lock released",
            _ => "written",
        };
        output::done(client.format(), said, json!({"key": key, "done": done}))
    } else {
        Err(Failure::new(Exit::Negative, said))
    }
}

/// The value itself, a file's content, or standard input.
pub(super) fn data(text: &str) -> Result<Vec<u8>, Failure> {
    let unreadable = |what: &str, error: std::io::Error| {
        Failure::new(
            Exit::Negative,
            format!("Error! cannot read {what}: {error}"),
        )
    };
    if text == "-" {
        let mut all = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut all)
            .map_err(|error| unreadable("standard input", error))?;
        return Ok(all);
    }
    match text.strip_prefix('@') {
        Some(path) => std::fs::read(path).map_err(|error| unreadable(path, error)),
        None => Ok(text.as_bytes().to_vec()),
    }
}

fn decoded(data: &[u8]) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(data.trim_ascii()).map_err(|error| {
        Failure::new(
            Exit::Negative,
            format!("Error! Cannot base 64 decode data: {error}"),
        )
    })
}

async fn delete(client: Client, args: &DeleteArgs) -> Done {
    let key = bare(&args.at.key);
    if args.recurse && args.cas {
        return Err(Failure::new(
            Exit::Negative,
            "Cannot specify both -cas and -recurse!",
        ));
    }
    if !args.recurse {
        required(key)?;
    }
    if args.cas && args.modify_index == 0 {
        return Err(Failure::new(
            Exit::Negative,
            "Must specify -modify-index with -cas!",
        ));
    }
    let index = args.modify_index.to_string();
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(args.recurse.then_some(("recurse", "")));
    query.extend(args.cas.then_some(("cas", index.as_str())));
    let answer = client
        .call(
            Method::DELETE,
            &format!("/v1/kv/{key}"),
            &query,
            Bytes::new(),
        )
        .await?;
    if args.cas && answer.text() != "true" {
        return Err(Failure::new(
            Exit::Negative,
            format!("Error! Did not delete key {key}: CAS failed"),
        ));
    }
    let what = if args.recurse {
        "Deleted keys with prefix"
    } else {
        "Deleted key"
    };
    output::done(
        client.format(),
        format!("Success! {what}: {key}"),
        json!({"key": key, "recurse": args.recurse, "done": "deleted"}),
    )
}
