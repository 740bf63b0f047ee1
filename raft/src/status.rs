//! What a node knows of itself and the cluster, published for everybody.
//!
//! Owns: [`Status`] and the task that keeps it fresh.
//! Never: sits in the path of a proposal or read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::RaftMetrics;
use crate::net::{Acceptor, Transport};
use crate::peer::{Peer, RaftId};
use crate::types::{Types, term_of};

/// openraft's own view.
pub(crate) type Metrics = openraft::RaftMetrics<Types>;

/// What a server is in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Replicates but has no vote; also a server that belongs to no cluster yet.
    #[default]
    Learner,
    /// Votes and follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Has stopped.
    Stopped,
}

/// A server of the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub peer: Peer,
    /// Has a vote (in either set while a joint change is under way).
    pub voter: bool,
    /// Its vote comes with a change that is under way: it does not count before that is complete, and the
    /// old voters alone decide whether it will be.
    pub incoming: bool,
    /// Leader only: highest index known to be on its disk.
    pub matched: Option<u64>,
    /// Leader only: the term of that entry.
    pub matched_term: Option<u64>,
    /// Leader only: time since it last answered.
    pub last_contact: Option<Duration>,
}

/// A node's view at one moment, at most one heartbeat old. Indexes are 0 when there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This server.
    pub id: RaftId,
    /// What it is.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Who leads, as far as is known. One that was not heard for forty heartbeats, or has not heard a
    /// quorum for as long, is not known to lead any more.
    pub leader: Option<Peer>,
    /// Last entry of the log.
    pub last_log: u64,
    /// Last entry known to be committed and present here.
    pub committed: u64,
    /// Last entry applied.
    pub applied: u64,
    /// Last entry covered by a snapshot.
    pub snapshot: u64,
    /// Last entry gone from the log.
    pub purged: u64,
    /// Follower: time since the leader was heard (`None`: never). Leader: 0.
    pub last_contact: Option<Duration>,
    /// Leader: time since a quorum last answered (`None`: not yet).
    pub quorum_ack: Option<Duration>,
    /// Index of the membership in force.
    pub membership_index: u64,
    /// The membership is the committed one (no change under way).
    pub membership_settled: bool,
    /// A change of voters is half done: both the old and the new set must agree to everything. It stays
    /// so when the leader that made it died in between; see [`crate::RaftNode::settle_membership`].
    pub joint: bool,
    /// Servers of the membership, by id.
    pub members: Vec<Member>,
    /// Why Raft has failed here; the server role must end with it. `None` after a plain shutdown.
    pub fatal: Option<String>,
}

impl Status {
    /// `patience`: a leader silent for longer is not named.
    pub(crate) fn of(
        metrics: &Metrics,
        since_leader_heard: Option<Duration>,
        patience: Duration,
    ) -> Self {
        let membership = metrics.membership_config.membership();
        let leads = metrics.state == ServerState::Leader;
        Self {
            id: metrics.id,
            role: role(metrics.state),
            term: metrics.current_term,
            leader: metrics
                .current_leader
                .filter(|_| in_touch(metrics, since_leader_heard, patience))
                .and_then(|id| Some(Peer::new(id, membership.get_node(&id)?.clone()))),
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.map_or(0, |id| id.index),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            purged: metrics.purged.map_or(0, |id| id.index),
            last_contact: if leads {
                Some(Duration::ZERO)
            } else {
                since_leader_heard
            },
            quorum_ack: metrics.last_quorum_acked.as_ref().map(|at| at.elapsed()),
            membership_index: metrics.membership_config.log_id().map_or(0, |id| id.index),
            membership_settled: metrics.membership_config == metrics.committed_membership_config,
            joint: membership.get_joint_config().len() > 1,
            members: members(metrics),
            fatal: fatal(metrics),
        }
    }

    /// Whether this server leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}

/// Whether what is known about the leader is fresh: a follower heard it, or it heard a quorum.
///
/// openraft goes on naming a leader until the next vote, which never comes when the quorum is lost.
fn in_touch(metrics: &Metrics, since_leader_heard: Option<Duration>, patience: Duration) -> bool {
    if metrics.state != ServerState::Leader {
        return since_leader_heard.is_some_and(|since| since <= patience);
    }
    // A leader that is new has not heard anybody yet; the only voter never has to.
    let alone = metrics.membership_config.membership().voter_ids().count() == 1;
    let acked = metrics.last_quorum_acked.as_ref();
    alone || acked.is_none_or(|at| at.elapsed() <= patience)
}

/// Why Raft ended, unless it was told to.
fn fatal(metrics: &Metrics) -> Option<String> {
    match metrics.running_state.as_ref().err()? {
        Fatal::Stopped => None,
        fatal => Some(fatal.to_string()),
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn members(metrics: &Metrics) -> Vec<Member> {
    let membership = metrics.membership_config.membership();
    let voters = membership.get_joint_config();
    let matched = |id: &RaftId| metrics.replication.as_ref()?.get(id)?.as_ref();
    let heard = |id: &RaftId| {
        metrics
            .heartbeat
            .as_ref()?
            .get(id)?
            .as_ref()
            .map(|at| at.elapsed())
    };
    membership
        .nodes()
        .map(|(id, node)| Member {
            peer: Peer::new(*id, node.clone()),
            voter: voters.iter().any(|set| set.contains(id)),
            incoming: voters.len() > 1 && !voters[0].contains(id),
            matched: matched(id).map(|at| at.index),
            matched_term: matched(id).map(term_of),
            last_contact: if *id == metrics.id && metrics.state == ServerState::Leader {
                Some(Duration::ZERO)
            } else {
                heard(id)
            },
        })
        .collect()
}

/// What makes a new status worth publishing at once.
#[derive(PartialEq)]
struct Turn {
    role: Role,
    term: u64,
    leader: Option<RaftId>,
    membership_index: u64,
    settled: bool,
    fatal: bool,
}

impl Turn {
    fn of(metrics: &Metrics) -> Self {
        Self {
            role: role(metrics.state),
            term: metrics.current_term,
            leader: metrics.current_leader,
            membership_index: metrics.membership_config.log_id().map_or(0, |id| id.index),
            settled: metrics.membership_config == metrics.committed_membership_config,
            fatal: fatal(metrics).is_some(),
        }
    }
}

/// Publishes a status at every turn, and at least once a heartbeat.
pub(crate) struct Publisher {
    pub(crate) to: watch::Sender<Arc<Status>>,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) metrics: Arc<RaftMetrics>,
    pub(crate) every: Duration,
}

/// Heartbeats without a word after which a leader is not named any more.
const SILENT_HEARTBEATS: u32 = 40;

impl Publisher {
    pub(crate) async fn run(self, mut from: openraft::alias::WatchReceiverOf<Types, Metrics>) {
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = None;
        let mut published = Instant::now();
        loop {
            let running = tokio::select! {
                biased;
                changed = from.changed() => changed.is_ok(),
                _ = tick.tick() => true,
            };
            let metrics = from.borrow_watched().clone();
            let now = Turn::of(&metrics);
            let turned = turn.as_ref() != Some(&now);
            if turned {
                self.turned(&metrics, turn.as_ref(), &now);
                turn = Some(now);
            }
            if turned || !running || published.elapsed() >= self.every {
                published = Instant::now();
                self.publish(&metrics, running);
            }
            if !running {
                return;
            }
        }
    }

    fn publish(&self, metrics: &Metrics, running: bool) {
        let patience = self.every * SILENT_HEARTBEATS;
        let mut status = Status::of(metrics, self.acceptor.since_leader_heard(), patience);
        if !running {
            status.role = Role::Stopped;
            // A core that panicked has nobody left to say so.
            if metrics.running_state.is_ok() {
                status.fatal = Some("raft core ended without a reason".into());
            }
        }
        self.to.send_replace(Arc::new(status));
    }

    fn turned(&self, metrics: &Metrics, before: Option<&Turn>, now: &Turn) {
        self.metrics.term.set(now.term);
        self.metrics
            .is_leader
            .set(i64::from(now.role == Role::Leader));
        if before.is_none_or(|before| before.membership_index != now.membership_index) {
            let nodes = metrics.membership_config.membership().nodes();
            let peers: BTreeMap<_, _> = nodes
                .map(|(id, node)| (*id, Peer::new(*id, node.clone())))
                .collect();
            self.acceptor
                .gate
                .set_members(peers.keys().copied().collect());
            self.transport.set_peers(peers);
        }
        if before.is_some_and(|before| before.leader != now.leader) {
            self.metrics.leader_change();
        }
        if before.is_none_or(|before| before.role != now.role) {
            if now.role == Role::Candidate {
                self.metrics.election();
            }
            tracing::info!(raft.term = now.term, raft.role = ?now.role, "raft role changed");
        }
        if let Some(fatal) = fatal(metrics) {
            tracing::error!(error = %fatal, "raft has stopped on this server");
        }
    }
}
