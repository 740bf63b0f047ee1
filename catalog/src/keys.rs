//! Keys of the tables: folded names and composite keys that can be looked up without an allocation.
//!
//! Owns: how a name is folded and how composite keys compare.
//! Never: keeps the written form; records do.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use equivalent::{Comparable, Equivalent};

/// A folded name: the form under which nodes, services, checks and sessions are keyed.
pub(crate) type Name = Arc<str>;

/// Folds a name for comparison. ASCII only: Unicode tables change between compilers, and
/// replicas built by different ones must still agree.
pub(crate) fn fold(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// The folded name as an owned key.
pub(crate) fn name(text: &str) -> Name {
    Arc::from(fold(text).as_ref())
}

/// A key of two names, such as (node, service id).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair(pub(crate) Name, pub(crate) Name);

/// A borrowed [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PairRef<'a>(pub(crate) &'a str, pub(crate) &'a str);

impl Equivalent<Pair> for PairRef<'_> {
    fn equivalent(&self, key: &Pair) -> bool {
        self.compare(key) == Ordering::Equal
    }
}

impl Comparable<Pair> for PairRef<'_> {
    fn compare(&self, key: &Pair) -> Ordering {
        self.0.cmp(&*key.0).then_with(|| self.1.cmp(&*key.1))
    }
}

/// A key of three names, such as (node, service id, check id).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Triple(pub(crate) Name, pub(crate) Name, pub(crate) Name);

/// A borrowed [`Triple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TripleRef<'a>(pub(crate) &'a str, pub(crate) &'a str, pub(crate) &'a str);

impl Equivalent<Triple> for TripleRef<'_> {
    fn equivalent(&self, key: &Triple) -> bool {
        self.compare(key) == Ordering::Equal
    }
}

impl Comparable<Triple> for TripleRef<'_> {
    fn compare(&self, key: &Triple) -> Ordering {
        self.0
            .cmp(&*key.0)
            .then_with(|| self.1.cmp(&*key.1))
            .then_with(|| self.2.cmp(&*key.2))
    }
}
