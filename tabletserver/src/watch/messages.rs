//! Events on their way to a consumer: few messages wait for it, and never for long.

use crate::limits;
use crate::node::body_to_wire;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Cause;
use ebla_kernel::watch::{Event, Token};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::{WatchCover, WatchEvent, WatchEventType, WatchResponse};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// The sending half of a watch's stream.
pub(super) struct Messages {
    out: mpsc::Sender<WatchResponse>,
    /// Why the stream ends; told behind everything that was sent.
    end: Option<oneshot::Sender<Status>>,
    message: WatchResponse,
    bytes: usize,
}

/// Why nothing more can be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unsent {
    /// The consumer is gone.
    Gone,
    /// The consumer took nothing for too long.
    TooSlow,
}

/// The messages of a watch, then why it ended.
pub struct Responses {
    messages: mpsc::Receiver<WatchResponse>,
    end: Option<oneshot::Receiver<Status>>,
}

pub(super) fn channel() -> (Messages, Responses) {
    let (out, messages) = mpsc::channel(limits::WATCH_MESSAGES_WAITING);
    let (end, ended) = oneshot::channel();
    let sending = Messages { out, end: Some(end), message: WatchResponse::default(), bytes: 0 };
    (sending, Responses { messages, end: Some(ended) })
}

impl futures::Stream for Responses {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(message) = ready!(self.messages.poll_recv(context)) {
            return Poll::Ready(Some(Ok(message)));
        }
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        let status = ready!(Pin::new(end).poll(context));
        self.end = None;
        Poll::Ready(status.ok().map(Err))
    }
}

impl Messages {
    /// Says what the stream covers, in its first message.
    pub(super) fn cover(&mut self, cover: WatchCover) {
        self.message.cover = Some(cover);
    }

    /// Adds an event; a full message is sent.
    pub(super) async fn add(&mut self, event: WatchEvent) -> Result<(), Unsent> {
        self.bytes += event.key.len() + event.value.len() + event.token.len();
        self.message.events.push(event);
        let is_full = self.bytes >= limits::WATCH_MESSAGE_BYTES
            || self.message.events.len() >= limits::WATCH_MESSAGE_EVENTS;
        if is_full { self.send().await } else { Ok(()) }
    }

    /// Sends what was added, if anything was.
    pub(super) async fn flush(&mut self) -> Result<(), Unsent> {
        if self.message == WatchResponse::default() { Ok(()) } else { self.send().await }
    }

    /// Sends what was added, or that the stream lives.
    pub(super) async fn send(&mut self) -> Result<(), Unsent> {
        let message = std::mem::take(&mut self.message);
        self.bytes = 0;
        metrics::counter!("ebla_watch_events_total").increment(message.events.len() as u64);
        let sending = tokio::time::timeout(limits::WATCH_CONSUMER_PATIENCE, self.out.send(message));
        match sending.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unsent::Gone),
            Err(_) => Err(Unsent::TooSlow),
        }
    }

    /// Ends the stream with an error that has the token in it.
    pub(super) fn fail(mut self, error: ApiError, token: &Token) {
        if let Some(end) = self.end.take() {
            // A consumer that is gone needs no reason.
            let _ = end.send(error.with("token", token).into());
        }
    }
}

/// What a consumer is told that did not keep up.
pub(super) fn too_slow() -> ApiError {
    metrics::counter!("ebla_watch_cut_off_total").increment(1);
    let hint = format!(
        "the consumer took no events of the watch for {} s and was cut off; nothing is lost: go on with the \
         token of the last event, and take events faster or watch less",
        limits::WATCH_CONSUMER_PATIENCE.as_secs()
    );
    ApiError::new(Reason::WatchTooSlow, hint)
}

/// A change, for the wire.
pub(super) fn to_wire(event: Event, ts: Hlc, token: &Token) -> WatchEvent {
    let base = WatchEvent { ts: ts.0, token: token.encode().into(), ..WatchEvent::default() };
    match event {
        Event::Set { key, body, .. } => {
            let (value, counter) = body_to_wire(body);
            WatchEvent { r#type: WatchEventType::Set as i32, key, value, counter, ..base }
        }
        Event::Gone { key, cause } => {
            let (kind, reason) = match cause {
                Cause::Deleted => (WatchEventType::Delete, ""),
                Cause::Expired => (WatchEventType::Expire, ""),
                Cause::Evicted => (WatchEventType::Delete, "evicted"),
            };
            WatchEvent { r#type: kind as i32, key, reason: reason.to_owned(), ..base }
        }
        Event::RangeGone { range } => WatchEvent {
            r#type: WatchEventType::DeleteRange as i32,
            from: range.start().clone(),
            to: range.end().cloned().unwrap_or_default(),
            ..base
        },
    }
}

/// "No event at or below `ts` follows".
pub(super) fn resolved(ts: Hlc, token: &Token) -> WatchEvent {
    let token = token.encode().into();
    WatchEvent { r#type: WatchEventType::Resolved as i32, ts: ts.0, token, ..WatchEvent::default() }
}
