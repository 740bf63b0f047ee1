//! Snapshots and purges under full load, with followers that come and go: openraft issue 2116.
//!
//! Long form: `WEFT_RAFT_SOAK_SECONDS=1800 cargo test --release -p weft-raft --test purge_soak`.

#![allow(
    clippy::unwrap_used,
    reason = "a test file: helpers outside #[test] functions unwrap too"
)]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use weft_raft::{ProposeError, RaftConfig};
use world::{Options, World};

/// Small on purpose: many snapshots and purges, and a follower that is away misses the log's start.
const BUSY: fn(&mut RaftConfig) = |config| {
    config.snapshot_entries = 500;
    config.trailing_entries = 400;
    config.trailing_bytes = 64 * 1024;
};

const WRITERS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purging_under_load_kills_nobody_and_loses_nothing() {
    let seconds = std::env::var("WEFT_RAFT_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    let mut world = World::cluster(
        3,
        Options {
            on_disk: true,
            tune: BUSY,
        },
    )
    .await;
    let ended = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut rounds = 0_u64;
    let mut last_index = 0;
    for away in 0..seconds / 2 {
        let leader = world.leader().await;
        ended.store(false, Ordering::Relaxed);
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                tokio::spawn(write(
                    world.node(leader).clone(),
                    ended.clone(),
                    acknowledged.clone(),
                ))
            })
            .collect();
        // Every other round a follower misses half of it and has to catch up, by log or snapshot.
        let follower = (leader + 1 + (away % 2) as usize) % 3;
        if away % 2 == 1 {
            world.stop(follower).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        if away % 2 == 1 {
            world.start(follower).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        ended.store(true, Ordering::Relaxed);
        for writer in writers {
            last_index = last_index.max(writer.await.unwrap());
        }
        rounds += 1;
        for n in 0..3 {
            assert_eq!(
                world.node(n).status().fatal,
                None,
                "server {n} in round {rounds}"
            );
        }
    }
    let end = world.put("end").await;
    assert!(end > last_index);
    let leader = world.leader().await;
    for n in 0..3 {
        world.agree(n, leader, end).await;
        let status = world
            .wait_status(n, "purged", |status| status.purged > 0)
            .await;
        assert_eq!(status.fatal, None);
    }
    // Unknown outcomes may have been applied as well; nothing acknowledged may be missing.
    assert!(world.journal(leader).0.len() as u64 > acknowledged.load(Ordering::Relaxed));
    println!(
        "{} acknowledged, {} kept",
        acknowledged.load(Ordering::Relaxed),
        world.node(leader).log_usage().entries
    );
}

/// Proposes until told to stop; the highest index that was acknowledged.
async fn write(
    node: weft_raft::RaftNode,
    ended: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> u64 {
    let body = Bytes::from_static(&[b'x'; 100]);
    let mut last = 0;
    while !ended.load(Ordering::Relaxed) {
        match node.propose(body.clone()).await {
            Ok(applied) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                last = last.max(applied.index);
            }
            Err(ProposeError::NotLeader { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(ProposeError::Unknown(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    last
}
