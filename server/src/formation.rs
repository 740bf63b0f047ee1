//! How a cluster comes to be and how a server gets into one.
//!
//! Owns: the first membership (`-bootstrap`, `-bootstrap-expect`), joining as a learner, and the
//! reservation that keeps two overlapping first memberships from both being formed.
//! Never: changes a membership that exists; the leader does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use weft_gossip::{Member, MemberStatus};
use weft_proto::v1;
use weft_raft::{Peer, RaftId, Role, Status};

use crate::admission::{self, Admission, SILENT_AFTER, Seen};
use crate::config::Bootstrap;
use crate::handle::{Inner, Server, ServerError};

/// Pause between looks at the pool while there is no cluster.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Silence of every leader after which a server asks to be let in again; elections end well before.
const CUT_OFF_AFTER: Duration = Duration::from_secs(3);
/// A quorum that has worked for so long is not ended by news of a recovery; one that is gone for so long is none.
const STANDING: Duration = Duration::from_secs(10);
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a server keeps itself free for one coordinator's set.
const RESERVED_FOR: Duration = Duration::from_secs(6);
/// The coordinator must have formed the cluster by then, well before the first reservation ends.
const FORM_WITHIN: Duration = Duration::from_secs(3);

/// Gossip tags of a server, as Consul names them where Consul has them.
pub(crate) mod tags {
    pub(crate) const ROLE: &str = "role";
    pub(crate) const SERVER_ROLE: &str = "consul";
    pub(crate) const DATACENTER: &str = "dc";
    pub(crate) const RPC_PORT: &str = "port";
    pub(crate) const EXPECT: &str = "expect";
    pub(crate) const RAFT_ID: &str = "raft_id";
}

/// A server as gossip shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolServer {
    pub(crate) raft_id: RaftId,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) expect: Option<usize>,
    pub(crate) alive: bool,
    pub(crate) left: bool,
}

/// The servers of `datacenter` among `members`.
pub(crate) fn pool_servers(members: &[Arc<Member>], datacenter: &str) -> Vec<PoolServer> {
    members
        .iter()
        .filter_map(|member| pool_server(member, datacenter))
        .collect()
}

fn pool_server(member: &Member, datacenter: &str) -> Option<PoolServer> {
    let tag = |name: &str| member.tags.get(name).map(String::as_str);
    if tag(tags::ROLE) != Some(tags::SERVER_ROLE) || tag(tags::DATACENTER) != Some(datacenter) {
        return None;
    }
    let port: u16 = tag(tags::RPC_PORT)?.parse().ok()?;
    Some(PoolServer {
        raft_id: tag(tags::RAFT_ID)?.parse().ok()?,
        name: member.name.clone(),
        address: std::net::SocketAddr::new(member.address, port).to_string(),
        expect: tag(tags::EXPECT).and_then(|n| n.parse().ok()),
        alive: member.status == MemberStatus::Alive,
        left: member.status == MemberStatus::Left,
    })
}

/// The first membership this server should coordinate, if the pool is ready and the turn is ours.
fn first_membership(pool: &[PoolServer], me: RaftId, expect: usize) -> Option<Vec<PoolServer>> {
    let mut ready: Vec<_> = pool
        .iter()
        .filter(|s| s.alive && s.expect == Some(expect))
        .cloned()
        .collect();
    if ready.len() < expect {
        return None;
    }
    // Everybody orders the pool the same way; the lowest id acts, so that normally one does.
    ready.sort_by_key(|s| s.raft_id);
    ready.truncate(expect);
    (ready.first()?.raft_id == me).then_some(ready)
}

/// This server's promise to one coordinator.
#[derive(Default)]
pub(crate) struct Reservation(Mutex<Option<Promise>>);

struct Promise {
    coordinator: String,
    set: Vec<String>,
    until: Duration,
}

impl Reservation {
    /// Promises to take part in `set` only, or says why not.
    fn promise(&self, coordinator: &str, set: &[String], now: Duration) -> Result<(), String> {
        let mut promised = self.0.lock();
        if let Some(other) = promised
            .as_ref()
            .filter(|p| now < p.until && (p.coordinator != coordinator || p.set != set))
        {
            return Err(format!(
                "already promised to the first membership that {} is forming",
                other.coordinator
            ));
        }
        *promised = Some(Promise {
            coordinator: coordinator.to_owned(),
            set: set.to_vec(),
            until: now + RESERVED_FOR,
        });
        Ok(())
    }
}

impl Inner {
    pub(crate) fn hello(&self, caller: &str) -> v1::HelloReply {
        let (status, state) = (self.raft.status(), self.published.load());
        v1::HelloReply {
            raft_id: status.id.to_string(),
            node_name: self.config.node_name.clone(),
            node_id: self.config.node_id.clone(),
            datacenter: self.config.datacenter.clone(),
            cluster_id: state.cluster_id().to_owned(),
            bootstrap_expect: match self.config.bootstrap {
                Bootstrap::Expect(n) => u32::try_from(n).unwrap_or(u32::MAX),
                Bootstrap::Alone => 1,
                Bootstrap::Join => 0,
            },
            last_log_index: status.last_log,
            initialized: self.raft.is_initialized(),
            public_key: self.public_key.clone(),
            rpc_address: self.config.rpc_advertise.to_string(),
            cluster_version_max: weft_catalog::CLUSTER_VERSION_MAX,
            recoveries: state.recoveries(),
            member: status
                .members
                .iter()
                .any(|m| m.peer.id.to_string() == caller),
        }
    }

    pub(crate) fn reserve(&self, request: &v1::ReserveRequest) -> Result<(), String> {
        if self.raft.is_initialized() {
            return Err(format!(
                "{} already belongs to a cluster",
                self.config.node_name
            ));
        }
        if request.datacenter != self.config.datacenter {
            return Err(format!(
                "{} is of datacenter {:?}",
                self.config.node_name, self.config.datacenter
            ));
        }
        self.reservation.promise(
            &request.coordinator_raft_id,
            &request.raft_ids,
            self.clock.monotonic(),
        )
    }

    pub(crate) fn own_peer(&self) -> Peer {
        Peer {
            id: self.raft.status().id,
            name: self.config.node_name.clone(),
            address: self.config.rpc_advertise.to_string(),
            public_key: self.public_key.clone(),
        }
    }
}

/// Keeps the address book true, and forms or joins a cluster while there is none.
pub(crate) async fn run(server: Server) {
    let mut stop = server.inner.stop.subscribe();
    let mut said = Said::default();
    let mut standing = Standing::default();
    let clock = server.inner.clock.clone();
    loop {
        server.refresh_directory();
        if !server.inner.raft.is_initialized() {
            if let Err(why) = server.form_or_join().await {
                said.once("no cluster yet", why);
            }
        } else if server.is_cut_off()
            && let Err(why) = server.rejoin().await
        {
            said.once("the cluster does not speak to this server", why);
        }
        standing.note(clock.monotonic(), server.has_quorum());
        match server.strangers().await {
            Some(Stranger::Alarm(why)) => said.alarm(why),
            // A mistaken recovery of a minority must not end the servers that the cluster consists of. Those that come
            // back after a right one hear of it before they have stood for long.
            Some(Stranger::Superseded(by)) if standing.is_established(clock.monotonic()) => {
                said.alarm(by.beside_a_quorum());
            }
            Some(Stranger::Superseded(by)) => {
                let why = by.without_a_quorum();
                tracing::error!(reason = "recover.superseded", "{why}");
                let why = format!("recover.superseded: {why}");
                server.inner.failed.send_replace(Some(why));
                let _ = stop.wait_for(|stopped| *stopped).await;
                return;
            }
            None => {}
        }
        let pause = if server.inner.raft.is_initialized() {
            Duration::from_secs(1)
        } else {
            LOOK_EVERY
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Since when this server is of a quorum that works. Elections in between do not count.
#[derive(Default)]
struct Standing {
    since: Duration,
    last: Option<Duration>,
}

impl Standing {
    fn note(&mut self, now: Duration, in_quorum: bool) {
        if !in_quorum {
            return;
        }
        if self
            .last
            .is_none_or(|last| now.saturating_sub(last) >= STANDING)
        {
            self.since = now;
        }
        self.last = Some(now);
    }

    fn is_established(&self, now: Duration) -> bool {
        self.last.is_some_and(|last| {
            now.saturating_sub(last) < STANDING && last.saturating_sub(self.since) >= STANDING
        })
    }
}

/// Logs a state of affairs when it changes, not each time it is looked at.
#[derive(Default)]
struct Said(String);

impl Said {
    fn alarm(&mut self, why: String) {
        if self.0 != why {
            tracing::error!(
                reason = %why,
                "this pool holds servers of another history; nothing is taken from them"
            );
            self.0 = why;
        }
    }

    fn once(&mut self, what: &'static str, why: String) {
        if self.0 != why {
            tracing::info!(reason = %why, "{what}");
            self.0 = why;
        }
    }
}

impl Server {
    fn refresh_directory(&self) {
        let Some(gossip) = self.inner.gossip.load_full() else {
            return;
        };
        let directory: BTreeMap<RaftId, String> =
            pool_servers(&gossip.members(), &self.inner.config.datacenter)
                .into_iter()
                .filter(|s| s.alive)
                .map(|s| (s.raft_id, s.address))
                .collect();
        self.inner
            .raft
            .set_pool(directory.keys().copied().collect());
        self.inner.transport.set_directory(directory);
    }

    /// Whether no leader has spoken to this server for long: it may have been removed, having left
    /// or having been taken for dead, and nobody replicates to a server that is no member.
    fn is_cut_off(&self) -> bool {
        let inner = &self.inner;
        let status = inner.raft.status();
        let up = inner.clock.monotonic().saturating_sub(inner.started);
        status.role != Role::Leader
            && status.last_contact.unwrap_or(up) >= CUT_OFF_AFTER
            && !inner.leaving.load(Ordering::Relaxed)
    }

    /// Whether this server is of a quorum that works: it leads one, or hears the leader of one.
    fn has_quorum(&self) -> bool {
        is_in_quorum(&self.inner.raft.status())
    }

    /// A server in the pool that holds another history than this one, in words for whoever started it.
    ///
    /// Members answer to their leader, so only servers outside the membership are asked.
    async fn strangers(&self) -> Option<Stranger> {
        let inner = &self.inner;
        let state = inner.published.load();
        let (ours, recoveries) = (state.cluster_id().to_owned(), state.recoveries());
        drop(state);
        if ours.is_empty() {
            return None;
        }
        let status = inner.raft.status();
        let mut pool = pool_servers(
            &inner.gossip.load_full()?.members(),
            &inner.config.datacenter,
        );
        pool.retain(|s| status.members.iter().all(|m| m.peer.id != s.raft_id));
        let hellos = self.greet(&pool).await;
        hellos
            .values()
            .find_map(|hello| stranger(hello, &ours, recoveries))
    }

    /// Asks the pool to be let in again; a leader that counts this server already changes nothing.
    async fn rejoin(&self) -> Result<(), String> {
        let inner = &self.inner;
        let Some(gossip) = inner.gossip.load_full() else {
            return Ok(());
        };
        let pool = pool_servers(&gossip.members(), &inner.config.datacenter);
        let hellos = self.greet(&pool).await;
        match hellos.values().find(|hello| hello.initialized) {
            Some(member) => self.join_through(&member.rpc_address).await,
            None => Err("no other server of it answers".into()),
        }
    }

    async fn form_or_join(&self) -> Result<(), String> {
        let inner = &self.inner;
        if inner.config.bootstrap == Bootstrap::Alone {
            return self.form_alone_or_join().await;
        }
        let Some(gossip) = inner.gossip.load_full() else {
            return Err("gossip is not up yet".into());
        };
        let pool = pool_servers(&gossip.members(), &inner.config.datacenter);
        let hellos = self.greet(&pool).await;
        if let Some(member) = hellos.values().find(|hello| hello.initialized) {
            return self.join_through(&member.rpc_address).await;
        }
        let Bootstrap::Expect(expect) = inner.config.bootstrap else {
            return Err(
                "waiting for a server that belongs to a cluster (-retry-join names one)".into(),
            );
        };
        let Some(set) = first_membership(&pool, inner.raft.status().id, expect) else {
            let seen = pool.iter().filter(|s| s.alive).count();
            return Err(format!(
                "waiting for {expect} servers that expect {expect}; {seen} seen"
            ));
        };
        self.form(&set, &hellos).await
    }

    /// Says hello to every living server but this one; those that do not answer are left out.
    pub(crate) async fn greet(&self, pool: &[PoolServer]) -> BTreeMap<RaftId, v1::HelloReply> {
        let inner = &self.inner;
        let me = inner.raft.status().id;
        let calls = pool.iter().filter(|s| s.alive && s.raft_id != me).map(|s| async move {
            let request = v1::HelloRequest { datacenter: inner.config.datacenter.clone(), raft_id: me.to_string() };
            let answer = inner.forwarder.call(&s.address, HELLO_TIMEOUT, async move |mut client| client.hello(request).await).await;
            match answer {
                Ok(hello) => Some((s.raft_id, hello)),
                Err(cause) => {
                    tracing::debug!(server.name = %s.name, server.addr = %s.address, error = ?cause, "no hello");
                    None
                }
            }
        });
        futures::future::join_all(calls)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    async fn form(
        &self,
        set: &[PoolServer],
        hellos: &BTreeMap<RaftId, v1::HelloReply>,
    ) -> Result<(), String> {
        let inner = &self.inner;
        let begun = inner.clock.monotonic();
        let request = v1::ReserveRequest {
            coordinator_raft_id: inner.raft.status().id.to_string(),
            raft_ids: set.iter().map(|s| s.raft_id.to_string()).collect(),
            datacenter: inner.config.datacenter.clone(),
        };
        inner.reserve(&request)?;
        let mut peers = vec![inner.own_peer()];
        for server in set.iter().filter(|s| s.raft_id != inner.raft.status().id) {
            let hello = hellos.get(&server.raft_id).ok_or_else(|| {
                format!(
                    "{} ({}) does not answer on its server port",
                    server.name, server.address
                )
            })?;
            let asked = request.clone();
            let reply = inner
                .forwarder
                .call(&server.address, HELLO_TIMEOUT, async move |mut client| {
                    client.reserve(asked).await
                })
                .await
                .map_err(|cause| format!("{} does not answer: {cause:?}", server.name))?;
            if !reply.granted {
                return Err(reply.reason);
            }
            peers.push(Peer {
                id: server.raft_id,
                name: server.name.clone(),
                address: server.address.clone(),
                public_key: Bytes::clone(&hello.public_key),
            });
        }
        if inner.clock.monotonic() > begun + FORM_WITHIN {
            return Err("forming the first membership took too long; trying again".into());
        }
        let names: Vec<_> = peers.iter().map(|p| p.name.clone()).collect();
        inner
            .raft
            .bootstrap(peers)
            .await
            .map_err(|cause| cause.to_string())?;
        tracing::info!(raft.peers = ?names, "cluster formed");
        Ok(())
    }

    pub(crate) async fn join_through(&self, address: &str) -> Result<(), String> {
        let inner = &self.inner;
        let me = inner.own_peer();
        let request = v1::JoinRequest {
            raft_id: me.id.to_string(),
            node_name: me.name,
            address: me.address,
            datacenter: inner.config.datacenter.clone(),
            public_key: me.public_key,
            cluster_id: inner.published.load().cluster_id().to_owned(),
            last_log_index: inner.raft.status().last_log,
            cluster_version_max: weft_catalog::CLUSTER_VERSION_MAX,
            recoveries: inner.published.load().recoveries(),
        };
        let mut at = address.to_owned();
        for _ in 0..3 {
            let asked = request.clone();
            let reply = inner
                .forwarder
                .call(&at, Duration::from_secs(10), async move |mut client| {
                    client.join(asked).await
                })
                .await
                .map_err(|cause| format!("cannot ask {at} to let us in: {cause:?}"))?;
            if !reply.not_leader {
                return if reply.error.is_empty() {
                    Ok(())
                } else {
                    Err(reply.error)
                };
            }
            if reply.leader_address.is_empty() {
                return Err(format!("{at} knows no leader yet"));
            }
            at = reply.leader_address;
        }
        Err("the leader keeps moving; trying again".into())
    }

    /// On the leader: lets a server in as a learner, or takes note of its new address.
    pub(crate) async fn admit(&self, request: v1::JoinRequest) -> Result<(), ServerError> {
        let inner = &self.inner;
        // One after the other: the second of two newcomers with one name is to find the first.
        let _one = inner.admitting.lock().await;
        let id: RaftId = request
            .raft_id
            .parse()
            .map_err(|_| ServerError::Invalid(format!("{:?} is not a Raft id", request.raft_id)))?;
        let replaced = match self.judge(&request, id).map_err(ServerError::Invalid)? {
            Admission::Known => return Ok(()),
            Admission::Moved => {
                let moved = inner.raft.update_address(id, request.address).await;
                return moved.map_err(change_failed);
            }
            Admission::New(replaced) => replaced,
        };
        for old in replaced {
            tracing::warn!(server.name = %request.node_name, raft.old_id = %old, raft.new_id = %id, "server came back without its log; replacing its old Raft id");
            inner.raft.remove(old).await.map_err(change_failed)?;
        }
        let peer = Peer {
            id,
            name: request.node_name,
            address: request.address,
            public_key: request.public_key,
        };
        tracing::info!(server.name = %peer.name, server.addr = %peer.address, raft.id = %id, "adding server as learner");
        inner.raft.add_learner(peer).await.map_err(change_failed)?;
        let mut status = inner.raft.watch_status();
        let known = status.wait_for(|status| status.members.iter().any(|m| m.peer.id == id));
        // In time or not, it was taken in.
        let _ = tokio::time::timeout(SHOWN_WITHIN, known).await;
        Ok(())
    }

    fn judge(&self, request: &v1::JoinRequest, id: RaftId) -> Result<Admission, String> {
        let inner = &self.inner;
        let (status, state) = (inner.raft.status(), inner.published.load());
        let pool = inner.gossip.load_full().map_or_else(Vec::new, |gossip| {
            pool_servers(&gossip.members(), &inner.config.datacenter)
        });
        let now = inner.clock.monotonic();
        let seen = Seen {
            me: status.id,
            datacenter: &inner.config.datacenter,
            cluster_id: state.cluster_id(),
            cluster_version: state.cluster_version(),
            recoveries: state.recoveries(),
            members: &status.members,
            pool: &pool,
            leading_for: (*inner.leading_since.lock())
                .map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            silent_after: SILENT_AFTER * inner.config.raft_multiplier,
        };
        admission::judge(request, id, &seen)
    }
}

/// What another history in the pool means for this server.
#[derive(Debug, PartialEq, Eq)]
enum Stranger {
    /// The other one is wrong here.
    Alarm(String),
    /// One of them was recovered without the other.
    Superseded(Recovered),
}

/// A server that was recovered without this one.
#[derive(Debug, PartialEq, Eq)]
struct Recovered {
    name: String,
    address: String,
}

impl Recovered {
    /// This server is the one that was given up.
    fn without_a_quorum(&self) -> String {
        let Self { name, address } = self;
        format!(
            "the cluster was recovered without this server, as {name} ({address}) says, and what it holds was given up; \
             move its raft folder away and start it again: it then joins as a new server"
        )
    }

    /// Its cluster works, so nothing was lost for ever: the recovery was a mistake, or this cluster came back after it.
    fn beside_a_quorum(&self) -> String {
        let Self { name, address } = self;
        format!(
            "recover.superseded: {name} ({address}) was recovered without this server, which is of a quorum that works; \
             if that was a mistake, stop {name}, move its raft folder away and start it again: it then joins as a new server; \
             if {name} is to go on, stop the servers of this quorum and move their raft folders away"
        )
    }
}

/// Whether `status` is of a server that leads a quorum that answers, or hears its leader.
fn is_in_quorum(status: &Status) -> bool {
    let heard = match status.role {
        Role::Leader => status.quorum_ack,
        _ => status.last_contact,
    };
    status.leader.is_some() && heard.is_some_and(|ago| ago < CUT_OFF_AFTER)
}

/// Judges a server outside the membership by its hello; `ours` and `recoveries` are of this server's state.
fn stranger(hello: &v1::HelloReply, ours: &str, recoveries: u64) -> Option<Stranger> {
    let (name, address) = (&hello.node_name, &hello.rpc_address);
    if hello.cluster_id.is_empty() {
        return None;
    }
    if hello.cluster_id != ours {
        return Some(Stranger::Alarm(format!(
            "{name} ({address}) holds data of another cluster ({}, this one is {ours}); \
             stop the one that was started by mistake and give it an empty data_dir, or another retry_join",
            hello.cluster_id
        )));
    }
    if hello.recoveries > recoveries && !hello.member {
        return Some(Stranger::Superseded(Recovered {
            name: name.clone(),
            address: address.clone(),
        }));
    }
    (hello.recoveries < recoveries && hello.initialized).then(|| {
        Stranger::Alarm(format!(
            "{name} ({address}) holds data from before this cluster was recovered; stop it and move its raft folder away"
        ))
    })
}

/// How long a change of the membership may take to be seen in this server's own status.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

fn change_failed(cause: impl std::fmt::Display) -> ServerError {
    ServerError::Failed(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u128, expect: Option<usize>, alive: bool) -> PoolServer {
        PoolServer {
            raft_id: RaftId(uuid::Uuid::from_u128(n)),
            name: format!("s{n}"),
            address: format!("127.0.0.{n}:8300"),
            expect,
            alive,
            left: false,
        }
    }

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn the_lowest_id_acts_once_enough_servers_are_seen() {
        let pool = [
            server(3, Some(3), true),
            server(1, Some(3), true),
            server(2, Some(3), true),
        ];
        let names = |me| {
            first_membership(&pool, id(me), 3)
                .map(|set| set.into_iter().map(|s| s.name).collect::<Vec<_>>())
        };
        assert_eq!(names(1), Some(vec!["s1".into(), "s2".into(), "s3".into()]));
        assert_eq!(names(2), None);
        assert_eq!(first_membership(&pool[..2], id(1), 3), None);
    }

    #[test]
    fn dead_servers_and_other_expectations_do_not_count() {
        let pool = [
            server(1, Some(3), true),
            server(2, Some(3), false),
            server(3, Some(5), true),
            server(4, None, true),
        ];
        assert_eq!(first_membership(&pool, id(1), 3), None);
    }

    #[test]
    fn of_two_histories_the_recovered_one_counts() {
        let hello = |cluster: &str, recoveries, member| v1::HelloReply {
            node_name: "s2".into(),
            rpc_address: "127.0.0.2:8300".into(),
            cluster_id: cluster.into(),
            initialized: true,
            recoveries,
            member,
            ..v1::HelloReply::default()
        };
        let judged = |theirs: &v1::HelloReply| stranger(theirs, "ours", 1);
        assert_eq!(judged(&hello("", 0, false)), None, "a new server");
        assert_eq!(
            judged(&hello("ours", 1, false)),
            None,
            "removed, same history"
        );
        assert!(matches!(
            judged(&hello("theirs", 1, false)),
            Some(Stranger::Alarm(_))
        ));
        assert!(matches!(
            judged(&hello("ours", 0, false)),
            Some(Stranger::Alarm(_))
        ));
        assert!(matches!(
            judged(&hello("ours", 2, false)),
            Some(Stranger::Superseded(_))
        ));
        assert_eq!(
            judged(&hello("ours", 2, true)),
            None,
            "it will get the snapshot"
        );
    }

    #[test]
    fn a_server_is_in_a_quorum_while_it_or_its_leader_is_answered() {
        let status = |role, contact: u64, ack| Status {
            role,
            leader: Some(Peer {
                id: id(1),
                name: "s1".into(),
                address: "127.0.0.1:8300".into(),
                public_key: Bytes::new(),
            }),
            last_contact: Some(Duration::from_secs(contact)),
            quorum_ack: ack,
            ..Status::default()
        };
        let second = Some(Duration::from_secs(1));
        assert!(is_in_quorum(&status(Role::Follower, 1, None)));
        assert!(!is_in_quorum(&status(Role::Follower, 9, None)));
        assert!(is_in_quorum(&status(Role::Leader, 0, second)));
        assert!(!is_in_quorum(&status(Role::Leader, 0, None)), "not yet");
        let cut_off = status(Role::Leader, 0, Some(CUT_OFF_AFTER));
        assert!(!is_in_quorum(&cut_off), "nobody answers it");
        let alone = Status {
            leader: None,
            ..status(Role::Candidate, 1, None)
        };
        assert!(!is_in_quorum(&alone));
    }

    #[test]
    fn a_quorum_has_to_stand_for_a_while_and_an_election_does_not_end_it() {
        let at = Duration::from_secs;
        let mut standing = Standing::default();
        assert!(!standing.is_established(at(0)));
        for second in 1..=10 {
            standing.note(at(second), true);
            assert!(!standing.is_established(at(second)), "second {second}");
        }
        standing.note(at(11), true);
        assert!(standing.is_established(at(11)));
        standing.note(at(12), false);
        standing.note(at(14), true);
        assert!(standing.is_established(at(14)), "an election");
        standing.note(at(23), false);
        assert!(!standing.is_established(at(24)), "cut off");
        standing.note(at(25), true);
        assert!(!standing.is_established(at(25)), "begins anew");
    }

    #[test]
    fn a_server_promises_itself_to_one_set_at_a_time() {
        let reservation = Reservation::default();
        let (ab, bc) = (
            vec!["a".to_owned(), "b".to_owned()],
            vec!["b".to_owned(), "c".to_owned()],
        );
        let at = Duration::from_secs;
        assert!(reservation.promise("a", &ab, at(1)).is_ok());
        assert!(
            reservation.promise("a", &ab, at(2)).is_ok(),
            "asking again renews"
        );
        assert!(
            reservation
                .promise("b", &bc, at(3))
                .unwrap_err()
                .contains("already promised")
        );
        assert!(
            reservation.promise("b", &bc, at(60)).is_ok(),
            "an old promise lapses"
        );
    }
}
