//! The seams through which the agent reaches the cluster.
//!
//! Owns: the traits ([`Backend`], [`Relay`], [`Operator`], [`Membership`]) and the errors they answer with.
//! Never: implements them. The binary wires the in-process server role to them, or on an agent that is no server
//! the client role with its pooled connections to the servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use weft_catalog::{Hub, State};
use weft_proto::coordinate::Coordinate;
use weft_proto::v1;

/// How fresh a read must be (Consul docs, "Consistency modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Linearizable by ReadIndex; `default` and `consistent` are the same promise in weft.
    Default,
    /// As `Default`; kept apart because the answer names the mode.
    Consistent,
    /// Whatever this server has, however old.
    Stale,
}

/// What the answer's headers say about its freshness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMeta {
    /// A leader is known (`X-Consul-KnownLeader`).
    pub known_leader: bool,
    /// Time since this server heard its leader; zero on the leader (`X-Consul-LastContact`).
    pub last_contact: Duration,
}

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No leader was found in time. Nothing was proposed; safe to retry.
    #[error("No cluster leader")]
    NoLeader,
    /// The proposal went out but no verdict came back in time. It may still take effect.
    #[error(
        "the outcome of this write is not known ({0}): it may or may not have been applied; read before retrying"
    )]
    Unknown(String),
    /// Below the disk reserve. Nothing was proposed; reads go on.
    #[error("{0}")]
    DiskFull(String),
    /// Too many proposals in flight. Nothing was proposed; retry with backoff.
    #[error("{0}")]
    Overloaded(String),
    /// One log entry cannot hold it. Nothing was proposed; retrying the same is useless.
    #[error("{0}")]
    TooLarge(String),
    /// The token lacks a right. Nothing was proposed.
    #[error("{0}")]
    Denied(String),
    /// The server role is shutting down or has failed. Nothing was proposed.
    #[error("{0}")]
    Stopped(String),
    /// No server has taken it. Nothing was proposed.
    #[error("{0}")]
    Unreachable(String),
}

/// Why a read was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader was found within the hold time, and `stale` was not asked for.
    #[error("No cluster leader")]
    NoLeader,
    /// The leader could not confirm its leadership, or this server could not catch up, in time.
    #[error("{0}")]
    Timeout(String),
    /// The server role is shutting down or has failed.
    #[error("{0}")]
    Stopped(String),
    /// No server has answered.
    #[error("{0}")]
    Unreachable(String),
}

/// Keeps rows up to date until it is dropped.
pub type Following = Box<dyn Send + Sync>;

/// The replicated state: written through the log, read from published snapshots.
///
/// On an agent that is no server it is a part of the state: the rows of this node, and of those that are followed.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Stamps, proposes and waits until the command is applied on the answering server, so that a
    /// following read here sees it. A [`v1::Refusal`] inside the outcome is an answer, not an error.
    async fn write(&self, command: v1::stamped::Command) -> Result<v1::Outcome, WriteError>;

    /// Waits until this server's state is as fresh as `consistency` asks.
    async fn barrier(&self, consistency: Consistency) -> Result<ReadMeta, ReadError>;

    /// Takes the network coordinate of a node, to be written soon with others.
    fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), WriteError>;

    /// Brings the rows of `node` in [`Backend::state`] up to date, and keeps them so until the answer is dropped.
    async fn follow(&self, node: &str) -> Result<Following, ReadError>;

    /// How many nodes the whole state has.
    fn nodes(&self) -> usize {
        self.state().counts().nodes
    }

    /// The newest published state. O(1), never blocks.
    fn state(&self) -> Arc<State>;

    /// Wakes watchers of topics after each publication of [`Backend::state`].
    fn hub(&self) -> &Hub;
}

/// A request for a server to answer.
pub struct RelayCall {
    /// Method, path, query and the headers that concern the server.
    pub head: http::request::Parts,
    /// The body.
    pub body: RelayBody,
    /// How long the answer may take to begin.
    pub limit: RelayLimit,
}

/// The body of a [`RelayCall`].
#[derive(Debug)]
pub enum RelayBody {
    /// Can be sent again when no server has taken it.
    Whole(Bytes),
    /// As it arrives.
    Streamed(hyper::body::Incoming),
}

/// How long the answer to a [`RelayCall`] may take to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayLimit {
    /// As long as servers take at most.
    Usual,
    /// A wait that was asked for, and what is usual.
    Wait(Duration),
    /// As long as the server shows that it lives.
    Open,
}

/// A server's body as it arrives.
pub type RelayedBody = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a [`RelayCall`] brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// No server is known. Nothing was sent.
    #[error("No known Consul servers")]
    NoServers,
    /// No server took it in time. Nothing was executed; safe to retry.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, and no answer came. It may have been executed.
    #[error("{0}")]
    Unknown(String),
    /// It was sent, and no answer came. It changes nothing; safe to retry.
    #[error("{0}")]
    Unanswered(String),
    /// Too many calls are on their way. Nothing was sent; retry later.
    #[error("{0}")]
    TooMany(String),
    /// The client did not send the body it announced.
    #[error("The request body ended early")]
    Body,
}

/// The way to the API of a server, for an agent that is none.
#[async_trait]
pub trait Relay: Send + Sync + 'static {
    /// Has a server answer; the answer is as the server sends it.
    async fn relay(&self, call: RelayCall) -> Result<http::Response<RelayedBody>, RelayError>;
}

/// An operator's request that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No leader was found in time.
    #[error("No cluster leader")]
    NoLeader,
    /// The request names something that is not there, or contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The archive or stream was refused; state is unchanged.
    #[error("{0}")]
    BadSnapshot(String),
    /// Anything the server role refused or failed at, in words for the user.
    #[error("{0}")]
    Failed(String),
}

/// A join token that was just made.
pub struct JoinTicket {
    /// Its text, secret included: for the eyes of who asked.
    pub text: String,
    /// SHA-256 of the secret: for the state.
    pub secret_hash: Bytes,
}

/// A restore as bytes arrive; the caller feeds it and closes it.
pub type SnapshotSource = tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>;
/// A snapshot archive as it is produced (bounded: the producer waits for the reader).
pub type SnapshotStream = tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>;

/// Raft membership, leadership and snapshots.
#[async_trait]
pub trait Operator: Send + Sync + 'static {
    /// `host:port` of the leader's RPC address, as this server knows it.
    fn leader(&self) -> Option<String>;
    /// `host:port` of every Raft peer.
    fn peers(&self) -> Vec<String>;
    /// Raft configuration with roles, and the index it was made at. `stale` answers without a leader.
    async fn raft_configuration(&self, stale: bool) -> Result<v1::RaftPeers, OperatorError>;
    /// Removes a peer by exactly one of id or address.
    async fn remove_peer(
        &self,
        id: Option<String>,
        address: Option<String>,
    ) -> Result<(), OperatorError>;
    /// Hands leadership to `id`, or to the most caught-up voter.
    async fn transfer_leader(&self, id: Option<String>) -> Result<(), OperatorError>;
    /// Streams an archive in Consul's form (gzip'd tar of meta.json, state.bin, SHA256SUMS); with its index.
    async fn snapshot_save(&self, stale: bool) -> Result<(u64, SnapshotStream), OperatorError>;
    /// Verifies and restores such an archive through the log; state changes at one commit or not at all.
    async fn snapshot_restore(&self, source: SnapshotSource) -> Result<(), OperatorError>;
    /// What a token for `node` says, good until `expires_millis` (Unix time), with a secret that is new; nobody knows
    /// of it yet. Errors: this server gives no certificates out, or not to such a name.
    fn join_ticket(&self, node: &str, expires_millis: u64) -> Result<JoinTicket, OperatorError>;
    /// Asks the mesh's CA, wherever it is. A refusal is an answer.
    async fn ca(&self, op: v1::ca_request::Op) -> Result<v1::CaReply, OperatorError>;
    /// Consul's `Stats` sections for `/v1/agent/self` and `weft info`: section → key → value.
    fn stats(
        &self,
    ) -> std::collections::BTreeMap<String, std::collections::BTreeMap<String, String>>;
}

/// Status of a member as Consul numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberStatus {
    /// Not known yet.
    None = 0,
    /// Answers probes.
    Alive = 1,
    /// Has said goodbye and is draining.
    Leaving = 2,
    /// Has left.
    Left = 3,
    /// Does not answer.
    Failed = 4,
}

/// A gossip member as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Node name.
    pub name: String,
    /// Gossip address.
    pub address: SocketAddr,
    /// Tags: role, dc, id, port, build, ...
    pub tags: std::collections::BTreeMap<String, String>,
    /// Alive, left, failed.
    pub status: MemberStatus,
}

/// Why a user event was not fired. Nobody has heard it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FireError {
    /// It needs more bytes than the pool carries.
    #[error("{0}")]
    TooLarge(String),
    /// Too many wait to be sent; retry later.
    #[error("{0}")]
    Waiting(String),
    /// The pool has stopped.
    #[error("{0}")]
    Stopped(String),
}

/// What is to be done with gossip keys, at every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyringAction {
    /// Say which there are.
    List,
    /// Accept one more.
    Install,
    /// Seal with it from now on.
    Use,
    /// Accept it no longer.
    Remove,
}

/// What the members answered about keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyringReport {
    /// Members that were asked.
    pub nodes: usize,
    /// How many hold each key.
    pub keys: BTreeMap<String, usize>,
    /// How many seal with each key.
    pub primary: BTreeMap<String, usize>,
    /// What went wrong, by member.
    pub errors: BTreeMap<String, String>,
}

/// Why a member is shown as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insight {
    /// Its name.
    pub name: String,
    /// How long it has its status.
    pub since: Duration,
    /// Its life.
    pub incarnation: u64,
    /// How often it refuted in that life.
    pub refutations: u16,
    /// It did not answer and has some time to refute.
    pub suspected: bool,
    /// Who said so, and how long ago.
    pub accusers: Vec<(String, Duration)>,
    /// When this agent will call it failed.
    pub fails_in: Option<Duration>,
    /// How long ago this agent probed it last, and how long the answer took.
    pub probed: Option<(Duration, Option<Duration>)>,
    /// Live nodes of the same name, which are left out.
    pub rivals: Vec<SocketAddr>,
    /// How far its clock is ahead of this agent's, in milliseconds; behind if negative.
    pub clock_ahead_millis: Option<i64>,
}

/// The LAN pool.
#[async_trait]
pub trait Membership: Send + Sync + 'static {
    /// Everyone known, this node included.
    fn members(&self) -> Vec<Member>;
    /// This node.
    fn local(&self) -> Member;
    /// Contacts the addresses; answers how many could be reached, or the reasons when none was.
    async fn join(&self, addresses: Vec<String>) -> Result<usize, String>;
    /// Puts a failed node into the left state; `prune` forgets it altogether.
    async fn force_leave(&self, node: &str, prune: bool) -> Result<(), String>;
    /// Does something with a key (base64) at every member. Errors: it could be done at none.
    async fn keyring(&self, action: KeyringAction, key: &str) -> Result<KeyringReport, String>;
    /// Why each member is shown as it is; empty when the pool has stopped.
    async fn why(&self) -> Vec<Insight>;
    /// Where this node lies in the network; `None` when it does not learn that.
    fn coordinate(&self) -> Option<Coordinate>;
    /// Sends a user event to every member, this one included.
    async fn fire(&self, id: [u8; 16], body: Bytes) -> Result<(), FireError>;
}
