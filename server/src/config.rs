//! What the server role must be told.
//!
//! Owns: plain values, already validated by the agent's configuration.
//! Never: parses or defaults anything a user writes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::subscribe::SubscribeLimits;

/// Which store keeps the Raft log (`raft_logstore.backend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBackend {
    /// Our segmented write-ahead log.
    Wal,
    /// sled, flushed with an fdatasync of our own.
    Sled,
    /// Nothing on disk: `-dev`.
    Memory,
}

/// How a first leader comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Wait to be added to a cluster that exists.
    Join,
    /// This server alone is the first member (`-bootstrap`, `-dev`).
    Alone,
    /// The first `n` servers that see each other form the cluster (`-bootstrap-expect`).
    Expect(usize),
}

/// Settings of the server role.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Node name, unique in the datacenter.
    pub node_name: String,
    /// Node id, UUID text.
    pub node_id: String,
    /// Datacenter name.
    pub datacenter: String,
    /// Where everything durable lives; `None` keeps all in memory.
    pub data_dir: Option<PathBuf>,
    /// Where the RPC port listens.
    pub rpc_bind: SocketAddr,
    /// What other servers dial.
    pub rpc_advertise: SocketAddr,
    /// The log's backend.
    pub backend: LogBackend,
    /// First membership.
    pub bootstrap: Bootstrap,
    /// Whom to join (`-join`, `-retry-join`): [`Bootstrap::Alone`] asks them for their cluster first.
    pub join: Vec<String>,
    /// How often the leader compares the states of all servers, when something changed.
    pub compare_states_every: Duration,
    /// Scales heartbeat and election times; 1 is the fastest.
    pub raft_multiplier: u32,
    /// Entries applied since the last snapshot before the next (`raft_snapshot_threshold`).
    pub snapshot_threshold: u64,
    /// Entries kept behind a snapshot for slow followers (`raft_trailing_logs`).
    pub trailing_logs: u64,
    /// How long a request waits for a leader (`performance.rpc_hold_timeout`).
    pub hold_timeout: Duration,
    /// Tombstones are forgotten after this time.
    pub tombstone_ttl: Duration,
    /// Connections per remote address to the RPC port (`limits.rpc_max_conns_per_client`).
    pub rpc_max_conns_per_client: usize,
    /// Time for TLS and the first byte (`limits.rpc_handshake_timeout`).
    pub rpc_handshake_timeout: Duration,
    /// What is done for the views of agents (`views.server_…`).
    pub views: SubscribeLimits,
    /// Time before a caught-up learner may vote (`autopilot.server_stabilization_time`).
    pub stabilization: Duration,
    /// Silence after which a learner has not kept up (`autopilot.last_contact_threshold`); times `raft_multiplier`,
    /// as the heartbeats that break it are.
    pub last_contact_threshold: Duration,
    /// Entries a learner that keeps up may lag (`autopilot.max_trailing_logs`).
    pub max_trailing_logs: u64,
    /// Failed servers are never removed below this number of voters (`autopilot.min_quorum`).
    pub min_quorum: u32,
    /// Bytes of one segment of the write-ahead log (`raft_logstore.wal.segment_size_mb`).
    pub wal_segment_bytes: u64,
    /// Remove failed servers when quorum allows (`autopilot.cleanup_dead_servers`).
    pub cleanup_dead_servers: bool,
    /// Seed of this server's dice.
    pub seed: u64,
}

/// A server in memory that forms a cluster of its own, on ports the system picks.
#[cfg(test)]
pub(crate) fn for_tests() -> ServerConfig {
    ServerConfig {
        node_name: "s1".into(),
        node_id: "11111111-1111-4111-8111-111111111111".into(),
        datacenter: "dc1".into(),
        data_dir: None,
        rpc_bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        rpc_advertise: SocketAddr::from(([127, 0, 0, 1], 0)),
        backend: LogBackend::Memory,
        bootstrap: Bootstrap::Alone,
        join: Vec::new(),
        compare_states_every: Duration::from_secs(60),
        raft_multiplier: 1,
        snapshot_threshold: 16_384,
        trailing_logs: 10_240,
        hold_timeout: Duration::from_secs(7),
        tombstone_ttl: Duration::from_mins(15),
        rpc_max_conns_per_client: 100,
        rpc_handshake_timeout: Duration::from_secs(5),
        views: SubscribeLimits::default(),
        stabilization: Duration::from_secs(10),
        last_contact_threshold: Duration::from_millis(200),
        max_trailing_logs: 250,
        min_quorum: 0,
        wal_segment_bytes: 1 << 20,
        cleanup_dead_servers: true,
        seed: 1,
    }
}
