//! What every request task of a server needs, and the way of a request from the wire to an
//! answer: find the tablet, read what must be read, ask the sequencer, check that the tablet
//! still serves.

use crate::backup::Imports;
use crate::clock::Clock;
use crate::copying::LogPins;
use crate::disk::DiskGauge;
use crate::handover::{Checked, Unplaced};
use crate::heat::{Counts, Heat};
use crate::limits;
use crate::meters::Meters;
use crate::pipeline::{Ask, Reply, Request, SequencerHandle, SubmitError};
use crate::promises::Leases;
use crate::read::{Reader, needs_evidence};
use crate::replication::Peers;
use crate::routes::{RouteCache, TableInfo};
use crate::store::StoreError;
use crate::store::gc::{Floors, ReadPin, ReadPins};
use crate::store::memory::MemoryStore;
use crate::store::memory_tables::{Reserved, version_bytes};
use crate::tablets::{Directory, TabletHandle};
use arc_swap::ArcSwap;
use ebla_kernel::hlc::{ClockError, Hlc};
use ebla_kernel::ids::{TabletId, Tick};
use ebla_kernel::limits::{
    RANGE_TOMBSTONES_PER_TABLET_MAX, REQUEST_TIMEOUT_MS_DEFAULT, TOKEN_CLOCK_SLACK_MS,
};
use ebla_kernel::meta::{Eviction, TableKind, is_system_name};
use ebla_kernel::op::{self, AckLevel, Action, Body, Op, Token, Version};
use ebla_kernel::room::row::ROOM_BIT_BYTES;
use ebla_kernel::sequence::{Evidence, Reject};
use ebla_kernel::tablet::{Answer, Refusal};
use ebla_proto::convert;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::oneshot;

/// What request tasks share.
pub struct Node {
    /// Timestamps.
    pub clock: Arc<Clock>,
    /// The tablets here.
    pub directory: ArcSwap<Directory>,
    /// The map of the cluster.
    pub routes: RouteCache,
    /// The rows.
    pub reader: Reader,
    /// The rows of tables in memory, and what they take.
    pub memory: Arc<MemoryStore>,
    /// What reads may still see.
    pub floors: Arc<Floors>,
    /// What reads look at now.
    pub pins: Arc<ReadPins>,
    /// What copies that are sent go on with.
    pub log_pins: Arc<LogPins>,
    /// The way to the cores.
    pub sequencer: SequencerHandle,
    /// Promises between servers.
    pub leases: Arc<Leases>,
    /// The servers that share tablets with this one.
    pub peers: Arc<Peers>,
    /// How full the disk is.
    pub disk: Arc<DiskGauge>,
    /// Set when the server stops: new requests are turned away.
    pub draining: AtomicBool,
    /// Makes tokens for writes that come without one.
    pub tokens: TokenMaker,
    /// Counts requests.
    pub meters: Meters,
    /// Tells which tablets and keys are busy.
    pub heat: Arc<Heat>,
    /// The copies that restores fill.
    pub imports: Arc<Imports>,
}

/// Names writes that came without a name, so that their outcome can be asked for.
pub struct TokenMaker {
    client: u128,
    next: AtomicU64,
}

impl Default for TokenMaker {
    fn default() -> Self {
        Self { client: uuid::Uuid::now_v7().as_u128(), next: AtomicU64::new(1) }
    }
}

impl TokenMaker {
    /// A name that nobody has used.
    pub(crate) fn make(&self) -> Token {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        Token { issued_ms: Clock::wall_ms(), client: self.client, seq }
    }

    /// Whether a token was made here.
    fn made(&self, token: Token) -> bool {
        token.client == self.client
    }
}

/// A write checked and on its way.
pub struct Write {
    /// The tablet of its first row.
    pub tablet: Arc<TabletHandle>,
    /// Its operations, within the limits.
    pub ops: Vec<Op>,
    /// How many copies to wait for.
    pub level: AckLevel,
    /// Its name.
    pub token: Token,
    /// When to stop waiting.
    pub deadline: Tick,
    /// Its room in a table in memory, until it is answered.
    pub room: Option<Reserved>,
}

impl Node {
    /// The table of this name, for clients.
    ///
    /// # Errors
    /// As [`Self::known_table`]; `TABLE_RESTORING` while its rows are brought back from a backup.
    pub fn table(&self, name: &str) -> Result<Arc<TableInfo>, ApiError> {
        let table = self.known_table(name)?;
        match table.table.restoring_job_id {
            0 => Ok(table),
            job => {
                let hint = format!("table {name:?} is being restored by job {job}: `ebla job wait {job}`");
                Err(ApiError::new(Reason::TableRestoring, hint).with("job", job))
            }
        }
    }

    /// The table of this name, whoever may use it.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`, or `UNAVAILABLE` while no map has arrived.
    pub fn known_table(&self, name: &str) -> Result<Arc<TableInfo>, ApiError> {
        let routes = self.routes.now();
        if let Some(info) = routes.table(name) {
            return Ok(Arc::clone(info));
        }
        if routes.version == 0 {
            let hint = "this server has not heard from a master yet: try again, or another server";
            return Err(ApiError::new(Reason::Unavailable, hint));
        }
        let hint = format!("there is no table {name:?}: `ebla table list` shows what there is");
        Err(ApiError::new(Reason::TableNotFound, hint))
    }

    /// The tablet of `key`, if this server serves it.
    ///
    /// # Errors
    /// `NOT_LEADER` or `UNAVAILABLE` with what the map says of the tablet.
    pub fn locate(&self, table: &TableInfo, key: &[u8]) -> Result<Arc<TabletHandle>, ApiError> {
        let directory = self.directory.load();
        let handle = directory.table(table.id).and_then(|tablets| tablets.find(key));
        match handle {
            Some(handle) if handle.serving().is_some() => Ok(Arc::clone(handle)),
            Some(_) | None => Err(self.elsewhere(table, key)),
        }
    }

    /// Says where `key` is served, as far as this server knows.
    #[must_use]
    pub fn elsewhere(&self, table: &TableInfo, key: &[u8]) -> ApiError {
        let routes = self.routes.now();
        let Some(tablet) = routes.tablet_of(table.id, key) else {
            let hint = "this server knows no tablet for the key: fetch the route again";
            return ApiError::new(Reason::StaleRoute, hint);
        };
        let named = |error: ApiError| error.with("tablet", tablet.id).with("epoch", tablet.epoch);
        match routes.server(tablet.leader_server_id) {
            Some(server) => {
                let hint = format!("tablet {} is led by {}: ask there", tablet.id, server.address);
                named(ApiError::new(Reason::NotLeader, hint)).with("leader", &server.address)
            }
            None => {
                let hint = format!("tablet {} has no leader now: try again", tablet.id);
                named(ApiError::new(Reason::Unavailable, hint))
            }
        }
    }

    /// Reads a row.
    ///
    /// # Errors
    /// As the API says of `Get`.
    pub async fn get(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        match self.consistency(request)? {
            v1::Consistency::Bounded | v1::Consistency::Session => {
                return self.get_from_copy(request).await;
            }
            v1::Consistency::Unspecified | v1::Consistency::Linearizable => {}
        }
        if request.at_ts == 0 {
            return match self.get_newest(request) {
                Err(_) if self.is_handed_over_for(request) => self.get_newest_later(request).await,
                read => read,
            };
        }
        let (table, tablet) = self.find_for_read(request)?;
        let at = Hlc(request.at_ts);
        let _pin = self.pin(&table, at)?;
        self.reach(&tablet, at).await?;
        let version = self.reader.at(&tablet, &request.key, at).map_err(store_error)?;
        self.note_read(&tablet, &request.key, version.as_ref());
        self.check_floor(&table, at)?;
        self.check_serving(&table, &tablet, &request.key)?;
        Ok(get_response(version, at))
    }

    /// Reads the newest version of a row, without waiting for anything.
    ///
    /// # Errors
    /// As the API says of `Get`.
    pub fn get_newest(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        let (table, tablet) = self.find_for_read(request)?;
        let version = self.reader.newest(&tablet, &request.key).map_err(store_error)?;
        self.note_read(&tablet, &request.key, version.as_ref());
        self.check_serving(&table, &tablet, &request.key)?;
        Ok(get_response(version, self.clock.now()))
    }

    /// Counts a read of `version` for whoever asks what is busy.
    pub(crate) fn note_read(&self, tablet: &TabletHandle, key: &[u8], version: Option<&Version>) {
        let bytes = key.len() + version.map_or(0, |version| version.body.bytes());
        self.heat.note(tablet, key, Counts::read(bytes));
    }

    fn note_writes(&self, tablet: &TabletHandle, ops: &[Op]) {
        for op in ops {
            let (key, bytes) = match &op.action {
                Action::Set { key, value, .. } => (key, key.len() + value.len()),
                Action::Delete { key, .. } | Action::Room { key, .. } => (key, key.len()),
                Action::Add { key, .. } => (key, key.len() + size_of::<i64>()),
                Action::DeleteRange { from, .. } => (from, from.len()),
            };
            self.heat.note(tablet, key, Counts::write(bytes));
        }
    }

    fn find_for_read(
        &self,
        request: &v1::GetRequest,
    ) -> Result<(Arc<TableInfo>, Arc<TabletHandle>), ApiError> {
        self.meters.get();
        op::check_key(&request.key)?;
        let table = self.table(&request.table)?;
        let tablet = self.locate(&table, &request.key)?;
        Ok((table, tablet))
    }

    /// What a read asks for.
    ///
    /// # Errors
    /// `BAD_REQUEST` for a word of a newer version.
    pub fn consistency(&self, request: &v1::GetRequest) -> Result<v1::Consistency, ApiError> {
        v1::Consistency::try_from(request.consistency).map_err(|_| {
            let hint = format!("unknown consistency {}: leave it at 0 for linearizable", request.consistency);
            ApiError::new(Reason::BadRequest, hint)
        })
    }

    /// The lease is checked after the work (m22): what was read counts only if this server
    /// led the tablet all the while.
    ///
    /// # Errors
    /// `NOT_LEADER` with the new leader, or `UNAVAILABLE` while it has lost touch with the
    /// other copies.
    pub fn check_serving(
        &self,
        table: &TableInfo,
        tablet: &TabletHandle,
        key: &[u8],
    ) -> Result<(), ApiError> {
        if tablet.may_answer(&self.leases) {
            return Ok(());
        }
        if tablet.serving().is_none() {
            return Err(self.elsewhere(table, key));
        }
        self.meters.lease_lost();
        Err(no_lease(tablet))
    }

    /// Keeps the versions that a read at `at` sees, for as long as the pin lives.
    ///
    /// # Errors
    /// `TIMESTAMP_OUT_OF_RANGE` when they may be gone already.
    pub fn pin(&self, table: &TableInfo, at: Hlc) -> Result<ReadPin, ApiError> {
        let pin = self.pins.pin(at);
        if at < self.oldest_kept(table) {
            return Err(self.too_old(table, at));
        }
        self.check_floor(table, at)?;
        Ok(pin)
    }

    /// Whether everything that a read at `at` sees is still there. Asked again after the
    /// work: a floor that was computed just before the pin may have passed it.
    ///
    /// # Errors
    /// `TIMESTAMP_OUT_OF_RANGE`.
    pub fn check_floor(&self, table: &TableInfo, at: Hlc) -> Result<(), ApiError> {
        if self.floors.can_read(table.id, at) { Ok(()) } else { Err(self.too_old(table, at)) }
    }

    fn oldest_kept(&self, table: &TableInfo) -> Hlc {
        Hlc::new(self.clock.now().ms().saturating_sub(table.retention_ms), 0)
    }

    fn too_old(&self, table: &TableInfo, at: Hlc) -> ApiError {
        let oldest = self.oldest_kept(table);
        let hint = format!(
            "timestamp {} is older than the {} ms that table {:?} keeps old versions: read at {} or later",
            at.0, table.retention_ms, table.table.name, oldest.0
        );
        ApiError::new(Reason::TimestampOutOfRange, hint).with("oldest", oldest.0)
    }

    /// Raises the clock above a timestamp from outside.
    ///
    /// # Errors
    /// `TIMESTAMP_OUT_OF_RANGE` for the future.
    pub fn observe(&self, at: Hlc) -> Result<(), ApiError> {
        self.clock.observe(at).map_err(|error| future_timestamp(at, error))
    }

    /// Waits until everything up to `at` is in the store and nothing at or below can follow.
    ///
    /// # Errors
    /// `TIMESTAMP_OUT_OF_RANGE` for the future, or as the sequencer says.
    pub async fn reach(&self, tablet: &TabletHandle, at: Hlc) -> Result<(), ApiError> {
        if at <= tablet.applied_ts() {
            return Ok(());
        }
        self.observe(at)?;
        let answer = self.ask(tablet.id, Ask::Barrier, self.deadline(0)).await?;
        match answer {
            Answer::Reached => Ok(()),
            Answer::Unknown => Err(ApiError::new(
                Reason::TimedOut,
                "the read waited too long for writes in flight: try again",
            )),
            Answer::Refused(_) | Answer::Committed(_) | Answer::Reverted => Err(ApiError::new(
                Reason::NotLeader,
                "the tablet moved while the read waited: fetch the route again",
            )),
        }
    }

    /// Checks a write and finds its tablet.
    ///
    /// # Errors
    /// As the API says of `Write`; nothing was written.
    pub fn prepare_write(&self, request: v1::WriteRequest) -> Result<Write, Box<Unplaced>> {
        self.place(self.check_write(request)?)
    }

    fn check_write(&self, request: v1::WriteRequest) -> Result<Checked, ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::new(Reason::Draining, "this server is stopping: fetch the route again"));
        }
        self.meters.write();
        if is_system_name(&request.table) {
            let hint = format!("table {} belongs to the system: write to a table of yours", request.table);
            return Err(ApiError::new(Reason::BadRequest, hint));
        }
        let ops = convert::ops(request.ops)?;
        let table = self.table(&request.table)?;
        let level = check_level(convert::ack(request.ack.as_ref())?.unwrap_or(table.ack), &table)?;
        let token = match convert::token(request.token.as_ref())? {
            Some(token) => check_token(token)?,
            None => self.tokens.make(),
        };
        Ok(Checked { table, ops, level, token, deadline: self.deadline(request.timeout_ms) })
    }

    /// Lets a write into the tablet that it is for.
    ///
    /// # Errors
    /// When disk or tablet take no such operations now.
    pub(crate) fn admit(&self, tablet: Arc<TabletHandle>, write: Checked) -> Result<Write, ApiError> {
        let Checked { table: _, ops, level, token, deadline } = write;
        self.check_room(&ops, &tablet)?;
        let room = match tablet.kind {
            TableKind::Durable => None,
            TableKind::Memory => Some(self.take_memory(&tablet, token, &ops)?),
        };
        self.note_writes(&tablet, &ops);
        Ok(Write { tablet, ops, level, token, deadline, room })
    }

    /// Room in memory for what `ops` add. Deletes go on a little above the limit: they free.
    fn take_memory(&self, tablet: &TabletHandle, token: Token, ops: &[Op]) -> Result<Reserved, ApiError> {
        let table = self.memory.tables().add(tablet.table);
        let (bytes, adds) = added_bytes(ops);
        let limit = table.limit().unwrap_or(u64::MAX);
        if !adds && table.takes_deletes() {
            return Ok(table.reserve_anyway(bytes));
        }
        // One that was named here is another at its next try, and could not keep its place.
        let named_by_client = (!self.tokens.made(token)).then_some(token);
        if let Some(room) = table.reserve(named_by_client, bytes) {
            return Ok(room);
        }
        self.meters.memory_refused();
        if bytes > limit {
            let hint = format!(
                "the write takes {bytes} bytes of memory, more than the limit of {limit} bytes of its table; nothing was \
                 written: write less at once, or give the table more room with `ebla table set` and --max-memory"
            );
            return Err(ApiError::new(Reason::MemoryLimit, hint).with("limit", limit));
        }
        if adds && table.eviction() == Eviction::None {
            let hint = format!(
                "the table is at its limit of {limit} bytes in memory on this server; nothing was written: \
                 delete rows, or give it more room with `ebla table set` and --max-memory or --eviction"
            );
            return Err(ApiError::new(Reason::MemoryLimit, hint).with("limit", limit));
        }
        let hint = "rows are being removed from the table to make room; nothing was written: try again a little later";
        Err(ApiError::new(Reason::Overloaded, hint))
    }

    /// Whether disk and tablet take these operations.
    fn check_room(&self, ops: &[Op], tablet: &TabletHandle) -> Result<(), ApiError> {
        let adds_rows = ops.iter().any(|op| matches!(op.action, Action::Set { .. } | Action::Add { .. }));
        match tablet.kind {
            TableKind::Durable => self.disk.check(adds_rows)?,
            TableKind::Memory => {}
        }
        let deletes_range = ops.iter().any(|op| matches!(op.action, Action::DeleteRange { .. }));
        if deletes_range && tablet.tombstones.load().len() >= RANGE_TOMBSTONES_PER_TABLET_MAX {
            let hint = format!(
                "tablet {} already has {RANGE_TOMBSTONES_PER_TABLET_MAX} range tombstones: \
                 wait for the table's retention to pass, or delete larger ranges",
                tablet.id.0
            );
            return Err(ApiError::new(Reason::LimitReached, hint));
        }
        Ok(())
    }

    /// Runs a write to its end, reading again as often as needed.
    ///
    /// # Errors
    /// As the API says of `Write`; nothing was written.
    pub async fn write(&self, write: Write) -> Result<v1::WriteResponse, ApiError> {
        let began = Instant::now();
        let result = self.run_write(write).await;
        self.meters.write_took(began.elapsed());
        if let Err(error) = &result {
            self.meters.refused(error.reason);
        }
        result
    }

    async fn run_write(&self, write: Write) -> Result<v1::WriteResponse, ApiError> {
        let Write { tablet, ops, level, token, deadline, room: _room } = write;
        loop {
            let evidence = self.evidence(&tablet, &ops)?;
            let ask = Ask::Write { ops: ops.clone(), level, token: Some(token), evidence };
            match self.ask(tablet.id, ask, deadline).await? {
                Answer::Refused(Refusal::Rejected(Reject::ReadAgain)) if self.clock.tick() < deadline => {}
                answer => return self.write_response(&tablet, answer, token),
            }
        }
    }

    /// What the sequencer must know to run `ops`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn evidence(&self, tablet: &TabletHandle, ops: &[Op]) -> Result<Evidence, ApiError> {
        if !needs_evidence(ops) {
            return Ok(Evidence::default());
        }
        self.reader.evidence(tablet, ops).map_err(store_error)
    }

    /// The answer to a write, for the wire.
    ///
    /// # Errors
    /// When it was refused.
    pub fn write_response(
        &self,
        tablet: &TabletHandle,
        answer: Answer,
        token: Token,
    ) -> Result<v1::WriteResponse, ApiError> {
        match answer {
            Answer::Committed(committed) => {
                let session = v1::SessionToken {
                    lineage: tablet.ancestry.lineage.0,
                    epoch: committed.pos.epoch.0,
                    seq: committed.pos.seq.0,
                    ts: committed.ts.0,
                };
                let response = convert::committed_to_wire(committed, Some(token));
                Ok(v1::WriteResponse { session: Some(session), tablet_id: tablet.id.0, ..response })
            }
            Answer::Reverted => Ok(undecided(v1::WriteOutcome::Reverted, token)),
            Answer::Unknown | Answer::Reached => Ok(undecided(v1::WriteOutcome::Unknown, token)),
            Answer::Refused(refusal) => Err(self.refusal(tablet, refusal)),
        }
    }

    /// Tells how a write ended, fencing its token when it was never seen.
    ///
    /// # Errors
    /// As the API says of `GetOutcome`.
    pub async fn outcome(&self, request: &v1::GetOutcomeRequest) -> Result<v1::GetOutcomeResponse, ApiError> {
        let hint = "give the token that the write answered with";
        let token =
            convert::token(request.token.as_ref())?.ok_or_else(|| ApiError::new(Reason::BadRequest, hint))?;
        op::check_key(&request.key)?;
        let table = self.table(&request.table)?;
        let tablet = self.locate(&table, &request.key)?;
        let answer = self.ask(tablet.id, Ask::GetOutcome { token }, self.deadline(0)).await?;
        let response = self.write_response(&tablet, answer, token)?;
        Ok(v1::GetOutcomeResponse {
            outcome: response.outcome,
            ts: response.ts,
            epoch: response.epoch,
            seq: response.seq,
            results: response.results,
        })
    }

    /// Asks a core and waits for its answer.
    ///
    /// # Errors
    /// `OVERLOADED` or `DRAINING`; nothing was done.
    async fn ask(&self, tablet: TabletId, ask: Ask, deadline: Tick) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Request { tablet, ask, deadline, reply: Reply::Once(reply) })?;
        // A pipeline that ends drops its waiters; what they asked may have happened.
        Ok(answer.await.unwrap_or(Answer::Unknown))
    }

    /// Hands a request to the sequencer.
    ///
    /// # Errors
    /// `OVERLOADED` or `DRAINING`; nothing was done.
    pub fn submit(&self, request: Request) -> Result<(), ApiError> {
        self.sequencer.submit(request).map_err(|error| match error {
            SubmitError::Full => {
                ApiError::new(Reason::Overloaded, "too many requests are waiting: try again a little later")
            }
            SubmitError::Stopped => {
                ApiError::new(Reason::Draining, "this server is stopping: fetch the route again")
            }
        })
    }

    /// When a request with this timeout (0: the default) has waited long enough.
    #[must_use]
    pub fn deadline(&self, timeout_ms: u64) -> Tick {
        let timeout_ms = if timeout_ms == 0 { REQUEST_TIMEOUT_MS_DEFAULT } else { timeout_ms };
        self.clock.tick().plus_ms(timeout_ms.min(limits::REQUEST_TIMEOUT_MS_MAX))
    }

    /// Others have taken the tablet's place; the first try is here, where their leader was.
    fn retired(&self, tablet: &TabletHandle) -> ApiError {
        let hint = format!(
            "other tablets have taken the place of tablet {}; nothing was written: fetch the route again",
            tablet.id.0
        );
        let error = ApiError::new(Reason::StaleRoute, hint).with("tablet", tablet.id.0);
        let own = self.peers.identity().map_or(0, |own| own.run.server.0);
        match self.routes.now().server(own) {
            Some(server) => error.with("leader", &server.address),
            None => error,
        }
    }

    fn refusal(&self, tablet: &TabletHandle, refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::NotLeader => {
                let hint =
                    format!("tablet {} is not served here any more: fetch the route again", tablet.id.0);
                ApiError::new(Reason::NotLeader, hint).with("tablet", tablet.id.0)
            }
            Refusal::OutOfRange => {
                let hint = format!(
                    "a batch is atomic within one tablet, and not all of its rows lie in tablet {} {}: \
                     cut the batch by tablet; nothing was written",
                    tablet.id.0, tablet.range
                );
                ApiError::new(Reason::BatchSpansTablets, hint).with("tablet", tablet.id.0)
            }
            Refusal::NoLease => no_lease(tablet),
            Refusal::Transferring => {
                let hint = format!(
                    "tablet {} is being handed over to another server; nothing was written: try again",
                    tablet.id.0
                );
                ApiError::new(Reason::Unavailable, hint).with("tablet", tablet.id.0)
            }
            Refusal::Sealed => {
                let hint = format!(
                    "other tablets are about to take the place of tablet {}; nothing was written: try again",
                    tablet.id.0
                );
                ApiError::new(Reason::Unavailable, hint).with("tablet", tablet.id.0)
            }
            Refusal::Retired => self.retired(tablet),
            Refusal::Busy => ApiError::new(
                Reason::Overloaded,
                "too many writes of the tablet wait for copies; nothing was written: try again a little later",
            ),
            Refusal::WaitTimedOut => ApiError::new(
                Reason::TimedOut,
                "an earlier write of the same row still waits for copies; nothing was written: try again",
            ),
            Refusal::NotEnoughReplicas => ApiError::new(
                Reason::NotEnoughReplicas,
                "fewer copies are in sync than the write asked for; nothing was written: \
                 wait for copies to return, or ask for fewer",
            ),
            Refusal::TokenTooOld => ApiError::new(
                Reason::TokenTooOld,
                "the token is older than the five minutes that tokens are remembered; it was not run now: \
                 read the row to see whether the write took effect, or check the client's clock",
            ),
            Refusal::TokenFenced => ApiError::new(
                Reason::TokenFenced,
                "somebody asked for this token's outcome and was told that it never ran, so it never will: \
                 write again under a new token",
            ),
            Refusal::Rejected(reject) => rejected(reject),
        }
    }
}

fn no_lease(tablet: &TabletHandle) -> ApiError {
    let hint = format!(
        "the leader of tablet {} has lost touch with the other copies; nothing was written: try again",
        tablet.id.0
    );
    ApiError::new(Reason::Unavailable, hint).with("tablet", tablet.id.0)
}

fn rejected(reject: Reject) -> ApiError {
    match reject {
        Reject::ReadAgain | Reject::Pending => {
            ApiError::new(Reason::Overloaded, "the row changes faster than it can be read: try again")
        }
        Reject::ConditionFailed { op, actual } => {
            let present = actual.map_or("there is no live version".to_owned(), |ts| {
                format!("the live version has timestamp {}", ts.0)
            });
            let hint = format!(
                "the condition of operation {op} does not hold ({present}); nothing was written: \
                 read the row and decide anew"
            );
            let error = ApiError::new(Reason::ConditionFailed, hint).with("op", op);
            match actual {
                Some(ts) => error.with("actual_ts", ts.0),
                None => error,
            }
        }
        Reject::NotACounter { op } => {
            let hint = format!(
                "operation {op} adds to a row that is not a counter: delete the row first, or use another key"
            );
            ApiError::new(Reason::NotACounter, hint).with("op", op)
        }
        Reject::CounterOverflow { op, value } => {
            let hint = format!(
                "operation {op} leaves the range of a signed 64-bit counter, which is at {value}; nothing was written"
            );
            ApiError::new(Reason::CounterOverflow, hint).with("op", op).with("value", value)
        }
    }
}

fn undecided(outcome: v1::WriteOutcome, token: Token) -> v1::WriteResponse {
    v1::WriteResponse {
        outcome: outcome as i32,
        token: Some(convert::token_to_wire(token)),
        ..v1::WriteResponse::default()
    }
}

/// What operations add to a table in memory at most, and whether any adds more than a tombstone.
fn added_bytes(ops: &[Op]) -> (u64, bool) {
    let (mut bytes, mut adds) = (0, false);
    for op in ops {
        let (key, value, is_row) = match &op.action {
            Action::Set { key, value, .. } => (key, value.len(), true),
            Action::Add { key, .. } => (key, size_of::<i64>(), true),
            Action::Delete { key, .. } => (key, 0, false),
            Action::Room { key, .. } => (key, ROOM_BIT_BYTES, true),
            Action::DeleteRange { from, to } => (from, to.as_ref().map_or(0, bytes::Bytes::len), false),
        };
        bytes += version_bytes(key.len(), value);
        adds |= is_row;
    }
    (bytes, adds)
}

/// A key by which the tablet of a batch is found; the kernel checks the others.
pub(crate) fn first_key(ops: &[Op]) -> &[u8] {
    match ops.first().map(|op| &op.action) {
        Some(
            Action::Set { key, .. }
            | Action::Delete { key, .. }
            | Action::Add { key, .. }
            | Action::Room { key, .. },
        ) => key,
        Some(Action::DeleteRange { from, .. }) => from,
        None => &[],
    }
}

fn check_level(level: AckLevel, table: &TableInfo) -> Result<AckLevel, ApiError> {
    let AckLevel::Copies(copies) = level else { return Ok(level) };
    let copies = u32::from(copies);
    if copies > table.replicas || copies < table.min_in_sync {
        let hint = format!(
            "ack copies={copies} does not fit table {:?}: give {} to {}",
            table.table.name, table.min_in_sync, table.replicas
        );
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    Ok(level)
}

/// A token from the future would outlive the window in which retries are recognised.
fn check_token(token: Token) -> Result<Token, ApiError> {
    let ahead_ms = token.issued_ms.saturating_sub(Clock::wall_ms());
    if ahead_ms > TOKEN_CLOCK_SLACK_MS {
        let hint = format!("the token was issued {ahead_ms} ms in the future: set the client's clock");
        return Err(ApiError::new(Reason::BadRequest, hint));
    }
    Ok(token)
}

fn future_timestamp(at: Hlc, error: ClockError) -> ApiError {
    let ahead_ms = match error {
        ClockError::TooFarAhead { ahead_ms } => ahead_ms,
        ClockError::BoundReached => 0,
    };
    let hint = format!("timestamp {} lies {ahead_ms} ms in the future: read at the present or before", at.0);
    ApiError::new(Reason::TimestampOutOfRange, hint)
}

/// The answer to a read at `at` that found `version`.
pub fn get_response(version: Option<Version>, at: Hlc) -> v1::GetResponse {
    match version.filter(|version| version.is_live(at)) {
        None => v1::GetResponse::default(),
        Some(version) => {
            let (value, counter) = body_to_wire(version.body);
            v1::GetResponse { found: true, value, ts: version.ts.0, counter, at_ts: 0 }
        }
    }
}

/// A row's value, and whether it is a counter.
#[must_use]
pub fn body_to_wire(body: Body) -> (bytes::Bytes, bool) {
    match body {
        Body::Tombstone(_) => (bytes::Bytes::new(), false),
        Body::Value(value) => (value, false),
        Body::Counter(count) => (bytes::Bytes::copy_from_slice(&count.to_be_bytes()), true),
    }
}

/// What a client is told of a store that cannot be read.
#[must_use]
pub fn store_error(error: StoreError) -> ApiError {
    tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
    let reason = match error {
        StoreError::Corrupt { .. } => Reason::Corrupt,
        StoreError::NewerFormat { .. } | StoreError::Engine { .. } => Reason::Internal,
    };
    ApiError::new(reason, format!("the row cannot be read: {error}"))
}
