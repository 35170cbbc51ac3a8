//! Moves of copies, and what servers are wanted for, as operators ask for them.

use super::Shared;
use super::control::unexpected;
use super::split::start;
use super::summary;
use ebla_kernel::ids::{ServerId, TabletId};
use ebla_kernel::meta::{Command, Reply, Wish};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::meta::duty;
use ebla_proto::v1::{
    ForgetServerRequest, ForgetServerResponse, MoveTabletRequest, MoveTabletResponse, SetServerDutyRequest,
    SetServerDutyResponse,
};

/// Begins to move a copy.
pub(super) async fn move_tablet(
    shared: &Shared,
    request: MoveTabletRequest,
) -> Result<MoveTabletResponse, ApiError> {
    shared.confirm_leading().await?;
    let (from, to) = (ServerId(request.from_server_id), ServerId(request.to_server_id));
    let wish = Wish::Move { tablet: TabletId(request.tablet_id), from, to };
    let is_known = shared.raft.view().state().server(to).is_some();
    if is_known && !shared.liveness.health(to).connected {
        let hint = format!("server {} is not connected: see `ebla server list`", to.0);
        return Err(ApiError::new(Reason::Unavailable, hint));
    }
    Ok(MoveTabletResponse { job_id: start(shared, wish).await?.id.0 })
}

/// Says what a server is wanted for.
pub(super) async fn set_duty(
    shared: &Shared,
    request: SetServerDutyRequest,
) -> Result<SetServerDutyResponse, ApiError> {
    shared.confirm_leading().await?;
    let (server, duty) = (ServerId(request.server_id), duty(request.duty)?);
    let is_connected = |other| shared.liveness.health(other).connected;
    shared.raft.view().state().check_duty(server, duty, is_connected)?;
    match propose(shared, Command::SetDuty { server, duty }).await? {
        Reply::Server(server) => {
            let state = shared.raft.view().state();
            Ok(SetServerDutyResponse { server: Some(summary::server(shared, &state, &server)) })
        }
        other => Err(unexpected(&other)),
    }
}

/// Forgets a server that is gone and holds nothing.
pub(super) async fn forget(
    shared: &Shared,
    request: ForgetServerRequest,
) -> Result<ForgetServerResponse, ApiError> {
    shared.confirm_leading().await?;
    let server = ServerId(request.server_id);
    if shared.liveness.health(server).connected {
        let hint = format!("server {} is connected: stop it first", server.0);
        return Err(ApiError::new(Reason::NotMovable, hint));
    }
    match propose(shared, Command::ForgetServer { server }).await? {
        Reply::Server(_) => Ok(ForgetServerResponse {}),
        other => Err(unexpected(&other)),
    }
}

async fn propose(shared: &Shared, command: Command) -> Result<Reply, ApiError> {
    match shared.raft.propose(command).await.map_err(|why| shared.no_answer(why))? {
        Reply::Rejected(rejection) => Err(rejection.into()),
        reply => Ok(reply),
    }
}
