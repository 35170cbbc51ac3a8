//! What the cluster does by itself, for people: how it stands, the way to pause it, and why.

use super::Shared;
use super::admin::no_tablet;
use super::control::unexpected;
use ebla_kernel::ids::TabletId;
use ebla_kernel::meta::{Command, Reply};
use ebla_proto::error::ApiError;
use ebla_proto::v1::{
    ExplainTabletRequest, ExplainTabletResponse, GetBalancerRequest, GetBalancerResponse,
    PauseBalancerRequest, PauseBalancerResponse,
};

/// How it stands.
pub(super) async fn status(
    shared: &Shared,
    request: GetBalancerRequest,
) -> Result<GetBalancerResponse, ApiError> {
    shared.confirm_leading().await?;
    let planned = if request.dry_run { shared.balancer.dry_run() } else { Vec::new() };
    Ok(GetBalancerResponse { planned, ..shared.balancer.status() })
}

/// Pauses it, or lets it go on.
pub(super) async fn pause(
    shared: &Shared,
    request: PauseBalancerRequest,
) -> Result<PauseBalancerResponse, ApiError> {
    shared.confirm_leading().await?;
    let command = Command::PauseBalancer { paused: request.paused };
    match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
        Reply::BalancerPaused(paused) => Ok(PauseBalancerResponse { paused }),
        Reply::Rejected(rejection) => Err(rejection.into()),
        other => Err(unexpected(&other)),
    }
}

/// Why a tablet is where it is.
pub(super) async fn explain(
    shared: &Shared,
    request: ExplainTabletRequest,
) -> Result<ExplainTabletResponse, ApiError> {
    shared.confirm_leading().await?;
    let id = TabletId(request.tablet_id);
    let mut explained = shared.balancer.explain(id);
    let state = shared.raft.view().state();
    if state.tablet(id).is_none() {
        let gone = no_tablet(&state, id);
        if explained.decisions.is_empty() {
            return Err(gone);
        }
        // What was decided of a tablet that is no more is worth telling.
        explained.findings = vec![gone.message];
    }
    Ok(explained)
}
