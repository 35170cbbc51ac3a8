//! A tablet server: the real tablet cores in a shell that does what production must do.
//!
//! This file holds the process: start from the disk, registration, promises, crash. The way
//! of an entry to log and rows is in `pipeline`, that of a request in `requests`. The order
//! of durable steps is the one that the protocol demands:
//! - a copy exists for the core only when its registry record is durable;
//! - replay begins after `flushed`, which is written after the flush has returned;
//! - a log is purged only up to `flushed`, and after the floor of its tokens is durable;
//! - timestamps are issued only below a durable bound, and a later run starts above it.

use super::clock::WallClock;
use super::disk::{Disk, RegistryChange, Replica};
use super::env::{Env, Event};
use super::network::{Address, Assignment, FenceAnswers, Message, Registration, Request, Welcome};
use super::pipeline::LogStage;
use super::requests::{Asked, Cache, Task};
use crate::invariants::{CoreView, Observation};
use ebla_kernel::entry::{Entry, Payload};
use ebla_kernel::hlc::{Hlc, HlcClock};
use ebla_kernel::ids::{DiskGeneration, Epoch, Incarnation, RequestId, Seq, ServerId, TabletId};
use ebla_kernel::meta;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Appointment, Effect, Input, Recovered, Tablet};
use std::collections::{BTreeMap, VecDeque};

/// How often a server that misses something presents itself again.
const REGISTER_EVERY_US: u64 = 300_000;

/// How often deadlines are looked at.
const TICK_US: u64 = 20_000;

/// Something that happens inside a run of a server.
#[derive(Debug)]
pub enum Internal {
    /// The oldest registry change is durable.
    RegistrySynced,
    /// The log group is durable.
    LogSynced,
    /// The log refused everything from an entry on.
    Refused(TabletId, Seq),
    /// Rows of durable entries go into the store.
    Apply(Vec<(TabletId, Entry)>),
    /// A flush begins.
    FlushBegins,
    /// A flush returns.
    FlushReturns {
        /// Entries that it took.
        count: usize,
        /// What was applied when it began.
        positions: Vec<(TabletId, Seq)>,
    },
    /// Time to register, if something is missing.
    Register,
    /// Time to look at deadlines.
    Tick,
    /// A request task goes on.
    Task(Task),
}

/// A tablet server and its disk.
#[derive(Debug)]
pub struct Server {
    /// Which of the cluster's servers it is.
    pub index: usize,
    /// What survives its processes.
    pub disk: Disk,
    /// Its wall clock.
    pub wall: WallClock,
    runs: u64,
    pub(super) run: Option<Run>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Run {
    number: u64,
    boot_id: u64,
    pub identity: Option<(ServerId, Incarnation)>,
    pub clock: HlcClock,
    bound_writing: bool,
    pub tablets: BTreeMap<TabletId, Tablet>,
    /// What metadata last said of copies that are not open yet.
    assigned: BTreeMap<TabletId, Assignment>,
    pub log: LogStage,
    /// Rows are applied in order: not before this.
    pub apply_at_us: u64,
    /// Logs to purge once the floor of their tokens is durable.
    pub purging: BTreeMap<TabletId, Seq>,
    pub next_request: RequestId,
    pub requests: BTreeMap<RequestId, Asked>,
    /// What waits for a higher bound of the clock.
    for_clock: VecDeque<Timed>,
    pub cache: Cache,
    is_superseded: bool,
    /// Epochs that ended here.
    gave_up: BTreeMap<TabletId, Epoch>,
}

/// Something that needs a timestamp.
#[derive(Debug)]
pub(super) enum Timed {
    Appoint(Assignment),
    Task(Task),
    Request(Request),
}

impl Server {
    /// A server on an empty disk.
    #[must_use]
    pub fn new(index: usize) -> Self {
        let disk = Disk::new(DiskGeneration(1_000 + index as u64));
        Self { index, disk, wall: WallClock::default(), runs: 0, run: None }
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.run.is_some()
    }

    /// Whether every copy that the registry names is led and served here.
    #[must_use]
    pub fn serves_all(&self) -> bool {
        let Some(run) = &self.run else { return false };
        self.disk.registry.replicas.keys().all(|id| run.is_serving(*id))
    }

    /// Whether a later run is registered, so that this process must end.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_superseded)
    }

    fn superseded(&mut self, boot_id: u64) {
        if let Some(run) = self.run.as_mut().filter(|run| run.boot_id == boot_id) {
            run.is_superseded = true;
        }
    }

    pub(super) fn address(&self) -> Address {
        Address::Server(self.index)
    }

    pub(super) fn after(&self, env: &mut Env, delay_us: u64, event: Internal) {
        let Some(run) = &self.run else { return };
        env.after(delay_us, Event::Server { server: self.index, run: run.number, event });
    }

    /// Starts a process: replays the log into the rows and presents itself.
    pub fn start(&mut self, env: &mut Env) {
        self.runs += 1;
        let mut clock = HlcClock::new(self.disk.registry.bound);
        for (id, replica) in &self.disk.registry.replicas {
            let Some(log) = self.disk.log.tablet(*id) else { continue };
            clock.raise(log.end().ts);
            assert!(log.base.pos.seq <= replica.flushed, "the log of {id} begins after what was flushed");
            for entry in log.entries.iter().filter(|entry| entry.seq() > replica.flushed) {
                self.disk.store.apply(entry);
            }
        }
        self.run = Some(Run {
            number: self.runs,
            boot_id: env.rng.draw(),
            identity: None,
            clock,
            bound_writing: false,
            tablets: BTreeMap::new(),
            assigned: BTreeMap::new(),
            log: LogStage::default(),
            apply_at_us: 0,
            purging: BTreeMap::new(),
            next_request: RequestId(1),
            requests: BTreeMap::new(),
            for_clock: VecDeque::new(),
            cache: Cache::default(),
            is_superseded: false,
            gave_up: BTreeMap::new(),
        });
        let (index, runs) = (self.index, self.runs);
        env.say(|| format!("server {index} starts, run {runs}"));
        self.register(env);
        self.after(env, TICK_US, Internal::Tick);
        let flush = env.rng.between(env.profile.disk.flush_every_us);
        self.after(env, flush, Internal::FlushBegins);
    }

    /// Kills the process; what is not durable is lost, or survives by luck.
    pub fn crash(&mut self, env: &mut Env) {
        let index = self.index;
        env.say(|| format!("server {index} crashes"));
        self.run = None;
        for (tablet, entry) in self.disk.crash(&mut env.rng) {
            env.say(|| format!("server {index} {tablet} {} survived unsynced", entry.pos));
            env.observe(&Observation::Durable { tablet, entry: &entry });
        }
    }

    /// Lets something inside a run happen.
    pub fn handle(&mut self, env: &mut Env, number: u64, event: Internal) {
        if self.run.as_ref().is_none_or(|run| run.number != number) {
            return;
        }
        match event {
            Internal::RegistrySynced => self.registry_synced(env),
            Internal::LogSynced => self.log_synced(env),
            Internal::Refused(tablet, from) => self.step(env, tablet, Input::AppendFailed { from }),
            Internal::Apply(entries) => self.apply(env, &entries),
            Internal::FlushBegins => self.flush_begins(env),
            Internal::FlushReturns { count, positions } => self.flush_returns(env, count, positions),
            Internal::Register => self.register(env),
            Internal::Tick => self.tick(env),
            Internal::Task(task) => self.task(env, task),
        }
    }

    /// Takes a message.
    pub fn receive(&mut self, env: &mut Env, message: Message) {
        match message {
            Message::Registered(welcome) => self.registered(env, welcome),
            Message::Superseded { boot_id } => self.superseded(boot_id),
            Message::Fences(fences) => self.fences(env, &fences),
            Message::Assignments(assignments) => {
                assignments.into_iter().for_each(|assignment| self.assigned(env, assignment));
            }
            Message::Request(request) => self.request(env, request),
            Message::Register(_)
            | Message::FenceAnswers(_)
            | Message::GaveUp { .. }
            | Message::Response(_) => {
                unreachable!("nobody sends this to a server")
            }
        }
    }

    /// Presents the process unless it has everything that it should.
    fn register(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let complete = run.identity.is_some() && !run.tablets.is_empty() && self.serves_all();
        if !complete {
            let registration = Registration {
                server: self.index,
                identity: self.disk.registry.identity,
                disk_generation: self.disk.generation,
                boot_id: run.boot_id,
            };
            env.send(self.address(), Address::Meta, Message::Register(registration));
            self.report_given_up(env);
        }
        self.after(env, REGISTER_EVERY_US, Internal::Register);
    }

    /// Tells which epochs ended though the process lives, again and again until it leads.
    fn report_given_up(&self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let Some((server, incarnation)) = run.identity else { return };
        let epochs: Vec<_> = run.gave_up.iter().map(|(id, epoch)| (*id, *epoch)).collect();
        if !epochs.is_empty() {
            let message = Message::GaveUp { server, incarnation, epochs };
            env.send(self.address(), Address::Meta, message);
        }
    }

    fn registered(&mut self, env: &mut Env, welcome: Welcome) {
        let Some(run) = &mut self.run else { return };
        if run.boot_id != welcome.boot_id || run.identity.is_some() {
            return;
        }
        run.identity = Some((welcome.server, welcome.incarnation));
        if self.disk.registry.identity.is_none() {
            self.write_registry(env, RegistryChange::Identity(welcome.cluster_id, welcome.server));
        }
        let known: Vec<TabletId> = self.disk.registry.replicas.keys().copied().collect();
        known.into_iter().for_each(|id| self.open(id));
    }

    /// Gives a copy its core, as registry and log say.
    fn open(&mut self, id: TabletId) {
        let Some(run) = &mut self.run else { return };
        let Some((_, incarnation)) = run.identity else { return };
        let replica = &self.disk.registry.replicas[&id];
        let log = self.disk.log.tablet(id);
        let entries = || log.into_iter().flat_map(|log| &log.entries);
        let epoch_start = |entry: &Entry| match entry.payload {
            Payload::EpochStart { .. } => Some((entry.pos.epoch, entry.seq())),
            Payload::Write(_) | Payload::TokenFence { .. } => None,
        };
        let mut tokens = TokenTable::complete_from(replica.token_floor_ms);
        entries().for_each(|entry| tokens.note_entry(entry));
        let tablet = Tablet::new(Recovered {
            id,
            replica: replica.id,
            incarnation,
            range: replica.range.clone(),
            promised: replica.promised,
            epochs: entries().filter_map(epoch_start).collect(),
            end: self.disk.log.end(id),
            tokens,
        });
        run.tablets.insert(id, tablet);
    }

    fn fences(&mut self, env: &mut Env, fences: &[meta::Fence]) {
        for fence in fences {
            let known = self.run.as_ref().and_then(|run| run.tablets.get(&fence.tablet));
            if known.is_some_and(|tablet| tablet.replica() == fence.replica) {
                self.step(env, fence.tablet, Input::Fence { epoch: fence.epoch });
            }
        }
    }

    fn assigned(&mut self, env: &mut Env, assignment: Assignment) {
        let Some(run) = &mut self.run else { return };
        if run.identity.is_none() {
            return;
        }
        let id = assignment.tablet;
        if run.tablets.contains_key(&id) {
            if assignment.leader.is_some() {
                self.timed(env, Timed::Appoint(assignment));
            }
        } else if run.assigned.insert(id, assignment.clone()).is_none() {
            let replica = Replica {
                id: assignment.replica,
                range: assignment.range,
                promised: assignment.epoch,
                flushed: Seq(0),
                token_floor_ms: 0,
            };
            self.write_registry(env, RegistryChange::Replica(id, replica));
        }
    }

    pub(super) fn write_registry(&mut self, env: &mut Env, change: RegistryChange) {
        self.disk.registry.write(change);
        let delay = env.rng.between(env.profile.disk.sync_us);
        self.after(env, delay, Internal::RegistrySynced);
    }

    fn registry_synced(&mut self, env: &mut Env) {
        let Some(change) = self.disk.registry.sync() else { return };
        match change {
            RegistryChange::Identity(..) => {}
            RegistryChange::Bound(bound) => self.bound_persisted(env, bound),
            RegistryChange::Replica(id, _) => {
                self.open(id);
                let assignment = self.run.as_mut().and_then(|run| run.assigned.remove(&id));
                if let Some(assignment) = assignment {
                    self.assigned(env, assignment);
                }
            }
            RegistryChange::Promise(tablet, epoch) => {
                self.step(env, tablet, Input::PromisePersisted { epoch });
            }
            RegistryChange::Flushed(positions) => self.flushed(env, &positions),
            RegistryChange::TokenFloor(tablet, floor_ms) => self.purge(env, tablet, floor_ms),
        }
    }

    fn bound_persisted(&mut self, env: &mut Env, bound: Hlc) {
        let Some(run) = &mut self.run else { return };
        run.clock.bound_persisted(bound);
        run.bound_writing = false;
        for timed in std::mem::take(&mut run.for_clock) {
            self.timed(env, timed);
        }
    }

    /// A timestamp for `timed`; without one it waits for a higher bound.
    pub(super) fn timed(&mut self, env: &mut Env, timed: Timed) {
        let Some(run) = &mut self.run else { return };
        let wall_ms = self.wall.ms(env.now_us);
        if let Some(bound) = run.clock.wanted_bound(wall_ms).filter(|_| !run.bound_writing) {
            run.bound_writing = true;
            self.write_registry(env, RegistryChange::Bound(bound));
        }
        let Some(run) = &mut self.run else { return };
        if let Timed::Appoint(assignment) = &timed {
            // A floor from a clock that is far off is not adopted; our own log is above it.
            let _ = run.clock.observe(assignment.appointed_ts, wall_ms);
        }
        match run.clock.issue(wall_ms) {
            Err(_) => run.for_clock.push_back(timed),
            Ok(ts) => match timed {
                Timed::Appoint(assignment) => self.appoint(env, assignment, ts),
                Timed::Task(task) => self.sequence(env, task, ts),
                Timed::Request(request) => self.ask(env, request, ts),
            },
        }
    }

    fn appoint(&mut self, env: &mut Env, assignment: Assignment, ts: Hlc) {
        let Some(incarnation) = assignment.leader else { return };
        let appointment = Appointment {
            epoch: assignment.epoch,
            replica: assignment.replica,
            incarnation,
            in_sync: assignment.in_sync,
            min_in_sync: assignment.min_in_sync,
            ts,
        };
        self.step(env, assignment.tablet, Input::Appoint(appointment));
    }

    fn tick(&mut self, env: &mut Env) {
        let now = env.tick();
        let Some(run) = &self.run else { return };
        let due = |tablet: &&Tablet| tablet.next_deadline().is_some_and(|deadline| deadline <= now);
        let due: Vec<TabletId> = run.tablets.values().filter(due).map(Tablet::id).collect();
        due.into_iter().for_each(|id| self.step(env, id, Input::Tick));
        self.after(env, TICK_US, Internal::Tick);
    }

    /// Lets a core take one step, shows the watch what became of it, and obeys.
    pub(super) fn step(&mut self, env: &mut Env, id: TabletId, input: Input) {
        let Some(run) = &mut self.run else { return };
        let Some(tablet) = run.tablets.get_mut(&id) else { return };
        let mut effects = Vec::new();
        tablet.step(env.tick(), input, &mut effects);
        let Some((_, incarnation)) = run.identity else { return };
        env.observe(&Observation::Stepped(CoreView {
            tablet: id,
            incarnation,
            promised: tablet.promised(),
            durable: tablet.durable_end().pos,
            applied: tablet.applied_seq(),
            q: tablet.q(),
            serving: tablet.serving(),
            on_disk: self.disk.log.end(id).pos,
        }));
        effects.into_iter().for_each(|effect| self.execute(env, id, effect));
    }

    fn execute(&mut self, env: &mut Env, id: TabletId, effect: Effect) {
        let index = self.index;
        match effect {
            Effect::PersistPromise { epoch } => self.write_registry(env, RegistryChange::Promise(id, epoch)),
            Effect::AnswerFence(answer) => {
                env.say(|| {
                    format!("server {index} {id} answers fence {}, end {}", answer.epoch, answer.end.pos)
                });
                env.observe(&Observation::FenceAnswered { tablet: id, answer });
                self.answer_fence(env, id, answer);
            }
            Effect::Append(entry) => {
                env.mark(entry.hash);
                env.say(|| format!("server {index} {id} appends {} {:?}", entry.pos, entry.payload));
                env.observe(&Observation::Appended { tablet: id, entry: &entry });
                self.append(env, id, entry);
            }
            Effect::Serve { epoch } => env.say(|| format!("server {index} {id} serves {epoch}")),
            Effect::StopServing { epoch } => {
                env.say(|| format!("server {index} {id} stops serving {epoch}"));
                let Some(run) = &mut self.run else { return };
                run.gave_up.insert(id, epoch);
            }
            Effect::Reply { request, answer } => self.answer(env, request, answer),
        }
    }

    fn answer_fence(&mut self, env: &mut Env, id: TabletId, answer: ebla_kernel::tablet::FenceAnswer) {
        let Some(run) = &self.run else { return };
        let (Some((server, incarnation)), Some(tablet)) = (run.identity, run.tablets.get(&id)) else {
            return;
        };
        let answer = meta::FenceAnswer {
            tablet: id,
            replica: tablet.replica(),
            epoch: answer.epoch,
            end: answer.end.pos,
            ts_max: answer.end.ts,
            disk_generation: self.disk.generation,
        };
        let answers = FenceAnswers { server, incarnation, answers: vec![answer] };
        env.send(self.address(), Address::Meta, Message::FenceAnswers(answers));
    }
}

impl Run {
    pub(super) fn is_serving(&self, id: TabletId) -> bool {
        self.tablets.get(&id).is_some_and(|tablet| tablet.serving().is_some())
    }

    /// The epoch that a copy serves here.
    pub(super) fn serving(&self, id: TabletId) -> Option<Epoch> {
        self.tablets.get(&id).and_then(Tablet::serving)
    }
}
