//! Backups, restores and schedules, for people.

use super::Shared;
use super::control::unexpected;
use super::route::no_table;
use crate::backup::{
    create_backup, is_of_backups, key_of, one_url, restore_backup, schedule_to_wire, wire_schedule,
};
use crate::clock;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::meta::{
    BackupWish, Command, Job, RefusedWish, Rejection, Reply, RestoreWish, State, is_system_name,
};
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
    let (wish, started_ms) = (refused_backup(&request), clock::wall_ms());
    match create_backup(shared, request, false).await {
        Ok(job) => Ok(CreateBackupResponse { job: Some(wire(&job)) }),
        Err(error) => Err(noted(shared, wish, started_ms, error).await),
    }
}

/// Begins to bring tables back.
pub(super) async fn restore(
    shared: &Shared,
    request: RestoreBackupRequest,
) -> Result<RestoreBackupResponse, ApiError> {
    let (wish, started_ms) = (refused_restore(&request), clock::wall_ms());
    match restore_backup(shared, request).await {
        Ok(job) => Ok(RestoreBackupResponse { job: Some(wire(&job)) }),
        Err(error) => Err(noted(shared, wish, started_ms, error).await),
    }
}

/// What a request asked for, without what only a look at the target tells.
fn refused_backup(request: &CreateBackupRequest) -> RefusedWish {
    let parent = (!request.parent_id.is_empty()).then(|| (request.parent_id.clone(), Hlc::MIN));
    RefusedWish::Backup(BackupWish {
        backup: String::new(),
        url: request.url.clone(),
        tables: Vec::new(),
        parent,
        at: (request.at_ts != 0).then_some(Hlc(request.at_ts)),
        safe: Hlc::MIN,
        rate_bytes: request.rate_bytes,
        key_id: String::new(),
        by: request.by.clone(),
        scheduled: false,
    })
}

fn refused_restore(request: &RestoreBackupRequest) -> RefusedWish {
    RefusedWish::Restore(RestoreWish {
        backup: request.backup_id.clone(),
        url: request.url.clone(),
        ts: Hlc::MIN,
        tables: Vec::new(),
        replicas: None,
        rate_bytes: request.rate_bytes,
        by: request.by.clone(),
    })
}

/// Keeps a refusal for audits, unless the request made no sense or another master is to be asked.
/// The one who asked hears of it all the same when it cannot be kept.
async fn noted(shared: &Shared, wish: RefusedWish, started_ms: u64, error: ApiError) -> ApiError {
    let is_kept = !matches!(
        error.reason,
        Reason::BadRequest | Reason::NotLeader | Reason::Unavailable | Reason::TimedOut | Reason::Internal
    );
    if is_kept {
        let (text, ended_ms) = (error.message.clone(), clock::wall_ms());
        let command = Command::RecordRefusal { wish, error: text, started_ms, ended_ms };
        let _ = shared.raft.propose(command).await;
    }
    error
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
