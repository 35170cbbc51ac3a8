//! Moves of copies, and what servers are wanted for, as operators ask for them.

use crate::admin::{Admin, AdminClient, Kind, incomplete};
use crate::error::Error;
use ebla_proto::error::Reason;
use ebla_proto::v1;

impl Admin {
    /// Begins to take a copy of a tablet from one server to another; gives the job.
    ///
    /// # Errors
    /// `NOT_MOVABLE`, `TABLET_NOT_FOUND`, `TABLET_RETIRED`, `SERVER_NOT_FOUND`, `JOB_CONFLICT`,
    /// `UNAVAILABLE` and what a master reports.
    pub async fn move_tablet(
        &self,
        tablet_id: u64,
        from_server_id: u64,
        to_server_id: u64,
    ) -> Result<u64, Error> {
        let mut lost = false;
        let request = v1::MoveTabletRequest { tablet_id, from_server_id, to_server_id };
        let call = |mut admin: AdminClient| async move { admin.move_tablet(request).await };
        match self.call(Kind::Change(self.client.timeout), &mut lost, call).await {
            Ok(response) => Ok(response.job_id),
            // The first try may have been the one that did it.
            Err(error) if lost && may_be_done(&error) => {
                let is_it = |job: &v1::Job| {
                    job.kind() == v1::JobKind::Move
                        && (job.tablet_id, job.from_server_id, job.to_server_id)
                            == (tablet_id, from_server_id, to_server_id)
                };
                self.job_begun(is_it).await?.map(|job| job.id).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Says what a server is wanted for.
    ///
    /// # Errors
    /// `SERVER_NOT_FOUND`, `TOO_FEW_SERVERS`, `UNAVAILABLE` and what a master reports.
    pub async fn set_server_duty(
        &self,
        server_id: u64,
        duty: v1::ServerDuty,
    ) -> Result<v1::ServerSummary, Error> {
        let request = v1::SetServerDutyRequest { server_id, duty: duty as i32 };
        let call = |mut admin: AdminClient| async move { admin.set_server_duty(request).await };
        let response = self.call(Kind::Change(self.client.timeout), &mut false, call).await?;
        response.server.ok_or_else(|| incomplete("server"))
    }

    /// Forgets a server that is gone and holds nothing.
    ///
    /// # Errors
    /// `SERVER_NOT_FOUND`, `NOT_MOVABLE`, `UNAVAILABLE` and what a master reports.
    pub async fn forget_server(&self, server_id: u64) -> Result<(), Error> {
        let mut lost = false;
        let request = v1::ForgetServerRequest { server_id };
        let call = |mut admin: AdminClient| async move { admin.forget_server(request).await };
        match self.call(Kind::Change(self.client.timeout), &mut lost, call).await {
            Err(error) if lost && error.reason() == Reason::ServerNotFound => Ok(()),
            forgotten => forgotten.map(drop),
        }
    }
}

/// Whether a master refuses what an earlier try may have begun or done.
fn may_be_done(error: &Error) -> bool {
    matches!(error.reason(), Reason::JobConflict | Reason::NotMovable)
}
