//! Memory that start-up needed and most of which nothing needs again.
//!
//! Owns: letting go, once, of the pages of code and constants that were read so far.
//! Never: touches a page that holds anything but what the file on disk holds.

use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// Start-up is over by then; what is used from now on is what an idle agent uses.
const AFTER: Duration = Duration::from_secs(3);

/// A part of the address space, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: usize,
    end: usize,
}

/// Some seconds after the start, lets go of every clean page of the binary, whoever used it. What goes on
/// being used is mapped again from the page cache at its next use, at the price of a minor fault a page; what
/// only starting needed (parsing arguments and configuration, opening the log, forming) stays away.
pub(super) async fn settle() {
    tokio::time::sleep(AFTER).await;
    // The kernel walks the page tables for this file: not a thing for a thread that serves others.
    let released = tokio::task::spawn_blocking(|| {
        let smaps = std::fs::read_to_string("/proc/self/smaps")?;
        let ranges = clean_code(&smaps, own_code());
        Ok::<usize, std::io::Error>(ranges.into_iter().map(release).sum())
    });
    match released.await {
        Ok(Ok(bytes)) => tracing::debug!(bytes, "let go of the clean pages of the binary"),
        Ok(Err(error)) => tracing::debug!(%error, "the pages of the binary stay: no smaps"),
        // The runtime is ending.
        Err(_) => {}
    }
}

/// An address within our code.
fn own_code() -> usize {
    own_code as fn() -> usize as usize
}

/// The mappings of the file that holds the code at `address`, without those that may be written or hold a
/// page that differs from the file (relocated constants). The binary is never unmapped, so the ranges stay
/// true; a library's might not.
///
/// Source: proc(5), `/proc/PID/smaps`.
fn clean_code(smaps: &str, address: usize) -> Vec<Range> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            mappings.push(mapping);
        } else if let (Some(size), Some(last)) =
            (line.strip_prefix("Anonymous:"), mappings.last_mut())
        {
            last.clean = size.trim() == "0 kB";
        }
    }
    let holds =
        |mapping: &&Mapping<'_>| (mapping.range.start..mapping.range.end).contains(&address);
    let Some(file) = mappings.iter().find(holds).map(|mapping| mapping.file) else {
        return Vec::new();
    };
    let ours = mappings.iter().filter(|mapping| mapping.file == file);
    ours.filter(|mapping| mapping.clean && mapping.is_private_and_read_only())
        .map(|mapping| mapping.range)
        .collect()
}

struct Mapping<'l> {
    range: Range,
    permissions: &'l str,
    /// Device and inode.
    file: (&'l str, &'l str),
    /// No page differs from the file's.
    clean: bool,
}

impl<'l> Mapping<'l> {
    /// `None` for a line that does not begin a mapping.
    fn parse(line: &'l str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = Range {
            start: usize::from_str_radix(start, 16).ok()?,
            end: usize::from_str_radix(end, 16).ok()?,
        };
        let (permissions, _offset) = (fields.next()?, fields.next()?);
        Some(Self {
            range,
            permissions,
            file: (fields.next()?, fields.next()?),
            clean: false,
        })
    }

    fn is_private_and_read_only(&self) -> bool {
        matches!(self.permissions, "r--p" | "r-xp")
    }
}

#[expect(
    unsafe_code,
    reason = "madvise takes addresses; there is no safe form of it"
)]
fn release(range: Range) -> usize {
    let bytes = range.end - range.start;
    // SAFETY: the range is a private mapping of a file that is never written through and holds no page that
    // differs from the file, so dropping its pages changes nothing that a read can see. A file that is being
    // executed cannot be written by others.
    let done = unsafe {
        madvise(
            std::ptr::with_exposed_provenance_mut(range.start),
            bytes,
            Advice::LinuxDontNeed,
        )
    };
    if done.is_ok() { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-2000 r--p 00000000 fe:00 10 /opt/bin/weft (deleted)
Rss: 4 kB
Anonymous: 0 kB
2000-9000 r-xp 00001000 fe:00 10 /opt/bin/weft (deleted)
Anonymous: 0 kB
9000-a000 r--p 00008000 fe:00 10 /opt/bin/weft (deleted)
Anonymous: 4 kB
a000-b000 rw-p 00009000 fe:00 10 /opt/bin/weft (deleted)
Anonymous: 0 kB
b000-c000 r--p 00000000 00:00 0
Anonymous: 0 kB
d000-e000 r-xp 00000000 fe:00 11 /usr/lib/libc.so.6
Anonymous: 0 kB
";

    #[test]
    fn only_what_our_file_still_holds_is_let_go() {
        let range = |start, end| Range { start, end };
        let expected = [range(0x1000, 0x2000), range(0x2000, 0x9000)];
        assert_eq!(clean_code(SMAPS, 0x2345), expected);
        assert_eq!(clean_code(SMAPS, 0xf000), []);
        assert_eq!(clean_code("what is this", 0x2345), []);
    }

    #[test]
    fn the_process_goes_on_unharmed() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ranges = clean_code(&smaps, own_code());
        let released: usize = ranges.into_iter().map(release).sum();
        assert!(released > 100_000, "{released}");
        assert_eq!(format!("{:?}", Some("still here")), "Some(\"still here\")");
    }
}
