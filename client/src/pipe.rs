//! The fast path: all calls to one server travel in frames over one bidirectional stream.
//!
//! ```text
//! callers --queue--> [frame] --stream--> server --stream--> [answers by id] --> callers
//! ```
//!
//! A frame is made when the transport is ready for one and takes everything that waits by
//! then, so a lone call leaves at once and many share a message; nobody waits for company.
//!
//! - A call is either still in the queue (never sent), or waiting under its id (perhaps run).
//! - When the stream ends, calls in the queue end as `NotSent`, waiting ones as `Lost`.
//! - Room in flight is held by the call, not by its caller: a caller that gave up frees
//!   nothing that the server may still be working on.
//!
//! Knows nothing of retries: that is its callers' business.

use crate::channel::{Channels, Lane};
use crate::error::Error;
use crate::limits::{
    FRAME_BYTES_MAX, FRAME_CALLS_MAX, MESSAGE_BYTES_MAX, PIPE_QUEUE_CALLS_MAX, PIPE_UNIT_BYTES,
    PIPE_UNITS_MAX,
};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use ebla_proto::v1::kv_service_client::KvServiceClient;
use ebla_proto::v1::pipe_answer::Answer;
use ebla_proto::v1::pipe_call::Call;
use prost::Message as _;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How a call on a pipe failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It never left this process.
    NotSent(Error),
    /// It left and no answer came: it may have run.
    Lost(Error),
}

/// The pipes of one client, one per address.
#[derive(Default, Debug)]
pub(crate) struct Pipes {
    open: Mutex<HashMap<String, Pipe>>,
}

impl Pipes {
    /// Makes one call at `address`. Dropping the future gives up on the answer only.
    pub(crate) async fn call(
        &self,
        channels: &Channels,
        address: &str,
        call: Call,
    ) -> Result<Answer, Failure> {
        let pipe = self.pipe(channels, address).map_err(Failure::NotSent)?;
        pipe.call(call).await
    }

    fn pipe(&self, channels: &Channels, address: &str) -> Result<Pipe, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = open.get(address).filter(|pipe| !pipe.queue.is_closed()) {
            return Ok(pipe.clone());
        }
        let client = KvServiceClient::new(channels.get(address, Lane::Calls)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let pipe = Pipe::open(client, address);
        open.insert(address.to_owned(), pipe.clone());
        Ok(pipe)
    }
}

/// One stream to one server, until it breaks.
#[derive(Clone, Debug)]
struct Pipe {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Queued {
    call: Call,
    bytes: usize,
    asker: Asker,
}

#[derive(Debug)]
struct Asker {
    answer: oneshot::Sender<Result<Answer, Failure>>,
    _room: OwnedSemaphorePermit,
}

impl Pipe {
    fn open(client: KvServiceClient<tonic::transport::Channel>, address: &str) -> Self {
        let (queue, queued) = mpsc::channel(PIPE_QUEUE_CALLS_MAX);
        let waiting = Arc::new(Waiting::default());
        let (ended, end) = oneshot::channel();
        let frames =
            Frames { queued, end, waiting: waiting.clone(), next_id: 1, left_over: None, gave_way: false };
        tokio::spawn(run(client, frames, waiting, ended, address.to_owned()));
        Self { queue, room: Arc::new(Semaphore::new(PIPE_UNITS_MAX)) }
    }

    async fn call(&self, call: Call) -> Result<Answer, Failure> {
        let not_sent = || Failure::NotSent(Error::new(Reason::Unavailable, "the connection was lost"));
        let bytes = match &call {
            Call::Get(get) => get.encoded_len(),
            Call::Write(write) => write.encoded_len(),
        };
        let units = (1 + bytes / PIPE_UNIT_BYTES).min(PIPE_UNITS_MAX);
        let units = u32::try_from(units).expect("the bound of units fits 32 bits");
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| not_sent())?;
        let (answer, answered) = oneshot::channel();
        let queued = Queued { call, bytes, asker: Asker { answer, _room: room } };
        self.queue.send(queued).await.map_err(|_| not_sent())?;
        answered.await.unwrap_or_else(|_| Err(not_sent()))
    }
}

/// Drives one stream from its opening to its end.
async fn run(
    mut client: KvServiceClient<tonic::transport::Channel>,
    frames: Frames,
    waiting: Arc<Waiting>,
    ended: oneshot::Sender<()>,
    address: String,
) {
    let end = match client.pipe(frames).await {
        Ok(response) => deliver(response.into_inner(), &waiting).await,
        Err(status) => status,
    };
    tracing::debug!(address, status = %end, "a pipe ended");
    waiting.lose_all(&address, &end);
    // Frames may be gone already with the stream.
    let _ = ended.send(());
}

/// Hands answers to their askers until the stream ends; returns why it ended.
async fn deliver(mut answers: tonic::Streaming<v1::PipeResponse>, waiting: &Waiting) -> tonic::Status {
    loop {
        match answers.message().await {
            Ok(Some(frame)) => waiting.answer_all(frame),
            Ok(None) => return tonic::Status::unavailable("the server closed the stream"),
            Err(status) => return status,
        }
    }
}

/// Calls that were sent and have no answer yet; closed for good when the stream ends.
#[derive(Default, Debug)]
struct Waiting {
    calls: Mutex<WaitingCalls>,
}

#[derive(Default, Debug)]
struct WaitingCalls {
    askers: HashMap<u64, Asker>,
    closed: bool,
}

impl Waiting {
    /// Registers a call before it is sent; gives it back when the stream has ended.
    fn insert(&self, id: u64, asker: Asker) -> Result<(), Asker> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.closed {
            return Err(asker);
        }
        calls.askers.insert(id, asker);
        Ok(())
    }

    fn answer_all(&self, frame: v1::PipeResponse) {
        for answer in frame.answers {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(asker) = calls.askers.remove(&answer.id) else { continue };
            drop(calls);
            let result = answer.answer.ok_or_else(|| {
                Failure::Lost(Error::new(
                    Reason::Internal,
                    "the server sent an empty answer: is it newer than this client?",
                ))
            });
            // A caller that gave up no longer listens.
            let _ = asker.answer.send(result);
        }
    }

    fn lose_all(&self, address: &str, status: &tonic::Status) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.closed = true;
        let askers = std::mem::take(&mut calls.askers);
        drop(calls);
        for asker in askers.into_values() {
            let cause = crate::channel::innermost(status);
            let error =
                Error::new(Reason::Unavailable, format!("the connection to {address} was lost: {cause}"));
            let _ = asker.answer.send(Err(Failure::Lost(error)));
        }
    }
}

/// The outgoing side: a frame each time that the transport asks for one.
struct Frames {
    queued: mpsc::Receiver<Queued>,
    /// Resolves when the stream has ended.
    end: oneshot::Receiver<()>,
    waiting: Arc<Waiting>,
    next_id: u64,
    /// A call that did not fit the last frame.
    left_over: Option<Queued>,
    /// Whether ready callers were let ahead of the next frame.
    gave_way: bool,
}

impl Frames {
    /// Adds calls to `frame` until it is full or nobody waits. Pending only while it is empty.
    fn fill(&mut self, frame: &mut Vec<v1::PipeCall>, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = 0;
        while frame.len() < FRAME_CALLS_MAX {
            let queued = match self.left_over.take() {
                Some(queued) => queued,
                None => match self.queued.poll_recv(context) {
                    Poll::Ready(Some(queued)) => queued,
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending if frame.is_empty() => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                },
            };
            if !frame.is_empty() && bytes + queued.bytes > FRAME_BYTES_MAX {
                self.left_over = Some(queued);
                return Poll::Ready(());
            }
            bytes += queued.bytes;
            self.add(queued, frame);
        }
        Poll::Ready(())
    }

    /// Ends the calls that were never sent; their callers read that from the dropped askers.
    fn refuse_all(&mut self) {
        self.queued.close();
        self.left_over = None;
        while self.queued.try_recv().is_ok() {}
    }

    fn add(&mut self, queued: Queued, frame: &mut Vec<v1::PipeCall>) {
        // Nobody waits for the answer of a caller that has already given up.
        if queued.asker.answer.is_closed() {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        // A closed stream drops the asker, whose caller then reads "not sent".
        if self.waiting.insert(id, queued.asker).is_ok() {
            frame.push(v1::PipeCall { id, call: Some(queued.call) });
        }
    }
}

impl futures::Stream for Frames {
    type Item = v1::PipeRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.end.is_terminated() && Pin::new(&mut self.end).poll(context).is_ready() {
            self.refuse_all();
        }
        if !self.gave_way && self.left_over.is_none() && !self.queued.is_empty() {
            // Callers that were answered together ask again together. One turn of the
            // scheduler lets all that are ready into the frame; nobody waits for a clock.
            self.gave_way = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.gave_way = false;
        let mut calls = Vec::new();
        match self.fill(&mut calls, context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) if calls.is_empty() && self.queued.is_closed() => Poll::Ready(None),
            Poll::Ready(()) => Poll::Ready(Some(v1::PipeRequest { calls })),
        }
    }
}

/// The answer to a get.
pub(crate) fn expect_get(answer: Answer) -> Result<v1::GetResponse, Error> {
    match answer {
        Answer::Get(get) => Ok(get),
        Answer::Error(error) => Err(Error::from_api(ApiError::from(error))),
        Answer::Write(_) => Err(mismatch()),
    }
}

/// The answer to a write.
pub(crate) fn expect_write(answer: Answer) -> Result<v1::WriteResponse, Error> {
    match answer {
        Answer::Write(write) => Ok(write),
        Answer::Error(error) => Err(Error::from_api(ApiError::from(error))),
        Answer::Get(_) => Err(mismatch().indefinite()),
    }
}

fn mismatch() -> Error {
    Error::new(Reason::Internal, "the server answered another kind of call: report this as a bug")
}
