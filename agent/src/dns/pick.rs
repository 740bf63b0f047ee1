//! Which instances an answer is made of, and in which order.
//!
//! Owns: the order, what was said already, the reading of an address. Does no more work than is sent.
//! Never: builds a record.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rand::RngExt as _;

use super::lookup::Serving;

/// An address as it was registered: text, and what it says if it is no name.
#[derive(Clone, Copy)]
pub(crate) struct Place<'s> {
    pub(crate) text: &'s str,
    pub(crate) ip: Option<IpAddr>,
}

impl<'s> Place<'s> {
    pub(crate) fn of(text: &'s str) -> Self {
        Self {
            text,
            ip: text.parse().ok(),
        }
    }
}

/// Instances one after the other: as they are, or in any order. Of that no more is thrown than is taken:
/// an answer of three needs three.
pub(crate) struct Order<'a, 'd, R> {
    all: Vec<Serving<'a>>,
    taken: usize,
    dice: Option<&'d mut R>,
}

impl<'a, 'd, R: rand::Rng> Order<'a, 'd, R> {
    pub(crate) fn new(all: Vec<Serving<'a>>, dice: Option<&'d mut R>) -> Self {
        Self {
            all,
            taken: 0,
            dice,
        }
    }

    pub(crate) fn any(all: Vec<Serving<'a>>, dice: &'d mut R) -> Self {
        Self::new(all, Some(dice))
    }
}

impl<'a, R: rand::Rng> Iterator for Order<'a, '_, R> {
    type Item = Serving<'a>;

    fn next(&mut self) -> Option<Serving<'a>> {
        let at = self.taken;
        if at >= self.all.len() {
            return None;
        }
        if let Some(dice) = &mut self.dice {
            let chosen = dice.random_range(at..self.all.len());
            self.all.swap(at, chosen);
        }
        self.taken += 1;
        Some(self.all[at])
    }
}

/// What was said already. Names compare slowly, label by label: it is kept by the text it came from.
pub(crate) struct Said<T> {
    few: Vec<T>,
    many: BTreeSet<T>,
}

/// So many are looked through faster than a tree is made.
const FEW: usize = 16;

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self {
            few: Vec::new(),
            many: BTreeSet::new(),
        }
    }
}

impl<T: Ord + Copy> Said<T> {
    /// Notes it; false when it was there.
    pub(crate) fn insert(&mut self, one: T) -> bool {
        if self.few.contains(&one) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(one);
            return true;
        }
        self.many.insert(one)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use weft_proto::v1::{Node, Service};

    use super::*;

    /// The ports of instances, in the order given by dice of `seed`.
    fn ports(count: u16, seed: Option<u64>) -> Vec<u16> {
        let (node, service) = (Arc::new(Node::default()), Arc::new(Service::default()));
        let all = (0..count).map(|port| Serving {
            node: &node,
            service: &service,
            weight: 1,
            port,
        });
        let mut dice = seed.map(SmallRng::seed_from_u64);
        let order = Order::new(all.collect(), dice.as_mut());
        order.map(|one| one.port).collect()
    }

    #[test]
    fn without_dice_the_order_stays() {
        assert_eq!(ports(5, None), [0, 1, 2, 3, 4]);
        assert_eq!(ports(0, Some(1)), [0_u16; 0]);
    }

    #[test]
    fn every_instance_comes_once_and_first_as_often_as_any_other() {
        let mut first = BTreeMap::new();
        for seed in 0..4_000 {
            let mut order = ports(4, Some(seed));
            *first.entry(order[0]).or_insert(0) += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
        assert!(
            first.len() == 4 && first.values().all(|times| (850..1_150).contains(times)),
            "{first:?}"
        );
    }

    #[test]
    fn what_was_said_is_known_among_few_and_among_many() {
        let mut said = Said::default();
        for round in [true, false] {
            for n in 0..3 * FEW {
                assert_eq!(said.insert(n), round, "{n}");
            }
        }
    }
}
