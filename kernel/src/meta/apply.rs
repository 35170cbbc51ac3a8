//! Applying commands: every guard of the metadata, evaluated here and nowhere else.
//!
//! Deterministic: the same commands in the same order give the same state on every master.
//! A command whose guard fails changes nothing and is answered with the record as it stands,
//! so that a proposer whose answer was lost reads its own outcome.

use super::backup;
use super::command::{Appointment, Command, InSyncChange, NewBeginning, NewTablet, ReplicaChange};
use super::emptied;
use super::in_sync::alter;
use super::job::{self, Job, Origin};
use super::leaving::{forget_server, set_duty};
use super::merge;
use super::registration::register_server;
use super::rejection::Rejection;
use super::replicas::change_replica;
use super::schedule;
use super::snapshot::state_hash;
use super::spec::{SYSTEM_TABLES, TableChange, TableKind, TableSpec, check_table_name};
use super::state::{ClusterId, FormerLeader, Leader, Replica, Server, State, Table, Tablet};
use super::succession;
use crate::hlc::Hlc;
use crate::ids::{Attempt, ConfigVersion, Epoch, JobId, ReplicaId, ServerId, TableId, TabletId};
use crate::limits::{TABLES_MAX, TABLETS_MAX};
use crate::mutated;
use crate::range::KeyRange;
use std::collections::{BTreeMap, BTreeSet};

/// What a command gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The cluster is formed, under this name.
    Initialized(ClusterId),
    /// The server is registered.
    Registered(Registered),
    /// The table exists, with these tablets in key order.
    Created(Table, Vec<TabletId>),
    /// The table as it is now.
    Changed(Table),
    /// The table is gone.
    Dropped(Table),
    /// One result per tablet of a `Recover`, an `Appoint` or an `Empty`.
    Elections(Vec<Result<Tablet, Rejection>>),
    /// One result per change of an `AlterInSync`.
    InSync(Vec<Result<Tablet, Rejection>>),
    /// One result per change of a `ChangeReplicas`.
    Replicas(Vec<Result<Tablet, Rejection>>),
    /// The job as it stands now: started, ended or committed.
    Job(Box<Job>),
    /// The server as it is now, or was when it was forgotten.
    Server(Box<Server>),
    /// Whether the cluster does nothing by itself now.
    BalancerPaused(bool),
    /// It is as it was to be.
    Done,
    /// How this state compares with the proposer's.
    Compared(Comparison),
    /// Nothing changed, and why.
    Rejected(Rejection),
}

/// How a master's state compares with the proposer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// They are equal.
    Same,
    /// Another command came between: nothing can be said.
    Overtaken,
    /// They differ at the same index: this master must halt before it decides anything.
    Diverged,
}

/// How a server was registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The server's record.
    pub server: Server,
}

/// The records that a command touched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Whether everything may have changed: after a snapshot, or when changes were missed.
    pub all: bool,
    /// New and changed servers.
    pub servers: BTreeSet<ServerId>,
    /// New and changed tables.
    pub tables: BTreeSet<TableId>,
    /// Tables that are gone.
    pub removed_tables: BTreeSet<TableId>,
    /// New and changed tablets.
    pub tablets: BTreeSet<TabletId>,
    /// Tablets that are gone, with their table and the servers that held copies.
    pub removed_tablets: BTreeMap<TabletId, (TableId, Vec<ServerId>)>,
    /// Servers that hold a copy no longer of a tablet that goes on without it.
    pub removed_copies: BTreeSet<(TabletId, ServerId)>,
    /// New and changed jobs.
    pub jobs: BTreeSet<JobId>,
    /// Whether a schedule is new, changed or gone.
    pub schedules: bool,
}

impl Changes {
    /// Whatever the state holds.
    #[must_use]
    pub fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Applies the command at `index` of the log.
pub fn apply(state: &mut State, index: u64, command: Command) -> (Reply, Changes) {
    assert!(index > state.applied, "commands are applied once, in order");
    // A comparison is about the state before it.
    let comparison = match &command {
        Command::CompareState { applied, hash } => compare(state, *applied, *hash),
        Command::InitCluster { .. }
        | Command::RegisterServer(_)
        | Command::CreateTable { .. }
        | Command::ChangeTable { .. }
        | Command::DropTable { .. }
        | Command::Recover { .. }
        | Command::AlterInSync { .. }
        | Command::ChangeReplicas { .. }
        | Command::SetDuty { .. }
        | Command::ForgetServer { .. }
        | Command::StartJob { .. }
        | Command::EndJob { .. }
        | Command::ChangeMerge { .. }
        | Command::CommitSplit { .. }
        | Command::Empty { .. }
        | Command::PauseBalancer { .. }
        | Command::ChangeBackup { .. }
        | Command::ChangeRestore { .. }
        | Command::SetSchedule { .. }
        | Command::FailSchedule { .. }
        | Command::RemoveSchedule { .. }
        | Command::RecordTransfer { .. }
        | Command::RecordRefusal { .. }
        | Command::Appoint { .. } => Comparison::Overtaken,
    };
    state.applied = index;
    let mut changes = Changes::default();
    let reply = match command {
        Command::InitCluster { cluster_id, masters } => Ok(init(state, cluster_id, masters)),
        Command::RegisterServer(register) => register_server(state, register, &mut changes),
        Command::CreateTable { name, spec, tablets, time_ms } => {
            create_table(state, (name, time_ms), spec, tablets, &mut changes)
        }
        Command::ChangeTable { table, change } => change_table(state, table, &change, &mut changes),
        Command::DropTable { table, time_ms } => drop_table(state, table, time_ms, &mut changes),
        Command::Recover { tablets } => {
            let recover = |(id, epoch): (TabletId, Epoch)| recover(state, id, epoch, &mut changes);
            Ok(Reply::Elections(tablets.into_iter().map(recover).collect()))
        }
        Command::CompareState { .. } => Ok(Reply::Compared(comparison)),
        Command::AlterInSync { proposer, changes: asked } => {
            let alter = |change: InSyncChange| alter(state, proposer, &change, &mut changes);
            Ok(Reply::InSync(asked.into_iter().map(alter).collect()))
        }
        Command::ChangeReplicas { changes: asked, time_ms } => {
            let change = |change: ReplicaChange| change_replica(state, change, time_ms, &mut changes);
            Ok(Reply::Replicas(asked.into_iter().map(change).collect()))
        }
        Command::SetDuty { server, duty } => set_duty(state, server, duty, &mut changes),
        Command::ForgetServer { server } => forget_server(state, server, &mut changes),
        Command::StartJob { wish, origin, time_ms } => job::start(state, wish, origin, time_ms, &mut changes),
        Command::EndJob { job, attempt, end, time_ms } => {
            job::end(state, job, attempt, end, time_ms, &mut changes)
        }
        Command::ChangeMerge { job, attempt, step } => merge::step(state, job, attempt, step, &mut changes),
        Command::CommitSplit { proposer, commits, time_ms } => {
            succession::commit(state, proposer, &commits, time_ms, &mut changes)
        }
        Command::Empty { tablets, time_ms } => {
            let empty = |anew: NewBeginning| emptied::empty(state, &anew, time_ms, &mut changes);
            Ok(Reply::Elections(tablets.into_iter().map(empty).collect()))
        }
        Command::PauseBalancer { paused } => {
            state.balancer_paused = paused;
            Ok(Reply::BalancerPaused(paused))
        }
        Command::ChangeBackup { job, attempt, step } => {
            backup::step_backup(state, job, attempt, step, &mut changes)
        }
        Command::ChangeRestore { job, attempt, step } => {
            backup::step_restore(state, job, attempt, step, &mut changes)
        }
        Command::SetSchedule { schedule } => schedule::set(state, *schedule, &mut changes),
        Command::FailSchedule { url, error, time_ms } => {
            schedule::fail(state, &url, error, time_ms, &mut changes)
        }
        Command::RemoveSchedule { url } => schedule::remove(state, &url, &mut changes),
        Command::RecordTransfer { transfer, started_ms, ended_ms } => {
            Ok(job::record_transfer(state, transfer, (started_ms, ended_ms), &mut changes))
        }
        Command::RecordRefusal { wish, error, started_ms, ended_ms } => {
            job::record_refusal(state, wish, error, (started_ms, ended_ms), &mut changes)
        }
        Command::Appoint { appointments } => {
            let appoint = |appointment: Appointment| appoint(state, &appointment, &mut changes);
            Ok(Reply::Elections(appointments.into_iter().map(appoint).collect()))
        }
    };
    if !changes.is_empty() {
        state.changed = index;
    }
    (reply.unwrap_or_else(Reply::Rejected), changes)
}

fn compare(state: &State, applied: u64, hash: u64) -> Comparison {
    if state.applied != applied {
        Comparison::Overtaken
    } else if state_hash(state) == hash {
        Comparison::Same
    } else {
        Comparison::Diverged
    }
}

fn init(state: &mut State, cluster_id: ClusterId, masters: BTreeMap<u64, u64>) -> Reply {
    let formed = state.cluster_id.get_or_insert_with(|| {
        state.masters = masters;
        cluster_id
    });
    Reply::Initialized(*formed)
}

fn create_table(
    state: &mut State,
    (name, time_ms): (String, u64),
    spec: TableSpec,
    tablets: Vec<NewTablet>,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    new_tables_fit(state, std::iter::once((&*name, &spec, &tablets[..])))?;
    let (table, ids) = insert_new(state, name, spec, tablets, Opens::At(time_ms), changes);
    Ok(Reply::Created(table, ids))
}

/// Whether all of these tables may come into being.
pub(super) fn new_tables_fit<'a>(
    state: &State,
    tables: impl Iterator<Item = (&'a str, &'a TableSpec, &'a [NewTablet])>,
) -> Result<(), Rejection> {
    let (mut count, mut tablet_count) = (state.tables.len(), state.tablets.len());
    for (name, spec, tablets) in tables {
        let named = if SYSTEM_TABLES.contains(&name) { Ok(()) } else { check_table_name(name) };
        named.and_then(|()| spec.check()).map_err(Rejection::BadTable)?;
        if let Some(table) = state.table_named(name) {
            return Err(Rejection::TableExists(Box::new(table.clone())));
        }
        (count, tablet_count) = (count + 1, tablet_count + tablets.len());
        if count > TABLES_MAX {
            return Err(Rejection::LimitReached("tables"));
        }
        if tablet_count > TABLETS_MAX {
            return Err(Rejection::LimitReached("tablets"));
        }
        check_placement(state, spec, tablets)?;
    }
    Ok(())
}

/// From when on a new table may be used.
pub(super) enum Opens {
    /// From this wall time on, milliseconds since 1970.
    At(u64),
    /// Once this job has brought its rows back.
    After(JobId),
}

/// Writes the records of a table that fits.
pub(super) fn insert_new(
    state: &mut State,
    name: String,
    spec: TableSpec,
    tablets: Vec<NewTablet>,
    opens: Opens,
    changes: &mut Changes,
) -> (Table, Vec<TabletId>) {
    let (restoring, created_ms) = match opens {
        Opens::At(time_ms) => (None, time_ms),
        Opens::After(job) => (Some(job), 0),
    };
    let table = Table { id: state.next.table, name, spec, restoring, created_ms };
    state.next.table = table.id.next();
    changes.tables.insert(table.id);
    state.insert_table(table.clone());
    let create = |tablet| create_tablet(state, table.id, table.spec.kind, tablet);
    let ids: Vec<TabletId> = tablets.into_iter().map(create).collect();
    changes.tablets.extend(&ids);
    (table, ids)
}

fn change_table(
    state: &mut State,
    id: TableId,
    change: &TableChange,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let table = state.tables.get_mut(&id).ok_or(Rejection::NoTable(id))?;
    table.spec = table.spec.changed(change).map_err(Rejection::BadTable)?;
    changes.tables.insert(id);
    Ok(Reply::Changed(table.clone()))
}

/// The ranges cover every key once, and each copy goes to another known server.
fn check_placement(state: &State, spec: &TableSpec, tablets: &[NewTablet]) -> Result<(), Rejection> {
    let whole = tablets.first().is_some_and(|first| first.range.start().is_empty())
        && tablets.last().is_some_and(|last| last.range.end().is_none())
        && tablets.windows(2).all(|pair| KeyRange::is_followed_by(&pair[0].range, &pair[1].range));
    let placed = tablets.iter().all(|tablet| {
        let distinct: BTreeSet<ServerId> = tablet.servers.iter().copied().collect();
        distinct.len() == usize::from(spec.replicas)
            && distinct.len() == tablet.servers.len()
            && distinct.iter().all(|id| state.servers.contains_key(id))
    });
    if whole && placed { Ok(()) } else { Err(Rejection::BadPlacement) }
}

fn create_tablet(state: &mut State, table: TableId, kind: TableKind, new: NewTablet) -> TabletId {
    let id = state.next.tablet;
    let lineage = state.next.lineage;
    state.next.tablet = id.next();
    state.next.lineage = lineage.next();
    let replicas: Vec<Replica> =
        new.servers.into_iter().map(|server| create_replica(state, kind, server)).collect();
    let tablet = Tablet {
        id,
        table,
        range: new.range,
        drawn_by: Origin::Operator,
        epoch: Epoch(0),
        leader: None,
        in_sync: replicas.iter().map(|replica| replica.id).collect(),
        replicas,
        config_version: ConfigVersion(0),
        lineage,
        joined_ts: Hlc::MIN,
        recovering: false,
        appointed_ts: Hlc::MIN,
        former: None,
        degraded: false,
        moving: None,
        parents: Vec::new(),
        aborted: Attempt(0),
        emptied: None,
    };
    state.insert_tablet(tablet);
    id
}

pub(super) fn create_replica(state: &mut State, kind: TableKind, server: ServerId) -> Replica {
    let id: ReplicaId = state.next.replica;
    state.next.replica = id.next();
    let generation = state.servers[&server].generation(kind);
    Replica { id, server, generation, lost: false }
}

fn drop_table(
    state: &mut State,
    id: TableId,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let table = state.table(id).cloned().ok_or(Rejection::NoTable(id))?;
    if table.restoring.is_some() {
        return Err(Rejection::TableRestoring(Box::new(table)));
    }
    drop_tables(state, &[id], changes);
    state.table_dropped_ms = state.table_dropped_ms.max(time_ms);
    Ok(Reply::Dropped(table))
}

/// Takes tables out, with all that is about them.
pub(super) fn drop_tables(state: &mut State, ids: &[TableId], changes: &mut Changes) {
    for id in ids {
        let Some((_, tablets)) = state.remove_table(*id) else { continue };
        changes.removed_tables.insert(*id);
        job::end_all_of(state, &tablets, changes);
        for tablet in tablets {
            let servers = tablet.replicas.iter().map(|replica| replica.server).collect();
            changes.removed_tablets.insert(tablet.id, (*id, servers));
        }
    }
}

/// Record 1 of an election: the epoch is raised and nobody leads it yet.
fn recover(
    state: &mut State,
    id: TabletId,
    epoch: Epoch,
    changes: &mut Changes,
) -> Result<Tablet, Rejection> {
    let tablet = state.tablets.get_mut(&id).ok_or(Rejection::NoTablet(id))?;
    if tablet.epoch != epoch {
        return Err(Rejection::StaleEpoch(Box::new(tablet.clone())));
    }
    if tablet.recovering {
        return Err(Rejection::AlreadyRecovering(Box::new(tablet.clone())));
    }
    if let Some(leader) = tablet.leader.take() {
        tablet.former = Some(FormerLeader { leader, epoch });
    }
    tablet.epoch = epoch.next();
    tablet.recovering = true;
    tablet.degraded = false;
    changes.tablets.insert(id);
    Ok(tablet.clone())
}

/// Record 2 of an election: the epoch goes to one run of one copy, for ever. The in-sync set
/// stays as it is (m4).
fn appoint(state: &mut State, new: &Appointment, changes: &mut Changes) -> Result<Tablet, Rejection> {
    let tablet = state.tablet(new.tablet).ok_or(Rejection::NoTablet(new.tablet))?;
    if tablet.epoch != new.epoch {
        return Err(Rejection::StaleEpoch(Box::new(tablet.clone())));
    }
    if !tablet.recovering || tablet.leader.is_some() {
        return Err(Rejection::NotRecovering(Box::new(tablet.clone())));
    }
    let eligible = tablet.in_sync_replicas().find(|replica| replica.id == new.replica);
    let has_data = |replica: &&Replica| state.holds_data(replica) || mutated!(LostCopyAnswers);
    let Some(replica) = eligible.filter(has_data) else {
        return Err(Rejection::NotEligible(Box::new(tablet.clone())));
    };
    let leader = Leader { replica: replica.id, server: replica.server, incarnation: new.incarnation };
    if !state.is_current(&leader) {
        return Err(Rejection::StaleIncarnation(Box::new(tablet.clone())));
    }
    let tablet = state.tablets.get_mut(&new.tablet).ok_or(Rejection::NoTablet(new.tablet))?;
    tablet.leader = Some(leader);
    tablet.recovering = false;
    tablet.config_version = tablet.config_version.next();
    tablet.appointed_ts = new.ts;
    tablet.degraded = new.degraded;
    changes.tablets.insert(new.tablet);
    Ok(tablet.clone())
}
