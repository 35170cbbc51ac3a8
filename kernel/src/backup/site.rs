//! The map of tablets, as far as backups and restores mind.

use crate::ids::{ReplicaId, ServerId, TableId, TabletId};
use crate::meta::{State, Tablet};
use crate::plan::Size;
use crate::range::KeyRange;
use std::collections::BTreeMap;

/// A copy of a tablet whose data is there, as far as metadata knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyAt {
    /// Its name.
    pub replica: ReplicaId,
    /// Where it lies.
    pub server: ServerId,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it is in sync.
    pub in_sync: bool,
}

/// A tablet, its range and its copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// The tablet.
    pub tablet: TabletId,
    /// Its keys.
    pub range: KeyRange,
    /// Its copies; those whose data is lost are left out.
    pub copies: Vec<CopyAt>,
    /// Bytes of its rows, as far as they are known.
    pub bytes: u64,
}

/// Tablets of tables, each in key order. A table that is missing was dropped.
pub type Map = BTreeMap<TableId, Vec<Site>>;

/// The map of these tables.
#[must_use]
pub fn map_of(
    state: &State,
    tables: impl IntoIterator<Item = TableId>,
    sizes: &BTreeMap<TabletId, Size>,
) -> Map {
    let known = tables.into_iter().filter(|table| state.table(*table).is_some());
    let bytes = |tablet: &Tablet| sizes.get(&tablet.id).map_or(0, |size| size.bytes);
    let sites =
        |table| state.tablets_of(table).map(|tablet| site(state, tablet, bytes(tablet))).collect::<Vec<_>>();
    known.map(|table| (table, sites(table))).collect()
}

fn site(state: &State, tablet: &Tablet, bytes: u64) -> Site {
    let leader = tablet.leader.filter(|leader| state.is_current(leader));
    let there = tablet.replicas.iter().filter(|copy| state.holds_data(copy));
    let copies = there.map(|copy| CopyAt {
        replica: copy.id,
        server: copy.server,
        leads: leader.is_some_and(|leader| leader.replica == copy.id),
        in_sync: tablet.in_sync.contains(&copy.id),
    });
    Site { tablet: tablet.id, range: tablet.range.clone(), copies: copies.collect(), bytes }
}

#[cfg(test)]
pub(super) mod testing {
    //! Maps for tests, and a target.

    use super::super::Ended;
    use super::super::run::{BackupRun, DonePart, Order, PartId};
    use super::*;
    use crate::ids::Tick;
    use bytes::Bytes;

    /// The keys from one letter to another; 0: no bound.
    pub fn key(start: u8, end: u8) -> KeyRange {
        let bound = |key: u8| Bytes::from(if key == 0 { vec![] } else { vec![key] });
        KeyRange::new(bound(start), (end > 0).then(|| bound(end))).expect("letters rise")
    }

    /// Tablets `first`, `first + 1`, ... cut at these keys. The first copy leads, all are in sync.
    pub fn sites(first: u64, cuts: &[u8], servers: impl Fn(u64) -> Vec<u64>) -> Vec<Site> {
        let bounds: Vec<Bytes> = cuts.iter().map(|cut| Bytes::from(vec![*cut])).collect();
        let ranges = KeyRange::cut_at(&bounds).expect("cuts rise");
        let site = |(id, range): (u64, KeyRange)| {
            let copy = |(place, server)| CopyAt {
                replica: ReplicaId(10 * id + place),
                server: ServerId(server),
                leads: place == 0,
                in_sync: true,
            };
            let copies = (0..).zip(servers(id)).map(copy).collect();
            Site { tablet: TabletId(id), range, copies, bytes: 0 }
        };
        (first..).zip(ranges).map(site).collect()
    }

    /// What lies at the target, whoever put it there.
    pub struct World {
        table: TableId,
        pub at_target: Vec<DonePart>,
    }

    impl World {
        pub fn new(table: TableId) -> Self {
            Self { table, at_target: Vec::new() }
        }

        pub fn pick(&self, run: &BackupRun, nth: usize) -> Option<PartId> {
            let running: Vec<PartId> = run.running().map(|order| order.part).collect();
            running.get(nth % running.len().max(1)).copied()
        }

        /// A server ends an order.
        pub fn done(&mut self, run: &mut BackupRun, now: Tick, nth: usize) {
            let Some(part) = self.pick(run, nth) else { return };
            let running = run.running().find(|order| order.part == part);
            let range = running.expect("it was picked from these").range.clone();
            self.at_target.push(DonePart { part, table: self.table, range });
            run.ended(now, part, Ended::Done);
        }

        pub fn range_of(&self, part: PartId) -> KeyRange {
            let at_target = self.at_target.iter().find(|done| done.part == part);
            at_target.expect("a part that is done lies at the target").range.clone()
        }

        /// Nothing new overlaps what is there.
        pub fn planned(&self, orders: &[Order], run: &BackupRun) {
            for order in orders {
                let others = run.running().filter(|other| other.part != order.part).map(|other| &other.range);
                assert!(others.into_iter().all(|other| !other.overlaps(&order.range)));
                assert!(run.parts().all(|part| !self.range_of(part).overlaps(&order.range)));
            }
        }
    }
}
