//! The client itself: what it shares, how it connects, and calls to the leader of a key.

use crate::channel::{Channels, Lane, connect};
use crate::error::Error;
use crate::limits::{MESSAGE_BYTES_MAX, TABLES_CACHED_MAX, TIMEOUT_DEFAULT};
use crate::outcome::{Committed, Outcome, Ticket};
use crate::pipe::{Failure, Pipes, expect_get};
use crate::retry::{Backoff, Deadline};
use crate::route::{RouteCache, TabletRoute};
use crate::route_source::unreachable;
use crate::row::Cell;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{AckLevel, Token, check_key};
use ebla_proto::convert;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::kv_service_client::KvServiceClient;
use ebla_proto::v1::pipe_call::Call;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
}

impl Builder {
    /// The addresses, as HOST:PORT, of masters or tablet servers in any mix. One that answers
    /// is enough; the others are learned.
    #[must_use]
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// The deadline of each request; ten seconds when not given.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// `BAD_REQUEST` for an endpoint that is not HOST:PORT, `UNAVAILABLE` naming every
    /// endpoint when none answers.
    pub async fn connect(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::new(Reason::BadRequest, "no endpoint is given: give at least one HOST:PORT"));
        }
        let shared = Shared::new(self.endpoints);
        shared.reach_one(self.timeout).await?;
        Ok(Client { shared: Arc::new(shared), timeout: self.timeout })
    }
}

/// A connection to a cluster. Clones are cheap and share everything.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
}

/// What the clones of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    endpoints: Vec<String>,
    pub(crate) channels: Channels,
    pub(crate) pipes: Pipes,
    pub(crate) routes: RouteCache,
    /// The last source of routes that answered.
    last_source: Mutex<Option<String>>,
    /// When each table's routes were last asked for; its lock lets one ask for many.
    refreshes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Instant>>>>>,
    watched: Mutex<HashSet<String>>,
    client_id: u128,
    next_seq: AtomicU64,
    /// Dropped with the client; what runs for it in the background ends then.
    alive: watch::Sender<()>,
}

impl Shared {
    fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            channels: Channels::default(),
            pipes: Pipes::default(),
            routes: RouteCache::default(),
            last_source: Mutex::default(),
            refreshes: Mutex::default(),
            watched: Mutex::default(),
            client_id: rand::random(),
            next_seq: AtomicU64::new(1),
            alive: watch::Sender::new(()),
        }
    }

    /// Tries all endpoints at once and keeps every connection made until one is.
    async fn reach_one(&self, timeout: Duration) -> Result<(), Error> {
        let attempts = self.endpoints.iter().map(async |address| (address, connect(address).await));
        let mut attempts: FuturesUnordered<_> = attempts.collect();
        let mut tried = Vec::new();
        let first = async {
            while let Some((address, connected)) = attempts.next().await {
                match connected {
                    Ok(channel) => {
                        self.channels.keep(address, channel);
                        return Ok(());
                    }
                    Err(error) if error.reason() == Reason::BadRequest => return Err(error),
                    Err(error) => tried.push(format!("{address} ({error})")),
                }
            }
            Err(unreachable(&tried))
        };
        match tokio::time::timeout(timeout, first).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(&self.endpoints)),
        }
    }

    /// The addresses that the client was given.
    pub(crate) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Addresses to ask for routes, the most promising first.
    pub(crate) fn sources(&self) -> Vec<String> {
        let last = self.last_source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = last.into_iter().chain(self.endpoints.iter().cloned()).chain(self.routes.addresses());
        distinct(all)
    }

    /// Addresses that may be masters, the most promising first.
    pub(crate) fn master_candidates(&self) -> Vec<String> {
        distinct(self.routes.masters().into_iter().chain(self.endpoints.iter().cloned()))
    }

    pub(crate) fn remember_source(&self, address: &str) {
        *self.last_source.lock().unwrap_or_else(PoisonError::into_inner) = Some(address.to_owned());
    }

    /// Resolves when the client is dropped.
    pub(crate) fn stopped(&self) -> watch::Receiver<()> {
        self.alive.subscribe()
    }

    /// Notes that a table is being watched; false when it already was.
    pub(crate) fn begin_watching(&self, table: &str) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(table.to_owned())
    }

    /// Notes that a table is watched no longer.
    pub(crate) fn end_watching(&self, table: &str) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(table);
    }

    /// A name for one write of this client.
    pub(crate) fn new_token(&self) -> Token {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let issued_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Token { issued_ms, client: self.client_id, seq: self.next_seq.fetch_add(1, Ordering::Relaxed) }
    }

    /// Fetches the routes of `table` unless somebody asked for them after `since`; callers
    /// that meet the same wrong route share one question.
    pub(crate) async fn refresh(
        self: &Arc<Self>,
        table: &str,
        since: Instant,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let slot = self.refresh_slot(table);
        let mut asked = slot.lock().await;
        if asked.is_some_and(|asked| asked > since) && self.routes.knows(table) {
            return Ok(());
        }
        let now = Instant::now();
        self.fetch_routes(table, deadline).await?;
        *asked = Some(now);
        Ok(())
    }

    fn refresh_slot(&self, table: &str) -> Arc<tokio::sync::Mutex<Option<Instant>>> {
        let mut refreshes = self.refreshes.lock().unwrap_or_else(PoisonError::into_inner);
        if refreshes.len() >= TABLES_CACHED_MAX && !refreshes.contains_key(table) {
            refreshes.clear();
        }
        refreshes.entry(table.to_owned()).or_default().clone()
    }
}

pub(crate) fn distinct(addresses: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    addresses.filter(|address| seen.insert(address.clone())).collect()
}

/// Which tablet of a table a call is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// The one that holds this key.
    At(&'a Bytes),
    /// The one that holds the keys just below this key; with an empty key the last one.
    Below(&'a Bytes),
}

/// The tries of one request.
#[derive(Debug)]
pub(crate) struct Tries {
    pub(crate) deadline: Deadline,
    backoff: Backoff,
    /// Address that the last server named as the leader.
    hint: Option<String>,
    /// When the present try looked for its route.
    pub(crate) began: Instant,
    count: u32,
}

impl Tries {
    pub(crate) fn new(deadline: Deadline) -> Self {
        Self { deadline, backoff: Backoff::new(), hint: None, began: Instant::now(), count: 0 }
    }

    /// Learns from a failed try and waits for the next. False when the deadline has passed.
    pub(crate) async fn again(&mut self, shared: &Arc<Shared>, table: &str, error: &Error) -> bool {
        self.count += 1;
        self.hint = error.fact("leader").filter(|hint| hint.contains(':')).map(str::to_owned);
        if self.hint.is_some() && self.count == 1 {
            return !self.deadline.has_passed();
        }
        if !self.backoff.pause(self.deadline, error).await {
            return false;
        }
        if error.is_about_the_route() {
            // A failed refresh leaves the old route in place; the next try tells.
            let refreshed = shared.refresh(table, self.began, self.deadline).await;
            if let Err(error) = refreshed {
                tracing::debug!(table, %error, "routes could not be refreshed");
            }
        }
        !self.deadline.has_passed()
    }
}

impl Client {
    /// Begins to describe a client.
    #[must_use]
    pub fn builder() -> Builder {
        Builder { endpoints: Vec::new(), timeout: TIMEOUT_DEFAULT }
    }

    /// The same client with another deadline per request.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { shared: self.shared.clone(), timeout }
    }

    /// The tablet that holds `key`, as far as is known.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, or `UNAVAILABLE` when nobody can tell.
    pub async fn route(&self, table: &str, key: &Bytes) -> Result<TabletRoute, Error> {
        self.find_route(table, Place::At(key), Deadline::after(self.timeout)).await
    }

    /// Checks that a write of `table` may ask for `level`, as far as is known here; whoever has
    /// much to write asks first.
    ///
    /// # Errors
    /// `BAD_REQUEST` for `copies=n` with n outside of what the table has; as [`Self::route`].
    pub async fn check_ack(&self, table: &str, level: AckLevel) -> Result<(), Error> {
        let AckLevel::Copies(copies) = level else { return Ok(()) };
        self.route(table, &Bytes::new()).await?;
        let Some(spec) = self.shared.routes.spec(table) else { return Ok(()) };
        if (spec.min_in_sync..=spec.replicas).contains(&u32::from(copies)) {
            return Ok(());
        }
        let hint = format!(
            "ack copies={copies} is not possible in table {table:?}: give {} to {} copies",
            spec.min_in_sync, spec.replicas
        );
        Err(Error::new(Reason::BadRequest, hint))
    }

    /// The newest version of a row; none when there is no such row.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `TABLE_NOT_FOUND`, `UNAVAILABLE`, `TIMED_OUT` and what a server reports.
    pub async fn get(&self, table: &str, key: impl Into<Bytes>) -> Result<Option<Cell>, Error> {
        self.get_version(table, key.into(), None).await
    }

    /// The version of a row at a timestamp.
    ///
    /// # Errors
    /// As [`Self::get`], and `TIMESTAMP_OUT_OF_RANGE` when it is no longer kept.
    pub async fn get_at(&self, table: &str, key: impl Into<Bytes>, at: Hlc) -> Result<Option<Cell>, Error> {
        self.get_version(table, key.into(), Some(at)).await
    }

    async fn get_version(&self, table: &str, key: Bytes, at: Option<Hlc>) -> Result<Option<Cell>, Error> {
        check_key(&key)?;
        let request = get_request(table, &key, at);
        let response =
            self.at_leader(table, &key, |address| self.get_on_pipe(address, request.clone())).await?;
        Cell::from_wire(response)
    }

    pub(crate) async fn get_on_pipe(
        &self,
        address: String,
        request: v1::GetRequest,
    ) -> Result<v1::GetResponse, Error> {
        match self.shared.pipes.call(&self.shared.channels, &address, Call::Get(request)).await {
            Ok(answer) => expect_get(answer),
            Err(Failure::NotSent(error) | Failure::Lost(error)) => Err(error),
        }
    }

    /// As [`Self::get`], by a call of its own instead of a frame. Slower; there to compare.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_unary(&self, table: &str, key: impl Into<Bytes>) -> Result<Option<Cell>, Error> {
        let key = key.into();
        check_key(&key)?;
        let request = get_request(table, &key, None);
        let call = |address: String| {
            let request = request.clone();
            async move {
                let response = self.kv(&address, Lane::Calls)?.get(request).await;
                Ok(response.map_err(|status| Error::from_status(&status))?.into_inner())
            }
        };
        Cell::from_wire(self.at_leader(table, &key, call).await?)
    }

    /// How a write ended whose outcome was unknown. The answer is final unless it is
    /// [`Outcome::Unknown`]: a write that was not found can never run afterwards.
    ///
    /// # Errors
    /// As [`Self::get`], and `TOKEN_TOO_OLD` when the servers no longer remember.
    pub async fn outcome(&self, ticket: &Ticket) -> Result<Outcome, Error> {
        let request = v1::GetOutcomeRequest {
            token: Some(convert::token_to_wire(ticket.token)),
            table: ticket.table.clone(),
            key: ticket.key.clone(),
        };
        let call = |address: String| {
            let request = request.clone();
            async move {
                let response = self.kv(&address, Lane::Calls)?.get_outcome(request).await;
                Ok(response.map_err(|status| Error::from_status(&status))?.into_inner())
            }
        };
        let response = self.at_leader(&ticket.table, &ticket.key, call).await?;
        Ok(match response.outcome() {
            v1::WriteOutcome::Committed => Outcome::Committed(Committed {
                ts: Hlc(response.ts),
                epoch: response.epoch,
                seq: response.seq,
                level: None,
                tablet_id: 0,
                counters: response.results.iter().map(|result| result.counter).collect(),
                session: None,
            }),
            v1::WriteOutcome::Reverted => Outcome::Reverted,
            v1::WriteOutcome::Unknown | v1::WriteOutcome::Unspecified => Outcome::Unknown(ticket.clone()),
        })
    }

    pub(crate) fn kv(
        &self,
        address: &str,
        lane: Lane,
    ) -> Result<KvServiceClient<tonic::transport::Channel>, Error> {
        let client = KvServiceClient::new(self.shared.channels.get(address, lane)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Makes a call that may be run twice at the leader of `key`, again and again until it
    /// succeeds, is refused for good, or the deadline passes.
    pub(crate) async fn at_leader<T, F, C>(&self, table: &str, key: &Bytes, call: C) -> Result<T, Error>
    where
        C: Fn(String) -> F,
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Deadline::after(self.timeout);
        let mut tries = Tries::new(deadline);
        loop {
            let one_try = async { call(self.leader(table, Place::At(key), &mut tries).await?).await };
            let error = match tokio::time::timeout_at(deadline.at, one_try).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if !error.is_worth_a_retry() => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(Error::timed_out("the request", self.timeout, None)),
            };
            if !tries.again(&self.shared, table, &error).await {
                return Err(Error::timed_out("the request", self.timeout, Some(&error)));
            }
        }
    }

    /// Address of the server to try next.
    pub(crate) async fn leader(
        &self,
        table: &str,
        place: Place<'_>,
        tries: &mut Tries,
    ) -> Result<String, Error> {
        tries.began = Instant::now();
        if let Some(hint) = tries.hint.take() {
            return Ok(hint);
        }
        leader_of(&self.find_route(table, place, tries.deadline).await?)
    }

    pub(crate) async fn find_route(
        &self,
        table: &str,
        place: Place<'_>,
        deadline: Deadline,
    ) -> Result<TabletRoute, Error> {
        let routes = &self.shared.routes;
        let find = || match place {
            Place::At(key) => routes.find(table, key),
            Place::Below(key) => routes.find_below(table, key),
        };
        if let Some(route) = find() {
            return Ok(route);
        }
        self.shared.refresh(table, Instant::now(), deadline).await?;
        find().ok_or_else(|| {
            let hint = format!("no tablet of table {table:?} is known for the key yet: try again");
            Error::new(Reason::StaleRoute, hint)
        })
    }
}

/// Who leads, or the error that nobody does.
pub(crate) fn leader_of(route: &TabletRoute) -> Result<String, Error> {
    route.leader.clone().ok_or_else(|| {
        let hint = format!("tablet {} has no leader now: see `ebla server list`", route.tablet_id);
        Error::new(Reason::Unavailable, hint)
    })
}

fn get_request(table: &str, key: &Bytes, at: Option<Hlc>) -> v1::GetRequest {
    v1::GetRequest {
        table: table.to_owned(),
        key: key.clone(),
        at_ts: at.map_or(0, |at| at.0),
        consistency: v1::Consistency::Linearizable as i32,
        staleness_ms: 0,
        session: None,
    }
}
