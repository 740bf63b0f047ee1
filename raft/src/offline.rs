//! A server that is stopped: what its disk says, and another membership for it to go on with.
//!
//! Owns: the rewriting of a membership without a quorum. The whole log is applied, a snapshot of the outcome says who
//! the members are from now on, and the log before it is forgotten. Term, vote and indexes go on: no entry is given
//! another meaning, so servers that were rewritten alike still agree, and the longest log leads.
//! Never: decides who goes on, or whether that is right; `weft recover` and its operator do.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use weft_proto::clock::Clock;

use crate::error::StartError;
use crate::log::{LogStore, Position};
use crate::machine::StateMachine;
use crate::peer::Peer;
use crate::recovery::{self, Recovered};
use crate::snapshot::SnapshotStore;
use crate::types::{
    LogId, Membership, SnapshotMeta, StoredMembership, decode_vote, from_position, term_of,
};

/// A stopped server's log and snapshots, all of it applied to a state machine.
pub struct Offline<M> {
    store: Arc<dyn LogStore>,
    snapshots: SnapshotStore,
    machine: M,
    last: LogId,
    recovered: Recovered,
}

/// What a stopped server's disk says of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Term of its last vote.
    pub term: u64,
    /// Last entry of the log. Of two logs, the one with the higher (term, index) here has everything committed.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
    /// Last entry this server knew to be committed when it last synced; more may have been.
    pub committed: u64,
    /// Last entry covered by a snapshot; 0 without one.
    pub snapshot: u64,
    /// The newest membership in its log, committed or not.
    pub members: Vec<SurveyedMember>,
}

/// A member, as a stopped server remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedMember {
    /// Who it is.
    pub peer: Peer,
    /// Has a vote.
    pub voter: bool,
}

impl<M: StateMachine> Offline<M> {
    /// Reads everything `store` and `snapshot_dir` hold into `machine`, entries that are not known to be committed
    /// included. `None`: there is no log.
    ///
    /// Nobody else may have them open. Errors: [`StartError`]; nothing was changed.
    pub fn open(
        store: Arc<dyn LogStore>,
        snapshot_dir: Option<PathBuf>,
        mut machine: M,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, StartError> {
        let Some(end) = store.state().last else {
            return Ok(None);
        };
        let snapshots =
            SnapshotStore::open(snapshot_dir, clock).map_err(cannot("open the snapshots"))?;
        let recovered =
            recovery::recover_through(store.as_ref(), &snapshots, &mut machine, Some(end))?;
        let last = recovered.applied.max(Some(from_position(end)));
        Ok(last.map(|last| Self {
            store,
            snapshots,
            machine,
            last,
            recovered,
        }))
    }

    /// What was found.
    ///
    /// Errors: the vote on disk cannot be read.
    pub fn survey(&self) -> Result<Survey, StartError> {
        let state = self.store.state();
        let vote = state.vote.as_ref().map(decode_vote).transpose();
        let vote = vote.map_err(cannot("read the vote"))?;
        let membership = self.recovered.membership.membership();
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| SurveyedMember {
            peer: Peer::new(*id, node.clone()),
            voter: voters.contains(id),
        });
        Ok(Survey {
            term: vote.map_or(0, |vote| vote.leader_id.term),
            last_index: self.last.index,
            last_term: term_of(&self.last),
            committed: state.committed.map_or(0, |position| position.index),
            snapshot: self
                .snapshots
                .current()
                .and_then(|stored| stored.meta.last_log_id)
                .map_or(0, |id| id.index),
            members: members.collect(),
        })
    }

    /// The state all of the log made.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// As [`Self::machine`], to be changed before it is kept.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Makes `members` the membership, and the state machine as it is now the state at the end of the log. Durable
    /// when it answers.
    ///
    /// Errors: [`StartError`]; before the snapshot has its name nothing is changed, afterwards everything.
    pub fn rewrite(mut self, members: Vec<SurveyedMember>) -> Result<(), StartError> {
        let voters: BTreeSet<_> = members
            .iter()
            .filter(|member| member.voter)
            .map(|member| member.peer.id)
            .collect();
        let nodes: BTreeMap<_, _> = members
            .into_iter()
            .map(|member| (member.peer.id, member.peer.into_node()))
            .collect();
        let membership = Membership::new(vec![voters], nodes)
            .map_err(|cause| StartError::Raft(cause.to_string()))?;
        let meta = SnapshotMeta {
            last_log_id: Some(self.last),
            last_membership: StoredMembership::new(Some(self.last), membership),
        };
        let frozen = self.machine.freeze();
        self.snapshots
            .write(meta, |to| frozen.write(to))
            .map_err(cannot("write the snapshot"))?;
        self.forget_log().map_err(cannot("shorten the log"))
    }

    /// The snapshot holds all of it.
    fn forget_log(&self) -> io::Result<()> {
        let up_to = Position {
            term: term_of(&self.last),
            leader: 0,
            index: self.last.index,
        };
        let (done, flushed) = mpsc::channel();
        self.store.purge(
            up_to,
            Box::new(move |result| {
                // Who waits is below.
                let _ = done.send(result);
            }),
        )?;
        flushed
            .recv()
            .map_err(|_| io::Error::other("the log store dropped a purge without an answer"))?
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Io {
        what: what.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use weft_proto::clock::SystemClock;

    use super::*;
    use crate::log::{Wal, WalOptions};
    use crate::world::{Journal, Options, Recorder, World, id};

    fn open(world: &World, n: usize) -> (Offline<Recorder>, Arc<Mutex<Journal>>) {
        let dir = world.dir(n);
        let store = Wal::open_dir(&dir.join("wal"), WalOptions::default()).unwrap();
        let journal = Arc::new(Mutex::new(Journal::default()));
        let offline = Offline::open(
            Arc::new(store),
            Some(dir.join("snapshots")),
            Recorder(journal.clone()),
            Arc::new(SystemClock::new()),
        );
        (offline.unwrap().unwrap(), journal)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_of_three_goes_on_alone_with_everything() {
        let options = Options {
            on_disk: true,
            ..Options::default()
        };
        let mut world = World::cluster(3, options).await;
        let leader = world.leader().await;
        let mut last = 0;
        for n in 0..20 {
            last = world.put(&format!("x{n}")).await;
        }
        let kept = (leader + 1) % 3;
        world.agree(kept, leader, last).await;
        for n in 0..3 {
            world.stop(n).await;
        }
        let (offline, journal) = open(&world, kept);
        let survey = offline.survey().unwrap();
        assert_eq!(survey.members.len(), 3);
        assert!(survey.members.iter().all(|member| member.voter));
        assert!(survey.last_index >= last);
        assert!(survey.term >= survey.last_term && survey.last_term > 0);
        assert_eq!(journal.lock().0.len(), 20);
        let own = survey.members.into_iter();
        let own: Vec<_> = own.filter(|member| member.peer.id == id(kept)).collect();
        offline.rewrite(own).unwrap();

        world.start(kept).unwrap();
        let led = world
            .wait_status(kept, "to lead alone", |status| {
                status.role == crate::Role::Leader
            })
            .await;
        assert_eq!(led.members.len(), 1);
        assert!(led.term > survey.term, "terms go on");
        let applied = world.node(kept).propose("y".into()).await.unwrap();
        assert!(applied.index > survey.last_index, "indexes go on");
        assert_eq!(applied.reply, "21", "nothing was lost");
    }
}
