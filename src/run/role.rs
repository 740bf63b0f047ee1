//! What this agent is to the cluster: a server, or a client of the servers.
//!
//! Owns: what the parts around it need of either.
//! Never: starts the parts.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use weft_agent::backend::{Backend, Operator, Relay};
use weft_agent::dns::DnsView;
use weft_agent::http::InProcess;
use weft_agent::views::Views;
use weft_client::Client;
use weft_gossip::Gossip;
use weft_server::Server;

use super::client::{self, Remote};
use super::enrolment::Office;
use super::glue;
use super::servers;

/// One of the two.
pub(crate) enum Role {
    /// Replicates the state.
    Server(Server, Arc<Office>),
    /// Asks those who do.
    Client(Client),
}

/// The role behind the agent's seams.
pub(crate) struct Seams {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) view: Arc<dyn DnsView>,
    /// On a client only: a server answers all itself.
    pub(crate) relay: Option<Arc<dyn Relay>>,
    /// On a client only.
    pub(crate) views: Option<Views>,
}

impl Role {
    pub(crate) fn seams(&self, node: &str, views: impl FnOnce() -> Views) -> Seams {
        match self {
            Self::Server(server, office) => {
                let local = Arc::new(glue::Local {
                    server: server.clone(),
                    office: office.clone(),
                });
                Seams {
                    backend: local.clone(),
                    operator: local.clone(),
                    view: local,
                    relay: None,
                    views: None,
                }
            }
            Self::Client(client) => {
                let remote = Arc::new(Remote {
                    client: client.clone(),
                    node: node.to_owned(),
                });
                let views = views();
                Seams {
                    backend: remote.clone(),
                    operator: remote.clone(),
                    view: Arc::new(views.clone()),
                    relay: Some(remote),
                    views: Some(views),
                }
            }
        }
    }

    /// The client role, if it is one.
    pub(crate) fn client(&self) -> Option<&Client> {
        match self {
            Self::Server(..) => None,
            Self::Client(client) => Some(client),
        }
    }

    /// Puts another bound on connections to the server port in force, for those that come from now on.
    pub(crate) fn set_rpc_max_conns(&self, per_client: usize) {
        if let Self::Server(server, _) = self {
            server.set_max_conns_per_client(per_client);
        }
    }

    /// What it is in its datacenter now, in words.
    pub(crate) fn standing(&self, gossip: &Gossip, datacenter: &str) -> String {
        let name_of = |address: String| {
            let named = servers::live(gossip, datacenter, |member, at| {
                (at.to_string() == address).then(|| member.name.clone())
            });
            named.into_iter().flatten().next().unwrap_or(address)
        };
        match self {
            Self::Server(server, _) => {
                if server.watch_status().borrow().role == weft_raft::Role::Leader {
                    return format!("server, leads {datacenter}");
                }
                server.leader_address().map_or_else(
                    || format!("server of {datacenter}, no leader known"),
                    |leader| format!("server, follows {} in {datacenter}", name_of(leader)),
                )
            }
            Self::Client(client) => client.current_server().map_or_else(
                || format!("agent of {datacenter}, knows no server"),
                |server| format!("agent of {datacenter}, asks {}", server.name),
            ),
        }
    }

    /// Gives the role its pool: a server forms its cluster, a client finds servers.
    pub(crate) fn attach_gossip(&self, gossip: &Arc<Gossip>, datacenter: &str) {
        match self {
            Self::Server(server, office) => {
                office.attach_gossip(gossip.clone());
                server.attach_enrolment(office.clone());
                server.attach_gossip(gossip.clone());
            }
            Self::Client(client) => {
                let finding =
                    client::find_servers(gossip.clone(), client.clone(), datacenter.to_owned());
                tokio::spawn(finding);
            }
        }
    }

    /// Gives a server the API that answers what other agents forward.
    pub(crate) fn attach_api(&self, inside: InProcess) {
        if let Self::Server(server, _) = self {
            server.attach_api(Arc::new(glue::Forwarded(inside)));
        }
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        match self {
            Self::Server(server, office) => {
                server.register_metrics(registry);
                office.register_metrics(registry);
            }
            Self::Client(client) => client.register_metrics(registry),
        }
    }

    /// Resolves when the role has failed and the process must end, with the reason.
    pub(crate) async fn failed(&self) -> String {
        let Self::Server(server, _) = self else {
            return std::future::pending().await;
        };
        let mut status = server.watch_status();
        tokio::select! {
            failed = status.wait_for(|status| status.fatal.is_some()) => match failed {
                Ok(status) => status.fatal.clone().unwrap_or_default(),
                Err(_) => "consensus has stopped".into(),
            },
            why = server.failed() => why,
        }
    }

    /// Out of the cluster for good; who is not in Raft has nothing to leave but the pool.
    pub(crate) async fn leave(&self) -> Result<(), String> {
        match self {
            Self::Server(server, _) => server.leave().await.map_err(|cause| cause.to_string()),
            Self::Client(_) => Ok(()),
        }
    }

    pub(crate) async fn shutdown(&self) {
        if let Self::Server(server, _) = self {
            server.shutdown().await;
        }
    }

    /// The id minted with a server's log.
    pub(crate) fn raft_id(&self) -> Option<String> {
        match self {
            Self::Server(server, _) => Some(server.raft_id().to_string()),
            Self::Client(_) => None,
        }
    }
}
