//! The row cache: newest versions of hot rows, in front of the store.
//!
//! A reader fills it with what it read from the store, and a write may overtake it between
//! the read and the fill. So every key belongs to one of some thousand stripes, each with a
//! counter (`docs/decisions/0007-row-cache-counts-twice.md`). The apply step raises the counters of its keys before it
//! writes and, after it has written, raises them again and replaces what is cached; a fill
//! counts only if the counter is what it was before the reader looked into the store.
//! Raising twice is what refuses the fill that began between the two and still read the old
//! version. Check and insert happen under the stripe's lock, as does the replacing.
//!
//! Operations on ranges change the tablet's cache generation, which is part of the key; what
//! stood under the old one is never found again and ages out. The cache holds tombstones
//! like values; it does not know expiry, visibility or range tombstones.

use crate::limits::{ROW_CACHE_BYTES_DEFAULT, ROW_CACHE_ROW_SHARE_MAX, ROW_CACHE_STRIPES};
use bytes::Bytes;
use ebla_kernel::op::{Body, Version};
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What an entry costs beside its key and value, about.
const ENTRY_BYTES: usize = 128;

/// Expected size of an entry, for the first size of the table.
const ENTRY_BYTES_EXPECTED: usize = 512;

/// Newest versions of rows, by (cache generation of the tablet, key).
pub struct RowCache {
    rows: Cache<CacheKey, Version, ByteWeight>,
    stripes: Vec<Mutex<u64>>,
    row_bytes_max: usize,
}

/// What a stripe's counter was before a reader looked into the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a fill needs the stamp taken before the read"]
pub struct FillStamp {
    stripe: usize,
    counter: u64,
}

impl Default for RowCache {
    fn default() -> Self {
        Self::new(ROW_CACHE_BYTES_DEFAULT)
    }
}

impl RowCache {
    /// A cache of `bytes_max` bytes; 0 keeps nothing.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let entries = bytes_max / ENTRY_BYTES_EXPECTED;
        Self {
            rows: Cache::with_weighter(entries, bytes_max as u64, ByteWeight),
            stripes: (0..ROW_CACHE_STRIPES).map(|_| Mutex::default()).collect(),
            row_bytes_max: bytes_max / ROW_CACHE_ROW_SHARE_MAX,
        }
    }

    /// The newest applied version of `key`, if it is cached. A read at a timestamp below that
    /// version's must ask the store.
    #[must_use]
    pub fn get(&self, generation: u64, key: &[u8]) -> Option<Version> {
        self.rows.get(&CacheKeyRef { generation, key })
    }

    /// To be called before a reader looks into the store for `key`.
    pub fn begin_fill(&self, generation: u64, key: &[u8]) -> FillStamp {
        let stripe = stripe_of(generation, key);
        FillStamp { stripe, counter: *self.stripe(stripe) }
    }

    /// Caches `version`, the newest of `key` as the store gave it after `begin_fill` gave
    /// `stamp`. Says whether it was cached.
    pub fn fill(&self, stamp: FillStamp, generation: u64, key: &[u8], version: &Version) -> bool {
        if weight(key, version) > self.row_bytes_max {
            return false;
        }
        let key = CacheKey { generation, key: Bytes::copy_from_slice(key) };
        let counter = self.stripe(stamp.stripe);
        if *counter != stamp.counter {
            return false;
        }
        self.rows.insert(key, version.clone());
        true
    }

    /// To be called before a batch with versions of `keys` is written to the store.
    pub fn before_apply<'k>(&self, generation: u64, keys: impl IntoIterator<Item = &'k [u8]>) {
        for key in keys {
            *self.stripe(stripe_of(generation, key)) += 1;
        }
    }

    /// To be called for each key of the batch once it is written. A cached row is replaced
    /// unless it is newer: a write that waited for other copies is applied after later ones of
    /// the same row. Rows that are not cached are left to be read first.
    pub fn after_apply(&self, generation: u64, key: &[u8], version: &Version) {
        let mut counter = self.stripe(stripe_of(generation, key));
        *counter += 1;
        let lookup = CacheKeyRef { generation, key };
        if self.rows.get(&lookup).is_none_or(|cached| cached.ts > version.ts) {
            return;
        }
        if weight(key, version) > self.row_bytes_max {
            self.rows.remove(&lookup);
        } else {
            let key = CacheKey { generation, key: Bytes::copy_from_slice(key) };
            self.rows.insert(key, detach(version));
        }
    }

    /// To be called for each key of which versions were removed (undo, garbage): forgets it.
    pub fn after_remove(&self, generation: u64, key: &[u8]) {
        let mut counter = self.stripe(stripe_of(generation, key));
        *counter += 1;
        self.rows.remove(&CacheKeyRef { generation, key });
    }

    /// Bytes that the cached rows weigh.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// Number of cached rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn stripe(&self, stripe: usize) -> MutexGuard<'_, u64> {
        // A counter is whole after every statement, so a panic elsewhere leaves it right.
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stripe_of(generation: u64, key: &[u8]) -> usize {
    let hash = xxh3_64_with_seed(key, generation);
    (hash % ROW_CACHE_STRIPES as u64) as usize
}

/// The version with a value of its own: what comes with a request is a slice of a whole
/// frame and would keep all of it in memory.
fn detach(version: &Version) -> Version {
    let body = match &version.body {
        Body::Value(value) => Body::Value(Bytes::copy_from_slice(value)),
        Body::Tombstone(cause) => Body::Tombstone(*cause),
        Body::Counter(counter) => Body::Counter(*counter),
    };
    Version { body, ..*version }
}

fn weight(key: &[u8], version: &Version) -> usize {
    let value = match &version.body {
        Body::Value(value) => value.len(),
        Body::Tombstone(_) | Body::Counter(_) => 0,
    };
    ENTRY_BYTES + key.len() + value
}

#[derive(Clone)]
struct ByteWeight;

impl Weighter<CacheKey, Version> for ByteWeight {
    fn weight(&self, key: &CacheKey, version: &Version) -> u64 {
        weight(&key.key, version) as u64
    }
}

#[derive(Clone, PartialEq, Eq)]
struct CacheKey {
    generation: u64,
    key: Bytes,
}

/// A key to look up without owning it; hashes as `CacheKey` does.
struct CacheKeyRef<'k> {
    generation: u64,
    key: &'k [u8],
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        CacheKeyRef { generation: self.generation, key: &self.key }.hash(state);
    }
}

impl Hash for CacheKeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.generation);
        state.write(self.key);
    }
}

impl Equivalent<CacheKey> for CacheKeyRef<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        self.generation == key.generation && *self.key == key.key[..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Applied, Store};
    use ebla_kernel::hlc::Hlc;
    use ebla_kernel::ids::TableId;
    use ebla_kernel::op::Change;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn version(ts: u64) -> Version {
        Version { ts: Hlc(ts), body: Body::Value(Bytes::from_static(b"v")), expires_ms: None }
    }

    #[test]
    fn a_version_that_is_applied_late_replaces_no_newer_one() {
        let cache = RowCache::default();
        let stamp = cache.begin_fill(1, b"k");
        assert!(cache.fill(stamp, 1, b"k", &version(5)));
        cache.after_apply(1, b"k", &version(3));
        assert_eq!(cache.get(1, b"k"), Some(version(5)));
        cache.after_apply(1, b"k", &version(6));
        assert_eq!(cache.get(1, b"k"), Some(version(6)));
    }

    #[test]
    fn a_fill_is_found_under_its_generation_only() {
        let cache = RowCache::default();
        let stamp = cache.begin_fill(1, b"k");
        assert!(cache.fill(stamp, 1, b"k", &version(5)));
        assert_eq!(cache.get(1, b"k"), Some(version(5)));
        assert_eq!(cache.get(2, b"k"), None);
    }

    #[test]
    fn a_fill_overtaken_by_a_write_is_refused() {
        let cache = RowCache::default();
        let before = cache.begin_fill(1, b"k");
        cache.before_apply(1, [&b"k"[..]]);
        let during = cache.begin_fill(1, b"k");
        cache.after_apply(1, b"k", &version(6));
        assert!(!cache.fill(before, 1, b"k", &version(5)));
        assert!(!cache.fill(during, 1, b"k", &version(5)));
        let after = cache.begin_fill(1, b"k");
        assert!(cache.fill(after, 1, b"k", &version(6)));
    }

    #[test]
    fn a_write_replaces_what_is_cached_and_a_removal_forgets_it() {
        let cache = RowCache::default();
        let stamp = cache.begin_fill(1, b"k");
        cache.fill(stamp, 1, b"k", &version(5));
        cache.before_apply(1, [&b"k"[..]]);
        cache.after_apply(1, b"k", &version(6));
        assert_eq!(cache.get(1, b"k"), Some(version(6)));
        cache.before_apply(1, [&b"k"[..]]);
        cache.after_remove(1, b"k");
        assert_eq!(cache.get(1, b"k"), None);
    }

    #[test]
    fn weight_stays_within_its_bound() {
        let cache = RowCache::new(64 * 1024);
        for n in 0..10_000u32 {
            let key = n.to_be_bytes();
            let stamp = cache.begin_fill(1, &key);
            cache.fill(stamp, 1, &key, &version(5));
        }
        assert!(cache.bytes() <= 64 * 1024);
        assert!(!cache.is_empty());
    }

    #[test]
    fn a_row_that_would_drive_out_all_others_is_not_cached() {
        let cache = RowCache::new(64 * 1024);
        let large = Version { body: Body::Value(Bytes::from(vec![0; 32 * 1024])), ..version(5) };
        let stamp = cache.begin_fill(1, b"k");
        assert!(!cache.fill(stamp, 1, b"k", &large));
    }

    /// Readers fill while a writer writes; whatever stays cached at the end is the newest.
    #[test]
    fn no_fill_outlives_the_write_that_overtook_it() {
        let store = MemoryStore::new();
        let cache = RowCache::default();
        let table = TableId(1);
        let newest = || store.get(table, b"k", Hlc::MAX).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // The last round begins when nothing is written any more.
                    let mut is_last = false;
                    while !is_last {
                        is_last = done.load(Ordering::Acquire);
                        let stamp = cache.begin_fill(1, b"k");
                        if let Some(version) = newest() {
                            cache.fill(stamp, 1, b"k", &version);
                        }
                    }
                });
            }
            let writer = scope.spawn(|| {
                for ts in 1..=3_000 {
                    let change = Change::Put {
                        key: Bytes::from_static(b"k"),
                        body: Body::Counter(ts as i64),
                        expires_ms: None,
                    };
                    cache.before_apply(1, [&b"k"[..]]);
                    store.apply(&[Applied { table, ts: Hlc(ts), change: &change }]).unwrap();
                    cache.after_apply(1, b"k", &newest().unwrap());
                    if let Some(cached) = cache.get(1, b"k") {
                        assert_eq!(cached.ts, Hlc(ts), "a version that was overtaken stayed cached");
                    }
                }
            });
            let written = writer.join();
            done.store(true, Ordering::Release);
            written.unwrap();
        });
        assert_eq!(cache.get(1, b"k"), newest());
    }
}
