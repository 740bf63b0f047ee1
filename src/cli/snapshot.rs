//! `weft snapshot save|restore|inspect`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use weft_server::{ArchiveMeta, inspect_archive};

use super::client::{self, Body, Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs};
use super::progress::Progress;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;

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
        after_help = "Examples:\n  weft snapshot inspect backup.snap\n  weft snapshot inspect -o json backup.snap"
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

fn inspect(args: &InspectArgs) -> Done {
    let meta = verified(&args.file)?;
    let shown = [
        ("ID", json!(meta.id)),
        ("Size", json!(meta.size)),
        ("Index", json!(meta.index)),
        ("Term", json!(meta.term)),
        ("Version", json!(meta.version)),
    ];
    if args.format.output == Format::Json {
        let pairs = shown.map(|(name, value)| (name.to_owned(), value));
        return output::json(&Value::Object(pairs.into_iter().collect()));
    }
    for (name, value) in &shown {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        output::line(format!("{name:<12} {text}"))?;
    }
    Ok(())
}
