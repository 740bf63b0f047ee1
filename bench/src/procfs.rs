//! What the kernel says about our server processes: CPU time and memory.
//!
//! Source: proc(5), `/proc/PID/stat` fields 14 and 15, `/proc/PID/status`, `/proc/PID/smaps_rollup`.

use std::time::Duration;

use anyhow::{Context, Result};

/// Memory of one process, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident pages, shared ones included.
    pub(crate) rss_kib: u64,
    /// Resident pages, each shared one divided among those who share it.
    pub(crate) pss_kib: u64,
}

/// CPU time (user and system) of the process and all threads it ever had. The kernel counts in clock ticks.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    cpu_of(&stat, rustix::param::clock_ticks_per_second())
        .context("/proc/PID/stat has another form")
}

/// CPU time of the threads the process has now, in nanoseconds as the scheduler counts it: for a process that uses
/// less than a tick. What threads used that have ended since is not in it.
///
/// Source: Linux, Documentation/scheduler/sched-stats.rst, `/proc/PID/schedstat`.
pub(crate) fn cpu_of_threads(pid: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is gone"))?;
    for thread in threads {
        let path = thread?.path().join("schedstat");
        // A thread may end while the others are read.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
        all += Duration::from_nanos(nanos.unwrap_or(0));
    }
    Ok(all)
}

/// The sum over several processes.
pub(crate) fn cpu_sum(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu(*pid)).sum()
}

fn cpu_of(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The second field is the program's name in parentheses, which may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_micros(
        (user + system) * 1_000_000 / ticks_per_second,
    ))
}

/// Memory of the process now. `pss_kib` is 0 when the kernel does not tell it.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let rss_kib = kib(&status, "VmRSS:").context("/proc/PID/status has no VmRSS")?;
    Ok(Memory {
        rss_kib,
        pss_kib: kib(&rollup, "Pss:").unwrap_or(0),
    })
}

fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 5 0 100 0 0";
        assert_eq!(cpu_of(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu_of("nonsense", 100), None);
        assert_eq!(
            kib("VmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n", "VmRSS:"),
            Some(1234)
        );
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss_kib > 0);
        assert!(cpu(pid).is_ok());
        assert!(cpu_of_threads(pid).unwrap() > Duration::ZERO);
    }
}
