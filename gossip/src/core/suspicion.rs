//! Suspecting with care: witnesses, confirmations, and doubt of ourselves.
//!
//! Owns: who accuses whom, how long a suspect may refute, how healthy this node holds itself, and what it
//! owes to others as a witness. foca hands over its timer of a suspicion and never learns when it fires.
//! Never: declares a member down; foca does, and only if the suspect has not refuted by then.
//! Source: Dadgar et al., "Lifeguard: local health awareness for more accurate failure detection" (2018).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Timer, TimerToken};
use serde::{Deserialize, Serialize};

use super::{Core, Due, Effects, KIND_NACK, KIND_NOTICE, Phase};
use crate::config::CONFIRMATIONS;
use crate::member::MemberStatus;
use crate::wire::{Accusation, NodeId, Notice, Passed, Peer, lock};

/// Accusers of one suspect that are remembered and passed on.
pub(crate) const ACCUSERS_MAX: usize = CONFIRMATIONS + 1;
/// The worst this node may think of itself; its probes then take nine times as long.
const HEALTH_MAX: u8 = 8;
/// Members this node asks others about at once, as a witness.
const ERRANDS_MAX: usize = 256;

/// What this node knows of a suspect.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// Incarnations of the suspect's life: the node's, then SWIM's.
    life: (u64, u16),
    /// Who accuses it, and when that was heard.
    pub(super) accusers: BTreeMap<NodeId, Duration>,
    /// Others who told us, when our own probe failed, that they did not reach it either.
    witnesses: usize,
    /// Our own clock on it: since when, and where in the timers.
    timer: Option<(Duration, (Duration, u64))>,
}

impl Suspicion {
    /// When this node will say failed, if it started that clock.
    pub(super) fn due(&self) -> Option<Duration> {
        self.timer.map(|(_, (at, _))| at)
    }
}

/// The probe under way.
#[derive(Debug)]
struct Round {
    peer: Peer,
    number: u8,
    sent: Duration,
    acked: Option<Duration>,
    helpers: usize,
    nacks: BTreeSet<NodeId>,
}

/// How the last probe of a member went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probed {
    pub(super) at: Duration,
    /// `None`: nobody got an answer in time.
    pub(super) took: Option<Duration>,
}

/// All of it. See the module.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    pub(super) suspicions: BTreeMap<NodeId, Suspicion>,
    /// Who accused the members that have failed since: node incarnation, accusers and when each was heard.
    pub(super) confirmed: BTreeMap<NodeId, (u64, BTreeMap<NodeId, Duration>)>,
    pub(super) probed: BTreeMap<NodeId, Probed>,
    round: Option<Round>,
    errands: BTreeSet<(NodeId, SocketAddr, u8)>,
    health: u8,
    late: u64,
}

/// A witness did not reach the member either. Direct only.
#[derive(Debug, Serialize, Deserialize)]
struct Nack {
    target: NodeId,
    number: u8,
}

/// How much a node holds that could grow; all of it is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Members in the table.
    pub members: usize,
    /// Timers.
    pub timers: usize,
    /// Actions the driver has not taken.
    pub actions: usize,
    /// SWIM updates waiting to be passed on.
    pub updates: usize,
    /// Notices waiting to be passed on.
    pub notices: usize,
    /// Suspects.
    pub suspicions: usize,
    /// Accusations remembered.
    pub accusations: usize,
    /// Probes on behalf of others.
    pub errands: usize,
}

impl Core {
    /// How much this node holds.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            members: self.table.len(),
            timers: self.effects.timers.len(),
            actions: self.effects.actions.len(),
            updates: self.swim.updates_backlog(),
            notices: self.swim.custom_broadcast_backlog(),
            suspicions: self.doubt.suspicions.len(),
            accusations: lock(&self.shared).accused.len(),
            errands: self.doubt.errands.len(),
        }
    }

    /// What this node thinks of itself: 0 is well; each step makes its probes one interval more patient.
    #[must_use]
    pub fn health_score(&self) -> u8 {
        self.doubt.health
    }

    /// Times this node found that it had been asleep or starved.
    #[must_use]
    pub fn late_turns(&self) -> u64 {
        self.doubt.late
    }

    /// Suspects this node knows of.
    #[must_use]
    pub fn suspects(&self) -> usize {
        self.doubt.suspicions.len()
    }

    /// Looks at what passed through the codec: probes begun and answered, errands of others.
    pub(super) fn observe(&mut self, passed: &Passed) {
        let now = self.effects.now;
        if let Some(sender) = &passed.sender {
            self.tell_newer(sender);
        }
        if let Some(round) = &mut self.doubt.round {
            let direct = passed
                .acked
                .is_some_and(|(id, number)| id == round.peer.id && number == round.number);
            if (direct || passed.relayed.contains(&round.number)) && round.acked.is_none() {
                round.acked = Some(now.saturating_sub(round.sent));
            }
            round.helpers += passed.sought;
        }
        if let Some((peer, number)) = &passed.pinged {
            self.conclude();
            self.doubt.round = Some(Round {
                peer: peer.clone(),
                number: *number,
                sent: now,
                acked: None,
                helpers: 0,
                nacks: BTreeSet::new(),
            });
            self.tell_suspect(&peer.clone());
        }
        for (target, origin, number) in &passed.asked {
            if self.doubt.errands.len() < ERRANDS_MAX {
                let errand = (target.id, *origin, *number);
                self.doubt.errands.insert(errand);
                // Soon enough that the word arrives before whoever asked concludes.
                let patience = self.config.timing.probe_timeout.mul_f64(0.75);
                self.effects.after(patience, Due::Witness(errand));
            }
        }
        for id in &passed.vouched {
            self.doubt.errands.retain(|(target, _, _)| target != id);
        }
    }

    /// The probe that was under way has ended, well or not.
    fn conclude(&mut self) {
        let Some(round) = self.doubt.round.take() else {
            return;
        };
        let seen = Probed {
            at: round.sent,
            took: round.acked,
        };
        self.doubt.probed.insert(round.peer.id, seen);
        if round.acked.is_some() {
            self.feel(-1);
        } else if round.helpers > round.nacks.len() {
            // Witnesses that say nothing are out of our reach as well: it may be us.
            self.feel((round.helpers - round.nacks.len()) as i16);
        }
    }

    fn feel(&mut self, change: i16) {
        let health = (i16::from(self.doubt.health) + change).clamp(0, i16::from(HEALTH_MAX));
        self.doubt.health = health as u8;
        self.effects.stretch = u32::from(self.doubt.health) + 1;
    }

    /// A member asked on somebody's behalf has not answered.
    pub(super) fn on_witness(&mut self, errand: (NodeId, SocketAddr, u8)) {
        if self.doubt.errands.remove(&errand) {
            let (target, origin, number) = errand;
            let data = postcard::to_stdvec(&Nack { target, number });
            let data = data.expect("plain data always encodes");
            self.effects.send(origin, KIND_NACK, &data);
        }
    }

    /// A witness did not reach the member we probe.
    pub(super) fn handle_nack(&mut self, from: SocketAddr, data: &[u8]) -> bool {
        let Ok(nack) = postcard::from_bytes::<Nack>(data) else {
            return false;
        };
        let active = |id: &NodeId| {
            self.table
                .get(id)
                .is_some_and(|r| r.member.status.is_active())
        };
        let witness = self
            .table
            .id_at(from)
            .filter(|id| *id != nack.target && active(id));
        if let Some(witness) = witness
            && let Some(round) = &mut self.doubt.round
            && (round.peer.id, round.number) == (nack.target, nack.number)
            && round.nacks.len() < round.helpers
        {
            round.nacks.insert(witness);
        }
        true
    }

    /// foca suspects members whose probe failed: their time to refute begins, told to all and to them.
    pub(super) fn accuse(&mut self) {
        for timer in std::mem::take(&mut self.effects.suspected) {
            let Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } = &timer
            else {
                continue;
            };
            let (suspect, life) = (member_id.clone(), (member_id.incarnation, *incarnation));
            let nacks = self.doubt.round.as_ref();
            let nacks = nacks
                .filter(|r| r.peer.id == suspect.id)
                .map_or(0, |r| r.nacks.len());
            let (now, own) = (self.effects.now, self.swim.identity().id);
            let suspicion = self.suspicion_of(suspect.id, life);
            if suspicion.life != life {
                continue; // refuted already
            }
            suspicion.accusers.insert(own, now);
            suspicion.witnesses = suspicion.witnesses.max(nacks);
            let since = match suspicion.timer.take() {
                Some((since, key)) => {
                    self.effects.timers.remove(&key);
                    since
                }
                None => now,
            };
            let due = self.deadline(&suspect.id, since);
            let key = self.effects.at(due, Due::Swim(timer));
            self.suspicion_of(suspect.id, life).timer = Some((since, key));
            self.hear(&Notice::Accuse(self.accusation(&suspect, life)).encode());
            self.tell_suspect(&suspect);
        }
    }

    fn accusation(&self, suspect: &Peer, life: (u64, u16)) -> Accusation {
        Accusation {
            id: suspect.id,
            incarnation: life.0,
            swim_incarnation: life.1,
            by: self.swim.identity().id,
        }
    }

    /// What is held against this life of the member; a newer life starts clean.
    fn suspicion_of(&mut self, id: NodeId, life: (u64, u16)) -> &mut Suspicion {
        let fresh = || Suspicion {
            life,
            accusers: BTreeMap::new(),
            witnesses: 0,
            timer: None,
        };
        let suspicion = self.doubt.suspicions.entry(id).or_insert_with(fresh);
        if suspicion.life < life {
            // foca ignores the old timer by itself: the incarnation differs.
            *suspicion = fresh();
        }
        suspicion
    }

    /// When the suspect's time is over: sooner the more others agree.
    fn deadline(&self, id: &NodeId, since: Duration) -> Duration {
        let agreeing = self.doubt.suspicions.get(id).map_or(0, |s| {
            let own = self.swim.identity().id;
            s.witnesses + s.accusers.keys().filter(|by| **by != own).count()
        });
        let members = self.swim.num_members() + 1;
        let patience = self.config.timing.suspicion_after(members, agreeing);
        // Who doubts itself needs others to be sure.
        if agreeing < CONFIRMATIONS {
            since + patience * self.effects.stretch
        } else {
            since + patience
        }
    }

    /// Somebody accuses a member, maybe us.
    pub(super) fn accused(&mut self, told: Accusation) {
        let own = self.swim.identity().clone();
        if told.id == own.id {
            if told.incarnation == own.incarnation && self.phase == Phase::Running {
                // foca answers with a higher incarnation, unless it has done so already.
                self.apply(
                    foca::Member::new(own, told.swim_incarnation, foca::State::Suspect),
                    true,
                );
            }
            return;
        }
        let life = (told.incarnation, told.swim_incarnation);
        let current = self
            .table
            .get(&told.id)
            .is_some_and(|r| r.member.status.is_active() && r.peer.incarnation == told.incarnation);
        if !current {
            return;
        }
        let now = self.effects.now;
        let suspicion = self.suspicion_of(told.id, life);
        if suspicion.life != life || suspicion.accusers.len() >= ACCUSERS_MAX {
            return;
        }
        suspicion.accusers.insert(told.by, now);
        let Some((since, key)) = suspicion.timer.take() else {
            return;
        };
        let Some(due) = self.effects.timers.remove(&key) else {
            return;
        };
        let at = self.deadline(&told.id, since).max(now);
        let key = self.effects.at(at, due);
        self.suspicion_of(told.id, life).timer = Some((since, key));
    }

    /// The suspect itself hears of it first, with the probe it may refute by answering.
    fn tell_suspect(&mut self, peer: &Peer) {
        let Some(suspicion) = self.doubt.suspicions.get(&peer.id) else {
            return;
        };
        if suspicion.life.0 == peer.incarnation {
            let notice = Notice::Accuse(self.accusation(peer, suspicion.life));
            self.effects
                .send(peer.address, KIND_NOTICE, &notice.encode());
        }
    }

    /// foca has begun anew, and dropped its clocks.
    pub(super) fn begin_anew(&mut self) {
        let suspicions = self.doubt.suspicions.values_mut();
        suspicions.for_each(|suspicion| suspicion.timer = None);
    }

    /// Suspicions that were refuted or came true are forgotten, and what was seen of members that are gone.
    pub(super) fn sweep_doubt(&mut self) {
        let (table, swim) = (&self.table, &self.swim);
        self.doubt.probed.retain(|id, _| table.get(id).is_some());
        let has_failed = |id: &NodeId, incarnation: u64| {
            table.get(id).is_some_and(|r| {
                r.member.status == MemberStatus::Failed && r.peer.incarnation == incarnation
            })
        };
        self.doubt
            .confirmed
            .retain(|id, (incarnation, _)| has_failed(id, *incarnation));
        if self.doubt.suspicions.is_empty() {
            return;
        }
        let suspects: BTreeMap<NodeId, (u64, u16)> = swim
            .iter_members()
            .filter(|m| m.state() == foca::State::Suspect)
            .map(|m| (m.id().id, (m.id().incarnation, m.incarnation())))
            .collect();
        let mut stale = Vec::new();
        let confirmed = &mut self.doubt.confirmed;
        self.doubt.suspicions.retain(|id, suspicion| {
            let stands = suspects.get(id) == Some(&suspicion.life);
            if !stands {
                stale.extend(suspicion.timer.map(|(_, key)| key));
                if has_failed(id, suspicion.life.0) {
                    let accusers = std::mem::take(&mut suspicion.accusers);
                    confirmed.insert(*id, (suspicion.life.0, accusers));
                }
            }
            stands
        });
        for key in stale {
            self.effects.timers.remove(&key);
        }
    }

    /// This node slept, or was starved: its clocks on others stood still meanwhile, and it trusts itself less.
    pub(super) fn woke_late(&mut self, late: Duration) {
        self.doubt.late += 1;
        self.feel(1);
        tracing::debug!(
            late_ms = late.as_millis(),
            health = self.doubt.health,
            "gossip timers late"
        );
        let moved = self.effects.postpone(late);
        for suspicion in self.doubt.suspicions.values_mut() {
            if let Some((since, key)) = &mut suspicion.timer
                && let Some(new) = moved.get(key)
            {
                *since += late;
                *key = *new;
            }
        }
    }
}

impl Effects {
    /// Drops foca's timers of before it was `token`: it would ignore them.
    pub(super) fn drop_stale(&mut self, token: TimerToken) {
        self.timers.retain(|_, due| match due {
            Due::Swim(
                Timer::ProbeRandomMember(of)
                | Timer::SendIndirectProbe { token: of, .. }
                | Timer::ChangeSuspectToDown { token: of, .. }
                | Timer::PeriodicAnnounce(of)
                | Timer::PeriodicAnnounceDown(of)
                | Timer::PeriodicGossip(of),
            ) => *of == token,
            _ => true,
        });
    }

    /// Moves every clock on others by `late`; answers from where to where.
    fn postpone(&mut self, late: Duration) -> BTreeMap<(Duration, u64), (Duration, u64)> {
        let ours = |due: &Due| match due {
            Due::Swim(timer) => matches!(
                timer,
                Timer::ProbeRandomMember(_)
                    | Timer::SendIndirectProbe { .. }
                    | Timer::ChangeSuspectToDown { .. }
            ),
            Due::Witness(_) => true,
            _ => false,
        };
        let keys: Vec<(Duration, u64)> = self
            .timers
            .iter()
            .filter(|(_, due)| ours(due))
            .map(|(key, _)| *key)
            .collect();
        let mut moved = BTreeMap::new();
        for key in keys {
            if let Some(due) = self.timers.remove(&key) {
                // The number keeps timers of one instant in order.
                let new = (key.0 + late, key.1);
                self.timers.insert(new, due);
                moved.insert(key, new);
            }
        }
        moved
    }
}
