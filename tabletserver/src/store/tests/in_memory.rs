//! What only the store in memory does: it counts what it holds, and lets garbage go by notes.

use super::*;
use crate::store::memory_tables::VERSION_BYTES;
use crate::store::split_stored;
use ebla_kernel::meta::Eviction;
use ebla_kernel::op::Version;
use std::collections::BTreeSet;

fn put(key: String, body: Body) -> Change {
    Change::Put { key: key.into(), body, expires_ms: None }
}

fn key_of(change: &Change) -> Option<&Bytes> {
    match change {
        Change::Put { key, .. } => Some(key),
        Change::RangeTombstone { .. } => None,
    }
}

/// Bytes of everything that is stored, counted anew.
fn counted(store: &MemoryStore) -> u64 {
    let mut cursor = store.cursor(TABLE, &KeyRange::all()).unwrap();
    cursor.seek_first();
    let mut bytes = 0;
    while let Some(stored) = cursor.stored_key().unwrap() {
        bytes += VERSION_BYTES + (stored.len() + cursor.stored_value().len()) as u64;
        cursor.step();
    }
    bytes
}

fn rows_only() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let row = change().prop_filter("rows only", |change| matches!(change, Change::Put { .. }));
    proptest::collection::vec(proptest::collection::vec(row, 1..3), 1..40)
}

proptest! {
    #[test]
    fn what_a_read_at_or_above_the_floor_sees_stays(batches in rows_only(), floor in 0_u64..45) {
        let (whole, store) = (MemoryStore::new(), MemoryStore::new());
        for (time, batch) in (1..).zip(&batches) {
            apply_all(&whole, at(time), batch);
            apply_all(&store, at(time), batch);
        }
        let table = store.tables().add(TABLE);
        prop_assert!(!store.collect(&table, at(floor), usize::MAX));
        let keys: BTreeSet<&Bytes> = batches.iter().flatten().filter_map(key_of).collect();
        for key in keys {
            for time in floor..46 {
                let read = |store: &MemoryStore| store.get(TABLE, key, at(time)).unwrap();
                let is_gone = |version: &Version| matches!(version.body, Body::Tombstone(_));
                let (kept, wanted) = (read(&store), read(&whole));
                prop_assert_eq!(kept.filter(|it| !is_gone(it)), wanted.filter(|it| !is_gone(it)));
            }
        }
        store.collect(&table, Hlc::MAX, usize::MAX);
        prop_assert_eq!(table.used(), counted(&store), "nothing but rows is left, each counted once");
        prop_assert!(!table.has_garbage());
        let versions = counted(&store) / VERSION_BYTES;
        let live = batches.iter().flatten().filter_map(key_of).collect::<BTreeSet<_>>().len() as u64;
        prop_assert!(versions <= live * 2, "{versions} versions of {live} rows");
        store.clear_range(TABLE, &KeyRange::all()).unwrap();
        prop_assert_eq!(table.used(), 0);
    }
}

/// Some threads put versions of a few rows while others remove them: afterwards a get finds what
/// the list has first.
#[test]
fn a_get_finds_what_the_list_has_first() {
    let store = MemoryStore::new();
    let key = |number: u64| format!("{}", number % 4);
    let name = |number: u64| VersionName::Row { table: TABLE, key: key(number).into(), ts: at(number) };
    std::thread::scope(|scope| {
        for part in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for number in (part..20_000).step_by(2) {
                    apply_all(store, at(number), &[put(key(number), Body::Counter(number as i64))]);
                    store.remove(&[name(number.saturating_sub(3))]).unwrap();
                }
            });
        }
    });
    for number in 0..4 {
        let newest = store.get(TABLE, key(number).as_bytes(), Hlc::MAX).unwrap();
        let row = KeyRange::new(key(number).into(), Some((key(number) + "~").into())).unwrap();
        let mut cursor = store.cursor(TABLE, &row).unwrap();
        cursor.seek_first();
        let first = cursor.stored_key().unwrap().map(|stored| split_stored(stored).unwrap().1);
        assert_eq!(newest.map(|version| version.ts), first);
    }
}

#[test]
fn a_stretch_of_rows_is_told_by_worth_and_goes_on_where_it_ended() {
    let store = MemoryStore::new();
    let table = store.tables().add(TABLE);
    table.set_limit(Some(1 << 30), Eviction::LeastRecent);
    for number in 0..100_u32 {
        store.tables().set_tick(number);
        apply_all(&store, at(u64::from(number) + 1), &[put(format!("{number:03}"), Body::Counter(1))]);
    }
    store.tables().set_tick(1_000);
    assert!(store.get(TABLE, b"007", Hlc::MAX).unwrap().is_some());
    let (first, next) = store.sample(TABLE, &KeyRange::all(), 40).unwrap();
    assert_eq!((first.len(), next.as_deref()), (40, Some(&b"040"[..])));
    let coldest = first.iter().min_by_key(|row| row.worth).unwrap();
    let hottest = first.iter().max_by_key(|row| row.worth).unwrap();
    assert_eq!((&coldest.key[..], &hottest.key[..]), (&b"000"[..], &b"007"[..]));
    let rest = KeyRange::new(next.unwrap(), None).unwrap();
    let (rest, end) = store.sample(TABLE, &rest, 1_000).unwrap();
    assert_eq!((rest.len(), end), (60, None));
}

/// What is counted is about what the process takes.
#[test]
#[cfg(target_os = "linux")]
fn what_is_counted_is_what_is_taken() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4_096
    };
    for value_bytes in [20, 400] {
        let store = MemoryStore::new();
        let table = store.tables().add(TABLE);
        let before = resident();
        for number in 0..100_000_u64 {
            let body = Body::Value(vec![7; value_bytes].into());
            apply_all(&store, at(number + 1), &[put(format!("row-{number:09}"), body)]);
        }
        let (taken, counted) = (resident() - before, table.used());
        let ratio = taken as f64 / counted as f64;
        println!("{value_bytes} bytes: {taken} taken, {counted} counted: {ratio:.2}");
        assert!((0.6..1.25).contains(&ratio), "{taken} bytes taken, {counted} counted");
    }
}
