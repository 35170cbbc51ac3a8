//! Metadata records for the wire, and table specifications from it.

use crate::convert;
use crate::error::{ApiError, Reason};
use crate::v1;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Pos, ReplicaId, Seq, TabletId};
use ebla_kernel::meta::{
    BadTable, FenceAnswer, Policy, Rejection, Server, State, Table, TableKind, TableSpec, Tablet,
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
            | Rejection::StaleIncarnation(_) => Reason::Internal,
        };
        Self::new(reason, rejection.to_string())
    }
}

/// A table's promises; what the request leaves at zero takes the defaults.
///
/// # Errors
/// `BAD_REQUEST` for an unknown kind or policy, or for a number out of range.
pub fn table_spec(wire: Option<&v1::TableSpec>) -> Result<TableSpec, ApiError> {
    let default = TableSpec::default();
    let Some(wire) = wire else { return Ok(default) };
    let spec = TableSpec {
        kind: table_kind(wire.kind)?,
        replicas: copies(wire.replicas, "replicas")?.unwrap_or(default.replicas),
        min_in_sync: copies(wire.min_in_sync, "min_in_sync")?.unwrap_or(default.min_in_sync),
        policy: policy(wire.policy)?,
        ack: convert::ack(wire.ack.as_ref())?.unwrap_or(default.ack),
        retention_ms: non_zero(wire.retention_ms).unwrap_or(default.retention_ms),
        split_bytes: non_zero(wire.split_bytes).unwrap_or(default.split_bytes),
    };
    spec.check_supported()?;
    Ok(spec)
}

fn table_kind(wire: i32) -> Result<TableKind, ApiError> {
    match v1::TableKind::try_from(wire) {
        Ok(v1::TableKind::Unspecified | v1::TableKind::Durable) => Ok(TableKind::Durable),
        Ok(v1::TableKind::Memory) => Ok(TableKind::Memory),
        Err(_) => Err(ApiError::new(Reason::BadRequest, format!("unknown table kind {wire}: give durable"))),
    }
}

fn policy(wire: i32) -> Result<Policy, ApiError> {
    match v1::Policy::try_from(wire) {
        Ok(v1::Policy::Unspecified | v1::Policy::Strict) => Ok(Policy::Strict),
        Ok(v1::Policy::Degraded) => Ok(Policy::Degraded),
        Err(_) => {
            let hint = format!("unknown policy {wire}: give strict or degraded");
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

fn copies(wire: u32, name: &str) -> Result<Option<u8>, ApiError> {
    match u8::try_from(wire) {
        Ok(0) => Ok(None),
        Ok(copies) => Ok(Some(copies)),
        Err(_) => {
            let hint =
                format!("{name} {wire} is out of range: this release keeps one copy of each tablet: give 1");
            Err(ApiError::new(Reason::BadRequest, hint))
        }
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
    let spec = v1::TableSpec {
        kind: kind as i32,
        replicas: u32::from(table.spec.replicas),
        min_in_sync: u32::from(table.spec.min_in_sync),
        policy: policy as i32,
        ack: Some(convert::ack_to_wire(table.spec.ack)),
        retention_ms: table.spec.retention_ms,
        split_bytes: table.spec.split_bytes,
    };
    v1::Table { id: table.id.0, name: table.name.clone(), spec: Some(spec) }
}

/// A tablet for the wire. A leader whose run is over is none.
#[must_use]
pub fn tablet_to_wire(state: &State, tablet: &Tablet) -> v1::Tablet {
    let leader = tablet.leader.filter(|leader| state.is_current(leader));
    let replicas = tablet.replicas.iter().map(|replica| v1::Replica {
        replica_id: replica.id.0,
        server_id: replica.server.0,
        in_sync: tablet.in_sync.contains(&replica.id),
        lost: replica.lost,
    });
    v1::Tablet {
        id: tablet.id.0,
        table_id: tablet.table.0,
        start: tablet.range.start().clone(),
        end: tablet.range.end().cloned().unwrap_or_default(),
        epoch: tablet.epoch.0,
        leader_server_id: leader.map_or(0, |leader| leader.server.0),
        replicas: replicas.collect(),
        config_version: tablet.config_version.0,
        lineage: tablet.lineage.0,
        leader_incarnation: leader.map_or(0, |leader| leader.incarnation.0),
        degraded: false,
        awaited_server_id: 0,
        awaited_epoch: 0,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_the_defaults() {
        assert_eq!(table_spec(Some(&v1::TableSpec::default())), Ok(TableSpec::default()));
    }

    #[test]
    fn more_than_one_copy_is_refused_with_the_limit() {
        for replicas in [3, 300] {
            let wire = v1::TableSpec { replicas, ..Default::default() };
            let error = table_spec(Some(&wire)).unwrap_err();
            assert_eq!(error.reason, Reason::BadRequest);
            assert!(error.message.contains("one copy of each tablet"), "{}", error.message);
        }
    }
}
