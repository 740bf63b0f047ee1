//! `weft snapshot save|restore|inspect`.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::client::{self, Body, Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field};
use super::progress::Progress;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Largest `meta.json` and `SHA256SUMS` read from an archive.
const SMALL_FILE_MAX_BYTES: u64 = 1 << 20;

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
    /// Output form
    #[arg(
        short = 'o',
        long = "output",
        visible_alias = "format",
        value_enum,
        default_value_t
    )]
    output: Format,
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
    let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let response = client
        .stream(Method::GET, "/v1/snapshot", &[], body)
        .await?;
    let (parts, mut body) = response.into_parts();
    if !parts.status.is_success() {
        let text = body
            .collect()
            .await
            .map(|all| all.to_bytes())
            .unwrap_or_default();
        return Err(client::failure(
            parts.status,
            String::from_utf8_lossy(&text).trim(),
        ));
    }
    let aside = file.with_extension("unverified");
    let result = receive(&aside, &mut body).await.and_then(|()| {
        let archive = Archive::read(&aside)?;
        std::fs::rename(&aside, file).map_err(|error| failed("naming", file, &error))?;
        Ok(archive)
    });
    match result {
        Ok(archive) => output::line(format!(
            "Saved and verified snapshot to index {}",
            field(&archive.meta, "Index")
        )),
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
    Archive::read(file)?;
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
    let response = client
        .stream(Method::PUT, "/v1/snapshot", &[], body)
        .await?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        let text = body
            .collect()
            .await
            .map(|all| all.to_bytes())
            .unwrap_or_default();
        return Err(client::failure(
            parts.status,
            String::from_utf8_lossy(&text).trim(),
        ));
    }
    output::line("Restored snapshot")
}

/// What an archive says about itself, once its checksums hold.
struct Archive {
    meta: Value,
    state_bytes: u64,
}

impl Archive {
    /// Reads the whole archive and compares every file with `SHA256SUMS`.
    fn read(file: &Path) -> Result<Self, Failure> {
        let input = std::fs::File::open(file).map_err(|error| failed("opening", file, &error))?;
        Self::read_from(input).map_err(|error| {
            Failure::new(
                Exit::Negative,
                format!("Error verifying snapshot: {}: {error}", file.display()),
            )
        })
    }

    fn read_from(input: impl Read) -> Result<Self, String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(input));
        let (mut sums, mut found) = (String::new(), std::collections::BTreeMap::new());
        let (mut meta, mut state_bytes) = (Value::Null, 0);
        let damaged = |error: std::io::Error| format!("not a whole snapshot archive: {error}");
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?.display().to_string();
            if name == "SHA256SUMS" {
                entry
                    .take(SMALL_FILE_MAX_BYTES)
                    .read_to_string(&mut sums)
                    .map_err(damaged)?;
                continue;
            }
            let mut kept = Vec::new();
            let (sum, length) =
                digest(&mut entry, (name == "meta.json").then_some(&mut kept)).map_err(damaged)?;
            if name == "meta.json" {
                meta = serde_json::from_slice(&kept)
                    .map_err(|error| format!("meta.json is not JSON: {error}"))?;
            } else if name == "state.bin" {
                state_bytes = length;
            }
            found.insert(name, sum);
        }
        let listed: std::collections::BTreeMap<String, String> = sums
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
            .collect();
        for name in ["meta.json", "state.bin"] {
            match (found.get(name), listed.get(name)) {
                (None, _) => return Err(format!("{name} is missing")),
                (_, None) => return Err(format!("SHA256SUMS does not list {name}")),
                (Some(is), Some(should)) if is != should => {
                    return Err(format!("the checksum of {name} does not match"));
                }
                _ => {}
            }
        }
        Ok(Self { meta, state_bytes })
    }
}

/// SHA-256 in hexadecimal and length of what is read; the beginning is kept where asked for.
fn digest(input: &mut impl Read, mut keep: Option<&mut Vec<u8>>) -> std::io::Result<(String, u64)> {
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0_u64, vec![0; CHUNK_BYTES]);
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            let text = hash
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            return Ok((text, length));
        }
        hash.update(&buffer[..read]);
        length += read as u64;
        if let Some(kept) = keep
            .as_deref_mut()
            .filter(|kept| (kept.len() as u64) < SMALL_FILE_MAX_BYTES)
        {
            kept.extend_from_slice(&buffer[..read]);
        }
    }
}

fn inspect(args: &InspectArgs) -> Done {
    let archive = Archive::read(&args.file)?;
    let meta = &archive.meta;
    if args.output == Format::Json {
        let names = ["ID", "Index", "Term", "Version"];
        let mut out: serde_json::Map<String, Value> = names
            .iter()
            .map(|name| ((*name).to_owned(), meta[name].clone()))
            .collect();
        out.insert("Size".into(), json!(archive.state_bytes));
        return output::json(&out.into());
    }
    for name in ["ID", "Size", "Index", "Term", "Version"] {
        let text = if name == "Size" {
            archive.state_bytes.to_string()
        } else {
            field(meta, name)
        };
        output::line(format!("{name:<12} {text}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(sums: &str, truncate: usize) -> Result<Archive, String> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        for (name, data) in [
            (
                "meta.json",
                r#"{"ID":"2-5-1","Index":5,"Term":2,"Version":1}"#,
            ),
            ("state.bin", "state"),
            ("SHA256SUMS", sums),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o600);
            builder
                .append_data(&mut header, name, data.as_bytes())
                .unwrap();
        }
        let bytes = builder.into_inner().unwrap().finish().unwrap();
        Archive::read_from(&bytes[..bytes.len() - truncate])
    }

    fn sum(data: &str) -> String {
        digest(&mut data.as_bytes(), None).unwrap().0
    }

    #[test]
    fn an_archive_is_whole_or_refused() {
        let meta = sum(r#"{"ID":"2-5-1","Index":5,"Term":2,"Version":1}"#);
        let good = format!("{meta}  meta.json\n{}  state.bin\n", sum("state"));
        let read = archive(&good, 0).unwrap();
        assert_eq!(
            (field(&read.meta, "Index"), read.state_bytes),
            ("5".into(), 5)
        );
        let wrong = format!("{meta}  meta.json\n{}  state.bin\n", sum("other"));
        assert_eq!(
            archive(&wrong, 0).err().unwrap(),
            "the checksum of state.bin does not match"
        );
        assert_eq!(
            archive("", 0).err().unwrap(),
            "SHA256SUMS does not list meta.json"
        );
        assert!(
            archive(&good, 40)
                .err()
                .unwrap()
                .contains("not a whole snapshot archive")
        );
        assert!(
            Archive::read_from(&b"hello"[..])
                .err()
                .unwrap()
                .contains("not a whole snapshot archive")
        );
    }

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(
            sum("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
