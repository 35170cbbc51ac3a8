//! What may be forgotten: garbage floors, pinned reads, the compaction filter, the pass.
//!
//! The **floor** of a table here is min(its retention's safe timestamp, the oldest read in
//! use here). At or below it only the newest version of a row can still be read. Two ways
//! use that:
//! - the compaction filter drops a version only when the *same* compaction has shown it a
//!   newer version of the same row at or below the floor, so it never drops a row's newest
//!   version at or below the floor, not even a tombstone that may hide something in a level
//!   that it does not see. Of a version that expired at or below the floor it keeps the
//!   fact and drops the bytes;
//! - the garbage pass reads whole rows, so it may remove such a tombstone, together with
//!   everything that it hides, by exact name.
//!
//! Caution for those who remove a version *above* the floor (undo, revert): its stored bytes
//! may live on in a lower level until compaction meets the removal, and if the floor passes
//! it before that, the filter takes it for a newer version that still stands. Whoever does so
//! must hold the floor below it until the row's range was compacted.

use super::value::{Head, TOMBSTONE_VALUE};
use super::{Store, StoreError, VersionName, split_stored, user_key};
use crate::limits::{GC_BATCH_VERSIONS_MAX, READ_PIN_SHARDS};
use arc_swap::ArcSwap;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What of a table may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableGarbage {
    /// What no read at or above this timestamp can see.
    Below(Hlc),
    /// Everything: the table was dropped, and nobody here serves a tablet of it.
    Dropped,
}

/// The garbage floors of all tables of a server. Of a table without a floor nothing goes.
#[derive(Default)]
pub struct Floors {
    tables: ArcSwap<BTreeMap<TableId, TableGarbage>>,
}

impl Floors {
    /// No floor for any table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes the floors of all tables. A floor never goes back: of an older and a newer
    /// one the greater counts.
    pub fn publish(&self, tables: BTreeMap<TableId, TableGarbage>) {
        self.tables.rcu(|old| {
            let mut new = tables.clone();
            for (table, garbage) in &mut new {
                *garbage = later(*garbage, old.get(table).copied());
            }
            new
        });
    }

    /// Raises the floor of one table.
    pub fn raise(&self, table: TableId, floor: Hlc) {
        if self.floor(table) >= floor {
            return;
        }
        self.tables.rcu(|old| {
            let mut new = BTreeMap::clone(old);
            let raised = later(TableGarbage::Below(floor), old.get(&table).copied());
            new.insert(table, raised);
            new
        });
    }

    /// The floor of `table`; the least timestamp when there is none.
    #[must_use]
    pub fn floor(&self, table: TableId) -> Hlc {
        match self.tables.load().get(&table) {
            Some(TableGarbage::Below(floor)) => *floor,
            Some(TableGarbage::Dropped) => Hlc::MAX,
            None => Hlc::MIN,
        }
    }

    /// Whether a read of `table` at `at` can be answered. Ask before the work and after it.
    #[must_use]
    pub fn can_read(&self, table: TableId, at: Hlc) -> bool {
        at >= self.floor(table)
    }
}

fn later(new: TableGarbage, old: Option<TableGarbage>) -> TableGarbage {
    match (new, old) {
        (TableGarbage::Below(new), Some(TableGarbage::Below(old))) => TableGarbage::Below(new.max(old)),
        (TableGarbage::Below(_), Some(TableGarbage::Dropped)) | (TableGarbage::Dropped, _) => {
            TableGarbage::Dropped
        }
        (TableGarbage::Below(_), None) => new,
    }
}

/// The timestamps of the reads that are under way.
pub struct ReadPins {
    shards: [Mutex<BTreeMap<Hlc, usize>>; READ_PIN_SHARDS],
    next: AtomicUsize,
}

impl Default for ReadPins {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), next: AtomicUsize::new(0) }
    }
}

impl ReadPins {
    /// No reads.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Keeps floors computed from now on at or below `at` until the pin is dropped. A floor
    /// computed just before may still pass it: check with [`Floors::can_read`] after the work.
    #[must_use]
    pub fn pin(self: &Arc<Self>, at: Hlc) -> ReadPin {
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % READ_PIN_SHARDS;
        *self.shard(shard).entry(at).or_default() += 1;
        ReadPin { pins: Arc::clone(self), shard, at }
    }

    /// The oldest timestamp in use.
    #[must_use]
    pub fn oldest(&self) -> Option<Hlc> {
        (0..READ_PIN_SHARDS).filter_map(|shard| self.shard(shard).keys().next().copied()).min()
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, BTreeMap<Hlc, usize>> {
        // Counts are whole after every statement, so a panic elsewhere leaves them right.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read under way; holds the floors back while it lives.
pub struct ReadPin {
    pins: Arc<ReadPins>,
    shard: usize,
    at: Hlc,
}

impl ReadPin {
    /// The timestamp of the read.
    #[must_use]
    pub fn at(&self) -> Hlc {
        self.at
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        let mut shard = self.pins.shard(self.shard);
        if let Some(count) = shard.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.at);
            }
        }
    }
}

/// Makes one filter per compaction.
pub(super) struct FloorFilterFactory {
    floors: Arc<Floors>,
}

impl FloorFilterFactory {
    pub(super) fn new(floors: Arc<Floors>) -> Self {
        Self { floors }
    }
}

impl CompactionFilterFactory for FloorFilterFactory {
    type Filter = FloorFilter;

    fn create(&mut self, _: CompactionFilterContext) -> FloorFilter {
        FloorFilter { floors: self.floors.tables.load_full(), row: Vec::new(), has_newer: false }
    }

    fn name(&self) -> &CStr {
        c"ebla.floor.1"
    }
}

/// Decides, version by version in stored order, what one compaction keeps.
pub(super) struct FloorFilter {
    floors: Arc<BTreeMap<TableId, TableGarbage>>,
    row: Vec<u8>,
    /// A version of `row` at or below the floor went by in this compaction.
    has_newer: bool,
}

impl FloorFilter {
    fn decide(&mut self, stored_key: &[u8], stored_value: &[u8]) -> CompactionDecision {
        let Ok((prefix, ts)) = key::split_ts(stored_key) else { return CompactionDecision::Keep };
        let Some(table) = prefix.first_chunk::<4>() else { return CompactionDecision::Keep };
        let floor = match self.floors.get(&TableId(u32::from_be_bytes(*table))) {
            None => return CompactionDecision::Keep,
            Some(TableGarbage::Dropped) => return CompactionDecision::Remove,
            Some(TableGarbage::Below(floor)) => *floor,
        };
        if prefix != &self.row[..] {
            self.row.clear();
            self.row.extend_from_slice(prefix);
            self.has_newer = false;
        }
        if ts > floor {
            return CompactionDecision::Keep;
        }
        if std::mem::replace(&mut self.has_newer, true) {
            return CompactionDecision::Remove;
        }
        match Head::read(stored_value) {
            Ok(head) if head.is_expired(floor) && !head.is_tombstone() => {
                CompactionDecision::Change(TOMBSTONE_VALUE)
            }
            // Corrupt bytes are for the read to report, not for a compaction to hide.
            Ok(_) | Err(_) => CompactionDecision::Keep,
        }
    }
}

impl CompactionFilter for FloorFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        self.decide(key, value)
    }

    fn name(&self) -> &CStr {
        c"ebla.floor.1"
    }
}

/// How far a step of a garbage pass came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GcProgress {
    /// The budget is used up: step again.
    More,
    /// The pass is over. These range tombstones, by first key and time, hid nothing any
    /// more and were removed from the store: forget them.
    Done(Vec<(Bytes, Hlc)>),
}

/// A pass over the rows of one tablet that removes tombstones and expired rows which hide
/// nothing, or together with what they hide. Local and physical: no log entry.
pub struct GcPass {
    table: TableId,
    range: KeyRange,
    floor: Hlc,
    tombstones: RangeTombstones,
    next: Option<Bytes>,
}

impl GcPass {
    /// A pass over `range` of `table` with its floor and its range tombstones of now.
    #[must_use]
    pub fn new(table: TableId, range: KeyRange, floor: Hlc, tombstones: &RangeTombstones) -> Self {
        let next = Some(range.start().clone());
        Self { table, range, floor, tombstones: tombstones.clone(), next }
    }

    /// Looks at up to `versions_max` versions (and at one row at least).
    ///
    /// # Errors
    /// `Corrupt` or `Engine`.
    pub fn step(&mut self, store: &dyn Store, versions_max: usize) -> Result<GcProgress, StoreError> {
        let Some(next) = self.next.clone() else { return Ok(GcProgress::Done(Vec::new())) };
        let Ok(range) = KeyRange::new(next, self.range.end().cloned()) else { return self.finish(store) };
        let mut cursor = store.cursor(self.table, &range)?;
        cursor.seek_first();
        let mut garbage = Vec::new();
        let mut row = RowGarbage::default();
        let mut work = 0;
        while let Some(stored) = cursor.stored_key()? {
            let (prefix, ts) = split_stored(stored)?;
            if prefix != &row.prefix[..] {
                if work >= versions_max {
                    self.next = Some(user_key(stored)?);
                    garbage.extend(row.head.take());
                    store.remove(&garbage)?;
                    return Ok(GcProgress::More);
                }
                garbage.extend(row.head.take());
                row = RowGarbage::of(prefix, user_key(stored)?, &self.tombstones, self.floor);
            }
            work += 1;
            if row.is_garbage(ts, Head::read(cursor.stored_value())?) {
                let name = VersionName::Row { table: self.table, key: row.key.clone(), ts };
                row.collect(name, &mut garbage);
            }
            if garbage.len() >= GC_BATCH_VERSIONS_MAX {
                store.remove(&std::mem::take(&mut garbage))?;
            }
            cursor.step();
        }
        garbage.extend(row.head.take());
        store.remove(&garbage)?;
        self.finish(store)
    }

    /// Removes the range tombstones at or below the floor: what they hid is gone.
    fn finish(&mut self, store: &dyn Store) -> Result<GcProgress, StoreError> {
        self.next = None;
        let done = |ts: Hlc, range: &KeyRange| ts <= self.floor && self.range.covers(range);
        let gone: Vec<(Bytes, Hlc)> = self
            .tombstones
            .iter()
            .filter(|tombstone| done(tombstone.ts, &tombstone.range))
            .map(|tombstone| (tombstone.range.start().clone(), tombstone.ts))
            .collect();
        let name = |(from, ts): &(Bytes, Hlc)| VersionName::RangeTombstone {
            table: self.table,
            from: from.clone(),
            ts: *ts,
        };
        store.remove(&gone.iter().map(name).collect::<Vec<_>>())?;
        Ok(GcProgress::Done(gone))
    }
}

/// What of one row is garbage, found while its versions go by, newest first.
#[derive(Default)]
struct RowGarbage {
    prefix: Vec<u8>,
    key: Bytes,
    floor: Hlc,
    /// Newest range tombstone over the row at or below the floor.
    covered_at: Option<Hlc>,
    /// What the newest version at or below the floor turned out to be.
    newest: Option<Newest>,
    /// That version, if it goes: it goes last, because it hides the others.
    head: Option<VersionName>,
    has_head: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Newest {
    Live,
    Gone,
}

impl RowGarbage {
    fn of(prefix: &[u8], key: Bytes, tombstones: &RangeTombstones, floor: Hlc) -> Self {
        let covered_at = tombstones.newest_covering(&key, floor);
        Self { prefix: prefix.to_vec(), key, floor, covered_at, newest: None, has_head: false, head: None }
    }

    /// Puts a version that goes to the others, or keeps it back if it hides them.
    fn collect(&mut self, name: VersionName, garbage: &mut Vec<VersionName>) {
        if self.newest == Some(Newest::Gone) && !self.has_head {
            self.has_head = true;
            self.head = Some(name);
        } else {
            garbage.push(name);
        }
    }

    /// Whether the version of `ts` goes: it reads as deleted at the floor and hides only
    /// what goes with it, or it is hidden by such a one or by a range tombstone.
    fn is_garbage(&mut self, ts: Hlc, head: Head) -> bool {
        if ts > self.floor {
            return false;
        }
        let is_covered = self.covered_at.is_some_and(|covered_at| covered_at >= ts);
        match self.newest {
            Some(Newest::Gone) => true,
            Some(Newest::Live) => is_covered,
            None => {
                let is_gone = is_covered || !head.is_live(self.floor);
                self.newest = Some(if is_gone { Newest::Gone } else { Newest::Live });
                is_gone
            }
        }
    }
}

/// Runs a whole pass over `range` in steps of `versions_max`; gives the range tombstones
/// that it removed.
///
/// # Errors
/// As [`GcPass::step`].
pub fn gc_pass(
    store: &dyn Store,
    mut pass: GcPass,
    versions_max: usize,
) -> Result<Vec<(Bytes, Hlc)>, StoreError> {
    loop {
        match pass.step(store, versions_max)? {
            GcProgress::More => {}
            GcProgress::Done(gone) => return Ok(gone),
        }
    }
}
