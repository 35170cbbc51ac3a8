//! The sequencer thread: owns the tablet cores, feeds them, and carries out their effects.
//!
//! Effects are executed here and nowhere else, in the order in which the cores gave them.
//! What must be durable before what leaves is decided by the cores: a reply to a write comes
//! out of `Applied`, an answer to a fence out of `PromisePersisted` and `Persisted`.

use super::{Group, TabletEntries};
use crate::clock::Clock;
use crate::limits;
use crate::tablets::TabletHandle;
use crossbeam::channel::{Receiver, Select, Sender, TrySendError};
use ebla_kernel::ids::{Epoch, Incarnation, ReplicaId, RequestId, Seq, TabletId, Tick};
use ebla_kernel::limits::{TOKEN_WINDOW_MS, TOKENS_PER_SERVER_MAX};
use ebla_kernel::op::{AckLevel, Change, Op, Token};
use ebla_kernel::sequence::Evidence;
use ebla_kernel::tablet::{Answer, Appointment, Effect, FenceAnswer, Input, Refusal, Tablet, WriteRequest};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

/// Who waits for an answer.
#[derive(Debug)]
pub enum Reply {
    /// A task of its own.
    Once(oneshot::Sender<Answer>),
    /// A call on a stream.
    Stream {
        /// The call's number.
        call: u64,
        /// The stream's answers.
        to: mpsc::UnboundedSender<(u64, Answer)>,
    },
}

impl Reply {
    /// Answers; a client that went away hears nothing.
    pub fn send(self, answer: Answer) {
        match self {
            Self::Once(to) => drop(to.send(answer)),
            Self::Stream { call, to } => drop(to.send((call, answer))),
        }
    }
}

/// What clients ask.
#[derive(Debug)]
pub enum Ask {
    /// An atomic batch.
    Write {
        /// Its operations, within the limits.
        ops: Vec<Op>,
        /// How many copies to wait for.
        level: AckLevel,
        /// Its name for retries.
        token: Option<Token>,
        /// What was read for it.
        evidence: Evidence,
    },
    /// Tell when everything sequenced so far is applied.
    Barrier,
    /// How did this write end?
    GetOutcome {
        /// The write.
        token: Token,
    },
}

/// A client's request.
#[derive(Debug)]
pub struct Request {
    /// The tablet.
    pub tablet: TabletId,
    /// What is asked.
    pub ask: Ask,
    /// When to answer that nobody knows.
    pub deadline: Tick,
    /// Who waits.
    pub reply: Reply,
}

/// What the server tells its sequencer.
pub enum Control {
    /// Take this replica in.
    Install(Box<Tablet>, Arc<TabletHandle>),
    /// Let this replica go; tell when nothing of it is in flight.
    Remove(TabletId, oneshot::Sender<()>),
    /// Metadata asks for promises.
    Fence(Vec<(TabletId, ReplicaId, Epoch)>),
    /// Metadata named leaders.
    Appoint(Vec<(TabletId, Appointed)>),
    /// Promises are durable.
    PromisePersisted(Vec<(TabletId, Epoch)>),
    /// Entries up to these are durable.
    Persisted(Vec<(TabletId, Seq)>),
    /// Rows up to these are in the store.
    Applied(Vec<(TabletId, Seq)>),
    /// Entries from these on were not written.
    AppendFailed(Vec<(TabletId, Seq)>),
    /// Give up every epoch; tell when nothing is in flight.
    StepDown(oneshot::Sender<()>),
    /// End the thread.
    Stop,
}

/// An appointment before it has its timestamp.
#[derive(Clone, Debug)]
pub struct Appointed {
    /// The term.
    pub epoch: Epoch,
    /// The replica that leads.
    pub replica: ReplicaId,
    /// The process that leads.
    pub incarnation: Incarnation,
    /// The in-sync set.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Durability factor D.
    pub min_in_sync: u8,
}

/// What cores ask of the rest of the server.
#[derive(Debug)]
pub enum Outward {
    /// Make promises durable, then say `PromisePersisted`.
    PersistPromises(Vec<(TabletId, Epoch)>),
    /// Answer metadata's fences.
    FenceAnswers(Vec<(TabletId, ReplicaId, FenceAnswer)>),
    /// Some tablet began or ceased to serve.
    ServingChanged,
}

/// The request cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubmitError {
    /// Too much is waiting.
    Full,
    /// The server is stopping.
    Stopped,
}

/// The way in, for request tasks.
#[derive(Clone)]
pub struct SequencerHandle {
    /// Requests, bounded.
    pub requests: Sender<Request>,
    /// Completions and orders; bounded by the groups and tablets there are.
    pub control: Sender<Control>,
}

impl SequencerHandle {
    /// Hands a request over without waiting.
    ///
    /// # Errors
    /// `Full` or `Stopped`; nothing was done.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }
}

struct Slot {
    tablet: Tablet,
    handle: Arc<TabletHandle>,
}

/// What the sequencer thread works with.
pub struct Sequencer {
    requests: Receiver<Request>,
    control: Receiver<Control>,
    log: Sender<Group>,
    outward: mpsc::UnboundedSender<Outward>,
    clock: Arc<Clock>,
    slots: HashMap<TabletId, Slot>,
    waiting: HashMap<RequestId, Reply>,
    next_request: RequestId,
    group: Group,
    /// Where a tablet's entries stand in `group`.
    parts: HashMap<TabletId, usize>,
    /// Groups handed on and not applied yet, and those who wait for none to be.
    in_flight: usize,
    drained: Vec<oneshot::Sender<()>>,
    /// Tablets whose cores have a deadline.
    timed: HashSet<TabletId>,
    /// Tablets that remember tokens, and how many there are in all.
    with_tokens: HashSet<TabletId>,
    tokens: usize,
    tokens_checked: Tick,
    stopped: bool,
    effects: Vec<Effect>,
    promises: Vec<(TabletId, Epoch)>,
    fence_answers: Vec<(TabletId, ReplicaId, FenceAnswer)>,
    serving_changed: bool,
}

enum Wake {
    Control(Control),
    Request(Request),
    Handed,
    Timeout,
    Stopped,
}

impl Sequencer {
    /// A sequencer of no tablets.
    #[must_use]
    pub fn new(
        requests: Receiver<Request>,
        control: Receiver<Control>,
        log: Sender<Group>,
        outward: mpsc::UnboundedSender<Outward>,
        clock: Arc<Clock>,
    ) -> Self {
        Self {
            requests,
            control,
            log,
            outward,
            clock,
            slots: HashMap::new(),
            waiting: HashMap::new(),
            next_request: RequestId(0),
            group: Group::default(),
            parts: HashMap::new(),
            in_flight: 0,
            drained: Vec::new(),
            timed: HashSet::new(),
            with_tokens: HashSet::new(),
            tokens: 0,
            tokens_checked: Tick(0),
            stopped: false,
            effects: Vec::new(),
            promises: Vec::new(),
            fence_answers: Vec::new(),
            serving_changed: false,
        }
    }

    /// Runs until every way in is closed.
    pub fn run(mut self) {
        loop {
            match self.wait() {
                Wake::Control(control) => self.control(control),
                Wake::Request(request) => self.request(request),
                Wake::Handed | Wake::Timeout => {}
                Wake::Stopped => return,
            }
            self.drain();
            self.tick();
            self.hand_on();
            self.send_outward();
            if self.stopped {
                return;
            }
        }
    }

    /// Waits for whatever comes first; hands the pending group on when the log is free.
    fn wait(&mut self) -> Wake {
        let mut select = Select::new();
        let control = select.recv(&self.control);
        let requests = self.takes_requests().then(|| select.recv(&self.requests));
        let log = (!self.group.parts.is_empty()).then(|| select.send(&self.log));
        let Ok(ready) = select.select_timeout(self.patience()) else { return Wake::Timeout };
        let index = ready.index();
        if index == control {
            return ready.recv(&self.control).map_or(Wake::Stopped, Wake::Control);
        }
        if Some(index) == requests {
            return ready.recv(&self.requests).map_or(Wake::Stopped, Wake::Request);
        }
        debug_assert_eq!(Some(index), log);
        let group = take_group(&mut self.group, &mut self.parts, &mut self.in_flight);
        match ready.send(&self.log, group) {
            Ok(()) => Wake::Handed,
            Err(_) => Wake::Stopped,
        }
    }

    /// Takes what else is waiting, up to a full group.
    fn drain(&mut self) {
        for _ in 0..limits::SEQUENCER_DRAIN_MAX {
            if let Ok(control) = self.control.try_recv() {
                self.control(control);
            } else if !self.takes_requests() {
                break;
            } else if let Ok(request) = self.requests.try_recv() {
                self.request(request);
            } else {
                break;
            }
        }
    }

    fn takes_requests(&self) -> bool {
        self.group.bytes < limits::GROUP_BYTES_MAX && self.waiting.len() < limits::REQUESTS_IN_FLIGHT_MAX
    }

    fn patience(&self) -> Duration {
        if self.timed.is_empty() { limits::SEQUENCER_IDLE_WAIT } else { limits::SEQUENCER_TIMER }
    }

    fn hand_on(&mut self) {
        if self.group.parts.is_empty() {
            return;
        }
        let group = take_group(&mut self.group, &mut self.parts, &mut self.in_flight);
        if let Err(TrySendError::Full(group) | TrySendError::Disconnected(group)) = self.log.try_send(group) {
            self.in_flight -= 1;
            self.parts = group.parts.iter().enumerate().map(|(at, part)| (part.handle.id, at)).collect();
            self.group = group;
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Stop => self.stopped = true,
            Control::Install(tablet, handle) => self.install(*tablet, handle),
            Control::Remove(tablet, done) => self.remove(tablet, done),
            Control::Fence(fences) => self.fence(fences),
            Control::Appoint(appointed) => self.appoint(appointed),
            Control::PromisePersisted(promises) => {
                self.each(promises, |epoch| Input::PromisePersisted { epoch });
            }
            Control::Persisted(ends) => self.each(ends, |upto| Input::Persisted { upto }),
            Control::Applied(ends) => {
                self.in_flight -= 1;
                self.each(ends, |upto| Input::Applied { upto });
                self.tell_drained();
            }
            Control::AppendFailed(starts) => {
                self.in_flight -= 1;
                self.drop_pending(&starts);
                self.each(starts, |from| Input::AppendFailed { from });
                self.tell_drained();
            }
            Control::StepDown(done) => {
                let all: Vec<TabletId> = self.slots.keys().copied().collect();
                self.each(all.into_iter().map(|id| (id, ())), |()| Input::StepDown);
                self.drained.push(done);
                self.tell_drained();
            }
        }
    }

    fn install(&mut self, tablet: Tablet, handle: Arc<TabletHandle>) {
        let id = tablet.id();
        self.tokens += tablet.token_count();
        if tablet.token_count() > 0 {
            self.with_tokens.insert(id);
        }
        self.slots.insert(id, Slot { tablet, handle });
    }

    fn remove(&mut self, id: TabletId, done: oneshot::Sender<()>) {
        self.step(id, Input::StepDown);
        if let Some(slot) = self.slots.remove(&id) {
            self.tokens -= slot.tablet.token_count();
        }
        self.timed.remove(&id);
        self.with_tokens.remove(&id);
        self.drained.push(done);
        self.tell_drained();
    }

    fn fence(&mut self, fences: Vec<(TabletId, ReplicaId, Epoch)>) {
        for (tablet, replica, epoch) in fences {
            let is_ours = self.slots.get(&tablet).is_some_and(|slot| slot.tablet.replica() == replica);
            if is_ours {
                self.step(tablet, Input::Fence { epoch });
            }
        }
    }

    fn appoint(&mut self, appointed: Vec<(TabletId, Appointed)>) {
        for (tablet, appointed) in appointed {
            let Ok(ts) = self.clock.issue() else {
                error!("the timestamp bound cannot be persisted; appointments are refused");
                return;
            };
            let Appointed { epoch, replica, incarnation, in_sync, min_in_sync } = appointed;
            let appointment = Appointment { epoch, replica, incarnation, in_sync, min_in_sync, ts };
            self.step(tablet, Input::Appoint(appointment));
        }
    }

    /// Entries that were sequenced after ones that could not be written are never written.
    fn drop_pending(&mut self, starts: &[(TabletId, Seq)]) {
        let failed: HashSet<TabletId> = starts.iter().map(|(id, _)| *id).collect();
        self.group.parts.retain(|part| !failed.contains(&part.handle.id));
        self.parts = self.group.parts.iter().enumerate().map(|(at, part)| (part.handle.id, at)).collect();
    }

    fn tell_drained(&mut self) {
        if self.in_flight == 0 && self.group.parts.is_empty() {
            for done in self.drained.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn request(&mut self, request: Request) {
        let Request { tablet, ask, deadline, reply } = request;
        if !self.slots.contains_key(&tablet) {
            return reply.send(Answer::Refused(Refusal::NotLeader));
        }
        let id = self.next_request.next();
        self.next_request = id;
        let input = match ask {
            Ask::Barrier => Input::Barrier { request: id, deadline },
            Ask::Write { ops, level, token, evidence } => {
                let Ok(ts) = self.clock.issue() else {
                    return reply.send(Answer::Refused(Refusal::NotLeader));
                };
                let wall_ms = Clock::wall_ms();
                let write = WriteRequest { request: id, ops, level, token, evidence, ts, wall_ms, deadline };
                Input::Write(write)
            }
            Ask::GetOutcome { token } => {
                let Ok(ts) = self.clock.issue() else {
                    return reply.send(Answer::Refused(Refusal::NotLeader));
                };
                Input::GetOutcome { request: id, token, wall_ms: Clock::wall_ms(), ts, deadline }
            }
        };
        self.waiting.insert(id, reply);
        self.step(tablet, input);
    }

    fn each<T>(&mut self, what: impl IntoIterator<Item = (TabletId, T)>, input: impl Fn(T) -> Input) {
        for (tablet, value) in what {
            self.step(tablet, input(value));
        }
    }

    fn step(&mut self, id: TabletId, input: Input) {
        let now = self.clock.tick();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let tokens_before = slot.tablet.token_count();
        let mut effects = std::mem::take(&mut self.effects);
        slot.tablet.step(now, input, &mut effects);
        let tokens = slot.tablet.token_count();
        self.tokens = self.tokens + tokens - tokens_before;
        if tokens_before == 0 && tokens > 0 {
            self.with_tokens.insert(id);
        }
        if slot.tablet.next_deadline().is_some() {
            self.timed.insert(id);
        }
        for effect in effects.drain(..) {
            self.carry_out(id, effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, id: TabletId, effect: Effect) {
        let Some(slot) = self.slots.get(&id) else { return };
        match effect {
            Effect::PersistPromise { epoch } => self.promises.push((id, epoch)),
            Effect::AnswerFence(answer) => self.fence_answers.push((id, slot.tablet.replica(), answer)),
            Effect::Append(entry) => {
                self.group.bytes += super::apply::changes(&entry).iter().map(Change::bytes).sum::<usize>();
                let at = *self.parts.entry(id).or_insert_with(|| {
                    let handle = Arc::clone(&slot.handle);
                    self.group.parts.push(TabletEntries { handle, entries: Vec::new() });
                    self.group.parts.len() - 1
                });
                self.group.parts[at].entries.push(entry);
            }
            Effect::Serve { epoch } => {
                slot.handle.set_serving(Some(epoch));
                self.serving_changed = true;
            }
            Effect::StopServing { epoch } => {
                info!(tablet = %id, %epoch, "gave up an epoch");
                slot.handle.give_up(epoch);
                self.serving_changed = true;
            }
            Effect::Reply { request, answer } => {
                if let Some(reply) = self.waiting.remove(&request) {
                    reply.send(answer);
                }
            }
        }
    }

    fn tick(&mut self) {
        let now = self.clock.tick();
        let due: Vec<TabletId> = self.timed.iter().copied().filter(|id| self.is_due(*id, now)).collect();
        for id in due {
            self.step(id, Input::Tick);
            let next = self.slots.get(&id).and_then(|slot| slot.tablet.next_deadline());
            if next.is_none() {
                self.timed.remove(&id);
            }
        }
        if now.ms_since(self.tokens_checked) >= limits::TOKENS_CHECK_MS || self.tokens > TOKENS_PER_SERVER_MAX
        {
            self.tokens_checked = now;
            self.forget_tokens();
        }
    }

    fn is_due(&self, id: TabletId, now: Tick) -> bool {
        let deadline = self.slots.get(&id).and_then(|slot| slot.tablet.next_deadline());
        deadline.is_none_or(|deadline| deadline <= now)
    }

    /// Drops tokens that left the window, and more of the oldest while there are too many.
    fn forget_tokens(&mut self) {
        let wall_ms = Clock::wall_ms();
        let mut window_ms = TOKEN_WINDOW_MS;
        loop {
            let issued_before_ms = wall_ms.saturating_sub(window_ms);
            let tablets: Vec<TabletId> = self.with_tokens.iter().copied().collect();
            self.each(tablets.into_iter().map(|id| (id, ())), |()| Input::ForgetTokens { issued_before_ms });
            let slots = &self.slots;
            self.with_tokens.retain(|id| slots.get(id).is_some_and(|slot| slot.tablet.token_count() > 0));
            if self.tokens <= TOKENS_PER_SERVER_MAX || window_ms == 0 {
                return;
            }
            window_ms /= 2;
        }
    }

    /// Tells the rest of the server, one message for all tablets.
    fn send_outward(&mut self) {
        let promises = std::mem::take(&mut self.promises);
        let answers = std::mem::take(&mut self.fence_answers);
        let serving = std::mem::take(&mut self.serving_changed);
        let tell = |is_empty: bool, message: Outward| {
            if !is_empty {
                let _ = self.outward.send(message);
            }
        };
        tell(promises.is_empty(), Outward::PersistPromises(promises));
        tell(answers.is_empty(), Outward::FenceAnswers(answers));
        tell(!serving, Outward::ServingChanged);
    }
}

/// The pending group, counted as in flight.
fn take_group(pending: &mut Group, parts: &mut HashMap<TabletId, usize>, in_flight: &mut usize) -> Group {
    *in_flight += 1;
    parts.clear();
    std::mem::take(pending)
}
