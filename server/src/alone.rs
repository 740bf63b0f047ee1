//! `-bootstrap` (and `-bootstrap-expect=1`): one server forms a cluster, once it is sure that there is none.
//!
//! Owns: what this server must have heard before it forms a cluster by itself.
//! Never: decides on silence. Data that was lost looks like a first start; whoever was named to be joined
//! may hold the cluster this server belonged to, and a second one beside it would take its clients.

use std::collections::BTreeMap;

use weft_gossip::{GossipError, JoinOutcome};
use weft_proto::v1;
use weft_raft::RaftId;

use crate::formation::{HELLO_TIMEOUT, PoolServer, pool_servers};
use crate::handle::Server;

/// What a lone founder does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The server at this address belongs to a cluster.
    Join(String),
    /// Nobody has one; these are to keep themselves free for this one first.
    Form(Vec<String>),
    /// It cannot be known yet.
    Wait(String),
}

impl Server {
    /// Forms a cluster of this server alone, or joins the one that those to be joined belong to.
    pub(crate) async fn form_alone_or_join(&self) -> Result<(), String> {
        let inner = &self.inner;
        if !inner.config.join.is_empty() {
            match self.look_around().await? {
                Step::Join(address) => return self.join_through(&address).await,
                Step::Wait(why) => return Err(why),
                Step::Form(others) => self.reserve_all(&others).await?,
            }
        }
        let formed = inner.raft.bootstrap(vec![inner.own_peer()]).await;
        formed.map_err(|cause| cause.to_string())
    }

    async fn look_around(&self) -> Result<Step, String> {
        let inner = &self.inner;
        let Some(gossip) = inner.gossip.load_full() else {
            return Err("gossip is not up yet".into());
        };
        let asked = gossip.join(&inner.config.join).await;
        if let Some(why) = nobody_answers(&asked) {
            return Ok(Step::Wait(why));
        }
        let pool = pool_servers(&gossip.members(), &inner.config.datacenter);
        let hellos = self.greet(&pool).await;
        let me = (inner.raft.status().id, inner.config.node_name.as_str());
        Ok(next(me, &pool, &hellos))
    }

    /// Keeps this server and those of the pool from another first membership meanwhile (ADR 2).
    async fn reserve_all(&self, others: &[String]) -> Result<(), String> {
        let inner = &self.inner;
        let me = inner.raft.status().id.to_string();
        let request = v1::ReserveRequest {
            coordinator_raft_id: me.clone(),
            raft_ids: vec![me],
            datacenter: inner.config.datacenter.clone(),
        };
        inner.reserve(&request)?;
        for address in others {
            let asked = request.clone();
            let call = async move |mut client: crate::forward::Client| client.reserve(asked).await;
            let answer = inner.forwarder.call(address, HELLO_TIMEOUT, call).await;
            let reply = answer.map_err(|cause| format!("{address} does not answer: {cause:?}"))?;
            if !reply.granted {
                return Err(reply.reason);
            }
        }
        Ok(())
    }
}

/// Why nothing is known: addresses were named, but none of them answered. This server's own does not count.
fn nobody_answers(asked: &JoinOutcome) -> Option<String> {
    let silent =
        |(_, cause): &&(String, GossipError)| !matches!(cause, GossipError::Ourselves { .. });
    let (address, cause) = asked.errors.iter().find(silent)?;
    (asked.contacted == 0).then(|| {
        format!(
            "formation.unsure: -bootstrap with addresses to join, of which none answers ({address}: {cause}): they may have a cluster already; start one of them, or leave out -join and -retry-join to form a new cluster in any case"
        )
    })
}

fn next(
    (me, name): (RaftId, &str),
    pool: &[PoolServer],
    hellos: &BTreeMap<RaftId, v1::HelloReply>,
) -> Step {
    if let Some(member) = hellos.values().find(|hello| hello.initialized) {
        return Step::Join(member.rpc_address.clone());
    }
    // Others remember it: it may come back with the cluster it had. What this server was before it lost its
    // disk has its name.
    let lost = |s: &&PoolServer| !s.alive && !s.left && s.raft_id != me && s.name != name;
    if let Some(lost) = pool.iter().find(lost) {
        return Step::Wait(format!(
            "formation.unsure: {} ({}) is known to the pool and does not answer; it may have a cluster already: start it, or say `weft force-leave {}` if it is gone for good",
            lost.name, lost.address, lost.name
        ));
    }
    let mut others = Vec::new();
    for server in pool.iter().filter(|s| s.alive && s.raft_id != me) {
        let Some(hello) = hellos.get(&server.raft_id) else {
            return Step::Wait(format!(
                "formation.unsure: {} ({}) does not answer on its server port; it may have a cluster already",
                server.name, server.address
            ));
        };
        // Two that would each form one: the lower id does, as with -bootstrap-expect.
        if hello.bootstrap_expect == 1 && server.raft_id < me {
            return Step::Wait(format!(
                "{} forms the cluster; only one server should have -bootstrap",
                server.name
            ));
        }
        others.push(server.address.clone());
    }
    Step::Form(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn server(n: u128) -> PoolServer {
        PoolServer {
            raft_id: id(n),
            name: format!("s{n}"),
            address: format!("127.0.0.{n}:8300"),
            expect: None,
            alive: true,
            left: false,
        }
    }

    fn hello(n: u128, initialized: bool, bootstrap_expect: u32) -> (RaftId, v1::HelloReply) {
        let reply = v1::HelloReply {
            initialized,
            bootstrap_expect,
            rpc_address: format!("127.0.0.{n}:8300"),
            ..v1::HelloReply::default()
        };
        (id(n), reply)
    }

    #[test]
    fn a_cluster_is_formed_only_when_everybody_said_that_there_is_none() {
        let pool = [server(1), server(2), server(3)];
        let address = |n| format!("127.0.0.{n}:8300");
        let step = |hellos: Vec<_>| next((id(2), "s2"), &pool, &hellos.into_iter().collect());
        assert_eq!(
            step(vec![hello(1, false, 0), hello(3, true, 0)]),
            Step::Join(address(3))
        );
        assert_eq!(
            step(vec![hello(1, false, 3), hello(3, false, 0)]),
            Step::Form(vec![address(1), address(3)])
        );
        assert_eq!(
            step(vec![hello(1, false, 0), hello(3, false, 1)]),
            Step::Form(vec![address(1), address(3)]),
            "the lower id forms it"
        );
        for unsure in [
            vec![hello(1, false, 0)],
            vec![hello(1, false, 1), hello(3, false, 0)],
        ] {
            assert!(matches!(step(unsure), Step::Wait(_)));
        }
    }

    #[test]
    fn a_server_the_pool_remembers_may_have_the_cluster() {
        let pool = |alive, left, n| {
            [PoolServer {
                alive,
                left,
                ..server(n)
            }]
        };
        let step = |pool: &[PoolServer]| next((id(7), "s2"), pool, &BTreeMap::new());
        let Step::Wait(why) = step(&pool(false, false, 3)) else {
            panic!("it formed a second cluster");
        };
        assert!(why.contains("weft force-leave s3"), "{why}");
        for (gone, what) in [
            (pool(false, true, 3), "who said goodbye"),
            (pool(false, false, 2), "what this server was before"),
        ] {
            assert_eq!(step(&gone), Step::Form(Vec::new()), "{what}");
        }
    }

    #[test]
    fn silence_is_no_answer_but_our_own_address_is_no_question() {
        let refused = || GossipError::UnknownMember { name: "x".into() };
        let ourselves = || GossipError::Ourselves {
            peer: ([127, 0, 0, 1], 8301).into(),
        };
        let asked = |contacted, errors: Vec<GossipError>| {
            nobody_answers(&JoinOutcome {
                contacted,
                errors: errors.into_iter().map(|e| ("s9".to_owned(), e)).collect(),
            })
        };
        assert_eq!(asked(0, vec![ourselves()]), None);
        assert_eq!(asked(1, vec![refused()]), None);
        let why = asked(0, vec![ourselves(), refused()]).unwrap();
        assert!(
            why.contains("formation.unsure") && why.contains("s9"),
            "{why}"
        );
    }
}
