//! The replicated state: servers, tables and tablets.
//!
//! Invariants:
//! - the tablets of a table cover every key exactly once;
//! - an epoch of a tablet is given to at most one (replica, incarnation);
//! - a leader is in the in-sync set and was not lost when it was appointed;
//! - the indexes say what the records say: they are rebuilt from them, never stored.

use super::backup::Ledger;
use super::job::{Job, Origin};
use super::schedule::Schedule;
use super::spec::{TableKind, TableSpec};
use crate::ancestry::Ancestry;
use crate::entry::LogEnd;
use crate::hlc::Hlc;
use crate::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, JobId, Lineage, Ordinal,
    ReplicaId, ServerId, TableId, TabletId,
};
use crate::limits::{RETIRED_TABLETS_MAX, SPLIT_CHILDREN_MAX};
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Names a cluster for ever; random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct ClusterId(pub u128);

impl ClusterId {
    /// Reads the 32 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a server is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub enum Duty {
    /// It leads and holds copies.
    #[default]
    Serves,
    /// It holds copies and leads none that another could lead.
    Drained,
    /// Its copies go to others, and then it goes.
    Leaves,
}

/// A tablet server, as its last registration left it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Server {
    /// Its name for ever.
    pub id: ServerId,
    /// HOST:PORT under which clients reach it.
    pub address: String,
    /// Failure zone; empty when none was given.
    pub zone: String,
    /// Its bit in a room.
    pub ordinal: Ordinal,
    /// Its present run.
    pub incarnation: Incarnation,
    /// Its present data directory.
    pub disk_generation: DiskGeneration,
    /// Random number of the present run: the same one registering again is no new run.
    pub boot_id: u64,
    /// Which start of the data directory the present run is; an earlier one coming late is refused.
    pub starts: u64,
    /// When it registered, milliseconds since 1970.
    pub registered_ms: u64,
    /// What it is wanted for.
    pub duty: Duty,
}

impl Server {
    /// Whether what a copy's data lives and dies with is still there.
    #[must_use]
    pub fn has(&self, generation: Generation) -> bool {
        match generation {
            Generation::Disk(disk) => disk == self.disk_generation,
            Generation::Process(run) => run == self.incarnation,
        }
    }

    /// What a copy that is created now lives and dies with.
    #[must_use]
    pub fn generation(&self, kind: TableKind) -> Generation {
        match kind {
            TableKind::Durable => Generation::Disk(self.disk_generation),
            TableKind::Memory => Generation::Process(self.incarnation),
        }
    }
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Table {
    /// Its name for ever.
    pub id: TableId,
    /// What people call it.
    pub name: String,
    /// What it promises.
    pub spec: TableSpec,
    /// The job that brings its rows back from a backup. Until it is done nobody else reads or
    /// writes them, and its tablets are neither split, merged nor moved.
    pub restoring: Option<JobId>,
    /// When it came into being here, or was opened after a restore; milliseconds since 1970.
    pub created_ms: u64,
}

/// One copy of a tablet.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Replica {
    /// Its name for ever.
    pub id: ReplicaId,
    /// Where it lies.
    pub server: ServerId,
    /// What its data lives and dies with.
    pub generation: Generation,
    /// Whether that is gone. A lost copy neither answers nor leads, and yet stays
    /// in the in-sync set for the quota (m14, m16).
    pub lost: bool,
}

/// A copy on its way in and the one that it takes the place of. One at a time per tablet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Move {
    /// The copy that comes: a learner until it is in the in-sync set.
    pub to: ReplicaId,
    /// The copy that goes once the other is in sync; none when the tablet lacked one.
    pub from: Option<ReplicaId>,
}

/// Who leads an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Leader {
    /// The copy.
    pub replica: ReplicaId,
    /// Its server.
    pub server: ServerId,
    /// The run of the server that was appointed: another run does not lead (m36).
    pub incarnation: Incarnation,
}

/// Who led before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct FormerLeader {
    /// The run.
    pub leader: Leader,
    /// The epoch that it was appointed for.
    pub epoch: Epoch,
}

/// A key range of a table and who serves it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Tablet {
    /// Names the range for ever.
    pub id: TabletId,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub range: KeyRange,
    /// Who drew the boundary at its first key. What people drew is merged away by people only,
    /// unless the table says otherwise.
    pub drawn_by: Origin,
    /// Term of the leader; 0 before the first election.
    pub epoch: Epoch,
    /// Who leads the epoch.
    pub leader: Option<Leader>,
    /// Its copies: at most R, and one more while a copy is on its way in.
    pub replicas: Vec<Replica>,
    /// Copies whose answers an election needs.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Version of leader and in-sync set.
    pub config_version: ConfigVersion,
    /// Its ancestry.
    pub lineage: Lineage,
    /// When histories were last joined in its ancestry, zero for never: positions of others from
    /// before are compared by time.
    pub joined_ts: Hlc,
    /// Whether the epoch was raised and waits for its leader.
    pub recovering: bool,
    /// A floor for the leader's clock, set at its appointment.
    pub appointed_ts: Hlc,
    /// The last leader that was appointed before the present one, or, while there is none,
    /// the last one. Epochs that were raised without an appointment leave it as it is. None
    /// once its copy is known to be in step again.
    pub former: Option<FormerLeader>,
    /// Whether the present epoch began with fewer answers than a strict election needs.
    pub degraded: bool,
    /// The change of its copies under way.
    pub moving: Option<Move>,
    /// The tablets that it was made of, in key order.
    pub parents: Vec<Parent>,
    /// The last attempt to retire it that was aborted, 0 for none. While the tablet is there,
    /// no attempt up to this one will ever be committed (m29).
    pub aborted: Attempt,
    /// The last time that every copy in memory was lost and it began anew, empty.
    pub emptied: Option<Emptied>,
}

/// When a tablet of a memory table last lost all it had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Emptied {
    /// When it began anew, milliseconds since 1970. What was written before is lost.
    pub time_ms: u64,
    /// Its ancestry until then.
    pub before: Lineage,
    /// How often that has happened.
    pub times: u64,
}

/// What a tablet was made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Parent {
    /// The tablet that is no more.
    pub tablet: TabletId,
    /// The attempt that was committed.
    pub attempt: Attempt,
    /// The epoch in which this tablet began.
    pub epoch: Epoch,
    /// The seal: the last entry of its log, which this tablet's log goes on from
    /// ([`LogEnd::joined`]).
    pub seal: LogEnd,
}

/// A tablet that is no more, and what took its place.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub(super) struct RetiredTablet {
    /// Its table.
    pub table: TableId,
    /// The tablets that hold its keys now, or that held them until they were retired too; in
    /// key order.
    pub successors: Vec<TabletId>,
}

impl Tablet {
    /// What its history goes back to.
    #[must_use]
    pub fn ancestry(&self) -> Ancestry {
        let began_ts = self.emptied.map_or(Hlc::MIN, |emptied| Hlc::new(emptied.time_ms, 0));
        Ancestry { lineage: self.lineage, joined_ts: self.joined_ts, began_ts }
    }

    /// The copy of this name.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.id == id)
    }

    /// The copy on this server. One whose data is lost may stand beside its successor: it
    /// counts for the quota and is nothing else.
    #[must_use]
    pub fn replica_on(&self, server: ServerId) -> Option<&Replica> {
        let here = || self.replicas.iter().filter(|replica| replica.server == server);
        here().find(|replica| !replica.lost).or_else(|| here().next())
    }

    /// The copy that is to go, now that its successor is in sync.
    #[must_use]
    pub fn leaving(&self) -> Option<ReplicaId> {
        self.moving.filter(|moving| self.in_sync.contains(&moving.to)).and_then(|moving| moving.from)
    }

    /// Whether this copy was appointed for the present epoch.
    #[must_use]
    pub fn is_led_by(&self, replica: ReplicaId) -> bool {
        self.leader.is_some_and(|leader| leader.replica == replica)
    }

    /// Copies of the in-sync set.
    pub fn in_sync_replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|replica| self.in_sync.contains(&replica.id))
    }
}

/// Counters that only rise.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub(super) struct NextIds {
    pub server: ServerId,
    pub ordinal: Ordinal,
    pub table: TableId,
    pub tablet: TabletId,
    pub replica: ReplicaId,
    pub lineage: Lineage,
    pub job: JobId,
    pub attempt: Attempt,
}

impl Default for NextIds {
    fn default() -> Self {
        Self {
            server: ServerId(1),
            ordinal: Ordinal(0),
            table: TableId(1),
            tablet: TabletId(1),
            replica: ReplicaId(1),
            lineage: Lineage(1),
            job: JobId(1),
            attempt: Attempt(1),
        }
    }
}

/// Everything that the masters agree on.
#[derive(Clone, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct State {
    pub(super) applied: u64,
    pub(super) changed: u64,
    pub(super) cluster_id: Option<ClusterId>,
    pub(super) masters: BTreeMap<u64, u64>,
    pub(super) servers: BTreeMap<ServerId, Server>,
    pub(super) tables: BTreeMap<TableId, Table>,
    pub(super) tablets: BTreeMap<TabletId, Tablet>,
    pub(super) retired: BTreeMap<TabletId, RetiredTablet>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) next: NextIds,
    pub(super) balancer_paused: bool,
    /// Backups and restores that ended.
    pub(super) attempts: BTreeMap<JobId, Job>,
    pub(super) ledgers: BTreeMap<JobId, Ledger>,
    /// By URL.
    pub(super) schedules: BTreeMap<String, Schedule>,
    /// When a table was dropped last, milliseconds since 1970; 0 for never.
    pub(super) table_dropped_ms: u64,
    #[borsh(skip)]
    pub(super) index: Indexes,
}

/// Ways to find records without looking at all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Indexes {
    pub table_names: BTreeMap<String, TableId>,
    pub ranges: BTreeMap<TableId, BTreeMap<Bytes, TabletId>>,
    pub generations: BTreeMap<DiskGeneration, ServerId>,
    pub replicas: BTreeMap<ServerId, BTreeSet<TabletId>>,
    /// Jobs under way, by the tablets that they are about: at most one each.
    pub jobs: BTreeMap<TabletId, JobId>,
    /// Jobs under way.
    pub running: BTreeSet<JobId>,
}

impl State {
    /// Index of the last command that was applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Version of what is visible outside: the index of the last command that changed it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.changed
    }

    /// When a table was dropped last, milliseconds since 1970; 0 for never. What it held at an
    /// earlier time cannot be read any more.
    #[must_use]
    pub fn table_dropped_ms(&self) -> u64 {
        self.table_dropped_ms
    }

    /// The cluster's name; none before the first leader gave it.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// Which data directory each master of the group had when the cluster was formed.
    #[must_use]
    pub fn masters(&self) -> &BTreeMap<u64, u64> {
        &self.masters
    }

    /// Whether somebody has paused what the cluster does by itself.
    #[must_use]
    pub fn balancer_paused(&self) -> bool {
        self.balancer_paused
    }

    /// The server of this id.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(&id)
    }

    /// Every server.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.values()
    }

    /// The table of this id.
    #[must_use]
    pub fn table(&self, id: TableId) -> Option<&Table> {
        self.tables.get(&id)
    }

    /// The table of this name.
    #[must_use]
    pub fn table_named(&self, name: &str) -> Option<&Table> {
        self.index.table_names.get(name).and_then(|id| self.tables.get(id))
    }

    /// Every table.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.values()
    }

    /// The tablet of this id.
    #[must_use]
    pub fn tablet(&self, id: TabletId) -> Option<&Tablet> {
        self.tablets.get(&id)
    }

    /// Every tablet, by id.
    pub fn tablets(&self) -> impl Iterator<Item = &Tablet> {
        self.tablets.values()
    }

    /// What took the place of a tablet that is no more, and has not been split or merged itself
    /// since, in order of id. Where that would be more than one
    /// split makes, the first of them are named by what they came from.
    #[must_use]
    pub fn successors(&self, id: TabletId) -> Option<BTreeSet<TabletId>> {
        let mut successors: BTreeSet<TabletId> = self.retired.get(&id)?.successors.iter().copied().collect();
        // Whoever succeeds has a higher id, so that the way ends.
        while let Some(gone) = successors.iter().copied().find(|id| !self.tablets.contains_key(id)) {
            let next = self.retired.get(&gone).map_or(&[][..], |retired| &retired.successors);
            if successors.len() + next.len() > SPLIT_CHILDREN_MAX {
                break;
            }
            successors.remove(&gone);
            successors.extend(next);
        }
        Some(successors)
    }

    /// Number of tablets.
    #[must_use]
    pub fn tablet_count(&self) -> usize {
        self.tablets.len()
    }

    /// The tablets of a table in key order.
    pub fn tablets_of(&self, table: TableId) -> impl Iterator<Item = &Tablet> {
        let ids = self.index.ranges.get(&table).into_iter().flat_map(BTreeMap::values);
        ids.filter_map(|id| self.tablets.get(id))
    }

    /// The tablets of which a server holds a copy.
    pub fn tablets_on(&self, server: ServerId) -> impl Iterator<Item = &Tablet> {
        let ids = self.index.replicas.get(&server).into_iter().flatten();
        ids.filter_map(|id| self.tablets.get(id))
    }

    /// Number of tablets of which a server holds a copy.
    #[must_use]
    pub fn tablet_count_on(&self, server: ServerId) -> usize {
        self.index.replicas.get(&server).map_or(0, BTreeSet::len)
    }

    /// The tablet that holds `key`.
    #[must_use]
    pub fn tablet_at(&self, table: TableId, key: &[u8]) -> Option<&Tablet> {
        use std::ops::Bound::{Included, Unbounded};
        let ranges = self.index.ranges.get(&table)?;
        let (_, id) = ranges.range::<[u8], _>((Unbounded, Included(key))).next_back()?;
        self.tablets.get(id)
    }

    /// The tablet that ends where this one begins.
    #[must_use]
    pub fn tablet_before(&self, tablet: &Tablet) -> Option<&Tablet> {
        use std::ops::Bound::{Excluded, Unbounded};
        let ranges = self.index.ranges.get(&tablet.table)?;
        let before = (Unbounded, Excluded(&tablet.range.start()[..]));
        let (_, id) = ranges.range::<[u8], _>(before).next_back()?;
        self.tablets.get(id)
    }

    /// The tablet that begins where this one ends.
    #[must_use]
    pub fn tablet_after(&self, tablet: &Tablet) -> Option<&Tablet> {
        let end = tablet.range.end()?;
        let id = self.index.ranges.get(&tablet.table)?.get(end)?;
        self.tablets.get(id)
    }

    /// Whether `leader` still is the run of its server that was appointed.
    #[must_use]
    pub fn is_current(&self, leader: &Leader) -> bool {
        self.server(leader.server).is_some_and(|server| server.incarnation == leader.incarnation)
    }

    /// Whether the data of a copy still is where it was: in the directory, or in the
    /// process, that its server has now.
    #[must_use]
    pub fn holds_data(&self, replica: &Replica) -> bool {
        !replica.lost && self.server(replica.server).is_some_and(|server| server.has(replica.generation))
    }

    /// The former leader of a tablet whose process nobody has heard of since: what its copy
    /// alone had is not known. None once a later run of its server registered.
    #[must_use]
    pub fn awaited(&self, tablet: &Tablet) -> Option<FormerLeader> {
        let former = tablet.former.filter(|former| self.is_current(&former.leader))?;
        let leads_again = tablet.leader.is_some_and(|leader| leader.replica == former.leader.replica);
        let is_lost = tablet.replica(former.leader.replica).is_none_or(|replica| replica.lost);
        (!leads_again && !is_lost).then_some(former)
    }

    pub(super) fn insert_server(&mut self, server: Server) {
        self.index.generations.insert(server.disk_generation, server.id);
        self.servers.insert(server.id, server);
    }

    pub(super) fn remove_server(&mut self, id: ServerId) {
        if let Some(server) = self.servers.remove(&id) {
            self.index.generations.remove(&server.disk_generation);
        }
    }

    pub(super) fn insert_table(&mut self, table: Table) {
        self.index.table_names.insert(table.name.clone(), table.id);
        self.tables.insert(table.id, table);
    }

    pub(super) fn insert_tablet(&mut self, tablet: Tablet) {
        self.index.add_tablet(&tablet);
        self.tablets.insert(tablet.id, tablet);
    }

    /// Puts a tablet with other copies in the place of the one of its id.
    pub(super) fn replace_tablet(&mut self, tablet: Tablet) {
        if let Some(old) = self.tablets.get(&tablet.id) {
            self.index.remove_replicas(old);
        }
        self.insert_tablet(tablet);
    }

    /// Takes a tablet out; those that take its place are to be inserted next.
    pub(super) fn remove_tablet(&mut self, id: TabletId) -> Option<Tablet> {
        let tablet = self.tablets.remove(&id)?;
        if let Some(ranges) = self.index.ranges.get_mut(&tablet.table) {
            ranges.remove(tablet.range.start());
        }
        self.index.remove_replicas(&tablet);
        Some(tablet)
    }

    /// Remembers what took the place of a tablet; the oldest such record may go.
    pub(super) fn retire(&mut self, id: TabletId, retired: RetiredTablet) {
        self.retired.insert(id, retired);
        while self.retired.len() > RETIRED_TABLETS_MAX {
            self.retired.pop_first();
        }
    }

    /// Takes a table and its tablets out.
    pub(super) fn remove_table(&mut self, id: TableId) -> Option<(Table, Vec<Tablet>)> {
        let table = self.tables.remove(&id)?;
        self.index.table_names.remove(&table.name);
        let ids = self.index.ranges.remove(&id).unwrap_or_default();
        let tablets: Vec<Tablet> = ids.values().filter_map(|id| self.tablets.remove(id)).collect();
        for tablet in &tablets {
            self.index.remove_replicas(tablet);
        }
        self.retired.retain(|_, retired| retired.table != id);
        Some((table, tablets))
    }

    /// Builds the indexes from the records, after decoding.
    pub(super) fn rebuild_indexes(&mut self) {
        let mut index = Indexes::default();
        for server in self.servers.values() {
            index.generations.insert(server.disk_generation, server.id);
        }
        for table in self.tables.values() {
            index.table_names.insert(table.name.clone(), table.id);
        }
        for tablet in self.tablets.values() {
            index.add_tablet(tablet);
        }
        for job in self.jobs.values().filter(|job| job.is_running()) {
            index.jobs.extend(job.tablets().into_iter().map(|tablet| (tablet, job.id)));
            index.running.insert(job.id);
        }
        self.index = index;
    }
}

impl Indexes {
    fn add_tablet(&mut self, tablet: &Tablet) {
        self.ranges.entry(tablet.table).or_default().insert(tablet.range.start().clone(), tablet.id);
        for replica in &tablet.replicas {
            self.replicas.entry(replica.server).or_default().insert(tablet.id);
        }
    }

    fn remove_replicas(&mut self, tablet: &Tablet) {
        for replica in &tablet.replicas {
            if let Some(held) = self.replicas.get_mut(&replica.server) {
                held.remove(&tablet.id);
                if held.is_empty() {
                    self.replicas.remove(&replica.server);
                }
            }
        }
    }
}
