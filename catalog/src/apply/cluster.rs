//! The cluster's own rows: version, server keys, autopilot, and forgetting tombstones.
//!
//! Owns: what operators and leaders write about the cluster itself.
//! Never: forgets more than it was told to.

use std::sync::Arc;

use bytes::Bytes;
use weft_proto::ids::UnixMillis;
use weft_proto::v1;

use crate::digest::{Digest, Table};
use crate::keys::{self, Pair, TripleRef};
use crate::mesh::OFFERS;
use crate::refusal::{Verdict, applied, conflict, invalid, unit};
use crate::rows::Change;
use crate::state::State;
use crate::topics::TableTopic;

/// Forgets tombstones and extinctions up to an index, and lock-delays that have passed. Whatever
/// is missing answers at least that index from now on, so that no index runs back.
pub(crate) fn reap(
    change: &mut Change<'_>,
    now: UnixMillis,
    command: &v1::TombstoneReap,
) -> Verdict {
    // What comes into being later must have a higher index than what was missing before.
    let up_to = command.up_to_index.min(change.index.saturating_sub(1));
    let state = &mut *change.state;
    let forgot = forget(&mut state.key_tombstones, up_to)
        + forget(&mut state.tree_tombstones, up_to)
        + forget(&mut state.extinct_nodes, up_to)
        + forget(&mut state.extinct_services, up_to);
    if forgot > 0 {
        state.scalars.reaped = state.scalars.reaped.max(up_to);
    }
    forget_mesh(state);
    let passed: Vec<Bytes> = state
        .lock_delays
        .iter()
        .filter(|(_, until)| **until <= now.get())
        .map(|(key, _)| key.clone())
        .collect();
    for key in passed {
        state.lock_delays.remove(&key[..]);
    }
    Ok(unit())
}

/// Scopes of which nothing is left, once what is missing answers as much. They are in no hash, so they
/// decide nothing here.
fn forget_mesh(state: &mut State) {
    let reaped = state.scalars.reaped;
    let is_there = |key: &Pair| {
        let links = state.gateway_links.range(TripleRef(&key.0, &key.1, "")..);
        let is_linked = links.take(1).any(|link| link.0 == key.0 && link.1 == key.1);
        is_linked || (*key.0 == *OFFERS && state.offers.contains_key(&key.1))
    };
    let gone: Vec<Pair> = state
        .mesh_scopes
        .iter()
        .filter(|(key, index)| **index <= reaped && !is_there(key))
        .map(|(key, _)| key.clone())
        .collect();
    for key in gone {
        state.mesh_scopes.remove(&key);
    }
}

fn forget<K: Ord + Clone + Digest>(table: &mut Table<K, u64>, up_to: u64) -> usize {
    let old: Vec<K> = table
        .iter()
        .filter(|(_, index)| **index <= up_to)
        .map(|(key, _)| key.clone())
        .collect();
    for key in &old {
        table.remove(key);
    }
    old.len()
}

/// Raises the cluster's version; it never goes back.
pub(crate) fn version(change: &mut Change<'_>, command: &v1::ClusterVersion) -> Verdict {
    if command.version < change.state.scalars.cluster_version {
        return Err(conflict(
            "cluster.version.lower",
            format!(
                "the cluster is at version {} and cannot go back to {}",
                change.state.scalars.cluster_version, command.version
            ),
        ));
    }
    change.state.scalars.cluster_version = command.version;
    Ok(unit())
}

/// Names the cluster, the first time only.
pub(crate) fn name_once(change: &mut Change<'_>, cluster_id: &str) {
    if change.state.cluster_id.is_none() && !cluster_id.is_empty() {
        change.state.cluster_id = Some(cluster_id.into());
    }
}

/// Binds a Raft id to a key, once and for all.
pub(crate) fn server_key(change: &mut Change<'_>, command: &v1::ServerKey) -> Verdict {
    if command.raft_id.is_empty() || command.public_key.is_empty() {
        return Err(invalid(
            "server_key.incomplete",
            "a server key needs a Raft id and a public key",
        ));
    }
    let id = keys::name(&command.raft_id);
    match change.state.server_keys.get(&id) {
        Some(before) if before.public_key != command.public_key => {
            return Err(conflict(
                "server_key.bound",
                format!(
                    "Raft id {} is bound to another key (server {:?}); a server that lost its key joins with a new id",
                    command.raft_id, before.node_name
                ),
            ));
        }
        Some(before) if **before == *command => return Ok(unit()),
        _ => {}
    }
    change
        .state
        .server_keys
        .insert(id, Arc::new(command.clone()));
    change.bump_table(TableTopic::Operator);
    Ok(unit())
}

/// Consul's defaults, until an operator sets something else.
pub(crate) fn autopilot_defaults() -> v1::AutopilotConfig {
    v1::AutopilotConfig {
        cleanup_dead_servers: true,
        last_contact_threshold_millis: 200,
        max_trailing_logs: 250,
        server_stabilization_millis: 10_000,
        ..v1::AutopilotConfig::default()
    }
}

/// Replaces autopilot's settings, with `cas` only if their modify index is the expected one.
pub(crate) fn autopilot(change: &mut Change<'_>, command: &v1::AutopilotConfig) -> Verdict {
    let before = change.state.autopilot.clone();
    let current = before.as_ref().map_or(0, |before| before.modify_index);
    if command.cas && command.expect_modify_index != current {
        return Ok(applied(false));
    }
    let mut wanted = v1::AutopilotConfig {
        cas: false,
        expect_modify_index: 0,
        ..*command
    };
    wanted.create_index = before
        .as_ref()
        .map_or(change.index, |before| before.create_index);
    wanted.modify_index = current;
    if before.as_deref() == Some(&wanted) {
        return Ok(applied(true));
    }
    wanted.modify_index = change.index;
    change.state.autopilot = Some(Arc::new(wanted));
    change.bump_table(TableTopic::Operator);
    Ok(applied(true))
}
