//! Files that are whole or absent, whatever fails in between.
//!
//! Owns: write aside, fsync, rename, fsync the directory; modes; bounded reads; error texts.
//! Never: knows what is in a file.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of files that hold keys.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of files anybody may read.
pub const PUBLIC_FILE: u32 = 0o644;
/// Mode of directories that hold keys.
pub const PRIVATE_DIRECTORY: u32 = 0o700;
/// Bytes of a PEM or key file at most.
pub const FILE_MAX_BYTES: u64 = 1 << 20;

/// A file could not be read or written. What was there before stays.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}{remedy}")]
pub struct FileError {
    /// `read`, `write` or `create directory`.
    pub action: &'static str,
    /// The file.
    pub path: String,
    /// What to do about it, or nothing.
    pub remedy: String,
    /// The system's answer.
    #[source]
    pub cause: io::Error,
}

impl FileError {
    fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        let remedy = match cause.kind() {
            ErrorKind::PermissionDenied => format!(
                ": permission denied; make it accessible to the user weft runs as (chown weft {})",
                path.display()
            ),
            ErrorKind::NotFound => {
                ": no such file or directory; check the path in the configuration".to_owned()
            }
            ErrorKind::AlreadyExists => ": it exists already".to_owned(),
            ErrorKind::StorageFull => ": the disk is full".to_owned(),
            _ => String::new(),
        };
        Self {
            action,
            path: path.display().to_string(),
            remedy,
            cause,
        }
    }
}

/// Writes `bytes` aside with `mode`, syncs, renames over `path`, syncs the directory.
///
/// Errors: [`FileError`]; then the old file stays as it was.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    replace(path, bytes, mode).map_err(|cause| FileError::new("write", path, cause))
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = parent(path);
    let aside = aside(path)?;
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // create_new: never write a key into a file or link somebody else put there.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&aside)?;
    // The mode given at creation passes the umask; a key's must be exact, a public file's as asked.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

fn aside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "not a file name"))?;
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(".new");
    Ok(parent(path).join(aside))
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes a directory and those above it, with `mode`; an existing one is left as it is.
///
/// Errors: [`FileError`].
pub fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    let failed = |cause| FileError::new("create directory", path, cause);
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed)
}

/// Reads a file of at most [`FILE_MAX_BYTES`].
///
/// Errors: [`FileError`], also when it is larger.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |cause| FileError::new("read", path, cause);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(failed(io::Error::new(
            ErrorKind::FileTooLarge,
            "larger than 1 MiB",
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn modes_are_exact_and_nothing_is_left_aside() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        create_directory(&directory, PRIVATE_DIRECTORY).unwrap();
        let path = directory.join("key.pem");
        write(&path, b"one", PUBLIC_FILE).unwrap();
        assert_eq!(
            (read(&path).unwrap(), mode(&path)),
            (b"one".to_vec(), 0o644)
        );
        write(&path, b"two", PRIVATE_FILE).unwrap();
        assert_eq!(
            (read(&path).unwrap(), mode(&path), mode(&directory)),
            (b"two".to_vec(), 0o600, 0o700)
        );
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_link_put_aside_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let victim = root.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, root.path().join(".key.pem.new")).unwrap();
        write(&root.path().join("key.pem"), b"secret", PRIVATE_FILE).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn errors_name_the_file_and_the_remedy() {
        let error = read(Path::new("/nowhere/ca.pem")).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/ca.pem") && error.contains("configuration"),
            "{error}"
        );
        let error = write(Path::new("/proc/1/x"), b"", PRIVATE_FILE)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot write /proc/1/x"), "{error}");
        let denied =
            FileError::new("read", Path::new("/k"), ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains("chown weft /k"), "{denied}");
        let root = tempfile::tempdir().unwrap();
        let big = root.path().join("big");
        std::fs::write(&big, vec![0; FILE_MAX_BYTES as usize + 1]).unwrap();
        assert!(read(&big).is_err());
    }
}
