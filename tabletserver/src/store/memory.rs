//! The store in memory: a skip list with the same stored keys and values as on disk.
//!
//! A batch is not atomic by itself: its versions appear one after the other. Readers do not
//! see that, because they read at a timestamp that is published only when the whole batch
//! has been applied, and versions never change. `flush` has nothing to do: "durable" means
//! in the memory of this process.

use super::memory_tables::{MemoryTable, MemoryTables, VERSION_BYTES};
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
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

type Rows = SkipMap<Vec<u8>, Slot>;

/// A stored value, and how hot its row was when this was its newest version.
struct Slot {
    value: Bytes,
    heat: AtomicU32,
}

/// A store that lives as long as its process.
#[derive(Default)]
pub struct MemoryStore {
    rows: Rows,
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
        self.delete(table, &stored_key);
        let is_tombstone = value::Head::read(&stored_value).is_ok_and(value::Head::is_tombstone);
        table.add(size(&stored_key, &stored_value));
        let heat = AtomicU32::new(0);
        let put = self.rows.insert(stored_key, Slot { value: stored_value.into(), heat });
        let Ok((row, ts)) = super::split_stored(put.key()) else { return };
        let is_same_row = |entry: &Entry<'_, Vec<u8>, Slot>| entry.key().starts_with(row);
        let older = put.next().filter(is_same_row);
        let before = older.as_ref().map(|older| older.value().heat.load(Ordering::Relaxed));
        put.value().heat.store(self.tables.heat_of_write(table, before), Ordering::Relaxed);
        if is_tombstone || older.is_some() || put.prev().is_some_and(|newer| is_same_row(&newer)) {
            table.note_garbage(ts, row);
        }
    }

    /// Puts a range tombstone: its value is none of a row's, and the garbage pass removes it.
    fn put_range(&self, table: &MemoryTable, stored_key: Vec<u8>, stored_value: Vec<u8>) {
        self.delete(table, &stored_key);
        table.add(size(&stored_key, &stored_value));
        self.rows.insert(stored_key, Slot { value: stored_value.into(), heat: AtomicU32::new(0) });
    }

    fn delete(&self, table: &MemoryTable, stored_key: &[u8]) {
        if let Some(old) = self.rows.remove(stored_key) {
            table.sub(size(old.key(), &old.value().value));
        }
    }

    fn delete_between(&self, table: &MemoryTable, from: &[u8], to: &[u8]) {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for entry in self.rows.range::<[u8], _>(bounds) {
            self.delete(table, entry.key());
        }
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
        let versions = self.rows.range::<[u8], _>(from).take_while(|entry| entry.key().starts_with(row));
        let mut gone: Vec<_> = versions.collect();
        let is_tombstone = |entry: &Entry<'_, Vec<u8>, Slot>| {
            value::Head::read(&entry.value().value).is_ok_and(value::Head::is_tombstone)
        };
        if gone.first().is_some_and(|newest| !is_tombstone(newest)) {
            gone.remove(0);
        }
        for entry in gone.iter().rev() {
            self.delete(table, entry.key());
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
            let (prefix, ts) = super::split_stored(entry.key())?;
            let bytes = size(entry.key(), &entry.value().value);
            if prefix == &row[..] {
                if let Some(known) = rows.last_mut().filter(|_| is_live) {
                    known.bytes += bytes;
                }
                continue;
            }
            let key = super::user_key(entry.key())?;
            if at >= versions_max {
                return Ok((rows, Some(key)));
            }
            row = prefix.to_vec();
            is_live = !value::Head::read(&entry.value().value)?.is_tombstone();
            if is_live {
                let worth = self.tables.worth(eviction, entry.value().heat.load(Ordering::Relaxed));
                rows.push(Evictable { key, ts, bytes, worth });
            }
        }
        Ok((rows, None))
    }
}

fn size(stored_key: &[u8], stored_value: &[u8]) -> u64 {
    VERSION_BYTES + (stored_key.len() + stored_value.len()) as u64
}

impl Store for MemoryStore {
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        let wanted = key::encode_row(table, key, at);
        let Some(entry) = self.rows.lower_bound::<[u8]>(Bound::Included(&wanted)) else { return Ok(None) };
        let (prefix, ts) = super::split_stored(entry.key())?;
        if prefix != &wanted[..wanted.len() - key::TS_BYTES] {
            return Ok(None);
        }
        if at == Hlc::MAX {
            self.tables.touch(table, &entry.value().heat);
        }
        value::decode(ts, &entry.value().value).map(Some)
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
                    self.put_range(table, stored_key, value::encode_upper_end(to.as_ref()));
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
            if !entry.key().starts_with(&from) {
                break;
            }
            let tombstone = super::read_range_tombstone(entry.key(), &entry.value().value)?;
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
        rows.map(|entry| (entry.key().len() + entry.value().value.len()) as u64).sum()
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
    versions: Vec<(Bytes, Bytes)>,
}

impl Incoming for MemoryIncoming<'_> {
    fn add(&mut self, versions: &[(Bytes, Bytes)]) -> Result<(), StoreError> {
        for (stored_key, stored_value) in versions {
            self.rising.check(stored_key, stored_value)?;
        }
        self.versions.extend_from_slice(versions);
        Ok(())
    }

    fn install(self: Box<Self>, tombstones: &[RangeTombstone]) -> Result<(), StoreError> {
        self.store.clear_range(self.table, &self.range)?;
        let table = self.store.tables.add(self.table);
        for (stored_key, stored_value) in self.versions {
            self.store.put(&table, stored_key.to_vec(), stored_value.to_vec());
        }
        for tombstone in tombstones {
            let stored_key = key::encode_range_tombstone(self.table, tombstone.range.start(), tombstone.ts);
            self.store.put_range(&table, stored_key, value::encode_upper_end(tombstone.range.end()));
        }
        Ok(())
    }
}

struct MemoryCursor<'a> {
    rows: &'a Rows,
    from: Vec<u8>,
    to: Vec<u8>,
    here: Option<Entry<'a, Vec<u8>, Slot>>,
}

impl<'a> MemoryCursor<'a> {
    /// Stands at `entry` if that is within the range.
    fn stand(&mut self, entry: Option<Entry<'a, Vec<u8>, Slot>>) {
        self.here = entry.filter(|entry| *entry.key() >= self.from && *entry.key() < self.to);
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
        Ok(self.here.as_ref().map(|entry| &entry.key()[..]))
    }

    fn stored_value(&self) -> &[u8] {
        self.here.as_ref().map_or(&[], |entry| &entry.value().value[..])
    }

    fn stored_value_owned(&self) -> Bytes {
        self.here.as_ref().map(|entry| entry.value().value.clone()).unwrap_or_default()
    }
}
