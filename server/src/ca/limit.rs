//! How many leaves are signed: so many a second, so many at once.
//!
//! Owns: both counts. Never: reads a clock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// What is left of the rate.
#[derive(Debug, Default)]
struct Bucket {
    tokens: f64,
    at: Option<Duration>,
}

/// Both limits.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    bucket: Mutex<Bucket>,
    signing: AtomicU32,
}

/// Why not now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Full {
    /// The next may come after so long.
    Rate(Duration),
    /// So many are under way.
    Concurrent,
}

/// A place among those that are being signed.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Limit {
    /// Takes a place. `most` at once counts alone when it is not 0, as in Consul.
    pub(crate) fn enter(
        &self,
        per_second: f64,
        most: u32,
        now: Duration,
    ) -> Result<Place<'_>, Full> {
        let under_way = self.signing.fetch_add(1, Ordering::AcqRel) + 1;
        let place = Place(&self.signing);
        if most > 0 {
            return if under_way > most {
                Err(Full::Concurrent)
            } else {
                Ok(place)
            };
        }
        if per_second > 0.0 {
            self.bucket
                .lock()
                .take(per_second, now)
                .map_err(Full::Rate)?;
        }
        Ok(place)
    }
}

impl Bucket {
    fn take(&mut self, per_second: f64, now: Duration) -> Result<(), Duration> {
        let burst = per_second.max(1.0);
        let since = self.at.map_or(Duration::MAX, |at| now.saturating_sub(at));
        self.tokens = if since == Duration::MAX {
            burst
        } else {
            (self.tokens + since.as_secs_f64() * per_second).min(burst)
        };
        self.at = Some(now);
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64(
                ((1.0 - self.tokens) / per_second).min(60.0),
            ));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_and_so_many_at_once() {
        let ms = Duration::from_millis;
        let limit = Limit::default();
        let ask = |per_second, most, at| limit.enter(per_second, most, ms(at)).map(drop);
        assert_eq!([ask(2.0, 0, 0), ask(2.0, 0, 0)], [Ok(()), Ok(())]);
        assert_eq!(ask(2.0, 0, 0), Err(Full::Rate(ms(500))));
        assert_eq!(ask(2.0, 0, 250), Err(Full::Rate(ms(250))));
        assert_eq!([ask(2.0, 0, 500), ask(0.0, 0, 500)], [Ok(()), Ok(())]);
        let first = limit.enter(0.0, 1, ms(0)).unwrap();
        assert_eq!(ask(0.0, 1, 0), Err(Full::Concurrent));
        drop(first);
        assert_eq!(ask(0.0, 1, 0), Ok(()));
    }
}
