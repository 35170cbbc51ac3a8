//! The ways to other servers, for everything about rooms: one stream to each server that is talked
//! to, opened when it is first needed and closed when nobody needs it any more.
//!
//! A call ends with its answer or, when the stream breaks, with the word that it may have been
//! carried out. Calls that are made while a connection is made wait for it. A server that is silent
//! for three seconds is *down*: calls to it fail at once, until it answers or says something itself.

use super::mailbox::{FrameLimits, Frames, Mailbox};
use super::publish::{Flight, Publication};
use crate::limits;
use crate::node::Node;
use crate::replication::endpoint;
use ebla_kernel::ids::ServerId;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::room_call::Call;
use ebla_proto::v1::room_peer_service_client::RoomPeerServiceClient;
use ebla_proto::v1::room_reply::Reply;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Status, Streaming};

/// Frames between servers.
pub const FRAME: FrameLimits =
    FrameLimits { items: limits::ROOM_FRAME_ITEMS_MAX, bytes: limits::ROOM_FRAME_BYTES_MAX };

/// Who waits for the answer to a call.
pub enum Waiting {
    /// A message on its way to the leader of its room's row.
    Publication(Box<Publication>),
    /// A message on its way to subscribers.
    Flight(Arc<Flight>),
    /// A task.
    Task(oneshot::Sender<Result<Reply, CallFailed>>),
}

/// Why a call has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallFailed {
    /// The server is down, or too much waits for it: nothing was sent.
    NotSent,
    /// It was sent, perhaps, and no answer came.
    Lost,
}

/// What other calls end with when a link fails; publications are tried again or told.
pub type FailedPublications = mpsc::UnboundedSender<(Box<Publication>, CallFailed)>;

/// All ways to other servers.
pub struct Links {
    links: Mutex<HashMap<ServerId, Arc<Link>>>,
    node: Arc<Node>,
    failed: FailedPublications,
}

/// The way to one server.
pub struct Link {
    server: ServerId,
    state: Mutex<State>,
    failed: FailedPublications,
    /// Told when it is worth to try a connection at once.
    wake: Notify,
}

struct State {
    /// Where calls go: there while the server is not down.
    mailbox: Option<Arc<Mailbox<v1::RoomCall>>>,
    waiting: HashMap<u64, Waiting>,
    next: u64,
    heard: Instant,
    used: Instant,
    is_closed: bool,
}

impl Links {
    /// No way yet.
    #[must_use]
    pub fn new(node: Arc<Node>, failed: FailedPublications) -> Self {
        Self { links: Mutex::default(), node, failed }
    }

    /// Calls a server.
    pub fn call(&self, server: ServerId, call: Call, waiting: Waiting) {
        let mut call = Some((call, waiting));
        while let Some((next, waiting)) = call.take() {
            // A link that has just closed is replaced.
            call = self.link(server).call(next, waiting);
        }
    }

    /// Calls a server and waits for the answer.
    pub async fn ask(&self, server: ServerId, call: Call) -> Result<Reply, CallFailed> {
        let (waiting, answer) = oneshot::channel();
        self.call(server, call, Waiting::Task(waiting));
        answer.await.unwrap_or(Err(CallFailed::Lost))
    }

    /// A server said something by a way of its own: it is there, and calls may wait for this way.
    pub fn heard_of(&self, server: ServerId) {
        let link = self.links.lock().expect("no holder of this lock panics").get(&server).map(Arc::clone);
        if let Some(link) = link {
            link.state().heard = Instant::now();
            link.open_mailbox();
            link.wake.notify_one();
        }
    }

    /// For how long a server has been silent; it counts as heard when it is first called.
    #[must_use]
    pub fn silence(&self, server: ServerId) -> Duration {
        self.link(server).state().heard.elapsed()
    }

    fn link(&self, server: ServerId) -> Arc<Link> {
        let mut links = self.links.lock().expect("no holder of this lock panics");
        if let Some(link) = links.get(&server).filter(|link| !link.state().is_closed) {
            return Arc::clone(link);
        }
        let link = Arc::new(Link::new(server, self.failed.clone()));
        links.insert(server, Arc::clone(&link));
        tokio::spawn(keep(Arc::clone(&self.node), Arc::clone(&link)));
        link
    }
}

impl Link {
    fn new(server: ServerId, failed: FailedPublications) -> Self {
        let now = Instant::now();
        let state = State {
            mailbox: Some(Mailbox::new(limits::ROOM_CALLS_BYTES_MAX)),
            waiting: HashMap::new(),
            next: 0,
            heard: now,
            used: now,
            is_closed: false,
        };
        Self { server, state: Mutex::new(state), failed, wake: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Makes a call; gives it back when this link is closed.
    fn call(&self, call: Call, waiting: Waiting) -> Option<(Call, Waiting)> {
        let mut state = self.state();
        if state.is_closed {
            return Some((call, waiting));
        }
        state.used = Instant::now();
        let is_full = state.waiting.len() >= limits::ROOM_CALLS_WAITING_MAX;
        let Some(mailbox) = state.mailbox.clone().filter(|_| !is_full) else {
            drop(state);
            self.fail(waiting, CallFailed::NotSent);
            return None;
        };
        let id = state.next;
        state.next += 1;
        state.waiting.insert(id, waiting);
        let call = v1::RoomCall { id, call: Some(call) };
        let bytes = call.encoded_len() + super::PARCEL_BYTES;
        // Still under the lock: calls leave in the order in which they were made.
        let refused = mailbox.put(call, bytes).is_err().then(|| state.waiting.remove(&id)).flatten();
        drop(state);
        if let Some(waiting) = refused {
            self.fail(waiting, CallFailed::NotSent);
        }
        None
    }

    fn fail(&self, waiting: Waiting, why: CallFailed) {
        match waiting {
            // Nobody is left who could be told when the server ends.
            Waiting::Publication(publication) => drop(self.failed.send((publication, why))),
            Waiting::Flight(flight) => flight.landed(0),
            Waiting::Task(task) => drop(task.send(Err(why))),
        }
    }

    fn answered(&self, reply: v1::RoomReply) {
        let Some(waiting) = self.state().waiting.remove(&reply.id) else { return };
        match (waiting, reply.reply) {
            (Waiting::Publication(publication), Some(Reply::Published(published))) => {
                publication.answer(Ok(published));
            }
            (Waiting::Publication(publication), Some(Reply::Error(error))) => {
                publication.refused(error.into(), &self.failed);
            }
            (Waiting::Flight(flight), Some(Reply::Reached(reached))) => flight.landed(reached),
            (Waiting::Task(task), Some(reply)) => drop(task.send(Ok(reply))),
            (waiting, _) => self.fail(waiting, CallFailed::Lost),
        }
    }

    /// Where calls wait for the next connection, unless the server is down.
    fn open_mailbox(&self) -> Arc<Mailbox<v1::RoomCall>> {
        let mut state = self.state();
        let is_down = state.heard.elapsed() >= limits::ROOM_SILENCE;
        if let Some(mailbox) = &state.mailbox {
            return Arc::clone(mailbox);
        }
        let mailbox = Mailbox::new(limits::ROOM_CALLS_BYTES_MAX);
        state.mailbox = (!is_down).then(|| Arc::clone(&mailbox));
        mailbox
    }

    /// The connection is gone: whoever waits is told.
    fn broke(&self) {
        let (mailbox, waiting) = {
            let mut state = self.state();
            (state.mailbox.take(), std::mem::take(&mut state.waiting))
        };
        if let Some(mailbox) = mailbox {
            mailbox.end(None);
        }
        for waiting in waiting.into_values() {
            self.fail(waiting, CallFailed::Lost);
        }
    }

    /// Closes the way if nobody has used it lately and nobody waits.
    fn close_if_idle(&self) -> bool {
        let mut state = self.state();
        state.is_closed = state.waiting.is_empty() && state.used.elapsed() > limits::ROOM_LINK_IDLE;
        state.is_closed
    }
}

/// Keeps a connection until it is idle.
async fn keep(node: Arc<Node>, link: Arc<Link>) {
    loop {
        if let Err(status) = connect(&node, &link).await {
            tracing::debug!(server = %link.server, %status, "no connection about rooms");
        }
        link.broke();
        if link.close_if_idle() {
            return;
        }
        link.open_mailbox();
        // It is over earlier when the server itself says something.
        let _ = tokio::time::timeout(limits::ROOM_RETRY_PAUSE, link.wake.notified()).await;
    }
}

/// Connects and serves the connection until it breaks or is idle.
async fn connect(node: &Node, link: &Link) -> Result<(), Status> {
    let mailbox = link.open_mailbox();
    let opening = open(node, link.server, &mailbox);
    let opened = tokio::time::timeout(limits::ROOM_SILENCE, opening).await;
    let mut replies = opened.map_err(|_| Status::deadline_exceeded("the server does not greet"))??;
    {
        let mut state = link.state();
        (state.heard, state.mailbox) = (Instant::now(), Some(Arc::clone(&mailbox)));
    }
    let mut nudges = tokio::time::interval(limits::ROOM_NUDGE_EVERY);
    loop {
        tokio::select! {
            heard = tokio::time::timeout(limits::ROOM_SILENCE, replies.message()) => {
                let heard = heard.map_err(|_| Status::deadline_exceeded("the server is silent"))??;
                let Some(frame) = heard else { return Ok(()) };
                link.state().heard = Instant::now();
                frame.replies.into_iter().for_each(|reply| link.answered(reply));
            }
            _ = nudges.tick() => {
                mailbox.nudge();
                let idle = link.state().used.elapsed() > limits::ROOM_LINK_IDLE;
                if idle {
                    return Ok(());
                }
            }
        }
    }
}

async fn open(
    node: &Node,
    server: ServerId,
    mailbox: &Arc<Mailbox<v1::RoomCall>>,
) -> Result<Streaming<v1::TalkResponse>, Status> {
    let own = node.peers.identity().ok_or_else(|| Status::unavailable("not registered yet"))?;
    let channel = endpoint(node, server)?.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = RoomPeerServiceClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
    let greeting = v1::TalkRequest { greeting: Some(own.greeting(server)), calls: Vec::new() };
    let frames = Frames::new(Arc::clone(mailbox), FRAME, |calls| v1::TalkRequest { greeting: None, calls });
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::once(greeting),
        tokio_stream::StreamExt::map_while(frames, Result::ok),
    );
    let mut replies = client.talk(requests).await?.into_inner();
    let greeted = replies.message().await?.and_then(|frame| frame.greeting);
    let greeting = greeted.ok_or_else(|| Status::unavailable("the server did not greet"))?;
    let run = node.peers.check_address(&greeting)?;
    if run.server != server {
        let hint = format!("server {} answered for {server}", run.server);
        return Err(ApiError::new(Reason::StaleRoute, hint).into());
    }
    Ok(replies)
}
