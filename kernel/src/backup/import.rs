//! Which copies of tables that are being restored still have to take their rows from the files.
//!
//! The ledger says which copies have theirs; it is metadata, so that a master that takes over goes
//! on where its predecessor was. A copy is named by its replica id: one that takes the place of a
//! lost one has another id and takes its rows, too, whatever it was sent by its leader meanwhile.
//! To take the same rows twice changes nothing.

use super::effort::{Effort, Slots};
use super::site::{Map, Site};
use super::{Ended, Standing};
use crate::ids::{ReplicaId, ServerId, TableId, TabletId, Tick};
use std::collections::{BTreeMap, BTreeSet};

/// A copy that is to take its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImportOrder {
    /// The table that is being restored.
    pub table: TableId,
    /// The tablet.
    pub tablet: TabletId,
    /// The copy.
    pub replica: ReplicaId,
    /// Its server.
    pub server: ServerId,
}

/// A restore whose tables are there, with nobody reading or writing them.
#[derive(Clone, Debug)]
pub struct RestoreRun {
    running: BTreeMap<ReplicaId, Running>,
    /// Copies that have their rows, whether the ledger says so yet or not.
    imported: BTreeSet<ReplicaId>,
    effort: Effort<ReplicaId>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    order: ImportOrder,
    taken_bytes: u64,
}

impl RestoreRun {
    /// Goes on with a restore.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self { running: BTreeMap::new(), imported: BTreeSet::new(), effort: Effort::new(now) }
    }

    /// Orders that are under way.
    pub fn running(&self) -> impl Iterator<Item = &ImportOrder> {
        self.running.values().map(|running| &running.order)
    }

    /// A server has taken in so many bytes for this copy, all in all.
    pub fn took(&mut self, now: Tick, replica: ReplicaId, bytes: u64) {
        if let Some(running) = self.running.get_mut(&replica).filter(|running| bytes > running.taken_bytes) {
            running.taken_bytes = bytes;
            self.effort.progressed(now);
        }
    }

    /// How many bytes the copies have taken in, if one takes about `each`: those that `done` have theirs,
    /// and those under way what is known of them.
    #[must_use]
    pub fn taken_bytes(&self, done: u64, each: u64) -> u64 {
        let running = self.running.values().map(|running| running.taken_bytes.min(each));
        done.saturating_mul(each).saturating_add(running.sum())
    }

    /// An order has ended.
    pub fn ended(&mut self, now: Tick, replica: ReplicaId, ended: Ended) {
        let Some(Running { order, .. }) = self.running.remove(&replica) else { return };
        match ended {
            Ended::Done => {
                self.imported.insert(replica);
                self.effort.succeeded(replica, now);
            }
            Ended::Refused(reason) => self.effort.refused(replica, order.server, reason, now),
            Ended::Impossible(reason) => self.effort.impossible(reason),
        }
    }

    /// Which copies are to take their rows, as far as servers are free. Orders to servers that
    /// are not usable any more are given up, and so are those of copies that are gone.
    pub fn plan(
        &mut self,
        now: Tick,
        map: &Map,
        ledger: &BTreeSet<ReplicaId>,
        usable: &BTreeSet<ServerId>,
    ) -> Vec<ImportOrder> {
        let wanted: BTreeMap<ReplicaId, ImportOrder> = wanted(map, ledger).collect();
        self.running.retain(|id, running| wanted.contains_key(id) && usable.contains(&running.order.server));
        let mut slots = Slots::new(usable, self.running.values().map(|running| running.order.server));
        let mut orders = Vec::new();
        for (id, order) in &wanted {
            if slots.are_full() {
                break;
            }
            if !slots.is_usable(order.server) {
                let (tablet, server) = (order.tablet.0, order.server.0);
                let why = format!("server {server}, which has a copy of tablet {tablet}, is not connected");
                self.effort.blocked(why);
            }
            let is_open = !self.imported.contains(id) && !self.running.contains_key(id);
            if is_open && slots.is_free(order.server) && self.effort.is_due(*id, now) {
                slots.take(order.server);
                orders.push(*order);
            }
        }
        let begun = |order: &ImportOrder| (order.replica, Running { order: *order, taken_bytes: 0 });
        self.running.extend(orders.iter().map(begun));
        orders
    }

    /// What it waits for, if it has waited for a while.
    #[must_use]
    pub fn waits_for(&self, now: Tick) -> Option<&str> {
        self.effort.waits_for(now)
    }

    /// Where it stands.
    #[must_use]
    pub fn standing(&self, now: Tick, map: &Map, ledger: &BTreeSet<ReplicaId>) -> Standing {
        if is_whole(map, ledger) {
            return Standing::Done;
        }
        self.effort.given_up(now).map_or(Standing::Running, Standing::GivenUp)
    }
}

/// Whether every copy of every tablet is in the ledger: from then on the tables may be used.
#[must_use]
pub fn is_whole(map: &Map, ledger: &BTreeSet<ReplicaId>) -> bool {
    let has_copies = |site: &Site| !site.copies.is_empty();
    let is_there = |sites: &Vec<Site>| !sites.is_empty() && sites.iter().all(has_copies);
    map.values().all(is_there) && wanted(map, ledger).next().is_none()
}

/// The copies that are not in the ledger, with what they are to be asked.
fn wanted<'a>(
    map: &'a Map,
    ledger: &'a BTreeSet<ReplicaId>,
) -> impl Iterator<Item = (ReplicaId, ImportOrder)> + 'a {
    let sites = map.iter().flat_map(|(table, sites)| sites.iter().map(move |site| (*table, site)));
    let copies =
        sites.flat_map(|(table, site)| site.copies.iter().map(move |copy| (table, site.tablet, copy)));
    copies.filter(|(_, _, copy)| !ledger.contains(&copy.replica)).map(|(table, tablet, copy)| {
        let (replica, server) = (copy.replica, copy.server);
        (replica, ImportOrder { table, tablet, replica, server })
    })
}

#[cfg(test)]
mod tests {
    use super::super::site::testing;
    use super::*;
    use crate::limits::{BACKUP_PATIENCE_MS, BACKUP_PAUSE_MS_MAX};
    use proptest::prelude::*;

    fn map(cuts: &[u8]) -> Map {
        [(TableId(7), testing::sites(10, cuts, |_| vec![1, 2, 3]))].into()
    }

    fn servers(ids: &[u64]) -> BTreeSet<ServerId> {
        ids.iter().map(|id| ServerId(*id)).collect()
    }

    #[test]
    fn every_copy_takes_its_rows() {
        let (mut run, map, all) = (RestoreRun::new(Tick(0)), map(&[5]), servers(&[1, 2, 3]));
        let mut ledger = BTreeSet::new();
        let orders = run.plan(Tick(0), &map, &ledger, &all);
        assert_eq!(orders.len(), 6);
        for order in &orders {
            assert_eq!(run.standing(Tick(0), &map, &ledger), Standing::Running);
            run.ended(Tick(1), order.replica, Ended::Done);
            assert!(run.plan(Tick(1), &map, &ledger, &all).is_empty(), "nobody is asked twice");
            ledger.insert(order.replica);
        }
        assert_eq!(run.standing(Tick(1), &map, &ledger), Standing::Done);
    }

    #[test]
    fn a_copy_that_takes_anothers_place_takes_its_rows_too() {
        let (mut run, mut map, all) = (RestoreRun::new(Tick(0)), map(&[]), servers(&[1, 2, 3, 4]));
        let mut ledger: BTreeSet<ReplicaId> =
            run.plan(Tick(0), &map, &BTreeSet::new(), &all).iter().map(|order| order.replica).collect();
        let copy = &mut map.get_mut(&TableId(7)).unwrap()[0].copies[2];
        (copy.replica, copy.server) = (ReplicaId(999), ServerId(4));
        assert!(!is_whole(&map, &ledger));
        let orders = run.plan(Tick(1), &map, &ledger, &all);
        assert_eq!(orders.iter().map(|order| order.replica).collect::<Vec<_>>(), [ReplicaId(999)]);
        ledger.insert(ReplicaId(999));
        assert!(is_whole(&map, &ledger));
    }

    #[test]
    fn a_server_that_does_not_come_back_is_named() {
        let (mut run, map, ledger) = (RestoreRun::new(Tick(0)), map(&[]), BTreeSet::new());
        run.plan(Tick(0), &map, &ledger, &servers(&[1, 2]));
        let given_up = run.standing(Tick(BACKUP_PATIENCE_MS), &map, &ledger);
        assert!(
            matches!(given_up, Standing::GivenUp(reason) if reason.contains("server 3, which has a copy of tablet 10"))
        );
    }

    #[test]
    fn what_nobody_can_do_ends_it_and_what_is_refused_is_tried_again() {
        let (mut run, map, ledger) = (RestoreRun::new(Tick(0)), map(&[]), BTreeSet::new());
        let order = run.plan(Tick(0), &map, &ledger, &servers(&[1])).remove(0);
        run.took(Tick(3), order.replica, 10);
        assert_eq!([5, 50].map(|each| run.taken_bytes(2, each)), [15, 110]);
        run.ended(Tick(4), order.replica, Ended::Refused("not yet".into()));
        assert!(run.plan(Tick(5), &map, &ledger, &servers(&[1])).is_empty());
        assert_eq!(run.plan(Tick(BACKUP_PAUSE_MS_MAX), &map, &ledger, &servers(&[1])), [order]);
        run.ended(Tick(6), order.replica, Ended::Impossible("a file is damaged".into()));
        assert_eq!(run.standing(Tick(6), &map, &ledger), Standing::GivenUp("a file is damaged".into()));
    }

    #[test]
    fn tables_without_copies_are_not_whole() {
        let mut map = map(&[]);
        map.values_mut().flatten().for_each(|site| site.copies.clear());
        assert!(!is_whole(&map, &BTreeSet::new()));
        assert!(!is_whole(&[(TableId(7), Vec::new())].into(), &BTreeSet::new()));
    }

    proptest! {
        /// Refusals and servers that come and go delay a restore and nothing else.
        #[test]
        fn it_ends(story in proptest::collection::vec((0..9usize, any::<bool>(), 0..8u8), 0..60)) {
            let (mut run, map) = (RestoreRun::new(Tick(0)), map(&[2, 4, 6]));
            let mut ledger = BTreeSet::new();
            let calm = (0..40).map(|_| (0, true, 7));
            for (round, (nth, succeeds, up)) in (0..).zip(story.into_iter().chain(calm)) {
                let now = Tick(round * BACKUP_PAUSE_MS_MAX);
                let up: Vec<u64> = (1..4).filter(|server| up & (1 << (server - 1)) != 0).collect();
                run.plan(now, &map, &ledger, &servers(&up));
                for server in &up {
                    prop_assert!(run.running().filter(|order| order.server.0 == *server).count() <= 2);
                }
                let running: Vec<ImportOrder> = run.running().copied().collect();
                let Some(order) = running.get(nth % running.len().max(1)) else { continue };
                let ended = if succeeds { Ended::Done } else { Ended::Refused("no".into()) };
                run.ended(now, order.replica, ended);
                if succeeds {
                    ledger.insert(order.replica);
                }
            }
            prop_assert_eq!(run.standing(Tick(u64::MAX), &map, &ledger), Standing::Done);
        }
    }
}
