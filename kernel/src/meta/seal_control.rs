//! How the control core drives splits and merges whose tablets are to be sealed: it orders the
//! leaders, brings the halves of a commit together, and gives up what takes too long.
//!
//! Nothing here is remembered for safety. A master that begins to lead finds the jobs in the
//! state and orders again; a leader that is sealed already ignores that. What a commit says
//! comes from the leaders themselves: they alone know which copies are ready.

use super::command::Command;
use super::control::{Control, Effect};
use super::job::{Job, JobEnd, JobKind};
use super::merge::MergeStep;
use super::state::{Leader, State, Tablet};
use super::succession::{SplitCommit, Succession};
use crate::entry::{SealRecord, SealedChild};
use crate::ids::{Attempt, Epoch, Incarnation, JobId, ServerId, TabletId, Tick};
use crate::limits::{
    MERGE_PATIENCE_MS, MERGE_TRIES_MAX, SPLIT_ORDER_RETRY_MS, SPLIT_PATIENCE_MS, SPLITS_PER_SERVER_MAX,
};
use crate::range::KeyRange;
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
    pub succession: Succession,
}

impl SealOrder {
    /// The seal that the order asks for: each child with the copies that come of the parent's.
    #[must_use]
    pub fn seal(&self) -> SealRecord {
        let copies = &self.succession.replicas;
        let child = |(at, (tablet, range)): (usize, &(TabletId, KeyRange))| SealedChild {
            tablet: *tablet,
            range: range.clone(),
            replicas: copies.iter().filter_map(|(parent, ids)| Some((*parent, *ids.get(at)?))).collect(),
        };
        let children = self.succession.children.iter().enumerate().map(child).collect();
        SealRecord { attempt: self.attempt, children }
    }
}

/// What the control core remembers of an attempt.
#[derive(Debug)]
struct Driven {
    attempt: Attempt,
    /// When its first order went out.
    since: Tick,
    /// To whom the last order for each parent went, and when the next is due.
    ordered: BTreeMap<TabletId, (ServerId, Epoch, Tick)>,
    /// Its end was proposed, and is proposed again then.
    given_up: Option<Tick>,
}

/// The halves of a merge's commit that have come in, and who asked for each.
type Halves = BTreeMap<TabletId, ((ServerId, Incarnation), SplitCommit)>;

/// Tablets that were ordered sealed.
#[derive(Debug, Default)]
pub(super) struct Seals {
    driven: BTreeMap<JobId, Driven>,
    /// Jobs that wait for others on the same server, by a tablet of theirs.
    waiting: BTreeSet<TabletId>,
    halves: BTreeMap<JobId, Halves>,
}

impl Control {
    /// Takes a job whose tablets are to be sealed a step further.
    pub(super) fn drive_seals(
        &mut self,
        now: Tick,
        state: &State,
        job: &Job,
        succession: &Succession,
        effects: &mut Vec<Effect>,
    ) {
        let parents: Vec<&Tablet> = succession.parents.iter().filter_map(|id| state.tablet(*id)).collect();
        let driven = self.seals.driven.get(&job.id).filter(|driven| driven.attempt == job.attempt);
        let since = driven.map_or(now, |driven| driven.since);
        if now.ms_since(since) >= patience_ms(job) || are_apart(state, &parents) {
            self.give_up(now, job, &parents, since, effects);
            return;
        }
        let ordered = driven.map(|driven| driven.ordered.clone()).unwrap_or_default();
        let leading =
            self.leading(state, &parents).filter(|_| parents.iter().all(|it| can_publish(state, it)));
        let Some(server) = leading else {
            // Whoever leads next is ordered; whoever waits is given up in time.
            self.remember(now, job, Driven::new(job.attempt, since, BTreeMap::new()));
            return;
        };
        if ordered.is_empty() && self.is_full(state, server, parents.len()) {
            self.seals.waiting.extend(parents.first().map(|tablet| tablet.id));
            return;
        }
        let again = now.plus_ms(SPLIT_ORDER_RETRY_MS);
        let mut next = ordered.clone();
        for tablet in parents {
            let known = ordered.get(&tablet.id);
            if known.is_some_and(|known| (known.0, known.1) == (server, tablet.epoch) && now < known.2) {
                continue;
            }
            next.insert(tablet.id, (server, tablet.epoch, again));
            self.deadlines.insert((again, tablet.id));
            let (epoch, attempt, succession) = (tablet.epoch, job.attempt, succession.clone());
            let order = SealOrder { tablet: tablet.id, epoch, attempt, succession };
            effects.push(Effect::SendSeal { server, order });
        }
        if next != ordered {
            self.remember(now, job, Driven::new(job.attempt, since, next));
        }
    }

    /// The connected server that leads all of `tablets`.
    fn leading(&self, state: &State, tablets: &[&Tablet]) -> Option<ServerId> {
        let leads = |leader: &Leader| {
            state.is_current(leader) && self.sessions.get(&leader.server) == Some(&leader.incarnation)
        };
        let leader = |tablet: &&Tablet| tablet.leader.filter(|leader| !tablet.recovering && leads(leader));
        let leaders: Option<Vec<Leader>> = tablets.iter().map(leader).collect();
        leaders?.first().map(|leader| leader.server)
    }

    fn remember(&mut self, now: Tick, job: &Job, driven: Driven) {
        let until = driven.since.plus_ms(patience_ms(job));
        for tablet in job.tablets() {
            if until > now {
                self.deadlines.insert((until, tablet));
            }
            self.seals.waiting.remove(&tablet);
        }
        self.seals.driven.insert(job.id, driven);
    }

    /// Whether so many tablets that `server` leads are being sealed that `more` have to wait.
    fn is_full(&self, state: &State, server: ServerId, more: usize) -> bool {
        let runs = |id: &JobId| state.job(*id).is_some_and(Job::is_running);
        let open = self.seals.driven.iter().filter(|(id, _)| runs(id));
        let ordered = open.flat_map(|(_, driven)| driven.ordered.values());
        ordered.filter(|(to, _, _)| *to == server).count() + more > SPLITS_PER_SERVER_MAX
    }

    fn give_up(&mut self, now: Tick, job: &Job, parents: &[&Tablet], since: Tick, effects: &mut Vec<Effect>) {
        // A proposal may be lost: then it is made again.
        let again = now.plus_ms(SPLIT_ORDER_RETRY_MS);
        let fresh = || Driven::new(job.attempt, since, BTreeMap::new());
        let driven = self.seals.driven.entry(job.id).or_insert_with(fresh);
        if driven.given_up.is_some_and(|again| now < again) {
            return;
        }
        driven.given_up = Some(again);
        self.deadlines.extend(parents.iter().map(|tablet| (again, tablet.id)));
        let command = match &job.kind {
            JobKind::Merge(merge) if merge.tries + 1 < MERGE_TRIES_MAX => {
                self.pause_merge(now, job.id, merge);
                Command::ChangeMerge { job: job.id, attempt: job.attempt, step: MergeStep::Unseal }
            }
            JobKind::Merge(_)
            | JobKind::Split(_)
            | JobKind::Move(_)
            | JobKind::Backup(_)
            | JobKind::Restore(_)
            | JobKind::Transfer(_) => {
                let (end, time_ms) = (JobEnd::Failed { error: not_ready(parents) }, self.wall.ms());
                Command::EndJob { job: job.id, attempt: Some(job.attempt), end, time_ms }
            }
        };
        effects.push(Effect::Propose(command));
    }

    /// What is to be proposed when a leader asks that its tablet be retired: all parents of an
    /// attempt together. Nothing while the half of another is missing: both leaders ask again.
    pub fn take_commit(
        &mut self,
        state: &State,
        proposer: (ServerId, Incarnation),
        commit: SplitCommit,
    ) -> Vec<SplitCommit> {
        // Whatever has no second half is decided at once, if only to be refused.
        let Some((job, succession)) = state.succession_of(commit.tablet) else { return vec![commit] };
        if job.attempt != commit.attempt || succession.parents.len() == 1 {
            return vec![commit];
        }
        let halves = self.seals.halves.entry(job.id).or_default();
        halves.retain(|_, (by, half)| *by == proposer && half.attempt == commit.attempt);
        halves.insert(commit.tablet, (proposer, commit));
        if halves.len() < succession.parents.len() {
            return Vec::new();
        }
        let mut halves = self.seals.halves.remove(&job.id).unwrap_or_default();
        let in_order = succession.parents.iter().filter_map(|parent| halves.remove(parent));
        in_order.map(|(_, commit)| commit).collect()
    }

    /// Jobs that changed: those that ended make room for others.
    pub(super) fn on_jobs(&mut self, state: &State, jobs: &BTreeSet<JobId>) {
        for job in jobs.iter().filter_map(|id| state.job(*id)) {
            let is_over = |attempt: Attempt| {
                !job.is_running() || job.kind.succession().is_none() || job.attempt != attempt
            };
            if self.seals.driven.get(&job.id).is_some_and(|driven| is_over(driven.attempt)) {
                self.seals.driven.remove(&job.id);
                self.seals.halves.remove(&job.id);
            }
            self.note_merge(job);
            self.dirty.extend(job.tablets());
        }
        self.dirty.append(&mut self.seals.waiting);
    }
}

impl Driven {
    fn new(attempt: Attempt, since: Tick, ordered: BTreeMap<TabletId, (ServerId, Epoch, Tick)>) -> Self {
        Self { attempt, since, ordered, given_up: None }
    }
}

fn patience_ms(job: &Job) -> u64 {
    match &job.kind {
        JobKind::Merge(_) => MERGE_PATIENCE_MS,
        JobKind::Split(_)
        | JobKind::Move(_)
        | JobKind::Backup(_)
        | JobKind::Restore(_)
        | JobKind::Transfer(_) => SPLIT_PATIENCE_MS,
    }
}

/// Whether different processes lead the tablets: then nobody can ask for the commit.
fn are_apart(state: &State, tablets: &[&Tablet]) -> bool {
    let leaders = tablets.iter().filter_map(|tablet| tablet.leader.filter(|it| state.is_current(it)));
    let runs: BTreeSet<_> = leaders.map(|leader| (leader.server, leader.incarnation)).collect();
    runs.len() > 1
}

fn not_ready(tablets: &[&Tablet]) -> String {
    let ids: Vec<String> = tablets.iter().map(|tablet| tablet.id.0.to_string()).collect();
    let named =
        if ids.len() == 1 { format!("tablet {}", ids[0]) } else { format!("tablets {}", ids.join(", ")) };
    format!(
        "{named} could not be sealed and the copies be ready within {SPLIT_PATIENCE_MS} ms: see `ebla tablet describe {}` and try again",
        ids.first().map_or("", String::as_str)
    )
}

/// Whether the tablet has D in-sync copies that keep their data. With fewer nothing is published, so
/// no copy would ever stage what a seal says, and writes would wait for nothing.
fn can_publish(state: &State, tablet: &Tablet) -> bool {
    let least = state.table(tablet.table).map_or(1, |table| usize::from(table.spec.min_in_sync));
    tablet.in_sync_replicas().filter(|copy| state.holds_data(copy)).count() >= least
}
