//! The Raft thread: one loop that owns node, log and applied state.
//!
//! ```text
//! inputs -> node -> ready: messages that promise nothing   -> transport
//!                          snapshot, entries, hard state   -> one synced batch
//!                          committed entries               -> state, answers, changes
//!                          messages that promise something -> transport, after the sync
//! ```
//!
//! Any failure to persist ends the thread, and with it the process.

use super::logging::logger;
use super::pending::{NoAnswer, Proposals, ReadSender, Reads, ReplySender};
use super::storage::Storage;
use super::transport::Outbox;
use super::view::{Role, View};
use crate::error::Error;
use crate::identity::DataDir;
use crate::limits::{
    ELECTION_STAGGER_TICKS, ELECTION_TICKS, HEARTBEAT_TICKS, LOG_KEPT_SHARE, RAFT_IN_FLIGHT_MAX,
    RAFT_INBOX_MAX, RAFT_INPUTS_PER_SYNC_MAX, RAFT_MESSAGE_BYTES_MAX, RAFT_TICK, READ_RETRY_TICKS,
};
use ebla_failpoints::failpoint;
use ebla_kernel::meta::{
    Changes, Command, Comparison, Reply, apply, decode_snapshot, encode_snapshot, state_hash,
};
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::{oneshot, watch};

/// Everything that the thread reacts to, besides time.
pub(crate) enum Input {
    /// A message of a peer.
    Message(Box<Message>),
    /// A command for the log.
    Propose { command: Box<Command>, reply: ReplySender },
    /// A read that must see everything acknowledged before.
    Read { reply: ReadSender },
    /// A peer could not be reached.
    Unreachable(u64),
    /// A snapshot was handed to the network, or was not.
    SnapshotSent { peer: u64, ok: bool },
    /// Give leadership to another master.
    TransferAway,
    /// End.
    Stop,
}

/// How to start the thread.
pub(crate) struct Options {
    pub id: u64,
    pub peers: Vec<u64>,
    /// Random number of this run.
    pub run: u64,
    pub snapshot_entries: u64,
}

/// The way to the thread. Ending it: [`Raft::stop`].
#[derive(Clone)]
pub(crate) struct Raft {
    inbox: SyncSender<Input>,
    view: Arc<View>,
}

/// What the thread reports when it ends.
pub(crate) type Failure = watch::Receiver<Option<Arc<Error>>>;

impl Raft {
    /// An inbox whose thread is yet to be started.
    pub fn new(view: Arc<View>) -> (Self, Receiver<Input>) {
        let (inbox, inputs) = sync_channel(RAFT_INBOX_MAX);
        (Self { inbox, view }, inputs)
    }

    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Puts a command into the log and waits for what it gives.
    pub async fn propose(&self, command: Command) -> Result<Reply, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Propose { command: Box::new(command), reply })?;
        answer.await.unwrap_or(Err(NoAnswer::Stopped))
    }

    /// Waits until the applied state holds everything acknowledged before the call.
    pub async fn read(&self) -> Result<(), NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Read { reply })?;
        answer.await.unwrap_or(Err(NoAnswer::Stopped))
    }

    /// Hands an input over without waiting.
    pub fn send(&self, input: Input) -> Result<(), NoAnswer> {
        self.inbox.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => NoAnswer::Overloaded,
            TrySendError::Disconnected(_) => NoAnswer::Stopped,
        })
    }

    /// Ends the thread after what it has taken in. Blocks while the inbox is full.
    pub fn stop(&self) {
        // A thread that has ended already is what was wanted.
        let _ = self.inbox.send(Input::Stop);
    }
}

/// Starts the thread on `storage`, whose state `view` shows already.
pub(crate) fn spawn(
    options: Options,
    storage: Storage,
    raft: &Raft,
    inputs: Receiver<Input>,
    outbox: Outbox,
    lock: DataDir,
) -> Result<(JoinHandle<()>, Failure), Error> {
    let (failed, failure) = watch::channel(None);
    let mut node = Node::new(options, storage, Arc::clone(&raft.view), outbox)?;
    let run = move || {
        // Dropped without a value when the library panics.
        let failed = FailureOnDrop(Some(failed));
        let ended = node.run(&inputs);
        failed.disarm(ended.err());
        // The directory is free only when nothing of this run can write to it any more.
        drop(node);
        drop(lock);
    };
    let thread = std::thread::Builder::new().name("raft".to_owned()).spawn(run);
    Ok((thread.map_err(Error::io("starting the raft thread"))?, failure))
}

struct FailureOnDrop(Option<watch::Sender<Option<Arc<Error>>>>);

impl FailureOnDrop {
    fn disarm(mut self, error: Option<Error>) {
        if let (Some(failed), Some(error)) = (self.0.take(), error) {
            tracing::error!(%error, "the metadata log failed");
            let _ = failed.send(Some(Arc::new(error)));
        }
    }
}

impl Drop for FailureOnDrop {
    fn drop(&mut self) {
        if let Some(failed) = self.0.take() {
            let _ = failed.send(Some(Arc::new(Error::ThreadEnded)));
        }
    }
}

struct Node {
    id: u64,
    raw: RawNode<Storage>,
    view: Arc<View>,
    outbox: Outbox,
    proposals: Proposals,
    reads: Reads,
    snapshot_entries: u64,
    applied: u64,
    ticks: u64,
}

impl Node {
    fn new(options: Options, storage: Storage, view: Arc<View>, outbox: Outbox) -> Result<Self, Error> {
        let applied = storage.snapshot_index();
        let rank = options.peers.iter().filter(|peer| **peer < options.id).count();
        let timeout_min = ELECTION_TICKS + rank * ELECTION_STAGGER_TICKS;
        let config = raft::Config {
            id: options.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            min_election_tick: timeout_min,
            max_election_tick: timeout_min + ELECTION_STAGGER_TICKS,
            applied,
            max_size_per_msg: RAFT_MESSAGE_BYTES_MAX,
            max_inflight_msgs: RAFT_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..raft::Config::default()
        };
        let mut raw = RawNode::new(&config, storage, &logger())?;
        if options.peers.len() == 1 {
            raw.campaign()?;
        }
        Ok(Self {
            id: options.id,
            raw,
            view,
            outbox,
            proposals: Proposals::new(options.run),
            reads: Reads::default(),
            snapshot_entries: options.snapshot_entries.max(1),
            applied,
            ticks: 0,
        })
    }

    fn run(&mut self, inputs: &Receiver<Input>) -> Result<(), Error> {
        let mut next_tick = Instant::now() + RAFT_TICK;
        let mut going = true;
        while going {
            self.ready()?;
            going = self.take_inputs(inputs, next_tick);
            // A late thread ticks once, not once per tick missed: first hear what waited.
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + RAFT_TICK;
            }
        }
        self.proposals.fail_all(NoAnswer::Stopped);
        self.reads.fail_all(NoAnswer::Stopped);
        Ok(())
    }

    /// Waits for one input or the next tick, then takes what else is there. False: end.
    fn take_inputs(&mut self, inputs: &Receiver<Input>, until: Instant) -> bool {
        let mut input = match inputs.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        let mut taken = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop) {
                return false;
            }
            self.take(next);
            taken += 1;
            input = if taken < RAFT_INPUTS_PER_SYNC_MAX { inputs.try_recv().ok() } else { None };
        }
        true
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Message(message) => self.step(*message),
            Input::Propose { command, reply } => self.propose(&command, reply),
            Input::Read { reply } => self.read(reply),
            Input::Unreachable(peer) => self.raw.report_unreachable(peer),
            Input::SnapshotSent { peer, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raw.report_snapshot(peer, status);
            }
            Input::TransferAway => self.transfer_away(),
            Input::Stop => {}
        }
    }

    fn step(&mut self, message: Message) {
        if let Err(error) = self.raw.step(message) {
            // Messages of another time or another membership are ordinary noise.
            tracing::debug!(%error, "a raft message was ignored");
        }
    }

    fn propose(&mut self, command: &Command, reply: ReplySender) {
        let refused = if self.raw.raft.state != StateRole::Leader {
            Some(NoAnswer::NotLeader)
        } else if self.proposals.is_full() {
            Some(NoAnswer::Overloaded)
        } else {
            None
        };
        if let Some(why) = refused {
            let _ = reply.send(Err(why));
            return;
        }
        let (name, context) = self.proposals.name();
        match self.raw.propose(context, command.encode()) {
            Ok(()) => self.proposals.wait(name, reply),
            Err(error) => {
                tracing::debug!(%error, "a proposal was dropped");
                let _ = reply.send(Err(NoAnswer::NotLeader));
            }
        }
    }

    fn read(&mut self, reply: ReadSender) {
        if self.raw.raft.state != StateRole::Leader {
            let _ = reply.send(Err(NoAnswer::NotLeader));
        } else if self.reads.is_full() {
            let _ = reply.send(Err(NoAnswer::Overloaded));
        } else {
            let context = self.reads.add(self.ticks, reply);
            self.raw.read_index(context);
        }
    }

    fn transfer_away(&mut self) {
        let status = self.raw.status();
        let Some(progress) = status.progress else { return };
        let others = progress.iter().filter(|(id, progress)| **id != self.id && progress.recent_active);
        if let Some((best, _)) = others.max_by_key(|(_, progress)| progress.matched) {
            let best = *best;
            self.raw.transfer_leader(best);
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        let overdue = self.ticks.saturating_sub(READ_RETRY_TICKS);
        for context in self.reads.overdue(overdue, self.ticks) {
            self.raw.read_index(context);
        }
    }

    /// Carries out what the library asks for, in the order that safety needs.
    fn ready(&mut self) -> Result<(), Error> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            for read in ready.take_read_states() {
                self.reads.confirm(&read.request_ctx, read.index);
            }
            let hard_state = ready.hs().cloned();
            let snapshot = ready.snapshot().clone();
            if is_empty(&snapshot) {
                if !ready.entries().is_empty() || hard_state.is_some() {
                    self.raw.mut_store().append(ready.entries(), hard_state.as_ref())?;
                }
            } else {
                self.raw.mut_store().install(&snapshot, ready.entries(), hard_state.as_ref())?;
                self.install(&snapshot)?;
            }
            self.apply(ready.take_committed_entries())?;
            self.send(ready.take_persisted_messages());
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().note_commit(commit)?;
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.raw.advance_apply();
            self.publish_role();
        }
        self.reads.answer(self.applied);
        self.compact_if_due()
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let snapshot = message.msg_type == MessageType::MsgSnapshot as i32;
            let peer = message.to;
            if !self.outbox.send(message) && snapshot {
                tracing::warn!(peer, "no room to send a snapshot; it is sent again later");
            }
        }
    }

    fn publish_role(&mut self) {
        let soft = self.raw.raft.soft_state();
        let leader = (soft.leader_id != 0).then_some(soft.leader_id);
        let leading = soft.raft_state == StateRole::Leader;
        let before = self.view.role();
        let role = Role { leader, leading, term: self.raw.raft.term };
        if before.leading && !leading {
            self.proposals.fail_all(NoAnswer::Lost);
            self.reads.fail_all(NoAnswer::NotLeader);
        }
        if before.leader != role.leader || before.leading != role.leading {
            tracing::info!(leader, leading, term = role.term, "metadata leadership");
        }
        self.view.publish_role(role);
    }

    /// Puts a leader's snapshot in place of the state.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let state = decode_snapshot(&snapshot.data).map_err(|error| Error::Corrupt(error.to_string()))?;
        self.applied = snapshot.metadata.as_ref().map_or(0, |metadata| metadata.index);
        tracing::info!(index = self.applied, "took the leader's snapshot");
        self.view.change(|present| *present = state);
        self.view.publish_changes(Changes::everything());
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        for entry in entries {
            self.applied = entry.index;
            let normal = entry.entry_type == EntryType::EntryNormal as i32;
            // A new leader's first entry is empty; membership is fixed.
            if normal && !entry.data.is_empty() {
                self.apply_command(&entry)?;
            }
        }
        Ok(())
    }

    fn apply_command(&mut self, entry: &Entry) -> Result<(), Error> {
        let command = Command::decode(&entry.data).map_err(|error| Error::Corrupt(error.to_string()))?;
        let commits = matches!(command, Command::CommitSplit { .. });
        failpoint!("master.apply");
        failpoint!("split.commit", if commits);
        let (reply, changes) = self.view.change(|state| apply(state, entry.index, command));
        failpoint!("split.committed", if commits);
        failpoint!("master.applied");
        if !changes.is_empty() {
            self.view.publish_changes(changes);
        }
        if reply == Reply::Compared(Comparison::Diverged) {
            return Err(Error::Diverged { index: entry.index });
        }
        if let Some(waiting) = self.proposals.take(&entry.context) {
            let _ = waiting.send(Ok(reply));
        }
        Ok(())
    }

    fn compact_if_due(&mut self) -> Result<(), Error> {
        let snapshot = self.raw.store().snapshot_index();
        if self.applied < snapshot + self.snapshot_entries {
            return Ok(());
        }
        let (index, hash, data) = {
            let state = self.view.state();
            (state.applied(), state_hash(&state), encode_snapshot(&state))
        };
        if index <= snapshot {
            return Ok(());
        }
        self.raw.mut_store().compact(index, &data, self.snapshot_entries / LOG_KEPT_SHARE)?;
        tracing::info!(index, bytes = data.len(), "snapshot of the metadata written");
        // The masters' snapshots must say the same: whoever differs halts. Only the leader's
        // proposal is taken, and nobody waits for it.
        let (reply, _) = oneshot::channel();
        self.propose(&Command::CompareState { applied: index, hash }, reply);
        Ok(())
    }
}

fn is_empty(snapshot: &Snapshot) -> bool {
    snapshot.metadata.as_ref().is_none_or(|metadata| metadata.index == 0)
}
