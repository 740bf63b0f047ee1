//! What an archive is made of: how many records of each kind, and the space they take.
//!
//! Owns: the counts, and how keys are grouped.
//! Never: keeps a record; archives may be larger than memory.
//! Source: Consul docs, "Commands: Snapshot Inspect".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use prost::Message as _;
use weft_catalog::record::{Frame, Record};

use crate::archive::{self, ArchiveError, ArchiveMeta};

/// Groups of keys that are told apart; the rest is one group, [`OTHERS`].
pub const GROUPS_MAX: usize = 10_000;
/// The name of the group for keys beyond [`GROUPS_MAX`].
pub const OTHERS: &str = "(others)";

/// What an archive says about itself, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// From `meta.json`; `size` is what was read.
    pub meta: ArchiveMeta,
    /// By kind of record.
    pub kinds: BTreeMap<&'static str, Share>,
    /// By group of keys; empty unless asked for.
    pub keys: BTreeMap<String, Share>,
}

/// A part of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Records.
    pub count: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Share {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// How keys are grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Parts of a key, between slashes, that make its group.
    pub depth: usize,
    /// Only keys that begin with this.
    pub prefix: String,
}

impl Grouping {
    fn of<'k>(&self, key: &'k str) -> Option<&'k str> {
        if !key.starts_with(&self.prefix) {
            return None;
        }
        let mut slashes = key.match_indices('/');
        let end = slashes.nth(self.depth.saturating_sub(1)).map(|(at, _)| at);
        Some(&key[..end.unwrap_or(key.len())])
    }
}

/// Verifies the archive at `path`, checksums and frames, and counts what is in it.
///
/// Errors: [`ArchiveError`]; nothing is left behind.
pub fn census(path: &Path, grouping: Option<&Grouping>) -> Result<Census, ArchiveError> {
    let (mut meta, mut verified) = archive::read(File::open(path)?, &std::env::temp_dir())?;
    meta.size = verified.state_bytes;
    let mut census = Census {
        meta,
        kinds: BTreeMap::new(),
        keys: BTreeMap::new(),
    };
    let mut state = BufReader::new(&mut verified.state);
    for record in weft_catalog::snapshot::records(&mut state)? {
        census.count(record?, grouping);
    }
    Ok(census)
}

impl Census {
    fn count(&mut self, record: Record, grouping: Option<&Grouping>) {
        let kind = kind(&record);
        let frame = Frame {
            record: Some(record),
        };
        let bytes = frame.encoded_len() as u64;
        self.kinds.entry(kind).or_default().add(bytes);
        let (Some(Record::Kv(entry)), Some(grouping)) = (&frame.record, grouping) else {
            return;
        };
        let key = String::from_utf8_lossy(&entry.key);
        if let Some(group) = grouping.of(&key) {
            let full = self.keys.len() >= GROUPS_MAX && !self.keys.contains_key(group);
            let group = if full { OTHERS } else { group };
            self.keys.entry(group.to_owned()).or_default().add(bytes);
        }
    }
}

/// Consul's name for it where it has one.
const fn kind(record: &Record) -> &'static str {
    match record {
        Record::Meta(_) => "Meta",
        Record::Node(_) => "Node",
        Record::Check(_) => "Check",
        Record::Service(_) => "Service",
        Record::Session(_) => "Session",
        Record::Kv(_) => "KVS",
        Record::ServerKey(_) => "ServerKey",
        Record::Autopilot(_) => "Autopilot",
        Record::Index(_) => "Index",
        Record::Answer(_) => "Answer",
        Record::RestoreBegin(_) | Record::RestoreChunk(_) => "Restore",
        Record::End(_) => "End",
        Record::ConfigEntry(_) => "ConfigEntry",
        Record::PreparedQuery(_) => "PreparedQuery",
        Record::Coordinate(_) => "CoordinateBatchUpdate",
        Record::JoinToken(_) => "JoinToken",
        Record::MeshCa(_) => "ConnectCA",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_grouped_by_their_first_parts() {
        let of = |depth, prefix: &str, key| {
            let grouping = Grouping {
                depth,
                prefix: prefix.to_owned(),
            };
            grouping.of(key).map(str::to_owned)
        };
        assert_eq!(of(2, "", "a/b/c").as_deref(), Some("a/b"));
        assert_eq!(of(2, "", "a/b").as_deref(), Some("a/b"));
        assert_eq!(of(1, "", "a/b/c").as_deref(), Some("a"));
        assert_eq!(of(9, "", "a/b/c").as_deref(), Some("a/b/c"));
        assert_eq!(of(2, "a/", "a/b/c").as_deref(), Some("a/b"));
        assert_eq!(of(2, "b", "a/b/c"), None);
    }
}
