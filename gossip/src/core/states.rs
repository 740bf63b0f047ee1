//! Full states: what this node tells of the pool, and how it takes in what others tell.
//!
//! Owns: the rules of merging. Never: believes hearsay of a failure over its own probes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use foca::State;

use super::{Core, Phase};
use crate::error::GossipError;
use crate::member::MemberStatus;
use crate::wire::{NodeId, Notice, Peer, StateRow, SyncState, WireStatus, lock};

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
        let mut rows = vec![StateRow {
            peer: own.clone(),
            swim_incarnation: 0,
            status: if self.phase == Phase::Running {
                WireStatus::Alive
            } else {
                WireStatus::Leaving
            },
            down_seconds: 0,
            tags_version: self.tags_version,
            tags: self.tags.clone(),
        }];
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
                    // A row's tags belong to the row's life only when they came from it; 0 says "not known".
                    tags_version: r
                        .tags_rank
                        .filter(|(n, _)| *n == r.peer.incarnation)
                        .map_or(0, |(_, v)| v),
                    tags: r.member.tags.clone(),
                }),
        );
        SyncState {
            datacenter: self.config.datacenter.clone(),
            rows,
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
        self.effects.now = now;
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
        for row in state.rows.into_iter().take(self.config.members_max + 1) {
            self.merge_row(row);
            self.settle();
        }
        Ok(())
    }

    pub(super) fn merge_row(&mut self, row: StateRow) {
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
                self.apply(foca::Member::down(peer)); // foca answers by renewing our identity
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
        self.apply(foca::Member::new(peer.clone(), swim_incarnation, state));
        self.digest_notes();
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
        if tags_version > 0 {
            let notice = Notice::Tags {
                id: peer.id,
                incarnation: peer.incarnation,
                version: tags_version,
                tags,
            };
            self.hear(&notice.encode());
        }
    }

    pub(super) fn is_over(&self, status: WireStatus, down_seconds: u64) -> bool {
        let kept = if status == WireStatus::Left {
            self.config.tombstone_timeout
        } else {
            self.config.reconnect_timeout
        };
        Duration::from_secs(down_seconds) >= kept
    }

    pub(super) fn apply(&mut self, update: foca::Member<Peer>) {
        if let Err(error) = self
            .swim
            .apply_many(std::iter::once(update), true, &mut self.effects)
        {
            tracing::debug!(%error, "gossip state row refused");
        }
    }
}
