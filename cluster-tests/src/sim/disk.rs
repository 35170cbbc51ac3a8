//! What one server has on disk: log, registry and data store, and what a crash leaves.
//!
//! - **Log**: records are written, then synced as a group. A crash leaves the synced part and
//!   any prefix of the rest; a torn record is the end of that prefix.
//! - **Registry**: changes are synced one by one, in order; a crash leaves a prefix.
//! - **Data store**: without a log of its own. A crash leaves what the last completed flush
//!   had taken, and any prefix of what was applied later, because the store may flush itself.

use super::rng::Rng;
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, Payload};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, ReplicaId, Seq, ServerId, TabletId};
use ebla_kernel::meta::ClusterId;
use ebla_kernel::op::{Change, Version};
use ebla_kernel::range::KeyRange;
use std::collections::{BTreeMap, VecDeque};

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

impl Disk {
    /// An empty directory.
    #[must_use]
    pub fn new(generation: DiskGeneration) -> Self {
        let (log, registry, store) = (Log::default(), Registry::default(), Store::default());
        Self { generation, log, registry, store }
    }

    /// Loses what a crash loses. Gives the log entries that turned out durable.
    pub fn crash(&mut self, rng: &mut Rng) -> Vec<(TabletId, Entry)> {
        self.registry.crash(rng);
        self.store.crash(rng);
        self.log.crash(rng)
    }
}

/// The synced part of one tablet's log.
#[derive(Debug, Default)]
pub struct TabletLog {
    /// What stands before the first entry.
    pub base: LogEnd,
    /// Entries without gaps.
    pub entries: VecDeque<Entry>,
}

impl TabletLog {
    /// The end of the log.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.entries.back().map_or(self.base, Entry::end)
    }
}

/// The log of a server.
#[derive(Debug, Default)]
pub struct Log {
    tablets: BTreeMap<TabletId, TabletLog>,
    written: Vec<(TabletId, Entry)>,
}

impl Log {
    /// Writes records; durable only after `sync` or by luck.
    pub fn write(&mut self, group: Vec<(TabletId, Entry)>) {
        self.written.extend(group);
    }

    /// Makes everything written durable and gives it.
    pub fn sync(&mut self) -> Vec<(TabletId, Entry)> {
        let synced = std::mem::take(&mut self.written);
        for (tablet, entry) in &synced {
            let log = self.tablets.entry(*tablet).or_default();
            let follows = log.end().pos.seq.next() == entry.seq();
            assert!(follows, "a hole in the log of {tablet}: {} after {}", entry.pos, log.end().pos);
            log.entries.push_back(entry.clone());
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

    fn crash(&mut self, rng: &mut Rng) -> Vec<(TabletId, Entry)> {
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
    /// Replay begins after this.
    pub flushed: Seq,
    /// Tokens issued before are refused, milliseconds since 1970.
    pub token_floor_ms: u64,
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
    writing: VecDeque<RegistryChange>,
}

impl Registry {
    /// Begins to write a change.
    pub fn write(&mut self, change: RegistryChange) {
        self.writing.push_back(change);
    }

    /// The oldest change that is being written is durable; gives it.
    pub fn sync(&mut self) -> Option<RegistryChange> {
        let change = self.writing.pop_front()?;
        self.take(&change);
        Some(change)
    }

    fn crash(&mut self, rng: &mut Rng) {
        let survivors = rng.index(self.writing.len() + 1);
        for _ in 0..survivors {
            self.sync();
        }
        self.writing.clear();
    }

    fn take(&mut self, change: &RegistryChange) {
        match change {
            RegistryChange::Identity(cluster, server) => self.identity = Some((*cluster, *server)),
            RegistryChange::Bound(bound) => self.bound = self.bound.max(*bound),
            RegistryChange::Replica(tablet, replica) => {
                self.replicas.entry(*tablet).or_insert_with(|| replica.clone());
            }
            RegistryChange::Promise(tablet, epoch) => {
                if let Some(replica) = self.replicas.get_mut(tablet) {
                    replica.promised = replica.promised.max(*epoch);
                }
            }
            RegistryChange::Flushed(positions) => {
                for (tablet, seq) in positions {
                    if let Some(replica) = self.replicas.get_mut(tablet) {
                        replica.flushed = replica.flushed.max(*seq);
                    }
                }
            }
            RegistryChange::TokenFloor(tablet, floor_ms) => {
                if let Some(replica) = self.replicas.get_mut(tablet) {
                    replica.token_floor_ms = replica.token_floor_ms.max(*floor_ms);
                }
            }
        }
    }
}

/// All versions of all rows.
pub type Rows = BTreeMap<Bytes, BTreeMap<Hlc, Version>>;

/// The rows of a server.
#[derive(Debug, Default)]
pub struct Store {
    flushed: Rows,
    /// What a flush has not taken yet, in the order of application.
    recent: VecDeque<Entry>,
    /// All of it, as readers see it.
    rows: Rows,
}

impl Store {
    /// Puts the rows of an entry; again is no harm.
    pub fn apply(&mut self, entry: &Entry) {
        fold(&mut self.rows, entry);
        self.recent.push_back(entry.clone());
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

    /// How much a flush that begins now takes.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.recent.len()
    }

    /// A flush that took `count` entries returned.
    pub fn flushed(&mut self, count: usize) {
        for entry in self.recent.drain(..count) {
            fold(&mut self.flushed, &entry);
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        // Mostly the store has not flushed itself: that is the hard case.
        let survivors = if rng.chance(700) { 0 } else { rng.index(self.recent.len() + 1) };
        self.flushed(survivors);
        self.recent.clear();
        self.rows = self.flushed.clone();
    }
}

/// What an entry leaves in the rows. Ranges stay below the bound up to which they are
/// expanded, so that an entry names every version it puts.
pub fn fold(rows: &mut Rows, entry: &Entry) {
    let Payload::Write(write) = &entry.payload else { return };
    for change in &write.changes {
        match change {
            Change::Put { key, body, expires_ms } => {
                let version = Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms };
                rows.entry(key.clone()).or_default().insert(entry.ts, version);
            }
            Change::RangeTombstone { .. } => panic!("the workload has too few rows for a range tombstone"),
        }
    }
}
