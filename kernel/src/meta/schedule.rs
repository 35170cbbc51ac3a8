//! Backups that the cluster makes by itself: what is recorded of a schedule. When one is due is
//! decided in [`crate::backup`].

use super::apply::{Changes, Reply};
use super::backup::BackupWish;
use super::job::{Job, JobKind, JobState, shortened};
use super::rejection::Rejection;
use super::state::State;
use crate::backup::schedule::{Past, Rhythm};
use crate::hlc::Hlc;
use crate::limits::{
    BACKUP_EVERY_MS_MIN, BACKUP_KEEP_MAX, BACKUP_SCHEDULES_MAX, BACKUP_TEXT_BYTES_MAX, TABLES_MAX,
};
use borsh::{BorshDeserialize, BorshSerialize};

/// Backups of some tables to one target, again and again.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
pub struct Schedule {
    /// URL of the target; names the schedule.
    pub url: String,
    /// Time from one backup's start to the next one's, in milliseconds.
    pub every_ms: u64,
    /// Time from one full backup's start to the next one's, in milliseconds.
    pub full_every_ms: u64,
    /// How many backups are kept, and those that they depend on with them.
    pub keep: u32,
    /// Names of the tables; empty: all that there are then.
    pub tables: Vec<String>,
    /// Bytes per second that each server may read for it; 0: as servers see fit.
    pub rate_bytes: u64,
    /// Names the key that files are encrypted with; empty: they are not.
    pub key_id: String,
    /// Who set it.
    pub by: String,
    /// How it has fared.
    pub past: SchedulePast,
}

/// How a schedule has fared.
#[derive(Clone, PartialEq, Eq, Debug, Default, BorshSerialize, BorshDeserialize)]
pub struct SchedulePast {
    /// When a backup of it was last begun, milliseconds since 1970; none: never.
    pub started_ms: Option<u64>,
    /// The last backup that was finished, and its timestamp.
    pub last: Option<(String, Hlc)>,
    /// The timestamp of the last full one that was finished.
    pub full: Option<Hlc>,
    /// Backups that failed since one was finished.
    pub failures: u32,
    /// Why the last of them did.
    pub error: Option<String>,
}

impl Schedule {
    /// What it wants, as the plan knows it.
    #[must_use]
    pub fn rhythm(&self) -> Rhythm {
        Rhythm { every_ms: self.every_ms, full_every_ms: self.full_every_ms }
    }

    /// How it has fared, as the plan knows it.
    #[must_use]
    pub fn so_far(&self) -> Past {
        let SchedulePast { started_ms, full, failures, .. } = self.past;
        Past { started_ms, last: self.past.last.as_ref().map(|(_, ts)| *ts), full, failures }
    }
}

impl State {
    /// Every schedule, by URL.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.schedules.values()
    }
}

/// Sets a schedule; of one that is there, its past stays.
pub(super) fn set(
    state: &mut State,
    mut schedule: Schedule,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let texts = [&schedule.url, &schedule.by, &schedule.key_id];
    if texts.iter().any(|text| text.len() > BACKUP_TEXT_BYTES_MAX) || schedule.tables.len() > TABLES_MAX {
        return Err(Rejection::BackupTextTooLong);
    }
    let is_sound = schedule.every_ms >= BACKUP_EVERY_MS_MIN
        && schedule.full_every_ms >= schedule.every_ms
        && (1..=BACKUP_KEEP_MAX).contains(&schedule.keep);
    if !is_sound {
        return Err(Rejection::BadSchedule);
    }
    let known = state.schedules.get(&schedule.url);
    if known.is_none() && state.schedules.len() >= BACKUP_SCHEDULES_MAX {
        return Err(Rejection::LimitReached("backup schedules"));
    }
    schedule.past = known.map(|known| known.past.clone()).unwrap_or_default();
    state.schedules.insert(schedule.url.clone(), schedule);
    changes.schedules = true;
    Ok(Reply::Done)
}

/// A backup could not be begun.
pub(super) fn fail(
    state: &mut State,
    url: &str,
    error: String,
    time_ms: u64,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let schedule = state.schedules.get_mut(url).ok_or_else(|| Rejection::NoSchedule(url.to_owned()))?;
    let past = &mut schedule.past;
    past.started_ms = Some(time_ms);
    past.failures = past.failures.saturating_add(1);
    past.error = Some(shortened(error));
    changes.schedules = true;
    Ok(Reply::Done)
}

/// Removes a schedule; its backups stay.
pub(super) fn remove(state: &mut State, url: &str, changes: &mut Changes) -> Result<Reply, Rejection> {
    match state.schedules.remove(url) {
        Some(_) => {
            changes.schedules = true;
            Ok(Reply::Done)
        }
        None => Err(Rejection::NoSchedule(url.to_owned())),
    }
}

/// A backup of a schedule begins.
pub(super) fn note_start(state: &mut State, wish: &BackupWish, time_ms: u64) {
    if let Some(schedule) = state.schedules.get_mut(&wish.url).filter(|_| wish.scheduled) {
        schedule.past.started_ms = Some(time_ms);
    }
}

/// A backup ended.
pub(super) fn note(state: &mut State, job: &Job) {
    let JobKind::Backup(backup) = &job.kind else { return };
    let Some(schedule) = state.schedules.get_mut(&backup.wish.url).filter(|_| backup.wish.scheduled) else {
        return;
    };
    let past = &mut schedule.past;
    match (job.state, backup.ts) {
        (JobState::Done, Some(ts)) => {
            past.last = Some((backup.wish.backup.clone(), ts));
            if backup.wish.parent.is_none() {
                past.full = Some(ts);
            }
            (past.failures, past.error) = (0, None);
        }
        (JobState::Failed, _) => {
            past.failures = past.failures.saturating_add(1);
            past.error.clone_from(&job.error);
        }
        (JobState::Done | JobState::Running | JobState::Cancelled, _) => {}
    }
}
