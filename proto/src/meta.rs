//! Metadata records for the wire, and table specifications from it.

use crate::convert;
use crate::error::{ApiError, Reason};
use crate::v1;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, Pos, ReplicaId, Seq, ServerId, TabletId,
};
use ebla_kernel::meta::{
    AutoMerge, BadTable, Duty, Eviction, Fence, FenceAnswer, GaveUp, InSyncChange, Policy, Rejection,
    Replica, Server, State, Table, TableChange, TableKind, TableSpec, Tablet, TransferRefusal,
};

impl From<BadTable> for ApiError {
    fn from(error: BadTable) -> Self {
        Self::new(Reason::BadRequest, error.to_string())
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let reason = match &rejection {
            Rejection::NotFormed => Reason::Unavailable,
            Rejection::WrongCluster { .. } => Reason::WrongCluster,
            Rejection::UnknownServer(_) => Reason::WrongCluster,
            Rejection::Superseded(_) => Reason::Superseded,
            Rejection::TextTooLong | Rejection::BadTable(_) => Reason::BadRequest,
            Rejection::LimitReached(_) => Reason::LimitReached,
            Rejection::TableExists(_) => Reason::TableExists,
            Rejection::BadPlacement => Reason::Unavailable,
            Rejection::NoTable(_) => Reason::TableNotFound,
            Rejection::NoTablet(_) => Reason::TabletNotFound,
            Rejection::StaleEpoch(_)
            | Rejection::AlreadyRecovering(_)
            | Rejection::NotRecovering(_)
            | Rejection::NotEligible(_)
            | Rejection::StaleIncarnation(_)
            | Rejection::NotLeader(_)
            | Rejection::StaleConfig(_)
            | Rejection::NoReplica(_)
            | Rejection::StaleCopy(_)
            | Rejection::NothingToChange(_)
            | Rejection::TooFewInSync(_)
            | Rejection::StaleAttempt(_)
            | Rejection::NotReady(_)
            | Rejection::ReadyApart(_)
            | Rejection::HasData(_)
            | Rejection::NotRestored(_)
            | Rejection::NotGathered(_) => Reason::Internal,
            Rejection::HasCopy(..)
            | Rejection::NoCopy(..)
            | Rejection::ServerLeaves(_)
            | Rejection::CopyIsNeeded(_)
            | Rejection::EnoughCopies(_) => Reason::NotMovable,
            Rejection::TooFewLeft(..) | Rejection::LastToServe(_) => Reason::TooFewServers,
            Rejection::ServerInUse(_) => Reason::NotMovable,
            Rejection::NoServer(_) => Reason::ServerNotFound,
            Rejection::JobCommitted(_) => Reason::JobEnded,
            Rejection::Retired(..) => Reason::TabletRetired,
            Rejection::BadSplitPoint(_)
            | Rejection::BadSplitCount
            | Rejection::SameTablet(_)
            | Rejection::NotNeighbours(..)
            | Rejection::OtherTable(..) => Reason::BadRequest,
            Rejection::NotWhole(_) => Reason::Unavailable,
            Rejection::JobRuns(_) | Rejection::BackupRuns(_) => Reason::JobConflict,
            Rejection::TableRestoring(_) => Reason::TableRestoring,
            Rejection::NameTwice(_) | Rejection::BackupTextTooLong | Rejection::BadSchedule => {
                Reason::BadRequest
            }
            Rejection::NoSchedule(_) => Reason::BackupNotFound,
            Rejection::NoJob(_) => Reason::JobNotFound,
            Rejection::JobEnded(_) => Reason::JobEnded,
        };
        let error = Self::new(reason, rejection.to_string());
        if let Rejection::Retired(_, successors) = &rejection {
            let ids = successors.iter().map(|id| id.0.to_string()).collect::<Vec<_>>();
            return error.with("successors", ids.join(","));
        }
        if let Rejection::JobRuns(job) | Rejection::JobEnded(job) | Rejection::BackupRuns(job) = &rejection {
            return error.with("job", job.id.0);
        }
        error
    }
}

impl From<TransferRefusal> for ApiError {
    fn from(refusal: TransferRefusal) -> Self {
        let reason = match refusal {
            TransferRefusal::NoTablet(_) => Reason::TabletNotFound,
            TransferRefusal::UnknownServer(_) => Reason::ServerNotFound,
            TransferRefusal::NoCopy(..)
            | TransferRefusal::AlreadyLeads(..)
            | TransferRefusal::NotInSync(..)
            | TransferRefusal::Leaves(_) => Reason::NotTransferable,
            TransferRefusal::NotConnected(_) | TransferRefusal::NoLeader(_) => Reason::Unavailable,
            TransferRefusal::JobRuns(..) => Reason::JobConflict,
        };
        let error = Self::new(reason, refusal.to_string());
        match refusal {
            TransferRefusal::JobRuns(_, job) => error.with("job", job.0),
            _ => error,
        }
    }
}

/// A table's promises; what the request leaves at zero takes the defaults, of which the number
/// of copies depends on how many servers are up.
///
/// # Errors
/// `BAD_REQUEST` for an unknown kind or policy, or for a number out of range.
pub fn table_spec(wire: Option<&v1::TableSpec>, servers_up: usize) -> Result<TableSpec, ApiError> {
    let default = TableSpec::default();
    let wire = wire.cloned().unwrap_or_default();
    let replicas = copies(wire.replicas)?.unwrap_or_else(|| TableSpec::default_replicas(servers_up));
    let kind = table_kind(wire.kind)?;
    let spec = TableSpec {
        kind,
        replicas,
        min_in_sync: copies(wire.min_in_sync)?.unwrap_or_else(|| TableSpec::default_min_in_sync(replicas)),
        policy: policy(wire.policy)?.unwrap_or_else(|| TableSpec::default_policy(kind)),
        ack: convert::ack(wire.ack.as_ref())?.unwrap_or(default.ack),
        retention_ms: non_zero(wire.retention_ms).unwrap_or(default.retention_ms),
        split_bytes: non_zero(wire.split_bytes).unwrap_or(default.split_bytes),
        split_load: wire.split_load.unwrap_or(default.split_load),
        auto_merge: auto_merge(wire.auto_merge)?.unwrap_or_default(),
        publish_changes: wire.publish_changes,
        memory_bytes_max: wire.memory_bytes_max,
        eviction: eviction(wire.eviction)?,
    };
    spec.check()?;
    Ok(spec)
}

fn table_kind(wire: i32) -> Result<TableKind, ApiError> {
    match v1::TableKind::try_from(wire) {
        Ok(v1::TableKind::Unspecified | v1::TableKind::Durable) => Ok(TableKind::Durable),
        Ok(v1::TableKind::Memory) => Ok(TableKind::Memory),
        Err(_) => Err(ApiError::new(
            Reason::BadRequest,
            format!("unknown table kind {wire}: give durable or memory"),
        )),
    }
}

/// What a full table does.
///
/// # Errors
/// `BAD_REQUEST` for an unknown word.
pub fn eviction(wire: i32) -> Result<Eviction, ApiError> {
    match v1::Eviction::try_from(wire) {
        Ok(v1::Eviction::Unspecified | v1::Eviction::None) => Ok(Eviction::None),
        Ok(v1::Eviction::Lru) => Ok(Eviction::LeastRecent),
        Ok(v1::Eviction::Lfu) => Ok(Eviction::LeastFrequent),
        Err(_) => {
            let hint = format!("unknown eviction {wire}: give none, lru or lfu");
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

/// What to do when too few copies are left; none where nothing is said.
fn policy(wire: i32) -> Result<Option<Policy>, ApiError> {
    match v1::Policy::try_from(wire) {
        Ok(v1::Policy::Unspecified) => Ok(None),
        Ok(v1::Policy::Strict) => Ok(Some(Policy::Strict)),
        Ok(v1::Policy::Degraded) => Ok(Some(Policy::Degraded)),
        Err(_) => {
            let hint = format!("unknown policy {wire}: give strict or degraded");
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

/// Which idle neighbours are to be merged; none where nothing is said.
fn auto_merge(wire: i32) -> Result<Option<AutoMerge>, ApiError> {
    match v1::AutoMerge::try_from(wire) {
        Ok(v1::AutoMerge::Unspecified) => Ok(None),
        Ok(v1::AutoMerge::Off) => Ok(Some(AutoMerge::Off)),
        Ok(v1::AutoMerge::Own) => Ok(Some(AutoMerge::Own)),
        Ok(v1::AutoMerge::All) => Ok(Some(AutoMerge::All)),
        Err(_) => {
            let hint = format!("unknown auto-merge {wire}: give own, all or off");
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

fn auto_merge_to_wire(auto_merge: AutoMerge) -> v1::AutoMerge {
    match auto_merge {
        AutoMerge::Off => v1::AutoMerge::Off,
        AutoMerge::Own => v1::AutoMerge::Own,
        AutoMerge::All => v1::AutoMerge::All,
    }
}

/// What is to be changed of a table.
///
/// # Errors
/// `BAD_REQUEST` for a split size of zero and for an unknown word.
pub fn table_change(wire: &v1::ChangeTableRequest) -> Result<TableChange, ApiError> {
    if wire.split_bytes == Some(0) {
        let hint = "a split size of 0 bytes would split for ever: give a size such as 512MiB";
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    let (split_bytes, split_load) = (wire.split_bytes, wire.split_load);
    Ok(TableChange {
        split_bytes,
        split_load,
        auto_merge: auto_merge(wire.auto_merge)?,
        replicas: None,
        publish_changes: wire.publish_changes,
        memory_bytes_max: wire.memory_bytes_max,
        eviction: (wire.eviction != v1::Eviction::Unspecified as i32)
            .then(|| eviction(wire.eviction))
            .transpose()?,
    })
}

fn copies(wire: u32) -> Result<Option<u8>, ApiError> {
    match u8::try_from(wire) {
        Ok(0) => Ok(None),
        Ok(copies) => Ok(Some(copies)),
        Err(_) => Err(BadTable::TooManyReplicas(wire).into()),
    }
}

fn non_zero(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

/// A table for the wire.
#[must_use]
pub fn table_to_wire(table: &Table) -> v1::Table {
    let kind = match table.spec.kind {
        TableKind::Durable => v1::TableKind::Durable,
        TableKind::Memory => v1::TableKind::Memory,
    };
    let policy = match table.spec.policy {
        Policy::Strict => v1::Policy::Strict,
        Policy::Degraded => v1::Policy::Degraded,
    };
    let eviction = match table.spec.eviction {
        Eviction::None => v1::Eviction::None,
        Eviction::LeastRecent => v1::Eviction::Lru,
        Eviction::LeastFrequent => v1::Eviction::Lfu,
    };
    let spec = v1::TableSpec {
        kind: kind as i32,
        replicas: u32::from(table.spec.replicas),
        min_in_sync: u32::from(table.spec.min_in_sync),
        policy: policy as i32,
        ack: Some(convert::ack_to_wire(table.spec.ack)),
        retention_ms: table.spec.retention_ms,
        split_bytes: table.spec.split_bytes,
        split_load: Some(table.spec.split_load),
        auto_merge: auto_merge_to_wire(table.spec.auto_merge) as i32,
        publish_changes: table.spec.publish_changes,
        memory_bytes_max: table.spec.memory_bytes_max,
        eviction: eviction as i32,
    };
    v1::Table {
        id: table.id.0,
        name: table.name.clone(),
        spec: Some(spec),
        restoring_job_id: table.restoring.map_or(0, |job| job.0),
    }
}

/// A tablet for the wire. A leader whose run is over is none.
#[must_use]
pub fn tablet_to_wire(state: &State, tablet: &Tablet) -> v1::Tablet {
    let leader = tablet.leader.filter(|leader| state.is_current(leader));
    let awaited = state.awaited(tablet);
    v1::Tablet {
        id: tablet.id.0,
        table_id: tablet.table.0,
        start: tablet.range.start().clone(),
        end: tablet.range.end().cloned().unwrap_or_default(),
        epoch: tablet.epoch.0,
        leader_server_id: leader.map_or(0, |leader| leader.server.0),
        replicas: tablet.replicas.iter().map(|replica| replica_to_wire(tablet, replica)).collect(),
        config_version: tablet.config_version.0,
        lineage: tablet.lineage.0,
        leader_incarnation: leader.map_or(0, |leader| leader.incarnation.0),
        degraded: tablet.degraded,
        awaited_server_id: awaited.map_or(0, |former| former.leader.server.0),
        awaited_epoch: awaited.map_or(0, |former| former.epoch.0),
        emptied: tablet.emptied.map(|emptied| v1::Emptied {
            time_ms: emptied.time_ms,
            lineage_before: emptied.before.0,
            times: emptied.times,
        }),
    }
}

fn replica_to_wire(tablet: &Tablet, replica: &Replica) -> v1::Replica {
    v1::Replica {
        replica_id: replica.id.0,
        server_id: replica.server.0,
        in_sync: tablet.in_sync.contains(&replica.id),
        lost: replica.lost,
        leaving: tablet.leaving() == Some(replica.id),
    }
}

/// A server for the wire; who knows how long it has been silent fills in its state.
#[must_use]
pub fn server_to_wire(server: &Server, state: v1::ServerState) -> v1::Server {
    v1::Server {
        id: server.id.0,
        address: server.address.clone(),
        zone: server.zone.clone(),
        state: state as i32,
        ordinal: server.ordinal.0,
        incarnation: server.incarnation.0,
        duty: duty_to_wire(server.duty) as i32,
    }
}

fn duty_to_wire(duty: Duty) -> v1::ServerDuty {
    match duty {
        Duty::Serves => v1::ServerDuty::Serves,
        Duty::Drained => v1::ServerDuty::Drained,
        Duty::Leaves => v1::ServerDuty::Leaves,
    }
}

/// What a server is to be wanted for.
///
/// # Errors
/// `BAD_REQUEST` when the request does not say.
pub fn duty(wire: i32) -> Result<Duty, ApiError> {
    match v1::ServerDuty::try_from(wire) {
        Ok(v1::ServerDuty::Serves) => Ok(Duty::Serves),
        Ok(v1::ServerDuty::Drained) => Ok(Duty::Drained),
        Ok(v1::ServerDuty::Leaves) => Ok(Duty::Leaves),
        Ok(v1::ServerDuty::Unspecified) | Err(_) => {
            Err(ApiError::new(Reason::BadRequest, "say what the server is wanted for"))
        }
    }
}

/// A copy's answer to a fence.
#[must_use]
pub fn fence_answer(wire: &v1::FenceAnswer) -> FenceAnswer {
    FenceAnswer {
        tablet: TabletId(wire.tablet_id),
        replica: ReplicaId(wire.replica_id),
        epoch: Epoch(wire.epoch),
        end: Pos::new(Epoch(wire.end_epoch), Seq(wire.end_seq)),
        ts_max: Hlc(wire.ts_max),
        disk_generation: DiskGeneration(wire.disk_generation),
    }
}

/// The epochs that a server gave up, out of what it reports of its tablets.
#[must_use]
pub fn gave_up(reports: &[v1::TabletReport]) -> Vec<GaveUp> {
    let reports = reports.iter().filter(|report| report.gave_up_epoch > 0);
    let gave_up = reports.map(|report| GaveUp {
        tablet: TabletId(report.tablet_id),
        epoch: Epoch(report.gave_up_epoch),
        successor: (report.successor_replica_id > 0).then_some(ReplicaId(report.successor_replica_id)),
    });
    gave_up.collect()
}

/// The copies that a server cannot bring up from its log, with the epoch that it leads.
#[must_use]
pub fn behind(reports: &[v1::TabletReport]) -> Vec<(TabletId, Epoch, ReplicaId)> {
    let of = |report: &v1::TabletReport| {
        let (tablet, epoch) = (TabletId(report.tablet_id), Epoch(report.serving_epoch));
        report.behind_replica_ids.iter().map(move |id| (tablet, epoch, ReplicaId(*id))).collect::<Vec<_>>()
    };
    reports.iter().flat_map(of).collect()
}

/// The copies of a server that hold another history than their leaders.
#[must_use]
pub fn diverged(reports: &[v1::TabletReport]) -> Vec<(TabletId, ReplicaId)> {
    let diverged = reports.iter().filter(|report| report.diverged_replica_id > 0);
    diverged.map(|report| (TabletId(report.tablet_id), ReplicaId(report.diverged_replica_id))).collect()
}

/// One run of a server.
#[must_use]
pub fn server_run(wire: v1::ServerRun) -> (ServerId, Incarnation) {
    (ServerId(wire.server_id), Incarnation(wire.incarnation))
}

/// A change of an in-sync set that a leader asks for, of a table that keeps its rows as `kind`
/// says.
#[must_use]
pub fn in_sync_change(wire: &v1::InSyncProposal, kind: TableKind) -> InSyncChange {
    let generation = match kind {
        TableKind::Durable => Generation::Disk(DiskGeneration(wire.disk_generation)),
        TableKind::Memory => Generation::Process(Incarnation(wire.incarnation)),
    };
    InSyncChange {
        tablet: TabletId(wire.tablet_id),
        epoch: Epoch(wire.epoch),
        config_version: ConfigVersion(wire.config_version),
        replicas: wire.replica_ids.iter().copied().map(ReplicaId).collect(),
        add: wire.add,
        incarnation: Incarnation(wire.incarnation),
        generation,
    }
}

/// What became of a change.
#[must_use]
pub fn in_sync_answer(change: &InSyncChange, accepted: bool) -> v1::InSyncAnswer {
    v1::InSyncAnswer {
        tablet_id: change.tablet.0,
        epoch: change.epoch.0,
        config_version: change.config_version.0,
        accepted,
    }
}

/// A fence for the wire.
#[must_use]
pub fn fence_to_wire(fence: &Fence) -> v1::Fence {
    v1::Fence {
        tablet_id: fence.tablet.0,
        replica_id: fence.replica.0,
        epoch: fence.epoch.0,
        gone_epoch: fence.gone.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_the_defaults() {
        for wire in [None, Some(v1::TableSpec::default())] {
            assert_eq!(table_spec(wire.as_ref(), 1), Ok(TableSpec::default()));
            let three = table_spec(wire.as_ref(), 5).unwrap();
            assert_eq!((three.replicas, three.min_in_sync), (3, 2));
        }
    }

    #[test]
    fn too_many_copies_are_refused_with_the_limit() {
        for replicas in [8, 300] {
            let wire = v1::TableSpec { replicas, ..Default::default() };
            let error = table_spec(Some(&wire), 9).unwrap_err();
            assert_eq!(error.reason, Reason::BadRequest);
            assert!(error.message.contains("limit of 7"), "{}", error.message);
        }
    }
}
