//! Full states: what this node tells of the pool, and how it takes in what others tell.
//!
//! Owns: the rules of merging. Never: believes hearsay of a failure over its own probes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Identity as _, State};

use super::{Core, Phase};
use crate::error::GossipError;
use crate::member::MemberStatus;
use crate::wire::{NodeId, Notice, Peer, StateRow, SyncState, WireStatus, lock};

/// States up to this size are merged row by row without looking ahead.
const SMALL_STATE_ROWS: usize = 16;

impl Core {
    /// Everything this node knows, to be sent in a state exchange.
    #[must_use]
    pub fn sync_state(&self, now: Duration) -> SyncState {
        let own = self.swim.identity();
        let states: BTreeMap<NodeId, u16> = self
            .swim
            .iter_membership_state()
            .map(|m| (m.id().id, m.incarnation()))
            .collect();
        let mut rows = vec![self.own_row()];
        rows.extend(
            self.table
                .records()
                .filter(|r| r.peer.id != own.id)
                .map(|r| StateRow {
                    peer: r.peer.clone(),
                    swim_incarnation: states.get(&r.peer.id).copied().unwrap_or_default(),
                    status: match r.member.status {
                        MemberStatus::Alive => WireStatus::Alive,
                        MemberStatus::Leaving => WireStatus::Leaving,
                        MemberStatus::Left => WireStatus::Left,
                        MemberStatus::Failed => WireStatus::Failed,
                    },
                    down_seconds: if r.member.status.is_active() {
                        0
                    } else {
                        now.saturating_sub(r.since).as_secs()
                    },
                    tags_version: r.tags_version(),
                    tags: r.member.tags.clone(),
                }),
        );
        SyncState {
            datacenter: self.config.datacenter.clone(),
            rows,
            events: lock(&self.shared).events.tell(),
        }
    }

    pub(super) fn own_row(&self) -> StateRow {
        StateRow {
            peer: self.swim.identity().clone(),
            swim_incarnation: 0,
            status: if self.phase == Phase::Running {
                WireStatus::Alive
            } else {
                WireStatus::Leaving
            },
            down_seconds: 0,
            tags_version: self.tags_version,
            tags: self.tags.clone(),
        }
    }

    /// Our own row alone: all a stranger gets to see.
    pub(super) fn introduction(&self) -> SyncState {
        SyncState {
            datacenter: self.config.datacenter.clone(),
            rows: vec![self.own_row()],
            events: Default::default(),
        }
    }

    /// Takes in what a peer knows. Hearsay that a member is down only makes it a suspect here.
    ///
    /// Errors: [`GossipError::Datacenter`], [`GossipError::Ourselves`], or a malformed state.
    pub fn merge(
        &mut self,
        now: Duration,
        from: SocketAddr,
        state: SyncState,
    ) -> Result<(), GossipError> {
        self.pass(now);
        let Some(sender) = state.rows.first() else {
            return Err(GossipError::Frame {
                peer: from,
                reason: "malformed",
            });
        };
        if state.datacenter != self.config.datacenter {
            return Err(GossipError::Datacenter {
                name: sender.peer.name.clone(),
                peer: from,
                theirs: state.datacenter,
                ours: self.config.datacenter.clone(),
            });
        }
        if sender.peer == *self.swim.identity() {
            return Err(GossipError::Ourselves { peer: from });
        }
        if self.phase == Phase::Gone {
            return Ok(());
        }
        // Who knows nobody learns from a pool that knows it all already: nothing to pass on.
        let pass_on = self.swim.num_members() > 0;
        // foca looks members up one by one, so of a large state only rows that say more reach it.
        let large = state.rows.len() > SMALL_STATE_ROWS;
        let held: BTreeMap<NodeId, foca::Member<Peer>> = self
            .swim
            .iter_membership_state()
            .filter(|_| large)
            .map(|m| (m.id().id, m.clone()))
            .collect();
        for row in state.rows.into_iter().take(self.config.members_max + 1) {
            let known = held.get(&row.peer.id);
            self.merge_row(row, known, pass_on);
            self.settle();
        }
        self.merge_events(state.events, pass_on);
        Ok(())
    }

    fn merge_row(&mut self, row: StateRow, known: Option<&foca::Member<Peer>>, pass_on: bool) {
        let StateRow {
            peer,
            swim_incarnation,
            status,
            down_seconds,
            tags_version,
            tags,
        } = row;
        let active = matches!(status, WireStatus::Alive | WireStatus::Leaving);
        if !lock(&self.shared).admit(&peer) {
            return;
        }
        if peer.id == self.swim.identity().id {
            if !active && peer == *self.swim.identity() && self.phase == Phase::Running {
                self.apply(foca::Member::down(peer), true); // foca answers by renewing our identity
            }
            return;
        }
        let since = self
            .effects
            .now
            .saturating_sub(Duration::from_secs(down_seconds));
        if !active && (self.table.is_pruned(&peer) || self.is_over(status, down_seconds)) {
            return;
        }
        let held = self.table.get(&peer.id);
        let held_active = held
            .is_some_and(|r| r.member.status.is_active() && r.peer.incarnation >= peer.incarnation);
        let state = match status {
            WireStatus::Alive | WireStatus::Leaving => State::Alive,
            WireStatus::Failed if held_active => State::Suspect,
            WireStatus::Left | WireStatus::Failed => State::Down,
        };
        if status == WireStatus::Left {
            self.table
                .leave(self.effects.now, &peer.id, peer.incarnation, false);
        }
        let update = foca::Member::new(peer.clone(), swim_incarnation, state);
        if known.is_none_or(|known| says_more(known, &update)) {
            self.apply(update, pass_on);
            self.digest_notes();
        }
        match status {
            WireStatus::Leaving => {
                self.table
                    .leave(self.effects.now, &peer.id, peer.incarnation, false)
            }
            WireStatus::Left => {
                self.table
                    .has_left(self.effects.now, &peer.id, peer.incarnation);
                self.table.insert_down(since, &peer, MemberStatus::Left);
            }
            WireStatus::Failed => self.table.insert_down(since, &peer, MemberStatus::Failed),
            WireStatus::Alive => {}
        }
        let rank = self.table.get(&peer.id).and_then(|r| r.tags_rank);
        if tags_version > 0 && rank.is_none_or(|known| known < (peer.incarnation, tags_version)) {
            let notice = Notice::Tags {
                id: peer.id,
                incarnation: peer.incarnation,
                version: tags_version,
                tags,
            };
            if pass_on {
                self.hear(&notice.encode());
            } else {
                lock(&self.shared).take_in(notice);
            }
        }
    }

    fn is_over(&self, status: WireStatus, down_seconds: u64) -> bool {
        let kept = if status == WireStatus::Left {
            self.config.tombstone_timeout
        } else {
            self.config.reconnect_timeout
        };
        Duration::from_secs(down_seconds) >= kept
    }

    pub(super) fn apply(&mut self, update: foca::Member<Peer>, pass_on: bool) {
        if let Err(error) =
            self.swim
                .apply_many(std::iter::once(update), pass_on, &mut self.effects)
        {
            tracing::debug!(%error, "gossip state row refused");
        }
    }
}

/// Whether `update` could change what foca holds as `known` (SWIM §4.2, and lives by incarnation).
fn says_more(known: &foca::Member<Peer>, update: &foca::Member<Peer>) -> bool {
    if known.id() != update.id() {
        return !known.id().win_addr_conflict(update.id());
    }
    let (newer, same) = (
        update.incarnation() > known.incarnation(),
        update.incarnation() == known.incarnation(),
    );
    match (known.state(), update.state()) {
        (State::Down, _) => false,
        (_, State::Down) => true,
        (State::Alive, State::Suspect) => newer || same,
        _ => newer,
    }
}
