//! The rounds this node makes by itself: exchanges, reconnects, sweeping.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use foca::{State, Timer};
use rand::seq::IteratorRandom;

use super::{Action, Core, Due, Phase, SWEEP_INTERVAL, TAG_REQUESTS_MAX};
use crate::member::MemberStatus;
use crate::wire::{NodeId, Peer, lock};

impl Core {
    pub(super) fn on_sync_timer(&mut self) {
        let every = self.config.timing.sync_every(self.swim.num_members() + 1);
        self.after_about(every, Due::Sync);
        let peer = self
            .swim
            .iter_members()
            .map(|m| m.id().address)
            .choose(&mut self.rng);
        if let Some(peer) = peer
            && self.phase == Phase::Running
        {
            self.effects.actions.push_back(Action::Sync { peer });
        }
    }

    /// A net split heals because both sides keep trying those they lost, and the seeds.
    pub(super) fn on_reconnect_timer(&mut self) {
        self.after_about(self.config.timing.reconnect_interval, Due::Reconnect);
        if self.phase != Phase::Running {
            return;
        }
        let lost = self
            .table
            .records()
            .filter(|r| r.member.status == MemberStatus::Failed)
            .map(|r| r.peer.address);
        let lost = lost.choose(&mut self.rng);
        let active: BTreeSet<SocketAddr> =
            self.swim.iter_members().map(|m| m.id().address).collect();
        let seeds = self.seeds.iter().copied().filter(|a| !active.contains(a));
        let tries = if active.is_empty() { 3 } else { 1 };
        let mut peers: BTreeSet<SocketAddr> =
            seeds.sample(&mut self.rng, tries).into_iter().collect();
        peers.extend(lost);
        self.effects
            .actions
            .extend(peers.into_iter().map(|peer| Action::Sync { peer }));
    }

    pub(super) fn on_sweep_timer(&mut self) {
        self.effects.after(SWEEP_INTERVAL, Due::Sweep);
        let over = self.table.expired(
            self.effects.now,
            self.config.reconnect_timeout,
            self.config.tombstone_timeout,
        );
        for id in over {
            if let Some(peer) = self.table.forget(&id, true) {
                self.forget_swim(peer);
            }
        }
        let untagged = self.table.records().filter(|r| {
            r.member.status.is_active() && r.tags_rank.is_none_or(|(n, _)| n < r.peer.incarnation)
        });
        let untagged: Vec<Peer> = untagged
            .map(|r| r.peer.clone())
            .sample(&mut self.rng, TAG_REQUESTS_MAX);
        self.ask_for_tags(untagged);
        self.sweep_doubt();
        self.tell_rivals();
        self.prune_shared();
    }

    /// Members heard of lately whose tags have not followed.
    pub(super) fn on_tags_timer(&mut self) {
        let table = &self.table;
        let waiting = std::mem::take(&mut self.untagged);
        let waiting = waiting.iter().filter_map(|id| table.get(id));
        let waiting: Vec<Peer> = waiting
            .filter(|r| r.member.status.is_active())
            .map(|r| r.peer.clone())
            .sample(&mut self.rng, TAG_REQUESTS_MAX);
        self.ask_for_tags(waiting);
    }

    fn ask_for_tags(&mut self, peers: Vec<Peer>) {
        let own = self.swim.identity().id;
        for peer in peers.into_iter().filter(|p| p.id != own) {
            self.want_tags(&peer);
        }
    }

    /// What foca and the table no longer hold makes room at the gate.
    pub(super) fn prune_shared(&mut self) {
        let count = self.swim.iter_membership_state().len();
        {
            let mut shared = lock(&self.shared);
            shared.forget_accusations();
            if shared.known.len() <= count && shared.newest.len() <= 2 * (count + 1) {
                return;
            }
        }
        let held: BTreeSet<NodeId> = self
            .swim
            .iter_membership_state()
            .map(|m| m.id().id)
            .collect();
        let own = self.swim.identity().id;
        let mut shared = lock(&self.shared);
        if shared.known.len() > held.len() {
            shared.known.retain(|id| held.contains(id));
        }
        if shared.newest.len() > 2 * (held.len() + 1) {
            shared
                .newest
                .retain(|(_, id), _| *id == own || held.contains(id));
        }
    }

    pub(super) fn forget_swim(&mut self, peer: Peer) {
        let held = self
            .swim
            .iter_membership_state()
            .find(|m| m.id().id == peer.id && m.state() == State::Down);
        let Some(id) = held.map(|m| m.id().clone()) else {
            return;
        };
        if let Err(error) = self
            .swim
            .handle_timer(Timer::RemoveDown(id), &mut self.effects)
        {
            tracing::debug!(%error, "forgetting a member");
        }
    }
}
