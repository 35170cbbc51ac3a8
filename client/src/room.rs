//! Rooms: whoever is in a room gets what is published to it.
//!
//! - A subscriber is one stream to one tablet server and carries many rooms. It is in a room when
//!   [`RoomSubscriber::join`] has returned: what is published from then on comes, unless something
//!   fails.
//! - When the stream breaks the subscriber goes to another server and joins its rooms again; what
//!   was published meanwhile is gone, and numbers that jump show it.
//! - A message that may have been published is not published again.

use crate::channel::Lane;
use crate::client::{Client, Place};
use crate::error::Error;
use crate::limits::{MESSAGE_BYTES_MAX, ROOMS_PER_REQUEST, SUBSCRIBE_REQUESTS_WAITING};
use crate::retry::{Backoff, Deadline};
use bytes::Bytes;
use ebla_kernel::room::{ROOMS_TABLE, check_message, check_name};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_service_client::RoomServiceClient;
use rand::seq::SliceRandom as _;
use std::collections::{BTreeSet, VecDeque};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// What was said in a room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomMessage {
    /// The room.
    pub room: Bytes,
    /// What was said.
    pub message: Bytes,
    /// Its number in the room; one that is not the next one shows that others were missed, or,
    /// where `seq >> 40` is another, that another server gives the numbers now.
    pub seq: u64,
}

/// What comes to a subscriber.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RoomEvent {
    /// A message.
    Message(RoomMessage),
    /// The stream broke; the rooms were joined again at this server. Messages may have been missed.
    Rejoined(String),
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// Subscribers that it was handed to.
    pub delivered: u64,
    /// Its number in the room; 0 when nobody was there.
    pub seq: u64,
}

/// Who is in a room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Who {
    /// How many.
    pub subscribers: u64,
    /// Servers at which they are.
    pub server_ids: Vec<u64>,
    /// A server did not answer in time; it may have more.
    pub partial: bool,
}

type Rooms = RoomServiceClient<Channel>;

impl Client {
    /// Sends a message to everybody in a room; nobody there is no error.
    ///
    /// # Errors
    /// `BAD_REQUEST` for a name or a message above the limits, `UNAVAILABLE`, `TIMED_OUT`; not
    /// definite when the message may have been published.
    pub async fn publish(
        &self,
        room: impl Into<Bytes>,
        message: impl Into<Bytes>,
    ) -> Result<Published, Error> {
        let (room, message) = (room.into(), message.into());
        check_message(&room, &message).map_err(bad_room)?;
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let request = v1::PublishRequest { room, message, timeout_ms };
        let call = |mut rooms: Rooms| {
            let request = request.clone();
            async move { rooms.publish(request).await }
        };
        let v1::PublishResponse { delivered, seq } = self.at_some_server(Nature::Message, call).await?;
        Ok(Published { delivered, seq })
    }

    /// Counts who is in a room.
    ///
    /// # Errors
    /// `BAD_REQUEST` for a name above the limit, `UNAVAILABLE`, `TIMED_OUT`.
    pub async fn who(&self, room: impl Into<Bytes>) -> Result<Who, Error> {
        let room = room.into();
        check_name(&room).map_err(bad_room)?;
        let call = |mut rooms: Rooms| {
            let request = v1::WhoRequest { room: room.clone() };
            async move { rooms.who(request).await }
        };
        let v1::WhoResponse { subscribers, server_ids, partial } =
            self.at_some_server(Nature::Question, call).await?;
        Ok(Who { subscribers, server_ids, partial })
    }

    /// A subscriber of no room yet.
    ///
    /// # Errors
    /// `UNAVAILABLE` when no tablet server answers.
    pub async fn subscriber(&self) -> Result<RoomSubscriber, Error> {
        let mut subscriber = RoomSubscriber {
            client: self.clone(),
            rooms: BTreeSet::new(),
            link: None,
            next_id: 1,
            messages: VecDeque::new(),
        };
        subscriber.connect(Deadline::after(self.timeout)).await?;
        Ok(subscriber)
    }

    /// Tablet servers to ask, those first that the client was given.
    async fn room_servers(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        let mut backoff = Backoff::new();
        loop {
            let found = self.find_route(ROOMS_TABLE, Place::At(&Bytes::new()), deadline).await;
            match found {
                Ok(_) => return Ok(self.shared.servers()),
                // A cluster that has just been started has not made it yet.
                Err(error) if error.reason() == Reason::TableNotFound || error.is_worth_a_retry() => {
                    if !backoff.pause(deadline, &error).await {
                        let hint = "the cluster has not made its table of rooms: see `ebla status`";
                        return Err(Error::new(Reason::Unavailable, hint).context(error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The first tablet server to which a stream of messages can be opened.
    pub(crate) async fn any_rooms(&self) -> Result<Rooms, Error> {
        let deadline = Deadline::after(self.timeout);
        let servers = self.room_servers(deadline).await?;
        let first =
            servers.first().ok_or_else(|| Error::new(Reason::Unavailable, "no tablet server is known"))?;
        self.rooms_at(first)
    }

    fn rooms_at(&self, address: &str) -> Result<Rooms, Error> {
        let client = RoomServiceClient::new(self.shared.channels.get(address, Lane::Rooms)?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Makes a call at the first server that can be reached. A call that may have been carried out
    /// is not made again.
    async fn at_some_server<T, F, C>(&self, nature: Nature, call: C) -> Result<T, Error>
    where
        C: Fn(Rooms) -> F,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Deadline::after(self.timeout);
        let mut backoff = Backoff::new();
        loop {
            let mut last = None;
            for address in self.room_servers(deadline).await? {
                let asked = tokio::time::timeout_at(deadline.at, call(self.rooms_at(&address)?)).await;
                let status = match asked {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) => status,
                    Err(_) => return Err(Error::timed_out("the request", self.timeout, None).indefinite()),
                };
                let error = Error::from_status(&status);
                let not_sent = error.is_definite() || was_not_sent(&status) || nature == Nature::Question;
                if !not_sent || !matches!(error.reason(), Reason::Unavailable | Reason::Draining) {
                    return Err(error);
                }
                last = Some(error);
            }
            let last = last.unwrap_or_else(|| Error::new(Reason::Unavailable, "no tablet server is known"));
            if !backoff.pause(deadline, &last).await {
                return Err(Error::timed_out("the request", self.timeout, Some(&last)));
            }
        }
    }
}

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nature {
    /// It changes nothing and may be made twice.
    Question,
    /// It must not be carried out twice.
    Message,
}

/// Whether there was no connection to send a request by.
fn was_not_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

pub(crate) fn bad_room(bad: ebla_kernel::room::BadRoom) -> Error {
    Error::new(Reason::BadRequest, bad.to_string())
}

/// One stream of a subscriber.
#[derive(Debug)]
struct Link {
    address: String,
    requests: mpsc::Sender<v1::SubscribeRequest>,
    frames: Streaming<v1::SubscribeResponse>,
}

/// Somebody in rooms.
#[derive(Debug)]
pub struct RoomSubscriber {
    client: Client,
    rooms: BTreeSet<Bytes>,
    link: Option<Link>,
    next_id: u64,
    /// Came while something else was waited for.
    messages: VecDeque<RoomMessage>,
}

impl RoomSubscriber {
    /// The server at which it is, while it is at one.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.link.as_ref().map(|link| &*link.address)
    }

    /// Joins rooms, and returns when what is published to any of them comes here.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `LIMIT_REACHED`, `UNAVAILABLE`, `TIMED_OUT`. On an error some of the rooms may
    /// be joined; [`Self::leave`] leaves them.
    pub async fn join<R: Into<Bytes>>(&mut self, rooms: impl IntoIterator<Item = R>) -> Result<(), Error> {
        let rooms: Vec<Bytes> = rooms.into_iter().map(Into::into).collect();
        rooms.iter().try_for_each(|room| check_name(room)).map_err(bad_room)?;
        let deadline = Deadline::after(self.client.timeout);
        loop {
            let error = match self.try_join(&rooms, deadline).await {
                Ok(()) => {
                    self.rooms.extend(rooms);
                    return Ok(());
                }
                Err(error) => error,
            };
            // A stream that stands was given an answer.
            if self.link.is_some() || !error.is_worth_a_retry() || deadline.has_passed() {
                return Err(error);
            }
            self.connect(deadline).await?;
        }
    }

    /// Leaves rooms; returns when nothing of them comes any more.
    ///
    /// # Errors
    /// `UNAVAILABLE`, `TIMED_OUT` when the server did not answer.
    pub async fn leave<R: Into<Bytes>>(&mut self, rooms: impl IntoIterator<Item = R>) -> Result<(), Error> {
        let rooms: Vec<Bytes> = rooms.into_iter().map(Into::into).collect();
        for room in &rooms {
            self.rooms.remove(room);
        }
        let leave = |leave: &[Bytes]| v1::SubscribeRequest { leave: leave.to_vec(), ..Default::default() };
        let requests = rooms.chunks(ROOMS_PER_REQUEST).map(leave).collect();
        self.ask(requests, Deadline::after(self.client.timeout)).await
    }

    /// The next message, or the news that the stream broke and stands again.
    ///
    /// # Errors
    /// `SUBSCRIBER_TOO_SLOW` when the server has cut this subscriber off; the next call joins its
    /// rooms again. `UNAVAILABLE` when no server can be reached.
    pub async fn next(&mut self) -> Result<RoomEvent, Error> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(RoomEvent::Message(message));
            }
            let Some(link) = &mut self.link else {
                let deadline = Deadline::after(self.client.timeout);
                self.connect(deadline).await?;
                return Ok(RoomEvent::Rejoined(self.address().unwrap_or_default().to_owned()));
            };
            match link.frames.message().await {
                Ok(Some(frame)) => self.messages.extend(messages(frame)),
                Ok(None) => self.link = None,
                Err(status) => {
                    self.link = None;
                    let error = Error::from_status(&status);
                    if error.reason() == Reason::SubscriberTooSlow {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a stream of rooms broke");
                }
            }
        }
    }

    async fn try_join(&mut self, rooms: &[Bytes], deadline: Deadline) -> Result<(), Error> {
        let join = |join: &[Bytes]| v1::SubscribeRequest { join: join.to_vec(), ..Default::default() };
        self.ask(rooms.chunks(ROOMS_PER_REQUEST).map(join).collect(), deadline).await
    }

    /// Sends requests and waits for all of their answers.
    async fn ask(&mut self, requests: Vec<v1::SubscribeRequest>, deadline: Deadline) -> Result<(), Error> {
        let asking = self.ask_all(requests);
        match tokio::time::timeout_at(deadline.at, asking).await {
            Ok(result) => result,
            Err(_) => Err(Error::timed_out("the request about rooms", deadline.timeout, None).indefinite()),
        }
    }

    async fn ask_all(&mut self, requests: Vec<v1::SubscribeRequest>) -> Result<(), Error> {
        let lost = || Error::new(Reason::Unavailable, "the connection was lost").indefinite();
        let Some(link) = &mut self.link else { return Err(lost()) };
        let mut open = BTreeSet::new();
        let mut requests = VecDeque::from(requests);
        let mut refused = None;
        while !open.is_empty() || !requests.is_empty() {
            let frame = tokio::select! {
                permit = link.requests.reserve(), if !requests.is_empty() => {
                    if let (Ok(permit), Some(request)) = (permit, requests.pop_front()) {
                        let id = self.next_id;
                        self.next_id += 1;
                        open.insert(id);
                        permit.send(v1::SubscribeRequest { id, ..request });
                    }
                    continue;
                }
                frame = link.frames.message() => frame,
            };
            let Ok(Some(mut frame)) = frame else {
                self.link = None;
                return Err(frame.err().map_or_else(lost, |status| Error::from_status(&status)));
            };
            for answer in std::mem::take(&mut frame.answers) {
                open.remove(&answer.id);
                refused = refused.or(answer.error);
            }
            self.messages.extend(messages(frame));
        }
        refused.map_or(Ok(()), |error| Err(Error::from_api(ApiError::from(error))))
    }

    /// Goes to the first server that can be reached and joins all rooms there.
    async fn connect(&mut self, deadline: Deadline) -> Result<(), Error> {
        let mut backoff = Backoff::new();
        loop {
            let mut last = Error::new(Reason::Unavailable, "no tablet server is known");
            for address in self.client.room_servers(deadline).await? {
                match self.connect_to(&address, deadline).await {
                    Ok(()) => return Ok(()),
                    Err(error) if error.reason() == Reason::LimitReached => return Err(error),
                    Err(error) => last = error,
                }
            }
            self.link = None;
            if !backoff.pause(deadline, &last).await {
                return Err(Error::timed_out("the subscription", deadline.timeout, Some(&last)));
            }
        }
    }

    async fn connect_to(&mut self, address: &str, deadline: Deadline) -> Result<(), Error> {
        let (requests, waiting) = mpsc::channel(SUBSCRIBE_REQUESTS_WAITING);
        let mut client = self.client.rooms_at(address)?;
        let opening = client.subscribe(ReceiverStream::new(waiting));
        let frames = match tokio::time::timeout_at(deadline.at, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(Error::from_status(&status)),
            Err(_) => return Err(Error::timed_out("the subscription", deadline.timeout, None)),
        };
        self.link = Some(Link { address: address.to_owned(), requests, frames });
        let rooms: Vec<Bytes> = self.rooms.iter().cloned().collect();
        self.try_join(&rooms, deadline).await
    }
}

fn messages(frame: v1::SubscribeResponse) -> impl Iterator<Item = RoomMessage> {
    frame.messages.into_iter().map(|v1::RoomMessage { room, message, seq }| RoomMessage {
        room,
        message,
        seq,
    })
}

impl crate::client::Shared {
    /// Addresses of tablet servers: those that the client was given, then others in any order.
    fn servers(&self) -> Vec<String> {
        let known = self.routes.servers();
        let mut others = known.clone();
        others.shuffle(&mut rand::rng());
        let given = self.endpoints().iter().filter(|address| known.contains(address)).cloned();
        crate::client::distinct(given.chain(others))
    }
}
