//! Which failures are logged: the first of its kind at once, its repetitions once a second with their number.
//!
//! Owns: counting what was left out. A full disk under load must not be filled by its own log.
//! Never: decides what a failure is.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

/// A kind is heard at most this often.
const EVERY: Duration = Duration::from_secs(1);
/// Kinds remembered; reason ids are fewer.
const REASONS_MAX: usize = 512;

/// What was said last of each reason.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    by_reason: Mutex<HashMap<String, Said>>,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: Duration,
    left_out: u64,
}

impl Complaints {
    /// `Some(n)`: say it now, and that `n` more like it were not said since the last time.
    pub(super) fn admit(&self, reason: &str, now: Duration) -> Option<u64> {
        let mut by_reason = self.by_reason.lock();
        let Some(said) = by_reason.get_mut(reason) else {
            let first = Said {
                at: now,
                left_out: 0,
            };
            if by_reason.len() >= REASONS_MAX {
                by_reason.clear();
            }
            by_reason.insert(reason.to_owned(), first);
            return Some(0);
        };
        if now.saturating_sub(said.at) < EVERY {
            said.left_out += 1;
            return None;
        }
        let left_out = std::mem::take(&mut said.left_out);
        said.at = now;
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_counted_not_said() {
        let (complaints, ms) = (Complaints::default(), Duration::from_millis);
        assert_eq!(complaints.admit("raft.disk_full", ms(0)), Some(0));
        for n in 1..1_000 {
            assert_eq!(complaints.admit("raft.disk_full", ms(n)), None);
        }
        assert_eq!(
            complaints.admit("raft.no_leader", ms(500)),
            Some(0),
            "another kind"
        );
        assert_eq!(complaints.admit("raft.disk_full", ms(1_000)), Some(999));
        assert_eq!(complaints.admit("raft.disk_full", ms(9_000)), Some(0));
    }
}
