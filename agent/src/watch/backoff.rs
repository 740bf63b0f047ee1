//! How long to pause after a failure.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Pause after the first failure; it grows with the square of their number.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause, before jitter.
const LONGEST: Duration = Duration::from_secs(180);

/// Failures in a row, and dice so that many watchers do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    rng: SmallRng,
}

impl Backoff {
    /// `seed` should differ between watchers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// All is well again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// One more failure: pause so long, up to a quarter of it by chance.
    pub fn pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = FIRST
            .saturating_mul(self.failures.saturating_mul(self.failures))
            .min(LONGEST);
        pause.mul_f64(self.rng.random_range(1.0..=1.25))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ_between_watchers() {
        let (mut a, mut b) = (Backoff::new(1), Backoff::new(2));
        let mut last = Duration::ZERO;
        for nth in 1..40_u32 {
            let (one, other) = (a.pause(), b.pause());
            assert_ne!(one, other);
            let least = Duration::from_secs(u64::from(nth * nth).min(180));
            assert!(one >= least && one <= least.mul_f64(1.25), "{nth}: {one:?}");
            last = one;
        }
        assert!(last >= LONGEST);
        a.reset();
        assert!(a.pause() < Duration::from_secs(2));
    }
}
