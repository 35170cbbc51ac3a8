//! Backups that the cluster makes by itself, and those that it deletes.

use super::create::clear;
use super::servers::cluster_id;
use super::{create_backup, open};
use crate::clock;
use crate::service::Shared;
use ebla_kernel::backup::retention::{Kept, deletable};
use ebla_kernel::backup::schedule::{Due, due};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::meta::{Command, Schedule, SchedulePast};
use ebla_proto::error::ApiError;
use ebla_proto::v1::{self, CreateBackupRequest};
use tracing::{info, warn};

/// Begins what is due, one after the other, and deletes what is kept no longer.
pub(super) async fn look(shared: &Shared) {
    let schedules: Vec<Schedule> = {
        let state = shared.raft.view().state();
        if state.backup_running().is_some() {
            return;
        }
        state.schedules().cloned().collect()
    };
    for schedule in schedules {
        let parent = match due(clock::wall_ms(), schedule.rhythm(), schedule.so_far()) {
            Due::Later(_) => continue,
            Due::Full => String::new(),
            Due::Incremental(_) => schedule.past.last.as_ref().map(|(id, _)| id.clone()).unwrap_or_default(),
        };
        if schedule.past.last.is_some()
            && let Err(error) = delete_old(shared, &schedule).await
        {
            warn!(url = schedule.url, error, "backups that are kept no longer were not deleted");
        }
        match begin(shared, &schedule, parent).await {
            Ok(()) => return,
            Err(error) => not_begun(shared, &schedule, &error).await,
        }
    }
}

async fn begin(shared: &Shared, schedule: &Schedule, parent: String) -> Result<(), ApiError> {
    let request = |parent_id: String| CreateBackupRequest {
        url: schedule.url.clone(),
        tables: schedule.tables.clone(),
        at_ts: 0,
        parent_id,
        rate_bytes: schedule.rate_bytes,
        encrypted: !schedule.key_id.is_empty(),
        by: schedule.by.clone(),
    };
    if !parent.is_empty() {
        match create_backup(shared, request(parent.clone()), true).await {
            Ok(_) => return Ok(()),
            // Somebody may have deleted it: then there is nothing to add to.
            Err(error) => info!(
                parent,
                error = error.message,
                "nothing can be added to the last backup: a full one is made"
            ),
        }
    }
    create_backup(shared, request(String::new()), true).await.map(drop)
}

/// The record says that it failed: people are told, and it is tried again later.
async fn not_begun(shared: &Shared, schedule: &Schedule, error: &ApiError) {
    warn!(url = schedule.url, error = error.message, "a scheduled backup was not begun");
    let (url, error, time_ms) = (schedule.url.clone(), error.message.clone(), clock::wall_ms());
    // Whoever leads next looks again.
    let _ = shared.raft.propose(Command::FailSchedule { url, error, time_ms }).await;
}

/// Deletes what the schedule keeps no longer. Other clusters may have theirs at the same target, and
/// people make some by hand: those stay.
async fn delete_old(shared: &Shared, schedule: &Schedule) -> Result<(), String> {
    let own = cluster_id(shared);
    let repository = open(&schedule.url).await.map_err(|error| error.to_string())?;
    let manifests = repository.list().await.map_err(|error| error.to_string())?;
    let kept: Vec<Kept> = manifests
        .into_iter()
        .map(|it| Kept {
            id: it.id,
            ts: Hlc(it.ts),
            parent: it.parent.map(|parent| parent.id),
            scheduled: it.created.scheduled && it.cluster_id == own,
        })
        .collect();
    let keep = usize::try_from(schedule.keep).unwrap_or(usize::MAX);
    for id in deletable(&kept, keep) {
        info!(backup = id, url = schedule.url, "deleted: it is kept no longer");
        clear(&repository, id).await;
    }
    Ok(())
}

/// A schedule for the wire, as it stands at wall time `now_ms`.
pub(crate) fn schedule_to_wire(schedule: &Schedule, now_ms: u64) -> v1::BackupSchedule {
    let next_ms = match due(now_ms, schedule.rhythm(), schedule.so_far()) {
        Due::Later(at_ms) => at_ms,
        Due::Full | Due::Incremental(_) => now_ms,
    };
    let (last_backup_id, last_ts) = schedule.past.last.clone().unwrap_or_default();
    v1::BackupSchedule {
        url: schedule.url.clone(),
        every_ms: schedule.every_ms,
        full_every_ms: schedule.full_every_ms,
        keep: schedule.keep,
        tables: schedule.tables.clone(),
        rate_bytes: schedule.rate_bytes,
        encrypted: !schedule.key_id.is_empty(),
        by: schedule.by.clone(),
        last_backup_id,
        last_ts: last_ts.0,
        started_ms: schedule.past.started_ms.unwrap_or(0),
        next_ms,
        failures: schedule.past.failures,
        error: schedule.past.error.clone().unwrap_or_default(),
    }
}

/// A schedule as somebody sets it; `key_id` names the key if files are to be encrypted.
pub(crate) fn wire_schedule(wire: v1::BackupSchedule, key_id: String) -> Schedule {
    Schedule {
        url: wire.url,
        every_ms: wire.every_ms,
        full_every_ms: wire.full_every_ms,
        keep: wire.keep,
        tables: wire.tables,
        rate_bytes: wire.rate_bytes,
        key_id,
        by: wire.by,
        past: SchedulePast::default(),
    }
}
