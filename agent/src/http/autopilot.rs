//! `/v1/operator/autopilot/{health,state}` and `/v1/operator/usage`.
//!
//! Owns: the shapes; and what one server's health says of the cluster's.
//! Never: judges a server; the leader does.
//! Source: Consul HTTP API, "Autopilot", "Usage"; CONSUL.md A.10.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use weft_catalog::mesh;
use weft_proto::clock::rfc3339;
use weft_proto::ids::UnixMillis;
use weft_proto::json::Json;
use weft_proto::{duration, v1};

use super::blocking::{CONSISTENCY, Found, KNOWN_LEADER, LAST_CONTACT, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::{Content, Reply};
use crate::backend::{Member, MemberStatus};

/// The tags by which a server's member names its Raft id and its version.
const RAFT_ID: &str = "raft_id";
const BUILD: &str = "build";

/// The servers as the leader sees them, with what gossip adds.
struct Servers {
    peers: Vec<v1::RaftPeer>,
    members: Vec<Member>,
}

impl Servers {
    async fn ask(call: &Call) -> Result<Self, Failure> {
        let deps = &call.api.deps;
        Ok(Self {
            peers: deps.operator.raft_configuration(false).await?.peers,
            members: deps.membership.members(),
        })
    }

    fn member(&self, peer: &v1::RaftPeer) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.tags.get(RAFT_ID) == Some(&peer.raft_id))
    }

    fn serf_status(&self, peer: &v1::RaftPeer) -> &'static str {
        match self.member(peer).map(|member| member.status) {
            Some(MemberStatus::Alive) => "alive",
            Some(MemberStatus::Leaving) => "leaving",
            Some(MemberStatus::Left) => "left",
            Some(MemberStatus::Failed) => "failed",
            Some(MemberStatus::None) | None => "none",
        }
    }

    fn version(&self, peer: &v1::RaftPeer) -> &str {
        self.member(peer)
            .and_then(|member| member.tags.get(BUILD))
            .and_then(|build| build.split(':').next())
            .unwrap_or_default()
    }

    fn healthy(&self) -> bool {
        !self.peers.is_empty() && self.peers.iter().all(|peer| peer.healthy)
    }

    /// Voters that may fail while the rest still is a quorum.
    fn failure_tolerance(&self) -> u64 {
        let voters = self.peers.iter().filter(|peer| peer.voter);
        let well = voters.clone().filter(|peer| peer.healthy).count();
        well.saturating_sub(voters.count() / 2 + 1) as u64
    }
}

pub(super) async fn health(call: Call) -> Result<Reply, Failure> {
    let servers = Servers::ask(&call).await?;
    let reply = Reply::written(|json| {
        json.object(|json| {
            json.key("Healthy").boolean(servers.healthy());
            json.key("FailureTolerance")
                .number(servers.failure_tolerance());
            json.key("Servers").list(&servers.peers, |json, peer| {
                json.object(|json| {
                    identity(json, peer);
                    json.key("SerfStatus").string(servers.serf_status(peer));
                    json.key("Version").string(servers.version(peer));
                    json.key("Leader").boolean(peer.leader);
                    progress(json, peer);
                    json.key("Healthy").boolean(peer.healthy);
                    json.key("Voter").boolean(peer.voter);
                    stable_since(json, peer);
                });
            });
        });
    });
    // Load balancers and scripts look at the status alone.
    let status = if servers.healthy() {
        StatusCode::OK
    } else {
        StatusCode::TOO_MANY_REQUESTS
    };
    Ok(reply.status(status))
}

pub(super) async fn state(call: Call) -> Result<Reply, Failure> {
    let servers = Servers::ask(&call).await?;
    let leader = servers.peers.iter().find(|peer| peer.leader);
    let voters = servers.peers.iter().filter(|peer| peer.voter);
    Ok(Reply::written(|json| {
        json.object(|json| {
            json.key("Healthy").boolean(servers.healthy());
            let tolerance = servers.failure_tolerance();
            json.key("FailureTolerance").number(tolerance);
            json.key("OptimisticFailureTolerance").number(tolerance);
            json.key("Leader")
                .string(leader.map_or("", |peer| &peer.raft_id));
            json.key("Voters").strings(voters.map(|peer| &peer.raft_id));
            json.key("Servers").object(|json| {
                for peer in &servers.peers {
                    json.dynamic_key(&peer.raft_id)
                        .object(|json| write_state(json, &servers, peer));
                }
            });
        });
    }))
}

fn write_state(json: &mut Json, servers: &Servers, peer: &v1::RaftPeer) {
    let status = match (peer.leader, peer.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "non-voter",
    };
    identity(json, peer);
    json.key("NodeStatus").string(servers.serf_status(peer));
    json.key("Version").string(servers.version(peer));
    progress(json, peer);
    json.key("Healthy").boolean(peer.healthy);
    stable_since(json, peer);
    json.key("Status").string(status);
    json.key("Meta").string_map(&BTreeMap::new());
    // What it is: a server that is still being brought up to date has no vote yet.
    let kind = if peer.voter { "voter" } else { "non-voter" };
    json.key("NodeType").string(kind);
}

fn identity(json: &mut Json, peer: &v1::RaftPeer) {
    json.key("ID").string(&peer.raft_id);
    json.key("Name").string(&peer.node_name);
    json.key("Address").string(&peer.address);
}

fn progress(json: &mut Json, peer: &v1::RaftPeer) {
    let last_contact = if peer.ever_heard {
        duration::format(Duration::from_millis(peer.last_contact_millis))
    } else {
        "never".to_owned()
    };
    json.key("LastContact").string(&last_contact);
    json.key("LastTerm").number(peer.last_term);
    json.key("LastIndex").number(peer.last_index);
}

fn stable_since(json: &mut Json, peer: &v1::RaftPeer) {
    json.key("StableSince")
        .string(&rfc3339(UnixMillis(peer.stable_since_millis)));
}

/// Kinds that Consul counts apart, in its order.
const KINDS: [&str; 6] = [
    "connect-proxy",
    "connect-native",
    "mesh-gateway",
    "ingress-gateway",
    "terminating-gateway",
    "api-gateway",
];

pub(super) async fn usage(call: Call) -> Result<Reply, Failure> {
    let mut reply = read(&call, ReadForm::PLAIN, |pass| {
        let counts = pass.state.counts();
        let instances = pass.reader.all_instances();
        let index = instances.index.max(pass.reader.nodes().index).get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut kinds = [0_u64; KINDS.len()];
        for row in &instances.rows {
            let service = &**row.service;
            for (count, kind) in kinds.iter_mut().zip(KINDS) {
                *count += u64::from(match kind {
                    "connect-native" => mesh::is_native(service),
                    _ => service.kind == kind,
                });
            }
        }
        // What Consul bills: instances that run something, without its own servers'.
        let billable = instances
            .rows
            .iter()
            .filter(|row| row.service.kind.is_empty() && row.service.name != "consul")
            .count() as u64;
        let mut json = Json::with_capacity(512);
        json.object(|json| {
            json.key("Usage").object(|json| {
                json.dynamic_key(&call.api.deps.info.datacenter)
                    .object(|json| {
                        json.key("Services").number(counts.services as u64);
                        json.key("ServiceInstances").number(counts.instances as u64);
                        json.key("ConnectServiceInstances").object(|json| {
                            for (kind, count) in KINDS.into_iter().zip(kinds) {
                                json.key(kind).number(count);
                            }
                        });
                        json.key("BillableServiceInstances").number(billable);
                        json.key("Nodes").number(counts.nodes as u64);
                    });
            });
            json.key("Index").number(index);
            json.key("NotModified").boolean(false);
            json.key("Backend").number(0);
            json.key("ResultsFilteredByACLs").boolean(false);
        });
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await?;
    tell_freshness(&mut reply);
    Ok(reply)
}

/// How fresh the answer is, known once the wait is over: what the headers say stands in the body too.
fn tell_freshness(reply: &mut Reply) {
    let header = |name| {
        let value = reply.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let known = header(KNOWN_LEADER) == "true";
    let last_contact = Duration::from_millis(header(LAST_CONTACT).parse().unwrap_or_default());
    let mut json = Json::with_capacity(96);
    json.object(|json| {
        // Go's durations are nanoseconds.
        json.key("LastContact")
            .raw(&last_contact.as_nanos().to_string());
        json.key("KnownLeader").boolean(known);
        json.key("ConsistencyLevel").string(header(CONSISTENCY));
    });
    let tail = json.into_bytes();
    if let Content::Whole(_, body) = &mut reply.content
        && let Some(head) = body.strip_suffix(b"}")
    {
        *body = [head, b",", &tail[1..]].concat().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(well: &[bool]) -> Servers {
        let peer = |healthy: &bool| v1::RaftPeer {
            voter: true,
            healthy: *healthy,
            ..v1::RaftPeer::default()
        };
        Servers {
            peers: well.iter().map(peer).collect(),
            members: Vec::new(),
        }
    }

    #[test]
    fn tolerance_is_what_may_fail_beyond_the_quorum() {
        for (well, tolerance) in [
            (&[true][..], 0),
            (&[true, true, true], 1),
            (&[true, true, false], 0),
            (&[true, false, false], 0),
            (&[true, true, true, true, true], 2),
            (&[], 0),
        ] {
            assert_eq!(servers(well).failure_tolerance(), tolerance, "{well:?}");
        }
        assert!(servers(&[true]).healthy());
        assert!(!servers(&[]).healthy(), "nobody is not well");
        assert!(!servers(&[true, false]).healthy());
    }
}
