//! The store in memory: a skip list with the same stored keys and values as on disk.
//!
//! A batch is not atomic by itself: its versions appear one after the other. Readers do not
//! see that, because they read at a timestamp that is published only when the whole batch
//! has been applied, and versions never change. `flush` has nothing to do: "durable" means
//! in the memory of this process.

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
use std::sync::atomic::{AtomicU64, Ordering};

type Rows = SkipMap<Vec<u8>, Bytes>;

/// A store that lives as long as its process.
#[derive(Default)]
pub struct MemoryStore {
    rows: Rows,
    bytes: AtomicU64,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn put(&self, stored_key: Vec<u8>, stored_value: Vec<u8>) {
        let bytes = (stored_key.len() + stored_value.len()) as u64;
        self.delete(&stored_key);
        self.rows.insert(stored_key, stored_value.into());
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn delete(&self, stored_key: &[u8]) {
        if let Some(old) = self.rows.remove(stored_key) {
            let bytes = (old.key().len() + old.value().len()) as u64;
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn delete_between(&self, from: &[u8], to: &[u8]) {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for entry in self.rows.range::<[u8], _>(bounds) {
            self.delete(entry.key());
        }
    }
}

impl Store for MemoryStore {
    fn get(&self, table: TableId, key: &[u8], at: Hlc) -> Result<Option<Version>, StoreError> {
        let wanted = key::encode_row(table, key, at);
        let Some(entry) = self.rows.lower_bound::<[u8]>(Bound::Included(&wanted)) else { return Ok(None) };
        let (prefix, ts) = super::split_stored(entry.key())?;
        if prefix != &wanted[..wanted.len() - key::TS_BYTES] {
            return Ok(None);
        }
        value::decode(ts, entry.value()).map(Some)
    }

    fn apply(&self, changes: &[Applied<'_>]) -> Result<(), StoreError> {
        for Applied { table, ts, change } in changes {
            match change {
                Change::Put { key, body, expires_ms } => {
                    self.put(key::encode_row(*table, key, *ts), value::encode(body, *expires_ms));
                }
                Change::RangeTombstone { from, to } => {
                    let stored_key = key::encode_range_tombstone(*table, from, *ts);
                    self.put(stored_key, value::encode_upper_end(to.as_ref()));
                }
            }
        }
        Ok(())
    }

    fn remove(&self, versions: &[VersionName]) -> Result<(), StoreError> {
        for version in versions {
            self.delete(&version.stored_key());
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
            let tombstone = super::read_range_tombstone(entry.key(), entry.value())?;
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
        let (from, to) = key::row_bounds(table, range);
        self.delete_between(&from, &to);
        let (from, to) = super::range_tombstone_bounds(table, range);
        self.delete_between(&from, &to);
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
        rows.map(|entry| (entry.key().len() + entry.value().len()) as u64).sum()
    }

    fn health(&self) -> StoreHealth {
        StoreHealth { memtable_bytes: self.bytes.load(Ordering::Relaxed), ..StoreHealth::default() }
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
        for (stored_key, stored_value) in self.versions {
            self.store.put(stored_key.to_vec(), stored_value.to_vec());
        }
        for tombstone in tombstones {
            let stored_key = key::encode_range_tombstone(self.table, tombstone.range.start(), tombstone.ts);
            self.store.put(stored_key, value::encode_upper_end(tombstone.range.end()));
        }
        Ok(())
    }
}

struct MemoryCursor<'a> {
    rows: &'a Rows,
    from: Vec<u8>,
    to: Vec<u8>,
    here: Option<Entry<'a, Vec<u8>, Bytes>>,
}

impl<'a> MemoryCursor<'a> {
    /// Stands at `entry` if that is within the range.
    fn stand(&mut self, entry: Option<Entry<'a, Vec<u8>, Bytes>>) {
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
        self.here.as_ref().map_or(&[], |entry| &entry.value()[..])
    }

    fn stored_value_owned(&self) -> Bytes {
        self.here.as_ref().map(|entry| entry.value().clone()).unwrap_or_default()
    }
}
