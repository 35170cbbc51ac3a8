//! Backups, restores and schedules, for people.

use super::Shared;
use super::control::unexpected;
use super::route::no_table;
use crate::backup::{
    create_backup, is_of_backups, key_of, one_url, restore_backup, schedule_to_wire, wire_schedule,
};
use crate::clock;
use ebla_kernel::meta::{Command, Job, Rejection, Reply, State, is_system_name};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::split::job_to_wire;
use ebla_proto::v1::{
    self, CreateBackupRequest, CreateBackupResponse, ListBackupAttemptsResponse, ListBackupSchedulesResponse,
    RemoveBackupScheduleRequest, RemoveBackupScheduleResponse, RestoreBackupRequest, RestoreBackupResponse,
    SetBackupScheduleRequest, SetBackupScheduleResponse,
};

fn wire(job: &Job) -> v1::Job {
    job_to_wire(job, None, clock::wall_ms())
}

/// Begins a backup.
pub(super) async fn create(
    shared: &Shared,
    request: CreateBackupRequest,
) -> Result<CreateBackupResponse, ApiError> {
    let job = create_backup(shared, request, false).await?;
    Ok(CreateBackupResponse { job: Some(wire(&job)) })
}

/// Begins to bring tables back.
pub(super) async fn restore(
    shared: &Shared,
    request: RestoreBackupRequest,
) -> Result<RestoreBackupResponse, ApiError> {
    let job = restore_backup(shared, request).await?;
    Ok(RestoreBackupResponse { job: Some(wire(&job)) })
}

/// What became of backups and restores, those under way included.
pub(super) async fn attempts(shared: &Shared) -> Result<ListBackupAttemptsResponse, ApiError> {
    shared.confirm_leading().await?;
    let state = shared.raft.view().state();
    let running = state.jobs_running().filter(|job| is_of_backups(job));
    let mut attempts: Vec<&Job> = state.backup_attempts().chain(running).collect();
    attempts.sort_unstable_by_key(|job| job.id);
    Ok(ListBackupAttemptsResponse { attempts: attempts.into_iter().map(wire).collect() })
}

/// Sets the schedule of a target, which must be one that can be used.
pub(super) async fn set_schedule(
    shared: &Shared,
    request: SetBackupScheduleRequest,
) -> Result<SetBackupScheduleResponse, ApiError> {
    shared.confirm_leading().await?;
    let wanted = request.schedule.ok_or_else(|| ApiError::new(Reason::BadRequest, "name a schedule"))?;
    if let Some(missing) = wanted.tables.iter().find(|name| is_missing(shared, name)) {
        return Err(no_table(missing));
    }
    let key_id = key_of(&wanted.url, wanted.encrypted).await?;
    let url = one_url(&wanted.url)?;
    let schedule = wire_schedule(v1::BackupSchedule { url, ..wanted }, key_id);
    let url = schedule.url.clone();
    propose(shared, Command::SetSchedule { schedule: Box::new(schedule) }).await?;
    let state = shared.raft.view().state();
    let set = state.schedules().find(|schedule| schedule.url == url);
    Ok(SetBackupScheduleResponse { schedule: set.map(|it| schedule_to_wire(it, clock::wall_ms())) })
}

/// Removes the schedule of a target.
pub(super) async fn remove_schedule(
    shared: &Shared,
    request: RemoveBackupScheduleRequest,
) -> Result<RemoveBackupScheduleResponse, ApiError> {
    shared.confirm_leading().await?;
    propose(shared, Command::RemoveSchedule { url: one_url(&request.url)? }).await?;
    Ok(RemoveBackupScheduleResponse {})
}

fn is_missing(shared: &Shared, table: &str) -> bool {
    is_system_name(table) || shared.raft.view().state().table_named(table).is_none()
}

async fn propose(shared: &Shared, command: Command) -> Result<(), ApiError> {
    match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
        Reply::Done => Ok(()),
        Reply::Rejected(rejection @ Rejection::NoSchedule(_)) => {
            Err(ApiError::new(Reason::BackupNotFound, rejection.to_string()))
        }
        Reply::Rejected(rejection) => Err(rejection.into()),
        other => Err(unexpected(&other)),
    }
}

/// Every schedule.
pub(super) async fn schedules(shared: &Shared) -> Result<ListBackupSchedulesResponse, ApiError> {
    shared.confirm_leading().await?;
    Ok(ListBackupSchedulesResponse { schedules: all(&shared.raft.view().state()) })
}

/// Every schedule, as this master knows it.
pub(super) fn all(state: &State) -> Vec<v1::BackupSchedule> {
    let now_ms = clock::wall_ms();
    state.schedules().map(|schedule| schedule_to_wire(schedule, now_ms)).collect()
}
