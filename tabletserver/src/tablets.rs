//! The tablets of this server as readers see them.
//!
//! A [`TabletHandle`] is what a request task needs of a replica without asking its core:
//! whether it serves, how far it is applied, its range tombstones, its counts. The core's
//! shell writes it, readers only look. The [`Directory`] finds the handle of a key; it is
//! replaced as a whole when the set of replicas changes.

use crate::counting::Size;
use crate::handover::Handover;
use crate::heat::TabletLoad;
use crate::promises::Leases;
use crate::replication::Tail;
use crate::watch::Progress;
use arc_swap::ArcSwap;
use bytes::Bytes;
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, ReplicaId, Seq, TableId, TabletId};
use ebla_kernel::lease::LeaseTerms;
use ebla_kernel::meta::TableKind;
use ebla_kernel::op::Version;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// In place of a position while another copy leads.
const NOT_LEADING: u64 = u64::MAX;

/// One replica as readers see it.
pub struct TabletHandle {
    /// The tablet.
    pub id: TabletId,
    /// Its table.
    pub table: TableId,
    /// Where its rows and its log are.
    pub kind: TableKind,
    /// Its keys.
    pub range: KeyRange,
    /// Its copy here.
    pub replica: ReplicaId,
    /// Names its rows in the row cache.
    pub generation: u64,
    /// Its range tombstones, applied ones only.
    pub tombstones: ArcSwap<RangeTombstones>,
    /// What the last count and the writes since say of its size.
    pub size: Size,
    /// The requests it had.
    pub load: TabletLoad,
    /// What its history goes back to.
    pub ancestry: Ancestry,
    /// The latest entries, for other copies.
    pub tail: Tail,
    /// Who watches it.
    pub progress: Progress,
    /// Whether requests wait for it, or for whoever takes its place.
    pub handover: Handover,
    /// The end of the parents' logs that its own goes on from; zero for one that was created.
    pub base: LogEnd,
    /// Durable end of its log at start; everything above what was applied then is still to be.
    pub recovered: LogEnd,
    /// Which epoch began where in its log, oldest first.
    pub epochs: ArcSwap<Vec<(Epoch, Seq)>>,
    lease: ArcSwap<LeaseTerms>,
    serving: AtomicU64,
    gave_up: Mutex<(Epoch, Option<ReplicaId>)>,
    safe_seq: AtomicU64,
    standing: AtomicU64,
    kept_ts: AtomicU64,
    everywhere: AtomicU64,
    wanted: AtomicU64,
    applied_seq: AtomicU64,
    applied_ts: AtomicU64,
    applied_end: Mutex<LogEnd>,
    safe_end: Mutex<LogEnd>,
    is_sealed: AtomicBool,
    behind: ArcSwap<Vec<ReplicaId>>,
    /// The copy holds another history than its leader: nobody is to read it.
    diverged: AtomicBool,
    /// What it has beyond its leader is in the loss ledger: it may go.
    is_entered: AtomicBool,
}

/// What a handle begins with.
pub struct HandleSpec {
    /// The tablet.
    pub id: TabletId,
    /// Its table.
    pub table: TableId,
    /// Where its rows and its log are.
    pub kind: TableKind,
    /// Its keys.
    pub range: KeyRange,
    /// Its copy here.
    pub replica: ReplicaId,
    /// Names its rows in the row cache.
    pub generation: u64,
    /// Its range tombstones.
    pub tombstones: RangeTombstones,
    /// Everything up to here is applied.
    pub applied: LogEnd,
    /// Durable end of its log.
    pub end: LogEnd,
    /// Which epoch began where.
    pub epochs: Vec<(Epoch, Seq)>,
    /// What its history goes back to.
    pub ancestry: Ancestry,
    /// The end of the parents' logs that its own goes on from.
    pub base: LogEnd,
}

impl TabletHandle {
    /// A replica that does not serve yet.
    #[must_use]
    pub fn new(spec: HandleSpec) -> Self {
        Self {
            id: spec.id,
            table: spec.table,
            kind: spec.kind,
            range: spec.range,
            replica: spec.replica,
            generation: spec.generation,
            tombstones: ArcSwap::from_pointee(spec.tombstones),
            size: Size::default(),
            load: TabletLoad::default(),
            ancestry: spec.ancestry,
            tail: Tail::default(),
            progress: Progress::default(),
            handover: Handover::default(),
            base: spec.base,
            recovered: spec.end,
            epochs: ArcSwap::from_pointee(spec.epochs),
            lease: ArcSwap::default(),
            serving: AtomicU64::new(0),
            gave_up: Mutex::default(),
            safe_seq: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            kept_ts: AtomicU64::new(0),
            everywhere: AtomicU64::new(NOT_LEADING),
            wanted: AtomicU64::new(NOT_LEADING),
            applied_seq: AtomicU64::new(spec.applied.pos.seq.0),
            applied_ts: AtomicU64::new(spec.applied.ts.0),
            applied_end: Mutex::new(spec.applied),
            safe_end: Mutex::default(),
            is_sealed: AtomicBool::new(false),
            behind: ArcSwap::default(),
            diverged: AtomicBool::new(false),
            is_entered: AtomicBool::new(false),
        }
    }

    /// The epoch that this replica leads and serves.
    #[must_use]
    pub fn serving(&self) -> Option<Epoch> {
        Some(Epoch(self.serving.load(Ordering::Acquire))).filter(|epoch| epoch.0 > 0)
    }

    /// Opens or closes the replica to requests.
    pub fn set_serving(&self, epoch: Option<Epoch>) {
        self.serving.store(epoch.map_or(0, |epoch| epoch.0), Ordering::Release);
        self.progress.moved();
    }

    /// Notes that an epoch was given up; metadata is told so that it names a new leader, if
    /// possible the copy that has everything.
    pub fn give_up(&self, epoch: Epoch, successor: Option<ReplicaId>) {
        self.set_serving(None);
        self.set_lease(LeaseTerms::default());
        *self.gave_up.lock().expect("no holder of this lock panics") = (epoch, successor);
    }

    /// The last epoch that was given up, 0 for none, and who should lead next.
    #[must_use]
    pub fn gave_up(&self) -> (Epoch, Option<ReplicaId>) {
        *self.gave_up.lock().expect("no holder of this lock panics")
    }

    /// Publishes under which promises the lease is held.
    pub fn set_lease(&self, terms: LeaseTerms) {
        self.lease.store(Arc::new(terms));
    }

    /// Whether this replica serves and holds its lease: asked after the work (m22). The clock
    /// is read only when promises are needed.
    #[must_use]
    pub fn may_answer(&self, leases: &Leases) -> bool {
        if self.serving().is_none() {
            return false;
        }
        let terms = self.lease.load();
        let needs_none = !terms.sets.is_empty() && terms.sets.iter().all(|set| set.needed == 0);
        needs_none || terms.hold(leases.holder_now(), leases)
    }

    /// Publishes what is at or below a Q: it is never cut nor taken back.
    pub fn set_safe(&self, safe: Seq) {
        if self.safe_seq.swap(safe.0, Ordering::AcqRel) != safe.0 {
            self.progress.moved();
        }
    }

    /// Everything up to here is at or below a Q.
    #[must_use]
    pub fn safe_seq(&self) -> Seq {
        Seq(self.safe_seq.load(Ordering::Acquire))
    }

    /// Publishes what is never cut nor taken back while an in-sync copy keeps its data.
    pub fn set_standing(&self, seq: Seq) {
        self.standing.store(seq.0, Ordering::Release);
    }

    /// Everything up to here is safe, or fewer than D in-sync copies keep their data and all of them had it.
    #[must_use]
    pub fn standing(&self) -> Seq {
        Seq(self.standing.load(Ordering::Acquire))
    }

    /// Publishes above which timestamp no version may be taken for replaced for good.
    pub fn set_kept(&self, ts: Hlc) {
        self.kept_ts.store(ts.0, Ordering::Release);
    }

    /// Versions that only a version above this replaces may yet be seen again.
    #[must_use]
    pub fn kept_ts(&self) -> Hlc {
        Hlc(self.kept_ts.load(Ordering::Acquire))
    }

    /// Publishes what every in-sync copy has durably; none when this replica does not lead.
    pub fn set_everywhere(&self, seq: Option<Seq>) {
        self.everywhere.store(seq.map_or(NOT_LEADING, |seq| seq.0), Ordering::Release);
    }

    /// What every in-sync copy has durably, if this replica leads.
    #[must_use]
    pub fn everywhere(&self) -> Option<Seq> {
        Some(self.everywhere.load(Ordering::Acquire)).filter(|seq| *seq != NOT_LEADING).map(Seq)
    }

    /// Publishes above which entry copies that are there want the log; none when this replica does
    /// not lead.
    pub fn set_wanted(&self, seq: Option<Seq>) {
        let told = seq.map_or(NOT_LEADING, |seq| seq.0.min(NOT_LEADING - 1));
        self.wanted.store(told, Ordering::Release);
    }

    /// Above which entry copies that are there want the log, if this replica leads.
    #[must_use]
    pub fn wanted(&self) -> Option<Seq> {
        Some(self.wanted.load(Ordering::Acquire)).filter(|seq| *seq != NOT_LEADING).map(Seq)
    }

    /// Publishes an entry at or below a Q, the newest known.
    pub fn set_safe_end(&self, end: LogEnd) {
        *self.safe_end.lock().expect("no holder of this lock panics") = end;
    }

    /// Publishes whether the log ends sealed.
    pub fn set_sealed(&self, is_sealed: bool) {
        self.is_sealed.store(is_sealed, Ordering::Release);
    }

    /// Whether the log ends sealed: others may be about to take the tablet's place.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }

    /// The copy has diverged from its leader.
    pub fn set_diverged(&self) {
        self.diverged.store(true, Ordering::Release);
    }

    /// What a copy that has diverged has beyond its leader is in the loss ledger.
    pub fn set_entered(&self) {
        self.is_entered.store(true, Ordering::Release);
    }

    /// Whether it has diverged and may be replaced.
    #[must_use]
    pub fn is_replaceable(&self) -> bool {
        self.is_entered.load(Ordering::Acquire)
    }

    /// Publishes which copies this leader cannot bring up from its log.
    pub fn set_behind(&self, behind: impl Iterator<Item = ReplicaId>) {
        let behind: Vec<ReplicaId> = behind.collect();
        if **self.behind.load() != behind {
            self.behind.store(Arc::new(behind));
        }
    }

    /// Copies that this leader cannot bring up from its log.
    #[must_use]
    pub fn behind(&self) -> Arc<Vec<ReplicaId>> {
        self.behind.load_full()
    }

    /// The last entry whose rows are here and stay, all before it included: at its timestamp
    /// a copy may be read, whatever is applied above it. None before there is one, and none of a
    /// copy that has diverged.
    #[must_use]
    pub fn closed(&self) -> Option<LogEnd> {
        if self.diverged.load(Ordering::Acquire) {
            return None;
        }
        let applied = self.applied_end();
        if applied.pos.seq <= self.safe_seq() {
            return Some(applied);
        }
        let safe = *self.safe_end.lock().expect("no holder of this lock panics");
        (Seq(0) < safe.pos.seq && safe.pos.seq <= applied.pos.seq).then_some(safe)
    }

    /// The epoch of the entry at `seq`, as far as the list of epochs reaches.
    #[must_use]
    pub fn epoch_at(&self, seq: Seq) -> Option<Epoch> {
        let epochs = self.epochs.load();
        let begun = epochs.partition_point(|(_, first)| *first <= seq);
        epochs.get(begun.checked_sub(1)?).map(|(epoch, _)| *epoch)
    }

    /// Everything up to here is in the store.
    #[must_use]
    pub fn applied_seq(&self) -> Seq {
        Seq(self.applied_seq.load(Ordering::Acquire))
    }

    /// Every version up to here is in the store.
    #[must_use]
    pub fn applied_ts(&self) -> Hlc {
        Hlc(self.applied_ts.load(Ordering::Acquire))
    }

    /// The last applied entry.
    #[must_use]
    pub fn applied_end(&self) -> LogEnd {
        *self.applied_end.lock().expect("no holder of this lock panics")
    }

    /// Publishes that everything up to `end` is in the store.
    pub fn set_applied(&self, end: LogEnd) {
        *self.applied_end.lock().expect("no holder of this lock panics") = end;
        self.applied_ts.store(end.ts.0, Ordering::Release);
        self.applied_seq.store(end.pos.seq.0, Ordering::Release);
        self.progress.moved();
    }

    /// `version` of `key` as a read at `at` sees it, range tombstones counted in.
    #[must_use]
    pub fn uncovered(&self, key: &[u8], version: Option<Version>, at: Hlc) -> Option<Version> {
        let tombstones = self.tombstones.load();
        let version = version?;
        let covered = tombstones.newest_covering(key, at).is_some_and(|ts| ts > version.ts);
        (!covered).then_some(version)
    }
}

/// One table's replicas here, by first key.
#[derive(Clone, Default)]
pub struct TableTablets {
    by_start: BTreeMap<Bytes, Arc<TabletHandle>>,
}

impl TableTablets {
    /// The replica whose range holds `key`.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> Option<&Arc<TabletHandle>> {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let (_, handle) = self.by_start.range::<[u8], _>(upto).next_back()?;
        handle.range.contains(key).then_some(handle)
    }

    /// Every replica, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TabletHandle>> {
        self.by_start.values()
    }

    /// The replica that holds the greatest key below `key`; without `key`, the last one.
    #[must_use]
    pub fn find_below(&self, key: Option<&[u8]>) -> Option<&Arc<TabletHandle>> {
        let upper = key.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (_, handle) = self.by_start.range::<[u8], _>((std::ops::Bound::Unbounded, upper)).next_back()?;
        let reaches = match (key, handle.range.end()) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(key), Some(end)) => key <= &end[..],
        };
        reaches.then_some(handle)
    }
}

/// All replicas of this server.
#[derive(Clone, Default)]
pub struct Directory {
    by_id: HashMap<TabletId, Arc<TabletHandle>>,
    by_table: HashMap<TableId, TableTablets>,
}

impl Directory {
    /// The replica of a tablet.
    #[must_use]
    pub fn tablet(&self, id: TabletId) -> Option<&Arc<TabletHandle>> {
        self.by_id.get(&id)
    }

    /// The replicas of a table.
    #[must_use]
    pub fn table(&self, id: TableId) -> Option<&TableTablets> {
        self.by_table.get(&id)
    }

    /// Every replica, in no order.
    pub fn tablets(&self) -> impl Iterator<Item = &Arc<TabletHandle>> {
        self.by_id.values()
    }

    /// How many replicas there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Adds a replica.
    pub fn insert(&mut self, handle: Arc<TabletHandle>) {
        let tablets = self.by_table.entry(handle.table).or_default();
        tablets.by_start.insert(handle.range.start().clone(), Arc::clone(&handle));
        self.by_id.insert(handle.id, handle);
    }

    /// Takes a replica out.
    pub fn remove(&mut self, id: TabletId) -> Option<Arc<TabletHandle>> {
        let handle = self.by_id.remove(&id)?;
        if let Some(tablets) = self.by_table.get_mut(&handle.table) {
            tablets.by_start.remove(handle.range.start());
            if tablets.by_start.is_empty() {
                self.by_table.remove(&handle.table);
            }
        }
        Some(handle)
    }
}
