//! `weft snapshot save|restore|inspect`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use weft_server::{ArchiveMeta, Grouping, Share, census, inspect_archive};

use super::client::{self, Body, Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs, row};
use super::progress::Progress;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Parts of keys by which they are grouped, unless -kvdepth says otherwise.
const KEY_DEPTH: usize = 2;

/// Save and restore the state of the servers
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft snapshot save backup.snap\n  weft snapshot restore backup.snap"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Show what an archive holds, and whether it is whole
    #[command(
        after_help = "Examples:\n  weft snapshot inspect backup.snap\n  weft snapshot inspect -kvdetails -kvdepth=1 backup.snap"
    )]
    Inspect(InspectArgs),
    /// Replace the state of the servers by an archive's
    #[command(
        after_help = "Examples:\n  weft snapshot restore backup.snap\n  weft snapshot restore -http-addr=10.0.0.1:8500 backup.snap"
    )]
    Restore(FileArgs),
    /// Save the state of the servers to a file
    #[command(
        after_help = "Examples:\n  weft snapshot save backup.snap\n  weft snapshot save -stale backup.snap"
    )]
    Save(FileArgs),
}

#[derive(clap::Args)]
struct FileArgs {
    /// The archive
    file: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct InspectArgs {
    /// The archive
    file: PathBuf,
    /// Show how many keys there are, and the space they take
    #[arg(long)]
    kvdetails: bool,
    /// Parts of keys, between slashes, by which they are grouped; with -kvdetails
    #[arg(long, value_name = "NUMBER")]
    kvdepth: Option<usize>,
    /// Only keys that begin with this; with -kvdetails
    #[arg(long, value_name = "PREFIX")]
    kvfilter: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: SnapshotArgs) -> Done {
    match args.what {
        What::Inspect(args) => inspect(&args),
        What::Restore(args) => {
            super::with_client(&args.client, |client| restore(client, &args.file))
        }
        What::Save(args) => super::with_client(&args.client, |client| save(client, &args.file)),
    }
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Negative,
        format!("Error {what} {}: {error}", path.display()),
    )
}

/// Streams to `<file>.unverified`, checks it, and only then gives it its name.
async fn save(client: Client, file: &Path) -> Done {
    let nothing = client::whole(Bytes::new());
    let mut body = client
        .open(Method::GET, "/v1/snapshot", &[], nothing)
        .await?;
    let aside = file.with_extension("unverified");
    let result = receive(&aside, &mut body).await.and_then(|()| {
        let meta = verified(&aside)?;
        std::fs::rename(&aside, file).map_err(|error| failed("naming", file, &error))?;
        Ok(meta)
    });
    match result {
        Ok(meta) => output::done(
            client.format(),
            format!("Saved and verified snapshot to index {}", meta.index),
            json!({"file": file, "index": meta.index, "done": "saved"}),
        ),
        Err(failure) => {
            let _ = std::fs::remove_file(&aside);
            Err(failure)
        }
    }
}

async fn receive(aside: &Path, body: &mut hyper::body::Incoming) -> Done {
    use tokio::io::AsyncWriteExt;
    let mut out = tokio::fs::File::create(aside)
        .await
        .map_err(|error| failed("creating", aside, &error))?;
    let mut progress = Progress::new("snapshot save", None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new(
                Exit::Unreachable,
                format!("the agent broke off: {error}; nothing was saved"),
            )
        })?;
        if let Ok(data) = frame.into_data() {
            out.write_all(&data)
                .await
                .map_err(|error| failed("writing", aside, &error))?;
            progress.add(data.len() as u64);
        }
    }
    progress.finish();
    out.sync_all()
        .await
        .map_err(|error| failed("writing", aside, &error))
}

async fn restore(client: Client, file: &Path) -> Done {
    // A damaged archive is found before anything is sent.
    verified(file)?;
    let size = std::fs::metadata(file)
        .map_err(|error| failed("reading", file, &error))?
        .len();
    let input = tokio::fs::File::open(file)
        .await
        .map_err(|error| failed("opening", file, &error))?;
    let progress = Progress::new("snapshot restore", Some(size));
    let chunks =
        futures::stream::unfold((input, progress), |(mut input, mut progress)| async move {
            let mut chunk = vec![0; CHUNK_BYTES];
            match input.read(&mut chunk).await {
                Ok(0) => {
                    progress.finish();
                    None
                }
                Ok(length) => {
                    chunk.truncate(length);
                    progress.add(length as u64);
                    Some((Ok(Frame::data(Bytes::from(chunk))), (input, progress)))
                }
                Err(error) => Some((Err(error), (input, progress))),
            }
        });
    let body: Body = StreamBody::new(chunks).boxed_unsync();
    // The answer says no more than its status.
    drop(client.open(Method::PUT, "/v1/snapshot", &[], body).await?);
    output::done(
        client.format(),
        "Restored snapshot",
        json!({"file": file, "done": "restored"}),
    )
}

/// Reads the whole archive, and answers what it says about itself once its checksums hold.
fn verified(file: &Path) -> Result<ArchiveMeta, Failure> {
    inspect_archive(file).map_err(|error| failed("verifying snapshot:", file, &error))
}

impl InspectArgs {
    fn grouping(&self) -> Result<Option<Grouping>, Failure> {
        if !self.kvdetails && (self.kvdepth.is_some() || self.kvfilter.is_some()) {
            return Err(Failure::usage("-kvdepth and -kvfilter need -kvdetails"));
        }
        Ok(self.kvdetails.then(|| Grouping {
            depth: self.kvdepth.unwrap_or(KEY_DEPTH).max(1),
            prefix: self.kvfilter.clone().unwrap_or_default(),
        }))
    }
}

fn inspect(args: &InspectArgs) -> Done {
    let grouping = args.grouping()?;
    let census = census(&args.file, grouping.as_ref())
        .map_err(|error| failed("verifying snapshot:", &args.file, &error))?;
    let meta = &census.meta;
    let kinds = by_size(census.kinds.iter().map(|(name, share)| (*name, *share)));
    let keys = by_size(
        census
            .keys
            .iter()
            .map(|(name, share)| (name.as_str(), *share)),
    );
    let shown = [
        ("ID", json!(meta.id)),
        ("Size", json!(meta.size)),
        ("Index", json!(meta.index)),
        ("Term", json!(meta.term)),
        ("Version", json!(meta.version)),
    ];
    if args.format.output == Format::Json {
        let pairs = shown.map(|(name, value)| (name.to_owned(), value));
        let mut object = Value::Object(pairs.into_iter().collect());
        object["Stats"] = shares(&kinds);
        if args.kvdetails {
            object["StatsKV"] = shares(&keys);
        }
        return output::json(&object);
    }
    for (name, value) in &shown {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        output::line(format!("{name:<12} {text}"))?;
    }
    table("Type", &kinds)?;
    if args.kvdetails {
        table("Key", &keys)?;
    }
    Ok(())
}

/// The largest first.
fn by_size<'a>(shares: impl Iterator<Item = (&'a str, Share)>) -> Vec<(&'a str, Share)> {
    let mut all: Vec<_> = shares.collect();
    all.sort_by_key(|(name, share)| (std::cmp::Reverse(share.bytes), *name));
    all
}

fn shares(all: &[(&str, Share)]) -> Value {
    let object = |(name, share): &(&str, Share)| json!({"Name": name, "Count": share.count, "Sum": share.bytes});
    all.iter().map(object).collect()
}

fn table(what: &str, all: &[(&str, Share)]) -> Done {
    let row_of = |name: &str, count: u64, bytes: u64| {
        row([name, &count.to_string(), &HumanBytes(bytes).to_string()])
    };
    let mut rows = vec![row([what, "Count", "Size"])];
    rows.extend(
        all.iter()
            .map(|(name, share)| row_of(name, share.count, share.bytes)),
    );
    let total = |part: fn(&Share) -> u64| all.iter().map(|(_, share)| part(share)).sum();
    rows.push(row_of(
        "Total",
        total(|share| share.count),
        total(|share| share.bytes),
    ));
    output::line("")?;
    output::table(&rows)
}
