//! What waits to be sent on one stream: a bounded queue that is turned into frames when the
//! transport has room for one. Nobody waits for company, and nobody waits at a full queue: whoever
//! puts something in is told, and decides what that means.

use ebla_proto::error::{ApiError, Reason};
use futures::task::AtomicWaker;
use std::collections::VecDeque;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::Status;

/// What one frame carries at most.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Things.
    pub items: usize,
    /// Bytes of them; one thing may be larger and then travels alone.
    pub bytes: usize,
}

/// Why something was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTaken {
    /// The queue has reached its bound.
    Full,
    /// The stream has ended.
    Ended,
}

/// The queue of one stream.
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    waker: AtomicWaker,
    ended: Notify,
    bytes_max: usize,
}

struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// Send a frame, be it an empty one.
    is_nudged: bool,
    end: Option<Option<Status>>,
}

impl<T> Mailbox<T> {
    /// An empty queue for `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let state = State { items: VecDeque::new(), bytes: 0, is_nudged: false, end: None };
        let (waker, ended) = (AtomicWaker::new(), Notify::new());
        Arc::new(Self { state: Mutex::new(state), waker, ended, bytes_max })
    }

    /// Puts something of `bytes` bytes in.
    ///
    /// # Errors
    /// When it is not taken; it is gone.
    pub fn put(&self, item: T, bytes: usize) -> Result<(), NotTaken> {
        let mut state = self.state();
        if state.end.is_some() {
            return Err(NotTaken::Ended);
        }
        if state.bytes + bytes > self.bytes_max && !state.items.is_empty() {
            return Err(NotTaken::Full);
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        let was_empty = state.items.len() == 1;
        drop(state);
        if was_empty {
            self.waker.wake();
        }
        Ok(())
    }

    /// Puts in something that its reader must not miss: one that leaves too much unread is cut off.
    pub fn put_or_end(&self, item: T, bytes: usize) {
        match self.put(item, bytes) {
            Ok(()) | Err(NotTaken::Ended) => {}
            Err(NotTaken::Full) => {
                let hint = "too many answers were left unread: read them, and open another stream";
                self.end(Some(ApiError::new(Reason::Overloaded, hint).into()));
            }
        }
    }

    /// Wants a frame to be sent, be it an empty one.
    pub fn nudge(&self) {
        self.state().is_nudged = true;
        self.waker.wake();
    }

    /// Ends the stream, with what waits thrown away if there is something wrong.
    pub fn end(&self, status: Option<Status>) {
        let mut state = self.state();
        if state.end.is_none() {
            if status.is_some() {
                (state.items, state.bytes) = (VecDeque::new(), 0);
            }
            state.end = Some(status);
        }
        drop(state);
        self.waker.wake();
        self.ended.notify_waiters();
    }

    /// Resolves when the stream has ended, from either side.
    pub async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.state().end.is_some() {
                return;
            }
            ended.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// What goes into the next frame; none when there is nothing to send.
    fn take(&self, limits: FrameLimits) -> Option<Vec<T>> {
        let mut state = self.state();
        if state.items.is_empty() && !state.is_nudged {
            return None;
        }
        state.is_nudged = false;
        let mut items = Vec::with_capacity(state.items.len().min(limits.items));
        let mut bytes = 0;
        while items.len() < limits.items && (bytes < limits.bytes || items.is_empty()) {
            let Some((item, size)) = state.items.pop_front() else { break };
            bytes += size;
            items.push(item);
        }
        state.bytes -= bytes;
        if state.items.is_empty() && state.items.capacity() > limits.items {
            state.items = VecDeque::new();
        }
        Some(items)
    }

    fn end_of_stream(&self) -> Option<Option<Status>> {
        self.state().end.clone()
    }
}

/// The queue as those hold it who put answers in: when the last of them is done, the stream ends in
/// good order, behind what waits.
pub struct Held<T>(Arc<Mailbox<T>>);

impl<T> Held<T> {
    /// The first hold of a queue.
    #[must_use]
    pub fn new(mailbox: Arc<Mailbox<T>>) -> Arc<Self> {
        Arc::new(Self(mailbox))
    }
}

impl<T> Deref for Held<T> {
    type Target = Mailbox<T>;

    fn deref(&self) -> &Mailbox<T> {
        &self.0
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.0.end(None);
    }
}

/// The queue as a stream of frames. When it is dropped, the queue has ended.
pub struct Frames<T, F> {
    mailbox: Arc<Mailbox<T>>,
    limits: FrameLimits,
    frame: F,
    is_done: bool,
}

impl<T, F> Frames<T, F> {
    /// Frames that `frame` makes of what is in `mailbox`.
    pub fn new(mailbox: Arc<Mailbox<T>>, limits: FrameLimits, frame: F) -> Self {
        Self { mailbox, limits, frame, is_done: false }
    }
}

impl<T, M, F: FnMut(Vec<T>) -> M + Unpin> Stream for Frames<T, F> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_done {
            return Poll::Ready(None);
        }
        this.mailbox.waker.register(context.waker());
        // Looked at first: what was put in before the end is behind no end.
        let end = this.mailbox.end_of_stream();
        if let Some(items) = this.mailbox.take(this.limits) {
            return Poll::Ready(Some(Ok((this.frame)(items))));
        }
        match end {
            None => Poll::Pending,
            Some(end) => {
                this.is_done = true;
                Poll::Ready(end.map(Err))
            }
        }
    }
}

impl<T, F> Drop for Frames<T, F> {
    fn drop(&mut self) {
        self.mailbox.end(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    const LIMITS: FrameLimits = FrameLimits { items: 3, bytes: 100 };

    #[tokio::test]
    async fn a_stream_ends_behind_the_last_answer() {
        let mailbox = Mailbox::new(1_000);
        let mut frames = Frames::new(Arc::clone(&mailbox), LIMITS, |items: Vec<u8>| items);
        let held = Held::new(mailbox);
        let other = Arc::clone(&held);
        held.put(1, 1).unwrap();
        drop(held);
        other.put(2, 1).unwrap();
        drop(other);
        assert_eq!(frames.next().await.unwrap().unwrap(), [1, 2]);
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn what_gathered_goes_together_up_to_the_limits() {
        let mailbox = Mailbox::new(1_000);
        let mut frames = Frames::new(Arc::clone(&mailbox), LIMITS, |items: Vec<u8>| items);
        for item in 0..5 {
            mailbox.put(item, 1).unwrap();
        }
        assert_eq!(frames.next().await.unwrap().unwrap(), [0, 1, 2]);
        assert_eq!(frames.next().await.unwrap().unwrap(), [3, 4]);
        mailbox.put(9, 500).unwrap();
        mailbox.put(8, 1).unwrap();
        assert_eq!(frames.next().await.unwrap().unwrap(), [9], "a large one travels alone");
        mailbox.nudge();
        assert_eq!(frames.next().await.unwrap().unwrap(), [8]);
        mailbox.nudge();
        assert!(frames.next().await.unwrap().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_says_so_and_an_end_throws_away() {
        let mailbox = Mailbox::new(10);
        let mut frames = Frames::new(Arc::clone(&mailbox), LIMITS, |items: Vec<u8>| items);
        assert_eq!(mailbox.put(1, 20), Ok(()), "one is always taken");
        assert_eq!(mailbox.put(2, 1), Err(NotTaken::Full));
        mailbox.end(Some(Status::resource_exhausted("too slow")));
        mailbox.ended().await;
        assert_eq!(mailbox.put(3, 1), Err(NotTaken::Ended));
        assert!(frames.next().await.unwrap().is_err());
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_goes_ends_the_queue() {
        let mailbox = Mailbox::<u8>::new(10);
        drop(Frames::new(Arc::clone(&mailbox), LIMITS, |items: Vec<u8>| items));
        mailbox.ended().await;
    }
}
