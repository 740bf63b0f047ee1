//! Writers and readers beside a test, with an oracle on the client's side.
//!
//! Owns: what was acknowledged, and the judgement of each read against it.
//! Never: takes a write without an answer for a failed one; its outcome is unknown.
//!
//! Each key has one writer, whose values only grow. So a linearizable read that begins after value `v`
//! was acknowledged, or after another such read has seen `v`, may answer `v` or more, never less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Api, World};

/// After this long without an answer a request's outcome is unknown.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Pause after a request that came to nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// Writers and readers at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    keys: Vec<Arc<Key>>,
    threads: Vec<JoinHandle<()>>,
}

struct Key {
    name: String,
    /// Last value acknowledged or seen by a finished linearizable read.
    floor: AtomicU64,
    /// Last value anybody tried to write.
    tried: AtomicU64,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    reads: AtomicU64,
    unanswered: AtomicU64,
    stale: AtomicU64,
}

/// What a load came to.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) reads: u64,
    pub(crate) unanswered_reads: u64,
    pub(crate) stale_reads: u64,
    pub(crate) lost: u64,
}

impl Load {
    /// One writer for each of `writers` keys, and a reader of each key at every server.
    pub(crate) fn start(world: &World, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let apis: Vec<_> = world
            .names()
            .into_iter()
            .map(|n| world.at(n).within(ANSWER_WITHIN))
            .collect();
        let keys: Vec<_> = (0..writers).map(|n| Arc::new(Key::new(n))).collect();
        let mut threads = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let turned: Vec<_> = apis
                .iter()
                .cycle()
                .skip(n)
                .take(apis.len())
                .cloned()
                .collect();
            let (of_writer, stopped) = (key.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                of_writer.write(&stopped, &turned)
            }));
            for api in apis.clone() {
                let (of_reader, stopped) = (key.clone(), stop.clone());
                threads.push(std::thread::spawn(move || of_reader.read(&stopped, &api)));
            }
        }
        Self {
            stop,
            keys,
            threads,
        }
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.keys
            .iter()
            .map(|key| key.acknowledged.load(Ordering::SeqCst))
            .sum()
    }

    /// Linearizable reads answered so far.
    pub(crate) fn reads(&self) -> u64 {
        self.keys
            .iter()
            .map(|key| key.reads.load(Ordering::SeqCst))
            .sum()
    }

    /// Ends the load, reads every key again at every server, and adds up.
    pub(crate) fn finish(self, world: &World) -> Figures {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("writers and readers do not panic");
        }
        world.settle();
        let mut figures = Figures::default();
        for key in &self.keys {
            let floor = key.floor.load(Ordering::SeqCst);
            for n in world.running() {
                let value: u64 = world
                    .at(n)
                    .kv_get(&key.name, "")
                    .map_or(0, |text| text.parse().expect("a number we wrote"));
                assert!(
                    value <= key.tried.load(Ordering::SeqCst),
                    "{} holds {value}, which nobody wrote",
                    key.name
                );
                figures.lost += u64::from(value < floor);
            }
            let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
            figures.acknowledged += read(&key.acknowledged);
            figures.unknown += read(&key.unknown);
            figures.reads += read(&key.reads);
            figures.unanswered_reads += read(&key.unanswered);
            figures.stale_reads += read(&key.stale);
        }
        println!("{figures:?}");
        figures
    }
}

impl Figures {
    /// Nothing lost, nothing stale, and the load was one.
    #[track_caller]
    pub(crate) fn hold(&self) {
        assert_eq!((self.lost, self.stale_reads), (0, 0), "{self:?}");
        assert!(
            self.acknowledged > 0 && self.reads > 0,
            "the load did nothing: {self:?}"
        );
    }
}

impl Key {
    fn new(n: usize) -> Self {
        let zero = AtomicU64::default;
        Self {
            name: format!("load/{n}"),
            floor: zero(),
            tried: zero(),
            acknowledged: zero(),
            unknown: zero(),
            reads: zero(),
            unanswered: zero(),
            stale: zero(),
        }
    }

    fn write(&self, stop: &AtomicBool, apis: &[Api]) {
        let mut turn = 0;
        while !stop.load(Ordering::SeqCst) {
            let value = self.tried.fetch_add(1, Ordering::SeqCst) + 1;
            let answer =
                apis[turn % apis.len()].put(&format!("/v1/kv/{}", self.name), value.to_string());
            if answer.is_ok_and(|reply| reply.status == 200 && reply.text() == "true") {
                self.floor.fetch_max(value, Ordering::SeqCst);
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
            } else {
                self.unknown.fetch_add(1, Ordering::SeqCst);
                turn += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn read(&self, stop: &AtomicBool, api: &Api) {
        while !stop.load(Ordering::SeqCst) {
            let floor = self.floor.load(Ordering::SeqCst);
            let Some(value) = self.look(api) else {
                self.unanswered.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
                continue;
            };
            self.reads.fetch_add(1, Ordering::SeqCst);
            if value < floor {
                println!(
                    "stale read of {}: {value}, though {floor} was acknowledged before",
                    self.name
                );
                self.stale.fetch_add(1, Ordering::SeqCst);
            }
            self.floor.fetch_max(value, Ordering::SeqCst);
        }
    }

    /// One linearizable read; 0 if there is no value yet, `None` if there was no answer.
    fn look(&self, api: &Api) -> Option<u64> {
        let reply = api.get(&format!("/v1/kv/{}?raw", self.name)).ok()?;
        match reply.status {
            200 => Some(reply.text().parse().expect("a number we wrote")),
            404 => Some(0),
            _ => None,
        }
    }
}
