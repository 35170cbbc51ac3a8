//! How the control core drives splits: it orders the leader to seal, and gives up what takes
//! too long.
//!
//! Nothing here is remembered for safety. A master that begins to lead finds the jobs in the
//! state and orders again; a leader that is sealed already ignores that. The commit is
//! proposed by the leader itself: it alone knows which copies are ready.

use super::command::Command;
use super::control::{Control, Effect};
use super::job::{JobEnd, JobKind, SplitJob};
use super::state::{Leader, State, Tablet};
use crate::ids::{Attempt, Epoch, JobId, ServerId, TabletId, Tick};
use crate::limits::{SPLIT_ORDER_RETRY_MS, SPLIT_PATIENCE_MS, SPLITS_PER_SERVER_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// The order to seal a tablet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealOrder {
    /// Which.
    pub tablet: TabletId,
    /// The epoch of its leader.
    pub epoch: Epoch,
    /// The attempt that it is sealed for.
    pub attempt: Attempt,
    /// What is to take its place.
    pub split: SplitJob,
}

/// A split as the control core remembers it.
#[derive(Debug)]
pub(super) struct Driven {
    /// When its first order went out.
    since: Tick,
    /// To whom the last order went, and when the next is due.
    ordered: Option<(ServerId, Epoch, Tick)>,
    /// Its end was proposed, and is proposed again then.
    given_up: Option<Tick>,
}

/// Splits that were ordered.
#[derive(Debug, Default)]
pub(super) struct Splits {
    driven: BTreeMap<JobId, Driven>,
    /// Jobs that wait for others on the same server.
    waiting: BTreeSet<TabletId>,
}

impl Control {
    /// Takes the split of `tablet`, if there is one, a step further.
    pub(super) fn drive_split(
        &mut self,
        now: Tick,
        state: &State,
        tablet: &Tablet,
        effects: &mut Vec<Effect>,
    ) {
        let Some((job, split)) = state.split_of(tablet.id) else { return };
        let driven = self.splits.driven.get(&job.id);
        if driven.is_some_and(|driven| now.ms_since(driven.since) >= SPLIT_PATIENCE_MS) {
            self.give_up(now, job.id, job.attempt, tablet, effects);
            return;
        }
        let leads = |leader: &Leader| {
            state.is_current(leader) && self.sessions.get(&leader.server) == Some(&leader.incarnation)
        };
        let leader = tablet.leader.filter(|leader| !tablet.recovering && leads(leader));
        let since = driven.map_or(now, |driven| driven.since);
        let Some(leader) = leader else {
            // Whoever leads next is ordered; whoever waits is given up in time.
            self.remember_split(now, job.id, tablet.id, Driven { since, ordered: None, given_up: None });
            return;
        };
        let is_ordered = driven.and_then(|driven| driven.ordered).is_some_and(|(server, epoch, again)| {
            (server, epoch) == (leader.server, tablet.epoch) && now < again
        });
        if is_ordered {
            return;
        }
        if driven.is_none_or(|driven| driven.ordered.is_none()) && self.is_full(state, leader.server) {
            self.splits.waiting.insert(tablet.id);
            return;
        }
        let again = now.plus_ms(SPLIT_ORDER_RETRY_MS);
        let ordered = Some((leader.server, tablet.epoch, again));
        self.deadlines.insert((again, tablet.id));
        self.remember_split(now, job.id, tablet.id, Driven { since, ordered, given_up: None });
        let order =
            SealOrder { tablet: tablet.id, epoch: tablet.epoch, attempt: job.attempt, split: split.clone() };
        effects.push(Effect::SendSeal { server: leader.server, order });
    }

    fn remember_split(&mut self, now: Tick, job: JobId, tablet: TabletId, driven: Driven) {
        let until = driven.since.plus_ms(SPLIT_PATIENCE_MS);
        if until > now {
            self.deadlines.insert((until, tablet));
        }
        self.splits.waiting.remove(&tablet);
        self.splits.driven.insert(job, driven);
    }

    /// Whether so many tablets that `server` leads are being sealed that others wait.
    fn is_full(&self, state: &State, server: ServerId) -> bool {
        let runs = |id: &JobId| state.job(*id).is_some_and(super::job::Job::is_running);
        let ordered = |driven: &Driven| driven.ordered.is_some_and(|(to, _, _)| to == server);
        let open = self.splits.driven.iter().filter(|(id, driven)| runs(id) && ordered(driven));
        open.count() >= SPLITS_PER_SERVER_MAX
    }

    fn give_up(
        &mut self,
        now: Tick,
        job: JobId,
        attempt: Attempt,
        tablet: &Tablet,
        effects: &mut Vec<Effect>,
    ) {
        // A proposal may be lost: then it is made again.
        let again = now.plus_ms(SPLIT_ORDER_RETRY_MS);
        let Some(driven) = self.splits.driven.get_mut(&job) else { return };
        if driven.given_up.is_some_and(|again| now < again) {
            return;
        }
        driven.given_up = Some(again);
        self.deadlines.insert((again, tablet.id));
        let error = format!(
            "tablet {} could not be sealed and its copies be ready within {SPLIT_PATIENCE_MS} ms: see `ebla tablet describe {}` and try again",
            tablet.id.0, tablet.id.0
        );
        let (end, time_ms) = (JobEnd::Failed { error }, self.wall.ms());
        effects.push(Effect::Propose(Command::EndJob { job, attempt: Some(attempt), end, time_ms }));
    }

    /// Jobs that changed: those that ended make room for others.
    pub(super) fn on_jobs(&mut self, state: &State, jobs: &BTreeSet<JobId>) {
        for job in jobs.iter().filter_map(|id| state.job(*id)) {
            if !job.is_running() {
                self.splits.driven.remove(&job.id);
            }
            match &job.kind {
                JobKind::Split(split) => self.dirty.insert(split.tablet),
                JobKind::Move(copy) => self.dirty.insert(copy.tablet),
            };
        }
        self.dirty.append(&mut self.splits.waiting);
    }
}
