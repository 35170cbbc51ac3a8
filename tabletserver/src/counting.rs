//! Rows and bytes of tablets: adjusted by each write, and counted now and then, because a write does
//! not know whether its row was there before.
//!
//! A count is worth its reads where the numbers may be off by much: what a small tablet has is
//! counted whenever it was written, a large one once a share of it was. It goes on where it
//! stopped, so that no size is too large to be counted.

use crate::limits;
use crate::node::Node;
use crate::store::scan::{Order, PageLimits, Projection, ScanSpec, Scanner};
use crate::store::{Store, StoreError};
use crate::tablets::TabletHandle;
use ebla_kernel::ids::TabletId;
use ebla_kernel::op::Body;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is known of rows and bytes of a tablet.
pub struct Size {
    rows: AtomicU64,
    bytes: AtomicU64,
    /// Versions put since the last count began: by so many rows the numbers may be off.
    doubt: AtomicU64,
    /// Holds versions that garbage collection may remove.
    pub has_garbage: AtomicBool,
    /// May hold rows whose time ends; whoever looked through all of them knows.
    pub may_expire: AtomicBool,
}

/// In doubt about all rows; far from the end of numbers, so that writes may add to it.
const ALL: u64 = u64::MAX / 2;

impl Default for Size {
    fn default() -> Self {
        Self {
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            doubt: AtomicU64::new(0),
            has_garbage: AtomicBool::new(false),
            may_expire: AtomicBool::new(true),
        }
    }
}

impl Size {
    /// Notes a version that was put.
    pub fn put(&self, is_row: bool, bytes: usize) {
        if is_row {
            self.rows.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.doubt.fetch_add(1, Ordering::Relaxed);
        self.has_garbage.store(true, Ordering::Relaxed);
    }

    /// Nothing is known any more until the next count.
    pub fn doubt_all(&self) {
        self.doubt.store(ALL, Ordering::Relaxed);
    }

    /// Replaces the numbers by others.
    pub fn set(&self, rows: u64, bytes: u64) {
        self.rows.store(rows, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Live rows, and bytes of keys and newest values.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.rows.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Whether the numbers may be so far off that a count is worth its reads.
    fn wants_count(&self) -> bool {
        let (rows, doubt) = (self.rows.load(Ordering::Relaxed), self.doubt.load(Ordering::Relaxed));
        let is_small = rows <= limits::COUNT_STEP_MAX as u64;
        doubt > 0 && (is_small || doubt >= rows / limits::COUNT_DOUBT_PART)
    }

    /// Takes a count that began when the numbers were `before`; what was written meanwhile is added
    /// to it.
    fn counted(&self, before: (u64, u64), counted: (u64, u64)) {
        let now = self.get();
        self.set(counted.0 + now.0.saturating_sub(before.0), counted.1 + now.1.saturating_sub(before.1));
    }
}

/// A count under way.
struct Count {
    /// The handle that it is of: another one of the same tablet has other rows.
    generation: u64,
    /// Keys that are not counted yet; none when all are.
    rest: Option<KeyRange>,
    before: (u64, u64),
    rows: u64,
    bytes: u64,
}

impl Count {
    fn begin(tablet: &TabletHandle) -> Self {
        tablet.size.doubt.store(0, Ordering::Relaxed);
        let rest = Some(tablet.range.clone());
        Self { generation: tablet.generation, rest, before: tablet.size.get(), rows: 0, bytes: 0 }
    }

    /// Counts the next rows of what `spec` names; gives how many versions it looked at.
    fn go_on(
        &mut self,
        store: &dyn Store,
        tombstones: &RangeTombstones,
        mut spec: ScanSpec,
        work_max: usize,
    ) -> Result<usize, StoreError> {
        let mut work = 0;
        while work < work_max
            && let Some(rest) = self.rest.take()
        {
            spec.range = rest;
            let work_max = limits::SCAN_PAGE_WORK.min(work_max - work);
            let mut scanner = Scanner::open(store, tombstones, &spec)?;
            let page = scanner.next_page(&PageLimits { work_max, ..crate::read::SCAN_PAGE })?;
            self.rows += page.count;
            self.bytes += page.rows.iter().map(row_bytes).sum::<u64>();
            self.rest = page.next.as_ref().and_then(|next| spec.resume(next)).map(|rest| rest.range);
            work += page.work;
        }
        Ok(work)
    }
}

/// Counts tablets, a bounded number of versions at a time.
#[derive(Default)]
pub struct Counter {
    under_way: BTreeMap<TabletId, Count>,
    /// The tablet that was looked at last: the next round begins behind it.
    last: Option<TabletId>,
}

impl Counter {
    /// One round: what is under way goes on, what is in doubt begins, a step of each in turn, up to a
    /// budget.
    ///
    /// # Errors
    /// When the store fails; the count of that tablet begins anew.
    pub fn round(&mut self, node: &Node) -> Result<(), StoreError> {
        let directory = node.directory.load_full();
        self.under_way.retain(|tablet, count| {
            directory.tablet(*tablet).is_some_and(|handle| handle.generation == count.generation)
        });
        let mut due: VecDeque<&TabletHandle> = directory
            .tablets()
            .map(|handle| &**handle)
            .filter(|handle| self.under_way.contains_key(&handle.id) || handle.size.wants_count())
            .collect();
        due.make_contiguous().sort_unstable_by_key(|handle| handle.id);
        let done = self.last.map_or(0, |last| due.partition_point(|handle| handle.id <= last));
        due.rotate_left(done);
        let mut work_left = limits::COUNT_WORK_MAX;
        while work_left > 0
            && let Some(handle) = due.pop_front()
        {
            self.last = Some(handle.id);
            let work = self.step(node, handle, work_left.min(limits::COUNT_STEP_MAX));
            if work.is_err() {
                handle.size.doubt_all();
            }
            work_left = work_left.saturating_sub(work?);
            if self.under_way.contains_key(&handle.id) {
                due.push_back(handle);
            }
        }
        Ok(())
    }

    /// Counts on in one tablet; gives how many versions it looked at.
    fn step(&mut self, node: &Node, handle: &TabletHandle, work_max: usize) -> Result<usize, StoreError> {
        let mut count = self.under_way.remove(&handle.id).unwrap_or_else(|| Count::begin(handle));
        let spec = ScanSpec {
            table: handle.table,
            range: handle.range.clone(),
            at: node.clock.now(),
            order: Order::Forward,
            projection: Projection::Rows,
        };
        let work = count.go_on(&*node.reader.store, &handle.tombstones.load(), spec, work_max)?;
        match count.rest {
            None => handle.size.counted(count.before, (count.rows, count.bytes)),
            Some(_) => drop(self.under_way.insert(handle.id, count)),
        }
        Ok(work)
    }
}

fn row_bytes(row: &crate::store::scan::Row) -> u64 {
    (row.key.len() + row.body.as_ref().map_or(0, Body::bytes)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Applied;
    use crate::store::memory::MemoryStore;
    use bytes::Bytes;
    use ebla_kernel::hlc::Hlc;
    use ebla_kernel::ids::TableId;
    use ebla_kernel::op::Change;

    #[test]
    fn a_large_tablet_is_counted_again_only_when_a_share_of_it_was_written() {
        let size = Size::default();
        assert!(!size.wants_count());
        size.put(true, 10);
        assert!(size.wants_count(), "a small one always is");
        size.counted((1, 10), (1, 10));
        let rows = 10 * limits::COUNT_STEP_MAX as u64;
        size.set(rows, rows * 10);
        assert!(!size.wants_count());
        (0..rows / 10).for_each(|_| size.put(true, 10));
        assert!(size.wants_count());
        size.doubt.store(0, Ordering::Relaxed);
        size.doubt_all();
        assert!(size.wants_count());
    }

    #[test]
    fn a_count_goes_on_where_it_stopped() {
        const TABLE: TableId = TableId(1);
        let store = MemoryStore::new();
        for number in 0..100_u64 {
            let key = Bytes::from(format!("k{number:03}"));
            let change = Change::Put { key, body: Body::Value(Bytes::from_static(b"v")), expires_ms: None };
            store.apply(&[Applied { table: TABLE, ts: Hlc(number + 1), change: &change }]).unwrap();
        }
        let rest = Some(KeyRange::all());
        let mut count = Count { generation: 1, rest, before: (0, 0), rows: 0, bytes: 0 };
        let spec = || ScanSpec {
            table: TABLE,
            range: KeyRange::all(),
            at: Hlc(1_000),
            order: Order::Forward,
            projection: Projection::Rows,
        };
        let mut steps = 0;
        while count.rest.is_some() {
            let work = count.go_on(&store, &RangeTombstones::new(), spec(), 30).unwrap();
            assert!(work <= 31, "a step of {work}");
            steps += 1;
        }
        assert!(steps >= 4, "{steps} steps");
        assert_eq!((count.rows, count.bytes), (100, 500));
    }
}
