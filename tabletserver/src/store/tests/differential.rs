//! Random lives: batches, removals, flushes and reopens, with reads in between.

use super::model::Model;
use super::*;
use crate::store::scan::{Order, PageLimits, Projection, Row, ScanSpec, Scanner, scan_page};

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Change>),
    /// Removes the version whose number this is, modulo how many there are.
    Remove(usize),
    Clear(KeyRange),
    Flush,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => proptest::collection::vec(change(), 1..4).prop_map(Step::Apply),
        4 => any::<usize>().prop_map(Step::Remove),
        1 => range().prop_map(Step::Clear),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

fn spec() -> impl Strategy<Value = ScanSpec> {
    let order = prop_oneof![Just(Order::Forward), Just(Order::Reverse)];
    let projection = prop_oneof![Just(Projection::Rows), Just(Projection::Keys), Just(Projection::Count)];
    (range(), 0u64..45, order, projection).prop_map(|(range, time, order, projection)| ScanSpec {
        table: TABLE,
        range,
        at: at(time),
        order,
        projection,
    })
}

fn limits() -> impl Strategy<Value = PageLimits> {
    (1usize..6, 1usize..40, 1usize..12).prop_map(|(rows_max, bytes_max, work_max)| PageLimits {
        rows_max,
        bytes_max,
        work_max,
    })
}

/// All rows of `spec` by pages of their own, and how many they counted.
fn read_by_pages(
    store: &dyn Store,
    tombstones: &RangeTombstones,
    spec: &ScanSpec,
    limits: &PageLimits,
) -> (Vec<Row>, u64) {
    let (mut rows, mut count) = (Vec::new(), 0);
    let mut left = Some(spec.clone());
    while let Some(spec) = left {
        let page = scan_page(store, tombstones, &spec, limits).unwrap();
        assert!(page.work > 0 || page.next.is_none(), "a page makes progress");
        assert!(page.count as usize <= limits.rows_max);
        count += page.count;
        rows.extend(page.rows);
        left = page.next.and_then(|next| spec.resume(&next));
    }
    (rows, count)
}

/// The same by one scanner.
fn read_by_scanner(
    store: &dyn Store,
    tombstones: &RangeTombstones,
    spec: &ScanSpec,
    limits: &PageLimits,
) -> (Vec<Row>, u64) {
    let (mut rows, mut count) = (Vec::new(), 0);
    let mut scanner = Scanner::open(store, tombstones, spec).unwrap();
    loop {
        let page = scanner.next_page(limits).unwrap();
        count += page.count;
        rows.extend(page.rows);
        if page.next.is_none() {
            return (rows, count);
        }
    }
}

/// What of the model's rows a scan with this projection gives.
fn project(mut rows: Vec<Row>, projection: Projection) -> (Vec<Row>, u64) {
    let count = rows.len() as u64;
    match projection {
        Projection::Rows => {}
        Projection::Keys => rows.iter_mut().for_each(|row| row.body = None),
        Projection::Count => rows.clear(),
    }
    (rows, count)
}

fn live(steps: &[Step], memory: &MemoryStore, disk: &mut Disk, model: &mut Model) {
    let mut time = 0;
    for step in steps {
        match step {
            Step::Apply(changes) => {
                time += 1;
                apply_all(memory, at(time), changes);
                apply_all(disk.store(), at(time), changes);
                model.apply(at(time), changes);
            }
            Step::Remove(number) => {
                let names = model.names();
                let Some(name) = names.get(number % names.len().max(1)) else { continue };
                for store in [memory as &dyn Store, disk.store()] {
                    store.remove(std::slice::from_ref(name)).unwrap();
                    store.remove(std::slice::from_ref(name)).unwrap();
                }
                model.remove(name);
            }
            Step::Clear(range) => {
                for store in [memory as &dyn Store, disk.store()] {
                    store.clear_range(TABLE, range).unwrap();
                }
                model.rows.retain(|key, _| !range.contains(key));
                model.tombstones.retain(|(from, _), _| !range.contains(from));
            }
            Step::Flush => disk.store().flush().unwrap(),
            Step::Reopen => {
                disk.store().flush().unwrap();
                disk.reopen();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn both_stores_answer_as_the_model_does(
        steps in steps(),
        gets in proptest::collection::vec((key(), 0u64..45), 10),
        scans in proptest::collection::vec((spec(), limits()), 8),
    ) {
        let (memory, mut disk, mut model) = (MemoryStore::new(), Disk::new(), Model::default());
        live(&steps, &memory, &mut disk, &mut model);
        let tombstones = model.range_tombstones();
        for store in [&memory as &dyn Store, disk.store()] {
            for (key, time) in &gets {
                prop_assert_eq!(store.get(TABLE, key, at(*time)).unwrap(), model.get(key, at(*time)));
            }
            for (spec, limits) in &scans {
                let wanted = project(model.scan(&spec.range, spec.at, spec.order), spec.projection);
                prop_assert_eq!(&read_by_pages(store, &tombstones, spec, limits), &wanted);
                prop_assert_eq!(&read_by_scanner(store, &tombstones, spec, limits), &wanted);
            }
            let loaded = store.load_range_tombstones(TABLE, &KeyRange::all()).unwrap();
            prop_assert_eq!(loaded_map(&loaded), tombstones.clone());
        }
    }
}

/// Rows with many more versions than a cursor steps over.
#[test]
fn long_histories_are_seeked_past() {
    let (memory, disk) = (MemoryStore::new(), Disk::new());
    let mut model = Model::default();
    for time in 1..=60 {
        let changes: Vec<Change> = [b"a", b"b", b"c"]
            .map(|key| Change::Put {
                key: Bytes::from_static(key),
                body: Body::Counter(time as i64),
                expires_ms: None,
            })
            .into();
        model.apply(at(time), &changes);
        apply_all(&memory, at(time), &changes);
        apply_all(disk.store(), at(time), &changes);
    }
    let none = RangeTombstones::new();
    let limits = PageLimits { rows_max: 10, bytes_max: 1_000, work_max: 1_000 };
    for store in [&memory as &dyn Store, disk.store()] {
        for order in [Order::Forward, Order::Reverse] {
            for time in [0, 1, 5, 9, 30, 52, 60, 99] {
                let spec = ScanSpec {
                    table: TABLE,
                    range: KeyRange::all(),
                    at: at(time),
                    order,
                    projection: Projection::Rows,
                };
                let page = scan_page(store, &none, &spec, &limits).unwrap();
                assert_eq!(page.rows, model.scan(&KeyRange::all(), at(time), order));
                assert!(page.work < 90, "{order:?} at {time}: {} versions looked at of 180", page.work);
            }
        }
    }
}

#[test]
fn nothing_unflushed_survives_without_a_log() {
    let mut disk = Disk::new();
    let change = Change::Put { key: Bytes::from_static(b"k"), body: Body::Counter(1), expires_ms: None };
    apply_all(disk.store(), at(1), std::slice::from_ref(&change));
    disk.store().flush().unwrap();
    disk.reopen();
    assert!(disk.store().get(TABLE, b"k", at(9)).unwrap().is_some());
    assert!(disk.store().approximate_bytes(TABLE, &KeyRange::all()) > 0);
    disk.store().clear_range(TABLE, &KeyRange::all()).unwrap();
    disk.reopen();
    assert_eq!(disk.store().get(TABLE, b"k", at(9)).unwrap(), None);
}
