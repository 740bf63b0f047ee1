//! Session timers: propose the expiry of sessions that nobody renewed.
//!
//! Owns: watching deadlines in cluster time; re-arming all of them when this leader itself was asleep.
//! Never: ends a session by itself; apply checks the renewal epoch again.

use std::time::Duration;

use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::handle::Server;

const TICK: Duration = Duration::from_millis(250);
/// A longer gap between ticks means that this process did not run: nobody could have renewed.
const ASLEEP: Duration = Duration::from_secs(2);
/// How long one tick may go on proposing what it found due.
const EXPIRING_MAX: Duration = Duration::from_secs(1);
/// Expiries proposed per tick; the rest follows in the next.
const EXPIRIES_PER_TICK: usize = 256;

pub(super) async fn run(server: &Server) {
    let inner = &server.inner;
    loop {
        // Only the sleep is measured: a burst of expiries takes its time and is no pause.
        let before = inner.clock.monotonic();
        tokio::time::sleep(TICK).await;
        let gap = inner.clock.monotonic().saturating_sub(before);
        if gap > ASLEEP {
            tracing::warn!(gap = ?gap, "this leader was paused; session timers start over");
            super::announce(server).await;
        }
        expire_due(server).await;
    }
}

async fn expire_due(server: &Server) {
    let inner = &server.inner;
    let cluster_now = inner.time.now(inner.clock.monotonic(), inner.clock.wall());
    let term = inner.raft.status().term;
    let state = inner.published.load();
    let due: Vec<_> = state
        .session_deadlines()
        .take_while(|due| due.deadline <= cluster_now)
        .take(EXPIRIES_PER_TICK)
        .map(|due| v1::SessionExpire {
            id: due.id,
            renewal_epoch: due.renewal_epoch,
            term,
        })
        .collect();
    drop(state);
    let began = inner.clock.monotonic();
    for expire in due {
        // What was due before a stall may have been renewed in it: look again in the next tick.
        if inner.clock.monotonic().saturating_sub(began) > EXPIRING_MAX {
            return;
        }
        tracing::info!(session.id = %expire.id, "session TTL ran out");
        super::propose(server, "sessions", Command::SessionExpire(expire)).await;
    }
}
