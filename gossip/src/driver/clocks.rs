//! How far the wall clocks of members are from ours.
//!
//! Owns: whom to ask next, what was measured, and when it is worth a word.
//! Never: sets a clock, or counts a difference that the way there and back explains.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::clock::Clock;

use super::fence;
use crate::keyring::Framer;
use crate::member::{Member, MemberStatus};

/// From this on a difference is said: certificates, locks and sessions of both ends begin to disagree.
pub(super) const BOUND: Duration = Duration::from_secs(2);

/// What was measured of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skew {
    /// Its clock less ours, in milliseconds.
    pub(super) ahead_millis: i64,
    /// By how much that may be wrong.
    pub(super) give_or_take: Duration,
}

impl Skew {
    /// `theirs` was read between `before` and `after` of our wall clock, in milliseconds.
    fn between(before: u64, theirs: u64, after: u64) -> Self {
        let way = after.saturating_sub(before);
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            ahead_millis: signed(theirs).saturating_sub(signed(before.saturating_add(way / 2))),
            give_or_take: Duration::from_millis(way.div_ceil(2)),
        }
    }

    /// Whether the clocks differ by more than [`BOUND`] whatever the way took.
    pub(super) fn is_over(&self) -> bool {
        self.least() > BOUND
    }

    fn least(&self) -> Duration {
        Duration::from_millis(self.ahead_millis.unsigned_abs()).saturating_sub(self.give_or_take)
    }
}

/// Measures the clock of the member at `peer`.
pub(super) async fn measure(peer: SocketAddr, framer: &Framer, clock: &dyn Clock) -> Option<Skew> {
    let begun = clock.monotonic();
    let before = clock.wall().get();
    let theirs = fence::clock_at(peer, framer).await?;
    // Our own clock may be set meanwhile: the way is measured by the one that is not.
    let took = clock.monotonic().saturating_sub(begun);
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Some(Skew::between(before, theirs, before.saturating_add(took)))
}

/// What is known of all members.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    by_id: BTreeMap<String, Skew>,
    turn: usize,
}

impl Clocks {
    /// Whom to ask next: a server and any member by turns, so that a small part of the pool is known soon and all of
    /// it in the end. Forgets who is gone.
    pub(super) fn next(&mut self, members: &[Arc<Member>], own: &str) -> Option<Arc<Member>> {
        let others = || {
            members
                .iter()
                .filter(|m| m.id != own && m.status == MemberStatus::Alive)
        };
        self.by_id.retain(|id, _| others().any(|m| m.id == *id));
        self.turn += 1;
        let (round, any) = (self.turn / 2, self.turn.is_multiple_of(2));
        let chosen: Vec<_> = others()
            .filter(|m| any || m.tag("role") == "consul")
            .collect();
        let chosen = match chosen.is_empty() {
            true => others().collect(),
            false => chosen,
        };
        chosen
            .get(round % chosen.len().max(1))
            .map(|member| Arc::clone(member))
    }

    pub(super) fn note(&mut self, id: String, skew: Skew) {
        self.by_id.insert(id, skew);
    }

    pub(super) fn of(&self, id: &str) -> Option<Skew> {
        self.by_id.get(id).copied()
    }

    /// The largest difference that is certain, in milliseconds.
    pub(super) fn worst_millis(&self) -> u64 {
        let worst = self.by_id.values().map(Skew::least).max();
        u64::try_from(worst.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_explains_is_no_difference() {
        let same = Skew::between(10_000, 10_040, 10_100);
        assert_eq!((same.ahead_millis, same.is_over()), (-10, false));
        assert!(!Skew::between(10_000, 15_000, 20_000).is_over());
        assert!(!Skew::between(10_000, 18_900, 20_000).is_over());
        assert!(Skew::between(10_000, 12_101, 10_100).is_over());
        assert!(Skew::between(10_000, 7_900, 10_050).is_over());
        assert!(Skew::between(10_000, 0, 10_000).ahead_millis < 0);
    }
}
