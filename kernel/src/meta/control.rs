//! The control core of the leading master: gives every tablet a leader.
//!
//! It sees what was applied and who is connected, and answers with effects. Everything that
//! it remembers can be forgotten at any time: all safety lies in the guards of [`super::apply()`]
//! and in the promises that servers store. Work is done per batch: whatever one input makes
//! necessary travels as one command and one message per server.
//!
//! An election follows a new run of the leader's server, an epoch that its leader gave up, or
//! the word of so many in-sync copies that an election would succeed ([`super::suspicion`]).
//! A lost session to the leader changes nothing: it may serve for as long as copies promise.

use super::apply::Changes;
use super::command::Command;
use super::election::{Election, Fence, FenceAnswer, GaveUp, counts, may_answer};
use super::merge_control::Merges;
use super::repair::Repairs;
use super::seal_control::{SealOrder, Seals};
use super::state::{ClusterId, Leader, State, Tablet};
use super::suspicion::Suspicions;
use crate::hlc::Hlc;
use crate::ids::{Epoch, Incarnation, ReplicaId, ServerId, TabletId, Tick};
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
    /// A server gave epochs up for good: an append of theirs failed, it stops, or it hands
    /// leadership over.
    GaveUp {
        /// Which.
        server: ServerId,
        /// What it led.
        epochs: Vec<GaveUp>,
    },
    /// A server says whom it has not heard of for the limit of silence.
    Silent {
        /// Which.
        server: ServerId,
        /// All the runs of servers that lead tablets of which it has copies, and are silent.
        leaders: BTreeSet<(ServerId, Incarnation)>,
    },
    /// A server says which copies of tablets that it leads are too far behind: their next
    /// entries are no longer in its log.
    Behind {
        /// Which server.
        server: ServerId,
        /// Copies, and the epoch in which they were found behind.
        copies: Vec<(TabletId, Epoch, ReplicaId)>,
    },
    /// A server says which of its own copies have diverged from their leaders.
    Diverged {
        /// Which server.
        server: ServerId,
        /// Copies.
        copies: Vec<(TabletId, ReplicaId)>,
    },
    /// An operator wants another copy to lead; see [`Control::transfer_target`].
    Transfer {
        /// What.
        tablet: TabletId,
        /// Who.
        replica: ReplicaId,
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
    /// Tell a leader to hand its leadership over.
    SendTransfer {
        /// Whom.
        server: ServerId,
        /// Of what.
        tablet: TabletId,
        /// The epoch that it leads.
        epoch: Epoch,
        /// The copy that is to lead next.
        replica: ReplicaId,
    },
    /// Tell a leader to seal a tablet.
    SendSeal {
        /// Whom.
        server: ServerId,
        /// What.
        order: SealOrder,
    },
    /// End the session of a run that is over.
    EndSession {
        /// Whose.
        server: ServerId,
    },
}

/// What may be set of the control core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Whether copies that are lost, or gone for too long, are replaced.
    pub replaces_copies: bool,
    /// How long a server may be away before its copies are replaced on others, in
    /// milliseconds; none: for ever.
    pub replace_after_ms: Option<u64>,
}

/// The control core.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) settings: Settings,
    leading: bool,
    pub(super) repairs: Repairs,
    pub(super) wall: Hlc,
    pub(super) sessions: BTreeMap<ServerId, Incarnation>,
    pub(super) elections: BTreeMap<TabletId, Election>,
    /// Epochs that their leaders gave up though their process lives.
    pub(super) gave_up: BTreeMap<TabletId, GaveUp>,
    pub(super) suspicions: Suspicions,
    pub(super) seals: Seals,
    pub(super) merges: Merges,
    /// Tablets to look at before this step ends.
    pub(super) dirty: BTreeSet<TabletId>,
    pub(super) deadlines: BTreeSet<(Tick, TabletId)>,
}

impl Control {
    /// A core that does not lead.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes one input; `state` is the applied state, never older than what inputs said of it.
    pub fn step(&mut self, now: Tick, state: &State, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::BecameLeader { cluster_id, masters } => {
                self.lead(now, state, cluster_id, masters, effects);
            }
            Input::LostLeadership => *self = Self::new(self.settings),
            Input::Applied(changes) => {
                self.on_applied(state, &changes, effects);
                if changes.all || !changes.servers.is_empty() {
                    self.note_away(now, state);
                }
            }
            Input::SessionOpened { server, incarnation } => {
                self.on_opened(state, server, incarnation, effects);
            }
            Input::SessionClosed { server } => {
                self.on_closed(state, server);
                self.note_away(now, state);
            }
            Input::FenceAnswered { server, answers } => self.on_answers(now, state, server, answers),
            Input::GaveUp { server, epochs } => self.on_gave_up(state, server, epochs),
            Input::Silent { server, leaders } => self.on_silent(state, server, leaders),
            Input::Behind { server, copies } => self.on_behind(state, server, copies),
            Input::Diverged { server, copies } => self.on_diverged(state, server, copies),
            Input::Transfer { tablet, replica } => self.on_transfer(state, tablet, replica, effects),
            Input::Tick { wall } => {
                self.on_tick(now, wall);
                self.look_at_away(now, state);
            }
        }
        if self.leading {
            self.advance(now, state, effects);
        }
    }

    /// When the next `Tick` is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let dated = self.deadlines.first().map(|(at, _)| *at);
        dated.into_iter().chain(self.next_overdue()).min()
    }

    /// Number of elections under way.
    #[must_use]
    pub fn elections(&self) -> usize {
        self.elections.len()
    }

    fn lead(
        &mut self,
        now: Tick,
        state: &State,
        cluster_id: ClusterId,
        masters: BTreeMap<u64, u64>,
        effects: &mut Vec<Effect>,
    ) {
        // What is decided before the next tick is dated, too.
        *self = Self { leading: true, wall: self.wall, ..Self::new(self.settings) };
        if state.cluster_id().is_none() {
            effects.push(Effect::Propose(Command::InitCluster { cluster_id, masters }));
        }
        self.dirty.extend(state.tablets().map(|tablet| tablet.id));
        self.note_away(now, state);
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
            self.repairs.decided(*id);
            if let Some(job) = state.job_of(*id) {
                self.merges.decided(job.id);
            }
            self.dirty.insert(*id);
        }
        // More copies may be wanted.
        let changed = changes.tables.iter().flat_map(|table| state.tablets_of(*table));
        self.dirty.extend(changed.map(|tablet| tablet.id));
        self.on_jobs(state, &changes.jobs);
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
        let jobs = state.jobs().map(|job| job.id).collect();
        self.on_jobs(state, &jobs);
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
            for replica in tablet.replicas.iter().filter(|replica| may_answer(state, replica)) {
                news.entry(replica.server).or_default().0.push(tablet.id);
            }
        }
        for (id, (_, servers)) in &changes.removed_tablets {
            for server in servers {
                news.entry(*server).or_default().1.push(*id);
            }
        }
        for (id, server) in &changes.removed_copies {
            news.entry(*server).or_default().1.push(*id);
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
        match self.sessions.get(&server) == Some(&incarnation) {
            true => self.on_renewed(state, server),
            false => self.on_closed(state, server),
        }
        self.sessions.insert(server, incarnation);
        self.end_if_over(state, server, effects);
        self.came_back(state, server);
        if self.sessions.contains_key(&server) {
            effects.push(full_assignments(state, server));
        }
    }

    fn on_closed(&mut self, state: &State, server: ServerId) {
        self.sessions.remove(&server);
        self.forget_said(state, server, Election::forget);
    }

    /// The same process is there with a session of its own before the last one has ended: what it
    /// answered stands, what it was asked may be lost.
    fn on_renewed(&mut self, state: &State, server: ServerId) {
        self.forget_said(state, server, |election, replica| {
            election.asked.remove(&replica);
        });
    }

    /// Forgets what `server` said of others, and of its own copies what `forget` does.
    fn forget_said(&mut self, state: &State, server: ServerId, forget: fn(&mut Election, ReplicaId)) {
        self.suspicions.forget(server);
        for tablet in state.tablets_on(server) {
            if let (Some(election), Some(replica)) =
                (self.elections.get_mut(&tablet.id), tablet.replica_on(server))
            {
                forget(election, replica.id);
            }
            self.dirty.insert(tablet.id);
        }
    }

    fn on_answers(&mut self, now: Tick, state: &State, server: ServerId, answers: Vec<FenceAnswer>) {
        if !self.sessions.contains_key(&server) {
            return;
        }
        for answer in answers {
            let tablet = state.tablet(answer.tablet).filter(|tablet| tablet.recovering);
            let Some(tablet) = tablet else { continue };
            let Some(election) = self.elections.get_mut(&answer.tablet) else { continue };
            if counts(state, tablet, server, &answer) && election.epoch == answer.epoch {
                election.take(now, answer);
                self.dirty.insert(answer.tablet);
                self.stepped_down(state, tablet, answer.replica);
            }
        }
    }

    /// A leader that was polled has first stepped down for good.
    fn stepped_down(&mut self, state: &State, tablet: &Tablet, replica: ReplicaId) {
        let former = tablet.former.filter(|former| former.leader.replica == replica);
        if let Some(former) = former
            && self.gone(state, tablet) < former.epoch
        {
            self.note_gone(GaveUp { tablet: tablet.id, epoch: former.epoch, successor: None });
        }
    }

    /// A release is definite: nobody needs to be asked whether the leader is gone.
    fn on_gave_up(&mut self, state: &State, server: ServerId, epochs: Vec<GaveUp>) {
        for gave_up in epochs {
            let led = state.tablet(gave_up.tablet).and_then(|tablet| leader_of(tablet, gave_up.epoch));
            let is_known = self.gave_up.get(&gave_up.tablet) == Some(&gave_up);
            let is_its = led.is_some_and(|leader| {
                leader.server == server && self.sessions.get(&server) == Some(&leader.incarnation)
            });
            if is_its && !is_known {
                self.note_gone(gave_up);
            }
        }
    }

    fn note_gone(&mut self, gave_up: GaveUp) {
        self.gave_up.insert(gave_up.tablet, gave_up);
        self.dirty.insert(gave_up.tablet);
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
}

/// Everything about a server's copies; those whose data is lost are no longer its own (m16).
fn full_assignments(state: &State, server: ServerId) -> Effect {
    let holds = |tablet: &&Tablet| tablet.replica_on(server).is_some_and(|copy| may_answer(state, copy));
    let tablets = state.tablets_on(server).filter(holds).map(|tablet| tablet.id).collect();
    Effect::SendAssignments { server, full: true, tablets, removed: Vec::new() }
}

/// Who was appointed for `epoch`, when that is the present one or the last that had a leader.
fn leader_of(tablet: &Tablet, epoch: Epoch) -> Option<Leader> {
    let former = tablet.former.filter(|former| tablet.recovering && former.epoch == epoch);
    let present = tablet.leader.filter(|_| tablet.epoch == epoch);
    present.or(former.map(|former| former.leader))
}
