//! What compactions and garbage passes may forget, and what they must not.

use super::model::Model;
use super::*;
use crate::store::gc::{GcPass, ReadPins, gc_pass};
use crate::store::scan::{Order, PageLimits, Projection, ScanSpec, scan_page};
use ebla_kernel::op::{Cause, Version};

const LIMITS: PageLimits = PageLimits { rows_max: 1_000, bytes_max: 1 << 20, work_max: 100_000 };

/// Every stored version of every row.
fn versions(store: &dyn Store) -> BTreeMap<(Bytes, Hlc), Version> {
    let mut found = BTreeMap::new();
    let mut cursor = store.cursor(TABLE, &KeyRange::all()).unwrap();
    cursor.seek_first();
    while let Some(stored) = cursor.stored_key().unwrap() {
        let key = crate::store::user_key(stored).unwrap();
        let (_, ts) = crate::store::split_stored(stored).unwrap();
        found.insert((key, ts), crate::store::value::decode(ts, &cursor.stored_value_owned()).unwrap());
        cursor.step();
    }
    found
}

/// The logical state of a store: all versions above the floor, and per key the
/// newest at or below it unless that is a tombstone or expired there.
fn logical(store: &dyn Store, floor: Hlc) -> BTreeMap<(Bytes, Hlc), Version> {
    let mut all = versions(store);
    let names: Vec<(Bytes, Hlc)> = all.keys().cloned().collect();
    for (key, ts) in names {
        let is_newest = !all.keys().any(|(other, newer)| *other == key && *newer > ts && *newer <= floor);
        let is_live = all[&(key.clone(), ts)].is_live(floor);
        if ts <= floor && !(is_newest && is_live) {
            all.remove(&(key, ts));
        }
    }
    all
}

fn check_reads(store: &dyn Store, tombstones: &RangeTombstones, model: &Model, floor: u64) {
    for time in floor..45 {
        let spec = ScanSpec {
            table: TABLE,
            range: KeyRange::all(),
            at: at(time),
            order: Order::Forward,
            projection: Projection::Rows,
        };
        let page = scan_page(store, tombstones, &spec, &LIMITS).unwrap();
        assert_eq!(page.rows, model.scan(&KeyRange::all(), at(time), Order::Forward), "at {time}");
    }
}

/// Applies all batches, with a flush after each of the numbers in `flushes`.
fn fill(store: &dyn Store, batches: &[Vec<Change>], flushes: &[usize]) -> Model {
    let mut model = Model::default();
    for (number, changes) in batches.iter().enumerate() {
        apply_all(store, at(number as u64 + 1), changes);
        model.apply(at(number as u64 + 1), changes);
        if flushes.contains(&number) {
            store.flush().unwrap();
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_compaction_keeps_the_logical_state(
        batches in batches(),
        floors in (0u64..35, 0u64..35),
        flushes in proptest::collection::vec(0usize..30, 0..4),
    ) {
        let disk = Disk::new();
        let store = disk.store();
        let model = fill(store, &batches, &flushes);
        for floor in [floors.0, floors.1] {
            disk.set_floor(at(floor));
            let floor = disk.floors.floor(TABLE);
            let before = logical(store, floor);
            store.flush().unwrap();
            store.compact(TABLE, &KeyRange::all());
            prop_assert_eq!(logical(store, floor), before);
            check_reads(store, &model.range_tombstones(), &model, floor.ms());
        }
    }

    #[test]
    fn a_garbage_pass_changes_no_read_and_leaves_no_tombstone(
        batches in batches(),
        floor in 0u64..35,
        flushes in proptest::collection::vec(0usize..30, 0..4),
        compacts_first: bool,
        budget in 1usize..20,
    ) {
        let (memory, disk) = (MemoryStore::new(), Disk::new());
        disk.set_floor(at(floor));
        for store in [&memory as &dyn Store, disk.store()] {
            let model = fill(store, &batches, &flushes);
            if compacts_first {
                disk.store().compact(TABLE, &KeyRange::all());
            }
            let mut tombstones = model.range_tombstones();
            let pass = GcPass::new(TABLE, KeyRange::all(), at(floor), &tombstones);
            for (from, ts) in gc_pass(store, pass, budget).unwrap() {
                prop_assert!(ts <= at(floor));
                tombstones.remove(&from, ts);
            }
            prop_assert!(tombstones.iter().all(|tombstone| tombstone.ts > at(floor)));
            let loaded = store.load_range_tombstones(TABLE, &KeyRange::all()).unwrap();
            prop_assert_eq!(loaded_map(&loaded), tombstones.clone());
            check_reads(store, &tombstones, &model, floor);
            let all = versions(store);
            let is_newest_below = |key: &Bytes, ts: Hlc| {
                !all.keys().any(|(other, newer)| other == key && *newer > ts && *newer <= at(floor))
            };
            for ((key, ts), version) in all.iter().filter(|((_, ts), _)| *ts <= at(floor)) {
                prop_assert!(!is_newest_below(key, *ts) || version.is_live(at(floor)));
            }
        }
    }
}

fn put(key: &'static [u8], body: Body, expires_ms: Option<u64>) -> Change {
    Change::Put { key: Bytes::from_static(key), body, expires_ms }
}

fn value(len: usize) -> Body {
    Body::Value(vec![b'v'; len].into())
}

#[test]
fn a_tombstone_that_may_hide_another_level_is_kept() {
    let disk = Disk::new();
    let store = disk.store();
    // Neighbours on both sides make the two files overlap, or they would not be merged.
    let beside = [put(b"a", value(3), None), put(b"z", value(3), None)];
    apply_all(store, at(1), &beside);
    apply_all(store, at(1), &[put(b"k", value(3), None)]);
    store.flush().unwrap();
    store.compact(TABLE, &KeyRange::all());
    apply_all(store, at(2), &[put(b"k", Body::Tombstone(Cause::Deleted), None)]);
    apply_all(store, at(2), &beside);
    disk.set_floor(at(9));
    store.flush().unwrap();
    assert_eq!(store.get(TABLE, b"k", at(9)).unwrap().unwrap().body, Body::Tombstone(Cause::Deleted));
    store.compact(TABLE, &KeyRange::all());
    assert_eq!(store.get(TABLE, b"k", at(9)).unwrap().unwrap().body, Body::Tombstone(Cause::Deleted));
    assert_eq!(versions(store).len(), 3, "what it hid went in the same compaction");
}

#[test]
fn the_bytes_of_an_expired_row_go_at_compaction() {
    let disk = Disk::new();
    let store = disk.store();
    apply_all(store, at(1), &[put(b"k", value(1_000), Some(5))]);
    disk.set_floor(at(4));
    store.flush().unwrap();
    store.compact(TABLE, &KeyRange::all());
    assert_eq!(store.get(TABLE, b"k", at(9)).unwrap().unwrap().body, value(1_000));
    disk.set_floor(at(5));
    store.compact(TABLE, &KeyRange::all());
    assert_eq!(store.get(TABLE, b"k", at(9)).unwrap().unwrap().body, Body::Tombstone(Cause::Deleted));
}

#[test]
fn a_dropped_table_leaves_nothing() {
    let disk = Disk::new();
    let store = disk.store();
    apply_all(store, at(1), &[put(b"k", value(3), None)]);
    disk.floors.publish(BTreeMap::from([(TABLE, TableGarbage::Dropped)]));
    store.flush().unwrap();
    store.compact(TABLE, &KeyRange::all());
    assert!(versions(store).is_empty());
}

#[test]
fn floors_never_go_back_and_pins_give_the_oldest_read() {
    let floors = Floors::new();
    floors.publish(BTreeMap::from([(TABLE, TableGarbage::Below(at(5)))]));
    floors.publish(BTreeMap::from([(TABLE, TableGarbage::Below(at(3)))]));
    assert_eq!(floors.floor(TABLE), at(5));
    assert!(floors.can_read(TABLE, at(5)) && !floors.can_read(TABLE, at(4)));

    let pins = ReadPins::new();
    let (a, b, again) = (pins.pin(at(7)), pins.pin(at(4)), pins.pin(at(4)));
    assert_eq!(pins.oldest(), Some(at(4)));
    drop(b);
    assert_eq!(pins.oldest(), Some(at(4)));
    drop(again);
    assert_eq!(pins.oldest(), Some(a.at()));
    drop(a);
    assert_eq!(pins.oldest(), None);
}
