//! What may go wrong with a backup.

use crate::location::BadLocation;
use crate::target::TargetError;
use ebla_proto::error::{ApiError, Reason};

/// What may go wrong with a backup at its target. Displays what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The URL.
    #[error(transparent)]
    Location(#[from] BadLocation),
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No backup of that name.
    #[error("{0}")]
    NoBackup(String),
    /// Something is missing, damaged, swapped or of another cluster.
    #[error("{0}")]
    Damaged(String),
    /// Written by a newer release.
    #[error("{0}")]
    NewerFormat(String),
    /// The key is missing, or another one.
    #[error("{0}")]
    Key(String),
    /// The local disk or the engine.
    #[error("{0}")]
    Local(String),
}

impl BackupError {
    /// Something at `place` is not what was written.
    pub(crate) fn damaged(place: &str, what: impl std::fmt::Display) -> Self {
        Self::Damaged(format!(
            "{place} {what}: do not use this backup; restore another one, and look at the target's disk"
        ))
    }

    /// There is no backup of this name.
    pub(crate) fn no_backup(id: &str) -> Self {
        Self::NoBackup(format!("there is no backup {id} here: `ebla backup list` shows those that are"))
    }

    /// Something here could not be done.
    pub(crate) fn local(tried: &str, source: impl std::fmt::Display) -> Self {
        Self::Local(format!("cannot {tried}: {source}; look at the disk of this machine"))
    }
}

impl From<&BackupError> for ApiError {
    fn from(error: &BackupError) -> Self {
        let reason = match error {
            BackupError::Location(_) => Reason::BadRequest,
            BackupError::NoBackup(_) | BackupError::Target(TargetError::NotFound(_)) => {
                Reason::BackupNotFound
            }
            BackupError::Target(TargetError::Unavailable(_)) => Reason::Unavailable,
            BackupError::Target(TargetError::Full(_)) => Reason::DiskFull,
            BackupError::Target(TargetError::Refused(_))
            | BackupError::Key(_)
            | BackupError::NewerFormat(_) => Reason::BackupTarget,
            BackupError::Damaged(_) => Reason::Corrupt,
            BackupError::Local(_) => Reason::Internal,
        };
        Self::new(reason, error.to_string())
    }
}
