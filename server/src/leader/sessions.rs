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
/// Expiries proposed per tick; the rest follows in the next.
const EXPIRIES_PER_TICK: usize = 256;

pub(super) async fn run(server: &Server) {
    let inner = &server.inner;
    let mut last = inner.clock.monotonic();
    loop {
        tokio::time::sleep(TICK).await;
        let now = inner.clock.monotonic();
        if now.saturating_sub(last) > ASLEEP {
            tracing::warn!(gap = ?now.saturating_sub(last), "this leader was paused; session timers start over");
            super::announce(server).await;
        }
        last = inner.clock.monotonic();
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
    for expire in due {
        tracing::info!(session.id = %expire.id, "session TTL ran out");
        super::propose(server, "sessions", Command::SessionExpire(expire)).await;
    }
}
