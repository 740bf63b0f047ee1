//! Finished answers, shared between identical polls.
//!
//! Owns: [`BodyCache`]: bounded bytes, second-chance eviction.
//! Never: keeps a body across a restore, or hands one token's filtered body to another: both stand
//! in the key (DESIGN F4).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::reply::SharedBody;

/// Bytes an entry costs beside its body and key.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// What a body is valid for, beside the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// Index of the answer.
    pub(super) index: u64,
    /// Another epoch means that indexes cannot be compared.
    pub(super) restore_epoch: u64,
    /// The coordinates the rows are sorted by; 0: by none.
    pub(super) coordinates: u64,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    body: Arc<SharedBody>,
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Arc<str>, Entry>,
    queue: VecDeque<Arc<str>>,
    bytes: usize,
}

/// The newest body of each query, as long as there is room.
#[derive(Debug)]
pub(super) struct BodyCache {
    shelf: Mutex<Shelf>,
    max_bytes: usize,
}

impl BodyCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            shelf: Mutex::default(),
            max_bytes,
        }
    }

    /// The body of `query` at `version`, made by `render` unless it is here already.
    /// Two callers may render at once; both answers are the same.
    pub(super) fn get(
        &self,
        query: &str,
        version: Version,
        render: impl FnOnce() -> Vec<u8>,
    ) -> Arc<SharedBody> {
        if let Some(body) = self.find(query, version) {
            return body;
        }
        let body = SharedBody::new(render());
        self.keep(query, version, &body);
        body
    }

    fn find(&self, query: &str, version: Version) -> Option<Arc<SharedBody>> {
        let shelf = self.shelf.lock();
        let entry = shelf
            .entries
            .get(query)
            .filter(|entry| entry.version == version)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&entry.body))
    }

    fn keep(&self, query: &str, version: Version, body: &Arc<SharedBody>) {
        let cost = cost(query, body);
        // One huge answer must not push out everything else.
        if cost > self.max_bytes / 4 {
            return;
        }
        let mut shelf = self.shelf.lock();
        let key: Arc<str> = Arc::from(query);
        let entry = Entry {
            version,
            body: Arc::clone(body),
            used: AtomicBool::new(false),
        };
        match shelf.entries.insert(Arc::clone(&key), entry) {
            Some(old) => shelf.bytes -= self::cost(query, &old.body),
            None => shelf.queue.push_back(key),
        }
        shelf.bytes += cost;
        shelf.evict(self.max_bytes);
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shelf.lock().bytes
    }
}

impl Shelf {
    fn evict(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let Some(key) = self.queue.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get(&key) else {
                continue;
            };
            if entry.used.swap(false, Ordering::Relaxed) {
                self.queue.push_back(key);
                continue;
            }
            self.bytes -= cost(&key, &entry.body);
            self.entries.remove(&key);
        }
    }
}

/// The compressed form is at most about as large as the plain one, and may come later: both count.
fn cost(query: &str, body: &SharedBody) -> usize {
    query.len() * 2 + body.plain().len() * 2 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Version {
        Version {
            index,
            restore_epoch: 1,
            coordinates: 0,
        }
    }

    #[test]
    fn a_body_is_made_once_per_version() {
        let cache = BodyCache::new(1 << 20);
        let mut made = 0;
        for (version, expected) in [
            (at(1), 1),
            (at(1), 1),
            (at(2), 2),
            (
                Version {
                    index: 2,
                    restore_epoch: 2,
                    coordinates: 0,
                },
                3,
            ),
        ] {
            cache.get("q", version, || {
                made += 1;
                vec![b'x'; 10]
            });
            assert_eq!(made, expected);
        }
        cache.get("other", at(2), || {
            made += 1;
            Vec::new()
        });
        assert_eq!(made, 4);
    }

    #[test]
    fn bytes_are_bounded_and_what_is_used_stays() {
        let cache = BodyCache::new(20_000);
        for round in 0..200 {
            cache.get(&format!("q{round}"), at(1), || vec![0; 500]);
            let mut missed = false;
            cache.get("hot", at(1), || {
                missed = true;
                vec![0; 500]
            });
            assert_eq!(missed, round == 0, "round {round}");
            assert!(cache.bytes() <= 20_000);
        }
        cache.get("huge", at(1), || vec![0; 20_000]);
        assert!(cache.find("huge", at(1)).is_none());
    }
}
