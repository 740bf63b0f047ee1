//! User events: firing them, passing them on, and taking in those that were missed.
//!
//! Owns: how many may wait to be sent. Never: reads an event; users do.

use std::time::Duration;

use super::{Core, Phase};
use crate::error::GossipError;
use crate::events::{EVENTS_RELAYED_MAX, EVENTS_WAITING_MAX, EventId, EventsTold};
use crate::wire::{Notice, lock};

impl Core {
    /// Fires an event: every member hears it once, this one at once, and those that join later do not.
    /// Answers its Lamport time.
    ///
    /// Errors: [`GossipError::EventTooLarge`], [`GossipError::EventsWaiting`], [`GossipError::Stopped`].
    pub fn fire(&mut self, now: Duration, id: EventId, body: Vec<u8>) -> Result<u64, GossipError> {
        self.pass(now);
        if self.phase == Phase::Gone {
            return Err(GossipError::Stopped);
        }
        let waiting = self.swim.custom_broadcast_backlog();
        if self.swim.num_members() > 0 && waiting >= EVENTS_WAITING_MAX {
            return Err(GossipError::EventsWaiting {
                waiting,
                max: EVENTS_WAITING_MAX,
            });
        }
        let event = lock(&self.shared).events.stamp(id, body)?;
        let time = event.time;
        self.hear(&Notice::Event(event).encode());
        self.hurry();
        self.settle();
        Ok(time)
    }

    /// A round out of turn, so that a single event does not wait; many together wait for the next one.
    fn hurry(&mut self) {
        let pause = self.config.timing.gossip_interval / 4;
        if self
            .hurried_at
            .is_some_and(|at| self.effects.now < at + pause)
        {
            return;
        }
        self.hurried_at = Some(self.effects.now);
        if let Err(error) = self.swim.gossip(&mut self.effects) {
            tracing::debug!(%error, "gossip round");
        }
    }

    /// It is `now`, for all parts that ask.
    pub(super) fn pass(&mut self, now: Duration) {
        self.effects.now = now;
        let mut shared = lock(&self.shared);
        shared.now = now;
        shared.events.pass(now);
    }

    /// Events that came too late to tell whether they had been heard before.
    #[must_use]
    pub fn events_late(&self) -> u64 {
        lock(&self.shared).events.late
    }

    /// Notices that wait to be sent, events among them.
    #[must_use]
    pub fn notices_waiting(&self) -> usize {
        self.swim.custom_broadcast_backlog()
    }

    pub(super) fn may_relay(&self) -> bool {
        // Alone, they would wait for somebody to whom they are from before the join.
        self.swim.num_members() > 0 && self.swim.custom_broadcast_backlog() < EVENTS_RELAYED_MAX
    }

    pub(super) fn merge_events(&mut self, told: EventsTold, pass_on: bool) {
        let missed = lock(&self.shared).events.told(told);
        for event in missed {
            let notice = Notice::Event(event);
            if pass_on {
                self.hear(&notice.encode());
            } else {
                lock(&self.shared).take_in(notice);
            }
            self.settle();
        }
    }
}
