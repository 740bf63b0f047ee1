//! Membership changes and leadership transfer.
//!
//! Owns: the mapping of each operation to one joint change.
//! Never: decides who should be a member; autopilot and operators do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};

use crate::error::ChangeError;
use crate::net::Raft;
use crate::node::{Inner, RaftNode};
use crate::peer::{Node, Peer, RaftId};
use crate::status::{Role, Status};
use crate::types::Types;

type Changes = ChangeMembers<RaftId, Node>;

/// A joint change takes two commits; a follower that must catch up first takes longer.
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);
/// A transfer that is not done by then will not be.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

impl RaftNode {
    /// Adds `peer` without a vote. It begins to receive the log; see [`crate::Member::matched`].
    ///
    /// Errors: [`ChangeError`].
    pub async fn add_learner(&self, peer: Peer) -> Result<(), ChangeError> {
        self.change(
            ChangeMembers::AddNodes(BTreeMap::from([(peer.id, peer.into_node())])),
            true,
        )
        .await
    }

    /// Gives a learner a vote.
    ///
    /// Errors: [`ChangeError::Refused`] when `id` is not a member.
    pub async fn promote(&self, id: RaftId) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
            .await
    }

    /// Takes the vote from a voter; it stays as learner.
    ///
    /// Errors: [`ChangeError::Refused`] for the last voter.
    pub async fn demote(&self, id: RaftId) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true)
            .await
    }

    /// Removes a voter or learner altogether. Its id must never come back with an empty log.
    ///
    /// Errors: [`ChangeError::Refused`] for the last voter, or when `id` is not a member.
    pub async fn remove(&self, id: RaftId) -> Result<(), ChangeError> {
        let member = self.member(id)?;
        if member.voter {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
                .await
        } else {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)
                .await
        }
    }

    /// Records that `id` is now at `address`. Who it is stays the same: the key proves it.
    ///
    /// Errors: [`ChangeError::Refused`] when `id` is not a member.
    pub async fn update_address(&self, id: RaftId, address: String) -> Result<(), ChangeError> {
        let peer = Peer {
            address,
            ..self.member(id)?.peer
        };
        self.change(
            ChangeMembers::SetNodes(BTreeMap::from([(id, peer.into_node())])),
            true,
        )
        .await
    }

    /// Makes exactly these members voters, in one joint change; former voters stay as learners.
    ///
    /// Errors: [`ChangeError::Refused`] when one of them is not a member, or the set is empty.
    pub async fn set_voters(&self, voters: BTreeSet<RaftId>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), true)
            .await
    }

    /// Ends a change of voters whose leader died, or lost patience, between its two steps: the new set
    /// alone is in force then. A voter it takes out is removed altogether, as [`Self::remove`] does.
    ///
    /// Errors: [`ChangeError::Refused`] while this server itself is making a change.
    pub async fn settle_membership(&self) -> Result<(), ChangeError> {
        let Some(alone) = Changing::alone(&self.inner) else {
            return Err(ChangeError::Refused("a change is under way".into()));
        };
        // Adding nobody to the newer of the two voter sets leaves only that one.
        self.change_as(alone, ChangeMembers::AddVoterIds(BTreeSet::new()), false)
            .await
    }

    /// Hands leadership to `to`, or to the most up-to-date voter, and waits until this server follows.
    ///
    /// Errors: [`ChangeError::Refused`] when nobody can take over; this server leads on.
    pub async fn transfer_leader(&self, to: Option<RaftId>) -> Result<(), ChangeError> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(ChangeError::NotLeader {
                leader: status.leader.clone(),
            });
        }
        let to = successor(&status, to)?;
        let mut watch = self.watch_status();
        self.on_raft(move |raft| async move {
            raft.trigger()
                .transfer_leader(to)
                .await
                .map_err(|fatal| ChangeError::Stopped(fatal.to_string()))
        })
        .await?;
        let changed =
            watch.wait_for(|status| status.leader.as_ref().is_some_and(|leader| leader.id == to));
        match tokio::time::timeout(TRANSFER_PATIENCE, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ChangeError::Stopped("shut down".into())),
            Err(_) => Err(ChangeError::Unknown(format!(
                "{to} did not take over within {TRANSFER_PATIENCE:?}"
            ))),
        }
    }

    fn member(&self, id: RaftId) -> Result<crate::status::Member, ChangeError> {
        let status = self.status();
        let member = status
            .members
            .iter()
            .find(|member| member.peer.id == id)
            .cloned();
        member.ok_or_else(|| ChangeError::Refused(format!("{id} is not a member")))
    }

    async fn change(&self, changes: Changes, keep_as_learner: bool) -> Result<(), ChangeError> {
        self.change_as(Changing::one_more(&self.inner), changes, keep_as_learner)
            .await
    }

    async fn change_as(
        &self,
        changing: Changing,
        changes: Changes,
        keep_as_learner: bool,
    ) -> Result<(), ChangeError> {
        self.on_raft(move |raft| async move {
            let inner = &changing.0;
            let change = raft.change_membership(changes, keep_as_learner);
            let Ok(changed) = tokio::time::timeout(CHANGE_PATIENCE, change).await else {
                return Err(ChangeError::Unknown(format!(
                    "not committed within {CHANGE_PATIENCE:?}"
                )));
            };
            changed.map(drop).map_err(|error| match error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                    ChangeError::NotLeader {
                        leader: inner.other_leader(forward),
                    }
                }
                other => change_error(other),
            })
        })
        .await
    }

    /// Runs on the Raft runtime: openraft's waiting needs its timers.
    async fn on_raft<T, F>(&self, work: impl FnOnce(Raft) -> F) -> Result<T, ChangeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ChangeError>> + Send + 'static,
    {
        let running = self.inner.runtime.spawn(work(self.inner.raft.clone()));
        running
            .await
            .unwrap_or_else(|_| Err(ChangeError::Stopped("shut down".into())))
    }
}

/// A change this server is making; counted so that nobody settles it in the middle.
struct Changing(Arc<Inner>);

impl Changing {
    fn one_more(inner: &Arc<Inner>) -> Self {
        inner.changing.fetch_add(1, Ordering::Relaxed);
        Self(inner.clone())
    }

    /// `None` while there is another.
    fn alone(inner: &Arc<Inner>) -> Option<Self> {
        let counted: &AtomicUsize = &inner.changing;
        let first = counted.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
        first.ok().map(|_| Self(inner.clone()))
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.changing.fetch_sub(1, Ordering::Relaxed);
    }
}

fn change_error(error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            ChangeError::Unknown(error.to_string())
        }
        RaftError::APIError(error) => ChangeError::Refused(error.to_string()),
        RaftError::Fatal(fatal) => ChangeError::Stopped(fatal.to_string()),
    }
}

fn successor(status: &Status, to: Option<RaftId>) -> Result<RaftId, ChangeError> {
    let mut others = status
        .members
        .iter()
        .filter(|member| member.voter && member.peer.id != status.id);
    let chosen = match to {
        Some(to) => others.find(|member| member.peer.id == to),
        None => others.max_by_key(|member| member.matched),
    };
    let chosen =
        chosen.ok_or_else(|| ChangeError::Refused("there is no such other voter".into()))?;
    Ok(chosen.peer.id)
}

#[cfg(test)]
mod tests {
    use openraft::async_runtime::watch::WatchReceiver as _;
    use openraft::entry::RaftPayload as _;

    use super::*;
    use crate::types::{Membership, Types};
    use crate::world::{Options, World, id};

    /// The first step of removing `gone`, without the second: what a leader that dies leaves behind.
    async fn half_a_removal(world: &World, leader: usize, gone: RaftId) {
        let raft = world.node(leader).inner.raft.clone();
        let before = raft.metrics().borrow_watched().membership_config.clone();
        let voters: BTreeSet<RaftId> = before.membership().voter_ids().collect();
        let remaining = voters.iter().copied().filter(|id| *id != gone).collect();
        let nodes: BTreeMap<_, _> = before
            .membership()
            .nodes()
            .map(|(id, node)| (*id, node.clone()))
            .collect();
        let joint = Membership::new(vec![voters, remaining], nodes).unwrap();
        let blank = openraft::alias::PayloadOf::<Types>::blank();
        raft.append_membership(joint, blank, []).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_whose_leader_died_half_way_is_brought_to_its_end() {
        let mut world = World::cluster(4, Options::default()).await;
        let old = world.leader().await;
        world.put("x").await;
        let gone = (old + 1) % 4;
        half_a_removal(&world, old, id(gone)).await;
        for n in 0..4 {
            world.wait_status(n, "joint", |status| status.joint).await;
        }
        world.stop(old).await;

        let new = world.leader_but(old).await;
        world.put("y").await;
        assert!(world.node(new).status().joint, "electing settles nothing");
        world.node(new).settle_membership().await.unwrap();
        let settled = |status: &Arc<Status>| !status.joint && status.membership_settled;
        let status = world.wait_status(new, "settled", settled).await;
        let members: BTreeSet<_> = status.members.iter().map(|m| m.peer.id).collect();
        let expected: BTreeSet<_> = (0..4).filter(|n| *n != gone).map(id).collect();
        assert_eq!(members, expected);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_that_is_being_made_is_not_settled_by_somebody_else() {
        let world = World::cluster(1, Options::default()).await;
        let making = Changing::one_more(&world.node(0).inner);
        let refused = world.node(0).settle_membership().await.unwrap_err();
        assert_eq!(refused.reason(), "raft_change_refused");
        drop(making);
        world.node(0).settle_membership().await.unwrap();
    }
}
