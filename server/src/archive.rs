//! Snapshot archives in Consul's form: a gzip'd tar of `meta.json`, `state.bin` and `SHA256SUMS`.
//!
//! Owns: writing, verifying and describing an archive.
//! Never: touches the running state; `restore` stages what was verified here.
//! Source: Consul docs, "Snapshot"; CONSUL.md A.10.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
/// A state larger than this is not believed (DESIGN F6: nothing unbounded).
const STATE_MAX_BYTES: u64 = 64 << 30;
/// Padding behind the last member at most.
const TRAILER_MAX_BYTES: u64 = 1 << 20;
/// `meta.json` and `SHA256SUMS` are read into memory up to this size.
const SMALL_MAX_BYTES: u64 = 1 << 20;

/// Contents of `meta.json`, in Consul's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ArchiveMeta {
    /// Version of this form.
    pub version: u32,
    /// Name of the snapshot: term, index and time.
    #[serde(rename = "ID")]
    pub id: String,
    /// Log index it was taken at.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Membership when it was taken; unused by a restore.
    pub peers: Option<String>,
    /// As above, in Consul's newer form.
    pub configuration: ArchiveConfiguration,
    /// Index of that membership.
    pub configuration_index: u64,
    /// Bytes of `state.bin`.
    pub size: u64,
}

impl Default for ArchiveMeta {
    fn default() -> Self {
        Self {
            version: 1,
            id: String::new(),
            index: 0,
            term: 0,
            peers: None,
            configuration: ArchiveConfiguration::default(),
            configuration_index: 0,
            size: 0,
        }
    }
}

/// Servers at the time of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ArchiveConfiguration {
    /// Voters and learners.
    pub servers: Vec<ArchiveServer>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ArchiveServer {
    /// 0 voter, 1 non-voter.
    pub suffrage: u8,
    /// Raft id.
    #[serde(rename = "ID")]
    pub id: String,
    /// `host:port`.
    pub address: String,
}

/// Why an archive was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file could not be read, or is not a gzip'd tar.
    #[error("not a readable snapshot archive (gzip'd tar expected): {0}")]
    Unreadable(#[from] io::Error),
    /// A member is missing.
    #[error("the archive has no {0}; is it complete?")]
    Missing(&'static str),
    /// A member is larger than any snapshot of ours could be.
    #[error("{member} claims {bytes} bytes, more than the {max} allowed")]
    TooLarge {
        /// Which file of the archive.
        member: &'static str,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// `meta.json` is not what it should be.
    #[error("meta.json cannot be understood: {0}")]
    Meta(#[from] serde_json::Error),
    /// The state inside is damaged, or a newer weft's.
    #[error("state.bin: {0}")]
    State(#[from] weft_catalog::snapshot::SnapshotError),
    /// The content is not what was written.
    #[error(
        "checksum of {member} is {actual}, SHA256SUMS says {expected}: the archive is damaged; take another backup"
    )]
    Checksum {
        /// Which file of the archive.
        member: &'static str,
        /// What the sums file says.
        expected: String,
        /// What was read.
        actual: String,
    },
}

/// An archive whose checksums were verified, with `state.bin` in a file of its own.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) state: File,
    pub(crate) state_bytes: u64,
    pub(crate) state_sha256: String,
}

/// Writes an archive of `state`, which is read from its beginning.
pub(crate) fn write(mut meta: ArchiveMeta, state: &mut File, to: impl Write) -> io::Result<()> {
    meta.size = state.seek(SeekFrom::End(0))?;
    let meta_json = serde_json::to_vec(&meta).map_err(io::Error::other)?;
    state.seek(SeekFrom::Start(0))?;
    let state_sum = sum(&mut *state)?;
    state.seek(SeekFrom::Start(0))?;
    let sums = format!("{}  {META}\n{state_sum}  {STATE}\n", sum(&meta_json[..])?);

    // Level 1: state frames are compressed already, gzip is only Consul's wrapping.
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        to,
        flate2::Compression::fast(),
    ));
    append(&mut tar, META, meta_json.len() as u64, &meta_json[..])?;
    append(&mut tar, STATE, meta.size, state)?;
    append(&mut tar, SUMS, sums.len() as u64, sums.as_bytes())?;
    tar.into_inner()?.finish()?.flush()
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    bytes: u64,
    from: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_cksum();
    tar.append_data(&mut header, name, from)
}

/// Reads an archive, puts `state.bin` into an unnamed file in `scratch`, and verifies the sums.
pub(crate) fn read(
    from: impl Read,
    scratch: &Path,
) -> Result<(ArchiveMeta, Verified), ArchiveError> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(from));
    let (mut meta, mut sums) = (None, None);
    let mut state = None;
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        match path.trim_start_matches("./") {
            META => meta = Some(small(META, &mut entry)?),
            SUMS => sums = Some(small(SUMS, &mut entry)?),
            STATE => state = Some(spool(&mut entry, scratch)?),
            other => tracing::debug!(
                member = other,
                "unknown member of a snapshot archive, ignored"
            ),
        }
    }
    // The members are whole; what follows them shows whether the archive is: gzip's own sum stands at its end.
    io::copy(
        &mut tar.into_inner().take(TRAILER_MAX_BYTES),
        &mut io::sink(),
    )?;
    let meta_json = meta.ok_or(ArchiveError::Missing(META))?;
    let state = state.ok_or(ArchiveError::Missing(STATE))?;
    let sums = String::from_utf8_lossy(&sums.ok_or(ArchiveError::Missing(SUMS))?).into_owned();
    verify(META, &sums, &sum(&meta_json[..])?)?;
    verify(STATE, &sums, &state.state_sha256)?;
    Ok((serde_json::from_slice(&meta_json)?, state))
}

/// Verifies the archive at `path` and answers what it says about itself; `size` is what was read.
///
/// Errors: [`ArchiveError`]; nothing is left behind.
pub fn inspect(path: &Path) -> Result<ArchiveMeta, ArchiveError> {
    let scratch = std::env::temp_dir();
    let (mut meta, verified) = read(File::open(path)?, &scratch)?;
    meta.size = verified.state_bytes;
    Ok(meta)
}

fn small(member: &'static str, entry: &mut impl Read) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(SMALL_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SMALL_MAX_BYTES {
        return Err(ArchiveError::TooLarge {
            member,
            bytes: bytes.len() as u64,
            max: SMALL_MAX_BYTES,
        });
    }
    Ok(bytes)
}

fn spool(entry: &mut impl Read, scratch: &Path) -> Result<Verified, ArchiveError> {
    let mut file = unnamed(scratch)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let n = entry.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > STATE_MAX_BYTES {
            return Err(ArchiveError::TooLarge {
                member: STATE,
                bytes: total,
                max: STATE_MAX_BYTES,
            });
        }
        hash.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(Verified {
        state: file,
        state_bytes: total,
        state_sha256: hex(&hash.finalize()),
    })
}

/// A file in `dir` that is gone when it is closed.
pub(crate) fn unnamed(dir: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    match rustix::fs::open(
        dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    ) {
        Ok(fd) => Ok(File::from(fd)),
        // Some file systems (overlays, network) have no unnamed files: a named one, removed at once.
        Err(_) => {
            let path = dir.join(format!(".weft-{}.tmp", weft_proto::ids::mint()));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

fn verify(member: &'static str, sums: &str, actual: &str) -> Result<(), ArchiveError> {
    let line = |line: &str| {
        line.split_once("  ")
            .map(|(sum, name)| (sum.to_owned(), name.trim().to_owned()))
    };
    let expected = sums
        .lines()
        .filter_map(line)
        .find(|(_, name)| name == member)
        .map(|(sum, _)| sum)
        .ok_or(ArchiveError::Missing(SUMS))?;
    if expected == actual {
        return Ok(());
    }
    Err(ArchiveError::Checksum {
        member,
        expected,
        actual: actual.to_owned(),
    })
}

fn sum(mut from: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut from, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(state: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut file = unnamed(dir.path()).unwrap();
        file.write_all(state).unwrap();
        let mut out = Vec::new();
        write(
            ArchiveMeta {
                id: "2-7-1".into(),
                index: 7,
                term: 2,
                ..ArchiveMeta::default()
            },
            &mut file,
            &mut out,
        )
        .unwrap();
        out
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (meta, mut verified) = read(&archive(b"the state")[..], dir.path()).unwrap();
        let mut state = String::new();
        verified.state.read_to_string(&mut state).unwrap();
        assert_eq!(
            (meta.index, meta.term, meta.size, state.as_str()),
            (7, 2, 9, "the state")
        );
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let good = archive(b"the state");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // Bytes of the gzip header and of tar padding carry nothing of ours: then the content is equal.
            if let Ok((meta, mut verified)) = read(&bad[..], dir.path()) {
                let mut state = String::new();
                verified.state.read_to_string(&mut state).unwrap();
                assert_eq!(
                    (meta.index, state.as_str()),
                    (7, "the state"),
                    "damage at byte {at} went through"
                );
            }
        }
    }

    #[test]
    fn what_is_no_archive_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let text = read(&b"hello"[..], dir.path()).unwrap_err().to_string();
        assert!(text.contains("gzip'd tar expected"), "{text}");
        let empty = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ))
        .into_inner()
        .unwrap()
        .finish()
        .unwrap();
        assert!(
            read(&empty[..], dir.path())
                .unwrap_err()
                .to_string()
                .contains("no meta.json")
        );
    }
}
