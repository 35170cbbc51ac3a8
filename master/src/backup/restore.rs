//! A restore, from its record to the opening of its tables.

use super::orders::{Heard, Orders};
use super::servers::{Sight, cluster_id, connected, import, probe};
use super::{Stop, open, step};
use crate::clock;
use crate::limits::{BACKUP_PLAN_EVERY, BACKUP_SCRATCH, RESTORE_SERVERS_PATIENCE};
use crate::placement::place;
use crate::service::Shared;
use async_trait::async_trait;
use ebla_backup::limits::RESTORE_CORE_PARTS;
use ebla_backup::{
    Crew, Held, Manifest, Pace, Rate, Repository, Scratch, TableEntry, Totals, Worker, boundaries,
    retain_tables,
};
use ebla_failpoints::failpoint;
use ebla_kernel::backup::import::{ImportOrder, RestoreRun};
use ebla_kernel::backup::site::{Map, map_of};
use ebla_kernel::backup::{Ended, Standing};
use ebla_kernel::ids::{JobId, ReplicaId, TableId};
use ebla_kernel::limits::{CLOCK_OFFSET_MS_MAX, PRE_SPLIT_TABLETS_MAX};
use ebla_kernel::meta::{
    Command, Duty, Job, JobKind, NewTable, NewTablet, RestoreJob, RestoreStep, RestoredCopy, TableSpec,
    cut_ranges,
};
use ebla_proto::v1::ImportRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing::info;

/// Takes a restore from where it stands to its end.
pub(super) async fn run(shared: &Shared, job: &Job, restore: &RestoreJob) -> Result<(), Stop> {
    let repository = open(&restore.wish.url).await?;
    let mut chain = repository.chain(&restore.wish.backup).await?;
    // Of the other tables nothing is read, whatever has become of them.
    let sources: BTreeSet<u32> = restore.wish.tables.iter().map(|(source, _)| source.0).collect();
    retain_tables(&mut chain, &sources);
    let created = if restore.tables.is_empty() {
        check(shared, job, restore, &repository, &chain).await?;
        failpoint!("restore.create");
        create(shared, job, restore, &chain).await?
    } else {
        restore.clone()
    };
    import_all(shared, job, &created, totals(&chain)).await?;
    failpoint!("restore.activate");
    change(shared, job, RestoreStep::Activate { time_ms: clock::wall_ms() }).await?;
    failpoint!("restore.done");
    Ok(())
}

async fn change(shared: &Shared, job: &Job, step_to: RestoreStep) -> Result<Job, Stop> {
    step(shared, Command::ChangeRestore { job: job.id, attempt: job.attempt, step: step_to }).await
}

/// Everything that can be wrong is found before anything is touched.
async fn check(
    shared: &Shared,
    job: &Job,
    restore: &RestoreJob,
    repository: &Repository,
    chain: &[Manifest],
) -> Result<(), Stop> {
    let wish = &restore.wish;
    if wish.ts.ms() > clock::wall_ms() + CLOCK_OFFSET_MS_MAX {
        let why = "the backup is from the future by the clock of the leading master: correct the clocks and try again";
        return Err(Stop::Failed(why.to_owned()));
    }
    let key_id = chain.last().map_or("", Manifest::key_id);
    probe(shared, repository, &wish.url, key_id, Sight::Reads(&wish.backup)).await.map_err(Stop::Failed)?;
    let dir = shared.backups.scratch.join(BACKUP_SCRATCH).join(job.id.0.to_string());
    let scratch = Scratch::make(dir.clone())
        .map_err(|error| Stop::Failed(format!("{} cannot be made: {error}", dir.display())))?;
    let held = match wish.rate_bytes {
        0 => Held::Core(Crew::default(), RESTORE_CORE_PARTS),
        rate_bytes => Held::Rate(Arc::new(Rate::new(rate_bytes))),
    };
    let pace =
        Checking { held, shared, job: job.id, checked: AtomicU64::new(0), total: totals(chain).stored_bytes };
    pace.tell();
    for manifest in chain {
        repository.check(manifest, &scratch.0, &pace).await?;
    }
    info!(job = %job.id, backup = wish.backup, checked = pace.total, "the files of the backup are as they were written");
    Ok(())
}

fn totals(chain: &[Manifest]) -> Totals {
    chain.iter().map(Manifest::totals).sum()
}

/// The pace of a check, which tells how far it is.
struct Checking<'a> {
    held: Held,
    shared: &'a Shared,
    job: JobId,
    checked: AtomicU64,
    total: u64,
}

impl Checking<'_> {
    /// The check is the first half of a restore.
    fn tell(&self) {
        let checked = self.checked.load(Ordering::Relaxed).min(self.total);
        self.shared.backups.note(self.job, (checked, self.total.saturating_mul(2)), None);
    }
}

#[async_trait]
impl Pace for Checking<'_> {
    async fn wait(&self, bytes: usize) {
        self.held.wait(bytes).await;
        self.checked.fetch_add(bytes as u64, Ordering::Relaxed);
        self.tell();
    }

    fn worker(&self) -> Worker {
        self.held.worker()
    }
}

/// The tables come into being, cut as they were and closed to everybody.
async fn create(
    shared: &Shared,
    job: &Job,
    restore: &RestoreJob,
    chain: &[Manifest],
) -> Result<RestoreJob, Stop> {
    let newest = chain.last().ok_or_else(|| Stop::Failed("the backup has no manifest".to_owned()))?;
    let mut tables = Vec::new();
    for (source, name) in &restore.wish.tables {
        let entry = newest.tables.iter().find(|entry| entry.id == source.0);
        let entry = entry.ok_or_else(|| Stop::Failed(format!("the backup has no table {}", source.0)))?;
        tables.push(placed_table(shared, restore, entry, name).await.map_err(Stop::Failed)?);
    }
    let job = change(shared, job, RestoreStep::Create { tables }).await?;
    match job.kind {
        JobKind::Restore(restore) => Ok(restore),
        JobKind::Split(_)
        | JobKind::Merge(_)
        | JobKind::Move(_)
        | JobKind::Backup(_)
        | JobKind::Transfer(_) => Err(Stop::Elsewhere),
    }
}

/// As `new_table`; servers that are known and away for a moment are waited for.
async fn placed_table(
    shared: &Shared,
    restore: &RestoreJob,
    entry: &TableEntry,
    name: &str,
) -> Result<NewTable, String> {
    let until = Instant::now() + RESTORE_SERVERS_PATIENCE;
    loop {
        let made = new_table(shared, restore, entry, name);
        let replicas = restore.wish.replicas.unwrap_or(entry.settings.replicas);
        let stay = shared.raft.view().state().servers().filter(|server| server.duty == Duty::Serves).count();
        if made.is_ok() || stay < usize::from(replicas) || Instant::now() >= until {
            return made;
        }
        tokio::time::sleep(BACKUP_PLAN_EVERY).await;
    }
}

fn new_table(
    shared: &Shared,
    restore: &RestoreJob,
    entry: &TableEntry,
    name: &str,
) -> Result<NewTable, String> {
    let spec = spec(entry, restore.wish.replicas)?;
    let mut keys = boundaries(&entry.parts);
    keys.truncate(PRE_SPLIT_TABLETS_MAX - 1);
    let ranges = cut_ranges(&keys).map_err(|error| error.to_string())?;
    let candidates = shared.candidates();
    let placed = place(name, ranges.len(), usize::from(spec.replicas), &candidates).ok_or_else(|| {
        format!(
            "table {name} has {} copies of each tablet and {} tablet servers are up: start more, or restore with --replicas {}",
            spec.replicas,
            candidates.len(),
            candidates.len().max(1)
        )
    })?;
    let tablets = ranges.into_iter().zip(placed).map(|(range, servers)| NewTablet { range, servers });
    Ok(NewTable { spec, tablets: tablets.collect() })
}

/// What the table promised, with as many copies as are wanted now.
fn spec(entry: &TableEntry, replicas: Option<u8>) -> Result<TableSpec, String> {
    let mut spec = entry.settings.spec().map_err(|error| error.to_string())?;
    if let Some(replicas) = replicas {
        spec.replicas = replicas;
        spec.min_in_sync = TableSpec::default_min_in_sync(replicas);
        // A level, or else a policy, that only more copies can keep.
        if spec.check().is_err() {
            spec.ack = TableSpec::default().ack;
        }
        if spec.check().is_err() {
            spec.policy = TableSpec::default_policy(spec.kind);
        }
    }
    spec.check().map_err(|error| format!("table {} cannot be as it was: {error}", entry.name))?;
    Ok(spec)
}

/// Lets copy after copy take its rows in until all of them have.
async fn import_all(shared: &Shared, job: &Job, restore: &RestoreJob, totals: Totals) -> Result<(), Stop> {
    let now = || shared.backups.now();
    let sources: BTreeMap<TableId, TableId> =
        restore.tables.iter().copied().zip(restore.wish.tables.iter().map(|(source, _)| *source)).collect();
    let (mut run, mut shown) = (RestoreRun::new(now()), 0);
    let mut imports = Orders::new();
    loop {
        let (map, ledger) = look(shared, job, restore);
        let (tablets, copies) = map
            .values()
            .flatten()
            .fold((0, 0), |(tablets, copies), site| (tablets + 1, copies + site.copies.len() as u64));
        // What servers tell of one copy goes up to about this.
        let each = (totals.bytes.midpoint(totals.stored_bytes) / tablets.max(1)).max(1);
        let taken = run.taken_bytes(ledger.len() as u64, each);
        let all = u128::from(copies.max(1)) * u128::from(each);
        // As many bytes again as were checked.
        let stored = totals.stored_bytes;
        let part = (u128::from(stored) * u128::from(taken) / all) as u64;
        shown = part.min(stored).max(shown);
        let bytes = (stored.saturating_add(shown), stored.saturating_mul(2));
        shared.backups.note(job.id, bytes, run.waits_for(now()));
        match run.standing(now(), &map, &ledger) {
            Standing::Done => return Ok(()),
            Standing::GivenUp(why) => return Err(Stop::Failed(why)),
            Standing::Running => {}
        }
        for order in run.plan(now(), &map, &ledger, &connected(shared)) {
            let (request, shared) = (request(shared, restore, &sources, &order), shared.clone());
            imports.begin(order.replica, |note| async move {
                let done = import(&shared, order.server, request, note).await?;
                let (tablet, replica) = (order.tablet, order.replica);
                Ok(RestoredCopy { tablet, replica, rows: done.rows, bytes: done.bytes })
            });
        }
        match imports.hear(BACKUP_PLAN_EVERY).await {
            Heard::Ended(replica, Ok(copy)) => {
                failpoint!("restore.ledger");
                change(shared, job, RestoreStep::Restored { copies: vec![copy] }).await?;
                run.ended(now(), replica, Ended::Done);
            }
            Heard::Ended(replica, Err(ended)) => run.ended(now(), replica, ended),
            Heard::Bytes(replica, bytes) => run.took(now(), replica, bytes),
            Heard::Nothing => {}
        }
        imports.keep(&run.running().map(|order| order.replica).collect());
    }
}

fn look(shared: &Shared, job: &Job, restore: &RestoreJob) -> (Map, BTreeSet<ReplicaId>) {
    let state = shared.raft.view().state();
    let map = map_of(&state, restore.tables.iter().copied(), &BTreeMap::new());
    (map, state.ledger(job.id).map(|ledger| ledger.copies.clone()).unwrap_or_default())
}

fn request(
    shared: &Shared,
    restore: &RestoreJob,
    sources: &BTreeMap<TableId, TableId>,
    order: &ImportOrder,
) -> ImportRequest {
    ImportRequest {
        cluster_id: cluster_id(shared),
        target: restore.wish.url.clone(),
        backup_id: restore.wish.backup.clone(),
        source_table_id: sources.get(&order.table).map_or(0, |source| source.0),
        table_id: order.table.0,
        tablet_id: order.tablet.0,
        replica_id: order.replica.0,
        rate_bytes: restore.wish.rate_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebla_backup::TableSettings;
    use ebla_kernel::meta::Policy;
    use ebla_kernel::op::AckLevel;

    #[test]
    fn the_number_of_copies_is_all_that_changes_if_the_rest_can_stay() {
        let was = TableSpec {
            replicas: 3,
            min_in_sync: 3,
            policy: Policy::Degraded,
            ack: AckLevel::Copies(3),
            ..TableSpec::default()
        };
        let settings = TableSettings::of(&was);
        let entry = TableEntry { id: 1, name: "t".to_owned(), since_ts: 0, settings, parts: Vec::new() };
        assert_eq!(spec(&entry, None), Ok(was.clone()));
        assert_eq!(spec(&entry, Some(3)), Ok(TableSpec { min_in_sync: 2, ..was.clone() }));
        let fewer = TableSpec { replicas: 1, min_in_sync: 1, ack: TableSpec::default().ack, ..was };
        assert_eq!(spec(&entry, Some(1)), Ok(fewer));
    }
}
