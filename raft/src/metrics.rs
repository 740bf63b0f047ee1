//! What Raft counts: `weft_raft_*`.
//!
//! Owns: the counters and histograms of one node.
//! Never: serves them; the agent's registry does.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Applied,
    NotLeader,
    Unknown,
    Overloaded,
    TooLarge,
    Stopped,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Applied => "applied",
            Self::NotLeader => "not_leader",
            Self::Unknown => "unknown",
            Self::Overloaded => "overloaded",
            Self::TooLarge => "too_large",
            Self::Stopped => "stopped",
        };
        word.encode(encoder)
    }
}

/// What a peer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rpc {
    Append,
    Heartbeat,
    Vote,
    PreVote,
    TransferLeader,
    Snapshot,
}

impl EncodeLabelValue for Rpc {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Append => "append",
            Self::Heartbeat => "heartbeat",
            Self::Vote => "vote",
            Self::PreVote => "pre_vote",
            Self::TransferLeader => "transfer_leader",
            Self::Snapshot => "snapshot",
        };
        word.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRpc {
    rpc: Rpc,
}

/// The metrics of one Raft node. Register once; the node keeps counting.
#[derive(Debug)]
pub struct RaftMetrics {
    commit_duration: Histogram,
    apply_duration: Histogram,
    apply_batch: Histogram,
    append_batch: Histogram,
    proposals: Family<ByOutcome, Counter>,
    rpcs: Family<ByRpc, Counter>,
    rpc_append: Counter,
    rpc_heartbeat: Counter,
    applied: Counter,
    read_rounds: Counter,
    reads: Counter,
    elections: Counter,
    leader_changes: Counter,
    snapshots_built: Counter,
    snapshots_installed: Counter,
    snapshot_bytes: Gauge<u64, AtomicU64>,
    snapshot_duration: Histogram,
    connections: Counter,
    connections_refused: Counter,
    pub(crate) term: Gauge<u64, AtomicU64>,
    pub(crate) is_leader: Gauge,
}

impl RaftMetrics {
    pub(crate) fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        let sizes = || Histogram::new(exponential_buckets(1.0, 4.0, 7));
        let rpcs = Family::<ByRpc, Counter>::default();
        let by = |rpc| Counter::clone(&rpcs.get_or_create(&ByRpc { rpc }));
        let (rpc_append, rpc_heartbeat) = (by(Rpc::Append), by(Rpc::Heartbeat));
        Self {
            commit_duration: seconds(),
            apply_duration: seconds(),
            apply_batch: sizes(),
            append_batch: sizes(),
            proposals: Family::default(),
            rpc_append,
            rpc_heartbeat,
            rpcs,
            applied: Counter::default(),
            read_rounds: Counter::default(),
            reads: Counter::default(),
            elections: Counter::default(),
            leader_changes: Counter::default(),
            snapshots_built: Counter::default(),
            snapshots_installed: Counter::default(),
            snapshot_bytes: Gauge::default(),
            snapshot_duration: seconds(),
            connections: Counter::default(),
            connections_refused: Counter::default(),
            term: Gauge::default(),
            is_leader: Gauge::default(),
        }
    }

    /// Adds all of them to `registry` under the prefix `weft_raft`.
    pub fn register(&self, registry: &mut Registry) {
        let raft = registry.sub_registry_with_prefix("weft_raft");
        raft.register(
            "commit_duration_seconds",
            "From proposal to reply",
            self.commit_duration.clone(),
        );
        raft.register(
            "apply_duration_seconds",
            "One call of the state machine",
            self.apply_duration.clone(),
        );
        raft.register(
            "apply_batch_entries",
            "Entries applied at once",
            self.apply_batch.clone(),
        );
        raft.register(
            "append_batch_entries",
            "Entries received in one append",
            self.append_batch.clone(),
        );
        raft.register("proposals", "Proposals by outcome", self.proposals.clone());
        raft.register("rpcs", "Requests received from peers", self.rpcs.clone());
        raft.register(
            "entries_applied",
            "Application entries applied",
            self.applied.clone(),
        );
        raft.register(
            "read_rounds",
            "Leadership confirmations for reads",
            self.read_rounds.clone(),
        );
        raft.register(
            "read_indexes",
            "Reads served by those rounds",
            self.reads.clone(),
        );
        raft.register(
            "elections",
            "Candidacies of this server",
            self.elections.clone(),
        );
        raft.register(
            "leader_changes",
            "Changes of the known leader",
            self.leader_changes.clone(),
        );
        raft.register(
            "snapshots_built",
            "Snapshots written",
            self.snapshots_built.clone(),
        );
        raft.register(
            "snapshots_installed",
            "Snapshots received and restored",
            self.snapshots_installed.clone(),
        );
        raft.register(
            "snapshot_size_bytes",
            "Size of the last snapshot written",
            self.snapshot_bytes.clone(),
        );
        raft.register(
            "snapshot_duration_seconds",
            "Time to write a snapshot",
            self.snapshot_duration.clone(),
        );
        raft.register(
            "connections_accepted",
            "Connections from peers",
            self.connections.clone(),
        );
        raft.register(
            "connections_refused",
            "Connections turned away",
            self.connections_refused.clone(),
        );
        raft.register("term", "Current term", self.term.clone());
        raft.register("is_leader", "1 on the leader", self.is_leader.clone());
    }

    pub(crate) fn applied(&self, entries: usize, took: Duration) {
        self.applied.inc_by(entries as u64);
        self.apply_batch.observe(count(entries));
        self.apply_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn appended(&self, entries: usize) {
        if entries == 0 {
            self.rpc_heartbeat.inc();
        } else {
            self.rpc_append.inc();
            self.append_batch.observe(count(entries));
        }
    }

    pub(crate) fn rpc(&self, rpc: Rpc) {
        self.rpcs.get_or_create(&ByRpc { rpc }).inc();
    }

    pub(crate) fn proposal(&self, outcome: Outcome, took: Duration) {
        self.proposals.get_or_create(&ByOutcome { outcome }).inc();
        if outcome == Outcome::Applied {
            self.commit_duration.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn read_round(&self, reads: usize) {
        self.read_rounds.inc();
        self.reads.inc_by(reads as u64);
    }

    pub(crate) fn election(&self) {
        self.elections.inc();
    }

    pub(crate) fn leader_change(&self) {
        self.leader_changes.inc();
    }

    pub(crate) fn snapshot_built(&self, size_bytes: u64, took: Duration) {
        self.snapshots_built.inc();
        self.snapshot_bytes.set(size_bytes);
        self.snapshot_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn snapshot_installed(&self) {
        self.snapshots_installed.inc();
    }

    pub(crate) fn connection(&self, accepted: bool) {
        if accepted {
            self.connections.inc();
        } else {
            self.connections_refused.inc();
        }
    }
}

fn count(entries: usize) -> f64 {
    u32::try_from(entries).map_or(f64::MAX, f64::from)
}
