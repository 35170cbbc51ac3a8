//! `BootstrapService`: a leader's versions for a copy that is built elsewhere.

use super::chunk;
use super::log_pins::LogPin;
use crate::limits;
use crate::node::Node;
use crate::oplog::Oplog;
use crate::pipeline::Control;
use crate::store::Cursor;
use crate::store::gc::ReadPin;
use crate::tablets::TabletHandle;
use bytes::BytesMut;
use ebla_backup::Rate;
use ebla_kernel::entry::{Entry, LogEnd};
use ebla_kernel::ids::{Epoch, Pos, ReplicaId, Seq, ServerRun, TabletId};
use ebla_kernel::key;
use ebla_kernel::range_tombstones::RangeTombstone;
use ebla_kernel::tablet::token::TokenTable;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::bootstrap_response::Message;
use ebla_proto::v1::bootstrap_service_server::BootstrapService;
use ring::digest;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{debug, info};

/// The service.
pub struct Source {
    node: Arc<Node>,
    oplog: Arc<Oplog>,
    rate: Arc<Rate>,
    room: Arc<Semaphore>,
}

type Answers = mpsc::Sender<Result<v1::BootstrapResponse, Status>>;

/// What a stream sends.
struct Sending {
    node: Arc<Node>,
    rate: Arc<Rate>,
    handle: Arc<TabletHandle>,
    /// The entry that the versions go up to.
    base: Entry,
    /// Of the log up to there; none when the stream goes on where another broke.
    tokens: Option<TokenTable>,
    after: Vec<u8>,
    epoch: Epoch,
    answers: Answers,
    pin: ReadPin,
    log_pin: LogPin,
    _room: OwnedSemaphorePermit,
}

/// The stream's receiver is gone, or the tablet is.
struct Ended;

#[tonic::async_trait]
impl BootstrapService for Source {
    type BootstrapStream = ReceiverStream<Result<v1::BootstrapResponse, Status>>;

    async fn bootstrap(
        &self,
        request: Request<v1::BootstrapRequest>,
    ) -> Result<Response<Self::BootstrapStream>, Status> {
        let request = request.into_inner();
        let run = self.node.peers.check_greeting(&request.greeting.clone().unwrap_or_default())?;
        let (handle, epoch) = self.led(TabletId(request.tablet_id))?;
        self.check_copy(&request, run)?;
        let room = Arc::clone(&self.room).try_acquire_owned();
        let room = room.map_err(|_| {
            ApiError::new(Reason::Overloaded, "this server sends as many copies as it may: try again")
        })?;
        let log_pin = self.node.log_pins.pin(handle.id, ReplicaId(request.replica_id));
        let resumed = self.resumed(&handle, request.resume.as_ref()).await;
        let (base, tokens, after) = match (resumed, request.resume) {
            (Some(base), Some(resume)) => (base, None, resume.after.to_vec()),
            _ => {
                let base = self.base(&handle).await?;
                let tokens = self.tokens(handle.id, base.seq()).await?;
                (base, Some(tokens), Vec::new())
            }
        };
        log_pin.raise(base.seq());
        let (answers, out) = mpsc::channel(limits::BOOTSTRAP_CHUNKS_WAITING);
        let (node, rate, pin) = (Arc::clone(&self.node), Arc::clone(&self.rate), self.node.pins.pin(base.ts));
        info!(tablet = %handle.id, to = %run.server, upto = %base.pos, "sending a copy");
        let sending =
            Sending { node, rate, handle, base, tokens, after, epoch, answers, pin, log_pin, _room: room };
        tokio::task::spawn_blocking(move || sending.run());
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

impl Source {
    /// A service that sends at `rate`.
    #[must_use]
    pub fn new(node: Arc<Node>, oplog: Arc<Oplog>, rate: Arc<Rate>) -> Self {
        Self { node, oplog, rate, room: Arc::new(Semaphore::new(limits::BOOTSTRAPS_OUT_MAX)) }
    }

    /// The tablet, if it is led here.
    fn led(&self, id: TabletId) -> Result<(Arc<TabletHandle>, Epoch), ApiError> {
        let handle = self.node.directory.load().tablet(id).map(Arc::clone);
        let led = handle.and_then(|handle| handle.serving().map(|epoch| (handle, epoch)));
        led.filter(|(handle, _)| handle.may_answer(&self.node.leases))
            .ok_or_else(|| ApiError::new(Reason::NotLeader, format!("tablet {} is not led here", id.0)))
    }

    /// Only a copy that metadata lists is built: others would keep nothing from being purged.
    fn check_copy(&self, request: &v1::BootstrapRequest, run: ServerRun) -> Result<(), ApiError> {
        let routes = self.node.routes.now();
        let known = routes.tablet(TabletId(request.tablet_id));
        let is_meant = |replica: &&v1::Replica| {
            replica.replica_id == request.replica_id && replica.server_id == run.server.0 && !replica.lost
        };
        let copy = known.and_then(|tablet| tablet.replicas.iter().find(is_meant));
        match copy {
            Some(copy) if !copy.in_sync => Ok(()),
            Some(_) | None => {
                let hint = "the map here does not list that copy as one that is to be built: try again";
                Err(ApiError::new(Reason::Unavailable, hint))
            }
        }
    }

    /// The entry that a broken stream went up to, if it still can be sent.
    async fn resumed(
        &self,
        handle: &Arc<TabletHandle>,
        resume: Option<&v1::BootstrapResume>,
    ) -> Option<Entry> {
        let resume = resume?;
        let pos = Pos::new(Epoch(resume.epoch), Seq(resume.seq));
        let is_here = pos.seq <= handle.standing() && pos.seq <= handle.applied_seq();
        let base = self.entry(handle.id, pos.seq).await.filter(|base| is_here && base.pos == pos)?;
        self.node.floors.can_read(handle.table, base.ts).then_some(base)
    }

    /// The last entry that stands and that every in-sync copy has: the log of the new copy begins
    /// there, and should it lead, it must bring the others up from it. When one of them is not
    /// heard of for long, the last one that stands.
    async fn base(&self, handle: &Arc<TabletHandle>) -> Result<Entry, ApiError> {
        let since = Instant::now();
        while since.elapsed() < limits::COPY_READ_PATIENCE {
            let standing = handle.standing();
            let base = standing.min(handle.everywhere().unwrap_or(Seq(0)));
            if let Some(entry) = self.base_at(handle, base).await {
                return Ok(entry);
            }
            if since.elapsed() > limits::COPY_READ_PATIENCE / 2
                && let Some(entry) = self.base_at(handle, standing).await
            {
                return Ok(entry);
            }
            tokio::time::sleep(limits::COPY_READ_LOOK_EVERY).await;
        }
        Err(ApiError::new(Reason::Unavailable, "nothing of the tablet is safe yet: try again"))
    }

    /// An entry that stands, if it is in log and store.
    async fn base_at(&self, handle: &Arc<TabletHandle>, seq: Seq) -> Option<Entry> {
        if seq == Seq(0) || handle.applied_seq() < seq {
            return None;
        }
        let entry = self.entry(handle.id, seq).await?;
        // A copy must know of every seal, and this one would begin behind it (m25).
        (!handle.is_sealed()).then_some(entry)
    }

    async fn entry(&self, tablet: TabletId, seq: Seq) -> Option<Entry> {
        let oplog = Arc::clone(&self.oplog);
        let read = tokio::task::spawn_blocking(move || oplog.read(tablet, seq, 1)).await;
        read.ok()?.ok()?.into_iter().next().filter(|entry| entry.seq() == seq)
    }

    async fn tokens(&self, tablet: TabletId, upto: Seq) -> Result<TokenTable, ApiError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.node.sequencer.control.send(Control::Tokens(tablet, upto, answer));
        let tokens = answered.await.ok().flatten();
        tokens.ok_or_else(|| ApiError::new(Reason::NotLeader, "the tablet is no longer here"))
    }
}

impl Sending {
    /// Sends everything; runs on a thread of its own.
    fn run(mut self) {
        let tablet = self.handle.id;
        let Err(Ended) = self.send_all() else {
            info!(%tablet, "sent a copy");
            return;
        };
        debug!(%tablet, "a copy was not sent to its end");
        // It may be asked for again: what it must hold stays for a while.
        let pin = self.pin;
        tokio::spawn(async move {
            tokio::time::sleep(limits::BOOTSTRAP_PIN_TTL).await;
            drop(pin);
        });
    }

    fn send_all(&mut self) -> Result<(), Ended> {
        let store = Arc::clone(&self.node.reader.store);
        // Before the rows: a range tombstone is collected after what it hid, never before.
        let tombstones = match store.load_range_tombstones(self.handle.table, &self.handle.range) {
            Ok(tombstones) => tombstones,
            Err(error) => return self.fail(&error.to_string()),
        };
        let mut cursor = match store.cold_cursor(self.handle.table, &self.handle.range) {
            Ok(cursor) => cursor,
            Err(error) => return self.fail(&error.to_string()),
        };
        // What is cleared after the cursor was made does not concern it.
        self.check_here()?;
        self.send_manifest(tombstones)?;
        for chunk in self.tokens.take().map(|tokens| tokens.encode()).unwrap_or_default().chunks(1 << 20) {
            self.send(Message::Tokens(chunk.to_vec().into()))?;
        }
        if self.after.is_empty() {
            cursor.seek_first();
        } else {
            cursor.seek(&self.after);
        }
        while self.send_part(&mut *cursor)? {}
        self.send(Message::End(v1::BootstrapEnd {}))
    }

    fn check_here(&self) -> Result<(), Ended> {
        let directory = self.node.directory.load();
        match directory.tablet(self.handle.id).is_some_and(|known| Arc::ptr_eq(known, &self.handle)) {
            true => Ok(()),
            false => self.fail("the tablet is no longer here"),
        }
    }

    fn send_manifest(&self, tombstones: Vec<RangeTombstone>) -> Result<(), Ended> {
        let Some(own) = self.node.peers.identity() else { return self.fail("not registered") };
        let LogEnd { pos, ts, .. } = self.base.end();
        let range = &self.handle.range;
        let within = tombstones.into_iter().filter(|tombstone| tombstone.ts <= ts).filter_map(|tombstone| {
            let covered = tombstone.range.intersect(range)?;
            let to = covered.end().cloned().unwrap_or_default();
            Some(v1::RangeTombstoneAt { from: covered.start().clone(), to, ts: tombstone.ts.0 })
        });
        let epochs = self.handle.epochs.load();
        let begun = epochs.iter().filter(|(_, first)| *first <= pos.seq);
        let begun = begun.map(|(epoch, first)| v1::EpochStartAt { epoch: epoch.0, first_seq: first.0 });
        let (rows_estimate, bytes_estimate) = self.handle.size.get();
        self.send(Message::Manifest(v1::BootstrapManifest {
            last_entry: self.base.encode().into(),
            epochs: begun.collect(),
            leader_replica_id: self.handle.replica.0,
            leader_epoch: self.epoch.0,
            leader_server_id: own.run.server.0,
            leader_incarnation: own.run.incarnation.0,
            disk_generation: own.generation.0,
            tombstones: within.collect(),
            rows_estimate,
            bytes_estimate,
            start: range.start().clone(),
            end: range.end().cloned().unwrap_or_default(),
        }))
    }

    /// Sends the next part; whether there may be more.
    fn send_part(&self, cursor: &mut dyn Cursor) -> Result<bool, Ended> {
        let mut sum = digest::Context::new(&digest::SHA256);
        let (mut bytes, mut versions) = (0, 0);
        loop {
            let (chunk, count, is_end) = self.next_chunk(cursor, limits::BOOTSTRAP_PART_BYTES - bytes)?;
            if !chunk.is_empty() {
                sum.update(&chunk);
                versions += count;
                bytes += chunk.len();
                self.rate.wait(chunk.len());
                metrics::counter!("ebla_bootstrap_sent_bytes_total").increment(chunk.len() as u64);
                self.send(Message::Versions(chunk.freeze()))?;
                self.log_pin.renew();
            }
            if is_end || bytes >= limits::BOOTSTRAP_PART_BYTES {
                let sha256 = sum.finish().as_ref().to_vec().into();
                self.send(Message::Part(v1::BootstrapPart { sha256, versions }))?;
                return Ok(!is_end);
            }
        }
    }

    /// The next versions at or below the base, how many, and whether they are the last.
    fn next_chunk(&self, cursor: &mut dyn Cursor, room: usize) -> Result<(BytesMut, u64, bool), Ended> {
        let bytes_max = room.min(limits::BOOTSTRAP_CHUNK_BYTES);
        let mut chunk = BytesMut::new();
        let mut count = 0;
        while chunk.len() < bytes_max {
            let stored_key = match cursor.stored_key() {
                Ok(Some(stored_key)) => stored_key,
                Ok(None) => return Ok((chunk, count, true)),
                Err(error) => return self.fail(&error.to_string()),
            };
            let Ok((_, ts)) = key::split_ts(stored_key) else { return self.fail("a malformed key") };
            if ts <= self.base.ts && stored_key != &self.after[..] {
                chunk::push(&mut chunk, stored_key, cursor.stored_value());
                count += 1;
            }
            cursor.step();
        }
        Ok((chunk, count, false))
    }

    fn send(&self, message: Message) -> Result<(), Ended> {
        let response = v1::BootstrapResponse { message: Some(message) };
        self.answers.blocking_send(Ok(response)).map_err(|_| Ended)
    }

    /// Tells the receiver why the stream ends.
    fn fail<T>(&self, why: &str) -> Result<T, Ended> {
        let error = ApiError::new(Reason::Unavailable, format!("the copy cannot be sent: {why}"));
        let _ = self.answers.blocking_send(Err(error.into()));
        Err(Ended)
    }
}
