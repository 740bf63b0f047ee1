//! Ids of services and checks, compared as the catalog compares them.
//!
//! Owns: [`ById`], a map whose keys differ by more than letter case, and [`same_id`].
//! Never: changes how an id is written; the values keep that.
//!
//! The catalog keys instances and checks by the id in lower case. Two entries here that are one there
//! would overwrite each other at every comparison, and removing one would remove both; so they are
//! one here as well, and the later registration replaces the earlier.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The form under which an id is a key. ASCII only, as in the catalog.
pub(super) fn fold(id: &str) -> Cow<'_, str> {
    if id.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(id.to_ascii_lowercase())
    } else {
        Cow::Borrowed(id)
    }
}

/// Whether two ids name one service or check.
pub(super) fn same_id(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// A map by id. Iteration gives folded ids, in their order.
#[derive(Clone, Debug)]
pub(super) struct ById<V>(BTreeMap<String, V>);

impl<V> Default for ById<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> ById<V> {
    pub(super) fn get(&self, id: &str) -> Option<&V> {
        self.0.get(fold(id).as_ref())
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut V> {
        self.0.get_mut(fold(id).as_ref())
    }

    pub(super) fn contains_key(&self, id: &str) -> bool {
        self.0.contains_key(fold(id).as_ref())
    }

    pub(super) fn insert(&mut self, id: &str, value: V) -> Option<V> {
        self.0.insert(fold(id).into_owned(), value)
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<V> {
        self.0.remove(fold(id).as_ref())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut V)> {
        self.0.iter_mut()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&String, &mut V) -> bool) {
        self.0.retain(keep);
    }
}

impl<V> FromIterator<(String, V)> for ById<V> {
    fn from_iter<I: IntoIterator<Item = (String, V)>>(pairs: I) -> Self {
        let fold = |(id, value): (String, V)| (fold(&id).into_owned(), value);
        Self(pairs.into_iter().map(fold).collect())
    }
}

#[cfg(test)]
impl<V> std::ops::Index<&str> for ById<V> {
    type Output = V;

    fn index(&self, id: &str) -> &V {
        self.get(id).expect("a test knows its ids")
    }
}
