//! Promises between servers: who is asked, who answers, who is not heard any more.

use super::disk::RegistryChange;
use super::env::Env;
use super::network::{Address, Message};
use super::server::{Copy, Internal, Server};
use ebla_kernel::ids::{Epoch, Incarnation, ServerId, ServerRun, TabletId, Tick};
use ebla_kernel::lease::{Holder, Promised, Promiser, Promises};
use ebla_kernel::limits::{IN_SYNC_LAG_MS, LEADER_SILENCE_MS, LEASE_HEARTBEAT_MS, LEASE_MS};
use ebla_kernel::tablet::Input;
use std::collections::{BTreeMap, BTreeSet};

/// A server whose log has not been synced for so long promises nothing.
const PROBE_AGE_US: u64 = 500_000;

/// What a process has promised and was promised.
#[derive(Debug)]
pub struct Pledges {
    /// What it promised.
    pub promiser: Promiser,
    /// The promiser's clock, as of the present step.
    pub now: Tick,
    holder: Holder,
    /// The latest run of every server that was heard of, and when that was.
    peers: BTreeMap<ServerId, (Incarnation, u64)>,
    /// Exceptions of the last promise of each server, to be acknowledged.
    given_up: BTreeMap<ServerId, Vec<(TabletId, Epoch)>>,
    /// Servers whose silence the cores know of.
    silent: BTreeSet<ServerId>,
    started_us: u64,
    longest_is_writing: bool,
}

impl Promises for Pledges {
    fn counted_until(&self, run: ServerRun) -> Tick {
        self.holder.counted_until(run)
    }

    fn promiser_now(&self) -> Tick {
        self.now
    }

    fn given_until(&self, run: ServerRun) -> Tick {
        self.promiser.given_until(run)
    }

    fn boot_until(&self) -> Tick {
        self.promiser.boot_until()
    }
}

impl Pledges {
    /// A process that has just started.
    #[must_use]
    pub fn new(started: Tick, longest_lease_ms: u64, now_us: u64) -> Self {
        Self {
            promiser: Promiser::new(started, longest_lease_ms),
            now: started,
            holder: Holder::default(),
            peers: BTreeMap::new(),
            given_up: BTreeMap::new(),
            silent: BTreeSet::new(),
            started_us: now_us,
            longest_is_writing: false,
        }
    }

    /// A run was heard. Whether it is a new one.
    pub fn heard(&mut self, now_us: u64, run: ServerRun) -> bool {
        let known = self.peers.insert(run.server, (run.incarnation, now_us));
        match known {
            Some(known) if known.0 > run.incarnation => {
                self.peers.insert(run.server, known);
                false
            }
            Some(known) => {
                self.silent.remove(&run.server);
                known.0 != run.incarnation
            }
            None => true,
        }
    }

    fn silent_us(&self, now_us: u64, server: ServerId) -> u64 {
        now_us - self.peers.get(&server).map_or(self.started_us, |(_, at_us)| *at_us)
    }

    /// Whether the leader that a copy should follow is heard.
    #[must_use]
    pub(super) fn hears(&self, now_us: u64, copy: &Copy) -> bool {
        let leader = copy.core.follows().map(|(_, _, run)| run.server.server);
        leader.is_some_and(|server| self.silent_us(now_us, server) < LEADER_SILENCE_MS * 1_000)
    }
}

impl Server {
    /// A message of a run came. The way to a new run is a new stream.
    pub(super) fn hear(&mut self, env: &mut Env, from: ServerRun) {
        let Some(run) = &mut self.run else { return };
        if run.pledges.heard(env.now_us, from)
            && let Some(place) = env.directory.servers.get(&from.server).copied()
        {
            self.after(env, 1_000, Internal::Connected(place));
        }
    }

    /// Asks everybody for a promise, and says who is silent.
    pub(super) fn heartbeat(&mut self, env: &mut Env) {
        self.after(env, LEASE_HEARTBEAT_MS * 1_000, Internal::Heartbeat);
        let Some(name) = self.server_run() else { return };
        let others: Vec<(ServerId, usize)> = env.directory.servers.clone().into_iter().collect();
        let now = self.now(env);
        for (server, place) in others.iter().filter(|(server, _)| *server != name.server) {
            let Some(run) = &mut self.run else { return };
            let of = run.pledges.peers.get(server).map(|(incarnation, _)| *incarnation);
            let asked = of.map(|incarnation| ServerRun { server: *server, incarnation });
            let number = asked.map_or(0, |asked| run.pledges.holder.ask(now, asked));
            let given_up = run.pledges.given_up.get(server).cloned().unwrap_or_default();
            let message = Message::Ask { from: name, of, number, given_up };
            env.send(self.address(), Address::Server(*place), message);
        }
        self.report_silence(env, name);
    }

    /// To the cores after two seconds, to the metadata, of leaders only, much earlier.
    fn report_silence(&mut self, env: &mut Env, name: ServerRun) {
        let now_us = env.now_us;
        let Some(run) = &mut self.run else { return };
        let mut silent = Vec::new();
        for server in env.directory.servers.keys().filter(|server| **server != name.server) {
            let is_silent = run.pledges.silent_us(now_us, *server) >= IN_SYNC_LAG_MS * 1_000;
            if is_silent && run.pledges.silent.insert(*server) {
                silent.push(*server);
            }
        }
        let leaders: BTreeSet<(ServerId, Incarnation)> = run
            .copies
            .values()
            .filter_map(leader_of)
            .filter(|leader| leader.server != name.server)
            .filter(|leader| run.pledges.silent_us(now_us, leader.server) >= LEADER_SILENCE_MS * 1_000)
            .map(|leader| (leader.server, leader.incarnation))
            .collect();
        let ids: Vec<TabletId> = run.copies.keys().copied().collect();
        for server in silent {
            ids.iter().for_each(|id| self.step(env, *id, Input::Silent { server }));
        }
        env.send(self.address(), Address::Meta, Message::Silent { run: name, leaders });
        self.report_behind(env, name);
        self.report_diverged(env, name);
    }

    /// Which copies here hold another history than their leaders.
    fn report_diverged(&self, env: &mut Env, name: ServerRun) {
        let Some(run) = &self.run else { return };
        let diverged = run.copies.values().filter(|copy| copy.core.is_diverged());
        let copies: Vec<_> = diverged.map(|copy| (copy.core.id(), copy.core.replica())).collect();
        if !copies.is_empty() {
            env.send(self.address(), Address::Meta, Message::Diverged { run: name, copies });
        }
    }

    /// Which copies this server cannot bring up from its log.
    fn report_behind(&self, env: &mut Env, name: ServerRun) {
        let Some(run) = &self.run else { return };
        let of = |copy: &Copy| {
            let epoch = copy.core.serving()?;
            Some(copy.core.behind().map(|to| (copy.core.id(), epoch, to)).collect::<Vec<_>>())
        };
        let copies: Vec<_> = run.copies.values().filter_map(of).flatten().collect();
        if !copies.is_empty() {
            env.send(self.address(), Address::Meta, Message::Behind { run: name, copies });
        }
    }

    /// A leader's server asks for a promise.
    pub(super) fn asked(
        &mut self,
        env: &mut Env,
        from: ServerRun,
        of: Option<Incarnation>,
        number: u64,
        given_up: &[(TabletId, Epoch)],
    ) {
        let Some(name) = self.server_run() else { return };
        let now = self.clock.promiser(env.now_us);
        let is_noted = self.disk.registry.longest_lease_ms >= LEASE_MS;
        self.hear(env, from);
        let Some(run) = &mut self.run else { return };
        if !is_noted && !std::mem::replace(&mut run.pledges.longest_is_writing, true) {
            self.write_registry(env, RegistryChange::LongestLease(LEASE_MS));
        }
        let Some(run) = &mut self.run else { return };
        let hangs = run.log.since_us.is_some_and(|since_us| env.now_us - since_us > PROBE_AGE_US);
        let may = is_noted && !hangs && of == Some(name.incarnation);
        let promised = may.then(|| run.pledges.promiser.promise(now, from, given_up)).flatten();
        let Some(place) = env.directory.servers.get(&from.server).copied() else { return };
        let promised = promised.map(|promised| (number, promised));
        env.send(self.address(), Address::Server(place), Message::Promise { from: name, to: from, promised });
    }

    /// An answer: what it lists is given up before it counts (m20).
    pub(super) fn promised(&mut self, env: &mut Env, from: ServerRun, promised: Option<(u64, Promised)>) {
        self.hear(env, from);
        let Some((number, Promised { lease_ms, exceptions })) = promised else { return };
        for (tablet, epoch) in &exceptions {
            self.step(env, *tablet, Input::Superseded { epoch: *epoch });
        }
        let Some(run) = &mut self.run else { return };
        run.pledges.given_up.insert(from.server, exceptions);
        run.pledges.holder.promised(from, number, lease_ms);
    }
}

/// The process that leads a copy's tablet, as far as the copy knows.
fn leader_of(copy: &Copy) -> Option<ServerRun> {
    let follows = copy.core.follows().map(|(epoch, _, run)| (epoch, run.server));
    let assigned = copy.assignment.as_ref().and_then(|assignment| {
        let (_, run) = assignment.leader?;
        Some((assignment.epoch, run))
    });
    follows.into_iter().chain(assigned).max_by_key(|(epoch, _)| *epoch).map(|(_, run)| run)
}
