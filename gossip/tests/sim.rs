//! A seeded network in virtual time around real cores: joins, failures, loss, splits, keys.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_gossip::core::{Action, Core};
use weft_gossip::keyring::Framer;
use weft_gossip::{
    CoreConfig, GossipKey, Keyring, Member, MemberEvent, MemberStatus, Tags, UserEvent,
};

const KEY_ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

struct Node {
    core: Core,
    framer: Framer,
    address: SocketAddr,
    events: Vec<(Duration, MemberEvent)>,
    heard: Vec<UserEvent>,
    left: bool,
}

struct World {
    now: Duration,
    rng: StdRng,
    loss: f64,
    nodes: BTreeMap<usize, Node>,
    /// Side of the split each node is on.
    side: BTreeMap<usize, u8>,
    wire: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    biggest: usize,
    undecryptable: u64,
    conflicts: usize,
    taken: Vec<(usize, String, SocketAddr)>,
}

impl World {
    fn seed(seed: u64) -> Self {
        println!("replay: seed {seed}");
        Self {
            now: Duration::from_secs(100),
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            nodes: BTreeMap::new(),
            side: BTreeMap::new(),
            wire: BTreeMap::new(),
            sequence: 0,
            biggest: 0,
            undecryptable: 0,
            conflicts: 0,
            taken: Vec::new(),
        }
    }

    fn config(n: usize, host: usize) -> CoreConfig {
        let address = SocketAddr::from(([10, 0, (host >> 8) as u8, host as u8], 8301));
        let id = format!("00000000-0000-0000-0000-{n:012x}");
        let mut config = CoreConfig::new(&format!("node-{n}"), &id, "dc1", address);
        config.tags = Tags::from([
            ("role".into(), "consul".into()),
            ("n".into(), n.to_string()),
        ]);
        config
    }

    fn start(&mut self, n: usize, config: CoreConfig, key: Option<&str>) {
        let ring = key.map(|k| Keyring::new(GossipKey::parse(k).unwrap()));
        let node = Node {
            framer: Framer::new(&config.datacenter, ring, true, true),
            address: config.advertise,
            core: Core::new(config, self.now, self.rng.random()).unwrap(),
            events: Vec::new(),
            heard: Vec::new(),
            left: false,
        };
        self.nodes.insert(n, node);
        self.side.insert(n, 0);
        self.perform(n);
    }

    fn servers(&mut self, count: usize) {
        for n in 1..=count {
            self.start(n, Self::config(n, n), None);
            if n > 1 {
                self.join(n, 1).unwrap();
            }
        }
    }

    fn at(&self, address: SocketAddr) -> Option<usize> {
        self.nodes
            .iter()
            .find(|(_, node)| node.address == address)
            .map(|(n, _)| *n)
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        self.side[&a] == self.side[&b]
    }

    /// A TCP exchange, both ways; `Err` says why it failed.
    fn join(&mut self, from: usize, to: usize) -> Result<(), String> {
        if !self.connected(from, to) || self.nodes[&to].left {
            return Err("unreachable".into());
        }
        let (now, there, back) = (self.now, self.nodes[&to].address, self.nodes[&from].address);
        let carry = |framer: &Framer, other: &Framer, core: &Core| {
            let frame = framer.seal(&core.sync_state(now).encode()).unwrap();
            other.open(&frame).map_err(|e| e.reason().to_owned())
        };
        let push = carry(
            &self.nodes[&from].framer,
            &self.nodes[&to].framer,
            &self.nodes[&from].core,
        )?;
        let pull = carry(
            &self.nodes[&to].framer,
            &self.nodes[&from].framer,
            &self.nodes[&to].core,
        )?;
        let state = |bytes: &[u8]| weft_gossip::core::SyncState::decode(bytes).unwrap();
        let merged = self
            .nodes
            .get_mut(&to)
            .unwrap()
            .core
            .merge(now, back, state(&push));
        self.perform(to);
        merged.map_err(|e| e.to_string())?;
        let merged = self
            .nodes
            .get_mut(&from)
            .unwrap()
            .core
            .merge(now, there, state(&pull));
        self.perform(from);
        merged.map_err(|e| e.to_string())
    }

    fn perform(&mut self, n: usize) {
        while let Some(action) = self.nodes.get_mut(&n).and_then(|node| node.core.poll()) {
            match action {
                Action::Send { to, body } => self.send(n, to, &body),
                Action::Sync { peer } => {
                    if let Some(to) = self.at(peer) {
                        let _ = self.join(n, to);
                    }
                }
                Action::Event(event) => self
                    .nodes
                    .get_mut(&n)
                    .unwrap()
                    .events
                    .push((self.now, event)),
                Action::UserEvent(event) => self.nodes.get_mut(&n).unwrap().heard.push(event),
                Action::NameTaken { name, holder } => {
                    self.taken.push((n, name, holder));
                }
                Action::LeaveDone => self.nodes.get_mut(&n).unwrap().left = true,
                Action::NameConflict { .. } | Action::IdConflict { .. } => self.conflicts += 1,
            }
        }
    }

    fn send(&mut self, n: usize, to: SocketAddr, body: &[u8]) {
        let frame = self.nodes[&n].framer.seal(body).unwrap();
        self.biggest = self.biggest.max(frame.len());
        if self.rng.random_bool(self.loss) {
            return;
        }
        self.sequence += 1;
        let at = self.now + Duration::from_micros(self.rng.random_range(200..3_000));
        self.wire
            .insert((at, self.sequence), (self.nodes[&n].address, to, frame));
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, frame: &[u8]) {
        let Some(target) = self.at(to) else { return };
        if self
            .at(from)
            .is_some_and(|source| !self.connected(source, target))
        {
            return;
        }
        let now = self.now;
        let node = self.nodes.get_mut(&target).unwrap();
        match node.framer.open(frame) {
            Ok(body) => {
                node.core.handle_packet(now, from, &body);
                self.perform(target);
            }
            Err(_) => self.undecryptable += 1,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let packet = self.wire.keys().next().map(|(at, _)| *at);
            let timers = self
                .nodes
                .iter()
                .filter_map(|(n, node)| Some((node.core.next_timer()?, *n)));
            let timer = timers.min();
            let next = [packet, timer.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if packet == Some(next) {
                let (_, (from, to, frame)) = self.wire.pop_first().unwrap();
                self.deliver(from, to, &frame);
            } else if let Some((_, n)) = timer {
                let now = self.now;
                self.nodes.get_mut(&n).unwrap().core.handle_timers(now);
                self.perform(n);
            }
        }
        self.now = end;
    }

    fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now < start + limit,
                "not reached within {limit:?}:\n{}",
                self.shortfalls()
            );
            self.run(Duration::from_millis(100));
        }
        self.now - start
    }

    /// What each node holds that is not an alive member with its tags.
    fn shortfalls(&self) -> String {
        let row = |m: &Member| {
            format!(
                " {}@{}={},{}tags",
                m.name,
                m.socket_address(),
                m.status,
                m.tags.len()
            )
        };
        let odd = |m: &Member| {
            m.status != MemberStatus::Alive || m.tags.is_empty() || self.nodes.len() < 12
        };
        let line = |(n, node): (&usize, &Node)| {
            let members = node.core.members();
            let odd: String = members.iter().filter(|m| odd(m)).map(|m| row(m)).collect();
            format!("{n}: {} members{odd}\n", members.len())
        };
        self.nodes.iter().map(line).collect()
    }

    fn kill(&mut self, n: usize) {
        self.nodes.remove(&n);
    }

    fn view(&self, n: usize) -> BTreeMap<String, (String, MemberStatus)> {
        let row = |m: &Member| (m.name.clone(), (m.socket_address().to_string(), m.status));
        self.nodes[&n]
            .core
            .members()
            .iter()
            .map(|m| row(m))
            .collect()
    }

    fn status(&self, on: usize, of: usize) -> Option<MemberStatus> {
        self.view(on)
            .get(&format!("node-{of}"))
            .map(|(_, status)| *status)
    }

    /// Everybody that runs sees exactly these alive, with their tags.
    fn all_see_alive(&self, expected: &[usize]) -> bool {
        let names: BTreeSet<String> = expected.iter().map(|n| format!("node-{n}")).collect();
        self.nodes.values().all(|node| {
            let alive = node.core.members();
            let alive: Vec<_> = alive
                .iter()
                .filter(|m| m.status == MemberStatus::Alive)
                .collect();
            alive
                .iter()
                .all(|m| m.name == format!("node-{}", m.tag("n")))
                && alive
                    .iter()
                    .map(|m| m.name.clone())
                    .collect::<BTreeSet<_>>()
                    == names
        })
    }

    fn count(&self, wanted: fn(&MemberEvent) -> bool) -> usize {
        self.nodes
            .values()
            .flat_map(|node| &node.events)
            .filter(|(_, e)| wanted(e))
            .count()
    }
}

fn is_failed(event: &MemberEvent) -> bool {
    matches!(event, MemberEvent::Failed(_))
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn pools_of_3_10_and_100_join_fully_with_tags() {
    for count in [3, 10, 100] {
        let mut world = World::seed(count as u64);
        world.servers(count);
        let all: Vec<usize> = (1..=count).collect();
        let took = world.run_until(seconds(15), |w| w.all_see_alive(&all));
        println!(
            "{count} nodes: all see all after {took:?}, biggest datagram {}",
            world.biggest
        );
        world.run(seconds(60));
        assert!(world.all_see_alive(&all));
        assert_eq!(world.count(is_failed), 0);
        assert!(
            world.biggest <= weft_gossip::config::DATAGRAM_MAX_BYTES,
            "{}",
            world.biggest
        );
    }
}

#[test]
fn a_crash_is_seen_by_all_in_time() {
    for (count, limit) in [(3, 6), (5, 7), (50, 12)] {
        for seed in 0..5 {
            let mut world = World::seed(seed);
            world.servers(count);
            world.run(seconds(20));
            world.kill(2);
            let unaware = |w: &World| {
                let lacks = |n: &&usize| w.status(**n, 2) != Some(MemberStatus::Failed);
                w.nodes.keys().filter(lacks).count()
            };
            // Gossip may pass by one of many; it finds out by itself, or by an exchange of states.
            let took = world.run_until(seconds(limit), |w| unaware(w) <= count / 50);
            world.run_until(seconds(75), |w| unaware(w) == 0);
            println!("{count} nodes: crash seen by all after {took:?}");
        }
    }
}

#[test]
fn two_percent_loss_fails_nobody() {
    for (count, minutes) in [(5, 20), (30, 4)] {
        let mut world = World::seed(7);
        world.servers(count);
        world.loss = 0.02;
        world.run(seconds(60 * minutes));
        assert_eq!(world.count(is_failed), 0);
        assert!(world.all_see_alive(&(1..=count).collect::<Vec<_>>()));
    }
}

#[test]
fn leaving_is_not_failing() {
    let mut world = World::seed(3);
    world.servers(5);
    world.run(seconds(5));
    let now = world.now;
    world.nodes.get_mut(&4).unwrap().core.leave(now);
    world.perform(4);
    world.run_until(seconds(3), |w| w.nodes[&4].left);
    world.kill(4);
    let took = world.run_until(seconds(3), |w| {
        w.nodes
            .keys()
            .all(|n| w.status(*n, 4) == Some(MemberStatus::Left))
    });
    println!("leave seen by all after {took:?}");
    world.run(seconds(120));
    assert_eq!(world.count(is_failed), 0);
    assert!(
        world
            .nodes
            .keys()
            .all(|n| world.status(*n, 4) == Some(MemberStatus::Left)),
        "it stays left"
    );

    let mut again = World::config(4, 4);
    again.incarnation = 2;
    world.start(4, again, None);
    world.join(4, 1).unwrap();
    world.run_until(seconds(5), |w| w.all_see_alive(&[1, 2, 3, 4, 5]));
}

#[test]
fn a_failed_member_can_be_forced_out_and_pruned() {
    let mut world = World::seed(4);
    world.servers(4);
    world.run(seconds(5));
    world.kill(3);
    let now = world.now;
    let alive = world
        .nodes
        .get_mut(&1)
        .unwrap()
        .core
        .force_leave(now, "node-2", false)
        .unwrap_err();
    assert!(alive.to_string().contains("10.0.0.2:8301"), "{alive}");
    world.run_until(seconds(8), |w| w.status(1, 3) == Some(MemberStatus::Failed));
    world.run(seconds(2));
    let now = world.now;
    world
        .nodes
        .get_mut(&1)
        .unwrap()
        .core
        .force_leave(now, "node-3", false)
        .unwrap();
    world.perform(1);
    world.run_until(seconds(2), |w| {
        w.nodes
            .keys()
            .all(|n| w.status(*n, 3) == Some(MemberStatus::Left))
    });
    let now = world.now;
    world
        .nodes
        .get_mut(&2)
        .unwrap()
        .core
        .force_leave(now, "node-3", true)
        .unwrap();
    world.perform(2);
    world.run_until(seconds(2), |w| {
        w.nodes.keys().all(|n| w.status(*n, 3).is_none())
    });
    world.run(seconds(120));
    assert!(
        world.nodes.keys().all(|n| world.status(*n, 3).is_none()),
        "hearsay does not bring it back"
    );
    let now = world.now;
    assert!(
        world
            .nodes
            .get_mut(&1)
            .unwrap()
            .core
            .force_leave(now, "node-3", true)
            .is_err()
    );
}

#[test]
fn a_restart_with_a_new_address_updates_everybody() {
    let mut world = World::seed(5);
    world.servers(5);
    world.run(seconds(10));
    world.kill(2);
    let mut moved = World::config(2, 200);
    moved.incarnation = 9;
    world.start(2, moved, None);
    world.join(2, 1).unwrap();
    let here = |w: &World, n: usize| {
        w.view(n)["node-2"] == ("10.0.0.200:8301".to_owned(), MemberStatus::Alive)
    };
    world.run_until(seconds(5), |w| w.nodes.keys().all(|n| here(w, *n)));
    world.run(seconds(60));
    assert!(world.all_see_alive(&[1, 2, 3, 4, 5]));
    assert_eq!(
        world.count(is_failed),
        0,
        "the move was quicker than the suspicion"
    );
}

#[test]
fn servers_restarted_with_new_addresses_find_each_other_by_one_seed_that_works() {
    let mut world = World::seed(6);
    world.servers(3);
    world.run(seconds(10));
    let known: Vec<_> = world.nodes[&2]
        .core
        .known_addresses()
        .into_iter()
        .map(|(_, a)| a)
        .collect();
    assert_eq!(known.len(), 2);
    for n in 1..=3 {
        world.kill(n);
    }
    for n in 1..=3 {
        let mut config = World::config(n, if n == 3 { 3 } else { 100 + n });
        config.incarnation = 2;
        world.start(n, config, None);
        world
            .nodes
            .get_mut(&n)
            .unwrap()
            .core
            .add_seeds(known.clone());
    }
    let took = world.run_until(seconds(60), |w| w.all_see_alive(&[1, 2, 3]));
    println!("reformed after {took:?}");
}

#[test]
fn a_clock_that_ran_back_does_not_lock_a_node_out() {
    let mut world = World::seed(8);
    let mut ahead = World::config(2, 2);
    ahead.incarnation = 1_000_000;
    world.start(1, World::config(1, 1), None);
    world.start(2, ahead, None);
    world.start(3, World::config(3, 3), None);
    world.join(2, 1).unwrap();
    world.join(3, 1).unwrap();
    world.run(seconds(5));
    world.kill(2);
    world.start(2, World::config(2, 20), None);
    world.join(2, 1).unwrap();
    let moved = |w: &World, n: usize| {
        w.view(n)["node-2"] == ("10.0.0.20:8301".to_owned(), MemberStatus::Alive)
    };
    let took = world.run_until(seconds(15), |w| w.nodes.keys().all(|n| moved(w, *n)));
    println!("accepted after {took:?}");
    world.run(seconds(60));
    assert!(world.all_see_alive(&[1, 2, 3]));
}

#[test]
fn a_split_heals() {
    for (count, cut) in [(3, 1), (5, 2), (20, 8)] {
        let mut world = World::seed(count as u64);
        world.servers(count);
        world.run(seconds(10));
        for n in 1..=cut {
            world.side.insert(n, 1);
        }
        world.run(seconds(60));
        assert_eq!(world.status(1, count), Some(MemberStatus::Failed));
        assert_eq!(world.status(count, 1), Some(MemberStatus::Failed));
        for n in 1..=cut {
            world.side.insert(n, 0);
        }
        let all: Vec<usize> = (1..=count).collect();
        let took = world.run_until(seconds(90), |w| w.all_see_alive(&all));
        println!("{count} nodes, {cut} cut off: healed after {took:?}");
        let before = world.count(is_failed);
        world.run(seconds(60));
        assert!(world.all_see_alive(&all));
        assert_eq!(world.count(is_failed), before, "no flapping after the heal");
    }
}

#[test]
fn another_key_or_datacenter_stays_out() {
    let mut world = World::seed(9);
    world.start(1, World::config(1, 1), Some(KEY_ONE));
    world.start(2, World::config(2, 2), Some(KEY_ONE));
    world.start(3, World::config(3, 3), Some(KEY_TWO));
    world.start(4, World::config(4, 4), None);
    world.join(2, 1).unwrap();
    assert_eq!(world.join(3, 1), Err("decrypt".into()));
    assert_eq!(world.join(4, 1), Err("clear".into()));
    let state = world.nodes[&1].core.sync_state(world.now);
    let seed = world.nodes[&1].address;
    world
        .nodes
        .get_mut(&3)
        .unwrap()
        .core
        .merge(world.now, seed, state)
        .unwrap();
    world.perform(3);
    world.run(seconds(30));
    assert!(world.undecryptable > 0);
    assert_eq!(world.view(1).len(), 2, "{:?}", world.view(1));

    let mut other = World::config(5, 5);
    other.datacenter = "dc2".into();
    world.start(5, other, Some(KEY_ONE));
    assert_eq!(world.join(5, 1), Err("foreign".into()));
    let state = world.nodes[&5].core.sync_state(world.now);
    let error = world
        .nodes
        .get_mut(&1)
        .unwrap()
        .core
        .merge(world.now, seed, state)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"dc2\"") && error.contains("\"dc1\"") && error.contains("node-5"),
        "{error}"
    );
}

#[test]
fn tags_change_everywhere_and_reach_late_joiners() {
    let mut world = World::seed(10);
    world.servers(10);
    world.run(seconds(5));
    let now = world.now;
    let mut tags = World::config(4, 4).tags;
    tags.insert("expect".into(), "3".into());
    world
        .nodes
        .get_mut(&4)
        .unwrap()
        .core
        .set_tags(now, tags)
        .unwrap();
    let has = |w: &World, n: usize| {
        w.nodes[&n]
            .core
            .members()
            .iter()
            .any(|m| m.name == "node-4" && m.tag("expect") == "3")
    };
    world.run_until(seconds(5), |w| w.nodes.keys().all(|n| has(w, *n)));
    world.run(seconds(60));
    world.start(11, World::config(11, 11), None);
    world.join(11, 7).unwrap();
    assert!(has(&world, 11));
    let all: Vec<usize> = (1..=11).collect();
    world.run_until(seconds(5), |w| w.all_see_alive(&all));
}

#[test]
fn of_two_live_nodes_with_one_name_the_first_is_shown() {
    let mut world = World::seed(11);
    world.servers(3);
    let mut twin = World::config(9, 9);
    twin.name = "node-2".into();
    world.start(9, twin, None);
    world.join(9, 1).unwrap();
    world.run(seconds(5));
    assert!(world.conflicts > 0);
    assert_eq!(world.view(1)["node-2"].0, "10.0.0.2:8301");
    world.kill(2);
    let taken =
        |w: &World| w.view(1)["node-2"] == ("10.0.0.9:8301".to_owned(), MemberStatus::Alive);
    world.run_until(seconds(10), taken);
}

#[test]
fn who_comes_late_with_a_taken_name_is_told_to_go_and_nobody_else() {
    let mut world = World::seed(61);
    world.servers(5);
    world.run(seconds(200));
    let mut twin = World::config(9, 9);
    twin.name = "node-2".into();
    world.start(9, twin, None);
    world.join(9, 1).unwrap();
    world.run(seconds(8));
    assert!(world.taken.is_empty(), "the holder may be about to fail");
    let insights = world.nodes[&1].core.insights(world.now);
    let of_two = insights.iter().find(|i| i.name == "node-2").unwrap();
    assert_eq!(of_two.rivals, [World::config(9, 9).advertise]);
    world.run(seconds(20));
    let holder = World::config(2, 2).advertise;
    assert_eq!(world.taken, [(9, "node-2".to_owned(), holder)]);

    // A holder that dies meanwhile leaves its name to whoever asks.
    world.kill(9);
    world.run(seconds(10));
    let mut heir = World::config(8, 8);
    heir.name = "node-3".into();
    world.kill(3);
    world.start(8, heir, None);
    world.join(8, 1).unwrap();
    world.run(seconds(40));
    assert_eq!(world.taken.len(), 1);
    assert_eq!(world.view(1)["node-3"].0, "10.0.0.8:8301");
}

#[test]
fn an_account_says_who_accuses_and_how_it_was_probed() {
    let mut world = World::seed(62);
    world.servers(6);
    world.run(seconds(30));
    world.kill(4);
    let account = |w: &World| {
        let insights = w.nodes[&1].core.insights(w.now);
        insights.into_iter().find(|i| i.name == "node-4").unwrap()
    };
    world.run_until(seconds(10), |w| {
        account(w).suspected && !account(w).accusers.is_empty()
    });
    let seen = account(&world);
    assert!(seen.accusers[0].0.starts_with("node-"), "{seen:?}");
    assert_eq!(seen.status, MemberStatus::Alive);
    let well = world.nodes[&1].core.insights(world.now);
    let well = well.iter().find(|i| i.name == "node-5").unwrap();
    assert!(!well.suspected && well.accusers.is_empty());
    let (ago, took) = well.probed.unwrap();
    assert!(ago < seconds(10) && took.unwrap() < Duration::from_millis(7));
    world.run_until(seconds(10), |w| account(w).status == MemberStatus::Failed);
    assert!(account(&world).since < seconds(1));
    world.run(seconds(20));
    assert!(!account(&world).suspected);
    assert!(
        !account(&world).accusers.is_empty(),
        "who found it dead is still told"
    );
}

#[test]
fn the_table_is_bounded() {
    let mut world = World::seed(12);
    let mut small = World::config(1, 1);
    small.members_max = 5;
    world.start(1, small, None);
    for n in 2..=12 {
        world.start(n, World::config(n, n), None);
        world.join(n, if n == 2 { 1 } else { 2 }).unwrap();
    }
    world.run(seconds(40));
    assert!(world.view(1).len() <= 6, "{}", world.view(1).len());
    assert!(world.nodes[&1].core.members_refused() > 0);
}

#[test]
fn nonsense_is_refused_and_harms_nobody() {
    let mut world = World::seed(13);
    world.servers(3);
    world.run(seconds(5));
    let from = world.nodes[&2].address;
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..20_000u32 {
        let length = rng.random_range(0..200);
        let mut body: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        if let Some(kind) = body.first_mut() {
            *kind = (round % 3) as u8;
        }
        let now = world.now;
        world
            .nodes
            .get_mut(&1)
            .unwrap()
            .core
            .handle_packet(now, from, &body);
        world.perform(1);
    }
    world.run(seconds(60));
    assert!(world.all_see_alive(&[1, 2, 3]), "{:?}", world.view(1));
}

#[test]
fn two_processes_with_one_node_id_are_reported_and_do_not_storm() {
    let mut world = World::seed(14);
    world.servers(4);
    world.run(seconds(5));
    let mut copy = World::config(2, 99);
    copy.incarnation = 5;
    world.start(99, copy, None);
    world.join(99, 1).unwrap();
    let before = world.sequence;
    world.run(seconds(60));
    let rate = (world.sequence - before) / 60;
    println!("{} datagrams a second in a pool with a copied id", rate);
    assert!(world.conflicts > 0, "nobody was told");
    assert!(rate < 1_000, "{rate} datagrams a second");
    world.kill(99);
    world.run(seconds(60));
    assert!(world.all_see_alive(&[1, 2, 3, 4]), "{}", world.shortfalls());
    assert_eq!(world.view(1)["node-2"].0, "10.0.0.2:8301");
}

impl World {
    fn fire(&mut self, n: usize, text: &str) -> Result<u64, weft_gossip::GossipError> {
        let (now, id) = (self.now, self.rng.random());
        let core = &mut self.nodes.get_mut(&n).unwrap().core;
        let fired = core.fire(now, id, text.as_bytes().to_vec());
        self.perform(n);
        fired
    }

    /// What node `n` heard, in Lamport's order.
    fn heard(&self, n: usize) -> Vec<String> {
        let mut heard: Vec<_> = self.nodes[&n].heard.iter().collect();
        heard.sort_by_key(|event| event.time);
        heard
            .iter()
            .map(|event| String::from_utf8(event.body.clone()).unwrap())
            .collect()
    }
}

#[test]
fn everybody_hears_an_event_once_although_packets_are_lost() {
    for (seed, count) in [(40, 3), (41, 30), (42, 100)] {
        let mut world = World::seed(seed);
        world.loss = 0.05;
        world.servers(count);
        let all: Vec<usize> = (1..=count).collect();
        world.run_until(seconds(120), |w| w.all_see_alive(&all));
        let first = world.fire(1, "first").unwrap();
        let took = world.run_until(seconds(120), |w| {
            all.iter().all(|n| w.heard(*n) == ["first"])
        });
        let second = world.fire(count, "second").unwrap();
        assert!(second > first, "whoever heard the first fires a later one");
        world.run_until(seconds(120), |w| {
            all.iter().all(|n| w.heard(*n) == ["first", "second"])
        });
        world.run(seconds(90));
        for n in &all {
            assert_eq!(world.heard(*n), ["first", "second"], "node {n}");
        }
        println!("{count} nodes: all heard after {took:?}");
        assert!(world.biggest <= 1_400);
    }
}

#[test]
fn who_joins_later_hears_only_what_is_fired_later() {
    let mut world = World::seed(43);
    world.servers(3);
    world.run_until(seconds(15), |w| w.all_see_alive(&[1, 2, 3]));
    world.fire(2, "before").unwrap();
    world.run(seconds(2));
    world.start(4, World::config(4, 4), None);
    world.fire(4, "alone").unwrap();
    assert_eq!(world.heard(4), ["alone"], "also where there is nobody else");
    world.join(4, 1).unwrap();
    world.run_until(seconds(15), |w| w.all_see_alive(&[1, 2, 3, 4]));
    world.fire(3, "after").unwrap();
    world.run(seconds(90));
    assert_eq!(world.heard(4), ["alone", "after"]);
    assert!(world.heard(1).ends_with(&["after".to_owned()]));
}

#[test]
fn who_was_cut_off_hears_what_it_missed() {
    let mut world = World::seed(44);
    world.servers(5);
    let all = [1, 2, 3, 4, 5];
    world.run_until(seconds(15), |w| w.all_see_alive(&all));
    world.run(seconds(60));
    world.side.insert(5, 1);
    world.run(seconds(1));
    for n in 0..20 {
        world.fire(1, &format!("missed-{n:02}")).unwrap();
    }
    world.run(seconds(60));
    assert!(world.heard(5).is_empty());
    world.side.insert(5, 0);
    world.run_until(seconds(120), |w| w.heard(5).len() == 20);
    assert_eq!(world.heard(5), world.heard(2));
}

#[test]
fn a_storm_of_events_is_refused_at_its_source_and_what_was_taken_arrives() {
    let mut world = World::seed(45);
    world.servers(3);
    world.run_until(seconds(15), |w| w.all_see_alive(&[1, 2, 3]));
    world.run(seconds(30));
    let mut taken = Vec::new();
    let refusal = loop {
        let text = format!("{:0>400}", taken.len());
        match world.fire(1, &text) {
            Ok(_) => taken.push(text),
            Err(error) => break error,
        }
        assert!(taken.len() < 2_000, "never refused");
    };
    assert_eq!(refusal.reason(), "gossip.events_waiting");
    assert!(refusal.to_string().contains("limit 256"), "{refusal}");
    world.run_until(seconds(120), |w| {
        [2, 3].iter().all(|n| w.heard(*n).len() == taken.len())
    });
    assert!(world.heard(2) == taken && world.heard(3) == taken);
    world.run(seconds(90));
    assert!(world.fire(1, "room again").is_ok());
    assert_eq!(world.count(is_failed), 0);
}

#[test]
fn everybody_learns_where_it_lies() {
    let mut world = World::seed(50);
    world.servers(8);
    world.start(
        9,
        CoreConfig {
            coordinates: false,
            ..World::config(9, 9)
        },
        None,
    );
    world.join(9, 1).unwrap();
    world.run(seconds(600));
    assert!(world.nodes[&9].core.coordinate().is_none());
    // A packet takes 0.2 to 3 ms one way, so a round trip 3.2 ms at the median.
    let place = |n: usize| world.nodes[&n].core.coordinate().unwrap();
    for a in 1..=8 {
        assert!(place(a).error < 0.8, "{:?}", place(a));
        assert!(world.nodes[&a].core.coordinate_counts().learned > 100);
        for b in 1..a {
            let rtt = place(a).distance(&place(b));
            assert!((0.001..0.010).contains(&rtt), "{a} to {b}: {rtt}");
        }
    }
    assert_eq!(world.count(is_failed), 0);
}

#[test]
fn a_place_that_was_not_asked_for_moves_nobody() {
    let mut world = World::seed(51);
    world.servers(2);
    let far = weft_proto::coordinate::Coordinate {
        vector: [1.0; 8],
        ..Default::default()
    };
    let mut body = vec![2];
    body.extend([9; 16]);
    body.extend(far.numbers().iter().flat_map(|x| x.to_le_bytes()));
    let (now, from) = (world.now, SocketAddr::from(([10, 0, 0, 99], 8301)));
    let core = &mut world.nodes.get_mut(&1).unwrap().core;
    let before = core.coordinate();
    assert!(core.handle_packet(now, from, &body), "it is understood");
    body.pop();
    assert!(!core.handle_packet(now, from, &body), "cut short");
    assert_eq!(core.coordinate(), before);
}
