//! A tablet server: the real tablet cores in a shell that does what production must do.
//!
//! This file holds the process: start from the disk, registration, promises to the metadata,
//! crash. How copies come is in `assigning`, how they are divided in `succession`, built in
//! `copying` and let go in `removal`. The way of an entry to log and rows is in `pipeline`, that
//! of a cut in `truncation`, that of entries to other servers in `replication`, that of promises
//! between servers in `promises`, that of a request in `requests`. The order of durable steps is the one that the
//! protocol demands:
//! - a copy exists for the core only when its registry record is durable;
//! - rows are applied from after `flushed`, which is written after the flush has returned;
//! - a log is purged only up to `flushed`, and after the floor of its tokens is durable;
//! - timestamps are issued only below a durable bound, and a later run starts above it;
//! - the longest lease is durable before the first promise.

use super::clock::{MonotonicClock, WallClock};
use super::copying::{BuildStep, Building};
use super::disk::{Built, CopyState, Disk, Intent, RegistryChange, Replica};
use super::env::{Env, Event};
use super::network::{Address, Assignment, Message, Registration, Request, Welcome};
use super::pipeline::LogStage;
use super::promises::Pledges;
use super::requests::{Asked, Cache, Patient, Task};
use super::rooms::Rooms;
use super::succession::Leaving;
use crate::invariants::{CoreView, Observation, Reshaped};
use ebla_kernel::entry::Entry;
use ebla_kernel::hlc::{Hlc, HlcClock};
use ebla_kernel::ids::{
    DiskGeneration, Epoch, Generation, Incarnation, ReplicaId, RequestId, Seq, ServerId, ServerRun, TabletId,
    Tick,
};
use ebla_kernel::lease::LeaseTerms;
use ebla_kernel::limits::{CLOCK_OFFSET_MS_MAX, HLC_BOUND_AHEAD_MS};
use ebla_kernel::meta::TableKind;
use ebla_kernel::range::KeyRange;
use ebla_kernel::tablet::{Appointment, Input, Tablet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// How often a server that misses something presents itself again.
const REGISTER_EVERY_US: u64 = 300_000;

/// How often deadlines are looked at.
const TICK_US: u64 = 20_000;

/// How long a server that stops waits for others to take over.
const DRAIN_US: u64 = 400_000;

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
    Apply(Vec<(TabletId, Rc<Entry>)>),
    /// Rows of everything up to an entry go into the store.
    Settle(TabletId, Seq),
    /// A flush begins.
    FlushBegins,
    /// A flush returns.
    FlushReturns {
        /// What it took.
        mark: u64,
        /// What was applied when it began, and how often each log had been cut.
        positions: Vec<(TabletId, Seq, u64)>,
        /// Retired tablets of which everything was in the store.
        retired: Vec<TabletId>,
    },
    /// What a cut must undo is in the store; a flush for it begins.
    Undo(TabletId),
    /// That flush has returned.
    Undone(TabletId, u64),
    /// The end of a log that might be cut was read.
    Located(TabletId, Seq),
    /// Entries were handed to a stream.
    Sent(TabletId, ReplicaId, Seq),
    /// A stream to a server is open again.
    Connected(usize),
    /// A stream that had broken is opened.
    Opened(usize),
    /// Time to ask for promises and to say who is silent.
    Heartbeat,
    /// Time to register, if something is missing.
    Register,
    /// Time to look at deadlines.
    Tick,
    /// A request task goes on.
    Task(Task),
    /// The process has waited long enough and ends.
    Stop,
    /// Nothing of a tablet is on its way any more, perhaps: its children may come.
    TakeOver(TabletId),
    /// Nothing of a copy is on its way any more, perhaps: it may go.
    Remove(TabletId),
    /// The rows of a copy that goes are cleared.
    Clear(TabletId),
    /// A flush for that has returned.
    Cleared(TabletId, u64),
    /// Time to ask for a copy's rows, for the nth try.
    Fetch(TabletId, u64),
    /// The next step of a copy that is being built.
    Build(TabletId, u64, BuildStep),
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
    /// Its other clocks.
    pub clock: MonotonicClock,
    /// It does nothing until then.
    pub asleep_until_us: u64,
    runs: u64,
    /// Copies that were begun.
    pub(super) builds: u64,
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
    pub copies: BTreeMap<TabletId, Copy>,
    /// What metadata last said of copies that are not open yet.
    pub wanted: BTreeMap<TabletId, Assignment>,
    /// The number of the last assignments.
    pub heard: u64,
    /// Servers to which the stream has broken and is to be opened.
    pub broken: BTreeSet<usize>,
    /// Copies of which the record is on its way, and their keys.
    pub coming: BTreeMap<TabletId, KeyRange>,
    /// Copies that go.
    pub removing: BTreeSet<TabletId>,
    /// Copies that are being built.
    pub building: BTreeMap<TabletId, Building>,
    /// Tablets whose children are to come.
    pub leaving: BTreeMap<TabletId, Leaving>,
    pub log: LogStage,
    /// Rows are applied in order: not before this.
    pub apply_at_us: u64,
    /// Logs to purge once the floor of their tokens is durable.
    pub purging: BTreeMap<TabletId, Seq>,
    pub next_request: RequestId,
    pub requests: BTreeMap<RequestId, Asked>,
    /// Readers that wait for a copy that does not lead.
    pub patient: Vec<Patient>,
    /// What waits for a higher bound of the clock.
    for_clock: VecDeque<Timed>,
    pub cache: Cache,
    /// Cuts under way.
    pub cutting: BTreeMap<TabletId, Intent>,
    pub pledges: Pledges,
    pub rooms: Rooms,
    is_superseded: bool,
    pub is_stopping: bool,
    /// Epochs that ended here.
    pub gave_up: BTreeMap<TabletId, (Epoch, Option<ReplicaId>)>,
}

/// One copy of a tablet in a process.
#[derive(Debug)]
pub(super) struct Copy {
    pub core: Tablet,
    pub generation: Generation,
    /// Under which promises it leads.
    pub terms: LeaseTerms,
    /// Entries up to here were put into the store in order.
    pub settled: Seq,
    /// Entries that are not durable yet, for the streams.
    pub tail: VecDeque<Rc<Entry>>,
    /// The epoch of the leader whose entries came last.
    pub by: Epoch,
    /// How often the log was cut by this process.
    pub cuts: u64,
    /// What metadata said last.
    pub assignment: Option<Assignment>,
}

/// Something that needs a timestamp.
#[derive(Debug)]
pub(super) enum Timed {
    Appoint(Assignment),
    Task(Task),
    Request(Request),
    Close(TabletId, Hlc),
}

impl Server {
    /// A server on an empty disk.
    #[must_use]
    pub fn new(index: usize, clock: MonotonicClock) -> Self {
        let disk = Disk::new(DiskGeneration(1_000 + index as u64));
        Self {
            index,
            disk,
            wall: WallClock::default(),
            clock,
            asleep_until_us: 0,
            runs: 0,
            builds: 0,
            run: None,
        }
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.run.is_some()
    }

    /// Which process this is, if one runs.
    #[must_use]
    pub fn run_number(&self) -> Option<u64> {
        self.run.as_ref().map(|run| run.number)
    }

    /// How many processes there were, this one among them.
    pub(super) fn runs(&self) -> u64 {
        self.runs
    }

    /// The number of the process that runs.
    #[must_use]
    pub fn boot_id(&self) -> Option<u64> {
        self.run.as_ref().map(|run| run.boot_id)
    }

    /// Whether it leads, serves and holds the lease of a tablet.
    #[must_use]
    pub fn leads(&self, now_us: u64, tablet: TabletId) -> bool {
        self.run.as_ref().is_some_and(|run| run.lease(self.clock.holder(now_us), tablet).is_some())
    }

    /// Every lease that is held here.
    #[must_use]
    pub fn leases(&self, now_us: u64) -> Vec<(TabletId, Epoch)> {
        let Some(run) = &self.run else { return Vec::new() };
        let now = self.clock.holder(now_us);
        let held = |id: &TabletId| run.lease(now, *id).map(|epoch| (*id, epoch));
        run.copies.keys().filter_map(held).collect()
    }

    /// Whether a copy has everything up to an end, in its log and in its rows.
    #[must_use]
    pub fn has_all(&self, tablet: TabletId, end: Seq) -> bool {
        let copy = self.run.as_ref().and_then(|run| run.copies.get(&tablet));
        copy.is_some_and(|copy| copy.core.durable_end().pos.seq == end && copy.core.applied_seq() == end)
    }

    /// The end of a copy's log as its core knows it.
    #[must_use]
    pub fn end(&self, tablet: TabletId) -> Option<Seq> {
        let copy = self.run.as_ref()?.copies.get(&tablet)?;
        Some(copy.core.end().pos.seq)
    }

    /// E3: nothing is left over here: whatever was begun has ended, and what is no more is gone.
    #[must_use]
    pub fn is_clean(&self, env: &Env) -> bool {
        let registry = &self.disk.registry;
        let is_whole = |(id, replica): (&TabletId, &Replica)| {
            let route = env.directory.route(*id);
            replica.state == CopyState::Active
                && replica.truncating.is_none()
                && route.is_some_and(|route| route.copies.get(&replica.id) == Some(&self.index))
        };
        registry.replicas.iter().all(is_whole) && registry.staged.is_empty() && registry.retired.is_empty()
    }

    /// One line about a copy, for people.
    #[must_use]
    pub fn describe(&self, tablet: TabletId) -> String {
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&tablet)) else {
            return format!("server {}: none", self.index);
        };
        let core = &copy.core;
        format!(
            "server {}: promised {} end {} durable {} applied {} safe {} leads {:?} serves {:?} q {:?} follows {:?}",
            self.index,
            core.promised(),
            core.end().pos,
            core.durable_end().pos,
            core.applied_seq(),
            core.safe(),
            core.leading(),
            core.serving(),
            core.q(),
            core.follows().map(|(epoch, replica, _)| (epoch, replica)),
        )
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

    /// What a copy here lives and dies with.
    pub(super) fn generation(&self, env: &Env) -> Generation {
        let run = self.run.as_ref().and_then(|run| run.identity);
        match env.profile.spec.kind {
            TableKind::Durable => Generation::Disk(self.disk.generation),
            TableKind::Memory => Generation::Process(run.map_or(Incarnation(0), |(_, run)| run)),
        }
    }

    /// The holder's clock.
    pub(super) fn now(&self, env: &Env) -> Tick {
        self.clock.holder(env.now_us)
    }

    pub(super) fn after(&self, env: &mut Env, delay_us: u64, event: Internal) {
        let Some(run) = &self.run else { return };
        env.after(delay_us, Event::Server { server: self.index, run: run.number, event });
    }

    /// Starts a process: it presents itself, and opens its copies when it is known.
    pub fn start(&mut self, env: &mut Env) {
        self.runs += 1;
        self.asleep_until_us = 0;
        let mut clock = HlcClock::new(self.disk.registry.bound);
        for id in self.disk.registry.replicas.keys() {
            clock.raise(self.disk.log.end(*id).ts);
        }
        let started = self.clock.promiser(env.now_us);
        self.run = Some(Run {
            number: self.runs,
            boot_id: env.rng.draw(),
            identity: None,
            clock,
            bound_writing: false,
            copies: BTreeMap::new(),
            wanted: BTreeMap::new(),
            heard: 0,
            broken: BTreeSet::new(),
            coming: BTreeMap::new(),
            removing: BTreeSet::new(),
            building: BTreeMap::new(),
            leaving: BTreeMap::new(),
            log: LogStage::default(),
            apply_at_us: 0,
            purging: BTreeMap::new(),
            next_request: RequestId(1),
            requests: BTreeMap::new(),
            patient: Vec::new(),
            for_clock: VecDeque::new(),
            cache: Cache::default(),
            cutting: BTreeMap::new(),
            pledges: Pledges::new(started, self.disk.registry.longest_lease_ms, env.now_us),
            rooms: Rooms::new(self.clock.holder(env.now_us), self.runs * 7_919 + self.index as u64),
            is_superseded: false,
            is_stopping: false,
            gave_up: BTreeMap::new(),
        });
        let (index, runs) = (self.index, self.runs);
        env.say(|| format!("server {index} starts, run {runs}"));
        self.catch_up(env);
        self.after(env, TICK_US, Internal::Tick);
        self.after(env, 1_000, Internal::Heartbeat);
        let flush = env.rng.between(env.profile.disk.flush_every_us);
        self.after(env, flush, Internal::FlushBegins);
    }

    /// Presents the process, which starts at the bound of what an earlier one may have issued. A
    /// real one waits until wall time has passed that; here it only waits so that one restart after
    /// another does not drive its clock ever further ahead. A clock that was set back is not waited for.
    fn catch_up(&mut self, env: &mut Env) {
        let latest_ms = self.wall.ms(env.now_us) + HLC_BOUND_AHEAD_MS;
        match self.disk.registry.bound.ms().saturating_sub(latest_ms) {
            ahead_ms @ 1..=CLOCK_OFFSET_MS_MAX => {
                self.asleep_until_us = env.now_us + ahead_ms * 1_000;
                self.after(env, ahead_ms * 1_000, Internal::Register);
            }
            _ => self.register(env),
        }
    }

    /// Kills the process; what is not durable is lost, or survives by luck.
    pub fn crash(&mut self, env: &mut Env) {
        let index = self.index;
        env.say(|| format!("server {index} crashes"));
        self.run = None;
        if env.profile.spec.kind == TableKind::Memory {
            self.disk.forget_memory();
            env.observe(&Observation::Wiped { server: index });
            return;
        }
        let survived = self.disk.crash(&mut env.rng);
        survived.changes.iter().for_each(|change| self.show_change(env, change));
        for record in survived.records {
            let (tablet, by, entry) = (record.tablet, record.by, &record.entry);
            env.say(|| format!("server {index} {tablet} {} survived unsynced", entry.pos));
            env.observe(&Observation::Durable { tablet, server: index, by, entry });
        }
    }

    /// The disk is lost with everything on it; the process, if one runs, with it.
    pub fn wipe(&mut self, env: &mut Env) {
        let index = self.index;
        self.run = None;
        self.disk.wipe();
        env.say(|| format!("server {index} loses its disk"));
        env.observe(&Observation::Wiped { server: index });
    }

    /// Lets go of everything that it leads, and ends a little later.
    pub fn stop(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        run.is_stopping = true;
        let ids: Vec<TabletId> = run.copies.keys().copied().collect();
        let index = self.index;
        env.say(|| format!("server {index} stops"));
        ids.into_iter().for_each(|id| self.step(env, id, Input::StepDown));
        self.report_given_up(env);
        self.after(env, DRAIN_US, Internal::Stop);
    }

    /// Lets something inside a run happen.
    pub fn handle(&mut self, env: &mut Env, number: u64, event: Internal) {
        if self.run.as_ref().is_none_or(|run| run.number != number) {
            return;
        }
        match event {
            Internal::RegistrySynced => self.registry_synced(env),
            Internal::LogSynced => self.log_synced(env),
            Internal::Refused(tablet, from) => self.refused(env, tablet, from),
            Internal::Apply(entries) => self.apply(env, &entries),
            Internal::Settle(tablet, upto) => self.settle(env, tablet, upto),
            Internal::FlushBegins => self.flush_begins(env),
            Internal::FlushReturns { mark, positions, retired } => {
                self.flush_returns(env, mark, positions, retired);
            }
            Internal::Undo(tablet) => self.undo(env, tablet),
            Internal::Undone(tablet, mark) => self.undone(env, tablet, mark),
            Internal::Located(tablet, seq) => self.located(env, tablet, seq),
            Internal::Sent(tablet, to, upto) => self.step(env, tablet, Input::Sent { to, upto }),
            Internal::Connected(server) => self.connected(env, server),
            Internal::Opened(server) => self.opened(env, server),
            Internal::Heartbeat => self.heartbeat(env),
            Internal::Register => self.register(env),
            Internal::Tick => self.tick(env),
            Internal::Task(task) => self.task(env, task),
            Internal::Stop => {
                self.crash(env);
                env.has_stopped = true;
            }
            Internal::TakeOver(tablet) => self.take_over(env, tablet),
            Internal::Remove(tablet) => self.entomb(env, tablet),
            Internal::Clear(tablet) => self.clear(env, tablet),
            Internal::Cleared(tablet, mark) => self.cleared(env, tablet, mark),
            Internal::Fetch(tablet, attempt) => self.ask_for_copy(env, tablet, attempt),
            Internal::Build(tablet, attempt, step) => self.build(env, tablet, attempt, step),
        }
    }

    /// Takes a message.
    pub fn receive(&mut self, env: &mut Env, message: Message) {
        match message {
            Message::Registered(welcome) => self.registered(env, welcome),
            Message::Superseded { boot_id } => self.superseded(boot_id),
            Message::SessionOver(run) if Some(run) == self.server_run() => self.present(env),
            Message::SessionOver(_) => {}
            Message::Fences(fences) => self.fences(env, &fences),
            Message::Assignments(assignments) => self.assignments(env, assignments),
            Message::Seal(order) => self.seal_ordered(env, &order),
            Message::SplitRefused { run, tablet, epoch, attempt } => {
                if self.server_run() == Some(run) {
                    self.step(env, tablet, Input::SplitRefused { epoch, attempt });
                }
            }
            Message::Fetch(fetch) => self.fetched_from(env, fetch),
            Message::Shipment(shipment) => self.shipped(env, shipment),
            Message::ProposalRefused { run, tablet, epoch, version } => {
                if self.server_run() == Some(run) {
                    self.step(env, tablet, Input::ProposalRefused { epoch, version });
                }
            }
            Message::Transfer { tablet, epoch, to } => {
                let until = self.now(env).plus_ms(1_000);
                self.step(env, tablet, Input::Transfer { epoch, to, until });
            }
            Message::Peer { tablet, to, input } => self.peer(env, tablet, to, input),
            Message::Ask { from, of, number, given_up } => self.asked(env, from, of, number, &given_up),
            Message::Promise { from, to, promised } if self.server_run() == Some(to) => {
                self.promised(env, from, promised);
            }
            Message::Promise { .. } => {}
            Message::Room(message) => self.room_message(env, message),
            Message::Request(request) => self.request(env, request),
            Message::Register(_)
            | Message::FenceAnswers(_)
            | Message::GaveUp { .. }
            | Message::Silent { .. }
            | Message::Propose { .. }
            | Message::ProposeSplit { .. }
            | Message::Behind { .. }
            | Message::Diverged { .. }
            | Message::Response(_) => {
                unreachable!("nobody sends this to a server")
            }
        }
    }

    /// This process's name.
    pub(super) fn server_run(&self) -> Option<ServerRun> {
        let (server, incarnation) = self.run.as_ref()?.identity?;
        Some(ServerRun { server, incarnation })
    }

    /// Presents the process unless it has everything that it should.
    fn register(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        if run.identity.is_none() || !self.is_content(env) {
            self.present(env);
        }
        self.report_given_up(env);
        self.after(env, REGISTER_EVERY_US, Internal::Register);
    }

    fn present(&self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let registration = Registration {
            server: self.index,
            identity: self.disk.registry.identity,
            disk_generation: self.disk.generation,
            boot_id: run.boot_id,
            starts: run.number,
        };
        env.send(self.address(), Address::Meta, Message::Register(registration));
    }

    /// Whether every copy that should be here is, and leads or follows a leader. A stream that
    /// lost nothing would have told which should; here messages get lost one by one.
    fn is_content(&self, env: &Env) -> bool {
        let Some(run) = &self.run else { return false };
        let now = self.now(env);
        let is_well = |copy: &Copy| {
            run.lease(now, copy.core.id()).is_some()
                || (copy.core.follows().is_some() && run.pledges.hears(env.now_us, copy))
        };
        let is_coming = |id: &TabletId| run.copies.contains_key(id) || run.building.contains_key(id);
        let mut routes = env.directory.routes.iter();
        let has_all = routes.all(|route| is_coming(&route.tablet) || !route.is_on(self.index));
        let is_wanted = |(id, replica): (&TabletId, &Replica)| {
            env.directory.route(*id).is_some_and(|route| route.copies.contains_key(&replica.id))
        };
        let has_more = !self.disk.registry.replicas.iter().all(is_wanted);
        let knows = |copy: &Copy| {
            let (Some(_), Some(assignment)) = (copy.core.leading(), &copy.assignment) else { return true };
            env.directory.route(copy.core.id()).is_none_or(|route| {
                route.copies.keys().eq(assignment.membership.members.keys())
                    && route.aborted == assignment.aborted
            })
        };
        let mut copies = run.copies.values();
        has_all && !has_more && !run.copies.is_empty() && copies.all(|copy| is_well(copy) && knows(copy))
    }

    /// Tells which epochs ended though the process lives, again and again until others begin.
    pub(super) fn report_given_up(&self, env: &mut Env) {
        let (Some(run), Some(name)) = (&self.run, self.server_run()) else { return };
        let over = |(id, (epoch, successor)): (&TabletId, &(Epoch, Option<ReplicaId>))| {
            let later = run.copies.get(id).is_some_and(|copy| copy.core.promised() > *epoch);
            (!later).then_some((*id, *epoch, *successor))
        };
        let epochs: Vec<_> = run.gave_up.iter().filter_map(over).collect();
        if !epochs.is_empty() {
            env.send(self.address(), Address::Meta, Message::GaveUp { run: name, epochs });
        }
    }

    fn registered(&mut self, env: &mut Env, welcome: Welcome) {
        let Some(run) = &mut self.run else { return };
        if run.boot_id != welcome.boot_id || run.identity.is_some() {
            return;
        }
        run.identity = Some((welcome.server, welcome.incarnation));
        let (index, incarnation) = (self.index, welcome.incarnation);
        env.say(|| format!("server {index} is registered as {incarnation}"));
        if self.disk.registry.identity.is_none() {
            self.write_registry(env, RegistryChange::Identity(welcome.cluster_id, welcome.server));
        }
        let known: Vec<(TabletId, Replica)> =
            self.disk.registry.replicas.iter().map(|(id, replica)| (*id, replica.clone())).collect();
        for (id, replica) in known {
            match replica.state {
                CopyState::Active if replica.truncating.is_some() => self.truncate_again(env, id),
                CopyState::Active => self.open(env, id, None),
                CopyState::Tombstoned => self.goes(env, id),
                // It begins anew when metadata still wants it.
                CopyState::Building(_) => {}
            }
        }
    }

    pub(super) fn write_registry(&mut self, env: &mut Env, change: RegistryChange) {
        self.disk.registry.write(change);
        let delay = env.rng.between(env.profile.disk.sync_us);
        self.after(env, delay, Internal::RegistrySynced);
    }

    fn registry_synced(&mut self, env: &mut Env) {
        let Some(change) = self.disk.sync_registry() else { return };
        let index = self.index;
        env.say(|| format!("server {index} records {change:?}"));
        self.show_change(env, &change);
        match change {
            RegistryChange::Identity(..) | RegistryChange::RetiredFlushed(_) => {}
            RegistryChange::RetiredForgotten(_) => {}
            RegistryChange::Bound(bound) => self.bound_persisted(env, bound),
            RegistryChange::Replica(id, _) => self.recorded(env, id),
            RegistryChange::Promise(tablet, epoch) => {
                self.step(env, tablet, Input::PromisePersisted { epoch });
            }
            RegistryChange::Flushed(positions) => self.flushed(env, &positions),
            RegistryChange::TokenFloor(tablet, floor_ms) => self.purge(env, tablet, floor_ms),
            RegistryChange::LongestLease(_) => {}
            RegistryChange::Truncating(tablet, _) => self.truncation_intended(env, tablet),
            RegistryChange::Lost(tablet, _) => self.loss_noted(env, tablet),
            RegistryChange::Cut(tablet, intent) => self.log_cut(env, tablet, intent),
            RegistryChange::Staged(tablet, staged) => self.staged(env, tablet, staged.map(|(seal, _)| seal)),
            RegistryChange::Switch(switch) => self.switched(env, &switch),
            RegistryChange::Built(Built { tablet, replica, .. }) => self.built(env, tablet, replica),
            RegistryChange::Tombstone(tablet) => self.goes(env, tablet),
            RegistryChange::Forgotten(tablet) => self.gone(env, tablet),
        }
    }

    /// What a change of the registry, now that it is durable, means to the invariants.
    fn show_change(&self, env: &mut Env, change: &RegistryChange) {
        let server = self.index;
        match change {
            RegistryChange::Cut(tablet, intent) => self.show_cut(env, *tablet, intent.keep),
            RegistryChange::Replica(tablet, Replica { id, state: CopyState::Building(_), .. }) => {
                let (tablet, replica) = (*tablet, *id);
                env.observe(&Observation::Reshaped(Reshaped::Begins { tablet, server, replica }));
            }
            RegistryChange::Switch(switch) => {
                let children: Vec<TabletId> = switch.children.iter().map(|(id, _)| *id).collect();
                let (parents, children) = (&switch.parents[..], &children[..]);
                env.observe(&Observation::Reshaped(Reshaped::Switched { parents, server, children }));
            }
            RegistryChange::Built(Built { tablet, end, .. }) => {
                let (tablet, end) = (*tablet, *end);
                env.observe(&Observation::Reshaped(Reshaped::Built { tablet, server, end }));
            }
            RegistryChange::Tombstone(tablet) => {
                let tablet = *tablet;
                env.observe(&Observation::Reshaped(Reshaped::Removed { tablet, server }));
            }
            RegistryChange::Identity(..)
            | RegistryChange::Bound(_)
            | RegistryChange::Replica(..)
            | RegistryChange::Promise(..)
            | RegistryChange::Flushed(_)
            | RegistryChange::TokenFloor(..)
            | RegistryChange::LongestLease(_)
            | RegistryChange::Truncating(..)
            | RegistryChange::Lost(..)
            | RegistryChange::Staged(..)
            | RegistryChange::RetiredFlushed(_)
            | RegistryChange::RetiredForgotten(_)
            | RegistryChange::Forgotten(_) => {}
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
        match &timed {
            // A floor from a clock that is far off is not adopted; our own log is above it.
            Timed::Appoint(assignment) => {
                let _ = run.clock.observe(assignment.appointed_ts, wall_ms);
            }
            Timed::Close(_, ts) if run.clock.observe(*ts, wall_ms).is_err() => return,
            Timed::Close(..) | Timed::Task(_) | Timed::Request(_) => {}
        }
        match run.clock.issue(wall_ms) {
            Err(_) => run.for_clock.push_back(timed),
            Ok(ts) => match timed {
                Timed::Appoint(assignment) => self.appoint(env, assignment, ts),
                Timed::Task(task) => self.sequence(env, task, ts),
                Timed::Request(request) => self.ask(env, request, ts),
                Timed::Close(tablet, wanted) => {
                    self.step(env, tablet, Input::CloseWanted { ts: wanted, fresh: ts });
                }
            },
        }
    }

    pub(super) fn appoint(&mut self, env: &mut Env, assignment: Assignment, ts: Hlc) {
        let Some((_, leads)) = assignment.leader else { return };
        let appointment = Appointment {
            epoch: assignment.epoch,
            replica: assignment.replica,
            incarnation: leads.incarnation,
            membership: assignment.membership,
            min_in_sync: assignment.min_in_sync,
            shrink_floor: assignment.shrink_floor,
            ts: ts.max(assignment.appointed_ts),
        };
        let (id, epoch, membership) = (assignment.tablet, assignment.epoch, appointment.membership.clone());
        self.step(env, id, Input::Appoint(appointment));
        // An earlier word may have begun the epoch already.
        self.step(env, id, Input::InSync { epoch, membership });
        self.step(env, id, Input::SplitAborted { attempt: assignment.aborted });
    }

    fn tick(&mut self, env: &mut Env) {
        let now = self.now(env);
        let Some(run) = &self.run else { return };
        let due = |copy: &&Copy| copy.core.next_deadline().is_some_and(|deadline| deadline <= now);
        let due: Vec<TabletId> = run.copies.values().filter(due).map(|copy| copy.core.id()).collect();
        due.into_iter().for_each(|id| self.step(env, id, Input::Tick));
        self.be_patient(env);
        self.look_after_rooms(env);
        self.after(env, TICK_US, Internal::Tick);
    }

    /// Lets a core take one step, and what gathered for others leave after it.
    pub(super) fn step(&mut self, env: &mut Env, id: TabletId, input: Input) {
        self.step_once(env, id, input);
        self.step_once(env, id, Input::Flush);
    }

    /// Lets a core take one step, shows the watch what became of it, and obeys.
    fn step_once(&mut self, env: &mut Env, id: TabletId, input: Input) {
        let now = self.now(env);
        let Some(run) = &mut self.run else { return };
        let Some((_, incarnation)) = run.identity else { return };
        let Some(copy) = run.copies.get_mut(&id) else { return };
        let mut effects = Vec::new();
        let is_flush = input == Input::Flush;
        run.pledges.now = self.clock.promiser(env.now_us);
        copy.core.step(now, &run.pledges, input, &mut effects);
        if is_flush && effects.is_empty() {
            return;
        }
        let core = &copy.core;
        env.observe(&Observation::Stepped(CoreView {
            tablet: id,
            server: self.index,
            incarnation,
            promised: core.promised(),
            durable: core.durable_end().pos,
            applied: core.applied_seq(),
            q: core.q(),
            serving: core.serving(),
            on_disk: self.disk.log.end(id).pos,
        }));
        effects.into_iter().for_each(|effect| self.execute(env, id, effect));
    }
}

impl Run {
    /// The epoch that a copy serves here, if it may answer for it now.
    pub(super) fn lease(&self, now: Tick, id: TabletId) -> Option<Epoch> {
        let copy = self.copies.get(&id)?;
        let epoch = copy.core.serving()?;
        copy.terms.hold(now, &self.pledges).then_some(epoch)
    }
}
