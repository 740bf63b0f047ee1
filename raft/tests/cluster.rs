//! Clusters in one process: election, replication, failures, membership, snapshots, restarts.

#![allow(
    clippy::unwrap_used,
    reason = "a test file: helpers outside #[test] functions unwrap too"
)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use weft_raft::{BootstrapError, ChangeError, ProposeError, ReadIndexError, Role};
use world::{Options, PATIENCE, World, id};

const DISK: Options = Options {
    on_disk: true,
    tune: |_| {},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_elect_and_replicate() {
    let world = World::cluster(3, Options::default()).await;
    let leader = world.leader().await;
    let mut last = 0;
    for n in 1..=20 {
        let applied = world
            .node(leader)
            .propose(Bytes::from(format!("v{n}")))
            .await
            .unwrap();
        assert_eq!(applied.reply, n.to_string());
        assert!(applied.index > last);
        last = applied.index;
    }
    for n in 0..3 {
        world.agree(n, leader, last).await;
        assert_eq!(world.journal(n).0.len(), 20);
        assert!(world.node(n).is_initialized());
    }
    let peers = (0..3).map(|n| world.peer(n)).collect();
    assert_eq!(
        world.node(leader).bootstrap(peers).await,
        Err(BootstrapError::AlreadyInitialized)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader() {
    let world = World::cluster(3, Options::default()).await;
    let leader = world.leader().await;
    let follower = (leader + 1) % 3;
    let named = |status: &std::sync::Arc<weft_raft::Status>| {
        status
            .leader
            .as_ref()
            .is_some_and(|peer| peer.id == id(leader))
            && status.last_contact.is_some()
    };
    let status = world.wait_status(follower, "named the leader", named).await;
    assert_eq!(status.role, Role::Follower);
    let refused = world
        .node(follower)
        .propose(Bytes::from_static(b"x"))
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        ProposeError::NotLeader {
            leader: Some(world.peer(leader))
        }
    );
    let refused = world.node(follower).read_index().await.unwrap_err();
    assert_eq!(
        refused,
        ReadIndexError::NotLeader {
            leader: Some(world.peer(leader))
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_survives_losing_the_leader() {
    let mut world = World::cluster(3, Options::default()).await;
    let old = world.leader().await;
    let index = world.put("before").await;
    world.stop(old).await;
    let new = world.leader().await;
    assert_ne!(new, old);
    let after = world.put("after").await;
    assert!(after > index);
    world.start(old).unwrap();
    world.agree(old, new, after).await;
    let bodies: Vec<_> = world.journal(old).0.into_values().collect();
    assert_eq!(bodies, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_serves_no_read_and_accepts_no_write() {
    let options = Options {
        on_disk: false,
        tune: |config| config.proposal_timeout = Duration::from_secs(2),
    };
    let world = World::cluster(3, options).await;
    let old = world.leader().await;
    world.put("before").await;
    world.isolate(old);
    let new = world.leader_but(old).await;
    let index = world
        .node(new)
        .propose(Bytes::from_static(b"newer"))
        .await
        .unwrap()
        .index;

    // It may still believe to lead: it must not confirm that to anybody.
    let stale = world.node(old).read_index().await;
    assert!(
        matches!(
            stale,
            Err(ReadIndexError::Timeout | ReadIndexError::NotLeader { .. })
        ),
        "{stale:?}"
    );
    let write = world.node(old).propose(Bytes::from_static(b"lost")).await;
    assert!(
        matches!(
            write,
            Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. })
        ),
        "{write:?}"
    );

    world.heal();
    world.agree(old, new, index).await;
    let end = world.put("end").await;
    world.agree(old, new, end).await;
    assert!(world.node(new).read_index().await.is_ok() || world.leader().await != new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_see_what_was_written_before_them() {
    let world = World::cluster(3, Options::default()).await;
    let leader = world.leader().await;
    for n in 0..50 {
        let written = world
            .node(leader)
            .propose(Bytes::from(n.to_string()))
            .await
            .unwrap()
            .index;
        let reads = (0..8).map(|_| world.node(leader).read_index());
        for read in futures::future::join_all(reads).await {
            assert!(read.unwrap() >= written);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_joins_votes_and_leaves() {
    let mut world = World::cluster(3, Options::default()).await;
    let leader = world.leader().await;
    let index = world.put("early").await;
    let new = world.add();
    let node = world.node(leader).clone();

    node.add_learner(world.peer(new)).await.unwrap();
    world.agree(new, leader, index).await;
    assert!(!member(&world, leader, new).await.voter);
    node.promote(id(new)).await.unwrap();
    assert!(member(&world, leader, new).await.voter);
    node.demote(id(new)).await.unwrap();
    assert!(!member(&world, leader, new).await.voter);
    node.promote(id(new)).await.unwrap();
    node.remove(id(new)).await.unwrap();
    let gone = |status: &std::sync::Arc<weft_raft::Status>| status.members.len() == 3;
    world.wait_status(leader, "forgot it", gone).await;

    let unknown = node.promote(id(77)).await.unwrap_err();
    assert!(matches!(unknown, ChangeError::Refused(_)), "{unknown:?}");
    let follower = (leader + 1) % 3;
    let refused = world.node(follower).promote(id(new)).await.unwrap_err();
    assert!(
        matches!(refused, ChangeError::NotLeader { .. }),
        "{refused:?}"
    );
}

async fn member(world: &World, at: usize, n: usize) -> weft_raft::Member {
    let settled = |status: &std::sync::Arc<weft_raft::Status>| {
        status.membership_settled && status.members.iter().any(|member| member.peer.id == id(n))
    };
    let status = world.wait_status(at, "settled", settled).await;
    status
        .members
        .iter()
        .find(|member| member.peer.id == id(n))
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let world = World::cluster(3, Options::default()).await;
    let old = world.leader().await;
    world.put("x").await;
    let to = (old + 1) % 3;
    world.node(old).transfer_leader(Some(id(to))).await.unwrap();
    assert_eq!(world.leader().await, to);
    let term = world.node(to).status().term;
    world.node(to).transfer_leader(None).await.unwrap();
    let next = world.leader().await;
    assert_ne!(next, to);
    assert!(world.node(next).status().term > term);
    let refused = world
        .node(next)
        .transfer_leader(Some(id(9)))
        .await
        .unwrap_err();
    assert!(matches!(refused, ChangeError::Refused(_)), "{refused:?}");
}

const SNAPPY: fn(&mut weft_raft::RaftConfig) = |config| {
    config.snapshot_entries = 200;
    config.trailing_entries = 300;
};

async fn fill(world: &World, count: usize) -> u64 {
    let leader = world.leader().await;
    let node = world.node(leader);
    let mut last = 0;
    for chunk in 0..count.div_ceil(100) {
        let puts = (0..100).map(|n| node.propose(Bytes::from(format!("{chunk}.{n}"))));
        for put in futures::future::join_all(puts).await {
            last = last.max(put.unwrap().index);
        }
    }
    last
}

async fn purged(world: &World, n: usize) {
    world
        .wait_status(n, "purged", |status| {
            status.purged > 0 && status.snapshot > 0
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_follower_gets_a_snapshot() {
    for on_disk in [false, true] {
        let mut world = World::cluster(
            3,
            Options {
                on_disk,
                tune: SNAPPY,
            },
        )
        .await;
        let leader = world.leader().await;
        let lost = (leader + 1) % 3;
        fill(&world, 1_000).await;
        purged(&world, leader).await;
        let node = world.node(leader).clone();
        // A lost log means a new identity: the old id goes, a new server comes.
        node.remove(id(lost)).await.unwrap();
        world.stop(lost).await;
        let new = world.add();
        node.add_learner(world.peer(new)).await.unwrap();
        let index = world.put("after").await;
        world.agree(new, leader, index).await;
        assert!(
            world.node(new).status().snapshot > 0 || world.node(new).log_usage().entries < 1_000
        );
        node.promote(id(new)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_fell_behind_the_log_catches_up() {
    let mut world = World::cluster(
        3,
        Options {
            on_disk: true,
            tune: SNAPPY,
        },
    )
    .await;
    let leader = world.leader().await;
    let slow = (leader + 1) % 3;
    fill(&world, 100).await;
    world.stop(slow).await;
    fill(&world, 1_500).await;
    purged(&world, leader).await;
    world.start(slow).unwrap();
    let index = world.put("after").await;
    world.agree(slow, world.leader().await, index).await;
    // What arrived as a snapshot is on its disk too.
    world.stop(slow).await;
    world.start(slow).unwrap();
    world.agree(slow, world.leader().await, index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_all_servers_restart() {
    let mut world = World::cluster(
        3,
        Options {
            on_disk: true,
            tune: SNAPPY,
        },
    )
    .await;
    let index = fill(&world, 1_000).await;
    let leader = world.leader().await;
    let before = world.journal(leader);
    purged(&world, leader).await;
    for n in 0..3 {
        world.stop(n).await;
    }
    for n in 0..3 {
        world.start(n).unwrap();
    }
    let leader = world.leader().await;
    for n in 0..3 {
        world.node(n).wait_recovered(PATIENCE).await.unwrap();
        world.agree(n, leader, index).await;
        assert_eq!(world.journal(n), before);
    }
    let next = world.put("next").await;
    assert!(next > index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_move_and_form_again() {
    let mut world = World::cluster(3, DISK).await;
    let index = world.put("before").await;
    for n in 0..3 {
        world.stop(n).await;
        world.move_to(n, &format!("10.1.0.{n}:8300"));
    }
    // Where the others are now, gossip tells the dialer; here the leader is told of one change.
    for n in 0..3 {
        world.start(n).unwrap();
        world.alias(n, &format!("10.0.0.{n}:8300"));
    }
    let leader = world.leader().await;
    world.agree((leader + 1) % 3, leader, index).await;
    let moved = (leader + 1) % 3;
    world
        .node(leader)
        .update_address(id(moved), format!("10.1.0.{moved}:8300"))
        .await
        .unwrap();
    let known = |status: &std::sync::Arc<weft_raft::Status>| {
        let found = status
            .members
            .iter()
            .find(|member| member.peer.id == id(moved));
        found.is_some_and(|member| member.peer.address == format!("10.1.0.{moved}:8300"))
    };
    for n in 0..3 {
        world.wait_status(n, "knew the new address", known).await;
    }
    // Only the new address is left: the leader reaches it there.
    world.unalias(&format!("10.0.0.{moved}:8300"));
    world.isolate(moved);
    world.heal();
    let index = world.put("after").await;
    world.agree(moved, leader, index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_is_back_at_once() {
    let mut world = World::cluster(1, DISK).await;
    let index = world.put("x").await;
    world.stop(0).await;
    world.start(0).unwrap();
    assert_eq!(world.leader().await, 0);
    assert!(world.put("y").await > index);
    assert_eq!(world.journal(0).0.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_falls_back_or_is_named() {
    let mut world = World::cluster(
        1,
        Options {
            on_disk: true,
            tune: SNAPPY,
        },
    )
    .await;
    fill(&world, 1_000).await;
    purged(&world, 0).await;
    let end = world.put("end").await;
    world.node(0).snapshot().await.unwrap();
    let before = world.journal(0);
    world.stop(0).await;
    let mut snapshots: Vec<_> = std::fs::read_dir(world.dir(0).join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let index = |path: &std::path::PathBuf| -> u64 {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .split('-')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    snapshots.sort_by_key(index);
    assert_eq!(snapshots.len(), 2);

    damage(&snapshots[1]);
    world.start(0).unwrap();
    world.leader().await;
    world.agree(0, 0, end).await;
    assert_eq!(world.journal(0), before);
    world.stop(0).await;

    damage(&snapshots[0]);
    let refused = world.start(0).unwrap_err().to_string();
    let file = snapshots[1].file_name().unwrap().to_str().unwrap();
    assert!(
        refused.contains(file) && refused.contains("join again"),
        "{refused}"
    );
}

fn damage(snapshot: &std::path::Path) {
    let file = snapshot.join("state.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_named_and_a_fatal_state_machine_ends_raft() {
    let options = Options {
        on_disk: false,
        tune: |config| {
            config.proposals_max = 4;
            config.proposal_max_bytes = 1_000;
        },
    };
    let world = World::cluster(1, options).await;
    let node = world.node(0);
    let large = node.propose(Bytes::from(vec![0; 1_001])).await.unwrap_err();
    assert_eq!(
        large,
        ProposeError::TooLarge {
            size_bytes: 1_001,
            limit_bytes: 1_000
        }
    );
    let many =
        futures::future::join_all((0..50).map(|_| node.propose(Bytes::from_static(b"x")))).await;
    assert!(many.iter().any(Result::is_ok));
    assert!(many.contains(&Err(ProposeError::Overloaded { limit: 4 })));

    let unknown = node
        .propose(Bytes::from_static(b"poison"))
        .await
        .unwrap_err();
    assert!(matches!(unknown, ProposeError::Unknown(_)), "{unknown:?}");
    let status = world
        .wait_status(0, "fatal", |status| status.fatal.is_some())
        .await;
    assert!(
        status.fatal.as_ref().unwrap().contains("poisoned"),
        "{status:?}"
    );
    let stopped = node.propose(Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(stopped.reason(), "raft_stopped");
}
