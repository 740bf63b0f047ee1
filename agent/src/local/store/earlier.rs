//! What earlier builds kept: one file per service, check and state.
//!
//! Owns: reading `services/`, `checks/` and `checks/state/` below `data_dir` once, and moving them out
//! of the way. They stay in `registrations/before-N/`, where no build looks: an earlier build that
//! is started again finds nothing, and so removes nothing from the catalog (DESIGN F1).
//! Never: writes into them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::record::BODY_MAX_BYTES;
use super::{IdOf, Key, Kind};

const DIRS: [(Kind, &str); 3] = [
    (Kind::Service, "services"),
    (Kind::Check, "checks"),
    (Kind::State, "checks/state"),
];

/// What was found.
#[derive(Default)]
pub(super) struct Earlier {
    pub(super) objects: BTreeMap<Key, String>,
    /// Files that cannot be used; they are kept with the others.
    pub(super) corrupt: usize,
    /// One of the two directories was not there: whatever was in it is lost.
    pub(super) incomplete: bool,
}

/// Reads the files back; `None` when there are no such directories.
pub(super) fn read(root: &Path, id_of: IdOf) -> io::Result<Option<Earlier>> {
    let mut found = Earlier::default();
    let there = |name: &str| root.join(name).is_dir();
    if !there("services") && !there("checks") {
        return Ok(None);
    }
    found.incomplete = !there("services") || !there("checks");
    for (kind, name) in DIRS.into_iter().filter(|(_, name)| there(name)) {
        for entry in fs::read_dir(root.join(name))? {
            let path = entry?.path();
            // Another ending: half written, or set aside before.
            if !path.is_file() || path.extension().is_some() {
                continue;
            }
            match read_file(&path).and_then(|object| Ok((id_of(kind, &object)?, object))) {
                Ok((id, object)) => drop(found.objects.insert((kind, id), object.to_string())),
                Err(reason) => {
                    found.corrupt += usize::from(kind != Kind::State);
                    tracing::error!(
                        file.path = %path.display(),
                        reason,
                        "a saved registration cannot be read; register it again"
                    );
                }
            }
        }
    }
    Ok(Some(found))
}

/// Moves the directories into the first free `before-N` of `dir`.
pub(super) fn move_away(root: &Path, dir: &Path) -> io::Result<()> {
    let free = (1_u32..)
        .map(|n| dir.join(format!("before-{n}")))
        .find(|path| !path.exists());
    let target = free.ok_or_else(|| io::Error::other("no number is free for before-N"))?;
    fs::create_dir(&target)?;
    for name in ["services", "checks"] {
        if root.join(name).is_dir() {
            fs::rename(root.join(name), target.join(name))?;
        }
    }
    for path in [target.as_path(), dir, root] {
        File::open(path)?.sync_all()?;
    }
    tracing::info!(
        file.kept_as = %target.display(),
        "took over the registrations of an earlier build; its files are kept"
    );
    Ok(())
}

fn read_file(path: &Path) -> Result<Value, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > BODY_MAX_BYTES as u64 {
        return Err(format!(
            "it has {size} bytes, more than the limit of {BODY_MAX_BYTES}"
        ));
    }
    unseal(&fs::read(path).map_err(|error| error.to_string())?)
}

/// Reads a file's object and checks its sum; files of another make have none.
fn unseal(bytes: &[u8]) -> Result<Value, String> {
    let mut object: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Value::Object(map) = &mut object else {
        return Err("it is not a JSON object".to_owned());
    };
    match map.remove("Sum") {
        Some(Value::String(sum)) if sum == checksum(&object) => Ok(object),
        Some(_) => Err("its checksum does not match".to_owned()),
        None => Ok(object),
    }
}

/// Of the object without its sum. Keys are sorted, so its text is canonical.
pub(super) fn checksum(object: &Value) -> String {
    hex::encode(&Sha256::digest(object.to_string())[..16])
}
