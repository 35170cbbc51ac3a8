//! Why a master does not start, or must end.

use std::path::PathBuf;

/// The error of the crate. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// Another process holds the data directory.
    #[error(
        "the data directory {} is in use by another process: stop it or give another --data-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// The data directory belongs to another master, or to something else.
    #[error("{0}")]
    Identity(String),
    /// The group does not take this master in.
    #[error("{0}")]
    Refused(String),
    /// The port cannot be had.
    #[error("cannot listen on {address}: choose a free port or stop what uses it")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk or the system failed; a failed sync is final.
    #[error("{doing} failed: check the disk, then start again")]
    Io {
        /// What was tried.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The Raft log failed.
    #[error("{doing} failed in the metadata log: check the disk, then start again")]
    Log {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: raft_engine::Error,
    },
    /// Raft refused to go on.
    #[error("the metadata group refused to go on")]
    Raft(#[from] raft::Error),
    /// This master's state is not what the leader's is after the same commands.
    #[error(
        "the metadata of this master differs from the leader's at entry {index}: it halts before it decides \
         anything; keep its data directory for inspection and replace the master"
    )]
    Diverged {
        /// Index of the comparison in the log.
        index: u64,
    },
    /// Stored bytes are damaged or newer than this program.
    #[error("{0}")]
    Corrupt(String),
    /// The gRPC server ended.
    #[error("the gRPC server ended")]
    Serve(#[source] tonic::transport::Error),
    /// A running master failed.
    #[error(transparent)]
    Failed(std::sync::Arc<Error>),
    /// A thread ended that should not.
    #[error("the metadata thread ended unexpectedly: this is a bug, its last log lines say more")]
    ThreadEnded,
}

impl Error {
    /// Wraps an I/O error with what was tried.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Wraps an error of the Raft log with what was tried.
    pub(crate) fn log(doing: &'static str) -> impl FnOnce(raft_engine::Error) -> Self {
        move |source| Self::Log { doing, source }
    }
}

/// What is asked for in a chaos build stands for a failed write.
impl From<ebla_failpoints::Failed> for Error {
    fn from(failed: ebla_failpoints::Failed) -> Self {
        Self::io("writing")(std::io::Error::other(failed))
    }
}
