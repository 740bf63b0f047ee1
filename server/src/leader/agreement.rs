//! Agreement of the replicas: one state, and a cluster version that all of them follow.
//!
//! Owns: asking the members for their state hash and their version, and what follows from the answers.
//! Never: takes this leader's own state for the right one; the hash that a quorum has is.

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use weft_catalog::{CLUSTER_VERSION_MAX, HASH_FORM};
use weft_proto::v1;
use weft_proto::v1::stamped::Command;
use weft_raft::{Member, RaftId};

use crate::forward::Client;
use crate::handle::Server;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Entries applied after which the states are compared before their time.
const COMPARE_ENTRIES: u64 = 16_384;
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

pub(super) async fn run(server: &Server) {
    tokio::join!(compare_states(server), raise_version(server));
}

/// Compares the states when something changed: after a while, or after many entries.
async fn compare_states(server: &Server) {
    let inner = &server.inner;
    let every = inner.config.compare_states_every;
    // What changed under the leader before this one may not have been compared.
    let mut last = (inner.clock.monotonic(), 0);
    loop {
        tokio::time::sleep(every.min(LOOK_EVERY)).await;
        let (now, index) = (inner.clock.monotonic(), server.state().index().get());
        let entries = index.saturating_sub(last.1);
        let many = last.1 > 0 && entries >= COMPARE_ENTRIES;
        let due = many || now.saturating_sub(last.0) >= every;
        if entries == 0 || !due {
            continue;
        }
        // The comparison's own entry is no change that calls for another; one that came to nothing is
        // made again next time.
        last = (now, compare(server).await.unwrap_or(last.1));
    }
}

/// Asks everybody for the hash of the newest state; answers the index up to which that is settled.
async fn compare(server: &Server) -> Option<u64> {
    let inner = &server.inner;
    let status = inner.raft.status();
    let others: Vec<_> = status
        .members
        .iter()
        .filter(|m| m.peer.id != status.id)
        .collect();
    let state = server.state();
    let (at_index, ours) = (state.index().get(), state.hash());
    if others.is_empty() {
        return Some(at_index);
    }
    drop(state);
    let digest =
        async move |mut client: Client| client.digest(v1::DigestRequest { at_index }).await;
    let answers = asked(server, &others, digest)
        .filter(|(_, reply)| ready(reply.known && reply.hash_form == HASH_FORM))
        .map(|(id, reply)| (id, reply.hash));
    let (verdict, hashes) = first_verdict(ours, &status.members, answers).await;
    for member in &others {
        if let Some(theirs) = hashes
            .get(&member.peer.id)
            .filter(|theirs| **theirs != ours)
        {
            inner.metrics.state_mismatch();
            tracing::error!(
                reason = "state.mismatch", catalog.index = at_index, server.name = %member.peer.name,
                ours = %format_args!("{ours:#018x}"), theirs = %format_args!("{theirs:#018x}"),
                "a server computed another state than this leader"
            );
        }
    }
    match verdict {
        Verdict::Right => {
            let command = Command::StateHash(v1::StateHash {
                at_index,
                hash: ours,
                hash_form: HASH_FORM,
            });
            let outcome = super::propose(server, "agreement", command).await;
            // Its own entry is settled with it only if nothing came in between.
            outcome.map(|outcome| {
                let alone = outcome.index == at_index.saturating_add(1);
                if alone { outcome.index } else { at_index }
            })
        }
        Verdict::Wrong => {
            let why = format!(
                "state.mismatch: this server computed another state at catalog index {at_index} than a quorum of the others; if that happens again after a restart, move its raft folder away to let it join anew"
            );
            inner.failed.send_replace(Some(why));
            None
        }
        Verdict::Unknown => {
            tracing::debug!(
                catalog.index = at_index,
                answers = hashes.len(),
                "no quorum has one state, or says so"
            );
            None
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// A quorum of the voters has this leader's state.
    Right,
    /// A quorum has another one.
    Wrong,
    /// Too few answered, or no state has a quorum.
    Unknown,
}

/// Judges as soon as the answers suffice: replicas keep their newest hashes only, and while a silent member
/// is waited for the others would forget this one.
async fn first_verdict(
    ours: u64,
    members: &[Member],
    answers: impl Stream<Item = (RaftId, u64)>,
) -> (Verdict, BTreeMap<RaftId, u64>) {
    let mut answers = pin!(answers);
    let mut hashes = BTreeMap::new();
    loop {
        let verdict = judge(ours, members, &hashes);
        if verdict != Verdict::Unknown {
            return (verdict, hashes);
        }
        match answers.next().await {
            Some((id, hash)) => hashes.insert(id, hash),
            None => return (verdict, hashes),
        };
    }
}

/// `hashes`: those of the other members that answered. This leader is one of the voters.
fn judge(ours: u64, members: &[Member], hashes: &BTreeMap<RaftId, u64>) -> Verdict {
    let voters = || members.iter().filter(|m| m.voter);
    let quorum = voters().count() / 2 + 1;
    let mut votes = BTreeMap::from([(ours, 1)]);
    for hash in voters().filter_map(|m| hashes.get(&m.peer.id)) {
        *votes.entry(*hash).or_insert(0) += 1;
    }
    match votes.into_iter().find(|(_, count)| *count >= quorum) {
        Some((hash, _)) if hash == ours => Verdict::Right,
        Some(_) => Verdict::Wrong,
        None => Verdict::Unknown,
    }
}

/// Raises the cluster's version to the lowest that the members follow, once all of them have said theirs.
async fn raise_version(server: &Server) {
    let inner = &server.inner;
    loop {
        let now = server.state().cluster_version();
        let status = inner.raft.status();
        let others: Vec<_> = status
            .members
            .iter()
            .filter(|m| m.peer.id != status.id)
            .collect();
        if now < CLUSTER_VERSION_MAX {
            let datacenter = inner.config.datacenter.clone();
            let hello = async move |mut client: Client| {
                client
                    .hello(v1::HelloRequest {
                        datacenter,
                        ..v1::HelloRequest::default()
                    })
                    .await
            };
            let hellos: BTreeMap<_, _> = asked(server, &others, hello).collect().await;
            let theirs = hellos
                .values()
                .map(|hello| follows(hello.cluster_version_max));
            let lowest = theirs.chain([CLUSTER_VERSION_MAX]).min().unwrap_or(now);
            if hellos.len() == others.len() && lowest > now {
                let command = Command::ClusterVersion(v1::ClusterVersion { version: lowest });
                if super::propose(server, "agreement", command).await.is_some() {
                    tracing::info!(cluster.version = lowest, "cluster version raised");
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY * 10).await;
    }
}

/// The version a server says it follows; one that does not say follows the first.
pub(crate) fn follows(said: u32) -> u32 {
    said.max(1)
}

/// The same call to each of `members`, their answers as they come; those that do not answer are left out.
fn asked<T>(
    server: &Server,
    members: &[&Member],
    call: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, tonic::Status> + Clone,
) -> impl Stream<Item = (RaftId, T)> {
    let inner = &server.inner;
    let calls = members.iter().map(|member| {
        let (call, address) = (call.clone(), inner.transport.address_of(&member.peer));
        let id = member.peer.id;
        async move {
            let answer = inner.forwarder.call(&address, ANSWER_WITHIN, call).await;
            Some((id, answer.ok()?))
        }
    });
    calls.collect::<FuturesUnordered<_>>().filter_map(ready)
}

#[cfg(test)]
mod tests;
