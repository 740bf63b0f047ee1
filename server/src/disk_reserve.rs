//! The disk reserve: below 5 % free (at most 4 GiB), writes are refused while reads go on.
//!
//! Owns: the rule and its wording, and the last reading.
//! Never: touches the log; the log's own ENOSPC handling is the second line of defence.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Share of the file system kept free for the log's own needs, in percent.
const RESERVE_PERCENT: u64 = 5;
/// The most that is kept: four times what the log keeps behind a snapshot. A big disk with this much room
/// is not full.
const RESERVE_MAX_BYTES: u64 = 4 << 30;

/// Watches the free space of the data directory.
pub(crate) struct DiskReserve {
    data_dir: Option<PathBuf>,
    low: AtomicBool,
    available_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl DiskReserve {
    /// `data_dir` is `None` in `-dev`, where nothing is ever low.
    pub(crate) fn new(data_dir: Option<PathBuf>) -> Self {
        let reserve = Self {
            data_dir,
            low: AtomicBool::new(false),
            available_bytes: AtomicU64::new(u64::MAX),
            total_bytes: AtomicU64::new(u64::MAX),
        };
        reserve.refresh();
        reserve
    }

    /// Reads the file system once. Cheap (one statvfs); called every second.
    pub(crate) fn refresh(&self) {
        let Some(dir) = &self.data_dir else { return };
        match rustix::fs::statvfs(dir) {
            Ok(fs) => self.note(
                fs.f_bavail.saturating_mul(fs.f_frsize),
                fs.f_blocks.saturating_mul(fs.f_frsize),
            ),
            Err(cause) => {
                tracing::warn!(data_dir = %dir.display(), error = %cause, "cannot read free space")
            }
        }
    }

    fn note(&self, available: u64, total: u64) {
        self.available_bytes.store(available, Ordering::Relaxed);
        self.total_bytes.store(total, Ordering::Relaxed);
        let low = is_low(available, total);
        if self.low.swap(low, Ordering::Relaxed) != low {
            if low {
                tracing::error!(
                    disk.available_bytes = available,
                    disk.total_bytes = total,
                    "disk reserve reached, refusing writes"
                );
            } else {
                tracing::info!(
                    disk.available_bytes = available,
                    "disk has room again, accepting writes"
                );
            }
        }
    }

    /// Bytes available to us.
    pub(crate) fn available_bytes(&self) -> u64 {
        self.available_bytes.load(Ordering::Relaxed)
    }

    /// `Err` with the text for users when writes must be refused.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.low.load(Ordering::Relaxed) {
            return Ok(());
        }
        let dir = self
            .data_dir
            .as_deref()
            .map(|d| d.display().to_string())
            .unwrap_or_default();
        let total = self.total_bytes.load(Ordering::Relaxed);
        Err(format!(
            "disk nearly full: {} MiB of {} MiB free under {dir}, below the reserve of {} MiB; \
             nothing was written, reads go on; free space or grow the disk and writes resume by themselves",
            self.available_bytes.load(Ordering::Relaxed) >> 20,
            total >> 20,
            reserve_of(total) >> 20,
        ))
    }
}

/// Bytes of a file system of `total` bytes that are kept free.
fn reserve_of(total: u64) -> u64 {
    (total / 100 * RESERVE_PERCENT).min(RESERVE_MAX_BYTES)
}

fn is_low(available: u64, total: u64) -> bool {
    available < reserve_of(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_percent_is_the_line_up_to_four_gibibytes() {
        let gib = 1 << 30;
        for (available, total, low) in [
            (500, 10_000, false),
            (499, 10_000, true),
            (0, 0, false),
            (u64::MAX, u64::MAX, false),
            (4 * gib, 80 * gib, false),
            (3 * gib, 80 * gib, true),
            (5 * gib, 8_000 * gib, false),
            (4 * gib - 1, 8_000 * gib, true),
        ] {
            assert_eq!(is_low(available, total), low, "{available} of {total}");
        }
    }

    #[test]
    fn refuses_while_low_and_resumes() {
        let reserve = DiskReserve::new(None);
        reserve.note(1 << 20, 100 << 20);
        assert!(
            reserve
                .check()
                .unwrap_err()
                .contains("1 MiB of 100 MiB free")
        );
        reserve.note(50 << 20, 100 << 20);
        assert!(reserve.check().is_ok());
    }
}
