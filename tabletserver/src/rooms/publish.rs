//! The way of a message: from any server to the leader of its room's row, from there once to each
//! server with a bit that counts, and back the number of subscribers that were reached.
//!
//! ```text
//!  publisher ─▶ server ─(publish)─▶ leader: read row, number ─(deliver)─▶ servers ─▶ subscribers
//!      ◀─────────── sum ◀──────────────┴──────────── reached ◀───────────────┘
//! ```
//!
//! A message that found no leader is tried again until its deadline; one that may have been carried
//! out is not, so that it reaches nobody twice.

use super::Rooms;
use super::link::{CallFailed, FailedPublications, Waiting};
use super::mailbox::{Held, Mailbox};
use super::members::Message;
use crate::limits;
use crate::node::store_error;
use bytes::Bytes;
use ebla_kernel::ids::{Ordinal, ServerId};
use ebla_kernel::room::row::RoomRow;
use ebla_kernel::room::{ROOMS_TABLE, Stamp, check_message};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_call::Call;
use ebla_proto::v1::room_reply::Reply;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Who waits for what became of a message.
pub enum Publisher {
    /// A call of its own.
    Once(oneshot::Sender<Result<v1::PublishResponse, ApiError>>),
    /// A message of a stream.
    Stream(u64, Arc<Held<v1::PublishAnswer>>),
    /// A message that another server was asked to publish.
    Peer(u64, Arc<Mailbox<v1::RoomReply>>),
    /// Nobody.
    Nobody,
}

impl Publisher {
    fn answer(self, result: Result<v1::PublishResponse, ApiError>) {
        match self {
            // Whoever has gone hears nothing.
            Self::Once(to) => drop(to.send(result)),
            Self::Stream(id, to) => {
                let answer = match result {
                    Ok(v1::PublishResponse { delivered, seq }) => {
                        v1::PublishAnswer { id, delivered, seq, error: None }
                    }
                    Err(error) => v1::PublishAnswer { id, error: Some(error.into()), ..Default::default() },
                };
                to.put_or_end(answer, super::PARCEL_BYTES);
            }
            Self::Peer(id, to) => {
                let reply = match result {
                    Ok(published) => Reply::Published(published),
                    Err(error) => Reply::Error(error.into()),
                };
                to.put_or_end(v1::RoomReply { id, reply: Some(reply) }, super::PARCEL_BYTES);
            }
            Self::Nobody => {}
        }
    }
}

/// A message that is to be published.
pub struct Publication {
    /// The room.
    pub room: Bytes,
    /// What is said.
    pub message: Bytes,
    /// Who waits.
    pub publisher: Publisher,
    /// Until when it is tried.
    pub deadline: Instant,
}

impl Publication {
    /// Tells what became of it.
    pub fn answer(self, result: Result<v1::PublishResponse, ApiError>) {
        self.publisher.answer(result);
    }

    /// It was refused, so nobody has it: it goes on if another try may help.
    pub fn refused(self: Box<Self>, error: ApiError, failed: &FailedPublications) {
        let is_passing = matches!(
            error.reason,
            Reason::NotLeader | Reason::StaleRoute | Reason::Unavailable | Reason::TableNotFound
        );
        if !is_passing {
            self.answer(Err(error));
        } else if let Err(gone) = failed.send((self, CallFailed::NotSent)) {
            gone.0.0.answer(Err(error));
        }
    }
}

/// A message that was not published, and why.
pub struct Unpublished {
    /// The message.
    pub publication: Publication,
    /// Why.
    pub error: ApiError,
}

/// A message on its way to several servers.
pub struct Flight {
    under_way: AtomicUsize,
    reached: AtomicU64,
    seq: u64,
    publisher: Mutex<Option<Publisher>>,
}

impl Flight {
    /// One server has answered.
    pub fn landed(&self, reached: u64) {
        self.reached.fetch_add(reached, Ordering::AcqRel);
        if self.under_way.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let publisher = self.publisher.lock().expect("no holder of this lock panics").take();
        if let Some(publisher) = publisher {
            let delivered = self.reached.load(Ordering::Acquire);
            publisher.answer(Ok(v1::PublishResponse { delivered, seq: self.seq }));
        }
    }
}

/// Where a room's row is served.
pub enum Leader {
    /// Here.
    Here,
    /// There.
    At(ServerId),
}

impl Rooms {
    /// Publishes a message and waits for what became of it.
    ///
    /// # Errors
    /// As the API says of `Publish`.
    pub async fn publish_once(&self, request: v1::PublishRequest) -> Result<v1::PublishResponse, ApiError> {
        let (to, answer) = oneshot::channel();
        let timeout = self.timeout(request.timeout_ms);
        self.publish(Publication {
            room: request.room,
            message: request.message,
            publisher: Publisher::Once(to),
            deadline: Instant::now() + timeout,
        });
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ApiError::new(Reason::Draining, "this server is stopping: ask another one")),
            Err(_) => Err(ApiError::new(
                Reason::TimedOut,
                "not every server with subscribers answered in time: the message may have reached some",
            )),
        }
    }

    /// Sends a message on its way; its publisher is answered later.
    pub fn publish(&self, publication: Publication) {
        if let Err(bad) = check_message(&publication.room, &publication.message) {
            publication.answer(Err(ApiError::new(Reason::BadRequest, bad.to_string())));
            return;
        }
        match self.leader(&publication.room) {
            Ok(Leader::Here) => {
                if let Err(unpublished) = self.publish_here(publication) {
                    let Unpublished { publication, error } = *unpublished;
                    Box::new(publication).refused(error, &self.failed);
                }
            }
            Ok(Leader::At(server)) => {
                let (room, message) = (publication.room.clone(), publication.message.clone());
                let call = Call::Publish(v1::RoomPublish { room, message });
                self.links.call(server, call, Waiting::Publication(Box::new(publication)));
            }
            Err(error) => Box::new(publication).refused(error, &self.failed),
        }
    }

    /// How long a call may wait.
    #[must_use]
    pub fn timeout(&self, timeout_ms: u64) -> Duration {
        let default_ms = ebla_kernel::limits::REQUEST_TIMEOUT_MS_DEFAULT;
        let timeout_ms = if timeout_ms == 0 { default_ms } else { timeout_ms };
        Duration::from_millis(timeout_ms.min(limits::REQUEST_TIMEOUT_MS_MAX))
    }

    /// Who leads the row of a room.
    ///
    /// # Errors
    /// `STALE_ROUTE` while nobody does, as far as this server knows.
    pub fn leader(&self, room: &[u8]) -> Result<Leader, ApiError> {
        let routes = self.node.routes.now();
        let table = routes.table(ROOMS_TABLE).ok_or_else(|| {
            let hint = "the cluster has not made its table of rooms yet: try again in a moment";
            ApiError::new(Reason::StaleRoute, hint)
        })?;
        // What is served here counts more than the map.
        let directory = self.node.directory.load();
        let here = directory.table(table.id).and_then(|tablets| tablets.find(room));
        if here.is_some_and(|tablet| tablet.serving().is_some()) {
            return Ok(Leader::Here);
        }
        let led_by = routes.tablet_of(table.id, room).map_or(0, |tablet| tablet.leader_server_id);
        let own = self.node.peers.identity().map_or(0, |own| own.run.server.0);
        if led_by == 0 || led_by == own {
            let hint = "nobody leads the room's row now: try again in a moment";
            return Err(ApiError::new(Reason::StaleRoute, hint));
        }
        Ok(Leader::At(ServerId(led_by)))
    }

    /// Publishes a message whose room's row is led here.
    ///
    /// # Errors
    /// The message and why it was not published: this server does not lead the row, or has lost
    /// touch with the other copies.
    pub fn publish_here(&self, publication: Publication) -> Result<(), Box<Unpublished>> {
        let (row, epoch) = match self.read_row(&publication.room) {
            Ok(read) => read,
            Err(error) => return Err(Box::new(Unpublished { publication, error })),
        };
        let Publication { room, message, publisher, .. } = publication;
        let servers = self.servers();
        let present: Vec<_> = row.present(&servers.runs).collect();
        if present.is_empty() {
            publisher.answer(Ok(v1::PublishResponse::default()));
            return Ok(());
        }
        // The number is given and the message handed over under one lock: numbers come in order.
        let mut numbers = self.seqs.lock(&room);
        let message = Message { seq: numbers.next(epoch, &room), room, message };
        let flight = Arc::new(Flight {
            under_way: AtomicUsize::new(present.len()),
            reached: AtomicU64::new(0),
            seq: message.seq,
            publisher: Mutex::new(Some(publisher)),
        });
        for (ordinal, stamp) in present {
            match servers.by_ordinal.get(&ordinal) {
                Some(server) if servers.own == Some(ordinal) => {
                    debug_assert_eq!(self.node.peers.identity().map(|own| own.run.server), Some(*server));
                    flight.landed(self.deliver(&message, stamp));
                }
                Some(server) => self.send(*server, &message, stamp, &flight),
                None => flight.landed(0),
            }
        }
        drop(numbers);
        Ok(())
    }

    /// The row of a room and the epoch in which it is led here.
    pub(super) fn read_row(&self, room: &[u8]) -> Result<(RoomRow, u64), ApiError> {
        let table = self.node.table(ROOMS_TABLE)?;
        let tablet = self.node.locate(&table, room)?;
        let epoch = tablet.serving().map_or(0, |epoch| epoch.0);
        let version = self.node.reader.newest(&tablet, room).map_err(store_error)?;
        self.node.check_serving(&table, &tablet, room)?;
        Ok((RoomRow::of(version.as_ref().map(|version| &version.body)), epoch))
    }

    /// The servers that have subscribers of a room whose row is led here.
    ///
    /// # Errors
    /// When this server does not lead it.
    pub fn servers_of(&self, room: &[u8]) -> Result<Vec<u64>, ApiError> {
        let (row, _) = self.read_row(room)?;
        let servers = self.servers();
        let present = row.present(&servers.runs);
        Ok(present.filter_map(|(ordinal, _)| servers.by_ordinal.get(&ordinal)).map(|id| id.0).collect())
    }

    fn send(&self, server: ServerId, message: &Message, stamp: Stamp, flight: &Arc<Flight>) {
        let call = Call::Deliver(v1::RoomDeliver {
            room: message.room.clone(),
            message: message.message.clone(),
            seq: message.seq,
            incarnation: stamp.incarnation.0,
            sub_seq: stamp.sub_seq.0,
        });
        self.links.call(server, call, Waiting::Flight(Arc::clone(flight)));
    }

    /// Hands a message to the subscribers of this server. Nobody there: the bit is taken back.
    pub fn deliver(&self, message: &Message, stamp: Stamp) -> u64 {
        let own = self.node.peers.identity().map(|own| own.run.incarnation);
        if own != Some(stamp.incarnation) {
            return 0;
        }
        self.registry.deliver(message).unwrap_or_else(|| {
            self.registry.stray(self.node.clock.tick(), &message.room, stamp.sub_seq);
            0
        })
    }

    /// Tries again what found no leader, and tells whom no try can help.
    pub async fn retry_publications(
        self: Arc<Self>,
        mut failed: mpsc::UnboundedReceiver<(Box<Publication>, CallFailed)>,
    ) {
        let mut parked: Vec<Box<Publication>> = Vec::new();
        let mut looks = tokio::time::interval(limits::ROOM_LEADER_PAUSE);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                failed = failed.recv() => match failed {
                    Some((publication, CallFailed::NotSent)) if may_wait(&parked, &publication) => {
                        parked.push(publication);
                    }
                    Some((publication, why)) => publication.answer(Err(unpublished(why))),
                    None => return,
                },
                _ = looks.tick(), if !parked.is_empty() => {
                    parked.drain(..).for_each(|publication| self.publish(*publication));
                }
            }
        }
    }
}

fn may_wait(parked: &[Box<Publication>], publication: &Publication) -> bool {
    !matches!(publication.publisher, Publisher::Peer(..))
        && parked.len() < limits::ROOM_PUBLISHES_PARKED_MAX
        && Instant::now() < publication.deadline
}

fn unpublished(why: CallFailed) -> ApiError {
    match why {
        CallFailed::NotSent => ApiError::new(
            Reason::Unavailable,
            "nobody leads the room's row, so the message was not published: try again",
        ),
        CallFailed::Lost => ApiError::new(
            Reason::TimedOut,
            "the leader of the room's row went away: the message may have reached some of the subscribers",
        ),
    }
}

/// The servers of the cluster as rooms know them.
#[derive(Default)]
pub struct Servers {
    /// Version of the map that it was made of.
    pub version: u64,
    /// Their present runs.
    pub runs: Arc<ebla_kernel::room::ServerRuns>,
    /// Whose bit is whose.
    pub by_ordinal: std::collections::HashMap<Ordinal, ServerId>,
    /// The bit of this server.
    pub own: Option<Ordinal>,
}
