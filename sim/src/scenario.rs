//! Scenarios that are measured: joining, failing, idling under loss, members that are themselves ill.
//!
//! Owns: how a figure is taken. Tests hold the figures against the goals; the binary prints them.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IteratorRandom;
use weft_gossip::{CoreConfig, MemberStatus};

use crate::agent::{self, Agent, Told};
use crate::world::World;

const STEP: Duration = Duration::from_millis(20);
/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A pool of `count` agents that know each other, as it stands long after everybody has joined.
#[must_use]
pub fn pool(seed: u64, count: u64, change: impl Fn(&mut CoreConfig)) -> World<Agent> {
    let mut world = World::seed(seed);
    let now = world.now();
    let mut agents = Vec::new();
    for n in 0..count {
        let mut config = agent::config(n);
        change(&mut config);
        agents.push(Agent::start(config, now, world.rng.random()));
    }
    // Everybody's knowledge, as two members would tell it who had met all others.
    let told = |by: u64| {
        let mut config = agent::config(by);
        change(&mut config);
        let mut scribe = Agent::start(config, now, by);
        let mut told = None;
        for (n, agent) in (0..count).zip(&agents).filter(|(n, _)| *n != by) {
            let open = agent.core.exchange_open(now, true);
            // The answer to a frame precedes it, so the last is asked for twice.
            for _ in 0..1 + usize::from(n + 2 >= count) {
                told = scribe.core.exchange(now, agent::address(n), &open).frame;
            }
        }
        told
    };
    let by_first = told(0);
    let by_second = told(1);
    for (n, mut agent) in (0..).zip(agents) {
        let (by, told) = if n == 0 {
            (1, &by_second)
        } else {
            (0, &by_first)
        };
        if let Some(told) = told {
            let taken = agent.core.exchange(now, agent::address(by), told);
            taken.outcome.expect("a state of the same pool");
        }
        let n = world.add(agent::address(n), agent);
        world.act(n, |agent, now, out| agent.carry_out(now, out));
    }
    world.run(Duration::from_secs(10));
    forget_seen(&mut world);
    world
}

/// Forgets what all agents told their users so far.
pub fn forget_seen(world: &mut World<Agent>) {
    for host in &mut world.hosts {
        if let Some(agent) = &mut host.node {
            agent.seen.clear();
        }
    }
}

/// Agents that were called failed by somebody since [`forget_seen`], the numbers in `except` left out.
#[must_use]
pub fn called_failed(world: &World<Agent>, except: &BTreeSet<u64>) -> BTreeSet<(u64, u64)> {
    let seen = world.running().flat_map(|(_, agent)| &agent.seen);
    seen.filter(|seen| seen.told == Told::Failed && !except.contains(&seen.of))
        .map(|seen| (seen.of, seen.incarnation))
        .collect()
}

/// A new agent joins by a random member: the time until all see it with its tags, and it sees all.
pub fn join(world: &mut World<Agent>, change: impl Fn(&mut CoreConfig)) -> Option<Duration> {
    let n = world.hosts.len() as u64;
    let mut config = agent::config(n);
    change(&mut config);
    let running: Vec<u64> = world.running().map(|(n, _)| n as u64).collect();
    let to = *running.iter().choose(&mut world.rng)?;
    let fresh = Agent::start(config, world.now(), world.rng.random());
    let number = world.add(agent::address(n), fresh);
    world.act(number, |agent, now, out| {
        agent.join(now, agent::address(to), out);
    });
    world.run_until(LIMIT, STEP, |world| {
        let newcomer = world.hosts[number].node.as_ref();
        running
            .iter()
            .all(|other| newcomer.is_some_and(|agent| agent.sees(*other)))
            && world.running().all(|(_, agent)| agent.sees(n))
    })
}

/// Agent `n` dies without a word: the time until each of the others has said so, in order.
pub fn fail(world: &mut World<Agent>, n: usize) -> Option<Vec<Duration>> {
    let start = world.now();
    world.crash(n);
    world.run_until(LIMIT, STEP, |world| {
        world.running().all(|(_, agent)| {
            agent
                .member(n as u64)
                .is_none_or(|m| m.status == MemberStatus::Failed)
        })
    })?;
    let mut times: Vec<Duration> = world
        .running()
        .filter_map(|(_, agent)| {
            let of = agent.seen.iter().rev();
            let mut of = of.filter(|s| s.told == Told::Failed && s.of == n as u64);
            of.next().map(|seen| seen.at.saturating_sub(start))
        })
        .collect();
    times.sort();
    Some(times)
}

/// A random agent that runs.
pub fn anybody(world: &mut World<Agent>) -> usize {
    let running: Vec<usize> = world.running().map(|(n, _)| n).collect();
    let chosen = running.into_iter().choose(&mut world.rng);
    chosen.expect("somebody runs")
}

/// What an agent sends and receives in a second, on average, all headers counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes sent by an agent in a second.
    pub sent: f64,
    /// Bytes received by an agent in a second.
    pub received: f64,
}

/// Lets `time` pass and weighs the traffic.
pub fn weigh(world: &mut World<Agent>, time: Duration) -> Traffic {
    let sums = |world: &World<Agent>| {
        let add = |(sent, received), host: &crate::world::Host<Agent>| {
            (sent + host.sent, received + host.received)
        };
        world.hosts.iter().fold((0, 0), add)
    };
    let before = sums(world);
    world.run(time);
    let after = sums(world);
    let share = world.running().count() as f64 * time.as_secs_f64();
    Traffic {
        sent: (after.0 - before.0) as f64 / share,
        received: (after.1 - before.1) as f64 / share,
    }
}

/// How members that are ill harm the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gray {
    /// Lives of healthy members that somebody called failed.
    pub healthy_failed: usize,
    /// Lives of ill members that somebody called failed.
    pub ill_failed: usize,
    /// Node-hours of healthy members.
    pub node_hours: f64,
}

/// For `time`, one in twenty agents is ill: half of them starved (asleep for 0.3 to 3 s every few seconds),
/// half behind a link that loses three packets in ten.
pub fn gray(world: &mut World<Agent>, time: Duration) -> Gray {
    let running: Vec<usize> = world.running().map(|(n, _)| n).collect();
    let ill = running
        .iter()
        .copied()
        .sample(&mut world.rng, (running.len() / 20).max(1));
    let (starved, lossy) = ill.split_at(ill.len() / 2);
    for n in lossy {
        world.hosts[*n].loss = 0.3;
    }
    forget_seen(world);
    let end = world.now() + time;
    while world.now() < end {
        for n in starved {
            if world.rng.random_bool(0.25) {
                let asleep = Duration::from_millis(world.rng.random_range(300..3_000));
                world.pause(*n, asleep);
            }
        }
        world.run(Duration::from_secs(1).min(end - world.now()));
    }
    for n in lossy {
        world.hosts[*n].loss = 0.0;
    }
    let ill: BTreeSet<u64> = ill.iter().map(|n| *n as u64).collect();
    let all = called_failed(world, &BTreeSet::new());
    let healthy = all.iter().filter(|(of, _)| !ill.contains(of)).count();
    Gray {
        healthy_failed: healthy,
        ill_failed: all.len() - healthy,
        node_hours: (running.len() - ill.len()) as f64 * time.as_secs_f64() / 3_600.0,
    }
}

/// The value below which `share` of the sorted values lie.
#[must_use]
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(at.saturating_sub(1).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}
