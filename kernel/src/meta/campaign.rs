//! How the control core brings a tablet to its next leader: raise the epoch, fence the copies,
//! appoint the best. Work is collected over all tablets of a step and leaves as one command.

use super::command::{Appointment, Command, InSyncChange, NewBeginning, ReplicaChange};
use super::control::{Control, Effect};
use super::election::{Fence, FenceAnswer, Preference, best, may_answer, tablet_quota};
use super::job::{Job, JobKind};
use super::spec::{Policy, TableKind};
use super::state::{Replica, State, Tablet};
use crate::ids::{Epoch, Generation, Incarnation, ReplicaId, ServerId, TabletId, Tick};
use crate::limits::{
    DEGRADED_ELECTION_MS, DEGRADED_MEMORY_ELECTION_MS, ELECTION_BATCH_TABLETS_MAX, ELECTION_GRACE_MS,
    NEW_BEGINNING_WAIT_MS,
};
use crate::mutated;
use std::collections::{BTreeMap, BTreeSet};

/// Commands and orders that one step collects.
#[derive(Default)]
pub(super) struct Batch {
    /// Copies that are to come and go.
    pub replicas: Vec<ReplicaChange>,
    /// How many of them go to each server.
    pub coming: BTreeMap<ServerId, usize>,
    /// How many leaderships go to each server.
    pub heirs: BTreeMap<ServerId, usize>,
    /// Copies that are to lead: at whose word, of what, in which epoch, which.
    pub transfers: Vec<(ServerId, TabletId, Epoch, ReplicaId)>,
    /// Tablets that lost every copy and begin anew.
    pub empty: Vec<NewBeginning>,
    recover: Vec<(TabletId, Epoch)>,
    appoint: Vec<Appointment>,
    fences: BTreeMap<ServerId, Vec<Fence>>,
    /// Only of a seeded bug.
    alter: Vec<Command>,
}

/// How many answers there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    TooFew,
    /// As many as a strict election needs.
    Enough,
    /// Fewer, and the table's policy lets that do.
    EnoughDegraded,
}

impl Control {
    /// Takes every tablet that something happened to one step further.
    pub(super) fn advance(&mut self, now: Tick, state: &State, effects: &mut Vec<Effect>) {
        let mut batch = Batch::default();
        let mut jobs = BTreeSet::new();
        // What has happened to one tablet may let another go on.
        while let Some(id) = self.dirty.pop_first() {
            match state.tablet(id) {
                Some(tablet) => {
                    self.forget_gave_up(tablet);
                    if self.wants_election(state, tablet) {
                        self.elect(now, state, tablet, &mut batch);
                    } else {
                        self.finish(id);
                        self.repair(now, state, tablet, &mut batch);
                    }
                    jobs.extend(state.job_of(id).map(|job| job.id));
                }
                None => {
                    self.gave_up.remove(&id);
                    self.repairs.forget(id);
                    self.finish(id);
                }
            }
        }
        for job in jobs.into_iter().filter_map(|id| state.job(id)) {
            self.drive(now, state, job, &mut batch, effects);
        }
        batch.emit(self.wall.ms(), effects);
    }

    /// Takes a job a step further.
    fn drive(&mut self, now: Tick, state: &State, job: &Job, batch: &mut Batch, effects: &mut Vec<Effect>) {
        match (&job.kind, job.kind.succession()) {
            (_, Some(succession)) => self.drive_seals(now, state, job, succession, effects),
            (JobKind::Merge(merge), None) => self.gather(now, state, job, merge, batch, effects),
            // A copy on its way is in the record of its tablet.
            (
                JobKind::Move(_)
                | JobKind::Split(_)
                | JobKind::Backup(_)
                | JobKind::Restore(_)
                | JobKind::Transfer(_),
                None,
            ) => {}
        }
    }

    /// Whether nobody leads, a run that is over, one that gave up, or one that so many copies
    /// have not heard of that an election would succeed.
    fn wants_election(&self, state: &State, tablet: &Tablet) -> bool {
        let Some(leader) = tablet.leader else { return true };
        !state.is_current(&leader)
            || self.gave_up.get(&tablet.id).is_some_and(|gave_up| gave_up.epoch == tablet.epoch)
            || self.is_suspected(state, tablet, (leader.server, leader.incarnation))
    }

    /// What a leader gave up is of interest until the next one is appointed.
    fn forget_gave_up(&mut self, tablet: &Tablet) {
        let Some(gave_up) = self.gave_up.get(&tablet.id) else { return };
        let former = tablet.former.filter(|_| tablet.recovering);
        if gave_up.epoch != tablet.epoch && former.is_none_or(|former| former.epoch != gave_up.epoch) {
            self.gave_up.remove(&tablet.id);
        }
    }

    /// The epoch up to which no leader is left to whom a promise could bind: the last one that
    /// was appointed gave up, or its process is over (m18). Those before it lost their lease
    /// when it was appointed.
    pub(super) fn gone(&self, state: &State, tablet: &Tablet) -> Epoch {
        let Some(former) = tablet.former.filter(|_| tablet.recovering) else { return Epoch(0) };
        let gave_up = self.gave_up.get(&tablet.id).is_some_and(|gave_up| gave_up.epoch == former.epoch);
        let is_guessed = mutated!(GoneIsGuessed) && !self.sessions.contains_key(&former.leader.server);
        if gave_up || !state.is_current(&former.leader) || is_guessed { former.epoch } else { Epoch(0) }
    }

    /// A deadline of the election stays: at the same moment something else may be due for the tablet.
    fn finish(&mut self, id: TabletId) {
        self.elections.remove(&id);
    }

    fn elect(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        let election = self.elections.entry(tablet.id).or_default();
        election.enter(tablet.epoch);
        if election.proposed {
            return;
        }
        if state.is_bereft(tablet) {
            let until = election.bereft_since.get_or_insert(now).plus_ms(NEW_BEGINNING_WAIT_MS);
            match self.begin_anew(state, tablet, now >= until) {
                Some(anew) => {
                    batch.empty.push(anew);
                    self.note_proposed(now, tablet.id);
                }
                None => {
                    self.deadlines.insert((until, tablet.id));
                    self.set_retry(now, tablet.id);
                }
            }
            return;
        }
        if !tablet.recovering {
            batch.recover.push((tablet.id, tablet.epoch));
            self.note_proposed(now, tablet.id);
            return;
        }
        if !self.poll(state, tablet, batch) {
            return;
        }
        self.try_appoint(now, state, tablet, batch);
        self.set_retry(now, tablet.id);
    }

    fn note_proposed(&mut self, now: Tick, id: TabletId) {
        if let Some(election) = self.elections.get_mut(&id) {
            election.proposed = true;
        }
        self.set_retry(now, id);
    }

    /// Fences every copy that can answer and was not asked. False when there is none at all:
    /// then the election sleeps until a server connects.
    fn poll(&mut self, state: &State, tablet: &Tablet, batch: &mut Batch) -> bool {
        let gone = self.gone(state, tablet);
        let Some(election) = self.elections.get_mut(&tablet.id) else { return false };
        if gone > election.gone {
            // Copies that hold a fence back for the sake of that leader are asked again.
            election.gone = gone;
            election.asked.clear();
        }
        let mut reachable = false;
        for replica in tablet.in_sync_replicas() {
            if !self.sessions.contains_key(&replica.server) || !may_answer(state, replica) {
                continue;
            }
            reachable = true;
            if !election.answers.contains_key(&replica.id) && election.asked.insert(replica.id) {
                let fence = Fence { tablet: tablet.id, replica: replica.id, epoch: tablet.epoch, gone };
                batch.fences.entry(replica.server).or_default().push(fence);
            }
        }
        reachable
    }

    fn try_appoint(&mut self, now: Tick, state: &State, tablet: &Tablet, batch: &mut Batch) {
        let answers = self.count_answers(now, state, tablet);
        match answers {
            Answers::TooFew => return,
            Answers::Enough if self.waits_for_better(now, tablet) => return,
            Answers::Enough | Answers::EnoughDegraded => {}
        }
        let Some(answer) = self.candidate(state, tablet) else { return };
        let Some(replica) = tablet.replica(answer.replica) else { return };
        let Some(incarnation) = self.sessions.get(&replica.server).copied() else { return };
        if let Some(election) = self.elections.get_mut(&tablet.id) {
            election.proposed = true;
        }
        if mutated!(ElectionEditsInSync) {
            batch.alter.push(self.cut_to_answers(tablet, (replica.server, incarnation)));
        }
        batch.appoint.push(Appointment {
            tablet: tablet.id,
            epoch: tablet.epoch,
            replica: replica.id,
            incarnation,
            ts: answer.ts_max.max(self.wall),
            degraded: answers == Answers::EnoughDegraded,
        });
    }

    /// The seeded bug of m4: the in-sync set becomes those who answered.
    fn cut_to_answers(&self, tablet: &Tablet, proposer: (ServerId, Incarnation)) -> Command {
        let answered = |replica: &&Replica| {
            let election = self.elections.get(&tablet.id);
            election.is_some_and(|election| election.answers.contains_key(&replica.id))
        };
        let silent = tablet.in_sync_replicas().filter(|replica| !answered(replica));
        let change = InSyncChange {
            tablet: tablet.id,
            epoch: tablet.epoch,
            config_version: tablet.config_version.next(),
            replicas: silent.map(|replica| replica.id).collect(),
            add: false,
            incarnation: proposer.1,
            generation: Generation::Process(proposer.1),
        };
        Command::AlterInSync { proposer, changes: vec![change] }
    }

    fn count_answers(&mut self, now: Tick, state: &State, tablet: &Tablet) -> Answers {
        let Some(election) = self.elections.get(&tablet.id) else { return Answers::TooFew };
        if election.answers.len() >= tablet_quota(state, tablet) {
            return Answers::Enough;
        }
        let spec = state.table(tablet.table).map(|table| &table.spec);
        let policy = spec.map_or(Policy::Strict, |spec| spec.policy);
        let patience_ms = match spec.map_or(TableKind::Durable, |spec| spec.kind) {
            TableKind::Durable => DEGRADED_ELECTION_MS,
            TableKind::Memory => DEGRADED_MEMORY_ELECTION_MS,
        };
        match (policy, election.answered_since) {
            (Policy::Strict, _) | (Policy::Degraded, None) => Answers::TooFew,
            (Policy::Degraded, Some(since)) => {
                let until = since.plus_ms(patience_ms);
                // Of those whose data is lost nobody ever answers.
                let may_answer = |copy: &Replica| may_answer(state, copy);
                let is_heard = |copy: &Replica| election.answers.contains_key(&copy.id);
                let is_awaited = |copy: &Replica| may_answer(copy) && !is_heard(copy);
                if now >= until || !tablet.in_sync_replicas().any(is_awaited) {
                    return Answers::EnoughDegraded;
                }
                self.deadlines.insert((until, tablet.id));
                Answers::TooFew
            }
        }
    }

    /// Others may answer with a longer log: they get a moment.
    fn waits_for_better(&mut self, now: Tick, tablet: &Tablet) -> bool {
        let Some(election) = self.elections.get_mut(&tablet.id) else { return false };
        if election.asked.is_empty() {
            return false;
        }
        let until = election.enough_since.get_or_insert(now).plus_ms(ELECTION_GRACE_MS);
        if now < until {
            self.deadlines.insert((until, tablet.id));
        }
        now < until
    }

    /// The best answer. Copies that the others cannot hear are left out as long as the rest
    /// suffices: whoever leads must reach its followers.
    fn candidate(&self, state: &State, tablet: &Tablet) -> Option<FenceAnswer> {
        let election = self.elections.get(&tablet.id)?;
        let is_heard = |answer: &&FenceAnswer| {
            let server = tablet.replica(answer.replica).map(|replica| replica.server);
            let run = server.and_then(|server| Some((server, *self.sessions.get(&server)?)));
            run.is_some_and(|run| !self.is_suspected(state, tablet, run))
        };
        let gave_up = self.gave_up.get(&tablet.id);
        let preference = Preference {
            successor: gave_up.and_then(|gave_up| gave_up.successor),
            gave_up: gave_up.and(tablet.former).map(|former| former.leader.replica),
        };
        let heard: Vec<&FenceAnswer> = election.answers.values().filter(is_heard).collect();
        if heard.len() >= tablet_quota(state, tablet) {
            best(heard.into_iter(), preference)
        } else {
            best(election.answers.values(), preference)
        }
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

impl Batch {
    fn emit(self, time_ms: u64, effects: &mut Vec<Effect>) {
        for (server, fences) in self.fences {
            effects.push(Effect::SendFences { server, fences });
        }
        for tablets in self.empty.chunks(ELECTION_BATCH_TABLETS_MAX) {
            effects.push(Effect::Propose(Command::Empty { tablets: tablets.to_vec(), time_ms }));
        }
        for tablets in self.recover.chunks(ELECTION_BATCH_TABLETS_MAX) {
            effects.push(Effect::Propose(Command::Recover { tablets: tablets.to_vec() }));
        }
        for appointments in self.appoint.chunks(ELECTION_BATCH_TABLETS_MAX) {
            let appointments = appointments.to_vec();
            effects.push(Effect::Propose(Command::Appoint { appointments }));
        }
        effects.extend(self.alter.into_iter().map(Effect::Propose));
        for changes in self.replicas.chunks(ELECTION_BATCH_TABLETS_MAX) {
            let changes = changes.to_vec();
            effects.push(Effect::Propose(Command::ChangeReplicas { changes, time_ms }));
        }
        for (server, tablet, epoch, replica) in self.transfers {
            effects.push(Effect::SendTransfer { server, tablet, epoch, replica });
        }
    }
}
