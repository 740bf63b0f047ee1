//! A thousand agents in one process: the promised figures, on one seed.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use weft_sim::scenario;

const AGENTS: u64 = 1_000;
const SEED: u64 = 0x5eed;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_thousand_agents_notice_joins_and_failures_and_nothing_else() {
    println!("replay: seed {SEED:#x}");
    let mut world = scenario::pool(SEED, AGENTS, |_| {});
    assert_eq!(
        scenario::called_failed(&world, &BTreeSet::new()),
        BTreeSet::new()
    );

    let traffic = scenario::weigh(&mut world, seconds(20));
    println!("idle: {traffic:?}");
    assert!(traffic.sent + traffic.received <= 3_000.0, "{traffic:?}");
    assert!(world.largest_datagram <= 1_353);

    world.network.loss = 0.02;
    let joined = scenario::join(&mut world, |_| {}).unwrap();
    println!("join seen by all and seeing all: {joined:?}");
    assert!(joined <= seconds(3));

    let mut last: Vec<Duration> = Vec::new();
    for _ in 0..3 {
        let victim = scenario::anybody(&mut world);
        let times = scenario::fail(&mut world, victim).unwrap();
        assert_eq!(times.len(), world.running().count(), "everybody says so");
        last.extend(times.last());
        scenario::forget_seen(&mut world);
    }
    last.sort();
    println!("failure known to all: {last:?}");
    assert!(last[0] <= seconds(5) && last[2] <= seconds(10));

    world.run(seconds(20));
    assert_eq!(
        scenario::called_failed(&world, &BTreeSet::new()),
        BTreeSet::new(),
        "nobody who is alive"
    );
}

#[test]
fn nobody_is_passed_over_in_a_pool_of_a_hundred() {
    println!("replay: seed {SEED:#x}");
    let mut world = scenario::pool(SEED, 100, |_| {});
    for _ in 0..40 {
        let joined = scenario::join(&mut world, |_| {}).unwrap();
        assert!(joined <= seconds(3), "{joined:?}");
        let victim = scenario::anybody(&mut world);
        let times = scenario::fail(&mut world, victim).unwrap();
        let last = times.last().copied().unwrap_or_default();
        assert!(last <= seconds(10), "{last:?}");
        scenario::forget_seen(&mut world);
        world.run(seconds(5));
    }
}

#[test]
fn members_that_are_ill_take_nobody_with_them() {
    println!("replay: seed {SEED:#x}");
    let mut world = scenario::pool(SEED, 300, |_| {});
    world.network.loss = 0.02;
    let gray = scenario::gray(&mut world, seconds(240));
    println!("{gray:?}");
    assert!(gray.ill_failed > 0, "the ill ones are ill enough to matter");
    assert_eq!(
        gray.healthy_failed, 0,
        "of {:.0} node-hours",
        gray.node_hours
    );
}
