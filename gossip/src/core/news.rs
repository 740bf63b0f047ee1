//! Notices beside SWIM: tags, leave intents, and what they mean for our own life.
//!
//! Owns: sending, answering and digesting notices, leaving, being overtaken.
//! Never: touches sockets; see the module above.

use std::net::SocketAddr;

use rand::seq::IteratorRandom;

use super::{
    Action, Core, Due, KIND_NOTICE, LEAVE_DIRECT_MAX, LEAVE_STEP, OVERTAKE_INTERVAL, Phase,
};
use crate::wire::{KIND_TAGS, NodeId, Notice, Peer, lock};

impl Core {
    pub(super) fn handle_notice(&mut self, from: SocketAddr, data: &[u8]) -> bool {
        match Notice::decode(data) {
            // Only members get an answer: it is larger than the question.
            Ok(Notice::TagsWanted { id }) => {
                if self.table.records().any(|r| r.peer.address == from)
                    && let Some(notice) = self.tags_notice(&id)
                {
                    self.effects.send(from, KIND_NOTICE, &notice.encode());
                }
                true
            }
            Ok(Notice::NameTaken { holder }) => {
                self.name_taken(from, holder);
                true
            }
            Ok(Notice::Newer { incarnation }) => {
                // As by hearsay; whoever invents one can do no more harm than with a state.
                let mut shared = lock(&self.shared);
                let told = (incarnation, shared.own.address);
                if incarnation >= shared.own.incarnation
                    && shared.own_elsewhere.is_none_or(|(n, _)| n < incarnation)
                {
                    shared.own_elsewhere = Some(told);
                }
                true
            }
            Ok(_) => {
                self.hear(data);
                true
            }
            Err(_) => false,
        }
    }

    /// A process that does not know how far its earlier lives went would try one incarnation after another.
    pub(super) fn tell_newer(&mut self, sender: &Peer) {
        let newer = self.table.get(&sender.id).map(|r| r.peer.incarnation);
        if let Some(incarnation) = newer.filter(|n| *n > sender.incarnation) {
            let notice = Notice::Newer { incarnation };
            self.effects
                .send(sender.address, KIND_NOTICE, &notice.encode());
        }
    }

    pub(super) fn tags_notice(&self, id: &NodeId) -> Option<Notice> {
        let own = self.swim.identity();
        if *id == own.id {
            let (incarnation, version) = (own.incarnation, self.tags_version);
            return Some(Notice::Tags {
                id: *id,
                incarnation,
                version,
                tags: self.tags.clone(),
            });
        }
        let record = self.table.get(id)?;
        let (incarnation, version) = record.tags_rank?;
        Some(Notice::Tags {
            id: *id,
            incarnation,
            version,
            tags: record.member.tags.clone(),
        })
    }

    /// Hands a notice to foca, which passes it on when it is news.
    pub(super) fn hear(&mut self, data: &[u8]) {
        if let Err(error) = self.swim.add_broadcast(data) {
            tracing::debug!(%error, "gossip notice refused");
        }
    }

    /// Gossips a notice and tells some members directly.
    pub(super) fn spread(&mut self, notice: &Notice) {
        let data = notice.encode();
        self.hear(&data);
        let own = self.swim.identity().id;
        let near = self
            .table
            .records()
            .filter(|r| r.peer.id != own && r.member.status.is_active());
        for to in near
            .map(|r| r.peer.address)
            .sample(&mut self.rng, LEAVE_DIRECT_MAX)
        {
            self.effects.send(to, KIND_NOTICE, &data);
        }
        if let Err(error) = self.swim.gossip(&mut self.effects) {
            tracing::debug!(%error, "gossip round");
        }
    }

    pub(super) fn publish_tags(&mut self) {
        let own = self.swim.identity().id;
        if let Some(notice) = self.tags_notice(&own) {
            self.hear(&notice.encode());
        }
    }

    pub(super) fn digest_notice(&mut self, notice: Notice) {
        let (now, own) = (self.effects.now, self.swim.identity().clone());
        match notice {
            Notice::Tags {
                id,
                incarnation,
                version,
                tags,
            } => self.table.set_tags(&id, (incarnation, version), tags),
            Notice::Leave {
                id,
                incarnation,
                forced,
                ..
            } if id == own.id => {
                // Someone forced us out while we live: come back as a newer life.
                if forced && incarnation == own.incarnation && self.phase == Phase::Running {
                    self.live_again(incarnation + 1);
                }
            }
            Notice::Leave {
                id,
                incarnation,
                forced,
                prune,
            } => {
                self.table.leave(now, &id, incarnation, forced);
                let prunable = self
                    .table
                    .get(&id)
                    .is_some_and(|r| r.peer.incarnation <= incarnation);
                if prune
                    && prunable
                    && let Some(peer) = self.table.forget(&id, true)
                {
                    self.forget_swim(peer);
                }
            }
            Notice::TagsWanted { .. } | Notice::Newer { .. } | Notice::NameTaken { .. } => {}
            Notice::Accuse(told) => self.accused(told),
            Notice::Event(event) => self.effects.actions.push_back(Action::UserEvent(event)),
        }
    }

    pub(super) fn live_again(&mut self, incarnation: u64) {
        let next = Peer {
            incarnation,
            ..self.swim.identity().clone()
        };
        if self
            .swim
            .change_identity(next.clone(), &mut self.effects)
            .is_ok()
        {
            self.renewed(next);
        }
    }

    /// Somebody ascribes an incarnation to our id that we do not have: an earlier life whose clock
    /// ran ahead, or a second process with a copied id. Either way we must be the newer one.
    pub(super) fn overtake_own(&mut self) {
        let Some((incarnation, address)) = lock(&self.shared).own_elsewhere else {
            return;
        };
        let own = self.swim.identity().clone();
        let behind = incarnation >= own.incarnation;
        let waited = self
            .overtaken_at
            .is_none_or(|at| self.effects.now >= at + OVERTAKE_INTERVAL);
        if behind && (!waited || self.phase == Phase::Gone) {
            return;
        }
        lock(&self.shared).own_elsewhere = None;
        if !behind {
            return;
        }
        if self.overtaken_at.replace(self.effects.now).is_some() && address != own.address {
            self.effects
                .actions
                .push_back(Action::IdConflict { elsewhere: address });
        }
        self.live_again(incarnation.saturating_add(1));
    }

    pub(super) fn want_tags(&mut self, peer: &Peer) {
        let rank = self.table.get(&peer.id).and_then(|r| r.tags_rank);
        if rank.is_none_or(|(n, _)| n < peer.incarnation) {
            // They may have come while the member was not known yet: let them be news again.
            lock(&self.shared).newest.remove(&(KIND_TAGS, peer.id));
            let ask = Notice::TagsWanted { id: peer.id }.encode();
            self.effects.send(peer.address, KIND_NOTICE, &ask);
        }
    }

    pub(super) fn on_leave_step(&mut self) {
        let Phase::Leaving { steps } = self.phase else {
            return;
        };
        let own = self.swim.identity().clone();
        let notice = Notice::Leave {
            id: own.id,
            incarnation: own.incarnation,
            forced: false,
            prune: false,
        };
        if steps > 0 {
            self.phase = Phase::Leaving { steps: steps - 1 };
            self.spread(&notice);
            self.effects.after(LEAVE_STEP, Due::LeaveStep);
            return;
        }
        if let Err(error) = self.swim.leave_cluster(&mut self.effects) {
            tracing::debug!(%error, "gossip farewell");
        }
        self.phase = Phase::Gone;
        self.table.down(self.effects.now, &own);
        self.effects.timers.clear();
        self.settle();
        self.effects.actions.push_back(Action::LeaveDone);
    }
}
