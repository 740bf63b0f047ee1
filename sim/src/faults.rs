//! Small pools in which everything goes wrong for a while, and must be right again afterwards.
//!
//! Owns: which faults there are, what must hold during them, and what after.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::seq::IteratorRandom;
use weft_gossip::MemberStatus;

use crate::agent::{self, Agent, Told};
use crate::world::World;

const FAULTS_LAST: Duration = Duration::from_secs(40);
const AGREEMENT_LIMIT: Duration = Duration::from_secs(120);
const HOUR_MS: u64 = 3_600_000;
const CALM: Duration = Duration::from_secs(20);

/// One run.
struct Run {
    world: World<Agent>,
    /// The newest life of each that took leave, or was told to by an operator.
    may_be_left: BTreeMap<u64, u64>,
    /// Incarnations observers have told of, by observer's process and member.
    highest: BTreeMap<(usize, u64), u64>,
    /// Entries of each agent's record that were looked at.
    looked: BTreeMap<usize, usize>,
    versions: BTreeMap<u64, u64>,
}

/// Runs the world of `seed`. Errors say what did not hold.
pub fn run(seed: u64) -> Result<(), String> {
    let mut world = World::seed(seed);
    let count = world.rng.random_range(3..=20u64);
    world.network.loss = *[0.0, 0.02, 0.1].iter().choose(&mut world.rng).expect("one");
    let mut run = Run {
        world,
        may_be_left: BTreeMap::new(),
        highest: BTreeMap::new(),
        looked: BTreeMap::new(),
        versions: BTreeMap::new(),
    };
    for n in 0..count {
        run.start(n);
    }
    run.world.run(Duration::from_secs(5));
    let end = run.world.now() + FAULTS_LAST;
    while run.world.now() < end {
        run.fault();
        let pause = run.world.rng.random_range(100..4_000);
        run.world.run(Duration::from_millis(pause));
        run.look()?;
    }
    run.heal();
    run.agree()?;
    run.stay_calm()
}

impl Run {
    fn start(&mut self, n: u64) {
        let mut config = agent::config(n);
        let wall = self.world.now().as_millis() as u64;
        // One start in five finds its clock an hour behind.
        let behind = u64::from(self.world.rng.random_bool(0.2)) * HOUR_MS;
        config.incarnation = 1 + (wall + HOUR_MS).saturating_sub(behind);
        config.timing.reconnect_interval = Duration::from_secs(5);
        config.tags = agent::tags(n, *self.versions.entry(n).or_default());
        let seed = self.world.rng.random();
        let others: Vec<u64> = self.world.running().map(|(n, _)| n as u64).collect();
        let number = usize::try_from(n).expect("small");
        if number < self.world.hosts.len() {
            self.highest.retain(|(by, _), _| *by != number);
            self.looked.remove(&number);
            let now = self.world.time_at(number);
            self.world.restart(number, Agent::start(config, now, seed));
        } else {
            let now = self.world.now();
            self.world
                .add(agent::address(n), Agent::start(config, now, seed));
        }
        let seeds: Vec<u64> = others
            .into_iter()
            .filter(|other| *other != n)
            .sample(&mut self.world.rng, 3);
        self.world.act(number, |agent, now, out| {
            agent
                .core
                .add_seeds(seeds.iter().map(|n| agent::address(*n)));
            if let Some(to) = seeds.first() {
                agent.join(now, agent::address(*to), out);
            }
        });
    }

    fn somebody(&mut self) -> Option<usize> {
        let running = self.world.running().map(|(n, _)| n);
        let running: Vec<usize> = running.collect();
        running.into_iter().choose(&mut self.world.rng)
    }

    fn fault(&mut self) {
        let Some(n) = self.somebody() else {
            return;
        };
        let number = n as u64;
        match self.world.rng.random_range(0..12) {
            0 | 1 if self.world.running().count() > 2 => self.world.crash(n),
            2 | 3 => self.start_one_that_is_down(),
            4 => {
                let time = Duration::from_millis(self.world.rng.random_range(200..6_000));
                self.world.pause(n, time);
            }
            5 => {
                let ahead = Duration::from_millis(self.world.rng.random_range(100..30_000));
                self.world.leap(n, ahead);
            }
            6 => {
                for host in &mut self.world.hosts {
                    host.side = u8::from(self.world.rng.random_bool(0.4));
                }
            }
            7 => self.world.hosts.iter_mut().for_each(|host| host.side = 0),
            8 => self.world.hosts[n].loss = self.world.rng.random_range(0.0..0.5),
            9 => {
                let version = self.versions.entry(number).or_default();
                *version += 1;
                let tags = agent::tags(number, *version);
                self.world.act(n, |agent, now, out| {
                    agent.core.set_tags(now, tags).expect("they fit");
                    agent.carry_out(now, out);
                });
            }
            10 => {
                self.world.act(n, |agent, now, out| {
                    agent.core.leave(now);
                    agent.carry_out(now, out);
                });
                self.world.run(Duration::from_secs(1));
                let life = self.world.hosts[n].node.as_ref();
                let life = life.map_or(0, |agent| agent.core.local().incarnation);
                self.may_be_left.insert(number, life);
                self.world.crash(n);
            }
            _ => self.force_out(n),
        }
    }

    fn start_one_that_is_down(&mut self) {
        let down = self.world.hosts.iter().enumerate();
        let down = down.filter(|(_, host)| host.node.is_none());
        if let Some(n) = down.map(|(n, _)| n).choose(&mut self.world.rng) {
            self.start(n as u64);
        }
    }

    /// An operator at agent `n` forces out somebody it holds for failed, right or wrong.
    fn force_out(&mut self, n: usize) {
        let prune = self.world.rng.random_bool(0.5);
        let failed = self.world.hosts[n].node.as_ref().and_then(|agent| {
            let members = agent.core.members();
            let mut failed = members.iter().filter(|m| m.status == MemberStatus::Failed);
            failed
                .next()
                .map(|m| (m.name.clone(), agent::number(m), m.incarnation))
        });
        if let Some((name, number, life)) = failed {
            let left = self.may_be_left.entry(number).or_default();
            *left = life.max(*left);
            self.world.act(n, |agent, now, out| {
                let done = agent.core.force_leave(now, &name, prune);
                done.expect("it was failed a moment ago");
                agent.carry_out(now, out);
            });
        }
    }

    /// What must hold at any time.
    fn look(&mut self) -> Result<(), String> {
        let hosts = self.world.hosts.len();
        for (n, agent) in self.world.running() {
            let looked = self.looked.entry(n).or_default();
            for seen in &agent.seen[*looked..] {
                let highest = self.highest.entry((n, seen.of)).or_default();
                if seen.incarnation < *highest {
                    return Err(format!(
                        "{n} went back to an earlier life of {}: {} after {highest}",
                        seen.of, seen.incarnation
                    ));
                }
                // Who was forgotten is met anew.
                *highest = if seen.told == Told::Reaped {
                    0
                } else {
                    seen.incarnation
                };
                let left = self.may_be_left.get(&seen.of).copied();
                if seen.told == Told::Left && left.is_none_or(|life| seen.incarnation > life) {
                    return Err(format!(
                        "{n} says that {} has left, which it has not",
                        seen.of
                    ));
                }
            }
            *looked = agent.seen.len();
            let load = agent.core.load();
            if load.members > hosts
                || load.timers > 32 + 4 * hosts
                || load.actions > 0
                || load.updates > 2 * hosts
                || load.notices > 16 + 8 * hosts
                || load.suspicions > hosts
                || load.accusations > hosts * hosts
                || load.errands > 256
            {
                return Err(format!("{n} holds too much: {load:?} in a pool of {hosts}"));
            }
        }
        Ok(())
    }

    fn heal(&mut self) {
        self.world.network.loss = 0.02;
        for host in &mut self.world.hosts {
            (host.side, host.loss) = (0, 0.0);
        }
    }

    /// Whatever differs from the truth, if anything.
    fn discord(&self) -> Option<String> {
        let truth: BTreeMap<u64, (u64, String)> = self
            .world
            .running()
            .map(|(n, agent)| {
                let local = agent.core.local();
                (n as u64, (local.incarnation, local.tag("v").to_owned()))
            })
            .collect();
        for (n, agent) in self.world.running() {
            let members = agent.core.members();
            let alive = members.iter().filter(|m| m.status == MemberStatus::Alive);
            let shown: BTreeMap<u64, (u64, String)> = alive
                .map(|m| (agent::number(m), (m.incarnation, m.tag("v").to_owned())))
                .collect();
            if shown != truth {
                let of = |(n, life): (&u64, &(u64, String))| (*n, life.clone());
                let (shown, truth): (BTreeSet<_>, BTreeSet<_>) = (
                    shown.iter().map(of).collect(),
                    truth.iter().map(of).collect(),
                );
                return Some(format!(
                    "{n} shows {:?}, and lacks {:?}",
                    shown.difference(&truth).collect::<Vec<_>>(),
                    truth.difference(&shown).collect::<Vec<_>>()
                ));
            }
        }
        None
    }

    fn agree(&mut self) -> Result<(), String> {
        let end = self.world.now() + AGREEMENT_LIMIT;
        while let Some(discord) = self.discord() {
            if self.world.now() >= end {
                return Err(format!(
                    "no agreement within {AGREEMENT_LIMIT:?}: {discord}"
                ));
            }
            self.world.run(Duration::from_millis(500));
            self.look()?;
        }
        Ok(())
    }

    /// Agreement lasts, and queues empty themselves.
    fn stay_calm(&mut self) -> Result<(), String> {
        self.world.run(CALM);
        self.look()?;
        if let Some(discord) = self.discord() {
            return Err(format!("agreement did not last: {discord}"));
        }
        Ok(())
    }
}
