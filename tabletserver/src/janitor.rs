//! The janitor: what a server does for itself while nobody asks for anything.
//!
//! It moves the garbage floors, removes dead tombstones and expired rows, counts rows, looks
//! at the disk, and sees which tablets are so busy that they must be sampled. Each works in small steps with pauses; none of it is on a request's way, and
//! idle tablets are not looked at.

use crate::counting::Counter;
use crate::limits;
use crate::node::Node;
use crate::routes::{Routes, TableInfo};
use crate::store::StoreError;
use crate::store::gc::{GcPass, GcProgress, TableGarbage};
use crate::tablets::{Directory, TabletHandle};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::range_tombstones::RangeTombstones;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, error};

/// What the janitor works with.
pub struct Janitor {
    /// The server.
    pub node: Arc<Node>,
    /// How often to look for garbage.
    pub gc_interval: Duration,
    /// Set when the server stops.
    pub stop: Arc<AtomicBool>,
}

impl Janitor {
    /// Runs until the server stops.
    pub fn run(self) {
        let (mut counter, mut last_gc) = (Counter::default(), Instant::now());
        // What was replayed at start is counted soon.
        let mut last_count = Instant::now().checked_sub(limits::COUNT_INTERVAL).unwrap_or_else(Instant::now);
        let mut last_look = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            self.node.disk.read();
            self.look_at_load(std::mem::replace(&mut last_look, Instant::now()));
            self.publish_floors();
            self.publish_metrics();
            if last_count.elapsed() >= limits::COUNT_INTERVAL {
                self.log_failure("counting rows", counter.round(&self.node));
                last_count = Instant::now();
            }
            if last_gc.elapsed() >= self.gc_interval {
                self.log_failure("collecting garbage", self.collect_garbage());
                last_gc = Instant::now();
            }
            self.pause(limits::DISK_GAUGE_PACE);
        }
    }

    /// Lets the tablets be sampled that may soon be split for their load.
    fn look_at_load(&self, last_look: Instant) {
        let passed_ms = u64::try_from(last_look.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (directory, routes) = (self.node.directory.load(), self.node.routes.now());
        let limits: BTreeMap<TableId, u64> =
            routes.tables().map(|table| (table.id, table.split_load)).collect();
        let mut room = limits::LOAD_SAMPLERS_MAX;
        for tablet in directory.tablets() {
            let rate = tablet.load.look(passed_ms);
            let limit = limits.get(&tablet.table).copied().unwrap_or(0);
            let is_sampled = tablet.load.sampler().is_some();
            let part = if is_sampled { limits::LOAD_SAMPLE_UNTIL } else { limits::LOAD_SAMPLE_FROM };
            let is_busy = limit > 0 && rate >= limit / part && rate > 0 && tablet.serving().is_some();
            let may_be = is_busy && room > 0;
            room -= usize::from(may_be);
            if may_be != is_sampled {
                tablet.load.set_sampled(may_be);
            }
        }
    }

    fn log_failure(&self, what: &str, result: Result<(), StoreError>) {
        if let Err(error) = result {
            error!(error = &error as &dyn std::error::Error, "{what} failed; it is tried again later");
        }
    }

    /// Floors move with the clock. No read in use is passed, nothing that a backup needs, and no
    /// version that only one is above which may yet be cut or taken back.
    fn publish_floors(&self) {
        let now = self.node.clock.now();
        let oldest_read = self.node.pins.oldest().unwrap_or(Hlc::MAX);
        let mut unsafe_above: BTreeMap<TableId, Hlc> = BTreeMap::new();
        for tablet in self.node.directory.load().tablets() {
            let least = unsafe_above.entry(tablet.table).or_insert(Hlc::MAX);
            *least = tablet.kept_ts().min(*least);
        }
        let floors = floors(&self.node.routes.now(), now, oldest_read, &unsafe_above);
        if !floors.is_empty() {
            self.node.floors.publish(floors);
        }
    }

    fn publish_metrics(&self) {
        let directory = self.node.directory.load();
        let serving = directory.tablets().filter(|tablet| tablet.serving().is_some()).count();
        self.publish_copies(&directory);
        let health = self.node.reader.store.health();
        metrics::gauge!("ebla_tablet_replicas_count").set(directory.count() as f64);
        metrics::gauge!("ebla_tablet_leaders_count").set(serving as f64);
        metrics::gauge!("ebla_store_memtable_bytes").set(health.memtable_bytes as f64);
        metrics::gauge!("ebla_store_compaction_pending_bytes").set(health.compaction_pending_bytes as f64);
        metrics::gauge!("ebla_cache_row_bytes").set(self.node.reader.cache.bytes() as f64);
        let (bytes, free) = self.node.disk.get();
        metrics::gauge!("ebla_disk_size_bytes").set(bytes as f64);
        metrics::gauge!("ebla_disk_free_bytes").set(free as f64);
    }

    /// How the copies of what is led here fare.
    fn publish_copies(&self, directory: &Directory) {
        let routes = self.node.routes.now();
        let (mut lag, mut behind) = (0, 0);
        for tablet in directory.tablets() {
            let Some(everywhere) = tablet.everywhere() else { continue };
            lag = lag.max(tablet.applied_seq().0.saturating_sub(everywhere.0));
            let replicas = routes.tablet(tablet.id).map_or(&[][..], |tablet| &tablet.replicas);
            behind += u64::from(replicas.iter().any(|replica| !replica.in_sync));
        }
        metrics::gauge!("ebla_replication_lag_entries").set(lag as f64);
        metrics::gauge!("ebla_tablet_copies_missing_count").set(behind as f64);
        metrics::gauge!("ebla_peers_count").set(self.node.peers.wanted().len() as f64);
    }

    fn collect_garbage(&self) -> Result<(), StoreError> {
        let directory = self.node.directory.load_full();
        for tablet in directory.tablets() {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            if tablet.size.has_garbage.swap(false, Ordering::Relaxed) {
                self.collect_tablet(tablet)?;
            }
        }
        Ok(())
    }

    fn collect_tablet(&self, tablet: &TabletHandle) -> Result<(), StoreError> {
        let floor = self.node.floors.floor(tablet.table);
        // What was written above the floor may be garbage later.
        if tablet.applied_ts() > floor {
            tablet.size.has_garbage.store(true, Ordering::Relaxed);
        }
        let mut pass = GcPass::new(tablet.table, tablet.range.clone(), floor, &tablet.tombstones.load());
        loop {
            match pass.step(&*self.node.reader.store, limits::GC_STEP_VERSIONS)? {
                GcProgress::Done(gone) => {
                    forget(tablet, &gone);
                    return Ok(());
                }
                GcProgress::More if self.stop.load(Ordering::Relaxed) => return Ok(()),
                GcProgress::More => std::thread::sleep(limits::GC_STEP_PAUSE),
            }
        }
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(limits::FLUSHER_PACE);
        }
    }
}

/// The floor of every table.
fn floors(
    routes: &Routes,
    now: Hlc,
    oldest_read: Hlc,
    unsafe_above: &BTreeMap<TableId, Hlc>,
) -> BTreeMap<TableId, TableGarbage> {
    let held = oldest_read.min(routes.held_at());
    let floor = |table: &Arc<TableInfo>| {
        let kept = Hlc::new(now.ms().saturating_sub(table.retention_ms), 0);
        let undecided = unsafe_above.get(&table.id).copied().unwrap_or(Hlc::MAX);
        (table.id, TableGarbage::Below(kept.min(held).min(undecided)))
    };
    routes.tables().map(floor).collect()
}

/// Takes range tombstones that hide nothing any more out of the readers' sight.
fn forget(tablet: &TabletHandle, gone: &[(Bytes, Hlc)]) {
    if gone.is_empty() {
        return;
    }
    debug!(tablet = %tablet.id, tombstones = gone.len(), "range tombstones collected");
    tablet.tombstones.rcu(|known| {
        let mut left = RangeTombstones::clone(known);
        for (from, ts) in gone {
            left.remove(from, *ts);
        }
        left
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::RouteCache;
    use ebla_proto::v1;

    fn floor(safe_ts: Hlc, oldest_read: Hlc, undecided: Hlc) -> TableGarbage {
        let spec = v1::TableSpec { retention_ms: 1_000, ..v1::TableSpec::default() };
        let table = v1::Table { id: 1, name: "t".into(), spec: Some(spec), ..v1::Table::default() };
        let routes =
            v1::RouteMap { version: 1, tables: vec![table], safe_ts: safe_ts.0, ..v1::RouteMap::default() };
        let cache = RouteCache::default();
        let _ = cache.take(v1::WatchRoutesResponse {
            full: true,
            routes: Some(routes),
            ..v1::WatchRoutesResponse::default()
        });
        let undecided = BTreeMap::from([(TableId(1), undecided)]);
        floors(&cache.now(), Hlc::new(5_000, 0), oldest_read, &undecided)[&TableId(1)]
    }

    #[test]
    fn a_floor_passes_nothing_that_somebody_needs() {
        let at = |ms| Hlc::new(ms, 0);
        let below = |ms| TableGarbage::Below(at(ms));
        assert_eq!(floor(Hlc::MIN, Hlc::MAX, Hlc::MAX), below(4_000));
        assert_eq!(floor(at(3_000), Hlc::MAX, Hlc::MAX), below(3_000));
        assert_eq!(floor(at(4_500), Hlc::MAX, Hlc::MAX), below(4_000));
        assert_eq!(floor(at(3_000), at(2_000), Hlc::MAX), below(2_000));
        assert_eq!(floor(at(3_000), Hlc::MAX, at(1_000)), below(1_000));
    }
}
