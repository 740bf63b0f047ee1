//! The shared half over an engine that writes only when it is told to.

use std::collections::BTreeMap;
use std::sync::mpsc;

use super::*;
use crate::log::EntryKind;

/// Only a writer that died takes this long.
const LONG: Duration = Duration::from_secs(30);

/// What is durable, by offset.
type Disk = Arc<Mutex<BTreeMap<u32, LogEntry>>>;

struct Gated {
    /// One message for each batch that may be written.
    go: mpsc::Receiver<()>,
    disk: Disk,
}

impl Engine for Gated {
    fn commit(&mut self, batch: Batch<'_>) -> io::Result<()> {
        self.go.recv().map_err(io::Error::other)?;
        for queued in batch.queued {
            let Op::Append(entries) = &queued.op else {
                continue;
            };
            for entry in entries {
                let mut disk = self.disk.lock();
                let offset = u32::try_from(disk.len()).unwrap() + 1;
                disk.insert(offset, entry.clone());
                let len = u32::try_from(entry.body.len()).unwrap();
                batch.places.push(Place {
                    unit: 1,
                    offset,
                    len,
                });
            }
        }
        Ok(())
    }

    fn tidy(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct FromDisk(Disk);

impl Fetch for FromDisk {
    fn fetch(&self, first: u64, places: &[Place], out: &mut Vec<LogEntry>) -> io::Result<()> {
        let disk = self.0.lock();
        for (index, place) in (first..).zip(places) {
            assert_eq!(place.unit, 1, "entry {index} is not on disk yet");
            out.push(disk[&place.offset].clone());
        }
        Ok(())
    }
}

struct World {
    /// First, so that a test that fails ends the writer instead of waiting for it.
    go: mpsc::Sender<()>,
    front: Front,
    flushed: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl World {
    /// Nothing stays cached that need not.
    fn new() -> Self {
        let (go, allowed) = mpsc::channel();
        let disk = Disk::default();
        let engine = Gated {
            go: allowed,
            disk: disk.clone(),
        };
        let limits = Limits {
            cache_bytes: 0,
            idle_after: Duration::from_secs(3_600),
        };
        let front = Front::start(
            "test-log",
            Box::new(engine),
            Box::new(FromDisk(disk)),
            Recovered::default(),
            limits,
            Arc::default(),
        );
        Self {
            front: front.unwrap(),
            go,
            flushed: mpsc::channel(),
        }
    }

    fn flushed(&self) -> Flushed {
        let told = self.flushed.0.clone();
        Box::new(move |done| {
            if done.is_ok() {
                told.send(()).ok();
            }
        })
    }

    /// The bodies name what should be read later.
    fn append(&self, first: u64, bodies: &[&str]) {
        let entries = (first..).zip(bodies).map(|(index, body)| LogEntry {
            position: at(index),
            kind: EntryKind::Normal,
            body: Bytes::copy_from_slice(body.as_bytes()),
        });
        self.front
            .append(entries.collect(), self.flushed())
            .unwrap();
    }

    /// The writer has taken what is queued and waits to be allowed.
    fn taken(&self) {
        while !self.front.shared.inner.lock().queue.is_empty() {
            std::thread::yield_now();
        }
    }

    /// Lets the writer write one batch of `calls` calls, and waits until it has.
    fn write(&self, calls: usize) {
        self.go.send(()).unwrap();
        for _ in 0..calls {
            self.flushed.1.recv_timeout(LONG).unwrap();
        }
    }

    fn read(&self, start: u64, end: u64) -> Vec<String> {
        let read = self.front.read(start, end, usize::MAX).unwrap();
        let indexes: Vec<u64> = read.iter().map(|entry| entry.position.index).collect();
        assert_eq!(indexes, (start..end).collect::<Vec<_>>());
        read.iter()
            .map(|entry| String::from_utf8(entry.body.to_vec()).unwrap())
            .collect()
    }

    fn cached(&self) -> usize {
        self.front.shared.inner.lock().cache.len()
    }
}

fn at(index: u64) -> Position {
    Position {
        term: 1,
        leader: 0,
        index,
    }
}

#[test]
fn an_entry_is_kept_in_memory_until_it_is_on_disk() {
    let world = World::new();
    world.append(0, &["a"]);
    world.taken();
    world.append(1, &["b", "c"]);
    world.write(1);
    assert_eq!(world.cached(), 2, "the first needs no memory any more");
    assert_eq!(world.read(0, 3), ["a", "b", "c"]);
    world.write(1);
    assert_eq!(world.cached(), 0);
    assert_eq!(world.read(0, 3), ["a", "b", "c"]);
}

#[test]
fn what_was_cut_off_while_it_was_written_takes_no_place() {
    let world = World::new();
    world.append(0, &["a", "old b", "old c"]);
    world.taken();
    let cut = world.front.truncate_after(Some(at(0)), world.flushed());
    cut.unwrap();
    world.append(1, &["new b"]);
    world.write(1);
    assert_eq!(world.read(0, 2), ["a", "new b"]);
    world.write(2);
    assert_eq!(world.read(0, 2), ["a", "new b"]);
}

#[test]
fn a_cut_in_the_queue_reaches_the_appends_before_it_only() {
    let world = World::new();
    world.append(0, &["a"]);
    world.taken();
    world.append(1, &["old b", "old c"]);
    world
        .front
        .truncate_after(Some(at(1)), world.flushed())
        .unwrap();
    world.append(2, &["new c", "d"]);
    world.write(1);
    world.write(3);
    assert_eq!(world.cached(), 0, "all of them have their places");
    assert_eq!(world.read(0, 4), ["a", "old b", "new c", "d"]);
}

#[test]
fn what_was_purged_while_it_was_written_takes_no_place() {
    let world = World::new();
    world.append(0, &["a", "b", "c"]);
    world.taken();
    world.front.purge(at(0), world.flushed()).unwrap();
    world.write(1);
    assert_eq!(world.read(1, 3), ["b", "c"]);
    world.write(1);
    assert_eq!(world.read(1, 3), ["b", "c"]);
}
