//! Which server is asked first.
//!
//! Owns: the order of the servers known, shuffled so that agents spread over them; one that failed goes to the
//! end.
//! Never: opens a connection or reads a clock.
//! Source: Consul docs, "Consul Architecture": clients choose a server at random and keep to it.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::config::ServerAt;

/// Servers in the order they are asked.
#[derive(Debug)]
pub(crate) struct Servers {
    order: Vec<ServerAt>,
    rng: SmallRng,
}

impl Servers {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            order: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Takes what gossip shows; answers who is gone. Those that stay keep their order, new ones go to random
    /// places.
    pub(crate) fn set(&mut self, now: &[ServerAt]) -> Vec<ServerAt> {
        let (stay, gone) = std::mem::take(&mut self.order)
            .into_iter()
            .partition(|server| now.contains(server));
        self.order = stay;
        for server in now {
            if !self.order.contains(server) {
                let at = self.rng.random_range(0..=self.order.len());
                self.order.insert(at, server.clone());
            }
        }
        gone
    }

    /// In the order they are to be asked.
    pub(crate) fn order(&self) -> &[ServerAt] {
        &self.order
    }

    /// It did not answer: all others are asked before it.
    pub(crate) fn failed(&mut self, address: &str) {
        if let Some(at) = self.order.iter().position(|one| one.address == address) {
            let server = self.order.remove(at);
            self.order.push(server);
        }
    }

    /// A new order, for all to be asked by somebody.
    pub(crate) fn shuffle(&mut self) {
        self.order.shuffle(&mut self.rng);
    }

    /// It answers: it is asked first.
    pub(crate) fn prefer(&mut self, address: &str) {
        if let Some(at) = self.order.iter().position(|one| one.address == address) {
            self.order[..=at].rotate_right(1);
        }
    }

    /// Up to `most`, at random.
    pub(crate) fn jitter(&mut self, most: std::time::Duration) -> std::time::Duration {
        most.mul_f64(self.rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(names: &[&str]) -> Vec<ServerAt> {
        let one = |name: &&str| ServerAt {
            address: format!("{name}:8300"),
            name: (*name).to_owned(),
        };
        names.iter().map(one).collect()
    }

    fn names(servers: &Servers) -> String {
        servers
            .order()
            .iter()
            .map(|one| one.name.as_str())
            .collect()
    }

    #[test]
    fn who_fails_goes_to_the_end_and_who_stays_keeps_its_place() {
        let mut list = Servers::new(1);
        assert_eq!(list.set(&servers(&["a", "b", "c"])), []);
        let first = list.order()[0].clone();
        list.failed(&first.address);
        assert_eq!(list.order()[2], first);
        let before = names(&list);
        let gone = list.set(&servers(&["a", "b", "c", "d"]));
        assert_eq!(gone, []);
        assert_eq!(names(&list).replace('d', ""), before);
        let gone = list.set(&servers(&["b", "d"]));
        assert_eq!(gone.len(), 2);
        list.prefer("d:8300");
        assert_eq!(names(&list), "db");
        list.failed("unknown:8300");
        assert_eq!(names(&list), "db");
    }

    #[test]
    fn agents_spread_over_the_servers() {
        let mut first = std::collections::BTreeMap::new();
        for seed in 0..300 {
            let mut list = Servers::new(seed);
            list.set(&servers(&["a", "b", "c"]));
            *first.entry(list.order()[0].name.clone()).or_insert(0) += 1;
        }
        assert!(
            first.values().all(|count| (70..130).contains(count)),
            "{first:?}"
        );
    }
}
