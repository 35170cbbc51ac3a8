//! The apply and the cut stage against real stores: what is seen when, what a cut leaves, and
//! that a cut which a crash interrupts anywhere ends the same.

use super::apply::{Apply, Order};
use super::cut::{CutStores, Cutter, Work, finish};
use super::{Control, Group, Item, TabletEntries};
use crate::ledger::Ledger;
use crate::oplog::{Append, Fsync, Logged, Oplog, OplogConfig, Tail};
use crate::registry::{Registry, RegistryContent, ReplicaRecord, Truncation};
use crate::replicas::Replicas;
use crate::store::Store;
use crate::store::cache::RowCache;
use crate::store::gc::ReadPins;
use crate::store::memory::MemoryStore;
use crate::tablets::{HandleSpec, TabletHandle};
use bytes::Bytes;
use crossbeam::channel::{self, Receiver, Sender};
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::{Entry, LogEnd, Payload, RevertTarget, RevertedRow, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Lineage, ReplicaId, Seq, TableId, TabletId};
use ebla_kernel::op::{AckLevel, Body, Change, OpResult};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use ebla_kernel::tablet::ApplyWhen;
use std::collections::HashMap;
use std::sync::Arc;
use tempfile::TempDir;

const TABLET: TabletId = TabletId(1);
const TABLE: TableId = TableId(2);
const EPOCH: Epoch = Epoch(3);

/// A log under construction.
#[derive(Default)]
struct Script {
    entries: Vec<Entry>,
}

impl Script {
    fn end(&self) -> LogEnd {
        self.entries.last().map(Entry::end).unwrap_or_default()
    }

    fn push(&mut self, payload: Payload) {
        let end = self.end();
        self.entries.push(end.follow(EPOCH, end.ts.next(), payload));
    }

    fn set(mut self, key: &'static str, value: &'static str) -> Self {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        let change = Change::Put { key, body: Body::Value(value), expires_ms: None };
        let (changes, results) = (vec![change], vec![OpResult::Done]);
        self.push(Payload::Write(WriteRecord { token: None, level: AckLevel::Leader, changes, results }));
        self
    }

    fn delete_range(mut self, from: &'static str) -> Self {
        let change = Change::RangeTombstone { from: Bytes::from_static(from.as_bytes()), to: None };
        let (changes, results) = (vec![change], vec![OpResult::Done]);
        self.push(Payload::Write(WriteRecord { token: None, level: AckLevel::Leader, changes, results }));
        self
    }

    fn revert(mut self, seq: u64) -> Self {
        let target = &self.entries[usize::try_from(seq).unwrap() - 1];
        let rows = target.changes().iter().map(RevertedRow::of).collect();
        let target = RevertTarget { pos: target.pos, ts: target.ts, token: None, rows };
        self.push(Payload::Revert { targets: vec![target] });
        self
    }
}

/// The stores of one tablet, its apply stage and its cut stage.
struct Bench {
    dir: TempDir,
    handle: Arc<TabletHandle>,
    store: Arc<dyn Store>,
    cache: Arc<RowCache>,
    oplog: Arc<Oplog>,
    replicas: Arc<Replicas>,
    ledger: Arc<Ledger>,
}

/// The threads' ends.
struct Stages {
    groups: Sender<Group>,
    orders: Sender<Order>,
    told: Receiver<Control>,
    cuts: Receiver<Work>,
    apply: std::thread::JoinHandle<()>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _) = Registry::open(&dir.path().join("registry")).unwrap();
        let record =
            ReplicaRecord { promised_epoch: EPOCH, ..ReplicaRecord::blank(TABLET, TABLE, ReplicaId(4)) };
        let replicas = Replicas::new(Arc::new(registry), RegistryContent::default());
        replicas.put(vec![record]).unwrap();
        Self {
            handle: handle(LogEnd::default()),
            store: Arc::new(MemoryStore::new()),
            cache: Arc::new(RowCache::default()),
            oplog: Arc::new(Oplog::open(&dir.path().join("oplog"), &OplogConfig::default()).unwrap()),
            replicas: Arc::new(replicas),
            ledger: Arc::new(Ledger::open(&dir.path().join("lost")).unwrap()),
            dir,
        }
    }

    fn start(&self) -> Stages {
        let (groups, durable) = channel::unbounded();
        let (orders, ordered) = channel::unbounded();
        let (control, told) = channel::unbounded();
        let (to_cut, cuts) = channel::unbounded();
        let apply = Apply {
            durable,
            orders: ordered,
            control,
            cuts: to_cut,
            store: Arc::clone(&self.store),
            cache: Arc::clone(&self.cache),
            oplog: Arc::clone(&self.oplog),
            tablets: HashMap::new(),
            waiting: Vec::new(),
            unsummed: 0,
        };
        let apply = std::thread::spawn(move || apply.run().unwrap());
        Stages { groups, orders, told, cuts, apply }
    }

    fn stores(&self) -> CutStores {
        CutStores {
            oplog: Arc::clone(&self.oplog),
            store: Arc::clone(&self.store),
            replicas: Arc::clone(&self.replicas),
            ledger: Arc::clone(&self.ledger),
        }
    }

    fn log(&self, entries: &[Entry]) {
        let logged: Vec<Arc<Logged>> = entries.iter().cloned().map(Logged::from).map(Arc::new).collect();
        let append = Append { tablet: TABLET, tail: Tail::Continue, entries: logged.iter().collect() };
        self.oplog.append_group(&[append], Fsync::Now).unwrap();
    }

    /// `key=value` of what a reader of the newest rows sees.
    fn rows(&self) -> Vec<String> {
        let seen = |key: &&str| {
            let version = self.store.get(TABLE, key.as_bytes(), Hlc::MAX).unwrap();
            let version = self.handle.uncovered(key.as_bytes(), version, Hlc::MAX)?;
            match version.body {
                Body::Value(value) => Some(format!("{key}={}", String::from_utf8_lossy(&value))),
                Body::Tombstone(_) | Body::Counter(_) => None,
            }
        };
        ["a", "b", "c"].iter().filter_map(seen).collect()
    }
}

fn handle(end: LogEnd) -> Arc<TabletHandle> {
    Arc::new(TabletHandle::new(HandleSpec {
        kind: ebla_kernel::meta::TableKind::Durable,
        id: TABLET,
        table: TABLE,
        range: KeyRange::all(),
        replica: ReplicaId(4),
        generation: 1,
        tombstones: RangeTombstones::new(),
        applied: LogEnd::default(),
        end,
        epochs: Vec::new(),
        ancestry: Ancestry { lineage: Lineage(1), ..Ancestry::default() },
        base: LogEnd::default(),
    }))
}

impl Stages {
    /// Hands over durable entries: `S` waits to be safe, `D` is applied at once.
    fn group(&self, bench: &Bench, entries: &[Entry], pattern: &str) {
        bench.log(entries);
        let when = |letter| if letter == 'S' { ApplyWhen::Safe } else { ApplyWhen::Durable };
        let item = |(entry, letter): (&Entry, char)| Item {
            logged: Arc::new(entry.clone().into()),
            when: when(letter),
        };
        let items = entries.iter().zip(pattern.chars()).map(item).collect();
        let parts = vec![TabletEntries { handle: Arc::clone(&bench.handle), items }];
        self.groups.send(Group { parts, bytes: 0, room: Vec::new() }).unwrap();
        assert!(matches!(self.told.recv().unwrap(), Control::Applied { groups: 1, .. }));
    }

    fn settle(&self, bench: &Bench, upto: u64) {
        self.orders.send(Order::Settle(Arc::clone(&bench.handle), Seq(upto))).unwrap();
        let told = self.told.recv().unwrap();
        assert!(matches!(&told, Control::Settled(ends) if ends == &[(TABLET, Seq(upto))]));
        assert!(bench.handle.applied_seq() >= Seq(upto));
    }

    fn stop(self) {
        drop((self.groups, self.orders));
        self.apply.join().unwrap();
    }
}

#[test]
fn held_rows_are_seen_when_they_are_safe_and_reverted_ones_never() {
    let bench = Bench::new();
    let stages = bench.start();
    let log = Script::default().set("a", "1").set("b", "2").set("c", "3").revert(2).set("a", "4").entries;
    stages.group(&bench, &log, "DSSSD");
    assert_eq!(bench.rows(), ["a=4"]);
    assert_eq!(bench.handle.applied_seq(), Seq(1));
    stages.settle(&bench, 4);
    assert_eq!(bench.rows(), ["a=4", "c=3"]);
    assert_eq!(bench.handle.applied_seq(), Seq(5));
    stages.stop();
}

#[test]
fn what_is_not_in_memory_comes_from_the_log_with_equal_results() {
    let mut bench = Bench::new();
    let log = Script::default().set("a", "1").set("b", "2").delete_range("b").revert(3).revert(1).entries;
    bench.log(&log);
    bench.handle = handle(log[4].end());
    let stages = bench.start();
    stages.settle(&bench, 2);
    assert_eq!(bench.rows(), ["a=1", "b=2"]);
    // The target of the second revert is applied already: its version goes.
    stages.settle(&bench, 5);
    assert_eq!(bench.rows(), ["b=2"]);
    assert!(bench.handle.tombstones.load().is_empty());
    stages.stop();
}

#[test]
fn a_cached_row_goes_with_its_version() {
    let bench = Bench::new();
    let stages = bench.start();
    let log = Script::default().set("a", "1").revert(1).entries;
    stages.group(&bench, &log[..1], "D");
    let stamp = bench.cache.begin_fill(1, b"a");
    let version = bench.store.get(TABLE, b"a", Hlc::MAX).unwrap().unwrap();
    assert!(bench.cache.fill(stamp, 1, b"a", &version));
    stages.group(&bench, &log[1..], "S");
    stages.settle(&bench, 2);
    assert_eq!(bench.cache.get(1, b"a"), None);
    stages.stop();
}

/// A leader's log of which everything after the first two entries is to be cut: the third is
/// applied, and the fourth takes the second back.
fn doomed(bench: &Bench, stages: &Stages) -> Vec<Entry> {
    let log = Script::default().set("a", "1").set("b", "2").set("a", "3").revert(2).set("c", "5").entries;
    stages.group(bench, &log, "DSDSD");
    stages.settle(bench, 5);
    assert_eq!(bench.rows(), ["a=3", "c=5"]);
    log
}

#[test]
fn a_cut_leaves_what_was_before_and_tells_what_it_took() {
    let bench = Bench::new();
    let stages = bench.start();
    let log = doomed(&bench, &stages);
    let (keep, last) = (log[1].end(), log[4].pos);
    let job = super::cut::Job { handle: Arc::clone(&bench.handle), keep, last };
    stages.orders.send(Order::Cut(job)).unwrap();
    let (work, jobs) = channel::unbounded();
    work.send(stages.cuts.recv().unwrap()).unwrap();
    drop(work);
    let (control, told) = channel::unbounded();
    let cutter = Cutter {
        work: jobs,
        control,
        orders: stages.orders.clone(),
        pins: ReadPins::new(),
        cache: Arc::clone(&bench.cache),
        stores: bench.stores(),
    };
    cutter.run().unwrap();
    let Control::Truncated(done) = told.recv().unwrap() else { panic!("no cut was told") };
    assert_eq!(done, [(TABLET, keep, Seq(1))]);
    assert_eq!(bench.oplog.bounds(TABLET), Some((Seq(1), Seq(2))));
    assert_eq!(bench.rows(), ["a=1"]);
    // The revert is gone with the tail: its target counts again.
    stages.settle(&bench, 2);
    assert_eq!(bench.rows(), ["a=1", "b=2"]);
    let (id, summary) = bench.ledger.list()[0];
    assert_eq!((summary.first, summary.last, summary.writes), (log[2].pos, last, 2));
    assert_eq!(bench.ledger.read(id).unwrap().count(), 3);
    assert!(bench.replicas.all()[0].truncating.is_none());
    stages.stop();
}

#[test]
fn a_cut_that_a_crash_interrupts_ends_at_the_next_start() {
    for steps_done in 0..3 {
        let bench = Bench::new();
        let stages = bench.start();
        let log = doomed(&bench, &stages);
        stages.stop();
        let (keep, last) = (log[1].end(), log[4].pos);
        bench.replicas.begin_cuts(&[(TABLET, Truncation { keep, last }, LogEnd::default())]).unwrap();
        if steps_done >= 1 {
            let undone = ebla_kernel::tablet::truncate::Cut::of(&log[2..]).undo;
            super::apply::remove_versions(&*bench.store, &bench.cache, &bench.handle, &undone[..1]).unwrap();
        }
        if steps_done >= 2 {
            finish(&bench.stores()).unwrap();
            bench.replicas.begin_cuts(&[(TABLET, Truncation { keep, last }, LogEnd::default())]).unwrap();
        }
        finish(&bench.stores()).unwrap();
        assert_eq!(bench.rows(), ["a=1"], "after {steps_done} steps");
        assert_eq!(bench.oplog.bounds(TABLET), Some((Seq(1), Seq(2))));
        assert_eq!(bench.ledger.list().len(), 1);
        assert!(bench.replicas.all()[0].truncating.is_none());
        assert!(bench.dir.path().join("lost").exists());
    }
}
