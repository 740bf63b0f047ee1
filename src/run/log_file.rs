//! `log_file`: a file beside standard output, rotated by size and age as Consul does.
//!
//! Owns: names of rotated files (`<name>-<nanoseconds>.<ext>`), how many are kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::fmt::MakeWriter;
use weft_agent::config::runtime::LogConfig;
use weft_proto::clock::Clock;

/// Default name when `log_file` is a directory.
const DEFAULT_NAME: &str = "consul.log";

/// A handle to the current file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogFile(Arc<Mutex<Rotating>>);

struct Rotating {
    file: File,
    path: PathBuf,
    written: u64,
    opened: Duration,
    max_bytes: Option<u64>,
    max_age: Duration,
    keep: Option<u32>,
    clock: Arc<dyn Clock>,
}

impl LogFile {
    /// Opens the configured file; `None` when there is none.
    pub(crate) fn open(config: &LogConfig, clock: Arc<dyn Clock>) -> anyhow::Result<Option<Self>> {
        let Some(configured) = &config.file else {
            return Ok(None);
        };
        let path = if configured.as_os_str().to_string_lossy().ends_with('/') {
            configured.join(DEFAULT_NAME)
        } else {
            configured.clone()
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot create {} for log_file", dir.display()))?;
        }
        let file = append_to(&path)
            .with_context(|| format!("cannot write log_file {}", path.display()))?;
        let written = file.metadata().map_or(0, |meta| meta.len());
        let rotating = Rotating {
            file,
            path,
            written,
            opened: clock.monotonic(),
            max_bytes: config.rotate_bytes,
            max_age: config.rotate_duration,
            keep: config.rotate_max_files,
            clock,
        };
        Ok(Some(Self(Arc::new(Mutex::new(rotating)))))
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Rotating {
    fn rotate_when_due(&mut self, next: usize) -> io::Result<()> {
        let full = self
            .max_bytes
            .is_some_and(|max| self.written > 0 && self.written + next as u64 > max);
        let old = self.clock.monotonic().saturating_sub(self.opened) >= self.max_age;
        if !(full || old) {
            return Ok(());
        }
        let (stem, ext) = self.name();
        let stamp = self.clock.wall().get().saturating_mul(1_000_000);
        std::fs::rename(
            &self.path,
            self.path.with_file_name(format!("{stem}-{stamp}{ext}")),
        )?;
        self.file = append_to(&self.path)?;
        (self.written, self.opened) = (0, self.clock.monotonic());
        self.prune();
        Ok(())
    }

    fn name(&self) -> (String, String) {
        let part =
            |os: Option<&std::ffi::OsStr>| os.map(|text| text.to_string_lossy().into_owned());
        let ext = part(self.path.extension()).map_or_else(String::new, |ext| format!(".{ext}"));
        (part(self.path.file_stem()).unwrap_or_default(), ext)
    }

    /// Removes the oldest rotated files beyond `log_rotate_max_files`.
    fn prune(&self) {
        let (Some(keep), Some(dir)) = (self.keep, self.path.parent()) else {
            return;
        };
        let (stem, ext) = self.name();
        let is_ours = |name: &str| {
            name.strip_prefix(&format!("{stem}-"))
                .and_then(|rest| rest.strip_suffix(&ext))
                .is_some_and(|stamp| stamp.parse::<u64>().is_ok())
        };
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        let mut rotated: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_ours(name))
            .collect();
        rotated.sort();
        let excess = rotated.len().saturating_sub(keep as usize);
        for name in &rotated[..excess] {
            let _ = std::fs::remove_file(dir.join(name));
        }
    }
}

/// One event being written.
pub(crate) struct LogWriter(LogFile);

impl Write for LogWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut rotating = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        rotating.rotate_when_due(buf.len())?;
        rotating.file.write_all(buf)?;
        rotating.written += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .file
            .flush()
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogWriter;
    fn make_writer(&'a self) -> Self::Writer {
        LogWriter(self.clone())
    }
}
