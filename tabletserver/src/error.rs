//! Why a tablet server does not start, or must end.

use crate::identity::IdentityError;
use crate::ledger::LedgerError;
use crate::oplog::OplogError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use ebla_failpoints::Failed;
use std::path::PathBuf;

/// An error that ends the server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("cannot use the data directory")]
    Identity(#[from] IdentityError),
    /// A directory cannot be made.
    #[error("cannot create {path}: check that its parent is writable")]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data store failed.
    #[error("the data store failed")]
    Store(#[from] StoreError),
    /// The log failed.
    #[error("the log failed")]
    Oplog(#[from] OplogError),
    /// The registry failed.
    #[error("the registry failed")]
    Registry(#[from] RegistryError),
    /// The loss ledger failed.
    #[error("the loss ledger failed")]
    Ledger(#[from] LedgerError),
    /// What the stores hold does not fit together.
    #[error("the data directory is damaged: {what}; restore the directory from a copy of it")]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: give another --listen or end the process that holds it")]
    Listen {
        /// The address.
        listen: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The masters turned the server away for good.
    #[error("the masters refused this server: {message}")]
    Refused {
        /// What they said.
        message: String,
    },
    /// A thread of the pipeline ended; what it had accepted is not acknowledged.
    #[error("the {what} failed; the server ends so that nothing unsynced is acknowledged")]
    Fatal {
        /// Which part.
        what: String,
    },
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
}

/// What is asked for in a chaos build stands for a failed write.
impl From<Failed> for RegistryError {
    fn from(failed: Failed) -> Self {
        Self::Io { tried: "commit a batch", source: Box::new(failed) }
    }
}

impl From<Failed> for OplogError {
    fn from(failed: Failed) -> Self {
        Self::Write { tried: "append a group", source: Box::new(failed) }
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        Self::Engine { tried: "write", source: Box::new(failed) }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self::Store(failed.into())
    }
}
