//! The shell of the control core: feeds it, and carries its effects out.
//!
//! One task owns the core and the sessions of tablet servers. It looks at one closed set of
//! triggers: leadership, applied changes, sessions, time. When leadership is lost, every
//! session ends and the core forgets everything.

use crate::clock;
use crate::limits::CONTROL_QUEUE_MAX;
use crate::liveness::Liveness;
use crate::raft::node::Raft;
use crate::raft::view::Role;
use ebla_kernel::ids::{Attempt, Epoch, Incarnation, ReplicaId, ServerId, TabletId, Tick};
use ebla_kernel::meta::{
    Changes, ClusterId, Command, Control, Effect, Fence, FenceAnswer, GaveUp, InSyncChange, Input, Reply,
    Settings, SplitCommit, State, TransferRefusal,
};
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::{meta, split, v1};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

/// Where messages to one tablet server go.
pub(crate) type SessionOutbox = mpsc::Sender<Result<v1::SessionResponse, Status>>;

/// What sessions tell the controller.
pub(crate) enum Event {
    /// A registered server is connected. Answered with whether the session stands.
    Opened {
        server: ServerId,
        incarnation: Incarnation,
        number: u64,
        outbox: SessionOutbox,
        ends: oneshot::Sender<Infallible>,
        accepted: oneshot::Sender<bool>,
    },
    /// A session ended.
    Closed { server: ServerId, number: u64 },
    /// A server gave epochs up for good.
    GaveUp { server: ServerId, number: u64, epochs: Vec<GaveUp> },
    /// A server says whom it has not heard of.
    Silent { server: ServerId, number: u64, leaders: BTreeSet<(ServerId, Incarnation)> },
    /// A server says which copies of what it leads are too far behind.
    Behind { server: ServerId, number: u64, copies: Vec<(TabletId, Epoch, ReplicaId)> },
    /// A server says which of its own copies hold another history than their leaders.
    Diverged { server: ServerId, number: u64, copies: Vec<(TabletId, ReplicaId)> },
    /// A server asks for changes of the in-sync sets of tablets that it leads.
    Proposals { server: ServerId, number: u64, changes: Vec<InSyncChange> },
    /// A command with such changes was applied: the changes and whether each was accepted.
    Altered { server: ServerId, number: u64, answers: Vec<(InSyncChange, bool)> },
    /// Such a command was lost, perhaps: the server asks again.
    AlterationLost { server: ServerId, number: u64 },
    /// A server asks that tablets which it leads and has sealed be retired.
    Commits { server: ServerId, number: u64, commits: Vec<SplitCommit> },
    /// Such a commit was refused for good.
    CommitRefused { server: ServerId, number: u64, tablets: Vec<(TabletId, Epoch)>, attempt: Attempt },
    /// An operator wants the copy on `server` to lead. Answered with whether the order went out.
    Transfer { tablet: TabletId, server: ServerId, answer: oneshot::Sender<Result<(), TransferRefusal>> },
    /// A server answered fences.
    Answers { server: ServerId, number: u64, answers: Vec<FenceAnswer> },
}

/// The way to the controller.
pub(crate) type Events = mpsc::Sender<Event>;

struct Session {
    number: u64,
    incarnation: Incarnation,
    outbox: SessionOutbox,
    /// Goes with the session, and ends its task.
    _ends: oneshot::Sender<Infallible>,
    /// Changes of in-sync sets that wait for the command under way: one per tablet, so that
    /// they are as bounded as tablets are.
    asked: BTreeMap<TabletId, InSyncChange>,
    altering: bool,
}

/// The task's parts.
pub(crate) struct Controller {
    raft: Raft,
    liveness: Arc<Liveness>,
    core: Control,
    /// The way back from commands that were proposed; weak, so that the controller ends with
    /// the services.
    events: mpsc::WeakSender<Event>,
    sessions: BTreeMap<ServerId, Session>,
    term: Option<u64>,
    start: Instant,
    /// The data directories that the cluster is formed with.
    directories: BTreeMap<u64, u64>,
    peers: BTreeMap<u64, String>,
}

/// One trigger.
enum Trigger {
    Role(Role),
    Changed(Changes),
    Event(Event),
    Time,
    End,
}

impl Controller {
    /// A controller and the way to it.
    pub fn new(
        raft: Raft,
        liveness: Arc<Liveness>,
        peers: BTreeMap<u64, String>,
        settings: Settings,
    ) -> (Self, Events, mpsc::Receiver<Event>) {
        let (events, inbox) = mpsc::channel(CONTROL_QUEUE_MAX);
        let controller = Self {
            raft,
            liveness,
            core: Control::new(settings),
            events: events.downgrade(),
            sessions: BTreeMap::new(),
            term: None,
            start: Instant::now(),
            directories: BTreeMap::new(),
            peers,
        };
        (controller, events, inbox)
    }

    /// Runs until the events' senders are gone. `directories` are those of the group.
    pub async fn run(mut self, directories: BTreeMap<u64, u64>, mut events: mpsc::Receiver<Event>) {
        self.directories = directories;
        let mut role = self.raft.view().watch_role();
        let mut changes = self.raft.view().watch_changes();
        role.mark_changed();
        loop {
            let pause = self.pause();
            let trigger = tokio::select! {
                changed = role.changed() => match changed {
                    Ok(()) => Trigger::Role(*role.borrow_and_update()),
                    Err(_) => Trigger::End,
                },
                changed = changes.recv() => match changed {
                    Ok(changes) => Trigger::Changed(Changes::clone(&changes)),
                    Err(broadcast::error::RecvError::Lagged(_)) => Trigger::Changed(Changes::everything()),
                    Err(broadcast::error::RecvError::Closed) => Trigger::End,
                },
                event = events.recv() => event.map_or(Trigger::End, Trigger::Event),
                () = tokio::time::sleep(pause) => Trigger::Time,
            };
            match trigger {
                Trigger::Role(role) => self.on_role(role),
                Trigger::Changed(changes) => self.on_changed(changes),
                Trigger::Event(event) => {
                    self.catch_up(&mut changes);
                    self.on_event(event);
                }
                Trigger::Time => self.step(Input::Tick { wall: clock::wall() }),
                Trigger::End => return,
            }
        }
    }

    /// Takes in what was applied before an event was sent: a server learns of a record before
    /// it learns what became of its wish.
    fn catch_up(&mut self, changes: &mut broadcast::Receiver<Arc<Changes>>) {
        loop {
            match changes.try_recv() {
                Ok(change) => self.on_changed(Changes::clone(&change)),
                Err(broadcast::error::TryRecvError::Lagged(_)) => self.on_changed(Changes::everything()),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return,
            }
        }
    }

    /// Until the core wants a tick; at the latest a second, so that its wall time is fresh.
    fn pause(&self) -> Duration {
        let now = self.now();
        let until = self.core.next_deadline().map_or(1_000, |at| at.ms_since(now));
        Duration::from_millis(until.min(1_000))
    }

    fn now(&self) -> Tick {
        clock::tick_since(self.start)
    }

    fn on_role(&mut self, role: Role) {
        let term = role.leading.then_some(role.term);
        if term == self.term {
            return;
        }
        if self.term.take().is_some() {
            self.end_all(role.leader);
            self.step(Input::LostLeadership);
        }
        if role.leading {
            self.term = term;
            self.liveness.reset();
            self.step(Input::Tick { wall: clock::wall() });
            let cluster_id = ClusterId(rand::random());
            self.step(Input::BecameLeader { cluster_id, masters: self.directories.clone() });
        }
    }

    fn on_changed(&mut self, changes: Changes) {
        self.liveness.forget(changes.removed_tablets.keys());
        self.step(Input::Applied(changes));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened { server, incarnation, number, outbox, ends, accepted } => {
                let (asked, altering) = (BTreeMap::new(), false);
                let session = Session { number, incarnation, outbox, _ends: ends, asked, altering };
                let stands = self.open(server, session);
                // The session's task may be gone; it then also closes.
                let _ = accepted.send(stands);
            }
            Event::Transfer { tablet, server, answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(self.transfer(tablet, server));
            }
            Event::Closed { server, number } if self.is_present(server, number) => self.close(server),
            Event::GaveUp { server, number, epochs } if self.is_present(server, number) => {
                self.step(Input::GaveUp { server, epochs });
            }
            Event::Silent { server, number, leaders } if self.is_present(server, number) => {
                self.step(Input::Silent { server, leaders });
            }
            Event::Behind { server, number, copies } if self.is_present(server, number) => {
                self.step(Input::Behind { server, copies });
            }
            Event::Diverged { server, number, copies } if self.is_present(server, number) => {
                for (tablet, replica) in &copies {
                    tracing::warn!(%server, %tablet, %replica, "a copy has diverged from its leader");
                }
                self.step(Input::Diverged { server, copies });
            }
            Event::Answers { server, number, answers } if self.is_present(server, number) => {
                self.step(Input::FenceAnswered { server, answers });
            }
            Event::Proposals { server, number, changes } if self.is_present(server, number) => {
                self.on_proposals(server, changes);
            }
            Event::Altered { server, number, answers } if self.is_present(server, number) => {
                self.on_altered(server, &answers);
            }
            Event::AlterationLost { server, number } if self.is_present(server, number) => {
                self.on_altered(server, &[]);
            }
            Event::Commits { server, number, commits } if self.is_present(server, number) => {
                commits.into_iter().for_each(|commit| self.commit(server, number, commit));
            }
            Event::CommitRefused { server, number, tablets, attempt } if self.is_present(server, number) => {
                self.refuse_commit(server, &tablets, attempt);
            }
            // Of a session that is over.
            Event::Closed { .. }
            | Event::Commits { .. }
            | Event::CommitRefused { .. }
            | Event::GaveUp { .. }
            | Event::Silent { .. }
            | Event::Behind { .. }
            | Event::Diverged { .. }
            | Event::Answers { .. }
            | Event::Proposals { .. }
            | Event::Altered { .. }
            | Event::AlterationLost { .. } => {}
        }
    }

    fn transfer(&mut self, tablet: TabletId, server: ServerId) -> Result<(), TransferRefusal> {
        let replica = {
            let state = self.raft.view().state();
            self.core.transfer_target(&state, tablet, server)?
        };
        self.step(Input::Transfer { tablet, replica });
        Ok(())
    }

    fn on_proposals(&mut self, server: ServerId, changes: Vec<InSyncChange>) {
        if let Some(session) = self.sessions.get_mut(&server) {
            session.asked.extend(changes.into_iter().map(|change| (change.tablet, change)));
            self.alter(server);
        }
    }

    fn on_altered(&mut self, server: ServerId, answers: &[(InSyncChange, bool)]) {
        if let Some(session) = self.sessions.get_mut(&server) {
            session.altering = false;
        }
        let answers: Vec<_> =
            answers.iter().map(|(change, accepted)| meta::in_sync_answer(change, *accepted)).collect();
        if !answers.is_empty() {
            let message = v1::session_response::Message::InSyncAnswers(v1::InSyncAnswers { answers });
            if let Some(server) = self.send(server, message) {
                self.step(Input::SessionClosed { server });
            }
        }
        self.alter(server);
    }

    /// Proposes everything that a server asks for as one command, one command at a time.
    fn alter(&mut self, server: ServerId) {
        let Some(session) = self.sessions.get_mut(&server) else { return };
        if session.altering || session.asked.is_empty() {
            return;
        }
        let Some(events) = self.events.upgrade() else { return };
        session.altering = true;
        let number = session.number;
        let changes: Vec<InSyncChange> = std::mem::take(&mut session.asked).into_values().collect();
        let command =
            Command::AlterInSync { proposer: (server, session.incarnation), changes: changes.clone() };
        let raft = self.raft.clone();
        tokio::spawn(async move {
            let event = match raft.propose(command).await {
                Ok(Reply::InSync(results)) => {
                    let accepted = results.iter().map(Result::is_ok);
                    let answers = changes.into_iter().zip(accepted).collect();
                    Event::Altered { server, number, answers }
                }
                Ok(_) | Err(_) => Event::AlterationLost { server, number },
            };
            // A controller that is gone has no sessions.
            let _ = events.send(event).await;
        });
    }

    /// Proposes a commit, once every half of it has come in. What was committed comes to the
    /// leader as an assignment; a proposal that is lost it asks for again.
    fn commit(&mut self, server: ServerId, number: u64, commit: SplitCommit) {
        let Some(incarnation) = self.sessions.get(&server).map(|session| session.incarnation) else { return };
        let Some(events) = self.events.upgrade() else { return };
        let (proposer, attempt) = ((server, incarnation), commit.attempt);
        let commits = {
            let state = self.raft.view().state();
            self.core.take_commit(&state, proposer, commit)
        };
        if commits.is_empty() {
            return;
        }
        let tablets: Vec<_> = commits.iter().map(|commit| (commit.tablet, commit.epoch)).collect();
        let command = Command::CommitSplit { proposer, commits, time_ms: clock::wall_ms() };
        let raft = self.raft.clone();
        tokio::spawn(async move {
            if let Ok(Reply::Rejected(why)) = raft.propose(command).await {
                tracing::info!(?tablets, %attempt, %why, "a commit was refused");
                // A controller that is gone has no sessions.
                let _ = events.send(Event::CommitRefused { server, number, tablets, attempt }).await;
            }
        });
    }

    fn refuse_commit(&mut self, server: ServerId, tablets: &[(TabletId, Epoch)], attempt: Attempt) {
        let refusal = |(tablet, epoch): &(TabletId, Epoch)| v1::SplitRefusal {
            tablet_id: tablet.0,
            epoch: epoch.0,
            attempt: attempt.0,
        };
        let refusals = v1::SplitRefusals { refusals: tablets.iter().map(refusal).collect() };
        let message = v1::session_response::Message::SplitRefusals(refusals);
        if let Some(server) = self.send(server, message) {
            self.step(Input::SessionClosed { server });
        }
    }

    fn is_present(&self, server: ServerId, number: u64) -> bool {
        self.sessions.get(&server).is_some_and(|session| session.number == number)
    }

    /// Takes a session in, unless a later run of its server is connected or nobody leads here.
    fn open(&mut self, server: ServerId, session: Session) -> bool {
        let present = self.sessions.get(&server).map(|session| session.incarnation);
        if self.term.is_none() || present.is_some_and(|present| present > session.incarnation) {
            return false;
        }
        if present.is_some_and(|present| present < session.incarnation) {
            self.end(server, superseded(server));
        }
        let incarnation = session.incarnation;
        self.sessions.insert(server, session);
        self.liveness.opened(server);
        self.step(Input::SessionOpened { server, incarnation });
        self.sessions.contains_key(&server)
    }

    fn close(&mut self, server: ServerId) {
        self.sessions.remove(&server);
        self.liveness.closed(server);
        self.step(Input::SessionClosed { server });
    }

    /// Tells a server why its session ends. The core knows already, or is told by the caller.
    fn end(&mut self, server: ServerId, why: ApiError) {
        if let Some(session) = self.sessions.remove(&server) {
            self.liveness.closed(server);
            // A full queue loses the reason; the end of the stream is seen all the same, because
            // nobody else holds the queue.
            let _ = session.outbox.try_send(Err(why.into()));
        }
    }

    fn end_all(&mut self, leader: Option<u64>) {
        let servers: Vec<ServerId> = self.sessions.keys().copied().collect();
        for server in servers {
            let address = leader.and_then(|leader| self.peers.get(&leader));
            self.end(server, not_leader(address.map(String::as_str)));
        }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            let now = self.now();
            let raft = self.raft.clone();
            {
                let state = raft.view().state();
                self.core.step(now, &state, input, &mut effects);
            }
            for effect in effects {
                if let Some(server) = self.carry_out(effect) {
                    inputs.push(Input::SessionClosed { server });
                }
            }
        }
        metrics::gauge!("ebla_master_elections").set(self.core.elections() as f64);
    }

    /// Carries one effect out. Gives the server whose session ended by it.
    fn carry_out(&mut self, effect: Effect) -> Option<ServerId> {
        match effect {
            Effect::Propose(command) => {
                self.propose(command);
                None
            }
            Effect::SendFences { server, fences } => self.send(server, fences_to_wire(&fences)),
            Effect::SendAssignments { server, full, tablets, removed } => {
                let incarnation = self.sessions.get(&server)?.incarnation;
                let message = {
                    let state = self.raft.view().state();
                    let assignee = Assignee { server, incarnation };
                    assignee.assignments(&state, full, &tablets, &removed)
                };
                self.send(server, message)
            }
            Effect::SendTransfer { server, tablet, epoch, replica } => {
                let transfer = v1::Transfer { tablet_id: tablet.0, epoch: epoch.0, replica_id: replica.0 };
                let transfers = v1::Transfers { transfers: vec![transfer] };
                self.send(server, v1::session_response::Message::Transfers(transfers))
            }
            Effect::SendSeal { server, order } => {
                let orders = v1::SealOrders { orders: vec![split::seal_order_to_wire(&order)] };
                self.send(server, v1::session_response::Message::SealOrders(orders))
            }
            Effect::EndSession { server } => {
                self.end(server, superseded(server));
                None
            }
        }
    }

    /// A proposal that is lost is made again by the core's own clock.
    fn propose(&self, command: Command) {
        if let Command::Appoint { appointments } = &command {
            let degraded = appointments.iter().filter(|appointment| appointment.degraded).count();
            if degraded > 0 {
                tracing::warn!(
                    tablets = degraded,
                    "leaders are appointed with too few answers, as the tables' policy lets"
                );
            }
        }
        let raft = self.raft.clone();
        tokio::spawn(async move {
            if let Err(error) = raft.propose(command).await {
                tracing::debug!(%error, "an election's command was lost");
            }
        });
    }

    fn send(&mut self, server: ServerId, message: v1::session_response::Message) -> Option<ServerId> {
        let session = self.sessions.get(&server)?;
        let response = v1::SessionResponse { message: Some(message) };
        if session.outbox.try_send(Ok(response)).is_ok() {
            return None;
        }
        tracing::warn!(%server, "a tablet server does not take its messages: its session ends");
        let why = "the server took no messages: it registers again by itself";
        self.end(server, ApiError::new(Reason::Overloaded, why));
        Some(server)
    }
}

/// To whom assignments go.
struct Assignee {
    server: ServerId,
    incarnation: Incarnation,
}

impl Assignee {
    fn assignments(
        &self,
        state: &State,
        full: bool,
        tablets: &[TabletId],
        removed: &[TabletId],
    ) -> v1::session_response::Message {
        let assignments = tablets.iter().filter_map(|id| self.assignment(state, *id)).collect();
        v1::session_response::Message::Assignments(v1::Assignments {
            full,
            assignments,
            removed_tablet_ids: removed.iter().map(|id| id.0).collect(),
        })
    }

    /// The server's copy of a tablet; none when it holds none, or one whose data it lost.
    fn assignment(&self, state: &State, id: TabletId) -> Option<v1::Assignment> {
        let tablet = state.tablet(id)?;
        let replica = tablet.replica_on(self.server).filter(|replica| state.holds_data(replica))?;
        let table = state.table(tablet.table)?;
        let leads = tablet
            .leader
            .is_some_and(|leader| leader.replica == replica.id && leader.incarnation == self.incarnation);
        Some(v1::Assignment {
            tablet: Some(meta::tablet_to_wire(state, tablet)),
            replica_id: replica.id.0,
            table: Some(meta::table_to_wire(table)),
            leads,
            appointed_ts: tablet.appointed_ts.0,
            aborted_attempt: tablet.aborted.0,
            parents: tablet.parents.iter().map(split::parent_to_wire).collect(),
            joined_ts: tablet.joined_ts.0,
        })
    }
}

fn fences_to_wire(fences: &[Fence]) -> v1::session_response::Message {
    let fences = fences.iter().map(meta::fence_to_wire).collect();
    v1::session_response::Message::Fences(v1::Fences { fences })
}

/// The answer of a master that does not lead.
pub(crate) fn not_leader(leader: Option<&str>) -> ApiError {
    match leader {
        Some(address) => {
            let hint = format!("this master does not lead: ask the one at {address}");
            ApiError::new(Reason::NotLeader, hint).with("leader", address)
        }
        None => ApiError::new(Reason::NotLeader, "no master leads now: try again in a moment"),
    }
}

/// The answer to a run that is over.
pub(crate) fn superseded(server: ServerId) -> ApiError {
    let hint = format!(
        "another process runs as server {}: two processes use copies of one data directory; stop one of them",
        server.0
    );
    ApiError::new(Reason::Superseded, hint)
}
