//! The one shape of errors on the wire: a canonical gRPC code, `ErrorInfo{reason, domain,
//! metadata}` and a message that says what to do next.

use crate::v1::CallError;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of every `ErrorInfo` of Ebla.
pub const DOMAIN: &str = "ebla";

/// How long an overloaded server asks its clients to wait, in milliseconds.
const OVERLOADED_RETRY_MS: u64 = 20;

macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $text:literal, $code:ident;)*) => {
        /// What went wrong, in a word that programs can compare.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason { $($(#[$meta])* $name),* }

        impl Reason {
            /// The word in `ErrorInfo.reason`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The canonical gRPC code that goes with it.
            #[must_use]
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),* }
            }

            /// Reads the word back.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The request breaks a rule of the API.
    BadRequest = "BAD_REQUEST", InvalidArgument;
    /// No table of this name.
    TableNotFound = "TABLE_NOT_FOUND", NotFound;
    /// A table of this name exists.
    TableExists = "TABLE_EXISTS", AlreadyExists;
    /// The table is being brought back from a backup; nobody reads or writes it until that is done.
    TableRestoring = "TABLE_RESTORING", FailedPrecondition;
    /// No tablet of this id.
    TabletNotFound = "TABLET_NOT_FOUND", NotFound;
    /// The tablet is no more; others took its place.
    TabletRetired = "TABLET_RETIRED", FailedPrecondition;
    /// No job of this id.
    JobNotFound = "JOB_NOT_FOUND", NotFound;
    /// Another job is about the same tablet.
    JobConflict = "JOB_CONFLICT", FailedPrecondition;
    /// The job is over, or past the point from which it only goes forward.
    JobEnded = "JOB_ENDED", FailedPrecondition;
    /// The job was given up or ended by somebody; nothing of it stays.
    JobFailed = "JOB_FAILED", Aborted;
    /// No server of this id.
    ServerNotFound = "SERVER_NOT_FOUND", NotFound;
    /// A table wants more copies than there are servers up; nothing was created.
    TooFewServers = "TOO_FEW_SERVERS", FailedPrecondition;
    /// Leadership cannot go where it was asked to go.
    NotTransferable = "NOT_TRANSFERABLE", FailedPrecondition;
    /// A copy cannot move where it was asked to go.
    NotMovable = "NOT_MOVABLE", FailedPrecondition;
    /// No backup of this name, or no schedule of this target.
    BackupNotFound = "BACKUP_NOT_FOUND", NotFound;
    /// No such record in the loss ledger.
    RecordNotFound = "RECORD_NOT_FOUND", NotFound;
    /// This copy is not recent enough for the read; another one, or the leader, may be.
    CopyBehind = "COPY_BEHIND", Unavailable;
    /// A condition of the batch does not hold; nothing was written.
    ConditionFailed = "CONDITION_FAILED", Aborted;
    /// The row is not a counter, or the sum leaves 64 bits.
    NotACounter = "NOT_A_COUNTER", FailedPrecondition;
    /// The sum leaves the range of a signed 64-bit counter.
    CounterOverflow = "COUNTER_OVERFLOW", OutOfRange;
    /// This server does not lead the tablet; metadata may name who does.
    NotLeader = "NOT_LEADER", FailedPrecondition;
    /// The tablet is not here or is no more; fetch the route again.
    StaleRoute = "STALE_ROUTE", FailedPrecondition;
    /// A batch is atomic within one tablet, and its rows lie in several; nothing was written.
    BatchSpansTablets = "BATCH_SPANS_TABLETS", FailedPrecondition;
    /// Too few in-sync copies for the level; nothing was written.
    NotEnoughReplicas = "NOT_ENOUGH_REPLICAS", Unavailable;
    /// Nobody who could answer can be reached now.
    Unavailable = "UNAVAILABLE", Unavailable;
    /// The server is stopping.
    Draining = "DRAINING", Unavailable;
    /// A queue is full; try again after the given time.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// A bound of the data model is reached.
    LimitReached = "LIMIT_REACHED", ResourceExhausted;
    /// A subscriber did not keep up with what was published and was cut off.
    SubscriberTooSlow = "SUBSCRIBER_TOO_SLOW", ResourceExhausted;
    /// The table in memory is at its limit; nothing was written, deletes go on.
    MemoryLimit = "MEMORY_LIMIT", ResourceExhausted;
    /// The disk is too full for new rows; deletes go on.
    DiskFull = "DISK_FULL", ResourceExhausted;
    /// The timestamp is outside of what is kept.
    TimestampOutOfRange = "TIMESTAMP_OUT_OF_RANGE", OutOfRange;
    /// What a watch wants is no longer kept.
    WatchTooOld = "WATCH_TOO_OLD", OutOfRange;
    /// The consumer of a watch did not keep up; it goes on with its token.
    WatchTooSlow = "WATCH_TOO_SLOW", ResourceExhausted;
    /// The write token is older than what is remembered; it was not run now.
    TokenTooOld = "TOKEN_TOO_OLD", FailedPrecondition;
    /// The write token was fenced by a question for its outcome; it will never run.
    TokenFenced = "TOKEN_FENCED", FailedPrecondition;
    /// The write was undone before anyone saw it.
    Reverted = "REVERTED", Aborted;
    /// What the session has seen was lost in a failover; its rows may be older.
    WriteLost = "WRITE_LOST", DataLoss;
    /// The deadline passed.
    TimedOut = "TIMED_OUT", DeadlineExceeded;
    /// Another run of this server, or another holder of its identity, is registered.
    Superseded = "SUPERSEDED", FailedPrecondition;
    /// The server belongs to another cluster.
    WrongCluster = "WRONG_CLUSTER", FailedPrecondition;
    /// The place of backups, or the key of their files, cannot be used as it was given.
    BackupTarget = "BACKUP_TARGET", FailedPrecondition;
    /// Stored bytes are damaged.
    Corrupt = "CORRUPT", DataLoss;
    /// A bug or a failed disk.
    Internal = "INTERNAL", Internal;
}

/// An error of the API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// For programs.
    pub reason: Reason,
    /// For people: what happened and what to do next.
    pub message: String,
    /// Facts that go with the reason.
    pub metadata: BTreeMap<String, String>,
}

impl ApiError {
    /// An error without metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// Reads the error out of a status; one that Ebla did not make keeps its code's meaning.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let reason = info.as_ref().and_then(|info| Reason::parse(&info.reason));
        Self {
            reason: reason.unwrap_or_else(|| reason_of_code(status.code())),
            message: status.message().to_owned(),
            metadata: info.map(|info| info.metadata.into_iter().collect()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let metadata: HashMap<String, String> = error.metadata.into_iter().collect();
        let mut details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
        if error.reason == Reason::Overloaded {
            details.set_retry_info(Some(Duration::from_millis(OVERLOADED_RETRY_MS)));
        }
        Self::with_error_details(error.reason.code(), error.message, details)
    }
}

impl From<ApiError> for CallError {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.reason.code() as i32,
            message: error.message,
            reason: error.reason.as_str().to_owned(),
            metadata: error.metadata.into_iter().collect(),
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        let code = Code::from_i32(error.code);
        Self {
            reason: Reason::parse(&error.reason).unwrap_or_else(|| reason_of_code(code)),
            message: error.message,
            metadata: error.metadata.into_iter().collect(),
        }
    }
}

/// The nearest reason for a status that carries none, such as one made by a transport.
fn reason_of_code(code: Code) -> Reason {
    match code {
        Code::InvalidArgument => Reason::BadRequest,
        Code::DeadlineExceeded | Code::Cancelled => Reason::TimedOut,
        Code::ResourceExhausted => Reason::Overloaded,
        Code::Unavailable | Code::Unknown => Reason::Unavailable,
        Code::DataLoss => Reason::Corrupt,
        Code::OutOfRange => Reason::TimestampOutOfRange,
        Code::NotFound => Reason::TableNotFound,
        Code::AlreadyExists => Reason::TableExists,
        Code::FailedPrecondition => Reason::StaleRoute,
        Code::Ok
        | Code::PermissionDenied
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => Reason::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_status_and_a_frame() {
        let error = ApiError::new(Reason::NotLeader, "ask server 2").with("leader", "127.0.0.1:7402");
        assert_eq!(ApiError::from_status(&Status::from(error.clone())), error);
        assert_eq!(ApiError::from(CallError::from(error.clone())), error);
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let status = Status::from(ApiError::new(Reason::Overloaded, "full"));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_details_retry_info().is_some());
    }
}
