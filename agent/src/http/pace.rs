//! The pace at which a client must send a body.
//!
//! Owns: [`Paced`], a request body whose next piece is waited for only as long as the sender keeps up.
//! Never: bounds the size, or counts the time in which nobody asked for the next piece: a receiver
//! that is slow is not the sender's fault.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use weft_proto::clock::Clock;

use super::error::Failure;

/// What a sender must reach on average once its first grace is used up: below it, a byte now and
/// then would hold a connection for ever without ever being silent for long.
const BYTES_PER_SECOND_MIN: u64 = 1_024;

/// A request body under watch.
pub(super) struct Paced {
    body: Incoming,
    clock: Arc<dyn Clock>,
    spent: Spent,
}

impl Paced {
    /// `stall`: the longest wait for the next piece (`http_config.stall_timeout`).
    pub(super) fn new(body: Incoming, clock: Arc<dyn Clock>, stall: Duration) -> Self {
        Self {
            body,
            clock,
            spent: Spent {
                stall,
                waited: Duration::ZERO,
                bytes: 0,
            },
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// Errors: 400 when the body ends before it is whole, 408 when the sender does not keep up.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        loop {
            let from = self.clock.monotonic();
            let frame = tokio::time::timeout(self.spent.left(), self.body.frame()).await;
            self.spent.waited += self.clock.monotonic().saturating_sub(from);
            let Ok(frame) = frame else {
                return Some(Err(self.spent.failure()));
            };
            let text = "The request body ended early";
            match frame?.map_err(|_| Failure::bad_request("http.body", text)) {
                Ok(frame) => {
                    // Trailers say nothing to us.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    self.spent.bytes += data.len() as u64;
                    return Some(Ok(data));
                }
                Err(failure) => return Some(Err(failure)),
            }
        }
    }
}

/// How long a sender was waited for, and what it sent in that time.
#[derive(Clone, Copy, Debug)]
struct Spent {
    stall: Duration,
    waited: Duration,
    bytes: u64,
}

impl Spent {
    /// How long the next piece may take: the grace and what the bytes so far have earned, less what
    /// was waited, and never more than the grace alone.
    fn left(&self) -> Duration {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1_000) / BYTES_PER_SECOND_MIN);
        self.stall
            .min((self.stall + earned).saturating_sub(self.waited))
    }

    fn failure(&self) -> Failure {
        let text = format!(
            "The request body stalled: {} bytes came in {:.1} s of waiting for the next, which is less than http_config.stall_timeout ({}) and {BYTES_PER_SECOND_MIN} bytes per second allow",
            self.bytes,
            self.waited.as_secs_f64(),
            weft_proto::duration::format(self.stall),
        );
        Failure::new(StatusCode::REQUEST_TIMEOUT, "http.body.stalled", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_senders_have_all_the_time_and_tricklers_little() {
        let left = |waited, bytes| {
            let spent = Spent {
                stall: Duration::from_secs(30),
                waited: Duration::from_secs(waited),
                bytes,
            };
            spent.left().as_secs()
        };
        assert_eq!(left(0, 0), 30);
        assert_eq!(left(29, 0), 1);
        assert_eq!(left(29, 29), 1, "a byte a second earns nothing");
        assert_eq!(left(600, 1 << 20), 30, "a megabyte in ten minutes does");
        assert_eq!(left(1_200, 1 << 20), 0);
    }
}
