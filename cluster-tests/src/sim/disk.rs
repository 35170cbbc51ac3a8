//! What one server has on disk: log, registry, loss ledger and data store, and what a crash
//! leaves.
//!
//! - **Log**: records are written, then synced as a group. A crash leaves the synced part and
//!   any prefix of the rest; a torn record is the end of that prefix.
//! - **Registry**, and the loss ledger with it: changes are synced one by one, in order; a crash
//!   leaves a prefix. It also holds where a log was cut, because the log itself cannot be cut
//!   without an append.
//! - **Data store**: without a log of its own. A crash leaves what the last completed flush
//!   had taken, and any prefix of what was done later, because the store may flush itself.

use super::rng::Rng;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, RevertedRow};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Pos, ReplicaId, Seq, ServerId, TabletId};
use ebla_kernel::meta::ClusterId;
use ebla_kernel::mutated;
use ebla_kernel::op::{Change, Version};
use ebla_kernel::range::KeyRange;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Everything of one server that survives its processes.
#[derive(Debug)]
pub struct Disk {
    /// The number of the directory.
    pub generation: DiskGeneration,
    /// The log of all tablets.
    pub log: Log,
    /// Identity, promises and positions.
    pub registry: Registry,
    /// The rows.
    pub store: Store,
}

/// What a crash made durable that was on its way.
#[derive(Debug)]
pub struct Survived {
    /// Log records.
    pub records: Vec<Record>,
    /// Logs that were cut.
    pub cuts: Vec<(TabletId, LogEnd)>,
}

impl Disk {
    /// An empty directory.
    #[must_use]
    pub fn new(generation: DiskGeneration) -> Self {
        let (log, registry, store) = (Log::default(), Registry::default(), Store::default());
        Self { generation, log, registry, store }
    }

    /// The directory is lost; another takes its place and only knows whose it is.
    pub fn wipe(&mut self) {
        let identity = self.registry.identity;
        let age = if mutated!(AnyGenerationCounts) { 0 } else { 1_000 };
        *self = Self::new(DiskGeneration(self.generation.0 + age));
        self.registry.identity = identity;
    }

    /// The oldest registry change that is being written is durable; gives it.
    pub fn sync_registry(&mut self) -> Option<RegistryChange> {
        let change = self.registry.writing.pop_front()?;
        self.registry.take(&change);
        if let RegistryChange::Cut(tablet, intent) = &change {
            self.log.cut(*tablet, intent.keep.pos.seq);
        }
        Some(change)
    }

    /// Loses what a crash loses.
    pub fn crash(&mut self, rng: &mut Rng) -> Survived {
        let survivors = rng.index(self.registry.writing.len() + 1);
        let changes: Vec<_> = (0..survivors).filter_map(|_| self.sync_registry()).collect();
        let cuts = changes.into_iter().filter_map(|change| match change {
            RegistryChange::Cut(tablet, intent) => Some((tablet, intent.keep)),
            _ => None,
        });
        let cuts = cuts.collect();
        self.registry.writing.clear();
        self.store.crash(rng);
        Survived { records: self.log.crash(rng), cuts }
    }
}

/// A record on its way to the log.
#[derive(Clone, Debug)]
pub struct Record {
    /// The tablet.
    pub tablet: TabletId,
    /// The epoch whose leader sent it, or appended it.
    pub by: Epoch,
    /// What it says.
    pub entry: Rc<Entry>,
}

/// The synced part of one tablet's log.
#[derive(Debug, Default)]
pub struct TabletLog {
    /// What stands before the first entry.
    pub base: LogEnd,
    /// Entries without gaps.
    pub entries: VecDeque<Rc<Entry>>,
}

impl TabletLog {
    /// The end of the log.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.entries.back().map_or(self.base, |entry| entry.end())
    }

    /// The entry at `seq`, if the log still has it.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Rc<Entry>> {
        let index = seq.0.checked_sub(self.base.pos.seq.0 + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// The end of a log that would end at `seq`.
    #[must_use]
    pub fn end_at(&self, seq: Seq) -> Option<LogEnd> {
        if seq == self.base.pos.seq { Some(self.base) } else { self.get(seq).map(|entry| entry.end()) }
    }

    /// Entries behind `seq`.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = &Rc<Entry>> {
        let skip = seq.0.saturating_sub(self.base.pos.seq.0);
        self.entries.range(usize::try_from(skip).unwrap_or(usize::MAX).min(self.entries.len())..)
    }
}

/// The log of a server.
#[derive(Debug, Default)]
pub struct Log {
    tablets: BTreeMap<TabletId, TabletLog>,
    written: Vec<Record>,
}

impl Log {
    /// Writes records; durable only after `sync` or by luck.
    pub fn write(&mut self, group: Vec<Record>) {
        self.written.extend(group);
    }

    /// Makes everything written durable and gives it.
    pub fn sync(&mut self) -> Vec<Record> {
        let synced = std::mem::take(&mut self.written);
        for Record { tablet, entry, .. } in &synced {
            let log = self.tablets.entry(*tablet).or_default();
            let follows = log.end().pos.seq.next() == entry.seq();
            assert!(follows, "a hole in the log of {tablet}: {} after {}", entry.pos, log.end().pos);
            log.entries.push_back(Rc::clone(entry));
        }
        synced
    }

    /// The synced log of a tablet.
    #[must_use]
    pub fn tablet(&self, tablet: TabletId) -> Option<&TabletLog> {
        self.tablets.get(&tablet)
    }

    /// Durable end of a tablet's log.
    #[must_use]
    pub fn end(&self, tablet: TabletId) -> LogEnd {
        self.tablets.get(&tablet).map(TabletLog::end).unwrap_or_default()
    }

    /// Removes entries up to `upto`.
    pub fn purge(&mut self, tablet: TabletId, upto: Seq) {
        let Some(log) = self.tablets.get_mut(&tablet) else { return };
        while log.entries.front().is_some_and(|entry| entry.seq() <= upto) {
            log.base = log.entries.pop_front().expect("it was looked at").end();
        }
    }

    fn cut(&mut self, tablet: TabletId, keep: Seq) {
        let Some(log) = self.tablets.get_mut(&tablet) else { return };
        while log.entries.back().is_some_and(|entry| entry.seq() > keep) {
            log.entries.pop_back();
        }
    }

    fn crash(&mut self, rng: &mut Rng) -> Vec<Record> {
        let survivors = rng.index(self.written.len() + 1);
        self.written.truncate(survivors);
        self.sync()
    }
}

/// One synced change of a registry.
#[derive(Clone, Debug)]
pub enum RegistryChange {
    /// Who the server is.
    Identity(ClusterId, ServerId),
    /// No timestamp at or below is issued by a later run.
    Bound(Hlc),
    /// A copy that is new here.
    Replica(TabletId, Replica),
    /// A promise.
    Promise(TabletId, Epoch),
    /// Everything up to these positions was in the store before a flush began that has returned.
    Flushed(Vec<(TabletId, Seq)>),
    /// Tokens issued before this are not remembered: their entries are about to go.
    TokenFloor(TabletId, u64),
    /// The longest lease that was ever promised, in milliseconds.
    LongestLease(u64),
    /// A log is about to be cut.
    Truncating(TabletId, Intent),
    /// What is dropped, for people.
    Lost(TabletId, Vec<Rc<Entry>>),
    /// A log ends where it was to; what was about to be done is done.
    Cut(TabletId, Intent),
}

/// A log that is about to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// What stays.
    pub keep: LogEnd,
    /// Nothing above this counts as in the store.
    pub applied: Seq,
}

/// What the registry says of a copy.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The copy.
    pub id: ReplicaId,
    /// Its keys.
    pub range: KeyRange,
    /// Everything of a lower epoch is refused.
    pub promised: Epoch,
    /// Rows up to here are in the store for good.
    pub flushed: Seq,
    /// Tokens issued before are refused, milliseconds since 1970.
    pub token_floor_ms: u64,
    /// A cut that was begun.
    pub truncating: Option<Intent>,
}

/// The small synced store of a server.
#[derive(Debug, Default)]
pub struct Registry {
    /// Who the server is.
    pub identity: Option<(ClusterId, ServerId)>,
    /// Greatest bound of issued timestamps.
    pub bound: Hlc,
    /// Its copies.
    pub replicas: BTreeMap<TabletId, Replica>,
    /// The longest lease that was ever promised, in milliseconds.
    pub longest_lease_ms: u64,
    /// What was dropped.
    pub lost: BTreeMap<TabletId, Vec<Rc<Entry>>>,
    writing: VecDeque<RegistryChange>,
}

impl Registry {
    /// Begins to write a change.
    pub fn write(&mut self, change: RegistryChange) {
        self.writing.push_back(change);
    }

    /// Positions of the dropped writes of a tablet that are named for people.
    #[must_use]
    pub fn lost_of(&self, tablet: TabletId) -> Vec<Pos> {
        self.lost.get(&tablet).into_iter().flatten().map(|entry| entry.pos).collect()
    }

    fn take(&mut self, change: &RegistryChange) {
        match change {
            RegistryChange::Identity(cluster, server) => self.identity = Some((*cluster, *server)),
            RegistryChange::Bound(bound) => self.bound = self.bound.max(*bound),
            RegistryChange::LongestLease(ms) => self.longest_lease_ms = self.longest_lease_ms.max(*ms),
            RegistryChange::Replica(tablet, replica) => {
                self.replicas.entry(*tablet).or_insert_with(|| replica.clone());
            }
            RegistryChange::Flushed(positions) => {
                for (tablet, seq) in positions {
                    self.change(*tablet, |replica| replica.flushed = replica.flushed.max(*seq));
                }
            }
            RegistryChange::Promise(tablet, epoch) => {
                self.change(*tablet, |replica| replica.promised = replica.promised.max(*epoch));
            }
            RegistryChange::TokenFloor(tablet, floor_ms) => {
                self.change(*tablet, |replica| {
                    replica.token_floor_ms = replica.token_floor_ms.max(*floor_ms);
                });
            }
            RegistryChange::Truncating(tablet, intent) => self.change(*tablet, |replica| {
                replica.truncating = Some(*intent);
                replica.flushed = replica.flushed.min(intent.applied);
            }),
            RegistryChange::Lost(tablet, entries) => {
                self.lost.entry(*tablet).or_default().extend(entries.iter().cloned());
            }
            RegistryChange::Cut(tablet, _) => self.change(*tablet, |replica| replica.truncating = None),
        }
    }

    fn change(&mut self, tablet: TabletId, change: impl FnOnce(&mut Replica)) {
        if let Some(replica) = self.replicas.get_mut(&tablet) {
            change(replica);
        }
    }
}

/// All versions of all rows.
pub type Rows = BTreeMap<Bytes, BTreeMap<Hlc, Version>>;

/// Something that was done to the rows.
#[derive(Clone, Debug)]
enum Deed {
    /// The versions of an entry were put, or those that it takes back removed.
    Applied(Rc<Entry>),
    /// Exactly these versions were removed.
    Removed(Vec<(Hlc, RevertedRow)>),
}

/// The rows of a server.
#[derive(Debug, Default)]
pub struct Store {
    flushed: Rows,
    /// How much flushes have taken so far.
    taken: u64,
    /// What a flush has not taken yet, in order.
    recent: VecDeque<Deed>,
    /// All of it, as readers see it.
    rows: Rows,
}

impl Store {
    /// Does what an entry says; again is no harm.
    pub fn apply(&mut self, entry: &Rc<Entry>) {
        fold(&mut self.rows, entry);
        self.recent.push_back(Deed::Applied(Rc::clone(entry)));
    }

    /// Removes exactly these versions.
    pub fn remove(&mut self, versions: Vec<(Hlc, RevertedRow)>) {
        remove(&mut self.rows, &versions);
        self.recent.push_back(Deed::Removed(versions));
    }

    /// The newest version of a row at or below `at`.
    #[must_use]
    pub fn newest(&self, key: &Bytes, at: Hlc) -> Option<&Version> {
        self.rows.get(key)?.range(..=at).next_back().map(|(_, version)| version)
    }

    /// Keys of `range` that have a live newest version.
    #[must_use]
    pub fn live_keys(&self, range: &KeyRange, at: Hlc) -> Vec<Bytes> {
        let inside = self.rows.range(range.start().clone()..);
        inside
            .take_while(|(key, _)| range.contains(key))
            .filter(|(key, _)| self.newest(key, Hlc::MAX).is_some_and(|version| version.is_live(at)))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// All versions of all rows.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Up to where a flush that begins now takes what was done.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.taken + self.recent.len() as u64
    }

    /// A flush that began at `mark` returned.
    pub fn flushed(&mut self, mark: u64) {
        while self.taken < mark {
            let Some(deed) = self.recent.pop_front() else { return };
            self.taken += 1;
            match deed {
                Deed::Applied(entry) => fold(&mut self.flushed, &entry),
                Deed::Removed(versions) => remove(&mut self.flushed, &versions),
            }
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        // Mostly the store has not flushed itself: that is the hard case.
        let survivors = if rng.chance(700) { 0 } else { rng.index(self.recent.len() + 1) };
        self.flushed(self.taken + survivors as u64);
        self.recent.clear();
        self.rows = self.flushed.clone();
    }
}

/// What an entry leaves in the rows. Ranges stay below the bound up to which they are
/// expanded, so that an entry names every version it puts.
pub fn fold(rows: &mut Rows, entry: &Entry) {
    for change in entry.changes() {
        match change {
            Change::Put { key, body, expires_ms } => {
                let version = Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms };
                rows.entry(key.clone()).or_default().insert(entry.ts, version);
            }
            Change::RangeTombstone { .. } => panic!("the workload has too few rows for a range tombstone"),
        }
    }
    for target in entry.reverts() {
        let versions: Vec<_> = target.rows.iter().map(|row| (target.ts, row.clone())).collect();
        remove(rows, &versions);
    }
}

fn remove(rows: &mut Rows, versions: &[(Hlc, RevertedRow)]) {
    for (ts, row) in versions {
        match row {
            RevertedRow::Row { key } => {
                let Some(known) = rows.get_mut(key) else { continue };
                known.remove(ts);
                if known.is_empty() {
                    rows.remove(key);
                }
            }
            RevertedRow::Range { .. } => panic!("the workload has too few rows for a range tombstone"),
        }
    }
}
