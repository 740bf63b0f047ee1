//! The table of members: what the pool looks like from here.
//!
//! Owns: one record per node id, the name each live node holds, tombstones of pruned lives.
//! Never: speaks SWIM; the core tells it what foca concluded. Every change yields events.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::member::{Member, MemberEvent, MemberStatus, Tags};
use crate::wire::{NodeId, Peer};

/// Pruned lives remembered at most; the oldest is forgotten first.
const PRUNED_MAX: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) peer: Peer,
    pub(crate) member: Arc<Member>,
    /// (incarnation, version) of the tags held; `None` until they arrived.
    pub(crate) tags_rank: Option<(u64, u64)>,
    /// When the status last changed.
    pub(crate) since: Duration,
}

impl Record {
    /// The version of the tags when they are of this life; 0 says "not known".
    pub(crate) fn tags_version(&self) -> u64 {
        self.tags_rank
            .filter(|(n, _)| *n == self.peer.incarnation)
            .map_or(0, |(_, version)| version)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    records: BTreeMap<NodeId, Record>,
    names: BTreeMap<String, NodeId>,
    /// Live nodes whose name another live node holds.
    rivals: BTreeMap<NodeId, Peer>,
    pruned: VecDeque<(NodeId, u64)>,
    pub(crate) events: VecDeque<MemberEvent>,
    /// Pairs of addresses in conflict, for the log: name, holder, rival.
    pub(crate) conflicts: VecDeque<(String, SocketAddr, SocketAddr)>,
    pub(crate) changed: bool,
}

impl Table {
    pub(crate) fn get(&self, id: &NodeId) -> Option<&Record> {
        self.records.get(id)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Record> {
        self.records.get(self.names.get(name)?)
    }

    /// Live nodes that are left out, each with where the holder of its name is.
    pub(crate) fn rivals(&self) -> impl Iterator<Item = (Peer, SocketAddr)> {
        self.rivals.values().filter_map(|rival| {
            let holder = self.by_name(&rival.name)?;
            Some((rival.clone(), holder.peer.address))
        })
    }

    /// Where live nodes are that are left out since another holds this name.
    pub(crate) fn rivals_of(&self, name: &str) -> Vec<SocketAddr> {
        let rivals = self.rivals.values().filter(|rival| rival.name == name);
        rivals.map(|rival| rival.address).collect()
    }

    /// The active member at an address.
    pub(crate) fn id_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.records
            .values()
            .find(|r| r.peer.address == address && r.member.status.is_active())
            .map(|r| r.peer.id)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn snapshot(&self) -> Vec<Arc<Member>> {
        self.names
            .values()
            .filter_map(|id| self.records.get(id))
            .map(|r| Arc::clone(&r.member))
            .collect()
    }

    /// foca holds `peer` for active.
    pub(crate) fn up(&mut self, now: Duration, peer: &Peer) {
        self.pruned.retain(|(id, _)| *id != peer.id);
        if !self.take_name(peer) {
            return;
        }
        let known = self.records.get(&peer.id);
        let was_active = known.is_some_and(|r| r.member.status.is_active());
        let same_life = known.is_some_and(|r| r.peer == *peer);
        if was_active && same_life {
            return;
        }
        let (tags, tags_rank) = known
            .map(|r| (r.member.tags.clone(), r.tags_rank))
            .unwrap_or_default();
        let member = Arc::new(member_of(peer, tags, MemberStatus::Alive));
        self.events.push_back(if was_active {
            MemberEvent::Updated(Arc::clone(&member))
        } else {
            MemberEvent::Joined(Arc::clone(&member))
        });
        let since = if was_active {
            known.map_or(now, |r| r.since)
        } else {
            now
        };
        self.put(Record {
            peer: peer.clone(),
            member,
            tags_rank,
            since,
        });
    }

    /// foca declared `peer` down.
    pub(crate) fn down(&mut self, now: Duration, peer: &Peer) {
        if self.rivals.remove(&peer.id).is_some() {
            return;
        }
        let Some(record) = self.records.get(&peer.id) else {
            return;
        };
        if !record.member.status.is_active() || record.peer.incarnation > peer.incarnation {
            return;
        }
        let left = record.member.status == MemberStatus::Leaving;
        self.set_status(
            now,
            &peer.id,
            if left {
                MemberStatus::Left
            } else {
                MemberStatus::Failed
            },
        );
        self.promote_rival(now, &peer.name);
    }

    /// A member nobody here saw alive: `status` is `Left` or `Failed`.
    pub(crate) fn insert_down(&mut self, since: Duration, peer: &Peer, status: MemberStatus) {
        if self.records.contains_key(&peer.id) || self.names.contains_key(&peer.name) {
            return;
        }
        let member = Arc::new(member_of(peer, Tags::new(), status));
        self.put(Record {
            peer: peer.clone(),
            member,
            tags_rank: None,
            since,
        });
    }

    /// This life says it leaves, or an operator forced it out.
    pub(crate) fn leave(&mut self, now: Duration, id: &NodeId, incarnation: u64, forced: bool) {
        let Some(record) = self.records.get(id) else {
            return;
        };
        if record.peer.incarnation > incarnation {
            return;
        }
        match record.member.status {
            MemberStatus::Alive if !forced => self.set_status(now, id, MemberStatus::Leaving),
            MemberStatus::Failed => self.set_status(now, id, MemberStatus::Left),
            _ => {}
        }
    }

    /// A full state said this life has left, so our `Failed` is a `Left`.
    pub(crate) fn has_left(&mut self, now: Duration, id: &NodeId, incarnation: u64) {
        self.leave(now, id, incarnation, true);
    }

    pub(crate) fn set_tags(&mut self, id: &NodeId, rank: (u64, u64), tags: Tags) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        if record.tags_rank.is_some_and(|known| known >= rank) {
            return;
        }
        record.tags_rank = Some(rank);
        if record.member.tags == tags {
            return;
        }
        record.member = Arc::new(Member {
            tags,
            ..Member::clone(&record.member)
        });
        let event = MemberEvent::Updated(Arc::clone(&record.member));
        self.events.push_back(event);
        self.changed = true;
    }

    /// Forgets a member that is not active; `prune` also refuses its return by hearsay.
    pub(crate) fn forget(&mut self, id: &NodeId, prune: bool) -> Option<Peer> {
        let record = self.records.get(id)?;
        if record.member.status.is_active() {
            return None;
        }
        let record = self.records.remove(id)?;
        if self.names.get(&record.peer.name) == Some(id) {
            self.names.remove(&record.peer.name);
        }
        if prune {
            if self.pruned.len() >= PRUNED_MAX {
                self.pruned.pop_front();
            }
            self.pruned.push_back((*id, record.peer.incarnation));
        }
        self.events.push_back(MemberEvent::Reaped(record.member));
        self.changed = true;
        Some(record.peer)
    }

    pub(crate) fn is_pruned(&self, peer: &Peer) -> bool {
        self.pruned
            .iter()
            .any(|(id, incarnation)| *id == peer.id && peer.incarnation <= *incarnation)
    }

    /// Lives whose time in the list has run out.
    pub(crate) fn expired(
        &self,
        now: Duration,
        failed_for: Duration,
        left_for: Duration,
    ) -> Vec<NodeId> {
        let over = |r: &&Record| match r.member.status {
            MemberStatus::Failed => now >= r.since + failed_for,
            MemberStatus::Left => now >= r.since + left_for,
            _ => false,
        };
        self.records
            .values()
            .filter(over)
            .map(|r| r.peer.id)
            .collect()
    }

    fn set_status(&mut self, now: Duration, id: &NodeId, status: MemberStatus) {
        let Some(record) = self.records.get_mut(id) else {
            return;
        };
        record.member = Arc::new(Member {
            status,
            ..Member::clone(&record.member)
        });
        record.since = now;
        let member = Arc::clone(&record.member);
        self.events.push_back(match status {
            MemberStatus::Alive => MemberEvent::Joined(member),
            MemberStatus::Leaving => MemberEvent::Updated(member),
            MemberStatus::Left => MemberEvent::Left(member),
            MemberStatus::Failed => MemberEvent::Failed(member),
        });
        self.changed = true;
    }

    /// Whether `peer` may show under its name: a live holder keeps it, any other gives way.
    fn take_name(&mut self, peer: &Peer) -> bool {
        let Some(holder) = self.names.get(&peer.name).copied() else {
            return true;
        };
        if holder == peer.id {
            return true;
        }
        let record = &self.records[&holder];
        self.conflicts
            .push_back((peer.name.clone(), record.peer.address, peer.address));
        if record.member.status.is_active() {
            self.rivals.insert(peer.id, peer.clone());
            return false;
        }
        self.forget(&holder, false);
        true
    }

    fn promote_rival(&mut self, now: Duration, name: &str) {
        let Some(peer) = self.rivals.values().find(|p| p.name == name).cloned() else {
            return;
        };
        self.rivals.remove(&peer.id);
        self.up(now, &peer);
    }

    fn put(&mut self, record: Record) {
        if let Some(old) = self.records.get(&record.peer.id)
            && old.peer.name != record.peer.name
        {
            self.names.remove(&old.peer.name);
        }
        self.names.insert(record.peer.name.clone(), record.peer.id);
        self.records.insert(record.peer.id, record);
        self.changed = true;
    }
}

pub(crate) fn member_of(peer: &Peer, tags: Tags, status: MemberStatus) -> Member {
    Member {
        name: peer.name.clone(),
        id: uuid::Uuid::from_bytes(peer.id).to_string(),
        address: peer.address.ip(),
        port: peer.address.port(),
        tags,
        status,
        incarnation: peer.incarnation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn peer(n: u8, name: &str, incarnation: u64) -> Peer {
        Peer {
            id: [n; 16],
            incarnation,
            address: ([127, 0, 0, n], 8301).into(),
            name: name.into(),
        }
    }

    fn told(table: &mut Table) -> Vec<String> {
        let name = |event: &MemberEvent| match event {
            MemberEvent::Joined(m) => format!("joined {}", m.name),
            MemberEvent::Updated(m) => format!("updated {}", m.name),
            MemberEvent::Failed(m) => format!("failed {}", m.name),
            MemberEvent::Left(m) => format!("left {}", m.name),
            MemberEvent::Reaped(m) => format!("reaped {}", m.name),
            MemberEvent::Resync(all) => format!("resync {}", all.len()),
        };
        table.events.drain(..).map(|e| name(&e)).collect()
    }

    #[test]
    fn the_live_one_keeps_or_takes_the_name() {
        let mut table = Table::default();
        table.up(NOW, &peer(1, "a", 1));
        table.up(NOW, &peer(2, "a", 1));
        assert_eq!(told(&mut table), ["joined a"]);
        assert_eq!(table.snapshot()[0].address.to_string(), "127.0.0.1");
        assert_eq!(table.conflicts.len(), 1);
        table.down(NOW, &peer(1, "a", 1));
        assert_eq!(told(&mut table), ["failed a", "reaped a", "joined a"]);
        assert_eq!(table.snapshot()[0].address.to_string(), "127.0.0.2");
    }

    #[test]
    fn leave_then_down_is_left_and_down_then_leave_too() {
        let mut table = Table::default();
        table.up(NOW, &peer(1, "a", 1));
        table.leave(NOW, &[1; 16], 1, false);
        table.down(NOW, &peer(1, "a", 1));
        table.up(NOW, &peer(2, "b", 1));
        table.down(NOW, &peer(2, "b", 1));
        table.leave(NOW, &[2; 16], 1, false);
        assert_eq!(
            told(&mut table),
            [
                "joined a",
                "updated a",
                "left a",
                "joined b",
                "failed b",
                "left b"
            ]
        );
    }

    #[test]
    fn a_stale_leave_or_down_does_not_touch_a_newer_life() {
        let mut table = Table::default();
        table.up(NOW, &peer(1, "a", 2));
        table.leave(NOW, &[1; 16], 1, false);
        table.down(NOW, &peer(1, "a", 1));
        assert_eq!(told(&mut table), ["joined a"]);
    }

    #[test]
    fn pruned_lives_stay_away_until_they_are_seen_alive() {
        let mut table = Table::default();
        table.up(NOW, &peer(1, "a", 1));
        assert!(
            table.forget(&[1; 16], true).is_none(),
            "alive members are not forgotten"
        );
        table.down(NOW, &peer(1, "a", 1));
        assert!(table.forget(&[1; 16], true).is_some());
        assert!(table.is_pruned(&peer(1, "a", 1)) && !table.is_pruned(&peer(1, "a", 2)));
        table.up(NOW, &peer(1, "a", 1));
        assert!(!table.is_pruned(&peer(1, "a", 1)));
    }

    #[test]
    fn failed_and_left_expire_by_their_own_times() {
        let mut table = Table::default();
        table.up(NOW, &peer(1, "a", 1));
        table.up(NOW, &peer(2, "b", 1));
        table.leave(NOW, &[2; 16], 1, false);
        table.down(NOW, &peer(1, "a", 1));
        table.down(NOW, &peer(2, "b", 1));
        let (failed_for, left_for) = (Duration::from_secs(10), Duration::from_secs(5));
        assert!(
            table
                .expired(NOW + Duration::from_secs(4), failed_for, left_for)
                .is_empty()
        );
        assert_eq!(
            table.expired(NOW + Duration::from_secs(5), failed_for, left_for),
            [[2; 16]]
        );
        assert_eq!(
            table
                .expired(NOW + Duration::from_secs(10), failed_for, left_for)
                .len(),
            2
        );
    }
}
