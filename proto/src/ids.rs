//! Numbers and ids that must not be mixed up.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The bare number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A Raft term (Raft paper, §5.1).
    Term
}
number! {
    /// A position in the Raft log, counted from 0 (openraft counts the first membership entry as 0).
    LogIndex
}
number! {
    /// What users see as `X-Consul-Index`, `CreateIndex` and `ModifyIndex`: a replicated base plus
    /// the log index, so that it never runs back over a restore (DESIGN F8).
    CatalogIndex
}
number! {
    /// Milliseconds since the Unix epoch as the leader stamped them: cluster time.
    UnixMillis
}

/// Mints a random UUID in lower-case text. The only door through which ids enter; cores never call it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn mint() -> String {
    uuid::Uuid::new_v4().to_string()
}
