//! The coming and going of replicas: what metadata assigns, made so.
//!
//! `observed` is the directory, `intent` comes from the master; what differs is done, in an
//! order that survives a crash anywhere: a record before the first promise, a tombstone
//! before the first row is cleared, the record's end after the last.

use crate::bootstrap::RecoveredReplica;
use crate::copying::{Arrivals, Received, Target};
use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::oplog::Oplog;
use crate::pipeline::{Appointed, Control, PeerMessages};
use crate::registry::{EpochSpan, ReplicaRecord, ReplicaState, StagedRecord};
use crate::replicas::{Replicas, Switch};
use crate::replication::Identity;
use crate::succession::tombstones_of;
use crate::tablets::{Directory, HandleSpec, TabletHandle};
use ebla_failpoints::failpoint;
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::{LogEnd, SealedChild};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, Epoch, Incarnation, Lineage, ReplicaId, Seq, ServerId, TableId, TabletId,
};
use ebla_kernel::meta::{Parent, TableKind};
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstones;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Membership, Recovered, Seals, Tablet};
use ebla_proto::convert;
use ebla_proto::split::parent;
use ebla_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{info, warn};

/// The replicas of this server.
pub struct ReplicaSet {
    node: Arc<Node>,
    replicas: Arc<Replicas>,
    oplog: Arc<Oplog>,
    incarnation: Incarnation,
    /// The servers that hold copies of each tablet here.
    members: Mutex<BTreeMap<TabletId, BTreeSet<ServerId>>>,
    /// Names rows in the row cache; a replica that comes anew gets a new one.
    next_generation: AtomicU64,
    /// Held while the directory changes.
    changing: tokio::sync::Mutex<()>,
    /// Copies that are being built.
    arrivals: Arrivals,
    /// Room for those that are at work.
    building: Arc<Semaphore>,
    target: Target,
    /// Told when the server must end.
    failed: mpsc::UnboundedSender<Error>,
}

impl ReplicaSet {
    /// Takes the recovered replicas in: from now on they answer fences.
    #[must_use]
    pub fn new(
        target: Target,
        own: &Identity,
        recovered: Vec<RecoveredReplica>,
        failed: mpsc::UnboundedSender<Error>,
    ) -> Self {
        let set = Self {
            node: Arc::clone(&target.node),
            replicas: Arc::clone(&target.replicas),
            oplog: Arc::clone(&target.oplog),
            incarnation: own.run.incarnation,
            next_generation: AtomicU64::new(1),
            members: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            arrivals: Arrivals::default(),
            building: Arc::new(Semaphore::new(limits::BOOTSTRAPS_IN_MAX)),
            target,
            failed,
        };
        let mut directory = Directory::default();
        for replica in recovered {
            set.node.clock.raise(replica.end.ts);
            directory.insert(set.install(replica));
        }
        set.node.directory.store(Arc::new(directory));
        set
    }

    /// Makes the assignments of a master so.
    ///
    /// # Errors
    /// When the registry or a store fails: the server must end.
    pub async fn assign(self: &Arc<Self>, assignments: v1::Assignments) -> Result<(), Error> {
        let assigned = assignments.assignments.iter().filter_map(read_assignment);
        // A copy whose data is gone is never made anew under its old name (m16).
        let assigned: Vec<Assigned> = assigned.filter(|assigned| !assigned.is_lost).collect();
        self.switch_committed(&assigned).await?;
        let gone = self.gone(&assignments, &assigned);
        for tablet in &gone {
            self.arrivals.cancel(*tablet).await;
        }
        let _changing = self.changing.lock().await;
        if !gone.is_empty() {
            self.remove(gone).await?;
        }
        self.create(&assigned)?;
        self.meet_servers(&assigned);
        let appointed = assigned.into_iter().filter_map(|assigned| assigned.appointed(self.incarnation));
        let appointed: Vec<_> = appointed.collect();
        if !appointed.is_empty() {
            let _ = self.node.sequencer.control.send(Control::Appoint(appointed));
        }
        Ok(())
    }

    /// Lets others take the place of tablets here for which metadata has committed that.
    async fn switch_committed(&self, assigned: &[Assigned]) -> Result<(), Error> {
        let committed = self.committed(assigned);
        if committed.is_empty() {
            return Ok(());
        }
        let _changing = self.changing.lock().await;
        for committed in committed {
            self.switch(committed).await?;
        }
        Ok(())
    }

    /// The sealed tablets here whose place others have taken, for exactly the attempt that is
    /// staged in all of them (m30).
    fn committed(&self, assigned: &[Assigned]) -> Vec<Committed> {
        let directory = self.node.directory.load();
        let mut committed: BTreeMap<TabletId, Committed> = BTreeMap::new();
        for child in assigned {
            let staged = |parent: &Parent| {
                let handle = Arc::clone(directory.tablet(parent.tablet)?);
                let staged = self.replicas.staged(parent.tablet)?;
                let is_meant = (staged.seal.attempt, staged.end) == (parent.attempt, parent.seal);
                is_meant.then_some((handle, staged))
            };
            let Some(first) = child.parents.first() else { continue };
            let parents: Option<Vec<_>> = child.parents.iter().map(staged).collect();
            if let Some(parents) = parents {
                let (epoch, ancestry) = (first.epoch, child.ancestry);
                committed.insert(first.tablet, Committed { parents, epoch, ancestry });
            }
        }
        committed.into_values().collect()
    }

    /// Lets others take the place of tablets: their cores give up, one registry batch retires
    /// them and makes the children, and their cores go on from them. A child that is not this
    /// server's any more is removed like any other replica.
    async fn switch(&self, committed: Committed) -> Result<(), Error> {
        let serves = committed.parents.iter().any(|(parent, _)| parent.serving().is_some());
        for (parent, _) in committed.parents.iter().filter(|_| serves) {
            parent.handover.begin(self.node.clock.tick());
        }
        let mut cores = Vec::new();
        for (parent, staged) in &committed.parents {
            let (done, core) = oneshot::channel();
            let _ = self.node.sequencer.control.send(Control::Retire(parent.id, done));
            let Ok(Some(core)) = core.await else { return Ok(()) }; // the server ends
            cores.push((core, staged.end));
        }
        let children = committed.children(&cores);
        let records: Vec<ReplicaRecord> = children.iter().map(|(record, _)| record.clone()).collect();
        self.keep_in_memory(&records);
        let seals = committed.parents.iter().map(|(parent, staged)| (parent.id, staged.end)).collect();
        let (switch, replicas) = (Switch { parents: seals, children: records }, Arc::clone(&self.replicas));
        tokio::task::spawn_blocking(move || replicas.switch(switch))
            .await
            .map_err(|error| Error::Fatal { what: format!("registry ({error})") })??;
        let mut directory = Directory::clone(&self.node.directory.load());
        let parents: Vec<_> = committed.parents.into_iter().map(|(parent, _)| parent).collect();
        let (mut rows, mut bytes) = (0, 0);
        for parent in &parents {
            directory.remove(parent.id);
            let size = parent.size.get();
            (rows, bytes) = (rows + size.0, bytes + size.1);
        }
        let (share, names) = (children.len() as u64, (names(&parents), children.len()));
        for (record, tablet) in children {
            let handle = self.handle(&record, tombstones_of(&parents, &record.range));
            handle.size.set(rows / share, bytes / share);
            handle.size.doubt_all();
            if serves {
                handle.handover.begin(self.node.clock.tick());
            }
            directory.insert(Arc::clone(&handle));
            let _ = self.node.sequencer.control.send(Control::Install(Box::new(tablet), handle));
        }
        self.node.directory.store(Arc::new(directory));
        info!(tablets = names.0, children = names.1, "others have taken the place of tablets");
        Ok(())
    }

    /// A child as readers see it: everything up to its base is applied.
    fn handle(&self, record: &ReplicaRecord, tombstones: RangeTombstones) -> Arc<TabletHandle> {
        Arc::new(TabletHandle::new(HandleSpec {
            id: record.tablet,
            table: record.table,
            kind: record.kind,
            range: record.range.clone(),
            replica: record.replica,
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
            tombstones,
            applied: record.base,
            end: record.base,
            epochs: record.epochs.iter().map(|span| (span.epoch, span.first)).collect(),
            ancestry: record.ancestry,
            base: record.base,
        }))
    }

    /// Tablets whose copy here is no longer wanted, as far as the registry has one.
    fn gone(&self, assignments: &v1::Assignments, assigned: &[Assigned]) -> Vec<TabletId> {
        let wanted: BTreeMap<TabletId, ReplicaId> =
            assigned.iter().map(|assigned| (assigned.tablet, assigned.replica)).collect();
        let removed: BTreeSet<u64> = assignments.removed_tablet_ids.iter().copied().collect();
        let is_gone = |record: &ReplicaRecord| match wanted.get(&record.tablet) {
            Some(replica) => *replica != record.replica,
            None => assignments.full || removed.contains(&record.tablet.0),
        };
        self.replicas.pick(is_gone)
    }

    /// Connects to the servers that hold copies of what is here.
    fn meet_servers(&self, assigned: &[Assigned]) {
        let directory = self.node.directory.load();
        let mut members = self.members.lock().expect("no holder of this lock panics");
        for assigned in assigned {
            members.insert(assigned.tablet, assigned.membership.members.values().copied().collect());
        }
        members.retain(|tablet, _| directory.tablet(*tablet).is_some() || self.arrivals.has(*tablet));
        let own = self.node.peers.identity().map(|own| own.run.server);
        let others = members.values().flatten().copied().filter(|server| Some(*server) != own);
        self.node.peers.want(&others.collect(), &self.node.leases);
    }

    /// Adds the replicas that are not here yet. A new one promises the present epoch (m23).
    /// One that others have had entries of is built from their rows first.
    fn create(self: &Arc<Self>, assigned: &[Assigned]) -> Result<(), Error> {
        let directory = self.node.directory.load_full();
        let is_new = |assigned: &&Assigned| {
            directory.tablet(assigned.tablet).is_none() && !self.arrivals.has(assigned.tablet)
        };
        let new: Vec<&Assigned> = assigned.iter().filter(is_new).collect();
        if new.is_empty() {
            return Ok(());
        }
        let record = |assigned: &&Assigned| assigned.new_record(self.replicas.get(assigned.tablet).as_ref());
        let records: Vec<ReplicaRecord> = new.iter().map(record).collect();
        self.record(&records)?;
        let tokens: BTreeMap<TabletId, TokenTable> =
            new.iter().map(|assigned| (assigned.tablet, assigned.tokens())).collect();
        let (learners, records): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| record.state != ReplicaState::Active);
        for learner in learners {
            self.begin_copying(&learner);
        }
        let mut directory = Directory::clone(&directory);
        for record in records {
            directory.insert(self.install(RecoveredReplica {
                end: LogEnd::default(),
                epochs: Vec::new(),
                tokens: tokens.get(&record.tablet).cloned().unwrap_or_default(),
                tombstones: RangeTombstones::new(),
                seals: Seals::default(),
                staged: None,
                record,
            }));
        }
        info!(replicas = new.len(), "created replicas");
        self.node.directory.store(Arc::new(directory));
        Ok(())
    }

    /// Makes the records of copies that begin here durable.
    fn record(&self, records: &[ReplicaRecord]) -> Result<(), Error> {
        self.keep_in_memory(records);
        let is_built = records.iter().any(|record| record.state != ReplicaState::Active);
        failpoint!("bootstrap.record", if is_built);
        self.replicas.put(records.to_vec())?;
        failpoint!("bootstrap.recorded", if is_built);
        Ok(())
    }

    /// Gives those in memory their place in the log, and their rows theirs.
    fn keep_in_memory(&self, records: &[ReplicaRecord]) {
        for record in records.iter().filter(|record| record.kind == TableKind::Memory) {
            self.node.memory.tables().add(record.table);
            self.oplog.keep_in_memory(record.tablet);
        }
    }

    /// Builds a copy beside everything else.
    fn begin_copying(self: &Arc<Self>, record: &ReplicaRecord) {
        info!(tablet = %record.tablet, replica = %record.replica, "a copy is to be built");
        let (set, learner) = (Arc::clone(self), record.clone());
        self.arrivals.begin(record, |cancelled, received| {
            tokio::spawn(async move {
                if let Err(error) = set.copy(&learner, cancelled, &received).await {
                    let _ = set.failed.send(error);
                }
            })
        });
    }

    /// The copies whose versions come in now: replica, bytes here, bytes in all.
    #[must_use]
    pub fn received(&self) -> Vec<(ReplicaId, u64, u64)> {
        self.arrivals.received()
    }

    async fn copy(
        &self,
        record: &ReplicaRecord,
        mut cancelled: watch::Receiver<bool>,
        received: &Received,
    ) -> Result<(), Error> {
        loop {
            let fetched = async {
                let room = Arc::clone(&self.building).acquire_owned().await;
                (self.target.fetch(record, received).await, room)
            };
            let (fetched, _room) = tokio::select! {
                fetched = fetched => fetched,
                _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(()),
            };
            // What has begun to be installed is brought to its end.
            let Some(arrived) = self.target.finish(fetched).await? else {
                tokio::time::sleep(limits::BOOTSTRAP_RETRY_PAUSE).await;
                continue;
            };
            let _changing = tokio::select! {
                changing = self.changing.lock() => changing,
                // Whoever cancels finds the record and removes what was built.
                _ = cancelled.wait_for(|cancelled| *cancelled) => return Ok(()),
            };
            info!(tablet = %record.tablet, upto = %arrived.replica.end.pos, "a copy is built");
            metrics::counter!("ebla_bootstrap_copies_total").increment(1);
            self.node.clock.raise(arrived.replica.end.ts);
            let (replica, probe) = (arrived.replica, arrived.probe);
            let mut directory = Directory::clone(&self.node.directory.load_full());
            directory.insert(self.install(replica));
            self.node.directory.store(Arc::new(directory));
            self.arrivals.arrived(record.tablet, record.replica);
            // As if the leader had asked, so that it is answered at once.
            let room = Arc::new(Semaphore::new(0)).try_acquire_many_owned(0);
            let room = room.expect("no permit is always there");
            let messages = vec![(record.tablet, record.replica, probe)];
            let _ = self.node.sequencer.control.send(Control::Peers(PeerMessages { messages, room }));
            return Ok(());
        }
    }

    fn install(&self, replica: RecoveredReplica) -> Arc<TabletHandle> {
        let RecoveredReplica { record, end, epochs, tokens, tombstones, seals, staged } = replica;
        let handle = Arc::new(TabletHandle::new(HandleSpec {
            id: record.tablet,
            table: record.table,
            kind: record.kind,
            range: record.range.clone(),
            replica: record.replica,
            generation: self.next_generation.fetch_add(1, Ordering::Relaxed),
            tombstones,
            applied: record.flushed,
            end,
            epochs: epochs.iter().map(|span| (span.epoch, span.first)).collect(),
            ancestry: record.ancestry,
            base: record.base,
        }));
        handle.size.set(record.rows_estimate, record.bytes_estimate);
        // Entries above the flushed position may be in the store without having been counted, and
        // rows that a restore put in are in no entry.
        if end.pos.seq > record.flushed.pos.seq || record.rows_estimate == 0 {
            handle.size.doubt_all();
        }
        handle.size.has_garbage.store(end.pos.seq > Seq(0), Ordering::Relaxed);
        let tablet = Tablet::new(Recovered {
            id: record.tablet,
            replica: record.replica,
            incarnation: self.incarnation,
            range: record.range,
            promised: record.promised_epoch,
            epochs: epochs.iter().map(|span| (span.epoch, span.first)).collect(),
            end,
            applied: record.flushed.pos.seq,
            tokens,
            base: record.base,
            seals,
            staged: staged.map_or(Attempt(0), |staged| staged.seal.attempt),
        });
        let _ = self.node.sequencer.control.send(Control::Install(Box::new(tablet), Arc::clone(&handle)));
        handle
    }

    /// Lets replicas go for good: tombstone, then log and rows, then the record.
    async fn remove(&self, tablets: Vec<TabletId>) -> Result<(), Error> {
        info!(replicas = tablets.len(), "removing replicas");
        let mut directory = Directory::clone(&self.node.directory.load());
        let handles: Vec<_> = tablets.iter().filter_map(|id| directory.remove(*id)).collect();
        for handle in &handles {
            handle.set_serving(None);
        }
        self.node.directory.store(Arc::new(directory));
        for id in &tablets {
            let (done, drained) = oneshot::channel();
            let _ = self.node.sequencer.control.send(Control::Remove(*id, done));
            let _ = drained.await;
        }
        self.node.imports.settled(&tablets).await;
        self.replicas.tombstone(&tablets)?;
        let records = tablets.iter().filter_map(|id| self.replicas.get(*id));
        let ranges = records.map(|record| (record.table, record.range)).collect();
        let (node, replicas, oplog) =
            (Arc::clone(&self.node), Arc::clone(&self.replicas), Arc::clone(&self.oplog));
        let cleared = tokio::task::spawn_blocking(move || clear(&node, &replicas, &oplog, ranges, &tablets));
        cleared
            .await
            .unwrap_or_else(|error| Err(Error::Fatal { what: format!("removal of replicas ({error})") }))
    }

    /// Ends removals that a crash cut short.
    ///
    /// # Errors
    /// As the stores say.
    pub fn finish_removals(&self, records: &[ReplicaRecord]) -> Result<(), Error> {
        let gone: Vec<_> = records.iter().filter(|record| record.state == ReplicaState::Tombstoned).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ranges = gone.iter().map(|record| (record.table, record.range.clone())).collect();
        let tablets: Vec<TabletId> = gone.iter().map(|record| record.tablet).collect();
        clear(&self.node, &self.replicas, &self.oplog, ranges, &tablets)
    }
}

/// Sealed tablets here whose place others have taken.
struct Committed {
    /// The tablets and what is staged for each, in key order.
    parents: Vec<(Arc<TabletHandle>, StagedRecord)>,
    /// The epoch in which the others begin.
    epoch: Epoch,
    /// What their history goes back to.
    ancestry: Ancestry,
}

impl Committed {
    /// The records and cores of the children, whose logs go on from those of their parents.
    fn children(&self, cores: &[(Box<Tablet>, LogEnd)]) -> Vec<(ReplicaRecord, Tablet)> {
        let Some((first, staged)) = self.parents.first() else { return Vec::new() };
        let cores: Vec<(&Tablet, LogEnd)> = cores.iter().map(|(core, seal)| (&**core, *seal)).collect();
        let child = |child: &SealedChild| {
            let replica = *child.replicas.get(&first.replica)?;
            let core = Tablet::successor(&cores, child, self.epoch, replica);
            Some((self.record(child, first, &core), core))
        };
        staged.seal.children.iter().filter_map(child).collect()
    }

    fn record(&self, child: &SealedChild, first: &TabletHandle, core: &Tablet) -> ReplicaRecord {
        let (base, begun) = (core.durable_end(), core.epochs());
        let kept = &begun[begun.len().saturating_sub(crate::limits::EPOCHS_KEPT)..];
        ReplicaRecord {
            tablet: child.tablet,
            table: first.table,
            kind: first.kind,
            replica: core.replica(),
            range: child.range.clone(),
            state: ReplicaState::Active,
            promised_epoch: self.epoch,
            epochs: kept.iter().map(|(epoch, first)| EpochSpan { epoch: *epoch, first: *first }).collect(),
            flushed: base,
            truncating: None,
            base,
            parents: self.parents.iter().map(|(parent, _)| parent.id).collect(),
            ancestry: self.ancestry,
            config_version: ConfigVersion(0),
            rows_estimate: 0,
            bytes_estimate: 0,
            built: None,
        }
    }
}

fn names(tablets: &[Arc<TabletHandle>]) -> String {
    tablets.iter().map(|tablet| tablet.id.to_string()).collect::<Vec<_>>().join(", ")
}

/// Clears rows and logs of replicas that are tombstoned, neighbours as one range.
fn clear(
    node: &Node,
    replicas: &Replicas,
    oplog: &Oplog,
    ranges: Vec<(TableId, KeyRange)>,
    tablets: &[TabletId],
) -> Result<(), Error> {
    failpoint!("remove.log");
    oplog.remove(tablets)?;
    let joined = joined(ranges);
    failpoint!("remove.clear");
    for (table, range) in &joined {
        assert_no_overlap(replicas, *table, range)?;
        node.reader.store.clear_range(*table, range)?;
    }
    replicas.forget(tablets)?;
    give_space_back(node, joined);
    Ok(())
}

/// No copy that stays may hold a key of what is to be cleared.
fn assert_no_overlap(replicas: &Replicas, table: TableId, range: &KeyRange) -> Result<(), Error> {
    let stays = |record: &ReplicaRecord| match record.state {
        ReplicaState::Active => record.table == table && record.range.overlaps(range),
        ReplicaState::Tombstoned | ReplicaState::Bootstrapping { .. } => false,
    };
    match replicas.pick(stays).first() {
        None => Ok(()),
        Some(tablet) => {
            Err(Error::Fatal { what: format!("clearing of {range}, which tablet {} holds", tablet.0) })
        }
    }
}

/// Works what is left of cleared ranges out of the files of their ends, beside everything else.
fn give_space_back(node: &Node, ranges: Vec<(TableId, KeyRange)>) {
    let store = Arc::clone(&node.reader.store);
    let work = move || ranges.iter().for_each(|(table, range)| store.compact(*table, range));
    let builder = std::thread::Builder::new().name("ebla-compact".to_owned());
    drop(builder.spawn(work).expect("the system gives a thread"));
}

/// Joins ranges that touch: a dropped table of many tablets is cleared at once.
fn joined(mut ranges: Vec<(TableId, KeyRange)>) -> Vec<(TableId, KeyRange)> {
    ranges.sort();
    let mut out: Vec<(TableId, KeyRange)> = Vec::new();
    for (table, range) in ranges {
        match out.last_mut() {
            Some((last_table, last)) if *last_table == table && last.is_followed_by(&range) => {
                *last = last.followed_by(&range).expect("it was asked just now");
            }
            Some(_) | None => out.push((table, range)),
        }
    }
    out
}

/// An assignment in kernel types.
struct Assigned {
    tablet: TabletId,
    table: TableId,
    kind: TableKind,
    replica: ReplicaId,
    range: KeyRange,
    epoch: Epoch,
    leads: bool,
    /// The data of this copy is gone.
    is_lost: bool,
    is_in_sync: bool,
    membership: Membership,
    min_in_sync: u8,
    shrink_floor: u8,
    /// What its history goes back to.
    ancestry: Ancestry,
    /// What the tablet was made of, in key order.
    parents: Vec<Parent>,
    /// No attempt up to this one to retire the tablet will be committed.
    aborted: Attempt,
    /// When every copy in memory was lost for the last time, 0 for never.
    emptied_ms: u64,
}

impl Assigned {
    /// What a copy that begins empty knows of tokens. Those of before every copy was lost are
    /// forgotten: their writes were perhaps acknowledged, and nobody may be told that they never
    /// ran. No slack for clocks: it would turn away the first writes of the new life.
    fn tokens(&self) -> TokenTable {
        match self.emptied_ms {
            0 => TokenTable::default(),
            emptied_ms => TokenTable::complete_from(emptied_ms + 1),
        }
    }

    /// The record of a copy that is to begin here, after the one that is there now.
    fn new_record(&self, before: Option<&ReplicaRecord>) -> ReplicaRecord {
        let tried = before.filter(|before| before.replica == self.replica);
        let attempt = match before.map(|before| before.state) {
            Some(ReplicaState::Bootstrapping { attempt }) => attempt + 1,
            Some(ReplicaState::Active | ReplicaState::Tombstoned) | None => 1,
        };
        ReplicaRecord {
            tablet: self.tablet,
            table: self.table,
            kind: self.kind,
            replica: self.replica,
            range: self.range.clone(),
            // A copy that others count on from its beginning begins empty.
            state: match self.is_in_sync && self.parents.is_empty() {
                true => ReplicaState::Active,
                false => ReplicaState::Bootstrapping { attempt },
            },
            promised_epoch: tried.map_or(self.epoch, |tried| tried.promised_epoch.max(self.epoch)),
            epochs: Vec::<EpochSpan>::new(),
            flushed: LogEnd::default(),
            truncating: None,
            base: LogEnd::default(),
            parents: Vec::new(),
            ancestry: self.ancestry,
            config_version: self.membership.version,
            rows_estimate: 0,
            bytes_estimate: 0,
            built: None,
        }
    }

    fn appointed(self, incarnation: Incarnation) -> Option<(TabletId, Appointed)> {
        let Self { tablet, replica, epoch, leads, membership, min_in_sync, shrink_floor, aborted, .. } = self;
        let appointed =
            Appointed { epoch, replica, incarnation, membership, min_in_sync, shrink_floor, aborted };
        leads.then_some((tablet, appointed))
    }
}

/// Reads an assignment; one that makes no sense is left out and said.
fn read_assignment(wire: &v1::Assignment) -> Option<Assigned> {
    let (tablet, table) = (wire.tablet.as_ref()?, wire.table.as_ref()?);
    let Ok(range) = convert::tablet_range(tablet) else {
        warn!(tablet = tablet.id, "an assignment with an inverted range is ignored");
        return None;
    };
    let spec = table.spec.unwrap_or_default();
    let kind = match spec.kind() {
        v1::TableKind::Unspecified | v1::TableKind::Durable => TableKind::Durable,
        v1::TableKind::Memory => TableKind::Memory,
    };
    let copies = |number: u32| u8::try_from(number).unwrap_or(u8::MAX).max(1);
    let min_in_sync = copies(spec.min_in_sync);
    let is_degraded = spec.policy == v1::Policy::Degraded as i32;
    let own = tablet.replicas.iter().find(|replica| replica.replica_id == wire.replica_id);
    let emptied_ms = tablet.emptied.map_or(0, |emptied| emptied.time_ms);
    Some(Assigned {
        tablet: TabletId(tablet.id),
        table: TableId(table.id),
        kind,
        replica: ReplicaId(wire.replica_id),
        range,
        epoch: Epoch(tablet.epoch),
        leads: wire.leads,
        is_lost: own.is_some_and(|own| own.lost),
        is_in_sync: own.is_some_and(|own| own.in_sync),
        membership: membership(tablet),
        min_in_sync,
        shrink_floor: if is_degraded { 1 } else { min_in_sync.min(copies(spec.replicas)) },
        ancestry: Ancestry {
            lineage: Lineage(tablet.lineage),
            joined_ts: Hlc(wire.joined_ts),
            began_ts: Hlc::new(emptied_ms, 0),
        },
        parents: wire.parents.iter().map(parent).collect(),
        aborted: Attempt(wire.aborted_attempt),
        emptied_ms,
    })
}

/// The copies of a tablet, those whose data is gone left out.
fn membership(tablet: &v1::Tablet) -> Membership {
    let replica = |replica: &v1::Replica| (ReplicaId(replica.replica_id), ServerId(replica.server_id));
    let (in_sync, live) =
        (tablet.replicas.iter().filter(|r| r.in_sync), tablet.replicas.iter().filter(|r| !r.lost));
    Membership {
        version: ConfigVersion(tablet.config_version),
        in_sync: in_sync.map(|r| replica(r).0).collect(),
        members: live.map(replica).collect(),
        leaving: tablet.replicas.iter().find(|r| r.leaving).map(|r| ReplicaId(r.replica_id)),
    }
}

/// A floor for this server's clock out of the assignments, so that nothing is issued below
/// what metadata has seen.
#[must_use]
pub fn clock_floor(assignments: &v1::Assignments) -> Hlc {
    Hlc(assignments.assignments.iter().map(|assignment| assignment.appointed_ts).max().unwrap_or(0))
}
