//! The metadata node: the real metadata core over one synced log.
//!
//! The masters' Raft group is one node here that crashes and comes back: commands that were
//! not synced are lost, the state is rebuilt by applying the log again, and that must give
//! the same hash.

use super::clock::{EPOCH_MS, tick};
use super::env::{Env, Event, Route};
use super::network::{Address, Assignment, FenceAnswers, Message, Registration, Welcome};
use crate::invariants::Observation;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Incarnation, ServerId, TabletId};
use ebla_kernel::meta::{
    Changes, ClusterId, Command, Control, Effect, GaveUp, Input, NewTablet, RegisterServer, Rejection, Reply,
    State, TableSpec, apply, state_hash,
};
use ebla_kernel::range::KeyRange;
use std::collections::BTreeMap;

/// How often the control core is told the time.
const TICK_US: u64 = 100_000;

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
}

#[derive(Debug, Default)]
struct Run {
    number: u64,
    state: State,
    control: Control,
    /// Commands that are not durable yet, with whoever waits for the reply.
    waiting: Vec<(Command, Option<Registration>)>,
    writing: Vec<(Command, Option<Registration>)>,
    sessions: BTreeMap<ServerId, (usize, Incarnation)>,
}

impl MetaNode {
    /// A node with an empty log.
    #[must_use]
    pub fn new() -> Self {
        Self { log: Vec::new(), hash: 0, runs: 0, run: None }
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.run.is_some()
    }

    /// Starts a run: applies the log again and leads.
    pub fn start(&mut self, env: &mut Env) {
        self.runs += 1;
        let mut run = Run { number: self.runs, ..Run::default() };
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
            Message::GaveUp { server, incarnation, epochs } => {
                if self.is_session(server, incarnation) {
                    let gave_up = |(tablet, epoch)| GaveUp { tablet, epoch, successor: None };
                    let epochs = epochs.into_iter().map(gave_up).collect();
                    self.step(env, Input::GaveUp { server, epochs });
                }
            }
            Message::Registered(_)
            | Message::Superseded { .. }
            | Message::Fences(_)
            | Message::Assignments(_)
            | Message::Request(_)
            | Message::Response(_) => unreachable!("nobody sends this to the metadata node"),
        }
    }

    /// Raises the epoch of a tablet of chance, whoever leads it.
    pub fn depose(&mut self, env: &mut Env) {
        let Some(run) = &self.run else { return };
        let count = run.state.tablet_count();
        let victim = env.rng.index(count.max(1));
        let Some(tablet) = run.state.tablets().nth(victim) else { return };
        let command = Command::Recover { tablets: vec![(tablet.id, tablet.epoch)] };
        self.propose(env, command, None);
    }

    fn register(&mut self, env: &mut Env, registration: Registration) {
        let command = Command::RegisterServer(RegisterServer {
            cluster_id: registration.identity.map(|(cluster, _)| cluster),
            server_id: registration.identity.map(|(_, server)| server),
            disk_generation: registration.disk_generation,
            boot_id: registration.boot_id,
            address: format!("server-{}", registration.server),
            zone: String::new(),
            time_ms: EPOCH_MS + env.now_us / 1_000,
        });
        self.propose(env, command, Some(registration));
    }

    fn fence_answers(&mut self, env: &mut Env, message: FenceAnswers) {
        let FenceAnswers { server, incarnation, answers } = message;
        if self.is_session(server, incarnation) {
            self.step(env, Input::FenceAnswered { server, answers });
        }
    }

    /// What a run says counts only in its own session.
    fn is_session(&self, server: ServerId, incarnation: Incarnation) -> bool {
        let session = self.run.as_ref().and_then(|run| run.sessions.get(&server));
        session.is_some_and(|(_, known)| *known == incarnation)
    }

    fn tick(&mut self, env: &mut Env) {
        let wall = Hlc::new(EPOCH_MS + env.now_us / 1_000, 0);
        self.step(env, Input::Tick { wall });
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
        let place = |(n, range)| NewTablet { range, servers: vec![ids[n % ids.len()]] };
        let tablets = ranges.into_iter().enumerate().map(place).collect();
        let command = Command::CreateTable { name: "sim".into(), spec: TableSpec::default(), tablets };
        self.propose(env, command, None);
    }

    fn propose(&mut self, env: &mut Env, command: Command, registration: Option<Registration>) {
        let Some(run) = &mut self.run else { return };
        run.waiting.push((command, registration));
        if run.writing.is_empty() {
            run.write(env);
        }
    }

    fn synced(&mut self, env: &mut Env) {
        let Some(run) = &mut self.run else { return };
        let mut opened = Vec::new();
        let mut all = Vec::new();
        for (command, registration) in std::mem::take(&mut run.writing) {
            self.log.push(command.encode());
            let (reply, changes) = apply(&mut run.state, self.log.len() as u64, command);
            all.push(changes);
            let Some(registration) = registration else { continue };
            match reply {
                Reply::Registered(registered) => {
                    opened.push((registered.cluster_id, registered.server, registration));
                }
                Reply::Rejected(Rejection::Superseded(_)) => {
                    let to = Address::Server(registration.server);
                    let message = Message::Superseded { boot_id: registration.boot_id };
                    env.send(Address::Meta, to, message);
                }
                Reply::Rejected(_)
                | Reply::Initialized(_)
                | Reply::Created(..)
                | Reply::Dropped(_)
                | Reply::Elections(_)
                | Reply::InSync(_)
                | Reply::Compared(_) => {}
            }
        }
        self.hash = state_hash(&run.state);
        if !run.waiting.is_empty() {
            run.write(env);
        }
        env.observe(&Observation::Metadata(&run.state));
        env.routes = routes(&run.state);
        all.into_iter().for_each(|changes: Changes| self.step(env, Input::Applied(changes)));
        for (cluster_id, server, registration) in opened {
            self.open_session(env, cluster_id, &server, &registration);
        }
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
        run.sessions.insert(server.id, (registration.server, server.incarnation));
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
        let address = |server| run.sessions.get(&server).map(|(index, _)| Address::Server(*index));
        match effect {
            Effect::Propose(command) => self.propose(env, command, None),
            Effect::SendFences { server, fences } => {
                let Some(to) = address(server) else { return };
                env.send(Address::Meta, to, Message::Fences(fences));
            }
            Effect::SendAssignments { server, tablets, .. } => {
                let Some(to) = address(server) else { return };
                let assignment = |id: &TabletId| assignment(&run.state, *id, server);
                let assignments = tablets.iter().filter_map(assignment).collect();
                env.send(Address::Meta, to, Message::Assignments(assignments));
            }
            // Nobody transfers leadership here.
            Effect::SendTransfer { .. } => {}
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

impl Run {
    fn write(&mut self, env: &mut Env) {
        self.writing = std::mem::take(&mut self.waiting);
        let delay = env.rng.between(env.profile.disk.sync_us);
        env.after(delay, Event::Meta { run: self.number, event: Internal::Synced });
    }
}

fn assignment(state: &State, id: TabletId, server: ServerId) -> Option<Assignment> {
    let tablet = state.tablet(id)?;
    let replica = tablet.replica_on(server)?;
    let min_in_sync = state.table(tablet.table)?.spec.min_in_sync;
    Some(Assignment {
        tablet: id,
        range: tablet.range.clone(),
        replica: replica.id,
        epoch: tablet.epoch,
        leader: tablet.leader.filter(|leader| leader.replica == replica.id).map(|leader| leader.incarnation),
        in_sync: tablet.in_sync.clone(),
        min_in_sync,
        appointed_ts: tablet.appointed_ts,
    })
}

/// Where the tablets are, read off the servers' addresses.
fn routes(state: &State) -> Vec<Route> {
    let server = |id| {
        let address = &state.server(id)?.address;
        address.strip_prefix("server-")?.parse().ok()
    };
    let route = |tablet: &ebla_kernel::meta::Tablet| {
        let server = server(tablet.replicas.first()?.server)?;
        Some(Route { tablet: tablet.id, range: tablet.range.clone(), server })
    };
    state.tablets().filter_map(route).collect()
}
