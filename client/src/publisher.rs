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
use std::collections::HashMap;
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

/// Calls that were sent, by number.
#[derive(Default, Debug)]
struct Waiting(Mutex<(u64, HashMap<u64, Answer>)>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Answer>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// A stream of messages to rooms.
    ///
    /// # Errors
    /// `UNAVAILABLE` when no tablet server answers.
    pub async fn publisher(&self) -> Result<RoomPublisher, Error> {
        let (queue, queued) = mpsc::channel(PUBLISH_QUEUE_MAX);
        let waiting = Arc::new(Waiting::default());
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
        let (room, message) = (room.into(), message.into());
        check_message(&room, &message).map_err(bad_room)?;
        let (answer, answered) = oneshot::channel();
        let broken = || Error::new(Reason::Unavailable, "the publisher's stream broke: make another one");
        self.queue.send(Queued { room, message, answer }).await.map_err(|_| broken())?;
        answered.await.unwrap_or_else(|_| Err(broken().indefinite()))
    }
}

/// Dropping what waits tells it.
async fn take_answers(mut answers: Streaming<v1::PublishStreamResponse>, waiting: Arc<Waiting>) {
    while let Ok(Some(frame)) = answers.message().await {
        let mut waiting = waiting.lock();
        for v1::PublishAnswer { id, delivered, seq, error } in frame.answers {
            let Some(answer) = waiting.1.remove(&id) else { continue };
            let result = match error {
                None => Ok(Published { delivered, seq }),
                Some(error) => Err(Error::from_api(ApiError::from(error))),
            };
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }
    waiting.lock().1.clear();
}

/// Frames of what waits.
struct Frames {
    queued: mpsc::Receiver<Queued>,
    waiting: Arc<Waiting>,
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
                    let mut waiting = this.waiting.lock();
                    let id = waiting.0;
                    waiting.0 += 1;
                    waiting.1.insert(id, answer);
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
