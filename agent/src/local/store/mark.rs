//! The file that says this store was not lost.
//!
//! Owns: `local-store` below `data_dir`. It is there once the agent and the catalog have agreed, and goes
//! before anything is made good that was lost: over any number of restarts, what the catalog has beyond
//! this host's registrations then stays (DESIGN F1).
//! Never: decides whether something was lost.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::write_durably;

/// Its presence says that registrations were kept here before.
const MARK: &str = "local-store";

/// Whether this store counts as not lost.
pub(in crate::local) fn is_set(root: &Path) -> bool {
    root.join(MARK).exists()
}

/// From now on this store counts as not lost.
pub(in crate::local) fn set(root: &Path) -> io::Result<()> {
    write_durably(&root.join(MARK), "1\n")
}

/// From now on this store counts as lost, over restarts, until [`set`].
///
/// Errors: the mark cannot be removed; a later start would then take what was lost for what was never
/// there.
pub(in crate::local) fn remove(root: &Path) -> io::Result<()> {
    match fs::remove_file(root.join(MARK)) {
        Ok(()) => File::open(root)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
