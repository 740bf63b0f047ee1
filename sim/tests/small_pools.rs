//! Three hundred seeds of pools of 3 to 20 agents in which everything goes wrong. `WEFT_SEED` replays one.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 300;

fn one(seed: u64) -> Result<(), String> {
    let told = catch_unwind(AssertUnwindSafe(|| weft_sim::faults::run(seed)));
    told.unwrap_or_else(|_| Err("it panicked".to_owned()))
}

#[test]
fn pools_agree_once_the_faults_are_over() {
    let first = std::env::var("WEFT_SEED").ok().map(|s| s.parse().unwrap());
    let (from, to) = first.map_or((0, SEEDS), |seed| (seed, seed + 1));
    let (next, failures) = (AtomicU64::new(from), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                break;
            }
            if let Err(error) = one(seed) {
                failures.lock().unwrap().push(format!(
                    "{error}\n  replay: WEFT_SEED={seed} cargo test -p weft-sim --test small_pools"
                ));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
