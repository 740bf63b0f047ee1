//! The seam for time: drivers hold a [`Clock`], cores are told `now`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ids::UnixMillis;

/// A source of time with two sides: the machine's, and the simulator's.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time since an arbitrary start. Never runs back.
    fn monotonic(&self) -> Duration;
    /// Wall-clock time. May jump.
    fn wall(&self) -> UnixMillis;
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
