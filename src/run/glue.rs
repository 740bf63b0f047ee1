//! The server role and the pool behind the agent's seams.
//!
//! Owns: turning the server's words into the agent's.
//! Never: adds behaviour; a choice made here would be invisible to both sides.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::enrolment::Office;
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use weft_agent::backend::{
    Backend, Consistency, FireError, Following, Insight, JoinTicket, KeyringAction, KeyringReport,
    Member, MemberStatus, Membership, Operator, OperatorError, ReadError, ReadMeta, SnapshotSource,
    SnapshotStream, WriteError,
};
use weft_agent::dns::{DnsView, Viewed};
use weft_agent::events::Events;
use weft_agent::http::InProcess;
use weft_catalog::view::ViewTopic;
use weft_catalog::{Hub, State};
use weft_gossip::{Gossip, GossipError, KeyAction};
use weft_proto::coordinate::Coordinate;
use weft_proto::v1;
use weft_proto::v1::operate_request::Op;
use weft_server::{AgentApi, ReadFailure, Server, ServerError, WriteFailure};

/// The in-process server role, as the agent sees it.
#[derive(Clone)]
pub(crate) struct Local {
    pub(crate) server: Server,
    pub(crate) office: Arc<Office>,
}

#[async_trait]
impl Backend for Local {
    async fn write(&self, command: v1::stamped::Command) -> Result<v1::Outcome, WriteError> {
        self.server.write(command).await.map_err(write_failed)
    }

    async fn barrier(&self, consistency: Consistency) -> Result<ReadMeta, ReadError> {
        let meta = match consistency {
            Consistency::Stale => self.server.meta(),
            Consistency::Default | Consistency::Consistent => {
                self.server
                    .barrier()
                    .await
                    .map_err(|failure| match failure {
                        ReadFailure::NoLeader => ReadError::NoLeader,
                        ReadFailure::Timeout(why) => ReadError::Timeout(why),
                        ReadFailure::Stopped(why) => ReadError::Stopped(why),
                    })?
            }
        };
        Ok(ReadMeta {
            known_leader: meta.known_leader,
            last_contact: meta.last_contact,
        })
    }

    fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), WriteError> {
        self.server
            .report_coordinate(coordinate)
            .map_err(write_failed)
    }

    async fn follow(&self, _node: &str) -> Result<Following, ReadError> {
        // A server has the whole state.
        self.barrier(Consistency::Default).await?;
        Ok(Box::new(()))
    }

    fn state(&self) -> Arc<State> {
        self.server.state()
    }

    fn hub(&self) -> &Hub {
        self.server.hub()
    }
}

/// This server's API, for calls that other agents forward.
pub(crate) struct Forwarded(pub(crate) InProcess);

impl AgentApi for Forwarded {
    fn answer(
        &self,
        request: Request<Incoming>,
        agent: SocketAddr,
    ) -> BoxFuture<'static, Response<Body>> {
        let inside = self.0.clone();
        async move {
            tracing::trace!(peer.addr = %agent, "an agent forwards a call");
            inside.answer(request).await.map(Body::new)
        }
        .boxed()
    }
}

#[async_trait]
impl DnsView for Local {
    fn look(&self, _topic: &ViewTopic) -> Viewed {
        // A server's own state is its view; how old it is, is how long ago the leader was heard.
        let age = self.server.meta().last_contact;
        Viewed::Ready {
            state: self.server.state(),
            age,
        }
    }

    async fn wait(&self, _topic: &ViewTopic) {}
}

fn write_failed(failure: WriteFailure) -> WriteError {
    match failure {
        WriteFailure::NoLeader => WriteError::NoLeader,
        WriteFailure::Unknown(why) => WriteError::Unknown(why),
        WriteFailure::DiskFull(why) => WriteError::DiskFull(why),
        WriteFailure::Overloaded(why) => WriteError::Overloaded(why),
        WriteFailure::TooLarge(why) => WriteError::TooLarge(why),
        WriteFailure::Stopped(why) => WriteError::Stopped(why),
    }
}

fn operator_failed(error: ServerError) -> OperatorError {
    match error {
        ServerError::NoLeader => OperatorError::NoLeader,
        ServerError::Invalid(why) => OperatorError::Invalid(why),
        other => OperatorError::Failed(other.to_string()),
    }
}

#[async_trait]
impl Operator for Local {
    fn leader(&self) -> Option<String> {
        self.server.leader_address()
    }

    fn peers(&self) -> Vec<String> {
        self.server
            .raft_peers()
            .peers
            .into_iter()
            .map(|peer| peer.address)
            .collect()
    }

    async fn raft_configuration(&self, stale: bool) -> Result<v1::RaftPeers, OperatorError> {
        if stale {
            return Ok(self.server.raft_peers());
        }
        let answer = self
            .server
            .operate(Op::Status(v1::RaftStatus {}))
            .await
            .map_err(operator_failed)?;
        Ok(answer.unwrap_or_default())
    }

    async fn remove_peer(
        &self,
        id: Option<String>,
        address: Option<String>,
    ) -> Result<(), OperatorError> {
        let which = v1::RemovePeer {
            raft_id: id.unwrap_or_default(),
            address: address.unwrap_or_default(),
        };
        self.server
            .operate(Op::RemovePeer(which))
            .await
            .map(drop)
            .map_err(operator_failed)
    }

    async fn transfer_leader(&self, id: Option<String>) -> Result<(), OperatorError> {
        let to = v1::TransferLeader {
            raft_id: id.unwrap_or_default(),
        };
        self.server
            .operate(Op::TransferLeader(to))
            .await
            .map(drop)
            .map_err(operator_failed)
    }

    async fn snapshot_save(&self, stale: bool) -> Result<(u64, SnapshotStream), OperatorError> {
        if !stale {
            self.server
                .barrier()
                .await
                .map_err(|failure| match failure {
                    ReadFailure::NoLeader => OperatorError::NoLeader,
                    other => OperatorError::Failed(other.to_string()),
                })?;
        }
        self.server.snapshot_save().map_err(operator_failed)
    }

    async fn snapshot_restore(&self, source: SnapshotSource) -> Result<(), OperatorError> {
        self.server
            .snapshot_restore(source)
            .await
            .map_err(|error| match error {
                ServerError::Invalid(why) => OperatorError::BadSnapshot(why),
                other => operator_failed(other),
            })
    }

    async fn ca(&self, op: v1::ca_request::Op) -> Result<v1::CaReply, OperatorError> {
        Ok(self.server.ca(op).await)
    }

    fn join_ticket(&self, node: &str, expires_millis: u64) -> Result<JoinTicket, OperatorError> {
        self.office.ticket(node, expires_millis)
    }

    fn stats(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let status = self.server.status();
        let own = |pairs: Vec<(&str, String)>| {
            pairs
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<BTreeMap<_, _>>()
        };
        let leader = status.leader.as_ref();
        let is_leader = status.role == weft_raft::Role::Leader;
        let consul = own(vec![
            ("server", "true".into()),
            ("leader", is_leader.to_string()),
            (
                "leader_addr",
                self.server.leader_address().unwrap_or_default(),
            ),
            ("bootstrap", (status.members.len() == 1).to_string()),
            ("known_datacenters", "1".into()),
        ]);
        let raft = own(vec![
            ("state", role_name(status.role).into()),
            ("term", status.term.to_string()),
            ("last_log_index", status.last_log.to_string()),
            ("commit_index", status.committed.to_string()),
            ("applied_index", status.applied.to_string()),
            ("last_snapshot_index", status.snapshot.to_string()),
            (
                "num_peers",
                status
                    .members
                    .iter()
                    .filter(|m| m.voter)
                    .count()
                    .saturating_sub(1)
                    .to_string(),
            ),
            (
                "last_contact",
                last_contact(is_leader, leader.is_some(), self.server.meta().last_contact),
            ),
            (
                "latest_configuration_index",
                status.membership_index.to_string(),
            ),
            ("raft_id", self.server.raft_id().to_string()),
        ]);
        BTreeMap::from([("consul".to_owned(), consul), ("raft".to_owned(), raft)])
    }
}

/// Consul's words for what a server is.
fn role_name(role: weft_raft::Role) -> &'static str {
    match role {
        weft_raft::Role::Learner => "Learner",
        weft_raft::Role::Follower => "Follower",
        weft_raft::Role::Candidate => "Candidate",
        weft_raft::Role::Leader => "Leader",
        weft_raft::Role::Stopped => "Shutdown",
    }
}

fn last_contact(leads: bool, known: bool, since: Duration) -> String {
    match (leads, known) {
        (true, _) => "0".into(),
        (false, true) => format!("{}ms", since.as_millis()),
        (false, false) => "never".into(),
    }
}

/// The LAN pool, as the agent sees it.
pub(crate) struct Pool(pub(crate) Arc<Gossip>);

#[async_trait]
impl Membership for Pool {
    fn members(&self) -> Vec<Member> {
        self.0
            .members()
            .iter()
            .map(|member| shown(member))
            .collect()
    }

    fn local(&self) -> Member {
        shown(&self.0.local())
    }

    async fn join(&self, addresses: Vec<String>) -> Result<usize, String> {
        let outcome = self.0.join(&addresses).await;
        if outcome.contacted > 0 {
            return Ok(outcome.contacted);
        }
        Err(outcome
            .errors
            .iter()
            .map(|(address, cause)| format!("{address}: {cause}"))
            .collect::<Vec<_>>()
            .join("; "))
    }

    async fn force_leave(&self, node: &str, prune: bool) -> Result<(), String> {
        self.0
            .force_leave(node, prune)
            .await
            .map_err(|cause| cause.to_string())
    }

    async fn keyring(&self, action: KeyringAction, key: &str) -> Result<KeyringReport, String> {
        let action = match action {
            KeyringAction::List => KeyAction::List,
            KeyringAction::Install => KeyAction::Install,
            KeyringAction::Use => KeyAction::Use,
            KeyringAction::Remove => KeyAction::Remove,
        };
        let done = self.0.keys(action, key).await;
        let report = done.map_err(|cause| cause.to_string())?;
        Ok(KeyringReport {
            nodes: report.nodes,
            keys: report.keys,
            primary: report.primary,
            errors: report.errors,
        })
    }

    async fn why(&self) -> Vec<Insight> {
        let insights = self.0.why().await.unwrap_or_default();
        let insights = insights.into_iter().map(|of| Insight {
            name: of.name,
            since: of.since,
            incarnation: of.incarnation,
            refutations: of.refutations,
            suspected: of.suspected,
            accusers: of.accusers,
            fails_in: of.fails_in,
            probed: of.probed,
            rivals: of.rivals,
            clock_ahead_millis: of.clock_ahead_millis,
        });
        insights.collect()
    }

    fn coordinate(&self) -> Option<Coordinate> {
        self.0.coordinate()
    }

    async fn fire(&self, id: [u8; 16], body: Bytes) -> Result<(), FireError> {
        let fired = self.0.fire(id, body.into()).await;
        fired.map(drop).map_err(|cause| {
            let text = cause.to_string();
            match cause {
                GossipError::EventTooLarge { .. } => FireError::TooLarge(text),
                GossipError::EventsWaiting { .. } => FireError::Waiting(text),
                _ => FireError::Stopped(text),
            }
        })
    }
}

/// Hands what the pool hears to the agent, until the pool ends.
pub(crate) async fn carry_events(gossip: Arc<Gossip>, events: Events) {
    let mut heard = gossip.user_events();
    drop(gossip);
    while let Some(event) = heard.next().await {
        events.hear(event.id, event.time, &event.body);
    }
}

fn shown(member: &weft_gossip::Member) -> Member {
    Member {
        name: member.name.clone(),
        address: member.socket_address(),
        tags: member.tags.clone(),
        status: match member.status {
            weft_gossip::MemberStatus::Alive => MemberStatus::Alive,
            weft_gossip::MemberStatus::Leaving => MemberStatus::Leaving,
            weft_gossip::MemberStatus::Left => MemberStatus::Left,
            weft_gossip::MemberStatus::Failed => MemberStatus::Failed,
        },
    }
}
