//! The file of known addresses (`serf/local.snapshot`): where to look for the pool after a restart.
//!
//! Owns: its text form and writing it whole or not at all.
//! Never: trusted: an unreadable line is skipped, since the file can always be rebuilt.

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use crate::error::GossipError;

/// Bytes of the file that are read at most.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The last incarnation this node used; the next life starts above it.
    pub incarnation: u64,
    /// Where this node was in its last life.
    pub address: Option<SocketAddr>,
    /// Names and addresses of members.
    pub addresses: Vec<(String, SocketAddr)>,
}

impl Known {
    /// Reads the file; a missing one is empty.
    ///
    /// Errors: [`GossipError::KnownFile`] when it exists and cannot be read.
    pub fn load(path: &Path) -> Result<Self, GossipError> {
        let failed = |cause| GossipError::KnownFile {
            action: "read",
            path: path.display().to_string(),
            cause,
        };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
            Ok(meta) if meta.len() > FILE_MAX_BYTES => return Ok(Self::default()),
            Ok(_) => {}
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    fn parse(text: &str) -> Self {
        let mut known = Self::default();
        for line in text.lines() {
            if let Some(n) = line.strip_prefix("incarnation: ") {
                known.incarnation = n.parse().unwrap_or_default();
            } else if let Some(address) = line.strip_prefix("address: ") {
                known.address = address.parse().ok();
            } else if let Some((name, address)) = line
                .strip_prefix("alive: ")
                .and_then(|l| l.rsplit_once(' '))
                && let Ok(address) = address.parse()
            {
                known.addresses.push((name.to_owned(), address));
            }
        }
        known
    }

    fn text(&self) -> String {
        let mut text = format!("incarnation: {}\n", self.incarnation);
        if let Some(address) = self.address {
            text.push_str(&format!("address: {address}\n"));
        }
        for (name, address) in &self.addresses {
            let name = name.replace(['\n', '\r'], " ");
            text.push_str(&format!("alive: {name} {address}\n"));
        }
        text
    }

    /// Writes the file aside, syncs it, renames it and syncs the directory.
    ///
    /// Errors: [`GossipError::KnownFile`]; the old file stays.
    pub fn save(&self, path: &Path) -> Result<(), GossipError> {
        let failed = |cause| GossipError::KnownFile {
            action: "write",
            path: path.display().to_string(),
            cause,
        };
        self.write(path).map_err(failed)
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let aside = path.with_extension("tmp");
        let mut file = std::fs::File::create(&aside)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)?;
        std::fs::File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_written_and_bad_lines_are_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serf/local.snapshot");
        assert_eq!(Known::load(&path).unwrap(), Known::default());
        let known = Known {
            incarnation: 7,
            address: Some(([10, 0, 0, 3], 8301).into()),
            addresses: vec![
                ("a b".into(), ([10, 0, 0, 1], 8301).into()),
                ("c".into(), "[::1]:9".parse().unwrap()),
            ],
        };
        known.save(&path).unwrap();
        assert_eq!(Known::load(&path).unwrap(), known);
        std::fs::write(
            &path,
            "incarnation: x\nalive: a\nrubbish\nalive: n 10.0.0.9:1\n",
        )
        .unwrap();
        assert_eq!(
            Known::load(&path).unwrap().addresses,
            [("n".to_owned(), ([10, 0, 0, 9], 1).into())]
        );
    }
}
