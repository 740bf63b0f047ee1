//! A token bucket.
//!
//! Owns: how many may pass. Never: reads a clock.

use std::time::Duration;

/// Lets `per_second` pass on average, `burst` at once.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u64,
    burst: u64,
    /// In thousandths.
    tokens: u64,
    filled: Duration,
}

impl Bucket {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let (per_second, burst) = (u64::from(per_second.max(1)), u64::from(burst.max(1)));
        Self {
            per_second,
            burst,
            tokens: burst * 1_000,
            filled: Duration::ZERO,
        }
    }

    /// Takes a token; else says when there may be one: later for each who asks meanwhile is for
    /// the jitter of those who ask.
    pub(super) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let since = now.saturating_sub(self.filled);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            let more = millis.saturating_mul(self.per_second);
            self.tokens = self.tokens.saturating_add(more).min(self.burst * 1_000);
            self.filled = now;
        }
        if self.tokens >= 1_000 {
            self.tokens -= 1_000;
            return Ok(());
        }
        // A burst's worth of time: of those refused, so many can come in then.
        Err(Duration::from_millis(
            (self.burst * 1_000 / self.per_second).max(100),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate() {
        let mut bucket = Bucket::new(10, 3);
        let at = Duration::from_millis;
        for _ in 0..3 {
            assert_eq!(bucket.take(at(0)), Ok(()));
        }
        assert_eq!(bucket.take(at(0)), Err(at(300)));
        assert_eq!(bucket.take(at(50)), Err(at(300)));
        assert_eq!(bucket.take(at(100)), Ok(()));
        assert!(bucket.take(at(150)).is_err());
        // A long silence is worth no more than a burst.
        for _ in 0..3 {
            assert_eq!(bucket.take(at(60_000)), Ok(()));
        }
        assert!(bucket.take(at(60_000)).is_err());
    }
}
