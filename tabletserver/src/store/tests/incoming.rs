//! A range that is taken in from another store: the rows are those of the source, and not one
//! version of a neighbour is touched.

use super::*;
use crate::store::StoreError;
use ebla_kernel::key;

/// Everything that a store holds of a table: stored keys and values.
fn all(store: &dyn Store) -> Vec<(Bytes, Bytes)> {
    versions(store, &KeyRange::all())
}

fn versions(store: &dyn Store, range: &KeyRange) -> Vec<(Bytes, Bytes)> {
    let mut cursor = store.cursor(TABLE, range).unwrap();
    let mut found = Vec::new();
    cursor.seek_first();
    while let Some(stored_key) = cursor.stored_key().unwrap() {
        found.push((Bytes::copy_from_slice(stored_key), cursor.stored_value_owned()));
        cursor.step();
    }
    found
}

fn fill(store: &dyn Store, batches: &[Vec<Change>], from: u64) {
    for (time, changes) in (from..).zip(batches) {
        let changes: Vec<Applied<'_>> =
            changes.iter().map(|change| Applied { table: TABLE, ts: at(time), change }).collect();
        store.apply(&changes).unwrap();
    }
}

/// Range tombstones that begin in a range: those that go with it.
fn tombstones_in(store: &dyn Store, range: &KeyRange) -> Vec<RangeTombstone> {
    let mut found = store.load_range_tombstones(TABLE, range).unwrap();
    found.retain(|tombstone| range.contains(tombstone.range.start()));
    found.sort_by(|a, b| (a.range.start(), a.ts).cmp(&(b.range.start(), b.ts)));
    found
}

fn take(store: &dyn Store, range: &KeyRange, parts: &[&[(Bytes, Bytes)]], tombstones: &[RangeTombstone]) {
    let dir = tempfile::tempdir().unwrap();
    let mut incoming = store.take_in(TABLE, range, dir.path()).unwrap();
    for part in parts {
        part.iter().for_each(|(stored_key, stored_value)| incoming.add(stored_key, stored_value).unwrap());
    }
    incoming.install(tombstones).unwrap();
}

/// `target` takes `range` in as `source` has it; outside of it nothing changes.
fn check(target: &dyn Store, source: &dyn Store, range: &KeyRange) {
    let is_outside = |stored_key: &[u8]| match key::decode(stored_key) {
        Ok(key::StoredKey::Row { key, .. }) => !range.contains(&key),
        Ok(key::StoredKey::RangeTombstone { .. }) | Err(_) => panic!("a row"),
    };
    let outside = |store: &dyn Store| {
        all(store).into_iter().filter(|(stored_key, _)| is_outside(stored_key)).collect::<Vec<_>>()
    };
    let neighbours = outside(target);
    let tombstones_outside = |store: &dyn Store| {
        let found = store.load_range_tombstones(TABLE, &KeyRange::all()).unwrap();
        found.iter().filter(|tombstone| !range.contains(tombstone.range.start())).count()
    };
    let of_neighbours = tombstones_outside(target);
    let wanted = versions(source, range);
    let half = wanted.len() / 2;
    let tombstones = tombstones_in(source, range);
    take(target, range, &[&wanted[..half], &wanted[half..]], &tombstones);
    assert_eq!(versions(target, range), wanted);
    assert_eq!(outside(target), neighbours);
    assert_eq!(tombstones_in(target, range), tombstones);
    assert_eq!(tombstones_outside(target), of_neighbours);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_range_comes_in_and_neighbours_stay(here in batches(), there in batches(), range in range()) {
        let mut disk = Disk::new();
        let (memory, source) = (MemoryStore::new(), MemoryStore::new());
        fill(disk.store(), &here, 1);
        fill(&memory, &here, 1);
        fill(&source, &there, 100);
        check(disk.store(), &source, &range);
        check(&memory, &source, &range);
        let before = all(disk.store());
        // What was installed is durable, and so is what was cleared; neighbours in the memtable
        // were flushed with it.
        disk.reopen();
        prop_assert_eq!(all(disk.store()), before);
    }

    #[test]
    fn a_cleared_range_touches_no_neighbour(here in batches(), range in range()) {
        let disk = Disk::new();
        fill(disk.store(), &here, 1);
        check(disk.store(), &MemoryStore::new(), &range);
    }
}

#[test]
fn what_is_none_of_the_range_is_refused() {
    let range = KeyRange::new(Bytes::from_static(b"b"), Some(Bytes::from_static(b"d"))).unwrap();
    let version = |table: u32, key: &[u8], ts: u64| -> (Bytes, Bytes) {
        (key::encode_row(TableId(table), key, at(ts)).into(), Bytes::from_static(&[0]))
    };
    let good = version(TABLE.0, b"c", 5);
    let bad = [
        version(TABLE.0, b"a", 5),
        version(TABLE.0, b"d", 5),
        version(TABLE.0 + 1, b"c", 5),
        // Newer versions come first.
        version(TABLE.0, b"c", 6),
        (key::encode_range_tombstone(TABLE, b"c", at(5)).into(), Bytes::from_static(&[0])),
        (Bytes::from_static(b"rubbish"), Bytes::from_static(&[0])),
        (version(TABLE.0, b"c", 4).0, Bytes::from_static(&[9])),
        (version(TABLE.0, b"c", 4).0, Bytes::new()),
    ];
    let disk = Disk::new();
    let memory = MemoryStore::new();
    for store in [disk.store() as &dyn Store, &memory] {
        for bad in &bad {
            let dir = tempfile::tempdir().unwrap();
            let mut incoming = store.take_in(TABLE, &range, dir.path()).unwrap();
            incoming.add(&good.0, &good.1).unwrap();
            let refused = incoming.add(&bad.0, &bad.1);
            assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{bad:?} gave {refused:?}");
        }
        assert!(all(store).is_empty());
    }
}

/// The space of a range comes back once it is cleared and worked through.
#[test]
fn a_cleared_range_gives_its_space_back() {
    let disk = Disk::new();
    let value = |byte: u8| {
        Body::Value((0..2_000_u32).map(|at| (at as u8).wrapping_mul(byte)).collect::<Vec<_>>().into())
    };
    for number in 0..2_000_u32 {
        let key = Bytes::from(format!("{number:05}"));
        let change = Change::Put { key, body: value(number as u8), expires_ms: None };
        disk.store().apply(&[Applied { table: TABLE, ts: at(1), change: &change }]).unwrap();
    }
    disk.store().flush().unwrap();
    let files = || -> u64 {
        let files = std::fs::read_dir(disk.dir.path()).unwrap().map(|file| file.unwrap());
        let data = files.filter(|file| file.path().extension().is_some_and(|end| end == "sst"));
        data.map(|file| file.metadata().unwrap().len()).sum()
    };
    let before = files();
    let range = KeyRange::new(Bytes::from_static(b"00100"), None).unwrap();
    disk.store().clear_range(TABLE, &range).unwrap();
    disk.store().compact(TABLE, &range);
    assert!(files() < before / 5, "{before} bytes became {}", files());
    assert_eq!(all(disk.store()).len(), 100);
}
