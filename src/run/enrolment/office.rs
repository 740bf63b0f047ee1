//! The side of a server: makes tickets, trades them for certificates, renews certificates.
//!
//! Owns: what a caller must show. Never: keeps a secret; the state keeps hashes, the operator the token.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use weft_agent::backend::{JoinTicket, OperatorError};
use weft_agent::config::RuntimeConfig;
use weft_gossip::{Gossip, Member};
use weft_identity::enrolment::{self, Issued, JoinToken, Signer};
use weft_identity::{PeerFacts, TlsContext, pki};
use weft_proto::clock::Clock;
use weft_proto::v1::join_token_command::Op;
use weft_proto::v1::{self, enrol_reply::Answer, outcome, stamped::Command};
use weft_raft::RaftStream;
use weft_server::{Enrolment, Server, WriteFailure};

use super::super::servers;
use super::super::tls::Tls;
use super::wire;

/// Callers served at once; a token in hand can wait and ask again.
const CALLERS_MAX: usize = 64;
/// Servers named in a token, and gossip addresses given to a new agent.
const ADDRESSES_MAX: usize = 32;

/// Gives certificates out; one a server.
#[derive(Clone)]
pub(crate) struct Office {
    context: Option<Arc<TlsContext>>,
    signer: Option<(PathBuf, PathBuf)>,
    life: Duration,
    datacenter: String,
    domain: String,
    limit: Duration,
    server: Server,
    gossip: Arc<OnceLock<Arc<Gossip>>>,
    clock: Arc<dyn Clock>,
    seats: Arc<Semaphore>,
    answers: Family<AnswerLabel, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AnswerLabel {
    /// `issued`, `renewed`, or why not.
    result: String,
}

/// Why there is no certificate for this caller.
struct Refused {
    /// Stable id.
    reason: String,
    message: String,
}

impl Refused {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

impl Office {
    pub(crate) fn new(
        config: &RuntimeConfig,
        tls: &Tls,
        server: Server,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            context: tls.rpc_context(),
            signer: config.enrolment.signer.clone(),
            life: config.enrolment.certificate_ttl,
            datacenter: config.datacenter.clone(),
            domain: config.domain.trim_matches('.').to_ascii_lowercase(),
            limit: config.limits.rpc_handshake_timeout,
            server,
            gossip: Arc::default(),
            clock,
            seats: Arc::new(Semaphore::new(CALLERS_MAX)),
            answers: Family::default(),
        }
    }

    /// Gives it the pool, which knows where servers are and the gossip key.
    pub(crate) fn attach_gossip(&self, gossip: Arc<Gossip>) {
        // Called once, right after the start.
        let _ = self.gossip.set(gossip);
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "weft_join_certificates",
            "Agents that asked for a certificate, by what became of it",
            self.answers.clone(),
        );
    }

    fn place(&self) -> (&str, &str) {
        (&self.datacenter, &self.domain)
    }

    /// A ticket as [`weft_agent::backend::Operator::join_ticket`] describes it.
    pub(crate) fn ticket(
        &self,
        node: &str,
        expires_millis: u64,
    ) -> Result<JoinTicket, OperatorError> {
        let invalid = |why: String| OperatorError::Invalid(why);
        let (Some(context), Some(signer)) = (&self.context, &self.signer) else {
            return Err(invalid(
                "this server gives no certificates out: it needs tls.internal_rpc with ca_file, and join_tokens.cert_file and key_file; `weft init` writes all of them".into(),
            ));
        };
        Signer::load((&signer.0, &signer.1), self.clock.wall())
            .map_err(|cause| OperatorError::Failed(cause.to_string()))?;
        enrolment::check_node(node, self.place()).map_err(|_| {
            invalid(format!(
                "{node:?} cannot be the name of a node with a certificate: letters, digits, - and _ in parts of at most 63, with dots between"
            ))
        })?;
        let roots = context.roots();
        let ca_der: Vec<_> = roots
            .iter()
            .map(|der| bytes::Bytes::copy_from_slice(der))
            .collect();
        if ca_der.is_empty() {
            return Err(invalid(
                "tls.internal_rpc has no ca_file: a new machine could not know the servers by anything".into(),
            ));
        }
        let servers = self.members(|_, port| port);
        if servers.is_empty() {
            return Err(OperatorError::Failed(
                "the pool shows no live server yet; try again in a moment".into(),
            ));
        }
        let secret = enrolment::new_secret()
            .ok_or_else(|| OperatorError::Failed("the system gives no randomness".into()))?;
        let ticket = v1::JoinTicket {
            secret: secret.clone(),
            node: node.to_owned(),
            datacenter: self.datacenter.clone(),
            domain: self.domain.clone(),
            servers,
            ca_der,
            expires_millis,
        };
        Ok(JoinTicket {
            text: JoinToken::new(ticket).text(),
            secret_hash: enrolment::secret_hash(&secret),
        })
    }

    /// Addresses of the live servers.
    fn members(&self, address: impl Fn(&Member, SocketAddr) -> SocketAddr) -> Vec<String> {
        let Some(gossip) = self.gossip.get() else {
            return Vec::new();
        };
        let mut addresses = servers::live(gossip, &self.datacenter, |member, port| {
            address(member, port).to_string()
        });
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }

    async fn converse(&self, stream: Box<dyn RaftStream>, from: SocketAddr) -> io::Result<()> {
        let Some(context) = &self.context else {
            return Err(io::Error::other(
                "this server has no TLS on its server port",
            ));
        };
        let (mut stream, facts) = context
            .accept_guest(stream, &from.to_string(), self.limit)
            .await
            .map_err(io::Error::other)?;
        let request: v1::EnrolRequest = wire::receive(&mut stream).await?;
        let (node, build) = (request.node.clone(), request.build.clone());
        let renewal = request.secret.is_empty();
        let answer = match self.judge(request, facts.as_ref()).await {
            Ok(enrolled) => {
                let what = if renewal { "renewed" } else { "issued" };
                self.count(what);
                tracing::info!(node.name = %node, peer.addr = %from, caller.build = %build, expires = enrolled.expires_seconds, "certificate {what}");
                Answer::Enrolled(enrolled)
            }
            Err(refused) => {
                self.count(&refused.reason);
                tracing::warn!(node.name = %node, peer.addr = %from, reason = %refused.reason, error = %refused.message, "no certificate for an agent");
                Answer::Refused(v1::EnrolRefused {
                    reason: refused.reason,
                    message: refused.message,
                })
            }
        };
        let reply = v1::EnrolReply {
            answer: Some(answer),
        };
        wire::send(&mut stream, &reply).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await
    }

    async fn judge(
        &self,
        request: v1::EnrolRequest,
        facts: Option<&PeerFacts>,
    ) -> Result<v1::Enrolled, Refused> {
        if request.datacenter != self.datacenter {
            let text = format!(
                "this is a server of datacenter {:?}, the caller belongs to {:?}",
                self.datacenter, request.datacenter
            );
            return Err(Refused::new("join.datacenter", text));
        }
        let name = enrolment::check_node(&request.node, self.place())
            .map_err(|cause| Refused::new("join.node_name", cause.to_string()))?;
        // Before the token is used up: a server that cannot sign must not cost one.
        self.sign(&request)?;
        if request.secret.is_empty() {
            let own = facts.is_some_and(|facts| facts.dns_names.contains(&name));
            if !own {
                return Err(Refused::new(
                    "join.no_certificate",
                    format!("a certificate is renewed for who shows the present one, of {name}"),
                ));
            }
        } else {
            self.redeem(&request).await?;
        }
        self.enrolled(&request)
    }

    fn sign(&self, request: &v1::EnrolRequest) -> Result<Issued, Refused> {
        let failed = |cause: String| Refused::new("join.no_signer", cause);
        let Some(signer) = &self.signer else {
            return Err(failed(
                "this server gives no certificates out: join_tokens.cert_file and key_file are not set".into(),
            ));
        };
        // Read each time: agents come rarely, and a new signer is in force at once.
        let now = self.clock.wall();
        Signer::load((&signer.0, &signer.1), now)
            .and_then(|signer| {
                signer.sign(
                    &request.node,
                    self.place(),
                    &request.public_key,
                    self.life,
                    now,
                )
            })
            .map_err(|cause| failed(cause.to_string()))
    }

    async fn redeem(&self, request: &v1::EnrolRequest) -> Result<(), Refused> {
        let redeem = v1::JoinTokenRedeem {
            secret_hash: enrolment::secret_hash(&request.secret),
            node: request.node.clone(),
            used_by: enrolment::secret_hash(&request.public_key),
        };
        let command = Command::JoinToken(v1::JoinTokenCommand {
            op: Some(Op::Redeem(redeem)),
        });
        match self.server.write(command).await {
            Ok(outcome) => match outcome.result {
                Some(outcome::Result::Refusal(refusal)) => {
                    Err(Refused::new(&refusal.reason, refusal.message))
                }
                _ => Ok(()),
            },
            Err(failure @ (WriteFailure::NoLeader | WriteFailure::Overloaded(_))) => {
                Err(Refused::new("join.later", failure.to_string()))
            }
            Err(failure) => Err(Refused::new("join.failed", failure.to_string())),
        }
    }

    fn enrolled(&self, request: &v1::EnrolRequest) -> Result<v1::Enrolled, Refused> {
        let issued = self.sign(request)?;
        let gossip = self.gossip.get();
        let key = gossip
            .and_then(|gossip| gossip.keyring())
            .map(|ring| ring.primary().reveal().to_owned());
        let context = self.context.as_ref();
        Ok(v1::Enrolled {
            certificate_chain: issued.chain,
            ca: pki::certificates_pem(&context.map(|tls| tls.roots()).unwrap_or_default()),
            gossip_key: key.unwrap_or_default(),
            datacenter: self.datacenter.clone(),
            domain: self.domain.clone(),
            retry_join: self.members(|member, _| SocketAddr::new(member.address, member.port)),
            expires_seconds: u64::try_from(issued.not_after).unwrap_or_default(),
        })
    }

    fn count(&self, result: &str) {
        let label = AnswerLabel {
            result: result.to_owned(),
        };
        self.answers.get_or_create(&label).inc();
    }
}

impl Enrolment for Office {
    fn serve(&self, stream: Box<dyn RaftStream>, from: SocketAddr) -> BoxFuture<'static, ()> {
        let office = self.clone();
        async move {
            let Ok(_seat) = office.seats.clone().try_acquire_owned() else {
                office.count("join.busy");
                return tracing::warn!(peer.addr = %from, limit = CALLERS_MAX, reason = "join.busy", "too many agents ask for certificates at once");
            };
            let ended = tokio::time::timeout(office.limit * 2, office.converse(stream, from)).await;
            let cause = match ended {
                Ok(Ok(())) => return,
                Ok(Err(cause)) => cause.to_string(),
                Err(_) => "it took too long (limits.rpc_handshake_timeout)".to_owned(),
            };
            office.count("join.broken_off");
            tracing::warn!(peer.addr = %from, error = %cause, reason = "join.broken_off", "an agent that asked for a certificate was lost");
        }
        .boxed()
    }
}
