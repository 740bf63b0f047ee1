//! Counters of the server role.
//!
//! Owns: handles, registered once.
//! Never: a label that a user can choose.

use std::sync::atomic::Ordering;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weft_proto::v1;

/// Handles of the server role's metrics.
#[derive(Default)]
pub(crate) struct Metrics {
    applied: Family<CommandLabel, Counter>,
    state_mismatch: Counter,
    pub(crate) catalog_rows: Family<TableLabel, Gauge>,
    pub(crate) disk_available_bytes: Gauge,
    pub(crate) coordinates_refused: Counter,
    pub(crate) subscribe: crate::subscribe::SubscribeMetrics,
    agent_connections: Gauge,
    agent_calls: Family<AgentCallLabel, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AgentCallLabel {
    kind: &'static str,
}

/// Counts an agent's connection for as long as it lives.
pub(crate) struct AgentConnection(Gauge);

impl Drop for AgentConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CommandLabel {
    command: &'static str,
}

/// A table of the catalog.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct TableLabel {
    table: &'static str,
}

impl Metrics {
    /// Adds every metric of the role to `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_catalog_applied",
            "Commands applied to the catalog",
            self.applied.clone(),
        );
        registry.register(
            "weft_server_state_mismatch",
            "Replicas found to have computed another state",
            self.state_mismatch.clone(),
        );
        registry.register(
            "weft_catalog_rows",
            "Rows in the catalog",
            self.catalog_rows.clone(),
        );
        registry.register(
            "weft_server_coordinates_refused",
            "Network coordinates refused because too many waited to be written",
            self.coordinates_refused.clone(),
        );
        registry.register(
            "weft_server_agent_connections",
            "Open connections of agents that are not servers",
            self.agent_connections.clone(),
        );
        registry.register(
            "weft_server_agent_calls",
            "Calls of such agents, by kind: forwarded HTTP, or typed",
            self.agent_calls.clone(),
        );
        registry.register(
            "weft_disk_available_bytes",
            "Free bytes under data_dir",
            self.disk_available_bytes.clone(),
        );
        self.subscribe.register(registry);
    }

    /// An agent has connected; until the answer is dropped.
    pub(crate) fn agent_connected(&self) -> AgentConnection {
        self.agent_connections.inc();
        AgentConnection(self.agent_connections.clone())
    }

    pub(crate) fn agent_call(&self, kind: &'static str) {
        self.agent_calls
            .get_or_create(&AgentCallLabel { kind })
            .inc();
    }

    pub(crate) fn state_mismatch(&self) {
        self.state_mismatch.inc();
    }

    #[cfg(test)]
    pub(crate) fn state_mismatches(&self) -> u64 {
        self.state_mismatch.get()
    }

    pub(crate) fn applied(&self, stamped: &v1::Stamped) {
        self.applied
            .get_or_create(&CommandLabel {
                command: name(stamped),
            })
            .inner()
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the sizes of the tables from a state.
    pub(crate) fn rows(&self, counts: &weft_catalog::Counts) {
        let tables = [
            ("nodes", counts.nodes),
            ("services", counts.services),
            ("service_instances", counts.instances),
            ("checks", counts.checks),
            ("kv_entries", counts.kv_entries),
            ("sessions", counts.sessions),
            ("config_entries", counts.config_entries),
            ("prepared_queries", counts.prepared_queries),
            ("coordinates", counts.coordinates),
        ];
        for (table, rows) in tables {
            self.catalog_rows
                .get_or_create(&TableLabel { table })
                .set(i64::try_from(rows).unwrap_or(i64::MAX));
        }
    }
}

fn name(stamped: &v1::Stamped) -> &'static str {
    use v1::stamped::Command;
    match stamped.command {
        Some(Command::Register(_)) => "register",
        Some(Command::Deregister(_)) => "deregister",
        Some(Command::Kv(_)) => "kv",
        Some(Command::SessionCreate(_)) => "session_create",
        Some(Command::SessionDestroy(_)) => "session_destroy",
        Some(Command::SessionRenew(_)) => "session_renew",
        Some(Command::SessionExpire(_)) => "session_expire",
        Some(Command::Txn(_)) => "txn",
        Some(Command::TombstoneReap(_)) => "tombstone_reap",
        Some(Command::ClusterVersion(_)) => "cluster_version",
        Some(
            Command::RestoreBegin(_)
            | Command::RestoreChunk(_)
            | Command::RestoreCommit(_)
            | Command::RestoreAbort(_),
        ) => "restore",
        Some(Command::LeaderStart(_)) => "leader_start",
        Some(Command::StateHash(_)) => "state_hash",
        Some(Command::ServerKey(_)) => "server_key",
        Some(Command::Autopilot(_)) => "autopilot",
        Some(Command::ConfigEntry(_)) => "config_entry",
        Some(Command::PreparedQuery(_)) => "prepared_query",
        Some(Command::Coordinates(_)) => "coordinates",
        Some(Command::JoinToken(_)) => "join_token",
        Some(Command::MeshCa(_)) => "mesh_ca",
        None => "unknown",
    }
}
