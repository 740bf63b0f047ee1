//! Everything that can happen to servers, in random order under load: nothing acknowledged is lost,
//! no linearizable read is stale.
//!
//! The order comes from a seed, printed at the start: `WEFT_SEED=… cargo test --test trouble`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::Duration;

use support::load::Load;
use support::{World, said, times};

#[test]
fn no_order_of_troubles_loses_a_write() {
    let mut dice = Dice::from_env();
    let mut w = World::servers(3)
        .with("-hcl=autopilot { server_stabilization_time = \"1s\" }")
        .start();
    let load = Load::start(&w, 3);
    for step in 1..=times(6, 60) {
        let (writes, reads) = (load.acknowledged(), load.reads());
        w.until("writes and reads to flow", || {
            (load.acknowledged() > writes + 20 && load.reads() > reads + 20).then_some(())
        });
        let victim = if dice.below(2) == 0 {
            w.leader()
        } else {
            w.follower()
        };
        let trouble = TROUBLES[dice.below(TROUBLES.len())];
        println!("step {step}: {trouble:?} of s{victim}");
        befall(&mut w, trouble, victim);
        w.settle();
        w.until("three voters", || (voters(&w) == 3).then_some(()));
    }
    load.finish(&w).hold();
}

/// What may befall a server.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Kill,
    Freeze,
    Terminate,
    Transfer,
    LoseDisk,
    Leave,
    KillEverybody,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Kill,
    Trouble::Freeze,
    Trouble::Terminate,
    Trouble::Transfer,
    Trouble::LoseDisk,
    Trouble::Leave,
    Trouble::KillEverybody,
];

fn befall(w: &mut World, trouble: Trouble, victim: usize) {
    match trouble {
        Trouble::Kill => {
            w.kill(victim);
            w.restart(victim);
        }
        Trouble::Freeze => {
            w.pause(victim);
            std::thread::sleep(Duration::from_secs(1));
            w.resume(victim);
        }
        Trouble::Terminate => {
            w.stop(victim);
            w.restart(victim);
        }
        Trouble::Transfer => {
            // It may be refused, to the leader itself for one; that is no reason to lose anything.
            let moved = w.cli(victim, &["operator", "raft", "transfer-leader"]);
            println!("{}", said(&moved).trim_end());
        }
        Trouble::LoseDisk => {
            w.kill(victim);
            std::fs::remove_dir_all(w.data_dir(victim)).unwrap();
            w.restart(victim);
        }
        Trouble::Leave => {
            let left = w.cli(victim, &["leave"]);
            assert!(left.status.success(), "{}", said(&left));
            w.wait_exit(victim);
            w.restart(victim);
        }
        Trouble::KillEverybody => {
            for n in w.names() {
                w.kill(n);
            }
            for n in w.names() {
                w.launch(n);
            }
        }
    }
}

fn voters(w: &World) -> usize {
    let Ok(reply) = w.at(w.leader()).get("/v1/operator/raft/configuration") else {
        return 0;
    };
    if reply.status != 200 {
        return 0;
    }
    let configuration = reply.json();
    let servers = configuration["Servers"].as_array().unwrap();
    servers
        .iter()
        .filter(|server| server["Voter"] == true)
        .count()
}

/// SplitMix64: the same seed, the same troubles.
struct Dice(u64);

impl Dice {
    fn from_env() -> Self {
        let seed = match std::env::var("WEFT_SEED") {
            Ok(text) => text.parse().expect("WEFT_SEED is a number"),
            Err(_) => u64::from(std::process::id()),
        };
        println!("replay: WEFT_SEED={seed} cargo test --test trouble");
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        usize::try_from(mixed % bound as u64).expect("below a usize")
    }
}
