//! The fast path: frames of calls in, frames of answers out.
//!
//! Gets of newest rows are answered in the frame that follows theirs; everything that waits
//! is answered when it is done, together with whatever else is done by then. A stream holds
//! a bounded number of calls: past it, no further frame is read.

use crate::handover::Unplaced;
use crate::limits;
use crate::node::{Node, Write};
use crate::pipeline::{Ask, Reply, Request};
use crate::read::needs_evidence;
use crate::store::memory_tables::Reserved;
use crate::tablets::TabletHandle;
use ebla_kernel::op::Token;
use ebla_kernel::tablet::Answer;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1::pipe_answer::Answer as WireAnswer;
use ebla_proto::v1::pipe_call::Call;
use ebla_proto::v1::{Consistency, GetRequest, PipeAnswer, PipeCall, PipeRequest, PipeResponse};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::{Status, Streaming};

type Frames = mpsc::Sender<Result<PipeResponse, Status>>;

/// One client's stream.
struct Pipe {
    node: Arc<Node>,
    /// Writes at the sequencer, by a number of our own: a client may use one of its twice.
    sequenced: Mutex<HashMap<u64, Sequenced>>,
    next: AtomicU64,
    /// Answers of the sequencer.
    answers: mpsc::UnboundedSender<(u64, Answer)>,
    /// Answers of calls that had a task of their own.
    done: mpsc::UnboundedSender<PipeAnswer>,
    /// Calls that wait for an answer.
    room: Arc<Semaphore>,
}

/// What comes back for a stream.
struct Answers {
    sequenced: mpsc::UnboundedReceiver<(u64, Answer)>,
    done: mpsc::UnboundedReceiver<PipeAnswer>,
    /// Resolves when no call waits and none will come.
    end: oneshot::Receiver<()>,
}

/// A write at the sequencer.
struct Sequenced {
    /// The client's number for it.
    call: u64,
    tablet: Arc<TabletHandle>,
    token: Token,
    /// Its room in memory, until it is answered.
    _room: Option<Reserved>,
}

/// Serves a stream until its client is gone.
pub fn serve(node: Arc<Node>, calls: Streaming<PipeRequest>) -> mpsc::Receiver<Result<PipeResponse, Status>> {
    let (frames, out) = mpsc::channel(limits::PIPE_FRAMES_WAITING);
    let (answers, sequencer_answers) = mpsc::unbounded_channel();
    let (done, task_answers) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(limits::PIPE_CALLS_WAITING as usize));
    let pipe =
        Arc::new(Pipe { node, sequenced: Mutex::default(), next: AtomicU64::new(0), answers, done, room });
    let (ended, end) = oneshot::channel();
    let answers = Answers { sequenced: sequencer_answers, done: task_answers, end };
    tokio::spawn(Arc::clone(&pipe).send_answers(answers, frames.clone()));
    tokio::spawn(async move {
        pipe.take_calls(calls, frames).await;
        // The client asks nothing more: end the stream when everything is answered.
        let _ = pipe.room.acquire_many(limits::PIPE_CALLS_WAITING).await;
        drop(ended);
    });
    out
}

impl Pipe {
    async fn take_calls(self: &Arc<Self>, mut calls: Streaming<PipeRequest>, frames: Frames) {
        loop {
            let frame = match calls.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(status) => {
                    // Nobody may be left to hear it.
                    let _ = frames.send(Err(status)).await;
                    return;
                }
            };
            let mut ready = Vec::new();
            for call in frame.calls {
                if let Some(answer) = self.take(call).await {
                    ready.push(answer);
                }
            }
            if !ready.is_empty() && frames.send(Ok(PipeResponse { answers: ready })).await.is_err() {
                return;
            }
        }
    }

    /// Answers a call at once, or lets it wait.
    async fn take(self: &Arc<Self>, call: PipeCall) -> Option<PipeAnswer> {
        let id = call.id;
        match call.call {
            Some(Call::Get(get)) if get.at_ts == 0 && !reads_copy(&get) => match self.node.get_newest(&get) {
                Err(_) if self.node.is_handed_over_for(&get) => self.get(id, get).await,
                result => Some(answer(id, result.map(WireAnswer::Get))),
            },
            Some(Call::Get(get)) => self.get(id, get).await,
            Some(Call::Write(write)) => match self.node.prepare_write(write) {
                Ok(write) => self.write(id, write).await,
                Err(unplaced) if unplaced.write.is_none() => Some(answer(id, Err(unplaced.error))),
                Err(unplaced) => self.write_later(id, unplaced).await,
            },
            None => {
                let hint = "a call is empty: set get or write";
                Some(answer(id, Err(ApiError::new(Reason::BadRequest, hint))))
            }
        }
    }

    /// Reads what has to be waited for.
    async fn get(self: &Arc<Self>, id: u64, get: GetRequest) -> Option<PipeAnswer> {
        let node = Arc::clone(&self.node);
        self.spawn(id, async move { node.get(&get).await.map(WireAnswer::Get) }).await;
        None
    }

    /// Writes once somebody serves the row here again.
    async fn write_later(self: &Arc<Self>, id: u64, unplaced: Box<Unplaced>) -> Option<PipeAnswer> {
        let node = Arc::clone(&self.node);
        let write = async move {
            let write = node.place_later(unplaced).await?;
            node.write(write).await.map(WireAnswer::Write)
        };
        self.spawn(id, write).await;
        None
    }

    async fn write(self: &Arc<Self>, id: u64, write: Write) -> Option<PipeAnswer> {
        if needs_evidence(&write.ops) {
            let node = Arc::clone(&self.node);
            self.spawn(id, async move { node.write(write).await.map(WireAnswer::Write) }).await;
            return None;
        }
        self.take_room().await;
        let Write { tablet, ops, level, token, deadline, room } = write;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let reply = Reply::Stream { call: number, to: self.answers.clone() };
        let ask = Ask::Write { ops, level, token: Some(token), evidence: Default::default() };
        let request = Request { tablet: tablet.id, ask, deadline, reply };
        self.sequenced().insert(number, Sequenced { call: id, tablet, token, _room: room });
        let error = self.node.submit(request).err()?;
        self.sequenced().remove(&number);
        self.room.add_permits(1);
        Some(answer(id, Err(error)))
    }

    async fn spawn(
        self: &Arc<Self>,
        id: u64,
        call: impl Future<Output = Result<WireAnswer, ApiError>> + Send + 'static,
    ) {
        self.take_room().await;
        let pipe = Arc::clone(self);
        tokio::spawn(async move {
            let result = call.await;
            // A client that is gone hears nothing.
            let _ = pipe.done.send(answer(id, result));
        });
    }

    /// Waits until one more call may wait.
    async fn take_room(&self) {
        let permit = self.room.acquire().await.expect("the semaphore is never closed");
        permit.forget();
    }

    /// Sends what is done, as many answers in a frame as there are.
    async fn send_answers(self: Arc<Self>, answers: Answers, frames: Frames) {
        let Answers { mut sequenced, mut done, mut end } = answers;
        loop {
            let first = tokio::select! {
                Some((number, answer)) = sequenced.recv() => self.write_answer(number, answer),
                Some(answer) = done.recv() => answer,
                () = frames.closed() => return,
                _ = &mut end => return,
            };
            let mut answers = vec![first];
            while answers.len() < limits::PIPE_ANSWERS_PER_FRAME {
                if let Ok((number, answer)) = sequenced.try_recv() {
                    answers.push(self.write_answer(number, answer));
                } else if let Ok(answer) = done.try_recv() {
                    answers.push(answer);
                } else {
                    break;
                }
            }
            self.room.add_permits(answers.len());
            if frames.send(Ok(PipeResponse { answers })).await.is_err() {
                return;
            }
        }
    }

    fn write_answer(&self, number: u64, result: Answer) -> PipeAnswer {
        let noted = self.sequenced().remove(&number);
        let Sequenced { call, tablet, token, _room } =
            noted.expect("a call is noted before it is handed over");
        answer(call, self.node.write_response(&tablet, result, token).map(WireAnswer::Write))
    }

    fn sequenced(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Sequenced>> {
        self.sequenced.lock().expect("no holder of this lock panics")
    }
}

/// Whether a read may have to wait until the copy here has what it must see.
fn reads_copy(get: &GetRequest) -> bool {
    match Consistency::try_from(get.consistency) {
        Ok(Consistency::Unspecified | Consistency::Linearizable) => false,
        Ok(Consistency::Bounded | Consistency::Session) | Err(_) => true,
    }
}

fn answer(id: u64, result: Result<WireAnswer, ApiError>) -> PipeAnswer {
    let answer = result.unwrap_or_else(|error| WireAnswer::Error(error.into()));
    PipeAnswer { id, answer: Some(answer) }
}
