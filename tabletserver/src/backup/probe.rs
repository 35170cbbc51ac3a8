//! Whether this server sees the target that the master sees, and may write there.

use super::{Stop, open_repository};
use ebla_backup::{BackupError, TargetError};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;

/// Reads what the master put, and puts the same under another name if it is asked to.
///
/// # Errors
/// `BACKUP_TARGET` when the server sees something else, may not write, or has another key.
pub(super) async fn probe(request: &v1::ProbeRequest, server: u64) -> Result<(), ApiError> {
    let tried = try_probe(request, server).await;
    tried.map_err(|stop| match stop {
        Stop::Failed(error) => error,
        Stop::GivenUp => ApiError::new(Reason::Internal, "a probe is never given up"),
    })
}

async fn try_probe(request: &v1::ProbeRequest, server: u64) -> Result<(), Stop> {
    let repository = open_repository(&request.target).await?;
    repository.key(&request.key_id)?;
    let target = repository.target();
    let other = || {
        let hint = format!(
            "server {server} does not see at {} what the master put there: a file:// URL must name a directory that \
             every server sees under that path, such as a network file system; or use s3://",
            request.target
        );
        ApiError::new(Reason::BackupTarget, hint).with("server", server)
    };
    match target.get(&request.name, request.content.len() as u64).await {
        Ok(content) if content[..] == request.content[..] => {}
        Ok(_) | Err(TargetError::NotFound(_)) => return Err(other().into()),
        Err(error) => return Err(of_server(error, server).into()),
    }
    if !request.answer.is_empty() {
        let put = target.put(&request.answer, request.content.clone()).await;
        put.map_err(|error| of_server(error, server))?;
    }
    Ok(())
}

fn of_server(error: TargetError, server: u64) -> ApiError {
    let error = ApiError::from(&BackupError::from(error));
    ApiError { message: format!("server {server}: {}", error.message), ..error }.with("server", server)
}
