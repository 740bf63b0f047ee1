//! Abandoned restores: what a user's restore has staged is given up when nobody goes on with it.
//!
//! Owns: noticing that a staged restore makes no progress.
//! Never: ends one that does; a restore goes on over a change of leader.

use std::time::Duration;

use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::handle::Server;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longer than one write may take, whatever becomes of it. Until then up to 2 GiB are held in memory.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

pub(super) async fn run(server: &Server) {
    let mut progress = Progress::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = server.inner.clock.monotonic();
        let Some(restore_id) = progress.look(now, server.state().staged_restore()) else {
            continue;
        };
        tracing::warn!(restore.id = %restore_id, reason = "restore.abandoned", "nobody went on with this restore; giving it up");
        let abort = Command::RestoreAbort(v1::RestoreAbort { restore_id });
        super::propose(server, "restores", abort).await;
    }
}

/// Since when a restore has stood still.
#[derive(Default)]
struct Progress(Option<(Duration, String, u64)>);

impl Progress {
    /// `staged`: the restore under way and its bytes so far. Answers one that was abandoned.
    fn look(&mut self, now: Duration, staged: Option<(&str, u64)>) -> Option<String> {
        let Some((id, bytes)) = staged else {
            self.0 = None;
            return None;
        };
        match &self.0 {
            Some((since, seen, there)) if seen == id && *there == bytes => {
                (now.saturating_sub(*since) >= ABANDONED_AFTER).then(|| id.to_owned())
            }
            _ => {
                self.0 = Some((now, id.to_owned(), bytes));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restore_that_stands_still_is_given_up() {
        let mut progress = Progress::default();
        let mut look = |seconds, staged| progress.look(Duration::from_secs(seconds), staged);
        assert_eq!(look(0, Some(("r", 10))), None);
        assert_eq!(look(59, Some(("r", 10))), None);
        assert_eq!(look(60, Some(("r", 11))), None, "it goes on");
        assert_eq!(look(119, Some(("r", 11))), None);
        assert_eq!(look(121, Some(("r", 11))), Some("r".into()));
        assert_eq!(look(122, None), None);
        assert_eq!(look(123, Some(("r", 11))), None, "begun anew");
        assert_eq!(look(190, Some(("s", 11))), None, "another");
    }
}
