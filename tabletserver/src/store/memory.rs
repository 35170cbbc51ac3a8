//! The store in memory: a skip list with the same stored keys and values as on disk, and a hash
//! table of the newest versions for gets.
//!
//! A batch is not atomic by itself: its versions appear one after the other. Readers do not
//! see that, because they read at a timestamp that is published only when the whole batch
//! has been applied, and versions never change. `flush` has nothing to do: "durable" means
//! in the memory of this process.

use super::memory_tables::{MemoryTable, MemoryTables, VERSION_BYTES};
use super::newest::Newest;
use super::{Applied, Cursor, Incoming, Rising, Store, StoreError, StoreHealth, VersionName, value};
use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::op::{Change, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;
use std::borrow::Borrow;
use std::cmp::Ordering as Order;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

type Rows = SkipMap<Held, ()>;

/// A stored version, and how hot its row was when this was the newest.
struct Slot {
    stored_key: Box<[u8]>,
    value: Bytes,
    heat: AtomicU32,
}

/// A version that is held by the list and maybe by the table, ordered by its stored key.
#[derive(Clone)]
pub(super) struct Held(Arc<Slot>);

impl Held {
    fn new(stored_key: Vec<u8>, value: Vec<u8>) -> Self {
        let (stored_key, value) = (stored_key.into_boxed_slice(), value.into());
        Self(Arc::new(Slot { stored_key, value, heat: AtomicU32::new(0) }))
    }

    pub(super) fn stored_key(&self) -> &[u8] {
        &self.0.stored_key
    }

    fn value(&self) -> &Bytes {
        &self.0.value
    }

    fn heat(&self) -> &AtomicU32 {
        &self.0.heat
    }

    fn is_tombstone(&self) -> bool {
        value::Head::read(self.value()).is_ok_and(value::Head::is_tombstone)
    }
}

impl Borrow<[u8]> for Held {
    fn borrow(&self) -> &[u8] {
        self.stored_key()
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.stored_key() == other.stored_key()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Order {
        self.stored_key().cmp(other.stored_key())
    }
}

/// A store that lives as long as its process.
#[derive(Default)]
pub struct MemoryStore {
    rows: Rows,
    newest: Newest,
    tables: Arc<MemoryTables>,
}

/// A row that may make room for others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evictable {
    /// The row.
    pub key: Bytes,
    /// Its newest version.
    pub ts: Hlc,
    /// Bytes that all its versions take.
    pub bytes: u64,
    /// The lower, the sooner it goes.
    pub worth: u32,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The tables that are here, and what they take.
    #[must_use]
    pub fn tables(&self) -> &Arc<MemoryTables> {
        &self.tables
    }

    fn put(&self, table: &MemoryTable, stored_key: Vec<u8>, stored_value: Vec<u8>) {
        let put = self.insert(table, Held::new(stored_key, stored_value));
        let new = put.key();
        let Ok((row, ts)) = super::split_stored(new.stored_key()) else { return };
        let known = self.newest.put(new, || !put.is_removed());
        let before = known.as_ref().map(|known| known.heat().load(Ordering::Relaxed));
        new.heat().store(self.tables.heat_of_write(table, before), Ordering::Relaxed);
        if new.is_tombstone() || known.is_some() {
            table.note_garbage(ts, row);
        }
    }

    /// Puts a version or a range tombstone into the list, and takes out what had its key.
    fn insert(&self, table: &MemoryTable, new: Held) -> Entry<'_, Held, ()> {
        self.delete(table, new.stored_key());
        table.add(size(&new));
        self.rows.insert(new, ())
    }

    fn delete(&self, table: &MemoryTable, stored_key: &[u8]) {
        let Some(old) = self.rows.remove(stored_key) else { return };
        table.sub(size(old.key()));
        self.newest.removed(old.key(), || self.first_of(super::split_stored(stored_key).ok()?.0));
    }

    /// The newest version of a row in the list.
    fn first_of(&self, row: &[u8]) -> Option<Held> {
        loop {
            let first = self.rows.lower_bound::<[u8]>(Bound::Included(row))?;
            // The list may yet give what is being taken out of it.
            if !first.is_removed() {
                return first.key().stored_key().starts_with(row).then(|| first.key().clone());
            }
        }
    }

    fn delete_between(&self, table: &MemoryTable, from: &[u8], to: &[u8]) {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for entry in self.rows.range::<[u8], _>(bounds) {
            self.delete(table, entry.key().stored_key());
        }
    }

    /// The version that the list has at or behind `wanted`, if it is one of the same row.
    fn older(&self, wanted: &[u8]) -> Result<Option<Version>, StoreError> {
        let Some(entry) = self.rows.lower_bound::<[u8]>(Bound::Included(wanted)) else { return Ok(None) };
        let (row, ts) = super::split_stored(entry.key().stored_key())?;
        if row != &wanted[..wanted.len() - key::TS_BYTES] {
            return Ok(None);
        }
        value::decode(ts, entry.key().value()).map(Some)
    }

    /// Removes what no read at or above `floor` can see, of up to `rows_max` rows that were
    /// changed; whether there is more. Exact: what changed was noted when it did.
    pub fn collect(&self, table: &MemoryTable, floor: Hlc, rows_max: usize) -> bool {
        let notes = table.take_garbage(floor, rows_max);
        for (_, row) in &notes {
            self.collect_row(table, row, floor);
        }
        notes.len() == rows_max
    }

    /// Older versions go before the tombstone that hides them.
    fn collect_row(&self, table: &MemoryTable, row: &[u8], floor: Hlc) {
        let newest = [row, &(!floor.0).to_be_bytes()].concat();
        let from = (Bound::Included(&newest[..]), Bound::Unbounded);
        let versions = self.rows.range::<[u8], _>(from).map(|entry| entry.key().clone());
        let mut gone: Vec<Held> =
            versions.take_while(|version| version.stored_key().starts_with(row)).collect();
        if gone.first().is_some_and(|newest| !newest.is_tombstone()) {
            gone.remove(0);
        }
        for version in gone.iter().rev() {
            self.delete(table, version.stored_key());
        }
    }

    /// Rows of `range` that hold a value, from its first on, found while looking at up to
    /// `versions_max` versions; and where to go on, none at the end.
    ///
    /// # Errors
    /// `Corrupt` for keys that are none.
    pub fn sample(
        &self,
        table: TableId,
        range: &KeyRange,
        versions_max: usize,
    ) -> Result<(Vec<Evictable>, Option<Bytes>), StoreError> {
        let eviction = self.tables.get(table).map(|table| table.eviction()).unwrap_or_default();
        let (from, to) = key::row_bounds(table, range);
        let bounds = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
        let mut rows: Vec<Evictable> = Vec::new();
        let mut row: Vec<u8> = Vec::new();
        let mut is_live = false;
        for (at, entry) in self.rows.range::<[u8], _>(bounds).enumerate() {
            let version = entry.key();
            let (prefix, ts) = super::split_stored(version.stored_key())?;
            let bytes = size(version);
            if prefix == &row[..] {
                if let Some(known) = rows.last_mut().filter(|_| is_live) {
                    known.bytes += bytes;
                }
                continue;
            }
            let key = super::user_key(version.stored_key())?;
            if at >= versions_max {
                return Ok((rows, Some(key)));
            }
            row = prefix.to_vec();
            is_live = !value::Head::read(version.value())?.is_tombstone();
            if is_live {
                let worth = self.tables.worth(eviction, version.heat().load(Ordering::Relaxed));
                rows.push(Evictable { key, ts, bytes, worth });
            }
        }
        Ok((rows, None))
    }
}

fn size(version: &Held) -> u64 {
    VERSION_BYTES + (version.stored_key().len() + version.value().len()) as u64
}

impl Store for MemoryStore {
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        let wanted = key::encode_row(table, key, at);
        let row = &wanted[..wanted.len() - key::TS_BYTES];
        let newest = self.newest.read(row, |newest| {
            let (_, ts) = super::split_stored(newest.stored_key())?;
            if ts > at {
                return Ok(None);
            }
            if at == Hlc::MAX {
                self.tables.touch(table, newest.heat());
            }
            value::decode(ts, newest.value()).map(Some)
        });
        match newest {
            Some(Ok(None)) => self.older(&wanted),
            Some(found) => found,
            None => Ok(None),
        }
    }

    fn apply(&self, changes: &[Applied<'_>]) -> Result<(), StoreError> {
        let mut last: Option<(TableId, Arc<MemoryTable>)> = None;
        for Applied { table: id, ts, change } in changes {
            let known = last.take().filter(|(last, _)| last == id);
            let (_, table) = last.insert(known.unwrap_or_else(|| (*id, self.tables.add(*id))));
            match change {
                Change::Put { key, body, expires_ms } => {
                    self.put(table, key::encode_row(*id, key, *ts), value::encode(body, *expires_ms));
                }
                Change::RangeTombstone { from, to } => {
                    let stored_key = key::encode_range_tombstone(*id, from, *ts);
                    self.insert(table, Held::new(stored_key, value::encode_upper_end(to.as_ref())));
                }
            }
        }
        Ok(())
    }

    fn remove(&self, versions: &[VersionName]) -> Result<(), StoreError> {
        for version in versions {
            self.delete(&self.tables.add(version.table()), &version.stored_key());
        }
        Ok(())
    }

    fn cursor(&self, table: TableId, range: &KeyRange) -> Result<Box<dyn Cursor + '_>, StoreError> {
        let (from, to) = key::row_bounds(table, range);
        Ok(Box::new(MemoryCursor { rows: &self.rows, from, to, here: None }))
    }

    fn load_range_tombstones(
        &self,
        table: TableId,
        range: &KeyRange,
    ) -> Result<Vec<RangeTombstone>, StoreError> {
        let from = key::range_tombstones_of(table);
        let mut found = Vec::new();
        for entry in self.rows.range::<[u8], _>((Bound::Included(&from[..]), Bound::Unbounded)) {
            let stored = entry.key();
            if !stored.stored_key().starts_with(&from) {
                break;
            }
            let tombstone = super::read_range_tombstone(stored.stored_key(), stored.value())?;
            if tombstone.range.overlaps(range) {
                found.push(tombstone);
            }
        }
        Ok(found)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn clear_range(&self, table: TableId, range: &KeyRange) -> Result<(), StoreError> {
        let known = self.tables.add(table);
        let (from, to) = key::row_bounds(table, range);
        self.delete_between(&known, &from, &to);
        let (from, to) = super::range_tombstone_bounds(table, range);
        self.delete_between(&known, &from, &to);
        Ok(())
    }

    fn take_in(
        &self,
        table: TableId,
        range: &KeyRange,
        _: &Path,
    ) -> Result<Box<dyn Incoming + '_>, StoreError> {
        let (rising, versions) = (Rising::new(table, range), Vec::new());
        Ok(Box::new(MemoryIncoming { store: self, table, range: range.clone(), rising, versions }))
    }

    fn compact(&self, _: TableId, _: &KeyRange) {}

    fn approximate_bytes(&self, table: TableId, range: &KeyRange) -> u64 {
        let (from, to) = key::row_bounds(table, range);
        let bounds = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
        let rows = self.rows.range::<[u8], _>(bounds);
        rows.map(|entry| (entry.key().stored_key().len() + entry.key().value().len()) as u64).sum()
    }

    fn health(&self) -> StoreHealth {
        let used = self.tables.all().iter().map(|(_, table)| table.used()).sum();
        StoreHealth { memtable_bytes: used, ..StoreHealth::default() }
    }
}

struct MemoryIncoming<'a> {
    store: &'a MemoryStore,
    table: TableId,
    range: KeyRange,
    rising: Rising,
    versions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Incoming for MemoryIncoming<'_> {
    fn add(&mut self, stored_key: &[u8], stored_value: &[u8]) -> Result<(), StoreError> {
        self.rising.check(stored_key, stored_value)?;
        self.versions.push((stored_key.to_vec(), stored_value.to_vec()));
        Ok(())
    }

    fn install(self: Box<Self>, tombstones: &[RangeTombstone]) -> Result<(), StoreError> {
        self.store.clear_range(self.table, &self.range)?;
        let table = self.store.tables.add(self.table);
        for (stored_key, stored_value) in self.versions {
            self.store.put(&table, stored_key, stored_value);
        }
        for tombstone in tombstones {
            let stored_key = key::encode_range_tombstone(self.table, tombstone.range.start(), tombstone.ts);
            let end = value::encode_upper_end(tombstone.range.end());
            self.store.insert(&table, Held::new(stored_key, end));
        }
        Ok(())
    }
}

struct MemoryCursor<'a> {
    rows: &'a Rows,
    from: Vec<u8>,
    to: Vec<u8>,
    here: Option<Entry<'a, Held, ()>>,
}

impl<'a> MemoryCursor<'a> {
    /// Stands at `entry` if that is within the range.
    fn stand(&mut self, entry: Option<Entry<'a, Held, ()>>) {
        self.here = entry.filter(|entry| {
            let stored = entry.key().stored_key();
            stored >= &self.from[..] && stored < &self.to[..]
        });
    }
}

impl Cursor for MemoryCursor<'_> {
    fn seek(&mut self, stored: &[u8]) {
        let from = stored.max(&self.from[..]);
        let entry = self.rows.lower_bound::<[u8]>(Bound::Included(from));
        self.stand(entry);
    }

    fn seek_back(&mut self, stored: &[u8]) {
        let entry = if stored < &self.to[..] {
            self.rows.upper_bound::<[u8]>(Bound::Included(stored))
        } else {
            self.rows.upper_bound::<[u8]>(Bound::Excluded(&self.to[..]))
        };
        self.stand(entry);
    }

    fn seek_first(&mut self) {
        let entry = self.rows.lower_bound::<[u8]>(Bound::Included(&self.from[..]));
        self.stand(entry);
    }

    fn seek_last(&mut self) {
        let entry = self.rows.upper_bound::<[u8]>(Bound::Excluded(&self.to[..]));
        self.stand(entry);
    }

    fn step(&mut self) {
        let entry = self.here.take().and_then(|here| here.next());
        self.stand(entry);
    }

    fn step_back(&mut self) {
        let entry = self.here.take().and_then(|here| here.prev());
        self.stand(entry);
    }

    fn stored_key(&self) -> Result<Option<&[u8]>, StoreError> {
        Ok(self.here.as_ref().map(|entry| entry.key().stored_key()))
    }

    fn stored_value(&self) -> &[u8] {
        self.here.as_ref().map_or(&[], |entry| &entry.key().value()[..])
    }

    fn stored_value_owned(&self) -> Bytes {
        self.here.as_ref().map(|entry| entry.key().value().clone()).unwrap_or_default()
    }
}
