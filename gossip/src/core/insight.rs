//! Why a member is shown as it is, and who must give a name back.
//!
//! Owns: the account of one member for an operator; what a newcomer does whose name is taken.
//! Never: changes what the table shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use foca::State;
use rand::RngExt;

use super::{Action, Core, KIND_NOTICE, Phase};
use crate::member::MemberStatus;
use crate::wire::{NodeId, Notice, Peer};

/// A name that is taken is given back only by a node that came lately: nobody established gives way.
const NEWCOMER: Duration = Duration::from_secs(120);
/// How long the pool must go on saying so: the holder may be one that has just died.
const TAKEN_FOR: Duration = Duration::from_secs(10);
/// Members that tell a rival so, in a sweep, on average.
const TELLERS: f64 = 3.0;

/// What one node knows of a member, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insight {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Where it is.
    pub address: SocketAddr,
    /// As shown.
    pub status: MemberStatus,
    /// How long it has that status.
    pub since: Duration,
    /// Its life.
    pub incarnation: u64,
    /// How often it refuted in that life.
    pub refutations: u16,
    /// It did not answer and has some time to refute.
    pub suspected: bool,
    /// Who suspects it, or did so before it failed, by name or id, and how long ago.
    pub accusers: Vec<(String, Duration)>,
    /// When this node will call it failed, if it started that clock.
    pub fails_in: Option<Duration>,
    /// How long ago this node probed it last, and how long the answer took; `None`: none came.
    pub probed: Option<(Duration, Option<Duration>)>,
    /// Live nodes of the same name, which are left out.
    pub rivals: Vec<SocketAddr>,
    /// How far its clock is ahead of ours, or behind if negative, in milliseconds. The driver's to say.
    pub clock_ahead_millis: Option<i64>,
}

impl Core {
    /// An account of every member shown, by name.
    #[must_use]
    pub fn insights(&self, now: Duration) -> Vec<Insight> {
        let states: BTreeMap<NodeId, (u16, bool)> = self
            .swim
            .iter_membership_state()
            .map(|m| (m.id().id, (m.incarnation(), m.state() == State::Suspect)))
            .collect();
        let named = |id: &NodeId| {
            self.table.get(id).map_or_else(
                || uuid::Uuid::from_bytes(*id).to_string(),
                |r| r.member.name.clone(),
            )
        };
        let members = self.table.snapshot();
        let records = members.iter().filter_map(|m| self.table.by_name(&m.name));
        records
            .map(|record| {
                let id = record.peer.id;
                let (refutations, suspected) = states.get(&id).copied().unwrap_or_default();
                let held = self.doubt.suspicions.get(&id).filter(|_| suspected);
                let has_failed = record.member.status == MemberStatus::Failed;
                let accusers = self.accusers(&id).filter(|_| suspected || has_failed);
                let ago = |at: &Duration| now.saturating_sub(*at);
                Insight {
                    name: record.member.name.clone(),
                    id: record.member.id.clone(),
                    address: record.peer.address,
                    status: record.member.status,
                    since: ago(&record.since),
                    incarnation: record.peer.incarnation,
                    refutations,
                    suspected,
                    accusers: accusers
                        .into_iter()
                        .flatten()
                        .map(|(by, at)| (named(by), ago(at)))
                        .collect(),
                    fails_in: held
                        .and_then(|held| held.due())
                        .map(|due| due.saturating_sub(now)),
                    probed: self
                        .doubt
                        .probed
                        .get(&id)
                        .map(|seen| (ago(&seen.at), seen.took)),
                    rivals: self.table.rivals_of(&record.member.name),
                    clock_ahead_millis: None,
                }
            })
            .collect()
    }

    fn accusers(&self, id: &NodeId) -> Option<&BTreeMap<NodeId, Duration>> {
        let suspicion = self.doubt.suspicions.get(id).map(|s| &s.accusers);
        suspicion.or_else(|| self.doubt.confirmed.get(id).map(|(_, accusers)| accusers))
    }

    /// Tells nodes that use a name another live node holds, a few members at a time.
    pub(super) fn tell_rivals(&mut self) {
        let share = (TELLERS / (self.swim.num_members() + 1) as f64).min(1.0);
        let own = self.swim.identity().id;
        let rivals: Vec<(Peer, SocketAddr)> = self.table.rivals().collect();
        for (rival, holder) in rivals {
            // Whoever holds the name itself is no judge of it.
            let is_own = self.table.by_name(&rival.name).map(|r| r.peer.id) == Some(own);
            if !is_own && self.rng.random_bool(share) {
                let notice = Notice::NameTaken { holder };
                self.effects
                    .send(rival.address, KIND_NOTICE, &notice.encode());
            }
        }
    }

    /// A member says that `holder` has our name, and lives.
    pub(super) fn name_taken(&mut self, from: SocketAddr, holder: SocketAddr) {
        let now = self.effects.now;
        let newcomer = now < self.started + NEWCOMER;
        let of_the_pool = self.table.id_at(from).is_some();
        if !newcomer || !of_the_pool || self.phase != Phase::Running {
            return;
        }
        let since = *self.taken_since.get_or_insert(now);
        if now >= since + TAKEN_FOR && !std::mem::replace(&mut self.gave_way, true) {
            self.effects.actions.push_back(Action::NameTaken {
                name: self.config.name.clone(),
                holder,
            });
        }
    }
}
