//! Who may speak Raft to this server.
//!
//! Owns: the ids of the membership and of the gossip pool, as they are known here now.
//! Never: proves anything; that a caller is a server of this cluster, TLS does.
//!
//! The pool counts beside the membership because a server's own membership may be old: one that was down
//! while servers were replaced must still listen to a leader it never heard of, and vote for it.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::peer::RaftId;

pub(crate) struct Gate {
    me: RaftId,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    members: BTreeSet<RaftId>,
    pool: BTreeSet<RaftId>,
}

impl Gate {
    pub(crate) fn new(me: RaftId) -> Self {
        Self {
            me,
            known: Mutex::default(),
        }
    }

    pub(super) fn me(&self) -> RaftId {
        self.me
    }

    pub(crate) fn set_members(&self, members: BTreeSet<RaftId>) {
        self.known.lock().members = members;
    }

    pub(crate) fn set_pool(&self, pool: BTreeSet<RaftId>) {
        self.known.lock().pool = pool;
    }

    /// A server without a membership knows nobody: the first to speak to it lets it in.
    pub(super) fn knows(&self, id: RaftId) -> bool {
        let known = self.known.lock();
        known.members.is_empty() || known.members.contains(&id) || known.pool.contains(&id)
    }
}
