//! The metadata node: the real metadata core over one synced log.
//!
//! The masters' Raft group is one node here that crashes and comes back: commands that were
//! not synced are lost, the state is rebuilt by applying the log again, and that must give
//! the same hash.

use super::clock::{EPOCH_MS, tick};
use super::env::{Directory, Env, Event};
use super::network::{Address, Assignment, Assignments, FenceAnswers, Message, Registration, Welcome};
use crate::invariants::Observation;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, DiskGeneration, Epoch, Generation, Incarnation, ReplicaId, ServerId, ServerRun, TabletId,
};
use ebla_kernel::meta::{
    Changes, ClusterId, Command, Control, Effect, GaveUp, InSyncChange, Input, Job, JobEnd, JobKind,
    JobState, NewTablet, Origin, RegisterServer, Rejection, ReplicaChange, Reply, Settings, SplitCommit,
    State, Tablet, Wish, apply, state_hash,
};
use ebla_kernel::range::KeyRange;
use ebla_kernel::room::subscriptions::RoomId;
use ebla_kernel::tablet::{self, Membership, Proposal};
use std::collections::{BTreeMap, BTreeSet};

/// How often the control core is told the time.
const TICK_US: u64 = 50_000;

/// After how long without a heartbeat a session is over.
const SESSION_US: u64 = 2_000_000;

/// Who waits for the outcome of a command.
#[derive(Clone, Debug)]
enum Waits {
    Nobody,
    Registration(Registration),
    Proposals(ServerRun, Vec<(TabletId, Proposal)>),
    Commit(ServerRun, Vec<(TabletId, Epoch)>, Attempt),
}

/// Something that happens inside a run of the node.
#[derive(Debug)]
pub enum Internal {
    /// The log group is durable.
    Synced,
    /// Time to look at the clock.
    Tick,
}

/// The metadata node.
#[derive(Debug)]
pub struct MetaNode {
    log: Vec<Vec<u8>>,
    hash: u64,
    runs: u64,
    run: Option<Run>,
    /// Assignments that were sent.
    assigned: u64,
    wishes: Wishes,
}

/// What became of wishes, for whoever looks whether the world does anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// Splits that were committed.
    pub splits: u64,
    /// Merges that were committed.
    pub merges: u64,
    /// Copies that took the place of others.
    pub moves: u64,
    /// Jobs that came to nothing.
    pub aborts: u64,
    /// Copies that count as lost because they had diverged from their leaders.
    pub forsaken: u64,
}

/// A server that is connected.
#[derive(Clone, Copy, Debug)]
struct Session {
    place: usize,
    incarnation: Incarnation,
    heard_us: u64,
}

#[derive(Debug, Default)]
struct Run {
    number: u64,
    state: State,
    control: Control,
    /// Commands that are not durable yet, with whoever waits for the reply.
    waiting: Vec<(Command, Waits)>,
    writing: Vec<(Command, Waits)>,
    sessions: BTreeMap<ServerId, Session>,
}

impl MetaNode {
    /// A node with an empty log.
    #[must_use]
    pub fn new() -> Self {
        let (log, wishes) = (Vec::new(), Wishes::default());
        Self { log, hash: 0, runs: 0, run: None, assigned: 0, wishes }
    }

    /// What became of wishes.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// The state of the present run.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        self.run.as_ref().map(|run| &run.state)
    }

    /// Which run of the node this is, if it runs.
    #[must_use]
    pub fn run_number(&self) -> Option<u64> {
        self.run.as_ref().map(|run| run.number)
    }

    /// Servers that are connected.
    #[must_use]
    pub fn usable(&self) -> BTreeSet<ServerId> {
        self.run.iter().flat_map(|run| run.sessions.keys().copied()).collect()
    }

    /// Whether no job is under way, and every tablet has as many copies as it wants.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let Some(run) = &self.run else { return false };
        let state = &run.state;
        let is_whole = |tablet: &Tablet| {
            let wanted = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
            tablet.moving.is_none() && tablet.replicas.len() == wanted
        };
        !state.jobs().any(Job::is_running) && state.tablets().all(is_whole)
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.run.is_some()
    }

    /// Starts a run: applies the log again and leads.
    pub fn start(&mut self, env: &mut Env) {
        self.runs += 1;
        let settings =
            Settings { replaces_copies: env.profile.repairs, replace_after_ms: env.profile.replace_after_ms };
        let mut run = Run { number: self.runs, control: Control::new(settings), ..Run::default() };
        for (index, bytes) in self.log.iter().enumerate() {
            let command = Command::decode(bytes).expect("it was written by this version");
            apply(&mut run.state, index as u64 + 1, command);
        }
        if !self.log.is_empty() && state_hash(&run.state) != self.hash {
            env.watch.fail("I17 same log, same state", "a replayed metadata log gives another hash");
        }
        self.run = Some(run);
        env.say(|| "meta starts".into());
        let lead = Input::BecameLeader { cluster_id: ClusterId(77), masters: BTreeMap::new() };
        self.step(env, lead);
        self.tick(env);
    }

    /// Loses everything that is not synced.
    pub fn crash(&mut self, env: &mut Env) {
        env.say(|| "meta crashes".into());
        self.run = None;
    }

    /// Lets something inside a run happen.
    pub fn handle(&mut self, env: &mut Env, number: u64, event: Internal) {
        if self.run.as_ref().is_none_or(|run| run.number != number) {
            return;
        }
        match event {
            Internal::Synced => self.synced(env),
            Internal::Tick => self.tick(env),
        }
    }

    /// Takes a message.
    pub fn receive(&mut self, env: &mut Env, message: Message) {
        match message {
            Message::Register(registration) => self.register(env, registration),
            Message::FenceAnswers(answers) => self.fence_answers(env, answers),
            Message::GaveUp { run, epochs } => {
                if self.hears(env, run) {
                    let gave_up = |(tablet, epoch, successor)| GaveUp { tablet, epoch, successor };
                    let epochs = epochs.into_iter().map(gave_up).collect();
                    self.step(env, Input::GaveUp { server: run.server, epochs });
                }
            }
            Message::Silent { run, leaders } => {
                self.reconnect(env, run);
                if self.hears(env, run) {
                    self.step(env, Input::Silent { server: run.server, leaders });
                }
            }
            Message::Propose { run, proposals } => {
                if self.hears(env, run) {
                    let changes = proposals.iter().map(|(tablet, proposal)| change(*tablet, proposal));
                    let proposer = (run.server, run.incarnation);
                    let command = Command::AlterInSync { proposer, changes: changes.collect() };
                    self.propose(env, command, Waits::Proposals(run, proposals));
                }
            }
            Message::Behind { run, copies } => {
                if self.hears(env, run) {
                    self.step(env, Input::Behind { server: run.server, copies });
                }
            }
            Message::Diverged { run, copies } => {
                if self.hears(env, run) {
                    self.step(env, Input::Diverged { server: run.server, copies });
                }
            }
            Message::ProposeSplit { run, commit } => {
                if self.hears(env, run) {
                    self.take_commit(env, run, commit);
                }
            }
            Message::Registered(_)
            | Message::SplitRefused { .. }
            | Message::Seal(_)
            | Message::Fetch(_)
            | Message::Shipment(_)
            | Message::Superseded { .. }
            | Message::SessionOver(_)
            | Message::Fences(_)
            | Message::Assignments(_)
            | Message::ProposalRefused { .. }
            | Message::Transfer { .. }
            | Message::Peer { .. }
            | Message::Ask { .. }
            | Message::Promise { .. }
            | Message::Room(_)
            | Message::Request(_)
            | Message::Response(_) => unreachable!("nobody sends this to the metadata node"),
        }
    }

    /// A leader wants its tablet retired: the halves of a merge are committed together.
    fn take_commit(&mut self, env: &mut Env, name: ServerRun, commit: SplitCommit) {
        let Some(run) = &mut self.run else { return };
        let (proposer, attempt) = ((name.server, name.incarnation), commit.attempt);
        let commits = run.control.take_commit(&run.state, proposer, commit);
        if commits.is_empty() {
            return;
        }
        let tablets = commits.iter().map(|commit| (commit.tablet, commit.epoch)).collect();
        let time_ms = EPOCH_MS + env.now_us / 1_000;
        let command = Command::CommitSplit { proposer, commits, time_ms };
        self.propose(env, command, Waits::Commit(name, tablets, attempt));
    }

    /// A current run without a session gets one: its stream is open again.
    fn reconnect(&mut self, env: &mut Env, name: ServerRun) {
        let Some(run) = &mut self.run else { return };
        let current = run.state.server(name.server).map(|server| server.incarnation);
        let Some(place) = env.directory.servers.get(&name.server).copied() else { return };
        if current != Some(name.incarnation) {
            env.send(Address::Meta, Address::Server(place), Message::SessionOver(name));
            return;
        }
        if run.sessions.contains_key(&name.server) {
            return;
        }
        let session = Session { place, incarnation: name.incarnation, heard_us: env.now_us };
        run.sessions.insert(name.server, session);
        let (server, incarnation) = (name.server, name.incarnation);
        self.step(env, Input::SessionOpened { server, incarnation });
    }

    /// Asks for another leader of a tablet of chance.
    pub fn transfer(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let victim = env.rng.index(run.state.tablet_count().max(1));
        let Some(tablet) = run.state.tablets().nth(victim) else { return };
        let members: Vec<_> = tablet.in_sync.iter().copied().collect();
        if members.is_empty() {
            return;
        }
        let (tablet, replica) = (tablet.id, members[env.rng.index(members.len())]);
        self.step(env, Input::Transfer { tablet, replica });
    }

    /// Somebody wants a tablet of chance split at a row of chance, or at two.
    pub fn wish_split(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let keys = env.profile.keys;
        let rooms = env.profile.rooms.as_ref().map_or(0, |faults| u64::from(faults.rooms));
        let mut rows: Vec<u64> = (0..1 + env.rng.below(2)).map(|_| env.rng.below(keys + rooms)).collect();
        rows.sort_unstable();
        rows.dedup();
        let room = |n: u64| RoomId(u32::try_from(n).expect("few rooms"));
        let key = |n: &u64| match n % 3 {
            _ if *n >= keys => super::rooms::room_key(room(*n - keys)),
            0 => super::workload::counter_key(*n),
            _ => super::workload::row_key(*n),
        };
        let keys: Vec<Bytes> = rows.iter().map(key).collect();
        let is_home = |tablet: &&Tablet| keys.first().is_some_and(|key| tablet.range.contains(key));
        let Some(home) = run.state.tablets().find(is_home) else { return };
        let tablet = home.id;
        let at = keys.iter().filter(|key| home.range.contains(key)).cloned().collect();
        self.wish(env, Wish::Split { tablet, at });
    }

    /// Somebody wants a copy of a tablet of chance on another server.
    pub fn wish_move(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let victim = env.rng.index(run.state.tablet_count().max(1));
        let Some(tablet) = run.state.tablets().nth(victim) else { return };
        let from: Vec<ServerId> = tablet.replicas.iter().map(|replica| replica.server).collect();
        let servers = run.state.servers().map(|server| server.id);
        let to: Vec<ServerId> = servers.filter(|server| !from.contains(server)).collect();
        if to.is_empty() {
            return;
        }
        let (from, to) = (from[env.rng.index(from.len())], to[env.rng.index(to.len())]);
        let tablet = tablet.id;
        self.wish(env, Wish::Move { tablet, from, to });
    }

    /// Somebody wants two neighbours of chance to become one.
    pub fn wish_merge(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let ids: Vec<TabletId> = run.state.tablets().map(|tablet| tablet.id).collect();
        let Some(last) = ids.len().checked_sub(2) else { return };
        let left = env.rng.index(last + 1);
        let (mut stays, mut comes) = (ids[left], ids[left + 1]);
        if env.rng.chance(500) {
            (stays, comes) = (comes, stays);
        }
        self.wish(env, Wish::Merge { stays, comes });
    }

    /// Starts a job, for a person or for the cluster itself.
    pub fn wish(&mut self, env: &mut Env, wish: Wish) {
        let origin = if env.rng.chance(500) { Origin::Operator } else { Origin::Automatic };
        env.say(|| format!("somebody wants {wish:?}, {origin:?}"));
        let time_ms = EPOCH_MS + env.now_us / 1_000;
        self.propose(env, Command::StartJob { wish, origin, time_ms }, Waits::Nobody);
    }

    /// Puts a command into the log that nobody waits for.
    pub fn command(&mut self, env: &mut Env, command: Command) {
        self.propose(env, command, Waits::Nobody);
    }

    /// Somebody gives up a job that is under way.
    pub fn cancel(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let running: Vec<_> = run.state.jobs().filter(|job| job.is_running()).map(|job| job.id).collect();
        if running.is_empty() {
            return;
        }
        let job = running[env.rng.index(running.len())];
        env.say(|| format!("somebody cancels {job}"));
        let (end, time_ms) = (JobEnd::Cancelled, EPOCH_MS + env.now_us / 1_000);
        self.propose(env, Command::EndJob { job, attempt: None, end, time_ms }, Waits::Nobody);
    }

    /// Raises the epoch of a tablet of chance, whoever leads it.
    pub fn depose(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let count = run.state.tablet_count();
        let victim = env.rng.index(count.max(1));
        let Some(tablet) = run.state.tablets().nth(victim) else { return };
        let command = Command::Recover { tablets: vec![(tablet.id, tablet.epoch)] };
        self.propose(env, command, Waits::Nobody);
    }

    fn register(&mut self, env: &mut Env, registration: Registration) {
        let command = Command::RegisterServer(RegisterServer {
            cluster_id: registration.identity.map(|(cluster, _)| cluster),
            server_id: registration.identity.map(|(_, server)| server),
            disk_generation: registration.disk_generation,
            boot_id: registration.boot_id,
            starts: registration.starts,
            address: format!("server-{}", registration.server),
            zone: String::new(),
            time_ms: EPOCH_MS + env.now_us / 1_000,
        });
        self.propose(env, command, Waits::Registration(registration));
    }

    fn fence_answers(&mut self, env: &mut Env, message: FenceAnswers) {
        let FenceAnswers { server, incarnation, answers } = message;
        if self.hears(env, ServerRun { server, incarnation }) {
            self.step(env, Input::FenceAnswered { server, answers });
        }
    }

    /// What a run says counts only in its own session.
    fn hears(&mut self, env: &Env, name: ServerRun) -> bool {
        let session = self.run.as_mut().and_then(|run| run.sessions.get_mut(&name.server));
        let session = session.filter(|session| session.incarnation == name.incarnation);
        session.map(|session| session.heard_us = env.now_us).is_some()
    }

    /// Sessions end that were not heard for long.
    fn close_sessions(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        let is_over = |session: &Session| env.now_us - session.heard_us > SESSION_US;
        let over: Vec<ServerId> =
            run.sessions.iter().filter(|(_, session)| is_over(session)).map(|(id, _)| *id).collect();
        for server in over {
            if let Some(run) = &mut self.run {
                run.sessions.remove(&server);
            }
            self.step(env, Input::SessionClosed { server });
        }
    }

    fn tick(&mut self, env: &mut Env) {
        let wall = Hlc::new(EPOCH_MS + env.now_us / 1_000, 0);
        self.step(env, Input::Tick { wall });
        self.close_sessions(env);
        self.create_table(env);
        let Some(run) = &self.run else { return };
        env.after(TICK_US, Event::Meta { run: run.number, event: Internal::Tick });
    }

    /// Creates the one table as soon as all servers are there.
    fn create_table(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let ids: Vec<ServerId> = run.state.servers().map(|server| server.id).collect();
        if ids.len() < env.profile.servers || run.state.tables().next().is_some() {
            return;
        }
        let step = env.profile.keys.div_ceil(env.profile.tablets as u64).max(1);
        let cuts: Vec<Bytes> = (1..env.profile.tablets as u64)
            .map(|n| n * step)
            .filter(|n| *n < env.profile.keys)
            .map(super::workload::row_key)
            .collect();
        let ranges = KeyRange::cut_at(&cuts).expect("row keys rise");
        let spec = env.profile.spec.clone();
        let copies = usize::from(spec.replicas);
        let place = |(n, range)| {
            let servers = (0..copies).map(|copy| ids[(n + copy) % ids.len()]).collect();
            NewTablet { range, servers }
        };
        let tablets = ranges.into_iter().enumerate().map(place).collect();
        let command = Command::CreateTable { name: "sim".into(), spec, tablets, time_ms: 0 };
        self.propose(env, command, Waits::Nobody);
    }

    fn propose(&mut self, env: &mut Env, command: Command, waits: Waits) {
        let Some(run) = &mut self.run else { return };
        run.waiting.push((command, waits));
        if run.writing.is_empty() {
            run.write(env);
        }
    }

    fn synced(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        let mut answered = Vec::new();
        let mut all = Vec::new();
        for (command, waits) in std::mem::take(&mut run.writing) {
            env.say(|| format!("meta applies {command:?}"));
            self.log.push(command.encode());
            let forsaken = diverged(&command);
            let losses = run.state.tablets().filter(|tablet| is_emptied(&command, tablet.id));
            let losses = losses.map(|tablet| (tablet.range.clone(), env.now_us));
            env.history.losses.extend(losses);
            let (reply, changes) = apply(&mut run.state, self.log.len() as u64, command);
            self.wishes.forsaken += forsaken.filter(|copy| is_lost(&run.state, *copy)).count() as u64;
            self.wishes.count(&run.state, &changes);
            env.observe(&Observation::Metadata(&run.state));
            all.push(changes);
            answered.push((reply, waits));
        }
        self.hash = state_hash(&run.state);
        if !run.waiting.is_empty() {
            run.write(env);
        }
        env.directory = Directory::of(&run.state);
        env.metadata_changed = true;
        all.into_iter().for_each(|changes: Changes| self.step(env, Input::Applied(changes)));
        answered.into_iter().for_each(|(reply, waits)| self.answer(env, reply, waits));
    }

    /// Tells whoever waits what became of a command.
    fn answer(&mut self, env: &mut Env, reply: Reply, waits: Waits) {
        match (waits, reply) {
            (Waits::Registration(registration), Reply::Registered(registered)) => {
                self.open_session(env, registered.cluster_id, &registered.server, &registration);
            }
            (Waits::Registration(registration), Reply::Rejected(Rejection::Superseded(_))) => {
                let to = Address::Server(registration.server);
                env.send(Address::Meta, to, Message::Superseded { boot_id: registration.boot_id });
            }
            (Waits::Proposals(run, proposals), Reply::InSync(results)) => {
                for ((tablet, proposal), result) in proposals.into_iter().zip(results) {
                    if let Err(rejection) = result {
                        env.say(|| format!("meta refuses {proposal:?} of {tablet}: {rejection}"));
                        self.refuse(env, run, tablet, proposal);
                    }
                }
            }
            (Waits::Commit(name, tablets, attempt), Reply::Rejected(why)) => {
                env.say(|| format!("meta refuses {attempt} of {tablets:?}: {why}"));
                let Some(place) = env.directory.servers.get(&name.server).copied() else { return };
                for (tablet, epoch) in tablets {
                    let message = Message::SplitRefused { run: name, tablet, epoch, attempt };
                    env.send(Address::Meta, Address::Server(place), message);
                }
            }
            _ => {}
        }
    }

    /// A change that was refused at its own version will never be; of another version its
    /// proposer has something to learn.
    fn refuse(&mut self, env: &mut Env, name: ServerRun, tablet: TabletId, proposal: Proposal) {
        let Some(run) = &self.run else { return };
        let Some(place) = env.directory.servers.get(&name.server).copied() else { return };
        let record = run.state.tablet(tablet);
        let Proposal { epoch, version, .. } = proposal;
        let same = record.is_some_and(|record| record.epoch == epoch && record.config_version == version);
        let message = match assignment(&run.state, tablet, name.server) {
            _ if same => Message::ProposalRefused { run: name, tablet, epoch, version },
            Some(assignment) => {
                self.assigned += 1;
                let (number, assignments, removed) = (self.assigned, vec![assignment], Vec::new());
                Message::Assignments(Assignments { run: name, number, full: false, assignments, removed })
            }
            None => return,
        };
        env.send(Address::Meta, Address::Server(place), message);
    }

    fn open_session(
        &mut self,
        env: &mut Env,
        cluster_id: ClusterId,
        server: &ebla_kernel::meta::Server,
        registration: &Registration,
    ) {
        let Some(run) = &mut self.run else { return };
        // An answer to an old run would take the session from the present one.
        if server.boot_id != registration.boot_id {
            return;
        }
        let (place, incarnation) = (registration.server, server.incarnation);
        run.sessions.insert(server.id, Session { place, incarnation, heard_us: env.now_us });
        let (id, incarnation, boot_id) = (server.id, server.incarnation, registration.boot_id);
        let welcome = Welcome { boot_id, cluster_id, server: id, incarnation };
        env.send(Address::Meta, Address::Server(registration.server), Message::Registered(welcome));
        self.step(env, Input::SessionOpened { server: id, incarnation });
    }

    fn step(&mut self, env: &mut Env, input: Input) {
        let Some(run) = &mut self.run else { return };
        let mut effects = Vec::new();
        run.control.step(tick(env.now_us), &run.state, input, &mut effects);
        for effect in effects {
            self.execute(env, effect);
        }
    }

    fn execute(&mut self, env: &mut Env, effect: Effect) {
        let Some(run) = &mut self.run else { return };
        let address = |server| run.sessions.get(&server).map(|session| Address::Server(session.place));
        match effect {
            Effect::Propose(command) => self.propose(env, command, Waits::Nobody),
            Effect::SendSeal { server, order } => {
                let Some(to) = address(server) else { return };
                env.send(Address::Meta, to, Message::Seal(order));
            }
            Effect::SendFences { server, fences } => {
                let Some(to) = address(server) else { return };
                env.send(Address::Meta, to, Message::Fences(fences));
            }
            Effect::SendAssignments { server, full, tablets, removed } => {
                let Some(to) = address(server) else { return };
                let incarnation = run.sessions.get(&server).map_or(Incarnation(0), |held| held.incarnation);
                let assignment = |id: &TabletId| assignment(&run.state, *id, server);
                let assignments = tablets.iter().filter_map(assignment).collect();
                self.assigned += 1;
                let (name, number) = (ServerRun { server, incarnation }, self.assigned);
                let message = Assignments { run: name, number, full, assignments, removed };
                env.send(Address::Meta, to, Message::Assignments(message));
            }
            Effect::SendTransfer { server, tablet, epoch, replica } => {
                let Some(to) = address(server) else { return };
                env.send(Address::Meta, to, Message::Transfer { tablet, epoch, to: replica });
            }
            Effect::EndSession { server } => {
                run.sessions.remove(&server);
            }
        }
    }
}

impl Default for MetaNode {
    fn default() -> Self {
        Self::new()
    }
}

impl Wishes {
    fn count(&mut self, state: &State, changes: &Changes) {
        for job in changes.jobs.iter().filter_map(|id| state.job(*id)) {
            match (job.state, &job.kind) {
                (JobState::Running, _) => {}
                (JobState::Done, JobKind::Split(_)) => self.splits += 1,
                (JobState::Done, JobKind::Move(_)) => self.moves += 1,
                (JobState::Done, JobKind::Merge(_)) => self.merges += 1,
                // Nobody wishes for one here.
                (JobState::Done, JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_)) => {}
                (JobState::Failed | JobState::Cancelled, _) => self.aborts += 1,
            }
        }
    }
}

impl Run {
    fn write(&mut self, env: &mut Env) {
        self.writing = std::mem::take(&mut self.waiting);
        let delay = env.rng.between(env.profile.disk.sync_us);
        env.after(delay, Event::Meta { run: self.number, event: Internal::Synced });
    }
}

/// Copies that are said to have diverged.
fn diverged(command: &Command) -> impl Iterator<Item = (TabletId, ReplicaId)> + use<> {
    let changes = match command {
        Command::ChangeReplicas { changes, .. } => changes.clone(),
        _ => Vec::new(),
    };
    changes.into_iter().filter_map(|change| match change {
        ReplicaChange::Forsake { tablet, replica } => Some((tablet, replica)),
        ReplicaChange::Add { .. }
        | ReplicaChange::Remove { .. }
        | ReplicaChange::Shed { .. }
        | ReplicaChange::Settle { .. } => None,
    })
}

/// Whether a tablet is to begin anew.
fn is_emptied(command: &Command, id: TabletId) -> bool {
    matches!(command, Command::Empty { tablets, .. } if tablets.iter().any(|anew| anew.tablet == id))
}

fn is_lost(state: &State, (tablet, replica): (TabletId, ReplicaId)) -> bool {
    let copy = state.tablet(tablet).and_then(|tablet| tablet.replica(replica));
    copy.is_some_and(|copy| copy.lost)
}

fn change(tablet: TabletId, proposal: &Proposal) -> InSyncChange {
    let Proposal { epoch, version, change, run } = proposal.clone();
    let tablet::Change { replicas, add } = change;
    let nobody = (Incarnation(0), Generation::Disk(DiskGeneration(0)));
    let (incarnation, generation) = run.map_or(nobody, |run| (run.server.incarnation, run.generation));
    InSyncChange { tablet, epoch, config_version: version, replicas, add, incarnation, generation }
}

fn assignment(state: &State, id: TabletId, server: ServerId) -> Option<Assignment> {
    let tablet = state.tablet(id)?;
    let replica = tablet.replica_on(server)?;
    let spec = &state.table(tablet.table)?.spec;
    let held = tablet.replicas.iter().filter(|replica| !replica.lost);
    let run = |leader: &ebla_kernel::meta::Leader| ServerRun {
        server: leader.server,
        incarnation: leader.incarnation,
    };
    Some(Assignment {
        tablet: id,
        range: tablet.range.clone(),
        replica: replica.id,
        generation: replica.generation,
        epoch: tablet.epoch,
        leader: tablet.leader.map(|leader| (leader.replica, run(&leader))),
        membership: Membership {
            version: tablet.config_version,
            in_sync: tablet.in_sync.clone(),
            members: held.map(|replica| (replica.id, replica.server)).collect(),
            leaving: tablet.leaving(),
        },
        shrink_floor: u8::try_from(spec.in_sync_min()).unwrap_or(u8::MAX),
        min_in_sync: spec.min_in_sync,
        appointed_ts: tablet.appointed_ts,
        is_in_sync: tablet.in_sync.contains(&replica.id),
        parents: tablet.parents.clone(),
        emptied_ms: tablet.emptied.map_or(0, |emptied| emptied.time_ms),
        aborted: tablet.aborted,
    })
}
