//! The file of gossip keys (`serf/local.keyring`): a JSON list of base64 keys, the primary one first.
//!
//! Owns: its form (Consul's), its mode 0600, and writing it whole or not at all.
//! Never: prints a key.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::GossipError;
use crate::keyring::{GossipKey, KEYS_MAX, Keyring};

/// Bytes of the file that are read at most.
const FILE_MAX_BYTES: u64 = 16 << 10;

/// Reads the ring; `None` when there is no file.
///
/// Errors: [`GossipError::KeyFile`] when it cannot be read, [`GossipError::KeyFileForm`] when it is not a list of keys.
pub(crate) fn load(path: &Path) -> Result<Option<Keyring>, GossipError> {
    let failed = |cause| GossipError::KeyFile {
        action: "read",
        path: path.display().to_string(),
        cause,
    };
    let malformed = |reason: String| GossipError::KeyFileForm {
        path: path.display().to_string(),
        reason,
    };
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(meta) => meta.len(),
    };
    if length > FILE_MAX_BYTES {
        return Err(malformed(format!("it has {length} bytes")));
    }
    let text = Zeroizing::new(std::fs::read(path).map_err(failed)?);
    let text = std::str::from_utf8(&text).map_err(|_| malformed("it is not text".to_owned()))?;
    let keys = words(text).ok_or_else(|| malformed("it is not a JSON list of keys".to_owned()))?;
    let mut ring: Option<Keyring> = None;
    for key in keys {
        let key = GossipKey::parse(key).map_err(|error| malformed(error.to_string()))?;
        match &mut ring {
            None => ring = Some(Keyring::new(key)),
            Some(ring) => ring.install(key)?,
        }
    }
    ring.map(Some)
        .ok_or_else(|| malformed("it holds no key".to_owned()))
}

/// The texts of a JSON list of strings without escapes, as base64 is.
fn words(text: &str) -> Option<Vec<&str>> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    if inside.is_empty() {
        return Some(Vec::new());
    }
    let words = inside.split(',').take(KEYS_MAX + 1);
    words
        .map(|word| word.trim().strip_prefix('"')?.strip_suffix('"'))
        .collect()
}

/// Writes the ring aside, syncs it, renames it and syncs the directory.
///
/// Errors: [`GossipError::KeyFile`]; the old file stays.
pub(crate) fn save(path: &Path, ring: &Keyring) -> Result<(), GossipError> {
    write(path, ring).map_err(|cause| GossipError::KeyFile {
        action: "write",
        path: path.display().to_string(),
        cause,
    })
}

fn write(path: &Path, ring: &Keyring) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let keys = ring
        .list()
        .iter()
        .map(|key| format!("  \"{}\"", key.reveal()));
    let keys: Vec<Zeroizing<String>> = keys.map(Zeroizing::new).collect();
    let keys: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
    let text = Zeroizing::new(format!("[\n{}\n]\n", keys.join(",\n")));
    let aside = path.with_extension("keyring.tmp");
    // One that a crash left behind may have another mode.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_comes_back_as_written_and_is_ours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serf/local.keyring");
        assert!(load(&path).unwrap().is_none());
        let mut ring = Keyring::new(GossipKey::generate().unwrap());
        ring.install(GossipKey::generate().unwrap()).unwrap();
        save(&path, &ring).unwrap();
        assert_eq!(load(&path).unwrap(), Some(ring.clone()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(path.with_extension("keyring.tmp"), "left behind").unwrap();
        save(&path, &ring).unwrap();
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left aside");
    }

    #[test]
    fn damage_is_named_and_no_key_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("local.keyring");
        let good = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let cases = [
            "",
            "[]",
            "{}",
            "[\"x\"]",
            &format!("[\"{good}\""),
            &format!("[\"{good}\", \"c2hvcnQ=\"]"),
        ];
        for text in cases {
            std::fs::write(&path, text).unwrap();
            let error = load(&path).unwrap_err();
            assert_eq!(error.reason(), "gossip.key_file_form", "{text:?}");
            let error = error.to_string();
            assert!(
                error.contains("local.keyring") && !error.contains(good),
                "{error}"
            );
        }
        std::fs::write(&path, format!("[\"{good}\"]")).unwrap();
        assert_eq!(load(&path).unwrap().unwrap().list().len(), 1);
    }
}
