//! The control core of the leading master: gives every tablet a leader.
//!
//! It sees what was applied and who is connected, and answers with effects. Everything that
//! it remembers can be forgotten at any time: all safety lies in the guards of [`super::apply()`]
//! and in the promises that servers store. Work is done per batch: whatever one input makes
//! necessary travels as one command and one message per server.
//!
//! It does not know how long servers have been silent: with one copy of each tablet nobody
//! but the same server can lead, so an election follows a new run of a server or an epoch that
//! its leader gave up, not silence.

use super::apply::Changes;
use super::command::{Appointment, Command};
use super::election::{Election, Fence, FenceAnswer, best, counts, quota};
use super::state::{ClusterId, State, Tablet};
use crate::hlc::Hlc;
use crate::ids::{Epoch, Incarnation, ServerId, TabletId, Tick};
use crate::limits::{ELECTION_BATCH_TABLETS_MAX, ELECTION_GRACE_MS};
use std::collections::{BTreeMap, BTreeSet};

/// What happens to the control core.
#[derive(Clone, Debug)]
pub enum Input {
    /// This master leads from now on.
    BecameLeader {
        /// The name of the cluster, should it have none: random.
        cluster_id: ClusterId,
        /// The data directories of the masters.
        masters: BTreeMap<u64, u64>,
    },
    /// This master leads no longer.
    LostLeadership,
    /// Commands were applied.
    Applied(Changes),
    /// A server is connected.
    SessionOpened {
        /// Which.
        server: ServerId,
        /// Its run.
        incarnation: Incarnation,
    },
    /// A server is connected no longer.
    SessionClosed {
        /// Which.
        server: ServerId,
    },
    /// A server answered fences.
    FenceAnswered {
        /// Which.
        server: ServerId,
        /// Its answers.
        answers: Vec<FenceAnswer>,
    },
    /// A server gave epochs up for good: an append of theirs failed.
    GaveUp {
        /// Which.
        server: ServerId,
        /// What it led.
        epochs: Vec<(TabletId, Epoch)>,
    },
    /// Time has passed.
    Tick {
        /// Wall time as a timestamp: a floor for the clocks of leaders that are appointed.
        wall: Hlc,
    },
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Put a command into the log; it may be lost.
    Propose(Command),
    /// Send fences to a connected server.
    SendFences {
        /// Whom.
        server: ServerId,
        /// What.
        fences: Vec<Fence>,
    },
    /// Tell a connected server which copies it holds and leads.
    SendAssignments {
        /// Whom.
        server: ServerId,
        /// Whether these are all.
        full: bool,
        /// Tablets of which it holds a copy.
        tablets: Vec<TabletId>,
        /// Tablets that are gone.
        removed: Vec<TabletId>,
    },
    /// End the session of a run that is over.
    EndSession {
        /// Whose.
        server: ServerId,
    },
}

/// The control core.
#[derive(Debug, Default)]
pub struct Control {
    leading: bool,
    wall: Hlc,
    sessions: BTreeMap<ServerId, Incarnation>,
    elections: BTreeMap<TabletId, Election>,
    /// Epochs that their leaders gave up though their process lives.
    gave_up: BTreeMap<TabletId, Epoch>,
    /// Tablets to look at before this step ends.
    dirty: BTreeSet<TabletId>,
    deadlines: BTreeSet<(Tick, TabletId)>,
}

/// Commands and fences that one step collects.
#[derive(Default)]
struct Batch {
    recover: Vec<(TabletId, Epoch)>,
    appoint: Vec<Appointment>,
    fences: BTreeMap<ServerId, Vec<Fence>>,
}

impl Control {
    /// Takes one input; `state` is the applied state, never older than what inputs said of it.
    pub fn step(&mut self, now: Tick, state: &State, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::BecameLeader { cluster_id, masters } => self.lead(state, cluster_id, masters, effects),
            Input::LostLeadership => *self = Self::default(),
            Input::Applied(changes) => self.on_applied(state, &changes, effects),
            Input::SessionOpened { server, incarnation } => {
                self.on_opened(state, server, incarnation, effects);
            }
            Input::SessionClosed { server } => self.on_closed(state, server),
            Input::FenceAnswered { server, answers } => self.on_answers(state, server, answers),
            Input::GaveUp { server, epochs } => self.on_gave_up(state, server, epochs),
            Input::Tick { wall } => self.on_tick(now, wall),
        }
        if self.leading {
            self.advance(now, state, effects);
        }
    }

    /// When the next `Tick` is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Number of elections under way.
    #[must_use]
    pub fn elections(&self) -> usize {
        self.elections.len()
    }

    fn lead(
        &mut self,
        state: &State,
        cluster_id: ClusterId,
        masters: BTreeMap<u64, u64>,
        effects: &mut Vec<Effect>,
    ) {
        *self = Self { leading: true, ..Self::default() };
        if state.cluster_id().is_none() {
            effects.push(Effect::Propose(Command::InitCluster { cluster_id, masters }));
        }
        self.dirty.extend(state.tablets().map(|tablet| tablet.id));
    }

    fn on_applied(&mut self, state: &State, changes: &Changes, effects: &mut Vec<Effect>) {
        if !self.leading {
            return;
        }
        if changes.all {
            self.resync(state, effects);
            return;
        }
        for server in &changes.servers {
            self.end_if_over(state, *server, effects);
            self.dirty.extend(state.tablets_on(*server).map(|tablet| tablet.id));
        }
        for id in changes.tablets.iter().chain(changes.removed_tablets.keys()) {
            if let Some(election) = self.elections.get_mut(id) {
                election.proposed = false;
            }
            self.dirty.insert(*id);
        }
        self.assign_changes(state, changes, effects);
    }

    /// Changes were missed: look at everything and tell every server everything.
    fn resync(&mut self, state: &State, effects: &mut Vec<Effect>) {
        let known: Vec<ServerId> = self.sessions.keys().copied().collect();
        for server in known {
            self.end_if_over(state, server, effects);
        }
        for server in self.sessions.keys() {
            effects.push(full_assignments(state, *server));
        }
        for election in self.elections.values_mut() {
            election.proposed = false;
        }
        let lost: Vec<TabletId> = self.elections.keys().copied().collect();
        self.dirty.extend(lost);
        self.dirty.extend(state.tablets().map(|tablet| tablet.id));
    }

    /// A session of a former run of its server ends; what the run said no longer counts.
    fn end_if_over(&mut self, state: &State, server: ServerId, effects: &mut Vec<Effect>) {
        let current = state.server(server).map(|server| server.incarnation);
        if self.sessions.get(&server).is_some_and(|held| Some(*held) != current) {
            self.on_closed(state, server);
            effects.push(Effect::EndSession { server });
        }
    }

    /// Tells connected servers about changes of their copies. A tablet that waits for its
    /// leader is no news: its copies are told by the fence.
    fn assign_changes(&mut self, state: &State, changes: &Changes, effects: &mut Vec<Effect>) {
        let mut news: BTreeMap<ServerId, (Vec<TabletId>, Vec<TabletId>)> = BTreeMap::new();
        let told = changes.tablets.iter().filter_map(|id| state.tablet(*id));
        for tablet in told.filter(|tablet| !tablet.recovering) {
            for replica in &tablet.replicas {
                news.entry(replica.server).or_default().0.push(tablet.id);
            }
        }
        for (id, (_, servers)) in &changes.removed_tablets {
            for server in servers {
                news.entry(*server).or_default().1.push(*id);
            }
        }
        for (server, (tablets, removed)) in news {
            if self.sessions.contains_key(&server) {
                effects.push(Effect::SendAssignments { server, full: false, tablets, removed });
            }
        }
    }

    fn on_opened(
        &mut self,
        state: &State,
        server: ServerId,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        if !self.leading {
            return;
        }
        self.on_closed(state, server);
        self.sessions.insert(server, incarnation);
        self.end_if_over(state, server, effects);
        if self.sessions.contains_key(&server) {
            effects.push(full_assignments(state, server));
        }
    }

    fn on_closed(&mut self, state: &State, server: ServerId) {
        self.sessions.remove(&server);
        for tablet in state.tablets_on(server) {
            if let (Some(election), Some(replica)) =
                (self.elections.get_mut(&tablet.id), tablet.replica_on(server))
            {
                election.forget(replica.id);
            }
            self.dirty.insert(tablet.id);
        }
    }

    fn on_answers(&mut self, state: &State, server: ServerId, answers: Vec<FenceAnswer>) {
        if !self.sessions.contains_key(&server) {
            return;
        }
        for answer in answers {
            let tablet = state.tablet(answer.tablet).filter(|tablet| tablet.recovering);
            let Some(tablet) = tablet else { continue };
            let Some(election) = self.elections.get_mut(&answer.tablet) else { continue };
            if counts(state, tablet, server, &answer) && election.epoch == answer.epoch {
                election.asked.remove(&answer.replica);
                election.answers.insert(answer.replica, answer);
                self.dirty.insert(answer.tablet);
            }
        }
    }

    /// A release is definite: nobody needs to be asked whether the leader is gone.
    fn on_gave_up(&mut self, state: &State, server: ServerId, epochs: Vec<(TabletId, Epoch)>) {
        for (id, epoch) in epochs {
            let led =
                state.tablet(id).filter(|tablet| tablet.epoch == epoch).and_then(|tablet| tablet.leader);
            if led.is_some_and(|leader| leader.server == server) {
                self.gave_up.insert(id, epoch);
                self.dirty.insert(id);
            }
        }
    }

    fn on_tick(&mut self, now: Tick, wall: Hlc) {
        self.wall = self.wall.max(wall);
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, id));
            self.dirty.insert(id);
            if let Some(election) = self.elections.get_mut(&id)
                && election.retry_at == Some(at)
            {
                election.retry_at = None;
                election.proposed = false;
                election.asked.clear();
            }
        }
    }

    /// Takes every tablet that something happened to one step further.
    fn advance(&mut self, now: Tick, state: &State, effects: &mut Vec<Effect>) {
        let mut batch = Batch::default();
        for id in std::mem::take(&mut self.dirty) {
            let epoch = state.tablet(id).map(|tablet| tablet.epoch);
            if self.gave_up.get(&id).is_some_and(|gave_up| Some(*gave_up) != epoch) {
                self.gave_up.remove(&id);
            }
            match state.tablet(id) {
                Some(tablet) if needs_leader(state, tablet) || self.gave_up.contains_key(&id) => {
                    self.elect(now, state, tablet, &mut batch);
                }
                Some(_) | None => self.finish(id),
            }
        }
        for (server, fences) in batch.fences {
            effects.push(Effect::SendFences { server, fences });
        }
        for tablets in batch.recover.chunks(ELECTION_BATCH_TABLETS_MAX) {
            effects.push(Effect::Propose(Command::Recover { tablets: tablets.to_vec() }));
        }
        for appointments in batch.appoint.chunks(ELECTION_BATCH_TABLETS_MAX) {
            let appointments = appointments.to_vec();
            effects.push(Effect::Propose(Command::Appoint { appointments }));
        }
    }

    fn finish(&mut self, id: TabletId) {
        if let Some(election) = self.elections.remove(&id)
            && let Some(at) = election.retry_at
        {
            self.deadlines.remove(&(at, id));
        }
    }

    fn elect(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        let election = self.elections.entry(tablet.id).or_default();
        if election.epoch != tablet.epoch
            && let Some(at) = election.retry_at
        {
            self.deadlines.remove(&(at, tablet.id));
        }
        election.enter(tablet.epoch);
        if election.proposed {
            return;
        }
        if !tablet.recovering {
            batch.recover.push((tablet.id, tablet.epoch));
            election.proposed = true;
            self.set_retry(now, tablet.id);
            return;
        }
        if !self.poll(state, tablet, batch) {
            return;
        }
        self.try_appoint(now, state, tablet, batch);
        self.set_retry(now, tablet.id);
    }

    /// Fences every copy that can answer and was not asked. False when there is none at all:
    /// then the election sleeps until a server connects.
    fn poll(&mut self, state: &State, tablet: &Tablet, batch: &mut Batch) -> bool {
        let Some(election) = self.elections.get_mut(&tablet.id) else { return false };
        let mut reachable = false;
        for replica in tablet.in_sync_replicas() {
            if !self.sessions.contains_key(&replica.server) || !state.holds_data(replica) {
                continue;
            }
            reachable = true;
            if !election.answers.contains_key(&replica.id) && election.asked.insert(replica.id) {
                let fence = Fence { tablet: tablet.id, replica: replica.id, epoch: tablet.epoch };
                batch.fences.entry(replica.server).or_default().push(fence);
            }
        }
        reachable
    }

    fn try_appoint(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        let Some(election) = self.elections.get_mut(&tablet.id) else { return };
        let min_in_sync = state.table(tablet.table).map_or(1, |table| usize::from(table.spec.min_in_sync));
        if election.answers.len() < quota(tablet.in_sync.len(), min_in_sync) {
            return;
        }
        if !election.asked.is_empty() {
            // Others may answer with a longer log: give them a moment.
            let until = election.enough_since.get_or_insert(now).plus_ms(ELECTION_GRACE_MS);
            if now < until {
                self.deadlines.insert((until, tablet.id));
                return;
            }
        }
        let Some((replica, answer)) = best(tablet, &election.answers) else { return };
        let Some(incarnation) = self.sessions.get(&replica.server).copied() else { return };
        election.proposed = true;
        batch.appoint.push(Appointment {
            tablet: tablet.id,
            epoch: tablet.epoch,
            replica: replica.id,
            incarnation,
            ts: answer.ts_max.max(self.wall),
        });
    }

    fn set_retry(&mut self, now: Tick, id: TabletId) {
        if let Some(election) = self.elections.get_mut(&id)
            && election.retry_at.is_none()
        {
            let at = election.back_off(now);
            self.deadlines.insert((at, id));
        }
    }
}

/// Whether nobody leads, or a run that is over.
fn needs_leader(state: &State, tablet: &Tablet) -> bool {
    tablet.leader.is_none_or(|leader| !state.is_current(&leader))
}

fn full_assignments(state: &State, server: ServerId) -> Effect {
    let tablets = state.tablets_on(server).map(|tablet| tablet.id).collect();
    Effect::SendAssignments { server, full: true, tablets, removed: Vec::new() }
}
