//! Backups, restores and schedules, as operators ask for them.

use crate::admin::{Admin, AdminClient, Kind, incomplete};
use crate::error::Error;
use crate::limits::BACKUP_TIMEOUT;
use ebla_proto::error::Reason;
use ebla_proto::v1;

impl Admin {
    /// Begins a backup; gives its job.
    ///
    /// # Errors
    /// `JOB_CONFLICT` with the id of the backup under way, `TABLE_NOT_FOUND`, `BACKUP_NOT_FOUND` for
    /// a parent that is not there, `BACKUP_TARGET`, `BAD_REQUEST`, `UNAVAILABLE` and what a master
    /// reports.
    pub async fn create_backup(&self, request: v1::CreateBackupRequest) -> Result<v1::Job, Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| {
            let request = request.clone();
            async move { admin.create_backup(request).await }
        };
        match self.call(Kind::Order(BACKUP_TIMEOUT), &mut lost, call).await {
            Ok(response) => response.job.ok_or_else(|| incomplete("job")),
            // The first try may have been the one that did it.
            Err(error) if lost && error.reason() == Reason::JobConflict => {
                let is_it = |job: &v1::Job| job.kind() == v1::JobKind::Backup && is_of(job, &request.url);
                self.job_begun(is_it).await?.ok_or(error)
            }
            Err(error) => Err(not_begun(error, lost)),
        }
    }

    /// Begins to bring tables back from a backup; gives the job.
    ///
    /// # Errors
    /// `TABLE_EXISTS`, `TABLE_NOT_FOUND` for one that the backup does not have, `BACKUP_NOT_FOUND`,
    /// `BACKUP_TARGET`, `BAD_REQUEST`, `UNAVAILABLE` and what a master reports.
    pub async fn restore_backup(&self, request: v1::RestoreBackupRequest) -> Result<v1::Job, Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| {
            let request = request.clone();
            async move { admin.restore_backup(request).await }
        };
        match self.call(Kind::Order(BACKUP_TIMEOUT), &mut lost, call).await {
            Ok(response) => response.job.ok_or_else(|| incomplete("job")),
            // The first try may have been the one that did it.
            Err(error) if lost && matches!(error.reason(), Reason::JobConflict | Reason::TableExists) => {
                let is_it = |job: &v1::Job| job.kind() == v1::JobKind::Restore && is_of(job, &request.url);
                self.job_begun(is_it).await?.ok_or(error)
            }
            Err(error) => Err(not_begun(error, lost)),
        }
    }

    /// Backups and restores that ended, oldest first; the last some.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn list_backup_attempts(&self) -> Result<Vec<v1::Job>, Error> {
        let call = |mut admin: AdminClient| async move {
            admin.list_backup_attempts(v1::ListBackupAttemptsRequest {}).await
        };
        Ok(self.ask(call).await?.attempts)
    }

    /// Sets how often the cluster makes a backup by itself.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `BACKUP_TARGET` for a target or a key that cannot be used, `UNAVAILABLE` and
    /// what a master reports.
    pub async fn set_backup_schedule(
        &self,
        schedule: v1::BackupSchedule,
    ) -> Result<v1::BackupSchedule, Error> {
        let request = v1::SetBackupScheduleRequest { schedule: Some(schedule) };
        let call = |mut admin: AdminClient| {
            let request = request.clone();
            async move { admin.set_backup_schedule(request).await }
        };
        let response = self.call(Kind::Order(BACKUP_TIMEOUT), &mut false, call).await?;
        response.schedule.ok_or_else(|| incomplete("schedule"))
    }

    /// Removes the schedule of a target; its backups stay.
    ///
    /// # Errors
    /// `BACKUP_NOT_FOUND` when there is none, `UNAVAILABLE` and what a master reports.
    pub async fn remove_backup_schedule(&self, url: &str) -> Result<(), Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| {
            let request = v1::RemoveBackupScheduleRequest { url: url.to_owned() };
            async move { admin.remove_backup_schedule(request).await }
        };
        match self.call(Kind::Change(self.client.timeout), &mut lost, call).await {
            Ok(v1::RemoveBackupScheduleResponse {}) => Ok(()),
            // The first try may have been the one that did it.
            Err(error) if lost && error.reason() == Reason::BackupNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Every schedule.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn list_backup_schedules(&self) -> Result<Vec<v1::BackupSchedule>, Error> {
        let call = |mut admin: AdminClient| async move {
            admin.list_backup_schedules(v1::ListBackupSchedulesRequest {}).await
        };
        Ok(self.ask(call).await?.schedules)
    }
}

fn is_of(job: &v1::Job, url: &str) -> bool {
    job.backup.as_ref().is_some_and(|backup| backup.url == url)
}

/// What the target holds may have been found wrong before anything was begun, unless the first try was
/// `lost`.
fn not_begun(error: Error, lost: bool) -> Error {
    if !lost && error.reason() == Reason::Corrupt { error.definite() } else { error }
}
