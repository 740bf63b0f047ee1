//! The files of a bundle, and the archive they become.
//!
//! Owns: the directory, bounds on each file, and `index.json`.
//! Never: leaves an archive behind that is not whole.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::cli::failure::{Done, Exit, Failure};

/// Bytes one file may have; what comes after is left out, and the index says so.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// A bundle being written.
pub(super) struct Bundle {
    directory: PathBuf,
    files: Vec<Captured>,
}

struct Captured {
    name: &'static str,
    file: File,
    size: u64,
    cut: bool,
}

impl Bundle {
    /// Makes the directory, for its owner alone.
    pub(super) fn create(directory: &Path) -> Result<Self, Failure> {
        if directory.file_name().is_none() {
            let message = format!(
                "-output {:?} names no directory of its own",
                directory.display()
            );
            return Err(Failure::usage(message).hint("for example -output=incident"));
        }
        // Without a slash at its end: the archive goes beside the directory, not into it.
        let directory = &*directory.components().collect::<PathBuf>();
        let archive = archive_path(directory);
        if archive.exists() || directory.exists() {
            let taken = if archive.exists() {
                &archive
            } else {
                directory
            };
            let message = format!("{} exists already", taken.display());
            return Err(Failure::new(Exit::Negative, message).hint("name another with -output"));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed("cannot make", directory, &error))?;
        Ok(Self {
            directory: directory.to_owned(),
            files: Vec::new(),
        })
    }

    /// A file with one document.
    pub(super) fn document(&mut self, name: &'static str, value: &Value) -> Done {
        self.append(name, format!("{value:#}\n").as_bytes())
    }

    /// Appends to a file, up to its bound.
    pub(super) fn append(&mut self, name: &'static str, data: &[u8]) -> Done {
        let path = self.directory.join(name);
        let at = match self.files.iter().position(|one| one.name == name) {
            Some(at) => at,
            None => {
                self.files.push(Captured {
                    name,
                    file: create(&path)?,
                    size: 0,
                    cut: false,
                });
                self.files.len() - 1
            }
        };
        let one = &mut self.files[at];
        one.cut |= one.size + data.len() as u64 > FILE_MAX_BYTES;
        if one.cut {
            return Ok(());
        }
        one.size += data.len() as u64;
        one.file
            .write_all(data)
            .map_err(|error| failed("cannot write", &path, &error))
    }

    /// Bytes of a file so far.
    pub(super) fn size(&self, name: &str) -> u64 {
        let file = self.files.iter().find(|one| one.name == name);
        file.map_or(0, |one| one.size)
    }

    /// Writes the index: `about`, and each file with its size.
    pub(super) fn index(&mut self, mut about: Value) -> Done {
        let files = self.files.iter();
        let files =
            files.map(|one| json!({"Name": one.name, "SizeBytes": one.size, "Cut": one.cut}));
        about["Files"] = files.collect();
        self.document("index.json", &about)
    }

    /// Packs everything, and removes the directory; answers where the archive is, and its size.
    pub(super) fn archive(self) -> Result<(PathBuf, u64), Failure> {
        let target = archive_path(&self.directory);
        let kept = format!("the files are in {}", self.directory.display());
        // One that has come meanwhile is somebody else's, and stays.
        let file = create(&target).map_err(|failure| failure.hint(kept.clone()))?;
        let size = self.pack(file).map_err(|error| {
            // What was captured stays where it is; half an archive would mislead.
            let _ = std::fs::remove_file(&target);
            failed("cannot write", &target, &error).hint(kept)
        })?;
        std::fs::remove_dir_all(&self.directory)
            .map_err(|error| failed("cannot remove", &self.directory, &error))?;
        Ok((target, size))
    }

    fn pack(&self, file: File) -> std::io::Result<u64> {
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let top = Path::new(self.directory.file_name().unwrap_or_default());
        for one in &self.files {
            tar.append_path_with_name(self.directory.join(one.name), top.join(one.name))?;
        }
        let file = tar.into_inner()?.finish()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

fn archive_path(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".tar.gz");
    name.into()
}

/// A new file, for its owner alone: it is about somebody's cluster.
fn create(path: &Path) -> Result<File, Failure> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed("cannot make", path, &error))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Negative,
        format!("{what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_ends_at_its_bound_and_the_index_says_so() {
        let top = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::create(&top.path().join("b")).unwrap();
        let half = vec![b'x'; usize::try_from(FILE_MAX_BYTES / 2).unwrap()];
        for _ in 0..3 {
            bundle.append("agent.log", &half).unwrap();
        }
        bundle.append("agent.log", b"even this little").unwrap();
        assert_eq!(bundle.size("agent.log"), FILE_MAX_BYTES);
        bundle.index(json!({})).unwrap();
        let index = std::fs::read(bundle.directory().join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["Files"][0]["Cut"], true);
        let (archive, size) = bundle.archive().unwrap();
        assert!(archive.ends_with("b.tar.gz") && size > 0);
        assert!(!top.path().join("b").exists());
        assert!(
            Bundle::create(&top.path().join("b")).is_err(),
            "the archive is there"
        );
    }

    #[test]
    fn the_archive_lies_beside_its_directory_whatever_ends_the_path() {
        let top = tempfile::tempdir().unwrap();
        for name in ["one/", "two//", "three/."] {
            let mut bundle = Bundle::create(&top.path().join(name)).unwrap();
            bundle.append("agent.log", b"kept").unwrap();
            let (archive, _) = bundle.archive().unwrap();
            let plain = name.trim_end_matches(['/', '.']);
            assert_eq!(archive, top.path().join(format!("{plain}.tar.gz")));
            let packed = flate2::read::GzDecoder::new(File::open(&archive).unwrap());
            let mut packed = tar::Archive::new(packed);
            let names = packed.entries().unwrap();
            let names: Vec<_> = names
                .map(|one| one.unwrap().path().unwrap().into_owned())
                .collect();
            assert_eq!(names, [Path::new(plain).join("agent.log")]);
        }
        for name in ["", ".", "..", "/", "a/.."] {
            assert!(Bundle::create(Path::new(name)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn somebody_elses_archive_is_not_touched() {
        let top = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::create(&top.path().join("b")).unwrap();
        bundle.append("agent.log", b"kept").unwrap();
        std::fs::write(top.path().join("b.tar.gz"), "theirs").unwrap();
        assert!(bundle.archive().is_err());
        let read = |name| std::fs::read_to_string(top.path().join(name)).unwrap();
        assert_eq!(
            (read("b.tar.gz"), read("b/agent.log")),
            ("theirs".into(), "kept".into())
        );
    }
}
