//! Jobs, for people: what is under way, what became of it, and the way to end it.

use super::Shared;
use super::control::unexpected;
use crate::clock;
use ebla_kernel::ids::JobId;
use ebla_kernel::meta::{Command, Job, JobEnd, JobKind, Rejection, Reply};
use ebla_proto::error::ApiError;
use ebla_proto::split::job_to_wire;
use ebla_proto::v1::{
    self, CancelJobRequest, CancelJobResponse, DescribeJobRequest, DescribeJobResponse, ListJobsRequest,
    ListJobsResponse,
};

/// Every job that is remembered, or those under way.
pub(super) async fn list(shared: &Shared, request: ListJobsRequest) -> Result<ListJobsResponse, ApiError> {
    shared.confirm_leading().await?;
    let state = shared.raft.view().state();
    let wanted = state.jobs().filter(|job| job.is_running() || !request.running);
    Ok(ListJobsResponse { jobs: wanted.map(|job| shown(shared, job)).collect() })
}

/// One job.
pub(super) async fn describe(
    shared: &Shared,
    request: DescribeJobRequest,
) -> Result<DescribeJobResponse, ApiError> {
    shared.confirm_leading().await?;
    let state = shared.raft.view().state();
    let job = state.job(JobId(request.id)).ok_or(Rejection::NoJob(JobId(request.id)))?;
    Ok(DescribeJobResponse { job: Some(shown(shared, job)) })
}

/// The record of a job, and how far it is by the word of the server that works at it.
fn shown(shared: &Shared, job: &Job) -> v1::Job {
    let copied = match &job.kind {
        JobKind::Move(copy) if job.is_running() => shared.liveness.copied(copy.to_server, copy.to),
        JobKind::Backup(_) | JobKind::Restore(_) => shared.backups.progress(job.id),
        JobKind::Move(_) | JobKind::Split(_) | JobKind::Merge(_) | JobKind::Transfer(_) => None,
    };
    job_to_wire(job, copied, clock::wall_ms())
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
