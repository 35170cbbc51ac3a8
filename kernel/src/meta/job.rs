//! Jobs: what takes more than one command is a record that any master goes on with or ends.
//!
//! ```text
//!   StartJob ──▶ running ──(its commit point)──▶ done
//!                   │
//!                   └── EndJob ──▶ failed, cancelled
//! ```
//!
//! - A tablet has at most one job. An operator's job ends an automatic one that has not
//!   reached its commit point, and is refused against another operator's.
//! - The end of a job and its commit are compare-and-sets on its record, final for its
//!   attempt; attempts are never reused (m29).
//! - What a job is about is in its [`JobKind`]; who drives it, in the control core.

use super::apply::{Changes, Reply};
use super::rejection::Rejection;
use super::replicas;
use super::split;
use super::state::{State, Tablet};
use crate::ids::{Attempt, JobId, ReplicaId, ServerId, TabletId};
use crate::limits::{JOB_ERROR_BYTES_MAX, JOBS_FINISHED_MAX, JOBS_RUNNING_MAX};
use crate::mutated;
use crate::range::KeyRange;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Who wants a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Origin {
    /// A person.
    Operator,
    /// The cluster itself.
    Automatic,
}

/// What a job is to do, as whoever starts it says.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum Wish {
    /// Make several tablets of one.
    Split {
        /// Which.
        tablet: TabletId,
        /// First keys of all but the first of them, strictly rising and strictly inside.
        at: Vec<Bytes>,
    },
    /// Take a copy from one server to another.
    Move {
        /// Of which tablet.
        tablet: TabletId,
        /// The server that has one.
        from: ServerId,
        /// The server that is to have it.
        to: ServerId,
    },
}

impl Wish {
    /// The tablet that it is about.
    #[must_use]
    pub fn tablet(&self) -> TabletId {
        match self {
            Self::Split { tablet, .. } | Self::Move { tablet, .. } => *tablet,
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum JobState {
    /// Under way, before its commit point.
    Running,
    /// Its effect is there for good.
    Done,
    /// It was given up; nothing of it stays.
    Failed,
    /// Somebody ended it; nothing of it stays.
    Cancelled,
}

impl JobState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a job ends without its effect.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum JobEnd {
    /// It could not be done.
    Failed {
        /// Why, and what to do about it.
        error: String,
    },
    /// Somebody wanted it to end.
    Cancelled,
}

/// What a job is about.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum JobKind {
    /// Several tablets of one.
    Split(SplitJob),
    /// A copy that takes the place of another. Its commit point is the record that takes the
    /// new copy into the in-sync set.
    Move(MoveJob),
}

/// A copy on its way in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct MoveJob {
    /// The tablet.
    pub tablet: TabletId,
    /// The copy that comes.
    pub to: ReplicaId,
    /// Where it goes.
    pub to_server: ServerId,
    /// The server of the copy that goes; none when the tablet lacked one.
    pub from_server: Option<ServerId>,
}

/// A split: the tablets to be are named before anything is sealed.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct SplitJob {
    /// The tablet that is to be retired.
    pub tablet: TabletId,
    /// The tablets that are to take its place, in key order.
    pub children: Vec<(TabletId, KeyRange)>,
    /// The copies of the children, in the order of `children`, by the copy of the parent that
    /// they go on from.
    pub replicas: BTreeMap<ReplicaId, Vec<ReplicaId>>,
}

impl JobKind {
    /// The word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Move(_) => "move",
        }
    }
}

/// A piece of work that outlives the master that began it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Job {
    /// Its name for ever.
    pub id: JobId,
    /// The try under way, or the last one.
    pub attempt: Attempt,
    /// Who wants it.
    pub origin: Origin,
    /// What it is about.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// How much of it is done, in thousandths.
    pub progress: u16,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was started, milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended; 0 while it runs.
    pub ended_ms: u64,
}

impl Job {
    /// Whether it is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// The tablets that it makes, in key order.
    pub fn children(&self) -> impl Iterator<Item = TabletId> {
        let children = match &self.kind {
            JobKind::Split(split) => &split.children[..],
            JobKind::Move(_) => &[],
        };
        children.iter().map(|(id, _)| *id)
    }

    /// The tablets that no other job may be about while this one runs.
    pub fn tablets(&self) -> impl Iterator<Item = TabletId> {
        match &self.kind {
            JobKind::Split(split) => std::iter::once(split.tablet),
            JobKind::Move(copy) => std::iter::once(copy.tablet),
        }
    }
}

impl State {
    /// The job of this id.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Every job that is remembered, oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The job under way that is about a tablet.
    #[must_use]
    pub fn job_of(&self, tablet: TabletId) -> Option<&Job> {
        self.index.jobs.get(&tablet).and_then(|id| self.jobs.get(id))
    }

    /// The split under way that is to retire a tablet.
    #[must_use]
    pub fn split_of(&self, tablet: TabletId) -> Option<(&Job, &SplitJob)> {
        let job = self.job_of(tablet)?;
        match &job.kind {
            JobKind::Split(split) => Some((job, split)),
            JobKind::Move(_) => None,
        }
    }

    /// Writes the end of a job into its record and forgets the oldest that ended.
    pub(super) fn finish_job(
        &mut self,
        id: JobId,
        to: JobState,
        error: Option<String>,
        time_ms: u64,
        changes: &mut Changes,
    ) -> Option<Job> {
        let job = self.jobs.get_mut(&id)?;
        (job.state, job.error, job.ended_ms) = (to, error, time_ms.max(job.started_ms));
        if to == JobState::Done {
            job.progress = 1_000;
        }
        let job = job.clone();
        for tablet in job.tablets() {
            self.index.jobs.remove(&tablet);
        }
        changes.jobs.insert(id);
        self.forget_old_jobs();
        Some(job)
    }

    fn forget_old_jobs(&mut self) {
        let finished = self.jobs.len() - self.index.jobs.values().collect::<BTreeSet<_>>().len();
        if finished > JOBS_FINISHED_MAX
            && let Some(oldest) = self.jobs.values().find(|job| !job.is_running()).map(|job| job.id)
        {
            self.jobs.remove(&oldest);
        }
    }
}

/// Starts a job.
pub(super) fn start(
    state: &mut State,
    wish: Wish,
    origin: Origin,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    match &wish {
        Wish::Split { tablet, at } => split::check(state, *tablet, at)?,
        Wish::Move { tablet, from, to } => replicas::check_move(state, *tablet, *from, *to)?,
    }
    make_way(state, wish.tablet(), origin, time_ms, changes)?;
    check_room(state)?;
    let kind = match wish {
        Wish::Split { tablet, at } => split::plan(state, tablet, &at)?,
        Wish::Move { tablet, from, to } => replicas::plan_move(state, tablet, from, to, changes)?,
    };
    Ok(Reply::Job(Box::new(register(state, kind, origin, time_ms, changes))))
}

/// Whether one more job may run.
pub(super) fn check_room(state: &State) -> Result<(), Rejection> {
    match state.index.jobs.len() < JOBS_RUNNING_MAX {
        true => Ok(()),
        false => Err(Rejection::LimitReached("jobs under way")),
    }
}

/// Writes the record of a job that begins.
pub(super) fn register(
    state: &mut State,
    kind: JobKind,
    origin: Origin,
    time_ms: u64,
    changes: &mut Changes,
) -> Job {
    let (id, attempt) = (state.next.job, state.next.attempt);
    (state.next.job, state.next.attempt) = (id.next(), attempt.next());
    let (started_ms, ended_ms) = (time_ms, 0);
    let running = JobState::Running;
    let job =
        Job { id, attempt, origin, kind, state: running, progress: 0, error: None, started_ms, ended_ms };
    state.index.jobs.extend(job.tablets().map(|tablet| (tablet, id)));
    changes.jobs.insert(id);
    state.jobs.insert(id, job.clone());
    job
}

/// An operator's job ends an automatic one; any other is in the way.
fn make_way(
    state: &mut State,
    tablet: TabletId,
    origin: Origin,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<(), Rejection> {
    let Some(job) = state.job_of(tablet) else { return Ok(()) };
    match (origin, job.origin) {
        (Origin::Operator, Origin::Automatic) => {
            let id = job.id;
            end(state, id, None, JobEnd::Cancelled, time_ms, changes).map(drop)
        }
        (Origin::Operator, Origin::Operator) | (Origin::Automatic, _) => {
            Err(Rejection::JobRuns(Box::new(job.clone())))
        }
    }
}

/// Ends a job before its commit point.
pub(super) fn end(
    state: &mut State,
    id: JobId,
    attempt: Option<Attempt>,
    end: JobEnd,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let job = state.job(id).ok_or(Rejection::NoJob(id))?;
    if !job.is_running() && !mutated!(AbortAfterCommit) {
        return Err(Rejection::JobEnded(Box::new(job.clone())));
    }
    if attempt.is_some_and(|attempt| attempt != job.attempt) {
        return Err(Rejection::StaleAttempt(Box::new(job.clone())));
    }
    let (attempt, kind) = (job.attempt, job.kind.clone());
    match kind {
        JobKind::Split(split) => split::abort(state, split.tablet, attempt, changes),
        JobKind::Move(copy) => replicas::give_up(state, &copy, changes)?,
    }
    let (to, error) = match end {
        JobEnd::Failed { error } => (JobState::Failed, Some(shortened(error))),
        JobEnd::Cancelled => (JobState::Cancelled, None),
    };
    let job = state.finish_job(id, to, error, time_ms, changes).ok_or(Rejection::NoJob(id))?;
    Ok(Reply::Job(Box::new(job)))
}

/// Ends the jobs of tablets that are dropped with their table.
pub(super) fn end_all_of(state: &mut State, tablets: &[Tablet], changes: &mut Changes) {
    let ids: BTreeSet<JobId> =
        tablets.iter().filter_map(|tablet| state.index.jobs.get(&tablet.id).copied()).collect();
    for id in ids {
        let (error, time_ms) = ("its table was dropped".to_owned(), 0);
        state.finish_job(id, JobState::Failed, Some(error), time_ms, changes);
    }
}

fn shortened(mut error: String) -> String {
    let mut end = error.len().min(JOB_ERROR_BYTES_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error.truncate(end);
    error
}
