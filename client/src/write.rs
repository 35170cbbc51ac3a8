//! Writes: batches, their options, and tries under one token until the outcome is known.
//!
//! Once a write has left, it may run even if no answer comes. From then on a try only ever
//! ends as an outcome: an answer to a later try under the same token, what `GetOutcome` says
//! (it fences the token, so that it is final), or [`Outcome::Unknown`].

use crate::client::{Client, Place, Tries};
use crate::error::Error;
use crate::limits::COPIES_PATIENCE;
use crate::outcome::{Committed, Outcome, Ticket};
use crate::pipe::{Failure, expect_write};
use crate::retry::Deadline;
use crate::session::SessionToken;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{AckLevel, Action, Cause, Condition, Op, check_batch};
use ebla_proto::convert;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::pipe_call::Call;
use std::time::Duration;

/// Operations that take effect together or not at all. All rows must lie in one tablet.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Batch {
    pub(crate) ops: Vec<Op>,
}

impl Batch {
    /// A batch without operations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds any operation.
    #[must_use]
    pub fn op(mut self, condition: Option<Condition>, action: Action) -> Self {
        self.ops.push(Op { condition, action });
        self
    }

    /// Sets a row.
    #[must_use]
    pub fn set(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.op(None, Action::Set { key: key.into(), value: value.into(), ttl_ms: None })
    }

    /// Sets a row that reads as deleted when `ttl` has passed; counted in whole milliseconds,
    /// at least one.
    #[must_use]
    pub fn set_with_ttl(self, key: impl Into<Bytes>, value: impl Into<Bytes>, ttl: Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.op(None, Action::Set { key: key.into(), value: value.into(), ttl_ms: Some(ttl_ms) })
    }

    /// Deletes a row; no error when there is none.
    #[must_use]
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.op(None, Action::Delete { key: key.into(), cause: Cause::Deleted })
    }

    /// Adds to a counter; a missing row counts as 0.
    #[must_use]
    pub fn add(self, key: impl Into<Bytes>, delta: i64) -> Self {
        self.op(None, Action::Add { key: key.into(), delta })
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// How a write is to be acknowledged.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct WriteOptions {
    /// The level to wait for; the table's own when none.
    pub ack: Option<AckLevel>,
}

/// How one try of a write ended without an outcome.
enum NoOutcome {
    /// It has certainly not run and will not.
    Refused(Error),
    /// It may have run.
    Lost(Error),
}

impl Client {
    /// Writes a batch. All its rows must lie in one tablet, where it is atomic; see
    /// [`Self::write_split`] for others.
    ///
    /// # Errors
    /// A definite error: nothing was written. What may have been written is an outcome.
    pub async fn write(&self, table: &str, batch: Batch, options: WriteOptions) -> Result<Outcome, Error> {
        check_batch(&batch.ops)?;
        let ticket =
            Ticket { token: self.shared.new_token(), table: table.to_owned(), key: route_key(&batch.ops) };
        let request = v1::WriteRequest {
            table: table.to_owned(),
            ops: batch.ops.into_iter().map(convert::op_to_wire).collect(),
            ack: options.ack.map(convert::ack_to_wire),
            timeout_ms: 0,
            token: Some(convert::token_to_wire(ticket.token)),
        };
        self.write_until_known(request, ticket).await
    }

    async fn write_until_known(&self, request: v1::WriteRequest, ticket: Ticket) -> Result<Outcome, Error> {
        let deadline = Deadline::after(self.timeout);
        let patience = Deadline::after(COPIES_PATIENCE.min(self.timeout / 2));
        let mut tries = Tries::new(deadline);
        let mut may_have_run = false;
        loop {
            let error = match self.write_once(&request, &ticket, &mut tries).await {
                Ok(response) if response.outcome == v1::WriteOutcome::Unknown as i32 => {
                    // Not decided there: the same token elsewhere, or later, settles it.
                    may_have_run = true;
                    Error::new(Reason::Unavailable, "the server stopped before it could tell the outcome")
                }
                Ok(response) => return outcome(response, &ticket),
                Err(NoOutcome::Refused(error)) if error.is_worth_a_retry() => error,
                Err(NoOutcome::Refused(error)) if error.lacks_copies() && !patience.has_passed() => error,
                Err(NoOutcome::Refused(error)) if may_have_run => {
                    return self.settle(&ticket, error, deadline).await;
                }
                Err(NoOutcome::Refused(error)) => return Err(error),
                Err(NoOutcome::Lost(error)) => {
                    may_have_run = true;
                    error
                }
            };
            if !tries.again(&self.shared, &ticket.table, &error).await {
                if may_have_run {
                    return Ok(Outcome::Unknown(ticket));
                }
                return Err(Error::timed_out("the write", self.timeout, Some(&error)));
            }
        }
    }

    /// One try: to the leader and back.
    async fn write_once(
        &self,
        request: &v1::WriteRequest,
        ticket: &Ticket,
        tries: &mut Tries,
    ) -> Result<v1::WriteResponse, NoOutcome> {
        let deadline = tries.deadline;
        let address =
            tokio::time::timeout_at(deadline.at, self.leader(&ticket.table, Place::At(&ticket.key), tries));
        let address = match address.await {
            Ok(address) => address.map_err(NoOutcome::Refused)?,
            Err(_) => {
                return Err(NoOutcome::Refused(Error::new(Reason::TimedOut, "no route was found in time")));
            }
        };
        let mut request = request.clone();
        request.timeout_ms = u64::try_from(deadline.left().as_millis()).unwrap_or(u64::MAX).max(1);
        let call = self.shared.pipes.call(&self.shared.channels, &address, Call::Write(request));
        let answer = match tokio::time::timeout_at(deadline.at, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Failure::NotSent(error))) => return Err(NoOutcome::Refused(error)),
            Ok(Err(Failure::Lost(error))) => return Err(NoOutcome::Lost(error)),
            Err(_) => return Err(NoOutcome::Lost(Error::new(Reason::TimedOut, "no answer came in time"))),
        };
        expect_write(answer).map_err(|error| {
            let is_open = error.reason() == Reason::TimedOut;
            if is_open { NoOutcome::Lost(error) } else { NoOutcome::Refused(error) }
        })
    }

    /// A later try was refused while an earlier one may have run: asks for the truth.
    async fn settle(&self, ticket: &Ticket, refusal: Error, deadline: Deadline) -> Result<Outcome, Error> {
        match self.with_timeout(deadline.left()).outcome(ticket).await {
            Ok(Outcome::Reverted) => Err(refusal),
            Ok(known @ (Outcome::Committed(_) | Outcome::Unknown(_))) => Ok(known),
            Err(_) => Ok(Outcome::Unknown(ticket.clone())),
        }
    }

    /// Sets a row.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn set(
        &self,
        table: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Outcome, Error> {
        self.write(table, Batch::new().set(key, value), WriteOptions::default()).await
    }

    /// Sets a row that is not there yet.
    ///
    /// # Errors
    /// As [`Self::write`]; `CONDITION_FAILED` when it is there.
    pub async fn insert_if_absent(
        &self,
        table: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Outcome, Error> {
        let action = Action::Set { key: key.into(), value: value.into(), ttl_ms: None };
        self.write(table, Batch::new().op(Some(Condition::Absent), action), WriteOptions::default()).await
    }

    /// Sets a row whose newest version still has the timestamp `expected`.
    ///
    /// # Errors
    /// As [`Self::write`]; `CONDITION_FAILED` when it has another or is not there.
    pub async fn compare_and_set(
        &self,
        table: &str,
        key: impl Into<Bytes>,
        expected: Hlc,
        value: impl Into<Bytes>,
    ) -> Result<Outcome, Error> {
        let action = Action::Set { key: key.into(), value: value.into(), ttl_ms: None };
        self.write(table, Batch::new().op(Some(Condition::TsIs(expected)), action), WriteOptions::default())
            .await
    }

    /// Deletes a row; no error when there is none.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn delete(&self, table: &str, key: impl Into<Bytes>) -> Result<Outcome, Error> {
        self.write(table, Batch::new().delete(key), WriteOptions::default()).await
    }

    /// Adds to a counter; its new value is in the outcome's `counters`.
    ///
    /// # Errors
    /// As [`Self::write`]; `NOT_A_COUNTER`, `COUNTER_OVERFLOW`.
    pub async fn add(&self, table: &str, key: impl Into<Bytes>, delta: i64) -> Result<Outcome, Error> {
        self.write(table, Batch::new().add(key, delta), WriteOptions::default()).await
    }
}

/// The key by which a batch finds its tablet: that of its first operation.
pub(crate) fn route_key(ops: &[Op]) -> Bytes {
    match ops.first().map(|op| &op.action) {
        Some(
            Action::Set { key, .. }
            | Action::Delete { key, .. }
            | Action::Add { key, .. }
            | Action::Room { key, .. },
        ) => key.clone(),
        Some(Action::DeleteRange { from, .. }) => from.clone(),
        None => Bytes::new(),
    }
}

fn outcome(response: v1::WriteResponse, ticket: &Ticket) -> Result<Outcome, Error> {
    Ok(match response.outcome() {
        v1::WriteOutcome::Committed => Outcome::Committed(Committed {
            ts: Hlc(response.ts),
            epoch: response.epoch,
            seq: response.seq,
            level: convert::ack(response.level.as_ref())
                .map_err(|error| Error::from_api(error).indefinite())?,
            tablet_id: response.tablet_id,
            counters: response.results.iter().map(|result| result.counter).collect(),
            session: response.session.map(SessionToken::from_wire),
        }),
        v1::WriteOutcome::Reverted => Outcome::Reverted,
        v1::WriteOutcome::Unknown | v1::WriteOutcome::Unspecified => Outcome::Unknown(ticket.clone()),
    })
}
