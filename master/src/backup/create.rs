//! A backup, from its record to its manifest.

use super::orders::{Heard, Orders};
use super::servers::{Sight, cluster_id, connected, export, probe};
use super::{Stop, open, step};
use crate::clock;
use crate::limits::{BACKUP_MANIFEST_TRIES, BACKUP_PLAN_EVERY, BACKUP_SIGN_TIMEOUT};
use crate::liveness::Counted;
use crate::service::Shared;
use ebla_backup::limits::SIGN_EVERY;
use ebla_backup::{
    ALGORITHM, BackupError, CreatedBy, Encryption, MANIFEST_FORMAT, Manifest, Parent, Part, Repository, Sign,
    TableEntry, TableSettings,
};
use ebla_failpoints::failpoint;
use ebla_kernel::backup::run::{BackupRun, DonePart, Order, PartId};
use ebla_kernel::backup::site::map_of;
use ebla_kernel::backup::{Ended, Standing};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::limits::CLOCK_OFFSET_MS_MAX;
use ebla_kernel::meta::{BackupJob, BackupStep, Command, Job, Totals};
use ebla_kernel::plan::Size;
use ebla_kernel::range::KeyRange;
use ebla_proto::v1::ExportRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tracing::info;

/// Takes a backup from where it stands to its end.
pub(super) async fn run(shared: &Shared, job: &Job, backup: &BackupJob) -> Result<(), Stop> {
    let repository = open(&backup.wish.url).await?;
    repository.key(&backup.wish.key_id)?;
    make(shared, job, backup, &repository).await
}

/// Removes what a backup that came to nothing has left.
pub(super) async fn clear(repository: &Repository, backup: &str) {
    if let Err(error) = repository.remove(backup).await {
        info!(backup, %error, "what a failed backup has left could not be removed: `ebla backup prune` does");
    }
}

async fn make(shared: &Shared, job: &Job, backup: &BackupJob, repository: &Repository) -> Result<(), Stop> {
    if backup.committed
        && let Some(manifest) = repository.manifest_if_there(&backup.wish.backup).await?
    {
        // Whoever put it was heard of no more; what it does not name may still be there.
        put_manifest(repository, &manifest).await?;
        return finish(shared, job).await;
    }
    let mut life = Life::new(shared, job, backup);
    // Nothing lies at the target without it.
    life.say(repository).await?;
    if !backup.committed {
        let probed = probe(shared, repository, &backup.wish.url, &backup.wish.key_id, Sight::Writes).await;
        probed.map_err(Stop::Failed)?;
    }
    failpoint!("backup.choose");
    let ts = choose(shared, job, backup).await?;
    failpoint!("backup.export");
    let exported = match backup.committed {
        true => None,
        false => Some(export_all(shared, job, backup, repository, &mut life, ts).await?),
    };
    let mut parts = repository.parts(&backup.wish.backup).await?;
    // What was given up may be there, and may be about to be removed.
    parts.retain(|part| exported.as_ref().is_none_or(|exported| exported.contains(&part.name)));
    let parts = chosen(backup, parts)?;
    let manifest = manifest(shared, job, backup, ts, parts)?;
    let totals = totals(&manifest);
    failpoint!("backup.commit");
    change(shared, job, BackupStep::Commit { totals }).await?;
    failpoint!("backup.manifest");
    put_manifest(repository, &manifest).await?;
    finish(shared, job).await
}

async fn finish(shared: &Shared, job: &Job) -> Result<(), Stop> {
    failpoint!("backup.finish");
    change(shared, job, BackupStep::Finish { time_ms: clock::wall_ms() }).await?;
    failpoint!("backup.done");
    Ok(())
}

/// What is said at the target as long as the backup is being made.
struct Life {
    backup: String,
    sign: Sign,
    said: Instant,
}

impl Life {
    fn new(shared: &Shared, job: &Job, backup: &BackupJob) -> Self {
        let sign = Sign::new(cluster_id(shared), job.id.0, backup.wish.by.clone(), job.started_ms);
        Self { backup: backup.wish.backup.clone(), sign, said: Instant::now() }
    }

    async fn say(&mut self, repository: &Repository) -> Result<(), BackupError> {
        repository.put_sign(&self.backup, &self.sign).await?;
        self.said = Instant::now();
        Ok(())
    }

    /// Says it again when it is time; a target that fails now is tried again a little later.
    async fn go_on(&mut self, repository: &Repository) {
        if self.said.elapsed() < SIGN_EVERY {
            return;
        }
        let said = tokio::time::timeout(BACKUP_SIGN_TIMEOUT, self.say(repository)).await;
        if !matches!(said, Ok(Ok(()))) {
            info!(backup = self.backup, "the target did not take a sign of life");
            self.said = Instant::now();
        }
    }
}

async fn change(shared: &Shared, job: &Job, step_to: BackupStep) -> Result<Job, Stop> {
    step(shared, Command::ChangeBackup { job: job.id, attempt: job.attempt, step: step_to }).await
}

/// The timestamp of the backup. It is chosen only now that the record holds the garbage floors,
/// and lies so far ahead that everything which was acknowledged anywhere before is below it.
async fn choose(shared: &Shared, job: &Job, backup: &BackupJob) -> Result<Hlc, Stop> {
    let ts = match backup.ts {
        Some(ts) => ts,
        None => {
            let ts = Hlc::new(clock::wall_ms() + CLOCK_OFFSET_MS_MAX, 0);
            change(shared, job, BackupStep::Choose { ts }).await?;
            ts
        }
    };
    let ahead_ms = ts.ms().saturating_sub(clock::wall_ms());
    tokio::time::sleep(Duration::from_millis(ahead_ms)).await;
    Ok(ts)
}

/// Asks servers for part after part until they cover everything; the names of those that do.
async fn export_all(
    shared: &Shared,
    job: &Job,
    backup: &BackupJob,
    repository: &Repository,
    life: &mut Life,
    ts: Hlc,
) -> Result<BTreeSet<String>, Stop> {
    let id = &backup.wish.backup;
    let done: Vec<DonePart> = repository.parts(id).await?.iter().filter_map(done_part).collect();
    // Names that nobody has used: another master may have ordered some, and may have lost them.
    let first = PartId(u64::from(rand::random::<u32>()) << 32);
    let now = || shared.backups.now();
    let mut run = BackupRun::new(now(), backup.wish.tables.iter().copied(), &done, first);
    let mut orders = Orders::new();
    loop {
        match run.standing(now()) {
            Standing::Done => return Ok(run.parts().map(part_name).collect()),
            Standing::GivenUp(why) => return Err(Stop::Failed(why)),
            Standing::Running => {}
        }
        for order in plan(shared, &mut run) {
            let (request, shared) = (request(shared, backup, ts, &order), shared.clone());
            orders
                .begin(order.part, |note| async move { export(&shared, order.server, request, note).await });
        }
        let progress = run.progress();
        shared.backups.note(job.id, (progress.done, progress.total), run.waits_for(now()));
        match orders.hear(BACKUP_PLAN_EVERY).await {
            Heard::Ended(part, ended) => {
                run.ended(now(), part, ended.map_or_else(|ended| ended, |_| Ended::Done));
            }
            Heard::Bytes(part, bytes) => run.wrote(now(), part, bytes),
            Heard::Nothing => {}
        }
        orders.keep(&run.running().map(|order| order.part).collect());
        life.go_on(repository).await;
    }
}

fn plan(shared: &Shared, run: &mut BackupRun) -> Vec<Order> {
    let usable = connected(shared);
    let size = |counted: Counted| Size { bytes: counted.bytes, requests: counted.requests };
    let sizes = shared.liveness.counted().into_iter().map(|(id, counted)| (id, size(counted))).collect();
    let tables: Vec<TableId> = run.tables().collect();
    let map = map_of(&shared.raft.view().state(), tables, &sizes);
    run.plan(shared.backups.now(), &map, &usable)
}

fn request(shared: &Shared, backup: &BackupJob, ts: Hlc, order: &Order) -> ExportRequest {
    ExportRequest {
        cluster_id: cluster_id(shared),
        target: backup.wish.url.clone(),
        backup_id: backup.wish.backup.clone(),
        part: part_name(order.part),
        table_id: order.table.0,
        tablet_id: order.tablet.0,
        start: order.range.start().clone(),
        end: order.range.end().cloned().unwrap_or_default(),
        since_ts: order.since.0,
        ts: ts.0,
        rate_bytes: backup.wish.rate_bytes,
        key_id: backup.wish.key_id.clone(),
    }
}

fn part_name(part: PartId) -> String {
    format!("{:016x}", part.0)
}

/// A part as the plan knows it; none of another name than a plan gives.
fn done_part(part: &Part) -> Option<DonePart> {
    let id = PartId(u64::from_str_radix(&part.name, 16).ok()?);
    Some(DonePart { part: id, table: TableId(part.table), range: part.range().ok()? })
}

/// Of parts that may overlap those that the manifest names, in key order, by table.
fn chosen(backup: &BackupJob, parts: Vec<Part>) -> Result<Vec<Part>, Stop> {
    let mut chosen = Vec::new();
    for (table, _) in &backup.wish.tables {
        let ours: Vec<&Part> = parts.iter().filter(|part| part.table == table.0).collect();
        let ranges: Option<Vec<KeyRange>> = ours.iter().map(|part| part.range().ok()).collect();
        let cover = ebla_kernel::backup::cover::cover(&KeyRange::all(), &ranges.unwrap_or_default());
        if let Some(gap) = cover.gaps.first() {
            let why = format!("parts of table {} at {} are gone: {gap}", table.0, backup.wish.url);
            return Err(Stop::Failed(why));
        }
        chosen.extend(cover.chosen.into_iter().map(|place| ours[place].clone()));
    }
    Ok(chosen)
}

fn manifest(
    shared: &Shared,
    job: &Job,
    backup: &BackupJob,
    ts: Hlc,
    parts: Vec<Part>,
) -> Result<Manifest, Stop> {
    let wish = &backup.wish;
    let mut by_table: BTreeMap<u32, Vec<Part>> = BTreeMap::new();
    parts.into_iter().for_each(|part| by_table.entry(part.table).or_default().push(part));
    let state = shared.raft.view().state();
    let mut tables = Vec::new();
    for (id, since) in &wish.tables {
        let Some(table) = state.table(*id) else {
            let why = format!("table {} was dropped while it was backed up: begin again without it", id.0);
            return Err(Stop::Failed(why));
        };
        tables.push(TableEntry {
            id: id.0,
            name: table.name.clone(),
            since_ts: since.0,
            settings: TableSettings::of(&table.spec),
            parts: by_table.remove(&id.0).unwrap_or_default(),
        });
    }
    let encryption = (!wish.key_id.is_empty())
        .then(|| Encryption { algorithm: ALGORITHM.to_owned(), key_id: wish.key_id.clone() });
    Ok(Manifest {
        format: MANIFEST_FORMAT,
        id: wish.backup.clone(),
        cluster_id: state.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
        ts: ts.0,
        parent: wish.parent.as_ref().map(|(id, ts)| Parent { id: id.clone(), ts: ts.0 }),
        encryption,
        created: CreatedBy {
            by: wish.by.clone(),
            started_ms: job.started_ms,
            ended_ms: clock::wall_ms(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scheduled: wish.scheduled,
        },
        tables,
    })
}

fn totals(manifest: &Manifest) -> Totals {
    let totals = manifest.totals();
    Totals {
        tables: manifest.tables.len() as u64,
        rows: totals.rows,
        bytes: totals.bytes,
        files: totals.files,
    }
}

/// The backup is past its commit point: it is tried until it is hopeless.
async fn put_manifest(repository: &Repository, manifest: &Manifest) -> Result<(), Stop> {
    let mut tries = 1;
    loop {
        match repository.put_manifest(manifest).await {
            Ok(()) => return Ok(()),
            Err(error) if tries >= BACKUP_MANIFEST_TRIES => return Err(error.into()),
            Err(error) => info!(backup = manifest.id, %error, "the manifest is put again"),
        }
        tokio::time::sleep(BACKUP_PLAN_EVERY * tries).await;
        tries += 1;
    }
}
