//! The loop: takes event after event, breaks things, heals them, and judges.

use super::archivist::Archivist;
use super::clock::{MonotonicClock, WallClock};
use super::crowd::{Crowd, Deed};
use super::env::{Env, Event, Route};
use super::fault::{Profile, SECOND_US, SpanUs, WipeBudget};
use super::meta::MetaNode;
use super::network::{Address, Message};
use super::restoring::restore;
use super::rng::Rng;
use super::server::Server;
use super::watcher::Watcher;
use super::workload::{Client, Timer, counter_key, row_key};
use crate::invariants::{Observation, Violation};
use crate::oracle::{Asked, Fate, Outcome, Trust};
use bytes::Bytes;
use ebla_kernel::ids::TabletId;
use ebla_kernel::meta::TableKind;
use ebla_kernel::op::{AckLevel, Action, Op, Token};
use std::collections::BTreeMap;

/// How long a healed cluster may take until every tablet is written and read again.
pub(super) const LIVENESS_US: u64 = 30 * SECOND_US;

/// After how long no message of the time of faults is under way any more.
const LATE_US: u64 = 3_200_000;

/// How long nothing is asked before the end is judged.
const REST_US: u64 = 2 * SECOND_US;

/// How often somebody looks for servers that ended.
const OPERATOR_US: u64 = 100_000;

/// A hundred times what a seed takes: more is no progress.
const EVENTS_MAX: u64 = 2_000_000;

/// Something breaks or comes back.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A server of chance loses power.
    CrashServer,
    /// Everything loses power.
    Blackout,
    /// A server of chance loses its disk.
    WipeServer,
    /// A server of chance sleeps, or is only stopped.
    Sleep,
    /// A server of chance stops in good order.
    StopServer,
    /// An operator wants another copy to lead.
    Transfer,
    /// The metadata node loses power.
    CrashMeta,
    /// An operator asks for the election of a tablet of chance.
    Depose,
    /// A server comes back.
    StartServer(usize),
    /// The metadata node comes back.
    StartMeta,
    /// A link of chance is cut in one direction.
    Cut,
    /// A link is joined again.
    Join(Address, Address),
    /// A wall clock of chance jumps.
    JumpWall,
    /// Servers that were told to end are started again.
    Operator,
    /// Somebody wants a tablet split.
    Split,
    /// Somebody wants neighbours made one.
    Merge,
    /// Somebody wants a copy moved.
    Move,
    /// Somebody gives up a job.
    Cancel,
    /// A tablet in memory loses every copy.
    Bereave,
    /// A row of chance has to make room.
    Evict,
}

/// A cluster and its surroundings.
#[derive(Debug)]
pub struct World {
    /// What every node is given.
    pub env: Env,
    /// Events so far.
    pub events: u64,
    pub(super) meta: MetaNode,
    pub(super) servers: Vec<Server>,
    clients: Vec<Client>,
    watcher: Watcher,
    pub(super) archivist: Option<Archivist>,
    pub(super) crowd: Option<Crowd>,
    pub(super) is_healed: bool,
}

impl World {
    /// A cluster that has not started.
    #[must_use]
    pub fn new(mut rng: Rng, profile: Profile) -> Self {
        let (drifts, skew_ms) = (profile.drifts, profile.skew_ms_max);
        let mut server = |index| {
            let mut server = Server::new(index, MonotonicClock::draw(&mut rng, drifts));
            server.wall = WallClock::draw(&mut rng, skew_ms);
            server
        };
        let servers = (0..profile.servers).map(&mut server).collect();
        let clients = (0..profile.clients).map(Client::new).collect();
        let mut env = Env::new(rng, profile);
        env.watch.oracle.rebuilds = env.profile.repairs;
        let (meta, watcher) = (MetaNode::new(), Watcher::default());
        let (archivist, crowd) = (Archivist::new(&env), Crowd::new(&env));
        Self { env, events: 0, meta, servers, clients, watcher, archivist, crowd, is_healed: false }
    }

    /// From the first start to the last judgement.
    ///
    /// # Errors
    /// The first invariant that was broken.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.start();
        self.run_until(self.env.profile.chaos_us, |_| false)?;
        self.finish()
    }

    /// Heals everything and judges.
    ///
    /// # Errors
    /// The first invariant that was broken.
    pub(super) fn finish(&mut self) -> Result<(), Violation> {
        self.heal();
        // Sleepers wake, and the last late messages arrive.
        let awake = self.servers.iter().map(|server| server.asleep_until_us).max().unwrap_or_default();
        let late = self.env.now_us + LATE_US;
        self.run_until(awake.max(late), |_| false)?;
        if self.is_beyond() {
            let until = self.env.now_us + REST_US;
            self.run_until(until, |_| false)?;
            return self.judge("beyond what the table bears");
        }
        self.be_alive()?;
        self.be_backed_up()?;
        self.be_in_rooms()?;
        self.come_to_rest()?;
        self.judge("at rest")?;
        if self.env.profile.spec.kind == TableKind::Memory {
            return Ok(()); // nothing is left of it
        }
        self.lose_power();
        self.come_to_rest()?;
        self.have_no_bits()?;
        self.judge("after a power loss of everything")
    }

    pub(super) fn start(&mut self) {
        let env = &mut self.env;
        self.meta.start(env);
        self.servers.iter_mut().for_each(|server| server.start(env));
        for client in 0..self.clients.len() {
            env.after(1_000, Event::Client(client, Timer::Think));
        }
        let profile = env.profile.clone();
        self.schedule(profile.server_crash_us, Fault::CrashServer);
        self.schedule(profile.meta_crash_us, Fault::CrashMeta);
        self.schedule(profile.depose_us, Fault::Depose);
        self.schedule(profile.transfer_us, Fault::Transfer);
        self.schedule(profile.transfer_us, Fault::StopServer);
        self.schedule(profile.sleep_us, Fault::Sleep);
        self.schedule(profile.blackout_us, Fault::Blackout);
        self.schedule(profile.wipe.map(|(span, _)| span), Fault::WipeServer);
        self.schedule(profile.network.cut_us, Fault::Cut);
        self.schedule(profile.wall_jump_us, Fault::JumpWall);
        self.schedule(profile.split_us, Fault::Split);
        self.schedule(profile.merge_us, Fault::Merge);
        self.schedule(profile.move_us, Fault::Move);
        self.schedule(profile.cancel_us, Fault::Cancel);
        self.schedule(profile.bereave_us, Fault::Bereave);
        self.schedule(profile.evict_us, Fault::Evict);
        self.env.after(OPERATOR_US, Event::Fault(Fault::Operator));
        self.back_up();
        self.gather(Deed::Any);
    }

    fn schedule(&mut self, span: Option<SpanUs>, fault: Fault) {
        let Some(span) = span else { return };
        let delay = self.env.rng.between(span);
        self.env.after(delay, Event::Fault(fault));
    }

    /// Lets things happen up to a time, or until `done`.
    pub(super) fn run_until(
        &mut self,
        until_us: u64,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, Violation> {
        while !done(self) {
            let Some(event) = self.env.next(until_us) else { return Ok(false) };
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(self.not_alive("something is done again and again without an end"));
            }
            self.happen(event);
            self.look_at_leases();
            self.look_at_rooms();
            if self.events.is_multiple_of(self.env.profile.watch_every) {
                let (now_us, env) = (self.env.now_us, &mut self.env);
                self.watcher.look(&self.servers, &env.watch.oracle, now_us, &mut env.history.seen);
            }
            if let Some(violation) = self.env.watch.failure.take() {
                return Err(violation);
            }
        }
        Ok(true)
    }

    fn happen(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Deliver(Address::Server(server), _) | Event::Server { server, .. }
                if self.servers[server].asleep_until_us > env.now_us =>
            {
                let wakes_in_us = self.servers[server].asleep_until_us - env.now_us;
                env.after(wakes_in_us, event);
            }
            Event::Deliver(to, message) => self.deliver(to, message),
            Event::Server { server, run, event } => {
                self.servers[server].handle(env, run, event);
                if std::mem::take(&mut env.has_stopped) {
                    let down = env.profile.down_us;
                    self.schedule(Some(down), Fault::StartServer(server));
                }
            }
            Event::Meta { run, event } => self.meta.handle(env, run, event),
            Event::Client(client, timer) => self.clients[client].ring(env, timer),
            Event::Fault(fault) => self.fault(fault),
            Event::Backup => self.back_up(),
            Event::Crowd(deed) => self.gather(deed),
        }
    }

    fn deliver(&mut self, to: Address, message: Message) {
        let env = &mut self.env;
        match (to, message) {
            (Address::Client(client), Message::Response(response)) => {
                self.clients[client].receive(env, response);
            }
            (Address::Server(server), message) if self.servers[server].is_up() => {
                self.servers[server].receive(env, message);
            }
            // Whoever had a directory that is lost since is not heard any more: of its first run
            // nobody knows that it was this server, so that it would be a server of its own.
            (Address::Meta, Message::Register(registration))
                if self.servers[registration.server].disk.generation != registration.disk_generation => {}
            (Address::Meta, message) if self.meta.is_up() => self.meta.receive(env, message),
            // Nobody is at home.
            (Address::Client(_) | Address::Server(_) | Address::Meta, _) => {}
        }
    }

    fn fault(&mut self, fault: Fault) {
        let profile = self.env.profile.clone();
        match fault {
            // What was scheduled before everything was healed does not happen any more.
            _ if self.is_over(fault) => {}
            Fault::CrashServer => {
                let victim = self.env.rng.index(self.servers.len());
                self.crash(victim);
                self.schedule(profile.server_crash_us, fault);
            }
            Fault::Blackout => {
                (0..self.servers.len()).for_each(|server| self.crash(server));
                self.schedule(profile.blackout_us, fault);
            }
            Fault::WipeServer => {
                self.wipe(profile.wipe.map(|(_, budget)| budget));
                self.schedule(profile.wipe.map(|(span, _)| span), fault);
            }
            Fault::Sleep => {
                self.sleep();
                self.schedule(profile.sleep_us, fault);
            }
            Fault::StopServer => {
                let victim = self.env.rng.index(self.servers.len());
                if self.env.profile.spec.kind == TableKind::Durable {
                    self.servers[victim].stop(&mut self.env);
                }
                self.schedule(profile.transfer_us, fault);
            }
            Fault::Transfer => {
                self.meta.transfer(&mut self.env);
                self.schedule(profile.transfer_us, fault);
            }
            Fault::CrashMeta => {
                if self.meta.is_up() {
                    self.meta.crash(&mut self.env);
                    self.schedule(Some(profile.down_us), Fault::StartMeta);
                }
                self.schedule(profile.meta_crash_us, fault);
            }
            Fault::Depose => {
                self.meta.depose(&mut self.env);
                self.schedule(profile.depose_us, fault);
            }
            Fault::StartServer(server) => {
                if !self.servers[server].is_up() {
                    self.servers[server].start(&mut self.env);
                }
            }
            Fault::StartMeta => {
                if !self.meta.is_up() {
                    self.meta.start(&mut self.env);
                }
            }
            Fault::Cut => {
                self.cut();
                self.schedule(profile.network.cut_us, fault);
            }
            Fault::Join(from, to) => self.env.network.join(from, to),
            Fault::JumpWall => {
                self.jump_wall(profile.wall_jump_ms_max);
                self.schedule(profile.wall_jump_us, fault);
            }
            Fault::Operator => self.operate(),
            Fault::Split => {
                self.meta.wish_split(&mut self.env);
                self.schedule(profile.split_us, fault);
            }
            Fault::Merge => {
                self.meta.wish_merge(&mut self.env);
                self.schedule(profile.merge_us, fault);
            }
            Fault::Move => {
                self.meta.wish_move(&mut self.env);
                self.schedule(profile.move_us, fault);
            }
            Fault::Cancel => {
                self.meta.cancel(&mut self.env);
                self.schedule(profile.cancel_us, fault);
            }
            Fault::Bereave => {
                self.bereave();
                self.schedule(profile.bereave_us, fault);
            }
            Fault::Evict => {
                self.evict();
                self.schedule(profile.evict_us, fault);
            }
        }
    }

    /// What was scheduled before everything was healed does not happen any more.
    fn is_over(&self, fault: Fault) -> bool {
        let profile = &self.env.profile;
        match fault {
            Fault::CrashServer => profile.server_crash_us.is_none(),
            Fault::CrashMeta => profile.meta_crash_us.is_none(),
            Fault::Blackout => profile.blackout_us.is_none(),
            Fault::WipeServer => profile.wipe.is_none(),
            Fault::Sleep => profile.sleep_us.is_none(),
            Fault::StopServer | Fault::Transfer => profile.transfer_us.is_none(),
            Fault::Depose => profile.depose_us.is_none(),
            Fault::Cut => profile.network.cut_us.is_none(),
            Fault::JumpWall => profile.wall_jump_us.is_none(),
            Fault::Split => profile.split_us.is_none(),
            Fault::Merge => profile.merge_us.is_none(),
            Fault::Move => profile.move_us.is_none(),
            Fault::Cancel => profile.cancel_us.is_none(),
            Fault::Bereave => self.is_healed,
            Fault::Evict => profile.evict_us.is_none(),
            Fault::StartServer(_) | Fault::StartMeta | Fault::Join(..) | Fault::Operator => false,
        }
    }

    /// Every lease that is held is shown: no later leader may be appointed meanwhile.
    fn look_at_leases(&mut self) {
        let is_news = self.env.metadata_changed || self.env.leases_changed;
        if !is_news {
            return;
        }
        (self.env.metadata_changed, self.env.leases_changed) = (false, false);
        let mut leases = Vec::new();
        for server in self.servers.iter().filter(|server| server.asleep_until_us <= self.env.now_us) {
            let index = server.index;
            let held = server.leases(self.env.now_us);
            leases.extend(held.into_iter().map(|(tablet, epoch)| (index, tablet, epoch)));
        }
        for (server, tablet, epoch) in leases.iter().copied() {
            self.env.watch.observe(&Observation::LeaseHeld { tablet, server, epoch });
        }
        self.env.watch.observe(&Observation::Leases(&leases));
    }

    pub(super) fn crash(&mut self, victim: usize) {
        if self.servers[victim].is_up() && self.bears_crash(victim) {
            self.servers[victim].crash(&mut self.env);
            let down = self.env.profile.down_us;
            self.schedule(Some(down), Fault::StartServer(victim));
        }
    }

    /// Whether tables in memory bear that a process ends, or need not: their copies are lost with it.
    fn bears_crash(&self, victim: usize) -> bool {
        let oracle = &self.env.watch.oracle;
        let routes = &self.env.directory.routes;
        // A copy that is created for a process that is over counts as there until that is known.
        let is_created = !routes.is_empty();
        self.env.profile.spec.kind == TableKind::Durable
            || self.env.profile.bereave_us.is_some()
            || (is_created && routes.iter().all(|route| oracle.bears(route.tablet, Some(victim))))
    }

    /// A disk of chance is lost, if every table bears it, or shall not.
    fn wipe(&mut self, budget: Option<WipeBudget>) {
        let victim = self.env.rng.index(self.servers.len());
        let oracle = &self.env.watch.oracle;
        let bears = self.env.directory.routes.iter().all(|route| oracle.bears(route.tablet, Some(victim)));
        let may = budget == Some(WipeBudget::Beyond) || bears;
        // Whoever loses a disk that does not know its server yet comes back as another server,
        // and nobody ever hears of the first again.
        let is_known = self.servers[victim].disk.registry.identity.is_some();
        if may && is_known && !self.env.directory.routes.is_empty() {
            self.servers[victim].wipe(&mut self.env);
            let down = self.env.profile.down_us;
            self.schedule(Some(down), Fault::StartServer(victim));
        }
    }

    /// A server of chance does nothing for a while; mostly one of its clocks stops too.
    fn sleep(&mut self) {
        let victim = self.env.rng.index(self.servers.len());
        let us = self.env.rng.between(self.env.profile.asleep_us);
        let stops = self.env.rng.chance(500);
        let server = &mut self.servers[victim];
        if !server.is_up() || server.asleep_until_us > self.env.now_us {
            return;
        }
        server.asleep_until_us = self.env.now_us + us;
        if stops {
            server.clock.sleep(us);
        }
        self.env.say(|| {
            format!("server {victim} sleeps for {us} us, its clock {}", if stops { "too" } else { "not" })
        });
    }

    fn cut(&mut self) {
        if self.env.rng.chance(250) {
            self.isolate();
            return;
        }
        let server = Address::Server(self.env.rng.index(self.servers.len()));
        let other = Address::Server(self.env.rng.index(self.servers.len()));
        let client = Address::Client(self.env.rng.index(self.clients.len()));
        let links = [
            (server, Address::Meta),
            (Address::Meta, server),
            (server, client),
            (client, server),
            (server, other),
            (other, server),
            (server, other),
        ];
        let (from, to) = links[self.env.rng.index(links.len())];
        let both = self.env.rng.chance(400);
        self.env.say(|| {
            format!("the link from {from:?} to {to:?} is cut{}", if both { ", and back" } else { "" })
        });
        self.env.network.cut(from, to);
        self.schedule(Some((50_000, 4 * SECOND_US)), Fault::Join(from, to));
        if both {
            self.env.network.cut(to, from);
            self.schedule(Some((50_000, 4 * SECOND_US)), Fault::Join(to, from));
        }
    }

    /// A server of chance hears and reaches nobody but clients.
    fn isolate(&mut self) {
        let victim = Address::Server(self.env.rng.index(self.servers.len()));
        let until = self.env.rng.between((50_000, 4 * SECOND_US));
        self.env.say(|| format!("{victim:?} is cut off"));
        let others = (0..self.servers.len()).map(Address::Server).chain([Address::Meta]);
        for other in others.filter(|other| *other != victim) {
            for (from, to) in [(victim, other), (other, victim)] {
                self.env.network.cut(from, to);
                self.env.after(until, Event::Fault(Fault::Join(from, to)));
            }
        }
    }

    /// A row of chance has to make room, where its tablet is led.
    fn evict(&mut self) {
        let key = row_key(self.env.rng.below(self.env.profile.keys));
        self.servers.iter_mut().for_each(|server| server.evict(&mut self.env, &key));
    }

    fn jump_wall(&mut self, ms_max: u64) {
        let victim = self.env.rng.index(self.servers.len());
        let wall = WallClock::draw(&mut self.env.rng, ms_max);
        self.env.say(|| format!("the wall clock of server {victim} jumps: {wall:?}"));
        self.servers[victim].wall = wall;
    }

    fn operate(&mut self) {
        for server in 0..self.servers.len() {
            if self.servers[server].is_superseded() {
                self.crash(server);
            }
        }
        if self.env.profile.bereave_us.is_some() {
            self.give_up_remains();
        }
        self.env.after(OPERATOR_US, Event::Fault(Fault::Operator));
    }

    /// No more faults; whatever is down comes back.
    fn heal(&mut self) {
        self.is_healed = true;
        let env = &mut self.env;
        env.say(|| "everything is healed".into());
        env.profile.heal();
        env.network.heal();
        if !self.meta.is_up() {
            self.meta.start(env);
        }
        for server in self.servers.iter_mut().filter(|server| !server.is_up()) {
            server.start(env);
        }
        // Wall clocks are right again: one that is hours ahead refuses every token as too old.
        self.servers.iter_mut().for_each(|server| server.wall = WallClock::default());
        self.clients.iter_mut().for_each(|client| client.is_active = false);
    }

    /// Whether more disks were lost than the table bears: then nobody need serve again.
    fn is_beyond(&self) -> bool {
        if self.env.profile.bereave_us.is_some() {
            return false; // it begins anew
        }
        let oracle = &self.env.watch.oracle;
        self.env.directory.routes.iter().any(|route| !oracle.bears(route.tablet, None))
    }

    /// E2: in a healed cluster every tablet is written and every row read, in time.
    fn be_alive(&mut self) -> Result<(), Violation> {
        let until = self.env.now_us + LIVENESS_US;
        let quiet = |world: &Self| {
            !world.env.directory.routes.is_empty() && world.clients.iter().all(Client::is_idle)
        };
        if !self.run_until(until, quiet)? {
            return Err(self.not_alive("clients still wait"));
        }
        let before = self.env.history.operations.len();
        self.clients[0].probes = self.probes();
        if !self.run_until(until, quiet)? {
            return Err(self.not_alive("a tablet does not serve"));
        }
        // Bits of rooms are written meanwhile, and again until they hold: those are others'.
        let since = self.env.history.operations[before..].iter();
        let mut probes = since.filter(|operation| operation.client == 0);
        let failed = probes.find(|probe| {
            !matches!(
                probe.outcome(),
                Some(Outcome::Committed(_) | Outcome::Row { .. } | Outcome::TokenTooOld | Outcome::Reverted)
            )
        });
        failed.map_or(Ok(()), |probe| Err(self.not_alive(&format!("{probe:?}"))))
    }

    /// E2, of backups: in a healed cluster they are made, in time.
    fn be_backed_up(&mut self) -> Result<(), Violation> {
        let Some(archivist) = &mut self.archivist else { return Ok(()) };
        archivist.close();
        let until = self.env.now_us + LIVENESS_US;
        let is_done = |world: &Self| world.archivist.as_ref().is_none_or(Archivist::is_done);
        match self.run_until(until, is_done)? {
            true => self.bring_back(),
            false => Err(self.not_alive(&format!("no backup is made: {:?}", self.archivist))),
        }
    }

    /// The last backup and one of chance are brought back into clusters of their own.
    fn bring_back(&mut self) -> Result<(), Violation> {
        let Some(archivist) = &mut self.archivist else { return Ok(()) };
        let Some(last) = self.env.history.backups.len().checked_sub(1) else { return Ok(()) };
        for (number, rng) in archivist.to_bring_back(last) {
            let restored = restore(rng, self.env.history.chain(number));
            let broken =
                |detail| Violation { invariant: "I14 a restore is whole or was never there".into(), detail };
            self.env.history.backups[number].restored = Some(restored.map_err(broken)?);
        }
        Ok(())
    }

    pub(super) fn not_alive(&self, why: &str) -> Violation {
        let open = self.env.history.operations.iter().find(|operation| operation.ended.is_none());
        let mut detail = format!("{why}; open: {open:?}");
        let state = self.meta.state();
        let running = state.into_iter().flat_map(|state| state.jobs()).filter(|job| job.is_running());
        running.for_each(|job| detail += &format!("\n{job:?}"));
        for route in &self.env.directory.routes {
            let tablet = state.and_then(|state| state.tablet(route.tablet));
            let moving = tablet.map(|tablet| (tablet.moving, tablet.replicas.len()));
            detail += &format!("\n{route:?} {moving:?}");
            for server in &self.servers {
                detail += &format!("\n  {}", server.describe(route.tablet));
            }
        }
        Violation { invariant: "E2 a healed cluster serves".into(), detail }
    }

    fn probes(&self) -> Vec<Asked> {
        let mut probes = Vec::new();
        for n in 0..self.env.profile.keys {
            let value = Bytes::from(format!("probe {n}"));
            let set = Op { condition: None, action: Action::Set { key: row_key(n), value, ttl_ms: None } };
            let token = Token { issued_ms: 0, client: 0, seq: 0 };
            probes.push(Asked::Get { key: row_key(n) });
            probes.push(Asked::Get { key: counter_key(n) });
            let level = AckLevel::Copies(self.env.profile.spec.min_in_sync);
            probes.push(Asked::Write { ops: vec![set], token, level });
        }
        probes
    }

    /// Late messages arrive, queues run dry, and every server serves.
    fn come_to_rest(&mut self) -> Result<(), Violation> {
        let late = self.env.now_us + 4 * SECOND_US;
        self.run_until(late, |_| false)?;
        let until = self.env.now_us + LIVENESS_US;
        if !self.run_until(until, Self::is_at_rest)? {
            return Err(self.not_alive("a copy is not in step"));
        }
        let rest = self.env.now_us + REST_US;
        self.run_until(rest, |_| false)?;
        if !self.is_at_rest() {
            return Err(self.not_alive("a copy is not in step any more"));
        }
        Ok(())
    }

    /// Whether every tablet is led, and every copy that is not lost is in sync and has
    /// everything.
    fn is_at_rest(&self) -> bool {
        let now_us = self.env.now_us;
        if self.env.profile.repairs && !self.meta.is_quiet() {
            return false;
        }
        let is_clean = |server: &Server| server.is_clean(&self.env);
        self.servers.iter().all(is_clean)
            && self.env.directory.routes.iter().all(|route| {
                let Some(leader) = route.leader else { return false };
                let Some(end) = self.servers[leader].end(route.tablet) else { return false };
                self.servers[leader].leads(now_us, route.tablet)
                    && route.in_sync.len() == route.copies.len()
                    && route.copies.values().all(|server| self.servers[*server].has_all(route.tablet, end))
            })
    }

    fn judge(&self, when: &str) -> Result<(), Violation> {
        let stores = self.servers.iter().map(|server| server.disk.store.rows()).collect();
        match self.env.watch.finish(&self.env.history, stores, &self.fates()) {
            None => Ok(()),
            Some(Violation { invariant, detail }) => {
                Err(Violation { invariant, detail: format!("{when}: {detail}") })
            }
        }
    }

    /// How every tablet came out of it.
    fn fates(&self) -> BTreeMap<TabletId, Fate> {
        let oracle = &self.env.watch.oracle;
        let is_beyond = self.is_beyond();
        let fate = |route: &Route| {
            let end = route.leader.map(|leader| oracle.story(route.tablet).end_of(leader));
            let trust = if is_beyond { Trust::Nothing } else { oracle.trust(route.tablet) };
            let copies = route.copies.values().copied().collect();
            let (tablet, range, end) = (route.tablet, route.range.clone(), end.unwrap_or_default());
            (tablet, Fate { tablet, range, end, copies, trust })
        };
        self.env.directory.routes.iter().map(fate).collect()
    }

    fn lose_power(&mut self) {
        let env = &mut self.env;
        self.meta.crash(env);
        self.servers.iter_mut().for_each(|server| server.crash(env));
        self.meta.start(env);
        self.servers.iter_mut().for_each(|server| server.start(env));
    }
}
