//! The shell of backups and restores: drives what [`ebla_kernel::backup`] plans.
//!
//! One task looks at the jobs of the leading master and runs one task for each backup and
//! restore. Everything in memory here can be forgotten: what is done lies at the target (the
//! parts of a backup) or in the metadata (the ledger of a restore), so that any master goes on
//! where another one stopped. A job that was ended by somebody ends its task, and with it the
//! streams to the servers that work at it.

mod create;
mod orders;
mod request;
mod restore;
mod schedule;
mod servers;

pub(crate) use request::{create_backup, key_of, one_url, restore_backup};
pub(crate) use schedule::{schedule_to_wire, wire_schedule};

use crate::clock;
use crate::limits::{BACKUP_LOOK_EVERY, BACKUP_SCHEDULE_EVERY};
use crate::service::Shared;
use ebla_backup::{BackupError, Location, Repository};
use ebla_kernel::ids::{JobId, Tick};
use ebla_kernel::meta::{Command, Job, JobEnd, JobKind, JobState, Reply};
use ebla_proto::split::Copied;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

/// What the leading master knows of the backups and restores under way.
pub(crate) struct Backups {
    progress: Mutex<BTreeMap<JobId, Copied>>,
    /// For files that are looked at; cleared by whoever uses it.
    scratch: PathBuf,
    start: Instant,
}

/// Why a job comes to nothing here.
enum Stop {
    /// For good; whoever asked is told why.
    Failed(String),
    /// Another master goes on with it, or somebody has ended it.
    Elsewhere,
}

impl From<ebla_failpoints::Failed> for Stop {
    fn from(failed: ebla_failpoints::Failed) -> Self {
        Self::Failed(failed.to_string())
    }
}

impl From<BackupError> for Stop {
    fn from(error: BackupError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Backups {
    pub fn new(scratch: PathBuf) -> Self {
        Self { progress: Mutex::default(), scratch, start: Instant::now() }
    }

    /// How far a job is, if this master drives it.
    pub fn progress(&self, job: JobId) -> Option<Copied> {
        self.lock().get(&job).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Copied>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, job: JobId, (bytes, bytes_total): (u64, u64), waits_for: Option<&str>) {
        let waits_for = waits_for.map(str::to_owned);
        self.lock().insert(job, Copied { bytes, bytes_total, waits_for });
    }

    fn now(&self) -> Tick {
        clock::tick_since(self.start)
    }
}

/// Drives every backup and restore while this master leads, and begins those that are due. Ends
/// with the master.
pub(crate) async fn run(shared: Shared) {
    let mut tasks = JoinSet::new();
    let mut driven: BTreeMap<JobId, AbortHandle> = BTreeMap::new();
    let mut looked = Instant::now();
    loop {
        let wanted = if shared.role().leading { running(&shared) } else { BTreeSet::new() };
        for (id, task) in driven.extract_if(.., |id, _| !wanted.contains(id)) {
            task.abort();
            tasks.spawn(clear_ended(shared.clone(), id));
        }
        driven.retain(|_, task| !task.is_finished());
        shared.backups.lock().retain(|id, _| wanted.contains(id));
        for id in wanted {
            driven.entry(id).or_insert_with(|| tasks.spawn(drive(shared.clone(), id)));
        }
        while tasks.try_join_next().is_some() {}
        if looked.elapsed() >= BACKUP_SCHEDULE_EVERY && shared.role().leading {
            looked = Instant::now();
            schedule::look(&shared).await;
        }
        tokio::time::sleep(BACKUP_LOOK_EVERY).await;
    }
}

fn running(shared: &Shared) -> BTreeSet<JobId> {
    let state = shared.raft.view().state();
    state.jobs_running().filter(|job| is_of_backups(job)).map(|job| job.id).collect()
}

/// Whether a job is a backup or a restore.
pub(crate) fn is_of_backups(job: &Job) -> bool {
    matches!(job.kind, JobKind::Backup(_) | JobKind::Restore(_))
}

/// Takes a job from where it stands to its end.
async fn drive(shared: Shared, id: JobId) {
    let Some(job) = shared.raft.view().state().job(id).cloned() else { return };
    if job.state != JobState::Running {
        return;
    }
    let done = match &job.kind {
        JobKind::Backup(backup) => create::run(&shared, &job, backup).await,
        JobKind::Restore(restore) => restore::run(&shared, &job, restore).await,
        JobKind::Split(_) | JobKind::Merge(_) | JobKind::Move(_) | JobKind::Transfer(_) => return,
    };
    match done {
        Ok(()) => info!(job = %job.id, kind = job.kind.name(), "done"),
        Err(Stop::Elsewhere) => {}
        Err(Stop::Failed(error)) => {
            fail(&shared, &job, error).await;
            clear_ended(shared, id).await;
        }
    }
}

/// Removes what a backup has left that has failed, or that somebody has ended. Only once the
/// metadata say so: another master may have brought it to a good end.
async fn clear_ended(shared: Shared, id: JobId) {
    let wish = match shared.raft.view().state().job(id) {
        Some(Job {
            state: JobState::Cancelled | JobState::Failed, kind: JobKind::Backup(backup), ..
        }) => backup.wish.clone(),
        Some(_) | None => return,
    };
    if let Ok(repository) = open(&wish.url).await {
        create::clear(&repository, &wish.backup).await;
    }
}

async fn fail(shared: &Shared, job: &Job, error: String) {
    warn!(job = %job.id, kind = job.kind.name(), error, "failed");
    let (end, time_ms) = (JobEnd::Failed { error }, clock::wall_ms());
    let command = Command::EndJob { job: job.id, attempt: Some(job.attempt), end, time_ms };
    // Whoever leads next finds it running and tries again.
    let _ = shared.raft.propose(command).await;
}

/// Puts a step into the log; the job as it stands then.
async fn step(shared: &Shared, command: Command) -> Result<Job, Stop> {
    match shared.raft.propose(command).await {
        Ok(Reply::Job(job)) => Ok(*job),
        Ok(Reply::Rejected(rejection)) => Err(Stop::Failed(rejection.to_string())),
        Ok(_) | Err(_) => Err(Stop::Elsewhere),
    }
}

/// Opens the target of a URL.
async fn open(url: &str) -> Result<Repository, BackupError> {
    Repository::open(&Location::parse(url)?).await
}
