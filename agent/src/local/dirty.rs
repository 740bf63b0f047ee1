//! Which entries are still to be written to the catalog, and which outputs wait.
//!
//! Owns: the ids of services and checks that changed since they were last planned, so that a change
//! costs what it touches and not the whole table.
//! Never: judges an entry; its own marks say whether it really is out of agreement.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ids::fold;

/// Folded ids. May name entries that are gone or in agreement by now; never misses one.
#[derive(Default)]
pub(super) struct Dirty {
    services: BTreeSet<String>,
    /// By the service they belong to, which may be the empty id of the node.
    checks: BTreeSet<(String, String)>,
    /// When an output-only change is due.
    outputs: BTreeSet<(Duration, String)>,
}

impl Dirty {
    pub(super) fn service(&mut self, id: &str) {
        self.services.insert(fold(id).into_owned());
    }

    pub(super) fn check(&mut self, service: &str, id: &str) {
        let key = (fold(service).into_owned(), fold(id).into_owned());
        self.checks.insert(key);
    }

    pub(super) fn output(&mut self, due: Duration, id: &str) {
        self.outputs.insert((due, fold(id).into_owned()));
    }

    /// Forgets all but the outputs.
    pub(super) fn clear(&mut self) {
        self.services.clear();
        self.checks.clear();
    }

    pub(super) fn services(&self) -> &BTreeSet<String> {
        &self.services
    }

    /// Pairs of service and check.
    pub(super) fn checks(&self) -> &BTreeSet<(String, String)> {
        &self.checks
    }

    pub(super) fn forget_service(&mut self, id: &str) {
        self.services.remove(id);
    }

    pub(super) fn forget_check(&mut self, key: &(String, String)) {
        self.checks.remove(key);
    }

    /// The checks of one service.
    pub(super) fn checks_of(&self, service: &str) -> Vec<(String, String)> {
        let from = (service.to_owned(), String::new());
        let own = self.checks.range(from..);
        own.take_while(|(of, _)| of == service).cloned().collect()
    }

    /// The soonest output that waits.
    pub(super) fn next_output(&self) -> Option<(Duration, String)> {
        self.outputs.first().cloned()
    }

    pub(super) fn forget_output(&mut self, output: &(Duration, String)) {
        self.outputs.remove(output);
    }
}
