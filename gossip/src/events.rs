//! User events: small messages that reach every member once.
//!
//! Owns: the Lamport clock of events, which of them were heard already, and those kept for members
//! that missed them (handed over with the full state).
//! Never: looks inside an event, or sends one; the core and foca do.
//! Source: Serf docs, "Custom events"; Lamport, "Time, clocks, and the ordering of events" (1978).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::GossipError;
use crate::wire::fnv1a;

/// Bytes of an event's body at most. Two such events and a header still fit a datagram.
pub const EVENT_MAX_BYTES: usize = 512;
/// Own events that may wait to be sent; further ones are refused.
pub const EVENTS_WAITING_MAX: usize = 256;
/// Events of others that may wait to be passed on; further ones are left to the exchange of full states.
pub(crate) const EVENTS_RELAYED_MAX: usize = 1_024;
/// How far behind the clock an event may be and still be news.
const WINDOW: u64 = 512;
/// Events remembered at most, whatever their times.
const REMEMBERED_MAX: usize = 2_048;
/// Newest events handed over in an exchange of full states.
const HANDED_OVER_MAX: usize = 512;
/// Times from here on are no clock of ours.
const TIME_MAX: u64 = 1 << 62;
/// How far the clock may be moved at once: one peer cannot use up all times there are.
const LEAP_MAX: u64 = 1 << 32;

/// The clock of a pool without events. As Serf: the first event has the time 2.
const FIRST_TIME: u64 = 1;

/// An event's 16 bytes of identity, random.
pub type EventId = [u8; 16];

/// An event as a member heard it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    /// Who fires it chooses it; two events are one if it is the same.
    pub id: EventId,
    /// Lamport time: an event fired by somebody who had heard this one has a higher one.
    pub time: u64,
    /// What it says, at most [`EVENT_MAX_BYTES`]; opaque here.
    pub body: Vec<u8>,
}

/// What a member tells of events in an exchange of full states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventsTold {
    time: u64,
    events: Vec<Told>,
}

/// An event, and how long ago it was heard first, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    event: UserEvent,
    age_ms: u64,
}

/// The events one member has heard.
#[derive(Debug)]
pub(crate) struct Events {
    /// The highest time heard of.
    time: u64,
    /// Events before this time were forgotten or never ours to hear.
    floor: u64,
    heard: BTreeMap<(u64, EventId), Heard>,
    /// Milliseconds of the core's clock, as are all times of day here.
    now_ms: i64,
    /// What was heard before, elsewhere, happened before we came.
    started_ms: i64,
    /// Events that came too late to tell whether they had been heard.
    pub(crate) late: u64,
}

#[derive(Debug)]
struct Heard {
    body: Vec<u8>,
    /// When it was heard first by whoever told us; maybe before our clock began.
    at_ms: i64,
}

fn millis(of: Duration) -> i64 {
    i64::try_from(of.as_millis()).unwrap_or(i64::MAX)
}

impl Events {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            time: FIRST_TIME,
            floor: 0,
            heard: BTreeMap::new(),
            now_ms: millis(now),
            started_ms: millis(now),
            late: 0,
        }
    }

    /// It is `now`.
    pub(crate) fn pass(&mut self, now: Duration) {
        self.now_ms = millis(now);
    }

    /// An event of this member, now.
    ///
    /// Errors: [`GossipError::EventTooLarge`].
    pub(crate) fn stamp(&self, id: EventId, body: Vec<u8>) -> Result<UserEvent, GossipError> {
        if body.len() > EVENT_MAX_BYTES {
            return Err(GossipError::EventTooLarge {
                size: body.len(),
                max: EVENT_MAX_BYTES,
            });
        }
        let time = self.time + 1;
        Ok(UserEvent { id, time, body })
    }

    /// Whether `event` is news; remembers it when it is.
    pub(crate) fn hear(&mut self, event: &UserEvent) -> bool {
        self.remember(event, self.now_ms)
    }

    fn remember(&mut self, event: &UserEvent, at_ms: i64) -> bool {
        if event.body.len() > EVENT_MAX_BYTES || !self.may_be(event.time) {
            return false;
        }
        self.time = self.time.max(event.time);
        if event.time < self.floor || event.time.saturating_add(WINDOW) < self.time {
            self.late += 1;
            return false;
        }
        let key = (event.time, event.id);
        if self.heard.contains_key(&key) {
            return false;
        }
        let body = event.body.clone();
        self.heard.insert(key, Heard { body, at_ms });
        self.forget();
        true
    }

    fn may_be(&self, time: u64) -> bool {
        time < TIME_MAX && time <= self.time.saturating_add(LEAP_MAX)
    }

    /// Forgets what is too old to be told from news, by refusing everything of its time.
    fn forget(&mut self) {
        self.floor = self.floor.max(self.time.saturating_sub(WINDOW));
        while let Some(entry) = self.heard.first_entry() {
            let (time, _) = *entry.key();
            if time < self.floor {
                entry.remove();
            } else if self.heard.len() > REMEMBERED_MAX {
                self.floor = time + 1;
            } else {
                break;
            }
        }
    }

    /// A number that differs when what is told would.
    pub(crate) fn digest(&self) -> u64 {
        let skipped = self.heard.len().saturating_sub(HANDED_OVER_MAX);
        let heard = self.heard.keys().skip(skipped);
        heard.fold(self.time, |sum, (time, id)| {
            sum.wrapping_add(fnv1a(id) ^ *time)
        })
    }

    /// For a peer: the clock, and the newest events.
    pub(crate) fn tell(&self) -> EventsTold {
        let skipped = self.heard.len().saturating_sub(HANDED_OVER_MAX);
        let events = self.heard.iter().skip(skipped);
        EventsTold {
            time: self.time,
            events: events
                .map(|((time, id), heard)| Told {
                    event: UserEvent {
                        id: *id,
                        time: *time,
                        body: heard.body.clone(),
                    },
                    age_ms: u64::try_from(self.now_ms.saturating_sub(heard.at_ms)).unwrap_or(0),
                })
                .collect(),
        }
    }

    /// What a peer told: the events to hear now, of at most [`HANDED_OVER_MAX`].
    ///
    /// Those heard before this member started are only remembered, so that they are not taken for news when
    /// they come by gossip: what a restart missed must not be done again.
    pub(crate) fn told(&mut self, told: EventsTold) -> Vec<UserEvent> {
        if self.may_be(told.time) {
            self.time = self.time.max(told.time);
        }
        let skipped = told.events.len().saturating_sub(HANDED_OVER_MAX);
        let mut missed = Vec::new();
        for Told { event, age_ms } in told.events.into_iter().skip(skipped) {
            let age_ms = i64::try_from(age_ms).unwrap_or(i64::MAX);
            let at_ms = self.now_ms.saturating_sub(age_ms);
            if at_ms < self.started_ms {
                self.remember(&event, at_ms);
            } else if !self.heard.contains_key(&(event.time, event.id)) {
                missed.push(event);
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000);

    fn event(time: u64, n: u8) -> UserEvent {
        UserEvent {
            id: [n; 16],
            time,
            body: vec![n],
        }
    }

    fn times(told: &EventsTold) -> Vec<u64> {
        told.events.iter().map(|told| told.event.time).collect()
    }

    #[test]
    fn an_event_is_news_once_and_moves_the_clock() {
        let mut events = Events::new(START);
        let own = events.stamp([1; 16], vec![1]).unwrap();
        assert_eq!(own.time, 2);
        assert!(events.hear(&own) && !events.hear(&own));
        assert!(events.hear(&event(9, 2)), "a time far ahead");
        assert!(events.hear(&event(3, 3)), "late, but within the window");
        assert_eq!(events.stamp([4; 16], Vec::new()).unwrap().time, 10);
    }

    #[test]
    fn what_is_too_old_to_tell_apart_is_dropped_and_counted() {
        let mut events = Events::new(START);
        assert!(events.hear(&event(5, 1)));
        assert!(events.hear(&event(5 + WINDOW, 2)));
        assert!(!events.hear(&event(5, 1)), "still remembered");
        assert!(events.hear(&event(6 + WINDOW, 3)));
        assert!(!events.hear(&event(5, 1)), "forgotten, and refused");
        assert_eq!(events.late, 1);
    }

    #[test]
    fn events_of_one_time_are_bounded_and_never_heard_twice() {
        let mut events = Events::new(START);
        let many: Vec<_> = (0..=REMEMBERED_MAX as u32)
            .map(|n| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&n.to_be_bytes());
                UserEvent {
                    id,
                    time: 7,
                    body: Vec::new(),
                }
            })
            .collect();
        assert!(many.iter().all(|event| events.hear(event)));
        assert!(events.heard.len() <= REMEMBERED_MAX);
        assert!(!many.iter().any(|event| events.hear(event)));
    }

    fn fired(by: &mut Events, n: u8) -> UserEvent {
        let event = by.stamp([n; 16], vec![n]).unwrap();
        assert!(by.hear(&event));
        event
    }

    #[test]
    fn who_joins_hears_what_comes_after() {
        let mut old = Events::new(Duration::ZERO);
        for n in 1..=3 {
            fired(&mut old, n);
        }
        old.pass(START + Duration::from_secs(1));
        let mut new = Events::new(Duration::from_secs(5));
        new.pass(Duration::from_secs(6));
        let fresh = Events::new(START);
        assert!(new.told(fresh.tell()).is_empty(), "it started with us");
        assert!(new.told(old.tell()).is_empty());
        assert_eq!(new.time, 4);
        assert!(!new.hear(&event(3, 2)), "by gossip, from before the join");
        let missed = fired(&mut old, 9);
        assert_eq!(new.told(old.tell()), [missed], "missed since the join");
        let mut third = Events::new(Duration::ZERO);
        third.pass(Duration::from_secs(20));
        assert!(
            third.told(new.tell()).is_empty(),
            "what was before the second came was before the third, too"
        );
        assert_eq!(third.heard.len(), 3);
    }

    #[test]
    fn the_first_event_of_a_pool_is_told_to_who_missed_it() {
        let (mut one, mut other) = (Events::new(START), Events::new(START));
        other.told(one.tell());
        let first = fired(&mut one, 1);
        assert_eq!(other.told(one.tell()), [first]);
    }

    #[test]
    fn a_peer_cannot_tell_without_end() {
        let mut events = Events::new(START);
        let told = |n: u64| Told {
            event: event(n / 4, (n % 4) as u8),
            age_ms: 0,
        };
        let told = EventsTold {
            time: 9,
            events: (0..2_000).map(told).collect(),
        };
        assert_eq!(events.told(told).len(), HANDED_OVER_MAX);
    }

    #[test]
    fn a_peer_is_told_the_newest() {
        let mut events = Events::new(START);
        for n in 0..600_u64 {
            let mut event = event(2, 0);
            event.id[..8].copy_from_slice(&n.to_be_bytes());
            event.time = 2 + n / 2;
            assert!(events.hear(&event));
        }
        let told = events.tell();
        assert_eq!(told.events.len(), HANDED_OVER_MAX);
        assert_eq!(times(&told).last(), Some(&301));
    }

    #[test]
    fn a_size_or_a_time_out_of_bounds_is_refused() {
        let mut events = Events::new(START);
        let error = events.stamp([1; 16], vec![0; EVENT_MAX_BYTES + 1]);
        assert_eq!(error.unwrap_err().reason(), "gossip.event_too_large");
        assert!(events.stamp([1; 16], vec![0; EVENT_MAX_BYTES]).is_ok());
        assert!(!events.hear(&event(u64::MAX, 1)));
        let told = EventsTold {
            time: u64::MAX,
            events: vec![Told {
                event: event(TIME_MAX, 2),
                age_ms: u64::MAX,
            }],
        };
        assert!(events.told(told).is_empty());
        assert_eq!(events.time, 1);
        let leap = |time| EventsTold {
            time,
            events: Vec::new(),
        };
        assert!(!events.hear(&event(TIME_MAX - 1, 3)));
        events.told(leap(TIME_MAX - 1));
        assert_eq!(events.time, 1, "nobody uses up all times at once");
        events.told(leap(LEAP_MAX));
        let own = events.stamp([4; 16], Vec::new()).unwrap();
        assert!(events.hear(&own));
    }
}
