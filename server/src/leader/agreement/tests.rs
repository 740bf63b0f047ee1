use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use weft_proto::clock::SystemClock;

use super::*;
use crate::config::{Bootstrap, ServerConfig, for_tests};

fn id(n: u128) -> RaftId {
    RaftId(uuid::Uuid::from_u128(n))
}

#[test]
fn what_a_quorum_computed_is_right() {
    let members: Vec<Member> = (1..=5)
        .map(|n| Member {
            peer: weft_raft::Peer {
                id: id(n),
                ..Default::default()
            },
            // The fifth is a learner.
            voter: n != 5,
            incoming: false,
            ..Member::default()
        })
        .collect();
    let judged = |hashes: &[(u128, u64)]| {
        let hashes = hashes.iter().map(|(n, hash)| (id(*n), *hash)).collect();
        judge(7, &members, &hashes)
    };
    assert_eq!(judged(&[(2, 7), (3, 7), (4, 7)]), Verdict::Right);
    assert_eq!(judged(&[(2, 7), (3, 7), (4, 8)]), Verdict::Right);
    assert_eq!(judged(&[(2, 8), (3, 8), (4, 8)]), Verdict::Wrong);
    assert_eq!(
        judged(&[(2, 7), (3, 8), (4, 8)]),
        Verdict::Unknown,
        "two each"
    );
    assert_eq!(
        judged(&[(2, 7), (5, 7)]),
        Verdict::Unknown,
        "a learner has no vote"
    );
    assert_eq!(judged(&[]), Verdict::Unknown);
}

#[tokio::test]
async fn a_silent_member_is_not_waited_for() {
    let members: Vec<Member> = (1..=3)
        .map(|n| Member {
            peer: weft_raft::Peer {
                id: id(n),
                ..Default::default()
            },
            voter: true,
            ..Member::default()
        })
        .collect();
    let silent = futures::stream::pending();
    let answers = futures::stream::iter([(id(2), 7)]).chain(silent);
    let judged = tokio::time::timeout(Duration::from_secs(5), first_verdict(7, &members, answers));
    let (verdict, hashes) = judged.await.unwrap();
    assert_eq!((verdict, hashes.len()), (Verdict::Right, 1));
    let (verdict, _) = first_verdict(7, &members, futures::stream::iter([(id(2), 8)])).await;
    assert_eq!(verdict, Verdict::Unknown);
}

async fn start(name: &str, bootstrap: Bootstrap) -> Server {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = free.local_addr().unwrap();
    drop(free);
    let config = ServerConfig {
        node_name: name.into(),
        rpc_bind: address,
        rpc_advertise: address,
        bootstrap,
        compare_states_every: Duration::from_millis(50),
        ..for_tests()
    };
    let clock = Arc::new(SystemClock::new());
    Server::start(config, None, Bytes::new(), clock)
        .await
        .unwrap()
}

/// Three voters, the first of them the leader.
async fn cluster() -> [Server; 3] {
    let servers = [
        start("s1", Bootstrap::Alone).await,
        start("s2", Bootstrap::Join).await,
        start("s3", Bootstrap::Join).await,
    ];
    servers[0].barrier().await.unwrap();
    for server in &servers[1..] {
        let (raft, peer) = (&servers[0].inner.raft, server.inner.own_peer());
        raft.add_learner(peer.clone()).await.unwrap();
        raft.promote(peer.id).await.unwrap();
    }
    servers
}

async fn put(server: &Server, value: &str) {
    let put = v1::KvCommand {
        verb: v1::KvVerb::Set.into(),
        entry: Some(v1::KvEntry {
            key: Bytes::from_static(b"color"),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..v1::KvEntry::default()
        }),
    };
    server.write(Command::Kv(put)).await.unwrap();
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Why a server ended: as follower by what the log says, as leader by what the others say. On a busy
/// machine another one may lead by then.
fn ended(server: &Server) -> Option<String> {
    let failed = server.inner.failed.borrow().clone();
    failed.or_else(|| server.status().fatal.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupted_follower_is_noticed_and_ends() {
    let servers = cluster().await;
    let agreed = || {
        let states = servers.iter().map(Server::state);
        let hashes: Vec<_> = states.map(|state| (state.index(), state.hash())).collect();
        (hashes[0] == hashes[1] && hashes[1] == hashes[2]).then_some(())
    };
    put(&servers[0], "red").await;
    until("one state", agreed).await;
    assert_eq!(servers[0].inner.metrics.state_mismatches(), 0);

    servers[2].inner.hashes.tamper.store(true, Ordering::SeqCst);
    put(&servers[0], "blue").await;
    let why = until("its end", || ended(&servers[2])).await;
    assert!(why.contains("at catalog index"), "{why}");
    let noticed = || {
        servers
            .iter()
            .map(|s| s.inner.metrics.state_mismatches())
            .sum::<u64>()
    };
    assert!(noticed() >= 1);
    assert_eq!((ended(&servers[0]), ended(&servers[1])), (None, None));
    put(&servers[0], "green").await;
    for server in &servers {
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupted_leader_takes_nobody_along() {
    let servers = cluster().await;
    servers[0].inner.hashes.tamper.store(true, Ordering::SeqCst);
    put(&servers[0], "red").await;
    let why = until("its end", || ended(&servers[0])).await;
    assert!(why.contains("at catalog index"), "{why}");
    assert_eq!((ended(&servers[1]), ended(&servers[2])), (None, None));
    for server in &servers {
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_raised_to_what_all_follow() {
    let server = start("s1", Bootstrap::Alone).await;
    until("the version", || {
        (server.state().cluster_version() == CLUSTER_VERSION_MAX).then_some(())
    })
    .await;
    server.shutdown().await;
}
