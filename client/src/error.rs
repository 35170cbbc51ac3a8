//! The one error of the client: a reason for programs, a message for people, and whether it
//! is certain that nothing was changed.

use ebla_kernel::op::BadRequest;
use ebla_proto::error::{ApiError, Reason};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use tonic::Status;
use tonic_types::StatusExt as _;

/// A call that did not succeed. The message says what to do next.
#[derive(Clone, Debug)]
pub struct Error {
    reason: Reason,
    message: String,
    metadata: BTreeMap<String, String>,
    definite: bool,
    retry_after: Option<Duration>,
}

impl Error {
    /// An error of which it is certain that nothing was changed.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new(), definite: true, retry_after: None }
    }

    /// Says that the request may have taken effect.
    #[must_use]
    pub fn indefinite(mut self) -> Self {
        self.definite = false;
        self
    }

    /// Says that nothing was begun, whatever its reason says elsewhere.
    pub(crate) fn definite(mut self) -> Self {
        self.definite = true;
        self
    }

    /// Puts `context` in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What went wrong, in a word that programs can compare.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What went wrong and what to do next.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// A fact that goes with the reason, by name.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// Whether it is certain that the request changed nothing and never will.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        self.definite
    }

    /// Whether the same request may succeed later without anybody changing it. The client
    /// has already tried again until the deadline.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.reason {
            Reason::NotLeader
            | Reason::StaleRoute
            | Reason::NotEnoughReplicas
            | Reason::CopyBehind
            | Reason::Unavailable
            | Reason::Draining
            | Reason::Overloaded
            | Reason::TimedOut => true,
            Reason::BadRequest
            | Reason::TableNotFound
            | Reason::TableExists
            | Reason::TableRestoring
            | Reason::TabletNotFound
            | Reason::TabletRetired
            | Reason::JobNotFound
            | Reason::JobConflict
            | Reason::JobEnded
            | Reason::JobFailed
            | Reason::ServerNotFound
            | Reason::RecordNotFound
            | Reason::NotMovable
            | Reason::NotTransferable
            | Reason::TooFewServers
            | Reason::WriteLost
            | Reason::ConditionFailed
            | Reason::BatchSpansTablets
            | Reason::NotACounter
            | Reason::CounterOverflow
            | Reason::LimitReached
            | Reason::SubscriberTooSlow
            | Reason::MemoryLimit
            | Reason::DiskFull
            | Reason::TimestampOutOfRange
            | Reason::WatchTooOld
            | Reason::WatchTooSlow
            | Reason::TokenTooOld
            | Reason::TokenFenced
            | Reason::Reverted
            | Reason::Superseded
            | Reason::WrongCluster
            | Reason::BackupNotFound
            | Reason::BackupTarget
            | Reason::Corrupt
            | Reason::Internal => false,
        }
    }

    /// Whether the client itself should try again until the deadline: not for too few copies,
    /// of which the caller wants to know soon.
    pub(crate) fn is_worth_a_retry(&self) -> bool {
        self.is_retryable() && !self.lacks_copies()
    }

    /// Whether too few copies are in sync.
    pub(crate) fn lacks_copies(&self) -> bool {
        self.reason == Reason::NotEnoughReplicas
    }

    /// Whether the route that led here is in doubt.
    pub(crate) fn is_about_the_route(&self) -> bool {
        matches!(self.reason, Reason::NotLeader | Reason::StaleRoute | Reason::Draining | Reason::Unavailable)
    }

    /// How long the server asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// An answer of a server, out of a frame.
    pub(crate) fn from_api(error: ApiError) -> Self {
        let overloaded = error.reason == Reason::Overloaded;
        let told = error.metadata.get("retry_ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let retry_after = told.or(overloaded.then_some(crate::limits::BACKOFF_FIRST * 2));
        Self {
            reason: error.reason,
            message: error.message,
            metadata: error.metadata,
            definite: is_refusal(error.reason),
            retry_after,
        }
    }

    /// A status of a unary call or a stream. One that no server of Ebla made came from the
    /// transport: the request may have arrived.
    pub(crate) fn from_status(status: &Status) -> Self {
        let from_server = status.get_details_error_info().is_some();
        let mut error = Self::from_api(ApiError::from_status(status));
        if let Some(info) = status.get_details_retry_info() {
            error.retry_after = info.retry_delay;
        }
        error.definite &= from_server;
        error
    }

    /// The deadline of a call that changes nothing has passed.
    pub(crate) fn timed_out(what: impl fmt::Display, timeout: Duration, last: Option<&Self>) -> Self {
        let why = last.map(|last| format!("; the last try said: {}", last.message)).unwrap_or_default();
        let timeout = timeout.as_millis();
        let message = format!(
            "{what} did not succeed within {timeout} ms: check the cluster with `ebla status` or give more time{why}"
        );
        let unavailable = last.is_some_and(|last| last.reason == Reason::Unavailable);
        Self::new(if unavailable { Reason::Unavailable } else { Reason::TimedOut }, message)
    }
}

/// Whether a server that answers so has certainly not run the request.
fn is_refusal(reason: Reason) -> bool {
    !matches!(reason, Reason::TimedOut | Reason::Internal | Reason::Corrupt | Reason::TokenTooOld)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<BadRequest> for Error {
    fn from(error: BadRequest) -> Self {
        Self::new(Reason::BadRequest, error.to_string())
    }
}
