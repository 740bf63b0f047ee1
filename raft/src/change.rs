//! Membership changes and leadership transfer.
//!
//! Owns: the mapping of each operation to one joint change.
//! Never: decides who should be a member; autopilot and operators do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};

use crate::error::ChangeError;
use crate::net::Raft;
use crate::node::RaftNode;
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
        let inner = self.inner.clone();
        self.on_raft(move |raft| async move {
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
