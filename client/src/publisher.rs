//! The fast path of publishers: messages travel in frames over one stream.
//!
//! A frame is made when the transport is ready for one and takes what waits by then. When the stream
//! ends, whoever waits is told that its message may have been published, and the publisher is used up.

use crate::client::Client;
use crate::error::Error;
use crate::limits::{FRAME_BYTES_MAX, PUBLISH_CALLS_MAX, PUBLISH_QUEUE_MAX};
use crate::room::{Published, bad_room};
use bytes::Bytes;
use ebla_kernel::room::check_message;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use futures::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

/// One stream of messages. Clones share it; many calls may wait at the same time.
#[derive(Clone, Debug)]
pub struct RoomPublisher {
    queue: mpsc::Sender<Queued>,
}

#[derive(Debug)]
struct Queued {
    room: Bytes,
    message: Bytes,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<Published, Error>>;

/// Calls that were sent and not answered yet, in the order of their numbers.
#[derive(Default, Debug)]
struct Waiting {
    first: u64,
    calls: VecDeque<Option<Answer>>,
}

impl Waiting {
    /// Notes a call; gives its number.
    fn add(&mut self, answer: Answer) -> u64 {
        self.calls.push_back(Some(answer));
        self.first + self.calls.len() as u64 - 1
    }

    /// Who waits for a call, if somebody does.
    fn remove(&mut self, id: u64) -> Option<Answer> {
        let at = usize::try_from(id.checked_sub(self.first)?).ok()?;
        let answer = self.calls.get_mut(at)?.take();
        while let Some(None) = self.calls.front() {
            self.calls.pop_front();
            self.first += 1;
        }
        answer
    }
}

/// Shared by the ends of a stream.
type Shared = Arc<Mutex<Waiting>>;

fn lock(waiting: &Shared) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message on its way: wait for what became of it, or drop this if that does not matter.
#[derive(Debug)]
pub struct Sending(oneshot::Receiver<Result<Published, Error>>);

impl Future for Sending {
    type Output = Result<Published, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = Pin::new(&mut self.0).poll(context);
        answered.map(|answered| answered.unwrap_or_else(|_| Err(broken().indefinite())))
    }
}

fn broken() -> Error {
    Error::new(Reason::Unavailable, "the publisher's stream broke: make another one")
}

impl Client {
    /// A stream of messages to rooms.
    ///
    /// # Errors
    /// `UNAVAILABLE` when no tablet server answers.
    pub async fn publisher(&self) -> Result<RoomPublisher, Error> {
        let (queue, queued) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let waiting = Shared::default();
        let mut rooms = self.any_rooms().await?;
        let frames = Frames { queued, waiting: Arc::clone(&waiting) };
        let answers = rooms.publish_stream(frames).await.map_err(|status| Error::from_status(&status))?;
        tokio::spawn(take_answers(answers.into_inner(), waiting));
        Ok(RoomPublisher { queue })
    }
}

impl RoomPublisher {
    /// Sends a message to everybody in a room.
    ///
    /// # Errors
    /// As [`Client::publish`]; `UNAVAILABLE` once the stream is broken: make another publisher.
    pub async fn publish(
        &self,
        room: impl Into<Bytes>,
        message: impl Into<Bytes>,
    ) -> Result<Published, Error> {
        self.send(room, message).await?.await
    }

    /// Hands a message over, without waiting for what becomes of it: many may be on their way.
    /// Waits itself while more of them wait for the transport than fit.
    ///
    /// # Errors
    /// `BAD_REQUEST`, and `UNAVAILABLE` once the stream is broken; then it was not sent.
    pub async fn send(&self, room: impl Into<Bytes>, message: impl Into<Bytes>) -> Result<Sending, Error> {
        let (room, message) = (room.into(), message.into());
        check_message(&room, &message).map_err(bad_room)?;
        let (answer, answered) = oneshot::channel();
        self.queue.send(Queued { room, message, answer }).await.map_err(|_| broken())?;
        Ok(Sending(answered))
    }
}

/// Dropping what waits tells it.
async fn take_answers(mut answers: Streaming<v1::PublishStreamResponse>, waiting: Shared) {
    while let Ok(Some(frame)) = answers.message().await {
        let mut waiting = lock(&waiting);
        for v1::PublishAnswer { id, delivered, seq, error } in frame.answers {
            let Some(answer) = waiting.remove(id) else { continue };
            let result = match error {
                None => Ok(Published { delivered, seq }),
                Some(error) => Err(Error::from_api(ApiError::from(error))),
            };
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }
    lock(&waiting).calls.clear();
}

/// Frames of what waits.
struct Frames {
    queued: mpsc::Receiver<Queued>,
    waiting: Shared,
}

impl Stream for Frames {
    type Item = v1::PublishStreamRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut frame = v1::PublishStreamRequest::default();
        let mut bytes = 0;
        while frame.calls.len() < PUBLISH_CALLS_MAX && bytes < FRAME_BYTES_MAX {
            match this.queued.poll_recv(context) {
                Poll::Ready(Some(Queued { room, message, answer })) => {
                    bytes += room.len() + message.len();
                    let id = lock(&this.waiting).add(answer);
                    frame.calls.push(v1::PublishCall { id, room, message });
                }
                Poll::Ready(None) if frame.calls.is_empty() => return Poll::Ready(None),
                Poll::Pending if frame.calls.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(frame))
    }
}
