//! The seam between a log and the disk: one folder of files.
//!
//! Owns: what a log may ask of a disk, and the real side of it ([`FileDisk`]).
//! Never: knows what is in a file. The other side, [`fault::FaultDisk`], loses,
//! tears and refuses writes the way a power cut or a dying disk does.

pub mod fault;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

use super::error::LogError;

/// Slices one `pwritev` may take (`IOV_MAX` on Linux).
const SLICES_MAX: usize = 1_024;

/// Room on the file system that holds the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// Bytes an unprivileged process may still use.
    pub available_bytes: u64,
}

impl DiskSpace {
    /// True when less than `percent` of the file system is left: the server then refuses writes.
    #[must_use]
    pub fn below_percent(self, percent: u64) -> bool {
        u128::from(self.available_bytes) * 100 < u128::from(self.total_bytes) * u128::from(percent)
    }
}

/// Kept while a folder is in use; releases it when dropped.
pub trait DiskLock: Send + Sync {}

/// One folder.
pub trait Disk: Send + Sync + 'static {
    /// Names of the files in the folder, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a file of `len` zero bytes; its blocks are reserved, so later writes cannot run out of space.
    /// Errors: [`io::ErrorKind::StorageFull`] among others.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing `to`. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Takes the folder for this process. Errors: [`LogError::Locked`] inside.
    fn lock(&self) -> io::Result<Box<dyn DiskLock>>;
    /// Reads how much room is left.
    fn space(&self) -> io::Result<DiskSpace>;
    /// `name` as an operator would look for it.
    fn path(&self, name: &str) -> String;
}

/// One file of a [`Disk`]. Offsets and lengths are in bytes.
pub trait DiskFile: Send + Sync {
    /// Length of the file.
    fn len(&self) -> io::Result<u64>;
    /// True when the file has no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`. Errors: [`io::ErrorKind::UnexpectedEof`] past the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all slices one after another from `offset` on.
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes everything written durable. After an error nothing may be assumed and nothing retried.
    fn sync_data(&self) -> io::Result<()>;
}

/// A folder of the real file system.
#[derive(Debug)]
pub struct FileDisk {
    dir: PathBuf,
}

impl FileDisk {
    /// Uses `dir`, which is created (mode 0700) when missing and made durable in its parent.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = dir.into();
        if !dir.is_dir() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)?;
            for ancestor in dir
                .ancestors()
                .skip(1)
                .take_while(|a| !a.as_os_str().is_empty())
            {
                File::open(ancestor)?.sync_all()?;
            }
        }
        Ok(Self { dir })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.at(name))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.at(name))?;
        if len > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                // Some file systems cannot reserve; a sparse file of that length is the next best.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    file.set_len(len)?
                }
                other => other?,
            }
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from), self.at(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.at(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn lock(&self) -> io::Result<Box<dyn DiskLock>> {
        lock_dir(&self.dir)
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let reading = rustix::fs::statvfs(&self.dir)?;
        Ok(DiskSpace {
            total_bytes: reading.f_blocks.saturating_mul(reading.f_frsize),
            available_bytes: reading.f_bavail.saturating_mul(reading.f_frsize),
        })
    }

    fn path(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, mut offset: u64, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        if let [one] = slices {
            return self.file.write_all_at(one, offset);
        }
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let count = slices.len().min(SLICES_MAX);
            match rustix::io::pwritev(&self.file, &slices[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        rustix::fs::fdatasync(&self.file).map_err(|e| {
            // After a failed sync Linux keeps the lost pages and calls them clean. Drop them, so
            // that whoever opens the file next sees the disk and not the wish.
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
            io::Error::from(e)
        })
    }
}

struct FileLock {
    _file: File,
}

impl DiskLock for FileLock {}

/// Takes the `LOCK` file of `dir` and writes this process id into it.
pub(super) fn lock_dir(dir: &Path) -> io::Result<Box<dyn DiskLock>> {
    let path = dir.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let holder = text.trim().parse().ok();
            return Err(LogError::Locked {
                file: path.display().to_string(),
                holder,
            }
            .into());
        }
        Err(e) => return Err(e.into()),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Box::new(FileLock { _file: file }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slices_arrive_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::new(dir.path()).unwrap();
        let file = disk.create("f", 0).unwrap();
        let parts: Vec<Vec<u8>> = (0..3_000_u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_at(5, &mut slices).unwrap();
        let mut read = vec![0; 12_000];
        file.read_at(5, &mut read).unwrap();
        assert_eq!(read, parts.concat());
        assert_eq!(file.len().unwrap(), 12_005);
    }

    #[test]
    fn a_second_holder_is_named_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::new(dir.path()).unwrap();
        let held = disk.lock().unwrap();
        let refused = disk.lock().err().unwrap();
        let message = refused.to_string();
        assert!(
            message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        drop(held);
        disk.lock().unwrap();
    }

    #[test]
    fn space_is_compared_in_percent() {
        let space = DiskSpace {
            total_bytes: 1_000,
            available_bytes: 50,
        };
        assert!(!space.below_percent(5));
        assert!(space.below_percent(6));
        let real = FileDisk::new(std::env::temp_dir())
            .unwrap()
            .space()
            .unwrap();
        assert!(real.total_bytes >= real.available_bytes && real.total_bytes > 0);
    }
}
