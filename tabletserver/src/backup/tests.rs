//! What goes into files comes out of them: full backups and what adds to them, from either store,
//! restored into other ranges of either store, against a plain model.

use super::merge::{Fetched, Merge};
use super::selection::select;
use super::taking::Taking;
use super::uploads::{Destination, Uploads};
use super::walk::{Walk, Window};
use super::{Stop, imports::Imported, pace::Budget};
use crate::store::gc::{GcPass, gc_pass};
use crate::store::live::LiveRows;
use crate::store::memory::MemoryStore;
use crate::store::scan::{Order, PageLimits, Projection, ScanSpec, scan_page};
use crate::store::tests::model::Model;
use crate::store::tests::{Disk, TABLE, apply_all, at, batches, key};
use crate::store::{Store, split_stored, user_key};
use bytes::Bytes;
use ebla_backup::{
    CreatedBy, FileReader, Location, MANIFEST_FORMAT, Manifest, Parent, Part, Repository, Scratch,
    TableEntry, TableSettings, Unpaced,
};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::meta::TableSpec;
use ebla_kernel::op::Change;
use ebla_kernel::op::Version;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::Status;

/// Whoever waits for a part.
type Waiting = mpsc::Receiver<Result<v1::ExportResponse, Status>>;

/// Where the versions go.
const RESTORED: TableId = TableId(9);

const IDS: [&str; 3] =
    ["20260101T000000Z-00000001", "20260101T000100Z-00000002", "20260101T000200Z-00000003"];

/// A directory of backups.
struct Target {
    runtime: Runtime,
    dir: TempDir,
    repository: Repository,
}

impl Target {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(&format!("file://{}", dir.path().display())).unwrap();
        let repository = runtime.block_on(Repository::open(&location)).unwrap();
        Self { runtime, dir, repository }
    }

    fn destination(&self, backup: &str, part: &str) -> (Destination, Waiting) {
        let (answers, waiting) = mpsc::channel(1);
        let to = Destination {
            repository: self.repository.clone(),
            backup: backup.to_owned(),
            part: part.to_owned(),
            key: None,
            pace: Arc::new(Budget::default().transfers(0, 1)),
            answers,
        };
        (to, waiting)
    }

    /// Exports one range as a server does.
    fn export(&self, store: &dyn Store, backup: &str, part: &str, window: &Window) -> Part {
        let (to, _waiting) = self.destination(backup, part);
        let mut uploads = Uploads::new(self.runtime.handle().clone(), to);
        let mut walk = Walk::begin(store, window.clone()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let mut number = 0;
        loop {
            number += 1;
            let path = scratch.path().join(format!("{number}.sst"));
            // Small files: where they are cut must not matter.
            let Some(written) =
                walk.next_file(&path, &|file| file.versions() >= 12, &mut |_| Ok(())).unwrap()
            else {
                break;
            };
            uploads.begin(written, path).unwrap();
        }
        let files = uploads.finish().unwrap();
        Part {
            format: MANIFEST_FORMAT,
            name: part.to_owned(),
            table: TABLE.0,
            start: window.range.start().to_vec(),
            end: window.range.end().map(|end| end.to_vec()),
            tablet: 1,
            server: 1,
            since_ts: window.since.0,
            ts: window.upto.0,
            rows: walk.rows(),
            tombstones: walk.tombstones().iter().map(super::export::tombstone).collect(),
            files,
        }
    }

    /// Makes a backup of everything, in parts cut at `cuts`.
    fn backup(
        &self,
        store: &dyn Store,
        number: usize,
        (since, upto): (Hlc, Hlc),
        cuts: &[Bytes],
    ) -> Manifest {
        let id = IDS[number];
        let window = |range| Window { table: TABLE, range, since, upto };
        let ranges = KeyRange::cut_at(cuts).unwrap();
        let parts = ranges.into_iter().enumerate();
        let parts =
            parts.map(|(at, range)| self.export(store, id, &format!("p{at}"), &window(range))).collect();
        let parent = (number > 0).then(|| Parent { id: IDS[number - 1].to_owned(), ts: since.0 });
        let settings = TableSettings::of(&TableSpec::default());
        let table = TableEntry { id: TABLE.0, name: "t".to_owned(), since_ts: since.0, settings, parts };
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            id: id.to_owned(),
            cluster_id: "0".repeat(32),
            ts: upto.0,
            parent,
            encryption: None,
            created: CreatedBy::default(),
            tables: vec![table],
        };
        self.runtime.block_on(self.repository.put_manifest(&manifest)).unwrap();
        manifest
    }

    /// Imports one range as a server does.
    fn import(&self, store: &dyn Store, backup: &str, range: &KeyRange) -> Result<Imported, Stop> {
        let chain = self.runtime.block_on(self.repository.chain(backup))?;
        let selection = select(&chain, TABLE.0, range)?;
        let scratch = tempfile::tempdir().unwrap();
        let packed = Scratch::make(scratch.path().join("packed")).unwrap();
        let incoming = store.take_in(RESTORED, range, &packed.0)?;
        let live = LiveRows::new(selection.tombstones.iter().cloned().collect(), Hlc::MIN, selection.ts);
        let mut taking = Taking::new(incoming, RESTORED, live);
        let mut number = 0;
        let fetch = |source: &super::selection::Source| {
            number += 1;
            let dir = Scratch::make(scratch.path().join(format!("{number}"))).unwrap();
            let file = dir.0.join("versions.sst");
            let get = self.repository.get_file(&source.backup, &source.file, None, &file, &Unpaced);
            self.runtime.block_on(get)?;
            let engine = Scratch::make(dir.0.join("engine")).unwrap();
            Ok(Fetched { reader: FileReader::open(&file, &engine.0)?, _engine: engine, _dir: dir })
        };
        taking.take_all(&mut Merge::new(selection.sources, Box::new(fetch)), &mut |_| Ok(()))?;
        let (incoming, imported, _) = taking.end();
        incoming.install(&selection.tombstones)?;
        Ok(imported)
    }

    /// Imports every range of `cuts`; gives the rows.
    fn import_all(&self, store: &dyn Store, backup: &str, cuts: &[Bytes]) -> u64 {
        let ranges = KeyRange::cut_at(cuts).unwrap();
        ranges.iter().map(|range| self.import(store, backup, range).unwrap().rows).sum()
    }

    fn file(&self, manifest: &Manifest) -> PathBuf {
        let file = &manifest.tables[0].parts[0].files[0];
        self.dir.path().join("backups").join(&manifest.id).join(&file.name)
    }
}

fn versions(store: &dyn Store) -> BTreeMap<(Bytes, Hlc), Version> {
    let mut found = BTreeMap::new();
    let mut cursor = store.cursor(RESTORED, &KeyRange::all()).unwrap();
    cursor.seek_first();
    while let Some(stored_key) = cursor.stored_key().unwrap() {
        let (_, ts) = split_stored(stored_key).unwrap();
        let key = user_key(stored_key).unwrap();
        let version = store.get(RESTORED, &key, ts).unwrap().unwrap();
        found.insert((key, ts), version);
        cursor.step();
    }
    found
}

fn check_reads(store: &dyn Store, model: &Model, times: std::ops::RangeInclusive<u64>) {
    let loaded = store.load_range_tombstones(RESTORED, &KeyRange::all()).unwrap();
    let tombstones: RangeTombstones = loaded.into_iter().collect();
    let limits = PageLimits { rows_max: 1_000, bytes_max: 1 << 20, work_max: 100_000 };
    for time in times {
        let (order, projection, range) = (Order::Forward, Projection::Rows, KeyRange::all());
        let spec = ScanSpec { table: RESTORED, range, at: at(time), order, projection };
        let page = scan_page(store, &tombstones, &spec, &limits).unwrap();
        assert_eq!(page.rows, model.scan(&KeyRange::all(), at(time), order), "at {time}");
    }
}

/// Applies batches `from..` up to and with time `upto`.
fn write(stores: [&dyn Store; 2], model: &mut Model, batches: &[Vec<Change>], times: (u64, u64)) {
    for (time, changes) in (1..).zip(batches).filter(|(time, _)| times.0 < *time && *time <= times.1) {
        stores.iter().for_each(|store| apply_all(*store, at(time), changes));
        model.apply(at(time), changes);
    }
}

fn upto(model: &Model, last: u64) -> BTreeMap<(Bytes, Hlc), Version> {
    let rows = model.rows.iter();
    let versions = rows.flat_map(|(key, versions)| {
        versions.iter().map(|(ts, version)| ((key.clone(), *ts), version.clone()))
    });
    versions.filter(|((_, ts), _)| *ts <= at(last)).collect()
}

fn cuts() -> impl Strategy<Value = Vec<Bytes>> {
    proptest::collection::btree_set(key(), 0..3).prop_map(|keys: BTreeSet<Bytes>| keys.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// A full backup and two that add to it, from either store into either store, in parts and
    /// tablets that have nothing to do with each other.
    #[test]
    fn a_chain_is_the_source_version_by_version(
        batches in batches(), first in 1u64..12, second in 1u64..12,
        parts in cuts(), others in cuts(), tablets in cuts(),
    ) {
        let (disk, memory, target) = (Disk::new(), MemoryStore::new(), Target::new());
        let mut model = Model::default();
        let last = batches.len() as u64;
        let times = [0, first.min(last), (first + second).min(last), last];
        let sources: [&dyn Store; 2] = [disk.store(), &memory];
        // Something newer is there already, and must not come along.
        write(sources, &mut model, &batches, (0, last));
        let mut since = Hlc::MIN;
        for (number, cuts) in [&parts, &others, &parts].into_iter().enumerate() {
            let until = at(times[number + 1]).max(since.next());
            target.backup(sources[number % 2], number, (since, until), cuts);
            since = until;
        }
        for id in IDS {
            let until = times[1 + IDS.iter().position(|known| *known == id).unwrap()];
            let (disk, memory) = (Disk::new(), MemoryStore::new());
            for store in [disk.store() as &dyn Store, &memory] {
                let rows = target.import_all(store, id, &tablets);
                prop_assert_eq!(versions(store), upto(&model, until));
                check_reads(store, &model, 0..=until);
                let wanted = model.scan(&KeyRange::all(), at(until), Order::Forward);
                prop_assert_eq!(rows, wanted.len() as u64);
                // Again, as after a crash.
                target.import_all(store, id, &parts);
                prop_assert_eq!(versions(store), upto(&model, until));
            }
        }
    }

    /// Garbage goes from the source before each backup, as far as the one before allows.
    #[test]
    fn garbage_that_went_is_not_missed(
        batches in batches(), first in 1u64..12, second in 1u64..12, parts in cuts(), tablets in cuts(),
    ) {
        let (disk, unused, target) = (Disk::new(), MemoryStore::new(), Target::new());
        let mut model = Model::default();
        let last = batches.len() as u64;
        let times = [0, first.min(last), (first + second).min(last), last];
        let mut since = Hlc::MIN;
        for number in 0..IDS.len() {
            write([disk.store(), &unused], &mut model, &batches, (times[number], times[number + 1]));
            let floor = at(times[number]);
            disk.set_floor(floor);
            disk.store().flush().unwrap();
            disk.store().compact(TABLE, &KeyRange::all());
            let tombstones = disk.store().load_range_tombstones(TABLE, &KeyRange::all()).unwrap();
            let pass = GcPass::new(TABLE, KeyRange::all(), floor, &tombstones.into_iter().collect());
            gc_pass(disk.store(), pass, 10).unwrap();
            let until = at(times[number + 1]).max(since.next());
            target.backup(disk.store(), number, (since, until), &parts);
            since = until;
        }
        let restored = Disk::new();
        target.import_all(restored.store(), IDS[2], &tablets);
        check_reads(restored.store(), &model, times[2]..=last);
    }
}

/// A store with some rows, and a backup of it.
fn backed_up(target: &Target) -> Manifest {
    let store = MemoryStore::new();
    let put = |key: &'static str| Change::Put {
        key: Bytes::from_static(key.as_bytes()),
        body: ebla_kernel::op::Body::Value(Bytes::from_static(b"value")),
        expires_ms: None,
    };
    apply_all(&store, at(1), &[put("a"), put("b"), put("c")]);
    target.backup(&store, 0, (Hlc::MIN, at(1)), &[])
}

fn reason(stop: Stop) -> Reason {
    match stop {
        Stop::Failed(error) => error.reason,
        Stop::GivenUp => panic!("nobody gave up"),
    }
}

#[test]
fn a_file_that_is_missing_or_flipped_is_an_error() {
    let target = Target::new();
    let path = target.file(&backed_up(&target));
    let bytes = std::fs::read(&path).unwrap();
    let import = || target.import(&MemoryStore::new(), IDS[0], &KeyRange::all());
    assert_eq!(import().unwrap().rows, 3);
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert_eq!(reason(import().unwrap_err()), Reason::Corrupt);
    }
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(reason(import().unwrap_err()), Reason::Corrupt);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(reason(import().unwrap_err()), Reason::BackupNotFound | Reason::Corrupt));
}

#[test]
fn a_chain_with_a_gap_or_a_wrong_count_is_an_error() {
    let target = Target::new();
    let whole = backed_up(&target);
    let select = |manifest: &Manifest| select(std::slice::from_ref(manifest), TABLE.0, &KeyRange::all());
    assert!(select(&whole).is_ok());
    let changed = |change: &dyn Fn(&mut TableEntry)| {
        let mut manifest = whole.clone();
        change(&mut manifest.tables[0]);
        select(&manifest).unwrap_err().to_string()
    };
    assert!(changed(&|table| table.parts[0].end = Some(b"b".to_vec())).contains("no part holds"));
    assert!(changed(&|table| table.since_ts = 1).contains("adds to an earlier table"));
    assert!(changed(&|table| table.id = 8).contains("no table of id 7"));
    assert!(changed(&|table| table.parts[0].files[0].max_key.clear()).contains("ends before it begins"));

    let mut selection = select(&whole).unwrap();
    selection.sources[0].file.versions += 1;
    let fetch = |source: &super::selection::Source| {
        let dir = Scratch::make(target.dir.path().join("here")).unwrap();
        let engine = Scratch::make(dir.0.join("engine")).unwrap();
        let file = target.dir.path().join("backups").join(&source.backup).join(&source.file.name);
        Ok(Fetched { reader: FileReader::open(&file, &engine.0)?, _engine: engine, _dir: dir })
    };
    let store = MemoryStore::new();
    let incoming = store.take_in(RESTORED, &KeyRange::all(), target.dir.path()).unwrap();
    let mut taking = Taking::new(incoming, RESTORED, LiveRows::new(RangeTombstones::new(), Hlc::MIN, at(1)));
    let taken = taking.take_all(&mut Merge::new(selection.sources, Box::new(fetch)), &mut |_| Ok(()));
    assert_eq!(reason(taken.unwrap_err()), Reason::Corrupt);
}

#[test]
fn a_part_that_is_given_up_leaves_nothing() {
    let target = Target::new();
    let window = Window { table: TABLE, range: KeyRange::all(), since: Hlc::MIN, upto: at(1) };
    let store = MemoryStore::new();
    let body = ebla_kernel::op::Body::Counter(1);
    apply_all(&store, at(1), &[Change::Put { key: Bytes::from_static(b"a"), body, expires_ms: None }]);
    let (to, waiting) = target.destination(IDS[0], "p0");
    let mut uploads = Uploads::new(target.runtime.handle().clone(), to);
    let mut walk = Walk::begin(&store, window).unwrap();
    let path = target.dir.path().join("local.sst");
    let written = walk.next_file(&path, &|file| file.versions() >= 1, &mut |_| Ok(())).unwrap().unwrap();
    assert_eq!((written.versions, &written.min_key[..], &written.max_key[..]), (1, &b"a"[..], &b"a"[..]));
    uploads.begin(written, path.clone()).unwrap();
    uploads.check_wanted().unwrap();
    drop(waiting);
    assert!(matches!(uploads.check_wanted(), Err(Stop::GivenUp)));
    uploads.remove();
    let data = target.dir.path().join("backups").join(IDS[0]).join("data");
    let left = std::fs::read_dir(data).map(|files| files.count()).unwrap_or(0);
    assert_eq!(left, 0);
    assert!(!path.exists());
}
