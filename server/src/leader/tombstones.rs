//! Tombstone collection: forget deletions that no watcher can still be waiting across.
//!
//! Owns: remembering which index was current when, at the granularity below.
//! Never: forgets by itself; the forgetting is a log entry like any other.

use std::collections::VecDeque;
use std::time::Duration;

use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::handle::Server;

/// Granularity of the marks (CONSUL.md B.1: 30 s).
const MARK_EVERY: Duration = Duration::from_secs(30);

pub(super) async fn run(server: &Server) {
    let mut marks: VecDeque<(Duration, u64)> = VecDeque::new();
    loop {
        tokio::time::sleep(MARK_EVERY).await;
        let now = server.inner.clock.monotonic();
        marks.push_back((now, server.state().index().get()));
        let Some(up_to_index) = ripe(&mut marks, now, server.inner.config.tombstone_ttl) else {
            continue;
        };
        if server.state().has_tombstones() {
            super::propose(
                server,
                "tombstones",
                Command::TombstoneReap(v1::TombstoneReap { up_to_index }),
            )
            .await;
        }
    }
}

/// Takes the marks that are older than `ttl`; answers the newest of them.
fn ripe(marks: &mut VecDeque<(Duration, u64)>, now: Duration, ttl: Duration) -> Option<u64> {
    let mut newest = None;
    while let Some((at, index)) = marks.front().copied() {
        if now.saturating_sub(at) < ttl {
            break;
        }
        newest = Some(index);
        marks.pop_front();
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marks_older_than_the_ttl_are_ripe() {
        let s = Duration::from_secs;
        let mut marks = VecDeque::from([(s(0), 10), (s(30), 20), (s(60), 30)]);
        assert_eq!(ripe(&mut marks, s(29), s(30)), None);
        assert_eq!(ripe(&mut marks, s(60), s(30)), Some(20));
        assert_eq!(marks, [(s(60), 30)]);
    }
}
