//! What clients ask of a row, what a row's version is, and what the log records of it.
//!
//! Requests (`Op`) carry conditions and deltas. Log entries never do: they carry `Change`s,
//! the exact versions to put, so that replay gives the same rows however often it runs.

use crate::hlc::Hlc;
use crate::ids::Seq;
use crate::limits::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::room::ServerRuns;
use crate::room::row::BitChange;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Why a row is gone. Readers do not care; watchers are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Cause {
    /// Somebody deleted it.
    Deleted,
    /// Its time was over.
    Expired,
    /// It made room for others in a table of limited memory.
    Evicted,
}

/// What one version of a row says.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Body {
    /// The row is gone.
    Tombstone(Cause),
    /// The row has this value.
    Value(Bytes),
    /// The row is a counter of this value.
    Counter(i64),
}

impl Body {
    /// Bytes of the value, for accounting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Tombstone(_) => 0,
            Self::Value(value) => value.len(),
            Self::Counter(_) => 8,
        }
    }
}

/// One version of a row.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Version {
    /// When it was written; unique per key.
    pub ts: Hlc,
    /// What it says.
    pub body: Body,
    /// Milliseconds since 1970 from which on the version reads as deleted.
    pub expires_ms: Option<u64>,
}

impl Version {
    /// Whether a read at `at` sees this version as gone. Decided by the read's timestamp,
    /// never by a replica's wall clock.
    #[must_use]
    pub fn is_expired(&self, at: Hlc) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= at.ms())
    }

    /// Whether a read at `at` finds a value here.
    #[must_use]
    pub fn is_live(&self, at: Hlc) -> bool {
        !matches!(self.body, Body::Tombstone(_)) && !self.is_expired(at)
    }
}

/// How many copies must have a write before it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, BorshSerialize, BorshDeserialize)]
pub enum AckLevel {
    /// Durable on the leader.
    Leader,
    /// Durable on this many in-sync copies.
    Copies(u8),
    /// Durable on every in-sync copy.
    InSync,
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Copies(n) => write!(f, "copies={n}"),
            Self::InSync => f.write_str("in-sync"),
        }
    }
}

/// Names one write for ever, so that a retry of it takes effect once.
/// Ordered by issue time first: the oldest are forgotten first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Token {
    /// When the client issued it, milliseconds since 1970.
    pub issued_ms: u64,
    /// The client, a random number.
    pub client: u128,
    /// The client's own count.
    pub seq: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{:x}-{:x}", self.client, self.seq, self.issued_ms)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What must hold of a row for an operation on it to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// There is no live version.
    Absent,
    /// The live version was written at this timestamp.
    TsIs(Hlc),
    /// The live version has exactly this value.
    ValueIs(Bytes),
    /// The newest version has this timestamp, whether it is live or not. Servers ask so when they
    /// delete what expired; clients cannot.
    NewestIs(Hlc),
}

/// What an operation does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Puts a value.
    Set {
        /// The row.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// Lifetime from the write's timestamp on, in milliseconds.
        ttl_ms: Option<u64>,
    },
    /// Deletes a row; no error when there is none.
    Delete {
        /// The row.
        key: Bytes,
        /// Why; what clients ask for is [`Cause::Deleted`].
        cause: Cause,
    },
    /// Adds to a counter; a missing row counts as 0.
    Add {
        /// The row.
        key: Bytes,
        /// What to add.
        delta: i64,
    },
    /// Deletes every row in `[from, to)`; no `to` means no upper bound.
    DeleteRange {
        /// First key.
        from: Bytes,
        /// First key that stays.
        to: Option<Bytes>,
    },
    /// Changes the bit of a server in the row of a room. Only servers ask for it.
    Room {
        /// The room.
        key: Bytes,
        /// What becomes of the bit.
        change: BitChange,
        /// Bits of runs that are over by these go, too.
        runs: Arc<ServerRuns>,
    },
}

impl Action {
    /// The one row that the action touches; none for a range.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Set { key, .. }
            | Self::Delete { key, .. }
            | Self::Add { key, .. }
            | Self::Room { key, .. } => Some(key),
            Self::DeleteRange { .. } => None,
        }
    }
}

/// One operation of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// What must hold first.
    pub condition: Option<Condition>,
    /// What to do then.
    pub action: Action,
}

impl Op {
    /// Whether the present version of the row must be known to run this.
    #[must_use]
    pub fn needs_read(&self) -> bool {
        self.condition.is_some() || matches!(self.action, Action::Add { .. } | Action::Room { .. })
    }
}

/// A request that breaks a limit or a rule of the data model; nothing was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadRequest {
    /// No operation in the batch.
    EmptyBatch,
    /// More operations than one batch may have.
    TooManyOps {
        /// How many there were.
        ops: usize,
    },
    /// More bytes than one batch may have.
    BatchTooLarge {
        /// How many there were.
        bytes: usize,
    },
    /// A key of no bytes.
    EmptyKey,
    /// A key above the limit.
    KeyTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A value above the limit.
    ValueTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A range whose end is not above its start.
    InvertedRange,
    /// A condition on a whole range.
    ConditionOnRange,
    /// A lifetime of zero.
    ZeroTtl,
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyBatch => f.write_str("the batch is empty: give at least one operation"),
            Self::TooManyOps { ops } => {
                write!(f, "a batch of {ops} operations is above the limit of {BATCH_OPS_MAX}: split it")
            }
            Self::BatchTooLarge { bytes } => {
                write!(f, "a batch of {bytes} bytes is above the limit of {BATCH_BYTES_MAX}: split it")
            }
            Self::EmptyKey => f.write_str("the key is empty: give a key of at least one byte"),
            Self::KeyTooLong { bytes } => {
                write!(f, "a key of {bytes} bytes is above the limit of {KEY_BYTES_MAX}: shorten or hash it")
            }
            Self::ValueTooLong { bytes } => write!(
                f,
                "a value of {bytes} bytes is above the limit of {VALUE_BYTES_MAX}: cut it into several rows"
            ),
            Self::InvertedRange => {
                f.write_str("the range ends at or before its start: give a `to` above `from`")
            }
            Self::ConditionOnRange => {
                f.write_str("a delete range takes no condition: put the condition on a single row")
            }
            Self::ZeroTtl => f.write_str("a TTL of zero would expire at once: delete the row instead"),
        }
    }
}

impl std::error::Error for BadRequest {}

/// Checks `ops` against every limit of the data model.
///
/// # Errors
/// The first limit that is broken.
pub fn check_batch(ops: &[Op]) -> Result<(), BadRequest> {
    if ops.is_empty() {
        return Err(BadRequest::EmptyBatch);
    }
    if ops.len() > BATCH_OPS_MAX {
        return Err(BadRequest::TooManyOps { ops: ops.len() });
    }
    let mut bytes = 0;
    for op in ops {
        bytes += check_op(op)?;
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(BadRequest::BatchTooLarge { bytes });
    }
    Ok(())
}

/// Checks one key against the limits.
///
/// # Errors
/// `EmptyKey` or `KeyTooLong`.
pub fn check_key(key: &[u8]) -> Result<(), BadRequest> {
    match key.len() {
        0 => Err(BadRequest::EmptyKey),
        bytes if bytes > KEY_BYTES_MAX => Err(BadRequest::KeyTooLong { bytes }),
        _ => Ok(()),
    }
}

/// Bytes that an operation brings, once it is known to be within the limits.
fn check_op(op: &Op) -> Result<usize, BadRequest> {
    if let Some(key) = op.action.key() {
        check_key(key)?;
    }
    let bytes = match &op.action {
        Action::Set { key, value, ttl_ms } => {
            if value.len() > VALUE_BYTES_MAX {
                return Err(BadRequest::ValueTooLong { bytes: value.len() });
            }
            if *ttl_ms == Some(0) {
                return Err(BadRequest::ZeroTtl);
            }
            key.len() + value.len()
        }
        Action::Delete { key, .. } | Action::Add { key, .. } | Action::Room { key, .. } => key.len(),
        Action::DeleteRange { from, to } => check_delete_range(op, from, to.as_ref())?,
    };
    Ok(bytes)
}

fn check_delete_range(op: &Op, from: &Bytes, to: Option<&Bytes>) -> Result<usize, BadRequest> {
    if op.condition.is_some() {
        return Err(BadRequest::ConditionOnRange);
    }
    for end in [Some(from), to].into_iter().flatten() {
        if end.len() > KEY_BYTES_MAX {
            return Err(BadRequest::KeyTooLong { bytes: end.len() });
        }
    }
    if to.is_some_and(|to| to <= from) {
        return Err(BadRequest::InvertedRange);
    }
    Ok(from.len() + to.map_or(0, Bytes::len))
}

/// What one operation of a batch gave.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum OpResult {
    /// Done.
    Done,
    /// The counter's new value.
    Counter(i64),
}

/// One exact change of a store at the timestamp of its log entry.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Change {
    /// Puts the version of `key` at the entry's timestamp.
    Put {
        /// The row.
        key: Bytes,
        /// What the version says.
        body: Body,
        /// When it expires, milliseconds since 1970.
        expires_ms: Option<u64>,
    },
    /// Puts a range tombstone over `[from, to)`.
    RangeTombstone {
        /// First key that it covers.
        from: Bytes,
        /// First key that it does not cover; none means no upper bound.
        to: Option<Bytes>,
    },
}

impl Change {
    /// Bytes of key and value, for accounting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, body, .. } => key.len() + body.bytes(),
            Self::RangeTombstone { from, to } => from.len() + to.as_ref().map_or(0, Bytes::len),
        }
    }
}

/// How a write that was sequenced ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stands, at this position and timestamp.
    Committed(Committed),
    /// It is gone and was never shown.
    Reverted,
    /// Nobody can say yet: ask with the token.
    Unknown,
}

/// Where a committed write stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its position in the tablet's log.
    pub pos: crate::ids::Pos,
    /// Its timestamp.
    pub ts: Hlc,
    /// The level that was reached.
    pub level: AckLevel,
    /// One result per operation.
    pub results: Vec<OpResult>,
}

/// A prefix of a tablet's log, for reading your own writes elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPoint {
    /// Last entry that was applied.
    pub seq: Seq,
    /// Timestamp of that entry.
    pub ts: Hlc,
}
