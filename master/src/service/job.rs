//! Jobs, for people: what is under way, what became of it, and the way to end it.

use super::Shared;
use super::control::unexpected;
use crate::clock;
use ebla_kernel::ids::JobId;
use ebla_kernel::meta::{Command, Job, JobEnd, JobKind, Rejection, Reply, State, Tablet};
use ebla_proto::error::ApiError;
use ebla_proto::split::{Copied, job_to_wire};
use ebla_proto::v1::{
    self, CancelJobRequest, CancelJobResponse, DescribeJobRequest, DescribeJobResponse, ListJobsRequest,
    ListJobsResponse,
};

/// Every job that is remembered, or those under way.
pub(super) async fn list(shared: &Shared, request: ListJobsRequest) -> Result<ListJobsResponse, ApiError> {
    shared.confirm_leading().await?;
    let state = shared.raft.view().state();
    let wanted = state.jobs().filter(|job| job.is_running() || !request.running);
    Ok(ListJobsResponse { jobs: wanted.map(|job| shown(shared, &state, job)).collect() })
}

/// One job.
pub(super) async fn describe(
    shared: &Shared,
    request: DescribeJobRequest,
) -> Result<DescribeJobResponse, ApiError> {
    shared.confirm_leading().await?;
    let state = shared.raft.view().state();
    let job = state.job(JobId(request.id)).ok_or(Rejection::NoJob(JobId(request.id)))?;
    Ok(DescribeJobResponse { job: Some(shown(shared, &state, job)) })
}

/// The record of a job, and how far it is by the word of the server that works at it.
fn shown(shared: &Shared, state: &State, job: &Job) -> v1::Job {
    let copied = match &job.kind {
        JobKind::Move(_) | JobKind::Merge(_) => {
            let mut tablets = job.tablets().into_iter().filter(|_| job.is_running());
            tablets.find_map(|tablet| arriving(shared, state.tablet(tablet)?))
        }
        JobKind::Backup(_) | JobKind::Restore(_) => shared.backups.progress(job.id),
        JobKind::Split(_) | JobKind::Transfer(_) => None,
    };
    job_to_wire(job, copied, clock::wall_ms())
}

/// How far the copy of a tablet is that is on its way in.
fn arriving(shared: &Shared, tablet: &Tablet) -> Option<Copied> {
    let copy = tablet.replica(tablet.moving?.to)?;
    shared.liveness.copied(copy.server, copy.id)
}

/// Ends a job that has not reached its commit point.
pub(super) async fn cancel(
    shared: &Shared,
    request: CancelJobRequest,
) -> Result<CancelJobResponse, ApiError> {
    shared.confirm_leading().await?;
    let (job, time_ms) = (JobId(request.id), clock::wall_ms());
    let command = Command::EndJob { job, attempt: None, end: JobEnd::Cancelled, time_ms };
    match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
        Reply::Job(job) => Ok(CancelJobResponse { job: Some(job_to_wire(&job, None, time_ms)) }),
        Reply::Rejected(rejection) => Err(rejection.into()),
        other => Err(unexpected(&other)),
    }
}
