//! Splits that an operator wants: the intent into the log, the answer when the children serve.

use super::Shared;
use super::admin::no_tablet;
use super::control::unexpected;
use crate::clock;
use crate::limits::{COMMITTED_JOB_TIMEOUT, SPLIT_POLL, SPLIT_TIMEOUT};
use ebla_kernel::ids::{JobId, TabletId};
use ebla_kernel::meta::{Command, Job, JobState, Origin, Rejection, Reply, Wish};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{SplitTabletRequest, SplitTabletResponse};
use std::time::{Duration, Instant};

/// Splits a tablet and waits until its children serve.
pub(super) async fn split_tablet(
    shared: &Shared,
    request: SplitTabletRequest,
) -> Result<SplitTabletResponse, ApiError> {
    shared.confirm_leading().await?;
    let tablet = TabletId(request.tablet_id);
    if shared.raft.view().state().tablet(tablet).is_none() {
        return Err(no_tablet(&shared.raft.view().state(), tablet));
    }
    let wish = Wish::Split { tablet, at: request.split_keys };
    let job = start(shared, wish).await?.id;
    let begun = Instant::now();
    loop {
        if let Some(response) = outcome(shared, job)? {
            return Ok(response);
        }
        if !shared.role().leading {
            let hint = format!("the master leads no longer: follow `ebla job show {}`", job.0);
            return Err(ApiError::new(Reason::Unavailable, hint).with("job", job.0));
        }
        if begun.elapsed() > SPLIT_TIMEOUT {
            let hint =
                format!("the split was not done within {SPLIT_TIMEOUT:?}: follow `ebla job show {}`", job.0);
            return Err(ApiError::new(Reason::TimedOut, hint).with("job", job.0));
        }
        tokio::time::sleep(SPLIT_POLL).await;
    }
}

/// Starts a job for an operator. One that the cluster began by itself is cancelled for it, or
/// waited for when it is past its commit point.
pub(super) async fn start(shared: &Shared, wish: Wish) -> Result<Job, ApiError> {
    let begun = Instant::now();
    loop {
        let command =
            Command::StartJob { wish: wish.clone(), origin: Origin::Operator, time_ms: clock::wall_ms() };
        match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
            Reply::Job(job) => return Ok(*job),
            Reply::Rejected(Rejection::JobCommitted(job)) if begun.elapsed() < COMMITTED_JOB_TIMEOUT => {
                wait_until_ended(shared, job.id, COMMITTED_JOB_TIMEOUT.saturating_sub(begun.elapsed())).await;
            }
            Reply::Rejected(rejection) => return Err(rejection.into()),
            other => return Err(unexpected(&other)),
        }
    }
}

/// Waits until a job is under way no longer, or for so long.
async fn wait_until_ended(shared: &Shared, id: JobId, longest: Duration) {
    let begun = Instant::now();
    let runs = || shared.raft.view().state().job(id).is_some_and(Job::is_running);
    while runs() && begun.elapsed() < longest && shared.role().leading {
        tokio::time::sleep(SPLIT_POLL).await;
    }
}

/// What became of the job; none while it runs, or while its children come up.
fn outcome(shared: &Shared, id: JobId) -> Result<Option<SplitTabletResponse>, ApiError> {
    let state = shared.raft.view().state();
    let job = state.job(id).ok_or(Rejection::NoJob(id))?;
    match job.state {
        JobState::Running => Ok(None),
        JobState::Failed | JobState::Cancelled => Err(ended(job)),
        JobState::Done => {
            let children: Vec<TabletId> = job.children();
            // One that was split or dropped meanwhile has served.
            let present: Vec<_> = children.iter().filter_map(|child| state.tablet(*child)).collect();
            let serving = shared.liveness.count_reported(present.iter().copied());
            let child_tablet_ids = children.iter().map(|child| child.0).collect();
            let response = SplitTabletResponse { job_id: id.0, child_tablet_ids };
            Ok((serving == present.len()).then_some(response))
        }
    }
}

fn ended(job: &Job) -> ApiError {
    let hint = match (job.state, &job.error) {
        (_, Some(error)) => format!("job {} failed: {error}", job.id.0),
        (_, None) => format!("job {} was ended by somebody: nothing was changed", job.id.0),
    };
    ApiError::new(Reason::JobFailed, hint).with("job", job.id.0)
}
