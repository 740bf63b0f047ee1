//! The client role behind the agent's seams: an agent that is no server.
//!
//! Owns: turning the role's words into the agent's, finding servers in the pool, dialing them.
//! Never: decides whom to ask or what to ask again; the role does.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use weft_agent::backend::{
    Backend, Consistency, Following, JoinTicket, Operator, OperatorError, ReadError, ReadMeta,
    Relay, RelayBody, RelayCall, RelayError, RelayLimit, RelayedBody, SnapshotSource,
    SnapshotStream, WriteError,
};
use weft_agent::config::RuntimeConfig;
use weft_agent::views::{Replies, Streams};
use weft_catalog::{Hub, State};
use weft_client::{
    CallError, Client, ClientConfig, Dial, Dialed, Limit, Payload, RowsError, ServerAt, Stream,
    SyncError,
};
use weft_gossip::Gossip;
use weft_proto::clock::Clock;
use weft_proto::v1;
use weft_proto::v1::views_client::ViewsClient;
use weft_server::Transport;

use super::servers;
use super::tls::Tls;

/// A part of a view is much smaller; one row may not be.
const VIEW_MESSAGE_MAX_BYTES: usize = 16 << 20;

/// The client role, told how to dial; it knows no server yet.
pub(crate) fn role(
    config: &RuntimeConfig,
    id: &str,
    tls: &Tls,
    seed: u64,
    clock: Arc<dyn Clock>,
) -> Client {
    let dialer = Dialer {
        transport: Transport::new(tls.rpc(), config.limits.rpc_handshake_timeout),
        greeting: v1::AgentGreeting {
            datacenter: config.datacenter.clone(),
            node_name: config.node.name.clone(),
            node_id: id.to_owned(),
        },
    };
    let settings = ClientConfig {
        hold_timeout: config.raft.rpc_hold_timeout,
        answer_limit: config.limits.rpc_client_timeout,
        max_calls: config.limits.rpc_max_calls,
        seed,
    };
    Client::new(settings, Arc::new(dialer), clock)
}

struct Dialer {
    transport: Transport,
    greeting: v1::AgentGreeting,
}

impl Dial for Dialer {
    fn dial(&self, address: &str) -> BoxFuture<'static, Dialed> {
        let (transport, address) = (self.transport.clone(), address.to_owned());
        let greeting = self.greeting.clone();
        async move {
            let (stream, _) = transport.dial_agent(&address, &greeting).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        }
        .boxed()
    }
}

/// Keeps the role told which servers the pool shows alive, until the pool ends.
pub(crate) async fn find_servers(gossip: Arc<Gossip>, client: Client, datacenter: String) {
    let mut events = gossip.events();
    loop {
        client.set_servers(servers::live(&gossip, &datacenter, |member, address| {
            ServerAt {
                address: address.to_string(),
                name: member.name.clone(),
            }
        }));
        tokio::select! {
            () = gossip.ended() => return,
            // More than it could hear: the list itself is looked at anyway.
            _ = events.next() => {}
        }
    }
}

/// The client role, as the agent sees it.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    /// This node.
    pub(crate) node: String,
}

#[async_trait]
impl Backend for Remote {
    async fn write(&self, command: v1::stamped::Command) -> Result<v1::Outcome, WriteError> {
        self.client.sync(command).await.map_err(write_failed)
    }

    async fn barrier(&self, consistency: Consistency) -> Result<ReadMeta, ReadError> {
        if consistency != Consistency::Stale {
            self.client.refresh(&self.node).await.map_err(read_failed)?;
        }
        Ok(ReadMeta {
            known_leader: consistency != Consistency::Stale,
            last_contact: std::time::Duration::ZERO,
        })
    }

    fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), WriteError> {
        let client = self.client.clone();
        tokio::spawn(async move {
            if let Err(error) = client.report_coordinate(coordinate).await {
                tracing::debug!(%error, "coordinate not reported");
            }
        });
        Ok(())
    }

    async fn follow(&self, node: &str) -> Result<Following, ReadError> {
        let following = self.client.follow(node).await.map_err(read_failed)?;
        Ok(Box::new(following))
    }

    fn nodes(&self) -> usize {
        self.client.nodes()
    }

    fn state(&self) -> Arc<State> {
        self.client.state()
    }

    fn hub(&self) -> &Hub {
        self.client.hub()
    }
}

fn write_failed(error: SyncError) -> WriteError {
    use v1::WriteFailureKind as Kind;
    match error {
        SyncError::Call(CallError::Unknown(why) | CallError::Unanswered(why)) => {
            WriteError::Unknown(why)
        }
        SyncError::Call(error) => WriteError::Unreachable(error.to_string()),
        SyncError::Write(failure) => match failure.kind() {
            Kind::NoLeader => WriteError::NoLeader,
            Kind::DiskFull => WriteError::DiskFull(failure.message),
            Kind::Overloaded => WriteError::Overloaded(failure.message),
            Kind::TooLarge => WriteError::TooLarge(failure.message),
            Kind::Denied => WriteError::Denied(failure.message),
            Kind::Unspecified | Kind::Unknown => WriteError::Unknown(failure.message),
        },
    }
}

fn read_failed(error: RowsError) -> ReadError {
    match error {
        RowsError::Call(error) => ReadError::Unreachable(error.to_string()),
        RowsError::Refused(why) => ReadError::Timeout(why),
    }
}

#[async_trait]
impl Relay for Remote {
    async fn relay(&self, call: RelayCall) -> Result<http::Response<RelayedBody>, RelayError> {
        let safe = matches!(call.head.method, http::Method::GET | http::Method::HEAD);
        let payload = match call.body {
            RelayBody::Whole(bytes) => Payload::Whole(bytes),
            RelayBody::Streamed(body) => Payload::Streamed(Body::new(body)),
        };
        let limit = match call.limit {
            RelayLimit::Usual => Limit::Usual,
            RelayLimit::Wait(wait) => Limit::Wait(wait),
            RelayLimit::Open => Limit::Open,
        };
        let answer = self.client.call(call.head, payload, safe, limit).await;
        let answer = answer.map_err(relay_failed)?;
        let place = answer.place;
        Ok(answer.response.map(|body| {
            let keep = move |cause: hyper::Error| {
                // The call has its place for as long as its answer is read.
                let _ = &place;
                std::io::Error::other(cause)
            };
            body.map_err(keep).boxed_unsync()
        }))
    }
}

fn relay_failed(error: CallError) -> RelayError {
    let text = error.to_string();
    match error {
        CallError::NoServers => RelayError::NoServers,
        CallError::NotSent(_) => RelayError::NotSent(text),
        CallError::Unknown(_) => RelayError::Unknown(text),
        CallError::Unanswered(_) => RelayError::Unanswered(text),
        CallError::TooMany(_) => RelayError::TooMany(text),
        CallError::Body => RelayError::Body,
    }
}

/// The way of the views to the servers' streams.
pub(crate) struct Streaming(pub(crate) Client);

#[async_trait]
impl Streams for Streaming {
    async fn subscribe(
        &self,
        requests: tokio::sync::mpsc::Receiver<v1::SubscribeRequest>,
    ) -> Result<Replies, String> {
        let mut client =
            ViewsClient::new(self.0.stream()).max_decoding_message_size(VIEW_MESSAGE_MAX_BYTES);
        let replies = client.subscribe(ReceiverStream::new(requests)).await;
        let replies = replies.map_err(|status| status.message().to_owned())?;
        let replies = replies.into_inner().map_err(|status| status.to_string());
        Ok(replies.boxed())
    }

    fn elsewhere(&self) {
        let client = self.0.clone();
        tokio::spawn(async move { client.rebalance().await });
    }
}

/// What only a server can do is asked of one by the user's own call, which is forwarded: nothing comes here but
/// what this agent says of itself.
#[async_trait]
impl Operator for Remote {
    fn leader(&self) -> Option<String> {
        None
    }

    fn peers(&self) -> Vec<String> {
        Vec::new()
    }

    async fn raft_configuration(&self, _stale: bool) -> Result<v1::RaftPeers, OperatorError> {
        Err(no_server())
    }

    async fn remove_peer(
        &self,
        _id: Option<String>,
        _address: Option<String>,
    ) -> Result<(), OperatorError> {
        Err(no_server())
    }

    async fn transfer_leader(&self, _id: Option<String>) -> Result<(), OperatorError> {
        Err(no_server())
    }

    async fn snapshot_save(&self, _stale: bool) -> Result<(u64, SnapshotStream), OperatorError> {
        Err(no_server())
    }

    async fn snapshot_restore(&self, _source: SnapshotSource) -> Result<(), OperatorError> {
        Err(no_server())
    }

    async fn ca(&self, _op: v1::ca_request::Op) -> Result<v1::CaReply, OperatorError> {
        Err(no_server())
    }

    fn join_ticket(&self, _node: &str, _expires_millis: u64) -> Result<JoinTicket, OperatorError> {
        Err(no_server())
    }

    fn stats(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let known = self.client.known_servers().to_string();
        let current = self.client.current_server();
        let consul = [
            ("server", "false".to_owned()),
            ("known_servers", known),
            (
                "current_server",
                current.map(|server| server.address).unwrap_or_default(),
            ),
        ];
        let consul = consul.map(|(key, value)| (key.to_owned(), value));
        BTreeMap::from([("consul".to_owned(), BTreeMap::from(consul))])
    }
}

fn no_server() -> OperatorError {
    OperatorError::Failed("this agent is no server; ask one".into())
}
