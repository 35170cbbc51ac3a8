//! What a running backup still has to export, and who is asked for it.
//!
//! - Orders of one run never overlap each other or what is done; what two masters ordered may, and
//!   then the parts are chosen from ([`cover`]).
//! - A range is asked of a copy that is in sync, a follower if there is one: the leader has work.
//! - Nothing is assumed to be done: a tablet that was split or merged, or whose server is gone, is
//!   planned anew by the map of the moment, whatever of its range is left.

use super::cover::cover;
use super::effort::{Effort, Slots};
use super::site::{CopyAt, Map, Site};
use super::{Ended, Standing};
use crate::hlc::Hlc;
use crate::ids::{ServerId, TableId, TabletId, Tick};
use crate::range::KeyRange;
use std::collections::{BTreeMap, BTreeSet};

/// Names a part of a backup; no two parts of one backup have the same, whoever ordered them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartId(pub u64);

/// A part that lies at the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DonePart {
    /// Its name.
    pub part: PartId,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub range: KeyRange,
}

/// A range that a server is to export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// What the part is called.
    pub part: PartId,
    /// The table.
    pub table: TableId,
    /// Versions above this are wanted, zero for all.
    pub since: Hlc,
    /// The tablet.
    pub tablet: TabletId,
    /// The keys: the tablet's own, or what is left of them.
    pub range: KeyRange,
    /// Who is asked.
    pub server: ServerId,
}

/// How far a backup is: in bytes where they are known, in tablets where not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What is done and what is left.
    pub total: u64,
}

impl Progress {
    /// The share that is done, of a thousand.
    #[must_use]
    pub fn per_mille(self) -> u64 {
        let part = u128::from(self.done) * 1_000 / u128::from(self.total.max(1));
        u64::try_from(part).unwrap_or(1_000).min(1_000)
    }
}

/// A backup that is being made.
#[derive(Clone, Debug)]
pub struct BackupRun {
    tables: BTreeMap<TableId, TableRun>,
    running: BTreeMap<PartId, Running>,
    next: PartId,
    effort: Effort<TabletId>,
    progress: Progress,
}

/// One table of it.
#[derive(Clone, Debug)]
struct TableRun {
    since: Hlc,
    /// What no part has, in key order.
    left: Vec<KeyRange>,
    parts: Vec<PartId>,
}

#[derive(Clone, Debug)]
struct Running {
    order: Order,
    written_bytes: u64,
}

impl BackupRun {
    /// A backup of these tables, each of versions above a timestamp, of which these parts are done
    /// already. `first` and what follows it must name no part that anybody ordered before.
    #[must_use]
    pub fn new(
        now: Tick,
        tables: impl IntoIterator<Item = (TableId, Hlc)>,
        done: &[DonePart],
        first: PartId,
    ) -> Self {
        let table = |(table, since)| {
            let parts: Vec<&DonePart> = done.iter().filter(|part| part.table == table).collect();
            let ranges: Vec<KeyRange> = parts.iter().map(|part| part.range.clone()).collect();
            let found = cover(&KeyRange::all(), &ranges);
            let chosen = found.chosen.into_iter().map(|place| parts[place].part).collect();
            (table, TableRun { since, left: found.gaps, parts: chosen })
        };
        Self {
            tables: tables.into_iter().map(table).collect(),
            running: BTreeMap::new(),
            next: first,
            effort: Effort::new(now),
            progress: Progress::default(),
        }
    }

    /// The tables, for the map that [`Self::plan`] wants.
    pub fn tables(&self) -> impl Iterator<Item = TableId> {
        self.tables.keys().copied()
    }

    /// The parts that the backup consists of so far. Once it is done they cover every key of every
    /// table, none twice.
    pub fn parts(&self) -> impl Iterator<Item = PartId> {
        self.tables.values().flat_map(|table| table.parts.iter().copied())
    }

    /// Orders that are under way.
    pub fn running(&self) -> impl Iterator<Item = &Order> {
        self.running.values().map(|running| &running.order)
    }

    /// How far it is, by the last plan.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// What it waits for, if it has waited for a while.
    #[must_use]
    pub fn waits_for(&self, now: Tick) -> Option<&str> {
        self.effort.waits_for(now)
    }

    /// Where it stands.
    #[must_use]
    pub fn standing(&self, now: Tick) -> Standing {
        if self.tables.values().all(|table| table.left.is_empty()) {
            return Standing::Done;
        }
        self.effort.given_up(now).map_or(Standing::Running, Standing::GivenUp)
    }

    /// A server has written so many bytes for its order, all in all.
    pub fn wrote(&mut self, now: Tick, part: PartId, bytes: u64) {
        if let Some(running) = self.running.get_mut(&part).filter(|running| bytes > running.written_bytes) {
            running.written_bytes = bytes;
            self.effort.progressed(now);
        }
    }

    /// An order has ended. Of one that was given up already nothing is taken: its part, if there
    /// is one, belongs to nothing.
    pub fn ended(&mut self, now: Tick, part: PartId, ended: Ended) {
        let Some(Running { order, .. }) = self.running.remove(&part) else { return };
        match ended {
            Ended::Done => {
                self.effort.succeeded(order.tablet, now);
                let Some(table) = self.tables.get_mut(&order.table) else { return };
                table.parts.push(part);
                table.take(&order.range);
            }
            Ended::Refused(reason) => {
                self.effort.refused(order.tablet, order.server, reason, now);
                if crate::mutated!(SplitRangeSkipped)
                    && let Some(table) = self.tables.get_mut(&order.table)
                {
                    table.take(&order.range);
                }
            }
            Ended::Impossible(reason) => self.effort.impossible(reason),
        }
    }

    /// What is to be asked of whom, as far as servers are free. Orders to servers that are not
    /// usable any more are given up: see [`Self::running`].
    pub fn plan(&mut self, now: Tick, map: &Map, usable: &BTreeSet<ServerId>) -> Vec<Order> {
        self.running.retain(|_, running| usable.contains(&running.order.server));
        let mut slots = Slots::new(usable, self.running.values().map(|running| running.order.server));
        let mut orders = Vec::new();
        for (id, table) in &self.tables {
            let free = table.free(self.running.values().filter(|running| running.order.table == *id));
            let Some(sites) = map.get(id) else {
                if !table.left.is_empty() {
                    self.effort.impossible(dropped(*id));
                }
                continue;
            };
            for (site, range) in pieces(&free, sites) {
                if slots.are_full() {
                    break;
                }
                let Some(server) = choose(&mut self.effort, &slots, site, now) else { continue };
                slots.take(server);
                let (part, since, tablet) = (self.next, table.since, site.tablet);
                self.next = PartId(self.next.0.saturating_add(1));
                orders.push(Order { part, table: *id, since, tablet, range, server });
            }
        }
        let begun = |order: &Order| (order.part, Running { order: order.clone(), written_bytes: 0 });
        self.running.extend(orders.iter().map(begun));
        self.progress = self.measure(map);
        orders
    }

    /// Every tablet counts as its bytes, one at least; never goes back.
    fn measure(&self, map: &Map) -> Progress {
        let weight = |site: &Site| site.bytes.max(1);
        let total: u64 = map.values().flatten().map(weight).sum();
        let left = |(id, table): (&TableId, &TableRun)| {
            let sites = map.get(id).map(Vec::as_slice).unwrap_or_default();
            pieces(&table.left, sites).map(|(site, _)| weight(site)).sum::<u64>()
        };
        let left: u64 = self.tables.iter().map(left).sum();
        let written: u64 = self.running.values().map(|running| running.written_bytes).sum();
        let done = total.saturating_sub(left.saturating_sub(written.min(left)));
        let measured = Progress { done, total };
        if measured.per_mille() < self.progress.per_mille() { self.progress } else { measured }
    }
}

impl TableRun {
    /// What is left and not under way.
    fn free<'a>(&self, running: impl Iterator<Item = &'a Running>) -> Vec<KeyRange> {
        running.fold(self.left.clone(), |free, running| without(&free, &running.order.range))
    }

    fn take(&mut self, range: &KeyRange) {
        self.left = without(&self.left, range);
    }
}

fn dropped(table: TableId) -> String {
    format!("table {} was dropped while it was backed up: take a new backup", table.0)
}

/// What of ranges in key order does not lie in another.
fn without(ranges: &[KeyRange], other: &KeyRange) -> Vec<KeyRange> {
    ranges.iter().flat_map(|range| range.without(other)).collect()
}

/// What of `ranges` each tablet has, in key order; both are.
fn pieces<'a>(ranges: &'a [KeyRange], sites: &'a [Site]) -> impl Iterator<Item = (&'a Site, KeyRange)> + 'a {
    ranges.iter().flat_map(move |range| {
        let first = sites.partition_point(|site| site.range.ends_below(range));
        let rest = &sites[first.min(sites.len())..];
        rest.iter().map_while(move |site| Some((site, site.range.intersect(range)?)))
    })
}

/// The server that is asked for a tablet: in sync, free, and rather one that did not refuse, that
/// follows, that has less to do.
fn choose(effort: &mut Effort<TabletId>, slots: &Slots<'_>, site: &Site, now: Tick) -> Option<ServerId> {
    let tablet = site.tablet;
    if !effort.is_due(tablet, now) {
        return None;
    }
    let able = || site.copies.iter().filter(|copy| copy.in_sync && slots.is_usable(copy.server));
    if able().all(|copy| effort.was_refused_by(tablet, copy.server)) {
        effort.ask_all_again(tablet);
    }
    let class = |copy: &CopyAt| (effort.was_refused_by(tablet, copy.server), copy.leads);
    let Some(best) = able().map(class).min() else {
        effort.blocked(format!("no server with a copy of tablet {} in sync is connected", tablet.0));
        return None;
    };
    // Who is busy is waited for, rather than to ask somebody worse.
    let free = able().filter(|copy| class(copy) == best && slots.is_free(copy.server));
    free.min_by_key(|copy| (slots.taken(copy.server), copy.server)).map(|copy| copy.server)
}

#[cfg(test)]
mod tests {
    use super::super::cover::check_cover;
    use super::super::site::testing::{self, key};
    use super::*;
    use crate::limits::{
        BACKUP_ORDERS_PER_SERVER_MAX, BACKUP_PATIENCE_MS, BACKUP_PAUSE_MS_MAX, BACKUP_WAIT_SHOWN_MS,
    };
    use proptest::prelude::*;

    const TABLE: TableId = TableId(7);

    fn run() -> BackupRun {
        BackupRun::new(Tick(0), [(TABLE, Hlc::MIN)], &[], PartId(1))
    }

    /// Tablets cut at these keys; the copies of each are on servers 1 to 3, led by the first.
    fn map(cuts: &[u8]) -> Map {
        [(TABLE, testing::sites(100, cuts, |_| vec![1, 2, 3]))].into()
    }

    fn servers(ids: &[u64]) -> BTreeSet<ServerId> {
        ids.iter().map(|id| ServerId(*id)).collect()
    }

    #[test]
    fn followers_are_asked_and_evenly() {
        let orders = run().plan(Tick(0), &map(&[3, 5, 7]), &servers(&[1, 2, 3]));
        let asked: Vec<u64> = orders.iter().map(|order| order.server.0).collect();
        assert_eq!(asked, [2, 3, 2, 3]);
        assert_eq!(orders.iter().map(|order| order.part.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_leader_is_asked_when_nobody_else_can_or_wants() {
        let orders = run().plan(Tick(0), &map(&[]), &servers(&[1]));
        assert_eq!(orders[0].server, ServerId(1));
        let (mut run, map, all) = (run(), map(&[]), servers(&[1, 2, 3]));
        let mut asked = Vec::new();
        for round in 0..4 {
            let now = Tick(round * BACKUP_PAUSE_MS_MAX);
            let orders = run.plan(now, &map, &all);
            asked.push(orders[0].server.0);
            run.ended(now, orders[0].part, Ended::Refused("not now".into()));
            assert!(run.plan(now, &map, &all).is_empty(), "there is a pause");
        }
        assert_eq!(asked, [2, 3, 1, 2]);
    }

    #[test]
    fn a_server_has_a_few_orders_and_a_lost_one_loses_them() {
        let (mut run, map) = (run(), map(&[2, 3, 4, 5, 6, 7]));
        let orders = run.plan(Tick(0), &map, &servers(&[2]));
        assert_eq!(orders.len(), BACKUP_ORDERS_PER_SERVER_MAX);
        assert!(run.plan(Tick(1), &map, &servers(&[2])).is_empty());
        let again = run.plan(Tick(2), &map, &servers(&[3]));
        assert_eq!(again[0].range, orders[0].range);
        run.ended(Tick(3), orders[0].part, Ended::Done);
        assert_eq!(run.parts().count(), 0, "it was given up");
    }

    #[test]
    fn a_tablet_that_was_split_is_planned_by_what_took_its_place() {
        let (mut run, all) = (run(), servers(&[1, 2, 3]));
        let orders = run.plan(Tick(0), &map(&[4]), &all);
        run.ended(Tick(1), orders[1].part, Ended::Done);
        run.ended(Tick(1), orders[0].part, Ended::Refused("no such tablet".into()));
        let split = [(TABLE, testing::sites(200, &[2, 5], |_| vec![1, 2, 3]))].into();
        let orders = run.plan(Tick(2), &split, &all);
        let ranges: Vec<KeyRange> = orders.iter().map(|order| order.range.clone()).collect();
        assert_eq!(ranges, [key(0, 2), key(2, 4)], "of the second child only what is left");
        orders.iter().for_each(|order| run.ended(Tick(3), order.part, Ended::Done));
        assert_eq!(run.standing(Tick(3)), Standing::Done);
        assert_eq!(run.parts().map(|part| part.0).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn it_goes_on_with_what_lies_at_the_target() {
        let part = |part, start, end| DonePart { part: PartId(part), table: TABLE, range: key(start, end) };
        let done = [part(1, 0, 4), part(2, 0, 2), part(3, 2, 6), part(9, 7, 9)];
        let mut run = BackupRun::new(Tick(0), [(TABLE, Hlc(5))], &done, PartId(10));
        let orders = run.plan(Tick(0), &map(&[]), &servers(&[1]));
        let ranges: Vec<KeyRange> = orders.iter().map(|order| order.range.clone()).collect();
        assert_eq!(ranges, [key(6, 7), key(9, 0)]);
        assert!(orders.iter().all(|order| order.since == Hlc(5) && order.part >= PartId(10)));
        assert_eq!(run.parts().map(|part| part.0).collect::<Vec<_>>(), [2, 3, 9]);
    }

    #[test]
    fn it_gives_up_when_nothing_moves_or_nobody_can() {
        let (mut run, map, all) = (run(), map(&[]), servers(&[1]));
        let order = run.plan(Tick(0), &map, &all).remove(0);
        run.wrote(Tick(5), order.part, 100);
        run.wrote(Tick(9), order.part, 100);
        run.ended(Tick(10), order.part, Ended::Refused("the disk is slow".into()));
        assert_eq!(run.standing(Tick(4 + BACKUP_PATIENCE_MS)), Standing::Running);
        let given_up = run.standing(Tick(5 + BACKUP_PATIENCE_MS));
        assert!(matches!(given_up, Standing::GivenUp(reason) if reason.ends_with("the disk is slow")));
        let order = run.plan(Tick(BACKUP_PAUSE_MS_MAX), &map, &all).remove(0);
        run.ended(Tick(20), order.part, Ended::Impossible("the target is full".into()));
        assert_eq!(run.standing(Tick(20)), Standing::GivenUp("the target is full".into()));
    }

    #[test]
    fn a_table_that_was_dropped_ends_it() {
        let mut run = run();
        run.plan(Tick(0), &Map::new(), &servers(&[1]));
        assert!(matches!(run.standing(Tick(0)), Standing::GivenUp(reason) if reason.contains("dropped")));
    }

    #[test]
    fn nobody_who_is_not_in_sync_is_asked() {
        let (mut run, mut map) = (run(), map(&[]));
        map.values_mut().flatten().flat_map(|site| &mut site.copies).for_each(|copy| copy.in_sync = false);
        assert!(run.plan(Tick(0), &map, &servers(&[1, 2, 3])).is_empty());
        assert_eq!(run.waits_for(Tick(1)), None);
        let waits_for = run.waits_for(Tick(BACKUP_WAIT_SHOWN_MS));
        assert_eq!(waits_for, Some("no server with a copy of tablet 100 in sync is connected"));
        let given_up = run.standing(Tick(BACKUP_PATIENCE_MS));
        assert!(matches!(given_up, Standing::GivenUp(reason) if reason.contains("in sync")));
    }

    #[test]
    fn what_moves_waits_for_nothing() {
        let (mut run, map, all) = (run(), map(&[5]), servers(&[1, 2, 3]));
        let orders = run.plan(Tick(0), &map, &all);
        run.ended(Tick(1), orders[0].part, Ended::Refused("later".into()));
        assert_eq!(run.waits_for(Tick(BACKUP_WAIT_SHOWN_MS)), Some("later"));
        run.wrote(Tick(BACKUP_WAIT_SHOWN_MS), orders[1].part, 1);
        assert_eq!(run.waits_for(Tick(BACKUP_PATIENCE_MS)), None);
    }

    #[test]
    fn progress_goes_by_bytes_and_never_back() {
        let (mut run, mut map, all) = (run(), map(&[5]), servers(&[1, 2, 3]));
        map.values_mut().flatten().for_each(|site| site.bytes = 1_000);
        let orders = run.plan(Tick(0), &map, &all);
        assert_eq!(run.progress(), Progress { done: 0, total: 2_000 });
        run.wrote(Tick(1), orders[0].part, 500);
        run.plan(Tick(1), &map, &all);
        assert_eq!(run.progress().per_mille(), 250);
        run.ended(Tick(2), orders[0].part, Ended::Refused("later".into()));
        run.plan(Tick(2), &map, &all);
        assert_eq!(run.progress().per_mille(), 250);
        run.ended(Tick(3), orders[1].part, Ended::Done);
        run.plan(Tick(3), &map, &all);
        assert_eq!(run.progress().per_mille(), 500);
    }

    /// What may happen between two rounds.
    #[derive(Clone, Debug)]
    enum Happens {
        Done(usize),
        Refused(usize),
        Cut(Vec<u8>),
        Up(Vec<u64>),
        Takeover,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let cuts = proptest::collection::btree_set(1..20u8, 0..6);
        prop_oneof![
            4 => (0..8usize).prop_map(Happens::Done),
            2 => (0..8usize).prop_map(Happens::Refused),
            1 => cuts.prop_map(|cuts| Happens::Cut(cuts.into_iter().collect())),
            1 => proptest::collection::vec(1..4u64, 0..3).prop_map(Happens::Up),
            1 => Just(Happens::Takeover),
        ]
    }

    proptest! {
        /// Whatever happens, orders do not overlap what is done or under way; and once things
        /// calm down the backup ends with parts that are every key once.
        #[test]
        fn it_ends_with_every_key_once(story in proptest::collection::vec(happens(), 0..40)) {
            let mut world = testing::World::new(TABLE);
            let mut run = run();
            let (mut sites, mut up) = (map(&[]), servers(&[1, 2, 3]));
            for (round, what) in (0..).zip(story.into_iter().chain(vec![Happens::Done(0); 200])) {
                let now = Tick(round * BACKUP_PAUSE_MS_MAX);
                match what {
                    Happens::Done(nth) => world.done(&mut run, now, nth),
                    Happens::Refused(nth) => {
                        if let Some(part) = world.pick(&run, nth) {
                            run.ended(now, part, Ended::Refused("no".into()));
                        }
                    }
                    Happens::Cut(cuts) => sites = [(TABLE, testing::sites(1_000 * (round + 1), &cuts, |_| vec![1, 2, 3]))].into(),
                    Happens::Up(ids) => up = servers(&ids),
                    Happens::Takeover => {
                        run = BackupRun::new(now, [(TABLE, Hlc::MIN)], &world.at_target, PartId(1_000 * (round + 1)));
                    }
                }
                if round == 40 {
                    up = servers(&[1, 2, 3]);
                }
                world.planned(&run.plan(now, &sites, &up), &run);
            }
            prop_assert_eq!(run.standing(Tick(u64::MAX)), Standing::Done);
            let mut parts: Vec<KeyRange> = run.parts().map(|part| world.range_of(part)).collect();
            parts.sort();
            prop_assert_eq!(check_cover(&KeyRange::all(), &parts), Ok(()));
        }
    }
}
