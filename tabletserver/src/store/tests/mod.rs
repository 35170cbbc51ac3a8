//! Both stores against a plain model: the same random life, the same answers.

mod differential;
mod garbage;
mod in_memory;
mod incoming;
pub(crate) mod model;

use super::gc::{Floors, TableGarbage};
use super::memory::MemoryStore;
use super::rocks::{RocksConfig, RocksStore};
use super::{Applied, Store, VersionName};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::op::{Body, Cause, Change};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::{RangeTombstone, RangeTombstones};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) const TABLE: TableId = TableId(7);

/// A RocksDB store in a directory of its own.
pub(crate) struct Disk {
    dir: TempDir,
    floors: Arc<Floors>,
    store: Option<RocksStore>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let floors = Arc::new(Floors::new());
        let store = Some(open(&dir, &floors));
        Self { dir, floors, store }
    }

    pub(crate) fn store(&self) -> &RocksStore {
        self.store.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(&self.dir, &self.floors));
    }

    pub(crate) fn set_floor(&self, floor: Hlc) {
        self.floors.publish(BTreeMap::from([(TABLE, TableGarbage::Below(floor))]));
    }
}

fn open(dir: &TempDir, floors: &Arc<Floors>) -> RocksStore {
    let config =
        RocksConfig { write_buffer_bytes: 1 << 20, block_cache_bytes: 1 << 20, runs_in_background: false };
    RocksStore::open(dir.path(), &config, Arc::clone(floors)).unwrap()
}

/// Times are milliseconds apart, so that expiry falls between them.
pub(crate) fn at(time: u64) -> Hlc {
    Hlc::new(time, 0)
}

pub(crate) fn key() -> impl Strategy<Value = Bytes> {
    let byte = || prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xFF)];
    proptest::collection::vec(byte(), 1..3).prop_map(Into::into)
}

pub(crate) fn range() -> impl Strategy<Value = KeyRange> {
    let ends = (proptest::option::of(key()), proptest::option::of(key()));
    ends.prop_filter_map("inverted", |(from, to)| KeyRange::new(from.unwrap_or_default(), to).ok())
}

fn change() -> impl Strategy<Value = Change> {
    let body = prop_oneof![
        1 => Just(Body::Tombstone(Cause::Deleted)),
        1 => Just(Body::Tombstone(Cause::Evicted)),
        2 => (0u8..9).prop_map(|byte| Body::Value(vec![byte; 3].into())),
        1 => any::<i64>().prop_map(Body::Counter),
    ];
    let put = (key(), body, proptest::option::weighted(0.2, 1u64..40));
    prop_oneof![
        9 => put.prop_map(|(key, body, expires_ms)| Change::Put { key, body, expires_ms }),
        1 => range().prop_map(|r| Change::RangeTombstone { from: r.start().clone(), to: r.end().cloned() }),
    ]
}

/// The changes of one batch each; batch number n is written at time n + 1.
pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Change>>> {
    proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..30)
}

/// Range tombstones as the map that a tablet makes of them.
fn loaded_map(loaded: &[RangeTombstone]) -> RangeTombstones {
    loaded.iter().cloned().collect()
}

pub(crate) fn apply_all(store: &dyn Store, ts: Hlc, changes: &[Change]) {
    let applied: Vec<_> = changes.iter().map(|change| Applied { table: TABLE, ts, change }).collect();
    store.apply(&applied).unwrap();
}
