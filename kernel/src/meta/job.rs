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
use super::backup::{self, BackupJob, BackupWish, RefusedWish, RestoreJob, RestoreWish};
use super::merge::{self, MergeJob};
use super::rejection::Rejection;
use super::replicas;
use super::split;
use super::state::{State, Tablet};
use super::succession::{self, Succession};
use crate::ids::{Attempt, JobId, ReplicaId, ServerId, TabletId};
use crate::limits::{JOB_ERROR_BYTES_MAX, JOBS_FINISHED_MAX, JOBS_RUNNING_MAX};
use crate::mutated;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use std::collections::BTreeSet;

/// What a job that is done has done, in thousandths.
const PROGRESS_DONE: u16 = 1_000;

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
    /// Make one tablet of two neighbours, whichever of them has the lower keys.
    Merge {
        /// The one whose copies stay where they are, if their servers take others.
        stays: TabletId,
        /// The one whose copies go there: better the smaller one.
        comes: TabletId,
    },
    /// Put what tables hold at a timestamp into files.
    Backup(Box<BackupWish>),
    /// Bring tables back from files.
    Restore(Box<RestoreWish>),
}

impl Wish {
    /// The tablets that it is about.
    #[must_use]
    pub fn tablets(&self) -> Vec<TabletId> {
        match self {
            Self::Split { tablet, .. } | Self::Move { tablet, .. } => vec![*tablet],
            Self::Merge { stays, comes } => vec![*stays, *comes],
            Self::Backup(_) | Self::Restore(_) => Vec::new(),
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
    Split(Succession),
    /// A copy that takes the place of another. Its commit point is the record that takes the
    /// new copy into the in-sync set.
    Move(MoveJob),
    /// One tablet of two.
    Merge(MergeJob),
    /// Files of what tables hold. Its commit point comes before the manifest.
    Backup(BackupJob),
    /// Tables of such files. Its commit point opens them.
    Restore(RestoreJob),
    /// Leadership that was handed over. It is over in a moment, so its record is written when it
    /// has succeeded: nothing of it has to be gone on with.
    Transfer(TransferJob),
}

/// Leadership that went to another server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct TransferJob {
    /// The tablet.
    pub tablet: TabletId,
    /// The server that led; none when nobody did.
    pub from_server: Option<ServerId>,
    /// The server that leads.
    pub to_server: ServerId,
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

impl JobKind {
    /// The word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Move(_) => "move",
            Self::Merge(_) => "merge",
            Self::Backup(_) => "backup",
            Self::Restore(_) => "restore",
            Self::Transfer(_) => "transfer",
        }
    }

    /// Which tablets take the place of which, once that is to be.
    #[must_use]
    pub fn succession(&self) -> Option<&Succession> {
        match self {
            Self::Split(succession) => Some(succession),
            Self::Merge(merge) => merge.intent.as_ref(),
            Self::Move(_) | Self::Backup(_) | Self::Restore(_) | Self::Transfer(_) => None,
        }
    }

    /// The tablets that are retired when it is done, in key order.
    #[must_use]
    pub fn parents(&self) -> Vec<TabletId> {
        match self {
            Self::Split(succession) => succession.parents.clone(),
            Self::Merge(merge) => vec![merge.left, merge.right],
            Self::Move(_) | Self::Backup(_) | Self::Restore(_) | Self::Transfer(_) => Vec::new(),
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
    #[must_use]
    pub fn children(&self) -> Vec<TabletId> {
        match &self.kind {
            JobKind::Split(split) => split.children.iter().map(|(id, _)| *id).collect(),
            JobKind::Merge(merge) => vec![merge.child],
            JobKind::Move(_) | JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_) => Vec::new(),
        }
    }

    /// The tablets that no other job may be about while this one runs.
    #[must_use]
    pub fn tablets(&self) -> Vec<TabletId> {
        match &self.kind {
            JobKind::Split(_) | JobKind::Merge(_) => self.kind.parents(),
            JobKind::Move(copy) => vec![copy.tablet],
            JobKind::Transfer(transfer) => vec![transfer.tablet],
            JobKind::Backup(_) | JobKind::Restore(_) => Vec::new(),
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

    /// Jobs under way, oldest first.
    pub fn jobs_running(&self) -> impl Iterator<Item = &Job> {
        self.index.running.iter().filter_map(|id| self.jobs.get(id))
    }

    /// The job under way that is about a tablet.
    #[must_use]
    pub fn job_of(&self, tablet: TabletId) -> Option<&Job> {
        self.index.jobs.get(&tablet).and_then(|id| self.jobs.get(id))
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
            job.progress = PROGRESS_DONE;
        }
        let job = job.clone();
        for tablet in job.tablets() {
            self.index.jobs.remove(&tablet);
        }
        self.index.running.remove(&id);
        changes.jobs.insert(id);
        self.note_attempt(&job);
        self.forget_old_jobs();
        Some(job)
    }

    fn forget_old_jobs(&mut self) {
        let finished = self.jobs.len() - self.index.running.len();
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
    check_open(state, &wish)?;
    match &wish {
        Wish::Backup(_) | Wish::Restore(_) => {}
        Wish::Split { tablet, at } => split::check(state, *tablet, at)?,
        Wish::Move { tablet, from, to } => replicas::check_move(state, *tablet, *from, *to)?,
        Wish::Merge { stays, comes } => {
            merge::check_pair(state, *stays, *comes)?;
            check_way(state, &wish.tablets(), origin)?;
            merge::check_copies(state, *stays, *comes)?;
        }
    }
    make_way(state, &wish.tablets(), origin, time_ms, changes)?;
    check_room(state)?;
    let kind = match wish {
        Wish::Split { tablet, at } => split::plan(state, tablet, &at)?,
        Wish::Move { tablet, from, to } => replicas::plan_move(state, tablet, from, to, changes)?,
        Wish::Merge { stays, comes } => merge::plan(state, stays, comes)?,
        Wish::Backup(wish) => backup::plan_backup(state, *wish, time_ms)?,
        Wish::Restore(wish) => backup::plan_restore(state, *wish)?,
    };
    Ok(Reply::Job(Box::new(register(state, kind, origin, time_ms, changes))))
}

/// A table that is being brought back stays as it is until it is whole.
fn check_open(state: &State, wish: &Wish) -> Result<(), Rejection> {
    let tablets = wish.tablets();
    let mut tables = tablets.iter().filter_map(|id| state.table(state.tablet(*id)?.table));
    match tables.find(|table| table.restoring.is_some()) {
        Some(table) => Err(Rejection::TableRestoring(Box::new(table.clone()))),
        None => Ok(()),
    }
}

/// Whether one more job may run.
pub(super) fn check_room(state: &State) -> Result<(), Rejection> {
    match state.index.running.len() < JOBS_RUNNING_MAX {
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
    let job = new(state, kind, origin, time_ms);
    state.index.jobs.extend(job.tablets().into_iter().map(|tablet| (tablet, job.id)));
    state.index.running.insert(job.id);
    changes.jobs.insert(job.id);
    state.jobs.insert(job.id, job.clone());
    job
}

/// Writes the record of a transfer that has succeeded.
pub(super) fn record_transfer(
    state: &mut State,
    transfer: TransferJob,
    (started_ms, ended_ms): (u64, u64),
    changes: &mut Changes,
) -> Reply {
    let mut job = new(state, JobKind::Transfer(transfer), Origin::Operator, started_ms);
    (job.state, job.progress, job.ended_ms) = (JobState::Done, PROGRESS_DONE, ended_ms.max(started_ms));
    record(state, job, changes)
}

/// Writes the record of a backup or a restore that was refused before it began.
pub(super) fn record_refusal(
    state: &mut State,
    wish: RefusedWish,
    error: String,
    (started_ms, ended_ms): (u64, u64),
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    wish.check()?;
    let mut job = new(state, wish.into_kind(), Origin::Operator, started_ms);
    (job.state, job.ended_ms) = (JobState::Failed, ended_ms.max(started_ms));
    job.error = Some(shortened(error));
    state.note_attempt(&job);
    Ok(record(state, job, changes))
}

/// Keeps a job that is over.
fn record(state: &mut State, job: Job, changes: &mut Changes) -> Reply {
    changes.jobs.insert(job.id);
    state.jobs.insert(job.id, job.clone());
    state.forget_old_jobs();
    Reply::Job(Box::new(job))
}

fn new(state: &mut State, kind: JobKind, origin: Origin, started_ms: u64) -> Job {
    let (id, attempt) = (state.next.job, state.next.attempt);
    (state.next.job, state.next.attempt) = (id.next(), attempt.next());
    let running = JobState::Running;
    Job { id, attempt, origin, kind, state: running, progress: 0, error: None, started_ms, ended_ms: 0 }
}

/// The jobs that are about some of `tablets`.
fn jobs_of(state: &State, tablets: &[TabletId]) -> BTreeSet<JobId> {
    tablets.iter().filter_map(|tablet| state.index.jobs.get(tablet).copied()).collect()
}

/// An operator's job ends automatic ones; any other is in the way.
fn check_way(state: &State, tablets: &[TabletId], origin: Origin) -> Result<(), Rejection> {
    for job in jobs_of(state, tablets).iter().filter_map(|id| state.job(*id)) {
        match (origin, job.origin) {
            (Origin::Operator, Origin::Automatic) if gives_way(state, job) => {}
            (Origin::Operator, Origin::Automatic) => {
                return Err(Rejection::JobCommitted(Box::new(job.clone())));
            }
            (Origin::Operator, Origin::Operator) | (Origin::Automatic, _) => {
                return Err(Rejection::JobRuns(Box::new(job.clone())));
            }
        }
    }
    Ok(())
}

/// Ends the jobs that are in the way, if all of them can be ended.
fn make_way(
    state: &mut State,
    tablets: &[TabletId],
    origin: Origin,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<(), Rejection> {
    check_way(state, tablets, origin)?;
    for id in jobs_of(state, tablets) {
        end(state, id, None, JobEnd::Cancelled, time_ms, changes)?;
    }
    Ok(())
}

/// Whether nothing of the job would stay under way if it ended: no copy has come whose
/// predecessor still has to go.
fn gives_way(state: &State, job: &Job) -> bool {
    let has_come = |id: &TabletId| {
        let tablet = state.tablet(*id);
        tablet.is_some_and(|it| it.moving.is_some_and(|moving| it.in_sync.contains(&moving.to)))
    };
    !job.tablets().iter().any(has_come)
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
    match &kind {
        JobKind::Split(split) => succession::abort(state, &split.parents, attempt, changes),
        JobKind::Move(copy) => replicas::give_up(state, copy, changes)?,
        JobKind::Backup(backup) if backup.committed && end == JobEnd::Cancelled => {
            return Err(Rejection::JobCommitted(Box::new(job.clone())));
        }
        JobKind::Restore(restore) => backup::undo_restore(state, restore, changes),
        // Its tablets are free for other jobs only when it has ended.
        JobKind::Merge(_) | JobKind::Backup(_) | JobKind::Transfer(_) => {}
    }
    let (to, error) = match end {
        JobEnd::Failed { error } => (JobState::Failed, Some(shortened(error))),
        JobEnd::Cancelled => (JobState::Cancelled, None),
    };
    let job = state.finish_job(id, to, error, time_ms, changes).ok_or(Rejection::NoJob(id))?;
    if let JobKind::Merge(merge) = &kind {
        merge::give_up(state, merge, attempt, time_ms, changes);
    }
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

/// An error as it is kept.
pub(super) fn shortened(mut error: String) -> String {
    let mut end = error.len().min(JOB_ERROR_BYTES_MAX);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error.truncate(end);
    error
}
