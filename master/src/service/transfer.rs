//! Transfer of a tablet's leadership: the order goes to the leader, the answer when the other
//! copy serves.

use super::Shared;
use super::admin::no_tablet;
use super::summary;
use crate::clock;
use crate::controller::{Event, Events};
use crate::limits::{CREATE_POLL, TRANSFER_LEADER_TIMEOUT, TRANSFER_ORDER_AGAIN};
use ebla_kernel::ids::{ServerId, TabletId};
use ebla_kernel::meta::{Command, JobEnd, Origin, Reply, TransferJob, TransferRefusal};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{TabletSummary, TransferLeaderRequest, TransferLeaderResponse};
use std::time::Instant;
use tokio::sync::oneshot;

/// Hands leadership over and waits until it is taken up.
pub(super) async fn transfer_leader(
    shared: &Shared,
    events: &Events,
    request: TransferLeaderRequest,
) -> Result<TransferLeaderResponse, ApiError> {
    let (tablet, server) = (TabletId(request.tablet_id), ServerId(request.server_id));
    shared.confirm_leading().await?;
    let transfer = TransferJob { tablet, from_server: leader(shared, tablet)?, to_server: server };
    order(shared, events, tablet, server).await??;
    end_automatic_job(shared, tablet).await;
    let (start, started_ms) = (Instant::now(), clock::wall_ms());
    let mut ordered = Instant::now();
    loop {
        if let Some(tablet) = served(shared, tablet, server)? {
            let job_id = record(shared, transfer, started_ms).await;
            return Ok(TransferLeaderResponse { tablet: Some(tablet), job_id });
        }
        if !shared.role().leading {
            let hint = format!(
                "the master leads no longer: whether leadership moved is told by `ebla tablet describe {}`",
                tablet.0
            );
            return Err(ApiError::new(Reason::Unavailable, hint));
        }
        if start.elapsed() > TRANSFER_LEADER_TIMEOUT {
            return Err(not_yet(tablet, server));
        }
        if ordered.elapsed() > TRANSFER_ORDER_AGAIN {
            // The order, or its carrier, may have been lost. What refuses it now passes, or
            // the limit does.
            let _ = order(shared, events, tablet, server).await?;
            ordered = Instant::now();
        }
        tokio::time::sleep(CREATE_POLL).await;
    }
}

/// The server that leads now.
fn leader(shared: &Shared, id: TabletId) -> Result<Option<ServerId>, ApiError> {
    let state = shared.raft.view().state();
    let tablet = state.tablet(id).ok_or_else(|| no_tablet(&state, id))?;
    Ok(tablet.leader.map(|leader| leader.server))
}

/// What an operator wishes goes before what the cluster had begun by itself; what is past its
/// commit point goes on, and is not disturbed by another leader.
async fn end_automatic_job(shared: &Shared, tablet: TabletId) {
    let job = shared.raft.view().state().job_of(tablet).map(|job| (job.id, job.origin));
    if let Some((job, Origin::Automatic)) = job {
        let (end, time_ms) = (JobEnd::Cancelled, clock::wall_ms());
        // It may have ended meanwhile.
        let _ = shared.raft.propose(Command::EndJob { job, attempt: None, end, time_ms }).await;
    }
}

/// Writes down that leadership went; the number of that job. Leadership has gone all the same when
/// nobody can write it down.
async fn record(shared: &Shared, transfer: TransferJob, started_ms: u64) -> u64 {
    let command = Command::RecordTransfer { transfer, started_ms, ended_ms: clock::wall_ms() };
    match shared.raft.propose(command).await {
        Ok(Reply::Job(job)) => job.id.0,
        Ok(_) | Err(_) => 0,
    }
}

async fn order(
    shared: &Shared,
    events: &Events,
    tablet: TabletId,
    server: ServerId,
) -> Result<Result<(), TransferRefusal>, ApiError> {
    let (answer, answered) = oneshot::channel();
    let event = Event::Transfer { tablet, server, answer };
    events.send(event).await.map_err(|_| shared.not_leader())?;
    answered.await.map_err(|_| shared.not_leader())
}

/// The tablet, once the copy on `server` serves by its own word.
fn served(shared: &Shared, id: TabletId, server: ServerId) -> Result<Option<TabletSummary>, ApiError> {
    let state = shared.raft.view().state();
    let tablet = state.tablet(id).ok_or_else(|| no_tablet(&state, id))?;
    let leads = tablet.leader.is_some_and(|leader| leader.server == server);
    let serves = leads && shared.liveness.count_reported(std::iter::once(tablet)) == 1;
    Ok(serves.then(|| summary::tablet(shared, &state, tablet)))
}

fn not_yet(tablet: TabletId, server: ServerId) -> ApiError {
    let hint = format!(
        "server {} did not take the leadership of tablet {} over within {TRANSFER_LEADER_TIMEOUT:?}: see `ebla tablet describe {}` and try again",
        server.0, tablet.0, tablet.0
    );
    ApiError::new(Reason::TimedOut, hint)
}
