//! Reads that any copy may answer: one copy is tried, then the leader.

use crate::client::{Client, Place};
use crate::error::Error;
use crate::limits::COPY_READ_TIMEOUT;
use crate::retry::Deadline;
use crate::row::Cell;
use crate::session::SessionToken;
use bytes::Bytes;
use ebla_kernel::op::check_key;
use ebla_proto::v1;
use rand::seq::IndexedRandom as _;
use std::time::Duration;

/// What a read must see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// Every write that was acknowledged before the read began; the leader answers.
    Linearizable,
    /// Everything but the last so much; any copy answers.
    Bounded(Duration),
    /// The write that this token names; any copy answers.
    Session(SessionToken),
}

impl Client {
    /// A row as `consistency` wants it. A copy chosen by chance is asked first, the leader when
    /// that copy cannot answer soon.
    ///
    /// # Errors
    /// As [`Self::get`], and `WRITE_LOST` when a failover dropped the write that a session
    /// token names.
    pub async fn get_with(
        &self,
        table: &str,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Option<Cell>, Error> {
        let key = key.into();
        check_key(&key)?;
        let request = request(table, &key, consistency);
        match consistency {
            Consistency::Linearizable => {}
            Consistency::Bounded(_) | Consistency::Session(_) => {
                if let Some(answer) = self.ask_a_copy(table, &key, &request).await {
                    return Cell::from_wire(answer?);
                }
            }
        }
        let call = |address| self.get_on_pipe(address, request.clone());
        Cell::from_wire(self.at_leader(table, &key, call).await?)
    }

    /// The answer of some copy; none when it could not answer and another one may.
    async fn ask_a_copy(
        &self,
        table: &str,
        key: &Bytes,
        request: &v1::GetRequest,
    ) -> Option<Result<v1::GetResponse, Error>> {
        let deadline = Deadline::after(self.timeout);
        let route = self.find_route(table, Place::At(key), deadline).await.ok()?;
        let address = route.copies.choose(&mut rand::rng())?.clone();
        let limit = COPY_READ_TIMEOUT.min(deadline.left() / 2);
        match tokio::time::timeout(limit, self.get_on_pipe(address, request.clone())).await {
            Ok(Ok(response)) => Some(Ok(response)),
            Ok(Err(error)) if !error.is_retryable() => Some(Err(error)),
            Ok(Err(error)) => {
                tracing::debug!(table, %error, "a copy could not answer: the leader is asked");
                None
            }
            Err(_) => None,
        }
    }
}

fn request(table: &str, key: &Bytes, consistency: Consistency) -> v1::GetRequest {
    let (kind, staleness_ms, session) = match consistency {
        Consistency::Linearizable => (v1::Consistency::Linearizable, 0, None),
        Consistency::Bounded(staleness) => {
            let staleness_ms = u64::try_from(staleness.as_millis()).unwrap_or(u64::MAX);
            (v1::Consistency::Bounded, staleness_ms, None)
        }
        Consistency::Session(token) => (v1::Consistency::Session, 0, Some(token.to_wire())),
    };
    v1::GetRequest {
        table: table.to_owned(),
        key: key.clone(),
        at_ts: 0,
        consistency: kind as i32,
        staleness_ms,
        session,
    }
}
