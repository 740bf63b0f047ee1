//! `weft config read|write|list|delete`.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use weft_agent::config::hcl::{self, Format as Notation, tree::Source};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field};

/// Bytes of a file; the server refuses larger entries.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// Read and write config entries: what the mesh is told about services, proxies and gateways
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft config write web-defaults.hcl\n  weft config read -kind service-defaults -name web"
)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Delete a config entry
    #[command(
        after_help = "Examples:\n  weft config delete -kind service-router -name web\n  weft config delete -kind service-defaults -name web -cas -modify-index=27"
    )]
    Delete(DeleteArgs),
    /// List the names of a kind's config entries
    #[command(
        after_help = "Examples:\n  weft config list -kind service-defaults\n  weft config list -kind service-resolver -filter='Meta.team == shop' -o json"
    )]
    List(ListArgs),
    /// Show a config entry
    #[command(
        after_help = "Examples:\n  weft config read -kind proxy-defaults -name global\n  weft config read -kind service-splitter -name web"
    )]
    Read(ReadArgs),
    /// Write a config entry from a file in HCL or JSON, or from standard input
    #[command(
        after_help = "Examples:\n  weft config write web-router.hcl\n  echo 'Kind = \"mesh\"' | weft config write -\n  weft config write -cas -modify-index=27 web-router.hcl"
    )]
    Write(WriteArgs),
}

#[derive(clap::Args)]
struct WriteArgs {
    /// Write only if the entry is still at -modify-index (0: only if there is none)
    #[arg(long)]
    cas: bool,
    /// The entry's ModifyIndex as it was read
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    modify_index: u64,
    /// The file; - is standard input
    file: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ReadArgs {
    /// The entry's kind
    #[arg(long)]
    kind: String,
    /// Its name
    #[arg(long)]
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ListArgs {
    /// The kind
    #[arg(long)]
    kind: String,
    /// Only entries for which this expression holds
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct DeleteArgs {
    /// The entry's kind
    #[arg(long)]
    kind: String,
    /// Its name
    #[arg(long)]
    name: String,
    /// Delete only if the entry is still at -modify-index
    #[arg(long)]
    cas: bool,
    /// The entry's ModifyIndex as it was read
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    modify_index: u64,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ConfigArgs) -> Done {
    match args.what {
        What::Write(args) => super::with_client(&args.client, |client| write(client, &args)),
        What::Read(args) => super::with_client(&args.client, |client| read(client, &args)),
        What::List(args) => super::with_client(&args.client, |client| list(client, &args)),
        What::Delete(args) => super::with_client(&args.client, |client| delete(client, &args)),
    }
}

async fn write(client: Client, args: &WriteArgs) -> Done {
    check_cas(args.cas, args.modify_index)?;
    let entry = entry_of(&args.file)?;
    let (kind, name) = (any_case(&entry, "Kind"), any_case(&entry, "Name"));
    let what = if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    };
    let index = args.cas.then(|| args.modify_index.to_string());
    let query: Vec<(&str, &str)> = index.iter().map(|index| ("cas", index.as_str())).collect();
    let answer = client
        .put("/v1/config", &query, entry.to_string())
        .await
        .map_err(|failure| failure.context(&format!("Error writing config entry {what}")))?;
    if answer.text().trim() != "true" {
        return Err(lost_race(&format!("Config entry not updated: {what}")));
    }
    said(&client, &what, "written")
}

/// `-modify-index` alone would be ignored, which nobody means.
fn check_cas(cas: bool, modify_index: u64) -> Result<(), Failure> {
    if modify_index != 0 && !cas {
        return Err(
            Failure::usage("-modify-index needs -cas").hint("add -cas, or leave -modify-index out")
        );
    }
    Ok(())
}

fn lost_race(message: &str) -> Failure {
    Failure::new(Exit::Negative, message)
        .hint("the entry is not at that index any more; read it again")
}

fn said(client: &Client, what: &str, done: &str) -> Done {
    if client.format() == Format::Json {
        output::json(&json!({"entry": what, "done": done}))
    } else {
        output::line(format!("Config entry {done}: {what}"))
    }
}

/// The text of a member in whatever case it is written.
fn any_case(entry: &Value, name: &str) -> String {
    let members = entry.as_object().into_iter().flatten();
    let mut found = members.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found
        .next()
        .and_then(|(_, value)| value.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Reads HCL or JSON; what begins with a brace is JSON.
fn entry_of(file: &str) -> Result<Value, Failure> {
    let shown = if file == "-" { "standard input" } else { file };
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::Negative, format!("cannot read {shown}: {error}"))
    };
    let mut text = String::new();
    let size = match file {
        "-" => std::io::stdin()
            .lock()
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text),
        path => std::fs::File::open(Path::new(path))
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)),
    }
    .map_err(unreadable)?;
    if size as u64 > FILE_BYTES_MAX {
        return Err(Failure::new(
            Exit::Negative,
            format!("{shown} is larger than {FILE_BYTES_MAX} bytes, the most an entry may have"),
        ));
    }
    let notation = if text.trim_start().starts_with('{') {
        Notation::Json
    } else {
        Notation::Hcl
    };
    let source: Arc<Source> = Source::text(shown.to_owned(), text);
    let tree = hcl::read(&source, notation).map_err(|error| {
        let (line, column) = error.span.line_column();
        Failure::new(Exit::Negative, format!("{shown}:{line}:{column} {error}"))
    })?;
    Ok(tree.to_json())
}

async fn read(client: Client, args: &ReadArgs) -> Done {
    let path = path(&args.kind, &args.name)?;
    let entry = client.get(&path, &[]).await.map_err(|failure| {
        failure.context(&format!(
            "Error reading config entry {}/{}",
            args.kind, args.name
        ))
    })?;
    output::json(&entry)
}

fn path(kind: &str, name: &str) -> Result<String, Failure> {
    let (kind, name) = (super::segment(kind)?, super::segment(name)?);
    Ok(format!("/v1/config/{kind}/{name}"))
}

async fn list(client: Client, args: &ListArgs) -> Done {
    let path = format!("/v1/config/{}", super::segment(&args.kind)?);
    let filter = args.filter.iter().map(|filter| ("filter", filter.as_str()));
    let query: Vec<(&str, &str)> = filter.collect();
    let entries = client.get(&path, &query).await.map_err(|failure| {
        failure.context(&format!(
            "Error listing config entries for kind {:?}",
            args.kind
        ))
    })?;
    if client.format() == Format::Json {
        return output::json(&entries);
    }
    for entry in entries.as_array().into_iter().flatten() {
        output::line(field(entry, "Name"))?;
    }
    Ok(())
}

async fn delete(client: Client, args: &DeleteArgs) -> Done {
    check_cas(args.cas, args.modify_index)?;
    let what = format!("{}/{}", args.kind, args.name);
    let path = path(&args.kind, &args.name)?;
    let index = args.cas.then(|| args.modify_index.to_string());
    let query: Vec<(&str, &str)> = index.iter().map(|index| ("cas", index.as_str())).collect();
    let answer = client
        .send(Method::DELETE, &path, &query, Bytes::new())
        .await?;
    if answer.status != StatusCode::OK {
        return Err(answer
            .failure()
            .context(&format!("Error deleting config entry {what}")));
    }
    if args.cas && answer.text().trim() != "true" {
        return Err(lost_race(&format!("Config entry not deleted: {what}")));
    }
    said(&client, &what, "deleted")
}
