//! What one server has on disk: log, registry, loss ledger and data store, and what a crash
//! leaves.
//!
//! - **Log**: records are written, then synced as a group. A crash leaves the synced part and
//!   any prefix of the rest; a torn record is the end of that prefix.
//! - **Registry**, and the loss ledger with it: changes are synced one by one, in order; a crash
//!   leaves a prefix. It also holds where a log was cut, because the log itself cannot be cut
//!   without an append.
//! - **Data store**: without a log of its own. A crash leaves what the last completed flush
//!   had taken, and any prefix of what was done later, because the store may flush itself. Rows
//!   that are ingested are durable at once and overtake whatever a flush has not taken yet.

use super::rng::Rng;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, RevertedRow, SealRecord};
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
    /// Changes of the registry, in order.
    pub changes: Vec<RegistryChange>,
    /// Log records.
    pub records: Vec<Record>,
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

    /// A process ends whose tables are in memory: of its copies nothing is left.
    pub fn forget_memory(&mut self) {
        let Registry { identity, bound, longest_lease_ms, .. } = self.registry;
        *self = Self::new(self.generation);
        self.registry = Registry { identity, bound, longest_lease_ms, ..Registry::default() };
    }

    /// The oldest registry change that is being written is durable; gives it.
    pub fn sync_registry(&mut self) -> Option<RegistryChange> {
        let change = self.registry.writing.pop_front()?;
        self.registry.take(&change);
        match &change {
            RegistryChange::Cut(tablet, intent) => self.log.cut(*tablet, intent.keep.pos.seq),
            // The record of a child says where its log goes on from.
            RegistryChange::Switch(switch) => {
                switch.children.iter().for_each(|(id, child)| self.log.begin(*id, child.base));
            }
            RegistryChange::Forgotten(tablet) | RegistryChange::Tombstone(tablet) => self.log.remove(*tablet),
            RegistryChange::RetiredForgotten(tablets) => {
                tablets.iter().for_each(|(tablet, _)| self.log.remove(*tablet));
            }
            RegistryChange::Identity(..)
            | RegistryChange::Bound(_)
            | RegistryChange::Replica(..)
            | RegistryChange::Promise(..)
            | RegistryChange::Flushed(_)
            | RegistryChange::TokenFloor(..)
            | RegistryChange::LongestLease(_)
            | RegistryChange::Truncating(..)
            | RegistryChange::Lost(..)
            | RegistryChange::Staged(..)
            | RegistryChange::RetiredFlushed(_)
            | RegistryChange::Built(..) => {}
        }
        Some(change)
    }

    /// Loses what a crash loses.
    pub fn crash(&mut self, rng: &mut Rng) -> Survived {
        let survivors = rng.index(self.registry.writing.len() + 1);
        let changes = (0..survivors).filter_map(|_| self.sync_registry()).collect();
        self.registry.writing.clear();
        self.store.crash(rng);
        Survived { changes, records: self.log.crash(rng) }
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

    /// The first index that the log still has, or will have.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.base.pos.seq.next()
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

    /// An empty log that goes on from `base`, in place of what there was.
    pub fn begin(&mut self, tablet: TabletId, base: LogEnd) {
        self.tablets.insert(tablet, TabletLog { base, entries: VecDeque::new() });
    }

    /// Whether records of a tablet are written and not synced.
    #[must_use]
    pub fn is_writing(&self, tablet: TabletId) -> bool {
        self.written.iter().any(|record| record.tablet == tablet)
    }

    fn remove(&mut self, tablet: TabletId) {
        self.tablets.remove(&tablet);
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
    /// A copy that is new here, in place of any that was.
    Replica(TabletId, Replica),
    /// A promise.
    Promise(TabletId, Epoch),
    /// Everything up to these positions was in the store before a flush began that has returned.
    Flushed(Vec<(TabletId, ReplicaId, Seq)>),
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
    /// What is to take a sealed tablet's place, or nothing any more.
    Staged(TabletId, Option<(SealRecord, LogEnd)>),
    /// Others take a tablet's place: all in one.
    Switch(Switch),
    /// Rows of retired tablets are in the store for good.
    RetiredFlushed(Vec<TabletId>),
    /// The logs of retired tablets go; whoever goes on from them knows their tokens no more.
    RetiredForgotten(Vec<(TabletId, u64)>),
    /// A copy is whole.
    Built(Built),
    /// A copy is to go: its rows are garbage, its log is nothing.
    Tombstone(TabletId),
    /// A copy is gone.
    Forgotten(TabletId),
}

/// A copy that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy.
    pub replica: ReplicaId,
    /// The last entry that its rows contain.
    pub end: LogEnd,
    /// Tokens issued before are known to the process that built it only.
    pub token_floor_ms: u64,
}

/// Tablets whose place others take.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The tablets and the ends of their logs, in key order.
    pub parents: Vec<(TabletId, LogEnd)>,
    /// Those that take their place.
    pub children: Vec<(TabletId, Replica)>,
}

/// A tablet that others have taken the place of, and whose log is needed.
#[derive(Clone, Debug)]
pub struct Retired {
    /// Its keys.
    pub range: KeyRange,
    /// The end of its log.
    pub seal: LogEnd,
    /// Rows up to here are in the store for good.
    pub flushed: Seq,
    /// What it went on from itself.
    pub parents: Vec<TabletId>,
    /// Since when nothing but its tokens is needed, in microseconds; not on disk.
    pub since_us: Option<u64>,
}

/// A retired tablet that a copy goes on from.
#[derive(Debug)]
pub struct Ancestor<'a> {
    /// Which.
    pub id: TabletId,
    /// What is known of it.
    pub retired: &'a Retired,
    /// The keys that came to the copy by way of it.
    pub ranges: Vec<KeyRange>,
}

/// What a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// It has what its log says.
    Active,
    /// It is being built, for the nth time: range and log are garbage.
    Building(u64),
    /// It is to be cleared.
    Tombstoned,
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
    /// What it is.
    pub state: CopyState,
    /// The end of the parents' logs that its own goes on from; zero for one without.
    pub base: LogEnd,
    /// The tablets whose logs it goes on from.
    pub parents: Vec<TabletId>,
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
    /// What is to take the place of sealed tablets.
    pub staged: BTreeMap<TabletId, (SealRecord, LogEnd)>,
    /// Tablets that are no more.
    pub retired: BTreeMap<TabletId, Retired>,
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

    /// The retired tablets whose logs the log of a copy goes on from, oldest first, and the keys
    /// that came to it by way of each.
    #[must_use]
    pub fn ancestors(&self, replica: &Replica) -> Vec<Ancestor<'_>> {
        let mut ancestors = Vec::new();
        let mut open: BTreeMap<TabletId, Vec<KeyRange>> = BTreeMap::new();
        for parent in &replica.parents {
            open.insert(*parent, vec![replica.range.clone()]);
        }
        // Ids rise from parents to children: whoever has the highest has got all that it can.
        while let Some((id, ranges)) = open.pop_last() {
            let Some(retired) = self.retired.get(&id) else { continue };
            let ranges: Vec<KeyRange> =
                ranges.iter().filter_map(|range| range.intersect(&retired.range)).collect();
            for parent in &retired.parents {
                open.entry(*parent).or_default().extend(ranges.iter().cloned());
            }
            ancestors.push(Ancestor { id, retired, ranges });
        }
        ancestors.reverse();
        ancestors
    }

    /// Retired tablets that no copy here goes on from.
    #[must_use]
    pub fn without_heirs(&self) -> Vec<TabletId> {
        let live = self.replicas.values().filter(|replica| replica.state == CopyState::Active);
        let needed: Vec<TabletId> =
            live.flat_map(|replica| self.ancestors(replica)).map(|ancestor| ancestor.id).collect();
        self.retired.keys().filter(|id| !needed.contains(id)).copied().collect()
    }

    fn take(&mut self, change: &RegistryChange) {
        match change {
            RegistryChange::Identity(cluster, server) => self.identity = Some((*cluster, *server)),
            RegistryChange::Bound(bound) => self.bound = self.bound.max(*bound),
            RegistryChange::LongestLease(ms) => self.longest_lease_ms = self.longest_lease_ms.max(*ms),
            RegistryChange::Replica(tablet, replica) => {
                self.replicas.insert(*tablet, replica.clone());
            }
            RegistryChange::Flushed(positions) => {
                for (tablet, copy, seq) in positions {
                    let is_it = |replica: &Replica| replica.id == *copy && replica.state == CopyState::Active;
                    self.change(*tablet, |replica| {
                        if is_it(replica) {
                            replica.flushed = replica.flushed.max(*seq);
                        }
                    });
                }
            }
            RegistryChange::Promise(tablet, epoch) => {
                self.change(*tablet, |replica| replica.promised = replica.promised.max(*epoch));
            }
            RegistryChange::TokenFloor(tablet, floor_ms) => {
                self.raise_token_floor(*tablet, *floor_ms);
                // The purge that it goes before may be of a log that children go on from by now.
                self.heirs(*tablet).into_iter().for_each(|heir| self.raise_token_floor(heir, *floor_ms));
            }
            RegistryChange::Truncating(tablet, intent) => self.change(*tablet, |replica| {
                replica.truncating = Some(*intent);
                replica.flushed = replica.flushed.min(intent.applied);
            }),
            RegistryChange::Lost(tablet, entries) => {
                self.lost.entry(*tablet).or_default().extend(entries.iter().cloned());
            }
            RegistryChange::Cut(tablet, _) => self.change(*tablet, |replica| replica.truncating = None),
            RegistryChange::Staged(..)
            | RegistryChange::Switch(_)
            | RegistryChange::RetiredFlushed(_)
            | RegistryChange::RetiredForgotten(_)
            | RegistryChange::Built(..)
            | RegistryChange::Tombstone(_)
            | RegistryChange::Forgotten(_) => self.reshape(change),
        }
    }

    /// Copies that come, go and are divided.
    fn reshape(&mut self, change: &RegistryChange) {
        match change {
            RegistryChange::Staged(tablet, Some(staged)) => {
                self.staged.insert(*tablet, staged.clone());
            }
            RegistryChange::Staged(tablet, None) => {
                self.staged.remove(tablet);
            }
            RegistryChange::Switch(switch) => self.switch(switch),
            RegistryChange::RetiredFlushed(tablets) => {
                for (_, retired) in self.retired.iter_mut().filter(|(id, _)| tablets.contains(id)) {
                    retired.flushed = retired.seal.pos.seq;
                }
            }
            RegistryChange::RetiredForgotten(tablets) => {
                tablets.iter().for_each(|(id, floor_ms)| self.forget_retired(*id, *floor_ms));
            }
            RegistryChange::Built(built) => self.change(built.tablet, |replica| {
                if replica.id == built.replica {
                    (replica.state, replica.flushed) = (CopyState::Active, built.end.pos.seq);
                    replica.token_floor_ms = built.token_floor_ms;
                }
            }),
            RegistryChange::Tombstone(tablet) => {
                self.change(*tablet, |replica| replica.state = CopyState::Tombstoned);
            }
            RegistryChange::Forgotten(tablet) => {
                self.replicas.remove(tablet);
                self.staged.remove(tablet);
            }
            RegistryChange::Identity(..)
            | RegistryChange::Bound(_)
            | RegistryChange::Replica(..)
            | RegistryChange::Promise(..)
            | RegistryChange::Flushed(_)
            | RegistryChange::TokenFloor(..)
            | RegistryChange::LongestLease(_)
            | RegistryChange::Truncating(..)
            | RegistryChange::Lost(..)
            | RegistryChange::Cut(..) => {}
        }
    }

    fn switch(&mut self, switch: &Switch) {
        // What was purged of the parents since the children's records were made is theirs to say, too.
        let mut floor_ms = 0;
        for (id, seal) in &switch.parents {
            if let Some(Replica { range, flushed, parents, token_floor_ms, .. }) = self.replicas.remove(id) {
                floor_ms = floor_ms.max(token_floor_ms);
                self.retired.insert(*id, Retired { range, seal: *seal, flushed, parents, since_us: None });
            }
            self.staged.remove(id);
        }
        self.replicas.extend(switch.children.iter().cloned());
        switch.children.iter().for_each(|(child, _)| self.raise_token_floor(*child, floor_ms));
    }

    /// The log of a retired tablet is gone: nobody knows its tokens any more.
    fn forget_retired(&mut self, id: TabletId, floor_ms: u64) {
        let heirs = self.heirs(id);
        self.retired.remove(&id);
        heirs.into_iter().for_each(|heir| self.raise_token_floor(heir, floor_ms));
    }

    /// The copies whose logs go on from that of a retired tablet.
    fn heirs(&self, id: TabletId) -> Vec<TabletId> {
        let goes_on = |replica: &Replica| self.ancestors(replica).iter().any(|older| older.id == id);
        self.replicas.iter().filter(|(_, replica)| goes_on(replica)).map(|(heir, _)| *heir).collect()
    }

    fn raise_token_floor(&mut self, id: TabletId, floor_ms: u64) {
        self.change(id, |replica| replica.token_floor_ms = replica.token_floor_ms.max(floor_ms));
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
    /// What of an entry lies in a range was put, or taken back by it.
    Applied(Rc<Entry>, KeyRange),
    /// Exactly these versions were removed.
    Removed(Vec<(Hlc, RevertedRow)>),
    /// Everything of a range was removed.
    Cleared(KeyRange),
}

/// The rows of a server.
#[derive(Debug, Default)]
pub struct Store {
    flushed: Rows,
    /// How much flushes have taken so far.
    taken: u64,
    /// What a flush has not taken yet, in order.
    recent: VecDeque<Deed>,
    /// Rows that are durable already although they came after what a flush has not taken yet,
    /// and how much came before them.
    ingested: Vec<(u64, Rows)>,
    /// All of it, as readers see it.
    rows: Rows,
}

impl Store {
    /// Does what an entry says; again is no harm.
    pub fn apply(&mut self, entry: &Rc<Entry>, range: &KeyRange) {
        fold(&mut self.rows, entry, range);
        self.recent.push_back(Deed::Applied(Rc::clone(entry), range.clone()));
    }

    /// Removes everything of a range.
    pub fn clear(&mut self, range: &KeyRange) {
        clear(&mut self.rows, range);
        self.recent.push_back(Deed::Cleared(range.clone()));
    }

    /// Puts rows in that are durable at once, whatever came before is not.
    pub fn ingest(&mut self, rows: &Rows) {
        put(&mut self.rows, rows);
        put(&mut self.flushed, rows);
        self.ingested.push((self.mark(), rows.clone()));
    }

    /// All versions of a range at or below a timestamp.
    #[must_use]
    pub fn snapshot(&self, range: &KeyRange, upto: Hlc) -> Rows {
        let inside = self.rows.iter().filter(|(key, _)| range.contains(key));
        let old = |versions: &BTreeMap<Hlc, Version>| {
            versions.range(..=upto).map(|(ts, version)| (*ts, version.clone())).collect()
        };
        let rows = inside.map(|(key, versions)| (key.clone(), old(versions)));
        rows.filter(|(_, versions): &(Bytes, BTreeMap<Hlc, Version>)| !versions.is_empty()).collect()
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
                Deed::Applied(entry, range) => fold(&mut self.flushed, &entry, &range),
                Deed::Removed(versions) => remove(&mut self.flushed, &versions),
                Deed::Cleared(range) => clear(&mut self.flushed, &range),
            }
            // What was ingested later stands above.
            self.ingested.retain(|(before, _)| *before >= self.taken);
            self.ingested.iter().for_each(|(_, rows)| put(&mut self.flushed, rows));
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        // Mostly the store has not flushed itself: that is the hard case.
        let survivors = if rng.chance(700) { 0 } else { rng.index(self.recent.len() + 1) };
        self.flushed(self.taken + survivors as u64);
        self.recent.clear();
        self.ingested.clear();
        self.rows = self.flushed.clone();
    }
}

/// What an entry leaves in the rows of a range. Ranges stay below the bound up to which they are
/// expanded, so that an entry names every version it puts.
pub fn fold(rows: &mut Rows, entry: &Entry, range: &KeyRange) {
    for change in entry.changes() {
        match change {
            Change::Put { key, .. } if !range.contains(key) => {}
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

fn clear(rows: &mut Rows, range: &KeyRange) {
    rows.retain(|key, _| !range.contains(key));
}

fn put(rows: &mut Rows, more: &Rows) {
    for (key, versions) in more {
        let known = rows.entry(key.clone()).or_default();
        known.extend(versions.iter().map(|(ts, version)| (*ts, version.clone())));
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
