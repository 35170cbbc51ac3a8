//! Which tablets and keys are busy.
//!
//! Each tablet counts its requests with relaxed atomics. Keys are looked at only while
//! somebody watches: each watcher has a sketch of bounded size that keeps the frequent keys
//! and forgets rare ones (Misra and Gries). Without a watcher a request costs one load more.
//! Of a tablet that is nearly busy enough to be split, one request in sixteen is looked at by
//! its sampler, watcher or not ([`crate::load_sample`]).

use crate::limits;
use crate::load_sample::Sampler;
use crate::tablets::TabletHandle;
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use ebla_kernel::ids::{TableId, TabletId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Requests of something and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Gets, and pages of scans.
    pub reads: u64,
    /// Operations of writes.
    pub writes: u64,
    /// Keys and values that were read.
    pub read_bytes: u64,
    /// Keys and values that were written.
    pub written_bytes: u64,
}

impl Counts {
    /// One read of so many bytes.
    #[must_use]
    pub fn read(bytes: usize) -> Self {
        Self { reads: 1, read_bytes: bytes as u64, ..Self::default() }
    }

    /// One written operation of so many bytes.
    #[must_use]
    pub fn write(bytes: usize) -> Self {
        Self { writes: 1, written_bytes: bytes as u64, ..Self::default() }
    }

    /// Requests, whatever they are.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.reads + self.writes
    }

    /// `times` as many are added.
    pub fn add(&mut self, more: Self, times: u64) {
        self.reads += more.reads * times;
        self.writes += more.writes * times;
        self.read_bytes += more.read_bytes * times;
        self.written_bytes += more.written_bytes * times;
    }

    /// What has come since `before`.
    #[must_use]
    pub fn since(&self, before: Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(before.reads),
            writes: self.writes.saturating_sub(before.writes),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// The requests of a tablet since its copy was opened here.
#[derive(Default)]
pub struct TabletLoad {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    /// Looks at keys while the tablet is busy.
    sampler: ArcSwapOption<Sampler>,
    /// What the janitor saw: requests by its last look, and their rate in thousandths a second.
    seen: AtomicU64,
    rate: AtomicU64,
}

impl TabletLoad {
    /// Adds to the counts. Gives the number of the request among those of its kind.
    fn add(&self, more: Counts) -> u64 {
        let pairs = [
            (&self.read_bytes, more.read_bytes),
            (&self.written_bytes, more.written_bytes),
            (&self.reads, more.reads),
            (&self.writes, more.writes),
        ];
        let counted = pairs.into_iter().filter(|(_, count)| *count > 0);
        counted.fold(0, |_, (counter, count)| counter.fetch_add(count, Ordering::Relaxed))
    }

    /// Lets the sampler, if there is one, look at some of the requests.
    fn sample(&self, number: u64, key: &[u8]) {
        if is_sampled(number)
            && let Some(sampler) = &*self.sampler.load()
        {
            sampler.note(key);
        }
    }

    /// The sampler, while the tablet is busy.
    #[must_use]
    pub fn sampler(&self) -> Option<Arc<Sampler>> {
        self.sampler.load_full()
    }

    /// Notes how many requests came within so many milliseconds. Only one thread calls this.
    /// Gives the requests per second of the last seconds.
    pub fn look(&self, passed_ms: u64) -> u64 {
        let requests = self.get().requests();
        let came = requests.saturating_sub(self.seen.swap(requests, Ordering::Relaxed));
        let now = came.saturating_mul(1_000_000) / passed_ms.max(1);
        let before = self.rate.load(Ordering::Relaxed);
        let after = before - before / limits::LOAD_RATE_LOOKS + now / limits::LOAD_RATE_LOOKS;
        self.rate.store(after, Ordering::Relaxed);
        after / 1_000
    }

    /// Begins to look at keys, or ends it.
    pub fn set_sampled(&self, is_sampled: bool) {
        self.sampler.store(is_sampled.then(Arc::default));
    }

    /// All of them.
    #[must_use]
    pub fn get(&self) -> Counts {
        Counts {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Whether the request of this number is one of those that are looked at: one in sixteen, and
/// in no pattern that clients could have, too.
fn is_sampled(number: u64) -> bool {
    let mixed = (number ^ (number >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    (mixed >> 32).is_multiple_of(limits::HEAT_SAMPLE_EVERY)
}

/// A key that was asked for.
pub struct HotKey {
    /// Its table.
    pub table: TableId,
    /// The tablet that holds it.
    pub tablet: TabletId,
    /// The key.
    pub key: Bytes,
    /// How often.
    pub counts: Counts,
}

/// Looks at requests, for whoever watches.
#[derive(Default)]
pub struct Heat {
    watches: ArcSwap<Vec<Arc<Watch>>>,
}

impl Heat {
    /// Notes a request for one key.
    pub fn note(&self, tablet: &TabletHandle, key: &[u8], counts: Counts) {
        let number = tablet.load.add(counts);
        tablet.load.sample(number, key);
        for watch in self.watches.load().iter() {
            watch.note(tablet, key, counts);
        }
    }

    /// Notes a page of a scan, that begins with a key. No key is busy for being scanned, and yet
    /// the page belongs to the tablet's load there.
    pub fn note_page(&self, tablet: &TabletHandle, first: &[u8], counts: Counts) {
        let number = tablet.load.add(counts);
        tablet.load.sample(number, first);
    }

    /// Begins to look at keys; none when too many do already.
    #[must_use]
    pub fn watch(self: &Arc<Self>) -> Option<Watching> {
        let watch = Arc::new(Watch::default());
        let mut is_full = false;
        self.watches.rcu(|watches| {
            is_full = watches.len() >= limits::HEAT_WATCHES_MAX;
            let new = (!is_full).then(|| Arc::clone(&watch));
            watches.iter().cloned().chain(new).collect::<Vec<_>>()
        });
        (!is_full).then(|| Watching { heat: Arc::clone(self), watch })
    }
}

/// Looks at keys until it is dropped.
pub struct Watching {
    heat: Arc<Heat>,
    watch: Arc<Watch>,
}

impl Watching {
    /// The busiest keys so far, at most `limit`.
    #[must_use]
    pub fn hottest(&self, limit: usize) -> Vec<HotKey> {
        let sketch = self.watch.sketch();
        let mut keys: Vec<_> = sketch.keys.iter().collect();
        keys.sort_by_key(|((table, key), seen)| (u64::MAX - seen.counts.requests(), *table, key.clone()));
        keys.truncate(limit);
        let hot = |((table, key), seen): (&(TableId, Bytes), &Seen)| HotKey {
            table: *table,
            tablet: seen.tablet,
            key: key.clone(),
            counts: seen.counts,
        };
        keys.into_iter().map(hot).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.heat.watches.rcu(|watches| {
            watches.iter().filter(|watch| !Arc::ptr_eq(watch, &self.watch)).cloned().collect::<Vec<_>>()
        });
    }
}

/// What one watcher has seen.
#[derive(Default)]
struct Watch {
    requests: AtomicU64,
    sketch: Mutex<Sketch>,
}

impl Watch {
    fn note(&self, tablet: &TabletHandle, key: &[u8], counts: Counts) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        // A quiet server is counted exactly, a busy one by samples.
        let weight = if number < limits::HEAT_EXACT_REQUESTS {
            1
        } else if number.is_multiple_of(limits::HEAT_SAMPLE_EVERY) {
            limits::HEAT_SAMPLE_EVERY
        } else {
            return;
        };
        self.sketch().add(tablet, key, counts, weight);
    }

    fn sketch(&self) -> MutexGuard<'_, Sketch> {
        self.sketch.lock().expect("no holder of this lock panics")
    }
}

/// The frequent keys among many. A key that is seen more often than one in
/// `HEAT_KEYS_MAX` of all requests is in it.
#[derive(Default)]
struct Sketch {
    keys: HashMap<(TableId, Bytes), Seen>,
}

struct Seen {
    tablet: TabletId,
    counts: Counts,
    /// What keeps the key here: each new key that finds no room takes some of everybody's.
    credit: u64,
}

impl Sketch {
    fn add(&mut self, tablet: &TabletHandle, key: &[u8], counts: Counts, weight: u64) {
        let name = (tablet.table, Bytes::copy_from_slice(key));
        if let Some(seen) = self.keys.get_mut(&name) {
            seen.credit += weight;
            seen.counts.add(counts, weight);
            seen.tablet = tablet.id;
            return;
        }
        if self.keys.len() >= limits::HEAT_KEYS_MAX {
            let least = self.keys.values().map(|seen| seen.credit).min().unwrap_or(0).min(weight);
            self.keys.retain(|_, seen| {
                seen.credit -= least;
                seen.credit > 0
            });
            if self.keys.len() >= limits::HEAT_KEYS_MAX {
                return;
            }
        }
        let mut seen = Seen { tablet: tablet.id, counts: Counts::default(), credit: weight };
        seen.counts.add(counts, weight);
        self.keys.insert(name, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tablets::HandleSpec;
    use ebla_kernel::ancestry::Ancestry;
    use ebla_kernel::entry::LogEnd;
    use ebla_kernel::ids::{Lineage, ReplicaId};
    use ebla_kernel::range::KeyRange;
    use ebla_kernel::range_tombstones::RangeTombstones;

    fn handle(id: u64) -> TabletHandle {
        TabletHandle::new(HandleSpec {
            kind: ebla_kernel::meta::TableKind::Durable,
            id: TabletId(id),
            table: TableId(1),
            range: KeyRange::all(),
            replica: ReplicaId(1),
            generation: 1,
            tombstones: RangeTombstones::new(),
            applied: LogEnd::default(),
            end: LogEnd::default(),
            base: LogEnd::default(),
            epochs: Vec::new(),
            ancestry: Ancestry { lineage: Lineage(1), ..Ancestry::default() },
        })
    }

    #[test]
    fn hot_keys_are_found_among_many() {
        let heat = Arc::new(Heat::default());
        let tablet = handle(7);
        heat.note(&tablet, b"before", Counts::read(1));
        let watching = heat.watch().expect("nobody else watches");
        for number in 0..40_000_u32 {
            heat.note(&tablet, format!("rare{number}").as_bytes(), Counts::read(10));
            if number % 10 == 0 {
                heat.note(&tablet, b"hot", Counts::write(20));
            }
        }
        let hottest = watching.hottest(2);
        assert_eq!((&hottest[0].key[..], hottest[0].tablet), (&b"hot"[..], TabletId(7)));
        let writes = hottest[0].counts.writes;
        assert!((2_000..=6_000).contains(&writes), "about 4000 of {writes}");
        assert_eq!(tablet.load.get().reads, 40_001);
        assert_eq!(tablet.load.get().written_bytes, 4_000 * 20);
        drop(watching);
        assert!(heat.watches.load().is_empty());
    }

    #[test]
    fn a_quiet_server_is_counted_exactly() {
        let heat = Arc::new(Heat::default());
        let tablet = handle(1);
        let watching = heat.watch().expect("nobody else watches");
        for _ in 0..3 {
            heat.note(&tablet, b"a", Counts::read(5));
        }
        heat.note(&tablet, b"b", Counts::write(7));
        let hottest = watching.hottest(10);
        let seen: Vec<_> = hottest.iter().map(|hot| (&hot.key[..], hot.counts)).collect();
        let reads = Counts { reads: 3, read_bytes: 15, ..Counts::default() };
        assert_eq!(seen, [(&b"a"[..], reads), (&b"b"[..], Counts::write(7))]);
    }

    #[test]
    fn watchers_are_few() {
        let heat = Arc::new(Heat::default());
        let watching: Vec<_> = (0..limits::HEAT_WATCHES_MAX).filter_map(|_| heat.watch()).collect();
        assert_eq!(watching.len(), limits::HEAT_WATCHES_MAX);
        assert!(heat.watch().is_none());
        drop(watching);
        assert!(heat.watch().is_some());
    }
}
