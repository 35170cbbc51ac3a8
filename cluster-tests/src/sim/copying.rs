//! Copies that are built from another's rows: what their leader sends, and the steps here, in the
//! order that a crash between any two of them needs.
//!
//! ```text
//! record Building ─▶ rows from the leader ─▶ clear ─▶ flush ─▶ ingest ─▶ flush ─▶ log
//!        ▲                                                                        │
//!        └───────────────────── a crash anywhere ◀──────────── record Active ◀────┘
//! ```

use super::disk::{Built, CopyState, RegistryChange, Rows};
use super::env::Env;
use super::network::{Address, Message};
use super::pipeline::floor_above;
use super::server::{Internal, Server};
use ebla_kernel::entry::LogEnd;
use ebla_kernel::ids::{ReplicaId, Seq, ServerRun, TabletId};
use ebla_kernel::mutated;
use ebla_kernel::tablet::token::TokenTable;
use ebla_kernel::tablet::{Input, PeerInput, PeerMessage, PeerRun};
use std::rc::Rc;

/// After how long without an answer a copy is asked for again.
const ASK_AGAIN_US: u64 = 300_000;

/// A copy that is being built.
#[derive(Debug)]
pub struct Building {
    replica: ReplicaId,
    attempt: u64,
    shipment: Option<Rc<Shipment>>,
}

/// A step that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildStep {
    /// What was there is cleared, up to this mark of the store: put the rows in.
    Ingest(u64),
    /// The rows are in: begin the log, and say that the copy is whole.
    Record,
}

/// A question for a copy's rows.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy that is to be built.
    pub replica: ReplicaId,
    /// The try.
    pub attempt: u64,
    /// Where.
    pub to: usize,
    /// The process there.
    pub run: ServerRun,
}

/// Rows for a copy.
#[derive(Clone, Debug)]
pub struct Shipment {
    /// What was asked.
    pub fetch: Fetch,
    /// The last entry that they contain.
    pub end: LogEnd,
    /// All versions up to there.
    pub rows: Rows,
    /// The tokens up to there.
    pub tokens: TokenTable,
    /// A word of the leader, to be answered with where the log ends.
    pub probe: PeerInput,
}

impl Server {
    /// The record is durable: what is here of the copy is garbage until it is whole.
    pub(super) fn begin_copying(&mut self, env: &mut Env, id: TabletId, attempt: u64) {
        let Some(replica) = self.disk.registry.replicas.get(&id).map(|replica| replica.id) else { return };
        let Some(run) = &mut self.run else { return };
        run.building.insert(id, Building { replica, attempt, shipment: None });
        self.after(env, 1, Internal::Fetch(id, attempt));
    }

    fn building(&mut self, id: TabletId, attempt: u64) -> Option<&mut Building> {
        let building = self.run.as_mut()?.building.get_mut(&id)?;
        (building.attempt == attempt).then_some(building)
    }

    /// Asks whoever leads, or did a moment ago, again and again.
    pub(super) fn ask_for_copy(&mut self, env: &mut Env, id: TabletId, attempt: u64) {
        let (Some(run), to) = (self.server_run(), self.index) else { return };
        let Some(building) = self.building(id, attempt).filter(|building| building.shipment.is_none()) else {
            return;
        };
        let fetch = Fetch { tablet: id, replica: building.replica, attempt, to, run };
        let route = env.directory.route(id);
        let copies: Vec<usize> = route.into_iter().flat_map(|route| route.copies.values().copied()).collect();
        let any = copies.get(env.rng.index(copies.len().max(1))).copied();
        let leader = route.and_then(|route| route.leader);
        let is_stale = env.rng.chance(50);
        if let Some(from) = leader.filter(|_| !is_stale).or(any).filter(|from| *from != self.index) {
            env.send(self.address(), Address::Server(from), Message::Fetch(fetch));
        }
        self.after(env, ASK_AGAIN_US, Internal::Fetch(id, attempt));
    }

    /// Another server asks for the rows of a copy that metadata lists as one to be built.
    pub(super) fn fetched_from(&mut self, env: &mut Env, fetch: Fetch) {
        let (id, now) = (fetch.tablet, self.now(env));
        let (Some(run), Some(server)) = (&self.run, self.server_run()) else { return };
        let Some(epoch) = run.lease(now, id) else { return };
        let Some(copy) = run.copies.get(&id) else { return };
        let is_listed = env.directory.route(id).is_some_and(|route| {
            route.copies.get(&fetch.replica) == Some(&fetch.to) && !route.in_sync.contains(&fetch.replica)
        });
        // Whoever leads next must be able to bring up every in-sync copy from its log.
        let everywhere = copy.core.everywhere().map_or(Seq(0), |pos| pos.seq);
        let safe = if mutated!(BaseAboveOthers) {
            copy.core.standing()
        } else {
            copy.core.standing().min(everywhere)
        };
        let is_there = safe > Seq(0) && copy.core.applied_seq() >= safe;
        // A copy must know of every seal, and this one would begin behind it (m25).
        if !is_listed || !is_there || copy.core.sealed().is_some() {
            return;
        }
        let Some(end) = self.disk.log.tablet(id).and_then(|log| log.end_at(safe)) else { return };
        let rows = self.disk.store.snapshot(copy.core.range(), end.ts);
        let run = PeerRun { server, generation: self.generation(env) };
        let probe = PeerInput { from: copy.core.replica(), run, epoch, message: PeerMessage::Probe };
        let tokens = copy.core.tokens_upto(safe);
        let shipment = Rc::new(Shipment { fetch, end, rows, tokens, probe });
        let index = self.index;
        env.say(|| format!("server {index} sends {id} up to {} to server {}", end.pos, fetch.to));
        env.send(self.address(), Address::Server(fetch.to), Message::Shipment(shipment));
    }

    /// The rows are here: what was there goes first.
    pub(super) fn shipped(&mut self, env: &mut Env, shipment: Rc<Shipment>) {
        let (id, attempt) = (shipment.fetch.tablet, shipment.fetch.attempt);
        let own = self.server_run();
        let is_meant = |building: &&mut Building| {
            building.shipment.is_none()
                && building.replica == shipment.fetch.replica
                && own == Some(shipment.fetch.run)
        };
        let Some(building) = self.building(id, attempt).filter(is_meant) else { return };
        building.shipment = Some(shipment);
        let Some(range) = self.disk.registry.replicas.get(&id).map(|replica| replica.range.clone()) else {
            return;
        };
        if !mutated!(BootstrapWithoutClear) {
            self.disk.store.clear(&range);
        }
        self.forget_cached();
        let mark = self.disk.store.mark();
        let delay = env.rng.between(env.profile.disk.flush_us);
        self.after(env, delay, Internal::Build(id, attempt, BuildStep::Ingest(mark)));
    }

    /// The next step of a copy that is being built.
    pub(super) fn build(&mut self, env: &mut Env, id: TabletId, attempt: u64, step: BuildStep) {
        let Some(shipment) = self.building(id, attempt).and_then(|building| building.shipment.clone()) else {
            return;
        };
        match step {
            BuildStep::Ingest(mark) => {
                if !mutated!(IngestBeforeFlush) {
                    self.disk.store.flushed(mark);
                }
                self.disk.store.ingest(&shipment.rows);
                self.forget_cached();
                let delay = env.rng.between(env.profile.disk.flush_us);
                self.after(env, delay, Internal::Build(id, attempt, BuildStep::Record));
            }
            BuildStep::Record => {
                self.disk.log.begin(id, shipment.end);
                if mutated!(BuiltBeforeRecord) {
                    self.finish_early(env, id, &shipment);
                }
                let log = env.watch.oracle.everything(id, shipment.end.pos);
                let token_floor_ms = floor_above(log.into_iter());
                let (replica, end) = (shipment.fetch.replica, shipment.end);
                let built = Built { tablet: id, replica, end, token_floor_ms };
                self.write_registry(env, RegistryChange::Built(built));
            }
        }
    }

    /// With the seeded bug a copy speaks before its record says that it is whole.
    fn finish_early(&mut self, env: &mut Env, id: TabletId, shipment: &Shipment) {
        let Some(replica) = self.disk.registry.replicas.get_mut(&id) else { return };
        let before = (replica.state, replica.flushed);
        (replica.state, replica.flushed) = (CopyState::Active, shipment.end.pos.seq);
        self.built(env, id, shipment.fetch.replica);
        if let Some(replica) = self.disk.registry.replicas.get_mut(&id) {
            (replica.state, replica.flushed) = before;
        }
    }

    /// The copy is whole, and says so as if the leader had asked.
    pub(super) fn built(&mut self, env: &mut Env, id: TabletId, replica: ReplicaId) {
        let Some(run) = &mut self.run else { return };
        let Some(building) = run.building.remove(&id).filter(|building| building.replica == replica) else {
            return;
        };
        let Some(shipment) = building.shipment else { return };
        let index = self.index;
        env.say(|| format!("server {index} has built {id} up to {}", shipment.end.pos));
        self.open(env, id, Some(shipment.tokens.clone()));
        self.step(env, id, Input::Peer(shipment.probe.clone()));
    }
}
