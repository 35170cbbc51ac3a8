//! Backups and restores as the masters record them: one job each, its steps, their guards.
//!
//! ```text
//!   backup    StartJob ── Choose T ── Commit ──▶ (the manifest) ── Finish ──▶ done
//!   restore   StartJob ── Create ── Restored* ── Activate ──▶ done
//! ```
//!
//! - The record of a backup holds the garbage floors from the moment it is there: no table
//!   forgets what is above its safe point. Only then is T chosen.
//! - One backup at a time. `Commit` is its commit point: whoever cancels comes before it, and then
//!   no manifest is ever written. What exists at the target without one is no backup.
//! - The tables of a restore are there from `Create` on, and nobody reads or writes them. Each of
//!   their copies takes the rows in by itself; the *ledger* says which have. `Activate` needs all
//!   of them, so a copy that came late is waited for, and opens all tables at once.
//! - Failure and cancellation drop the tables: a restore is whole or was never there.
//!
//! Which copy exports what, and who still has to take rows in, is decided in [`crate::backup`].

use super::apply::{Changes, Opens, Reply, drop_tables, insert_new, new_tables_fit};
use super::command::NewTablet;
use super::job::{Job, JobKind, JobState};
use super::rejection::Rejection;
use super::schedule;
use super::spec::{TableSpec, check_table_name};
use super::state::State;
use crate::backup::import::is_whole;
use crate::backup::schedule::safe_point;
use crate::backup::site::map_of;
use crate::hlc::Hlc;
use crate::ids::{Attempt, JobId, ReplicaId, TableId, TabletId};
use crate::limits::{BACKUP_ATTEMPTS_MAX, BACKUP_TEXT_BYTES_MAX};
use crate::mutated;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a backup is to hold and where it goes.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct BackupWish {
    /// Its name at the target.
    pub backup: String,
    /// URL of the target; no credentials.
    pub url: String,
    /// The tables, each with the timestamp above which its versions go in, the least for all.
    pub tables: Vec<(TableId, Hlc)>,
    /// The backup that it adds to, and its timestamp.
    pub parent: Option<(String, Hlc)>,
    /// The timestamp that it is of; none: of when it begins.
    pub at: Option<Hlc>,
    /// No garbage floor passes this while the job runs.
    pub safe: Hlc,
    /// Bytes per second that each server may read for it; 0: as servers see fit.
    pub rate_bytes: u64,
    /// Names the key that its files are encrypted with; empty: they are not.
    pub key_id: String,
    /// Who asked for it.
    pub by: String,
    /// Whether the schedule of the same target did.
    pub scheduled: bool,
}

/// A backup under way, or what became of it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct BackupJob {
    /// What was asked for.
    pub wish: BackupWish,
    /// Its timestamp, once chosen.
    pub ts: Option<Hlc>,
    /// Whether it is past its commit point: its manifest is being written, or is there.
    pub committed: bool,
    /// How much it holds, once committed.
    pub totals: Totals,
}

/// How much there is in a backup, or was brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct Totals {
    /// Tables.
    pub tables: u64,
    /// Rows that were there at the timestamp; of an incremental one those that had changed.
    pub rows: u64,
    /// Bytes of keys and values of all versions.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

/// A step of a backup.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum BackupStep {
    /// It is of this timestamp.
    Choose {
        /// T.
        ts: Hlc,
    },
    /// Everything is at the target; the manifest comes next.
    Commit {
        /// What there is.
        totals: Totals,
    },
    /// The manifest is there.
    Finish {
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
}

/// What is to be brought back.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RestoreWish {
    /// The backup's name at the target.
    pub backup: String,
    /// URL of the target; no credentials.
    pub url: String,
    /// Timestamp of the backup.
    pub ts: Hlc,
    /// Tables by their ids in the backup, and the names that they get here.
    pub tables: Vec<(TableId, String)>,
    /// Copies of each tablet; none: as many as the table had.
    pub replicas: Option<u8>,
    /// Bytes per second that each server may take in; 0: as servers see fit.
    pub rate_bytes: u64,
    /// Who asked for it.
    pub by: String,
}

impl BackupWish {
    fn check(&self) -> Result<(), Rejection> {
        let parent = self.parent.as_ref().map_or("", |(parent, _)| parent);
        check_texts(&[&self.backup, &self.url, &self.by, &self.key_id, parent])
    }
}

impl RestoreWish {
    fn check(&self) -> Result<(), Rejection> {
        check_texts(&[&self.backup, &self.url, &self.by])
    }
}

/// What was asked for by a backup or a restore that was refused before it began.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum RefusedWish {
    /// A backup.
    Backup(BackupWish),
    /// A restore.
    Restore(RestoreWish),
}

impl RefusedWish {
    /// Whether it is small enough to be kept.
    pub(super) fn check(&self) -> Result<(), Rejection> {
        match self {
            Self::Backup(wish) => wish.check(),
            Self::Restore(wish) => wish.check(),
        }
    }

    /// The job that it did not become; which tables it would have been about is not kept.
    pub(super) fn into_kind(self) -> JobKind {
        let totals = Totals::default();
        match self {
            Self::Backup(wish) => {
                let wish = BackupWish { tables: Vec::new(), ..wish };
                JobKind::Backup(BackupJob { wish, ts: None, committed: false, totals })
            }
            Self::Restore(wish) => {
                let wish = RestoreWish { tables: Vec::new(), ..wish };
                JobKind::Restore(RestoreJob { wish, tables: Vec::new(), totals })
            }
        }
    }
}

/// A restore under way, or what became of it.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RestoreJob {
    /// What was asked for.
    pub wish: RestoreWish,
    /// The tables here, in the order of the wish, once created.
    pub tables: Vec<TableId>,
    /// What was brought back so far; each row counts once, however many copies there are.
    pub totals: Totals,
}

/// A step of a restore.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub enum RestoreStep {
    /// The backup was checked: its tables come into being, closed to everybody.
    Create {
        /// In the order of the wish.
        tables: Vec<NewTable>,
    },
    /// Copies have taken their rows in, durable.
    Restored {
        /// Which.
        copies: Vec<RestoredCopy>,
    },
    /// The tables open.
    Activate {
        /// When, milliseconds since 1970.
        time_ms: u64,
    },
}

/// A table that a restore makes; its name is in the wish.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct NewTable {
    /// Its promises.
    pub spec: TableSpec,
    /// Its tablets in key order, placed.
    pub tablets: Vec<NewTablet>,
}

/// A copy that has its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct RestoredCopy {
    /// Of which tablet.
    pub tablet: TabletId,
    /// Which.
    pub replica: ReplicaId,
    /// Rows in it at the backup's timestamp.
    pub rows: u64,
    /// Bytes of keys and values of its versions.
    pub bytes: u64,
}

/// Which copies of the tables of a restore have their rows.
#[derive(Clone, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct Ledger {
    /// The copies.
    pub copies: BTreeSet<ReplicaId>,
    /// Tablets whose rows are counted in the totals.
    counted: BTreeSet<TabletId>,
}

impl State {
    /// The backup under way.
    #[must_use]
    pub fn backup_running(&self) -> Option<&Job> {
        self.jobs_running().find(|job| matches!(job.kind, JobKind::Backup(_)))
    }

    /// Backups and restores that ended, oldest first; the last some.
    pub fn backup_attempts(&self) -> impl Iterator<Item = &Job> {
        self.attempts.values()
    }

    /// Which copies of the tables of a restore have their rows.
    #[must_use]
    pub fn ledger(&self, job: JobId) -> Option<&Ledger> {
        self.ledgers.get(&job)
    }

    /// No garbage floor may pass this: a backup needs what is above it. `now_ms` is the wall
    /// time, milliseconds since 1970: what schedules hold for their next backup they hold for a
    /// while only.
    #[must_use]
    pub fn safe_ts(&self, now_ms: u64) -> Option<Hlc> {
        let running = self.backup_running().and_then(|job| match &job.kind {
            JobKind::Backup(backup) => Some(backup.wish.safe),
            JobKind::Split(_)
            | JobKind::Merge(_)
            | JobKind::Move(_)
            | JobKind::Restore(_)
            | JobKind::Transfer(_) => None,
        });
        let held = self
            .schedules
            .values()
            .filter_map(|schedule| safe_point(now_ms, schedule.rhythm(), schedule.so_far()));
        running.into_iter().chain(held).min()
    }

    /// Keeps what became of a backup or a restore, for audits; the oldest may go.
    pub(super) fn note_attempt(&mut self, job: &Job) {
        let mut job = job.clone();
        match &mut job.kind {
            JobKind::Backup(backup) => backup.wish.tables.clear(),
            JobKind::Restore(_) => {}
            JobKind::Split(_) | JobKind::Merge(_) | JobKind::Move(_) | JobKind::Transfer(_) => return,
        }
        schedule::note(self, &job);
        self.ledgers.remove(&job.id);
        self.attempts.insert(job.id, job);
        while self.attempts.len() > BACKUP_ATTEMPTS_MAX {
            self.attempts.pop_first();
        }
    }
}

/// The guard of a backup's start.
pub(super) fn plan_backup(state: &mut State, wish: BackupWish, time_ms: u64) -> Result<JobKind, Rejection> {
    wish.check()?;
    if let Some(job) = state.backup_running() {
        return Err(Rejection::BackupRuns(Box::new(job.clone())));
    }
    for (id, _) in &wish.tables {
        let table = state.table(*id).ok_or(Rejection::NoTable(*id))?;
        if table.restoring.is_some() {
            return Err(Rejection::TableRestoring(Box::new(table.clone())));
        }
    }
    schedule::note_start(state, &wish, time_ms);
    let totals = Totals { tables: wish.tables.len() as u64, ..Totals::default() };
    Ok(JobKind::Backup(BackupJob { ts: wish.at, wish, committed: false, totals }))
}

/// The guard of a restore's start: its names are free.
pub(super) fn plan_restore(state: &State, wish: RestoreWish) -> Result<JobKind, Rejection> {
    wish.check()?;
    let mut names = BTreeSet::new();
    for (_, name) in &wish.tables {
        check_table_name(name).map_err(Rejection::BadTable)?;
        if let Some(table) = state.table_named(name) {
            return Err(Rejection::TableExists(Box::new(table.clone())));
        }
        if !names.insert(name) {
            return Err(Rejection::NameTwice(name.clone()));
        }
        if let Some(job) = state.restoring_as(name) {
            return Err(Rejection::JobRuns(Box::new(job.clone())));
        }
    }
    let totals = Totals { tables: wish.tables.len() as u64, ..Totals::default() };
    Ok(JobKind::Restore(RestoreJob { wish, tables: Vec::new(), totals }))
}

impl State {
    /// The restore under way that is to make a table of this name.
    fn restoring_as(&self, name: &str) -> Option<&Job> {
        self.jobs_running().find(|job| match &job.kind {
            JobKind::Restore(restore) => restore.wish.tables.iter().any(|(_, wanted)| wanted == name),
            JobKind::Split(_)
            | JobKind::Merge(_)
            | JobKind::Move(_)
            | JobKind::Backup(_)
            | JobKind::Transfer(_) => false,
        })
    }
}

fn check_texts(texts: &[&str]) -> Result<(), Rejection> {
    let is_long = texts.iter().any(|text| text.len() > BACKUP_TEXT_BYTES_MAX);
    if is_long { Err(Rejection::BackupTextTooLong) } else { Ok(()) }
}

/// The job, if it is under way at this attempt.
fn running(state: &State, id: JobId, attempt: Attempt) -> Result<Job, Rejection> {
    let job = state.job(id).ok_or(Rejection::NoJob(id))?;
    if !job.is_running() {
        return Err(Rejection::JobEnded(Box::new(job.clone())));
    }
    if job.attempt != attempt {
        return Err(Rejection::StaleAttempt(Box::new(job.clone())));
    }
    Ok(job.clone())
}

/// Takes a backup a step further.
pub(super) fn step_backup(
    state: &mut State,
    id: JobId,
    attempt: Attempt,
    step: BackupStep,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let mut job = running(state, id, attempt)?;
    let JobKind::Backup(backup) = &mut job.kind else {
        return Err(Rejection::StaleAttempt(Box::new(job)));
    };
    match step {
        // Whoever chose first has chosen.
        BackupStep::Choose { ts } => {
            backup.ts.get_or_insert(ts.max(backup.wish.safe));
        }
        BackupStep::Commit { totals } if backup.ts.is_some() => {
            (backup.committed, backup.totals) = (true, totals);
        }
        BackupStep::Finish { time_ms } if backup.committed => return finish(state, job, time_ms, changes),
        BackupStep::Commit { .. } | BackupStep::Finish { .. } => {
            return Err(Rejection::StaleAttempt(Box::new(job)));
        }
    }
    changes.jobs.insert(id);
    state.jobs.insert(id, job.clone());
    Ok(Reply::Job(Box::new(job)))
}

/// Takes a restore a step further.
pub(super) fn step_restore(
    state: &mut State,
    id: JobId,
    attempt: Attempt,
    step: RestoreStep,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let mut job = running(state, id, attempt)?;
    let JobKind::Restore(restore) = &mut job.kind else {
        return Err(Rejection::StaleAttempt(Box::new(job)));
    };
    match step {
        RestoreStep::Create { tables } if restore.tables.is_empty() => {
            let named = restore.wish.tables.iter().map(|(_, name)| name.clone()).zip(tables);
            restore.tables = create(state, id, named.collect(), changes)?;
            state.ledgers.insert(id, Ledger::default());
        }
        RestoreStep::Create { .. } => {}
        RestoreStep::Restored { copies } => {
            for copy in copies {
                note_restored(state, id, restore, copy);
            }
        }
        RestoreStep::Activate { time_ms } => {
            activate(state, id, restore, time_ms, changes)?;
            return finish(state, job, time_ms, changes);
        }
    }
    changes.jobs.insert(id);
    state.jobs.insert(id, job.clone());
    Ok(Reply::Job(Box::new(job)))
}

fn finish(state: &mut State, job: Job, time_ms: u64, changes: &mut Changes) -> Result<Reply, Rejection> {
    let id = job.id;
    state.jobs.insert(id, job);
    let job = state.finish_job(id, JobState::Done, None, time_ms, changes).ok_or(Rejection::NoJob(id))?;
    Ok(Reply::Job(Box::new(job)))
}

/// All tables or none.
fn create(
    state: &mut State,
    job: JobId,
    tables: Vec<(String, NewTable)>,
    changes: &mut Changes,
) -> Result<Vec<TableId>, Rejection> {
    new_tables_fit(state, tables.iter().map(|(name, new)| (&**name, &new.spec, &new.tablets[..])))?;
    let insert = |(name, new): (String, NewTable)| {
        insert_new(state, name, new.spec, new.tablets, Opens::After(job), changes).0.id
    };
    Ok(tables.into_iter().map(insert).collect())
}

/// A copy has its rows. One that is none of the job's tables' any more counts for nothing.
fn note_restored(state: &mut State, id: JobId, restore: &mut RestoreJob, copy: RestoredCopy) {
    let Some(tablet) = state.tablets.get(&copy.tablet) else { return };
    if !restore.tables.contains(&tablet.table) || tablet.replica(copy.replica).is_none() {
        return;
    }
    let ledger = state.ledgers.entry(id).or_default();
    ledger.copies.insert(copy.replica);
    if ledger.counted.insert(copy.tablet) {
        restore.totals.rows += copy.rows;
        restore.totals.bytes += copy.bytes;
    }
}

/// Opens the tables, if every copy of every tablet has its rows.
fn activate(
    state: &mut State,
    id: JobId,
    restore: &RestoreJob,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<(), Rejection> {
    let copies = state.ledgers.get(&id).map(|ledger| &ledger.copies);
    let map = map_of(state, restore.tables.iter().copied(), &BTreeMap::new());
    let is_whole = is_whole(&map, copies.unwrap_or(&BTreeSet::new())) || mutated!(HalfRestoreOpens);
    if restore.tables.is_empty() || !is_whole {
        return Err(Rejection::NotRestored(id));
    }
    for table in &restore.tables {
        if let Some(table) = state.tables.get_mut(table) {
            (table.restoring, table.created_ms) = (None, time_ms);
            changes.tables.insert(table.id);
        }
    }
    Ok(())
}

/// What a restore that ends without its effect leaves: nothing.
pub(super) fn undo_restore(state: &mut State, restore: &RestoreJob, changes: &mut Changes) {
    drop_tables(state, &restore.tables, changes);
}
