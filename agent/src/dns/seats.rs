//! Places, of which one client gets its share and no more.
//!
//! Owns: how many are taken, by all and by each address.
//! Never: knows what a place is for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The places.
pub(crate) struct Seats {
    all: usize,
    per_client: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A place; given back when dropped.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// The client has its share.
    OfClient,
}

impl Seats {
    pub(crate) fn new(all: usize, per_client: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            per_client,
            taken: Mutex::default(),
        })
    }

    /// A place, or the reason why there is none.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Result<Seat, Full> {
        let client = client.to_canonical();
        let mut taken = self.taken.lock();
        let of_client = taken.by_client.get(&client).copied().unwrap_or_default();
        if of_client >= self.per_client {
            return Err(Full::OfClient);
        }
        if taken.all >= self.all {
            return Err(Full::All);
        }
        taken.by_client.insert(client, of_client + 1);
        taken.all += 1;
        Ok(Seat {
            seats: Arc::clone(self),
            client,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_places() {
        let seats = Seats::new(3, 2);
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let mut held = vec![seats.take(ip(1)).ok(), seats.take(ip(1)).ok()];
        assert!(held.iter().all(Option::is_some));
        let refused = |client: IpAddr| seats.take(client).err();
        assert_eq!(refused(ip(1)), Some(Full::OfClient));
        assert_eq!(
            refused("::ffff:10.0.0.1".parse().unwrap()),
            Some(Full::OfClient)
        );
        held.push(seats.take(ip(2)).ok());
        assert_eq!(refused(ip(3)), Some(Full::All));
        assert!(
            !seats.taken.lock().by_client.contains_key(&ip(3)),
            "who has no place is not kept in mind"
        );
        held.clear();
        assert!(seats.taken.lock().by_client.is_empty());
        assert!(seats.take(ip(1)).is_ok());
    }
}
