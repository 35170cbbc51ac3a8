//! Merges of tablets, as operators ask for them.

use crate::admin::{Admin, AdminClient, Kind};
use crate::error::Error;
use ebla_proto::error::Reason;
use ebla_proto::v1;

impl Admin {
    /// Begins to make one tablet of two neighbours, whichever has the lower keys; gives the job
    /// and the tablet that is to be. [`Self::wait_for_job`] tells when it is.
    ///
    /// # Errors
    /// `BAD_REQUEST` for tablets that are no neighbours, `TABLET_NOT_FOUND`, `TABLET_RETIRED`,
    /// `JOB_CONFLICT`, `NOT_MOVABLE`, `UNAVAILABLE` while a copy or a leader is missing, and what
    /// a master reports.
    pub async fn merge_tablets(
        &self,
        tablet_id: u64,
        other_tablet_id: u64,
    ) -> Result<v1::MergeTabletsResponse, Error> {
        let mut lost = false;
        let request = v1::MergeTabletsRequest { tablet_id, other_tablet_id };
        let call = |mut admin: AdminClient| async move { admin.merge_tablets(request).await };
        match self.call(Kind::Change(self.client.timeout), &mut lost, call).await {
            // The first try may have been the one that did it: the job tells.
            Err(error) if lost && may_be_done(&error) => {
                let mut wanted = [tablet_id, other_tablet_id];
                wanted.sort_unstable();
                let is_it = |job: &v1::Job| {
                    let mut tablets = [job.tablet_id, job.other_tablet_id];
                    tablets.sort_unstable();
                    job.kind() == v1::JobKind::Merge && tablets == wanted
                };
                let job = self.job_begun(is_it).await?.ok_or(error)?;
                let child_tablet_id = job.child_tablet_ids.first().copied().unwrap_or_default();
                Ok(v1::MergeTabletsResponse { job_id: job.id, child_tablet_id })
            }
            merged => merged,
        }
    }
}

/// Whether a master refuses what an earlier try may have begun or done.
fn may_be_done(error: &Error) -> bool {
    matches!(error.reason(), Reason::JobConflict | Reason::TabletRetired)
}
